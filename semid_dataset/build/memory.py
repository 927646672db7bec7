"""
How much memory making IDs takes, and what follows from a limit: streaming or not, the size of the sample, workers.

Measured as the peak of all processes together (resident pages), on Linux with torch 2.13 and pyarrow; the figures are
rounded up. benchmarks/results/scale.md has what whole runs took.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from semid_dataset._messages import tell
from semid_dataset.errors import ConfigError, EmbeddingError
from semid_dataset.inputs.discover import FeatureSource
from semid_dataset.inputs.partitions import estimate

__all__ = ["MOST_SAMPLED", "check_limit", "in_words", "is_beyond", "sample_size", "sizes", "workers"]

BASE_BYTES = 350 << 20  # of a process that has imported torch and pyarrow and trained something small
ROOM_BYTES = 50 << 20  # beside that, to do anything at all
VECTOR_COPIES = 3.5  # of all vectors, in memory: read, fused, encoded, measured, and the sample of training
ITEM_BYTES = 100  # in memory, of ids, codes, their order and the index of a table
MOST_SAMPLED = 262_144  # items; a sample that size costs 1.2 % of error against 5 million items, 65,536 cost 4.1 %
LEAST_SAMPLED = 16_384  # whatever the limit: with fewer, codebooks are noise
TRAINING_COPIES = 4  # float32 copies of the sample that are held at the peak of training
# Of a process that does tasks: with pyarrow; with torch, too; and while it sorts a run of rows.
WORKER_BYTES = {"sample": 160 << 20, "spool": 256 << 20, "sort": 288 << 20, "encode": 320 << 20, "gather": 320 << 20}


def check_limit(limit: int) -> None:
    """
    Make sure that something can be done within a limit.

    Raises:
        ConfigError: it cannot; the message says what it takes.
    """
    least = BASE_BYTES + ROOM_BYTES
    if limit < least:
        raise ConfigError(
            f"memory_limit (SEMID_MEMORY_LIMIT, --memory-limit) is {in_words(limit)}; making IDs takes "
            f"{in_words(least)} at least, of which torch and pyarrow are {in_words(BASE_BYTES)}. Nothing was made. "
            f"Allow {in_words(least)} or more."
        )


def is_beyond(sources: Sequence[FeatureSource], limit: int) -> bool:
    """Whether features are to be streamed: in memory they would take more than `limit` bytes."""
    rows, size = _size_of(sources)
    return BASE_BYTES + VECTOR_COPIES * size + ITEM_BYTES * rows > limit


def sample_size(widths: Sequence[int], limit: int, asked: int | None = None) -> int:
    """
    Return how many items codebooks are fitted on where memory is limited.

    Args:
        widths: of the features.
        limit: bytes of memory.
        asked: what was asked for by name; then no limit changes it.
    """
    if asked is not None:
        return asked
    room = (limit - BASE_BYTES) // (TRAINING_COPIES * 4 * sum(widths))
    return int(min(MOST_SAMPLED, max(LEAST_SAMPLED, room)))


def workers(stage: str, tasks: int, limit: int) -> int:
    """Return how many processes may do tasks of a stage beside this one; what the limit takes away is said."""
    each = WORKER_BYTES[stage]
    cores = min(_cores(), tasks)
    allowed = int(max(1, min(cores, (limit - _resident()) // each)))
    if allowed < cores:
        tell("workers_capped", workers=allowed, cores=cores, stage=stage, limit=in_words(limit), each=in_words(each))
    return allowed


def sizes(sources: Sequence[FeatureSource], limit: int) -> tuple[str, str]:
    """Return in words how much memory the vectors of features take, and how much is allowed."""
    return in_words(_size_of(sources)[1]), in_words(limit)


def _cores() -> int:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _resident() -> int:
    """Return the bytes that this process takes now."""
    with suppress(OSError, ValueError):  # no /proc: not on Linux
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return BASE_BYTES if "torch" in sys.modules else BASE_BYTES // 4


def in_words(size: int) -> str:
    """Return a number of bytes as people say it."""
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{size / (1 << 20):.1f} MiB"


def _size_of(sources: Sequence[FeatureSource]) -> tuple[int, int]:
    """Return about how many items there are, and how many bytes their vectors take."""
    most = taken = 0
    for source in sources:
        with suppress(EmbeddingError):  # who reads it will say so, and go on without it where there are others
            rows, size = estimate(source)
            most, taken = max(most, rows), taken + size
    return most, taken
