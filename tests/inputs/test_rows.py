import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semid_dataset.errors import EmbeddingError
from semid_dataset.inputs._file import ForwardFile
from semid_dataset.inputs._items import canonical_int
from semid_dataset.inputs._rows import Rows, usable


@given(st.one_of(st.integers().map(str), st.text(max_size=22), st.from_regex(r"[-+0]?[0-9]{1,20}", fullmatch=True)))
def test_canonical_integers_are_those_that_come_back(text: str) -> None:
    """An id is an integer only if its decimal is the id, and an int64 holds it."""
    number = canonical_int(text)
    try:
        wanted: int | None = int(text)
    except ValueError:
        wanted = None
    if wanted is not None and (str(wanted) != text or not -(2**63) <= wanted < 2**63):
        wanted = None
    assert number == wanted


ROW = st.tuples(
    st.one_of(st.integers(-3, 40), st.sampled_from(["07", "x", "5", ""])),
    st.sampled_from([1.0, 2.5, -1e11, 1e30, 1e39, float("nan"), float("inf")]),
    st.sampled_from(["one", "many", "named"]),
)


@settings(deadline=None)
@given(st.lists(ROW, max_size=60))
def test_rows_equal_a_dict(added: list[tuple[int | str, float, str]]) -> None:
    """However rows are added, what comes out is a dict of the finite ones in which the first of an id stays."""
    rows, wanted, bad = Rows("81", 2), {}, 0
    for key, number, way in added:
        vector = np.array([number, 1.0])
        if way == "one":
            rows.add_one(key, vector, "here")
        elif way == "many" and isinstance(key, int):
            rows.add(np.array([key]), vector[None], "here")
        else:
            rows.add_named([key], vector[None], ["here"])
        if not abs(number) <= 1e19 or str(key) in wanted:
            bad += 1
        else:
            wanted[str(key)] = number
    ids, matrix = rows.finish()
    numbers = all(canonical_int(key) is not None for key in wanted)
    order = sorted(wanted, key=int) if numbers else sorted(wanted)
    assert [str(key) for key in (ids if isinstance(ids, list) else ids.tolist())] == order
    assert matrix[:, 0].tolist() == [np.float32(wanted[key]) for key in order]
    assert matrix.dtype == np.float32
    assert rows.bad == bad
    assert bool(rows.first_bad) == bool(bad)


def test_a_large_matrix_is_sorted_in_place() -> None:
    """A hundred thousand rows in random order come out ascending, each with its own numbers."""
    draw = np.random.default_rng(0)
    keys = draw.permutation(100_000)
    rows = Rows("81", 40)
    for some in np.array_split(keys, 7):
        rows.add(some, np.repeat(some[:, None], 40, axis=1).astype(np.float32), "here")
    ids, matrix = rows.finish()
    np.testing.assert_array_equal(ids, np.arange(100_000))
    np.testing.assert_array_equal(matrix, np.repeat(np.arange(100_000, dtype=np.float32)[:, None], 40, axis=1))
    assert matrix.flags.c_contiguous


def test_a_file_is_hashed_while_it_is_read(tmp_path: Path) -> None:
    """The digest is that of the file, whether it was read to the end or not; any place can be looked at meanwhile."""
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 40_000)
    wanted = hashlib.sha256(path.read_bytes()).hexdigest()
    calls: list[int] = []
    with ForwardFile(path, calls.append) as file:
        first = file.read()
        assert first == path.read_bytes()[: len(first)]
        assert file.at(1_000_000, 3) == path.read_bytes()[1_000_000:1_000_003]
        assert file.finish() == wanted
        assert file.read() == b""
    assert len(calls) > 2
    with ForwardFile(path) as file:
        assert file.finish() == wanted


def test_a_file_that_is_cut_meanwhile_is_an_error(tmp_path: Path) -> None:
    """It is said, and never a crash: a mapped file would kill the process here."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    with ForwardFile(path) as file:
        path.write_bytes(b"x" * 10)
        with pytest.raises(EmbeddingError, match="became shorter"):
            file.at(50, 10)
        with pytest.raises(EmbeddingError, match="was changed while it was read"):
            file.finish()


def test_numbers_whose_squares_overflow_are_bad() -> None:
    """They would be infinite errors later; float32 holds them, so `isfinite` does not see them."""
    matrix = np.array([[1e19, -1e19], [2e19, 0], [0, -3e38], [np.nan, 0], [0, np.inf], [0, 0]], np.float32)
    assert usable(matrix).tolist() == [True, False, False, False, False, True]
    rows = Rows("81", 2)
    rows.add(np.arange(6), matrix, "here")
    assert (rows.bad, len(rows.finish()[0])) == (4, 2)
