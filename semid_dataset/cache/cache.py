"""
Tables on disk, as one thing: the folders of the cache, how files are read there, and whether anything may be written.

`Cache` is made once at a door (see `Cache.of`) and handed in. What is below it knows one of its parts each: `folders`
where files lie, `fingerprint` what is asked, `entries` what is noted, `lock` how processes meet.
"""

import logging
import os
import weakref
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from semid_dataset import _files as files
from semid_dataset._messages import logger, tell
from semid_dataset.cache import entries, folders, index
from semid_dataset.cache.entries import Memo
from semid_dataset.cache.fingerprint import Question
from semid_dataset.cache.folders import Found, Root, Roots
from semid_dataset.cache.lock import Turn, take_turn
from semid_dataset.cache.use import mark_used
from semid_dataset.config import Identity
from semid_dataset.environment import Environment
from semid_dataset.errors import CorruptTableError, StoreError, TableError, TableVersionError
from semid_dataset.table.table import SemanticIdTable

__all__ = ["Cache", "open_table", "publish_table"]

_said: set[Path] = set()  # places of which it was said that they were passed over
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
        if not mmap:  # a copy leaves no trace; held open, the file is seen to be in use, as a mapped one is
            weakref.finalize(buffer, os.close, files.open_regular(path, follow=follow))
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
        refused: what was there and could not be read, with the reason, see `pass_over`.
    """

    folders: Iterable[Root]
    mmap: bool = True
    may_write: bool = True
    refused: dict[Path, Exception] = field(default_factory=dict, compare=False, repr=False)

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
        return folders.generations(self.folders, lineage, self.pass_over)

    def candidates(self, identity: Identity) -> list[str]:
        """Return the names of the lineages of this identity, sorted, and of those of which nobody knows it."""
        found = (
            index.candidates(root, identity.digest, may_write=self.may_write, pass_over=self.pass_over)
            for root in self.folders
        )
        return sorted({name for names in found for name in names})

    def tables_of(self, identity: Identity, ours: Container[str] = ()) -> Iterator[tuple[str, SemanticIdTable]]:
        """
        Yield the newest table of every lineage of this identity.

        Whatever is wrong with one of them, it is passed over and the next one comes: in a shared cache they are other
        people's.

        Args:
            identity: what kind of ID.
            ours: names of lineages that are known to be the asker's: what is wrong with these is an error.

        Raises:
            SemidError, OSError: one of `ours` cannot be read, though it may be.
        """
        for name in self.candidates(identity):
            table: SemanticIdTable | None = None
            with self.tolerant(name, ours):
                table = self.newest(name)
            if table is not None and table.header.identity == identity:
                yield name, table

    @contextmanager
    def tolerant(self, lineage: str, ours: Container[str] = ()) -> Iterator[None]:
        """Pass over whatever goes wrong with a lineage within the block, unless it is known to be the asker's."""
        try:
            yield
        except Exception as error:
            if lineage in ours and not isinstance(error, PermissionError):  # private to another user, who can read it
                raise
            self.pass_over(self._place_of(lineage), error)

    def _place_of(self, lineage: str) -> Path:
        return next((found.path.parent for found in self.generations(lineage)), Path(lineage))

    def pass_over(self, path: Path, error: Exception) -> None:
        """Note that something is there and cannot be used; `say_refused` says it, all in one line."""
        if not isinstance(error, FileNotFoundError):
            logger.debug("%s is passed over: %s", path, error)
            self.refused.setdefault(path, error)

    def say_refused(self) -> None:
        """Say once a process what was passed over."""
        new = {path: error for path, error in self.refused.items() if path not in _said}
        if new:
            _said.update(new)
            path, error = next(iter(new.items()))
            tell("passed_over_all", level=logging.WARNING, count=len(new), path=path, error=error)

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
                path = root.folder(lineage) / f"{generation}.safetensors"
                table = self.open(path)
                if self.may_write:
                    mark_used(root, lineage, generation, path.lstat().st_mtime_ns)
                return table
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
            TableVersionError: a newer version of this package wrote it, in every folder.
            OSError, MemoryError: it is there and cannot be opened, in no folder.
        """
        damaged = -1
        failed: tuple[int, Exception] | None = None
        for found in self.generations(lineage):
            if failed is not None and found.generation < failed[0]:  # no copy of it could be read
                break
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
            except (OSError, TableVersionError, MemoryError) as error:
                self.pass_over(found.path, error)
                failed = failed or (found.generation, error)
                continue
            if damaged == found.generation:
                tell("healed", level=logging.WARNING, source=found.path)
            return table
        if failed is not None:
            raise failed[1]
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

        A folder that does not take it, being full, is passed over for the next one.

        Returns:
            True if this call wrote it.

        Raises:
            StoreError: no folder takes a write, or a link or a file is in the way.
            OSError: it could not be written.
        """
        whole = list(buffers)
        refusals: list[tuple[Path, OSError]] = []
        for root in self.folders:
            if not root.takes_writes():
                continue
            for path, refusal in refusals[-1:]:
                tell("next_folder", level=logging.WARNING, path=path, error=refusal)
            try:
                return publish_table(root, lineage, generation, whole)
            except OSError as error:  # full, most likely: a probe of one byte still fits
                refusals.append((root.path, error))
        if not refusals:
            raise StoreError("no cache folder takes a write")
        raise refusals[0][1]

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

    def exported_by(self, sha256: str) -> Memo | None:
        """Return the table that a JSON of this content was written from; without a note of it, tables are asked."""
        if (noted := self.exported_as(sha256)) is not None:
            return noted
        found = (index.exported_by(root, sha256, may_write=self.may_write) for root in self.folders)
        return next((memo for memo in found if memo is not None), None)

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
