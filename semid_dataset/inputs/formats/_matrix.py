"""Arrays, as files of arrays hold them: which is the matrix, which are the items, and their rows."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from semid_dataset.errors import EmbeddingError
from semid_dataset.inputs._columns import Column, chosen
from semid_dataset.inputs._file import ForwardFile
from semid_dataset.inputs._items import of_array
from semid_dataset.inputs._rows import Places
from semid_dataset.protocols import Partition, Sink

__all__ = ["ArrayFile", "Stored", "send_matrix", "split"]

ROUNDED = {"BF16": 256, "F8_E5M2": 8}  # floats that numpy has not: up to here they are exact as whole numbers


@dataclass(frozen=True)
class Stored:
    """
    An array that lies in a file.

    Attributes:
        shape: of it.
        kind: its type, in words.
        numbers: whether they are real numbers.
        floats: whether they are floats.
        rows: reads the rows from one to another, last excluded.
        by_rows: whether rows lie one after the other; else all of it is held as soon as one is read.
        anywhere: whether reading may begin at any row; else what comes before is read too.
    """

    shape: tuple[int, ...]
    kind: str
    numbers: bool
    floats: bool
    rows: Callable[[int, int], NDArray[Any]]
    by_rows: bool = True
    anywhere: bool = True

    @property
    def width(self) -> int:
        """Numbers of a row, where it is a matrix of numbers: (items, dim), or (items, 1, dim); else 0."""
        wide = len(self.shape) >= 2 and all(size == 1 for size in self.shape[1:-1])
        return self.shape[-1] if wide and self.numbers else 0

    def all(self) -> NDArray[Any]:
        """Read all of it."""
        return self.rows(0, self.shape[0] if self.shape else 1).reshape(self.shape)


def split(whole: Partition, total: int, rows: int, size: int) -> list[Partition]:
    """Return a file of `total` rows and `size` bytes as partitions of at most `rows` rows."""
    pieces = max(1, -(-total // rows))
    return [
        replace(whole, first=total * piece // pieces, last=total * (piece + 1) // pieces, bytes=size // pieces)
        for piece in range(pieces)
    ]


class ArrayFile:
    """A format of files that hold arrays, a matrix and often the items of its rows; see `protocols.Format`."""

    alone: ClassVar[str] = ""  # where items come from in files that hold none, see `Partition.items`

    def arrays(self, file: ForwardFile) -> AbstractContextManager[Mapping[str, Stored]]:
        """Open the arrays of a file by name."""
        raise NotImplementedError

    def chosen(self, arrays: Mapping[str, Stored], part: Partition, *, own: bool) -> tuple[str | None, str]:
        """Return the names of the arrays of items (None where rows are numbered) and of vectors; raises as `chosen`."""
        columns = [
            Column(name, f"{array.kind}{list(array.shape)}", bool(array.width), bool(array.width) and array.floats)
            for name, array in arrays.items()
        ]
        return chosen(columns, Path(part.path), part.items, part.vectors, own=own)

    def size(self, whole: Partition, dim: int) -> int:
        """Return the rows of the matrix."""
        return self._matrix(whole)[1].shape[0]

    def partitions(self, whole: Partition, rows: int) -> list[Partition]:
        """Return ranges of rows; all of them where they can only be read in order; none where columns lie together."""
        whole, matrix, size = self._matrix(whole)
        if not matrix.by_rows or 0 in matrix.shape:
            return []
        return split(whole, matrix.shape[0], rows if matrix.anywhere else matrix.shape[0], size)

    def read(self, part: Partition, sink: Sink, progress: Callable[[int], None], *, digest: bool = False) -> str:
        """Send the rows of the matrix to `sink`, with the items of the array that is named as items are."""
        path = Path(part.path)
        with ForwardFile(path, hashed=digest, seekable=True) as file:
            with self.arrays(file) as arrays:
                items, vectors = self.chosen(arrays, part, own=sink.strict)
                matrix = arrays[vectors]
                last = matrix.shape[0] if part.last < 0 else part.last
                keys: NDArray[np.int64] | list[str] = np.arange(part.first, last)
                if items is not None:
                    column = arrays[items]
                    if column.shape[:1] != matrix.shape[:1]:
                        raise EmbeddingError(
                            f"'{path}' has {sum(column.shape[:1])} items in {items}, of shape {column.shape}, and "
                            f"{matrix.shape[0]} rows in {vectors}. They must be as many."
                        )
                    sink.ids.in_column(items, path)
                    keys = _items(column, f"{path}: {items} ({column.kind})", part.first, last, sink)
                send_matrix(matrix, keys, path, sink, progress, part.first)
            return file.finish()

    def _matrix(self, whole: Partition) -> tuple[Partition, Stored, int]:
        """Return a file with what names its items, its matrix, and the bytes of the matrix."""
        whole = replace(whole, items=whole.items or self.alone)
        with ForwardFile(Path(whole.path), hashed=False, seekable=True) as file, self.arrays(file) as arrays:
            matrix = arrays[self.chosen(arrays, whole, own=True)[1]]
            return whole, replace(matrix, anywhere=matrix.anywhere and not file.compression), file.size


def _items(array: Stored, where: str, first: int, last: int, sink: Sink) -> NDArray[np.int64] | list[str]:
    """Return the items of some rows; raises EmbeddingError where they are none."""
    if array.kind in ROUNDED:
        raise EmbeddingError(
            f"'{where}' holds items as {array.kind}, in which whole numbers beyond {ROUNDED[array.kind]} have become "
            "others. Write them as I64."
        )
    keys, written = of_array(array.rows(first, last), where)
    if written is not None and isinstance(keys, np.ndarray):
        sink.ids.note(written, int(keys[0]), f"'{where}'")
    return keys


def send_matrix(
    matrix: Stored,
    keys: NDArray[np.int64] | list[str],
    path: Path,
    sink: Sink,
    progress: Callable[[int], None] = lambda done: None,
    first_row: int = 0,
) -> None:
    """Send the rows of a matrix from `first_row` on, as many as there are keys, a batch at a time."""
    width = matrix.width
    if not sink.dim:
        sink.begin(width, len(keys))
    if width != sink.dim:
        sink.reject(f"{path.name}, row {first_row}: {width} numbers instead of {sink.dim}", len(keys))
        return
    for first in range(0, len(keys), sink.batch):
        some = keys[first : first + sink.batch]
        begin = first_row + first
        rows = matrix.rows(begin, begin + len(some)).reshape(len(some), width)
        places = Places(f"{path.name}, row", np.arange(begin, begin + len(some)))
        if isinstance(some, np.ndarray):
            sink.add(some, rows, places)
        else:
            sink.add_named(some, rows, places)
        progress(rows.nbytes)
