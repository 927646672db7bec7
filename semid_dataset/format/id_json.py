"""
`semantic_id_dict.json`: `{"20000000027":[1,2,3,4],...}`, written from arrays and read into arrays.

Writing is a stream of blocks whose digits numpy sets, so that 5 million items never become 5 million
lists. Reading guesses the spelling that `json.dump` and this module use, writes what it understood
once more, and compares: equal bytes prove the guess. Whatever differs goes through `json.loads` and a
look at every value, which names the first key that lies.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset.errors import SemanticIdFileError
from semid_dataset.format.tensors import StringIndex
from semid_dataset.objects import INT64_MAX, INT64_MIN, parse_decimal

__all__ = ["json_chunks", "parse_id_json"]

BLOCK_ITEMS = 1 << 16
BLOCK_BYTES = 1 << 21
MAX_CODE = 65_535
MAX_QUICK_DIGITS = 18  # of a key; any such number is an int64
WHITESPACE = b" \t\r\n"
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
    if data.startswith(BOM):
        data = data[len(BOM) :]
    quick = _parse_quick(data)
    return _parse_any(data, where) if quick is None else quick


def _parse_quick(data: bytes) -> tuple[NDArray[np.int64], Codes] | None:
    """
    Read the usual spelling, with any whitespace between tokens; None where it is not that, or not valid.

    5 million items as `json.dump` writes them take 3.5 s and little more memory than their arrays; `json.loads`
    takes 5 s and 1.2 GB, without having looked at a single value.
    """
    position = len(data) - len(data.lstrip(WHITESPACE))
    if data[position : position + 1] != b"{":
        return None
    blocks: list[tuple[NDArray[np.int64], Codes]] = []
    levels = 0
    while True:
        end = data.rfind(b"]", position, position + BLOCK_BYTES) + 1
        if end == 0:
            break
        block = _compact(data[position:end])
        if block is None or block[:1] != (b"," if blocks else b"{"):
            return None
        if not blocks:
            levels = block[: block.find(b"]")].count(b",") + 1
        entries = _parse_entries(block[1:], levels)
        if entries is None:
            return None
        blocks.append(entries)
        position = end
    if not blocks or data[position:].translate(None, WHITESPACE) != b"}":
        return None
    keys = np.concatenate([keys for keys, _ in blocks])
    ordered = np.sort(keys)
    if (ordered[1:] == ordered[:-1]).any():
        return None
    return keys, np.concatenate([codes for _, codes in blocks])


def _compact(block: bytes) -> bytes | None:
    """Return the block without whitespace, or None where some stands inside a token."""
    block = block.lstrip(WHITESPACE)
    characters = np.frombuffer(block, np.uint8)
    white = IS_WHITE[characters]
    if not white.any():
        return block
    leases = np.flatnonzero(white[1:] != white[:-1])  # the block begins and ends with something else
    before, after = characters[leases[0::2]], characters[leases[1::2] + 1]
    if not (IS_MARK[before] | IS_MARK[after]).all():
        return None
    return block.translate(None, WHITESPACE)


def _parse_entries(text: bytes, levels: int) -> tuple[NDArray[np.int64], Codes] | None:
    """Read `"1":[2,3],"4":[5,6]`, or return None."""
    characters = np.frombuffer(text, np.uint8)
    is_digit = characters - ord("0") < 10  # wraps below "0"
    leases = np.flatnonzero(is_digit[1:] != is_digit[:-1]) + 1
    if len(leases) == 0 or is_digit[0] or len(leases) % (2 * (levels + 1)):
        return None
    ends = leases[1::2].reshape(-1, levels + 1)
    lengths = ends - leases[0::2].reshape(-1, levels + 1)
    if lengths[:, 0].max() > MAX_QUICK_DIGITS or lengths[:, 1:].max() > len(str(MAX_CODE)):
        return None
    keys = _numbers(characters, ends[:, 0], lengths[:, 0])
    codes = _numbers(characters, ends[:, 1:].reshape(-1), lengths[:, 1:].reshape(-1)).reshape(-1, levels)
    if codes.max() > MAX_CODE:
        return None
    wide = codes.astype(np.uint16)
    return (keys, _narrow(wide)) if _integer_entries(keys, wide) == text else None


def _numbers(characters: NDArray[np.uint8], ends: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers whose digits end before `ends`."""
    values = np.zeros(len(ends), np.int64)
    for place in range(int(lengths.max())):
        digit = characters[np.maximum(ends - 1 - place, 0)].astype(np.int64) - ord("0")
        values += np.where(place < lengths, digit * 10**place, 0)
    return values


def _byte_table(characters: bytes) -> NDArray[np.bool_]:
    table = np.zeros(256, bool)
    table[list(characters)] = True
    return table


IS_WHITE = _byte_table(WHITESPACE)
IS_MARK = _byte_table(b"{}[]:,")


class _Object(list[tuple[str, Any]]):
    """A JSON object as the pairs that stand in the file: a dict would drop the first of two equal keys."""


def _parse_any(data: bytes, where: str) -> tuple[NDArray[np.int64] | list[str], Codes]:
    pairs = _load(data, where)
    if not isinstance(pairs, _Object):
        raise SemanticIdFileError(
            f"'{where}' must hold an object of lists, as in {{\"7\": [1, 2, 3, 4]}}; found {_show(pairs)}. {UNTOUCHED}"
        )
    if not pairs:
        return np.empty(0, np.int64), np.empty((0, 0), np.uint8)
    levels = 0
    seen: set[str] = set()
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
    codes = np.array([value for _, value in pairs], np.uint16)
    return _keys([key for key, _ in pairs]), _narrow(codes)


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
