"""`semid diff`: which IDs moved, came and went."""

from pathlib import Path

import click

from semid_dataset.check import diff_tables
from semid_dataset.cli._answer import WRONG, Answer, command
from semid_dataset.cli._arguments import EXISTING, ROWS, open_ids, options
from semid_dataset.table.table import SemanticIdTable

__all__ = ["diff"]

SHOWN = 10  # examples in text; --json has all


@command
@click.argument("old", type=EXISTING)
@click.argument("new", type=EXISTING)
@options(ROWS)
def diff(old: Path, new: Path, rows: str | None) -> Answer:
    """
    Say which IDs moved, came and went.

    OLD and NEW are any files of IDs. Exit code 1 if an ID moved or an item is gone; items that came are no harm.
    """
    found = diff_tables(_opened(old, rows), _opened(new, rows))
    lines = [
        f"{found.unchanged:,} unchanged, {len(found.moved):,} moved, {len(found.added):,} added, "
        f"{len(found.removed):,} removed",
        *(f"  moved {item}: {was} -> {now}" for item, (was, now) in list(found.moved.items())[:SHOWN]),
        *(f"  added {item}" for item in found.added[:SHOWN]),
        *(f"  removed {item}" for item in found.removed[:SHOWN]),
    ]
    if max(len(found.moved), len(found.added), len(found.removed)) > SHOWN:
        lines.append(f"  (the first {SHOWN} of each; --json lists all)")
    facts = {
        "unchanged": found.unchanged,
        "moved": {str(item): pair for item, pair in found.moved.items()},
        "added": found.added,
        "removed": found.removed,
    }
    step = (
        "NEW may replace OLD: no ID moved"
        if found.harmless
        else "recommenders trained on OLD must be trained again, or be given OLD as parent"
    )
    return Answer(facts, lines, [step], 0 if found.harmless else WRONG)


def _opened(path: Path, rows: str | None) -> SemanticIdTable:
    """Open IDs; what `--items` says is for arrays without a file of items beside them."""
    bare = path.suffix in {".npy", ".npz", ".pt"} and not path.with_name(f"{path.name}.items.json").exists()
    return open_ids(path, items=rows if bare else None)
