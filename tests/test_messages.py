"""The lines that monitoring greps for."""

import logging
import re
import string
import subprocess
import sys

import pytest

from semid_dataset import _messages as messages
from semid_dataset.environment import Context
from semid_dataset.errors import SemanticIdWarning


def fields_of(template: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(template) if name}


@pytest.mark.parametrize("message", sorted(messages.LINES))
def test_both_languages_say_the_same(message: str) -> None:
    """A line that lacks a figure in one language tells its readers less."""
    english, chinese = messages.LINES[message]
    assert fields_of(english) == fields_of(chinese)


@pytest.mark.parametrize(
    "name",
    sorted(
        re.findall(
            r'(?:tell|degrade|text)\(\s*"(\w+)"',
            "".join(path.read_text() for path in __import__("pathlib").Path(messages.__file__).parent.glob("*.py")),
        )
    ),
)
def test_every_line_that_is_told_exists(name: str) -> None:
    """A message id with a slip would be a KeyError in the middle of a training."""
    assert name in messages.LINES


def test_language_is_chosen_at_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program may set the variable after the import; saying a line asks nobody."""
    Context.at_door()
    assert messages.text("generated", items=5) == "Successfully generated semantic_id features of 5 items"
    monkeypatch.setenv("SEMID_LANG", "zh")
    assert messages.text("generated", items=5) == "Successfully generated semantic_id features of 5 items"
    Context.at_door()
    assert messages.text("generated", items=5) == "成功生成 5 个物品的semantic_id特征"


def test_degrading_is_logged_and_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    """A program without logging sees the warning; one with logging sees the line."""
    with caplog.at_level(logging.WARNING, "semid_dataset"), pytest.warns(SemanticIdWarning, match="disk"):
        messages.degrade("not_saved", error="disk full")
    assert "disk full" in caplog.text


def test_the_library_configures_no_logging() -> None:
    """Importing must leave handlers and levels to the program."""
    code = (
        "import logging, semid_dataset; semid_dataset.SemanticIdMixin; l = logging.getLogger('semid_dataset');"
        "assert [type(h).__name__ for h in l.handlers] == ['NullHandler'], l.handlers;"
        "assert not logging.getLogger().handlers and l.level == 0"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
