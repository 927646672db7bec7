"""The attribute: lazy, shared between threads, small in a pickle, and honest about failure."""

import copy
import inspect
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from world import ITEM0, SMALL, BareDataset, MixinDataset, SmallDataset, SmallMixinDataset, make_data, vectors_of

from semid_dataset import LazySemanticIds, SemanticIdTable
from semid_dataset.build import pipeline
from semid_dataset.errors import ConfigError, GenerationError, RecursiveAccessError, SemanticIdWarning


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_data(tmp_path / "data")


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry a training, whoever starts it."""
    seen: list[int] = []
    train = pipeline.train_table

    def counted(*args: Any, **kwargs: Any) -> Any:
        seen.append(1)
        return train(*args, **kwargs)

    monkeypatch.setattr(pipeline, "train_table", counted)
    return seen


def test_the_first_access_trains_and_the_next_dataset_finds_the_table(data: Path, trainings: list[int]) -> None:
    """One training serves every dataset of the directory."""
    dataset = SmallDataset(data)
    table = dataset.semantic_id_dict
    assert (table.status, len(table)) == ("trained", 200)
    assert dataset.semantic_id_dict is table
    again = SmallDataset(data).semantic_id_dict
    assert (again.status, again.digest) == ("cached", table.digest)
    assert len(trainings) == 1


def test_every_key_form_finds_the_same_item(data: Path) -> None:
    """The original's end was an int looked up among strings."""
    table = SmallDataset(data).semantic_id_dict
    codes = table[ITEM0 + 5]
    assert codes == table[np.int64(ITEM0 + 5)] == table[str(ITEM0 + 5)]
    assert table[1] == [0, 0, 0]
    assert table.get(1) is None
    assert 1 not in table


def test_no_two_items_share_an_id(data: Path) -> None:
    """And none has the default ID."""
    table = SmallDataset(data).semantic_id_dict
    ids = {tuple(codes) for codes in table.values()}
    assert len(ids) == 200
    assert (0, 0, 0) not in ids


def test_the_class_gives_the_descriptor() -> None:
    """Tools that inspect the class must not start a training."""
    assert isinstance(SmallDataset.semantic_id_dict, LazySemanticIds)


def test_eight_threads_train_once(data: Path, trainings: list[int]) -> None:
    """All of them get the same table object."""
    dataset, tables = SmallDataset(data), []
    barrier = threading.Barrier(8)

    def read() -> None:
        barrier.wait()
        tables.append(dataset.semantic_id_dict)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
    assert len(tables) == 8
    assert len({id(table) for table in tables}) == 1
    assert len(trainings) == 1


def test_a_mapping_that_is_assigned_is_pinned(data: Path, trainings: list[int]) -> None:
    """Every key form finds it, whatever form it came in."""
    dataset = SmallDataset(data)
    dataset.semantic_id_dict = {"7": [1, 2, 3], "8": [4, 5, 6]}
    assert dataset.semantic_id_dict[7] == [1, 2, 3]
    assert dataset.semantic_id_dict.status == "pregenerated"
    assert not trainings
    del dataset.semantic_id_dict
    assert dataset.semantic_id_dict.status == "trained"


@pytest.mark.parametrize("nothing", [{}, None])
def test_an_empty_mapping_leaves_the_attribute_lazy(data: Path, nothing: Any) -> None:
    """The original's loader assigns one in __init__ when it finds no file."""
    dataset = SmallDataset(data)
    dataset.semantic_id_dict = nothing
    assert len(dataset.semantic_id_dict) == 200


def test_anything_else_than_a_mapping_is_refused(data: Path) -> None:
    """The error names the attribute, at the place of the assignment."""
    with pytest.raises(ConfigError, match="semantic_id_dict takes a mapping"):
        SmallDataset(data).semantic_id_dict = [1, 2]  # type: ignore[assignment]


def test_a_base_class_may_read_and_assign_it_in_its_init(data: Path) -> None:
    """The official dataset does both."""

    class Official(BareDataset):
        def __init__(self, data_dir: Path) -> None:
            super().__init__(data_dir)
            self.semantic_id_dict: Any = {}
            self.seen = len(self.semantic_id_dict)

    class Test(Official):
        semantic_id_dict = LazySemanticIds(config=SMALL)

    assert Test(data).seen == 200


def test_embeddings_in_memory_are_used_where_there_are_no_files(tmp_path: Path) -> None:
    """The official dataset holds them already."""
    dataset = SmallDataset(tmp_path)
    dataset.mm_emb_dict = {"81": {ITEM0 + k: vector for k, vector in enumerate(vectors_of(50))}}
    assert (dataset.semantic_id_dict.status, len(dataset.semantic_id_dict)) == ("trained", 50)
    other = SmallDataset(tmp_path)
    other.mm_emb_dict = dataset.mm_emb_dict
    assert other.semantic_id_dict.status == "cached"


def test_an_attribute_that_is_missing_is_an_error_with_its_cause(data: Path) -> None:
    """An AttributeError would be swallowed by a class that delegates in __getattr__."""

    class Delegating(SmallDataset):
        def __init__(self) -> None:
            pass

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(f"nothing called {name}")

    with pytest.raises(RuntimeError, match=r"needs the attributes 'data_dir'") as caught:
        _ = Delegating().semantic_id_dict
    assert isinstance(caught.value.__cause__, AttributeError)


def test_reading_it_while_it_is_made_is_an_error(data: Path) -> None:
    """The alternative is a deadlock or an endless recursion."""

    class Recursive(BareDataset):
        semantic_id_dict = LazySemanticIds(data_dir="folder", config=SMALL)

        @property
        def folder(self) -> Path:
            return Path(str(self.semantic_id_dict))

    with pytest.raises(RecursiveAccessError, match="Read it afterwards"):
        _ = Recursive(data).semantic_id_dict


def test_an_interrupted_training_leaves_nothing_behind(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is free and the next access trains."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    dataset = SmallDataset(data)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "train_table", interrupt)
        with pytest.raises(KeyboardInterrupt):
            _ = dataset.semantic_id_dict
    assert dataset.semantic_id_dict.status == "trained"


def test_hasattr_and_inspection_behind_a_closed_gate_touch_nothing(
    data: Path, monkeypatch: pytest.MonkeyPatch, trainings: list[int]
) -> None:
    """Debuggers read every attribute."""
    monkeypatch.setenv("ALLOW_SEMANTIC_GENERATION", "0")
    before = sorted(data.rglob("*"))
    with pytest.warns(SemanticIdWarning):
        assert hasattr(SmallDataset(data), "semantic_id_dict")
    with pytest.warns(SemanticIdWarning):
        inspect.getmembers(SmallDataset(data))
    assert sorted(data.rglob("*")) == before
    assert not (Path(os.environ["XDG_CACHE_HOME"]) / "semid_dataset").exists()
    assert not trainings


@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_a_pickled_dataset_carries_a_path_and_no_table(data: Path, protocol: int) -> None:
    """Eight spawned workers must not receive eight tables."""
    fresh, used = SmallDataset(data), SmallDataset(data)
    digest = used.semantic_id_dict.digest
    extra = len(pickle.dumps(used, protocol)) - len(pickle.dumps(fresh, protocol))
    assert extra < 1000
    twin = pickle.loads(pickle.dumps(used, protocol))
    assert twin.semantic_id_dict.digest == digest
    assert pickle.loads(pickle.dumps(fresh, protocol)).semantic_id_dict.digest == digest


def test_copies_share_the_table(data: Path) -> None:
    """It is read-only, so there is nothing to copy."""
    dataset = SmallDataset(data)
    table = dataset.semantic_id_dict
    assert copy.copy(dataset).semantic_id_dict is table
    assert copy.deepcopy(dataset).semantic_id_dict is table


def test_two_instances_resolve_on_their_own(tmp_path: Path) -> None:
    """A descriptor is one object for all of them."""
    first, second = SmallDataset(make_data(tmp_path / "a", 50)), SmallDataset(make_data(tmp_path / "b", 60, seed=1))
    assert (len(first.semantic_id_dict), len(second.semantic_id_dict)) == (50, 60)


def test_preparing_with_another_parent_resolves_again(data: Path, tmp_path: Path) -> None:
    """A base class's __init__ may have read the attribute before the parent was known."""
    parent = SmallDataset(make_data(tmp_path / "parent", seed=5)).semantic_id_dict
    dataset = SmallMixinDataset(data)
    own = dataset.semantic_id_dict
    table = dataset.prepare_semantic_ids(parent=parent.path)
    assert table.digest != own.digest
    assert list(table) == list(parent)
    assert dataset.semantic_id_dict is table
    assert dataset.prepare_semantic_ids(parent=parent.path) is table


def test_preparing_twice_is_one_training(data: Path, trainings: list[int]) -> None:
    """A script may be careful more than once."""
    dataset = SmallMixinDataset(data)
    assert dataset.prepare_semantic_ids() is dataset.prepare_semantic_ids()
    assert len(trainings) == 1


def test_the_mixin_needs_no_configuration(tmp_path: Path) -> None:
    """The recommended way: a base class, nothing else."""
    dataset = MixinDataset(make_data(tmp_path, 60, dim=4))
    assert dataset.semantic_id_dict.levels == 4
    assert dataset.semantic_id_dict.codebook_sizes == (256,) * 4


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_sees_the_same_ids_with_and_without_workers(data: Path, method: str, workers: int) -> None:
    """What is prepared before the loader is what its workers serve."""
    from torch.utils.data import DataLoader

    dataset = SmallMixinDataset(data)
    table = dataset.prepare_semantic_ids()
    context = {"multiprocessing_context": method} if workers else {}
    loader = DataLoader(dataset, batch_size=4, num_workers=workers, collate_fn=list, **context)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
        batches = [row for batch in loader for row in batch]
    assert batches == [table[ITEM0 + k] for k in range(8)]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_worker_that_finds_no_ids_names_the_call_that_was_missed(data: Path, method: str) -> None:
    """Training in a daemonic worker can hang for ever; default IDs there would differ from the parent's."""
    from torch.utils.data import DataLoader

    loader = DataLoader(
        SmallMixinDataset(data), batch_size=4, num_workers=1, collate_fn=list, multiprocessing_context=method
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
        with pytest.raises(GenerationError, match=r"prepare_semantic_ids\(\)"):
            list(loader)


def test_a_rank_without_ids_stops(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks with different IDs are worse than a stop."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ALLOW_SEMANTIC_GENERATION", "0")
    with pytest.raises(GenerationError, match="rank of 2"):
        _ = SmallDataset(data).semantic_id_dict


def test_a_fork_while_a_thread_trains_does_not_deadlock(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child's copy of the lock is held by a thread that does not exist there."""
    training, release = threading.Event(), threading.Event()
    dataset = SmallDataset(data)
    train = pipeline.train_table

    def slow(*args: Any, **kwargs: Any) -> Any:
        training.set()
        release.wait(30)
        return train(*args, **kwargs)

    monkeypatch.setattr(pipeline, "train_table", slow)
    thread = threading.Thread(target=lambda: dataset.semantic_id_dict)
    thread.start()
    assert training.wait(30)
    monkeypatch.setenv("ALLOW_SEMANTIC_GENERATION", "0")  # the child reads without training
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = multiprocessing.get_context("fork").Process(target=_read_in_child, args=(dataset,))
        child.start()
    child.join(20)
    stuck = child.is_alive()
    if stuck:
        child.kill()
    monkeypatch.delenv("ALLOW_SEMANTIC_GENERATION")
    release.set()
    thread.join(30)
    assert not stuck
    assert child.exitcode == 0
    assert dataset.semantic_id_dict.status == "trained"


def _read_in_child(dataset: SmallDataset) -> None:
    warnings.simplefilter("ignore")
    assert dataset.semantic_id_dict.status == "default"


def test_a_warm_access_leaves_torch_out(data: Path) -> None:
    """An inference process that only looks IDs up starts in milliseconds."""
    _ = SmallDataset(data).semantic_id_dict
    code = (
        "import sys, pathlib, world; d = world.SmallDataset(pathlib.Path(sys.argv[1])); t = d.semantic_id_dict;"
        "assert t.status == 'cached', t.reason; t[world.ITEM0]; t.codes([world.ITEM0]);"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(data)], check=True, cwd=Path(__file__).parent)


def test_eight_processes_on_an_empty_cache_train_once(data: Path, tmp_path: Path) -> None:
    """Those who lose the race serve what the winner wrote."""
    start, count = tmp_path / "start", tmp_path / "trainings"
    count.mkdir()
    code = (
        "import sys, time, uuid, pathlib, world; from semid_dataset.build import pipeline\n"
        "train = pipeline.train_table\n"
        "data, start, count = map(pathlib.Path, sys.argv[1:])\n"
        "def counted(*a, **k):\n"
        "    (count / uuid.uuid4().hex).touch()\n"
        "    return train(*a, **k)\n"
        "pipeline.train_table = counted\n"
        "while not start.exists(): time.sleep(0.01)\n"
        "print(world.SmallDataset(data).semantic_id_dict.digest)\n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(data), str(start), str(count)]
    here = Path(__file__).parent
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, cwd=here, env=environment) for _ in range(8)]
    time.sleep(0.5)
    start.touch()
    digests = {process.communicate(timeout=55)[0] for process in processes}
    assert len(digests) == 1
    assert len(digests.pop().strip()) == 64
    assert len(list(count.iterdir())) == 1


def test_one_seed_gives_one_digest(tmp_path: Path) -> None:
    """Two machines that train on the same data agree."""
    digests = set()
    for name in ("a", "b"):
        folder = make_data(tmp_path / name)
        dataset = SmallDataset(folder)
        os.environ["XDG_CACHE_HOME"] = str(tmp_path / f"cache-{name}")
        assert dataset.semantic_id_dict.status == "trained"
        digests.add(dataset.semantic_id_dict.digest)
    assert len(digests) == 1


def test_a_slotted_class_without_a_dict_is_told_so() -> None:
    """There is no place to keep the table in."""

    class Slotted:
        __slots__ = ("data_dir", "mm_emb_ids")
        semantic_id_dict = LazySemanticIds()

    with pytest.raises(ConfigError, match="__dict__"):
        _ = Slotted().semantic_id_dict


def test_messages_come_once_for_default_ids(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One warning that says why; the table sticks until it is forgotten."""
    dataset = SmallDataset(tmp_path)
    with warnings.catch_warnings(record=True) as seen, caplog.at_level(logging.INFO, "semid_dataset"):
        warnings.simplefilter("always")
        table = dataset.semantic_id_dict
        assert dataset.semantic_id_dict is table
    assert len(seen) == 1
    assert "creative_emb" in str(seen[0].message)
    assert isinstance(table, SemanticIdTable)
    assert (table.status, table[ITEM0], bool(table)) == ("default", [0, 0, 0], False)
