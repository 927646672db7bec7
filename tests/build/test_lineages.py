"""An ID never moves: rows of tables only grow, whoever appends to them and how many at once."""

import json
import multiprocessing
import os
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from world import ITEM0, SMALL, SmallDataset, SmallMixinDataset, make_data, vectors_of, write_embeddings

from semid_dataset import (
    ResidualQuantizer,
    SemanticIdConfig,
    SemanticIdTable,
    generate_from_vectors,
    generate_semantic_ids,
)
from semid_dataset.api import own_embeddings
from semid_dataset.build import lineages as lineage
from semid_dataset.build.evidence import Evidence
from semid_dataset.cache import folders
from semid_dataset.cache.cache import Cache
from semid_dataset.check import verify_table
from semid_dataset.config import Identity
from semid_dataset.environment import Environment
from semid_dataset.errors import ParentError, SemanticIdWarning
from semid_dataset.features import FeatureMatrix


def resolve_quietly(data_dir: Path, **settings: object) -> SemanticIdTable:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SemanticIdWarning)
        return SmallMixinDataset(data_dir).prepare_semantic_ids(**settings)  # type: ignore[arg-type]


def write_items(data_dir: Path, numbers: list[int]) -> None:
    """Write feature 81 of the items with these numbers; an item's vector depends on its number alone."""
    import pickle

    vectors = vectors_of(4000)
    folder = data_dir / "creative_emb"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "emb_81_8.pkl").open("wb") as file:
        pickle.dump({ITEM0 + number: vectors[number] for number in numbers}, file)


def test_ten_rounds_of_new_items_move_no_id(tmp_path: Path) -> None:
    """The history names every generation."""
    served: dict[object, list[int]] = {}
    for number in range(11):
        write_items(tmp_path, list(range(200 + 10 * number)))
        table = resolve_quietly(tmp_path)
        assert table.generation == number
        assert all(table[item] == codes for item, codes in served.items())  # type: ignore[index]
        served = table.to_dict()  # type: ignore[assignment]
    assert len({tuple(codes) for codes in served.values()}) == len(served) == 300
    assert [step["generation"] for step in table.info["history"]] == list(range(11))
    assert [step["new"] for step in table.info["history"]] == [200] + [10] * 10


def _append(data_dir: Path, start: Path, answers: Path) -> None:
    warnings.simplefilter("ignore")
    while not start.exists():
        time.sleep(0.001)
    table = SmallDataset(data_dir).semantic_id_dict
    lines = "".join(f"{item} {codes}\n" for item, codes in table.items())
    (answers / f"{data_dir.name}").write_text(f"{table.status}\n{lines}")


@pytest.mark.parametrize("flock", ["working", "useless"])
def test_processes_that_append_at_once_never_give_one_item_two_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flock: str
) -> None:
    """Each has other new items, some in common; nothing but the first-wins publish keeps them apart."""
    monkeypatch.setenv("SEMID_CACHE_DIR", str(tmp_path / "cache"))
    if flock == "useless":  # as on network file systems where it succeeds for everybody
        import fcntl

        monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    write_items(tmp_path / "base", list(range(200)))
    born = resolve_quietly(tmp_path / "base").to_dict()
    start, answers = tmp_path / "start", tmp_path / "answers"
    answers.mkdir()
    folders = [tmp_path / f"data{k}" for k in range(8)]
    for k, folder in enumerate(folders):
        write_items(folder, [*range(200), *range(300, 310), *range(400 + 10 * k, 410 + 10 * k)])
    context = multiprocessing.get_context("fork")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        processes = [context.Process(target=_append, args=(folder, start, answers)) for folder in folders]
        for process in processes:
            process.start()
    start.touch()
    for process in processes:
        process.join(50)
        assert process.exitcode == 0
    ids: dict[int, set[str]] = {}
    for answer in answers.iterdir():
        status, *lines = answer.read_text().splitlines()
        assert status in {"extended", "cached"}
        for line in lines:
            item, codes = line.split(" ", 1)
            ids.setdefault(int(item), set()).add(codes)
    assert len(ids) == 290
    assert all(len(codes) == 1 for codes in ids.values())
    assert len({next(iter(codes)) for codes in ids.values()}) == 290
    assert all(ids[int(item)] == {str(codes)} for item, codes in born.items())
    newest = resolve_quietly(folders[0])
    history = newest.info["history"]
    assert [step["generation"] for step in history] == list(range(newest.generation + 1))
    assert sum(step["new"] for step in history) == len(newest) == history[-1]["items"]


def test_a_table_published_between_look_and_write_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else two tables would part, and one ID would be given to two items."""
    monkeypatch.setenv("SEMID_CACHE_DIR", str(tmp_path / "cache"))
    write_items(tmp_path / "base", list(range(200)))
    resolve_quietly(tmp_path / "base")
    write_items(tmp_path / "a", [*range(200), *range(300, 330)])
    write_items(tmp_path / "b", [*range(200), *range(400, 430)])
    look = folders.last_generation
    others = []

    def look_late(*args: Any) -> int:
        if not others:
            others.append(0)
            others[0] = resolve_quietly(tmp_path / "b").to_dict()
        return look(*args)

    monkeypatch.setattr(folders, "last_generation", look_late)
    table = resolve_quietly(tmp_path / "a")
    assert {item: table[item] for item in others[0]} == others[0]
    assert len(set(map(tuple, table.values()))) == len(table) == 260


def test_a_parent_that_was_continued_elsewhere_parts_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two machines added different items under the same number; whoever names one of them gets its IDs."""
    write_items(tmp_path / "base", list(range(200)))
    born = resolve_quietly(tmp_path / "base")
    born.save(tmp_path / "born.safetensors")
    tables = []
    for k in range(2):
        monkeypatch.setenv("SEMID_CACHE_DIR", str(tmp_path / f"cache{k}"))
        # Both machines add items 500…529; only one also 300…399, so that codes taken differ.
        write_items(tmp_path / f"data{k}", [*range(200), *range(300, 300 + 100 * k), *range(500, 530)])
        tables.append(resolve_quietly(tmp_path / f"data{k}", parent=tmp_path / "born.safetensors"))
        tables[k].save(tmp_path / f"table{k}.safetensors")
    first, second = tables
    assert first.lineage != second.lineage
    assert first.header.origins == second.header.origins == (born.lineage,)
    assert first.generation == second.generation == 1
    write_items(tmp_path / "more", [*range(200), *range(500, 540)])
    table = resolve_quietly(tmp_path / "more", parent=tmp_path / "table0.safetensors")  # in the cache of the second
    assert all(table[item] == codes for item, codes in first.items())
    assert table.lineage not in {first.lineage, second.lineage}
    assert table.header.origins == (first.lineage, born.lineage)
    again = resolve_quietly(tmp_path / "data1")
    assert again.digest == second.digest


def test_a_bare_quantizer_as_parent_encodes_everything(tmp_path: Path) -> None:
    """It knows no items, so it trains nothing and keeps nothing."""
    born = resolve_quietly(make_data(tmp_path / "base"))
    quantizer = born.quantizer
    assert isinstance(quantizer, ResidualQuantizer)
    table = resolve_quietly(make_data(tmp_path / "other", 50, seed=0), parent=quantizer)
    assert (table.status, len(table)) == ("extended", 50)
    np.testing.assert_array_equal(
        table.quantizer.codebooks[0].numpy(), quantizer.codebooks[0].numpy(), err_msg="the quantizer is frozen"
    )


@pytest.mark.parametrize("named", ["folder", "file"])
def test_a_saved_quantizer_as_parent_is_the_same_one(tmp_path: Path, named: str) -> None:
    """SEMID_PARENT may name its folder."""
    born = resolve_quietly(make_data(tmp_path / "base"))
    folder = born.quantizer.save_pretrained(tmp_path / "quantizer")
    parent = folder if named == "folder" else folder / "quantizer.safetensors"
    table = resolve_quietly(make_data(tmp_path / "other"), parent=parent)
    assert table.status == "extended"
    assert table.to_dict() == born.to_dict()


def test_a_bare_quantizer_of_other_dims_is_refused(tmp_path: Path) -> None:
    """Its dims are all that it knows."""
    quantizer = resolve_quietly(make_data(tmp_path / "base")).quantizer
    parent = lineage.open_parent(quantizer, mmap=True)
    with pytest.raises(ParentError, match="8 dims, this dataset has 9"):
        lineage.check_parent(parent, Identity.of(SMALL, [("81", 9)]), ["81"])


def test_a_missing_feature_does_not_make_a_parent_wrong(tmp_path: Path) -> None:
    """The parent knows both features; evaluation may lack one of them."""
    data = make_data(tmp_path / "train")
    write_embeddings(data, vectors_of(200, 12, seed=4), feature="82")
    dataset = SmallMixinDataset(data, ("81", "82"))
    born = dataset.prepare_semantic_ids()
    born.save(tmp_path / "semid_table.safetensors")
    evaluation = SmallMixinDataset(make_data(tmp_path / "eval", 210), ("81", "82"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SemanticIdWarning)
        table = evaluation.prepare_semantic_ids(parent=tmp_path / "semid_table.safetensors")
    assert (table.status, len(table)) == ("extended", 210)
    assert all(table[item] == codes for item, codes in born.items())


@pytest.mark.parametrize("layout", ["file", "checkpoint", "lineage"])
def test_a_parent_is_named_by_file_or_folder(tmp_path: Path, layout: str) -> None:
    """A checkpoint's folder, or the folder of a lineage, whose newest table counts."""
    write_items(tmp_path, list(range(100)))
    resolve_quietly(tmp_path)
    write_items(tmp_path, list(range(110)))
    newest = resolve_quietly(tmp_path)
    assert newest.path is not None
    if layout == "checkpoint":
        newest.save(tmp_path / "ckpt" / lineage.TABLE_FILE)
    parent = {"file": newest.path, "checkpoint": tmp_path / "ckpt", "lineage": newest.path.parent}[layout]
    assert lineage.open_parent(parent, mmap=True).digest == newest.digest


def test_common_pairs_make_a_lineage_theirs_however_few(tmp_path: Path) -> None:
    """The same items with other vectors do not; nearly the same ones do."""
    vectors = vectors_of(1000)
    data = make_data(tmp_path / "data")
    born = resolve_quietly(data)
    cache = Cache.of(Environment.read(), data)
    identity = Identity.of(SMALL, [("81", 8)])

    def found(items: range, matrix: np.ndarray) -> lineage.Lineage | None:
        keys = np.array([ITEM0 + item for item in items])
        feature = FeatureMatrix("81", np.arange(len(keys)), matrix)
        return next(iter(lineage.find_lineages(cache, identity, Evidence(keys, [feature]))), None)

    mine = found(range(100, 300), np.concatenate([vectors_of(200)[100:], vectors[200:300]]))
    assert mine is not None
    assert mine.name == born.lineage
    assert found(range(190, 1000), np.concatenate([vectors_of(200)[190:], vectors[200:]])) is not None
    assert found(range(200, 1000), vectors[200:]) is None
    assert found(range(200), vectors_of(200, seed=8)) is None
    assert found(range(200), vectors_of(200) + 0.01) is not None


def test_vectors_that_moved_are_said_and_ids_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The recommender learned the codes, not the vectors."""
    born = resolve_quietly(make_data(tmp_path / "data"))
    moved = tmp_path / "moved"
    write_embeddings(moved, np.concatenate([vectors_of(200, seed=6), vectors_of(5, seed=7)]))
    table = resolve_quietly(moved, parent=born)
    assert all(table[item] == codes for item, codes in born.items())
    assert "Vectors of known items have moved" in caplog.text


def test_ids_of_both_kinds_can_meet_in_one_table(tmp_path: Path) -> None:
    """String ids added to integer ones: all of them are found by either form."""
    from semid_dataset.build.lineages import joined_items

    joined = joined_items(np.array([1, 2]), ["a", "b"])
    table = SemanticIdTable.from_mapping({key: [number, 1] for number, key in enumerate(joined)})
    assert (table[1], table["2"], table["a"]) == ([0, 1], [1, 1], [2, 1])


def test_names_of_lineages_depend_on_what_they_were_born_from() -> None:
    """So that concurrent first trainings meet, and others do not."""
    identity = Identity.of(SMALL, [("81", 8)])
    keys = {
        lineage.origin_key(identity, "e"),
        lineage.origin_key(identity, "f"),
        lineage.origin_key(identity, "e", "an-older-one"),
        lineage.origin_key(Identity.of(SMALL, [("81", 9)]), "e"),
    }
    assert len(keys) == 4
    names = {lineage.lineage_name(key, digest) for key in keys for digest in ("a" * 64, "b" * 64)}
    assert len(names) == 8
    assert all(folders.LINEAGE_NAME.fullmatch(name) for name in names)


def test_a_copied_table_under_another_name_is_not_believed(tmp_path: Path) -> None:
    """Its metadata says where it belongs."""
    data = make_data(tmp_path / "data")
    born = resolve_quietly(data)
    assert born.path is not None
    os.link(born.path, born.path.with_name("5.safetensors"))
    newest = Cache.of(Environment.read(), data, may_write=True).newest(born.lineage)
    assert newest is not None
    assert newest.generation == 0


# --- what a table says of where it comes from ---


def write_lines(data_dir: Path, vectors: np.ndarray, name: str, feature: str = "81") -> Path:
    """Write a feature as JSON lines, in a part of this name."""
    folder = data_dir / "creative_emb" / f"emb_{feature}_{vectors.shape[1]}"
    folder.mkdir(parents=True, exist_ok=True)
    rows = ({"anonymous_cid": ITEM0 + k, "emb": vector.tolist()} for k, vector in enumerate(vectors))
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data_dir


def test_files_of_one_name_are_both_told(tmp_path: Path) -> None:
    """Two features have a part of the same name each."""
    write_lines(tmp_path, vectors_of(100), "part-00000")
    write_lines(tmp_path, vectors_of(100, 12, 4), "part-00000", "82")
    table = SmallMixinDataset(tmp_path, ("81", "82")).prepare_semantic_ids()
    files = table.header.provenance["files"]
    assert sorted(files) == ["creative_emb/emb_81_8/part-00000", "creative_emb/emb_82_12/part-00000"]
    assert len(set(files.values())) == 2


def test_a_part_that_is_called_sequences_does_not_hide_wrong_vectors(tmp_path: Path) -> None:
    """Behaviour is a field of the header, not the name of a file."""
    from semid_dataset.check import verify_table
    from semid_dataset.inputs.discover import find_sources
    from semid_dataset.inputs.read import read_sources

    table = resolve_quietly(write_lines(tmp_path / "a", vectors_of(200), "sequences"))
    wrong = read_sources(find_sources(write_lines(tmp_path / "b", vectors_of(200, seed=9), "sequences"), ["81"]))
    found = verify_table(table, embeddings=wrong)
    assert any("vectors are not those" in problem for problem in found.problems)


# --- a bare quantizer and unique=False ---


def crowded(items: int) -> np.ndarray:
    """Vectors of which many have the same codes."""
    return np.round(vectors_of(items), 1).astype(np.float32)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a bare quantizer."""
    folder = tmp_path_factory.mktemp("bare")
    config = SemanticIdConfig(num_quantizers=2, codebook_size=8, algorithm="rqkmeans", device="cpu", unique=False)
    table = generate_from_vectors(range(200), crowded(200), output_dir=folder, config=config)
    table.quantizer.save_pretrained(folder)
    return folder / "quantizer.safetensors"


@pytest.mark.parametrize("streamed", [False, True], ids=["in memory", "streamed"])
@pytest.mark.parametrize("as_file", [True, False], ids=["file", "object"])
def test_items_of_a_bare_quantizer_share_ids_where_that_was_asked_for(
    tmp_path: Path, bare: Path, as_file: bool, streamed: bool
) -> None:
    """Its own codes, item by item, now and in every extension; made unique only where that was asked for."""
    write_embeddings(tmp_path, crowded(200))
    parent = bare if as_file else ResidualQuantizer.from_pretrained(bare)
    config = SemanticIdConfig(num_quantizers=2, codebook_size=8, unique=False, device="cpu")
    engine = "local" if streamed else None
    table = generate_semantic_ids(tmp_path, config=config, parent=parent, engine=engine)
    quantizer = ResidualQuantizer.from_pretrained(bare)
    items = np.arange(ITEM0, ITEM0 + 200)
    assert np.array_equal(table.codes(items), quantizer.encode(crowded(200)))
    assert len(set(map(tuple, table.values()))) < 200
    more = np.concatenate([crowded(200), crowded(200)[:20]])
    write_embeddings(tmp_path, more)
    grown = generate_semantic_ids(tmp_path, config=config, parent=parent, engine=engine)
    assert np.array_equal(grown.codes(np.arange(ITEM0, ITEM0 + 220)), quantizer.encode(more))


def test_items_of_a_bare_quantizer_are_unique_where_nothing_was_said(tmp_path: Path, bare: Path) -> None:
    """The default stays what it was."""
    config = SemanticIdConfig(num_quantizers=2, codebook_size=8, device="cpu")
    write_embeddings(tmp_path, crowded(40))
    table = generate_semantic_ids(tmp_path, config=config, parent=bare)
    assert len(set(map(tuple, table.values()))) == 40
    assert table.codebook_sizes == (8, 8)


@pytest.mark.parametrize("unique", [True, False])
def test_ids_of_a_bare_quantizer_stay_where_nobody_names_it_again(
    tmp_path: Path, bare: Path, unique: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Its table states no kind of ID; it is the one that answered before all the same, and grows by its codebooks."""
    config = SemanticIdConfig(num_quantizers=2, codebook_size=8, unique=unique, device="cpu")
    catalogue = crowded(50)
    write_embeddings(tmp_path, catalogue[:40])
    ids = generate_semantic_ids(tmp_path, config=config, parent=bare).to_dict()
    table = generate_semantic_ids(tmp_path, config=config)
    assert (table.status, table.to_dict()) == ("cached", ids)
    write_embeddings(tmp_path, catalogue)
    table = generate_semantic_ids(tmp_path, config=config)
    assert (table.status, len(table)) == ("extended", 50)
    assert {item: table[item] for item in ids} == ids
    assert "IDs have moved" not in caplog.text
    other = SemanticIdConfig(num_quantizers=3, codebook_size=8, device="cpu")
    assert generate_semantic_ids(tmp_path, config=other).status == "trained"  # another kind of ID is another table


def test_vectors_of_a_bare_quantizers_items_are_told_by_their_codes(tmp_path: Path, bare: Path) -> None:
    """Nobody measured an error at the fit: those vectors were called another encoder's, whatever they were."""
    config = SemanticIdConfig(num_quantizers=2, codebook_size=8, device="cpu")
    catalogue = crowded(60)
    write_embeddings(tmp_path, catalogue)
    table = generate_semantic_ids(tmp_path, config=config, parent=bare)
    assert "variance" not in table.header.provenance
    items = np.arange(ITEM0, ITEM0 + 60)
    assert verify_table(table, own_embeddings(items, catalogue)).problems == ()
    turned = np.roll(catalogue[::-1], 3, axis=1)
    assert "not those of these items" in str(verify_table(table, own_embeddings(items, turned)).problems)


def test_the_command_line_lets_items_of_a_bare_quantizer_share_ids(tmp_path: Path, bare: Path) -> None:
    """`--shared` is the same setting."""
    pytest.importorskip("click")
    from semid_dataset.cli._app import run

    np.save(tmp_path / "x.npy", crowded(200))
    line = ["generate", f"{tmp_path}/x.npy", "--ids", "rows", "--parent", str(bare), "-o", f"{tmp_path}/out"]
    assert run([*line, "--levels", "2", "--codes", "8", "--shared"]) == 0
    table = SemanticIdTable.open(tmp_path / "out" / "semid_table.safetensors")
    assert np.array_equal(table.codes(np.arange(200)), ResidualQuantizer.from_pretrained(bare).encode(crowded(200)))
