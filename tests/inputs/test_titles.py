"""Titles are read as people's tools write them; what is wrong is named with its line; how many match is always said."""

import json
from pathlib import Path

import pytest

from semid_dataset import SemanticIdTable
from semid_dataset.errors import EmbeddingError
from semid_dataset.inputs.titles import read_titles

ODD = {
    "1": "line\u2028separator",
    "2": "next\x85line",
    "3": "form\x0cfeed and \x1c",
    "4": '"quoted" at the start',
    "5": '12" pipe, 3" wide',
    "6": "comma, and; more",
}


@pytest.mark.parametrize("ending", ["json", "jsonl", "ndjson", "csv", "tsv"])
def test_no_character_of_a_title_ends_a_line(tmp_path: Path, ending: str) -> None:
    """Nor swallows those behind it: 5,000 titles behind the odd ones are all there."""
    titles = ODD | {str(k): f"title {k}" for k in range(100, 5100)}
    path = tmp_path / f"t.{ending}"
    if ending == "json":
        text = json.dumps(titles, ensure_ascii=False)
    elif ending in {"jsonl", "ndjson"}:
        text = "".join(json.dumps({"item_id": k, "title": v}, ensure_ascii=False) + "\n" for k, v in titles.items())
    elif ending == "csv":
        text = "".join('{},"{}"\r\n'.format(k, v.replace('"', '""')) for k, v in titles.items())
    else:
        text = "".join(f"{k}\t{v}\n" for k, v in titles.items())
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_titles(path) == titles


def test_a_csv_title_may_hold_lines(tmp_path: Path) -> None:
    """Between quotation marks."""
    (tmp_path / "t.csv").write_text('1,"two\nlines"\n2,one\n')
    assert read_titles(tmp_path / "t.csv") == {"1": "two\nlines", "2": "one"}


@pytest.mark.parametrize(
    "row", [{"parent_asin": "B1", "name": "A"}, {"id": "B1", "title": ["A"]}, {"PK": "B1", "text": "A", "x": 3}]
)
def test_items_and_titles_have_the_names_that_people_give_them(tmp_path: Path, row: dict[str, object]) -> None:
    """The list of names of items is the one that embeddings have."""
    (tmp_path / "t.jsonl").write_text(json.dumps(row) + "\n\n")
    assert read_titles(tmp_path / "t.jsonl") == {"B1": "A"}


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("t.jsonl", b'{"id": 1, "title": "a"}\n{"id": 2, "title": "b"\n', "line 2: no JSON"),
        ("t.jsonl", b'{"id": 1, "title": "a"}\n\n{"colour": 2}\n', "line 3: neither an item .* from colour"),
        ("t.jsonl", b'{"id": 1, "title": {"en": "a"}}\n', "line 1: a title is text"),
        ("t.jsonl", b"[1, 2]\n", "line 1: wanted an object"),
        ("t.json", b'{"1": "a",\n"2": }', "line 2: no JSON"),
        ("t.json", b'{"1": true}', "item '1': a title is text"),
        ("t.json", b"[]", "holds a list"),
        ("t.csv", b'1,a\n2,"b\n3,c\n', "line 2: no CSV"),
        ("t.csv", b'1,a\n2,b\n3,"c" d\n', "line 3: no CSV"),
        ("t.tsv", b"1,a\n", "line 1: no tab"),
        ("t.tsv", b"1\ta\n2\t\xff\n", "line 2: no UTF-8"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    """People open the file there."""
    (tmp_path / name).write_bytes(data)
    with pytest.raises(EmbeddingError, match=words):
        read_titles(tmp_path / name)


def test_the_command_says_how_many_titles_match(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All, some, none: always; for none, what both look like."""
    pytest.importorskip("click")
    pytest.importorskip("jinja2")
    from semid_dataset.cli._app import run

    table = SemanticIdTable.from_mapping({k: [k % 4, k // 4] for k in range(16)}, codebook_sizes=4)
    table.save(tmp_path / "t.safetensors")

    def said(titles: dict[str, str]) -> str:
        (tmp_path / "t.json").write_text(json.dumps(titles))
        line = ["report", str(tmp_path / "t.safetensors"), "-o", str(tmp_path / "page.html")]
        assert run([*line, "--titles", str(tmp_path / "t.json")]) == 0
        return capsys.readouterr().out

    assert "3 of 5 titles match an item; 3 of 16 items have one" in said({str(k): "a" for k in (0, 7, 15, 16, 99)})
    assert "16 of 16 titles match" in said({str(k): "line\u2028separator" for k in range(16)})
    none = said({"B00A": "a", "B00B": "b"})
    assert "0 of 2 titles match" in none
    assert "Titles are of B00A, B00B; items are 0, 1, 2" in none
    assert "0 of 0 titles match" in said({})
