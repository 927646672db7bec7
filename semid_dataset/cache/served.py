"""
What a user was served: the note that binds later answers for a data directory.

Several users may see the same folders and write others, so several notes may lie about one directory. A note in a
folder that this user can write is what he was served; one in a folder that he only reads is what others were.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from semid_dataset import _files as files
from semid_dataset._messages import logger
from semid_dataset.cache.entries import CacheEntry
from semid_dataset.cache.folders import LINEAGE_NAME, CacheFolder
from semid_dataset.cache.notes import items, optional, read_note, record, text, whole

__all__ = ["Left", "Served", "note_served", "noted_elsewhere", "own_first", "served_before", "served_others"]

SERVED = "served"
PINS = "pins"
PIN = record({"pin": text(LINEAGE_NAME.pattern + "(@[0-9]{1,9})?")})
ANY = ""  # kind of ID: the last one that was served
MOST_BYTES = 1 << 16
MOST_KINDS = 64
MOST_LEFT = 4
MOST_NOTES = 64  # that are looked through for what this user was served elsewhere: the newest of his own
LEFT = record({"lineage": text(LINEAGE_NAME.pattern), "moved": whole(-1, 1 << 40), "items": whole(0, 1 << 40)})
TABLE = {
    "lineage": text(LINEAGE_NAME.pattern),
    "generation": optional(whole(0, 999_999_999), 0),  # unknown to the first notes, as is the digest
    "digest": optional(text("([0-9a-f]{64})?"), ""),
    "left": optional(items(LEFT, most=MOST_LEFT), []),
}
NOTE = record(
    {
        **TABLE,
        "folder": optional(text("(?s:.{0,4096})"), ""),
        "kinds": optional(items(record({**TABLE, "kind": text("[0-9a-f]{1,64}")}), most=MOST_KINDS), []),
    }
)


@dataclass(frozen=True)
class Left:
    """
    A lineage that served a directory until IDs moved without anybody's retraining.

    Users who can write no note of their own learn of it from the note of those who can.

    Attributes:
        lineage: its name.
        moved: how many of its items have another ID since; -1 where it could not be read any more.
        items: how many both have.
    """

    lineage: str
    moved: int
    items: int


@dataclass(frozen=True)
class Served:
    """
    What one note says of a data directory.

    Attributes:
        root: the folder that holds the note.
        entry: the table.
        left: what served the directory before.
        own: whether this user can write there: then it is what he was served, else what others were.
        data_dir: the directory, as whoever noted it named it.
    """

    root: CacheFolder
    entry: CacheEntry
    left: tuple[Left, ...] = ()
    own: bool = True
    data_dir: str = ""


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


def note_served(
    roots: Iterable[CacheFolder], data_dir: Path, kind: str, entry: CacheEntry, left: Sequence[Left] = ()
) -> None:
    """
    Note which table serves a data directory, in the first folder that takes it and wherever this user noted it.

    Args:
        roots: cache folders in reading order.
        data_dir: the directory.
        kind: of ID, as a name: one directory may be asked for several.
        entry: the table.
        left: what served the directory before, the last one last.
    """
    first = True
    for root in roots:
        said = _read(root, data_dir)
        wanted = Served(root, entry, tuple(left[-MOST_LEFT:]), data_dir=str(data_dir))
        there = said.get(kind)
        same = there is not None and (there.entry, there.left) == (entry, wanted.left)
        if (same and said[ANY].entry == entry) or (
            (first or (said and can_write(root))) and _write(root, data_dir, {**said, kind: wanted, ANY: wanted})
        ):
            first = False


def served_before(roots: Iterable[CacheFolder], data_dir: Path, kind: str = ANY) -> Served | None:
    """
    Return what this user was last served for a data directory; None without a note.

    Args:
        roots, data_dir: as in `note_served`.
        kind: of ID; by default any.
    """
    for root in own_first(roots):
        said = _read(root, data_dir)
        found = said.get(kind)
        if found is None and said.keys() == {ANY}:  # a note of the first layout tells of one kind, and not of which
            found = said[ANY]
        if found is not None:
            return replace(found, own=can_write(root))
    return None


def served_others(roots: Iterable[CacheFolder], data_dir: Path, kind: str) -> Iterator[Served]:
    """Yield what others were served for a data directory, as notes say that this user cannot write."""
    for root in roots:
        if not can_write(root) and (found := _read(root, data_dir).get(kind)) is not None:
            yield replace(found, own=False)


def noted_elsewhere(roots: Iterable[CacheFolder], data_dir: Path, kind: str) -> Iterator[Served]:
    """Yield what this user was served for other data directories that were asked for this kind of ID."""
    for root in roots:
        if can_write(root):
            with suppress(OSError):
                here = {f"{name}.json" for name in _names(root, data_dir)}
                with os.scandir(root.folder(SERVED)) as listed:
                    stats = [
                        (entry.stat(follow_symlinks=False), entry.path) for entry in listed if entry.name not in here
                    ]
                own = sorted((-status.st_mtime, path) for status, path in stats if status.st_uid == os.geteuid())
                for _, path in own[:MOST_NOTES]:
                    found = _said(root, read_note(Path(path), NOTE, limit=MOST_BYTES)).get(kind)
                    if found is not None:
                        yield found


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


def _read(root: CacheFolder, data_dir: Path) -> dict[str, Served]:
    """Return what was served for a directory, by kind of ID, the last one under "" as well."""
    try:
        folder = root.folder(SERVED)
    except OSError:  # not there, not ours to look into, or a link
        return {}
    noted = (read_note(folder / f"{name}.json", NOTE, limit=MOST_BYTES) for name in _names(root, data_dir))
    return next((said for one in noted if (said := _said(root, one))), {})


def _said(root: CacheFolder, noted: Mapping[str, Any] | None) -> dict[str, Served]:
    if noted is None:
        return {}
    folder = str(noted["folder"])

    def of(one: Mapping[str, Any]) -> Served:
        left = tuple(Left(**before) for before in one["left"])
        return Served(root, CacheEntry(one["lineage"], one["generation"], one["digest"]), left, True, folder)

    return {**{one["kind"]: of(one) for one in noted["kinds"]}, ANY: of(noted)}


def _write(root: CacheFolder, data_dir: Path, said: Mapping[str, Served]) -> bool:
    def fields(of: Served) -> dict[str, Any]:
        entry = {"lineage": of.entry.lineage, "generation": of.entry.generation, "digest": of.entry.digest}
        return entry | ({"left": [asdict(left) for left in of.left]} if of.left else {})

    kinds = [{"kind": kind, **fields(of)} for kind, of in said.items() if kind != ANY]
    noted = {"folder": str(data_dir), **fields(said[ANY]), "kinds": kinds[-MOST_KINDS:]}
    try:
        folder = root.folder(SERVED, create=True)
        path = folder / f"{_names(root, data_dir)[0]}.json"
        files.replace_file(path, [json.dumps(noted).encode()], sync=False)
    except OSError as error:
        logger.debug("what is served was not noted in %s: %s", root.path, error)
        return False
    return True
