import builtins
import gzip
import hashlib
import itertools
import json
import logging
import os
import pickle
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from semid_dataset.errors import ConfigError, EmbeddingError, NoEmbeddingsError, UnsafePickleError
from semid_dataset.inputs import _file as rows
from semid_dataset.inputs import discover as sources
from semid_dataset.inputs.discover import features_folder, find_sources
from semid_dataset.inputs.partitions import Stream, estimate, partitions_of, read_part
from semid_dataset.inputs.read import Embeddings, from_memory, read_sources
from semid_dataset.progress import Heartbeat, Progress

Matrix = NDArray[np.float32]
CID0 = 20_000_000_000


def matrix(items: int, dim: int, seed: int = 0) -> Matrix:
    return np.random.default_rng(seed).standard_normal((items, dim)).astype(np.float32)


def folder_of(data_dir: Path, name: str = "creative_emb") -> Path:
    folder = data_dir / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_pickle(
    data_dir: Path, feature: str, ids: Sequence[Any], vectors: Matrix, folder: str = "creative_emb"
) -> Path:
    path = folder_of(data_dir, folder) / f"emb_{feature}_{vectors.shape[1]}.pkl"
    path.write_bytes(pickle.dumps(dict(zip(ids, vectors, strict=True))))
    return path


def write_jsonl(data_dir: Path, feature: str, ids: Sequence[Any], vectors: Matrix, parts: Sequence[str]) -> Path:
    folder = folder_of(data_dir) / f"emb_{feature}_{vectors.shape[1]}"
    folder.mkdir(exist_ok=True)
    for part, chosen in zip(parts, np.array_split(np.arange(len(ids)), len(parts)), strict=True):
        lines = [json.dumps({"anonymous_cid": ids[k], "emb": vectors[k].tolist()}) for k in chosen]
        (folder / part).write_text("".join(line + "\n" for line in lines))
    return folder


def write_parquet(
    data_dir: Path, feature: str, ids: Any, vectors: Any, *, suffix: str = "_parquet", dim: int = 0, parts: int = 1
) -> Path:
    width = dim or vectors.shape[1]
    folder = folder_of(data_dir, "mm_emb") / f"emb_{feature}_{width}{suffix}"
    folder.mkdir(exist_ok=True)
    ids = ids if isinstance(ids, pa.Array) else pa.array(ids)
    vectors = vectors if isinstance(vectors, pa.Array) else pa.array(list(vectors), pa.list_(pa.float32()))
    table = pa.table({"anonymous_cid": ids, "emb": vectors})
    step = -(-len(table) // parts)
    for part in range(parts):
        pq.write_table(
            table.slice(part * step, step), folder / f"part-{part}.parquet", row_group_size=max(1, step // 2)
        )
    return folder


def read(data_dir: Path, *ids: str | int) -> Embeddings:
    return read_sources(find_sources(data_dir, ids))


def same(found: Embeddings, ids: Sequence[Any], vectors: Matrix) -> None:
    """One feature over all items, in the order of their ids."""
    order = sorted(range(len(ids)), key=lambda k: int(ids[k]))
    assert np.asarray(found.items).tolist() == [int(ids[k]) for k in order]
    (feature,) = found.features
    np.testing.assert_array_equal(feature.rows, np.arange(len(ids)))
    np.testing.assert_allclose(feature.matrix, vectors[order], rtol=1e-6)


def shuffled(items: int) -> list[int]:
    return (CID0 + np.random.default_rng(5).permutation(items)).tolist()


# The three forms.


@pytest.mark.parametrize("form", ["pickle", "jsonl", "parquet", "parquet in a plain folder"])
@pytest.mark.parametrize("spelling", [int, str])
@pytest.mark.parametrize("feature", ["81", "86"])
def test_every_form_reads_the_same(form: str, spelling: Callable[[int], Any], feature: str, tmp_path: Path) -> None:
    """Pickle, JSON lines and parquet, ids as ints or as strings, for any feature id: one answer."""
    ids, vectors = [spelling(k) for k in shuffled(500)], matrix(500, 6)
    match form:
        case "pickle":
            write_pickle(tmp_path, feature, ids, vectors)
        case "jsonl":
            write_jsonl(tmp_path, feature, ids, vectors, ["part-00000.json", "part-00001.json"])
        case "parquet":
            write_parquet(tmp_path, feature, ids, vectors, parts=3)
        case _:
            write_parquet(tmp_path, feature, ids, vectors, suffix="")
    found = read(tmp_path, feature)
    same(found, ids, vectors)
    assert found.dims == [(feature, 6)]
    assert found.bad_rows == 0


@pytest.mark.parametrize("parts", [["part-0000"], ["part-0000.json", "part-0001"], ["a.jsonl", "b.json", "c"]])
def test_parts_have_any_suffix(parts: list[str], tmp_path: Path) -> None:
    """Every file of the folder is a part, markers and leftovers aside."""
    ids, vectors = shuffled(30), matrix(30, 4)
    folder = write_jsonl(tmp_path, "82", ids, vectors, parts)
    for name in ("_SUCCESS", ".part-0000.crc", "._part-0000"):
        (folder / name).write_bytes(b"\0\1")
    (folder / "_temporary").mkdir()
    same(read(tmp_path, 82), ids, vectors)


@pytest.mark.parametrize("without_orjson", [True, False])
def test_json_lines_without_orjson(without_orjson: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The standard parser serves where there is no faster one."""
    if without_orjson:
        monkeypatch.setitem(sys.modules, "orjson", None)
    ids, vectors = shuffled(30), matrix(30, 4)
    write_jsonl(tmp_path, "82", ids, vectors, ["part-0"])
    same(read(tmp_path, 82), ids, vectors)


ARROW_IDS: dict[str, Callable[[list[int]], Any]] = {
    "int64": lambda ids: pa.array(ids, pa.int64()),
    "uint64": lambda ids: pa.array(ids, pa.uint64()),
    "int32": lambda ids: pa.array([k - CID0 for k in ids], pa.int32()),
    "string": lambda ids: pa.array([str(k) for k in ids]),
    "large_string": lambda ids: pa.array([str(k) for k in ids], pa.large_string()),
    "dictionary": lambda ids: pa.array([str(k) for k in ids]).dictionary_encode(),
}


@pytest.mark.parametrize("ids", ARROW_IDS)
def test_parquet_ids_of_any_type(ids: str, tmp_path: Path) -> None:
    """What Spark, pandas and pyarrow write."""
    numbers, vectors = shuffled(50), matrix(50, 4)
    write_parquet(tmp_path, "82", ARROW_IDS[ids](numbers), vectors)
    same(read(tmp_path, 82), [k - CID0 for k in numbers] if ids == "int32" else numbers, vectors)


ARROW_VECTORS = {
    "double": pa.list_(pa.float64()),
    "half": pa.list_(pa.float16()),
    "large": pa.large_list(pa.float32()),
    "fixed": pa.list_(pa.float32(), 4),
    "integers": pa.list_(pa.int16()),
}


@pytest.mark.parametrize("kind", ARROW_VECTORS)
def test_parquet_vectors_of_any_type(kind: str, tmp_path: Path) -> None:
    """Lists of any number type and width of offsets."""
    numbers = np.arange(200).reshape(50, 4).astype(np.float32)
    values = (
        numbers.astype(np.float16) if kind == "half" else numbers.astype(np.int16) if kind == "integers" else numbers
    )
    write_parquet(tmp_path, "82", shuffled(50), pa.array(list(values), ARROW_VECTORS[kind]), dim=4)
    same(read(tmp_path, 82), shuffled(50), numbers)


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message is the command that helps."""
    write_parquet(tmp_path, "82", shuffled(5), matrix(5, 4))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(EmbeddingError, match="pip install pyarrow"):
        read(tmp_path, 82)


def test_parquet_bad_rows(tmp_path: Path) -> None:
    """Nulls, wrong lengths and NaN are counted; the rest of the batch is used."""
    vectors = pa.array(
        [[1, 2], None, [1], [], [3, 4], [1, 2, 3], [float("nan"), 1], [None, 1], [5, 6], [7, 8]], pa.list_(pa.float32())
    )
    ids = pa.array(["7", "1", "2", "3", "5", "6", "8", "9", None, "7"])
    write_parquet(tmp_path, "82", ids, vectors, dim=2)
    found = read(tmp_path, 82)
    assert np.asarray(found.items).tolist() == [5, 7]
    np.testing.assert_array_equal(found.features[0].matrix, [[3, 4], [1, 2]])
    assert found.bad_rows == 8


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"name": [1], "emb": [[1.0]]}, r"named as items are.*There is: name \(int64\), emb"),
        ({"anonymous_cid": [1], "codes": [[1]]}, r"There is: anonymous_cid \(int64\), codes"),
        ({"anonymous_cid": [1.5], "emb": [[1.0]]}, "anonymous_cid of type double: 1.5"),
        ({"anonymous_cid": [True], "emb": [[1.0]]}, "ids of type bool in anonymous_cid"),
        ({"anonymous_cid": [1], "emb": [1.0]}, "vectors of type double"),
        ({"anonymous_cid": [1], "emb": [["a"]]}, "vectors of type list"),
    ],
)
def test_parquet_of_other_columns(table: dict[str, Any], message: str, tmp_path: Path) -> None:
    """It says what the file has, and what is wanted."""
    folder = folder_of(tmp_path) / "emb_82_1_parquet"
    folder.mkdir()
    pq.write_table(pa.table(table), folder / "part-0.parquet")
    with pytest.raises(EmbeddingError, match=message):
        read(tmp_path, 82)


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "header"])
def test_damaged_parquet(damage: str, tmp_path: Path) -> None:
    """Whatever pyarrow says is said with the file's name."""
    folder = write_parquet(tmp_path, "82", shuffled(500), matrix(500, 4))
    path = folder / "part-0.parquet"
    raw = path.read_bytes()
    path.write_bytes(
        {"cut": raw[: len(raw) // 2], "empty": b"", "noise": b"PAR1" + b"\7" * 999 + b"PAR1", "header": raw[5:]}[damage]
    )
    with pytest.raises(EmbeddingError, match=r"part-0.parquet' (cannot be read as parquet|is empty: 0 bytes)"):
        read(tmp_path, 82)


# Several features.


def test_features_of_other_coverage_share_one_set_of_items(tmp_path: Path) -> None:
    """Each feature says which items it covers; every item has at least one."""
    write_pickle(tmp_path, "81", [5, 3, 9], matrix(3, 2))
    write_jsonl(tmp_path, "82", [4, 9, "3"], matrix(3, 3, 1), ["part-0"])
    write_parquet(tmp_path, "83", ["11", "4"], matrix(2, 5, 2))
    found = read(tmp_path, "83", 81, "82", 81)
    assert np.asarray(found.items).tolist() == [3, 4, 5, 9, 11]
    assert [(feature.id, feature.rows.tolist()) for feature in found.features] == [
        ("83", [1, 4]),
        ("81", [0, 2, 3]),
        ("82", [0, 1, 3]),
    ]
    assert found.dims == [("83", 5), ("81", 2), ("82", 3)]
    np.testing.assert_array_equal(found.features[1].matrix, matrix(3, 2)[[1, 0, 2]])
    np.testing.assert_allclose(found.features[2].matrix, matrix(3, 3, 1)[[2, 0, 1]], rtol=1e-6)
    np.testing.assert_array_equal(found.features[0].matrix, matrix(2, 5, 2)[[1, 0]])
    for feature in found.features:
        assert feature.matrix.dtype == np.float32
        assert feature.rows.dtype == np.int64


def test_one_id_that_is_no_number_makes_all_of_them_strings(tmp_path: Path) -> None:
    """Also those of other features: an item has one id."""
    write_pickle(tmp_path, "81", [5, 30, 9], matrix(3, 2))
    write_pickle(tmp_path, "82", ["x7", "30"], matrix(2, 3))
    found = read(tmp_path, 81, 82)
    assert found.items == ["30", "5", "9", "x7"]
    assert [feature.rows.tolist() for feature in found.features] == [[0, 1, 2], [0, 3]]
    np.testing.assert_array_equal(found.features[0].matrix, matrix(3, 2)[[1, 0, 2]])


def test_a_feature_that_cannot_be_read_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The others serve, and one warning says which and why."""
    write_pickle(tmp_path, "81", [1, 2], matrix(2, 2))
    write_pickle(tmp_path, "82", [1, 2], matrix(2, 2)).write_bytes(b"noise")
    with caplog.at_level(logging.WARNING, "semid_dataset"):
        found = read(tmp_path, 81, 82)
    assert found.dims == [("81", 2)]
    assert [path.name for path in found.file_digests] == ["emb_81_2.pkl"]
    assert "Feature 82" in caplog.text
    assert "emb_82_2.pkl" in caplog.text


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    """One feature says its own error, several say all."""
    write_pickle(tmp_path, "81", [1], matrix(1, 2)).write_bytes(b"\x80\x04cos\nsystem\n.")
    write_pickle(tmp_path, "82", [1], np.full((1, 2), np.nan, np.float32))
    with pytest.raises(UnsafePickleError, match=r"os\.system"):
        read(tmp_path, 81)
    with pytest.raises(EmbeddingError, match=r"holds no usable row of 2 numbers \(1 were skipped; the first: .*item 1"):
        read(tmp_path, 82)
    with pytest.raises(EmbeddingError, match=r"os\.system.*no usable row"):
        read(tmp_path, 81, 82)
    with pytest.raises(NoEmbeddingsError):
        read_sources([])


# Finding.


def test_missing_features_and_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No folder, nothing in it, and some of it are three things."""
    assert features_folder(tmp_path) is None
    with pytest.raises(NoEmbeddingsError, match="no folder of embeddings"):
        find_sources(tmp_path, [81])
    write_pickle(tmp_path, "81", [1], matrix(1, 2))
    assert features_folder(tmp_path) == tmp_path / "creative_emb"
    with pytest.raises(NoEmbeddingsError, match=r"None of the features 82, 83 .* There is: emb_81_2.pkl"):
        find_sources(tmp_path, [82, 83])
    with caplog.at_level(logging.WARNING, "semid_dataset"):
        (source,) = find_sources(tmp_path, [81, 82])
    assert (source.id, source.dim, source.form, source.files) == ("81", 2, "pickle", (source.path,))
    assert "Feature 82 is missing" in caplog.text


def test_the_public_release_s_folder(tmp_path: Path) -> None:
    """mm_emb is looked into where creative_emb has nothing."""
    write_pickle(tmp_path, "81", [1], matrix(1, 2), "mm_emb")
    assert features_folder(tmp_path) == tmp_path / "mm_emb"
    write_pickle(tmp_path, "82", [1], matrix(1, 3))
    assert [source.path.parent.name for source in find_sources(tmp_path, [81, 82])] == ["mm_emb", "creative_emb"]


@pytest.mark.parametrize("bad", ["../../etc", "81/../82", "", "8 1", "81_32", "8*", "\x00", ".", "~", "8\n", "x" * 33])
def test_feature_ids_are_plain_words(bad: str, tmp_path: Path) -> None:
    """They become part of a path."""
    write_pickle(tmp_path, "81", [1], matrix(1, 2))
    with pytest.raises(ConfigError, match="is no feature id"):
        find_sources(tmp_path, [81, bad])
    with pytest.raises(ConfigError, match="is no feature id"):
        from_memory({"81": {1: np.ones(2)}}, [bad])
    with pytest.raises(ConfigError, match="No feature id"):
        find_sources(tmp_path, [])


def test_two_widths_of_one_feature_are_ambiguous(tmp_path: Path) -> None:
    """Taking one of them in silence would be luck."""
    write_pickle(tmp_path, "85", [1], matrix(1, 2))
    write_pickle(tmp_path, "85", [1], matrix(1, 3))
    with pytest.raises(EmbeddingError, match=r"ambiguous.*emb_85_2.pkl, emb_85_3.pkl"):
        find_sources(tmp_path, [85])


def test_names_that_only_look_alike(tmp_path: Path) -> None:
    """81 is not 810, nor 8, nor a backup."""
    for name in ("emb_810_2.pkl", "emb_81_2.pkl.bak", "xemb_81_2.pkl", "emb_81_x.pkl", "emb_81.pkl", "emb_8_2.pkl"):
        (folder_of(tmp_path) / name).write_bytes(b"")
    with pytest.raises(NoEmbeddingsError):
        find_sources(tmp_path, [81])


@pytest.mark.parametrize("dim", ["0", "65537", "999999999"])
def test_absurd_widths(dim: str, tmp_path: Path) -> None:
    """A name does not make us allocate."""
    (folder_of(tmp_path) / f"emb_81_{dim}.pkl").write_bytes(b"")
    with pytest.raises(EmbeddingError, match="says that its vectors have"):
        find_sources(tmp_path, [81])


def test_symbolic_links_are_followed(tmp_path: Path) -> None:
    """Users mount their data where they like."""
    write_pickle(tmp_path / "elsewhere", "81", [1, 2], matrix(2, 2))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "creative_emb").symlink_to(tmp_path / "elsewhere" / "creative_emb")
    same(read(tmp_path / "data", 81), [1, 2], matrix(2, 2))
    linked = folder_of(tmp_path / "linked") / "emb_81_2.pkl"
    linked.symlink_to(tmp_path / "elsewhere" / "creative_emb" / "emb_81_2.pkl")
    same(read(tmp_path / "linked", 81), [1, 2], matrix(2, 2))


@pytest.mark.parametrize(
    ("form", "kind"),
    [("pickle", "folder"), *itertools.product(["pickle", "jsonl", "parquet"], ["pipe", "device", "dangling"])],
)
def test_what_is_no_file_is_an_error_and_no_hang(kind: str, form: str, tmp_path: Path) -> None:
    """A pipe without a writer would wait for ever, a device never ends."""
    folder = folder_of(tmp_path)
    if form != "pickle":
        folder /= {"jsonl": "emb_81_2", "parquet": "emb_81_2_parquet"}[form]
        folder.mkdir()
    path = folder / {"pickle": "emb_81_2.pkl", "jsonl": "part-0", "parquet": "part-0.parquet"}[form]
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/zero")
        case "dangling":
            path.symlink_to(tmp_path / "nothing")
    with pytest.raises(EmbeddingError, match=r"is a pipe|is a folder|is a device|cannot be opened"):
        read(tmp_path, 81)


# JSON lines.

GOOD = b'{"anonymous_cid": 1, "emb": [1, 2]}\n'
BAD_LINES: dict[str, bytes] = {
    "NaN": b'{"anonymous_cid": 2, "emb": [1, NaN]}',
    "Infinity": b'{"anonymous_cid": 2, "emb": [-Infinity, 2]}',
    "1e999": b'{"anonymous_cid": 2, "emb": [1, 1e999]}',
    "beyond float32": b'{"anonymous_cid": 2, "emb": [1, 1e99]}',
    "a huge integer": b'{"anonymous_cid": 2, "emb": [1, ' + b"9" * 400 + b"]}",
    "too short": b'{"anonymous_cid": 2, "emb": [1]}',
    "too long": b'{"anonymous_cid": 2, "emb": [1, 2, 3]}',
    "empty": b'{"anonymous_cid": 2, "emb": []}',
    "texts": b'{"anonymous_cid": 2, "emb": ["1", "2"]}',
    "one text": b'{"anonymous_cid": 2, "emb": [1, "2"]}',
    "nulls": b'{"anonymous_cid": 2, "emb": [null, 1]}',
    "null": b'{"anonymous_cid": 2, "emb": null}',
    "a text": b'{"anonymous_cid": 2, "emb": "[1, 2]"}',
    "true": b'{"anonymous_cid": 2, "emb": [true, 1]}',
    "false": b'{"anonymous_cid": 2, "emb": [1, false]}',
    "nested": b'{"anonymous_cid": 2, "emb": [[1], [2]]}',
    "deep": b'{"anonymous_cid": 2, "emb": ' + b"[" * 2_000 + b"]" * 2_000 + b"}",
    "no vector": b'{"anonymous_cid": 2}',
    "no id": b'{"emb": [1, 2]}',
    "a null id": b'{"anonymous_cid": null, "emb": [1, 2]}',
    "a float id": b'{"anonymous_cid": 2.5, "emb": [1, 2]}',
    "a true id": b'{"anonymous_cid": true, "emb": [1, 2]}',
    "a list id": b'{"anonymous_cid": [2], "emb": [1, 2]}',
    "a list": b"[2, [1, 2]]",
    "a number": b"7",
    "not JSON": b"{'anonymous_cid': 2, 'emb': [1, 2]}",
    "two objects": b'{"anonymous_cid": 2, "emb": [1, 2]}{"anonymous_cid": 3, "emb": [1, 2]}',
    "cut": b'{"anonymous_cid": 2, "emb": [1, 2',
    "invalid UTF-8": b'{"anonymous_cid": 2, "emb": [1, 2], "x": "\xff\xfe"}',
    "bytes": b"\x00\x01\x02",
    "duplicate": b'{"anonymous_cid": 1, "emb": [8, 9]}',
    "duplicate as a text": b'{"anonymous_cid": "1", "emb": [8, 9]}',
    "longer than any row": b'{"anonymous_cid": 2, "emb": [1, 2], "x": "' + b"x" * 9_000 + b'"}',
}


@pytest.mark.parametrize("without_orjson", [True, False])
@pytest.mark.parametrize("kind", BAD_LINES)
@pytest.mark.parametrize("end", [b"\n" + GOOD.replace(b"1,", b"5,", 1), b""])
def test_a_bad_line_is_counted_and_skipped(
    kind: str, end: bytes, without_orjson: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """In the middle or as a last line without its end; the first is named by file and line."""
    if without_orjson:
        monkeypatch.setitem(sys.modules, "orjson", None)
    folder = folder_of(tmp_path) / "emb_82_2"
    folder.mkdir()
    (folder / "part-7").write_bytes(GOOD + b"\n" + BAD_LINES[kind] + end)
    with caplog.at_level(logging.WARNING, "semid_dataset"):
        found = read(tmp_path, 82)
    assert np.asarray(found.items).tolist() == ([1, 5] if end else [1])
    np.testing.assert_array_equal(found.features[0].matrix[0], [1, 2])
    assert found.bad_rows == 1
    assert ("item 1 comes again" if "duplicate" in kind else "part-7, line 3: ") in caplog.text
    assert f"Skipped 1 of {3 if end else 2} rows of feature 82" in caplog.text


@pytest.mark.parametrize("start", [b"\xef\xbb\xbf", b"\n\n", b"  \r\n"])
def test_a_byte_order_mark_and_blank_lines_are_no_rows(start: bytes, tmp_path: Path) -> None:
    """Neither are Windows line ends."""
    folder = folder_of(tmp_path) / "emb_82_2"
    folder.mkdir()
    (folder / "part-0").write_bytes(start + GOOD.replace(b"\n", b"\r\n") + b'{"creative_id": "2", "emb": [3, 4.5]}')
    found = read(tmp_path, 82)
    assert (np.asarray(found.items).tolist(), found.bad_rows) == ([1, 2], 0)


def test_lines_cross_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a chunk ends, the lines are the same."""
    ids, vectors = shuffled(40), matrix(40, 3)
    folder = write_jsonl(tmp_path, "82", ids, vectors, ["part-0"])
    (folder / "part-1").write_bytes(b"\xef\xbb\xbf" + b"x" * 9_000 + b"\n" + GOOD + b"y" * 9_000)
    for chunk in (5, 64, 4_500):
        monkeypatch.setattr(rows, "CHUNK", chunk)
        found = read(tmp_path, 82)
        assert found.bad_rows == 3
        same(found, ids, vectors)


def test_a_line_of_a_gigabyte_is_never_held(tmp_path: Path) -> None:
    """A sparse file of 1 GB without a line end: skipped as bad, within 200 MB."""
    folder = folder_of(tmp_path) / "emb_82_2"
    folder.mkdir()
    with (folder / "part-0").open("wb") as file:
        file.write(GOOD)
        file.truncate(1 << 30)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20), hard))
    try:
        found = read(tmp_path, 82)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert (len(found.items), found.bad_rows) == (1, 1)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(st.one_of(st.sampled_from([GOOD, *BAD_LINES.values()]), st.binary(max_size=40))))
def test_any_lines_give_rows_or_an_error(lines: list[bytes], tmp_path: Path) -> None:
    """Nothing in a part stops the reader, and nothing that is not finite comes out of it."""
    folder = folder_of(tmp_path) / "emb_82_2"
    folder.mkdir(exist_ok=True)
    (folder / "part-0").write_bytes(b"\n".join(lines))
    try:
        found = read(tmp_path, 82)
    except EmbeddingError as error:
        message = str(error)
    else:
        assert np.isfinite(found.features[0].matrix).all()
        message = "" if len(found.items) == len(found.features[0].matrix) else "other items than rows"
    assert not message or "no usable row" in message or "part-0" in message


# Digests, progress, messages.


def test_digests_are_those_of_the_files(tmp_path: Path) -> None:
    """Each file's is its SHA-256; the whole changes with any of them and with nothing else."""
    write_pickle(tmp_path, "81", [1, 2], matrix(2, 2))
    write_jsonl(tmp_path, "82", [1, 2, 3], matrix(3, 3), ["part-0", "part-1"])
    write_parquet(tmp_path, "83", [1, 2, 3], matrix(3, 4))
    found = read(tmp_path, 81, 82, 83)
    assert len(found.file_digests) == 4
    for path, digest in found.file_digests.items():
        assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert read(tmp_path, 83, 82, 81).digest == found.digest
    (tmp_path / "mm_emb").rename(tmp_path / "other")
    (tmp_path / "other").rename(tmp_path / "mm_emb")
    assert read(tmp_path, 81, 82, 83).digest == found.digest
    assert read(tmp_path, 81, 82).digest != found.digest
    write_pickle(tmp_path, "81", [1, 2], matrix(2, 2, 9))
    assert read(tmp_path, 81, 82, 83).digest != found.digest


@pytest.mark.parametrize("form", ["pickle", "jsonl"])
def test_a_file_that_changes_meanwhile_is_an_error(form: str, tmp_path: Path) -> None:
    """Rows of two versions must not pass for one."""
    if form == "pickle":
        path = write_pickle(tmp_path, "81", [1, 2], matrix(2, 2))
    else:
        path = write_jsonl(tmp_path, "81", [1, 2], matrix(2, 2), ["part-0"]) / "part-0"

    def grow() -> None:
        with path.open("ab") as file:
            file.write(b"\n")

    with pytest.raises(EmbeddingError, match="was changed while it was read"):
        read_sources(find_sources(tmp_path, [81]), progress=Progress(Heartbeat(grow)))


def test_the_log_says_what_was_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The original's lines, in its order; progress is reported from every form."""
    write_pickle(tmp_path, "81", [1, 2], matrix(2, 2))
    write_jsonl(tmp_path, "82", [1, 2, 3], matrix(3, 3), ["part-0"])
    write_parquet(tmp_path, "83", [1, 2, 3], matrix(3, 4))
    with caplog.at_level(logging.INFO, "semid_dataset"):
        read(tmp_path, 81, 82, 83)
    assert [record.getMessage() for record in caplog.records] == [f"Loaded #{k} mm_emb" for k in (81, 82, 83)]
    for feature in (81, 82, 83):
        calls: list[int] = []
        progress = Progress(Heartbeat(lambda calls=calls: calls.append(1)))
        read_sources(find_sources(tmp_path, [feature]), progress=progress)
        assert len(calls) > 3  # more than begin, one feature, end


# From memory.


def test_from_memory_reads_what_a_dataset_holds() -> None:
    """Feature ids and item ids in any spelling; what is no vector is counted."""
    vectors = matrix(6, 3)
    held = {
        "81": {
            5: vectors[0],
            "3": vectors[1].astype(np.float64),
            np.int64(9): vectors[2][None],
            7: None,
            8: [1, 2, True],
        },
        82: {5: vectors[3][:2], 6: vectors[4][:2], 1.5: vectors[4][:2], 10: vectors[4], 11: np.array([np.nan, 1])},
        "83": {},
    }
    found = from_memory(held, [81, "82", 83, 84])
    assert np.asarray(found.items).tolist() == [3, 5, 6, 9]
    assert found.dims == [("81", 3), ("82", 2)]
    assert [feature.rows.tolist() for feature in found.features] == [[0, 1, 3], [1, 2]]
    np.testing.assert_array_equal(found.features[0].matrix, vectors[[1, 0, 2]])
    assert found.bad_rows == 5
    assert found.file_digests == {}


def test_from_memory_digests_the_content() -> None:
    """The same vectors in another order have the same digest, others have not."""
    vectors = matrix(3, 2)
    held = {"81": dict(zip([1, 2, 3], vectors, strict=True))}
    turned = {81: dict(zip(["3", "2", "1"], vectors[::-1], strict=True))}
    other = {"81": dict(zip([1, 2, 4], vectors, strict=True))}
    assert from_memory(held, [81]).digest == from_memory(turned, [81]).digest
    assert from_memory(held, [81]).digest != from_memory(other, [81]).digest


@pytest.mark.parametrize(
    "held", [{}, {"81": {}}, {"82": {1: np.ones(2)}}, {"81": {1: None}}, {"81": {1: np.full(2, np.nan)}}]
)
def test_from_memory_without_a_vector(held: dict[str, Any]) -> None:
    """Nothing to use is one error, whatever the reason."""
    with pytest.raises(NoEmbeddingsError, match="No usable vector"):
        from_memory(held, [81])


def test_reading_needs_no_torch() -> None:
    """The room is warm."""
    code = "import sys, semid_dataset.inputs.read; sys.exit('torch' in sys.modules or 'pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_file_is_modified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers open for reading."""
    path = write_pickle(tmp_path, "81", [1, 2], matrix(2, 2))
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    monkeypatch.setattr(builtins, "open", lambda *a, **k: pytest.fail("opened by another way"))
    read(tmp_path, 81)
    monkeypatch.undo()
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert sources.FOLDERS == ("creative_emb", "mm_emb")


# Files that are something else, beside those that are not.


def test_a_compressed_part_beside_plain_ones_is_read(tmp_path: Path) -> None:
    """Its items were lost in silence once, as bad rows of a few; memory and partitions give the same."""
    ids, vectors = shuffled(90), matrix(90, 4)
    folder = write_jsonl(tmp_path, "82", ids, vectors, ["part-0", "part-1", "part-2"])
    raw = (folder / "part-1").read_bytes()
    (folder / "part-1").write_bytes(gzip.compress(raw))
    found = read(tmp_path, 82)
    same(found, ids, vectors)
    assert found.bad_rows == 0
    assert found.file_digests[folder / "part-1"] == hashlib.sha256((folder / "part-1").read_bytes()).hexdigest()
    (source,) = find_sources(tmp_path, [82])
    streamed: list[int] = []
    for part in [piece for path in source.files for piece in partitions_of(source, path, 1_000)[1]]:
        read_part(part, Stream("82", 4, lambda keys, rows: streamed.extend(keys.tolist())), lambda done: None)
    assert sorted(streamed) == sorted(ids)
    assert abs(estimate(source)[0] - 90) < 30


@pytest.mark.parametrize("form", ["pickle", "jsonl", "parquet"])
@pytest.mark.parametrize(
    "content", [b"version https://git-lfs.github.com/spec/v1\n", b"<html>", b"PK\x03\x04" + b"\0" * 60]
)
def test_a_part_that_is_something_else_is_an_error(content: bytes, form: str, tmp_path: Path) -> None:
    """Not some bad rows: all that the part held would be missing."""
    ids, vectors = shuffled(30), matrix(30, 4)
    if form == "pickle":
        path = write_pickle(tmp_path, "82", ids, vectors)
    elif form == "jsonl":
        path = write_jsonl(tmp_path, "82", ids, vectors, ["part-0", "part-1"]) / "part-1"
    else:
        path = write_parquet(tmp_path, "82", ids, vectors, parts=2) / "part-1.parquet"
    path.write_bytes(content)
    with pytest.raises(EmbeddingError, match=r"is (a pointer of Git LFS|an HTML page|a zip archive)"):
        read(tmp_path, 82)


def test_a_pickle_may_be_compressed(tmp_path: Path) -> None:
    """It looks like one when it is opened, whatever its name says."""
    ids, vectors = shuffled(300), matrix(300, 4)
    path = write_pickle(tmp_path, "81", ids, vectors)
    path.write_bytes(gzip.compress(path.read_bytes()))
    same(read(tmp_path, 81), ids, vectors)
    path.rename(path.with_suffix(".pkl.gz"))
    same(read(tmp_path, 81), ids, vectors)


def test_a_part_of_another_format_has_no_partitions(tmp_path: Path) -> None:
    """In memory it is read; who wants partitions is told that it is read from its beginning only."""
    ids, vectors = shuffled(30), matrix(30, 4)
    folder = write_jsonl(tmp_path, "82", ids[:20], vectors[:20], ["part-0", "part-1"])
    np.savez(folder / "part-2", anonymous_cid=np.array(ids[20:]), emb=np.asfortranarray(vectors[20:]))
    same(read(tmp_path, 82), ids, vectors)
    (source,) = find_sources(tmp_path, [82])
    whole, parts = partitions_of(source, folder / "part-2.npz", 100)
    assert (whole.format, parts) == ("npz", [])


def test_parquet_in_folders_of_a_column(tmp_path: Path) -> None:
    """As Spark and Hive lay out what they partition."""
    ids, vectors = shuffled(60), matrix(60, 4)
    folder = write_parquet(tmp_path, "82", ids, vectors, parts=2)
    for number in range(2):
        (folder / f"dt=2026-01-0{number}").mkdir()
        (folder / f"part-{number}.parquet").rename(folder / f"dt=2026-01-0{number}" / "part-0.parquet")
    (folder / "_SUCCESS").write_bytes(b"")
    same(read(tmp_path, 82), ids, vectors)


def test_files_that_are_passed_over_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A part without its ending would be missed by nobody otherwise."""
    folder = write_parquet(tmp_path, "82", shuffled(60), matrix(60, 4), parts=2)
    (folder / "part-1.parquet").rename(folder / "part-1")
    with caplog.at_level(logging.WARNING, "semid_dataset"):
        assert len(read(tmp_path, 82).items) == 30
    assert "not read: part-1" in caplog.text


def test_whole_numbers_in_another_spelling_are_ids(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In memory and in partitions the same; some of them alone are an error."""
    folder = folder_of(tmp_path) / "emb_82_2"
    folder.mkdir()
    line = '{{"anonymous_cid": {}, "emb": [1, 2]}}\n'
    (folder / "part-0").write_text("".join(line.format(id_) for id_ in ("20000000027.0", '"1000.0"', '" 7"', "8")))
    with caplog.at_level(logging.WARNING, "semid_dataset"):
        assert np.asarray(read(tmp_path, 82).items).tolist() == [7, 8, 1000, 20_000_000_027]
    assert caplog.text.count("read as numbers") == 1
    (source,) = find_sources(tmp_path, [82])
    streamed: list[int] = []
    stream = Stream("82", 2, lambda keys, rows: streamed.extend(keys.tolist()))
    read_part(partitions_of(source, source.files[0], 1_000)[1][0], stream, lambda done: None)
    assert streamed == [20_000_000_027, 1000, 7, 8]
    (folder / "part-1").write_text(line.format('"sku"'))
    with pytest.raises(EmbeddingError, match=r"part-0, line 2: item '1000\.0'.*'sku' \(part-1, line 1\)"):
        read(tmp_path, 82)


def test_parts_with_names_of_another_system(tmp_path: Path) -> None:
    """Bytes that are no UTF-8."""
    ids, vectors = shuffled(30), matrix(30, 4)
    folder = write_jsonl(tmp_path, "82", ids, vectors, ["part-0", "part-1"])
    (folder / "part-1").rename(os.fsdecode(os.fsencode(folder) + b"/\xcc\xd8\xd5\xf7"))
    same(read(tmp_path, 82), ids, vectors)
