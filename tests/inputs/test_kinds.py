"""
What people's tools write, and what used to be read otherwise than it was meant, or left out without a word.

Each is a kind; the cells that a tool itself writes are in benchmarks/inputs.py.
"""

import decimal
import gzip
import io
import json
import os
import pickle
import struct
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semid_dataset.errors import EmbeddingError, NoEmbeddingsError
from semid_dataset.inputs.discover import find_sources
from semid_dataset.inputs.matrix import read_items, read_vectors
from semid_dataset.inputs.read import read_sources
from semid_dataset.inputs.titles import read_titles

N, DIM = 6, 4
VECTORS = np.arange(N * DIM, dtype=np.float32).reshape(N, DIM) / 8 - 1
LISTS = VECTORS.tolist()
IDS = [20_000_000_027, 1000, 7, 8, 9, 2**53 + 1]
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
FLOATS = pa.list_(pa.float32())


def table(ids: Any = None, vectors: Any = None, **more: Any) -> Any:
    ids = IDS if ids is None else ids
    return pa.table({"item_id": ids, **more, "embedding": pa.array(LISTS, FLOATS) if vectors is None else vectors})


def parquet(path: Path, made: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(made, path)
    return path


def arrow(path: Path, made: Any) -> Path:
    with pa.ipc.new_file(str(path), made.schema) as writer:
        writer.write_table(made)
    return path


def lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


ROWS = [{"item_id": key, "embedding": row} for key, row in zip(IDS, LISTS, strict=True)]


# --- ids that are not what they look like -------------------------------------------------------


@pytest.mark.parametrize(("kind", "largest"), [(np.float32, 2**24), (np.float16, 2**11)])
def test_narrow_floats_are_ids_only_as_far_as_they_are_exact(tmp_path: Path, kind: Any, largest: int) -> None:
    """As float32, 20000000027 is 20000000000: another item."""
    good = np.array([largest - 1, 5, 4, 3, 2, 1], kind)
    keys, _ = read_vectors(parquet(tmp_path / "x.parquet", table(pa.array(good))))
    assert np.asarray(keys).tolist() == good.tolist()
    path = parquet(tmp_path / "y.parquet", table(pa.array(np.array([largest, 5, 4, 3, 2, 1], kind))))
    with pytest.raises(
        EmbeddingError, match=rf"such floats are ids where all are whole and below 2\^{largest.bit_length() - 1}"
    ):
        read_vectors(path)


def test_bfloat16_holds_no_ids(tmp_path: Path) -> None:
    """Whole numbers beyond 256 have become others; so with 8-bit floats."""
    torch = pytest.importorskip("torch")
    save = pytest.importorskip("safetensors.torch").save_file
    ids = torch.arange(N).bfloat16()
    save({"emb": torch.from_numpy(VECTORS), "ids": ids}, tmp_path / "x.safetensors")
    with pytest.raises(EmbeddingError, match=r"ids \(BF16\)' holds items as BF16"):
        read_vectors(tmp_path / "x.safetensors")


def test_uuids_are_their_texts(tmp_path: Path) -> None:
    """DuckDB's UUID, and Arrow's."""
    if not hasattr(pa, "uuid"):
        pytest.skip("this pyarrow has no type for UUIDs")
    ids = [uuid.UUID(int=k) for k in range(N)]
    column = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([one.bytes for one in ids], pa.binary(16)))
    for path in (parquet(tmp_path / "x.parquet", table(column)), arrow(tmp_path / "x.arrow", table(column))):
        assert read_vectors(path)[0] == [str(one) for one in ids]


@pytest.mark.parametrize("kind", ["json_", "bool8"])
def test_types_that_mean_something_else_than_they_are_stored_as_are_no_ids(tmp_path: Path, kind: str) -> None:
    """A period of pandas is stored as a number of months, a JSON text with its quotation marks."""
    if not hasattr(pa, kind):
        pytest.skip(f"this pyarrow has no {kind}")
    storage = pa.array([f'"a{k}"' for k in range(N)]) if kind == "json_" else pa.array([0, 1] * 3, pa.int8())
    column = pa.ExtensionArray.from_storage(getattr(pa, kind)(), storage)
    with pytest.raises(EmbeddingError, match="has ids of type extension"):
        read_vectors(arrow(tmp_path / "x.arrow", table(column)))


def test_raw_bytes_are_no_ids(tmp_path: Path) -> None:
    """numpy calls them void."""
    np.savez(tmp_path / "x.npz", item_id=np.zeros(N, "V4"), embedding=VECTORS)
    with pytest.raises(EmbeddingError, match="V4; wanted: whole numbers or strings"):
        read_vectors(tmp_path / "x.npz")


def test_whole_numbers_beyond_64_bits_are_read_with_any_parser(tmp_path: Path) -> None:
    """orjson makes floats of them, which are none."""
    ids = [2**64 + k for k in range(N)]
    path = tmp_path / "x.jsonl"
    path.write_bytes(lines(*({"item_id": key, "embedding": row} for key, row in zip(ids, LISTS, strict=True))))
    assert read_vectors(path)[0] == [str(key) for key in ids]


@pytest.mark.parametrize("form", ["parquet", "npz", "jsonl"])
def test_blanks_around_names_are_said(tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture) -> None:
    """As columns of fixed width have them: who looks such an item up without them finds nothing."""
    ids = [" a", "b", "c", "d", "e", "f"]
    path = tmp_path / f"x.{form}"
    if form == "parquet":
        parquet(path, table(ids))
    elif form == "npz":
        np.savez(path, item_id=np.array(ids), embedding=VECTORS)
    else:
        path.write_bytes(lines(*({"item_id": key, "embedding": row} for key, row in zip(ids, LISTS, strict=True))))
    assert read_vectors(path)[0] == ids
    assert "blanks stand around ids" in caplog.text


# --- which column -------------------------------------------------------------------------------


def test_items_come_from_one_column_in_all_rows_and_parts(tmp_path: Path) -> None:
    """Rows that have an asin, and rows that have an item_id, would become one set of two kinds of ids."""
    path = tmp_path / "x.jsonl"
    path.write_bytes(lines(ROWS[0], {"asin": "B0", "embedding": LISTS[1]}))
    with pytest.raises(EmbeddingError, match=r"line 2' holds items in asin, but 'x.jsonl, line 1' in item_id"):
        read_vectors(path)
    parquet(tmp_path / "p" / "a.parquet", table().slice(0, 3))
    parquet(tmp_path / "p" / "b.parquet", pa.table({"asin": ["u", "v", "w"], "embedding": pa.array(LISTS[3:], FLOATS)}))
    with pytest.raises(EmbeddingError, match=r"b.parquet' holds items in asin, but .*a.parquet' in item_id"):
        read_vectors(tmp_path / "p")


def test_in_a_data_directory_rows_of_another_column_are_bad_rows(tmp_path: Path) -> None:
    """They are counted, and the first is named."""
    folder = tmp_path / "creative_emb" / "emb_82_4"
    folder.mkdir(parents=True)
    (folder / "part-0").write_bytes(lines(ROWS[0], {"asin": "B0", "embedding": LISTS[1]}, ROWS[2]))
    found = read_sources(find_sources(tmp_path, ["82"]))
    assert np.asarray(found.items).tolist() == sorted([IDS[0], IDS[2]])
    assert found.bad_rows == 1


def test_keys_that_stand_twice_in_an_object_are_an_error(tmp_path: Path) -> None:
    """Parsers keep the last one without a word."""
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"item_id": 1, "item_id": 2, "embedding": [1, 2]}\n')
    with pytest.raises(EmbeddingError, match="line 1: item_id stands in it twice"):
        read_vectors(path)
    path.write_bytes(lines(ROWS[0]) + b'{"item_id": 1, "embedding": [1, 2, 3, 4], "embedding": [9, 9, 9, 9]}\n')
    with pytest.raises(EmbeddingError, match="line 2: embedding stands in it twice"):
        read_vectors(path)
    path.write_bytes(lines({"item_id": "embedding", "embedding": [1.0, 2.0]}))
    assert read_vectors(path)[0] == ["embedding"]


def test_one_level_of_an_index_without_names_is_no_id(tmp_path: Path) -> None:
    """Two levels together name a row, and the first alone does not."""
    made = table().rename_columns(["__index_level_0__", "embedding"])
    assert read_vectors(parquet(tmp_path / "x.parquet", made))[0].tolist() == IDS  # type: ignore[union-attr]
    with pytest.raises(EmbeddingError, match="holds vectors but no items"):
        read_vectors(parquet(tmp_path / "y.parquet", made.append_column("__index_level_1__", pa.array(IDS))))


def test_items_in_the_names_of_folders_are_named(tmp_path: Path) -> None:
    """A table that is partitioned by its items; a column of another id beside would be taken otherwise."""
    for number, more in enumerate(({}, {"id": pa.array(["u"])})):
        root = tmp_path / str(number)
        for key, row in zip(IDS, LISTS, strict=True):
            made = pa.table({**more, "embedding": pa.array([row], FLOATS)})
            parquet(root / f"item_id={key}" / "part.parquet", made)
        with pytest.raises(EmbeddingError, match=r"names of folders \(item_id=\.\.\.\)"):
            read_vectors(root)


# --- what goes on, and what lies beside ---------------------------------------------------------


def _npy_twice(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, VECTORS[:3])
        np.save(file, VECTORS[3:])


def _stream_twice(path: Path) -> None:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table().schema) as writer:
        writer.write_table(table())
    path.write_bytes(2 * sink.getvalue())


def _pickle_twice(path: Path) -> None:
    halves = (dict(zip(IDS[a : a + 3], VECTORS[a : a + 3], strict=True)) for a in (0, 3))
    path.write_bytes(b"".join(pickle.dumps(half, 4) for half in halves))


def _tensors_and_more(path: Path) -> None:
    header = json.dumps({"emb": {"dtype": "F32", "shape": [N, DIM], "data_offsets": [0, 4 * N * DIM]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + VECTORS.tobytes() + b"x" * 8)


def _npz_member_goes_on(path: Path) -> None:
    array = io.BytesIO()
    np.save(array, VECTORS)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("embedding.npy", array.getvalue() + b"x" * 8)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("x.npy", _npy_twice),
        ("x.arrow", _stream_twice),
        ("x.pkl", _pickle_twice),
        ("x.safetensors", _tensors_and_more),
        ("x.npz", _npz_member_goes_on),
    ],
)
def test_a_file_that_goes_on_after_its_end_is_refused(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    """Two saved into one file: the second half of the items would be missing without a word."""
    write(tmp_path / name)
    with pytest.raises(EmbeddingError, match="goes on"):
        read_vectors(tmp_path / name, "rows" if name != "x.pkl" else None)


def test_line_feeds_after_a_pickle_are_nothing(tmp_path: Path) -> None:
    """Some editors and shells add one."""
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(dict(zip(IDS, VECTORS, strict=True)), 4) + b"\n")
    assert read_vectors(path)[0].tolist() == IDS  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("mark", "what"),
    [
        ("_delta_log/0.json", "a Delta table"),
        (".hoodie/x", "a Hudi table"),
        ("metadata/v1.metadata.json", "an Iceberg table"),
        ("_versions/1.manifest", "a data set of Lance"),
        (".zarray", "a Zarr store"),
        ("zarr.json", "a Zarr store"),
        ("dataset_dict.json", "several splits"),
    ],
)
def test_tables_of_engines_are_named(tmp_path: Path, mark: str, what: str) -> None:
    """Parts that were removed from such a table lie beside those that count."""
    parquet(tmp_path / "x" / "part-0.parquet", table())
    (tmp_path / "x" / mark).parent.mkdir(exist_ok=True)
    (tmp_path / "x" / mark).write_text("{}")
    with pytest.raises(EmbeddingError, match=f"is {what}"):
        read_vectors(tmp_path / "x")


def test_folders_beside_parts_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Those that no engine lays out are not read; where there is nothing else, they are named."""
    parquet(tmp_path / "x" / "a.parquet", table().slice(0, 3))
    parquet(tmp_path / "x" / "more" / "b.parquet", table().slice(3, 3))
    parquet(tmp_path / "x" / "_temporary" / "c.parquet", table())
    assert len(read_vectors(tmp_path / "x")[0]) == 3
    assert "were not read: more/" in caplog.text
    assert "_temporary" not in caplog.text
    parquet(tmp_path / "y" / "train" / "a.parquet", table())
    with pytest.raises(NoEmbeddingsError, match="There is: train/; name the folder"):
        read_vectors(tmp_path / "y")


def test_leftovers_are_no_parts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Half-written files and copies, what datasets computed once, a README."""
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "part-0").write_bytes(lines(*ROWS))
    for name in ("part-1.tmp", "part-0~", "part-0.bak", "README.md", "part-2.crdownload"):
        (folder / name).write_bytes(lines(ROWS[0])[:-9])
    assert read_vectors(folder)[0].tolist() == IDS  # type: ignore[union-attr]
    assert "README.md, part-0.bak, part-0~, part-1.tmp, part-2.crdownload" in caplog.text
    kept = tmp_path / "y"
    kept.mkdir()
    arrow(kept / "data-00000.arrow", table())
    arrow(kept / "cache-1234.arrow", table())
    assert read_vectors(kept)[0].tolist() == IDS  # type: ignore[union-attr]
    assert "cache-1234.arrow" in caplog.text


def test_empty_parts_of_json_lines_are_passed_over_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Spark writes one for a partition without rows; an empty part of parquet is a broken one."""
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "part-0.json").touch()
    (folder / "part-1.json").write_bytes(lines(*ROWS))
    assert read_vectors(folder)[0].tolist() == IDS  # type: ignore[union-attr]
    assert "were not read: part-0.json" in caplog.text
    parquet(tmp_path / "y" / "a.parquet", table())
    (tmp_path / "y" / "b.parquet").touch()
    with pytest.raises(EmbeddingError, match=r"b\.parquet' is empty"):
        read_vectors(tmp_path / "y")


def test_a_part_whose_name_is_no_utf8_is_read_as_parquet(tmp_path: Path) -> None:
    """pyarrow takes names in UTF-8 only."""
    parquet(tmp_path / "x" / "a.parquet", table())
    os.rename(tmp_path / "x" / "a.parquet", os.fsencode(tmp_path / "x") + b"/\xc4\xe3.parquet")  # noqa: PTH104
    assert read_vectors(tmp_path / "x")[0].tolist() == IDS  # type: ignore[union-attr]


# --- what a file is -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "start", "what"),
    [
        ("x.pt", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "a file of torch.save"),
        ("x.xlsx", b"PK\x03\x04" + bytes(26) + b"[Content_Types].xml", "an Excel workbook"),
        ("x.feather", b"FEA1" + bytes(60), "a Feather file of version 1"),
        ("x.vec", b"2 3\nw 0.1 0.2 0.3\n", "a text of word2vec"),
        ("x.parquet", b"# xet version 0\n", "a pointer of Xet"),
        ("x.jsonl", b"-----BEGIN PGP MESSAGE-----\n", "encrypted"),
        ("x.jsonl", b"Salted__" + bytes(range(64)), "encrypted"),
        ("x.mat", b"MATLAB 7.3 MAT-file, Platform", "a MATLAB file"),
        ("x.jsonl.Z", b"\x1f\x9d\x90aaaa", "compressed with compress"),
        ("x.jsonl.lz", b"LZIP\x01aaaa", "compressed with lzip"),
        ("x.jsonl", '{"item_id": 1}'.encode("utf-16-le"), "text in UTF-16"),
        ("x.jsonl", '{"item_id": 1}'.encode("utf-16-be"), "text in UTF-16"),
        ("x.jsonl", '{"item_id": 1}'.encode("utf-32"), "text in UTF-32"),
        ("x.npy", b"\x93NUMPY\x04\x00" + bytes(80), r"its format is of version 4\.0"),
        ("x.json", json.dumps(ROWS).encode(), "one JSON document"),
        ("x.json", json.dumps(ROWS, indent=2).encode(), "one JSON document"),
        ("x.json", json.dumps(dict(zip("abc", LISTS, strict=False)), indent=1).encode(), "one JSON document"),
    ],
)
def test_what_is_something_else_is_named(tmp_path: Path, name: str, start: bytes, what: str) -> None:
    """And nothing of it is read."""
    (tmp_path / name).write_bytes(start)
    with pytest.raises(EmbeddingError, match=what):
        read_vectors(tmp_path / name, "rows" if name.endswith(".npy") else None)


@pytest.mark.parametrize("form", ["list", "large_list", "fixed", "list_view"])
def test_lists_of_decimals_and_of_views_are_vectors(tmp_path: Path, form: str) -> None:
    """DuckDB takes [0.5, 1.0] for decimals; pyarrow 26 gives lists of wrong offsets for those of views."""
    if form == "list_view":
        if not hasattr(pa, "list_view"):
            pytest.skip("this pyarrow has no lists of views")
        column = pa.array(LISTS, pa.list_view(pa.float32()))
        path = arrow(tmp_path / "x.arrow", table(vectors=column))
    else:
        kind = {"list": pa.list_, "large_list": pa.large_list, "fixed": lambda one: pa.list_(one, DIM)}[form]
        rows = [[decimal.Decimal(str(number)) for number in row] for row in LISTS]
        path = parquet(tmp_path / "x.parquet", table(vectors=pa.array(rows, kind(pa.decimal128(20, 5)))))
    keys, matrix = read_vectors(path)
    assert np.asarray(keys).tolist() == IDS
    assert np.array_equal(matrix, VECTORS)


@pytest.mark.parametrize("shape", [(), (1, N), (N - 1,)])
def test_items_of_another_number_than_rows_are_an_error(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Also where they are one number, or lie across."""
    np.savez(tmp_path / "x.npz", item_id=np.ones(shape, np.int64), embedding=VECTORS)
    with pytest.raises(EmbeddingError, match="They must be as many"):
        read_vectors(tmp_path / "x.npz")


# --- one reader -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".tsv", ".csv", ".parquet"])
def test_titles_may_be_compressed_or_parquet(tmp_path: Path, ending: str) -> None:
    """Whatever reads embeddings reads titles, too; what is something else is named."""
    plain = tmp_path / f"t{ending}"
    if ending == ".parquet":
        parquet(plain, pa.table({"parent_asin": ["a", "7"], "title": ["one", "two"]}))
    else:
        plain.write_text(
            {
                ".json": '{"a": "one", "7": "two"}',
                ".jsonl": '{"item_id": "a", "title": "one"}\n{"item_id": 7, "title": "two"}\n',
                ".tsv": "a\tone\n7\ttwo\n",
                ".csv": "a,one\n7,two\n",
            }[ending]
        )
    packed = tmp_path / f"t{ending}.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_titles(plain) == read_titles(packed) == {"a": "one", "7": "two"}
    plain.write_bytes("a\tone\n".encode("utf-16"))
    with pytest.raises(EmbeddingError, match=r"UTF-16|cannot be read as parquet"):
        read_titles(plain)


def test_titles_in_parquet_need_their_columns(tmp_path: Path) -> None:
    """And the error lists those that there are."""
    path = parquet(tmp_path / "t.parquet", pa.table({"a": ["x"], "b": ["y"]}))
    with pytest.raises(EmbeddingError, match="neither an item nor its title can be told from a, b"):
        read_titles(path)


def test_lists_of_items_in_archives_are_refused(tmp_path: Path) -> None:
    """One array is wanted."""
    np.savez(tmp_path / "ids.npz", np.arange(3))
    (tmp_path / "ids.npz").rename(tmp_path / "ids.npy")
    with pytest.raises(EmbeddingError, match="an archive of arrays; wanted: one array"):
        read_items(tmp_path / "ids.npy")
