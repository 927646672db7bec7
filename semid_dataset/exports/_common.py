"""What readers and writers of exports share: bytes, arrays, the file of items beside an array, the table."""

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from semid_dataset import _files as files
from semid_dataset.errors import ConfigError, EmbeddingError, TableError
from semid_dataset.objects import as_items, shown
from semid_dataset.table.table import SemanticIdTable

__all__ = [
    "BLOCK_ITEMS",
    "How",
    "agreeing",
    "as_table_errors",
    "load_arrays",
    "member",
    "npy_bytes",
    "npz_bytes",
    "read_beside",
    "read_bytes",
    "table_of",
    "write_beside",
]

BLOCK_ITEMS = 1 << 16
ROWS = "rows"


@dataclass(frozen=True)
class How:
    """What a file of IDs does not say: the sizes of its levels, and the items of its rows; see `read_export`."""

    sizes: int | Sequence[int] | None = None
    items: "str | Sequence[int] | Sequence[str] | NDArray[Any] | None" = None


def items_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.items.json")


def write_beside(table: SemanticIdTable, path: Path, data: Iterable[bytes | memoryview]) -> list[Path]:
    """Write an array and the list of its items, in the order of its rows; never does one lie beside another's."""
    beside = items_file(path)
    keys = table.keys_array
    items = keys.tolist() if isinstance(keys, np.ndarray) else keys
    files.replace_pair((path, data), (beside, [json.dumps(items, separators=(",", ":")).encode()]))
    return [path, beside]


def read_beside(path: Path, codes: NDArray[Any], how: How) -> SemanticIdTable:
    beside = items_file(path)
    if how.items is not None:
        return table_of(_given_items(how.items, len(codes), path), codes, path, how)
    try:
        items = json.loads(read_bytes(beside))
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
    return table_of(items, codes, path, how)


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


def table_of(items: Any, codes: NDArray[Any], path: Path, how: How) -> SemanticIdTable:
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


def agreeing(path: Path, stated: Sequence[int], how: How) -> tuple[int, ...]:
    """Return the sizes that a file states; raises ConfigError where somebody asks for others."""
    asked = how.sizes
    sizes = tuple(int(size) for size in stated)
    wanted = sizes if asked is None else (asked,) * len(sizes) if isinstance(asked, int) else tuple(asked)
    if wanted != sizes:
        raise ConfigError(
            f"'{path}' states that its levels have {sizes} codes, not {wanted}. Leave codebook_sizes out."
        )
    return sizes


def read_bytes(path: Path) -> bytes:
    """Return the text in a file; raises TableError where it is something else."""
    from semid_dataset.inputs._file import read_whole

    files.map_file(path, follow=True)  # a missing file and a pipe are said in the words of the others
    with as_table_errors():
        return read_whole(path)


def npy_bytes(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def npz_bytes(**arrays: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **cast(dict[str, Any], arrays))  # its type mistakes a name for allow_pickle
    return buffer.getvalue()


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of an archive by name; one of an .npy has the name ""."""
    from semid_dataset.inputs import formats

    with as_table_errors():
        files.map_file(path, follow=True)  # a missing file and a pipe are said in the words of the others
        return formats.load_arrays(path)


@contextmanager
def as_table_errors() -> Iterator[None]:
    """Raise as TableError what readers of embeddings raise about a file."""
    try:
        yield
    except EmbeddingError as error:
        raise TableError(str(error)) from None


def member(archive: dict[str, NDArray[Any]], name: str, path: Path) -> NDArray[Any]:
    if name not in archive:
        raise TableError(f"'{path}' holds no array {name!r}: it is no export of this kind.")
    return archive[name]
