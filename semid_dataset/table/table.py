"""
`SemanticIdTable`: what `dataset.semantic_id_dict` is. A read-only mapping over the bytes of one file.

Nothing is built when a table is opened and no Python object is kept per item, so that 5 million items
cost a process what 50 thousand cost, and all processes of a machine share the file's pages. Torch is
loaded only by those who ask for the quantizer.
"""

import importlib
import operator
import os
import re
import struct
from bisect import bisect_left
from collections.abc import ItemsView, Iterator, Mapping, Sequence, ValuesView
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeVar, cast, overload

import numpy as np
from numpy.typing import NDArray

from semid_dataset import _files as files
from semid_dataset._messages import degrade
from semid_dataset._process import check_imports, outside_compiler
from semid_dataset.config import SemanticIdConfig
from semid_dataset.environment import Context, Environment
from semid_dataset.errors import ConfigError, CorruptTableError, DigestError, ItemsError, TableError, UnknownItemError
from semid_dataset.format.id_json import json_chunks
from semid_dataset.format.tensors import (
    Buffer,
    IntIndex,
    StringIndex,
    open_index,
    packed_rows,
    parse,
)
from semid_dataset.objects import as_count, as_path, as_query, expect, item_of, shown
from semid_dataset.table.build import WEIGHTS, TableData, build_table_buffers, content_digests, json_keys
from semid_dataset.table.figures import Quality, extensions, figures
from semid_dataset.table.header import TableHeader
from semid_dataset.table.sizes import checked_sizes, fitting_sizes, rounded_sizes, say_guessed

if TYPE_CHECKING:
    from semid_dataset.codec.residual import ResidualQuantizer

__all__ = ["TABLE_FILE", "SemanticIdTable", "Unopened", "build_table_buffers"]

T = TypeVar("T")

# Rows that iteration turns into Python objects at a time. Fewer than the 700 new objects that start the garbage
# collector, which in a forked worker would write to, and so copy, the pages of all its parent's objects.
BLOCK_ITEMS = 1 << 8
MAX_CODE = 65_535
MOST_LEVELS = 1024  # of a mapping made elsewhere: a value that never ends is no ID
TABLE_FILE = files.TABLE_FILE
LOW_COVERAGE = 0.5  # below it, ids of another kind are likelier than new items
WHOLE = frozenset({"trained", "extended", "cached"})  # statuses of a table that holds all that was asked for
ASKED_AT_LEAST = 100  # items, before a share of them says anything


class SemanticIdTable(Mapping[int | str, list[int]]):
    """
    Semantic IDs by item: `table[item]` is a list of one code per level, coarse to fine.

    An item may be an int, a numpy integer, a whole float or the decimal string of one: all find the same row. (Keys
    are kept as integers only if all of them are; a table with the key "007" is one of strings, in which 7
    and "7" are the same and "007" is another.) Anything else is unknown, 7.5, None, NaN and True too.

    `table[unknown]` is the default ID, all zeros, like a defaultdict that does not insert, or raises
    UnknownItemError (a KeyError) where `strict` is set. `table.get(unknown)` is None and `unknown in table`
    is False in any case.

    Attributes:
        status: "pregenerated", "cached", "extended", "trained", "stale" or "default".
        reason: in words, why this table answers.
        path: its file; None where it lives in memory.
        levels: codes in an ID.
        header: what the writer of the file said about it, looked over; `info` is the same as JSON types.
        digest: what the header states; see `computed_digest` for what it is.
        codes_array: (items, levels) uint8 or uint16, read-only, in the order of iteration.
    """

    __slots__ = (
        "__weakref__",
        "_arrays",
        "_base",
        "_buffer",
        "_codes",
        "_computed",
        "_index",
        "_integers",
        "_inverse",
        "_keys",
        "_misses",
        "_named",
        "_quantizer",
        "_shift",
        "_sizes",
        "_starts",
        "_stride",
        "_unpack",
        "_warned",
        "_window",
        "codes_array",
        "digest",
        "header",
        "info",
        "levels",
        "path",
        "reason",
        "status",
        "strict",
    )

    # What is set before the file is open, so that an unpickled table can say who it is.
    status: str
    reason: str
    path: Path | None
    strict: bool
    digest: str

    info: dict[str, Any]
    header: TableHeader
    levels: int
    codes_array: NDArray[Any]

    _buffer: Buffer
    _arrays: dict[str, NDArray[Any]]
    _index: IntIndex | StringIndex
    _integers: bool
    _keys: memoryview
    _starts: memoryview
    _codes: memoryview
    _base: int
    _shift: int
    _stride: int
    _unpack: Any
    _computed: tuple[str, str] | None
    _inverse: tuple[NDArray[Any], NDArray[np.uint32]] | None
    _quantizer: "ResidualQuantizer | None"
    _misses: int
    _named: str  # lineage, as a pickle says, until the file is open
    _sizes: tuple[int, ...] | None  # of the levels, where the file does not state them and who read it did
    _warned: bool
    _window: tuple[int, int]  # items that the last calls asked for, and those of them that were not found

    def __init__(self) -> None:
        raise TypeError("Use SemanticIdTable.open(path), .from_mapping(ids), or a dataset's semantic_id_dict.")

    # --- making one ---------------------------------------------------------------------------

    @classmethod
    def from_buffer(
        cls,
        buffer: Buffer,
        *,
        path: Path | None = None,
        status: str = "cached",
        reason: str = "",
        strict: bool = False,
        verify: bool = True,
    ) -> "SemanticIdTable":
        """
        Return the table in the bytes of a file, which it keeps alive and never copies.

        Args:
            buffer: the whole file, best a read-only map of it.
            path: where it lies; tables with a path are pickled as the path.
            status, reason: see the class.
            strict: `table[unknown]` raises.
            verify: compare the checksum, at some GB/s, and look the index over; all else costs the same for any
                number of items.

        Raises:
            CorruptTableError, TableVersionError: as `container.parse` and `TableHeader.from_json`.
        """
        try:
            buffer = memoryview(buffer).cast("B")
        except (TypeError, ValueError, BufferError) as error:
            raise TableError(f"The bytes of a table are wanted, not {shown(buffer)} ({error}).") from None
        table = cls.__new__(cls)
        table.status, table.reason, table.path, table.strict = status, reason, path, strict
        table._read(buffer, "a table in memory" if path is None else str(path), verify)
        return table

    def _read(self, buffer: Buffer, where: str, verify: bool) -> None:
        container = parse(buffer, where, verify=verify)
        arrays, info = container.arrays, container.info
        index = open_index(arrays, where, verify=verify)
        codes = arrays.get("codes")
        if codes is None or codes.ndim != 2 or codes.dtype not in (np.uint8, np.uint16) or len(codes) != len(index):
            raise CorruptTableError(f"'{where}' has no codes for its {len(index)} items.")
        header = TableHeader.from_json(info, where, codes.shape[1])
        self._buffer, self._arrays, self._index = buffer, arrays, index
        self.info, self.header, self.digest = info, header, header.digest
        self.codes_array, self.levels = codes, codes.shape[1]
        self._inverse = self._quantizer = self._computed = self._sizes = None
        self._misses, self._warned, self._window, self._named = 0, False, (0, 0), ""
        # What `__getitem__` needs, one attribute away. For a table of strings there are no keys to find an int
        # among: it leaves through the IndexError.
        self._integers = integers = isinstance(index, IntIndex)
        self._keys = index.view if isinstance(index, IntIndex) else memoryview(b"")
        self._starts = index.starts if integers else memoryview(b"")
        self._base, self._shift = index.base, index.shift
        self._codes = codes.reshape(-1).view(np.uint8).data
        self._stride = self.levels * codes.dtype.itemsize
        self._unpack = struct.Struct(f"<{self.levels}{'B' if codes.dtype == np.uint8 else 'H'}").unpack_from

    @classmethod
    def open(
        cls, path: str | Path, *, strict: bool = False, codebook_sizes: int | Sequence[int] | None = None
    ) -> "SemanticIdTable":
        """
        Open a table file: mapped into memory, or copied where SEMID_MMAP=0 asks for it.

        Args:
            path: the file, or a folder that holds a `semid_table.safetensors`: what `output_dir` was.
            strict: `table[unknown]` raises.
            codebook_sizes: codes per level, of a table that does not say them (of a hand-made file): see `with_sizes`.

        Raises:
            TableError: the folder holds no table, or the path is no regular file, or no path.
            ConfigError: the table states other sizes.
            CorruptTableError, TableVersionError: as `container.parse`.
            FileNotFoundError, OSError: as the system says.
        """
        path = _table_file(path)
        buffer, _ = files.map_file(path, mmap=Context.at_door().environment.mmap, follow=True)
        reason = f"read from {path}"
        table = cls.from_buffer(buffer, path=path.absolute(), status="cached", reason=reason, strict=strict)
        return table if codebook_sizes is None else table.with_sizes(codebook_sizes)

    @classmethod
    def from_mapping(
        cls,
        mapping: Mapping[Any, Sequence[int]],
        *,
        status: str = "pregenerated",
        reason: str = "",
        strict: bool = False,
        levels: int = SemanticIdConfig.num_quantizers,
        codebook_sizes: int | Sequence[int] | None = None,
        expected_sizes: Sequence[int] | None = None,
    ) -> "SemanticIdTable":
        """
        Return a table in memory of a mapping from items to codes.

        Args:
            mapping: int or string keys; every value as many whole numbers from 0 to 65,535.
            status, reason, strict: see the class.
            levels: of an empty mapping.
            codebook_sizes: codes per level, one number or one per level. A mapping does not say them: without, the
                power of two that holds the largest code is taken for every level, and said.
            expected_sizes: the same where all IDs fit them, else as if nothing was given.

        Raises:
            ConfigError: `codebook_sizes` are no sizes, or not one per level.
            TableError: a code is beyond them; a key is neither int nor string or the same as another, or a value is no
                ID; it names the first.
        """
        if not isinstance(mapping, Mapping):
            raise TableError(f"IDs come as a mapping {{item: codes}}, such as a dict, not as {shown(mapping)}.")
        levels = as_count(levels, "levels", 1, MOST_LEVELS, TableError)
        items: list[Any] = list(mapping)
        rows: list[list[int]] = []
        for item in items:
            rows.append(_checked(item, mapping[item], len(rows[0]) if rows else 0))
        largest = max(map(max, rows), default=0)
        codes = np.array(rows, np.uint8 if largest <= np.iinfo(np.uint8).max else np.uint16)
        codes = codes.reshape(len(rows), len(rows[0]) if rows else levels)
        table = cls.of_codes(items, codes, status, reason, codebook_sizes, expected_sizes, "A mapping of IDs")
        table.strict = strict
        return table

    @classmethod
    def default(cls, levels: int = SemanticIdConfig.num_quantizers, reason: str = "") -> "SemanticIdTable":
        """Return an empty table, in which every item has the default ID of that many zeros."""
        empty = np.empty((0, as_count(levels, "levels", 1, MOST_LEVELS)), np.uint8)
        return TableData(np.empty(0, np.int64), empty).in_memory("default", reason)

    @classmethod
    def of_codes(
        cls,
        items: NDArray[Any] | Sequence[str | int],
        codes: NDArray[Any],
        status: str,
        reason: str,
        codebook_sizes: int | Sequence[int] | None,
        expected_sizes: Sequence[int] | None,
        where: str,
    ) -> "SemanticIdTable":
        """
        Return a table in memory of items and codes (n, levels) that came without a header; see `from_mapping`.

        Args:
            items, codes: as in `TableData`.
            status, reason: see the class.
            codebook_sizes, expected_sizes: as in `from_mapping`.
            where: the codes' place, in what is said of them.

        Raises:
            ConfigError, TableError: as `from_mapping`.
        """
        sizes = fitting_sizes(expected_sizes, codes)
        if codebook_sizes is not None:
            sizes = checked_sizes(codebook_sizes, codes, where)
        if sizes is None:
            say_guessed(codes, where)
        settings = {} if sizes is None else {"codebook_size": list(sizes)}
        return TableData(items, codes, TableHeader(settings=settings)).in_memory(status, reason)

    def with_status(self, status: str, reason: str) -> "SemanticIdTable":
        """Return the same table, sharing its bytes, under another status."""
        table = SemanticIdTable.__new__(SemanticIdTable)
        for name in SemanticIdTable.__slots__[1:]:
            setattr(table, name, getattr(self, name))
        table.status, table.reason = status, reason
        return table

    def with_sizes(self, codebook_sizes: int | Sequence[int]) -> "SemanticIdTable":
        """
        Return the same table, sharing its bytes, with the codes per level that it does not state itself.

        Args:
            codebook_sizes: one number for all levels, or one per level.

        Raises:
            ConfigError: they are no sizes, or the table states others.
            TableError: it has a code beyond them.
        """
        where = str(self.path or "a table in memory")
        sizes = checked_sizes(codebook_sizes, self.codes_array, where)
        if (stated := self._stated_sizes()) not in {None, sizes}:
            raise ConfigError(f"'{where}' states that its levels have {stated} codes, not {sizes}. Leave them out.")
        table = self.with_status(self.status, self.reason)
        table._sizes = None if stated else sizes
        return table

    # --- the mapping --------------------------------------------------------------------------

    def __getitem__(self, item: SupportsIndex | str) -> list[int]:
        # IntIndex.row_of once more, in place: the call would cost an eighth of the look-up.
        key: Any = item
        if type(item) is str and self._integers:
            try:
                key = int(item)
            except ValueError:
                pass
            else:
                if str(key) != item:
                    key = item
        if type(key) is int:
            bucket = (key - self._base) >> self._shift
            if bucket >= 0:
                starts = self._starts
                try:
                    row = bisect_left(self._keys, key, starts[bucket], starts[bucket + 1])
                    if self._keys[row] == key:
                        return [*self._unpack(self._codes, row * self._stride)]
                except IndexError:
                    pass  # beyond the buckets, where stray keys lie, or a table of strings: the index knows
        row = self._index.row_of(item)
        if row >= 0:
            return [*self._unpack(self._codes, row * self._stride)]
        if self.strict:
            raise UnknownItemError(f"{self._name()} holds no item {_named(item)}.")
        self._misses += 1
        return [0] * self.levels

    @overload
    def get(self, item: object, /) -> list[int] | None: ...
    @overload
    def get(self, item: object, /, default: list[int] | T) -> list[int] | T: ...
    def get(self, item: object, /, default: Any = None) -> Any:
        """Return the ID of an item, or `default` where the table does not hold it."""
        row = self._index.row_of(item)
        if row >= 0:
            return [*self._unpack(self._codes, row * self._stride)]
        self._misses += 1
        return default

    def __contains__(self, item: object) -> bool:
        return self._index.row_of(item) >= 0

    def __len__(self) -> int:
        return len(self._index)

    def __iter__(self) -> Iterator[int | str]:
        for start in range(0, len(self), BLOCK_ITEMS):
            yield from self._index.items(start, start + BLOCK_ITEMS)

    def values(self) -> ValuesView[list[int]]:
        """Return a view of the IDs, in the order of iteration."""
        return _Values(self)

    def items(self) -> ItemsView[int | str, list[int]]:
        """Return a view of (item, ID), in the order of iteration. The items alone, as an array: `keys_array`."""
        return _Items(self)

    def to_dict(self) -> dict[int | str, list[int]]:
        """Return an ordinary dict with the same content: some 250 bytes of memory an item."""
        return dict(self.items())

    def __repr__(self) -> str:
        return (
            f"<SemanticIdTable: {len(self):,} items, {self.levels} levels, {self.status}, {self.path or 'in memory'}>"
        )

    def _repr_html_(self) -> str:
        from semid_dataset.table.frames import table_html

        return table_html(self)

    def _name(self) -> str:
        return "The table" if self.path is None else f"'{self.path}'"

    # --- many at once -------------------------------------------------------------------------

    @outside_compiler()
    def rows_of(self, items: Any) -> NDArray[np.int64]:
        """
        Return the row of each item in the order of iteration, -1 where it is unknown.

        Args:
            items: an array or tensor of any shape, a list, a column of pandas, polars, Arrow, DuckDB or datasets; of
                ints, whole floats or strings. What is missing in it (null, NaN, None) is unknown.

        Returns:
            int64, in the shape of `items` where that is an array.

        Raises:
            ItemsError: `items` is one value, or has no order (a set).
        """
        return self._index.rows_of(as_query(items))

    @outside_compiler()
    def codes(self, items: Any, *, offset: int = 0) -> NDArray[Any]:
        """
        Return the IDs of many items.

        Args:
            items: as in `rows_of`.
            offset: added to the codes of known items. With 1, a row of zeros means "no ID" and nothing else, as
                embedding tables with `padding_idx=0` want it (see `embedding_table_sizes`).

        Returns:
            uint8 or uint16, one row of codes an item: (*shape of items, levels). Zeros where it is unknown.

        Raises:
            UnknownItemError: the table is strict and lacks an item; the first is named.
            ItemsError: as `rows_of`.
            ConfigError: an offset with which codes do not fit into 16 bits.
        """
        largest = 0 if type(offset) is int and offset == 0 else _largest(self.codebook_sizes, offset)
        query = as_query(items)
        rows = self._index.rows_of(query)
        unknown = rows < 0
        some = bool(unknown.any())
        if some and self.strict:
            first = _flat(query)[int(np.flatnonzero(unknown.reshape(-1))[0])]
            raise UnknownItemError(f"{self._name()} holds no item {_named(first)}.")
        self._count_misses(query, unknown)
        if not some and not offset:
            return self.codes_array.take(rows, axis=0)
        dtype = np.dtype(np.uint16) if largest > np.iinfo(np.uint8).max else self.codes_array.dtype
        codes: NDArray[Any] = np.zeros((*rows.shape, self.levels), dtype)
        codes[~unknown] = self.codes_array.take(rows[~unknown], axis=0)
        if offset:
            codes[~unknown] += dtype.type(offset)
        return codes

    @outside_compiler()
    def coverage(self, items: Any) -> float:
        """
        Return which share of the items has an ID here, 0…1; 0 where there are no items.

        Args:
            items: as in `rows_of`; a set will do, too.

        Where it is low, here or over several calls of this and of `codes`, a warning (once) names some that have none
        beside some that have: ids of another kind are seen at a glance.

        Raises:
            ItemsError: `items` is one value.
        """
        query = as_query(items, ordered=False)
        rows = self._index.rows_of(query)
        if not rows.size:
            return 0.0
        unknown = rows < 0
        self._count_misses(query, unknown)
        return float(1.0 - unknown.mean())

    @property
    def misses(self) -> int:
        """How many look-ups found nothing: `table[item]`, `get`, `codes` and `coverage`, in this process."""
        return self._misses

    def _count_misses(self, query: NDArray[Any] | list[Any], unknown: NDArray[np.bool_]) -> None:
        """Note what one call asked for; warn once where most of some hundred, over as many calls, is unknown."""
        flat = unknown.reshape(-1)
        missed = int(flat.sum())
        self._misses += missed
        if self._warned or not len(self):
            return
        asked, lacking = self._window
        asked, lacking = asked + flat.size, lacking + missed
        self._window = (asked, lacking) if asked < ASKED_AT_LEAST else (0, 0)
        if asked < ASKED_AT_LEAST or not missed or lacking <= (1 - LOW_COVERAGE) * asked:
            return
        self._warned = True
        listed = _flat(query)
        degrade(
            "low_coverage",
            share=1 - lacking / asked,
            missed=", ".join(f"{_named(listed[at]):.40}" for at in np.flatnonzero(flat)[:3].tolist()),
            known=", ".join(f"{key!r:.40}" for key in self._index.items(0, 3)),
        )

    def embedding_table_sizes(self, offset: int = 1) -> tuple[int, ...]:
        """
        Return how many rows an embedding table of each level needs: its codes, shifted by `offset`.

        One table per level keeps the order of the codes, which a sum over one common table loses:

            sizes = table.embedding_table_sizes()
            tables = nn.ModuleList(nn.Embedding(size, dim, padding_idx=0) for size in sizes)
            codes = torch.from_numpy(table.codes(items, offset=1).astype("int64"))     # 0 is "no ID"
            vectors = torch.stack([each(codes[..., level]) for level, each in enumerate(tables)]).sum(0)

        Without an offset (the original's way) code 0 is a real code, and `padding_idx=0` would erase it.
        """
        offset = as_count(offset, "offset", 0, 1 << 30)
        return tuple(size + offset for size in self.codebook_sizes)

    def assert_same_digest(self, expected: str) -> None:
        """
        Make sure that this is the table whose digest is `expected`: on every rank, or in inference as in training.

        Nothing is sent between processes: note the digest in a checkpoint, or pass it on a command line. What is
        compared is computed from the content, once; what the file states of itself is not believed. A digest that was
        noted by a version that did not yet cover the settings of the search is compared with such a digest.

        Raises:
            DigestError: it is another table.
        """
        if expect(expected, str, "A digest", DigestError) not in self._digests:
            raise DigestError(
                f"{self._name()} has the digest {self.computed_digest}, {expected} is expected: items have other IDs "
                "than the recommender was trained with. Pass the table that lies beside its weights as parent."
            )

    @property
    def computed_digest(self) -> str:
        """
        The digest of what is here, computed on first use: SHA-256 over keys, codes, weights and what else decides a
        code. That of a table of the first layout covers keys, codes and weights, as when it was written.
        """
        return self._digests[0]

    @property
    def _digests(self) -> tuple[str, ...]:
        """Digests that say that this is the table; the first is the one that it should state."""
        if self._computed is None:
            self._computed = content_digests(self._arrays, self.header)
        first, second = self._computed
        return (second,) if self.header.scheme == 2 else (first, second)

    @outside_compiler()
    def items_of(self, prefix: Sequence[int]) -> list[int | str]:
        """
        Return the items whose ID begins with these codes, in order of their IDs, then of iteration.

        The first call sorts all IDs (5 million: about a second, and 8 to 12 bytes an item that stay).

        Args:
            prefix: 0…levels codes; the empty one finds every item.

        Raises:
            ItemsError: it is no list of whole numbers, such as a batch of several IDs.
        """
        codes = _prefix_codes(prefix)
        largest = np.iinfo(self.codes_array.dtype).max
        if len(codes) > self.levels or not all(0 <= code <= largest for code in codes):
            return []
        if self._inverse is None:
            self._inverse = _inverse(self.codes_array)
        ordered, order = self._inverse
        rest = self.levels - len(codes)
        low, high = (packed_rows(np.array([[*codes, *[fill] * rest]], self.codes_array.dtype)) for fill in (0, largest))
        rows = order[np.searchsorted(ordered, low[0], "left") : np.searchsorted(ordered, high[0], "right")]
        if isinstance(self._index, IntIndex):
            keys: list[int | str] = self._index.keys[rows].tolist()
            return keys
        return [self._index.items(row, row + 1)[0] for row in rows.tolist()]

    @property
    def keys_array(self) -> NDArray[np.int64] | list[str]:
        """The items, in the order of iteration: int64 (n,), a read-only view, or a fresh list of strings."""
        return self._index.keys if isinstance(self._index, IntIndex) else self._index.items()

    def json_chunks(self) -> Iterator[bytes]:
        """Yield the text of `semantic_id_dict.json` in blocks."""
        return json_chunks(json_keys(self._index), self.codes_array)

    def save(self, path: str | Path, *, note_digest: bool = True) -> Path:
        """
        Write the whole table, IDs and quantizer, to a file of its own: beside a recommender's weights, say.

        Folders are made as needed; a file that is there is replaced, in one step. Its digest is written beside it, as
        `NAME.digest`: what inference is to expect (`prepare_semantic_ids(expect=...)`, SEMID_EXPECT).

        Args:
            path: the file.
            note_digest: write the digest too.

        Raises:
            TableError: the path is none, or a folder's.
            OSError: it could not be written; what was there before is as it was.
        """
        path = as_path(path, TableError)
        if path.is_dir():
            raise TableError(f"'{path}' is a folder. Name the file, such as '{path / TABLE_FILE}'.")
        path.parent.mkdir(parents=True, exist_ok=True)
        buffers: list[Any] = [self._buffer]
        if self._sizes is not None:  # who reads the copy shall not have to know them
            settings = {**self.header.settings, "codebook_size": list(self._sizes)}
            buffers = TableData(
                self.keys_array, self.codes_array, replace(self.header, settings=settings), self.weights
            ).buffers()
        files.replace_file(path, buffers)
        if note_digest:
            digest = SemanticIdTable.from_buffer(b"".join(buffers), verify=False).computed_digest
            files.replace_file(path.with_name(f"{path.name}.digest"), [f"{digest}\n".encode()])
        return path

    def save_pretrained(self, folder: str | Path, *, name: str = "") -> Path:
        """
        Write the table, its digest and a model card to a folder, as `push_to_hub` does to a repository.

        Args:
            folder: made as needed; other files in it stay.
            name: in the card; the folder's by default.

        Raises:
            TableError, OSError: as `save`.
        """
        from semid_dataset.table.card import model_card

        folder = as_path(folder, TableError)
        self.save(folder / TABLE_FILE)
        card = model_card(self, name or folder.name)
        files.replace_file(folder / "README.md", [card.encode()])
        return folder

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str = "Add a table of semantic IDs",
    ) -> str:
        """
        Put the table, its digest and a model card into a repository of a Hugging Face Hub (extra `hub`).

        Args:
            repo_id: "owner/name"; made if it is not there.
            private: of a new repository; None leaves it to the hub.
            token: as `huggingface_hub` takes it.
            revision: the branch, made if it is not there.
            commit_message: of the commit.

        Returns:
            Its address.

        Raises:
            TableError: no name of a repository, or the extra is not installed.
            OSError: the hub cannot be reached or refuses.
        """
        from tempfile import TemporaryDirectory

        from semid_dataset._hub import push

        with TemporaryDirectory() as place:
            folder = self.save_pretrained(place, name=repo_id)
            return push(folder, repo_id, private=private, token=token, revision=revision, message=commit_message)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        strict: bool = False,
        codebook_sizes: int | Sequence[int] | None = None,
    ) -> "SemanticIdTable":
        """
        Open a table in a folder, or in a repository of a Hugging Face Hub (extra `hub`), whose cache keeps it.

        Args:
            source: a folder, a file, or "owner/name" where no such folder is.
            revision: of the repository: a branch, a tag, a commit. A commit never changes: name one in production.
            strict, codebook_sizes: see `open`.

        Raises:
            TableError: there is no table, or the extra is not installed.
            OSError: the hub cannot be reached, or knows no such repository. Others as `open`.
        """
        from semid_dataset._hub import fetch

        path = fetch(source, (TABLE_FILE,), revision)
        return cls.open(path, strict=strict, codebook_sizes=codebook_sizes)

    def to_arrow(self) -> Any:
        """Return a `pyarrow.Table` of item_id and codes; raises ConfigError where pyarrow is not installed."""
        from semid_dataset.table.frames import to_arrow

        return to_arrow(self)

    def to_pandas(self) -> Any:
        """Return a `pandas.DataFrame` of item_id and codes; raises ConfigError where pandas is not installed."""
        from semid_dataset.table.frames import to_pandas

        return to_pandas(self)

    def to_polars(self) -> Any:
        """Return a `polars.DataFrame` of item_id and codes; raises ConfigError where polars is not installed."""
        from semid_dataset.table.frames import to_polars

        return to_polars(self)

    # --- new vectors --------------------------------------------------------------------------

    def encode(self, vectors: Any) -> NDArray[Any]:
        """
        Return the codes of vectors, as the table's quantizer gives them: nearest, and not made unique.

        Args:
            vectors: (n, dim), in anything that `fit` takes.

        Returns:
            (n, levels) uint8 or uint16.

        Raises:
            TableError: the table has no quantizer.
            EmbeddingError: they are no vectors of this width, or not finite; or the IDs are of several features.
        """
        quantizer = self.quantizer
        from semid_dataset.codec.kinds import encode_vectors

        return encode_vectors(quantizer, vectors)

    def extend(self, vectors: Any, items: Any, *, force: bool = False) -> "SemanticIdTable":
        """
        Return a table in memory with new items added; no ID of this one moves. See `api.extend_with_vectors`.

        Args:
            vectors: (n, dim), in anything that `fit` takes; of all items, or of the new ones only.
            items: n, in the order of the vectors.
            force: give IDs to new items although their vectors are not such as the table was made for.

        Raises:
            TableError, EmbeddingError, ForeignVectorsError: as there.
        """
        # The door lies floors above: it is found by its name when somebody asks, as parts of other packages are.
        grown: SemanticIdTable
        door = importlib.import_module("semid_dataset.api")
        grown, _ = door.extend_with_vectors(self, items, vectors, force=force)
        return grown

    # --- what it is ---------------------------------------------------------------------------

    @property
    def buffer(self) -> Buffer:
        """The bytes of its file."""
        return self._buffer

    @property
    def default_id(self) -> list[int]:
        """The ID of an unknown item: zeros, a new list each time."""
        return [0] * self.levels

    @property
    def lineage(self) -> str:
        """Name of the lineage; "" for tables outside of any."""
        return self.header.lineage

    @property
    def generation(self) -> int:
        """Number of the table in its lineage."""
        return self.header.generation

    @property
    def quality(self) -> Quality:
        """
        What the IDs are worth, in figures, a dict that prints well; empty where nobody measured.

        They are of the items that the codebooks were made from; "extensions" holds what was measured of those added
        since, see `figures.extensions`.
        """
        grown = extensions(self.header.history)
        return Quality({**self.header.quality, **({"extensions": grown} if grown else {})})

    def metrics(self, items: Any = None) -> dict[str, int | float | str]:
        """
        Return what monitoring wants to know, flat; what was not measured is left out.

        Args:
            items: those that were asked for, as in `rows_of`; adds `asked`, `known` and `coverage`.

        Returns:
            `status`, `items`, `levels`, `generation`, `lineage`, `digest`, `misses` (look-ups of unknown items by
            this process so far), and as far as known the figures of quality and of the run that made the IDs
            (`seconds`, `peak_rss_bytes`, ...), see `quality_view.figures`.
        """
        flat: dict[str, int | float | str] = {
            "status": self.status,
            "items": len(self),
            "levels": self.levels,
            "generation": self.generation,
            "lineage": self.lineage,
            "digest": self.digest,
            "misses": self.misses,
        }
        if items is not None:
            rows = self._index.rows_of(as_query(items, ordered=False))
            known = int((rows >= 0).sum())
            flat |= {"asked": int(rows.size), "known": known, "coverage": known / rows.size if rows.size else 0.0}
        return flat | figures(self.info)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """
        Codes per level, coarse to fine.

        Where nobody stated them (a hand-made table), the power of two that holds the largest code of all, see
        `sizes_stated`.
        """
        return self._sizes or self._stated_sizes() or rounded_sizes(self.codes_array)

    @property
    def sizes_stated(self) -> bool:
        """Whether `codebook_sizes` are known: stated by the table or by who read it."""
        return self._sizes is not None or self._stated_sizes() is not None

    def _stated_sizes(self) -> tuple[int, ...] | None:
        """Return the sizes that the header states, in one of its places."""
        if self.header.identity is not None:
            return self.header.identity.codebook_sizes
        for part in (self.header.quantizer or {}, self.header.settings):  # a bare quantizer's, a hand-made table's
            sizes = part.get("codebook_sizes", part.get("codebook_size"))
            if isinstance(sizes, list) and len(sizes) == self.levels and all(type(size) is int for size in sizes):
                return tuple(sizes)
        return None

    @property
    def weights(self) -> dict[str, NDArray[Any]]:
        """The quantizer's arrays by name, read-only views; empty where the file holds no quantizer."""
        return {name[len(WEIGHTS) :]: array for name, array in self._arrays.items() if name.startswith(WEIGHTS)}

    @property
    def has_quantizer(self) -> bool:
        """Whether new items can be encoded as these were."""
        return bool(self.header.quantizer) and bool(self.weights)

    @property
    def quantizer(self) -> "ResidualQuantizer":
        """
        The quantizer that made these IDs; loads torch where its kind needs it.

        A table whose IDs were made by another kind returns that, with the methods of `protocols.Quantizer`.

        Raises:
            TableError: the table holds none (a hand-made one, or default IDs), or one of a kind that nothing installed
                here reads; the IDs can be looked up all the same.
            ForkError: this process was forked while torch was being imported.
        """
        if self._quantizer is None:
            if not self.has_quantizer:
                raise TableError(
                    f"{self._name()} holds no quantizer ({self.status}: {self.reason or 'IDs alone'}), so nothing can "
                    "be encoded with it. Take a table that holds one, as semid generate writes it."
                )
            check_imports("torch", "semid_dataset")
            from semid_dataset.codec.kinds import read_quantizer

            self._quantizer = cast("ResidualQuantizer", read_quantizer(self.weights, self.header.quantizer or {}))
        return self._quantizer

    # --- copies and pickles -------------------------------------------------------------------

    def __copy__(self) -> "SemanticIdTable":
        return self  # nothing in it changes

    def __deepcopy__(self, memo: object) -> "SemanticIdTable":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # By reference: a DataLoader would else send every worker the whole table, and the map would be lost.
        if self.path is not None:
            return Unopened.at, _reference(self, self.lineage)
        if self.status == "default" and not len(self):
            return _default, (self.levels, self.reason, self.strict)
        return _from_bytes, (bytes(self._buffer), self.status, self.reason, self.strict, self._sizes)


class Unopened(SemanticIdTable):
    """
    A table out of a pickle, which opens its file when first asked for something and is an ordinary one from then on.

    A class of its own, because a `__getattr__` in SemanticIdTable would slow down every look-up (CPython then no
    longer specializes the loads of its attributes).
    """

    __slots__ = ()  # else it could not become one

    @classmethod
    def at(
        cls,
        path: str,
        digest: str,
        lineage: str,
        status: str,
        reason: str,
        strict: bool,
        sizes: tuple[int, ...] | None = None,
    ) -> SemanticIdTable:
        """Return a table that is known by its place, digest and lineage."""
        table = cls.__new__(cls)
        table.path, table.digest, table.status, table.reason, table.strict = Path(path), digest, status, reason, strict
        table._named, table._sizes = lineage, sizes
        return table

    def __reduce__(self) -> tuple[Any, ...]:
        return Unopened.at, _reference(self, self._named)

    def __getattr__(self, name: str) -> Any:
        if name not in SemanticIdTable.__slots__:
            raise AttributeError(f"'SemanticIdTable' object has no attribute '{name}'")
        # By the class: another thread may have made it an ordinary table meanwhile.
        Unopened.become(self, Unopened.found(self))
        return getattr(self, name)

    def become(self, opened: SemanticIdTable) -> None:
        """Be another table that holds these IDs, from now on; status and reason stay those of the pickle."""
        for slot in SemanticIdTable.__slots__[1:]:
            if slot not in {"status", "reason", "strict", "_sizes"}:
                setattr(self, slot, getattr(opened, slot))
        self.__class__ = SemanticIdTable  # type: ignore[assignment]

    def holds_in(self, other: SemanticIdTable) -> bool:
        """Whether another table is this one, or grew from it and so holds all its IDs."""
        return self.digest in other._digests or other.header.grew_from(self.digest)

    def found(self) -> SemanticIdTable:
        """
        Return the table at its place, else one beside it that grew from it: it may have been pruned since.

        Raises:
            CorruptTableError: another one lies at its place.
            TableError: it is gone, and none beside it holds its IDs.
        """
        path = self.path
        assert path is not None
        mmap = Environment.read().mmap
        refusal: Exception
        try:
            opened = SemanticIdTable.from_buffer(files.map_file(path, mmap=mmap, follow=True)[0], path=path)
            if Unopened.holds_in(self, opened):
                return opened
            refusal = CorruptTableError(
                f"'{path}' holds other IDs ({opened.computed_digest[:12]}) than the table that was pickled "
                f"({self.digest[:12]}). The file was left untouched; it was replaced in between."
            )
        except (OSError, TableError) as error:
            refusal = error
        for beside in _numbered(path):
            with suppress(OSError, TableError):
                opened = SemanticIdTable.from_buffer(files.map_file(beside, mmap=mmap)[0], path=beside)
                if Unopened.holds_in(self, opened):
                    return opened
        if isinstance(refusal, CorruptTableError):
            raise refusal
        raise TableError(
            f"The table of this pickle ({self.digest[:12]}, lineage {self._named or 'none'}) is not at '{path}' any "
            f"more ({refusal}), and none beside it grew from it. Nothing was changed. Pickle the dataset, which looks "
            "in all caches, or keep the table where it stays: table.save(...)."
        ) from refusal


def _numbered(path: Path) -> list[Path]:
    """Return the other tables in the folder of a cache where a table lies, the newest first."""
    if not re.fullmatch(r"\d{1,9}\.safetensors", path.name):
        return []
    with suppress(OSError):
        others = [other for other in path.parent.iterdir() if re.fullmatch(r"\d{1,9}\.safetensors", other.name)]
        return sorted((other for other in others if other != path), key=lambda other: -int(other.stem))
    return []


def _reference(table: SemanticIdTable, lineage: str) -> tuple[Any, ...]:
    """
    Return what a pickle says of a table with a file.

    Who trained or extended it and who read it later hold the same table, and pickle it to the same bytes: a function
    over it has one fingerprint at every start, and `datasets.map` takes what it computed before.
    """
    place = os.path.abspath(table.path or "")  # noqa: PTH100 - links stay: they are how users name a place
    whole = table.status in WHOLE
    said = ("cached", "out of a pickle") if whole else (table.status, table.reason)
    return place, table.digest, lineage, *said, table.strict, table._sizes


def _default(levels: int, reason: str, strict: bool) -> SemanticIdTable:
    table = SemanticIdTable.default(levels, reason)
    table.strict = strict
    return table


def _from_bytes(
    data: bytes, status: str, reason: str, strict: bool, sizes: tuple[int, ...] | None = None
) -> SemanticIdTable:
    table = SemanticIdTable.from_buffer(data, path=None, status=status, reason=reason, strict=strict)
    table._sizes = sizes
    return table


class _Values(ValuesView[list[int]]):
    """IDs, turned into lists block by block."""

    _mapping: SemanticIdTable

    def __iter__(self) -> Iterator[list[int]]:
        codes = self._mapping.codes_array
        for start in range(0, len(codes), BLOCK_ITEMS):
            yield from codes[start : start + BLOCK_ITEMS].tolist()

    def __contains__(self, value: object) -> bool:
        codes = _codes_or_none(value)
        whole = self._mapping.codes_array
        return codes is not None and len(codes) == whole.shape[1] and bool((whole == np.array(codes)).all(1).any())


class _Items(ItemsView[int | str, list[int]]):
    """Pairs of item and ID, made block by block."""

    _mapping: SemanticIdTable

    def __iter__(self) -> Iterator[tuple[int | str, list[int]]]:
        return zip(self._mapping, _Values(self._mapping), strict=True)

    def __contains__(self, pair: object) -> bool:
        # ItemsView's own asks `table[item]`, which answers for unknown items too.
        if not isinstance(pair, tuple) or len(pair) != 2:
            return False
        codes = _codes_or_none(pair[1])
        return codes is not None and self._mapping.get(pair[0]) == codes


def _codes_or_none(value: object) -> list[int] | None:
    """Return the codes in a list of such; None for anything that is none."""
    try:
        return _checked("", value, 0) if isinstance(value, list) else None
    except TableError:
        return None


def _named(item: Any) -> str:
    """Return an item as messages spell it: of numpy's numbers and strings what they are, of objects the type."""
    found = item_of(item)
    return shown(found if isinstance(found, int | str) else item)


def _largest(sizes: Sequence[int], offset: Any) -> int:
    """Return the largest code once `offset` is added."""
    largest = max(sizes, default=0) - 1
    return largest + as_count(offset, "offset", 0, MAX_CODE - max(largest, 0))


def _flat(query: NDArray[Any] | list[Any]) -> list[Any]:
    return query if isinstance(query, list) else query.reshape(-1).tolist()


def _checked(item: object, value: Any, levels: int) -> list[int]:
    """Return a value of a mapping as a list of codes."""
    if isinstance(value, str | bytes | set | frozenset | Mapping):
        raise TableError(f"The ID of item {_named(item)} must be a list of whole numbers, not {shown(value)}.")
    codes: list[int] = []
    odd: Any = value
    try:
        for code in value:
            odd = code
            if isinstance(code, bool | np.bool_) or not 0 <= operator.index(code) <= MAX_CODE:
                raise TableError(
                    f"The ID of item {_named(item)} must hold numbers from 0 to {MAX_CODE:,}, not {shown(code)}."
                )
            codes.append(operator.index(code))
            if len(codes) > MOST_LEVELS:
                raise TableError(f"The ID of item {_named(item)} has more than {MOST_LEVELS:,} codes.")
    except TableError:
        raise
    except Exception as error:
        raise TableError(f"The ID of item {_named(item)} must be a list of whole numbers, not {shown(odd)}.") from error
    if not codes or (levels and len(codes) != levels):
        raise TableError(
            f"The ID of item {_named(item)} has {len(codes)} codes, {levels or 'one or more'} are expected."
        )
    return codes


def _prefix_codes(prefix: Any) -> list[int]:
    """Return the codes of a prefix; -1 for what is no code of any table."""
    found = as_query(prefix)
    shape = np.shape(found)
    if len(shape) > 1 and shape[0] > 1:
        raise ItemsError(
            f"A prefix is one list of codes, such as [12, 3], not {shape[0]} of them: ask for one ID after the other, "
            "[table.items_of(codes) for codes in ids]."
        )
    codes = [item_of(code) for code in _flat(found)]
    if not all(isinstance(code, int) for code in codes):
        raise ItemsError(f"A prefix is a list of codes, such as [12, 3], not {shown(prefix)}.")
    return [code if isinstance(code, int) else -1 for code in codes]


def _table_file(given: Any) -> Path:
    """Return the file of a table that a person named, by itself or by its folder."""
    path = as_path(given, TableError)
    if not path.is_dir():
        if path.exists() and not path.is_file():
            raise TableError(f"'{path}' is not a regular file. Give a {TABLE_FILE} or its folder.")
        return path
    if not (path / TABLE_FILE).is_file():
        others = sorted(entry.name for entry in path.glob("*.safetensors"))[:3]
        there = f" There is: {', '.join(others)}." if others else ""
        raise TableError(f"The folder '{path}' holds no {TABLE_FILE}.{there} Give the file of a table, or its folder.")
    return path / TABLE_FILE


def _inverse(codes: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.uint32]]:
    """Return the packed IDs in order, and the row of each."""
    packed = packed_rows(codes)
    order = np.argsort(packed, kind="stable")
    return packed[order], order.astype(np.uint32)
