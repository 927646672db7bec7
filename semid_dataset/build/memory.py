"""
How much memory making IDs takes, and what follows from a limit: streaming or not, and the size of the sample.
"""

from collections.abc import Sequence
from contextlib import suppress

from semid_dataset.errors import EmbeddingError
from semid_dataset.inputs.discover import FeatureSource
from semid_dataset.inputs.partitions import estimate

__all__ = ["MOST_SAMPLED", "in_words", "is_beyond", "sample_size", "sizes"]

MOST_SAMPLED = 262_144  # items; a sample that size costs 1.2 % of error against 5 million items, 65,536 cost 4.1 %
LEAST_SAMPLED = 16_384  # whatever the limit: with fewer, codebooks are noise
TRAINING_COPIES = 8  # float32 copies of the sample that training may hold at its peak


def is_beyond(sources: Sequence[FeatureSource], limit: int) -> bool:
    """Whether features are better streamed: their vectors alone would take more than half of `limit` bytes."""
    return _bytes_of(sources) > limit // 2


def sample_size(widths: Sequence[int], limit: int) -> int:
    """Return how many items codebooks are fitted on where memory is limited; `widths` are those of the features."""
    return int(min(MOST_SAMPLED, max(LEAST_SAMPLED, limit // (TRAINING_COPIES * 4 * sum(widths)))))


def sizes(sources: Sequence[FeatureSource], limit: int) -> tuple[str, str]:
    """Return in words how much memory features would take, and how much is allowed."""
    return in_words(_bytes_of(sources)), in_words(limit)


def in_words(size: int) -> str:
    """Return a number of bytes as people say it."""
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{size / (1 << 20):.1f} MiB"


def _bytes_of(sources: Sequence[FeatureSource]) -> int:
    taken = 0
    for source in sources:
        with suppress(EmbeddingError):  # who reads it will say so, and go on without it where there are others
            taken += estimate(source)[1]
    return taken
