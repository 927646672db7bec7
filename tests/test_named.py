"""What a caller names (a parent, an expectation, a pin) is what answers, or an error says why it cannot."""

import json
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from faultkit import read_only
from world import ITEM0, SMALL, BareDataset, SmallMixinDataset, vectors_of, write_embeddings

from semid_dataset import SemanticIdTable, generate_semantic_ids, generate_semantic_ids_on_demand
from semid_dataset.errors import DigestError, ParentError, PinError, SemanticIdWarning
from semid_dataset.format.tensors import serialize
from semid_dataset.table.build import TableData

CATALOGUE = vectors_of(4000)


def fresh(data_dir: Path, items: int = 200) -> Path:
    """A data directory with the first items of one catalogue."""
    write_embeddings(data_dir, CATALOGUE[:items])
    return data_dir


def served(data_dir: Path, **settings: Any) -> SemanticIdTable:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SemanticIdWarning)
        return SmallMixinDataset(data_dir).prepare_semantic_ids(**settings)


def moved(before: dict[Any, list[int]], table: SemanticIdTable) -> int:
    return sum(table[item] != codes for item, codes in before.items())


def other_table(tmp_path: Path) -> SemanticIdTable:
    """A table of the same items with other IDs."""
    write_embeddings(tmp_path / "elsewhere", CATALOGUE[:200])
    return generate_semantic_ids(
        tmp_path / "elsewhere", ["81"], config=replace(SMALL, seed=9), output_dir=tmp_path / "elsewhere" / "out"
    )


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A table beside a recommender's weights; nothing else of its training is left."""
    served(fresh(tmp_path / "train")).save(tmp_path / "checkpoint" / "semid_table.safetensors")
    shutil.rmtree(tmp_path / "train")
    return tmp_path / "checkpoint"


# --- a parent is taken in ---


def test_a_parent_that_answered_answers_again_where_nobody_names_it(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that forgets SEMID_PARENT trains nothing: all items were known, so nothing but the parent was kept."""
    data = fresh(tmp_path / "evaluation", 150)
    before = served(data, parent=checkpoint).to_dict()
    shutil.rmtree(checkpoint)
    table = served(data)
    assert (table.status, moved(before, table)) == ("cached", 0)
    fresh(data, 230)
    monkeypatch.setenv("ALLOW_SEMANTIC_GENERATION", "0")
    table = served(data)
    assert (table.status, moved(before, table)) == ("stale", 0)
    monkeypatch.delenv("ALLOW_SEMANTIC_GENERATION")
    table = served(data)
    assert (table.status, len(table), moved(before, table)) == ("extended", 230, 0)


def test_a_parent_named_anew_answers_in_place_of_the_one_before(tmp_path: Path, checkpoint: Path) -> None:
    """The last that was named is the one that answered before."""
    data = fresh(tmp_path / "evaluation")
    other = other_table(tmp_path)
    ids = other.to_dict()
    served(data, parent=checkpoint)
    assert moved(ids, served(data, parent=other.path)) == 0
    assert moved(ids, served(data)) == 0


@pytest.mark.parametrize("new", ["as long", "shorter"])
def test_a_file_copied_over_a_parent_changes_nothing_for_its_readers(
    tmp_path: Path, checkpoint: Path, new: str
) -> None:
    """A server maps the table that the cache took in, not the checkpoint's."""
    data = fresh(tmp_path / "eval")
    file = checkpoint / "semid_table.safetensors"
    table = served(data, parent=checkpoint)
    before = table.to_dict()
    assert table.path is not None
    assert "parents" in str(table.path)
    content = bytearray(file.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    with file.open("r+b") as opened:  # `cp new file` writes into the same inode
        opened.write(content if new == "as long" else b"")
        opened.truncate(len(content) if new == "as long" else 10)
    assert table.to_dict() == before
    assert table.codes_array.sum() >= 0


def test_published_files_are_read_only(tmp_path: Path) -> None:
    """`cp new old` is refused to everybody but root."""
    table = served(fresh(tmp_path))
    assert table.path is not None
    assert table.path.stat().st_mode & 0o222 == 0


def test_where_no_cache_takes_it_a_parent_is_kept_in_memory(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a copy over it would move IDs, or kill."""
    data = fresh(tmp_path / "eval")
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    with read_only(data):
        table = served(data, parent=checkpoint)
    assert table.path is None
    assert len(table) == 200


def test_a_parent_that_states_a_digest_that_is_not_its_own_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    """It would be served in place of the one with that digest."""
    file = checkpoint / "semid_table.safetensors"
    table = SemanticIdTable.open(file)
    other = TableData(table.keys_array, table.codes_array[::-1].copy(), table.header, table.weights)
    content = b"".join(serialize(other.arrays, table.info))
    file.unlink()
    file.write_bytes(content)
    with pytest.raises(ParentError, match="states the digest"):
        served(fresh(tmp_path / "eval"), parent=file)


# --- a parent is looked at first ---


@pytest.mark.parametrize("parent", [7, object(), b"x", ["a"], {"a": 1}])
@pytest.mark.parametrize("with_json", [False, True])
def test_what_is_no_parent_is_an_error(tmp_path: Path, parent: Any, with_json: bool) -> None:
    """Also where a file of IDs lies in the directory."""
    data = fresh(tmp_path)
    if with_json:
        (data / "semantic_id_dict.json").write_text(json.dumps({str(ITEM0): [1, 2, 3]}))
    with pytest.raises(ParentError, match="parent"):
        served(data, parent=parent)


@pytest.mark.parametrize("how", ["argument", "variable", "descriptor"])
@pytest.mark.parametrize("with_json", [False, True])
def test_a_parent_that_is_missing_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, with_json: bool
) -> None:
    """However it was named."""
    from semid_dataset import LazySemanticIds

    data, parent = fresh(tmp_path), tmp_path / "nowhere"
    if with_json:
        (data / "semantic_id_dict.json").write_text(json.dumps({str(ITEM0): [1, 2, 3]}))

    class Named(BareDataset):
        semantic_id_dict = LazySemanticIds(config=SMALL, parent=parent if how == "descriptor" else None)

    if how == "variable":
        monkeypatch.setenv("SEMID_PARENT", str(parent))
    ask = (lambda: served(data, parent=parent)) if how == "argument" else (lambda: Named(data).semantic_id_dict)
    with pytest.raises(ParentError, match="does not exist"):
        ask()


def test_the_original_function_still_never_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says it and returns default IDs."""
    monkeypatch.setenv("SEMID_PARENT", str(tmp_path / "nowhere"))
    with pytest.warns(SemanticIdWarning, match="does not exist"):
        assert generate_semantic_ids_on_demand(fresh(tmp_path), ["81"]).status == "default"


def test_a_parent_beside_a_file_that_contradicts_it_is_an_error(tmp_path: Path, checkpoint: Path) -> None:
    """Which of the two is meant, only a person knows."""
    data = fresh(tmp_path / "eval")
    (data / "semantic_id_dict.json").write_text(json.dumps({str(ITEM0): [9, 9, 9]}))
    with pytest.raises(ParentError, match=r"1 of 1 common items another ID"):
        served(data, parent=checkpoint)


def test_our_own_export_beside_its_parent_is_extended_where_the_cache_is_gone(tmp_path: Path) -> None:
    """A container that starts anew: the directory keeps the export, the checkpoint the table."""
    data = fresh(tmp_path / "data")
    table = served(data)
    table.save(tmp_path / "ckpt" / "semid_table.safetensors")
    before = table.to_dict()
    shutil.rmtree(data / ".semantic_ids")
    write_embeddings(data, CATALOGUE[:250])
    again = served(data, parent=tmp_path / "ckpt")
    assert (again.status, len(again), moved(before, again)) == ("extended", 250, 0)
    write_embeddings(data, CATALOGUE[:260])
    later = served(data, parent=tmp_path / "ckpt")
    assert (later.status, len(later), moved(again.to_dict(), later)) == ("extended", 260, 0)


def test_a_later_export_beside_an_earlier_parent_moves_no_id(tmp_path: Path) -> None:
    """What was added after the checkpoint stands in the export alone, once the cache is gone."""
    data = fresh(tmp_path / "data")
    served(data).save(tmp_path / "ckpt" / "semid_table.safetensors")
    write_embeddings(data, CATALOGUE[:250])
    before = served(data).to_dict()
    shutil.rmtree(data / ".semantic_ids")
    write_embeddings(data, CATALOGUE[:270])
    table = served(data, parent=tmp_path / "ckpt")
    assert (table.status, len(table), moved(before, table)) == ("extended", 270, 0)


class OriginalDataset(SmallMixinDataset):
    """As the original's: its `__init__` assigns whatever lies in the data directory."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir)
        self.semantic_id_dict = self._load_semantic_ids()  # type: ignore[assignment]

    def _load_semantic_ids(self) -> dict[str, list[int]]:
        path = self.data_dir / "semantic_id_dict.json"
        return json.loads(path.read_text()) if path.exists() else {}


def test_what_the_dataset_itself_read_back_is_no_pin(tmp_path: Path) -> None:
    """Run 1 exports, run 2 reads it back, run 3 names the checkpoint's table: every item has its trained ID."""
    data = fresh(tmp_path / "data")
    first = OriginalDataset(data).semantic_id_dict
    assert first.status == "trained"
    second = OriginalDataset(data).semantic_id_dict
    assert (second.status, second.digest) == ("cached", first.digest)
    write_embeddings(data, CATALOGUE[:220])
    third = OriginalDataset(data).semantic_id_dict
    assert (third.status, len(third)) == ("extended", 220)
    trained = other_table(tmp_path)
    trained.save(tmp_path / "ckpt" / "semid_table.safetensors")
    fourth = OriginalDataset(data).prepare_semantic_ids(parent=tmp_path / "ckpt")
    assert moved(trained.to_dict(), fourth) == 0
    assert len(fourth) == 220


def test_a_parent_against_a_real_pin_is_an_error(tmp_path: Path, checkpoint: Path) -> None:
    """Where both say the same of what they have in common, the parent answers: it knows more."""
    data = fresh(tmp_path / "data")
    dataset = SmallMixinDataset(data)
    dataset.semantic_id_dict = {ITEM0: [15, 15, 15]}  # type: ignore[assignment]
    with pytest.raises(ParentError, match="assigned"):
        dataset.prepare_semantic_ids(parent=checkpoint)
    known = SemanticIdTable.open(checkpoint / "semid_table.safetensors")[ITEM0]
    dataset.semantic_id_dict = {ITEM0: known}  # type: ignore[assignment]
    assert len(dataset.prepare_semantic_ids(parent=checkpoint)) == 200


# --- an expectation ---


def test_what_is_expected_answers(tmp_path: Path) -> None:
    """By digest or lineage; a table that grew from it holds the same IDs, and will do."""
    data = fresh(tmp_path / "data")
    table = served(data)
    for wanted in (table.digest, table.lineage):
        assert served(data, expect=wanted).digest == table.digest
    write_embeddings(data, CATALOGUE[:220])
    grown = served(data, expect=table.digest)
    assert (grown.status, len(grown)) == ("extended", 220)
    assert served(data, expect=table.lineage).digest == grown.digest


@pytest.mark.parametrize("how", ["argument", "variable"])
@pytest.mark.parametrize("there", ["another table", "nothing", "no embeddings"])
def test_anything_else_than_what_is_expected_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, there: str
) -> None:
    """Nothing is trained then: it could only give other IDs."""
    wanted = other_table(tmp_path).digest
    data = fresh(tmp_path / "data")
    if there == "another table":
        served(data)
    elif there == "no embeddings":
        shutil.rmtree(data / "creative_emb")
    if how == "variable":
        monkeypatch.setenv("SEMID_EXPECT", wanted)
    with pytest.raises(DigestError, match=wanted[:12]):
        served(data, **({"expect": wanted} if how == "argument" else {}))
    assert there == "another table" or not (data / "semantic_id_dict.json").exists()


def test_an_expectation_is_not_fooled_by_a_file_that_states_it(tmp_path: Path) -> None:
    """It is computed."""
    data = fresh(tmp_path / "data")
    table = served(data)
    assert table.path is not None
    path, wanted = table.path, table.digest
    other = TableData(table.keys_array, table.codes_array[::-1].copy(), table.header, table.weights)
    content = b"".join(serialize(other.arrays, table.info))
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(DigestError):
        served(data, expect=wanted)


def test_save_writes_what_to_expect(tmp_path: Path) -> None:
    """Beside the table; inference reads it back."""
    data = fresh(tmp_path / "data")
    table = served(data)
    file = table.save(tmp_path / "ckpt" / "semid_table.safetensors")
    wanted = file.with_name(f"{file.name}.digest").read_text().strip()
    assert wanted == table.computed_digest
    assert served(data, parent=file, expect=wanted).digest == table.digest


# --- pins ---


def semid(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "semid_dataset", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_what_is_pinned_answers_also_where_newer_tables_lie_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the variable, and by the command; taken away, the newest answers again."""
    data = fresh(tmp_path / "data")
    first = served(data)
    write_embeddings(data, CATALOGUE[:220])
    second = served(data)
    with monkeypatch.context() as patch:
        patch.setenv("SEMID_PIN", f"{first.lineage}@0")
        assert served(data).digest == first.digest
    assert served(data).digest == second.digest
    done = semid("pin", data, f"{first.lineage}@0")
    assert done.returncode == 0, done.stderr
    assert served(data).digest == first.digest
    assert semid("pin", data, "--off").returncode == 0
    assert served(data).digest == second.digest


def test_a_pinned_lineage_goes_on_growing(tmp_path: Path) -> None:
    """A retraining is rolled back, and new items join the old lineage."""
    data = fresh(tmp_path / "data")
    old = served(data)
    generate_semantic_ids(data, ["81"], config=replace(SMALL, seed=9), retrain=True)
    assert semid("pin", data, old.lineage).returncode == 0
    assert served(data).lineage == old.lineage
    write_embeddings(data, CATALOGUE[:220])
    table = served(data)
    assert (table.lineage, len(table), moved(old.to_dict(), table)) == (old.lineage, 220, 0)


@pytest.mark.parametrize("pin", ["../../etc@0", "nothing-like-it@0", "nothing-like-it", "x", "@3", "a" * 30 + "@x"])
def test_a_pin_of_what_is_not_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pin: str) -> None:
    """Nothing else is served in its place."""
    data = fresh(tmp_path / "data")
    served(data)
    monkeypatch.setenv("SEMID_PIN", pin)
    with pytest.raises(PinError, match="semid history"):
        served(data)
    assert semid("pin", data, pin).returncode == 3


def test_history_lists_what_can_be_pinned(tmp_path: Path) -> None:
    """Every table, with when and how many items; which served last, and what is pinned."""
    data = fresh(tmp_path / "data")
    table = served(data)
    write_embeddings(data, CATALOGUE[:220])
    served(data)
    facts = json.loads(semid("history", data, "--json").stdout)
    assert [(one["generation"], one["items"], one["new"]) for one in facts["tables"]] == [(1, 220, 20), (0, 200, 200)]
    assert facts["tables"][0]["parent"] == table.digest
    assert semid("pin", data, f"{table.lineage}@0").returncode == 0
    text = semid("history", data).stdout
    assert re.search(r"@0 .*pinned", text)
    assert f"* {table.lineage}" in text
    assert semid("history", tmp_path).returncode == 1
