"""
Fit codebooks alone: the trainer "rqkmeans", and how "rqvae" begins.

Normalize, fit the codebooks level by level, correct them by least squares. Codes always come from the search that
encodes in the end, if sometimes with a narrower beam.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from semid_dataset.codec._kmeans import POINTS_PER_CODE, PROGRESSIVE_ABOVE, kmeans, sample, sums, tally
from semid_dataset.codec._networks import ResidualMLP
from semid_dataset.codec._search import BeamSearch
from semid_dataset.codec._threads import in_blocks, isolated, sent
from semid_dataset.codec.residual import ResidualQuantizer
from semid_dataset.errors import EmbeddingError
from semid_dataset.progress import Progress
from semid_dataset.protocols import Trained

__all__ = ["Points", "RQKMeans", "judged"]

MOST_ITEMS = 262_144  # a sample that size costs 1.2 % of error against 5 million items
HELD_OUT = 2048  # items that judge, at most; at most a twentieth of all
REFIT_ITEMS = 1 << 16  # that a round of least squares looks at; only the last correction takes them all
SWEEPS = 3  # of Gauss-Seidel: what is found after ten is no better
ERROR_ROWS = 4096  # items whose error is added up by one thread
COLLAPSED = 1e-30  # spread of vectors among which there is nothing to tell
# Sizes of numbers whose squares float32 holds, with room for smaller and larger ones among them.
SQUARED = (1e-15, 1e18)
COPIED, COLUMNS = 32 << 20, 16  # bytes that a sum in float64 may copy, and columns that it takes at least
START_BYTES = 1 << 28  # of residuals that a level is fitted on, at most, or as many as there are points


@dataclass(frozen=True)
class Recipe:
    """
    How codebooks are fitted.

    Attributes:
        rounds: of k-means at every step of dimensions, where they grow; else it takes LLOYD.
        start_sums: best sums of an item whose residuals a new level is fitted on; that search is as wide, at least 4.
        reach: a further one of them counts where its squared error is at most 1 + reach times the best one's.
        beams: width of the search in every round of least squares.
        more_beams: the same of rounds that "rqvae" adds: it may take longer.
        last_beam: the same of the last correction, which takes in all items.
        beam: width of the quantizer's search.
        refit_sums: best sums of an item that enter these.
        ridge: items' worth of resistance to correction.
    """

    rounds: int
    start_sums: int
    reach: float
    beams: tuple[int, ...]
    more_beams: tuple[int, ...]
    last_beam: int
    beam: int
    refit_sums: int
    ridge: float


# Error in sample (raw codes) / on a tenth of the items that was not trained on. 45,000 x 32 (faiss, beam 1: 0.0404 /
# 0.0452): one narrow round 0.0375 / 0.0420, two 0.0374 / 0.0420, three 0.0373 / 0.0419, two and a wide one 0.0373 /
# 0.0419; and two wide ones more 0.0372 / 0.0419, three narrow and two wide ones more 0.0370 / 0.0418. A beam of 8 at
# the end 0.0374 / 0.0421, of 32 0.0370 / 0.0416 in twice the time; the last correction with 16 sums instead of 8 0.0001
# less. Starts on four sums instead of one: 0.0806 / 0.0846, before refits, against 0.0693 / 0.0745 on a coarser
# mixture. A ridge changes nothing there; noise on the codewords that cools down (as in LSQ++) brings 0.0001. 180,000 x
# 128 (faiss, beam 1: 0.0768 / 0.0781): 0.0702 / 0.0715, with SPARSE 0.0731 / 0.0742; with rounds of all items instead
# of REFIT_ITEMS, and 16 sums in the last correction, less by 0.0001 in a third more time.
DENSE = Recipe(
    rounds=4,
    start_sums=1,
    reach=0.0,
    beams=(4, 4, 4),
    more_beams=(4, 4, 4, 16, 16),
    last_beam=8,
    beam=16,
    refit_sums=2,
    ridge=0.0,
)
# Few items a codeword: codebooks learn the noise of single items. 10,891 x 384: one sum throughout 0.367 / 0.449;
# starts on five sums 0.324 / 0.399; refits on four sums too 0.323 / 0.389. Starts on 16 sums 0.332 / 0.404 with
# perplexity 134. Where clusters are far apart the further sums are none that an item would ever get, and codes that
# serve their residuals serve nobody: error held out, and perplexity of the second level, with all five / reach 0.5 /
# the best alone: 4,758 x 32 in clusters 0.0273, 72 / 0.0260, 205 / 0.0261, 216; 18,000 x 256 of texts 0.1663, 143 /
# 0.1649, 165 / 0.1630, 172; 10,891 x 384 0.404, 186 / 0.405, 207 / 0.440, 228; 3,909 x 384 0.467, 82 / 0.471, 78 /
# 0.482, 211; 18,000 x 192 of images 0.0264, 53 / 0.0262, 49 / 0.0267, 93. Half the points a code 0.324 / 0.405.
# 10,891 x 32: 0.1071 / 0.1457, with DENSE 0.1069 / 0.1504 (faiss 0.1214 / 0.1533).
SPARSE = Recipe(
    rounds=6,
    start_sums=5,
    reach=0.5,
    beams=(16, 16, 16),
    more_beams=(),
    last_beam=16,
    beam=16,
    refit_sums=4,
    ridge=3.0,
)
ITEMS_PER_WORD = 24  # between the 12 of the second sets and the 44 of the first
# Rounds of k-means. 45,000 x 32: 10 0.0376 / 0.0422, 25 0.0372 / 0.0418, 40 no less; 25 for the first level and 15, 10,
# 10 for the others 0.0376 / 0.0420. At every step of dimensions, 10,891 x 384: 4 0.326 / 0.410 in 7 s, 6 0.321 / 0.402
# in 8 s, 10 0.318 / 0.400 in 13 s; 180,000 x 128: 4 0.0709 / 0.0721, 6 0.0703 / 0.0716 in a quarter more time.
LLOYD = 25
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
        points = Points.of(vectors, device, seed)
        progress.advance()
        start, curve = points.start(sizes, points.recipe(sizes).beams, progress, told=True)
        error = judged(points.judge, start)
        held_out = {"start": error, "end": error, "items": len(points.judge)}
        return Trained(points.corrected(start), curve, len(curve), device, held_out)


@dataclass(frozen=True)
class Points:
    """
    What a training works on.

    Attributes:
        all: (n, dim) float32 of at most `MOST_ITEMS` items in random order, normalized, on the device.
        fit, judge: the ones to learn from and those held out; fewer than 20 items judge themselves.
        mean, scale: that they were normalized by.
        generator: of all that is drawn.
    """

    all: Tensor
    fit: Tensor
    judge: Tensor
    mean: Tensor
    scale: float
    generator: torch.Generator

    @classmethod
    def of(cls, vectors: NDArray[np.floating], device: str, seed: int) -> "Points":
        """
        Return vectors (n, dim), finite, made ready.

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
        held = min(n // 20, HELD_OUT)
        fit, judge = (points[held:], points[:held]) if held else (points, points)
        return cls(points, fit, judge, mean, scale, generator)

    def recipe(self, sizes: Sequence[int]) -> Recipe:
        """Return how codebooks of these sizes are fitted."""
        return SPARSE if len(self.fit) < ITEMS_PER_WORD * sum(sizes) else DENSE

    def start(
        self, sizes: Sequence[int], beams: Sequence[int], progress: Progress, *, told: bool
    ) -> tuple[ResidualQuantizer, list[float]]:
        """
        Return codebooks fitted level by level and corrected in rounds, and the error before each round.

        Args:
            sizes: codes a level.
            beams: width of the search in every round.
            progress: a round is a step of it, where `told`.
        """
        recipe = self.recipe(sizes)
        codebooks = _start(self.fit, sizes, recipe, self.generator, progress)
        curve = []
        for number, beam in enumerate(beams, start=1):
            some = sample(self.fit, REFIT_ITEMS, self.generator)
            codebooks, error = refit(some, codebooks, beam, recipe.refit_sums, recipe.ridge)
            curve.append(error)
            progress.advance()
            if told:
                progress.epoch(number, len(beams), error)
        return self._quantizer(codebooks, recipe), curve

    def corrected(self, start: ResidualQuantizer) -> ResidualQuantizer:
        """Return what a last correction makes of codebooks: of all items, those held out too, and the best sums."""
        recipe = self.recipe(start.codebook_sizes)
        return self._quantizer(refit(self.all, start.codebooks, recipe.last_beam, 1, recipe.ridge)[0], recipe)

    def _quantizer(self, codebooks: Sequence[Tensor], recipe: Recipe) -> ResidualQuantizer:
        return ResidualQuantizer(
            codebooks, beam=recipe.beam, prefix_weight=PREFIX_WEIGHT, mean=self.mean, scale=self.scale
        )


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


def _start(
    points: Tensor,
    sizes: Sequence[int],
    recipe: Recipe,
    generator: torch.Generator,
    progress: Progress,
) -> list[Tensor]:
    """
    Fit one level after the other, each on what the `recipe.start_sums` best sums of the levels before leave over.

    Source: faiss, ResidualQuantizer::train.
    """
    codebooks: list[Tensor] = []
    rounds = LLOYD if points.shape[1] <= PROGRESSIVE_ABOVE else recipe.rounds
    for size in sizes:
        # No more points than k-means will use: neither is a search for all of them needed, nor may the residuals of a
        # wide beam fit into memory. Of wide vectors no more than there are, or what they take would be a multiple.
        most = min(POINTS_PER_CODE * size, max(len(points), START_BYTES // (4 * points.shape[1])))
        residuals = sample(points, most, generator)
        if codebooks:
            search = BeamSearch(codebooks, max(recipe.start_sums, 4), PREFIX_WEIGHT)
            codes = search.blocks(residuals, recipe.start_sums)
            width = codes.shape[1]
            if width == 1:
                chosen = torch.arange(len(residuals), device="cpu")
            else:
                chosen = _within(residuals, search, codes, recipe.reach)
            chosen = sent(sample(chosen, most, generator), points.device)
            residuals = _left_over(residuals[chosen // width], search, codes.flatten(0, 1)[chosen])
        codebooks.append(kmeans(residuals, size, generator, rounds))
        progress.advance()
    return codebooks


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
    points: Tensor, codebooks: Sequence[Tensor], beam: int, wanted: int, ridge: float
) -> tuple[list[Tensor], float]:
    """
    Correct codebooks by least squares for the codes that the search gives now.

    Minimizes Σ‖x − Σ_l c'_l‖² + ridge Σ‖c' − c‖², where each point is there with its `wanted` best sums and the ridge
    counts as many-fold. With B, the matrix that says which codewords a sum is made of, only BᵀX and BᵀB enter: sums of
    points and counts of pairs of codes. Gauss-Seidel goes through the levels; every step is the exact minimum of its
    level, so the error for these codes never grows.

    Returns:
        The codebooks, and the relative error of the best sums before the correction.
    """
    search = BeamSearch(codebooks, beam, PREFIX_WEIGHT)
    codes = search.blocks(points, max(min(wanted, beam), 1))
    width = codes.shape[1]
    best = codes[:, 0].contiguous()
    error = relative(points, search, best)
    chosen = codes.flatten(0, 1).unbind(1)
    books = [book.double() for book in codebooks]
    sizes = [len(book) for book in books]
    levels = range(len(books))
    targets = [sums(points, chosen[level], sizes[level])[0].double() + ridge * width * books[level] for level in levels]
    pairs = {
        (level, other): tally(chosen[level] * sizes[other] + chosen[other], sizes[level] * sizes[other]).view(
            sizes[level], sizes[other]
        )
        for level in levels
        for other in levels
        if level <= other
    }
    for _ in range(SWEEPS):
        for level in levels:
            left = targets[level]
            for other in levels:
                if other != level:
                    counts = pairs[level, other] if level < other else pairs[other, level].T
                    left = left - counts.double() @ books[other]
            weights = pairs[level, level].diagonal().double() + ridge * width
            books[level] = torch.where(weights[:, None] > 0, left / weights.clamp(min=1e-9)[:, None], books[level])
    refitted = [book.float() for book in books]
    return _revive(refitted, best, points), error


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
