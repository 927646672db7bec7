"""Safetensors: named arrays behind a header of JSON. The only reader of such files that hold embeddings."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from semid_dataset.errors import EmbeddingError
from semid_dataset.inputs._file import ForwardFile
from semid_dataset.inputs.formats._matrix import ArrayFile, Stored

__all__ = ["Safetensors"]

MAX_HEADER = 100_000_000  # bytes, as in safetensors' own reader
WIDTHS = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E5M2": "u1", "I64": "<i8", "I32": "<i4", "I16": "<i2",
    "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1",
}  # fmt: skip
METADATA = "__metadata__"
UPPER_HALF: dict[str, tuple[Any, int, Any]] = {
    "BF16": (np.uint32, 16, np.float32),
    "F8_E5M2": (np.uint16, 8, np.float16),
}  # of which float they are


class Safetensors(ArrayFile):
    """See `protocols.Format`."""

    name: ClassVar[str] = "safetensors"
    suffixes: ClassVar[tuple[str, ...]] = (".safetensors",)
    starts: ClassVar[bytes] = rb".{4}\x00\x00\x00\x00\{"

    @contextmanager
    def arrays(self, file: ForwardFile) -> Iterator[Mapping[str, Stored]]:
        """Return the arrays of a file by name, read when they are asked for."""
        length = int.from_bytes(file.at(0, 8), "little") if file.size >= 8 else -1
        if not 2 <= length <= min(MAX_HEADER, file.size - 8):
            raise EmbeddingError(f"'{file.path}' is no safetensors file.")
        try:
            header = json.loads(file.at(8, length))
            found = {name: _stored(file, 8 + length, name, entry) for name, entry in header.items() if name != METADATA}
            end = 8 + length + max((header[name]["data_offsets"][1] for name in found), default=0)
        except EmbeddingError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise EmbeddingError(f"'{file.path}' is no safetensors file that can be read: {error}.") from None
        if end < file.size:
            raise EmbeddingError(
                f"'{file.path}' goes on for {file.size - end} bytes after its arrays. Nothing was read. Copy it again."
            )
        yield found


def _stored(file: ForwardFile, data: int, name: str, entry: dict[str, Any]) -> Stored:
    """Return the array that an entry of the header describes; `data` is where the bytes of all of them begin."""
    kind, shape, (begin, end) = str(entry["dtype"]), tuple(map(int, entry["shape"])), entry["data_offsets"]
    width = WIDTHS.get(kind)
    row = (0 if width is None else np.dtype(width).itemsize) * math.prod(shape[1:])
    if not 0 <= begin <= end <= file.size - data:
        raise EmbeddingError(f"'{file.path}' is cut off: the bytes of {name} are not there. Copy it again.")
    if min(shape, default=0) < 0 or (width is not None and row * (shape[0] if shape else 1) != end - begin):
        raise EmbeddingError(f"'{file.path}' is no safetensors file that can be read: {name} is not {list(shape)}.")

    def rows(first: int, last: int) -> NDArray[Any]:
        if width is None:
            raise EmbeddingError(f"'{file.path}' holds {kind} in {name}, which is not read. Write it as F32 or I64.")
        flat: NDArray[Any] = np.frombuffer(file.at(data + begin + first * row, (last - first) * row), width)
        if kind in UPPER_HALF:
            wide, bits, made = UPPER_HALF[kind]
            flat = (flat.astype(wide) << wide(bits)).view(made)
        return flat.reshape(last - first, *shape[1:]) if shape else flat

    return Stored(shape, kind, width is not None, width is not None and "F" in kind, rows)
