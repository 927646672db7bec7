"""`semid report`: write the page about IDs."""

from itertools import islice
from pathlib import Path

import click
import numpy as np

from semid_dataset.check import vectors_for
from semid_dataset.cli._answer import Answer, command, context, count, sent
from semid_dataset.cli._arguments import (
    ANY_PATH,
    EXISTING,
    FEATURES,
    IDS,
    SIZES,
    TITLES,
    open_ids,
    options,
    read_embeddings,
    read_names,
)
from semid_dataset.errors import EmbeddingError
from semid_dataset.table.table import SemanticIdTable

__all__ = ["about_titles", "report"]


@command
@click.argument("path", metavar="TABLE", type=EXISTING)
@options(
    click.option(
        "-o",
        "--output",
        type=ANY_PATH,
        default=Path("report.html"),
        show_default=True,
        metavar="FILE",
        help="The page; - is the standard output.",
    ),
    click.option(
        "--embeddings",
        type=EXISTING,
        metavar="SOURCE",
        help="The vectors: a data directory or a file; adds what only they tell.",
    ),
    IDS,
    FEATURES,
    TITLES,
    SIZES,
    click.option("--name", metavar="TEXT", help="What the data is called; else by its files."),
    click.option(
        "--lang", type=click.Choice(["en", "zh"]), help="Language of the page; else that of the terminal (SEMID_LANG)."
    ),
)
def report(
    path: Path,
    output: Path,
    embeddings: Path | None,
    ids: str | None,
    vectors: str | None,
    features: tuple[str, ...],
    titles: Path | None,
    title: str | None,
    name: str | None,
    lang: str | None,
    sizes: int | tuple[int, ...] | None,
) -> Answer:
    """Write one self-contained page about IDs."""
    from semid_dataset.report.page import write_report

    table = open_ids(path, sizes)
    named = read_names(path, titles, title, embeddings, ids)
    found = None
    if embeddings is not None:
        read = read_embeddings(embeddings, ids, features, vectors)
        rows = table.rows_of(read.items)
        known = np.flatnonzero(rows >= 0)
        if len(known) < len(table):
            raise EmbeddingError(
                f"'{embeddings}' has vectors of {len(known):,} of the {len(table):,} items of '{path}'; "
                "a report needs all."
            )
        fused = vectors_for(table, read)
        found = np.empty((len(table), fused.shape[1]), np.float32)
        found[rows[known]] = fused[known]
    lang = lang or context().environment.language
    with sent(output, "report.html") as file:
        write_report(table, file, vectors=found, titles=named, name=name, lang=lang)
        size = file.stat().st_size
    return Answer(
        {"path": output, "bytes": size, "items": len(table)},
        [
            f"Wrote {output} ({size / 2**20:.1f} MB), {count(len(table), 'item')}.",
            *([] if named is None else about_titles(table, named)),
        ],
        [f"open {output} in a browser"],
        aside=str(output) == "-",
    )


def about_titles(table: SemanticIdTable, titles: dict[str, str]) -> list[str]:
    """Say how many titles are of items of the table; where none is, what both look like."""
    rows = table.rows_of(list(titles)) if titles else np.empty(0, np.int64)
    rows = rows[rows >= 0]
    matching, titled = len(rows), len(np.unique(rows))
    line = f"{matching:,} of {len(titles):,} titles match an item; {titled:,} of {count(len(table), 'item')} have one."
    if matching or not len(table):
        return [line]
    items = ", ".join(str(item) for item in islice(table, 3))
    others = ", ".join(list(titles)[:3]) or "nothing"
    return [line, f"Titles are of {others}; items are {items}. Are they the same kind of id?"]
