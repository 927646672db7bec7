"""
Columns of Arrow, as parquet and Arrow's own files hand them over: items and vectors of any type that can be either.

Lists become a matrix by their offsets, without a Python object a row. What is neither is an error that names column
and type.
"""

import importlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset.errors import EmbeddingError
from semid_dataset.inputs._columns import Column, chosen
from semid_dataset.inputs._rows import Places
from semid_dataset.objects import LISTS, item_of
from semid_dataset.protocols import Partition, Sink

__all__ = ["Chosen", "arrow_errors", "arrow_module", "begin", "choose", "columns_of", "take_batch"]


def arrow_module(name: str, path: Path, what: str) -> Any:
    """
    Return pyarrow or a module of it.

    Raises:
        EmbeddingError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EmbeddingError(f"'{path}' is {what}, and pyarrow is not installed. Run: pip install pyarrow") from error


@contextmanager
def arrow_errors(path: Path, what: str) -> Iterator[None]:
    """Turn whatever pyarrow raises into an EmbeddingError that names the file."""
    arrow = arrow_module("pyarrow", path, what)
    try:
        yield
    except EmbeddingError:
        raise
    except (arrow.ArrowException, OSError, ValueError, NotImplementedError, UnicodeDecodeError) as error:
        raise EmbeddingError(f"'{path}' cannot be read as {what}: {error}.") from error


VIEWS = {"string_view": "large_string", "binary_view": "large_binary"}
UUID = "arrow.uuid"
# Types that items can be of.
ITEMS = (
    "integer", "floating", "decimal", "string", "large_string", "string_view", "binary", "large_binary", "binary_view",
    "null",
)  # fmt: skip


@dataclass(frozen=True)
class Chosen:
    """
    Names of the columns that are read, and how items come out where no column holds them.

    Attributes:
        items: its column; None where rows are numbered.
        vectors: its column.
        start, step: of the numbers then: those of a pandas index that is a range, or of the rows.
    """

    items: str | None
    vectors: str
    start: int = 0
    step: int = 1

    @property
    def columns(self) -> list[str]:
        """What has to be read."""
        return [self.vectors] if self.items is None else [self.items, self.vectors]


def columns_of(schema: Any) -> list[Column]:
    """Return the columns of a schema, and an index of pandas that is a range and so has none."""
    found = []
    for field in schema:
        values = _values_type(field.type)
        floats = values is not None and not _is(values, "integer")
        found.append(Column(field.name, str(field.type), values is not None, floats))
    found += [Column(name, "an index of pandas", vectors=False) for name in _ranges(schema)]
    return found


def choose(schema: Any, part: Partition, sink: Sink) -> Chosen:
    """
    Return what is read of a file with this schema.

    Raises:
        EmbeddingError: there are no such columns, or they are of other types.
    """
    path = Path(part.path)
    columns = columns_of(schema)
    items, vectors = chosen(columns, path, part.items, part.vectors, own=sink.strict)
    if items is None:
        return Chosen(None, vectors)
    ranges = _ranges(schema)
    if items in ranges and items not in schema.names:
        return Chosen(None, vectors, *ranges[items])
    for name in (items, vectors):
        if schema.names.count(name) > 1:
            raise EmbeddingError(f"'{path}' has {schema.names.count(name)} columns named {name}. Keep one of them.")
    kind = schema.field(items).type
    if not _may_be_items(kind):
        raise EmbeddingError(f"'{path}' has ids of type {kind} in {items}; wanted: whole numbers or texts.")
    sink.ids.in_column(items, path)
    return Chosen(items, vectors)


def begin(batch: Any, name: str, sink: Sink, path: Path) -> None:
    """
    Tell a sink that does not know it how wide the vectors are: as the first one of a batch.

    Raises:
        EmbeddingError: it has no numbers.
    """
    if sink.dim or not batch.num_rows:
        return

    def reject(bad: NDArray[np.int64], what: str) -> None:
        raise EmbeddingError(f"'{path}', row {bad[0]}: {what}.")

    lists, _ = _lists_of(_column(batch, name), np.arange(batch.num_rows), reject, path, name)
    compute = importlib.import_module("pyarrow.compute")
    lengths = compute.drop_null(compute.list_value_length(lists))
    if not len(lengths) or not lengths[0].as_py():
        raise EmbeddingError(f"'{path}', row 0: no numbers under {name}; wanted: a vector in every row.")
    sink.begin(int(lengths[0].as_py()))


def take_batch(batch: Any, taken: Chosen, sink: Sink, path: Path, number: int) -> None:
    """
    Add the rows of a record batch.

    Args:
        batch: with the columns of `taken`.
        number: of its first row.

    Raises:
        EmbeddingError: ids or vectors are of another kind; with a strict sink, a row is bad.
    """
    compute = importlib.import_module("pyarrow.compute")
    where = f"{path.name}, row"

    def reject(bad: NDArray[np.int64], what: str) -> None:
        if len(bad):
            sink.reject(f"{where} {number + bad[0]}: {what}", len(bad))

    lists, rows = _lists_of(_column(batch, taken.vectors), np.arange(batch.num_rows), reject, path, taken.vectors)
    lengths = compute.fill_null(compute.list_value_length(lists), -1).to_numpy(zero_copy_only=False)
    good = lengths == sink.dim
    key = None if taken.items is None else _plain(_column(batch, taken.items))
    if key is not None:
        there = _there(key, compute)
        reject(rows[~there[rows]], f"no id in {taken.items}")
        reject_width = ~good & there[rows]
        good &= there[rows]
    else:
        reject_width = ~good
    if reject_width.any():
        first = int(np.argmax(reject_width))
        reject(rows[reject_width], f"{max(0, lengths[first])} numbers instead of {sink.dim}")
    if not good.all():
        lists, rows = lists.filter(importlib.import_module("pyarrow").array(good)), rows[good]
    vectors = lists.flatten().to_numpy(zero_copy_only=False).reshape(len(rows), sink.dim)  # nulls become NaN
    places = Places(where, rows + number)
    if key is None:
        sink.add(taken.start + taken.step * (rows + number), vectors, places)
        return
    if len(rows) < len(key):
        key = key.take(importlib.import_module("pyarrow").array(rows))
    numbers = _integers(key, compute, sink, f"'{path}', {taken.items} of type {key.type}", places)
    if isinstance(numbers, list):
        sink.add_named(numbers, vectors, places)
    else:
        sink.add(numbers, vectors, places)


# Types.


def _plain_type(kind: Any) -> Any:
    """Return the type that an extension or a dictionary is made of."""
    while True:
        if hasattr(kind, "storage_type"):
            kind = kind.storage_type
        elif _is(kind, "dictionary", "run_end_encoded"):
            kind = kind.value_type
        else:
            return kind


def _is(kind: Any, *names: str) -> bool:
    """Whether a type is one of those of such names; older pyarrow knows fewer of them."""
    types = importlib.import_module("pyarrow.types")
    return any(hasattr(types, f"is_{name}") and getattr(types, f"is_{name}")(kind) for name in names)


def _values_type(kind: Any) -> Any:
    """Return the type of the numbers of a column of vectors; None where it is no such column."""
    kind = _plain_type(kind)
    if _is_vector_struct(kind):
        return kind.field("values").type.value_type
    if not _is(kind, *LISTS):
        return None
    value = _plain_type(kind.value_type)
    if _is(value, *LISTS):  # [1, dim] a row
        value = _plain_type(value.value_type)
    return value if _is(value, "floating", "integer", "decimal") else None


def _is_vector_struct(kind: Any) -> bool:
    """Whether it is what Spark's VectorUDT is stored as: its numbers, and positions where it is sparse."""
    names = {"type", "size", "indices", "values"}
    return _is(kind, "struct") and {kind.field(k).name for k in range(kind.num_fields)} == names


def _may_be_items(kind: Any) -> bool:
    """Whether values of a type can be items; those of an extension mean something else than what they are stored as."""
    if hasattr(kind, "storage_type"):
        return bool(kind.extension_name == UUID)
    return _is(_plain_type(kind), *ITEMS)


def _ranges(schema: Any) -> dict[str, tuple[int, int]]:
    """Return (start, step) of the named indices that pandas stored as a range."""
    try:
        described = (schema.pandas_metadata or {}).get("index_columns") or []
        ranges = [index for index in described if isinstance(index, dict) and index.get("name")]
        return {str(index["name"]): (int(index["start"]), int(index["step"])) for index in ranges}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


# Arrays.


def _column(batch: Any, name: str) -> Any:
    return batch.column(batch.schema.get_field_index(name))


def _plain(array: Any) -> Any:
    """Return an array of the type that `_plain_type` says; views as what they are views of."""
    while True:
        if hasattr(array.type, "storage_type"):
            array = array.storage
        elif _is(array.type, "dictionary"):
            array = _plain(array.dictionary).take(array.indices)
        elif str(array.type) in VIEWS:  # which pyarrow can neither take from nor filter
            array = array.cast(VIEWS[str(array.type)])
        elif _is(array.type, "list_view", "large_list_view"):  # which pyarrow 26 casts to lists of wrong offsets
            arrow = importlib.import_module("pyarrow")
            array = arrow.array(array.to_pylist(), arrow.large_list(array.type.value_type))
        elif _is(array.type, "run_end_encoded"):
            array = importlib.import_module("pyarrow.compute").run_end_decode(array)
        else:
            return array


def _lists_of(
    array: Any,
    rows: NDArray[np.int64],
    reject: Callable[[NDArray[np.int64], str], None],
    path: Path | None = None,
    name: str = "",
) -> tuple[Any, NDArray[np.int64]]:
    """Return lists of numbers, and the rows that they belong to; `reject` is told of others."""
    compute = importlib.import_module("pyarrow.compute")
    array = _plain(array)
    if _is_vector_struct(array.type):
        if path is not None and compute.any(compute.equal(compute.struct_field(array, "type"), 0)).as_py():
            raise EmbeddingError(
                f"'{path}' has sparse vectors in {name} (Spark's VectorUDT). Nothing was read. Write them dense: "
                f'pyspark.ml.functions.vector_to_array("{name}").'
            )
        array = compute.struct_field(array, "values")
    if _is(_plain_type(array.type.value_type), *LISTS):
        lengths = compute.fill_null(compute.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        one = lengths == 1
        if not one.all():
            reject(rows[~one], f"{lengths[int(np.argmin(one))]} lists of numbers instead of one")
            array, rows = array.filter(importlib.import_module("pyarrow").array(one)), rows[one]
        array = _plain(array.flatten())
    if _is(array.type.value_type, "decimal"):  # DuckDB's [0.5, 1.0]
        arrow = importlib.import_module("pyarrow")
        array = array.cast(arrow.large_list(arrow.float64()))
    return array, rows


def _there(key: Any, compute: Any) -> NDArray[np.bool_]:
    """Return which ids there are: neither null nor NaN."""
    types = importlib.import_module("pyarrow.types")
    there = compute.is_valid(key).to_numpy(zero_copy_only=False)
    if types.is_floating(key.type):
        there = there & ~np.isnan(key.to_numpy(zero_copy_only=False))
    return np.asarray(there, np.bool_)


def _integers(
    key: Any, compute: Any, sink: Sink, where: str, places: Sequence[str]
) -> NDArray[np.int64] | list[int | str]:
    """Return ids, none of them null, as int64 if every one is a canonical integer, else as they are."""
    types = importlib.import_module("pyarrow.types")
    kind = key.type
    if types.is_integer(kind):
        try:
            return np.asarray(key.cast("int64").to_numpy(), np.int64)
        except ValueError:  # beyond 64 bits with a sign
            return list(key.to_pylist())
    if types.is_floating(kind):
        floats = key.to_numpy(zero_copy_only=False)
        numbers = _whole(floats, where, places)
        if len(numbers):
            sink.ids.note(floats[0], int(numbers[0]), where)
        return numbers
    if types.is_decimal(kind):
        found: list[int | str] = []
        for row, number in enumerate(key.to_pylist()):
            item = item_of(number)
            if not isinstance(item, int):
                raise EmbeddingError(f"{where}: {number} ({places[row]}) is no item; wanted: a whole number.")
            found.append(item)
        return found
    if types.is_fixed_size_binary(kind):
        key = importlib.import_module("pyarrow").array([str(uuid.UUID(bytes=raw)) for raw in key.to_pylist()], "string")
    elif not types.is_string(kind):
        try:
            key = key.cast("string")
        except (ValueError, NotImplementedError) as error:
            raise EmbeddingError(f"{where} holds items that are no text: {error}.") from None
    try:
        numbers = key.cast("int64")
        if compute.all(compute.equal(numbers.cast("string"), key)).as_py():
            return np.asarray(numbers.to_numpy(), np.int64)
    except ValueError:  # ArrowInvalid is one: a text that is no number
        pass
    return [str(name) for name in key.to_pylist()]


def _whole(floats: NDArray[Any], where: str, places: Sequence[str]) -> NDArray[np.int64]:
    """Return floats as whole numbers, which all of them must be, exactly."""
    bits = np.finfo(floats.dtype).nmant + 1
    good = (np.abs(floats) < 2.0**bits) & (np.trunc(floats) == floats)
    if not good.all():
        row = int(np.argmin(good))
        raise EmbeddingError(
            f"{where}: {floats[row]} ({places[row]}) is no item; such floats are ids where all are whole and below "
            f"2^{bits}."
        )
    return floats.astype(np.int64)
