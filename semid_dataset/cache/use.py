"""
Who uses a table: processes of this machine that map it or hold it open, and whoever opened it lately.

On one machine the kernel knows. Across machines nothing does, so a table that was opened is marked, at most once a day,
by an empty file `v1/used/<lineage>.<generation>`; pruning leaves alone what is younger than a margin of days.
"""

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from semid_dataset.cache.folders import CacheFolder

__all__ = ["live_files", "mark_used", "used_ns"]

USED = "used"
DAY_NS = 86_400 * 1_000_000_000
MAPPED = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ (\d+)\s+(/.*\.safetensors(?:\.[^ ]*)?)(?: \(deleted\))?$")


def live_files() -> tuple[set[str], set[int], int]:
    """
    Return what other processes of this machine map or hold open.

    Returns:
        Real paths of table files; their inodes, since a container may see them under other paths; how many processes
        could not be looked at: those of other users, unless this one is root.
    """
    paths: set[str] = set()
    inodes: set[int] = set()
    hidden = 0
    for process in _processes():
        try:
            for line in (process / "maps").read_text(errors="surrogateescape").splitlines():
                if match := MAPPED.match(line):
                    inodes.add(int(match[1]))
                    paths.add(match[2])
            for descriptor in (process / "fd").iterdir():
                with suppress(OSError):
                    target = str(descriptor.readlink())
                    if target.endswith(".safetensors"):
                        paths.add(target)
                        inodes.add(descriptor.stat().st_ino)
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
        except OSError:
            hidden += 1
    return paths, inodes, hidden


def _processes() -> Iterator[Path]:
    with suppress(OSError):
        yield from (path for path in Path("/proc").iterdir() if path.name.isdigit() and int(path.name) != os.getpid())


def mark_used(root: CacheFolder, lineage: str, generation: int, changed_ns: int) -> None:
    """
    Mark a table as used, at most once a day; what was published in the last day needs no mark.

    Args:
        root, lineage, generation: of the table.
        changed_ns: its mtime. This machine's clock stands beside it: a wrong one makes a mark more or one less.
    """
    now = time.time_ns()
    if abs(now - changed_ns) < DAY_NS:
        return
    with suppress(OSError):
        path = root.versioned / USED / f"{lineage}.{generation}"
        if now - used_ns(root, lineage, generation) >= DAY_NS:
            root.folder(USED, create=True)
            path.touch()


def used_ns(root: CacheFolder, lineage: str, generation: int) -> int:
    """Return when a table was last marked as used, by the clock of its file system; 0 where it never was."""
    try:
        return (root.versioned / USED / f"{lineage}.{generation}").lstat().st_mtime_ns
    except OSError:
        return 0
