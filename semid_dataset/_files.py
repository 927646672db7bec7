"""
Bytes on disk, so that no reader ever sees half of a file and nobody overwrites what others serve.

A writer fills a sibling temporary file, syncs it and links it to its final name: the first to link
wins, and the others serve what it wrote. Readers refuse whatever is not a regular file before they
read a byte: a FIFO would hang them, a device would never end, a link at a path of our own was put
there by somebody else.

Knows nothing of tables: paths and bytes only.
"""

import errno
import mmap as mmap_module
import os
import re
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from semid_dataset._messages import logger, tell
from semid_dataset.errors import StoreError

__all__ = [
    "abandoned",
    "clock_ns",
    "link_first",
    "map_file",
    "open_regular",
    "place_file",
    "publish_first",
    "read_head",
    "read_small",
    "real_folder",
    "replace_file",
    "replace_pair",
    "set_aside",
    "sweep_placed",
    "sync_folder",
    "try_write",
]

TABLE_FILE = "semid_table.safetensors"  # a table's name in an output folder, and beside a recommender's weights

Buffer = bytes | bytearray | memoryview

NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
CLAIM_SECONDS = 60.0  # a claim without its file for so long belongs to a writer that died in between
SHOWN_NAME = 200  # bytes of a file's name in that of its temporary file
LEFTOVER_SECONDS = 3600.0  # temporary files older than this belong to writers that died
FIRST_READ = 1 << 14  # bytes: most headers
LARGE = 1 << 28  # bytes; below, even a file of nothing but holes is read in a moment
HOLLOW = 64  # a file of which less than this part was written is none of ours, compressed by its file system or not
WRITE_BYTES = 1 << 26  # a write call's share: some file systems fail above 2 GB


def open_regular(path: Path, *, follow: bool = False) -> int:
    """
    Open a file for reading and return its descriptor.

    Args:
        path: the file.
        follow: accept a symbolic link, as users' own data may be one.

    Raises:
        StoreError: it is no regular file, or a link where none belongs.
        FileNotFoundError, PermissionError, OSError: as os.open says.
    """
    # What a person named may lie where it does on purpose; only in our own cache has nothing else a place.
    advice = "" if follow else " It was left untouched; remove it."
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO}:  # a link; a socket
            raise StoreError(f"'{path}' is not a regular file.{advice}") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise StoreError(f"'{path}' is not a regular file.{advice}")
    return descriptor


def map_file(path: Path, *, mmap: bool = True, follow: bool = False) -> tuple[memoryview, os.stat_result]:
    """
    Return the bytes of a file, as one read-only map that all processes share, and its status.

    With `mmap=False` the bytes are copied into memory: on file systems that cut files under a map
    a reader of the map would be killed by SIGBUS. What cannot be mapped is copied, too.

    Raises:
        StoreError: as `open_regular`; or it claims to be large and next to nothing of it was ever written: whoever
            made it wants readers to spend memory and time on zeros.
        FileNotFoundError, PermissionError, OSError: as the system says.
    """
    descriptor = open_regular(path, follow=follow)
    try:
        status = os.fstat(descriptor)
        if status.st_size == 0:
            return memoryview(b""), status
        written = 512 * getattr(status, "st_blocks", 0)
        if status.st_size > LARGE and 0 < written < status.st_size // HOLLOW:  # 0: the file system does not say
            raise StoreError(
                f"'{path}' claims {status.st_size:,} bytes and {written:,} of them were written. It was not read and "
                "left untouched; remove it."
            )
        if mmap:
            try:
                return memoryview(mmap_module.mmap(descriptor, status.st_size, prot=mmap_module.PROT_READ)), status
            except OSError as error:  # no room among the maps of this process, or a file system without them
                logger.debug("'%s' cannot be mapped and is copied into memory: %s", path, error)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return memoryview(file.read(status.st_size)), status
    finally:
        os.close(descriptor)


def read_head(path: Path, limit: int) -> bytes:
    """
    Return the first 8 bytes of a table and the header whose length they give; no more is read of it.

    Raises:
        StoreError: it is no regular file, or its header is longer than `limit` bytes.
        FileNotFoundError, PermissionError, OSError: as os.open says.
    """
    descriptor = open_regular(path)
    try:
        start = os.pread(descriptor, FIRST_READ, 0)
        length = 8 + int.from_bytes(start[:8], "little")
        if length > 8 + limit:
            raise StoreError(f"'{path}' claims a header of {length:,} bytes where {limit:,} are the most.")
        while len(start) < length and (block := os.pread(descriptor, length - len(start), len(start))):
            start += block
        return start[:length]
    finally:
        os.close(descriptor)


def read_small(path: Path, limit: int) -> tuple[bytes, os.stat_result]:
    """
    Return the bytes of a file of ours that is never large, and its status.

    Raises:
        StoreError: it is no regular file, or larger than `limit` bytes. Nothing was read.
        FileNotFoundError, PermissionError, OSError: as os.open says.
    """
    descriptor = open_regular(path)
    try:
        status = os.fstat(descriptor)
        if status.st_size > limit:
            raise StoreError(f"'{path}' has {status.st_size:,} bytes where {limit:,} are the most. It was not read.")
        content = b""
        while len(content) <= limit and (block := os.read(descriptor, limit + 1 - len(content))):
            content += block
        if len(content) > limit:  # it grew meanwhile
            raise StoreError(f"'{path}' has more than {limit:,} bytes. It was not used.")
        return content, status
    finally:
        os.close(descriptor)


def real_folder(path: Path, base: Path, *, create: bool = False) -> Path:
    """
    Return `path` after a look at every folder from `base` down to it: none may be a link or a file.

    `base` itself is the user's and may be reached through links.

    Raises:
        StoreError: something else than a folder is in the way.
        FileNotFoundError, OSError: as os.lstat and os.mkdir say.
    """
    if create:
        base.mkdir(parents=True, exist_ok=True)
    folder = base
    for part in path.relative_to(base).parts:
        folder = folder / part
        if create:
            with suppress(FileExistsError):
                folder.mkdir()
        if not stat.S_ISDIR(folder.lstat().st_mode):
            raise StoreError(f"'{folder}' is not a folder. It was left untouched; remove it.")
    return folder


def publish_first(folder: Path, name: str, buffers: Iterable[Buffer]) -> bool:
    """
    Write `folder/name` unless it exists; whatever lies there afterwards is whole.

    Returns:
        True if this call wrote it, False if it was there first.

    Raises:
        OSError: it could not be written. Nothing was left under the final name.
    """
    final = folder / name
    temporary = _write_temporary(folder, name, buffers, mode=0o444)  # `cp new over it` is refused, or meant
    try:
        now_ns = temporary.lstat().st_mtime_ns
        won = _link_first(temporary, final)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    sync_folder(folder)
    _sweep(folder, now_ns)
    return won


def link_first(source: Path, folder: Path, name: str, buffers: Iterable[Buffer]) -> None:
    """
    Give a published file a second name unless that is taken; where links are refused, a copy.

    Args:
        source: the file.
        folder, name: the second name.
        buffers: the bytes of the file.

    Raises:
        OSError: neither could be made.
    """
    try:
        os.link(source, folder / name, follow_symlinks=False)
    except FileExistsError:
        return
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        publish_first(folder, name, buffers)
        return
    sync_folder(folder)


def replace_file(path: Path, buffers: Iterable[Buffer], *, sync: bool = True, backdate_ns: int = 0) -> None:
    """
    Write `path`, in place of what was there; readers see the old bytes or the new, never a mixture.

    Args:
        path: the file.
        buffers: its bytes.
        sync: make it survive a power loss.
        backdate_ns: set its mtime so many nanoseconds before now, so that every later change shows in it
            even where clocks of files are coarse.

    Raises:
        OSError: it could not be written. The old file, if any, is as it was.
    """
    temporary = _write_temporary(path.parent, path.name, buffers, sync=sync)
    try:
        if backdate_ns:
            then = time.time_ns() - backdate_ns
            os.utime(temporary, ns=(then, then))
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(path.parent)


def replace_pair(first: tuple[Path, Iterable[Buffer]], second: tuple[Path, Iterable[Buffer]]) -> None:
    """
    Write two files that belong together, in place of what was there.

    Both are written in full before either takes its name: whoever is interrupted before leaves the old pair as it
    was. In the moment of renaming, the second of the pair is missing; never does one lie beside another's.

    Raises:
        OSError: as `replace_file`.
    """
    temporaries: list[Path] = []
    try:
        for path, buffers in (first, second):
            temporaries.append(_write_temporary(path.parent, path.name, buffers, sync=True))
        second[0].unlink(missing_ok=True)
        for temporary, (path, _) in zip(temporaries, (first, second), strict=True):
            temporary.replace(path)
    except BaseException:
        for temporary in temporaries:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        raise
    sync_folder(first[0].parent)


def try_write(folder: Path) -> None:
    """
    Write a byte into a folder and take it away again.

    Raises:
        OSError: the folder takes no write: read-only, full, not ours.
    """
    _write_temporary(folder, "probe", [b"?"], sync=False).unlink()


def clock_ns(folder: Path) -> int:
    """
    Return what time it is for the file system of a folder, in nanoseconds.

    Times of files are compared with it, never with this machine's clock: the server that sets them may be before or
    after.

    Raises:
        OSError: the folder takes no write.
    """
    probe = _write_temporary(folder, "probe", [b"?"], sync=False)
    try:
        return probe.lstat().st_mtime_ns
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def set_aside(path: Path, inode: int) -> Path | None:
    """
    Rename a damaged file so that its name is free again; it is never deleted.

    Args:
        path: the file.
        inode: the number of the file that was found damaged.

    Returns:
        Its new path, or None where `path` is another file by now (somebody healed it first).

    Raises:
        OSError: it could not be renamed.
    """
    aside = path.with_name(f"{path.name}.damaged-{_random()}")
    try:
        if path.lstat().st_ino != inode:
            return None
        path.rename(aside)
    except FileNotFoundError:
        return None
    if aside.lstat().st_ino != inode:  # healed between look and rename: put the good file back
        with suppress(FileExistsError):
            os.link(aside, path)
        aside.unlink()
        return None
    with suppress(OSError):
        _claim_of(path).unlink()  # the name is free again, so must its claim be
    sync_folder(path.parent)
    return aside


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power loss, where the file system can; a failure is only logged."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        # The file is linked and readers find it; only its survival of a power loss is unsure.
        logger.debug("folder %s could not be synced: %s", folder, error)


def _random() -> str:
    # Not from pids and thread ids: those of two nodes on one shared folder may be the same.
    return os.urandom(12).hex()


def _write_temporary(
    folder: Path, name: str, buffers: Iterable[Buffer], *, sync: bool = True, mode: int = 0o666
) -> Path:
    shown = os.fsdecode(os.fsencode(name)[:SHOWN_NAME])  # a name of 255 bytes leaves no room for more
    temporary = folder / f".{shown}.{_random()}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(temporary, flags, mode)
        try:
            _write_all(descriptor, buffers)
            if sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in {None, str(temporary), temporary}:
            error.filename = str(folder / name)  # a full disk names no file; and nobody knows the temporary one
        raise
    return temporary


def _write_all(descriptor: int, buffers: Iterable[Buffer]) -> None:
    for buffer in buffers:
        view = memoryview(buffer).cast("B")
        while view:
            written = os.write(descriptor, view[:WRITE_BYTES])
            view = view[written:]


def _link_first(temporary: Path, final: Path) -> bool:
    try:
        os.link(temporary, final, follow_symlinks=False)
    except FileExistsError:
        # A network file system may have linked, lost the answer and tried again: two names tell.
        return temporary.lstat().st_nlink == 2
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return _claim_first(temporary, final)
    return True


def _claim_first(temporary: Path, final: Path) -> bool:
    """
    Do without hard links: whoever creates the claim file may rename; the claim stays, as the name does.

    A claim whose file does not come belongs to a writer that died in between. It is taken over when it is a minute
    older than our own file beside it, or after a minute of waiting: dates that one file system gave are compared, and
    this process's own time, never the clocks of two machines.
    """
    claim = _claim_of(final)
    started, now_ns = time.monotonic(), temporary.lstat().st_mtime_ns
    watched: tuple[int, int] | None = None
    since = started
    while True:
        try:
            descriptor = os.open(claim, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            if os.path.lexists(final):
                return False
            try:
                status = claim.lstat()
            except FileNotFoundError:
                continue
            if _which(status) != watched:
                watched, since = _which(status), time.monotonic()
            age = (now_ns - status.st_mtime_ns) / 1e9 + time.monotonic() - started
            if age < CLAIM_SECONDS and time.monotonic() - since < CLAIM_SECONDS:
                time.sleep(0.05)
                continue
            _free_claim(claim, _which(status))
            continue
        mine = _which(os.fstat(descriptor))
        os.close(descriptor)
        if os.path.lexists(final):  # published, then its claim was swept
            return False
        try:
            return _rename(temporary, final, NO_REPLACE)
        except FileExistsError:
            return False
        except NotImplementedError:
            with suppress(FileNotFoundError):
                if _which(claim.lstat()) == mine:  # else this process stood still for a minute, and another took over
                    temporary.rename(final)
                    return True


def _which(status: os.stat_result) -> tuple[int, int]:
    return status.st_ino, status.st_ctime_ns


def _free_claim(claim: Path, found: tuple[int, int]) -> None:
    """Take a dead writer's claim away; of several waiters that do so, none may take the claim of another one."""
    aside = claim.with_name(f"{claim.name}.{_random()}.tmp")
    with suppress(FileNotFoundError):
        claim.rename(aside)
        if aside.lstat().st_ino != found[0]:
            with suppress(OSError, NotImplementedError):
                _rename(aside, claim, NO_REPLACE)


def _claim_of(final: Path) -> Path:
    return final.with_name(f".{final.name}.claim")


NO_REPLACE, EXCHANGE = 1, 2  # of renameat2(2)


def _rename(old: Path, new: Path, flags: int) -> bool:
    """
    Rename as renameat2(2) does: without replacing, or exchanging two files. Returns True.

    Raises:
        NotImplementedError: the system or the file system has no such call.
        FileExistsError, OSError: as it says.
    """
    import ctypes  # only where a file system has no hard links, and where a file of the user's may lie in the way

    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        raise NotImplementedError("this system has no renameat2")
    here = ctypes.c_int(-100)  # AT_FDCWD
    if call(here, os.fsencode(old), here, os.fsencode(new), ctypes.c_uint(flags)) == 0:
        return True
    number = ctypes.get_errno()
    if number in {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP}:
        raise NotImplementedError(os.strerror(number))
    raise OSError(number, os.strerror(number), str(new))


def _sweep(folder: Path, now_ns: int) -> None:
    """Remove what writers that died left behind, long after they can still be at work; `now_ns`: the folder's time."""
    with suppress(OSError):
        for leftover in folder.glob(".*.tmp"):
            if now_ns - leftover.lstat().st_mtime_ns > LEFTOVER_SECONDS * 1e9:
                leftover.unlink(missing_ok=True)


# --- files of ours among the user's ------------------------------------------------------------


def place_file(
    path: Path, buffers: Iterable[Buffer], ours: Callable[[Path], bool], *, backdate_ns: int = 0
) -> os.stat_result | None:
    """
    Write a file of ours where a file of the user's may lie, or may arrive at any moment: that one stays.

    Args:
        path: the file.
        buffers: its bytes.
        ours: says of a file whether we wrote it, by its content.
        backdate_ns: as in `replace_file`.

    Returns:
        The status of what was placed; None where a file that is not ours lies there.

    Raises:
        OSError: it could not be written. What lay there is as it was.
    """
    sweep_placed(path, ours)
    temporary, lock = _write_locked(path.parent, path.name, buffers)
    try:
        if backdate_ns:
            then = time.time_ns() - backdate_ns
            os.utime(temporary, ns=(then, then))
        placed = _place(temporary, path, ours)
        status = os.fstat(lock)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        os.close(lock)
    sync_folder(path.parent)
    return status if placed else None


def _place(temporary: Path, path: Path, ours: Callable[[Path], bool]) -> bool:
    for _ in range(100):
        if _place_first(temporary, path):
            return True
        try:
            return ours(path) and _place_over(temporary, path, ours)
        except FileNotFoundError:  # what was in the way went meanwhile
            continue
    raise OSError(errno.EBUSY, "other files keep appearing and going there", str(path))


def _place_first(temporary: Path, path: Path) -> bool:
    """Give a file its name unless there is one of that name."""
    try:
        os.link(temporary, path, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        try:
            return _rename(temporary, path, NO_REPLACE)
        except FileExistsError:
            return False
        except NotImplementedError:
            if os.path.lexists(path):
                return False
            temporary.rename(path)  # neither way there is: the moment between look and rename stays open
    return True


def _place_over(temporary: Path, path: Path, ours: Callable[[Path], bool]) -> bool:
    """Put a file in place of an older one of ours; one of the user's that arrives in this moment gets its name back."""
    swapped = temporary.with_name(f"{temporary.name.removesuffix('.tmp')}.swap")
    temporary.rename(swapped)  # what comes out of the exchange may be the user's: the name says so, should we be killed
    try:
        _rename(swapped, path, EXCHANGE)
    except NotImplementedError:
        swapped.replace(path)
        return True
    except BaseException:
        swapped.rename(temporary)
        raise
    if ours(swapped):
        swapped.unlink()
        return True
    _rename(swapped, path, EXCHANGE)
    if ours(swapped):
        swapped.rename(temporary)
    else:  # and another one after it
        _give_back(swapped, path)
    return False


def _give_back(swapped: Path, path: Path) -> None:
    """Give a file of the user's its name back, or one that can be seen."""
    kept = path if not os.path.lexists(path) else path.with_name(f"{path.name}.kept-{_random()[:8]}")
    swapped.rename(kept)
    tell("file_kept", name=path.name, kept=kept)


def _write_locked(folder: Path, name: str, buffers: Iterable[Buffer]) -> tuple[Path, int]:
    """Write a temporary file and hold a lock on it, so that `sweep_placed` sees that its writer is alive."""
    import fcntl

    temporary = folder / f".{name}.{_random()}.tmp"
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        with suppress(OSError):  # a file system without locks: its age tells, then
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _write_all(descriptor, buffers)
        os.fsync(descriptor)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        os.close(descriptor)
        raise
    return temporary, descriptor


def sweep_placed(path: Path, ours: Callable[[Path], bool]) -> None:
    """
    Remove what a killed `place_file` left beside `path`, whose hidden names nobody would look for.

    A file of the user's that an exchange was killed over gets its name back, or one that can be seen.
    """
    with suppress(OSError):
        for leftover in abandoned(path):
            if leftover.suffix == ".tmp" or ours(leftover):
                leftover.unlink(missing_ok=True)
            else:
                _give_back(leftover, path)


def abandoned(path: Path) -> list[Path]:
    """Return the hidden files that killed calls of `place_file` left beside `path`."""
    named = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{24}}\.(tmp|swap)")
    with suppress(OSError):
        return [one for one in sorted(path.parent.iterdir()) if named.fullmatch(one.name) and _is_abandoned(one)]
    return []


def _is_abandoned(path: Path) -> bool:
    """Whether the writer of a temporary file is gone: its lock is free; where there are no locks, an hour tells."""
    import fcntl

    try:
        descriptor = open_regular(path)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(descriptor).st_nlink > 0
    except BlockingIOError:
        return False
    except OSError:
        with suppress(OSError):
            return clock_ns(path.parent) - os.fstat(descriptor).st_mtime_ns > LEFTOVER_SECONDS * 1e9
        return False
    finally:
        os.close(descriptor)
