"""
What was encoded part by part, brought together: items in order, each once, and what uniqueness asks about them.

Codes and ids are held; errors and hashes are read of the items that are asked for. Vectors are needed of displaced
items alone: the parts are read again for these, and what a part has of them lies together in a file of its own.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset import _files as files
from semid_dataset.build.itemset import EncodedItems, Totals
from semid_dataset.build.streaming.workfolder import basis_of, need_file, read_into
from semid_dataset.errors import WorkGoneError
from semid_dataset.format.tensors import Container
from semid_dataset.inputs.keys import Keys, as_keys, first_of_each, items_of, joined, taken
from semid_dataset.inputs.read import Embeddings

__all__ = ["MergedItems", "SomeItems"]

DISPLACED_SHARE = 32  # what part of the limit vectors that are read again may take in memory
LEAST_DISPLACED = 4096  # of them at once, whatever the limit
ROWS = 1 << 20  # that are looked at together
MOST_OPEN = 256  # files; a process may open 1,024, often


class MergedItems(EncodedItems):
    """
    The items of a run, merged from all its parts.

    Args:
        folder: the work folder.
        names: the files of the parts, in order.
        basis, content: what they were encoded with.
        gather: has the vectors of items (of every part its own) written down as `gather-<part>`.
        limit: bytes of memory.
        advance: called whenever some work is done.

    Attributes:
        first_bad: where the first bad row was.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        basis: str,
        content: str,
        gather: Callable[[Iterable[Keys]], None],
        limit: int,
        advance: Callable[[], None],
    ) -> None:
        self._folder, self._names, self._content = folder, names, content
        self._gather, self._advance = gather, advance
        found = basis_of(folder, basis, content)
        self._dim = found.quantizer.dim
        self._held_rows = max(LEAST_DISPLACED, limit // DISPLACED_SHARE // (4 * self._dim))
        self.totals: Totals = Totals(found.quantizer, found.radius, found.centre)
        self.bad: int = 0
        self.first_bad: str = ""
        counts, columns, named = [0], list[Keys](), list[Any]()
        for name in names:
            part = self._part(name)
            columns.append(taken(part.arrays))
            counts.append(len(columns[-1]))
            self.bad, self.first_bad = self.bad + part.info["bad"], self.first_bad or part.info["first_bad"]
            self.totals.merge(part.arrays)
            named += part.info["named"]
            advance()
        self.named: list[Any] = sorted(named)[:3]
        self.begins: NDArray[np.int64] = np.cumsum(counts)
        rows = int(self.begins[-1])
        ids = joined(columns)
        del columns
        self.places: NDArray[np.integer[Any]] | None = None  # where rows stand; None: as in the parts
        if not bool((ids[1:] > ids[:-1]).all()):
            ids, places = first_of_each(ids)
            self.places = places.astype(np.uint32 if rows < 1 << 32 else np.int64)
            del places
        self.keys = ids
        again = rows - len(ids)
        self.bad += again
        self.first_bad = self.first_bad or (f"{again} items come again" if again else "")
        first = self._part(names[0]).arrays["codes"]
        codes = np.empty((rows, first.shape[1]), first.dtype)
        for number, name in enumerate(names):
            codes[self.begins[number] : self.begins[number + 1]] = self._part(name).arrays["codes"]
            advance()
        self.codes: NDArray[Any] = codes if self.places is None else codes[self.places]
        # Displaced items, in the order in which they are served: their parts, the vectors of some, how many come before
        # these, which of these is next, and how many were read of every part.
        self._owner: NDArray[Any] = np.empty(0, np.uint16)
        self._held: NDArray[np.float32] = np.empty((0, self._dim), np.float32)
        self._first, self._next = 0, 0
        self._taken: NDArray[np.int64] = np.zeros(len(names), np.int64)
        self._opened: dict[int, IO[bytes]] = {}

    @property
    def items(self) -> Any:
        """The ids, ascending."""
        return items_of(self.keys)

    def positions(self, sample: Embeddings) -> NDArray[np.int64]:
        """Return where the items of the sample stand."""
        return np.searchsorted(self.keys, as_keys(sample.items))

    def _part(self, name: str) -> Container:
        found = need_file(self._folder, name)
        if found.info.get("basis") != self._content:
            raise WorkGoneError(f"'{self._folder / name}.part' is of other codebooks: some began anew. Run again.")
        return found

    def _places_of(self, rows: NDArray[np.integer[Any]]) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Return where rows stand in all parts side by side, and in which part."""
        places = (rows if self.places is None else self.places[rows]).astype(np.int64)
        owner = np.searchsorted(self.begins, places, side="right") - 1
        return places, owner.astype(np.uint16 if len(self._names) <= 1 << 16 else np.uint32)  # 16 bits sort fast

    def _pick(self, name: str, rows: NDArray[np.int64], out: NDArray[Any]) -> NDArray[Any]:
        """Return a column's values of some rows, part by part."""
        places, owner = self._places_of(rows)
        order = np.argsort(owner, kind="stable")
        for number, begin, end in _runs(owner[order]):
            here = order[begin:end]
            column = self._part(self._names[number]).arrays[name]
            out[here] = column[places[here] - self.begins[number]]
        self._advance()
        return out

    def errors(self, rows: NDArray[np.int64], codes: NDArray[Any]) -> NDArray[np.float32]:
        """Return the errors that were noted when the items were encoded."""
        return self._pick("errors", rows, np.empty(len(rows), np.float32))

    def hashes(self, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return the hashes that were noted when the items were encoded."""
        return self._pick("hashes", rows, np.empty(len(rows), np.uint64))

    def prepare(self, rows: NDArray[np.integer[Any]]) -> None:
        """Read the parts again for the vectors of these rows, and write them down in their order."""
        self._owner = np.empty(len(rows), np.uint16 if len(self._names) <= 1 << 16 else np.uint32)
        for begin in range(0, len(rows), ROWS):
            self._owner[begin : begin + ROWS] = self._places_of(rows[begin : begin + ROWS])[1]
        self._gather(self._wanted(rows))
        self.rewind()

    def _wanted(self, rows: NDArray[np.integer[Any]]) -> Iterator[Keys]:
        """Yield the ids of every part among rows, in the order of the rows."""
        order = np.argsort(self._owner, kind="stable").astype(np.uint32 if len(rows) < 1 << 32 else np.int64)
        bounds = np.cumsum([0, *np.bincount(self._owner, minlength=len(self._names)).tolist()])
        for begin, end in pairwise(bounds.tolist()):
            yield self.keys[rows[order[begin:end]]]

    def vectors(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Return the vectors of the next rows of `prepare`, in the quantizer's space."""
        found = np.empty((len(rows), self._dim), np.float32)
        done = 0
        while done < len(rows):
            if self._next == len(self._held):
                self._load()
            some = self._held[self._next : self._next + len(rows) - done]
            found[done : done + len(some)] = some
            done, self._next = done + len(some), self._next + len(some)
        return found

    def _load(self) -> None:
        """
        Read the next vectors, of all parts.

        What a part has of them lies together in its file. It is read, not mapped: mapped pages would stay in this
        process.
        """
        first = self._first + len(self._held)
        owner = self._owner[first : first + self._held_rows]
        if not len(owner):
            raise IndexError("more vectors were asked for than prepared")
        if len(self._held) != len(owner):
            self._held = np.empty((0, self._dim), np.float32)
            self._held = np.empty((len(owner), self._dim), np.float32)
        order = np.argsort(owner, kind="stable")
        for part, begin, end in _runs(owner[order]):
            descriptor, offset = self._open(part)
            block = np.empty((end - begin, self._dim), np.float32)
            read_into(descriptor, block, offset + 4 * self._dim * int(self._taken[part]))
            self._held[order[begin:end]] = block
            self._taken[part] += end - begin
        self._first, self._next = first, 0
        self._advance()

    def rewind(self) -> None:
        """Begin again with the rows of `prepare`."""
        self._first = self._next = 0
        self._held = np.empty((0, self._dim), np.float32)
        self._taken = np.zeros(len(self._names), np.int64)

    def _open(self, part: int) -> tuple[int, int]:
        opened = self._opened.get(part)
        if opened is None:
            if len(self._opened) >= MOST_OPEN:
                self._opened.pop(next(iter(self._opened))).close()
            opened = self._opened[part] = os.fdopen(
                files.open_regular(self._folder / f"gather-{part}.part"), "rb", buffering=0
            )
        length = int.from_bytes(os.pread(opened.fileno(), 8, 0), "little")
        return opened.fileno(), 8 + length  # vectors are the widest array, and so the first

    def close(self) -> None:
        """Let go of files and vectors."""
        for opened in self._opened.values():
            opened.close()
        self._opened.clear()
        self._owner = self._owner[:0]
        self.rewind()


def _runs(ordered: NDArray[Any]) -> list[tuple[int, int, int]]:
    """Return the distinct values of an ascending array, and where each begins and ends."""
    begins = np.flatnonzero(np.concatenate([np.ones(min(1, len(ordered)), bool), ordered[1:] != ordered[:-1]]))
    ends = np.append(begins[1:], len(ordered))
    return list(zip(ordered[begins].tolist(), begins.tolist(), ends.tolist(), strict=True))


class SomeItems(EncodedItems):
    """
    Some of the items of a run, as if they were all: others have published the rest meanwhile.

    Args:
        merged: all of them.
        chosen: positions of some.
    """

    def __init__(self, merged: MergedItems, chosen: NDArray[np.int64]) -> None:
        self._merged, self._chosen = merged, chosen
        self.codes: NDArray[Any] = merged.codes[chosen]
        self.totals: Totals = merged.totals
        self.bad: int = merged.bad
        self.named: list[Any] = merged.named

    @property
    def items(self) -> Any:
        """The ids, ascending."""
        return items_of(self._merged.keys[self._chosen])

    def positions(self, sample: Embeddings) -> NDArray[np.int64]:
        """Return where the items of the sample stand."""
        return np.searchsorted(self._merged.keys[self._chosen], as_keys(sample.items))

    def errors(self, rows: NDArray[np.int64], codes: NDArray[Any]) -> NDArray[np.float32]:
        """Return the errors that were noted when the items were encoded."""
        return self._merged.errors(self._chosen[rows], codes)

    def hashes(self, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return the hashes that were noted when the items were encoded."""
        return self._merged.hashes(self._chosen[rows])

    def prepare(self, rows: NDArray[np.integer[Any]]) -> None:
        """Read the parts again for the vectors of these rows."""
        self._merged.prepare(self._chosen[rows])

    def vectors(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Return the vectors of the next rows of `prepare`."""
        return self._merged.vectors(rows)

    def rewind(self) -> None:
        """Begin again with the rows of `prepare`."""
        self._merged.rewind()

    def close(self) -> None:
        """Let go of files and vectors."""
        self._merged.close()
