"""The tally of stress runs, printed at the end; and the user's data, which no fault may change."""

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from faultkit import checksums
from world import SmallDataset, make_data

TALLY: Counter[str] = Counter()
COUNTED = ("runs", "faults injected", "misses", "hits", "wrong answers")


@pytest.fixture
def tally() -> Counter[str]:
    """Count here: runs, faults injected, misses, hits, wrong answers."""
    return TALLY


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """A data directory that must be the same afterwards, our own files aside."""
    folder = make_data(tmp_path / "data")
    os.utime(folder / "creative_emb" / "emb_81_8.pkl", (1e9, 1e9))  # older than the grain of clocks: a settled file
    before = checksums(folder)
    yield folder
    assert checksums(folder) == before


@pytest.fixture(scope="session")
def warm_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_data(tmp_path_factory.mktemp("warm") / "data")
    os.utime(folder / "creative_emb" / "emb_81_8.pkl", (1e9, 1e9))
    _ = SmallDataset(folder).semantic_id_dict
    return folder


@pytest.fixture
def warm(tmp_path: Path, warm_template: Path) -> Iterator[Path]:
    """A data directory with its cache, copied from one that was trained; must be the same afterwards."""
    folder = shutil.copytree(warm_template, tmp_path / "data")
    before = checksums(folder)
    yield folder
    assert checksums(folder) == before


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TALLY:
        counts = ", ".join(f"{name} {TALLY[name]}" for name in COUNTED)
        terminalreporter.section("stress")
        terminalreporter.write_line(counts)
