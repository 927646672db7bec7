"""Parts of other packages are found by name, loaded when asked for, and held to the same protocol."""

from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from semid_dataset import registry
from semid_dataset.errors import ConfigError
from semid_dataset.inputs import formats
from semid_dataset.inputs.matrix import read_vectors
from semid_dataset.protocols import Format, Partition, Sink


class Csv:
    """A format of a stranger: item, then numbers, between commas."""

    name: ClassVar[str] = "csv"
    suffixes: ClassVar[tuple[str, ...]] = (".csv",)
    starts: ClassVar[bytes] = b""

    def size(self, whole: Partition, dim: int) -> int:
        return Path(whole.path).read_bytes().count(b"\n")

    def partitions(self, whole: Partition, rows: int) -> list[Partition]:
        return [whole]

    def read(self, part: Partition, sink: Sink, progress: Callable[[int], None], *, digest: bool = False) -> str:
        for number, line in enumerate(Path(part.path).read_text().splitlines(), start=1):
            item, *numbers = line.split(",")
            sink.begin(len(numbers))
            sink.add_one(item, np.array(numbers, np.float32), f"{Path(part.path).name}, line {number}")
        return ""


def announce(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """Pretend that a package with such an entry point is installed."""
    point = EntryPoint(name, value, "semid_dataset.formats")

    def found(**wanted: Any) -> list[EntryPoint]:
        return [point] if wanted.get("name", name) == name and wanted["group"] == point.group else []

    monkeypatch.setattr(registry, "entry_points", found)
    monkeypatch.setattr(formats.FORMATS, "_loaded", {})


def test_a_format_of_another_package_reads_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by its ending, and held to everything that ours are held to."""
    monkeypatch.setattr(registry, "Csv", Csv, raising=False)
    announce(monkeypatch, "csv", "semid_dataset.registry:Csv")
    (tmp_path / "x.csv").write_text("7,1,2\n1000.0,3,4\n")
    items, matrix = read_vectors(tmp_path / "x.csv")
    assert items.tolist() == [7, 1000]  # type: ignore[union-attr]
    assert matrix.tolist() == [[1, 2], [3, 4]]
    stranger: Format = formats.FORMATS.get("csv")
    assert stranger.size(Partition("csv", str(tmp_path / "x.csv")), 2) == 2


def test_what_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the package that announced it; a name of nobody with those that there are."""
    announce(monkeypatch, "broken", "no_such_package:Format")
    with pytest.raises(ConfigError, match="format 'broken' of no_such_package:Format cannot be loaded"):
        formats.FORMATS.get("broken")
    with pytest.raises(ConfigError, match="'yaml' is no format; there are arrow, broken, jsonl"):
        formats.FORMATS.get("yaml")
