"""`semid demo`: what the package does, shown on a generated shop."""

from pathlib import Path

import click

from semid_dataset.cli._answer import Answer, command, facts_of
from semid_dataset.cli._arguments import ANY_PATH

__all__ = ["demo"]


@command
@click.argument("folder", metavar="[FOLDER]", type=ANY_PATH, default=Path("semid-demo"))
def demo(folder: Path) -> Answer:
    """
    Show what semantic IDs are and what they are worth, on a generated shop.

    Makes FOLDER (semid-demo), or makes it anew where an earlier demo did. Takes about a minute on two cores.
    """
    from semid_dataset.demo.walk import walk

    as_json = bool(click.get_current_context().params.get("as_json"))
    table = walk(folder, lambda line: click.echo(line, err=as_json))
    page = folder / "report.html"
    return Answer({**facts_of(table), "report": page}, [""], [f"open {page} in a browser"])
