"""`semid cache`: what lies in the caches, who uses it, and cleaning up to a size."""

import time
from pathlib import Path
from typing import Any

import click

from semid_dataset.cli._answer import Answer, command, count, word
from semid_dataset.cli._arguments import options
from semid_dataset.cli.prune import DELETE, LINEAGES, OLDER, TARGET, cache_of, clean
from semid_dataset.environment import parse_bytes
from semid_dataset.errors import ConfigError

__all__ = ["cache"]

DAY = 86_400.0  # seconds


@command
@TARGET
def list_contents(target: Path | None) -> Answer:
    """
    List what lies in the caches.

    Every lineage of tables with its size, its age, when it was last used, and the data directories that it served.
    Without a folder, those that the environment names and the user's own are looked at.
    """
    from semid_dataset.cache.prune import look_through

    looked = cache_of(target)
    found = look_through(looked)
    facts: list[dict[str, Any]] = []
    lines: list[str] = []
    for root in found:
        lines.append(
            f"{root.path}: {_size(root.bytes)} in {count(len(root.rows), 'lineage')}, "
            f"{count(root.jobs, 'unfinished run')} ({_size(root.job_bytes)}), {count(root.notes, 'note')}"
        )
        rows = []
        for row in sorted(root.rows, key=lambda row: -row.bytes):
            numbers = f"{row.generations[0]}-{row.generations[-1]}" if row.generations else "none"
            aside = f"; {count(row.asides, 'damaged table')} ({_size(row.aside_bytes)})" if row.asides else ""
            lines.append(
                f"  {row.name}  {_size(row.bytes):>9}  generations {numbers}  made {_ago(root.now, row.born)}, "
                f"used {_ago(root.now, row.used)}{', in use here' if row.live else ''}{aside}"
            )
            if row.identity:
                lines.append(f"    {row.identity}")
            lines += [f"    served {folder}" for folder in row.serves]
            rows.append(
                {
                    "lineage": row.name,
                    "identity": row.identity,
                    "generations": row.generations,
                    "bytes": row.bytes,
                    "made": row.born,
                    "used": row.used,
                    "live": row.live,
                    "served": row.serves,
                    "damaged": row.asides,
                    "damaged_bytes": row.aside_bytes,
                }
            )
        facts.append(
            {
                "path": root.path,
                "bytes": root.bytes,
                "lineages": rows,
                "jobs": root.jobs,
                "job_bytes": root.job_bytes,
                "notes": root.notes,
                "note_bytes": root.note_bytes,
            }
        )
    if not found:
        places = ", ".join(str(root.path) for root in looked.folders)
        lines.append(f"There is no cache in {places}.")
    total = sum(root.bytes for root in found)
    where = "" if target is None else f" {word(target)}"
    following = [f"semid cache prune{where}     what may be deleted; --delete does it"]
    if not found:
        following = ["semid cache DATA_DIR     what lies in the cache of a data directory"]
    return Answer({"bytes": total, "roots": facts}, lines, following)


@command
@TARGET
@options(
    DELETE,
    OLDER,
    LINEAGES,
    click.option(
        "--max-size", metavar="SIZE", help="Only as much as brings the cache down to this size, such as 10G; 0 for all."
    ),
)
def prune_contents(
    target: Path | None, delete: bool, older_than: float | None, lineages: bool, max_size: str | None
) -> Answer:
    """
    List, or delete, what nobody needs, down to a size.

    As `semid prune`. What is least missed goes first: leftovers, dead runs, damaged tables, then old generations, the
    longest unused first. The newest table of a lineage stays, and so does what a process of this machine uses.
    """
    return clean(target, delete=delete, older_than=older_than, lineages=lineages, max_size=_bytes_of(max_size))


def _bytes_of(text: str | None) -> int | None:
    if text is None or text.strip() == "0":
        return None if text is None else 0
    try:
        return parse_bytes("--max-size", text)
    except ConfigError as error:
        raise click.UsageError(str(error)) from None


def _size(size: int) -> str:
    return f"{size / 2**30:,.1f} GB" if size >= 1 << 30 else f"{size / 2**20:,.1f} MB"


def _ago(now: float, then: float) -> str:
    if not then:
        return "never"
    days = (now - then) / DAY
    if days < 0:
        return time.strftime("on %Y-%m-%d", time.localtime(then))
    return f"{days:,.0f} days ago" if days >= 1 else "today"


class _Cache(click.Group):
    """Lists where no other command is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in {*self.commands, "-h", "--help"}:
            args = ["list", *args]
        return super().parse_args(ctx, args)


cache: click.Group = _Cache(
    "cache",
    commands={"list": list_contents, "prune": prune_contents},
    help="What lies in the caches and who uses it; `semid cache prune` cleans up. Without a command: list.",
)
