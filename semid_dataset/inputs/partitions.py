"""
Embeddings as partitions that can be read independently of each other, each as a stream of batches.

A partition is a file of JSON lines, a range of rows of a parquet file or of an .npy, or a file of rows that was written
while something was read that can only be read from its beginning: a pickle. What it yields does not depend on the
process that reads it, so that partitions can be shared among processes and machines, and read again after a kill.

Only items whose ids are integers come this way: eight bytes each, however many.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset import _files as files
from semid_dataset.errors import EmbeddingError
from semid_dataset.format.tensors import parse
from semid_dataset.inputs._items import INT64, canonical_int, whole_number
from semid_dataset.inputs._rows import Rows
from semid_dataset.inputs.discover import FeatureSource
from semid_dataset.inputs.formats import FORMATS, whole_file
from semid_dataset.inputs.formats.npy import matrix_width
from semid_dataset.protocols import Format, Partition

__all__ = [
    "NamedItemsError",
    "Stream",
    "array_shape",
    "estimate",
    "hash_ids",
    "read_part",
    "split_array",
    "split_source",
]

BATCH = 4 << 20  # bytes of vectors that are handed on at once

Consume = Callable[[NDArray[np.int64], NDArray[np.float32]], None]
Wanted = Callable[[NDArray[np.int64]], NDArray[np.bool_]]
Report = Callable[[int], None]


class NamedItemsError(EmbeddingError):
    """An item's id is no integer: partitions hold integers only."""


def estimate(source: FeatureSource) -> tuple[int, int]:
    """
    Return about how many rows a feature has, and how many bytes they take as float32.

    Parquet says it; JSON lines are counted in the first 4 MB; a pickle's file is as large as its vectors, about.

    Raises:
        EmbeddingError: a file cannot be read.
    """
    rows = 0
    if source.form == "jsonl" and source.files:  # of one file: looking into thousands takes long
        largest = max(source.files, key=_size)
        part = whole_file(largest, source.form)
        share = sum(map(_size, source.files)) / max(1, _size(largest))
        rows = int(_format(part).size(part, source.dim) * share)
    else:
        for path in source.files:
            part = whole_file(path, source.form)
            rows += _format(part).size(part, source.dim)
    return rows, rows * 4 * source.dim


def split_source(source: FeatureSource, rows_per_part: int) -> list[Partition]:
    """
    Return the partitions of a feature, in the order in which its rows count: of two rows of one item the first is used.

    A pickle has none until its rows are written down.

    Raises:
        EmbeddingError: a file cannot be read.
    """
    pieces: list[Partition] = []
    for path in source.files if source.form != "pickle" else ():
        part = whole_file(path, source.form)
        found = _format(part).partitions(part, rows_per_part)
        if not found:
            raise EmbeddingError(
                f"'{path}' is of the format {part.format}, which cannot be read in parts here. Nothing was read. "
                f"Write it as {source.form}, or raise memory_limit (SEMID_MEMORY_LIMIT, --memory-limit) beyond the "
                "size of the vectors."
            )
        pieces += found
    return pieces


def array_shape(path: Path) -> tuple[int, int] | None:
    """
    Return rows and columns of the matrix in an .npy file; None where it cannot be read in parts.

    Raises:
        EmbeddingError: it cannot be read, or is no such file.
    """
    part = whole_file(path, "npy")
    if part.format != "npy" or not (pieces := _format(part).partitions(part, 1 << 60)):
        return None
    return pieces[0].last, matrix_width(path)


def split_array(path: Path, ids: str, rows_per_part: int) -> list[Partition]:
    """
    Return the partitions of a matrix in an .npy file; none where its layout has to be turned first.

    Args:
        path: the file.
        ids: file with the item of every row, see `Partition`.
        rows_per_part: at most.

    Raises:
        EmbeddingError: it cannot be read, or is no such file.
    """
    part = whole_file(path, "npy")
    if part.format != "npy":
        return []
    return [replace(piece, ids=ids) for piece in _format(part).partitions(part, rows_per_part)]


class Stream(Rows):
    """
    Rows that are checked as `Rows` checks them, and handed on in batches instead of kept.

    Args:
        feature, dim: see `Rows`.
        consume: takes ids (k,) and vectors (k, dim), valid during the call; k is at most a batch.
        wanted: says of ids whether their rows are; others may be passed over unread.
    """

    def __init__(self, feature: str, dim: int, consume: Consume, wanted: Wanted | None = None) -> None:
        super().__init__(feature, dim)
        self.most = max(1, min(65_536, BATCH // (4 * dim)))
        self.wanted = wanted
        self.rows = 0
        self._consume = consume

    @property
    def batch(self) -> int:
        """How many rows are best handed over at once."""
        return self.most

    def begin(self, dim: int, rows: int = 0) -> None:
        """Take no notice: the width is known, and rows do not stay."""

    def add(self, keys: NDArray[np.int64], vectors: NDArray[Any], where: str | Sequence[str]) -> None:
        """Add rows as `Rows` does."""
        self.rows += len(keys)
        if self.wanted is not None:
            chosen = self.wanted(keys)
            if not chosen.all():
                keys, vectors, where = keys[chosen], vectors[chosen], self.feature
        for begin in range(0, len(keys), self.most):
            end = min(begin + self.most, len(keys))
            places = where if isinstance(where, str) or not begin else [where[row] for row in range(begin, end)]
            super().add(keys[begin:end], vectors[begin:end], places)
            self._hand_on(self.most)

    def add_named(self, keys: Sequence[int | str], vectors: NDArray[Any], where: Sequence[str]) -> None:
        """Add rows as `Rows` does; every id must be an integer."""
        self.add(
            np.array([self._integer(key, at) for key, at in zip(keys, where, strict=True)], np.int64), vectors, where
        )

    def add_one(self, key: int | str, vector: NDArray[Any], where: str) -> None:
        """Add a row as `Rows` does; the id must be an integer."""
        number = self._integer(key, where)
        self.rows += 1
        if self.wanted is None or bool(self.wanted(np.array([number]))[0]):
            super().add_one(number, vector, where)
            self._hand_on(self.most)

    def pass_over(self) -> None:
        """Count a row that is not wanted."""
        self.rows += 1

    def close(self) -> None:
        """Hand on what waits; say which ids were converted."""
        self._hand_on(0)
        self.ids.numbers()

    def _integer(self, key: int | str, where: str) -> int:
        number = canonical_int(key) if isinstance(key, str) else key if key in INT64 else None
        if number is None and isinstance(key, str) and (number := whole_number(key)) is not None:
            self.ids.note(repr(key), number, where)
        if number is None:
            raise NamedItemsError(
                f"Item {key!r:.80} of feature {self.feature} is no integer of 64 bits. Items with other ids are read "
                "into memory: raise memory_limit (SEMID_MEMORY_LIMIT, --memory-limit) beyond the size of the vectors."
            )
        return number

    def _hand_on(self, least: int) -> None:
        if self.waiting and self.waiting >= least:
            keys, matrix = self.drain()
            if len(keys):
                self._consume(keys, matrix)


class _Named(Stream):
    """A stream whose rows come numbered, and get the items that a list has in their places."""

    def __init__(self, stream: Stream, ids: NDArray[np.int64]) -> None:
        super().__init__(stream.feature, stream.dim, stream._consume, None)
        self._stream = stream
        self._ids = ids

    @property
    def batch(self) -> int:
        """How many rows are best handed over at once."""
        return self._stream.batch

    def add(self, keys: NDArray[np.int64], vectors: NDArray[Any], where: str | Sequence[str]) -> None:
        """Hand rows on under their items."""
        self._stream.add(np.array(self._ids[keys]), vectors, where)

    def reject(self, what: str, count: int = 1) -> None:
        """Count rows that are none."""
        self._stream.reject(what, count)


def read_part(part: Partition, stream: Stream, report: Report, *, digest: bool = False) -> str:
    """
    Send the rows of a partition through `stream`.

    Args:
        part: what to read.
        stream: where rows go; closed at the end.
        report: told, from time to time, how many bytes more were read.
        digest: read and hash the whole file too.

    Returns:
        The SHA-256 of the file, "" without `digest`.

    Raises:
        EmbeddingError: it cannot be read, or changed meanwhile.
        NamedItemsError: an id is no integer.
    """
    sink = stream
    if part.ids:
        sink = _Named(stream, parse(files.map_file(Path(part.ids))[0], part.ids, verify=False).arrays["ids"])
    found = _format(part).read(part, sink, report, digest=digest)
    stream.close()
    return found


def hash_ids(ids: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """
    Return 64 bits for every id: other ids have other bits, and which are the smallest is as if drawn at random.

    Source: the finalizer of SplitMix64, Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
    """
    start = int.from_bytes(hashlib.sha256(f"sample {seed}".encode()).digest()[:8], "little")
    mixed = ids.astype(np.int64, copy=False).view(np.uint64) + np.uint64(start)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))


def _format(part: Partition) -> Format:
    found: Format = FORMATS.get(part.format)
    return found


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise EmbeddingError(f"'{path}' cannot be read: {error.strerror or error}.") from error
