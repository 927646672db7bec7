"""
Where tables lie, and how processes meet there.

A **root** is a cache folder. Roots are read in order, all of them; the first that really takes a
write is written. Below a root:

    v1/<lineage>/<n>.safetensors     table n of a lineage; published once, never changed
    v1/memo/<question>.json          which table answered a question, so that a warm start reads no embeddings
    v1/served/<folder>.json          which lineage last served a data directory
    v1/locks/<question>.lock, .owner who generates, and how far they are
    v1/jobs/<job>/                   finished parts of what is made of more than memory holds, until it is published

The lock saves work and nothing else: files are published first-wins (see `files`), so two writers
that both believe to hold it waste time and never disagree. Lock files stay: unlinking one lets two
processes hold "the" lock.
"""

import hashlib
import json
import logging
import os
import re
import stat
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semid_dataset import _files as files
from semid_dataset._messages import degrade, logger, tell
from semid_dataset.config import Environment, Identity
from semid_dataset.errors import LockTimeoutError, StoreError, TableError
from semid_dataset.table.table import SemanticIdTable

__all__ = [
    "FileStamp",
    "Memo",
    "Question",
    "Root",
    "Roots",
    "Turn",
    "generations",
    "last_generation",
    "lineages",
    "named_table",
    "open_table",
    "publish_table",
    "set_damaged_aside",
    "take_turn",
]

VERSION = "v1"
JOBS = "jobs"  # folder of what is made part by part, see `scale`
FRESH_NS = 2_000_000_000  # a file changed less than 2 s before it was looked at may change again unseen
SAMPLED_BLOCKS = 64
BLOCK_BYTES = 4096
KNOWN_PLACES = 8  # (device, inode, ctime) of one file that a memo remembers: as many kinds of container share it
POLL_SECONDS = 0.1
SAY_SECONDS = 10.0
BEAT_SECONDS = 1.0
TABLE_NAME = re.compile(r"(0|[1-9][0-9]{0,8})\.safetensors")
LINEAGE_NAME = re.compile(r"[0-9a-z][0-9a-z-]{7,100}")


@dataclass(frozen=True)
class Root:
    """A cache folder; `base` is the part of its path that belongs to the user and may be reached through links."""

    path: Path
    base: Path

    @property
    def versioned(self) -> Path:
        """The folder that holds everything of this format."""
        return self.path / VERSION

    def folder(self, *parts: str, create: bool = False) -> Path:
        """
        Return a folder below the root.

        Raises:
            StoreError: a link or a file is in its way.
            FileNotFoundError, OSError: it is not there, or cannot be made.
        """
        return files.real_folder(self.versioned.joinpath(*parts), self.base, create=create)

    def takes_writes(self) -> bool:
        """Try a write: permission bits say nothing about root, read-only mounts and quotas."""
        try:
            files.try_write(self.folder(create=True))
            return True
        except OSError as error:
            logger.debug("cache folder %s takes no writes: %s", self.path, error)
            return False


class Roots:
    """
    The cache folders in reading order.

    The user's own cache comes last and is looked up only when it is reached: a warm start has found
    its table by then, and platformdirs takes as long to import as the whole of it.
    """

    def __init__(self, data_dir: Path | None, cache_dir: Path | None, environment: Environment) -> None:
        named = []
        if cache_dir is not None:
            named.append(Root(cache_dir, cache_dir))
        if environment.cache_dir is not None:
            named.append(Root(Path(environment.cache_dir), Path(environment.cache_dir)))
        if data_dir is not None:
            named.append(Root(data_dir / ".semantic_ids", data_dir))
        if environment.user_cache_path is not None:
            shared = Path(environment.user_cache_path)
            named.append(Root(shared / "semantic_ids", shared))
        self._named = named

    def __iter__(self) -> Iterator[Root]:
        yield from self._named
        import platformdirs

        own = Path(platformdirs.user_cache_dir("semid_dataset", appauthor=False))
        yield Root(own, own.parent)


def writable_root(roots: Iterable[Root]) -> Root | None:
    """Return the first root that takes a write."""
    return next((root for root in roots if root.takes_writes()), None)


# --- tables ------------------------------------------------------------------------------------

_tables: "weakref.WeakValueDictionary[tuple[Any, ...], SemanticIdTable]" = weakref.WeakValueDictionary()


def open_table(path: Path, *, mmap: bool, follow: bool = False) -> SemanticIdTable:
    """
    Open a table file; within a process every file is mapped and checked once.

    Raises:
        CorruptTableError, TableVersionError: it cannot be used.
        StoreError: it is no regular file.
        FileNotFoundError, OSError: it cannot be opened.
    """
    buffer, status = files.map_file(path, mmap=mmap, follow=follow)
    key = (str(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, mmap)
    table = _tables.get(key)
    if table is None:
        table = SemanticIdTable.from_buffer(buffer, path=path, status="cached", reason=f"read from {path}")
        _tables[key] = table
    return table


def named_table(roots: Iterable[Root], lineage: str, generation: int, *, mmap: bool) -> SemanticIdTable | None:
    """Return the table of this lineage and generation, if it can be read: what a memo names is not searched for."""
    for root in roots:
        try:
            return open_table(root.folder(lineage) / f"{generation}.safetensors", mmap=mmap)
        except FileNotFoundError:
            continue
        except (OSError, TableError) as error:  # the search for the newest that follows deals with it
            logger.debug("table %d of %s in %s: %s", generation, lineage, root.path, error)
            return None
    return None


@dataclass(frozen=True)
class Found:
    """A table file of a lineage: its generation, where it lies, in which root."""

    generation: int
    path: Path
    root: Root


def lineages(roots: Iterable[Root]) -> list[str]:
    """Return the names of all lineages in all roots, sorted."""
    names: set[str] = set()
    for root in roots:
        with suppress(OSError):
            names.update(entry.name for entry in os.scandir(root.folder()) if LINEAGE_NAME.fullmatch(entry.name))
    return sorted(names)


def generations(roots: Iterable[Root], lineage: str) -> list[Found]:
    """Return the table files of a lineage in all roots, newest first; copies of one generation in reading order."""
    found: list[Found] = []
    for root in roots:
        try:
            folder = root.folder(lineage)
            names = [path.name for path in folder.iterdir()]
        except FileNotFoundError:
            continue
        except OSError as error:
            logger.debug("cache folder %s cannot be read: %s", root.path, error)
            continue
        for name in names:
            if match := TABLE_NAME.fullmatch(name):
                found.append(Found(int(match[1]), folder / name, root))
    return sorted(found, key=lambda table: -table.generation)  # stable: copies stay in reading order


def last_generation(roots: Iterable[Root], lineage: str) -> int:
    """Return the highest generation of which there is a file, readable, damaged or set aside; -1 if there is none."""
    last = -1
    for root in roots:
        with suppress(OSError):
            for path in root.folder(lineage).iterdir():
                if match := TABLE_NAME.match(path.name):
                    last = max(last, int(match[1]))
    return last


def publish_table(root: Root, lineage: str, generation: int, buffers: Iterable[files.Buffer]) -> bool:
    """
    Publish table `generation` of a lineage unless there is one; the caller serves what lies there.

    Returns:
        True if this call wrote it.

    Raises:
        StoreError: a link or a file is in the way.
        OSError: it could not be written.
    """
    return files.publish_first(root.folder(lineage, create=True), f"{generation}.safetensors", buffers)


def set_damaged_aside(path: Path, inode: int, error: Exception, *, may_write: bool) -> None:
    """Free the name of a damaged table file; where nothing may be written, only say that it is damaged."""
    aside: Path | str | None = "nothing: it was left as it is"
    if may_write:
        try:
            aside = files.set_aside(path, inode)
        except OSError as refusal:
            aside = f"nothing: {refusal}"
    if aside is not None:
        tell("set_aside", level=logging.WARNING, path=path, error=error, aside=aside)


# --- the memo ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileStamp:
    """What stat tells of a file, and when it was asked; times in nanoseconds."""

    name: str
    path: Path
    size: int
    mtime_ns: int
    ctime_ns: int
    device: int
    inode: int
    seen_ns: int

    @classmethod
    def of(cls, path: Path, base: Path) -> "FileStamp":
        """Look at a file; its name is its path below `base`."""
        status = path.stat()
        return cls(
            path.relative_to(base).as_posix(),
            path,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
            status.st_dev,
            status.st_ino,
            time.time_ns(),
        )

    @property
    def place(self) -> list[int]:
        """What tells this very file from a copy."""
        return [self.device, self.inode, self.ctime_ns]

    @property
    def fresh(self) -> bool:
        """Whether it changed so shortly before it was looked at that a further change could go unseen."""
        return self.seen_ns - self.mtime_ns < FRESH_NS

    def digest(self) -> str:
        """SHA-256 of the whole file."""
        descriptor = files.open_regular(self.path, follow=True)
        with os.fdopen(descriptor, "rb") as file:
            return _sha256(iter(lambda: file.read(1 << 20), b""))

    def sampled_digest(self) -> str:
        """SHA-256 of 64 blocks of 4 kB, evenly spread from the first byte to the last."""
        descriptor = files.open_regular(self.path, follow=True)
        with os.fdopen(descriptor, "rb") as file:
            last = max(0, self.size - BLOCK_BYTES)
            starts = sorted({last * k // (SAMPLED_BLOCKS - 1) for k in range(SAMPLED_BLOCKS)})

            def blocks() -> Iterator[bytes]:
                for start in starts:
                    file.seek(start)
                    yield file.read(BLOCK_BYTES)

            return _sha256(blocks())


def _sha256(blocks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class Question:
    """
    What a dataset asks: this kind of ID, over these files (or, without files, this content).

    `kind` keeps apart what may lie in one directory: its lineage, and its hand-made JSON file.
    """

    kind: str
    identity: Identity | None
    stamps: tuple[FileStamp, ...]
    content: str = ""  # digest of embeddings that came from memory
    parent: str = ""  # digest of the parent table: another parent is another question

    @property
    def name(self) -> str:
        """A name for files: 32 hexadecimal digits."""
        asked = {
            "kind": self.kind,
            "identity": None if self.identity is None else self.identity.to_dict(),
            "files": [[stamp.name, stamp.size, stamp.mtime_ns] for stamp in self.stamps],
            "content": self.content,
            "parent": self.parent,
        }
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Memo:
    """The answer to a question: table `generation` of `lineage`, whose digest is `digest`."""

    lineage: str
    generation: int
    digest: str
    identity: str = ""  # digest of the table's identity, for questions that do not say it (an exported JSON)

    @staticmethod
    def recall(roots: Iterable[Root], question: Question, *, renew: bool) -> "Memo | None":
        """
        Return the answer that was noted for this question, if the files are still the same.

        Where a file has another device, inode or ctime than those noted (a container, a copy), its
        sampled blocks decide; where it had just been changed when it was noted, its whole content.
        With `renew` that is noted, so that the next reader need not look again.
        """
        for root in roots:
            noted = _read_json(root, "memo", question.name)
            if noted is None:
                continue
            try:
                changed, looked = _compare(noted["files"], question.stamps)
                memo = Memo(
                    str(noted["lineage"]),
                    int(noted["generation"]),
                    str(noted["digest"]),
                    str(noted.get("identity", "")),
                )
            except (KeyError, TypeError, ValueError):
                logger.debug("memo %s in %s is not readable", question.name, root.path)
                continue
            if changed is not None:
                logger.debug("memo %s in %s is out of date: %s", question.name, root.path, changed)
                continue
            if renew and looked:
                _write_json(root, "memo", question.name, noted)
            return memo
        return None

    def note(self, roots: Iterable[Root], question: Question, digests: dict[Path, str]) -> None:
        """Note this answer in the first root that takes it; `digests` are SHA-256 of files already read."""
        try:
            noted = {
                "lineage": self.lineage,
                "generation": self.generation,
                "digest": self.digest,
                "identity": self.identity,
                "files": [_note_file(stamp, digests.get(stamp.path)) for stamp in question.stamps],
            }
        except OSError as error:
            logger.debug("no memo: %s", error)
            return
        for root in roots:
            if _write_json(root, "memo", question.name, noted):
                return


def _note_file(stamp: FileStamp, digest: str | None) -> dict[str, Any]:
    fresh = stamp.fresh
    if fresh and digest is not None:
        # Enough time may have passed since: if the content is still what was read, no change slipped in unseen.
        now = FileStamp.of(stamp.path, stamp.path.parent)
        fresh = now.fresh or now.mtime_ns != stamp.mtime_ns or stamp.digest() != digest
    return {
        "name": stamp.name,
        "places": [stamp.place],
        "fresh": fresh,
        "sampled": stamp.sampled_digest(),
        "sha256": digest or stamp.digest(),
    }


def _compare(noted: list[dict[str, Any]], stamps: Sequence[FileStamp]) -> tuple[str | None, bool]:
    """Return what changed, if anything, and whether `noted` was brought up to date and is worth writing."""
    if [file["name"] for file in noted] != [stamp.name for stamp in stamps]:
        return "other files", False
    renew = False
    for file, stamp in zip(noted, stamps, strict=True):
        if stamp.place in file["places"] and not file["fresh"]:
            continue
        try:
            same = stamp.digest() == file["sha256"] if file["fresh"] else stamp.sampled_digest() == file["sampled"]
        except OSError as error:
            return str(error), False
        if not same:
            return f"{stamp.path} has other content", False
        others = [place for place in file["places"] if place != stamp.place]
        known = (file["fresh"], len(file["places"]) - len(others))
        file["places"] = [*others[1 - KNOWN_PLACES :], stamp.place]
        file["fresh"] = stamp.fresh
        renew |= known != (stamp.fresh, 1)
    return None, renew


def note_served(roots: Iterable[Root], data_dir: Path, lineage: str) -> None:
    """Note which lineage serves a data directory: the last resort where its embeddings have gone."""
    name = _folder_name(data_dir)
    for root in roots:
        noted = _read_json(root, "served", name)
        if noted is not None and noted.get("lineage") == lineage:
            return
        if _write_json(root, "served", name, {"folder": str(data_dir), "lineage": lineage}):
            return


def last_served(roots: Iterable[Root], data_dir: Path) -> str | None:
    """Return the lineage that last served a data directory."""
    for root in roots:
        noted = _read_json(root, "served", _folder_name(data_dir))
        if noted is not None and isinstance(noted.get("lineage"), str) and LINEAGE_NAME.fullmatch(noted["lineage"]):
            return str(noted["lineage"])
    return None


def _folder_name(folder: Path) -> str:
    return hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]


def _read_json(root: Root, kind: str, name: str) -> dict[str, Any] | None:
    try:
        buffer, _ = files.map_file(root.folder(kind) / f"{name}.json", mmap=False)
        noted = json.loads(bytes(buffer))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # ValueError: torn by a power loss, or foreign
        logger.debug("%s/%s in %s is not readable: %s", kind, name, root.path, error)
        return None
    return noted if isinstance(noted, dict) else None


def _write_json(root: Root, kind: str, name: str, value: dict[str, Any]) -> bool:
    try:
        folder = root.folder(kind, create=True)
        files.replace_file(folder / f"{name}.json", [json.dumps(value).encode()], sync=False)
    except OSError as error:
        logger.debug("%s was not noted in %s: %s", kind, root.path, error)
        return False
    return True


# --- the lock ----------------------------------------------------------------------------------


class Turn:
    """
    One process's turn at generating.

    `beat()` tells the others that work goes on; call it whenever some of it is done.
    """

    def __init__(self, owner_file: Path | None) -> None:
        self._owner_file = owner_file
        self._last_beat = 0.0
        self._beats = 0

    def beat(self) -> None:
        """Say that there was progress; at most once a second it reaches the disk."""
        now = time.monotonic()
        if self._owner_file is None or now - self._last_beat < BEAT_SECONDS:
            return
        self._last_beat = now
        self._beats += 1
        owner = {"host": os.uname().nodename, "pid": os.getpid(), "beats": self._beats, "time": time.time()}
        with suppress(OSError):  # the others see an older beat: they may stop waiting, nothing worse
            files.replace_file(self._owner_file, [json.dumps(owner).encode()], sync=False)


@contextmanager
def take_turn(root: Root | None, name: str, *, timeout: float, ready: Callable[[], bool]) -> Iterator[Turn | None]:
    """
    Wait until this process may generate, or until there is no need to.

    Args:
        root: where the lock lies; None where no cache takes a write: no waiting then.
        name: of the question, so that those who ask the same meet here.
        timeout: seconds without progress of the owner after which waiting ends.
        ready: tells whether the answer has become visible meanwhile; asked ten times a second.

    Yields:
        A turn, or None if `ready()` became true while another process held the lock.

    Raises:
        LockTimeoutError: the owner makes no progress.
    """
    if root is None:
        yield Turn(None)
        return
    import filelock  # 40 ms: only where something is generated

    folder = root.folder("locks", create=True)
    path, owner_file = folder / f"{name}.lock", folder / f"{name}.owner"
    wait = _Wait(owner_file, timeout, ready)
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
        raise LockTimeoutError(
            f"{wait.owner} holds '{path}' and has made no progress for {timeout:g} s. Nothing was changed. "
            "End that process, or wait longer: lock_timeout of SemanticIdConfig, or SEMID_LOCK_TIMEOUT (seconds)."
        ) from None
    except OSError as error:
        degrade("unlocked", path=path, error=error)
        yield Turn(owner_file)
        return
    try:
        turn = Turn(owner_file)
        turn.beat()
        yield turn
    finally:
        lock.release()


class _Wait:
    """What a waiting process looks at, ten times a second, to know whether to go on waiting."""

    def __init__(self, owner_file: Path, timeout: float, ready: Callable[[], bool]) -> None:
        self._owner_file = owner_file
        self._timeout = timeout
        self._ready = ready
        self._started = self._progress_at = self._said_at = time.monotonic()
        self._last_seen: bytes | None = None
        self.owner = "another process"
        self.served = False

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
        return now - self._progress_at > self._timeout

    def _look_at_owner(self, now: float) -> None:
        with suppress(OSError, ValueError):
            seen = bytes(files.map_file(self._owner_file, mmap=False)[0])
            if seen != self._last_seen:
                self._last_seen, self._progress_at = seen, now
                owner = json.loads(seen)
                self.owner = f"process {owner['pid']} on {owner['host']}"
