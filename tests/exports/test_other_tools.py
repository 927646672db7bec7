"""IDs as other tools write them: codes as text, suffixes on some, arrays without items. Read, or a clear error."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semid_dataset.errors import ConfigError, TableError
from semid_dataset.exports import read_export

CODES = [[217, 163, 130], [5, 0, 12]]
SPELLED = {
    "commas": ["217,163,130", "5,0,12"],
    "a list": ["[217, 163, 130]", "[5, 0, 12]"],
    "a tuple": ["(217, 163, 130)", "(5, 0, 12,)"],
    "blanks": ["217 163 130", " 5  0 12 "],
    "dashes": ["217-163-130", "5-0-12"],
    "tokens": ["<a_217><b_163><c_130>", "<a_5> <b_0> <c_12>"],
}


@pytest.fixture
def arrow() -> Any:
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    return pyarrow


@pytest.mark.parametrize("how", SPELLED)
def test_codes_as_text_in_parquet_are_read(tmp_path: Path, arrow: Any, how: str) -> None:
    """However they are spelled; dictionary-encoded too."""
    for column in (
        SPELLED[how],
        arrow.array(SPELLED[how]).dictionary_encode(),
        arrow.array(SPELLED[how], "large_string"),
    ):
        arrow.parquet.write_table(arrow.table({"item_id": [7, 8], "codes": column}), tmp_path / "x.parquet")
        table = read_export(tmp_path / "x.parquet")
        assert [table[7], table[8]] == CODES


@pytest.mark.parametrize(
    "column",
    [[["217", "163", "130"], ["5", "0", "12"]], [[217.0, 163.0, 130.0], [5.0, 0.0, 12.0]]],
    ids=["digits", "whole floats"],
)
def test_lists_of_other_types_are_read_where_that_is_exact(tmp_path: Path, arrow: Any, column: Any) -> None:
    """Text of digits, and what pandas makes of integers."""
    arrow.parquet.write_table(arrow.table({"item_id": ["a", "b"], "codes": column}), tmp_path / "x.parquet")
    table = read_export(tmp_path / "x.parquet")
    assert [table["a"], table["b"]] == CODES


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (["217,163,130", "twelve"], "row 1: 'twelve' is no list of codes"),
        (["217,163,130", ""], "row 1: '' is no list of codes"),
        (["217,163,130", "1.5,2,3"], "is no list of codes"),
        (["217,163,130", None], "row 1: None"),
        (["1,2,3", "1,2"], "different lengths"),
        ([["1", "2"], ["1", "x"]], "'x' among its codes"),
        ([[1.5, 2.0], [1.0, 2.0]], "of 0 to 65,535"),
        ([1, 2], "int64 under codes"),
    ],
)
def test_what_is_no_code_is_refused_with_its_row(tmp_path: Path, arrow: Any, column: Any, words: str) -> None:
    """A TableError that quotes it."""
    arrow.parquet.write_table(arrow.table({"item_id": [7, 8], "codes": column}), tmp_path / "x.parquet")
    with pytest.raises(TableError, match=words):
        read_export(tmp_path / "x.parquet")


def test_a_suffix_on_colliding_items_alone_is_named(tmp_path: Path, arrow: Any) -> None:
    """It says how many have it, and what to do."""
    codes = [[1, 2, 3], [1, 2, 3, 1], [4, 5, 6]]
    arrow.parquet.write_table(arrow.table({"item_id": [1, 2, 3], "codes": codes}), tmp_path / "x.parquet")
    with pytest.raises(TableError, match=r"2 with 3, 1 with 4 codes.*colliding items alone carry a suffix"):
        read_export(tmp_path / "x.parquet")


def written(folder: Path, form: str) -> Path:
    """GRID's arrays: (items, levels) in .npy, (levels, items) in .pt; nothing beside them."""
    path = folder / f"ids.{form}"
    if form == "npy":
        np.save(path, np.array(CODES))
    else:
        torch = pytest.importorskip("torch")
        torch.save(torch.tensor(CODES).T.contiguous(), path)
    return path


@pytest.mark.parametrize("form", ["npy", "pt"])
def test_an_array_without_items_takes_them_from_who_reads_it(tmp_path: Path, form: str) -> None:
    """Row k is item k, or all are named; without, the error says how."""
    path = written(tmp_path, form)
    assert read_export(path, items="rows").to_dict() == dict(enumerate(CODES))
    assert read_export(path, items=["a", "b"]).to_dict() == dict(zip("ab", CODES, strict=True))
    assert read_export(path, items=np.array([70, 80])).to_dict() == {70: CODES[0], 80: CODES[1]}
    with pytest.raises(TableError, match=r"2 items but 'ids.*items.json'.* is missing.*--items rows"):
        read_export(path)
    with pytest.raises(TableError, match="3 items were given for the 2 rows"):
        read_export(path, items=[1, 2, 3])
    with pytest.raises(ConfigError, match="neither"):
        read_export(path, items="columns")
    (tmp_path / "ids.json").write_text('{"1": [1, 2]}')
    with pytest.raises(ConfigError, match="names its items itself"):
        read_export(tmp_path / "ids.json", items="rows")


def test_the_command_line_reads_an_array_by_its_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--items rows`; `diff` gives it to the one that needs it."""
    pytest.importorskip("click")
    from semid_dataset.cli._app import run

    path = written(tmp_path, "npy")
    assert run(["info", str(path)]) == 3
    assert "--items rows" in capsys.readouterr().err
    assert run(["info", str(path), "--items", "rows"]) == 0
    assert run(["export", str(path), "--items", "rows", "-o", str(tmp_path / "ids.json")]) == 0
    assert run(["diff", str(path), str(tmp_path / "ids.json"), "--items", "rows"]) == 0
    assert "2 unchanged" in capsys.readouterr().out
