"""
Embeddings: read them, check them.

A feature lies in the data directory as one of three forms, whatever its id: `emb_<id>_<dim>.pkl`, a folder
`emb_<id>_<dim>/` of JSON lines, or parquet in `emb_<id>_<dim>_parquet/`. The name says id and width; every row is
held against it. A row that does not fit is counted, reported and skipped, since real releases have such rows.
"""

import array
import hashlib
import importlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset._messages import progress_bar, tell
from semid_dataset.errors import EmbeddingError, NoEmbeddingsError
from semid_dataset.features import FeatureMatrix
from semid_dataset.inputs._rows import ForwardFile, Rows, canonical_int
from semid_dataset.inputs.discover import MAX_DIM, FeatureSource, check_feature_ids
from semid_dataset.inputs.formats.pickle import read_array_pickle
from semid_dataset.objects import as_vector, item_of, shown

if TYPE_CHECKING:
    from semid_dataset.codec.fusion import Fusion

__all__ = [
    "Embeddings",
    "Places",
    "arrow_modules",
    "files_digest",
    "from_memory",
    "parquet_columns",
    "read_json_lines",
    "read_sources",
    "take_batch",
]

ID_KEYS = ("anonymous_cid", "creative_id")
VALUE_KEY = "emb"
LEADING_ID = re.compile(rb'\s*\{\s*"(?:anonymous_cid|creative_id)"\s*:\s*(?:(-?\d{1,19})|"(-?\d{1,19})")\s*,')
BOM = b"\xef\xbb\xbf"  # some editors put it before the first line; no JSON parser wants it
BATCH = 8 << 20  # bytes of vectors that are checked together
PAGE_BUFFER = 1 << 20  # bytes, for a column of a parquet file
CHARS = 64  # per number of a JSON line, at most: a double is written with 25
SLACK = 4_096  # and for what else a line may hold

Progress = Callable[[], None]


@dataclass(frozen=True)
class Embeddings:
    """
    Every item that has a feature, and the features.

    Attributes:
        items: n unique ids: int64 ascending if every id is a canonical integer, else strings in order.
        features: a matrix each, over positions in `items`.
        digest: SHA-256 over the names and contents of the files, or over the content if it came from memory.
        file_digests: SHA-256 of each file.
        bad_rows: how many rows were skipped.
        stream: where all items can be had, if those here are a sample of them; see `scale`.
        rows: about how many items there are then.
        fused: what took part in IDs beside the features themselves, if something did: how an item alone is carried
            into the space of the vectors, and the vectors (n, dim) of these items there; see `behaviour`.
        behaviour: digest of the sequences that took part, "" where none did.
        base: what paths of files are told from; None: they are told by their names.
    """

    items: NDArray[np.int64] | list[str]
    features: tuple[FeatureMatrix, ...]
    digest: str
    file_digests: dict[Path, str]
    bad_rows: int
    stream: Any = None
    rows: int = 0
    fused: "tuple[Fusion, NDArray[np.float32]] | None" = None
    behaviour: str = ""
    base: Path | None = None

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 of each file, by its path below `base`: two features may have files of one name."""
        named = {}
        for path, digest in self.file_digests.items():
            inside = self.base is not None and path.is_relative_to(self.base)
            named[path.relative_to(self.base).as_posix() if inside and self.base is not None else path.name] = digest
        return named

    @property
    def dims(self) -> list[tuple[str, int]]:
        """(feature id, dim) of each feature."""
        return [(feature.id, feature.dim) for feature in self.features]


def read_sources(sources: Sequence[FeatureSource], *, on_progress: Progress | None = None) -> Embeddings:
    """
    Read features into one set of items.

    Args:
        on_progress: called every few megabytes, so that others can see that this process is alive.

    Raises:
        NoEmbeddingsError: `sources` is empty.
        EmbeddingError: no feature could be read, or none has a usable row. A feature that cannot be read
            beside others that can is reported and left out.
    """
    read: list[tuple[str, _Ids, NDArray[np.float32]]] = []
    digests: dict[Path, str] = {}
    failures: dict[str, EmbeddingError] = {}
    bad = 0
    for source in progress_bar(sources, "Loading mm_emb"):
        rows = Rows(source.id, source.dim)
        found: dict[Path, str] = {}
        try:
            READERS[source.form](source, rows, found, on_progress)
            ids, matrix = rows.finish()
            if not len(ids):
                first = f" ({rows.bad} were skipped; the first: {rows.first_bad})" if rows.bad else ""
                raise EmbeddingError(f"'{source.path}' holds no usable row of {source.dim} numbers{first}.")
        except EmbeddingError as error:
            failures[source.id] = error
            continue
        digests.update(found)
        bad += _report(rows, len(ids))
        read.append((source.id, ids, matrix))
        tell("loaded_feature", feature=source.id)
    if not read:
        if len(failures) == 1:
            raise next(iter(failures.values()))
        if failures:
            raise EmbeddingError("No feature can be read: " + " ".join(map(str, failures.values())))
        raise NoEmbeddingsError("There are no embeddings to read.")
    for feature, failure in failures.items():
        tell("feature_unreadable", logging.WARNING, feature=feature, error=failure)
    return _gather(read, files_digest(digests), digests, bad)


def files_digest(digests: Mapping[Path, str]) -> str:
    """Return one SHA-256 over the names of files and theirs."""
    digest = hashlib.sha256()
    for path, value in sorted(digests.items(), key=lambda entry: (entry[0].parent.name, entry[0].name)):
        digest.update(f"{path.name}\0{value}\0".encode())
    return digest.hexdigest()


def from_memory(mm_emb_dict: Any, feature_ids: Sequence[str | int]) -> Embeddings:
    """
    Take embeddings that a dataset already holds: {feature id: {item id: vector}}.

    The width of a feature is the one that most of its first 1,000 vectors have. Vectors are arrays, tensors on any
    device (rows of an `nn.Embedding`, bfloat16), or lists of numbers.

    Raises:
        EmbeddingError: it is no such mapping.
        ConfigError: a feature id is no plain word.
        NoEmbeddingsError: none of the features is there, or none has a usable row.
    """
    read: list[tuple[str, _Ids, NDArray[np.float32]]] = []
    digest = hashlib.sha256()
    bad = 0
    if not isinstance(mm_emb_dict, Mapping):
        raise EmbeddingError(
            f"Embeddings in memory must be {{feature id: {{item: vector}}}}, not {shown(mm_emb_dict)}."
        )
    named = {str(key): value for key, value in mm_emb_dict.items() if isinstance(key, str | int | np.integer)}
    for feature in check_feature_ids(feature_ids):
        vectors = _vectors_by_item(named.get(feature), feature)
        if not vectors:
            tell("feature_missing", logging.WARNING, feature=feature, path="mm_emb_dict")
            continue
        rows = Rows(feature, _usual_width(vectors))
        _read_memory(vectors, rows)
        ids, matrix = rows.finish()
        bad += _report(rows, len(ids))
        if not len(ids):
            continue
        digest.update(f"{feature}\0{matrix.shape}\0".encode())
        digest.update("\0".join(ids).encode() if isinstance(ids, list) else ids.tobytes())
        digest.update(matrix.data)
        read.append((feature, ids, matrix))
    if not read:
        raise NoEmbeddingsError(f"No usable vector of the features {', '.join(map(str, feature_ids))} is in memory.")
    return _gather(read, digest.hexdigest(), {}, bad)


# Reading.


_Ids = NDArray[np.int64] | list[str]


def _report(rows: Rows, good: int) -> int:
    if rows.bad:
        tell(
            "bad_rows",
            logging.WARNING,
            bad=rows.bad,
            rows=good + rows.bad,
            feature=rows.feature,
            first=rows.first_bad,
        )
    return rows.bad


def _read_pickle(source: FeatureSource, rows: Rows, digests: dict[Path, str], on_progress: Progress | None) -> None:
    for path in source.files:
        with ForwardFile(path, on_progress) as file:
            read_array_pickle(file, rows)
            digests[path] = file.digest()


def _read_jsonl(source: FeatureSource, rows: Rows, digests: dict[Path, str], on_progress: Progress | None) -> None:
    for path in source.files:
        with ForwardFile(path, on_progress) as file:
            read_json_lines(file, rows)
            digests[path] = file.digest()


def read_json_lines(
    file: ForwardFile,
    rows: Rows,
    wanted: Callable[[NDArray[np.int64]], NDArray[np.bool_]] | None = None,
    pass_over: Callable[[], None] | None = None,
) -> None:
    """
    Send the lines of a file, from front to back, to `rows`.

    Args:
        file: just opened.
        rows: takes ids and vectors; what is no row is rejected there.
        wanted: says of ids whether their lines are; where a line begins with its id, others are not parsed.
        pass_over: called for every line that is passed over so.
    """
    parse = _line_parser(rows.dim)
    batch = _Batch(rows)
    longest = CHARS * rows.dim + SLACK
    for number, line in _lines(file, longest):
        if line is None:
            rows.reject(f"{file.path.name}, line {number}: longer than {longest} bytes")
            continue
        if wanted is not None and pass_over is not None:
            key = _leading_id(line)
            if key is not None and not wanted(np.array([key]))[0]:
                pass_over()
                continue
        row = parse(line)
        if isinstance(row, str):
            rows.reject(f"{file.path.name}, line {number}: {row}")
        else:
            batch.add(*row, f"{file.path.name}, line {number}")
    batch.flush()


def _leading_id(line: bytes) -> int | None:
    """Return the id that a line begins with, where nothing later in it can be another."""
    match = LEADING_ID.match(line)
    if match is None or line.find(ID_KEYS[0].encode(), match.end()) >= 0 or b"\\" in line:
        return None
    return canonical_int((match[1] or match[2]).decode())


def _lines(file: ForwardFile, longest: int) -> Iterator[tuple[int, bytes | None]]:
    """Yield (number from 1, line) of lines that are not blank; None for one that is too long, which is never held."""
    number, rest, skipping = 0, b"", False
    start = BOM
    while chunk := file.read():
        *lines, last = chunk.removeprefix(start).split(b"\n")
        start = b""
        for line in lines:
            number += 1
            whole, rest = rest + line, b""
            if skipping or len(whole) > longest:
                skipping = False
                yield number, None
            elif whole.strip():
                yield number, whole
        if not skipping:
            rest += last
            if len(rest) > longest:
                rest, skipping = b"", True
    if skipping:
        yield number + 1, None
    elif rest.strip():
        yield number + 1, rest


Row = tuple[int | str, NDArray[np.float64]]


def _line_parser(dim: int) -> Callable[[bytes], "Row | str"]:
    """
    Return what turns a line into id and numbers, or into what is wrong with it.

    simdjson reads the usual line, an object of an id and one list of numbers, into an array without a Python object a
    number. Whatever else a line may be goes to the next parser, so that the same lines are good with and without it.
    """
    loads = _json_loads()
    try:
        simdjson = importlib.import_module("simdjson")
    except ImportError:
        return lambda line: _row_of(line, loads, dim)
    parser = simdjson.Parser()

    def quick(line: bytes) -> "Row | str":
        if line.count(b"[") == 1:
            row: Any = None
            numbers: Any = None
            try:
                row = parser.parse(line)
                numbers = row[VALUE_KEY] if type(row) is simdjson.Object and len(row) == 2 else None
                if type(numbers) is simdjson.Array:
                    values = np.frombuffer(numbers.as_buffer(of_type="d"), np.float64)
                    key = row[ID_KEYS[0] if ID_KEYS[0] in row else ID_KEYS[1]]
                    if len(values) == dim and (type(key) is int or type(key) is str):
                        return key, values
            except (ValueError, KeyError, TypeError, RuntimeError):
                pass
            finally:
                row = numbers = None  # the parser's memory is used again for the next line
        return _row_of(line, loads, dim)

    return quick


def _json_loads() -> Callable[[bytes], Any]:
    """Return the fastest parser there is that makes Python objects."""
    try:
        loads: Callable[[bytes], Any] = importlib.import_module("orjson").loads
    except ImportError:
        return json.loads
    return loads


def _row_of(  # noqa: PLR0911 - one line per fault
    line: bytes, loads: Callable[[bytes], Any], dim: int
) -> Row | str:
    """Return id and numbers of a line, or what is wrong with it."""
    try:
        row = loads(line)
    except (ValueError, RecursionError) as error:  # orjson's and json's errors are ValueErrors
        return f"no JSON ({error})"
    if not isinstance(row, dict):
        return f"a {type(row).__name__} instead of an object"
    key = next((row[name] for name in ID_KEYS if name in row), None)
    if not isinstance(key, int | str) or isinstance(key, bool):
        return f"no id under {' or '.join(ID_KEYS)}"
    numbers = row.get(VALUE_KEY)
    if not isinstance(numbers, list):
        return f"no list under {VALUE_KEY}"
    if len(numbers) != dim:
        return f"{len(numbers)} numbers instead of {dim}"
    if (b"true" in line or b"false" in line) and any(isinstance(number, bool) for number in numbers):
        return "true or false among its numbers"
    try:
        return key, np.frombuffer(array.array("d", numbers))
    except (TypeError, OverflowError) as error:
        return f"something else than numbers ({error})"


class _Batch:
    """Rows that come one by one, checked many at once."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._vectors = np.empty((max(1, min(4_096, BATCH // (8 * rows.dim))), rows.dim), np.float64)
        self._keys: list[int | str] = []
        self._where: list[str] = []

    def add(self, key: int | str, numbers: NDArray[np.float64], where: str) -> None:
        self._vectors[len(self._keys)] = numbers
        self._keys.append(key)
        self._where.append(where)
        if len(self._keys) == len(self._vectors):
            self.flush()

    def flush(self) -> None:
        if self._keys:
            self._rows.add_named(self._keys, self._vectors[: len(self._keys)], self._where)
        self._keys, self._where = [], []


def arrow_modules(path: Path) -> tuple[Any, Any]:
    """
    Return pyarrow and pyarrow.parquet.

    Raises:
        EmbeddingError: they are not installed.
    """
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise EmbeddingError(
            f"'{path}' is parquet, and pyarrow is not installed. Run: pip install 'semid_dataset[parquet]'"
        ) from error


def _read_parquet(source: FeatureSource, rows: Rows, digests: dict[Path, str], on_progress: Progress | None) -> None:
    arrow, parquet = arrow_modules(source.path)
    step = max(1, min(65_536, BATCH // (4 * source.dim)))
    for path in source.files:
        with ForwardFile(path, on_progress) as file:  # first: it refuses what is no regular file
            try:
                # With a buffer Arrow reads pages as it goes; without one it holds a row group, often a whole part.
                with parquet.ParquetFile(path, pre_buffer=False, buffer_size=PAGE_BUFFER) as table:
                    columns = parquet_columns(table.schema_arrow, path)
                    number = 0
                    for batch in table.iter_batches(step, columns=columns, use_threads=False):
                        take_batch(batch, rows, f"{path.name}, row", number)
                        number += batch.num_rows
                        if on_progress is not None:
                            on_progress()
            except (arrow.ArrowException, OSError, ValueError) as error:
                if isinstance(error, EmbeddingError):
                    raise
                raise EmbeddingError(f"'{path}' cannot be read as parquet: {error}.") from error
            digests[path] = file.digest()


def parquet_columns(schema: Any, path: Path) -> list[str]:
    """
    Return the names of the column of ids and the column of vectors.

    Raises:
        EmbeddingError: the file has no such columns.
    """
    types = importlib.import_module("pyarrow.types")
    names = schema.names
    key = next((name for name in ID_KEYS if name in names), None)
    if key is None or VALUE_KEY not in names:
        raise EmbeddingError(
            f"'{path}' has the columns {', '.join(names)}; wanted: {' or '.join(ID_KEYS)}, and {VALUE_KEY}."
        )
    ids, lists = schema.field(key).type, schema.field(VALUE_KEY).type
    if types.is_dictionary(ids):
        ids = ids.value_type
    if not (types.is_integer(ids) or types.is_string(ids) or types.is_large_string(ids)):
        raise EmbeddingError(f"'{path}' has ids of type {ids} in {key}; wanted: integers or strings.")
    if not (types.is_list(lists) or types.is_large_list(lists) or types.is_fixed_size_list(lists)) or not (
        types.is_floating(lists.value_type) or types.is_integer(lists.value_type)
    ):
        raise EmbeddingError(f"'{path}' has vectors of type {lists} in {VALUE_KEY}; wanted: lists of numbers.")
    return [key, VALUE_KEY]


def take_batch(batch: Any, rows: Rows, where: str, number: int) -> None:
    """Add the rows of a record batch: lists become a matrix by their offsets, without a Python object per row."""
    compute = importlib.import_module("pyarrow.compute")
    types = importlib.import_module("pyarrow.types")
    key, lists = batch.column(0), batch.column(1)
    lengths = compute.fill_null(compute.list_value_length(lists), -1).to_numpy(zero_copy_only=False)
    named = compute.is_valid(key).to_numpy(zero_copy_only=False)
    good = (lengths == rows.dim) & named
    if not good.all():
        first = int(np.argmin(good))
        what = f"{max(0, lengths[first])} numbers instead of {rows.dim}" if named[first] else "no id"
        rows.reject(f"{where} {number + first}: {what}", int((~good).sum()))
        mask = importlib.import_module("pyarrow").array(good)
        key, lists = key.filter(mask), lists.filter(mask)
    kept = np.flatnonzero(good) + number
    vectors = lists.flatten().to_numpy(zero_copy_only=False).reshape(len(kept), rows.dim)  # nulls become NaN
    places = Places(where, kept)
    if types.is_dictionary(key.type):
        key = key.dictionary_decode()
    numbers = _canonical(key, compute)
    if numbers is not None:
        rows.add(numbers, vectors, places)
    else:
        rows.add_named([str(name) for name in key.to_pylist()], vectors, places)


def _canonical(key: Any, compute: Any) -> NDArray[np.int64] | None:
    """Return ids, of whatever type, as int64 if every one is a canonical integer."""
    try:
        numbers = key.cast("int64")
    except ValueError:  # ArrowInvalid is one
        return None
    if not compute.all(compute.equal(numbers.cast(key.type), key)).as_py():
        return None
    return np.asarray(numbers.to_numpy(), np.int64)


class Places(Sequence[str]):
    """What to call the rows of a record batch, made only when asked for."""

    def __init__(self, where: str, numbers: NDArray[np.int64]) -> None:
        self._where = where
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, row: Any) -> Any:
        return f"{self._where} {self._numbers[row]}"


READERS: dict[str, Callable[[FeatureSource, Rows, dict[Path, str], Progress | None], None]] = {
    "pickle": _read_pickle,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
}


# From memory.


def _vectors_by_item(given: Any, feature: str) -> Mapping[Any, Any]:
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return given
    pairs = getattr(given, "items", None)  # a pandas.Series of vectors over its index
    if not callable(pairs) or isinstance(given, type):
        raise EmbeddingError(f"Feature {feature} in memory is {shown(given)}; wanted: {{item: vector}}.")
    try:
        return dict(pairs())
    except (TypeError, ValueError) as error:
        raise EmbeddingError(
            f"Feature {feature} in memory is {shown(given)}; wanted: {{item: vector}} ({error})."
        ) from error


def _usual_width(vectors: Mapping[Any, Any]) -> int:
    widths: dict[int, int] = {}
    for _, value in zip(range(1_000), vectors.values(), strict=False):
        found = as_vector(value)
        if found is not None and 0 < len(found) <= MAX_DIM:
            widths[len(found)] = widths.get(len(found), 0) + 1
    return max(widths, key=lambda width: (widths[width], width), default=1)


def _read_memory(vectors: Mapping[Any, Any], rows: Rows) -> None:
    for key, value in vectors.items():
        item = item_of(key)
        if not isinstance(item, int | str):
            rows.reject(f"{shown(key)} as an id")
            continue
        vector = as_vector(value)
        if vector is None or len(vector) != rows.dim:
            what = shown(value) if vector is None else f"{len(vector)} numbers"
            rows.reject(f"item {item}: {what} instead of an array of {rows.dim} numbers")
            continue
        rows.add_one(item, vector, "in memory")


# One set of items.


def _gather(
    read: Sequence[tuple[str, _Ids, NDArray[np.float32]]], digest: str, digests: dict[Path, str], bad: int
) -> Embeddings:
    """Place each feature's rows among the union of the items."""
    numeric = [ids for _, ids, _ in read if isinstance(ids, np.ndarray)]
    if len(numeric) == len(read):
        items = numeric[0] if len(read) == 1 else np.unique(np.concatenate(numeric))
        placed = [FeatureMatrix(name, np.searchsorted(items, ids), matrix) for name, ids, matrix in read]
        return Embeddings(items, tuple(placed), digest, digests, bad)
    named = [ids if isinstance(ids, list) else [str(number) for number in ids.tolist()] for _, ids, _ in read]
    everything = sorted(set().union(*named))
    position = {name: row for row, name in enumerate(everything)}
    features = []
    for (feature, _, matrix), names in zip(read, named, strict=True):
        rows = np.fromiter((position[name] for name in names), np.int64, len(names))
        if bool((rows[1:] > rows[:-1]).all()):
            features.append(FeatureMatrix(feature, rows, matrix))
        else:  # its ids were integers in numeric order, which as strings is another
            order = np.argsort(rows)
            features.append(FeatureMatrix(feature, rows[order], matrix[order]))
    return Embeddings(everything, tuple(features), digest, digests, bad)
