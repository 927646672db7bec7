"""Parts give the rows that the reader into memory gives, each once, however they are cut."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from semid_dataset import _files as files
from semid_dataset.errors import EmbeddingError
from semid_dataset.format import tensors as container
from semid_dataset.inputs._rows import OwnRows
from semid_dataset.inputs.discover import FeatureSource, find_sources
from semid_dataset.inputs.formats import FORMATS
from semid_dataset.inputs.keys import LongNameError, as_keys, hash_items
from semid_dataset.inputs.partitions import (
    NamedItemsError,
    Stream,
    estimate,
    partitions_of,
    read_part,
)
from semid_dataset.inputs.read import read_sources
from semid_dataset.protocols import Partition

DIM = 5


def matrix(items: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((items, DIM)).astype(np.float32)


def source_of(
    data_dir: Path, form: str, ids: list[Any], vectors: NDArray[np.float32], files_: int = 3
) -> FeatureSource:
    """A feature in several files; parquet with row groups of seven."""
    folder = data_dir / "creative_emb" / (f"emb_81_{DIM}_parquet" if form == "parquet" else f"emb_81_{DIM}")
    folder.mkdir(parents=True)
    for number, rows in enumerate(np.array_split(np.arange(len(ids)), files_)):
        if form == "parquet":
            emb = pa.array(list(vectors[rows]), pa.list_(pa.float32()))
            table = pa.table({"anonymous_cid": [ids[row] for row in rows], "emb": emb})
            pq.write_table(table, folder / f"part-{number}.parquet", row_group_size=7)
        else:
            lines = [json.dumps({"anonymous_cid": ids[row], "emb": vectors[row].tolist()}) for row in rows]
            (folder / f"part-{number}").write_text("\n".join(lines))
    return find_sources(data_dir, ["81"])[0]


def split_source(source: FeatureSource, rows: int) -> list[Partition]:
    """The partitions of all files of a feature."""
    return [piece for path in source.files for piece in partitions_of(source, path, rows)[1]]


def split_array(path: Path, ids: str, rows: int) -> list[Partition]:
    """The partitions of a matrix."""
    return split_source(FeatureSource("own", DIM, "", path, (path,), ids=ids, own=True), rows)


def rows_of(parts: list[Partition], wanted: Any = None) -> tuple[list[int], NDArray[np.float32], list[Stream]]:
    """Ids and vectors of parts, one after the other, and the streams they came through."""
    ids: list[int] = []
    vectors: list[NDArray[np.float32]] = [np.empty((0, DIM), np.float32)]

    def consume(keys: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
        ids.extend(keys.tolist())
        vectors.append(rows.copy())

    streams = []
    for part in parts:
        streams.append(Stream("81", DIM, consume, wanted))
        read_part(part, streams[-1], lambda done: None)
    return ids, np.concatenate(vectors), streams


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize("spelling", [int, str])
def test_parts_are_the_rows_that_memory_holds(form: str, spelling: Callable[[int], Any], tmp_path: Path) -> None:
    """In the order of the files, with any batch."""
    numbers = np.random.default_rng(1).permutation(100)
    source = source_of(tmp_path, form, [spelling(int(number)) for number in numbers], matrix(100))
    ids, vectors, _ = rows_of(split_source(source, 11))
    assert ids == numbers.tolist()
    held = read_sources([source])
    np.testing.assert_array_equal(vectors[np.argsort(ids)], held.features[0].matrix)
    rows, size = estimate(source)
    assert size == rows * 4 * DIM
    assert abs(rows - 100) <= (0 if form == "parquet" else 10)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 70), st.integers(1, 30))
def test_ranges_of_parquet_hold_every_row_once(
    tmp_path_factory: pytest.TempPathFactory, items: int, most: int, group: int
) -> None:
    """Wherever row groups end."""
    path = tmp_path_factory.mktemp("parquet") / "a.parquet"
    emb = pa.array(list(matrix(items)), pa.list_(pa.float32()))
    pq.write_table(pa.table({"anonymous_cid": np.arange(items), "emb": emb}), path, row_group_size=group)
    parts = split_source(FeatureSource("81", DIM, "parquet", path.parent, (path,)), most)
    assert max(part.last - part.first for part in parts) <= most
    ids, vectors, _ = rows_of(parts)
    assert ids == list(range(items))
    np.testing.assert_array_equal(vectors, matrix(items))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int32])
@pytest.mark.parametrize("named", [True, False])
def test_ranges_of_an_array(dtype: Any, named: bool, tmp_path: Path) -> None:
    """With ids in a file of their own, or numbered."""
    array = (matrix(50) * 10).astype(dtype)
    np.save(tmp_path / "x.npy", array)
    ids = np.arange(50) * 3
    if named:
        files.replace_file(tmp_path / "ids.part", container.serialize({"ids": ids}, {}))
    parts = split_array(tmp_path / "x.npy", str(tmp_path / "ids.part") if named else "", 7)
    assert parts is not None
    found, vectors, _ = rows_of(parts)
    assert found == (ids.tolist() if named else list(range(50)))
    np.testing.assert_array_equal(vectors, array.astype(np.float32))
    assert [Partition.from_dict(part.to_dict()) for part in parts] == parts


def test_an_array_in_another_layout_has_no_parts(tmp_path: Path) -> None:
    """Columns first, another number of axes, texts, or no array at all."""
    for array in (np.asfortranarray(matrix(5)), np.zeros(5), np.zeros((2, 2, 2)), np.array([["a"]])):
        np.save(tmp_path / "x.npy", array)
        assert split_array(tmp_path / "x.npy", "", 7) == []
    (tmp_path / "x.npy").write_bytes(b"noise")
    with pytest.raises(EmbeddingError, match=r"x\.npy"):
        split_array(tmp_path / "x.npy", "", 7)


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_bad_rows_are_counted_as_in_memory(form: str, tmp_path: Path) -> None:
    """And the first is named; rows that come again are found by who puts parts together."""
    vectors = matrix(40)
    vectors[7, 2] = np.nan
    vectors[9] = np.inf
    source = source_of(tmp_path, form, list(range(40)), vectors)
    _, _, streams = rows_of(split_source(source, 100))
    assert sum(stream.bad for stream in streams) == read_sources([source]).bad_rows == 2
    assert "part-0" in streams[0].first_bad
    assert sum(stream.rows for stream in streams) >= 38


@pytest.mark.parametrize("name", ["x7", "007", "9" * 30])
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_an_id_that_is_no_integer_makes_all_of_them_texts(name: str, form: str, tmp_path: Path) -> None:
    """Where integers are expected it is an error; where names are, all ids come as they are written."""
    source = source_of(tmp_path, form, ["1", name, "3"], matrix(3), 1)
    with pytest.raises(NamedItemsError, match="no integer of 64 bits"):
        rows_of(split_source(source, 100))
    found: list[bytes] = []
    rows: list[NDArray[np.float32]] = []

    def consume(keys: NDArray[Any], vectors: NDArray[np.float32]) -> None:
        found.extend(keys.tolist())
        rows.append(vectors.copy())

    (part,) = split_source(source, 100)
    read_part(part, Stream("81", DIM, consume, lambda keys: keys != b"3", named=True), lambda done: None)
    assert found == [b"1", name.encode()]
    np.testing.assert_array_equal(np.concatenate(rows), matrix(3)[:2])
    assert read_sources([source]).items == sorted(["1", name, "3"])


@pytest.mark.parametrize("name", ["x" * 257, "ends with zero\0"])
def test_a_name_that_no_column_can_hold_is_an_error(name: str) -> None:
    """It says what to do."""
    with pytest.raises(LongNameError, match=r"memory_limit.*SEMID_MEMORY_LIMIT"):
        as_keys(["a", name])


def test_names_of_a_sample_do_not_depend_on_their_column() -> None:
    """Nor on whether integers are numbers or texts."""
    names = ["7", "-12", "x", "n\u00fc", "007", ""]
    hashes = hash_items(names, 3)
    assert len(set(hashes.tolist())) == len(names)
    np.testing.assert_array_equal(hash_items(as_keys([*names, "a" * 90]), 3)[:-1], hashes)
    np.testing.assert_array_equal(hash_items(np.array([7, -12]), 3), hashes[:2])


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_only_wanted_rows_come(form: str, tmp_path: Path) -> None:
    """All are counted."""
    source = source_of(tmp_path, form, list(range(40)), matrix(40))
    ids, vectors, streams = rows_of(split_source(source, 100), lambda keys: keys % 10 == 3)
    assert ids == [3, 13, 23, 33]
    np.testing.assert_array_equal(vectors, matrix(40)[[3, 13, 23, 33]])
    assert sum(stream.rows for stream in streams) == 40


LINES = [
    '{"anonymous_cid": 1, "emb": [0, 0, 0, 0, 0]}',
    '{"anonymous_cid": 1, "emb": [1, broken',
    '{"creative_id": 1, "emb": [1, 1, 1, 1, 1], "anonymous_cid": 2}',
    '{"anonymous_cid": 1, "emb": [1, 1, 1, 1, 1], "anonymous_cid": 2}',
    '{"emb": [1, 1, 1, 1, 1], "anonymous_cid": 2}',
    '{"anonymous_cid": 1, "emb": [1, 1, 1, 1, 1], "anonymous_\\u0063id": 2}',
    '{"anonymous_cid": "2", "emb": [1, 1, 1, 1, 1]}',
    ' { "anonymous_cid" : 2 , "emb": [1, 1, 1, 1, 1]}',
]


def test_a_line_is_passed_over_only_where_its_id_is_certain(tmp_path: Path) -> None:
    """Of two ids the better one counts, so such lines are read whole; one that stands there twice is none."""
    folder = tmp_path / "creative_emb" / f"emb_81_{DIM}"
    folder.mkdir(parents=True)
    (folder / "part-0").write_text("\n".join(LINES))
    ids, _, (stream,) = rows_of(split_source(find_sources(tmp_path, ["81"])[0], 1), lambda keys: keys == 2)
    assert ids == [2] * 5
    assert (stream.bad, stream.rows) == (1, 7)


NUMBERS = [
    "[1, 2, 3, 4, 5]",
    "[1.5, -2e-3, 3E5, 4.25, 0.1]",
    "[-0, -0.0, 18446744073709551615, 9007199254740993, 1e-400]",
    "[true, 2, 3, 4, 5]",
    "[1, 2, 3, 4, null]",
    '[1, 2, 3, 4, "5"]',
    "[1, 2, 3, 4]",
    "[[1], 2, 3, 4, 5]",
    "[1, 2, 3, 4, 5.]",
    "[1, 2, 3, 4, 05]",
    "[1, 2, 3, 4, 123456789012345678901234567890]",
    "[1, 2, 3, 4, NaN]",
    "[1, 2, 3, 4, 1e39]",
    "[1, 2, 3, 4, {}]",
]
KEYS = [
    '"anonymous_cid": 7',
    '"anonymous_cid": "7"',
    '"creative_id": 7',
    '"anonymous_cid": 7.0',
    '"anonymous_cid": true',
]
MORE = ["", ', "more": 1', ', "emb": [1, 1, 1, 1, 1]', ', "more": [1]', ', "anonymous_cid": 9']


@pytest.mark.parametrize("numbers", NUMBERS)
def test_the_fast_parser_takes_the_same_lines_and_numbers(
    numbers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As orjson, and as the standard library."""
    pytest.importorskip("simdjson", reason="needs pysimdjson: pip install pysimdjson")
    folder = tmp_path / "creative_emb" / f"emb_81_{DIM}"
    folder.mkdir(parents=True)
    lines = [f'{{{key}, "emb": {numbers}{more}}}' for key in KEYS for more in MORE]
    (folder / "part-0").write_text("\n".join(lines))
    parts = split_source(find_sources(tmp_path, ["81"])[0], 1)
    found = []
    for without in ([], ["simdjson"], ["simdjson", "orjson"]):
        for name in without:
            monkeypatch.setitem(sys.modules, name, None)
        ids, vectors, (stream,) = rows_of(parts)
        found.append((ids, vectors.tobytes(), stream.bad, stream.rows))
    assert found[0] == found[1]
    assert found[0] == found[2] or "NaN" in numbers  # which the standard library reads, in a list that is then replaced


def test_a_file_that_changes_meanwhile_is_an_error(tmp_path: Path) -> None:
    """Rows of two versions must not pass for one."""
    source = source_of(tmp_path, "jsonl", [1, 2], matrix(2), 1)

    def grow(done: int) -> None:
        with source.files[0].open("ab") as file:
            file.write(b"\n")

    with pytest.raises(EmbeddingError, match="was changed while it was read"):
        read_part(split_source(source, 1)[0], Stream("81", DIM, lambda keys, rows: None), grow)


def test_hashes_pick_items_evenly_and_for_good() -> None:
    """The same ids in every version, another seed others; neighbours have nothing in common."""
    ids = np.arange(100_000) + 20_000_000_000
    hashes = hash_items(ids, 0)
    assert hash_items(np.array([20_000_000_027, -1]), 0).tolist() == [2772472192133440227, 2628775390332437121]
    assert len(np.unique(hashes)) == len(ids)
    picked = hashes < np.uint64(1 << 60)
    assert abs(picked.sum() - len(ids) / 16) < 400
    halves = picked.reshape(10, -1).sum(1)
    assert halves.max() - halves.min() < 200
    assert (picked & (hash_items(ids, 1) < np.uint64(1 << 60))).sum() < 600


@pytest.mark.parametrize("form", ["npy", "npz", "safetensors"])
def test_files_of_arrays_are_read_in_parts(tmp_path: Path, form: str) -> None:
    """What comes out of the parts is what comes out of the whole; one that lies by columns has none."""
    ids, matrix = np.arange(10, 17), np.arange(21, dtype=np.float32).reshape(7, 3)
    path = tmp_path / f"x.{form}"

    def write(matrix: NDArray[Any]) -> None:
        if form == "npy":
            np.save(path, matrix)
        elif form == "npz":
            np.savez(path, item_id=ids, emb=matrix)
        else:
            pytest.importorskip("safetensors.numpy").save_file({"item_id": ids, "emb": matrix}, path)

    write(matrix)
    reader = FORMATS.get(form)
    pieces = reader.partitions(Partition(form, str(path)), 3)
    assert [(piece.first, piece.last) for piece in pieces] == [(0, 2), (2, 4), (4, 7)]
    found: list[tuple[list[int], NDArray[Any]]] = []
    for piece in pieces:
        rows = OwnRows(str(path))
        reader.read(piece, rows, lambda done: None)
        keys, part = rows.in_order()
        found.append((np.asarray(keys).tolist(), part))
    assert [key for keys, _ in found for key in keys] == (list(range(7)) if form == "npy" else ids.tolist())
    assert np.array_equal(np.concatenate([part for _, part in found]), matrix)
    assert reader.size(Partition(form, str(path)), 3) == 7
    if form != "safetensors":  # which knows rows alone
        write(np.asfortranarray(matrix))
        assert reader.partitions(Partition(form, str(path)), 3) == []
    if form == "npz":
        np.savez_compressed(path, item_id=ids, emb=matrix)
        assert [(piece.first, piece.last) for piece in reader.partitions(Partition(form, str(path)), 3)] == [(0, 7)]
