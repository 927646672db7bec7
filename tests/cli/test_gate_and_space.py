"""A closed gate binds commands too; IDs that could not be kept are a failure, not an answer."""

import errno
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faultkit import need_root, read_only, tmpfs
from world import make_data, vectors_of, write_embeddings

pytest.importorskip("click", reason='the extra "cli" is missing: pip install ".[cli]"')

from semid_dataset import SemanticIdConfig, generate_from_vectors, generate_semantic_ids
from semid_dataset.cli._app import run

QUICK = ["--levels", "3", "--codes", "16", "--epochs", "2", "--device", "cpu"]
CONFIG = SemanticIdConfig(num_quantizers=3, codebook_size=16, num_epochs=2, device="cpu")


@pytest.fixture
def semid(capsys: pytest.CaptureFixture[str]):
    """Run a command line in this process: exit code, stdout, stderr."""

    def call(*arguments: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Close the gate."""
    monkeypatch.setenv("ALLOW_SEMANTIC_GENERATION", "0")


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# --- the gate ---


@pytest.mark.parametrize(
    "more",
    [[], ["-o", "out"], ["--retrain"], ["--num-shards", 1, "--shard-id", 0], ["--engine", "local"]],
    ids=["plain", "-o", "--retrain", "shards", "--engine"],
)
def test_generate_is_refused_behind_a_closed_gate(
    semid: Any, closed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[Any]
) -> None:
    """Exit code 3, the variable named, nothing written; with --force it is done, and said."""
    monkeypatch.chdir(tmp_path)
    data = make_data(tmp_path / "data", 60)
    before = files_in(tmp_path)
    code, out, err = semid("generate", data, *QUICK, *more)
    assert (code, out) == (3, "")
    assert "ALLOW_SEMANTIC_GENERATION=0 forbids to make IDs" in err
    assert "--force" in err
    assert files_in(tmp_path) == before
    code, out, err = semid("generate", data, *QUICK, *more, "--force")
    assert (code, "60 items have IDs" in out) == (0, True), err
    assert "done all the same (--force)" in err


def test_own_files_and_new_items_are_refused_too(
    semid: Any, closed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate is about making IDs, whatever they are made of and wherever they go."""
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", vectors_of(90))
    generate_from_vectors(range(80), vectors_of(90)[:80], output_dir="made", config=CONFIG)  # a program's own decision
    before = files_in(tmp_path)
    for line in (["generate", "x.npy"], ["generate", "x.npy", "--parent", "made"], ["encode", "made", "x.npy"]):
        code, _, err = semid(*line, "--ids", "rows", "-o", "new", *(QUICK if line[0] == "generate" else []))
        assert (code, "ALLOW_SEMANTIC_GENERATION=0" in err) == (3, True), line
    assert files_in(tmp_path) == before
    np.save("known.npy", vectors_of(90)[:80])  # items that all have IDs: nothing is made, the gate says nothing
    assert semid("encode", "made", "known.npy", "--ids", "rows", "-o", "same")[0] == 0


def test_ids_that_are_there_are_no_affair_of_the_gate(
    semid: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start script may say `semid generate` everywhere; new items are refused where the gate is closed."""
    data = make_data(tmp_path / "data", 60)
    assert semid("generate", data, *QUICK)[0] == 0
    monkeypatch.setenv("ALLOW_SEMANTIC_GENERATION", "no")
    code, out, _ = semid("generate", data, *QUICK)
    assert (code, "Nothing was written" in out) == (0, True)
    write_embeddings(data, vectors_of(70))
    code, _, err = semid("generate", data, *QUICK)
    assert (code, "ALLOW_SEMANTIC_GENERATION=no forbids" in err) == (3, True)


@pytest.mark.parametrize("command", ["info", "verify", "report", "export"])
def test_nothing_advises_what_the_gate_forbids(semid: Any, closed: None, tmp_path: Path, command: str) -> None:
    """Where IDs may not be made, the way is to bring some."""
    data = make_data(tmp_path / "data", 60)
    more = ["-o", tmp_path / "ids.json"] if command == "export" else []
    _, out, err = semid(command, data, *more)
    assert "semid generate" not in out + err
    assert "ALLOW_SEMANTIC_GENERATION=0 forbids making IDs here" in out + err
    assert "SEMID_PARENT" in out + err


def test_a_damaged_file_gets_no_advice_that_the_gate_forbids(semid: Any, closed: None, tmp_path: Path) -> None:
    """Also the advice how damage heals."""
    (tmp_path / "bad.safetensors").write_bytes(b"\0" * 100)
    _, out, _ = semid("verify", tmp_path / "bad.safetensors")
    assert "semid generate" not in out


def test_a_function_is_the_programs_own_decision(closed: None, tmp_path: Path) -> None:
    """What a program calls by name is not what the gate is for: docs/production.md says so."""
    data = make_data(tmp_path / "data", 60)
    assert generate_semantic_ids(data, config=CONFIG).status == "trained"


# --- no space ---


def test_ids_that_only_this_process_has_are_a_failure(
    semid: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full cache: exit code 3 with the file's name, for a training, an extension, a retraining."""
    data = make_data(tmp_path / "data", 60)
    real = os.write

    def full(descriptor: int, data: Any) -> int:
        if len(data) > 1000:  # a probe of a byte still fits
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data)

    def refused(*more: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            code, out, err = semid("generate", data, *QUICK, *more)
        assert (code, out) == (3, ""), out
        last = err.splitlines()[-1]
        assert last.startswith("semid: error: ")
        assert "No space left on device" in last
        assert "Nothing was stored" in last
        assert re.search(r"No space left on device: '/[^']+/v1/[^']+/[^']+'", last)  # the folder and the file
        assert ".tmp" not in last

    refused()
    assert semid("generate", data, *QUICK)[0] == 0
    refused("--retrain")
    write_embeddings(data, vectors_of(70))
    refused()


@pytest.mark.parametrize("command", ["generate", "encode", "export", "report"])
def test_a_full_disk_is_named_with_the_file(
    semid: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """The kernel's error says no name; ours does, and it is the name that was asked for."""
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", vectors_of(80))
    generate_from_vectors(range(80), vectors_of(80), output_dir="made", config=CONFIG)
    line = {
        "generate": ["generate", "x.npy", "--ids", "rows", "-o", "out", *QUICK],
        "encode": ["encode", "made", "x.npy", "--ids", "rows", "-o", "out.safetensors"],
        "export": ["export", "made", "-o", "out.json"],
        "report": ["report", "made", "-o", "out.html"],
    }[command]

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        code, _, err = semid(*line)
    assert code == 3
    assert "'out" in err.splitlines()[-1]
    assert "No space left on device" in err


def test_read_only_data_and_a_cache_without_room(semid: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with a real disk that is full."""
    need_root()
    data = make_data(tmp_path / "data", 300)
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    with tmpfs(tmp_path / "disk", "size=128k") as disk, read_only(data):
        monkeypatch.setenv("SEMID_CACHE_DIR", str(disk / "cache"))
        with pytest.raises(OSError, match="No space"), (disk / "filler").open("wb") as filler:  # noqa: PT012
            while True:
                filler.write(bytes(1024))
                filler.flush()
        with (disk / "filler").open("r+b") as filler:
            filler.truncate((disk / "filler").stat().st_size - 16384)  # room for locks and notes
        code, out, err = semid("generate", data, "--device", "cpu", "--epochs", "1")
    assert (code, out) == (3, "")
    assert str(disk) in err.splitlines()[-1]
    assert "Nothing was" in err
