"""
Check a table, compare two, tell what one is worth: what `verify`, `diff` and `worth` say, as functions.

Nothing is written and nothing is repaired. They return what they found; none raises for a table that is wrong.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset.build import lineages as lineage
from semid_dataset.errors import ConfigError, EmbeddingError, TableError
from semid_dataset.objects import expect, shown
from semid_dataset.table.table import SemanticIdTable

if TYPE_CHECKING:
    from semid_dataset.codec.worth import Worth
    from semid_dataset.inputs.read import Embeddings

__all__ = ["Comparison", "Difference", "Verification", "diff_tables", "measure_worth", "vectors_for", "verify_table"]

TOLERATED = 0.001  # share of items whose codes may differ by rounding: another machine adds up in another order


@dataclass(frozen=True)
class Comparison:
    """
    IDs beside the vectors that they should be made of.

    Attributes:
        items: items with a vector.
        known: how many of them have an ID.
        not_compared: why no more was compared: "no quantizer", "no item in common", "sequences" (the IDs were made
            with sequences, which were not given); None where all was.
        relative_mse: error of the known items' IDs on these vectors, as a share of the variance.
        relative_mse_at_fit: what the table states it was.
        reproduced: share of the known items whose ID comes out again by encoding.
        reproduced_levels: the same for the first code, the first two, ...
        moved: items that were moved to make IDs unique, as the table's history states it.
    """

    items: int
    known: int
    not_compared: str | None = None
    relative_mse: float | None = None
    relative_mse_at_fit: float | None = None
    reproduced: float | None = None
    reproduced_levels: tuple[float, ...] = ()
    moved: int = 0

    @property
    def coverage(self) -> float:
        """Share of the items with a vector that have an ID."""
        return self.known / max(1, self.items)


@dataclass(frozen=True)
class Verification:
    """
    What was found in a table.

    Attributes:
        items, levels: its size.
        shared: items whose ID another item has, too.
        zero_ids: items with the ID of zeros, which means unknown.
        problems: what is wrong, a sentence each; empty where nothing is.
        vectors: how its IDs fit the vectors, where some were given.
    """

    items: int
    levels: int
    shared: int
    zero_ids: int
    problems: tuple[str, ...]
    vectors: Comparison | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong with it."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        facts = {"ok": self.ok, **asdict(self)}
        facts["problems"] = list(self.problems)
        del facts["vectors"]
        if self.vectors is not None:
            facts["embeddings"] = {**asdict(self.vectors), "coverage": self.vectors.coverage}
        return facts


@dataclass(frozen=True)
class Difference:
    """
    What became of the IDs of one table in another.

    Attributes:
        unchanged: items with the same ID in both.
        moved: {item: (its ID in the old one, in the new one)}.
        added: items that only the new one has.
        removed: items that only the old one has.
    """

    unchanged: int
    moved: Mapping[Any, tuple[list[int], list[int]]]
    added: tuple[Any, ...]
    removed: tuple[Any, ...]

    @property
    def harmless(self) -> bool:
        """Whether the new table may replace the old one: no ID moved, no item is gone."""
        return not (self.moved or self.removed)


def verify_table(
    table: SemanticIdTable,
    embeddings: "Embeddings | None" = None,
    *,
    sequences: Iterable[Sequence[Any] | NDArray[Any]] | None = None,
) -> Verification:
    """
    Check every ID of a table that was opened (which checks its bytes), alone or against vectors.

    Args:
        table: any.
        embeddings: the vectors that its IDs should be made of, as `api.own_embeddings(items, vectors)` or
            `inputs.read.read_sources` give them.
        sequences: with `embeddings`, those that the IDs were made with, where there were some.

    Raises:
        ConfigError: sequences without embeddings, or for a table that was made without.
        EmbeddingError: the vectors are not such as its quantizer takes, or sequences are given and an item of the
            table has no vector.
    """
    expect(table, SemanticIdTable, "table", TableError)
    if embeddings is not None and not hasattr(type(embeddings), "dims"):
        raise ConfigError(
            f"Embeddings are what api.own_embeddings(items, vectors) or inputs.read.read_sources give, not "
            f"{shown(embeddings)}."
        )
    if sequences is not None and embeddings is None:
        raise ConfigError("Sequences are checked together with embeddings: give both.")
    if sequences is not None and not lineage.made_with_sequences(table):
        raise ConfigError(f"The table {table.path or 'in memory'} was made without sequences: leave them out.")
    codes = table.codes_array
    _, counts = np.unique(codes, axis=0, return_counts=True) if len(codes) else (None, np.zeros(0, np.int64))
    shared = int(counts[counts > 1].sum())
    zero_ids = int((codes == 0).all(axis=1).sum())
    problems = _problems_of(table, shared, zero_ids)
    compared = None
    if embeddings is not None:
        if sequences is not None:
            embeddings = _with_sequences(table, embeddings, sequences)
        compared, more = _against_vectors(table, embeddings)
        problems += more
    return Verification(len(table), table.levels, shared, zero_ids, tuple(problems), compared)


def _problems_of(table: SemanticIdTable, shared: int, zero_ids: int) -> list[str]:
    """Return what is wrong that shows without vectors."""
    problems = []
    codes, keys = table.codes_array, table.keys_array
    if not np.array_equal(table.rows_of(keys), np.arange(len(table))):
        problems.append("some items are not found under their own key")
    sizes = np.array(table.codebook_sizes)
    if len(codes) and (codes >= sizes).any():
        problems.append(f"there are codes beyond the sizes of the levels, {sizes.tolist()}")
    if not table.digest or table.path is None or table.path.suffix != ".safetensors":
        return problems
    text = hashlib.sha256()
    for chunk in table.json_chunks():
        text.update(chunk)
    if table.computed_digest != table.digest:
        problems.append("the digest it states is not that of its IDs and weights")
    if text.hexdigest() != table.header.json_sha256:
        problems.append("the json_sha256 it states is not that of the JSON of its IDs")
    if table.header.settings.get("unique") and table.quality.get("shared") == 0:
        if shared:
            problems.append(f"{shared} items share an ID although IDs are unique here")
        if zero_ids:
            problems.append("an item has the ID of zeros, which means unknown")
    history = table.header.history
    if history and history[-1].get("generation") != table.generation:
        problems.append(f"its history ends at generation {history[-1].get('generation')}, it is {table.generation}")
    if table.has_quantizer and table.quantizer.codebook_sizes != tuple(sizes.tolist()):
        problems.append(f"its quantizer has {table.quantizer.codebook_sizes} codes, its IDs {tuple(sizes.tolist())}")
    return problems


def _with_sequences(
    table: SemanticIdTable, embeddings: "Embeddings", sequences: Iterable[Sequence[Any] | NDArray[Any]]
) -> "Embeddings":
    """Return embeddings pulled together by what sequences say of the table's items, as when IDs were made."""
    from semid_dataset.build.sequences import with_sequences
    from semid_dataset.codec.behaviour import known_sequences

    found = int((table.rows_of(embeddings.items) >= 0).sum())
    if found < len(table):
        raise EmbeddingError(
            f"{len(table) - found:,} of the table's {len(table):,} items have no vector here. With --sequences give "
            "those of all: an item's ID was made with its neighbours' vectors too. Nothing was checked."
        )
    keys = table.keys_array
    known = known_sequences(keys, sequences)
    return with_sequences(embeddings, [[keys[row] for row in sequence] for sequence in known], needed=True)


def _against_vectors(table: SemanticIdTable, embeddings: "Embeddings") -> tuple[Comparison, list[str]]:
    """Compare IDs with the vectors they should be made of; what is wrong is the second."""
    rows = table.rows_of(embeddings.items)
    known = np.flatnonzero(rows >= 0)
    total = len(embeddings.items)
    problems = [f"{total - len(known):,} items with vectors have no ID"] if len(known) < total else []
    if not len(known):
        return Comparison(total, 0, "no item in common"), problems
    if not table.has_quantizer:
        return Comparison(total, len(known), "no quantizer"), problems
    from semid_dataset.codec.metrics import relative_mse

    vectors = vectors_for(table, embeddings)[known]
    if lineage.made_with_sequences(table) and not embeddings.behaviour:
        return Comparison(total, len(known), "sequences"), problems
    codes = table.codes_array[rows[known]]
    same = table.quantizer.encode(vectors) == codes
    whole = int(same.all(axis=1).sum())
    moved = sum(int(step.get("moved") or 0) for step in table.header.history)
    error, at_fit, fits = lineage.vectors_fit(table, vectors, codes)
    if not fits:
        born = f"{at_fit:.3f}" if np.isfinite(at_fit) else "not measured"
        problems.append(f"the vectors are not those of these items: error {error:.3f}, {born} at the fit")
    elif len(known) - whole > moved + TOLERATED * len(known):
        problems.append(f"{len(known) - whole:,} IDs do not come out again; {moved:,} would be explained by uniqueness")
    levels = (float(np.logical_and.accumulate(same, axis=1)[:, level].mean()) for level in range(table.levels))
    return Comparison(
        total,
        len(known),
        None,
        relative_mse=relative_mse(table.quantizer, vectors, codes),
        relative_mse_at_fit=table.quality.get("relative_mse"),
        reproduced=whole / len(known),
        reproduced_levels=tuple(levels),
        moved=moved,
    ), problems


def vectors_for(table: SemanticIdTable, embeddings: "Embeddings") -> NDArray[np.float32]:
    """
    Return the vectors (n, dim) as the table's quantizer takes them, in the order of `embeddings.items`.

    Raises:
        EmbeddingError: they are not such as it was made from, or it has no quantizer to make one of several features.
    """
    if embeddings.fused is not None:
        return embeddings.fused[1]
    if table.has_quantizer:
        from semid_dataset.codec.kinds import vectors_of

        return vectors_of(table.quantizer, embeddings.features, len(embeddings.items))
    if len(embeddings.features) != 1:
        raise EmbeddingError("The table has no quantizer to make one vector of several features. Name one feature.")
    return embeddings.features[0].matrix


def diff_tables(old: SemanticIdTable, new: SemanticIdTable) -> Difference:
    """
    Say which IDs moved from one table to another, which items came and which went.

    Tables of different numbers of levels have no ID in common: every item that both hold has moved.
    """
    for table in (old, new):
        expect(table, SemanticIdTable, "table", TableError)
    rows = new.rows_of(old.keys_array)
    common, gone = np.flatnonzero(rows >= 0), np.flatnonzero(rows < 0)
    came = np.flatnonzero(old.rows_of(new.keys_array) < 0)
    if old.levels == new.levels:
        before, after = old.codes_array[common], new.codes_array[rows[common]]
        changed = common[(before != after).any(axis=1)]
    else:
        changed = common
    old_keys, new_keys = _listed(old), _listed(new)
    moved = {
        old_keys[row]: (old.codes_array[row].tolist(), new.codes_array[rows[row]].tolist()) for row in changed.tolist()
    }
    return Difference(
        len(common) - len(changed),
        moved,
        tuple(new_keys[row] for row in came.tolist()),
        tuple(old_keys[row] for row in gone.tolist()),
    )


def measure_worth(
    table: SemanticIdTable, sequences: Iterable[Sequence[Any] | NDArray[Any]], *, draws: int = 3, seed: int = 0
) -> "Worth":
    """
    Say what a table's IDs are worth to a recommender, without training one; see `codec.worth.worth_of_codes`.

    Args:
        table: any. IDs that were made with sequences must not have seen the last item of these.
        sequences: items in the order in which one user took them; those without an ID are passed over.
        draws: times that a tenth of the items is withheld, as if nobody had taken them.
        seed: of every random draw.

    Raises:
        NoEmbeddingsError: no sequence has two items with an ID.
        EmbeddingError: the sequences are no lists of items.
        ConfigError: draws is less than 1, or the IDs have more codes than are counted.
    """
    from semid_dataset.codec.behaviour import known_sequences
    from semid_dataset.codec.worth import worth_of_codes

    keys = expect(table, SemanticIdTable, "table", TableError).keys_array
    return worth_of_codes(table.codes_array, known_sequences(keys, sequences), draws=draws, seed=seed)


def _listed(table: SemanticIdTable) -> list[Any]:
    keys = table.keys_array
    return keys.tolist() if isinstance(keys, np.ndarray) else list(keys)
