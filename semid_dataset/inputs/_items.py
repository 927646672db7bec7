"""
Ids of items as a table keeps them: int64 where every one is a whole number in its usual spelling, else texts.

Other programs write whole numbers otherwise: "1.000000000000000000e+03" by np.savetxt, 1000.0 by pandas where one id is
missing, "1000 " by a fixed-width export. Kept as they are they would be keys that nobody ever looks up. Where all of
them are whole numbers, exactly, they are read as such, and it is said; where only some are, the file is refused.
"""

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset._messages import tell
from semid_dataset.errors import EmbeddingError
from semid_dataset.inputs._columns import plain_name
from semid_dataset.objects import Items, as_items, item_of, quick_integers, shown

__all__ = ["EXACT", "INT64", "Ids", "as_listed", "canonical_int", "of_array", "whole_number"]

INT64 = range(-(2**63), 2**63)
DIGITS = 20  # characters of the longest int64, sign included
EXACT = 2**53  # whole numbers below it are themselves as a double; beyond, a neighbour may have become them
OTHERWISE = re.compile(r"[+-]?(?:0|[1-9][0-9]*)(?:\.[0-9]*(?:[eE][+-]?[0-9]{1,3})?|[eE][+-][0-9]{1,3})?")
UNTIDY = re.compile(r"^[\s\"']|[\s\"']$|[\t\r\x00]")  # of a line that is a name
# Whatever may be one of the two above; most lists hold none, and one search a text is quick.
SUSPECT = re.compile(r"^[\s\"'+]|[\s\"']$|[\t\r\x00]|^-?[0-9]+(?:\.|[eE][+-])|^-0$")
SYNONYMS = {"anonymous_cid", "creative_id"}  # names of one kind of id, in the two releases of TencentGR
LONGEST = 64  # characters of a number that is written otherwise


def canonical_int(text: str) -> int | None:
    """Return the int64 that `text` is the canonical decimal of ("7", not "07" or "+7"), else None."""
    if len(text) > DIGITS or not text.isascii() or not text.removeprefix("-").isdigit():
        return None
    number = int(text)
    return number if str(number) == text and number in INT64 else None


def whole_number(text: str) -> int | None:
    """
    Return the int64 that `text` is another spelling of: "1000.0", "1.0e+03", " 1000", '"1000"', "+7"; else None.

    "007" is none: zeros in front are what tells a code from a number. Neither is "12e5", as hexadecimal codes look.
    """
    bare = text.strip()
    if len(bare) > 1 and bare[0] == bare[-1] and bare[0] in "\"'":
        bare = bare[1:-1].strip()
    if len(bare) > LONGEST or OTHERWISE.fullmatch(bare) is None:
        return None
    number = Decimal(bare)
    if number != number.to_integral_value() or abs(number) > 2**63:
        return None
    whole = int(number)
    # What was a double once may have been another number before; what was not may be as large as any id.
    return whole if whole in INT64 and (abs(whole) < EXACT or bare.lstrip("+-").isdigit()) else None


class Ids:
    """
    Watches the ids of one set of items that are no canonical integers, and decides what all of them are.

    `see` is told each of them as it comes; `numbers` says at the end whether they are whole numbers written otherwise.
    """

    def __init__(self) -> None:
        self._number: tuple[str, str] | None = None  # the first that is a number written otherwise: where, text
        self._name: tuple[str, str] | None = None  # the first that is none
        self._untidy: tuple[str, str] | None = None  # the first with blanks around it
        self._column: tuple[str, object] | None = None  # the name that tells where items are: name, where
        self.converted: str = ""  # an example of an id of another type that was converted, and what it became
        self._where = ""

    def see(self, text: str, where: str) -> None:
        """Look at an id; `where` is its place in words."""
        if self._number is not None and self._name is not None:
            return
        if whole_number(text) is None:
            self._name = self._name or (where, text)
            if self._untidy is None and text != text.strip():
                self._untidy = (where, text)
        else:
            self._number = self._number or (where, text)

    def note(self, written: object, number: int, where: str) -> None:
        """Note that an id of another type was converted by itself, exactly."""
        if not self.converted:
            self.converted, self._where = f"{written} as {number}", where

    def in_column(self, name: str, where: object) -> None:
        """
        Note which column holds the items.

        Raises:
            EmbeddingError: the file before, or the row, had them in one of another name: they would be mixed.
        """
        if self._column is None:
            self._column = name, where
        known, first = self._column
        if plain_name(known) != plain_name(name) and not {known, name} <= SYNONYMS:
            raise EmbeddingError(
                f"'{where}' holds items in {name}, but '{first}' in {known}: together they would be ids of two kinds. "
                f"Name one that all have: --items {known}."
            )

    @property
    def seen(self) -> list[list[str]]:
        """What `join` takes, as JSON types."""
        return [list(map(str, first or ())) for first in (self._number, self._name, self._column)]

    def join(self, seen: Sequence[Sequence[str]]) -> None:
        """Take note of what was seen in another part; raises as `in_column`."""
        number, name, column = (tuple(first) if first else None for first in seen)
        self._number, self._name = self._number or number, self._name or name  # type: ignore[assignment]
        if column is not None:
            self.in_column(*column)

    def numbers(self) -> bool:
        """
        Whether what was seen is whole numbers written otherwise, to be read as such; said in one line.

        Raises:
            EmbeddingError: some are, and some are not.
        """
        if self._number is not None and self._name is not None:
            (where, text), (other, name) = self._number, self._name
            raise EmbeddingError(
                f"{where}: item {text!r:.80} is a whole number in another spelling than an id's, and item {name!r:.80} "
                f"({other}) is none: such ids would never be found again. Nothing was read. Write all of them as plain "
                f"whole numbers, or all as names."
            )
        if self._number is not None and not self.converted:
            where, text = self._number
            self.converted, self._where = f"{text!r} as {whole_number(text)}", where
        elif self._untidy is not None:
            where, text = self._untidy
            tell("ids_untidy", where=where, example=repr(text))
        if self.converted:
            tell("ids_converted", where=self._where, example=self.converted)
        return self._number is not None


def of_array(array: NDArray[Any], where: str) -> tuple[Items, object]:
    """
    Return ids of an array of any type that can hold them, and the first as it stood there where all were converted.

    Args:
        array: (n,), or (n, 1).
        where: what to call it, such as the file and the name of the array in it.

    Raises:
        EmbeddingError: it is of another type or shape, or a number is no whole one below 2^53; the message names the
            type.
    """
    flat = array.reshape(-1) if array.ndim and array.size == len(array) else array
    if flat.dtype.hasobject:
        raise EmbeddingError(f"'{where}' holds Python objects, which are not read. Write them as numbers or as texts.")
    keys = as_items(flat, where, empty=True)
    return keys, flat[0] if flat.dtype.kind == "f" and flat.size and isinstance(keys, np.ndarray) else None


def as_listed(
    values: Sequence[Any] | NDArray[np.int64],
    where: str,
    places: Sequence[str],
    *,
    lines: bool = False,
    example: object = None,
) -> Items:
    """
    Return ids that were listed: int64 if every one is a whole number, else texts.

    Args:
        values: of any type.
        where: the file, or what to call the list.
        places: what to call each of them.
        lines: whether they are lines of a text, in which blanks and quotation marks may stand around them.
        example: the first id as it stood there, where others converted all of them.

    Raises:
        EmbeddingError: a value is no id, or some are whole numbers in another spelling and some are not.
    """
    if isinstance(values, np.ndarray):
        ids = Ids()
        if example is not None:
            ids.note(example, int(values[0]), f"'{where}'")
        ids.numbers()
        return values
    if isinstance(values, list) and set(map(type, values)) == {str}:
        quick = quick_integers(values)
        if quick is not None:
            return quick
        if "" not in values and not any(map(SUSPECT.search, values)):
            return values
    return _one_by_one(values, where, places, lines)


def _one_by_one(values: Sequence[Any], where: str, places: Sequence[str], lines: bool) -> Items:
    """Return ids of which some may be no texts, no ids, or numbers in another spelling; see `as_listed`."""
    ids = Ids()
    found: list[int | str] = []
    untidy = ""
    for row, value in enumerate(values):
        item = item_of(value)
        if not isinstance(item, int | str):
            raise EmbeddingError(
                f"'{where}', {places[row]}: {shown(value)} is no item; wanted: a whole number or a text."
            )
        if item == "":
            raise EmbeddingError(f"'{where}', {places[row]}: an empty line is no item.")
        if isinstance(item, str):
            number = canonical_int(item)
            if number is None:
                ids.see(item, f"'{where}', {places[row]}")
                if lines and not untidy and UNTIDY.search(item):
                    untidy = f"'{where}', {places[row]}: {item!r:.80}"
            item = item if number is None else number
        elif not isinstance(value, int | np.integer):
            ids.note(value, item, f"'{where}'")
        found.append(item)
    if ids.numbers():
        found = [whole_number(item) if isinstance(item, str) else item for item in found]  # type: ignore[misc]
    elif untidy:
        raise EmbeddingError(
            f"{untidy} is no item as it would be asked for: blanks, tabs or quotation marks stand around or in it. "
            "Write one item a line, and nothing else."
        )
    if all(isinstance(item, int) and item in INT64 for item in found):
        return np.array(found, np.int64)
    return [str(item) for item in found]
