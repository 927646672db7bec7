"""
Put the rows of a table in the order of their IDs, and draw the sample of items that a page carries.

In that order every prefix is one run, so that counting prefixes is a difference of starts, and a page can find the
items of a prefix by bisection.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAP_ITEMS", "SAMPLE_ITEMS", "Prefixes", "Sample", "sample_of"]

SAMPLE_ITEMS = 16_384  # items that the page carries
MAP_ITEMS = 8_192  # of a larger table, items on the map: half of the sample, drawn evenly


@dataclass(frozen=True)
class Prefixes:
    """
    Rows in the order of their IDs.

    Attributes:
        rows: (n,) positions in the table.
        codes: (n, levels), in that order.
        starts: per level, where a new prefix of so many codes begins.
    """

    rows: NDArray[np.int64]
    codes: NDArray[Any]
    starts: tuple[NDArray[np.int64], ...]

    @classmethod
    def of(cls, codes: NDArray[Any]) -> "Prefixes":
        """Order codes (n, levels)."""
        rows = np.lexsort(codes.T[::-1]) if len(codes) else np.empty(0, np.int64)
        ordered = codes[rows]
        new = np.ones(len(codes), bool)
        new[1:] = False
        starts = []
        for level in range(codes.shape[1]):
            new[1:] |= ordered[1:, level] != ordered[:-1, level]
            starts.append(np.flatnonzero(new))
        return cls(rows, ordered, tuple(starts))

    def counts(self, level: int) -> NDArray[np.int64]:
        """Return how many items every prefix of level + 1 codes has, in order."""
        return np.diff(self.starts[level], append=len(self.rows))


@dataclass(frozen=True)
class Sample:
    """
    The items that a page carries.

    Attributes:
        places: (k,) positions in the order, ascending.
        mapped: (m,) positions among those, ascending: the items of the map, drawn evenly.
        whole: whether all items of the table are in it; then all are on the map.
    """

    places: NDArray[np.int64]
    mapped: NDArray[np.int64]
    whole: bool


def sample_of(order: Prefixes) -> Sample:
    """
    Return all items up to 16,384; else 8,192 drawn evenly, and as many again for prefixes of two codes without one.

    The same table gives the same sample.
    """
    items = len(order.rows)
    if items <= SAMPLE_ITEMS:
        return Sample(np.arange(items), np.arange(items), whole=True)
    starts = order.starts[min(1, len(order.starts) - 1)]
    chance = np.random.default_rng(0).permutation(items)  # a rank for every place
    even = np.zeros(items, bool)
    even[chance < MAP_ITEMS] = True
    group = np.repeat(np.arange(len(starts)), np.diff(starts, append=items))
    # The evenly drawn come first in their group, so that a prefix which has one of them waits behind those without.
    shuffled = np.lexsort((chance, ~even, group))  # groups stay runs, in the same places
    lease = np.arange(items) - starts[group]
    free = ~even[shuffled]
    rest, lease = shuffled[free], lease[free]
    more = rest[np.lexsort((chance[rest], lease))[: SAMPLE_ITEMS - MAP_ITEMS]]
    places = np.sort(np.concatenate([np.flatnonzero(even), more]))
    return Sample(places, np.flatnonzero(even[places]), whole=False)
