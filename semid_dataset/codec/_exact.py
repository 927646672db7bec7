"""
Arithmetic that comes out alike on every machine.

How a library adds up a product depends on the processor, the number of threads, the shape of the matrices and a row's
place among the others; every order rounds in its own way. So the factors are rounded first, to a grid so coarse that
every sum of their products fits the 53 bits of a float64: adding them rounds nothing, and no order matters.
What is not a sum of products is done number by number, with + - * / and square root, which IEEE 754 fixes to the last
bit.

`product` rounds both factors once: as good as float32, for twice its time. Where a decision hangs on it, they are cut
into several parts, and the sum of the parts' products is right to the last bits of a float64.

NumPy only, as `fusion` is.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset._process import unforked

__all__ = ["Float64", "bits_for", "lengths", "parts", "product", "solve", "sums_of_squares"]

Float64 = NDArray[np.float64]
Multiply = Callable[[Float64, Float64], Float64]

MANTISSA = 53  # bits of a float64
PANEL = 64  # columns that are eliminated one by one
SOLVE_PARTS = 3  # 60 bits of every factor: no less than float64


def bits_for(terms: int) -> int:
    """Return how many bits two factors may have for a sum of so many of their products to need no rounding."""
    return (MANTISSA - max(terms - 1, 1).bit_length()) // 2


def parts(matrix: NDArray[Any], bits: int, count: int = 1, axis: int = 1) -> list[Float64]:
    """
    Cut numbers into parts of so many bits, the largest part first; what is left over is dropped.

    Args:
        matrix: (n, m), finite.
        bits: of every part, counted from the highest bit of the largest number along `axis`.
        count: parts.
        axis: 1 gives every row a grid of its own, 0 every column.

    Returns:
        `count` arrays (n, m) float64, each of whole multiples of its grid.
    """
    rest = np.asarray(matrix, np.float64)
    exponent = np.frexp(np.abs(matrix).max(axis=axis, keepdims=True, initial=0))[1]
    found = []
    for part in range(1, count + 1):
        # Next to 1.5 * 2^52 grid steps the float64s are one step apart: adding it rounds to the grid.
        magic = np.ldexp(1.5, exponent - part * bits + MANTISSA - 1)
        rounded = rest + magic
        rounded -= magic
        found.append(rounded)
        if part < count:
            rest = rest - rounded  # exact
    return found


def product(left: NDArray[Any], right: Sequence[Float64], multiply: Multiply = np.matmul) -> Float64:
    """
    Return left @ right, (n, m) float64, the same on every machine and for a row the same in any company.

    Args:
        left: (n, terms), finite.
        right: `parts` of a matrix (terms, m), of `bits_for(terms)` bits along axis 0.
        multiply: takes the product of two float64 matrices.

    With k parts each number keeps k times as many bits, from that of the largest of its row (or column) down.
    """
    count = len(right)
    mine = parts(left, bits_for(len(right[0])), count)
    total: Float64 | None = None
    for depth in reversed(range(count)):  # the smallest first; pairs below the last part's bits are dropped
        for at in range(depth + 1):
            with unforked():
                some = multiply(mine[at], right[depth - at])
            if total is None:
                total = some
            else:
                total += some
    assert total is not None
    return total


def sums_of_squares(matrix: NDArray[Any]) -> Float64:
    """Return the sum of the squares of every row, (n,), to about 2^-20 of it, the same on every machine."""
    rounded = parts(matrix, bits_for(matrix.shape[1]))[0]
    return np.asarray(np.einsum("ij,ij->i", rounded, rounded), np.float64)


def lengths(matrix: NDArray[Any]) -> Float64:
    """Return the length of every row, (n,)."""
    return np.sqrt(sums_of_squares(matrix))


def solve(matrix: NDArray[Any], right: NDArray[Any]) -> Float64:
    """
    Return x with matrix @ x = right, the same on every machine.

    Args:
        matrix: (n, n), symmetric and positive definite: elimination takes the diagonal as it comes.
        right: (n, m).

    Panels are eliminated number by number, the rest of the matrix by products of several parts. Time: that of LAPACK
    several times over.
    """
    size = len(matrix)
    system = np.concatenate([np.asarray(matrix, np.float64), np.asarray(right, np.float64)], axis=1)
    for begin in range(0, size, PANEL):
        end = min(begin + PANEL, size)
        for at in range(begin, end):
            factors = system[at + 1 :, at] / system[at, at]
            inside = end - at - 1  # rows of this panel that are below
            system[at + 1 : end, end:] -= np.multiply.outer(factors[:inside], system[at, end:])
            system[at + 1 :, at + 1 : end] -= np.multiply.outer(factors, system[at, at + 1 : end])
            system[at + 1 :, at] = factors
        if end < size:
            above = parts(system[begin:end, end:], bits_for(end - begin), SOLVE_PARTS, axis=0)
            system[end:, end:] -= product(system[end:, begin:end], above)
    solution = system[:, size:]
    for begin in reversed(range(0, size, PANEL)):
        end = min(begin + PANEL, size)
        for at in reversed(range(begin, end)):
            solution[at] /= system[at, at]
            solution[begin:at] -= np.multiply.outer(system[begin:at, at], solution[at])
        if begin:
            known = parts(solution[begin:end], bits_for(end - begin), SOLVE_PARTS, axis=0)
            solution[:begin] -= product(system[:begin, begin:end], known)
    return np.ascontiguousarray(solution)
