"""What `verify`, `info` and `cache` say of a data directory whose cache is damaged, and that their advice works."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from world import make_data

pytest.importorskip("click", reason='the extra "cli" is missing: pip install ".[cli]"')

from semid_dataset.cli._app import run

QUICK = ["--levels", "3", "--codes", "16", "--epochs", "2", "--device", "cpu"]


@pytest.fixture
def semid(capsys: pytest.CaptureFixture[str]):
    """Run a command line in this process: exit code, stdout, stderr."""

    def call(*arguments: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def data(semid: Any, tmp_path: Path) -> Path:
    """A data directory with IDs."""
    made = make_data(tmp_path / "data", 80)
    assert semid("generate", made, *QUICK)[0] == 0
    return made


def damage(data: Path) -> list[Path]:
    """Flip a byte of every table in the cache of a data directory."""
    tables = sorted(data.glob(".semantic_ids/v1/*/*.safetensors"))
    for path in tables:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.unlink()
        path.write_bytes(content)
    return tables


def test_verify_of_a_data_directory_says_what_is_damaged(semid: Any, data: Path) -> None:
    """Also where the exported semantic_id_dict.json still answers; the command that it names heals it."""
    ids = (data / "semantic_id_dict.json").read_bytes()
    (table,) = damage(data)
    content = table.read_bytes()
    code, out, err = semid("verify", data)
    assert code == 1
    assert f"Wrong: '{table}' is damaged" in out
    assert f"Next: semid generate {data} " in out
    assert "left as it is" in err
    assert "set aside" not in err
    assert table.read_bytes() == content
    code, out, _ = semid("verify", data, "--json")
    assert (code, json.loads(out)["ok"], len(json.loads(out)["problems"])) == (1, False, 1)
    assert semid("generate", data, *QUICK)[0] == 0
    assert semid("verify", data)[0] == 0
    assert (data / "semantic_id_dict.json").read_bytes() == ids


def test_info_of_a_damaged_cache_advises_to_heal_it(semid: Any, data: Path) -> None:
    """The step comes first; behind a closed gate it is not advised."""
    damage(data)
    code, out, _ = semid("info", data, *QUICK[:4])
    assert code == 4
    assert "Answers: stale (its table is damaged and this look makes no IDs)" in out
    assert f"Next: semid generate {data} " in out


def test_info_behind_a_closed_gate_does_not_advise_to_heal(
    semid: Any, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would exit with 3."""
    damage(data)
    monkeypatch.setenv("ALLOW_SEMANTIC_GENERATION", "0")
    _, out, _ = semid("info", data, *QUICK[:4])
    assert "Answers: stale" in out
    assert "semid generate" not in out
    _, out, _ = semid("verify", data)
    assert "semid generate" not in out


def test_a_cache_with_damaged_tables_only_is_not_called_empty(semid: Any, data: Path) -> None:
    """Whoever reads "there is no file" makes the IDs again, and they move."""
    (table,) = damage(data)
    (data / "semantic_id_dict.json").unlink()
    code, out, _ = semid("info", data, *QUICK[:4])
    assert code == 1
    assert f"'{table}' is damaged" in out
    assert "backup" in out


def test_the_steps_after_the_list_of_a_cache_name_it(semid: Any, data: Path, tmp_path: Path) -> None:
    """Without the folder the next command would look at another cache; where there is none, the folders are named."""
    _, out, _ = semid("cache", "list", data)
    assert f"Next: semid cache prune {data} " in out
    shutil.rmtree(data / ".semantic_ids")
    _, out, _ = semid("cache", "list", data)
    assert str(data / ".semantic_ids") in out
    assert "semid cache prune" not in out


def test_a_folder_without_embeddings_is_not_told_to_generate_from_it(semid: Any, tmp_path: Path) -> None:
    """That command would fail."""
    (tmp_path / "empty").mkdir()
    code, out, _ = semid("info", tmp_path / "empty")
    assert code == 1
    assert "Next: semid generate FILE -o DIR " in out
