"""
What callers hand over, as arrays: one way for matrices, one for items, one for look-ups.

Numpy arrays, torch tensors, lists, columns and tables of pandas, polars, pyarrow, DuckDB and datasets: everything is
taken through a protocol that it offers (`__arrow_c_stream__`, `__arrow_c_array__`, `__array__`, `__array_interface__`,
`__dlpack__`, or iteration), without importing what it came from, and without a copy where the layouts agree. What
cannot be converted exactly is refused, with the place of the first such value.
"""

import array
import importlib
import itertools
import operator
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path, PureWindowsPath
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from semid_dataset.errors import ConfigError, EmbeddingError, ItemsError, SemidError

__all__ = [
    "INT64_MAX",
    "INT64_MIN",
    "MISSING",
    "Items",
    "as_choice",
    "as_codes",
    "as_count",
    "as_items",
    "as_matrix",
    "as_path",
    "as_query",
    "as_rows",
    "as_vector",
    "expect",
    "item_of",
    "parse_decimal",
    "quick_integers",
    "shown",
]

Items = NDArray[np.int64] | list[str]
T = TypeVar("T")

INT64_MIN, INT64_MAX = -(1 << 63), (1 << 63) - 1
LONGEST_INT64 = 20  # characters
# Whole numbers up to here are exact in a float of so many bytes; of larger ones several are the same float.
EXACT = {2: 1 << 11, 4: 1 << 24}
EXACT_DOUBLE = 1 << 53
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # pathlib makes s3:/bucket of s3://bucket
DEEPEST = 8  # lists in each other
BUFFERS = (memoryview, array.array)
LISTS = ("list", "large_list", "fixed_size_list", "list_view", "large_list_view")


class _Missing:
    """The type of `MISSING`."""

    def __repr__(self) -> str:
        return "nothing"


MISSING = _Missing()  # None, NaN, pandas.NA, NaT: the place is there and nothing stands in it


# --- paths ---


def as_path(given: Any, error: type[SemidError] = ConfigError, *, what: str = "A path") -> Path:
    """
    Return what a caller named as a path of this machine's file system.

    Raises:
        ConfigError, or what `error` says: it is no path, or a URL (pathlib would make a local folder "s3:" of one).
    """
    try:
        path = Path(given)
        os.fsencode(path)
        url = URL.match(os.fspath(given))
    except Exception as raised:
        raise error(f"{what} must be a string or a Path, not {shown(given)} ({type(raised).__name__}).") from raised
    if isinstance(given, PureWindowsPath):  # pathlib would make one name of all of it
        raise error(f"{what} is a path of another system: {shown(str(given))}. Give one of this machine's.")
    if "\0" in str(path):
        raise error(f"{what} cannot be {shown(str(path))}: it holds a null character.")
    if url:
        raise error(
            f"'{given}' is a URL; only paths of this machine's file system are read and written. Nothing was written. "
            "Copy the files here, or mount the store and give the path below its mount point."
        )
    return path


# --- one item -----------------------------------------------------------------------------------


def parse_decimal(text: str) -> int | None:
    """Return the integer of a decimal string in its usual spelling (no zeros in front, no plus), else None."""
    if len(text) > LONGEST_INT64:
        return None
    try:
        number = int(text)
    except ValueError:
        return None
    return number if str(number) == text else None


def item_of(value: Any) -> "int | str | _Missing | None":  # noqa: PLR0911 - one line per kind of value
    """
    Return what one value is as an item.

    Returns:
        An int (of ints, numpy integers, whole floats and decimals, tensors of one), a string (of strings and UTF-8
        bytes), `MISSING` (of None, NaN, NA), or None: it is no item, as True, 0.5 and 1e300 are none.
    """
    if isinstance(value, bool | np.bool_):
        return None
    if isinstance(value, int):
        return int(value)
    if isinstance(value, str):
        return str.__str__(value)
    if value is None or type(value).__name__ in {"NAType", "NaTType"}:
        return MISSING
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return None
    if isinstance(value, float | np.floating):
        return _whole(value)
    if isinstance(value, Decimal):
        if value.is_nan():
            return MISSING
        return (
            int(value) if value.is_finite() and value.adjusted() < 40 and value == value.to_integral_value() else None
        )
    try:
        return int(operator.index(value))
    except Exception:  # noqa: BLE001 - a stranger's method may raise anything: then it is no integer
        pass
    try:
        inner = getattr(value, "as_py", None) or (getattr(value, "item", None) if _is_scalar(value) else None)
        return item_of(inner()) if callable(inner) and not isinstance(value, type) else None
    except Exception:  # noqa: BLE001 - the same: then it is no item
        return None


def _is_scalar(value: Any) -> bool:
    return type(getattr(value, "ndim", None)) is int and value.ndim == 0


def _whole(value: Any) -> "int | _Missing | None":
    if np.isnan(value):
        return MISSING
    limit = EXACT.get(value.itemsize, EXACT_DOUBLE) if isinstance(value, np.floating) else EXACT_DOUBLE
    return int(value) if -limit < value < limit and value == int(value) else None


def shown(value: object) -> str:
    """Return a value in a few words for messages; what is no plain value is named by its type alone."""
    plain = isinstance(value, str | bytes | int | float | complex | np.generic | Decimal) or value is None
    if not plain:
        kind = type(value)
        name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
        return f"{'an' if name[:1] in 'aeiou' else 'a'} {name}"
    if isinstance(value, int) and not -(10**80) < value < 10**80:
        return "a number of more than 80 digits"  # Python refuses to spell some of these
    return f"{value!r:.80}"


# --- arguments ----------------------------------------------------------------------------------


def expect(given: Any, kind: type[T], what: str, error: type[SemidError] = ConfigError) -> T:
    """
    Return an argument that must be of a type.

    Raises:
        ConfigError, or what `error` says: it is of another.
    """
    if not isinstance(given, kind):
        raise error(f"{what} must be a {kind.__name__}, not {shown(given)}.")
    return given


def as_count(given: Any, what: str, low: int, high: int, error: type[SemidError] = ConfigError) -> int:
    """
    Return a whole number from `low` to `high`.

    Raises:
        ConfigError, or what `error` says: it is none.
    """
    if not isinstance(given, int | np.integer) or isinstance(given, bool | np.bool_) or not low <= given <= high:
        raise error(f"{what} must be a whole number from {low} to {high}, not {shown(given)}.")
    return int(given)


def as_choice(given: Any, choices: Iterable[str], what: str, error: type[SemidError] = ConfigError) -> str:
    """
    Return one of several words.

    Raises:
        ConfigError, or what `error` says: it is none of them.
    """
    names = list(choices)
    if not isinstance(given, str) or given not in names:
        raise error(f"{what} must be one of {', '.join(names)}, not {shown(given)}.")
    return given


# --- items --------------------------------------------------------------------------------------


def as_items(
    given: Any, where: str = "the items", error: type[SemidError] = EmbeddingError, *, empty: bool = False
) -> Items:
    """
    Return the items of rows, exactly.

    Args:
        given: n ints, whole floats or strings in any container with an order; see the module.
        where: what to call them in messages.
        error: the type of error that is raised.
        empty: whether the empty string is an item: in vectors' files it is a line that was forgotten.

    Returns:
        int64 if every item is an integer in its usual spelling that fits, else all of them as strings.

    Raises:
        EmbeddingError, or what `error` says: a value is no item, or missing (the first is named with its row), or the
            container has no order.
    """
    with _strangers(where, error):
        found = _one_axis(_column(given, where, error), given)
    if not isinstance(found, list):
        found = _array_items(found, where, error)
        if isinstance(found, np.ndarray):
            return found
    keys = quick_integers(found)
    if keys is not None:
        return keys
    texts: list[int | str] = []
    for row, value in enumerate(found):
        item = value if type(value) is str else item_of(value)
        if item is MISSING:
            raise error(f"'{where}', row {row}: {shown(value)} is no item; every row needs one.")
        if not isinstance(item, int | str):
            raise error(f"'{where}', row {row}: {shown(value)} is no item; wanted: a whole number or a string.")
        if item == "" and not empty:
            raise error(f"'{where}', row {row}: an empty string is no item.")
        texts.append(item)
    numbers_ = [item if isinstance(item, int) else parse_decimal(item) for item in texts]
    if all(number is not None and INT64_MIN <= number <= INT64_MAX for number in numbers_):
        return np.array(numbers_, np.int64)
    return [_spelled(item, where, row, error) for row, item in enumerate(texts)]


def _array_items(found: NDArray[Any], where: str, error: type[SemidError]) -> NDArray[np.int64] | list[Any]:
    """Return the items of an array as int64 where all of its values are such; else the values."""
    if found.ndim != 1:
        raise error(f"'{where}' has the shape {found.shape}; wanted: one item a row, (items,).")
    if isinstance(found, np.ma.MaskedArray) and (hidden := np.ma.getmaskarray(found)).any():
        raise error(f"'{where}', row {int(np.argmax(hidden))}: there is no item; every row needs one.")
    found = np.asarray(found)
    if found.dtype.kind in "bcmMV":
        raise error(f"'{where}' holds {found.dtype}; wanted: whole numbers or strings.")
    if found.dtype.kind in "iu" and (found.dtype != np.uint64 or not found.size or found.max() <= INT64_MAX):
        return found.astype(np.int64, copy=False)
    if found.dtype.kind == "f":
        whole, numbers = _whole_floats(found)
        if whole.all():
            return numbers
    return _listed(found)


def _spelled(item: int | str, where: str, row: int, error: type[SemidError]) -> str:
    try:
        return str(item)
    except ValueError:  # an int of thousands of digits
        raise error(f"'{where}', row {row}: {shown(item)} is no item.") from None


def quick_integers(items: list[Any]) -> NDArray[np.int64] | None:
    """Return the int64 keys of a list of nothing but ints or nothing but canonical decimal strings, else None."""
    kinds = set(map(type, items))
    try:
        if kinds == {int} or (kinds and all(issubclass(kind, np.integer) for kind in kinds)):
            found = np.array(items) if kinds != {int} else np.array(items, np.int64)
            if found.dtype.kind == "i" or (found.dtype.kind == "u" and int(found.max()) <= INT64_MAX):
                return found.astype(np.int64, copy=False)
        if kinds == {str}:
            numbers = list(map(int, items))
            if list(map(str, numbers)) == items:
                return np.array(numbers, np.int64)
    except (ValueError, OverflowError):
        pass
    return None if kinds else np.empty(0, np.int64)


def _whole_floats(found: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Return which floats are whole and exact, and all as int64, 0 where not."""
    limit = EXACT.get(found.dtype.itemsize, EXACT_DOUBLE)
    whole = (np.abs(found) < limit) & (found == np.floor(found))
    return whole, np.where(whole, found, 0).astype(np.int64)


def _listed(found: NDArray[Any]) -> list[Any]:
    """Return the values of an array, (n,) or of any shape, as a flat list; floats keep how exact they are."""
    flat = found.reshape(-1)
    return list(flat) if flat.dtype.kind == "f" and flat.dtype.itemsize in EXACT else flat.tolist()


def as_query(given: Any, *, ordered: bool = True, error: type[SemidError] = ItemsError) -> NDArray[Any] | list[Any]:
    """
    Return what is looked up, whatever its values are: those that are no items are found nowhere.

    Args:
        given: items in any container, arrays and tensors of any shape; nested lists of equal lengths are such, too.
        ordered: whether the answer has a place for each, so that a set is refused.
        error: the type of error that is raised.

    Returns:
        An array (of int64, masked where a value is no item, or of objects), or a list.

    Raises:
        ItemsError, or what `error` says: it is no container, or one without an order.
    """
    if type(given) is list and not (given and isinstance(given[0], list | tuple)):
        return given
    where = "the items looked up"
    with _strangers(where, error):
        found = _one_axis(_column(given, where, error, ordered=ordered), given)
        if isinstance(found, list):
            if found and isinstance(found[0], list | tuple):
                try:
                    nested = np.array(found, object)
                except ValueError:  # lists in each other without end
                    nested = np.empty(0, object)
                if not 1 < nested.ndim <= DEEPEST:
                    raise error(f"'{where}' are lists of different lengths; look up one after the other.")
                return nested
            return found
        if found.dtype.kind == "f":
            whole, numbers = _whole_floats(np.ma.getdata(found))
            return np.ma.MaskedArray(numbers, np.ma.getmaskarray(found) | ~whole)
        if found.dtype.kind not in "iuUO" and not isinstance(found, np.ma.MaskedArray):
            return found.astype(object)
        return found


# --- vectors ------------------------------------------------------------------------------------


def as_matrix(given: Any, where: str = "the matrix", error: type[SemidError] = EmbeddingError) -> NDArray[Any]:
    """
    Return vectors as a matrix, in the type that they have.

    Args:
        given: n vectors of dim numbers: an array, a tensor on any device, a list of vectors, a table of numbers, a
            column of lists; see the module.
        where: what to call it in messages.
        error: the type of error that is raised.

    Returns:
        (n, dim) of floats or integers, a view where the layout allows it. Nothing is said of its numbers: what is
        missing is NaN.

    Raises:
        EmbeddingError, or what `error` says: there is no such matrix in it; what was found is named.
    """
    with _strangers(where, error):
        found = _matrix(given, where, error)
    if isinstance(found, np.ma.MaskedArray):
        hidden = np.ma.getmaskarray(found)
        if hidden.any():
            raise error(f"'{where}', row {int(np.argwhere(hidden)[0][0])}: a number is masked. Every one is needed.")
    found = np.asarray(found)
    if found.ndim == 3 and found.shape[1] == 1:
        found = found[:, 0]
    if found.ndim != 2 or found.dtype.kind not in "fiu":
        raise error(f"'{where}' holds {found.dtype} of shape {found.shape}; wanted: numbers of shape (items, dim).")
    return found


def as_rows(given: Any, what: str, error: type[SemidError]) -> list[Any]:
    """
    Return what a container holds, one after the other, as a list.

    Raises:
        What `error` says: it is no container, or one without an order.
    """
    with _strangers(what, error):
        found = _column(given, what, error)
        if isinstance(found, np.ndarray) and not found.ndim:
            raise error(f"'{what}' is one value, {shown(found.item())}; wanted: a list.")
        return list(found)


def as_codes(given: Any, what: str, error: type[SemidError]) -> NDArray[Any]:
    """
    Return codes as whole numbers in an array of one or two axes.

    Raises:
        What `error` says: they are no such numbers.
    """
    with _strangers(what, error):
        found = _column(given, what, error)
        found = np.array(found) if isinstance(found, list) and found else np.asarray(found)
    if np.ma.is_masked(found) or (found.size and found.dtype.kind not in "iu") or found.ndim not in {1, 2}:
        raise error(f"'{what}' must be whole numbers, not {found.dtype} of shape {found.shape}.")
    return found if found.size else found.astype(np.int64)


def as_vector(given: Any) -> NDArray[Any] | None:
    """Return one vector, (dim,) of floats or integers, of an array, a tensor, a list or a column; None of all else."""
    if type(given) is not np.ndarray:
        try:
            with _strangers("a vector", EmbeddingError):
                given = _column(given, "a vector", EmbeddingError)
                if isinstance(given, list):
                    given = np.array(given) if not any(isinstance(one, bool | np.bool_) for one in given) else None
        except EmbeddingError:
            return None
    if not isinstance(given, np.ndarray) or np.ma.is_masked(given) or given.dtype.kind not in "fiu":
        return None
    return np.asarray(given).reshape(-1)


def _matrix(given: Any, where: str, error: type[SemidError]) -> NDArray[Any]:
    if (arrow := _arrow_of(given)) is not None:
        return _arrow_matrix(arrow, where, error)
    found: Any = _column(given, where, error)
    if isinstance(found, np.ndarray):
        if found.dtype.kind != "O" or found.ndim not in {1, 2}:
            return found
        found = found.tolist()  # vectors one by one, or a table whose columns are of several kinds
    if not found:
        return np.empty((0, 0), np.float32)
    quick = _quick_matrix(found)
    return _stacked(found, where, error) if quick is None else quick


def _quick_matrix(rows: list[Any]) -> NDArray[Any] | None:
    """Return a list of equally long lists or arrays of numbers as a matrix; None where it is anything else."""
    if not all(type(row) in {list, tuple, np.ndarray} for row in rows):
        return None
    try:
        found = np.array(rows)
    except (ValueError, OverflowError):
        return None
    return found if found.dtype.kind in "fiu" and found.ndim >= 2 and not _has_bools(rows) else None


def _has_bools(rows: Sequence[Any]) -> bool:
    """Say whether True or False stands among the numbers of lists: numpy takes them for 1 and 0."""
    return any(
        bool in set(map(type, row)) if not isinstance(row, np.ndarray) else row.dtype.kind == "b" for row in rows
    )


def _stacked(rows: list[Any], where: str, error: type[SemidError]) -> NDArray[Any]:
    """Return vectors one by one as a matrix, of float64 if one of them is of that or of integers, else of float32."""
    vectors: list[NDArray[Any]] = []
    for row, given in enumerate(rows):
        vector = as_vector(given)
        if vector is None:
            odd = _odd_number(given)
            raise error(f"'{where}', row {row}: {shown(given)} is no vector of numbers{odd}.")
        if vectors and len(vector) != len(vectors[0]):
            raise error(f"'{where}', row {row}: {len(vector)} numbers, row 0 has {len(vectors[0])}.")
        vectors.append(vector)
    return np.stack(vectors)


def _odd_number(given: Any) -> str:
    """Say which entry of a list is no number, where it is one."""
    if not isinstance(given, list | tuple):
        return ""
    for place, one in enumerate(given):
        if isinstance(one, bool | np.bool_) or not isinstance(one, int | float | np.integer | np.floating):
            return f": entry {place} is {shown(one)}"
    return ""


# --- containers ---------------------------------------------------------------------------------


@contextmanager
def _strangers(where: str, error: type[SemidError]) -> Iterator[None]:
    """Turn whatever the methods of an object raise into an error that names the object."""
    try:
        yield
    except SemidError:
        raise
    except Exception as raised:
        raise error(f"'{where}' cannot be read: {type(raised).__name__}: {raised!s:.200}") from raised


def _column(  # noqa: PLR0911, PLR0912 - one line per protocol
    given: Any, where: str, error: type[SemidError], *, ordered: bool = True
) -> NDArray[Any] | list[Any]:
    """Return an array (masked where a value is missing) or a list of what a container holds."""
    if isinstance(given, np.ndarray):
        return given
    if isinstance(given, list):
        return given
    if isinstance(given, str | bytes | bytearray):
        raise error(f"'{where}': expected several, not one {type(given).__name__}: {shown(given)}.")
    if isinstance(given, set | frozenset) and ordered:
        raise error(f"'{where}' is a {type(given).__name__}, whose order is by chance. Give a list: sorted(...).")
    if isinstance(given, range):
        return np.arange(given.start, given.stop, given.step) if _fits(given) else list(given)
    if isinstance(given, tuple):
        return list(given)
    if _is_tensor(given):
        return _tensor_array(given, where, error)
    if not isinstance(getattr(given, "dtype", None), np.dtype):  # else it says itself that numpy holds it
        if (arrow := _arrow_of(given)) is not None:
            return _arrow_column(arrow, where, error)
        _need_arrow(given, where, error)
    if hasattr(given, "__array__") or hasattr(given, "__array_interface__") or type(given) in BUFFERS:
        found = np.asarray(given)
        if found.dtype != object or found.ndim:
            return found
    if hasattr(given, "__dlpack__"):
        return _dlpack_array(given)
    if isinstance(given, itertools.count | itertools.cycle | itertools.repeat) or not isinstance(given, Iterable):
        raise error(f"'{where}' is {shown(given)}; wanted: a list, an array, a tensor or a column.")
    return list(given)


def _one_axis(found: NDArray[Any] | list[Any], given: Any) -> NDArray[Any] | list[Any]:
    """Return the column of a table that has one, and anything else as it is."""
    if isinstance(found, list) or found.ndim != 2 or found.shape[1] != 1 or not hasattr(given, "dtypes"):
        return found
    return found[:, 0]


def _fits(given: range) -> bool:
    return not given or (min(given[0], given[-1]) >= INT64_MIN and max(given[0], given[-1]) <= INT64_MAX)


def _is_tensor(given: Any) -> bool:
    torch: Any = sys.modules.get("torch")  # who has a tensor has imported it
    return torch is not None and isinstance(given, torch.Tensor)


def _tensor_array(given: Any, where: str, error: type[SemidError]) -> NDArray[Any]:
    """Return a tensor of any device as an array, of float32 where numpy has no such floats."""
    torch = sys.modules["torch"]
    if given.layout != torch.strided:
        raise error(f"'{where}' is a sparse tensor. Give it as .to_dense().")
    if given.is_quantized:
        raise error(f"'{where}' is a quantized tensor. Give it as .dequantize().")
    if given.device.type == "meta":
        raise error(f"'{where}' is a tensor without content (device meta).")
    found = given.detach()
    if found.dtype.is_floating_point and found.dtype not in {torch.float16, torch.float32, torch.float64}:
        found = found.to(torch.float32)
    values: NDArray[Any] = found.cpu().resolve_neg().numpy()
    return values


def _dlpack_array(given: Any) -> NDArray[Any]:
    try:
        return np.from_dlpack(given)
    except (BufferError, RuntimeError, TypeError):
        torch: Any = sys.modules.get("torch")
        if torch is None:
            raise
        values: NDArray[Any] = torch.from_dlpack(given).cpu().numpy()  # from the memory of a GPU
        return values


# --- Arrow --------------------------------------------------------------------------------------


def _need_arrow(given: Any, where: str, error: type[SemidError]) -> None:
    """Raise where something can be had through Arrow alone, and pyarrow is not there."""
    if hasattr(given, "__arrow_c_stream__") or hasattr(given, "__arrow_c_array__"):
        other = hasattr(given, "__array__") or isinstance(given, Sequence)
        if not other and _pyarrow() is None:
            raise error(
                f"'{where}' is {shown(given)}, which is read through Arrow, and pyarrow is not installed. "
                "Run: pip install pyarrow"
            )


def _pyarrow() -> Any:
    try:
        return importlib.import_module("pyarrow")
    except ImportError:
        return None


def _arrow_of(given: Any) -> Any:  # noqa: PLR0911 - one line per kind of object
    """Return a pyarrow.ChunkedArray of what an object offers through Arrow; None where it offers nothing that fits."""
    stream = hasattr(given, "__arrow_c_stream__")
    if not stream and not hasattr(given, "__arrow_c_array__"):
        return None
    dtypes = getattr(given, "dtypes", None)
    if isinstance(getattr(given, "dtype", None), np.dtype) or (
        isinstance(dtypes, Iterable) and all(isinstance(one, np.dtype) and one.kind in "fiu" for one in dtypes)
    ):
        return None  # numpy holds it: no other way is as short
    arrow = _pyarrow()
    if arrow is None:
        return None
    if isinstance(given, arrow.ChunkedArray):
        return given
    if isinstance(given, arrow.Array):
        return arrow.chunked_array([given])
    if isinstance(given, arrow.Table | arrow.RecordBatch):
        return given
    try:
        if not stream:
            return arrow.chunked_array([arrow.array(given)])
        found = arrow.chunked_array(given)
    except (arrow.ArrowException, TypeError):  # values of several types; an older pyarrow
        return None
    return (
        arrow.Table.from_batches(
            [arrow.RecordBatch.from_struct_array(chunk) for chunk in found.chunks], arrow.schema(list(found.type))
        )
        if arrow.types.is_struct(found.type)
        else found
    )


def _one_column(arrow: Any, where: str, error: type[SemidError]) -> Any:
    if not hasattr(arrow, "column_names"):
        return arrow
    if len(arrow.column_names) != 1:
        raise error(
            f"'{where}' is a table with the columns {', '.join(map(str, arrow.column_names))}; wanted: one of them."
        )
    return arrow.column(0)


def _combined(column: Any) -> Any:
    """Return a column as one array: without a copy where it is one already."""
    if not hasattr(column, "chunks"):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _arrow_column(arrow: Any, where: str, error: type[SemidError]) -> NDArray[Any] | list[Any]:
    """Return a column of numbers as an array, masked where it has nulls; all else as a list."""
    pa = importlib.import_module("pyarrow")
    types = pa.types
    column = _one_column(arrow, where, error)
    if types.is_dictionary(column.type):
        try:
            column = column.cast(column.type.value_type)
        except pa.ArrowException:  # string views of polars
            return column.to_pylist()  # type: ignore[no-any-return]
    if types.is_decimal(column.type) and column.type.scale == 0:
        try:
            column = column.cast(pa.int64())
        except pa.ArrowException:
            return column.to_pylist()  # type: ignore[no-any-return]
    kind = column.type
    if types.is_boolean(kind) or types.is_nested(kind) or types.is_temporal(kind):
        raise error(f"'{where}' is a column of {kind}; wanted: whole numbers or strings.")
    if not (types.is_integer(kind) or types.is_floating(kind)):
        return column.to_pylist()  # type: ignore[no-any-return]
    whole = _combined(column)
    if not whole.null_count:
        found: NDArray[Any] = whole.to_numpy(zero_copy_only=False)
        return found
    hidden = importlib.import_module("pyarrow.compute").is_null(whole).to_numpy(zero_copy_only=False)
    return np.ma.MaskedArray(whole.fill_null(0).to_numpy(zero_copy_only=False), hidden)


def _arrow_matrix(arrow: Any, where: str, error: type[SemidError]) -> NDArray[Any]:
    """Return a column of lists, or columns of numbers, as a matrix."""
    types = importlib.import_module("pyarrow").types
    named = list(arrow.column_names) if hasattr(arrow, "column_names") else [where]
    columns = [arrow.column(at) for at in range(len(named))] if hasattr(arrow, "column_names") else [arrow]
    columns = [one.cast("float64") if types.is_decimal(one.type) else one for one in columns]
    plain = [types.is_integer(one.type) or types.is_floating(one.type) for one in columns]
    if hasattr(arrow, "column_names") and columns and all(plain):
        return np.stack([_numbers(one) for one in columns], axis=1)
    if len(columns) != 1 or not any(getattr(types, f"is_{kind}", _never)(columns[0].type) for kind in LISTS):
        there = ", ".join(f"{name} {one.type}" for name, one in zip(named, columns, strict=True))
        raise error(f"'{where}' must be columns of numbers, or one column of lists of them. There is: {there}.")
    return _lists(_combined(columns[0]), where, error)


def _never(kind: Any) -> bool:
    return False


def _numbers(column: Any) -> NDArray[Any]:
    found: NDArray[Any] = column.to_numpy() if hasattr(column, "chunks") else column.to_numpy(zero_copy_only=False)
    return found


def _lists(column: Any, where: str, error: type[SemidError]) -> NDArray[Any]:
    """Return lists of equal lengths as a matrix over the memory they lie in."""
    compute = importlib.import_module("pyarrow.compute")
    lengths = compute.fill_null(compute.list_value_length(column), -1).to_numpy(zero_copy_only=False)
    if not len(lengths):
        return np.empty((0, 0), np.float32)
    odd = np.flatnonzero((lengths != lengths[0]) | (lengths < 0))
    if len(odd):
        row = int(odd[0])
        found = f"{lengths[row]} numbers, row 0 has {lengths[0]}" if lengths[row] >= 0 else "there is no vector"
        raise error(f"'{where}', row {row}: {found}.")
    values = column.flatten()
    while hasattr(values.type, "value_type"):  # [1, dim] a row
        values = values.flatten()
    if importlib.import_module("pyarrow").types.is_decimal(values.type):
        values = values.cast("float64")
    flat: NDArray[Any] = values.to_numpy(zero_copy_only=False)  # nulls become NaN
    if flat.size % len(lengths):
        raise error(f"'{where}' holds lists of lists of different lengths; wanted: one vector a row.")
    return flat.reshape(len(lengths), -1)
