"""The table of faults names tests that exist."""

import re
from pathlib import Path

HERE = Path(__file__).parent


def test_every_fault_has_tests_that_exist() -> None:
    """Thirty rows, and no name in them that was renamed since."""
    rows = re.findall(r"^\| (\d+) \|(.*)$", (HERE / "README.md").read_text(), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 31))
    code = "".join(path.read_text() for path in HERE.parent.rglob("test_*.py"))
    defined = set(re.findall(r"def (test_\w+)", code))
    for number, row in rows:
        named = set(re.findall(r"\btest_\w+\b(?!\.py)", row))
        files = re.findall(r"\b(test_\w+\.py)", row)
        assert named | set(files), number
        assert named <= defined, named - defined
        assert all(list(HERE.parent.rglob(file)) for file in files)
