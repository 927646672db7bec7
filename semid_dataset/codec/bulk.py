"""
Rows that training should not believe: those that lie far beyond all others.

One vector of 1e9 among vectors of length one takes the mean with it, the scale and most codewords: the error of the
others becomes thousands of times what it was, while the error over all rows, of which that one is nearly all, says
6e-13. So codebooks are fitted on the bulk alone, and errors are measured on it. Rows beyond get the codes nearest to
them.

A distance says nothing by itself: embeddings whose lengths follow a power law have rows a thousand times as far out as
the median, rightly so. What tells is how distances thin out. Their tail, between the median and the farthest twentieth,
is fitted by a power law; beyond are the rows that it does not reach, by a wide margin.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Bulk", "distances", "find_bulk", "rows_with_share"]

LEAST = 8  # rows, for a tail to be seen
SHARE = 20  # at most one row in so many is beyond: more are a population of their own
# Times as far out as any other row, at least. Many rows may be a group of their own, which training must see; few are
# none: at most one in `FEW`. 50,000 x 32, error of the others against a training without: 100 rows 10 times as long
# cost 6 %, of which nothing is left; 100 rows 6 times as long, 4 times as far out as any other, cost 3 %. With a
# factor of 2.5 for few, sets lose rows that have one row in 1,000 three times as long as the rest.
FACTOR, FACTOR_OF_FEW = 10.0, 3.0
FEW = 200
# What the odds of a power law must be against, as a natural logarithm. Of 1,500 sets of 30 to 200,000 rows without a
# broken one (mixtures, unit vectors, lognormal lengths up to sigma 3, Pareto lengths down to alpha 0.7, Student's t
# down to one degree, counts, zeros, dims of unequal scale) none lost a row; with lognormal lengths of sigma 1, one row
# at 1e6 is just seen.
ODDS = 12.0
LEAST_TAIL = 0.05  # exponent; equal distances would else make every gap a wide one
LOOKED_AT = 262_144  # rows whose distances decide
CENTRED = 8_192  # rows that the median is taken of
BLOCK_BYTES = 32 << 20  # of float64 that are held at once


@dataclass(frozen=True)
class Bulk:
    """
    Where the bulk of some vectors ends.

    Attributes:
        radius: distance from the centre; infinite where there are too few rows to tell.
        beyond: (n,) rows farther out; None where there are none.
        times: how many times as far out as the rest the farthest of these is.
    """

    radius: float
    beyond: NDArray[np.bool_] | None
    times: float = 1.0


def find_bulk(vectors: NDArray[np.floating]) -> Bulk:
    """
    Say which vectors lie far beyond all others.

    The centre is the median of every dim. Of the distances d from it, ascending, with k the twentieth of the rows that
    is farthest out: log d grows from the median to row n - k like b log(1 / share of rows beyond), which gives b. A row
    is beyond where the step to it from the row before is more than a factor of 10, and so wide that r b of r rows
    beyond it would take it once in e^12 times; and where it is farther out than the tail, continued to one row in
    e^12 times n, and 10 times as far. Rows at the centre itself (zeros, often) say nothing of the tail.

    Args:
        vectors: (n, dim), finite. Of more than 262,144, so many decide, evenly spaced.

    Memory: 8 bytes a row, and 64 MB.
    """
    n = len(vectors)
    if n < LEAST:
        return Bulk(math.inf, None)
    some = vectors[_spaced(n, CENTRED)].astype(np.float64)
    centre = np.median(some, axis=0)
    looked = vectors if n <= LOOKED_AT else vectors[_spaced(n, LOOKED_AT)]
    radius = _radius(distances(looked, centre), n)
    if math.isinf(radius):
        return Bulk(radius, None)
    far = distances(vectors, centre)
    beyond = far > radius
    if not beyond.any():
        return Bulk(radius, None)
    return Bulk(radius, beyond, float(far.max() / far[~beyond].max()))


def _spaced(count: int, most: int) -> NDArray[np.int64]:
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64)


def _radius(far: NDArray[np.float64], rows: int) -> float:
    """Return where the bulk ends, from the distances of some of `rows` rows."""
    ordered = np.log(np.sort(far[far > 0]))
    count = len(ordered)
    if count < LEAST:
        return math.inf
    most = max(count // SHARE, 1)
    tail = ordered[count - most - 1 :]
    exponent = max((tail[0] - ordered[count // 2]) / math.log(count / 2 / most), LEAST_TAIL)
    margin = math.log(FACTOR)
    # The tail goes on: the farthest of `rows`, by chance, and what is never by chance.
    reach = tail[0] + exponent * (math.log(most * rows / len(far)) + ODDS) + margin
    steps = np.diff(tail)
    beyond = np.arange(most, 0, -1)
    least = np.where(beyond <= max(count // FEW, 1), math.log(FACTOR_OF_FEW), margin)
    wide = (steps > least) & (beyond * steps > ODDS * exponent)
    if wide.any():
        at = int(np.argmax(wide))
        return float(np.exp(min(reach, (tail[at] + tail[at + 1]) / 2)))
    return float(np.exp(reach))


def _distances(vectors: NDArray[np.floating], centre: NDArray[np.floating]) -> Iterator[NDArray[np.float64]]:
    rows = max(BLOCK_BYTES // (8 * max(vectors.shape[1], 1)), 1)
    for begin in range(0, len(vectors), rows):
        rest = vectors[begin : begin + rows].astype(np.float64)
        rest -= centre
        yield np.sqrt(np.einsum("ij,ij->i", rest, rest))


def distances(vectors: NDArray[np.floating], centre: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the distance of every vector (n, dim) from a centre (dim,), computed as float64, in blocks."""
    return np.concatenate([np.empty(0), *_distances(vectors, centre)])


def rows_with_share(far: NDArray[np.float64], share: float = 0.99) -> int:
    """Return how few rows, of these distances from the centre, hold a share of the variance."""
    squares = np.sort(np.square(far))[::-1]
    total = squares.sum()
    return int(np.searchsorted(np.cumsum(squares), share * total) + 1) if total > 0 else 0
