"""`semid worth`: what IDs are worth to a recommender, before one is trained."""

from pathlib import Path

import click

from semid_dataset.cli._answer import Answer, command, count, word
from semid_dataset.cli._arguments import EXISTING, ROWS, SIZES, open_ids, options

__all__ = ["worth"]

NAMES = ("sequences.parquet", "sequences.jsonl", "sequences.txt")  # in a data directory


@command
@click.argument("ids", type=EXISTING)
@options(
    click.option(
        "--sequences",
        type=EXISTING,
        metavar="FILE",
        help="What users took in order (.txt, .jsonl, .parquet). [sequences.* of a data directory]",
    ),
    click.option(
        "--draws", type=int, default=3, show_default=True, help="Times that a tenth of the items is withheld."
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Of every random draw."),
    SIZES,
    ROWS,
)
def worth(
    ids: Path,
    sequences: Path | None,
    draws: int,
    seed: int,
    sizes: int | tuple[int, ...] | None,
    rows: str | None,
) -> Answer:
    """
    Say what IDs are worth to a recommender, without training one.

    IDS is a table, an export, or a data directory: then what answers there. The last item of every sequence is held
    out and looked for by what was taken near what, items and codes; beside it the same IDs dealt out at random, and
    none.
    """
    from semid_dataset.check import measure_worth
    from semid_dataset.inputs.sequences import read_sequences

    if sequences is None:
        sequences = next((ids / name for name in NAMES if (ids / name).exists()), None)
    if sequences is None:
        raise click.UsageError(f"'{ids}' holds no {', '.join(NAMES)}: give --sequences FILE, what users took in order.")
    table = open_ids(ids, sizes, rows)
    found = measure_worth(table, read_sequences(sequences), draws=draws, seed=seed)
    lines = [
        f"{count(found.items, 'item')}, {count(found.users, 'user')}. Share of held-out items among the first ten:",
        f"{'':8}{'these IDs':>12}{'dealt out anew':>16}{'no IDs':>10}{'these less dealt out anew':>32}",
    ]
    for name, figure in found.slices.items():
        if figure is not None:
            lift = f"{figure.lift.value:+.4f} ({figure.lift.low:+.4f} to {figure.lift.high:+.4f})"
            shares = f"{figure.ids.value:>12.4f}{figure.random.value:>16.4f}{figure.none.value:>10.4f}"
            lines.append(f"{name:8}{shares}{lift:>32}")
    lines += [
        "warm: not withheld; tail: warm, taken at most five times; new: withheld, as if nobody had taken it, "
        "and ranked among such. In brackets: 95 % over users.",
        {
            True: "They help: what these IDs put together is taken together.",
            False: "They are worse than the same IDs dealt out anew.",
            None: "They cannot be told from the same IDs dealt out anew.",
        }[found.helps],
    ]
    if table.header.behaviour:
        lines.append(
            "These IDs were made with sequences. If the held-out items were among them, the figures flatter the IDs: "
            "make IDs without everybody's last item to know."
        )
    return Answer(
        found.to_dict(),
        lines,
        [f"semid worth OTHER --sequences {word(sequences)}     other IDs of these items, on the same held-out items"],
    )
