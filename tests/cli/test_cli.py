"""Every command does what it says, says what to do next, and fails in one line with the right exit code."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from world import ITEM0, SMALL, SmallDataset, make_data, vectors_of, write_embeddings

pytest.importorskip("click", reason='the extra "cli" is missing: pip install ".[cli]"')

from semid_dataset import SemanticIdTable, config
from semid_dataset import _files as files
from semid_dataset.cache import cache, folders
from semid_dataset.cli._app import run
from semid_dataset.codec import train as training
from semid_dataset.table.table import build_table_buffers

QUICK = ["--levels", "3", "--codes", "16", "--epochs", "2", "--device", "cpu"]


class Answered:
    """What a command line printed, and its exit code."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def semid(capsys: pytest.CaptureFixture[str]):
    """Run a command line in this process."""

    def call(*arguments: Any) -> Answered:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        return Answered(code, *capsys.readouterr())

    return call


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with vectors of 80 items, and of 90."""
    monkeypatch.chdir(tmp_path)
    vectors = vectors_of(90)
    for name, count in (("x", 80), ("more", 90)):
        np.save(f"{name}.npy", vectors[:count])
        Path(f"{name}.txt").write_text("".join(f"{500 + k}\n" for k in range(count)))
    return tmp_path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with IDs that a generation wrote; nobody changes it."""
    folder = tmp_path_factory.mktemp("made")
    np.save(folder / "x.npy", vectors_of(90)[:80])
    (folder / "x.txt").write_text("".join(f"{500 + k}\n" for k in range(80)))
    line = ["generate", f"{folder}/x.npy", "--ids", f"{folder}/x.txt", "-o", f"{folder}/out", *QUICK]
    assert run(line) == 0
    return folder / "out"


def whole(folder: Path) -> bool:
    """Whether a folder holds nothing that was half-written."""
    return not [path for path in folder.rglob("*") if path.name.endswith((".tmp", ".claim"))]


# --- what commands do ---


def test_own_vectors_get_ids(semid: Any, world: Path) -> None:
    """A table and the JSON, both of the same IDs, and what to do next."""
    done = semid("generate", "x.npy", "--ids", "x.txt", "-o", "out", *QUICK)
    assert done.code == 0
    assert done.err == ""  # no terminal, no progress
    assert "80 items have IDs of 3 levels" in done.out
    assert "Next: semid report out" in done.out
    table = SemanticIdTable.open("out/semid_table.safetensors")
    listed = json.loads(Path("out/semantic_id_dict.json").read_text())
    assert {int(item): codes for item, codes in listed.items()} == table.to_dict()
    assert table.info["settings"]["codebook_size"] == [16, 16, 16]
    assert whole(world)


def test_ids_are_not_replaced_by_accident(semid: Any, world: Path) -> None:
    """They would move; adding and starting over are both one option away."""
    semid("generate", "x.npy", "--ids", "x.txt", "-o", "out", *QUICK)
    before = SemanticIdTable.open("out/semid_table.safetensors")
    again = semid("generate", "more.npy", "--ids", "more.txt", "-o", "out", *QUICK)
    assert again.code == 2
    assert "--parent out" in again.err
    assert "--retrain" in again.err
    more = semid("generate", "more.npy", "--ids", "more.txt", "-o", "out", "--parent", "out")
    assert (more.code, "10 of them new" in more.out) == (0, True)
    after = SemanticIdTable.open("out/semid_table.safetensors")
    assert np.array_equal(after.codes(before.keys_array), before.codes_array)
    anew = semid("generate", "more.npy", "--ids", "more.txt", "-o", "out", "--retrain", "--seed", 7, *QUICK, "--json")
    assert anew.json["items"] == 90


def test_a_data_directory_gets_ids_in_its_cache(semid: Any, tmp_path: Path) -> None:
    """What the dataset reads afterwards; info says so before and after, and trains nothing."""
    data = make_data(tmp_path / "data", 60)
    before = semid("info", data, *QUICK)
    assert before.code == 1
    assert "Nothing answers" in before.out
    assert "this look makes no IDs" in before.out
    assert f"Next: semid generate {data}" in before.out
    assert not (data / ".semantic_ids" / "v1").exists()
    assert semid("generate", data, *QUICK).code == 0
    again = semid("generate", data, *QUICK)
    assert (again.code, "Nothing was written" in again.out) == (0, True)
    known = semid("info", data, *QUICK, "--json").json
    assert known["status"] == "cached"
    assert known["root"] == str(data / ".semantic_ids")
    assert known["roots"][0]["path"] == known["root"]
    assert known["provenance"]["files"]
    assert "relative_mse" in known["quality"]
    assert SmallDataset(data).semantic_id_dict.digest == known["digest"]
    text = semid("info", data, *QUICK).out
    assert "Answers: cached (lineage" in text
    assert f"{data}/.semantic_ids: 1 lineage, answers" in text
    write_embeddings(data, vectors_of(70))
    stale = semid("info", data, *QUICK)
    assert stale.code == 4
    assert "Answers: stale (10 items are new and this look makes no IDs)" in stale.out


def test_a_data_directory_is_written_elsewhere_on_demand(semid: Any, tmp_path: Path) -> None:
    """With -o its cache stays alone; with --retrain a new lineage begins there."""
    data = make_data(tmp_path / "data", 60)
    assert semid("generate", data, "-o", tmp_path / "out", *QUICK).code == 0
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["semantic_id_dict.json", "semid_table.safetensors"]
    assert [path.name for path in data.iterdir()] == ["creative_emb"]
    assert semid("verify", tmp_path / "out", "--embeddings", data).code == 0
    assert semid("generate", data, *QUICK).code == 0
    assert semid("generate", data, *QUICK, "--retrain", "--seed", 5).code == 0
    assert len(semid("info", data, *QUICK, "--json").json["roots"][0]["lineages"]) == 2
    assert semid("generate", data, "-o", tmp_path / "x", "--parent", tmp_path / "out").code == 2


def test_several_features_are_generated_checked_and_refused_as_one_matrix(semid: Any, tmp_path: Path) -> None:
    """The table knows how they become one vector; a single matrix is not what it was made of."""
    data = make_data(tmp_path / "data", 60)
    write_embeddings(data, vectors_of(60, dim=6, seed=4), "82")
    both = ["--feature", "81", "--feature", "82"]
    assert semid("generate", data, *both, "-o", tmp_path / "out", *QUICK).code == 0
    checked = semid("verify", tmp_path / "out", "--embeddings", data, *both, "--json")
    assert (checked.code, checked.json["embeddings"]["coverage"]) == (0, 1.0)
    page = semid("report", tmp_path / "out", "-o", tmp_path / "page.html", "--embeddings", data, *both)
    assert page.code == 0
    np.save(tmp_path / "one.npy", vectors_of(70))
    done = semid("encode", tmp_path / "out", tmp_path / "one.npy", "--ids", "rows", "-o", tmp_path / "more")
    assert (done.code, "several features" in done.err) == (3, True)
    done = semid("verify", tmp_path / "out", "--embeddings", data, "--ids", "rows")
    assert (done.code, "--ids belongs" in done.err) == (2, True)


def test_info_knows_every_kind_of_file(semid: Any, made: Path, tmp_path: Path) -> None:
    """A table, its folder, the JSON, an export."""
    semid("export", made, "-o", tmp_path / "ids.parquet")
    for path in (made, made / "semid_table.safetensors", made / "semantic_id_dict.json", tmp_path / "ids.parquet"):
        facts = semid("info", path, "--json").json
        assert (facts["items"], facts["levels"]) == (80, 3), path
    assert "new items cannot be encoded" in semid("info", made / "semantic_id_dict.json").out


def test_verify_finds_nothing_wrong_with_what_was_made(semid: Any, made: Path) -> None:
    """Alone, against its vectors, and as JSON."""
    vectors = ["--embeddings", made.parent / "x.npy", "--ids", made.parent / "x.txt"]
    assert semid("verify", made).code == 0
    assert semid("verify", made / "semantic_id_dict.json").code == 0
    facts = semid("verify", made, *vectors, "--json").json
    assert facts["ok"] is True
    assert facts["embeddings"]["coverage"] == 1.0
    assert facts["embeddings"]["reproduced"] == 1 - facts["embeddings"]["moved"] / 80
    assert facts["embeddings"]["relative_mse"] == pytest.approx(facts["embeddings"]["relative_mse_at_fit"])


def forged(made: Path, path: Path, **changes: Any) -> Path:
    """Write a table with a checksum that fits, and content that does not."""
    table = SemanticIdTable.open(made / "semid_table.safetensors")
    info, codes = dict(table.info), table.codes_array.copy()
    if (first := changes.pop("codes", None)) is not None:
        codes[: len(first)] = first
    info.update(changes)
    path.write_bytes(b"".join(build_table_buffers(table.keys_array, codes, info=info, weights=table.weights)))
    return path


def test_verify_finds_what_is_wrong(semid: Any, made: Path, tmp_path: Path) -> None:
    """Every kind of fault, each with exit code 1 and in words."""
    data = bytearray((made / "semid_table.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "flipped.safetensors").write_bytes(data)
    (tmp_path / "bad.json").write_text('{"1": [1, 2], "2": [1]}')
    (tmp_path / "cut.json").write_text('{"1": [1, 2')
    faults = {
        tmp_path / "flipped.safetensors": "checksum",
        tmp_path / "bad.json": "key",
        tmp_path / "cut.json": "JSON",
        forged(made, tmp_path / "a.safetensors", codes=[[1, 2, 3], [1, 2, 3]]): "2 items share an ID",
        forged(made, tmp_path / "b.safetensors", codes=[[0, 0, 0]]): "ID of zeros",
        forged(made, tmp_path / "c.safetensors", codes=[[77, 0, 0]]): "beyond the sizes",
        forged(made, tmp_path / "d.safetensors", generation=4): "history ends at generation 0",
    }
    for path, words in faults.items():
        done = semid("verify", path)
        assert (done.code, done.err) == (1, ""), path
        assert re.search(rf"Wrong: .*{words}", done.out), done.out
        assert "Next: " in done.out
        assert semid("verify", path, "--json").json["ok"] is False


def test_verify_tells_other_vectors_and_missing_items(semid: Any, made: Path, tmp_path: Path) -> None:
    """The same ids for other vectors, items without an ID, codes that do not come out again."""
    np.save(tmp_path / "other.npy", vectors_of(80, seed=9) * 3)
    ids = made.parent / "x.txt"
    done = semid("verify", made, "--embeddings", tmp_path / "other.npy", "--ids", ids)
    assert (done.code, "not those of these items" in done.out) == (1, True)
    np.save(tmp_path / "more.npy", vectors_of(90))
    done = semid("verify", made, "--embeddings", tmp_path / "more.npy", "--ids", "rows")
    assert (done.code, "no ID" in done.out) == (1, True)
    assert f"Next: semid encode {made} {tmp_path / 'more.npy'} -o DIR " in done.out
    assert "--retrain" not in done.out  # nothing is wrong with the IDs that there are
    table = SemanticIdTable.open(made / "semid_table.safetensors")
    other = table.codes_array.copy()
    other[:40, 2] = (other[:40, 2] + 1) % 16
    forged(made, tmp_path / "moved.safetensors", codes=other)
    done = semid("verify", tmp_path / "moved.safetensors", "--embeddings", made.parent / "x.npy", "--ids", ids)
    assert (done.code, "do not come out again" in done.out) == (1, True)


def test_new_items_are_encoded_and_known_ones_keep_their_ids(semid: Any, world: Path, made: Path) -> None:
    """Into a folder, a table, or an export of these items alone."""
    assert semid("encode", made, "more.npy", "--ids", "more.txt", "-o", "grown").code == 0
    assert semid("encode", made, "more.npy", "--ids", "more.txt", "-o", "t.safetensors", "--json").json["new"] == 10
    some = semid("encode", made, "more.npy", "--ids", "more.txt", "-o", "some.json")
    assert (some.code, "to keep these IDs" in some.out) == (0, True)
    grown = SemanticIdTable.open("grown/semid_table.safetensors")
    assert grown.digest == SemanticIdTable.open("t.safetensors").digest
    assert json.loads(Path("some.json").read_text()) == {str(item): codes for item, codes in grown.items()}
    compared = semid("diff", made, "grown", "--json")
    assert compared.code == 0
    assert compared.json == {
        "unchanged": 80,
        "moved": {},
        "added": list(range(580, 590)),
        "removed": [],
        "next": ["NEW may replace OLD: no ID moved"],
    }


def test_encoding_vectors_of_another_kind_is_refused_and_forced_aloud(semid: Any, world: Path, made: Path) -> None:
    """What was measured of new items is said in every call; -o gets nothing where they are refused."""
    fine = semid("encode", made, "more.npy", "--ids", "more.txt", "-o", "grown", "--json").json["measured"]
    assert (fine["new"], fine["items"]) == (10, 90)
    assert fine["relative_error_raw"] < 3 * fine["relative_error_expected"]
    assert fine["length"] == pytest.approx(1, abs=0.2)
    assert "New items: error 0." in semid("encode", made, "more.npy", "--ids", "more.txt", "-o", "again").out
    np.save("long.npy", 12 * vectors_of(90))
    for line in (["encode", made, "long.npy"], ["generate", "long.npy", "--parent", made]):
        refused = semid(*line, "--ids", "more.txt", "-o", "long")
        assert (refused.code, refused.out) == (3, "")
        assert "10 new items are not such as" in refused.err
        assert "12 times as long" in refused.err
        assert not Path("long").exists()
        forced = semid(*line, "--ids", "more.txt", "-o", "long", "--force")
        assert (forced.code, "lie far" in forced.err) == (0, True)
        assert semid("diff", made, "long").code == 0
        Path("long/semid_table.safetensors").unlink()
        Path("long/semantic_id_dict.json").unlink()
        Path("long").rmdir()


def test_diff_tells_what_moved_came_and_went(semid: Any, tmp_path: Path) -> None:
    """Any two files of IDs; moved and gone IDs are exit code 1."""
    (tmp_path / "old.json").write_text('{"1": [1, 1], "2": [2, 2], "3": [3, 3]}')
    (tmp_path / "new.json").write_text('{"1": [1, 1], "2": [2, 9], "4": [4, 4]}')
    done = semid("diff", tmp_path / "old.json", tmp_path / "new.json")
    assert done.code == 1
    assert "1 unchanged, 1 moved, 1 added, 1 removed" in done.out
    assert "moved 2: [2, 2] -> [2, 9]" in done.out
    assert "Next: recommenders trained on OLD" in done.out
    assert semid("diff", tmp_path / "old.json", tmp_path / "old.json").code == 0
    (tmp_path / "longer.json").write_text('{"1": [1, 1, 0]}')
    assert semid("diff", tmp_path / "longer.json", tmp_path / "old.json", "--json").json["moved"] == {
        "1": [[1, 1, 0], [1, 1]]
    }


def test_every_format_is_exported_and_read_again(semid: Any, made: Path, tmp_path: Path) -> None:
    """All at once into a folder, or one by its ending."""
    done = semid("export", made, "-f", "all", "-o", tmp_path / "all")
    assert done.code == 0
    for path in sorted((tmp_path / "all").iterdir()):
        if not path.name.endswith((".items.json", ".tokens.json")):
            assert semid("diff", made, path, "--json").json["unchanged"] == 80, path
    one = semid("export", made, "-o", tmp_path / "item.index.json", "--style", "item")
    assert "item.tokens.json --style item" in one.out
    assert "<item_L0_C" in (tmp_path / "item.index.json").read_text()


def test_a_data_directory_stands_for_the_ids_that_served_it(semid: Any, tmp_path: Path) -> None:
    """Nobody wants to type the path of a file in a cache; a hand-made file counts too."""
    data = make_data(tmp_path / "data")
    assert semid("verify", data).code == 3
    assert semid("generate", data, *QUICK).code == 0
    assert semid("verify", data).code == 0
    assert semid("report", data, "-o", tmp_path / "page.html").code == 0
    other = make_data(tmp_path / "other")
    (other / "semantic_id_dict.json").write_text('{"5": [1, 2]}')
    assert "1 item" in semid("verify", other).out


def test_two_tables_are_set_side_by_side(semid: Any, world: Path, made: Path) -> None:
    """In text, as JSON, and as a page where one is asked for."""
    done = semid("compare", made, made)
    assert done.code == 0
    assert "Shared IDs before uniqueness" in done.out
    assert re.search(r"first 1 +100 % +100 %", done.out)
    done = semid("compare", made, made, "-o", "c.html", "--lang", "zh", "--json")
    assert json.loads(done.out)["items"]["only_a"] == 0
    assert "zh-CN" in Path("c.html").read_text("utf-8")


def test_a_report_is_written(semid: Any, world: Path, made: Path) -> None:
    """With vectors and titles in any of their forms."""
    pytest.importorskip("semid_dataset.report")
    done = semid("report", made, "-o", "page.html")
    assert (done.code, Path("page.html").read_text()[:15].lower()) == (0, "<!doctype html>")
    for name, text in {
        "t.json": '{"500": "A lamp"}',
        "t.jsonl": '{"item_id": 500, "title": "A lamp"}\n',
        "t.csv": '500,"A lamp"\n',
        "t.tsv": "500\tA lamp\n",
    }.items():
        Path(name).write_text(text)
        assert semid("report", made, "-o", "page.html", "--titles", name).code == 0
        assert "A lamp" in Path("page.html").read_text(), name
    assert semid("report", made, "-o", "page.html", "--embeddings", "x.npy", "--ids", "x.txt").code == 0
    Path("bad.json").write_text("[]")
    assert semid("report", made, "--titles", "bad.json").code == 3
    np.save("few.npy", vectors_of(5))
    assert "a report needs all" in semid("report", made, "--embeddings", "few.npy", "--ids", "rows").err


# --- prune ---


def a_used_cache(data: Path) -> tuple[folders.CacheFolder, str]:
    """Make a lineage of two generations with all that may lie around in a cache."""
    make_data(data, 60)
    SmallDataset(data).semantic_id_dict  # noqa: B018 - reading it makes it
    write_embeddings(data, vectors_of(70))
    table = SmallDataset(data).semantic_id_dict
    assert (table.status, table.generation) == ("extended", 1)
    root = folders.CacheFolder(data / ".semantic_ids", data)
    folder = root.versioned / table.lineage
    (folder / "1.safetensors.damaged-0123456789ab").write_bytes(b"x")
    leftover = folder / ".2.safetensors.0123.tmp"
    leftover.write_bytes(b"x")
    os.utime(leftover, (time.time() - 7200,) * 2)
    (folder / ".3.safetensors.4567.tmp").write_bytes(b"somebody is writing this")
    cache.publish_table(root, "forgotten-lineage", 0, build_table_buffers(np.arange(3), np.ones((3, 3), np.uint8)))
    return root, table.lineage


def test_pruning_finds_what_nobody_needs_and_deletes_on_demand_only(semid: Any, tmp_path: Path) -> None:
    """Old generations, damaged files that were healed, leftovers; the newest, notes and locks stay."""
    data = tmp_path / "data"
    root, name = a_used_cache(data)
    everything = sorted(path for path in root.path.rglob("*") if path.is_file())
    assert "nothing to delete" in semid("prune", root.path).out  # all of it is younger than a day
    dry = semid("prune", root.path, "--older-than", 0)
    assert (dry.code, "Would delete 3 files" in dry.out, "Next: the same with --delete" in dry.out) == (0, True, True)
    assert sorted(path for path in root.path.rglob("*") if path.is_file()) == everything
    facts = semid("prune", data, "--older-than", 0, "--delete", "--json").json
    gone = {Path(one["path"]) for one in facts["files"]}
    folder = root.versioned / name
    assert gone == {
        folder / "0.safetensors",
        folder / "1.safetensors.damaged-0123456789ab",
        folder / ".2.safetensors.0123.tmp",
    }
    assert sorted(path for path in root.path.rglob("*") if path.is_file()) == sorted(set(everything) - gone)
    table = SmallDataset(data).semantic_id_dict
    assert (table.status, len(table), table.lineage) == ("cached", 70, name)


def test_pruning_lineages_leaves_those_in_use(semid: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A note names it, or it is everybody's parent."""
    data = tmp_path / "data"
    root, name = a_used_cache(data)
    forgotten = root.versioned / "forgotten-lineage"
    monkeypatch.setenv("SEMID_PARENT", str(forgotten / "0.safetensors"))
    semid("prune", root.path, "--older-than", 0, "--lineages", "--delete")
    assert (forgotten / "0.safetensors").exists()
    monkeypatch.delenv("SEMID_PARENT")
    semid("prune", root.path, "--older-than", 0, "--lineages", "--delete")
    assert not forgotten.exists()
    assert (root.versioned / name / "1.safetensors").exists()
    assert SmallDataset(data).semantic_id_dict.status == "cached"


def test_pruning_keeps_the_trace_of_a_loss(semid: Any, tmp_path: Path) -> None:
    """A damaged table without any other tells the next training that IDs were lost."""
    root = folders.CacheFolder(tmp_path, tmp_path)
    cache.publish_table(root, "lost-lineage", 0, [b"nonsense"])
    aside = files.set_aside(
        root.versioned / "lost-lineage" / "0.safetensors",
        (root.versioned / "lost-lineage" / "0.safetensors").lstat().st_ino,
    )
    assert semid("prune", tmp_path, "--older-than", 0, "--delete").code == 0
    assert aside is not None
    assert aside.exists()


# --- failing ---


def test_bad_calls_are_one_line_and_exit_code_2(semid: Any, world: Path, made: Path) -> None:
    """The line names the fault and where help is; nothing is written."""
    calls: list[tuple[list[Any], str]] = [
        (["generate", "none.npy"], "'none.npy' does not exist"),
        (["generate", "x.npy", "--ids", "x.txt"], "-o DIR"),
        (["generate", "x.npy", "-o", "out", "--codes", "many"], "--codes"),
        (["generate", "x.npy", "--ids", "x.txt", "-o", "out", "--device", "abacus"], "no device 'abacus'"),
        (["generate", "x.npy", "--ids", "x.txt", "-o", "out", "--levels", 99], "num_quantizers"),
        (["generate", "x.npy", "--ids", "x.txt", "-o", "out", "--codes", "4,4"], "codebook_size has 2 entries"),
        (["generate", world, "--ids", "x.txt"], "--ids belongs"),
        (["generate"], "Missing argument"),
        (["generate", "x.npy", "--epoch", 3], "No such option"),
        (["paint"], "No such command"),
        (["export", made, "-o", "ids.xyz"], "ending"),
        (["export", made, "-o", "ids.json", "-f", "yaml"], "yaml"),
        (["encode", made, "x.npy", "--ids", "x.txt"], "Missing option"),
        (["encode", made, world, "-o", "out"], "--parent"),
    ]
    before = sorted(world.rglob("*"))
    for call, words in calls:
        done = semid(*call)
        assert (done.code, done.out) == (2, ""), call
        assert words in done.err, (call, done.err)
        assert done.err.count("\n") == 1
        assert "--help" in done.err
    assert sorted(world.rglob("*")) == before


def test_bad_input_is_one_line_and_exit_code_3(semid: Any, world: Path, made: Path) -> None:
    """Missing files, wrong sizes, corrupt tables, places that take no file: named, and nothing half-written."""
    Path("short.txt").write_text("1\n2\n")
    Path("twice.txt").write_text("7\n" * 80)
    broken = np.load("x.npy")
    broken[11, 0] = np.inf
    np.save("nan.npy", broken)
    np.save("wide.npy", vectors_of(5, dim=12))
    Path("broken.safetensors").write_bytes(b"\0" * 100)
    Path("afile").write_text("x")
    calls: list[tuple[list[Any], str]] = [
        (["generate", "x.npy", "-o", "out"], "no items"),
        (["generate", "x.npy", "--ids", "none.txt", "-o", "out"], "none.txt"),
        (["generate", "x.npy", "--ids", "short.txt", "-o", "out"], "2 items; 'x.npy' has 80 rows"),
        (["generate", "x.npy", "--ids", "twice.txt", "-o", "out"], "row 1: item 7 was in row 0"),
        (["generate", "nan.npy", "--ids", "x.txt", "-o", "out"], "row 11 (item 511)"),
        (["generate", world, *QUICK], "no folder of embeddings"),
        (["generate", "x.npy", "--ids", "x.txt", "-o", "afile/out", *QUICK], "afile"),
        (["generate", "x.npy", "--ids", "x.txt", "-o", "out", "--parent", "broken.safetensors"], "broken.safetensors"),
        (["encode", made, "wide.npy", "--ids", "rows", "-o", "out"], "vectors of 8 numbers, these have 12"),
        (["encode", made, "wide.npy", "--ids", "rows", "-o", "ids.xyz"], "ending"),
        (["info", "broken.safetensors"], "broken.safetensors"),
        (["export", "broken.safetensors", "-o", "x.json"], "broken.safetensors"),
        (["export", made, "-o", "/proc/ids.json"], "/proc"),
        (["diff", made, "x.npy"], "x.npy"),
        (["verify", made, "--embeddings", "x.npy"], "no items"),
        (["encode", made / "semantic_id_dict.json", "x.npy", "--ids", "x.txt", "-o", "out"], "semantic_id_dict.json"),
    ]
    before = sorted(world.rglob("*"))
    for call, words in calls:
        done = semid(*call)
        assert (done.code, done.out) == (3, ""), (call, done.err)
        assert words in done.err, (call, done.err)
        assert done.err.startswith("semid: error: ")
        assert done.err.count("\n") == 1, done.err
    assert sorted(world.rglob("*")) == before


def test_a_place_that_takes_no_file_is_said_before_the_work(
    semid: Any, world: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after minutes of training; and by the name that was given, not that of a temporary file."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied", "somewhere")

    with monkeypatch.context() as patch:
        patch.setattr("tempfile.TemporaryFile", refuse)
        patch.setattr(training, "train", None)
        done = semid("generate", "x.npy", "--ids", "x.txt", "-o", "out", *QUICK)
        assert (done.code, done.err) == (3, "semid: error: 'out': Permission denied\n")
    real = os.open

    def refuse_temporary(path: Any, *args: Any, **kwargs: Any) -> int:
        if str(path).endswith(".tmp"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse_temporary)
    done = semid("export", made, "-o", world / "ids.json")
    assert (done.code, done.err) == (3, f"semid: error: '{world}/ids.json': Permission denied\n")


def test_a_data_directory_without_a_writable_cache_is_an_error_before_the_work(
    semid: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """IDs that end with the process are no answer to a command; where they are there already, none need be written."""
    data = make_data(tmp_path / "data", 60)
    with monkeypatch.context() as patch:
        patch.setattr(folders.CacheFolder, "takes_writes", lambda _: False)
        patch.setattr(training, "train", None)
        done = semid("generate", data, *QUICK)
        assert (done.code, done.out, done.err.count("\n")) == (3, "", 1)
        assert "No cache folder takes a write" in done.err
        assert "Give -o DIR" in done.err
        assert [path.name for path in data.iterdir()] == ["creative_emb"]
    assert semid("generate", data, *QUICK).code == 0
    monkeypatch.setattr(folders.CacheFolder, "takes_writes", lambda _: False)
    again = semid("generate", data, *QUICK)
    assert (again.code, "Nothing was written" in again.out) == (0, True)
    assert semid("generate", data, *QUICK, "--retrain").code == 3


def test_files_without_a_quantizer_are_named_for_what_they_lack(semid: Any, world: Path, made: Path) -> None:
    """A JSON holds IDs; what encodes new items lies beside it. Torch's advice to execute files is not passed on."""
    ids = made / "semantic_id_dict.json"
    for line in (["encode", ids, "x.npy"], ["generate", "x.npy", "--parent", ids]):
        done = semid(*line, "--ids", "x.txt", "-o", "new")
        assert (done.code, "no quantizer" in done.err, "semid_table.safetensors" in done.err) == (3, True, True)
    Path("bad.pt").write_bytes(b"nonsense")
    done = semid("info", "bad.pt")
    assert (done.code, "weights_only" in done.err, "torch.save" in done.err) == (3, False, True)
    assert "semid export" in semid("verify", "bad.pt").out


def test_a_pipe_is_refused_and_not_waited_for(semid: Any, world: Path, made: Path) -> None:
    """Nobody may ever write into it."""
    for name in ("pipe.safetensors", "pipe.npy", "pipe.txt"):
        os.mkfifo(name)
    lines: list[list[Any]] = [
        ["info", "pipe.safetensors"],
        ["generate", "pipe.npy", "--ids", "rows", "-o", "new"],
        ["generate", "x.npy", "--ids", "pipe.txt", "-o", "new"],
        ["encode", made, "pipe.npy", "--ids", "rows", "-o", "new"],
        ["report", made, "--titles", "pipe.txt"],
    ]
    for line in lines:
        done = semid(*line)
        assert (done.code, "not a regular file" in done.err) == (3, True), line


def test_a_failure_is_json_too_where_json_was_asked_for(semid: Any) -> None:
    """On stdout, with the line on stderr as ever."""
    done = semid("info", "/nowhere", "--json")
    assert (done.code, done.json["exit_code"]) == (2, 2)
    assert done.json["error"] in done.err


def test_a_fault_of_ours_is_one_line(semid: Any, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The traceback is shown to who asks for it."""

    def fault(*given: object) -> None:
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr("semid_dataset.cli.info.open_ids", fault)
    done = semid("info", made)
    assert (done.code, done.err.count("\n")) == (3, 1)
    assert "unexpected ZeroDivisionError: of all things" in done.err
    assert "Traceback" in semid("info", made, "-v").err


STRUCK = """
import os, pkgutil, signal, sys, time
from semid_dataset.__main__ import main
module, _, name = sys.argv[1].rpartition(".")
struck = lambda *_, **__: (os.kill(os.getpid(), signal.SIGINT), time.sleep(5))
setattr(pkgutil.resolve_name(module), name, struck)
sys.argv = ["semid", *sys.argv[2:]]
sys.exit(main())
"""  # the command, which Ctrl-C strikes as it begins to train or to sync


def test_ctrl_c_leaves_everything_as_it_was(semid: Any, world: Path) -> None:
    """During training and during the write: one line, exit code 130, no part of a file."""
    semid("generate", "x.npy", "--ids", "x.txt", "-o", "out", *QUICK)
    before = {path: path.read_bytes() for path in Path("out").iterdir()}
    line = ["generate", "more.npy", "--ids", "more.txt", "-o", "out", "--retrain", *QUICK]
    for name in ("semid_dataset.codec.train.train", "os.fsync"):
        done = subprocess.run([sys.executable, "-c", STRUCK, name, *line], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (130, ""), done.stderr
        assert done.stderr.strip() == "semid: interrupted; files that were there before are as they were"
        assert {path: path.read_bytes() for path in Path("out").iterdir()} == before


def test_a_reader_that_goes_away_is_no_traceback(made: Path) -> None:
    """As in `semid diff a b --json | head -1`."""
    line = f"{shlex.quote(sys.executable)} -m semid_dataset info {shlex.quote(str(made))} --json | true"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


# --- what people read ---


def test_progress_is_for_terminals(world: Path) -> None:
    """With a terminal on stderr the lines of a training are shown there; stdout is the answer alone."""
    pty = pytest.importorskip("pty")
    main, other = pty.openpty()
    line = [sys.executable, "-m", "semid_dataset", "generate", "x.npy", "--ids", "x.txt", "-o", "out", *QUICK, "--json"]
    done = subprocess.run(line, stdout=subprocess.PIPE, stderr=other, check=True)
    os.close(other)
    shown = os.read(main, 1 << 16).decode()
    os.close(main)
    assert "Training" in shown
    assert "\x1b[" not in shown  # no colour, with NO_COLOR or without
    assert json.loads(done.stdout)["items"] == 80


def test_the_settings_of_the_command_line_are_the_configuration(semid: Any) -> None:
    """A new field of the configuration has an option, or a reason to have none."""
    shown = semid("generate", "--help").out
    names = {
        "sample_items": "sample",
        "num_quantizers": "levels",
        "codebook_size": "codes",
        "num_epochs": "epochs",
        "unique": "shared",
    }
    for name in config.SemanticIdConfig().to_dict():
        if name not in {"commitment_cost", "lock_timeout"}:
            assert f"--{names.get(name, name).replace('_', '-')}" in shown, name
    assert SMALL.num_quantizers == 3
    assert ITEM0


# --- names of files ---


def test_lines_to_go_on_with_can_be_pasted(semid: Any, world: Path) -> None:
    """Where folders have blanks, quotation marks or bytes that are no text in their names."""
    for number, name in enumerate(["o u t", "it's", os.fsdecode(b"\xcc\xd8")]):
        done = semid("generate", "x.npy", "--ids", "x.txt", "-o", name, *QUICK)
        assert done.code == 0, done.err
        if number == 2:  # what a terminal cannot show is escaped
            continue
        for step in done.out.split("Next: ")[1].splitlines():
            words = shlex.split(step.strip().partition("     ")[0])
            assert words[2] == name
            assert semid(*words[1:]).code == 0
        said = semid("generate", "x.npy", "--ids", "x.txt", "-o", name, *QUICK).err
        assert f"--parent {shlex.quote(name)}," in said


def test_long_names_are_written(semid: Any, world: Path, made: Path) -> None:
    """As long as the file system takes them; the file that is written first has a shorter one."""
    for name in ("a" * 235 + ".json", "b" * 236 + ".npy", "\u540d" * 76 + ".parquet", "c" * 250 + ".json"):
        assert semid("export", made, "-o", name).code == 0
        assert Path(name).exists()
    assert "File name too long" in semid("export", made, "-o", "d" * 251 + ".json").err
    assert whole(world)


def test_a_folder_of_parts_is_no_data_directory(semid: Any, world: Path) -> None:
    """Its rows are read one file after the other; `--items` and `--vectors` name columns."""
    Path("parts").mkdir()
    for number, rows in enumerate(np.array_split(np.arange(80), 3)):
        lines = [json.dumps({"code": f"p-{row}", "v": vectors_of(90)[row].tolist()}) for row in rows]
        Path(f"parts/part-{number}.json").write_text("\n".join(lines))
    assert "--items COLUMN" in semid("generate", "parts", "-o", "out", *QUICK).err
    done = semid("generate", "parts", "--items", "code", "--vectors", "v", "-o", "out", *QUICK)
    assert (done.code, "80 items have IDs" in done.out) == (0, True), done.err
    assert semid("verify", "out", "--embeddings", "parts", "--items", "code").code == 0
    assert semid("encode", "out", "parts", "--items", "code", "-o", "again").code == 0


def test_parts_with_names_of_another_system_make_ids(semid: Any, tmp_path: Path) -> None:
    """Bytes that are no UTF-8, also where the embeddings are streamed, and on standard output."""
    data = tmp_path / "data"
    make_data(data, 60)
    folder = data / "creative_emb" / "emb_91_4"
    folder.mkdir()
    rows = [json.dumps({"anonymous_cid": ITEM0 + k, "emb": [k, k % 7, k % 5, 1]}) for k in range(60)]
    Path(os.fsdecode(os.fsencode(folder) + b"/part-\xcc\xd8\xd5\xf7")).write_text("\n".join(rows))
    for more in ([], ["--engine", "local", "--retrain"]):
        done = semid("generate", data, "--feature", 91, *QUICK, *more)
        assert done.code == 0, done.err
    done = semid("info", data, "--feature", 91, *QUICK[:4])
    assert done.code == 0, done.err
    assert "part-\\udccc" in done.out
