"""
Find codewords: k-means with a start that suits the number of dimensions.

Up to some 64 dimensions k-means++ is the better start. Above, distances between points are nearly
equal and k-means++ picks outliers, whose codes then serve one item each; there, and where codes are so many that
drawing them takes longer than all the rest, the codewords grow from few dimensions to all of them (faiss:
ProgressiveDimClustering). They do so along the principal axes of all items, which are found once for all levels.

Lloyd's algorithm goes further than to the mean of each cluster (`RELAXED`), except in its last round: it converges in
half the rounds, and ends lower.

All randomness comes from the generator that is passed in. Nothing here looks at a value on the
host, so that on a GPU the steps queue up without waiting.
"""

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from semid_dataset.codec._threads import in_blocks, sent

__all__ = ["assign", "kmeans", "nearest", "principal_axes", "sums", "tally"]

PROGRESSIVE_ABOVE = 64  # dims; see the module's docstring
MOST_DRAWN = 1024  # codes that k-means++ draws: each costs a pass over the points
# More points move a centroid little. Held out, 10,891 x 384 with 64 / 128 / 256: 0.422 / 0.409 / 0.405, in 3.0 / 5.1 /
# 6.7 s; at 32 and 64 dims 128 and 256 cannot be told apart.
POINTS_PER_CODE = 128
# Dimensions grow as dims^(i/7). Held out, in 5 and in 10 steps: 10,891 x 384 0.408 and 0.401, in 5.3 and 6.3 s;
# 180,000 x 128 0.0744 and 0.0732. faiss takes ten.
STEPS = 7
ROUNDS, STEP_ROUNDS = 16, 4  # of Lloyd's algorithm after k-means++; at every step of dimensions
# How far a codeword goes, of the way to the mean of its points. Held out, 10,891 x 384 in 20 rounds: 1.0 0.417, 1.5
# 0.411, 2.0 0.408, 2.5 0.419 (and 1.0 in 60 rounds 0.404); 45,000 x 32 in 12 rounds 0.0407, 0.0402 with 2.0, in 25
# rounds 0.0402, 0.0398 with 1.8. The larger the less even is the use of codes: perplexity 207, 203, 185, 176.
RELAXED = 1.8
SEED_POINTS_PER_CODE = 16  # k-means++ draws from this many points a code: its cost is codes x points
TRIALS = 3  # candidates of each k-means++ draw, of which the best is kept
BLOCK = 1 << 20  # distances computed at once
MULTIPLIED = 4096  # points that are multiplied at once
QUARTERS = 4  # parts of a covariance
AXES_POINTS = 16_384  # that principal axes are found from: they only say in which order dimensions come
CODES_SUMMED = 32  # codes whose points one thread adds up at a time
FEW = 1 / 16  # share of the points of an average code at which a code counts as idle
SETTLE = 3  # rounds at the end in which only a code without points moves elsewhere
NUDGE = 1 / 64  # of the way to a point


def kmeans(points: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """
    Return `size` codewords for `points`.

    Args:
        points: (n, dim) float32, n >= 1. At most 128 * size of them, drawn at random, are used. Above 64 dims along
            their principal axes, see `principal_axes`, or nearly.
        size: codewords, at least 1. More than there are distinct points is allowed: some are then never nearest.
        generator: source of all draws (a CPU generator).

    Returns:
        (size, dim) float32, on the device of `points`.

    Memory: a copy of the used points and half of one, and 4 MB of distances for each thread.
    """
    points = sample(points, POINTS_PER_CODE * size, generator)
    dim = points.shape[1]
    if dim <= PROGRESSIVE_ABOVE and size <= MOST_DRAWN:
        return _lloyd(points, _plus_plus(points, size, generator), ROUNDS, generator)
    order = points.square().sum(0).argsort(descending=True, stable=True)
    ordered = points[:, order]
    chosen = sent(torch.randint(len(points), (size,), generator=generator, device="cpu"), points.device)
    centroids = ordered[chosen]
    for width in sorted({int(dim ** ((step + 1) / STEPS)) for step in range(STEPS)} | {dim}):
        narrow = _lloyd(ordered[:, :width].contiguous(), centroids[:, :width].contiguous(), STEP_ROUNDS, generator)
        # Axes that did not count yet start at zero, their mean.
        centroids = torch.cat([narrow, narrow.new_zeros(1, dim - width).expand(size, -1)], 1)
    return centroids[:, order.argsort()]


def sample(points: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Return `points`, or `most` of them drawn without repetition, in their order."""
    if len(points) <= most:
        return points
    chosen = torch.randperm(len(points), generator=generator, device="cpu")[:most].sort().values
    return points[sent(chosen, points.device)]


def assign(points: Tensor, centroids: Tensor) -> Tensor:
    """
    Return the nearest centroid of every point, (n,) int64; of equal distances the lowest.

    Memory: 4 MB of distances for each thread.
    """
    codes = torch.empty(len(points), dtype=torch.int64, device=points.device)
    norms = centroids.square().sum(1)
    rows = max(BLOCK // len(centroids), 16)

    def one(begin: int) -> None:
        block = points[begin : begin + rows]
        codes[begin : begin + rows] = nearest(torch.addmm(norms, block, centroids.T, alpha=-2))

    in_blocks(one, range(0, len(points), rows), points.device)
    return codes


def nearest(distances: Tensor) -> Tensor:
    """Return where each row of (n, m) distances is least, (n,) int64; of equals the first."""
    if distances.device.type != "cpu":
        return distances.argmin(1)
    # NumPy's argmin is vectorized: a fifth of torch's time, on one thread instead of two (4096 x 256).
    return torch.from_numpy(distances.numpy().argmin(1))


def tally(codes: Tensor, size: int) -> Tensor:
    """Return how often each of the codes (n,) from 0 to size - 1 occurs, (size,) int64."""
    if codes.device.type == "cpu":
        return torch.bincount(codes, minlength=size)
    return _scattered(codes, size)  # a GPU's bincount waits until the host has seen the largest code


def _scattered(codes: Tensor, size: int) -> Tensor:
    """Return what `tally` does; whole numbers add up alike in any order."""
    return codes.new_zeros(size).scatter_add_(0, codes, torch.ones_like(codes))


def sums(points: Tensor, codes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """
    Return the sum of the points of every code, (size, dim), and how many they are, (size,) float32.

    Args:
        points: (n, dim).
        codes: (n * k,), those of the first point, then those of the second, and so on.
        size: codes in all.

    Each sum is taken by one thread in the order of the points: the number of threads does not change it.
    """
    counts = tally(codes, size)
    order = torch.argsort(codes, stable=True)
    if len(codes) > len(points):
        order = order // (len(codes) // len(points))
    ends = counts.cumsum(0)
    total = points.new_empty(size, points.shape[1])
    share = size if points.device.type != "cpu" else CODES_SUMMED

    def one(begin: int) -> None:
        starts = ends[begin : begin + share] - counts[begin : begin + share]
        some = order
        if share < size:
            some = order[int(starts[0]) : int(ends[begin : begin + share][-1])]
            starts = starts - starts[0]
        total[begin : begin + share] = embedding_bag(some, points, starts, mode="sum")

    in_blocks(one, range(0, size, share), points.device)
    return total, counts.to(points.dtype)


def _lloyd(points: Tensor, centroids: Tensor, rounds: int, generator: torch.Generator) -> Tensor:
    """
    Move centroids to the means of their points and beyond, `rounds` times; to the means themselves at last.

    A code that serves few points takes half of a large cluster: it goes next to that centroid, a little way
    towards a random point. A random point itself would serve nobody else where dimensions are many: the mean of a
    cluster is nearer to all of the others.
    """
    size = len(centroids)
    for number in range(rounds):
        total, counts = sums(points, assign(points, centroids), size)
        means = total / counts.clamp(min=1)[:, None]
        towards = sent(torch.randint(len(points), (size,), generator=generator, device="cpu"), points.device)
        few = 0.0 if number >= rounds - SETTLE else FEW * len(points) / size
        idle = counts <= few
        # The first idle code goes to the largest cluster, the second to the next one, and so on.
        host = counts.argsort(descending=True, stable=True)[(idle.cumsum(0) - 1).clamp(min=0)]
        split = means[host] + NUDGE * (points[towards] - means[host])
        ahead = means if number == rounds - 1 else centroids + RELAXED * (means - centroids)
        centroids = torch.where(idle[:, None], split, ahead)
    return centroids


def _plus_plus(points: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """
    Draw codewords among the points, each in proportion to its squared distance from those drawn before.

    Of a few candidates the one that lowers the total distance most is kept.
    Source: Arthur and Vassilvitskii, "k-means++: The Advantages of Careful Seeding", 2007.
    """
    points = sample(points, SEED_POINTS_PER_CODE * size, generator)
    draws = sent(torch.rand(size, TRIALS, generator=generator, dtype=torch.float64, device="cpu"), points.device)
    norms = points.square().sum(1)
    chosen = torch.empty(size, dtype=torch.int64, device=points.device)
    distances = torch.ones_like(norms)
    for code in range(size):
        weights = distances.double().cumsum(0)
        # Where all distances are zero (fewer distinct points than codes) the last point is drawn.
        candidates = torch.searchsorted(weights, draws[code] * weights[-1], right=True).clamp(max=len(points) - 1)
        new = (norms + norms[candidates, None] - 2 * points[candidates] @ points.T).clamp(min=0)
        if code > 0:
            new = torch.minimum(new, distances)
        best = new.double().sum(1).argmin(0, keepdim=True)  # of no axis it would be read by the host
        distances = new[best][0]
        chosen[code : code + 1] = candidates[best]
    return points[chosen]


def principal_axes(points: Tensor) -> Tensor:
    """
    Return the principal axes about the origin of points (n, dim) as columns, (dim, dim) float32, the widest first.

    Of at most 16,384 points, in single precision: of 3,584 dims half a minute less, and the order is all that matters.
    """
    points = points[:AXES_POINTS]
    rows = -(-len(points) // QUARTERS)  # few parts: each is dim x dim
    parts = points.new_zeros(QUARTERS, points.shape[1], points.shape[1])

    def one(begin: int) -> None:
        block = points[begin : begin + rows]
        torch.mm(block.T, block, out=parts[begin // rows])

    in_blocks(one, range(0, len(points), rows), points.device)
    axes: Tensor = torch.linalg.eigh(parts.sum(0)).eigenvectors
    return axes.flip(1).contiguous()
