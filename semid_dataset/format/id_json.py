"""
`semantic_id_dict.json`: `{"20000000027":[1,2,3,4],...}`, written from arrays and read into arrays.

Writing is a stream of blocks whose digits numpy sets, so that 5 million items never become 5 million
lists. Reading looks at every value, and names the first key that lies; it is done once, for a file made by hand, whose
IDs are in the cache from then on.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from semid_dataset.errors import SemanticIdFileError
from semid_dataset.format.tensors import StringIndex
from semid_dataset.objects import INT64_MAX, INT64_MIN, parse_decimal

__all__ = ["JSON_FILE", "json_chunks", "parse_id_json"]

JSON_FILE = "semantic_id_dict.json"  # its name in a data directory

BLOCK_ITEMS = 1 << 16
MAX_CODE = 65_535
BOM = b"\xef\xbb\xbf"

Keys = NDArray[np.int64] | Sequence[str]
Codes = NDArray[np.uint8] | NDArray[np.uint16]


# --- writing ----------------------------------------------------------------------------------


def json_chunks(keys: Keys | StringIndex, codes: NDArray[Any]) -> Iterator[bytes]:
    """
    Yield the JSON text of a table in blocks, compact and in the order given.

    Args:
        keys: (n,) int64, or n strings, or the index of a table of strings; every one of them once.
        codes: (n, levels) uint8 or uint16.

    Memory: a few MB, whatever n.
    """
    opening = b"{"
    for start in range(0, len(keys), BLOCK_ITEMS):
        stop = start + BLOCK_ITEMS
        block = keys.items(start, stop) if isinstance(keys, StringIndex) else keys[start:stop]
        yield opening + _entries(block, codes[start:stop])
        opening = b","
    yield b"}" if opening == b"," else b"{}"


def _entries(keys: Keys, codes: NDArray[Any]) -> bytes:
    """Return `"key":[code,code],"key":[...]` for one block."""
    if isinstance(keys, np.ndarray):
        return _integer_entries(keys, codes)
    return json.dumps(dict(zip(keys, codes.tolist(), strict=True)), separators=(",", ":"))[1:-1].encode("ascii")


def _integer_entries(keys: NDArray[np.int64], codes: NDArray[Any]) -> bytes:
    """
    Set every character at a fixed place of a matrix of rows, zero where a number is shorter, and drop the zeros.

    5 million items take 1.5 s so; `json.dumps` of the same as a dict 5 s, and 3 s more to make the dict.
    """
    magnitude = np.where(keys < 0, -keys, keys).view(np.uint64)  # -(-2**63) wraps to itself: right as uint64
    groups = max(1, -(-len(str(int(magnitude.max()))) // 4))
    numbers = _code_texts(int(codes.max(initial=0)))
    levels, width = codes.shape[1], numbers.shape[1]
    start = 2 + 4 * groups  # of the codes' part, after quote, sign and digits of the key
    text = np.zeros((len(keys), start + 3 + levels * width + 1), np.uint8)
    text[:, 0] = ord('"')
    text[:, 1] = np.where(keys < 0, ord("-"), 0)
    rest = magnitude
    for group in reversed(range(groups)):
        rest, digits = np.divmod(rest, np.uint64(10_000))
        text[:, 2 + 4 * group : 6 + 4 * group] = FOUR_DIGITS[digits.astype(np.intp)]
    for place in range(4 * groups - 1):  # zeros in front of the number
        text[magnitude < np.uint64(10 ** (4 * groups - 1 - place)), 2 + place] = 0
    text[:, start : start + 3] = np.frombuffer(b'":[', np.uint8)
    text[:, start + 3 : -1] = numbers[codes.reshape(-1)].reshape(len(keys), levels * width)
    text[:, -2] = ord("]")  # in place of the comma after the last code
    text[:, -1] = ord(",")
    text[-1, -1] = 0
    return text.tobytes().translate(None, b"\0")


def _code_texts(largest: int) -> NDArray[np.uint8]:
    """Return for each code 0…largest its digits and a comma, zero bytes in front."""
    width = len(str(largest))
    return (
        np.array([f"{code},".rjust(width + 1, "\0").encode() for code in range(largest + 1)], f"S{width + 1}")
        .view(np.uint8)
        .reshape(largest + 1, width + 1)
    )


def _four_digits() -> NDArray[np.uint8]:
    numbers = np.arange(10_000)
    return np.stack([numbers // power % 10 + ord("0") for power in (1000, 100, 10, 1)], axis=1).astype(np.uint8)


FOUR_DIGITS = _four_digits()  # (10000, 4)


# --- reading ----------------------------------------------------------------------------------


def parse_id_json(data: bytes, where: str) -> tuple[NDArray[np.int64] | list[str], Codes]:
    """
    Read a `semantic_id_dict.json`, whoever wrote it.

    Args:
        data: the whole file: UTF-8, with a byte order mark or without.
        where: its name in error messages.

    Returns:
        (keys (n,) int64 if all are integers in their usual spelling, else n strings; codes (n, levels) uint8, or
        uint16 where one is above 255), in the order of the file. An empty object gives 0 keys and codes (0, 0).

    Raises:
        SemanticIdFileError: not an object, invalid JSON or UTF-8, a key twice, lists that are empty or of unequal
            length, values that are no whole numbers from 0 to 65,535; it names file, key and value.
    """
    pairs = _load(data.removeprefix(BOM), where)
    if not isinstance(pairs, _Object):
        raise SemanticIdFileError(
            f"'{where}' must hold an object of lists, as in {{\"7\": [1, 2, 3, 4]}}; found {_show(pairs)}. {UNTOUCHED}"
        )
    if not pairs:
        return np.empty(0, np.int64), np.empty((0, 0), np.uint8)
    keys, values = [key for key, _ in pairs], [value for _, value in pairs]
    if len(set(keys)) < len(keys) or not _are_codes(values):
        _refuse(pairs, where)
    return _keys(keys), _narrow(np.array(values, np.uint16))


class _Object(list[tuple[str, Any]]):
    """A JSON object as the pairs that stand in the file: a dict would drop the first of two equal keys."""


def _are_codes(values: list[Any]) -> bool:
    """Whether values are lists of codes, all of one length."""
    if set(map(type, values)) != {list} or len(set(map(len, values))) != 1 or not values[0]:
        return False
    if set(map(type, chain.from_iterable(values))) != {int}:  # True is none, and neither is 1.0
        return False
    return bool(min(map(min, values)) >= 0 and max(map(max, values)) <= MAX_CODE)


def _refuse(pairs: _Object, where: str) -> NoReturn:
    """Raise the error of the first entry that is none."""
    seen: set[str] = set()
    levels = 0
    for key, value in pairs:
        if key in seen:
            raise SemanticIdFileError(f"'{where}' holds the key {key!r:.80} twice. {UNTOUCHED}")
        seen.add(key)
        if type(value) is not list or not value:
            raise SemanticIdFileError(
                f"'{where}', key {key!r:.80}: expected a list of codes, found {_show(value)}. {UNTOUCHED}"
            )
        levels = levels or len(value)
        if len(value) != levels:
            raise SemanticIdFileError(
                f"'{where}', key {key!r:.80}: {len(value)} codes in {_show(value)}, "
                f"but {levels} at the first key {pairs[0][0]!r:.80}. {UNTOUCHED}"
            )
        for code in value:
            if type(code) is not int or not 0 <= code <= MAX_CODE:
                raise SemanticIdFileError(
                    f"'{where}', key {key!r:.80}: a code must be a whole number from 0 to {MAX_CODE:,}, "
                    f"found {_show(code)} in {_show(value)}. {UNTOUCHED}"
                )
    raise AssertionError("every entry is a list of codes")


UNTOUCHED = "The file was left untouched; correct it or remove it."


def _load(data: bytes, where: str) -> Any:
    """Return the JSON value, objects as `_Object`."""
    try:
        # NaN and the infinities stay words: they are no codes wherever they stand, and the caller names key and value.
        return json.loads(data.decode("utf-8"), object_pairs_hook=_Object, parse_constant=_Constant)
    except UnicodeDecodeError as error:
        raise SemanticIdFileError(
            f"'{where}' is not UTF-8: {error.reason} at byte {error.start}. {UNTOUCHED}"
        ) from None
    except RecursionError:
        raise SemanticIdFileError(f"'{where}' is nested too deeply to hold semantic IDs. {UNTOUCHED}") from None
    except ValueError as error:  # JSONDecodeError, or an integer of too many digits
        raise SemanticIdFileError(f"'{where}' is no valid JSON: {error}. {UNTOUCHED}") from None


class _Constant:
    """NaN, Infinity or -Infinity."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


def _keys(texts: list[str]) -> NDArray[np.int64] | list[str]:
    numbers = [parse_decimal(text) for text in texts]
    if all(number is not None and INT64_MIN <= number <= INT64_MAX for number in numbers):
        return np.array(numbers, np.int64)
    return texts


def _narrow(codes: NDArray[np.uint16]) -> Codes:
    return codes.astype(np.uint8) if codes.max(initial=0) <= 255 else codes


def _show(value: object) -> str:
    """Return a value as JSON spells it, shortened."""
    if isinstance(value, _Object):
        return "an object"
    names = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return names[value]
    if isinstance(value, list):
        text = "[" + ", ".join(_show(entry) for entry in value[:8]) + (", ...]" if len(value) > 8 else "]")
    else:
        text = json.dumps(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
