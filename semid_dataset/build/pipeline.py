"""
The first table of a lineage: fuse, train, encode, make unique, measure.

The only way to new codebooks; torch is imported when it is taken. For more items than memory holds see `scale`.
"""

import math
import resource
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset._messages import degrade, tell
from semid_dataset.config import Identity, SemanticIdConfig
from semid_dataset.progress import Progress
from semid_dataset.table.build import TableData
from semid_dataset.table.header import TableHeader

if TYPE_CHECKING:
    from semid_dataset.codec.unique import Items, Resolution
    from semid_dataset.inputs.read import Embeddings
    from semid_dataset.protocols import Quantizer, Trained

__all__ = ["bulk_rows", "first_header", "make_unique", "tell_beyond", "train_quantizer", "train_table"]


def train_table(
    embeddings: "Embeddings",
    config: SemanticIdConfig,
    identity: Identity,
    progress: Progress,
) -> TableData:
    """
    Train codebooks on embeddings and return table 0 of a new lineage, which has no name yet.

    Raises:
        TrainingError, EmbeddingError, ConfigError: no codebooks came of it.
    """
    from semid_dataset.codec.bulk import distances, rows_with_share
    from semid_dataset.codec.fusion import Fusion
    from semid_dataset.codec.kinds import centre_of, encode, fused, state_of
    from semid_dataset.codec.metrics import measure

    items = len(embeddings.items)
    with progress.stage("fusion"):
        if embeddings.fused is None:
            fusion = Fusion.fit(embeddings.features, items, config.fusion, config.seed)
            vectors = fusion.apply(embeddings.features, items)
        else:
            fusion, vectors = embeddings.fused
    trained = train_quantizer(vectors, config, progress)
    quantizer = trained.quantizer
    if fusion.kind != "single":
        quantizer = fused(quantizer, fusion)
    tell("encoding")
    with progress.stage("encoding"):
        raw = encode(quantizer, vectors)
    weights, description = state_of(quantizer, trained.centre)
    with progress.stage("uniqueness"):
        far = distances(vectors, centre_of(weights))
        rows = bulk_rows(embeddings.items, far, trained.radius)
        resolution, unique = make_unique(quantizer, vectors, raw, config)
    tell("encoded", items=items)
    codes = resolution.codes
    if rows is not None:
        vectors, codes = vectors[rows], codes[rows]
    with progress.stage("measuring"):
        quality = measure(quantizer, vectors, raw, resolution, trained, rows=rows)
        quality |= {"set_aside": items - len(vectors), "rows_with_99_percent": rows_with_share(far)}
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
        progress=progress,
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
    tell("beyond_bulk", count=count, rows=rows, named=", ".join(named) + more, times=times)


def train_quantizer(vectors: NDArray[np.float32], config: SemanticIdConfig, progress: Progress) -> "Trained":
    """
    Train codebooks on vectors (n, dim), telling the user how far it is.

    Raises:
        TrainingError, EmbeddingError, ConfigError: no codebooks came of it.
    """
    from semid_dataset.codec.train import train

    tell("training")
    with progress.stage("training"):
        trained = train(vectors, config, progress=progress)
    tell("trained")
    return trained


def make_unique(
    quantizer: "Quantizer", items: "NDArray[np.float32] | Items", raw: NDArray[Any], config: SemanticIdConfig
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
    progress: Progress,
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
            "seconds": progress.seconds,
            "stages": dict(progress.stages),
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
