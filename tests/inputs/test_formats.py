"""What people's tools write is read exactly, converted and said, or refused by name: no key that nobody looks up."""

import bz2
import decimal
import gzip
import io
import json
import logging
import lzma
import os
import pickle
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semid_dataset.errors import EmbeddingError, NoEmbeddingsError
from semid_dataset.inputs.matrix import read_items, read_vectors

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

IDS = [20_000_000_027, 1000, 7]
MATRIX = np.arange(12, dtype=np.float32).reshape(3, 4) / 8
LISTS = pa.array(MATRIX.tolist(), pa.list_(pa.float32()))


def parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def lines(path: Path, **columns: list[Any]) -> Path:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def same(found: tuple[Any, Any], ids: list[Any] = IDS) -> None:
    """These items, of these vectors, in this order; numbers as numbers."""
    items, matrix = found
    assert (items if isinstance(items, list) else items.tolist()) == ids
    np.testing.assert_array_equal(matrix, MATRIX)


# What an item is.


@pytest.mark.parametrize(
    "name", ["item_id", "anonymous_cid", "creative_id", "parent_asin", "asin", "id", "PK", "ItemID", "sku", "item-id"]
)
def test_the_column_with_an_items_name_decides(tmp_path: Path, name: str) -> None:
    """Beside titles and numbers, in every format that has names."""
    titles, years = ["a", "b", "c"], [1999, 2000, 2001]
    same(read_vectors(parquet(tmp_path / "x.parquet", title=titles, year=years, embedding=LISTS, **{name: IDS})))
    same(read_vectors(lines(tmp_path / "x.jsonl", title=titles, year=years, emb=MATRIX.tolist(), **{name: IDS})))
    np.savez(tmp_path / "x.npz", title=np.array(titles), year=np.array(years), emb=MATRIX, **{name: np.array(IDS)})
    same(read_vectors(tmp_path / "x.npz"))


def test_a_lone_column_of_another_name_is_no_id(tmp_path: Path) -> None:
    """Titles would be keys that nobody looks up; the error lists the columns and names the option."""
    parquet(tmp_path / "x.parquet", title=["a", "b", "c"], embedding=LISTS)
    lines(tmp_path / "x.jsonl", title=["a", "b", "c"], embedding=MATRIX.tolist())
    np.savez(tmp_path / "x.npz", train_idx=np.array([0, 1, 2]), embedding=MATRIX)
    np.savez(tmp_path / "y.npz", np.array([4, 5, 6]), MATRIX)
    for name, column in {"x.parquet": "title", "x.jsonl": "title", "x.npz": "train_idx", "y.npz": "arr_0"}.items():
        with pytest.raises(EmbeddingError, match=rf"There is: .*{column}.*--items COLUMN"):
            read_vectors(tmp_path / name)
        items, _ = read_vectors(tmp_path / name, column)
        assert len(items) == 3
        assert read_vectors(tmp_path / name, "rows")[0].tolist() == [0, 1, 2]  # type: ignore[union-attr]
        with pytest.raises(EmbeddingError, match=rf"no column 'nothing'.*{column}"):
            read_vectors(tmp_path / name, "nothing")


def test_a_column_that_cannot_be_is_no_option_without_effect(tmp_path: Path) -> None:
    """A matrix alone and a dict have no columns."""
    np.save(tmp_path / "x.npy", MATRIX)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(dict(zip(IDS, MATRIX, strict=True)), 4))
    for name in ("x.npy", "x.pkl"):
        with pytest.raises(EmbeddingError, match="has no columns, and there is no file 'code'"):
            read_vectors(tmp_path / name, "code")
        with pytest.raises(EmbeddingError, match=r"has no columns, .*'emb'\. Leave --vectors out"):
            read_vectors(tmp_path / name, "rows", "emb")


def test_lists_of_another_name_are_vectors_only_where_they_are_floats(tmp_path: Path) -> None:
    """A lone list of integers may be codes, or what somebody bought."""
    codes = pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.int64()))
    path = parquet(tmp_path / "x.parquet", item_id=IDS, codes=codes)
    with pytest.raises(EmbeddingError, match=r"There is: item_id \(int64\), codes .*--vectors COLUMN"):
        read_vectors(path)
    assert read_vectors(path, vectors="codes")[1].tolist() == [[1, 2], [3, 4], [5, 6]]
    same(read_vectors(parquet(tmp_path / "y.parquet", item_id=IDS, bge_large=LISTS, codes=codes)))
    path = parquet(tmp_path / "z.parquet", item_id=IDS, a=LISTS, b=LISTS)
    with pytest.raises(EmbeddingError, match="--vectors COLUMN"):
        read_vectors(path)
    same(read_vectors(path, vectors="b"))
    with pytest.raises(EmbeddingError, match=r"vectors of type int64 in item_id"):
        read_vectors(path, vectors="item_id")


def test_a_vectors_name_decides_too(tmp_path: Path) -> None:
    """Another column of lists does not take its place where it holds something else."""
    path = parquet(tmp_path / "x.parquet", item_id=IDS, embedding=["[1]", "[2]", "[3]"], prices=LISTS)
    with pytest.raises(EmbeddingError, match=r"vectors of type string in embedding.*--vectors"):
        read_vectors(path)
    same(read_vectors(path, vectors="prices"))


ARROW_IDS: dict[str, Callable[[], Any]] = {
    "double": lambda: pa.array(IDS, pa.float64()),
    "decimal": lambda: pa.array([decimal.Decimal(k) for k in IDS], pa.decimal128(20, 0)),
    "HUGEINT": lambda: pa.array([decimal.Decimal(k) for k in IDS], pa.decimal128(38, 0)),
    "decimal of scale 2": lambda: pa.array([decimal.Decimal(k) for k in IDS], pa.decimal128(20, 2)),
    "string_view": lambda: pa.array([str(k) for k in IDS], pa.string_view()),
    "large_string": lambda: pa.array([str(k) for k in IDS], pa.large_string()),
    "binary": lambda: pa.array([str(k).encode() for k in IDS], pa.binary()),
    "dictionary": lambda: pa.array([str(k) for k in IDS]).dictionary_encode(),
    "dictionary of views": lambda: pa.DictionaryArray.from_arrays(
        pa.array([0, 1, 2]), pa.array([str(k) for k in IDS], pa.string_view())
    ),
    "dictionary of numbers": lambda: pa.array(IDS).dictionary_encode(),
    "uint64": lambda: pa.array(IDS, pa.uint64()),
}


@pytest.mark.parametrize("kind", ARROW_IDS)
@pytest.mark.parametrize("form", ["parquet", "feather", "stream"])
def test_ids_of_any_exact_type_of_arrow(tmp_path: Path, kind: str, form: str) -> None:
    """Whatever pandas, polars, DuckDB and Spark make of a column of whole numbers."""
    table = pa.table({"item_id": ARROW_IDS[kind](), "embedding": LISTS})
    path = tmp_path / f"x.{form}"
    if form == "parquet":
        try:
            pq.write_table(table, path)
        except pa.ArrowNotImplementedError as error:
            pytest.skip(f"pyarrow does not write {kind} as parquet: {error}")
    elif form == "feather":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    else:
        path = path.with_suffix(".arrow")
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    same(read_vectors(path))


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (pa.array([1.5, 2, 3]), r"item_id of type double: 1\.5 \(x\.parquet, row 0\)"),
        (pa.array([1, 2, 2.0**53]), r"item_id of type double: 9007199254740992"),
        (pa.array([True, False, True]), "ids of type bool in item_id"),
        (pa.array([[1], [2], [3]]), r"ids of type list<.*> in item_id"),
        (pa.array([1, 2, 3], pa.timestamp("s")), r"ids of type timestamp\[ms\] in item_id"),
        (pa.array([decimal.Decimal("1.50")] * 3), r"item_id of type decimal128"),
        (pa.array([b"\xff\xfe", b"a", b"b"], pa.binary()), "item_id of type binary holds items that are no text"),
        (pa.array([1, None, 3]), "row 1: no id"),
        (pa.array([1, float("nan"), 3]), "row 1: no id"),
    ],
)
def test_ids_of_another_type_name_column_and_type(tmp_path: Path, ids: Any, said: str) -> None:
    """The column with an item's name decides, so nothing else is taken instead."""
    path = parquet(tmp_path / "x.parquet", item_id=ids, embedding=LISTS, sku=["a", "b", "c"])
    with pytest.raises(EmbeddingError, match=said):
        read_vectors(path)


def test_indices_that_lead_nowhere_are_an_error(tmp_path: Path) -> None:
    """Arrow's files are not checked when they are opened: such a one killed the process."""
    ids = pa.DictionaryArray.from_arrays(pa.array([0, 1 << 20, 1], pa.int32()), pa.array(["a", "b"]), safe=False)
    offsets = pa.py_buffer(np.array([0, 4, 1 << 28, 12], np.int32))
    vectors = pa.Array.from_buffers(pa.list_(pa.float32()), 3, [None, offsets], children=[LISTS.values])
    for number, columns in enumerate(({"item_id": ids, "emb": LISTS}, {"item_id": pa.array(IDS), "emb": vectors})):
        table = pa.table(columns)
        path = tmp_path / f"{number}.arrow"
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            try:
                writer.write_table(table)
            except (pa.ArrowException, IndexError) as error:
                pytest.skip(f"pyarrow does not write it: {error}")
        with pytest.raises(EmbeddingError, match=r"arrow' cannot be read as a file of Arrow"):
            read_vectors(path)


def test_ids_beyond_64_bits_stay_themselves(tmp_path: Path) -> None:
    """As texts, exactly."""
    ids = [1, 2**63, 2**64 - 1]
    wanted = [str(number) for number in ids]
    same(read_vectors(parquet(tmp_path / "x.parquet", id=pa.array(ids, pa.uint64()), emb=LISTS)), wanted)
    np.savez(tmp_path / "x.npz", id=np.array(ids, np.uint64), emb=MATRIX)
    same(read_vectors(tmp_path / "x.npz"), wanted)


def test_the_index_of_pandas(tmp_path: Path) -> None:
    """A named range lies in the metadata alone; an index without a name is taken, and said."""
    described = {"index_columns": [{"kind": "range", "name": "item_id", "start": 5, "stop": 11, "step": 2}]}
    table = pa.table({"embedding": LISTS}).replace_schema_metadata({"pandas": json.dumps(described)})
    pq.write_table(table, tmp_path / "x.parquet")
    same(read_vectors(tmp_path / "x.parquet"), [5, 7, 9])


def test_an_index_without_a_name_is_taken_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where nothing else is named as items are."""
    path = parquet(tmp_path / "x.parquet", embedding=LISTS, __index_level_0__=IDS)
    with caplog.at_level(logging.WARNING, "semid_dataset"):
        same(read_vectors(path))
    assert "the index that pandas wrote without a name" in caplog.text
    same(read_vectors(parquet(tmp_path / "y.parquet", embedding=LISTS, __index_level_0__=[4, 5, 6], asin=IDS)))


@pytest.mark.parametrize("kind", [np.float64, np.uint64, np.int32, np.str_, np.bytes_])
def test_arrays_of_ids_of_any_exact_type(tmp_path: Path, kind: Any) -> None:
    """In archives and in lists."""
    numbers = [27, 1000, 7]
    array = np.array(numbers).astype(kind)
    np.savez(tmp_path / "x.npz", ids=array, emb=MATRIX)
    same(read_vectors(tmp_path / "x.npz"), numbers)
    np.save(tmp_path / "ids.npy", array.reshape(-1, 1))
    assert read_items(tmp_path / "ids.npy").tolist() == numbers  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "bad", [np.array([1.5, 2, 3]), np.array([1, 2, np.nan]), np.zeros(3, "M8[s]"), np.ones(3, bool)]
)
def test_arrays_that_are_no_ids(tmp_path: Path, bad: Any) -> None:
    """The type is named."""
    np.savez(tmp_path / "x.npz", ids=bad, emb=MATRIX)
    with pytest.raises(EmbeddingError, match=rf"ids.*{bad.dtype.name.split('[')[0]}"):
        read_vectors(tmp_path / "x.npz")


def test_pickles_of_ones_own(tmp_path: Path) -> None:
    """With the width of the first vector, and ids as numpy and pandas make them."""
    for keys, wanted in [
        (IDS, IDS),
        ([float(k) for k in IDS], IDS),
        ([np.float64(k) for k in IDS], IDS),
        ([np.str_(k) for k in IDS], IDS),
        ([np.str_("é"), "b", np.str_("c")], ["é", "b", "c"]),
    ]:
        for protocol in (2, 3, 4, 5):
            (tmp_path / "x.pkl").write_bytes(pickle.dumps(dict(zip(keys, MATRIX, strict=True)), protocol))
            same(read_vectors(tmp_path / "x.pkl"), wanted)
    assert read_vectors(tmp_path / "x.pkl", "rows")[0].tolist() == [0, 1, 2]  # type: ignore[union-attr]
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({1: MATRIX[0], 2: [1.0, 2.0]}, 4))
    with pytest.raises(EmbeddingError, match=r"x\.pkl', item 2: a list instead of an array"):
        read_vectors(tmp_path / "x.pkl")


# Ids that are nearly numbers.

OTHERWISE: dict[str, str] = {
    "np.savetxt": "2.000000002700000000e+10\n1.000000000000000000e+03\n7.000000000000000000e+00\n",
    "floats": "20000000027.0\n1000.0\n7.0\n",
    "one of them": "20000000027\n1000.0\n7\n",
    "trailing blanks": "20000000027 \n1000 \n7 \n",
    "tabs": "20000000027\t\n1000\t\n7\t\n",
    "in quotation marks": '"20000000027"\n"1000"\n"7"\n',
    "signs": "+20000000027\n+1000\n+7\n",
    "%g": "20000000027\n1e+03\n7\n",
    "no-break spaces": "20000000027\u00a0\n1000\n7\n",
}


@pytest.mark.parametrize("kind", OTHERWISE)
def test_numbers_in_another_spelling_are_numbers_and_said(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Where all of them are whole numbers; in one line."""
    np.save(tmp_path / "x.npy", MATRIX)
    (tmp_path / "ids.txt").write_text(OTHERWISE[kind], encoding="utf-8")
    with caplog.at_level(logging.WARNING, "semid_dataset"):
        same(read_vectors(tmp_path / "x.npy", tmp_path / "ids.txt"))
    (record,) = caplog.records
    assert "ids.txt" in record.getMessage()
    assert "read as numbers" in record.getMessage()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1000.0\nsku\n7\n", r"ids\.txt', line 1: item '1000\.0' is a whole number.*'sku' \(.*line 2\)"),
        ("1.5\n1000.0\n7\n", r"line 2: item '1000\.0'.*'1\.5'"),
        ("1.0e+16\n1000.0\n7\n", r"line 2: item '1000\.0'.*'1\.0e\+16'"),
        ("a \nb\nc\n", r"ids\.txt', line 1: 'a ' is no item"),
        ('b\n"a"\nc\n', r"line 2: '\"a\"' is no item"),
        ("1\ttitle\n2\ttitle\n3\ttitle\n", r"line 1: '1\\ttitle' is no item"),
        ("1\r2\r3\r", r"line 1: '1\\r2\\r3' is no item"),
        ("1\n\n3\n", r"line 2: an empty line"),
        ("item_id\n1\n2\n3\n", r"'item_id', looks like the heading of a column"),
    ],
)
def test_what_is_neither_is_refused_by_line(tmp_path: Path, text: str, said: str) -> None:
    """Never kept as keys that nobody looks up."""
    np.save(tmp_path / "x.npy", MATRIX)
    (tmp_path / "ids.txt").write_bytes(text.encode())
    with pytest.raises(EmbeddingError, match=said):
        read_vectors(tmp_path / "x.npy", tmp_path / "ids.txt")


@pytest.mark.parametrize(
    "names", [["007", "08", "1"], ["12e5", "3e4", "ff01"], ["v1.2", "a b", "c"], ["1.5", "2.5", "x"]]
)
def test_names_that_look_like_numbers_stay_names(tmp_path: Path, names: list[str]) -> None:
    """Zeros in front, hexadecimal codes, versions."""
    (tmp_path / "ids.txt").write_text("\n".join(names))
    assert read_items(tmp_path / "ids.txt") == names


def test_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    """Not at what Unicode calls the end of a line."""
    names = ["a\u0085b", "c\u2028d", "e\x0bf", "g\x1ch"]
    (tmp_path / "ids.txt").write_bytes("\r\n".join(names).encode())
    assert read_items(tmp_path / "ids.txt") == names


@pytest.mark.parametrize("form", ["x.jsonl", "x.parquet"])
def test_texts_of_numbers_in_another_spelling(tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture) -> None:
    """In columns too; some of them alone are refused with the place of the first."""
    write = lines if form == "x.jsonl" else parquet
    embedding = MATRIX.tolist() if form == "x.jsonl" else LISTS
    path = write(tmp_path / form, item_id=["20000000027.0", "1000.0", "7"], embedding=embedding)
    with caplog.at_level(logging.WARNING, "semid_dataset"):
        same(read_vectors(path))
    assert "read as numbers" in caplog.text
    write(path, item_id=["7", "1000.0", "sku"], embedding=embedding)
    with pytest.raises(EmbeddingError, match=rf"{form}, (row 1|line 2): item '1000\.0'.*'sku'"):
        read_vectors(path)


def test_floats_in_json_are_ids_where_they_are_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As pandas writes a column in which one was missing once."""
    (tmp_path / "x.jsonl").write_text(
        "".join(f'{{"anonymous_cid": {k}.0, "emb": {row}}}\n' for k, row in zip(IDS, MATRIX.tolist(), strict=True))
    )
    with caplog.at_level(logging.WARNING, "semid_dataset"):
        same(read_vectors(tmp_path / "x.jsonl"))
    assert caplog.text.count("read as numbers") == 1
    (tmp_path / "ids.json").write_text("[20000000027.0, 1000.0, 7]")
    assert read_items(tmp_path / "ids.json").tolist() == IDS  # type: ignore[union-attr]
    for bad in ("1.5", "9007199254740992.0", "true", "null", "[1]"):
        (tmp_path / "x.jsonl").write_text(f'{{"item_id": {bad}, "emb": [1, 2]}}\n')
        with pytest.raises(EmbeddingError, match=r"x\.jsonl', line 1: no id under item_id"):
            read_vectors(tmp_path / "x.jsonl")


# Files that are something else.


def torch_file() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02.")
    return buffer.getvalue()


def zip_file() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("vectors.csv", b"1,2")
    return buffer.getvalue()


FOREIGN: dict[str, tuple[bytes, str]] = {
    "Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
        "pointer of Git LFS.*git lfs pull",
    ),
    "git-annex": (b"/annex/objects/SHA256E-s12--0.parquet\n", "pointer of git-annex"),
    "HTML": (b"<!DOCTYPE html>\n<html>404</html>", "an HTML page"),
    "XML": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML document"),
    "zip": (zip_file(), "a zip archive.*unzip"),
    "torch": (torch_file(), r"a file of torch\.save.*np\.savez"),
    "zlib": (zlib.compress(b"1,2,3\n" * 99), "compressed with zlib"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 99, "an HDF5 file"),
    "SQLite": (b"SQLite format 3\0" + b"\0" * 99, "an SQLite database"),
    "UTF-16": ("1,2".encode("utf-16"), "UTF-16.*iconv"),
    "zeros": (b"\0" * 4096, "nothing but zero bytes"),
    "a text": (b"hello", "no kind that embeddings are read from|cannot be read|no safetensors|no JSON|no id"),
    "nothing": (b"", "is empty: 0 bytes|no rows"),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("ending", [".npy", ".npz", ".parquet", ".jsonl", ".safetensors", ".pkl", ".arrow", ""])
def test_a_file_that_is_something_else_is_named(tmp_path: Path, kind: str, ending: str) -> None:
    """Whatever its ending says; and what to do about it."""
    content, said = FOREIGN[kind]
    (tmp_path / f"x{ending}").write_bytes(content)
    with pytest.raises(EmbeddingError, match=said):
        read_vectors(tmp_path / f"x{ending}", "rows")
    if kind not in {"a text", "nothing"}:
        (tmp_path / "ids.txt").write_bytes(content)
        with pytest.raises(EmbeddingError, match=said):
            read_items(tmp_path / "ids.txt")


def test_first_bytes_decide_over_endings(tmp_path: Path) -> None:
    """An array under .pkl, parquet without an ending, JSON lines called .parquet."""
    np.save(tmp_path / "x.npy", MATRIX)
    (tmp_path / "x.npy").rename(tmp_path / "x.pkl")
    assert np.array_equal(read_vectors(tmp_path / "x.pkl", "rows")[1], MATRIX)
    with pytest.raises(EmbeddingError, match="holds vectors but no items"):
        read_vectors(tmp_path / "x.pkl")
    same(read_vectors(parquet(tmp_path / "part-00000", id=IDS, emb=LISTS)))
    same(read_vectors(lines(tmp_path / "x.parquet", id=IDS, emb=MATRIX.tolist())))


PACK: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: bytes(pa.compress(data, codec="zstd", asbytes=True)),
}


@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize("form", ["jsonl", "parquet", "npy", "npz", "pkl"])
@pytest.mark.parametrize("says_so", [True, False])
def test_plain_compression_is_read(tmp_path: Path, ending: str, form: str, says_so: bool) -> None:
    """Whether its ending says so or not."""
    plain = tmp_path / f"x.{form}"
    match form:
        case "jsonl":
            lines(plain, id=IDS, emb=MATRIX.tolist())
        case "parquet":
            parquet(plain, id=IDS, emb=LISTS)
        case "npz":
            np.savez(plain, id=np.array(IDS), emb=MATRIX)
        case "pkl":
            plain.write_bytes(pickle.dumps(dict(zip(IDS, MATRIX, strict=True)), 4))
        case _:
            np.save(plain, MATRIX)
    packed = tmp_path / (f"y.{form}.{ending}" if says_so else f"y.{form}")
    packed.write_bytes(PACK[ending](plain.read_bytes()))
    if form != "npy":
        same(read_vectors(packed))
    (tmp_path / f"ids.txt.{ending}").write_bytes(PACK[ending]("\n".join(map(str, IDS)).encode()))
    same(read_vectors(packed, tmp_path / f"ids.txt.{ending}"))
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(EmbeddingError, match=r"compressed with .* and damaged|became shorter|cannot be read"):
        read_vectors(packed, "rows")


def test_several_members_of_gzip_are_one_file(tmp_path: Path) -> None:
    """As parts that were put together with cat."""
    rows = lines(tmp_path / "x.jsonl", id=IDS, emb=MATRIX.tolist()).read_bytes().splitlines(keepends=True)
    (tmp_path / "x.jsonl.gz").write_bytes(b"".join(map(gzip.compress, rows)))
    same(read_vectors(tmp_path / "x.jsonl.gz"))


def test_a_folder_of_parts_is_read(tmp_path: Path) -> None:
    """As Spark lays it out: markers, checksums, `name=value` folders, one part compressed."""
    for number, folder in enumerate(["dt=2026-01-01", "dt=2026-01-02", "dt=2026-01-03"]):
        (tmp_path / "x" / folder).mkdir(parents=True)
        path = tmp_path / "x" / folder / f"part-0000{number}-c000.snappy.parquet"
        parquet(path, item_id=IDS[number : number + 1], features=LISTS[number : number + 1])
        (path.parent / f".{path.name}.crc").write_bytes(b"crc")
    (tmp_path / "x" / "_SUCCESS").write_bytes(b"")
    last = tmp_path / "x" / "dt=2026-01-03" / "part-00002-c000.snappy.parquet"
    last.with_suffix(".parquet.gz").write_bytes(gzip.compress(last.read_bytes()))
    last.unlink()
    same(read_vectors(tmp_path / "x"))
    (tmp_path / "y").mkdir()
    for number, row in enumerate(MATRIX.tolist()):
        lines(tmp_path / "y" / f"part-{number}.json", item_id=IDS[number : number + 1], features=[row])
    same(read_vectors(tmp_path / "y"))
    assert read_vectors(tmp_path / "y", "rows")[0].tolist() == [0, 1, 2]  # type: ignore[union-attr]
    (tmp_path / "z").mkdir()
    with pytest.raises(NoEmbeddingsError, match="a folder without files of embeddings"):
        read_vectors(tmp_path / "z")
    (tmp_path / "z" / "a=b").symlink_to(tmp_path / "z")
    with pytest.raises(EmbeddingError, match="folders deep"):
        read_vectors(tmp_path / "z")


VECTORS: dict[str, Callable[[], Any]] = {
    "list of doubles": lambda: pa.array(MATRIX.tolist(), pa.list_(pa.float64())),
    "large list": lambda: pa.array(MATRIX.tolist(), pa.large_list(pa.float32())),
    "halves": lambda: pa.array(list(MATRIX.astype(np.float16)), pa.list_(pa.float16())),
    "fixed size": lambda: pa.array(MATRIX.tolist(), pa.list_(pa.float32(), 4)),
    "[1, dim]": lambda: pa.array([[row] for row in MATRIX.tolist()], pa.list_(pa.list_(pa.float32()))),
    "[1, dim] of fixed size": lambda: pa.array(
        [[row] for row in MATRIX.tolist()], pa.list_(pa.list_(pa.float32(), 4), 1)
    ),
    "tensors": lambda: pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.float32(), [4]), pa.array(MATRIX.tolist(), pa.list_(pa.float32(), 4))
    ),
    "VectorUDT": lambda: pa.array(
        [{"type": 1, "size": None, "indices": None, "values": row} for row in MATRIX.tolist()], UDT
    ),
}
UDT = pa.struct(
    [("type", pa.int8()), ("size", pa.int32()), ("indices", pa.list_(pa.int32())), ("values", pa.list_(pa.float64()))]
)


@pytest.mark.parametrize("kind", VECTORS)
def test_vectors_of_any_type_of_arrow(tmp_path: Path, kind: str) -> None:
    """Read, with the numbers that were written."""
    same(read_vectors(parquet(tmp_path / "x.parquet", item_id=IDS, features=VECTORS[kind]())))


def test_vectors_that_are_none_are_refused_by_name(tmp_path: Path) -> None:
    """Sparse, texts, bytes, several rows an item."""
    sparse = pa.array([{"type": 0, "size": 4, "indices": [1], "values": [1.0]}] * 3, UDT)
    for column, said in [
        (sparse, "sparse vectors in embedding .*VectorUDT.*vector_to_array"),
        (pa.array(["[1, 2]"] * 3), "vectors of type string in embedding"),
        (pa.array([b"\0" * 16] * 3), "vectors of type binary in embedding"),
        (pa.array([[[1.0], [2.0]]] * 3), "row 0: 2 lists of numbers instead of one"),
        (pa.array([[1.0], None, [2.0]]), "row 1: 0 numbers instead of 1"),
        (pa.array([[], [1.0], [2.0]], pa.list_(pa.float32())), "row 0: no numbers under embedding"),
        (pa.array([None, None, None], pa.list_(pa.float32())), "row 0: no numbers under embedding"),
    ]:
        with pytest.raises(EmbeddingError, match=said):
            read_vectors(parquet(tmp_path / "x.parquet", item_id=IDS, embedding=column))


def safetensors(path: Path, **arrays: tuple[str, Any]) -> Path:
    """Write arrays under the types that are named, bytes as they are."""
    header: dict[str, Any] = {}
    data = b""
    for name, (kind, array) in arrays.items():
        header[name] = {
            "dtype": kind,
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + array.nbytes],
        }
        data += array.tobytes()
    written = json.dumps(header).encode()
    path.write_bytes(len(written).to_bytes(8, "little") + written + data)
    return path


@pytest.mark.parametrize("kind", ["F64", "F32", "F16", "BF16", "I8", "U8", "I16", "U16", "I32", "U64"])
def test_numbers_of_any_type_in_safetensors(tmp_path: Path, kind: str) -> None:
    """With the numbers that were written, also as [1, dim] a row."""
    numbers = MATRIX * 8
    array = (
        (numbers.view(np.uint32) >> 16).astype(np.uint16)
        if kind == "BF16"
        else numbers.astype({"F": "f", "I": "i", "U": "u"}[kind[0]] + str(int(kind[1:]) // 8))
    )
    path = tmp_path / "x.safetensors"
    for shaped in (array, array.reshape(3, 1, 4)):
        items, found = read_vectors(safetensors(path, embeddings=(kind, shaped), ids=("I64", np.array(IDS))))
        assert items.tolist() == IDS  # type: ignore[union-attr]
        np.testing.assert_array_equal(found, numbers)


def test_types_that_are_not_read_are_named(tmp_path: Path) -> None:
    """Instead of "there is nothing"."""
    path = safetensors(tmp_path / "x.safetensors", embeddings=("F8_E4M3", np.zeros((3, 4), np.uint8)))
    with pytest.raises(EmbeddingError, match="F8_E4M3"):
        read_vectors(path, "rows")
    for lone in ("I64", "U8"):
        codes = np.ones((3, 4), {"I64": np.int64, "U8": np.uint8}[lone])
        with pytest.raises(EmbeddingError, match=rf"There is: codes \({lone}.*--vectors"):
            read_vectors(safetensors(path, codes=(lone, codes)), "rows")


def test_true_among_numbers_is_no_number(tmp_path: Path) -> None:
    """Nor is a text, null, or nothing."""
    for numbers, said in [
        ("[1, true]", "true or false among its numbers"),
        ('[1, "2"]', "not only numbers"),
        ("[1, null]", "not only numbers"),
        ("[]", "no numbers"),
        ('"[1, 2]"', "vectors of type str"),
        ("[[1, 2], [3, 4]]", "not only numbers|lists of numbers"),
    ]:
        (tmp_path / "x.jsonl").write_text(f'{{"id": 1, "emb": {numbers}}}\n')
        with pytest.raises(EmbeddingError, match=said):
            read_vectors(tmp_path / "x.jsonl")


def test_one_row_each_in_json_and_arrays(tmp_path: Path) -> None:
    """[1, dim] a row is a vector."""
    same(read_vectors(lines(tmp_path / "x.jsonl", id=IDS, embedding=[[row] for row in MATRIX.tolist()])))
    np.savez(tmp_path / "x.npz", id=np.array(IDS), emb=MATRIX[:, None])
    same(read_vectors(tmp_path / "x.npz"))
    np.save(tmp_path / "x.npy", MATRIX[:, None])
    assert np.array_equal(read_vectors(tmp_path / "x.npy", "rows")[1], MATRIX)


@pytest.mark.parametrize("layout", ["columns first", "big endian", "doubles", "integers"])
def test_arrays_in_any_layout(tmp_path: Path, layout: str) -> None:
    """Row by row or column by column."""
    array = {
        "columns first": np.asfortranarray(MATRIX),
        "big endian": MATRIX.astype(">f4"),
        "doubles": MATRIX.astype(np.float64),
        "integers": (MATRIX * 8).astype(np.int16),
    }[layout]
    np.save(tmp_path / "x.npy", array)
    found = read_vectors(tmp_path / "x.npy", "rows")[1]
    np.testing.assert_array_equal(found, MATRIX * 8 if layout == "integers" else MATRIX)
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-4])
    with pytest.raises(EmbeddingError, match=r"header announces .* bytes"):
        read_vectors(tmp_path / "x.npy", "rows")


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    """As a part of another system is called."""
    folder = tmp_path / "x"
    folder.mkdir()
    path = Path(os.fsdecode(os.fsencode(folder) + b"/part-\xcc\xd8\xd5\xf7.json"))
    lines(path, item_id=IDS, emb=MATRIX.tolist())
    same(read_vectors(folder))
