"""
Arrays to bytes and back: one safetensors file with a checksum and an index of its keys. No paths.

A file is the safetensors layout (8 bytes of header length, JSON header, tensors without gaps) with
three promises on top. The last tensor is `checksum`, the CRC-32 of every byte before it, so that a
flipped byte is found wherever it is, the header included; this rule holds for all versions to come.
Tensors lie in order of item size behind a header padded to 64 bytes, so that every one of them is
aligned where a map of the file is. And the keys are ordered and indexed in the file itself: opening
it builds nothing, whatever the number of items, and all processes share its pages.

Source of the layout: https://github.com/huggingface/safetensors#format
"""

import json
import math
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset.errors import CorruptTableError, TableError, TableVersionError
from semid_dataset.objects import INT64_MAX, INT64_MIN, as_items, as_query, item_of, parse_decimal, quick_integers

__all__ = [
    "FORMAT_VERSION",
    "Buffer",
    "Container",
    "IntIndex",
    "StringIndex",
    "as_query",
    "build_index",
    "is_in",
    "open_index",
    "packed_rows",
    "parse",
    "parse_decimal",
    "peek",
    "serialize",
]

FORMAT_VERSION = 1

Buffer = bytes | bytearray | memoryview

ALIGNMENT = 64  # bytes, a cache line
CHECKSUM_BYTES = 4
MAX_HEADER = 16 << 20  # bytes; refused before anything of that size is allocated
MAX_DIMENSIONS = 8
LARGE = 1 << 26  # bytes
DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}
NAMES = {text: name for name, text in DTYPES.items()}

ITEMS_PER_BUCKET = 4  # of 4 bytes each: the index costs a byte an item
COUNTED = 1 << 20  # keys whose buckets are counted at once
LARGEST_SPELLED = 10**80  # Python refuses to spell integers of some thousand digits
SORT_FROM = 1024  # keys; ordered queries walk through the table instead of jumping


# --- the file ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Container:
    """What a file holds: read-only arrays over its bytes, and what its writer said about them."""

    arrays: dict[str, NDArray[Any]]
    info: dict[str, Any]
    format_version: int


def serialize(arrays: Mapping[str, NDArray[Any]], info: Mapping[str, Any]) -> list[bytes | memoryview]:
    """
    Return buffers whose concatenation is the file. Contiguous arrays are not copied.

    Args:
        arrays: by name, little-endian, of the dtypes in `DTYPES`.
        info: JSON types.

    Raises:
        TableError: a name is taken, a dtype has no place in the format, or the header is too long.
    """
    if taken := {"checksum", "__metadata__"} & arrays.keys():
        raise TableError(f"The name '{taken.pop()}' belongs to the file format; give the array another.")
    metadata = {
        "format": "semid_dataset",
        "format_version": str(FORMAT_VERSION),
        "info": json.dumps(info, sort_keys=True),
    }
    header: dict[str, Any] = {"__metadata__": metadata}
    buffers: list[bytes | memoryview] = []
    position = 0
    for name, array in sorted(arrays.items(), key=lambda pair: -pair[1].dtype.itemsize):  # stable
        # reshape: ascontiguousarray would make a row of a 0-dimensional array
        contiguous = np.ascontiguousarray(array).reshape(array.shape)
        if contiguous.dtype.str not in NAMES:
            raise TableError(f"Array '{name}' is of dtype {array.dtype}; a file can hold {', '.join(DTYPES.values())}.")
        header[name] = _entry(NAMES[contiguous.dtype.str], array.shape, position, contiguous.nbytes)
        buffers.append(contiguous.reshape(-1).view(np.uint8).data)
        position += contiguous.nbytes
    header["checksum"] = _entry("U8", (CHECKSUM_BYTES,), position, CHECKSUM_BYTES)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    if len(text) > MAX_HEADER:
        raise TableError(f"The header takes {len(text):,} bytes, {MAX_HEADER:,} are allowed: 'info' holds too much.")
    buffers.insert(0, len(text).to_bytes(8, "little") + text)
    checksum = 0
    for buffer in buffers:
        checksum = zlib.crc32(buffer, checksum)
    buffers.append(checksum.to_bytes(CHECKSUM_BYTES, "little"))
    return buffers


def _entry(dtype: str, shape: Sequence[int], begin: int, size: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, begin + size]}


def parse(buffer: Buffer, where: str, *, verify: bool = True) -> Container:
    """
    Return the arrays of a file as read-only views of its bytes. Nothing is copied.

    Args:
        buffer: the whole file; the arrays keep it alive.
        where: its name in error messages.
        verify: compare the checksum (it reads every byte once); the header is checked in any case.

    Raises:
        CorruptTableError: empty, cut off, foreign, a byte is not what was written, or the header lies.
        TableVersionError: a newer version wrote it. The checksum is right then: a flipped bit in the
            version's digits is damage, not a newer version.
    """
    view = memoryview(buffer).cast("B").toreadonly()
    if len(view) == 0:
        raise CorruptTableError(f"'{where}' is empty.")
    if len(view) < 8 + 2 + CHECKSUM_BYTES:
        raise CorruptTableError(f"'{where}' is cut off: {len(view)} bytes are too few for a semantic-ID table.")
    if verify and len(view) > LARGE:  # a header that does not describe the file is found before gigabytes are read
        header, start = _header(view, where)
        header.pop("__metadata__", None)
        _arrays(view, header, start, where)
    if verify:
        _check(view, where)
    header, start = _header(view, where)
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or metadata.get("format") != "semid_dataset":
        raise CorruptTableError(f"'{where}' is a safetensors file but no semantic-ID table.")
    version = parse_decimal(str(metadata.get("format_version")))
    if version is None or version < 1:
        raise CorruptTableError(f"'{where}' names no format version: {metadata.get('format_version')!r}.")
    if version > FORMAT_VERSION:
        raise TableVersionError(
            f"'{where}' is of format version {version}, this semid_dataset reads up to {FORMAT_VERSION}. "
            "The file was left untouched. Install a newer semid_dataset."
        )
    info = _json(metadata.get("info"), where)
    if not isinstance(info, dict):
        raise CorruptTableError(f"'{where}' has a header whose info is no object.")
    arrays = _arrays(view, header, start, where)
    if arrays.pop("checksum").shape != (CHECKSUM_BYTES,):
        raise CorruptTableError(f"'{where}' has no checksum of {CHECKSUM_BYTES} bytes.")
    return Container(arrays, info, version)


def peek(start: bytes, where: str) -> dict[str, Any]:
    """
    Return what a file's writer said about it, from its first bytes: 8 and the header. Nothing else of it is checked.

    Raises:
        CorruptTableError: it is no semantic-ID table.
        TableVersionError: a newer version wrote it.
    """
    length = int.from_bytes(start[:8], "little")
    if not 2 <= length <= len(start) - 8:
        raise CorruptTableError(f"'{where}' claims a header of {length} bytes and has {len(start)}.")
    header = _json(start[8 : 8 + length], where)
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or metadata.get("format") != "semid_dataset":
        raise CorruptTableError(f"'{where}' is no semantic-ID table.")
    if metadata.get("format_version") != str(FORMAT_VERSION):
        version = parse_decimal(str(metadata.get("format_version")))
        if version is None or version < 1:
            raise CorruptTableError(f"'{where}' names no format version: {metadata.get('format_version')!r}.")
        if version > FORMAT_VERSION:
            raise TableVersionError(f"'{where}' is of format version {version}. The file was left untouched.")
    info = _json(metadata.get("info"), where)
    if not isinstance(info, dict):
        raise CorruptTableError(f"'{where}' has a header whose info is no object.")
    return info


def _check(view: memoryview, where: str) -> None:
    wanted = int.from_bytes(view[-CHECKSUM_BYTES:], "little")
    found = zlib.crc32(view[:-CHECKSUM_BYTES])
    if found != wanted:
        if b'"semid_dataset"' not in bytes(view[:4096]):  # the metadata comes first in our headers
            text = ": it is JSON, which semid_dataset.exports.read_export reads" if bytes(view[:1]) in b"{[" else ""
            raise CorruptTableError(f"'{where}' is no semantic-ID table{text}.")
        raise CorruptTableError(
            f"'{where}' is damaged or cut off: {len(view)} bytes of checksum {found:08x}, {wanted:08x} was written."
        )


def _header(view: memoryview, where: str) -> tuple[dict[str, Any], int]:
    """Return the header and where the tensors start."""
    length = int.from_bytes(view[:8], "little")
    if not 2 <= length <= min(len(view) - 8, MAX_HEADER):
        raise CorruptTableError(f"'{where}' claims a header of {length} bytes in a file of {len(view)}.")
    header = _json(bytes(view[8 : 8 + length]), where)
    if not isinstance(header, dict):
        raise CorruptTableError(f"'{where}' has a header that is no object.")
    return header, 8 + length


def _json(text: object, where: str) -> Any:
    if not isinstance(text, str | bytes):
        raise CorruptTableError(f"'{where}' has no info in its header.")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptTableError(f"'{where}' has an unreadable header: {error}.") from error


def _arrays(view: memoryview, header: Mapping[str, Any], start: int, where: str) -> dict[str, NDArray[Any]]:
    """Return views of the tensors, which must lie end to end from `start` to the end, the checksum last."""
    found: list[tuple[int, int, str, str, tuple[int, ...]]] = []  # begin, end, name, dtype, shape
    for name, entry in header.items():
        try:
            dtype, shape, (begin, end) = DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
        except (TypeError, KeyError, ValueError) as error:
            raise CorruptTableError(f"'{where}' describes '{name}' in an unknown way: {entry!r:.200}.") from error
        whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
        if not whole or len(shape) > MAX_DIMENSIONS or end - begin != math.prod(shape) * np.dtype(dtype).itemsize:
            raise CorruptTableError(f"'{where}' lies about '{name}': {entry!r:.200}.")
        found.append((begin, end, name, dtype, shape))
    found.sort(key=lambda entry: entry[:2])
    arrays: dict[str, NDArray[Any]] = {}
    position = 0
    for begin, end, name, dtype, shape in found:
        if begin != position:
            raise CorruptTableError(f"'{where}' has a gap or an overlap before '{name}'.")
        try:
            array = np.frombuffer(view[start + begin : start + end], dtype).reshape(shape)
        except (ValueError, OverflowError) as error:  # it ends behind the file's end; a shape such as (0, 2**70)
            raise CorruptTableError(f"'{where}' lies about '{name}': {error}.") from error
        if not array.flags.aligned:  # not a file of ours, or bytes from somewhere inside others
            array = array.copy()
            array.flags.writeable = False
        arrays[name] = array
        position = end
    if start + position != len(view):
        raise CorruptTableError(f"'{where}' describes {start + position} bytes and has {len(view)}.")
    if next(reversed(arrays), None) != "checksum":
        raise CorruptTableError(f"'{where}' does not end in its checksum.")
    return arrays


def packed_rows(codes: NDArray[Any]) -> NDArray[Any]:
    """
    Return each row of codes as one value; values sort as rows do, and only equal rows have equal values.

    Args:
        codes: (n, levels) uint8 or uint16.

    Returns:
        (n,) uint32 for rows of up to 4 bytes, uint64 up to 8, byte strings beyond.
    """
    rows, levels = codes.shape
    big = codes.astype(codes.dtype.newbyteorder(">"), copy=False)
    raw = np.ascontiguousarray(big).view(np.uint8).reshape(rows, levels * codes.dtype.itemsize)
    width = raw.shape[1]
    if width > 8:
        return raw.view(f"S{width}").reshape(-1)
    whole = 4 if width <= 4 else 8
    if width < whole:
        raw = np.concatenate([np.zeros((rows, whole - width), np.uint8), raw], axis=1)
    return raw.view(f">u{whole}").reshape(-1).astype(np.uint32 if whole == 4 else np.uint64)


def is_in(keys: NDArray[Any], ordered: NDArray[Any]) -> NDArray[np.bool_]:
    """Say which of some keys, (n,), are among others in ascending order."""
    if not len(ordered):
        return np.zeros(len(keys), dtype=bool)
    return np.asarray(ordered[np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)] == keys)


# --- the index of the keys --------------------------------------------------------------------


def build_index(
    items: NDArray[Any] | Sequence[str | int],
) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
    """
    Return the arrays that find an item's row, and the order that brings rows into the file's order.

    Items that are ints, or decimal strings with `str(int(item)) == item` for every one of them, become
    `keys` (n,) int64, ascending: 8 bytes an item, and 1 for `key_starts`. Anything else becomes the
    strings themselves, in order of their code points, and a table of their CRC-32 to find them by: the
    hash only proposes, bytes decide.

    Args:
        items: n ints or strings, in any order.

    Returns:
        (arrays for `serialize`, order (n,) int64: row i of the file is item order[i]).

    Raises:
        TableError: an item is given twice, or is neither an int nor a string.
    """
    if len(items) >= 1 << 32:
        raise TableError(f"{len(items):,} items: rows are counted in 32 bits.")
    keys = as_items(items, "the items of a table", TableError, empty=True)
    return _int_arrays(keys) if isinstance(keys, np.ndarray) else _string_arrays(keys)


def _int_arrays(keys: NDArray[np.int64]) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
    order: NDArray[np.int64] | None = None
    if not (keys[1:] > keys[:-1]).all():
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        if (twice := np.flatnonzero(keys[1:] == keys[:-1])).size:
            raise TableError(f"Item {keys[twice[0]]} is given twice.")
    frame, starts = _buckets(keys, _core(keys))
    return {"keys": keys, "key_frame": frame, "key_starts": starts}, np.arange(len(keys)) if order is None else order


def _string_arrays(texts: list[str]) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
    encoded = [_encode(text) for text in texts]
    order = np.array(sorted(range(len(texts)), key=encoded.__getitem__), np.int64)
    encoded = [encoded[row] for row in order.tolist()]
    for before, after in pairwise(encoded):
        if before == after:
            raise TableError(f"Item {_decode(after)!r:.80} is given twice.")
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(text) for text in encoded], out=offsets[1:])
    hashes = np.array([zlib.crc32(text) for text in encoded], np.int64)
    # Stable, so that strings of one hash stay in order of their bytes: `row_of` halves its way among them.
    rows = np.argsort(hashes, kind="stable")
    hashes = hashes[rows]
    frame, starts = _buckets(hashes, (0, len(hashes)))
    arrays: dict[str, NDArray[Any]] = {
        "key_hashes": hashes.astype(np.uint32),
        "key_rows": rows.astype(np.uint32),
        "key_offsets": offsets.astype(np.uint32) if offsets[-1] < 1 << 32 else offsets,
        "key_bytes": np.frombuffer(b"".join(encoded), np.uint8),
        "key_frame": frame,
        "key_starts": starts,
    }
    return arrays, order


def _core(keys: NDArray[np.int64]) -> tuple[int, int]:
    """
    Return the rows whose keys the buckets are laid over: all, or all but the outermost 1/64 on each side.

    One stray id (0 among ids of eleven digits) would else leave everybody else in a handful of buckets.
    """
    trim = len(keys) // 64
    if trim:
        span, core = int(keys[-1]) - int(keys[0]), int(keys[-1 - trim]) - int(keys[trim])
        if core < span // 8:
            return trim, len(keys) - trim
    return 0, len(keys)


def _buckets(keys: NDArray[np.int64], core: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """
    Return (base, shift) and the first row of each bucket; bucket b holds the keys with (key - base) >> shift == b.

    Keys ascending. Rows below `core` come before the first start, rows above it after the last. Where keys are
    spread evenly a bucket holds about four; where not, `bisect` in one costs at most log2(n) steps.
    """
    first, last = core
    if first == last:
        return np.zeros(2, np.int64), np.array([first, last], np.uint32)
    base = keys[first]
    span = int(keys[last - 1]) - int(base)
    most = max(1, (last - first) // ITEMS_PER_BUCKET)
    shift = max(0, span.bit_length() - most.bit_length())
    while span >> shift >= most:
        shift += 1
    count = (span >> shift) + 1
    beyond = int(base) + (count << shift)  # the last bucket may reach further than `core`
    last = len(keys) if beyond > INT64_MAX else int(np.searchsorted(keys, beyond))
    starts = np.zeros(count + 1, np.uint32)
    starts[0] = first
    for begin in range(first, last, COUNTED):
        # As uint64, where the difference of two int64 always fits.
        bucket = (keys[begin : min(begin + COUNTED, last)].view(np.uint64) - base.view(np.uint64)) >> np.uint64(shift)
        lowest = int(bucket[0])
        counts = np.bincount((bucket - bucket[0]).astype(np.int64))
        starts[lowest + 1 : lowest + 1 + len(counts)] += counts.astype(np.uint32)
    np.cumsum(starts, out=starts)
    return np.array([base, shift], np.int64), starts


def open_index(arrays: Mapping[str, NDArray[Any]], where: str, *, verify: bool = True) -> "IntIndex | StringIndex":
    """
    Return the index in the arrays of a file.

    Args:
        arrays: of the file, by name.
        where: its name in error messages.
        verify: look whether every number in the index leads to somewhere in the file, so that no look-up can stumble
            over one: it reads a byte an integer key, 8 to 12 a string, of which the checksum has read all. All else
            looks at shapes, not at items, and costs the same for any number of them.

    Raises:
        CorruptTableError: an array is missing or of another kind than `build_index` makes, or it leads astray.
    """

    def take(name: str, dtypes: str, size: int | None = None) -> NDArray[Any]:
        array = arrays.get(name)
        if array is None or array.ndim != 1 or array.dtype.str[1:] not in dtypes.split():
            raise CorruptTableError(f"'{where}' has no usable '{name}' in its index of keys.")
        if size is not None and len(array) != size:
            raise CorruptTableError(f"'{where}' has {len(array)} entries in '{name}', {size} were expected.")
        return array

    frame, starts = take("key_frame", "i8", 2).tolist(), take("key_starts", "u4")
    if len(starts) < 2 or not 0 <= frame[1] <= 64:
        raise CorruptTableError(f"'{where}' has no usable 'key_starts' in its index of keys.")
    keys = take("keys", "i8") if "keys" in arrays else take("key_hashes", "u4")
    if verify and (starts[-1] > len(keys) or (starts[1:] < starts[:-1]).any()):
        raise CorruptTableError(f"'{where}' has 'key_starts' that lead beyond its {len(keys)} keys or back.")
    if "keys" in arrays:
        return IntIndex(keys, starts, frame[0], frame[1])
    rows, offsets = take("key_rows", "u4", len(keys)), take("key_offsets", "u4 i8", len(keys) + 1)
    text = take("key_bytes", "u1", int(offsets[-1]))
    if verify and (rows >= len(keys)).any():
        raise CorruptTableError(f"'{where}' has 'key_rows' that lead beyond its {len(keys)} keys.")
    if verify and (offsets[0] != 0 or (offsets[1:] < offsets[:-1]).any()):
        raise CorruptTableError(f"'{where}' has 'key_offsets' that do not ascend from 0.")
    return StringIndex(keys, rows, offsets, text, starts, frame[0], frame[1], where)


class IntIndex:
    """
    Rows of integer keys.

    `row_of` first asks for the bucket, then bisects in it, over memoryviews of the file: no Python object is kept
    per item. Measured on 1 million random ids in random order (2 cores, CPython 3.11), nanoseconds a look-up with
    the list of codes made: a dict 590, this 700; with the scan `while keys[i] < key: i += 1` in place of bisect
    780; with buckets by multiplication, filled to the byte, 800; both bounds by one struct.unpack_from 760. A single
    `numpy.searchsorted` costs 1,500 and more.
    """

    __slots__ = ("base", "keys", "shift", "starts", "view")

    def __init__(self, keys: NDArray[np.int64], starts: NDArray[np.uint32], base: int, shift: int) -> None:
        self.keys: NDArray[np.int64] = keys
        self.view: memoryview[int] = keys.data
        self.starts: memoryview[int] = starts.data
        self.base: int = base
        self.shift: int = shift

    def __len__(self) -> int:
        return len(self.keys)

    def row_of(self, item: object) -> int:
        """Return the row of an int, of what has `__index__`, or of a canonical decimal string; else -1."""
        key: int | None
        if type(item) is int:
            key = item
        elif type(item) is str:  # as parse_decimal, without the call
            try:
                key = int(item)
            except ValueError:
                return -1
            if str(key) != item:
                return -1
        elif (key := _key(item)) is None:
            return -1
        bucket = (key - self.base) >> self.shift
        starts = self.starts
        if bucket < 0:
            low, high = 0, starts[0]
        else:
            try:
                low, high = starts[bucket], starts[bucket + 1]
            except IndexError:
                low, high = starts[-1], len(self.keys)
        row = bisect_left(self.view, key, low, high)
        return row if row < high and self.view[row] == key else -1

    def rows_of(self, items: Any) -> NDArray[np.int64]:
        """Return the row of each item, -1 for unknown; in the shape of `items` where that is an array."""
        query = as_query(items)
        if not isinstance(query, np.ndarray):
            return self._find_list(query)
        if query.dtype.kind not in "iu":
            return _find_each(query, self._find_list)
        numbers = np.ma.getdata(query)
        rows = self._find(numbers.astype(np.int64, copy=False).reshape(-1)).reshape(query.shape)
        if isinstance(query, np.ma.MaskedArray):
            rows = np.where(np.ma.getmaskarray(query), -1, rows)
        return np.where(numbers > INT64_MAX, -1, rows) if query.dtype == np.uint64 else rows

    def _find_list(self, items: list[Any]) -> NDArray[np.int64]:
        keys = quick_integers(items)
        if keys is not None:
            return self._find(keys)
        wanted = [_key(item) for item in items]
        fits = np.array([key is not None for key in wanted], bool)
        return np.where(fits, self._find(np.array([key or 0 for key in wanted], np.int64)), -1)

    def _find(self, query: NDArray[np.int64]) -> NDArray[np.int64]:
        if len(self.keys) == 0:
            return np.full(len(query), -1, np.int64)
        rows: NDArray[np.int64]
        if len(query) >= SORT_FROM:
            # 100,000 random keys of 1 million: 9 ms, without sorting them first 20 ms.
            order = np.argsort(query)
            rows = np.empty(len(query), np.int64)
            rows[order] = np.searchsorted(self.keys, query[order])
        else:
            rows = np.searchsorted(self.keys, query)
        np.minimum(rows, len(self.keys) - 1, out=rows)
        rows[self.keys[rows] != query] = -1
        return rows

    def items(self, start: int = 0, stop: int | None = None) -> list[int]:
        """Return the keys of rows start…stop."""
        keys: list[int] = self.keys[start:stop].tolist()
        return keys


class StringIndex:
    """Rows of string keys: CRC-32 proposes, the bytes decide."""

    __slots__ = (
        "base",
        "hashes",
        "hashes_view",
        "offsets",
        "offsets_view",
        "rows",
        "rows_view",
        "shift",
        "starts",
        "text",
        "where",
    )

    def __init__(
        self,
        hashes: NDArray[np.uint32],
        rows: NDArray[np.uint32],
        offsets: NDArray[Any],
        text: NDArray[np.uint8],
        starts: NDArray[np.uint32],
        base: int,
        shift: int,
        where: str,
    ) -> None:
        self.where: str = where
        self.hashes: NDArray[np.uint32] = hashes
        self.rows: NDArray[np.uint32] = rows
        self.offsets: NDArray[Any] = offsets
        self.hashes_view: memoryview[int] = hashes.data
        self.rows_view: memoryview[int] = rows.data
        self.offsets_view: memoryview[int] = offsets.data
        self.text: memoryview[int] = text.data
        self.starts: memoryview[int] = starts.data
        self.base: int = base
        self.shift: int = shift

    def __len__(self) -> int:
        return len(self.hashes)

    def _bytes(self, row: int) -> bytes:
        return bytes(self.text[self.offsets_view[row] : self.offsets_view[row + 1]])

    def row_of(self, item: object) -> int:
        """Return the row of a string, or of the decimal string of an int; else -1."""
        text = _text(item)
        if text is None:
            return -1
        wanted = _encode(text)
        key = zlib.crc32(wanted)
        bucket = (key - self.base) >> self.shift
        if not 0 <= bucket < len(self.starts) - 1:
            return -1
        low, high = self.starts[bucket], self.starts[bucket + 1]
        low = bisect_left(self.hashes_view, key, low, high)
        high = bisect_right(self.hashes_view, key, low, high)
        while low < high:
            middle = (low + high) // 2
            row = self.rows_view[middle]
            found = self._bytes(row)
            if found == wanted:
                return row
            if found < wanted:
                low = middle + 1
            else:
                high = middle
        return -1

    def rows_of(self, items: Any) -> NDArray[np.int64]:
        """Return the row of each item, -1 for unknown; in the shape of `items` where that is an array."""
        query = as_query(items)
        return self._find(query) if isinstance(query, list) else _find_each(query, self._find)

    def _find(self, items: list[Any]) -> NDArray[np.int64]:
        texts = [item if type(item) is str else _text(item) for item in items]
        rows = np.full(len(texts), -1, np.int64)
        if len(self.hashes) == 0:
            return rows
        encoded = [b"" if text is None else _encode(text) for text in texts]
        hashes = np.fromiter(map(zlib.crc32, encoded), np.uint32, len(encoded))
        places = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        asked = np.array([text is not None for text in texts], bool)
        candidates = np.flatnonzero(asked & (self.hashes[places] == hashes))
        proposed = self.rows[places[candidates]]
        right = self._equal(proposed, [encoded[place] for place in candidates.tolist()])
        rows[candidates[right]] = proposed[right]
        for place in candidates[~right].tolist():  # an unknown string, or one that shares its hash with another
            rows[place] = self.row_of(texts[place])
        return rows

    def _equal(self, rows: NDArray[np.uint32], wanted: list[bytes]) -> NDArray[np.bool_]:
        """Say for each row whether its string is the wanted one, all bytes compared at once."""
        starts = self.offsets[rows].astype(np.int64)
        lengths = self.offsets[rows.astype(np.int64) + 1].astype(np.int64) - starts
        same = lengths == np.fromiter(map(len, wanted), np.int64, len(wanted))
        lengths = np.where(same, lengths, 0)
        ends = np.cumsum(lengths)
        where = np.repeat(starts - ends + lengths, lengths) + np.arange(int(ends[-1]) if len(ends) else 0)
        text = b"".join(string for string, fits in zip(wanted, same.tolist(), strict=True) if fits)
        differing = np.zeros(len(where) + 1, np.int64)
        np.cumsum(np.asarray(self.text)[where] != np.frombuffer(text, np.uint8), out=differing[1:])
        equal: NDArray[np.bool_] = same & (differing[ends] == differing[ends - lengths])
        return equal

    def items(self, start: int = 0, stop: int | None = None) -> list[str]:
        """
        Return the strings of rows start…stop, decoded afresh.

        Raises:
            CorruptTableError: one of them is no UTF-8.
        """
        start, stop, _ = slice(start, stop).indices(len(self.hashes))
        if stop <= start:
            return []
        ends = self.offsets[start : stop + 1].tolist()
        text = bytes(self.text[ends[0] : ends[-1]])
        try:
            return [_decode(text[begin - ends[0] : end - ends[0]]) for begin, end in pairwise(ends)]
        except UnicodeDecodeError as error:
            raise CorruptTableError(
                f"'{self.where}' holds a key between rows {start} and {stop} that is no UTF-8: {error}. The file was "
                "left untouched; its checksum is right, so it was written so. Write it anew, or remove it."
            ) from error


def _key(item: object) -> int | None:
    """Return the key of an item in a table of integers; None for what cannot be one."""
    found = item_of(item)
    number = parse_decimal(found) if isinstance(found, str) else found
    return number if isinstance(number, int) and INT64_MIN <= number <= INT64_MAX else None


def _text(item: object) -> str | None:
    """Return the key of an item in a table of strings; None for what is neither string nor integer."""
    found = item_of(item)
    if isinstance(found, int):
        return str(found) if -LARGEST_SPELLED < found < LARGEST_SPELLED else None
    return found if isinstance(found, str) else None


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # JSON can spell half a surrogate pair


def _decode(text: bytes) -> str:
    return text.decode("utf-8", "surrogatepass")


def _find_each(query: NDArray[Any], find: Any) -> NDArray[np.int64]:
    rows: NDArray[np.int64] = find(query.reshape(-1).tolist()).reshape(query.shape)
    return rows
