"""What commands, errors and reasons say is said in Chinese where the environment asks for it."""

import ast
import itertools
import re
import shlex
import string
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_first_mistakes import MISTAKES, shop  # noqa: F401 - the fixture of those cases

import semid_dataset
from semid_dataset import _messages as messages
from semid_dataset._chinese import chinese
from semid_dataset.cli._app import run

HOME = Path(semid_dataset.__file__).parent
PAIRS = [
    line.partition(" | ")[::2]
    for line in (HOME / "_chinese.txt").read_text("utf-8").splitlines()
    if line and line[0] != "#"
]
HAN = re.compile("[\u4e00-\u9fff]")


@pytest.fixture(autouse=True)
def in_chinese(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As SEMID_LANG=zh; what a door has set lasts, so it is set back."""
    monkeypatch.setenv("SEMID_LANG", "zh")
    yield
    messages.speak("en")


def test_a_translation_names_what_the_template_names() -> None:
    """A place that is lost is a path or a figure that its readers are not told."""
    for english, said in PAIRS:
        names = [{name for _, name, _, _ in string.Formatter().parse(text) if name} for text in (english, said)]
        assert names[0] == names[1], english
        assert HAN.search(said) or english.startswith("ID "), english


def test_templates_are_of_what_is_said() -> None:
    """A message whose words have changed would silently be English again."""
    texts = []
    for path in HOME.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    said = " ".join(re.findall(r"\w+", "\n".join(texts)))
    ours = [english for english, _ in PAIRS if not OF_OTHERS.search(english)]
    for english in ours:
        pairs = []
        for piece in re.split(r"\{\w+\}", english):
            words = re.findall(r"\w+", piece)
            pairs += [f"{one} {other}" for one, other in itertools.pairwise(words)]
        assert sum(pair in said for pair in pairs) >= len(pairs) / 2, f"nobody says: {english}"


# Of click and of the operating system.
OF_OTHERS = re.compile(
    "No such|Did you mean|Missing argument|Invalid value|does not exist|is not one of|denied|No space"
)


@pytest.mark.parametrize("typed", [typed for typed, _, _ in MISTAKES])
def test_first_mistakes_are_answered_in_chinese(typed: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Every sentence of the answer, but for names, paths and commands."""
    run(shlex.split(typed))
    for line in "".join(capfd.readouterr()).splitlines():
        if line.strip() and not line.startswith(("      ", "{")):
            assert HAN.search(line), line
            for sentence in re.findall(r"(?:[A-Z][a-z]+(?: [a-z]+){4,})", line):
                pytest.fail(f"{sentence!r} in {line!r}")


def test_reasons_within_lines_are_chinese() -> None:
    """A log line in two languages is read by nobody."""
    messages.speak("zh")
    line = messages.text("stale", reason="10 items are new and ALLOW_SEMANTIC_GENERATION forbids generating", known=5)
    assert line.startswith("semantic_id已过期: 10 个物品是新的，且ALLOW_SEMANTIC_GENERATION 禁止生成。5 个")
    messages.speak("en")
    assert "10 items are new" in messages.text("stale", reason="10 items are new", known=5)


@pytest.mark.parametrize(
    ("english", "said"),
    [
        ("Wrote out/x.json", "已写入 out/x.json"),
        ("  Wrote out/my table.json", "  已写入 out/my table.json"),
        ("semid report out     to look at them", "semid report out     查看它们"),
        ("What nobody translated. They must be as many.", "What nobody translated. 两者数量必须相同。"),
        ("", ""),
    ],
)
def test_only_what_has_a_template_changes(english: str, said: str) -> None:
    """Paths, blanks in front and unknown sentences stay as they are."""
    assert chinese(english) == said
