"""Every test runs with caches of its own and none of the caller's settings."""

import os
from pathlib import Path

import pytest

from semid_dataset import _messages
from semid_dataset.cache import guard
from semid_dataset.environment import LAUNCHED

# Before torch is loaded, here and in the processes that tests start: several test processes with a thread a core
# each wait for one another, and take minutes for what one thread does in seconds.
os.environ["OMP_NUM_THREADS"] = "1"

OURS = {"ALLOW_SEMANTIC_GENERATION", "USER_CACHE_PATH", "WORLD_SIZE", "LC_ALL", "LC_MESSAGES", "LANG"}
OURS |= {"SLURM_STEP_NUM_TASKS", *(name for pair in LAUNCHED for name in pair)}


@pytest.fixture(autouse=True)
def clean_environ(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the caller's decides a test; user caches go to a temporary folder."""
    for name in list(os.environ):
        if name in OURS or (name.startswith("SEMID_") and name != "SEMID_REAL_DATA"):
            monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
    monkeypatch.setenv("SEMID_LANG", "en")
    _messages.speak("en")
    guard._said.clear()  # what is said once a process, each test may hear


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real data, for those who have it."""
    folder = os.environ.get("SEMID_REAL_DATA")
    if not folder:
        pytest.skip("SEMID_REAL_DATA is not set: tests on real data need its folder")
    return Path(folder)
