"""Figures of a table: as text, in a notebook, flat; and never one that nobody took."""

import copy
import json
import math
import pickle
from pathlib import Path

import pytest
import world

from semid_dataset import SemanticIdTable
from semid_dataset.table.figures import Quality, figures, percent
from semid_dataset.table.table import build_table_buffers


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> SemanticIdTable:
    """Trained on 200 items."""
    data = world.make_data(tmp_path_factory.mktemp("quality"))
    return world.SmallDataset(data).semantic_id_dict


def test_quality_is_still_a_dict_of_json_types(table: SemanticIdTable) -> None:
    """Those who compare, store, copy or send it notice nothing."""
    quality = table.quality
    assert quality == table.info["quality"]
    assert json.loads(json.dumps(quality)) == quality
    assert pickle.loads(pickle.dumps(quality)) == copy.deepcopy(quality) == quality


def test_quality_prints_what_was_measured(table: SemanticIdTable) -> None:
    """As text and as a table for notebooks, with every level."""
    text, page = repr(table.quality), table.quality._repr_html_()
    for label in (
        "items that share their ID",
        "relative error, held out",
        "perplexity",
        "neighbours that share code 1",
    ):
        assert label in text
        assert label in page
    assert len([line for line in text.splitlines() if line.split()[:1] in (["1"], ["2"], ["3"])]) == 3


def test_the_error_falls_level_by_level(table: SemanticIdTable) -> None:
    """With all codes it is the error of the whole ID."""
    levels = table.quality["relative_mse_levels"]
    assert levels == sorted(levels, reverse=True)
    assert levels[-1] == pytest.approx(table.quality["relative_mse"])


def test_the_stages_of_the_run_add_up_to_less_than_all_of_it(table: SemanticIdTable) -> None:
    """Where the time went is kept with the table."""
    provenance = table.info["provenance"]
    assert set(provenance["stages"]) == {"reading", "fusion", "training", "encoding", "uniqueness", "measuring"}
    assert 0 < sum(provenance["stages"].values()) <= provenance["seconds"]


@pytest.mark.parametrize(
    "quality",
    [{}, {"usage": "x", "relative_mse": math.nan, "gini": [None], "neighbour_fidelity": 3, "items": True}],
)
def test_nothing_is_invented(quality: dict[str, object]) -> None:
    """What nobody measured, or what no number is, is not shown."""
    shown = Quality(quality)
    assert not any(character.isdigit() for character in repr(shown))
    assert "<td" not in shown._repr_html_()
    assert figures({"quality": quality, "provenance": []}) == {}


def test_metrics_are_flat(table: SemanticIdTable) -> None:
    """Numbers and strings, with the coverage of the items that were asked for."""
    metrics = table.metrics([world.ITEM0, world.ITEM0 + 1, 7, 8])
    assert all(isinstance(value, int | float | str) for value in metrics.values())
    assert (metrics["asked"], metrics["known"], metrics["coverage"]) == (4, 2, 0.5)
    assert (metrics["status"], metrics["items"], metrics["generation"]) == ("trained", 200, 0)
    assert metrics["seconds"] > 0
    assert metrics["peak_rss_bytes"] > 0
    assert metrics["perplexity_lowest"] == min(table.quality["perplexity"])


def test_metrics_of_default_ids_say_so() -> None:
    """An empty table has a status, and no figures of quality."""
    metrics = SemanticIdTable.default(4, "nothing here").metrics([])
    assert metrics == {
        "status": "default", "items": 0, "levels": 4, "generation": 0, "lineage": "", "digest": metrics["digest"],
        "misses": 0, "asked": 0, "known": 0, "coverage": 0.0,
    }  # fmt: skip


def test_an_older_file_without_levels_still_prints(tmp_path: Path) -> None:
    """Columns that differ in length are left out, not padded."""
    import numpy as np

    info = {"quality": {"usage": [1.0, 0.5], "perplexity": [3.0], "collision_rate": 0.25}}
    buffers = build_table_buffers([1, 2], np.array([[1, 2], [3, 4]], np.uint8), info=info)
    text = repr(SemanticIdTable.from_buffer(b"".join(buffers)).quality)
    assert "25 %" in text
    assert "perplexity" not in text


def test_shares_are_never_rounded_to_all_or_nothing() -> None:
    """One item of a million that shares its ID is not 0 %."""
    assert percent(1e-6) == "< 0.01 %"
    assert percent(1 - 1e-6) == "> 99.99 %"
    assert (percent(0), percent(1), percent(0.4812)) == ("0 %", "100 %", "48.12 %")
