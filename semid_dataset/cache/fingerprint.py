"""
What a dataset asks, as a name for files: the kind of ID, and what stat tells of its embedding files.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from semid_dataset import _files as files
from semid_dataset.config import Identity

__all__ = ["CacheKey", "FileStamp"]

FRESH_NS = 2_000_000_000  # two changes within 2 s may leave the same times: the coarsest clock of a file system
SKEW_NS = 120_000_000_000  # by which the clock of a file server and this machine's may differ
SAMPLED_BLOCKS = 64
BLOCK_BYTES = 4096


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
    looked: float = field(default_factory=time.monotonic, compare=False)  # seconds, of this process alone

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
        """
        Whether it may have changed so shortly before it was looked at that a further change could go unseen.

        Only to save work: it tells when one more digest is worth while. This machine's clock stands beside the file
        server's here, so a file whose times were left as the write set them counts as fresh for as long as clocks
        may differ. One whose time was set (into the past or the future) shows every later write by its time.
        """
        as_written = abs(self.ctime_ns - self.mtime_ns) < FRESH_NS
        return abs(self.seen_ns - self.mtime_ns) < (SKEW_NS if as_written else FRESH_NS)

    @property
    def settled(self) -> bool:
        """Whether so much time has passed since the look that a change made now has other times."""
        return 1e9 * (time.monotonic() - self.looked) >= FRESH_NS

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
class CacheKey:
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
