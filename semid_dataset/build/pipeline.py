"""
Vectors to a table: sample, fit, encode, make unique, measure.

The one way to new codebooks, for a set of items in memory as for one in partitions (see `itemset`); torch is imported
when it is taken.
"""

import math
import resource
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset._messages import degrade, tell
from semid_dataset.build.evidence import Evidence
from semid_dataset.build.itemset import EncodedItems, ItemSet
from semid_dataset.codec.bulk import distances, rows_with_share
from semid_dataset.config import Identity, SemanticIdConfig
from semid_dataset.inputs.read import Embeddings
from semid_dataset.progress import Progress
from semid_dataset.table.build import TableData
from semid_dataset.table.header import TableHeader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from semid_dataset.codec.unique import Items, Resolution
    from semid_dataset.protocols import Quantizer, Trained, Trainer

__all__ = ["fit_codebooks", "make_unique", "say_beyond", "tell_beyond", "train_table"]


def train_table(
    items: ItemSet,
    config: SemanticIdConfig,
    identity: Identity,
    progress: Progress,
    trainer: "Trainer | None" = None,
) -> TableData:
    """
    Train codebooks on the sample of a set of items and return table 0 of a new lineage, which has no name yet.

    A `trainer` takes the place of the one that the configuration names.

    Raises:
        TrainingError, EmbeddingError, ConfigError: no codebooks came of it.
        StoreError: the cache has no room for the work.
    """
    from semid_dataset.codec.kinds import centre_of, state_of
    from semid_dataset.codec.metrics import measure

    trained = items.trained(lambda: fit_codebooks(items.sample, config, progress, trainer))
    quantizer = trained.quantizer
    tell("encoding")
    with progress.stage("encoding"):
        encoded = items.encoded(trained, progress)
    tell_beyond(encoded)
    with progress.stage("uniqueness"):
        resolution, unique = make_unique(quantizer, encoded, encoded.codes, config)
    keys, totals = encoded.items, encoded.totals
    tell("encoded", items=len(keys))
    with progress.stage("measuring"):
        weights, description = state_of(quantizer, trained.centre)
        vectors, rows = _vectors(items.sample, quantizer), encoded.positions(items.sample)
        far = distances(vectors, centre_of(weights))
        if float(far.max()) > trained.radius:
            vectors, rows = vectors[far <= trained.radius], rows[far <= trained.radius]
        everything = len(rows) == len(encoded.codes)
        quality = measure(quantizer, vectors, encoded.codes, resolution, trained, rows=None if everything else rows)
        quality |= {"set_aside": totals.beyond, "rows_with_99_percent": rows_with_share(far)}
        error = totals.error + encoded.error_change(quantizer, resolution)
        variance = totals.variance
        if not items.complete:
            quality["sampled"] = len(rows)
            if variance > 0:  # of all items, not of the sample
                quality |= {"relative_mse_raw": totals.error / variance, "relative_mse": error / variance}
        encoded.close()
    now = time.time()
    held = items.held
    header = TableHeader(
        identity=identity,
        settings={**config.to_dict(), "unique": unique, **({"algorithm": trainer.name} if trainer else {})},
        quantizer=description,
        quality=quality,
        provenance={
            "born": now,
            "embeddings": held.digest,
            "files": held.files,
            "bad_rows": encoded.bad,
            "device": trained.device,
            "variance": variance / max(1, totals.rows),
            "relative_error": error / variance if variance > 0 else 0.0,
            **({"radius": trained.radius} if math.isfinite(trained.radius) else {}),
            "seconds": progress.seconds,
            "stages": dict(progress.stages),
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        },
        behaviour=held.behaviour,
        sketch=Evidence(held.items, held.features).sketch(),
        history=({"generation": 0, "time": now, "items": len(keys), "new": len(keys), "moved": resolution.moved},),
    )
    return TableData(keys, resolution.codes, header, weights)


def fit_codebooks(
    sample: Embeddings, config: SemanticIdConfig, progress: Progress, trainer: "Trainer | None" = None
) -> "Trained":
    """
    Fit the fusion of several features and codebooks, telling the user how far it is.

    Raises:
        TrainingError, EmbeddingError, ConfigError: no codebooks came of it.
    """
    from semid_dataset.codec.fusion import Fusion
    from semid_dataset.codec.kinds import fused
    from semid_dataset.codec.train import train

    with progress.stage("fusion"):
        if sample.fused is None:
            count = len(sample.items)
            fusion = Fusion.fit(sample.features, count, config.fusion, config.seed)
            vectors = fusion.apply(sample.features, count)
        else:
            fusion, vectors = sample.fused
    tell("training")
    with progress.stage("training"):
        trained = train(vectors, config, trainer=trainer, progress=progress)
    tell("trained")
    return trained if fusion.kind == "single" else replace(trained, quantizer=fused(trained.quantizer, fusion))


def _vectors(sample: Embeddings, quantizer: "Quantizer") -> NDArray[np.float32]:
    from semid_dataset.codec.kinds import vectors_of

    return vectors_of(quantizer, sample.features, len(sample.items)) if sample.fused is None else sample.fused[1]


def tell_beyond(encoded: EncodedItems) -> None:
    """Warn of rows that lie beyond the bulk, if there are some."""
    totals = encoded.totals
    if totals.beyond:
        say_beyond(totals.beyond, totals.rows + totals.beyond, encoded.named, totals.times)


def say_beyond(count: int, rows: int, named: "Sequence[Any]", times: float) -> None:
    """Warn of rows that lie beyond the bulk; `named` are the first of their items."""
    more = ", ..." if count > len(named) else ""
    listed = ", ".join(map(str, named)) + more
    tell("beyond_bulk", count=count, rows=rows, named=listed, times=times)


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
