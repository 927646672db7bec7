"""Embeddings of one's own are read from every kind of file, and whatever does not fit is named by file and row."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from world import SMALL, vectors_of

from semid_dataset import SemanticIdTable
from semid_dataset.api import extend_with_vectors, generate_from_vectors
from semid_dataset.errors import EmbeddingError, NoEmbeddingsError, SemidError
from semid_dataset.inputs.matrix import check_vectors, read_items, read_vectors

ITEMS = np.array([30, 10, 20], np.int64)
MATRIX = np.arange(12, dtype=np.float32).reshape(3, 4) / 8


def write(folder: Path, form: str, items: Any, matrix: np.ndarray) -> tuple[Path, Path | None]:
    """Write the same embeddings in one of the forms; the second path is the list of items, where it is apart."""
    path = folder / f"x.{form}"
    if form == "npy":
        np.save(path, matrix)
        (folder / "ids.txt").write_text("\n".join(map(str, items)) + "\n")
        return path, folder / "ids.txt"
    if form == "npz":
        np.savez(path, item_id=np.array(items), x=matrix)
    elif form == "jsonl":
        path.write_text(
            "".join(json.dumps({"id": i, "emb": row.tolist()}) + "\n" for i, row in zip(items, matrix, strict=True))
        )
    elif form == "parquet":
        arrow = pytest.importorskip("pyarrow")
        import pyarrow.parquet

        pyarrow.parquet.write_table(arrow.table({"SKU-ID": list(items), "embedding": matrix.tolist()}), path)
    else:
        from safetensors.numpy import save_file

        save_file({"embeddings": matrix, "ids": np.array(items)}, path)
    return path, None


@pytest.mark.parametrize("form", ["npy", "npz", "jsonl", "parquet", "safetensors"])
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16])
def test_every_form_gives_the_same(tmp_path: Path, form: str, kind: type) -> None:
    """Integer items, numbers of any width."""
    items, matrix = read_vectors(*write(tmp_path, form, ITEMS.tolist(), MATRIX.astype(kind)))
    assert isinstance(items, np.ndarray)
    assert items.tolist() == ITEMS.tolist()
    assert matrix.dtype == np.float32
    assert np.array_equal(matrix, MATRIX)


@pytest.mark.parametrize("form", ["npy", "npz", "jsonl", "parquet"])
def test_items_may_be_names(tmp_path: Path, form: str) -> None:
    """One that is no canonical integer makes all of them strings."""
    names = ["10", "007", "sku é"]
    assert read_vectors(*write(tmp_path, form, names, MATRIX))[0] == names


def test_bfloat16_is_read(tmp_path: Path) -> None:
    """What language models write."""
    import torch
    from safetensors.torch import save_file

    save_file({"x": torch.from_numpy(MATRIX).bfloat16()}, tmp_path / "x.safetensors")
    items, matrix = read_vectors(tmp_path / "x.safetensors", "rows")
    assert np.array_equal(matrix, MATRIX)
    assert items.tolist() == [0, 1, 2]  # type: ignore[union-attr]


@pytest.mark.parametrize("form", ["npy", "json", "txt"])
def test_items_come_from_any_kind_of_list(tmp_path: Path, form: str) -> None:
    """An array, JSON, or one a line, with the line ends of any system."""
    path = tmp_path / f"ids.{form}"
    if form == "npy":
        np.save(path, ITEMS)
    elif form == "json":
        path.write_text(json.dumps(ITEMS.tolist()))
    else:
        path.write_bytes(b"\xef\xbb\xbf30\r\n10\r\n20\r\n")
    assert read_items(path).tolist() == [30, 10, 20]  # type: ignore[union-attr]


def test_faults_name_file_row_found_and_wanted(tmp_path: Path) -> None:
    """A person at a prompt reads them."""
    path, ids = write(tmp_path, "npy", ITEMS.tolist(), MATRIX)
    with pytest.raises(EmbeddingError, match=r"x\.npy' holds vectors but no items.*--ids"):
        read_vectors(path)
    ids.write_text("1\n2\n")  # type: ignore[union-attr]
    with pytest.raises(EmbeddingError, match=r"ids\.txt' has 2 items; '.*x\.npy' has 3 rows"):
        read_vectors(path, ids)
    ids.write_text("1\n2\n1\n")  # type: ignore[union-attr]
    with pytest.raises(EmbeddingError, match=r"ids\.txt', row 2: item 1 was in row 0 already"):
        read_vectors(path, ids)
    ids.write_text("a\nb\na\n")  # type: ignore[union-attr]
    with pytest.raises(EmbeddingError, match=r"row 2: item a was in row 0"):
        read_vectors(path, ids)
    ids.write_text("a\n\nb\n")  # type: ignore[union-attr]
    with pytest.raises(EmbeddingError, match=r"ids\.txt', line 2: an empty line"):
        read_vectors(path, ids)
    broken = MATRIX.copy()
    broken[1, 2] = np.nan
    np.save(path, broken)
    with pytest.raises(EmbeddingError, match=r"x\.npy', row 1 \(item 1\): NaN"):
        read_vectors(path, "rows")
    np.save(path, MATRIX[0])
    with pytest.raises(EmbeddingError, match=r"shape \(4,\); wanted: numbers of shape \(items, dim\)"):
        read_vectors(path, "rows")
    np.save(path, MATRIX[:0])
    with pytest.raises(NoEmbeddingsError, match=r"shape is \(0, 4\)"):
        read_vectors(path, "rows")
    np.save(path, np.array([[1, "x"]], object), allow_pickle=True)
    with pytest.raises(EmbeddingError, match="Python objects, which are not read"):
        read_vectors(path, "rows")
    (tmp_path / "x.csv").write_text("1,2,3\n")
    with pytest.raises(EmbeddingError, match="a table of text whose first line names no columns"):
        read_vectors(tmp_path / "x.csv")
    (tmp_path / "x.vec").write_text("1,2,3\n")
    with pytest.raises(EmbeddingError, match=r"\.safetensors"):
        read_vectors(tmp_path / "x.vec")
    with pytest.raises(FileNotFoundError):
        read_vectors(tmp_path / "none.npy", "rows")


def test_faults_of_lines_name_the_line(tmp_path: Path) -> None:
    """Each of them on its own."""
    path = tmp_path / "x.jsonl"
    good = '{"id": 1, "emb": [1, 2]}\n'
    for bad, message in [
        ("{", "line 2: no JSON"),
        ("[]", "line 2: a list"),
        ('{"id": 2, "emb": [1]}', "line 2: 1 numbers instead of 2"),
        ('{"id": 2, "emb": ["x", 1]}', "line 2: not only numbers"),
        ('{"emb": [1, 2]}', "There is: emb"),
        ('{"id": true, "emb": [1, 2]}', "line 2: no id under id: True"),
    ]:
        path.write_text(good + bad)
        with pytest.raises(EmbeddingError, match=message):
            read_vectors(path)


def test_faults_of_archives_say_what_is_there(tmp_path: Path) -> None:
    """Which of two matrices is meant cannot be guessed, unless its name says so."""
    path = tmp_path / "x.npz"
    np.savez(path, a=MATRIX, b=MATRIX, ids=ITEMS)
    with pytest.raises(
        EmbeddingError, match=r"There is: a \(float32\[3, 4\]\), b \(float32\[3, 4\]\), ids .*--vectors COLUMN"
    ):
        read_vectors(path)
    np.savez(path, a=MATRIX * 2, vectors=MATRIX, other=ITEMS, ids=ITEMS)
    assert np.array_equal(read_vectors(path)[1], MATRIX)
    for name in ("x.npz", "x.safetensors", "x.parquet", "x.npy"):
        (tmp_path / name).write_bytes(b"\x10\0\0\0\0\0\0\0 nothing of the kind")
        with pytest.raises(EmbeddingError, match=name):
            read_vectors(tmp_path / name, "rows")


def test_parquet_rows_of_another_width_are_named(tmp_path: Path) -> None:
    """By row, column, found and wanted."""
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    pyarrow.parquet.write_table(arrow.table({"id": [1, 2], "emb": [[1.0, 2.0], [1.0]]}), tmp_path / "x.parquet")
    with pytest.raises(EmbeddingError, match=r"x\.parquet', row 1: 1 numbers instead of 2"):
        read_vectors(tmp_path / "x.parquet")


def test_faults_of_item_lists_are_named(tmp_path: Path) -> None:
    """Whatever kind of list it is."""
    np.save(tmp_path / "ids.npy", MATRIX)
    (tmp_path / "ids.json").write_text('{"1": 2}')
    (tmp_path / "cut.json").write_text("[1, 2")
    (tmp_path / "ids.txt").write_bytes(b"\xff\xfe1")
    (tmp_path / "float.json").write_text("[1.5]")
    for name, message in {
        "ids.npy": r"shape \(3, 4\); wanted: one item a row",
        "ids.json": "holds a dict; wanted: a list",
        "cut.json": "is no JSON",
        "ids.txt": "is no UTF-8 text",
        "float.json": "row 0: 1.5 is no item",
    }.items():
        with pytest.raises(EmbeddingError, match=message):
            read_items(tmp_path / name)


def test_no_rows_is_said_as_such(tmp_path: Path) -> None:
    """An empty file is no fault of its form."""
    (tmp_path / "x.jsonl").write_text("\n")
    with pytest.raises(NoEmbeddingsError, match="no rows"):
        read_vectors(tmp_path / "x.jsonl")
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    empty = arrow.table({"id": arrow.array([], arrow.int64()), "emb": arrow.array([], arrow.list_(arrow.float32()))})
    pyarrow.parquet.write_table(empty, tmp_path / "x.parquet")
    with pytest.raises(NoEmbeddingsError, match="no rows"):
        read_vectors(tmp_path / "x.parquet")
    pyarrow.parquet.write_table(arrow.table({"id": [1], "name": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(EmbeddingError, match="one column of lists"):
        read_vectors(tmp_path / "x.parquet")


def test_vectors_in_memory_are_checked_too() -> None:
    """The function is called from programs as well."""
    with pytest.raises(EmbeddingError, match="2 items for 3 rows"):
        check_vectors([1, 2], MATRIX)
    assert check_vectors(np.array([1, 2, 2**64 - 1], np.uint64), MATRIX)[0] == ["1", "2", str(2**64 - 1)]


@pytest.mark.parametrize("names", [False, True])
def test_ids_of_own_vectors_are_unique_and_stay(tmp_path: Path, names: bool) -> None:
    """Generated, opened from the file, and extended: whatever order the items come in, no ID moves."""
    vectors = vectors_of(120)
    items: Any = [f"sku-{119 - k}" for k in range(120)] if names else np.arange(120)[::-1].copy()
    table = generate_from_vectors(items[:100], vectors[:100], output_dir=tmp_path / "out", config=SMALL)
    assert table.status == "trained"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "semantic_id_dict.json",
        "semid_table.safetensors",
    ]
    opened = SemanticIdTable.open(tmp_path / "out" / "semid_table.safetensors")
    assert len({tuple(row) for row in opened.codes(items[:100]).tolist()}) == 100
    assert np.array_equal(opened.quantizer.encode(vectors[:100])[:, 0], opened.codes(items[:100])[:, 0])
    again = generate_from_vectors(items[:100], vectors[:100].copy(), output_dir=tmp_path / "two", config=SMALL)
    assert again.digest == opened.digest
    more, new = extend_with_vectors(opened, items, vectors)
    assert new == 20
    assert more.status == "extended"
    assert more.coverage(items) == 1.0
    assert np.array_equal(more.codes(items[:100]), opened.codes(items[:100]))
    assert len({tuple(row) for row in more.codes_array.tolist()}) == 120
    assert extend_with_vectors(more, items, vectors) == (more, 0)


def test_extending_with_other_vectors_is_refused(tmp_path: Path) -> None:
    """By their width, and by a table that cannot encode."""
    table = generate_from_vectors(np.arange(50), vectors_of(50), output_dir=tmp_path, config=SMALL)
    with pytest.raises(EmbeddingError, match="vectors of 8 numbers, these have 4"):
        extend_with_vectors(table, ITEMS, MATRIX)
    with pytest.raises(SemidError, match="no quantizer"):
        extend_with_vectors(SemanticIdTable.from_mapping({1: [1, 2]}), ITEMS, MATRIX)


def test_a_read_only_matrix_is_trained_on(tmp_path: Path) -> None:
    """A map of a file, say."""
    np.save(tmp_path / "x.npy", vectors_of(60))
    matrix = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert len(generate_from_vectors(np.arange(60), matrix, output_dir=tmp_path / "out", config=SMALL)) == 60
