"""Pickles of {id: numpy array}, read without unpickling; see `_pickle_machine`. The only reader of them."""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from semid_dataset.inputs._columns import refuse_columns
from semid_dataset.inputs._file import ForwardFile
from semid_dataset.inputs.formats._pickle_machine import read_array_pickle
from semid_dataset.protocols import Partition, Sink

__all__ = ["Pickle"]


class Pickle:
    """See `protocols.Format`."""

    name: ClassVar[str] = "pickle"
    suffixes: ClassVar[tuple[str, ...]] = (".pkl", ".pickle")
    starts: ClassVar[bytes] = rb"\x80[\x02-\x05]|\}q\x00|\(dp?[0-9]*\n|c[a-z_.]+\n[a-z_]+\n"

    def size(self, whole: Partition, dim: int) -> int:
        """Return as many rows as would fill the file."""
        with ForwardFile(Path(whole.path), hashed=False) as file:
            return file.size // (4 * dim)

    def partitions(self, whole: Partition, rows: int) -> list[Partition]:
        """Return none: a pickle can be read from its beginning only."""
        return []

    def read(self, part: Partition, sink: Sink, progress: Callable[[int], None], *, digest: bool = False) -> str:
        """Send the items of the dict to `sink`."""
        refuse_columns(Path(part.path), part.items, part.vectors)
        with ForwardFile(Path(part.path), progress, hashed=digest, seekable=True) as file:
            read_array_pickle(file, sink)
            return file.finish()
