"""Lineages of other data sets in a shared cache cost a look-up nothing, however many there are."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faultkit import TESTS, need_strace
from world import SMALL, SmallDataset, make_data

from semid_dataset import _files
from semid_dataset.cache import index
from semid_dataset.cache.cache import Cache
from semid_dataset.config import Identity, SemanticIdConfig
from semid_dataset.environment import Environment
from semid_dataset.format import tensors

READ = (
    "import pathlib, sys, world\n"
    "table = world.SmallDataset(pathlib.Path(sys.argv[1])).semantic_id_dict\n"
    "assert table.status == 'cached', table.reason\n"
    "table[world.ITEM0]\n"
)


def neighbours(cache: Path, table: Path, first: int, last: int, identity: Identity | None = None) -> None:
    """Put lineages of others into a cache: the table of another data set, under other names."""
    container = tensors.parse(table.read_bytes(), str(table))
    arrays = {name: np.array(array) for name, array in container.arrays.items()}
    info = {**container.info, "digest_scheme": None}
    if identity is not None:
        info["identity"] = identity.to_dict()
    for number in range(first, last):
        name = f"{number:024x}"
        folder = cache / "v1" / name
        folder.mkdir()
        content = b"".join(tensors.serialize(arrays, {**info, "lineage": name}))
        (folder / "0.safetensors").write_bytes(content)


OTHERS = Identity.of(SMALL, [("81", 9)])


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, Path]:
    """The cache, a data directory that it serves, and a table of another data set."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("SEMID_CACHE_DIR", str(cache))
    theirs = SmallDataset(make_data(tmp_path / "theirs", seed=5)).semantic_id_dict
    assert theirs.path is not None
    kept = tmp_path / "theirs.safetensors"
    shutil.copy(theirs.path, kept)
    shutil.rmtree(theirs.path.parent)
    data = make_data(tmp_path / "data")
    os.utime(data / "creative_emb" / "emb_81_8.pkl", (1e9, 1e9))
    assert SmallDataset(data).semantic_id_dict.status == "trained"
    return cache, data, kept


def calls_of_a_warm_start(data: Path, log: Path) -> list[str]:
    """The system calls of a warm start that have to do with the cache or the data, one a line."""
    need_strace()
    command = ["strace", "-f", "-y", "-qq", "-o", str(log), sys.executable, "-c", READ, str(data)]
    environment = os.environ | {"PYTHONPATH": str(TESTS), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run(command, cwd=TESTS.parent, env=environment, check=True, timeout=100)
    return [line for line in log.read_text().splitlines() if str(data.parent) in line and "execve(" not in line]


def check_warm_starts(world: tuple[Path, Path, Path], tmp_path: Path, counts: list[int]) -> None:
    cache, data, table = world
    made, seen = 0, []
    for count in counts:
        neighbours(cache, table, made, count, OTHERS)
        made = count
        calls = calls_of_a_warm_start(data, tmp_path / "log")
        assert any("0.safetensors" in line and "openat(" in line for line in calls)
        assert not [line for line in calls if "creative_emb/emb_" in line and " openat(" in line]
        seen.append(len(calls))
    assert len(set(seen)) == 1, dict(zip(counts, seen, strict=True))


def test_a_warm_start_makes_the_same_system_calls_beside_any_number_of_lineages(
    world: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """Beside 10 and 300 of others; no embedding is opened."""
    check_warm_starts(world, tmp_path, [10, 300])


@pytest.mark.stress
@pytest.mark.timeout(600)
def test_a_warm_start_makes_the_same_system_calls_beside_ten_thousand_lineages(
    world: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """The long form."""
    check_warm_starts(world, tmp_path, [10, 1_000, 10_000])


def opened_by(call: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which files are opened by a call, through the only door to files of a cache."""
    opened: list[str] = []
    real = _files.open_regular

    def note(path: Path, **named: bool) -> int:
        opened.append(str(path))
        return real(path, **named)

    with monkeypatch.context() as patch:
        patch.setattr(_files, "open_regular", note)
        call()
    return opened


def test_a_cold_look_up_opens_no_table_of_another_kind(
    world: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one that may write enters old lineages into the index; from then on none of theirs is opened."""
    cache, data, table = world
    neighbours(cache, table, 0, 40, OTHERS)
    identity = Identity.of(SMALL, [("81", 8)])
    mine = Cache.of(Environment.read(), data, may_write=True)
    (name,) = mine.candidates(identity)
    assert len(list((cache / "v1" / index.INDEX).iterdir())) == 41
    assert opened_by(lambda: mine.candidates(identity), monkeypatch) == []
    assert opened_by(lambda: list(mine.tables_of(identity, [name])), monkeypatch) == [
        str(cache / f"v1/{name}/0.safetensors")
    ]
    assert mine.candidates(Identity.of(SemanticIdConfig(), [("81", 8)])) == []


def test_an_index_that_was_lost_or_lies_in_part_is_made_again(world: tuple[Path, Path, Path]) -> None:
    """It saves work and nothing else: what has no entry, or two, is looked at."""
    cache, data, table = world
    neighbours(cache, table, 0, 5, OTHERS)
    identity = Identity.of(SMALL, [("81", 8)])
    mine = Cache.of(Environment.read(), data, may_write=True)
    (name,) = mine.candidates(identity)
    shutil.rmtree(cache / "v1" / index.INDEX)
    assert mine.candidates(identity) == [name]
    (cache / "v1" / index.INDEX / f"{name}.{'f' * 16}").touch()  # it contradicts the entry that is right
    assert mine.candidates(identity) == [name]
    shutil.rmtree(cache / "v1" / index.INDEX)
    (cache / "v1" / index.INDEX).write_text("no folder")
    assert mine.candidates(identity) == [name]


def test_who_may_not_write_finds_the_same_without_an_index(world: tuple[Path, Path, Path]) -> None:
    """With the gate closed nothing is entered."""
    cache, data, table = world
    neighbours(cache, table, 0, 5, OTHERS)
    found = Cache.of(Environment.read(), data).candidates(Identity.of(SMALL, [("81", 8)]))
    assert len(found) == 1
    assert len(list((cache / "v1").glob(f"{index.INDEX}/*"))) <= 1
