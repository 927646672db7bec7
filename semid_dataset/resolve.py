"""
Which table answers a dataset: decides, and calls the rooms that do.

In this order, and saying why each one before did not: a hand-made `semantic_id_dict.json`; the
dataset's lineage, as it is or extended; training; default IDs. (A pinned mapping comes before all
of them and never gets here, see `dataset`.) `ALLOW_SEMANTIC_GENERATION` gates extending and
training; under a closed gate nothing is written but the compiled form of a hand-made file.
"""

import hashlib
import logging
import resource
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset import features as feature_files
from semid_dataset import files, healing, lineage, store
from semid_dataset.config import Environment, Identity, SemanticIdConfig
from semid_dataset.errors import (
    ConfigError,
    EmbeddingError,
    GenerationError,
    NoEmbeddingsError,
    ParentError,
    SemanticIdFileError,
    SemanticIdWarning,
    SemidError,
)
from semid_dataset.features import Embeddings, FeatureSource
from semid_dataset.fusion import FeatureMatrix
from semid_dataset.id_json import parse_id_json
from semid_dataset.messages import degrade, logger, tell, text
from semid_dataset.table import SemanticIdTable, build_table_buffers
from semid_dataset.vectors import check_vectors

if TYPE_CHECKING:
    from semid_dataset.quantizer import ResidualQuantizer

__all__ = [
    "Ask",
    "extend_with_vectors",
    "generate_from_vectors",
    "generate_semantic_ids",
    "generate_semantic_ids_on_demand",
    "in_loader_worker",
    "look",
    "own_embeddings",
    "resolve",
]

JSON_FILE = "semantic_id_dict.json"
EPOCHS_PER_LINE = 5
OWN_FEATURE = "own"  # id of embeddings that have none
RETRAIN = "To train anew: generate_semantic_ids(..., retrain=True)."


@dataclass(frozen=True)
class Ask:
    """
    What a dataset asks for.

    Attributes:
        data_dir: the data directory, or None where embeddings come from memory alone.
        feature_ids: of the embeddings, such as ("81", "82").
        embeddings: {feature id: {item: vector}}, used where there are no files to read.
        config: how IDs are made.
        parent: a published table to extend (file, folder, table) or a bare quantizer.
        cache_dir: a cache folder to try before all others.
    """

    data_dir: Path | None
    feature_ids: tuple[str, ...]
    embeddings: Mapping[Any, Mapping[Any, Any]] | None = field(default=None, repr=False)
    config: SemanticIdConfig = field(default_factory=SemanticIdConfig)
    parent: "Path | SemanticIdTable | ResidualQuantizer | None" = None
    cache_dir: Path | None = None


def resolve(ask: Ask) -> SemanticIdTable:
    """
    Return the table that answers; see the module for the order.

    Raises:
        GenerationError: default IDs would have to answer in one rank of several, or in a DataLoader worker.
        LockTimeoutError: as its cause there; elsewhere default IDs answer.
    """
    environment = Environment.read()
    if not environment.gate.understood:
        degrade("gate_unknown", value=environment.gate.value)
    try:
        table = _Resolution(ask, environment, may_generate=environment.gate.allowed, in_worker=in_loader_worker()).run()
    except (SemidError, OSError, MemoryError) as error:
        return _default(ask, environment, error)
    except Exception as error:  # noqa: BLE001 - whatever training meets (a CUDA error, say) ends in default IDs
        logger.exception("semantic_id generation failed unexpectedly")
        return _default(ask, environment, error)
    tell("answered", level=logging.DEBUG, status=table.status, reason=table.reason)
    if table.status == "stale":
        warnings.warn(text("stale", reason=table.reason, known=len(table)), SemanticIdWarning, stacklevel=2)
    return table


def look(ask: Ask) -> SemanticIdTable:
    """
    Return the table that answers now, without training or extending anything, or raise the reason why none does.

    Raises:
        GenerationError, NoEmbeddingsError: there are no IDs yet.
        SemidError, OSError: as the steps say.
    """
    return _Resolution(ask, Environment.read(), may_generate=False).run()


def in_loader_worker() -> bool:
    """Whether this process is a DataLoader's worker; looks without importing torch."""
    loader = sys.modules.get("torch.utils.data._utils.worker")
    return loader is not None and loader.get_worker_info() is not None


def _default(ask: Ask, environment: Environment, error: Exception) -> SemanticIdTable:
    """Let default IDs answer, aloud; or raise where they would do harm."""
    if in_loader_worker():
        raise GenerationError(
            f"No semantic IDs in this DataLoader worker: {error} "
            "Call dataset.prepare_semantic_ids() in the main process before the DataLoader is made."
        ) from error
    if environment.world_size > 1:
        raise GenerationError(
            f"No semantic IDs in one rank of {environment.world_size}: {error} "
            "Default IDs here and real ones elsewhere would be worse than this stop."
        ) from error
    if not isinstance(error, NoEmbeddingsError):  # its own lines have said why
        logger.error("%s", text("default", reason=error))
    tell("defaults", level=logging.WARNING)
    warnings.warn(text("default", reason=error), SemanticIdWarning, stacklevel=3)
    return SemanticIdTable.default(ask.config.num_quantizers, reason=str(error))


class _Resolution:
    """One pass through the order; what several of its steps need is looked up once and kept here."""

    def __init__(self, ask: Ask, environment: Environment, *, may_generate: bool, in_worker: bool = False) -> None:
        self.ask = ask
        self.config = ask.config
        self.may_generate = may_generate and not in_worker
        self.in_worker = in_worker
        self.mmap = environment.mmap
        self.lock_timeout = environment.lock_timeout or ask.config.lock_timeout
        self.roots = store.Roots(ask.data_dir, ask.cache_dir, environment)
        self._named_parent = ask.parent if ask.parent is not None else environment.parent
        self.parent: SemanticIdTable | None = None

    def open_parent(self) -> None:
        """Open the parent that was named, if any; not needed, and not missed, where a hand-made file answers."""
        named = self._named_parent
        if named is not None:
            self.parent = lineage.open_parent(Path(named) if isinstance(named, str) else named, mmap=self.mmap)

    def run(self) -> SemanticIdTable:
        """Return the first table that answers."""
        if (table := self._hand_made()) is not None:
            return table
        self.open_parent()
        if self.parent is not None and not self.parent.has_quantizer:
            return self._stale(self.parent, "the parent has no quantizer to encode new items with")
        try:
            sources = self._sources()
        except NoEmbeddingsError as error:
            return self._without_embeddings(error)
        question, embeddings = self._question(sources)
        if (table := self._remembered(question)) is not None:
            tell("loaded", items=len(table))
            return table
        if not self.may_generate:
            return self._behind_the_gate(sources, embeddings, question)
        return self._generate(sources, embeddings, question)

    # --- a hand-made file ---

    def _hand_made(self) -> SemanticIdTable | None:
        """Compile `semantic_id_dict.json` into the cache, unless a table of ours exported it."""
        if self.ask.data_dir is None:
            return None
        path = self.ask.data_dir / JSON_FILE
        try:
            stamp = store.FileStamp.of(path, self.ask.data_dir)
        except (FileNotFoundError, NotADirectoryError):
            return None
        question = store.Question("json", None, (stamp,))
        memo = store.Memo.recall(self.roots, question, renew=self.may_generate)
        if memo is not None and memo.lineage.startswith("json-"):
            table = lineage.newest_table(self.roots, memo.lineage, mmap=self.mmap, may_write=self.may_generate)
            if table is not None and table.digest == memo.digest:
                tell("loaded", items=len(table))
                return table.with_status("pregenerated", f"{path} (compiled)")
        elif memo is not None:
            return None  # our own export
        buffer, _ = files.map_file(path, mmap=self.mmap, follow=True)
        sha256 = stamp.digest()
        if (ours := self._exported_by(sha256)) is not None:
            if self.may_generate:
                store.Memo(ours.lineage, ours.generation, ours.digest).note(self.roots, question, {path: sha256})
            return None
        return self._compile(path, buffer, sha256, question)

    def _exported_by(self, sha256: str) -> SemanticIdTable | None:
        for name in store.lineages(self.roots):
            for found in store.generations(self.roots, name):
                with suppress(SemidError, OSError):
                    table = store.open_table(found.path, mmap=self.mmap)
                    if table.info.get("json_sha256") == sha256 and not name.startswith("json-"):
                        return table
        return None

    def _compile(self, path: Path, buffer: memoryview, sha256: str, question: store.Question) -> SemanticIdTable:
        items, codes = parse_id_json(bytes(buffer), str(path))
        if not len(items):
            raise SemanticIdFileError(
                f"'{path}' holds no semantic ID. It was left untouched; remove it to have IDs generated."
            )
        name = f"json-{sha256[:24]}"
        info = {"lineage": name, "generation": 0, "provenance": {"born": time.time(), "source": path.name}}
        buffers = build_table_buffers(items, codes, info=info)
        reason = f"{path}"
        table: SemanticIdTable | None = None
        if not self.in_worker and (root := store.writable_root(self.roots)) is not None:
            try:
                store.publish_table(root, name, 0, buffers)
                table = lineage.newest_table(self.roots, name, mmap=self.mmap, may_write=self.may_generate)
            except OSError as error:
                logger.debug("%s was not compiled into %s: %s", path, root.path, error)
            else:
                if table is not None:
                    memo = store.Memo(name, table.generation, table.digest)
                    memo.note([root], question, {path: sha256})
        if table is None:
            table = SemanticIdTable.from_buffer(b"".join(buffers), path=None, status="pregenerated", reason=reason)
        tell("loaded", items=len(table))
        return table.with_status("pregenerated", reason)

    # --- the lineage ---

    def _sources(self) -> list[FeatureSource]:
        """Return the embedding files; none where embeddings come from memory."""
        data_dir = self.ask.data_dir
        try:
            if data_dir is None:
                raise NoEmbeddingsError("There is no data directory to read embeddings from.")
            return feature_files.find_sources(data_dir, self.ask.feature_ids)
        except NoEmbeddingsError:
            if self.ask.embeddings and any(len(vectors) for vectors in self.ask.embeddings.values()):
                return []
            raise

    def _question(self, sources: Sequence[FeatureSource]) -> tuple[store.Question, Embeddings | None]:
        parent = "" if self.parent is None else self.parent.digest
        if sources:
            assert self.ask.data_dir is not None
            identity = Identity.of(self.config, [(source.id, source.dim) for source in sources])
            stamps = tuple(store.FileStamp.of(file, self.ask.data_dir) for source in sources for file in source.files)
            question = store.Question("ids", identity, stamps, parent=parent)
            embeddings = None
        else:
            assert self.ask.embeddings is not None
            embeddings = feature_files.from_memory(self.ask.embeddings, self.ask.feature_ids)
            identity = Identity.of(self.config, embeddings.dims)
            question = store.Question("ids", identity, (), content=embeddings.digest, parent=parent)
        if self.parent is not None:
            lineage.check_parent(self.parent, identity, self.ask.feature_ids)
        return question, embeddings

    def _remembered(self, question: store.Question) -> SemanticIdTable | None:
        """Return the table that a memo names for this question: no embedding is read."""
        memo = store.Memo.recall(self.roots, question, renew=self.may_generate)
        if memo is None:
            tell("passed_over", level=logging.DEBUG, step="memo", reason="this question is new here")
            return None
        if self.parent is not None and memo.digest == self.parent.digest:
            table: SemanticIdTable | None = self.parent
        else:
            table = store.named_table(self.roots, memo.lineage, memo.generation, mmap=self.mmap)
            if table is None or table.digest != memo.digest:  # damaged or healed: one that grew from it will do
                table = lineage.newest_table(self.roots, memo.lineage, mmap=self.mmap, may_write=self.may_generate)
        if table is None or not lineage.descends(table, memo.digest):
            tell("passed_over", level=logging.DEBUG, step="memo", reason=f"table {memo.generation} is gone")
            return None
        self._say_settings(table)
        return table.with_status("cached", f"lineage {table.lineage}, generation {table.generation}")

    def _say_settings(self, table: SemanticIdTable) -> None:
        trained = table.info.get("settings") or {}
        wanted = self.config.to_dict()
        matter = ("algorithm", "commitment_cost", "lr", "num_epochs", "batch_size", "unique", "seed")
        differ = [name for name in matter if name in trained and trained[name] != wanted[name]]
        if differ:
            tell(
                "settings_differ",
                found=", ".join(f"{name}={trained[name]}" for name in differ),
                wanted=", ".join(f"{name}={wanted[name]}" for name in differ),
                how=RETRAIN,
            )

    def _row(self, question: store.Question, embeddings: Embeddings, *, may_write: bool) -> lineage.Lineage | None:
        """Return the dataset's lineage: the parent's, else one that holds and fits its items."""
        if self.parent is not None:
            return lineage.row_of_parent(self.roots, self.parent, mmap=self.mmap, may_write=may_write)
        assert question.identity is not None
        return lineage.find_lineage(
            self.roots, question.identity, embeddings.items, embeddings.features, mmap=self.mmap, may_write=may_write
        )

    def _read(self, sources: Sequence[FeatureSource], turn: store.Turn | None = None) -> Embeddings:
        return feature_files.read_sources(sources, on_progress=None if turn is None else turn.beat)

    # --- the gate is closed ---

    def _without_embeddings(self, error: NoEmbeddingsError) -> SemanticIdTable:
        """Serve what is known already, else say in the original's words that there is nothing."""
        if (table := self._known_here()) is not None:
            return self._stale(table, str(error).rstrip("."))
        data_dir = self.ask.data_dir
        if data_dir is not None and feature_files.features_folder(data_dir) is None:
            tell("no_folder", level=logging.WARNING, path=data_dir / "creative_emb")
        tell("no_features", level=logging.WARNING)
        raise error

    def _behind_the_gate(
        self, sources: Sequence[FeatureSource], embeddings: Embeddings | None, question: store.Question
    ) -> SemanticIdTable:
        why = "this is a DataLoader worker" if self.in_worker else "ALLOW_SEMANTIC_GENERATION forbids generating"
        if self.in_worker:  # reading gigabytes in every worker is no answer either
            raise GenerationError(f"Their embeddings have no IDs yet, and {why}.")
        if (exported := self._exported_ids(question.identity)) is not None:
            return self._stale(exported, f"its table is damaged and {why}")
        row: lineage.Lineage | None = None
        try:
            if self.parent is not None or any(not name.startswith("json-") for name in store.lineages(self.roots)):
                embeddings = embeddings or self._read(sources)
                row = self._row(self._about_what_was_read(question, embeddings), embeddings, may_write=False)
                if row is not None:
                    missing = int((row.base.rows_of(embeddings.items) < 0).sum())
                    if not missing:
                        tell("loaded", items=len(row.base))
                        return row.base.with_status("cached", f"lineage {row.name}, all items known; {why}")
                    return self._stale(row.base, f"{missing} items are new and {why}")
        except (SemidError, OSError) as error:
            tell("passed_over", level=logging.DEBUG, step="lineage", reason=error)
        if (table := self._known_here()) is not None:
            return self._stale(table, why)
        raise GenerationError(f"There is no semantic-ID file for this dataset and {why}.")

    def _known_here(self) -> SemanticIdTable | None:
        """Return the parent, else the newest table of the lineage that last served this directory, or its export."""
        if self.parent is not None:
            return self.parent
        if self.ask.data_dir is None:
            return None
        if (exported := self._exported_ids(None)) is not None:
            return exported
        name = store.last_served(self.roots, self.ask.data_dir)
        return None if name is None else lineage.newest_table(self.roots, name, mmap=self.mmap, may_write=False)

    def _stale(self, table: SemanticIdTable, reason: str) -> SemanticIdTable:
        logger.warning("%s", text("stale", reason=reason, known=len(table)))
        return table.with_status("stale", reason)

    # --- a damaged table ---

    def _lost_export(self) -> store.Memo | None:
        """Return which table `semantic_id_dict.json` was exported from, if that table cannot be read any more."""
        if self.ask.data_dir is None:
            return None
        try:
            stamp = store.FileStamp.of(self.ask.data_dir / JSON_FILE, self.ask.data_dir)
        except OSError:
            return None
        export = store.Memo.recall(self.roots, store.Question("json", None, (stamp,)), renew=False)
        if export is None or export.lineage.startswith("json-"):
            return None
        newest = lineage.newest_table(self.roots, export.lineage, mmap=self.mmap, may_write=self.may_generate)
        return export if newest is None or newest.generation < export.generation else None

    def _exported_ids(self, identity: Identity | None) -> SemanticIdTable | None:
        """Return the IDs of a damaged table from its export, where nothing may be written to heal it."""
        if self.parent is not None or (export := self._lost_export()) is None:
            return None
        if identity is not None and export.identity != identity.digest:
            return None
        assert self.ask.data_dir is not None
        return healing.exported_table(self.ask.data_dir / JSON_FILE, export)

    def _heal(
        self,
        embeddings: Embeddings,
        question: store.Question,
        root: store.Root | None,
        turn: store.Turn,
        started: float,
    ) -> lineage.Lineage | None:
        """
        Publish again the table that `semantic_id_dict.json` was exported from, if it was lost; see `healing`.

        Returns:
            A row only where the table stays in memory.
        """
        identity = question.identity
        assert identity is not None
        if (export := self._lost_export()) is None:
            return None
        base = lineage.newest_table(self.roots, export.lineage, mmap=self.mmap, may_write=True)
        if self.parent is not None:
            if export.lineage not in {self.parent.lineage, f"{self.parent.lineage}-{self.parent.digest[:8]}"}:
                return None
            base = base or self.parent
        elif base is not None and base.info.get("identity") != identity.to_dict():
            return None
        assert self.ask.data_dir is not None
        path = self.ask.data_dir / JSON_FILE
        ids = healing.exported_table(path, export)

        def train_again() -> SemanticIdTable:
            buffers = train_table(embeddings, self.config, identity, export.lineage, turn, started)
            return SemanticIdTable.from_buffer(b"".join(buffers))

        same = lineage.lineage_name(identity, embeddings.digest) == export.lineage
        buffers = ids and healing.restore(
            ids, base, export, embeddings, identity, self.config, train_again if same else None
        )
        if not buffers:
            return None
        table: SemanticIdTable | None = SemanticIdTable.from_buffer(b"".join(buffers))
        assert table is not None
        refusal: object = "no cache folder takes a write"
        if root is not None:
            try:
                store.publish_table(root, export.lineage, export.generation, buffers)
                found = lineage.newest_table(self.roots, export.lineage, mmap=self.mmap, may_write=True)
                if found is not None:
                    tell("healed", level=logging.WARNING, source=path)
                    return None  # it is found like any other lineage
                refusal = f"what was published in {root.path} cannot be found"
            except OSError as error:
                refusal = error
        degrade("not_saved", error=refusal)
        return lineage.Lineage(export.lineage, table)

    def _after_loss(
        self, name: str, buffers: list[Any], question: store.Question, embeddings: Embeddings
    ) -> tuple[str, list[Any]]:
        """Say aloud that a lineage is lost, and return a name that no lost lineage had, with the table under it."""
        memo = store.Memo.recall(self.roots, question, renew=False)
        digest = None if memo is None else memo.digest
        before = {name} | ({memo.lineage} if memo is not None else set())
        if self.ask.data_dir is not None and (served := store.last_served(self.roots, self.ask.data_dir)):
            before.add(served)
        lost = sorted(old for old in before if self._is_lost(old))
        if not lost:
            return name, buffers
        table = SemanticIdTable.from_buffer(b"".join(buffers))
        if lost == [name] and table.digest == digest:
            tell("healed", level=logging.WARNING, source="the same training")
            return name, buffers
        new, counter = name, 0
        assert question.identity is not None
        while self._is_lost(new):
            counter += 1
            new = lineage.lineage_name(question.identity, embeddings.digest, counter)
        for old in lost:
            logger.error("%s", text("lost", lineage=old, new=new))
        info = {key: value for key, value in table.info.items() if key not in {"digest", "json_sha256"}}
        info["lineage"] = new
        return new, build_table_buffers(table.keys_array, table.codes_array, info=info, weights=table.weights)

    def _is_lost(self, name: str) -> bool:
        if store.last_generation(self.roots, name) < 0:
            return False
        return lineage.newest_table(self.roots, name, mmap=self.mmap, may_write=self.may_generate) is None

    # --- generating ---

    def _generate(
        self, sources: Sequence[FeatureSource], embeddings: Embeddings | None, question: store.Question
    ) -> SemanticIdTable:
        root = store.writable_root(self.roots)
        answered: list[SemanticIdTable] = []

        def ready() -> bool:
            memo = store.Memo.recall(self.roots, question, renew=False)
            if memo is None:
                return False
            found = self._remembered(question)
            answered.extend([] if found is None else [found])
            return found is not None

        tell("not_found")
        with store.take_turn(root, question.name, timeout=self.lock_timeout, ready=ready) as turn:
            if turn is None or ready():  # look, lock, look again: whoever held the lock may have answered
                tell("loaded", items=len(answered[-1]))
                return answered[-1]
            return self._generate_now(sources, embeddings, question, root, turn)

    def _generate_now(
        self,
        sources: Sequence[FeatureSource],
        embeddings: Embeddings | None,
        question: store.Question,
        root: store.Root | None,
        turn: store.Turn,
        retraining: bool = False,
    ) -> SemanticIdTable:
        started = time.perf_counter()
        tell("generating")
        tell("loading_features")
        embeddings = embeddings or self._read(sources, turn)
        turn.beat()
        dims = "+".join(str(dim) for _, dim in embeddings.dims)
        tell("features", items=len(embeddings.items), dim=dims)
        found = self._about_what_was_read(question, embeddings)
        row: lineage.Lineage | None = None
        if not retraining:
            row = self._heal(embeddings, found, root, turn, started)
            row = row or self._row(found, embeddings, may_write=True)
        if row is not None:
            table = self._extend(row, embeddings, root, found)
        else:
            table = self._train(embeddings, found, root, turn, started, retraining=retraining)
        self._remember(table, embeddings, question, root)
        tell("generated" if table.status in {"trained", "extended"} else "loaded", items=len(table))
        return table

    def _about_what_was_read(self, question: store.Question, embeddings: Embeddings) -> store.Question:
        """Return the question with the identity of the features that could be read: one of them may be damaged."""
        identity = Identity.of(self.config, embeddings.dims)
        if identity == question.identity:
            return question
        if self.parent is not None:
            lineage.check_parent(self.parent, identity, self.ask.feature_ids)
        return replace(question, identity=identity)

    def _extend(
        self, row: lineage.Lineage, embeddings: Embeddings, root: store.Root | None, question: store.Question
    ) -> SemanticIdTable:
        known = np.flatnonzero(row.base.rows_of(embeddings.items) >= 0)
        if len(known) and len(row.base):
            error, birth, fits = lineage.reproduction_error(row.base, embeddings.items, embeddings.features, known)
            if not fits:
                tell("drift", level=logging.WARNING, error=error, birth=birth, how=RETRAIN)
        last = store.last_generation(self.roots, row.name)
        table, new = lineage.grow(self.roots, root, row, embeddings.items, embeddings.features, mmap=self.mmap)
        if new and last > row.base.generation:  # the newest was damaged: were its IDs made again, or others?
            memo = store.Memo.recall(self.roots, question, renew=False)
            if memo is not None and lineage.descends(table, memo.digest):
                tell("healed", level=logging.WARNING, source=row.base.path or "the parent")
            else:
                kept = len(row.base)
                logger.error("%s", text("lost_in_part", lineage=row.name, generation=last, known=kept))
        self._say_settings(table)
        if not new:
            return table.with_status("cached", f"lineage {table.lineage} holds all {len(embeddings.items)} items")
        tell("extended", new=new, items=len(table), generation=table.generation)
        self._export(table)
        return table.with_status("extended", f"{new} new items, lineage {table.lineage}")

    def _train(
        self,
        embeddings: Embeddings,
        question: store.Question,
        root: store.Root | None,
        turn: store.Turn,
        started: float,
        *,
        retraining: bool,
    ) -> SemanticIdTable:
        assert question.identity is not None
        if not len(embeddings.items):
            raise NoEmbeddingsError("The embeddings hold no item.")
        name = lineage.lineage_name(question.identity, embeddings.digest)
        counter = 0
        while retraining and store.generations(self.roots, name):
            counter += 1
            name = lineage.lineage_name(question.identity, embeddings.digest, counter)
        buffers = train_table(embeddings, self.config, question.identity, name, turn, started)
        if not retraining:
            name, buffers = self._after_loss(name, buffers, question, embeddings)
        table: SemanticIdTable | None = None
        if root is None:
            refusal = "no cache folder takes a write"
        else:
            try:
                store.publish_table(root, name, 0, buffers)
                table = lineage.newest_table(self.roots, name, mmap=self.mmap, may_write=True)
                refusal = f"what was published in {root.path} cannot be found"
            except OSError as error:
                refusal = str(error)
        if table is None:
            degrade("not_saved", error=refusal)
            return SemanticIdTable.from_buffer(
                b"".join(buffers), path=None, status="trained", reason=f"in memory only: {refusal}"
            )
        self._export(table)
        tell("saved")
        return table.with_status("trained", f"lineage {name}")

    def _export(self, table: SemanticIdTable) -> None:
        """Write `semantic_id_dict.json` into the data directory where it takes it."""
        data_dir = self.ask.data_dir
        if data_dir is None:
            tell("saving", path=table.path)
            return
        path = data_dir / JSON_FILE
        try:
            if path.exists() and self._exported_by(store.FileStamp.of(path, data_dir).digest()) is None:
                raise FileExistsError(f"'{path}' was made by hand meanwhile")
            tell("saving", path=path)
            chunks = table.json_chunks()
            files.replace_file(path, chunks, backdate_ns=2 * store.FRESH_NS)
            stamp = store.FileStamp.of(path, data_dir)
        except OSError as error:
            tell("json_not_saved", path=path, error=error)
            return
        question = store.Question("json", None, (stamp,))
        identity = table.info.get("identity")
        memo = store.Memo(
            table.lineage, table.generation, table.digest, Identity.from_dict(identity).digest if identity else ""
        )
        memo.note(self.roots, question, {path: str(table.info["json_sha256"])})

    def _remember(
        self, table: SemanticIdTable, embeddings: Embeddings, question: store.Question, root: store.Root | None
    ) -> None:
        if root is None or table.path is None:
            return
        memo = store.Memo(table.lineage, table.generation, table.digest)
        memo.note(self.roots, question, embeddings.file_digests)
        if self.ask.data_dir is not None and not (self.parent is not None and table.digest == self.parent.digest):
            store.note_served(self.roots, self.ask.data_dir, table.lineage)


def train_table(
    embeddings: Embeddings,
    config: SemanticIdConfig,
    identity: Identity,
    name: str,
    turn: store.Turn,
    started: float,
) -> list[Any]:
    """
    Train codebooks on embeddings and return the bytes of table 0 of a new lineage.

    Raises:
        TrainingError, EmbeddingError, ConfigError: no codebooks came of it.
    """
    from semid_dataset.collisions import Resolution, resolve_collisions
    from semid_dataset.fusion import Fusion
    from semid_dataset.quality import measure
    from semid_dataset.training import train

    stages: dict[str, float] = {}  # seconds
    began = started

    def done(stage: str) -> None:
        nonlocal began
        turn.beat()
        began, stages[stage] = time.perf_counter(), time.perf_counter() - began

    done("reading")
    items = len(embeddings.items)
    fusion = Fusion.fit(embeddings.features, items, config.fusion, config.seed)
    vectors = fusion.apply(embeddings.features, items)
    done("fusion")
    tell("training")

    def on_epoch(epoch: int, epochs: int, loss: float) -> None:
        turn.beat()
        if epoch % EPOCHS_PER_LINE == 0 or epoch == epochs:
            tell("epoch", epoch=epoch, epochs=epochs, loss=loss)

    trained = train(vectors, config, on_epoch=on_epoch, on_progress=turn.beat)
    if trained.curve and trained.stopped_at % EPOCHS_PER_LINE and trained.stopped_at < config.num_epochs:
        tell("epoch", epoch=trained.stopped_at, epochs=config.num_epochs, loss=trained.curve[-1])  # stopped early
    tell("trained")
    done("training")
    quantizer = trained.quantizer
    if len(embeddings.features) > 1:
        quantizer.fusion = fusion
    tell("encoding")
    raw = quantizer.encode(vectors)
    done("encoding")
    unique = config.unique
    if unique and items > config.capacity:
        degrade("beyond_capacity", items=items, capacity=config.capacity)
        unique = False
    resolution = (
        resolve_collisions(quantizer, vectors, raw)
        if unique
        else Resolution(codes=raw, moved=0, exact_duplicates=0, shared=_shared(raw))
    )
    done("uniqueness")
    tell("encoded", items=items)
    weights, description = quantizer.to_arrays()
    quality = measure(quantizer, vectors, raw, resolution, trained)
    done("measuring")
    error, variance = _error_and_variance(vectors, quantizer.decode(resolution.codes))
    now = time.time()
    info = {
        "lineage": name,
        "generation": 0,
        "identity": identity.to_dict(),
        "settings": {**config.to_dict(), "unique": unique},
        "quantizer": description,
        "quality": quality,
        "provenance": {
            "born": now,
            "embeddings": embeddings.digest,
            "files": {path.name: digest for path, digest in embeddings.file_digests.items()},
            "bad_rows": embeddings.bad_rows,
            "device": trained.device,
            "variance": variance,
            "relative_error": error / variance if variance > 0 else 0.0,
            "seconds": time.perf_counter() - started,
            "stages": stages,
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        },
        "history": [{"generation": 0, "time": now, "items": items, "new": items, "moved": resolution.moved}],
    }
    return build_table_buffers(embeddings.items, resolution.codes, info=info, weights=weights)


def _error_and_variance(vectors: NDArray[np.float32], decoded: NDArray[np.float32]) -> tuple[float, float]:
    """Return mean squared error and variance per item, in blocks: a whole copy in float64 would double the memory."""
    mean = vectors.mean(0, dtype=np.float64)
    error = variance = 0.0
    for start in range(0, len(vectors), 8192):
        block = vectors[start : start + 8192].astype(np.float64)
        error += float(np.square(block - decoded[start : start + 8192]).sum())
        variance += float(np.square(block - mean).sum())
    return error / len(vectors), variance / len(vectors)


def _shared(codes: NDArray[Any]) -> int:
    _, counts = np.unique(codes, axis=0, return_counts=True)
    return int(counts[counts > 1].sum())


def generate_semantic_ids(
    data_dir: Path | str,
    feature_ids: Sequence[str | int] = ("81",),
    *,
    config: SemanticIdConfig | None = None,
    output_dir: Path | str | None = None,
    retrain: bool = False,
    parent: "Path | str | SemanticIdTable | ResidualQuantizer | None" = None,
) -> SemanticIdTable:
    """
    Make semantic IDs now: an explicit command, so it ignores `ALLOW_SEMANTIC_GENERATION` and raises.

    Args:
        data_dir: holds `creative_emb/`.
        feature_ids: of the embeddings.
        config: how IDs are made.
        output_dir: train anew and write `semantic_id_dict.json` and `semid_table.safetensors` there,
            leaving the cache alone. Without it the result is published in the cache.
        retrain: start a new lineage although there is one; IDs move.
        parent: extend this table instead of training.

    Raises:
        NoEmbeddingsError, EmbeddingError: nothing to train on.
        SemidError, OSError: as the steps say.
    """
    ask = Ask(
        Path(data_dir),
        tuple(map(str, feature_ids)),
        config=config or SemanticIdConfig(),
        parent=Path(parent) if isinstance(parent, str) else parent,
    )
    resolution = _Resolution(ask, Environment.read(), may_generate=True)
    resolution.open_parent()
    if resolution.parent is not None and not resolution.parent.has_quantizer:
        raise ParentError(
            f"The parent {resolution.parent.path or 'in memory'} holds IDs but no quantizer to encode new items with. "
            f"Give the {lineage.TABLE_FILE} of a training."
        )
    sources = feature_files.find_sources(Path(data_dir), ask.feature_ids)
    question, _ = resolution._question(sources)
    if output_dir is not None:
        return _generate_into(Path(output_dir), resolution, sources, question)
    if not retrain:
        return resolution._remembered(question) or resolution._generate(sources, None, question)
    before = resolution._remembered(question)
    root = store.writable_root(resolution.roots)
    name = question.name
    with store.take_turn(root, name, timeout=resolution.lock_timeout, ready=lambda: False) as turn:
        table = resolution._generate_now(sources, None, question, root, turn or store.Turn(None), retraining=True)
    if before is not None:
        rows = table.rows_of(before.keys_array)
        both = rows >= 0
        moved = int((table.codes_array[rows[both]] != before.codes_array[both]).any(1).sum())
        tell("retrained", moved=moved, items=int(both.sum()), lineage=before.lineage)
    return table


def _generate_into(
    output: Path, resolution: _Resolution, sources: Sequence[FeatureSource], question: store.Question
) -> SemanticIdTable:
    if resolution.parent is not None:
        raise ConfigError("output_dir trains anew and parent extends: give one of them.")
    assert question.identity is not None
    started = time.perf_counter()
    tell("loading_features")
    embeddings = resolution._read(sources)
    return _train_into(output, embeddings, resolution.config, question.identity, started)


def _train_into(
    output: Path, embeddings: Embeddings, config: SemanticIdConfig, identity: Identity, started: float
) -> SemanticIdTable:
    tell("features", items=len(embeddings.items), dim="+".join(str(dim) for _, dim in embeddings.dims))
    name = lineage.lineage_name(identity, embeddings.digest)
    buffers = train_table(embeddings, config, identity, name, store.Turn(None), started)
    output.mkdir(parents=True, exist_ok=True)
    files.replace_file(output / lineage.TABLE_FILE, buffers)
    table = store.open_table(output / lineage.TABLE_FILE, mmap=Environment.read().mmap, follow=True)
    tell("saving", path=output / JSON_FILE)
    files.replace_file(output / JSON_FILE, table.json_chunks())
    tell("saved")
    return table.with_status("trained", f"written to {output}")


def generate_from_vectors(
    items: Sequence[int] | Sequence[str] | NDArray[Any],
    vectors: NDArray[Any],
    *,
    output_dir: Path | str,
    config: SemanticIdConfig | None = None,
) -> SemanticIdTable:
    """
    Make semantic IDs of any embeddings; an explicit command, like `generate_semantic_ids`.

    Args:
        items: n ints or strings, each once.
        vectors: (n, dim) of finite numbers, in the order of the items.
        output_dir: `semid_table.safetensors` and `semantic_id_dict.json` are written there, in place of older ones.
        config: how IDs are made.

    Raises:
        NoEmbeddingsError, EmbeddingError: items and vectors do not fit each other, or are no such things.
        SemidError, OSError: as the steps say.
    """
    started = time.perf_counter()
    embeddings = own_embeddings(items, vectors)
    config = config or SemanticIdConfig()
    return _train_into(Path(output_dir), embeddings, config, Identity.of(config, embeddings.dims), started)


def extend_with_vectors(
    table: SemanticIdTable, items: Sequence[int] | Sequence[str] | NDArray[Any], vectors: NDArray[Any]
) -> tuple[SemanticIdTable, int]:
    """
    Return a table in memory that holds all IDs of `table` and those of new items, and how many were new.

    New items are encoded by the table's quantizer and made unique among the codes that are free; nothing is
    written. `.save(path)` of the result keeps it.

    Raises:
        TableError: the table has no quantizer.
        EmbeddingError: the vectors are not such as it was made from.
    """
    quantizer = table.quantizer
    embeddings = own_embeddings(items, vectors)
    dim = embeddings.features[0].dim
    if quantizer.fusion is not None:
        raise EmbeddingError(
            f"'{table.path}' was made from several features of a data directory; one matrix of {dim} numbers is not "
            "enough. Extend it with: semid generate DATA_DIR --parent TABLE."
        )
    if quantizer.dim != dim:
        raise EmbeddingError(f"'{table.path}' encodes vectors of {quantizer.dim} numbers, these have {dim}.")
    missing = np.flatnonzero(table.rows_of(embeddings.items) < 0)
    if not len(missing):
        return table, 0
    buffers = lineage._extended(
        table.lineage, table.generation + 1, table, embeddings.items, embeddings.features, missing
    )
    reason = f"{len(missing)} new items, lineage {table.lineage}"
    return SemanticIdTable.from_buffer(b"".join(buffers), status="extended", reason=reason), len(missing)


def own_embeddings(items: Any, vectors: NDArray[Any]) -> Embeddings:
    """
    Return a caller's items and vectors in the order and form that the readers of data directories give.

    Raises:
        EmbeddingError: as `check_vectors`.
    """
    keys, matrix = check_vectors(items, vectors)
    if isinstance(keys, np.ndarray):
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
    else:
        order = np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)
        keys = [keys[row] for row in order.tolist()]
    if (order[1:] < order[:-1]).any():
        matrix = matrix[order]
    digest = hashlib.sha256(f"{OWN_FEATURE}\0{matrix.shape}\0".encode())
    digest.update(keys.tobytes() if isinstance(keys, np.ndarray) else "\0".join(keys).encode())
    digest.update(matrix.data)
    feature = FeatureMatrix(OWN_FEATURE, np.arange(len(matrix)), matrix)
    return Embeddings(keys, (feature,), digest.hexdigest(), {}, bad_rows=0)


def generate_semantic_ids_on_demand(
    data_path: Path | str, mm_emb_ids: Sequence[str | int], args: object | None = None
) -> SemanticIdTable:
    """
    Return the semantic IDs of a data directory, made now if there are none; never raises.

    Kept for callers of the original function. Gated and degrading like the property: where no IDs
    can be had, default IDs answer, and `.status` and `.reason` say so.

    Args:
        data_path: the data directory.
        mm_emb_ids: ids of the features.
        args: of it only `device` is read; lr, batch_size and num_epochs are the recommender's.
    """
    device = getattr(args, "device", None)
    config = SemanticIdConfig(device=str(device)) if device else SemanticIdConfig()
    ask = Ask(Path(data_path), tuple(map(str, mm_emb_ids)), config=config)
    try:
        return resolve(ask)
    except SemidError as error:
        degrade("default", reason=error)
        return SemanticIdTable.default(config.num_quantizers, reason=str(error))
