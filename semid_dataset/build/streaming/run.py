"""
The first table of a lineage, and its extensions, for more items than memory holds.

The same steps as in memory, each over the parts of a feature (see `parts`):

    spool     a pickle only: its rows are written down as parts, since it can be read from the beginning only
    sample    the items with the smallest hashes of their ids, whatever the order and number of the parts
    train     on the sample, by the code that trains in memory
    encode    every part by itself: ids, codes, errors
    merge     all of these, in order of the ids, and made unique; for those that yield, parts are read again for
              the vectors
    publish   as ever: the first one wins

What a stage makes of a part is a file in a folder of the cache (see `stages`). A file that is there and fits is not
made again. That is how a killed run goes on, how several processes share the parts (on one machine, on several over
a shared folder, under Ray), and why all of them give the same table.
"""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset import _files as files
from semid_dataset._messages import tell
from semid_dataset.build import novelty, pipeline
from semid_dataset.build.streaming.executors import Engine, run_processes
from semid_dataset.build.streaming.tasks import (
    LAYOUT,
    MOST_PLAN,
    PLAN_FILE,
    Plan,
    Task,
    basis_content,
    basis_of,
    carried,
    need_file,
    read_file,
    read_into,
    task_file,
    write_file,
)
from semid_dataset.cache.folders import JOBS, CacheFolder
from semid_dataset.codec.bulk import distances, rows_with_share
from semid_dataset.codec.kinds import CENTRE, centre_of, read_quantizer, state_of
from semid_dataset.config import Identity, SemanticIdConfig
from semid_dataset.errors import EmbeddingError, WorkGoneError
from semid_dataset.features import FeatureMatrix
from semid_dataset.format import tensors as container
from semid_dataset.inputs import matrix as vectors
from semid_dataset.inputs import partitions as parts
from semid_dataset.inputs._items import canonical_int
from semid_dataset.inputs.discover import FeatureSource
from semid_dataset.inputs.partitions import hash_ids
from semid_dataset.inputs.read import Embeddings, files_digest
from semid_dataset.progress import Progress
from semid_dataset.protocols import Partition, Quantizer, Trained
from semid_dataset.table.build import TableData
from semid_dataset.table.table import SemanticIdTable

if TYPE_CHECKING:
    from semid_dataset.codec.unique import Resolution

__all__ = [
    "Encoded",
    "Extension",
    "Job",
    "choose_basis",
    "is_beyond",
    "open_array_job",
    "open_job",
    "sizes",
    "train_table",
]

MOST_SAMPLED = 262_144  # items; a sample that size costs 1.2 % of error against 5 million items, 65,536 cost 4.1 %
LEAST_SAMPLED = 16_384  # whatever the limit: with fewer, codebooks are noise
TRAINING_COPIES = 8  # float32 copies of the sample that training may hold at its peak
PART_BYTES = 64 << 20  # of float32 vectors, at most
LEAST_PART = 1024  # rows
DISPLACED_SHARE = 32  # what part of the limit vectors that are read again may take in memory
LEAST_DISPLACED = 4096  # of them at once, whatever the limit
ROWS = 1 << 20  # that are looked at together
NAMED = "an item is no integer"
MOST_OPEN = 256  # files; a process may open 1,024, often
EVERYTHING = (1 << 64) - 1
SPARE = 1.25  # the sample is looked for among so many times the items that it needs: some are bad or come twice
BASIS_NAME = re.compile(r"[0-9a-z]{1,64}")


def is_beyond(sources: Sequence[FeatureSource], limit: int) -> bool:
    """Whether features are better streamed: their vectors alone would take more than half of `limit` bytes."""
    return _bytes_of(sources) > limit // 2


def sizes(sources: Sequence[FeatureSource], limit: int) -> tuple[str, str]:
    """Return in words how much memory features would take, and how much is allowed."""
    return _in_words(_bytes_of(sources)), _in_words(limit)


def _in_words(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{size / (1 << 20):.1f} MiB"


def _bytes_of(sources: Sequence[FeatureSource]) -> int:
    taken = 0
    for source in sources:
        with suppress(EmbeddingError):  # who reads it will say so, and go on without it where there are others
            taken += parts.estimate(source)[1]
    return taken


def open_array_job(
    root: CacheFolder, path: Path, ids: str | Path, config: SemanticIdConfig, *, limit: int
) -> "Job | None":
    """
    Return the job of a matrix in an .npy file; None where it is better read into memory.

    Args:
        root, config, limit: as in `open_job`.
        path: the matrix.
        ids: a file with the item of every row, or "rows".

    Raises:
        EmbeddingError: the items do not fit the matrix.
        StoreError, OSError: a file cannot be read, or the folder not be made.
    """
    shape = parts.array_shape(path)
    if shape is None or 4 * shape[0] * shape[1] <= limit // 2:
        return None
    rows, dim = shape
    found = np.arange(rows) if str(ids) == vectors.ROWS else vectors.read_items(ids)
    if not isinstance(found, np.ndarray):
        tell("not_streamed", size=_in_words(4 * rows * dim), limit=_in_words(limit), why=NAMED)
        return None
    if len(found) != rows:
        raise EmbeddingError(f"'{ids}' has {len(found)} items; '{path}' has {rows} rows. They must be as many.")
    vectors.check_unique(found, str(ids))
    digest = hashlib.sha256(found.tobytes()).hexdigest()
    status = path.stat()
    source = FeatureSource("own", dim, "npy", path, (path,))
    job = open_job(root, f"{digest} {status.st_size} {status.st_mtime_ns}", source, config, limit=limit)
    write_file(job.folder, "ids", {"ids": found}, {})
    job.digests[Path("ids")] = digest
    tell("streaming", size=_in_words(4 * rows * dim), limit=_in_words(limit))
    return job


def open_job(
    root: CacheFolder,
    cache_key: str,
    source: FeatureSource,
    config: SemanticIdConfig,
    *,
    limit: int,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> "Job":
    """
    Return the job of a feature; its work folder is made, or is there from a run before.

    Args:
        root: the cache that takes the work folder.
        question: what is asked, as a name: other files or another kind of ID are another job.
        source: one feature.
        config: how IDs are made.
        limit: bytes of memory.
        engine: who does the work; by default processes of this machine.
        progress: told how far it is.

    Raises:
        StoreError, OSError: the folder cannot be made.
    """
    settings = {name: value for name, value in config.to_dict().items() if name not in {"lock_timeout", "memory_limit"}}
    row = 4 * source.dim
    sampled = int(min(MOST_SAMPLED, max(LEAST_SAMPLED, limit // (TRAINING_COPIES * row))))
    rows_per_part = max(LEAST_PART, min(PART_BYTES, limit // 16) // row)
    named = json.dumps([LAYOUT, cache_key, settings, sampled, rows_per_part, [str(path) for path in source.files]])
    folder = root.folder(JOBS, hashlib.sha256(named.encode()).hexdigest()[:32], create=True)
    return Job(
        folder, source, config.seed, sampled, rows_per_part, limit, engine or run_processes, progress or Progress()
    )


class Job:
    """
    The work on one feature, in a folder of its own.

    Attributes:
        folder: where files of parts lie.
        limit: bytes of memory, about.
        digests: SHA-256 of each file that was read.
        strict: whether a bad row is an error, as in files that a person named.
    """

    def __init__(
        self,
        folder: Path,
        source: FeatureSource,
        seed: int,
        sampled: int,
        rows_per_part: int,
        limit: int,
        engine: Engine,
        progress: Progress,
    ) -> None:
        self.folder = folder
        self.limit = limit
        self.strict = source.form == "npy"
        self.progress = progress
        self._source = source
        self._seed = seed
        self._sampled = sampled
        self._rows_per_part = rows_per_part
        self._engine = engine
        self.digests: dict[Path, str] = {}
        self._contents: dict[str, str] = {}  # of the codebooks that this job works with, by their name
        self._plan: Plan | None = None
        self._spool_bad = (0, "")

    @property
    def plan(self) -> Plan:
        """The parts; the first call may have to spool a pickle."""
        if self._plan is None:
            found = self._spooled() if self._source.form == "pickle" else None
            if self._source.form == "npy":
                found = parts.split_array(self._source.path, str(self.folder / "ids.part"), self._rows_per_part)
            pieces = found or parts.split_source(self._source, self._rows_per_part)
            rows = sum(part.last - part.first for part in pieces)
            if any(part.last < 0 for part in pieces):
                rows = parts.estimate(self._source)[0]
            plan = Plan(self._source.id, self._source.dim, self._seed, rows, tuple(pieces))
            path = self.folder / PLAN_FILE
            try:
                noted, _ = files.read_small(path, MOST_PLAN)
            except OSError:  # none, or none of ours: whatever lies there is replaced
                noted = b""
            if noted != plan.to_json():
                files.replace_file(path, [plan.to_json()], sync=False)
            self._plan = plan
        return self._plan

    def _spooled(self) -> list[Partition]:
        pieces: list[Partition] = []
        bad, first_bad = 0, ""
        for path in self._source.files:
            status = path.stat()
            basis = f"{path.name} {status.st_size} {status.st_mtime_ns}"
            task = {"stage": "spool", "path": str(path), "dim": self._source.dim, "feature": self._source.id}
            task |= {"rows": self._rows_per_part, "basis": basis, "bytes": status.st_size}
            found = self._fitting(task)
            if found is None:
                self._run([task], f"Loading #{self._source.id} mm_emb")
                found = need_file(self.folder, "spool")
            self.digests[path] = found.info["sha256"]
            bad, first_bad = bad + found.info["bad"], first_bad or found.info["first_bad"]
            for number, count in enumerate(found.info["counts"]):
                rows = self.folder / f"rows-{number}.part"
                pieces.append(Partition("rows", str(rows), 0, count, count * 4 * self._source.dim))
        self._spool_bad = (bad, first_bad)
        return pieces

    def _fitting(self, task: Task) -> container.Container | None:
        """Return the file that a task would make, if it is there, whole, and made from the same."""
        found = read_file(self.folder, task_file(task))
        basis = f"{task['below']:x}" if task["stage"] == "sample" else task.get("content", task["basis"])
        return found if found is not None and found.info.get("basis") == basis else None

    def _run(self, tasks: Sequence[Task], description: str) -> None:
        """Have tasks done that were not done before."""
        with self.progress.stage(description, sum(task["bytes"] for task in tasks)):
            self._engine(self.folder, tasks, self.progress, self.limit)

    def _stage(self, tasks: Sequence[Task], description: str) -> None:
        if not tasks:
            return
        missing = [task for task in tasks if self._fitting(task) is None]
        self.progress.advance()
        if len(missing) < len(tasks):
            tell("resumed", done=len(tasks) - len(missing), parts=len(tasks), stage=tasks[0]["stage"])
        if missing:
            self._run(missing, description)

    def _tasks(self, stage: str, **more: Any) -> list[Task]:
        return [
            {"stage": stage, "part": number, "bytes": part.bytes, **more} for number, part in enumerate(self.plan.parts)
        ]

    # --- the sample ---

    def read(self) -> Embeddings:
        """
        Return a sample of the items with their vectors, and the digest of all; `stream` is this job.

        Every valid item is as likely to be in it as any other, each once; the same items come out however the
        rows lie in the parts.

        Raises:
            EmbeddingError: a part cannot be read, or no row can be used.
        """
        plan = self.plan
        below = self._first_bound()
        while True:
            tasks = self._tasks("sample", below=below)
            self._stage(tasks, f"Sampling #{plan.feature} mm_emb")
            ids, places = self._sampled_ids()
            if len(ids) >= self._sampled or below == EVERYTHING:
                break
            below = min(EVERYTHING, 2 * below)  # more bad rows or repeated items than was spared for
        if not len(ids):
            raise EmbeddingError(f"'{self._source.path}' holds no usable row of {plan.dim} numbers.")
        if len(ids) > self._sampled:
            chosen = np.sort(np.argpartition(hash_ids(ids, plan.seed), self._sampled)[: self._sampled])
            ids, places = ids[chosen], places[chosen]
        matrix = self._sampled_rows(places)
        rows = 0
        for task, part in zip(tasks, plan.parts, strict=True):
            info = need_file(self.folder, task_file(task)).info
            rows += info["rows"]
            if info["sha256"] and part.format != "rows":
                self.digests[Path(part.path)] = info["sha256"]
        tell("loaded_feature", feature=plan.feature)
        feature = FeatureMatrix(plan.feature, np.arange(len(ids)), matrix)
        return Embeddings(ids, (feature,), files_digest(self.digests), dict(self.digests), 0, self, rows)

    def _sampled_ids(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the ids of all samples, ascending, each once, and where they stand in all samples side by side."""
        found = [np.array(need_file(self.folder, task_file(task)).arrays["ids"]) for task in self._tasks("sample")]
        return _first_of_each(np.concatenate(found))

    def _sampled_rows(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        matrix = np.empty((len(places), self.plan.dim), np.float32)
        begin = 0
        for task in self._tasks("sample"):
            vectors = need_file(self.folder, task_file(task)).arrays["vectors"]
            here = np.flatnonzero((places >= begin) & (places < begin + len(vectors)))
            matrix[here] = vectors[places[here] - begin]
            begin += len(vectors)
            self.progress.advance()
        return matrix

    def sample_share(self, shard: tuple[int, int]) -> None:
        """Sample the parts of one shard, so that whoever trains finds them done; a pickle cannot be shared."""
        if self._source.form != "pickle":
            tasks = self._tasks("sample", below=self._first_bound())
            self._stage(tasks[shard[0] :: shard[1]], f"Sampling #{self.plan.feature} mm_emb")

    def _first_bound(self) -> int:
        """Return the hash up to which ids are kept at first."""
        rows = self.plan.rows
        return EVERYTHING if rows <= SPARE * self._sampled else int(EVERYTHING * SPARE * self._sampled / rows)

    # --- codebooks ---

    def basis(self, name: str) -> container.Container | None:
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
        known: NDArray[np.int64] | None = None,
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
            arrays["known"] = known
        content = basis_content(arrays, {**description, "radius": info.get("radius")})
        more = {"quantizer": description, "content": content}
        write_file(self.folder, f"basis-{name}", arrays, {**info, **more}, first=first)
        self.basis(name)

    def choose(self, basis: str) -> None:
        """Note which codebooks parts are to be encoded with: shards that wait for them see it."""
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
        tasks = self._encode_tasks(basis)
        self._stage(tasks[shard[0] :: shard[1]], "Encoding")
        done = len(tasks) if shard[1] == 1 else sum(self._fitting(task) is not None for task in tasks)
        return done, len(tasks)

    def _encode_tasks(self, basis: str) -> list[Task]:
        """Return the tasks of encoding with a basis as this job knows it: codes of another one are not taken for it."""
        if basis not in self._contents and self.basis(basis) is None:
            raise WorkGoneError(f"'{self.folder}' is gone: somebody cleaned up, or published. Run again.")
        return self._tasks("encode", basis=basis, content=self._contents[basis])

    def encoded(self, basis: str) -> "Encoded":
        """Return what `encode` made, of all parts."""
        return Encoded(self, basis)

    def gather(self, wanted: Iterable[NDArray[np.int64]]) -> None:
        """Have the vectors of items (of every part its own, in any order) written down as `gather-<part>`."""
        tasks = []
        for task, ids in zip(self._tasks("gather"), wanted, strict=True):
            if len(ids):
                basis = hashlib.sha256(ids.tobytes()).hexdigest()
                order = np.argsort(ids)
                arrays: dict[str, NDArray[Any]] = {"ids": ids[order], "places": order.astype(np.uint32)}
                write_file(self.folder, f"wanted-{task['part']}", arrays, {})
                tasks.append({**task, "basis": basis})
        if tasks:
            self._stage(tasks, "Reading again")

    def close(self) -> None:
        """Remove the work folder: what it was for is published."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _first_of_each(ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct ids, ascending, and where each stands first."""
    if bool((ids[1:] > ids[:-1]).all()):
        return ids, np.arange(len(ids))
    order = np.argsort(ids, kind="stable")
    ids = ids[order]
    first = np.ones(len(ids), bool)
    first[1:] = ids[1:] != ids[:-1]
    return (ids, order) if first.all() else (ids[first], order[first])


class Encoded:
    """
    Items with their codes, merged from all parts; the `Items` of `resolve_collisions`.

    Attributes:
        ids: (n,) ascending, each once.
        codes: (n, levels), raw.
        bad, first_bad: rows that were skipped, and where the first was.
        beyond: rows outside of the bulk, see `codec.bulk`.
        rows: all others; those of an item that comes again are among them.
        error, variance, squares: over all of these: errors, distances from the mean and lengths, squared and summed.
    """

    def __init__(self, job: Job, basis: str) -> None:
        self._job = job
        tasks = job._encode_tasks(basis)
        self._content = tasks[0]["content"]
        self._quantizer, _, self._radius, self._centre = basis_of(job.folder, basis, self._content)
        self._names = [task_file(task) for task in tasks]
        bad, first_bad = job._spool_bad
        counts, error, squares = [], 0.0, 0.0
        self.beyond, self._named, farthest = 0, list[int](), [0.0, 0.0]
        total = np.zeros(job.plan.dim)
        for name in self._names:
            found = self._part(name)
            counts.append(len(found.arrays["ids"]))
            bad, first_bad = bad + found.info["bad"], first_bad or found.info["first_bad"]
            error, squares = error + found.info["error"], squares + found.info["squares"]
            total += found.arrays["sum"]
            self.beyond += found.info["beyond"]
            self._named += found.info["named"]
            farthest = [max(pair) for pair in zip(farthest, found.info["farthest"], strict=True)]
        self.begins = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        rows = int(self.begins[-1])
        self.rows = rows - self.beyond
        self._times = farthest[1] / max(farthest[0], 1e-300)
        self.squares = squares
        self.error, self.variance = error, max(0.0, squares - float(np.square(total).sum()) / max(1, self.rows))
        ids = self._column("ids", np.empty(rows, np.int64))
        self.places: NDArray[np.integer[Any]] | None = None  # where rows stand; None: as in the parts
        if bool((ids[1:] > ids[:-1]).all()):
            self.ids = ids
        else:
            self.ids, places = _first_of_each(ids)
            self.places = places.astype(np.uint32 if rows < 1 << 32 else np.int64)
            del places
        del ids
        again = rows - len(self.ids)
        self.bad = bad + again
        self.first_bad = first_bad or (f"{again} items come again" if again else "")
        first = self._part(self._names[0]).arrays["codes"]
        codes = self._column("codes", np.empty((rows, first.shape[1]), first.dtype))
        self.codes = codes if self.places is None else codes[self.places]
        # Displaced items, in the order in which they are served: their parts, the vectors of some, how many come before
        # these, which of these is next, and how many were read of every part.
        self._owner: NDArray[Any] = np.empty(0, np.uint16)
        self._held = np.empty((0, job.plan.dim), np.float32)
        self._first = self._next = 0
        self._taken = np.zeros(len(self._names), np.int64)
        self._opened: dict[int, IO[bytes]] = {}

    def tell_beyond(self) -> None:
        """Warn of the rows outside of the bulk, if there are some."""
        if self.beyond:
            named = [str(item) for item in sorted(self._named)[:3]]
            pipeline.tell_beyond(self.beyond, self.rows + self.beyond, named, self._times)

    def in_bulk(self, vectors: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Say which vectors, in the quantizer's space, lie in the bulk."""
        return distances(vectors, self._centre) <= self._radius

    def _part(self, name: str) -> container.Container:
        found = need_file(self._job.folder, name)
        if found.info.get("basis") != self._content:
            raise WorkGoneError(f"'{self._job.folder / name}.part' is of other codebooks: some began anew. Run again.")
        return found

    def _column(self, name: str, out: NDArray[Any]) -> NDArray[Any]:
        for number, file in enumerate(self._names):
            out[self.begins[number] : self.begins[number + 1]] = self._part(file).arrays[name]
            self._job.progress.advance()
        return out

    def _places_of(self, rows: NDArray[np.integer[Any]]) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Return where rows stand in all parts side by side, and in which part."""
        places = (rows if self.places is None else self.places[rows]).astype(np.int64)
        owner = np.searchsorted(self.begins, places, side="right") - 1
        return places, owner.astype(np.uint16 if len(self._names) <= 1 << 16 else np.uint32)  # 16 bits sort fast

    def _pick(self, name: str, rows: NDArray[np.int64], out: NDArray[Any]) -> NDArray[Any]:
        """Return a column's values of some rows, part by part."""
        places, owner = self._places_of(rows)
        order = np.argsort(owner, kind="stable")
        for number, begin, end in _runs(owner[order]):
            here = order[begin:end]
            column = self._part(self._names[number]).arrays[name]
            out[here] = column[places[here] - self.begins[number]]
        self._job.progress.advance()
        return out

    def errors(self, rows: NDArray[np.int64], codes: NDArray[Any]) -> NDArray[np.float32]:
        """Return the errors that were noted when the items were encoded."""
        return self._pick("errors", rows, np.empty(len(rows), np.float32))

    def hashes(self, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return the hashes that were noted when the items were encoded."""
        return self._pick("hashes", rows, np.empty(len(rows), np.uint64))

    def prepare(self, rows: NDArray[np.integer[Any]]) -> None:
        """Read the parts again for the vectors of these rows, and write them down in their order."""
        kind = np.uint16 if len(self._names) <= 1 << 16 else np.uint32
        self._owner = np.empty(len(rows), kind)
        for begin in range(0, len(rows), ROWS):
            self._owner[begin : begin + ROWS] = self._places_of(rows[begin : begin + ROWS])[1]
        self._job.gather(self._wanted(rows))
        self.rewind()

    def _wanted(self, rows: NDArray[np.integer[Any]]) -> Iterator[NDArray[np.int64]]:
        """Yield the ids of every part among rows, in the order of the rows."""
        order = np.argsort(self._owner, kind="stable").astype(np.uint32 if len(rows) < 1 << 32 else np.int64)
        bounds = np.cumsum([0, *np.bincount(self._owner, minlength=len(self._names)).tolist()])
        for begin, end in pairwise(bounds.tolist()):
            yield self.ids[rows[order[begin:end]]]

    def vectors(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Return the vectors of the next rows of `prepare`, in the quantizer's space."""
        found = np.empty((len(rows), self._job.plan.dim), np.float32)
        done = 0
        while done < len(rows):
            if self._next == len(self._held):
                self._load()
            some = self._held[self._next : self._next + len(rows) - done]
            found[done : done + len(some)] = some
            done, self._next = done + len(some), self._next + len(some)
        return carried(self._quantizer, self._job.plan.feature, found)

    def _load(self) -> None:
        """
        Read the next vectors, of all parts.

        What a part has of them lies together in its file. It is read, not mapped: mapped pages would stay in this
        process.
        """
        dim = self._job.plan.dim
        first = self._first + len(self._held)
        owner = self._owner[first : first + max(LEAST_DISPLACED, self._job.limit // DISPLACED_SHARE // (4 * dim))]
        if not len(owner):
            raise IndexError("more vectors were asked for than prepared")
        if len(self._held) != len(owner):
            self._held = np.empty((0, dim), np.float32)
            self._held = np.empty((len(owner), dim), np.float32)
        order = np.argsort(owner, kind="stable")
        for part, begin, end in _runs(owner[order]):
            descriptor, offset = self._open(part)
            block = np.empty((end - begin, dim), np.float32)
            read_into(descriptor, block, offset + 4 * dim * int(self._taken[part]))
            self._held[order[begin:end]] = block
            self._taken[part] += end - begin
        self._first, self._next = first, 0
        self._job.progress.advance()

    def rewind(self) -> None:
        """Begin again with the rows of `prepare`."""
        self._first = self._next = 0
        self._held = np.empty((0, self._job.plan.dim), np.float32)
        self._taken = np.zeros(len(self._names), np.int64)

    def _open(self, part: int) -> tuple[int, int]:
        opened = self._opened.get(part)
        if opened is None:
            if len(self._opened) >= MOST_OPEN:
                self._opened.pop(next(iter(self._opened))).close()
            opened = self._opened[part] = os.fdopen(
                files.open_regular(self._job.folder / f"gather-{part}.part"), "rb", buffering=0
            )
        length = int.from_bytes(os.pread(opened.fileno(), 8, 0), "little")
        return opened.fileno(), 8 + length  # vectors are the widest array, and so the first

    def close(self) -> None:
        """Let go of files and vectors."""
        for opened in self._opened.values():
            opened.close()
        self._opened.clear()
        self._owner = self._owner[:0]
        self.rewind()


def _runs(ordered: NDArray[Any]) -> list[tuple[int, int, int]]:
    """Return the distinct values of an ascending array, and where each begins and ends."""
    begins = np.flatnonzero(np.concatenate([np.ones(min(1, len(ordered)), bool), ordered[1:] != ordered[:-1]]))
    ends = np.append(begins[1:], len(ordered))
    return list(zip(ordered[begins].tolist(), begins.tolist(), ends.tolist(), strict=True))


# --- the table -----------------------------------------------------------------------------------

FIT = "new"  # name of the codebooks that a job trains


def train_codebooks(embeddings: Embeddings, config: SemanticIdConfig, progress: Progress) -> Trained:
    """
    Return the codebooks of a job: trained on its sample, or as a run before left them.

    Raises:
        TrainingError, EmbeddingError, ConfigError: no codebooks came of it.
    """
    job: Job = embeddings.stream
    found = job.basis(FIT)
    if found is None:
        trained = pipeline.train_quantizer(embeddings.features[0].matrix, config, progress)
        noted = {
            "curve": [float(loss) for loss in trained.curve],
            "stopped_at": trained.stopped_at,
            "device": trained.device,
            "held_out": dict(trained.held_out),
        }
        bulk = {"radius": trained.radius} if math.isfinite(trained.radius) else {}
        more = {"trained": noted | bulk, **bulk}
        job.set_basis(FIT, trained.quantizer, more, centre=trained.centre, first=True)
        found = job.basis(FIT)
        if found is None:
            raise WorkGoneError(f"'{job.folder}' is gone: somebody cleaned up, or published. Run again.")
    weights = {key.removeprefix("quantizer."): np.array(array) for key, array in found.arrays.items()}
    quantizer = read_quantizer(weights, found.info["quantizer"])
    return Trained(quantizer, **found.info["trained"], centre=weights.get(CENTRE))


def train_table(
    embeddings: Embeddings,
    config: SemanticIdConfig,
    identity: Identity,
    progress: Progress,
) -> TableData:
    """
    Train codebooks on the sample of a job, encode everything, and return table 0 of a new lineage.

    As `pipeline.train_table`; `embeddings.stream` is the job.

    Raises:
        TrainingError, EmbeddingError, ConfigError: no codebooks came of it.
        StoreError: the cache has no room for the work.
    """
    from semid_dataset.codec.metrics import measure

    job: Job = embeddings.stream
    trained = train_codebooks(embeddings, config, progress)
    job.choose(FIT)
    quantizer = trained.quantizer
    tell("encoding")
    with progress.stage("encoding"):
        job.encode(FIT)
    encoded = job.encoded(FIT)
    items = len(encoded.ids)
    _report_bad(job, encoded)
    encoded.tell_beyond()
    with progress.stage("uniqueness"):
        resolution, unique = pipeline.make_unique(quantizer, encoded, encoded.codes, config)
    tell("encoded", items=items)
    with progress.stage("measuring"):
        sample = np.searchsorted(encoded.ids, embeddings.items)
        vectors = embeddings.features[0].matrix
        weights, description = state_of(quantizer, trained.centre)
        far = distances(vectors, centre_of(weights))
        if float(far.max()) > trained.radius:
            vectors, sample = vectors[far <= trained.radius], sample[far <= trained.radius]
        quality = measure(quantizer, vectors, encoded.codes, resolution, trained, rows=sample)
        quality |= {"set_aside": encoded.beyond, "rows_with_99_percent": rows_with_share(far)}
        change = _error_change(quantizer, encoded, encoded.codes, resolution)
        variance = max(encoded.variance, 0.0)
        if variance > 0:  # of all items, not of the sample
            quality["relative_mse_raw"] = encoded.error / variance
            quality["relative_mse"] = (encoded.error + change) / variance
        quality["sampled"] = len(sample)
        encoded.close()
    header = pipeline.first_header(
        identity,
        {**config.to_dict(), "unique": unique},
        description,
        quality,
        embeddings,
        items=items,
        moved=resolution.moved,
        bad_rows=encoded.bad,
        device=trained.device,
        variance=variance / max(1, encoded.rows),
        relative_error=(encoded.error + change) / variance if variance > 0 else 0.0,
        radius=trained.radius,
        progress=progress,
    )
    ids, codes = encoded.ids, resolution.codes
    del encoded, resolution
    return TableData(ids, codes, header, weights)


def choose_basis(
    embeddings: Embeddings, config: SemanticIdConfig, base: SemanticIdTable | None, progress: Progress
) -> str:
    """
    Have the codebooks ready that all parts are encoded with: those of `base`, which is extended, or new ones.

    Returns:
        Their name.

    Raises:
        As `train_codebooks`.
    """
    job: Job = embeddings.stream
    if base is None:
        train_codebooks(embeddings, config, progress)
        name = FIT
    else:
        name = base.digest[:16]
        if job.basis(name) is None:
            keys = base.keys_array
            if not isinstance(keys, np.ndarray):
                keys = np.array([number for key in keys if (number := canonical_int(key)) is not None], np.int64)
            bulk = {"radius": base.header.radius} if math.isfinite(base.header.radius) else {}
            job.set_basis(name, base.quantizer, bulk, np.sort(keys), centre=base.weights.get(CENTRE))
    job.choose(name)
    return name


class Extension:
    """
    The items of a job that a table lacks, for `lineage.grow`.

    Args:
        embeddings: a sample, whose `stream` is the job.
        config: how IDs are made.
        base: the table that is extended.
        progress: told how far it is.

    Raises:
        EmbeddingError: a part cannot be read.
        StoreError: the cache has no room for the work.
    """

    def __init__(
        self, embeddings: Embeddings, config: SemanticIdConfig, base: SemanticIdTable, progress: Progress
    ) -> None:
        job: Job = embeddings.stream
        basis = choose_basis(embeddings, config, base, progress)
        tell("encoding")
        job.encode(basis)
        self._encoded = job.encoded(basis)
        _report_bad(job, self._encoded)
        self._encoded.tell_beyond()

    @property
    def items(self) -> NDArray[np.int64]:
        """The ids of the new items, ascending."""
        return self._encoded.ids

    def encode(self, base: SemanticIdTable, missing: NDArray[np.int64]) -> novelty.Encoded:
        """Return the items at these positions as the table's quantizer encodes them."""
        from semid_dataset.codec.unique import resolve_collisions

        encoded = self._encoded
        some = _Some(encoded, missing)
        codes = encoded.codes[missing]
        if not base.header.unique:
            error = encoded.error / max(1, encoded.rows)
            return novelty.Encoded(codes, codes, 0, error, error, encoded.squares / max(1, encoded.rows))
        resolution = resolve_collisions(base.quantizer, some, codes, taken=base.codes_array)
        change = _error_change(base.quantizer, some, codes, resolution)
        encoded.close()
        rows = max(1, encoded.rows)
        error, changed, energy = encoded.error / rows, (encoded.error + change) / rows, encoded.squares / rows
        return novelty.Encoded(resolution.codes, codes, resolution.moved, changed, error, energy)


class _Some:
    """Some of the items of a job, as if they were all: others have published the rest meanwhile."""

    def __init__(self, encoded: Encoded, chosen: NDArray[np.int64]) -> None:
        self._encoded = encoded
        self._chosen = chosen

    def errors(self, rows: NDArray[np.int64], codes: NDArray[Any]) -> NDArray[np.float32]:
        return self._encoded.errors(self._chosen[rows], codes)

    def hashes(self, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        return self._encoded.hashes(self._chosen[rows])

    def prepare(self, rows: NDArray[np.integer[Any]]) -> None:
        self._encoded.prepare(self._chosen[rows])

    def vectors(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        return self._encoded.vectors(rows)

    def in_bulk(self, vectors: NDArray[np.float32]) -> NDArray[np.bool_]:
        return self._encoded.in_bulk(vectors)

    def rewind(self) -> None:
        self._encoded.rewind()


def _report_bad(job: Job, encoded: Encoded) -> None:
    if encoded.bad and job.strict:
        more = f", as are {encoded.bad - 1} more" if encoded.bad > 1 else ""
        raise EmbeddingError(f"{encoded.first_bad}{more}. Every number must be finite: correct or remove such rows.")
    if encoded.bad:
        tell(
            "bad_rows",
            bad=encoded.bad,
            rows=len(encoded.ids) + encoded.bad,
            feature=job.plan.feature,
            first=encoded.first_bad,
        )


def _error_change(quantizer: Quantizer, items: "Encoded | _Some", raw: NDArray[Any], resolution: "Resolution") -> float:
    """Return by how much uniqueness raised the squared error, summed over the items of the bulk."""
    if resolution.displaced is None:
        return 0.0
    change = 0.0
    items.rewind()
    for begin in range(0, len(resolution.displaced), 4096):
        rows = resolution.displaced[begin : begin + 4096]
        vectors = items.vectors(rows)
        near = items.in_bulk(vectors)
        vectors, rows = vectors[near], rows[near]
        for codes, sign in ((resolution.codes, 1), (raw, -1)):
            change += sign * float(np.square(vectors - quantizer.decode(codes[rows]), dtype=np.float64).sum())
    return change
