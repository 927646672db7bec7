"""
Embeddings as parts that can be read independently of each other, each as a stream of batches.

A part is a file of JSON lines, a range of rows of a parquet file or of an .npy, or a file of rows that was written
while something was read that can only be read from its beginning: a pickle. What a part yields does not depend on the
process that reads it, so that parts can be shared among processes and machines, and read again after a kill.

Only items whose ids are integers come this way: eight bytes each, however many.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from semid_dataset import _files as files
from semid_dataset.errors import EmbeddingError
from semid_dataset.format import tensors as container
from semid_dataset.inputs._rows import INT64, ForwardFile, Rows, canonical_int
from semid_dataset.inputs.discover import FeatureSource
from semid_dataset.inputs.read import PAGE_BUFFER, Places, arrow_modules, parquet_columns, read_json_lines, take_batch

__all__ = ["NamedItemsError", "Part", "Stream", "estimate", "hash_ids", "read_part", "split_array", "split_source"]

BATCH = 4 << 20  # bytes of vectors that are handed on at once
LOOK = 4 << 20  # bytes at the start of a part that tell how long its lines are

Consume = Callable[[NDArray[np.int64], NDArray[np.float32]], None]
Wanted = Callable[[NDArray[np.int64]], NDArray[np.bool_]]
Progress = Callable[[int], None]


class NamedItemsError(EmbeddingError):
    """An item's id is no integer: parts hold integers only."""


@dataclass(frozen=True)
class Part:
    """
    What can be read by itself.

    Attributes:
        form: "jsonl", "parquet", "npy" or "rows" (ids and matrix in the layout of `container`).
        path: its file.
        first, last: rows of it, last excluded; 0 and -1 are all of them.
        bytes: of the file, about, that this part stands for.
        offset: "npy": of the first row in the file; its dtype and row length follow.
        dtype, columns: "npy".
        ids: "npy": file with the ids, int64 in the layout of `container`; "" numbers them from 0.
    """

    form: Literal["jsonl", "parquet", "npy", "rows"]
    path: str
    first: int = 0
    last: int = -1
    bytes: int = 0
    offset: int = 0
    dtype: str = ""
    columns: int = 0
    ids: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Part":
        """Return the part that `to_dict` wrote."""
        return cls(**values)


def estimate(source: FeatureSource) -> tuple[int, int]:
    """
    Return about how many rows a feature has, and how many bytes they take as float32.

    Parquet says it; JSON lines are counted in the first 4 MB; a pickle's file is as large as its vectors, about.

    Raises:
        EmbeddingError: a file cannot be read.
    """
    row = 4 * source.dim
    if source.form == "parquet":
        rows = sum(sum(_groups(path)) for path in source.files)
    else:
        sizes = [_size(path) for path in source.files]
        total = sum(sizes)
        if source.form == "pickle":
            rows = total // row
        else:
            rows = 0
            for path in sorted(source.files, key=_size, reverse=True)[:1]:
                with ForwardFile(path, hashed=False) as file:
                    start = file.read()[:LOOK]
                rows = int(total / max(1.0, len(start) / max(1, start.count(b"\n"))))
    return rows, rows * row


def split_source(source: FeatureSource, rows_per_part: int) -> list[Part]:
    """
    Return the parts of a feature, in the order in which its rows count: of two rows of one item the first is used.

    A pickle has none until its rows are written down.

    Raises:
        EmbeddingError: a parquet file cannot be read.
    """
    if source.form == "jsonl":
        return [Part("jsonl", str(path), bytes=_size(path)) for path in source.files]
    parts: list[Part] = []
    for path in source.files if source.form == "parquet" else ():
        rows = sum(_groups(path))
        pieces = max(1, -(-rows // rows_per_part))
        for piece in range(pieces):
            first, last = rows * piece // pieces, rows * (piece + 1) // pieces
            parts.append(Part("parquet", str(path), first, last, _size(path) // pieces))
    return parts


def split_array(path: Path, ids: str, rows_per_part: int) -> list[Part] | None:
    """
    Return the parts of a matrix in an .npy file; None where its layout has to be turned first.

    Raises:
        StoreError: it is no regular file; a pipe would be waited for.
        OSError: it cannot be read.
    """
    with os.fdopen(files.open_regular(path, follow=True), "rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
        except ValueError:
            return None
        offset = file.tell()
    if fortran or len(shape) != 2 or dtype.kind not in "fiu" or 0 in shape:
        return None
    rows, columns = shape
    pieces = -(-rows // rows_per_part)
    return [
        Part(
            "npy",
            str(path),
            rows * piece // pieces,
            rows * (piece + 1) // pieces,
            rows * columns * dtype.itemsize // pieces,
            offset,
            dtype.str,
            columns,
            ids,
        )
        for piece in range(pieces)
    ]


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
        self.batch = max(1, min(65_536, BATCH // (4 * dim)))
        self.wanted = wanted
        self.rows = 0
        self._consume = consume

    def add(self, keys: NDArray[np.int64], vectors: NDArray[Any], where: str | Sequence[str]) -> None:
        """Add rows as `Rows` does."""
        self.rows += len(keys)
        if self.wanted is not None:
            chosen = self.wanted(keys)
            if not chosen.all():
                keys, vectors, where = keys[chosen], vectors[chosen], self.feature
        for begin in range(0, len(keys), self.batch):
            end = min(begin + self.batch, len(keys))
            places = where if isinstance(where, str) or not begin else [where[row] for row in range(begin, end)]
            super().add(keys[begin:end], vectors[begin:end], places)
            self._hand_on(self.batch)

    def add_named(self, keys: Sequence[int | str], vectors: NDArray[Any], where: Sequence[str]) -> None:
        """Add rows as `Rows` does; every id must be an integer."""
        self.add(np.array([self._integer(key) for key in keys], np.int64), vectors, where)

    def add_one(self, key: int | str, vector: NDArray[Any], where: str) -> None:
        """Add a row as `Rows` does; the id must be an integer."""
        number = self._integer(key)
        self.rows += 1
        if self.wanted is None or bool(self.wanted(np.array([number]))[0]):
            super().add_one(number, vector, where)
            self._hand_on(self.batch)

    def pass_over(self) -> None:
        """Count a row that is not wanted."""
        self.rows += 1

    def close(self) -> None:
        """Hand on what waits."""
        self._hand_on(0)

    def _integer(self, key: int | str) -> int:
        number = canonical_int(key) if isinstance(key, str) else key if key in INT64 else None
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


def read_part(part: Part, stream: Stream, on_progress: Progress, *, digest: bool = False) -> str:
    """
    Send the rows of a part through `stream`.

    Args:
        part: what to read.
        stream: where rows go; closed at the end.
        on_progress: told, from time to time, how many bytes more were read.
        digest: read and hash the whole file too.

    Returns:
        The SHA-256 of the file, "" without `digest`.

    Raises:
        EmbeddingError: it cannot be read, or changed meanwhile.
        NamedItemsError: an id is no integer.
    """
    found = READERS[part.form](part, stream, on_progress, digest)
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


# The forms.


def _read_jsonl(part: Part, stream: Stream, on_progress: Progress, digest: bool) -> str:
    with ForwardFile(Path(part.path), on_bytes=on_progress, hashed=digest) as file:
        read_json_lines(file, stream, stream.wanted, stream.pass_over)
        if digest:
            return file.digest()
        file.check_unchanged()
    return ""


def _read_parquet(part: Part, stream: Stream, on_progress: Progress, digest: bool) -> str:
    path = Path(part.path)
    arrow, parquet = arrow_modules(path)
    found = ""
    share = part.bytes / max(1, part.last - part.first)
    with ForwardFile(path, hashed=digest) as file:
        try:
            with parquet.ParquetFile(path, pre_buffer=False, buffer_size=PAGE_BUFFER) as table:
                columns = parquet_columns(table.schema_arrow, path)
                chosen, number = [], 0
                begin = -1
                for group in range(table.metadata.num_row_groups):
                    rows = table.metadata.row_group(group).num_rows
                    if number < part.last and number + rows > part.first:
                        chosen.append(group)
                        begin = number if begin < 0 else begin
                    number += rows
                number = begin
                batches = table.iter_batches(stream.batch, row_groups=chosen, columns=columns, use_threads=False)
                for batch in batches if chosen else ():
                    skip = max(0, part.first - number)
                    count = min(batch.num_rows, part.last - number) - skip
                    if count > 0:
                        take_batch(batch.slice(skip, count), stream, f"{path.name}, row", number + skip)
                        on_progress(int(count * share))
                    number += batch.num_rows
                    if number >= part.last:
                        break
        except (arrow.ArrowException, OSError, ValueError) as error:
            if isinstance(error, EmbeddingError):
                raise
            raise EmbeddingError(f"'{path}' cannot be read as parquet: {error}.") from error
        arrow.default_memory_pool().release_unused()
        if digest:
            found = file.digest()
        file.check_unchanged()
    return found


def _read_npy(part: Part, stream: Stream, on_progress: Progress, digest: bool) -> str:
    path = Path(part.path)
    dtype = np.dtype(part.dtype)
    row = dtype.itemsize * part.columns
    ids = container.parse(files.map_file(Path(part.ids))[0], part.ids, verify=False).arrays["ids"] if part.ids else None
    with ForwardFile(path, hashed=digest) as file:
        for first in range(part.first, part.last, stream.batch):
            last = min(first + stream.batch, part.last)
            raw = file.at(part.offset + first * row, (last - first) * row)
            keys = np.arange(first, last) if ids is None else np.array(ids[first:last])
            stream.add(
                keys,
                np.frombuffer(raw, dtype).reshape(-1, part.columns),
                Places(f"{path.name}, row", np.arange(first, last)),
            )
            on_progress(len(raw))
        if digest:
            return file.digest()
        file.check_unchanged()
    return ""


def _read_rows(part: Part, stream: Stream, on_progress: Progress, digest: bool) -> str:
    arrays = container.parse(files.map_file(Path(part.path))[0], part.path).arrays
    for first in range(0, len(arrays["ids"]), stream.batch):
        keys, vectors = arrays["ids"][first : first + stream.batch], arrays["vectors"][first : first + stream.batch]
        stream.add(keys, vectors, part.path)
        on_progress(vectors.nbytes)
    return ""


READERS: dict[str, Callable[[Part, Stream, Progress, bool], str]] = {
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
    "npy": _read_npy,
    "rows": _read_rows,
}


def _groups(path: Path) -> list[int]:
    """Return the rows of every row group of a parquet file."""
    arrow, parquet = arrow_modules(path)
    with ForwardFile(path, hashed=False):  # it refuses what is no regular file
        try:
            with parquet.ParquetFile(path, pre_buffer=False) as table:
                return [table.metadata.row_group(group).num_rows for group in range(table.metadata.num_row_groups)]
        except (arrow.ArrowException, OSError, ValueError) as error:
            raise EmbeddingError(f"'{path}' cannot be read as parquet: {error}.") from error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise EmbeddingError(f"'{path}' cannot be read: {error.strerror or error}.") from error
