"""
Lines of commands, errors and reasons in Chinese, out of `_chinese.txt`: a template and its translation a line.

Messages are written in English where they arise. They are translated where they are shown, sentence by sentence, so
that `str(error)` and `table.reason` stay what programs read. A sentence without a template stays English.
"""

import functools
import re
from pathlib import Path

__all__ = ["chinese"]

SENTENCES = re.compile(r"(?<=[.?!]) (?=[A-Z\"'])")
NEXT = " " * 5  # between a command and what it does
ENDS = {"": "", ".": "。", "?": "？"}
WHOLE = {"message", "why"}  # places that may hold several sentences


@functools.cache
def _templates() -> list[tuple["re.Pattern[str]", str]]:
    found = []
    for line in Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            english, _, said = line.partition(" | ")
            pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+?)", re.escape(english.rstrip(".?")))
            found.append((re.compile(pattern, re.DOTALL), said.rstrip("。？")))
    return found


def chinese(text: str) -> str:
    """Return a line in Chinese, as far as there are templates for its sentences."""
    bare = text.strip()
    command, gap, what = bare.partition(NEXT)
    if gap:
        return text.replace(bare, command + gap + chinese(what))
    core = bare[:-1] if bare.endswith((".", "?")) else bare
    for pattern, said in _templates():
        match = pattern.fullmatch(core)
        if match and not any(SENTENCES.search(value) for name, value in match.groupdict().items() if name not in WHOLE):
            fields = {name: chinese(value) if " " in value else value for name, value in match.groupdict().items()}
            return text.replace(bare, said.format(**fields) + ENDS[bare[len(core) :]])
    parts = SENTENCES.split(bare)
    if len(parts) < 2:
        return text
    return text.replace(bare, re.sub("(?<=[。？]) ", "", " ".join(map(chinese, parts))))
