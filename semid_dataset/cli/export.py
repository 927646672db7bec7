"""`semid export`: write IDs in another tool's format."""

from pathlib import Path

import click

from semid_dataset.cli._answer import Answer, command, count, sent, word
from semid_dataset.cli._arguments import ANY_PATH, EXISTING, ROWS, SIZES, open_ids, options
from semid_dataset.errors import ConfigError
from semid_dataset.table.table import SemanticIdTable

__all__ = ["export"]


@command
@click.argument("path", metavar="TABLE", type=EXISTING)
@options(
    click.option(
        "-o",
        "--output",
        type=ANY_PATH,
        required=True,
        metavar="PATH",
        help="The file; with --format all, a folder; - is the standard output.",
    ),
    click.option(
        "-f",
        "--format",
        "form",
        metavar="NAME",
        help="json, index, parquet, csv, npy, pt, flat, tokens, trie, or all; by default the ending decides.",
    ),
    click.option(
        "--style",
        default="letter",
        show_default=True,
        type=click.Choice(["letter", "s_letter", "item"]),
        help="<a_12>, <s_a_12> or <item_L0_C12> (not for tokenizers that lower-case).",
    ),
    click.option(
        "--first",
        default=1,
        show_default=True,
        type=click.IntRange(0),
        help="Number of the first flat id; 1 keeps 0 for padding.",
    ),
    SIZES,
    ROWS,
)
def export(
    path: Path,
    output: Path,
    form: str | None,
    style: str,
    first: int,
    sizes: int | tuple[int, ...] | None,
    rows: str | None,
) -> Answer:
    """
    Write IDs in another tool's format.

    \b
    .json           {item: codes}, the semantic_id_dict.json
    .index.json     {item: tokens}, for LC-Rec and MiniOneRec
    .tokens.json    the tokens of all codes, for tokenizer.add_tokens
    .parquet        item_id, codes, offset_codes (levels side by side, from 0), for TorchEasyRec
    .csv            item_id, code_0, code_1, ..., for spreadsheets and SQL
    .npy            codes (items, levels)
    .pt             codes (levels, items), for GRID
    .flat.npz       ids of one vocabulary over all levels, 0 = padding
    .trie.npz       prefix trie for constrained decoding

    Arrays get the items of their rows in FILE.items.json beside them.
    """
    from semid_dataset import exports

    if form == "all":
        names = {output / f"items{one.suffix}": name for name, one in exports.FORMATS.items()}
    else:
        try:
            names = {output: exports.format_of(output, form).name}
        except ConfigError as error:
            raise click.UsageError(str(error)) from None
    table = open_ids(path, sizes, rows)
    if str(output) == "-":
        return _sent(table, names[output], style, first)
    written = [
        file for target, name in names.items() for file in exports.export(table, target, name, style=style, first=first)
    ]
    following = ["from semid_dataset.exports import read_export; read_export(path)     reads it again"]
    if set(names.values()) == {"tokens"}:
        following = [f"tokenizer.add_tokens(json.load(open({str(output)!r})))     before the model is trained"]
    if "index" in names.values() and "tokens" not in names.values():
        tokens = output if output.is_dir() else output.parent
        to = word(tokens / "item.tokens.json")
        following = [f"semid export {word(path)} -o {to} --style {style}     the tokenizer's new tokens"]
    capitals = ["Tokens such as <item_L0_C12> have capitals: they are lost on a tokenizer that lower-cases."]
    lines = capitals if style == "item" and {"index", "tokens"} & set(names.values()) else []
    return Answer(
        {"items": len(table), "written": written},
        [*lines, f"{count(len(table), 'item')} exported.", *(f"Wrote {file}" for file in written)],
        following,
    )


def _sent(table: SemanticIdTable, name: str, style: str, first: int) -> Answer:
    """Write an export to the standard output."""
    from semid_dataset import exports

    if name in exports.registry.ARRAYS:
        raise click.UsageError(f"The format {name} is two files, codes and items: name a file, -o FILE.")
    with sent(Path("-"), "ids") as file:
        exports.export(table, file, name, style=style, first=first)
    return Answer({"items": len(table)}, [f"{count(len(table), 'item')} exported."], aside=True)
