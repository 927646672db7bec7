"""
Tables on disk, as one thing: the folders of the cache, how files are read there, and whether anything may be written.

`Cache` is made once at a door (see `Cache.of`) and handed in. What is below it knows one of its parts each: `folders`
where files lie, `fingerprint` what is asked, `entries` what is noted, `lock` how processes meet.
"""

import json
import os
import weakref
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from semid_dataset import _files as files
from semid_dataset._messages import logger, tell
from semid_dataset.cache import entries, folders, index, served
from semid_dataset.cache.entries import CacheEntry
from semid_dataset.cache.fingerprint import CacheKey
from semid_dataset.cache.folders import CacheFolder, CacheFolders, Found
from semid_dataset.cache.lock import Lease, take_lease
from semid_dataset.cache.notes import read_note, record, text, whole
from semid_dataset.cache.pairs import Pairs, likely
from semid_dataset.cache.served import Left, Served
from semid_dataset.cache.use import mark_used
from semid_dataset.config import Identity
from semid_dataset.environment import Environment
from semid_dataset.errors import CorruptTableError, ParentError, StoreError, TableError, TableVersionError
from semid_dataset.table.build import TableData
from semid_dataset.table.table import SemanticIdTable

__all__ = ["Cache", "open_table", "publish_table"]

_said: set[Path] = set()  # places of which it was said that they were passed over
PARENTS = "parents"  # folder of tables that were named as parents, by their digests
ORIGINS = "origins"  # folder of where lineages begin, see `Cache.begin_in`
FIT = record(
    {"lineage": text(folders.LINEAGE_NAME.pattern), "generation": whole(0, 999_999_999), "digest": text("[0-9a-f]{64}")}
)
MOST_NOTED = 1 << 10  # bytes; a table has more
MOST_TRIES = 5
FEW = 16  # lineages of one kind, all of which are looked at

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
            weakref.finalize(table.buffer, os.close, files.open_regular(path, follow=follow))
    return table


def publish_table(root: CacheFolder, lineage: str, generation: int, buffers: Iterable[files.Buffer]) -> bool:
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

    folders: Iterable[CacheFolder]
    mmap: bool = True
    may_write: bool = True
    refused: dict[Path, Exception] = field(default_factory=dict, compare=False, repr=False)
    damaged: dict[Path, Exception] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(
        cls, environment: Environment, data_dir: Path | None, cache_dir: Path | None = None, *, may_write: bool = False
    ) -> "Cache":
        """Return the cache of a data directory."""
        return cls(CacheFolders(data_dir, cache_dir, environment), environment.mmap, may_write)

    def reading(self) -> "Cache":
        """Return the same cache for one who only looks."""
        return replace(self, may_write=False)

    def writing(self) -> "Cache":
        """Return the same cache for one who generates."""
        return replace(self, may_write=True)

    # --- tables ---

    def writable(self) -> CacheFolder | None:
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

    def likely(self, identity: Identity, pairs: Callable[[], Pairs]) -> tuple[list[str], list[str]]:
        """
        Return the names of the lineages of this identity that a data set may be of, and of those that it hardly is of.

        Few are all likely. Of many, those are that share a pair of item and vector with it; the others are asked only
        where none of these is its own.

        Args:
            identity: what kind of ID.
            pairs: of the data set; called where there are many.
        """
        names = self.candidates(identity)
        if len(names) <= FEW:
            return names, []
        wanted = pairs()
        found: dict[str, bool] = {}
        for root in self.folders:
            here = index.candidates(root, identity.digest, may_write=self.may_write, pass_over=self.pass_over)
            for name, shared in likely(root, identity.digest, here, wanted, may_write=self.may_write).items():
                found[name] = shared or found.get(name, False)
        return [name for name in sorted(found) if found[name]], [name for name in sorted(found) if not found[name]]

    def tables_of(
        self, identity: Identity, names: Iterable[str], ours: Container[str] = ()
    ) -> Iterator[tuple[str, SemanticIdTable]]:
        """
        Yield the newest table of each of these lineages that is of this identity.

        Whatever is wrong with one of them, it is passed over and the next one comes: in a shared cache they are other
        people's.

        Args:
            identity: what kind of ID.
            names: of the lineages.
            ours: names of lineages that are known to be the asker's: what is wrong with these is an error.

        Raises:
            SemidError, OSError: one of `ours` cannot be read, though it may be.
        """
        for name in names:
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
            if not any(path in noted.parents for noted in self.refused):  # a lineage, of which a table is noted already
                self.refused.setdefault(path, error)

    def say_refused(self) -> None:
        """Say once a process what was passed over."""
        new = {path: error for path, error in self.refused.items() if path not in _said}
        if new:
            _said.update(new)
            path, error = next(iter(new.items()))
            tell("passed_over_all", count=len(new), path=path, error=error)

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
        """Return the table of this lineage and generation, if it can be read: what an entry names is not searched."""
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

    def noted(self, entry: CacheEntry) -> SemanticIdTable | None:
        """
        Return the table that a note names, or the newest that grew from it; None where another user keeps it private.

        Raises:
            As `newest`.
        """
        table = self.named(entry.lineage, entry.generation)
        if table is not None and table.digest == entry.digest:
            return table
        try:  # damaged, healed or pruned: one that grew from it will do
            return self.newest(entry.lineage, since=entry.digest)
        except PermissionError as error:
            self.pass_over(Path(str(error.filename or entry.lineage)), error)
            return None

    def newest_or_pass(self, lineage: str) -> SemanticIdTable | None:
        """
        Return the newest table of a lineage that a note names; None where another user keeps it private.

        Raises:
            As `newest`.
        """
        try:
            return self.newest(lineage)
        except PermissionError as error:
            self.pass_over(Path(str(error.filename or lineage)), error)
            return None

    def newest(self, lineage: str, *, since: str = "") -> SemanticIdTable | None:
        """
        Return the newest table of a lineage that can be read, or None.

        A damaged one is set aside (only named, where nothing may be written); a copy of it in another folder answers,
        else the one before it. One that a newer version wrote is passed over where an older one can be read.

        Args:
            lineage: its name.
            since: digest of a table; only those that are it or grew from it are looked for, at last among those that
                were named as parents.

        Raises:
            TableVersionError: a newer version of this package wrote all of them.
            OSError, MemoryError: it is there and cannot be opened, in no folder.
        """
        damaged = -1
        failed: tuple[int, Exception] | None = None
        newer: TableVersionError | None = None
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
                tell("not_a_table", error=error)
                continue
            except CorruptTableError as error:
                damaged = max(damaged, found.generation)
                self._set_aside(found.path, inode, error)
                continue
            except TableVersionError as error:
                self.pass_over(found.path, error)
                newer = error
                continue
            except (OSError, MemoryError) as error:
                self.pass_over(found.path, error)
                failed = failed or (found.generation, error)
                continue
            if since and table.digest != since and not table.header.grew_from(since):
                logger.debug("'%s' did not grow from the table %s: it is passed over", found.path, since[:12])
                continue
            if damaged == found.generation:
                tell("healed", source=found.path)
            return table
        if failed is not None:
            raise failed[1]
        if newer is not None:
            raise newer
        return self.kept(since) if since else None

    def kept(self, digest: str) -> SemanticIdTable | None:
        """Return the table with this digest that was named as a parent once and taken into the cache, or None."""
        for root in self.folders:
            with suppress(OSError, TableError):
                table = self.open(root.folder(PARENTS) / f"{digest}.safetensors")
                if table.digest == digest:
                    return table
        return None

    def unreadable(self, table: SemanticIdTable) -> TableVersionError | None:
        """Return why a later table of a table's lineage cannot be read: a newer version of this package wrote it."""
        for found in self.generations(table.lineage):
            if found.generation > table.generation:
                try:
                    self.open(found.path)
                except TableVersionError as error:
                    return error
                except (OSError, TableError):
                    continue
        return None

    def adopted(self, table: SemanticIdTable) -> SemanticIdTable:
        """
        Return a table of elsewhere as it lies in the cache, under its digest: there nobody copies another over it.

        Where no folder takes it, it is kept in this process's memory, unless its file cannot be written either.

        Raises:
            ParentError: its content is not what its digest says.
        """
        path = table.path
        if path is None or any(root.versioned in path.absolute().parents for root in self.folders):
            return table
        name = f"{table.digest}.safetensors"
        if (kept := self.kept(table.digest)) is not None:
            return kept
        content = bytes(table.buffer)
        copy = SemanticIdTable.from_buffer(content, status=table.status, reason=f"read from {path}")
        if copy.computed_digest != copy.digest:
            raise ParentError(
                f"'{path}' states the digest {copy.digest[:12]} and holds {copy.computed_digest[:12]}: its IDs are not "
                "those that it says. It was left untouched; take it from where it was made."
            )
        for root in self.folders:
            if root.takes_writes():
                try:
                    files.publish_first(root.folder(PARENTS, create=True), name, [content])
                    kept = self.open(root.folder(PARENTS) / name)
                except (OSError, TableError) as error:
                    logger.debug("'%s' was not taken into %s: %s", path, root.path, error)
                    continue
                if kept.digest == copy.digest:
                    return kept
        return copy if os.access(path, os.W_OK) else table

    # --- pins ---

    def pin(self, data_dir: Path, wanted: str) -> Path | None:
        """Note what alone may answer for a data directory ("" for anything), and return where; None if nowhere."""
        return served.pin(self.folders, data_dir, wanted)

    def pinned(self, data_dir: Path) -> str:
        """Return what alone may answer for a data directory, "" where nothing was pinned."""
        return served.pinned(self.folders, data_dir)

    # --- where lineages begin ---

    def begin(self, key: str, data: TableData) -> SemanticIdTable:
        """
        Begin a lineage in the first folder that takes it; see `begin`.

        Raises:
            StoreError, OSError: none did.
        """
        refusals: list[tuple[Path, OSError]] = []
        for root in self.folders:
            if root.takes_writes():
                for path, refusal in refusals[-1:]:
                    tell("next_folder", path=path, error=refusal)
                try:
                    return self.begin_in(root, key, data)
                except OSError as error:  # full, most likely: a probe of one byte still fits
                    refusals.append((root.path, error))
        raise refusals[0][1] if refusals else StoreError("no cache folder takes a write")

    def begin_in(self, root: CacheFolder, key: str, data: TableData) -> SemanticIdTable:
        """
        Begin a lineage with its first table, unless one began at this place before; return the one that did.

        A lineage is named after what its first table holds, and those who make it at once may make others. So they
        meet under a name that all of them know beforehand: whoever is first there has begun the lineage. Then the
        table gets its place in the lineage, and a note takes the place where they met.

        Args:
            root: the folder to write.
            key: of the place.
            data: the table, under the name that the lineage is to have.

        Raises:
            StoreError, OSError: it could not be written.
        """
        folder = root.folder(ORIGINS, create=True)
        for _ in range(MOST_TRIES):
            try:
                files.publish_first(folder, key, data.buffers())
            except OSError as error:
                place = root.versioned / data.header.lineage / f"{data.header.generation}.safetensors"
                raise type(error)(error.errno, error.strerror, str(place)) if error.errno else error from error
            table, inode = self._born_in(root, key)
            if table is not None:
                return table
            if inode is not None:  # a note about a lineage that nobody has any more
                files.set_aside(folder / key, inode)
        raise StoreError(f"What was published in '{folder}' cannot be read.")

    def born(self, key: str) -> SemanticIdTable | None:
        """Return the first table of the lineage that began at a place, or the newest that grew from it, or None."""
        for root in self.folders:
            try:
                table, _ = self._born_in(root, key)
            except TableVersionError:  # it is this data set's, and not to be begun again
                raise
            except (OSError, TableError) as error:
                logger.debug("what began at %s in %s cannot be read: %s", key, root.path, error)
                continue
            if table is not None:
                return table
        return None

    def _born_in(self, root: CacheFolder, key: str) -> tuple[SemanticIdTable | None, int | None]:
        """Return the table that began at a place, and the inode of what lies there."""
        try:
            path = root.folder(ORIGINS) / key
            status = path.lstat()
        except FileNotFoundError:
            return None, None
        noted = read_note(path, FIT, limit=MOST_NOTED) if status.st_size <= MOST_NOTED else None
        if noted is not None:
            table = self.named(noted["lineage"], noted["generation"])
            if table is None or table.digest != noted["digest"]:
                table = self.newest(noted["lineage"], since=noted["digest"])
            return table, status.st_ino
        try:
            table = self.open(path)
        except FileNotFoundError:
            return None, None
        except CorruptTableError as error:
            self._set_aside(path, status.st_ino, error)
            return None, None
        if not table.lineage:
            raise StoreError(f"'{path}' names no lineage. It was left untouched; remove it.")
        return self._placed(root, path, table), status.st_ino

    def _placed(self, root: CacheFolder, path: Path, table: SemanticIdTable) -> SemanticIdTable:
        """Give a first table its place in its lineage, where its writer died before it did, and return it there."""
        name = f"{table.generation}.safetensors"
        if self.may_write:
            try:
                folder = root.folder(table.lineage, create=True)
                files.link_first(path, folder, name, [table.buffer])
                placed = self.open(folder / name)
                if placed.digest == table.digest:
                    noted = {"lineage": table.lineage, "generation": table.generation, "digest": table.digest}
                    files.replace_file(path, [json.dumps(noted).encode()])
                    return placed
            except (OSError, TableError) as error:
                logger.debug("'%s' got no place in its lineage: %s", path, error)
        return table

    def _set_aside(self, path: Path, inode: int, error: Exception) -> None:
        """Free the name of a damaged table file; where nothing may be written, only say that it is damaged."""
        self.damaged[path] = error
        if not self.may_write:
            tell("left_damaged", path=path, error=error)
            return
        try:
            aside = files.set_aside(path, inode)
        except OSError as refusal:
            tell("not_set_aside", path=path, error=error, refusal=refusal)
            return
        if aside is not None:
            tell("set_aside", path=path, error=error, aside=aside)

    def publish(
        self, lineage: str, generation: int, buffers: Iterable[files.Buffer], *, root: CacheFolder | None = None
    ) -> bool:
        """
        Publish table `generation` of a lineage unless there is one; the caller serves what lies there.

        A folder that does not take it, being full, is passed over for the next one.

        Args:
            lineage, generation, buffers: the table.
            root: the folder to write, and no other; by default the first that takes it.

        Returns:
            True if this call wrote it.

        Raises:
            StoreError: no folder takes a write, or a link or a file is in the way.
            OSError: it could not be written.
        """
        if root is not None:
            return publish_table(root, lineage, generation, buffers)
        whole = list(buffers)
        refusals: list[tuple[Path, OSError]] = []
        for one in self.folders:
            if not one.takes_writes():
                continue
            for path, refusal in refusals[-1:]:
                tell("next_folder", path=path, error=refusal)
            try:
                return publish_table(one, lineage, generation, whole)
            except OSError as error:  # full, most likely: a probe of one byte still fits
                refusals.append((one.path, error))
        if not refusals:
            raise StoreError("no cache folder takes a write")
        raise refusals[0][1]

    # --- notes ---

    def recall(self, cache_key: CacheKey, *, renew: bool | None = None) -> CacheEntry | None:
        """Return the answer that was noted for a question, if the files are still the same; see `CacheEntry.recall`."""
        return CacheEntry.recall(self.folders, cache_key, renew=self.may_write if renew is None else renew)

    def remember(self, entry: CacheEntry, cache_key: CacheKey, digests: Mapping[Path, str]) -> None:
        """Note an answer in the first folder that takes it; `digests` are SHA-256 of files already read."""
        entry.note(self.folders, cache_key, digests)
        for root in self.folders:  # what was noted elsewhere before must not bind this user to another answer
            said = CacheEntry.recall([root], cache_key, renew=False)
            if (
                said is not None
                and (said.lineage, said.digest) != (entry.lineage, entry.digest)
                and served.can_write(root)
            ):
                entry.note([root], cache_key, digests)

    def note_export(self, sha256: str, entry: CacheEntry) -> None:
        """Note which table a `semantic_id_dict.json` of this content comes from, before it is written anywhere."""
        entries.note_export(self.folders, sha256, entry)

    def exported_as(self, sha256: str) -> CacheEntry | None:
        """Return the table that a `semantic_id_dict.json` of this content was written from, if that was noted."""
        return entries.exported_as(self.folders, sha256)

    def exported_by(self, sha256: str) -> CacheEntry | None:
        """Return the table that a JSON of this content was written from; without a note of it, tables are asked."""
        if (noted := self.exported_as(sha256)) is not None:
            return noted
        found = (index.exported_by(root, sha256, may_write=self.may_write) for root in self.folders)
        return next((entry for entry in found if entry is not None), None)

    def recall_all(self, cache_key: CacheKey) -> list[tuple[CacheFolder, CacheEntry]]:
        """
        Return the answers that were noted for a question in all folders, first what this user was served.

        Whoever can write a folder notes there what he was served; what others noted where he cannot write is what they
        were served.
        """
        found = ((root, CacheEntry.recall([root], cache_key, renew=self.may_write)) for root in self.own_first())
        return [(root, entry) for root, entry in found if entry is not None]

    def own_first(self) -> list[CacheFolder]:
        """Return the folders in the order in which their notes bind this user."""
        return served.own_first(self.folders)

    def note_served(self, data_dir: Path, kind: str, table: SemanticIdTable, left: Sequence[Left] = ()) -> None:
        """Note which table serves a data directory: what it is asked for next must have grown from it."""
        entry = CacheEntry(table.lineage, table.generation, table.digest)
        served.note_served(self.folders, data_dir, kind, entry, left)

    def served_before(self, data_dir: Path, kind: str = "") -> Served | None:
        """Return what this user was last served for a data directory."""
        return served.served_before(self.folders, data_dir, kind)

    def served_others(self, data_dir: Path, kind: str) -> Iterator[Served]:
        """Yield what others were served for a data directory."""
        return served.served_others(self.folders, data_dir, kind)

    def served_elsewhere(self, data_dir: Path, kind: str) -> Iterator[Served]:
        """Yield what this user was served for other data directories that were asked for this kind of ID."""
        return served.noted_elsewhere(self.folders, data_dir, kind)

    # --- others ---

    def lease(
        self, name: str, *, waiting: tuple[float, float], ready: Callable[[], bool]
    ) -> "AbstractContextManager[Lease | None]":
        """Wait until this process may generate, or need not; `waiting` is timeout and deadline. See `take_lease`."""
        timeout, deadline = waiting
        return take_lease(self.writable(), name, timeout=timeout, deadline=deadline, ready=ready)
