"""One feature of a set of items: what readers hand over and fusions take."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["FeatureMatrix"]


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
