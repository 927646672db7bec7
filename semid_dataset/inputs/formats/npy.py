"""Arrays of numpy: .npy, a matrix whose items lie elsewhere, and .npz, an archive. The only reader of them."""

import io
import math
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from semid_dataset.errors import EmbeddingError
from semid_dataset.inputs._columns import ROWS, no_items, refuse_columns
from semid_dataset.inputs._file import ForwardFile
from semid_dataset.inputs.formats._matrix import ArrayFile, Stored
from semid_dataset.protocols import Partition

__all__ = ["Npy", "Npz", "matrix_width"]

HEADER = 1 << 20  # bytes in which a header of an array ends
ARRAY = ""  # the name of the only array of an .npy
READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (3, 0): np.lib.format.read_array_header_2_0,  # which is another in the names of fields only
}


class _Layout(NamedTuple):
    """What the header of an .npy says."""

    offset: int
    shape: tuple[int, ...]
    by_columns: bool
    dtype: np.dtype[Any]


class Npy(ArrayFile):
    """See `protocols.Format`."""

    name: ClassVar[str] = "npy"
    suffixes: ClassVar[tuple[str, ...]] = (".npy",)
    starts: ClassVar[bytes] = rb"\x93NUMPY"
    alone: ClassVar[str] = ROWS

    @contextmanager
    def arrays(self, file: ForwardFile) -> Iterator[Mapping[str, Stored]]:
        """Return the array of a file, read when it is asked for."""
        layout = _header(io.BytesIO(file.at(0, min(HEADER, file.size))), f"'{file.path}'")
        array = _stored(f"'{file.path}'", layout, file.size, file.at)
        if layout.dtype.hasobject:
            array.rows(0, 0)
        yield {ARRAY: array}

    def partitions(self, whole: Partition, rows: int) -> list[Partition]:
        """Return ranges of rows; none of what is no matrix."""
        with ForwardFile(Path(whole.path), hashed=False, seekable=True) as file, self.arrays(file) as arrays:
            width = arrays[ARRAY].width
        return super().partitions(whole, rows) if width else []

    def chosen(self, arrays: Mapping[str, Stored], part: Partition, *, own: bool) -> tuple[str | None, str]:
        """Return that the array is the matrix, and that rows are numbered; raises EmbeddingError where it is none."""
        path, matrix = Path(part.path), arrays[ARRAY]
        if not matrix.width:
            raise EmbeddingError(
                f"'{path}' holds {matrix.kind} of shape {matrix.shape}; wanted: numbers of shape (items, dim)."
            )
        refuse_columns(path, part.items, part.vectors)
        if part.items != ROWS:
            raise no_items(path, [], own=True)
        return None, ARRAY


class Npz(ArrayFile):
    """See `protocols.Format`."""

    name: ClassVar[str] = "npz"
    suffixes: ClassVar[tuple[str, ...]] = (".npz",)
    starts: ClassVar[bytes] = rb"PK\x03\x04.{26}[^\x00]{0,200}?\.npy"

    @contextmanager
    def arrays(self, file: ForwardFile) -> Iterator[Mapping[str, Stored]]:
        """Open the arrays of an archive."""
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


def matrix_width(path: Path) -> int:
    """
    Return how many numbers a row of the matrix in an .npy file has.

    Raises:
        EmbeddingError: it holds no array.
    """
    with ForwardFile(path, hashed=False, seekable=True) as file, Npy().arrays(file) as arrays:
        return arrays[ARRAY].width


def _stored(
    where: str, layout: _Layout, size: int, read: Callable[[int, int], bytes], *, anywhere: bool = True
) -> Stored:
    """Return the array behind a header, of `size` bytes with it, of which `read` gives some by offset and number."""
    row = layout.dtype.itemsize * math.prod(layout.shape[1:])
    total = layout.shape[0] if layout.shape else 1
    there = size - layout.offset
    if there < total * row and not layout.dtype.hasobject:
        raise EmbeddingError(
            f"{where} cannot be read as an array: its header announces {total * row} bytes, and {max(0, there)} are "
            "there. Copy it again."
        )
    if there > total * row and not layout.dtype.hasobject:
        raise EmbeddingError(
            f"{where} goes on for {there - total * row} bytes after its array, as where two arrays are saved into one "
            "file. Nothing was read. Save each into a file of its own, or all with np.savez."
        )

    whole: NDArray[Any] | None = None

    def rows(first: int, last: int) -> NDArray[Any]:
        nonlocal whole
        if layout.dtype.hasobject:
            raise EmbeddingError(f"{where} cannot be read as an array: it holds Python objects, which are not read.")
        if not layout.by_columns:
            raw = read(layout.offset + first * row, (last - first) * row)
            return np.frombuffer(raw, layout.dtype).reshape(last - first, *layout.shape[1:])
        if whole is None:
            raw = read(layout.offset, total * row)
            whole = np.frombuffer(raw, layout.dtype).reshape(layout.shape, order="F")
        return whole[first:last]

    kind = layout.dtype.kind
    return Stored(layout.shape, str(layout.dtype), kind in "fiu", kind == "f", rows, not layout.by_columns, anywhere)


def _member(archive: zipfile.ZipFile, name: str, path: Path) -> Stored:
    """Return an array of an archive, which is read in order: a large one is never there twice."""
    with archive.open(name) as member:
        layout = _header(member, f"'{path}', {name}")
    info = archive.getinfo(name)
    opened: IO[bytes] | None = None

    def read(offset: int, count: int) -> bytes:
        nonlocal opened
        if opened is None or opened.tell() > offset:
            opened = archive.open(name)
        opened.seek(offset)
        found = opened.read(count)
        if len(found) < count:
            raise EOFError(f"{name} is cut off")
        return found

    plain = info.compress_type == zipfile.ZIP_STORED
    return _stored(f"'{path}', {name}", layout, info.file_size, read, anywhere=plain)


def _header(source: IO[bytes], where: str) -> _Layout:
    try:
        version = np.lib.format.read_magic(source)
        if version not in READERS:
            raise ValueError(f"its format is of version {version[0]}.{version[1]}; 1 to 3 are known")
        shape, by_columns, dtype = READERS[version](source)
    except (ValueError, EOFError, TypeError, SyntaxError, RecursionError, tokenize.TokenError) as error:
        raise EmbeddingError(f"{where} cannot be read as an array: {error}.") from None
    return _Layout(source.tell(), shape, by_columns, dtype)
