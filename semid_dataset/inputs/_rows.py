"""
A place for the rows of a feature as readers find them: checked, counted, and never there twice.

What is wrong with a file is an error that names it; what is wrong with a row is counted (`Rows`, of data directories,
of which millions of rows come from a pipeline and a few may be bad) or an error too (`OwnRows`, of a file that a person
named at a prompt).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset.errors import EmbeddingError
from semid_dataset.inputs._items import INT64, Ids, canonical_int, whole_number
from semid_dataset.objects import Items

__all__ = ["BAD_NUMBER", "OwnRows", "Places", "Rows", "usable"]

LARGEST = 1e19  # of a number; the squares of those a little larger are beyond float32
BAD_NUMBER = "NaN or infinite, or beyond 1e19"
SINGLES = 256  # rows that are checked together
BATCH = 8 << 20  # bytes of vectors that are checked together


def usable(matrix: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which rows (n, dim) hold only numbers that can be computed with: finite, and at most `LARGEST` in size."""
    return np.asarray(((matrix <= LARGEST) & (matrix >= -LARGEST)).all(axis=1))


class Places(Sequence[str]):
    """What to call the rows of a batch, made only when asked for."""

    def __init__(self, where: str, numbers: NDArray[np.int64]) -> None:
        self._where = where
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, row: Any) -> Any:
        return f"{self._where} {self._numbers[row]}"


class Rows:
    """
    Rows of one feature, as they come: ids, vectors, and what was wrong.

    Args:
        feature: its id, for messages.
        dim: its width; 0 where the first row tells it, see `begin`.

    Attributes:
        ids: watches ids that are no canonical integers.
        wanted: says of ids whether their rows are; None: all are. Readers may pass the others over unread.

    Memory: what the rows take, and at most an eighth of it while it grows; the matrix is never there twice.
    """

    strict = False  # whether a bad row is an error

    def __init__(self, feature: str, dim: int) -> None:
        self.feature: str = feature
        self.dim: int = dim
        self.ids: Ids = Ids()
        self.wanted: Callable[[NDArray[np.int64]], NDArray[np.bool_]] | None = None
        self.bad: int = 0
        self.first_bad: str = ""
        self._count = 0
        self._keys = np.empty(0, np.int64)
        self._matrix = np.empty((0, dim), np.float32)
        self._singles = 0  # rows at the end whose numbers were not looked at yet
        self._single_where = ""
        self._texts: dict[int, str] = {}  # row -> id, of ids that are no canonical integers

    @property
    def batch(self) -> int:
        """How many rows are best handed over at once."""
        return max(1, min(65_536, BATCH // (4 * max(1, self.dim))))

    def begin(self, dim: int, rows: int = 0) -> None:
        """Take note of the width of the vectors that come, where it was not known, and of how many come, about."""
        if not self.dim:
            if dim < 1:
                raise EmbeddingError("The first vector has no numbers.")
            self.dim = dim
            self._matrix = np.empty((0, dim), np.float32)
        if rows:
            self._reserve(self._count + rows, exactly=True)

    def pass_over(self) -> None:
        """Count a row that is not wanted."""

    def reject(self, what: str, count: int = 1) -> None:
        """Count bad rows; `what` says where the first of them is and what is wrong."""
        if self.bad == 0:
            self.first_bad = what
        self.bad += count

    def add_one(self, key: int | str, vector: NDArray[Any], where: str) -> None:
        """Add the row (dim,) of one item; `where`, and the id, are said if it is not finite."""
        if self._count == len(self._keys):
            self._reserve(self._count + 1)
        row = self._count
        number = canonical_int(key) if isinstance(key, str) else key if key in INT64 else None
        if number is None:
            self._texts[row] = str(key)
            self.ids.see(str(key), where)
        self._keys[row] = number or 0
        if vector.dtype == np.float32:
            self._matrix[row] = vector
        else:
            with np.errstate(over="ignore", invalid="ignore"):
                self._matrix[row] = vector
        self._count += 1
        if self._singles == 0:
            self._single_where = where
        self._singles += 1
        if self._singles == SINGLES:
            self._check_singles()

    def _check_singles(self) -> None:
        """Check the rows of `add_one`, many at once: numpy takes longer to be called than to look at a row."""
        count, self._singles = self._singles, 0
        first = self._count - count
        good = self._usable(self._matrix[first : self._count])
        if bool(good.all()):
            return
        names: list[str | int] = [
            self._texts.pop(row) if row in self._texts else int(self._keys[row]) for row in range(first, self._count)
        ]
        bad = int(np.argmin(good))
        self.reject(f"{self._single_where}, item {names[bad]}: {BAD_NUMBER}", int((~good).sum()))
        self._count = first
        for at in np.flatnonzero(good).tolist():  # rare, so one by one
            row, name = self._count, names[at]
            self._matrix[row] = self._matrix[first + at]
            self._keys[row] = self._keys[first + at]
            if isinstance(name, str):
                self._texts[row] = name
            self._count += 1

    def add(self, keys: NDArray[np.int64], vectors: NDArray[Any], where: str | Sequence[str]) -> None:
        """
        Add rows (k, dim) of k items; rows with numbers that are not `usable` are counted as bad.

        Args:
            where: where each row is, or where all of them are.
        """
        good = self._append(keys, vectors)
        if good is not None:
            first = int(np.argmin(good))
            place = f"{where}, item {keys[first]}" if isinstance(where, str) else where[first]
            self.reject(f"{place}: {BAD_NUMBER}", int((~good).sum()))

    def add_named(self, keys: Sequence[int | str], vectors: NDArray[Any], where: Sequence[str]) -> None:
        """Add rows as `add` does, of ids of any kind."""
        numbers = [canonical_int(key) if isinstance(key, str) else key if key in INT64 else None for key in keys]
        values = np.array([number or 0 for number in numbers], np.int64)
        good = self._append(values, vectors)
        row = self._count - (len(keys) if good is None else int(good.sum()))
        for at, number in enumerate(numbers):
            if good is None or good[at]:
                if number is None:
                    self._texts[row] = str(keys[at])
                    self.ids.see(str(keys[at]), where[at])
                row += 1
        if good is not None:
            self.reject(f"{where[int(np.argmin(good))]}: {BAD_NUMBER}", int((~good).sum()))

    def _append(self, keys: NDArray[np.int64], vectors: NDArray[Any]) -> NDArray[np.bool_] | None:
        """Append the finite rows. Return which they are, or None if all are."""
        if self._singles:
            self._check_singles()
        count = self._count
        self._reserve(count + len(keys))
        block = self._matrix[count : count + len(keys)]
        with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold becomes inf, and is then bad
            block[...] = vectors
        good = self._usable(block)
        if bool(good.all()):
            self._keys[count : count + len(keys)] = keys
            self._count += len(keys)
            return None
        kept = np.flatnonzero(good)
        block[: len(kept)] = block[kept]
        self._keys[count : count + len(kept)] = keys[kept]
        self._count += len(kept)
        return good

    def finish(self) -> tuple[NDArray[np.int64] | list[str], NDArray[np.float32]]:
        """
        Return unique ids, ascending, and their rows; an id that comes again is bad, the first one wins.

        Ids are int64 if every one is a whole number, else strings. The collector is empty afterwards.

        Raises:
            EmbeddingError: some ids are whole numbers in another spelling, and some are none.
        """
        if self._singles:
            self._check_singles()
        keys, matrix, texts = self._keys, self._matrix, self._texts
        count, self._count = self._count, 0
        self._keys, self._matrix, self._texts = np.empty(0, np.int64), np.empty((0, self.dim), np.float32), {}
        if self.ids.numbers():
            for row, text in texts.items():
                keys[row] = whole_number(text) or 0
            texts = {}
        if texts:
            names = [texts[row] if row in texts else str(key) for row, key in enumerate(keys[:count].tolist())]
            chosen: dict[str, int] = {}
            for row, name in enumerate(names):
                if chosen.setdefault(name, row) != row:
                    self.reject(f"item {name!r} comes again")
            ids: NDArray[np.int64] | list[str] = sorted(chosen)
            order = np.fromiter((chosen[name] for name in ids), np.int64, len(ids))
        else:
            used = keys[:count]
            if count == 0 or bool((used[1:] > used[:-1]).all()):  # nothing to sort
                order, ids = None, used.copy()
            else:
                order = np.argsort(used, kind="stable").astype(np.int64, copy=False)
                ids = used[order]
                again = np.flatnonzero(ids[1:] == ids[:-1]) + 1
                if len(again):
                    self.reject(f"item {ids[again[0]]} comes again", len(again))
                    order, ids = np.delete(order, again), np.delete(ids, again)
        del keys
        if order is not None:
            _permute(matrix, order)
        # realloc: shrinking a large block gives its pages back without copying. No other array sees this memory.
        matrix.resize((len(ids), self.dim), refcheck=False)
        return ids, matrix

    def drain(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """
        Return ids (k,) and rows (k, dim) collected so far, in their order, and begin again in the same memory.

        They may be used until the next row comes. Ids must all be integers.
        """
        if self._singles:
            self._check_singles()
        assert not self._texts
        count, self._count = self._count, 0
        return self._keys[:count], self._matrix[:count]

    @property
    def waiting(self) -> int:
        """Rows collected and not drained."""
        return self._count

    def _usable(self, block: NDArray[np.float32]) -> NDArray[np.bool_]:
        return usable(block)

    def _reserve(self, rows: int, *, exactly: bool = False) -> None:
        have = len(self._keys)
        if rows <= have:
            return
        # realloc moves pages, not bytes (mremap), so small steps are cheap and little is ever unused.
        step = 0 if exactly else max(have // 8, (1 << 20) // (4 * self.dim) + 1)
        self._keys.resize(max(rows, have + step), refcheck=False)
        self._matrix.resize((len(self._keys), self.dim), refcheck=False)


class OwnRows(Rows):
    """
    Rows of a file that a person named: anything that does not fit is an error that says where.

    Numbers are looked at by who takes the rows, since whoever has the item of every row in another file knows its name.

    Args:
        feature: what to call them.

    Attributes:
        path: the file that is being read, for messages.
    """

    strict = True

    def __init__(self, feature: str) -> None:
        super().__init__(feature, 0)
        self.path = Path(feature)

    def reject(self, what: str, count: int = 1) -> None:
        """Raise the error of a bad row."""
        place = what.removeprefix(self.path.name)
        raise EmbeddingError(f"'{self.path}'{'' if place != what else ', '}{place}.")

    def in_order(self) -> tuple[Items, NDArray[np.float32]]:
        """
        Return ids and rows in the order in which they came; ids may come twice. The collector is empty afterwards.

        Raises:
            EmbeddingError: some ids are whole numbers in another spelling, and some are none.
        """
        keys, matrix, texts, count = self._keys, self._matrix, self._texts, self._count
        self._keys, self._matrix, self._texts = np.empty(0, np.int64), np.empty((0, self.dim), np.float32), {}
        self._count = self._singles = 0
        matrix.resize((count, self.dim), refcheck=False)
        keys.resize(count, refcheck=False)
        if self.ids.numbers():
            for row, text in texts.items():
                keys[row] = whole_number(text) or 0
        elif texts:
            return [texts[row] if row in texts else str(key) for row, key in enumerate(keys.tolist())], matrix
        return keys, matrix

    def _usable(self, block: NDArray[np.float32]) -> NDArray[np.bool_]:
        return np.ones(len(block), np.bool_)


def _permute(matrix: NDArray[np.float32], order: NDArray[np.int64]) -> None:
    """Bring the rows of `matrix` into `order`, a few columns at a time: a whole second matrix may not fit."""
    dim = matrix.shape[1]
    step = max(16, (32 << 20) // (4 * max(1, len(order))))  # 16 floats are a cache line
    for start in range(0, dim, step):
        matrix[: len(order), start : start + step] = matrix[order, start : start + step]
