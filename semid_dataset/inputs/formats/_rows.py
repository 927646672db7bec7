"""Rows that were written down while something was read that can only be read from its beginning: a pickle."""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from semid_dataset import _files as files
from semid_dataset.format.tensors import parse
from semid_dataset.inputs.keys import items_of, taken
from semid_dataset.protocols import Partition, Sink

__all__ = ["SpooledRows"]


class SpooledRows:
    """See `protocols.Format`; ids and matrix in the layout of tables, written by this package only."""

    name: ClassVar[str] = "rows"
    suffixes: ClassVar[tuple[str, ...]] = ()
    starts: ClassVar[bytes] = b""

    def size(self, whole: Partition, dim: int) -> int:
        """Return how many rows there are."""
        return len(parse(files.map_file(Path(whole.path))[0], whole.path).arrays["vectors"])

    def partitions(self, whole: Partition, rows: int) -> list[Partition]:
        """Return all of it: it was written as a partition."""
        return [whole]

    def read(self, part: Partition, sink: Sink, progress: Callable[[int], None], *, digest: bool = False) -> str:
        """Send the rows to `sink`."""
        arrays = parse(files.map_file(Path(part.path))[0], part.path).arrays
        every = taken(arrays)
        for first in range(0, len(every), sink.batch):
            vectors = arrays["vectors"][first : first + sink.batch]
            keys = items_of(every[first : first + sink.batch])
            if isinstance(keys, list):
                sink.add_named(keys, vectors, [part.path] * len(keys))
            else:
                sink.add(keys, vectors, part.path)
            progress(vectors.nbytes)
        return ""
