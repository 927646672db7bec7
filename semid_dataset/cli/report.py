"""`semid report`: write the page about IDs."""

import json
from pathlib import Path

import click
import numpy as np

from semid_dataset import _files as files
from semid_dataset.check import vectors_for
from semid_dataset.cli._answer import Answer, command, context, count
from semid_dataset.cli._arguments import ANY_PATH, EXISTING, FEATURES, IDS, SIZES, open_ids, options, read_embeddings
from semid_dataset.errors import EmbeddingError, SemidError

__all__ = ["read_titles", "report"]


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
        help="The page.",
    ),
    click.option(
        "--embeddings",
        type=EXISTING,
        metavar="SOURCE",
        help="The vectors: a data directory or a file; adds what only they tell.",
    ),
    IDS,
    FEATURES,
    click.option(
        "--titles",
        type=EXISTING,
        metavar="FILE",
        help="What people call the items: .json {item: title}, .jsonl, .csv or .tsv (item, title).",
    ),
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
    name: str | None,
    lang: str | None,
    sizes: int | tuple[int, ...] | None,
) -> Answer:
    """Write one self-contained page about IDs."""
    from semid_dataset.report.page import write_report

    table = open_ids(path, sizes)
    named = None if titles is None else read_titles(titles)
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
    write_report(table, output, vectors=found, titles=named, name=name, lang=lang)
    size = output.stat().st_size
    return Answer(
        {"path": output, "bytes": size, "items": len(table)},
        [f"Wrote {output} ({size / 2**20:.1f} MB), {count(len(table), 'item')}."],
        [f"open {output} in a browser"],
    )


def read_titles(path: Path) -> dict[str, str]:
    """Return titles by item out of .json, .jsonl, .csv or .tsv."""
    import csv

    try:
        text = bytes(files.map_file(path, mmap=False, follow=True)[0]).decode("utf-8-sig")
        if path.suffix == ".json":
            titles = json.loads(text)
            if not isinstance(titles, dict):
                raise EmbeddingError(f"'{path}' holds a {type(titles).__name__}; wanted: an object of titles by item.")
            return {str(item): str(title) for item, title in titles.items()}
        if path.suffix in {".jsonl", ".ndjson"}:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
            names = ("item_id", "item", "id")
            return {str(next(row[name] for name in names if name in row)): str(row["title"]) for row in rows}
        separator = "\t" if path.suffix == ".tsv" else ","
        return {row[0]: row[1] for row in csv.reader(text.splitlines(), delimiter=separator) if len(row) >= 2}
    except (ValueError, KeyError, TypeError, StopIteration, csv.Error) as error:
        if isinstance(error, SemidError):
            raise
        raise EmbeddingError(f"'{path}' cannot be read as titles: {type(error).__name__} {error}.") from None
