"""
Parquet: the only reader of it, for vectors, for lists of items, and for IDs that others wrote.

Batches of rows, one after the other, from wherever a partition begins: a row group is often a whole file.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from semid_dataset.errors import EmbeddingError
from semid_dataset.inputs._file import HEAD, ForwardFile, something_else
from semid_dataset.inputs.formats._arrow import arrow_errors, arrow_module, begin, choose, take_batch
from semid_dataset.inputs.formats._matrix import split
from semid_dataset.protocols import Partition, Sink

__all__ = ["Parquet", "read_table"]

PAGE_BUFFER = 1 << 20  # bytes, for a column of a file
FIRST_ROWS = 16  # that tell the width of vectors


class Parquet:
    """See `protocols.Format`."""

    name: ClassVar[str] = "parquet"
    suffixes: ClassVar[tuple[str, ...]] = (".parquet", ".pq")
    starts: ClassVar[bytes] = rb"PAR1"

    def size(self, whole: Partition, dim: int) -> int:
        """Return how many rows a file says it has."""
        return self._rows(whole)[0]

    def partitions(self, whole: Partition, rows: int) -> list[Partition]:
        """Return ranges of rows."""
        total, size = self._rows(whole)
        return split(whole, total, rows, size)

    def read(self, part: Partition, sink: Sink, progress: Callable[[int], None], *, digest: bool = False) -> str:
        """Send the rows of a range to `sink`."""
        path = Path(part.path)
        with ForwardFile(path, hashed=digest, seekable=True) as file:
            with _opened(file) as table:
                taken = choose(table.schema_arrow, part, sink)
                if not sink.dim:
                    for batch in table.iter_batches(FIRST_ROWS, columns=[taken.vectors], use_threads=False):
                        begin(batch, taken.vectors, sink, path)
                        break
                last = table.metadata.num_rows if part.last < 0 else part.last
                share = (part.bytes or file.size) / max(1, last - part.first)
                for number, batch in _batches(table, part.first, last, sink.batch, taken.columns):
                    take_batch(batch, taken, sink, path, number)
                    progress(int(batch.num_rows * share))
            arrow_module("pyarrow", path, "parquet").default_memory_pool().release_unused()
            return file.finish()

    def _rows(self, whole: Partition) -> tuple[int, int]:
        """Return the rows of a file, and its bytes."""
        with ForwardFile(Path(whole.path), hashed=False, seekable=True) as file, _opened(file) as table:
            return int(table.metadata.num_rows), file.size


def read_table(path: Path, columns: Callable[[Any], list[str]]) -> Any:
    """
    Return a table of Arrow with the columns that `columns` chooses of the schema.

    Raises:
        EmbeddingError: the file cannot be read as parquet; and what `columns` raises.
    """
    with ForwardFile(path, hashed=False, seekable=True) as file:
        foreign = something_else(file.at(0, min(HEAD, file.size)), path)
        if foreign is not None:
            raise EmbeddingError(foreign)
        with _opened(file) as table:
            return table.read(columns=columns(table.schema_arrow))


@contextmanager
def _opened(file: ForwardFile) -> Iterator[Any]:
    """Open a file with pyarrow, whose errors become ours."""
    parquet = arrow_module("pyarrow.parquet", file.path, "parquet")
    # With a buffer Arrow reads pages as it goes; without one it holds a row group, often a whole part.
    with (
        arrow_errors(file.path, "parquet"),
        parquet.ParquetFile(file.name, pre_buffer=False, buffer_size=PAGE_BUFFER) as table,
    ):
        yield table


def _batches(table: Any, first: int, last: int, size: int, columns: list[str]) -> Iterator[tuple[int, Any]]:
    """Yield (number of its first row, batch) of a range of rows."""
    groups: list[int] = []
    number = begin = 0
    for group in range(table.metadata.num_row_groups):
        rows = table.metadata.row_group(group).num_rows
        if number < last and number + rows > first:
            begin = begin if groups else number
            groups.append(group)
        number += rows
    number = begin
    for batch in table.iter_batches(size, row_groups=groups, columns=columns, use_threads=False) if groups else ():
        skip = max(0, first - number)
        count = min(batch.num_rows, last - number) - skip
        if count > 0:
            yield number + skip, batch if count == batch.num_rows else batch.slice(skip, count)
        number += batch.num_rows
        if number >= last:
            return
