"""`semid info`: which IDs answer, from where, and why."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from semid_dataset.build import lineages as lineage
from semid_dataset.cache import folders
from semid_dataset.cache.cache import Cache
from semid_dataset.cache.folders import CacheFolder
from semid_dataset.cli._answer import WRONG, Answer, command, context, count, facts_of, how_to_make, quality_line, word
from semid_dataset.cli._arguments import (
    EXISTING,
    FEATURES,
    ROWS,
    SETTINGS,
    SIZES,
    config_of,
    holds_table,
    open_ids,
    options,
)
from semid_dataset.errors import NoEmbeddingsError, SemidError
from semid_dataset.table.table import SemanticIdTable

__all__ = ["info"]


@command
@click.argument("target", type=EXISTING)
@options(
    FEATURES,
    click.option("--parent", type=EXISTING, metavar="TABLE", help="As the dataset would name it."),
    SIZES,
    ROWS,
    SETTINGS,
)
def info(
    target: Path,
    features: tuple[str, ...],
    parent: Path | None,
    sizes: int | tuple[int, ...] | None,
    rows: str | None,
    **settings: Any,
) -> Answer:
    """
    Say which IDs answer, from where, and why.

    TARGET is a data directory, or any file of IDs. Nothing is trained or extended, whatever the gate says. Settings
    tell which IDs are asked for: give those that the dataset has.
    """
    from semid_dataset import resolve
    from semid_dataset.inputs.discover import features_folder

    found: list[CacheFolder] = []
    if not target.is_dir() or (features_folder(target) is None and holds_table(target)):
        table = open_ids(target, sizes, rows)
    else:
        request = resolve.Request(target, features or ("81",), config=config_of(**settings), parent=parent)
        found = list(Cache.of(context().environment, target).folders)
        try:
            table = resolve.look(request, context())
        except SemidError as error:
            make = how_to_make(f"semid generate {word(target)}     to make them now")
            if isinstance(error, NoEmbeddingsError) and features_folder(target) is None:
                make = (
                    "semid generate FILE -o DIR     makes IDs of embeddings in a file; semid generate --help says which"
                )
            roots = [_root_facts(root) for root in found]
            return Answer(
                {"status": None, "reason": str(error), "roots": roots},
                [f"Nothing answers for '{target}' yet: {error}", *_root_lines(roots, None)],
                [make],
                WRONG,
            )
    roots = [_root_facts(root) for root in found]
    facts = {
        **facts_of(table),
        **{name: table.info.get(name) for name in ("identity", "settings", "provenance", "history")},
    }
    root = next(
        (one["path"] for one in roots if table.path is not None and Path(one["path"]) in table.path.parents), None
    )
    shape = "/".join(map(str, table.codebook_sizes))
    known = "" if table.sizes_stated else " (taken for that: the file does not say it; --codebook-size N does)"
    lines = [
        f"{count(len(table), 'item')}, {table.levels} levels of {shape} codes{known}",
        f"Answers: {table.status} ({table.reason})",
        f"File: {table.path or 'none, in memory'}",
    ]
    if table.lineage:
        lines.append(f"Lineage: {table.lineage}, generation {table.generation}, content {table.digest[:12]}")
    lines += [*quality_line(table), *_provenance_lines(table), *_root_lines(roots, root)]
    if not table.has_quantizer:
        lines.append("It holds IDs alone: new items cannot be encoded with it.")
    shown = word(table.path or target)
    missing = table.status == "stale" and table.reason.endswith(resolve.BY_LOOKING)
    return Answer(
        {**facts, "root": root, "roots": roots},
        lines,
        [
            *(
                [f"semid generate {word(target)}     with these settings: makes or heals what is missing"]
                if missing
                else []
            ),
            f"semid verify {shown}     to check every ID",
            f"semid report {shown} -o report.html     to look at them",
        ],
    )


def _root_facts(root: CacheFolder) -> dict[str, Any]:
    names = folders.lineages([root])
    return {
        "path": root.path,
        "exists": root.path.is_dir(),
        "lineages": {name: [found.generation for found in folders.generations([root], name)] for name in names},
    }


def _root_lines(roots: Sequence[Mapping[str, Any]], answering: object) -> list[str]:
    lines = ["Cache folders, in the order they are read:"] if roots else []
    for root in roots:
        what = count(len(root["lineages"]), "lineage") if root["exists"] else "not there"
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
    files = [name for name in made.get("files") or {} if not (sequences and name == "sequences")]
    names = ", ".join(files) or made.get("source", "")
    identity = table.info.get("identity") or {}
    dims = " + ".join(f"{feature} ({dim} numbers)" for feature, dim in identity.get("features", []))
    also = " and sequences" if sequences else ""
    lines = [f"Made: {' '.join(parts)}" + (f", from {names or dims}{also}" if names or dims else "")]
    return lines + ([f"Skipped rows: {made['bad_rows']:,}"] if made.get("bad_rows") else [])
