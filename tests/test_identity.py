"""Which table is whose: by what stands in the tables, never by names, paths or clocks. Each was a way to lose IDs."""

import contextlib
import gc
import logging
import shutil
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faultkit import mounted, read_only
from world import ITEM0, SMALL, SmallMixinDataset, vectors_of, write_embeddings

from semid_dataset import SemanticIdConfig, SemanticIdTable, generate_semantic_ids
from semid_dataset.errors import SemanticIdWarning
from semid_dataset.format import tensors

OTHER_SEED = SemanticIdConfig(num_quantizers=3, codebook_size=16, num_epochs=2, device="cpu", seed=7)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, "semid_dataset"):
        yield caplog


def catalogue(items: int, seed: int = 0) -> np.ndarray:
    """The first items of one large catalogue: an item has the same vector however many there are."""
    return vectors_of(4000, seed=seed)[:items]


def fresh(data_dir: Path) -> Path:
    """A data directory with 200 items."""
    write_embeddings(data_dir, catalogue(200))
    return data_dir


def served(data_dir: Path, **settings: Any) -> SemanticIdTable:
    """What a new dataset of the directory gets; a warning is not an error here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SemanticIdWarning)
        return SmallMixinDataset(data_dir).prepare_semantic_ids(**settings)


def moved(before: dict[Any, list[int]], table: SemanticIdTable) -> int:
    """How many of the items that were served before have another ID now."""
    return sum(table[item] != codes for item, codes in before.items())


def errors(lines: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in lines.records if record.levelno >= logging.ERROR]


def warned(lines: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in lines.records if record.levelno >= logging.WARNING)


def rotated(vectors: np.ndarray, seed: int = 3) -> np.ndarray:
    """The same vectors as another encoder might give them: turned."""
    lease, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(vectors.shape[1],) * 2))
    return (vectors @ lease).astype(np.float32)


@contextlib.contextmanager
def another_user(monkeypatch: pytest.MonkeyPatch, home: Path, data: Path | None = None) -> Iterator[None]:
    """Somebody with a cache of his own, who cannot write into `data`."""
    with monkeypatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setenv("XDG_CACHE_HOME", str(home))
        if data is not None:
            stack.enter_context(mounted(data, "--bind", str(data)))
            stack.enter_context(read_only(data))
        yield


# --- a catalogue that grows ---


@pytest.mark.parametrize("factor", [2.1, 10.0])
def test_a_catalogue_may_grow_tenfold(tmp_path: Path, lines: pytest.LogCaptureFixture, factor: float) -> None:
    """Common pairs decide, not the share of items that are known."""
    more = int(200 * (factor - 1))
    before = served(fresh(tmp_path)).to_dict()
    write_embeddings(tmp_path, catalogue(200 + more))
    table = served(tmp_path)
    assert (table.status, len(table)) == ("extended", 200 + more)
    assert moved(before, table) == 0
    assert not errors(lines)


def test_a_small_part_of_a_catalogue_belongs_to_its_lineage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluation may hold twenty of two thousand items, and others besides."""
    monkeypatch.setenv("SEMID_CACHE_DIR", str(tmp_path / "cache"))
    vectors = catalogue(2060)
    write_embeddings(tmp_path / "train", vectors[:2000])
    before = served(tmp_path / "train")
    write_embeddings(tmp_path / "eval", vectors[1980:], first=ITEM0 + 1980)
    table = served(tmp_path / "eval")
    assert table.status == "extended"
    assert all(table[ITEM0 + k] == before[ITEM0 + k] for k in range(2000))


def test_one_common_pair_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any real overlap beats none."""
    monkeypatch.setenv("SEMID_CACHE_DIR", str(tmp_path / "cache"))
    vectors = catalogue(300)
    write_embeddings(tmp_path / "a", vectors[:200])
    before = served(tmp_path / "a")
    write_embeddings(tmp_path / "b", vectors[199:], first=ITEM0 + 199)
    table = served(tmp_path / "b")
    assert (table.status, table.lineage) == ("extended", before.lineage)


def test_what_encoders_give_whatever_has_no_content_is_no_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two data sets that count from 0 have items without a picture in common: a vector of zeros, or one of its own."""
    monkeypatch.setenv("SEMID_CACHE_DIR", str(tmp_path / "cache"))
    nothing = vectors_of(1, seed=77)
    for name, seed in (("a", 1), ("b", 2)):
        vectors = vectors_of(200, seed=seed)
        vectors[:5] = 0
        vectors[5:10] = nothing
        write_embeddings(tmp_path / name, vectors)
    first, second = served(tmp_path / "a"), served(tmp_path / "b")
    assert second.status == "trained"
    assert first.lineage != second.lineage


# --- vectors of another encoder ---


@pytest.mark.parametrize("how", ["turned", "scaled", "turned and scaled"])
def test_vectors_of_another_encoder_move_no_id(tmp_path: Path, lines: pytest.LogCaptureFixture, how: str) -> None:
    """Known items keep theirs; a line says what is the matter, that new ones get none, and how to retrain."""
    before = served(fresh(tmp_path)).to_dict()
    vectors = catalogue(220)
    if "turned" in how:
        vectors = rotated(vectors)
    if "scaled" in how:
        vectors = vectors * np.float32(12)
    write_embeddings(tmp_path, vectors)
    with pytest.warns(SemanticIdWarning, match="retrain"):
        table = SmallMixinDataset(tmp_path).prepare_semantic_ids()
    assert moved(before, table) == 0
    assert (table.status, len(table), table[ITEM0 + 210]) == ("stale", 200, [0, 0, 0])
    assert "another space" in warned(lines)
    assert "--retrain" in warned(lines)
    again = served(tmp_path)
    assert (again.status, moved(before, again)) == ("stale", 0)


def test_all_items_with_vectors_of_another_encoder_stay_known(tmp_path: Path, lines: pytest.LogCaptureFixture) -> None:
    """300 known ones and none besides."""
    write_embeddings(tmp_path, catalogue(300))
    before = served(tmp_path).to_dict()
    write_embeddings(tmp_path, rotated(catalogue(300)))
    table = served(tmp_path)
    assert moved(before, table) == 0
    assert "another space" in warned(lines)


def test_a_retraining_settles_vectors_of_another_encoder(tmp_path: Path, lines: pytest.LogCaptureFixture) -> None:
    """It is asked for, says how many IDs moved, and answers from then on."""
    served(fresh(tmp_path))
    write_embeddings(tmp_path, rotated(catalogue(220)))
    assert served(tmp_path).status == "stale"
    new = generate_semantic_ids(tmp_path, ["81"], config=SMALL, retrain=True)
    assert (new.status, len(new)) == ("trained", 220)
    assert "of 200 items moved" in lines.text
    assert served(tmp_path).digest == new.digest


def test_a_parent_does_not_encode_vectors_of_another_encoder(tmp_path: Path, lines: pytest.LogCaptureFixture) -> None:
    """Not if it was named either."""
    parent = served(fresh(tmp_path / "train"))
    write_embeddings(tmp_path / "eval", rotated(catalogue(220)))
    table = served(tmp_path / "eval", parent=parent)
    assert (table.status, len(table)) == ("stale", 200)
    assert "another space" in warned(lines)


def test_unrelated_vectors_under_the_same_ids_are_another_data_set(
    tmp_path: Path, lines: pytest.LogCaptureFixture
) -> None:
    """In the very directory: it is trained anew, and said at ERROR how many items have another ID than before."""
    before = served(fresh(tmp_path)).to_dict()
    write_embeddings(tmp_path, vectors_of(200, seed=9))
    table = served(tmp_path)
    assert table.status == "trained"
    (line,) = errors(lines)
    assert f"{moved(before, table)} of 200" in line


# --- a path is no evidence ---


@pytest.mark.parametrize("other", ["dims", "items", "vectors", "levels"])
def test_behind_a_closed_gate_another_data_set_at_the_same_path_gets_default_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    """One platform cache, and a mount point at which another volume lies today."""
    data = fresh(tmp_path / "mnt")
    with monkeypatch.context() as patch:
        patch.setenv("SEMID_CACHE_DIR", str(tmp_path / "platform"))
        served(data)
    shutil.rmtree(data)
    if other == "dims":
        write_embeddings(data, vectors_of(200, 6))
    elif other == "items":
        write_embeddings(data, vectors_of(200, seed=9), first=5)
    else:
        write_embeddings(data, vectors_of(200, seed=9))
    config = SemanticIdConfig(num_quantizers=4, codebook_size=16, device="cpu") if other == "levels" else SMALL
    monkeypatch.setenv("SEMID_CACHE_DIR", str(tmp_path / "platform"))
    monkeypatch.setenv("ALLOW_SEMANTIC_GENERATION", "0")
    with pytest.warns(SemanticIdWarning, match="ALLOW_SEMANTIC_GENERATION"):
        table = SmallMixinDataset(data).prepare_semantic_ids(config=config)
    assert (table.status, table.coverage([ITEM0, 5]), table.levels) == ("default", 0.0, config.num_quantizers)


def test_without_embeddings_what_last_served_answers_for_its_own_kind_alone(tmp_path: Path) -> None:
    """Three levels do not answer who asks for four."""
    data = fresh(tmp_path)
    before = served(data)
    shutil.rmtree(data / "creative_emb")
    assert served(data).digest == before.digest
    assert served(data, config=SemanticIdConfig(num_quantizers=4, codebook_size=16, device="cpu")).status == "default"


# --- two users, two folders ---


def test_who_was_served_keeps_it_where_another_set_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: pytest.LogCaptureFixture
) -> None:
    """A reader trained for himself; later the owner trains another seed, in the folder that is read first."""
    data = fresh(tmp_path / "data")
    with another_user(monkeypatch, tmp_path / "reader", data):
        mine = served(data)
        assert str(mine.path).startswith(str(tmp_path / "reader"))
    ids = mine.to_dict()
    theirs = served(data, config=OTHER_SEED)
    assert theirs.status == "trained"
    assert theirs.lineage != mine.lineage
    assert moved(ids, theirs) > 0
    with another_user(monkeypatch, tmp_path / "reader", data):
        again = served(data)
    assert (moved(ids, again), again.digest) == (0, mine.digest)
    (line,) = errors(lines)
    assert f"{moved(ids, theirs)} of 200" in line
    assert theirs.lineage in line


def test_who_was_served_keeps_it_when_items_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: pytest.LogCaptureFixture
) -> None:
    """New items make a new question; what this user was served before binds the answer to it."""
    data = fresh(tmp_path / "data")
    with another_user(monkeypatch, tmp_path / "reader", data):
        ids = served(data).to_dict()
    theirs = served(data, config=OTHER_SEED)
    write_embeddings(data, catalogue(220))
    theirs = served(data)
    assert theirs.status == "extended"
    with another_user(monkeypatch, tmp_path / "reader", data):
        mine = served(data)
        assert mine.status == "extended"
        assert served(data).digest == mine.digest
    assert moved(ids, mine) == 0
    assert mine.lineage != theirs.lineage


def test_a_fork_is_a_branch_of_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: pytest.LogCaptureFixture
) -> None:
    """A reader who cannot write where the table lies extends it in his own cache; the owner extends it too."""
    data = fresh(tmp_path / "data")
    born = served(data)
    write_embeddings(data, catalogue(220))
    with another_user(monkeypatch, tmp_path / "reader", data):
        mine = served(data)
        assert (mine.status, mine.header.origins) == ("extended", (born.lineage,))
        assert mine.lineage != born.lineage
        assert mine.lineage in warned(lines)
    ids = mine.to_dict()
    write_embeddings(data, catalogue(240))
    theirs = served(data)
    assert (theirs.lineage, theirs.generation) == (born.lineage, 1)
    write_embeddings(data, np.concatenate([catalogue(220), catalogue(1000)[700:705]]))
    with another_user(monkeypatch, tmp_path / "reader", data):
        later = served(data)
        assert (later.lineage, later.generation) == (mine.lineage, mine.generation + 1)
    assert moved(ids, later) == 0
    assert moved(theirs.to_dict(), served(data)) == 0


def test_two_forks_in_one_folder_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two data sets of one user extend what he cannot write: an item in both of them has one ID."""
    vectors = catalogue(300)
    shared = tmp_path / "shared"
    monkeypatch.setenv("SEMID_CACHE_DIR", str(shared))
    write_embeddings(tmp_path / "a", vectors[:200])
    served(tmp_path / "a")
    write_embeddings(tmp_path / "b", vectors[:230])
    write_embeddings(tmp_path / "c", np.concatenate([vectors[:200], vectors[210:250]]))
    for name, items in (("b", 230), ("c", 240)):
        (tmp_path / name / ".semantic_ids").write_text("no folder")
        assert len(vectors[:items])
    write_embeddings(tmp_path / "c", vectors[:250])
    with another_user(monkeypatch, tmp_path / "reader", shared):
        one, two = served(tmp_path / "b"), served(tmp_path / "c")
    assert one.lineage == two.lineage
    assert moved(one.to_dict(), two) == 0


def test_two_trainings_with_other_codes_never_share_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of a lineage says what its first table holds."""
    fresh(tmp_path / "a")
    tables = []
    for number, config in enumerate((SMALL, OTHER_SEED, SMALL)):
        monkeypatch.setenv("SEMID_CACHE_DIR", str(tmp_path / f"cache{number}"))
        tables.append(served(tmp_path / "a", config=config))
        (tmp_path / "a" / "semantic_id_dict.json").unlink()
    first, second, third = tables
    assert first.lineage != second.lineage
    assert (first.lineage, first.digest) == (third.lineage, third.digest)


# --- retraining ---


@pytest.mark.parametrize("behind", [0, 3600])
def test_a_retraining_is_not_undone_by_a_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behind: int) -> None:
    """It names what it replaces; items that come later join it, and another directory of the data does."""
    monkeypatch.setenv("SEMID_CACHE_DIR", str(tmp_path / "cache"))
    data = fresh(tmp_path / "data")
    old = served(data)
    now = time.time
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now() - behind)
        new = generate_semantic_ids(data, ["81"], config=OTHER_SEED, retrain=True)
    assert new.header.replaces == (old.lineage,)
    write_embeddings(data, catalogue(220))
    table = served(data)
    assert (table.status, table.lineage) == ("extended", new.lineage)
    assert moved(new.to_dict(), table) == 0
    write_embeddings(tmp_path / "other", catalogue(200))
    assert served(tmp_path / "other").lineage == new.lineage


def test_who_did_not_ask_for_a_retraining_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another directory of the same data was served the old lineage before."""
    monkeypatch.setenv("SEMID_CACHE_DIR", str(tmp_path / "cache"))
    data, other = fresh(tmp_path / "data"), fresh(tmp_path / "other")
    ids = served(other).to_dict()
    served(data)
    generate_semantic_ids(data, ["81"], config=OTHER_SEED, retrain=True)
    write_embeddings(other, catalogue(220))
    table = served(other)
    assert (table.status, moved(ids, table)) == ("extended", 0)


# --- formats ---


def test_a_newer_table_beside_a_readable_one_leaves_the_known_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One host of a rolling upgrade writes the next format; the others serve what they can read."""
    data = fresh(tmp_path)
    before = served(data).to_dict()
    write_embeddings(data, catalogue(220))
    with monkeypatch.context() as patch:
        patch.setattr(tensors, "FORMAT_VERSION", 9)
        assert served(data).status == "extended"
    gc.collect()  # who has opened a table may go on with it
    for _ in range(2):
        table = served(data)
        assert (table.status, moved(before, table)) == ("stale", 0)
        assert "version" in table.reason
    write_embeddings(data, catalogue(225))
    table = served(data)
    assert (table.status, moved(before, table)) == ("stale", 0)
    assert not list((data / ".semantic_ids").rglob("*damaged*"))


# --- names in headers ---


def test_a_parent_whose_lineage_leaves_the_cache_writes_nothing(tmp_path: Path) -> None:
    """A downloaded table names '../../victim/private'."""
    from semid_dataset.errors import CorruptTableError
    from semid_dataset.table.build import TableData

    data = fresh(tmp_path / "data")
    table = served(fresh(tmp_path / "train"))
    info = {**table.info, "lineage": "../../victim/private"}
    plain = TableData(table.keys_array, table.codes_array, table.header, table.weights)
    hostile = tmp_path / "semid_table.safetensors"
    hostile.write_bytes(b"".join(tensors.serialize(plain.arrays, info)))
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / ".report.tmp").write_text("mine")
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    write_embeddings(data, catalogue(210))
    with contextlib.suppress(CorruptTableError):
        assert served(data, parent=hostile).status == "default"
    after = sorted(str(path) for path in tmp_path.rglob("*"))
    assert [path for path in after if "victim" in path] == [path for path in before if "victim" in path]
    assert (tmp_path / "victim" / ".report.tmp").read_text() == "mine"
