"""The page beside a table on a hub: what it is, how good it is, how it is used."""

from typing import TYPE_CHECKING

from semid_dataset.table.figures import LABELS

if TYPE_CHECKING:
    from semid_dataset.table.table import SemanticIdTable

__all__ = ["model_card"]

SHOWN = ("relative_mse", "relative_mse_held_out", "collision_rate_raw", "moved", "shared", "exact_duplicates")


def model_card(table: "SemanticIdTable", name: str) -> str:
    """
    Return a model card in Markdown, from a table's header and figures alone.

    The licence is left open: whose the data are is for their owner to say.

    Args:
        table: of which the card speaks.
        name: by which it can be loaded: a folder or "owner/name".
    """
    header, quality = table.header, table.quality
    rows = [
        ("items", f"{len(table):,}"),
        ("levels", f"{table.levels}, of {', '.join(map(str, table.codebook_sizes))} codes"),
        ("algorithm", str(header.settings.get("algorithm") or "unknown")),
    ]
    if header.identity is not None:
        features = ", ".join(f"{one} ({dim})" for one, dim in header.identity.features)
        rows.append(("features (dims)", features))
    rows += [
        ("behaviour took part", "yes" if header.behaviour else "no"),
        ("generation", f"{table.generation} of lineage {table.lineage or '-'}"),
        ("digest", f"`{table.digest}`"),
    ]
    measured = [(LABELS[key], f"{quality[key]:.4g}") for key in SHOWN if isinstance(quality.get(key), int | float)]
    return "\n".join(
        [
            "---",
            "library_name: semid_dataset",
            "tags: [semantic-id, residual-quantization, recommender]",
            "# license: fill in whose the items and their embeddings are",
            "---",
            f"# Semantic IDs: {name}",
            "",
            "A semantic ID for every item, and the frozen quantizer that made them.",
            "",
            "```python",
            "from semid_dataset import SemanticIdTable",
            "",
            f'table = SemanticIdTable.from_pretrained("{name}")',
            "table[item]                                  # its codes, coarse to fine",
            *(["table.quantizer.encode(vectors)              # of new items"] if table.has_quantizer else []),
            "```",
            "",
            *_table(("what", ""), rows),
            "",
            *(_table(("quality", ""), measured) if measured else ["Nobody measured the quality of these IDs."]),
            "",
        ]
    )


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> list[str]:
    return [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
