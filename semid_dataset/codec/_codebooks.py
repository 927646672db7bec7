"""
Fit codebooks alone: the trainer "rqkmeans", and how "rqvae" begins.

Normalize, fit the codebooks level by level, correct them by least squares. Codes always come from the search that
encodes in the end, if sometimes with a narrower beam. On which residuals levels are fitted is chosen by the data: the
second level is fitted in every way, and items that were held out say which is best.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from semid_dataset.codec._kmeans import (
    MOST_DRAWN,
    POINTS_PER_CODE,
    PROGRESSIVE_ABOVE,
    kmeans,
    principal_axes,
    sample,
    sums,
    tally,
)
from semid_dataset.codec._networks import ResidualMLP
from semid_dataset.codec._search import BeamSearch
from semid_dataset.codec._threads import in_blocks, isolated, sent
from semid_dataset.codec.residual import ResidualQuantizer
from semid_dataset.errors import EmbeddingError
from semid_dataset.progress import Progress
from semid_dataset.protocols import Trained

__all__ = ["Points", "RQKMeans", "judged"]

MOST_ITEMS = 262_144  # a sample that size costs 1.2 % of error against 5 million items
# Items that are held out, at most; at most a twentieth of all. Half of them choose, and the others, which have chosen
# nothing, say what came of it.
HELD_OUT = 2048
REFIT_ITEMS = 1 << 16  # that a round of least squares looks at; only the last correction takes them all
SWEEPS = 3  # of Gauss-Seidel: what is found after ten is no better
ERROR_ROWS = 4096  # items whose error is added up by one thread
COLLAPSED = 1e-30  # spread of vectors among which there is nothing to tell
# Sizes of numbers whose squares float32 holds, with room for smaller and larger ones among them.
SQUARED = (1e-15, 1e18)
COPIED, COLUMNS = 32 << 20, 16  # bytes that a sum in float64 may copy, and columns that it takes at least
START_BYTES = 1 << 28  # of residuals that a level is fitted on, at most, or as many as there are points


# Sums of an item that count: the codewords of a level serve sums that are not their items' best, and are less the noise
# of single items. Error in sample / held out, 10,891 x 384: one sum throughout 0.367 / 0.449; starts on five sums 0.324
# / 0.399; refits on four sums too 0.323 / 0.389. Starts on 16 sums 0.332 / 0.404 with perplexity 134.
START_SUMS, REFIT_SUMS = 5, 4
# A further sum counts where its squared error is at most 1 + reach times the best one's. Where clusters are far apart
# further sums are none that an item would ever get, and codes that serve their residuals serve nobody. Error held out,
# and perplexity of the second level, with 0.1 / with 1: 4,758 x 32 in clusters 0.0252, 209 / 0.0254, 172; 18,000 x 256
# of texts 0.158, 151 / 0.164, 156; 45,000 x 32 in clusters 0.0400, 185 / 0.0432, 136; 10,891 x 384 0.419, 196 / 0.408,
# 205; 3,909 x 384 0.481, 129 / 0.468, 89. The second level's own error tells which.
REACHES = (0.1, 1.0)
# The share of error that later levels gain more from far sums than the second one does (0 to 5 %), and what even use of
# codes is worth: twice the perplexity 5 % of error, as every code is to be learnt from items.
LATER, EVENNESS = 0.02, 0.08
# Rounds of least squares, and their search's width. 10,891 x 384, held out, with widths 16, 16, 16: 0.411; 8, 8, 8:
# 0.411; six of 8: 0.406. Each goes beyond the least squares, as k-means goes beyond means: 1 0.408, 1.5 0.406, 2 0.404.
ROUNDS, ROUND_BEAM, RELAXED = 4, 8, 1.5
RIDGE = 3.0  # items' worth of resistance to correction; where items are many it changes nothing
# Width of the quantizer's search; where codes are many a narrower one, of this many candidates at a level.
BEAM, CANDIDATES = 16, 16_384
PAIRS = 1 << 22  # of codes of two levels: how often each occurs is held as a matrix of numbers, else only what occurs
# How much the first code's error counts in the search; a third of it at each further level. Error in sample / held out,
# share of neighbours that have the first / the first two codes in common. 45,000 x 32: 0 0.0370 / 0.0417, 85 / 31 %;
# 0.3 0.0371 / 0.0419, 87 / 33 %; 1 0.0376 / 0.0422, 87 / 34 % (faiss, beam 1: 88 / 33 %, beam 5: 77 / 15 %).
# 10,891 x 384: 0 0.315 / 0.397, 45 / 12 %; 0.3 0.318 / 0.400, 50 / 12 %; 1 0.324 / 0.406, 53 / 12 % (faiss, beam 1:
# 53 / 10 %, beam 5: 45 / 11 %).
PREFIX_WEIGHT = 0.3


@dataclass(frozen=True)
class RQKMeans:
    """Codebooks alone, by k-means and least squares: the trainer "rqkmeans", which has no settings."""

    name: ClassVar[str] = "rqkmeans"

    @isolated()
    def fit(
        self,
        vectors: NDArray[np.floating],
        *,
        sizes: Sequence[int],
        device: str = "cpu",
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Trained:
        """
        Fit codebooks to vectors, see `protocols.Trainer.fit`; a step of progress is a round of least squares.

        Raises:
            EmbeddingError: the vectors are all equal.
        """
        progress = progress or Progress()
        points = Points.of(vectors, device, seed, sizes)
        progress.advance()
        start, curve, chosen = points.start(sizes, progress, told=True)
        error = judged(points.judge, start)
        held_out = {"start": error, "end": error, "items": len(points.judge)}
        return Trained(points.corrected(start), curve, len(curve), device, held_out, choices=chosen)


@dataclass(frozen=True)
class Points:
    """
    What a training works on.

    Attributes:
        all: (n, dim) float32 of at most `MOST_ITEMS` items in random order, normalized, on the device.
        fit, choose, judge: the ones to learn from, and those held out to choose by and to judge what was chosen; fewer
            than 40 items do all three.
        mean, scale: that they were normalized by.
        axes: (dim, dim), the principal axes as columns, along which the points are given; None: as they came.
        generator: of all that is drawn.
    """

    all: Tensor
    fit: Tensor
    choose: Tensor
    judge: Tensor
    mean: Tensor
    scale: float
    axes: Tensor | None
    generator: torch.Generator

    @classmethod
    def of(cls, vectors: NDArray[np.floating], device: str, seed: int, sizes: Sequence[int] = ()) -> "Points":
        """
        Return vectors (n, dim), finite, made ready.

        Args:
            vectors: the items'.
            device: where they go.
            seed: of what is drawn.
            sizes: of codebooks to be fitted; where k-means wants principal axes, the points are given along these.

        Raises:
            EmbeddingError: they are all equal.
        """
        generator = torch.Generator("cpu").manual_seed(seed)
        n = len(vectors)
        order = torch.randperm(n, generator=generator, device="cpu")[:MOST_ITEMS].numpy()
        points = torch.from_numpy(vectors[order].astype(np.float32, copy=False)).to(device)
        del order
        mean = _mean(points)
        points -= mean
        spread = _spread(points)
        if spread < COLLAPSED and n > 1:
            what = "are all equal" if spread == 0 else f"differ by {spread:.1g} only"
            raise EmbeddingError(f"The {n} vectors {what}: nothing tells items apart. Were they trained, and scaled?")
        scale = 2.0 ** round(math.log2(spread)) if spread > 0 else 1.0  # a power of two: dividing by it is exact
        points /= scale
        axes = None
        if sizes and (points.shape[1] > PROGRESSIVE_ABOVE or max(sizes) > MOST_DRAWN):
            axes = principal_axes(points)
            for block in torch.split(points, ERROR_ROWS):
                block.copy_(block @ axes)
        held = min(n // 20, HELD_OUT)
        fit, choose, judge = points[held:], points[: held // 2], points[held // 2 : held]
        if held < 2:
            fit = choose = judge = points
        return cls(points, fit, choose, judge, mean, scale, axes, generator)

    def start(
        self, sizes: Sequence[int], progress: Progress, *, told: bool
    ) -> tuple[ResidualQuantizer, list[float], dict[str, Any]]:
        """
        Fit codebooks level by level and correct them in rounds.

        Args:
            sizes: codes a level.
            progress: a round is a step of it, where `told`.

        Returns:
            A quantizer of these points as they are here, the error before each round, and what was chosen: the "reach",
            and the held-out error of the second level for each that was "tried".
        """
        codebooks, chosen = self._levels(sizes, progress)
        curve = []
        for number in range(1, ROUNDS + 1):
            some = sample(self.fit, REFIT_ITEMS, self.generator)
            codebooks, error = refit(some, codebooks, ROUND_BEAM, REFIT_SUMS, relaxed=RELAXED)
            curve.append(error)
            progress.advance()
            if told:
                progress.epoch(number, ROUNDS, error)
        return _quantizer(codebooks), curve, chosen

    def _levels(self, sizes: Sequence[int], progress: Progress) -> tuple[list[Tensor], dict[str, Any]]:
        """
        Fit one level after the other, each on what the best sums of the levels before leave over.

        Source: faiss, ResidualQuantizer::train.
        """
        codebooks: list[Tensor] = []
        reaches: tuple[float, ...] = REACHES
        chosen: dict[str, Any] = {}
        for size in sizes:
            if not codebooks:
                codebooks = [kmeans(sample(self.fit, POINTS_PER_CODE * size, self.generator), size, self.generator)]
                progress.advance()
                continue
            candidates = []
            for reach in reaches:
                residuals = _residuals(self.fit, codebooks, size, reach, self.generator)
                candidates.append([*codebooks, kmeans(residuals, size, self.generator)])
                progress.advance()
            codebooks = candidates[0]
            if len(reaches) > 1:
                figures = [_merit(self.choose, books) for books in candidates]
                worth = [
                    error * perplexity**-EVENNESS * (1 - LATER * (reach == max(REACHES)))
                    for reach, (error, perplexity) in zip(REACHES, figures, strict=True)
                ]
                best = worth.index(min(worth))
                codebooks, reaches = candidates[best], (REACHES[best],)
                chosen = {
                    "reach": REACHES[best],
                    "tried": {f"reach {reach:g}": error for reach, (error, _) in zip(REACHES, figures, strict=True)},
                }
        return codebooks, chosen

    def corrected(self, start: ResidualQuantizer) -> ResidualQuantizer:
        """Return what a last correction makes of codebooks: of all items, those held out too, and the best sums."""
        return self.finished(_quantizer(refit(self.all, start.codebooks, ROUND_BEAM, 1)[0]))

    def finished(self, found: ResidualQuantizer) -> ResidualQuantizer:
        """Return a quantizer of vectors as they came for one of these points."""
        turned = [network and network.turned(self.axes) for network in (found.encoder, found.decoder)]
        codebooks = found.codebooks if self.axes is None else [book @ self.axes.T for book in found.codebooks]
        return ResidualQuantizer(
            codebooks,
            beam=found.beam,
            prefix_weight=found.prefix_weight,
            mean=self.mean,
            scale=self.scale,
            encoder=turned[0],
            decoder=turned[1],
        )


def _width(sizes: Sequence[int], most: int) -> int:
    """Return how wide a search of codebooks of these sizes is, at most `most`."""
    return max(min(most, CANDIDATES // max(sizes)), 1)


def _quantizer(codebooks: Sequence[Tensor]) -> ResidualQuantizer:
    return ResidualQuantizer(
        codebooks, beam=_width([len(book) for book in codebooks], BEAM), prefix_weight=PREFIX_WEIGHT
    )


def _merit(points: Tensor, codebooks: Sequence[Tensor]) -> tuple[float, float]:
    """Return the error of points (n, dim), and the perplexity of their codes of the last level."""
    state = _quantizer(codebooks)
    codes = state.codes_of(points)
    shares = tally(codes[:, -1], len(codebooks[-1])).double() / len(codes)
    perplexity = float(torch.special.entr(shares).sum().exp())
    return relative(points, state.search, codes), perplexity


def judged(points: Tensor, state: ResidualQuantizer) -> float:
    """Return the error of normalized points over their variance, through encoder and decoder."""
    return relative(points, state.search, state.codes_of(points), state.decoder)


def _mean(points: Tensor) -> Tensor:
    """Return the mean of points (n, dim), summed as float64: torch makes a copy for it, so a few columns at a time."""
    width = max(COPIED // (8 * len(points)) // COLUMNS, 1) * COLUMNS
    return torch.cat([some.mean(0, dtype=torch.float64) for some in torch.split(points, width, 1)]).float()


def _spread(points: Tensor) -> float:
    """Return the root of the mean square of all numbers."""
    rows = max(COPIED // (12 * points.shape[1]), 1)
    blocks = torch.split(points, rows)
    squares = torch.stack([some.square().sum(dtype=torch.float64) for some in blocks])
    spread = float((squares.sum() / points.numel()).sqrt())
    if SQUARED[0] < spread < SQUARED[1]:
        return spread
    squares = torch.stack([some.double().square().sum() for some in blocks])
    return float((squares.sum() / points.numel()).sqrt())


def _residuals(
    points: Tensor, codebooks: Sequence[Tensor], size: int, reach: float, generator: torch.Generator
) -> Tensor:
    """Return what the best sums of codebooks, those within reach, leave over of points: what a level is fitted on."""
    # No more points than k-means will use: neither is a search for all of them needed, nor may the residuals of a
    # wide beam fit into memory. Of wide vectors no more than there are, or what they take would be a multiple.
    most = min(POINTS_PER_CODE * size, max(len(points), START_BYTES // (4 * points.shape[1])))
    some = sample(points, most, generator)
    sizes = [*map(len, codebooks), size]
    search = BeamSearch(codebooks, _width(sizes, START_SUMS), PREFIX_WEIGHT)
    codes = search.blocks(some, search.beam)
    width = codes.shape[1]
    chosen = _within(some, search, codes, reach)
    chosen = sent(sample(chosen, most, generator), points.device)
    return _left_over(some[chosen // width], search, codes.flatten(0, 1)[chosen])


def _within(points: Tensor, search: BeamSearch, codes: Tensor, reach: float) -> Tensor:
    """Return which sums of n points, codes (n, width, levels), are within reach of their point's best: on the host."""
    near = torch.empty(codes.shape[:2], dtype=torch.bool, device=points.device)

    def one(begin: int) -> None:
        block = points[begin : begin + ERROR_ROWS]
        some = codes[begin : begin + ERROR_ROWS].unbind(1)
        errors = torch.stack([(block - search.sums(each)).square().sum(1) for each in some], 1)
        near[begin : begin + ERROR_ROWS] = errors <= (1 + reach) * errors[:, :1]

    in_blocks(one, range(0, len(points), ERROR_ROWS), points.device)
    return near.flatten().nonzero()[:, 0].cpu()


def _left_over(points: Tensor, search: BeamSearch, codes: Tensor) -> Tensor:
    """Take the sums of codewords (n, levels) from points, which are changed: no second matrix of sums is made."""
    for begin in range(0, len(points), ERROR_ROWS):
        points[begin : begin + ERROR_ROWS] -= search.sums(codes[begin : begin + ERROR_ROWS])
    return points


def refit(
    points: Tensor, codebooks: Sequence[Tensor], beam: int, wanted: int, *, relaxed: float = 1.0
) -> tuple[list[Tensor], float]:
    """
    Correct codebooks by least squares for the codes that the search gives now.

    Minimizes Σ‖x − Σ_l c'_l‖² + RIDGE Σ‖c' − c‖², where each point is there with its `wanted` best sums and the ridge
    counts as many-fold. With B, the matrix that says which codewords a sum is made of, only BᵀX and BᵀB enter: sums of
    points and counts of pairs of codes. Gauss-Seidel goes through the levels; every step is the exact minimum of its
    level, so the error for these codes never grows.

    Args:
        points: (n, dim).
        codebooks: one (codes, dim) a level.
        beam: width of the search, where codes are not too many for it.
        wanted: best sums of a point.
        relaxed: how far codewords go, of the way to the minimum.

    Returns:
        The codebooks, and the relative error of the best sums before the correction.
    """
    sizes = [len(book) for book in codebooks]
    search = BeamSearch(codebooks, _width(sizes, beam), PREFIX_WEIGHT)
    codes = search.blocks(points, min(wanted, search.beam))
    width = codes.shape[1]
    best = codes[:, 0].contiguous()
    error = relative(points, search, best)
    chosen = codes.flatten(0, 1).unbind(1)
    books = [book.double() for book in codebooks]
    levels = range(len(books))
    ridge = RIDGE * width
    targets = [sums(points, chosen[level], sizes[level])[0].double() + ridge * books[level] for level in levels]
    weights = [tally(chosen[level], sizes[level]).double()[:, None] + ridge for level in levels]
    pairs = {
        (level, other): _pairs(chosen[level], chosen[other], sizes[level], sizes[other])
        for level in levels
        for other in levels
        if level < other
    }
    for _ in range(SWEEPS):
        for level in levels:
            left = targets[level]
            for other in levels:
                if other != level:
                    counts = pairs[level, other] if level < other else pairs[other, level].t()
                    left = left - counts @ books[other]
            books[level] = left / weights[level]
    refitted = [(book + relaxed * (new - book)).float() for book, new in zip(codebooks, books, strict=True)]
    return _revive(refitted, best, points), error


def _pairs(rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    """Return how often codes (n,) of two levels occur together, (height, width) float64; sparse where that is large."""
    pairs = rows * width + columns
    if height * width <= PAIRS:
        return tally(pairs, height * width).view(height, width).double()
    found, counts = torch.unique(pairs, return_counts=True)
    at = torch.stack([found // width, found % width])
    return torch.sparse_coo_tensor(at, counts.double(), (height, width), is_coalesced=True, check_invariants=False)


def _revive(codebooks: Sequence[Tensor], codes: Tensor, points: Tensor) -> list[Tensor]:
    """
    Return the codebooks with words in place of those that no item uses: each makes one ill-written item exact.

    Args:
        codebooks: one (codes, dim) a level.
        codes: (n, levels), the items'.
        points: (n, dim), the items.
    """
    used = [tally(codes[:, level], len(book)) > 0 for level, book in enumerate(codebooks)]
    if bool(torch.cat(used).all()):
        return list(codebooks)
    search = BeamSearch(codebooks, 1)
    blocks = [slice(begin, begin + ERROR_ROWS) for begin in range(0, len(points), ERROR_ROWS)]
    errors = torch.cat([(points[some] - search.sums(codes[some])).square().sum(1) for some in blocks])
    ill = errors.argsort(descending=True, stable=True)
    served = torch.zeros((), dtype=torch.int64, device=codes.device)  # an item asks for one word only
    revived = []
    for level, book in enumerate(codebooks):
        dead = ~used[level]
        item = ill[(served + dead.cumsum(0) - 1).clamp(0, len(ill) - 1)]
        residuals = points[item] - search.sums(codes[item])
        revived.append(torch.where(dead[:, None], book[codes[item, level]] + residuals, book))
        served = served + dead.sum()
    return revived


def relative(points: Tensor, search: BeamSearch, codes: Tensor, decoder: ResidualMLP | None = None) -> float:
    """Return the error of what codes stand for over the variance, both about the origin."""
    begins = range(0, len(points), ERROR_ROWS)
    parts = points.new_zeros(len(begins), 2, dtype=torch.float64)

    def one(begin: int) -> None:
        block = points[begin : begin + ERROR_ROWS]
        rebuilt = search.sums(codes[begin : begin + ERROR_ROWS])
        if decoder is not None:
            rebuilt = decoder(rebuilt)
        parts[begin // ERROR_ROWS, 0] = (block - rebuilt).square().sum(dtype=torch.float64)
        parts[begin // ERROR_ROWS, 1] = block.square().sum(dtype=torch.float64)

    in_blocks(one, begins, points.device)
    error, variance = parts.sum(0)
    return float(error / variance.clamp(min=1e-30))
