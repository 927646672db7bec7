"""Several features, ids of any kind, files of any format: what is streamed is what memory makes, byte for byte."""

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from world import SMALL, vectors_of

from semid_dataset import api as commands
from semid_dataset.build import memory, pipeline
from semid_dataset.build.streaming import executors, tasks
from semid_dataset.build.streaming import run as streaming
from semid_dataset.errors import EmbeddingError
from semid_dataset.table.table import SemanticIdTable

Vectors = NDArray[np.float32]
ITEMS = 500


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that some hundred items are several parts, runs and ranges."""
    monkeypatch.setattr(streaming, "LEAST_PART", 60)
    monkeypatch.setattr(streaming, "PART_BYTES", 60 * 4 * 8)


def put(data_dir: Path, feature: str, form: str, ids: Sequence[Any], vectors: Vectors, parts: int = 3) -> None:
    """A feature in one of its forms."""
    folder = data_dir / "creative_emb"
    folder.mkdir(parents=True, exist_ok=True)
    dim = vectors.shape[1]
    if form == "pickle":
        (folder / f"emb_{feature}_{dim}.pkl").write_bytes(pickle.dumps(dict(zip(ids, vectors, strict=True))))
        return
    folder /= f"emb_{feature}_{dim}" + ("_parquet" if form == "parquet" else "")
    folder.mkdir(exist_ok=True)
    for number, rows in enumerate(np.array_split(np.arange(len(ids)), parts)):
        some = [ids[row] for row in rows]
        if form == "parquet":
            emb = pa.array(list(vectors[rows]), pa.list_(pa.float32()))
            pq.write_table(pa.table({"anonymous_cid": some, "emb": emb}), folder / f"{number}.parquet")
        else:
            pairs = zip(some, vectors[rows].tolist(), strict=True)
            lines = [json.dumps({"anonymous_cid": item, "emb": vector}) for item, vector in pairs]
            (folder / f"part-{number}").write_text("\n".join(lines))


def some_of(ids: Sequence[Any], share: float, seed: int) -> list[Any]:
    """Some of the items, in another order."""
    random = np.random.default_rng(seed)
    return [ids[row] for row in random.permutation(len(ids))[: int(share * len(ids))]]


def world(data_dir: Path, ids: Sequence[Any], forms: Sequence[str] = ("parquet", "jsonl", "pickle")) -> Path:
    """Three features of other widths, orders, partitions and coverage; some vectors are equal."""
    row = {item: at for at, item in enumerate(ids)}
    for number, (share, dim, parts, form) in enumerate(
        zip((0.95, 0.8, 0.4), (8, 5, 12), (3, 5, 2), forms, strict=False)
    ):
        chosen = some_of(ids, share, number)
        vectors = vectors_of(ITEMS, dim, seed=number)
        vectors[10:20] = vectors[5]
        put(data_dir, str(81 + number), form, chosen, vectors[[row[item] for item in chosen]], parts)
    return data_dir


INTEGERS = [10**10 + 7 * number for number in range(ITEMS)]
NAMES = [f"n\u00fc{number % 97}-{number}" for number in range(ITEMS)]
MIXED = [str(number) if number % 3 else f"x{number}" for number in range(ITEMS)]


def generate(data_dir: Path, features: Sequence[str] = ("81", "82", "83"), **options: Any) -> SemanticIdTable:
    return commands.generate_semantic_ids(data_dir, features, config=options.pop("config", SMALL), **options)


def assert_same(streamed: SemanticIdTable, held: SemanticIdTable) -> None:
    assert streamed.digest == held.digest
    assert streamed.lineage == held.lineage
    assert list(streamed) == list(held)
    assert streamed.quality["moved"] == held.quality["moved"]
    assert streamed.quality["exact_duplicates"] == held.quality["exact_duplicates"]
    assert streamed.info["provenance"]["files"] == held.info["provenance"]["files"]
    assert streamed.info["provenance"]["variance"] == pytest.approx(held.info["provenance"]["variance"], rel=1e-6)
    assert streamed.quality["relative_mse"] == pytest.approx(held.quality["relative_mse"], rel=1e-6)


@pytest.mark.parametrize("ids", [INTEGERS, NAMES, MIXED], ids=["integers", "names", "mixed"])
@pytest.mark.parametrize("fusion", ["aligned", "concat"])
def test_several_features_are_joined(ids: list[Any], fusion: Any, tmp_path: Path) -> None:
    """Whatever their orders, partitions, coverage and forms: an item has the vector that memory makes of them."""
    config = commands.replace(SMALL, fusion=fusion)
    held = generate(world(tmp_path / "memory", ids), config=config)
    streamed = generate(world(tmp_path / "stream", ids), config=config, engine="local")
    assert_same(streamed, held)
    assert list((tmp_path / "stream" / ".semantic_ids" / "v1" / "jobs").glob("*")) == []


@pytest.mark.parametrize("form", ["pickle", "jsonl", "parquet"])
def test_names_of_one_feature(form: str, tmp_path: Path) -> None:
    """As integers."""
    for place in ("memory", "stream"):
        put(tmp_path / place, "81", form, NAMES, vectors_of(ITEMS, 8))
    assert_same(generate(tmp_path / "stream", ["81"], engine="local"), generate(tmp_path / "memory", ["81"]))


def test_one_feature_of_names_makes_all_ids_texts(tmp_path: Path) -> None:
    """Integers that another feature has are the same items in their spelling."""
    for place in ("memory", "stream"):
        put(tmp_path / place, "81", "jsonl", list(range(ITEMS)), vectors_of(ITEMS, 8))
        put(tmp_path / place, "82", "parquet", MIXED, vectors_of(ITEMS, 5, seed=1))
    held = generate(tmp_path / "memory", ["81", "82"])
    assert_same(generate(tmp_path / "stream", ["81", "82"], engine="local"), held)
    assert len(held) == ITEMS + sum(1 for name in MIXED if name.startswith("x"))


def test_the_first_good_row_of_an_item_counts_in_every_feature(tmp_path: Path) -> None:
    """Also where the second lies in another part."""
    for place in ("memory", "stream"):
        for number, dim in enumerate((8, 5)):
            ids = some_of(INTEGERS, 1, number)
            vectors = vectors_of(ITEMS, dim, seed=number)
            ids[300:320], ids[50:55] = ids[:20], ids[45:50]
            vectors[::50] = np.nan
            put(tmp_path / place, str(81 + number), "parquet", ids, vectors)
    held = generate(tmp_path / "memory", ["81", "82"])
    streamed = generate(tmp_path / "stream", ["81", "82"], engine="local")
    assert_same(streamed, held)
    assert streamed.info["provenance"]["bad_rows"] == held.info["provenance"]["bad_rows"] > 50


def test_a_sample_of_the_items_is_the_same_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are more items than codebooks are fitted on, the same ones are chosen, with all their features."""
    monkeypatch.setattr(memory, "MOST_SAMPLED", 200)
    monkeypatch.setattr(memory, "LEAST_SAMPLED", 200)
    held = generate(world(tmp_path / "memory", MIXED))
    assert_same(generate(world(tmp_path / "stream", MIXED), engine="local"), held)
    assert held.quality["sampled"] == 200


def test_new_items_with_several_features_extend_the_lineage(tmp_path: Path) -> None:
    """By the frozen quantizer, as in memory."""
    tables = []
    for engine in (None, "local"):
        data_dir = world(tmp_path / str(engine), MIXED[:300])
        first = generate(data_dir, engine=engine)
        world(data_dir, MIXED)
        tables.append((first, generate(data_dir, engine=engine)))
    (first, held), (again, streamed) = tables
    assert (held.status, first.digest) == ("extended", again.digest)
    assert streamed.digest == held.digest
    assert (streamed.status, streamed.generation) == ("extended", 1)


def test_a_feature_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    """Beside others that can, as in memory; and alone it is an error."""
    for place in ("memory", "stream"):
        world(tmp_path / place, INTEGERS, ("parquet", "jsonl", "parquet"))
        next((tmp_path / place / "creative_emb" / "emb_83_12_parquet").iterdir()).write_bytes(b"PAR1 and nothing else")
    held = generate(tmp_path / "memory")
    streamed = generate(tmp_path / "stream", engine="local")
    assert streamed.digest == held.digest
    assert dict(streamed.header.identity.features) == {"81": 8, "82": 5}  # type: ignore[union-attr]
    with pytest.raises(EmbeddingError, match="cannot be read as parquet"):
        generate(tmp_path / "stream", ["83"], engine="local")


class Killed(BaseException):
    """As sudden as a signal."""


def test_a_killed_run_goes_on_and_does_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every feature, whatever it was doing."""
    whole = generate(world(tmp_path / "whole", INTEGERS), engine="local")
    data_dir = world(tmp_path / "killed", INTEGERS)
    done: list[str] = []
    left = 0

    def mortal(folder: Path, task: tasks.Task, report: Any) -> None:
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        tasks.perform(folder, task, report)
        done.append(tasks.task_file(task))

    monkeypatch.setattr(executors, "perform", mortal)
    random, table = np.random.default_rng(5), None
    while table is None:
        left = int(random.integers(1, 9))
        try:
            table = generate(data_dir, engine="local")
        except Killed:
            continue
    assert len(done) == len(set(done))
    assert {name.split("-")[0] for name in done} == {"spool", "sample", "sort", "encode", "gather"}
    assert table.digest == whole.digest


def test_a_damaged_run_of_rows_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is encoded from it."""
    whole = generate(world(tmp_path / "whole", INTEGERS), engine="local")
    data_dir = world(tmp_path / "damaged", INTEGERS)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "make_unique", lambda *given: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            generate(data_dir, engine="local")
    (folder,) = (data_dir / ".semantic_ids" / "v1" / "jobs").iterdir()
    first = sorted(folder.glob("run-*.part"))[0]
    raw = bytearray(first.read_bytes())
    raw[len(raw) // 2] ^= 1
    first.write_bytes(raw)
    for path in folder.glob("encode-*.part"):
        path.unlink()
    assert generate(data_dir, engine="local").digest == whole.digest


def test_shards_join_features(tmp_path: Path) -> None:
    """Each sorts its parts; ranges are encoded once all are there, by whoever comes then."""
    forms = ("parquet", "jsonl", "parquet")
    whole = generate(world(tmp_path / "whole", INTEGERS, forms), engine="local")
    data_dir = world(tmp_path / "shards", INTEGERS, forms)
    table = None
    for _ in range(3):
        for shard in (1, 0):
            table = commands.generate_shard(data_dir, ["81", "82", "83"], shard=shard, shards=2, config=SMALL)[0]
            if table is not None:
                break
        if table is not None:
            break
    assert table is not None
    assert table.digest == whole.digest


# Files of one's own.


def own(path: Path, form: str, ids: list[str], vectors: Vectors) -> Path:
    """A file of one's own in one of the formats."""
    table = pa.table({"item": ids, "vector": pa.array(list(vectors), pa.list_(pa.float32()))})
    if form == "parquet":
        pq.write_table(table, path.with_suffix(".parquet"), row_group_size=70)
        return path.with_suffix(".parquet")
    if form == "arrow":
        feather.write_feather(table, str(path.with_suffix(".arrow")))
        return path.with_suffix(".arrow")
    if form == "pickle":
        path.with_suffix(".pkl").write_bytes(pickle.dumps(dict(zip(ids, vectors, strict=True))))
        return path.with_suffix(".pkl")
    if form == "npz":
        np.savez(path.with_suffix(".npz"), item=np.array(ids), vector=vectors)
        return path.with_suffix(".npz")
    lines = [json.dumps({"item": item, "vector": row}) for item, row in zip(ids, vectors.tolist(), strict=True)]
    path.with_suffix(".jsonl").write_text("\n".join(lines))
    return path.with_suffix(".jsonl")


@pytest.mark.parametrize("form", ["parquet", "arrow", "pickle", "npz", "jsonl"])
def test_files_of_ones_own_are_streamed_in_every_format(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With names; the table is the one that memory makes, and nothing is left of the work."""
    vectors = vectors_of(ITEMS, 8)
    path = own(tmp_path / "own", form, NAMES, vectors)
    held = commands.generate_from_vectors(NAMES, vectors, output_dir=tmp_path / "held", config=SMALL)
    assert commands.generate_from_file(path, output_dir=tmp_path / "out", config=SMALL) is None
    monkeypatch.setattr(memory, "is_beyond", lambda sources, limit: True)
    streamed = commands.generate_from_file(path, output_dir=tmp_path / "out", config=SMALL)
    assert streamed is not None
    assert streamed.digest == held.digest
    assert len(list((tmp_path / "out").iterdir())) == 2


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_a_bad_row_of_ones_own_file_is_an_error(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the file; nothing is skipped. So is an item that comes again."""
    monkeypatch.setattr(memory, "is_beyond", lambda sources, limit: True)
    vectors = vectors_of(ITEMS, 8)
    vectors[77, 3] = np.inf
    path = own(tmp_path / "own", form, NAMES, vectors)
    with pytest.raises(EmbeddingError, match=r"own\.\w+'.*correct or remove"):
        commands.generate_from_file(path, output_dir=tmp_path / "out", config=SMALL)
    path = own(tmp_path / "own", form, [*NAMES[:-1], NAMES[0]], vectors_of(ITEMS, 8))
    with pytest.raises(EmbeddingError, match="come again"):
        commands.generate_from_file(path, output_dir=tmp_path / "out", config=SMALL)
