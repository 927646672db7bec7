"""`semid verify`: check every byte and every ID of a file."""

from pathlib import Path

import click

from semid_dataset.build import lineages as lineage
from semid_dataset.check import Comparison, verify_table
from semid_dataset.cli._answer import WRONG, Answer, command, count, gate_forbids, how_to_make, word
from semid_dataset.cli._arguments import EXISTING, FEATURES, IDS, SIZES, holds_table, open_ids, options, read_embeddings
from semid_dataset.errors import TableError

__all__ = ["verify"]


@command
@click.argument("path", metavar="FILE", type=EXISTING)
@options(
    click.option(
        "--embeddings",
        type=EXISTING,
        metavar="SOURCE",
        help="Check against these vectors too: a data directory or a file.",
    ),
    click.option(
        "--sequences",
        type=EXISTING,
        metavar="FILE",
        help="With --embeddings: the sequences that the IDs were made with, where there were some.",
    ),
    IDS,
    FEATURES,
    SIZES,
)
def verify(
    path: Path,
    embeddings: Path | None,
    sequences: Path | None,
    ids: str | None,
    vectors: str | None,
    features: tuple[str, ...],
    sizes: int | tuple[int, ...] | None,
) -> Answer:
    """
    Check every byte and every ID of a file.

    FILE is a table, a semantic_id_dict.json, an export, or a data directory: then what answers there. Exit code 1 if
    something is wrong.
    """
    damaged: dict[Path, Exception] = {}
    try:
        table = open_ids(path, sizes, damaged=damaged)
    except TableError as error:
        return Answer(
            {"ok": False, "problems": [str(error)]},
            [f"Wrong: {error}"],
            [
                "keep the file; a data directory heals its cache by itself where generating is allowed: "
                + how_to_make("semid generate DATA_DIR")
                if path.suffix == ".safetensors"
                else "write it again from its table: semid export TABLE -o FILE"
            ],
            WRONG,
        )
    if sequences is not None and (embeddings is None or not lineage.made_with_sequences(table)):
        raise click.UsageError(
            "--sequences goes with --embeddings."
            if embeddings is None
            else f"'{path}' was made without sequences: leave --sequences out."
        )
    taken = None
    if sequences is not None:
        from semid_dataset.inputs.sequences import read_sequences

        taken = read_sequences(sequences)
    read = None if embeddings is None else read_embeddings(embeddings, ids, features, vectors)
    found = verify_table(table, read, sequences=taken)
    lines = [f"{count(len(table), 'item')}, {table.levels} levels; {found.shared:,} share an ID"]
    compared = True
    if found.vectors is not None:
        lines += _lines_of(found.vectors)
        compared = found.vectors.not_compared != "sequences"
    fine = f"Everything{'' if compared else ' that was checked'} is as it should be."
    problems = [*found.problems, *map(str, damaged.values())]
    lines += [f"Wrong: {problem}" for problem in problems] or [fine]
    following = f"semid verify {word(path)} --embeddings SOURCE     to check it against the vectors too"
    compared_to = found.vectors
    missing = compared_to is not None and compared_to.known < compared_to.items
    if missing and len(found.problems) == 1 and table.has_quantizer:
        adding = (
            f"semid encode {word(path)} {word(embeddings or '')} -o DIR"
            if not path.is_dir() or holds_table(path)
            else f"semid generate {word(path)}"
        )
        steps = [how_to_make(f"{adding}     if they are new: adds them, and known IDs stay")]
    elif not found.ok:
        steps = ["take the file from a backup"]
        if gate_forbids() is None:
            steps = [f"{steps[0]}, or make the IDs again (they move): semid generate SOURCE --retrain"]
    elif damaged:
        healing = "with the settings of its IDs: heals it, and no ID moves where a copy or an export is left"
        steps = [how_to_make(f"semid generate {word(path)}     {healing}")]
    else:
        steps = (
            [f"semid report {word(path)} -o report.html     to look at it"] if embeddings is not None else [following]
        )
    facts = {"path": path, **found.to_dict(), "ok": not problems, "problems": problems}
    return Answer(facts, lines, steps, WRONG if problems else 0)


def _lines_of(found: Comparison) -> list[str]:
    """Say how IDs fit vectors."""
    lines = [f"{found.known:,} of {found.items:,} items with vectors have an ID ({found.coverage:.2%})"]
    if found.not_compared == "no quantizer":
        lines.append("There is no quantizer to compare vectors with.")
    elif found.not_compared == "sequences":
        lines.append(
            "The IDs were made with sequences too, so vectors alone do not give them again: whether each fits its "
            "vector was not checked. Give --sequences FILE, the ones they were made with."
        )
    if found.relative_mse is None or found.reproduced is None:
        return lines
    fitted = found.relative_mse_at_fit
    return [
        *lines,
        f"Error {found.relative_mse:.3f} of the variance"
        + ("" if fitted is None else f" ({fitted:.3f} at the fit)")
        + f"; {round(found.reproduced * found.known):,} of {found.known:,} IDs come out again, {found.moved:,} were "
        "moved to make them unique",
    ]
