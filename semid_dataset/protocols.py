"""
What parts of this package that others can supply look like.

A quantizer turns vectors into codes and back; a trainer makes one. A format is a kind of file that embeddings are read
from: its class is the only reader of such files, whoever asks. An exporter writes IDs for another tool. An executor has
the tasks of a streamed training done. `registry` finds them by name, `testing` holds them to what is written here, and
docs/extending.md shows one of each.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from semid_dataset.progress import Progress
    from semid_dataset.table.table import SemanticIdTable

__all__ = [
    "Executor",
    "Exporter",
    "Format",
    "Partition",
    "Quantizer",
    "Sink",
    "Trained",
    "Trainer",
]


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

    def in_column(self, name: str, where: object) -> None:
        """
        Note which column holds the items.

        Raises:
            EmbeddingError: the file before, or the row, had them in one of another name: they would be mixed.
        """


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


class Quantizer(Protocol):
    """
    What turns vectors into codes and back. It never changes: an item's codes depend on its vector alone, neither on the
    vectors beside it nor on the size of the batch.

    What several features are fused by, and what makes IDs unique, is around it and not its business.

    Attributes:
        kind: stands in the files and names who reads them; for a package of its own it is an entry point of the group
            `semid_dataset.quantizers`.
        dim: numbers in a vector.
        codebook_sizes: codes of every level, coarse to fine.
    """

    kind: ClassVar[str]

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        ...

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes of every level."""
        ...

    def encode(self, vectors: Any) -> NDArray[Any]:
        """Return the codes (n, levels), of whole numbers, of vectors (n, dim) float32."""
        ...

    def decode(self, codes: Any) -> NDArray[Any]:
        """Return the vectors (n, dim) float32 that codes (n, m), of the first m levels, 1 <= m <= levels, stand for."""
        ...

    def distances(self, vectors: NDArray[Any], prefix_codes: NDArray[Any]) -> NDArray[Any]:
        """
        Return how far vectors are from every code of the next level: all that uniqueness asks.

        Args:
            vectors: (n, dim) float32.
            prefix_codes: (n, m), the codes of the first m levels of each, 0 <= m < levels.

        Returns:
            (n, codes of level m), squared distances of whatever the quantizer compares, the same unit in all rows.
        """
        ...

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return arrays by name, and a description of JSON types; together they are all of it."""
        ...

    @classmethod
    def from_state(cls, arrays: Mapping[str, NDArray[Any]], config: Mapping[str, Any]) -> "Quantizer":
        """
        Return the quantizer that `to_state` took apart.

        Raises:
            Any exception: something is missing or does not fit together; it becomes a TableError.
        """
        ...


@dataclass(frozen=True)
class Trained:
    """
    What came of a training.

    Attributes:
        quantizer: ready to encode.
        curve: loss of every epoch ("rqkmeans": error of every round).
        stopped_at: epochs that were run.
        device: where.
        held_out: relative MSE of held-out items: "start" with the codebooks alone, "end" as they are; "items" is their
            number. Empty where nobody measured.
        radius: distance from the centre of the vectors beyond which rows were set aside, see `codec.bulk`; filled in by
            who asks the trainer. Infinite where there were too few to tell.
        centre: (dim,) of the vectors trained on; filled in there too.
        choices: what was tried and chosen, of JSON types; stands in the table's quality.
    """

    quantizer: Quantizer
    curve: list[float] = field(default_factory=list)
    stopped_at: int = 0
    device: str = "cpu"
    held_out: Mapping[str, float] = field(default_factory=dict)
    radius: float = math.inf
    centre: NDArray[np.float32] | None = None
    choices: Mapping[str, Any] = field(default_factory=dict)


class Trainer(Protocol):
    """
    What makes a quantizer: a frozen dataclass of its settings.

    Those of its fields that `SemanticIdConfig` has too (`lr`, `num_epochs`, ...) are taken from there where the
    configuration names it; the others keep their defaults. An entry point of the group `semid_dataset.trainers`.

    Attributes:
        name: what `algorithm` calls it.
    """

    name: ClassVar[str]

    def fit(
        self, vectors: NDArray[Any], *, sizes: Sequence[int], device: str, seed: int, progress: "Progress"
    ) -> Trained:
        """
        Fit a quantizer.

        Args:
            vectors: (n, dim), n >= 1, finite; not to be changed.
            sizes: codes of every level.
            device: "cpu", "cuda", "cuda:1", ...; it is there.
            seed: of every random draw: equal seeds and vectors give equal quantizers on one machine.
            progress: told of every epoch, and every few seconds at the most that work goes on.

        Raises:
            EmbeddingError: nothing tells the vectors apart.
            ConfigError: sizes that it cannot have, or a library that is not installed.
        """
        ...


class Exporter(Protocol):
    """
    One kind of file that IDs are written to, for another tool; an entry point of the group `semid_dataset.exporters`.

    Attributes:
        name: what `form` calls it.
        suffix: ending of its files; of several that fit the longest counts.
        what: what such a file holds, in a few words.
        Options: a frozen dataclass of what can be chosen, every field with a default.
    """

    Options: ClassVar[type[Any]]

    @property
    def name(self) -> str:
        """What `form` calls it."""
        ...

    @property
    def suffix(self) -> str:
        """Ending of its files."""
        ...

    @property
    def what(self) -> str:
        """What such a file holds."""
        ...

    def write(self, table: "SemanticIdTable", path: Path, options: Any) -> list[Path]:
        """
        Write all IDs of a table, whole or not at all.

        Returns:
            The files written, `path` first.

        Raises:
            TableError: the table does not fit the format.
            OSError: it could not be written; what was there before is as it was.
        """
        ...

    def read(self, path: Path) -> "SemanticIdTable":
        """
        Read what `write` wrote into a table with the same items and IDs.

        Raises:
            TableError: the file is not what its name says.
            ConfigError: such files hold no IDs of items.
        """
        ...


class Executor(Protocol):
    """Who has the tasks of a streamed training done; an entry point of the group `semid_dataset.executors`."""

    def __call__(self, folder: Path, tasks: Sequence[Mapping[str, Any]], progress: "Progress", limit: int) -> None:
        """
        Do tasks, each once or more, in any order and in any process that sees the folder: `perform` of
        `build.streaming.tasks` does one.

        Args:
            folder: where they find what they need, and leave what they make.
            tasks: of JSON types; none needs what another one makes.
            progress: `advance` is told how many bytes of the sources more are done; 0 says that work goes on.
            limit: bytes of memory, about, for all of them together.

        Raises:
            As `perform`: what went wrong with a task, by its own type.
        """
        ...
