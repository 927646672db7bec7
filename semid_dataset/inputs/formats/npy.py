"""Arrays of numpy: .npy, a matrix whose items lie elsewhere, and .npz, an archive. The only reader of them."""

import io
import math
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from semid_dataset.errors import EmbeddingError
from semid_dataset.inputs._columns import ROWS, no_items, refuse_columns
from semid_dataset.inputs._file import ForwardFile
from semid_dataset.inputs.formats._matrix import Stored, send_arrays, send_matrix
from semid_dataset.protocols import Partition, Sink

__all__ = ["Npy", "Npz", "load_array", "load_arrays", "matrix_width"]

HEADER = 1 << 20  # bytes in which a header of an array ends


class _Layout(NamedTuple):
    """What the header of an .npy says."""

    offset: int
    shape: tuple[int, ...]
    by_columns: bool
    dtype: np.dtype[Any]

    @property
    def in_parts(self) -> bool:
        """Whether it is a matrix of numbers that lies there row by row."""
        return not self.by_columns and len(self.shape) == 2 and self.dtype.kind in "fiu" and 0 not in self.shape


class Npy:
    """See `protocols.Format`."""

    name: ClassVar[str] = "npy"
    suffixes: ClassVar[tuple[str, ...]] = (".npy",)
    starts: ClassVar[bytes] = rb"\x93NUMPY"

    def size(self, whole: Partition, dim: int) -> int:
        """Return the rows that the header names."""
        with ForwardFile(Path(whole.path), hashed=False, seekable=True) as file:
            return (*_layout(file).shape, 0)[0]

    def partitions(self, whole: Partition, rows: int) -> list[Partition]:
        """Return ranges of rows; none where the layout has to be turned first."""
        with ForwardFile(Path(whole.path), hashed=False, seekable=True) as file:
            layout = _layout(file)
        if not layout.in_parts or file.compression:
            return []
        total, columns = layout.shape
        pieces = -(-total // rows)
        size = total * columns * layout.dtype.itemsize // pieces
        ranges = [(total * piece // pieces, total * (piece + 1) // pieces) for piece in range(pieces)]
        return [replace(whole, first=first, last=last, bytes=size, items=ROWS) for first, last in ranges]

    def read(self, part: Partition, sink: Sink, progress: Callable[[int], None], *, digest: bool = False) -> str:
        """Send a range of rows to `sink`; items are their numbers."""
        path = Path(part.path)
        refuse_columns(path, part.items, part.vectors)
        if part.items != ROWS:
            raise no_items(path, [], own=True)
        with ForwardFile(path, hashed=digest, seekable=True) as file:
            layout = _layout(file)
            matrix = _stored(file, layout)
            if not matrix.width:
                raise EmbeddingError(
                    f"'{path}' holds {layout.dtype} of shape {layout.shape}; wanted: numbers of shape (items, dim)."
                )
            last = layout.shape[0] if part.last < 0 else part.last
            send_matrix(matrix, np.arange(part.first, last), path, sink, progress, part.first)
            if digest:
                return file.digest()
            file.check_unchanged()
        return ""


class Npz:
    """See `protocols.Format`."""

    name: ClassVar[str] = "npz"
    suffixes: ClassVar[tuple[str, ...]] = (".npz",)
    starts: ClassVar[bytes] = rb"PK\x03\x04.{26}[^\x00]{0,200}?\.npy"

    def size(self, whole: Partition, dim: int) -> int:
        """Return as many rows as would fill the file."""
        with ForwardFile(Path(whole.path), hashed=False) as file:
            return file.size // (4 * dim)

    def partitions(self, whole: Partition, rows: int) -> list[Partition]:
        """Return none: an archive is read as a whole."""
        return []

    def read(self, part: Partition, sink: Sink, progress: Callable[[int], None], *, digest: bool = False) -> str:
        """Send the rows of the matrix in the archive to `sink`."""
        with ForwardFile(Path(part.path), hashed=digest, seekable=True) as file:
            with _archive(file) as arrays:
                send_arrays(arrays, part, sink)
            progress(file.size)
            if digest:
                return file.digest()
            file.check_unchanged()
        return ""


def matrix_width(path: Path) -> int:
    """
    Return how many numbers a row of the matrix in an .npy file has.

    Raises:
        EmbeddingError: it holds no matrix.
    """
    with ForwardFile(path, hashed=False, seekable=True) as file:
        return _stored(file, _layout(file)).width


def load_array(path: Path) -> NDArray[Any]:
    """
    Return the array in an .npy file.

    Raises:
        EmbeddingError: there is none, or one of Python objects.
    """
    with ForwardFile(path, hashed=False, seekable=True) as file:
        return _stored(file, _layout(file)).all()


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """
    Return the arrays in an .npz file by name.

    Raises:
        EmbeddingError: it is no archive of arrays, damaged, or holds Python objects.
    """
    with ForwardFile(path, hashed=False, seekable=True) as file, _archive(file) as arrays:
        return {name: array.all() for name, array in arrays.items()}


def _stored(file: ForwardFile, layout: _Layout) -> Stored:
    """Return the array behind a header."""
    row = layout.dtype.itemsize * math.prod(layout.shape[1:])
    total = layout.shape[0] if layout.shape else 1
    if layout.offset + total * row > file.size:
        raise EmbeddingError(
            f"'{file.path}' cannot be read as an array: its header announces {total * row} bytes, and "
            f"{max(0, file.size - layout.offset)} are there. Copy it again."
        )

    whole: NDArray[Any] | None = None

    def rows(first: int, last: int) -> NDArray[Any]:
        raw = file.at(layout.offset + first * row, (last - first) * row)
        return np.frombuffer(raw, layout.dtype).reshape(last - first, *layout.shape[1:])

    def turned(first: int, last: int) -> NDArray[Any]:
        nonlocal whole
        if whole is None:
            whole = np.frombuffer(file.at(layout.offset, total * row), layout.dtype).reshape(layout.shape, order="F")
        return whole[first:last]

    return _described(layout, turned if layout.by_columns else rows)


@contextmanager
def _archive(file: ForwardFile) -> Iterator[dict[str, Stored]]:
    """Open an archive of arrays: those in it, read when they are asked for."""
    try:
        with zipfile.ZipFile(file.name) as archive:
            names = [name for name in archive.namelist() if name.endswith(".npy")]
            yield {name.removesuffix(".npy"): _member(archive, name, file.path) for name in names}
    except EmbeddingError:
        raise
    except (
        ValueError, EOFError, OSError, KeyError, NotImplementedError, RuntimeError, zlib.error, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        raise EmbeddingError(f"'{file.path}' cannot be read as an archive of arrays: {error}.") from None


def _member(archive: zipfile.ZipFile, name: str, path: Path) -> Stored:
    with archive.open(name) as member:
        layout = _header(member, f"{path}, {name}")

    whole: NDArray[Any] | None = None

    def rows(first: int, last: int) -> NDArray[Any]:
        nonlocal whole
        if whole is None:
            if layout.dtype.hasobject:
                raise EmbeddingError(f"'{path}', {name} holds Python objects, which are not read.")
            with archive.open(name) as opened:
                whole = np.lib.format.read_array(opened, allow_pickle=False)
        return whole[first:last] if layout.shape else whole

    return _described(layout, rows)


def _described(layout: _Layout, rows: Callable[[int, int], NDArray[Any]]) -> Stored:
    kind = layout.dtype.kind
    return Stored(layout.shape, str(layout.dtype), kind in "fiu", kind == "f", rows)


def _layout(file: ForwardFile) -> _Layout:
    """
    Return what the header of an .npy says.

    Raises:
        EmbeddingError: it is none, or the array is one of Python objects.
    """
    layout = _header(io.BytesIO(file.at(0, min(HEADER, file.size))), str(file.path))
    if layout.dtype.hasobject:
        raise EmbeddingError(f"'{file.path}' cannot be read as an array: it holds Python objects, which are not read.")
    return layout


def _header(source: IO[bytes], where: str) -> _Layout:
    try:
        version = np.lib.format.read_magic(source)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = read(source)
    except (ValueError, EOFError, TypeError, SyntaxError, RecursionError, tokenize.TokenError) as error:
        raise EmbeddingError(f"'{where}' cannot be read as an array: {error}.") from None
    return _Layout(source.tell(), shape, by_columns, dtype)
