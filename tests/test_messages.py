"""The lines that monitoring greps for."""

import ast
import logging
import os
import re
import string
import subprocess
import sys
from pathlib import Path

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


def test_lines_that_want_a_look_end_with_their_code(caplog: pytest.LogCaptureFixture) -> None:
    """In either language, so that an alarm stays when words change; others carry none."""
    with caplog.at_level(logging.INFO, "semid_dataset"):
        for language in ("en", "zh"):
            messages.speak(language)
            messages.tell("stale", reason="?", known=1)
            messages.tell("defaults")
            messages.tell("saved")
            messages.tell("moved", moved=1, items=2, lineage="a", new="b")
    messages.speak("en")
    codes = ["SEMID-W004", "SEMID-W003", "", "SEMID-E003"]
    assert [record.code for record in caplog.records] == codes * 2  # type: ignore[attr-defined]
    said = [record.getMessage().partition(" [")[2].rstrip("]") for record in caplog.records]
    assert said == [*codes, "SEMID-W004", "", "", "SEMID-E003"]  # the original's own words stand alone in Chinese


def test_every_code_is_of_one_line_and_explained() -> None:
    """On the page on troubleshooting: what happened, and what to do."""
    assert messages.CODES.keys() <= messages.LINES.keys()
    assert len(set(messages.CODES.values())) == len(messages.CODES)
    page = (Path(messages.__file__).parent.parent / "docs" / "troubleshooting.md").read_text("utf-8")
    rows = re.findall(r"^\| SEMID-(\w+) \| ([^|]+) \| ([^|]+) \|$", page, re.MULTILINE)
    assert sorted(code for code, _, _ in rows) == sorted(messages.CODES.values())
    settings = (Path(messages.__file__).parent / "environment.py").read_text("utf-8")
    config = (Path(messages.__file__).parent / "config.py").read_text("utf-8")
    for code, happened, advice in rows:
        assert len(happened) > 10, code
        assert len(advice) > 7, code
        for name in re.findall(r"`([A-Z]+_[A-Z_]+)`", advice):
            assert name in settings, f"{code}: there is no {name}"
        for name in re.findall(r"SemanticIdConfig\((\w+)=", advice):
            assert name in config, f"{code}: there is no setting {name}"


def test_no_line_that_wants_a_look_goes_another_way() -> None:
    """Whatever is logged or warned about is in the catalogue, at the level that its code says."""
    told: set[str] = set()
    for path in Path(messages.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if path.name != "_messages.py":
                assert called not in ELSEWHERE, f"{path}, line {node.lineno}: {called}"
            if called in {"tell", "degrade", "warn"} and isinstance(node.args[0], ast.Constant):
                told.add(str(node.args[0].value))
                levels = [ast.unparse(key.value) for key in node.keywords if key.arg == "level"]
                assert not any("WARNING" in level or "ERROR" in level for level in levels), f"{path}, {node.lineno}"
    assert set(messages.CODES) <= told, "a code that nothing says"


ELSEWHERE = {f"logger.{level}" for level in ("warning", "error", "exception", "critical")} | {"warnings.warn"}


def test_a_warning_names_the_line_of_the_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """However deep in the package it arises: who reads it looks at his own line."""
    monkeypatch.setenv("SEMID_MMAP", "perhaps")
    with pytest.warns(SemanticIdWarning, match="SEMID_MMAP") as caught:
        Context.at_door()
    assert {warning.filename for warning in caught} == {__file__}
    program = tmp_path / "program.py"
    program.write_text(
        "from semid_dataset import SemanticIdMixin\n"
        "class Data(SemanticIdMixin):\n"
        "    data_dir, mm_emb_ids = '.', ['81']\n"
        "Data().semantic_id_dict\n"  # line 4
        "from semid_dataset import generate_semantic_ids_on_demand\n"
        "generate_semantic_ids_on_demand('.', ['81'])\n"  # line 6
    )
    done = subprocess.run(
        [sys.executable, str(program)],
        capture_output=True, text=True, check=True, cwd=tmp_path, env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)},
    )  # fmt: skip
    lines = re.findall(r"^\S*program\.py:(\d+): SemanticIdWarning", done.stderr, re.MULTILINE)
    assert set(lines) == {"4", "6"}, done.stderr
    assert done.stderr.count("SemanticIdWarning") == len(lines)


def test_the_library_configures_no_logging() -> None:
    """Importing must leave handlers and levels to the program."""
    code = (
        "import logging, semid_dataset; semid_dataset.SemanticIdMixin; l = logging.getLogger('semid_dataset');"
        "assert [type(h).__name__ for h in l.handlers] == ['NullHandler'], l.handlers;"
        "assert not logging.getLogger().handlers and l.level == 0"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
