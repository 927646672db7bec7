"""
The bytes of a table: items, codes, header and weights, put together in one place.

`TableData` is a table before it is a file. Its digest is known before its name is, so that a lineage can be named
after its first table.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset.errors import TableError
from semid_dataset.format.id_json import json_chunks
from semid_dataset.format.tensors import IntIndex, StringIndex, build_index, open_index, serialize
from semid_dataset.table.header import TableHeader

if TYPE_CHECKING:
    from semid_dataset.table.table import SemanticIdTable

__all__ = ["WEIGHTS", "TableData", "build_table_buffers", "content_digests", "json_keys"]

WEIGHTS = "quantizer."  # prefix of the weights' names in the file
DERIVED = frozenset({"key_frame", "key_starts", "key_hashes", "key_rows"})  # the index over the keys: no content


def content_digests(arrays: Mapping[str, NDArray[Any]], header: TableHeader) -> tuple[str, str]:
    """
    Return the digests of a table by the first scheme and by the second.

    The first is the SHA-256 of keys, codes and weights: names, dtypes, shapes, bytes. The second covers what else
    decides a code as well: the quantizer's description (its kind, width of search, weight of prefixes, scale, fusion)
    and whether IDs are unique. Dates, reasons and the index over the keys may differ between equal tables.

    Args:
        arrays: of the file, by name.
        header: of the table; of it only `quantizer` and `unique` count.
    """
    first = hashlib.sha256()
    for name in sorted(arrays.keys() - DERIVED):
        array = np.ascontiguousarray(arrays[name])
        first.update(f"{name} {array.dtype.str} {arrays[name].shape}\n".encode())
        first.update(array.reshape(-1).view(np.uint8).data)
    quantizer = None if header.quantizer is None else {"kind": "residual", **header.quantizer}
    decides = {"content": first.hexdigest(), "quantizer": quantizer, "unique": header.unique}
    second = hashlib.sha256(b"semid_dataset digest 2\n" + json.dumps(decides, sort_keys=True).encode())
    return first.hexdigest(), second.hexdigest()


@dataclass(frozen=True)
class TableData:
    """
    A table that is no file yet.

    Attributes:
        items: n ints or strings, in any order.
        codes: (n, levels) uint8 or uint16.
        header: what it says about itself; digest and hash of its JSON are filled in here.
        weights: the quantizer's arrays by name.
    """

    items: NDArray[Any] | Sequence[str | int]
    codes: NDArray[Any]
    header: TableHeader = field(default_factory=TableHeader)
    weights: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @cached_property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """
        The arrays of the file, in the order of its keys.

        Raises:
            TableError: an item is given twice or is neither int nor string, or the codes do not fit the items.
        """
        items, codes = self.items, self.codes
        if codes.ndim != 2 or len(codes) != len(items) or codes.dtype not in (np.uint8, np.uint16):
            raise TableError(
                f"Codes of shape {codes.shape} and dtype {codes.dtype} for {len(items)} items; "
                "expected (items, levels) uint8 or uint16."
            )
        keys, order = build_index(items)
        if (order[1:] < order[:-1]).any():
            codes = codes[order]
        arrays: dict[str, NDArray[Any]] = {**keys, "codes": codes}
        for name, array in self.weights.items():
            arrays[WEIGHTS + name] = array
        return arrays

    @cached_property
    def digest(self) -> str:
        """Of what decides a code; it does not depend on the lineage's name."""
        return content_digests(self.arrays, self.header)[1]

    @cached_property
    def json_sha256(self) -> str:
        """SHA-256 of the `semantic_id_dict.json` with these IDs."""
        arrays = self.arrays
        index = open_index({name: array for name, array in arrays.items() if name.startswith("key")}, "a new table")
        text = hashlib.sha256()
        for chunk in json_chunks(json_keys(index), arrays["codes"]):
            text.update(chunk)
        return text.hexdigest()

    def named(self, lineage: str, *, branched_off: str = "") -> "TableData":
        """Return the same table under the name of a lineage, which may be a branch of another one."""
        origins = (branched_off, *self.header.origins) if branched_off else self.header.origins
        data = replace(self, header=replace(self.header, lineage=lineage, origins=origins))
        for name in ("arrays", "digest", "json_sha256"):  # neither depends on the name
            if name in self.__dict__:
                data.__dict__[name] = self.__dict__[name]
        return data

    def buffers(self) -> list[bytes | memoryview]:
        """
        Return buffers whose concatenation is the file. Large arrays are not copied.

        Raises:
            TableError: as `arrays`.
        """
        header = replace(self.header, digest=self.digest, json_sha256=self.json_sha256, scheme=2)
        return serialize(self.arrays, header.to_json())

    def in_memory(self, status: str, reason: str = "") -> "SemanticIdTable":
        """Return it as a table that lives in this process alone."""
        from semid_dataset.table.table import SemanticIdTable

        return SemanticIdTable.from_buffer(b"".join(self.buffers()), status=status, reason=reason)


def json_keys(index: IntIndex | StringIndex) -> NDArray[np.int64] | StringIndex:
    """Return what `json_chunks` takes for the keys of a table."""
    return index.keys if isinstance(index, IntIndex) else index


def build_table_buffers(
    items: NDArray[Any] | Sequence[str | int],
    codes: NDArray[Any],
    *,
    info: Mapping[str, Any] | None = None,
    weights: Mapping[str, NDArray[Any]] | None = None,
) -> list[bytes | memoryview]:
    """
    Return buffers whose concatenation is a table file.

    Args:
        items, codes, weights: as in `TableData`.
        info: what to say about it, as JSON types; `digest` and `json_sha256` are filled in here.

    Raises:
        TableError: an item is given twice or is neither int nor string, or the codes do not fit the items.
        CorruptTableError: the info is no header.
    """
    given = {key: value for key, value in (info or {}).items() if key not in {"digest", "digest_scheme", "json_sha256"}}
    return TableData(items, codes, TableHeader.from_json(given, "a new table"), weights or {}).buffers()
