"""
Which row of tables a dataset belongs to, and how that row grows.

A lineage is one frozen quantizer and an append-only row of tables: table n holds every ID of table
n-1, items since removed included. An ID that a recommender was trained on therefore never moves.
Publishing table n is a compare-and-swap: who loses reloads what won and adds what is still missing,
so two processes that append at once cannot give one item two IDs, lock or no lock.
"""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset._messages import degrade, logger, tell
from semid_dataset.build import novelty, pipeline
from semid_dataset.build.evidence import Evidence, merged, vectors_fit
from semid_dataset.build.itemset import EncodedItems, NewItems
from semid_dataset.cache import folders
from semid_dataset.cache.cache import Cache, open_table
from semid_dataset.config import Identity
from semid_dataset.errors import ParentError, StoreError
from semid_dataset.features import picked_items
from semid_dataset.objects import as_path, shown
from semid_dataset.table.build import TableData
from semid_dataset.table.header import Sketch, TableHeader
from semid_dataset.table.table import TABLE_FILE, SemanticIdTable

if TYPE_CHECKING:
    from semid_dataset.codec.residual import ResidualQuantizer
    from semid_dataset.protocols import Quantizer

__all__ = [
    "Lineage",
    "branch_key",
    "check_parent",
    "extended",
    "find_lineages",
    "grow",
    "joined_items",
    "lineage_name",
    "made_with_sequences",
    "open_parent",
    "origin_key",
    "parent_of",
    "picked_items",
    "row_of_parent",
    "vectors_fit",
]

BARE_FILE = "quantizer.safetensors"  # a bare quantizer's, see ResidualQuantizer.save_pretrained
LONGEST_ORIGIN = 80  # characters of a lineage's name that its branches carry
MOST_TRIES = 1000  # lost compare-and-swaps before something else must be wrong

# From a table and positions of items that it lacks to their codes.
Encoder = Callable[[SemanticIdTable, NDArray[np.int64]], "novelty.Encoded"]


@dataclass(frozen=True)
class Lineage:
    """
    A row's name, and the table of it that is extended; its generation may lie elsewhere (a parent).

    Attributes:
        name: of the lineage.
        base: the table.
        other_space: the dataset's vectors are not such as its codes were made from, so that no new item can be encoded.
    """

    name: str
    base: SemanticIdTable
    other_space: bool = False


def origin_key(identity: Identity, embeddings_digest: str, replaces: str = "", lost: int = 0) -> str:
    """
    Return where concurrent first trainings of one kind of ID on the same embeddings meet.

    Args:
        replaces: the lineage that a retraining takes the place of.
        lost: how many lineages that were born there before are lost.
    """
    born_from = f"{identity.digest}/{embeddings_digest}/{replaces or 0}" + (f"/{lost}" if lost else "")
    return hashlib.sha256(born_from.encode()).hexdigest()[:24]


def lineage_name(key: str, digest: str) -> str:
    """Return the name of the lineage that began at a place with the table of this digest: other codes, another name."""
    return f"{key}-{digest[:12]}"


def branch_key(base: SemanticIdTable) -> str:
    """Return where those meet who extend a table that lies where they cannot write."""
    return hashlib.sha256(f"branch/{base.lineage}/{base.digest}".encode()).hexdigest()[:24]


def branch_name(base: SemanticIdTable, digest: str) -> str:
    """Return the name of the branch of a table's lineage that begins with the table of this digest."""
    origin = base.lineage or f"table-{base.digest[:16]}"
    if len(origin) > LONGEST_ORIGIN:
        origin = f"{origin[:24]}-{hashlib.sha256(origin.encode()).hexdigest()[:12]}"
    return f"{origin}-{digest[:8]}"


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
            from semid_dataset.codec.kinds import open_quantizer

            return _table_of_quantizer(open_quantizer(file), unique)
        table = open_table(file, mmap=mmap, follow=True)
    elif parent_of(parent) is not None:
        return _table_of_quantizer(parent, unique)
    else:
        raise ParentError(
            f"A parent is a {TABLE_FILE}, its folder, a SemanticIdTable or a ResidualQuantizer, not {parent!r:.80}."
        )
    return table


def parent_of(given: object) -> Any:
    """
    Return what a caller named as parent: a path, a table or a bare quantizer; None for none.

    Raises:
        ParentError: it is none of these.
    """
    if given is None or isinstance(given, SemanticIdTable):
        return given
    if isinstance(given, str | os.PathLike):
        return as_path(given, ParentError, what="parent")
    from semid_dataset.codec.kinds import is_quantizer

    if is_quantizer(given):
        return given
    raise ParentError(f"parent must be a table, its file or folder, or a quantizer, not {shown(given)}.")


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


def _table_of_quantizer(quantizer: "Quantizer", unique: bool) -> SemanticIdTable:
    from semid_dataset.codec.kinds import state_of

    weights, description = state_of(quantizer)
    levels = len(quantizer.codebook_sizes)
    header = TableHeader(settings={"unique": unique}, quantizer=description)
    data = TableData(np.empty(0, np.int64), np.empty((0, levels), np.uint8), header, weights)
    return data.named(f"quantizer-{data.digest[:24]}").in_memory("cached", "a bare quantizer")


def _weights_digest(weights: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for key in sorted(weights):
        digest.update(key.encode() + weights[key].tobytes())
    return digest.hexdigest()


def check_parent(parent: SemanticIdTable, identity: Identity, asked: Sequence[str], named: object = None) -> None:
    """
    Refuse a parent whose quantizer is for another kind of ID or other vectors.

    Args:
        identity: of the dataset, over the features that were found.
        asked: ids of the features that were asked for; those missing here may be in the parent.
        named: what the caller named it by.

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
        f"The parent ({named or parent.path or 'in memory'}) makes {found}; this dataset asks for {identity}. "
        "Nothing was written. Give a parent made from these features with these settings, or none to train anew."
    )


def row_of_parent(cache: Cache, parent: SemanticIdTable, served: str | None = None) -> Lineage:
    """
    Return the row that continues a parent: it holds every ID of the parent, and grew from it.

    Args:
        cache: where rows lie.
        parent: the table.
        served: the lineage that served this dataset before; preferred where the parent was continued more than once.
    """
    names = [served or "", parent.lineage, _old_name(parent)]
    if (born := cache.born(branch_key(parent))) is not None:
        names.append(born.lineage)
    for name in filter(None, dict.fromkeys(names)):
        newest = cache.newest(name, since=parent.digest) or (cache.newest(name) if name == _old_name(parent) else None)
        if newest is not None and _holds(newest, parent):
            return Lineage(newest.lineage, newest)
    return Lineage(parent.lineage, parent)


def _old_name(parent: SemanticIdTable) -> str:
    """Return how a row that continues a parent was called before branches were named after what they hold."""
    if not len(parent) and parent.header.identity is None and parent.header.unique:  # a bare quantizer
        return f"quantizer-{_weights_digest(parent.weights)[:24]}"
    return f"{parent.lineage}-{parent.digest[:8]}" if parent.lineage else ""


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


def find_lineages(cache: Cache, identity: Identity, evidence: Evidence, ours: Collection[str] = ()) -> list[Lineage]:
    """
    Return the lineages of this identity that were made from this data set, the best first.

    Those that a retraining replaced are left out. The others are ordered by pairs before codes alone, then by how many
    of the items they know, then by where they lie and what branched off what: never by clocks.

    A lineage that cannot be read is passed over, unless it is known to be `ours`.

    Args:
        cache: where lineages lie.
        identity: the kind of ID.
        evidence: of the data set.
        ours: names of lineages that are known to be the asker's.

    Raises:
        SemidError, OSError: one of `ours` cannot be read.
    """
    found: list[tuple[tuple[Any, ...], Lineage]] = []
    folders_in_order = [root.path for root in cache.folders]
    likely, unlikely = cache.likely(identity, evidence.pairs)
    own = [name for name in ours if name in unlikely]
    for names in ([*likely, *own], [name for name in unlikely if name not in own]):
        for name, table in cache.tables_of(identity, names if not found else (), ours):
            with cache.tolerant(name, ours):
                match = evidence.of(table) if table.has_quantizer else None
                if match is None or not match.same_data:
                    logger.debug("lineage %s is another data set's: %s", name, match)
                    continue
                place = next(
                    (number for number, path in enumerate(folders_in_order) if _is_below(table.path, path)), 99
                )
                rank = (match.pairs == 0, -match.known, place, len(table.header.origins), name)
                found.append((rank, Lineage(name, table, evidence.in_another_space(table, match))))
    cache.say_refused()
    replaced = {old for _, row in found for old in row.base.header.replaces}
    kept = [(rank, row) for rank, row in found if not replaced & {row.name, *row.base.header.origins}]
    return [row for _, row in sorted(kept or found, key=lambda pair: pair[0])]


def _is_below(path: Path | None, folder: Path) -> bool:
    return path is not None and folder in path.parents


def made_with_sequences(table: SemanticIdTable) -> bool:
    """Say whether behaviour took part in the IDs: vectors alone then do not tell whether they fit."""
    return bool(table.header.behaviour)


def grow(
    cache: Cache,
    row: Lineage,
    new: NewItems,
    sketch: Sketch,
    *,
    force: bool = False,
) -> tuple[SemanticIdTable, int]:
    """
    Return a table of the row that holds all of some items, and how many of them this call had to encode.

    Known items keep their codes. New ones are encoded by the frozen quantizer and made unique among
    the codes that are free. Where no root takes the table it stays in memory, with a warning.

    A row is extended only in the folder that it lies in, where the number of a table can be taken only once. Whoever
    cannot write there, and whoever extends a table of elsewhere, begins a branch: a lineage of its own name, so that
    nobody who is on the one is ever served the other.

    Args:
        new: the items.
        sketch: of their pairs.
        force: let vectors in that are not such as the row's first table was made for.

    Raises:
        ForeignVectorsError: see `novelty.check`; nothing was published.
        StoreError: other writers kept winning.
    """
    cache = cache.writing()
    base, encoded, refusal = row.base, 0, "no cache folder takes a write"
    refused: set[Path] = set()
    for _ in range(MOST_TRIES):
        root = next((one for one in cache.folders if one.path not in refused and one.takes_writes()), None)
        try:
            if root is None or not _lies_in(root, base):
                last = base.generation
                newest = cache.born(branch_key(base))
                newest = newest and (cache.newest(newest.lineage, since=newest.digest) or newest)
            else:
                # The number first, then the newest table: it holds whatever was published under the numbers until then,
                # and what is published meanwhile has the number that this call tries to take. Those set aside count
                # too: a number never stands for two tables.
                last = cache.last_generation(base.lineage)
                newest = cache.newest(base.lineage, since=base.digest)
                if newest is not None and newest.generation > last:
                    continue
        except OSError as error:
            if root is not None:
                refused.add(root.path)
            last, newest, refusal = base.generation, None, str(error)
        if newest is not None and newest.digest != base.digest and _holds(newest, base):
            base = newest
            continue
        missing = np.flatnonzero(base.rows_of(new.items) < 0)
        if not len(missing):
            return base, encoded
        encoded = len(missing)
        data = extended(base.lineage, 1 + max(last, base.generation), base, new, missing, sketch, force=force)
        if root is None or root.path in refused:
            return _in_memory(data, refusal), encoded
        try:
            if _lies_in(root, base):
                cache.publish(base.lineage, data.header.generation, data.buffers(), root=root)
            else:
                base = _branch(cache, root, base, data)
        except OSError as error:
            refused.add(root.path)
            refusal = str(error)
            tell("next_folder", path=root.path, error=error)
    raise StoreError(f"Lineage '{row.name}' could not be extended: other writers won {MOST_TRIES} times. Try again.")


def _lies_in(root: folders.CacheFolder, table: SemanticIdTable) -> bool:
    """Say whether a table is one of those of its lineage in a folder."""
    if table.path is None or not table.lineage:
        return False
    try:
        return table.path.parent.samefile(root.folder(table.lineage)) and bool(
            folders.TABLE_NAME.fullmatch(table.path.name)
        )
    except OSError:
        return False


def _branch(cache: Cache, root: folders.CacheFolder, base: SemanticIdTable, data: TableData) -> SemanticIdTable:
    """Begin a branch of a table's lineage in a folder; return the first table of the one that was begun first."""
    data = data.named(branch_name(base, data.digest), branched_off=base.lineage)
    table = cache.begin_in(root, branch_key(base), data)
    if table.digest == data.digest:
        known = base.path is None or not folders.TABLE_NAME.fullmatch(base.path.name)
        tell(
            "branched",
            level=logging.INFO if known else None,  # a parent of elsewhere, as was asked for; or a fork
            lineage=base.lineage or base.digest[:12],
            branch=table.lineage,
            where=base.path or "memory",
        )
    return table


def _in_memory(data: TableData, why: str) -> SemanticIdTable:
    degrade("not_saved", error=why)
    return data.in_memory("cached", why)


def extended(
    name: str,
    generation: int,
    base: SemanticIdTable,
    new: NewItems,
    missing: NDArray[np.int64],
    sketch: Sketch,
    *,
    force: bool = False,
) -> TableData:
    """
    Return table `generation`: everything in `base`, and the items at `missing` encoded by its quantizer.

    Args:
        name: of the lineage; another one than the base's is a branch of it.
        new: as in `grow`.
        missing: positions of its items, ascending, that `base` does not hold.
        sketch: of the pairs of all.
        force: as in `grow`.

    Raises:
        ForeignVectorsError: see `novelty.check`.
    """
    encoded = _encoded(base, new.encoded(base, missing))
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
        joined_items(base.keys_array, picked_items(new.items, missing)),
        np.concatenate([base.codes_array, codes.astype(base.codes_array.dtype)]),
        base.header.child(step, lineage=name, sketch=merged(base.header.sketch, sketch)),
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


def _encoded(base: SemanticIdTable, items: EncodedItems) -> "novelty.Encoded":
    """Return new items with the IDs that a table gives them; errors are those of the bulk, if some are in it."""
    from semid_dataset.codec.unique import resolve_collisions

    pipeline.tell_beyond(items)
    totals, raw = items.totals, items.codes
    codes, moved, error = raw, 0, totals.error
    if base.header.unique:
        resolution = resolve_collisions(base.quantizer, items, raw, taken=base.codes_array)
        codes, moved = resolution.codes, resolution.moved
        error += items.error_change(base.quantizer, resolution)
    items.close()
    rows = max(1, totals.rows)
    return novelty.Encoded(codes, raw, moved, error / rows, totals.error / rows, totals.squares / rows)


def joined_items(first: NDArray[np.int64] | list[str], second: NDArray[np.int64] | list[str]) -> Any:
    """Return the items of both, in this order; all as strings where one of the two has strings."""
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return np.concatenate([first, second])
    return [*map(str, first), *map(str, second)]  # ids of both kinds: all become strings
