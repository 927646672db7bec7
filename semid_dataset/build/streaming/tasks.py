"""
What is made of one part: a file in a work folder.

A file is written whole or not at all, with a checksum and with what it was made from. Nothing in it depends on who made
it, so that any process can do any part, twice if need be.
"""

import errno
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset import _files as files
from semid_dataset._messages import logger
from semid_dataset.cache.notes import items, one_of, read_note, record, text, whole
from semid_dataset.codec.kinds import centre_of, code_dtype, encode, read_quantizer, squared_errors, vectors_of
from semid_dataset.errors import CorruptTableError, EmbeddingError, NoRoomError, StoreError, WorkGoneError
from semid_dataset.features import FeatureMatrix
from semid_dataset.format import tensors as container
from semid_dataset.inputs.formats import FORMATS, whole_file
from semid_dataset.inputs.partitions import Report, Stream, hash_ids, read_part
from semid_dataset.protocols import Format, Partition, Quantizer

__all__ = [
    "Plan",
    "Task",
    "basis_content",
    "basis_of",
    "carried",
    "need_file",
    "perform",
    "read_file",
    "read_into",
    "task_file",
    "write_file",
]

LAYOUT = 3  # of the files in a work folder

READ = 4 << 20  # bytes at once
MOST_BASES = 2  # that a process keeps
PLAN_FILE = "plan.json"
MOST_PLAN = 1 << 25  # bytes: some 200 for each of 150,000 parts
COUNT = whole(0, 1 << 62)
PATH = text("(?s:.{1,4096})")
PLAN = record(
    {
        "layout": one_of([LAYOUT]),
        "feature": text("[A-Za-z0-9-]{0,32}"),
        "dim": whole(1, 1 << 24),
        "seed": whole(0, (1 << 63) - 1),
        "rows": COUNT,
        "parts": items(
            record(
                {
                    "format": text("[a-z0-9_.-]{1,64}"),
                    "path": PATH,
                    "first": COUNT,
                    "last": whole(-1, 1 << 62),
                    "bytes": COUNT,
                    "items": text("(?s:.{0,4096})"),
                    "vectors": text("(?s:.{0,4096})"),
                    "ids": text("(?s:.{0,4096})"),
                }
            ),
            most=200_000,
        ),
    }
)

Task = Mapping[str, Any]
Basis = tuple[Quantizer, NDArray[np.int64] | None, float, NDArray[Any]]


@dataclass(frozen=True)
class Plan:
    """What all processes of a job know."""

    feature: str
    dim: int
    seed: int
    rows: int  # about
    parts: tuple[Partition, ...]

    def to_json(self) -> bytes:
        """Return it as JSON text."""
        values = {"layout": LAYOUT, "feature": self.feature, "dim": self.dim, "seed": self.seed, "rows": self.rows}
        return json.dumps({**values, "parts": [part.to_dict() for part in self.parts]}).encode()

    @classmethod
    def read(cls, folder: Path) -> "Plan":
        """
        Return the plan of a work folder.

        Raises:
            WorkGoneError: there is none that can be used.
        """
        values = read_note(folder / PLAN_FILE, PLAN, limit=MOST_PLAN)
        if values is None:
            raise WorkGoneError(f"'{folder / PLAN_FILE}' is gone or none of ours. It was not used. Run again.")
        return cls(
            values["feature"],
            values["dim"],
            values["seed"],
            values["rows"],
            tuple(Partition.from_dict(part) for part in values["parts"]),
        )


def perform(folder: Path, task: Task, report: Report = lambda done: None) -> None:
    """
    Make one file of a work folder.

    Args:
        folder: the work folder, with its plan.
        task: "stage", and what that stage needs, of JSON types.
        report: told how many bytes of the source more are done.

    Raises:
        EmbeddingError: the part cannot be read, or holds what no part may hold.
        StoreError: there is no room for the file.
        OSError: it could not be written.
    """
    _STAGES[task["stage"]](folder, task, report)


def _spool(folder: Path, task: Task, report: Report) -> None:
    """Write the rows of a pickle down as parts."""
    path, dim, most = Path(task["path"]), int(task["dim"]), int(task["rows"])
    counts: list[int] = []
    waiting: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []
    held = 0

    def write() -> None:
        nonlocal held
        ids = np.concatenate([keys for keys, _ in waiting])
        vectors = np.concatenate([block for _, block in waiting])
        waiting.clear()
        held = 0
        write_file(folder, f"rows-{len(counts)}", {"ids": ids, "vectors": vectors}, {})
        counts.append(len(ids))

    def consume(keys: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        nonlocal held
        waiting.append((keys.copy(), vectors.copy()))
        held += len(keys)
        if held >= most:
            write()

    stream = Stream(task["feature"], dim, consume)
    stream.most = min(stream.most, most)
    part = whole_file(path, "pickle")
    reader: Format = FORMATS.get(part.format)
    digest = reader.read(part, stream, report, digest=True)
    stream.close()
    if waiting:
        write()
    info = {
        "counts": counts,
        "bad": stream.bad,
        "first_bad": stream.first_bad,
        "sha256": digest,
        "basis": task["basis"],
    }
    write_file(folder, "spool", {}, info)


def _sample(folder: Path, task: Task, report: Report) -> None:
    """Keep the rows whose ids have small hashes."""
    plan = _plan_of(folder)
    part, below = plan.parts[task["part"]], np.uint64(task["below"])
    ids: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    rows: list[NDArray[np.float32]] = [np.empty((0, plan.dim), np.float32)]

    def consume(keys: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        ids.append(keys.copy())
        rows.append(vectors.copy())

    stream = Stream(plan.feature, plan.dim, consume, lambda keys: hash_ids(keys, plan.seed) <= below)
    digest = read_part(part, stream, report, digest=part.first == 0)
    info = {"rows": stream.rows, "sha256": digest, "basis": f"{task['below']:x}"}
    write_file(folder, task_file(task), {"ids": np.concatenate(ids), "vectors": np.concatenate(rows)}, info)


def _encode(folder: Path, task: Task, report: Report) -> None:
    """Encode a part, but for the items that are known already."""
    from semid_dataset.codec.bulk import distances
    from semid_dataset.codec.unique import vector_hashes

    plan = _plan_of(folder)
    quantizer, known, radius, centre = basis_of(folder, task["basis"], task.get("content"))
    levels = len(quantizer.codebook_sizes)
    ids: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    codes: list[NDArray[Any]] = [np.empty((0, levels), code_dtype(quantizer.codebook_sizes))]
    errors_: list[NDArray[np.float32]] = [np.empty(0, np.float32)]
    hashes: list[NDArray[np.uint64]] = [np.empty(0, np.uint64)]
    total = np.zeros(plan.dim)
    squares = missed = 0.0
    beyond: list[int] = []  # items outside of the bulk: what is measured is measured without them
    farthest = [0.0, 0.0]  # distance from the centre, in the bulk and beyond

    def consume(keys: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        nonlocal squares, missed
        if known is not None:
            new = ~container.is_in(keys, known)
            keys, vectors = keys[new], vectors[new]
        if not len(keys):
            return
        vectors = carried(quantizer, plan.feature, vectors)
        found = encode(quantizer, vectors)
        ids.append(keys.copy())
        codes.append(found)
        errors_.append(squared_errors(quantizer, vectors, found))
        hashes.append(vector_hashes(vectors))
        far = distances(vectors, centre)
        if float(far.max()) > radius:
            near = far <= radius
            beyond.extend(keys[~near].tolist())
            farthest[1] = max(farthest[1], float(far.max()))
            far, vectors, found = far[near], vectors[near], found[near]
        farthest[0] = max(farthest[0], float(far.max(initial=0.0)))
        total[:] += vectors.sum(0, dtype=np.float64)
        squares += float(np.square(vectors, dtype=np.float64).sum())
        missed += float(np.square(vectors - quantizer.decode(found), dtype=np.float64).sum())

    stream = Stream(plan.feature, plan.dim, consume)
    with _one_thread():
        read_part(plan.parts[task["part"]], stream, report)
    arrays = {
        "ids": np.concatenate(ids),
        "codes": np.concatenate(codes),
        "errors": np.concatenate(errors_),
        "hashes": np.concatenate(hashes),
        "sum": total,
    }
    info = {
        "bad": stream.bad,
        "first_bad": stream.first_bad,
        "squares": squares,
        "error": missed,
        "beyond": len(beyond),
        "named": beyond[:3],
        "farthest": farthest,
        "basis": task.get("content", task["basis"]),
    }
    write_file(folder, task_file(task), arrays, info)


def _gather(folder: Path, task: Task, report: Report) -> None:
    """Keep the vectors of the items that are listed, at the places that are listed with them."""
    plan = _plan_of(folder)
    listed = need_file(folder, f"wanted-{task['part']}").arrays
    wanted, places = np.array(listed["ids"]), np.array(listed["places"])
    vectors = np.zeros((len(wanted), plan.dim), np.float32)
    there = np.zeros(len(wanted), bool)

    def consume(keys: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
        at, first = np.unique(np.searchsorted(wanted, keys), return_index=True)
        new = ~there[at]
        vectors[places[at[new]]] = rows[first[new]]
        there[at] = True

    stream = Stream(plan.feature, plan.dim, consume, lambda keys: container.is_in(keys, wanted))
    read_part(plan.parts[task["part"]], stream, report)
    if not there.all():
        raise EmbeddingError(f"'{plan.parts[task['part']].path}' has lost items since it was encoded. Run again.")
    write_file(folder, task_file(task), {"vectors": vectors}, {"basis": task["basis"]})


_STAGES: dict[str, Callable[[Path, Task, Report], None]] = {
    "spool": _spool,
    "sample": _sample,
    "encode": _encode,
    "gather": _gather,
}


def task_file(task: Task) -> str:
    """Return the name of the file that a task makes."""
    return "spool" if task["stage"] == "spool" else f"{task['stage']}-{task['part']}"


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch compute in this thread alone: processes share the cores, and sums are never split in another way."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _plan_of(folder: Path) -> Plan:
    # A plan is replaced, never written over: another one has another inode while the last is there, and another ctime.
    found = (folder / PLAN_FILE).lstat()
    return _cached_plan(folder, (found.st_ino, found.st_ctime_ns, found.st_mtime_ns, found.st_size))


@lru_cache(maxsize=2)
def _cached_plan(folder: Path, version: tuple[int, ...]) -> Plan:
    return Plan.read(folder)


def basis_of(folder: Path, name: str, content: str | None = None) -> Basis:
    """
    Return the quantizer that encodes, the items that are not to be encoded, ascending, where its bulk ends, and the
    bulk's centre.

    Args:
        folder: the work folder.
        name: of the basis.
        content: what it must hold, as `basis_content` says it; None takes whatever is there.

    Raises:
        WorkGoneError: it is gone, or holds something else by now.
    """
    found = need_file(folder, f"basis-{name}")
    there = found.info.get("content")
    if content is not None and there != content:
        raise WorkGoneError(
            f"'{folder / f'basis-{name}'}.part' holds other codebooks by now: somebody began anew. Run again."
        )
    # Kept by what they hold, never by a name: a second training in one process may use the name, and the folder, again.
    if there is None or there not in _bases:
        weights = {key.removeprefix("quantizer."): array for key, array in found.arrays.items() if key != "known"}
        quantizer = read_quantizer(weights, found.info["quantizer"])
        radius = float(found.info.get("radius", math.inf))
        basis = quantizer, found.arrays.get("known"), radius, centre_of(weights)
        if there is None:
            return basis
        while len(_bases) >= MOST_BASES:
            _bases.pop(next(iter(_bases)), None)
        _bases[there] = basis
    return _bases[there]


_bases: dict[str, Basis] = {}  # by content, the oldest first


def basis_content(arrays: Mapping[str, NDArray[Any]], description: Mapping[str, Any]) -> str:
    """Return the SHA-256 of what a basis holds, as hexadecimal digits."""
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"\0{name} {array.dtype} {array.shape}\0".encode())
        digest.update(array.data)
    return digest.hexdigest()


def carried(quantizer: Quantizer, feature: str, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return vectors of a feature in the space of a quantizer: behaviour may have shaped another one."""
    return vectors_of(quantizer, (FeatureMatrix(feature, np.arange(len(vectors)), vectors),), len(vectors))


def write_file(
    folder: Path, name: str, arrays: Mapping[str, NDArray[Any]], info: Mapping[str, Any], *, first: bool = False
) -> None:
    """
    Write a file of a work folder, whole or not at all.

    It is not synced: the checksum tells what a power loss left of it.

    Args:
        folder, name, arrays, info: where, and what.
        first: leave a whole one that lies there: who else works here goes on with it.

    Raises:
        StoreError: there is no room for it.
        OSError: it could not be written.
    """
    try:
        buffers = container.serialize(arrays, info)
        if first and (files.publish_first(folder, f"{name}.part", buffers) or read_file(folder, name) is not None):
            return
        files.replace_file(folder / f"{name}.part", buffers, sync=False)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        needed = sum(array.nbytes for array in arrays.values())
        raise NoRoomError(
            f"'{folder}' has no room for {needed:,} bytes more ({error.strerror}). What is finished stays there: free "
            "some space and run again, or let the cache lie elsewhere (SEMID_CACHE_DIR)."
        ) from error


def read_file(folder: Path, name: str, *, verify: bool = True) -> container.Container | None:
    """Return a file of the work folder; None where there is none that is whole."""
    path = folder / f"{name}.part"
    try:
        return container.parse(files.map_file(path)[0], str(path), verify=verify)
    except FileNotFoundError:
        return None
    except (CorruptTableError, StoreError) as error:  # StoreError: somebody put something there that is no file of ours
        logger.debug("made again: %s", error)
        return None


def need_file(folder: Path, name: str) -> container.Container:
    """
    Return a file of the work folder that was there before; its checksum was compared then.

    Raises:
        WorkGoneError: it is gone.
    """
    found = read_file(folder, name, verify=False)
    if found is None:
        raise WorkGoneError(f"'{folder / name}.part' is gone: somebody cleaned up, or published. Run again.")
    return found


def read_into(descriptor: int, array: NDArray[Any], offset: int) -> None:
    """
    Fill an array from a place in a file.

    Raises:
        WorkGoneError: the file is shorter.
        OSError: the disk says no.
    """
    flat = array.reshape(-1).view(np.uint8)
    done = 0
    while done < len(flat):
        found = os.pread(descriptor, min(len(flat) - done, READ), offset + done)
        if not found:
            raise WorkGoneError("A file of the work folder became shorter. Run again.")
        flat[done : done + len(found)] = np.frombuffer(found, np.uint8)
        done += len(found)
