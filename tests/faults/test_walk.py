"""
A random walk: users with different write rights, gates and seeds, over data that grow, change and are damaged.

The invariant: no item's ID ever differs from the first one that was served to a user, unless an ERROR that counts or
names it, or a retraining that somebody asked for, lies between. New items may get IDs; known ones stay.
"""

import logging
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from world import SmallMixinDataset, vectors_of, write_embeddings

from semid_dataset import SemanticIdConfig, SemanticIdTable, _files, generate_semantic_ids
from semid_dataset.cache import served
from semid_dataset.cache.cache import Cache
from semid_dataset.cache.folders import CacheFolder
from semid_dataset.cache.prune import find_waste
from semid_dataset.environment import Environment

CATALOGUE = vectors_of(400)
USERS = ("owner", "reader", "another reader")
ASKERS = (*USERS, *(f"{user}, of a copy" for user in USERS))
REAL_FOLDER, PLACE_FILE = CacheFolder.folder, _files.place_file


class Walk(RuleBasedStateMachine):
    """Users of one data directory."""

    @initialize()
    def begin(self) -> None:
        """One directory of 40 items, and nothing else."""
        self.folder = Path(tempfile.mkdtemp(prefix="walk"))
        self.data = self.folder / "data"
        self.items, self.vectors = 40, CATALOGUE
        # By user, and apart for the copy: items of one name with other vectors at another path are another data set.
        self.first: dict[str, dict[Any, list[int]]] = {name: {} for name in ASKERS}
        self.excused = dict.fromkeys(ASKERS, False)
        self.write()

    def teardown(self) -> None:
        shutil.rmtree(getattr(self, "folder", "/nonexistent"), ignore_errors=True)

    def write(self) -> None:
        write_embeddings(self.data, self.vectors[: self.items])

    def act(self, user: str, what: Any) -> Any:
        """Do something as a user: his own cache, and only the owner can write into the directory."""
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

        errors: list[str] = []
        handler = logging.Handler(logging.ERROR)
        handler.emit = lambda record: errors.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("semid_dataset").addHandler(handler)
        try:
            with (
                mock.patch.object(CacheFolder, "folder", folder),
                mock.patch.object(served, "can_write", can_write),
                mock.patch.object(_files, "place_file", place_file),
                mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(self.folder / user)}),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")
                return what()
        finally:
            logging.getLogger("semid_dataset").removeHandler(handler)
            if errors:
                self.excused[user] = self.excused[f"{user}, of a copy"] = True

    def check(self, user: str, table: SemanticIdTable) -> None:
        if table.status == "default":
            return
        if self.excused[user]:
            self.first[user], self.excused[user] = {}, False
        moved = {item: codes for item, codes in self.first[user].items() if item in table and table[item] != codes}
        assert not moved, (
            f"{user}: {len(moved)} of {len(self.first[user])} moved in silence ({table!r}, {table.reason})"
        )
        for item, codes in table.items():
            self.first[user].setdefault(item, codes)

    @rule(user=st.sampled_from(USERS), seed=st.sampled_from([0, 0, 0, 7]), closed=st.booleans())
    def read(self, user: str, seed: int, closed: bool) -> None:
        config = SemanticIdConfig(
            num_quantizers=3, codebook_size=8, algorithm="rqkmeans", device="cpu", seed=seed, lock_timeout=20
        )
        gate = {"ALLOW_SEMANTIC_GENERATION": "0" if closed else "1"}

        def look() -> SemanticIdTable:
            with mock.patch.dict(os.environ, gate):
                return SmallMixinDataset(self.data).prepare_semantic_ids(config=config)

        self.check(user, self.act(user, look))

    @rule(more=st.integers(1, 60))
    def grow(self, more: int) -> None:
        self.items = min(400, self.items + more)
        self.write()

    @rule()
    def shrink(self) -> None:
        self.items = max(20, self.items - 10)
        self.write()

    @rule(seed=st.integers(0, 2))
    def lease(self, seed: int) -> None:
        """Another encoder."""
        lease, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(8, 8)))
        self.vectors = (CATALOGUE @ lease).astype(np.float32)
        self.write()

    @rule()
    def back(self) -> None:
        self.vectors = CATALOGUE
        self.write()

    @rule(seed=st.integers(0, 9))
    def retrain(self, seed: int) -> None:
        config = SemanticIdConfig(num_quantizers=3, codebook_size=8, algorithm="rqkmeans", device="cpu", seed=seed)
        self.act("owner", lambda: generate_semantic_ids(self.data, ["81"], config=config, retrain=True))
        self.excused = dict.fromkeys(ASKERS, True)

    @rule(user=st.sampled_from(USERS))
    def prune(self, user: str) -> None:
        """Whatever nobody needs goes at once, however young; only the owner can delete in the directory."""

        def clean() -> None:
            cache = Cache.of(Environment.read(), self.data, None, may_write=True)
            for waste in find_waste(cache, min_age=0.0, data_dir=self.data):
                if user == "owner" or not waste.path.is_relative_to(self.data):
                    waste.path.unlink()

        self.act(user, clean)

    @rule(user=st.sampled_from(USERS))
    def read_a_copy(self, user: str) -> None:
        """The directory, copied with all that is in it, read-only, in place of the last copy."""
        copy = self.folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.data, copy)
        config = SemanticIdConfig(num_quantizers=3, codebook_size=8, algorithm="rqkmeans", device="cpu")
        self.check(
            f"{user}, of a copy", self.act(user, lambda: SmallMixinDataset(copy).prepare_semantic_ids(config=config))
        )

    @rule()
    def lose_the_export(self) -> None:
        """Its IDs are in the tables."""
        if list(self.data.glob(".semantic_ids/v1/*/*.safetensors")):
            (self.data / "semantic_id_dict.json").unlink(missing_ok=True)


@pytest.mark.timeout(120)
def test_no_id_moves_in_silence_on_a_random_walk() -> None:
    """Some 500 steps."""
    run_state_machine_as_test(
        Walk, settings=settings(max_examples=12, stateful_step_count=40, deadline=None, derandomize=True,
                                suppress_health_check=list(HealthCheck), database=None)
    )  # fmt: skip


@pytest.mark.stress
@pytest.mark.timeout(3600)
def test_no_id_moves_in_silence_on_a_long_walk() -> None:
    """10,000 steps, others each time."""
    run_state_machine_as_test(
        Walk, settings=settings(max_examples=200, stateful_step_count=50, deadline=None,
                                suppress_health_check=list(HealthCheck), database=None)
    )  # fmt: skip
