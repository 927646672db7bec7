"""Parts as another package would write them, against the protocols alone."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from semid_dataset import SemanticIdTable
from semid_dataset.errors import TableError
from semid_dataset.protocols import Partition, Sink, Trained


@dataclass(frozen=True)
class Product:
    """A product quantizer: every level has a share of the dimensions. No torch, no parent class, no place for more."""

    kind: ClassVar[str] = "product"
    words: tuple[NDArray[np.float32], ...]  # (codes, dims of the level) a level
    middle: NDArray[np.float32] = field(default_factory=lambda: np.zeros(1, np.float32))

    @property
    def dim(self) -> int:
        return sum(book.shape[1] for book in self.words)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return tuple(len(book) for book in self.words)

    def _shares(self, vectors: NDArray[Any]) -> list[NDArray[Any]]:
        ends = np.cumsum([book.shape[1] for book in self.words])
        return np.split(np.asarray(vectors, np.float32), ends[:-1], axis=1)

    def _to(self, level: int, share: NDArray[Any]) -> NDArray[Any]:
        return np.square(share[:, None, :] - self.words[level][None]).sum(2)

    def encode(self, vectors: Any) -> NDArray[Any]:
        found = [self._to(level, share).argmin(1) for level, share in enumerate(self._shares(vectors))]
        return np.stack(found, 1)

    def decode(self, codes: Any) -> NDArray[Any]:
        known = [self.words[level][codes[:, level]] for level in range(codes.shape[1])]
        rest = [np.repeat(book.mean(0)[None], len(codes), 0) for book in self.words[codes.shape[1] :]]
        return np.concatenate([*known, *rest], 1)

    def distances(self, vectors: NDArray[Any], prefix_codes: NDArray[Any]) -> NDArray[Any]:
        shares, level = self._shares(vectors), prefix_codes.shape[1]
        before = sum(np.square(shares[at] - self.words[at][prefix_codes[:, at]]).sum(1) for at in range(level))
        return self._to(level, shares[level]) + np.reshape(before, (-1, 1))

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        return {f"words{level}": book for level, book in enumerate(self.words)}, {"levels": len(self.words)}

    @classmethod
    def from_state(cls, arrays: Mapping[str, NDArray[Any]], config: Mapping[str, Any]) -> "Product":
        return cls(tuple(np.array(arrays[f"words{level}"]) for level in range(config["levels"])))


@dataclass(frozen=True)
class ProductTrainer:
    """Some vectors themselves are the codewords, corrected by a few rounds of Lloyd's."""

    name: ClassVar[str] = "product"
    rounds: int = 5

    def fit(self, vectors: NDArray[Any], *, sizes: Sequence[int], device: str, seed: int, progress: Any) -> Trained:
        random = np.random.default_rng(seed)
        books = []
        for size, share in zip(sizes, np.array_split(np.asarray(vectors, np.float32), len(sizes), axis=1), strict=True):
            book = share[random.permutation(max(len(share), size))[:size] % len(share)].copy()
            for _ in range(self.rounds):
                nearest = np.square(share[:, None] - book[None]).sum(2).argmin(1)
                for code in np.unique(nearest):
                    book[code] = share[nearest == code].mean(0)
            books.append(book)
            progress.advance()
        return Trained(Product(tuple(books)))


class Lines:
    """A format: an item and its numbers between blanks, a row a line."""

    name: ClassVar[str] = "lines"
    suffixes: ClassVar[tuple[str, ...]] = (".vec",)
    starts: ClassVar[bytes] = b""

    def size(self, whole: Partition, dim: int) -> int:
        return Path(whole.path).read_bytes().count(b"\n") + 1

    def partitions(self, whole: Partition, rows: int) -> list[Partition]:
        total = self.size(whole, 0)
        return [Partition(self.name, whole.path, first, min(first + rows, total)) for first in range(0, total, rows)]

    def read(self, part: Partition, sink: Sink, progress: Callable[[int], None], *, digest: bool = False) -> str:
        data = Path(part.path).read_bytes()
        lines = data.decode().splitlines()
        last = len(lines) if part.last < 0 else part.last
        for number, line in enumerate(lines[part.first : last], start=part.first + 1):
            item, *numbers = line.split()
            sink.begin(len(numbers))
            sink.add_one(item, np.array(numbers, np.float32), f"{part.path}, line {number}")
        progress(len(data))
        return hashlib.sha256(data).hexdigest() if digest else ""


@dataclass(frozen=True)
class CsvOptions:
    """What stands between two codes."""

    between: str = ";"


class Csv:
    """An export: an item and its codes, a line an item; the first line says how many levels there are."""

    name: ClassVar[str] = "codes"
    suffix: ClassVar[str] = ".codes.txt"
    what: ClassVar[str] = "item;code;code, a line an item"
    Options: ClassVar[type[Any]] = CsvOptions

    def write(self, table: SemanticIdTable, path: Path, options: CsvOptions) -> list[Path]:
        sizes = options.between.join(map(str, table.codebook_sizes))
        lines = [options.between.join(map(str, [item, *codes])) for item, codes in table.items()]
        temporary = path.with_name(path.name + ".part")
        temporary.write_text("\n".join([f"codes{options.between}{sizes}", *lines]) + "\n")
        temporary.replace(path)
        return [path]

    def read(self, path: Path) -> SemanticIdTable:
        try:
            (head, *sizes), *rows = (line.split(";") for line in path.read_text().splitlines())
            if head != "codes":
                raise ValueError(f"it begins with {head!r}")
            ids = {item: [int(code) for code in codes] for item, *codes in rows}
            return SemanticIdTable.from_mapping(ids, codebook_sizes=[int(size) for size in sizes], levels=len(sizes))
        except ValueError as error:
            raise TableError(f"'{path}' is no list of codes: {error}.") from error
