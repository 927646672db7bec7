"""Rows 4 to 7: a publish is killed, loses power, meets a full or failing disk. Nobody ever reads half of a file."""

import errno
import os
import re
import shutil
import signal
import subprocess
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from faultkit import (
    LINEAGE,
    digest_of,
    finish,
    injecting,
    mounted,
    need,
    need_root,
    need_strace,
    read_digest,
    root_at,
    start,
    table_bytes,
    tmpfs,
    traced,
)
from world import SmallDataset

from semid_dataset import resolve
from semid_dataset.cache import cache, folders
from semid_dataset.errors import SemanticIdWarning

PUBLISH = (
    "import sys, pathlib, faultkit; from semid_dataset.cache import cache, folders, lock\n"
    "root = faultkit.root_at(pathlib.Path(sys.argv[1]))\n"
    "try: print(cache.publish_table(root, faultkit.LINEAGE, 0, [faultkit.table_bytes(int(sys.argv[2]))]))\n"
    "except OSError as error: print('OSError', error.errno)\n"
)


def kill_a_publish(root: folders.CacheFolder, seed: int, number: int, call: str) -> bool:
    """Publish table `seed` in a child that gets SIGKILL as it enters `call` the nth time; whether it was killed."""
    return os.WIFSIGNALED(publish_traced(root, seed, f"trace={call}", f"inject={call}:signal=KILL:when={number}"))


def calls_of_a_publish(root: folders.CacheFolder, log: Path) -> list[tuple[str, int]]:
    """Every system call of a publish in order, as its name and how often it had come until then."""
    cache.publish_table(root, "9" * 16, 0, [table_bytes(1)])  # here too, so that no child imports what it first needs
    assert publish_traced(root, 1, "trace=all", log=log) == 0
    names = [match[1] for line in log.read_text().splitlines() if (match := re.match(r"(\w+)\(", line))]
    first = next(k for k, name in enumerate(names) if name != "read")  # the one that waited for the tracer
    return [(name, names[first : k + 1].count(name)) for k, name in enumerate(names) if k >= first]


def publish_traced(root: folders.CacheFolder, seed: int, *expressions: str, log: Path = Path("/dev/null")) -> int:
    """Publish table `seed` in a child under strace; return its wait status."""
    return traced(lambda: cache.publish_table(root, LINEAGE, 0, [table_bytes(seed)]), *expressions, log=log)


class Readers:
    """Threads that read without pause and note every digest they see."""

    def __init__(self, root: folders.CacheFolder, count: int = 2) -> None:
        self.seen: Counter[str | None] = Counter()
        self.failures: list[BaseException] = []
        self._root, self._end = root, threading.Event()
        self._threads = [threading.Thread(target=self._read) for _ in range(count)]

    def _read(self) -> None:
        while not self._end.is_set():
            try:
                self.seen[read_digest(self._root)] += 1
            except BaseException as error:
                self.failures.append(error)
            time.sleep(0.001)

    def __enter__(self) -> "Readers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("call", ["write", "fsync", "link,linkat", "unlink,unlinkat", "mkdir"])
def test_a_publish_killed_at_its_decisive_calls_leaves_a_miss_or_a_hit(tmp_path: Path, call: str) -> None:
    """Row 4, the short form: never half a file, and the next writer succeeds."""
    need_strace()
    root = root_at(tmp_path / "cache")
    assert kill_a_publish(root, 1, 1, call)
    found = read_digest(root)
    assert found == (digest_of(1) if call.startswith("unlink") else None)
    cache.publish_table(root, LINEAGE, 0, [table_bytes(2)])
    assert read_digest(root) == (digest_of(1) if found else digest_of(2))


@pytest.mark.stress
@pytest.mark.timeout(1500)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_publish_killed_at_every_call_leaves_a_miss_or_a_hit(tmp_path: Path, tally: Counter[str]) -> None:
    """Row 4: three rounds over every system call, two readers watching."""
    need_strace()
    calls = calls_of_a_publish(root_at(tmp_path / "first"), tmp_path / "log")
    assert {"mkdir", "openat", "write", "fsync", "linkat", "unlink"} <= {name for name, _ in calls}
    for lease in range(3):
        for name, number in calls:
            root = root_at(tmp_path / f"cache{lease}-{name}-{number}")
            with Readers(root) as readers:
                killed = kill_a_publish(root, 1, number, name)
                found = read_digest(root)
                cache.publish_table(root, LINEAGE, 0, [table_bytes(2)])
                healed = read_digest(root)
            tally["runs"] += 1
            tally["faults injected"] += killed
            tally["misses"] += readers.seen.pop(None, 0)
            wrong = [*readers.failures, *(set(readers.seen) - {healed})]
            tally["hits"] += sum(readers.seen.values())
            tally["wrong answers"] += len(wrong)
            assert not wrong
            assert healed == (found or digest_of(2))
            shutil.rmtree(root.path, ignore_errors=True)


# --- power loss ---


@contextmanager
def loop_device(image: Path, folder: Path) -> Iterator[Path]:
    """A small ext4 in a file; what has not reached the file when it is copied is lost, as with the power."""
    need_root()
    need("mkfs.ext4", "mount")
    if not image.exists():
        with image.open("wb") as file:
            file.truncate(16 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    with mounted(folder, "-o", "loop", str(image)):
        yield folder


def read_after_power_loss(image: Path, tmp_path: Path, folder_name: str = "cache") -> tuple[str | None, list[str]]:
    copy = tmp_path / "copy.img"
    shutil.copy(image, copy)
    with loop_device(copy, tmp_path / "after") as folder:
        root = root_at(folder / folder_name)
        found = read_digest(root)
        names = [path.name for path in (folder / folder_name / "v1" / LINEAGE).glob("*")]
        cache.publish_table(root, LINEAGE, 0, [table_bytes(2)])
        assert read_digest(root) == (found or digest_of(2))
    copy.unlink()
    return found, names


def test_what_was_published_survives_a_power_loss(tmp_path: Path) -> None:
    """Row 5: file and name were synced before anybody was told."""
    image = tmp_path / "disk.img"
    with loop_device(image, tmp_path / "disk") as folder:
        cache.publish_table(root_at(folder / "cache"), LINEAGE, 0, [table_bytes(1)])
        found, names = read_after_power_loss(image, tmp_path)
    assert found == digest_of(1)
    assert "0.safetensors" in names


@pytest.mark.stress
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_power_loss_at_any_call_leaves_a_miss_or_a_hit(tmp_path: Path, tally: Counter[str]) -> None:
    """Row 5: the writer stands still at each of its calls while the power goes."""
    need_strace()
    image = tmp_path / "disk.img"
    with loop_device(image, tmp_path / "disk") as folder:
        calls = calls_of_a_publish(root_at(folder / "first"), tmp_path / "log")
        for lease, (name, number) in enumerate([*calls, ("read", 60_000)]):
            root = root_at(folder / f"cache{lease}")
            killed = kill_a_publish(root, 1, number, name)
            if lease % 2:  # the journal is written every few seconds: force it now and then, as time would
                os.sync()
            found, _ = read_after_power_loss(image, tmp_path, f"cache{lease}")
            tally["runs"] += 1
            tally["faults injected"] += 1
            tally["hits" if found else "misses"] += 1
            tally["wrong answers"] += found not in {None, digest_of(1)}
            assert found in {None, digest_of(1)}
            assert killed or found == digest_of(1)
            shutil.rmtree(root.path, ignore_errors=True)
        assert not killed


# --- disks that are full or fail ---

FULL = {
    "a full disk": "size=64k",
    "no inodes": "size=1m,nr_inodes=5",
}


@pytest.mark.parametrize("options", FULL.values(), ids=FULL)
def test_a_full_disk_publishes_nothing(tmp_path: Path, options: str) -> None:
    """Row 6: the error comes out, the name stays free, no leftover takes the last bytes."""
    with tmpfs(tmp_path / "disk", options) as folder:
        root = root_at(folder)
        root.folder(LINEAGE, create=True)
        filler = folder / "filler"
        if "inodes" in options:
            filler.touch()
        else:
            with suppress_full(), filler.open("wb") as file:
                while True:
                    file.write(bytes(4096))
                    file.flush()
        with pytest.raises(OSError):  # noqa: PT011
            cache.publish_table(root, LINEAGE, 0, [table_bytes(1, items=20_000)])
        assert [path.name for path in root.folder(LINEAGE).iterdir()] == []
        filler.unlink()
        assert cache.publish_table(root, LINEAGE, 0, [table_bytes(1)])
        assert read_digest(root) == digest_of(1)


@contextmanager
def suppress_full() -> Iterator[None]:
    with pytest.raises(OSError, match="No space left"):
        yield


@pytest.mark.parametrize("error", ["EDQUOT", "EIO", "ENOSPC"])
@pytest.mark.parametrize("call", ["write", "fsync", "linkat"])
def test_a_failing_call_publishes_nothing(tmp_path: Path, call: str, error: str) -> None:
    """Row 6: whatever call fails, in whatever way."""
    root = root_at(tmp_path / "cache")
    folder = root.folder(LINEAGE, create=True)
    child = start(PUBLISH, root.path, 1, under=injecting(f"{call}:error={error}:when=1", follow=False))
    assert "OSError" in finish(child)
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_synced_serves_what_was_linked(tmp_path: Path) -> None:
    """Row 7: the second fsync is the folder's."""
    root = root_at(tmp_path / "cache")
    child = start(PUBLISH, root.path, 1, under=injecting("fsync:error=EIO:when=2+", follow=False))
    assert finish(child) == "True\n"
    assert read_digest(root) == digest_of(1)


def test_links_that_are_refused_are_done_without(tmp_path: Path) -> None:
    """Some file systems have none: a claim file decides then, and the first still wins."""
    root = root_at(tmp_path / "cache")
    children = [start(PUBLISH, root.path, seed, under=injecting("link,linkat:error=EPERM")) for seed in (1, 2)]
    won = [finish(child) for child in children]
    assert sorted(won) == ["False\n", "True\n"]
    assert read_digest(root) == digest_of(1 + won.index("True\n"))


@pytest.mark.parametrize("call", ["link", "fsync"])
def test_ids_that_cannot_be_saved_stay_in_memory_aloud(data: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 6: real IDs, one for each item, and the reason in a warning."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.warns(SemanticIdWarning, match="No space left .* memory"):
            table = SmallDataset(data).semantic_id_dict
    assert (table.status, len(table), table.path) == ("trained", 200, None)
    assert len(set(map(tuple, table.values()))) == 200
    assert not list(data.glob(".semantic_ids/**/*.safetensors"))
    assert SmallDataset(data).semantic_id_dict.to_dict() == table.to_dict()


def test_a_json_that_cannot_be_written_does_not_lose_the_table(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 6: the cache is published before the export is tried."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(resolve.files, "place_file", fail)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = SmallDataset(data).semantic_id_dict
    assert table.status == "trained"
    assert table.path is not None
    assert not (data / "semantic_id_dict.json").exists()
    assert SmallDataset(data).semantic_id_dict.status == "cached"


def test_a_killed_training_is_done_by_the_next(data: Path) -> None:
    """Row 4: its lock is gone with it, its temporary file disturbs nobody."""
    code = (
        "import os, sys, world, filelock\n"  # which tries what os.link can do when it is imported
        "os.link = lambda *_, **__: os.kill(os.getpid(), 9)\n"
        "world.SmallDataset(sys.argv[1]).semantic_id_dict\n"
    )
    child = start(code, data)
    child.communicate(timeout=50)
    assert child.returncode == -signal.SIGKILL
    assert len(list(data.glob(".semantic_ids/v1/*/.*.tmp"))) == 1
    assert SmallDataset(data).semantic_id_dict.status == "trained"
