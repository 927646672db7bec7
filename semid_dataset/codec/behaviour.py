"""
What people do with items: who is taken near whom.

Content says what an item is like, sequences say what it is taken for. `behaviour_aware` learns from them: which
differences in content matter (`learned_metric`), item by item, near whom it is taken (`pulled_together`), and where
items that nobody took would lie then. It tries all of this on held-out items first, and leaves behaviour out where it
finds no more of them.

`cooccurrence_vectors` makes vectors of behaviour alone, for who wants to give them as a feature of a data directory.

Give it the sequences that a recommender is trained on and no others: what happened later would leak into the IDs.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from semid_dataset._messages import logger
from semid_dataset._process import unforked
from semid_dataset.codec.bulk import find_bulk
from semid_dataset.codec.fusion import Fusion, unit_length
from semid_dataset.errors import ConfigError, EmbeddingError, NoEmbeddingsError
from semid_dataset.features import FeatureMatrix
from semid_dataset.objects import as_query, as_rows, item_of, shown

__all__ = [
    "Aware",
    "Trial",
    "behaviour_aware",
    "cooccurrence_vectors",
    "known_sequences",
    "learned_metric",
    "pairs_within",
    "pulled_together",
    "tried",
]

WINDOW = 3  # steps between two items of a pair, at most
WEIGHT = 10.0  # neighbours that an item's own vector counts as, where nobody chooses
WEIGHTS = (10.0, 20.0, 40.0)  # that are tried
SHRINKING = 1.0  # of the regression, in mean variances; a third or one and a half find the same
WITHHELD = 0.1  # share of the items, in a trial
NEAREST = 20  # items, among which a held-out one counts as found
TRIED, TRIED_SCORES = 6000, 400_000_000  # users of a trial, and users x items, at most
RIDGE = 0.1  # of the mean variance within pairs
EXTRA = 16  # dims searched beyond those wanted
ROUNDS = 6  # of subspace iteration
TINY = 1e-6  # lengths below are rounding: roots of eigenvalues that are zero but for some 1e-16
BLOCK_FLOATS = 1 << 23  # 32 MB: products held at once


def cooccurrence_vectors(
    sequences: Iterable[Sequence[int] | NDArray[np.integer]], *, dim: int = 64, window: int = WINDOW, seed: int = 0
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
    left, right, _ = pairs_within(sequences, window)
    items, at = np.unique(np.concatenate([left, right]), return_inverse=True)
    left, right = at.reshape(2, -1)
    rows, columns, counts = _counted(
        np.concatenate([left, right]), np.concatenate([right, left]), len(items), np.ones(2 * len(left))
    )
    totals = np.bincount(rows, weights=counts, minlength=len(items))
    information = np.log(counts * totals.sum() / (totals[rows] * totals[columns]))
    kept = information > 0
    vectors = _leading(rows[kept], columns[kept], information[kept], len(items), min(dim, len(items)), seed)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    some = lengths[:, 0] > TINY  # an item may have no pair left, or none in the leading directions
    if not some.any():
        raise NoEmbeddingsError("Every item occurs near every other one as often as by chance: behaviour says nothing.")
    return items[some], (vectors[some] / lengths[some]).astype(np.float32)


class Aware(NamedTuple):
    """What behaviour made of a feature of n items."""

    alone: Fusion  # the map of an item without behaviour
    vectors: NDArray[np.float32]  # (n, dim), of unit length around their mean
    weight: float  # neighbours that an item's own vector counted as


class Trial(NamedTuple):
    """Shares of held-out items that lie among the 20 nearest to the one taken before."""

    all: float
    new: float  # of those withheld as if nobody had taken them
    error: float  # standard error of `new` less that of the vectors as they are


def behaviour_aware(
    feature: FeatureMatrix, sequences: Iterable[Sequence[int] | NDArray[np.integer]], *, weight: float | None = None
) -> Aware | None:
    """
    Return how an item alone is carried into a space that behaviour has shaped, and the vectors of these items there.

    `learned_metric`, then `pulled_together`, then unit length around the mean: what was pulled by many is shorter, and
    codebooks would hardly tell such items, the most wanted ones, from each other. An item that nobody took lies where
    its content says that it would have been pulled: a ridge regression of pulled vectors on those before. Else it would
    lie where the items it is like are no more.

    How hard items are pulled is chosen by the data (`tried`): what finds most held-out items, of the weights that cost
    new ones no more than a standard error. Where none finds more than the vectors as they are, behaviour is left out.

    Share of held-out items among the 20 nearest to the one before, in %, all / new, two draws of new items:

                                              12,101 products              4,344 products
        titles alone                      7.3 / 7.5    7.3 / 8.0       11.3 / 13.1   11.5 / 10.0
        pulled together, weight 10       13.0 / 6.0                    13.1 /  8.7
        the same, and the regression     13.1 / 7.5   13.0 / 7.1       13.1 / 12.0   13.8 /  9.7
        the same, weight 20              12.7 / 7.5   12.4 / 6.8       13.0 / 12.2   13.7 / 10.7

    Without the metric less is found (12.0 and 12.7 of all), and so it is where every item is drawn towards its
    regressed vector instead of its own (new: 5.7 and 8.5).

    Args:
        feature: of n items.
        sequences: rows of the feature in the order in which one user took them; training events only.
        weight: neighbours that an item's own vector counts as; None: chosen.

    Returns:
        None where behaviour is left out.

    Raises:
        NoEmbeddingsError: no two items occur near each other.
    """
    taken = [np.asarray(sequence, np.int64) for sequence in sequences]
    vectors, beyond = feature.matrix, find_bulk(feature.matrix).beyond
    if beyond is not None:  # far beyond all others: as if they lay in the middle, and nobody took them
        vectors = vectors.copy()
        vectors[beyond] = vectors[~beyond].mean(0, dtype=np.float64)
        taken = [sequence[~beyond[sequence]] for sequence in taken]
    pairs_within(taken, WINDOW)  # raises where there are none
    if weight is None and (weight := _best(tried(vectors, taken))) is None:
        return None
    with unforked():
        (shaped,) = _shaped(vectors, taken, (weight,))
    alone = Fusion.of_metric(feature.id, shaped.mean, shaped.matrix)
    fused = shaped.vectors
    unseen = np.bincount(np.concatenate(taken), minlength=len(vectors)) == 0
    if beyond is not None:
        unseen |= beyond
    theirs = feature.matrix[unseen]
    if len(theirs):
        fused[unseen] = alone.apply((FeatureMatrix(feature.id, np.arange(len(theirs)), theirs),), len(theirs))
    return Aware(alone, fused, weight)


@unforked()
def tried(vectors: NDArray[np.floating], sequences: Sequence[NDArray[np.int64]]) -> dict[float, Trial]:
    """
    Return what every weight finds of held-out items, and what the vectors as they are find (infinity).

    The last item of every sequence is held out, and a tenth of the items withheld, always the same ones; none of the
    two takes part in what is learned. Where too little is left to learn from, only the vectors as they are are tried.

    Args:
        vectors: (n, dim), finite.
        sequences: rows of `vectors`; those of one item say nothing here.
    """
    random, n = np.random.default_rng(0), len(vectors)
    new = np.zeros(n, bool)
    new[random.permutation(n)[: int(WITHHELD * n)]] = True
    row_of = np.cumsum(~new) - 1
    known = [sequence[:-1][~new[sequence[:-1]]] for sequence in sequences if len(sequence) > 1]
    targets = np.array([sequence[-1] for sequence in sequences if len(sequence) > 1], np.int64)
    there = np.flatnonzero([len(some) > 0 for some in known])
    asked = random.permutation(there)[: max(1, min(TRIED, TRIED_SCORES // n))]
    before, targets = np.array([known[row][-1] for row in asked], np.int64), targets[asked]
    plain = _found(np.asarray(vectors, np.float32), before, targets)
    late = new[targets]
    trials = {math.inf: Trial(float(plain.mean()) if len(plain) else 0.0, _share(plain[late]), 0.0)}
    try:
        shaped = _shaped(vectors[~new], [row_of[some] for some in known], WEIGHTS)
    except NoEmbeddingsError:
        return trials
    for weight, one in zip(WEIGHTS, shaped, strict=True):
        space = np.empty((n, vectors.shape[1]), np.float32)
        space[~new], space[new] = one.vectors, unit_length((vectors[new] - one.mean) @ one.matrix)
        hits = _found(space, before, targets)
        lost = plain[late].astype(np.float64) - hits[late]
        error = float(lost.std() / math.sqrt(len(lost))) if len(lost) else 0.0
        trials[weight] = Trial(_share(hits), _share(hits[late]), error)
    return trials


def _best(trials: dict[float, Trial]) -> float | None:
    """Return the weight to take; None where behaviour is to be left out."""
    plain = trials[math.inf]
    for weight, trial in trials.items():
        logger.debug("behaviour, weight %g: %.4f of all, %.4f of new items", weight, trial.all, trial.new)
    fine = [one for one, trial in trials.items() if trial.new >= plain.new - trial.error and trial.all > plain.all]
    return max(fine, key=lambda one: trials[one].all, default=None)


def _share(hits: NDArray[np.bool_]) -> float:
    return float(hits.mean()) if len(hits) else 0.0


def _found(space: NDArray[np.float32], before: NDArray[np.int64], targets: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether each target is among those nearest to the item before it, in (n, dim) vectors."""
    found = np.zeros(len(before), bool)
    half = np.square(space).sum(1) / 2
    step = max(1, BLOCK_FLOATS // len(space))
    for begin in range(0, len(before), step):
        some = before[begin : begin + step]
        scores = space[some] @ space.T - half
        wanted = scores[np.arange(len(some)), targets[begin : begin + step]]
        scores[np.arange(len(some)), some] = -np.inf
        found[begin : begin + step] = (scores > wanted[:, None]).sum(1) < NEAREST
    return found


class _Shaped(NamedTuple):
    """A space: (x - mean) @ matrix, of unit length, for an item alone; and the vectors of all."""

    mean: NDArray[np.float64]
    matrix: NDArray[np.float64]
    vectors: NDArray[np.float32]


def _shaped(
    vectors: NDArray[np.floating], sequences: Sequence[NDArray[np.int64]], weights: Sequence[float]
) -> list[_Shaped]:
    """Return the space of each weight."""
    mean, matrix = learned_metric(vectors, sequences)
    turned = (vectors - mean) @ matrix
    gram = turned.T @ turned
    gram += SHRINKING * (np.trace(gram) / len(gram) or 1.0) * np.eye(len(gram))
    spaces = []
    for weight in weights:
        pulled = pulled_together(turned, sequences, weight=weight).astype(np.float64)
        pulled -= pulled.mean(0)
        spaces.append(_Shaped(mean, matrix @ np.linalg.solve(gram, turned.T @ pulled), unit_length(pulled)))
    return spaces


@unforked()
def learned_metric(
    vectors: NDArray[np.floating],
    sequences: Iterable[Sequence[int] | NDArray[np.integer]],
    *,
    ridge: float = RIDGE,
    window: int = WINDOW,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """
    Return the linear map after which items taken near each other differ alike in all directions: (x - mean) A.

    A = (S + r s I)^(-1/2); S is the covariance of x_i - x_j over all pairs within `window` steps, each weighing
    1 / steps, s its mean variance, and r `ridge` plus dims / pairs: a few pairs hardly change anything. Directions in
    which items differ although they are taken together tell little, and shrink.

    Args:
        vectors: (n, dim), finite.
        sequences: rows of `vectors` in the order in which one user took them; training events only.
        ridge: keeps directions in which no pair differs from outweighing all others.
        window: steps between two items of a pair, at most.

    Returns:
        mean (dim,) of the vectors, and A (dim, dim), symmetric.

    Raises:
        ConfigError: ridge is not above 0 or window less than 1.
        NoEmbeddingsError: no two items occur near each other.

    Memory: 40 bytes a pair, and the vectors in float64 three times.
    Source: Bar-Hillel, Hertz, Shental and Weinshall, "Learning Distance Functions Using Equivalence Relations", 2003
    (relevant component analysis, over pairs).
    """
    if not ridge > 0 or window < 1:
        raise ConfigError(f"ridge must be above 0 and window at least 1; got ridge={ridge}, window={window}.")
    near = _near(sequences, window, len(vectors))
    mean = vectors.mean(0, dtype=np.float64)
    rest = vectors - mean
    # Over pairs both ways, sum c_ij (x_i - x_j)(x_i - x_j)' = 2 sum_i c_i x_i x_i' - 2 sum c_ij x_i x_j'.
    within = rest.T @ (rest * near.totals[:, None] - _product(near.rows, near.columns, near.counts, rest))
    within *= 2 / near.totals.sum()
    values, axes = np.linalg.eigh((within + within.T) / 2)
    values = np.maximum(values, 0.0)
    ridge += len(values) / near.pairs
    # Items that are all alike where pairs were seen have no variance there, and no direction to prefer.
    shrunk = values + ridge * (values.mean() or 1.0)
    matrix = (axes / np.sqrt(shrunk)) @ axes.T
    return mean, (matrix + matrix.T) / 2


def pulled_together(
    vectors: NDArray[np.floating],
    sequences: Iterable[Sequence[int] | NDArray[np.integer]],
    *,
    weight: float = WEIGHT,
    window: int = WINDOW,
) -> NDArray[np.float32]:
    """
    Return vectors (n, dim) drawn towards those of items that were taken near.

    y_i = (w x_i + sum_j c_ij x_j) / (w + sum_j c_ij), where c_ij counts how often i and j lay within `window` steps of
    each other, each time as 1 / steps. An item that was seen often is what its neighbours are; one that was seen once
    hardly moves; one that was not stays.

    Args:
        vectors: (n, dim), finite.
        sequences: rows of `vectors` in the order in which one user took them; training events only.
        weight: w, how many neighbours one's own vector counts as.
        window: steps between two items of a pair, at most.

    Raises:
        ConfigError: weight is not above 0 or window less than 1.
        NoEmbeddingsError: no two items occur near each other.

    Memory: 40 bytes a pair, and twice the vectors in float64.
    """
    if not weight > 0 or window < 1:
        raise ConfigError(f"weight must be above 0 and window at least 1; got weight={weight}, window={window}.")
    near = _near(sequences, window, len(vectors))
    own = np.asarray(vectors, np.float64)
    pulled = weight * own + _product(near.rows, near.columns, near.counts, own)
    return (pulled / (weight + near.totals[:, None])).astype(np.float32)


def known_sequences(
    items: NDArray[np.int64] | list[str], sequences: Iterable[Sequence[Any] | NDArray[Any]]
) -> list[list[int]]:
    """
    Return sequences of items as sequences of their positions in `items`; others are skipped.

    Args:
        items: n distinct ints or strings.
        sequences: of such items, numbers or their spelling, in the order in which one user took them.

    Raises:
        NoEmbeddingsError: none of the items occurs.
        EmbeddingError: they are no lists of items.
    """
    row_of = {str(item): row for row, item in enumerate(items if isinstance(items, list) else items.tolist())}
    total, known = 0, []
    for sequence in as_rows(sequences, "the sequences", EmbeddingError):
        found = as_query(sequence, error=EmbeddingError)
        events = found.reshape(-1).tolist() if isinstance(found, np.ndarray) else found
        total += len(events)
        names = (event if type(event) in {int, str} else item_of(event) for event in events)
        rows = (row_of.get(shown(name) if isinstance(name, int) else str(name)) for name in names)
        known.append([row for row in rows if row is not None])
    if not any(known):
        raise NoEmbeddingsError(
            f"None of the {total} events is of one of the {len(row_of)} items with vectors. Items in the sequences "
            "must be spelled as those of the vectors; or leave behaviour out."
        )
    return known


def _flat(sequences: Iterable[Sequence[int] | NDArray[np.integer]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return all events, one sequence after the other, and where each sequence ends."""
    parts = [np.asarray(sequence, np.int64).reshape(-1) for sequence in sequences]
    ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
    return np.concatenate(parts) if parts else np.zeros(0, np.int64), ends


def pairs_within(
    sequences: Iterable[Sequence[int] | NDArray[np.integer]], window: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """
    Return the two items of every pair within a window, and 1 / the steps between; an item is no pair of itself.

    Raises:
        NoEmbeddingsError: no two items occur near each other.
    """
    events, ends = _flat(sequences)
    number = np.searchsorted(ends, np.arange(len(events)), side="right")
    left, right, steps = [], [], []
    for step in range(1, window + 1):
        inside = (number[step:] == number[:-step]) & (events[step:] != events[:-step])
        left.append(events[:-step][inside])
        right.append(events[step:][inside])
        steps.append(np.full(len(left[-1]), step))
    if not any(map(len, left)):
        raise NoEmbeddingsError(
            f"No two items of the {len(ends)} sequences ({len(events)} events) lie within {window} steps of each "
            "other. Give longer sequences, or leave behaviour out."
        )
    return np.concatenate(left), np.concatenate(right), 1.0 / np.concatenate(steps)


class _Near(NamedTuple):
    """How near items were taken, by rows: the sum of 1 / steps over the pairs of two items, both ways."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    counts: NDArray[np.float64]
    totals: NDArray[np.float64]  # of each item
    pairs: int  # that were seen


def _near(sequences: Iterable[Sequence[int] | NDArray[np.integer]], window: int, items: int) -> _Near:
    left, right, weights = pairs_within(sequences, window)
    rows, columns, counts = _counted(
        np.concatenate([left, right]), np.concatenate([right, left]), items, np.tile(weights, 2)
    )
    totals = np.bincount(rows, weights=counts, minlength=items).astype(np.float64)
    return _Near(rows, columns, counts, totals, len(left))


def _counted(
    left: NDArray[np.int64], right: NDArray[np.int64], items: int, weights: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return rows, columns and summed weights of distinct pairs, by rows."""
    pairs, place = np.unique(left * items + right, return_inverse=True)
    return pairs // items, pairs % items, np.bincount(place.reshape(-1), weights).astype(np.float64)


@unforked()
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
