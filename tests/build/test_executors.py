"""Whoever does the work, the files are the same, and errors come back as what they are."""

import json
import os
import signal
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from world import SMALL, vectors_of

from semid_dataset.build import memory
from semid_dataset.build.streaming import executors as engines
from semid_dataset.build.streaming import run as scale
from semid_dataset.build.streaming import tasks as stages
from semid_dataset.build.streaming import workfolder
from semid_dataset.cache import folders
from semid_dataset.errors import ConfigError, EmbeddingError, TrainingError
from semid_dataset.inputs.discover import find_sources
from semid_dataset.progress import Listener, Progress

DIM = 8
LIMIT = 1 << 30


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work folder with a plan of six parts, and processes for however little there is to do."""
    monkeypatch.setattr(engines, "ALONE_BYTES", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    source = tmp_path / "creative_emb" / f"emb_81_{DIM}"
    source.mkdir(parents=True)
    vectors = vectors_of(240, DIM)
    for part in range(6):
        lines = [json.dumps({"anonymous_cid": row, "emb": vectors[row].tolist()}) for row in range(part, 240, 6)]
        (source / f"part-{part}").write_text("\n".join(lines))
    root = folders.CacheFolder(tmp_path / "cache", tmp_path)
    job = scale.open_job(root, "q", find_sources(tmp_path, ["81"]), SMALL, limit=LIMIT, sampled=1000)
    assert len(job.plan.parts) == 6
    return job.folder


def samples(folder: Path) -> list[stages.Task]:
    plan = workfolder.Plan.read(folder)
    return [
        {"stage": "sample", "part": number, "below": scale.EVERYTHING, "basis": "all", "bytes": part.bytes}
        for number, part in enumerate(plan.parts)
    ]


def made(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("sample-*.part")}


class Advanced(Listener):
    """Adds up what was done."""

    done = 0

    def advance(self, done: int) -> None:
        self.done += done


def test_processes_make_what_this_one_makes(folder: Path) -> None:
    """Byte for byte; progress adds up to all there is."""
    tasks = samples(folder)
    engines.run_here(folder, tasks, Progress(), LIMIT)
    wanted = made(folder)
    for path in folder.glob("sample-*.part"):
        path.unlink()
    heard = Advanced()
    engines.run_processes(folder, tasks, Progress(heard), LIMIT)
    assert made(folder) == wanted
    assert len(wanted) == 6
    assert heard.done == sum(task["bytes"] for task in tasks)


def test_a_process_that_is_killed_loses_one_part(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Another one does it again, and the line says so."""
    started: list[Any] = []
    start = engines._start

    def doomed() -> Any:
        child = start()
        if not started:
            os.kill(child.pid, signal.SIGKILL)
        started.append(child)
        return child

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "_start", doomed)
        engines.run_processes(folder, samples(folder), Progress(), LIMIT)
    assert len(made(folder)) == 6
    assert len(started) == 3
    assert "ended with -9" in caplog.text


def test_processes_that_keep_dying_end_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a message about memory, which is why processes are killed."""
    start = engines._start

    def doomed() -> Any:
        child = start()
        os.kill(child.pid, signal.SIGKILL)
        return child

    monkeypatch.setattr(engines, "_start", doomed)
    with pytest.raises(TrainingError, match=r"ended 3 times \(last with -9\).*SEMID_MEMORY_LIMIT"):
        engines.run_processes(folder, samples(folder), Progress(), LIMIT)


def test_errors_of_processes_are_what_they_were(folder: Path) -> None:
    """The same class and words; and no process is left behind."""
    tasks = samples(folder)
    (path,) = {Path(workfolder.Plan.read(folder).parts[3].path)}
    path.write_text("")
    path.unlink()
    path.mkdir()
    before = threading.active_count()
    with pytest.raises(EmbeddingError, match="part-3' is a folder"):
        engines.run_processes(folder, tasks, Progress(), LIMIT)
    assert threading.active_count() == before
    with pytest.raises(OSError, match="No such file or directory: 'x'"):
        raise engines._error_of({"error": "FileNotFoundError", "message": "", "errno": 2, "path": "x"})
    with pytest.raises(MemoryError):
        raise engines._error_of({"error": "MemoryError", "message": ""})
    with pytest.raises(TrainingError, match="ZeroDivisionError: 1/0"):
        raise engines._error_of({"error": "ZeroDivisionError", "message": "1/0"})


def test_a_process_ends_with_the_one_that_started_it(folder: Path, tmp_path: Path) -> None:
    """Killed without a word: nobody goes on working for nobody."""
    code = f"""
import sys, os, time; sys.path[:] = {sys.path!r}
from semid_dataset.build import memory
from semid_dataset.build.streaming import executors as engines
child = engines._start()
print(child.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    read, write = os.pipe()
    pid = os.posix_spawn(
        sys.executable, [sys.executable, "-c", code], dict(os.environ), file_actions=[(os.POSIX_SPAWN_DUP2, write, 1)]
    )
    os.close(write)
    with os.fdopen(read) as answer:
        child = int(answer.readline())
    os.waitpid(pid, 0)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_few_bytes_or_one_core_need_no_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting one would take longer."""
    monkeypatch.setattr(engines, "_start", lambda: pytest.fail("a process was started"))
    monkeypatch.setattr(engines, "ALONE_BYTES", 64 << 20)
    engines.run_processes(folder, samples(folder), Progress(), LIMIT)
    monkeypatch.setattr(engines, "ALONE_BYTES", 0)
    engines.run_processes(folder, samples(folder), Progress(), memory.WORKER_BYTES["sample"])
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    engines.run_processes(folder, samples(folder), Progress(), LIMIT)
    assert len(made(folder)) == 6


class FakeRay:
    """As much of Ray as is used: tasks run when they are waited for; the first is lost once and done again."""

    exceptions = types.SimpleNamespace(RayError=LookupError)

    def __init__(self) -> None:
        self.started = 0
        self.here = False
        self.retries = 0
        self.cancelled: list[Any] = []

    def is_initialized(self) -> bool:
        return self.here

    def init(self, **options: Any) -> None:
        assert options["include_dashboard"] is False
        self.started += 1
        self.here = True

    def shutdown(self) -> None:
        self.here = False

    def remote(self, **options: Any) -> Any:
        assert options["max_retries"] > 0

        def make(function: Any) -> Any:
            return types.SimpleNamespace(remote=lambda *given: Reference(function, given))

        return make

    def wait(self, waiting: list[Any], *, num_returns: int, timeout: float) -> Any:
        if not self.retries:
            self.retries += 1
            waiting[0].function(*waiting[0].given)  # done by a worker that was lost before it could say so
            return [], waiting
        return waiting[:1], waiting[1:]

    def get(self, reference: Any) -> Any:
        return reference.function(*reference.given)

    def cancel(self, reference: Any) -> None:
        self.cancelled.append(reference)


class Reference:
    def __init__(self, function: Any, given: Any) -> None:
        self.function = function
        self.given = given


def test_ray_makes_what_this_process_makes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local Ray is started where there is none, and ended; a task may be done twice."""
    engines.run_here(folder, samples(folder), Progress(), LIMIT)
    wanted = made(folder)
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)  # type: ignore[arg-type]
    heard = Advanced()
    engines.run_on_ray(folder, samples(folder), Progress(heard), LIMIT)
    assert made(folder) == wanted
    assert heard.done == sum(task["bytes"] for task in samples(folder))
    assert (fake.started, fake.here, fake.retries, fake.cancelled) == (1, False, 1, [])


def test_a_ray_that_the_program_has_joined_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is used, not left: other work may run there."""
    fake = FakeRay()
    fake.init(include_dashboard=False)
    monkeypatch.setitem(sys.modules, "ray", fake)  # type: ignore[arg-type]
    engines.run_on_ray(folder, samples(folder), Progress(), LIMIT)
    assert (fake.started, fake.here) == (1, True)
    assert len(made(folder)) == 6


def test_an_error_under_ray_ends_the_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is raised as what it was."""
    path = Path(workfolder.Plan.read(folder).parts[0].path)
    path.unlink()
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)  # type: ignore[arg-type]
    with pytest.raises(EmbeddingError, match="part-0' cannot be opened"):
        engines.run_on_ray(folder, samples(folder), Progress(), LIMIT)
    assert len(fake.cancelled) == 5


def test_a_part_that_ray_gives_up_ends_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray tries again by itself; when it stops, the message names the part and where the others lie."""
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)  # type: ignore[arg-type]

    def lost(reference: Any) -> None:
        raise LookupError("the worker died.")

    monkeypatch.setattr(fake, "get", lost)
    with pytest.raises(TrainingError, match=r"gave up on part 0 of the stage 'sample': the worker died\. Finished"):
        engines.run_on_ray(folder, samples(folder), Progress(), LIMIT)
    assert len(fake.cancelled) == 5


def test_ray_is_an_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message is the command that helps."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="pip install ray"):
        engines.run_on_ray(folder, [], Progress(), LIMIT)


def test_parts_hold_the_same_bytes_whoever_encodes_them(folder: Path) -> None:
    """Encoding too: one thread each, and nothing of a process gets into a file."""
    from semid_dataset.codec.residual import ResidualQuantizer

    generator = np.random.default_rng(0)
    import torch

    books = [torch.from_numpy(generator.standard_normal((16, DIM)).astype(np.float32)) for _ in range(3)]
    weights, description = ResidualQuantizer(books, beam=4).to_arrays()
    arrays = {f"quantizer.{name}": array for name, array in weights.items()}
    workfolder.write_file(folder, "basis-x", arrays, {"quantizer": description, "content": "x"})
    tasks = [{**task, "stage": "encode", "codebooks": "x", "content": "x", "basis": "x"} for task in samples(folder)]
    engines.run_here(folder, tasks, Progress(), LIMIT)
    wanted = {path.name: path.read_bytes() for path in folder.glob("encode-*.part")}
    for name in wanted:
        (folder / name).unlink()
    engines.run_processes(folder, tasks, Progress(), LIMIT)
    assert {path.name: path.read_bytes() for path in folder.glob("encode-*.part")} == wanted
    assert len(wanted) == 6
