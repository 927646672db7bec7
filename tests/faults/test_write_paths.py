"""Row 50: entry, mark, export, claim, lock, job and prune, killed and failed at every system call, as publishing is."""

import errno
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faultkit import ITEMS, LINEAGE, digest_of, need_strace, root_at, table_bytes, traced

from semid_dataset import _files as files
from semid_dataset.build.streaming.workfolder import Plan, PlannedFeature, read_file, write_file
from semid_dataset.cache import entries, fingerprint, folders, lock, served, use
from semid_dataset.cache.cache import Cache, publish_table
from semid_dataset.cache.prune import find_waste
from semid_dataset.config import Identity, SemanticIdConfig
from semid_dataset.protocols import Partition

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

IDENTITY = Identity.of(SemanticIdConfig(), [("81", 32)])
ENTRY = entries.CacheEntry(LINEAGE, 0, "digest", "identity")
ENTRY_SERVED = entries.CacheEntry(LINEAGE, 0, "6" * 64)
SHA = "5" * 64


def calls_of(action: Callable[[], object], log: Path) -> list[tuple[str, int]]:
    """Every system call of an action in order, as its name and how often it had come until then."""
    assert os.waitstatus_to_exitcode(traced(action, "trace=all", log=log)) == 0
    names = [match[1] for line in log.read_text().splitlines() if (match := re.match(r"(\w+)\(", line))]
    first = next(k for k, name in enumerate(names) if name != "read")  # the one that waited for the tracer
    return [(name, names[first : k + 1].count(name)) for k, name in enumerate(names) if k >= first]


class Path_:
    """A write path: what is there before, what is done, and what must hold afterwards, however it ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = root_at(folder / "cache")

    def before(self) -> None:
        publish_table(self.root, LINEAGE, 0, [table_bytes(1)])

    def do(self) -> None:
        raise NotImplementedError

    def holds(self, done: bool) -> None:
        raise NotImplementedError


class WritesEntry(Path_):
    def before(self) -> None:
        super().before()
        self.emb = self.folder / "emb"
        self.emb.write_bytes(b"x" * 10_000)
        os.utime(self.emb, (1e9, 1e9))
        self.cache_key = fingerprint.CacheKey("ids", IDENTITY, (fingerprint.FileStamp.of(self.emb, self.folder),))

    def do(self) -> None:
        ENTRY.note([self.root], self.cache_key, {})

    def holds(self, done: bool) -> None:
        found = entries.CacheEntry.recall([self.root], self.cache_key, renew=True)
        assert found in ({ENTRY} if done else {ENTRY, None})


class WritesMark(Path_):
    def do(self) -> None:
        entries.note_export([self.root], SHA, ENTRY)
        served.note_served([self.root], self.folder, "kind", ENTRY_SERVED)

    def holds(self, done: bool) -> None:
        assert entries.exported_as([self.root], SHA) in ({ENTRY} if done else {ENTRY, None})
        said = served.served_before([self.root], self.folder, "kind")
        assert (said and (said.root, said.entry)) in ({(self.root, ENTRY_SERVED)} | (set() if done else {None}))


class WritesExport(Path_):
    OURS = (b"old export" * 100, b"new export" * 100)

    def ours(self, path: Path) -> bool:
        return path.read_bytes() in self.OURS

    def before(self) -> None:
        super().before()
        self.path = self.folder / "ids.json"
        self.path.write_bytes(b"old export" * 100)

    def do(self) -> None:
        files.place_file(self.path, [b"new export" * 100], self.ours, backdate_ns=10**9)

    def holds(self, done: bool) -> None:
        assert self.path.read_bytes() in self.OURS
        assert files.place_file(self.path, [b"new export" * 100], self.ours) is not None
        assert self.path.read_bytes() == b"new export" * 100
        assert [path.name for path in self.folder.iterdir() if path.name.startswith(".")] == []


class WritesFirstExport(WritesExport):
    def before(self) -> None:
        super().before()
        self.path.unlink()

    def holds(self, done: bool) -> None:
        assert not self.path.exists() or self.path.read_bytes() in self.OURS
        files.place_file(self.path, [b"new export" * 100], self.ours)
        super().holds(done)


class Claims(Path_):
    """Publishing where there are no hard links."""

    def do(self) -> None:
        real = os.link
        os.link = _refuse  # type: ignore[assignment]
        try:
            publish_table(self.root, LINEAGE, 1, [table_bytes(1, 1)])
        finally:
            os.link = real

    def holds(self, done: bool) -> None:
        files.CLAIM_SECONDS, before = 0.0, files.CLAIM_SECONDS  # a claim of the killed: not to be waited for here
        try:
            self.do()
        finally:
            files.CLAIM_SECONDS = before
        newest = Cache([self.root]).newest(LINEAGE)
        assert newest is not None
        assert (newest.generation, newest.digest) == (1, digest_of(1))


def _refuse(*_: object, **__: object) -> None:
    raise OSError(errno.EPERM, "links are refused here")


class TakesLease(Path_):
    def do(self) -> None:
        with lock.take_lease(self.root, "q", timeout=5, ready=lambda: False) as lease:
            assert lease is not None
            lease.heartbeat()

    def holds(self, done: bool) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            self.do()


class WritesParts(Path_):
    PLAN = Plan(0, (PlannedFeature("81", 8, 0, 1),), (Partition("jsonl", "/x", bytes=5),))

    def do(self) -> None:
        job = self.root.folder(folders.JOBS, "0" * 32, create=True)
        files.replace_file(job / "plan.json", [self.PLAN.to_json()], sync=False)
        write_file(job, "sample-0", {"ids": np.arange(100)}, {"basis": "b"})

    def holds(self, done: bool) -> None:
        job = self.root.folder(folders.JOBS, "0" * 32, create=True)
        if done or (job / "plan.json").exists():
            assert Plan.read(job) == self.PLAN
        found = read_file(job, "sample-0")
        assert found is not None or not done
        assert found is None or np.array_equal(found.arrays["ids"], np.arange(100))
        self.do()
        assert read_file(job, "sample-0") is not None


class Prunes(Path_):
    def before(self) -> None:
        super().before()
        for generation in (1, 2):
            publish_table(self.root, LINEAGE, generation, [table_bytes(1, generation)])
        (self.root.folder(LINEAGE) / "2.safetensors.damaged-0").write_bytes(b"x")

    def do(self) -> None:
        real = use.live_files
        use.live_files = lambda: (set(), set(), 0)  # it reads of every process of the machine, and writes nothing
        try:
            for waste in find_waste(Cache([self.root]), min_age=0):
                waste.path.unlink(missing_ok=True)
        finally:
            use.live_files = real

    def holds(self, done: bool) -> None:
        newest = Cache([self.root]).newest(LINEAGE)
        assert newest is not None
        assert (newest.generation, newest.digest, len(newest)) == (2, digest_of(1), ITEMS)
        self.do()
        assert [found.generation for found in Cache([self.root]).generations(LINEAGE)] == [2]


PATHS: list[Any] = [WritesEntry, WritesMark, WritesExport, WritesFirstExport, Claims, TakesLease, WritesParts, Prunes]
DECISIVE = {"write", "fsync", "link", "linkat", "rename", "renameat2", "unlink", "mkdir", "flock"}
# What a failing call would not be told to: memory, threads and signals are Python's own.
NOT_FAILED = {"mmap", "munmap", "brk", "rt_sigaction", "exit_group", "futex", "mprotect", "madvise", "clock_gettime"}


def strike(kind: Any, folder: Path, call: str, number: int, how: str) -> bool:
    """Do it once, struck at one call; check what must hold. Returns whether it was struck."""
    path = kind(folder)
    path.folder.mkdir()
    path.before()
    status = os.waitstatus_to_exitcode(traced(path.do, f"trace={call}", f"inject={call}:{how}:when={number}"))
    path.holds(done=status == 0 and how.startswith("signal"))
    return status != 0


@pytest.mark.parametrize("kind", PATHS)
def test_a_write_path_that_is_killed_leaves_what_the_next_one_can_use(tmp_path: Path, kind: Any) -> None:
    """The short form: SIGKILL at each decisive call."""
    need_strace()
    (tmp_path / "first").mkdir()
    first = kind(tmp_path / "first")
    first.before()
    calls = [(name, number) for name, number in calls_of(first.do, tmp_path / "log") if name in DECISIVE]
    assert calls
    for name, number in calls:
        assert strike(kind, tmp_path / f"{name}-{number}", name, number, "signal=KILL")


@pytest.mark.stress
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("how", ["signal=KILL", "error=EIO", "error=ENOSPC"])
@pytest.mark.parametrize("kind", PATHS)
def test_a_write_path_that_is_struck_at_any_call_leaves_what_the_next_one_can_use(
    tmp_path: Path, kind: Any, how: str, tally: Counter[str]
) -> None:
    """The long form: killed and failed at every system call."""
    need_strace()
    (tmp_path / "first").mkdir()
    first = kind(tmp_path / "first")
    first.before()
    for name, number in calls_of(first.do, tmp_path / "log"):
        if name == "exit_group" or (how.startswith("error") and name in NOT_FAILED):
            continue
        tally["runs"] += 1
        tally["faults injected"] += 1
        strike(kind, tmp_path / f"{name}-{number}", name, number, how)
