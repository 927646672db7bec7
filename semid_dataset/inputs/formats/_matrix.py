"""Whole arrays, as files of arrays hold them: which is the matrix, which are the items, and their rows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset.errors import EmbeddingError
from semid_dataset.inputs._columns import Column, chosen
from semid_dataset.inputs._items import of_array
from semid_dataset.inputs._rows import Places
from semid_dataset.protocols import Partition, Sink

__all__ = ["Stored", "send_arrays", "send_matrix"]


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
    """

    shape: tuple[int, ...]
    kind: str
    numbers: bool
    floats: bool
    rows: Callable[[int, int], NDArray[Any]]

    @property
    def width(self) -> int:
        """Numbers of a row, where it is a matrix of numbers: (items, dim), or (items, 1, dim); else 0."""
        wide = len(self.shape) >= 2 and all(size == 1 for size in self.shape[1:-1])
        return self.shape[-1] if wide and self.numbers else 0

    def all(self) -> NDArray[Any]:
        """Read all of it."""
        return self.rows(0, self.shape[0]) if self.shape else self.rows(0, 1)


def send_arrays(arrays: Mapping[str, Stored], part: Partition, sink: Sink) -> None:
    """
    Send the rows of named arrays: those of the matrix, with the items of the array that is named as items are.

    Raises:
        EmbeddingError: there is no such matrix, or no such items, or there are not as many.
    """
    path = Path(part.path)
    columns = [
        Column(name, f"{array.kind}{list(array.shape)}", bool(array.width), bool(array.width) and array.floats)
        for name, array in arrays.items()
    ]
    items, vectors = chosen(columns, path, part.items, part.vectors, own=sink.strict)
    matrix = arrays[vectors]
    keys: NDArray[np.int64] | list[str] = np.arange(matrix.shape[0])
    if items is not None:
        where = f"{path}: {items} ({arrays[items].kind})"
        keys, written = of_array(arrays[items].all(), where)
        if written is not None and isinstance(keys, np.ndarray):
            sink.ids.note(written, int(keys[0]), f"'{where}'")
    if len(keys) != matrix.shape[0]:
        raise EmbeddingError(
            f"'{path}' has {len(keys)} items in {items} and {matrix.shape[0]} rows in {vectors}. They must be as many."
        )
    send_matrix(matrix, keys, path, sink)


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
