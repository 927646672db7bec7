"""
Fit codebooks, and the autoencoder around them.

One way for both algorithms: normalize, fit the codebooks level by level, correct them by least
squares. "rqvae" then goes on by gradient descent, from an autoencoder that is the identity, and
keeps the best state on items that were held out; so it never ends worse than it started.

Codes always come from the search that encodes in the end, if sometimes with a narrower beam. In the epochs they are
renewed once an epoch and fixed in between: looking for codes costs more than a step does.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from semid_dataset._messages import tell
from semid_dataset.codec._kmeans import POINTS_PER_CODE, PROGRESSIVE_ABOVE, kmeans, sample, sums, tally
from semid_dataset.codec._networks import ResidualMLP
from semid_dataset.codec._search import BeamSearch
from semid_dataset.codec._threads import OutOfMemory, in_blocks, isolated, sent
from semid_dataset.codec.bulk import find_bulk
from semid_dataset.codec.residual import ResidualQuantizer
from semid_dataset.config import SemanticIdConfig
from semid_dataset.errors import ConfigError, EmbeddingError, ForkError, TrainingError
from semid_dataset.progress import Progress

__all__ = ["Trained", "chosen_device", "train"]

MOST_ITEMS = 262_144  # a sample that size costs 1.2 % of error against 5 million items
HELD_OUT = 2048  # items that judge, at most; at most a twentieth of all
REFIT_ITEMS = 1 << 16  # that a round of least squares looks at; only the last correction takes them all
EPOCH_ITEMS = 1 << 16  # that an epoch looks at, drawn anew for each
SWEEPS = 3  # of Gauss-Seidel: what is found after ten is no better
ERROR_ROWS = 4096  # items whose error is added up by one thread
COLLAPSED = 1e-30  # spread of vectors among which there is nothing to tell
SQUARED = (
    1e-15,
    1e18,
)  # sizes of numbers whose squares float32 holds, with room for smaller and larger ones among them
COPIED, COLUMNS = 32 << 20, 16  # bytes that a sum in float64 may copy, and columns that it takes at least
PATIENCE = 3  # epochs without a better state
# Share of config.lr: the encoder follows the decoder (50,000 x 32, held out, from 0.04208 in 20 epochs: to 0.04204 with
# 1, to 0.04200 with 0.1).
ENCODER_LR = 0.1
START_BYTES = 1 << 28  # of residuals that a level is fitted on, at most, or as many as there are points
SLICE_PRODUCTS, SLICE_ROWS = 1 << 24, 128  # a slice of a batch: multiplications of one layer, and rows, at least
PROGRESS = 0.001  # an epoch that lowers the held-out error by a smaller share does not count as better
WORTH = 0.005  # what the last correction, which takes in the held-out items, brings: networks must bring more


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
class Trained:
    """
    What came of a training.

    Attributes:
        quantizer: ready to encode; its mean is the bulk's.
        curve: loss of every epoch ("rqkmeans": error of every round).
        stopped_at: epochs that were run.
        device: where.
        held_out: relative MSE of held-out items: "start" with the codebooks alone, "end" as they are;
            "items" is their number.
        radius: distance from the quantizer's mean beyond which rows were set aside, see `bulk`; infinite where there
            were too few to tell.
    """

    quantizer: ResidualQuantizer
    curve: list[float]
    stopped_at: int
    device: str
    held_out: dict[str, float]
    radius: float = math.inf


@isolated()
def train(
    vectors: NDArray[np.floating],
    config: SemanticIdConfig,
    *,
    progress: Progress | None = None,
) -> Trained:
    """
    Train a quantizer on item vectors.

    Args:
        vectors: (n, dim), n >= 1, finite; float16, float32 or float64.
        config: algorithm, sizes, epochs, device and seed.
        progress: told of every epoch, and every few seconds at the most that work goes on.

    Rows far beyond all others take no part (see `bulk`): codebooks are those of a training without them.

    Returns:
        The quantizer, on the device it was trained on.

    Raises:
        EmbeddingError: no vectors, not two axes, or a row that is not finite (the message names the first); or they are
            all equal, so that nothing tells items apart.
        ConfigError: there is no such device.
        TrainingError: memory did not suffice, not even on the CPU and with smaller batches.
        ForkError: torch refuses to train in this forked process.

    Equal seeds give equal codebooks on one machine, however many threads torch has there. Memory: two float32 copies of
    the vectors used (at most 262,144), the codebooks, and some 10 MB a thread.
    """
    points = _checked(vectors)
    bulk = find_bulk(points)
    kept = None if bulk.beyond is None else np.flatnonzero(~bulk.beyond)
    progress = progress or Progress()
    device = chosen_device(config.device)
    attempts = [(device, config.batch_size), (device, max(config.batch_size // 2, 1))]
    attempts += [("cpu", config.batch_size)] if device != "cpu" else [("cpu", max(config.batch_size // 4, 1))]
    for number, (where, batch) in enumerate(attempts):
        try:
            trained = _train(points, kept, config, device=where, batch=batch, progress=progress)
            return replace(trained, radius=bulk.radius)
        except OutOfMemory as error:
            message = str(error)
        except RuntimeError as error:
            if "fork-based" not in str(error) and "forked subprocess" not in str(error):
                raise
            raise ForkError(  # torch refuses to take gradients, in some versions and wherever the parent used a GPU
                f"This process was forked after its parent had used torch, which cannot train here any more ({error}). "
                "Nothing was changed. Call dataset.prepare_semantic_ids() before the process forks, start it with the "
                "method 'spawn' or 'forkserver', or use algorithm='rqkmeans', which takes no gradients."
            ) from error
        # Outside of the handler: the error's traceback holds the tensors of the failed attempt.
        if number + 1 < len(attempts):
            where_next, batch_next = attempts[number + 1]
            tell("out_of_memory", device=where, how=f"on {where_next} with batches of {batch_next}")
    raise TrainingError(
        f"Training {len(points)} items of {points.shape[1]} dims ran out of memory on {device}, with smaller "
        f"batches and on the CPU too: {message}. Free memory, or train on fewer items."
    )


def _checked(vectors: NDArray[np.floating]) -> NDArray[np.floating]:
    if vectors.ndim != 2 or len(vectors) == 0 or vectors.shape[1] == 0:
        raise EmbeddingError(f"Training needs vectors of shape (items, dims), at least one; got {vectors.shape}.")
    finite = np.isfinite(vectors).all(1)
    if not finite.all():
        raise EmbeddingError(f"Row {int(np.argmin(finite))} of the vectors is not finite (NaN or inf).")
    return vectors


def chosen_device(wanted: str) -> str:
    """
    Return the device to train on.

    Raises:
        ConfigError: there is no such device here.
        ForkError: a forked process cannot use it any more.
    """
    forked = bool(getattr(torch.cuda, "_is_in_bad_fork", bool)())  # the parent used CUDA: a child never can
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() and not forked else "cpu"
    if forked and wanted.startswith("cuda"):
        raise ForkError(
            f"This process was forked after its parent had used CUDA, so that it cannot train on {wanted!r}. Nothing "
            "was changed. Call dataset.prepare_semantic_ids() before the process forks, or spawn it, "
            'or train on the device "cpu" or "auto".'
        )
    try:
        there = torch.device(wanted).type != "cuda" or torch.cuda.is_available()
    except RuntimeError:  # no such word
        there = False
    if not there:
        raise ConfigError(f'There is no device {wanted!r} here. "auto" takes CUDA where there is one, else the CPU.')
    return wanted


def _train(
    vectors: NDArray[np.floating],
    kept: NDArray[np.int64] | None,
    config: SemanticIdConfig,
    *,
    device: str,
    batch: int,
    progress: Progress,
) -> Trained:
    generator = torch.Generator("cpu").manual_seed(config.seed)
    n = len(vectors) if kept is None else len(kept)
    order = torch.randperm(n, generator=generator, device="cpu")[:MOST_ITEMS].numpy()
    if kept is not None:
        order = kept[order]
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
    fit, judge = (points[held:], points[:held]) if held else (points, points)  # fewer than 20 judge themselves
    progress.advance()

    recipe = SPARSE if len(fit) < ITEMS_PER_WORD * sum(config.codebook_sizes) else DENSE
    codebooks = _start(fit, config.codebook_sizes, recipe, generator, progress)
    curve = []
    trains = config.algorithm == "rqvae" and config.num_epochs > 0
    beams = recipe.beams + (recipe.more_beams if trains else ())
    for number, beam in enumerate(beams, start=1):
        some = sample(fit, REFIT_ITEMS, generator)
        codebooks, error = _refit(some, codebooks, beam, recipe.refit_sums, recipe.ridge)
        curve.append(error)
        progress.advance()
        if config.algorithm == "rqkmeans":
            progress.epoch(number, len(beams), error)
    start = ResidualQuantizer(codebooks, beam=recipe.beam, prefix_weight=PREFIX_WEIGHT, mean=mean, scale=scale)
    start_error = _judged(judge, start)
    held_out = {"start": start_error, "end": start_error, "items": len(judge)}
    if trains:
        best, curve, held_out["end"] = _epochs(
            fit,
            judge,
            start,
            start_error,
            config=config,
            batch=batch,
            generator=generator,
            beam=recipe.beams[0],
            progress=progress,
        )
        if best is not start:
            return Trained(best, curve, len(curve), device, held_out)
    # Judging is over: a last correction takes in the items that were held out, and only the best sums.
    codebooks, _ = _refit(points, codebooks, recipe.last_beam, 1, recipe.ridge)
    final = ResidualQuantizer(codebooks, beam=recipe.beam, prefix_weight=PREFIX_WEIGHT, mean=mean, scale=scale)
    return Trained(final, curve, len(curve), device, held_out)


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


def _refit(
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
    error = _relative(points, search, best)
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


def _relative(points: Tensor, search: BeamSearch, codes: Tensor, decoder: ResidualMLP | None = None) -> float:
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


def _epochs(
    fit: Tensor,
    judge: Tensor,
    start: ResidualQuantizer,
    start_error: float,
    *,
    config: SemanticIdConfig,
    batch: int,
    generator: torch.Generator,
    beam: int,
    progress: Progress,
) -> tuple[ResidualQuantizer, list[float], float]:
    """
    Descend from the identity.

    Returns:
        The state that the held-out items liked best (`start` itself, if they liked none clearly better), the loss
        of every epoch, and that state's error on the held-out items.
    """
    width = max(64, min(2 * start.dim, 512))
    encoder = ResidualMLP(start.dim, width, generator).on(fit.device)
    decoder = ResidualMLP(start.dim, width, generator).on(fit.device)
    words = torch.cat(start.codebooks)
    steps = max(min(len(fit), EPOCH_ITEMS) // batch, 1)
    descent = _Adam(
        [(words, config.lr)]
        + [(weight, config.lr * ENCODER_LR) for weight in encoder.weights.values()]
        + [(weight, config.lr) for weight in decoder.weights.values()]
    )
    for weight in descent.weights:
        weight.requires_grad_()
    best, best_error, since = start, start_error, 0
    curve: list[float] = []
    for epoch in range(1, config.num_epochs + 1):
        some = sample(fit, EPOCH_ITEMS, generator)
        codes = _state(words, start, encoder, decoder, beam).codes_of(some) + start.search.offsets
        total = torch.zeros((), dtype=torch.float32, device=fit.device)
        order = sent(torch.randperm(len(some), generator=generator, device="cpu"), fit.device)
        for step in range(steps):
            chosen = order[step * batch : (step + 1) * batch]
            loss, gradients = _gradients(
                some[chosen],
                codes[chosen],
                words,
                encoder=encoder,
                decoder=decoder,
                commitment=config.commitment_cost,
                weights=descent.weights,
            )
            done = (epoch - 1 + step / steps) / config.num_epochs
            warm = min((step + 1) / steps if epoch == 1 else 1.0, 1.0)
            descent.step(gradients, share=warm * (1 + math.cos(math.pi * done)) / 2)
            total += loss
        curve.append(float(total / steps))
        progress.advance()
        state = _state(words, start, encoder, decoder, start.beam)
        error = _judged(judge, state)
        since = 0 if error < best_error * (1 - PROGRESS) else since + 1
        if error < best_error:
            best, best_error = state, error
        progress.epoch(epoch, config.num_epochs, curve[-1])
        if since == PATIENCE:
            break
    if best_error > start_error * (1 - WORTH):
        return start, curve, start_error
    return best, curve, best_error


def _gradients(
    points: Tensor,
    codes: Tensor,
    words: Tensor,
    *,
    encoder: ResidualMLP,
    decoder: ResidualMLP,
    commitment: float,
    weights: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """
    Return a batch's loss and its gradients.

    Where networks are large the batch is cut, for threads to share it out. Into how many slices depends on the sizes
    alone, and slices are added in their order, so that the number of threads does not change a bit.

    On a GPU that has it the networks' products are taken in bfloat16: they only say where to go. What becomes a code,
    or judges, stays in float32.
    """
    slices = 1
    if points.device.type == "cpu":
        slices = max(min(len(points) * encoder.first.numel() // SLICE_PRODUCTS, len(points) // SLICE_ROWS), 1)
    rows = -(-len(points) // slices)
    low = _has_bfloat16(points.device)
    found: list[tuple[Tensor, ...]] = [()] * slices

    def one(begin: int) -> None:
        block = points[begin : begin + rows]
        # Its cache is emptied by the outermost of nested contexts only: weights would stay those of the first step.
        lower = torch.autocast(points.device.type, torch.bfloat16, enabled=low, cache_enabled=False)
        with torch.enable_grad(), lower:
            loss = _loss(
                block, codes[begin : begin + rows], words, encoder=encoder, decoder=decoder, commitment=commitment
            ) * (len(block) / len(points))
            found[begin // rows] = (loss.detach(), *torch.autograd.grad(loss, weights))

    in_blocks(one, range(0, len(points), rows), points.device)
    loss, *gradients = [torch.stack(parts).sum(0) if slices > 1 else parts[0] for parts in zip(*found, strict=True)]
    return loss, gradients


def _has_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster there: on GPUs from Ampere on; on CPUs they may be emulated."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8


def _loss(
    points: Tensor, codes: Tensor, words: Tensor, *, encoder: ResidualMLP, decoder: ResidualMLP, commitment: float
) -> Tensor:
    """
    Reconstruction plus commitment, for codes that are given.

    The sum of codewords gets the reconstruction's gradient, which refines decoder and all codebooks jointly.
    The encoder is asked for latents that the decoder, as it stands, turns back into the vectors: then the nearest
    sum is also the one that decodes nearest. The gradient of the quantized reconstruction, passed straight
    through to the encoder, does harm here: it is 2 (q - x) for an identity, which the network learns as far as it
    can, so that latents drift away from their codes (50,000 x 32: loss 0.0568, 0.0603, 0.0637 in three epochs).
    """
    latents = encoder(points)
    quantized = torch.nn.functional.embedding_bag(codes, words, mode="sum")
    rebuilt = decoder(quantized)
    inverse = decoder(latents, frozen=True)
    loss: Tensor = (
        (rebuilt - points).square().mean()
        + (inverse - points).square().mean()
        + commitment * (latents - quantized.detach()).square().mean()
    )
    return loss


def _state(
    words: Tensor, start: ResidualQuantizer, encoder: ResidualMLP, decoder: ResidualMLP, beam: int
) -> ResidualQuantizer:
    """Return a quantizer of copies of the weights as they are now."""
    return ResidualQuantizer(
        torch.split(words.detach().clone(), list(start.codebook_sizes)),
        beam=beam,
        prefix_weight=start.prefix_weight,
        mean=start.mean,
        scale=start.scale,
        encoder=encoder.on(start.device),
        decoder=decoder.on(start.device),
    )


def _judged(points: Tensor, state: ResidualQuantizer) -> float:
    """Return the error of normalized points over their variance, through encoder and decoder."""
    return _relative(points, state.search, state.codes_of(points), state.decoder)


class _Adam:
    """
    Adam as Kingma and Ba have it, a step length for every tensor.

    torch.optim would do, but its first use imports the compiler: 2.5 s and 150 MB.
    """

    def __init__(self, weights: Sequence[tuple[Tensor, float]]) -> None:
        self.weights = [weight for weight, _ in weights]
        self.lengths = [length for _, length in weights]
        self.means = [torch.zeros_like(weight) for weight in self.weights]
        self.squares = [torch.zeros_like(weight) for weight in self.weights]
        self.steps = 0

    def step(self, gradients: Sequence[Tensor], share: float) -> None:
        """Go one step down, `share` of the full length."""
        self.steps += 1
        with torch.no_grad():
            for weight, length, mean, square, gradient in zip(
                self.weights, self.lengths, self.means, self.squares, gradients, strict=True
            ):
                mean.lerp_(gradient, 0.1)
                square.lerp_(gradient.square(), 0.001)
                spread = (square / (1 - 0.999**self.steps)).sqrt_().add_(1e-8)
                weight.addcdiv_(mean, spread, value=-length * share / (1 - 0.9**self.steps))
