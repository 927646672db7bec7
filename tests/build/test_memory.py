"""A memory limit is one: what does not fit is refused with the figure, or streamed, and IDs do not depend on it."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from world import SMALL, SmallDataset, make_data, vectors_of

from semid_dataset import api as commands
from semid_dataset.build import memory
from semid_dataset.config import SemanticIdConfig
from semid_dataset.errors import ConfigError, SemanticIdWarning
from semid_dataset.inputs.discover import FeatureSource


def sized(monkeypatch: pytest.MonkeyPatch, rows: int, dim: int) -> list[FeatureSource]:
    """A feature of so many rows."""
    monkeypatch.setattr(memory, "estimate", lambda source: (rows, rows * 4 * dim))
    return [FeatureSource("81", dim, "parquet", Path("x"), ())]


def test_a_limit_below_what_torch_takes_is_refused_with_the_figure(tmp_path: Path) -> None:
    """Nothing is made; the sentence says what it takes."""
    data = make_data(tmp_path / "data", 100)
    with pytest.raises(ConfigError, match=r"256\.0 MiB; making IDs takes 400\.0 MiB at least.*Nothing was made"):
        commands.generate_semantic_ids(data, config=replace(SMALL, memory_limit=256 << 20))
    np.save(tmp_path / "x.npy", vectors_of(10, 4))
    with pytest.raises(ConfigError, match=r"400\.0 MiB at least"):
        commands.generate_from_file(
            tmp_path / "x.npy", "rows", output_dir=tmp_path / "out", config=replace(SMALL, memory_limit=64 << 20)
        )
    assert not (data / "semantic_id_dict.json").exists()
    assert commands.generate_semantic_ids(data, config=replace(SMALL, memory_limit=400 << 20)).status == "trained"


def test_a_dataset_under_such_a_limit_has_default_ids_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Degrading is never silent."""
    monkeypatch.setenv("SEMID_MEMORY_LIMIT", "128M")
    data = make_data(tmp_path / "data", 100)
    with pytest.warns(SemanticIdWarning, match=r"making IDs takes 400\.0 MiB at least"):
        table = SmallDataset(data).semantic_id_dict
    assert table.status == "default"
    assert "128.0 MiB" in table.reason


@pytest.mark.parametrize(
    ("rows", "dim", "limit", "beyond"),
    [
        (50_000, 32, 512 << 20, False),
        (1_000_000, 32, 512 << 20, True),  # took 793 MB in memory
        (1_000_000, 32, 1 << 30, False),
        (45_000, 3_584, 1 << 30, True),
        (300_000, 1_024, 4 << 30, True),
        (300_000, 1_024, 8 << 30, False),
    ],
)
def test_what_would_take_more_than_the_limit_is_streamed(
    rows: int, dim: int, limit: int, beyond: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that memory holds counts, not the vectors alone."""
    assert memory.is_beyond(sized(monkeypatch, rows, dim), limit) is beyond


def test_a_sample_asked_for_by_name_does_not_depend_on_the_limit() -> None:
    """Otherwise wide vectors leave room for fewer items."""
    assert memory.sample_size([1_024], 1 << 30, 5_000) == memory.sample_size([1_024], 16 << 30, 5_000) == 5_000
    assert memory.sample_size([32], 512 << 20) == memory.MOST_SAMPLED
    assert memory.LEAST_SAMPLED < memory.sample_size([1_024], 1 << 30) < memory.sample_size([1_024], 2 << 30)
    assert memory.sample_size([32, 256, 1_024], 512 << 20) == memory.LEAST_SAMPLED


def test_ids_of_a_named_sample_are_the_same_under_any_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory, and streamed under two limits."""
    tables = []
    for place, limit, engine in (("a", 8 << 30, None), ("b", 512 << 20, "local"), ("c", 400 << 20, "local")):
        data = make_data(tmp_path / place, 600)
        config = replace(SMALL, memory_limit=limit, sample_items=200)
        tables.append(commands.generate_semantic_ids(data, config=config, engine=engine))
    assert len({table.digest for table in tables}) == 1
    assert {table.quality["sampled"] for table in tables} == {200}


def test_a_sample_that_the_limit_cuts_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With what rules it out; where it is named, or everything fits, nothing is said."""
    monkeypatch.setattr(memory, "LEAST_SAMPLED", 200)
    monkeypatch.setattr(memory, "TRAINING_COPIES", 1 << 40)
    with caplog.at_level(logging.WARNING, "semid_dataset"):  # another limit gives other IDs
        commands.generate_semantic_ids(make_data(tmp_path / "a", 600), config=SMALL, engine="local")
    assert "fitted on 200 of 600 items, since 1.0 GiB" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "semid_dataset"):
        config = replace(SMALL, sample_items=200)
        commands.generate_semantic_ids(make_data(tmp_path / "b", 600), config=config, engine="local")
    assert "fitted on" not in caplog.text


def test_workers_follow_cores_and_a_line_says_what_the_limit_takes_away(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(memory, "_cores", lambda: 64)
    monkeypatch.setattr(memory, "_resident", lambda: 400 << 20)
    with caplog.at_level(logging.INFO, "semid_dataset"):
        assert memory.workers("encode", 1_000, 64 << 30) == 64
        assert memory.workers("encode", 3, 64 << 30) == 3
    assert caplog.text == ""
    with caplog.at_level(logging.INFO, "semid_dataset"):
        assert memory.workers("encode", 1_000, 4 << 30) == 11
        assert memory.workers("encode", 1_000, 512 << 20) == 1
    assert "11 of 64 processes do the stage encode" in caplog.text


@pytest.mark.parametrize("given", [0, -1, 1.5, "many", True])
def test_a_sample_that_is_no_number_of_items_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match="sample_items"):
        SemanticIdConfig(sample_items=given)


def test_another_sample_is_no_other_kind_of_id(tmp_path: Path) -> None:
    """As a seed or epochs: asking for another one does not retrain."""
    data = make_data(tmp_path / "data", 300)
    first = commands.generate_semantic_ids(data, config=SMALL)
    again = commands.generate_semantic_ids(data, config=replace(SMALL, sample_items=100))
    assert (again.status, again.digest) == ("cached", first.digest)
