"""
Which table answers a dataset: decides, and calls the rooms that do.

In this order, and saying why each one before did not: a hand-made `semantic_id_dict.json`; the
dataset's lineage, as it is or extended; training; default IDs. (A pinned mapping comes before all
of them and never gets here, see `dataset`.) `ALLOW_SEMANTIC_GENERATION` gates extending and
training; under a closed gate nothing is written but the compiled form of a hand-made file.
"""

import errno
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from semid_dataset import _files as files
from semid_dataset._messages import degrade, tell, text, warn
from semid_dataset._process import check_imports, fellow_ranks, in_loader_worker, raised_by_signal
from semid_dataset.build import lineages as lineage
from semid_dataset.build import memory, pipeline
from semid_dataset.build.evidence import Evidence
from semid_dataset.build.handmade import HandMade, reconciled
from semid_dataset.build.itemset import HeldItems, ItemSet
from semid_dataset.cache import folders
from semid_dataset.cache.cache import Cache
from semid_dataset.cache.entries import MOST_REASON, CacheEntry
from semid_dataset.cache.fingerprint import FRESH_NS, CacheKey, FileStamp
from semid_dataset.cache.folders import CacheFolder
from semid_dataset.cache.guard import Guard, descends, first_time, moved_items
from semid_dataset.cache.lock import Lease
from semid_dataset.config import Identity, SemanticIdConfig
from semid_dataset.environment import Context
from semid_dataset.errors import (
    ConfigError,
    DigestError,
    ForeignVectorsError,
    ForkError,
    GenerationError,
    NoEmbeddingsError,
    NoRoomError,
    ParentError,
    PinError,
    SemidError,
    TableVersionError,
    WorkGoneError,
)
from semid_dataset.format.id_json import JSON_FILE
from semid_dataset.inputs.discover import FeatureSource, features_folder, find_sources
from semid_dataset.inputs.keys import LongNameError
from semid_dataset.objects import as_path
from semid_dataset.progress import Progress, shown
from semid_dataset.registry import EXECUTORS
from semid_dataset.table.build import TableData, content_digests
from semid_dataset.table.table import SemanticIdTable

if TYPE_CHECKING:
    from semid_dataset.build.recover import Recovery
    from semid_dataset.build.streaming.run import Job
    from semid_dataset.codec.residual import ResidualQuantizer
    from semid_dataset.inputs.read import Embeddings

__all__ = ["Request", "Resolution", "check_expected", "check_pin", "is_read_back", "look", "resolve"]

STREAM_TRIES = 3  # of a streamed run whose work folder others, who published, took away
BROKEN = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE, errno.EISDIR, errno.ENOTDIR}  # of a folder
BY_LOOKING = "this look makes no IDs"  # what ends the reason of `look`, where the gate would let IDs be made
RETRAIN = "To train anew: semid generate DATA_DIR --retrain, or generate_semantic_ids(..., retrain=True)."


@dataclass(frozen=True)
class Request:
    """
    What a dataset asks for.

    Attributes:
        data_dir: the data directory, or None where embeddings come from memory alone.
        feature_ids: of the embeddings, such as ("81", "82").
        embeddings: {feature id: {item: vector}}, used where there are no files to read.
        config: how IDs are made.
        parent: a published table to extend (file, folder, table) or a bare quantizer.
        cache_dir: a cache folder to try before all others.
        expect: digest or lineage of the table that must answer, or one that grew from it; "" is any.
        pin: what alone may answer, "LINEAGE" or "LINEAGE@N"; "" is what was pinned for the directory, if something was.
    """

    data_dir: Path | None
    feature_ids: tuple[str, ...]
    embeddings: Mapping[Any, Mapping[Any, Any]] | None = field(default=None, repr=False)
    config: SemanticIdConfig = field(default_factory=SemanticIdConfig)
    parent: "Path | SemanticIdTable | ResidualQuantizer | None" = None
    cache_dir: Path | None = None
    expect: str = ""
    pin: str = ""


def resolve(request: Request, context: Context) -> SemanticIdTable:
    """
    Return the table that answers; see the module for the order.

    Args:
        request: what is asked for.
        context: what the door read.

    Raises:
        GenerationError: default IDs would have to answer in one rank of several, or in a DataLoader worker.
        ForkError: this process is in a state in which it can make none.
        What the handler of a signal raised meanwhile.
        LockTimeoutError: as its cause there; elsewhere default IDs answer.
    """
    check_imports("semid_dataset", "numpy", "platformdirs")
    gate = context.environment.gate
    if not gate.understood:
        degrade("gate_unknown", value=gate.value)
    resolution = Resolution(request, context, may_generate=gate.allowed, in_worker=in_loader_worker())
    resolution.open_parent()
    try:
        table = resolution.run()
    except (ParentError, PinError):  # what a caller names and cannot be used is his error, as any wrong argument is
        raise
    except (SemidError, OSError, MemoryError) as error:
        if (raised := raised_by_signal(error)) is not None:  # TimeoutError is an OSError
            raise raised from None
        if resolution.expect:
            raise DigestError(f"{resolution.expect} is expected here, and nothing answers: {error}") from error
        return _default(request, context, error)
    except Exception as error:  # whatever training meets (a CUDA error, say) ends in default IDs
        if resolution.expect:
            raise
        if (raised := raised_by_signal(error)) is not None:
            raise raised from None
        tell("unexpected", error=error, trace=True)
        return _default(request, context, error)
    check_expected(table, resolution.expect)
    tell("answered", level=logging.DEBUG, status=table.status, reason=table.reason)
    if table.status == "stale":
        warn("stale", reason=table.reason, known=len(table))
    return table


def look(request: Request, context: Context) -> SemanticIdTable:
    """
    Return the table that answers now, without training or extending anything, or raise the reason why none does.

    Raises:
        GenerationError, NoEmbeddingsError: there are no IDs yet.
        SemidError, OSError: as the steps say.
    """
    resolution = Resolution(request, context, may_generate=False)
    resolution.adopting = False
    if context.environment.gate.allowed:
        resolution.forbidden_by = BY_LOOKING
    resolution.open_parent()
    return resolution.run()


def check_expected(table: SemanticIdTable, wanted: str) -> None:
    """
    Make sure that a table is the one that is expected, or grew from it.

    Args:
        table: that answers.
        wanted: a digest or the name of a lineage; "" is any.

    Raises:
        DigestError: it is another one.
    """
    wanted = wanted.strip()
    if not wanted:
        return
    header = table.header
    by_name = wanted in {table.lineage, *header.origins}
    by_digest = table.computed_digest in {wanted, table.digest} and descends(table, wanted)
    if table.status == "default" or not (by_name or by_digest):
        raise DigestError(
            f"{wanted} is expected, and {table.path or 'a table in memory'} answers ({table.status}): lineage "
            f"'{table.lineage}', generation {table.generation}, digest {table.computed_digest}. Its IDs are others "
            "than the recommender was trained with. Pass the table that lies beside its weights as parent."
        )


def is_read_back(request: Request, table: SemanticIdTable, context: Context) -> bool:
    """
    Say whether an assigned mapping is what we exported, or what lies in the data directory anyway.

    A dataset's own loader reads `semantic_id_dict.json` and assigns it: that asks for nothing else than the file does.
    """
    sha256 = table.header.json_sha256
    if request.data_dir is None or not sha256:
        return False
    with suppress(SemidError, OSError):
        path = request.data_dir / JSON_FILE
        if path.exists() and FileStamp.of(path, request.data_dir).digest() == sha256:
            return True
        entry = Cache.of(context.environment, request.data_dir, request.cache_dir).exported_by(sha256)
        return entry is not None and not entry.lineage.startswith("json-")
    return False


def check_pin(request: Request, table: SemanticIdTable, context: Context) -> None:
    """
    Make sure that an assigned mapping and a parent that is named do not contradict each other.

    Raises:
        ParentError: they do, or the parent cannot be used.
    """
    resolution = Resolution(request, context, may_generate=False)
    resolution.adopting = False
    resolution.open_parent()
    parent = resolution.parent
    if parent is None or parent.header.exported(table.header.json_sha256):
        return
    moved, both = moved_items(parent, table)
    if moved or not both:
        raise ParentError(
            f"The program assigned IDs, and {moved} of {both} common items have another one in the parent "
            f"{parent.path or 'in memory'}. Nothing was changed. Assign nothing, or name no parent."
        )


def _default(request: Request, context: Context, error: Exception) -> SemanticIdTable:
    """Let default IDs answer, aloud; or raise where they would do harm."""
    if in_loader_worker():
        raise GenerationError(
            f"No semantic IDs in this DataLoader worker: {error} "
            "Call dataset.prepare_semantic_ids() in the main process before the DataLoader is made."
        ) from error
    if isinstance(error, ForkError):
        raise error
    if (ranks := fellow_ranks(context.environment.world_size)) is not None:
        raise GenerationError(
            f"No semantic IDs in one rank of {ranks}: {error} "
            "Default IDs here and real ones elsewhere would be worse than this stop."
        ) from error
    if not isinstance(error, NoEmbeddingsError):  # its own lines have said why
        tell("default", reason=error)
    tell("defaults")
    warn("default", reason=error)
    return SemanticIdTable.default(request.config.num_quantizers, reason=str(error))


class Resolution:
    """One pass through the order; what several of its steps need is looked up once and kept here."""

    def __init__(self, request: Request, context: Context, *, may_generate: bool, in_worker: bool = False) -> None:
        environment = context.environment
        self.request = request
        self.config: SemanticIdConfig = request.config
        self.may_generate: bool = may_generate and not in_worker
        self.in_worker = in_worker
        self.forbidden_by = "ALLOW_SEMANTIC_GENERATION forbids generating"
        self.waiting: tuple[float, float] = context.waiting(request.config)
        self.memory_limit: int = environment.memory_for(request.config)
        self.engine: str | None = None  # who is to stream, however few the items are
        self.streamed: bool = False
        self._full: set[Path] = set()  # cache folders that did not take the parts of a streamed run
        # New items with vectors of another encoder: a dataset is served without them, a command fails or was told to.
        self.foreign: Literal["serve", "raise", "take"] = "serve"
        self.cache: Cache = Cache.of(environment, request.data_dir, request.cache_dir, may_write=self.may_generate)
        self._named_parent = request.parent if request.parent is not None else environment.parent
        self.parent: SemanticIdTable | None = None
        self._parent_name: Path | None = None
        self.adopting: bool = not in_worker  # whether a parent is taken into the cache
        self.expect: str = request.expect or environment.expect or ""
        self._pin = request.pin or environment.pin or ""
        self._one_generation: bool = False  # is pinned
        self._asked: tuple[list[FeatureSource], Embeddings | None, CacheKey]
        self.guard: Guard = Guard(self.cache, request.data_dir, self._kind)

    def open_parent(self) -> None:
        """
        Open the parent that was named, if any: it is looked at before everything else.

        It is taken into the cache under its digest and served from there: whoever copies another file over it changes
        no ID of those who read it.

        Raises:
            ParentError, CorruptTableError, TableVersionError, OSError: it cannot be used.
        """
        named = self._named_parent
        if named is not None and self.parent is None:
            path = as_path(named) if isinstance(named, str | os.PathLike) else named
            table = lineage.open_parent(path, mmap=self.cache.mmap, unique=self.config.unique)
            self._parent_name = path if isinstance(path, Path) else table.path
            self.parent = table

    def _adopt_parent(self) -> None:
        """Take a parent that fits into the cache."""
        if self.parent is not None and self.adopting:
            self.parent = self.cache.adopted(self.parent)

    def run(self) -> SemanticIdTable:
        """Return the table of the first that answers; each says why it does not."""
        for answer in (
            self._pinned,
            self._hand_made,
            self._without_quantizer,
            self._without_embeddings,
            self._noted_answer,
            self._behind_the_gate,
        ):
            if (table := answer()) is not None:
                break
            tell("passed_over", level=logging.DEBUG, step=answer.__name__.strip("_"), reason="it has no table")
        else:
            table = self.generate(*self._asked)
        if table.status != "pregenerated" and not self._one_generation:
            self.guard.hold(table, note=self.may_generate)
        return table

    def _hand_made(self) -> SemanticIdTable | None:
        """Return the compiled `semantic_id_dict.json`; beside a parent it only adds to that."""
        data_dir = self.request.data_dir
        made = HandMade(self.cache, self.guard, data_dir, self.config.codebook_sizes, in_worker=self.in_worker)
        table = made.table(self.parent)
        if table is None or self.parent is None or data_dir is None:
            return table
        self.parent = reconciled(self.parent, table, data_dir / JSON_FILE)
        return None

    def _without_quantizer(self) -> SemanticIdTable | None:
        """Return the parent as it is, where it cannot encode new items."""
        if self.parent is None or self.parent.has_quantizer:
            return None
        self._adopt_parent()
        return self._stale(self.parent, "the parent has no quantizer to encode new items with")

    def _without_embeddings(self) -> SemanticIdTable | None:
        """
        Return what is known already where there are no embeddings; else note what is asked.

        Raises:
            NoEmbeddingsError: nothing is known; the original's words say so.
        """
        try:
            sources = self._sources()
        except NoEmbeddingsError as error:
            if (table := self._known_here(None)) is not None:
                return self._stale(table, str(error).rstrip("."))
            data_dir = self.request.data_dir
            if data_dir is not None and features_folder(data_dir) is None:
                tell("no_folder", path=data_dir / "creative_emb")
            tell("no_features")
            raise
        cache_key, embeddings = self.cache_key(sources)
        self._asked = sources, embeddings, cache_key
        return None

    def _noted_answer(self) -> SemanticIdTable | None:
        """Return the table that a note names for these files: no embedding is read."""
        table = self.remembered(self._asked[2])
        if table is not None:
            tell("loaded", items=len(table))
        return table

    # --- what was pinned ---

    def _pinned(self) -> SemanticIdTable | None:
        """
        Return the table that was pinned, by SEMID_PIN or `semid pin`; None where nothing was, or a whole lineage.

        Raises:
            PinError: it is not there.
        """
        where = "SEMID_PIN"
        if not self._pin and self.request.data_dir is not None and (pinned := self.cache.pinned(self.request.data_dir)):
            self._pin, where = pinned, "semid pin"
        if not self._pin:
            return None
        name, at, number = self._pin.partition("@")
        generation = int(number) if number.isdecimal() and len(number) < 10 else -1
        if not folders.LINEAGE_NAME.fullmatch(name) or (at and generation < 0):
            raise PinError(f"'{self._pin}' ({where}) names no table: give LINEAGE or LINEAGE@N, see semid history.")
        table = self.cache.named(name, generation) if at else self.cache.newest(name)
        if table is None or table.lineage != name:
            raise PinError(
                f"'{self._pin}' is pinned ({where}) and not in any cache folder. Nothing else was served in its place. "
                "See semid history for what is there, or take the pin away: semid pin DATA_DIR --off."
            )
        if self.parent is not None and not descends(table, self.parent.digest):
            raise ParentError(f"'{self._pin}' is pinned ({where}) and did not grow from the parent. Name one of them.")
        if not at:
            return None
        tell("loaded", items=len(table))
        self.guard.hold(table, note=False)
        self._one_generation = True
        return table.with_status("cached", f"pinned to {self._pin} ({where})")

    # --- the lineage ---

    def _sources(self) -> list[FeatureSource]:
        """Return the embedding files; none where embeddings come from memory."""
        data_dir = self.request.data_dir
        try:
            if data_dir is None:
                raise NoEmbeddingsError("There is no data directory to read embeddings from.")
            return find_sources(data_dir, self.request.feature_ids)
        except NoEmbeddingsError:
            if self.request.embeddings and any(len(vectors) for vectors in self.request.embeddings.values()):
                return []
            raise

    def cache_key(self, sources: Sequence[FeatureSource]) -> "tuple[CacheKey, Embeddings | None]":
        """Return what is asked, and the embeddings if they come from memory: then their content is part of it."""
        parent = "" if self.parent is None else self.parent.digest
        if sources:
            assert self.request.data_dir is not None
            identity = Identity.of(self.config, [(source.id, source.dim) for source in sources])
            stamps = tuple(FileStamp.of(file, self.request.data_dir) for source in sources for file in source.files)
            cache_key = CacheKey("ids", identity, stamps, parent=parent)
            embeddings = None
        else:
            assert self.request.embeddings is not None
            from semid_dataset.inputs.read import from_memory

            embeddings = from_memory(self.request.embeddings, self.request.feature_ids)
            identity = Identity.of(self.config, embeddings.dims)
            cache_key = CacheKey("ids", identity, (), content=embeddings.digest, parent=parent)
        if self.parent is not None:
            lineage.check_parent(self.parent, identity, self.request.feature_ids, self._parent_name)
            self._adopt_parent()
        return cache_key, embeddings

    def remembered(self, cache_key: CacheKey) -> SemanticIdTable | None:
        """Return the table that an entry names for this question: no embedding is read."""
        cache_entries = self.cache.recall_all(cache_key)
        if not cache_entries:
            tell("passed_over", level=logging.DEBUG, step="entry", reason="this cache key is new here")
            return None
        found = self._first_that_holds(cache_entries)
        if found is None or isinstance(found, SemanticIdTable):
            return found
        entry, table = found
        for _, other in cache_entries:
            if other is not entry:
                self.guard.say_apart(table, other)
        self._say_settings(table)
        if entry.stale:
            return self._stale(table, entry.stale)
        return table.with_status("cached", f"lineage {table.lineage}, generation {table.generation}")

    def _first_that_holds(
        self, noted: Sequence[tuple[CacheFolder, CacheEntry]]
    ) -> tuple[CacheEntry, SemanticIdTable] | SemanticIdTable | None:
        """Return the first note whose table can be read and serves this directory; a stale table as it is."""
        for root, entry in noted:
            if (self._pin and entry.lineage != self._pin) or (entry.stale and self.foreign != "serve"):
                return None  # another lineage is pinned; or who asks for more than what is known is told why
            try:
                table = self._noted(entry)
            except TableVersionError as error:
                return self._stale(self._readable(entry.lineage, error), str(error))
            if table is None:
                tell("passed_over", level=logging.DEBUG, step="entry", reason=f"table {entry.generation} is gone")
                return None
            if self.parent is not None or not self.guard.contradicts(root, table):
                return entry, table
            tell("passed_over", level=logging.DEBUG, step="entry", reason="another table serves this directory")
        return None

    @property
    def _kind(self) -> str:
        """The kind of ID that is asked for, as a name; the dims of features are not known without their files."""
        ids = sorted(map(str, self.request.feature_ids))
        asked = [list(self.config.codebook_sizes), ids, self.config.fusion if len(ids) > 1 else ""]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]

    def _noted(self, entry: CacheEntry) -> SemanticIdTable | None:
        """Return the table that an entry names, or one that grew from it."""
        if self.parent is not None and entry.digest == self.parent.digest:
            return self.parent
        return self.cache.noted(entry)

    def _readable(self, name: str, error: TableVersionError) -> SemanticIdTable:
        """Return the newest table of a lineage that this version can read; its IDs are those of later ones."""
        table = self.cache.newest(name)
        if table is None:
            raise error
        return table

    def _say_settings(self, table: SemanticIdTable) -> None:
        trained = table.header.settings
        wanted = self.config.to_dict()
        matter = ["unique", "seed"]
        if self.config.algorithm != "auto":  # else the data choose, and may have chosen what the table was made by
            matter += ["algorithm", "commitment_cost", "lr", "num_epochs", "batch_size"]
        differ = [name for name in matter if name in trained and trained[name] != wanted[name]]
        if differ:
            tell(
                "settings_differ",
                found=", ".join(f"{name}={trained[name]}" for name in differ),
                wanted=", ".join(f"{name}={wanted[name]}" for name in differ),
                how=RETRAIN,
            )

    def _row(self, cache: Cache, cache_key: CacheKey, embeddings: "Embeddings") -> lineage.Lineage | None:
        """
        Return the dataset's lineage: the parent's; else the one that it was served before; else one of the same data.

        What this user was served before for the directory stays his as long as the items can be the same ones: their
        vectors may come from another encoder by now. Without that, only common (item, vector) pairs make a lineage
        a dataset's.
        """
        identity = cache_key.identity
        assert identity is not None
        evidence = Evidence(embeddings.items, embeddings.features)
        served = bound.entry if (bound := self.guard.bound) is not None else None
        if self._pin and (table := cache.newest(self._pin)) is not None:
            return lineage.Lineage(self._pin, table, evidence.in_another_space(table, evidence.of(table)))
        if self.parent is not None:
            row = lineage.row_of_parent(cache, self.parent, None if served is None else served.lineage)
            if served is not None and served.lineage != row.name:
                tell("passed_over", step=f"lineage {served.lineage}", reason=f"the parent is of lineage {row.name}")
            return replace(row, other_space=evidence.in_another_space(row.base, evidence.of(row.base)))
        table = None if served is None else self._still_served(cache, served)
        if table is not None and table.has_quantizer and self._of_kind(table, identity):
            match = evidence.of(table)
            if match.same_data:
                return lineage.Lineage(table.lineage, table, evidence.in_another_space(table, match))
            if match.known and evidence.related(table):
                return lineage.Lineage(table.lineage, table, other_space=True)
        key = lineage.origin_key(identity, embeddings.digest)
        ours = {name for name in cache.lineages() if name == key or name.startswith(f"{key}-")}
        rows = lineage.find_lineages(cache, identity, evidence, ours | {served.lineage if served is not None else ""})
        for other in rows[1:]:
            self.guard.say_apart(rows[0].base, CacheEntry(other.name, other.base.generation, other.base.digest))
        return rows[0] if rows else None

    def _of_kind(self, table: SemanticIdTable, identity: Identity) -> bool:
        """Whether a table holds IDs of a kind; what began with a bare quantizer states none, and is held against it."""
        if table.header.identity is not None:
            return table.header.identity == identity
        with suppress(ParentError):
            lineage.check_parent(table, identity, self.request.feature_ids)
            return table.codebook_sizes == identity.codebook_sizes
        return False

    def _still_served(self, cache: Cache, served: CacheEntry) -> SemanticIdTable | None:
        """Return the newest table that grew from the one that was served before, else the newest of its lineage."""
        try:
            table = cache.newest(served.lineage, since=served.digest)
        except TableVersionError:  # one before it may be readable: its IDs are the same
            table = None
        except PermissionError as error:  # another user keeps it private by now
            cache.pass_over(Path(str(error.filename or served.lineage)), error)
            return None
        return table or cache.newest_or_pass(served.lineage)

    def read(self, sources: Sequence[FeatureSource], progress: Progress | None = None) -> "Embeddings":
        """Read the embeddings; the only step that is as long as they are large."""
        from semid_dataset.inputs.read import read_sources

        read = read_sources(sources, progress=progress)
        return replace(read, base=self.request.data_dir)

    def items_of(
        self,
        sources: Sequence[FeatureSource],
        cache_key: CacheKey,
        root: CacheFolder | None,
        progress: Progress,
    ) -> ItemSet:
        """
        Return the items with their features: in memory, or in parts where they would take too much of it.

        Raises:
            ConfigError: streaming was asked for by name, and cannot be.
            EmbeddingError: nothing can be read.
        """
        job = self.job(sources, cache_key, root, progress)
        if job is not None:
            try:
                job.read(self.request.data_dir)
            except LongNameError as error:
                if self.engine is not None:
                    raise
                self._say_not_streamed(sources, str(error))
            else:
                return job
        return self._held(self.read(sources, progress))

    def _held(self, embeddings: "Embeddings") -> ItemSet:
        return HeldItems(embeddings, self.config.sample_items or memory.MOST_SAMPLED, self.config.seed)

    def job(
        self,
        sources: Sequence[FeatureSource],
        cache_key: CacheKey,
        root: CacheFolder | None,
        progress: Progress,
    ) -> "Job | None":
        """
        Return the job that streams these features, or None where they are read into memory.

        Raises:
            ConfigError: streaming was asked for by name, and cannot be.
            EmbeddingError: a file cannot be read.
        """
        memory.check_limit(self.memory_limit)
        if self.engine is None and not memory.is_beyond(sources, self.memory_limit):
            return None
        why = ""
        if root is None:
            why = "no cache folder takes a write, and parts must lie somewhere"
        elif self._recovery.lost_export() is not None:
            why = "lost IDs are to be taken in again"
        if why or root is None:
            if self.engine is not None:
                raise ConfigError(f"'{sources[0].path}' cannot be streamed: {why}. Leave the engine and shards out.")
            self._say_not_streamed(sources, why)
            return None
        self.streamed = True
        size, limit = memory.sizes(sources, self.memory_limit)
        tell("streaming", size=size, limit=limit)
        from semid_dataset.build.streaming.run import open_job

        return open_job(
            root,
            cache_key.name,
            sources,
            self.config,
            limit=self.memory_limit,
            sampled=memory.sample_size([source.dim for source in sources], self.memory_limit, self.config.sample_items),
            engine=EXECUTORS.get(self.engine or "local"),
            progress=progress,
        )

    def choose_codebooks(self, sources: Sequence[FeatureSource], cache_key: CacheKey, progress: Progress) -> None:
        """
        Have the codebooks ready that all shards encode with: the lineage's, or new ones.

        Raises:
            As `items_of`; TrainingError: no codebooks came of it.
        """
        items = self.items_of(sources, cache_key, self.workplace(), progress)
        row = self._row(self.cache.writing(), self._about_what_was_read(cache_key, items.held), items.held)
        if row is not None and row.other_space and self.foreign != "take":
            raise ForeignVectorsError(text("drift", **self._of_another_space(row, items)))
        if row is None:
            items.trained(lambda: pipeline.fit_codebooks(items.sample, self.config, progress))
        else:
            items.take(row.base)

    def _say_not_streamed(self, sources: Sequence[FeatureSource], why: str) -> None:
        size, limit = memory.sizes(sources, self.memory_limit)
        tell("not_streamed", size=size, limit=limit, why=why)

    # --- the gate is closed ---

    def _behind_the_gate(self) -> SemanticIdTable | None:
        """
        Return what is known where nothing may be generated.

        Raises:
            GenerationError: nothing is.
        """
        if self.may_generate:
            return None
        sources, embeddings, cache_key = self._asked
        why = "this is a DataLoader worker" if self.in_worker else self.forbidden_by
        if self.in_worker:  # reading gigabytes in every worker is no answer either
            raise GenerationError(f"Their embeddings have no IDs yet, and {why}.")
        if (exported := self._recovery.exported_ids(cache_key.identity)) is not None:
            return self._stale(exported, f"its table is damaged and {why}")
        row: lineage.Lineage | None = None
        unreadable = False
        try:
            there = any(not name.startswith("json-") for name in self.cache.lineages())
            if there or self.parent is not None or self.guard.bound is not None:
                embeddings = embeddings or self.read(sources)
                row = self._row(self.cache.reading(), self._about_what_was_read(cache_key, embeddings), embeddings)
                if row is not None:
                    missing = int((row.base.rows_of(embeddings.items) < 0).sum())
                    if not missing:
                        tell("loaded", items=len(row.base))
                        return row.base.with_status("cached", f"lineage {row.name}, all items known; {why}")
                    return self._stale(row.base, f"{missing} items are new and {why}")
        except (SemidError, OSError) as error:
            tell("passed_over", level=logging.DEBUG, step="lineage", reason=error)
            unreadable = True
        # A path is no evidence: what served it before answers only where embeddings cannot be looked at.
        if unreadable and (table := self._known_here(cache_key.identity)) is not None:
            return self._stale(table, why)
        if self.cache.damaged:
            path = next(iter(self.cache.damaged))
            raise GenerationError(
                f"No table of IDs that can be read is left for this dataset ('{path}' is damaged) and {why}. If a "
                "recommender was trained with these IDs, bring the table back from a backup: made again, IDs move."
            )
        bound = self.guard.bound
        other = "" if bound is None else f" (lineage {bound.entry.lineage} is of other data)"
        raise GenerationError(f"There is no semantic-ID file for this dataset{other} and {why}.")

    def _known_here(self, identity: Identity | None) -> SemanticIdTable | None:
        """Return the parent, else what last served this directory if it is the kind of ID asked for, or its export."""
        if self.parent is not None:
            self._adopt_parent()
            return self.parent
        if self.request.data_dir is None:
            return None
        exported = self._recovery.exported_ids(identity)
        if exported is not None and exported.levels == len(self.config.codebook_sizes):
            return exported
        bound = self.guard.bound
        table = None if bound is None else self._still_served(self.cache.reading(), bound.entry)
        if table is None or (found := table.header.identity) is None:
            return None
        asked = set(self.request.feature_ids)
        same = found.codebook_sizes == self.config.codebook_sizes and {fid for fid, _ in found.features} == asked
        return table if found == identity or (identity is None and same) else None

    def _stale(self, table: SemanticIdTable, reason: str) -> SemanticIdTable:
        tell("stale", reason=reason, known=len(table))
        return table.with_status("stale", reason)

    # --- a damaged table ---

    @property
    def _recovery(self) -> "Recovery":
        from semid_dataset.build.recover import Recovery

        return Recovery(self.cache, self.guard, self.request.data_dir, self.parent, self.config)

    def _after_loss(self, name: str, data: TableData, cache_key: CacheKey) -> str:
        """Say aloud that a lineage is lost, unless this is its first table made again; return the name to publish."""
        cache_entries = [entry for _, entry in self.cache.recall_all(cache_key)]
        if (bound := self.guard.bound) is not None:
            cache_entries.append(bound.entry)
        lost = [entry for entry in cache_entries if self._is_lost(entry.lineage)]
        again = content_digests(data.arrays, data.header)
        healed = next((entry for entry in lost if entry.generation == 0 and entry.digest in again), None)
        if healed is not None:
            tell("healed", source="the same training")
            return healed.lineage
        for entry in lost:
            if first_time(entry.lineage, name):
                tell("lost", lineage=entry.lineage, new=name)
        return name

    def _is_lost(self, name: str) -> bool:
        return self.cache.last_generation(name) >= 0 and self.cache.newest(name) is None

    # --- generating ---

    def generate(
        self, sources: Sequence[FeatureSource], embeddings: "Embeddings | None", cache_key: CacheKey
    ) -> SemanticIdTable:
        """
        Take the lease for this process, unless the answer appears while it waits for it.

        Raises:
            ForkError: this process can make no IDs; nobody need wait for it, so it takes no lease.
        """
        check_imports("torch", "filelock")
        answered: list[SemanticIdTable] = []

        def ready() -> bool:
            found = self.remembered(cache_key)
            answered.extend([] if found is None else [found])
            return found is not None

        tell("not_found")
        with self.cache.lease(cache_key.name, waiting=self.waiting, ready=ready) as lease:
            if lease is None or ready():  # look, lock, look again: whoever held the lock may have answered
                tell("loaded", items=len(answered[-1]))
                return answered[-1]
            return self.generate_now(sources, embeddings, cache_key, lease)

    def generate_now(
        self,
        sources: Sequence[FeatureSource],
        embeddings: "Embeddings | None",
        cache_key: CacheKey,
        lease: Lease,
        retraining: bool = False,
    ) -> SemanticIdTable:
        """
        Extend the dataset's lineage, or train; publish, export and remember the answer.

        Where the lock does not exclude anybody, several stream at once, and the first to publish takes the work folder
        away. The others then look for what it published, by the question or by the items, and serve that. Where a
        cache folder has no room for the parts, the next one takes them.
        """
        for left in range(STREAM_TRIES, 0, -1):
            try:
                return self._generate_once(sources, embeddings, cache_key, lease, retraining)
            except OSError as error:
                if self.streamed and left > 1 and self._moves_on(error):
                    embeddings = None
                    continue
                if not isinstance(error, WorkGoneError | FileNotFoundError) or not self.streamed or left == 1:
                    raise
                tell("streamed_again", error=error)
                if not retraining and (table := self.remembered(cache_key)) is not None:
                    tell("loaded", items=len(table))
                    return table
                embeddings = None
        raise AssertionError("the last try returns or raises")

    def workplace(self) -> CacheFolder | None:
        """Return the folder that takes the parts of a streamed run: the first that takes a write and has not failed."""
        return next((root for root in self.cache.folders if root.path not in self._full and root.takes_writes()), None)

    def _moves_on(self, error: OSError) -> bool:
        """Whether a streamed run ended because of its cache folder, full or broken, and there is another to go to."""
        place = self.workplace()
        if place is None:
            return False
        of_it = error.errno in BROKEN and str(error.filename or "").startswith(str(place.path))
        if not (of_it or isinstance(error, NoRoomError) or error.errno in {errno.ENOSPC, errno.EDQUOT}):
            return False
        self._full.add(place.path)
        if self.workplace() is None:
            return False
        tell("next_folder", path=place.path, error=error)
        return True

    def _generate_once(
        self,
        sources: Sequence[FeatureSource],
        embeddings: "Embeddings | None",
        cache_key: CacheKey,
        lease: Lease,
        retraining: bool,
    ) -> SemanticIdTable:
        """Do what `generate_now` does, once."""
        progress = shown(lease.heartbeat)
        tell("generating")
        if self.request.data_dir is not None:
            files.sweep_placed(self.request.data_dir / JSON_FILE, self._is_export)
        tell("loading_features")
        with progress.stage("reading"):
            if embeddings is None:
                items = self.items_of(sources, cache_key, self.workplace(), progress)
            else:
                items = self._held(embeddings)
        tell("features", items=items.count, dim="+".join(str(dim) for _, dim in items.held.dims))
        found = self._about_what_was_read(cache_key, items.held)
        row = None if retraining else self._recovery.recovered(items, found.identity, progress)
        row = row or self._row(self.cache.writing(), found, items.held)
        if retraining:
            noted = self.remembered(cache_key)
            replaced = noted if noted is not None else None if row is None else row.base
            table = self._train(items, found, progress, replaced=replaced)
            if replaced is not None:
                moved, both = moved_items(replaced, table)
                tell("retrained", moved=moved, items=both, lineage=replaced.lineage)
        elif row is not None:
            table = self._extend(row, items, found, progress)
        else:
            table = self._train(items, found, progress)
        self._remember(table, items.held, cache_key, retrained=retraining)
        if table.status == "stale":
            return table
        if table.path is not None:
            items.close()
        tell("generated" if table.status in {"trained", "extended"} else "loaded", items=len(table))
        return table

    def _about_what_was_read(self, cache_key: CacheKey, embeddings: "Embeddings") -> CacheKey:
        """Return the question with the identity of the features that could be read: one of them may be damaged."""
        identity = Identity.of(self.config, embeddings.dims)
        if identity == cache_key.identity:
            return cache_key
        if self.parent is not None:
            lineage.check_parent(self.parent, identity, self.request.feature_ids, self._parent_name)
        return replace(cache_key, identity=identity)

    def _of_another_space(self, row: lineage.Lineage, items: ItemSet) -> dict[str, Any]:
        """Return what the line `drift` names: vectors of known items are not such as their codes were made from."""
        evidence = Evidence(items.held.items, items.held.features)
        known = evidence.known(row.base)
        if row.base.has_quantizer and not row.base.header.behaviour:
            error, fitted, _ = evidence.reproduced(row.base, known)
        else:
            error, fitted = float("nan"), row.base.header.relative_error
        new = len(items.held.items) - len(known) if items.complete else 0
        return {"error": error, "fitted": fitted, "known": len(known), "new": new or "any", "how": RETRAIN}

    def _extend(
        self,
        row: lineage.Lineage,
        items: ItemSet,
        cache_key: CacheKey,
        progress: Progress,
    ) -> SemanticIdTable:
        if (newer := self.cache.unreadable(row.base)) is not None:
            return self._stale(row.base, str(newer))
        evidence = Evidence(items.held.items, items.held.features)
        if row.other_space:
            drift = self._of_another_space(row, items)
            why = text("drift", **drift)
            missing = bool((row.base.rows_of(items.held.items) < 0).any())
            if missing and self.foreign == "raise":
                raise ForeignVectorsError(why)
            tell("drift", **drift)
            if self.foreign == "serve":
                if missing:
                    return self._stale(row.base, why)
                return row.base.with_status("cached", why)
        last = self.cache.last_generation(row.name)
        lacking = items.lacking(row.base, progress)
        try:
            table, new = lineage.grow(self.cache, row, lacking, evidence.sketch(), force=self.foreign == "take")
        except ForeignVectorsError as error:
            if self.foreign == "raise":
                raise
            return self._stale(row.base, str(error))
        if new and last > row.base.generation:  # the newest was damaged: were its IDs made again, or others?
            cache_entries = self.cache.recall_all(cache_key)
            if cache_entries and descends(table, cache_entries[0][1].digest):
                tell("healed", source=row.base.path or "the parent")
            elif first_time(f"{row.name}@{last}", table.lineage):
                tell("lost_in_part", lineage=row.name, generation=last, known=len(row.base))
        self._say_settings(table)
        if not new:
            return table.with_status("cached", f"lineage {table.lineage} holds all {items.count} items")
        tell("extended", new=new, items=len(table), generation=table.generation)
        self._export(table)
        lost = "" if table.path is not None else f"; in memory only: {table.reason}"
        return table.with_status("extended", f"{new} new items, lineage {table.lineage}{lost}")

    def _train(
        self,
        items: ItemSet,
        cache_key: CacheKey,
        progress: Progress,
        *,
        replaced: SemanticIdTable | None = None,
    ) -> SemanticIdTable:
        assert cache_key.identity is not None
        if not len(items.held.items):
            raise NoEmbeddingsError("The embeddings hold no item.")
        if self.expect and replaced is None:
            raise DigestError(f"{self.expect} is expected, and nothing of it is here. A training would give other IDs.")
        cache = self.cache.writing()
        key = lineage.origin_key(cache_key.identity, items.held.digest, "" if replaced is None else replaced.lineage)
        if replaced is None and (born := cache.born(key)) is not None:
            table = cache.newest(born.lineage, since=born.digest) or born
            return table.with_status("cached", f"lineage {table.lineage} began with these embeddings")
        data = pipeline.train_table(items, self.config, cache_key.identity, progress)
        if replaced is None:
            same_items = Evidence(items.held.items, items.held.features).same_items
            self.guard.hold_elsewhere(data, same_items)
        else:
            before = (replaced.lineage, *replaced.header.replaces)
            data = replace(data, header=replace(data.header, replaces=before))
        name = lineage.lineage_name(key, data.digest)
        if replaced is None:
            name = self._after_loss(name, data, cache_key)
        data = data.named(name)
        try:
            table = cache.begin(key, data)
        except OSError as error:
            degrade("not_saved", error=error)
            return data.in_memory("trained", f"in memory only: {error}")
        self._export(table)
        tell("saved")
        if self.cache.refused:
            path, why = next(iter(self.cache.refused.items()))
            degrade("private_set", path=path, error=why)
            return table.with_status("trained", f"lineage {table.lineage}; '{path}' could not be read ({why})")
        return table.with_status("trained", f"lineage {table.lineage}")

    def _export(self, table: SemanticIdTable) -> None:
        """Write `semantic_id_dict.json` into the data directory where it takes it."""
        data_dir = self.request.data_dir
        if data_dir is None:
            tell("saving", path=table.path)
            return
        path = data_dir / JSON_FILE
        sha256, identity = table.header.json_sha256, table.header.identity
        entry = CacheEntry(table.lineage, table.generation, table.digest, "" if identity is None else identity.digest)
        # First the mark: however this ends, and whoever looks meanwhile, the file is known by its content as ours.
        self.cache.note_export(sha256, entry)
        try:
            tell("saving", path=path)
            placed = files.place_file(path, table.json_chunks(), self._is_export, backdate_ns=2 * FRESH_NS)
            if placed is None:
                raise FileExistsError(f"'{path}' was made by hand meanwhile")
            stamp = FileStamp.of(path, data_dir)
        except OSError as error:
            tell("json_not_saved", path=path, error=error)
            return
        if stamp.inode == placed.st_ino:  # else somebody has put another file there since
            self.cache.remember(entry, CacheKey("json", None, (stamp,)), {path: sha256})

    def _is_export(self, path: Path) -> bool:
        """Whether a file holds what a table of ours exported."""
        return self.cache.exported_by(FileStamp.of(path, path.parent).digest()) is not None

    def _remember(
        self, table: SemanticIdTable, embeddings: "Embeddings", cache_key: CacheKey, *, retrained: bool
    ) -> None:
        self.guard.hold(table, note=True, retrained=retrained)
        if table.path is None:
            return
        stale = table.reason[:MOST_REASON] if table.status == "stale" else ""
        entry = CacheEntry(table.lineage, table.generation, table.digest, stale=stale)
        self.cache.remember(entry, cache_key, embeddings.file_digests)
