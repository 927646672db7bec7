"""
The one reader of JSON that lies in a cache: strict, and with limits.

Whoever can write to a shared cache can put anything there. A note is therefore refused before it is read where it is
no regular file or too large, before it is parsed where it is nested deeper than any of ours, and afterwards where a
value is of another kind or out of range. A note that is refused is as good as none.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from semid_dataset import _files as files
from semid_dataset._messages import logger

__all__ = [
    "Check",
    "flag",
    "items",
    "number",
    "one_of",
    "optional",
    "parse_note",
    "read_note",
    "record",
    "text",
    "whole",
]

MOST_DEPTH = 8  # levels of lists and objects in any note of ours
MOST_BRACKETS = 1 << 20  # an empty object takes 3 bytes in a file and 64 in memory
STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
BRACKETS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
OTHERS = bytes(set(range(256)) - set(BRACKETS))

Check = Callable[[Any], Any]  # returns a value that is allowed, or raises ValueError


def read_note(path: Path, check: Check, *, limit: int) -> Any:
    """
    Return what a note says, or None where there is none that can be used; the log says why at level DEBUG.

    Args:
        path: the note.
        check: of the whole, see `record`.
        limit: bytes that it has at most.
    """
    try:
        content, _ = files.read_small(path, limit)
        return parse_note(content, check)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.debug("'%s' is not used: %s", path, error)
        return None


def parse_note(content: bytes, check: Check) -> Any:
    """
    Return what the text of a note says.

    Raises:
        ValueError: it is no JSON, nested too deeply, or holds what no note of this kind holds.
    """
    structure = STRINGS.sub(b"", content).translate(None, OTHERS)
    if len(structure) > MOST_BRACKETS:
        raise ValueError(f"it has more than {MOST_BRACKETS:,} brackets")
    if max(accumulate(BRACKETS[byte] for byte in structure), default=0) > MOST_DEPTH:
        raise ValueError(f"it is nested more than {MOST_DEPTH} levels deep")
    return check(json.loads(content, parse_constant=_refuse_constant))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def record(fields: Mapping[str, Check]) -> Check:
    """An object with these fields; others are dropped, so that notes of later versions can be read."""

    def check(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValueError(f"an object is expected, not {value!r:.40}")
        found = {}
        for name, one in fields.items():
            try:
                found[name] = one(value.get(name))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return found

    return check


def items(check: Check, *, most: int, least: int = 0) -> Check:
    """A list of so many values, each of which passes."""

    def check_all(value: Any) -> list[Any]:
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise ValueError(f"a list of {least} to {most} is expected, not {value!r:.40}")
        return [check(one) for one in value]

    return check_all


def text(pattern: str) -> Check:
    """A string that the whole of a regular expression matches."""
    allowed = re.compile(pattern)

    def check(value: Any) -> str:
        if not isinstance(value, str) or not allowed.fullmatch(value):
            raise ValueError(f"{value!r:.40} is not what can stand there")
        return value

    return check


def whole(low: int, high: int) -> Check:
    """A whole number from low to high."""

    def check(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high} is expected, not {value!r:.40}")
        return value

    return check


def number(value: Any) -> float:
    """A finite number, as time."""
    if type(value) not in (int, float) or not abs(value) < 1e300:
        raise ValueError(f"a number is expected, not {value!r:.40}")
    return float(value)


def flag(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError(f"true or false is expected, not {value!r:.40}")
    return value


def optional(check: Check, default: Any) -> Check:
    """What passes, or `default` where nothing stands there."""
    return lambda value: default if value is None else check(value)


def one_of(values: Iterable[Any]) -> Check:
    """One of these values."""
    allowed = tuple(values)

    def check(value: Any) -> Any:
        if value not in allowed:
            raise ValueError(f"{value!r:.40} is not one of {', '.join(map(str, allowed))}")
        return value

    return check
