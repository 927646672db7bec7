"""Row 49: the JSON that we write into the user's data directory is known as ours, whatever is lost around it."""

import json
import os
import shutil
import signal
import warnings
from pathlib import Path

import pytest
from faultkit import start
from world import ITEM0, SmallDataset, vectors_of, write_embeddings

from semid_dataset import resolve
from semid_dataset.cache.cache import Cache
from semid_dataset.errors import SemanticIdWarning
from semid_dataset.table.table import SemanticIdTable

JSON = "semantic_id_dict.json"


def ids_of(data: Path) -> SemanticIdTable:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SemanticIdWarning)
        return SmallDataset(data).semantic_id_dict


def damage(data: Path) -> None:
    """Damage every table, as a new file: nobody maps it."""
    for path in data.glob(".semantic_ids/v1/*/*.safetensors"):
        content = bytearray(path.read_bytes())
        content[-99] ^= 1
        path.unlink()
        path.write_bytes(content)


def grow(data: Path, items: int) -> None:
    import numpy as np

    write_embeddings(data, np.concatenate([vectors_of(200), vectors_of(items, seed=7)]))


def test_damage_between_an_export_and_its_note_heals(warm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The healer was about to note whose export it had written when the table was damaged once more."""
    before = ids_of(warm)
    ids, lineage = before.to_dict(), before.lineage
    del before
    remember = Cache.remember

    def damaged_first(self: Cache, entry: object, cache_key: object, digests: object) -> None:
        if getattr(cache_key, "kind", "") != "json":
            remember(self, entry, cache_key, digests)  # type: ignore[arg-type]

    for path in warm.glob(".semantic_ids/v1/memo/*"):
        path.unlink()
    os.utime(warm / JSON)
    damage(warm)
    with monkeypatch.context() as patch:
        patch.setattr(Cache, "remember", damaged_first)
        assert ids_of(warm).to_dict() == ids
    damage(warm)
    for _ in range(2):
        table = ids_of(warm)
        assert (table.to_dict(), table.lineage) == (ids, lineage)
        assert table.status != "pregenerated"
    assert not list(warm.glob(".semantic_ids/v1/json-*"))


def test_the_mark_is_there_before_the_export(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At no moment does a file of ours lie there that nobody could tell from a hand-made one."""
    place = resolve.files.place_file
    seen = []

    def look(path: Path, *arguments: object, **named: object) -> object:
        cache = Cache.of(resolve.Context.at_door().environment, data)
        marks = [json.loads(mark.read_text()) for mark in data.glob(".semantic_ids/v1/exports/*.json")]
        seen.append([cache.exported_as(mark["sha256"]) for mark in marks])
        return place(path, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(resolve.files, "place_file", look)
    table = ids_of(data)
    ((entry,),) = seen
    assert entry is not None
    assert (entry.lineage, entry.digest) == (table.lineage, table.digest)


@pytest.mark.parametrize("round_", range(5))
def test_a_hand_made_file_that_arrives_during_an_export_stays(
    data: Path, monkeypatch: pytest.MonkeyPatch, round_: int
) -> None:
    """While a table is trained (0), written (1, 2), synced (3), or replaced by the next (4)."""
    hand_made = json.dumps({ITEM0 + k: [k % 16, 1, 2] for k in range(200)})

    def arrive() -> None:
        (data / "new.json").write_text(hand_made)
        (data / "new.json").replace(data / JSON)

    if round_ == 4:
        assert ids_of(data).status == "trained"
        grow(data, 30)
    place, json_chunks, fsync = resolve.files.place_file, SemanticIdTable.json_chunks, os.fsync

    def arrive_first(*arguments: object, **named: object) -> object:
        arrive()
        return place(*arguments, **named)  # type: ignore[arg-type]

    def arrive_meanwhile(self: SemanticIdTable) -> object:
        chunks = list(json_chunks(self))
        yield from chunks[:1]
        arrive()
        yield from chunks[1:]

    def arrive_at_sync(descriptor: int) -> None:
        fsync(descriptor)
        if JSON in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            arrive()

    with monkeypatch.context() as patch:
        if round_ in {0, 4}:
            patch.setattr(resolve.files, "place_file", arrive_first)
        elif round_ in {1, 2}:
            patch.setattr(SemanticIdTable, "json_chunks", arrive_meanwhile)
        else:
            patch.setattr(os, "fsync", arrive_at_sync)
        assert ids_of(data).status == ("extended" if round_ == 4 else "trained")
    assert (data / JSON).read_text() == hand_made
    table = ids_of(data)
    assert (table.status, table[ITEM0 + 5]) == ("pregenerated", [5, 1, 2])
    if round_ == 4:
        grow(data, 0)
        os.utime(data / "creative_emb" / "emb_81_8.pkl", (1e9, 1e9))


def test_a_killed_export_leaves_nothing_for_good(data: Path) -> None:
    """SIGKILL while the JSON is written: the hidden file is gone when IDs are next made."""
    code = (
        "import os, sys, world\n"
        "from semid_dataset import _files\n"
        "real = _files._write_all\n"
        "def die(descriptor, buffers):\n"
        "    if 'semantic_id_dict' in os.readlink(f'/proc/self/fd/{descriptor}'): os.kill(os.getpid(), 9)\n"
        "    real(descriptor, buffers)\n"
        "_files._write_all = die\n"
        "world.SmallDataset(sys.argv[1]).semantic_id_dict\n"
    )
    child = start(code, data)
    child.communicate(timeout=50)
    assert child.returncode == -signal.SIGKILL
    assert [path.name for path in data.glob(".semantic_id_dict*")]
    assert ids_of(data).status == "cached"  # the table was published before
    assert not list(data.glob(".semantic_id_dict*"))


def test_a_copy_of_the_directory_knows_the_export_after_a_prune(data: Path, tmp_path: Path) -> None:
    """Row 12: the table that it was exported from is gone; the newest header says so."""
    old = ids_of(data)
    export = (data / JSON).read_bytes()
    grow(data, 30)
    newer = ids_of(data)
    assert newer.generation == 1
    for kind in ("memo", "exports", "served"):
        shutil.rmtree(data / ".semantic_ids/v1" / kind)
    (data / f".semantic_ids/v1/{newer.lineage}/0.safetensors").unlink()
    copy = shutil.copytree(data, tmp_path / "copy")
    (copy / JSON).write_bytes(export)
    grow(copy, 80)
    table = ids_of(copy)
    assert (table.status, len(table)) == ("extended", 280)
    assert {item: table[item] for item in old} == old.to_dict()
    grow(data, 0)
    os.utime(data / "creative_emb" / "emb_81_8.pkl", (1e9, 1e9))
