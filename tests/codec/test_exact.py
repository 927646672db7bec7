"""Products and solutions that no order of adding up changes."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from semid_dataset.codec._exact import bits_for, lengths, parts, product, solve, sums_of_squares


def wild(rows: int, columns: int, seed: int) -> NDArray[np.float64]:
    """Numbers of very different sizes."""
    draw = np.random.default_rng(seed)
    return draw.standard_normal((rows, columns)) * 10.0 ** draw.integers(-9, 9, (rows, columns))


@settings(max_examples=60, deadline=None)
@given(terms=st.integers(1, 70), seed=st.integers(0, 999), count=st.integers(1, 3))
def test_a_product_is_the_same_in_any_order_of_its_terms(terms: int, seed: int, count: int) -> None:
    """Shuffled, cut in two, and row by row: bit for bit."""
    left, right = wild(9, terms, seed), wild(terms, 5, seed + 1)
    bits = bits_for(terms)
    whole = product(left, parts(right, bits, count, axis=0))
    order = np.random.default_rng(seed).permutation(terms)
    np.testing.assert_array_equal(product(left[:, order], parts(right[order], bits, count, axis=0)), whole)
    for row in range(9):
        np.testing.assert_array_equal(product(left[row : row + 1], parts(right, bits, count, axis=0))[0], whole[row])

    def in_halves(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
        half = terms // 2
        return np.asarray(one[:, half:] @ other[half:] + one[:, :half] @ other[:half])

    np.testing.assert_array_equal(product(left, parts(right, bits, count, axis=0), in_halves), whole)


@pytest.mark.parametrize("terms", [1, 2, 3, 32, 384, 1024, 4096])
def test_the_grid_leaves_room_for_every_sum(terms: int) -> None:
    """The largest numbers of all, with signs that agree: still no more than 53 bits, and not two bits less."""
    bits = bits_for(terms)
    assert terms * 2 ** (2 * bits) <= 2**53 < terms * 2 ** (2 * bits + 3)
    cut = parts(np.full((1, terms), 1.0 - 2.0**-53), bits)[0]
    assert cut.max() <= 1.0


def test_parts_add_up_to_what_they_were_cut_from() -> None:
    """Each on its grid; with enough of them a float32 is whole."""
    matrix = wild(20, 30, 0).astype(np.float32)
    cut = parts(matrix, 21, 5)
    np.testing.assert_array_equal(np.sum(cut[::-1], axis=0), matrix)
    exponents = np.frexp(np.abs(matrix).max(1))[1]
    for number, part in enumerate(cut, start=1):
        steps = part / np.ldexp(1.0, exponents - number * 21)[:, None]
        np.testing.assert_array_equal(steps, np.round(steps))
        assert np.abs(steps).max() <= 2**21


def test_three_parts_are_right_to_the_last_bits() -> None:
    """Against fractions, of float32 numbers of about one size."""
    draw = np.random.default_rng(0)
    left, right = draw.standard_normal((3, 40)).astype(np.float32), draw.standard_normal((40, 2)).astype(np.float32)
    found = product(left, parts(right, bits_for(40), 3, axis=0))
    for row in range(3):
        for column in range(2):
            terms = zip(left[row].tolist(), right[:, column].tolist(), strict=True)
            wanted = sum(Fraction(one) * Fraction(other) for one, other in terms)
            assert abs(Fraction(float(found[row, column])) - wanted) <= Fraction(2) ** -50


def test_zeros_and_the_smallest_numbers_are_no_trouble() -> None:
    """A row of zeros gives zeros, denormals do not vanish into nan."""
    left = np.array([[0, 0], [1e-45, 0], [3e38, -3e38]], np.float32)
    found = product(left, parts(np.eye(2), bits_for(2), axis=0))
    np.testing.assert_allclose(found, left, rtol=1e-6)
    assert not sums_of_squares(left[:1]).any()


def test_lengths_are_those_of_vectors() -> None:
    """As near as float32 comes."""
    matrix = np.random.default_rng(0).standard_normal((50, 300)).astype(np.float32)
    np.testing.assert_allclose(lengths(matrix), np.linalg.norm(matrix.astype(np.float64), axis=1), rtol=1e-6)


@pytest.mark.parametrize("size", [1, 7, 64, 65, 200])
def test_what_is_solved_solves(size: int) -> None:
    """As well as LAPACK does, over one panel and over several."""
    draw = np.random.default_rng(size)
    root = draw.standard_normal((size, 2 * size))
    matrix, right = root @ root.T / size + 1e-3 * np.eye(size), draw.standard_normal((size, 3))
    error = np.abs(matrix @ solve(matrix, right) - right).max()
    assert error <= 10 * np.abs(matrix @ np.linalg.solve(matrix, right) - right).max() + 1e-14
