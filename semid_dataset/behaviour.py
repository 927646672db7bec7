"""
Vectors of what people do with items: who is taken near whom.

Content says what an item is like, sequences say what it is taken for. `cooccurrence_vectors` makes a vector of each
item that occurs in sequences; beside content it is one more feature, which `fusion="aligned"` brings into the
space of the others. Items without behaviour, new ones above all, then get the vector to be expected from their content.

Give it the sequences that a recommender is trained on and no others: what happened later would leak into the IDs.
"""

import importlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset import files
from semid_dataset.errors import ConfigError, EmbeddingError, NoEmbeddingsError
from semid_dataset.fusion import FeatureMatrix

__all__ = ["BEHAVIOUR", "behaviour_feature", "cooccurrence_vectors", "read_sequences"]

BEHAVIOUR = "behaviour"  # the feature's id

EXTRA = 16  # dims searched beyond those wanted
ROUNDS = 6  # of subspace iteration
TINY = 1e-6  # lengths below are rounding: roots of eigenvalues that are zero but for some 1e-16
BLOCK_FLOATS = 1 << 23  # 32 MB: products held at once


def cooccurrence_vectors(
    sequences: Iterable[Sequence[int] | NDArray[np.integer]], *, dim: int = 64, window: int = 3, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """
    Return a vector of every item that occurs near another one.

    Pairs of items at most `window` steps apart in a sequence are counted, both ways; their positive pointwise mutual
    information, max(0, log(n_ij n / (n_i n_j))), is factorized: its leading eigenvectors (by magnitude), each times the
    root of its eigenvalue. Vectors are brought to unit length: how often an item is taken shall not decide its code.

    Args:
        sequences: item numbers in the order in which one user took them; training events only.
        dim: of the vectors; less where there are fewer items.
        window: steps between two items of a pair, at most.
        seed: of the start of the search for eigenvectors.

    Returns:
        (items: (n,) int64, ascending; vectors: (n, dim) float32). Equal sequences and seed give equal vectors on one
        machine.

    Raises:
        ConfigError: dim or window is less than 1.
        NoEmbeddingsError: no two items occur near each other.

    Memory: 40 bytes a pair; 8 · n · (dim + 16) bytes a few times.
    Source: Levy and Goldberg, "Neural Word Embedding as Implicit Matrix Factorization", 2014; Halko, Martinsson and
    Tropp, "Finding Structure with Randomness", 2011, algorithm 4.4.
    """
    if dim < 1 or window < 1:
        raise ConfigError(f"dim and window must be at least 1; got dim={dim}, window={window}.")
    events, ends = _flat(sequences)
    left, right = _pairs(events, ends, window)
    if not len(left):
        raise NoEmbeddingsError(
            f"No two items of the {len(ends)} sequences ({len(events)} events) lie within {window} steps of each "
            "other. Give longer sequences, or leave behaviour out."
        )
    items, at = np.unique(np.concatenate([left, right]), return_inverse=True)
    left, right = at.reshape(2, -1)
    rows, columns, counts = _counted(np.concatenate([left, right]), np.concatenate([right, left]), len(items))
    totals = np.bincount(rows, weights=counts, minlength=len(items))
    information = np.log(counts * totals.sum() / (totals[rows] * totals[columns]))
    kept = information > 0
    vectors = _leading(rows[kept], columns[kept], information[kept], len(items), min(dim, len(items)), seed)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    some = lengths[:, 0] > TINY  # an item may have no pair left, or none in the leading directions
    if not some.any():
        raise NoEmbeddingsError("Every item occurs near every other one as often as by chance: behaviour says nothing.")
    return items[some], (vectors[some] / lengths[some]).astype(np.float32)


def behaviour_feature(
    items: NDArray[np.int64] | list[str], sequences: Iterable[Sequence[Any] | NDArray[Any]], *, seed: int = 0
) -> FeatureMatrix:
    """
    Return the co-occurrence vectors of items as a feature beside others.

    Args:
        items: n distinct ints or strings, whose positions the feature's rows are.
        sequences: of such items, in the order in which one user took them; others are skipped.
        seed: see `cooccurrence_vectors`.

    Raises:
        NoEmbeddingsError: no two of the items occur near each other; it says how many events are of known items.
    """
    row_of = {str(item): row for row, item in enumerate(items if isinstance(items, list) else items.tolist())}
    total, known = 0, []
    for sequence in sequences:
        listed = sequence.tolist() if isinstance(sequence, np.ndarray) else sequence
        total += len(listed)
        known.append([row_of[str(item)] for item in listed if str(item) in row_of])
    try:
        rows, matrix = cooccurrence_vectors(known, seed=seed)
    except NoEmbeddingsError as error:
        raise NoEmbeddingsError(
            f"{sum(map(len, known))} of {total} events are of items with vectors. {error}"
        ) from None
    return FeatureMatrix(BEHAVIOUR, rows, matrix)


def read_sequences(path: str | Path) -> list[list[Any]]:
    """
    Read one sequence of items a user.

    Args:
        path: text with one user a line, items between blanks; .jsonl with a list a line; .parquet with a column of
            lists.

    Raises:
        EmbeddingError: a line is no list, or there is no such column.
        FileNotFoundError, OSError: as the system says.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        return _read_parquet(path)
    try:
        lines = str(files.map_file(path, mmap=False, follow=True)[0], "utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise EmbeddingError(f"'{path}' is no UTF-8 text: {error}.") from None
    if path.suffix not in {".jsonl", ".ndjson"}:
        return [line.split() for line in lines]
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line) if line.strip() else []
        except (ValueError, RecursionError) as error:
            raise EmbeddingError(f"'{path}', line {number}: no JSON ({error}).") from None
        if not isinstance(entry, list):
            raise EmbeddingError(
                f"'{path}', line {number}: a {type(entry).__name__}; wanted: one user's list of items."
            )
        found.append(entry)
    return found


def _read_parquet(path: Path) -> list[list[Any]]:
    try:
        arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise EmbeddingError('Parquet needs pyarrow: pip install "semid_dataset[parquet]".') from None
    data = files.map_file(path, mmap=False, follow=True)[0]
    try:
        table = parquet.read_table(arrow.BufferReader(bytes(data)))
    except arrow.ArrowException as error:
        raise EmbeddingError(f"'{path}' cannot be read as parquet: {error}.") from None
    lists = [field.name for field in table.schema if arrow.types.is_list(field.type)]
    if len(lists) != 1:
        raise EmbeddingError(
            f"'{path}' must have one column of lists, one user's items each. There is: {', '.join(table.column_names)}."
        )
    return [entry or [] for entry in table.column(lists[0]).to_pylist()]


def _flat(sequences: Iterable[Sequence[int] | NDArray[np.integer]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return all events, one sequence after the other, and where each sequence ends."""
    parts = [np.asarray(sequence, np.int64).reshape(-1) for sequence in sequences]
    ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
    return np.concatenate(parts) if parts else np.zeros(0, np.int64), ends


def _pairs(
    events: NDArray[np.int64], ends: NDArray[np.int64], window: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the two items of every pair within a window of one sequence; an item is no pair of itself."""
    number = np.searchsorted(ends, np.arange(len(events)), side="right")
    left, right = [], []
    for step in range(1, window + 1):
        inside = (number[step:] == number[:-step]) & (events[step:] != events[:-step])
        left.append(events[:-step][inside])
        right.append(events[step:][inside])
    return np.concatenate(left), np.concatenate(right)


def _counted(
    left: NDArray[np.int64], right: NDArray[np.int64], items: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return rows, columns and counts of distinct pairs, by rows."""
    pairs, counts = np.unique(left * items + right, return_counts=True)
    return pairs // items, pairs % items, counts


def _leading(
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    values: NDArray[np.float64],
    items: int,
    dim: int,
    seed: int,
) -> NDArray[np.float64]:
    """Return leading eigenvectors (items, dim) of a symmetric matrix given by rows, times the roots of their values."""
    basis = np.random.default_rng(seed).standard_normal((items, min(dim + EXTRA, items)))
    for _ in range(ROUNDS):
        basis = np.linalg.qr(_product(rows, columns, values, basis))[0]
    inner = basis.T @ _product(rows, columns, values, basis)
    found, turned = np.linalg.eigh((inner + inner.T) / 2)
    chosen = np.argsort(-np.abs(found), kind="stable")[:dim]
    vectors: NDArray[np.float64] = basis @ turned[:, chosen]
    signs = np.where(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(chosen))] < 0, -1.0, 1.0)
    vectors *= signs * np.sqrt(np.abs(found[chosen]))
    return vectors


def _product(
    rows: NDArray[np.int64], columns: NDArray[np.int64], values: NDArray[np.float64], dense: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return sparse times dense; the sparse matrix is given by rows, ascending."""
    result = np.zeros_like(dense)
    step = max(1, BLOCK_FLOATS // dense.shape[1])
    for begin in range(0, len(rows), step):
        some = rows[begin : begin + step]
        starts = np.flatnonzero(np.append(True, some[1:] != some[:-1]))
        parts = values[begin : begin + step, None] * dense[columns[begin : begin + step]]
        result[some[starts]] += np.add.reduceat(parts, starts, axis=0)  # each row once a block
    return result
