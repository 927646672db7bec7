"""
A quantizer's encoding as a plain `nn.Module`, for `torch.export`, ONNX, TorchScript and `torch.compile`.

The module takes no shortcut that depends on rounding: all its products are those of `_exact`, whose sums round nothing,
and what is no sum of products is done number by number. So it gives the very codes of `ResidualQuantizer.encode`, ties
included, in every runtime that keeps to IEEE 754's float64.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from semid_dataset.codec._exact import MANTISSA, bits_for, parts
from semid_dataset.codec._networks import ABOVE, BELOW, FARTHEST, ROOT_HALF, FrozenMLP
from semid_dataset.codec._search import EXACT_PARTS, ExactSearch
from semid_dataset.codec._threads import isolated
from semid_dataset.errors import ConfigError

if TYPE_CHECKING:
    from semid_dataset.codec.residual import ResidualQuantizer

__all__ = ["OnlineEncoder"]

LEAST_EXPONENT, POWERS = -1074, 2098  # of float64: its smallest number, and how many powers of two it has
LARGEST = float(np.finfo(np.float32).max)


class OnlineEncoder(nn.Module):
    """
    Vectors in, codes out; `ResidualQuantizer.module` makes it.

    Args:
        quantizer: whose codes it gives; what it needs is copied.
        features: of items that have these and no others, in the order in which their vectors stand side by side; None
            where there is one.

    Raises:
        ConfigError: a feature that the quantizer does not know, or one twice.
    """

    # TorchScript reads what is annotated here, in the spelling of `typing`, and no module's constants.
    sizes: list[int]
    offsets: list[int]
    widths: list[int]
    weights: list[float]
    begins: list[int]
    ends: list[int]
    into: list[int]
    map_bits: list[int]
    grid_begins: list[int]
    above: list[float]
    below: list[float]
    how: str
    tabled: bool
    encoded: bool
    bits: int
    hidden_bits: int
    width: int
    columns: int
    mantissa: int
    largest: float
    farthest: float
    root_half: float
    mean: Tensor
    scale: Tensor
    half_norms: Tensor
    words0: Tensor
    words1: Tensor
    words2: Tensor
    table: Tensor
    words: Tensor
    powers: Tensor
    ones_and_half: Tensor
    first: Tensor
    first_bias: Tensor
    last: Tensor
    last_bias: Tensor
    feature_means: Tensor
    feature_factors: Tensor
    grids: Tensor

    @isolated()
    def __init__(self, quantizer: "ResidualQuantizer", features: Sequence[str] | None = None) -> None:
        super().__init__()
        search = ExactSearch(quantizer.search)
        self.sizes = list(quantizer.codebook_sizes)
        self.offsets = [sum(self.sizes[:level]) for level in range(len(self.sizes))]
        self.widths = [*search.widths, 1]
        self.weights = [*search.weights, 0.0]
        self.tabled = search.tabled
        self.bits = bits_for(quantizer.dim)
        self.above, self.below = list(ABOVE), list(BELOW)
        self.largest, self.farthest, self.root_half, self.mantissa = LARGEST, FARTHEST, ROOT_HALF, MANTISSA
        self._enter_features(quantizer, features)
        self._keep("mean", quantizer.mean.cpu().numpy())
        self._keep("scale", np.float32(quantizer.scale))
        books = search._exact
        self._keep("half_norms", np.concatenate(books.half_norms))
        for part in range(EXACT_PARTS):
            self._keep(f"words{part}", np.concatenate([factor[part] for factor in books.factors], axis=1))
        table, words = np.zeros((0, 0)), np.zeros((0, quantizer.dim))
        if books.tables is None:
            words = np.concatenate(books.books)
        else:
            table = np.zeros((sum(self.sizes), sum(self.sizes)))
            for level, before in enumerate(books.tables):
                columns = slice(self.offsets[level], self.offsets[level] + self.sizes[level])
                for at, products in enumerate(before):
                    table[self.offsets[at] : self.offsets[at] + self.sizes[at], columns] = products
        self._keep("table", table)
        self._keep("words", words)
        exponents = np.arange(LEAST_EXPONENT, LEAST_EXPONENT + POWERS)
        self._keep("powers", np.ldexp(1.0, exponents))
        # By how many powers are no larger than a number; the first is that of zero, as in `frexp`.
        self._keep("ones_and_half", np.ldexp(1.5, np.concatenate([[0], exponents[:-52] + 1])))
        self.encoded = quantizer.encoder is not None
        self.hidden_bits = 0
        network = [np.zeros((0, 0))] * 4
        if quantizer.encoder is not None:
            frozen = FrozenMLP(quantizer.encoder)
            self.hidden_bits = bits_for(len(frozen.last[0]))
            network = [frozen.first[0], frozen.first_bias, frozen.last[0], frozen.last_bias]
        for name, array in zip(("first", "first_bias", "last", "last_bias"), network, strict=True):
            self._keep(name, array)

    def _keep(self, name: str, array: "NDArray[Any] | np.generic") -> None:
        self.register_buffer(name, torch.from_numpy(np.array(array)))

    def _enter_features(self, quantizer: "ResidualQuantizer", features: Sequence[str] | None) -> None:
        """Note how features become one vector; `ends` says where each of them ends among the columns."""
        fusion = quantizer.fusion
        known = {"": quantizer.dim} if fusion is None else fusion.dims
        names = list(known) if features is None else [str(name) for name in features]
        if sorted(set(names)) != sorted(names) or not set(names) <= set(known) or not names:
            raise ConfigError(
                f"features={features!r} for a quantizer of {', '.join(filter(None, known)) or 'one unnamed feature'}: "
                "name each of those that items have, once."
            )
        self.how = "single" if fusion is None else fusion.kind
        self.width = quantizer.dim
        maps = {} if fusion is None else {mapping.id: mapping for mapping in fusion.maps}
        grids = {}
        if fusion is not None and fusion.kind == "aligned":
            order = [mapping.id for mapping in fusion.maps]
            chosen = sorted(order.index(name) for name in names)
            grids = {order[at]: grid for at, grid in zip(chosen, fusion._maps_of(chosen), strict=True)}
        elif fusion is not None and fusion.kind == "metric":
            only = fusion.maps[0]
            grids = {only.id: parts(only.map, bits_for(len(only.map)), axis=0)[0]}
        self.begins = []
        self.ends = []
        self.into = []
        self.map_bits = []
        means: list[NDArray[np.float32]] = []
        factors: list[float] = []
        begins = dict(zip(names, np.cumsum([0] + [known[name] for name in names]).tolist(), strict=False))
        stacked = []
        for name in sorted(names):  # the order in which `Fusion.apply` adds them up
            self.begins.append(begins[name])
            self.ends.append(begins[name] + known[name])
            self.map_bits.append(bits_for(known[name]))
            mapped = name in maps and maps[name].map.size > 0
            self.into.append(maps[name].offset if name in maps and self.how == "concat" else 0)
            means.append(maps[name].mean if mapped else np.zeros(known[name], np.float32))
            factors.append(float(maps[name].map[0, 0]) if mapped and self.how == "concat" else 1.0)
            stacked.append(grids.get(name, np.zeros((0, quantizer.dim))))
        self.grid_begins = [sum(len(grid) for grid in stacked[:at]) for at in range(len(stacked))]
        self.columns = sum(known[name] for name in names)
        self._keep("feature_means", np.concatenate(means))
        self._keep("feature_factors", np.array(factors, np.float32))
        self._keep("grids", np.concatenate(stacked))

    def forward(self, vectors: Tensor) -> Tensor:
        """
        Return the codes of vectors.

        Args:
            vectors: (n, dim) of any float type; of several features (n, sum of their dims), side by side.

        Returns:
            (n, levels) int64; −1 at every level of a row with NaN or inf.
        """
        if not torch.jit.is_scripting():
            if torch.jit.is_tracing():
                raise RuntimeError("torch.jit.trace would keep the example's shapes: use torch.jit.script.")
            if vectors.dim() != 2 or vectors.shape[1] != self.columns:
                raise ValueError(f"vectors of shape {tuple(vectors.shape)} instead of (n, {self.columns})")
        given = vectors.to(torch.float32)
        finite = torch.isfinite(given).all(1, keepdim=True)
        latents = self._latents(self._fused(torch.where(finite, given, torch.zeros_like(given))))
        return torch.where(finite, self._codes(latents), -1)

    def _fused(self, given: Tensor) -> Tensor:
        """Do what `Fusion.apply` does: (n, columns) float32 to (n, dim) float32."""
        if self.how == "single":
            return given
        fused = torch.zeros([given.shape[0], self.width], dtype=torch.float32, device=given.device)
        at = 0
        for feature in range(len(self.begins)):
            block = given[:, self.begins[feature] : self.ends[feature]]
            wide = self.ends[feature] - self.begins[feature]
            centred = block - self.feature_means[at : at + wide]
            at += wide
            if self.how == "concat":
                scaled = centred * self.feature_factors[feature]
                begin = self.into[feature]
                before, after = fused[:, :begin], fused[:, begin + wide :]
                fused = torch.cat([before, fused[:, begin : begin + wide] + scaled, after], 1)
            elif self.how == "mean":
                fused = fused + block
            else:
                begin = self.grid_begins[feature]
                grid = self.grids[begin : begin + wide]
                cut = self._part(centred.to(torch.float64), self._exponents(centred), self.map_bits[feature])
                fused = fused + torch.mm(cut, grid).to(torch.float32)
        if self.how == "mean":
            fused = fused / float(len(self.begins))
        if self.how == "metric":
            cut = self._part(fused.to(torch.float64), self._exponents(fused), self.bits)
            lengths = torch.sqrt((cut * cut).sum(1, keepdim=True))
            lengths = torch.where(lengths > 0, lengths, torch.ones_like(lengths))
            fused = (fused.to(torch.float64) / lengths).to(torch.float32)
        return fused

    def _latents(self, vectors: Tensor) -> Tensor:
        latents = torch.clamp((vectors - self.mean) / self.scale, -self.largest, self.largest)
        if not self.encoded:
            return latents
        exact = latents.to(torch.float64)
        hidden = torch.mm(self._part(exact, self._exponents(exact), self.bits), self.first) + self.first_bias
        hidden = self._gelu(hidden)
        found = torch.mm(self._part(hidden, self._exponents(hidden), self.hidden_bits), self.last) + self.last_bias
        return torch.clamp(found + exact, -self.largest, self.largest).to(torch.float32)

    def _gelu(self, values: Tensor) -> Tensor:
        at = torch.clamp(values * self.root_half, -self.farthest, self.farthest)
        squared = at * at
        above = torch.full_like(squared, self.above[6])
        for power in range(6):
            above = above * squared + self.above[5 - power]
        below = torch.full_like(squared, self.below[5])
        for power in range(5):
            below = below * squared + self.below[4 - power]
        return ((above * at) / below + 1.0) * values * 0.5

    def _exponents(self, matrix: Tensor) -> Tensor:
        """Return 1.5 · 2^e for every row, (n, 1), where 2^(e-1) <= its largest number < 2^e."""
        largest = matrix.to(torch.float64).abs().amax(1, keepdim=True)
        below = (largest >= self.powers).to(torch.int64).sum(1)
        return self.ones_and_half[below].unsqueeze(1)

    def _part(self, matrix: Tensor, ones_and_half: Tensor, bits: int) -> Tensor:
        """Round every row to `bits` bits of its largest number, as `_exact.parts` does."""
        magic = ones_and_half * 2.0 ** (self.mantissa - 1 - bits)
        return (matrix + magic) - magic

    def _times_words(self, matrix: Tensor, begin: int, end: int) -> Tensor:
        """Return the exact products, (n, end - begin), with some codewords, as `_exact.product` adds them up."""
        scale = self._exponents(matrix)
        rest = matrix.to(torch.float64)
        first = self._part(rest, scale, self.bits)
        rest = rest - first
        second = self._part(rest, scale, 2 * self.bits)
        third = self._part(rest - second, scale, 3 * self.bits)
        n = matrix.shape[0]  # stacked, so that codewords are read three times and not six
        large = torch.mm(torch.cat([first, second, third]), self.words0[:, begin:end])
        small = torch.mm(torch.cat([first, second]), self.words1[:, begin:end])
        total = torch.mm(first, self.words2[:, begin:end]) + small[n:] + large[2 * n :]
        return total + small[:n] + large[n : 2 * n] + large[:n]

    def _codes(self, latents: Tensor) -> Tensor:
        """Search as `ExactSearch` does."""
        n, levels = latents.shape[0], len(self.sizes)
        linear = self.half_norms - self._times_words(latents, 0, self.half_norms.shape[0])
        codes = torch.zeros([n, 1, 0], dtype=torch.int64, device=latents.device)
        scores = torch.zeros([n, 1], dtype=torch.float64, device=latents.device)
        surcharge = scores
        for level in range(levels):
            begin = self.offsets[level]
            end = begin + self.sizes[level]
            total = linear[:, begin:end].unsqueeze(1)
            if level > 0:
                total = self._extended(codes, scores, begin, end) + total
            at = self._lowest(total.flatten(1), self.widths[level] if level < levels - 1 else 1)
            kept = torch.gather(total.flatten(1), 1, at)
            parent = torch.div(at, self.sizes[level], rounding_mode="floor")
            code = at - parent * self.sizes[level]
            codes = torch.cat(
                [torch.gather(codes, 1, parent.unsqueeze(2).expand(-1, -1, codes.shape[2])), code.unsqueeze(2)], 2
            )
            scores = kept
            if level < levels - 1 and self.weights[level] != 0.0:
                before = torch.gather(surcharge, 1, parent)
                added = self.weights[level] * (scores - before)
                surcharge = before + added
                scores = scores + added
        return codes[:, 0]

    def _extended(self, codes: Tensor, scores: Tensor, begin: int, end: int) -> Tensor:
        n, width = scores.shape[0], scores.shape[1]
        if self.tabled:
            table = self.table[:, begin:end]
            total = table[codes[:, :, 0]]
            for before in range(1, codes.shape[2]):
                total = total + table[codes[:, :, before] + self.offsets[before]]
            return total + scores.unsqueeze(2)
        sums = self.words[codes[:, :, 0]]
        for before in range(1, codes.shape[2]):
            sums = sums + self.words[codes[:, :, before] + self.offsets[before]]
        found = self._times_words(sums.flatten(0, 1), begin, end)
        return found.reshape(n, width, end - begin) + scores.unsqueeze(2)

    def _lowest(self, flat: Tensor, width: int) -> Tensor:
        """Return where the `width` least of every row are, (n, width), of equals the first, in their places' order."""
        if width == 1:
            return torch.argmin(flat, 1, keepdim=True)
        size = flat.shape[1]
        width = min(width, size)
        bound = torch.topk(flat, width, 1, largest=False)[0][:, width - 1 :]
        below = flat < bound
        equal = flat == bound
        wanted = width - below.to(torch.int64).sum(1, keepdim=True)
        chosen = below | (equal & (torch.cumsum(equal.to(torch.int64), 1) <= wanted))
        # Distinct numbers, so that no order among equals is left to the runtime.
        places = torch.arange(size, 0, -1, device=flat.device)
        return size - torch.topk(torch.where(chosen, places, torch.zeros_like(places)), width, 1)[0]
