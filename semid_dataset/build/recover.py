"""
Bring a lost table back without moving an ID.

Reached only where the newest table of a lineage was found damaged and no copy of it is left in any
root. Its IDs are in the `semantic_id_dict.json` that was exported from it. Its quantizer is in any
older table of the lineage, or in the parent; where neither is left, the same training on the same
embeddings gives it again, and where those have changed too, codebooks are fitted to the IDs
themselves.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset import _files as files
from semid_dataset._messages import logger
from semid_dataset.build import lineages as lineage
from semid_dataset.cache.entries import CacheEntry
from semid_dataset.config import Identity, SemanticIdConfig
from semid_dataset.errors import SemidError
from semid_dataset.features import picked_items
from semid_dataset.format.id_json import parse_id_json
from semid_dataset.inputs.read import Embeddings
from semid_dataset.table.build import TableData
from semid_dataset.table.header import TableHeader
from semid_dataset.table.table import SemanticIdTable

if TYPE_CHECKING:
    from semid_dataset.codec.residual import ResidualQuantizer

__all__ = ["exported_table", "fit_to_ids", "rejoined", "restore"]

SWEEPS = 20  # over all levels; each is the exact optimum of one level, so the error never grows
BEAM = 8


def exported_table(path: Path, export: CacheEntry) -> SemanticIdTable | None:
    """
    Return the IDs that a lost table exported, as a table in memory without a quantizer.

    Args:
        path: the JSON file; the caller has compared its content with what was noted.
        export: the table that it was exported from.

    Returns:
        None where the file cannot be read as IDs after all; the log says why.
    """
    try:
        items, codes = parse_id_json(bytes(files.map_file(path, mmap=False, follow=True)[0]), str(path))
    except (SemidError, OSError) as error:
        logger.debug("no IDs to heal from: %s", error)
        return None
    header = TableHeader(lineage=export.lineage, generation=export.generation)
    return TableData(items, codes, header).in_memory("stale", f"{path}, whose table is damaged")


def restore(
    ids: SemanticIdTable,
    base: SemanticIdTable | None,
    export: CacheEntry,
    embeddings: Embeddings,
    identity: Identity,
    config: SemanticIdConfig,
    train: Callable[[], SemanticIdTable] | None,
) -> TableData | None:
    """
    Return the lost table, with the IDs of its export.

    Args:
        ids: what was exported from it.
        base: an older table of the lineage, or the parent; its quantizer is the lineage's.
        export: name, generation and digest of the lost table.
        embeddings: of the dataset now; looked at only where there is no base.
        identity: of the dataset.
        config: of the dataset.
        train: the training that the lost table came from; None where the embeddings are others by now.

    Returns:
        None where the export does not fit: another lineage, another identity, none of the items.
    """
    step: dict[str, Any] = {"generation": export.generation, "time": time.time(), "items": len(ids)}
    if base is not None:
        if not _fits(ids, base.header.identity or identity) or not _agrees(ids, base):
            return None
        step |= {"new": len(ids) - len(base), "healed": "semantic_id_dict.json", "weights_from": base.generation}
        step |= {"rejoined": export.digest}  # it holds the IDs of both
        return _build(ids, base.header.child(step, lineage=export.lineage), base.weights)
    if export.identity != identity.digest or not _fits(ids, identity):
        return None
    if train is not None:
        again = train()
        if len(again) == len(ids) and _agrees(ids, again):
            header = replace(again.header, lineage=export.lineage, generation=export.generation)
            if again.digest != export.digest:  # the codebooks' last bits: it still stands for the lost table
                step |= {"new": 0, "healed": "trained again", "parent": export.digest}
                header = header.child(step)
            return _build(ids, header, again.weights)
    return _fitted(ids, export, embeddings, identity, config, step)


def rejoined(
    ids: SemanticIdTable, base: SemanticIdTable, export: CacheEntry, generation: int
) -> tuple[TableData, int, int] | None:
    """
    Return a table that holds the IDs of `base` and those that a lost table before it had exported.

    A table that was extended without the lost one may hold items of it under other IDs, and other items under its
    IDs. No ID that can be read moves: those items keep what `base` says, and an ID that both give stays with both.

    Args:
        ids: what was exported from the lost table.
        base: the newest table of the lineage, which did not grow from the lost one.
        export: digest of the lost table.
        generation: of the table to make.

    Returns:
        It, the number of items that keep another ID than the export says, and the number of items put back
        that share theirs. None where the export does not fit this lineage.
    """
    if base.header.identity is None or not _fits(ids, base.header.identity):
        return None
    rows = base.rows_of(ids.keys_array)
    known, lost = np.flatnonzero(rows >= 0), np.flatnonzero(rows < 0)
    others = int((ids.codes_array[known] != base.codes_array[rows[known]]).any(1).sum())
    back = ids.codes_array[lost].astype(base.codes_array.dtype)
    taken = {row.tobytes() for row in base.codes_array}
    shared = sum(row.tobytes() in taken for row in back)
    step = {
        "generation": generation,
        "time": time.time(),
        "items": len(base) + len(lost),
        "new": len(lost),
        "rejoined": export.digest,
        "healed": "semantic_id_dict.json",
    }
    items = lineage.joined_items(base.keys_array, picked_items(ids.keys_array, lost))
    codes = np.concatenate([base.codes_array, back])
    return TableData(items, codes, base.header.child(step), base.weights), others, shared


def _fits(ids: SemanticIdTable, identity: Identity) -> bool:
    sizes = np.array(identity.codebook_sizes)
    return ids.levels == len(sizes) and bool((ids.codes_array.max(0, initial=0) < sizes).all())


def _agrees(ids: SemanticIdTable, older: SemanticIdTable) -> bool:
    """Whether every ID of an older table is still the same in `ids`."""
    rows = ids.rows_of(older.keys_array)
    return bool((rows >= 0).all()) and np.array_equal(ids.codes_array[rows], older.codes_array)


def _build(ids: SemanticIdTable, header: TableHeader, weights: dict[str, NDArray[Any]]) -> TableData:
    sizes = (256,) if header.identity is None else header.identity.codebook_sizes
    codes = ids.codes_array.astype(np.uint8 if max(sizes) <= 256 else np.uint16)
    return TableData(ids.keys_array, codes, header, weights)


def _fitted(
    ids: SemanticIdTable,
    export: CacheEntry,
    embeddings: Embeddings,
    identity: Identity,
    config: SemanticIdConfig,
    step: dict[str, Any],
) -> TableData | None:
    from semid_dataset.codec.fusion import Fusion

    rows = ids.rows_of(embeddings.items)
    known = np.flatnonzero(rows >= 0)
    if not len(known):
        return None
    count = len(embeddings.items)
    fusion = Fusion.fit(embeddings.features, count, config.fusion, config.seed)
    vectors = fusion.apply(embeddings.features, count)[known]
    codes = ids.codes_array[rows[known]]
    quantizer = fit_to_ids(vectors, codes, identity.codebook_sizes)
    squared = float(np.square(vectors - quantizer.decode(codes), dtype=np.float64).sum(1).mean())
    variance = float(np.square(vectors - vectors.mean(0), dtype=np.float64).sum(1).mean())
    if len(embeddings.features) > 1:
        quantizer.fusion = fusion
    weights, description = quantizer.to_arrays()
    step |= {"new": 0, "healed": "codebooks fitted to semantic_id_dict.json", "parent": export.digest}
    header = TableHeader(
        lineage=export.lineage,
        generation=export.generation,
        identity=identity,
        settings=config.to_dict(),
        quantizer=description,
        provenance={
            "born": time.time(),
            "embeddings": embeddings.digest,
            "variance": variance,
            "relative_error": squared / variance if variance > 0 else 0.0,
        },
        history=(step,),
    )
    return _build(ids, header, weights)


def fit_to_ids(
    vectors: NDArray[np.float32], codes: NDArray[Any], codebook_sizes: tuple[int, ...]
) -> "ResidualQuantizer":
    """
    Return the codebooks that reproduce vectors best from codes that are given.

    Minimizes Σ‖x − mean − Σ_l c_l‖² by exact steps, one level after the other.

    Args:
        vectors: (n, dim).
        codes: (n, levels).
        codebook_sizes: one a level; a codeword that no item has is zero.
    """
    import torch

    from semid_dataset.codec._kmeans import sums
    from semid_dataset.codec._threads import isolated
    from semid_dataset.codec.residual import ResidualQuantizer

    with isolated():
        points = torch.from_numpy(np.ascontiguousarray(vectors, np.float32))
        mean = points.mean(0)
        residuals = points - mean
        chosen = [torch.from_numpy(codes[:, level].astype(np.int64)) for level in range(len(codebook_sizes))]
        books = [points.new_zeros(size, points.shape[1]) for size in codebook_sizes]
        for _ in range(SWEEPS):
            for level, size in enumerate(codebook_sizes):
                total, counts = sums(residuals, chosen[level], size)
                step = total / counts.clamp(min=1)[:, None]
                residuals -= step[chosen[level]]
                books[level] += step
        return ResidualQuantizer(books, beam=BEAM, mean=mean)
