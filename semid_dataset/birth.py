"""
The first table of a lineage: fuse, train, encode, make unique, measure.

The only way to new codebooks; torch is imported when it is taken.
"""

import resource
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset.config import Identity, SemanticIdConfig
from semid_dataset.messages import degrade, tell
from semid_dataset.store import Turn
from semid_dataset.table import build_table_buffers

if TYPE_CHECKING:
    from semid_dataset.features import Embeddings

__all__ = ["train_table"]

EPOCHS_PER_LINE = 5


def train_table(
    embeddings: "Embeddings",
    config: SemanticIdConfig,
    identity: Identity,
    name: str,
    turn: Turn,
    started: float,
) -> list[Any]:
    """
    Train codebooks on embeddings and return the bytes of table 0 of a new lineage.

    Raises:
        TrainingError, EmbeddingError, ConfigError: no codebooks came of it.
    """
    from semid_dataset.collisions import Resolution, resolve_collisions
    from semid_dataset.fusion import Fusion
    from semid_dataset.quality import measure
    from semid_dataset.training import train

    stages: dict[str, float] = {}  # seconds
    began = started

    def done(stage: str) -> None:
        nonlocal began
        turn.beat()
        began, stages[stage] = time.perf_counter(), time.perf_counter() - began

    done("reading")
    items = len(embeddings.items)
    fusion = Fusion.fit(embeddings.features, items, config.fusion, config.seed)
    vectors = fusion.apply(embeddings.features, items)
    done("fusion")
    tell("training")

    def on_epoch(epoch: int, epochs: int, loss: float) -> None:
        turn.beat()
        if epoch % EPOCHS_PER_LINE == 0 or epoch == epochs:
            tell("epoch", epoch=epoch, epochs=epochs, loss=loss)

    trained = train(vectors, config, on_epoch=on_epoch, on_progress=turn.beat)
    if trained.curve and trained.stopped_at % EPOCHS_PER_LINE and trained.stopped_at < config.num_epochs:
        tell("epoch", epoch=trained.stopped_at, epochs=config.num_epochs, loss=trained.curve[-1])  # stopped early
    tell("trained")
    done("training")
    quantizer = trained.quantizer
    if len(embeddings.features) > 1:
        quantizer.fusion = fusion
    tell("encoding")
    raw = quantizer.encode(vectors)
    done("encoding")
    unique = config.unique
    if unique and items > config.capacity:
        degrade("beyond_capacity", items=items, capacity=config.capacity)
        unique = False
    resolution = (
        resolve_collisions(quantizer, vectors, raw)
        if unique
        else Resolution(codes=raw, moved=0, exact_duplicates=0, shared=_shared(raw))
    )
    done("uniqueness")
    tell("encoded", items=items)
    weights, description = quantizer.to_arrays()
    quality = measure(quantizer, vectors, raw, resolution, trained)
    done("measuring")
    error, variance = _error_and_variance(vectors, quantizer.decode(resolution.codes))
    now = time.time()
    info = {
        "lineage": name,
        "generation": 0,
        "identity": identity.to_dict(),
        "settings": {**config.to_dict(), "unique": unique},
        "quantizer": description,
        "quality": quality,
        "provenance": {
            "born": now,
            "embeddings": embeddings.digest,
            "files": {path.name: digest for path, digest in embeddings.file_digests.items()},
            "bad_rows": embeddings.bad_rows,
            "device": trained.device,
            "variance": variance,
            "relative_error": error / variance if variance > 0 else 0.0,
            "seconds": time.perf_counter() - started,
            "stages": stages,
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        },
        "history": [{"generation": 0, "time": now, "items": items, "new": items, "moved": resolution.moved}],
    }
    return build_table_buffers(embeddings.items, resolution.codes, info=info, weights=weights)


def _error_and_variance(vectors: NDArray[np.float32], decoded: NDArray[np.float32]) -> tuple[float, float]:
    """Return mean squared error and variance per item, in blocks: a whole copy in float64 would double the memory."""
    mean = vectors.mean(0, dtype=np.float64)
    error = variance = 0.0
    for start in range(0, len(vectors), 8192):
        block = vectors[start : start + 8192].astype(np.float64)
        error += float(np.square(block - decoded[start : start + 8192]).sum())
        variance += float(np.square(block - mean).sum())
    return error / len(vectors), variance / len(vectors)


def _shared(codes: NDArray[Any]) -> int:
    _, counts = np.unique(codes, axis=0, return_counts=True)
    return int(counts[counts > 1].sum())
