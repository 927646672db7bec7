"""The logic of benchmarks/downstream.py: what is withheld, how it is ranked, and that a run repeats."""

import dataclasses
import importlib.util
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def down() -> Iterator[ModuleType]:
    """The script, as a module; it is no part of the package."""
    sys.path.insert(0, str(BENCHMARKS))
    before = torch.are_deterministic_algorithms_enabled()
    try:
        spec = importlib.util.spec_from_file_location("downstream_benchmark", BENCHMARKS / "downstream.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # its dataclasses look themselves up there
        spec.loader.exec_module(module)
        torch.use_deterministic_algorithms(True)
        yield module
    finally:
        torch.use_deterministic_algorithms(before)
        sys.path.remove(str(BENCHMARKS))
        sys.modules.pop("downstream_benchmark", None)
        sys.modules.pop("quantizers", None)


@pytest.fixture(scope="module")
def world(down: ModuleType) -> Any:
    """300 items in 10 groups, 250 users."""
    return down.generated(items=300, users=250, groups=10, dim=12)


def test_any_folder_of_sequences_and_vectors_is_a_world(down: ModuleType, tmp_path: Path) -> None:
    """Sequences as lists or as one array with ends; a matrix whole or in parts; published IDs where there are some."""
    text = np.arange(12, dtype=np.float16).reshape(6, 2)
    sequences = [[0, 1, 2], [3, 4], [5, 4, 3, 2]]
    lists, arrays = tmp_path / "lists", tmp_path / "arrays"
    lists.mkdir(), arrays.mkdir()
    (lists / "sequences.txt").write_text("".join(" ".join(map(str, some)) + "\n" for some in sequences))
    np.save(lists / "x.part0.npy", text[:4]), np.save(lists / "x.part1.npy", text[4:])
    np.savez(arrays / "sequences.npz", items=np.concatenate(sequences).astype(np.uint16), ends=np.array([3, 5, 9]))
    np.save(arrays / "title.npy", text), np.save(arrays / "full.npy", text + 1)
    np.savez(arrays / "published.npz", theirs=np.zeros((6, 4), np.uint8))
    one, other = down.world_of(lists), down.world_of(arrays, "title.npy")
    for world in (one, other):
        assert world.sequences == [[0, 1, 2], [5, 4, 3, 2]]  # two are too few to train, validate and test with
        assert (world.text == text).all()
    assert list(other.published) == ["theirs"]
    assert not one.published
    with pytest.raises(SystemExit, match="--vectors"):
        down.world_of(arrays)


def test_nothing_of_new_items_or_later_events_is_trained_on(down: ModuleType, world: Any) -> None:
    """New items are in no history and no training sequence; targets are the last two events."""
    cut = down.split(world, 3)
    new = set(np.flatnonzero(cut.new).tolist())
    assert len(new) == 30
    assert not new & {item for sequence in cut.train for item in sequence}
    assert not new & set(cut.validation.had.ravel().tolist() + cut.test.had.ravel().tolist())
    expected = [[i for i in sequence[:-2] if i not in new] for sequence in world.sequences]
    assert cut.train == [sequence for sequence in expected if len(sequence) > 1]
    assert (cut.events == np.bincount(list(itertools.chain(*expected)), minlength=300)).all()
    kept = [s for s in world.sequences if any(i not in new for i in s[:-1])]
    assert cut.test.targets.tolist() == [sequence[-1] for sequence in kept]
    assert new & set(cut.test.targets.tolist())
    parts = cut.slices(cut.test.targets)
    assert (parts["new"] ^ parts["warm"]).all()
    assert not (parts["tail"] & ~parts["warm"]).any()
    assert (cut.events[cut.test.targets[parts["tail"]]] <= down.TAIL).all()


def test_codebooks_never_see_new_items(down: ModuleType, world: Any) -> None:
    """Other vectors of new items leave the IDs of known ones as they are, with behaviour too."""
    cut = down.split(world, 0)
    other = world.text.copy()
    other[cut.new] = np.random.default_rng(9).standard_normal(other[cut.new].shape)
    settings = {"codebook_size": 16, "num_quantizers": 2, "algorithm": "rqkmeans"}
    for make in (down.ours(**settings), down.behaviour(**settings)):
        first, second = make(world, cut, 0), make(world._replace(text=other), cut, 0)
        assert (first[~cut.new] == second[~cut.new]).all()
        assert (first[cut.new] != second[cut.new]).any()


def test_ranks_are_those_of_a_plain_sort(down: ModuleType, world: Any) -> None:
    """What was had does not compete, and equal scores stand half before, half behind."""
    cut = down.split(world, 0)
    torch.manual_seed(0)
    recipe = dataclasses.replace(down.SasrecRecipe(), dim=8, longest=10)
    rows, size = down.features(down.random_ids(world, cut, 0), False, cut.items)
    model = down.Sasrec(rows, size, None, cut.new, recipe).eval()
    with torch.no_grad():
        model.own[40:60] = model.own[40]  # equal items,
        model.rows[40:60] = model.rows[40]  # so equal scores
    histories = down.last(cut.test, 10, cut.items)
    ranks = down.rank_all(model, histories, block=37)
    model.eval()
    with torch.inference_mode():
        vectors = model.items(torch.arange(cut.items), model.known).numpy()
        for row in range(0, len(ranks), 11):
            had = histories.had[row, : histories.lengths[row]]
            state = model(torch.from_numpy(had)[None], model.known)[0, -1].numpy()
            scores, target = vectors @ state, histories.targets[row]
            others = np.setdiff1d(np.arange(cut.items), [*had, target])
            near = np.abs(scores[others] - scores[target]) < 1e-4
            above = int(((scores[others] > scores[target]) & ~near).sum())
            assert above <= ranks[row] <= above + int(near.sum())
        model.own.zero_()
        assert model.codes is not None
        model.codes.zero_()
    equal = down.rank_all(model, histories)
    competing = np.array([len(np.setdiff1d(np.arange(cut.items), had)) for had in histories.had])
    assert (equal == (competing - 1) // 2).all()


def test_recall_and_ndcg_by_hand(down: ModuleType, world: Any) -> None:
    """Ranks 0, 9 and 10 are worth 1, 1 / log2(11) and nothing."""
    cut = down.split(world, 0)
    warm = np.flatnonzero(~cut.new)[:3]
    found = down.scores_of(np.array([0, 9, 10]), warm, cut)
    assert found["all"]["recall"] == pytest.approx(2 / 3)
    assert found["all"]["ndcg"] == pytest.approx((1 + 1 / np.log2(11)) / 3)
    assert found["new"] == {"recall": 0.0, "ndcg": 0.0, "users": 0}


@pytest.mark.parametrize("prefix", [False, True])
def test_items_share_rows_as_they_share_codes(down: ModuleType, prefix: bool) -> None:
    """A table a level; or a row for every prefix."""
    codes = np.array([[1, 2], [1, 3], [4, 2]], np.uint8)
    rows, size = down.features(codes, prefix, 3)
    assert rows[0, 0] == rows[1, 0] != rows[2, 0]
    assert (rows[0, 1] == rows[2, 1]) != prefix
    assert rows.max() < size
    assert not set(rows[:, 0]) & set(rows[:, 1])


def test_a_wide_beam_finds_the_best_ids_in_order(down: ModuleType, world: Any) -> None:
    """With as many beams as IDs, the search ranks all of them as the decoder scores them one by one."""
    cut = down.split(world, 0)
    codes = np.random.default_rng(0).integers(0, 5, (40, 3)).astype(np.uint8)
    trie = down.PrefixTrie.of(codes)
    torch.manual_seed(1)
    recipe = dataclasses.replace(down.GenerativeRecipe(), dim=16, layers=1, heads=2, longest=4)
    model = down.Generative([5, 5, 5], recipe).eval()
    flat = torch.from_numpy(np.concatenate([down.flat_ids(codes, [5, 5, 5], first=1), np.zeros((1, 3), np.int64)]))
    had = torch.tensor([[3, 7, 40], [1, 9, 12]])
    lengths = torch.tensor([2, 3])
    distinct = np.unique(codes, axis=0)
    nodes, scores = model.search(flat[had], lengths, trie, len(distinct))
    leaves = len(trie.indptr) - 1 - len(trie)
    for user in range(2):
        history = flat[had[user, : lengths[user]]][None]
        wanted = torch.from_numpy(down.flat_ids(distinct, [5, 5, 5], first=1))
        said = []
        with torch.inference_mode():
            for one in wanted:
                logits = model(history, one.expand(1, history.shape[1], 3))
                said.append(
                    sum(
                        float(level[0, -1].log_softmax(0)[one[at] - model.bounds[at]])
                        for at, level in enumerate(logits)
                    )
                )
        order = np.argsort(-np.array(said))
        assert (nodes[user] - leaves).tolist() == order.tolist()
        assert scores[user].tolist() == pytest.approx(np.array(said)[order].tolist(), abs=1e-4)
    assert cut.items == 300


@pytest.mark.parametrize("model", ["sasrec", "generative"])
def test_the_same_run_twice_gives_the_same_figures(
    down: ModuleType, world: Any, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the last digit; another seed gives others; and `check_equal` can fail."""
    recipes = {
        "sasrec": dataclasses.replace(down.QUICK["sasrec"], dim=16, epochs=1),
        "generative": dataclasses.replace(down.QUICK["generative"], dim=16, steps=4),
    }
    first, again, other = (down.measured(model, "random", seed, world, tmp_path, recipes[model]) for seed in (0, 0, 1))
    down.check_equal(first, again, "twice")
    assert "the same figures" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="do not repeat"):
        down.check_equal(first, other, "another seed")


def test_intervals_are_those_of_the_t_distribution(down: ModuleType) -> None:
    """Five values, four degrees of freedom: 2.776 standard errors."""
    mean, half = down.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3.0
    assert half == pytest.approx(2.776 * np.sqrt(2.5 / 5))
