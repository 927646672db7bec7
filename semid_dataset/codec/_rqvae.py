"""
Fit codebooks and an autoencoder around them: the trainer "rqvae", and "auto", which does so where it can pay.

It begins where "rqkmeans" ends, goes on by gradient descent, from an autoencoder that is the identity, and keeps the
best state on items that were held out; so it never ends worse than it started.

Codes are renewed once an epoch and fixed in between: looking for codes costs more than a step does.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from semid_dataset.codec._codebooks import HELD_OUT, Points, judged
from semid_dataset.codec._kmeans import sample
from semid_dataset.codec._networks import ResidualMLP
from semid_dataset.codec._threads import in_blocks, isolated, sent
from semid_dataset.codec.residual import ResidualQuantizer
from semid_dataset.progress import Progress
from semid_dataset.protocols import Trained

__all__ = ["RQVAE", "Auto"]

EPOCH_ITEMS = 1 << 16  # that an epoch looks at, drawn anew for each
EPOCH_BEAM = 4  # width of the search that renews codes
PATIENCE = 3  # epochs without a better state
# Share of the learning rate: the encoder follows the decoder (50,000 x 32, held out, from 0.04208 in 20 epochs: to
# 0.04204 with 1, to 0.04200 with 0.1).
ENCODER_LR = 0.1
SLICE_PRODUCTS, SLICE_ROWS = 1 << 24, 128  # a slice of a batch: multiplications of one layer, and rows, at least
PROGRESS = 0.001  # an epoch that lowers the held-out error by a smaller share does not count as better
WORTH = 0.005  # what the last correction, which takes in the held-out items, brings: networks must bring more
# How much worse unseen items may be written than known ones, and what networks brought, held out: 180,000 x 128 1.5 %,
# 15 % less error; 45,000 x 32 in clusters 6 %, 3 %; 45,000 x 64 of heavy tails 10 %, 1 %; 45,000 x 50 11 %, nothing;
# texts of 256 and 384 dims and images 15 to 40 %, nothing or harm. An epoch on a sample and a regression on random
# features, within a tenth of the time of k-means, see no difference between any of these.
MOST_OVERFIT = 0.08
# 180,000 x 128, held out, from 0.0749: 8 epochs at 1e-3 0.0706, 6 at 4e-3 0.0651, 8 0.0634, 6 at 1e-2 0.0643. 45,000 x
# 32 in clusters, from 0.0399: 20 epochs at 1e-3 0.0387, 8 at 4e-3 0.0388.
AUTO_EPOCHS, PACE = 8, 4.0


@dataclass(frozen=True)
class RQVAE:
    """
    An autoencoder around codebooks; the attributes are those of `SemanticIdConfig`.

    Attributes:
        commitment_cost: weight of the commitment loss.
        lr: learning rate (Adam).
        num_epochs: most epochs; 0 is "rqkmeans".
        batch_size: items a step.
    """

    name: ClassVar[str] = "rqvae"
    measures: ClassVar[bool] = False
    commitment_cost: float = 0.25
    lr: float = 1e-3
    num_epochs: int = 20
    batch_size: int = 1024

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
        Fit codebooks and networks to vectors, see `protocols.Trainer.fit`.

        Raises:
            EmbeddingError: the vectors are all equal.
        """
        progress = progress or Progress()
        points = Points.of(vectors, device, seed, sizes)
        progress.advance()
        start, curve, choices = points.start(sizes, progress, told=self.measures)
        error = judged(points.judge, start)
        held_out = {"start": error, "end": error, "items": len(points.judge)}
        choices |= {"algorithm": "rqkmeans", "networks": "not tried"}
        settings = self._settings(points, start, choices)
        if settings.num_epochs:
            choices["networks"] = "thrown away"
            best, curve = _epochs(points, start, settings=settings, progress=progress)
            found = judged(points.judge, best)
            if found < error * (1 - WORTH):  # the items that judge have chosen nothing yet
                held_out["end"] = found
                choices |= {"algorithm": "rqvae", "networks": "kept"}
                return Trained(points.finished(best), curve, len(curve), device, held_out, choices=choices)
        return Trained(points.corrected(start), curve, len(curve), device, held_out, choices=choices)

    def _settings(self, points: Points, start: ResidualQuantizer, choices: dict[str, Any]) -> "RQVAE":
        """Return the settings that epochs are run with, and note in `choices` what was measured to choose them."""
        return self


@dataclass(frozen=True)
class Auto(RQVAE):
    """
    Codebooks, and an autoencoder around them where it can pay; the attributes are those of `SemanticIdConfig`.

    Whether it can is asked of the codebooks, for the price of encoding two thousand items: where these write items
    that were held out much worse than those they were fitted on, items are too few for what there is to fit already,
    and whatever is added learns their noise. Epochs are few, then, and their steps long.

    Attributes:
        lr: learning rate, of which epochs take `PACE` times as much.
        num_epochs: most epochs, and at most `AUTO_EPOCHS`.
    """

    name: ClassVar[str] = "auto"
    measures: ClassVar[bool] = True

    def _settings(self, points: Points, start: ResidualQuantizer, choices: dict[str, Any]) -> RQVAE:
        known, unseen = judged(points.fit[:HELD_OUT], start), judged(points.choose, start)
        choices["overfit"] = unseen / known - 1 if known > 0 else 0.0
        can_pay = known > 0 and points.choose is not points.fit and choices["overfit"] < MOST_OVERFIT
        epochs = min(self.num_epochs, AUTO_EPOCHS) if can_pay else 0
        return replace(self, num_epochs=epochs, lr=self.lr * PACE)


def _epochs(
    points: Points, start: ResidualQuantizer, *, settings: RQVAE, progress: Progress
) -> tuple[ResidualQuantizer, list[float]]:
    """
    Descend from the identity.

    Returns:
        The state that the items that choose liked best (`start` itself, if they liked none), and the loss of every
        epoch.
    """
    fit, generator = points.fit, points.generator
    width = max(64, min(2 * start.dim, 512))
    encoder = ResidualMLP(start.dim, width, generator).on(fit.device)
    decoder = ResidualMLP(start.dim, width, generator).on(fit.device)
    words = torch.cat(start.codebooks)
    steps = max(min(len(fit), EPOCH_ITEMS) // settings.batch_size, 1)
    descent = _Adam(
        [(words, settings.lr)]
        + [(weight, settings.lr * ENCODER_LR) for weight in encoder.weights.values()]
        + [(weight, settings.lr) for weight in decoder.weights.values()]
    )
    for weight in descent.weights:
        weight.requires_grad_()
    best, best_error, since = start, judged(points.choose, start), 0
    curve: list[float] = []
    for epoch in range(1, settings.num_epochs + 1):
        some = sample(fit, EPOCH_ITEMS, generator)
        codes = _state(words, start, encoder, decoder, EPOCH_BEAM).codes_of(some) + start.search.offsets
        total = torch.zeros((), dtype=torch.float32, device=fit.device)
        order = sent(torch.randperm(len(some), generator=generator, device="cpu"), fit.device)
        for step in range(steps):
            chosen = order[step * settings.batch_size : (step + 1) * settings.batch_size]
            loss, gradients = _gradients(
                some[chosen],
                codes[chosen],
                words,
                encoder=encoder,
                decoder=decoder,
                commitment=settings.commitment_cost,
                weights=descent.weights,
            )
            done = (epoch - 1 + step / steps) / settings.num_epochs
            warm = min((step + 1) / steps if epoch == 1 else 1.0, 1.0)
            descent.step(gradients, share=warm * (1 + math.cos(math.pi * done)) / 2)
            total += loss
        curve.append(float(total / steps))
        progress.advance()
        state = _state(words, start, encoder, decoder, start.beam)
        error = judged(points.choose, state)
        since = 0 if error < best_error * (1 - PROGRESS) else since + 1
        if error < best_error:
            best, best_error = state, error
        progress.epoch(epoch, settings.num_epochs, curve[-1])
        if since == PATIENCE:
            break
    return best, curve


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
