"""`semid info`: which IDs answer, since when, from where, and why the others that lie there do not."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from semid_dataset.cache import folders
from semid_dataset.cache.cache import Cache
from semid_dataset.cache.fingerprint import FileStamp
from semid_dataset.cache.folders import CacheFolder
from semid_dataset.cache.guard import moved_items
from semid_dataset.cli._answer import (
    JSON,
    STALE,
    WRONG,
    Answer,
    command,
    context,
    count,
    facts_of,
    how_to_make,
    quality_line,
    word,
)
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
from semid_dataset.errors import DigestError, NoEmbeddingsError, SemidError
from semid_dataset.table.table import SemanticIdTable

if TYPE_CHECKING:
    from semid_dataset import resolve

__all__ = ["info"]

SHOWN = 6  # of what does not answer: the page is one screen


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
    Say which IDs answer, since when, from where, and why the others do not.

    TARGET is a data directory, or any file of IDs. Nothing is trained or extended, whatever the gate says. Settings
    tell which IDs are asked for: give those that the dataset has.

    Exit codes: 0 all items have IDs; 4 stale, new items have none; 1 nothing answers, or another table than
    SEMID_EXPECT names.
    """
    from semid_dataset import resolve
    from semid_dataset.inputs.discover import features_folder

    found: list[CacheFolder] = []
    others: list[dict[str, str]] = []
    expected: dict[str, Any] | None = None
    if not target.is_dir() or (features_folder(target) is None and holds_table(target)):
        table = open_ids(target, sizes, rows)
    else:
        request = resolve.Request(target, features or ("81",), config=config_of(**settings), parent=parent)
        cache = Cache.of(context().environment, target)
        found = list(cache.folders)
        try:
            table = resolve.look(request, context())
            others = _others(cache, request, table, target)
            expected = _expected(table, cache.pinned(target))
        except SemidError as error:
            make = how_to_make(f"semid generate {word(target)}     to make them now")
            if isinstance(error, NoEmbeddingsError) and features_folder(target) is None:
                make = (
                    "semid generate FILE -o DIR     makes IDs of embeddings in a file; semid generate --help says which"
                )
            roots = [_root_facts(root) for root in found]
            others = _others(cache, request, None, target)
            return Answer(
                {"status": None, "reason": str(error), "roots": roots, "others": others},
                [
                    f"Nothing answers for '{target}' yet: {error}",
                    *_other_lines(others),
                    *_root_lines(roots, None),
                ],
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
    lines += [*_since_lines(table), *([] if expected is None else [f"Expected: {expected['what']}"])]
    lines += [*quality_line(table), *_provenance_lines(table), *_other_lines(others), *_root_lines(roots, root)]
    if not table.has_quantizer:
        lines.append("It holds IDs alone: new items cannot be encoded with it.")
    shown = word(table.path or target)
    missing = table.status == "stale" and table.reason.endswith(resolve.BY_LOOKING)
    met = expected is None or expected["met"]
    return Answer(
        {**facts, "root": root, "roots": roots, "others": others, "expected": expected},
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
        WRONG if not met else STALE if table.status == "stale" else 0,
    )


def _since_lines(table: SemanticIdTable) -> list[str]:
    """Say since when a table is what it is."""
    times = [step["time"] for step in table.header.history if "time" in step]
    if not times:
        return []
    grew = f"; the lineage began {_date(times[0])}" if len(times) > 1 else ""
    return [f"Since: {_date(times[-1])}{grew}"]


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(float(seconds)))


def _expected(table: SemanticIdTable, pinned: str) -> dict[str, Any]:
    """Say whether a table is what the recommender expects, as far as somebody stated that."""
    from semid_dataset import resolve

    environment = context().environment
    pin = environment.pin or pinned
    said = f"; pinned to {pin}" if pin else ""
    met, what = True, "nobody stated what (SEMID_EXPECT, a digest or a lineage)"
    if environment.expect:
        what = f"yes, {environment.expect} (SEMID_EXPECT)"
        try:
            resolve.check_expected(table, environment.expect)
        except DigestError as error:
            met, what = False, f"NO. {error}"
    return {"met": met, "what": what + said, "pinned": pin or None}


def _others(
    cache: Cache, request: "resolve.Request", answers: SemanticIdTable | None, data_dir: Path
) -> list[dict[str, str]]:
    """Return what else lies in the cache of a data directory, and why it does not answer."""
    found: list[dict[str, str]] = []
    for name in cache.lineages():
        table: SemanticIdTable | None = None
        for one in cache.generations(name):
            try:
                table = cache.open(one.path)
                break
            except (SemidError, OSError) as error:
                found.append({"what": str(one.path), "why": str(error).removeprefix(f"'{one.path}' ")})
        if table is not None and (answers is None or name != answers.lineage):
            what = f"lineage {name}@{table.generation} ({count(len(table), 'item')})"
            found.append({"what": what, "why": _other_kind(table, request) or _other_data(table, answers)})
    file = data_dir / JSON
    if file.exists() and (answers is None or answers.status != "pregenerated"):
        entry = cache.exported_by(FileStamp.of(file, data_dir).digest())
        if entry is not None and (answers is None or entry.lineage != answers.lineage):
            found.append({"what": JSON, "why": f"an export of lineage {entry.lineage}, which is asked itself"})
    return found


def _other_kind(table: SemanticIdTable, request: "resolve.Request") -> str:
    """Say how the IDs of a table are of another kind than those that are asked for; "" where they are not."""
    identity, config = table.header.identity, request.config
    if identity is None:
        return ""
    have, asked = ("+".join(sorted(ids)) for ids in ([name for name, _ in identity.features], request.feature_ids))
    if have != asked:
        return f"these IDs are of features {have}, you asked for {asked}"
    if identity.codebook_sizes != config.codebook_sizes:
        had, wanted = ("/".join(map(str, sizes)) for sizes in (identity.codebook_sizes, config.codebook_sizes))
        return f"these IDs have {had} codes, you asked for {wanted}"
    if "+" in have and identity.fusion != config.fusion:
        return f"these IDs are of fusion {identity.fusion}, you asked for {config.fusion}"
    return ""


def _other_data(table: SemanticIdTable, answers: SemanticIdTable | None) -> str:
    """Say why the newest table of a lineage of the same kind does not answer."""
    if table.lineage.startswith("json-"):
        return f"the compiled form of a {JSON} that is not there, or is another one by now"
    if answers is None:
        return "of other data, as far as items and vectors tell; semid pin takes it all the same"
    if table.lineage in answers.header.replaces:
        return "a retraining replaced it"
    if table.lineage in answers.header.origins:
        return "the one that answers branched off from it"
    moved, both = moved_items(answers, table)
    what = f"of {both:,} items in both, {moved:,} have another ID" if both else "it is of other items"
    return f"{what}; the other one was served here before, or fits better"


def _other_lines(others: Sequence[Mapping[str, str]]) -> list[str]:
    lines = ["Others there, and why they do not answer:"] if others else []
    lines += [f"  {one['what']}: {one['why']}" for one in others[:SHOWN]]
    return lines + ([f"  and {len(others) - SHOWN} more (--json has all)"] if len(others) > SHOWN else [])


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
    sequences = bool(table.header.behaviour)
    files = [name for name in made.get("files") or {} if not (sequences and name == "sequences")]
    names = ", ".join(files) or made.get("source", "")
    identity = table.info.get("identity") or {}
    dims = " + ".join(f"{feature} ({dim} numbers)" for feature, dim in identity.get("features", []))
    also = " and sequences" if sequences else ""
    lines = [f"Made: {' '.join(parts)}" + (f", from {names or dims}{also}" if names or dims else "")]
    return lines + ([f"Skipped rows: {made['bad_rows']:,}"] if made.get("bad_rows") else [])
