"""
What people call items: JSON, JSON lines, CSV or TSV, with the line where something is wrong.

Lines end at the newline alone. Other characters that some tools end lines at (NEL, U+2028, form feeds) are parts of
titles, and so is a quotation mark in a TSV, which knows no quoting.
"""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from semid_dataset import _files as files
from semid_dataset.errors import EmbeddingError
from semid_dataset.inputs._columns import ITEM_NAMES, named

__all__ = ["TITLE_NAMES", "read_titles"]

TITLE_NAMES = ("title", "name", "item_title", "item_name", "product_name", "text")


def read_titles(path: Path) -> dict[str, str]:
    """
    Return the title of every item that a file names.

    Args:
        path: `.json` {item: title}; `.jsonl` or `.ndjson` of objects with an item and a title; `.tsv` (item, tab,
            title); anything else is CSV (item, title), with or without a line of names.

    Raises:
        EmbeddingError: the file cannot be read as titles; the message names the line.
        OSError: it cannot be opened.
    """
    raw = bytes(files.map_file(path, mmap=False, follow=True)[0])
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise EmbeddingError(f"'{path}', line {line}: no UTF-8 ({error.reason}). Save titles as UTF-8.") from None
    ending = path.suffix.lower()
    if ending == ".json":
        return _of_object(text, path)
    if ending in {".jsonl", ".ndjson"}:
        pairs = _of_lines(text, path)
    elif ending == ".tsv":
        pairs = _of_tabs(text, path)
    else:
        pairs = _of_commas(text, path)
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


def _of_lines(text: str, path: Path) -> Iterator[tuple[int, str, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        row = _parsed(line, path, number)
        if not isinstance(row, dict):
            raise EmbeddingError(f"'{path}', line {number}: wanted an object with an item and a title.")
        item, title = named(list(row), ITEM_NAMES), named(list(row), TITLE_NAMES)
        if item is None or title is None:
            raise EmbeddingError(
                f"'{path}', line {number}: neither an item nor its title can be told from {', '.join(map(str, row))}. "
                f"Wanted: item_id (or another name that items have) and {' or '.join(TITLE_NAMES[:2])}."
            )
        if row[title] is not None:
            yield number, str(row[item]), _title(row[title], path, f"line {number}")


def _of_tabs(text: str, path: Path) -> Iterator[tuple[int, str, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        fields = line.removesuffix("\r").split("\t")
        if len(fields) >= 2:
            yield number, fields[0], fields[1]
        elif line.strip() and number == 1:
            raise EmbeddingError(f"'{path}', line 1: no tab between an item and its title. Is it a .csv?")


def _of_commas(text: str, path: Path) -> Iterator[tuple[int, str, str]]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    last = 0
    try:
        for row in rows:
            if len(row) >= 2:
                yield last + 1, row[0], row[1]
            last = rows.line_num
    except csv.Error as error:
        raise EmbeddingError(
            f"'{path}', line {last + 1}: no CSV ({error}). A quotation mark within a title is written twice, and the "
            "title between quotation marks; a .tsv needs none."
        ) from None
