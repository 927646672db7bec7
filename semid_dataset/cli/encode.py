"""`semid encode`: give new items IDs with a table's quantizer."""

from pathlib import Path

import click

from semid_dataset.cli._answer import Answer, added_facts, added_line, check_gate, command, count, word, write_ids
from semid_dataset.cli._arguments import ANY_PATH, EXISTING, FORCE, IDS, is_data_directory, open_parent, options
from semid_dataset.table.table import SemanticIdTable

__all__ = ["encode"]


@command
@click.argument("table_path", metavar="TABLE", type=EXISTING)
@click.argument("source", type=EXISTING)
@options(
    IDS,
    click.option(
        "-o",
        "--output",
        type=ANY_PATH,
        required=True,
        metavar="DIR|FILE",
        help="A folder, or .safetensors: all items, old and new. Any other ending: an export of SOURCE's items alone.",
    ),
    FORCE,
)
def encode(table_path: Path, source: Path, ids: str | None, vectors: str | None, output: Path, force: bool) -> Answer:
    """
    Give new items IDs with a table's quantizer.

    SOURCE is a file of embeddings, TABLE stays as it is. Items that it knows keep their IDs. New items whose vectors
    are not such as TABLE was made for (another encoder, not normalized) are refused.
    """
    from semid_dataset import api as commands
    from semid_dataset import exports
    from semid_dataset.inputs.matrix import read_vectors

    if is_data_directory(source):
        raise click.UsageError(f"For a data directory: semid generate {word(source)} --parent {word(table_path)}")
    base = open_parent(table_path)
    whole_table = output.suffix in {"", ".safetensors"}
    if not whole_table:
        exports.format_of(output, None)  # a wrong ending is said before the work
    items, matrix = read_vectors(source, ids, vectors)
    if (base.rows_of(items) < 0).any():
        check_gate("give new items IDs", force)
    table, new = commands.extend_with_vectors(base, items, matrix, force=force)
    if output.suffix == ".safetensors":
        written = [table.save(output, note_digest=False)]
    elif whole_table:
        written = write_ids(table, output)
    else:
        where, sizes = str(source), table.codebook_sizes  # of the quantizer, whatever codes these items have
        some = SemanticIdTable.of_codes(items, table.codes(items), "cached", where, sizes, None, where)
        written = exports.export(some, output)
    following = [f"semid diff {word(table_path)} {word(output)}     to see what was added"]
    if not whole_table:
        again = f"semid encode {word(table_path)} {word(source)} -o DIR"
        following = [f"{again}     to keep these IDs: only a table remembers them"]
    return Answer(
        {
            "items": len(items),
            "new": new,
            "table_items": len(table),
            "written": written,
            "measured": added_facts(table, new),
        },
        [
            f"{count(len(items), 'item')} encoded, {new:,} of them new.",
            *added_line(table, new),
            *(f"Wrote {path}" for path in written),
        ],
        following,
    )
