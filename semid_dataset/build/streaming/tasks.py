"""
What is made of one part: a file in a work folder (see `workfolder`).

    spool     the rows of a file that can be read from its beginning only are written down as parts
    sample    the rows whose items have small hashes
    sort      several features: the rows of a part in order of their items, in runs of bounded size
    encode    ids, codes and errors of a part; of several features, of a range of items, joined out of the runs
    gather    the vectors of items that have to yield

Any process can do any of them, and what is made is the same.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset.build.streaming.workfolder import (
    Basis,
    Plan,
    PlannedFeature,
    basis_of,
    need_file,
    plan_of,
    write_file,
)
from semid_dataset.codec.kinds import code_dtype, encode, squared_errors, vectors_of
from semid_dataset.errors import EmbeddingError
from semid_dataset.features import FeatureMatrix
from semid_dataset.format.tensors import is_in
from semid_dataset.inputs.keys import Keys, first_of_each, hash_items, joined, listed, stored, taken
from semid_dataset.inputs.partitions import Stream, read_part
from semid_dataset.protocols import Partition

__all__ = ["Task", "perform", "task_file"]

Task = Mapping[str, Any]
Report = Callable[[int], None]


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


def task_file(task: Task) -> str:
    """Return the name of the file that a task makes."""
    return f"{task['stage']}-{task['part']}"


class _Runs:
    """Rows that are collected and written down whenever there are enough of them, as `<name>-<number>`."""

    def __init__(self, folder: Path, name: str, most: int, *, ordered: bool) -> None:
        self.counts: list[int] = []
        self.again = 0  # rows of an item that came before in the run
        self._folder = folder
        self._name = name
        self._most = most
        self._ordered = ordered
        self._waiting: list[tuple[Keys, NDArray[np.float32]]] = []
        self._held = 0

    def add(self, keys: Keys, vectors: NDArray[np.float32]) -> None:
        """Take rows; they are copied."""
        self._waiting.append((keys.copy(), vectors.copy()))
        self._held += len(keys)
        if self._held >= self._most:
            self.write()

    def write(self) -> None:
        """Write down what is waiting; in order of the items, each once, where that was asked for."""
        if not self._held:
            return
        keys = joined([some for some, _ in self._waiting])
        vectors = np.concatenate([some for _, some in self._waiting])
        self._waiting.clear()
        self._held = 0
        if self._ordered:
            distinct, places = first_of_each(keys)
            self.again += len(keys) - len(distinct)
            keys, vectors = distinct, vectors[places]
        write_file(self._folder, f"{self._name}-{len(self.counts)}", {**stored(keys), "vectors": vectors}, {})
        self.counts.append(len(keys))


def _spool(folder: Path, task: Task, report: Report) -> None:
    """Write the rows of a file down as parts."""
    runs = _Runs(folder, f"rows-{task['part']}", int(task["rows"]), ordered=False)
    rows, own = int(task["rows"]), task["own"]
    stream = Stream(task["feature"], int(task["dim"]), runs.add, named=task["named"], most=rows, own=own)
    digest = read_part(Partition.from_dict(task["partition"]), stream, report, digest=True)
    runs.write()
    info = {
        "counts": runs.counts,
        "bad": stream.bad,
        "first_bad": stream.first_bad,
        "ids": stream.ids.seen,
        "sha256": digest,
        "basis": task["basis"],
    }
    write_file(folder, task_file(task), {}, info)


def _sample(folder: Path, task: Task, report: Report) -> None:
    """Keep the rows whose items have small hashes."""
    plan = plan_of(folder)
    part, below = plan.parts[task["part"]], np.uint64(task["below"])
    feature = plan.feature_of(task["part"])
    ids: list[Keys] = []
    rows: list[NDArray[np.float32]] = [np.empty((0, feature.dim), np.float32)]

    def consume(keys: Keys, vectors: NDArray[np.float32]) -> None:
        ids.append(keys.copy())
        rows.append(vectors.copy())

    def wanted(keys: Keys) -> NDArray[np.bool_]:
        return np.asarray(hash_items(keys, plan.seed) <= below)

    stream = Stream(feature.id, feature.dim, consume, wanted, named=feature.named, own=_own(feature, part))
    digest = read_part(part, stream, report, digest=part.first == 0)
    info = {"rows": stream.rows, "ids": stream.ids.seen, "sha256": digest, "basis": task["basis"]}
    write_file(folder, task_file(task), {**stored(joined(ids)), "vectors": np.concatenate(rows)}, info)


def _sort(folder: Path, task: Task, report: Report) -> None:
    """Write the rows of a part down in runs, each in order of its items."""
    plan = plan_of(folder)
    feature = plan.feature_of(task["part"])
    part = plan.parts[task["part"]]
    runs = _Runs(folder, f"run-{task['part']}", int(task["rows"]), ordered=True)
    stream = Stream(feature.id, feature.dim, runs.add, named=feature.named, texts=plan.texts, own=_own(feature, part))
    read_part(part, stream, report)
    runs.write()
    info = {
        "counts": runs.counts,
        "bad": stream.bad + runs.again,
        "first_bad": stream.first_bad or (f"{runs.again} items come again" if runs.again else ""),
        "basis": task["basis"],
    }
    write_file(folder, task_file(task), {}, info)


def _encode(folder: Path, task: Task, report: Report) -> None:
    """Encode a part, but for the items that are known already."""
    from semid_dataset.build.itemset import Totals
    from semid_dataset.codec.unique import vector_hashes

    plan = plan_of(folder)
    basis = basis_of(folder, task["codebooks"], task["content"])
    quantizer = basis.quantizer
    totals = Totals(quantizer, basis.radius, basis.centre)
    ids: list[Keys] = []
    codes: list[NDArray[Any]] = [np.empty((0, len(quantizer.codebook_sizes)), code_dtype(quantizer.codebook_sizes))]
    errors: list[NDArray[np.float32]] = [np.empty(0, np.float32)]
    hashes: list[NDArray[np.uint64]] = [np.empty(0, np.uint64)]

    def consume(keys: Keys, vectors: NDArray[np.float32]) -> None:
        found = encode(quantizer, vectors)
        ids.append(keys.copy())
        codes.append(found)
        errors.append(squared_errors(quantizer, vectors, found))
        hashes.append(vector_hashes(vectors))
        totals.add(vectors, found)

    known = basis.known
    wanted = None if known is None else lambda keys: ~is_in(keys, known)
    bad, first_bad = _fused_rows(folder, plan, task, basis, consume, report, wanted)
    every = joined(ids)
    arrays = {
        **stored(every),
        "codes": np.concatenate(codes),
        "errors": np.concatenate(errors),
        "hashes": np.concatenate(hashes),
        **totals.arrays(),
    }
    named = listed(every[totals.beyond_rows])
    info = {"bad": bad, "first_bad": first_bad, "named": named, "basis": task["content"]}
    write_file(folder, task_file(task), arrays, info)


def _gather(folder: Path, task: Task, report: Report) -> None:
    """Keep the vectors of the items that are listed, at the places that are listed with them."""
    plan = plan_of(folder)
    basis = basis_of(folder, task["codebooks"], task["content"])
    listed = need_file(folder, f"wanted-{task['part']}").arrays
    wanted, places = np.array(taken(listed)), np.array(listed["places"])
    vectors = np.zeros((len(wanted), basis.quantizer.dim), np.float32)
    there = np.zeros(len(wanted), bool)

    def consume(keys: Keys, rows: NDArray[np.float32]) -> None:
        at, first = np.unique(np.searchsorted(wanted, keys), return_index=True)
        new = ~there[at]
        vectors[places[at[new]]] = rows[first[new]]
        there[at] = True

    _fused_rows(folder, plan, task, basis, consume, report, lambda keys: is_in(keys, wanted))
    if not there.all():
        raise EmbeddingError(f"Part {task['part']} in '{folder}' has lost items since it was encoded. Run again.")
    write_file(folder, task_file(task), {"vectors": vectors}, {"basis": task["basis"]})


_STAGES: dict[str, Callable[[Path, Task, Report], None]] = {
    "spool": _spool,
    "sample": _sample,
    "sort": _sort,
    "encode": _encode,
    "gather": _gather,
}


def _own(feature: PlannedFeature, part: Partition) -> str:
    return part.path if feature.own else ""


# --- rows of items, with all their features ---


def _fused_rows(
    folder: Path,
    plan: Plan,
    task: Task,
    basis: Basis,
    consume: Callable[[Keys, NDArray[np.float32]], None],
    report: Report,
    wanted: Callable[[Keys], NDArray[np.bool_]] | None,
) -> tuple[int, str]:
    """
    Hand on items and their vectors in the quantizer's space: those of a part, or of a range of items.

    Returns:
        How many rows were bad, and where the first was; of a range, how many came again in another run.
    """
    quantizer = basis.quantizer
    if plan.joined:
        features, keys, again = _joined_range(folder, plan, task, wanted, report)
        if len(keys):
            consume(keys, vectors_of(quantizer, features, len(keys)))
        return again, f"{again} items come again" if again else ""
    (feature,) = plan.features

    def carried(keys: Keys, vectors: NDArray[np.float32]) -> None:
        # Behaviour may have shaped another space than the feature's.
        every = (FeatureMatrix(feature.id, np.arange(len(keys)), vectors),)
        consume(keys, vectors_of(quantizer, every, len(keys)))

    part = plan.parts[task["part"]]
    own = _own(feature, part)
    stream = Stream(feature.id, feature.dim, carried, wanted, named=feature.named, texts=plan.texts, own=own)
    read_part(part, stream, report)
    return stream.bad, stream.first_bad


def _joined_range(
    folder: Path,
    plan: Plan,
    task: Task,
    wanted: Callable[[Keys], NDArray[np.bool_]] | None,
    report: Report,
) -> tuple[list[FeatureMatrix], Keys, int]:
    """
    Bring together what the runs hold of a range of items.

    Returns:
        The features, over positions in the items; the items, ascending; how many rows were of an item that an earlier
        run of the feature has.
    """
    bounds = taken(need_file(folder, "ranges").arrays)
    number, again = task["part"], 0
    low, high = (bounds[number - 1] if number else None), (bounds[number] if number < len(bounds) else None)
    found: list[tuple[PlannedFeature, Keys, NDArray[np.float32]]] = []
    for feature in plan.features:
        keys: list[Keys] = []
        vectors: list[NDArray[np.float32]] = [np.empty((0, feature.dim), np.float32)]
        for part in range(feature.first, feature.last):
            for run in range(len(need_file(folder, f"sort-{part}").info["counts"])):
                arrays = need_file(folder, f"run-{part}-{run}").arrays
                ids = taken(arrays)
                begin = 0 if low is None else int(np.searchsorted(ids, low))
                end = len(ids) if high is None else int(np.searchsorted(ids, high))
                if begin < end:
                    keys.append(np.array(ids[begin:end]))
                    vectors.append(np.array(arrays["vectors"][begin:end]))
                    report(vectors[-1].nbytes)
        every, places = first_of_each(joined(keys))
        again += sum(map(len, keys)) - len(every)
        if wanted is not None:
            chosen = wanted(every)
            every, places = every[chosen], places[chosen]
        found.append((feature, every, np.concatenate(vectors)[places]))
    items = np.unique(joined([keys for _, keys, _ in found]))
    features = [
        FeatureMatrix(feature.id, np.searchsorted(items, keys), matrix) for feature, keys, matrix in found if len(keys)
    ]
    return features, items, again
