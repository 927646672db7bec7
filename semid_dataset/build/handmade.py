"""
A `semantic_id_dict.json` made by hand: the source of IDs, compiled into the cache as a .pyc is from a .py.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from semid_dataset import _files as files
from semid_dataset._messages import degrade, logger, tell
from semid_dataset.cache.cache import Cache
from semid_dataset.cache.entries import CacheEntry
from semid_dataset.cache.fingerprint import CacheKey, FileStamp
from semid_dataset.cache.guard import Guard, moved_items
from semid_dataset.errors import ParentError, SemanticIdFileError, SemidError
from semid_dataset.format.id_json import JSON_FILE, parse_id_json
from semid_dataset.table.build import TableData
from semid_dataset.table.header import TableHeader
from semid_dataset.table.sizes import fitting_sizes, say_guessed
from semid_dataset.table.table import SemanticIdTable

__all__ = ["HandMade", "reconciled"]


class HandMade:
    """
    The file of one data directory.

    Args:
        cache: where its compiled form lies.
        guard: what was served before.
        data_dir: the directory; None where there is none, and then no file either.
        sizes: of the levels, taken where the IDs fit them.
        in_worker: this is a DataLoader worker: nothing is written.
    """

    def __init__(
        self, cache: Cache, guard: Guard, data_dir: Path | None, sizes: Sequence[int], *, in_worker: bool
    ) -> None:
        self._cache = cache
        self._guard = guard
        self._data_dir = data_dir
        self._sizes = tuple(sizes)
        self._in_worker = in_worker

    def table(self, parent: SemanticIdTable | None = None) -> SemanticIdTable | None:
        """
        Compile `semantic_id_dict.json` into the cache and return it; None where a table of ours exported it.

        Args:
            parent: the table that was named as parent: it may have exported the file.

        Raises:
            SemanticIdFileError: it holds no IDs.
        """
        if self._data_dir is None:
            return None
        path = self._data_dir / JSON_FILE
        try:
            return self._table_at(path, FileStamp.of(path, self._data_dir), parent)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:  # another user's, most likely our own export under their umask; or the disk says no
            if isinstance(error, SemidError):
                raise
            self._cache.pass_over(path, error)
            degrade("export_unreadable", path=path, error=error)
            return None

    def _table_at(self, path: Path, stamp: FileStamp, parent: SemanticIdTable | None) -> SemanticIdTable | None:
        cache_key = CacheKey("json", None, (stamp,))
        entry = self._cache.recall(cache_key)
        if entry is not None and entry.lineage.startswith("json-"):
            table = self._compiled(entry)
            if table is not None and table.digest == entry.digest:
                tell("loaded", items=len(table))
                return self._sized(table).with_status("pregenerated", f"{path} (compiled)")
        elif entry is not None:
            return None  # our own export
        if parent is not None and parent.header.exported(stamp.digest()):
            return None  # the parent's, also where no cache remembers it
        buffer, _ = files.map_file(path, mmap=self._cache.mmap, follow=True)
        sha256 = stamp.digest()
        if (ours := self._cache.exported_by(sha256)) is not None:
            if self._cache.may_write:
                self._cache.remember(ours, cache_key, {path: sha256})
            return None
        return self._compile(path, buffer, sha256, cache_key)

    def _compiled(self, entry: CacheEntry) -> SemanticIdTable | None:
        """Return the compiled form of a hand-made file; None where it cannot be read, and is made again."""
        try:
            return self._cache.newest(entry.lineage)
        except (SemidError, OSError, MemoryError) as error:
            self._cache.pass_over(Path(entry.lineage), error)
            return None

    def _compile(self, path: Path, buffer: memoryview, sha256: str, cache_key: CacheKey) -> SemanticIdTable:
        items, codes = parse_id_json(bytes(buffer), str(path))
        if not len(items):
            raise SemanticIdFileError(
                f"'{path}' holds no semantic ID. It was left untouched; remove it to have IDs generated."
            )
        name = f"json-{sha256[:24]}"
        made = {"born": time.time(), "source": path.name}
        data = TableData(items, codes, TableHeader(lineage=name, provenance=made))
        reason = f"{path}"
        table: SemanticIdTable | None = None
        if not self._in_worker:
            try:
                self._cache.publish(name, 0, data.buffers())
                table = self._cache.newest(name)
            except (OSError, SemidError) as error:
                logger.debug("%s was not compiled: %s", path, error)
            else:
                if table is not None:
                    self._cache.remember(CacheEntry(name, table.generation, table.digest), cache_key, {path: sha256})
        if table is None:
            table = data.in_memory("pregenerated", reason)
        self._guard.hold(table, note=False)
        tell("loaded", items=len(table))
        return self._sized(table).with_status("pregenerated", reason)

    def _sized(self, table: SemanticIdTable) -> SemanticIdTable:
        """Return a hand-made table with the sizes of its levels: those of the configuration, where its IDs fit them."""
        if table.sizes_stated:
            return table
        sizes = fitting_sizes(self._sizes, table.codes_array)
        if sizes is not None:
            return table.with_sizes(sizes)
        say_guessed(table.codes_array, f"'{table.header.provenance.get('source', JSON_FILE)}'")
        return table


def reconciled(parent: SemanticIdTable, made: SemanticIdTable, path: Path) -> SemanticIdTable:
    """
    Hold a `semantic_id_dict.json` against the parent, and return the parent with what the file has beyond it.

    Where the cache is gone nothing says whose export it is. One that holds all IDs of the parent is of a later table;
    one whose IDs the parent all holds is of an earlier one.

    Raises:
        ParentError: they contradict each other.
    """
    moved, both = moved_items(parent, made)
    if moved or both < min(len(parent), len(made)):
        raise ParentError(
            f"'{path}' gives {moved} of {both} common items another ID than the parent "
            f"{parent.path or 'in memory'}, or is about other items. Nothing was changed. Remove the one that is not "
            "meant."
        )
    if len(made) > len(parent) and parent.header.identity is not None:
        from semid_dataset.build.recover import rejoined

        export = CacheEntry(parent.lineage, parent.generation, "")
        found = rejoined(made, parent, export, parent.generation + 1)
        if found is not None:
            return found[0].in_memory("cached", "the parent, and what was exported since")
    return parent
