"""`semid compare`: two sets of IDs side by side."""

from pathlib import Path

import click

from semid_dataset.cli._answer import Answer, command, context
from semid_dataset.cli._arguments import ANY_PATH, EXISTING, TITLES, open_ids, options, read_names
from semid_dataset.table.figures import percent

__all__ = ["compare"]


@command
@click.argument("a", type=EXISTING)
@click.argument("b", type=EXISTING)
@options(
    click.option("-o", "--output", type=ANY_PATH, metavar="FILE", help="Write a page, too."),
    TITLES,
    click.option("--lang", type=click.Choice(["en", "zh"]), help="Language of the page."),
)
def compare(a: Path, b: Path, output: Path | None, titles: Path | None, title: str | None, lang: str | None) -> Answer:
    """
    Set the checks of two sets of IDs side by side, and say whether they put the same items together.

    Numbers of codes mean nothing between two trainings: pairs of items that share codes are compared. For moved IDs
    see: semid diff.
    """
    from semid_dataset.report._words import Words
    from semid_dataset.report.compare import compare as compared
    from semid_dataset.report.compare import side_by_side, write_comparison

    tables = open_ids(a), open_ids(b)
    named = read_names(a, titles, title)
    names = (str(a), str(b))
    facts = compared(*tables, titles=named, names=names)
    counts = facts["items"]
    rows = [(row["name"], [_figure(side) for side in row["both"]]) for row in side_by_side(facts, Words("en"))]
    kept = [
        (f"first {step['depth']}", ["no pairs" if one is None else percent(one) for one in step["kept"]])
        for step in facts["together"]
    ]
    name, first = max(len(row[0]) for row in rows) + 2, max(len(row[1][0]) for row in rows) + 2
    lines = [
        f"{counts['common']:,} items in both, {counts['only_a']:,} only in {a}, {counts['only_b']:,} only in {b}; "
        f"{counts['same']:,} have the same ID",
        *(f"{label:<{name}}{sides[0]:<{first}}{sides[1]}" for label, sides in rows),
        "Of the pairs of items that share their first codes in one, so many share them in the other, too:",
        *(f"{label:<{name}}{sides[0]:<{first}}{sides[1]}" for label, sides in kept),
    ]
    steps = [f"semid compare {a} {b} -o compare.html     to see them side by side"]
    if output is not None:
        lang = lang or context().environment.language
        write_comparison(*tables, output, titles=named, names=names, lang=lang)
        lines.append(f"Wrote {output}")
        steps = [f"open {output} in a browser"]
    return Answer(facts, lines, steps)


def _figure(side: dict[str, str] | None) -> str:
    if side is None:
        return "-"
    return (
        side["verdict"] if side["verdict"] == "unknown" or not side["found"] else f"{side['verdict']}: {side['found']}"
    )
