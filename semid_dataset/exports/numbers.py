"""IDs as numbers of one vocabulary over all levels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset.errors import TableError
from semid_dataset.objects import as_codes, as_count, shown

__all__ = ["flat_ids", "sizes_of", "unflatten_ids"]

MAX_SIZE = 1 << 31  # codes of a level


def flat_ids(codes: NDArray[Any], sizes: Sequence[int], *, first: int = 1) -> NDArray[np.int64]:
    """
    Return codes as rows of one common vocabulary: code + first + (sizes of the levels before).

    Args:
        codes: (n, levels).
        sizes: codes of each level.
        first: the number of code 0 of level 0. With 1, number 0 is free for padding; with 0 the
            numbers start at 0, as TorchEasyRec's `offset_codebook` and GRID's embedding table want them.

    Raises:
        TableError: a code is beyond its level's size.
    """
    codes, sizes = as_codes(codes, "codes", TableError), sizes_of(sizes)
    _check_codes(codes, sizes)
    return codes.astype(np.int64) + _offsets(sizes, first)


def unflatten_ids(flat: NDArray[Any], sizes: Sequence[int], *, first: int = 1) -> NDArray[Any]:
    """Return the codes of `flat_ids`; raises TableError where a number belongs to no code of its level."""
    flat, sizes = as_codes(flat, "flat IDs", TableError), sizes_of(sizes)
    if flat.ndim != 2 or flat.shape[1] != len(sizes):
        raise TableError(f"Flat IDs of shape {flat.shape} do not fit {len(sizes)} levels.")
    codes = flat.astype(np.int64) - _offsets(sizes, first)
    _check_codes(codes, sizes)
    return codes.astype(_code_dtype(sizes))


def _offsets(sizes: Sequence[int], first: int) -> NDArray[np.int64]:
    return np.array([as_count(first, "first", 0, 1 << 40), *sizes[:-1]], np.int64).cumsum()


def sizes_of(given: Any) -> list[int]:
    """Return the codes of each level as whole numbers of one or more."""
    found = as_codes(given, "codebook sizes", TableError)
    if found.ndim != 1 or (found.size and not 0 <= found.min() <= found.max() <= MAX_SIZE):
        raise TableError(f"Codebook sizes are one whole number a level, at most {MAX_SIZE:,}; not {shown(given)}.")
    sizes: list[int] = found.tolist()
    return sizes


def _code_dtype(sizes: Sequence[int]) -> type[np.uint8] | type[np.uint16]:
    return np.uint8 if max(sizes, default=0) <= 256 else np.uint16


def _check_codes(codes: NDArray[Any], sizes: Sequence[int]) -> None:
    if codes.ndim != 2 or codes.shape[1] != len(sizes):
        raise TableError(f"Codes of shape {codes.shape} do not fit {len(sizes)} levels.")
    if len(codes) and not ((codes >= 0) & (codes < np.array(sizes))).all():
        row, level = map(int, np.argwhere((codes < 0) | (codes >= np.array(sizes)))[0])
        raise TableError(
            f"Row {row} has code {int(codes[row, level])} at level {level}, which has {sizes[level]} codes."
        )
