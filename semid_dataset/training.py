"""
Fit codebooks, and the autoencoder around them.

One way for both algorithms: normalize, fit the codebooks level by level, correct them by least
squares. "rqvae" then goes on by gradient descent, from an autoencoder that is the identity, and
keeps the best state on items that were held out; so it never ends worse than it started.

Codes are always those of the beam search that will encode in the end. In the epochs they are renewed once an
epoch and fixed in between: looking for codes costs more than a step does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from semid_dataset.config import SemanticIdConfig
from semid_dataset.errors import EmbeddingError, TrainingError
from semid_dataset.kmeans import kmeans, sums
from semid_dataset.messages import tell
from semid_dataset.quantizer import BeamSearch, ResidualMLP, ResidualQuantizer

__all__ = ["Trained", "train"]

LOW_DIMS = 64  # up to here k-means++ starts and narrow beams do
MOST_ITEMS = 262_144  # a sample that size costs 1.2 % of error against 5 million items
HELD_OUT = 2048  # items that judge, at most; at most a tenth of all
ROUNDS = 3
PATIENCE = 3  # epochs without a better state

Epoch = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Trained:
    """
    What came of a training.

    Attributes:
        quantizer: ready to encode.
        curve: loss of every epoch ("rqkmeans": error of every round).
        stopped_at: epochs that were run.
        device: where.
        held_out: relative MSE of held-out items: "start" with the codebooks alone, "end" as they are;
            "items" is their number.
    """

    quantizer: ResidualQuantizer
    curve: list[float]
    stopped_at: int
    device: str
    held_out: dict[str, float]


def train(
    vectors: NDArray[np.floating],
    config: SemanticIdConfig,
    *,
    on_epoch: Epoch | None = None,
    on_progress: Callable[[], None] | None = None,
) -> Trained:
    """
    Train a quantizer on item vectors.

    Args:
        vectors: (n, dim), n >= 1, finite; float16, float32 or float64.
        config: algorithm, sizes, epochs, device and seed.
        on_epoch: called with epoch, epochs and loss after every epoch.
        on_progress: called after every piece of work, every few seconds at the most.

    Returns:
        The quantizer, on the device it was trained on.

    Raises:
        EmbeddingError: no vectors, not two axes, or a row that is not finite; the message names the first.
        TrainingError: memory did not suffice, not even on the CPU and with smaller batches.

    Equal seeds give equal codebooks on one machine. Memory: two float32 copies of the vectors used
    (at most 262,144), the codebooks, and some 10 MB.
    """
    points = _checked(vectors)
    beat = on_progress or (lambda: None)
    device = _device(config.device)
    attempts = [(device, config.batch_size), (device, max(config.batch_size // 2, 1))]
    attempts += [("cpu", config.batch_size)] if device != "cpu" else [("cpu", max(config.batch_size // 4, 1))]
    for number, (where, batch) in enumerate(attempts):
        try:
            return _train(points, config, device=where, batch=batch, on_epoch=on_epoch, beat=beat)
        except torch.OutOfMemoryError as error:
            message = str(error)
        # Outside of the handler: the error's traceback holds the tensors of the failed attempt.
        if number + 1 < len(attempts):
            where_next, batch_next = attempts[number + 1]
            tell("out_of_memory", 30, device=where, how=f"on {where_next} with batches of {batch_next}")
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


def _device(wanted: str) -> str:
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


def _train(
    vectors: NDArray[np.floating],
    config: SemanticIdConfig,
    *,
    device: str,
    batch: int,
    on_epoch: Epoch | None,
    beat: Callable[[], None],
) -> Trained:
    generator = torch.Generator().manual_seed(config.seed)
    n, dim = vectors.shape
    order = torch.randperm(n, generator=generator)[:MOST_ITEMS].numpy()
    held = min(n // 10, HELD_OUT)
    points = torch.from_numpy(vectors[order].astype(np.float32)).to(device)
    mean = points.double().mean(0).float()
    points -= mean
    spread = float(points.square().mean(dtype=torch.float64).sqrt())
    scale = 2.0 ** round(np.log2(spread)) if spread > 0 else 1.0  # a power of two: exact
    points /= scale
    # Fewer than ten items: they judge themselves.
    fit, judge = (points[held:], points[:held]) if held else (points, points)
    beat()

    beam = 4 if dim <= LOW_DIMS else 16
    codebooks = _start(fit, config.codebook_sizes, beam, generator, beat)
    curve = []
    for number in range(ROUNDS):
        codebooks = _refit(fit, codebooks, beam, 0.0 if dim <= LOW_DIMS else 3.0)
        curve.append(_relative(fit, BeamSearch(codebooks, beam)))
        beat()
        if config.algorithm == "rqkmeans" and on_epoch is not None:
            on_epoch(number + 1, ROUNDS, curve[-1])
    start = _relative(judge, BeamSearch(codebooks, beam))
    quantizer = ResidualQuantizer(codebooks, beam=beam, mean=mean, scale=scale)
    if config.algorithm == "rqkmeans" or config.num_epochs == 0:
        return Trained(quantizer, curve, ROUNDS, device, {"start": start, "end": start, "items": len(judge)})
    return _epochs(
        fit, judge, quantizer, start, config=config, batch=batch, generator=generator, on_epoch=on_epoch, beat=beat
    )


def _start(
    points: Tensor,
    sizes: Sequence[int],
    beam: int,
    generator: torch.Generator,
    beat: Callable[[], None],
) -> list[Tensor]:
    """
    Fit one level after the other, each on what all partial sums of the beam leave over.

    The residuals of the whole beam are more points than those of the best sums alone, and what the
    codebook will be asked for: the best sum in the end is often not the best on the way.
    """
    codebooks: list[Tensor] = []
    for size in sizes:
        residuals = points
        if codebooks:
            search = BeamSearch(codebooks, beam)
            codes = search.blocks(points, 1)
            residuals = points - search.sums(codes[:, 0])
        codebooks.append(kmeans(residuals, size, generator, 10 if points.shape[1] <= LOW_DIMS else 4))
        beat()
    return codebooks


def _refit(points: Tensor, codebooks: Sequence[Tensor], beam: int, ridge: float, sweeps: int = 3) -> list[Tensor]:
    """
    Correct codebooks by least squares for the codes that the search gives now.

    Minimizes Σ‖x − Σ_l (c_l + δ_l)‖² + ridge Σ‖δ‖² over the corrections δ, one level after the other
    (Gauss-Seidel): every step is the exact minimum of its level, so the error never grows.
    """
    search = BeamSearch(codebooks, beam)
    codes = search.blocks(points)[:, 0]
    residuals = points - search.sums(codes)
    corrections = [torch.zeros_like(book) for book in codebooks]
    for _ in range(sweeps):
        for level, book in enumerate(codebooks):
            chosen = codes[:, level].contiguous()
            total, counts = sums(residuals, chosen, len(book))
            better = (total + counts[:, None] * corrections[level]) / (counts + ridge).clamp(min=1e-9)[:, None]
            residuals += (corrections[level] - better)[chosen]
            corrections[level] = better
    return [book + correction for book, correction in zip(codebooks, corrections, strict=True)]


def _relative(points: Tensor, search: BeamSearch) -> float:
    """Return the error of points over their variance (about the origin)."""
    error = (points - search.sums(search.blocks(points)[:, 0])).square().sum(dtype=torch.float64)
    return float(error / points.square().sum(dtype=torch.float64).clamp(min=1e-30))


def _epochs(
    fit: Tensor,
    judge: Tensor,
    start: ResidualQuantizer,
    start_error: float,
    *,
    config: SemanticIdConfig,
    batch: int,
    generator: torch.Generator,
    on_epoch: Epoch | None,
    beat: Callable[[], None],
) -> Trained:
    """Descend from the identity; return the state that the held-out items liked best."""
    dim = start.dim
    encoder = ResidualMLP(dim, max(64, min(2 * dim, 512)), generator).to(fit.device)
    decoder = ResidualMLP(dim, max(64, min(2 * dim, 512)), generator).to(fit.device)
    words = torch.nn.Parameter(torch.cat(start.codebooks))
    sizes = list(start.codebook_sizes)
    optimizer = torch.optim.Adam([words, *encoder.parameters(), *decoder.parameters()], lr=config.lr)
    steps = max(len(fit) // batch, 1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.num_epochs * steps)
    best, best_error, since = start, start_error, 0
    curve: list[float] = []
    for epoch in range(1, config.num_epochs + 1):
        with torch.inference_mode():
            search = BeamSearch(torch.split(words.detach(), sizes), start.beam)
            codes = (
                torch.cat([search(encoder(block))[:, 0] for block in torch.split(fit, search.rows)]) + search.offsets
            )
        total = torch.zeros((), device=fit.device)
        order = torch.randperm(len(fit), generator=generator).to(fit.device)
        for step in range(steps):
            chosen = order[step * batch : (step + 1) * batch]
            loss = _loss(
                fit[chosen],
                codes[chosen].clone(),
                words,
                encoder=encoder,
                decoder=decoder,
                commitment=config.commitment_cost,
            )
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            total += loss.detach()
        curve.append(float(total / steps))
        beat()
        state = ResidualQuantizer(
            torch.split(words.detach().clone(), sizes), beam=start.beam, mean=start.mean, scale=start.scale,
            encoder=_frozen(encoder), decoder=_frozen(decoder),
        )  # fmt: skip
        error = _judged(judge, state)
        if error < best_error:
            best, best_error, since = state, error, 0
        else:
            since += 1
        if on_epoch is not None:
            on_epoch(epoch, config.num_epochs, curve[-1])
        if since == PATIENCE:
            break
    held_out = {"start": start_error, "end": best_error, "items": len(judge)}
    return Trained(best, curve, len(curve), str(fit.device), held_out)


def _loss(
    points: Tensor, codes: Tensor, words: Tensor, *, encoder: ResidualMLP, decoder: ResidualMLP, commitment: float
) -> Tensor:
    """
    Reconstruction plus commitment, for codes that are given.

    The sum of codewords gets the reconstruction's gradient itself, which refines all codebooks
    jointly; the encoder gets it straight through.
    """
    latents = encoder(points)
    quantized = torch.nn.functional.embedding_bag(codes, words, mode="sum")
    rebuilt = decoder(quantized + latents - latents.detach())
    loss: Tensor = (rebuilt - points).square().mean() + commitment * (latents - quantized.detach()).square().mean()
    return loss


def _frozen(module: ResidualMLP) -> ResidualMLP:
    copy = ResidualMLP(module.first.shape[1], module.first.shape[0]).to(module.first.device)
    copy.load_state_dict(module.state_dict())
    return copy.requires_grad_(False)


def _judged(points: Tensor, state: ResidualQuantizer) -> float:
    """Return the error of normalized points over their variance, through encoder and decoder."""
    raw = points * state.scale + state.mean
    error = (raw - state.decode(state.encode(raw))).square().sum(dtype=torch.float64) / state.scale**2
    return float(error / points.square().sum(dtype=torch.float64).clamp(min=1e-30))
