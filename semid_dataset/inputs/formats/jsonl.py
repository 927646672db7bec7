"""JSON lines: an object a line, with the id of an item and a list of numbers. The only reader of such files."""

import array
import importlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from semid_dataset.errors import EmbeddingError
from semid_dataset.inputs._columns import ITEM_NAMES, ROWS, VECTOR_NAMES, Column, chosen, named
from semid_dataset.inputs._file import ForwardFile
from semid_dataset.inputs._items import canonical_int
from semid_dataset.objects import item_of
from semid_dataset.protocols import Partition, Sink

__all__ = ["JsonLines", "json_loads", "lines"]

BOM = b"\xef\xbb\xbf"  # some editors put it before the first line; no JSON parser wants it
BATCH = 8 << 20  # bytes of vectors that are checked together
CHARS = 64  # per number of a line, at most: a double is written with 25
SLACK = 4_096  # and for what else a line of a data directory may hold
LONGEST = 64 << 20  # bytes of a line whose width is not known yet, or that a person named
LOOK = 4 << 20  # bytes at the start of a file that tell how long its lines are
BIG = 2.0**63
DOCUMENT = "; one JSON document, it seems: write an object a line, as jq -c '.[]' does of a list"
KINDS_OF_ROWS = 64  # sets of keys whose columns are remembered

Row = tuple[int | str, NDArray[np.float64]]


class JsonLines:
    """See `protocols.Format`."""

    name: ClassVar[str] = "jsonl"
    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".ndjson", ".json")
    starts: ClassVar[bytes] = rb"(?:\xef\xbb\xbf)?\s*\{"

    def size(self, whole: Partition, dim: int) -> int:
        """Return as many rows as there would be if all lines were as long as those in the first 4 MB."""
        taken = [0]

        def count(done: int) -> None:
            taken[0] += done

        with ForwardFile(Path(whole.path), count, hashed=False) as file:
            start = file.read()[:LOOK]
            return int(file.size / max(1.0, min(taken[0], file.size, LOOK) / max(1, start.count(b"\n"))))

    def partitions(self, whole: Partition, rows: int) -> list[Partition]:
        """Return all of it: where its lines end is known by who has read it."""
        with ForwardFile(Path(whole.path), hashed=False) as file:
            return [replace(whole, bytes=file.size)]

    def read(self, part: Partition, sink: Sink, progress: Callable[[int], None], *, digest: bool = False) -> str:
        """Send the lines to `sink`; those that are not wanted are not parsed where they begin with their id."""
        with ForwardFile(Path(part.path), progress, hashed=digest) as file:
            self._read(file, part, sink)
            return file.finish()

    def _read(self, file: ForwardFile, part: Partition, sink: Sink) -> None:
        parser = _Parser(part, sink)
        batch: _Batch | None = None
        longest = LONGEST if sink.strict or not sink.dim else CHARS * sink.dim + SLACK
        row_number = -1
        name = file.path.name
        for number, line in lines(file, longest):
            row_number += 1
            where = f"{name}, line {number}"
            if line is None:
                sink.reject(f"{where}: longer than {longest} bytes")
                continue
            if sink.wanted is not None:
                key = parser.leading_id(line)
                if key is not None and not sink.wanted(np.array([key]))[0]:
                    sink.pass_over()
                    continue
            try:
                row = parser.parse(line, row_number, where)
            except _BadRow as bad:
                sink.reject(f"{where}: {bad}")
                continue
            if batch is None:
                batch = _Batch(sink)
            batch.add(*row, where)
        if batch is not None:
            batch.flush()


def lines(file: ForwardFile, longest: int) -> Iterator[tuple[int, bytes | None]]:
    """
    Yield (number from 1, line) of the lines of a file just opened that are not blank.

    Lines end at a line feed and nowhere else: texts may hold what other systems, and Unicode, call the end of a line.
    For one that is longer than `longest` bytes it is None: such a line is never held.
    """
    number, rest, skipping = 0, b"", False
    start = BOM
    while chunk := file.read():
        *ended, last = chunk.removeprefix(start).split(b"\n")
        start = b""
        for line in ended:
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


def json_loads() -> Callable[[bytes], Any]:
    """Return the fastest parser there is that makes Python objects."""
    try:
        loads: Callable[[bytes], Any] = importlib.import_module("orjson").loads
    except ImportError:
        return json.loads
    return loads


class _BadRow(Exception):
    """What is wrong with a line, in words."""


class _Parser:
    """
    Turns a line into id and numbers.

    simdjson reads the usual line, an object of an id and one list of numbers, into an array without a Python object a
    number. Whatever else a line may be goes to the next parser, so that the same lines are good with and without it.
    Which keys hold the two is found out by that parser too.
    """

    def __init__(self, part: Partition, sink: Sink) -> None:
        self._part = part
        self._sink = sink
        self._path = Path(part.path)
        self._loads = json_loads()
        self._named: dict[tuple[str, ...], tuple[str | None, str]] = {}  # keys of an object -> those of item and vector
        self._usual: tuple[str, str] | None = None  # the two keys of an object that has no other, for simdjson
        self._quick: Any = None
        self._dim = sink.dim
        self._leading: re.Pattern[bytes] | None = None
        try:
            simdjson: Any = importlib.import_module("simdjson")
        except ImportError:
            return
        self._quick = simdjson.Parser().parse
        self._kind_of_object, self._array = simdjson.Object, simdjson.Array

    def parse(self, line: bytes, number: int, where: str) -> Row:
        """Return id and numbers of a line, the `number`th; raises _BadRow, which says what is wrong with it."""
        if self._usual is not None and line.count(b"[") == 1:
            key, vector = self._usual
            row: Any = None
            numbers: Any = None
            try:
                row = self._quick(line)
                numbers = row[vector] if type(row) is self._kind_of_object and len(row) == 2 else None
                if type(numbers) is self._array:
                    values = np.frombuffer(numbers.as_buffer(of_type="d"), np.float64)
                    item = row[key]
                    if len(values) == self._dim and (type(item) is int or type(item) is str):
                        return item, values
            except (ValueError, KeyError, TypeError, RuntimeError):
                pass
            finally:
                row = numbers = None  # the parser's memory is used again for the next line
        return self._row_of(line, number, where)

    def leading_id(self, line: bytes) -> int | None:
        """Return the id that a line begins with, where nothing later in it can be another."""
        match = None if self._leading is None else self._leading.match(line)
        # An object of two keys has four quotation marks, and two more around an id.
        if match is None or b"\\" in line or line.count(b'"') != (4 if match[2] is None else 6):
            return None
        return canonical_int((match[1] or match[2]).decode())

    def _row_of(self, line: bytes, number: int, where: str) -> Row:
        row = self._object(line, number)
        key, vector = keys = self._keys(row, where)
        twice = next((name for name in keys if name and line.count(json.dumps(name).encode()) > 1), None)
        if twice and sum(name == twice for name, _ in json.loads(line, object_pairs_hook=list)) > 1:
            raise _BadRow(f"{twice} stands in it twice")
        numbers = row.get(vector)
        if isinstance(numbers, list) and len(numbers) == 1 and isinstance(numbers[0], list):
            numbers = numbers[0]  # [1, dim] a row
        item = number if key is None else self._item(line, row.get(key), key, where)
        return item, self._numbers(line, numbers, vector)

    def _object(self, line: bytes, number: int) -> dict[str, Any]:
        document = DOCUMENT if number == 0 and (line.lstrip()[:1] == b"[" or line.strip() == b"{") else ""
        try:
            row = self._loads(line)
        except (ValueError, RecursionError) as error:  # orjson's and json's errors are ValueErrors
            raise _BadRow(f"no JSON ({error}){document}") from None
        if not isinstance(row, dict):
            raise _BadRow(f"a {type(row).__name__} instead of an object{document}")
        return row

    def _item(self, line: bytes, written: Any, key: str, where: str) -> int | str:
        if written is None:
            raise _BadRow(f"no id under {key}")
        if isinstance(written, float) and abs(written) >= BIG:
            written = json.loads(line)[key]  # orjson makes floats of whole numbers beyond 64 bits
        item = item_of(written)
        if not isinstance(item, int | str):
            raise _BadRow(f"no id under {key}: {written!r:.80} is neither a whole number nor a text")
        if isinstance(written, float) and isinstance(item, int):
            self._sink.ids.note(written, item, f"'{self._path}', {where.partition(', ')[2]}")
        return item

    def _numbers(self, line: bytes, numbers: Any, vector: str) -> NDArray[np.float64]:
        if not isinstance(numbers, list):
            raise _BadRow(f"no list under {vector}")
        if (b"true" in line or b"false" in line) and any(isinstance(number, bool) for number in numbers):
            raise _BadRow("true or false among its numbers")
        if self._sink.dim and len(numbers) != self._sink.dim:
            raise _BadRow(f"{len(numbers)} numbers instead of {self._sink.dim}")
        try:
            values = np.frombuffer(array.array("d", numbers))
        except (TypeError, OverflowError) as error:
            raise _BadRow(f"not only numbers under {vector} ({error})") from None
        if not self._sink.dim:
            if not len(values):
                raise _BadRow(f"no numbers under {vector}")
            self._sink.begin(len(values))
            self._dim = self._sink.dim
        return values

    def _keys(self, row: dict[str, Any], where: str) -> tuple[str | None, str]:
        """Return the keys of item and vector of an object."""
        there = tuple(row)
        if there in self._named:
            return self._named[there]
        keys: tuple[str | None, str]
        if self._sink.strict:
            keys = chosen([_column(*entry) for entry in row.items()], self._path, self._part.items, self._part.vectors)
        else:
            key, vector = named(there, ITEM_NAMES), named(there, VECTOR_NAMES)
            if key is None:
                raise _BadRow(f"no id: none of its keys ({', '.join(there)[:200]}) is named as items are")
            if vector is None:
                raise _BadRow(f"no vector: none of its keys ({', '.join(there)[:200]}) is named as vectors are")
            keys = key, vector
        try:
            if keys[0] is not None:
                self._sink.ids.in_column(keys[0], where)
        except EmbeddingError as error:
            if self._sink.strict:
                raise
            raise _BadRow(str(error)) from None
        if len(self._named) < KINDS_OF_ROWS:
            self._named[there] = keys
        if keys[0] is not None and len(there) == 2 and self._part.items != ROWS:
            self._usual = None if self._quick is None else (keys[0], keys[1])
            start = rf'\s*\{{\s*"{re.escape(keys[0])}"\s*:\s*(?:(-?\d{{1,19}})|"(-?\d{{1,19}})")\s*,'
            self._leading = re.compile(start.encode())
        return keys


def _column(name: str, value: Any) -> Column:
    numbers = value[0] if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list) else value
    lists = isinstance(numbers, list) and all(isinstance(number, int | float) for number in numbers[:1])
    floats = lists and any(isinstance(number, float) for number in numbers)
    return Column(name, "a list" if lists else f"{type(value).__name__} {value!r:.24}", lists, floats)


class _Batch:
    """Rows that come one by one, checked many at once."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._vectors = np.empty((max(1, min(4_096, BATCH // (8 * sink.dim))), sink.dim), np.float64)
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
            self._sink.add_named(self._keys, self._vectors[: len(self._keys)], self._where)
        self._keys, self._where = [], []
