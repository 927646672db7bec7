"""
Embeddings as partitions that can be read independently of each other, each as a stream of batches.

A partition is a file of JSON lines, a range of rows of a parquet file or of an .npy, or a file of rows that was written
while something was read that can only be read from its beginning: a pickle. What it yields does not depend on the
process that reads it, so that partitions can be shared among processes and machines, and read again after a kill.

Ids come as columns (see `keys`): as integers, or, where one of them is none, all as texts.
"""

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
from semid_dataset.inputs.keys import Keys, as_keys, as_texts, items_of, taken
from semid_dataset.protocols import Format, Partition

__all__ = ["NamedItemsError", "Stream", "estimate", "partitions_of", "read_part"]

BATCH = 4 << 20  # bytes of vectors that are handed on at once

Consume = Callable[[Keys, NDArray[np.float32]], None]
Wanted = Callable[[Keys], NDArray[np.bool_]]


class NamedItemsError(EmbeddingError):
    """An item's id is no integer, and integers were expected: all ids are to be taken as they are written."""


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


def partitions_of(source: FeatureSource, path: Path, rows: int) -> tuple[Partition, list[Partition]]:
    """
    Return a file of a feature as one partition, and the partitions it can be read in, of at most `rows` rows each.

    There are none where it can be read from its beginning only, as a pickle.

    Raises:
        EmbeddingError: it cannot be read.
    """
    part = whole_file(path, source.form)
    part = replace(part, items=source.items, vectors=source.vectors, ids=source.ids)
    return part, _format(part).partitions(part, rows)


class Stream(Rows):
    """
    Rows that are checked as `Rows` checks them, and handed on in batches instead of kept.

    Args:
        feature, dim: see `Rows`.
        consume: takes keys (k,) and vectors (k, dim), valid during the call; k is at most a batch.
        wanted: says of keys whether their rows are; others may be passed over unread.
        named: whether ids are taken as they are written; else all of them must be integers.
        texts: whether integers are handed on in their spelling.
        most: rows of a batch, at most.
        own: the file that a person named: a bad row is an error; "" where none is.
    """

    def __init__(
        self,
        feature: str,
        dim: int,
        consume: Consume,
        wanted: Wanted | None = None,
        *,
        named: bool = False,
        texts: bool = False,
        most: int = 65_536,
        own: str = "",
    ) -> None:
        super().__init__(feature, dim)
        self.most: int = max(1, min(most, 65_536, BATCH // (4 * dim)))
        self.strict: bool = bool(own)
        self.rows: int = 0
        self._own = own
        self._named = named
        self._texts_wanted = named or texts
        self._consume = consume
        self.wanted: Wanted | None = None
        if wanted is not None:
            self.wanted = lambda keys: wanted(as_texts(keys) if self._texts_wanted else keys)

    @property
    def batch(self) -> int:
        """How many rows are best handed over at once."""
        return self.most

    def begin(self, dim: int, rows: int = 0) -> None:
        """Take no notice: the width is known, and rows do not stay."""

    def reject(self, what: str, count: int = 1) -> None:
        """Count rows that are none, or raise the first of them."""
        if self._own:
            place = what.removeprefix(Path(self._own).name)
            raise EmbeddingError(
                f"'{self._own}'{'' if place != what else ', '}{place}. Every number must be finite, and every row a "
                "vector of an item: correct or remove such rows."
            )
        super().reject(what, count)

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
        """Add rows as `Rows` does; every id must be an integer where ids are not taken as they are written."""
        if not self._named:
            numbers = [self._integer(key, at) for key, at in zip(keys, where, strict=True)]
            self.add(np.array(numbers, np.int64), vectors, where)
            return
        self.rows += len(keys)
        chosen = np.arange(len(keys))
        if self.wanted is not None:
            chosen = np.flatnonzero(self.wanted(as_keys([str(key) for key in keys], self.feature)))
        for begin in range(0, len(chosen), self.most):
            some = chosen[begin : begin + self.most].tolist()
            super().add_named([keys[row] for row in some], vectors[some], [where[row] for row in some])
            self._hand_on(self.most)

    def add_one(self, key: int | str, vector: NDArray[Any], where: str) -> None:
        """Add a row as `add_named` does."""
        one = key if self._named else self._integer(key, where)
        self.rows += 1
        if self.wanted is None or bool(self.wanted(as_keys([str(one)]) if self._named else np.array([one]))[0]):
            super().add_one(one, vector, where)
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
            raise NamedItemsError(f"Item {key!r:.80} of feature {self.feature} is no integer of 64 bits.")
        return number

    def _hand_on(self, least: int) -> None:
        if not self.waiting or self.waiting < least:
            return
        if self._singles:
            self._check_singles()
        texts, self._texts = self._texts, {}
        keys, matrix = self.drain()
        if not len(keys):
            return
        if texts:
            names = [texts[row] if row in texts else str(key) for row, key in enumerate(keys.tolist())]
            self._consume(as_keys(names, self.feature), matrix)
        else:
            self._consume(as_texts(keys) if self._texts_wanted else keys, matrix)


class _Listed(Stream):
    """A stream whose rows come numbered, and get the items that a list has in their places."""

    def __init__(self, stream: Stream, items: Keys) -> None:
        super().__init__(stream.feature, stream.dim, stream._consume)
        self.strict = stream.strict
        self._stream = stream
        self._items = items

    @property
    def batch(self) -> int:
        """How many rows are best handed over at once."""
        return self._stream.batch

    def add(self, keys: NDArray[np.int64], vectors: NDArray[Any], where: str | Sequence[str]) -> None:
        """Hand rows on under their items."""
        found = items_of(self._items[keys])
        if isinstance(found, list):
            self._stream.add_named(found, vectors, [where] * len(found) if isinstance(where, str) else where)
        else:
            self._stream.add(np.array(found), vectors, where)

    def reject(self, what: str, count: int = 1) -> None:
        """Count rows that are none."""
        self._stream.reject(what, count)


def read_part(part: Partition, stream: Stream, report: Callable[[int], None], *, digest: bool = False) -> str:
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
        NamedItemsError: an id is no integer, and all must be.
        LongNameError: an id cannot be held out of memory.
    """
    sink = stream
    if part.ids:
        sink = _Listed(stream, taken(parse(files.map_file(Path(part.ids))[0], part.ids, verify=False).arrays))
    found = _format(part).read(part, sink, report, digest=digest)
    stream.close()
    return found


def _format(part: Partition) -> Format:
    found: Format = FORMATS.get(part.format)
    return found


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise EmbeddingError(f"'{path}' cannot be read: {error.strerror or error}.") from error
