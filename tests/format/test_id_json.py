"""`semantic_id_dict.json`: what is written is read, whoever wrote it, and lies are named."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from semid_dataset.errors import SemanticIdFileError
from semid_dataset.format import id_json
from semid_dataset.format.id_json import json_chunks, parse_id_json
from semid_dataset.format.tensors import build_index, open_index

UNHURRIED = settings(deadline=None)  # a busy machine is no failure
INT64 = st.integers(-(2**63), 2**63 - 1)


@st.composite
def tables(draw: st.DrawFn) -> tuple[Any, Any]:
    """Keys, all integers or all strings, and their codes."""
    keys = draw(st.lists(INT64, unique=True, min_size=1, max_size=20) | st.lists(st.text(), unique=True, min_size=1))
    dtype = draw(st.sampled_from([np.uint8, np.uint16]))
    codes = draw(hnp.arrays(dtype, (len(keys), draw(st.integers(1, 5)))))
    return np.array(keys, np.int64) if isinstance(keys[0], int) else keys, codes


def text_of(keys: Any, codes: Any) -> bytes:
    return b"".join(json_chunks(keys, codes))


@UNHURRIED
@given(table=tables())
def test_what_is_written_is_what_json_dumps_writes(table: tuple[Any, Any]) -> None:
    """The same text, character for character, as of a dict of lists."""
    keys, codes = table
    plain = {str(key): row for key, row in zip(keys, codes.tolist(), strict=True)}
    assert text_of(keys, codes) == json.dumps(plain, separators=(",", ":")).encode()


@UNHURRIED
@given(
    table=tables(),
    layout=st.sampled_from(
        [{}, {"indent": 2}, {"separators": (",", ":")}, {"separators": (" , ", " :\t")}, {"ensure_ascii": False}]
    ),
)
def test_what_is_written_is_read(table: tuple[Any, Any], layout: dict[str, Any]) -> None:
    """In every layout that `json.dump` knows; half surrogate pairs have no UTF-8 and stay out of the last."""
    keys, codes = table
    plain = {str(key): row for key, row in zip(keys, codes.tolist(), strict=True)}
    data = json.dumps(plain, **layout).encode("utf-8", "replace")
    if b"?" in data and not layout.get("ensure_ascii", True):
        return
    found, read = parse_id_json(data, "x.json")
    assert list(map(str, list(found))) == list(plain)
    assert read.tolist() == codes.tolist()
    assert read.dtype == (np.uint8 if codes.max() < 256 else np.uint16)


@pytest.mark.parametrize("block", [1, 3, 7, 100])
def test_blocks_join_without_a_seam(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """However small the blocks of writing, the text stays the same."""
    keys = np.array([5, -7, 20_000_000_027, 0, 10**17, 9, 10, 99, 100])
    codes = np.arange(36, dtype=np.uint16).reshape(9, 4) * 100
    whole = text_of(keys, codes)
    monkeypatch.setattr(id_json, "BLOCK_ITEMS", block)
    assert text_of(keys, codes) == whole


def test_a_table_of_strings_is_streamed_from_its_index() -> None:
    """No list of all strings is made for it."""
    arrays, _ = build_index(["b", "a", "商品", 'say "hi"\n', "\ud800"])
    index = open_index(arrays, "t")
    codes = np.arange(10, dtype=np.uint8).reshape(5, 2)
    assert json.loads(text_of(index, codes)) == dict(zip(index.items(), codes.tolist(), strict=True))


def test_no_items_make_an_empty_object() -> None:
    """And an empty object makes no items."""
    assert text_of(np.empty(0, np.int64), np.empty((0, 4), np.uint8)) == b"{}"
    for data in (b"{}", b" {\n} ", b"\xef\xbb\xbf{}"):
        keys, codes = parse_id_json(data, "x")
        assert len(keys) == len(codes) == 0


def test_a_byte_order_mark_is_no_part_of_the_text() -> None:
    """Editors put one there."""
    keys, codes = parse_id_json(b'\xef\xbb\xbf{"7":[1,2]}', "x")
    assert (list(keys), codes.tolist()) == ([7], [[1, 2]])


def test_keys_are_integers_only_if_all_are_canonical() -> None:
    """ "007" and "7" are two items."""
    assert isinstance(parse_id_json(b'{"7":[1],"-8":[2],"9223372036854775807":[3]}', "x")[0], np.ndarray)
    for odd in ("007", " 7", "7.0", "", "a", "9223372036854775808", "1_0", "1 , 2"):
        keys, _ = parse_id_json(json.dumps({"7": [1], odd: [2]}).encode(), "x")
        assert keys == ["7", odd]


def test_whitespace_inside_a_token_is_not_skipped() -> None:
    """`1 2` is no number, and "1 2" is another key than "12"."""
    assert parse_id_json(b'{"1 2" : [ 3 , 4 ]}', "x")[0] == ["1 2"]
    for data in (b'{"1":[1 2]}', b'{"1":[1, 2 3]}', b'{"1":[1,2]} 3', b'{"1":[1,2]}\n}', b'{"1":[1,2]}{"2":[1,2]}'):
        with pytest.raises(SemanticIdFileError, match="no valid JSON"):
            parse_id_json(data, "x")


LIES = {
    "a list": (b"[[1,2]]", "an object"),
    "a number": (b"7", "found 7"),
    "a string": (b'"abc"', "found"),
    "null": (b"null", "found null"),
    "NaN": (b"NaN", "found NaN"),
    "a value that is no list": (b'{"7":[1,2],"8":5}', "'8'.*found 5"),
    "a value that is a string": (b'{"8":"1,2"}', "'8'.*1,2"),
    "a value that is an object": (b'{"8":{"0":1}}', "'8'.*an object"),
    "a value that is an empty object": (b'{"8":{}}', "'8'.*an object"),
    "a value that is null": (b'{"8":null}', "'8'.*null"),
    "an empty list": (b'{"8":[]}', r"'8'.*\[\]"),
    "a nested list": (b'{"8":[[1],2]}', r"'8'.*\[1\]"),
    "too few codes": (b'{"7":[1,2],"8":[1]}', "'8'.*1 codes.*2 at the first key '7'"),
    "too many codes": (b'{"7":[1,2],"8":[1,2,3]}', "'8'.*3 codes"),
    "a float": (b'{"7":[1,2],"8":[1,2.0]}', r"'8'.*2\.0"),
    "an exponent": (b'{"8":[1,1e2]}', "'8'.*100"),
    "beyond floats": (b'{"8":[1,1e999]}', "'8'.*inf"),
    "a negative": (b'{"8":[1,-2]}', "'8'.*-2"),
    "a bool": (b'{"8":[1,true]}', "'8'.*true"),
    "a null": (b'{"8":[1,null]}', "'8'.*null"),
    "a string in the list": (b'{"8":[1,"2"]}', "'8'.*\"2\""),
    "a NaN in the list": (b'{"8":[1,NaN]}', "'8'.*NaN"),
    "a code above 16 bits": (b'{"7":[1,2],"8":[1,65536]}', "'8'.*65536"),
    "a code of 100 digits": (b'{"8":[1,' + b"9" * 100 + b"]}", "'8'.*999"),
    "a code of 5000 digits": (b'{"8":[1,' + b"9" * 5000 + b"]}", "x.json"),
    "a key twice": (b'{"7":[1,2],"8":[3,4],"7":[5,6]}', "'7' twice"),
    "a string key twice": (b'{"a":[1,2],"a":[1,2]}', "'a' twice"),
    "zeros in front": (b'{"8":[01,2]}', "no valid JSON"),
    "a trailing comma": (b'{"8":[1,2],}', "no valid JSON"),
    "cut off": (b'{"7":[1,2],"8":[3', "no valid JSON"),
    "cut off between": (b'{"7":[1,2],', "no valid JSON"),
    "cut off before the end": (b'{"7":[1,2]', "no valid JSON"),
    "two commas": (b'{"7":[1,2],,"8":[1,2]}', "no valid JSON"),
    "a bare key": (b"{7:[1,2]}", "no valid JSON"),
    "empty": (b"", "no valid JSON"),
    "zeros": (b"\0" * 100, "no valid JSON"),
    "invalid UTF-8": (b'{"\xff":[1,2]}', "UTF-8.*byte 2"),
    "UTF-16": ('{"7":[1,2]}'.encode("utf-16"), "UTF-8"),
    "deep nesting": (b'{"7":' + b"[" * 200_000, "nested too deeply"),
}


@pytest.mark.parametrize(("data", "message"), LIES.values(), ids=LIES)
def test_a_file_that_lies_is_an_error_that_says_where(data: bytes, message: str) -> None:
    """File, key and value are named; a long value is shortened."""
    with pytest.raises(SemanticIdFileError, match=message) as caught:
        parse_id_json(data, "some/x.json")
    assert "'some/x.json'" in str(caught.value)
    assert len(str(caught.value)) < 500
    assert len(caught.value.args) == 1


@UNHURRIED
@given(data=st.binary(max_size=60) | st.text(alphabet='{}[]",:0123456789 -.ea\n', max_size=40).map(str.encode))
def test_whatever_the_bytes_the_answer_is_that_of_json(data: bytes) -> None:
    """Either what `json.loads` sees, or an error of ours."""
    try:
        keys, codes = parse_id_json(data, "x")
    except SemanticIdFileError:
        return
    plain = json.loads(data.removeprefix(b"\xef\xbb\xbf"))
    assert {str(key): row for key, row in zip(keys, codes.tolist(), strict=True)} == plain


@UNHURRIED
@given(place=st.integers(0, 80), byte=st.integers(0, 255))
def test_one_wrong_byte_is_never_read_as_something_else(place: int, byte: int) -> None:
    """What is read of any neighbour of a valid file is what `json.loads` reads of it, or an error of ours."""
    data = bytearray(text_of(np.array([20_000_000_027, 31, 7]), np.arange(200, 212, dtype=np.uint8).reshape(3, 4)))
    data[place % len(data)] = byte
    try:
        keys, codes = parse_id_json(bytes(data), "x.json")
    except SemanticIdFileError:
        return
    assert {str(key): row for key, row in zip(keys, codes.tolist(), strict=True)} == json.loads(data)
