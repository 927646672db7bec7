"""
Networks around codebooks: as torch computes them while they learn, and alike on every machine afterwards.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import gelu, linear

from semid_dataset.codec._exact import Float64, bits_for, parts, product
from semid_dataset.codec._threads import times

__all__ = ["FrozenMLP", "ResidualMLP"]

FARTHEST = 4.2  # beyond, erf is 1 to 3e-9
# erf(t) = t P(t²) / Q(t²), lowest power first: fitted to 2e-9 on 0 … 4.2 (weighted least squares, iterated).
ABOVE = (
    1.1283791836112882,
    0.18467675927230012,
    0.05438102093890221,
    0.003844983613516461,
    0.0003849692634394889,
    4.84240558928895e-06,
    -1.3985948122466216e-08,
)
BELOW = (
    1.0,
    0.49699908156325956,
    0.1138592256881652,
    0.015472453199408376,
    0.0013137414224483471,
    6.459432605164143e-05,
)
ROOT_HALF = 0.7071067811865476
BLOCK, ROWS = 1 << 16, 256  # numbers that pass at once, to stay in a core's cache; but rows at least, for the products
LARGEST = float(np.finfo(np.float32).max)


class ResidualMLP:
    """
    v + W₂ gelu(W₁ v + b₁) + b₂, which starts as the identity: W₂ and b₂ are zero at first.

    Tensors and no `nn.Module`: a program may have hooks on all modules, or all modules made without weights.

    Args:
        dim: of input and output.
        width: of the hidden layer.
        generator: of W₁; None leaves the process's random numbers alone and draws as the seed 0 does.
    """

    def __init__(self, dim: int, width: int, generator: torch.Generator | None = None) -> None:
        generator = generator or torch.Generator("cpu").manual_seed(0)
        bound = dim**-0.5
        first = (torch.rand(width, dim, generator=generator, dtype=torch.float32, device="cpu") * 2 - 1) * bound
        self._set(first, first.new_zeros(width), first.new_zeros(dim, width), first.new_zeros(dim))

    def _set(self, first: Tensor, first_bias: Tensor, last: Tensor, last_bias: Tensor) -> None:
        self.first: Tensor = first
        self.first_bias: Tensor = first_bias
        self.last: Tensor = last
        self.last_bias: Tensor = last_bias

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> "ResidualMLP":
        """
        Return the one with these weights, by name.

        Raises:
            KeyError, ValueError: one is missing, or they do not fit together.
        """
        module = cls.__new__(cls)
        module._set(weights["first"], weights["first_bias"], weights["last"], weights["last_bias"])
        width, dim = module.first.shape
        if (module.first_bias.shape, module.last.shape, module.last_bias.shape) != ((width,), (dim, width), (dim,)):
            raise ValueError(f"a network of weights {[tuple(weight.shape) for weight in weights.values()]}")
        return module

    @property
    def weights(self) -> dict[str, Tensor]:
        """All weights by name."""
        return {name: getattr(self, name) for name in ("first", "first_bias", "last", "last_bias")}

    def on(self, device: torch.device | str) -> "ResidualMLP":
        """Return a copy on a device, whose weights take no gradients."""
        return ResidualMLP.of({name: weight.detach().clone().to(device) for name, weight in self.weights.items()})

    def turned(self, axes: Tensor | None) -> "ResidualMLP":
        """Return the network of vectors v that does what this one does of v @ axes, an orthonormal (dim, dim)."""
        if axes is None:
            return self
        first, first_bias, last, last_bias = self.weights.values()
        return ResidualMLP.of(
            {"first": first @ axes.T, "first_bias": first_bias, "last": axes @ last, "last_bias": axes @ last_bias}
        )

    def __call__(self, vectors: Tensor, frozen: bool = False) -> Tensor:
        """Return (n, dim) for (n, dim); `frozen` lets gradients through to the vectors, but not to the weights."""
        first, first_bias, last, last_bias = (weight.detach() if frozen else weight for weight in self.weights.values())
        hidden = gelu(linear(vectors, first, first_bias))
        return vectors + linear(hidden, last, last_bias)


class FrozenMLP:
    """
    A network's values, the same on every machine and for a row the same in any company.

    Products are taken on a grid (`_exact.product`), and gelu is a quotient of polynomials, number by number: erf of two
    C libraries, or of two widths of vector instructions, differ in the last bit.

    Args:
        module: whose weights are taken as they are now.
    """

    def __init__(self, module: ResidualMLP) -> None:
        first, self.first_bias, last, self.last_bias = (
            weight.detach().cpu().numpy().astype(np.float64)
            for weight in (module.first, module.first_bias, module.last, module.last_bias)
        )
        self.first = parts(first.T, bits_for(first.shape[1]), axis=0)
        self.last = parts(last.T, bits_for(last.shape[1]), axis=0)

    def __call__(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (n, dim) for (n, dim), to about float32's precision."""
        found = np.empty_like(vectors)
        rows = max(BLOCK // max(self.first[0].shape), ROWS)
        for begin in range(0, len(vectors), rows):
            block = vectors[begin : begin + rows]
            hidden = product(block, self.first, times)
            hidden += self.first_bias
            carried = product(_gelu(hidden), self.last, times)
            carried += self.last_bias
            carried += block
            found[begin : begin + rows] = np.clip(carried, -LARGEST, LARGEST, out=carried)
        return found


def _gelu(values: Float64) -> Float64:
    """Return x (1 + erf(x / √2)) / 2, to 1e-8 of x."""
    at = np.clip(values * ROOT_HALF, -FARTHEST, FARTHEST)
    squared = at * at
    above, below = _polynomial(squared, ABOVE), _polynomial(squared, BELOW)
    above *= at
    above /= below
    above += 1.0
    above *= values
    above *= 0.5
    return above


def _polynomial(values: Float64, factors: tuple[float, ...]) -> Float64:
    total = values * factors[-1]
    for factor in reversed(factors[1:-1]):
        total += factor
        total *= values
    total += factors[0]
    return total
