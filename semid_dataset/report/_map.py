"""
Place items on a map and say which lie nearest to one another.

Vectors where they are at hand, else the sums of the items' codewords. The latter say where IDs put the items, so that
near items share codes by construction: whoever shows them says so.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset.errors import TableError
from semid_dataset.table.table import SemanticIdTable

__all__ = ["NEAREST", "Map", "duplicates", "map_of"]

NEAREST = 6  # neighbours that are listed of an item
PRODUCTS = 60_000_000_000  # multiplications that looking for them may take: about a second on two cores
BLOCK = 8_192  # rows at once
RUN = 64  # columns of a block of distances, of which only the least is looked at first


@dataclass(frozen=True)
class Map:
    """
    Items in two dimensions, and their nearest in all of them.

    Attributes:
        places: (n, 2), 0…65,535.
        variance: share of the variance that the two axes hold.
        of_vectors: whether of the items' vectors; else of their codewords.
        nearest: (n, k) positions of the nearest other items, nearest first.
        distances: (n, k), Euclid, of those.
        among: items that were looked at for neighbours.
    """

    places: NDArray[np.uint16]
    variance: float
    of_vectors: bool
    nearest: NDArray[np.int64]
    distances: NDArray[np.float32]
    among: int


def map_of(
    table: SemanticIdTable, rows: NDArray[np.int64], codes: NDArray[Any], vectors: NDArray[Any] | None
) -> Map | None:
    """
    Return the map of rows of a table; None where neither vectors nor codebooks are at hand, or all points are one.

    Args:
        table: what the rows are of.
        rows: (n,) positions in it.
        codes: (n, levels), of these rows.
        vectors: (items, dim), of all rows of the table, or None.
    """
    points = _points(table, rows, codes, vectors)
    if points is None or len(rows) < 3:
        return None
    points = points - points.mean(0)
    total = float(np.square(points, dtype=np.float64).sum())
    if total <= 0:
        return None
    flat = _principal(points)
    variance = float(np.square(flat, dtype=np.float64).sum()) / total
    low, high = np.percentile(flat, [0.03, 99.97], axis=0)
    places = (np.clip((flat - low) / np.maximum(high - low, 1e-12), 0, 1) * 65535).astype(np.uint16)
    nearest, distances, among = _nearest(points)
    return Map(places, min(variance, 1.0), vectors is not None, nearest, distances, among)


def _points(
    table: SemanticIdTable, rows: NDArray[np.int64], codes: NDArray[Any], vectors: NDArray[Any] | None
) -> NDArray[np.float32] | None:
    if vectors is not None:
        return np.asarray(vectors[rows], np.float32)
    words = table.weights.get("codebooks")
    if not table.has_quantizer or not len(codes):
        return None
    if words is None:  # another kind of quantizer, which alone knows what its codes stand for
        try:
            return np.asarray(table.quantizer.decode(codes), np.float32)
        except TableError:  # and is not installed here
            return None
    offsets = np.cumsum([0, *table.codebook_sizes[:-1]])
    if words.ndim != 2 or int((codes + offsets).max()) >= len(words):
        return None
    points = np.zeros((len(rows), words.shape[1]), np.float32)
    for level, offset in enumerate(offsets):
        points += words[codes[:, level] + offset]
    return points


def _principal(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the two axes of largest variance by subspace iteration: a covariance of 4,096 dims takes half a minute."""
    basis = np.random.default_rng(0).normal(size=(points.shape[1], min(points.shape[1], 10))).astype(np.float32)
    for _ in range(8):
        basis, _ = np.linalg.qr(points.T @ (points @ basis))
    flat = points @ basis
    _, _, turned = np.linalg.svd(flat, full_matrices=False)
    flat = flat @ turned.T[:, :2]
    if flat.shape[1] < 2:
        flat = np.column_stack([flat, np.zeros(len(flat), np.float32)])
    return np.asarray(flat, np.float32)


def _nearest(points: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32], int]:
    """
    Return positions and distances of the nearest others of every point, and among how many they were looked for.

    All points, or every so-many-th where that would take more than `PRODUCTS`. Exact: the k least of a row lie in the
    k runs of columns whose least are least.
    """
    count, dim = points.shape
    most = max(min(count, PRODUCTS // max(count * dim, 1)), min(count, NEAREST + 1))
    others = np.arange(count) if most == count else np.linspace(0, count - 1, most).astype(np.int64)
    wanted = min(NEAREST, len(others) - 1)
    runs = -(-len(others) // RUN)
    padded = np.zeros((runs * RUN, dim), np.float32)
    padded[: len(others)] = points[others]
    lengths = np.full(runs * RUN, np.inf, np.float32)
    lengths[: len(others)] = np.square(points[others]).sum(1)
    column = np.full(count, -1)
    column[others] = np.arange(len(others))
    nearest, distances = np.empty((count, wanted), np.int64), np.empty((count, wanted), np.float32)
    rows = max(1, min(512, (32 << 20) // (4 * runs * RUN)))
    for begin in range(0, count, rows):
        block = points[begin : begin + rows]
        far = lengths - 2 * (block @ padded.T)
        own = column[begin : begin + rows]
        far[np.flatnonzero(own >= 0), own[own >= 0]] = np.inf  # no item is its own neighbour
        folded = far.reshape(len(block), RUN, runs)  # column c lies at [c // runs, c % runs]
        few = min(wanted, runs)
        chosen = np.argpartition(folded.min(1), few - 1, axis=1)[:, :few] if few < runs else _all(len(block), runs)
        columns = (np.arange(RUN)[:, None] * runs + chosen[:, None, :]).reshape(len(block), -1)
        among = np.take_along_axis(far, columns, 1)
        best = np.argpartition(among, wanted - 1, axis=1)[:, :wanted]
        values = np.take_along_axis(among, best, 1)
        found = np.take_along_axis(columns, best, 1)
        lease = np.lexsort((found, values), axis=1)
        found, values = np.take_along_axis(found, lease, 1), np.take_along_axis(values, lease, 1)
        squared = np.maximum(values + np.square(block).sum(1)[:, None], 0)
        nearest[begin : begin + rows] = others[found]
        distances[begin : begin + rows] = np.sqrt(squared)
    return nearest, distances, len(others)


def _all(rows: int, runs: int) -> NDArray[np.int64]:
    return np.broadcast_to(np.arange(runs), (rows, runs))


def duplicates(vectors: NDArray[Any]) -> list[NDArray[np.int64]]:
    """Return rows of equal vectors, largest groups first; rows are compared by a hash, then in full."""
    factors = np.random.default_rng(0).integers(1, 1 << 62, vectors.shape[1], np.uint64) * 2 + 1
    hashes = np.empty(len(vectors), np.uint64)
    for begin in range(0, len(vectors), BLOCK):
        block = np.ascontiguousarray(vectors[begin : begin + BLOCK], np.float32) + np.float32(0)  # -0 is 0
        hashes[begin : begin + BLOCK] = (block.view(np.uint32).astype(np.uint64) * factors).sum(1, dtype=np.uint64)
    order = np.argsort(hashes, kind="stable")
    starts = np.flatnonzero(np.r_[True, hashes[order][1:] != hashes[order][:-1]]) if len(order) else order
    sizes = np.diff(starts, append=len(order))
    found = []
    for place in np.flatnonzero(sizes > 1).tolist():
        rows = order[starts[place] : starts[place] + sizes[place]]
        same = (vectors[rows] == vectors[rows[0]]).all(1)
        if same.sum() > 1:
            found.append(rows[same])
    return sorted(found, key=len, reverse=True)
