"""
Semantic IDs in the files of other tools, and back: JSON, parquet, arrays, tokens, a trie for decoding.

Every export of IDs has its reader here, and reading gives the same IDs. Formats that hold codes alone (arrays) get
the items in a file beside them. Torch, pyarrow and transformers are loaded only by those who ask for what needs them.
"""

import importlib
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from semid_dataset import _files as files
from semid_dataset.errors import ConfigError, EmbeddingError, TableError
from semid_dataset.format.id_json import parse_id_json
from semid_dataset.objects import as_choice, as_codes, as_count, as_items, as_path, expect, shown
from semid_dataset.table.table import SemanticIdTable

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "FORMATS",
    "PrefixTrie",
    "SemanticIdLogitsProcessor",
    "export",
    "flat_ids",
    "pack_ids",
    "prefix_allowed_tokens_fn",
    "read_export",
    "token_ids_of",
    "token_list",
    "unflatten_ids",
    "unpack_ids",
]

STYLES: dict[str, Callable[[int, int], str]] = {
    "letter": lambda level, code: f"<{_letter(level)}_{code}>",
    "s_letter": lambda level, code: f"<s_{_letter(level)}_{code}>",
    "item": lambda level, code: f"<item_L{level}_C{code}>",
}
CODE = re.compile(r"[0-9]{1,5}")
CODES_TEXT = re.compile(r"\s*[\[(]?\s*[0-9]{1,5}(?:\s*[,;\s_-]\s*[0-9]{1,5})*\s*,?\s*[\])]?\s*")
TOKEN = re.compile(r"<(?:s_)?([a-z])_([0-9]{1,5})>|<item_L([0-9]{1,2})_C([0-9]{1,5})>")  # of any style
BLOCK_ITEMS = 1 << 16
CODES = ("codes", "semantic_id", "semantic_ids", "sid", "codebook")  # names of a column of codes, in this order
MAX_PACKED_BITS = 64
MAX_SIZE = 1 << 31  # codes of a level
LETTERS = 26
STATED = b"semid_dataset.codebook_sizes"  # in the metadata of a parquet file's schema: JSON

ROWS = "rows"


@dataclass(frozen=True)
class How:
    """What a file of IDs does not say: the sizes of its levels, and the items of its rows; see `read_export`."""

    sizes: int | Sequence[int] | None = None
    items: "str | Sequence[int] | Sequence[str] | NDArray[Any] | None" = None


def _letter(level: int) -> str:
    return "abcdefghijklmnopqrstuvwxyz"[level]  # there are 16 levels at most


# --- IDs as numbers -----------------------------------------------------------------------------


def flat_ids(codes: NDArray[Any], sizes: Sequence[int], *, first: int = 1) -> NDArray[np.int64]:
    """
    Return codes as rows of one common vocabulary: code + first + (sizes of the levels before).

    Args:
        codes: (n, levels).
        sizes: codes of each level.
        first: the number of code 0 of level 0. With 1, number 0 is free for padding; with 0 the
            numbers start at 0, as TorchEasyRec's `offset_codebook` and GRID's embedding table want them.

    Raises:
        TableError: a code is beyond its level's size.
    """
    codes, sizes = as_codes(codes, "codes", TableError), _sizes(sizes)
    _check_codes(codes, sizes)
    return codes.astype(np.int64) + _offsets(sizes, first)


def unflatten_ids(flat: NDArray[Any], sizes: Sequence[int], *, first: int = 1) -> NDArray[Any]:
    """Return the codes of `flat_ids`; raises TableError where a number belongs to no code of its level."""
    flat, sizes = as_codes(flat, "flat IDs", TableError), _sizes(sizes)
    if flat.ndim != 2 or flat.shape[1] != len(sizes):
        raise TableError(f"Flat IDs of shape {flat.shape} do not fit {len(sizes)} levels.")
    codes = flat.astype(np.int64) - _offsets(sizes, first)
    _check_codes(codes, sizes)
    return codes.astype(_code_dtype(sizes))


def pack_ids(codes: NDArray[Any], sizes: Sequence[int]) -> NDArray[np.uint64]:
    """
    Return each ID as one integer, level 0 in the highest bits, so that integers sort as IDs do.

    Raises:
        TableError: an ID needs more than 64 bits, or a code is beyond its level's size.
    """
    codes, sizes = as_codes(codes, "codes", TableError), _sizes(sizes)
    _check_codes(codes, sizes)
    bits = _bits(sizes)
    packed = np.zeros(len(codes), np.uint64)
    for level, width in enumerate(bits):
        packed = packed << np.uint64(width) | codes[:, level].astype(np.uint64)
    return packed


def unpack_ids(packed: NDArray[Any], sizes: Sequence[int]) -> NDArray[Any]:
    """Return the codes of `pack_ids`; raises TableError where an integer is no ID."""
    packed, sizes = as_codes(packed, "packed IDs", TableError).reshape(-1), _sizes(sizes)
    bits = _bits(sizes)
    rest = packed.astype(np.uint64)
    codes = np.empty((len(rest), len(bits)), np.int64)
    for level in reversed(range(len(bits))):
        codes[:, level] = rest & np.uint64((1 << bits[level]) - 1)
        rest = rest >> np.uint64(bits[level])
    if rest.any():
        raise TableError(
            f"{int(packed[int(np.flatnonzero(rest)[0])])} has more bits than an ID of {list(sizes)} codes."
        )
    _check_codes(codes, sizes)
    return codes.astype(_code_dtype(sizes))


def _offsets(sizes: Sequence[int], first: int) -> NDArray[np.int64]:
    return np.array([as_count(first, "first", 0, 1 << 40), *sizes[:-1]], np.int64).cumsum()


def _sizes(given: Any) -> list[int]:
    """Return the codes of each level as whole numbers of one or more."""
    found = as_codes(given, "codebook sizes", TableError)
    if found.ndim != 1 or (found.size and not 0 <= found.min() <= found.max() <= MAX_SIZE):
        raise TableError(f"Codebook sizes are one whole number a level, at most {MAX_SIZE:,}; not {shown(given)}.")
    sizes: list[int] = found.tolist()
    return sizes


def _bits(sizes: Sequence[int]) -> list[int]:
    bits = [max(1, math.ceil(math.log2(size))) if size > 1 else 1 for size in sizes]
    if sum(bits) > MAX_PACKED_BITS:
        raise TableError(
            f"IDs of {list(sizes)} codes take {sum(bits)} bits; an integer has 64. Export flat ids instead."
        )
    return bits


def _code_dtype(sizes: Sequence[int]) -> type[np.uint8] | type[np.uint16]:
    return np.uint8 if max(sizes, default=0) <= 256 else np.uint16


def _check_codes(codes: NDArray[Any], sizes: Sequence[int]) -> None:
    if codes.ndim != 2 or codes.shape[1] != len(sizes):
        raise TableError(f"Codes of shape {codes.shape} do not fit {len(sizes)} levels.")
    if len(codes) and not ((codes >= 0) & (codes < np.array(sizes))).all():
        row, level = map(int, np.argwhere((codes < 0) | (codes >= np.array(sizes)))[0])
        raise TableError(
            f"Row {row} has code {int(codes[row, level])} at level {level}, which has {sizes[level]} codes."
        )


# --- IDs as tokens ------------------------------------------------------------------------------


def token_list(sizes: Sequence[int], style: str = "letter") -> list[str]:
    """
    Return the tokens of all codes of all levels, level by level: what `tokenizer.add_tokens` must be given.

    All of them, not only those in use today: an item that comes later may have any code, and a token
    added later gets a row of the embedding that nobody trained.

    Args:
        sizes: codes of each level.
        style: "letter" `<a_12>`, "s_letter" `<s_a_12>`, "item" `<item_L0_C12>`. The last has capitals: under a
            tokenizer that lower-cases no text ever holds such a token.
    """
    spell, sizes = _spelling(style), _sizes(sizes)
    if len(sizes) > LETTERS:
        raise TableError(f"Tokens are spelled for {LETTERS} levels at most, not {len(sizes)}.")
    return [spell(level, code) for level, size in enumerate(sizes) for code in range(size)]


def _spelling(style: str) -> Callable[[int, int], str]:
    return STYLES[as_choice(style, STYLES, "style")]


def _index_chunks(table: SemanticIdTable, style: str) -> Iterator[bytes]:
    """Yield `{"item": ["<a_1>", "<b_2>"], ...}` in blocks, in the order of the table."""
    spell = _spelling(style)
    sizes = table.codes_array.max(axis=0, initial=0).tolist()
    words = [[json.dumps(spell(level, code)) for code in range(size + 1)] for level, size in enumerate(sizes)]
    items = iter(table)
    opening = "{"
    for start in range(0, len(table), BLOCK_ITEMS):
        rows = table.codes_array[start : start + BLOCK_ITEMS].tolist()
        lines = [
            f"{json.dumps(str(item))}:[{','.join(words[level][code] for level, code in enumerate(row))}]"
            for row, item in zip(rows, items, strict=False)
        ]
        yield (opening + ",".join(lines)).encode()
        opening = ","
    yield b"}" if opening == "," else b"{}"


def _parse_index(data: bytes, where: str, how: How) -> SemanticIdTable:
    """Read an index of tokens in any of the styles."""
    try:
        index = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TableError(f"'{where}' is no valid JSON: {error}.") from None
    if not isinstance(index, dict):
        raise TableError(f"'{where}' must hold an object of token lists, found a {type(index).__name__}.")
    ids: dict[str, list[int]] = {}
    for item, tokens in index.items():
        codes = []
        for level, token in enumerate(tokens if isinstance(tokens, list) else [tokens]):
            match = TOKEN.fullmatch(token) if isinstance(token, str) else None
            found = -1 if match is None else ord(match[1]) - ord("a") if match[1] else int(match[3])
            if match is None or found != level:
                raise TableError(f"'{where}', item {item!r:.80}: {token!r:.80} is no token of level {level}.")
            codes.append(int(match[2] or match[4]))
        ids[item] = codes
    return SemanticIdTable.from_mapping(ids, reason=f"read from {where}", codebook_sizes=how.sizes)


# --- files --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """How one kind of file is written and read; `read` is None for what holds no items (tokens)."""

    name: str
    suffix: str
    what: str
    write: Callable[[SemanticIdTable, Path, str, int], list[Path]]
    read: "Callable[[Path, How], SemanticIdTable] | None"


def export(
    table: SemanticIdTable, path: str | Path, form: str | None = None, *, style: str = "letter", first: int = 1
) -> list[Path]:
    """
    Write a table in another tool's format.

    Args:
        path: the file; folders are made as needed, a file that is there is replaced in one step.
        form: a name of `FORMATS`; by default the path's ending decides.
        style: of tokens, see `token_list`.
        first: of flat ids, see `flat_ids`.

    Returns:
        The files written: the export itself and, for bare arrays, the list of items beside it.

    Raises:
        ConfigError: no such format or style.
        TableError: the table does not fit the format.
        OSError: it could not be written; what was there before is as it was.
    """
    expect(table, SemanticIdTable, "table", TableError)
    path = as_path(path)
    wanted = format_of(path, form)
    first = as_count(first, "first", 0, 1 << 40)
    _spelling(style)
    path.parent.mkdir(parents=True, exist_ok=True)
    return wanted.write(table, path, style, first)


def read_export(
    path: str | Path,
    form: str | None = None,
    *,
    codebook_sizes: int | Sequence[int] | None = None,
    items: "str | Sequence[int] | Sequence[str] | NDArray[Any] | None" = None,
) -> SemanticIdTable:
    """
    Read what `export` wrote (or another tool, in its format) into a table in memory, without a quantizer.

    Args:
        path: the file.
        form: a name of `FORMATS`; by default the path's ending decides.
        codebook_sizes: codes per level, one number or one per level, where the file does not say them (flat ids,
            packed ones and our parquet do). Without, the power of two that holds the largest code is taken for every
            level, and said.
        items: of the rows of an array without a file of items beside it: "rows" where row k is item k, or all of them.

    Raises:
        ConfigError: no such format, or one that holds no items; `items` for a file that names its own;
            `codebook_sizes` that are none, or not those that the file states.
        TableError: the file is not what its name says.
        OSError: it cannot be read.
    """
    path = as_path(path)
    wanted = format_of(path, form)
    if wanted.read is None:
        raise ConfigError(f"'{path}': the format {wanted.name} holds {wanted.what}, no IDs of items.")
    if items is not None and wanted.name not in ARRAYS:
        raise ConfigError(f"'{path}' names its items itself: leave items out.")
    return wanted.read(path, How(codebook_sizes, items))


def format_of(path: Path, form: str | None) -> Format:
    """
    Return the format by name, or by the ending of a path.

    Raises:
        ConfigError: neither is known.
    """
    if form is None:
        ending = max(
            (f for f in FORMATS.values() if path.name.endswith(f.suffix)), key=lambda f: len(f.suffix), default=None
        )
        if ending is None:
            endings = ", ".join(f"{one.name} ({one.suffix})" for one in FORMATS.values())
            raise ConfigError(f"The ending of '{path}' names no format. Name one, or use an ending of: {endings}.")
        return ending
    return FORMATS[as_choice(form, FORMATS, "format")]


def _items_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.items.json")


def _write_beside(table: SemanticIdTable, path: Path, data: Iterable[bytes | memoryview]) -> list[Path]:
    """Write an array and the list of its items, in the order of its rows; never does one lie beside another's."""
    beside = _items_file(path)
    keys = table.keys_array
    items = keys.tolist() if isinstance(keys, np.ndarray) else keys
    files.replace_pair((path, data), (beside, [json.dumps(items, separators=(",", ":")).encode()]))
    return [path, beside]


def _read_beside(path: Path, codes: NDArray[Any], how: How) -> SemanticIdTable:
    beside = _items_file(path)
    if how.items is not None:
        return _table(_given_items(how.items, len(codes), path), codes, path, how)
    try:
        items = json.loads(_bytes(beside))
    except FileNotFoundError:
        raise TableError(
            f"'{path}' holds the codes of {len(codes):,} items but '{beside.name}', the items of its rows, is missing. "
            'Write them there as a list of JSON, in the order of the rows; where row k is item k, say so: items="rows" '
            "(--items rows)."
        ) from None
    except ValueError as error:
        raise TableError(f"'{beside}' is no valid JSON: {error}.") from None
    if not isinstance(items, list) or len(items) != len(codes):
        found = len(items) if isinstance(items, list) else type(items).__name__
        raise TableError(f"'{beside}' holds {found} items; '{path.name}' has {len(codes)} rows.")
    return _table(items, codes, path, how)


def _given_items(items: Any, rows: int, path: Path) -> Any:
    """Return the items of the rows of an array that somebody named."""
    if isinstance(items, str):
        if items != ROWS:
            raise ConfigError(f"items={shown(items)} of '{path}' is neither \"rows\" nor the items themselves.")
        return np.arange(rows)
    items = as_items(items, "items", TableError, empty=True)
    if len(items) != rows:
        raise TableError(f"{len(items)} items were given for the {rows} rows of '{path}'. They must be as many.")
    return items


def _table(items: Any, codes: NDArray[Any], path: Path, how: How) -> SemanticIdTable:
    """Return a table of codes of any integer dtype."""
    if (
        codes.ndim != 2
        or codes.dtype.kind not in "iu"
        or (codes.size and not 0 <= codes.min() <= codes.max() <= 65_535)
    ):
        raise TableError(
            f"'{path}' holds {codes.dtype} of shape {codes.shape}; codes are (items, levels) of 0 to 65,535."
        )
    narrow = codes.astype(np.uint8 if codes.max(initial=0) <= 255 else np.uint16)
    return SemanticIdTable.of_codes(items, narrow, "pregenerated", f"read from {path}", how.sizes, None, str(path))


def _agreeing(path: Path, stated: Sequence[int], how: How) -> tuple[int, ...]:
    """Return the sizes that a file states; raises ConfigError where somebody asks for others."""
    asked = how.sizes
    sizes = tuple(int(size) for size in stated)
    wanted = sizes if asked is None else (asked,) * len(sizes) if isinstance(asked, int) else tuple(asked)
    if wanted != sizes:
        raise ConfigError(
            f"'{path}' states that its levels have {sizes} codes, not {wanted}. Leave codebook_sizes out."
        )
    return sizes


def _bytes(path: Path) -> bytes:
    return bytes(files.map_file(path, mmap=False, follow=True)[0])


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _npz(**arrays: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **cast(dict[str, Any], arrays))  # its type mistakes a name for allow_pickle
    return buffer.getvalue()


def _load(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of an archive by name; one of an .npy has the name ""."""
    from semid_dataset.inputs.formats import format_of
    from semid_dataset.inputs.formats.npy import load_array, load_arrays

    with _as_table_errors():
        files.map_file(path, follow=True)  # a missing file and a pipe are said in the words of the others
        return {"": load_array(path)} if format_of(path, "npy").name == "npy" else load_arrays(path)


@contextmanager
def _as_table_errors() -> Iterator[None]:
    """Raise as TableError what readers of embeddings raise about a file."""
    try:
        yield
    except EmbeddingError as error:
        raise TableError(str(error)) from None


def _member(archive: dict[str, NDArray[Any]], name: str, path: Path) -> NDArray[Any]:
    if name not in archive:
        raise TableError(f"'{path}' holds no array {name!r}: it is no export of this kind.")
    return archive[name]


def _write_json(table: SemanticIdTable, path: Path, style: str, first: int) -> list[Path]:
    files.replace_file(path, table.json_chunks())
    return [path]


def _read_json(path: Path, how: How) -> SemanticIdTable:
    items, codes = parse_id_json(_bytes(path), str(path))
    return _table(items, codes if len(codes) else np.empty((0, 4), np.uint8), path, how)


def _write_index(table: SemanticIdTable, path: Path, style: str, first: int) -> list[Path]:
    files.replace_file(path, _index_chunks(table, style))
    return [path]


def _read_index(path: Path, how: How) -> SemanticIdTable:
    return _parse_index(_bytes(path), str(path), how)


def _write_npy(table: SemanticIdTable, path: Path, style: str, first: int) -> list[Path]:
    return _write_beside(table, path, [_npy(table.codes_array)])


def _read_npy(path: Path, how: How) -> SemanticIdTable:
    arrays = _load(path)
    if "" not in arrays:
        raise TableError(f"'{path}' is an archive of arrays, no array.")
    return _read_beside(path, arrays[""], how)


def _write_pt(table: SemanticIdTable, path: Path, style: str, first: int) -> list[Path]:
    import torch

    from semid_dataset.codec._threads import isolated

    buffer = io.BytesIO()
    with isolated():  # a fake tensor cannot be written
        torch.save(torch.from_numpy(np.ascontiguousarray(table.codes_array.T, np.int64)), buffer)
    return _write_beside(table, path, [buffer.getvalue()])


def _read_pt(path: Path, how: How) -> SemanticIdTable:
    import pickle

    import torch

    from semid_dataset.codec._threads import isolated

    try:
        with isolated():
            codes = torch.load(io.BytesIO(_bytes(path)), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        # Torch's own words advise to execute the file.
        raise TableError(
            f"'{path}' cannot be read as a tensor ({type(error).__name__}). Nothing in it was executed. Write it with "
            "torch.save, one tensor (levels, items)."
        ) from None
    if not isinstance(codes, torch.Tensor) or codes.ndim != 2:
        raise TableError(f"'{path}' must hold a tensor (levels, items).")
    with isolated():
        array = codes.numpy().T
    return _read_beside(path, array, how)


def _write_flat(table: SemanticIdTable, path: Path, style: str, first: int) -> list[Path]:
    sizes = table.codebook_sizes
    flat = flat_ids(table.codes_array, sizes, first=first)
    data = _npz(ids=flat, sizes=np.array(sizes, np.int64), first=np.array(first))
    return _write_beside(table, path, [data])


def _read_flat(path: Path, how: How) -> SemanticIdTable:
    archive = _load(path)
    sizes = _agreeing(path, _member(archive, "sizes", path).tolist(), how)
    flat = _member(archive, "ids", path)
    return _read_beside(
        path, unflatten_ids(flat, sizes, first=int(_member(archive, "first", path))), replace(how, sizes=sizes)
    )


def _write_packed(table: SemanticIdTable, path: Path, style: str, first: int) -> list[Path]:
    sizes = table.codebook_sizes
    packed = pack_ids(table.codes_array, sizes)
    return _write_beside(table, path, [_npz(packed=packed, sizes=np.array(sizes, np.int64))])


def _read_packed(path: Path, how: How) -> SemanticIdTable:
    archive = _load(path)
    sizes = _agreeing(path, _member(archive, "sizes", path).tolist(), how)
    return _read_beside(path, unpack_ids(_member(archive, "packed", path), sizes), replace(how, sizes=sizes))


def _write_tokens(table: SemanticIdTable, path: Path, style: str, first: int) -> list[Path]:
    tokens = token_list(table.codebook_sizes, style)
    files.replace_file(path, [json.dumps(tokens, separators=(",", ":")).encode()])
    return [path]


def _write_trie(table: SemanticIdTable, path: Path, style: str, first: int) -> list[Path]:
    trie = PrefixTrie.of(table.codes_array)
    return _write_beside(table, path, [_npz(**trie.to_arrays())])


def _read_trie(path: Path, how: How) -> SemanticIdTable:
    return _read_beside(path, PrefixTrie.open(path).codes(), how)


def _write_parquet(table: SemanticIdTable, path: Path, style: str, first: int) -> list[Path]:
    arrow, parquet = _arrow()
    keys = table.keys_array
    schema = arrow.schema(
        [
            ("item_id", arrow.int64() if isinstance(keys, np.ndarray) else arrow.string()),
            ("codes", arrow.list_(arrow.int64())),
            ("offset_codes", arrow.list_(arrow.int64())),
        ]
    )
    sizes = table.codebook_sizes
    if table.sizes_stated:
        schema = schema.with_metadata({STATED: json.dumps(list(sizes))})
    sink = arrow.BufferOutputStream()
    with parquet.ParquetWriter(sink, schema) as writer:
        for start in range(0, max(len(table), 1), BLOCK_ITEMS):
            codes = table.codes_array[start : start + BLOCK_ITEMS]
            # Offsets that begin at 0, whatever `first`: the column is what TorchEasyRec calls offset_codebook.
            lists = [_lists(arrow, codes.astype(np.int64)), _lists(arrow, flat_ids(codes, sizes, first=0))]
            block = arrow.array(keys[start : start + BLOCK_ITEMS], schema.field("item_id").type)
            writer.write_table(arrow.table([block, *lists], schema=schema))
    files.replace_file(path, [memoryview(sink.getvalue())])
    return [path]


def _lists(arrow: Any, rows: NDArray[np.int64]) -> Any:
    offsets = np.arange(0, rows.size + 1, rows.shape[1], dtype=np.int32)
    return arrow.ListArray.from_arrays(arrow.array(offsets), arrow.array(rows.reshape(-1)))


def _read_parquet(path: Path, how: How) -> SemanticIdTable:
    from semid_dataset.inputs.formats.parquet import read_table

    arrow, _ = _arrow()
    names: list[str] = []

    def chosen(schema: Any) -> list[str]:
        names.extend(_columns_of_ids(schema.names, path))
        return names

    with _as_table_errors():
        files.map_file(path, follow=True)
        table = read_table(path, chosen)
    stated = (table.schema.metadata or {}).get(STATED)
    if stated is not None:
        how = replace(how, sizes=_agreeing(path, json.loads(stated), how))
    items, codes = (table.column(name) for name in names)
    return _table(items.to_pylist(), _codes_column(arrow, codes.combine_chunks(), path), path, how)


def _codes_column(arrow: Any, column: Any, path: Path) -> NDArray[Any]:
    """Return the codes (n, levels) of a column of lists of numbers, of lists of their digits, or of text."""
    kind = column.type
    if arrow.types.is_string(kind) or arrow.types.is_large_string(kind) or arrow.types.is_dictionary(kind):
        rows = [_spelled_codes(text, row, path) for row, text in enumerate(column.to_pylist())]
        column = arrow.array(rows, arrow.list_(arrow.int64()))
    elif not (arrow.types.is_list(kind) or arrow.types.is_large_list(kind) or arrow.types.is_fixed_size_list(kind)):
        raise TableError(f"'{path}' has {kind} under codes; wanted: lists of numbers, or text such as '217,163,130'.")
    lengths = Counter(-1 if length is None else length for length in _lengths(column))
    if len(lengths) > 1 or -1 in lengths:
        raise TableError(_ragged(path, lengths))
    levels = next(iter(lengths), 4)
    flat = column.flatten()
    if arrow.types.is_string(flat.type) or arrow.types.is_large_string(flat.type):
        texts = flat.to_pylist()
        if wrong := next((text for text in texts if text is None or not CODE.fullmatch(text)), None) or None in texts:
            raise TableError(f"'{path}' has {wrong!r:.80} among its codes, which is no whole number.")
        return np.array([int(text) for text in texts], np.int64).reshape(-1, levels)
    codes: NDArray[Any] = flat.to_numpy(zero_copy_only=False).reshape(-1, levels)
    if codes.dtype.kind == "f" and (codes == np.floor(codes)).all():  # as pandas makes of integers
        codes = codes.astype(np.int64)
    return codes


def _lengths(column: Any) -> list[int | None]:
    if hasattr(column, "value_lengths"):
        return cast("list[int | None]", column.value_lengths().to_pylist())
    return [None if row is None else len(row) for row in column.to_pylist()]


def _spelled_codes(text: object, row: int, path: Path) -> list[int]:
    """Return the codes that a text spells: '217,163,130', '[217, 163, 130]', '217 163 130', '<a_217><b_163><c_130>'."""
    if isinstance(text, str):
        if tokens := [match[2] or match[4] for match in TOKEN.finditer(text)]:
            if not TOKEN.sub("", text).strip(" ,"):
                return [int(code) for code in tokens]
        elif CODES_TEXT.fullmatch(text):
            return [int(code) for code in CODE.findall(text)]
    raise TableError(f"'{path}', row {row}: {text!r:.80} is no list of codes, nor one written as 217,163,130.")


def _ragged(path: Path, lengths: Mapping[int, int]) -> str:
    """Say that IDs differ in length, and what to do where some of them carry a suffix."""
    found = ", ".join(f"{count:,} with {'none' if length < 0 else length}" for length, count in sorted(lengths.items()))
    message = f"'{path}' holds IDs of different lengths: {found} codes. All must have as many levels."
    if len(lengths) == 2 and min(lengths) > 0 and max(lengths) == min(lengths) + 1:
        message += (
            " Where colliding items alone carry a suffix, write one for every item (0 where there was none), or leave "
            "it out for all."
        )
    return message


def _columns_of_ids(names: Sequence[str], path: Path) -> list[str]:
    """Return the columns of items and of codes."""
    from semid_dataset.inputs._columns import ITEM_NAMES, named

    item = named([name for name in names if name not in CODES], ITEM_NAMES)
    codes = next((name for name in CODES if name in names), None)
    if item is None or codes is None:
        raise TableError(f"'{path}' has the columns {', '.join(names)}; wanted: item_id and codes.")
    return [item, codes]


def _arrow() -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ConfigError('Parquet needs pyarrow: pip install "semid_dataset[parquet]".') from None


FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        Format("json", ".json", "{item: codes}, the semantic_id_dict.json", _write_json, _read_json),
        Format("index", ".index.json", "{item: tokens}, for LC-Rec and MiniOneRec", _write_index, _read_index),
        Format("parquet", ".parquet", "item_id, codes and codes with level offsets", _write_parquet, _read_parquet),
        Format("npy", ".npy", "codes (items, levels)", _write_npy, _read_npy),
        Format("pt", ".pt", "codes (levels, items) int64, for GRID", _write_pt, _read_pt),
        Format("flat", ".flat.npz", "ids of one vocabulary over all levels", _write_flat, _read_flat),
        Format("packed", ".packed.npz", "one integer an ID", _write_packed, _read_packed),
        Format("tokens", ".tokens.json", "the tokens of all codes, for add_tokens", _write_tokens, None),
        Format("trie", ".trie.npz", "the IDs as a prefix trie, for decoding", _write_trie, _read_trie),
    )
}


ARRAYS = frozenset({"npy", "pt", "flat", "packed", "trie"})  # whose items lie beside them


# --- the trie -----------------------------------------------------------------------------------


class PrefixTrie:
    """
    Which codes may follow which, in compressed sparse rows.

    Nodes are the distinct prefixes, numbered level by level and, within a level, in the order of their codes;
    node 0 is the empty prefix. `codes[indptr[node]:indptr[node + 1]]` are the codes that may follow a node,
    ascending, and edge e leads to node e + 1, so that no child needs to be stored. Leaves are IDs;
    `rows[row_indptr[leaf]:row_indptr[leaf + 1]]` are the table's rows with that ID.

    Memory: 8 bytes a node, 2 an edge and 8 an item.
    """

    def __init__(
        self, levels: int, indptr: NDArray[Any], codes: NDArray[Any], rows: NDArray[Any], row_indptr: NDArray[Any]
    ) -> None:
        self.levels = levels
        self.indptr = indptr.astype(np.int64, copy=False)
        self.edge_codes = codes.astype(np.int64, copy=False)
        self.rows = rows.astype(np.int64, copy=False)
        self.row_indptr = row_indptr.astype(np.int64, copy=False)
        self._span = int(self.edge_codes.max(initial=0)) + 1
        # (parent, code) as one number ascends with the edges: a step for many prefixes is one binary search.
        parents = np.repeat(np.arange(len(self.indptr) - 1), np.diff(self.indptr))
        self._edges = parents * self._span + self.edge_codes

    @classmethod
    def of(cls, codes: NDArray[Any]) -> "PrefixTrie":
        """Return the trie of (n, levels) codes; equal rows share a leaf."""
        codes = as_codes(codes, "codes", TableError)
        if codes.ndim != 2 or not codes.shape[1]:
            raise TableError(f"Codes of shape {codes.shape} are no IDs; wanted: (items, levels).")
        count, levels = codes.shape
        order = np.lexsort(codes.T[::-1]) if count else np.empty(0, np.int64)
        ordered = codes[order].astype(np.int64)
        fresh = np.ones(count, bool)  # rows that begin another prefix than the row before, of the length looked at
        fresh[1:] = False
        degrees: list[NDArray[np.int64]] = []
        edges: list[NDArray[np.int64]] = []
        starts = np.zeros(min(count, 1), np.int64)  # first row of every node of the level
        for level in range(levels):
            fresh[1:] |= ordered[1:, level] != ordered[:-1, level]
            children = np.flatnonzero(fresh)
            edges.append(ordered[children, level])
            bounds = np.searchsorted(children, np.append(starts, count))
            degrees.append(np.diff(bounds) if count else np.zeros(1 if level == 0 else 0, np.int64))
            starts = children
        leaves = np.zeros(len(starts), np.int64)
        indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate([*degrees, leaves]))])
        return cls(levels, indptr, np.concatenate(edges), order, np.append(starts, count))

    @classmethod
    def open(cls, path: str | Path) -> "PrefixTrie":
        """Read a trie that `export(table, path, "trie")` wrote; raises TableError where it is none."""
        path = as_path(path)
        archive = _load(path)
        names = ("levels", "indptr", "codes", "rows", "row_indptr")
        levels, indptr, codes, rows, row_indptr = (_member(archive, name, path) for name in names)
        if len(indptr) != len(codes) + 2 or int(indptr[-1]) != len(codes) or int(row_indptr[-1]) != len(rows):
            raise TableError(f"'{path}' is no trie: {len(indptr)} bounds for {len(codes)} edges and {len(rows)} rows.")
        return cls(int(levels), indptr, codes, rows, row_indptr)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return what the file holds."""
        return {
            "levels": np.array(self.levels),
            "indptr": self.indptr,
            "codes": self.edge_codes.astype(np.uint16),
            "rows": self.rows,
            "row_indptr": self.row_indptr,
        }

    def __len__(self) -> int:
        """How many distinct IDs there are."""
        return len(self.row_indptr) - 1

    def step(self, nodes: NDArray[np.int64], codes: NDArray[Any]) -> NDArray[np.int64]:
        """Return the nodes that codes lead to from nodes, -1 where they lead nowhere."""
        codes = codes.astype(np.int64)
        known = (nodes >= 0) & (codes >= 0) & (codes < self._span)
        wanted = np.where(known, nodes * self._span + codes, -1)
        edges = np.searchsorted(self._edges, wanted)
        found = known & (edges < len(self._edges))
        found[found] = self._edges[edges[found]] == wanted[found]
        return np.where(found, edges + 1, -1)

    def nodes_of(self, prefixes: NDArray[Any]) -> NDArray[np.int64]:
        """Return the node of each prefix (b, length), -1 where no ID begins so."""
        nodes = np.zeros(len(prefixes), np.int64)
        for level in range(prefixes.shape[1]):
            nodes = self.step(nodes, prefixes[:, level])
        return nodes

    def allowed(self, nodes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return which codes may follow: (positions in `nodes`, codes), as two arrays of one length."""
        alive = np.flatnonzero(nodes >= 0)
        begins, ends = self.indptr[nodes[alive]], self.indptr[nodes[alive] + 1]
        counts = ends - begins
        edges = np.arange(int(counts.sum())) + np.repeat(begins - (np.cumsum(counts) - counts), counts)
        return np.repeat(alive, counts), self.edge_codes[edges]

    def children(self, prefix: Sequence[int]) -> list[int]:
        """Return the codes that may follow a prefix, ascending; none where no ID begins so."""
        node = self.nodes_of(as_codes(prefix, "a prefix", TableError).astype(np.int64).reshape(1, -1))
        return cast("list[int]", self.allowed(node)[1].tolist())

    def rows_of(self, code: Sequence[int]) -> list[int]:
        """Return the rows of the table that have this ID."""
        wanted = as_codes(code, "an ID", TableError).astype(np.int64).reshape(1, -1)
        node = int(self.nodes_of(wanted)[0]) if wanted.shape[1] == self.levels else -1
        leaf = node - (len(self.indptr) - 1 - len(self))
        return (
            cast("list[int]", self.rows[self.row_indptr[leaf] : self.row_indptr[leaf + 1]].tolist())
            if node >= 0
            else []
        )

    def codes(self) -> NDArray[np.int64]:
        """Return the IDs (n, levels) in the order of the table's rows."""
        parents = self._edges // self._span
        nodes = np.arange(len(self)) + (len(self.indptr) - 1 - len(self))
        leaves = np.empty((len(self), self.levels), np.int64)
        for level in reversed(range(self.levels)):
            leaves[:, level] = self.edge_codes[nodes - 1]
            nodes = parents[nodes - 1]
        codes = np.empty((len(self.rows), self.levels), np.int64)
        codes[self.rows] = np.repeat(leaves, np.diff(self.row_indptr), axis=0)
        return codes


# --- decoding with transformers -----------------------------------------------------------------


def token_ids_of(tokenizer: Any, sizes: Sequence[int], style: str = "letter") -> list[NDArray[np.int64]]:
    """
    Return the number that a tokenizer has for every code: one array (codes,) a level.

    Args:
        tokenizer: of transformers, after `tokenizer.add_tokens(token_list(sizes, style))`.
        sizes: codes of each level.

    Raises:
        TableError: the tokenizer lacks a token; it names the first.
    """
    spell = _spelling(style)
    unknown = getattr(tokenizer, "unk_token_id", None)
    split = getattr(tokenizer, "tokenize", None)
    found: list[NDArray[np.int64]] = []
    for level, size in enumerate(sizes):
        tokens = [spell(level, code) for code in range(size)]
        numbers = tokenizer.convert_tokens_to_ids(tokens)
        for token, number in zip(tokens, numbers, strict=True):
            if number is None or number == unknown:
                if style == "item" and tokenizer.convert_tokens_to_ids([token.lower()])[0] not in {None, unknown}:
                    raise TableError(LOWERED.format(token=token, found=token.lower()))
                raise TableError(
                    f"The tokenizer has no token {token}. Call tokenizer.add_tokens(token_list(table.codebook_sizes)), "
                    "the full list, then model.resize_token_embeddings(len(tokenizer))."
                )
        if tokens and callable(split) and tokens[0] not in (pieces := list(split(tokens[0]))):
            if tokens[0].lower() in pieces:
                raise TableError(LOWERED.format(token=tokens[0], found=tokens[0].lower()))
            raise TableError(
                f"The tokenizer knows {tokens[0]} and yet reads it as {pieces[:8]}: what a model is trained on has no "
                "such token. Add the tokens with tokenizer.add_tokens, to the tokenizer that the texts go through."
            )
        found.append(np.array(numbers, np.int64))
    return found


LOWERED = (
    "The tokenizer lower-cases: {token} becomes {found}, and no text ever holds the token. Export the style 'letter' "
    "or 's_letter', which have no capitals, or add the tokens as AddedToken(token, normalized=False)."
)


class _Decoding:
    """What both ways of constraining share: from token numbers to what may follow."""

    def __init__(
        self,
        trie: PrefixTrie,
        token_ids: Sequence[NDArray[Any]],
        prompt_length: int | None,
        end: int | None,
        *,
        rows_apart: bool = False,
    ) -> None:
        if prompt_length is not None and (not isinstance(prompt_length, int | np.integer) or prompt_length < 0):
            raise ConfigError(f"prompt_length must be a number of tokens, or None, not {prompt_length!r}.")
        if len(token_ids) != trie.levels:
            raise TableError(f"Tokens of {len(token_ids)} levels for IDs of {trie.levels}.")
        self.trie = trie
        self.tokens = [np.asarray(tokens, np.int64) for tokens in token_ids]
        self.prompt_length = prompt_length
        self.end = end
        self._rows_apart = rows_apart  # each row of a step comes in a call of its own
        self._prompts: set[bytes] = set()  # of the generation that goes on, where no length was given,
        self._begin = self._last = -1  # how long they are, and how long the rows of the last call were
        self.largest = max(max((int(tokens.max(initial=0)) for tokens in self.tokens), default=0), end or 0)
        self._codes = []
        for level, tokens in enumerate(self.tokens):
            codes = np.full(self.largest + 1, -1, np.int64)
            codes[tokens] = np.arange(len(tokens))
            if len(np.unique(tokens)) != len(tokens):
                raise TableError(f"Two codes of level {level} have the same token.")
            self._codes.append(codes)

    def generated(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """
        Return what was generated of the rows (b, length) that a model hands over: all but the prompt.

        Raises:
            TableError: they are shorter than the prompt is said to be.
        """
        if self.prompt_length is not None:
            if rows.shape[1] < self.prompt_length:
                raise TableError(
                    f"The model hands over {rows.shape[1]} tokens where the prompt should have {self.prompt_length}: "
                    "with inputs_embeds it leaves the prompt out. Leave prompt_length out: the first call says it."
                )
            return rows[:, self.prompt_length :]
        if not self._goes_on(rows):
            self._prompts = {np.ascontiguousarray(row).tobytes() for row in rows}
            self._begin = rows.shape[1]
        elif rows.shape[1] == self._begin:  # another row of the first step
            self._prompts |= {np.ascontiguousarray(row).tobytes() for row in rows}
        self._last = rows.shape[1]
        return rows[:, self._begin :]

    def _goes_on(self, rows: NDArray[np.int64]) -> bool:
        """Say whether a call is the next, or another row, of the generation that the calls before were of."""
        length = rows.shape[1]
        same_step = self._rows_apart and length == self._last
        if self._begin < 0 or not (same_step or self._begin < length == self._last + 1):
            return False
        if length == self._begin:
            return True
        if any(np.ascontiguousarray(row).tobytes() not in self._prompts for row in rows[:, : self._begin]):
            return False
        whole = self._begin + self.trie.levels
        # Behind a whole ID its end comes; where no row has it, this is a prompt that goes on from the last one.
        return self.end is None or length <= whole or bool((rows[:, whole] == self.end).any())

    def nodes(self, tokens: NDArray[np.int64]) -> tuple[int, NDArray[np.int64]]:
        """Return the level of the next token and the node of each row (b, length) of what was generated so far."""
        length = tokens.shape[1]
        level = length if self.end is not None else length % self.trie.levels
        if level >= self.trie.levels:
            return self.trie.levels, np.full(len(tokens), -1, np.int64)
        nodes = np.zeros(len(tokens), np.int64)
        for at in range(level):
            column = tokens[:, length - level + at]
            inside = (column >= 0) & (column <= self.largest)
            nodes = self.trie.step(nodes, np.where(inside, self._codes[at][np.where(inside, column, 0)], -1))
        if level and len(nodes) and (nodes < 0).all():
            raise TableError(
                f"After a prompt of {self._begin if self.prompt_length is None else self.prompt_length} tokens came "
                f"{tokens[0].tolist()}, with which no ID begins. Pass the length of the prompt, padding included (1 "
                "for an encoder-decoder model), or leave prompt_length out: the first call says it."
            )
        return level, nodes


class SemanticIdLogitsProcessor:
    """
    Lets a transformers model generate IDs of real items and nothing else.

        trie = PrefixTrie.of(table.codes_array)
        tokens = token_ids_of(tokenizer, table.codebook_sizes)
        processor = SemanticIdLogitsProcessor(trie, tokens, eos_token_id=tokenizer.eos_token_id)
        model.generate(**inputs, logits_processor=[processor], max_new_tokens=table.levels + 1)

    Args:
        trie: of the table's IDs.
        token_ids: see `token_ids_of`.
        prompt_length: tokens before the ID, padding included; 1 for an encoder-decoder model, 0 with `inputs_embeds`.
            By default the first call of a generation says it.
        eos_token_id: comes after the ID, and only then; None begins another ID instead.

    It works with sampling, greedy and beam search. A beam search that keeps more beams than there are IDs
    fills the rest with sequences of score −inf, as it does with every constraint.

    Cost: a binary search a level and sequence, on the CPU, whatever the number of items.
    """

    def __init__(
        self,
        trie: PrefixTrie,
        token_ids: Sequence[NDArray[Any]],
        *,
        prompt_length: int | None = None,
        eos_token_id: int | None = None,
    ) -> None:
        self._decoding = _Decoding(trie, token_ids, prompt_length, eos_token_id)

    def __call__(self, input_ids: "Tensor", scores: "Tensor") -> "Tensor":
        """Return the scores (b, vocabulary), −inf wherever no ID goes on."""
        import torch

        decoding = self._decoding
        if decoding.largest >= scores.shape[1]:
            raise TableError(
                f"The model scores {scores.shape[1]} tokens, an ID's token has the number {decoding.largest}. "
                "Call model.resize_token_embeddings(len(tokenizer))."
            )
        level, nodes = decoding.nodes(decoding.generated(input_ids.cpu().numpy()))
        allowed = torch.full_like(scores, -torch.inf)
        if level == decoding.trie.levels:
            allowed[:, decoding.end] = scores[:, decoding.end]
            return allowed
        at, codes = decoding.trie.allowed(nodes)
        rows = torch.from_numpy(at).to(scores.device)
        columns = torch.from_numpy(decoding.tokens[level][codes]).to(scores.device)
        allowed[rows, columns] = scores[rows, columns]
        return allowed


def prefix_allowed_tokens_fn(
    trie: PrefixTrie, token_ids: Sequence[NDArray[Any]], *, prompt_length: int | None = None, eos_token_id: int
) -> Callable[[int, "Tensor"], list[int]]:
    """
    Return the same constraint as `SemanticIdLogitsProcessor`, for `model.generate(prefix_allowed_tokens_fn=...)`.

    It is asked once a sequence and step, which is slower.
    """
    decoding = _Decoding(trie, token_ids, prompt_length, eos_token_id, rows_apart=True)
    asked = False

    def allowed(batch: int, input_ids: "Tensor") -> list[int]:
        nonlocal asked
        generated = decoding.generated(input_ids.cpu().numpy()[None])
        first, asked = not asked, True
        try:
            level, nodes = decoding.nodes(generated)
        except TableError:
            if first:  # before anything was generated: the prompt is longer than it is said to be
                raise
            return [eos_token_id]  # one row of many: a beam that was filled up, whose score is -inf already
        if level == trie.levels:
            return [eos_token_id]
        return cast("list[int]", decoding.tokens[level][trie.allowed(nodes)[1]].tolist())

    return allowed
