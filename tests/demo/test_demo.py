"""The walk of `semid demo` on a small shop: what it says is what happened."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from semid_dataset.cli._app import run
from semid_dataset.demo import recommender, walk
from semid_dataset.demo.catalogue import TREE, make_shop
from semid_dataset.demo.recommender import compare, interval
from semid_dataset.table.table import SemanticIdTable


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "PRODUCTS", 400)
    monkeypatch.setattr(walk, "CUSTOMERS", 150)
    monkeypatch.setattr(recommender, "EPOCHS", 2)


def test_equal_seeds_make_equal_shops() -> None:
    """Names, ids, vectors and customers alike; another seed makes another shop."""
    one, same, other = make_shop(200, 20), make_shop(200, 20), make_shop(200, 20, seed=1)
    assert one.names == same.names
    assert one.histories == same.histories
    assert np.array_equal(one.vectors, same.vectors)
    assert np.array_equal(one.items, same.items)
    assert one.names != other.names


def test_nobody_takes_a_new_product_before_the_test_nor_one_twice() -> None:
    """Else it would not be new, and the recommenders could find it by its past."""
    shop = make_shop(300, 200)
    assert shop.is_new.any()
    for history in shop.histories:
        assert not shop.is_new[history[:-1]].any()
        assert len(set(history)) == len(history)


def test_products_of_a_kind_lie_nearer_than_others() -> None:
    """The vectors say what the names say."""
    shop = make_shop(400, 10)
    similar = shop.vectors @ shop.vectors.T
    same_kind = (shop.kinds[:, None] == shop.kinds) & ~np.eye(400, dtype=bool)
    assert similar[same_kind].mean() > similar[shop.kinds[:, None] // 20 != shop.kinds // 20].mean() + 0.5
    kinds = [kind for categories in TREE.values() for kinds in categories.values() for kind in kinds]
    assert all(name.endswith(kinds[number]) for name, number in zip(shop.names, shop.kinds.tolist(), strict=True))


def test_codes_that_tell_everything_help_and_none_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison can come out either way: with the kind as code new products are found, without are not."""
    monkeypatch.setattr(recommender, "EPOCHS", 6)
    shop = make_shop(400, 600)
    kinds = shop.kinds[:, None] + 1
    told = compare(shop, kinds, (int(kinds.max()) + 1,), lambda: None).slices[-1]
    mute = compare(shop, np.zeros_like(kinds), (2,), lambda: None).slices[-1]
    assert told.with_ids.mean() > told.without.mean() + 0.2
    assert abs(mute.with_ids.mean() - mute.without.mean()) < 0.1


def test_the_interval_holds_zero_where_nothing_differs() -> None:
    """And lies on one side of it where everything does."""
    hits = np.arange(500) % 4 == 0
    low, high = interval(hits, np.roll(hits, 1))
    assert low < 0 < high
    low, high = interval(np.ones(500, bool), hits)
    assert 0.7 < low <= high < 0.8


@pytest.mark.usefixtures("small")
def test_the_walk_says_what_happened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """IDs are made, one product is added without moving any, a second process loads, the report is there."""
    assert run(["demo", str(tmp_path / "shop"), "--json"]) == 0
    out, said = capsys.readouterr()
    facts = json.loads(out)
    assert facts["items"] == 400
    assert "399 products, 3 codes of 64 each, status 'trained'" in said
    assert "status 'extended': 399 of 399 known products have the ID that they had" in said
    assert re.search(r"400 IDs in [\d.]+ ms, status 'cached'", said)
    table = SemanticIdTable.open(facts["path"])
    shown = re.search(r"Products that are alike.*?:\n   (\S.*?)   +\[?([ \d\]\[]+)\n", said)
    assert shown
    names = json.loads((tmp_path / "shop" / "shop" / "titles.json").read_text())
    item = next(item for item, name in names.items() if name == shown[1])
    assert [int(code) for code in shown[2].split()] == table[item]
    assert "</html>" in (tmp_path / "shop" / "report.html").read_text()


@pytest.mark.usefixtures("small")
def test_a_folder_with_something_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The demo makes its folder anew, so it must know that it is its own."""
    (tmp_path / "mine.txt").write_text("dear")
    assert run(["demo", str(tmp_path)]) == 3
    assert "left untouched" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.usefixtures("small")
def test_a_closed_gate_ends_the_walk_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Default IDs would make the rest of it a lie."""
    monkeypatch.setenv("ALLOW_SEMANTIC_GENERATION", "0")
    assert run(["demo", str(tmp_path / "shop")]) == 3
    assert "ALLOW_SEMANTIC_GENERATION" in capsys.readouterr().err
