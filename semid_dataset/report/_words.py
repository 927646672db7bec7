"""
The words of the page, in English and Chinese under the same names: a line each of static/words.txt.

Names with "js." go to the page's script. Fields are written `{share!p}` (per cent), `{items!i}` (12,101), `{error!n}`
(0.3217) or `{name}`.
"""

import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semid_dataset.table.figures import number, percent

__all__ = ["LANGUAGES", "Words", "script_words"]

LANGUAGES = {"en": 0, "zh": 1}

TEXTS: dict[str, tuple[str, str]] = {
    name: (english, chinese)
    for name, english, chinese in (
        line.split(" | ")
        for line in (Path(__file__).parent / "static" / "words.txt").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    )
}


class _Formatter(string.Formatter):
    """Adds the conversions p, i and n."""

    def convert_field(self, value: Any, conversion: str | None) -> Any:
        if conversion == "p":
            return percent(float(value))
        if conversion == "i":
            return f"{value:,.0f}"
        if conversion == "n":
            return number(value)
        return super().convert_field(value, conversion)


class Words:
    """
    Texts of a language: `Words("zh")("items", count=3)`.

    Raises:
        KeyError: there is no such language, text or field.
    """

    def __init__(self, language: str) -> None:
        self.language = language
        self._place = LANGUAGES[language]

    def __call__(self, text: str, /, **values: Any) -> str:
        return _Formatter().vformat(TEXTS[text][self._place], (), values)

    def __contains__(self, name: str) -> bool:
        return name in TEXTS


def script_words(language: str) -> Mapping[str, str]:
    """Return the texts of the page's script, with fields like {n} left in."""
    place = LANGUAGES[language]
    return {name[3:]: texts[place] for name, texts in TEXTS.items() if name.startswith("js.")}
