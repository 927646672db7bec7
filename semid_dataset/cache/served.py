"""
What a user was served: the note that binds later answers for a data directory.

Several users may see the same folders and write others, so several notes may lie about one directory. A note in a
folder that this user can write is what he was served; one in a folder that he only reads is what others were.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from semid_dataset import _files as files
from semid_dataset._messages import logger
from semid_dataset.cache.entries import CacheEntry
from semid_dataset.cache.folders import LINEAGE_NAME, CacheFolder
from semid_dataset.cache.notes import items, optional, read_note, record, text, whole

__all__ = ["note_served", "own_first", "served_before"]

SERVED = "served"
PINS = "pins"
PIN = record({"pin": text(LINEAGE_NAME.pattern + "(@[0-9]{1,9})?")})
ANY = ""  # kind of ID: the last one that was served
MOST_BYTES = 1 << 16
MOST_KINDS = 64
TABLE = {
    "lineage": text(LINEAGE_NAME.pattern),
    "generation": optional(whole(0, 999_999_999), 0),  # unknown to the first notes, as is the digest
    "digest": optional(text("([0-9a-f]{64})?"), ""),
}
NOTE = record(
    {
        **TABLE,
        "folder": optional(text("(?s:.{0,4096})"), ""),
        "kinds": optional(items(record({**TABLE, "kind": text("[0-9a-f]{1,64}")}), most=MOST_KINDS), []),
    }
)


def own_first(roots: Iterable[CacheFolder]) -> list[CacheFolder]:
    """
    Return folders in the order in which their notes bind a user: those that he can write first.

    Among these the ones that lie apart from the data come before that of the data directory, which others share.
    """
    listed = list(roots)
    writable = [root for root in listed if can_write(root)]
    shared = [root for root in writable if root.path.name == ".semantic_ids"]
    own = [root for root in writable if root not in shared]
    return [*own, *shared, *(root for root in listed if root not in writable)]


def can_write(root: CacheFolder) -> bool:
    """Say whether a folder can be written, as far as that can be told without writing."""
    folder = root.versioned
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        return os.access(folder, os.W_OK)
    except OSError:  # a mount that went away
        return False


def note_served(roots: Iterable[CacheFolder], data_dir: Path, kind: str, entry: CacheEntry) -> None:
    """
    Note which table serves a data directory, in the first folder that takes it and wherever this user noted it.

    Args:
        roots: cache folders in reading order.
        data_dir: the directory.
        kind: of ID, as a name: one directory may be asked for several.
        entry: the table.
    """
    first = True
    for root in roots:
        said = _read(root, data_dir)
        if (entry in (said.get(kind), said.get(ANY)) and said.get(kind) == said.get(ANY)) or (
            (first or (said and can_write(root))) and _write(root, data_dir, {**said, kind: entry, ANY: entry})
        ):
            first = False


def served_before(
    roots: Iterable[CacheFolder], data_dir: Path, kind: str = ANY
) -> tuple[CacheFolder, CacheEntry] | None:
    """
    Return which table this user was last served for a data directory, and where that is noted; None without a note.

    Args:
        roots, data_dir: as in `note_served`.
        kind: of ID; by default any.
    """
    for root in own_first(roots):
        said = _read(root, data_dir)
        entry = said.get(kind)
        if entry is None and said.keys() == {ANY}:  # a note of the first layout tells of one kind, and not of which
            entry = said[ANY]
        if entry is not None:
            return root, entry
    return None


def pin(roots: Iterable[CacheFolder], data_dir: Path, wanted: str) -> Path | None:
    """Note what alone may answer for a data directory; "" takes the pin away, everywhere. Return where it was noted."""
    noted = None
    for root in own_first(roots):
        if noted is not None and wanted:
            break
        try:
            folder = root.folder(PINS, create=bool(wanted))
            path = folder / f"{_names(root, data_dir)[0]}.json"
            if wanted:
                files.replace_file(path, [json.dumps({"pin": wanted, "folder": str(data_dir)}).encode()])
                noted = path
            elif path.exists():
                path.unlink()
                noted = path
        except OSError as error:
            logger.debug("nothing was pinned in %s: %s", root.path, error)
    return noted


def pinned(roots: Iterable[CacheFolder], data_dir: Path) -> str:
    """Return what alone may answer for a data directory, "" where nothing was pinned."""
    for root in own_first(roots):
        with suppress(OSError):
            folder = root.folder(PINS)
            for name in _names(root, data_dir):
                if (noted := read_note(folder / f"{name}.json", PIN, limit=MOST_BYTES)) is not None:
                    return str(noted["pin"])
    return ""


def _names(root: CacheFolder, data_dir: Path) -> list[str]:
    """Return names of the note, the one to write first: within a data directory it moves with it."""
    folder = data_dir.resolve()
    inside = root.path.resolve().is_relative_to(folder)
    wheres = [b".", os.fsencode(folder)] if inside else [os.fsencode(folder)]
    return [hashlib.sha256(where).hexdigest()[:32] for where in wheres]


def _read(root: CacheFolder, data_dir: Path) -> dict[str, CacheEntry]:
    """Return what was served for a directory, by kind of ID, the last one under "" as well."""
    try:
        folder = root.folder(SERVED)
    except OSError:  # not there, not ours to look into, or a link
        return {}
    for name in _names(root, data_dir):
        noted = read_note(folder / f"{name}.json", NOTE, limit=MOST_BYTES)
        if noted is not None:
            return {
                one["kind"]: CacheEntry(one["lineage"], one["generation"], one["digest"]) for one in noted["kinds"]
            } | {ANY: CacheEntry(noted["lineage"], noted["generation"], noted["digest"])}
    return {}


def _write(root: CacheFolder, data_dir: Path, said: Mapping[str, CacheEntry]) -> bool:
    def fields(entry: CacheEntry) -> dict[str, Any]:
        return {"lineage": entry.lineage, "generation": entry.generation, "digest": entry.digest}

    kinds = [{"kind": kind, **fields(entry)} for kind, entry in said.items() if kind != ANY]
    noted = {"folder": str(data_dir), **fields(said[ANY]), "kinds": kinds[-MOST_KINDS:]}
    try:
        folder = root.folder(SERVED, create=True)
        path = folder / f"{_names(root, data_dir)[0]}.json"
        files.replace_file(path, [json.dumps(noted).encode()], sync=False)
    except OSError as error:
        logger.debug("what is served was not noted in %s: %s", root.path, error)
        return False
    return True
