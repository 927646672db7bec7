"""
Find codes by beam search: fast where rounding cannot matter, exactly where it might.

`BeamSearch` takes its products in float32, and how these are rounded depends on the processor, the library, the shape
and the place in a block. So it adds up a bound on what rounding may have changed, and names the vectors for which two
candidates lie closer than that. `ExactSearch` decides these: in float64 first, by the same rule, and where even that
leaves a doubt (a tie, most often) in products that are the same in any order. Of equal sums the lowest codes are taken.
So codes depend on the vector and the codebooks alone.

There is one search in this package, here. Training, extending a table and streaming millions of items all use it,
because two searches would give one item two IDs. Training does without the second look: what it makes is written down.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag

from semid_dataset.codec._exact import Float64, bits_for, parts, product
from semid_dataset.codec._kmeans import nearest
from semid_dataset.codec._threads import in_blocks, times

__all__ = ["BeamSearch", "ExactSearch", "half_norms", "pad"]

TABLE_FLOATS = 1 << 25  # 128 MB: most that tables of codeword products may take; else products are computed as needed
BLOCK_CPU = 1 << 20  # scores held at once: 4 MB stay in the cache of a core
BLOCK_GPU = 1 << 26
SORTED_BY_HEAP = (
    128  # torch's topk keeps a heap, which is fast, for so small a share of a row; else it partitions pairs
)
NARROWEST = 4  # partial sums that the first levels keep at least
PREFIX_DECAY = 1 / 3  # the error of every further level counts a third of the one before

SUMMED = (64, 128, 256)  # terms of a product that are added up at once, of a level: a bound grows with their number
ROUNDING = 2.0**-24  # of one float32 operation, as a share of its result
FINE_ROUNDING = 2.0**-53  # the same of float64
SPARE = 1.1  # on bounds: second-order terms, and the rounding of the bounds themselves
MOST_RIVALS = 8  # candidates that nearly were kept of which it is looked up whether they could have won
UNDERFLOW = 2.0**-72  # shares of a codeword's length below which numbers may have vanished
OPERATIONS = 14  # at most that round a score from one level to the next
LARGEST = 1e36  # of scores; float32 ends at 3.4e38
AGAIN = 1024  # candidates that are added up again at once
EXACT_PARTS = 3  # 60 bits and more of every number: all of a float32
EXACT_BLOCK = 1 << 19  # scores held at once by `ExactSearch`: 4 MB
HEAP = 16 << 20  # bytes: more than a block on the CPU passes through


class BeamSearch:
    """
    Write vectors as sums of codewords, keeping the `beam` best partial sums at every level.

    ½‖z − Σ c‖² = ½‖z‖² + Σ_l (½‖c_l‖² − z·c_l) + Σ_{m<l} c_m·c_l. The products c_m·c_l do not depend
    on z and are looked up, so that a level costs one product z·c for all partial sums together, however wide the beam.
    Width 1 is the greedy search; of equal distances it takes the lowest code.

    A wide beam alone buys a lower error with leading codes that are not the nearest: neighbours then part early. So the
    errors of the leading codes may count too. Kept are the sums with the least
    ‖z − Σ_{m≤l} c_m‖² + Σ_{m<l} w_m ‖z − Σ_{k≤m} c_k‖², w_m = prefix_weight · 3^−m with m from 0.

    The beam widens: every level keeps half as many sums as the next one, but four at least. With 4, 8 and 16 sums
    instead of 16 throughout, the error grows by a thousandth, and the time falls by a third.

    Args:
        codebooks: one (codes, dim) float32 tensor a level.
        beam: partial sums kept at the last level but one, at least 1.
        prefix_weight: w_0; 0 looks at the whole sum alone.

    Memory: the tables, at most 128 MB; 4 · rows · beam · codes bytes of scores, some 4 MB a thread on the CPU.
    Source: faiss, ResidualQuantizer with use_beam_LUT.
    """

    def __init__(self, codebooks: Sequence[Tensor], beam: int, prefix_weight: float = 0.0) -> None:
        self.codebooks: list[Tensor] = [book.detach() for book in codebooks]
        self.beam = beam
        self.prefix_weight = prefix_weight
        sizes = [len(book) for book in self.codebooks]
        self.widths: list[int] = [
            max(beam >> (len(sizes) - 2 - level), min(beam, NARROWEST)) for level in range(len(sizes) - 1)
        ]
        self.offsets: Tensor = torch.tensor([0, *sizes[:-1]], device=self.codebooks[0].device).cumsum(0)
        self.words: Tensor = torch.cat(self.codebooks)
        dim = self.words.shape[1]
        summed = [SUMMED[min(level, len(SUMMED) - 1)] for level in range(len(sizes))]
        self.steps: list[int] = [-(-dim // -(-dim // most)) for most in summed]
        self.half_norms: list[Tensor] = [book.double().square().sum(1).div(2).float() for book in self.codebooks]
        floats = sum(size * sum(sizes[:level]) for level, size in enumerate(sizes))
        self.tables: list[Tensor] | None = None
        if floats <= TABLE_FLOATS:
            before = [sum(sizes[:level]) for level in range(len(sizes))]
            # A last row of ones: times a sum's score it adds that in the same pass.
            self.tables = [
                torch.cat(
                    [(self.words[: before[level]].double() @ book.T.double()).float(), book.new_ones(1, len(book))]
                )
                for level, book in enumerate(self.codebooks)
            ]
        self.bound: _Bound = _Bound(self.codebooks, self._prefix_weights(), self.steps, tables=self.tables is not None)
        block, most = (BLOCK_CPU, 1024) if self.words.device.type == "cpu" else (BLOCK_GPU, 65_536)
        # A multiple of 16, so that no row meets the ragged edge of a matrix product. Single items are padded to as
        # many rows, so there are not too many.
        self.rows: int = min(max(block // (beam * max(sizes)) // 16 * 16, 16), most)

    @cached_property
    def host_words(self) -> NDArray[np.float32]:
        """All codewords, (codes of all levels, dim), on the CPU."""
        return _host(self.words)

    @cached_property
    def host_offsets(self) -> NDArray[np.int64]:
        """Where each level's codewords begin, on the CPU."""
        return _host(self.offsets)

    def _prefix_weights(self) -> list[float]:
        """Return how much the error of the first 1, 2, ... codes alone counts, of all levels but the last."""
        depth = len(self.codebooks) - 1
        return [self.prefix_weight * PREFIX_DECAY**level if self.beam > 1 else 0.0 for level in range(depth)]

    def __call__(self, latents: Tensor, keep: int = 1) -> Tensor:
        """
        Return the codes of the `keep` <= beam best sums of every latent, best first, as far as float32 can tell.

        Args:
            latents: (n, dim) float32, n <= `rows`.

        Returns:
            (n, kept, levels) int64; kept is less than `keep` only where there are fewer sums.
        """
        return self._run(latents, keep, None)

    def judged(self, latents: Tensor, keep: int = 1) -> tuple[Tensor, Tensor]:
        """Return what a call does, for any number of latents, and (n,) bool: which another rounding could change."""
        _keep_heap()
        steps: list[_Step] = []
        codes = self._run(latents, keep, steps)
        with np.errstate(over="ignore", invalid="ignore"):  # what leaves float32 is in doubt
            doubt = _Judge(self, latents, steps, keep).doubt
        return codes, torch.from_numpy(doubt).to(latents.device)

    def _run(self, latents: Tensor, keep: int, steps: "list[_Step] | None") -> Tensor:
        """Return codes as a call does, of any number of latents; levels are appended to `steps`."""
        n, last = len(latents), len(self.codebooks) - 1
        codes = torch.empty(n, 1, 0, dtype=torch.int64, device=latents.device)
        scores = latents.new_zeros(n, 1)  # what partial sums are ranked by, half of it, less what z adds to all
        surcharge = scores  # the part of it that leading codes add
        weights = self._prefix_weights()
        for level in range(last + 1):
            width = self.widths[level] if level < last else keep
            linear = self._linear(latents, level)
            width = min(width, codes.shape[1] * linear.shape[1])
            # Room for all blocks beforehand: small results kept between large passing ones would hole the heap.
            kept, beyond = linear.new_empty(n, width), linear.new_empty(n)
            parent, code = codes.new_empty(n, width), codes.new_empty(n, width)
            for begin in range(0, n, self.rows):
                some = slice(begin, begin + self.rows)
                total = self._candidates(linear[some], codes[some], scores[some], level)
                kept[some], parent[some], code[some], beyond[some] = _smallest(total, width, ordered=level == last)
                del total
            if steps is not None:
                steps.append(_Step(linear, codes, scores, surcharge, kept, parent, code, beyond))
            scores = kept
            if level < last and weights[level]:
                before = surcharge.gather(1, parent)
                surcharge = before + weights[level] * (scores - before)
                scores = scores + (surcharge - before)
            codes = torch.cat([codes.gather(1, parent[:, :, None].expand(-1, -1, level)), code[:, :, None]], 2)
        return codes

    def _candidates(self, linear: Tensor, codes: Tensor, scores: Tensor, level: int) -> Tensor:
        """Return the scores of all sums with one codeword more, (n, width before, codes)."""
        total = linear[:, None, :]
        return self._extended(codes, scores, level).add_(total) if level > 0 else total

    def _linear(self, latents: Tensor, level: int) -> Tensor:
        """Return ½‖c‖² − z·c for every codeword of a level, (n, codes); sums of `steps` terms at once."""
        transposed, dim, step = self.codebooks[level].T, latents.shape[1], self.steps[level]
        found = torch.mm(latents[:, :step], transposed[:step])
        for begin in range(step, dim, step):
            found += torch.mm(latents[:, begin : begin + step], transposed[begin : begin + step])
        return torch.sub(self.half_norms[level], found, out=found)

    def rounds_finely(self) -> bool:
        """
        Whether products are float32's at this moment.

        A caller may have allowed TF32 or bfloat16 for them (`torch.set_float32_matmul_precision` and others), whose
        rounding no bound here covers. Two numbers that need all bits are multiplied by one.
        """
        book = self.codebooks[0]
        dim = self.steps[0]
        probe, ones = book.new_zeros(min(self.rows, BLOCK_CPU // dim), dim), book.new_zeros(dim, len(book))
        fine = 1 + 2.0**-9 + 2.0**-11 + 2.0**-17 + 2.0**-23
        probe[:, 0], probe[:, -1] = 1.0, fine
        ones[0, 0::2], ones[-1, 1::2] = fine, 1.0
        if dim == 1:
            ones[:] = 1.0
        return bool((torch.mm(probe, ones) == fine).all())

    def _extended(self, codes: Tensor, scores: Tensor, level: int) -> Tensor:
        """Return the scores of partial sums plus their products with a level's codewords, (n, width, codes)."""
        n, width = scores.shape
        chosen = (codes + self.offsets[:level]).flatten(0, 1)
        if self.tables is None:
            products = embedding_bag(chosen, self.words, mode="sum") @ self.codebooks[level].T
            return products.view(n, width, -1).add_(scores[:, :, None])
        table = self.tables[level]
        weights = scores.new_ones(n * width, level + 1)
        weights[:, level] = scores.flatten()
        chosen = torch.cat([chosen, chosen.new_full((n * width, 1), len(table) - 1)], 1)
        starts = torch.arange(0, chosen.numel(), level + 1, device=chosen.device)
        # Without the checks of its Python function, which take as long as a tenth of the work.
        return torch.embedding_bag(table, chosen.flatten(), starts, False, 0, False, weights.flatten())[0].view(
            n, width, -1
        )

    def blocks(self, latents: Tensor, keep: int = 1) -> Tensor:
        """Return what a call does for any number of latents, in blocks of one fixed shape."""
        # One tensor from the beginning: small results kept between large passing ones would hole the heap.
        width = min(keep, math.prod(map(len, self.codebooks)))
        codes = torch.empty(len(latents), width, len(self.codebooks), dtype=torch.int64, device=latents.device)

        def one(begin: int) -> None:
            block = latents[begin : begin + self.rows]
            codes[begin : begin + self.rows] = self(pad(block, self.rows), keep)[: len(block)]

        in_blocks(one, range(0, len(latents), self.rows), latents.device)
        return codes

    def sums(self, codes: Tensor) -> Tensor:
        """Return the sums of codewords, (n, dim), for (n, levels) codes of the first levels."""
        return embedding_bag(codes + self.offsets[: codes.shape[1]], self.words, mode="sum")


@cache
def _keep_heap() -> None:
    """
    Have the C library keep the memory that a block gives back, for the next one.

    glibc returns to the system what is free beyond twice the largest piece that was ever given back, and gets it
    zeroed, page by page, for the next block: a quarter of the time. So a large piece is given back once, untouched.
    """
    torch.empty(HEAP, dtype=torch.uint8, device="cpu")


def _smallest(total: Tensor, width: int, *, ordered: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """
    Find the `width` smallest of every (parents, codes) matrix.

    The smallest `width` lie in the columns whose minimum is among the smallest `width` minima, which
    leaves `width` columns to sort instead of all.

    Returns:
        scores, parents, codes: each (n, width), ascending if `ordered`; the next score, (n,), inf where there is none.
    """
    parents, codes = total.shape[1:]
    least = total.amin(1) if parents > 1 else total[:, 0]
    if width == 1:
        column = nearest(least)[:, None]  # the first of equals
        scores = least.gather(1, column)
        beyond = least.scatter(1, column, math.inf).amin(1)
        if parents == 1:
            return scores, torch.zeros_like(column), column, beyond
        of_column = total.gather(2, column[:, None, :].expand(-1, parents, -1))[:, :, 0]
        parent = nearest(of_column)[:, None]
        return scores, parent, column, torch.minimum(beyond, of_column.scatter_(1, parent, math.inf).amin(1))
    scores, columns, beyond = _least(least, min(width, codes), ordered=ordered)
    if parents == 1:
        return scores, torch.zeros_like(columns), columns, beyond
    some = total.gather(2, columns[:, None, :].expand(-1, parents, -1)).flatten(1)
    scores, at, another = _least(some, min(width, some.shape[1]), ordered=ordered)
    parent = at // columns.shape[1]
    return scores, parent, columns.gather(1, at - parent * columns.shape[1]), torch.minimum(beyond, another)


def _least(values: Tensor, width: int, *, ordered: bool) -> tuple[Tensor, Tensor, Tensor]:
    """
    Find the `width` least of every row of (n, m) values.

    Returns:
        These, (n, width), ascending or not; where they are; the next value, (n,), inf where there is none.
    """
    more = width < values.shape[1]
    if values.device.type == "cpu" and width * SORTED_BY_HEAP > values.shape[1]:
        # NumPy sorts by vector instructions: a quarter of topk's time for 16 of 256. Ties are left to topk.
        array = values.numpy()
        rows, length = array.shape
        ascending = np.sort(array, axis=1)  # rows are short: sorting beats partitioning
        found = np.flatnonzero(array <= ascending[:, width - 1 : width])
        if len(found) == rows * width:
            at = torch.from_numpy(found % length).view(rows, width)
            scores = values.gather(1, at)
            if ordered:
                scores, order = scores.sort(1)
                at = at.gather(1, order)
            beyond = torch.from_numpy(ascending[:, width].copy()) if more else torch.full_like(scores[:, 0], math.inf)
            return scores, at, beyond
    scores, at = values.topk(width + more, 1, largest=False, sorted=True)
    if not more:
        return scores, at, torch.full_like(scores[:, 0], math.inf)
    return scores[:, :width], at[:, :width], scores[:, width]


def pad(block: Tensor, rows: int) -> Tensor:
    """Return the block with zero rows added up to `rows`: a product's rounding depends on its shape."""
    if len(block) == rows:
        return block
    return torch.cat([block, block.new_zeros(rows - len(block), block.shape[1])])


class _Bound:
    """
    How far float32 may be off, for scores of one search.

    Standard analysis (Higham, "Accuracy and Stability of Numerical Algorithms", chapter 3): a sum of k terms in any
    order, with or without fused operations, is off by k · u · Σ|terms| at most. Σ|z_i c_i| ≤ |z||c|.

    Args:
        codebooks: of the search.
        weights: of prefixes.
        steps: terms that are added up at once.
        tables: whether products of codewords are looked up; else they are rounded as sums are.
    """

    def __init__(
        self, codebooks: Sequence[Tensor], weights: Sequence[float], steps: Sequence[int], *, tables: bool
    ) -> None:
        dim = codebooks[0].shape[1]
        lengths = [float(book.double().square().sum(1).amax().sqrt()) for book in codebooks]
        self.weights: list[float] = [*weights, 0.0]
        # Twice the error of a level's scores: fixed + linear |z| + share of what `_Judge` adds up for large scores.
        self.fixed: list[float] = []
        self.linear: list[float] = []
        self.share: float = 2 * SPARE * ROUNDING * (1 + sum(weights))
        unweighed, weighed = np.zeros(2), np.zeros(2)  # of the sum alone, and with what prefixes add
        for level, length in enumerate(lengths):
            crossed = sum(lengths[:level]) * length  # Σ|c_m · c|, and so any part of the sum
            largest = length * length / 2  # with |z| length: any ½‖c‖² − z·c
            looked_up = level + 4 if tables else dim + 2 * level + 4
            summed = steps[level] + -(-dim // steps[level])
            added = np.array([3 * largest + looked_up * crossed, (summed + 3) * length]) * ROUNDING * SPARE
            added[0] += UNDERFLOW * length
            unweighed, weighed = unweighed + added, weighed + added
            self.fixed.append(float(2 * weighed[0]))
            self.linear.append(float(2 * weighed[1]))
            weighed = weighed + self.weights[level] * unweighed
        self.total = sum(lengths)
        self.longest: float = LARGEST / max(self.total, 1.0) if self.total < LARGEST**0.5 else 0.0
        self.terms: int = dim + 16 * len(codebooks) + 64

    def fine(self, length: Any) -> Any:
        """Return twice the error of float64, for latents of such lengths."""
        largest = self.total + length
        return 8 * FINE_ROUNDING * self.terms * (1 + sum(self.weights)) ** 2 * largest * largest


@dataclass(frozen=True)
class _Step:
    """
    What a search saw and kept at one level.

    Attributes:
        linear: (n, codes) of the level's codewords alone.
        codes: (n, parents, level) of the sums that went in,
        scores: (n, parents) what these are ranked by, and
        surcharge: (n, parents or 1) the part of it that prefixes add.
        kept: (n, width) scores of what is kept,
        parent: (n, width) which sum each of them goes on from, and
        code: (n, width) its code.
        beyond: (n,) the score that comes next.
    """

    linear: Tensor
    codes: Tensor
    scores: Tensor
    surcharge: Tensor
    kept: Tensor
    parent: Tensor
    code: Tensor
    beyond: Tensor


class _Judge:
    """
    Looks back on a search, and says whose codes another rounding could change.

    Where a kept sum and one that is not kept are nearer than the bound, the two are added up again, in float64. At the
    last level that keeps several, where it happens most, it is looked up instead whether it matters for the best sum.

    In NumPy, and for several blocks at once: there are few such rows in a block, and a call takes longer than they do.

    Args:
        search: the search.
        latents: (n, dim).
        steps: one a level.
        keep: sums that were wanted.

    Attributes:
        doubt: (n,) whose codes another rounding could change.
    """

    def __init__(self, search: BeamSearch, latents: Tensor, steps: Sequence[_Step], keep: int) -> None:
        self.search, self.latents, self.steps = search, latents, steps
        self.last = len(steps) - 1
        bound = search.bound
        length = _host(torch.linalg.vector_norm(latents, dim=1)) * np.float32(1 + 2.0**-10)
        large = np.zeros_like(length)  # scores, times the operations that round them
        self.doubt = ~(length < bound.longest)  # sums may leave the range of float32
        self.margins = []  # (n,) a level
        for level, step in enumerate(steps):
            if level > 0:
                large += np.float32(level + OPERATIONS) * np.abs(_host(step.scores)).max(1)
                large += np.float32(OPERATIONS) * np.abs(_host(step.surcharge)).max(1)
            self.margins.append(bound.linear[level] * length + bound.share * large + bound.fixed[level])
        for level, step in enumerate(steps):
            kept, following, margin = _host(step.kept), _host(step.beyond), self.margins[level]
            close = ~(following - kept.max(1) > margin)  # also where there is a nan
            if keep > 1:
                if level == self.last and kept.shape[1] > 1:
                    close |= ~(np.diff(kept, axis=1).min(1) > margin)
                self.doubt |= close
                continue
            unsure = ~(kept < (following - margin)[:, None])  # of what is kept what nearly was not
            if level == self.last - 1:
                self.doubt |= unsure[np.arange(len(kept)), _host(steps[-1].parent)[:, 0]]
            rows = np.flatnonzero(close & ~self.doubt)
            if len(rows):
                self._compare(level, rows, unsure[rows])

    def _compare(self, level: int, rows: NDArray[np.int64], unsure: NDArray[np.bool_]) -> None:
        """Doubt, of rows that are close at a level, those for which what was nearly kept might matter."""
        step = self.steps[level]
        picked = torch.from_numpy(rows).to(self.latents.device)
        total = self.search._candidates(step.linear[picked], step.codes[picked], step.scores[picked], level)
        size = total.shape[2]
        totals, codes = _host(total.flatten(1)), _host(step.codes)
        kept, places = _host(step.kept)[rows], (_host(step.parent) * size + _host(step.code))[rows]
        near = totals <= (kept.max(1) + self.margins[level][rows])[:, None]
        near[np.arange(len(rows))[:, None], places] = False
        which, at = np.divmod(np.flatnonzero(near), near.shape[1])  # whose it is that was nearly kept, and its place
        crowded = np.bincount(which, minlength=len(rows)) > MOST_RIVALS
        self.doubt[rows[crowded]] = True
        few = ~crowded[which]
        which, at = which[few], at[few]

        def codes_at(of: NDArray[np.int64], place: NDArray[np.int64]) -> NDArray[np.int64]:
            return np.concatenate([codes[rows[of], place // size], (place % size)[:, None]], axis=1)

        if level == self.last - 1:
            score = totals[which, at]
            if weight := self.search.bound.weights[level]:
                score = score + np.float32(weight) * (score - _host(step.surcharge)[rows[which], at // size])
            self._challenge(rows[which], codes_at(which, at), score)
            return
        row, slot = np.nonzero(unsure)
        latents = _host(self.latents[picked])
        farthest, nearest = np.full(len(rows), -np.inf), np.full(len(rows), np.inf)
        np.maximum.at(farthest, row, self._fine(codes_at(row, places[row, slot]), latents[row]))
        np.minimum.at(nearest, which, self._fine(codes_at(which, at), latents[which]))
        length = np.sqrt(np.square(latents, dtype=np.float64).sum(1))
        self.doubt[rows] |= ~(nearest - farthest > self.search.bound.fine(length))

    def _fine(self, codes: NDArray[np.int64], latents: NDArray[np.float32]) -> Float64:
        """Return what sums of codewords are ranked by, (n,), in float64."""
        depth, weights = codes.shape[1], self.search.bound.weights
        score = np.empty(len(codes))
        for begin in range(0, len(codes), AGAIN):
            some = slice(begin, begin + AGAIN)
            sums = self.search.host_words[codes[some] + self.search.host_offsets[:depth]].astype(np.float64)
            for level in range(1, depth):
                sums[:, level] += sums[:, level - 1]
            errors = np.einsum("ijk,ijk->ij", sums, sums - 2 * latents[some, None].astype(np.float64)) / 2
            score[some] = errors[:, -1] + sum(weights[level] * errors[:, level] for level in range(depth - 1))
        return score

    def _challenge(self, rows: NDArray[np.int64], codes: NDArray[np.int64], score: NDArray[np.float32]) -> None:
        """Doubt where the best sum might be beaten by one that goes on from what was nearly kept."""
        if not len(rows):  # all of them had too many rivals, and are in doubt already
            return
        device, step = self.latents.device, self.steps[-1]
        totals = self.search._extended(
            torch.from_numpy(codes).to(device)[:, None, :], torch.from_numpy(score).to(device)[:, None], self.last
        )
        found = _host(totals[:, 0].add_(step.linear[torch.from_numpy(rows).to(device)]).amin(1))
        self.doubt[rows[~(found - _host(step.kept)[rows, 0] > self.margins[-1][rows])]] = True


def _host(tensor: Tensor) -> NDArray[Any]:
    return tensor.cpu().numpy()


class ExactSearch:
    """
    The same search in float64, and where that leaves a doubt in products that are the same on every machine.

    Of equal sums those with the lowest codes are kept, compared from the first code on.

    Args:
        search: whose codebooks, widths and weights are taken.

    Memory: float64 copies of the codebooks and twice what the tables of the search take; 4 MB a thread.
    """

    def __init__(self, search: BeamSearch) -> None:
        self.books = [book.cpu().numpy() for book in search.codebooks]
        self.bound = search.bound
        self.widths = search.widths
        self.tabled = search.tables is not None
        # By division, one at a time: powers differ between C libraries.
        self.weights: list[float] = [search.prefix_weight if search.beam > 1 else 0.0] * len(search.widths)
        for level in range(1, len(self.weights)):
            self.weights[level] = self.weights[level - 1] / 3
        self.rows = max(EXACT_BLOCK // (search.beam * max(map(len, self.books))), 1)

    def __call__(self, latents: NDArray[np.float32], keep: int = 1) -> NDArray[np.int64]:
        """
        Return the codes of the `keep` <= beam best sums of every latent, best first.

        Args:
            latents: (n, dim), n <= `rows`.

        Returns:
            (n, kept, levels); kept is less than `keep` only where there are fewer sums.
        """
        codes, doubt = self._run(latents, keep, self._fine)
        rows = np.flatnonzero(doubt)
        if len(rows):
            codes[rows] = self._run(latents[rows], keep, self._exact)[0]
        return codes

    @cached_property
    def _fine(self) -> "_Products":
        return _Products(self.books, self.tabled, parts_of_each=0)

    @cached_property
    def _exact(self) -> "_Products":
        return _Products(self.books, self.tabled, parts_of_each=EXACT_PARTS)

    def _run(
        self, latents: NDArray[np.float32], keep: int, products: "_Products"
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return codes, and which of them float64 cannot tell from others."""
        n, last = len(latents), len(self.books) - 1
        codes = np.zeros((n, 1, 0), np.int64)
        scores = surcharge = np.zeros((n, 1))
        doubt = np.zeros(n, bool)
        margin = self.bound.fine(np.sqrt(np.square(latents, dtype=np.float64).sum(1)))
        for level in range(last + 1):
            total = products.linear(latents, level)[:, None, :]
            if level > 0:
                total = products.extended(codes, scores, level) + total
            width = self.widths[level] if level < last else keep
            at, kept, beyond = _lowest(total, width, ordered=level == last)
            if level == last:
                ends = np.concatenate([kept, beyond[:, None]], axis=1)
                doubt |= (np.diff(ends, axis=1) <= margin[:, None]).any(1)
            else:
                doubt |= beyond - kept.max(1) <= margin
            parent, code = np.divmod(at, total.shape[2])
            codes = np.concatenate([np.take_along_axis(codes, parent[:, :, None], 1), code[:, :, None]], axis=2)
            scores = kept
            if level < last and self.weights[level]:
                before = np.take_along_axis(surcharge, parent, 1)
                added = self.weights[level] * (scores - before)
                surcharge = before + added
                scores = scores + added
        return codes, doubt


def _lowest(total: Float64, width: int, *, ordered: bool) -> tuple[NDArray[np.int64], Float64, Float64]:
    """
    Find the `width` least of every (parents, codes) matrix, of equals the first.

    Returns:
        Where they are in the flat matrix, and their values, (n, width), ascending if `ordered`, else in their places'
        order; the next value, (n,), inf where there is none.
    """
    n, parents, codes = total.shape
    least = total.min(1)
    # No more than `width` columns begin below the bound, and these hold all that are wanted and the next one.
    bound = np.partition(least, width, axis=1)[:, width] if width < codes else np.full(n, np.inf)
    flat = total.reshape(n, -1)
    row, at = np.nonzero(flat <= bound[:, None])
    values = flat[row, at]
    order = np.lexsort((values, row))  # stable: equals stay in their order
    begins = np.searchsorted(row, np.arange(n))
    rank = np.empty(len(row), np.int64)
    rank[order] = np.arange(len(row)) - begins[row]
    beyond = np.full(n, np.inf)
    beyond[row[rank == width]] = values[rank == width]
    chosen = order[rank[order] < width] if ordered else np.flatnonzero(rank < width)
    shape = (n, min(width, parents * codes))
    return at[chosen].reshape(shape), values[chosen].reshape(shape), beyond


class _Products:
    """
    Products of codewords, in float64.

    Args:
        books: one (codes, dim) float32 a level.
        tabled: whether products among codewords are looked up.
        parts_of_each: into how many parts factors are cut, so that no order of adding up matters; 0 leaves them whole.
    """

    def __init__(self, books: Sequence[NDArray[np.float32]], tabled: bool, parts_of_each: int) -> None:
        self.books = [book.astype(np.float64) for book in books]
        self.parts = parts_of_each
        self.bits = bits_for(books[0].shape[1])
        self.half_norms = [half_norms(book) for book in self.books]
        self.factors: list[Any] = [
            parts(book.T, self.bits, self.parts, axis=0) if self.parts else np.ascontiguousarray(book.T)
            for book in self.books
        ]
        self.tables: list[list[Float64]] | None = None
        if tabled:
            self.tables = [[self._times(book, level) for book in self.books[:level]] for level in range(len(books))]

    def _times(self, left: NDArray[Any], level: int) -> Float64:
        """Return the products (n, codes) of vectors with a level's codewords."""
        if self.parts:
            return product(left, self.factors[level], times)
        return times(np.asarray(left, np.float64), self.factors[level])

    def linear(self, latents: NDArray[np.float32], level: int) -> Float64:
        """Return ½‖c‖² − z·c for every codeword of a level, (n, codes)."""
        return np.asarray(self.half_norms[level] - self._times(latents, level))

    def extended(self, codes: NDArray[np.int64], scores: Float64, level: int) -> Float64:
        """Return the scores of partial sums plus their products with a level's codewords, (n, width, codes)."""
        n, width = scores.shape
        if self.tables is None:
            sums = self.books[0][codes[:, :, 0]]
            for before in range(1, level):
                sums += self.books[before][codes[:, :, before]]
            return self._times(sums.reshape(n * width, -1), level).reshape(n, width, -1) + scores[:, :, None]
        total = self.tables[level][0][codes[:, :, 0]]
        for before in range(1, level):
            total += self.tables[level][before][codes[:, :, before]]
        total += scores[:, :, None]
        return total


def half_norms(book: NDArray[Any]) -> Float64:
    """Return ½‖c‖² of every codeword, (codes,), the same on every machine."""
    cut = parts(book, bits_for(book.shape[1]), EXACT_PARTS)
    total = np.zeros(len(book))
    for depth in reversed(range(EXACT_PARTS)):  # the smallest first, as in `product`
        for at in range(depth + 1):
            total += np.einsum("ij,ij->i", cut[at], cut[depth - at])
    return total / 2
