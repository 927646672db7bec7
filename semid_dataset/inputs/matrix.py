"""
Embeddings of one's own: a matrix and the items of its rows, out of whatever file holds them.

Unlike the embeddings of a data directory (see `features`), of which millions come from a pipeline and a few may be
bad, these were named by a person at a prompt: anything that does not fit is an error that says where, never skipped.
"""

import importlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset import _files as files
from semid_dataset.errors import EmbeddingError, NoEmbeddingsError
from semid_dataset.inputs._rows import BAD_NUMBER, usable
from semid_dataset.objects import Items, as_items, as_matrix

__all__ = ["ROWS", "Items", "check_unique", "check_vectors", "read_items", "read_vectors"]

ENDINGS = (".npy", ".npz", ".parquet", ".jsonl", ".ndjson", ".safetensors")
ITEM_NAMES = ("item_id", "item_ids", "items", "item", "ids", "id", "anonymous_cid", "creative_id", "keys")
VECTOR_NAMES = ("embedding", "embeddings", "emb", "vector", "vectors", "x", "features")
ROWS = "rows"  # in place of a file of items: they are the numbers of the rows
MAX_HEADER = 100_000_000  # bytes, as in safetensors' own reader
WIDTHS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I64": np.int64, "I32": np.int32}


def read_vectors(path: str | Path, items: str | Path | None = None) -> tuple[Items, NDArray[np.float32]]:
    """
    Read a matrix of embeddings and the items of its rows.

    Args:
        path: .npy (a matrix), .npz, .safetensors (a matrix and a vector of items), .parquet (a column of items and
            one of lists), .jsonl or .ndjson (an object a line).
        items: a file with the item of every row, see `read_items`, or "rows": items are the numbers of the rows,
            from 0. Needed where the file at `path` holds none.

    Returns:
        (items: int64, or strings if one of them is no canonical integer; matrix (n, dim) float32).

    Raises:
        NoEmbeddingsError: there are no rows.
        EmbeddingError: anything else that is wrong with them; file, row, found and wanted are named.
        FileNotFoundError, OSError: as the system says.
    """
    path = Path(path)
    reader = {
        ".npy": _read_npy,
        ".npz": _read_npz,
        ".parquet": _read_parquet,
        ".jsonl": _read_jsonl,
        ".ndjson": _read_jsonl,
        ".safetensors": _read_safetensors,
    }.get(path.suffix)
    if reader is None:
        raise EmbeddingError(
            f"'{path}' has an ending that names no kind of embeddings. There are {', '.join(ENDINGS)}."
        )
    found, matrix = reader(path)
    named = str(path)
    if items is not None:
        if str(items) == ROWS:
            found = np.arange(len(matrix))
        else:
            found, named = read_items(items), str(items)
    if found is None:
        raise EmbeddingError(
            f"'{path}' holds vectors but no items. Name the file that has the item of every row "
            "(--ids ids.txt, one a line), or say --ids rows to number them from 0."
        )
    if len(found) != len(matrix):
        raise EmbeddingError(
            f"'{named}' has {len(found)} items; '{path}' has {len(matrix)} rows. They must be as many."
        )
    return check_vectors(found, matrix, str(path), named)


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
    good = usable(vectors)
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

    Raises:
        EmbeddingError: it is none of these.
        FileNotFoundError, OSError: as the system says.
    """
    path = Path(path)
    data = _bytes(path)
    if path.suffix == ".npy":
        array = _load(data, path)
        if not isinstance(array, np.ndarray) or array.ndim != 1:
            raise EmbeddingError(
                f"'{path}' holds an array of shape {np.shape(array)}; wanted: one item a row, (items,)."
            )
        return as_items(array, str(path))
    try:
        text = str(data, "utf-8-sig")
        listed = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except ValueError as error:
        kind = "JSON" if path.suffix == ".json" else "UTF-8 text"
        raise EmbeddingError(f"'{path}' is no {kind}: {error}.") from None
    if not isinstance(listed, list):
        raise EmbeddingError(f"'{path}' holds a {type(listed).__name__}; wanted: a list with the item of every row.")
    return as_items(listed, str(path))


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
        f"'{where}', row {second}: item {keys[second]} was in row {first} already. An item has one vector."
    )


def _bytes(path: Path) -> memoryview:
    return files.map_file(path, follow=True)[0]


def _load(data: memoryview, path: Path) -> Any:
    try:
        return np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError) as error:
        reason = "it holds Python objects, which are not read" if "allow_pickle" in str(error) else str(error)
        raise EmbeddingError(f"'{path}' cannot be read as an array: {reason}.") from None


def _read_npy(path: Path) -> tuple[Any, NDArray[Any]]:
    _bytes(path)  # a missing file, a folder, a pipe: said in our words
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        reason = "it holds Python objects, which are not read" if "allow_pickle" in str(error) else str(error)
        raise EmbeddingError(f"'{path}' cannot be read as an array: {reason}.") from None
    if not isinstance(array, np.ndarray):
        raise EmbeddingError(f"'{path}' is an archive of arrays. Give it the ending .npz.")
    return None, array


def _read_npz(path: Path) -> tuple[Any, NDArray[Any]]:
    import zipfile

    try:
        with np.load(io.BytesIO(_bytes(path)), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise EmbeddingError(f"'{path}' cannot be read as an archive of arrays: {error}.") from None
    return _pick(arrays, path)


def _pick(arrays: dict[str, NDArray[Any]], path: Path) -> tuple[Any, NDArray[Any]]:
    """Tell the matrix and the items among named arrays."""
    matrices = {name: array for name, array in arrays.items() if array.ndim == 2 and array.dtype.kind in "fiu"}
    lists = {name: array for name, array in arrays.items() if array.ndim == 1 and array.dtype.kind in "iuUS"}
    matrix = _one_of(matrices, VECTOR_NAMES)
    if matrix is None:
        there = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in arrays.items())
        raise EmbeddingError(
            f"'{path}' must hold one matrix (items, dim), or one of several named {' or '.join(VECTOR_NAMES[:3])}. "
            f"There is: {there or 'nothing'}."
        )
    found = _one_of(lists, ITEM_NAMES)
    return found, matrix


def _one_of(arrays: dict[str, NDArray[Any]], names: Sequence[str]) -> NDArray[Any] | None:
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    return next((arrays[name] for name in names if name in arrays), None)


def _read_safetensors(path: Path) -> tuple[Any, NDArray[Any]]:
    data = _bytes(path)
    length = int.from_bytes(data[:8], "little") if len(data) >= 8 else -1
    if not 2 <= length <= min(MAX_HEADER, len(data) - 8):
        raise EmbeddingError(f"'{path}' is no safetensors file.")
    arrays: dict[str, NDArray[Any]] = {}
    try:
        header = json.loads(bytes(data[8 : 8 + length]))
        for name, entry in header.items():
            if name == "__metadata__" or entry["dtype"] not in WIDTHS:
                continue
            begin, end = entry["data_offsets"]
            kind = np.dtype(WIDTHS[entry["dtype"]])
            flat = np.frombuffer(data[8 + length :][begin:end], kind)
            if entry["dtype"] == "BF16":  # the upper half of a float32
                flat = (flat.astype(np.uint32) << 16).view(np.float32)
            arrays[name] = flat.reshape(entry["shape"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EmbeddingError(f"'{path}' is no safetensors file that can be read: {error}.") from None
    return _pick(arrays, path)


def _read_parquet(path: Path) -> tuple[Any, NDArray[Any]]:
    try:
        arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise EmbeddingError('Parquet needs pyarrow: pip install "semid_dataset[parquet]".') from None
    types = arrow.types
    _bytes(path)
    try:
        schema = parquet.read_schema(path)
        kinds = {name: schema.field(name).type for name in schema.names}
        lists = [name for name, kind in kinds.items() if _is_list(types, kind)]
        plain = [name for name, kind in kinds.items() if types.is_integer(kind) or _is_string(types, kind)]
        vectors, key = _column(lists, VECTOR_NAMES), _column(plain, ITEM_NAMES)
        if vectors is None:
            named = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
            raise EmbeddingError(f"'{path}' must have one column of lists of numbers. There is: {named}.")
        table = parquet.read_table(path, columns=[vectors] if key is None else [vectors, key])
    except (arrow.ArrowException, OSError) as error:
        raise EmbeddingError(f"'{path}' cannot be read as parquet: {error}.") from None
    column = table.column(vectors).combine_chunks()
    lengths = importlib.import_module("pyarrow.compute").list_value_length(column).to_numpy(zero_copy_only=False)
    if not len(lengths):
        raise NoEmbeddingsError(f"'{path}' holds no rows.")
    odd = np.flatnonzero(lengths != lengths[0])
    if len(odd):
        found = lengths[odd[0]]
        raise EmbeddingError(
            f"'{path}', row {odd[0]}: {'nothing' if np.isnan(found) else int(found)} under {vectors}; "
            f"row 0 has {int(lengths[0])} numbers, and all must have as many."
        )
    matrix = column.flatten().to_numpy(zero_copy_only=False).reshape(len(lengths), -1)
    return None if key is None else table.column(key).to_pylist(), matrix


def _is_list(types: Any, kind: Any) -> bool:
    if not (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
        return False
    return bool(types.is_floating(kind.value_type) or types.is_integer(kind.value_type))


def _is_string(types: Any, kind: Any) -> bool:
    return bool(types.is_string(kind) or types.is_large_string(kind))


def _column(there: Sequence[str], names: Sequence[str]) -> str | None:
    return there[0] if len(there) == 1 else next((name for name in names if name in there), None)


def _read_jsonl(path: Path) -> tuple[Any, NDArray[Any]]:
    items: list[Any] = []
    rows: list[Any] = []
    key = vector = ""
    for number, line in enumerate(io.BytesIO(_bytes(path)), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise EmbeddingError(f"'{path}', line {number}: no JSON ({error}).") from None
        if not isinstance(entry, dict):
            raise EmbeddingError(f"'{path}', line {number}: a {type(entry).__name__}; wanted: an object a line.")
        key = key or next((name for name in ITEM_NAMES if name in entry), "")
        vector = vector or next((name for name in VECTOR_NAMES if isinstance(entry.get(name), list)), "")
        if key not in entry or not isinstance(entry.get(vector), list):
            raise EmbeddingError(
                f"'{path}', line {number}: wanted an item under {key or 'item_id or id'} and a list under "
                f"{vector or 'embedding or vector'}; there is {', '.join(map(str, entry))[:80] or 'nothing'}."
            )
        try:
            row = np.array(entry[vector], np.float32)
        except (ValueError, TypeError) as error:
            raise EmbeddingError(f"'{path}', line {number}: not only numbers under {vector} ({error}).") from None
        if row.ndim != 1 or (rows and len(row) != len(rows[0])):
            wanted = f"{len(rows[0])} as in the first line" if rows else "a flat list"
            raise EmbeddingError(f"'{path}', line {number}: {row.size} numbers under {vector}; wanted: {wanted}.")
        items.append(entry[key])
        rows.append(row)
    if not rows:
        raise NoEmbeddingsError(f"'{path}' holds no lines.")
    return items, np.stack(rows)
