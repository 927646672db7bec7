"""What users took, in order: one list of items a user, out of whatever file holds them."""

from pathlib import Path
from typing import Any

from semid_dataset.errors import EmbeddingError
from semid_dataset.inputs._columns import Column, listed
from semid_dataset.inputs._file import ForwardFile, something_else
from semid_dataset.inputs.formats.jsonl import json_loads, lines
from semid_dataset.inputs.formats.parquet import read_table
from semid_dataset.objects import as_path, item_of

__all__ = ["read_sequences"]

LONGEST = 64 << 20  # bytes of a user's line


def read_sequences(path: str | Path) -> list[list[Any]]:
    """
    Read one sequence of items a user.

    Args:
        path: text with one user a line, items between blanks; .jsonl with a list a line; .parquet with a column of
            lists. Any of them may be compressed.

    Raises:
        EmbeddingError: a line is no list, an item is none, or there is no such column.
        FileNotFoundError, OSError: as the system says.
    """
    path = as_path(path)
    path.stat()
    with ForwardFile(path, hashed=False) as file:
        head = file.head()
    if head.startswith(b"PAR1") or path.suffix in {".parquet", ".pq"}:
        return _of_parquet(path)
    foreign = something_else(head, path, text=True)
    if foreign is not None:
        raise EmbeddingError(foreign)
    as_json = {".jsonl", ".ndjson"} & set(path.suffixes[-2:])
    loads = json_loads()
    found: list[list[Any]] = []
    with ForwardFile(path, hashed=False) as file:
        for number, line in lines(file, LONGEST):
            if line is None:
                raise EmbeddingError(f"'{path}', line {number}: longer than {LONGEST} bytes.")
            found += [[] for _ in range(number - 1 - len(found))]  # blank lines: users who took nothing
            if not as_json:
                found.append(_words(line, path, number))
                continue
            try:
                entry = loads(line)
            except (ValueError, RecursionError) as error:
                raise EmbeddingError(f"'{path}', line {number}: no JSON ({error}).") from None
            if not isinstance(entry, list):
                raise EmbeddingError(
                    f"'{path}', line {number}: a {type(entry).__name__}; wanted: one user's list of items."
                )
            found.append(_items(entry, path, f"line {number}"))
    return found


def _words(line: bytes, path: Path, number: int) -> list[Any]:
    try:
        return line.decode().split()
    except UnicodeDecodeError as error:
        raise EmbeddingError(f"'{path}', line {number}, is no UTF-8 text: {error}.") from None


def _of_parquet(path: Path) -> list[list[Any]]:
    def lists(schema: Any) -> list[str]:
        names = [field.name for field in schema if hasattr(field.type, "value_type") and "list" in str(field.type)]
        if len(names) != 1:
            there = listed([Column(field.name, str(field.type), vectors=False) for field in schema])
            raise EmbeddingError(f"'{path}' must have one column of lists, one user's items each. There is: {there}.")
        return names

    column = read_table(path, lists).column(0)
    return [_items(entry or [], path, f"row {row}") for row, entry in enumerate(column.to_pylist())]


def _items(entry: list[Any], path: Path, where: str) -> list[Any]:
    """Return one user's items; a float that is a whole number is that number, as in ids."""
    found = []
    for value in entry:
        item = item_of(value)
        if not isinstance(item, int | str):
            raise EmbeddingError(f"'{path}', {where}: {value!r:.80} is no item; wanted: whole numbers or texts.")
        found.append(item)
    return found
