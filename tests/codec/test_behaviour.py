"""Vectors of behaviour: what they say, what they do not depend on, and IDs made with them."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from semid_dataset import SemanticIdConfig, SemanticIdTable
from semid_dataset.api import extend_with_vectors, generate_from_vectors
from semid_dataset.codec import behaviour
from semid_dataset.codec.behaviour import (
    behaviour_aware,
    cooccurrence_vectors,
    known_sequences,
    learned_metric,
    pulled_together,
    tried,
)
from semid_dataset.errors import ConfigError, EmbeddingError, NoEmbeddingsError, SemanticIdWarning
from semid_dataset.features import FeatureMatrix
from semid_dataset.inputs.sequences import read_sequences

GROUPS, EACH = 6, 8


def sequences_of_groups(count: int = 400, stray: float = 0.1, seed: int = 0) -> list[list[int]]:
    """Users who take eight items of one group each, and sometimes another one; item numbers are 10 apart."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        group = draw.integers(GROUPS)
        own = group * EACH + draw.integers(EACH, size=8)
        other = draw.integers(GROUPS * EACH, size=8)
        found.append((10 * np.where(draw.random(8) < stray, other, own)).tolist())
    return found


def dense(sequences: list[list[int]], window: int) -> tuple[list[int], NDArray[np.float64]]:
    """The same matrix, in the plainest way."""
    items = sorted({item for sequence in sequences for item in sequence})
    counts = np.zeros((len(items), len(items)))
    for sequence in sequences:
        for at, item in enumerate(sequence):
            for other in sequence[at + 1 : at + 1 + window]:
                if item != other:
                    counts[items.index(item), items.index(other)] += 1
                    counts[items.index(other), items.index(item)] += 1
    totals = counts.sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.log(counts * totals.sum() / np.outer(totals, totals))
    return items, np.maximum(np.nan_to_num(information, nan=0.0, neginf=0.0), 0.0)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=9), min_size=1, max_size=12),
    st.integers(1, 4),
)
def test_all_directions_together_give_the_matrix_back(sequences: list[list[int]], window: int) -> None:
    """With as many dims as items nothing is left out: lengths and angles are those of |PPMI|, computed densely."""
    items, matrix = dense(sequences, window)
    values, vectors = np.linalg.eigh(matrix)
    gram = (vectors * np.abs(values)) @ vectors.T
    if not gram.any():
        with pytest.raises(NoEmbeddingsError):
            cooccurrence_vectors(sequences, dim=len(items), window=window)
        return
    found, mine = cooccurrence_vectors(sequences, dim=len(items), window=window)
    some = np.sqrt(np.diag(gram)) > behaviour.TINY
    assert found.tolist() == np.array(items)[some].tolist()
    lengths = np.sqrt(np.diag(gram))[some]
    np.testing.assert_allclose(mine @ mine.T, gram[np.ix_(some, some)] / np.outer(lengths, lengths), atol=1e-4)


def test_items_taken_together_lie_together() -> None:
    """Nearly every nearest neighbour is of the same group, although some events are strays."""
    items, vectors = cooccurrence_vectors(sequences_of_groups(), dim=8)
    likeness = vectors @ vectors.T
    np.fill_diagonal(likeness, -1)
    group = items // (10 * EACH)
    assert (group[likeness.argmax(1)] == group).mean() > 0.95
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_a_window_ends_with_its_sequence() -> None:
    """The last item of one user and the first of the next are no pair."""
    items, vectors = cooccurrence_vectors([[1, 2], [3, 4]], dim=4, window=3)
    assert items.tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(vectors[:2] @ vectors[2:].T, 0, atol=1e-6)


def test_equal_sequences_give_equal_vectors_in_any_order_and_in_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither who comes first nor how much is computed at once may decide an ID."""
    sequences = sequences_of_groups()
    items, vectors = cooccurrence_vectors(sequences)
    again = cooccurrence_vectors([np.array(sequence) for sequence in reversed(sequences)])
    assert (again[0] == items).all()
    assert (again[1] == vectors).all()
    monkeypatch.setattr(behaviour, "BLOCK_FLOATS", 700)
    blocked = cooccurrence_vectors(sequences)[1]
    np.testing.assert_allclose(blocked @ blocked.T, vectors @ vectors.T, atol=1e-4)


@pytest.mark.parametrize("setting", ["dim", "window"])
def test_less_than_one_is_an_error(setting: str) -> None:
    """No dims or no window would say nothing."""
    with pytest.raises(ConfigError, match=f"{setting}=0"):
        cooccurrence_vectors([[1, 2]], **{setting: 0})


@pytest.mark.parametrize("sequences", [[], [[]], [[1], [2]], [[3, 3, 3]]])
def test_nobody_near_anybody_is_an_error(sequences: list[list[int]]) -> None:
    """It says what there was, and what to do."""
    with pytest.raises(NoEmbeddingsError, match="leave behaviour out"):
        cooccurrence_vectors(sequences)


def test_items_are_found_whether_numbers_or_strings() -> None:
    """Sequences may spell items as strings, and hold items without vectors."""
    sequences: list[list[Any]] = [["20", 999, "30"], [10, 30], np.array([20, 10]).tolist()]
    assert known_sequences(np.array([10, 20, 30]), sequences) == [[1, 2], [0, 2], [1, 0]]
    assert known_sequences(["10", "20", "30"], map(np.array, sequences)) == [[1, 2], [0, 2], [1, 0]]
    with pytest.raises(NoEmbeddingsError, match="None of the 6 events is of one of the 2 items"):
        known_sequences(np.array([1, 2]), [[7, 8, 9], [7, 8, 9]])


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=9, unique=True), min_size=1, max_size=12),
    st.integers(1, 4),
    st.floats(0.1, 50.0),
)
def test_vectors_are_pulled_as_the_formula_says(sequences: list[list[int]], window: int, weight: float) -> None:
    """Computed pair by pair; items that are in no sequence stay where they are."""
    vectors = np.random.default_rng(0).standard_normal((12, 5)).astype(np.float32)
    sums, totals = weight * vectors.astype(np.float64), np.full(12, weight)
    for sequence in sequences:
        for at, item in enumerate(sequence):
            for step, other in enumerate(sequence[at + 1 : at + 1 + window], start=1):
                for mine, theirs in ((item, other), (other, item)):
                    sums[mine] += vectors[theirs] / step
                    totals[mine] += 1 / step
    pulled = pulled_together(vectors, sequences, weight=weight, window=window)
    assert pulled.dtype == np.float32
    np.testing.assert_allclose(pulled, sums / totals[:, None], rtol=1e-4, atol=1e-5)
    assert (pulled[10:] == vectors[10:]).all()


def test_a_pull_without_pairs_or_weight_is_refused() -> None:
    """The errors say what is wanted."""
    vectors = np.eye(3, dtype=np.float32)
    with pytest.raises(NoEmbeddingsError, match="within 3 steps"):
        pulled_together(vectors, [[0], [1]])
    for settings_ in ({"weight": 0.0}, {"weight": float("nan")}, {"window": 0}):
        with pytest.raises(ConfigError, match="must be above 0"):
            pulled_together(vectors, [[0, 1]], **settings_)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=9, unique=True), min_size=1, max_size=12),
    st.integers(1, 4),
    st.floats(0.01, 5.0),
)
def test_a_metric_is_what_the_formula_says(sequences: list[list[int]], window: int, ridge: float) -> None:
    """Computed pair by pair: A (S + r s I) A = I."""
    vectors = np.random.default_rng(0).standard_normal((12, 5)).astype(np.float32)
    within, total, pairs = np.zeros((5, 5)), 0.0, 0
    for sequence in sequences:
        for at, item in enumerate(sequence):
            for step, other in enumerate(sequence[at + 1 : at + 1 + window], start=1):
                apart = (vectors[item] - vectors[other]).astype(np.float64)
                within += np.outer(apart, apart) / step
                total, pairs = total + 1 / step, pairs + 1
    within /= total
    within += (ridge + 5 / pairs) * np.trace(within) / 5 * np.eye(5)
    mean, matrix = learned_metric(vectors, sequences, ridge=ridge, window=window)
    np.testing.assert_allclose(mean, vectors.mean(0), atol=1e-6)
    np.testing.assert_allclose(matrix @ within @ matrix, np.eye(5), atol=1e-6)


def test_a_metric_without_pairs_or_ridge_is_refused_and_equal_items_are_none_of_its_troubles() -> None:
    """The errors say what is wanted; where all pairs are of equal vectors, directions stay alike."""
    vectors = np.eye(3, dtype=np.float32)
    with pytest.raises(NoEmbeddingsError, match="within 3 steps"):
        learned_metric(vectors, [[0], [1]])
    for settings_ in ({"ridge": 0.0}, {"ridge": float("nan")}, {"window": 0}):
        with pytest.raises(ConfigError, match="must be above 0"):
            learned_metric(vectors, [[0, 1]], **settings_)
    matrix = learned_metric(np.ones((4, 3), np.float32), [[0, 1, 2]])[1]
    np.testing.assert_allclose(matrix, matrix[0, 0] * np.eye(3), atol=1e-12)


def test_what_is_learned_of_behaviour_holds_for_an_item_alone() -> None:
    """An item in no sequence lies where the map puts it; the others are of unit length around their mean."""
    items, vectors, sequences = world()
    feature = FeatureMatrix("own", np.arange(len(items)), vectors)
    aware = behaviour_aware(feature, [[item // 10 for item in some if item >= 50] for some in sequences])
    assert aware is not None
    alone, together = aware.alone, aware.vectors
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(alone.apply([feature], len(items))[:5], together[:5], atol=1e-5)
    assert np.abs(alone.apply([feature], len(items))[5:] - together[5:]).max() > 0.1


SETTINGS = SemanticIdConfig(num_quantizers=2, codebook_size=8, algorithm="rqkmeans", device="cpu")


def world() -> tuple[NDArray[np.int64], NDArray[np.float32], list[list[int]]]:
    """Items whose vectors say nothing of the groups in which they are taken, but for a hint in one number."""
    items = 10 * np.arange(GROUPS * EACH)
    vectors = np.random.default_rng(1).standard_normal((len(items), 6)).astype(np.float32)
    vectors[:, 0] = np.repeat(np.arange(GROUPS), EACH) / GROUPS
    return items, vectors, sequences_of_groups()


def together(table: SemanticIdTable, items: NDArray[np.int64]) -> float:
    """Share of pairs of one group that have the same first code."""
    first = table.codes(items)[:, 0].reshape(GROUPS, EACH)
    return float((first[:, :, None] == first[:, None]).mean())


def test_what_is_taken_together_gets_first_codes_that_are_alike(tmp_path: Path) -> None:
    """The sequences reach the IDs: more so than content alone would have it."""
    items, vectors, sequences = world()
    alone = generate_from_vectors(items, vectors, output_dir=tmp_path / "alone", config=SETTINGS)
    taken = generate_from_vectors(items, vectors, output_dir=tmp_path / "taken", config=SETTINGS, sequences=sequences)
    assert together(taken, items) > together(alone, items) + 0.2
    assert len({tuple(code) for code in taken.codes(items).tolist()}) == len(items)
    assert taken.digest != alone.digest


def test_new_items_need_no_behaviour(tmp_path: Path) -> None:
    """A table made with sequences is extended with vectors alone, and no known ID moves."""
    items, vectors, sequences = world()
    table = generate_from_vectors(items[:-5], vectors[:-5], output_dir=tmp_path, config=SETTINGS, sequences=sequences)
    more, new = extend_with_vectors(table, items, vectors)
    assert new == 5
    assert (more.codes(items[:-5]) == table.codes(items[:-5])).all()
    with pytest.raises(EmbeddingError, match="encodes vectors of 6 numbers, these have 3"):
        extend_with_vectors(table, items, vectors[:, :3])


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".parquet"])
def test_sequences_are_read_from_files(tmp_path: Path, ending: str) -> None:
    """Text, JSON lines and parquet hold the same."""
    wanted = [[1, 2, 3], [], [4]]
    path = tmp_path / f"taken{ending}"
    if ending == ".parquet":
        arrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.table({"user": [7, 8, 9], "items": wanted}), path)
    elif ending == ".jsonl":
        path.write_text("".join(f"{json.dumps(some)}\n" for some in wanted))
    else:
        path.write_text("".join(" ".join(map(str, some)) + "\n" for some in wanted))
    assert [[int(item) for item in some] for some in read_sequences(path)] == wanted


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.jsonl", b"[1]\n{}\n", "line 2: a dict"),
        ("x.jsonl", b"[1]\n[2\n", "line 2: no JSON"),
        ("x.txt", b"\xff\xfe\xfa", "no UTF-8 text"),
        ("x.parquet", b"PAR1", "cannot be read as parquet"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    """The message names file and line."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EmbeddingError, match=said):
        read_sequences(tmp_path / name)


def test_parquet_without_one_column_of_lists_is_refused(tmp_path: Path) -> None:
    """It says which columns there are."""
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"user": [7], "item": [3]}), tmp_path / "x.parquet")
    with pytest.raises(EmbeddingError, match=r"There is: user \(int64\), item"):
        read_sequences(tmp_path / "x.parquet")


def test_the_command_line_takes_sequences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a file of vectors; a table to extend has its behaviour already."""
    pytest.importorskip("click")
    from semid_dataset.cli._app import run

    items, vectors, sequences = world()
    np.savez(tmp_path / "x.npz", items=items, embeddings=vectors)
    (tmp_path / "taken.jsonl").write_text("".join(f"{json.dumps(some)}\n" for some in sequences))
    line = [
        "generate",
        str(tmp_path / "x.npz"),
        "-o",
        str(tmp_path / "out"),
        "--sequences",
        str(tmp_path / "taken.jsonl"),
    ]
    line += ["--levels", "2", "--codes", "8", "--algorithm", "rqkmeans", "--device", "cpu"]
    assert run(line) == 0
    made = SemanticIdTable.open(tmp_path / "out" / "semid_table.safetensors")
    wanted = generate_from_vectors(items, vectors, output_dir=tmp_path / "same", config=SETTINGS, sequences=sequences)
    assert (made.codes(items) == wanted.codes(items)).all()
    assert run(["info", str(tmp_path / "out")]) == 0
    assert "own (6 numbers) and sequences" in capsys.readouterr().out
    assert run([*line, "--parent", str(tmp_path / "out")]) == 2
    assert "no --parent" in capsys.readouterr().err


def test_verify_checks_ids_with_the_sequences_and_says_what_vectors_alone_leave_open(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Right and wrong vectors and sequences are told apart; without, no more is claimed than was checked."""
    pytest.importorskip("click")
    from semid_dataset.cli._app import run

    items, vectors, sequences = world()
    for name, rows in (("x", vectors), ("other", vectors[::-1]), ("narrow", vectors[:, :3])):
        np.savez(tmp_path / f"{name}.npz", items=items, embeddings=rows)
    np.savez(tmp_path / "some.npz", items=items[5:20], embeddings=vectors[5:20])
    for name, taken in (("taken", sequences), ("others", sequences_of_groups(stray=1.0, seed=3))):
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(some)}\n" for some in taken))
    generate_from_vectors(items, vectors, output_dir=tmp_path / "out", config=SETTINGS, sequences=sequences)
    generate_from_vectors(items, vectors, output_dir=tmp_path / "plain", config=SETTINGS)

    def verified(*more: str, table: str = "out") -> tuple[int, str]:
        line = [str(tmp_path / word) if "." in word else word for word in more]
        code = run(["verify", str(tmp_path / table), *line])
        said = capsys.readouterr()
        return code, said.out + said.err

    code, said = verified("--embeddings", "x.npz")
    assert code == 0
    assert "whether each fits its vector was not checked. Give --sequences" in said
    assert "Everything that was checked is as it should be" in said
    with_sequences = ("--sequences", "taken.jsonl")
    code, said = verified("--embeddings", "x.npz", *with_sequences)
    assert code == 0, said
    assert "come out again" in said
    code, said = verified("--embeddings", "some.npz", *with_sequences)
    assert code == 3
    assert "33 of the table's 48 items have no vector here" in said
    assert verified("--embeddings", "other.npz", *with_sequences)[0] == 1
    assert verified("--embeddings", "x.npz", "--sequences", "others.jsonl")[0] == 1
    code, said = verified("--embeddings", "narrow.npz")
    assert (code, "3 dims here; 6 were fitted" in said) == (3, True), (code, said)
    assert "goes with --embeddings" in verified(*with_sequences)[1]
    assert "made without sequences" in verified("--embeddings", "x.npz", *with_sequences, table="plain")[1]


def held_out_world(seed: int = 0) -> tuple[FeatureMatrix, list[NDArray[np.int64]]]:
    """400 items in 40 groups that content hardly tells apart: users take five of one group."""
    random = np.random.default_rng(seed)
    group = np.repeat(np.arange(40), 10)
    vectors = 0.5 * random.standard_normal((40, 12))[group] + random.standard_normal((400, 12))
    sequences = [10 * random.integers(40) + random.permutation(10)[:5] for _ in range(900)]
    return FeatureMatrix("own", np.arange(400), vectors.astype(np.float32)), sequences


def test_behaviour_is_taken_where_it_finds_held_out_items_and_costs_new_ones_nothing() -> None:
    """The weight is one of those tried, and it is kept out where users take items by chance."""
    feature, sequences = held_out_world()
    aware = behaviour_aware(feature, sequences)
    assert aware is not None
    trials = tried(feature.matrix, sequences)
    assert trials[aware.weight].all > trials[math.inf].all + 0.1
    assert trials[aware.weight].new >= trials[math.inf].new - trials[aware.weight].error
    random = np.random.default_rng(1)
    assert behaviour_aware(feature, [random.permutation(400)[:5] for _ in range(300)]) is None
    assert behaviour_aware(feature, [[0, 1]]) is None  # nothing is left to try it on


def test_weights_that_cost_new_items_are_passed_over() -> None:
    """Of those that cost no more than a standard error, the one that finds most; none where nothing is gained."""
    plain = behaviour.Trial(0.10, 0.08, 0.0)
    hard, soft = behaviour.Trial(0.15, 0.05, 0.01), behaviour.Trial(0.12, 0.075, 0.01)
    assert behaviour._best({math.inf: plain, 10.0: hard, 40.0: soft}) == 40.0
    assert behaviour._best({math.inf: plain, 10.0: hard._replace(new=0.08), 40.0: soft}) == 10.0
    assert behaviour._best({math.inf: plain, 10.0: hard}) is None
    assert behaviour._best({math.inf: plain, 40.0: soft._replace(all=0.10)}) is None
    assert behaviour._best({math.inf: plain}) is None


def test_an_item_that_nobody_took_lies_among_those_it_is_like_as_they_are_after_pulling() -> None:
    """Two clumps are taken together; a new item of one is carried along instead of staying behind."""
    random = np.random.default_rng(0)
    centres = 4 * np.eye(6)[:4]
    group = np.arange(120) % 4
    vectors = (centres[group] + 0.3 * random.standard_normal((120, 6))).astype(np.float32)
    pair = {0: 1, 1: 0, 2: 3, 3: 2}
    sequences = []
    for _ in range(600):
        mine = random.choice(np.flatnonzero(group[:100] == group[random.integers(100)]), 2)
        theirs = random.choice(np.flatnonzero(group[:100] == pair[int(group[mine[0]])]), 2)
        sequences.append(np.array([mine[0], theirs[0], mine[1], theirs[1]]))
    feature = FeatureMatrix("own", np.arange(120), vectors)
    aware = behaviour_aware(feature, sequences, weight=10.0)
    assert aware is not None
    nobody = np.arange(100, 120)
    scores = aware.vectors[nobody] @ aware.vectors[:100].T
    nearest = group[np.argsort(-scores, axis=1)[:, :50]]
    both = (nearest == group[nobody, None]) | (nearest == np.vectorize(pair.get)(group[nobody])[:, None])
    assert both.mean() > 0.9
    old = (vectors - vectors[:100].mean(0)) / np.linalg.norm(vectors - vectors[:100].mean(0), axis=1, keepdims=True)
    before = group[np.argsort(-(old[nobody] @ old[:100].T), axis=1)[:, :50]]
    assert ((before == group[nobody, None]) | (before == np.vectorize(pair.get)(group[nobody])[:, None])).mean() < 0.85


def test_ids_are_those_of_the_vectors_where_behaviour_is_left_out(tmp_path: Path) -> None:
    """It says so, and the table was not made with sequences."""
    feature, _ = held_out_world()
    larger = replace(SETTINGS, codebook_size=32)
    random = np.random.default_rng(1)
    chance = [random.permutation(400)[:5].tolist() for _ in range(300)]
    plain = generate_from_vectors(range(400), feature.matrix, output_dir=tmp_path / "plain", config=larger)
    with pytest.warns(SemanticIdWarning, match="left out"):
        table = generate_from_vectors(
            range(400), feature.matrix, output_dir=tmp_path / "out", config=larger, sequences=chance
        )
    assert (table.codes_array == plain.codes_array).all()
    assert not table.header.behaviour
