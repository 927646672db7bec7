"""`semid prune`: list, or delete, what caches no longer need."""

from contextlib import suppress
from pathlib import Path

import click

from semid_dataset.cache import folders
from semid_dataset.cache.cache import Cache
from semid_dataset.cache.folders import Root
from semid_dataset.cli._answer import Answer, command, context, count
from semid_dataset.cli._arguments import EXISTING, options

__all__ = ["prune"]

DAY = 86_400.0  # seconds


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

    environment = context().environment
    cache = Cache.of(environment, target)
    if target is not None and (target / folders.VERSION).is_dir():
        cache = Cache([Root(target, target)], environment.mmap)
    parent = None if environment.parent is None else Path(environment.parent)
    waste = find_waste(cache, min_age=older_than * DAY, lineages=lineages, parent=parent)
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
        "roots": [root.path for root in cache.folders],
    }
    lines = [f"  {one.path} ({one.bytes:,} bytes): {one.why}" for one in waste]
    lines.append(
        f"{verb} {count(len(waste), 'file')}, {size / 2**20:,.1f} MB." if waste else "There is nothing to delete."
    )
    following = (
        ["the same with --delete"] if waste and not delete else ["semid info DATA_DIR     to see what answers there"]
    )
    return Answer(facts, lines, following)
