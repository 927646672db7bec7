"""
How many codes a level has, where a table does not say: hand-made files and other tools' hold IDs alone.

The largest code that occurs says little: an embedding table, a vocabulary with levels side by side and a list of tokens
made after it change with the next item. So sizes are stated by who reads such a file, else taken for one power of two
that holds the codes of all levels, which is what nearly everybody trains, and that is said.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset._messages import tell
from semid_dataset.config import MAX_CODES
from semid_dataset.errors import ConfigError, TableError
from semid_dataset.objects import as_rows, shown

__all__ = ["checked_sizes", "fitting_sizes", "rounded_sizes", "say_guessed"]


def checked_sizes(sizes: int | Sequence[int], codes: NDArray[Any], where: str) -> tuple[int, ...]:
    """
    Return the sizes of all levels that somebody stated.

    Args:
        sizes: one for all levels, or one per level.
        codes: (n, levels), which they must hold.
        where: the codes' place in errors.

    Raises:
        ConfigError: they are no sizes, or not one per level.
        TableError: a code is beyond them.
    """
    levels = codes.shape[1]
    if isinstance(sizes, str | bytes) or not isinstance(sizes, int | np.integer | Sequence | np.ndarray):
        raise ConfigError(f"codebook_sizes must be a number, or one per level, not {shown(sizes)}.")
    one = isinstance(sizes, int | np.integer)
    given: list[Any] = [sizes] * levels if one else as_rows(sizes, "codebook_sizes", ConfigError)
    if len(given) != levels:
        raise ConfigError(
            f"codebook_sizes has {len(given)} entries; '{where}' has {levels} levels. Give one per level."
        )
    least = 1 if len(codes) else 0  # a table without items may have been written without sizes
    for size in given:
        if not isinstance(size, int | np.integer) or isinstance(size, bool) or not least <= size <= MAX_CODES:
            raise ConfigError(f"codebook_sizes must be whole numbers from 1 to {MAX_CODES}, not {shown(size)}.")
    stated = tuple(int(size) for size in given)
    if len(codes) and (codes >= np.array(stated)).any():
        row, level = map(int, np.argwhere(codes >= np.array(stated))[0])
        raise TableError(
            f"'{where}' has the code {int(codes[row, level])} at level {level} (ID {row}); {stated[level]} codes were "
            "stated. Nothing was read. State the sizes that its IDs were made with."
        )
    return stated


def fitting_sizes(sizes: Sequence[int] | None, codes: NDArray[Any]) -> tuple[int, ...] | None:
    """Return expected sizes where codes (n, levels) are such as they would be; else None."""
    if sizes is None or len(sizes) != codes.shape[1] or not len(codes) or (codes >= np.array(sizes)).any():
        return None
    return tuple(int(size) for size in sizes)


def rounded_sizes(codes: NDArray[Any]) -> tuple[int, ...]:
    """Return for every level the smallest power of two that holds all codes (n, levels); 0 where there are none."""
    levels = int(codes.shape[1])
    size = max(2, 1 << int(codes.max()).bit_length()) if len(codes) else 0
    return (size,) * levels


def say_guessed(codes: NDArray[Any], where: str) -> None:
    """Say that sizes were not stated, and what they are taken for."""
    if len(codes):
        tell(
            "sizes_guessed",
            where=where,
            largest="/".join(str(int(code)) for code in codes.max(axis=0)),
            size=rounded_sizes(codes)[0],
        )
