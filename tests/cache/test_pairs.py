"""Among many lineages of one kind, only those of the same data are opened."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from world import ITEM0, SmallDataset, make_data, vectors_of, write_embeddings

from semid_dataset.build.evidence import Evidence
from semid_dataset.cache import cache as caches
from semid_dataset.cache import pairs
from semid_dataset.cache.cache import Cache
from semid_dataset.cache.folders import CacheFolder
from semid_dataset.config import Identity
from semid_dataset.environment import Environment
from semid_dataset.features import FeatureMatrix
from semid_dataset.table.build import TableData
from semid_dataset.table.table import SemanticIdTable

OTHERS = 40


def evidence_of(vectors: np.ndarray) -> Evidence:
    return Evidence(np.arange(ITEM0, ITEM0 + len(vectors)), [FeatureMatrix("81", np.arange(len(vectors)), vectors)])


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One shared cache of 40 data sets with the same items and settings, and other vectors."""
    folder = tmp_path_factory.mktemp("crowd")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEMID_CACHE_DIR", str(folder / "cache"))
        path = SmallDataset(make_data(folder / "first", seed=99)).semantic_id_dict.path
    assert path is not None
    table = SemanticIdTable.open(path)
    for seed in range(1000, 1000 + OTHERS):
        name = f"{seed:024x}-{seed:012x}"
        header = replace(table.header, lineage=name, sketch=evidence_of(vectors_of(200, 8, seed)).sketch())
        place = folder / "cache" / "v1" / name
        place.mkdir()
        data = TableData(table.keys_array, np.array(table.codes_array), header, table.weights)
        (place / "0.safetensors").write_bytes(b"".join(data.buffers()))
    for path in (folder / "cache" / "v1" / "served").iterdir():
        path.unlink()  # they are others'
    return folder / "cache"


@pytest.fixture
def crowd(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "crowd"))


@pytest.fixture
def shared(crowd: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setenv("SEMID_CACHE_DIR", str(crowd))
    return Cache.of(Environment.read(), None, may_write=True)


def identity_of(cache: Cache) -> Identity:
    table = cache.newest(cache.lineages()[0])
    assert table is not None
    assert table.header.identity is not None
    return table.header.identity


def found(cache: Cache, vectors: np.ndarray) -> tuple[list[str], list[str]]:
    return cache.likely(identity_of(cache), evidence_of(vectors).pairs)


def name_of(seed: int) -> str:
    return f"{seed:024x}-{seed:012x}"


def test_a_cold_start_opens_no_table_of_other_data(
    shared: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have the same items, settings and folder; nothing but the vectors differs."""
    opened: list[Path] = []
    real = caches.open_table
    monkeypatch.setattr(caches, "open_table", lambda path, **how: opened.append(path) or real(path, **how))
    table = SmallDataset(make_data(tmp_path / "mine", seed=5)).semantic_id_dict
    assert table.status == "trained"
    assert {path.parent.name for path in opened} <= {table.lineage, "origins"}


def test_the_lineage_of_the_same_data_is_found_grown_or_shrunk(shared: Cache) -> None:
    """Ten times as many items, or a tenth of them."""
    mine = vectors_of(200, 8, 1007)
    for vectors in (mine, mine[:20], np.concatenate([mine, vectors_of(1800, 8, 3)])):
        assert found(shared, vectors) == ([name_of(1007)], [])


def test_what_pairs_cannot_tell_is_asked_of_the_tables(shared: Cache) -> None:
    """Of a few items of many none may be in the sketch."""
    likely, unlikely = found(shared, vectors_of(4, 8, 7))
    assert (likely, len(unlikely)) == ([], OTHERS + 1)


def test_a_tiny_part_of_a_known_data_set_gets_its_ids(
    shared: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slow way still finds whose it is."""
    monkeypatch.setattr(pairs, "likely", lambda *rest, **more: dict.fromkeys(rest[2], False))
    monkeypatch.setattr(caches, "likely", pairs.likely)
    whole = SmallDataset(make_data(tmp_path / "whole", seed=6)).semantic_id_dict
    write_embeddings(tmp_path / "part", vectors_of(200, 8, 6)[:150])
    part = SmallDataset(tmp_path / "part").semantic_id_dict
    assert (part.status, part.lineage) == ("cached", whole.lineage)


@pytest.mark.parametrize("how", ["flipped", "cut", "torn", "empty", "gone", "a folder", "a link"])
def test_a_damaged_index_is_made_again(shared: Cache, tmp_path: Path, how: str) -> None:
    """It saves work and decides nothing."""
    mine = vectors_of(200, 8, 1011)
    wanted = ([name_of(1011)], [])
    assert found(shared, mine) == wanted
    (path,) = (root.versioned.glob("index/*.pairs") for root in shared.folders if root.versioned.exists()).__next__()
    content = path.read_bytes()
    assert len(content) == (OTHERS + 1) * pairs.RECORD.itemsize
    path.unlink()
    if how == "a folder":
        path.mkdir()
    elif how == "a link":
        path.symlink_to(tmp_path / "elsewhere")
    elif how != "gone":
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes({"flipped": flipped, "cut": content[:-5], "torn": content[:99] + content, "empty": b""}[how])
    assert found(shared, mine) == wanted
    assert not (tmp_path / "elsewhere").exists()
    if how != "a folder":
        assert len(path.read_bytes()) == len(content)
    else:
        path.rmdir()


def test_records_of_lineages_that_are_gone_are_dropped(shared: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is bounded by what lies in the cache."""
    monkeypatch.setattr(pairs, "SPARE", 0)
    root = next(root for root in shared.folders if root.versioned.exists())
    identity, names = identity_of(shared), shared.lineages()
    wanted = evidence_of(vectors_of(200, 8, 1)).pairs()
    pairs.likely(root, identity.digest, names, wanted, may_write=True)
    pairs.likely(root, identity.digest, names[:5], wanted, may_write=True)
    (path,) = root.versioned.glob("index/*.pairs")
    assert os.stat(path).st_size == 5 * pairs.RECORD.itemsize  # noqa: PTH116


def test_who_may_not_write_leaves_no_index(crowd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking writes nothing."""
    root = CacheFolder(crowd, crowd)
    monkeypatch.setenv("SEMID_CACHE_DIR", str(crowd))
    cache = Cache.of(Environment.read(), None)
    assert found(cache, vectors_of(200, 8, 1003)) == ([name_of(1003)], [])
    assert list(root.versioned.glob("index/*.pairs")) == []
