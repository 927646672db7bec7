"""
What lies in the caches, who uses it, and which files nobody needs any more.

Finds and never deletes. In use, and so never found: the newest table of a lineage that can be read, tables that
another process of this machine maps or holds open, notes, locks, and whatever was changed or used more recently than
the caller says: a writer may be between publishing a table and noting it, a reader may be on another machine.
"""

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semid_dataset import _files as files
from semid_dataset.cache import folders, use
from semid_dataset.cache.cache import Cache
from semid_dataset.cache.entries import LINEAGE, MOST_BYTES
from semid_dataset.cache.folders import CacheFolder, Found
from semid_dataset.cache.index import ENTRY, INDEX, peek_header
from semid_dataset.cache.notes import items, optional, read_note, record, text
from semid_dataset.cache.served import MOST_BYTES as MOST_SERVED
from semid_dataset.cache.served import MOST_KINDS, PIN, PINS
from semid_dataset.errors import SemidError
from semid_dataset.format.id_json import JSON_FILE

__all__ = ["Contents", "Row", "Waste", "find_waste", "look_through", "within"]

NAMED = record(
    {
        "lineage": LINEAGE,
        "folder": optional(text("(?s:.{0,4096})"), ""),
        "kinds": optional(items(record({"lineage": LINEAGE}), most=MOST_KINDS), []),
    }
)
DAY = 86_400.0  # seconds
WORK_SECONDS = DAY  # a run that has finished no part for a day will not go on; if it does, it does them again
LEFTOVER_DAYS, TABLE_DAYS = 1.0, 30.0  # since the last change, or use, of files that nobody needs
KINDS = ("leftover", "job", "aside", "generation", "lineage")  # in the order in which they are given up


@dataclass(frozen=True)
class Waste:
    """A file that nobody needs, and why; `kind` is one of KINDS, `used` when it was last changed or used."""

    path: Path
    bytes: int
    why: str
    kind: str = "leftover"
    used: float = 0.0


@dataclass(frozen=True)
class Row:
    """
    A lineage in a root.

    Attributes:
        name: of the lineage.
        identity: the kind of its IDs, in words; "" where its tables do not say.
        generations: numbers of its tables, ascending.
        bytes: of its tables.
        born: when its newest table was published, by the clock of the file system.
        used: when one of its tables was last published or marked as used.
        live: whether another process of this machine uses one of them.
        serves: data directories that it served last.
        asides: damaged tables that were set aside.
        aside_bytes: theirs.
    """

    name: str
    identity: str
    generations: tuple[int, ...]
    bytes: int
    born: float
    used: float
    live: bool
    serves: tuple[str, ...] = ()
    asides: int = 0
    aside_bytes: int = 0


@dataclass(frozen=True)
class Contents:
    """What lies in a root; `job_bytes` are those of work that has not become a table."""

    path: Path
    rows: tuple[Row, ...] = ()
    jobs: int = 0
    job_bytes: int = 0
    notes: int = 0
    note_bytes: int = 0
    now: float = field(default_factory=time.time)

    @property
    def bytes(self) -> int:
        """Of everything."""
        return self.job_bytes + self.note_bytes + sum(row.bytes + row.aside_bytes for row in self.rows)


def look_through(cache: Cache) -> list[Contents]:
    """Return what lies in each of the cache's folders; those that are not there are left out."""
    live = Live()
    return [_contents(root, live) for root in cache.folders if root.versioned.is_dir()]


class Live:
    """What other processes of this machine use."""

    def __init__(self) -> None:
        self._paths, self._inodes, hidden = use.live_files()
        self.hidden: int = hidden

    def __contains__(self, path: object) -> bool:
        assert isinstance(path, Path)
        with suppress(OSError):
            if path.lstat().st_ino in self._inodes:
                return True
        return os.path.realpath(path) in self._paths


def _contents(root: CacheFolder, live: Live) -> Contents:
    served: dict[str, list[str]] = {}
    notes = note_bytes = 0
    for kind in ("memo", "served", "exports"):
        for path in _listed(root.versioned / kind):
            with suppress(OSError):
                notes, note_bytes = notes + 1, note_bytes + path.lstat().st_size
            if kind == "served" and (noted := _noted(path)) is not None:
                for lineage in {one["lineage"] for one in (noted, *noted["kinds"])}:
                    served.setdefault(lineage, []).append(noted["folder"])
    rows = [_row(root, name, live, tuple(served.get(name, ()))) for name in folders.lineages([root])]
    jobs = _listed(root.versioned / folders.JOBS)
    job_bytes = sum(_size(path) for job in jobs for path in _listed(job))
    return Contents(root.path, tuple(row for row in rows if row), len(jobs), job_bytes, notes, note_bytes, _now(root))


def _row(root: CacheFolder, name: str, live: Live, serves: tuple[str, ...]) -> Row | None:
    tables = sorted(folders.generations([root], name), key=lambda found: found.generation)
    asides = [path for path in _listed(root.versioned / name) if ".damaged-" in path.name]
    if not tables and not asides:
        return None
    identity = ""
    for found in reversed(tables):
        with suppress(SemidError, OSError, ValueError):
            of = peek_header(found.path).identity
            identity = "" if of is None else str(of)
            break
    return Row(
        name,
        identity,
        tuple(found.generation for found in tables),
        sum(_size(found.path) for found in tables),
        max((_changed(found.path) for found in tables), default=0.0),
        max((_used(found) for found in tables), default=0.0),
        any(found.path in live for found in tables),
        serves,
        len(asides),
        sum(map(_size, asides)),
    )


def find_waste(
    cache: Cache,
    *,
    min_age: float | None = None,
    lineages: bool = False,
    parent: Path | None = None,
    data_dir: Path | None = None,
) -> list[Waste]:
    """
    Return the files in the cache's folders that may be deleted.

    Args:
        cache: its folders are looked at together: the newest table of a lineage may lie in any of them.
        min_age: seconds since its last change, or use, that a file must have; by default 30 days for tables and one
            for everything else. Ages are told by the clock of the file system.
        lineages: also find whole lineages that no note in these roots names. A dataset whose notes lie elsewhere,
            or a recommender that names one as its parent, may need them.
        parent: the table or folder that is named as everybody's parent; its lineage stays.
        data_dir: where killed processes may have left hidden files beside `semantic_id_dict.json`.
    """
    roots = list(cache.folders)
    live = Live()
    ages = (DAY * LEFTOVER_DAYS, DAY * TABLE_DAYS) if min_age is None else (min_age, min_age)
    now = {root.path: _now(root) for root in roots}
    notes = [noted for root in roots for kind in ("memo", "served") for noted in _notes(root, kind)]
    pins = {noted["pin"] for root in roots for noted in _pins(root)}
    named = {one["lineage"] for noted in notes for one in (noted, *noted["kinds"])} | {
        pin.split("@")[0] for pin in pins
    }
    found: list[Waste] = []
    for name in cache.lineages():
        unused = lineages and name not in named and not _is_in(parent, [root.versioned / name for root in roots])
        found += [
            waste
            for waste in _waste_of(name, cache, roots, now, ages, live, unused=unused)
            if waste.kind != "generation" or f"{name}@{waste.path.name.partition('.')[0]}" not in pins
        ]
    for root in roots:
        before = now[root.path] - ages[0]
        for folder in [root.versioned, *_listed(root.versioned)]:
            for path in _listed(folder):
                if path.name.startswith(".") and path.name.endswith(".tmp"):
                    hour_ago = now[root.path] - files.LEFTOVER_SECONDS
                    found += _if_old(path, min(before, hour_ago), "left by a writer that died")
        for job in _listed(root.versioned / folders.JOBS):
            parts = _listed(job)
            if max(map(_changed, parts), default=0.0) < min(before, now[root.path] - WORK_SECONDS):
                for path in parts:
                    found += _if_old(path, before, "left by a run that never ended", "job")
        found += _orphans(root, before)
    if data_dir is not None:
        for path in files.abandoned(data_dir / JSON_FILE):
            found.append(Waste(path, _size(path), "left by a process that was killed while it exported IDs"))
    return found


def within(waste: Sequence[Waste], total: int, most: int) -> list[Waste]:
    """
    Return what has to go for a cache of `total` bytes to come down to `most`: what is least missed first.

    Leftovers come first, then parts of dead runs, damaged tables, old generations and lineages; of each the longest
    unused first.
    """
    chosen: list[Waste] = []
    for one in sorted(waste, key=lambda one: (KINDS.index(one.kind), one.used)):
        if total <= most:
            break
        chosen.append(one)
        total -= one.bytes
    return chosen


def _waste_of(
    name: str,
    cache: Cache,
    roots: Sequence[CacheFolder],
    now: dict[Path, float],
    ages: tuple[float, float],
    live: Live,
    *,
    unused: bool,
) -> Iterator[Waste]:
    """Yield what is not needed of one lineage."""
    tables = cache.generations(name)
    newest = next((table.generation for table in tables if _readable(cache, table.path)), None)
    for table in tables:
        used = _used(table)
        if used > now[table.root.path] - ages[1] or table.path in live:
            continue
        if newest is not None and table.generation < newest:
            why = f"generation {newest} holds all its IDs"
            yield from _if_old(table.path, used, why, "generation", used)
        elif unused:
            yield from _if_old(table.path, used, "no note names this lineage", "lineage", used)
    if newest is None and not unused:
        return  # what is set aside tells the next training that IDs were lost: without it they would move in silence
    for root in roots:
        for path in _listed(root.versioned / name):
            if ".damaged-" in path.name:
                why = "damaged, and healed since" if newest is not None else "damaged"
                yield from _if_old(path, now[root.path] - ages[0], why, "aside")


def _orphans(root: CacheFolder, before: float) -> Iterator[Waste]:
    """Yield entries of lineages that are gone: of the index, and marks of use."""
    for kind, named in ((INDEX, ENTRY), (use.USED, re.compile(rf"({folders.LINEAGE_NAME.pattern})\.[0-9]+"))):
        for path in _listed(root.versioned / kind):
            match = named.fullmatch(path.name)
            if match is not None and not (root.versioned / match[1]).exists():
                yield from _if_old(path, before, "its lineage is gone")


def _used(table: Found) -> float:
    """Return when a table was last changed or marked as used."""
    marked = use.used_ns(table.root, table.path.parent.name, table.generation) / 1e9
    return max(_changed(table.path), marked)


def _now(root: CacheFolder) -> float:
    """Return the time by the clock of a root's file system; of this machine where it takes no write, nor deletes."""
    try:
        return files.clock_ns(root.folder()) / 1e9
    except OSError:
        return time.time()


def _readable(cache: Cache, path: Path) -> bool:
    try:
        cache.open(path)
    except (SemidError, OSError):
        return False
    return True


def _noted(path: Path) -> dict[str, Any] | None:
    noted: dict[str, Any] | None = read_note(path, NAMED, limit=MOST_BYTES)  # torn: it answers nobody either
    return noted


def _notes(root: CacheFolder, kind: str) -> Iterator[dict[str, Any]]:
    for path in _listed(root.versioned / kind):
        if (noted := _noted(path)) is not None:
            yield noted


def _pins(root: CacheFolder) -> Iterator[dict[str, Any]]:
    for path in _listed(root.versioned / PINS):
        noted = read_note(path, PIN, limit=MOST_SERVED)
        if noted is not None:
            yield noted


def _is_in(parent: Path | None, places: Sequence[Path]) -> bool:
    if parent is None:
        return False
    named = {parent.resolve(), parent.resolve().parent}
    return any(folder.resolve() in named for folder in places)


def _listed(folder: Path) -> list[Path]:
    """Return what a folder holds; nothing where it is none, cannot be read, or is a link that somebody put there."""
    with suppress(OSError):
        if not folder.is_symlink() and folder.is_dir():
            return sorted(folder.iterdir())
    return []


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.lstat().st_size
    return 0


def _changed(path: Path) -> float:
    with suppress(OSError):
        return path.lstat().st_mtime
    return 0.0


def _if_old(path: Path, before: float, why: str, kind: str = "leftover", used: float | None = None) -> list[Waste]:
    with suppress(OSError):
        status = path.lstat()
        if status.st_mtime <= before and not path.is_dir():
            return [Waste(path, status.st_size, why, kind, status.st_mtime if used is None else used)]
    return []
