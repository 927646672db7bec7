"""Folders, entries, tables on disk, and the lock."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from semid_dataset.cache import cache, entries, fingerprint, folders, lock, served
from semid_dataset.config import Identity, SemanticIdConfig
from semid_dataset.environment import Environment
from semid_dataset.errors import CorruptTableError, LockTimeoutError, SemanticIdWarning, StoreError
from semid_dataset.table.table import build_table_buffers

IDENTITY = Identity.of(SemanticIdConfig(), [("81", 32)])
LINEAGE = "0123456789abcdef"


def environment(**variables: str) -> Environment:
    return Environment.read(variables)


def root_at(path: Path) -> folders.CacheFolder:
    return folders.CacheFolder(path, path)


def a_table(seed: int = 0, generation: int = 0) -> list:
    codes = np.random.default_rng(seed).integers(0, 256, (50, 4)).astype(np.uint8)
    return build_table_buffers(np.arange(50), codes, info={"lineage": LINEAGE, "generation": generation})


@pytest.fixture
def root(tmp_path: Path) -> folders.CacheFolder:
    return root_at(tmp_path / "cache")


@pytest.fixture
def stamped(tmp_path: Path) -> Path:
    """A file that was last changed an hour ago."""
    path = tmp_path / "emb"
    path.write_bytes(bytes(range(256)) * 4096)
    then = time.time() - 3600
    os.utime(path, (then, then))
    return path


def cache_key_of(path: Path) -> fingerprint.CacheKey:
    return fingerprint.CacheKey("ids", IDENTITY, (fingerprint.FileStamp.of(path, path.parent),))


# --- roots ---


def test_roots_are_read_in_the_documented_order(tmp_path: Path) -> None:
    """The user's own cache comes last."""
    env = environment(SEMID_CACHE_DIR=str(tmp_path / "b"), USER_CACHE_PATH=str(tmp_path / "c"))
    roots = list(folders.CacheFolders(tmp_path / "data", tmp_path / "a", env))
    assert [root.path for root in roots[:4]] == [
        tmp_path / "a",
        tmp_path / "b",
        tmp_path / "data" / ".semantic_ids",
        tmp_path / "c" / "semantic_ids",
    ]
    assert roots[4].path == Path(os.environ["XDG_CACHE_HOME"]) / "semid_dataset"


def test_the_first_root_that_really_takes_a_write_is_written(tmp_path: Path) -> None:
    """A file in the way of the first one sends writers to the second."""
    blocked = tmp_path / "a"
    blocked.write_text("not a folder")
    roots = [root_at(blocked), root_at(tmp_path / "b")]
    assert folders.writable_root(roots) == roots[1]
    assert folders.writable_root(roots[:1]) is None


def test_looking_for_roots_creates_nothing(tmp_path: Path) -> None:
    """A reader leaves no trace."""
    roots = list(folders.CacheFolders(tmp_path / "data", tmp_path / "a", environment()))
    assert folders.lineages(roots) == []
    assert folders.generations(roots, LINEAGE) == []
    assert list(tmp_path.iterdir()) == []


# --- tables ---


def test_a_published_table_is_found_and_opened_once(root: folders.CacheFolder) -> None:
    """Within a process every file is mapped and checked once."""
    assert cache.publish_table(root, LINEAGE, 0, a_table()) is True
    assert cache.publish_table(root, LINEAGE, 0, a_table(1)) is False
    (found,) = folders.generations([root], LINEAGE)
    assert cache.open_table(found.path, mmap=True) is cache.open_table(found.path, mmap=True)
    assert folders.lineages([root]) == [LINEAGE]


def test_the_newest_generation_comes_first_and_reading_order_breaks_ties(tmp_path: Path) -> None:
    """Two roots may hold the same generation; the second is a copy to heal from."""
    first, second = root_at(tmp_path / "a"), root_at(tmp_path / "b")
    for root, generation in ((first, 0), (second, 0), (second, 10), (second, 9)):
        cache.publish_table(root, LINEAGE, generation, a_table(generation=generation))
    found = folders.generations([first, second], LINEAGE)
    assert [(table.generation, table.root) for table in found] == [(10, second), (9, second), (0, first), (0, second)]


def test_foreign_files_in_a_lineage_are_not_tables(root: folders.CacheFolder) -> None:
    """Temporary, damaged and hand-placed files are passed over."""
    folder = root.folder(LINEAGE, create=True)
    for name in (
        ".0.safetensors.abc.tmp",
        "0.safetensors.damaged-1",
        "x.safetensors",
        "007.safetensors",
        "-1.safetensors",
        "٣.safetensors",
    ):
        (folder / name).touch()
    assert folders.generations([root], LINEAGE) == []


def test_a_damaged_table_is_refused(root: folders.CacheFolder) -> None:
    """Existence is not validity."""
    cache.publish_table(root, LINEAGE, 0, a_table())
    path = root.folder(LINEAGE) / "0.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptTableError):
        cache.open_table(path, mmap=True)


@pytest.mark.parametrize("place", ["v1", f"v1/{LINEAGE}", "v1/memo"])
def test_a_link_in_the_cache_is_refused(tmp_path: Path, root: folders.CacheFolder, place: str) -> None:
    """Whoever may write into a shared cache must not send our files elsewhere."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = root.path / place
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere)
    if place.endswith("memo"):
        entries.CacheEntry(LINEAGE, 0, "d").note([root], fingerprint.CacheKey("ids", IDENTITY, ()), {})
    else:
        with pytest.raises(StoreError, match="not a folder"):
            cache.publish_table(root, LINEAGE, 0, a_table())
    assert list(elsewhere.iterdir()) == []


# --- the entry ---


def test_an_entry_is_recalled_without_reading_the_files(
    root: folders.CacheFolder, stamped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """stat is enough while device, inode and times are those noted."""
    entry = entries.CacheEntry(LINEAGE, 3, "digest")
    entry.note([root], cache_key_of(stamped), {})
    for digest in ("digest", "sampled_digest"):
        monkeypatch.setattr(fingerprint.FileStamp, digest, lambda self: pytest.fail("a file was read"))
    assert entries.CacheEntry.recall([root], cache_key_of(stamped), renew=True) == entry


def test_the_cache_key_changes_with_every_part_of_it(stamped: Path) -> None:
    """Name, size, time, identity, content, parent and kind."""
    base = cache_key_of(stamped)
    (stamp,) = base.stamps
    others = [
        replace(base, kind="json"),
        replace(base, identity=Identity.of(SemanticIdConfig(num_quantizers=2), [("81", 32)])),
        replace(base, content="x"),
        replace(base, parent="x"),
        replace(base, stamps=(replace(stamp, name="other"),)),
        replace(base, stamps=(replace(stamp, size=1),)),
        replace(base, stamps=(replace(stamp, mtime_ns=1),)),
        replace(base, stamps=()),
    ]
    assert len({cache_key.name for cache_key in [base, *others]}) == len(others) + 1
    assert replace(base, stamps=(replace(stamp, inode=1, ctime_ns=1, device=1, seen_ns=1),)).name == base.name


def test_another_inode_with_the_same_blocks_is_accepted_and_noted(root: folders.CacheFolder, stamped: Path) -> None:
    """Containers see other inodes; the next look is cheap again."""
    entry = entries.CacheEntry(LINEAGE, 0, "digest")
    entry.note([root], cache_key_of(stamped), {})
    status = stamped.stat()
    content = stamped.read_bytes()
    stamped.rename(stamped.with_name("kept"))
    stamped.write_bytes(content)
    os.utime(stamped, ns=(status.st_atime_ns, status.st_mtime_ns))
    cache_key = cache_key_of(stamped)
    assert entries.CacheEntry.recall([root], cache_key, renew=True) == entry
    noted = json.loads((root.folder("memo") / f"{cache_key.name}.json").read_text())
    assert len(noted["files"][0]["places"]) == 2


def reads_of(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is read of embedding files from now on: "all" of one, or "sampled" blocks."""
    reads: list[str] = []
    for name, what in (("digest", "all"), ("sampled_digest", "sampled")):
        real = getattr(fingerprint.FileStamp, name)
        monkeypatch.setattr(
            fingerprint.FileStamp, name, lambda self, real=real, what=what: (reads.append(what), real(self))[1]
        )
    return reads


@pytest.mark.parametrize("how", ["in place", "another file"])
def test_other_content_with_the_same_size_and_times_is_noticed_by_ctime_or_inode(
    root: folders.CacheFolder, stamped: Path, how: str
) -> None:
    """`rsync --inplace -t` and `cp -p` keep size and mtime; a byte between the sampled blocks is enough."""
    entries.CacheEntry(LINEAGE, 0, "digest").note([root], cache_key_of(stamped), {})
    status = stamped.stat()
    content = bytearray(stamped.read_bytes())
    content[4096 + 100] ^= 1
    if how == "another file":
        stamped.rename(stamped.with_name("kept"))
    stamped.write_bytes(content)
    os.utime(stamped, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert entries.CacheEntry.recall([root], cache_key_of(stamped), renew=True) is None


def test_a_changed_ctime_costs_one_digest(
    root: folders.CacheFolder, stamped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chmod leaves the content: it is read once and trusted from then on."""
    entry = entries.CacheEntry(LINEAGE, 0, "digest")
    entry.note([root], cache_key_of(stamped), {})
    stamped.chmod(0o600)
    reads = reads_of(monkeypatch)
    for _ in range(3):
        assert entries.CacheEntry.recall([root], cache_key_of(stamped), renew=True) == entry
    assert reads == ["all"]


@pytest.mark.parametrize("seconds", [3600.0, -3600.0, 86_400.0 * 365 * 20], ids=["ahead", "behind", "in 20 years"])
def test_a_file_whose_time_was_set_is_trusted_at_once(
    root: folders.CacheFolder, stamped: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """Every later write shows in its time, also where that lies in the future: warm starts read nothing."""
    then = time.time() + seconds
    os.utime(stamped, (then, then))
    entry = entries.CacheEntry(LINEAGE, 0, "digest")
    entry.note([root], cache_key_of(stamped), {})
    reads = reads_of(monkeypatch)
    for _ in range(3):
        assert entries.CacheEntry.recall([root], cache_key_of(stamped), renew=True) == entry
    assert reads == []


@pytest.mark.parametrize("skew", [-61, 0, 61])
def test_a_file_just_written_is_hashed_once_whatever_the_clocks(
    root: folders.CacheFolder, stamped: Path, monkeypatch: pytest.MonkeyPatch, skew: int
) -> None:
    """The server that dates files may be a minute before or after this machine."""
    stamped.write_bytes(stamped.read_bytes())
    (stamp,) = cache_key_of(stamped).stamps

    def asked() -> fingerprint.CacheKey:
        seen = stamp.mtime_ns + skew * 1_000_000_000
        return fingerprint.CacheKey("ids", IDENTITY, (replace(stamp, seen_ns=seen, looked=time.monotonic()),))

    entry = entries.CacheEntry(LINEAGE, 0, "digest")
    entry.note([root], asked(), {})
    noted = root.folder("memo") / f"{asked().name}.json"
    os.utime(noted, ns=(0, noted.stat().st_mtime_ns - 2 * fingerprint.FRESH_NS))  # noted that long ago
    reads = reads_of(monkeypatch)
    for _ in range(3):
        assert entries.CacheEntry.recall([root], asked(), renew=True) == entry
    assert reads == ["all"]


@pytest.mark.parametrize("where", [0, 500_000, 1_048_575])
def test_other_content_of_the_same_size_and_time_is_noticed(
    root: folders.CacheFolder, stamped: Path, where: int
) -> None:
    """Sampled blocks reach from the first byte to the last."""
    entries.CacheEntry(LINEAGE, 0, "digest").note([root], cache_key_of(stamped), {})
    status = stamped.stat()
    content = bytearray(stamped.read_bytes())
    content[where // 16_644 * 16_644 if where not in (0, 1_048_575) else where] ^= 1
    stamped.rename(stamped.with_name("kept"))
    stamped.write_bytes(content)
    os.utime(stamped, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert entries.CacheEntry.recall([root], cache_key_of(stamped), renew=False) is None


def test_a_file_that_was_too_fresh_is_hashed_before_it_is_trusted(root: folders.CacheFolder, stamped: Path) -> None:
    """Within two seconds a change can leave the time as it was."""
    stamped.write_bytes(b"a" * 200_000)
    cache_key = cache_key_of(stamped)
    entries.CacheEntry(LINEAGE, 0, "digest").note([root], cache_key, {})
    with stamped.open("r+b") as file:  # between two sampled blocks, time and inode kept
        file.seek(4096 + 100)
        file.write(b"b")
    (stamp,) = cache_key.stamps
    os.utime(stamped, ns=(stamp.mtime_ns, stamp.mtime_ns))
    assert entries.CacheEntry.recall([root], cache_key_of(stamped), renew=True) is None


def test_a_fresh_file_that_stayed_is_trusted_from_then_on(root: folders.CacheFolder, stamped: Path) -> None:
    """Hashing it once is enough."""
    stamped.write_bytes(b"a" * 100)
    entry = entries.CacheEntry(LINEAGE, 0, "digest")
    entry.note([root], cache_key_of(stamped), {})
    cache_key = cache_key_of(stamped)
    noted = root.folder("memo") / f"{cache_key.name}.json"
    os.utime(noted, ns=(0, noted.stat().st_mtime_ns - 2 * fingerprint.FRESH_NS))  # noted that long ago
    assert entries.CacheEntry.recall([root], cache_key, renew=True) == entry
    noted = json.loads((root.folder("memo") / f"{cache_key.name}.json").read_text())
    assert noted["files"][0]["fresh"] is False


@pytest.mark.parametrize("content", ["", "{", "[]", '{"lineage": 1}', "\0" * 100, '{"files": [], "lineage": "x"}'])
def test_a_torn_entry_is_a_miss(root: folders.CacheFolder, stamped: Path, content: str) -> None:
    """Power may fail while it is written; it is not worth a sync."""
    cache_key = cache_key_of(stamped)
    (root.folder("memo", create=True) / f"{cache_key.name}.json").write_text(content)
    assert entries.CacheEntry.recall([root], cache_key, renew=False) is None


def test_what_last_served_a_directory_is_remembered_by_its_real_path(root: folders.CacheFolder, tmp_path: Path) -> None:
    """Links to it are the same directory."""
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    assert served.served_before([root], tmp_path / "data") is None
    entry = entries.CacheEntry(LINEAGE, 3, "0" * 64)
    served.note_served([root], tmp_path / "data", "ab", entry)
    for kind in ("", "ab"):
        found = served.served_before([root], tmp_path / "link", kind)
        assert found is not None
        assert (found.root, found.entry, found.own) == (root, entry, True)
    assert served.served_before([root], tmp_path / "link", "cd") is None


# --- the lock ---


@pytest.fixture
def holder(root: folders.CacheFolder) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds the lock "q" until it is ended."""
    code = (
        "import sys, time, pathlib; from semid_dataset.cache import cache, folders, lock\n"
        "path = pathlib.Path(sys.argv[1]); root = folders.CacheFolder(path, path)\n"
        "with lock.take_lease(root, 'q', timeout=60, ready=lambda: False) as lease:\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(root.path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_waiter_leaves_when_the_answer_is_there(root: folders.CacheFolder, holder: subprocess.Popen[bytes]) -> None:
    """It need not wait for the lock itself."""
    with lock.take_lease(root, "q", timeout=60, ready=lambda: True) as lease:
        assert lease is None


def test_a_waiter_takes_over_when_the_owner_dies(root: folders.CacheFolder, holder: subprocess.Popen[bytes]) -> None:
    """The kernel frees the lock of a dead process."""
    os.kill(holder.pid, signal.SIGKILL)
    with lock.take_lease(root, "q", timeout=30, ready=lambda: False) as lease:
        assert lease is not None


def test_an_owner_without_progress_is_given_up_by_name(
    root: folders.CacheFolder, holder: subprocess.Popen[bytes]
) -> None:
    """The error names the process and the setting."""
    os.kill(holder.pid, signal.SIGSTOP)
    try:
        with pytest.raises(LockTimeoutError, match=rf"process {holder.pid} on .*SEMID_LOCK_TIMEOUT"):  # noqa: SIM117
            with lock.take_lease(root, "q", timeout=0.5, ready=lambda: False):
                pass
    finally:
        os.kill(holder.pid, signal.SIGCONT)


def test_waiting_is_said_with_the_owner(
    root: folders.CacheFolder,
    holder: subprocess.Popen[bytes],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Who reads the log knows whom to look at."""
    monkeypatch.setattr(lock, "SAY_SECONDS", 0.2)
    with caplog.at_level("INFO", "semid_dataset"), pytest.raises(LockTimeoutError):  # noqa: SIM117
        with lock.take_lease(root, "q", timeout=0.8, ready=lambda: False):
            pass
    assert f"Waiting for process {holder.pid}" in caplog.text


def test_progress_of_the_owner_keeps_the_others_waiting(
    root: folders.CacheFolder, holder: subprocess.Popen[bytes]
) -> None:
    """Only silence ends the wait."""
    heartbeats = iter(range(40))
    owner = root.folder("locks") / "q.owner"

    def answer_after_forty_looks() -> bool:
        number = next(heartbeats, None)
        if number is None:
            return True
        owner.write_text(json.dumps({"pid": 1, "host": "h", "beats": number}))
        return False

    with lock.take_lease(root, "q", timeout=1.5, ready=answer_after_forty_looks) as lease:
        assert lease is None


def test_an_owner_that_never_ends_is_given_up_at_the_deadline(
    root: folders.CacheFolder, holder: subprocess.Popen[bytes]
) -> None:
    """Progress keeps waiters for the deadline at most; the error names the process and the setting."""
    owner = root.folder("locks") / "q.owner"
    looks = iter(range(10_000))

    def never() -> bool:
        owner.write_text(json.dumps({"pid": holder.pid, "host": "h", "beats": next(looks)}))
        return False

    with pytest.raises(LockTimeoutError, match=rf"process {holder.pid} on h has held .*SEMID_LOCK_DEADLINE"):  # noqa: SIM117
        with lock.take_lease(root, "q", timeout=60, deadline=1.0, ready=never):
            pass


@pytest.mark.parametrize("error", ["ENOLCK", "EOPNOTSUPP", "EIO", "ESTALE", "ENOSYS"])
def test_a_lock_that_fails_is_warned_about_and_done_without(
    root: folders.CacheFolder, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    """Correctness never rests on it, and no marker file is left behind."""
    import errno
    import fcntl

    def fail(*_: object) -> None:
        raise OSError(getattr(errno, error), error)

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.warns(SemanticIdWarning, match="without it"):  # noqa: SIM117
        with lock.take_lease(root, "q", timeout=5, ready=lambda: False) as lease:
            assert lease is not None
    assert {path.name for path in root.folder("locks").iterdir()} <= {"q.lock", "q.owner"}


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_something_else_at_the_locks_path_is_done_without(root: folders.CacheFolder, tmp_path: Path, kind: str) -> None:
    """It is neither followed nor waited for."""
    path = root.folder("locks", create=True) / "q.lock"
    if kind == "link":
        path.symlink_to(tmp_path / "target")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.warns(SemanticIdWarning, match="without it"):  # noqa: SIM117
        with lock.take_lease(root, "q", timeout=5, ready=lambda: False) as lease:
            assert lease is not None
    assert not (tmp_path / "target").exists()


def _hold_the_lease(root: folders.CacheFolder, marker: Path, failures: Path) -> None:
    for _ in range(20):
        with lock.take_lease(root, "q", timeout=60, ready=lambda: False):
            try:
                marker.mkdir()  # fails if another process is inside
                time.sleep(0.001)
                marker.rmdir()
            except FileExistsError:
                failures.touch()


def test_one_process_at_a_time(root: folders.CacheFolder, tmp_path: Path) -> None:
    """An occupancy marker would show two."""
    context = multiprocessing.get_context("fork")
    arguments = (root, tmp_path / "inside", tmp_path / "failed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        processes = [context.Process(target=_hold_the_lease, args=arguments) for _ in range(4)]
        for process in processes:
            process.start()
    for process in processes:
        process.join(50)
        assert process.exitcode == 0
    assert not (tmp_path / "failed").exists()


def test_without_a_root_there_is_no_waiting() -> None:
    """IDs then stay in memory, so there is nothing to meet at."""
    with lock.take_lease(None, "q", timeout=1, ready=lambda: False) as lease:
        assert lease is not None
        lease.heartbeat()
