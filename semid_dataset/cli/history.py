"""`semid history`: which tables there are for a data directory, and how they grew."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from semid_dataset.cache.cache import Cache
from semid_dataset.cli._answer import WRONG, Answer, command, context, word
from semid_dataset.errors import SemidError
from semid_dataset.table.table import SemanticIdTable

__all__ = ["history"]


@command
@click.argument("data_dir", metavar="DATA_DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
def history(data_dir: Path) -> Answer:
    """
    List the lineages in the cache folders of a data directory, with every table that can be pinned.

    A star marks what served the directory last. A branch names the lineage that it came from, a retraining the one that
    it replaced.
    """
    cache = Cache.of(context().environment, data_dir)
    served = cache.served_before(data_dir)
    last = "" if served is None else served.entry.lineage
    pinned = cache.pinned(data_dir)
    listed: list[dict[str, Any]] = []
    lines: list[str] = []
    for name in cache.lineages():
        tables = _tables(cache, name)
        if not tables or name.startswith("json-"):
            continue
        header = tables[0].header
        more = [f"branch of {origin}" for origin in header.origins[:1]]
        more += [f"replaces {old}" for old in header.replaces[:1]]
        lines.append(f"{'*' if name == last else ' '} {name}" + (f" ({', '.join(more)})" if more else ""))
        for table in tables:
            step = table.header.history[-1] if table.header.history else {}
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(step["time"])) if "time" in step else "?"
            new = step.get("new", len(table))
            at = f"{name}@{table.generation}"
            mark = "   pinned" if pinned in {at, name} else ""
            lines.append(
                f"    @{table.generation}  {when}  {len(table):,} items, {new:,} new  {table.digest[:12]}{mark}"
            )
            listed.append(
                {
                    "lineage": name,
                    "generation": table.generation,
                    "items": len(table),
                    "new": new,
                    "time": step.get("time"),
                    "digest": table.digest,
                    "parent": table.header.parent,
                    "origins": list(table.header.origins),
                    "replaces": list(table.header.replaces),
                    "path": table.path,
                    "served_last": name == last,
                }
            )
    if not listed:
        return Answer({"tables": []}, [f"No cache folder holds a table of '{data_dir}'."], [], WRONG)
    following = [f"semid pin {word(data_dir)} {listed[-1]['lineage']}@{listed[-1]['generation']}     to go back to one"]
    return Answer({"tables": listed, "pinned": pinned or None}, lines, following)


def _tables(cache: Cache, name: str) -> list[SemanticIdTable]:
    """Return the tables of a lineage that can be read, the newest first."""
    found = []
    for one in cache.generations(name):
        with suppress(SemidError, OSError):
            found.append(cache.open(one.path))
    return found
