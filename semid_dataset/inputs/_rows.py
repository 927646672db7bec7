"""
What every reader of embeddings needs: a file read once from front to back, and a place for the rows.

Files belong to the user and may be anything: a pipe that never ends, a file that is still being written,
ids that come twice. What is wrong with a file is an error that names it; what is wrong with a row is counted.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset.errors import EmbeddingError

__all__ = ["BAD_NUMBER", "INT64", "ForwardFile", "Rows", "canonical_int", "usable"]

CHUNK = 4 << 20  # bytes per read
INT64 = range(-(2**63), 2**63)
LARGEST = 1e19  # of a number; the squares of those a little larger are beyond float32
BAD_NUMBER = "NaN or infinite, or beyond 1e19"
SINGLES = 256  # rows that are checked together
DIGITS = 20  # characters of the longest int64, sign included


class ForwardFile:
    """
    A regular file, read from front to back once, and hashed on the way.

    It is read, not mapped: a file that is cut off while it is mapped kills the process.

    Args:
        path: may be a symbolic link: users mount their data where they like.
        on_progress: called after every chunk.
        on_bytes: the same, told how many bytes it had.
        hashed: whether `digest` will be asked for.

    Raises:
        EmbeddingError: it cannot be opened, or is a folder, a pipe or a device.
    """

    def __init__(
        self,
        path: Path,
        on_progress: Callable[[], None] | None = None,
        *,
        on_bytes: Callable[[int], None] | None = None,
        hashed: bool = True,
    ) -> None:
        self.path = path
        self._on_progress = on_progress
        self._on_bytes = on_bytes
        self._hashed = hashed
        self._hash = hashlib.sha256()
        try:
            # O_NONBLOCK: opening a pipe without a writer would wait forever.
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise EmbeddingError(f"'{path}' cannot be opened: {error.strerror or error}.") from error
        try:
            self._state = os.fstat(self._fd)
            if not stat.S_ISREG(self._state.st_mode):
                raise EmbeddingError(
                    f"'{path}' is {_kind(self._state.st_mode)}; embeddings are read from regular files."
                )
        except BaseException:
            os.close(self._fd)
            raise
        self.size = self._left = self._state.st_size

    def __enter__(self) -> "ForwardFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def read(self) -> bytes:
        """
        Return the next chunk, at most 4 MB; nothing at the end.

        The end is where it was when the file was opened: a file that grows as fast as it is read has none.

        Raises:
            EmbeddingError: the disk says no.
        """
        try:
            chunk = os.read(self._fd, min(CHUNK, self._left))
        except OSError as error:
            raise EmbeddingError(f"'{self.path}' cannot be read: {error.strerror or error}.") from error
        self._left -= len(chunk)
        if self._hashed:
            self._hash.update(chunk)
        if self._on_progress is not None:
            self._on_progress()
        if self._on_bytes is not None:
            self._on_bytes(len(chunk))
        return chunk

    def at(self, offset: int, count: int) -> bytes:
        """
        Return `count` bytes from anywhere, without moving on.

        Raises:
            EmbeddingError: there are fewer, or the disk says no.
        """
        try:
            found = os.pread(self._fd, count, offset)
        except OSError as error:
            raise EmbeddingError(f"'{self.path}' cannot be read: {error.strerror or error}.") from error
        if len(found) < count:
            raise EmbeddingError(f"'{self.path}' became shorter while it was read.")
        return found

    def digest(self) -> str:
        """
        Return the SHA-256 of the whole file, reading what is left of it.

        Raises:
            EmbeddingError: the file changed since it was opened, so that the rows may be of two versions.
        """
        while self.read():
            pass
        self.check_unchanged()
        return self._hash.hexdigest()

    def check_unchanged(self) -> None:
        """
        Make sure that what was read is of one version.

        Raises:
            EmbeddingError: the file changed since it was opened.
        """
        now = os.fstat(self._fd)
        if (now.st_size, now.st_mtime_ns) != (self._state.st_size, self._state.st_mtime_ns):
            raise EmbeddingError(f"'{self.path}' was changed while it was read. Try again when it is complete.")


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a pipe"
    if stat.S_ISSOCK(mode):
        return "a socket"
    return "a device"


def usable(matrix: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which rows (n, dim) hold only numbers that can be computed with: finite, and at most `LARGEST` in size."""
    return np.asarray(((matrix <= LARGEST) & (matrix >= -LARGEST)).all(axis=1))


def canonical_int(text: str) -> int | None:
    """Return the int64 that `text` is the canonical decimal of ("7", not "07" or "+7"), else None."""
    if len(text) > DIGITS or not text.isascii() or not text.removeprefix("-").isdigit():
        return None
    number = int(text)
    return number if str(number) == text and number in INT64 else None


class Rows:
    """
    Rows of one feature, as they come: ids, vectors, and what was wrong.

    Args:
        feature: its id, for messages.
        dim: its width.

    Memory: what the rows take, and at most an eighth of it while it grows; the matrix is never there twice.
    """

    def __init__(self, feature: str, dim: int) -> None:
        self.feature = feature
        self.dim = dim
        self.bad = 0
        self.first_bad = ""
        self._count = 0
        self._keys = np.empty(0, np.int64)
        self._matrix = np.empty((0, dim), np.float32)
        self._singles = 0  # rows at the end whose numbers were not looked at yet
        self._single_where = ""
        self._texts: dict[int, str] = {}  # row -> id, of ids that are no canonical integers

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
        good = usable(self._matrix[first : self._count])
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
        good = usable(block)
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

        Ids are int64 if every one is a canonical integer, else strings. The collector is empty afterwards.
        """
        if self._singles:
            self._check_singles()
        keys, matrix, texts = self._keys, self._matrix, self._texts
        count, self._count = self._count, 0
        self._keys, self._matrix, self._texts = np.empty(0, np.int64), np.empty((0, self.dim), np.float32), {}
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

    def _reserve(self, rows: int) -> None:
        have = len(self._keys)
        if rows <= have:
            return
        # realloc moves pages, not bytes (mremap), so small steps are cheap and little is ever unused.
        step = max(have // 8, (1 << 20) // (4 * self.dim) + 1)
        self._keys.resize(max(rows, have + step), refcheck=False)
        self._matrix.resize((len(self._keys), self.dim), refcheck=False)


def _permute(matrix: NDArray[np.float32], order: NDArray[np.int64]) -> None:
    """Bring the rows of `matrix` into `order`, a few columns at a time: a whole second matrix may not fit."""
    dim = matrix.shape[1]
    step = max(16, (32 << 20) // (4 * max(1, len(order))))  # 16 floats are a cache line
    for start in range(0, dim, step):
        matrix[: len(order), start : start + step] = matrix[order, start : start + step]
