"""
What people do wrong first ends in a sentence, and what the sentence advises works when it is followed to the letter.

Each case is a mistake, the advice as it stands in the message (a pattern), and what somebody does who follows it.
"""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import world

from semid_dataset import SemanticIdConfig, SemanticIdMixin, SemanticIdTable
from semid_dataset.api import generate_semantic_ids
from semid_dataset.errors import ItemsError, SemanticIdWarning, SemidError
from semid_dataset.exports import read_export

pytest.importorskip("click", reason='the extra "cli" is missing: pip install ".[cli]"')
from semid_dataset.cli._app import run

QUICK = " --levels 2 --codes 8 --algorithm rqkmeans"
VECTORS = world.vectors_of(60)


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as a beginner has it: a matrix, lists of items, tables, a data directory, and IDs in `out`."""
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", VECTORS)
    items = [f"p{k}" for k in range(60)]
    Path("ids.txt").write_text("\n".join(items))
    Path("headed.txt").write_text("\n".join(["sku", *items]))
    Path("twice.txt").write_text("\n".join(["p1", *items[1:]]))
    numbers = "\n".join(f"p{k},{k % 4}.{k},{k // 4}" for k in range(60))
    Path("x.csv").write_text(f"name,emb_0,emb_1\n{numbers}")
    Path("bare.csv").write_text(numbers.replace("p", "1"))
    broken = VECTORS.copy()
    broken[3, 2] = np.nan
    np.save("broken.npy", broken)
    Path("other.csv").write_text("1,a\n2,b\n")
    Path("new.txt").write_text("\n".join(f"new{k}" for k in range(60)))
    Path("empty").mkdir()
    world.make_data(Path("data"), 60)
    SemanticIdTable.from_mapping({item: [k % 8, k // 8] for k, item in enumerate(items)}, codebook_sizes=8).save(
        "ids/semid_table.safetensors"
    )
    return tmp_path


def remove_the_first_line(found: "re.Match[str]") -> str:
    path = Path(found[1])
    path.write_text(path.read_text().partition("\n")[2])
    return "generate x.npy --ids headed.txt -o out" + QUICK


def keep_one_row(found: "re.Match[str]") -> str:
    rows = Path("twice.txt").read_text().splitlines()
    keep = [row for row, item in enumerate(rows) if item not in rows[:row]]
    assert found[1] == "p1"
    np.save("x.npy", VECTORS[keep])
    Path("twice.txt").write_text("\n".join(rows[row] for row in keep))
    return "generate x.npy --ids twice.txt -o out" + QUICK


def remove_the_row(found: "re.Match[str]") -> str:
    np.save("x.npy", np.delete(VECTORS, int(found[1]), axis=0))
    lines = Path("ids.txt").read_text().splitlines()
    Path("ids.txt").write_text("\n".join(line for row, line in enumerate(lines) if row != int(found[1])))
    return "generate x.npy --ids ids.txt -o out" + QUICK


def name_the_columns(found: "re.Match[str]") -> str:
    text = Path("bare.csv").read_text()
    Path("bare.csv").write_text(f"{found[1]},emb_0,emb_1\n{text}")
    return "generate bare.csv -o out" + QUICK


def move_embeddings(found: "re.Match[str]") -> str:
    (Path("empty") / found[1]).mkdir()
    Path("data/creative_emb/emb_81_8.pkl").rename(f"empty/{found[1]}/emb_81_8.pkl")
    return "generate empty" + QUICK


def titles_of(found: "re.Match[str]") -> str:
    Path("other.csv").write_text(f"{found[1]},a lamp\n")
    return "report ids -o - --titles other.csv"


FILE = "generate x.npy --ids ids.txt -o out"
MISTAKES: list[tuple[str, str, Callable[["re.Match[str]"], str] | str]] = [
    # what is typed, the advice in the answer, what is typed then ({1} is what the advice says)
    ("generate x.npy -o out", r"\((--ids ids\.txt), one a line\)", f"generate x.npy -o out {{1}}{QUICK}"),
    ("generate x.npy -o out", r"say (--items rows) to number them", f"generate x.npy -o out {{1}}{QUICK}"),
    ("generate x.npy --ids ids.txt", r"Give (-o DIR)\.", f"generate x.npy --ids ids.txt {{1}}{QUICK}"),
    ("generate x.npy --ids headed.txt -o out", r"'(headed\.txt)' has 61 .*: remove that line", remove_the_first_line),
    ("generate x.npy --ids twice.txt -o out", r"item (p1) was .*: keep one row of it", keep_one_row),
    ("generate broken.npy --ids ids.txt -o out", r"row (3) \(item p3\).* remove such rows", remove_the_row),
    (
        "generate x.csv -o out",
        r"(name) \(text .*name it: (--items) COLUMN",
        f"generate x.csv -o out {{2}} {{1}}{QUICK}",
    ),
    ("generate bare.csv -o out", r"Name them in its first line \((item_id), emb_0", name_the_columns),
    ("generate data --feature 82", r"--feature\), such as (81)\.", f"generate data --feature {{1}}{QUICK}"),
    ("generate empty", r"looked for (creative_emb) and", move_embeddings),
    ("report data", r"To have some: semid (generate data)", f"{{1}}{QUICK}"),
    ("report empty", r"To have some: semid (generate) FILE (-o) DIR", f"{{1}} x.npy --ids ids.txt {{2}} out{QUICK}"),
    (f"{FILE[:-3]}ids", r"start over with (--retrain)", f"{FILE[:-3]}ids {{1}}{QUICK}"),
    ("encode ids x.npy --ids new.txt -o more", r"as semid (generate) writes it", f"{{1}}{FILE[8:]}{QUICK}"),
    ("encode ids data -o more", r"For a data directory: semid (generate data)", f"{{1}}{QUICK}"),
    ("export ids -o ids.xyz", r"csv \((\.csv)\)", "export ids -o ids{1}"),
    ("export ids -o ids.json -f excel", r"one of (json),", "export ids -o ids.json -f {1}"),
    ("generat x.npy", r"Did you mean '(generate)'\? See", f"{{1}} x.npy --ids ids.txt -o out{QUICK}"),
    (f"{FILE} --algorithm kmeans", r"one of auto, rqvae, (rqkmeans),", f"{FILE} --algorithm {{1}} --codes 8"),
    (f"{FILE} --device cuda:7", r"\"(auto)\" takes CUDA where there is one", f"{FILE} --device {{1}}{QUICK}"),
    ("show ids P1", r"Its items are such as (p0),", "show ids {1}"),
    ("report ids -o r.html --titles other.csv", r"0 of 2 titles.*items are (p0), p1", titles_of),
    ("info data --levels 2 --codes 8", r"Next: semid (generate data) ", f"{{1}}{QUICK}"),
    ("verify ids --embeddings x.npy", r"\((--ids ids\.txt), one a line\)", "verify ids --embeddings x.npy {1}"),
]


@pytest.mark.parametrize(("typed", "advice", "then"), MISTAKES, ids=[typed for typed, _, _ in MISTAKES])
def test_advice_works(
    typed: str, advice: str, then: Callable[["re.Match[str]"], str] | str, capfd: pytest.CaptureFixture[str]
) -> None:
    """On the command line: the mistake's own sentence, then exit code 0."""
    code = run(shlex.split(typed))
    said = "".join(capfd.readouterr())
    assert code in ((0,) if "titles" in typed else (1, 2, 3)), said
    found = re.search(advice, said, re.DOTALL)
    assert found is not None, said
    again = then.format(found[0], *found.groups()) if isinstance(then, str) else then(found)
    assert run(shlex.split(again)) == 0, "".join(capfd.readouterr())


class Shop(SemanticIdMixin):
    """A dataset as the mixin wants it."""

    def __init__(self, data_dir: str, features: Any) -> None:
        self.data_dir, self.mm_emb_ids = data_dir, features


def advised(advice: str, call: Callable[[], Any], error: type[Exception]) -> "re.Match[str]":
    with pytest.raises(error) as caught:
        call()
    found = re.search(advice, str(caught.value))
    assert found is not None, caught.value
    return found


def test_one_item_where_several_are_wanted() -> None:
    """A text is a list of letters to Python, and no list of items."""
    table = SemanticIdTable.open("ids")
    advised("expected several, not one str: 'p1'", lambda: table.codes("p1"), ItemsError)
    assert table.codes(["p1"]).tolist() == [[1, 0]]


def test_json_opened_as_a_table() -> None:
    """Both lie in the folder of a generation."""
    run(["export", "ids", "-o", "ids.json"])
    found = advised(
        r"it is JSON, which semid_dataset\.exports\.(\w+) reads", lambda: SemanticIdTable.open("ids.json"), SemidError
    )
    assert found[1] == read_export.__name__
    assert read_export("ids.json", codebook_sizes=8)["p1"] == [1, 0]


def test_features_as_one_text() -> None:
    """Ids are asked for one by one."""
    advised(
        "'81,82' is no feature id. Ids are letters and digits, such as 81",
        lambda: generate_semantic_ids("data", "81,82"),
        SemidError,
    )
    config = SemanticIdConfig(num_quantizers=2, codebook_size=8, algorithm="rqkmeans")
    assert generate_semantic_ids("data", ["81"], config=config).status == "trained"


def test_a_dataset_without_its_attributes() -> None:
    """The mixin says which it reads."""

    class Bare(SemanticIdMixin):
        pass

    bare = Bare()
    found = advised(
        r"needs the attributes '(\w+)' and '(\w+)'.*Set them before", lambda: bare.semantic_id_dict, RuntimeError
    )
    setattr(bare, found[1], "data")
    setattr(bare, found[2], ["81"])
    assert isinstance(bare.semantic_id_dict, SemanticIdTable)


def test_a_dataset_that_asks_for_a_feature_that_is_not_there() -> None:
    """Default IDs answer, and the warning names one that is; after `del` it is asked again."""
    shop = Shop("data", ["82"])
    with pytest.warns(SemanticIdWarning, match=r"Ask for one of those \(mm_emb_ids, --feature\), such as 81\."):
        assert shop.semantic_id_dict.status == "default"
    shop.mm_emb_ids = ["81"]
    del shop.semantic_id_dict
    assert shop.semantic_id_dict.status == "trained"


def test_a_parent_that_is_the_wrong_folder() -> None:
    """The message says which file it wants; `save` makes it."""
    found = advised(
        r"holds no (semid_table\.safetensors)\. Save the table",
        lambda: Shop("data", ["81"]).prepare_semantic_ids(parent="empty"), SemidError,
    )  # fmt: skip
    trained = Shop("data", ["81"]).semantic_id_dict
    trained.save(f"empty/{found[1]}")
    assert Shop("data", ["81"]).prepare_semantic_ids(parent="empty").status == "cached"
