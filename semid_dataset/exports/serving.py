"""Catalogues for engines that decode IDs while they serve: what ID is which item, one line or one key an ID."""

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from semid_dataset import _files as files
from semid_dataset.errors import TableError
from semid_dataset.exports._common import BLOCK_ITEMS, How, read_bytes
from semid_dataset.exports.numbers import flat_ids
from semid_dataset.table.table import SemanticIdTable

__all__ = ["read_catalog", "read_sid_lines", "write_catalog", "write_sid_lines"]


def write_catalog(table: SemanticIdTable, path: Path, style: str, first: int) -> list[Path]:
    """Write {"a,b,c": [items]}, in the order of the IDs; return the files written."""
    files.replace_file(path, _catalog(table))
    return [path]


def _catalog(table: SemanticIdTable) -> Iterator[bytes]:
    """Yield the object piece by piece; items that share an ID stand in one list."""
    order = np.lexsort(table.codes_array.T[::-1]).tolist()
    keys = table.keys_array
    named = keys.tolist() if isinstance(keys, np.ndarray) else keys
    opening = "{"
    for codes, rows in groupby(order, key=lambda row: tuple(table.codes_array[row].tolist())):
        text = json.dumps([named[row] for row in rows], separators=(",", ":"))
        yield f'{opening}"{",".join(map(str, codes))}":{text}'.encode()
        opening = ","
    yield b"}" if opening == "," else b"{}"


def read_catalog(path: Path, how: How) -> SemanticIdTable:
    """Read {"a,b,c": [items]}; raises TableError where the file holds none."""
    try:
        catalog = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise TableError(f"'{path}' is no valid JSON: {error}.") from None
    ids: dict[Any, list[int]] = {}
    for text, items in (catalog if isinstance(catalog, dict) else {"": catalog}).items():
        codes = text.split(",")
        if not isinstance(items, list) or not all(code.isdecimal() and code.isascii() for code in codes):
            raise TableError(f"'{path}', key {text!r:.80}: wanted codes with commas between them, and a list of items.")
        for item in items:
            if item in ids if isinstance(item, int | str) else True:
                raise TableError(f"'{path}', key {text!r:.80}: {item!r:.80} is no item, or has another ID already.")
            ids[item] = [int(code) for code in codes]
    return SemanticIdTable.from_mapping(ids, reason=f"read from {path}", codebook_sizes=how.sizes)


def write_sid_lines(table: SemanticIdTable, path: Path, style: str, first: int) -> list[Path]:
    """Write a line an item: item_id, token_ids (of one vocabulary, from `first` on), its codes as metadata."""
    files.replace_file(path, _sid_lines(table, first))
    return [path]


def _sid_lines(table: SemanticIdTable, first: int) -> Iterator[bytes]:
    items = iter(table)
    if not len(table):
        yield b"\n"  # a file without a byte is one that was cut off
    for start in range(0, len(table), BLOCK_ITEMS):
        codes = table.codes_array[start : start + BLOCK_ITEMS]
        flat = flat_ids(codes, table.codebook_sizes, first=first)
        lines = (
            json.dumps({"item_id": item, "token_ids": ids, "metadata": {"codes": row}}, separators=(",", ":"))
            for ids, row, item in zip(flat.tolist(), codes.tolist(), items, strict=False)
        )
        yield ("\n".join(lines) + "\n").encode()


def read_sid_lines(path: Path, how: How) -> SemanticIdTable:
    """Read items and the codes in their metadata: where a vocabulary begins, token_ids alone do not say."""
    ids: dict[Any, Any] = {}
    lines = read_bytes(path).splitlines()
    if not lines:
        raise TableError(f"'{path}' is empty.")
    for number, line in enumerate([] if lines == [b""] else lines, 1):
        try:
            entry = json.loads(line)
            item, codes = entry["item_id"], entry["metadata"]["codes"]
            again = item in ids
        except (ValueError, LookupError, TypeError, RecursionError):
            raise TableError(
                f"'{path}', line {number}: wanted item_id and, in its metadata, codes. token_ids alone do not say "
                "where their vocabulary begins: read them with unflatten_ids(ids, sizes, first=...)."
            ) from None
        if again:
            raise TableError(f"'{path}', line {number}: item {item!r:.80} has an ID already.")
        ids[item] = codes
    return SemanticIdTable.from_mapping(ids, reason=f"read from {path}", codebook_sizes=how.sizes)
