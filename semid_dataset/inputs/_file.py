"""
A file of the user's, read once from front to back, and what its first bytes say it is.

Files belong to the user and may be anything: a pipe that never ends, a file that is still being written, a page that a
server sent instead of the file, the same thing compressed. Compression is taken off on the way; what else a file is
instead of embeddings is said by name, because "no JSON in line 1" helps nobody.
"""

import hashlib
import importlib
import io
import os
import re
import stat
import tempfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from semid_dataset.errors import EmbeddingError

__all__ = ["HEAD", "ForwardFile", "read_whole", "something_else"]

CHUNK = 4 << 20  # bytes per read
HEAD = 512  # bytes at the start that tell what a file is; tar keeps its mark at 257

COMPRESSIONS = {
    rb"\x1f\x8b\x08": "gzip",
    rb"\x28\xb5\x2f\xfd": "zstd",
    rb"BZh[1-9]1AY&SY": "bzip2",
    rb"\xfd7zXZ\x00": "xz",
}
TEXTS = 7  # the first of them are texts themselves
# First bytes, what such a file is, and what to do about it.
FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (
        rb"version https://git-lfs\.github\.com/spec/",
        "a pointer of Git LFS in place of the file itself",
        "Fetch the file: git lfs pull",
    ),
    (rb"(?:\.\./)*(?:\.git)?/?annex/objects/", "a pointer of git-annex in place of the file itself", "git annex get"),
    (rb"# xet version ", "a pointer of Xet in place of the file itself", "Fetch the file: git xet, or hf download"),
    (rb"-----BEGIN PGP|Salted__|age-encryption\.org/", "encrypted", "Decrypt it"),
    (rb"outs:\s*\n", "a pointer of DVC in place of the file itself", "Fetch the file: dvc pull"),
    (
        rb"(?:\xef\xbb\xbf)?\s*(?i:<!doctype html|<html)",
        "an HTML page, as a server sends in place of a file",
        "Look at it, and download the file again",
    ),
    (
        rb"(?:\xef\xbb\xbf)?\s*<\?xml|\s*<Error>",
        "an XML document, as object stores send in place of a file",
        "Look at it, and download the file again",
    ),
    (
        rb"PK\x03\x04.{26}[^\x00]{0,200}?(?:/data\.pkl|/byteorder|/\.format_version|/\.data/)",
        "a file of torch.save",
        'Load it with torch and write its arrays: np.savez("x.npz", item_id=ids, embedding=vectors.numpy())',
    ),
    (
        rb"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19",
        "a file of torch.save, of before torch 1.6",
        'Load it with torch and write its arrays: np.savez("x.npz", item_id=ids, embedding=vectors.numpy())',
    ),
    (
        rb"PK\x03\x04.{26}(?:\[Content_Types\]\.xml|_rels/|docProps/|xl/)",
        "an Excel workbook, or another document of Office",
        "Write the table as parquet",
    ),
    (rb"PK\x03\x04.{26}(?!.{0,200}?\.npy)|PK\x05\x06", "a zip archive", "Unpack it: unzip"),
    (
        rb"[0-9]{1,9} [0-9]{1,5}\r?\n\S+(?: -?[0-9]+\.[0-9]+){2}",
        "a text of word2vec or fastText",
        'Load it with gensim and write its arrays: np.savez("x.npz", item_id=words, embedding=vectors)',
    ),
    (rb".{257}ustar", "a tar archive", "Unpack it: tar -xf"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", "Unpack it: 7z x"),
    (rb"Rar!\x1a\x07", "a RAR archive", "Unpack it: unrar x"),
    (
        rb"\x78[\x01\x5e\x9c\xda](?![ -~]{8})",
        "compressed with zlib, without the frame of any file format",
        "Unpack it: pigz -dz, or zlib.decompress in Python",
    ),
    (rb"\x1f\x9d", "compressed with compress", "Unpack it: uncompress"),
    (rb"LZIP", "compressed with lzip", "Unpack it: lzip -d"),
    (rb"\x04\x22\x4d\x18", "compressed with LZ4", "Unpack it: lz4 -d"),
    (rb"\xff\x06\x00\x00sNaPpY", "compressed with Snappy", "Unpack it: snzip -d"),
    (rb"\x89HDF\r\n\x1a\n", "an HDF5 file", 'Write its arrays with np.savez("x.npz", item_id=ids, embedding=vectors)'),
    (rb"ORC", "an ORC file", "Write it as parquet"),
    (rb"Obj\x01", "an Avro file", "Write it as parquet"),
    (rb"PARE", "an encrypted parquet file", "Write it without encryption"),
    (rb"SQLite format 3\x00", "an SQLite database", "Write the table as parquet"),
    (rb".{8}DUCK", "a DuckDB database", "Write the table as parquet: COPY t TO 'x.parquet'"),
    (
        rb"Ix(?:F|M|P|H|S|B|T|Q|p|R|Z)|IBxF|Iw",
        "a faiss index",
        "Write its vectors: index.reconstruct_n(0, index.ntotal)",
    ),
    (rb"MATLAB [57]\.[0-9] MAT-file", "a MATLAB file", "Load it with scipy.io.loadmat or h5py, and write np.savez"),
    (rb"FEA1", "a Feather file of version 1", "Write it again: pyarrow.feather.write_feather, which writes version 2"),
    (
        rb"%PDF-|\x89PNG|\xff\xd8\xff|\x7fELF|\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        "a document or a program",
        "Give embeddings",
    ),
    (
        rb"\xff\xfe[^\x00]\x00|\xfe\xff\x00|(?:[\t\n\r -~]\x00){4}|(?:\x00[\t\n\r -~]){4}",
        "text in UTF-16",
        "Write it as UTF-8: iconv -f UTF-16 -t UTF-8",
    ),
    (rb"\xff\xfe\x00\x00|\x00\x00\xfe\xff", "text in UTF-32", "Write it as UTF-8: iconv -f UTF-32 -t UTF-8"),
    (rb"\x00{16}", "nothing but zero bytes at its start, as a copy that broke off leaves", "Copy it again"),
)


class ForwardFile:
    """
    A regular file, read from front to back once, and hashed on the way.

    It is read, not mapped: a file that is cut off while it is mapped kills the process. A file that is compressed
    (gzip, bzip2, xz; zstd where Python 3.14 or pyarrow is there) is read as what it holds.

    Args:
        path: may be a symbolic link: users mount their data where they like.
        on_bytes: called after every chunk, told how many bytes of the file it was.
        hashed: whether `finish` returns a digest.
        seekable: whether any place of it will be looked at. What is compressed is unpacked into an unnamed temporary
            file then, else on the way.

    Raises:
        EmbeddingError: it cannot be opened, or is a folder, a pipe or a device.
    """

    def __init__(
        self,
        path: Path,
        on_bytes: Callable[[int], None] | None = None,
        *,
        hashed: bool = True,
        seekable: bool = False,
    ) -> None:
        self.path: Path = path
        self._on_bytes = on_bytes
        self._hashed = hashed
        self._hash = hashlib.sha256()
        try:
            # O_NONBLOCK: opening a pipe without a writer would wait forever.
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise EmbeddingError(f"'{path}' cannot be opened: {error.strerror or error}.") from error
        self._unpacked: Any = None
        self._plain: Any = None  # reader of what a compressed file holds
        self._faults: tuple[type[Exception], ...] = ()
        try:
            self._state = os.fstat(self._fd)
            if not stat.S_ISREG(self._state.st_mode):
                raise EmbeddingError(
                    f"'{path}' is {_kind(self._state.st_mode)}, not a regular file, which embeddings are read from."
                )
            self.size: int = self._state.st_size
            self._left = self.size
            self.compression: str = _compression(os.pread(self._fd, 16, 0))
            if self.compression:
                self._plain, self._faults = self._decompressor()
            if seekable and self._plain is not None:
                self._unpack()
        except OSError as error:
            self._close()
            raise EmbeddingError(f"'{path}' cannot be read: {error.strerror or error}.") from error
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> "ForwardFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        os.close(self._fd)
        if self._unpacked is not None:
            self._unpacked.close()

    @property
    def name(self) -> str:
        """A path that other libraries can open for what the file holds, as long as it is open here."""
        if self._unpacked is not None:
            return f"/proc/self/fd/{self._unpacked.fileno()}"
        name = str(self.path)
        return name if name.isprintable() else f"/proc/self/fd/{self._fd}"  # a name that is no UTF-8

    def read(self) -> bytes:
        """
        Return the next chunk, at most 4 MB; nothing at the end.

        The end is where it was when the file was opened: a file that grows as fast as it is read has none.

        Raises:
            EmbeddingError: the disk says no, or the file is compressed and damaged.
        """
        if self._unpacked is not None:
            return bytes(self._unpacked.read(CHUNK))
        return self._raw(CHUNK) if self._plain is None else self._decompressed()

    def at(self, offset: int, count: int) -> bytes:
        """
        Return `count` bytes from anywhere, without moving on.

        Raises:
            EmbeddingError: there are fewer, or the disk says no.
        """
        assert self._plain is None or self._unpacked is not None
        try:
            found = os.pread(self._fd if self._unpacked is None else self._unpacked.fileno(), count, offset)
        except OSError as error:
            raise EmbeddingError(f"'{self.path}' cannot be read: {error.strerror or error}.") from error
        if len(found) < count:
            raise EmbeddingError(f"'{self.path}' became shorter while it was read.")
        return found

    def head(self) -> bytes:
        """Return the first bytes of what a file that was just opened holds; nothing else can be read then."""
        if self._plain is None:
            return os.pread(self._fd, HEAD, 0)
        return self._decompressed(HEAD)

    def finish(self) -> str:
        """
        Make sure that what was read is of one version.

        Returns:
            The SHA-256 of the whole file as it lies there, what was left of it read; "" where it is not hashed.

        Raises:
            EmbeddingError: the file changed since it was opened, so that the rows may be of two versions.
        """
        while self._hashed and self._raw(CHUNK):
            pass
        now = os.fstat(self._fd)
        if (now.st_size, now.st_mtime_ns) != (self._state.st_size, self._state.st_mtime_ns):
            raise EmbeddingError(f"'{self.path}' was changed while it was read. Try again when it is complete.")
        return self._hash.hexdigest() if self._hashed else ""

    def _raw(self, count: int) -> bytes:
        """Return the next bytes of the file as it lies there."""
        try:
            chunk = os.read(self._fd, min(count, self._left))
        except OSError as error:
            raise EmbeddingError(f"'{self.path}' cannot be read: {error.strerror or error}.") from error
        self._left -= len(chunk)
        if self._hashed:
            self._hash.update(chunk)
        if self._on_bytes is not None:
            self._on_bytes(len(chunk))
        return chunk

    # What is compressed.

    def _decompressed(self, count: int = CHUNK) -> bytes:
        assert self._plain is not None
        try:
            return bytes(self._plain.read(count))
        except EmbeddingError:
            raise
        except self._faults as error:
            raise EmbeddingError(
                f"'{self.path}' is compressed with {self.compression} and damaged: {error}. Copy it again."
            ) from error

    def _unpack(self) -> None:
        self._unpacked = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the file
        self.size = 0
        while chunk := self._decompressed():
            self._unpacked.write(chunk)
            self.size += len(chunk)
        self._unpacked.seek(0)

    def _decompressor(self) -> tuple[Any, tuple[type[Exception], ...]]:
        """Return a reader of what the file holds, and what it raises where the file is damaged."""
        raw: Any = _Raw(self)
        match self.compression:
            case "gzip":
                gzip = importlib.import_module("gzip")
                return gzip.GzipFile(fileobj=raw), (OSError, EOFError, zlib.error)
            case "bzip2":
                bz2 = importlib.import_module("bz2")
                return bz2.BZ2File(raw), (OSError, EOFError, ValueError)
            case "xz":
                lzma = importlib.import_module("lzma")
                return lzma.LZMAFile(raw), (OSError, EOFError, lzma.LZMAError)
        with suppress(ImportError):
            zstd = importlib.import_module("compression.zstd")
            return zstd.ZstdFile(raw), (OSError, EOFError, zstd.ZstdError)
        with suppress(ImportError):
            arrow = importlib.import_module("pyarrow")
            return arrow.CompressedInputStream(arrow.PythonFile(raw, mode="r"), "zstd"), (OSError, ValueError)
        self._unreadable()

    def _unreadable(self) -> NoReturn:
        raise EmbeddingError(
            f"'{self.path}' is compressed with zstd, and nothing is installed that reads it. Run: pip install "
            "pyarrow, or unpack the file: zstd -d"
        )


class _Raw(io.RawIOBase):
    """The bytes of a file as they lie there, for the standard library's decompressors."""

    def __init__(self, file: ForwardFile) -> None:
        super().__init__()
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self._file._raw(len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)


def read_whole(path: Path) -> bytes:
    """
    Return what a text holds, unpacked where it is compressed.

    Raises:
        EmbeddingError: it cannot be read, or is something else, which is named.
        OSError: there is no such file, as the system says.
    """
    path.stat()
    with ForwardFile(path, hashed=False) as file:
        data = b"".join(iter(file.read, b""))
    foreign = something_else(data[:HEAD], path, text=True)
    if foreign is not None:
        raise EmbeddingError(foreign)
    return data


def something_else(head: bytes, path: Path, *, text: bool = False) -> str | None:
    """
    Return in a sentence or two what a file that begins so is, and what to do; None where it may be what it should.

    Args:
        head: its first bytes.
        path: its name.
        text: whether it should be a text, of which nearly any beginning may be meant.
    """
    printable = text and re.search(rb"[\x00-\x08\x0e-\x1a]", head) is None
    for number, (start, what, remedy) in enumerate(FOREIGN):
        if printable and number >= TEXTS:
            return None
        if re.match(start, head, re.DOTALL):
            return f"'{path}' is {what}. Nothing was read. {remedy}."
    return None


def _compression(head: bytes) -> str:
    return next((name for start, name in COMPRESSIONS.items() if re.match(start, head, re.DOTALL)), "")


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a pipe"
    if stat.S_ISSOCK(mode):
        return "a socket"
    return "a device"
