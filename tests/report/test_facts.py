"""What the report says, as data: the answer and its checks, the words of prefixes, the sample and the neighbours."""

import itertools
import json
import re
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import world

from semid_dataset import SemanticIdTable
from semid_dataset.errors import ConfigError
from semid_dataset.report import _svg as svg
from semid_dataset.report import report_facts, write_report
from semid_dataset.report._map import NEAREST, map_of
from semid_dataset.report._prefixes import MAP_ITEMS, SAMPLE_ITEMS, Prefixes, sample_of
from semid_dataset.report._topics import topics, words_of
from semid_dataset.report._words import TEXTS, script_words
from semid_dataset.report.checks import LIMITS
from semid_dataset.table.table import build_table_buffers

STATIC = Path(svg.__file__).parent / "static"
GOOD = {
    "items": 400,
    "relative_mse": 0.30,
    "relative_mse_raw": 0.30,
    "relative_mse_held_out": 0.33,
    "held_out_start": 0.33,
    "held_out_items": 10_000,
    "relative_mse_levels": [0.6, 0.3],
    "collision_rate_raw": 0.02,
    "unique_rate_raw": 0.99,
    "largest_group_raw": 2,
    "moved": 4,
    "exact_duplicates": 0,
    "neighbour_fidelity": {"neighbours": [0.6, 0.2], "random": [0.05, 0.01]},
}


def table_of(
    quality: dict[str, Any] | None = None, *, codes: Any = None, weights: Any = None, **info: Any
) -> SemanticIdTable:
    """400 items on 20 x 20 codes, each used alike, with figures that are good unless told otherwise."""
    codes = np.array([[k // 20, k % 20] for k in range(400)], np.uint8) if codes is None else np.asarray(codes)
    told = {
        "quality": {**GOOD, **(quality or {})},
        "identity": {"codebook_sizes": [20, 20], "features": [["81", 32]]},
        "settings": {"algorithm": "rqvae", "unique": True},
        **info,
    }
    buffers = build_table_buffers(np.arange(len(codes)), codes, info=told, weights=weights or {})
    return SemanticIdTable.from_buffer(b"".join(buffers))


def verdicts(facts: dict[str, Any]) -> dict[str, str]:
    return {check["check"]: check["verdict"] for check in facts["answer"]["checks"]}


def values(facts: dict[str, Any], name: str) -> dict[str, Any]:
    found = next(check["values"] for check in facts["answer"]["checks"] if check["check"] == name)
    assert isinstance(found, dict)
    return found


def page_of(table: SemanticIdTable, path: Path, **given: Any) -> str:
    return write_report(table, path / "r.html", **given).read_text("utf-8")


def answer_of(page: str) -> str:
    found = re.search(r'<p class="answer \w+">.*?</span><span>(.*?)</span></p>', page)
    assert found is not None
    return found.group(1)


# --- the answer -------------------------------------------------------------------------------


def test_good_ids_are_called_good(tmp_path: Path) -> None:
    """Every check that can be made says so, and the page begins with it."""
    facts = report_facts(table_of(), candidates=range(400))
    assert set(verdicts(facts).values()) == {"good"}
    assert facts["answer"]["verdict"] == "good"
    assert answer_of(page_of(table_of(), tmp_path, candidates=range(400))) == "Yes: all 9 checks are good."


def test_what_uniqueness_hides_is_said_first(tmp_path: Path) -> None:
    """Of 400 items none shares its ID in the end, two thirds did before: that is bad, and 0 % is not what one reads."""
    table = table_of({"collision_rate_raw": 0.679})
    facts = report_facts(table)
    assert (facts["answer"]["verdict"], verdicts(facts)["raw"], verdicts(facts)["final"]) == ("bad", "bad", "good")
    page = page_of(table, tmp_path)
    assert answer_of(page) == "No: 67.90 % of the items shared their ID before uniqueness."
    assert "<b>0 %" not in page


@pytest.mark.parametrize(
    ("name", "quality", "verdict"),
    [
        ("raw", {"collision_rate_raw": 0.1}, "good"),
        ("raw", {"collision_rate_raw": 0.101}, "watch"),
        ("raw", {"collision_rate_raw": 0.301}, "bad"),
        ("raw", {"collision_rate_raw": "many"}, "unknown"),
        ("held_out", {"relative_mse_held_out": 0.36}, "good"),
        ("held_out", {"relative_mse_held_out": 0.375}, "watch"),
        ("held_out", {"relative_mse_held_out": 0.522}, "watch"),
        ("held_out", {"relative_mse_held_out": 1.0}, "bad"),
        ("held_out", {"relative_mse_held_out": None}, "unknown"),
        ("held_out", {"relative_mse_raw": 0.0, "relative_mse_held_out": 0.0}, "good"),
        ("steps", {"relative_mse_levels": [0.6, 0.599]}, "watch"),
        ("steps", {"relative_mse_levels": [1.2, 0.6]}, "watch"),
        ("neighbours", {"neighbour_fidelity": {"neighbours": [0.3], "random": [0.3]}}, "bad"),
        ("neighbours", {"neighbour_fidelity": {"neighbours": [0.2], "random": [0.05]}}, "watch"),
        ("neighbours", {"neighbour_fidelity": {"neighbours": [1.0], "random": [1.0]}}, "bad"),
        ("neighbours", {"neighbour_fidelity": {}}, "unknown"),
        ("duplicates", {"exact_duplicates": 30}, "watch"),
        ("duplicates", {"exact_duplicates": 41}, "bad"),
    ],
)
def test_checks_have_limits(name: str, quality: dict[str, Any], verdict: str, tmp_path: Path) -> None:
    """Each figure is judged by itself, the page says the same, and what is not good comes with advice."""
    table = table_of(quality)
    assert verdicts(report_facts(table))[name] == verdict
    rows = page_of(table, tmp_path).partition("<tbody>")[2].partition("</tbody>")[0]
    advised = re.findall(r'<tr class="(\w+)">.*?<p class="rule">[^<]+</p>(<p class="do">[^<]+</p>)?</td>', rows)
    assert len(advised) == len(report_facts(table)["answer"]["checks"])
    assert all(bool(advice) == (verdict != "good") for verdict, advice in advised)


def test_a_collapsed_level_is_named(tmp_path: Path) -> None:
    """Level 2 of 20 codes, of which one has nearly all items, whatever was measured at training."""
    codes = np.array([[k % 20, 0 if k % 50 else k % 20] for k in range(400)], np.uint8)
    facts = report_facts(table_of(codes=codes))
    assert verdicts(facts)["perplexity"] == "bad"
    assert (values(facts, "perplexity")["level"], values(facts, "perplexity")["below"]) == (2, [2])
    assert "level 2 uses its codes unevenly" in answer_of(page_of(table_of(codes=codes), tmp_path))


def test_few_items_cannot_use_all_codes() -> None:
    """Ten items on 256 codes use ten of them: that is as even as can be."""
    codes = np.array([[k, 255 - k] for k in range(10)], np.uint8)
    table = table_of(codes=codes, identity={"codebook_sizes": [256, 256]})
    assert verdicts(report_facts(table))["perplexity"] == "good"
    assert verdicts(report_facts(table))["largest"] == "good"


def test_a_clump_is_seen() -> None:
    """A first code with half of all items, of 256."""
    codes = np.array([[0 if k % 2 else k % 256, k // 256] for k in range(2000)], np.uint8)
    table = table_of(codes=codes, identity={"codebook_sizes": [256, 256]})
    assert verdicts(report_facts(table))["largest"] == "bad"


def test_shared_ids_are_bad_unless_they_were_asked_for() -> None:
    """unique=False is a wish, not a fault; it is still to be watched."""
    codes = np.array([[k // 40, k % 20] for k in range(400)], np.uint8)
    assert verdicts(report_facts(table_of(codes=codes)))["final"] == "bad"
    wanted = table_of(codes=codes, settings={"unique": False})
    assert verdicts(report_facts(wanted))["final"] == "watch"


def test_nothing_is_called_good_that_nobody_measured(tmp_path: Path) -> None:
    """A hand-made table has unique IDs and says nothing about what they stand for."""
    table = table_of(quality=dict.fromkeys(GOOD))
    assert report_facts(table)["answer"]["verdict"] == "unknown"
    assert answer_of(page_of(table, tmp_path)) == (
        "That cannot be said: raw collisions were not measured; neighbours were not measured."
    )


def test_empty_and_stale_tables_are_not_good() -> None:
    """Whatever else may be said of them."""
    empty = report_facts(SemanticIdTable.default(4, "no embeddings"))
    assert (empty["answer"]["verdict"], verdicts(empty)) == ("bad", {"state": "bad"})
    stale = report_facts(table_of().with_status("stale", "no embeddings"))
    assert (stale["answer"]["verdict"], verdicts(stale)["state"]) == ("watch", "watch")


def test_limits_are_not_called_validated(tmp_path: Path) -> None:
    """The page says what its rules are, and that recall decides."""
    assert "were not validated against the recall" in page_of(table_of(), tmp_path)
    assert LIMITS["held_out"][1] == 1.0  # a held-out error alone is never bad, short of saying nothing


def test_sizes_that_nobody_stated_are_called_so(tmp_path: Path) -> None:
    """How evenly codes are used is then held against a guess."""
    table = table_of(identity=None)
    assert {"note": "sizes", "values": {"sizes": "32 x 32"}} in report_facts(table)["answer"]["notes"]
    assert "Nobody stated how many codes a level has; 32 x 32" in page_of(table, tmp_path)
    assert not [note for note in report_facts(table_of())["answer"]["notes"] if note["note"] == "sizes"]


def test_coverage_and_titles_are_counted() -> None:
    """Of the items asked for; titles of other items are told."""
    titles = dict.fromkeys([*range(360), *range(1000, 1040)], "a lamp")
    facts = report_facts(table_of(), titles=titles)
    assert (verdicts(facts)["coverage"], values(facts, "coverage")["share"]) == ("watch", 0.9)
    assert {"note": "titles", "values": {"given": 400, "known": 360}} in facts["answer"]["notes"]
    assert verdicts(report_facts(table_of(), candidates=[1, 2, 5000]))["coverage"] == "bad"
    assert verdicts(report_facts(table_of()))["coverage"] == "unknown"


# --- a training that was thrown away ------------------------------------------------------------


def trained_table(*, networks: bool) -> SemanticIdTable:
    """A quantizer of two levels of 20 codes, with an encoder or without, whose epochs had a falling loss."""
    from torch import Generator, randn

    from semid_dataset.codec.residual import ResidualMLP, ResidualQuantizer  # torch

    generator = Generator().manual_seed(0)
    quantizer = ResidualQuantizer([randn(20, 8, generator=generator) for _ in range(2)])
    if networks:
        quantizer.encoder, quantizer.decoder = (ResidualMLP(8, 16, generator) for _ in range(2))
    weights, description = quantizer.to_arrays()
    return table_of({"loss": [0.9, 0.8, 0.7]}, weights=weights, quantizer=description)


def test_a_training_that_was_thrown_away_is_said_and_not_drawn(tmp_path: Path) -> None:
    """rqvae that kept the k-means codebooks: no falling curve suggests that its epochs did anything."""
    table = trained_table(networks=False)
    assert report_facts(table)["training"]["thrown_away"]
    page = page_of(table, tmp_path)
    assert "The k-means codebooks were kept: none of 3 epochs" in page
    assert "Not drawn: what these 3 epochs learned was thrown away." in page
    assert '<polyline class="curve"' not in page


def test_a_training_that_was_kept_is_drawn(tmp_path: Path) -> None:
    """The same figures beside an autoencoder, or of rqkmeans, whose rounds are never thrown away."""
    table = trained_table(networks=True)
    assert not report_facts(table)["training"]["thrown_away"]
    page = page_of(table, tmp_path)
    assert '<polyline class="curve"' in page
    assert "codebooks were kept" not in page
    rounds = table_of({"loss": [0.9, 0.8]}, settings={"algorithm": "rqkmeans"})
    assert not report_facts(rounds)["training"]["thrown_away"]
    assert "Training curve: error of every round" in page_of(rounds, tmp_path)


# --- over time ----------------------------------------------------------------------------------


def history(*errors: float | None) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = [{"generation": 0, "time": 1.7e9, "items": 300, "new": 300, "moved": 1}]
    for number, error in enumerate(errors, start=1):
        steps.append(
            {"generation": number, "time": 1.7e9 + number, "items": 300 + 10_000 * number, "new": 10_000, "moved": 0}
        )
        steps[-1]["relative_error"] = error
    return steps


def test_extensions_are_shown_over_time(tmp_path: Path) -> None:
    """Their error against that of items held out at the fit (0.33): beyond 1.5 times it is watched, beyond 2.5 bad."""
    provenance = {"relative_error": 0.3, "born": 1.7e9}
    for errors, verdict in (((0.3, 0.5), "good"), ((0.3, 0.55), "watch"), ((0.9, 0.3), "bad")):
        table = table_of(history=history(*errors), provenance=provenance)
        assert verdicts(report_facts(table))["extensions"] == verdict
    assert values(report_facts(table), "extensions") | {"added": 20_000, "times": 2, "error": 0.9} == values(
        report_facts(table), "extensions"
    )
    page = page_of(table, tmp_path)
    section = page.partition('<section id="growth">')[2].partition("</section>")[0]
    assert section.count("<svg") == 2
    assert "0.900</text>" in section


def test_a_table_that_never_grew_has_no_such_section(tmp_path: Path) -> None:
    """Nor anything to say about it."""
    for steps in (history(), []):
        page = page_of(table_of(history=steps, provenance={"relative_error": 0.2}), tmp_path)
        assert 'id="growth"' not in page
        assert 'href="#growth"' not in page
    assert "extensions" not in verdicts(report_facts(table_of(history=history())))


def test_recovered_ids_are_said(tmp_path: Path) -> None:
    """In one sentence, whatever characters it has."""
    steps = [*history(), {"generation": 1, "time": 1.7e9, "healed": "<codebooks> fitted", "new": 0, "items": 300}]
    page = page_of(table_of(history=steps), tmp_path)
    assert "Generation 1 was recovered: &lt;codebooks&gt; fitted." in page


# --- words ----------------------------------------------------------------------------------------


def test_prefixes_are_told_in_words(tmp_path: Path) -> None:
    """Several, those by which titles differ from the rest; never the word that is everywhere."""
    kinds = ["rose soap bar", "green tea mug", "steel drill bit", "oak table leg"]
    titles = {k: f"the {kinds[k // 20 % 4]} number {k}" for k in range(400)}
    codes = np.array([[k // 20 % 4, k // 80 * 20 + k % 20] for k in range(400)], np.uint8)
    table = table_of(codes=codes, identity={"codebook_sizes": [4, 100]})
    told = {prefix["prefix"]: prefix["words"] for prefix in report_facts(table, titles=titles)["prefixes"]}
    assert {code: set(words) for code, words in told.items()} == {
        k: set(words_of(kind)) - {"the"} for k, kind in enumerate(kinds)
    }
    page = page_of(table, tmp_path, titles=titles)
    tree = page.partition('<section id="tree">')[2].partition("</section>")[0]
    assert "bar · rose · soap" in tree  # without scripts, too
    assert all(not prefix["words"] for prefix in report_facts(table)["prefixes"])


def test_topics_by_hand() -> None:
    """Share in the group times log(1 + A / f), as it is written down."""
    titles = ["apple apple pear", "pear plum fig"]
    # A = 3 words a group; "apple" 2/3 log(1 + 3/2), "pear" is as frequent elsewhere; "fig" = "plum" 1/3 log(1 + 3/1).
    assert topics(titles, [0, 1]) == [["apple"], ["fig", "plum"]]
    assert topics([], []) == []
    assert topics(["a b", ""], [0, 2]) == [[], [], []]


def test_words_of_every_script_and_of_a_title_that_was_cut() -> None:
    """Two characters of Chinese, letters with accents; half a word is none."""
    assert words_of("Crème brûlée, 玫瑰香皂 12 oz!") == ["crème", "brûlée", "玫瑰", "瑰香", "香皂"]
    assert words_of("A very long shampo…") == ["very", "long"]
    assert words_of("shampo…") == []


def test_both_languages_say_everything_with_the_same_fields() -> None:
    """A field that only one of them has would fail in the middle of a page; one that none has says nothing."""

    def fields(text: str) -> set[tuple[str, str]]:
        return {(name, conversion or "") for _, name, _, conversion in string.Formatter().parse(text) if name}

    for name, (english, chinese) in TEXTS.items():
        assert fields(english) == fields(chinese), name
        assert chinese.strip(), name


def test_the_script_says_nothing_that_has_no_words() -> None:
    """And no word is left that it does not say."""
    said = set(re.findall(r'\bsay\("(\w+)"', (STATIC / "page.js").read_text("utf-8")))
    assert said == set(script_words("en"))


def test_a_chinese_page_has_the_same_facts(tmp_path: Path) -> None:
    """Words are Chinese, figures the same; another language is refused with those that there are."""
    table = table_of({"collision_rate_raw": 0.679}, history=history(0.3), provenance={"relative_error": 0.2})
    page = page_of(table, tmp_path, lang="zh")
    assert '<html lang="zh-CN">' in page
    assert answer_of(page) == "不好：去重前 67.90 % 的物品共用ID。"
    text = re.sub(r"<[^>]*>", " ", re.sub(r"(?s)<(script|style)\b.*?</\1>", " ", page))
    english = {"not", "items", "good", "watch", "level", "codes", "measured", "recorded", "nearest", "prefix", "rule"}
    assert not english & set(text.lower().split())
    with pytest.raises(ConfigError, match="en, zh"):
        write_report(table, tmp_path / "x.html", lang="fr")
    assert not (tmp_path / "x.html").exists()


# --- names, data, drawings ------------------------------------------------------------------------


def test_the_title_names_the_data_and_the_date(tmp_path: Path) -> None:
    """By the files that were read, else by where the table lies; or as it was asked for."""
    read = table_of(provenance={"born": 1.7e9, "files": {"creative_emb/emb_81_32.pkl": "0"}})
    day = report_facts(read)["date"]
    assert re.fullmatch(r"2023-11-1\d", day)
    page = page_of(read, tmp_path)
    assert f"<title>Semantic IDs: emb_81_32.pkl, 400 items, {day}</title>" in page
    assert "<h1>Semantic IDs of emb_81_32.pkl</h1>" in page
    assert "<h1>Semantic IDs of R&amp;D &lt;1&gt;</h1>" in page_of(read, tmp_path, name="R&D <1>")
    grown = history(0.3)
    grown[1]["time"] = 1.72e9
    later = report_facts(table_of(provenance={"born": 1.7e9}, history=grown))["date"]
    assert re.fullmatch(r"2024-07-0\d", later)  # of its last extension
    (tmp_path / "beauty").mkdir()
    saved = SemanticIdTable.open(table_of().save(tmp_path / "beauty" / "semid_table.safetensors"))
    assert report_facts(saved)["name"] == "beauty"
    assert "date not recorded" in page_of(saved, tmp_path)


def test_a_page_of_long_names_stays_small(tmp_path: Path) -> None:
    """16,384 items with long names of their own and titles that are escaped six times as long: below 3 MB."""
    codes = np.random.default_rng(0).integers(0, 250, (70_000, 8)).astype(np.uint8)
    items = [f"{k:06d}/" + "k" * 60 for k in range(len(codes))]
    table = SemanticIdTable.from_buffer(b"".join(build_table_buffers(items, codes, info={})))
    for title in ("<" * 200, "很长的标题" * 40):
        path = write_report(table, tmp_path / "r.html", titles=dict.fromkeys(items, title))
        assert path.stat().st_size < 3_000_000


def test_facts_are_json() -> None:
    """Of every table, with vectors and without; what is not there is null."""
    vectors = np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32)
    for given in ({}, {"vectors": vectors}, {"titles": {1: "\u2028"}}, {"candidates": [1, 2]}):
        facts = report_facts(table_of(history=history(0.3)), **given)
        assert json.loads(json.dumps(facts, allow_nan=False)) == facts


@pytest.mark.parametrize(
    "title",
    [
        "</script><script>alert(1)</script>",
        "<!--<script>",
        "a\u2028b\u2029c",
        "\"'`&amp;{{ 7*7 }}{% x %}",
        "\ud800",
        "\x00\x1b",
    ],
)
def test_titles_are_text_whatever_they_hold(title: str, tmp_path: Path) -> None:
    """In the page's data and in its lists; the template never reads them."""
    codes = np.zeros((40, 2), np.uint8)
    page = page_of(table_of(codes=codes), tmp_path, titles=dict.fromkeys(range(40), title), name=title)
    assert page.count("<script") == page.count("</script>") == 2
    assert "alert(1)</script>" not in page
    assert not set("\u2028\u2029") & set(page)
    assert "49" not in re.sub(r"<[^>]*>", " ", page.partition('<section id="groups">')[2].partition("</section>")[0])
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    assert len(json.loads(data.group(1))["keys"]) == 40


def test_without_jinja2_the_advice_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One sentence, before anything is measured or written; it names a package that pip finds."""
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(ConfigError, match=r'needs jinja2.*pip install "jinja2>=3\.1"'):
        write_report(table_of(), tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()
    assert report_facts(table_of())["items"] == 400  # the facts need no template


def test_neighbours_are_the_nearest() -> None:
    """As a plain sort of all distances finds them, with their distances."""
    vectors = np.random.default_rng(1).normal(size=(700, 5)).astype(np.float32)
    vectors[17] = vectors[3]
    rows = np.arange(700)
    found = map_of(table_of(), rows, np.zeros((700, 2), np.uint8), vectors)
    assert found is not None
    assert found.among == 700
    far = np.linalg.norm(vectors[:, None].astype(np.float64) - vectors[None], axis=2)
    np.fill_diagonal(far, np.inf)
    wanted = np.sort(far, 1)[:, :NEAREST]
    assert np.allclose(np.take_along_axis(far, found.nearest, 1), wanted, atol=1e-5)
    assert np.allclose(found.distances, wanted, atol=2e-3)
    assert found.nearest[3, 0] == 17


def test_neighbours_of_many_dims_are_looked_for_among_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a page of wide vectors takes a second, not a minute; how many is told."""
    monkeypatch.setattr("semid_dataset.report._map.PRODUCTS", 700 * 5 * 100)
    vectors = np.random.default_rng(1).normal(size=(700, 5)).astype(np.float32)
    found = map_of(table_of(), np.arange(700), np.zeros((700, 2), np.uint8), vectors)
    assert found is not None
    assert found.among == 100
    assert len(np.unique(found.nearest)) <= 100
    assert (found.nearest != np.arange(700)[:, None]).all()


def test_three_items_have_two_neighbours() -> None:
    """And fewer than three make no map."""
    vectors = np.eye(3, dtype=np.float32)
    found = map_of(table_of(), np.arange(3), np.zeros((3, 2), np.uint8), vectors)
    assert found is not None
    assert found.nearest.shape == (3, 2)
    assert map_of(table_of(), np.arange(2), np.zeros((2, 2), np.uint8), vectors[:2]) is None
    assert map_of(table_of(), np.arange(3), np.zeros((3, 2), np.uint8), np.ones((3, 4), np.float32)) is None


def test_items_of_the_map_are_drawn_evenly_and_are_all_in_the_sample() -> None:
    """A code with 90 % of the items has about 90 % of the points; every prefix has an item in the tree all the same."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 70, (100_000, 3)).astype(np.uint8)
    codes[:90_000, 0] = 5
    order = Prefixes.of(codes)
    sample = sample_of(order)
    assert (len(sample.places), len(sample.mapped), sample.whole) == (SAMPLE_ITEMS, MAP_ITEMS, False)
    on_map = order.codes[sample.places[sample.mapped], 0]
    assert abs((on_map == 5).mean() - 0.9) < 0.02
    prefixes = len(np.unique(order.codes[sample.places][:, :2], axis=0))
    assert prefixes == len(np.unique(codes[:, :2], axis=0))


@pytest.mark.parametrize(
    "values", [[0.8055, 0.8027, 0.80004], [9.0, 4.0, 1.0], [3.0], [5e-7, 1e-7], [120.0, 80.0, 33.3]]
)
def test_ticks_are_round(values: list[float]) -> None:
    """Multiples of 1, 2 or 5 times a power of ten, all different, no wider than the margin."""
    drawn = svg.line(values, svg.enough_digits(values), "", "epoch")
    marks = re.findall(r'class="scale"[^>]*>([^<]+)<', drawn)
    assert 1 <= len(marks) <= 6
    assert len(set(marks)) == len(marks)
    numbers = [float(mark) for mark in marks]
    steps = {f"{b - a:.0e}" for a, b in itertools.pairwise(numbers)}
    assert all(step[0] in "125" for step in steps), marks


def test_bins_are_round(tmp_path: Path) -> None:
    """Edges of a histogram are 0, 10, 20, ..., and its counts have no half."""
    sizes = np.random.default_rng(0).integers(1, 240, 200)
    codes = np.repeat(np.arange(200), sizes).astype(np.uint8)[:, None]
    table = table_of(codes=codes, identity={"codebook_sizes": [200]})
    level = report_facts(table)["per_level"][0]
    assert level["sizes"]["width"] in (10, 20)
    assert sum(level["sizes"]["counts"]) == 200
    page = page_of(table, tmp_path)
    edges = re.findall(r'<text x="[\d.]+" y="169">([\d,]+)</text>', page)
    assert [int(edge) % level["sizes"]["width"] for edge in edges] == [0] * len(edges)
    assert not re.search(r'class="scale"[^>]*>\d+\.\d', page.partition('<section id="levels">')[2])


def test_facts_of_a_trained_table(tmp_path: Path) -> None:
    """What a dataset trained by itself is judged by all checks, with its vectors."""
    vectors = world.vectors_of(300)
    world.write_embeddings(tmp_path, vectors)
    table = world.SmallDataset(tmp_path).semantic_id_dict
    facts = report_facts(table, vectors=vectors, candidates=table.keys_array)
    assert "unknown" not in verdicts(facts).values()
    assert facts["answer"]["verdict"] in {"good", "watch", "bad"}
    assert facts["name"].startswith(f"{tmp_path.name}: emb_81")
