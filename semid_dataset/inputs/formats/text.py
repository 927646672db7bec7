"""
Text with a row an item and something between the fields: CSV, TSV, what `DataFrame.to_csv` and `numpy.savetxt` write.

A vector is a run of numbered columns (`emb_0, emb_1, ...`, or `0, 1, ...` as pandas numbers the columns of a matrix),
or one field with a list (`[0.1, 0.2]`, `0.1 0.2`). Names decide which column holds the items, as in every format. A
file whose first line holds numbers alone is a matrix without names, and its items come from elsewhere.
"""

import codecs
import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from semid_dataset.errors import EmbeddingError
from semid_dataset.inputs._columns import INDEX, Column, chosen
from semid_dataset.inputs._file import ForwardFile
from semid_dataset.protocols import Partition, Sink

__all__ = ["Text"]

NUMBERED = re.compile(r"(.*?)[_.\- ]?([0-9]{1,6})")
AROUND = "[]() \t\r\n"  # of a list in one field
SPELLED = re.compile(r"[\s,;|]+")  # between the numbers of one


class Text:
    """See `protocols.Format`."""

    name: ClassVar[str] = "text"
    suffixes: ClassVar[tuple[str, ...]] = (".csv", ".tsv", ".txt")
    starts: ClassVar[bytes] = b""

    def size(self, whole: Partition, dim: int) -> int:
        """Return as many rows as there would be if a number took eight characters."""
        with ForwardFile(Path(whole.path), hashed=False) as file:
            return file.size // (8 * dim)

    def partitions(self, whole: Partition, rows: int) -> list[Partition]:
        """Return all of it: where its lines end is known by who has read it."""
        with ForwardFile(Path(whole.path), hashed=False) as file:
            return [replace(whole, bytes=file.size)]

    def read(self, part: Partition, sink: Sink, progress: Callable[[int], None], *, digest: bool = False) -> str:
        """Send the rows to `sink`, a batch at a time."""
        path = Path(part.path)
        with ForwardFile(path, progress, hashed=digest) as file:
            try:
                _send(file, part, sink)
            except UnicodeDecodeError as error:
                raise EmbeddingError(f"'{path}' is no UTF-8 text ({error.reason}). Save it as UTF-8.") from None
            return file.finish()


@dataclass(frozen=True)
class _Layout:
    """Where the fields of a row are: those of the vector, and the item's (None: rows are numbered)."""

    fields: int
    vector: slice
    listed: bool  # whether the vector is a list in one field
    item: int | None
    names: Sequence[str]


def _send(file: ForwardFile, part: Partition, sink: Sink) -> None:
    rows = _rows(file)
    first = next(rows, None)
    second = next(rows, None)
    if first is None:
        return
    layout = _layout(first[1], [] if second is None else second[1], part, sink.strict)
    headed = bool(layout.names)
    if layout.item is not None:
        sink.ids.in_column(layout.names[layout.item], file.path)
    keys: list[int | str] = []
    vectors: list[NDArray[np.float64]] = []
    places: list[str] = []

    def flush() -> None:
        if keys:
            sink.add_named(keys, np.stack(vectors), places)
        for one in (keys, vectors, places):
            one.clear()

    number = -1
    for line, row in (one for known in ([] if headed else [first], [second] if second else [], rows) for one in known):
        number += 1
        where = f"{file.path.name}, line {line}"
        vector = _vector(row, layout, sink.dim)
        if isinstance(vector, str):
            sink.reject(f"{where}: {vector}")
            continue
        item = number if layout.item is None else row[layout.item]
        if item == "":
            sink.reject(f"{where}: no id under {layout.names[layout.item or 0]}")
            continue
        sink.begin(len(vector))
        keys.append(item)
        vectors.append(vector)
        places.append(where)
        if len(keys) >= sink.batch:
            flush()
    flush()


def _rows(file: ForwardFile) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of its first line, fields) of every row that is not blank."""
    lines = _lines(file)
    first = next(lines, "")
    between = next((sign for sign in (",", ";", "\t") if sign in first), " ")
    read = csv.reader((line for some in ([first], lines) for line in some), delimiter=between, strict=True,
                      skipinitialspace=True)  # fmt: skip
    last = 0
    try:
        for row in read:
            if between == " " and row and not row[-1]:
                row.pop()  # a blank at the end of a line
            if any(row):
                yield last + 1, row
            last = read.line_num
    except csv.Error as error:
        raise EmbeddingError(
            f"'{file.path}', line {last + 1}: no CSV ({error}). A field that holds a quotation mark, or the sign that "
            "parts fields, stands between quotation marks."
        ) from None


def _lines(file: ForwardFile) -> Iterator[str]:
    rest = ""
    for text in codecs.iterdecode(iter(file.read, b""), "utf-8-sig"):
        *ended, rest = (rest + text).split("\n")
        yield from (f"{line}\n" for line in ended)
    if rest:
        yield rest


def _layout(first: Sequence[str], second: Sequence[str], part: Partition, own: bool) -> _Layout:
    """
    Return which fields hold what, by the first two rows.

    Raises:
        EmbeddingError: it cannot be told; the columns are listed.
    """
    path = Path(part.path)
    counted = [str(number) for number in range(len(first))]
    if all(map(_is_number, first)) and list(first) != counted:
        if part.items == "rows" and not part.vectors:
            return _Layout(len(first), slice(0, len(first)), False, None, [])
        raise EmbeddingError(
            f"'{path}' is a table of text whose first line names no columns. Name them in its first line (item_id, "
            "emb_0, emb_1, ...), or give the file that has the item of every row (--ids ids.txt, one a line) if every "
            "column is a number of the vector, or say --items rows to number them from 0."
        )
    names = [INDEX if not name and not place else name for place, name in enumerate(first)]
    runs = _runs(names)
    inside = {place for run in runs.values() for place in range(run.start, run.stop)}
    columns = [Column(name, f"{run.stop - run.start} numbered columns", True, True) for name, run in runs.items()]
    for place, name in enumerate(names):
        if place not in inside:
            value = second[place] if place < len(second) else ""
            spelled = "..." in value or not isinstance(_numbers(value), str)
            lists = spelled and len(SPELLED.split(value.strip(AROUND))) > 1
            columns.append(Column(name, f"text {value!r:.24}", lists, lists))
    items, vectors = chosen(columns, path, part.items, part.vectors, own=own)
    for one in (items, vectors):
        if one is not None and names.count(one) > 1:
            raise EmbeddingError(f"'{path}' has {names.count(one)} columns named {one}. Keep one of them.")
    listed = vectors not in runs
    place = names.index(vectors) if listed else 0
    return _Layout(
        len(names), slice(place, place + 1) if listed else runs[vectors], listed,
        None if items is None else names.index(items), names,
    )  # fmt: skip


def _runs(names: Sequence[str]) -> dict[str, slice]:
    """Return the runs of numbered columns by their common name, such as emb of emb_0, emb_1, ..."""
    runs: dict[str, slice] = {}
    place = 0
    while place < len(names):
        end, start = place, NUMBERED.fullmatch(names[place])
        if start is not None and int(start[2]) in {0, 1}:
            while end < len(names) and (one := NUMBERED.fullmatch(names[end])) is not None:
                if one[1] != start[1] or int(one[2]) != int(start[2]) + end - place:
                    break
                end += 1
        if end - place > 1:
            assert start is not None
            runs.setdefault(start[1] or f"{names[place]}...{names[end - 1]}", slice(place, end))
        place = max(end, place + 1)
    return runs


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numbers(text: str) -> NDArray[np.float64] | str:
    """Return the numbers of a list in one field, or what is wrong with it."""
    if "..." in text:
        return "numpy left out numbers as it printed the vector; write all of them, such as row.tolist()"
    try:
        return np.array(SPELLED.split(text.strip(AROUND)), np.float64)
    except ValueError as error:
        return f"no list of numbers ({error})"


def _vector(row: Sequence[str], layout: _Layout, dim: int) -> NDArray[np.float64] | str:
    """Return the vector of a row, or what is wrong with it."""
    if len(row) != layout.fields:
        return f"{len(row)} fields instead of {layout.fields}"
    if layout.listed:
        numbers = _numbers(row[layout.vector.start])
    else:
        try:
            numbers = np.array(row[layout.vector], np.float64)
        except ValueError:
            wrong = next(text for text in row[layout.vector] if not _is_number(text))
            return f"{wrong!r:.40} among its numbers" if wrong else "a number is missing: a field is empty"
    if not isinstance(numbers, str) and dim and len(numbers) != dim:
        return f"{len(numbers)} numbers instead of {dim}"
    return numbers
