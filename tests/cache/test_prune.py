"""What is pruned nobody notices: not who maps a table, not who holds a copy of it, not who used it lately."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from faultkit import TESTS
from world import SmallDataset, make_data, vectors_of, write_embeddings

from semid_dataset.cache import entries, folders, served, use
from semid_dataset.cache.cache import Cache, publish_table
from semid_dataset.cache.prune import find_waste, look_through, within
from semid_dataset.environment import Environment
from semid_dataset.table.build import build_table_buffers

LINEAGE = "0123456789abcdef"
DAY = 86_400.0


def publish(root: folders.CacheFolder, generation: int, lineage: str = LINEAGE) -> Path:
    codes = np.random.default_rng(generation).integers(0, 256, (50, 4)).astype(np.uint8)
    info = {"lineage": lineage, "generation": generation}
    publish_table(root, lineage, generation, build_table_buffers(np.arange(50), codes, info=info))
    return root.folder(lineage) / f"{generation}.safetensors"


def age(path: Path, days: float) -> None:
    then = time.time() - days * DAY
    os.utime(path, (then, then))


@pytest.fixture
def root(tmp_path: Path) -> folders.CacheFolder:
    """A cache of one lineage with two generations, 40 days old."""
    root = folders.CacheFolder(tmp_path / "cache", tmp_path / "cache")
    for generation in (0, 1):
        age(publish(root, generation), 40)
    return root


def doomed(root: folders.CacheFolder, **settings: object) -> list[str]:
    return sorted(one.path.name for one in find_waste(Cache([root]), **settings))  # type: ignore[arg-type]


def test_tables_stay_for_a_month_and_leftovers_for_a_day(root: folders.CacheFolder) -> None:
    """By default; an age that is named holds for all."""
    assert doomed(root) == ["0.safetensors"]
    age(root.folder(LINEAGE) / "0.safetensors", 20)
    aside = root.folder(LINEAGE) / "2.safetensors.damaged-0"
    aside.touch()
    age(aside, 2)
    assert doomed(root) == ["2.safetensors.damaged-0"]
    assert doomed(root, min_age=10 * DAY) == ["0.safetensors"]
    assert doomed(root, min_age=0) == ["0.safetensors", "2.safetensors.damaged-0"]


def test_the_newest_that_can_be_read_stays_whatever_its_age(root: folders.CacheFolder) -> None:
    """Also where a newer one is damaged."""
    (root.folder(LINEAGE) / "1.safetensors").write_bytes(b"damaged")
    age(root.folder(LINEAGE) / "1.safetensors", 40)
    assert doomed(root, min_age=0) == []


@contextmanager
def a_process(code: str, *arguments: object, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """A child that has said that it is ready, and goes on when it is written to."""
    child = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": f"{TESTS}:{TESTS.parent}"} | variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "ready\n"
        yield child
    finally:
        child.kill()
        child.communicate()


HOLD = (
    "import sys, pathlib; from semid_dataset.cache.cache import open_table\n"
    "table = open_table(pathlib.Path(sys.argv[1]), mmap=sys.argv[2] == 'mapped').with_status('cached', 'held')\n"
    "print('ready', flush=True); sys.stdin.readline()\n"
)


@pytest.mark.parametrize("how", ["mapped", "copied"])
def test_what_a_process_of_this_machine_has_open_stays(root: folders.CacheFolder, how: str) -> None:
    """The kernel tells of a map; a copy keeps its file open to be seen."""
    path = root.folder(LINEAGE) / "0.safetensors"
    with a_process(HOLD, path, how):
        assert doomed(root, min_age=0) == []
        (contents,) = look_through(Cache([root]))
        assert contents.rows[0].live
    assert doomed(root, min_age=0) == ["0.safetensors"]


TRAINER = (
    "import sys, pathlib, world\n"
    "from torch.utils.data import DataLoader\n"
    "if __name__ == '__main__':\n"
    "    dataset = world.SmallMixinDataset(pathlib.Path(sys.argv[1]))\n"
    "    table = dataset.semantic_id_dict\n"
    "    print('ready', flush=True); sys.stdin.readline()\n"
    "    loader = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context='spawn')\n"
    "    rows = [list(map(int, row)) for row in loader]\n"
    "    assert rows == [table[world.ITEM0 + k] for k in range(8)], rows\n"
    "    print('done', flush=True)\n"
)


def test_pruning_beside_a_running_trainer_leaves_what_its_next_workers_open(tmp_path: Path) -> None:
    """Their pickle names table 0; table 1 was published meanwhile."""
    data = make_data(tmp_path / "data")
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)
    code = f"import sys, runpy; sys.argv = ['x', *sys.argv[1:]]; runpy.run_path({str(script)!r}, run_name='__main__')"
    with a_process(code, data) as trainer:
        write_embeddings(data, np.concatenate([vectors_of(200), vectors_of(20, seed=4)]))
        table = SmallDataset(data).semantic_id_dict
        assert (table.status, table.generation) == ("extended", 1)
        done = subprocess.run(
            [sys.executable, "-m", "semid_dataset", "prune", data, "--older-than", "0", "--delete"],
            check=True,
            capture_output=True,
            text=True,
        )
        assert "0.safetensors" not in done.stdout
        out, _ = trainer.communicate("go\n", timeout=50)
        assert out == "done\n"


def test_a_table_that_was_used_lately_stays(root: folders.CacheFolder) -> None:
    """Its reader may be on another machine: whoever opens a table leaves a mark, once a day."""
    cache = Cache([root])
    assert cache.named(LINEAGE, 0) is not None
    mark = root.versioned / use.USED / f"{LINEAGE}.0"
    assert mark.exists()
    assert doomed(root) == []
    age(mark, 0.5)
    before = mark.stat().st_mtime_ns
    assert cache.named(LINEAGE, 0) is not None
    assert mark.stat().st_mtime_ns == before
    age(mark, 31)
    assert doomed(root) == ["0.safetensors"]
    assert cache.named(LINEAGE, 0) is not None
    assert doomed(root) == []


def test_a_reader_that_may_not_write_leaves_no_mark(root: folders.CacheFolder) -> None:
    """With the gate closed nothing is written."""
    assert Cache([root]).reading().named(LINEAGE, 0) is not None
    assert not (root.versioned / use.USED).exists()


def test_ages_are_told_by_the_clock_of_the_file_system(
    root: folders.CacheFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine two months ahead takes nothing that is a day old."""
    age(root.folder(LINEAGE) / "0.safetensors", 1)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 60 * DAY)
    assert doomed(root) == []


def test_what_belongs_to_a_lineage_that_is_gone_goes_too(root: folders.CacheFolder) -> None:
    """Entries of the index and marks of use; jobs and hidden files of dead writers as well."""
    for kind, name in (("index", "gone-lineage.0123456789abcdef"), ("used", "gone-lineage.3")):
        path = root.folder(kind, create=True) / name
        path.touch()
        age(path, 2)
    (root.folder("index") / f"{LINEAGE}.0123456789abcdef").touch()
    age(root.folder("index") / f"{LINEAGE}.0123456789abcdef", 2)
    job = root.folder("jobs", "0" * 32, create=True) / "plan.json"
    job.touch()
    age(job, 3)
    assert doomed(root) == ["0.safetensors", "gone-lineage.0123456789abcdef", "gone-lineage.3", "plan.json"]


def test_a_size_is_kept_by_giving_up_what_is_least_missed(root: folders.CacheFolder) -> None:
    """Leftovers first, then the longest unused; never the newest of a lineage."""
    for generation in (2, 3):
        age(publish(root, generation), 35 - generation)
    leftover = root.folder(LINEAGE) / "9.safetensors.damaged-0"
    leftover.write_bytes(b"x" * 100)
    age(leftover, 2)
    waste = find_waste(Cache([root]))
    (contents,) = look_through(Cache([root]))
    total = contents.bytes
    size = (root.folder(LINEAGE) / "0.safetensors").stat().st_size

    def chosen(most: int) -> list[str]:
        return [one.path.name for one in within(waste, total, most)]

    assert chosen(total) == []
    assert chosen(total - 1) == ["9.safetensors.damaged-0"]
    assert chosen(total - 100 - size) == ["9.safetensors.damaged-0", "0.safetensors"]
    assert chosen(0) == ["9.safetensors.damaged-0", "0.safetensors", "1.safetensors", "2.safetensors"]


def test_the_cache_says_what_lies_in_it(tmp_path: Path) -> None:
    """Size, age, kind of ID, and who was served last."""
    data = make_data(tmp_path / "data")
    table = SmallDataset(data).semantic_id_dict
    contents = next(iter(look_through(Cache.of(Environment.read(), data))))
    (row,) = contents.rows
    assert (row.name, row.generations, row.serves) == (table.lineage, (0,), (str(data),))
    assert table.header.identity is not None
    assert row.identity == str(table.header.identity)
    assert row.bytes == Path(str(table.path)).stat().st_size
    assert abs(contents.now - row.used) < 600
    assert contents.bytes >= row.bytes


def test_a_generation_that_is_pinned_stays(root: folders.CacheFolder) -> None:
    """What was rolled back to answers as long as the pin lies there."""
    assert doomed(root, min_age=0) == ["0.safetensors"]
    served.pin([root], Path("/some/where"), f"{LINEAGE}@0")
    assert doomed(root, min_age=0, lineages=True) == []
    served.pin([root], Path("/some/where"), "")
    assert doomed(root, min_age=0) == ["0.safetensors"]


def test_notes_of_a_copied_cache_keep_their_lineage(root: folders.CacheFolder) -> None:
    """A lineage that a note names is nobody's waste."""
    assert doomed(root, lineages=True, min_age=0) == ["0.safetensors", "1.safetensors"]
    for kind, lineage in (("a1", LINEAGE), ("b2", "another-lineage")):  # of two kinds of ID, the last one is another
        served.note_served([root], Path("/some/where"), kind, entries.CacheEntry(lineage, 0, "5" * 64))
        assert doomed(root, lineages=True, min_age=0) == ["0.safetensors"]
