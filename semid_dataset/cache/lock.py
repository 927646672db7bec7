"""
How processes meet: one generates, the others wait for what it publishes.

The lock saves work and nothing else: files are published first-wins (see `_files`), so two writers
that both believe to hold it waste time and never disagree. Lock files stay: unlinking one lets two
processes hold "the" lock.
"""

import json
import math
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from semid_dataset import _files as files
from semid_dataset._messages import degrade, tell
from semid_dataset._process import forks
from semid_dataset.cache.folders import CacheFolder
from semid_dataset.cache.notes import parse_note, record, text, whole
from semid_dataset.errors import LockTimeoutError, StoreError

__all__ = ["Lease", "take_lease"]

POLL_SECONDS = 0.1
SAY_SECONDS = 10.0
HEARTBEAT_SECONDS = 1.0
MOST_BYTES = 4096  # of the file that says who holds the lock
OWNER = record({"pid": whole(0, 1 << 31), "host": text("[ -~]{0,255}")})
_held: dict[Path, tuple[int, int]] = {}  # locks of this process, and which thread has them, after how many forks


class Lease:
    """
    One process's lease of generating.

    `heartbeat()` tells the others that work goes on; call it whenever some of it is done.
    """

    def __init__(self, owner_file: Path | None) -> None:
        self._owner_file = owner_file
        self._last_heartbeat = 0.0
        self._heartbeats = 0

    def heartbeat(self) -> None:
        """Say that there was progress; at most once a second it reaches the disk."""
        now = time.monotonic()
        if self._owner_file is None or now - self._last_heartbeat < HEARTBEAT_SECONDS:
            return
        self._last_heartbeat = now
        self._heartbeats += 1
        owner = {"host": os.uname().nodename, "pid": os.getpid(), "beats": self._heartbeats, "time": time.time()}
        with suppress(OSError):  # the others see an older heartbeat: they may stop waiting, nothing worse
            files.replace_file(self._owner_file, [json.dumps(owner).encode()], sync=False)


@contextmanager
def take_lease(
    root: CacheFolder | None, name: str, *, timeout: float, ready: Callable[[], bool], deadline: float = math.inf
) -> Iterator[Lease | None]:
    """
    Wait until this process may generate, or until there is no need to.

    Args:
        root: where the lock lies; None where no cache takes a write: no waiting then.
        name: of the question, so that those who ask the same meet here.
        timeout: seconds without progress of the owner after which waiting ends.
        ready: tells whether the answer has become visible meanwhile; asked ten times a second.
        deadline: seconds after which waiting ends although the owner makes progress.

    Yields:
        A lease, or None if `ready()` became true while another process held the lock.

    Raises:
        LockTimeoutError: the owner makes no progress, or does not come to an end.
    """
    if root is None:
        yield Lease(None)
        return
    import filelock  # 40 ms: only where something is generated

    folder = root.folder("locks", create=True)
    path, owner_file = folder / f"{name}.lock", folder / f"{name}.owner"
    holder = (forks(), threading.get_ident())
    if _held.get(path) == holder:
        # What generates was interrupted (a signal's handler, a property of the dataset), and the same is asked for
        # within it: who waited would wait for himself. The work is done twice; who publishes first is served.
        yield Lease(None)
        return
    wait = _Wait(owner_file, timeout, deadline, ready)
    # Without the soft fallback: where flock is missing, a marker file that outlives a kill would block everyone.
    lock = filelock.UnixFileLock(path, fallback_to_soft=False, thread_local=False)
    try:
        if path.is_symlink() or (path.exists() and not stat.S_ISREG(path.lstat().st_mode)):
            raise StoreError(f"'{path}' is not a regular file")
        lock.acquire(timeout=-1, poll_interval=POLL_SECONDS, cancel_check=wait.over)
    except filelock.Timeout:
        if wait.served:
            yield None
            return
        if wait.too_long:
            raise LockTimeoutError(
                f"{wait.owner} has held '{path}' for {deadline:g} s and goes on. Nothing was changed. End that "
                "process, or wait longer: SEMID_LOCK_DEADLINE (seconds, or 24h; by default 288 lock timeouts)."
            ) from None
        raise LockTimeoutError(
            f"{wait.owner} holds '{path}' and has made no progress for {timeout:g} s. Nothing was changed. "
            "End that process, or wait longer: lock_timeout of SemanticIdConfig, or SEMID_LOCK_TIMEOUT (seconds)."
        ) from None
    except OSError as error:
        degrade("unlocked", path=path, error=error)
        yield Lease(owner_file)
        return
    try:
        _held[path] = holder
        lease = Lease(owner_file)
        lease.heartbeat()
        yield lease
    finally:
        _held.pop(path, None)
        lock.release()


class _Wait:
    """What a waiting process looks at, ten times a second, to know whether to go on waiting."""

    def __init__(self, owner_file: Path, timeout: float, deadline: float, ready: Callable[[], bool]) -> None:
        self._owner_file = owner_file
        self._timeout = timeout
        self._deadline = deadline
        self._ready = ready
        self._started = self._progress_at = self._said_at = time.monotonic()
        self._last_seen: bytes | None = None
        self.owner = "another process"
        self.served = self.too_long = False

    def over(self) -> bool:
        """Whether waiting has ended, with an answer (`served`) or without."""
        if self._ready():
            self.served = True
            return True
        now = time.monotonic()
        self._look_at_owner(now)
        if now - self._said_at >= SAY_SECONDS:
            self._said_at = now
            tell("waiting", owner=self.owner, seconds=now - self._started)
        self.too_long = now - self._started > self._deadline
        return self.too_long or now - self._progress_at > self._timeout

    def _look_at_owner(self, now: float) -> None:
        with suppress(OSError, ValueError):
            seen, _ = files.read_small(self._owner_file, MOST_BYTES)
            if seen != self._last_seen:
                self._last_seen, self._progress_at = seen, now
                owner = parse_note(seen, OWNER)
                self.owner = f"process {owner['pid']} on {owner['host']}"
