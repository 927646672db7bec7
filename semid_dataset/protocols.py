"""
What parts of this package that others can supply look like.

A format is a kind of file that embeddings are read from: JSON lines, parquet, arrays. Its class is the only reader of
such files, whoever asks: a data directory, a file named at a prompt, a stream of partitions. `registry` finds it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Format", "Partition", "Sink"]


@dataclass(frozen=True)
class Partition:
    """
    Rows of a file that can be read by themselves; what comes out does not depend on the process that reads them.

    Attributes:
        format: name of the format.
        path: its file.
        first, last: rows of it, last excluded; 0 and -1 are all of them.
        bytes: of the file, about, that this part stands for.
        items: name of the column of items; "" goes by the names that items usually have, "rows" numbers the rows.
        vectors: name of the column of vectors; "" goes by the names that vectors usually have.
        ids: file with the item of every row, int64 in the layout of tables; "" where the file itself says.
    """

    format: str
    path: str
    first: int = 0
    last: int = -1
    bytes: int = 0
    items: str = ""
    vectors: str = ""
    ids: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Partition":
        """Return the partition that `to_dict` wrote."""
        return cls(**values)


class Sink(Protocol):
    """
    Where the rows of a file go. It copies what it keeps; readers may use their memory again.

    Attributes:
        dim: width of the vectors; 0 until the first `begin`.
        batch: how many rows are best handed over at once.
        strict: whether a bad row is an error, which `reject` raises then.
        wanted: says of ids whether their rows are; None: all are. Readers may pass the others over unread.
        ids: takes note of ids that were converted.
    """

    dim: int
    strict: bool
    wanted: Callable[[NDArray[np.int64]], NDArray[np.bool_]] | None

    @property
    def batch(self) -> int:
        """How many rows are best handed over at once."""
        ...

    @property
    def ids(self) -> "IdNotes":
        """Where conversions of ids are noted."""
        ...

    def begin(self, dim: int, rows: int = 0) -> None:
        """Take note of the width of the vectors that come, where it was not known, and of how many come, about."""

    def add(self, keys: NDArray[np.int64], vectors: NDArray[Any], where: str | Sequence[str]) -> None:
        """Take rows (k, dim) of any numeric type; `where` says where all of them are, or each."""

    def add_named(self, keys: Sequence[int | str], vectors: NDArray[Any], where: Sequence[str]) -> None:
        """Take rows (k, dim) of items with ids of any kind."""

    def add_one(self, key: int | str, vector: NDArray[Any], where: str) -> None:
        """Take one row (dim,)."""

    def reject(self, what: str, count: int = 1) -> None:
        """Take note of rows that are none; `what` says where the first is, and what is wrong."""

    def pass_over(self) -> None:
        """Count a row that is not wanted."""


class IdNotes(Protocol):
    """What a sink keeps about ids that were converted."""

    def note(self, written: object, number: int, where: str) -> None:
        """Note that an id of another type was converted by itself, exactly."""


class Format(Protocol):
    """
    One kind of file, and its only reader.

    Attributes:
        name: what it is called in messages and in partitions.
        suffixes: endings of its files; first bytes decide where they are known.
        starts: a regular expression that the first 512 bytes match; b"" where nothing tells.
    """

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    starts: ClassVar[bytes]

    def size(self, whole: Partition, dim: int) -> int:
        """
        Return about how many rows of `dim` numbers a file holds, without reading it.

        Raises:
            EmbeddingError: it cannot be read.
        """

    def partitions(self, whole: Partition, rows: int) -> list[Partition]:
        """
        Return the partitions of a file, of at most `rows` rows each where its layout allows; none where it cannot be
        read in parts.

        Raises:
            EmbeddingError: it cannot be read.
        """

    def read(self, part: Partition, sink: Sink, progress: Callable[[int], None], *, digest: bool = False) -> str:
        """
        Send the rows of a partition to `sink`.

        Args:
            part: what to read.
            sink: where rows go.
            progress: told, from time to time, how many bytes more were read.
            digest: hash the whole file, too.

        Returns:
            The SHA-256 of the file as it lies there; "" without `digest`.

        Raises:
            EmbeddingError: it cannot be read, is of another kind, or changed meanwhile.
        """
