"""
No ID moves in silence: every answer for a data directory is held against what its user was served before.

A note names the table that served the directory. What continues that table holds its IDs. Any other answer is said at
ERROR, with the number of items whose ID differs, or with the name of the table where it cannot be read any more. The
note keeps that too, for users who can write none and learn from those who can.
"""

import os
from collections.abc import Callable
from pathlib import Path

from semid_dataset._messages import tell
from semid_dataset.cache.cache import Cache
from semid_dataset.cache.entries import CacheEntry
from semid_dataset.cache.folders import CacheFolder
from semid_dataset.cache.served import Left, Served, can_write
from semid_dataset.errors import SemidError, TableVersionError
from semid_dataset.table.build import TableData
from semid_dataset.table.table import SemanticIdTable

__all__ = ["Guard", "descends", "first_time", "moved_items"]

_said: set[tuple[str, str]] = set()  # pairs of sets of IDs of which it was said that they differ: once a process


def descends(table: SemanticIdTable, digest: str) -> bool:
    """Whether a table is the one with this digest, or holds its IDs because it grew from it or took them in."""
    return table.digest == digest or table.header.grew_from(digest)


def moved_items(one: SemanticIdTable, other: SemanticIdTable) -> tuple[int, int]:
    """Return how many items of both tables have another ID in the second, and how many are in both."""
    rows = other.rows_of(one.keys_array)
    both = rows >= 0
    if one.levels != other.levels:
        return int(both.sum()), int(both.sum())
    return int((other.codes_array[rows[both]] != one.codes_array[both]).any(1).sum()), int(both.sum())


def first_time(one: str, other: str) -> bool:
    """Whether this process has not yet said that two sets of IDs differ; they go by digests, or names."""
    if (one, other) in _said:
        return False
    _said.add((one, other))
    return True


class Guard:
    """
    What a user was served for a data directory.

    Args:
        cache: where tables and notes lie.
        data_dir: the directory; None where there is none: then nothing binds, and nothing is noted.
        kind: of ID, as a name.
    """

    def __init__(self, cache: Cache, data_dir: Path | None, kind: str) -> None:
        self._cache = cache
        self._data_dir = data_dir
        self._kind = kind

    @property
    def bound(self) -> Served | None:
        """What this user was last served for the directory; what others were, where he has no note of his own."""
        return None if self._data_dir is None else self._cache.served_before(self._data_dir, self._kind)

    def contradicts(self, root: CacheFolder, table: SemanticIdTable) -> bool:
        """
        Say whether a table, which a note in a folder names for these files, is not what serves this directory.

        That note is about files, wherever they lie: a copy of the directory may have been answered otherwise.
        """
        bound = self.bound
        if bound is None or self._continues(table, bound.entry):
            return False
        before = self.table_of(bound.entry)
        if before is not None and before.header.grew_from(table.digest):
            return False
        if not bound.own and can_write(root) and not self._serves_elsewhere(table):
            return False  # the directory was moved, or mounted elsewhere
        if before is not None:
            self.say_apart(before, CacheEntry(table.lineage, table.generation, table.digest))
        return True

    def _serves_elsewhere(self, table: SemanticIdTable) -> bool:
        """Say whether this user was served a table for another directory, which is still there."""
        assert self._data_dir is not None
        elsewhere = self._cache.served_elsewhere(self._data_dir, self._kind)
        return any(one.entry.lineage == table.lineage and os.path.isdir(one.data_dir) for one in elsewhere)  # noqa: PTH112

    def hold(self, table: SemanticIdTable, *, note: bool, retrained: bool = False) -> None:
        """
        Say how many IDs an answer gives that differ from what this user was served before, and note what serves now.

        Args:
            table: that answers.
            note: whether it may be noted.
            retrained: somebody asked for other IDs, and was told how many moved.
        """
        if self._data_dir is None:
            return
        bound = self.bound
        left: tuple[Left, ...] = ()
        if bound is not None and not retrained:
            left = bound.left
            if not bound.own or bound.entry.digest != table.digest:
                self._say_what_others_left(table)
            if not self._continues(table, bound.entry) and (now := self._left(bound, table)) is not None:
                left = (*left, now)
        if note and table.path is not None:
            self._cache.note_served(self._data_dir, self._kind, table, left)

    def hold_elsewhere(self, data: TableData, same_items: Callable[[SemanticIdTable], bool]) -> None:
        """
        Say of a new lineage how many IDs differ from those that this user was served for its items elsewhere.

        What was served behind a closed gate, where nothing is noted, is known from there if it is known at all.

        Args:
            data: the first table of the lineage.
            same_items: tells whether a table's items are these, whatever their vectors.
        """
        if self._data_dir is None:
            return
        entries = {one.entry.lineage: one.entry for one in self._cache.served_elsewhere(self._data_dir, self._kind)}
        for entry in entries.values():
            before = self.table_of(entry)
            if before is None:
                if self._cache.last_generation(entry.lineage) >= 0 and first_time(entry.digest, entry.lineage):
                    tell("lost_elsewhere", lineage=entry.lineage)
                continue
            with self._cache.tolerant(entry.lineage):
                if before.has_quantizer and same_items(before):
                    moved, items = moved_items(before, data.in_memory("trained"))
                    if moved and first_time(before.digest, data.digest):
                        tell("akin", moved=moved, items=items, lineage=before.lineage, where=before.path)

    def _continues(self, table: SemanticIdTable, entry: CacheEntry) -> bool:
        """Say whether a table holds all IDs of the one that a note names."""
        if not entry.digest:  # a note of the first layout
            return table.lineage == entry.lineage
        if table.path is None and (table.lineage, table.generation) == (entry.lineage, entry.generation):
            return True  # out of its export
        return descends(table, entry.digest)

    def _left(self, bound: Served, table: SemanticIdTable) -> Left | None:
        """Say that a table does not continue the one that a note names, and return what to keep of that."""
        entry = bound.entry
        try:
            before = self._cache.noted(entry)
        except (SemidError, OSError) as error:
            if isinstance(error, TableVersionError) and entry.lineage == table.lineage:
                return None  # a lineage keeps its IDs, whichever version of this package wrote its tables
            before = None
        if before is None or not self._continues(before, entry):
            self.say_lost(entry, table)
            return Left(entry.lineage, -1, 0)
        if not bound.own:  # others were served that one, and this user is
            self.say_apart(table, entry)
            return None
        moved, items = moved_items(before, table)
        if not moved or descends(before, table.digest):
            return None
        if first_time(before.digest, table.digest):
            tell("moved", moved=moved, items=items, lineage=before.lineage, new=table.lineage)
        return Left(before.lineage, moved, items)

    def say_lost(self, entry: CacheEntry, table: SemanticIdTable) -> None:
        """Say that the table which a note names cannot be read any more, and that another one answers."""
        if entry.lineage != table.lineage:
            if first_time(entry.lineage, table.lineage):
                tell("lost", lineage=entry.lineage, new=table.lineage)
        elif first_time(f"{entry.lineage}@{entry.generation}", table.lineage):
            steps = (step for step in table.header.history if step.get("generation", -1) < entry.generation)
            known = max((int(step.get("items", 0)) for step in steps), default=0)
            tell("lost_in_part", lineage=entry.lineage, generation=entry.generation, known=known)

    def _say_what_others_left(self, table: SemanticIdTable) -> None:
        assert self._data_dir is not None
        for other in self._cache.served_others(self._data_dir, self._kind):
            for left in other.left if other.entry.lineage == table.lineage else ():
                if first_time(left.lineage, table.lineage):
                    one, new = left.lineage, table.lineage
                    if left.moved < 0:
                        tell("lost", lineage=one, new=new)
                    else:
                        tell("moved", moved=left.moved, items=left.items, lineage=one, new=new)

    def say_apart(self, table: SemanticIdTable, other: CacheEntry) -> None:
        """Say that there is another table for the same data, unless the one grew from the other."""
        if descends(table, other.digest) or (table.digest, other.digest) in _said:
            return
        found = self._cache.named(other.lineage, other.generation)
        if found is None or found.header.grew_from(table.digest):
            return
        moved, items = moved_items(table, found)
        if moved and first_time(table.digest, other.digest):
            tell("apart", moved=moved, items=items, lineage=table.lineage, other=found.lineage, where=found.path)

    def table_of(self, entry: CacheEntry) -> SemanticIdTable | None:
        """Return the table that a note names, or the newest that continues it; None where neither can be read."""
        try:
            table = self._cache.noted(entry)
        except (SemidError, OSError):
            return None
        return table if table is not None and self._continues(table, entry) else None
