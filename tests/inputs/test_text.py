"""Vectors in text: CSV, TSV and what numpy.savetxt writes, each read exactly or refused with its line."""

from pathlib import Path

import numpy as np
import pytest

from semid_dataset.errors import EmbeddingError, NoEmbeddingsError
from semid_dataset.inputs.matrix import read_vectors

MATRIX = np.array([[0.5, -1.25, 3e-7], [1e6, 0.0, 2.0]], np.float32)
NUMBERED = "item_id,emb_0,emb_1,emb_2,price\n7,0.5,-1.25,3e-07,9\n8,1e6,0,2,9\n"


def read(tmp_path: Path, text: str, name: str = "x.csv", **given: str) -> tuple[list[int | str], np.ndarray]:
    (tmp_path / name).write_text(text)
    items, matrix = read_vectors(tmp_path / name, **given)
    return list(items), matrix


@pytest.mark.parametrize(
    ("text", "items"),
    [
        (NUMBERED, [7, 8]),
        (NUMBERED.replace(",", ";"), [7, 8]),
        (NUMBERED.replace(",", "\t"), [7, 8]),
        ("\ufeff" + NUMBERED.replace("\n", "\r\n"), [7, 8]),
        (NUMBERED.replace("emb_0,emb_1,emb_2", "dim1,dim2,dim3"), [7, 8]),
        (",0,1,2\nB1,0.5,-1.25,3e-07\nB2,1e6,0,2\n", ["B1", "B2"]),  # pandas: an index and a matrix
        ('asin,title,embedding\nB1,"a, b","[0.5, -1.25, 3e-07]"\nB2,c,"[1e6, 0.0, 2.0]"\n', ["B1", "B2"]),
        ('asin,embedding\nB1,"[ 0.5  -1.25\n 3.e-07]"\nB2,[1e6 0.  2.]\n', ["B1", "B2"]),  # numpy's repr, two lines
        ("id,vec\n7.0,0.5 -1.25 3e-7\n8.0,1e6 0 2\n\n", [7, 8]),  # floats as pandas makes of ids
    ],
    ids=["csv", "semicolons", "tabs", "bom", "from-one", "pandas-index", "list", "numpy-repr", "float-ids"],
)  # fmt: skip
def test_vectors_in_text_are_read(tmp_path: Path, text: str, items: list[int | str]) -> None:
    """Whatever lies between the fields, and whether a vector is many columns or one."""
    found, matrix = read(tmp_path, text)
    assert found == items
    np.testing.assert_array_equal(matrix, MATRIX)


@pytest.mark.parametrize("between", [" ", ","])
def test_a_matrix_without_names_takes_its_items_from_elsewhere(tmp_path: Path, between: str) -> None:
    """As numpy.savetxt writes it."""
    np.savetxt(tmp_path / "x.txt", MATRIX, delimiter=between)
    (tmp_path / "ids.txt").write_text("B1\nB2\n")
    items, matrix = read_vectors(tmp_path / "x.txt", tmp_path / "ids.txt")
    assert list(items) == ["B1", "B2"]
    np.testing.assert_array_equal(matrix, MATRIX)
    assert list(read_vectors(tmp_path / "x.txt", "rows")[0]) == [0, 1]


def test_a_matrix_with_counted_columns_keeps_its_first_row(tmp_path: Path) -> None:
    """`DataFrame(matrix).to_csv(index=False)` writes 0,1,2 first: names, though they are numbers."""
    items, matrix = read(tmp_path, "0,1,2\n0.5,-1.25,3e-07\n1e6,0,2\n", items="rows")
    assert items == [0, 1]
    np.testing.assert_array_equal(matrix, MATRIX)


def test_one_run_of_several_is_named(tmp_path: Path) -> None:
    """Where a file holds two vectors an item, and none of a usual name."""
    text = "id,text_0,text_1,image_0,image_1\n7,1,2,3,4\n"
    with pytest.raises(EmbeddingError, match=r"text \(2 numbered columns\).*--vectors COLUMN"):
        read(tmp_path, text)
    assert read(tmp_path, text, vectors="image")[1].tolist() == [[3, 4]]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("id,emb_0,emb_1\n1,2,\n", "line 2: a number is missing: a field is empty"),
        ("id,emb_0,emb_1\n1,2,3\n4,5\n", "line 3: 2 fields instead of 3"),
        ("id,emb_0,emb_1\n,2,3\n", "line 2: no id under id"),
        ("id;emb_0;emb_1\n1;0,5;0,5\n", "line 2: '0,5' among its numbers"),
        ("id,embedding\n1,[0.1 0.2 ... 0.9]\n", "line 2: numpy left out numbers"),
        ('id,emb_0,emb_1\n1,2,"3\n', "line 2: no CSV"),
        ("id,emb_0,emb_1\n1,2,nan\n", "must be finite"),
        ("id,price,weight\n1,2,3\n", "--vectors COLUMN"),
        ("name,emb_0,emb_1\na,2,3\n", "--items COLUMN"),
        ("1,2,3\n", "names no columns"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, text: str, error: str) -> None:
    """By file, line, and what to do."""
    with pytest.raises(EmbeddingError, match=error):
        read(tmp_path, text)


def test_a_heading_without_rows_is_nothing(tmp_path: Path) -> None:
    """And a file in another encoding is said to be one."""
    with pytest.raises(NoEmbeddingsError):
        read(tmp_path, "id,emb_0,emb_1\n")
    (tmp_path / "x.csv").write_bytes("id,emb_0,emb_1\n1,2,3\né,2,3\n".encode("latin-1"))
    with pytest.raises(EmbeddingError, match="no UTF-8 text"):
        read_vectors(tmp_path / "x.csv")
