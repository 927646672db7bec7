"""`semid prune`: list, or delete, what caches no longer need."""

from contextlib import suppress
from pathlib import Path

import click

from semid_dataset.cache import folders
from semid_dataset.cache.cache import Cache
from semid_dataset.cache.folders import CacheFolder
from semid_dataset.cli._answer import Answer, command, context, count
from semid_dataset.cli._arguments import EXISTING, options

__all__ = ["DELETE", "LINEAGES", "OLDER", "TARGET", "cache_of", "clean", "prune"]

DAY = 86_400.0  # seconds

TARGET = click.argument("target", metavar="[DATA_DIR|CACHE_DIR]", type=EXISTING, required=False)
DELETE = click.option("--delete", is_flag=True, help="Delete; without it they are only listed.")
OLDER = click.option(
    "--older-than",
    type=click.FloatRange(0),
    metavar="DAYS",
    help="Leave alone what was changed or used more recently. [tables 30, everything else 1]",
)
LINEAGES = click.option(
    "--lineages",
    is_flag=True,
    help="Also lineages that no note in these folders names; a dataset or checkpoint elsewhere may need one.",
)


@command
@TARGET
@options(DELETE, OLDER, LINEAGES)
def prune(target: Path | None, delete: bool, older_than: float | None, lineages: bool) -> Answer:
    """
    List, or delete, what caches no longer need.

    Old generations, damaged files, leftovers of writers that died; never what is in use: the newest generation of a
    lineage, tables that processes of this machine have open, notes, locks. Without a folder, those that the
    environment names and the user's own are looked at.
    """
    return clean(target, delete=delete, older_than=older_than, lineages=lineages)


def cache_of(target: Path | None) -> Cache:
    """Return the cache of a data directory, the one in a folder, or the user's."""
    environment = context().environment
    if target is not None and (target / folders.VERSION).is_dir():
        return Cache([CacheFolder(target, target)], environment.mmap)
    return Cache.of(environment, target)


def clean(
    target: Path | None, *, delete: bool, older_than: float | None, lineages: bool, max_size: int | None = None
) -> Answer:
    """List, or delete, what is not needed; with `max_size` no more than brings the cache down to so many bytes."""
    from semid_dataset.cache.prune import find_waste, look_through, within

    cache = cache_of(target)
    named = context().environment.parent
    waste = find_waste(
        cache,
        min_age=None if older_than is None else older_than * DAY,
        lineages=lineages,
        parent=None if named is None else Path(named),
        data_dir=target,
    )
    total = None if max_size is None else sum(root.bytes for root in look_through(cache))
    if total is not None and max_size is not None:
        waste = within(waste, total, max_size)
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
    if total is not None and max_size is not None:
        facts |= {"cache_bytes": total - size, "max_size": max_size}
        if total - size > max_size:
            lines.append(
                f"The cache still takes {(total - size) / 2**20:,.1f} MB: the rest is the newest of its lineage, in "
                "use, or too young (--older-than)."
            )
    following = (
        ["the same with --delete"] if waste and not delete else ["semid info DATA_DIR     to see what answers there"]
    )
    return Answer(facts, lines, following)
