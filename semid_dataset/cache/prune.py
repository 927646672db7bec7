"""
Which files of the caches nobody needs any more.

Finds and never deletes. In use, and so never found: the newest table of a lineage that can be read, notes, locks, and
whatever is younger than the caller says, since a writer may be between publishing a table and noting it.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from semid_dataset import _files as files
from semid_dataset.cache import folders
from semid_dataset.cache.cache import Cache
from semid_dataset.cache.entries import LINEAGE, MOST_BYTES
from semid_dataset.cache.folders import Root
from semid_dataset.cache.notes import read_note, record
from semid_dataset.errors import SemidError

__all__ = ["Waste", "find_waste"]

NAMED = record({"lineage": LINEAGE})
WORK_SECONDS = 86_400.0  # a run that has finished no part for a day will not go on; if it does, it does them again


@dataclass(frozen=True)
class Waste:
    """A file that nobody needs, and why."""

    path: Path
    bytes: int
    why: str


def find_waste(cache: Cache, *, min_age: float, lineages: bool = False, parent: Path | None = None) -> list[Waste]:
    """
    Return the files in the cache's folders that may be deleted.

    Args:
        cache: its folders are looked at together: the newest table of a lineage may lie in any of them.
        min_age: seconds since its last change that a file must have.
        lineages: also find whole lineages that no note in these roots names. A dataset whose notes lie elsewhere,
            or a recommender that names one as its parent, may need them.
        parent: the table or folder that is named as everybody's parent; its lineage stays.
    """
    roots = list(cache.folders)
    before = time.time() - min_age
    named = {lineage for root in roots for kind in ("memo", "served") for lineage in _named(root, kind)}
    found: list[Waste] = []
    for name in cache.lineages():
        unused = lineages and name not in named and not _is_in(parent, [root.versioned / name for root in roots])
        found += _waste_of(name, cache, roots, before, unused=unused)
    for root in roots:
        for folder in [root.versioned, *_listed(root.versioned)]:
            for path in _listed(folder):
                if path.name.startswith(".") and path.name.endswith(".tmp"):
                    found += _if_old(
                        path, min(before, time.time() - files.LEFTOVER_SECONDS), "left by a writer that died"
                    )
        for job in _listed(root.versioned / folders.JOBS):
            parts = _listed(job)
            last = max((path.lstat().st_mtime for path in parts), default=0.0)
            if last < min(before, time.time() - WORK_SECONDS):
                found += [waste for path in parts for waste in _if_old(path, before, "left by a run that never ended")]
    return found


def _waste_of(name: str, cache: Cache, roots: Sequence[Root], before: float, *, unused: bool) -> Iterator[Waste]:
    """Yield what is not needed of one lineage."""
    tables = cache.generations(name)
    newest = next((table.generation for table in tables if _readable(cache, table.path)), None)
    for table in tables:
        if newest is not None and table.generation < newest:
            yield from _if_old(table.path, before, f"generation {newest} holds all its IDs")
        elif unused:
            yield from _if_old(table.path, before, "no note names this lineage")
    if newest is None and not unused:
        return  # what is set aside tells the next training that IDs were lost: without it they would move in silence
    for root in roots:
        for path in _listed(root.versioned / name):
            if ".damaged-" in path.name:
                yield from _if_old(path, before, "damaged, and healed since" if newest is not None else "damaged")


def _readable(cache: Cache, path: Path) -> bool:
    try:
        cache.open(path)
    except (SemidError, OSError):
        return False
    return True


def _named(root: Root, kind: str) -> Iterator[str]:
    for path in _listed(root.versioned / kind):
        note = read_note(path, NAMED, limit=MOST_BYTES)  # torn: it answers nobody either
        if note is not None:
            yield note["lineage"]


def _is_in(parent: Path | None, folders: Sequence[Path]) -> bool:
    if parent is None:
        return False
    places = {parent.resolve(), parent.resolve().parent}
    return any(folder.resolve() in places for folder in folders)


def _listed(folder: Path) -> list[Path]:
    """Return what a folder holds; nothing where it is none, cannot be read, or is a link that somebody put there."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    with suppress(OSError):
        return sorted(folder.iterdir())
    return []


def _if_old(path: Path, before: float, why: str) -> list[Waste]:
    with suppress(OSError):
        status = path.lstat()
        if status.st_mtime <= before and not path.is_dir():
            return [Waste(path, status.st_size, why)]
    return []
