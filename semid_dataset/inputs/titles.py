"""
What people call items: JSON, JSON lines, CSV, TSV or a column of parquet, with the line where something is wrong.

Lines end at the newline alone. Other characters that some tools end lines at (NEL, U+2028, form feeds) are parts of
titles, and so is a quotation mark in a TSV, which knows no quoting.
"""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from semid_dataset.errors import EmbeddingError
from semid_dataset.inputs._columns import ITEM_NAMES, named
from semid_dataset.inputs._file import read_whole
from semid_dataset.inputs.discover import COMPRESSED
from semid_dataset.inputs.formats.parquet import read_table
from semid_dataset.objects import item_of

__all__ = ["TITLE_NAMES", "read_titles"]

TITLE_NAMES = ("title", "name", "item_title", "item_name", "product_name", "text")


def read_titles(path: Path, column: str = "", items: str = "") -> dict[str, str]:
    """
    Return the title of every item that a file names.

    Args:
        path: `.json` {item: title}; `.jsonl` or `.ndjson` of objects with an item and a title; `.parquet`; `.tsv`
            (item, tab, title); anything else is CSV (item, title), with or without a line of names. Any of them may be
            compressed.
        column: the column (key) that holds the titles; "" goes by `TITLE_NAMES`, in a CSV by the place.
        items: the column that holds the items, likewise.

    Raises:
        EmbeddingError: the file cannot be read as titles; the message names the line.
        OSError: it cannot be opened.
    """
    ending = Path(COMPRESSED.sub("", path.name)).suffix.lower()
    if ending in {".parquet", ".pq"}:
        return _of_parquet(path, column, items)
    raw = read_whole(path)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise EmbeddingError(f"'{path}', line {line}: no UTF-8 ({error.reason}). Save titles as UTF-8.") from None
    if ending == ".json" and (column or items):
        raise EmbeddingError(f"'{path}' is an object of titles by item, which has no columns. Leave --title out.")
    if ending == ".json":
        return _of_object(text, path)
    if ending in {".jsonl", ".ndjson"}:
        pairs = _of_lines(text, path, column, items)
    else:
        rows = _of_tabs(text, path) if ending == ".tsv" else _of_commas(text, path)
        pairs = _of_columns(rows, path, column, items)
    return {item: title for _, item, title in pairs if title}


def _of_object(text: str, path: Path) -> dict[str, str]:
    titles = _parsed(text, path, 1)
    if not isinstance(titles, dict):
        raise EmbeddingError(f"'{path}' holds a {type(titles).__name__}; wanted: an object of titles by item.")
    return {str(item): _title(title, path, f"item {item!r:.80}") for item, title in titles.items() if title is not None}


def _parsed(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise EmbeddingError(f"'{path}', line {line + error.lineno - 1}: no JSON ({error.msg}).") from None
    except RecursionError:
        raise EmbeddingError(f"'{path}', line {line}: nested too deeply.") from None


def _title(value: Any, path: Path, where: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(one, str) for one in value):  # as some Amazon files have them
        return " ".join(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise EmbeddingError(f"'{path}', {where}: a title is text, not {value!r:.80}.")


def _of_lines(text: str, path: Path, column: str, items: str) -> Iterator[tuple[int, str, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        row = _parsed(line, path, number)
        if not isinstance(row, dict):
            raise EmbeddingError(f"'{path}', line {number}: wanted an object with an item and a title.")
        item, title = _columns(list(row), f"'{path}', line {number}", column, items)
        if row[title] is not None:
            yield number, str(row[item]), _title(row[title], path, f"line {number}")


def _columns(names: list[str], where: str, column: str, items: str) -> tuple[str, str]:
    """Return the names of the columns of items and of titles; raises EmbeddingError where there is none."""
    title = named(names, [column] if column else TITLE_NAMES)
    item = named([name for name in names if name != title], [items] if items else ITEM_NAMES)
    if item is None or title is None:
        raise EmbeddingError(
            f"{where}: neither an item nor its title can be told from {', '.join(map(str, names))}. Wanted: "
            f"{items or 'item_id (or another name that items have)'} and {column or ' or '.join(TITLE_NAMES[:2])}. "
            "Name them: --title COLUMN, --items COLUMN."
        )
    return item, title


def _of_parquet(path: Path, column: str, items: str) -> dict[str, str]:
    chosen: list[str] = []

    def columns(schema: Any) -> list[str]:
        chosen.extend(_columns(list(schema.names), f"'{path}'", column, items))
        return chosen

    table = read_table(path, columns)
    keys, titles = (table.column(name).to_pylist() for name in chosen)
    return {
        str(item_of(key)): _title(title, path, f"row {row}")
        for row, (key, title) in enumerate(zip(keys, titles, strict=True))
        if key is not None and title
    }


def _of_columns(
    rows: Iterator[tuple[int, list[str]]], path: Path, column: str, items: str
) -> Iterator[tuple[int, str, str]]:
    """Yield line, item and title of rows of fields: the first two, or those under names that the first row holds."""
    first = next(rows, None)
    if first is None:
        return
    item, title = 0, 1
    if column or items or (len(first[1]) > 2 and named(first[1], TITLE_NAMES) and named(first[1], ITEM_NAMES)):
        item, title = map(first[1].index, _columns(first[1], f"'{path}', line 1", column, items))
    else:
        yield first[0], first[1][0], first[1][1]
    for number, fields in rows:
        if len(fields) > max(item, title):
            yield number, fields[item], fields[title]


def _of_tabs(text: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(text.split("\n"), 1):
        fields = line.removesuffix("\r").split("\t")
        if len(fields) >= 2:
            yield number, fields
        elif line.strip() and number == 1:
            raise EmbeddingError(f"'{path}', line 1: no tab between an item and its title. Is it a .csv?")


def _of_commas(text: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    last = 0
    try:
        for row in rows:
            if len(row) >= 2:
                yield last + 1, row
            last = rows.line_num
    except csv.Error as error:
        raise EmbeddingError(
            f"'{path}', line {last + 1}: no CSV ({error}). A quotation mark within a title is written twice, and the "
            "title between quotation marks; a .tsv needs none."
        ) from None
