"""What the tests of faults share: mounts, injected errors, children, and a table whose digest is known."""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from semid_dataset.cache import cache, folders
from semid_dataset.errors import TableError
from semid_dataset.table.table import SemanticIdTable, build_table_buffers

TESTS = Path(__file__).parent
LINEAGE = "0123456789abcdef"
ITEMS = 40


def root_at(path: Path) -> folders.CacheFolder:
    return folders.CacheFolder(path, path)


def table_bytes(seed: int, generation: int = 0, items: int = ITEMS) -> bytes:
    """The table of a seed; `digest_of` knows it."""
    codes = np.random.default_rng(seed).integers(0, 256, (items, 4)).astype(np.uint8)
    return b"".join(build_table_buffers(np.arange(items), codes, info={"lineage": LINEAGE, "generation": generation}))


def digest_of(seed: int, items: int = ITEMS) -> str:
    return SemanticIdTable.from_buffer(table_bytes(seed, items=items)).digest


def read_digest(root: folders.CacheFolder, generation: int = 0) -> str | None:
    """What a reader finds: a digest (a hit), or None (a miss); a file that is there must be whole."""
    try:
        return cache.open_table(root.folder(LINEAGE) / f"{generation}.safetensors", mmap=True).digest
    except FileNotFoundError:
        return None
    except TableError as error:
        raise AssertionError(f"half of a file was published: {error}") from error


# --- what a machine may lack -------------------------------------------------------------------


def need_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("this fault needs root")


def need(*tools: str) -> None:
    """Skip, saying what is missing."""
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"this fault is made with {tool}, which is not installed")


def need_strace() -> None:
    need("strace")
    probe = subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip(f"strace cannot trace here: {probe.stderr.decode().strip()}")


@contextmanager
def mounted(folder: Path, *arguments: str) -> Iterator[Path]:
    """`mount ARGUMENTS folder` for the time of the block; skips where mounting is forbidden."""
    need_root()
    need("mount", "umount")
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *arguments, folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"this fault needs mount(8): {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def tmpfs(folder: Path, options: str = "size=1m") -> "contextmanager[Path]":  # type: ignore[valid-type]
    return mounted(folder, "-t", "tmpfs", "-o", options, "none")


@contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """The folder, unchangeable for root too."""
    with mounted(folder, "--bind", str(folder)):
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        yield folder


@contextmanager
def immutable(path: Path) -> Iterator[Path]:
    """A file or folder that root cannot write either: chattr +i."""
    need_root()
    need("chattr")
    done = subprocess.run(["chattr", "+i", path], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"this fault needs chattr +i: {done.stderr.decode().strip()}")
    try:
        yield path
    finally:
        subprocess.run(["chattr", "-i", path], check=True)


# --- children ------------------------------------------------------------------------------------


def start(code: str, *arguments: object, under: tuple[str, ...] = (), **variables: str) -> subprocess.Popen[str]:
    """Start Python with this code; `under` is a command before it, such as strace with what it injects."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)} | variables
    return subprocess.Popen(
        [*under, sys.executable, "-W", "ignore::UserWarning", "-c", code, *map(str, arguments)],
        cwd=TESTS.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 50) -> str:
    """What it printed; its error output where it failed."""
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err[-2000:]
    return out


def injecting(*faults: str, log: Path | None = None, follow: bool = True) -> tuple[str, ...]:
    """The strace command that injects these faults, such as "flock:error=EIO"."""
    need_strace()
    calls = ",".join(fault.split(":")[0] for fault in faults)
    wanted = [word for fault in faults for word in ("-e", f"inject={fault}")]
    follows = ["-f"] if follow else []
    if follow and not any("signal=" in fault for fault in faults):  # a signal is never delivered from a filter's stop
        follows.append("--seccomp-bpf")
    return ("strace", *follows, "-qq", "-o", str(log or "/dev/null"), "-e", f"trace={calls}", *wanted)


@contextmanager
def stuck(pid: int) -> Iterator[None]:
    """A process that does not move."""
    import signal

    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def wait_for(path: Path, seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.01)


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256, mode and mtime of everything in a data directory that is the user's; our own files aside."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.split("/")[0] in {".semantic_ids", "semantic_id_dict.json"}:
            continue
        status = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[name] = f"{content} {status.st_mode:o} {status.st_size if content else ''} {status.st_mtime_ns}"
    return found


def traced(action: Callable[[], object], *expressions: str, log: Path = Path("/dev/null")) -> int:
    """Do something in a child under strace; return its wait status."""
    ready, go = os.pipe()
    started, say = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(say, b"x")  # past what Python does after a fork, which has system calls of its own
            os.read(ready, 1)  # struck itself, where the first read is to fail
            action()
        except OSError:
            os._exit(7)
        finally:
            os._exit(0)
    os.read(started, 1)
    options = [word for expression in expressions for word in ("-e", expression)]
    tracer = subprocess.Popen(["strace", "-qq", "-o", log, "-p", str(child), *options], stderr=subprocess.PIPE)
    try:
        child_status = Path(f"/proc/{child}/status")
        while "TracerPid:\t0" in child_status.read_text():
            ended = tracer.poll() is not None
            if "State:\tZ" in child_status.read_text():
                break  # killed as it was attached to: the read that waits is the call that is struck
            assert not ended, tracer.stderr.read() if tracer.stderr else ""
            time.sleep(0.002)
        os.write(go, b"x")
        _, status = os.waitpid(child, 0)
    finally:
        for end in (ready, go, started, say):
            os.close(end)
        tracer.wait(20)
        if tracer.stderr:
            tracer.stderr.close()
    return status
