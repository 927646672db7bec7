"""Which formats there are: a name and an ending each, and who writes and reads it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from numpy.typing import NDArray

from semid_dataset.errors import ConfigError, TableError
from semid_dataset.exports._common import How
from semid_dataset.exports._csv import read_csv, write_csv
from semid_dataset.exports._json import read_json, write_json
from semid_dataset.exports.arrays import (
    read_flat,
    read_npy,
    read_pt,
    write_flat,
    write_npy,
    write_pt,
)
from semid_dataset.exports.parquet import read_parquet, write_parquet
from semid_dataset.exports.serving import read_catalog, read_sid_lines, write_catalog, write_sid_lines
from semid_dataset.exports.tokens import read_index, spelling, write_index, write_tokens
from semid_dataset.exports.trie import read_trie, write_trie
from semid_dataset.objects import as_choice, as_count, as_path, expect
from semid_dataset.protocols import Exporter
from semid_dataset.registry import EXPORTERS
from semid_dataset.table.table import SemanticIdTable

__all__ = ["FORMATS", "Format", "export", "format_of", "read_export"]


@dataclass(frozen=True)
class Options:
    """
    What can be chosen about our formats.

    Attributes:
        style: of tokens, see `token_list`.
        first: of flat ids, see `flat_ids`.
    """

    style: str = "letter"
    first: int = 1


@dataclass(frozen=True)
class Format:
    """One of our kinds of files, as a `protocols.Exporter`; `reader` is None for what holds no items (tokens)."""

    name: str
    suffix: str
    what: str
    writer: Callable[[SemanticIdTable, Path, str, int], list[Path]]
    reader: "Callable[[Path, How], SemanticIdTable] | None"

    Options: ClassVar[type[Any]] = Options

    def write(self, table: SemanticIdTable, path: Path, options: Any) -> list[Path]:
        """Write all IDs of a table; return the files written."""
        return self.writer(table, path, options.style, options.first)

    def read(self, path: Path, how: How = How()) -> SemanticIdTable:  # noqa: B008 - it never changes
        """Read what `write` wrote; raises ConfigError where such files hold no IDs of items."""
        if self.reader is None:
            raise ConfigError(f"'{path}': the format {self.name} holds {self.what}, no IDs of items.")
        return self.reader(path, how)


def export(
    table: SemanticIdTable,
    path: str | Path,
    form: str | None = None,
    *,
    style: str = "letter",
    first: int = 1,
    options: Any = None,
) -> list[Path]:
    """
    Write a table in another tool's format.

    Args:
        path: the file; folders are made as needed, a file that is there is replaced in one step.
        form: a name of `FORMATS` or of another package's; by default the path's ending decides.
        style: of tokens, see `token_list`.
        first: of flat ids, see `flat_ids`.
        options: the `Options` of another package's format; its defaults without.

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
    spelling(style)
    if isinstance(wanted, Format):
        options = Options(style, first)
    else:
        options = wanted.Options() if options is None else expect(options, wanted.Options, "options")
    path.parent.mkdir(parents=True, exist_ok=True)
    return wanted.write(table, path, options)


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
        form: a name of `FORMATS` or of another package's; by default the path's ending decides.
        codebook_sizes: codes per level, one number or one per level, where the file does not say them (flat ids
            and our parquet do). Without, the power of two that holds the largest code is taken for every
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
    if items is not None and wanted.name not in ARRAYS:
        raise ConfigError(f"'{path}' names its items itself: leave items out.")
    if isinstance(wanted, Format):
        return wanted.read(path, How(codebook_sizes, items))
    table = wanted.read(path)
    return table if codebook_sizes is None else table.with_sizes(codebook_sizes)


def format_of(path: str | Path, form: str | None = None) -> Exporter:
    """
    Return the format by name, or by the ending of a path, of several that fit the longest.

    Raises:
        ConfigError: neither is known, or another package's cannot be loaded; it is no path.
    """
    path = as_path(path)
    if form is not None:
        name = as_choice(form, [*FORMATS, *EXPORTERS.names()], "format")
        found: Exporter = FORMATS[name] if name in FORMATS else EXPORTERS.get(name)
        return found
    known: list[Exporter] = [*FORMATS.values(), *EXPORTERS.others()]
    fitting = [one for one in known if path.name.endswith(one.suffix)]
    if not fitting:
        endings = ", ".join(f"{one.name} ({one.suffix})" for one in known)
        raise ConfigError(f"The ending of '{path}' names no format. Name one, or use an ending of: {endings}.")
    return max(fitting, key=lambda one: len(one.suffix))


FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        Format("json", ".json", "{item: codes}, the semantic_id_dict.json", write_json, read_json),
        Format("index", ".index.json", "{item: tokens}, for LC-Rec and MiniOneRec", write_index, read_index),
        Format("parquet", ".parquet", "item_id, codes and codes with level offsets", write_parquet, read_parquet),
        Format("csv", ".csv", "item_id, code_0, code_1, ..., for spreadsheets and SQL", write_csv, read_csv),
        Format("npy", ".npy", "codes (items, levels)", write_npy, read_npy),
        Format("pt", ".pt", "codes (levels, items) int64, for GRID", write_pt, read_pt),
        Format("flat", ".flat.npz", "ids of one vocabulary over all levels", write_flat, read_flat),
        Format("catalog", ".catalog.json", '{"a,b,c": [items]}, for serving engines', write_catalog, read_catalog),
        Format("sid", ".sid.jsonl", "a line an item: item_id, token_ids, metadata", write_sid_lines, read_sid_lines),
        Format("tokens", ".tokens.json", "the tokens of all codes, for add_tokens", write_tokens, None),
        Format("trie", ".trie.npz", "the IDs as a prefix trie, for decoding", write_trie, read_trie),
    )
}


ARRAYS = frozenset({"npy", "pt", "flat", "trie"})  # whose items lie beside them
