"""
A set of items with any number of features, in partitions; what is in memory is a set of one partition.

`pipeline` makes tables of it and knows of no other way: it fits codebooks on the sample, has the partitions encoded,
and makes what comes back unique. How partitions are read, and by whom, is the set's business.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset.codec.bulk import distances
from semid_dataset.inputs.keys import Keys, hash_items
from semid_dataset.inputs.read import Embeddings
from semid_dataset.objects import Items
from semid_dataset.progress import Progress

if TYPE_CHECKING:
    from semid_dataset.codec.unique import Resolution
    from semid_dataset.protocols import Quantizer, Trained
    from semid_dataset.table.table import SemanticIdTable

__all__ = ["EncodedItems", "HeldItems", "ItemSet", "NewItems", "Totals", "smallest"]

BLOCK = 8192  # rows at once: a whole copy in float64 would double the memory
ENCODED = 65_536  # rows at once
NAMED = 3  # items beyond the bulk that are told by name


class ItemSet(ABC):
    """
    All items of a data set.

    Attributes:
        sample: what codebooks are fitted on: all items where they are few, else those with the smallest hashes.
        held: what can be looked at without reading anything again: all items, or the sample.
        count: about how many items there are.
        complete: whether all items are in the sample.
    """

    sample: Embeddings
    held: Embeddings
    count: int
    complete: bool

    @abstractmethod
    def trained(self, fit: "Callable[[], Trained]") -> "Trained":
        """Return what `fit` returns, or what it returned in a run before that was ended."""

    @abstractmethod
    def encoded(self, trained: "Trained", progress: Progress) -> "EncodedItems":
        """
        Return all items with their codes.

        Raises:
            EmbeddingError: a partition cannot be read.
            StoreError: there is no room for the work.
        """

    @abstractmethod
    def lacking(self, base: "SemanticIdTable", progress: Progress) -> "NewItems":
        """Return the items that a table lacks, encoded with its quantizer; raises as `encoded`."""

    def take(self, base: "SemanticIdTable") -> None:  # noqa: B027 - in memory there is nothing to do
        """Have the codebooks of a table ready, which is to be extended: others who work here wait for them."""

    def close(self) -> None:  # noqa: B027 - in memory there is nothing to do
        """Remove what was written down meanwhile: what it was for is published."""


class NewItems(ABC):
    """
    Items among which are those that a table lacks.

    Attributes:
        items: all of them, ascending.
    """

    items: Items

    @abstractmethod
    def encoded(self, base: "SemanticIdTable", missing: NDArray[np.int64]) -> "EncodedItems":
        """Return those at some positions in `items`, ascending, as the table's quantizer encodes them."""


class EncodedItems(ABC):
    """
    Items with their codes; the `Items` of `resolve_collisions`.

    Attributes:
        codes: (n, levels), before uniqueness.
        totals: of all rows.
        bad: rows that were skipped.
        named: the first few items beyond the bulk.
    """

    codes: NDArray[Any]
    totals: "Totals"
    bad: int
    named: list[Any]

    @property
    @abstractmethod
    def items(self) -> Items:
        """The items, ascending, each once."""

    @abstractmethod
    def errors(self, rows: NDArray[np.int64], codes: NDArray[Any]) -> NDArray[np.float32]:
        """Return the squared distance of the latent of each row to the sum of its codewords."""

    @abstractmethod
    def hashes(self, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return `vector_hashes` of these rows."""

    @abstractmethod
    def prepare(self, rows: NDArray[np.integer[Any]]) -> None:
        """Make ready to be asked for the vectors of these rows, in this order and in blocks."""

    @abstractmethod
    def vectors(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Return the vectors of the next of these rows, (k, dim), in the quantizer's space."""

    @abstractmethod
    def positions(self, sample: Embeddings) -> NDArray[np.int64]:
        """Return where the items of the sample stand."""

    def rewind(self) -> None:  # noqa: B027 - in memory there is nothing to do
        """Begin again with the rows of `prepare`."""

    def close(self) -> None:  # noqa: B027 - in memory there is nothing to do
        """Let go of files and vectors."""

    def error_change(self, quantizer: "Quantizer", resolution: "Resolution") -> float:
        """Return by how much uniqueness raised the squared error, summed over the items of the bulk."""
        displaced = resolution.displaced
        if displaced is None:
            return 0.0
        change = 0.0
        self.rewind()
        for begin in range(0, len(displaced), BLOCK):
            rows = displaced[begin : begin + BLOCK]
            vectors = self.vectors(rows)
            counted = self.totals.counted(vectors)
            vectors, rows = vectors[counted], rows[counted]
            for codes, sign in ((resolution.codes, 1), (self.codes, -1)):
                change += sign * float(np.square(vectors - quantizer.decode(codes[rows]), dtype=np.float64).sum())
        return change


class Totals:
    """
    What is added up over rows while they are encoded, over those of the bulk and over those beyond it (see `bulk`).

    Where all rows are beyond, they are what is measured: there are no others.

    Args:
        quantizer: that encodes.
        radius: where its bulk ends.
        centre: of the bulk, (dim,) or 0.
    """

    def __init__(self, quantizer: "Quantizer", radius: float, centre: NDArray[Any]) -> None:
        self._quantizer = quantizer
        self._radius = radius
        self._centre = centre
        # In the bulk, and beyond: rows, squared errors, squared lengths, squared distances from the centre, the
        # farthest of these; the sums of what lies between a row and the centre.
        self._sums = np.zeros((2, 5))
        self._shifts = np.zeros((2, quantizer.dim))
        self.beyond_rows: list[int] = []  # the first few that lie beyond, by their numbers
        self._added = 0

    def add(self, vectors: NDArray[np.float32], codes: NDArray[Any]) -> None:
        """Add rows (k, dim), whose codes are (k, levels)."""
        for begin in range(0, len(vectors), BLOCK):
            self._add(vectors[begin : begin + BLOCK], codes[begin : begin + BLOCK])

    def _add(self, vectors: NDArray[np.float32], codes: NDArray[Any]) -> None:
        far = distances(vectors, self._centre)
        errors = np.square(vectors - self._quantizer.decode(codes), dtype=np.float64).sum(1)
        lengths = np.square(vectors, dtype=np.float64).sum(1)
        shifts = vectors - self._centre.astype(np.float64)
        beyond = far > self._radius
        for at, chosen in enumerate((~beyond, beyond)) if beyond.any() else ((0, slice(None)),):
            there: Any = chosen
            self._sums[at, :4] += [
                len(far[there]),
                errors[there].sum(),
                lengths[there].sum(),
                np.square(far[there]).sum(),
            ]
            self._sums[at, 4] = max(self._sums[at, 4], far[there].max(initial=0.0))
            self._shifts[at] += shifts[there].sum(0)
        if len(self.beyond_rows) < NAMED:
            self.beyond_rows += (self._added + np.flatnonzero(beyond)[:NAMED]).tolist()
        self._added += len(vectors)

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """Return what `merge` takes, of it the arrays."""
        return {"sums": self._sums, "shifts": self._shifts}

    def merge(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Add the totals of another part."""
        farthest = np.maximum(self._sums[:, 4], arrays["sums"][:, 4])
        self._sums += arrays["sums"]
        self._sums[:, 4] = farthest
        self._shifts += arrays["shifts"]

    @property
    def _at(self) -> int:
        return 0 if self._sums[0, 0] else 1

    @property
    def rows(self) -> int:
        """That are measured."""
        return int(self._sums[self._at, 0])

    @property
    def beyond(self) -> int:
        """Rows outside of the bulk, where some lie in it."""
        return int(self._sums[1, 0]) if self._at == 0 else 0

    @property
    def error(self) -> float:
        """Squared errors of what is measured, summed."""
        return float(self._sums[self._at, 1])

    @property
    def squares(self) -> float:
        """Squared lengths, summed."""
        return float(self._sums[self._at, 2])

    @property
    def variance(self) -> float:
        """Squared distances from the mean, summed."""
        shift = float(np.square(self._shifts[self._at]).sum()) / max(1, self.rows)
        return max(0.0, float(self._sums[self._at, 3]) - shift)

    @property
    def times(self) -> float:
        """How many times as far out as the bulk the farthest row is."""
        return float(self._sums[1, 4] / max(float(self._sums[0, 4]), 1e-300))

    def counted(self, vectors: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Say which vectors, in the quantizer's space, are measured."""
        near = distances(vectors, self._centre) <= self._radius
        return near if self._at == 0 else ~near


def smallest(items: Items | Keys, most: int, seed: int) -> NDArray[np.int64] | None:
    """
    Return the positions of the `most` items with the smallest hashes, ascending; None where there are no more.

    Which they are does not depend on the order of the items, nor on the parts that they come in.
    """
    if len(items) <= most:
        return None
    return np.sort(np.argpartition(hash_items(items, seed), most)[:most]).astype(np.int64)


# --- in memory ---


class HeldItems(ItemSet):
    """
    Items whose vectors are in memory.

    Args:
        embeddings: all of them.
        most: items that codebooks are fitted on, at most.
        seed: picks these.
    """

    def __init__(self, embeddings: Embeddings, most: int, seed: int) -> None:
        self.held = embeddings
        self.sample: Embeddings = embeddings
        self.count: int = len(embeddings.items)
        chosen = smallest(embeddings.items, most, seed)
        if chosen is not None:
            self.sample = embeddings.some(chosen)
        self.complete: bool = chosen is None
        self._chosen = chosen

    def trained(self, fit: "Callable[[], Trained]") -> "Trained":
        """Fit."""
        return fit()

    def encoded(self, trained: "Trained", progress: Progress) -> EncodedItems:
        """Encode all items."""
        from semid_dataset.codec.kinds import centre_of, state_of

        centre = centre_of(state_of(trained.quantizer, trained.centre)[0])
        return _HeldEncoded(self.held, trained.quantizer, trained.radius, centre, self._chosen)

    def lacking(self, base: "SemanticIdTable", progress: Progress) -> NewItems:
        """Return all items: those that the table has are passed over when it is asked."""
        return _Held(self.held)


class _Held(NewItems):
    def __init__(self, held: Embeddings) -> None:
        self.items = held.items
        self._held = replace(held, fused=None)  # new items are encoded as if alone, whatever shaped the others

    def encoded(self, base: "SemanticIdTable", missing: NDArray[np.int64]) -> EncodedItems:
        from semid_dataset.codec.kinds import centre_of

        return _HeldEncoded(self._held.some(missing), base.quantizer, base.header.radius, centre_of(base.weights))


class _HeldEncoded(EncodedItems):
    def __init__(
        self,
        embeddings: Embeddings,
        quantizer: "Quantizer",
        radius: float,
        centre: NDArray[Any],
        sampled: NDArray[np.int64] | None = None,
    ) -> None:
        from semid_dataset.codec.kinds import code_dtype, encode, vectors_of
        from semid_dataset.codec.unique import MatrixItems

        self._items, self.bad = embeddings.items, embeddings.bad_rows
        if embeddings.fused is None:
            vectors = vectors_of(quantizer, embeddings.features, len(self._items))
        else:
            vectors = embeddings.fused[1]
        self.totals = Totals(quantizer, radius, centre)
        self.codes = np.empty((len(vectors), len(quantizer.codebook_sizes)), code_dtype(quantizer.codebook_sizes))
        for begin in range(0, len(vectors), ENCODED):  # a wider type for all codes at once would be as large as vectors
            some = slice(begin, begin + ENCODED)
            self.codes[some] = encode(quantizer, vectors[some])
            self.totals.add(vectors[some], self.codes[some])
        self.named = [self._items[row] for row in self.totals.beyond_rows]
        self._matrix = MatrixItems(quantizer, vectors)
        self._sampled = np.arange(len(vectors)) if sampled is None else sampled

    @property
    def items(self) -> Items:
        return self._items

    def errors(self, rows: NDArray[np.int64], codes: NDArray[Any]) -> NDArray[np.float32]:
        return self._matrix.errors(rows, codes)

    def hashes(self, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        return self._matrix.hashes(rows)

    def prepare(self, rows: NDArray[np.integer[Any]]) -> None:
        self._matrix.prepare(rows)

    def vectors(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        return self._matrix.vectors(rows)

    def positions(self, sample: Embeddings) -> NDArray[np.int64]:
        return self._sampled
