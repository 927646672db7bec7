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
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset import _files as files
from semid_dataset._messages import degrade, logger, tell
from semid_dataset.build import lineages as lineage
from semid_dataset.build import pipeline
from semid_dataset.build.itemset import ItemSet
from semid_dataset.cache.cache import Cache
from semid_dataset.cache.entries import CacheEntry
from semid_dataset.cache.fingerprint import CacheKey, FileStamp
from semid_dataset.cache.guard import Guard, descends
from semid_dataset.config import Identity, SemanticIdConfig
from semid_dataset.errors import SemidError, StoreError
from semid_dataset.features import picked_items
from semid_dataset.format.id_json import JSON_FILE, parse_id_json
from semid_dataset.inputs.read import Embeddings
from semid_dataset.progress import Progress
from semid_dataset.table.build import TableData
from semid_dataset.table.header import TableHeader
from semid_dataset.table.table import SemanticIdTable

if TYPE_CHECKING:
    from semid_dataset.codec.residual import ResidualQuantizer

__all__ = ["Recovery", "exported_table", "fit_to_ids", "rejoined", "restore"]

SWEEPS = 20  # over all levels; each is the exact optimum of one level, so the error never grows
BEAM = 8


class Recovery:
    """
    What can be brought back for one data directory.

    Args:
        cache: where tables lie.
        guard: what was served there before.
        data_dir: the directory; None where there is none, and then no export either.
        parent: the table that was named as parent, if any.
        config: how IDs are made.
    """

    def __init__(
        self,
        cache: Cache,
        guard: Guard,
        data_dir: Path | None,
        parent: SemanticIdTable | None,
        config: SemanticIdConfig,
    ) -> None:
        self._cache = cache
        self._guard = guard
        self._data_dir = data_dir
        self._parent = parent
        self._config = config

    def lost_export(self) -> CacheEntry | None:
        """Return which table `semantic_id_dict.json` was exported from, if its IDs are in no table any more."""
        if self._data_dir is None:
            return None
        try:
            stamp = FileStamp.of(self._data_dir / JSON_FILE, self._data_dir)
        except OSError:
            return None
        export = self._cache.recall(CacheKey("json", None, (stamp,)), renew=False)
        if export is None:
            with suppress(OSError):
                export = self._cache.exported_as(stamp.digest())
        if export is None or export.lineage.startswith("json-"):
            return None
        newest = self._cache.newest_or_pass(export.lineage)
        return None if newest is not None and descends(newest, export.digest) else export

    def exported_ids(self, identity: Identity | None) -> SemanticIdTable | None:
        """Return the IDs of a damaged table from its export, where nothing may be written to heal it."""
        if self._parent is not None or (export := self.lost_export()) is None:
            return None
        if identity is not None and export.identity != identity.digest:
            return None
        bound = self._guard.bound
        if (
            bound is not None
            and bound.entry.lineage != export.lineage
            and self._guard.table_of(bound.entry) is not None
        ):
            return None  # what this user was served before can be read
        assert self._data_dir is not None
        return exported_table(self._data_dir / JSON_FILE, export)

    def recovered(self, items: ItemSet, identity: Identity | None, progress: Progress) -> lineage.Lineage | None:
        """
        Publish again the table that `semantic_id_dict.json` was exported from, if it was lost.

        Returns:
            A row only where the table stays in memory.
        """
        assert identity is not None
        if (export := self.lost_export()) is None:
            return None
        base = self._cache.newest_or_pass(export.lineage)
        if self._parent is not None:
            named = self._parent.lineage
            if export.lineage != named and not export.lineage.startswith(f"{named}-"):  # nor a branch of it
                return None
            base = base or self._parent
        elif base is not None and base.header.identity != identity:
            return None
        assert self._data_dir is not None
        path = self._data_dir / JSON_FILE
        ids = exported_table(path, export)
        if ids is None:
            return None
        if base is not None and base.generation > export.generation:
            return self._rejoin(ids, base, export, path)

        def train_again() -> SemanticIdTable:
            return pipeline.train_table(items, self._config, identity, progress).in_memory("trained")

        embeddings = items.held
        key = lineage.origin_key(identity, embeddings.digest)
        same = export.lineage == key or export.lineage.startswith(f"{key}-")
        data = restore(ids, base, export, embeddings, identity, self._config, train_again if same else None)
        return None if data is None else self._published(data, export, path)

    def _published(self, data: TableData, export: CacheEntry, path: Path) -> lineage.Lineage | None:
        """Publish a lost table again; return it only where it stays in memory."""
        refusal: object = "what was published cannot be found"
        try:
            self._cache.publish(export.lineage, export.generation, data.buffers())
            if self._cache.writing().newest(export.lineage) is not None:
                tell("healed", source=path)
                return None  # it is found like any other lineage
        except OSError as error:
            refusal = error
        degrade("not_saved", error=refusal)
        return lineage.Lineage(export.lineage, data.in_memory("stale", str(refusal)))

    def _rejoin(
        self, ids: SemanticIdTable, base: SemanticIdTable, export: CacheEntry, path: Path
    ) -> lineage.Lineage | None:
        """
        Put the IDs of a lost table back into a lineage that another dataset has extended without them.

        Returns:
            A row only where the table stays in memory.
        """
        for _ in range(lineage.MOST_TRIES):
            number = 1 + max(self._cache.last_generation(export.lineage), base.generation)
            found = rejoined(ids, base, export, number)
            if found is None:
                return None
            data, others, shared = found
            refusal: object = None
            try:
                if not self._cache.publish(export.lineage, number, data.buffers()):  # another writer took the number
                    base = self._cache.writing().newest(export.lineage) or base
                    if descends(base, export.digest):
                        return None
                    continue
            except OSError as error:
                refusal = error
            if others or shared:
                tell("healed_in_part", source=path, others=others, shared=shared, lineage=export.lineage)
            else:
                tell("healed", source=path)
            if refusal is None:
                return None  # it is found like any other lineage
            degrade("not_saved", error=refusal)
            return lineage.Lineage(export.lineage, data.in_memory("stale", str(refusal)))
        raise StoreError(f"Lineage '{export.lineage}' could not be healed: other writers kept winning. Try again.")


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
        step |= {"new": len(ids) - len(base), "healed": JSON_FILE, "weights_from": base.generation}
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
        "healed": JSON_FILE,
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
