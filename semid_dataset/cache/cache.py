"""
Tables on disk, as one thing: the folders of the cache, how files are read there, and whether anything may be written.

`Cache` is made once at a door (see `Cache.of`) and handed in. What is below it knows one of its parts each: `folders`
where files lie, `fingerprint` what is asked, `entries` what is noted, `lock` how processes meet.
"""

import logging
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from semid_dataset import _files as files
from semid_dataset._messages import logger, tell
from semid_dataset.cache import entries, folders
from semid_dataset.cache.entries import Memo
from semid_dataset.cache.fingerprint import Question
from semid_dataset.cache.folders import Found, Root, Roots
from semid_dataset.cache.lock import Turn, take_turn
from semid_dataset.environment import Environment
from semid_dataset.errors import CorruptTableError, StoreError, TableError
from semid_dataset.table.table import SemanticIdTable

__all__ = ["Cache", "open_table", "publish_table"]

_tables: "weakref.WeakValueDictionary[tuple[Any, ...], SemanticIdTable]" = weakref.WeakValueDictionary()


def open_table(path: Path, *, mmap: bool, follow: bool = False) -> SemanticIdTable:
    """
    Open a table file; within a process every file is mapped and checked once.

    Raises:
        CorruptTableError, TableVersionError: it cannot be used.
        StoreError: it is no regular file.
        FileNotFoundError, OSError: it cannot be opened.
    """
    buffer, status = files.map_file(path, mmap=mmap, follow=follow)
    key = (str(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, mmap)
    table = _tables.get(key)
    if table is None:
        table = SemanticIdTable.from_buffer(buffer, path=path, status="cached", reason=f"read from {path}")
        _tables[key] = table
    return table


def publish_table(root: Root, lineage: str, generation: int, buffers: Iterable[files.Buffer]) -> bool:
    """
    Publish table `generation` of a lineage in one folder unless it is there; the caller serves what lies there.

    Returns:
        True if this call wrote it.

    Raises:
        StoreError: a link or a file is in the way.
        OSError: it could not be written.
    """
    return files.publish_first(root.folder(lineage, create=True), f"{generation}.safetensors", buffers)


@dataclass(frozen=True)
class Cache:
    """
    The tables that a dataset can be served from.

    Attributes:
        folders: cache folders in reading order; the first that takes a write is written.
        mmap: map files instead of copying them.
        may_write: whether damaged files may be set aside and notes be renewed; publishing is the caller's decision.
    """

    folders: Iterable[Root]
    mmap: bool = True
    may_write: bool = True

    @classmethod
    def of(
        cls, environment: Environment, data_dir: Path | None, cache_dir: Path | None = None, *, may_write: bool = False
    ) -> "Cache":
        """Return the cache of a data directory."""
        return cls(Roots(data_dir, cache_dir, environment), environment.mmap, may_write)

    def reading(self) -> "Cache":
        """Return the same cache for one who only looks."""
        return replace(self, may_write=False)

    def writing(self) -> "Cache":
        """Return the same cache for one who generates."""
        return replace(self, may_write=True)

    # --- tables ---

    def writable(self) -> Root | None:
        """Return the first folder that takes a write."""
        return folders.writable_root(self.folders)

    def lineages(self) -> list[str]:
        """Return the names of all lineages in all folders, sorted."""
        return folders.lineages(self.folders)

    def generations(self, lineage: str) -> list[Found]:
        """Return the table files of a lineage in all folders, newest first."""
        return folders.generations(self.folders, lineage)

    def last_generation(self, lineage: str) -> int:
        """Return the highest generation of which there is a file, readable, damaged or set aside; -1 without one."""
        return folders.last_generation(self.folders, lineage)

    def open(self, path: Path) -> SemanticIdTable:
        """
        Open a table file of the cache.

        Raises:
            As `open_table`.
        """
        return open_table(path, mmap=self.mmap)

    def named(self, lineage: str, generation: int) -> SemanticIdTable | None:
        """Return the table of this lineage and generation, if it can be read: what a memo names is not searched."""
        for root in self.folders:
            try:
                return self.open(root.folder(lineage) / f"{generation}.safetensors")
            except FileNotFoundError:
                continue
            except (OSError, TableError) as error:  # the search for the newest that follows deals with it
                logger.debug("table %d of %s in %s: %s", generation, lineage, root.path, error)
                return None
        return None

    def newest(self, lineage: str) -> SemanticIdTable | None:
        """
        Return the newest table of a lineage that can be read, or None.

        A damaged one is set aside (only named, where nothing may be written); a copy of it in another folder answers,
        else the one before it.

        Raises:
            TableVersionError: a newer version of this package wrote it.
            OSError: it is there and cannot be opened.
        """
        damaged = -1
        for found in self.generations(lineage):
            try:
                inode = found.path.lstat().st_ino  # before it is read: what is set aside must be what was found damaged
                table = self.open(found.path)
                if (table.lineage, table.generation) != (lineage, found.generation):
                    raise CorruptTableError(
                        f"'{found.path}' says it is table {table.generation} of lineage '{table.lineage}'. "
                        "It was copied or renamed; remove it."
                    )
            except FileNotFoundError:  # set aside by somebody else since it was listed
                continue
            except StoreError as error:  # a link, a FIFO: no file of ours ever was one; none is lost by passing it over
                logger.warning("%s", error)
                continue
            except CorruptTableError as error:
                damaged = max(damaged, found.generation)
                self._set_aside(found.path, inode, error)
                continue
            if damaged == found.generation:
                tell("healed", level=logging.WARNING, source=found.path)
            return table
        return None

    def _set_aside(self, path: Path, inode: int, error: Exception) -> None:
        """Free the name of a damaged table file; where nothing may be written, only say that it is damaged."""
        aside: Path | str | None = "nothing: it was left as it is"
        if self.may_write:
            try:
                aside = files.set_aside(path, inode)
            except OSError as refusal:
                aside = f"nothing: {refusal}"
        if aside is not None:
            tell("set_aside", level=logging.WARNING, path=path, error=error, aside=aside)

    def publish(self, lineage: str, generation: int, buffers: Iterable[files.Buffer]) -> bool:
        """
        Publish table `generation` of a lineage unless there is one; the caller serves what lies there.

        Returns:
            True if this call wrote it.

        Raises:
            StoreError: no folder takes a write, or a link or a file is in the way.
            OSError: it could not be written.
        """
        root = self.writable()
        if root is None:
            raise StoreError("no cache folder takes a write")
        return publish_table(root, lineage, generation, buffers)

    # --- notes ---

    def recall(self, question: Question, *, renew: bool | None = None) -> Memo | None:
        """Return the answer that was noted for a question, if the files are still the same; see `Memo.recall`."""
        return Memo.recall(self.folders, question, renew=self.may_write if renew is None else renew)

    def remember(self, memo: Memo, question: Question, digests: Mapping[Path, str]) -> None:
        """Note an answer in the first folder that takes it; `digests` are SHA-256 of files already read."""
        memo.note(self.folders, question, digests)

    def note_export(self, sha256: str, memo: Memo) -> None:
        """Note which table a `semantic_id_dict.json` of this content comes from, before it is written anywhere."""
        entries.note_export(self.folders, sha256, memo)

    def exported_as(self, sha256: str) -> Memo | None:
        """Return the table that a `semantic_id_dict.json` of this content was written from, if that was noted."""
        return entries.exported_as(self.folders, sha256)

    def note_served(self, data_dir: Path, lineage: str) -> None:
        """Note which lineage serves a data directory: the last resort where its embeddings have gone."""
        entries.note_served(self.folders, data_dir, lineage)

    def last_served(self, data_dir: Path) -> str | None:
        """Return the lineage that last served a data directory."""
        return entries.last_served(self.folders, data_dir)

    # --- others ---

    def turn(
        self, name: str, *, waiting: tuple[float, float], ready: Callable[[], bool]
    ) -> "AbstractContextManager[Turn | None]":
        """Wait until this process may generate, or need not; `waiting` is timeout and deadline. See `take_turn`."""
        timeout, deadline = waiting
        return take_turn(self.writable(), name, timeout=timeout, deadline=deadline, ready=ready)
