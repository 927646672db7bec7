"""
What a command has to say and to write, and how a function becomes a command.

A command collects an `Answer`, facts and sentences, and one place prints it, as text or as JSON.
"""

import functools
import json
import logging
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np

from semid_dataset import _files as files
from semid_dataset._messages import logger, said, tell
from semid_dataset.environment import Context
from semid_dataset.errors import GenerationError
from semid_dataset.format.id_json import JSON_FILE
from semid_dataset.table.table import TABLE_FILE, SemanticIdTable

__all__ = [
    "FAILED",
    "INTERRUPTED",
    "JSON",
    "STALE",
    "TABLE",
    "USAGE",
    "WRONG",
    "Answer",
    "Function",
    "added_facts",
    "added_line",
    "check_gate",
    "command",
    "context",
    "count",
    "facts_of",
    "gate_forbids",
    "how_to_make",
    "quality_line",
    "sent",
    "word",
    "write_ids",
]

WRONG, USAGE, FAILED, STALE, INTERRUPTED = 1, 2, 3, 4, 130
TABLE, JSON = TABLE_FILE, JSON_FILE

Function = Callable[..., "Answer"]


@dataclass
class Answer:
    """What a command has to say: facts for programs, lines for people, and what to do next."""

    facts: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    next: list[str] = field(default_factory=list)
    code: int = 0
    aside: bool = False  # print on stderr: stdout has taken what was made

    def show(self, as_json: bool) -> None:
        """Print it."""
        if as_json:
            facts = json.dumps({**self.facts, "next": self.next}, ensure_ascii=False, indent=2, default=_plain)
            click.echo(facts, err=self.aside)
            return
        for line in self.lines:
            click.echo(said(line), err=self.aside)
        if self.next and not self.aside:
            first = said("Next:")
            click.echo(f"{first} " + "\n      ".join(map(said, self.next)))


@contextmanager
def sent(output: Path, name: str) -> Iterator[Path]:
    """Yield the file to write: `output`; where that is "-", one called `name`, which goes to the standard output."""
    if str(output) != "-":
        yield output
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / name
        with (Path(folder) / name).open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)


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
            click.get_current_context().obj = Context.at_door(explicit=True)
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
    return click.command()(shown(loud(wrapped)))


def context() -> Context:
    """Return what was read when the command that runs was called."""
    found = click.get_current_context().obj
    assert isinstance(found, Context)
    return found


def gate_forbids() -> str | None:
    """Return how `ALLOW_SEMANTIC_GENERATION` forbids that IDs are made here, None where it allows it."""
    gate = context().environment.gate
    return None if gate.allowed else f"ALLOW_SEMANTIC_GENERATION={gate.value}"


def word(path: object) -> str:
    """Return a path as one word of a shell, so that the line it stands in can be pasted."""
    return shlex.quote(str(path))


def how_to_make(line: str) -> str:
    """Return advice to make IDs by a command line; where the gate forbids it, how else they come here."""
    forbidden = gate_forbids()
    if forbidden is None:
        return line
    return (
        f"{forbidden} forbids making IDs here: bring a {JSON} made elsewhere into the data directory, or name a table "
        "with SEMID_PARENT"
    )


def check_gate(what: str, force: bool) -> None:
    """
    Refuse to make IDs where the gate forbids it.

    Args:
        what: would be done.
        force: do it all the same, and say so.

    Raises:
        GenerationError: the gate is closed.
    """
    forbidden = gate_forbids()
    if forbidden is None:
        return
    if not force:
        raise GenerationError(
            f"{forbidden} forbids to {what}. Nothing was made or written. Unset it where IDs may be made, or give "
            "--force to do it all the same."
        )
    tell("forced", forbidden=forbidden, what=what)


def write_ids(table: SemanticIdTable, folder: Path) -> list[Path]:
    """Write a table and its JSON into a folder, as a generation does."""
    table.save(folder / TABLE, note_digest=False)
    files.replace_file(folder / JSON, table.json_chunks())
    return [folder / TABLE, folder / JSON]


def facts_of(table: SemanticIdTable) -> dict[str, Any]:
    """Return what programs want to know of a table."""
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


def quality_line(table: SemanticIdTable) -> list[str]:
    """Return one line about a table's quality; none where nothing was measured."""
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


def added_facts(table: SemanticIdTable, new: int | None) -> dict[str, Any] | None:
    """Return what was measured of the new items of an extension that was just made; None where none was."""
    history = table.info.get("history") or [{}]
    return dict(history[-1]) if new else None


def added_line(table: SemanticIdTable, new: int | None) -> list[str]:
    """Return one line about the new items of an extension that was just made; none where there are none."""
    step = added_facts(table, new)
    if step is None or step.get("relative_error_expected") is None:
        return []
    return [
        f"New items: error {step['relative_error_raw']:.3f} of the variance ({step['relative_error_expected']:.3f} "
        f"expected), {step['collisions_raw']:,} shared an ID before they were made unique, {step['moved']:,} moved"
    ]


def count(number: int, noun: str) -> str:
    """Return "1 item", "1,000 items"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
