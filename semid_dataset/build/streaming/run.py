"""
A set of items for which memory is too small: the work on its parts, in a folder of the cache.

The steps are those of `pipeline`; here each is done part by part (see `tasks`), by processes of this machine or of a
cluster (see `executors`), and what comes of a part is a file (see `workfolder`). A file that is there and fits is not
made again. That is how a killed run goes on, how several processes share the parts (on one machine, on several over a
shared folder, under Ray), and why all of them give the same table.

Several features are a join: the rows of every part are written down in order of their items, and ranges of items are
read out of all of these runs. So features may come in any order, in any parts and of any items.
"""

import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset._messages import tell
from semid_dataset.build import memory
from semid_dataset.build.itemset import EncodedItems, ItemSet, NewItems, smallest
from semid_dataset.build.streaming.executors import Engine, run_processes
from semid_dataset.build.streaming.merge import MergedItems, SomeItems
from semid_dataset.build.streaming.tasks import Task, task_file
from semid_dataset.build.streaming.workfolder import (
    LAYOUT,
    Plan,
    PlannedFeature,
    basis_content,
    need_file,
    read_file,
    write_file,
)
from semid_dataset.cache.folders import JOBS, CacheFolder
from semid_dataset.codec.kinds import CENTRE, read_quantizer, state_of
from semid_dataset.config import SemanticIdConfig
from semid_dataset.errors import EmbeddingError, WorkGoneError
from semid_dataset.features import FeatureMatrix
from semid_dataset.format.tensors import Container
from semid_dataset.inputs._items import Ids, canonical_int
from semid_dataset.inputs.discover import FeatureSource
from semid_dataset.inputs.keys import (
    Keys,
    LongNameError,
    as_keys,
    as_texts,
    first_of_each,
    items_of,
    joined,
    stored,
    taken,
)
from semid_dataset.inputs.partitions import NamedItemsError, estimate, partitions_of
from semid_dataset.inputs.read import Embeddings, files_digest
from semid_dataset.progress import Progress
from semid_dataset.protocols import Partition, Quantizer, Trained
from semid_dataset.table.table import SemanticIdTable

__all__ = ["Job", "open_job"]

PART_BYTES = 64 << 20  # of float32 vectors, at most
LEAST_PART = 1024  # rows
EVERYTHING = (1 << 64) - 1
SPARE = 1.25  # the sample is looked for among so many times the items that it needs: some are bad or come twice
BASIS_NAME = re.compile(r"[0-9a-z]{1,64}")
NEW = "new"  # name of the codebooks that a job trains


def open_job(
    root: CacheFolder,
    question: str,
    sources: Sequence[FeatureSource],
    config: SemanticIdConfig,
    *,
    limit: int,
    sampled: int,
    engine: Engine | None = None,
    progress: Progress | None = None,
    listed: Keys | None = None,
) -> "Job":
    """
    Return the job of some features; its work folder is made, or is there from a run before.

    Args:
        root: the cache that takes the work folder.
        question: what is asked, as a name: other files or another kind of ID are another job.
        sources: the features.
        config: how IDs are made.
        limit: bytes of memory.
        sampled: items that codebooks are fitted on.
        engine: who does the work; by default processes of this machine.
        progress: told how far it is.
        listed: the item of every row of the only file; None where the files say them.

    Raises:
        StoreError, OSError: the folder cannot be made.
    """
    settings = {name: value for name, value in config.to_dict().items() if name not in {"lock_timeout", "memory_limit"}}
    rows = [max(LEAST_PART, min(PART_BYTES, limit // 16) // (4 * source.dim)) for source in sources]
    paths = [[str(path) for path in source.files] for source in sources]
    named = json.dumps([LAYOUT, question, settings, sampled, rows, paths])
    folder = root.folder(JOBS, hashlib.sha256(named.encode()).hexdigest()[:32], create=True)
    if listed is not None:
        write_file(folder, "ids", stored(listed), {})
        sources = [replace(source, ids=str(folder / "ids.part")) for source in sources]
    progress = progress or Progress()
    capped = config.sample_items is None and sampled < memory.MOST_SAMPLED
    job = Job(
        folder, sources, config.seed, sampled, capped, rows, limit, engine or run_processes, progress or Progress()
    )
    if listed is not None:
        job.digests[Path("ids")] = hashlib.sha256(listed.tobytes()).hexdigest()
    return job


class Job(ItemSet):
    """
    The work on some features, in a folder of its own.

    Attributes:
        folder: where files of parts lie.
        digests: SHA-256 of each file that was read.
    """

    def __init__(
        self,
        folder: Path,
        sources: Sequence[FeatureSource],
        seed: int,
        sampled: int,
        capped: bool,
        rows_per_part: Sequence[int],
        limit: int,
        engine: Engine,
        progress: Progress,
    ) -> None:
        self.folder = folder
        self.progress = progress
        self.digests: dict[Path, str] = {}
        self._limit = limit
        self._sources = {source.id: source for source in sources}
        self._rows_per_part = {source.id: rows for source, rows in zip(sources, rows_per_part, strict=True)}
        self._seed = seed
        self._sampled = sampled
        self._capped = capped
        self._engine = engine
        self._contents: dict[str, str] = {}  # of the codebooks that this job works with, by their name
        self._named: set[str] = set()  # features of which some ids are no integers
        self._failures: dict[str, EmbeddingError] = {}  # of features that cannot be read
        self._bad: dict[str, tuple[int, str]] = {}  # rows that were left out when they were spooled
        self._plan: Plan | None = None

    # --- the plan ---

    @property
    def plan(self) -> Plan:
        """The parts; the first call may have to write rows down."""
        if self._plan is None:
            with suppress(WorkGoneError):  # of a run before, or of others who work here
                self._named |= {feature.id for feature in Plan.read(self.folder).features if feature.named}
            parts: list[Partition] = []
            features: list[PlannedFeature] = []
            for feature, source in self._sources.items():
                found = self._try(feature, lambda source=source: self._parts_of(source))  # type: ignore[misc]
                if found is not None:
                    last = len(parts) + len(found)
                    named = feature in self._named
                    features.append(PlannedFeature(feature, source.dim, len(parts), last, named, source.own))
                    parts += found
            self._set_plan(Plan(self._seed, tuple(features), tuple(parts)))
        assert self._plan is not None
        return self._plan

    def _set_plan(self, plan: Plan) -> None:
        """Note the plan; what others who work here have found out about its features stays."""
        with suppress(WorkGoneError):
            noted = Plan.read(self.folder)
            if noted.parts == plan.parts:
                there = {feature.id: feature.named for feature in noted.features}
                kept = [replace(one, named=one.named or there[one.id]) for one in plan.features if one.id in there]
                plan = replace(plan, features=tuple(kept))
        plan.write(self.folder)
        self._plan = plan

    def _try(self, feature: str, work: "Callable[[], Any]") -> Any:
        """
        Return what is made of a feature; None where it cannot be read beside others that can.

        Raises:
            LongNameError: items cannot be held out of memory.
            EmbeddingError: it is the only one.
        """
        try:
            return work()
        except NamedItemsError:
            self._named.add(feature)  # from now on its ids are taken as they are written
            if self._plan is not None:
                fits = [replace(one, named=one.id in self._named) for one in self._plan.features]
                self._set_plan(replace(self._plan, features=tuple(fits)))
            return self._try(feature, work)
        except LongNameError:
            raise
        except EmbeddingError as error:
            if len(self._sources) == 1:
                raise
            self._failures[feature] = error
            if len(self._failures) == len(self._sources):
                raise EmbeddingError("No feature can be read: " + " ".join(map(str, self._failures.values()))) from None
            return None

    def _parts_of(self, source: FeatureSource) -> list[Partition]:
        """Return the partitions of a feature, in the order in which its rows count: the first of an item is used."""
        pieces: list[Partition] = []
        rows, bad, first_bad = self._rows_per_part[source.id], 0, ""
        for number, path in enumerate(source.files):
            part, found = partitions_of(source, path, rows)
            if not found:
                made = self._spooled(source, f"{source.id}-{number}", part)
                self.digests[path] = made.info["sha256"]
                bad, first_bad = bad + made.info["bad"], first_bad or made.info["first_bad"]
                for run, count in enumerate(made.info["counts"]):
                    written = self.folder / f"rows-{source.id}-{number}-{run}.part"
                    found.append(Partition("rows", str(written), 0, count, count * 4 * source.dim))
            pieces += found
        self._bad[source.id] = (bad, first_bad)
        return pieces

    def _spooled(self, source: FeatureSource, name: str, part: Partition) -> Container:
        """Write the rows of a file down that can be read from its beginning only."""
        path = Path(part.path)
        status = path.stat()
        named = source.id in self._named
        task = {"stage": "spool", "part": name, "partition": part.to_dict(), "bytes": status.st_size, "named": named}
        task |= {"feature": source.id, "dim": source.dim, "rows": self._rows_per_part[source.id]}
        task |= {"basis": f"{path.name} {status.st_size} {status.st_mtime_ns} {named}", "own": source.own and str(path)}
        self._stage([task], f"Loading #{source.id} mm_emb")
        return need_file(self.folder, task_file(task))

    # --- stages ---

    def _fitting(self, task: Task) -> Container | None:
        """Return the file that a task would make, if it is there, whole, and made from the same."""
        found = read_file(self.folder, task_file(task))
        return found if found is not None and found.info.get("basis") == task["basis"] else None

    def _stage(self, tasks: Sequence[Task], name: str) -> None:
        """Have the tasks done that were not done before."""
        missing = []
        for task in tasks:
            if self._fitting(task) is None:
                missing.append(task)
            self.progress.advance()
        if len(missing) < len(tasks):
            tell("resumed", done=len(tasks) - len(missing), parts=len(tasks), stage=tasks[0]["stage"])
        if missing:
            with self.progress.stage(name, sum(task["bytes"] for task in missing)):
                self._engine(self.folder, missing, self.progress, self._limit)

    def _tasks(self, stage: str, feature: PlannedFeature, **more: Any) -> list[Task]:
        parts = self.plan.parts
        return [
            {"stage": stage, "part": part, "bytes": parts[part].bytes, **more}
            for part in range(feature.first, feature.last)
        ]

    # --- the sample ---

    def read(self, base: Path | None = None) -> Embeddings:
        """
        Return a sample of the items with their vectors, and the digest of all.

        Every valid item is as likely to be in it as any other, each once; the same items come out however the
        rows lie in the parts. An item of the sample has all its features.

        Args:
            base: what paths of files are told from.

        Raises:
            EmbeddingError: a part cannot be read, or no row can be used.
        """
        below = self._first_bound()
        while True:
            items = self._sample(below)
            if len(items) >= self._sampled or below == EVERYTHING:
                break
            below = min(EVERYTHING, 2 * below)  # more bad rows or repeated items than was spared for
        for feature, failure in self._failures.items():
            tell("feature_unreadable", feature=feature, error=failure)
        if not len(items):
            source = next(iter(self._sources.values()))
            raise EmbeddingError(f"'{source.path}' holds no usable row of {source.dim} numbers.")
        chosen = smallest(items, self._sampled, self._seed)
        items = items if chosen is None else items[chosen]
        features = [self._sampled_feature(feature, items, below) for feature in self.plan.features]
        self.count: int = max(len(items), *(self._rows_of(feature, below) for feature in self.plan.features))
        self.complete: bool = below == EVERYTHING and chosen is None
        if chosen is not None and self._capped:
            tell("sample_capped", sampled=self._sampled, items=self.count, limit=memory.in_words(self._limit))
        self.sample: Embeddings = Embeddings(
            items_of(items), tuple(features), files_digest(self.digests), dict(self.digests), 0, base=base
        )
        self.held: Embeddings = self.sample
        if self.plan.joined:
            self._ranges()
        return self.sample

    def _sample_tasks(self, feature: PlannedFeature, below: int) -> list[Task]:
        basis = f"{below:x} {feature.named}"
        return self._tasks("sample", feature, below=below, basis=basis)

    def _sample(self, below: int) -> Keys:
        """Have rows with hashes up to a bound sampled; return their items, ascending, each once."""
        found: list[Keys] = []
        for name in [feature.id for feature in self.plan.features]:
            sampled = self._try(name, lambda name=name: self._sample_feature(name, below))  # type: ignore[misc]
            if sampled is not None:
                found.append(sampled)
        usable = tuple(feature for feature in self.plan.features if feature.id not in self._failures)
        if usable != self.plan.features:
            self._set_plan(replace(self.plan, features=usable))
        return np.unique(joined(found))

    def _sample_feature(self, name: str, below: int) -> Keys:
        (feature,) = (one for one in self.plan.features if one.id == name)
        tasks = self._sample_tasks(feature, below)
        self._stage(tasks, f"Sampling #{name} mm_emb")
        ids, columns = Ids(), []
        for task in tasks:
            made = need_file(self.folder, task_file(task))
            ids.join(made.info["ids"])
            columns.append(taken(made.arrays))
            part = self.plan.parts[task["part"]]
            if made.info["sha256"] and part.format != "rows":
                self.digests[Path(part.path)] = made.info["sha256"]
        ids.numbers()
        keys = np.unique(joined(columns))
        if not len(keys) and below == EVERYTHING:
            source = self._sources[name]
            raise EmbeddingError(f"'{source.path}' holds no usable row of {source.dim} numbers.")
        tell("loaded_feature", feature=name)
        return keys

    def _sampled_feature(self, feature: PlannedFeature, items: Keys, below: int) -> FeatureMatrix:
        """Return the vectors of a feature of the items that are sampled."""
        tasks = self._sample_tasks(feature, below)
        columns = [taken(need_file(self.folder, task_file(task)).arrays) for task in tasks]
        keys, places = first_of_each(joined(columns))
        if self.plan.texts:
            keys = as_texts(keys)
            order = np.argsort(keys, kind="stable")  # of numbers in another order than that of texts
            keys, places = keys[order], places[order]
        rows = np.minimum(np.searchsorted(items, keys), len(items) - 1)
        chosen = items[rows] == keys
        rows, places = rows[chosen], places[chosen]
        matrix = np.empty((len(rows), feature.dim), np.float32)
        begin = 0
        for task, column in zip(tasks, columns, strict=True):
            vectors = need_file(self.folder, task_file(task)).arrays["vectors"]
            here = np.flatnonzero((places >= begin) & (places < begin + len(column)))
            matrix[here] = vectors[places[here] - begin]
            begin += len(column)
            self.progress.advance()
        return FeatureMatrix(feature.id, rows, matrix)

    def _rows_of(self, feature: PlannedFeature, below: int) -> int:
        tasks = self._sample_tasks(feature, below)
        return sum(int(need_file(self.folder, task_file(task)).info["rows"]) for task in tasks)

    def sample_share(self, shard: tuple[int, int]) -> None:
        """Sample the parts of one shard, so that whoever trains finds them done; what is spooled cannot be shared."""
        if any(part.format == "rows" for part in self.plan.parts):
            return
        below = self._first_bound()
        for name in [feature.id for feature in self.plan.features]:
            self._try(name, lambda name=name: self._share(name, below, shard))  # type: ignore[misc]
        self._failures.clear()  # whoever trains says so

    def _share(self, name: str, below: int, shard: tuple[int, int]) -> None:
        (feature,) = (one for one in self.plan.features if one.id == name)
        self._stage(self._sample_tasks(feature, below)[shard[0] :: shard[1]], f"Sampling #{name} mm_emb")

    def _first_bound(self) -> int:
        """Return the hash up to which ids are kept at first."""
        rows = max(self._estimated(feature) for feature in self.plan.features)
        return EVERYTHING if rows <= SPARE * self._sampled else int(EVERYTHING * SPARE * self._sampled / rows)

    def _estimated(self, feature: PlannedFeature) -> int:
        """Return about how many rows a feature has."""
        parts = self.plan.parts[feature.first : feature.last]
        if all(part.last >= 0 for part in parts):
            return sum(part.last - part.first for part in parts)
        return estimate(self._sources[feature.id])[0]

    # --- codebooks ---

    def trained(self, fit: Callable[[], Trained]) -> Trained:
        """Return the codebooks of this job: those that `fit` returns, or as a run before left them."""
        found = self.basis(NEW)
        if found is None:
            trained = fit()
            noted = {
                "curve": [float(loss) for loss in trained.curve],
                "stopped_at": trained.stopped_at,
                "device": trained.device,
                "held_out": dict(trained.held_out),
                "choices": dict(trained.choices),
            }
            bulk = {"radius": trained.radius} if math.isfinite(trained.radius) else {}
            more = {"trained": noted | bulk, **bulk}
            self.set_basis(NEW, trained.quantizer, more, centre=trained.centre, first=True)
            found = self.basis(NEW)
            if found is None:
                raise WorkGoneError(f"'{self.folder}' is gone: somebody cleaned up, or published. Run again.")
        self.choose(NEW)
        weights = {key.removeprefix("quantizer."): np.array(array) for key, array in found.arrays.items()}
        quantizer = read_quantizer(weights, found.info["quantizer"])
        return Trained(quantizer, **found.info["trained"], centre=weights.get(CENTRE))

    def take(self, base: SemanticIdTable) -> None:
        """Have the codebooks of a table ready, which is to be extended: shards wait for them."""
        name = _name_of(base)
        if self.basis(name) is None:
            bulk = {"radius": base.header.radius} if math.isfinite(base.header.radius) else {}
            self.set_basis(name, base.quantizer, bulk, self._known(base), centre=base.weights.get(CENTRE))
        self.choose(name)

    def _known(self, base: SemanticIdTable) -> Keys:
        """Return the items of a table that can be among those of this job, ascending."""
        keys = as_keys(base.keys_array)
        if self.plan.texts:
            return np.sort(as_texts(keys))
        if keys.dtype.kind == "S":  # integers are among them in their spelling
            numbers = [canonical_int(key) for key in base.keys_array]
            keys = np.array([number for number in numbers if number is not None], np.int64)
        return np.sort(keys)

    def basis(self, name: str) -> Container | None:
        """Return the codebooks that parts are encoded with under this name, if they are there."""
        found = read_file(self.folder, f"basis-{name}")
        if found is not None:
            self._contents[name] = str(found.info["content"])
        return found

    def set_basis(
        self,
        name: str,
        quantizer: Quantizer,
        info: Mapping[str, Any],
        known: Keys | None = None,
        *,
        centre: NDArray[Any] | None = None,
        first: bool = False,
    ) -> None:
        """
        Write down what parts are encoded with; `known` items, ascending, are left out.

        `centre` is that of the vectors that the quantizer was trained on.

        With `first`, what somebody else who works here has written meanwhile stays and is what counts: see `basis`.
        """
        weights, description = state_of(quantizer, centre)
        arrays = {f"quantizer.{key}": array for key, array in weights.items()}
        if known is not None:
            arrays |= stored(known, "known")
        content = basis_content(arrays, {**description, "radius": info.get("radius")})
        more = {"quantizer": description, "content": content}
        write_file(self.folder, f"basis-{name}", arrays, {**info, **more}, first=first)
        self.basis(name)

    def choose(self, basis: str) -> None:
        """Note which codebooks parts are to be encoded with: shards that wait for them see it."""
        if self.chosen != basis:
            write_file(self.folder, "chosen", {}, {"name": basis})

    @property
    def chosen(self) -> str | None:
        """The name of the codebooks that were chosen, None as long as they are not there."""
        found = read_file(self.folder, "chosen")
        name = "" if found is None else str(found.info.get("name"))
        return name if BASIS_NAME.fullmatch(name) and self.basis(name) is not None else None

    # --- codes ---

    def encode(self, basis: str, shard: tuple[int, int] = (0, 1)) -> tuple[int, int]:
        """
        Encode the parts of a shard that are not encoded yet.

        Args:
            basis: name of the codebooks.
            shard: its number, and how many there are.

        Returns:
            How many parts of all are encoded now, and how many there are.
        """
        if shard[1] > 1:
            self._plan = Plan.read(self.folder)  # as those left it who chose the codebooks
        if self.plan.joined:
            sort = [task for feature in self.plan.features for task in self._sort_tasks(feature)]
            self._stage(sort[shard[0] :: shard[1]], "Sorting")
            done = len(sort) if shard[1] == 1 else sum(self._fitting(task) is not None for task in sort)
            if done < len(sort):
                return done, len(sort)
        tasks = self._encode_tasks(basis)
        self._stage(tasks[shard[0] :: shard[1]], "Encoding")
        done = len(tasks) if shard[1] == 1 else sum(self._fitting(task) is not None for task in tasks)
        return done, len(tasks)

    def _sort_tasks(self, feature: PlannedFeature) -> list[Task]:
        rows = max(1, self._rows_per_part[feature.id] // 2)  # a run is there twice while it is sorted
        return self._tasks("sort", feature, rows=rows, basis=f"{feature.named} {self.plan.texts}")

    def _encode_tasks(self, basis: str) -> list[Task]:
        """Return the tasks of encoding with a basis as this job knows it: codes of another one are not taken for it."""
        if basis not in self._contents and self.basis(basis) is None:
            raise WorkGoneError(f"'{self.folder}' is gone: somebody cleaned up, or published. Run again.")
        content = self._contents[basis]
        more = {"codebooks": basis, "content": content, "basis": content}
        if not self.plan.joined:
            return self._tasks("encode", self.plan.features[0], **more)
        ranges = self._ranges()
        size = sum(part.bytes for part in self.plan.parts) // ranges
        return [{"stage": "encode", "part": number, "bytes": size, **more} for number in range(ranges)]

    def _ranges(self) -> int:
        """Have ranges of items written down that take about as much as a part each; return how many there are."""
        found = read_file(self.folder, "ranges")
        if found is None:
            size = sum(4 * feature.dim * self._estimated(feature) for feature in self.plan.features)
            most = max(feature.dim * self._rows_per_part[feature.id] for feature in self.plan.features)
            count = max(1, -(-size // (2 * most)))  # half a part: what is joined is there three times
            keys = as_keys(self.sample.items)
            bounds = np.unique(keys[(np.arange(1, count) * len(keys)) // count])
            write_file(self.folder, "ranges", stored(bounds), {}, first=True)
            found = need_file(self.folder, "ranges")
        return len(taken(found.arrays)) + 1

    def merged(self, basis: str) -> MergedItems:
        """
        Return what `encode` made, of all parts.

        Raises:
            EmbeddingError: a row is bad, in files that a person named.
        """
        tasks = self._encode_tasks(basis)
        names = [task_file(task) for task in tasks]

        def gather(wanted: Iterable[Keys]) -> None:
            self._gather(tasks, wanted)

        content = self._contents[basis]
        found = MergedItems(self.folder, names, basis, content, gather, self._limit, self.progress.advance)
        self._count_bad(found)
        return found

    def _count_bad(self, found: MergedItems) -> None:
        """Add what was left out before codes were made, and say it, or raise it."""
        elsewhere = [self._bad[feature.id] for feature in self.plan.features]
        if self.plan.joined:
            for feature in self.plan.features:
                made = [need_file(self.folder, task_file(task)).info for task in self._sort_tasks(feature)]
                elsewhere += [(info["bad"], info["first_bad"]) for info in made]
        for bad, first_bad in elsewhere:
            found.bad, found.first_bad = found.bad + bad, first_bad or found.first_bad
        if found.bad and any(source.own for source in self._sources.values()):
            more = f", as are {found.bad - 1} more" if found.bad > 1 else ""
            raise EmbeddingError(f"{found.first_bad}{more}. Correct or remove such rows: an item has one vector.")
        if found.bad:
            tell(
                "bad_rows",
                bad=found.bad,
                rows=len(found.keys) + found.bad,
                feature="+".join(feature.id for feature in self.plan.features),
                first=found.first_bad,
            )

    def _gather(self, encode: Sequence[Task], wanted: Iterable[Keys]) -> None:
        """Have the vectors of items (of every part its own, in any order) written down as `gather-<part>`."""
        tasks = []
        for task, keys in zip(encode, wanted, strict=True):
            if len(keys):
                basis = hashlib.sha256(f"{task['content']} ".encode() + keys.tobytes()).hexdigest()
                order = np.argsort(keys)
                arrays: dict[str, NDArray[Any]] = {**stored(keys[order]), "places": order.astype(np.uint32)}
                write_file(self.folder, f"wanted-{task['part']}", arrays, {})
                tasks.append({**task, "stage": "gather", "basis": basis})
        if tasks:
            self._stage(tasks, "Reading again")

    def encoded(self, trained: Trained, progress: Progress) -> EncodedItems:
        """Have all parts encoded, and return what came of it."""
        self.encode(NEW)
        return self.merged(NEW)

    def lacking(self, base: SemanticIdTable, progress: Progress) -> NewItems:
        """Have the items encoded that a table lacks."""
        self.take(base)
        tell("encoding")
        self.encode(_name_of(base))
        return _New(self.merged(_name_of(base)))

    def close(self) -> None:
        """Remove the work folder: what it was for is published."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _name_of(base: SemanticIdTable) -> str:
    return base.digest[:16]


class _New(NewItems):
    def __init__(self, merged: MergedItems) -> None:
        self.items = merged.items
        self._merged = merged

    def encoded(self, base: SemanticIdTable, missing: NDArray[np.int64]) -> EncodedItems:
        return SomeItems(self._merged, missing)
