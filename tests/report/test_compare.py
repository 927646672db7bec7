"""Two tables side by side: their checks, and whether they put the same items together."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semid_dataset import SemanticIdTable
from semid_dataset.errors import ConfigError, TableError
from semid_dataset.report import compare, write_comparison
from semid_dataset.table.table import build_table_buffers


def table_of(codes: np.ndarray, items: Any = None, **info: Any) -> SemanticIdTable:
    items = np.arange(len(codes)) if items is None else items
    return SemanticIdTable.from_buffer(b"".join(build_table_buffers(items, codes.astype(np.uint8), info=info)))


RNG = np.random.default_rng(0)
CODES = RNG.integers(0, 6, (120, 3))


def test_names_of_codes_do_not_matter() -> None:
    """The same groups under other numbers, in another order of items, are the same groups; no ID is the same."""
    order = RNG.permutation(120)
    facts = compare(table_of(CODES), table_of((CODES + 7)[order], order))
    assert facts["items"] == {"common": 120, "only_a": 0, "only_b": 0, "same": 0}
    assert all(step["kept"] == [1.0, 1.0] for step in facts["together"] if step["pairs"][0])
    assert [part["prefix"] for one in facts["prefixes"] for part in one["parts"]] == [
        one["prefix"] + 7 for one in facts["prefixes"]
    ]
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts


def test_pairs_are_counted_as_one_would_by_hand() -> None:
    """All pairs of the items that both have, one by one."""
    other = RNG.integers(0, 4, (100, 2))
    facts = compare(table_of(CODES), table_of(other, np.arange(40, 140)))
    assert facts["items"] == {"common": 80, "only_a": 40, "only_b": 20, "same": 0}
    assert len(facts["together"]) == 2
    for step in facts["together"]:
        depth = step["depth"]
        together = [
            [tuple(codes[k][:depth]) == tuple(codes[m][:depth]) for k, m in itertools.combinations(range(80), 2)]
            for codes in (CODES[40:], other[:80])
        ]
        both = sum(one and two for one, two in zip(*together, strict=True))
        assert step["pairs"] == [sum(together[0]), sum(together[1])]
        assert step["kept"] == pytest.approx([both / sum(together[0]), both / sum(together[1])])


def test_equal_ids_are_counted_and_lone_items_have_no_pairs() -> None:
    """A table beside itself; one in which every item is alone."""
    facts = compare(table_of(CODES), table_of(CODES))
    assert facts["items"]["same"] == 120
    alone = table_of(np.arange(120)[:, None])
    assert compare(alone, alone)["together"] == [{"depth": 1, "pairs": [0, 0], "kept": [None, None]}]


def test_the_page_has_both_and_leads_nowhere(tmp_path: Path) -> None:
    """Checks of both beside each other, words of prefixes, any characters; in Chinese, too."""
    good = {"items": 120, "collision_rate_raw": 0.01}
    titles = {k: f"<b>rose</b> soap {k}" if CODES[k, 0] == 1 else "oak table" for k in range(120)}
    a, b = table_of(CODES, quality=good), table_of(CODES + 7, quality={**good, "collision_rate_raw": 0.679})
    path = write_comparison(a, b, tmp_path / "new" / "c.html", titles=titles, names=["A & <co>", "B"])
    page = path.read_text("utf-8")
    assert "<title>Semantic IDs: A &amp; &lt;co&gt; and B</title>" in page
    row = page.partition("Shared IDs before uniqueness")[2].partition("</tr>")[0]
    assert re.findall(r'class="verdict (\w+)"', row) == ["good", "bad"]
    assert "67.90 %" in row
    assert "<b>rose" not in page
    assert "rose · soap" in page
    assert not re.search(r"(src|href)=|url\((?!#)|https?:", page)
    assert "<script" not in page
    chinese = write_comparison(a, b, tmp_path / "z.html", lang="zh").read_text("utf-8")
    assert "它们是否把相同的物品放在一起" in chinese


def test_tables_without_a_common_item_are_refused(tmp_path: Path) -> None:
    """Nothing can be said of them; nothing is written."""
    with pytest.raises(TableError, match="no item in common: A has 120, B 120"):
        write_comparison(table_of(CODES), table_of(CODES, np.arange(1000, 1120)), tmp_path / "c.html", names=["A", "B"])
    with pytest.raises(ConfigError, match="en, zh"):
        write_comparison(table_of(CODES), table_of(CODES), tmp_path / "c.html", lang="fr")
    assert not (tmp_path / "c.html").exists()
