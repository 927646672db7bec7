"""`semid show`: one item's ID, level by level, and its neighbours."""

from pathlib import Path
from typing import Any

import click

from semid_dataset.cli._answer import WRONG, Answer, command, count, word
from semid_dataset.cli._arguments import EXISTING, ROWS, SIZES, TITLES, open_ids, options, read_names

__all__ = ["show"]


@command
@click.argument("path", metavar="TABLE", type=EXISTING)
@click.argument("items", metavar="ITEM...", nargs=-1, required=True)
@options(
    TITLES,
    click.option(
        "--most",
        type=click.IntRange(1),
        default=3,
        show_default=True,
        metavar="N",
        help="Neighbours to name for each length of a prefix.",
    ),
    SIZES,
    ROWS,
)
def show(
    path: Path,
    items: tuple[str, ...],
    titles: Path | None,
    title: str | None,
    most: int,
    sizes: int | tuple[int, ...] | None,
    rows: str | None,
) -> Answer:
    """
    Show an item's ID level by level: how many items share each prefix, and which.

    Exit code 1 if the table does not know one of the items.
    """
    table = open_ids(path, sizes, rows)
    named = read_names(path, titles, title) or {}
    facts: list[dict[str, Any]] = []
    lines: list[str] = []
    unknown = [item for item in items if item not in table]

    def called(item: int | str) -> str:
        text = named.get(str(item), "")
        return f"{item}  {text}".rstrip()

    for item in (item for item in items if item in table):
        codes = table[item]
        lines += ["", called(item), f"  ID {'-'.join(map(str, codes))}"]
        levels: list[dict[str, Any]] = []
        nearer = {item}
        for depth in range(len(codes), 0, -1):  # the nearest first: each is named with the longest prefix it shares
            sharing = table.items_of(codes[:depth])
            new = [other for other in sharing if str(other) not in nearer]
            nearer.update(map(str, sharing))
            levels.insert(0, {"prefix": codes[:depth], "items": len(sharing), "neighbours": new[:most]})
        for level in levels:
            prefix = "-".join(map(str, level["prefix"]))
            alone = level["items"] == 1
            lines.append(f"  {prefix}  {'this item alone' if alone else count(level['items'], 'item')}")
            lines += [f"      {called(other)}" for other in level["neighbours"]]
        title_of = named.get(str(item))
        facts.append({"item": item, "title": title_of, "id": codes, "levels": levels})
    if unknown:
        some = ", ".join(str(item) for item, _ in zip(table, range(3), strict=False))
        lines += ["", f"Not in the table: {', '.join(unknown)}. Its items are such as {some or 'none at all'}."]
    return Answer(
        {"items": facts, "unknown": unknown},
        lines[1:],
        [f"semid report {word(path)} -o report.html     to see all of them"],
        WRONG if unknown else 0,
    )
