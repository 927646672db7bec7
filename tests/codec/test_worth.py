"""What IDs are worth, told from sequences alone."""

import itertools

import numpy as np
import pytest

from semid_dataset.codec import worth
from semid_dataset.codec.worth import worth_of_codes
from semid_dataset.errors import ConfigError, NoEmbeddingsError

GROUPS, ITEMS = 30, 240
GROUP = np.arange(ITEMS) % GROUPS
TRUE = np.stack([GROUP, np.arange(ITEMS) // GROUPS], 1)  # the group, and a number that says nothing


def taken(users: int = 500, seed: int = 0) -> list[list[int]]:
    """Each user takes five items of one group of eight."""
    random = np.random.default_rng(seed)
    members = [np.flatnonzero(group == GROUP) for group in range(GROUPS)]
    return [random.choice(members[random.integers(GROUPS)], 5, replace=False).tolist() for _ in range(users)]


def test_ids_that_mean_something_help_and_the_same_ones_dealt_out_anew_do_not() -> None:
    """Overall, and on new items above all, which nothing but codes can find."""
    found = worth_of_codes(TRUE, taken())
    assert found.helps is True
    assert (found.items, found.users) == (ITEMS, 500)
    new = found.slices["new"]
    assert new is not None
    assert new.lift.low > 0
    assert new.random.value < 0.6 < 0.9 < new.ids.value
    dealt = worth_of_codes(TRUE[np.random.default_rng(5).permutation(ITEMS)], taken())
    assert dealt.helps is not True


def test_scores_are_those_of_plain_loops() -> None:
    """Counts of pairs of items and of codes, each pair of items left out of the counts of its own codes."""
    random = np.random.default_rng(1)
    codes = random.integers(0, 3, (9, 2))
    columns, size = worth._columns(codes)
    sequences = [random.permutation(9)[:5] for _ in range(14)]
    left, right, weights = worth.pairs_within(sequences, worth.WINDOW)
    own = worth._Own(left, right, weights, 9)
    among = worth._Among(columns, size, left, right, weights, own)
    seen, codes_seen = np.zeros((9, 9)), np.zeros((size, size))
    for sequence in sequences:
        for a, b in itertools.permutations(range(5), 2):
            if abs(a - b) <= worth.WINDOW:
                i, j = sequence[a], sequence[b]
                seen[i, j] += 1 / abs(a - b)
                for first, second in itertools.product(columns[i], columns[j]):
                    codes_seen[first, second] += 1 / abs(a - b)
    had, faded = np.array([4, 7]), np.array([0.8, 1.0])
    expected = np.zeros(9)
    alone = np.zeros(9)
    for item, fade in zip(had, faded, strict=True):
        for j in range(9):
            chance = seen[item].sum() * seen[j].sum() / seen.sum()
            mine = np.log((seen[item, j] + 1) / (chance + 1)) if seen[item, j] else 0.0
            alone[j] += fade * mine
            for a, b in itertools.product(columns[item], columns[j]):
                by_chance = codes_seen[a].sum() * codes_seen[b].sum() / codes_seen.sum()
                rest = max(codes_seen[a, b] - seen[item, j] * (2 if a == b else 1), 0.0)
                mine += worth.WEIGHT / 4 * np.log((rest + 1) / (by_chance + 1))
            expected[j] += fade * mine
    users = np.zeros(2, np.int64)
    np.testing.assert_allclose(own.scores(users, had, faded, own.values)[0], alone, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(among.scores(users, had, faded)[0], expected, rtol=1e-4, atol=1e-4)


def test_blocks_of_users_and_repeats_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same figures in blocks of three users, and again."""
    whole = worth_of_codes(TRUE, taken(60), draws=1)
    assert worth_of_codes(TRUE, taken(60), draws=1) == whole
    monkeypatch.setattr(worth, "BLOCK", 3 * ITEMS)
    assert worth_of_codes(TRUE, taken(60), draws=1) == whole


def test_the_last_item_is_held_out() -> None:
    """Pairs that only last items make are not counted: what was never seen before is not found by itself."""
    sequences = [[item, item + 1, ITEMS - 1 - item] for item in range(0, 100, 2)]
    found = worth_of_codes(TRUE, sequences, draws=1).slices["all"]
    assert found is not None
    assert found.none.value == 0.0


def test_many_users_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts come from all of them, figures from as many as the budget allows."""
    monkeypatch.setattr(worth, "SCORES", 50 * ITEMS)
    monkeypatch.setattr(worth, "LEAST_USERS", 10)
    assert worth_of_codes(TRUE, taken(), draws=1).users == 50


def test_an_interval_is_that_of_resampled_users() -> None:
    """Of 1,000 users a tenth is found: 0.1 ± 1.96 sqrt(0.1 0.9 / 1000)."""
    counts = np.zeros((1000, 4), np.int64)
    counts[:, 0] = 1
    counts[:100, 1] = counts[100:150, 2] = 1
    figure = worth._figure(counts, np.random.default_rng(0))
    assert figure is not None
    half = 1.96 * np.sqrt(0.1 * 0.9 / 1000)
    assert figure.ids.value == 0.1
    assert figure.ids.low == pytest.approx(0.1 - half, abs=0.003)
    assert figure.ids.high == pytest.approx(0.1 + half, abs=0.003)
    assert figure.lift.value == pytest.approx(0.05)
    assert worth._figure(np.zeros((3, 4), np.int64), np.random.default_rng(0)) is None


def test_what_cannot_be_measured_is_an_error() -> None:
    """Nothing to hold out, no draw, more codes than are counted."""
    with pytest.raises(NoEmbeddingsError, match="No sequence has two items"):
        worth_of_codes(TRUE, [[1], [], [2]])
    with pytest.raises(ConfigError, match="draws"):
        worth_of_codes(TRUE, taken(), draws=0)
    with pytest.raises(ConfigError, match="codes"):
        worth_of_codes(TRUE * 10_000, taken())
