"""
Give every item a code tuple of its own.

The item that a contested tuple fits best keeps it. The others take the nearest last code that is
free; where none is free under their leading codes, the nearest code one level above that has room
below it, and so on upwards. The all-zero tuple means "no ID" and is never given.

Losers are served one after the other, the best fit first: each step is small, and items that
compete for the last free codes of one prefix are few.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from semid_dataset.quantizer import ResidualQuantizer

__all__ = ["Resolution", "resolve_collisions", "tuple_ids"]

BLOCK = 4096  # items whose distances are computed at once


@dataclass(frozen=True)
class Resolution:
    """
    Codes after uniqueness.

    Attributes:
        codes: (n, levels), of the dtype given.
        moved: items whose tuple changed.
        exact_duplicates: items whose vector equals that of an item before them, bit for bit.
        shared: items that share their tuple with another item or with a taken one; 0 within capacity.
    """

    codes: NDArray[Any]
    moved: int
    exact_duplicates: int
    shared: int


def resolve_collisions(
    quantizer: ResidualQuantizer,
    vectors: NDArray[np.float32],
    codes: NDArray[Any],
    *,
    taken: NDArray[Any] | None = None,
) -> Resolution:
    """
    Make the codes of items unique, among themselves and against tuples that are taken.

    Args:
        quantizer: whose `encode` gave the codes.
        vectors: (n, dim), what was encoded.
        codes: (n, levels); not changed.
        taken: (m, levels), tuples never given: those of items known before.

    Returns:
        The codes; beyond the capacity of the codebooks the items left over keep a shared tuple,
        never the all-zero one.

    Deterministic: of equally good fits the item that comes first keeps the tuple.
    Memory: some 100 bytes a moved item, and the keys of all tuples.
    """
    duplicates = _exact_duplicates(vectors)
    if len(codes) == 0:
        return Resolution(codes.copy(), 0, duplicates, 0)
    levels = codes.shape[1]
    occupied = np.zeros((1, levels), dtype=codes.dtype)  # the all-zero tuple counts as taken
    if taken is not None and len(taken):
        occupied = np.concatenate([occupied, taken.astype(codes.dtype)])
    ids = tuple_ids(np.concatenate([occupied, codes]))
    held, mine = ids[: len(occupied)], ids[len(occupied) :]

    errors = _errors(quantizer, vectors, codes)
    order = np.lexsort((errors, mine))  # stable: equal errors stay in the order of the items
    first = np.ones(len(order), dtype=bool)
    first[1:] = mine[order][1:] != mine[order][:-1]
    keeps = np.zeros(len(codes), dtype=bool)
    keeps[order[first]] = True
    keeps &= ~np.isin(mine, held)
    losers = np.flatnonzero(~keeps)
    if len(losers) == 0:
        return Resolution(codes.copy(), 0, duplicates, 0)
    losers = losers[np.argsort(errors[losers], kind="stable")]

    tree = _Tree(quantizer.codebook_sizes)
    tree.add(np.concatenate([occupied, codes[keeps]]), codes[losers])
    result = codes.copy()
    words = [book.cpu().numpy() for book in quantizer.codebooks]
    for begin in range(0, len(losers), BLOCK):
        block = losers[begin : begin + BLOCK]
        latents = quantizer.latents(vectors[block]).cpu().numpy()
        residuals = latents.copy()
        for level in range(levels - 1):
            residuals -= words[level][codes[block, level]]
        distances = (words[-1] ** 2).sum(1) - 2 * residuals @ words[-1].T
        for row, item in enumerate(block):
            found = tree.place(tuple(codes[item].tolist()), latents[row], distances[row], words)
            if found is not None:
                result[item] = found
            elif not codes[item].any():
                result[item, -1] = 1 + distances[row, 1:].argmin()
    moved = int((result != codes).any(1).sum())
    return Resolution(result, moved, duplicates, _shared(result, taken))


class _Tree:
    """
    Which codes are used below a prefix, for the prefixes that matter to some loser.

    `used[prefix]` holds the codes below the prefix that have no room left: on the last level those
    that are given, above it those whose own subtree is full.
    """

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes
        self.used: dict[tuple[int, ...], set[int]] = {}

    def add(self, given: NDArray[Any], wanted: NDArray[Any]) -> None:
        """Enter the tuples given, (n, levels); those far from any wanted prefix wait until a search spills."""
        ids = tuple_ids(np.concatenate([given[:, :-1], wanted[:, :-1]])) if given.shape[1] > 1 else None
        near = np.ones(len(given), dtype=bool) if ids is None else np.isin(ids[: len(given)], ids[len(given) :])
        for row in given[near].tolist():
            self.used.setdefault(tuple(row[:-1]), set()).add(row[-1])
        self.far: NDArray[Any] | None = given[~near]
        for prefix in [prefix for prefix, codes in self.used.items() if len(codes) == self.sizes[-1]]:
            self._fill(prefix)

    def place(
        self,
        wanted: tuple[int, ...],
        latent: NDArray[np.float32],
        distances: NDArray[np.float32],
        words: list[NDArray[np.float32]],
    ) -> tuple[int, ...] | None:
        """Take and return the nearest free tuple, or None when all are given."""
        prefix = wanted[:-1]
        used = self.used.setdefault(prefix, set())
        if len(used) < self.sizes[-1]:
            return self._take(prefix, _nearest(distances, used))
        self._enter_far()
        while prefix:  # go up to the first prefix with room, then down the nearest way
            prefix = prefix[:-1]
            if len(self.used.setdefault(prefix, set())) < self.sizes[len(prefix)]:
                break
        else:
            return None
        residual = latent - sum(words[level][code] for level, code in enumerate(prefix))
        while True:
            book = words[len(prefix)]
            code = _nearest((book**2).sum(1) - 2 * book @ residual, self.used.setdefault(prefix, set()))
            if len(prefix) == len(words) - 1:
                return self._take(prefix, code)
            prefix = (*prefix, code)
            residual = residual - book[code]

    def _take(self, prefix: tuple[int, ...], code: int) -> tuple[int, ...]:
        used = self.used[prefix]
        used.add(code)
        if len(used) == self.sizes[-1]:
            self._fill(prefix)
        return (*prefix, code)

    def _fill(self, prefix: tuple[int, ...]) -> None:
        """Tell the levels above that a prefix has no room left."""
        while prefix and len(self.used[prefix]) == self.sizes[len(prefix)]:
            self.used.setdefault(prefix[:-1], set()).add(prefix[-1])
            prefix = prefix[:-1]

    def _enter_far(self) -> None:
        """Enter the tuples left out so far: the first search that spills may end below any of them."""
        if self.far is None:
            return
        far, self.far = self.far, None
        prefixes = set()
        for row in far.tolist():
            prefix = tuple(row[:-1])
            self.used.setdefault(prefix, set()).add(row[-1])
            prefixes.add(prefix)
        for prefix in prefixes:
            self._fill(prefix)


def _nearest(distances: NDArray[np.float32], used: set[int]) -> int:
    """Return the code with the least distance that is not used."""
    best = int(distances.argmin())
    if best not in used:
        return best
    distances = distances.copy()
    distances[list(used)] = np.inf
    return int(distances.argmin())


def tuple_ids(codes: NDArray[Any]) -> NDArray[np.int64]:
    """Return a number for every row that equal rows, and only they, share; any number of levels."""
    ids = np.zeros(len(codes), dtype=np.int64)
    for level in range(codes.shape[1]):
        # Renumbered at every level, so that the product never leaves int64.
        ids = np.unique(ids * 65_536 + codes[:, level].astype(np.int64), return_inverse=True)[1].reshape(-1)
    return ids


def _errors(quantizer: ResidualQuantizer, vectors: NDArray[np.float32], codes: NDArray[Any]) -> NDArray[np.float32]:
    """Return the squared distance of every latent to its sum of codewords."""
    errors = np.empty(len(codes), dtype=np.float32)
    with torch.inference_mode():
        for begin in range(0, len(codes), BLOCK):
            latents = quantizer.latents(vectors[begin : begin + BLOCK])
            block = torch.from_numpy(codes[begin : begin + BLOCK].astype(np.int64)).to(quantizer.device)
            errors[begin : begin + BLOCK] = (latents - quantizer.search.sums(block)).square().sum(1).cpu().numpy()
    return errors


def _exact_duplicates(vectors: NDArray[np.float32]) -> int:
    """Count the rows that equal a row before them, bit for bit."""
    if len(vectors) == 0:
        return 0
    rows = np.ascontiguousarray(vectors)
    return len(rows) - len(np.unique(rows.view([("", np.void, rows.itemsize * rows.shape[1])]).reshape(-1)))


def _shared(codes: NDArray[Any], taken: NDArray[Any] | None) -> int:
    """Count the items whose tuple another item has or that was taken."""
    known = codes[:0] if taken is None else taken.astype(codes.dtype)
    ids = tuple_ids(np.concatenate([known, codes]))
    counts = np.bincount(ids)
    counts[ids[: len(known)]] += 1  # a taken tuple counts as another item, even if it is there once
    return int((counts[ids[len(known) :]] > 1).sum())
