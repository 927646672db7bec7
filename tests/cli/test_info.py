"""`semid info` on call: who answers, since when, why not the others, and an exit code a monitor can read."""

import json
import re
from pathlib import Path

import pytest
from world import make_data, vectors_of, write_embeddings

pytest.importorskip("click", reason='the extra "cli" is missing: pip install ".[cli]"')

from semid_dataset.cli._app import run

QUICK = ["--levels", "2", "--codes", "16", "--epochs", "1", "--device", "cpu"]


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    capsys.readouterr()
    code = run([str(argument) for argument in arguments])
    return code, capsys.readouterr().out


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A directory with IDs of features 81 and 82 together, which nobody has asked for alone."""
    data = make_data(tmp_path / "data", 40)
    write_embeddings(data, vectors_of(40, seed=3), "82")
    assert run(["generate", str(data), "--feature", "81", "--feature", "82", *QUICK]) == 0
    return data


def test_it_says_why_others_do_not_answer(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of other features, of other sizes; in one screen, and as facts."""
    code, out = said(capsys, "info", data, *QUICK)
    assert code == 1
    assert "these IDs are of features 81+82, you asked for 81" in out
    code, out = said(capsys, "info", data, "--feature", 81, "--feature", 82, "--levels", 3, "--codes", 16)
    assert code == 1
    assert "these IDs have 16/16 codes, you asked for 16/16/16" in out
    assert run(["generate", str(data), *QUICK]) == 0
    code, out = said(capsys, "info", data, *QUICK)
    assert code == 0
    assert len(out.splitlines()) <= 24
    assert re.search(r"^Since: \d{4}-\d\d-\d\d \d\d:\d\d$", out, re.MULTILINE)
    others = json.loads(said(capsys, "info", data, *QUICK, "--json")[1])["others"]
    assert [one["why"] for one in others] == ["these IDs are of features 81+82, you asked for 81"]


def test_it_says_which_file_is_damaged(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And that stale IDs answer, by an exit code of its own."""
    (table,) = (data / ".semantic_ids").rglob("*.safetensors")
    content = bytearray(table.read_bytes())
    content[len(content) // 2] ^= 1
    table.write_bytes(content)
    code, out = said(capsys, "info", data, "--feature", 81, "--feature", 82, *QUICK)
    assert code == 4
    assert re.search(rf"^  {table}: is damaged or cut off", out, re.MULTILINE)
    assert f"Next: semid generate {data}" in out


def test_it_says_whether_the_recommender_expects_it(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By SEMID_EXPECT; another table is exit code 1, and a pin is named."""
    asked = ["info", data, "--feature", 81, "--feature", 82, *QUICK]
    code, out = said(capsys, *asked)
    assert (code, "Expected: nobody stated what" in out) == (0, True)
    lineage = json.loads(said(capsys, *asked, "--json")[1])["lineage"]
    monkeypatch.setenv("SEMID_EXPECT", lineage)
    code, out = said(capsys, *asked)
    assert (code, f"Expected: yes, {lineage}" in out) == (0, True)
    monkeypatch.setenv("SEMID_EXPECT", "0" * 64)
    code, out = said(capsys, *asked)
    assert (code, "Expected: NO. 0000" in out) == (1, True)
    monkeypatch.delenv("SEMID_EXPECT")
    assert run(["pin", str(data), f"{lineage}@0"]) == 0
    code, out = said(capsys, *asked)
    assert (code, f"; pinned to {lineage}@0" in out) == (0, True)


def test_a_retraining_is_told_from_other_data(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was replaced stays in the cache, and says so."""
    both = ["--feature", 81, "--feature", 82, *QUICK]
    assert said(capsys, "generate", data, *both, "--retrain", "--seed", 5)[0] == 0
    _, out = said(capsys, "info", data, *both)
    assert "a retraining replaced it" in out


def test_new_items_without_ids_are_stale(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever monitors the exit code need not read the text."""
    for seed, feature in ((0, "81"), (3, "82")):
        write_embeddings(data, vectors_of(50, seed=seed), feature)
    code, out = said(capsys, "info", data, "--feature", 81, "--feature", 82, *QUICK)
    assert code == 4
    assert "Answers: stale (10 items are new and this look makes no IDs)" in out
