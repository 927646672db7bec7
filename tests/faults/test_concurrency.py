"""Rows 1, 2, 3, 12, 13, 18: many processes on one cache, with a lock that works, lies, fails, hangs or dies."""

import fcntl
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from faultkit import (
    LINEAGE,
    TESTS,
    digest_of,
    finish,
    injecting,
    need_strace,
    read_digest,
    root_at,
    start,
    stuck,
    wait_for,
)
from world import ITEM0, SMALL, SmallDataset, SmallMixinDataset, make_data

from semid_dataset import resolve
from semid_dataset.build import pipeline
from semid_dataset.cache import cache, folders, lock
from semid_dataset.environment import Context
from semid_dataset.errors import GenerationError, LockTimeoutError, SemanticIdWarning
from semid_dataset.inputs import discover as sources

FORK = multiprocessing.get_context("fork")  # torch is loaded by then: 16 children that import it take a minute


def read_together(data: Path, processes: int, tmp_path: Path, prepare: Callable[[], None] = lambda: None) -> list[str]:
    """Read the attribute in so many new processes at once; return their digests. Trainings leave a file each."""
    count, answers, go = tmp_path / "trainings", tmp_path / "answers", tmp_path / "go"
    for folder in (count, answers):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    go.unlink(missing_ok=True)

    def child(number: int) -> None:
        prepare()
        train = pipeline.train_table

        def counted(*args: Any, **kwargs: Any) -> Any:
            (count / uuid.uuid4().hex).touch()
            return train(*args, **kwargs)

        pipeline.train_table = counted  # type: ignore[assignment]
        wait_for(go)
        (answers / str(number)).write_text(SmallDataset(data).semantic_id_dict.digest)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        children = [FORK.Process(target=child, args=(number,)) for number in range(processes)]
        for process in children:
            process.start()
    go.touch()
    for process in children:
        process.join(300)
        assert process.exitcode == 0
    return [path.read_text() for path in answers.iterdir()]


def test_of_sixteen_cold_processes_one_trains(data: Path, tmp_path: Path) -> None:
    """Row 1: the others serve what it published."""
    digests = read_together(data, 16, tmp_path)
    assert len(digests) == 16
    assert len(set(digests)) == 1
    assert len(list((tmp_path / "trainings").iterdir())) == 1


@pytest.mark.stress
@pytest.mark.timeout(900)
def test_of_sixty_four_cold_processes_one_trains(tmp_path: Path, tally: Counter[str]) -> None:
    """Row 1, five rounds."""
    for number in range(5):
        digests = read_together(make_data(tmp_path / f"data{number}", seed=number), 64, tmp_path)
        tally["runs"] += 64
        tally["hits"] += len(digests)
        tally["wrong answers"] += len(set(digests)) - 1
        assert (len(digests), len(set(digests))) == (64, 1)
        assert len(list((tmp_path / "trainings").iterdir())) == 1


def test_processes_that_all_believe_to_hold_the_lock_serve_one_table(data: Path, tmp_path: Path) -> None:
    """Row 2: work is done twice and one result counts, also where trainings would differ."""

    def useless() -> None:
        fcntl.flock = lambda *_: None  # type: ignore[assignment]
        train = pipeline.train_table

        def another(embeddings: Any, config: Any, *rest: Any) -> Any:  # as on machines whose sums round otherwise
            from dataclasses import replace

            time.sleep(0.3)
            return train(embeddings, replace(config, seed=os.getpid()), *rest)

        pipeline.train_table = another  # type: ignore[assignment]

    digests = read_together(data, 3, tmp_path, useless)
    assert len(digests) == 3
    assert len(set(digests)) == 1
    assert len(list((tmp_path / "trainings").iterdir())) > 1


GENERATE = (
    "import sys, time, pathlib, faultkit; from semid_dataset.cache import cache, folders, lock\n"
    "root, seed, go = faultkit.root_at(pathlib.Path(sys.argv[1])), int(sys.argv[2]), pathlib.Path(sys.argv[3])\n"
    "inside = go.with_name(f'inside{seed}')\n"
    "ready = lambda: faultkit.read_digest(root) is not None\n"
    "faultkit.wait_for(go)\n"
    "with lock.take_lease(root, 'q', timeout=60, ready=ready) as lease:\n"
    "    if lease is not None and not ready():\n"
    "        inside.touch(); time.sleep(0.5)\n"
    "        cache.publish_table(root, faultkit.LINEAGE, 0, [faultkit.table_bytes(seed)])\n"
    "print(faultkit.read_digest(root))\n"
)


def test_a_lock_that_everybody_gets_costs_work_and_no_correctness(tmp_path: Path) -> None:
    """Row 2, with the kernel's answer forged: both are inside at once, and one value is published."""
    under = injecting("flock:retval=0")
    go = tmp_path / "go"
    children = [start(GENERATE, tmp_path / "cache", seed, go, under=under) for seed in (1, 2, 3)]
    go.touch()
    digests = {finish(child).strip() for child in children}
    assert len(list(tmp_path.glob("inside*"))) > 1
    assert len(digests) == 1
    assert digests <= {digest_of(seed) for seed in (1, 2, 3)}


@pytest.mark.parametrize("error", ["ENOLCK", "EOPNOTSUPP", "EIO", "ESTALE", "ENOSYS"])
def test_a_lock_that_fails_is_done_without(tmp_path: Path, error: str) -> None:
    """Row 3: a warning, the table, and no marker that would block the next."""
    (tmp_path / "go").touch()
    child = start(
        "import warnings; warnings.simplefilter('always')\n" + GENERATE,
        *(tmp_path / "cache", 1, tmp_path / "go"),
        under=injecting(f"flock:error={error}"),
    )
    out, err = child.communicate(timeout=50)
    assert (child.returncode, out.strip()) == (0, digest_of(1)), err
    assert "going on without it" in err
    assert {path.name for path in (tmp_path / "cache/v1/locks").iterdir()} <= {"q.lock", "q.owner"}


HOLD = (
    "import sys, time, pathlib, faultkit; from semid_dataset.cache import cache, folders, lock\n"
    "with lock.take_lease(faultkit.root_at(pathlib.Path(sys.argv[1])), sys.argv[2], timeout=60, ready=lambda: False):\n"
    "    pathlib.Path(sys.argv[3]).touch(); time.sleep(float(sys.argv[4]))\n"
)


def hold(root: folders.CacheFolder, name: str, marker: Path) -> "subprocess.Popen[str]":
    child = start(HOLD, root.path, name, marker, 300)
    wait_for(marker)
    return child


@pytest.mark.stress
@pytest.mark.timeout(300)
def test_a_dead_owners_lease_is_taken_within_a_second(tmp_path: Path, tally: Counter[str]) -> None:
    """Row 12: the kernel frees its lock, two waiters are there, one of them gets it."""
    root = root_at(tmp_path / "cache")
    for number in range(10):
        owner = hold(root, "q", tmp_path / f"held{number}")
        inside = [tmp_path / f"inside{number}-{waiter}" for waiter in range(2)]
        waiters = [start(HOLD, root.path, "q", marker, 0) for marker in inside]
        time.sleep(1.5)
        assert not any(marker.exists() for marker in inside)
        owner.kill()
        died = time.time()
        while not any(marker.exists() for marker in inside):
            assert time.time() - died < 20
            time.sleep(0.005)
        took = time.time() - died
        for waiter in waiters:
            finish(waiter)
        owner.communicate()
        tally["runs"] += 1
        tally["faults injected"] += 1
        assert took < 1.0


def test_a_forked_child_does_not_keep_its_dead_parents_lock(tmp_path: Path) -> None:
    """Row 12: a training forks (loaders do) and is killed; the child lives on and nobody waits for it."""
    root = root_at(tmp_path / "cache")
    code = (
        "import os, sys, time, pathlib, faultkit; from semid_dataset.cache import cache, folders, lock\n"
        "with lock.take_lease(faultkit.root_at(pathlib.Path(sys.argv[1])), 'q', timeout=60, ready=lambda: False):\n"
        "    child = os.fork()\n"
        "    if child == 0: os.close(1), os.close(2), time.sleep(30), os._exit(0)\n"
        "    print(child, flush=True); os.kill(os.getpid(), 9)\n"
    )
    owner = start(code, root.path)
    child = int(owner.communicate(timeout=50)[0])
    try:
        with lock.take_lease(root, "q", timeout=10, ready=lambda: False) as lease:
            assert lease is not None
    finally:
        os.kill(child, signal.SIGKILL)


def cache_key_of(data: Path) -> tuple[folders.CacheFolder, str]:
    """Where the processes that ask for this directory's IDs meet."""
    resolution = resolve.Resolution(resolve.Request(data, ("81",), config=SMALL), Context.at_door(), may_generate=True)
    cache_key, _ = resolution.cache_key(sources.find_sources(data, ["81"]))
    return next(iter(resolution.cache.folders)), cache_key.name


def test_an_owner_that_hangs_ends_in_default_ids_and_under_ranks_in_an_error(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Row 13: waiting is said with the owner's name; the timeout names its setting; ranks stop."""
    root, name = cache_key_of(data)
    monkeypatch.setattr(lock, "SAY_SECONDS", 0.3)
    monkeypatch.setenv("SEMID_LOCK_TIMEOUT", "1.0")
    owner = hold(root, name, tmp_path / "held")
    try:
        with stuck(owner.pid):
            with caplog.at_level("INFO", "semid_dataset"), pytest.warns(SemanticIdWarning, match="SEMID_LOCK_TIMEOUT"):
                table = SmallDataset(data).semantic_id_dict
            assert (table.status, table[ITEM0]) == ("default", [0, 0, 0])
            assert f"Waiting for process {owner.pid} on " in caplog.text
            monkeypatch.setenv("WORLD_SIZE", "2")
            with pytest.raises(GenerationError, match=f"process {owner.pid} .*SEMID_LOCK_TIMEOUT") as caught:
                _ = SmallDataset(data).semantic_id_dict
            assert isinstance(caught.value.__cause__, LockTimeoutError)
    finally:
        owner.kill()
        owner.communicate()
    monkeypatch.delenv("WORLD_SIZE")
    assert SmallDataset(data).semantic_id_dict.status == "trained"


def test_waiting_is_said_every_ten_seconds() -> None:
    """Row 13: the figures that the documentation promises."""
    from semid_dataset import SemanticIdConfig

    assert (lock.SAY_SECONDS, SemanticIdConfig().lock_timeout) == (10.0, 300.0)


# --- long ---


@pytest.mark.stress
@pytest.mark.timeout(600)
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_loader_workers_of_every_kind_serve_the_same_ids(data: Path, method: str, persistent: bool) -> None:
    """Row 18: three epochs, with workers that stay and workers that are made anew."""
    from torch.utils.data import DataLoader

    dataset = SmallMixinDataset(data)
    table = dataset.prepare_semantic_ids()
    loader = DataLoader(
        dataset,
        batch_size=2,
        num_workers=2,
        collate_fn=list,
        multiprocessing_context=method,
        persistent_workers=persistent,
    )
    for _ in range(3):
        assert [row for batch in loader for row in batch] == [table[ITEM0 + k] for k in range(8)]


RANK = (
    "import os, sys, pathlib, world\n"
    "table = world.SmallDataset(pathlib.Path(sys.argv[1])).semantic_id_dict\n"
    "pathlib.Path(sys.argv[2], os.environ['RANK']).write_text(table.digest + ' ' + table.status)\n"
)


@pytest.mark.stress
@pytest.mark.timeout(300)
def test_two_ranks_under_torchrun_agree(data: Path, tmp_path: Path) -> None:
    """No collective is used: the ranks meet in the cache."""
    script, answers = tmp_path / "rank.py", tmp_path / "answers"
    script.write_text(RANK)
    answers.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_addr=127.0.0.1"]
    environment = os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*command, "--master_port=29517", script, data, answers],
        env=environment,
        check=True,
        timeout=200,
        capture_output=True,
    )
    first, second = ((answers / rank).read_text().split() for rank in "01")
    assert first[0] == second[0]
    assert "default" not in {first[1], second[1]}


@pytest.mark.stress
@pytest.mark.timeout(300)
def test_two_nodes_on_a_shared_folder_without_a_working_lock_agree(tmp_path: Path, tally: Counter[str]) -> None:
    """Row 2: other homes, other data folders, one cache; the kernel's lock says yes to both."""
    need_strace()
    code = "import sys, pathlib, world; print(world.SmallDataset(pathlib.Path(sys.argv[1])).semantic_id_dict.digest)"
    for number in range(3):
        nodes = [make_data(tmp_path / f"node{number}{name}") for name in "ab"]
        homes = [tmp_path / f"home{number}{name}" for name in "ab"]
        children = [
            start(
                code,
                folder,
                under=injecting("flock:retval=0"),
                SEMID_CACHE_DIR=str(tmp_path / f"shared{number}"),
                HOME=str(home),
                XDG_CACHE_HOME=str(home / ".cache"),
            )
            for folder, home in zip(nodes, homes, strict=True)
        ]
        digests = {finish(child, 200) for child in children}
        tally["runs"] += 2
        tally["faults injected"] += 2
        tally["wrong answers"] += len(digests) - 1
        assert len(digests) == 1


@pytest.mark.stress
@pytest.mark.timeout(3000)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_five_hundred_kills_of_cold_runs_move_no_id(tmp_path: Path, tally: Counter[str]) -> None:
    """Row 4: SIGKILL at a random moment while four readers ask; who comes next heals, and all agree."""
    import random

    rounds = int(os.environ.get("STRESS_KILLS", "500"))
    dice = random.Random(0)

    def generate(data: Path) -> None:
        warnings.simplefilter("ignore")
        _ = SmallDataset(data).semantic_id_dict

    def read_on(data: Path, end: Path, answer: Path) -> None:
        """Read behind a closed gate until the end, and note every ID that was ever served."""
        warnings.simplefilter("ignore")
        os.environ["ALLOW_SEMANTIC_GENERATION"] = "0"
        seen: Counter[str] = Counter()
        while not end.exists():
            table = SmallDataset(data).semantic_id_dict
            seen["miss" if table.status == "default" else table.digest] += 1
            time.sleep(0.02)
        answer.write_text("\n".join(f"{digest} {times}" for digest, times in seen.items()))

    length = 0.5  # seconds of a cold run here; corrected by each that is let live
    kills = number = 0
    while kills < rounds:
        number += 1
        data = make_data(tmp_path / f"data{number}", 60, dim=4, seed=number)
        end = tmp_path / f"end{number}"
        answers = [tmp_path / f"answer{number}-{reader}" for reader in range(4)]
        readers = [FORK.Process(target=read_on, args=(data, end, answer)) for answer in answers]
        for reader in readers:
            reader.start()
        survivors = 0
        while survivors < 2 and kills < rounds:  # one that trains to its end, and one that finds that
            writer = FORK.Process(target=generate, args=(data,))
            began = time.monotonic()
            writer.start()
            writer.join(dice.random() * 1.2 * length)
            killed = writer.exitcode is None
            if killed:
                assert writer.pid is not None
                os.kill(writer.pid, signal.SIGKILL)
            writer.join()
            if killed:
                length *= 1.05  # slower than was thought: else a busy machine lets none live
            elif survivors == 0:
                length = time.monotonic() - began
            survivors += not killed
            kills += killed
            tally["faults injected"] += killed
            tally["runs"] += 1
        final = SmallDataset(data).semantic_id_dict
        assert final.status in {"trained", "cached"}
        end.touch()
        for reader, answer in zip(readers, answers, strict=True):
            reader.join(60)
            assert reader.exitcode == 0
            for line in answer.read_text().splitlines():
                digest, times = line.split()
                tally["misses" if digest == "miss" else "hits"] += int(times)
                tally["wrong answers"] += digest not in {"miss", final.digest}
                assert digest in {"miss", final.digest}
        shutil.rmtree(data)


@pytest.mark.stress
@pytest.mark.timeout(1500)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_soak_of_readers_beside_writers_stays_flat(tmp_path: Path, tally: Counter[str]) -> None:
    """Writers publish, are killed and damage tables; memory and open files of the readers do not grow."""
    seconds = float(os.environ.get("STRESS_SOAK", "600"))
    root = root_at(tmp_path / "cache")
    end = tmp_path / "end"
    allowed = {digest_of(seed) for seed in range(8)}

    def write() -> None:
        generation = 0
        while not end.exists():
            generation += 1
            seed = generation % 8
            from faultkit import table_bytes

            child = os.fork()
            if child == 0:
                cache.publish_table(root, LINEAGE, generation, [table_bytes(seed, generation)])
                os._exit(0)
            if generation % 3 == 0:
                time.sleep(0.001 * (generation % 7))
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            for old in folders.generations([root], LINEAGE)[20:]:
                old.path.unlink(missing_ok=True)
            time.sleep(0.02)

    def read(answer: Path) -> None:
        reads, first, wrong = 0, (0, 0), 0
        while not end.exists():
            for found in folders.generations([root], LINEAGE)[:3]:
                digest = read_digest(root, found.generation)
                reads += 1
                wrong += digest is not None and digest not in allowed
            memory = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            now = (memory, len(os.listdir("/proc/self/fd")))  # noqa: PTH208
            if reads >= 300 and first == (0, 0):
                first = now
            time.sleep(0.005)
        answer.write_text(f"{reads} {wrong} {now[0] - first[0]} {now[1] - first[1]}")

    answers = [tmp_path / f"reader{k}" for k in range(3)]
    processes = [FORK.Process(target=write)] + [FORK.Process(target=read, args=(answer,)) for answer in answers]
    for process in processes:
        process.start()
    time.sleep(seconds)
    end.touch()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    for answer in answers:
        reads, wrong, memory, files = map(int, answer.read_text().split())
        tally["runs"] += 1
        tally["hits"] += reads
        tally["wrong answers"] += wrong
        assert reads > 300
        assert wrong == 0
        assert memory < 20 << 20
        assert files <= 2


# --- streamed embeddings under a lock that holds nobody back ---

STREAM = (
    "import sys, time, pathlib, warnings, faultkit, fcntl; warnings.simplefilter('ignore')\n"
    "from world import MixinDataset, SMALL\n"
    "from dataclasses import replace\n"
    "from semid_dataset.build.streaming import merge, run, tasks\n"
    "fcntl.flock = lambda *_: None\n"
    "run.PART_BYTES, run.LEAST_PART = 2048, 64\n"
    "slow, nth = float(sys.argv[3]), int(sys.argv[4])\n"
    "basis_of = tasks.basis_of\n"
    "def late(*given):\n    time.sleep(slow)\n    return basis_of(*given)\n"
    "merge.basis_of = late\n"
    "from semid_dataset.build import pipeline\n"
    "fit = pipeline.fit_codebooks\n"
    "pipeline.fit_codebooks = lambda m, config, *rest: fit(m, replace(config, seed=nth), *rest)\n"
    "data = pathlib.Path(sys.argv[1])\n"
    "faultkit.wait_for(pathlib.Path(sys.argv[2]))\n"
    "from semid_dataset.resolve import Request, Resolution\n"
    "from semid_dataset.environment import Context\n"
    "ask = Request(data, ('81',), config=SMALL)\n"
    "resolution = Resolution(ask, Context.at_door(), may_generate=True)\n"
    "resolution.engine = 'local'\n"
    "table = resolution.run()\n"
    "print(table.status, table.digest)\n"
)


def test_streamed_runs_that_all_believe_to_hold_the_lock_serve_one_table(tmp_path: Path) -> None:
    """Who publishes takes the work folder away under the others, who train other codebooks: they serve what it made."""
    data = make_data(tmp_path / "data", 300)
    go = tmp_path / "go"
    children = [start(STREAM, data, go, 0.3 * nth, nth) for nth in range(5)]
    go.touch()
    answers = [finish(child, 100).split() for child in children]
    assert {status for status, _ in answers} <= {"trained", "cached", "extended"}
    assert len({digest for _, digest in answers}) == 1
    assert len(list(data.glob(".semantic_ids/v1/*/0.safetensors"))) == 1


def test_a_folder_that_vanishes_is_looked_past_without_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The winner may have published and not noted it yet: its table is found by the items that it holds."""
    from semid_dataset import generate_semantic_ids
    from semid_dataset.build.streaming import run as streaming
    from semid_dataset.cache.cache import Cache

    data = make_data(tmp_path / "data", 300)
    published: list[str] = []
    merged = streaming.Job.merged

    def vanish(self: streaming.Job, basis: str) -> streaming.MergedItems:
        if not published:
            published.append("")
            with monkeypatch.context() as patch:
                patch.setattr(Cache, "remember", lambda *_: None)
                published[0] = generate_semantic_ids(data, config=SMALL).digest
            self.close()
        return merged(self, basis)

    monkeypatch.setattr(streaming.Job, "merged", vanish)
    monkeypatch.setattr(Cache, "lease", lambda *_, **__: nullcontext(lock.Lease(None)))
    table = generate_semantic_ids(data, config=SMALL, engine="local")
    assert table.digest == published[0]
    assert table.status == "cached"
    assert "took the work folder away" in caplog.text
