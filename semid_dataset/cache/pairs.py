"""
Which lineages share (item, vector) pairs with a data set, so that a look-up opens none of the others.

One file a kind of ID, `v1/index/<identity>.pairs`, of records of one length: a lineage, how many items it has, and 32
bits of each pair that its sketch keeps. A record is appended where a lineage has none. It is derived from the sketch in
a table's header: losing the file costs one look at the headers; what is damaged in it is left out and written again.
"""

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from semid_dataset import _files as files
from semid_dataset._messages import logger
from semid_dataset.cache.folders import TABLE_NAME, CacheFolder
from semid_dataset.cache.index import INDEX, peek_header
from semid_dataset.errors import SemidError
from semid_dataset.table.header import Sketch

__all__ = ["Pairs", "likely", "pair_keys"]

KEPT = 512  # pairs of a lineage: as many as a sketch has
RECORD = np.dtype([("lineage", "S104"), ("items", "<i8"), ("keys", "<u4", (KEPT,)), ("check", "<u8")])
MOST_BYTES = 1 << 28
SPARE = 1024  # records of lineages that are gone, before the file is written anew
FACTOR = 16  # a sketch shows what is shared by data sets of which one has up to so many times the other's items
BITS = 20  # of a key, by which most are ruled out


@dataclass(frozen=True)
class Pairs:
    """
    What is looked for: the keys of a data set's pairs (ascending), and how many items it has.

    Of large data sets the keys are those of the pairs with the smallest hashes, as in a sketch, and more of them.
    """

    keys: NDArray[np.uint32]
    items: int


def pair_keys(items: NDArray[np.uint64], vectors: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """Return 32 bits, never 0, of each pair of a hash of an item and a digest of its vector; none of empty vectors."""
    values, counts = np.unique(vectors, return_counts=True)
    telling = (vectors != 0) & ~np.isin(vectors, values[counts > 1])
    with np.errstate(over="ignore"):
        mixed = (items[telling] ^ (vectors[telling] * np.uint64(0x9E3779B97F4A7C15))) * np.uint64(0xD6E8FEB86659FD93)
    return np.asarray(np.maximum((mixed >> np.uint64(32)).astype(np.uint32), np.uint32(1)))


def likely(
    root: CacheFolder, identity: str, names: Sequence[str], wanted: Pairs, *, may_write: bool
) -> dict[str, bool]:
    """
    Return the lineages that a data set may be of: True where a pair is shared, False where pairs cannot tell.

    Pairs cannot tell where a table has no sketch or cannot be read, or has so many more or fewer items than the data
    set that the pairs in its sketch need not be among those in both.

    Args:
        root: the cache folder.
        identity: digest of the kind of ID that the lineages are of.
        names: of the lineages.
        wanted: the data set.
        may_write: write records that are missing.
    """
    known, whole = _read(root, identity)
    places = {name.decode(): place for place, name in enumerate(known["lineage"].tolist())}  # the last one counts
    missing = [name for name in names if name not in places]
    new = [record for name in missing if (record := _record(root, name)) is not None]
    if new:
        known = np.concatenate([known, np.array(new, RECORD)])
        places = {name.decode(): place for place, name in enumerate(known["lineage"].tolist())}
    if may_write and (not whole or len(known) > 2 * len(names) + SPARE):
        _write(root, identity, known[sorted(places[name] for name in names if name in places)])
    elif may_write and new:
        _append(root, identity, np.array(new, RECORD).tobytes())
    rows = np.array([places.get(name, -1) for name in names], np.int64)
    here = np.flatnonzero(rows >= 0)
    shared, apart = np.zeros(len(names), bool), np.ones(len(names), bool)
    records = known[rows[here]]
    shared[here] = _shares(records["keys"], wanted.keys)
    items = records["items"]
    many, few = np.maximum(items, wanted.items), np.minimum(items, wanted.items)
    apart[here] = (records["keys"][:, 0] == 0) | (many > FACTOR * few)
    return {name: bool(shared[at]) for at, name in enumerate(names) if shared[at] or apart[at]}


def _shares(keys: NDArray[np.uint32], wanted: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Return which rows of keys (n, pairs) hold one that is wanted."""
    coarse = np.zeros(1 << BITS, bool)
    coarse[wanted >> (32 - BITS)] = True
    rows, places = np.nonzero(coarse[keys >> np.uint32(32 - BITS)])
    found = np.zeros(len(keys), bool)
    found[rows[np.isin(keys[rows, places], wanted)]] = True
    return found


def _record(root: CacheFolder, lineage: str) -> tuple[bytes, int, NDArray[np.uint32], int] | None:
    """Return what the first table of a lineage that can be read says; None where none can."""
    with suppress(OSError):
        for path in sorted(root.folder(lineage).iterdir()):
            if TABLE_NAME.fullmatch(path.name):
                with suppress(SemidError, OSError, ValueError):
                    header = peek_header(path)
                    items = max((int(step.get("items", 0)) for step in header.history), default=0)
                    return _packed(lineage, items, header.sketch)
    return None


def _packed(lineage: str, items: int, sketch: Sketch) -> tuple[bytes, int, NDArray[np.uint32], int]:
    keys = np.zeros(KEPT, np.uint32)
    found = pair_keys(sketch.items, sketch.vectors)[:KEPT]
    keys[: len(found)] = found
    record = np.zeros(1, RECORD)
    record["lineage"], record["items"], record["keys"] = lineage.encode(), items, keys
    return lineage.encode(), items, keys, int(_checks(record)[0])


def _checks(records: NDArray[np.void]) -> NDArray[np.uint64]:
    """Return a checksum of each record: every bit counts, and an empty one has none that is right."""
    words = np.ascontiguousarray(records).view("<u8").reshape(len(records), RECORD.itemsize // 8)[:, :-1]
    with np.errstate(over="ignore"):
        odd = np.arange(1, words.shape[1] + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) | np.uint64(1)
        return np.asarray((words * odd).sum(1, dtype=np.uint64) + np.uint64(1))


def _path(root: CacheFolder, identity: str, *, create: bool = False) -> Path:
    return root.folder(INDEX, create=create) / f"{identity[:16]}.pairs"


def _read(root: CacheFolder, identity: str) -> tuple[NDArray[np.void], bool]:
    """Return the records that are whole, and whether that is all that the file holds."""
    try:
        content, _ = files.read_small(_path(root, identity), MOST_BYTES)
    except FileNotFoundError:
        return np.empty(0, RECORD), True
    except OSError as error:
        logger.debug("the pairs of %s in %s are not used: %s", identity, root.path, error)
        return np.empty(0, RECORD), False
    count, rest = divmod(len(content), RECORD.itemsize)
    records = np.frombuffer(content, RECORD, count)
    good = _checks(records) == records["check"]
    return (records, rest == 0) if good.all() else (records[good], False)


def _append(root: CacheFolder, identity: str, content: bytes) -> None:
    with suppress(OSError):
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(_path(root, identity, create=True), flags, 0o666)
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.write(descriptor, content)  # what is torn or mixed with another's is left out by its checksum
        finally:
            os.close(descriptor)


def _write(root: CacheFolder, identity: str, records: NDArray[np.void]) -> None:
    with suppress(OSError):
        files.replace_file(_path(root, identity, create=True), [records.tobytes()], sync=False)
