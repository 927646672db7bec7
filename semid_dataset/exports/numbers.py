"""IDs as numbers: one vocabulary over all levels, or one integer an ID."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset.errors import TableError
from semid_dataset.objects import as_codes, as_count, shown

__all__ = ["flat_ids", "pack_ids", "sizes_of", "unflatten_ids", "unpack_ids"]

MAX_PACKED_BITS = 64
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


def pack_ids(codes: NDArray[Any], sizes: Sequence[int]) -> NDArray[np.uint64]:
    """
    Return each ID as one integer, level 0 in the highest bits, so that integers sort as IDs do.

    Raises:
        TableError: an ID needs more than 64 bits, or a code is beyond its level's size.
    """
    codes, sizes = as_codes(codes, "codes", TableError), sizes_of(sizes)
    _check_codes(codes, sizes)
    bits = _bits(sizes)
    packed = np.zeros(len(codes), np.uint64)
    for level, width in enumerate(bits):
        packed = packed << np.uint64(width) | codes[:, level].astype(np.uint64)
    return packed


def unpack_ids(packed: NDArray[Any], sizes: Sequence[int]) -> NDArray[Any]:
    """Return the codes of `pack_ids`; raises TableError where an integer is no ID."""
    packed, sizes = as_codes(packed, "packed IDs", TableError).reshape(-1), sizes_of(sizes)
    bits = _bits(sizes)
    rest = packed.astype(np.uint64)
    codes = np.empty((len(rest), len(bits)), np.int64)
    for level in reversed(range(len(bits))):
        codes[:, level] = rest & np.uint64((1 << bits[level]) - 1)
        rest = rest >> np.uint64(bits[level])
    if rest.any():
        raise TableError(
            f"{int(packed[int(np.flatnonzero(rest)[0])])} has more bits than an ID of {list(sizes)} codes."
        )
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


def _bits(sizes: Sequence[int]) -> list[int]:
    bits = [max(1, math.ceil(math.log2(size))) if size > 1 else 1 for size in sizes]
    if sum(bits) > MAX_PACKED_BITS:
        raise TableError(
            f"IDs of {list(sizes)} codes take {sum(bits)} bits; an integer has 64. Export flat ids instead."
        )
    return bits


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
