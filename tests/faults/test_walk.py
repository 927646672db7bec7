"""
A random walk: users with different write rights, gates and seeds, over data that grow, change and are damaged.

The invariant: no item's ID ever differs from the first one that was served to a user, unless a retraining that somebody
asked for lies between, or an ERROR to this very user accounts for it: one that counts as many items as differ, or that
names the table that is lost. New items may get IDs; known ones stay.
"""

import logging
import os
import re
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from world import SmallMixinDataset, vectors_of, write_embeddings

from semid_dataset import SemanticIdConfig, SemanticIdTable, _files, generate_semantic_ids
from semid_dataset.build import memory
from semid_dataset.build.streaming import executors
from semid_dataset.cache import guard, served
from semid_dataset.cache.cache import Cache
from semid_dataset.cache.folders import CacheFolder
from semid_dataset.cache.prune import find_waste
from semid_dataset.environment import Environment
from semid_dataset.registry import EXECUTORS

CATALOGUE = vectors_of(400)
USERS = ("owner", "reader", "another reader")
ASKERS = (*USERS, *(f"{user}, of a copy" for user in USERS))
REAL_FOLDER, PLACE_FILE = CacheFolder.folder, _files.place_file
COUNTED = re.compile(r"(\d+) of \d+ (?:known items )?have another|meanwhile: (\d+) items had got other IDs")
LOST = re.compile(r"lineage (\S+) is damaged or gone|lineage (\S+), which served another directory, is damaged")
IN_PART = re.compile(r"(\d+) items keep their IDs, those added since")
# Walks that ended red once, as (rule, arguments).
TRACES: dict[str, list[tuple[Any, ...]]] = {
    "what was served for a copy, by a closed gate here": [
        ("read_a_copy", "reader"), ("read", "reader", 0, True), ("turn", 2), ("read", "reader", 0, False),
    ],
    "a note about files in place of what served the directory": [
        ("read", "reader", 0, False), ("turn", 2), ("read_a_copy", "reader"), ("read", "reader", 0, True),
    ],
    "his own table damaged, others' data served": [
        ("read", "reader", 0, False), ("turn", 2), ("damage", "reader", 3, 0.156), ("read", "owner", 0, False),
        ("read", "reader", 0, False),
    ],
    "lost, and an older lineage found": [
        ("read", "owner", 0, False), ("retrain", 1), ("read", "owner", 0, True), ("damage", "data", 9, 0.487),
        ("lose_the_export",), ("read", "owner", 0, False),
    ],
    "lost to the owner, and replaced under a reader who noted nothing": [
        ("retrain", 6), ("read", "another reader", 7, True), ("lose_the_export",), ("damage", "data", 0, 0.644),
        ("read", "owner", 7, False), ("read", "another reader", 0, True),
    ],
    "damaged and trained anew in a copied cache": [
        ("read", "owner", 7, False), ("lose_the_export",), ("read_a_copy", "reader"), ("damage", "data", 0, 0.971),
        ("read", "owner", 0, False), ("read_a_copy", "reader"),
    ],
    "an export of others' before what served the reader": [
        ("read", "reader", 7, False), ("retrain", 4), ("grow", 32), ("damage", "data", 8, 0.793),
        ("read", "reader", 0, True), ("read", "reader", 0, False),
    ],
    "one lineage in two folders, extended in both": [
        ("read", "another reader", 0, False), ("read", "owner", 0, False), ("grow", 14), ("damage", "data", 2, 0.645),
        ("read", "another reader", 0, False), ("damage", "another reader", 5, 0.154), ("read", "owner", 0, False),
        ("read", "another reader", 0, True),
    ],
    "a copy's note before the directory's": [
        ("read_a_copy", "reader"), ("shrink",), ("retrain", 7), ("read", "reader", 7, False), ("grow", 19),
        ("read", "owner", 7, False), ("read_a_copy", "reader"), ("read", "reader", 0, True),
    ],
    "a closed gate between what is damaged and what his own note says": [
        ("read_a_copy", "owner"), ("read", "another reader", 0, False), ("grow", 58), ("retrain", 6),
        ("damage", "another reader", 6, 0.088), ("read", "another reader", 7, True), ("lose_the_export",),
        ("damage", "data", 0, 0.644), ("read", "owner", 7, False), ("read", "another reader", 0, True),
    ],
    "the owner has not seen yet that it is lost": [
        ("read", "owner", 0, False), ("read", "another reader", 0, False), ("damage", "data", 6, 0.324),
        ("lose_the_export",), ("grow", 34), ("read_a_copy", "another reader"), ("read", "another reader", 0, False),
    ],
}  # fmt: skip


class World:
    """One data directory of 40 items, and its users."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="walk"))
        self.data = self.folder / "data"
        self.items, self.vectors = 40, CATALOGUE
        # By user, and apart for the copy: items of one name with other vectors at another path are another data set.
        self.first: dict[str, dict[Any, list[int]]] = {name: {} for name in ASKERS}
        self.lineages: dict[str, set[str]] = {name: set() for name in ASKERS}
        self.retrained = dict.fromkeys(ASKERS, False)
        self.errors: list[str] = []
        self.write()

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def write(self) -> None:
        write_embeddings(self.data, self.vectors[: self.items])

    def act(self, user: str, what: Any) -> Any:
        """Do something as a process of a user: his own cache, and only the owner can write into the directory."""
        shared, copied = self.data / ".semantic_ids", self.folder / "copy" / ".semantic_ids"

        def folder(root: CacheFolder, *parts: str, create: bool = False) -> Path:
            if create and not can_write(root):
                raise PermissionError(13, "Permission denied", str(root.path))
            return REAL_FOLDER(root, *parts, create=create)

        def can_write(root: CacheFolder) -> bool:
            return root.path != copied and (user == "owner" or root.path != shared)

        def place_file(path: Path, *rest: Any, **named: Any) -> Any:
            if user != "owner" or path.parent != self.data:
                raise PermissionError(13, "Permission denied", str(path))
            return PLACE_FILE(path, *rest, **named)

        self.errors = errors = []
        handler = logging.Handler(logging.ERROR)
        handler.emit = lambda record: errors.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("semid_dataset").addHandler(handler)
        guard._said.clear()  # another process
        try:
            with (
                mock.patch.object(CacheFolder, "folder", folder),
                mock.patch.object(served, "can_write", can_write),
                mock.patch.object(guard, "can_write", can_write),
                mock.patch.object(_files, "place_file", place_file),
                mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(self.folder / user)}),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")
                return what()
        finally:
            logging.getLogger("semid_dataset").removeHandler(handler)

    def check(self, user: str, table: SemanticIdTable, *, noted: bool = True) -> None:
        """Behind a closed gate nothing is written: what nobody noted, a start that cannot read it does not know."""
        if table.status == "default" or not noted:
            return
        first = self.first[user]
        if self.retrained[user]:
            first.clear()
            self.retrained[user] = False
        served = table.to_dict()
        moved = [item for item, codes in first.items() if item in served and served[item] != codes]
        if moved:
            assert self.accounts_for(user, len(moved)), (
                f"{user}: {len(moved)} of {len(first)} moved in silence ({table!r}, {table.reason}): {self.errors}"
            )
            first.clear()
        for item, codes in served.items():
            first.setdefault(item, codes)
        self.lineages[user].add(table.lineage)

    def accounts_for(self, user: str, moved: int) -> bool:
        """Whether an ERROR counts these items, or names what was lost."""
        for error in self.errors:
            if any(int(count or other) == moved for count, other in COUNTED.findall(error)):
                return True
            ours = tuple(self.lineages[user])  # or a branch of one of them
            if any((one or other).startswith(ours) for one, other in LOST.findall(error)):
                return True
            if any(moved <= len(self.first[user]) - int(known) for known in IN_PART.findall(error)):
                return True
        return False

    # --- what happens ---

    def read(self, user: str, seed: int, closed: bool) -> None:
        gate = {"ALLOW_SEMANTIC_GENERATION": "0" if closed else "1"}

        def look() -> SemanticIdTable:
            with mock.patch.dict(os.environ, gate):
                return SmallMixinDataset(self.data).prepare_semantic_ids(config=config(seed))

        table = self.act(user, look)
        cache = Cache.of(Environment.read(), self.data)
        errors = self.errors
        noted = not closed or self.act(user, lambda: cache.served_before(self.data)) is not None
        self.errors = errors
        self.check(user, table, noted=noted)

    def stream(self, user: str, seed: int) -> None:
        """The same, with embeddings that do not fit into memory."""

        def look() -> SemanticIdTable:
            with (
                mock.patch.object(EXECUTORS, "get", return_value=executors.run_here),
                mock.patch.object(memory, "is_beyond", return_value=True),
            ):
                return SmallMixinDataset(self.data).prepare_semantic_ids(config=config(seed))

        self.check(user, self.act(user, look))

    def grow(self, more: int) -> None:
        self.items = min(400, self.items + more)
        self.write()

    def shrink(self) -> None:
        self.items = max(20, self.items - 10)
        self.write()

    def turn(self, seed: int) -> None:
        """Another encoder."""
        turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(8, 8)))
        self.vectors = (CATALOGUE @ turn).astype(np.float32)
        self.write()

    def back(self) -> None:
        self.vectors = CATALOGUE
        self.write()

    def clock(self, what: str, hours: int) -> None:
        """Times of the embeddings, tables or notes, as a wrong clock writes them."""
        pattern = {
            "embeddings": "creative_emb/*",
            "tables": ".semantic_ids/v1/*/*",
            "notes": ".semantic_ids/v1/*/*.json",
        }
        for path in sorted(self.data.glob(pattern[what])):
            when = path.lstat().st_mtime + 3600 * hours
            os.utime(path, (when, when))

    def retrain(self, seed: int) -> None:
        self.act("owner", lambda: generate_semantic_ids(self.data, ["81"], config=config(seed), retrain=True))
        self.retrained = dict.fromkeys(ASKERS, True)

    def prune(self, user: str) -> None:
        """Whatever nobody needs goes at once, however young; only the owner can delete in the directory."""

        def clean() -> None:
            cache = Cache.of(Environment.read(), self.data, None, may_write=True)
            for waste in find_waste(cache, min_age=0.0, data_dir=self.data):
                if user == "owner" or not waste.path.is_relative_to(self.data):
                    waste.path.unlink()

        self.act(user, clean)

    def read_a_copy(self, user: str) -> None:
        """The directory, copied with all that is in it, read-only, in place of the last copy."""
        copy = self.folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.data, copy)
        asked = lambda: SmallMixinDataset(copy).prepare_semantic_ids(config=config(0))  # noqa: E731
        self.check(f"{user}, of a copy", self.act(user, asked))

    def lose_the_export(self) -> None:
        """Its IDs are in the tables."""
        if list(self.data.glob(".semantic_ids/v1/*/*.safetensors")):
            (self.data / "semantic_id_dict.json").unlink(missing_ok=True)

    def damage(self, where: str, pick: int, place: float) -> None:
        """A flipped bit in a table of the directory or of a user, in a new file, as after a power loss."""
        cache = self.data / ".semantic_ids" if where == "data" else self.folder / where / "semid_dataset"
        tables = sorted(cache.glob("v1/*/*.safetensors"))
        if tables:
            path = tables[pick % len(tables)]
            content = bytearray(path.read_bytes())
            content[int(place * (len(content) - 1))] ^= 1
            path.unlink()
            path.write_bytes(content)


def config(seed: int) -> SemanticIdConfig:
    return SemanticIdConfig(
        num_quantizers=3, codebook_size=8, algorithm="rqkmeans", device="cpu", seed=seed, lock_timeout=20
    )


WHO = st.sampled_from(USERS)
SEED = st.sampled_from([0, 0, 0, 7])


class Walk(RuleBasedStateMachine):
    """Steps through a world."""

    @initialize()
    def begin(self) -> None:
        self.world = World()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.close()

    read = rule(user=WHO, seed=SEED, closed=st.booleans())(lambda self, **given: self.world.read(**given))
    read_again = rule(user=WHO, seed=SEED, closed=st.booleans())(lambda self, **given: self.world.read(**given))
    stream = rule(user=WHO, seed=SEED)(lambda self, **given: self.world.stream(**given))
    grow = rule(more=st.integers(1, 60))(lambda self, more: self.world.grow(more))
    shrink = rule()(lambda self: self.world.shrink())
    turn = rule(seed=st.integers(0, 2))(lambda self, seed: self.world.turn(seed))
    back = rule()(lambda self: self.world.back())
    clock = rule(what=st.sampled_from(["embeddings", "tables", "notes"]), hours=st.integers(-48, 48))(
        lambda self, **given: self.world.clock(**given)
    )
    retrain = rule(seed=st.integers(0, 9))(lambda self, seed: self.world.retrain(seed))
    prune = rule(user=WHO)(lambda self, user: self.world.prune(user))
    read_a_copy = rule(user=WHO)(lambda self, user: self.world.read_a_copy(user))
    lose_the_export = rule()(lambda self: self.world.lose_the_export())
    damage = rule(where=st.sampled_from(["data", *USERS]), pick=st.integers(0, 9), place=st.floats(0, 1))(
        lambda self, **given: self.world.damage(**given)
    )


@pytest.mark.parametrize("trace", TRACES.values(), ids=TRACES)
def test_no_id_moves_in_silence_where_one_did(trace: list[tuple[Any, ...]]) -> None:
    """Walks that ended red once."""
    world = World()
    try:
        for step, *arguments in trace:
            getattr(world, step)(*arguments)
    finally:
        world.close()


@pytest.mark.timeout(180)
def test_no_id_moves_in_silence_on_a_random_walk() -> None:
    """Some 500 steps."""
    run_state_machine_as_test(
        Walk, settings=settings(max_examples=12, stateful_step_count=40, deadline=None, derandomize=True,
                                phases=[Phase.generate], suppress_health_check=list(HealthCheck), database=None)
    )  # fmt: skip


@pytest.mark.stress
@pytest.mark.timeout(3600)
def test_no_id_moves_in_silence_on_a_long_walk() -> None:
    """10,000 steps, others each time."""
    run_state_machine_as_test(
        Walk, settings=settings(max_examples=200, stateful_step_count=50, deadline=None,
                                phases=[Phase.generate], suppress_health_check=list(HealthCheck), database=None)
    )  # fmt: skip
