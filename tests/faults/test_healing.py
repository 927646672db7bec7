"""Rows 14 to 16: damaged tables, other formats, embeddings that changed unseen. No ID moves if it can be helped."""

import logging
import multiprocessing
import os
import pickle
import shutil
import subprocess
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faultkit import LINEAGE, checksums, immutable, read_only, root_at, table_bytes
from world import ITEM0, SmallMixinDataset, vectors_of, write_embeddings

from semid_dataset import SemanticIdConfig, SemanticIdTable
from semid_dataset.build import pipeline
from semid_dataset.build import recover as healing
from semid_dataset.cache import cache
from semid_dataset.errors import CorruptTableError, SemanticIdWarning
from semid_dataset.format import tensors as container
from semid_dataset.table.table import build_table_buffers

MORE = np.concatenate([vectors_of(200), vectors_of(30, seed=7)])
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "a flipped bit in the header": lambda content: content[:30] + bytes([content[30] ^ 1]) + content[31:],
    "a flipped bit in the body": lambda content: content[:-99] + bytes([content[-99] ^ 1]) + content[-98:],
    "foreign": lambda content: b"PK\x03\x04" + bytes(1000),
}


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    with caplog.at_level(logging.INFO, "semid_dataset"):
        yield caplog


def ids_of(data: Path, **settings: Any) -> SemanticIdTable:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SemanticIdWarning)
        return SmallMixinDataset(data).prepare_semantic_ids(**settings)


def tables(data: Path) -> list[Path]:
    return sorted(data.glob(".semantic_ids/v1/*/*.safetensors"))


def damage(path: Path, how: str = "a flipped bit in the body") -> bytes:
    """Damage a file that is mapped nowhere (a new inode, as after a power loss); return what it holds now."""
    content = DAMAGES[how](path.read_bytes())
    path.unlink()
    path.write_bytes(content)
    return content


def asides(data: Path) -> list[bytes]:
    return [path.read_bytes() for path in data.glob(".semantic_ids/v1/*/*.damaged-*")]


def errors(lines: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in lines.records if record.levelno >= logging.ERROR]


def test_a_flipped_byte_anywhere_is_found(tmp_path: Path) -> None:
    """Row 14: every byte of the header, samples of the body, on disk."""
    root = root_at(tmp_path / "cache")
    content = table_bytes(1)
    header = 8 + int.from_bytes(content[:8], "little")
    path = root.folder(LINEAGE, create=True) / "0.safetensors"
    for place in [*range(header), *range(header, len(content), 7), len(content) - 1]:
        path.unlink(missing_ok=True)
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        with pytest.raises(CorruptTableError):
            cache.open_table(path, mmap=True)


@pytest.mark.parametrize("how", DAMAGES)
def test_the_only_table_heals_from_its_exported_json(warm: Path, lines: pytest.LogCaptureFixture, how: str) -> None:
    """Row 14: same IDs, same digest; the damaged file is kept beside it."""
    before = ids_of(warm)
    ids, digest = before.to_dict(), before.digest
    del before
    content = damage(*tables(warm), how)
    table = ids_of(warm)
    assert (table.to_dict(), table.digest) == (ids, digest)
    assert asides(warm) == [content]
    assert "Healed" in lines.text
    assert not errors(lines)
    assert ids_of(warm).status == "cached"


def another_training(monkeypatch: pytest.MonkeyPatch, seed: int = 9) -> None:
    """From now on the same training gives other codes, as on another machine."""
    from dataclasses import replace

    train = pipeline.train_table

    def train_otherwise(embeddings: Any, config: SemanticIdConfig, *rest: Any) -> Any:
        return train(embeddings, replace(config, seed=seed), *rest)

    monkeypatch.setattr(pipeline, "train_table", train_otherwise)


def test_ids_outlive_a_training_that_would_give_others(
    tmp_path: Path, warm_template: Path, monkeypatch: pytest.MonkeyPatch, lines: pytest.LogCaptureFixture
) -> None:
    """Row 14: the JSON holds the IDs; codebooks are fitted to them, and new items fit in."""
    warm = shutil.copytree(warm_template, tmp_path / "data")
    ids = ids_of(warm).to_dict()
    damage(*tables(warm))
    another_training(monkeypatch)
    healed = ids_of(warm)
    assert healed.to_dict() == ids
    assert not errors(lines)
    write_embeddings(warm, MORE)
    table = ids_of(warm)
    assert (table.status, len(table), table.lineage) == ("extended", 230, healed.lineage)
    assert {item: table[item] for item in ids} == ids
    assert len(set(map(tuple, table.values()))) == 230


@pytest.fixture
def grown(tmp_path: Path, warm_template: Path) -> Path:
    """A trained directory to which 30 items were added later: tables 0 and 1."""
    folder = shutil.copytree(warm_template, tmp_path / "grown")
    write_embeddings(folder, MORE)
    os.utime(folder / "creative_emb" / "emb_81_8.pkl", (1e9, 1e9))
    assert ids_of(folder).generation == 1
    return folder


@pytest.mark.parametrize("exported", [True, False], ids=["with its export", "without"])
def test_the_newest_table_heals_from_the_one_before(
    grown: Path, exported: bool, lines: pytest.LogCaptureFixture
) -> None:
    """Row 14: its quantizer is the lineage's; the JSON holds what was added since, or it is encoded again."""
    before = ids_of(grown)
    ids, digest = before.to_dict(), before.digest
    del before
    damage(tables(grown)[1])
    if not exported:
        (grown / "semantic_id_dict.json").unlink()
    user = checksums(grown)
    table = ids_of(grown)
    assert (table.to_dict(), table.digest) == (ids, digest)
    assert "Healed" in lines.text
    assert not errors(lines)
    assert checksums(grown) == user


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_newest_table_damaged_under_load_heals_and_moves_no_id(grown: Path, tmp_path: Path) -> None:
    """Row 14: three processes ask on and on while it is damaged, five times; every answer is the one before."""
    before = ids_of(grown)
    ids, born = before.to_dict(), before.generation
    del before
    end = tmp_path / "end"

    def ask(answer: Path) -> None:
        reads, wrong = 0, 0
        try:
            while not end.exists():
                table = ids_of(grown)
                reads += 1
                wrong += table.to_dict() != ids or table.status not in {"cached", "extended"}
        except BaseException:
            answer.write_text(traceback.format_exc())
            raise
        answer.write_text(f"{reads} {wrong}")

    def healed() -> bool:
        """Under the number that it had, or the next where it is damaged again while it heals."""
        try:
            newest = cache.open_table(tables(grown)[-1], mmap=True)
        except (CorruptTableError, FileNotFoundError):
            return False
        return newest.generation >= born and newest.to_dict() == ids

    fork = multiprocessing.get_context("fork")
    answers = [tmp_path / f"answer{number}" for number in range(3)]
    askers = [fork.Process(target=ask, args=(answer,)) for answer in answers]
    for asker in askers:
        asker.start()
    try:
        for spoil in DAMAGES.values():
            newest = tables(grown)[-1]
            spoilt = newest.with_name("spoilt")
            spoilt.write_bytes(spoil(newest.read_bytes()))
            spoilt.replace(newest)  # in one step: the maps of those who read stay valid
            deadline = time.monotonic() + 20
            while not healed():
                assert time.monotonic() < deadline
                time.sleep(0.02)
    finally:
        end.touch()
    for asker in askers:
        asker.join(50)
        assert asker.exitcode == 0, [answer.read_text() for answer in answers if answer.exists()]
    counts = [tuple(map(int, answer.read_text().split())) for answer in answers]
    assert all(reads > 0 and wrong == 0 for reads, wrong in counts), counts
    assert len(asides(grown)) == len(DAMAGES)


def test_items_that_have_gone_since_keep_their_ids_through_the_export(grown: Path) -> None:
    """Row 14: the newest table is lost and some of its items are in no embedding file any more."""
    ids = ids_of(grown).to_dict()
    damage(tables(grown)[1])
    write_embeddings(grown, np.concatenate([MORE[:210], vectors_of(10, seed=11)]))
    table = ids_of(grown)
    assert {item: table[item] for item in ids} == ids
    assert len(table) == 230


def test_what_cannot_be_proved_to_be_healed_is_an_error(grown: Path, lines: pytest.LogCaptureFixture) -> None:
    """Row 14: no export, and the vectors of the items added since are others."""
    first = SemanticIdTable.open(tables(grown)[0]).to_dict()
    damage(tables(grown)[1])
    (grown / "semantic_id_dict.json").unlink()
    path = grown / "creative_emb" / "emb_81_8.pkl"
    write_embeddings(grown, np.concatenate([MORE[:200], vectors_of(30, seed=12)]))
    os.utime(path, (1e9, 1e9))  # a change that neither size nor time shows
    table = ids_of(grown)
    assert {item: table[item] for item in first} == first
    assert len(table) == 230
    (error,) = errors(lines)
    assert "200 items keep their IDs" in error


def test_a_copy_in_another_cache_answers(warm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 14: of the same table in two roots one is damaged; the other serves, with nothing else left."""
    (path,) = tables(warm)
    copy = tmp_path / "shared" / path.relative_to(warm / ".semantic_ids")
    copy.parent.mkdir(parents=True)
    shutil.copy(path, copy)
    ids = ids_of(warm).to_dict()
    damage(path)
    (warm / "semantic_id_dict.json").unlink()
    another_training(monkeypatch)
    monkeypatch.setenv("SEMID_CACHE_DIR", str(tmp_path / "unused"))
    monkeypatch.setenv("USER_CACHE_PATH", str(tmp_path / "user"))
    (tmp_path / "user").mkdir()
    (tmp_path / "shared").rename(tmp_path / "user" / "semantic_ids")
    assert ids_of(warm).to_dict() == ids


def test_a_damaged_extension_of_a_parent_heals_from_the_parent(
    warm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: pytest.LogCaptureFixture
) -> None:
    """Row 14: the checkpoint's copy has the quantizer, the export the IDs of the items that were new."""
    parent = tmp_path / "semid_table.safetensors"
    ids_of(warm).save(parent)
    evaluation = tmp_path / "evaluation"
    write_embeddings(evaluation, MORE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    before = ids_of(evaluation, parent=parent)
    ids, digest = before.to_dict(), before.digest
    assert before.status == "extended"
    del before
    copy, extension = sorted(tables(evaluation), key=lambda path: path.parent.name != "parents")
    assert copy.parent.name == "parents"  # what was named as parent is kept in the cache, too
    damage(copy)
    damage(extension)
    table = ids_of(evaluation, parent=parent)
    assert (table.to_dict(), table.digest) == (ids, digest)
    assert not errors(lines)


def test_the_same_training_again_heals_where_nothing_else_is_left(warm: Path, lines: pytest.LogCaptureFixture) -> None:
    """Row 14: its digest proves that no ID moved."""
    before = ids_of(warm)
    digest, lineage = before.digest, before.lineage
    del before
    damage(*tables(warm))
    (warm / "semantic_id_dict.json").unlink()
    table = ids_of(warm)
    assert (table.digest, table.lineage) == (digest, lineage)
    assert "Healed the semantic_id table from the same training" in lines.text
    assert not errors(lines)


def test_where_nothing_is_left_an_error_says_so_and_a_new_lineage_begins(
    warm: Path, monkeypatch: pytest.MonkeyPatch, lines: pytest.LogCaptureFixture
) -> None:
    """Row 14: never other IDs under the old name."""
    before = ids_of(warm)
    lineage = before.lineage
    del before
    damage(*tables(warm))
    (warm / "semantic_id_dict.json").unlink()
    another_training(monkeypatch)
    table = ids_of(warm)
    assert table.status == "trained"
    assert table.lineage != lineage
    (error,) = errors(lines)
    assert lineage in error
    assert table.lineage in error
    again = ids_of(warm)
    assert (again.status, again.digest) == ("cached", table.digest)


@pytest.mark.parametrize("exported", [True, False], ids=["with its export", "without"])
def test_behind_a_closed_gate_a_damaged_table_is_left_alone(
    warm: Path, exported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 14: nothing is touched; the export answers from memory, else default IDs do."""
    ids = ids_of(warm).to_dict()
    damage(*tables(warm))
    if not exported:
        (warm / "semantic_id_dict.json").unlink()
    before = {path: path.read_bytes() for path in warm.rglob("*") if path.is_file()}
    monkeypatch.setenv("ALLOW_SEMANTIC_GENERATION", "0")
    table = ids_of(warm)
    assert (table.status, len(table)) == (("stale", 200) if exported else ("default", 0))
    if exported:
        assert table.to_dict() == ids
    assert {path: path.read_bytes() for path in warm.rglob("*") if path.is_file()} == before


def test_a_damaged_table_on_a_read_only_system_heals_in_the_next_cache(warm: Path) -> None:
    """Row 14: it cannot be set aside; a whole copy is published where writing works, and found."""
    before = ids_of(warm)
    ids, digest = before.to_dict(), before.digest
    del before
    damage(*tables(warm))
    with read_only(warm):
        table = ids_of(warm)
        assert (table.to_dict(), table.digest) == (ids, digest)
        assert str(table.path).startswith(os.environ["XDG_CACHE_HOME"])
        assert ids_of(warm).digest == digest


def test_a_damaged_table_that_cannot_be_renamed_is_healed_in_memory(warm: Path) -> None:
    """Row 14: chattr +i, so that its name stays taken; the IDs are the same all the same, and said to be unsaved."""
    ids = ids_of(warm).to_dict()
    (path,) = tables(warm)
    content = damage(path)
    with immutable(path):
        with pytest.warns(SemanticIdWarning, match="could not be saved"):
            table = SmallMixinDataset(warm).prepare_semantic_ids()
        assert table.to_dict() == ids
        assert path.read_bytes() == content


def test_a_damaged_compiled_file_is_compiled_again(data: Path) -> None:
    """Row 14: the hand-made JSON is the source."""
    (data / "semantic_id_dict.json").write_text('{"1": [1, 2], "2": [2, 1]}')
    assert ids_of(data).status == "pregenerated"
    damage(*tables(data))
    table = ids_of(data)
    assert (table.status, table[2]) == ("pregenerated", [2, 1])
    assert table.path is not None
    assert len(asides(data)) == 1


# --- other formats ---


@pytest.mark.parametrize("exported", [True, False], ids=["with its export", "without"])
def test_a_newer_format_is_an_error_and_trains_nothing(
    warm: Path, exported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 15: default IDs say who can read it; the file is untouched and nothing is set aside."""
    (path,) = tables(warm)
    table = SemanticIdTable.open(path)
    path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(container, "FORMAT_VERSION", container.FORMAT_VERSION + 1)
        path.write_bytes(
            b"".join(build_table_buffers(table.keys_array, table.codes_array, info=table.info, weights=table.weights))
        )
    del table
    content = path.read_bytes()
    if not exported:
        (warm / "semantic_id_dict.json").unlink()
    monkeypatch.setattr(pipeline, "train_table", lambda *_: pytest.fail("it was trained"))
    answer = ids_of(warm)
    assert answer.status == "default"
    assert "Install a newer semid_dataset" in answer.reason
    assert path.read_bytes() == content
    assert tables(warm) == [path]


def test_an_older_format_is_read(warm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 15: the version of today, seen by a reader of tomorrow."""
    digest = ids_of(warm).digest
    monkeypatch.setattr(container, "FORMAT_VERSION", container.FORMAT_VERSION + 1)
    answer = ids_of(warm)
    assert (answer.status, answer.digest) == ("cached", digest)


# --- embeddings that changed ---


@pytest.mark.parametrize("how", ["in place", "cp -p", "cp -p over it"])
def test_other_embeddings_of_the_same_size_and_time_are_noticed(
    tmp_path: Path, warm_template: Path, how: str, lines: pytest.LogCaptureFixture
) -> None:
    """Row 16: known IDs stay, the new items of the changed file get one."""
    data = shutil.copytree(warm_template, tmp_path / "data")
    ids = ids_of(data).to_dict()
    path = data / "creative_emb" / "emb_81_8.pkl"
    status = path.stat()
    other = tmp_path / "other"
    write_embeddings(other, np.concatenate([vectors_of(200)[:190], vectors_of(10, seed=5)]))
    content = (other / "creative_emb" / path.name).read_bytes()
    content = content.replace((ITEM0 + 195).to_bytes(5, "little"), (ITEM0 + 995).to_bytes(5, "little"))
    assert len(content) == status.st_size
    if how == "in place":
        with path.open("r+b") as file:
            file.write(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        source = tmp_path / "source.pkl"
        source.write_bytes(content)
        os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
        if how == "cp -p":
            path.unlink()
        subprocess.run(["cp", "-p", source, path], check=True)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    table = ids_of(data)
    assert table.status == "extended"
    assert {item: table[item] for item in ids} == ids
    assert ITEM0 + 995 in table


# --- the parts ---


def test_codebooks_fitted_to_ids_reproduce_vectors() -> None:
    """They explain nearly as much as the ones the IDs came from."""
    rng = np.random.default_rng(0)
    books = [rng.normal(size=(8, 6)) * scale for scale in (4, 2, 1)]
    codes = rng.integers(0, 8, (2000, 3)).astype(np.uint8)
    vectors = sum(book[codes[:, level]] for level, book in enumerate(books)).astype(np.float32)
    quantizer = healing.fit_to_ids(vectors, codes, (8, 8, 8))
    error = np.square(quantizer.decode(codes) - vectors).sum() / np.square(vectors - vectors.mean(0)).sum()
    assert error < 1e-4


def test_an_export_of_another_kind_of_id_heals_nothing(warm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three levels in the JSON do not answer who asks for two, whose table was never made."""
    ids_of(warm)
    damage(*tables(warm))
    config = SemanticIdConfig(num_quantizers=2, codebook_size=32, num_epochs=1, device="cpu")
    table = ids_of(warm, config=config)
    assert (table.status, table.levels) == ("trained", 2)


@pytest.fixture
def lost(grown: Path, monkeypatch: pytest.MonkeyPatch) -> dict[Any, list[int]]:
    """The IDs of a table in a shared cache that was damaged since."""
    monkeypatch.setenv("SEMID_CACHE_DIR", str(grown / ".semantic_ids"))
    ids = ids_of(grown).to_dict()
    damage(tables(grown)[1])
    return ids


def test_a_lost_table_that_another_dataset_grew_past_is_taken_in_again(
    grown: Path, lost: dict[Any, list[int]], tmp_path: Path, lines: pytest.LogCaptureFixture
) -> None:
    """Row 14: in a shared cache others extend from the table before; the lost IDs come back beside theirs."""
    other = tmp_path / "other"
    write_embeddings(other, MORE[:200])
    path = other / "creative_emb" / "emb_81_8.pkl"
    added = {ITEM0 + 1000 + k: vector for k, vector in enumerate(MORE[200:])}
    path.write_bytes(pickle.dumps(pickle.loads(path.read_bytes()) | added))
    theirs = ids_of(other).to_dict()
    lines.clear()
    table = ids_of(grown)
    assert {item: table[item] for item in lost} == lost
    assert {item: table[item] for item in theirs} == theirs
    assert len(table) == 260
    new = {tuple(theirs[item]) for item in theirs if item not in lost}
    shared = sum(tuple(codes) in new for codes in lost.values())
    (error,) = errors(lines)
    assert f"0 items had got other IDs and keep those, {shared} share" in error
    assert ids_of(grown).generation == table.generation == 3


def test_ids_that_were_given_anew_before_a_table_healed_are_named(
    grown: Path, lost: dict[Any, list[int]], tmp_path: Path, lines: pytest.LogCaptureFixture
) -> None:
    """Row 14: others had to give some of the lost items IDs; no ID that can be read moves, and an error counts them."""
    other = tmp_path / "other"
    write_embeddings(other, np.concatenate([MORE[:200], vectors_of(270)[250:]]))
    theirs = ids_of(other).to_dict()
    lines.clear()
    table = ids_of(grown)
    assert {item: table[item] for item in theirs} == theirs
    others = sum(theirs[item] != lost[item] for item in theirs)
    assert others > 0
    assert all(table[item] == codes for item, codes in lost.items() if item not in theirs)
    (error,) = errors(lines)
    assert f"{others} items had got other IDs" in error
