"""Ids are what they were meant to be: numbers in any spelling, names as they are."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from semid_dataset.inputs._items import SUSPECT, UNTIDY, canonical_int, whole_number

TEXTS = st.one_of(
    st.text(max_size=12),
    st.from_regex(r"[\\s\"'+-]{0,2}[0-9]{0,4}\\.?[0-9]{0,3}([eE][+-]?[0-9]{1,2})?[\\s\"']{0,2}", fullmatch=True),
    st.integers().map(str),
)


@settings(max_examples=1_000)
@example("-0")
@example("+7")
@example("1.")
@given(TEXTS)
def test_no_number_in_another_spelling_passes_the_quick_look(text: str) -> None:
    """Nor does a line with blanks or quotation marks around it."""
    odd = (whole_number(text) is not None and canonical_int(text) is None) or UNTIDY.search(text)
    assert not odd or SUSPECT.search(text)


@given(st.integers(-(2**53) + 1, 2**53 - 1))
def test_every_spelling_of_a_number_is_that_number(number: int) -> None:
    """As C, numpy, spreadsheets and JSON write it."""
    for text in (f"{number}", f"{number}.0", f" {number} ", f'"{number}"', f"{number}.", f"{number:.18e}"):
        assert whole_number(text) == number
    for text in (f"0{abs(number)}", f"{number}.5", f"x{number}", f"{number}e5"):
        assert whole_number(text) is None or (number == 0 and text in {"00", "0e5"})


@given(st.integers(2**53, 2**70))
def test_beyond_what_a_double_holds_spellings_of_doubles_are_none(number: int) -> None:
    """Another number may have become this one."""
    assert whole_number(f"{number}.0") is None
    assert (whole_number(f"+{number}") == number) == (number < 2**63)
