"""Figures of a table: as text, in a notebook, flat; and never one that nobody took."""

import copy
import json
import math
import pickle
import re
import time
from pathlib import Path

import numpy as np
import pytest
import world

from semid_dataset import SemanticIdConfig, SemanticIdTable, generate_from_vectors
from semid_dataset.api import extend_with_vectors
from semid_dataset.table.figures import Quality, extensions, figures, percent
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


# --- a table that grew ---

ROOT = Path(__file__).parents[2]


def alarms(metrics: dict[str, int | float | str]) -> set[str]:
    """Which alarms of docs/production.md ring: those whose bound is a number."""
    page = (ROOT / "docs" / "production.md").read_text(encoding="utf-8")
    bounds = dict(re.findall(r"^\| `(\w+)` \| above ([0-9.]+):", page, re.MULTILINE))
    assert set(bounds) == {"latest_error_ratio", "added_error_ratio", "added_moved_rate"}
    assert bounds.keys() <= metrics.keys()
    return {name for name, bound in bounds.items() if float(metrics[name]) > float(bound)}


def grown(table: SemanticIdTable, vectors: np.ndarray, first: int) -> SemanticIdTable:
    """Add items."""
    return extend_with_vectors(table, range(first, first + len(vectors)), vectors, force=True)[0]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> SemanticIdTable:
    """A table of 300 items with room for many more."""
    config = SemanticIdConfig(num_quantizers=3, codebook_size=32, algorithm="rqkmeans", device="cpu")
    folder = tmp_path_factory.mktemp("base")
    return generate_from_vectors(range(300), world.vectors_of(500, 16)[:300], output_dir=folder, config=config)


def test_an_extended_table_says_which_items_its_figures_are_of(base: SemanticIdTable) -> None:
    """Those of the fit stay as they were; each extension is measured and dated, and neither passes for the other."""
    before = time.time()
    vectors = world.vectors_of(500, 16)
    table = grown(grown(base, vectors[300:400], 300), vectors[400:430], 400)
    metrics = table.metrics()
    assert (metrics["measured_items"], metrics["items"]) == (300, 430)
    assert (metrics["added"], metrics["latest_added"]) == (130, 30)
    assert before <= metrics["extended_at"] <= time.time()
    assert metrics["relative_mse"] == base.metrics()["relative_mse"]
    for row, begin, end in ((0, 300, 400), (1, 400, 430)):
        of_new = relative_error(base, vectors[begin:end], table.codes(np.arange(begin, end)))
        assert table.quality["extensions"][row]["relative_mse"] == pytest.approx(of_new, rel=1e-4)
        assert table.quality["extensions"][row]["items"] == end - begin
    steps = table.quality["extensions"]
    assert metrics["added_relative_mse"] == pytest.approx(
        (100 * steps[0]["relative_mse"] + 30 * steps[1]["relative_mse"]) / 130
    )
    raw = base.quantizer.encode(vectors[300:430])
    taken = set(map(tuple, base.codes_array.tolist()))
    first = raw[:100].tolist()
    shared = [codes for codes in first if tuple(codes) in taken or first.count(codes) > 1]
    assert steps[0]["collision_rate_raw"] == len(shared) / 100
    assert json.loads(json.dumps(table.quality)) == table.quality
    assert "first 300 items" in repr(table.quality)
    assert "Added since, the last on 20" in repr(table.quality)
    assert "Added since, the last on 20" in table.quality._repr_html_()


def relative_error(base: SemanticIdTable, vectors: np.ndarray, codes: np.ndarray) -> float:
    """Squared error of codes over the variance at the fit."""
    squared = np.square(vectors.astype(np.float64) - base.quantizer.decode(codes)).sum(1).mean()
    return float(squared / base.info["provenance"]["variance"])


def test_the_alarms_of_the_documentation_can_ring(base: SemanticIdTable) -> None:
    """They are quiet for items of the same kind, and ring for others and where codes run out."""
    vectors = world.vectors_of(500, 16)
    fine = grown(base, vectors[300:400], 300)
    assert alarms(fine.metrics()) == set()
    other = grown(fine, vectors[400:460, ::-1].copy(), 400)
    assert "latest_error_ratio" in alarms(other.metrics())
    again = grown(other, vectors[460:], 460)  # the newest are fine again, all of them together are not
    assert alarms(again.metrics()) == {"added_error_ratio"}
    copies = grown(fine, np.repeat(vectors[:40], 5, axis=0), 400)
    assert alarms(copies.metrics()) == {"added_moved_rate"}


def test_steps_that_measured_nothing_say_nothing(base: SemanticIdTable) -> None:
    """Tables of earlier versions, and headers that hold odd things."""
    step = {"generation": 1, "time": 5.0, "items": 310, "new": 10, "moved": 3, "relative_error": 0.25}
    assert extensions([{"generation": 0, "new": 300}, step]) == [
        {"generation": 1, "time": 5.0, "items": 10, "relative_mse": 0.25, "moved_rate": 0.3}
    ]
    assert extensions("history") == extensions([None, {}, {"generation": 2, "new": "many"}]) == []
    odd = [{"generation": 1, "new": 2, "relative_error_raw": 0.5, "relative_error_expected": 0.0, "time": None}]
    assert extensions(odd) == [{"generation": 1, "items": 2, "relative_mse_raw": 0.5}]
    assert base.metrics().keys().isdisjoint({"added", "measured_items", "extended_at"})
