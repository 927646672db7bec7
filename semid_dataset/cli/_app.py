"""
The command line: make IDs, look at them, check them, carry them elsewhere, clean up.

A command collects an `Answer`, facts and sentences, and one place prints it, as text or as JSON. Torch, pyarrow and the
rooms that need them are imported inside the commands: `--help` loads none of them.

Exit codes: 0 done; 1 something was found wrong (verify, diff) or nothing was found (info); 2 the command was called
wrongly; 3 it failed, and the line on stderr says why; 130 it was interrupted. Files are written whole or not at all.
"""

import errno
import functools
import json
import logging
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from semid_dataset import __version__
from semid_dataset import _files as files
from semid_dataset._messages import logger
from semid_dataset.build import lineages as lineage
from semid_dataset.cache import store
from semid_dataset.config import Environment, SemanticIdConfig, parse_bytes
from semid_dataset.errors import (
    ConfigError,
    EmbeddingError,
    GenerationError,
    ParentError,
    SemanticIdWarning,
    SemidError,
    TableError,
)
from semid_dataset.table.table import SemanticIdTable

if TYPE_CHECKING:
    from semid_dataset.inputs.read import Embeddings

__all__ = ["cli", "run"]

WRONG, USAGE, FAILED, INTERRUPTED = 1, 2, 3, 130
TABLE, JSON = lineage.TABLE_FILE, "semantic_id_dict.json"
SHOWN = 10  # examples in text; --json has all
TOLERATED = 0.001  # share of items whose codes may differ by rounding: another machine adds up in another order
DAY = 86_400.0  # seconds
TEMPORARY = re.compile(r"\.([^/]+)\.[0-9a-f]{12,32}\.tmp$")
DEFAULTS = SemanticIdConfig()

Function = Callable[..., "Answer"]


@dataclass
class Answer:
    """What a command has to say: facts for programs, lines for people, and what to do next."""

    facts: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    next: list[str] = field(default_factory=list)
    code: int = 0

    def show(self, as_json: bool) -> None:
        """Print it."""
        if as_json:
            click.echo(json.dumps({**self.facts, "next": self.next}, ensure_ascii=False, indent=2, default=_plain))
            return
        for line in self.lines:
            click.echo(line)
        if self.next:
            click.echo("Next: " + "\n      ".join(self.next))


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; whatever goes wrong is one line on stderr, never a traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SemanticIdWarning)  # the log line says the same
            code = cli.main(args=given, prog_name="semid", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except (click.exceptions.Abort, KeyboardInterrupt):
        line, failure = "semid: interrupted; files that were there before are as they were", INTERRUPTED
    except click.ClickException as error:
        line, failure = _usage(error), USAGE
    except Exception as error:  # noqa: BLE001 - a fault of ours is one line too; -v shows where
        line, failure = f"semid: error: {' '.join(_reason(error).split())}", FAILED
    with suppress(OSError):
        click.echo(line, err=True)
        if "--json" in given:
            click.echo(json.dumps({"error": line, "exit_code": failure}, ensure_ascii=False))
    return failure


def _usage(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    where = context.command_path if context is not None else "semid"
    if type(error).__name__ == "NoArgsIsHelpError" and context is not None:  # of click 8.2 and newer
        return str(context.get_help())
    return f"{where}: error: {' '.join(error.format_message().split()).rstrip('.')}. See: {where} --help"


def _reason(error: Exception) -> str:
    if isinstance(error, SemidError):
        return str(error)
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, OSError):
        if error.filename is None:
            return str(error)
        named = TEMPORARY.sub(r"\1", str(error.filename))  # people know the file, not what it is written to first
        return f"'{named}': {error.strerror}"
    return f"unexpected {type(error).__name__}: {error} (please report it; -v shows where)"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, message="%(version)s")
def cli() -> None:
    """
    Semantic IDs for items that have embeddings.

    \b
    semid generate x.npy --ids ids.txt -o out     IDs of your own embeddings
    semid generate DATA_DIR                       IDs of a data directory (creative_emb/), into its cache
    semid report out -o report.html               look at them
    semid export out -o item.index.json           carry them elsewhere

    Exit codes: 0 done, 1 found wrong (verify, diff) or found nothing (info), 2 called wrongly, 3 failed,
    130 interrupted. Progress is shown on a terminal only, and nothing is coloured (as NO_COLOR asks).
    """


def command(function: Function) -> click.Command:
    """Make a command of a function that returns an `Answer`; adds --json and -v."""

    @functools.wraps(function)
    def wrapped(as_json: bool, verbose: bool, **options: Any) -> int:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        before = logger.level
        logger.setLevel(logging.DEBUG if verbose else logging.INFO if sys.stderr.isatty() else logging.WARNING)
        logger.addHandler(handler)
        try:
            answer = function(**options)
            answer.show(as_json)
        except Exception:
            if verbose:
                logger.debug("failed", exc_info=True)
            raise
        finally:
            logger.removeHandler(handler)
            logger.setLevel(before)
        return answer.code

    shown = click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
    loud = click.option("-v", "--verbose", is_flag=True, help="Say on stderr what happens.")
    return cli.command()(shown(loud(wrapped)))


def options(*decorators: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """Several options as one decorator, in the order of the help page."""

    def apply(function: Function) -> Function:
        return functools.reduce(lambda decorated, decorator: decorator(decorated), reversed(decorators), function)

    return apply


EXISTING = click.Path(exists=True, path_type=Path)
ANY_PATH = click.Path(path_type=Path)
IDS = click.option("--ids", metavar="FILE", help="Item of every row (.txt, .npy, .json), or: rows.")
FEATURES = click.option(
    "--feature", "features", multiple=True, metavar="ID", help="Feature of a data directory; repeat for several. [81]"
)


# --- reading what commands are given ------------------------------------------------------------


def _open_ids(path: Path) -> SemanticIdTable:
    """Open a table, a folder that holds one, the IDs that last served a data directory, or any export of IDs."""
    from semid_dataset.exports import read_export

    if path.is_dir():
        environment = Environment.read()
        if _holds_table(path):
            return lineage.open_parent(path, mmap=environment.mmap)
        roots = store.Roots(path, None, environment)
        name = store.last_served(roots, path)
        table = None if name is None else lineage.newest_table(roots, name, mmap=environment.mmap, may_write=False)
        if table is not None:
            return table
        if not (path / JSON).exists():
            raise ParentError(
                f"'{path}' holds no IDs, and none were made for it here. Make them: semid generate {path}"
            )
        path = path / JSON
    if path.suffix == ".safetensors":
        return SemanticIdTable.open(path)
    return read_export(path)


def _open_parent(path: Path) -> SemanticIdTable:
    """Open a table that new items are added to; files of IDs alone have no quantizer to encode them with."""
    try:
        return lineage.open_parent(path, mmap=Environment.read().mmap)
    except TableError as error:
        if path.is_dir() or path.suffix == ".safetensors":
            raise
        raise ParentError(
            f"'{path}' is no table, so there is no quantizer to encode new items with. Give the {TABLE} of a "
            f"generation, or the folder that holds it. ({str(error).rstrip('.')})"
        ) from None


def _read_embeddings(path: Path, ids: str | None, features: Sequence[str]) -> "Embeddings":
    """Read a data directory, or a file of one's own."""
    from semid_dataset.inputs.discover import find_sources
    from semid_dataset.inputs.read import read_sources

    if path.is_dir():
        if ids is not None:
            raise click.UsageError("--ids belongs to a file of vectors; a data directory holds its items itself.")
        return read_sources(find_sources(path, features or ("81",)))
    from semid_dataset.api import own_embeddings
    from semid_dataset.inputs.matrix import read_vectors

    return own_embeddings(*read_vectors(path, ids))


def _vectors_for(table: SemanticIdTable, embeddings: "Embeddings") -> NDArray[np.float32]:
    """Return the vectors as the table's quantizer takes them, in the order of `embeddings.items`."""
    if embeddings.fused is not None:
        return embeddings.fused[1]
    if table.has_quantizer:
        return table.quantizer.vectors_of(embeddings.features, len(embeddings.items))
    if len(embeddings.features) != 1:
        raise EmbeddingError("The table has no quantizer to make one vector of several features. Name one feature.")
    return embeddings.features[0].matrix


def _check_writable(path: Path) -> None:
    """Raise the error that writing below `path` would end with, before minutes are spent on what is to be written."""
    there = next(folder for folder in [path, *path.absolute().parents] if folder.exists())
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _check_device(name: str) -> None:
    """Raise for a device that was named and is not there, before anything is read; the default takes what is."""
    if name in {"auto", "cpu"}:
        return
    from semid_dataset.codec.train import chosen_device

    try:
        chosen_device(name)
    except ConfigError as error:
        raise click.UsageError(str(error)) from None


def _check_cache(
    source: Path, features: Sequence[str], config: SemanticIdConfig, parent: Path | None, retrain: bool
) -> None:
    """Raise before the work where IDs of a data directory have no place to go; IDs that are there need none."""
    from semid_dataset import resolve
    from semid_dataset.inputs.discover import find_sources

    find_sources(source, features)
    roots = store.Roots(source, None, Environment.read())
    if store.writable_root(roots) is not None:
        return
    with suppress(SemidError):
        if (
            not retrain
            and resolve.look(resolve.Ask(source, tuple(features), config=config, parent=parent)).status == "cached"
        ):
            return
    asked = ", ".join(f"'{root.path}'" for root in roots)
    raise GenerationError(
        f"No cache folder takes a write: {asked}. Nothing was made. Give -o DIR, or set SEMID_CACHE_DIR to a folder "
        "that takes one."
    )


def _write_ids(table: SemanticIdTable, folder: Path) -> list[Path]:
    """Write a table and its JSON into a folder, as a generation does."""
    table.save(folder / TABLE)
    files.replace_file(folder / JSON, table.json_chunks())
    return [folder / TABLE, folder / JSON]


def _facts_of(table: SemanticIdTable) -> dict[str, Any]:
    return {
        "status": table.status,
        "reason": table.reason,
        "path": table.path,
        "items": len(table),
        "levels": table.levels,
        "codebook_sizes": list(table.codebook_sizes),
        "lineage": table.lineage,
        "generation": table.generation,
        "digest": table.digest,
        "has_quantizer": table.has_quantizer,
        "quality": dict(table.quality),
    }


def _quality_line(table: SemanticIdTable) -> list[str]:
    quality = table.quality
    parts = []
    error, held_out = quality.get("relative_mse"), quality.get("relative_mse_held_out")
    if error is not None:
        parts.append(
            f"error {error:.3f} of the variance" + ("" if held_out is None else f" ({held_out:.3f} on items held out)")
        )
    if quality.get("collision_rate") is not None:
        raw = quality.get("collision_rate_raw")
        before = "" if raw is None else f" ({raw:.2%} before they were made unique)"
        parts.append(f"{quality['collision_rate']:.2%} of items share an ID{before}")
    if quality.get("usage"):
        parts.append("codes in use " + "/".join(f"{share:.0%}" for share in quality["usage"]))
    return ["Quality: " + "; ".join(parts)] if parts else []


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


# --- generate -----------------------------------------------------------------------------------


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
        type=click.Choice(["rqvae", "rqkmeans"]),
        help="rqvae trains an autoencoder around the codebooks; rqkmeans does without, in less time.",
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
        "--memory-limit",
        metavar="SIZE",
        help="Memory that making IDs may take, such as 4G; larger embeddings are streamed. [SEMID_MEMORY_LIMIT, or 1G]",
    ),
)


def _config(
    levels: int, codes: str, shared: bool, epochs: int, memory_limit: str | None, **rest: Any
) -> SemanticIdConfig:
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


@command
@click.argument("source", type=EXISTING)
@options(
    IDS,
    FEATURES,
    click.option(
        "-o",
        "--output",
        type=ANY_PATH,
        metavar="DIR",
        help="Write the table and the JSON there; a data directory's IDs go to its cache by default.",
    ),
    click.option(
        "--parent", type=EXISTING, metavar="TABLE", help="Add new items to this table; known items keep their IDs."
    ),
    click.option("--retrain", is_flag=True, help="Train anew although there are IDs: they move."),
    click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        help="Stream a data directory's embeddings, part by part, in local processes or on Ray.",
    ),
    click.option("--num-shards", type=int, metavar="N", help="Share the work with N - 1 other runs of this command."),
    click.option("--shard-id", type=int, metavar="K", help="Which share this is, from 0; the last one publishes."),
    click.option(
        "--sequences",
        type=EXISTING,
        metavar="FILE",
        help="What users took in order (.txt, .jsonl, .parquet): what is taken together gets IDs that are alike.",
    ),
    SETTINGS,
)
def generate(  # noqa: PLR0912 - one branch for everything that does not go together
    source: Path,
    ids: str | None,
    features: tuple[str, ...],
    output: Path | None,
    parent: Path | None,
    retrain: bool,
    engine: str | None,
    num_shards: int | None,
    shard_id: int | None,
    sequences: Path | None,
    **settings: Any,
) -> Answer:
    """
    Make IDs of embeddings.

    SOURCE is a data directory, whose IDs go to its cache, or a file of embeddings: .npy (with --ids), .npz,
    .parquet, .jsonl or .safetensors, which needs -o.
    """
    from semid_dataset import api as commands
    from semid_dataset.codec.behaviour import read_sequences

    config = _config(**settings)
    if output is not None and (output / TABLE).exists() and parent is None and not retrain:
        raise click.UsageError(
            f"'{output}' holds IDs already, and new ones would replace them. Add new items with --parent {output}, "
            "or start over with --retrain."
        )
    if {engine, num_shards, shard_id} != {None} and not source.is_dir():
        raise click.UsageError("--engine and shards are for data directories: work on one file is not shared.")
    if {num_shards, shard_id} != {None}:
        return _shard(source, features, config, output, parent, retrain, engine, num_shards, shard_id)
    if sequences is not None and (parent is not None or (source.is_dir() and (output is None or engine is not None))):
        raise click.UsageError("--sequences is for training in memory: give -o, no --parent and no --engine.")
    _check_device(config.device)
    started = time.perf_counter()
    new: int | None = None
    if source.is_dir():
        if ids is not None:
            raise click.UsageError("--ids belongs to a file of vectors; a data directory holds its items itself.")
        if output is not None:
            _check_writable(output)
        if output is not None and parent is not None:
            raise click.UsageError(
                "With a data directory give -o (train there) or --parent (extend in the cache), not both."
            )
        if output is None:
            _check_cache(source, features or ("81",), config, parent, retrain)
        table = commands.generate_semantic_ids(
            source,
            features or ("81",),
            config=config,
            output_dir=output,
            retrain=retrain and output is None,
            parent=parent,
            engine=engine,
            sequences=None if sequences is None else read_sequences(sequences),
        )
        written = [] if table.path is None or table.status == "cached" else [table.path]
        if output is not None:
            written = [output / TABLE, output / JSON]
    else:
        if output is None:
            raise click.UsageError("Where shall the IDs go? Give -o DIR.")
        _check_writable(output)
        streamed = None
        if source.suffix == ".npy" and ids is not None and parent is None and sequences is None:
            streamed = commands.generate_from_array(source, ids, output_dir=output, config=config)
        if streamed is not None:
            seconds = time.perf_counter() - started
            return _generated(streamed, None, [output / TABLE, output / JSON], seconds, str(output))
        embeddings = _read_embeddings(source, ids, features)
        vectors = embeddings.features[0].matrix
        if parent is None:
            taken = None if sequences is None else read_sequences(sequences)
            table = commands.generate_from_vectors(
                embeddings.items, vectors, config=config, output_dir=output, sequences=taken
            )
            written = [output / TABLE, output / JSON]
        else:
            base = _open_parent(parent)
            table, new = commands.extend_with_vectors(base, embeddings.items, vectors)
            written = _write_ids(table, output)
    seconds = time.perf_counter() - started
    return _generated(table, new, written, seconds, str(output or table.path or source))


def _generated(table: SemanticIdTable, new: int | None, written: Sequence[Path], seconds: float, where: str) -> Answer:
    """Say what was generated."""
    added = "" if new is None else f", {new:,} of them new"
    return Answer(
        {**_facts_of(table), "new": new, "written": written, "seconds": seconds},
        [
            f"{_count(len(table), 'item')} have IDs of {table.levels} levels{added} ({table.status}, {seconds:.1f} s).",
            *_quality_line(table),
            *(f"Wrote {path}" for path in written),
            *([] if written else [f"Nothing was written: they were there, in {table.path or 'memory'}"]),
        ],
        [
            f"semid report {where} -o report.html     to look at them",
            f"semid export {where} -o item.index.json     to carry them elsewhere (semid export --help)",
        ],
    )


def _shard(
    source: Path,
    features: Sequence[str],
    config: SemanticIdConfig,
    output: Path | None,
    parent: Path | None,
    retrain: bool,
    engine: str | None,
    num_shards: int | None,
    shard_id: int | None,
) -> Answer:
    """Do one share of `generate`."""
    from semid_dataset import api as commands

    if num_shards is None or shard_id is None:
        raise click.UsageError("--num-shards and --shard-id belong together: how many, and which one, from 0.")
    if output is not None or retrain:
        raise click.UsageError("Shards meet in the cache of the data directory: leave -o and --retrain out.")
    started = time.perf_counter()
    table, done, parts = commands.generate_shard(
        source,
        features or ("81",),
        shard=shard_id,
        shards=num_shards,
        config=config,
        parent=parent,
        engine=engine or "local",
    )
    seconds = time.perf_counter() - started
    if table is None:
        return Answer(
            {"status": "waiting", "parts_done": done, "parts": parts, "seconds": seconds},
            [f"Shard {shard_id} of {num_shards} is done ({seconds:.1f} s); {done} of {parts} parts are there."],
            ["run the shards that are missing, or this command again once they are done: the last one publishes"],
        )
    answer = _generated(table, None, [] if done == 0 or table.path is None else [table.path], seconds, str(source))
    answer.facts |= {"parts_done": done, "parts": parts}
    return answer


# --- info ---------------------------------------------------------------------------------------


@command
@click.argument("target", type=EXISTING)
@options(
    FEATURES, click.option("--parent", type=EXISTING, metavar="TABLE", help="As the dataset would name it."), SETTINGS
)
def info(target: Path, features: tuple[str, ...], parent: Path | None, **settings: Any) -> Answer:
    """
    Say which IDs answer, from where, and why.

    TARGET is a data directory, or any file of IDs. Nothing is trained or extended, whatever the gate says. Settings
    tell which IDs are asked for: give those that the dataset has.
    """
    from semid_dataset import resolve
    from semid_dataset.inputs.discover import features_folder

    found: list[store.Root] = []
    if not target.is_dir() or (features_folder(target) is None and _holds_table(target)):
        table = _open_ids(target)
    else:
        ask = resolve.Ask(target, features or ("81",), config=_config(**settings), parent=parent)
        found = list(store.Roots(target, None, Environment.read()))
        try:
            table = resolve.look(ask)
        except SemidError as error:
            roots = [_root_facts(root) for root in found]
            return Answer(
                {"status": None, "reason": str(error), "roots": roots},
                [f"Nothing answers for '{target}' yet: {error}", *_root_lines(roots, None)],
                [f"semid generate {target}     to make them now"],
                WRONG,
            )
    roots = [_root_facts(root) for root in found]
    facts = {
        **_facts_of(table),
        **{name: table.info.get(name) for name in ("identity", "settings", "provenance", "history")},
    }
    root = next(
        (one["path"] for one in roots if table.path is not None and Path(one["path"]) in table.path.parents), None
    )
    sizes = "/".join(map(str, table.codebook_sizes))
    lines = [
        f"{_count(len(table), 'item')}, {table.levels} levels of {sizes} codes",
        f"Answers: {table.status} ({table.reason})",
        f"File: {table.path or 'none, in memory'}",
    ]
    if table.lineage:
        lines.append(f"Lineage: {table.lineage}, generation {table.generation}, content {table.digest[:12]}")
    lines += [*_quality_line(table), *_provenance_lines(table), *_root_lines(roots, root)]
    if not table.has_quantizer:
        lines.append("It holds IDs alone: new items cannot be encoded with it.")
    shown = table.path or target
    return Answer(
        {**facts, "root": root, "roots": roots},
        lines,
        [f"semid verify {shown}     to check every ID", f"semid report {shown} -o report.html     to look at them"],
    )


def _holds_table(folder: Path) -> bool:
    return (folder / TABLE).exists() or any(store.TABLE_NAME.fullmatch(path.name) for path in folder.iterdir())


def _root_facts(root: store.Root) -> dict[str, Any]:
    names = store.lineages([root])
    return {
        "path": root.path,
        "exists": root.path.is_dir(),
        "lineages": {name: [found.generation for found in store.generations([root], name)] for name in names},
    }


def _root_lines(roots: Sequence[Mapping[str, Any]], answering: object) -> list[str]:
    lines = ["Cache folders, in the order they are read:"] if roots else []
    for root in roots:
        count = len(root["lineages"])
        what = _count(count, "lineage") if root["exists"] else "not there"
        lines.append(f"  {root['path']}: {what}{', answers' if root['path'] == answering else ''}")
    return lines


def _provenance_lines(table: SemanticIdTable) -> list[str]:
    made = table.info.get("provenance")
    if not isinstance(made, dict) or "born" not in made:
        return []
    parts = [time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(made["born"])))]
    if made.get("device"):
        parts.append(f"on {made['device']}")
    if made.get("seconds") is not None:
        parts.append(f"in {made['seconds']:.1f} s")
    if made.get("peak_rss_bytes"):
        parts.append(f"with {made['peak_rss_bytes'] / 2**20:,.0f} MB")
    sequences = lineage.made_with_sequences(table)
    names = ", ".join(made["files"]) if made.get("files") and not sequences else made.get("source", "")
    identity = table.info.get("identity") or {}
    dims = " + ".join(f"{feature} ({dim} numbers)" for feature, dim in identity.get("features", []))
    also = " and sequences" if sequences else ""
    lines = [f"Made: {' '.join(parts)}" + (f", from {names or dims}{also}" if names or dims else "")]
    return lines + ([f"Skipped rows: {made['bad_rows']:,}"] if made.get("bad_rows") else [])


# --- verify -------------------------------------------------------------------------------------


@command
@click.argument("path", metavar="FILE", type=EXISTING)
@options(
    click.option(
        "--embeddings",
        type=EXISTING,
        metavar="SOURCE",
        help="Check against these vectors too: a data directory or a file.",
    ),
    click.option(
        "--sequences",
        type=EXISTING,
        metavar="FILE",
        help="With --embeddings: the sequences that the IDs were made with, where there were some.",
    ),
    IDS,
    FEATURES,
)
def verify(
    path: Path, embeddings: Path | None, sequences: Path | None, ids: str | None, features: tuple[str, ...]
) -> Answer:
    """
    Check every byte and every ID of a file.

    FILE is a table, a semantic_id_dict.json or an export. Exit code 1 if something is wrong.
    """
    try:
        table = _open_ids(path)
    except TableError as error:
        return Answer(
            {"ok": False, "problems": [str(error)]},
            [f"Wrong: {error}"],
            [
                "keep the file; a data directory heals its cache by itself at the next `semid generate DATA_DIR`"
                if path.suffix == ".safetensors"
                else "write it again from its table: semid export TABLE -o FILE"
            ],
            WRONG,
        )
    facts: dict[str, Any] = {"path": path, "items": len(table), "levels": table.levels}
    problems = _table_problems(table, facts)
    lines = [f"{_count(len(table), 'item')}, {table.levels} levels; {facts['shared']:,} share an ID"]
    if sequences is not None and (embeddings is None or not lineage.made_with_sequences(table)):
        raise click.UsageError(
            "--sequences goes with --embeddings."
            if embeddings is None
            else f"'{path}' was made without sequences: leave --sequences out."
        )
    if embeddings is not None:
        read = _read_embeddings(embeddings, ids, features)
        if sequences is not None:
            read = _with_behaviour(table, read, sequences)
        against, more, wrong = _against_vectors(table, read)
        facts["embeddings"] = against
        lines += more
        problems += wrong
    compared = "not_compared" not in facts.get("embeddings", {})
    fine = f"Everything{'' if compared else ' that was checked'} is as it should be."
    lines += [f"Wrong: {problem}" for problem in problems] or [fine]
    following = f"semid verify {path} --embeddings SOURCE     to check it against the vectors too"
    if problems:
        steps = ["take the file from a backup, or make the IDs again (they move): semid generate --retrain"]
    else:
        steps = [f"semid report {path} -o report.html     to look at it"] if embeddings is not None else [following]
    return Answer({"ok": not problems, "problems": problems, **facts}, lines, steps, WRONG if problems else 0)


def _table_problems(table: SemanticIdTable, facts: dict[str, Any]) -> list[str]:
    """Check what can be checked without vectors, and add what was found to the facts."""
    from semid_dataset.table.table import build_table_buffers

    problems = []
    codes, keys = table.codes_array, table.keys_array
    if not np.array_equal(table.rows_of(keys), np.arange(len(table))):
        problems.append("some items are not found under their own key")
    _, counts = np.unique(codes, axis=0, return_counts=True) if len(codes) else (None, np.zeros(0, np.int64))
    facts["shared"] = int(counts[counts > 1].sum())
    facts["zero_ids"] = int((codes == 0).all(axis=1).sum())
    sizes = np.array(table.codebook_sizes)
    if len(codes) and (codes >= sizes).any():
        problems.append(f"there are codes beyond the sizes of the levels, {sizes.tolist()}")
    if not table.info.get("digest") or table.path is None or table.path.suffix != ".safetensors":
        return problems
    again = SemanticIdTable.from_buffer(b"".join(build_table_buffers(keys, codes, weights=table.weights)))
    for name, what in (("digest", "its IDs and weights"), ("json_sha256", "the JSON of its IDs")):
        if again.info[name] != table.info.get(name):
            problems.append(f"the {name} it states is not that of {what}")
    made = table.info.get("settings") or {}
    if made.get("unique") and table.quality.get("shared") == 0:
        if facts["shared"]:
            problems.append(f"{facts['shared']} items share an ID although IDs are unique here")
        if facts["zero_ids"]:
            problems.append("an item has the ID of zeros, which means unknown")
    history = table.info.get("history") or []
    if history and isinstance(history[-1], dict) and history[-1].get("generation") != table.generation:
        problems.append(f"its history ends at generation {history[-1].get('generation')}, it is {table.generation}")
    if table.has_quantizer and table.quantizer.codebook_sizes != tuple(sizes.tolist()):
        problems.append(f"its quantizer has {table.quantizer.codebook_sizes} codes, its IDs {tuple(sizes.tolist())}")
    return problems


def _with_behaviour(table: SemanticIdTable, embeddings: "Embeddings", path: Path) -> "Embeddings":
    """Return embeddings pulled together by what sequences say of the table's items, as when IDs were made."""
    from semid_dataset.api import with_sequences
    from semid_dataset.codec.behaviour import known_sequences, read_sequences

    found = int((table.rows_of(embeddings.items) >= 0).sum())
    if found < len(table):
        raise EmbeddingError(
            f"{len(table) - found:,} of the table's {len(table):,} items have no vector here. With --sequences give "
            "those of all: an item's ID was made with its neighbours' vectors too. Nothing was checked."
        )
    keys = table.keys_array
    known = known_sequences(keys, read_sequences(path))
    return with_sequences(embeddings, [[keys[row] for row in sequence] for sequence in known])


def _against_vectors(table: SemanticIdTable, embeddings: "Embeddings") -> tuple[dict[str, Any], list[str], list[str]]:
    """Check IDs against the vectors they should be made of: facts, lines, problems."""
    rows = table.rows_of(embeddings.items)
    known = np.flatnonzero(rows >= 0)
    total = len(embeddings.items)
    facts: dict[str, Any] = {"items": total, "known": len(known), "coverage": len(known) / max(1, total)}
    lines = [f"{len(known):,} of {total:,} items with vectors have an ID ({facts['coverage']:.2%})"]
    problems = [f"{total - len(known):,} items with vectors have no ID"] if len(known) < total else []
    if not table.has_quantizer or not len(known):
        return facts, [*lines, "There is no quantizer to compare vectors with."] if len(known) else lines, problems
    from semid_dataset.codec.metrics import relative_mse

    vectors = _vectors_for(table, embeddings)[known]
    if lineage.made_with_sequences(table) and Path(lineage.SEQUENCES) not in embeddings.file_digests:
        facts["not_compared"] = "sequences"
        lines.append(
            "The IDs were made with sequences too, so vectors alone do not give them again: whether each fits its "
            "vector was not checked. Give --sequences FILE, the ones they were made with."
        )
        return facts, lines, problems
    codes = table.codes_array[rows[known]]
    raw = table.quantizer.encode(vectors)
    same = raw == codes
    whole = int(same.all(axis=1).sum())
    facts |= {
        "relative_mse": relative_mse(table.quantizer, vectors, codes),
        "relative_mse_at_birth": table.quality.get("relative_mse"),
        "reproduced": whole / len(known),
        "reproduced_levels": [
            float(np.logical_and.accumulate(same, axis=1)[:, level].mean()) for level in range(table.levels)
        ],
    }
    history = [step for step in table.info.get("history") or [] if isinstance(step, dict)]
    moved = sum(int(step.get("moved") or 0) for step in history)
    facts["moved"] = moved
    birth = facts["relative_mse_at_birth"]
    lines.append(
        f"Error {facts['relative_mse']:.3f} of the variance"
        + ("" if birth is None else f" ({birth:.3f} at birth)")
        + f"; {whole:,} of {len(known):,} IDs come out again, {moved:,} were moved to make them unique"
    )
    error, at_birth, fits = lineage.vectors_fit(table, vectors, codes)
    if not fits:
        problems.append(f"the vectors are not those of these items: error {error:.3f}, {at_birth:.3f} at birth")
    elif len(known) - whole > moved + TOLERATED * len(known):
        problems.append(f"{len(known) - whole:,} IDs do not come out again; {moved:,} would be explained by uniqueness")
    return facts, lines, problems


# --- encode -------------------------------------------------------------------------------------


@command
@click.argument("table_path", metavar="TABLE", type=EXISTING)
@click.argument("source", type=EXISTING)
@options(
    IDS,
    click.option(
        "-o",
        "--output",
        type=ANY_PATH,
        required=True,
        metavar="DIR|FILE",
        help="A folder, or .safetensors: all items, old and new. Any other ending: an export of SOURCE's items alone.",
    ),
)
def encode(table_path: Path, source: Path, ids: str | None, output: Path) -> Answer:
    """
    Give new items IDs with a table's quantizer.

    SOURCE is a file of embeddings, TABLE stays as it is. Items that it knows keep their IDs.
    """
    from semid_dataset import api as commands
    from semid_dataset import exports
    from semid_dataset.inputs.matrix import read_vectors

    if source.is_dir():
        raise click.UsageError(f"For a data directory: semid generate {source} --parent {table_path}")
    base = _open_parent(table_path)
    whole_table = output.suffix in {"", ".safetensors"}
    if not whole_table:
        exports.format_of(output, None)  # a wrong ending is said before the work
    items, vectors = read_vectors(source, ids)
    table, new = commands.extend_with_vectors(base, items, vectors)
    if output.suffix == ".safetensors":
        written = [table.save(output)]
    elif whole_table:
        written = _write_ids(table, output)
    else:
        from semid_dataset.table.table import build_table_buffers

        some = SemanticIdTable.from_buffer(b"".join(build_table_buffers(items, table.codes(items))))
        written = exports.export(some, output)
    following = [f"semid diff {table_path} {output}     to see what was added"]
    if not whole_table:
        following = [f"semid encode {table_path} {source} -o DIR     to keep these IDs: only a table remembers them"]
    return Answer(
        {"items": len(items), "new": new, "table_items": len(table), "written": written},
        [f"{_count(len(items), 'item')} encoded, {new:,} of them new.", *(f"Wrote {path}" for path in written)],
        following,
    )


# --- export -------------------------------------------------------------------------------------


@command
@click.argument("path", metavar="TABLE", type=EXISTING)
@options(
    click.option(
        "-o", "--output", type=ANY_PATH, required=True, metavar="PATH", help="The file; with --format all, a folder."
    ),
    click.option(
        "-f",
        "--format",
        "form",
        metavar="NAME",
        help="json, index, parquet, npy, pt, flat, packed, tokens, trie, or all; by default the ending decides.",
    ),
    click.option(
        "--style",
        default="letter",
        show_default=True,
        type=click.Choice(["letter", "s_letter", "item"]),
        help="<a_12>, <s_a_12> or <item_L0_C12>.",
    ),
    click.option(
        "--first",
        default=1,
        show_default=True,
        type=click.IntRange(0),
        help="Number of the first flat id; 1 keeps 0 for padding.",
    ),
)
def export(path: Path, output: Path, form: str | None, style: str, first: int) -> Answer:
    """
    Write IDs in another tool's format.

    \b
    .json           {item: codes}, the semantic_id_dict.json
    .index.json     {item: tokens}, for LC-Rec and MiniOneRec
    .tokens.json    the tokens of all codes, for tokenizer.add_tokens
    .parquet        item_id, codes, offset_codes (levels side by side, from 0), for TorchEasyRec
    .npy            codes (items, levels)
    .pt             codes (levels, items), for GRID
    .flat.npz       ids of one vocabulary over all levels, 0 = padding
    .packed.npz     one integer an ID
    .trie.npz       prefix trie for constrained decoding

    Arrays get the items of their rows in FILE.items.json beside them.
    """
    from semid_dataset import exports

    if form == "all":
        names = {output / f"items{one.suffix}": name for name, one in exports.FORMATS.items()}
    else:
        try:
            names = {output: exports.format_of(output, form).name}
        except ConfigError as error:
            raise click.UsageError(str(error)) from None
    table = _open_ids(path)
    written = [
        file for target, name in names.items() for file in exports.export(table, target, name, style=style, first=first)
    ]
    following = ["from semid_dataset.exports import read_export; read_export(path)     reads it again"]
    if set(names.values()) == {"tokens"}:
        following = [f"tokenizer.add_tokens(json.load(open({str(output)!r})))     before the model is trained"]
    if "index" in names.values() and "tokens" not in names.values():
        tokens = output if output.is_dir() else output.parent
        following = [
            f"semid export {path} -o {tokens / 'item.tokens.json'} --style {style}     the tokenizer's new tokens"
        ]
    return Answer(
        {"items": len(table), "written": written},
        [f"{_count(len(table), 'item')} exported.", *(f"Wrote {file}" for file in written)],
        following,
    )


# --- diff ---------------------------------------------------------------------------------------


@command
@click.argument("old", type=EXISTING)
@click.argument("new", type=EXISTING)
def diff(old: Path, new: Path) -> Answer:
    """
    Say which IDs moved, came and went.

    OLD and NEW are any files of IDs. Exit code 1 if an ID moved or an item is gone; items that came are no harm.
    """
    first, second = _open_ids(old), _open_ids(new)
    rows = second.rows_of(first.keys_array)
    common, gone = np.flatnonzero(rows >= 0), np.flatnonzero(rows < 0)
    came = np.flatnonzero(first.rows_of(second.keys_array) < 0)
    if first.levels == second.levels:
        before, after = first.codes_array[common], second.codes_array[rows[common]]
        changed = common[(before != after).any(axis=1)]
    else:
        changed = common
    old_keys, new_keys = _listed_keys(first), _listed_keys(second)
    moved = {
        old_keys[row]: [first.codes_array[row].tolist(), second.codes_array[rows[row]].tolist()]
        for row in changed.tolist()
    }
    added, removed = [new_keys[row] for row in came.tolist()], [old_keys[row] for row in gone.tolist()]
    unchanged = len(common) - len(changed)
    lines = [
        f"{unchanged:,} unchanged, {len(moved):,} moved, {len(added):,} added, {len(removed):,} removed",
        *(f"  moved {item}: {was} -> {now}" for item, (was, now) in list(moved.items())[:SHOWN]),
        *(f"  added {item}" for item in added[:SHOWN]),
        *(f"  removed {item}" for item in removed[:SHOWN]),
    ]
    if max(len(moved), len(added), len(removed)) > SHOWN:
        lines.append(f"  (the first {SHOWN} of each; --json lists all)")
    harm = bool(moved or removed)
    facts = {
        "unchanged": unchanged,
        "moved": {str(item): pair for item, pair in moved.items()},
        "added": added,
        "removed": removed,
    }
    step = (
        "recommenders trained on OLD must be trained again, or be given OLD as parent"
        if harm
        else "NEW may replace OLD: no ID moved"
    )
    return Answer(facts, lines, [step], WRONG if harm else 0)


def _listed_keys(table: SemanticIdTable) -> list[Any]:
    keys = table.keys_array
    return keys.tolist() if isinstance(keys, np.ndarray) else keys


# --- prune --------------------------------------------------------------------------------------


@command
@click.argument("target", metavar="[DATA_DIR|CACHE_DIR]", type=EXISTING, required=False)
@options(
    click.option("--delete", is_flag=True, help="Delete; without it they are only listed."),
    click.option(
        "--older-than",
        type=click.FloatRange(0),
        default=1.0,
        show_default=True,
        metavar="DAYS",
        help="Leave younger files alone: somebody may be at work.",
    ),
    click.option(
        "--lineages",
        is_flag=True,
        help="Also lineages that no note in these folders names; a dataset or checkpoint elsewhere may need one.",
    ),
)
def prune(target: Path | None, delete: bool, older_than: float, lineages: bool) -> Answer:
    """
    List, or delete, what caches no longer need.

    Old generations, damaged files, leftovers of writers that died; never what is in use: the newest generation of a
    lineage, notes, locks. Without a folder, those that the environment names and the user's own are looked at.
    """
    from semid_dataset.cache.prune import find_waste

    environment = Environment.read()
    if target is not None and (target / store.VERSION).is_dir():
        roots = [store.Root(target, target)]
    else:
        roots = list(store.Roots(target, None, environment))
    parent = None if environment.parent is None else Path(environment.parent)
    waste = find_waste(roots, min_age=older_than * DAY, lineages=lineages, parent=parent, mmap=environment.mmap)
    if delete:
        for one in waste:
            one.path.unlink(missing_ok=True)
        for folder in {one.path.parent for one in waste}:
            with suppress(OSError):  # something is still in it
                folder.rmdir()
    size = sum(one.bytes for one in waste)
    verb = "Deleted" if delete else "Would delete"
    facts = {
        "deleted": delete,
        "bytes": size,
        "files": [{"path": one.path, "bytes": one.bytes, "why": one.why} for one in waste],
        "roots": [root.path for root in roots],
    }
    lines = [f"  {one.path} ({one.bytes:,} bytes): {one.why}" for one in waste]
    lines.append(
        f"{verb} {_count(len(waste), 'file')}, {size / 2**20:,.1f} MB." if waste else "There is nothing to delete."
    )
    following = (
        ["the same with --delete"] if waste and not delete else ["semid info DATA_DIR     to see what answers there"]
    )
    return Answer(facts, lines, following)


# --- report -------------------------------------------------------------------------------------


@command
@click.argument("path", metavar="TABLE", type=EXISTING)
@options(
    click.option(
        "-o",
        "--output",
        type=ANY_PATH,
        default=Path("report.html"),
        show_default=True,
        metavar="FILE",
        help="The page.",
    ),
    click.option(
        "--embeddings",
        type=EXISTING,
        metavar="SOURCE",
        help="The vectors: a data directory or a file; adds what only they tell.",
    ),
    IDS,
    FEATURES,
    click.option(
        "--titles",
        type=EXISTING,
        metavar="FILE",
        help="What people call the items: .json {item: title}, .jsonl, .csv or .tsv (item, title).",
    ),
)
def report(
    path: Path, output: Path, embeddings: Path | None, ids: str | None, features: tuple[str, ...], titles: Path | None
) -> Answer:
    """Write one self-contained page about IDs."""
    from semid_dataset.report.page import write_report

    table = _open_ids(path)
    named = None if titles is None else _read_titles(titles)
    vectors = None
    if embeddings is not None:
        read = _read_embeddings(embeddings, ids, features)
        rows = table.rows_of(read.items)
        known = np.flatnonzero(rows >= 0)
        if len(known) < len(table):
            raise EmbeddingError(
                f"'{embeddings}' has vectors of {len(known):,} of the {len(table):,} items of '{path}'; "
                "a report needs all."
            )
        fused = _vectors_for(table, read)
        vectors = np.empty((len(table), fused.shape[1]), np.float32)
        vectors[rows[known]] = fused[known]
    write_report(table, output, vectors=vectors, titles=named)
    size = output.stat().st_size
    return Answer(
        {"path": output, "bytes": size, "items": len(table)},
        [f"Wrote {output} ({size / 2**20:.1f} MB), {_count(len(table), 'item')}."],
        [f"open {output} in a browser"],
    )


def _read_titles(path: Path) -> dict[str, str]:
    import csv

    try:
        text = bytes(files.map_file(path, mmap=False, follow=True)[0]).decode("utf-8-sig")
        if path.suffix == ".json":
            titles = json.loads(text)
            if not isinstance(titles, dict):
                raise EmbeddingError(f"'{path}' holds a {type(titles).__name__}; wanted: an object of titles by item.")
            return {str(item): str(title) for item, title in titles.items()}
        if path.suffix in {".jsonl", ".ndjson"}:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
            names = ("item_id", "item", "id")
            return {str(next(row[name] for name in names if name in row)): str(row["title"]) for row in rows}
        separator = "\t" if path.suffix == ".tsv" else ","
        return {row[0]: row[1] for row in csv.reader(text.splitlines(), delimiter=separator) if len(row) >= 2}
    except (ValueError, KeyError, TypeError, StopIteration, csv.Error) as error:
        if isinstance(error, SemidError):
            raise
        raise EmbeddingError(f"'{path}' cannot be read as titles: {type(error).__name__} {error}.") from None
