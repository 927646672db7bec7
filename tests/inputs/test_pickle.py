import collections
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from semid_dataset.errors import EmbeddingError
from semid_dataset.inputs import _file as rows
from semid_dataset.inputs._file import ForwardFile
from semid_dataset.inputs._rows import Rows
from semid_dataset.inputs.formats import _pickle_machine as array_pickle
from semid_dataset.inputs.formats._pickle_machine import read_array_pickle

DTYPES = ["<f4", ">f4", "<f8", ">f8", "<f2", ">f2", "<f16", "<i1", "<u1", "<i2", ">i4", "<i8", "<u8"]
PROTOCOLS = range(2, 6)
OLD = {b"numpy._core.multiarray": b"numpy.core.multiarray", b"numpy._core.numeric": b"numpy.core.numeric"}


def read(path: Path, dim: int) -> Rows:
    collected = Rows("81", dim)
    with ForwardFile(path) as file:
        read_array_pickle(file, collected)
    return collected


def check(path: Path, items: dict[Any, Any], dim: int) -> None:
    """What is read is what pickle.load reads: ids ascending, float32."""
    collected = read(path, dim)
    assert collected.first_bad == ""
    ids, matrix = collected.finish()
    wanted = sorted(items, key=int)
    assert np.asarray(ids).tolist() == [int(key) for key in wanted]
    np.testing.assert_array_equal(matrix, np.stack([items[key].ravel() for key in wanted]).astype(np.float32))


def as_numpy_1(raw: bytes) -> bytes:
    """Return the pickle (protocol 0 to 3) as numpy 1.26 writes it, which has other module names."""
    for new, old in OLD.items():
        raw = raw.replace(new, old)
    return raw


def dump(path: Path, items: Any, protocol: int) -> Path:
    path.write_bytes(pickle.dumps(items, protocol))
    return path


def matrix(items: int, dim: int, dtype: str = "<f4", seed: int = 0) -> NDArray[Any]:
    drawn = np.random.default_rng(seed).standard_normal((items, dim)) * 50
    return (np.abs(drawn) if np.dtype(dtype).kind == "u" else drawn).astype(dtype)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_and_order_loads_as_float32(dtype: str, protocol: int, tmp_path: Path) -> None:
    """Floats and integers of either byte order, in every protocol."""
    items = dict(zip(range(20_000_000_000, 20_000_000_700), matrix(700, 5, dtype, protocol), strict=True))
    check(dump(tmp_path / "a.pkl", items, protocol), items, 5)


@pytest.mark.parametrize("protocol", [2, 3])
def test_arrays_of_numpy_1_load(protocol: int, tmp_path: Path) -> None:
    """The competition's files were written by numpy 1.26."""
    items = dict(zip(range(5, 605), matrix(600, 4), strict=True))
    path = tmp_path / "a.pkl"
    path.write_bytes(as_numpy_1(pickle.dumps(items, protocol)))
    check(path, items, 4)


def test_arrays_of_numpy_1_load_in_protocol_4(tmp_path: Path) -> None:
    """There the module's name carries its length."""
    items = dict(zip(range(5, 605), matrix(600, 4), strict=True))
    raw = pickle.dumps(items, 4).replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
    path = tmp_path / "a.pkl"
    path.write_bytes(raw)  # its frames are one byte too long now, and say nothing that matters
    check(path, items, 4)


KEYS: dict[str, Callable[[int], Any]] = {
    "creative ids": lambda k: 20_000_000_000 + 7 * k,
    "from one": lambda k: k + 1,  # one byte, two bytes, four
    "negative": lambda k: -k,
    "long": lambda k: 2**62 + k,
    "decimal": lambda k: str(20_000_000_000 + k),
    "short decimal": str,
    "numpy": lambda k: np.int64(20_000_000_000 + k),
    "numpy 32": lambda k: np.uint32(3_000_000_000 + k),
    "big-endian": lambda k: np.array([k], ">i8")[0],
    "mixed": lambda k: [k, str(k), np.int64(k)][k % 3],
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", KEYS)
def test_every_spelling_of_an_id_is_an_int(kind: str, protocol: int, tmp_path: Path) -> None:
    """Ints of any size, numpy's, and decimals."""
    items = {KEYS[kind](k): row for k, row in enumerate(matrix(1_500, 3))}
    check(dump(tmp_path / "a.pkl", items, protocol), items, 3)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_names_that_are_no_numbers_make_all_ids_strings(protocol: int, tmp_path: Path) -> None:
    """One id that is no canonical integer, and all are strings; int64 is the limit."""
    items = {5: [1.0], "07": [2.0], "x": [3.0], 2**63: [4.0], "": [5.0], "\u4e2d": [6.0]}
    ids, found = read(
        dump(tmp_path / "a.pkl", {key: np.array(row) for key, row in items.items()}, protocol), 1
    ).finish()
    assert ids == ["", "07", "5", str(2**63), "x", "\u4e2d"]
    assert found[:, 0].tolist() == [5, 2, 1, 4, 3, 6]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("container", [collections.OrderedDict, collections.defaultdict])
def test_other_dicts_are_dicts(container: Any, protocol: int, tmp_path: Path) -> None:
    """OrderedDict and defaultdict, with and without a factory."""
    items = dict(enumerate(matrix(300, 4)))
    boxes = [container(items)] if container is collections.OrderedDict else []
    for factory in (None, dict, list) if not boxes else ():
        boxes.append(collections.defaultdict(factory, items))
    for box in boxes:
        check(dump(tmp_path / "a.pkl", box, protocol), items, 4)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_in_any_layout(protocol: int, tmp_path: Path) -> None:
    """Views, columns, Fortran order, row and column vectors, read-only, memory maps: the numbers count."""
    numbers = matrix(40, 6)
    mapped = np.memmap(tmp_path / "map", np.float32, "w+", shape=(40, 6))
    mapped[:] = numbers
    frozen = numbers.copy()
    frozen.flags.writeable = False
    items: dict[int, Any] = {
        0: numbers[0],
        1: numbers[:, 1][:6],
        2: np.asfortranarray(numbers)[2],
        3: numbers[3:4],
        4: np.asfortranarray(numbers[4:5]),
        5: numbers[5][:, None],
        6: numbers[6][::-1],
        7: frozen[7],
        8: mapped[8],
        9: np.ones((1, 1, 6), np.float32),
    }
    items |= {100 + k: mapped[k] for k in range(40)}
    items |= {200 + k: numbers[:, k % 6][:6] + k for k in range(200)}
    check(dump(tmp_path / "a.pkl", items, protocol), items, 6)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_one_array_under_many_ids(protocol: int, tmp_path: Path) -> None:
    """Shared arrays are written once and recalled, also from the middle of a run that was copied at once."""
    numbers = matrix(3_000, 4)
    shared = [numbers[k] for k in range(3_000)]  # one object each, to be found twice
    items = dict(enumerate(shared))
    items |= {10_000 + k: shared[(7 * k) % 3_000] for k in range(500)}
    check(dump(tmp_path / "a.pkl", items, protocol), items, 4)


def test_a_pickle_without_an_entry(tmp_path: Path) -> None:
    """`pickletools.optimize` takes out what nobody recalls."""
    items = dict(zip(range(20_000_000_000, 20_000_002_500), matrix(2_500, 4), strict=True))
    path = tmp_path / "a.pkl"
    for protocol in PROTOCOLS:
        path.write_bytes(pickletools.optimize(pickle.dumps(items, protocol)))
        check(path, items, 4)


def test_large_arrays_cross_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An item may be larger than what is read at once, and end anywhere in it."""
    for chunk in (7, 1_000, 4_097):
        monkeypatch.setattr(rows, "CHUNK", chunk)
        items = dict(zip(range(20_000_000_000, 20_000_000_060), matrix(60, 300), strict=True))
        for protocol in PROTOCOLS:
            check(dump(tmp_path / "a.pkl", items, protocol), items, 300)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), protocol=st.sampled_from(PROTOCOLS))
def test_good_and_bad_values_in_any_order(data: st.DataObject, protocol: int, tmp_path: Path) -> None:
    """Every array of the right kind is read, everything else is counted, wherever it stands among runs."""
    good = {"row", "row64"}
    kinds = data.draw(st.lists(st.sampled_from([*["row"] * 12, "row64", "none", "list", "short", "nan", "text"])))
    kinds = [kind for kind in kinds for _ in range(data.draw(st.sampled_from([1, 1, 70])))]
    numbers = matrix(len(kinds) + 1, 3)
    items: dict[int, Any] = {}
    for k, kind in enumerate(kinds):
        key = 20_000_000_000 + k if data.draw(st.booleans()) else k
        items[key] = {
            "row": numbers[k],
            "row64": numbers[k].astype(np.float64),
            "none": None,
            "list": numbers[k].tolist(),
            "short": numbers[k][:2],
            "nan": np.array([1, np.nan, 2], np.float32),
            "text": "abc",
        }[kind]
    collected = read(dump(tmp_path / "a.pkl", items, protocol), 3)
    ids, found = collected.finish()
    wanted = sorted(key for key, kind in zip(items, kinds, strict=True) if kind in good)
    assert np.asarray(ids).tolist() == wanted
    assert collected.bad == len(items) - len(wanted)
    for row, key in enumerate(wanted):
        np.testing.assert_array_equal(found[row], items[key].astype(np.float32))


BAD = {
    "None": (None, "None instead of an array"),
    "a list of floats": ([1.0, 2.0, 3.0], "a list instead of an array"),
    "a float": (1.5, "a float instead of an array"),
    "a text": ("1 2 3", "a text instead of an array"),
    "a tuple": ((1.0, 2.0), "a tuple instead of an array"),
    "a dict": ({"emb": [1.0]}, "a dict instead of an array"),
    "too short": (np.ones(2, np.float32), r"an array of shape \(2,\) where 3 numbers are wanted"),
    "empty": (np.ones(0, np.float32), r"an array of shape \(0,\)"),
    "a matrix": (np.ones((3, 3), np.float32), r"an array of shape \(3, 3\)"),
    "a number": (np.array(1.0, np.float32), r"an array of shape \(\)"),
    "NaN": (np.array([1, np.nan, 1], np.float32), "NaN or infinite"),
    "infinite": (np.array([1, np.inf, 1], np.float32), "NaN or infinite"),
    "too large": (np.array([1, 1e300, 1], np.float64), "NaN or infinite"),
    "truth values": (np.ones(3, bool), "an array of type 'b1'"),
    "complex": (np.ones(3, np.complex64), "an array of type 'c8'"),
    "texts": (np.array(["a", "b", "c"]), "an array of type 'U1'"),
    "dates": (np.zeros(3, "M8[s]"), "an array of type"),
    "a structure": (np.zeros(3, [("a", "f4")]), "an array of type"),
    "a numpy number": (np.float32(1), "a numpy scalar instead of an array"),
    "bytes": (b"abcd" * 3, "bytes instead of an array"),
    "a set": ({1, 2}, "a set instead of an array"),
    "true": (True, "instead of an array"),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", BAD)
def test_a_value_that_is_no_row_is_counted_and_named(kind: str, protocol: int, tmp_path: Path) -> None:
    """The message says which item, and what was found."""
    value, message = BAD[kind]
    items = {1: np.ones(3, np.float32), 77: value, 2: np.ones(3, np.float32)}
    if kind == "a set":
        protocol = max(4, protocol)  # before, a set is a call, and refused
    collected = read(dump(tmp_path / "a.pkl", items, protocol), 3)
    assert np.asarray(collected.finish()[0]).tolist() == [1, 2]
    assert collected.bad == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(collected.first_bad)
    assert collected.first_bad.startswith("a.pkl, item 77: ")


@pytest.mark.parametrize("key", [None, 1.5, True, (1, 2), b"5", "x" * 2_000, 10**80])
def test_ids_that_are_none(key: Any, tmp_path: Path) -> None:
    """Only ints and short texts name items."""
    row = np.ones(3, np.float32)
    for protocol in PROTOCOLS:
        collected = read(dump(tmp_path / "a.pkl", {2: row, key: row}, protocol), 3)
        ids, _ = collected.finish()
        assert (len(ids), collected.bad) == (1, 1)
        assert "as an id" in collected.first_bad


@pytest.mark.parametrize("value", [[1, 2], (1, {}), None, 7, "text", np.ones(3, np.float32), {"a"}, b"x"])
def test_what_is_no_dict_is_an_error(value: Any, tmp_path: Path) -> None:
    """It says what the file holds instead."""
    for protocol in (4, 5):
        with pytest.raises(EmbeddingError, match="not a dict of arrays"):
            read(dump(tmp_path / "a.pkl", value, protocol), 3)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_cut_is_an_error(protocol: int, tmp_path: Path) -> None:
    """A file that was copied half says so, and never passes for a shorter one."""
    raw = pickle.dumps(dict(enumerate(matrix(70, 2))), protocol)
    path = tmp_path / "a.pkl"
    for size in range(0, len(raw), 37):
        path.write_bytes(raw[:size])
        with pytest.raises(EmbeddingError, match=r"a.pkl"):
            read(path, 2)


def test_an_empty_dict_holds_nothing(tmp_path: Path) -> None:
    """No rows and no error; whoever asked decides."""
    for protocol in PROTOCOLS:
        assert len(read(dump(tmp_path / "a.pkl", {}, protocol), 3).finish()[0]) == 0


def test_most_items_are_copied_in_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast way is taken: a few items in a hundred go through the machine, protocols 3 to 5 alike."""
    items = dict(zip(range(20_000_000_000, 20_000_020_000), matrix(20_000, 32), strict=True))
    singles = 0

    def count(self: Rows, key: Any, vector: Any, where: str) -> None:
        nonlocal singles
        singles += 1
        one(self, key, vector, where)

    one = Rows.add_one
    monkeypatch.setattr(Rows, "add_one", count)
    for protocol in (3, 4, 5):
        singles = 0
        check(dump(tmp_path / "a.pkl", items, protocol), items, 32)
        assert singles < 600, protocol


def test_the_entry_forgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was stored long ago and is no name or type is forgotten, and recalling it is an error, not a wrong row."""
    monkeypatch.setattr(array_pickle, "PINNED", 64)
    monkeypatch.setattr(array_pickle, "RECENT", 64)
    numbers = list(matrix(400, 4))
    items = dict(enumerate(numbers))
    check(dump(tmp_path / "a.pkl", items, 2), items, 4)
    with pytest.raises(EmbeddingError, match="too far back"):
        read(dump(tmp_path / "a.pkl", items | {9_999: numbers[100]}, 2), 4)


def test_text_pickles_are_named(tmp_path: Path) -> None:
    """Protocol 0 is that of Python 2's texts: which it is, and what to do."""
    with pytest.raises(EmbeddingError, match=r"of protocol 0 or 1, .*\. Load it and write it again"):
        read(dump(tmp_path / "a.pkl", {1: np.ones(3)}, 0), 3)


def test_runs_are_forgotten_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where runs are short there are many of them; the memory that they take is bounded."""
    monkeypatch.setattr(array_pickle, "MAX_RUNS", 4)
    monkeypatch.setattr(array_pickle, "LONGEST_RUN", 64)
    numbers = list(matrix(3_000, 4))
    items = dict(zip(range(20_000_000_000, 20_000_003_000), numbers, strict=True))
    check(dump(tmp_path / "a.pkl", items | {1: numbers[-30]}, 4), items | {1: numbers[-30]}, 4)
    with pytest.raises(EmbeddingError, match="too far back"):
        read(dump(tmp_path / "a.pkl", items | {1: numbers[30]}, 4), 4)


def test_arrays_outside_of_the_file_are_an_error(tmp_path: Path) -> None:
    """A pickle with out-of-band buffers is only half of the data."""
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({1: np.ones(3, np.float32)}, 5, buffer_callback=lambda buffer: None))
    with pytest.raises(EmbeddingError, match="outside of the file"):
        read(path, 3)
