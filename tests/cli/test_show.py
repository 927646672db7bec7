"""`semid show`, titles that are found by themselves, CSV and the standard output."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("click", reason='the extra "cli" is missing: pip install ".[cli]"')

from semid_dataset import SemanticIdTable
from semid_dataset.cli._app import run
from semid_dataset.exports import read_export

IDS = {"lamp": [1, 2, 3], "shade": [1, 2, 0], "bulb": [1, 0, 0], "sofa": [2, 2, 3], "rug": [2, 0, 1]}


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as a generation leaves it, with titles."""
    monkeypatch.chdir(tmp_path)
    table = SemanticIdTable.from_mapping(IDS)
    table.save("out/semid_table.safetensors")
    Path("out/titles.json").write_text('{"lamp": "A red lamp", "shade": "A shade"}')
    return Path("out")


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def test_an_item_is_shown_level_by_level(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each neighbour with the longest prefix that it shares, in words where there are titles."""
    code, text, _ = said(capsys, "show", out, "lamp")
    assert code == 0
    assert text.splitlines()[:8] == [
        "lamp  A red lamp",
        "  ID 1-2-3",
        "  1  3 items",
        "      bulb",
        "  1-2  2 items",
        "      shade  A shade",
        "  1-2-3  this item alone",
        "Next: semid report out -o report.html     to see all of them",
    ]
    facts = json.loads(said(capsys, "show", out, "lamp", "--json")[1])["items"][0]
    assert (facts["id"], facts["levels"][0]["neighbours"]) == ([1, 2, 3], ["bulb"])


def test_an_unknown_item_is_said_with_items_that_are_known(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The others are shown all the same; the exit code is that of something wrong."""
    code, text, _ = said(capsys, "show", out, "nope", "rug")
    assert code == 1
    assert "ID 2-0-1" in text
    assert "Not in the table: nope. Its items are such as bulb, lamp, rug." in text


def test_ids_go_through_csv_and_back(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row an item, a column a level; items that are numbers come back as numbers."""
    code, text, aside = said(capsys, "export", out, "-f", "csv", "-o", "-")
    assert code == 0
    assert text.splitlines()[:2] == ["item_id,code_0,code_1,code_2", "bulb,1,0,0"]
    assert "5 items exported" in aside
    assert said(capsys, "export", out, "-o", "ids.csv")[0] == 0
    assert Path("ids.csv").read_text() == text
    assert read_export("ids.csv", codebook_sizes=4).to_dict() == IDS
    Path("n.csv").write_text("item_id,code_0,code_1\n7,1,2\n8,3,0\n")
    assert read_export("n.csv", codebook_sizes=4).to_dict() == {7: [1, 2], 8: [3, 0]}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("7,1,2\n", "does not begin with a line of names"),
        ("item_id,code_0\n7,1,2\n", "line 2: '7,1,2' is no item with 1 codes"),
        ("item_id,code_0\n7,-1\n", "is no item with 1 codes"),
        ('item_id,code_0\n"7,1\n', "is no CSV"),
    ],
)
def test_a_csv_that_holds_no_ids_is_refused(
    out: Path, capsys: pytest.CaptureFixture[str], text: str, error: str
) -> None:
    """In one line that says what was found."""
    Path("bad.csv").write_text(text)
    code, _, line = said(capsys, "show", "bad.csv", "7")
    assert code == 3
    assert error in line


def test_what_is_two_files_does_not_go_to_the_standard_output(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Codes without their items are of no use."""
    code, _, line = said(capsys, "export", out, "-f", "npy", "-o", "-")
    assert code == 2
    assert "name a file" in line


def test_a_report_goes_to_the_standard_output(out: Path, capsysbinary: Any) -> None:
    """All of the page and nothing else; titles beside the table are found, and it is said how many match."""
    assert run(["report", "out", "-o", "-"]) == 0
    page, aside = capsysbinary.readouterr()
    assert page.startswith(b"<!doctype html>")
    assert page.rstrip().endswith(b"</html>")
    assert b"A red lamp" in page
    assert b"2 of 2 titles match an item; 2 of 5 items have one." in aside


def test_titles_come_out_of_the_file_that_is_read(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A column of the CSV with the vectors; kept beside the table, so that later commands need not be told."""
    rows = [f"p{k},product {k},{k % 4}.{k},{k // 4}.{k}" for k in range(15)]
    Path("p.csv").write_text("\n".join(["sku,what,emb_0,emb_1", *rows]))
    settings = ["--levels", "2", "--codes", "4", "--epochs", "1"]
    code, text, _ = said(capsys, "generate", "p.csv", "-o", "made", "--title", "what", *settings)
    assert code == 0
    assert "15 of 15 titles match an item; 15 of 15 items have one." in text
    assert "p3  product 3" in said(capsys, "show", "made", "p3")[1]
    Path("t.csv").write_text("sku,price,label\np3,7,other\n")
    assert "p3  other" in said(capsys, "show", "made", "p3", "--titles", "t.csv", "--title", "label")[1]
    code, _, line = said(capsys, "show", "made", "p3", "--titles", "t.csv", "--title", "nope")
    assert code == 3
    assert "Wanted: item_id (or another name that items have) and nope" in line
    assert said(capsys, "show", "made", "p3", "--title", "what")[0] == 2  # of which file?
