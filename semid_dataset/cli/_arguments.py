"""
What commands are given: options that several share, and how files of IDs and of embeddings are read.

Nothing here decides: a path becomes a table or embeddings, options become a configuration, and a place that takes no
file is an error before minutes are spent on what it should take.
"""

import errno
import functools
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from semid_dataset.build import lineages as lineage
from semid_dataset.cache import folders
from semid_dataset.cache.cache import Cache
from semid_dataset.cli._answer import JSON, TABLE, Function, context, how_to_make, word
from semid_dataset.config import SemanticIdConfig
from semid_dataset.environment import parse_bytes
from semid_dataset.errors import ConfigError, ParentError, TableError
from semid_dataset.objects import as_path
from semid_dataset.table.table import SemanticIdTable

if TYPE_CHECKING:
    from semid_dataset.inputs.read import Embeddings

__all__ = [
    "ANY_PATH",
    "EXISTING",
    "FEATURES",
    "FORCE",
    "IDS",
    "ROWS",
    "SETTINGS",
    "SIZES",
    "TITLES",
    "TITLES_FILE",
    "check_device",
    "check_no_columns",
    "check_writable",
    "config_of",
    "holds_table",
    "is_data_directory",
    "open_ids",
    "open_parent",
    "options",
    "read_embeddings",
    "read_names",
]

DEFAULTS = SemanticIdConfig()
TITLES_FILE = "titles.json"


def options(*decorators: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """Several options as one decorator, in the order of the help page."""

    def apply(function: Function) -> Function:
        return functools.reduce(lambda decorated, decorator: decorator(decorated), reversed(decorators), function)

    return apply


class LocalPath(click.Path):
    """A path of this machine's file system; URLs are refused, of which a local folder "s3:" would be made."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path, or end the command as called wrongly."""
        try:
            as_path(value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)
        return super().convert(value, param, ctx)


EXISTING = LocalPath(exists=True, path_type=Path)
ANY_PATH = LocalPath(path_type=Path)
IDS = options(
    click.option(
        "--items",
        "--ids",
        "ids",
        metavar="WHAT",
        help="The items: a column of SOURCE, a file with the item of every row (.txt, .npy, .json), or: rows.",
    ),
    click.option("--vectors", metavar="COLUMN", help="The column of SOURCE that holds the vectors."),
)
SIZES = click.option(
    "--codebook-size",
    "sizes",
    metavar="N[,N...]",
    callback=lambda context, parameter, value: _sizes(value),
    help="Codes per level of a hand-made file or of another tool's, which do not say it; one number or one per level.",
)
ROWS = click.option(
    "--items",
    "rows",
    type=click.Choice(["rows"]),
    help="Of an array of IDs without a file of items beside it: row k is item k.",
)
TITLES = options(
    click.option(
        "--titles",
        type=EXISTING,
        metavar="FILE",
        help="What people call the items: .json {item: title}, .jsonl, .csv, .tsv or .parquet. [titles.json beside the "
        "table]",
    ),
    click.option("--title", metavar="COLUMN", help="The column of FILE that holds the titles."),
)
FORCE = click.option(
    "--force",
    is_flag=True,
    help="Go on, and say so, where this command refuses: ALLOW_SEMANTIC_GENERATION forbids it, or new items have "
    "vectors that are not such as the table was made for.",
)
FEATURES = click.option(
    "--feature", "features", multiple=True, metavar="ID", help="Feature of a data directory; repeat for several. [81]"
)
SETTINGS = options(
    click.option("--levels", type=int, default=DEFAULTS.num_quantizers, show_default=True, help="Codes in an ID."),
    click.option(
        "--codes",
        default=str(DEFAULTS.codebook_size),
        show_default=True,
        metavar="N[,N...]",
        help="Codes per level; one number or one per level.",
    ),
    click.option(
        "--algorithm",
        default=DEFAULTS.algorithm,
        show_default=True,
        metavar="NAME",
        help="rqkmeans fits codebooks alone, rqvae trains an autoencoder around them, auto does where it can pay; "
        "faiss; or the algorithm of another package.",
    ),
    click.option(
        "--fusion",
        default=DEFAULTS.fusion,
        show_default=True,
        type=click.Choice(["aligned", "mean", "concat"]),
        help="How several features become one vector.",
    ),
    click.option("--epochs", type=int, default=DEFAULTS.num_epochs, show_default=True, help="Most epochs."),
    click.option("--lr", type=float, default=DEFAULTS.lr, show_default=True, help="Learning rate of the autoencoder."),
    click.option(
        "--batch-size", type=int, default=DEFAULTS.batch_size, show_default=True, help="Items per training step."
    ),
    click.option(
        "--device", default=DEFAULTS.device, show_default=True, metavar="NAME", help="auto, cpu, cuda, cuda:1, ..."
    ),
    click.option("--seed", type=int, default=DEFAULTS.seed, show_default=True, help="Of every random draw."),
    click.option("--shared", is_flag=True, help="Let items share an ID instead of making IDs unique."),
    click.option(
        "--sample",
        "sample_items",
        type=int,
        metavar="N",
        help="Most items that codebooks are fitted on. [262144, or as many as the memory limit holds]",
    ),
    click.option(
        "--memory-limit",
        metavar="SIZE",
        help="Memory that making IDs may take, such as 4G; larger embeddings are streamed. [SEMID_MEMORY_LIMIT, or 1G]",
    ),
)


def config_of(
    levels: int, codes: str, shared: bool, epochs: int, memory_limit: str | None, **rest: Any
) -> SemanticIdConfig:
    """Return the configuration that `SETTINGS` stand for; a value that cannot be is a usage error."""
    try:
        sizes = tuple(int(size) for size in codes.split(","))
    except ValueError:
        raise click.BadParameter(f"{codes!r} is no number or list of numbers.", param_hint="--codes") from None
    size = sizes if len(sizes) > 1 else sizes[0]
    try:
        if memory_limit is not None:
            rest["memory_limit"] = parse_bytes("--memory-limit", memory_limit)
        return SemanticIdConfig(num_quantizers=levels, codebook_size=size, unique=not shared, num_epochs=epochs, **rest)
    except ConfigError as error:
        raise click.UsageError(str(error)) from None


def _sizes(text: str | None) -> int | tuple[int, ...] | None:
    """Return what --codebook-size says."""
    if text is None:
        return None
    try:
        sizes = tuple(int(size) for size in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is no number or list of numbers.", param_hint="--codebook-size") from None
    return sizes if len(sizes) > 1 else sizes[0]


def open_ids(
    path: Path,
    sizes: int | tuple[int, ...] | None = None,
    items: str | None = None,
    damaged: dict[Path, Exception] | None = None,
) -> SemanticIdTable:
    """
    Open a table, a folder that holds one, the IDs that last served a data directory, or any export of IDs.

    Args:
        path: any of these.
        sizes: codes per level, where the file does not say them.
        items: "rows" where the rows of a bare array are the items.
        damaged: gains the tables of a data directory that were found damaged before one could be read.
    """
    table = _opened(path, sizes, items, {} if damaged is None else damaged)
    return table if sizes is None or table.sizes_stated else table.with_sizes(sizes)


def _opened(
    path: Path, sizes: int | tuple[int, ...] | None, items: str | None, damaged: dict[Path, Exception]
) -> SemanticIdTable:
    from semid_dataset.exports import read_export

    if path.is_dir():
        environment = context().environment
        if holds_table(path):
            return lineage.open_parent(path, mmap=environment.mmap)
        cache = Cache.of(environment, path)
        served = cache.served_before(path)
        table = None if served is None else cache.newest(served.entry.lineage, since=served.entry.digest)
        damaged.update(cache.damaged)
        if table is not None:
            return table
        if not (path / JSON).exists():
            from semid_dataset.inputs.discover import features_folder

            source = word(path) if features_folder(path) is not None else "FILE -o DIR"
            raise ParentError(
                f"'{path}' holds no IDs, and none were made for it here. To have some: "
                + how_to_make(f"semid generate {source}")
            )
        path = path / JSON
    if path.suffix == ".safetensors":
        return SemanticIdTable.open(path, codebook_sizes=sizes)
    return read_export(path, codebook_sizes=sizes, items=items)


def open_parent(path: Path, *, unique: bool = True) -> SemanticIdTable:
    """Open a table that new items are added to; files of IDs alone have no quantizer to encode them with."""
    try:
        return lineage.open_parent(path, mmap=context().environment.mmap, unique=unique)
    except TableError as error:
        if path.is_dir() or path.suffix == ".safetensors":
            raise
        raise ParentError(
            f"'{path}' is no table, so there is no quantizer to encode new items with. Give the {TABLE} of a "
            f"generation, or the folder that holds it. ({str(error).rstrip('.')})"
        ) from None


def read_embeddings(path: Path, ids: str | None, features: Sequence[str], vectors: str | None = None) -> "Embeddings":
    """Read a data directory, or a file of one's own."""
    from semid_dataset.inputs.discover import find_sources
    from semid_dataset.inputs.read import read_sources

    if is_data_directory(path):
        check_no_columns(ids, vectors)
        return read_sources(find_sources(path, features or ("81",)))
    from semid_dataset.api import own_embeddings
    from semid_dataset.inputs.matrix import read_vectors

    return own_embeddings(*read_vectors(path, ids, vectors))


def read_names(
    path: Path, titles: Path | None, title: str | None, source: Path | None = None, items: str | None = None
) -> dict[str, str] | None:
    """
    Return the titles of items, None where none are named.

    Args:
        path: the table; `titles.json` beside it is taken where no other file is named.
        titles, title: the file, and its column.
        source: the file of vectors, which a column alone is of.
        items: the column of it that holds the items.
    """
    beside = (path if path.is_dir() else path.parent) / TITLES_FILE
    file = titles or (source if title else beside if beside.is_file() else None)
    if file is None:
        if title is not None:
            raise click.UsageError("--title names a column: give its file, --titles FILE.")
        return None
    from semid_dataset.inputs.titles import read_titles

    return read_titles(file, title or "", (items or "") if file == source else "")


def is_data_directory(path: Path) -> bool:
    """Whether a path is a data directory; a folder may also hold the parts of one's own embeddings."""
    from semid_dataset.inputs.discover import holds_parts

    return path.is_dir() and not holds_parts(path)


def check_no_columns(ids: str | None, vectors: str | None) -> None:
    """Raise the usage error of options that a data directory does not take."""
    if ids is not None or vectors is not None:
        raise click.UsageError(
            "--ids belongs to a file of vectors, and so do --items and --vectors; a data directory holds its items "
            "itself."
        )


def holds_table(folder: Path) -> bool:
    """Whether a folder holds a table: the one of a generation, or those of a lineage."""
    return (folder / TABLE).exists() or any(folders.TABLE_NAME.fullmatch(path.name) for path in folder.iterdir())


def check_writable(path: Path) -> None:
    """Raise the error that writing below `path` would end with, before minutes are spent on what is to be written."""
    there = next(folder for folder in [path, *path.absolute().parents] if folder.exists())
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def check_device(name: str) -> None:
    """Raise for a device that was named and is not there, before anything is read; the default takes what is."""
    if name in {"auto", "cpu"}:
        return
    from semid_dataset.codec.train import chosen_device

    try:
        chosen_device(name)
    except ConfigError as error:
        raise click.UsageError(str(error)) from None
