"""Who answers a dataset, in which order, and what is said about it."""

import contextlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faultkit import mounted, read_only, tmpfs
from world import ITEM0, SMALL, SmallDataset, SmallMixinDataset, make_data, options, vectors_of, write_embeddings

from semid_dataset import (
    SemanticIdConfig,
    SemanticIdTable,
    _files,
    generate_semantic_ids,
    generate_semantic_ids_on_demand,
    resolve,
)
from semid_dataset.build import handmade, pipeline
from semid_dataset.cache import folders
from semid_dataset.errors import NoEmbeddingsError, ParentError, SemanticIdWarning, SemidError, TableError
from semid_dataset.format import tensors as container
from semid_dataset.inputs import read as features
from semid_dataset.table.table import build_table_buffers

CLOSED = ["0", "false", "No", " off ", "maybe"]
OPEN = ["", "1", "true", "YES", "on"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_data(tmp_path / "data")


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, "semid_dataset"):
        yield caplog


def table_of(data_dir: Path, **settings: Any) -> SemanticIdTable:
    """What a new dataset of the directory gets; a warning is not an error here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SemanticIdWarning)
        return SmallMixinDataset(data_dir).prepare_semantic_ids(**settings)


def no_reading(*_: object, **__: object) -> None:
    raise AssertionError("embeddings were read")


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- the warm way ---


def test_a_warm_start_reads_no_embedding(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry names the table by what stat tells of the files."""
    trained = table_of(data)
    monkeypatch.setattr(features, "read_sources", no_reading)
    table = table_of(data)
    assert (table.status, table.digest) == ("cached", trained.digest)


def test_a_warm_start_takes_no_lock_and_writes_nothing(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It works on a read-only system."""
    os.utime(data / "creative_emb" / "emb_81_8.pkl", (1e9, 1e9))
    table_of(data)
    before = files_below(data)
    monkeypatch.setattr(resolve.Cache, "lease", no_reading)
    monkeypatch.setattr(_files, "replace_file", no_reading)
    monkeypatch.setattr(_files, "publish_first", no_reading)
    assert table_of(data).status == "cached"
    assert files_below(data) == before


def test_a_copied_directory_is_recognised_by_sampled_blocks(data: Path, tmp_path: Path) -> None:
    """Containers see other devices and inodes; times and sizes are kept by `cp -a`."""
    trained = table_of(data)
    shutil.copytree(data, tmp_path / "copy", copy_function=shutil.copy2)
    table = table_of(tmp_path / "copy")
    assert (table.status, table.digest) == ("cached", trained.digest)


@pytest.mark.parametrize("cache", ["inside", "elsewhere"])
@pytest.mark.parametrize("how", ["renamed", "linked", "bound", "read-only", "another device"])
def test_a_directory_by_another_name_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, cache: str
) -> None:
    """Names are no identity: no embedding is read, nobody trains, and the IDs are the same."""
    if cache == "elsewhere":
        monkeypatch.setenv("SEMID_CACHE_DIR", str(tmp_path / "cache"))
    data, other = make_data(tmp_path / "data"), tmp_path / "other"
    os.utime(data / "creative_emb" / "emb_81_8.pkl", (1e9, 1e9))
    trained = table_of(data)
    with contextlib.ExitStack() as stack:
        if how == "renamed":
            data.rename(other)
        elif how == "linked":
            other.symlink_to(data)
        elif how == "bound":
            stack.enter_context(mounted(other, "--bind", str(data)))
        elif how == "read-only":
            stack.enter_context(mounted(other, "--bind", str(data)))
            stack.enter_context(read_only(other))
        else:
            stack.enter_context(tmpfs(other, "size=4m"))
            shutil.copytree(data, other, copy_function=shutil.copy2, dirs_exist_ok=True)
        monkeypatch.setattr(features, "read_sources", no_reading)
        monkeypatch.setattr(pipeline, "train_table", no_reading)
        table = table_of(other)
        assert (table.status, table.digest, table.lineage) == ("cached", trained.digest, trained.lineage)
        del table


def test_a_file_replaced_under_the_same_size_and_time_is_noticed(data: Path) -> None:
    """`cp -p` of other content changes inode and ctime, and the sampled blocks tell."""
    table_of(data)
    path = data / "creative_emb" / "emb_81_8.pkl"
    status = path.stat()
    write_embeddings(data, vectors_of(200, seed=9))
    assert path.stat().st_size == status.st_size
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert table_of(data).status == "trained"


def test_other_training_settings_do_not_retrain(data: Path, lines: pytest.LogCaptureFixture) -> None:
    """One line says so and names the way to retrain."""
    trained = table_of(data)
    table = table_of(
        data,
        config=SemanticIdConfig(
            num_quantizers=3, codebook_size=16, num_epochs=7, seed=3, algorithm="rqvae", device="cpu"
        ),
    )
    assert (table.status, table.digest) == ("cached", trained.digest)
    assert "num_epochs=2" in lines.text
    assert "retrain=True" in lines.text


def test_other_ids_are_other_lineages(data: Path) -> None:
    """Three levels do not answer who asks for two."""
    table_of(data)
    table = table_of(data, config=SemanticIdConfig(num_quantizers=2, codebook_size=32, num_epochs=1, device="cpu"))
    assert (table.status, table.levels) == ("trained", 2)
    assert table_of(data).levels == 3


# --- lineages ---


def test_new_items_are_added_and_known_ones_keep_their_codes(data: Path) -> None:
    """The quantizer is frozen; the next start finds all of them."""
    trained = table_of(data)
    write_embeddings(data, np.concatenate([vectors_of(200), vectors_of(30, seed=7)]))
    table = table_of(data)
    assert (table.status, len(table), table.generation) == ("extended", 230, 1)
    assert all(table[item] == codes for item, codes in trained.items())
    assert len({tuple(codes) for codes in table.values()}) == 230
    again = table_of(data)
    assert (again.status, again.digest) == ("cached", table.digest)


def test_removed_items_keep_their_id_reserved(data: Path) -> None:
    """A recommender may still have learned it."""
    trained = table_of(data)
    write_embeddings(data, vectors_of(150))
    table = table_of(data)
    assert (table.status, len(table)) == ("cached", 200)
    assert table[ITEM0 + 199] == trained[ITEM0 + 199]


def test_a_parent_gives_the_very_ids_that_training_had(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines with nothing in common but the checkpoint."""
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    write_embeddings(data, vectors_of(300)[:200])
    trained = table_of(data)
    trained.save(checkpoint / "semid_table.safetensors")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another cache"))
    evaluation = tmp_path / "eval"
    write_embeddings(evaluation, vectors_of(300)[:210])
    table = table_of(evaluation, parent=checkpoint)
    assert (table.status, len(table)) == ("extended", 210)
    assert all(table[item] == codes for item, codes in trained.items())
    assert table_of(evaluation, parent=checkpoint).status == "cached"
    monkeypatch.setenv("SEMID_PARENT", str(checkpoint / "semid_table.safetensors"))
    assert table_of(evaluation).digest == table.digest


def test_a_parent_that_knows_every_item_answers_itself(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing needs to be written but the entry."""
    trained = table_of(data)
    trained.save(tmp_path / "semid_table.safetensors")
    shutil.rmtree(data / ".semantic_ids")
    (data / "semantic_id_dict.json").unlink()
    table = table_of(data, parent=tmp_path)
    assert (table.status, table.digest) == ("cached", trained.digest)
    monkeypatch.setattr(features, "read_sources", no_reading)
    assert table_of(data, parent=tmp_path).status == "cached"


def test_a_parent_wins_over_what_the_directory_had(data: Path, tmp_path: Path, lines: pytest.LogCaptureFixture) -> None:
    """The recommender was trained with the parent's IDs."""
    other = make_data(tmp_path / "other", seed=3)
    parent = table_of(other, config=SMALL)
    own = table_of(data)
    table = table_of(data, parent=parent)
    assert table[ITEM0] == parent[ITEM0] != own[ITEM0]
    assert f"lineage {own.lineage} did not answer: the parent is of lineage {parent.lineage}" in lines.text
    assert table_of(data).digest == own.digest


def make_two(data_dir: Path, dim: int = 12) -> Path:
    write_embeddings(make_data(data_dir), vectors_of(200, dim, seed=4), feature="82")
    return data_dir


WRONG_PARENTS: dict[str, tuple[tuple[str, ...], str]] = {  # features of the dataset, and what the error must show
    "missing": (("81",), "does not exist"),
    "dims": (("81",), "81.*6.*asks for.*81.*8"),
    "features": (("81",), "82.*asks for.*81"),
    "dims of one of two": (("81", "82"), "82.*10.*asks for.*82.*12"),
    "levels": (("81",), "256.*256.*asks for.*16.*16.*16"),
    "codes": (("81",), "16.*16.*8.*asks for.*16.*16.*16"),
    "fusion": (("81", "82"), "concat.*asks for.*aligned"),
    "damaged": (("81",), "damaged or cut off"),
    "newer": (("81",), "Install a newer semid_dataset"),
}


@pytest.mark.parametrize("kind", WRONG_PARENTS)
def test_a_wrong_parent_is_said_and_never_replaced_by_training(
    data: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an error, as any wrong argument is, with what was found and what is wanted; nothing is trained."""
    asked, message = WRONG_PARENTS[kind]
    parent, other, theirs = tmp_path / "semid_table.safetensors", tmp_path / "other", asked
    config = SMALL
    if kind == "levels":
        config = SemanticIdConfig(num_quantizers=2, num_epochs=1)
    elif kind == "codes":
        config = replace(SMALL, codebook_size=(16, 16, 8))
    elif kind == "fusion":
        config = replace(SMALL, fusion="concat")
    if kind == "features":
        theirs = ("82",)
    if kind == "dims":
        make_data(other, dim=6)
    else:
        make_two(other, dim=10 if kind == "dims of one of two" else 12)
    with monkeypatch.context() as patch:
        if kind == "newer":
            patch.setattr(container, "FORMAT_VERSION", 9)
        SmallMixinDataset(other, theirs).prepare_semantic_ids(config=config).save(parent)
    if kind == "damaged":
        parent.write_bytes(parent.read_bytes()[:-40])
    if kind == "missing":
        parent.unlink()
    make_two(data)
    before = files_below(tmp_path)
    with pytest.raises((ParentError, TableError)) as seen:
        SmallMixinDataset(data, asked).prepare_semantic_ids(parent=parent)
    assert re.search(message, str(seen.value)), str(seen.value)
    assert str(parent) in str(seen.value)
    after = files_below(tmp_path)
    assert {name: after.get(name) for name in before} == before
    assert all("parents" in name for name in after.keys() - before.keys())  # where it was taken in before it was judged


def test_a_parent_without_a_quantizer_serves_what_it_knows(data: Path) -> None:
    """A recommender that was trained on a hand-made file has no other."""
    parent = SemanticIdTable.from_mapping({ITEM0: [1, 2, 3]})
    table = table_of(data, parent=parent)
    assert (table.status, table[ITEM0], table[ITEM0 + 1]) == ("stale", [1, 2, 3], [0, 0, 0])
    with pytest.raises(ParentError, match="no quantizer"):
        generate_semantic_ids(data, ["81"], config=SMALL, parent=parent)


def test_empty_embeddings_in_memory_are_none(tmp_path: Path) -> None:
    """A loader that found no file leaves {"81": {}}."""
    dataset = SmallDataset(tmp_path)
    dataset.mm_emb_dict = {"81": {}}
    with pytest.warns(SemanticIdWarning, match="creative_emb"):
        assert dataset.semantic_id_dict.status == "default"


def test_two_data_sets_that_both_count_from_zero_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal ids prove nothing; the vectors do."""
    monkeypatch.setenv("SEMID_CACHE_DIR", str(tmp_path / "cache"))
    first = table_of(make_data(tmp_path / "a", seed=1))
    second = table_of(make_data(tmp_path / "b", seed=2))
    assert (first.status, second.status) == ("trained", "trained")
    assert first.lineage != second.lineage
    assert table_of(tmp_path / "a").digest == first.digest
    assert table_of(tmp_path / "b").digest == second.digest


def test_a_moved_directory_finds_its_lineage(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when its files were written anew, so that no entry fits."""
    monkeypatch.setenv("SEMID_CACHE_DIR", str(tmp_path / "cache"))
    trained = table_of(data)
    moved = tmp_path / "elsewhere"
    write_embeddings(moved, vectors_of(200)[:, :])
    os.utime(moved / "creative_emb" / "emb_81_8.pkl", (1, 1))
    table = table_of(moved)
    assert (table.status, table.digest) == ("cached", trained.digest)


def test_a_damaged_table_is_set_aside_and_made_again(data: Path, lines: pytest.LogCaptureFixture) -> None:
    """The same data and seed give the same IDs."""
    trained = table_of(data)
    path, ids, digest = trained.path, trained.to_dict(), trained.digest
    assert path is not None
    del trained
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)
    table = table_of(data)
    assert (table.path, table.digest) == (path, digest)
    assert table.to_dict() == ids
    assert [aside.read_bytes() for aside in path.parent.glob("*.damaged-*")] == [bytes(content)]
    assert "damaged" in lines.text


def test_a_damaged_newest_generation_is_healed_from_the_one_before(data: Path) -> None:
    """The items that it had added get the IDs that they had."""
    trained = table_of(data)
    write_embeddings(data, np.concatenate([vectors_of(200), vectors_of(30, seed=7)]))
    extended = table_of(data)
    ids = extended.to_dict()
    assert extended.path is not None
    path = extended.path
    del extended
    damaged = path.read_bytes()[:-1] + b"\0"
    path.unlink()
    path.write_bytes(damaged)
    table = table_of(data)
    assert table.to_dict() == ids
    assert all(table[item] == codes for item, codes in trained.items())


def test_a_newer_format_is_no_reason_to_train(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is left untouched and the error says who can read it."""
    table = table_of(data)
    assert table.path is not None
    path = table.path
    with monkeypatch.context() as patch:
        patch.setattr(container, "FORMAT_VERSION", 9)
        content = b"".join(
            build_table_buffers(table.keys_array, table.codes_array, info=table.info, weights=table.weights)
        )
    path.unlink()
    path.write_bytes(content)
    (data / "semantic_id_dict.json").unlink()
    answer = table_of(data)
    assert answer.status == "default"
    assert "version" in answer.reason
    assert path.read_bytes() == content


# --- semantic_id_dict.json ---


def test_the_json_file_says_what_the_table_says(data: Path) -> None:
    """Whoever loads it with json.load gets the same IDs."""
    table = table_of(data)
    ids = json.loads((data / "semantic_id_dict.json").read_text())
    assert ids == {str(item): codes for item, codes in table.items()}


def test_a_hand_made_file_is_honoured_and_compiled(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the source, whoever wrote it: never trained past."""
    (data / "semantic_id_dict.json").write_text(json.dumps({str(ITEM0): [9, 8, 7, 6]}))
    before = (data / "semantic_id_dict.json").read_bytes()
    table = table_of(data)
    assert (table.status, table[ITEM0], table[ITEM0 + 1]) == ("pregenerated", [9, 8, 7, 6], [0, 0, 0, 0])
    monkeypatch.setattr(handmade, "parse_id_json", no_reading)
    again = table_of(data)
    assert (again.status, again.digest) == ("pregenerated", table.digest)
    assert (data / "semantic_id_dict.json").read_bytes() == before


def test_a_hand_made_file_that_changes_is_read_again(data: Path) -> None:
    """As a .pyc is made again from its .py."""
    path = data / "semantic_id_dict.json"
    path.write_text(json.dumps({"1": [1, 2]}))
    assert table_of(data)[1] == [1, 2]
    path.write_text(json.dumps({"1": [2, 1]}))
    assert table_of(data)[1] == [2, 1]


def test_our_own_export_does_not_stop_the_table_from_growing(data: Path, tmp_path: Path) -> None:
    """It is recognised by its content, also where it was copied to."""
    table_of(data)
    write_embeddings(data, vectors_of(220))
    assert table_of(data).status == "extended"
    assert len(json.loads((data / "semantic_id_dict.json").read_text())) == 220


@pytest.mark.parametrize(
    "content",
    [
        '{"1": [1, 2.5]}',
        '{"1": [1, -2]}',
        '{"1": [1], "2": [1, 2]}',
        "[1, 2]",
        '{"1": [1, 70000]}',
        '{"1": [1',
        "{}",
        '{"1": "x"}',
    ],
)
def test_a_file_that_lies_is_an_error_and_stays(data: Path, content: str) -> None:
    """Default IDs answer, and the reason names the file."""
    path = data / "semantic_id_dict.json"
    path.write_text(content)
    table = table_of(data)
    assert table.status == "default"
    assert str(path) in table.reason
    assert path.read_text() == content


# --- the gate ---


@pytest.mark.parametrize("value", OPEN)
def test_an_open_gate_generates(data: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """Unset and empty count as open."""
    monkeypatch.setenv("ALLOW_SEMANTIC_GENERATION", value)
    assert table_of(data).status == "trained"


@pytest.mark.parametrize("value", CLOSED)
def test_a_closed_gate_serves_defaults_and_writes_nothing(
    data: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """The reason names the variable."""
    monkeypatch.setenv("ALLOW_SEMANTIC_GENERATION", value)
    before = files_below(data.parent)
    table = table_of(data)
    assert table.status == "default"
    assert "ALLOW_SEMANTIC_GENERATION" in table.reason
    assert files_below(data.parent) == before


@pytest.mark.parametrize("value", CLOSED)
def test_a_closed_gate_serves_what_is_there(data: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """Production ships the file."""
    trained = table_of(data)
    monkeypatch.setenv("ALLOW_SEMANTIC_GENERATION", value)
    table = table_of(data)
    assert (table.status, table.digest) == ("cached", trained.digest)


def test_a_gate_value_that_is_not_understood_is_warned_about(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A typo must be seen."""
    table_of(data)
    monkeypatch.setenv("ALLOW_SEMANTIC_GENERATION", "flase")
    with pytest.warns(SemanticIdWarning, match="'flase' is not understood"):
        _ = SmallDataset(data).semantic_id_dict


def test_one_item_more_behind_a_closed_gate_keeps_the_known_ones(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One warning, nothing written, the new item has the default ID."""
    trained = table_of(data)
    write_embeddings(data, vectors_of(201))
    monkeypatch.setenv("ALLOW_SEMANTIC_GENERATION", "false")
    before = files_below(data)
    with pytest.warns(SemanticIdWarning, match="1 items are new") as seen:
        table = SmallDataset(data).semantic_id_dict
    assert len(seen) == 1
    assert (table.status, table[ITEM0 + 5], table[ITEM0 + 200]) == ("stale", trained[ITEM0 + 5], [0, 0, 0])
    assert files_below(data) == before


def test_embeddings_that_have_gone_leave_the_known_ids(data: Path) -> None:
    """The lineage that last served the directory answers."""
    trained = table_of(data)
    shutil.rmtree(data / "creative_emb")
    table = table_of(data)
    assert (table.status, table.digest) == ("stale", trained.digest)


# --- degrading ---


def run_zh(data_dir: Path) -> list[str]:
    """Log lines of a new process under SEMID_LANG=zh."""
    code = (
        "import sys, logging, world, warnings; warnings.simplefilter('ignore');"
        "logging.basicConfig(level=logging.INFO, format='%(message)s', stream=sys.stdout);"
        "world.SmallDataset(sys.argv[1]).semantic_id_dict"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(data_dir)],
        env=os.environ | {"SEMID_LANG": "zh", "PYTHONIOENCODING": "utf-8"},
        cwd=Path(__file__).parent,
        check=True,
        capture_output=True,
    )
    return done.stdout.decode().splitlines()


def test_the_chinese_log_is_the_promised_one(data: Path) -> None:
    """Monitoring greps for these lines."""
    first = run_zh(data)
    loss = [line for line in first if line.startswith("Epoch ")]
    chosen = [line for line in first if "码本：" in line]
    assert len(chosen) == 1
    assert [line for line in first if line not in loss + chosen] == [
        "未找到semantic_id特征，尝试自动生成...",
        "正在生成semantic_id特征...",
        "加载多模态特征用于RQ-VAE训练...",
        "Loaded #81 mm_emb",
        "获取了 200 个物品的多模态特征，维度: 8",
        "开始训练RQ-VAE模型...",
        "RQ-VAE训练完成！",
        "生成semantic_id...",
        "为 200 个物品生成了semantic_id",
        f"保存semantic_id到 {data / 'semantic_id_dict.json'}",
        "semantic_id生成和保存完成！",
        "成功生成 200 个物品的semantic_id特征",
    ]
    assert [line.split(":")[0] for line in loss] == ["Epoch 2/2"]
    assert run_zh(data) == ["成功加载 200 个物品的semantic_id特征"]


def test_no_embeddings_is_said_in_the_promised_words(tmp_path: Path) -> None:
    """And nothing else is logged."""
    assert run_zh(tmp_path) == [
        f"警告: 未找到多模态特征目录 {tmp_path / 'creative_emb'}",
        "无法获取多模态特征，跳过semantic_id生成",
        "semantic_id生成失败，将使用默认值",
    ]


def test_an_unreadable_feature_gives_defaults_with_the_reason(data: Path) -> None:
    """Exit 0, and one warning that names the file."""
    path = data / "creative_emb" / "emb_81_8.pkl"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(SemanticIdWarning, match="emb_81_8") as seen:
        table = SmallDataset(data).semantic_id_dict
    assert table.status == "default"
    assert len(seen) == 1


def test_an_unreadable_feature_beside_a_good_one_is_done_without(data: Path, lines: pytest.LogCaptureFixture) -> None:
    """Its IDs are those of the good one alone; when it can be read again, other IDs are asked for."""
    alone = table_of(data)
    damaged = data / "creative_emb" / "emb_82_12.pkl"
    damaged.write_bytes(b"\x80\x04nothing")
    both = SmallDataset(data, ("81", "82")).semantic_id_dict
    assert (both.status, both.lineage) == ("cached", alone.lineage)
    assert "Feature 82 cannot be read" in lines.text
    assert SmallDataset(data, ("81", "82")).semantic_id_dict.status == "cached"
    write_embeddings(data, vectors_of(200, 12), feature="82")
    assert SmallDataset(data, ("81", "82")).semantic_id_dict.status == "trained"


def test_a_training_that_fails_gives_defaults_with_the_reason(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the error is none of ours."""

    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(pipeline, "train_table", fail)
    with pytest.warns(SemanticIdWarning, match="device-side assert"):
        assert SmallDataset(data).semantic_id_dict.status == "default"


def test_where_nothing_can_be_written_ids_stay_in_memory(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real IDs, a warning, and no file."""
    monkeypatch.setattr(folders.CacheFolder, "takes_writes", lambda self: False)
    with pytest.warns(SemanticIdWarning, match="could not be saved"):
        table = SmallDataset(data).semantic_id_dict
    assert (table.status, len(table), table.path) == ("trained", 200, None)


def test_a_read_only_data_directory_is_left_alone(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's cache takes the table; the JSON file is not written."""
    if subprocess.run(["mount", "--bind", data, data], check=False, capture_output=True).returncode:
        pytest.skip("a read-only bind mount needs root and mount(8)")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", data], check=True)
        before = files_below(data)
        table = table_of(data)
        assert (table.status, len(table)) == ("trained", 200)
        assert str(table.path).startswith(os.environ["XDG_CACHE_HOME"])
        assert table_of(data).status == "cached"
        assert files_below(data) == before
    finally:
        subprocess.run(["umount", data], check=True)


def test_duplicates_get_ids_of_their_own(tmp_path: Path) -> None:
    """Real catalogues hold the same text twice."""
    vectors = vectors_of(60)
    vectors[10:20] = vectors[0]
    write_embeddings(tmp_path, vectors)
    table = table_of(tmp_path)
    assert len({tuple(codes) for codes in table.values()}) == 60
    assert table.quality["exact_duplicates"] == 10


def test_beyond_the_capacity_items_share_ids_with_a_warning(tmp_path: Path) -> None:
    """Three levels of two codes cannot hold 60 items."""
    make_data(tmp_path, 60)
    config = SemanticIdConfig(num_quantizers=3, codebook_size=2, num_epochs=1, device="cpu")
    with pytest.warns(SemanticIdWarning, match="will share"):
        table = SmallMixinDataset(tmp_path).prepare_semantic_ids(config=config)
    assert (table.status, len(table)) == ("trained", 60)


@pytest.mark.parametrize("vectors", [np.ones((1, 4)), np.arange(5.0)[:, None], vectors_of(3)])
def test_little_data_still_gives_ids(tmp_path: Path, vectors: np.ndarray) -> None:
    """One item, one dimension, fewer items than codes."""
    write_embeddings(tmp_path, vectors.astype(np.float32))
    table = table_of(tmp_path)
    assert table.status == "trained"
    assert len({tuple(codes) for codes in table.values()}) == len(vectors)


# --- the functions ---


def test_the_original_function_returns_the_table(data: Path) -> None:
    """Of `args` only the device is read: its lr and batch_size are the recommender's."""
    table = generate_semantic_ids_on_demand(
        data_path=data, mm_emb_ids=["81"], args=options(device="cpu", lr=9.0, batch_size=1)
    )
    assert (table.status, table.levels, len(table)) == ("trained", 4, 200)
    assert table.info["settings"]["lr"] == 1e-3


def test_the_original_function_never_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even in one rank of several, where the property does."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.warns(SemanticIdWarning):
        assert generate_semantic_ids_on_demand(tmp_path, ["81"]).status == "default"
    with pytest.warns(SemanticIdWarning):
        assert generate_semantic_ids_on_demand(tmp_path, ["../../etc"]).status == "default"


def test_the_explicit_command_ignores_the_gate_and_raises(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who types it means it."""
    monkeypatch.setenv("ALLOW_SEMANTIC_GENERATION", "0")
    assert generate_semantic_ids(data, [81], config=SMALL).status == "trained"
    with pytest.raises(NoEmbeddingsError):
        generate_semantic_ids(tmp_path, ["81"], config=SMALL)


def test_output_dir_leaves_the_cache_and_the_data_alone(data: Path, tmp_path: Path) -> None:
    """Pre-generation: the JSON is copied into the data directory by hand, and used."""
    before = files_below(data)
    output = tmp_path / "out"
    table = generate_semantic_ids(data, ["81"], config=SMALL, output_dir=output)
    assert files_below(data) == before
    assert sorted(path.name for path in output.iterdir()) == ["semantic_id_dict.json", "semid_table.safetensors"]
    shutil.copy(output / "semantic_id_dict.json", data)
    answer = table_of(data)
    assert (answer.status, answer.to_dict()) == ("pregenerated", table.to_dict())


def test_retraining_is_a_new_lineage_and_says_what_moved(data: Path, lines: pytest.LogCaptureFixture) -> None:
    """The old one stays for whoever names it."""
    old = table_of(data)
    new = generate_semantic_ids(
        data, ["81"], config=SemanticIdConfig(num_quantizers=3, codebook_size=16, num_epochs=2, seed=5), retrain=True
    )
    assert new.status == "trained"
    assert new.lineage != old.lineage
    assert "of 200 items moved" in lines.text
    assert table_of(data).digest == new.digest
    assert table_of(data, parent=old.path)[ITEM0] == old[ITEM0]


def test_errors_of_the_explicit_command_are_ours(data: Path) -> None:
    """A caller catches one root."""
    with pytest.raises(SemidError):
        generate_semantic_ids(data, ["../../etc"], config=SMALL)
