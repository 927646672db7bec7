"""IDs as a column of parquet: for TorchEasyRec and any data frame, and as other tools write them."""

import importlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from semid_dataset import _files as files
from semid_dataset.errors import ConfigError, TableError
from semid_dataset.exports._common import BLOCK_ITEMS, How, agreeing, as_table_errors, table_of
from semid_dataset.exports.numbers import flat_ids
from semid_dataset.exports.tokens import TOKEN
from semid_dataset.table.table import SemanticIdTable

__all__ = ["read_parquet", "write_parquet"]

CODE = re.compile(r"[0-9]{1,5}")
CODES_TEXT = re.compile(r"\s*[\[(]?\s*[0-9]{1,5}(?:\s*[,;\s_-]\s*[0-9]{1,5})*\s*,?\s*[\])]?\s*")
CODES = ("codes", "semantic_id", "semantic_ids", "sid", "codebook")  # names of a column of codes, in this order
STATED = b"semid_dataset.codebook_sizes"  # in the metadata of a parquet file's schema: JSON


def write_parquet(table: SemanticIdTable, path: Path, style: str, first: int) -> list[Path]:
    """Write item_id, codes and offset_codes; return the files written."""
    arrow, parquet = _arrow()
    keys = table.keys_array
    schema = arrow.schema(
        [
            ("item_id", arrow.int64() if isinstance(keys, np.ndarray) else arrow.string()),
            ("codes", arrow.list_(arrow.int64())),
            ("offset_codes", arrow.list_(arrow.int64())),
        ]
    )
    sizes = table.codebook_sizes
    if table.sizes_stated:
        schema = schema.with_metadata({STATED: json.dumps(list(sizes))})
    sink = arrow.BufferOutputStream()
    with parquet.ParquetWriter(sink, schema) as writer:
        for start in range(0, max(len(table), 1), BLOCK_ITEMS):
            codes = table.codes_array[start : start + BLOCK_ITEMS]
            # Offsets that begin at 0, whatever `first`: the column is what TorchEasyRec calls offset_codebook.
            lists = [_lists(arrow, codes.astype(np.int64)), _lists(arrow, flat_ids(codes, sizes, first=0))]
            block = arrow.array(keys[start : start + BLOCK_ITEMS], schema.field("item_id").type)
            writer.write_table(arrow.table([block, *lists], schema=schema))
    files.replace_file(path, [memoryview(sink.getvalue())])
    return [path]


def _lists(arrow: Any, rows: NDArray[np.int64]) -> Any:
    offsets = np.arange(0, rows.size + 1, rows.shape[1], dtype=np.int32)
    return arrow.ListArray.from_arrays(arrow.array(offsets), arrow.array(rows.reshape(-1)))


def read_parquet(path: Path, how: How) -> SemanticIdTable:
    """Read item_id, codes and offset_codes; raises TableError where the file holds none."""
    from semid_dataset.inputs.formats.parquet import read_table

    arrow, _ = _arrow()
    names: list[str] = []

    def chosen(schema: Any) -> list[str]:
        names.extend(_columns_of_ids(schema.names, path))
        return names

    with as_table_errors():
        files.map_file(path, follow=True)
        table = read_table(path, chosen)
    stated = (table.schema.metadata or {}).get(STATED)
    if stated is not None:
        how = replace(how, sizes=agreeing(path, json.loads(stated), how))
    items, codes = (table.column(name) for name in names)
    return table_of(items.to_pylist(), _codes_column(arrow, codes.combine_chunks(), path), path, how)


def _codes_column(arrow: Any, column: Any, path: Path) -> NDArray[Any]:
    """Return the codes (n, levels) of a column of lists of numbers, of lists of their digits, or of text."""
    kind = column.type
    if arrow.types.is_string(kind) or arrow.types.is_large_string(kind) or arrow.types.is_dictionary(kind):
        rows = [_spelled_codes(text, row, path) for row, text in enumerate(column.to_pylist())]
        column = arrow.array(rows, arrow.list_(arrow.int64()))
    elif not (arrow.types.is_list(kind) or arrow.types.is_large_list(kind) or arrow.types.is_fixed_size_list(kind)):
        raise TableError(f"'{path}' has {kind} under codes; wanted: lists of numbers, or text such as '217,163,130'.")
    lengths = Counter(-1 if length is None else length for length in _lengths(column))
    if len(lengths) > 1 or -1 in lengths:
        raise TableError(_ragged(path, lengths))
    levels = next(iter(lengths), 4)
    flat = column.flatten()
    if arrow.types.is_string(flat.type) or arrow.types.is_large_string(flat.type):
        texts = flat.to_pylist()
        if wrong := next((text for text in texts if text is None or not CODE.fullmatch(text)), None) or None in texts:
            raise TableError(f"'{path}' has {wrong!r:.80} among its codes, which is no whole number.")
        return np.array([int(text) for text in texts], np.int64).reshape(-1, levels)
    codes: NDArray[Any] = flat.to_numpy(zero_copy_only=False).reshape(-1, levels)
    if codes.dtype.kind == "f" and (codes == np.floor(codes)).all():  # as pandas makes of integers
        codes = codes.astype(np.int64)
    return codes


def _lengths(column: Any) -> list[int | None]:
    if hasattr(column, "value_lengths"):
        return cast("list[int | None]", column.value_lengths().to_pylist())
    return [None if row is None else len(row) for row in column.to_pylist()]


def _spelled_codes(text: object, row: int, path: Path) -> list[int]:
    """Return the codes that a text spells: '217,163,130', '[217, 163, 130]', '217 163 130', '<a_217><b_163><c_130>'."""
    if isinstance(text, str):
        if tokens := [match[2] or match[4] for match in TOKEN.finditer(text)]:
            if not TOKEN.sub("", text).strip(" ,"):
                return [int(code) for code in tokens]
        elif CODES_TEXT.fullmatch(text):
            return [int(code) for code in CODE.findall(text)]
    raise TableError(f"'{path}', row {row}: {text!r:.80} is no list of codes, nor one written as 217,163,130.")


def _ragged(path: Path, lengths: Mapping[int, int]) -> str:
    """Say that IDs differ in length, and what to do where some of them carry a suffix."""
    found = ", ".join(f"{count:,} with {'none' if length < 0 else length}" for length, count in sorted(lengths.items()))
    message = f"'{path}' holds IDs of different lengths: {found} codes. All must have as many levels."
    if len(lengths) == 2 and min(lengths) > 0 and max(lengths) == min(lengths) + 1:
        message += (
            " Where colliding items alone carry a suffix, write one for every item (0 where there was none), or leave "
            "it out for all."
        )
    return message


def _columns_of_ids(names: Sequence[str], path: Path) -> list[str]:
    """Return the columns of items and of codes."""
    from semid_dataset.inputs._columns import ITEM_NAMES, named

    item = named([name for name in names if name not in CODES], ITEM_NAMES)
    codes = next((name for name in CODES if name in names), None)
    if item is None or codes is None:
        raise TableError(f"'{path}' has the columns {', '.join(names)}; wanted: item_id and codes.")
    return [item, codes]


def _arrow() -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ConfigError("Parquet needs pyarrow: pip install pyarrow.") from None
