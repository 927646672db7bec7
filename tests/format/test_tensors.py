"""The file: what is written is read, what was damaged is refused, and every key is found."""

import contextlib
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from semid_dataset.errors import CorruptTableError, TableError, TableVersionError
from semid_dataset.format import tensors as container
from semid_dataset.format.tensors import IntIndex, StringIndex, build_index, open_index, parse, serialize

UNHURRIED = settings(deadline=None)  # a busy machine is no failure
INT64 = st.integers(-(2**63), 2**63 - 1)
DTYPES = st.sampled_from([*container.DTYPES.values()])
ARRAYS = DTYPES.flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
)
NAMES = st.text(min_size=1, max_size=8).filter(lambda name: name not in {"checksum", "__metadata__"})


def file_of(arrays: dict[str, Any], info: dict[str, Any] | None = None) -> bytes:
    return b"".join(serialize(arrays, info or {}))


def sealed(data: bytes) -> bytes:
    """The same bytes with a checksum that is right for them."""
    return data[:-4] + zlib.crc32(data[:-4]).to_bytes(4, "little")


def with_header(data: bytes, change: Any) -> bytes:
    """The same tensors behind a header that `change` has edited, the checksum right."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header = change(header) or header
    text = json.dumps(header).encode()
    return sealed(len(text).to_bytes(8, "little") + text + data[8 + length :])


SMALL = file_of({"codes": np.arange(8, dtype=np.uint8).reshape(2, 4), "keys": np.array([5, 9])}, {"why": "测试"})


@UNHURRIED
@given(arrays=st.dictionaries(NAMES, ARRAYS, max_size=4), text=st.text(max_size=20))
def test_what_is_written_is_read(arrays: dict[str, Any], text: str) -> None:
    """Every dtype, shape and name comes back, read-only, and so does what the writer said."""
    found = parse(file_of(arrays, {"text": text}), "a.safetensors")
    assert found.info == {"text": text}
    assert found.format_version == container.FORMAT_VERSION
    assert found.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found.arrays[name].dtype == array.dtype
        assert found.arrays[name].shape == array.shape
        assert found.arrays[name].tobytes() == array.tobytes()
        assert not found.arrays[name].flags.writeable


@UNHURRIED
@given(arrays=st.dictionaries(NAMES, ARRAYS, max_size=4))
def test_every_tensor_is_aligned(arrays: dict[str, Any]) -> None:
    """Tensors lie where their dtype may be read directly, and the first at a multiple of 64 bytes."""
    data = file_of(arrays)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert (8 + length) % 64 == 0
    for name, array in arrays.items():
        assert header[name]["data_offsets"][0] % array.dtype.itemsize == 0


def test_the_safetensors_library_opens_our_files(tmp_path: Path) -> None:
    """Any tool of the field reads a table; the metadata is there too."""
    numpy_face = pytest.importorskip("safetensors.numpy")
    from safetensors import safe_open

    arrays, _ = build_index(["a", "bc", "商品"])
    arrays["codes"] = np.arange(12, dtype=np.uint16).reshape(3, 4)
    arrays["quantizer.codebook"] = np.ones((4, 2), np.float32)
    path = tmp_path / "table.safetensors"
    path.write_bytes(file_of(arrays, {"lineage": "x"}))
    loaded = numpy_face.load_file(path)
    loaded.pop("checksum")
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array)
    with safe_open(path, "numpy") as file:
        assert json.loads(file.metadata()["info"]) == {"lineage": "x"}


def test_nothing_is_copied_on_the_way() -> None:
    """Contiguous arrays are written from where they are, and read where they lie."""
    keys = np.arange(100)
    assert any(np.shares_memory(np.frombuffer(buffer, np.uint8), keys) for buffer in serialize({"keys": keys}, {}))
    data = file_of({"keys": keys})
    assert np.shares_memory(parse(data, "x").arrays["keys"], np.frombuffer(data, np.uint8))


def test_bytes_that_lie_askew_are_read_all_the_same() -> None:
    """A table inside other bytes may be misaligned: then its arrays are copies."""
    shifted = memoryview(b"x" + SMALL)[1:]
    arrays = parse(shifted, "x").arrays
    assert arrays["keys"].tolist() == [5, 9]
    assert arrays["keys"].flags.aligned


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_any_flipped_byte_is_found(flip: int) -> None:
    """Every byte counts: header, padding, tensors and the checksum itself."""
    for place in range(len(SMALL)):
        damaged = bytearray(SMALL)
        damaged[place] ^= flip
        with pytest.raises(CorruptTableError, match=r"t\.safetensors"):
            parse(damaged, "t.safetensors")


def test_a_file_cut_off_anywhere_or_grown_is_refused() -> None:
    """Size is part of what is checked."""
    for length in range(len(SMALL)):
        with pytest.raises(CorruptTableError):
            parse(SMALL[:length], "t")
    with pytest.raises(CorruptTableError):
        parse(SMALL + b"\0", "t")


@pytest.mark.parametrize("data", [b"PK\x03\x04" + bytes(100), b"{}" * 50, bytes(range(256)) * 20, b"\xff" * 64])
def test_a_foreign_file_is_named_as_one(data: bytes) -> None:
    """What never was a table is not called damaged, with and without the checksum's help."""
    with pytest.raises(CorruptTableError, match="no semantic-ID table"):
        parse(data, "t")
    with pytest.raises(CorruptTableError):
        parse(data, "t", verify=False)


@UNHURRIED
@given(data=st.binary(max_size=200))
def test_no_bytes_crash_the_reader(data: bytes) -> None:
    """Whatever the bytes, with a right checksum or none: a table or an error of ours."""
    for candidate in (data, sealed(data + bytes(4)), len(data).to_bytes(8, "little") + data):
        for verify in (True, False):
            with pytest.raises(TableError):
                parse(candidate, "t", verify=verify)


def test_another_safetensors_file_is_refused(tmp_path: Path) -> None:
    """A model's weights are no table."""
    numpy_face = pytest.importorskip("safetensors.numpy")
    with pytest.raises(CorruptTableError, match="no semantic-ID table"):
        parse(numpy_face.save({"w": np.ones(3)}), "w", verify=False)


def test_a_newer_version_is_an_error_of_its_own() -> None:
    """Nothing else in a newer file needs to make sense to us, except that the checksum is right."""

    def newer(header: dict[str, Any]) -> dict[str, Any]:
        metadata = {**header["__metadata__"], "format_version": "2"}
        metadata.pop("info")
        return {"__metadata__": metadata, "other": "thing"}

    with pytest.raises(TableVersionError, match="version 2"):
        parse(with_header(SMALL, newer), "t")


@pytest.mark.parametrize("version", ["0", "-1", "one", "01", "", None, 1.5])
def test_a_version_that_is_none_is_damage(version: object) -> None:
    """Only digits name a version."""
    with pytest.raises(CorruptTableError):
        parse(with_header(SMALL, lambda header: header["__metadata__"].update(format_version=version)), "t")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "I64", "shape": [2], "data_offsets": [0, 15]},
        {"dtype": "I64", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 16]},
        {"dtype": "I64", "shape": [-2], "data_offsets": [0, -16]},
        {"dtype": "I64", "shape": [2.0], "data_offsets": [0, 16]},
        {"dtype": "I64", "shape": [True, 2], "data_offsets": [0, 16]},
        {"dtype": "I64", "shape": [2], "data_offsets": [8, 24]},
        {"dtype": "I64", "shape": [2], "data_offsets": [0, 16, 32]},
        {"dtype": "I64", "shape": [1] * 9 + [2], "data_offsets": [0, 16]},
        {"dtype": "I64", "shape": 2, "data_offsets": [0, 16]},
        {"dtype": "F8_E4M3", "shape": [16], "data_offsets": [0, 16]},
        {"dtype": "I64", "shape": [3], "data_offsets": [0, 24]},
        {"dtype": ["I64"], "shape": [2], "data_offsets": [0, 16]},
        "keys",
        None,
        [],
    ],
)
def test_a_header_that_lies_is_refused(entry: object) -> None:
    """Overlaps, gaps, overflowing shapes and unknown words, each under a right checksum."""
    with pytest.raises(CorruptTableError):
        parse(with_header(SMALL, lambda header: header.update(keys=entry)), "t")


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.pop("checksum") and None,
        lambda header: header.pop("keys") and None,
        lambda header: header.pop("__metadata__") and None,
        lambda header: header.update(__metadata__=[]),
        lambda header: header["__metadata__"].update(format="pt"),
        lambda header: header["__metadata__"].update(info="[]"),
        lambda header: header["__metadata__"].update(info="{"),
        lambda header: header["__metadata__"].update(info=7),
        lambda header: header["__metadata__"].update(info="[" * 100_000),
        lambda header: header["checksum"].update(shape=[2, 2]),
        lambda header: header.update(zz={"dtype": "I64", "shape": [9], "data_offsets": [20, 92]}),
        lambda header: header.update(a={"dtype": "U8", "shape": [0, 1 << 70], "data_offsets": [0, 0]}),
        lambda header: [header],
    ],
)
def test_a_header_without_what_it_needs_is_refused(change: Any) -> None:
    """Metadata, info and the checksum as the last tensor are not optional."""
    with pytest.raises(CorruptTableError):
        parse(with_header(SMALL, change), "t")


@pytest.mark.parametrize("length", [0, 1, len(SMALL), container.MAX_HEADER + 1, 1 << 40, (1 << 64) - 1])
def test_an_absurd_header_length_allocates_nothing(length: int) -> None:
    """The length is compared with the file and a limit before anything is read."""
    with pytest.raises(CorruptTableError, match="claims a header"):
        parse(sealed(length.to_bytes(8, "little") + SMALL[8:]), "t")


def test_what_no_file_can_hold_is_refused_when_writing() -> None:
    """Names of the format, dtypes without a place, and an info beyond the reader's limit."""
    with pytest.raises(TableError, match="checksum"):
        serialize({"checksum": np.zeros(1)}, {})
    with pytest.raises(TableError, match="complex"):
        serialize({"x": np.zeros(1, complex)}, {})
    with pytest.raises(TableError, match="header"):
        serialize({}, {"text": "x" * container.MAX_HEADER})


# --- keys -------------------------------------------------------------------------------------

HOT = [0, -1, 1, 7, 2**31, 2**32, 2**53 + 1, -(2**63), 2**63 - 1, 20_000_000_027]


def clustered(seed: int) -> list[int]:
    """Two dense blocks and a few strays."""
    rng = np.random.default_rng(seed)
    return [*range(1000), *(20_000_000_000 + rng.choice(5000, 1500, replace=False)).tolist(), -5, 2**62]


SHAPES_OF_KEYS = {
    "empty": [],
    "one": [7],
    "two far apart": [-(2**63), 2**63 - 1],
    "dense": list(range(20_000_000_000, 20_000_003_000)),
    "sparse": np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 3000).tolist(),
    "powers": [sign * (1 << power) for power in range(63) for sign in (1, -1)],
    "one stray below": [0, *range(20_000_000_000, 20_000_003_000)],
    "strays on both sides": [-(2**60), *range(3000), 2**60],
    "clustered": clustered(1),
    "quadratic": [number * number for number in range(3000)],
}


@pytest.mark.parametrize("keys", SHAPES_OF_KEYS.values(), ids=SHAPES_OF_KEYS)
def test_every_key_is_found_however_they_are_spread(keys: list[int]) -> None:
    """Single, by array and by string; neighbours that are not there are not."""
    arrays, order = build_index(np.random.default_rng(1).permutation(np.array(keys, np.int64)))
    index = open_index(arrays, "t")
    assert isinstance(index, IntIndex)
    assert index.keys.tolist() == sorted(set(keys))
    assert sorted(order.tolist()) == list(range(len(keys)))
    assert arrays["key_starts"].nbytes <= len(keys) + 16
    assert [index.row_of(key) for key in index.keys.tolist()] == list(range(len(keys)))
    assert index.rows_of(index.keys).tolist() == list(range(len(keys)))
    assert index.rows_of([str(key) for key in index.items()]).tolist() == list(range(len(keys)))
    held = set(keys)
    absent = [near for key in [*keys[:500], *HOT] for near in (key - 1, key + 1, -key) if near not in held]
    assert {index.row_of(key) for key in absent} <= {-1}
    assert (index.rows_of(absent) == -1).all()


@UNHURRIED
@given(keys=st.lists(INT64, unique=True, max_size=80), asked=st.lists(INT64 | st.sampled_from(HOT), max_size=20))
def test_integer_keys_are_found_like_in_a_dict(keys: list[int], asked: list[int]) -> None:
    """Rows agree with a dict of the sorted keys, one at a time and all at once."""
    arrays, order = build_index(keys)
    index = open_index(parse(file_of(arrays), "t").arrays, "t")
    truth = {key: row for row, key in enumerate(sorted(keys))}
    assert [keys[place] for place in order.tolist()] == sorted(keys)
    wanted = [truth.get(key, -1) for key in keys + asked]
    assert [index.row_of(key) for key in keys + asked] == wanted
    assert index.rows_of(keys + asked).tolist() == wanted
    assert index.rows_of(np.array(keys + asked, np.int64)).tolist() == wanted
    assert index.rows_of([*map(str, keys + asked)]).tolist() == wanted


@UNHURRIED
@given(
    keys=st.lists(st.text(max_size=6), unique=True, min_size=1, max_size=50),
    asked=st.lists(st.text(max_size=6) | INT64, max_size=20),
)
def test_string_keys_are_found_like_in_a_dict(keys: list[str], asked: list[str | int]) -> None:
    """Unicode, NULs, the empty string and half surrogate pairs included."""
    keys = [*keys, "not a number"] if "not a number" not in keys else keys
    arrays, order = build_index(keys)
    index = open_index(parse(file_of(arrays), "t").arrays, "t")
    assert isinstance(index, StringIndex)
    truth = {key: row for row, key in enumerate(sorted(keys))}
    assert index.items() == sorted(keys) == [keys[place] for place in order.tolist()]
    wanted = [truth.get(str(key), -1) for key in keys + asked]
    assert [index.row_of(key) for key in keys + asked] == wanted
    assert index.rows_of(keys + asked).tolist() == wanted


def test_strings_of_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash only proposes: with all hashes equal every string is still found, and no other."""
    monkeypatch.setattr(container.zlib, "crc32", lambda data, start=0: 12345)
    keys = [f"item-{number}" for number in range(500)]
    arrays, _ = build_index(keys)
    index = open_index(arrays, "t")
    ordered = sorted(keys)
    assert [index.row_of(key) for key in ordered] == list(range(500))
    assert index.rows_of([*ordered, "item-500", "", "item-"]).tolist() == [*range(500), -1, -1, -1]


def test_decimal_strings_become_integers_only_if_all_are_canonical() -> None:
    """ "007" is another item than "7", so a table with it is one of strings."""
    assert "keys" in build_index(["7", "-3", "0", str(2**63 - 1)])[0]
    for odd in ("007", "+7", " 7", "7 ", "1_0", "-0", "７", "7.0", "", str(2**63), "9" * 5000):
        arrays, _ = build_index(["7", odd])
        index = open_index(arrays, "t")
        assert isinstance(index, StringIndex), odd
        assert index.row_of(7) == index.row_of("7") != index.row_of(odd) >= 0


def test_unusual_spellings_of_an_integer_are_unknown() -> None:
    """In a table of integers a string counts if it is exactly the key's decimal spelling."""
    index = open_index(build_index([7, 10])[0], "t")
    odd = ["007", "+7", " 7", "7\n", "1_0", "７", "7.0", "", "seven", str(2**63), str(-(2**63) - 1), "9" * 5000]
    assert {index.row_of(text) for text in odd} == {-1}
    assert index.rows_of([*odd, "7"]).tolist() == [-1] * len(odd) + [0]


ODD_ITEMS = [
    None,
    7.5,
    float("nan"),
    True,
    np.True_,
    (7,),
    [7],
    {7},
    b"\xff",
    np.float64(7.5),
    7 + 0j,
    np.array([7, 7]),
    object(),
]


@pytest.mark.parametrize("keys", [[1, 7], ["1", "7", "x"]], ids=["integers", "strings"])
def test_items_of_other_kinds_are_unknown_and_crash_nothing(keys: list[Any]) -> None:
    """What is missing, what is broken, what is a container."""
    index = open_index(build_index(keys)[0], "t")
    for item in ODD_ITEMS:
        assert index.row_of(item) == -1
    assert index.rows_of([*ODD_ITEMS, 7, "7"]).tolist() == [-1] * len(ODD_ITEMS) + [1, 1]


@pytest.mark.parametrize("keys", [[1, 7], ["1", "7", "x"]], ids=["integers", "strings"])
def test_arrays_of_any_kind_and_shape_are_asked(keys: list[Any]) -> None:
    """The answer has the shape of the question."""
    index = open_index(build_index(keys)[0], "t")
    for dtype in (np.int8, np.uint8, np.int32, np.uint64, np.int64, ">i4", object, "U5"):
        assert index.rows_of(np.array([[7, 2], [1, 7]]).astype(dtype)).tolist() == [[1, -1], [0, 1]], dtype
    for dtype in (np.float32, np.float64, "S1"):
        assert index.rows_of(np.array([7, 1]).astype(dtype)).tolist() == [1, 0], dtype
    for dtype in (bool, complex, "M8[s]"):
        assert index.rows_of(np.array([7, 1]).astype(dtype)).tolist() == [-1, -1], dtype
    assert index.rows_of(np.array([2**64 - 1, 7], np.uint64)).tolist() == [-1, 1]
    assert index.rows_of(np.array(7)).tolist() == 1
    assert index.rows_of([]).tolist() == index.rows_of(np.empty(0, np.int64)).tolist() == []
    assert index.rows_of(iter([7, "1"])).tolist() == [1, 0]
    with pytest.raises(TypeError, match="not one str"):
        index.rows_of("71")


def test_many_integers_are_found_in_one_pass() -> None:
    """Beyond a thousand the questions are sorted first; the answers come in the order of the questions."""
    keys = np.random.default_rng(0).choice(10_000, 5000, replace=False)
    index = open_index(build_index(keys)[0], "t")
    asked = np.random.default_rng(1).integers(-10, 10_010, 4000)
    rows = index.rows_of(asked)
    assert ((rows >= 0) == np.isin(asked, keys)).all()
    assert (index.keys[rows[rows >= 0]] == asked[rows >= 0]).all()


@pytest.mark.parametrize("items", [[7, 7], ["7", "7"], [7, "7"], ["a", "b", "a"], ["7", 7, "x"], np.array([3, 1, 3])])
def test_an_item_given_twice_is_named(items: Any) -> None:
    """Two IDs for one item cannot both be right."""
    with pytest.raises(TableError, match=r"Item .*(7|a|3).* is given twice"):
        build_index(items)


@pytest.mark.parametrize("item", [None, 7.5, float("nan"), True, b"\xff", (7,), np.float32(1 << 24), 2.0**53])
def test_an_item_must_be_a_whole_number_or_a_string(item: Any) -> None:
    """Nothing else has a spelling in `semantic_id_dict.json`; a float that stands for several integers has none."""
    with pytest.raises(TableError, match=r"row 1: .* is no item"):
        build_index([1, item])


@pytest.mark.parametrize("item", [7.0, np.float32(7), np.float64(7), b"7", np.str_("7"), np.int64(7), np.array(7)])
def test_an_item_that_is_exactly_a_number_is_that_number(item: Any) -> None:
    """7.0 is what a join with missing rows makes of 7."""
    index = open_index(build_index([1, item])[0], "t")
    assert index.items() == [1, 7]
    assert index.row_of(item) == 1
    assert index.rows_of([item, 7, "7"]).tolist() == [1, 1, 1]


def test_integers_beyond_64_bits_become_strings() -> None:
    """Such ids exist (hashes of 20 digits); they are kept exactly."""
    big = 2**64 + 1
    for items in ([1, big], ["1", str(big)], [1, str(big)]):
        index = open_index(build_index(items)[0], "t")
        assert index.row_of(big) == index.row_of(str(big)) >= 0
    index = open_index(build_index(np.array([2**64 - 1, 3], np.uint64))[0], "t")
    assert index.row_of(2**64 - 1) >= 0


@pytest.mark.parametrize("items", [[3, 1], ["b", "a"]])
@pytest.mark.parametrize("damage", ["missing", "dtype", "shape", "short"])
def test_an_index_with_parts_missing_is_refused(items: list[Any], damage: str) -> None:
    """Each of the arrays that a look-up reads must be there and fit the others."""
    whole, _ = build_index(items)
    for name in whole:
        arrays = dict(whole)
        if damage == "missing":
            del arrays[name]
        elif damage == "dtype":
            arrays[name] = arrays[name].astype(np.float32)
        elif damage == "shape":
            arrays[name] = arrays[name].reshape(1, -1)
        else:
            arrays[name] = arrays[name][:0]
        if name == "keys" and damage == "short":
            continue  # a table of no items
        with pytest.raises(CorruptTableError):
            open_index(arrays, "t")


NUMBERS, TEXTS = list(range(40)), [f"item-{number:02}" for number in range(40)]
LIES: dict[str, tuple[list[Any], str, Any]] = {
    "starts beyond": (NUMBERS, "key_starts", lambda array: array + 1000),
    "starts back": (NUMBERS, "key_starts", lambda array: array[::-1]),
    "starts beyond, texts": (TEXTS, "key_starts", lambda array: array + 1000),
    "rows beyond": (TEXTS, "key_rows", lambda array: array + 1),
    "offsets back": (TEXTS, "key_offsets", lambda array: np.concatenate([array[:1], array[-2:0:-1], array[-1:]])),
    "offsets later": (TEXTS, "key_offsets", lambda array: np.maximum(array, 1)),
    "offsets below zero": (TEXTS, "key_offsets", lambda array: np.concatenate([[-1], array[1:]]).astype(np.int64)),
}


@pytest.mark.parametrize(("items", "name", "lie"), LIES.values(), ids=LIES)
def test_an_index_that_leads_astray_is_refused(items: list[Any], name: str, lie: Any) -> None:
    """A right checksum proves who wrote it, not that it fits: no look-up may end in an IndexError."""
    whole, _ = build_index(items)
    open_index(whole, "t")
    lying = whole | {name: np.ascontiguousarray(lie(whole[name]))}
    with pytest.raises(CorruptTableError, match=f"'t' has .*{name}"):
        open_index(lying, "t")


@UNHURRIED
@given(
    items=st.sampled_from([[], [7], [*range(0, 300, 3)], ["a"], ["a", "bc", "é", *map(str, range(60))]]),
    data=st.data(),
)
def test_whatever_an_index_says_a_look_up_answers_or_calls_it_corrupt(items: list[Any], data: st.DataObject) -> None:
    """Any numbers in any of its arrays, of the right shapes: known, unknown, or an error of ours."""
    arrays = {name: array.copy() for name, array in build_index(items)[0].items()}
    for name in data.draw(st.sets(st.sampled_from(sorted(arrays)), min_size=1)):
        array = arrays[name]
        least, most = int(np.iinfo(array.dtype).min), int(np.iinfo(array.dtype).max)
        numbers = st.integers(0, 70) | st.sampled_from([least, most]) | st.integers(least, most)
        for place in data.draw(st.sets(st.integers(0, max(len(array) - 1, 0)), max_size=4)):
            if len(array):
                array[place] = data.draw(numbers)
    asked: list[Any] = [*items, 0, 7, -1, 2**63, "a", "", "zz", b"a"]
    with contextlib.suppress(CorruptTableError):
        index = open_index(parse(file_of(arrays), "t").arrays, "t")
        rows = [index.row_of(item) for item in asked]
        assert all(-1 <= row < len(index) for row in [*rows, *index.rows_of(asked).tolist()])
        assert len(index.items()) == len(index)


def test_a_key_that_is_no_text_is_named() -> None:
    """Its bytes are compared as they are, so only who wants the keys back learns of it."""
    arrays, _ = build_index(["aa", "bb"])
    index = open_index(arrays | {"key_bytes": np.frombuffer(b"aa\xffb", np.uint8)}, "t")
    assert index.row_of("aa") == 0
    with pytest.raises(CorruptTableError, match="'t' holds a key between rows 0 and 2 that is no UTF-8"):
        index.items()


def test_buckets_counted_in_pieces_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever keys a piece ends at, and whatever lies beside the core."""
    random = np.random.default_rng(0)
    keys = np.unique(np.concatenate([random.integers(10**9, 2 * 10**9, 3000), [-(2**63), -5, 2**63 - 1]]))
    whole, _ = build_index(keys)
    monkeypatch.setattr(container, "COUNTED", 17)
    pieces, _ = build_index(keys)
    assert all(np.array_equal(whole[name], pieces[name]) for name in whole)
    found = open_index(pieces, "here").rows_of(keys)
    assert found.tolist() == list(range(len(keys)))
