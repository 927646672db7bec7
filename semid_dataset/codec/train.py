"""
Train a quantizer on vectors: the trainer that a configuration names, on the device there is, without broken rows.
"""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from semid_dataset._messages import tell
from semid_dataset.codec._threads import OutOfMemory, isolated
from semid_dataset.codec.bulk import find_bulk
from semid_dataset.config import SemanticIdConfig
from semid_dataset.errors import ConfigError, EmbeddingError, ForkError, TrainingError
from semid_dataset.progress import Progress
from semid_dataset.protocols import Trained, Trainer
from semid_dataset.registry import QUANTIZERS, TRAINERS

__all__ = ["Trained", "chosen_device", "configured", "fit_quantizer", "train", "trainer_of"]


SETTINGS = frozenset(one.name for one in fields(SemanticIdConfig))


def configured(algorithm: "str | Trainer", **settings: Any) -> tuple[SemanticIdConfig, Trainer]:
    """
    Return a configuration and its trainer, which may be given by name or as one with settings of its own.

    Raises:
        ConfigError: a setting is out of range, or there is no such trainer.
    """
    if not is_dataclass(algorithm) or not callable(getattr(type(algorithm), "fit", None)):
        config = SemanticIdConfig(algorithm=algorithm, **settings)  # type: ignore[arg-type] # which refuses others
        return config, trainer_of(config)
    theirs = {one.name: getattr(algorithm, one.name) for one in fields(algorithm) if one.name in SETTINGS}
    return SemanticIdConfig(**{**theirs, **settings}), algorithm


def train(
    vectors: NDArray[np.floating],
    config: SemanticIdConfig,
    *,
    trainer: Trainer | None = None,
    progress: Progress | None = None,
) -> Trained:
    """
    Train a quantizer as a configuration says, see `fit_quantizer`.

    Args:
        vectors: (n, dim), n >= 1, finite; float16, float32 or float64.
        config: algorithm and its settings, sizes, device and seed.
        trainer: in place of the one that it names.
        progress: as there.
    """
    sizes, device, trainer = config.codebook_sizes, config.device, trainer or trainer_of(config)
    return fit_quantizer(vectors, trainer, sizes=sizes, device=device, seed=config.seed, progress=progress)


def trainer_of(config: SemanticIdConfig) -> Trainer:
    """
    Return the trainer that a configuration names, with those of its settings that the configuration has.

    Raises:
        ConfigError: there is none of that name, or it cannot be loaded.
    """
    kind = TRAINERS.get(config.algorithm)
    trainer: Trainer = kind(
        **{one.name: getattr(config, one.name) for one in fields(kind) if hasattr(config, one.name)}
    )
    return trainer


@isolated()
def fit_quantizer(
    vectors: NDArray[np.floating],
    trainer: Trainer,
    *,
    sizes: Sequence[int],
    device: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> Trained:
    """
    Train a quantizer on item vectors.

    Args:
        vectors: (n, dim), n >= 1, finite; float16, float32 or float64.
        trainer: how.
        sizes: codes a level.
        device: "auto" is CUDA where there is one.
        seed: of every random draw.
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
    if bulk.beyond is not None:
        points = points[~bulk.beyond]
    device = chosen_device(device)
    attempts = [(device, trainer), (device, _smaller(trainer, 2))]
    attempts += [("cpu", trainer)] if device != "cpu" else [("cpu", _smaller(trainer, 4))]
    message = ""
    for number, (where, how) in enumerate(attempts):
        try:
            trained = how.fit(points, sizes=sizes, device=where, seed=seed, progress=progress or Progress())
            trained = _looked_over(trained, how, points, sizes, bulk.radius)
            if "networks" in trained.choices:
                errors = trained.held_out
                tell("chosen", start=errors["start"], end=errors["end"], **trained.choices)
            return trained
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
            then, smaller = attempts[number + 1]
            batch = getattr(smaller, "batch_size", None)
            how_then = f"on {then}" + (f" with batches of {batch}" if batch else "")
            tell("out_of_memory", device=where, how=how_then)
    raise TrainingError(
        f"Training {len(points)} items of {points.shape[1]} dims ran out of memory on {device}, with smaller "
        f"batches and on the CPU too: {message}. Free memory, or train on fewer items."
    )


def _looked_over(
    trained: Trained, trainer: Trainer, points: NDArray[np.floating], sizes: Sequence[int], radius: float
) -> Trained:
    """
    Return what a trainer returned, with what it need not know.

    Raises:
        TrainingError: it made another quantizer than was asked for.
        ConfigError: nothing could read the quantizer back.
    """
    quantizer = trained.quantizer
    found, wanted = (tuple(quantizer.codebook_sizes), quantizer.dim), (tuple(sizes), points.shape[1])
    if found != wanted:
        raise TrainingError(
            f"The trainer {trainer.name!r} made a quantizer of {found[0]} codes for {found[1]} dims; {wanted[0]} codes "
            f"for {wanted[1]} dims were asked for. Nothing was written. Correct the trainer, or name another algorithm."
        )
    QUANTIZERS.get(quantizer.kind)
    centre = None if hasattr(quantizer, "mean") else points.mean(0, dtype=np.float64).astype(np.float32)
    return replace(trained, radius=radius, centre=centre)


def _smaller(trainer: Trainer, share: int) -> Trainer:
    """Return a trainer whose batches are smaller, where it has any."""
    settings: Any = trainer
    if not hasattr(settings, "batch_size"):
        return trainer
    found: Trainer = replace(settings, batch_size=max(settings.batch_size // share, 1))
    return found


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
