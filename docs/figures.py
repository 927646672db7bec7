"""
Write the figures of the README out of the records of the benchmarks: `python docs/figures.py`.

A block begins with `<!-- figures: NAME -->` and ends with `<!-- end of figures -->`. What stands between is made here,
of tables in benchmarks/results; a test compares, so that no figure is copied by hand and none is old.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"(?s)(<!-- figures: (\w+) -->\n).*?(<!-- end of figures -->)")
RIGHT = "---:"


def rows(record: str, heading: str) -> Iterator[dict[str, str]]:
    """Yield the rows of the first table under a heading of a record, a dict of the text in its columns each."""
    text = (ROOT / "benchmarks" / "results" / record).read_text(encoding="utf-8")
    lines = iter(text.partition(f"\n{heading}\n")[2].splitlines())
    names: list[str] = []
    for line in lines:
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            if names:
                return
        elif not names:
            names = cells
        elif not set(line) <= set("|-: "):
            yield dict(zip(names, cells, strict=True))


def table(names: list[str], body: list[list[str]]) -> str:
    """Return a table of markdown whose figures stand to the right."""
    lines = [names, ["---", *[RIGHT] * (len(names) - 1)], *body]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def quantizers() -> str:
    """Return how good the codebooks are."""
    body = [
        [row["method"], row["seconds (CPU)"], row["rel MSE"].partition(" ")[0], row["held out"],
         row["share an ID, final"]]
        for row in rows("quantizers.md", "## Gaussian mixture, 50,000 x 32")
        if not row["method"].startswith(("faiss ResidualQuantizer, beam 5,", "faiss Local", "semantic-id RQVAE, k"))
    ]  # fmt: skip
    return table(["50,000 x 32", "seconds (CPU)", "error", "on unseen items", "items that share an ID"], body)


OURS = ('**ours, "rqkmeans"**', '**ours, "rqvae"** (default)')
FAISS = ("faiss ResidualQuantizer, beam 1", "faiss ResidualQuantizer (default: beam 5)")


def sets() -> str:
    """Return ours beside faiss on every set of the record."""
    text = (ROOT / "benchmarks" / "results" / "quantizers.md").read_text(encoding="utf-8")
    body = []
    for heading in re.findall(r"^## (.+, [0-9,]+ x [0-9,]+)$", text, re.MULTILINE):
        found = {row["method"]: row for row in rows("quantizers.md", f"## {heading}")}
        body += [
            [f"{heading if method == OURS[0] else ''} {method}".strip(), row["seconds (CPU)"], row["rel MSE"],
             row["held out"], row["share an ID, raw"], row["neighbours share 1 / 2 / 3 codes, %"]]
            for method in (*OURS, *FAISS) if (row := found.get(method)) is not None
        ]  # fmt: skip
    names = ["seconds (CPU)", "error", "on unseen items", "share an ID, raw", "neighbours share 1 / 2 / 3 codes, %"]
    return table(["set, method", *names], body)


WORTH = (
    "no IDs", "random IDs", '**ours, "rqvae"** (default)', "**ours, behaviour-aware**", "published: RQ-VAE ²",
    "published: residual k-means ²",
)  # fmt: skip


def worth() -> str:
    """Return what the IDs are worth to a recommender."""
    found = {row["IDs"]: row for row in rows("downstream.md", "### Recall@10")}
    body = [[name.rstrip(" ²"), *(found[name][column] for column in ("all", "tail", "new"))] for name in WORTH]
    return table(["IDs", "all", "at most five purchases", "new items"], body)


BLOCKS: dict[str, Callable[[], str]] = {"quantizers": quantizers, "sets": sets, "worth": worth}


def filled(text: str) -> str:
    """Return a page with its blocks made anew."""
    # The records were made when "rqvae" was the default; "auto" is now.
    return BLOCK.sub(
        lambda block: f"{block[1]}{BLOCKS[block[2]]()}{block[3]}".replace('"rqvae"** (default)', '"rqvae"**'), text
    )


def main() -> None:
    """Fill the blocks of every page that has some."""
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if filled(text) != text:
            page.write_text(filled(text), encoding="utf-8")
            print(f"{page.relative_to(ROOT)}: figures written anew")


if __name__ == "__main__":
    main()
