"""One feature of a set of items: what readers hand over and fusions take."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["FeatureMatrix", "picked_items", "take_features"]


@dataclass(frozen=True)
class FeatureMatrix:
    """
    One feature of a set of items.

    Attributes:
        id: the feature's id, such as "81".
        rows: (m,) ascending positions, among all items, of those that have the feature.
        matrix: (m, dim) float32, finite; row i belongs to item `rows[i]`.
    """

    id: str
    rows: NDArray[np.int64]
    matrix: NDArray[np.float32]

    @property
    def dim(self) -> int:
        """Width of the feature."""
        return int(self.matrix.shape[1])


def take_features(
    features: Sequence[FeatureMatrix], wanted: NDArray[np.int64], items: int
) -> tuple[FeatureMatrix, ...]:
    """Return the features of the items at `wanted` (ascending positions), renumbered from 0."""
    position = np.full(items, -1, np.int64)
    position[wanted] = np.arange(len(wanted))
    taken = []
    for feature in features:
        rows = position[feature.rows]
        here = rows >= 0
        taken.append(FeatureMatrix(feature.id, rows[here], feature.matrix[here]))
    return tuple(taken)


def picked_items(items: NDArray[np.int64] | list[str], rows: NDArray[np.int64]) -> NDArray[np.int64] | list[str]:
    """Return the items at `rows`."""
    return items[rows] if isinstance(items, np.ndarray) else [items[row] for row in rows.tolist()]
