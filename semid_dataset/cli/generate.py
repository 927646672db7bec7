"""`semid generate`: make IDs of embeddings."""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from semid_dataset._files import replace_file
from semid_dataset.cache.cache import Cache
from semid_dataset.cli._answer import (
    JSON,
    TABLE,
    Answer,
    added_line,
    check_gate,
    command,
    context,
    count,
    facts_of,
    gate_forbids,
    quality_line,
    word,
    write_ids,
)
from semid_dataset.cli._arguments import (
    ANY_PATH,
    EXISTING,
    FEATURES,
    FORCE,
    IDS,
    SETTINGS,
    TITLES_FILE,
    check_device,
    check_no_columns,
    check_writable,
    config_of,
    is_data_directory,
    open_parent,
    options,
    read_embeddings,
    read_names,
)
from semid_dataset.cli.report import about_titles
from semid_dataset.config import SemanticIdConfig
from semid_dataset.errors import GenerationError, SemidError
from semid_dataset.table.table import SemanticIdTable

__all__ = ["generate"]


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
        metavar="NAME",
        help="Stream a data directory's embeddings, part by part, by local processes (local), on Ray (ray), "
        "or by the executor of another package.",
    ),
    click.option("--num-shards", type=int, metavar="N", help="Share the work with N - 1 other runs of this command."),
    click.option("--shard-id", type=int, metavar="K", help="Which share this is, from 0; the last one publishes."),
    click.option(
        "--sequences",
        type=EXISTING,
        metavar="FILE",
        help="What users took in order (.txt, .jsonl, .parquet): what is taken together gets IDs that are alike.",
    ),
    click.option(
        "--title",
        metavar="COLUMN",
        help="A column of SOURCE that holds titles: kept beside the table, for report and show.",
    ),
    FORCE,
    SETTINGS,
)
def generate(  # noqa: PLR0912 - one branch for everything that does not go together
    source: Path,
    ids: str | None,
    vectors: str | None,
    features: tuple[str, ...],
    output: Path | None,
    parent: Path | None,
    retrain: bool,
    engine: str | None,
    num_shards: int | None,
    shard_id: int | None,
    sequences: Path | None,
    title: str | None,
    force: bool,
    **settings: Any,
) -> Answer:
    """
    Make IDs of embeddings.

    SOURCE is a data directory, whose IDs go to its cache, or a file of embeddings, or a folder of its parts: .npy
    (with --ids), .npz, .parquet, .arrow, .jsonl, .safetensors or .pkl, compressed or not, which needs -o.
    """
    from semid_dataset import api as commands
    from semid_dataset.inputs.sequences import read_sequences

    config = config_of(**settings)
    if output is not None and (output / TABLE).exists() and parent is None and not retrain:
        raise click.UsageError(
            f"'{output}' holds IDs already, and new ones would replace them. Add new items with --parent "
            f"{word(output)}, or start over with --retrain."
        )
    data_directory = is_data_directory(source)
    if title is not None and source.suffix not in {".csv", ".tsv", ".parquet", ".pq", ".jsonl", ".ndjson"}:
        raise click.UsageError(f"'{source}' has no column of titles (--title). Give them later: report --titles FILE.")
    if {engine, num_shards, shard_id} != {None} and not data_directory:
        raise click.UsageError("--engine and shards are for data directories: work on one file is not shared.")
    if gate_forbids() is not None and not _is_there(source, features, config, output, parent, retrain):
        check_gate("make IDs", force)
    if {num_shards, shard_id} != {None}:
        return _shard(source, features, config, output, parent, retrain, engine, num_shards, shard_id, force)
    if sequences is not None and (parent is not None or (data_directory and (output is None or engine is not None))):
        raise click.UsageError("--sequences is for training in memory: give -o, no --parent and no --engine.")
    check_device(config.device)
    started = time.perf_counter()
    new: int | None = None
    said: list[str] = []
    if data_directory:
        check_no_columns(ids, vectors)
        if output is not None:
            check_writable(output)
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
            force=force,
        )
        _check_kept(table, source)
        written = [] if table.path is None or table.status == "cached" else [table.path]
        if output is not None:
            written = [output / TABLE, output / JSON]
    else:
        if output is None:
            raise click.UsageError("Where shall the IDs go? Give -o DIR.")
        check_writable(output)
        named = None if title is None else read_names(source, None, title, source, ids)  # wrong columns are said first
        table, new = _of_file(source, ids, vectors, output, parent, sequences, config, force)
        written = [output / TABLE, output / JSON]
        if named is not None:
            before = {} if parent is None else read_names(parent, None, None) or {}
            texts = {item: text for item, text in {**before, **named}.items() if item in table}
            replace_file(output / TITLES_FILE, [json.dumps(texts, ensure_ascii=False).encode()])
            written.append(output / TITLES_FILE)
            said = about_titles(table, named)
    seconds = time.perf_counter() - started
    answer = _generated(table, new, written, seconds, str(output or table.path or source))
    answer.lines += said
    return answer


def _of_file(
    source: Path,
    ids: str | None,
    vectors: str | None,
    output: Path,
    parent: Path | None,
    sequences: Path | None,
    config: SemanticIdConfig,
    force: bool,
) -> tuple[SemanticIdTable, int | None]:
    """Make IDs of a file of vectors in a folder; return their table and, with a parent, how many are new."""
    from semid_dataset import api as commands
    from semid_dataset.inputs.sequences import read_sequences

    if parent is None and sequences is None:
        streamed = commands.generate_from_file(source, ids, vectors=vectors, output_dir=output, config=config)
        if streamed is not None:
            return streamed, None
    embeddings = read_embeddings(source, ids, (), vectors)
    matrix = embeddings.features[0].matrix
    if parent is None:
        taken = None if sequences is None else read_sequences(sequences)
        table = commands.generate_from_vectors(
            embeddings.items, matrix, config=config, output_dir=output, sequences=taken
        )
        return table, None
    base = open_parent(parent, unique=config.unique)
    table, new = commands.extend_with_vectors(base, embeddings.items, matrix, force=force)
    write_ids(table, output)
    return table, new


def _generated(table: SemanticIdTable, new: int | None, written: Sequence[Path], seconds: float, where: str) -> Answer:
    """Say what was generated."""
    added = "" if new is None else f", {new:,} of them new"
    return Answer(
        {**facts_of(table), "new": new, "written": written, "seconds": seconds},
        [
            f"{count(len(table), 'item')} have IDs of {table.levels} levels{added} ({table.status}, {seconds:.1f} s).",
            *quality_line(table),
            *added_line(table, new),
            *(f"Wrote {path}" for path in written),
            *([] if written else [f"Nothing was written: they were there, in {table.path}"]),
        ],
        [
            f"semid report {word(where)} -o report.html     to look at them",
            f"semid export {word(where)} -o item.index.json     to carry them elsewhere (semid export --help)",
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
    force: bool,
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
        force=force,
    )
    seconds = time.perf_counter() - started
    if table is None:
        return Answer(
            {"status": "waiting", "parts_done": done, "parts": parts, "seconds": seconds},
            [f"Shard {shard_id} of {num_shards} is done ({seconds:.1f} s); {done} of {parts} parts are there."],
            ["run the shards that are missing, or this command again once they are done: the last one publishes"],
        )
    _check_kept(table, source)
    answer = _generated(table, None, [] if done == 0 or table.path is None else [table.path], seconds, str(source))
    answer.facts |= {"parts_done": done, "parts": parts}
    return answer


def _is_there(
    source: Path,
    features: Sequence[str],
    config: SemanticIdConfig,
    output: Path | None,
    parent: Path | None,
    retrain: bool,
) -> bool:
    """Say whether nothing is to be made: a cache holds the IDs of all items of a data directory."""
    if not is_data_directory(source) or output is not None or retrain:
        return False
    from semid_dataset import resolve

    with suppress(SemidError):
        request = resolve.Request(source, tuple(features or ("81",)), config=config, parent=parent)
        return resolve.look(request, context()).status == "cached"
    return False


def _check_kept(table: SemanticIdTable, source: Path) -> None:
    """Raise where IDs live in this process only: it ends, and nobody would have them."""
    if table.path is None:
        raise GenerationError(
            f"The IDs of '{source}' were made and could not be kept: {table.reason}. Nothing was stored. Free some "
            "space, give -o DIR, or set SEMID_CACHE_DIR to a folder that takes them."
        )


def _check_cache(
    source: Path, features: Sequence[str], config: SemanticIdConfig, parent: Path | None, retrain: bool
) -> None:
    """Raise before the work where IDs of a data directory have no place to go; IDs that are there need none."""
    from semid_dataset.inputs.discover import find_sources

    find_sources(source, features)
    cache = Cache.of(context().environment, source)
    if cache.writable() is not None or _is_there(source, features, config, None, parent, retrain):
        return
    asked = ", ".join(f"'{root.path}'" for root in cache.folders)
    raise GenerationError(
        f"No cache folder takes a write: {asked}. Nothing was made. Give -o DIR, or set SEMID_CACHE_DIR to a folder "
        "that takes one."
    )
