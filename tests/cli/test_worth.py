"""`semid worth`: what IDs are worth, on a command line."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("click", reason='the extra "cli" is missing: pip install ".[cli]"')

from semid_dataset.check import measure_worth
from semid_dataset.cli._app import run
from semid_dataset.errors import TableError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data directory with IDs made by hand, whose first code says what is taken together, and sequences."""
    ids = {str(1000 + row): [row % 20, row // 20] for row in range(160)}
    (tmp_path / "semantic_id_dict.json").write_text(json.dumps(ids))
    random = np.random.default_rng(0)
    users = [1000 + 20 * random.permutation(8)[:5] + random.integers(20) for _ in range(300)]
    lines = [" ".join(map(str, user.tolist())) + " 77" for user in users]  # 77 has no ID
    (tmp_path / "sequences.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_a_data_directory_is_measured_with_its_own_sequences(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Figures for programs and a verdict for people."""
    assert run(["worth", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["helps"] is True
    assert facts["slices"]["new"]["lift"]["low"] > 0
    assert facts["users"] == 300
    assert run(["worth", str(folder / "semantic_id_dict.json"), "--sequences", str(folder / "sequences.txt")]) == 0
    text = capsys.readouterr().out
    assert "They help" in text
    assert f"{facts['slices']['all']['ids']['value']:.4f}" in text


def test_without_sequences_the_command_says_what_is_missing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Called wrongly, not failed."""
    (folder / "sequences.txt").unlink()
    assert run(["worth", str(folder)]) == 2
    assert "--sequences FILE" in capsys.readouterr().err


def test_the_function_takes_tables_only() -> None:
    """A dictionary of IDs is no table."""
    with pytest.raises(TableError):
        measure_worth({1: [2, 3]}, [[1]])  # type: ignore[arg-type]
