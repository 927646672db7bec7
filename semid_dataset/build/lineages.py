"""
Which row of tables a dataset belongs to, and how that row grows.

A lineage is one frozen quantizer and an append-only row of tables: table n holds every ID of table
n-1, items since removed included. An ID that a recommender was trained on therefore never moves.
Publishing table n is a compare-and-swap: who loses reloads what won and adds what is still missing,
so two processes that append at once cannot give one item two IDs, lock or no lock.
"""

import hashlib
import time
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset._messages import degrade, logger
from semid_dataset.build import novelty, pipeline
from semid_dataset.cache import folders
from semid_dataset.cache.cache import Cache, open_table
from semid_dataset.codec.bulk import distances
from semid_dataset.config import Identity
from semid_dataset.errors import ParentError, StoreError
from semid_dataset.table.build import TableData
from semid_dataset.table.header import TableHeader
from semid_dataset.table.table import TABLE_FILE, SemanticIdTable

if TYPE_CHECKING:
    from semid_dataset.codec.residual import ResidualQuantizer
    from semid_dataset.features import FeatureMatrix

__all__ = [
    "Lineage",
    "check_parent",
    "descends",
    "find_lineage",
    "grow",
    "joined_items",
    "lineage_name",
    "made_with_sequences",
    "open_parent",
    "picked_items",
    "reproduction_error",
    "row_of_parent",
    "vectors_fit",
]

BARE_FILE = "quantizer.safetensors"  # a bare quantizer's, see ResidualQuantizer.save_pretrained
SAMPLE_ITEMS = 1024  # known items whose vectors tell whether a lineage is theirs
LEAST_KNOWN = 0.5  # share of a dataset's items that its lineage must hold, where nothing else names it
DRIFT_SHARE = 0.25  # of the way from the error at birth to 1, the error of vectors that have nothing to do with it
MOST_TRIES = 1000  # lost compare-and-swaps before something else must be wrong

# From a table and positions of items that it lacks to their codes.
Encoder = Callable[[SemanticIdTable, NDArray[np.int64]], "novelty.Encoded"]


@dataclass(frozen=True)
class Lineage:
    """A row's name, and the table of it that is extended; its generation may lie elsewhere (a parent)."""

    name: str
    base: SemanticIdTable


def lineage_name(identity: Identity, embeddings_digest: str, retraining: int = 0) -> str:
    """Return the name that concurrent first trainings on the same embeddings agree on."""
    born_from = f"{identity.digest}/{embeddings_digest}/{retraining}"
    return hashlib.sha256(born_from.encode()).hexdigest()[:24]


def descends(table: SemanticIdTable, digest: str) -> bool:
    """Whether a table is the one with this digest, or holds its IDs because it grew from it or took them in."""
    return table.digest == digest or table.header.grew_from(digest)


def open_parent(
    parent: "Path | SemanticIdTable | ResidualQuantizer", *, mmap: bool, unique: bool = True
) -> SemanticIdTable:
    """
    Return the table that a dataset was told to extend.

    Args:
        parent: a table, its file, a folder that holds it (a checkpoint, a lineage), or a bare
            quantizer, which becomes a table that knows no items.
        mmap: map files.
        unique: whether items that are added to a bare quantizer get IDs that nobody else has; a table says it itself.

    Raises:
        ParentError: there is no table.
        CorruptTableError, TableVersionError, OSError: it cannot be read.
    """
    if isinstance(parent, SemanticIdTable):
        table = parent
    elif isinstance(parent, Path):
        file = _parent_file(parent)
        if file.name == BARE_FILE:
            from semid_dataset.codec.residual import ResidualQuantizer

            return _table_of_quantizer(ResidualQuantizer.from_pretrained(file), unique)
        table = open_table(file, mmap=mmap, follow=True)
    else:
        return _table_of_quantizer(parent, unique)
    return table


def _parent_file(path: Path) -> Path:
    if not path.is_dir():
        if path.exists():
            return path
        raise ParentError(f"The parent '{path}' does not exist. Give a {TABLE_FILE} or the folder that holds one.")
    if (path / TABLE_FILE).exists():
        return path / TABLE_FILE
    if (path / BARE_FILE).exists():
        return path / BARE_FILE
    numbered = [file for file in path.iterdir() if folders.TABLE_NAME.fullmatch(file.name)]
    if not numbered:
        raise ParentError(f"The parent folder '{path}' holds no {TABLE_FILE}. Save the table beside the weights.")
    return max(numbered, key=lambda file: int(file.stem))


def _table_of_quantizer(quantizer: "ResidualQuantizer", unique: bool) -> SemanticIdTable:
    weights, description = quantizer.to_arrays()
    digest = hashlib.sha256()
    for key in sorted(weights):
        digest.update(key.encode() + weights[key].tobytes())
    levels = len(quantizer.codebook_sizes)
    settings = {} if unique else {"unique": False}  # published tokenizers let items share IDs
    header = TableHeader(lineage=f"quantizer-{digest.hexdigest()[:24]}", settings=settings, quantizer=description)
    data = TableData(np.empty(0, np.int64), np.empty((0, levels), np.uint8), header, weights)
    return data.in_memory("cached", "a bare quantizer")


def check_parent(parent: SemanticIdTable, identity: Identity, asked: Sequence[str]) -> None:
    """
    Refuse a parent whose quantizer is for another kind of ID or other vectors.

    Args:
        identity: of the dataset, over the features that were found.
        asked: ids of the features that were asked for; those missing here may be in the parent.

    Raises:
        ParentError: what was found and what is wanted.
    """
    found = parent.header.identity
    if found is None:  # a bare quantizer: its dims are all that it knows
        dims = sum(dim for _, dim in identity.features)
        if len(identity.features) == 1 and parent.quantizer.dim != dims:
            raise ParentError(
                f"The parent quantizer takes vectors of {parent.quantizer.dim} dims, this dataset has {dims}. "
                "Nothing was written. Give the quantizer of these features, or none to train one."
            )
        return
    features = dict(found.features)
    missing_only = set(features) == set(asked) and all(features.get(fid) == dim for fid, dim in identity.features)
    if found == identity or (
        missing_only and found.codebook_sizes == identity.codebook_sizes and len(identity.features) < len(features)
    ):
        return
    raise ParentError(
        f"The parent ({parent.path or 'in memory'}) makes {found}; this dataset asks for {identity}. "
        "Nothing was written. Give a parent made from these features with these settings, or none to train anew."
    )


def row_of_parent(cache: Cache, parent: SemanticIdTable) -> Lineage:
    """
    Return the row that continues a parent: it holds every ID of the parent.

    The parent's own lineage may have been continued elsewhere with other items. Then this row and
    that one part here, and this one is named after the parent.

    Raises:
        StoreError: a row named after this parent does not hold its IDs.
    """
    newest = cache.newest(parent.lineage)
    if newest is None or _holds(parent, newest):
        return Lineage(parent.lineage, parent)
    if _holds(newest, parent):
        return Lineage(parent.lineage, newest)
    name = f"{parent.lineage}-{parent.digest[:8]}"
    newest = cache.newest(name)
    if newest is None:
        return Lineage(name, parent)
    if not _holds(newest, parent):
        raise StoreError(f"'{newest.path}' does not hold the IDs of its parent {parent.path}. Remove it.")
    return Lineage(name, newest)


def _holds(table: SemanticIdTable, other: SemanticIdTable) -> bool:
    """Whether `table` gives every item of `other` the same ID, with the same quantizer."""
    if table.digest == other.digest:
        return True
    weights, others = table.weights, other.weights
    if weights.keys() != others.keys() or table.levels != other.levels or len(table) < len(other):
        return False
    if not all(np.array_equal(weights[key], others[key]) for key in weights):
        return False
    rows = table.rows_of(other.keys_array)
    return bool((rows >= 0).all()) and np.array_equal(table.codes_array[rows], other.codes_array)


def find_lineage(
    cache: Cache,
    identity: Identity,
    items: NDArray[np.int64] | list[str],
    features: "Sequence[FeatureMatrix]",
    ours: Container[str] = (),
) -> Lineage | None:
    """
    Return the newest lineage of this identity that holds half of these items and fits their vectors.

    Ids alone prove nothing (two data sets may both count from 0), nor does a directory's name: the
    quantizer must reproduce a sample of the known items' vectors about as well as it did at birth. A lineage that
    cannot be read is passed over, unless it is known to be `ours`.
    """
    best: Lineage | None = None
    for name, table in cache.tables_of(identity, ours):
        with cache.tolerant(name, ours):
            if _is_theirs(name, table, items, features) and (best is None or _born(table) > _born(best.base)):
                best = Lineage(name, table)
    cache.say_refused()
    return best


def _is_theirs(
    name: str, table: SemanticIdTable, items: NDArray[np.int64] | list[str], features: "Sequence[FeatureMatrix]"
) -> bool:
    """Whether a table holds half of the items, with their vectors."""
    if not table.has_quantizer:
        return False
    known = np.flatnonzero(table.rows_of(items) >= 0)
    if len(known) < max(1, LEAST_KNOWN * len(items)):
        logger.debug("lineage %s holds %d of %d items: not this dataset's", name, len(known), len(items))
        return False
    error, birth, fits = reproduction_error(table, items, features, known)
    if not fits:
        logger.debug("lineage %s has these ids for other vectors: error %.3f, %.3f at birth", name, error, birth)
    return fits


def _born(table: SemanticIdTable) -> float:
    return float(table.header.provenance.get("born", 0.0))


def reproduction_error(
    table: SemanticIdTable,
    items: NDArray[np.int64] | list[str],
    features: "Sequence[FeatureMatrix]",
    known: NDArray[np.int64],
) -> tuple[float, float, bool]:
    """
    Return how well a table's codes reproduce vectors of items that it knows.

    Args:
        known: positions in `items`; a sample of 1,024 is looked at.

    Returns:
        Squared error over the variance at birth; the same at birth; whether the first is near the second.
    """
    sample = known[np.linspace(0, len(known) - 1, min(SAMPLE_ITEMS, len(known))).astype(np.int64)]
    sample = np.unique(sample)
    vectors = table.quantizer.vectors_of(_take(features, sample, len(items)), len(sample))
    return vectors_fit(table, vectors, table.codes_array[table.rows_of(picked_items(items, sample))])


def made_with_sequences(table: SemanticIdTable) -> bool:
    """Say whether behaviour took part in the IDs: vectors alone then do not tell whether they fit."""
    return bool(table.header.behaviour)


def vectors_fit(table: SemanticIdTable, vectors: NDArray[np.float32], codes: NDArray[Any]) -> tuple[float, float, bool]:
    """
    Return how well codes (n, levels) of a table reproduce vectors (n, dim), by a sample of 1,024.

    Returns:
        As `reproduction_error`.
    """
    sample = np.unique(np.linspace(0, len(vectors) - 1, min(SAMPLE_ITEMS, len(vectors))).astype(np.int64))
    vectors, codes = vectors[sample], codes[sample]
    near = _distances(table, vectors) <= table.header.radius
    if near.any():  # a broken row says nothing of the others
        vectors, codes = vectors[near], codes[near]
    squared = float(np.square(vectors.astype(np.float64) - table.quantizer.decode(codes)).sum(1).mean())
    variance, birth = table.header.variance, table.header.relative_error
    if variance <= 0.0:  # all vectors equal at birth: any error is another vector
        return squared, 0.0, squared <= 1e-6 * (1.0 + float(np.square(vectors).sum(1).mean()))
    error = squared / variance
    return error, birth, error <= birth + DRIFT_SHARE * max(0.0, 1.0 - birth)


def grow(
    cache: Cache,
    row: Lineage,
    items: NDArray[np.int64] | list[str],
    features: "Sequence[FeatureMatrix] | Encoder",
    *,
    force: bool = False,
) -> tuple[SemanticIdTable, int]:
    """
    Return a table of the row that holds all `items`, and how many of them this call had to encode.

    Known items keep their codes. New ones are encoded by the frozen quantizer and made unique among
    the codes that are free. Where no root takes the table it stays in memory, with a warning.

    Args:
        features: the items' vectors, or what encodes items by their positions.
        force: let vectors in that are not such as the row's first table was made for.

    Raises:
        ForeignVectorsError: see `novelty.check`; nothing was published.
        StoreError: other writers kept winning.
    """
    cache = cache.writing()
    base, encoded, refusal = row.base, 0, ""
    for _ in range(MOST_TRIES):
        try:
            # The number first, then the newest table: it holds whatever was published under the numbers until then, and
            # what is published meanwhile has the number that this call tries to take. Those set aside count too: a
            # number never stands for two tables.
            last = cache.last_generation(row.name)
            newest = cache.newest(row.name)
        except OSError as error:
            last, newest, refusal = -1, None, str(error)
        if newest is not None and newest.generation > last:
            continue
        if newest is not None and not _holds(base, newest):
            if not _holds(newest, base):  # another base got into the row first: part from it
                row = row_of_parent(cache, base)
                base = row.base
                continue
            base = newest
        missing = np.flatnonzero(base.rows_of(items) < 0)
        if not len(missing):
            return base, encoded
        encoded = len(missing)
        generation = 1 + max(last, base.generation)
        data = extended(row.name, generation, base, items, features, missing, force=force)
        if refusal:
            return _in_memory(data, refusal), encoded
        try:
            cache.publish(row.name, generation, data.buffers())
        except OSError as error:
            return _in_memory(data, str(error)), encoded
    raise StoreError(f"Lineage '{row.name}' could not be extended: other writers won {MOST_TRIES} times. Try again.")


def _in_memory(data: TableData, why: str) -> SemanticIdTable:
    degrade("not_saved", error=why)
    return data.in_memory("cached", why)


def extended(
    name: str,
    generation: int,
    base: SemanticIdTable,
    items: NDArray[np.int64] | list[str],
    features: "Sequence[FeatureMatrix] | Encoder",
    missing: NDArray[np.int64],
    *,
    force: bool = False,
) -> TableData:
    """
    Return table `generation`: everything in `base`, and the items at `missing` encoded by its quantizer.

    Args:
        name: of the lineage; another one than the base's is a branch of it.
        features: as in `grow`.
        missing: positions in `items`, ascending, of those that `base` does not hold.
        force: as in `grow`.

    Raises:
        ForeignVectorsError: see `novelty.check`.
    """
    if callable(features):
        encoded = features(base, missing)
    else:
        encoded = _encoded(base, _take(features, missing, len(items)), picked_items(items, missing))
    found = novelty.check(base, encoded, force=force)
    step = {
        "generation": generation,
        "time": time.time(),
        "items": len(base) + len(missing),
        "new": len(missing),
        "moved": encoded.moved,
        **_measured(base, encoded, found),
    }
    codes = encoded.codes
    return TableData(
        joined_items(base.keys_array, picked_items(items, missing)),
        np.concatenate([base.codes_array, codes.astype(base.codes_array.dtype)]),
        base.header.child(step, lineage=name),
        base.weights,
    )


def _measured(base: SemanticIdTable, encoded: "novelty.Encoded", found: "novelty.Novelty | None") -> dict[str, Any]:
    """Return what an extension's step of the history says of its new items."""
    from semid_dataset.codec.unique import shared_items

    variance = base.header.variance
    return {
        "relative_error": encoded.squared / variance if variance > 0 else 0.0,
        "relative_error_raw": encoded.squared_raw / variance if variance > 0 else 0.0,
        "collisions_raw": shared_items(encoded.raw, base.codes_array),
        **({} if found is None else {"relative_error_expected": found.expected, "length": found.length}),
    }


def _encoded(
    base: SemanticIdTable, features: "Sequence[FeatureMatrix]", items: NDArray[np.int64] | list[str]
) -> "novelty.Encoded":
    """Return new items as the table's quantizer encodes them; errors are those of the bulk, if some are in it."""
    from semid_dataset.codec.unique import resolve_collisions

    quantizer = base.quantizer
    vectors = quantizer.vectors_of(features, len(items))
    raw = codes = quantizer.encode(vectors)
    moved = 0
    if base.header.unique:
        resolution = resolve_collisions(quantizer, vectors, codes, taken=base.codes_array)
        codes, moved = resolution.codes, resolution.moved
    far = _distances(base, vectors)
    rows = None if far.min() > base.header.radius else pipeline.bulk_rows(items, far, base.header.radius)
    known: Any = slice(None) if rows is None else rows
    near = vectors[known]

    def squared(of: NDArray[Any]) -> float:
        return float(np.square(near.astype(np.float64) - quantizer.decode(of[known])).sum(1).mean())

    energy = float(np.square(near, dtype=np.float64).sum(1).mean())
    return novelty.Encoded(codes, raw, moved, squared(codes), squared(raw), energy)


def _distances(table: SemanticIdTable, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return how far vectors, in the quantizer's space, lie from the centre of those it was trained on."""
    return distances(vectors, table.weights["mean"])


def _take(features: "Sequence[FeatureMatrix]", wanted: NDArray[np.int64], items: int) -> "list[FeatureMatrix]":
    """Return the features of the items at `wanted` (ascending positions), renumbered from 0."""
    from semid_dataset.features import FeatureMatrix

    position = np.full(items, -1, np.int64)
    position[wanted] = np.arange(len(wanted))
    taken = []
    for feature in features:
        rows = position[feature.rows]
        here = rows >= 0
        taken.append(FeatureMatrix(feature.id, rows[here], feature.matrix[here]))
    return taken


def picked_items(items: NDArray[np.int64] | list[str], rows: NDArray[np.int64]) -> NDArray[np.int64] | list[str]:
    """Return the items at `rows`."""
    return items[rows] if isinstance(items, np.ndarray) else [items[row] for row in rows.tolist()]


def joined_items(first: NDArray[np.int64] | list[str], second: NDArray[np.int64] | list[str]) -> Any:
    """Return the items of both, in this order; all as strings where one of the two has strings."""
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return np.concatenate([first, second])
    return [*map(str, first), *map(str, second)]  # ids of both kinds: all become strings
