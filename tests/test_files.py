"""No reader ever sees half of a file, and nothing but regular files is read."""

import errno
import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from semid_dataset import _files as files
from semid_dataset.errors import StoreError


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_the_first_to_publish_wins_and_the_others_are_told(tmp_path: Path) -> None:
    """What others already serve is never replaced."""
    assert files.publish_first(tmp_path, "t", [b"one", memoryview(b" two")]) is True
    assert files.publish_first(tmp_path, "t", [b"three"]) is False
    assert (tmp_path / "t").read_bytes() == b"one two"
    assert leftovers(tmp_path) == []


def _publish(folder: Path, value: int, start: Path, wins: Path) -> None:
    while not start.exists():
        time.sleep(0.001)
    if files.publish_first(folder, "t", [bytes([value]) * 100_000]):
        (wins / str(value)).touch()


@pytest.mark.parametrize("links", [True, False])
def test_of_many_writers_exactly_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    """With hard links, and on file systems that have none."""
    if not links:
        monkeypatch.setattr(os, "link", _refuse_link)
    folder, wins, start = tmp_path / "f", tmp_path / "wins", tmp_path / "start"
    folder.mkdir()
    wins.mkdir()
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_publish, args=(folder, k, start, wins)) for k in range(6)]
    for writer in writers:
        writer.start()
    start.touch()
    for writer in writers:
        writer.join(30)
        assert writer.exitcode == 0
    (winner,) = wins.iterdir()
    assert (folder / "t").read_bytes() == bytes([int(winner.name)]) * 100_000


def _refuse_link(*_: object, **__: object) -> None:
    raise OSError(errno.EPERM, "links are refused here")


def test_a_writer_that_died_between_claim_and_rename_blocks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its claim is freed after a minute."""
    monkeypatch.setattr(os, "link", _refuse_link)
    claim = tmp_path / ".t.claim"
    claim.touch()
    old = time.time() - files.CLAIM_SECONDS - 1
    os.utime(claim, (old, old))
    assert files.publish_first(tmp_path, "t", [b"x"]) is True
    assert (tmp_path / "t").read_bytes() == b"x"


@pytest.mark.parametrize("ahead", [3600, 0, -30], ids=["dated ahead", "dated now", "dated before"])
@pytest.mark.parametrize("call", ["a file system that renames without replacing", "one that does not"])
def test_a_dead_claim_is_waited_for_by_this_processs_own_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: int, call: str
) -> None:
    """Its date may be of another machine's clock: an hour ahead, it was waited for without end."""
    monkeypatch.setattr(os, "link", _refuse_link)
    if call == "one that does not":
        monkeypatch.setattr(files, "_rename", _not_implemented)
    monkeypatch.setattr(files, "CLAIM_SECONDS", 40.0)
    claim = tmp_path / ".t.claim"
    claim.touch()
    then = time.time() + ahead
    os.utime(claim, (then, then))
    now = time.monotonic()
    monkeypatch.setattr(time, "sleep", lambda _: None)
    ticks = iter(range(10**9))
    monkeypatch.setattr(time, "monotonic", lambda: now + next(ticks))  # a second a look
    assert files.publish_first(tmp_path, "t", [b"x"]) is True
    assert next(ticks) <= 200
    assert (tmp_path / "t").read_bytes() == b"x"


def _not_implemented(*_: object) -> bool:
    raise NotImplementedError("no renameat2")


@pytest.mark.parametrize("renames", [True, False], ids=["with renameat2", "without"])
def test_a_writer_that_stood_still_does_not_replace_what_others_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: bool
) -> None:
    """Its claim was taken over meanwhile, by one whose clock is 61 s apart: one of them won, not both."""
    monkeypatch.setattr(os, "link", _refuse_link)
    if not renames:
        monkeypatch.setattr(files, "_rename", _not_implemented)
    lexists = os.path.lexists
    stolen = []

    def stand_still(path: Path) -> bool:
        found = lexists(path)
        if not stolen and (tmp_path / ".t.claim").exists():  # between the claim and the rename
            stolen.append(True)
            monkeypatch.setattr(files, "CLAIM_SECONDS", 0.0)
            assert files.publish_first(tmp_path, "t", [b"second"]) is True
        return found

    monkeypatch.setattr(os.path, "lexists", stand_still)
    assert files.publish_first(tmp_path, "t", [b"first"]) is False
    assert (tmp_path / "t").read_bytes() == b"second"


# --- files of ours among the user's ---

OURS = {b"old export", b"new export"}


def ours(path: Path) -> bool:
    return path.read_bytes() in OURS


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "none"])
@pytest.mark.parametrize("renames", [True, False], ids=["renameat2", "none"])
@pytest.mark.parametrize("before", [None, b"old export", b"hand-made"], ids=["nothing", "ours", "theirs"])
def test_a_file_of_ours_replaces_only_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool, renames: bool, before: bytes | None
) -> None:
    """Whatever the file system can do; nothing stays beside it."""
    if not links:
        monkeypatch.setattr(os, "link", _refuse_link)
    if not renames:
        monkeypatch.setattr(files, "_rename", _not_implemented)
    path = tmp_path / "ids.json"
    if before is not None:
        path.write_bytes(before)
    placed = files.place_file(path, [b"new ", b"export"], ours)
    theirs = before == b"hand-made"
    assert path.read_bytes() == (b"hand-made" if theirs else b"new export")
    assert (placed is None) is theirs
    assert placed is None or placed.st_ino == path.stat().st_ino
    assert leftovers(tmp_path) == []


MOMENTS = ["open", "write", "fsync", "link", "rename", "ours", "exchange"]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("before", [None, b"old export"], ids=["nothing", "ours"])
def test_a_file_of_the_users_that_arrives_at_any_moment_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, before: bytes | None
) -> None:
    """It is moved to its name as `mv` does; 5 of 5 were overwritten once."""
    path, arrives = tmp_path / "ids.json", tmp_path / "hand.json"
    if before is not None:
        path.write_bytes(before)
    came = []

    def arrive(call: Any) -> Any:
        def held(*arguments: Any, **named: Any) -> Any:
            if not came:
                came.append(True)
                arrives.write_bytes(b"hand-made")
                os.replace(arrives, path)  # noqa: PTH105
            return call(*arguments, **named)

        return held

    look = ours
    if moment == "ours":
        look = arrive(ours)
    elif moment == "exchange":
        monkeypatch.setattr(files, "_rename", arrive(files._rename))
    elif moment == "rename":
        monkeypatch.setattr(Path, "rename", arrive(Path.rename))
    else:
        monkeypatch.setattr(os, moment, arrive(getattr(os, moment)))
    placed = files.place_file(path, [b"new export"], look)
    monkeypatch.undo()
    if came:
        assert path.read_bytes() == b"hand-made"
        assert placed is None
    else:  # there was nothing to look at or to exchange with
        assert before is None
        assert path.read_bytes() == b"new export"
    assert leftovers(tmp_path) == []


def test_what_a_killed_writer_left_among_the_users_files_is_swept(tmp_path: Path) -> None:
    """SIGKILL at every step of it; what a living writer is at stays, and so does the user's file."""
    path = tmp_path / "ids.json"
    path.write_bytes(b"old export")
    killed = 0
    for step, name in enumerate(["link", "fsync", "unlink", "close", "utime"]):
        child = os.fork()
        if child == 0:
            setattr(os, name, lambda *_, **__: os.kill(os.getpid(), 9))
            files.place_file(path, [b"new export"], ours, backdate_ns=1)
            os._exit(0)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        assert path.read_bytes() in OURS, step
    assert killed >= 4
    assert leftovers(tmp_path) != []
    alive, lock = files._write_locked(tmp_path, "ids.json", [b"half"])
    assert files.place_file(path, [b"new export"], ours) is not None
    assert leftovers(tmp_path) == [alive.name]
    os.close(lock)
    alive.rename(alive.with_suffix(".swap"))  # killed in an exchange: what came out of it is the user's
    path.unlink()
    files.sweep_placed(path, ours)
    assert path.read_bytes() == b"half"
    assert leftovers(tmp_path) == []


def test_leftovers_are_judged_by_the_folders_own_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose clock is two hours ahead must not remove what others are writing."""
    young = tmp_path / ".x.0.tmp"
    young.touch()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 2 * files.LEFTOVER_SECONDS)
    files.publish_first(tmp_path, "t", [b"x"])
    assert young.exists()
    old = real() - 2 * files.LEFTOVER_SECONDS
    os.utime(young, (old, old))
    files.publish_first(tmp_path, "u", [b"x"])
    assert not young.exists()


# --- what cannot be mapped, and what is not there ---


def test_what_cannot_be_mapped_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOMEM where a process has too many maps, ENODEV on some file systems."""
    import mmap

    (tmp_path / "t").write_bytes(b"x" * 5000)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refuse)
    assert bytes(files.map_file(tmp_path / "t")[0]) == b"x" * 5000


@pytest.mark.parametrize("mapped", [True, False])
def test_a_file_of_holes_is_refused_before_it_is_read(tmp_path: Path, mapped: bool) -> None:
    """16 GiB that nobody wrote; one of 200 MB that was never synced is read, as some file systems count late."""
    hollow = tmp_path / "t"
    with hollow.open("wb") as file:
        file.write(b"header")
        file.truncate(16 << 30)
    if hollow.stat().st_blocks == 0:
        pytest.skip("this file system does not say how much of a file was written")
    with pytest.raises(StoreError, match=r"claims 17,179,869,184 bytes"):
        files.map_file(hollow, mmap=mapped)


@pytest.mark.parametrize("call", ["write", "fsync", "link"])
def test_a_failing_call_leaves_nothing_under_the_final_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """A full disk must not look like a table."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="no space left"):
        files.publish_first(tmp_path, "t", [b"x"])
    assert list(tmp_path.iterdir()) == []


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """write() may take less than it was given."""
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(data)[:3]))
    files.publish_first(tmp_path, "t", [b"0123456789"])
    assert (tmp_path / "t").read_bytes() == b"0123456789"


def test_a_folder_that_cannot_be_synced_does_not_undo_a_publish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is linked by then, and readers find it."""
    fsync = os.fsync

    def fail_on_folders(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112
            raise OSError(errno.EIO, "cannot sync")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_on_folders)
    assert files.publish_first(tmp_path, "t", [b"x"]) is True
    assert (tmp_path / "t").read_bytes() == b"x"


def test_a_retried_link_that_had_succeeded_counts_as_won(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system may link, lose the answer, try again and find its own file."""
    link = os.link

    def link_twice(*args: object, **kwargs: object) -> None:
        link(*args, **kwargs)  # type: ignore[arg-type]
        raise FileExistsError

    monkeypatch.setattr(os, "link", link_twice)
    assert files.publish_first(tmp_path, "t", [b"x"]) is True


def test_leftovers_of_dead_writers_are_swept_when_old(tmp_path: Path) -> None:
    """A fresh one may belong to a writer at work."""
    old, fresh = tmp_path / ".t.1.tmp", tmp_path / ".t.2.tmp"
    for path in (old, fresh):
        path.touch()
    then = time.time() - files.LEFTOVER_SECONDS - 1
    os.utime(old, (then, then))
    files.publish_first(tmp_path, "t", [b"x"])
    assert leftovers(tmp_path) == [".t.2.tmp"]


def test_new_files_follow_the_umask(tmp_path: Path) -> None:
    """
    Those who share a cache must be able to read it; a temporary file's 0600 would keep them out.

    What is published never changes, so nobody may write it: `cp` over it would change it under its readers.
    """
    before = os.umask(0o022)
    try:
        files.publish_first(tmp_path, "t", [b"x"])
        files.replace_file(tmp_path / "r", [b"x"])
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in "tr"] == [0o444, 0o644]


def test_a_replaced_file_is_whole_and_the_old_map_stays(tmp_path: Path) -> None:
    """A reader keeps what it mapped."""
    path = tmp_path / "r"
    files.replace_file(path, [b"old"])
    view, _ = files.map_file(path)
    files.replace_file(path, [b"new"])
    assert bytes(view) == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("kind", ["link", "fifo", "folder", "device", "socket"])
def test_what_is_no_regular_file_is_refused_without_hanging(tmp_path: Path, kind: str) -> None:
    """A FIFO would wait for a writer that never comes."""
    import socket

    path = tmp_path / "t"
    if kind == "link":
        (tmp_path / "target").write_bytes(b"x")
        path.symlink_to(tmp_path / "target")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        if os.geteuid() != 0:
            pytest.skip("making a device needs root")
        os.mknod(path, 0o020666, os.makedev(1, 5))
    else:
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(path))
        server.close()
    with pytest.raises(StoreError, match="not a regular file"):
        files.map_file(path)


def test_users_own_files_may_be_links(tmp_path: Path) -> None:
    """Mounted volumes are full of them."""
    (tmp_path / "target").write_bytes(b"x")
    (tmp_path / "t").symlink_to(tmp_path / "target")
    assert bytes(files.map_file(tmp_path / "t", follow=True)[0]) == b"x"


@pytest.mark.parametrize("mmap", [True, False])
def test_mapped_and_copied_bytes_are_equal_and_read_only(tmp_path: Path, mmap: bool) -> None:
    """SEMID_MMAP=0 changes how bytes come, not what they are."""
    (tmp_path / "t").write_bytes(b"abc")
    (tmp_path / "empty").touch()
    view, status = files.map_file(tmp_path / "t", mmap=mmap)
    assert (bytes(view), view.readonly, status.st_size) == (b"abc", True, 3)
    assert bytes(files.map_file(tmp_path / "empty", mmap=mmap)[0]) == b""


def test_a_link_below_the_users_folder_is_refused(tmp_path: Path) -> None:
    """Somebody who may write into a shared cache must not send our files elsewhere."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "v1").symlink_to(elsewhere)
    with pytest.raises(StoreError, match="not a folder"):
        files.real_folder(tmp_path / "cache" / "v1" / "x", tmp_path / "cache", create=True)
    assert list(elsewhere.iterdir()) == []


def test_a_damaged_file_is_set_aside_and_its_name_is_free(tmp_path: Path) -> None:
    """It is evidence, so it is never deleted."""
    path = tmp_path / "t"
    path.write_bytes(b"damaged")
    aside = files.set_aside(path, path.stat().st_ino)
    assert aside is not None
    assert aside.read_bytes() == b"damaged"
    assert not path.exists()
    assert files.publish_first(tmp_path, "t", [b"healed"]) is True


def test_a_file_that_was_healed_meanwhile_is_not_set_aside(tmp_path: Path) -> None:
    """The name may be a good file's by now."""
    path = tmp_path / "t"
    path.write_bytes(b"damaged")
    inode = path.stat().st_ino
    os.rename(path, tmp_path / "kept")  # noqa: PTH104
    path.write_bytes(b"good")
    assert files.set_aside(path, inode) is None
    assert path.read_bytes() == b"good"
    assert files.set_aside(tmp_path / "gone", 1) is None


def test_a_pair_is_replaced_together_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt before the renaming leaves the old pair; one within it leaves the first alone."""
    one, two = tmp_path / "a.npy", tmp_path / "a.npy.items.json"
    files.replace_pair((one, [b"old"]), (two, [b"old"]))

    def interrupted() -> Iterator[bytes]:
        yield b"new"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.replace_pair((one, [b"new"]), (two, interrupted()))
    assert (one.read_bytes(), two.read_bytes()) == (b"old", b"old")
    real = Path.replace

    def stopped(path: Path, target: Path) -> Path:
        if target == two:
            raise KeyboardInterrupt
        return real(path, target)

    monkeypatch.setattr(Path, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        files.replace_pair((one, [b"new"]), (two, [b"new"]))
    assert (one.read_bytes(), two.exists()) == (b"new", False)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]
