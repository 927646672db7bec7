"""
What IDs are worth to a recommender, told from sequences alone: no recommender is trained.

The last item of a sequence is held out, and all items are ranked by how often things like them were taken near things
like the items before. "Things like" are the item itself and its codes: counts of pairs of items, and counts of pairs of
codes, each against what chance would give. Codes that mean something find items that were hardly ever taken, and new
ones; codes that mean nothing add noise. So the same IDs dealt out to other items at random are measured beside them:
as many codes, used as often, and no meaning.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from semid_dataset._process import unforked
from semid_dataset.codec.behaviour import pairs_within
from semid_dataset.errors import ConfigError, NoEmbeddingsError

__all__ = ["SLICES", "Figure", "Worth", "worth_of_codes"]

SLICES = ("all", "warm", "tail", "new")
TOP = 10  # of Recall@10
TAIL = 5  # events, at most, of an item of the tail
NEW = 0.1  # share of the items that are withheld as if nobody had taken them
DRAWS = 3  # of new items
WINDOW = 3  # steps between two items of a pair, at most
LONGEST, FADING = 10, 0.8  # items of a history that count, the last ones; what one counts of the one after it
PRIOR = 1.0  # pairs that expectation counts as, beside those that were seen
WEIGHT = 2.0  # of what codes say beside what items themselves say
SCORES = 1_000_000_000  # (users x items) of a draw, about, that are looked at
LEAST_USERS = 2000
MOST_CODES = 16384  # of all levels: the counts of their pairs take 4 bytes x the square
BLOCK = 1 << 22  # scores held at once, in some arrays of 16 to 32 MB
RESAMPLED = 2000  # times, for an interval


class Share(NamedTuple):
    """A share of users, or a difference of shares, and its 95 % interval over users."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Figure:
    """
    What was found in one slice of the held-out items.

    Attributes:
        targets: held-out items, all draws together.
        ids: share of them among the first ten, by these IDs.
        random: the same by these IDs dealt out to other items at random.
        none: the same without IDs.
        lift: `ids` less `random`, user by user.
    """

    targets: int
    ids: Share
    random: Share
    none: Share
    lift: Share


@dataclass(frozen=True)
class Worth:
    """
    What IDs are worth.

    Attributes:
        items, users: that were ranked, and for whom.
        slices: "all"; "warm": items that were not withheld; "tail": warm ones of at most five events; "new": withheld
            as if nobody had taken them, and ranked among those that were. None where no held-out item is one of it.
    """

    items: int
    users: int
    slices: Mapping[str, Figure | None]

    @property
    def helps(self) -> bool | None:
        """Whether these IDs find more than random ones; None where the interval holds both answers."""
        lift = self.slices["all"].lift if self.slices["all"] is not None else Share(0.0, 0.0, 0.0)
        return True if lift.low > 0 else False if lift.high < 0 else None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        named = {
            name: None
            if figure is None
            else {key: part._asdict() if isinstance(part, Share) else part for key, part in vars(figure).items()}
            for name, figure in self.slices.items()
        }
        return {"items": self.items, "users": self.users, "helps": self.helps, "slices": named}


@unforked()
def worth_of_codes(
    codes: NDArray[Any], sequences: Sequence[Sequence[int] | NDArray[np.integer]], *, draws: int = DRAWS, seed: int = 0
) -> Worth:
    """
    Return how well codes tell the last item of sequences from those before it, beside random ones and none.

    score(j) = sum over the items i before, each 0.8 of the next: own(i, j) + mean over levels l, m of codes(i_l, j_m).
    Either is log((seen + 1) / (expected + 1)) of pairs within three steps, of the two items or of the two codes, in
    all sequences without their last item. How often i and j themselves were seen together is left out of the counts of
    their codes: what codes add is what other items with these codes say.

    Args:
        codes: (n, levels), not negative.
        sequences: rows of `codes` in the order in which one user took them; those of one item say nothing.
        draws: times that a tenth of the items is withheld, other ones each time.
        seed: of the draws, of the random IDs, and of the users looked at where there are very many.

    Raises:
        ConfigError: draws is less than 1, or all levels together have more than 16,384 codes.
        NoEmbeddingsError: no sequence has two items, or no two items lie near each other.

    Memory: some 200 MB, 12 bytes for the square of the number of codes, 80 for every pair of items within three steps.
    """
    if draws < 1:
        raise ConfigError(f"draws must be at least 1, not {draws}.")
    columns, size = _columns(codes)
    n = len(codes)
    random = np.random.default_rng(seed)
    taken = [np.asarray(sequence, np.int64) for sequence in sequences]
    taken = [sequence for sequence in taken if len(sequence) > 1]
    if not taken:
        raise NoEmbeddingsError(
            "No sequence has two items that have an ID, so none can be held out. Give what users took, one after the "
            "other, in the spelling of the IDs' items."
        )
    most = max(LEAST_USERS, SCORES // max(n, 1))
    asked = np.sort(random.permutation(len(taken))[:most])
    counts = np.zeros((len(asked), len(SLICES), 4), np.int64)  # targets; hits by these IDs, by random ones, without
    for _ in range(draws):
        new = np.zeros(n, bool)
        new[random.permutation(n)[: int(NEW * n)]] = True
        known = [sequence[:-1][~new[sequence[:-1]]] for sequence in taken]
        events = np.bincount(np.concatenate(known), minlength=n)
        dealt = columns[random.permutation(n)]
        left, right, weights = pairs_within(known, WINDOW)
        own = _Own(left, right, weights, n)
        among = [_Among(one, size, left, right, weights, own) for one in (columns, dealt)]
        targets = np.array([taken[row][-1] for row in asked])
        hits = _hits([known[row] for row in asked], targets, own, among, new)
        there = np.array([len(known[row]) > 0 for row in asked])
        inside = (np.ones(len(asked), bool), ~new[targets], ~new[targets] & (events[targets] <= TAIL), new[targets])
        for at, (name, some) in enumerate(zip(SLICES, inside, strict=True)):
            counts[:, at] += (there & some)[:, None] * np.stack(
                [np.ones(len(asked), bool), *hits[int(name == "new")]], 1
            )
    figures = {name: _figure(counts[:, at], random) for at, name in enumerate(SLICES)}
    return Worth(n, len(asked), figures)


def _columns(codes: NDArray[Any]) -> tuple[NDArray[np.int64], int]:
    """Return codes (n, levels) as rows of one table of all levels, and how many rows that has."""
    array = np.asarray(codes, np.int64)
    sizes = array.max(axis=0, initial=0) + 1
    size = int(sizes.sum())
    if size > MOST_CODES:
        raise ConfigError(
            f"The IDs have {size} codes, all levels together; the pairs of more than {MOST_CODES} are not counted. "
            "Nothing was measured."
        )
    return array + np.cumsum(sizes) - sizes, size


class _Own:
    """How often items were taken near each other, against chance: by rows, where they were."""

    def __init__(
        self, left: NDArray[np.int64], right: NDArray[np.int64], weights: NDArray[np.float64], items: int
    ) -> None:
        keys, place = np.unique(np.r_[left * items + right, right * items + left], return_inverse=True)
        seen = np.bincount(place.reshape(-1), np.r_[weights, weights])
        rows, self.columns = keys // items, keys % items
        self.totals = np.bincount(rows, seen, minlength=items)
        expected = self.totals[rows] * self.totals[self.columns] / seen.sum()
        self.values = np.log((seen + PRIOR) / (expected + PRIOR))
        self.begins = np.searchsorted(rows, np.arange(items + 1))
        self.items = items
        self.pairs = rows, self.columns, seen

    def scores(
        self, users: NDArray[np.int64], had: NDArray[np.int64], faded: NDArray[np.float64], values: NDArray[np.float64]
    ) -> NDArray[Any]:
        """Return (users, items): sums over what each user had."""
        counts = self.begins[had + 1] - self.begins[had]
        ends = np.cumsum(counts)
        entries = np.arange(ends[-1]) + np.repeat(self.begins[had] - ends + counts, counts)
        keys = np.repeat(users * self.items, counts) + self.columns[entries]
        shape = (int(users[-1]) + 1, self.items)
        summed = np.bincount(keys, values[entries] * np.repeat(faded, counts), minlength=shape[0] * shape[1])
        return summed.astype(np.float32).reshape(shape)


class _Among:
    """How often codes were taken near each other, against chance."""

    def __init__(
        self,
        columns: NDArray[np.int64],
        size: int,
        left: NDArray[np.int64],
        right: NDArray[np.int64],
        weights: NDArray[np.float64],
        own: _Own,
    ) -> None:
        levels = columns.shape[1]
        counted = np.zeros(size * size, np.float32)
        for first in range(levels):
            for second in range(levels):
                keys, place = np.unique(columns[left, first] * size + columns[right, second], return_inverse=True)
                counted[keys] += np.bincount(place.reshape(-1), weights)
        seen = counted.reshape(size, size) + counted.reshape(size, size).T
        totals = seen.sum(1, dtype=np.float64) / levels
        expected = np.outer(totals, totals / max(totals.sum() / levels, 1e-300)).astype(np.float32)
        self.columns, self.size = columns, size
        self.values = np.log((seen + PRIOR) / (expected + PRIOR)) * np.float32(WEIGHT / levels**2)
        # Else codes of one item alone would say what is known of the item, and random IDs would seem to mean something.
        rows, others, times = own.pairs
        known = np.zeros(len(rows))
        for first in range(levels):
            for second in range(levels):
                a, b = columns[rows, first], columns[others, second]
                count = seen[a, b]
                rest = np.maximum(count - times * (1 + (a == b)), 0.0)
                known += np.log((rest + PRIOR) / (count + PRIOR))
        self.own, self.known = own, own.values + known * WEIGHT / levels**2

    def scores(self, users: NDArray[np.int64], had: NDArray[np.int64], faded: NDArray[np.float64]) -> NDArray[Any]:
        """Return (users, items): sums over what each user had."""
        levels = self.columns.shape[1]
        keys = users[:, None] * self.size + self.columns[had]
        minlength = (int(users[-1]) + 1) * self.size
        before = np.bincount(keys.reshape(-1), np.repeat(faded, levels), minlength=minlength)
        after = before.astype(np.float32).reshape(-1, self.size) @ self.values
        summed: NDArray[Any] = after[:, self.columns[:, 0]]
        for level in range(1, levels):
            summed += after[:, self.columns[:, level]]
        summed += self.own.scores(users, had, faded, self.known)
        return summed


def _hits(
    histories: Sequence[NDArray[np.int64]],
    targets: NDArray[np.int64],
    own: _Own,
    among: Sequence[_Among],
    new: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Return whether targets are among the first ten of all items, and of new ones: by each of `among`, and `own`."""
    hits = np.zeros((2, len(among) + 1, len(targets)), bool)
    late = np.flatnonzero(new)
    some = np.flatnonzero([len(history) > 0 for history in histories])
    step = max(1, BLOCK // own.items)
    for begin in range(0, len(some), step):
        rows = some[begin : begin + step]
        counted = [histories[row][-LONGEST:] for row in rows]
        lengths = np.array([len(history) for history in counted])
        users = np.repeat(np.arange(len(rows)), lengths)
        place = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(users)) - 1  # 0: the last one
        faded = np.power(FADING, place, dtype=np.float64)
        had = np.concatenate(counted)
        all_had = np.concatenate([histories[row] for row in rows])
        whose = np.repeat(np.arange(len(rows)), [len(histories[row]) for row in rows])
        for at, one in enumerate([*among, None]):
            scores = own.scores(users, had, faded, own.values) if one is None else one.scores(users, had, faded)
            wanted = scores[np.arange(len(rows)), targets[rows]][:, None]
            scores[whose, all_had] = -np.inf
            hits[0, at, rows] = _first(scores, wanted)
            inside = np.flatnonzero(new[targets[rows]])
            hits[1, at, rows[inside]] = _first(scores[np.ix_(inside, late)], wanted[inside])
    return hits


def _first(scores: NDArray[Any], wanted: NDArray[Any]) -> NDArray[np.bool_]:
    """Return whether a score (users, 1) is among the first ten of (users, items); of equal ones half come before it."""
    above, equal = np.count_nonzero(scores > wanted, axis=1), np.count_nonzero(scores == wanted, axis=1)
    found: NDArray[np.bool_] = above + np.maximum(equal - 1, 0) // 2 < TOP
    return found


def _figure(counts: NDArray[np.int64], random: np.random.Generator) -> Figure | None:
    """Return shares and intervals of (users, 4) counts: targets, hits by these IDs, by random ones, without."""
    targets = int(counts[:, 0].sum())
    if not targets:
        return None
    kinds, users = np.unique(counts, axis=0, return_counts=True)  # few: a user drawn again is one of a kind
    drawn = random.multinomial(len(counts), users / len(counts), size=RESAMPLED) @ kinds
    drawn = drawn[drawn[:, 0] > 0]

    def share(weights: Sequence[int]) -> Share:
        low, high = np.quantile(drawn @ weights / drawn[:, 0], [0.025, 0.975])
        return Share(float(counts.sum(0) @ weights / targets), float(low), float(high))

    return Figure(targets, share([0, 1, 0, 0]), share([0, 0, 1, 0]), share([0, 0, 0, 1]), share([0, 1, -1, 0]))
