"""The tally of stress runs, printed at the end; and the user's data, which no fault may change."""

from collections import Counter
from pathlib import Path

import pytest
from faultkit import checksums
from world import make_data

TALLY: Counter[str] = Counter()
COUNTED = ("runs", "faults injected", "misses", "hits", "wrong answers")


@pytest.fixture
def tally() -> Counter[str]:
    """Count here: runs, faults injected, misses, hits, wrong answers."""
    return TALLY


@pytest.fixture
def data(tmp_path: Path):  # type: ignore[no-untyped-def]
    """A data directory that must be the same afterwards, our own files aside."""
    folder = make_data(tmp_path / "data")
    before = checksums(folder)
    yield folder
    assert checksums(folder) == before


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TALLY:
        counts = ", ".join(f"{name} {TALLY[name]}" for name in COUNTED)
        terminalreporter.section("stress")
        terminalreporter.write_line(counts)
