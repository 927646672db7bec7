"""
The first table of a lineage: fuse, train, encode, make unique, measure.

The only way to new codebooks; torch is imported when it is taken. For more items than memory holds see `scale`.
"""

import logging
import math
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset._messages import degrade, tell
from semid_dataset.cache.lock import Lease
from semid_dataset.config import Identity, SemanticIdConfig
from semid_dataset.table.build import TableData
from semid_dataset.table.header import TableHeader

if TYPE_CHECKING:
    from semid_dataset.codec.residual import ResidualQuantizer
    from semid_dataset.codec.train import Trained
    from semid_dataset.codec.unique import Items, Resolution
    from semid_dataset.inputs.read import Embeddings

__all__ = ["Clock", "bulk_rows", "first_header", "make_unique", "tell_beyond", "train_quantizer", "train_table"]

EPOCHS_PER_LINE = 5


class Clock:
    """
    Seconds of every stage of a run.

    Args:
        started: when it began, as `time.perf_counter` says it.
        heartbeat: called at the end of every stage.
    """

    def __init__(self, started: float, heartbeat: Callable[[], None]) -> None:
        self.stages: dict[str, float] = {}
        self._heartbeat = heartbeat
        self._started = self._began = started

    def done(self, stage: str) -> None:
        """Note that a stage has ended."""
        self._heartbeat()
        now = time.perf_counter()
        self._began, self.stages[stage] = now, now - self._began

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.perf_counter() - self._started


def train_table(
    embeddings: "Embeddings",
    config: SemanticIdConfig,
    identity: Identity,
    lease: Lease,
    started: float,
) -> TableData:
    """
    Train codebooks on embeddings and return table 0 of a new lineage, which has no name yet.

    Raises:
        TrainingError, EmbeddingError, ConfigError: no codebooks came of it.
    """
    from semid_dataset.codec.bulk import distances, rows_with_share
    from semid_dataset.codec.fusion import Fusion
    from semid_dataset.codec.metrics import measure

    clock = Clock(started, lease.heartbeat)
    clock.done("reading")
    items = len(embeddings.items)
    if embeddings.fused is None:
        fusion = Fusion.fit(embeddings.features, items, config.fusion, config.seed)
        vectors = fusion.apply(embeddings.features, items)
    else:
        fusion, vectors = embeddings.fused
    clock.done("fusion")
    trained = train_quantizer(vectors, config, lease.heartbeat)
    clock.done("training")
    quantizer = trained.quantizer
    if fusion.kind != "single":
        quantizer.fusion = fusion
    tell("encoding")
    raw = quantizer.encode(vectors)
    clock.done("encoding")
    weights, description = quantizer.to_arrays()
    far = distances(vectors, weights["mean"])
    rows = bulk_rows(embeddings.items, far, trained.radius)
    resolution, unique = make_unique(quantizer, vectors, raw, config)
    clock.done("uniqueness")
    tell("encoded", items=items)
    codes = resolution.codes
    if rows is not None:
        vectors, codes = vectors[rows], codes[rows]
    quality = measure(quantizer, vectors, raw, resolution, trained, rows=rows)
    quality |= {"set_aside": items - len(vectors), "rows_with_99_percent": rows_with_share(far)}
    clock.done("measuring")
    error, variance = _error_and_variance(vectors, quantizer.decode(codes))
    header = first_header(
        identity,
        {**config.to_dict(), "unique": unique},
        description,
        quality,
        embeddings,
        items=items,
        moved=resolution.moved,
        bad_rows=embeddings.bad_rows,
        device=trained.device,
        variance=variance,
        relative_error=error / variance if variance > 0 else 0.0,
        radius=trained.radius,
        clock=clock,
    )
    return TableData(embeddings.items, resolution.codes, header, weights)


def bulk_rows(
    items: NDArray[np.int64] | list[str], far: NDArray[np.float64], radius: float
) -> NDArray[np.int64] | None:
    """
    Return the positions of the items in the bulk; None where all are. Those beyond are named in a warning.

    Args:
        items: n.
        far: (n,) their distances from the centre.
        radius: where the bulk ends.
    """
    beyond = far > radius
    if not beyond.any():
        return None
    first = np.flatnonzero(beyond)[:3].tolist()
    times = float(far.max() / max(float(far[~beyond].max()), 1e-300))
    tell_beyond(int(beyond.sum()), len(far), [str(items[row]) for row in first], times)
    return np.flatnonzero(~beyond)


def tell_beyond(count: int, rows: int, named: Sequence[str], times: float) -> None:
    """Warn of rows that lie beyond the bulk; `named` are the first of their items."""
    more = ", ..." if count > len(named) else ""
    tell("beyond_bulk", logging.WARNING, count=count, rows=rows, named=", ".join(named) + more, times=times)


def train_quantizer(vectors: NDArray[np.float32], config: SemanticIdConfig, heartbeat: Callable[[], None]) -> "Trained":
    """
    Train codebooks on vectors (n, dim), telling the user how far it is.

    Raises:
        TrainingError, EmbeddingError, ConfigError: no codebooks came of it.
    """
    from semid_dataset.codec.train import train

    tell("training")

    def on_epoch(epoch: int, epochs: int, loss: float) -> None:
        heartbeat()
        if epoch % EPOCHS_PER_LINE == 0 or epoch == epochs:
            tell("epoch", epoch=epoch, epochs=epochs, loss=loss)

    trained = train(vectors, config, on_epoch=on_epoch, on_progress=heartbeat)
    if trained.curve and trained.stopped_at % EPOCHS_PER_LINE and trained.stopped_at < config.num_epochs:
        tell("epoch", epoch=trained.stopped_at, epochs=config.num_epochs, loss=trained.curve[-1])  # stopped early
    tell("trained")
    return trained


def make_unique(
    quantizer: "ResidualQuantizer", items: "NDArray[np.float32] | Items", raw: NDArray[Any], config: SemanticIdConfig
) -> "tuple[Resolution, bool]":
    """
    Make raw codes (n, levels) unique, if the configuration wants it and they fit into its capacity.

    Args:
        items: as in `resolve_collisions`.

    Returns:
        The codes, and whether they were made unique.
    """
    from semid_dataset.codec.unique import Resolution, resolve_collisions, shared_items

    if config.unique and len(raw) <= config.capacity:
        return resolve_collisions(quantizer, items, raw), True
    if config.unique:
        degrade("beyond_capacity", items=len(raw), capacity=config.capacity)
    return Resolution(raw, moved=0, exact_duplicates=0, shared=shared_items(raw)), False


def first_header(
    identity: Identity,
    settings: Mapping[str, Any],
    description: Mapping[str, Any],
    quality: Mapping[str, Any],
    embeddings: "Embeddings",
    *,
    items: int,
    moved: int,
    bad_rows: int,
    device: str,
    variance: float,
    relative_error: float,
    radius: float,
    clock: Clock,
) -> TableHeader:
    """Return what table 0 of a lineage says about itself."""
    now = time.time()
    return TableHeader(
        identity=identity,
        settings=settings,
        quantizer=description,
        quality=quality,
        provenance={
            "born": now,
            "embeddings": embeddings.digest,
            "files": embeddings.files,
            "bad_rows": bad_rows,
            "device": device,
            "variance": variance,
            "relative_error": relative_error,
            **({"radius": radius} if math.isfinite(radius) else {}),
            "seconds": clock.seconds,
            "stages": clock.stages,
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        },
        behaviour=embeddings.behaviour,
        history=({"generation": 0, "time": now, "items": items, "new": items, "moved": moved},),
    )


def _error_and_variance(vectors: NDArray[np.float32], decoded: NDArray[np.float32]) -> tuple[float, float]:
    """Return mean squared error and variance per item, in blocks: a whole copy in float64 would double the memory."""
    mean = vectors.mean(0, dtype=np.float64)
    error = variance = 0.0
    for start in range(0, len(vectors), 8192):
        block = vectors[start : start + 8192].astype(np.float64)
        error += float(np.square(block - decoded[start : start + 8192]).sum())
        variance += float(np.square(block - mean).sum())
    return error / len(vectors), variance / len(vectors)
