"""
Give every item a code tuple of its own.

The item that a contested tuple fits best keeps it. The others take the nearest last code that is
free; where none is free under their leading codes, the nearest code one level above that has room
below it, and so on upwards. The all-zero tuple means "no ID" and is never given.

Losers are served one after the other, the best fit first. Those of different leading codes do not
meet, unless one of them spills into the codes of another; so a block of losers is served at once,
with a bitmap of used codes for every prefix, and only those that spill go one by one. Vectors are
asked for losers alone: where they lie on disk, the others need not be read again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from semid_dataset.container import is_in, packed_rows
from semid_dataset.quantizer import ResidualQuantizer

__all__ = [
    "Items",
    "Resolution",
    "group_sizes",
    "resolve_collisions",
    "shared_items",
    "squared_errors",
    "vector_hashes",
]

BLOCK = 4096  # items whose distances are computed at once
HASH_BYTES = 8 << 20  # of vectors hashed at once, as 64-bit numbers


class Items(Protocol):
    """What there is to know about items; rows are positions in the codes that are made unique."""

    def errors(self, rows: NDArray[np.int64], codes: NDArray[Any]) -> NDArray[np.float32]:
        """Return the squared distance of the latent of each row to the sum of its codewords."""

    def hashes(self, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return `vector_hashes` of these rows."""

    def prepare(self, rows: NDArray[np.int64]) -> None:
        """Make ready to be asked for the vectors of these rows, in this order and in blocks."""

    def vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
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
        losers: (k,) rows of the items that had to yield, in the order in which they were served.
    """

    codes: NDArray[Any]
    moved: int
    exact_duplicates: int
    shared: int
    losers: NDArray[np.int64] | None = None


def resolve_collisions(
    quantizer: ResidualQuantizer,
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
    Memory: some 30 bytes an item (of tuples up to 4 bytes), 20 more for a contested one, and a bit a code of the last
    level for every prefix of a loser. Time: n log n for all; losers in blocks, one by one where they spill.
    """
    known = items if not isinstance(items, np.ndarray) else _Matrix(quantizer, items)
    if len(codes) == 0:
        return Resolution(codes.copy(), 0, 0, 0)
    held = np.zeros((1, codes.shape[1]), dtype=codes.dtype)  # the all-zero tuple counts as taken
    if taken is not None and len(taken):
        held = np.concatenate([held, taken.astype(codes.dtype, copy=False)])
    held = np.unique(packed_rows(held))
    given, rows, keys = _contested(codes, held)
    if len(rows) == 0:
        return Resolution(codes.copy(), 0, 0, 0)
    duplicates = _duplicates(keys, known.hashes(rows))
    errors = known.errors(rows, codes[rows])
    order = np.lexsort((errors, keys))  # stable: equal errors stay in the order of the items
    first = np.ones(len(order), dtype=bool)
    first[1:] = keys[order][1:] != keys[order][:-1]
    keeps = np.zeros(len(rows), dtype=bool)
    keeps[order[first]] = True
    keeps &= ~is_in(keys, held)
    del order, first
    losers, errors = rows[~keeps], errors[~keeps]
    del rows, keys, keeps
    losers = losers[np.lexsort((losers, errors))]
    del errors
    if len(losers) == 0:
        return Resolution(codes.copy(), 0, duplicates, 0)

    known.prepare(losers)
    result = codes.copy()
    left_over = _Servant(quantizer, given, codes.dtype).serve(losers, codes, known, result)
    moved = sum(
        int((result[part] != codes[part]).any(1).sum()) for part in np.array_split(losers, -(-len(losers) // (1 << 20)))
    )
    return Resolution(result, moved, duplicates, shared_items(result, taken) if left_over else 0, losers)


def _contested(codes: NDArray[Any], held: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[Any]]:
    """
    Return all tuples that are given to somebody, packed, ascending, each once; and rows and tuples that are contested.

    Whoever a contested tuple goes to, it goes to one of them, or it was taken: so all tuples that occur are given.
    """
    keys = packed_rows(codes)
    order = np.argsort(keys, kind="stable").astype(np.uint32 if len(keys) < 1 << 32 else np.int64)
    keys = keys[order]
    again = np.zeros(len(keys), dtype=bool)
    again[1:] = keys[1:] == keys[:-1]
    contested = again.copy()
    contested[:-1] |= again[1:]
    contested |= is_in(keys, held)
    given = np.union1d(keys[~again], held)
    chosen = np.flatnonzero(contested)
    return given, order[chosen].astype(np.int64), keys[chosen]


def _duplicates(keys: NDArray[Any], hashes: NDArray[np.uint64]) -> int:
    """Count the items that equal one before them: equal vectors have equal tuples, so only those are compared."""
    order = np.lexsort((hashes, keys))
    keys, hashes = keys[order], hashes[order]
    return int(((keys[1:] == keys[:-1]) & (hashes[1:] == hashes[:-1])).sum())


class _Matrix:
    """Items whose vectors are in memory."""

    def __init__(self, quantizer: ResidualQuantizer, vectors: NDArray[np.float32]) -> None:
        self.quantizer = quantizer
        self.matrix = vectors

    def errors(self, rows: NDArray[np.int64], codes: NDArray[Any]) -> NDArray[np.float32]:
        found = np.empty(len(rows), dtype=np.float32)
        for begin in range(0, len(rows), BLOCK):
            block = slice(begin, begin + BLOCK)
            found[block] = squared_errors(self.quantizer, self.matrix[rows[block]], codes[block])
        return found

    def hashes(self, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        found = np.empty(len(rows), dtype=np.uint64)
        for begin in range(0, len(rows), BLOCK):
            found[begin : begin + BLOCK] = vector_hashes(self.matrix[rows[begin : begin + BLOCK]])
        return found

    def prepare(self, rows: NDArray[np.int64]) -> None:
        pass

    def vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.matrix[rows]


class _Servant:
    """
    Gives free tuples to losers.

    `used` holds a bitmap of the last codes in use for every prefix that is the home of a loser, `free` how many are
    left. For the other prefixes that a search ends below, `guests` does. `full` holds, for prefixes further up,
    the codes that have no room left below.
    """

    def __init__(self, quantizer: ResidualQuantizer, given: NDArray[Any], dtype: Any) -> None:
        self.quantizer = quantizer
        self.sizes = quantizer.codebook_sizes
        self.words = [book.cpu().numpy() for book in quantizer.codebooks]
        self.norms = [(book**2).sum(1) for book in self.words]
        self.dtype = np.dtype(dtype)
        prefixes, self.lasts = _split(given, len(self.sizes), self.dtype)
        changes = np.ones(len(prefixes), dtype=bool)
        changes[1:] = prefixes[1:] != prefixes[:-1]
        self.prefixes = prefixes[changes]
        self.starts = np.append(np.flatnonzero(changes), len(prefixes))
        self.homes = self.prefixes[:0]
        self.used = np.zeros((0, -(-self.sizes[-1] // 8)), np.uint8)
        self.free = np.zeros(0, np.int64)
        self.guests: dict[tuple[int, ...], set[int]] = {}
        self.full: dict[tuple[int, ...], set[int]] = {}
        for prefix in self.prefixes[np.diff(self.starts) == self.sizes[-1]]:
            self._fill(_unpacked(prefix, len(self.sizes) - 1, self.dtype))

    def serve(self, losers: NDArray[np.int64], codes: NDArray[Any], items: Items, result: NDArray[Any]) -> int:
        """Write a tuple for every loser into `result`. Return how many found none."""
        home_keys, _ = _split(packed_rows(codes[losers]), len(self.sizes), self.dtype)
        self.homes, home_of = np.unique(home_keys, return_inverse=True)
        home_of = home_of.reshape(-1).astype(np.uint32)
        del home_keys
        self._enter_homes()
        left_over = 0
        for begin in range(0, len(losers), BLOCK):
            block = losers[begin : begin + BLOCK]
            latents = self.quantizer.latents(items.vectors(block)).cpu().numpy()
            residuals = latents.copy()
            for level in range(len(self.sizes) - 1):
                residuals -= self.words[level][codes[block, level]]
            distances = self.norms[-1] - 2 * residuals @ self.words[-1].T
            served = _Block(self, home_of[begin : begin + BLOCK].astype(np.int64), latents, distances)
            served.run()
            result[block[served.stayed], -1] = served.taken[served.stayed]
            for position, found in served.spilled.items():
                item = block[position]
                if found is not None:
                    result[item] = found
                else:
                    left_over += 1
                    if not codes[item].any():
                        result[item, -1] = 1 + distances[position, 1:].argmin()
        return left_over

    def _enter_homes(self) -> None:
        """Set the bits of what is given below the homes."""
        size = self.sizes[-1]
        self.used = np.zeros((len(self.homes), -(-size // 8)), np.uint8)
        places = np.minimum(np.searchsorted(self.prefixes, self.homes), len(self.prefixes) - 1)
        known = self.prefixes[places] == self.homes
        lengths = np.where(known, self.starts[places + 1] - self.starts[places], 0)
        self.free = size - lengths
        for begin in range(0, len(self.homes), 1 << 16):
            some = slice(begin, begin + (1 << 16))
            counts = lengths[some]
            home = np.repeat(np.arange(begin, begin + len(counts)), counts)
            ends = counts.cumsum()
            where = np.repeat(self.starts[places[some]] - ends + counts, counts) + np.arange(len(home))
            last = self.lasts[where]
            at = home * self.used.shape[1] + (last >> 3)  # ascending
            runs = np.flatnonzero(np.diff(at, prepend=-1))
            if len(runs):
                self.used.reshape(-1)[at[runs]] = np.bitwise_or.reduceat(BITS[last & 7], runs)

    def spill(self, home: int, latent: NDArray[np.float32]) -> tuple[int, ...] | None:
        """Return the nearest prefix that has room, for an item whose home has none; None where nothing has."""
        prefix = _unpacked(self.homes[home], len(self.sizes) - 1, self.dtype)
        while prefix:  # go up to the first prefix with room, then down the nearest way
            prefix = prefix[:-1]
            if len(self.full.get(prefix, ())) < self.sizes[len(prefix)]:
                break
        else:
            return None
        residual = latent - sum(self.words[level][code] for level, code in enumerate(prefix))
        while len(prefix) < len(self.sizes) - 1:
            level = len(prefix)
            book = self.words[level]
            distances = self.norms[level] - 2 * book @ residual
            code = int(distances.argmin())
            closed = self.full.get(prefix)
            if closed and code in closed:
                distances[list(closed)] = np.inf
                code = int(distances.argmin())
            prefix = (*prefix, code)
            residual = residual - book[code]
        return prefix

    def last_distances(self, prefix: tuple[int, ...], latent: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the distance to every last code below a prefix."""
        residual = latent - sum(self.words[level][code] for level, code in enumerate(prefix))
        return np.asarray(self.norms[-1] - 2 * self.words[-1] @ residual)

    def home(self, prefix: tuple[int, ...]) -> int:
        """Return the number of the home with this prefix, -1 if it is nobody's."""
        key = _packed(prefix, self.dtype, self.homes.dtype)
        place = int(np.searchsorted(self.homes, key))
        return place if place < len(self.homes) and self.homes[place] == key else -1

    def guest_codes(self, prefix: tuple[int, ...]) -> set[int]:
        """Return the last codes in use below a prefix that is no home; what is added to it is taken."""
        codes = self.guests.get(prefix)
        if codes is None:
            key = _packed(prefix, self.dtype, self.prefixes.dtype)
            place = int(np.searchsorted(self.prefixes, key))
            there = place < len(self.prefixes) and self.prefixes[place] == key
            codes = set(self.lasts[self.starts[place] : self.starts[place + 1]].tolist() if there else [])
            self.guests[prefix] = codes
        return codes

    def filled(self, home: int) -> None:
        """Note that a home has no room left."""
        self._fill(_unpacked(self.homes[home], len(self.sizes) - 1, self.dtype))

    def _fill(self, prefix: tuple[int, ...]) -> None:
        """Tell the levels above that a prefix has no room left."""
        while prefix:
            closed = self.full.setdefault(prefix[:-1], set())
            closed.add(prefix[-1])
            prefix = prefix[:-1]
            if len(closed) < self.sizes[len(prefix)]:
                break

    def take_guest(self, prefix: tuple[int, ...], distances: NDArray[np.float32]) -> int:
        """Take the nearest free last code below a prefix that is no home."""
        codes = self.guest_codes(prefix)
        distances[list(codes)] = np.inf
        code = int(distances.argmin())
        codes.add(code)
        if len(codes) == self.sizes[-1]:
            self._fill(prefix)
        return code


class _Block:
    """
    A block of losers, served in their order as far as that matters.

    Of the items of one home the first ones take what is free and the rest spills. A spill changes a home that others of
    the block have; so before it, and only in that home, those that come earlier are served, one by one. All
    others are served at the end, the first of every home at once, then the second, and so on.
    """

    def __init__(
        self, servant: _Servant, home: NDArray[np.int64], latents: NDArray[np.float32], distances: NDArray[np.float32]
    ) -> None:
        self.servant = servant
        self.home = home
        self.latents = latents
        bits = np.unpackbits(servant.used[home], axis=1, count=servant.sizes[-1], bitorder="little")
        self.open = np.where(bits, np.float32(np.inf), distances)
        self.by_home = np.argsort(home, kind="stable")
        ordered = home[self.by_home]
        firsts = np.flatnonzero(np.diff(ordered, prepend=-1))
        self.begin = dict(zip(ordered[firsts].tolist(), firsts.tolist(), strict=True))
        self.count = dict(zip(ordered[firsts].tolist(), np.diff(firsts, append=len(home)).tolist(), strict=True))
        rank = np.empty(len(home), np.int64)
        rank[self.by_home] = np.arange(len(home)) - np.repeat(firsts, np.diff(firsts, append=len(home)))
        self.spills = rank >= servant.free[home]
        self.taken = np.zeros(len(home), np.int64)
        self.done = np.zeros(len(home), dtype=bool)
        self.spilled: dict[int, tuple[int, ...] | None] = {}
        self.rank = rank
        # Of homes that this block fills: how many of its items they take, and when the last of them comes.
        self.room = dict(zip(ordered[firsts].tolist(), servant.free[ordered[firsts]].tolist(), strict=True))

    @property
    def stayed(self) -> NDArray[np.bool_]:
        """Which items found a code in their home."""
        return ~self.spills

    def run(self) -> None:
        """Serve everybody."""
        if self.spills.any():
            self._spill_all()
        self._serve_rest()

    def _spill_all(self) -> None:
        servant = self.servant
        closing = {}  # position of the item that takes the last code of its home -> home
        for home, room in self.room.items():
            if 0 < room <= self.count[home]:
                closing[int(self.by_home[self.begin[home] + room - 1])] = home
        position = -1
        exhausted = False
        while True:
            later = self.spills[position + 1 :]
            step = int(later.argmax()) if len(later) else 0
            if not len(later) or not later[step]:
                break
            upcoming = position + 1 + step
            for at in sorted(at for at in closing if at < upcoming):
                servant.filled(closing.pop(at))
            position = upcoming
            latent = self.latents[position]
            target = None if exhausted else servant.spill(int(self.home[position]), latent)
            if target is None:
                exhausted = True  # what is given is never free again
                self.spilled[position] = None
                continue
            distances = servant.last_distances(target, latent)
            home = servant.home(target)
            if home < 0:
                self.spilled[position] = (*target, servant.take_guest(target, distances))
                continue
            self.spilled[position] = (*target, self._into_home(home, position, distances, closing))
        for at in sorted(closing):
            servant.filled(closing[at])

    def _into_home(self, home: int, position: int, distances: NDArray[np.float32], closing: dict[int, int]) -> int:
        """Take a code of a home that may be that of others in this block, after those of them who come earlier."""
        servant = self.servant
        begin = self.begin.get(home, 0)
        for item in self.by_home[begin : begin + self.count.get(home, 0)]:
            if item >= position:
                break
            if not self.done[item] and not self.spills[item]:
                self._take(home, int(item), int(self.open[item].argmin()))
        bits = np.unpackbits(servant.used[home], count=servant.sizes[-1], bitorder="little")
        distances[bits > 0] = np.inf
        code = int(distances.argmin())
        servant.used[home, code >> 3] |= BITS[code & 7]
        servant.free[home] -= 1
        if home not in self.room:
            if servant.free[home] == 0:
                servant.filled(home)
            return code
        self._forbid(home, code)
        self.room[home] = room = self.room[home] - 1
        if room < self.count[home]:
            displaced = int(self.by_home[self.begin[home] + room])
            self.spills[displaced] = True
            closing.pop(displaced, None)
        if servant.free[home] == 0:
            servant.filled(home)
        elif 0 < room <= self.count[home]:
            closing[int(self.by_home[self.begin[home] + room - 1])] = home
        return code

    def _take(self, home: int, item: int, code: int) -> None:
        servant = self.servant
        servant.used[home, code >> 3] |= BITS[code & 7]
        servant.free[home] -= 1
        self.taken[item], self.done[item] = code, True
        self._forbid(home, code)

    def _forbid(self, home: int, code: int) -> None:
        begin = self.begin[home]
        self.open[self.by_home[begin : begin + self.count[home]], code] = np.inf

    def _serve_rest(self) -> None:
        servant = self.servant
        todo = self.by_home[~(self.done | self.spills)[self.by_home]]
        while len(todo):
            home = self.home[todo]
            leads = np.ones(len(todo), dtype=bool)
            leads[1:] = home[1:] != home[:-1]
            now, homes = todo[leads], home[leads]
            codes = self.open[now].argmin(1)
            self.taken[now] = codes
            servant.used[homes, codes >> 3] |= BITS[codes & 7]  # every home is there once
            servant.free[homes] -= 1
            for full in homes[servant.free[homes] == 0].tolist():
                servant.filled(full)
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


def _packed(prefix: Sequence[int], dtype: np.dtype[Any], kind: np.dtype[Any]) -> Any:
    """Return a prefix as it stands among packed ones."""
    raw = b"".join(code.to_bytes(dtype.itemsize, "big") for code in prefix)
    return kind.type(int.from_bytes(raw, "big")) if kind.kind == "u" else np.array(raw, kind)


def _unpacked(key: Any, levels: int, dtype: np.dtype[Any]) -> tuple[int, ...]:
    """Return the codes of a packed prefix."""
    width = dtype.itemsize
    if isinstance(key, np.unsignedinteger):
        raw = int(key).to_bytes(levels * width, "big")
    else:
        raw = bytes(key).ljust(levels * width, b"\0")  # numpy drops zeros at the end
    return tuple(int.from_bytes(raw[at : at + width], "big") for at in range(0, levels * width, width))


def squared_errors(
    quantizer: ResidualQuantizer, vectors: NDArray[np.float32], codes: NDArray[Any]
) -> NDArray[np.float32]:
    """Return the squared distance of every latent, (n,), to its sum of codewords."""
    with torch.inference_mode():
        latents = quantizer.latents(vectors)
        sums = quantizer.search.sums(torch.from_numpy(codes.astype(np.int64)).to(quantizer.device))
        return np.asarray((latents - sums.to(latents.device)).square().sum(1).cpu().numpy())


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


def group_sizes(codes: NDArray[Any]) -> NDArray[np.int64]:
    """Return how many items every distinct tuple has, in order of the tuples."""
    if len(codes) == 0:
        return np.zeros(0, dtype=np.int64)
    keys = np.sort(packed_rows(codes))
    firsts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return np.diff(firsts, append=len(keys))
