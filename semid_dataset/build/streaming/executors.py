"""
Who does the work on parts: this process, others of this machine, or a Ray cluster.

All call `stages.perform`, and all meet in the work folder: nothing large goes between them, and what is
made is the same.
"""

import importlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from semid_dataset import errors
from semid_dataset._messages import tell
from semid_dataset.build import memory
from semid_dataset.build.streaming.tasks import Task, perform
from semid_dataset.errors import ConfigError, TrainingError
from semid_dataset.inputs import partitions as parts
from semid_dataset.progress import Progress

__all__ = ["Engine", "run_here", "run_on_ray", "run_processes", "serve"]

ALONE_BYTES = 64 << 20  # below it, starting processes costs more than they save
WITH_TORCH = ("encode", "gather")  # stages
TRIES = 3  # a part whose process dies is given to another one
REPORT_SECONDS = 0.2
WAIT_SECONDS = 1.0

Engine = Callable[[Path, Sequence[Task], Progress, int], None]


def run_here(folder: Path, tasks: Sequence[Task], progress: Progress, limit: int) -> None:
    """Do tasks one after the other in this process."""
    for task in tasks:
        perform(folder, task, progress.advance)


def run_processes(folder: Path, tasks: Sequence[Task], progress: Progress, limit: int) -> None:
    """
    Do tasks in as many processes as there are cores and tasks, and as the limit has room for beside this one.

    They are new programs, not copies of this one: threads of torch do not survive a fork, and a program without
    `if __name__ == "__main__"` would run twice.

    Raises:
        As `perform`; TrainingError: processes kept dying.
    """
    alone = not sys.executable or sum(task["bytes"] for task in tasks) < ALONE_BYTES
    workers = 1 if alone else memory.workers(tasks[0]["stage"], len(tasks), limit)
    if workers < 2:
        run_here(folder, tasks, progress, limit)
        return
    todo: queue.SimpleQueue[tuple[Task, int]] = queue.SimpleQueue()
    for task in tasks:
        todo.put((task, 1))
    news: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
    children: list[subprocess.Popen[bytes]] = []
    stopped = threading.Event()
    threads = [
        threading.Thread(target=_attend, args=(folder, todo, news, children, stopped), daemon=True)
        for _ in range(workers)
    ]
    for thread in threads:
        thread.start()
    left = len(tasks)
    try:
        while left:
            said = news.get()
            if isinstance(said, BaseException):
                raise said
            if said is None:
                left -= 1
            else:
                progress.advance(said)
    finally:
        stopped.set()
        for child in children:
            with suppress(OSError):
                child.kill()
        for thread in threads:
            thread.join()


def _attend(  # noqa: PLR0912 - one branch for everything that a process may say
    folder: Path,
    todo: "queue.SimpleQueue[tuple[Task, int]]",
    news: "queue.SimpleQueue[int | BaseException | None]",
    children: "list[subprocess.Popen[bytes]]",
    stopped: threading.Event,
) -> None:
    """Give one process task after task; where it dies, give the task to another."""
    child: subprocess.Popen[bytes] | None = None
    try:
        while not stopped.is_set():
            try:
                task, tries = todo.get_nowait()
            except queue.Empty:
                break
            if child is None or child.poll() is not None:
                child = _start()
                children.append(child)
            assert child.stdin is not None
            assert child.stdout is not None
            done = 0
            finished = False
            with suppress(BrokenPipeError):
                child.stdin.write(json.dumps({"folder": str(folder), "task": dict(task)}).encode() + b"\n")
                child.stdin.flush()
                for line in iter(child.stdout.readline, b""):
                    said = json.loads(line)
                    if "done" in said:
                        done += said["done"]
                        news.put(said["done"])
                    elif "error" in said:
                        news.put(_error_of(said))
                        return
                    else:
                        finished = True
                        break
            if finished:
                news.put(None)
                continue
            code = child.wait()
            _close(child)
            child = None
            if stopped.is_set():
                return
            news.put(-done)
            if tries >= TRIES:
                news.put(
                    TrainingError(
                        f"A process of the stage '{task['stage']}' ended {TRIES} times (last with {code}) on part "
                        f"{task.get('part', 0)}. Finished parts stay in '{folder}'. If memory ran out, lower "
                        "memory_limit (SEMID_MEMORY_LIMIT, --memory-limit): fewer processes then work at once."
                    )
                )
                return
            tell("process_ended", stage=task["stage"], code=code)
            todo.put((task, tries + 1))
    except BaseException as error:  # noqa: BLE001 - it ends the run, in the thread that waits for it
        news.put(error)
    finally:
        if child is not None:
            _close(child)
            child.wait()


def _close(child: "subprocess.Popen[bytes]") -> None:
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


def _start() -> "subprocess.Popen[bytes]":
    code = f"import sys; sys.path[:] = {sys.path!r}; from semid_dataset.build.streaming.executors import serve; serve()"
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def serve() -> None:
    """Do the tasks that come through standard input, a line each, and say through standard output how far they are."""
    parent = os.getppid()
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    waiting, last = 0, 0.0

    def report(done: int) -> None:
        nonlocal waiting, last
        waiting += done
        now = time.monotonic()
        if now - last > REPORT_SECONDS:
            if os.getppid() != parent:  # killed: nobody waits for this part
                os._exit(1)
            out.write(json.dumps({"done": waiting}).encode() + b"\n")
            waiting, last = 0, now

    with suppress(BrokenPipeError, KeyboardInterrupt):
        for line in sys.stdin.buffer:
            asked = json.loads(line)
            try:
                if asked["task"]["stage"] in WITH_TORCH:
                    import torch

                    torch.set_num_threads(1)  # processes share the cores; Ray tells its own workers the same
                perform(Path(asked["folder"]), asked["task"], report)
            except Exception as error:  # noqa: BLE001 - said to the process that waits
                out.write(json.dumps(_said(error)).encode() + b"\n")
                continue
            out.write(json.dumps({"done": waiting}).encode() + b"\n{}\n")
            waiting = 0


def _said(error: Exception) -> dict[str, Any]:
    """Return an error as JSON types, for `_error_of` in another process."""
    said: dict[str, Any] = {"error": type(error).__name__, "message": str(error)}
    if isinstance(error, OSError) and error.errno is not None:
        said |= {"errno": error.errno, "path": str(error.filename or "")}
    return said


def _error_of(said: Mapping[str, Any]) -> BaseException:
    """Return the error that another process met."""
    if "errno" in said:
        return OSError(said["errno"], os.strerror(said["errno"]), said["path"] or None)
    kind = getattr(errors, said["error"], None) or getattr(parts, said["error"], None)
    if said["error"] == "MemoryError":
        return MemoryError(said["message"])
    if isinstance(kind, type) and issubclass(kind, Exception):
        return kind(said["message"])
    return TrainingError(f"A process of this run failed: {said['error']}: {said['message']}")


def run_on_ray(folder: Path, tasks: Sequence[Task], progress: Progress, limit: int) -> None:
    """
    Do tasks on a Ray cluster, or on a local Ray where none is named by RAY_ADDRESS or running here.

    The work folder and the embeddings must be reachable under the same paths from every node. Ray does the parts of a
    lost worker again. A Ray that was not there before is gone afterwards: as long as it is, its threads may print to
    standard output, at any time, what became of a worker.

    Raises:
        ConfigError: ray is not installed.
        TrainingError: Ray lost a part's workers again and again.
        As `perform`.
    """
    try:
        ray = importlib.import_module("ray")
    except ImportError:
        raise ConfigError('The engine "ray" needs ray: pip install ray.') from None
    with redirect_stdout(sys.stderr), _ray_here(ray):
        remote = ray.remote(num_cpus=1, max_retries=5)(_perform_remote)
        waiting = {remote.remote(str(folder), dict(task)): task for task in tasks}
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=WAIT_SECONDS)
            for reference in ready:
                task = waiting.pop(reference)
                try:
                    said = ray.get(reference)
                except ray.exceptions.RayError as error:
                    said = {
                        "error": "TrainingError",
                        "message": f"Ray gave up on part {task.get('part', 0)} of the stage '{task['stage']}': {error} "
                        f"Finished parts stay in '{folder}': run again.",
                    }
                if said is not None:
                    for other in waiting:
                        ray.cancel(other)
                    raise _error_of(said)
                progress.advance(task["bytes"])
            if not ready:
                progress.advance()


@contextmanager
def _ray_here(ray: Any) -> Iterator[None]:
    """Join a cluster or start a local Ray, and leave it again; one that the program has joined itself stays."""
    if ray.is_initialized():
        yield
        return
    ray.init(log_to_driver=False, include_dashboard=False)
    try:
        yield
    finally:
        ray.shutdown()


def _perform_remote(folder: str, task: Task) -> dict[str, Any] | None:
    """Do a task, and return what went wrong instead of raising it: Ray wraps errors in its own."""
    try:
        perform(Path(folder), task)
    except Exception as error:  # noqa: BLE001 - said to the process that waits
        return _said(error)
    return None
