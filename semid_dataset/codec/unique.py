"""
Give every item a code tuple of its own.

The item that a contested tuple fits best keeps it. The others take the nearest last code that is
free; where none is free under their leading codes, the nearest code one level above that has room
below it, and so on upwards. The all-zero tuple means "no ID" and is never given.

Displaced items are served one after the other, the best fit first. Those of different leading codes do not
meet, unless one of them overflows into the codes of another; so a block of displaced items is served at once,
with a bitmap of used codes for every prefix, and only those that overflow go one by one. Vectors are
asked for displaced items alone: where they lie on disk, the others need not be read again.

Who keeps a tuple and which one is the nearest is decided by the distances that the quantizer gives: by ours the same on
every machine, and for an item the same in any block.
"""

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from semid_dataset.codec._threads import isolated
from semid_dataset.codec.kinds import measure_of, squared_errors
from semid_dataset.format.tensors import is_in, packed_rows
from semid_dataset.protocols import Quantizer

__all__ = [
    "Items",
    "MatrixItems",
    "Resolution",
    "group_sizes",
    "resolve_collisions",
    "shared_items",
    "vector_hashes",
]

BLOCK, DISTANCES = 4096, 1 << 20  # items whose distances are computed at once, and how many distances, at most
GROUPS = 1 << 20  # items whose tuples are compared at once, at least
HASH_BYTES = 8 << 20  # of vectors hashed at once, as 64-bit numbers


class Items(Protocol):
    """What there is to know about items; rows are positions in the codes that are made unique."""

    def errors(self, rows: NDArray[np.int64], codes: NDArray[Any]) -> NDArray[np.float32]:
        """Return `squared_errors` of these rows and their codes."""

    def hashes(self, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return `vector_hashes` of these rows."""

    def prepare(self, rows: NDArray[np.integer[Any]]) -> None:
        """Make ready to be asked for the vectors of these rows, in this order and in blocks."""

    def vectors(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Return the vectors of these rows, (k, dim)."""


@dataclass(frozen=True)
class Resolution:
    """
    Codes after uniqueness.

    Attributes:
        codes: (n, levels), of the dtype given.
        moved: items whose tuple changed.
        exact_duplicates: items whose vector equals that of an item before them, bit for bit (by a 64-bit hash).
        shared: items that share their tuple with another item or with a taken one; 0 within capacity.
        displaced: (k,) rows of the items that had to yield, in the order in which they were served.
    """

    codes: NDArray[Any]
    moved: int
    exact_duplicates: int
    shared: int
    displaced: NDArray[np.integer[Any]] | None = None


@isolated()
def resolve_collisions(
    quantizer: Quantizer,
    items: NDArray[np.float32] | Items,
    codes: NDArray[Any],
    *,
    taken: NDArray[Any] | None = None,
) -> Resolution:
    """
    Make the codes of items unique, among themselves and against tuples that are taken.

    Args:
        quantizer: whose `encode` gave the codes.
        items: the vectors that were encoded, (n, dim), or where to ask for them.
        codes: (n, levels); not changed.
        taken: (m, levels), tuples never given: those of items known before.

    Returns:
        The codes; beyond the capacity of the codebooks the items left over keep a shared tuple,
        never the all-zero one.

    Deterministic: of equally good fits the item that comes first keeps the tuple.
    Memory: beside the codes and the result 8 bytes an item and 4 a tuple while displaced items are looked for (of
    tuples up to 4 bytes), then 4 a displaced item, and a bit a code of the last level for every prefix of one. Time:
    n log n for all; displaced items in blocks, one by one where they overflow.
    """
    known = items if not isinstance(items, np.ndarray) else MatrixItems(quantizer, items)
    if len(codes) == 0:
        return Resolution(codes.copy(), 0, 0, 0)
    held = np.zeros((1, codes.shape[1]), dtype=codes.dtype)  # the all-zero tuple counts as taken
    if taken is not None and len(taken):
        held = np.concatenate([held, taken.astype(codes.dtype, copy=False)])
    held = np.unique(packed_rows(held))
    given, displaced, duplicates = _displaced(codes, held, known)
    if len(displaced) == 0:
        return Resolution(codes.copy(), 0, duplicates, 0)
    known.prepare(displaced)
    result = codes.copy()
    allocator = _Allocator(quantizer, given, codes.dtype)
    del given
    left_over = allocator.serve(displaced, codes, known, result)
    del allocator
    moved = sum(
        int((result[part] != codes[part]).any(1).sum())
        for part in np.array_split(displaced, -(-len(displaced) // (1 << 20)))
    )
    return Resolution(result, moved, duplicates, shared_items(result, taken) if left_over else 0, displaced)


def _displaced(
    codes: NDArray[Any], held: NDArray[Any], items: Items
) -> tuple[NDArray[Any], NDArray[np.integer[Any]], int]:
    """
    Find who has to yield.

    Whoever a contested tuple goes to, it goes to one of those who have it, or it was taken: so all tuples that occur
    are given.

    Returns:
        All tuples that are given to somebody, packed, ascending, each once; the displaced items, in the order in which
        they are served; how many items equal one before them.
    """
    ordered = _ordered(codes)
    given: list[NDArray[Any]] = []
    displaced: list[NDArray[np.integer[Any]]] = []
    errors: list[NDArray[np.float32]] = []
    duplicates = 0
    for all_keys, all_rows in _whole_groups(ordered, max(GROUPS, len(codes) // 16)):
        first = np.ones(len(all_keys), dtype=bool)
        first[1:] = all_keys[1:] != all_keys[:-1]
        given.append(all_keys[first])
        contested = ~first
        contested[:-1] |= ~first[1:]
        contested |= is_in(all_keys, held)
        chosen = np.flatnonzero(contested)
        if not len(chosen):
            continue
        keys, rows = all_keys[chosen], all_rows[chosen]
        duplicates += _duplicates(keys, items.hashes(rows))
        misfit = items.errors(rows, codes[rows])
        order = np.lexsort((misfit, keys))  # stable: equal errors stay in the order of the items
        first = np.ones(len(order), dtype=bool)
        first[1:] = keys[order][1:] != keys[order][:-1]
        keeps = np.zeros(len(rows), dtype=bool)
        keeps[order[first]] = True
        keeps &= ~is_in(keys, held)
        displaced.append(rows[~keeps].astype(_narrow(len(codes))))
        errors.append(misfit[~keeps])
    del ordered
    whole = np.concatenate(given)
    given.clear()
    more = held[~is_in(held, whole)]
    if len(more):
        whole = np.insert(whole, np.searchsorted(whole, more), more)
    return whole, _by_error(displaced, errors, _narrow(len(codes))), duplicates


def _narrow(count: int) -> type[np.uint32] | type[np.int64]:
    """Return a type that holds every position among `count`."""
    return np.uint32 if count < 1 << 32 else np.int64


Pairs = Callable[[int, int], tuple[NDArray[Any], NDArray[np.int64]]]


def _ordered(codes: NDArray[Any]) -> tuple[int, Pairs]:
    """Return how many items there are, and what gives packed tuples and rows begin…end, in order of both."""
    keys = packed_rows(codes)
    if keys.dtype == np.uint32 and len(keys) < 1 << 32:
        # Tuple and row in one number: sorted in place, in a third of an argsort's time and half of its memory.
        pairs = keys.astype(np.uint64)
        del keys
        pairs <<= np.uint64(32)
        for begin in range(0, len(pairs), GROUPS):
            block = pairs[begin : begin + GROUPS]
            block |= np.arange(begin, begin + len(block), dtype=np.uint64)
        pairs.sort()

        def split(begin: int, end: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
            some = pairs[begin:end]
            return (some >> np.uint64(32)).astype(np.uint32), (some & np.uint64((1 << 32) - 1)).astype(np.int64)

        return len(pairs), split
    order = np.argsort(keys, kind="stable").astype(_narrow(len(keys)))
    return len(keys), lambda begin, end: (keys[order[begin:end]], order[begin:end].astype(np.int64))


def _whole_groups(ordered: tuple[int, Pairs], size: int) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
    """Yield packed tuples and rows, about `size` at once, those of one tuple together."""
    count, split = ordered
    begin = 0
    while begin < count:
        end = min(begin + size, count)
        while end < count:  # to where the last tuple ends
            keys, _ = split(end - 1, min(end + size, count))
            other = keys != keys[0]
            if other.any():
                end += int(other.argmax()) - 1
                break
            end += len(keys) - 1
        yield split(begin, end)
        begin = end


def _by_error(
    displaced: list[NDArray[np.integer[Any]]], errors: list[NDArray[np.float32]], dtype: type[np.integer[Any]]
) -> NDArray[np.integer[Any]]:
    """Return displaced items in order of their errors, of equal ones in order of their rows. The lists are emptied."""
    if dtype is not np.uint32:
        rows, misfits = np.concatenate(displaced), np.concatenate(errors)
        return rows[np.lexsort((rows, misfits))]
    # Errors are no less than zero: their bits, as integers, ascend as they do. One number of both is sorted in place.
    pairs = np.empty(sum(map(len, displaced)), np.uint64)
    end = len(pairs)
    while displaced:
        some, misfit = displaced.pop(), np.ascontiguousarray(errors.pop()).view(np.uint32)
        pairs[end - len(some) : end] = misfit.astype(np.uint64) << np.uint64(32) | some
        end -= len(some)
    pairs.sort()
    return pairs.astype(np.uint32)  # the lower half


def _duplicates(keys: NDArray[Any], hashes: NDArray[np.uint64]) -> int:
    """Count the items that equal one before them: equal vectors have equal tuples, so only those are compared."""
    order = np.lexsort((hashes, keys))
    keys, hashes = keys[order], hashes[order]
    return int(((keys[1:] == keys[:-1]) & (hashes[1:] == hashes[:-1])).sum())


class MatrixItems:
    """Items whose vectors (n, dim) are in memory; see `Items`."""

    def __init__(self, quantizer: Quantizer, vectors: NDArray[np.float32]) -> None:
        self.quantizer = quantizer
        self.matrix = vectors

    def errors(self, rows: NDArray[np.int64], codes: NDArray[Any]) -> NDArray[np.float32]:
        """Return what `squared_errors` says of these rows."""
        found = np.empty(len(rows), dtype=np.float32)
        for begin in range(0, len(rows), BLOCK):
            block = slice(begin, begin + BLOCK)
            found[block] = squared_errors(self.quantizer, self.matrix[rows[block]], codes[block])
        return found

    def hashes(self, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return `vector_hashes` of these rows."""
        found = np.empty(len(rows), dtype=np.uint64)
        for begin in range(0, len(rows), BLOCK):
            found[begin : begin + BLOCK] = vector_hashes(self.matrix[rows[begin : begin + BLOCK]])
        return found

    def prepare(self, rows: NDArray[np.integer[Any]]) -> None:
        """Do nothing: everything is there."""

    def vectors(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Return vectors of the matrix."""
        return np.asarray(self.matrix[rows])


class _Allocator:
    """
    Gives free tuples to displaced items.

    `used` holds a bitmap of the last codes in use for every prefix that is the bucket of a displaced item, `free` how
    many are left. For the other prefixes that a search ends below, `overflows` does. `full` says, for prefixes further
    up, which codes have no room left below, and `room` how many have.
    """

    def __init__(self, quantizer: Quantizer, given: NDArray[Any], dtype: Any) -> None:
        self.prepared, self.distances = measure_of(quantizer)
        self.sizes = quantizer.codebook_sizes
        self.dtype = np.dtype(dtype)
        prefixes, self.lasts = _split(given, len(self.sizes), self.dtype)
        changes = np.ones(len(prefixes), dtype=bool)
        changes[1:] = prefixes[1:] != prefixes[:-1]
        self.prefixes = prefixes[changes]
        self.starts = np.append(np.flatnonzero(changes), len(prefixes))
        self.buckets = self.prefixes[:0]
        self.used = np.zeros((0, -(-self.sizes[-1] // 8)), np.uint8)
        self.free = np.zeros(0, np.int32)
        self.overflows = _Overflow(self.sizes[-1])
        self.full: dict[tuple[int, ...], NDArray[np.bool_]] = {}
        self.room: dict[tuple[int, ...], int] = {}
        for prefix in self.prefixes[np.diff(self.starts) == self.sizes[-1]]:
            self._fill(_unpacked(prefix, len(self.sizes) - 1, self.dtype))

    def serve(
        self, displaced: NDArray[np.integer[Any]], codes: NDArray[Any], items: Items, result: NDArray[Any]
    ) -> int:
        """Write a tuple for every displaced item into `result`. Return how many found none."""
        self._enter_buckets(displaced, codes)
        left_over = 0
        rows = max(min(BLOCK, DISTANCES // self.sizes[-1]), 1)
        for begin in range(0, len(displaced), rows):
            block = displaced[begin : begin + rows]
            own = codes[block]
            vectors = self.prepared(items.vectors(block))
            distances = self.distances(vectors, own[:, :-1])
            bucket = np.searchsorted(self.buckets, _split(packed_rows(own), len(self.sizes), self.dtype)[0])
            served = _Block(self, bucket, own[:, :-1], vectors, distances)
            served.run()
            result[block[served.stayed], -1] = served.taken[served.stayed]
            for position, found in served.overflowed.items():
                item = block[position]
                if found is not None:
                    result[item] = found
                else:
                    left_over += 1
                    if not codes[item].any():
                        result[item, -1] = 1 + distances[position, 1:].argmin()
        return left_over

    def _enter_buckets(self, displaced: NDArray[np.integer[Any]], codes: NDArray[Any]) -> None:
        """Set the bits of what is given below the buckets of displaced items; their own tuples are given."""
        size = self.sizes[-1]
        lives = np.zeros(len(self.prefixes), dtype=bool)
        for begin in range(0, len(displaced), GROUPS):
            keys = packed_rows(codes[displaced[begin : begin + GROUPS]])
            lives[np.searchsorted(self.prefixes, _split(keys, len(self.sizes), self.dtype)[0])] = True
        places = np.flatnonzero(lives)
        self.buckets = self.prefixes[places]
        self.used = np.zeros((len(places), -(-size // 8)), np.uint8)
        self.free = (size - self.starts[places + 1] + self.starts[places]).astype(np.int32)
        for begin in range(0, len(places), 1 << 16):
            some = places[begin : begin + (1 << 16)]
            counts = self.starts[some + 1] - self.starts[some]
            bucket = np.repeat(np.arange(begin, begin + len(counts)), counts)
            ends = counts.cumsum()
            where = np.repeat(self.starts[some] - ends + counts, counts) + np.arange(len(bucket))
            last = self.lasts[where]
            at = bucket * self.used.shape[1] + (last >> 3)  # ascending
            runs = np.flatnonzero(np.diff(at, prepend=-1))
            if len(runs):
                self.used.reshape(-1)[at[runs]] = np.bitwise_or.reduceat(BITS[last & 7], runs)

    def overflow_to(self, prefixes: NDArray[Any], vectors: NDArray[np.float32]) -> "_Targets":
        """
        Find the nearest prefix with room for items whose buckets have none, as things stand.

        Up to the first prefix with room, then down the nearest way. An item's own bucket counts as full.

        Args:
            prefixes: (m, levels - 1), the homes.
            vectors: (m, dim).
        """
        depth = len(self.sizes) - 1
        found = prefixes.astype(np.int64)
        start = np.array([self._first_room(tuple(prefix)) for prefix in found.tolist()], np.int64)
        lost = start < 0
        for level in range(depth):
            rows = np.flatnonzero((start <= level) & ~lost)
            if not len(rows):
                continue
            distances = self.distances(vectors[rows], found[rows, :level])
            leads, which = _distinct(found[rows, :level])
            closed = [self.full.get(lead) for lead in leads]
            if any(mask is not None for mask in closed):
                none = np.zeros(self.sizes[level], dtype=bool)
                masks = np.stack([none if mask is None else mask for mask in closed])
                distances[masks[which]] = np.inf
            if level == depth - 1:
                own = np.flatnonzero(start[rows] == level)
                distances[own, found[rows[own], level]] = np.inf
            chosen = distances.argmin(1)
            lost[rows[np.isinf(distances[np.arange(len(rows)), chosen])]] = True
            found[rows, level] = chosen
        keys = _split(packed_rows(np.pad(found, ((0, 0), (0, 1))).astype(self.dtype)), depth + 1, self.dtype)[0]
        buckets = np.minimum(np.searchsorted(self.buckets, keys), len(self.buckets) - 1)
        buckets[self.buckets[buckets] != keys] = -1
        return _Targets(list(map(tuple, found.tolist())), lost, buckets, keys, self.distances(vectors, found))

    def _first_room(self, prefix: tuple[int, ...]) -> int:
        """Return how long the longest part of a prefix is that has room below it, itself excluded; -1: none has."""
        for length in reversed(range(len(prefix))):
            if self.room.get(prefix[:length], 1) > 0:
                return length
        return -1

    def has_room(self, prefix: tuple[int, ...]) -> bool:
        """Say whether a prefix of all but the last code has room."""
        if not prefix:
            return self.room.get(prefix, 1) > 0
        closed = self.full.get(prefix[:-1])
        return closed is None or not closed[prefix[-1]]

    def filled(self, bucket: int) -> None:
        """Note that a bucket has no room left."""
        self._fill(_unpacked(self.buckets[bucket], len(self.sizes) - 1, self.dtype))

    def _fill(self, prefix: tuple[int, ...]) -> None:
        """Tell the levels above that a prefix has no room left."""
        while prefix:
            above, code = prefix[:-1], prefix[-1]
            size = self.sizes[len(above)]
            closed = self.full.get(above)
            if closed is None:
                closed = self.full[above] = np.zeros(size, dtype=bool)
            if not closed[code]:
                closed[code] = True
                self.room[above] = self.room.get(above, size) - 1
            prefix = above
            if self.room[above]:
                break

    def take_overflow(self, prefix: tuple[int, ...], key: Any, distances: NDArray[Any]) -> int:
        """Take the nearest free last code below a prefix that is no bucket."""
        overflow = self.overflows.find(key)
        if overflow < 0:
            place = int(np.searchsorted(self.prefixes, key))
            there = place < len(self.prefixes) and self.prefixes[place] == key
            overflow = self.overflows.enter(
                key, self.lasts[self.starts[place] : self.starts[place + 1]] if there else None
            )
        code = _nearest_free(self.overflows.used[overflow], distances)
        self.overflows.used[overflow, code >> 3] |= BITS[code & 7]
        self.overflows.free[overflow] -= 1
        if self.overflows.free[overflow] == 0:
            self._fill(prefix)
        return code


def _nearest_free(used: NDArray[np.uint8], distances: NDArray[Any]) -> int:
    """Return the code of least distance whose bit is not set, of equals the first. The distances are changed."""
    distances[np.unpackbits(used, count=len(distances), bitorder="little").view(bool)] = np.inf
    return int(distances.argmin())


def _distinct(leads: NDArray[np.int64]) -> tuple[list[tuple[int, ...]], NDArray[np.int64]]:
    """Return the distinct rows, and which of them each row is."""
    numbers: dict[tuple[int, ...], int] = {}
    which = [numbers.setdefault(tuple(lead), len(numbers)) for lead in leads.tolist()]
    return list(numbers), np.array(which, np.int64)


@dataclass(frozen=True)
class _Targets:
    """
    Where items go that overflow.

    Attributes:
        prefixes: one each.
        lost: which found none.
        buckets: (m,) number of the bucket that has the prefix, -1 where it is nobody's.
        keys: (m,) the prefixes, packed.
        distances: (m, codes) to every last code below the prefix.
    """

    prefixes: list[tuple[int, ...]]
    lost: NDArray[np.bool_]
    buckets: NDArray[np.int64]
    keys: NDArray[Any]
    distances: NDArray[Any]


class _Overflow:
    """Bitmaps of the last codes in use below prefixes that are no buckets, and how many are free."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._numbers: dict[Any, int] = {}
        self.used = np.zeros((64, -(-size // 8)), np.uint8)
        self.free: list[int] = []

    def find(self, key: Any) -> int:
        """Return the number of a packed prefix, -1 if it is new."""
        return self._numbers.get(key.item(), -1)

    def enter(self, key: Any, lasts: NDArray[Any] | None) -> int:
        """Return the number of a new packed prefix; `lasts` are in use."""
        number = self._numbers[key.item()] = len(self.free)
        if number == len(self.used):
            self.used = np.concatenate([self.used, np.zeros_like(self.used)])
        if lasts is not None:
            np.bitwise_or.at(self.used[number], lasts >> 3, BITS[lasts & 7])
        self.free.append(self._size - (0 if lasts is None else len(lasts)))
        return number


class _Block:
    """
    A block of displaced items, served in their order as far as that matters.

    Of the items of one bucket the first ones take what is free and the rest overflows. An overflow changes a bucket
    that others of the block have; so before it, and only in that bucket, those that come earlier are served, one by
    one. All others are served at the end, the first of every bucket at once, then the second, and so on.

    Where items overflow to is looked for all at once, as things stand at the beginning: that holds as long as there is
    room at the place found, since what is full never has room again.
    """

    def __init__(
        self,
        allocator: _Allocator,
        bucket: NDArray[np.int64],
        prefixes: NDArray[Any],
        vectors: NDArray[np.float32],
        distances: NDArray[Any],
    ) -> None:
        self.allocator = allocator
        self.bucket = bucket
        self.prefixes = prefixes
        self.vectors = vectors
        bits = np.unpackbits(allocator.used[bucket], axis=1, count=allocator.sizes[-1], bitorder="little")
        self.open = distances.copy()
        self.open[bits.view(bool)] = np.inf
        self.by_bucket = np.argsort(bucket, kind="stable")
        ordered = bucket[self.by_bucket]
        firsts = np.flatnonzero(np.diff(ordered, prepend=-1))
        buckets, counts = ordered[firsts], np.diff(firsts, append=len(bucket))
        free = allocator.free[buckets]
        rank = np.empty(len(bucket), np.int64)
        rank[self.by_bucket] = np.arange(len(bucket)) - np.repeat(firsts, counts)
        self.overflowing = rank >= allocator.free[bucket]
        self.taken = np.zeros(len(bucket), np.int64)
        self.done = np.zeros(len(bucket), dtype=bool)
        self.overflowed: dict[int, tuple[int, ...] | None] = {}
        self.waiting: list[int] = []
        if not self.overflowing.any():
            return
        self.begin = dict(zip(buckets.tolist(), firsts.tolist(), strict=True))
        self.count = dict(zip(buckets.tolist(), counts.tolist(), strict=True))
        # Of buckets of this block: how many of its items they can take, and how many of them need no look any more.
        self.room = dict(zip(buckets.tolist(), free.tolist(), strict=True))
        self.served = dict.fromkeys(self.room, 0)
        # Of buckets that this block fills: who takes the last code.
        fills = (free > 0) & (free <= counts)
        closers = self.by_bucket[firsts[fills] + free[fills] - 1].tolist()
        self.closing = dict(zip(closers, buckets[fills].tolist(), strict=True))
        self.closers = sorted(closers)

    @property
    def stayed(self) -> NDArray[np.bool_]:
        """Which items found a code in their bucket."""
        return ~self.overflowing

    def run(self) -> None:
        """Serve everybody."""
        if self.overflowing.any():
            self._overflow_all()
        self._serve_rest()

    def _overflow_all(self) -> None:
        allocator = self.allocator
        positions = np.flatnonzero(self.overflowing)
        targets = allocator.overflow_to(self.prefixes[positions], self.vectors[positions])
        number_of = dict(zip(positions.tolist(), range(len(positions)), strict=True))
        buckets = targets.buckets.tolist()
        self.waiting = positions.tolist()  # ascending: a heap
        exhausted = False
        while self.waiting:
            position = heapq.heappop(self.waiting)
            self._close_until(position)
            number, found, bucket_of = number_of.get(position, -1), targets, buckets
            if not exhausted and (
                number < 0 or targets.lost[number] or not allocator.has_room(targets.prefixes[number])
            ):
                found = allocator.overflow_to(self.prefixes[[position]], self.vectors[[position]])
                number, bucket_of = 0, found.buckets.tolist()
                exhausted = bool(found.lost[0])  # what is given is never free again
            if exhausted:
                self.overflowed[position] = None
                continue
            target, distances, bucket = found.prefixes[number], found.distances[number], bucket_of[number]
            if bucket < 0:
                code = allocator.take_overflow(target, found.keys[number], distances)
            else:
                code = self._into_bucket(bucket, position, distances)
            self.overflowed[position] = (*target, code)
        self._close_until(len(self.bucket))

    def _close_until(self, position: int) -> None:
        """Note which buckets are full before the item at a position is served."""
        while self.closers and self.closers[0] < position:
            bucket = self.closing.pop(heapq.heappop(self.closers), None)
            if bucket is not None:
                self.allocator.filled(bucket)

    def _into_bucket(self, bucket: int, position: int, distances: NDArray[Any]) -> int:
        """Take a code of a bucket that may be that of others in this block, after those of them who come earlier."""
        allocator = self.allocator
        if bucket in self.room:
            self._serve_until(bucket, position)
        code = _nearest_free(allocator.used[bucket], distances)
        allocator.used[bucket, code >> 3] |= BITS[code & 7]
        allocator.free[bucket] -= 1
        if bucket not in self.room:
            if allocator.free[bucket] == 0:
                allocator.filled(bucket)
            return code
        self._forbid(bucket, code)
        self.room[bucket] = room = self.room[bucket] - 1
        if room < self.count[bucket]:
            displaced = int(self.by_bucket[self.begin[bucket] + room])
            self.overflowing[displaced] = True
            heapq.heappush(self.waiting, displaced)
            self.closing.pop(displaced, None)
        if allocator.free[bucket] == 0:
            allocator.filled(bucket)
        elif 0 < room <= self.count[bucket]:
            closer = int(self.by_bucket[self.begin[bucket] + room - 1])
            self.closing[closer] = bucket
            heapq.heappush(self.closers, closer)
        return code

    def _serve_until(self, bucket: int, position: int) -> None:
        """Serve the items of a bucket that come before a position."""
        begin, at, count = self.begin[bucket], self.served[bucket], self.count[bucket]
        while at < count and (item := int(self.by_bucket[begin + at])) < position:
            if not self.overflowing[item]:
                self._take(bucket, item, int(self.open[item].argmin()))
            at += 1
        self.served[bucket] = at

    def _take(self, bucket: int, item: int, code: int) -> None:
        allocator = self.allocator
        allocator.used[bucket, code >> 3] |= BITS[code & 7]
        allocator.free[bucket] -= 1
        self.taken[item], self.done[item] = code, True
        self._forbid(bucket, code)

    def _forbid(self, bucket: int, code: int) -> None:
        begin = self.begin[bucket]
        self.open[self.by_bucket[begin : begin + self.count[bucket]], code] = np.inf

    def _serve_rest(self) -> None:
        allocator = self.allocator
        todo = self.by_bucket[~(self.done | self.overflowing)[self.by_bucket]]
        while len(todo):
            bucket = self.bucket[todo]
            leads = np.ones(len(todo), dtype=bool)
            leads[1:] = bucket[1:] != bucket[:-1]
            now, buckets = todo[leads], bucket[leads]
            codes = self.open[now].argmin(1)
            self.taken[now] = codes
            allocator.used[buckets, codes >> 3] |= BITS[codes & 7]  # every bucket is there once
            allocator.free[buckets] -= 1
            for full in buckets[allocator.free[buckets] == 0].tolist():
                allocator.filled(full)
            follow = ~leads
            rest = todo[follow]
            self.open[rest, codes[(leads.cumsum() - 1)[follow]]] = np.inf
            todo = rest


BITS = (1 << np.arange(8)).astype(np.uint8)


def _split(keys: NDArray[Any], levels: int, dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the packed prefixes, without the last code, and the last codes of packed tuples."""
    width = dtype.itemsize
    if keys.dtype.kind == "u":
        shift = keys.dtype.type(8 * width)
        return keys >> shift, (keys & keys.dtype.type((1 << (8 * width)) - 1)).astype(dtype)
    raw = keys.view(np.uint8).reshape(len(keys), levels * width)
    last = np.ascontiguousarray(raw[:, -width:]).view(dtype.newbyteorder(">")).reshape(-1).astype(dtype)
    return np.ascontiguousarray(raw[:, :-width]).view(f"S{(levels - 1) * width}").reshape(-1), last


def _unpacked(key: Any, levels: int, dtype: np.dtype[Any]) -> tuple[int, ...]:
    """Return the codes of a packed prefix."""
    width = dtype.itemsize
    if isinstance(key, np.unsignedinteger):
        raw = int(key).to_bytes(levels * width, "big")
    else:
        raw = bytes(key).ljust(levels * width, b"\0")  # numpy drops zeros at the end
    return tuple(int.from_bytes(raw[at : at + width], "big") for at in range(0, levels * width, width))


def vector_hashes(vectors: NDArray[np.float32]) -> NDArray[np.uint64]:
    """
    Return a 64-bit hash of every row, (n,): Σ word · odd number, modulo 2^64; the same in every process.

    Two rows that differ in one number never agree; others by a chance of at most 2^-32.
    Source: Dietzfelbinger, "Universal hashing and k-wise independent random variables via integer arithmetic", 1996.
    """
    dim = vectors.shape[1]
    factors = np.random.default_rng(dim).integers(0, 1 << 63, dim, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    words = np.ascontiguousarray(vectors, np.float32).view(np.uint32)
    found = np.empty(len(words), np.uint64)
    step = max(1, HASH_BYTES // (8 * dim))
    for begin in range(0, len(words), step):
        found[begin : begin + step] = words[begin : begin + step].astype(np.uint64) @ factors
    return found


def shared_items(codes: NDArray[Any], taken: NDArray[Any] | None = None) -> int:
    """Count the items whose tuple another item has or that was taken."""
    keys = np.sort(packed_rows(codes))
    again = np.zeros(len(keys), dtype=bool)
    again[1:] = keys[1:] == keys[:-1]
    again[:-1] |= again[1:]
    if taken is not None and len(taken) and len(keys):
        again |= is_in(keys, np.unique(packed_rows(taken.astype(codes.dtype, copy=False))))
    return int(again.sum())


def group_sizes(codes: NDArray[Any]) -> NDArray[np.integer[Any]]:
    """Return how many items every distinct tuple has, in order of the tuples. Memory: 12 bytes a tuple at most."""
    if len(codes) == 0:
        return np.zeros(0, dtype=np.int64)
    keys = packed_rows(codes)
    if keys.dtype.kind == "u":
        keys.sort()  # integers are a copy
    else:
        keys = np.sort(keys)
    first = np.ones(len(keys), dtype=bool)
    np.not_equal(keys[1:], keys[:-1], out=first[1:])
    del keys
    firsts = np.flatnonzero(first).astype(_narrow(len(first)))
    sizes = np.empty_like(firsts)
    np.subtract(firsts[1:], firsts[:-1], out=sizes[:-1])
    sizes[-1] = len(first) - int(firsts[-1])
    return sizes
