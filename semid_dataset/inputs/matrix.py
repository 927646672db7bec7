"""
Embeddings of one's own: a matrix and the items of its rows, out of whatever file or folder of files holds them.

Unlike the embeddings of a data directory (see `read`), of which millions come from a pipeline and a few may be bad,
these were named by a person at a prompt: anything that does not fit is an error that says where, never skipped.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset._messages import tell
from semid_dataset.errors import EmbeddingError, NoEmbeddingsError
from semid_dataset.inputs._columns import ITEM_NAMES, ROWS, named
from semid_dataset.inputs._file import ForwardFile, read_whole
from semid_dataset.inputs._items import as_listed, of_array
from semid_dataset.inputs._rows import BAD_NUMBER, OwnRows, usable
from semid_dataset.inputs.discover import FeatureSource, data_files, passed_over
from semid_dataset.inputs.formats import FORMATS, load_arrays, whole_file
from semid_dataset.objects import Items, as_items, as_matrix, as_path
from semid_dataset.protocols import Format, Partition

__all__ = ["OWN", "ROWS", "Items", "check_unique", "check_vectors", "own_source", "read_items", "read_vectors"]

CHECKED = 1 << 22  # numbers that are looked at together
COUNTED = ("npy", "parquet")  # formats that say how many rows there are
OWN = "own"  # id of embeddings that have none
LISTS = (".txt", ".npy", ".json", ".csv", ".tsv")  # endings of lists of items


def read_vectors(
    path: str | Path, items: str | Path | None = None, vectors: str | None = None
) -> tuple[Items, NDArray[np.float32]]:
    """
    Read a matrix of embeddings and the items of its rows.

    Args:
        path: .npy (a matrix), .npz, .safetensors, .parquet, .arrow, .feather, .jsonl (an object a line) or .pkl (a dict
            of arrays); any of them compressed; or a folder of such files, whose rows follow each other.
        items: the column (key, array) of `path` that holds the items, or a file with the item of every row, see
            `read_items`, or "rows": items are the numbers of the rows, from 0. Needed where nothing in `path` is named
            as items are (see `_columns.ITEM_NAMES`).
        vectors: the column of vectors, likewise.

    Returns:
        (items: int64, or strings if one of them is no whole number; matrix (n, dim) float32).

    Raises:
        NoEmbeddingsError: there are no rows.
        EmbeddingError: anything else that is wrong with them; file, row, found and wanted are named.
        FileNotFoundError, OSError: as the system says.
    """
    path = as_path(path)
    path.stat()  # a missing file is said in the system's words
    if items is not None:
        items = str(as_path(items, EmbeddingError, what="The items"))
    listed = None if items is None or str(items) == ROWS else _listed_in(Path(items))
    rows = OwnRows(str(path))
    for part in _parts_of(path):
        rows.path = Path(part.path)
        column = ROWS if listed is not None else str(items or "")
        reader: Format = FORMATS.get(part.format)
        reader.read(replace(part, items=column, vectors=vectors or ""), rows, lambda done: None)
    keys, matrix = rows.in_order()
    if not len(matrix):
        raise NoEmbeddingsError(f"'{path}' holds no vectors: its shape is {matrix.shape}, it has no rows.")
    where = str(path)
    if listed is not None:
        keys, where = listed, str(items)
        if len(keys) != len(matrix):
            raise EmbeddingError(_other_count(where, keys, path, len(matrix)))
    elif str(items) == ROWS:  # of the whole, also where files hold items
        keys = np.arange(len(matrix))
    return check_vectors(keys, matrix, str(path), where)


def _parts_of(path: Path) -> list[Partition]:
    """Return the files to read, and say which others lie among them."""
    if not path.is_dir():
        return [whole_file(path)]
    files = data_files(path)
    passed = passed_over(path, files)
    if not files:
        there = f" There is: {', '.join(passed[:12])}; name the folder of the parts." if passed else ""
        raise NoEmbeddingsError(
            f"'{path}' is a folder without files of embeddings: no parts of parquet or JSON lines.{there}"
        )
    # A part without rows is empty where it is of JSON lines, and damaged where it is of anything else.
    empty = [file for file in files if file.is_file() and not file.stat().st_size]
    parts = [whole_file(file) for file in files if file not in empty]
    if empty and any(part.format != "jsonl" for part in parts):
        whole_file(empty[0])
    if passed := passed + [file.name for file in empty]:
        tell("files_passed_over", path=path, names=", ".join(passed[:12]))
    return parts


def own_source(
    path: str | Path, items: str | Path | None = None, vectors: str | None = None
) -> tuple[FeatureSource, Items | None] | None:
    """
    Return what `read_vectors` would read as a feature that can be read in parts, and the items of its rows if another
    file lists them; None where it cannot: the rows of several files are numbered.

    Args:
        path, items, vectors: as there.

    Raises:
        As `read_vectors`, of what is looked at here: the first row, and the list.
    """
    path = as_path(path)
    path.stat()
    listed = None if items is None or str(items) == ROWS else _listed_in(Path(items))
    files = tuple(file for file in data_files(path) if file.stat().st_size) if path.is_dir() else (path,)
    numbered = listed is not None or str(items) == ROWS
    if not files or (numbered and len(files) > 1):
        return None
    column = ROWS if numbered else str(items or "")
    part = replace(whole_file(files[0]), items=column, vectors=vectors or "")
    reader: Format = FORMATS.get(part.format)
    width = _Width(str(files[0]))
    with suppress(_WidthFoundError):
        reader.read(part, width, lambda done: None)
    if not width.dim:
        return None
    if listed is not None:
        rows = reader.size(part, width.dim)
        if part.format not in COUNTED:
            return None
        if len(listed) != rows:
            raise EmbeddingError(_other_count(str(items), listed, path, rows))
        check_unique(listed, str(items))
    return FeatureSource(OWN, width.dim, "", path, files, items=column, vectors=vectors or "", own=True), listed


class _WidthFoundError(Exception):
    """The width of the vectors is known: nothing else is to be read."""


class _Width(OwnRows):
    """Takes the first row, for its width."""

    def begin(self, dim: int, rows: int = 0) -> None:
        self.dim = dim
        raise _WidthFoundError

    def add(self, keys: NDArray[np.int64], vectors: NDArray[Any], where: str | Sequence[str]) -> None:
        self.begin(vectors.shape[1])

    def add_named(self, keys: Sequence[int | str], vectors: NDArray[Any], where: Sequence[str]) -> None:
        self.begin(vectors.shape[1])

    def add_one(self, key: int | str, vector: NDArray[Any], where: str) -> None:
        self.begin(len(vector))


def _listed_in(items: Path) -> Items | None:
    """Return the items of a list in a file; None where there is no such file, so that it names a column."""
    return read_items(items) if items.is_file() or items.suffix in LISTS else None


def _other_count(where: str, keys: Items, path: Path, rows: int) -> str:
    heading = ""
    if len(keys) == rows + 1 and isinstance(keys, list) and named(keys[:1], ITEM_NAMES):
        heading = f" The first, {keys[0]!r}, looks like the heading of a column: remove that line."
    return f"'{where}' has {len(keys)} items; '{path}' has {rows} rows. They must be as many.{heading}"


def check_vectors(
    items: Any, matrix: Any, where: str = "the matrix", named: str = "the items"
) -> tuple[Items, NDArray[np.float32]]:
    """
    Return items and vectors as the rest of the package wants them, or raise the error that says what is wrong.

    Args:
        items: n ints or strings, in any container that `objects.as_items` takes.
        matrix: (n, dim) of numbers, in any that `objects.as_matrix` takes.
        where, named: what to call the two in messages.

    Raises:
        As `read_vectors`.
    """
    matrix = as_matrix(matrix, where)
    keys = as_items(items, named)
    if len(keys) != len(matrix):
        raise EmbeddingError(f"{named}: {len(keys)} items for {len(matrix)} rows of '{where}'. They must be as many.")
    if matrix.size == 0:
        raise NoEmbeddingsError(f"'{where}' holds no vectors: its shape is {matrix.shape}.")
    with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold becomes inf, and is then named
        vectors = np.require(matrix, np.float32, ["C", "W"])  # torch warns of arrays that it could not write to
    step = max(1, CHECKED // vectors.shape[1])
    good = np.concatenate([usable(vectors[first : first + step]) for first in range(0, len(vectors), step)])
    if not good.all():
        row, others = int(np.argmin(good)), int((~good).sum()) - 1
        more = f", as are {others} more" if others else ""
        raise EmbeddingError(
            f"'{where}', row {row} (item {keys[row]}): {BAD_NUMBER}{more}. Every number must be finite: correct or "
            "remove such rows."
        )
    check_unique(keys, named)
    return keys, vectors


def read_items(path: str | Path) -> Items:
    """
    Read a list of items: .npy, .json (a list), or text with one item a line.

    Lines end at a line feed and nowhere else. Numbers in another spelling than an id's (as np.savetxt writes them, in
    quotation marks, with blanks around) are read as numbers where all of them are whole, which is said, and else
    refused; names with blanks or quotation marks around them are refused.

    Raises:
        EmbeddingError: it is none of these.
        FileNotFoundError, OSError: as the system says.
    """
    path = as_path(path)
    path.stat()
    with ForwardFile(path, hashed=False) as file:
        is_array = path.suffix == ".npy" or file.head().startswith(b"\x93NUMPY")
    if is_array:
        arrays = load_arrays(path)
        if "" not in arrays:
            raise EmbeddingError(f"'{path}' is an archive of arrays; wanted: one array, with the item of every row.")
        keys, written = of_array(arrays[""], str(path))
        return as_listed(keys, str(path), _Numbered("row"), example=written)
    data = read_whole(path)
    kind = "JSON" if path.suffix == ".json" else "UTF-8 text"
    try:
        text = str(data, "utf-8-sig")
        entries = json.loads(text) if kind == "JSON" else text.split("\n")
    except (ValueError, RecursionError) as error:
        raise EmbeddingError(f"'{path}' is no {kind}: {error}.") from None
    if not isinstance(entries, list):
        raise EmbeddingError(f"'{path}' holds a {type(entries).__name__}; wanted: a list with the item of every row.")
    if kind == "JSON":
        return as_listed(entries, str(path), _Numbered("row"))
    if entries and not entries[-1]:
        entries.pop()
    if "\r" in text:
        entries = [line.removesuffix("\r") for line in entries]
    return as_listed(entries, str(path), _Numbered("line", 1), lines=True)


class _Numbered(Sequence[str]):
    """Places in words, made only when asked for."""

    def __init__(self, word: str, first: int = 0) -> None:
        self._word = word
        self._first = first

    def __len__(self) -> int:
        return 1 << 62

    def __getitem__(self, row: Any) -> Any:
        return f"{self._word} {self._first + row}"


def check_unique(keys: Items, where: str) -> None:
    """
    Make sure that no item is there twice.

    Raises:
        EmbeddingError: one is; it says in which rows.
    """
    if isinstance(keys, np.ndarray):
        order = np.argsort(keys, kind="stable")
        again = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
        if not len(again):
            return
        first, second = int(order[again[0]]), int(order[again[0] + 1])
    else:
        seen: dict[str, int] = {}
        second = next((row for row, key in enumerate(keys) if seen.setdefault(key, row) != row), -1)
        if second < 0:
            return
        first = seen[keys[second]]
    raise EmbeddingError(
        f"'{where}', row {second}: item {keys[second]} was in row {first} already. An item has one vector: "
        "keep one row of it."
    )
