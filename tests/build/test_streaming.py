"""What is streamed is what memory would have held: the same sample, the same codes, the same table."""

import json
import logging
import os
import pickle
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from world import ITEM0, SMALL, SmallDataset, vectors_of

from semid_dataset import api as commands
from semid_dataset.build import lineages as lineage
from semid_dataset.build import memory, pipeline
from semid_dataset.build.streaming import executors as engines
from semid_dataset.build.streaming import merge, workfolder
from semid_dataset.build.streaming import run as scale
from semid_dataset.build.streaming import tasks as stages
from semid_dataset.cache import cache, folders
from semid_dataset.cache.prune import find_waste
from semid_dataset.config import SemanticIdConfig
from semid_dataset.environment import Context, Environment
from semid_dataset.errors import ConfigError, EmbeddingError, StoreError
from semid_dataset.features import FeatureMatrix
from semid_dataset.inputs.discover import find_sources
from semid_dataset.table.table import SemanticIdTable

DIM = 8
Vectors = NDArray[np.float32]


def write(data_dir: Path, form: str, ids: Sequence[int], vectors: Vectors, parts: int = 3) -> Path:
    """A feature in one of its forms."""
    folder = data_dir / "creative_emb"
    folder.mkdir(parents=True, exist_ok=True)
    if form == "pickle":
        (folder / f"emb_81_{DIM}.pkl").write_bytes(pickle.dumps(dict(zip(ids, vectors, strict=True))))
        return data_dir
    folder /= f"emb_81_{DIM}" + ("_parquet" if form == "parquet" else "")
    folder.mkdir()
    for number, rows in enumerate(np.array_split(np.arange(len(ids)), parts)):
        if form == "parquet":
            emb = pa.array(list(vectors[rows]), pa.list_(pa.float32()))
            pq.write_table(
                pa.table({"anonymous_cid": [ids[row] for row in rows], "emb": emb}), folder / f"{number}.parquet"
            )
        else:
            lines = [json.dumps({"anonymous_cid": ids[row], "emb": vectors[row].tolist()}) for row in rows]
            (folder / f"part-{number}").write_text("\n".join(lines))
    return data_dir


def world(items: int = 600) -> tuple[list[int], Vectors]:
    """Ids in no order, and vectors of which some are equal."""
    ids = (ITEM0 + np.random.default_rng(3).permutation(items)).tolist()
    vectors = vectors_of(items, DIM)
    vectors[10:20] = vectors[5]
    return ids, vectors


def generate(data_dir: Path, **options: Any) -> SemanticIdTable:
    return commands.generate_semantic_ids(data_dir, config=options.pop("config", SMALL), **options)


def work_folders(data_dir: Path) -> list[Path]:
    return list((data_dir / ".semantic_ids" / "v1" / "jobs").glob("*"))


@pytest.fixture(autouse=True)
def no_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a megabyte is a limit: what a process takes by itself is left out of account."""
    monkeypatch.setattr(memory, "BASE_BYTES", 0)
    monkeypatch.setattr(memory, "ROOM_BYTES", 0)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that some hundred items are several parts."""
    monkeypatch.setattr(scale, "LEAST_PART", 50)
    monkeypatch.setattr(scale, "PART_BYTES", 50 * 4 * DIM)


@pytest.mark.parametrize("form", ["pickle", "jsonl", "parquet"])
def test_the_table_is_the_one_that_memory_makes(form: str, tmp_path: Path, small_parts: None) -> None:
    """Where the sample is everything: the same codebooks, codes, uniqueness and figures; nothing is left behind."""
    held = generate(write(tmp_path / "memory", form, *world()))
    streamed = generate(write(tmp_path / "stream", form, *world()), engine="local")
    assert streamed.digest == held.digest
    assert streamed.lineage == held.lineage
    assert (streamed.status, len(streamed)) == ("trained", 600)
    assert streamed.quality["moved"] == held.quality["moved"] > 0
    assert streamed.quality["exact_duplicates"] == held.quality["exact_duplicates"] == 10
    assert streamed.quality["shared"] == 0
    for name in ("relative_mse", "relative_mse_raw"):
        assert streamed.quality[name] == pytest.approx(held.quality[name], rel=1e-4)
    for name in ("variance", "relative_error"):
        assert streamed.info["provenance"][name] == pytest.approx(held.info["provenance"][name], rel=1e-4)
    assert streamed.info["provenance"]["files"] == held.info["provenance"]["files"]
    assert work_folders(tmp_path / "stream") == []
    assert (tmp_path / "stream" / "semantic_id_dict.json").read_bytes() == (
        tmp_path / "memory" / "semantic_id_dict.json"
    ).read_bytes()
    assert generate(tmp_path / "stream").status == "cached"


def test_it_streams_by_itself_beyond_the_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On the first access, as in memory; the line says how much there is and how much is allowed."""
    ids, vectors = world(20_000)
    write(tmp_path / "a", "parquet", ids, vectors)
    write(tmp_path / "b", "parquet", ids, vectors)
    limited = replace(SMALL, memory_limit=1 << 20, num_epochs=0, unique=False)
    with caplog.at_level(logging.INFO, "semid_dataset"):
        generate(tmp_path / "a", config=limited)
    assert "they are streamed in parts" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "semid_dataset"):
        generate(tmp_path / "b", config=replace(SMALL, num_epochs=0, unique=False))
    assert "streamed" not in caplog.text


def test_the_property_streams_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit may come from the environment, and more items extend the lineage as they do in memory."""
    monkeypatch.setenv("SEMID_MEMORY_LIMIT", "1M")
    monkeypatch.setattr(memory, "is_beyond", lambda sources, limit: limit == 1 << 20)
    opened: list[str] = []
    monkeypatch.setattr(scale, "open_job", _noting(opened, scale.open_job))
    data_dir = write(tmp_path, "jsonl", *world())
    assert SmallDataset(data_dir).semantic_id_dict.status == "trained"
    assert len(opened) == 1


def _noting(calls: list[str], function: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*args: Any, **options: Any) -> Any:
        calls.append(function.__name__)
        return function(*args, **options)

    return noted


def test_an_explicit_limit_counts_more_than_the_variable(tmp_path: Path) -> None:
    """Who names it in a program or on a command line means it."""
    context = Context.at_door(variables={"SEMID_MEMORY_LIMIT": "2GiB"})
    assert context.memory_limit == 2 << 30
    for config, limit in ((SemanticIdConfig(), 2 << 30), (SemanticIdConfig(memory_limit=5 << 20), 5 << 20)):
        request = commands.Request(tmp_path, ("81",), config=config)
        assert commands.Resolution(request, context, may_generate=True).memory_limit == limit


# The sample.


def job_of(data_dir: Path, **options: Any) -> scale.Job:
    root = folders.CacheFolder(data_dir / "cache", data_dir)
    sources = find_sources(data_dir, ["81"])
    sampled = memory.sample_size([DIM], 1 << 30)
    return scale.open_job(
        root, "question", sources, SMALL, limit=1 << 30, sampled=sampled, engine=engines.run_here, **options
    )


@pytest.mark.parametrize("form", ["pickle", "jsonl", "parquet"])
def test_the_sample_does_not_depend_on_parts_or_order(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_parts: None
) -> None:
    """The same items with the same vectors, ascending, as many as were asked for."""
    monkeypatch.setattr(memory, "MOST_SAMPLED", 100)
    monkeypatch.setattr(memory, "LEAST_SAMPLED", 10)
    ids, vectors = world()
    first = job_of(write(tmp_path / "a", form, ids, vectors)).read()
    order = np.random.default_rng(9).permutation(600)
    turned = write(tmp_path / "b", form, [ids[row] for row in order], vectors[order], parts=7)
    second = job_of(turned).read()
    assert len(first.items) == 100
    assert np.array_equal(first.items, np.sort(np.asarray(first.items)))
    assert np.array_equal(first.items, second.items)
    assert np.array_equal(first.features[0].matrix, second.features[0].matrix)
    assert np.array_equal(
        first.features[0].matrix, vectors[[ids.index(item) for item in np.asarray(first.items).tolist()]]
    )


def test_the_sample_is_full_though_rows_are_bad_or_come_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_parts: None
) -> None:
    """It is looked for again among more, and the first good row of an item counts."""
    monkeypatch.setattr(memory, "MOST_SAMPLED", 100)
    monkeypatch.setattr(memory, "LEAST_SAMPLED", 10)
    ids, vectors = world()
    rows = np.concatenate([np.arange(150), np.arange(150), np.arange(150)])
    vectors = vectors[rows] + np.repeat(np.arange(3, dtype=np.float32), 150)[:, None]
    vectors[::5] = np.nan
    embeddings = job_of(write(tmp_path, "parquet", [ids[row] for row in rows], vectors)).read()
    assert len(embeddings.items) == 100
    for item, vector in zip(np.asarray(embeddings.items).tolist(), embeddings.features[0].matrix, strict=True):
        row = ids.index(item)
        good = next(at for at in (row, row + 150, row + 300) if at % 5)
        assert np.array_equal(vector, vectors[good])


def test_bad_rows_and_repeated_items_are_as_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, small_parts: None
) -> None:
    """The first good row of an item counts; the others are counted."""
    ids, vectors = world()
    ids[300:320] = ids[:20]
    vectors[::50] = np.nan
    held = generate(write(tmp_path / "memory", "parquet", ids, vectors))
    with caplog.at_level(logging.WARNING, "semid_dataset"):
        streamed = generate(write(tmp_path / "stream", "parquet", ids, vectors), engine="local")
    assert streamed.digest == held.digest
    assert streamed.info["provenance"]["bad_rows"] == held.info["provenance"]["bad_rows"] == 31
    assert "Skipped 31 of 600 rows" in caplog.text


# Again after a kill.


class Killed(BaseException):
    """As sudden as a signal."""


@pytest.mark.parametrize("form", ["pickle", "jsonl", "parquet"])
def test_a_killed_run_goes_on(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_parts: None) -> None:
    """Wherever it was killed: what it had finished is not done again, and the table is the same."""
    whole = generate(write(tmp_path / "whole", form, *world()), engine="local")
    data_dir = write(tmp_path / "killed", form, *world())
    done: list[str] = []
    perform = stages.perform
    left = 0

    def mortal(folder: Path, task: stages.Task, report: Any) -> None:
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        perform(folder, task, report)
        done.append(stages.task_file(task))

    monkeypatch.setattr(engines, "perform", mortal)
    chance = random.Random(5)
    table = None
    while table is None:
        left = chance.randrange(1, 7)
        with suppress(Killed):
            table = generate(data_dir, engine="local")
    assert len(done) == len(set(done)) > 6
    assert table.digest == whole.digest


@pytest.mark.parametrize("stage", ["sample", "encode", "gather"])
def test_a_damaged_part_is_made_again(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_parts: None
) -> None:
    """A checksum tells; a part that was made from something else is none either."""
    whole = generate(write(tmp_path / "whole", "jsonl", *world()), engine="local")
    data_dir = write(tmp_path / "damaged", "jsonl", *world())
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "TableData", _raise)
        with pytest.raises(Killed):
            generate(data_dir, engine="local")
    (folder,) = work_folders(data_dir)
    files = sorted(folder.glob(f"{stage}-*.part"))
    assert len(files) > 1
    raw = bytearray(files[0].read_bytes())
    raw[len(raw) // 2] ^= 1
    files[0].write_bytes(raw)
    workfolder.write_file(folder, files[1].stem, {"ids": np.arange(3)}, {"basis": "another"})
    done: list[str] = []
    monkeypatch.setattr(engines, "perform", lambda *given: (done.append(given[1]["stage"]), stages.perform(*given)))
    assert generate(data_dir, engine="local").digest == whole.digest
    assert done == [stage, stage]


def _raise(*args: Any, **options: Any) -> None:
    raise Killed


def test_other_settings_are_another_job(tmp_path: Path) -> None:
    """What one left does not pass for the other's; the limit alone changes nothing but the size of parts."""
    data_dir = write(tmp_path, "jsonl", *world())
    root = folders.CacheFolder(data_dir / "cache", data_dir)
    (source,) = find_sources(data_dir, ["81"])

    def folder(cache_key: str = "q", limit: int = 1 << 30, **settings: Any) -> Path:
        config = replace(SMALL, **settings)
        return scale.open_job(root, cache_key, [source], config, limit=limit, sampled=1000).folder

    assert folder() == folder(lock_timeout=1.0) == folder(memory_limit=1 << 21) == folder(limit=1 << 31)
    assert len({folder(), folder("other"), folder(seed=1), folder(num_epochs=3), folder(limit=1 << 20)}) == 5


def test_a_full_disk_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished parts stay."""
    data_dir = write(tmp_path, "jsonl", *world())

    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(workfolder.files, "replace_file", full)
        with pytest.raises(StoreError, match=r"has no room .* run again"):
            workfolder.write_file(tmp_path, "x", {"ids": np.arange(3)}, {})
    assert generate(data_dir, engine="local").status == "trained"


# Uniqueness.


@pytest.mark.parametrize("held", [1, 7])
def test_vectors_of_displaced_items_stay_on_disk(
    held: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_parts: None
) -> None:
    """They are read a few at a time, however these fall among the blocks that are served, out of many files."""
    whole = generate(write(tmp_path / "whole", "parquet", *world()), engine="local")
    blocks: list[int] = []
    monkeypatch.setattr(merge, "MOST_OPEN", 2)
    monkeypatch.setattr(merge.MergedItems, "_open", _noting_part(blocks, merge.MergedItems._open))
    monkeypatch.setattr(merge, "DISPLACED_SHARE", 1 << 40)
    monkeypatch.setattr(merge, "LEAST_DISPLACED", held)
    assert generate(write(tmp_path / "disk", "parquet", *world()), engine="local").digest == whole.digest
    assert len(set(blocks)) > 2


def test_a_file_that_became_shorter_is_an_error(tmp_path: Path) -> None:
    """Not vectors of chance."""
    path = tmp_path / "short"
    path.write_bytes(bytes(20))
    with path.open("rb") as file:
        found = np.ones(5, np.float32)
        workfolder.read_into(file.fileno(), found, 0)
        assert not found.any()
        with pytest.raises(StoreError, match="became shorter"):
            workfolder.read_into(file.fileno(), found, 4)


def _noting_part(parts: list[int], function: Callable[..., Any]) -> Callable[..., Any]:
    def noted(self: Any, part: int) -> Any:
        parts.append(part)
        return function(self, part)

    return noted


def test_items_may_share_ids_where_that_is_asked_for(tmp_path: Path) -> None:
    """As in memory."""
    shared = replace(SMALL, unique=False)
    held = generate(write(tmp_path / "memory", "jsonl", *world()), config=shared)
    streamed = generate(write(tmp_path / "stream", "jsonl", *world()), config=shared, engine="local")
    assert streamed.digest == held.digest
    assert streamed.quality["shared"] == held.quality["shared"] > 0


# Extending.


@pytest.mark.parametrize("form", ["jsonl", "parquet", "pickle"])
def test_new_items_extend_the_lineage(form: str, tmp_path: Path, small_parts: None) -> None:
    """Known ones keep their IDs; new ones get those that memory gives."""
    ids, vectors = world()
    tables = []
    for name, engine in (("memory", None), ("stream", "local")):
        data_dir = write(tmp_path / name, form, ids[:400], vectors[:400])
        first = generate(data_dir, engine=engine)
        for path in sorted((data_dir / "creative_emb").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        write(data_dir, form, ids[200:], vectors[200:])
        table = generate(data_dir, engine=engine)
        assert (table.status, len(table), table.generation) == ("extended", 600, 1)
        assert np.array_equal(table.codes(ids[:400]), first.codes(ids[:400]))
        assert work_folders(data_dir) == []
        tables.append(table)
    assert tables[0].digest == tables[1].digest
    assert tables[0].info["history"][1]["relative_error"] == pytest.approx(
        tables[1].info["history"][1]["relative_error"], rel=1e-4
    )


def test_a_table_that_behaviour_shaped_is_extended_through_its_map(
    tmp_path: Path, small_parts: None, caplog: pytest.LogCaptureFixture
) -> None:
    """In memory and streamed alike; known items keep their IDs, and nobody takes their vectors for changed ones."""
    ids, vectors = world()
    draw = np.random.default_rng(0)
    sequences = [[ids[row * 20 + user % 20] for row in draw.integers(20, size=12)] for user in range(600)]
    trained = generate(
        write(tmp_path / "train", "parquet", ids[:400], vectors[:400]),
        output_dir=tmp_path / "out",
        sequences=sequences,
    )
    quantizer = trained.quantizer
    assert quantizer.fusion is not None
    assert quantizer.fusion.dims == {"81": DIM}
    tables = []
    for name, engine in (("memory", None), ("stream", "local")):
        data_dir = write(tmp_path / name, "parquet", ids[200:], vectors[200:])
        table = generate(data_dir, engine=engine, parent=tmp_path / "out")
        assert (table.status, len(table)) == ("extended", 600)
        assert np.array_equal(table.codes(ids[:400]), trained.codes(ids[:400]))
        tables.append(table)
    assert tables[0].digest == tables[1].digest
    raw = quantizer.encode(quantizer.fusion.apply([FeatureMatrix("81", np.arange(200), vectors[400:])], 200))
    assert (tables[0].codes(ids[400:]) == raw).all(1).mean() > 0.5
    assert "have moved" not in caplog.text


@pytest.mark.parametrize("options", [{}, {"output_dir": "out", "engine": "local"}, {"output_dir": "out", "f": 2}])
def test_sequences_go_with_a_training_in_memory_only(options: dict[str, Any], tmp_path: Path) -> None:
    """What would be ignored otherwise is refused."""
    features = ["81", "82"][: options.pop("f", 1)]
    with pytest.raises(ConfigError, match="give output_dir, one feature and no engine"):
        commands.generate_semantic_ids(tmp_path, features, config=SMALL, sequences=[[1, 2]], **options)


def test_others_may_extend_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_parts: None) -> None:
    """What they published is kept, and what is still missing is added."""
    ids, vectors = world()
    data_dir = write(tmp_path / "a", "jsonl", ids[:300], vectors[:300])
    first = generate(data_dir, engine="local")
    other = write(tmp_path / "b", "jsonl", ids[:400], vectors[:400])
    for path in (data_dir / "creative_emb" / f"emb_81_{DIM}").iterdir():
        path.unlink()
    (data_dir / "creative_emb" / f"emb_81_{DIM}").rmdir()
    write(data_dir, "jsonl", ids, vectors)
    monkeypatch.setenv("SEMID_CACHE_DIR", str(data_dir / ".semantic_ids"))
    publish = cache.publish_table
    meanwhile: list[SemanticIdTable] = []

    def late(root: Any, name: str, generation: int, buffers: Any) -> bool:
        if not meanwhile and generation == 1:
            meanwhile.append(first)  # it publishes too, and must not end here
            meanwhile[0] = generate(other)
        return publish(root, name, generation, buffers)

    monkeypatch.setattr(cache, "publish_table", late)
    table = generate(data_dir, engine="local")
    assert (len(meanwhile[0]), len(table), table.generation) == (400, 600, 2)
    assert np.array_equal(table.codes(ids[:400]), meanwhile[0].codes(ids[:400]))
    assert len(np.unique(table.codes_array, axis=0)) == 600


def test_nothing_new_publishes_nothing(tmp_path: Path) -> None:
    """Other files with the same items are answered by the same table."""
    ids, vectors = world()
    first = generate(write(tmp_path, "jsonl", ids, vectors), engine="local")
    (tmp_path / "creative_emb" / f"emb_81_{DIM}" / "part-9").write_text("\n")
    again = generate(tmp_path, engine="local")
    assert (again.status, again.digest) == ("cached", first.digest)
    assert len(folders.generations(folders.CacheFolders(tmp_path, None, Environment.read()), first.lineage)) == 1


# Where it cannot be.


def test_ids_too_long_to_be_held_out_of_memory_are_read_into_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Aloud; and where streaming was asked for by name, not at all."""
    ids = [f"{'x' * 300}{row}" for row in range(300)]
    write(tmp_path, "jsonl", ids, vectors_of(300, DIM))
    with pytest.raises(EmbeddingError, match=r"has 301 bytes.*memory_limit"):
        generate(tmp_path, engine="local")
    monkeypatch.setattr(memory, "is_beyond", lambda sources, limit: True)
    with caplog.at_level(logging.WARNING, "semid_dataset"):
        table = generate(tmp_path)
    assert len(table) == 300
    assert "read into memory all the same" in caplog.text


def test_no_usable_row_is_an_error(tmp_path: Path) -> None:
    """As in memory."""
    ids, vectors = world()
    write(tmp_path, "jsonl", ids, np.full_like(vectors, np.nan))
    with pytest.raises(EmbeddingError, match="no usable row"):
        generate(tmp_path, engine="local")


def test_an_output_folder_takes_the_work_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is left alone, and the folder holds the two files in the end."""
    monkeypatch.setattr(memory, "is_beyond", lambda sources, limit: True)
    data_dir = write(tmp_path / "data", "jsonl", *world())
    table = generate(data_dir, output_dir=tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "semantic_id_dict.json",
        lineage.TABLE_FILE,
    ]
    assert not (data_dir / ".semantic_ids").exists()
    assert table.digest == generate(data_dir).digest


# Shards.


@pytest.mark.parametrize("form", ["jsonl", "parquet", "pickle"])
def test_shards_make_the_same_table(form: str, tmp_path: Path, small_parts: None) -> None:
    """In any order; the last one publishes, and who comes later gets what is there."""
    whole = generate(write(tmp_path / "whole", form, *world()), engine="local")
    data_dir = write(tmp_path / "shards", form, *world())
    for shard in (2, 0, 3):
        table, done, parts = commands.generate_shard(data_dir, shard=shard, shards=4, config=SMALL)
        assert table is None
        assert 0 < done < parts or form == "jsonl"
    table, done, parts = commands.generate_shard(data_dir, shard=1, shards=4, config=SMALL)
    assert table is not None
    assert table.digest == whole.digest
    assert done == parts
    assert work_folders(data_dir) == []
    late, _, _ = commands.generate_shard(data_dir, shard=0, shards=4, config=SMALL)
    assert late is not None
    assert late.digest == whole.digest


def test_shards_extend_too(tmp_path: Path, small_parts: None) -> None:
    """With the codebooks of the lineage."""
    ids, vectors = world()
    data_dir = write(tmp_path, "jsonl", ids[:400], vectors[:400])
    first = generate(data_dir)
    (data_dir / "creative_emb" / f"emb_81_{DIM}" / "part-9").write_text(
        "\n".join(json.dumps({"anonymous_cid": ids[row], "emb": vectors[row].tolist()}) for row in range(400, 600))
    )
    answers = [commands.generate_shard(data_dir, shard=shard, shards=2, config=SMALL)[0] for shard in (0, 1)]
    assert answers[0] is None
    assert answers[1] is not None
    assert (answers[1].status, len(answers[1]), answers[1].lineage) == ("extended", 600, first.lineage)


def test_there_is_no_shard_beyond_the_last(tmp_path: Path) -> None:
    """Numbers begin with 0."""
    with pytest.raises(ConfigError, match="the numbers are 0 to 3"):
        commands.generate_shard(tmp_path, shard=4, shards=4)
    with pytest.raises(ConfigError, match="engine must be one of local, ray, not 'spark'"):
        generate(tmp_path, engine="spark")


# A matrix of one's own.


@pytest.fixture
def array(tmp_path: Path) -> Path:
    """20,000 vectors and their items, in no order: more than half of a megabyte."""
    random_ = np.random.default_rng(4)
    np.save(tmp_path / "x.npy", vectors_of(20_000, DIM))
    np.save(tmp_path / "ids.npy", random_.permutation(20_000) + ITEM0)
    return tmp_path


LIMITED = replace(SMALL, num_quantizers=4, memory_limit=1 << 20, num_epochs=0)


@pytest.mark.parametrize("ids", ["ids.npy", "rows"])
def test_an_array_is_streamed_into_its_output(ids: str, array: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is the one that memory makes where the sample is everything."""
    monkeypatch.setattr(memory, "LEAST_SAMPLED", 20_000)
    named = ids if ids == "rows" else array / ids
    table = commands.generate_from_file(array / "x.npy", named, output_dir=array / "out", config=LIMITED)
    assert table is not None
    held = commands.generate_from_vectors(
        np.arange(20_000) if ids == "rows" else np.load(array / ids),
        np.load(array / "x.npy"),
        output_dir=array / "held",
        config=LIMITED,
    )
    assert table.digest == held.digest
    assert sorted(path.name for path in (array / "out").iterdir()) == ["semantic_id_dict.json", lineage.TABLE_FILE]
    assert commands.generate_from_file(array / "x.npy", named, output_dir=array / "out", config=SMALL) is None


def test_what_is_wrong_with_an_array_is_an_error(array: Path) -> None:
    """A person named it: nothing is skipped."""

    def generated() -> None:
        commands.generate_from_file(array / "x.npy", array / "ids.npy", output_dir=array / "out", config=LIMITED)

    ids, vectors = np.load(array / "ids.npy"), np.load(array / "x.npy")
    np.save(array / "ids.npy", ids[1:])
    with pytest.raises(EmbeddingError, match=r"has 19999 items.*has 20000 rows"):
        generated()
    np.save(array / "ids.npy", np.concatenate([ids[:-1], ids[:1]]))
    with pytest.raises(EmbeddingError, match="was in row 0 already"):
        generated()
    np.save(array / "ids.npy", ids)
    vectors[777] = np.nan
    np.save(array / "x.npy", vectors)
    with pytest.raises(EmbeddingError, match=r"x.npy', row 777: NaN or infinite.*correct or remove"):
        generated()


def test_an_array_of_named_items_is_streamed(array: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one of numbered items."""
    monkeypatch.setattr(memory, "LEAST_SAMPLED", 20_000)
    names = [f"x{row}" for row in range(20_000)]
    (array / "ids.txt").write_text("".join(f"{name}\n" for name in names))
    found = commands.generate_from_file(array / "x.npy", array / "ids.txt", output_dir=array / "out", config=LIMITED)
    assert found is not None
    held = commands.generate_from_vectors(
        names, np.load(array / "x.npy"), output_dir=array / "held", config=replace(LIMITED, memory_limit=1 << 30)
    )
    assert found.digest == held.digest


def test_parts_of_runs_that_never_ended_are_waste(tmp_path: Path) -> None:
    """After a day without a new part; those of a run that goes on are not."""
    data_dir = write(tmp_path, "jsonl", *world())
    job = job_of(data_dir)
    job.read()
    root = folders.CacheFolder(data_dir / "cache", data_dir)
    assert find_waste(cache.Cache([root]), min_age=0) == []
    past = time.time() - 2 * 86_400
    files = sorted(job.folder.iterdir())
    for path in files:
        os.utime(path, (past, past))
    assert sorted(waste.path for waste in find_waste(cache.Cache([root]), min_age=0)) == files
    os.utime(files[0])
    assert find_waste(cache.Cache([root]), min_age=0) == []


# --- what one process did before ---


def quantizer_of(seed: int) -> Any:
    """Codebooks of another seed."""
    from semid_dataset.codec.train import train

    return train(vectors_of(300, DIM), replace(SMALL, seed=seed)).quantizer


@pytest.mark.parametrize("again", ["the folder was removed meanwhile", "the folder is still there"])
def test_codes_are_of_the_codebooks_that_lie_there_now(tmp_path: Path, again: str, small_parts: None) -> None:
    """A second training in one process, in a folder of the same name: nothing of the first's is taken for its own."""
    ids, vectors = world()
    data_dir = write(tmp_path, "jsonl", ids, vectors)
    root = folders.CacheFolder(data_dir / "cache", data_dir)
    (source,) = find_sources(data_dir, ["81"])
    found = []
    for seed in (1, 2):
        job = scale.open_job(root, "q", [source], SMALL, limit=1 << 30, sampled=1000)
        job.read()
        quantizer = quantizer_of(seed)
        job.set_basis("new", quantizer, {})
        job.encode("new")
        encoded = job.merged("new")
        order = np.argsort(ids)
        whole = np.asarray(vectors, np.float32)[order]
        known = np.searchsorted(np.asarray(ids)[order], encoded.keys)
        assert np.array_equal(encoded.codes, quantizer.encode(whole[known]))
        squared = np.square(whole[known] - quantizer.decode(encoded.codes)).sum()
        assert encoded.totals.error == pytest.approx(float(squared), rel=1e-4)
        found.append(encoded.codes)
        if "removed" in again:
            job.close()
    assert not np.array_equal(*found)


def test_two_trainings_in_one_process_of_data_that_changed_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Size and time of the file are as they were, so the work folder's name is; the quality tells the truth."""
    matrix = tmp_path / "x.npy"
    (tmp_path / "ids.txt").write_text("".join(f"{k}\n" for k in range(400)))
    config = replace(SMALL, memory_limit=1 << 20)
    monkeypatch.setattr(scale, "PART_BYTES", 4 << 10)
    monkeypatch.setattr(scale, "LEAST_PART", 64)
    tables = []
    for seed in (0, 1):
        vectors = np.tile(vectors_of(400, DIM, seed=seed), (1, 160))
        np.save(matrix, vectors)
        os.utime(matrix, ns=(10**18, 10**18))
        table = commands.generate_from_file(matrix, tmp_path / "ids.txt", output_dir=tmp_path / "out", config=config)
        assert table is not None
        squared = np.square(vectors - table.quantizer.decode(table.codes(np.arange(400)))).sum()
        true = float(squared / np.square(vectors - vectors.mean(0)).sum())
        assert table.quality["relative_mse"] == pytest.approx(true, rel=1e-3)
        tables.append(table.codes_array.copy())
    assert not np.array_equal(*tables)


def test_a_part_is_not_encoded_with_codebooks_that_came_later(tmp_path: Path, small_parts: None) -> None:
    """A task says what it is to be done with; where somebody began anew meanwhile, it fails and is done again."""
    data_dir = write(tmp_path, "jsonl", *world())
    root = folders.CacheFolder(data_dir / "cache", data_dir)
    (source,) = find_sources(data_dir, ["81"])
    job = scale.open_job(root, "q", [source], SMALL, limit=1 << 30, sampled=1000)
    job.read()
    job.set_basis("new", quantizer_of(1), {})
    (task, *_) = job._encode_tasks("new")
    job.set_basis("new", quantizer_of(2), {})
    with pytest.raises(StoreError, match="other codebooks by now"):
        stages.perform(job.folder, task)


def test_a_plan_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    """However short the time between the two."""
    data_dir = write(tmp_path, "jsonl", *world())
    root = folders.CacheFolder(data_dir / "cache", data_dir)
    (source,) = find_sources(data_dir, ["81"])
    job = scale.open_job(root, "q", [source], SMALL, limit=1 << 30, sampled=1000)
    first = job.plan
    assert workfolder.plan_of(job.folder) == first
    second = replace(first, seed=first.seed + 1)
    workfolder.files.replace_file(job.folder / "plan.json", [second.to_json()], sync=False)
    before = (job.folder / "plan.json").stat()
    os.utime(job.folder / "plan.json", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert workfolder.plan_of(job.folder) == second
