"""IDs as text for spreadsheets and SQL: item_id, code_0, code_1, ..., a row an item."""

import csv
import io
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from semid_dataset import _files as files
from semid_dataset.errors import TableError
from semid_dataset.exports._common import BLOCK_ITEMS, How, read_bytes, table_of
from semid_dataset.table.table import SemanticIdTable

__all__ = ["read_csv", "write_csv"]

CODE = re.compile(r"[0-9]{1,5}")


def write_csv(table: SemanticIdTable, path: Path, style: str, first: int) -> list[Path]:
    """Write item_id and a column a level; return the files written."""
    files.replace_file(path, _blocks(table))
    return [path]


def _blocks(table: SemanticIdTable) -> Iterator[bytes]:
    names: list[object] = ["item_id", *(f"code_{level}" for level in range(table.levels))]
    rows = iter(table.items())
    block = [names]
    while block:
        text = io.StringIO(newline="")
        # csv quotes no carriage return of its own accord, and reads it as the end of a line.
        odd = any("\r" in str(row[0]) for row in block)
        made = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC if odd else csv.QUOTE_MINIMAL)
        made.writerows(block)
        yield text.getvalue().encode()
        block = [[item, *codes] for item, codes in islice(rows, BLOCK_ITEMS)]


def read_csv(path: Path, how: How) -> SemanticIdTable:
    """Read by position: an item, then a code a level, under a line of names; raises TableError where it is not that."""
    try:
        rows = csv.reader(io.StringIO(read_bytes(path).decode("utf-8-sig"), newline=""), strict=True)
        names = next(rows, [])
        items: list[str] = []
        codes: list[list[int]] = []
        for row in rows:
            if len(row) != len(names) or not all(map(CODE.fullmatch, row[1:])):
                raise TableError(
                    f"'{path}', line {rows.line_num}: {','.join(row)!r:.80} is no item with {len(names) - 1} codes. "
                    "Wanted: item_id,code_0,code_1,... and such rows below."
                )
            items.append(row[0])
            codes.append([int(code) for code in row[1:]])
    except (csv.Error, UnicodeDecodeError) as error:
        raise TableError(f"'{path}' is no CSV: {error}.") from None
    if len(names) < 2 or not any(map(str.isalpha, names[1])):
        raise TableError(f"'{path}' does not begin with a line of names, such as item_id,code_0,code_1.")
    return table_of(items, np.array(codes, np.int64).reshape(len(items), len(names) - 1), path, how)
