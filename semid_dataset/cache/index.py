"""
Which lineages are of which kind of ID, so that a look-up opens none of another kind.

One empty file a lineage, `v1/index/<lineage>.<digest of its identity>`. It is derived from a table's header where it is
missing: caches of earlier versions are indexed the first time that somebody who may write looks through them, and
losing the folder costs the same once more. What cannot be read has no entry and is looked at.
"""

import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from semid_dataset import _files as files
from semid_dataset._messages import logger
from semid_dataset.cache import entries
from semid_dataset.cache.entries import CacheEntry
from semid_dataset.cache.folders import LINEAGE_NAME, TABLE_NAME, CacheFolder
from semid_dataset.errors import SemidError
from semid_dataset.format.tensors import MAX_HEADER, peek
from semid_dataset.table.header import TableHeader

__all__ = ["candidates", "exported_by", "peek_header"]

INDEX = "index"
ENTRY = re.compile(rf"({LINEAGE_NAME.pattern})\.([0-9a-f]{{16}})")
NONE = "0" * 16  # of lineages whose tables know no identity: compiled files, bare quantizers

PassOver = Callable[[Path, Exception], None]


def peek_header(path: Path) -> TableHeader:
    """
    Return what a table says of itself; of the file no more is read, and nothing of it is checked.

    Raises:
        CorruptTableError, TableVersionError: it says nothing that can be understood.
        StoreError: it is no regular file.
        FileNotFoundError, OSError: it cannot be opened.
    """
    return TableHeader.from_json(peek(files.read_head(path, MAX_HEADER), str(path)), str(path))


def candidates(root: CacheFolder, identity: str, *, may_write: bool, pass_over: PassOver) -> list[str]:
    """
    Return the lineages of a root that are of an identity, or of which nobody knows.

    Args:
        root: the cache folder.
        identity: digest of it.
        may_write: enter what has no entry yet.
        pass_over: told what cannot be read.
    """
    known, names = _entries(root), _lineages(root, pass_over)
    found = []
    for name in names:
        of = known.get(name)
        if of is None:
            of = _enter(root, name, may_write=may_write)
        if of is None or of == identity[:16]:
            found.append(name)
    return found


def exported_by(root: CacheFolder, sha256: str, *, may_write: bool) -> CacheEntry | None:
    """
    Return the table that a JSON of this content was written from, as far as headers of lineages without an entry say.

    Those with an entry have their exports noted, see `entries.note_export`, unless that folder was lost.
    """
    known = _entries(root) if entries.has_exports(root) else {}
    for name in _lineages(root, lambda path, error: None):
        if name in known or name.startswith("json-"):
            continue
        for path, header in _headers(root, name):
            if header.exported(sha256):
                logger.debug("%s says that it was exported to a JSON of this content", path)
                return _entry(name, header)
        if may_write:
            _enter(root, name, may_write=True)
    return None


def _lineages(root: CacheFolder, pass_over: PassOver) -> list[str]:
    try:
        with os.scandir(root.folder()) as listed:
            return sorted(entry.name for entry in listed if LINEAGE_NAME.fullmatch(entry.name))
    except FileNotFoundError:
        return []
    except OSError as error:
        pass_over(root.versioned, error)
        return []


def _entries(root: CacheFolder) -> dict[str, str]:
    """Return the identity of every lineage that has an entry; nothing where two entries contradict each other."""
    found: dict[str, str] = {}
    with suppress(OSError):
        for name in os.listdir(root.folder(INDEX)):  # noqa: PTH208 - tens of thousands of names, no paths
            if match := ENTRY.fullmatch(name):
                found[match[1]] = match[2] if found.get(match[1], match[2]) == match[2] else ""
    return {name: identity for name, identity in found.items() if identity}


def _headers(root: CacheFolder, lineage: str) -> list[tuple[Path, TableHeader]]:
    found = []
    with suppress(OSError):
        for path in sorted(root.folder(lineage).iterdir()):
            if TABLE_NAME.fullmatch(path.name):
                with suppress(SemidError, OSError, ValueError):
                    found.append((path, peek_header(path)))
    return found


def _entry(lineage: str, header: TableHeader) -> CacheEntry:
    return CacheEntry(
        lineage, header.generation, header.digest, "" if header.identity is None else header.identity.digest
    )


def _enter(root: CacheFolder, lineage: str, *, may_write: bool) -> str | None:
    """Return the identity that a lineage's tables name, None where none can be read; note it, and their exports."""
    headers = [header for _, header in _headers(root, lineage) if header.lineage == lineage]
    if not headers:
        return None
    identity = headers[0].identity
    of = NONE if identity is None else identity.digest[:16]
    if may_write:
        if not lineage.startswith("json-"):
            for header in headers:
                for sha256 in {header.json_sha256, *(str(step.get("parent_json", "")) for step in header.history)}:
                    if sha256:
                        entries.note_export([root], sha256, _entry(lineage, header))
        with suppress(OSError):
            (root.folder(INDEX, create=True) / f"{lineage}.{of}").touch()
    return of
