"""Whatever a parent did before it forked, its children answer with the same IDs, or say at once what to call."""

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from parents import METHODS, STATES
from world import ITEM0, SmallDataset, SmallMixinDataset, make_data

from semid_dataset import _process
from semid_dataset._process import check_imports, fellow_ranks, unforked
from semid_dataset.codec import _rqvae
from semid_dataset.codec import train as training
from semid_dataset.errors import ConfigError, ForkError, GenerationError, SemanticIdWarning

TESTS = Path(__file__).parent
FORK = multiprocessing.get_context("fork")


def program(*arguments: Any, timeout: float, threads: str = "2", **variables: str) -> list[Any]:
    """Run a program whose torch has threads, as it does where nobody forbids it; return its lines, which are JSON."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=TESTS,
        env=os.environ | {"OMP_NUM_THREADS": threads} | variables,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory whose IDs are there."""
    return make_data(tmp_path_factory.mktemp("module") / "data", 300)


def check(found: list[Any], states: tuple[str, ...], methods: tuple[str, ...]) -> None:
    """Make sure that every child answered, and all alike."""
    assert [tuple(line[:3]) for line in found] == [
        (state, method, cache) for state in states for method in methods for cache in ("cold", "cached")
    ]
    assert [line for line in found if line[3][0] != {"cold": "trained", "cached": "cached"}[line[2]]] == []
    assert len({json.dumps(line[3][1:]) for line in found}) == 1


@pytest.mark.timeout(200)
def test_children_of_a_parent_that_did_anything_answer_alike(data: Path, tmp_path: Path) -> None:
    """Forked processes and threads, after each thing more that their parent did; the rest of the matrix is long."""
    _ = SmallDataset(data).semantic_id_dict
    found = program("parents.py", data, tmp_path, *STATES, "--", "fork", "thread", timeout=190)
    check(found, STATES, ("fork", "thread"))


@pytest.mark.stress
@pytest.mark.timeout(600)
@pytest.mark.parametrize("state", STATES)
def test_children_of_every_kind_and_a_parent_of_every_kind_answer_alike(state: str, data: Path, tmp_path: Path) -> None:
    """The whole matrix: {fork, spawn, forkserver, thread} x what a parent of its own did x {cold, cached}."""
    _ = SmallDataset(data).semantic_id_dict
    check(program("parents.py", data, tmp_path, state, "--", *METHODS, timeout=590), (state,), METHODS)


PRELOADED = """
import json, os, pathlib, sys, warnings
warnings.simplefilter("ignore")
import parents, world
data = pathlib.Path(sys.argv[1])
dataset = world.SmallDataset(data)
vectors = world.vectors_of(300)
before = dataset.semantic_id_dict.quantizer.encode(vectors)     # the parent's own object, loaded and used
parents.use_torch()
world.write_embeddings(data, world.vectors_of(320))

def worker(depth=0):
    table = dataset.semantic_id_dict
    same = bool((table.quantizer.encode(vectors) == before).all())
    table.quantizer.decode(before), table.quantizer.save_pretrained(data.parent / f"bare{os.getpid()}")
    other = world.SmallDataset(data).semantic_id_dict           # has new items to add
    print(json.dumps([same, other.status in ("extended", "cached"), len(other), other.digest]), flush=True)
    if depth == 0:                                              # a worker's own child
        child = os.fork()
        if child == 0:
            worker(1), os._exit(0)
        assert os.waitpid(child, 0)[1] == 0

children = []
for _ in range(2):
    child = os.fork()
    if child == 0:
        try:
            worker()
        finally:
            os._exit(0)
    children.append(child)
for child in children:
    os.waitpid(child, 0)
"""


@pytest.mark.timeout(120)
def test_preloaded_workers_use_their_parents_quantizer_and_extend(tmp_path: Path) -> None:
    """A server that loads first and forks then: encoding, decoding, saving, extending, also in a worker's own child."""
    data = make_data(tmp_path / "data", 300)
    found = program("-c", PRELOADED, data, timeout=110)
    assert len(found) == 4
    assert {json.dumps(line[:3]) for line in found} == {json.dumps([True, True, 320])}
    assert len({line[3] for line in found}) == 1


STREAMED = """
import json, os, pathlib, sys, warnings
warnings.simplefilter("ignore")
import parents, world
parents.use_torch()
child = os.fork()
if child == 0:
    os.environ["SEMID_MEMORY_LIMIT"] = "1M"
    from semid_dataset.build import memory
    memory.BASE_BYTES = memory.ROOM_BYTES = 0
    table = world.SmallDataset(pathlib.Path(sys.argv[1])).semantic_id_dict
    print(json.dumps([table.status, len(table), table.reason]), flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.timeout(120)
def test_a_forked_child_streams_what_is_larger_than_its_memory(tmp_path: Path) -> None:
    """The way in parts takes other processes, and torch in this one."""
    data = make_data(tmp_path / "data", 20_000, dim=16)
    assert [line[:2] for line in program("-c", STREAMED, data, timeout=110)] == [["trained", 20_000]]


WHILE_TRAINING = """
import json, os, pathlib, sys, threading, warnings
warnings.simplefilter("ignore")
import world
from semid_dataset.codec import _codebooks as training
parent = os.getpid()
reached, forked, seen = threading.Event(), threading.Event(), []
refit = training.refit

def slow(*arguments, **settings):
    if os.getpid() == parent:
        reached.set(), forked.wait(60)
    return refit(*arguments, **settings)

training.refit = slow
data = pathlib.Path(sys.argv[1])
dataset = world.SmallDataset(data)
thread = threading.Thread(target=lambda: dataset.semantic_id_dict)
thread.start()
assert reached.wait(60)
child = os.fork()
if child == 0:
    table = dataset.semantic_id_dict                 # the parent's object, whose lock another thread held
    print(json.dumps(["child", table.status, table.digest]), flush=True)
    os._exit(0)
forked.set()
os.waitpid(child, 0), thread.join()
print(json.dumps(["parent", dataset.semantic_id_dict.status, dataset.semantic_id_dict.digest]), flush=True)
"""


@pytest.mark.timeout(120)
def test_a_child_forked_while_another_thread_trains_gets_its_ids(tmp_path: Path) -> None:
    """It waits for the training of its parent, and never for the thread that it does not have."""
    found = program("-c", WHILE_TRAINING, make_data(tmp_path / "data"), timeout=110)
    assert [line[:2] for line in found] == [["child", "cached"], ["parent", "trained"]]
    assert found[0][2] == found[1][2]


IMPORTING = """
import importlib.machinery, json, os, pathlib, signal, sys, threading, warnings
warnings.simplefilter("ignore")
import world
from semid_dataset.errors import ForkError
world.SmallDataset(pathlib.Path(sys.argv[1])).semantic_id_dict
held, release = threading.Event(), threading.Event()

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name != "torch.version":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module
        def slowly(module):
            held.set(), release.wait(60)
            run(module)
        spec.loader.exec_module = slowly
        return spec

sys.meta_path.insert(0, Slow())
thread = threading.Thread(target=lambda: __import__("torch"))
thread.start()
assert held.wait(60)
for folder in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        signal.alarm(40)
        table = None
        try:
            table = world.SmallDataset(pathlib.Path(folder)).semantic_id_dict
            answer = [table.status]
            table.quantizer
        except ForkError as error:
            answer = [table and table.status, str(error)]
        print(json.dumps(answer), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
release.set(), thread.join()
"""


@pytest.mark.timeout(120)
def test_a_child_forked_while_torch_is_imported_says_what_to_call(data: Path, tmp_path: Path) -> None:
    """Python's lock of that module is never released in it; what is cached needs no torch, and answers."""
    _ = SmallDataset(data).semantic_id_dict
    cached, cold = program("-c", IMPORTING, data, make_data(tmp_path / "data"), timeout=110)
    assert cached[0] == "cached"
    assert cold[0] is None
    for answer in (cached, cold):
        assert "importing torch" in answer[1]
        assert "prepare_semantic_ids()" in answer[1]


def test_threads_that_live_lock_nothing_for_ever() -> None:
    """A module that is just being imported here will be there in a moment."""
    check_imports("torch", "numpy", "semid_dataset")


def forked(work: Callable[[], object]) -> int:
    """Return the exit code of a forked child that does something; -9 if it hangs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = FORK.Process(target=work)
        child.start()
    child.join(50)
    if child.is_alive():
        child.kill()
        child.join()
    assert child.exitcode is not None
    return child.exitcode


def test_two_threads_of_a_child_share_the_lock_of_a_dataset(tmp_path: Path) -> None:
    """They find their parent's lock, and make one of their own, not two."""
    dataset = SmallDataset(make_data(tmp_path, 60))
    slot = SmallDataset.semantic_id_dict._slot(dataset)
    held = slot.lock()
    held.acquire()

    def in_child() -> None:
        barrier = threading.Barrier(8)
        locks: list[int] = []

        def look() -> None:
            barrier.wait()
            locks.append(id(slot.lock()))

        threads = [threading.Thread(target=look) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert len(locks) == 8
        assert len(set(locks)) == 1
        assert id(held) not in locks

    assert forked(in_child) == 0
    held.release()


def test_a_parent_that_used_a_gpu_leaves_the_cpu_to_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA cannot be used after a fork: "auto" takes the CPU, a named GPU is an error that says what to call."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert training.chosen_device("auto") == "cuda"
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    assert training.chosen_device("auto") == "cpu"
    with pytest.raises(ForkError, match=r"prepare_semantic_ids\(\)"):
        training.chosen_device("cuda:0")
    with pytest.raises(ConfigError):
        training.chosen_device("abacus")


def test_where_torch_forbids_training_after_a_fork_that_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some versions do; default IDs in its place would be taken for IDs."""

    def forbidden(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Unable to handle autograd's threading in combination with fork-based multiprocessing.")

    data = make_data(tmp_path / "data")
    with monkeypatch.context() as patch:
        patch.setattr(_rqvae, "_epochs", forbidden)
        with pytest.raises(ForkError, match=r"prepare_semantic_ids\(\).*rqkmeans"):
            _ = SmallDataset(data).semantic_id_dict
    assert not list(data.rglob("*.safetensors"))
    assert SmallDataset(data).semantic_id_dict.status == "trained"


# --- ranks ---


@pytest.mark.parametrize(
    "variables",
    [
        {"WORLD_SIZE": "2"},
        {"SLURM_NTASKS": "2", "SLURM_PROCID": "0"},
        {"SLURM_PROCID": "1"},
        {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"},
        {"PMI_SIZE": "2"},
        {"LOCAL_WORLD_SIZE": "2"},
        {"RANK": "1"},
        {"LOCAL_RANK": "3"},
    ],
)
def test_a_rank_of_any_launcher_stops_instead_of_taking_default_ids(
    variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zeros in one rank and IDs in the others ruin a model in silence."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(GenerationError, match=r"in one rank of \d"):
        _ = SmallDataset(tmp_path).semantic_id_dict


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"WORLD_SIZE": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "3"},
        {"SLURM_NTASKS": "8"},
        {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
        {"OMPI_COMM_WORLD_SIZE": "1", "LOCAL_RANK": "0", "RANK": "many"},
    ],
)
def test_a_process_alone_degrades(variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One task of a job, or a batch script, has nobody to disagree with."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.warns(SemanticIdWarning):
        assert SmallDataset(tmp_path).semantic_id_dict.status == "default"


def test_an_initialized_process_group_knows_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group of two says so without any variable; a group of one says that nobody else is there."""
    import torch.distributed as dist

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    with pytest.raises(GenerationError, match="in one rank of 2"):
        _ = SmallDataset(tmp_path).semantic_id_dict
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)
    assert fellow_ranks(8) is None


SPAWNED = """
import json, os, pathlib, sys, warnings
import world
from semid_dataset.errors import GenerationError

def rank(number, folder):
    warnings.simplefilter("ignore")
    try:
        said = world.SmallDataset(pathlib.Path(folder)).semantic_id_dict.status
    except GenerationError as error:
        said = str(error)
    os.write(1, json.dumps([number, said]).encode() + b"\\n")  # at once: both write there

if __name__ == "__main__":
    import torch.multiprocessing
    torch.multiprocessing.spawn(rank, (sys.argv[1],), nprocs=2)
"""


@pytest.mark.timeout(120)
def test_children_of_torchs_spawn_are_ranks(tmp_path: Path) -> None:
    """Also before they have joined a group, and without one."""
    script = tmp_path / "ranks.py"
    script.write_text(SPAWNED)
    found = program(script, tmp_path / "nothing", timeout=110, PYTHONPATH=str(TESTS))
    assert sorted(line[0] for line in found) == [0, 1]
    assert all("in one rank of several" in line[1] for line in found)


# --- what runs datasets ---


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_loader_workers_of_every_kind_read_and_encode(method: str, data: Path) -> None:
    """After the parent has used torch; their items are looked up in the table that it prepared."""
    from torch.utils.data import DataLoader

    dataset = SmallMixinDataset(data)
    table = dataset.prepare_semantic_ids()
    loader = DataLoader(dataset, batch_size=4, num_workers=1, collate_fn=list, multiprocessing_context=method)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
        assert [row for batch in loader for row in batch] == [table[ITEM0 + k] for k in range(8)]


def test_a_loop_as_lightnings_test_and_predict_reads_ids_first_there(tmp_path: Path) -> None:
    """All of it within inference mode, the first access, too; afterwards the model is trained on."""
    import torch

    dataset = SmallMixinDataset(make_data(tmp_path / "data"))
    embedding = torch.nn.Embedding(17, 4, padding_idx=0)
    with torch.inference_mode():
        table = dataset.semantic_id_dict
        codes = torch.from_numpy(table.codes([ITEM0, ITEM0 + 1], offset=1).astype("int64"))
        predicted = embedding(codes)
    assert table.status == "trained"
    assert predicted.is_inference()
    again = torch.from_numpy(table.codes([ITEM0, ITEM0 + 1], offset=1).astype("int64"))
    embedding(again).sum().backward()
    assert embedding.weight.grad is not None


def test_forks_are_counted() -> None:
    """What a process locked is not its children's."""
    before = _process.forks()

    def in_child() -> None:
        assert _process.forks() == before + 1

    assert forked(in_child) == 0
    assert _process.forks() == before


def test_a_fork_waits_for_products_of_other_threads() -> None:
    """OpenBLAS, which ends its threads first, would wait for ever; nested products and the forker's own pass."""
    inside, leave, forked_then = threading.Event(), threading.Event(), threading.Event()

    def multiply() -> None:
        with unforked(), unforked():
            inside.set()
            leave.wait(30)

    def fork() -> None:
        with unforked():
            assert forked(lambda: None) == 0
        forked_then.set()

    threads = [threading.Thread(target=multiply), threading.Thread(target=fork)]
    threads[0].start()
    assert inside.wait(30)
    threads[1].start()
    assert not forked_then.wait(0.3)
    leave.set()
    assert forked_then.wait(60)
    for thread in threads:
        thread.join(30)

    def in_child() -> None:
        with unforked():
            assert forked(lambda: None) == 0

    assert forked(in_child) == 0


FORKING = """
import itertools, json, os, pathlib, random, sys, threading, time, warnings
warnings.simplefilter("ignore")
import world
folder, done = pathlib.Path(sys.argv[1]), [0]

def train():
    for number in itertools.count():
        data, first = folder / str(number), 10**9 * (number + 1)
        world.write_embeddings(data, world.vectors_of(3000, 200, seed=number), first=first)
        world.write_embeddings(data, world.vectors_of(3000, 300, seed=number), "82", first=first)
        assert world.SmallDataset(data, ("81", "82")).semantic_id_dict.status == "trained"
        done[0] += 1

threading.Thread(target=train, daemon=True).start()
while not done[0]:
    time.sleep(0.1)
dice = random.Random(0)
for number in range(60):
    time.sleep(dice.random() * 0.1)
    child = os.fork()
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
print(json.dumps(["forked", number + 1]), flush=True)
os._exit(0)
"""


@pytest.mark.stress
@pytest.mark.timeout(400)
def test_forks_beside_a_training_never_block(tmp_path: Path) -> None:
    """Two features, whose products are NumPy's; before, the first few forks stopped the program."""
    assert program("-c", FORKING, tmp_path, timeout=390) == [["forked", 60]]
