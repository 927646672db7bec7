"""`SemanticIdTable`: a mapping that finds an item in any spelling and never grows."""

import copy
import hashlib
import itertools
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semid_dataset.errors import (
    CorruptTableError,
    ItemsError,
    ParentError,
    SemanticIdWarning,
    TableError,
    UnknownItemError,
)
from semid_dataset.registry import QUANTIZERS
from semid_dataset.table import table as table_module
from semid_dataset.table.table import SemanticIdTable, build_table_buffers

UNHURRIED = settings(deadline=None)  # a busy machine is no failure
IDS = {20_000_000_027: [1, 2, 3, 4], 5: [2, 3, 4, 5], 77: [1, 2, 200, 4], -3: [0, 0, 0, 1]}
NAMES = {"b": [1, 2], "007": [1, 300], "商品": [2, 2], "7": [0, 1]}


def written(path: Path, ids: Mapping[Any, Any], **parts: Any) -> Path:
    codes = np.array(list(ids.values()), np.uint8 if max(map(max, ids.values())) < 256 else np.uint16)
    path.write_bytes(b"".join(build_table_buffers(list(ids), codes, **parts)))
    return path


@pytest.fixture(params=["memory", "file", "pickled"])
def numbers(request: pytest.FixtureRequest, tmp_path: Path) -> SemanticIdTable:
    """The table of `IDS` in each of the ways that one comes to life."""
    if request.param == "memory":
        return SemanticIdTable.from_mapping(IDS)
    table = SemanticIdTable.open(written(tmp_path / "t.safetensors", IDS))
    return pickle.loads(pickle.dumps(table)) if request.param == "pickled" else table


def test_an_item_is_found_in_every_spelling(numbers: SemanticIdTable) -> None:
    """Int, numpy integer, zero-dimensional array and decimal string are one item."""
    for key, codes in IDS.items():
        for item in (key, np.int64(key), np.array(key), str(key), np.str_(key)):
            assert numbers[item] == codes
            assert numbers.get(item) == codes
            assert item in numbers
    assert numbers[np.uint8(5)] == numbers[np.int16(5)] == IDS[5]


def test_an_id_is_a_list_of_ints_of_ones_own(numbers: SemanticIdTable) -> None:
    """Changing what a look-up returned changes nothing in the table."""
    first = numbers[5]
    first.append(9)
    numbers.default_id.append(9)
    numbers[6].append(9)
    assert numbers[5] == IDS[5]
    assert numbers[6] == numbers.default_id == [0, 0, 0, 0]
    assert {type(code) for code in numbers[5]} == {int}


ODD = [
    6,
    -5,
    10**30,
    -(10**30),
    2**63,
    "6",
    "005",
    " 5",
    "",
    "x",
    None,
    5.5,
    True,
    (5,),
    [5],
    {5: 5},
    b"\xff5",
    pytest.param(object(), id="object"),
]


@pytest.mark.parametrize("item", ODD, ids=repr)
def test_an_unknown_item_has_the_default_id(numbers: SemanticIdTable, item: Any) -> None:
    """Whatever it is; asking does not insert it, and `get` tells it from a known one."""
    assert numbers[item] == [0, 0, 0, 0]
    assert numbers.get(item) is None
    assert numbers.get(item, "no") == "no"
    assert item not in numbers
    assert len(numbers) == 4


@pytest.mark.parametrize("item", ODD, ids=repr)
def test_a_strict_table_names_what_it_lacks(item: Any) -> None:
    """A KeyError, as a dict would raise; `get` and `in` stay quiet."""
    table = SemanticIdTable.from_mapping(IDS, strict=True)
    with pytest.raises(UnknownItemError, match="holds no item"):
        table[item]
    with pytest.raises(KeyError):
        table[item]
    assert table.get(item) is None
    assert item not in table
    assert table[5] == IDS[5]


def test_it_iterates_in_order(numbers: SemanticIdTable) -> None:
    """Keys ascend; items, values, arrays and `to_dict` agree with them."""
    assert list(numbers) == list(numbers.keys()) == sorted(IDS)
    assert list(numbers.items()) == sorted(IDS.items())
    assert list(numbers.values()) == [codes for _, codes in sorted(IDS.items())]
    assert numbers.to_dict() == IDS
    assert list(numbers.to_dict()) == sorted(IDS)
    assert numbers.keys_array.tolist() == sorted(IDS)  # type: ignore[union-attr]
    assert numbers.codes_array.tolist() == list(numbers.values())
    assert numbers == IDS
    assert numbers != {**IDS, 5: [9, 9, 9, 9]}
    assert (5, IDS[5]) in numbers.items()
    assert (5, [0, 0, 0, 0]) not in numbers.items()
    assert (6, [0, 0, 0, 0]) not in numbers.items()
    assert 5 not in numbers.items()
    assert IDS[5] in numbers.values()
    assert [0, 0, 0, 0] not in numbers.values()


def test_iteration_passes_block_borders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects are made block by block, and none is lost between two."""
    monkeypatch.setattr(table_module, "BLOCK_ITEMS", 3)
    for ids in ({number: [number] for number in range(10)}, {f"i{number}": [number] for number in range(9)}):
        table = SemanticIdTable.from_mapping(ids)
        assert list(table.items()) == list(ids.items())
        assert list(table) == list(ids)


def test_a_table_of_strings_is_one_too(tmp_path: Path) -> None:
    """Any text is an item; ints are found by their decimal spelling, and "007" stays itself."""
    for table in (SemanticIdTable.from_mapping(NAMES), SemanticIdTable.open(written(tmp_path / "t", NAMES))):
        assert table["商品"] == [2, 2]
        assert table["007"] == [1, 300]
        assert table[7] == table["7"] == table[np.int64(7)] == [0, 1]
        assert table["x"] == table[8] == [0, 0]
        assert list(table) == table.keys_array == sorted(NAMES)
        assert table.to_dict() == NAMES == table
        assert table.codes_array.dtype == np.uint16
        assert table.codes(["b", "x", 7, "007"]).tolist() == [[1, 2], [0, 0], [0, 1], [1, 300]]
        assert table.items_of([1]) == ["b", "007"]
        assert json.loads(b"".join(table.json_chunks())) == NAMES


def test_stray_keys_beyond_the_buckets_are_found() -> None:
    """A 0 among ids of eleven digits goes the longer way, and so do look-ups in between."""
    ids = {number: [number % 200, 1] for number in [0, *range(20_000_000_000, 20_000_001_000), 2**60]}
    table = SemanticIdTable.from_mapping(ids)
    for item in [*ids, 1, 7, 2**59, 2**62, -1, 20_000_001_000]:
        assert table[item] == ids.get(item, [0, 0])
        assert table.get(str(item)) == ids.get(item)


@UNHURRIED
@given(
    ids=st.dictionaries(
        st.integers(-(2**63), 2**63 - 1) | st.text(max_size=4),
        st.lists(st.integers(0, 65_535), min_size=3, max_size=3),
        max_size=30,
    ),
    asked=st.lists(st.integers() | st.text(max_size=4), max_size=10),
)
def test_it_answers_like_a_dict(ids: dict[int | str, list[int]], asked: list[int | str]) -> None:
    """Whatever the keys, mixed ones too."""
    plain = {str(key): codes for key, codes in ids.items()}
    if len(plain) < len(ids):
        with pytest.raises(TableError, match="twice"):
            SemanticIdTable.from_mapping(ids)
        return
    table = SemanticIdTable.from_mapping(ids, levels=3)
    everything = [*ids, *asked]
    wanted = [plain.get(str(item), [0, 0, 0]) for item in everything]
    assert [table[item] for item in everything] == wanted
    assert table.codes(everything).tolist() == wanted
    assert {str(key): codes for key, codes in table.items()} == plain
    assert json.loads(b"".join(table.json_chunks())) == plain
    for prefix in ([], [1], *(codes[:2] for codes in ids.values()), *ids.values()):
        found = table.items_of(prefix)
        assert sorted(map(str, found)) == sorted(key for key, codes in plain.items() if codes[: len(prefix)] == prefix)


def test_many_are_asked_at_once(numbers: SemanticIdTable) -> None:
    """Codes have the shape of the items and a last axis of levels."""
    for items in ([5, 6, 77], ["5", "6", "77"], np.array([5, 6, 77]), (5, "6", np.int64(77))):
        codes = numbers.codes(items)
        assert codes.tolist() == [IDS[5], [0, 0, 0, 0], IDS[77]]
        assert codes.dtype == np.uint8
        assert numbers.coverage(items) == pytest.approx(2 / 3)
    assert numbers.codes(np.array([[5, 77], [77, 5]])).tolist() == [[IDS[5], IDS[77]], [IDS[77], IDS[5]]]
    assert numbers.codes([]).shape == (0, 4)
    assert numbers.coverage([]) == 0.0
    assert numbers.coverage({5, 77}) == 1.0
    assert numbers.rows_of([-3, 6]).tolist() == [0, -1]
    with pytest.raises(TypeError, match="not one str"):
        numbers.codes("577")


def test_codes_of_many_are_ones_own(numbers: SemanticIdTable) -> None:
    """They may be written to; the table's own array may not."""
    numbers.codes([5])[:] = 9
    assert numbers[5] == IDS[5]
    with pytest.raises(ValueError, match="read-only"):
        numbers.codes_array[:] = 9


def test_a_strict_table_names_the_first_of_many() -> None:
    """Before anything is returned."""
    table = SemanticIdTable.from_mapping(IDS, strict=True)
    for items in ([5, 8, 9], np.array([[5, 8], [9, 9]]), ["5", 8], iter([5, 8, 9])):
        with pytest.raises(UnknownItemError, match="no item 8"):
            table.codes(items)
    assert table.codes([5]).tolist() == [IDS[5]]


def test_items_are_found_by_the_beginning_of_their_id(numbers: SemanticIdTable) -> None:
    """In order of their IDs; a prefix that is none finds nothing."""
    assert numbers.items_of([1, 2]) == [20_000_000_027, 77]
    assert numbers.items_of([1, 2, 200, 4]) == [77]
    assert numbers.items_of([0]) == [-3]
    assert numbers.items_of(np.array([2])) == [5]
    assert numbers.items_of([]) == [-3, 20_000_000_027, 77, 5]
    for prefix in ([9], [256], [-1], [1, 2, 3, 4, 5], [1, 2, 3, 5]):
        assert numbers.items_of(prefix) == []
    assert SemanticIdTable.default(4).items_of([]) == []


@pytest.mark.parametrize(
    "wrap", [np.array, list, lambda ids: [np.array(one) for one in ids]], ids=["array", "list", "arrays"]
)
def test_a_batch_of_ids_is_no_prefix(numbers: SemanticIdTable, wrap: Any) -> None:
    """It found nothing, in silence: what a model generates comes in batches."""
    ids = numbers.codes([77, 5]).tolist()
    with pytest.raises(ItemsError, match="not 2 of them"):
        numbers.items_of(wrap(ids))
    assert [numbers.items_of(codes) for codes in ids] == [[77], [5]]


@pytest.mark.parametrize("levels", [1, 3, 8, 9, 16])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_way_back_holds_for_every_width(levels: int, dtype: Any) -> None:
    """IDs of up to 8 bytes sort as numbers, longer ones as bytes."""
    rng = np.random.default_rng(levels)
    codes = rng.choice(np.array([0, 1, 255, np.iinfo(dtype).max], dtype), (200, levels))
    codes[:2] = np.iinfo(dtype).max  # fix the dtype of the table
    table = SemanticIdTable.from_buffer(b"".join(build_table_buffers(np.arange(200), codes)))
    rows = list(map(tuple, codes.tolist()))
    for depth in (1, levels):
        for prefix in {row[:depth] for row in rows}:
            wanted = sorted((row, item) for item, row in enumerate(rows) if row[:depth] == prefix)
            assert table.items_of(prefix) == [item for _, item in wanted]


def test_an_empty_table_is_false_and_has_levels() -> None:
    """Default IDs: everything is unknown, nothing crashes."""
    table = SemanticIdTable.default(3, "no embeddings")
    assert (bool(table), len(table), table.status, table.reason) == (False, 0, "default", "no embeddings")
    assert table[5] == table["x"] == table.default_id == [0, 0, 0]
    assert table.codes([1, 2]).tolist() == [[0, 0, 0]] * 2
    assert table.coverage([1, 2]) == 0.0
    assert list(table) == []
    assert table.to_dict() == {}
    assert b"".join(table.json_chunks()) == b"{}"
    assert table.codebook_sizes == (0, 0, 0)
    assert pickle.loads(pickle.dumps(table)).reason == "no embeddings"
    assert len(pickle.dumps(table)) < 1000
    assert SemanticIdTable.from_mapping({}).levels == 4
    assert bool(SemanticIdTable.from_mapping(IDS)) is True


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ({5: [1, 2], 6: [1]}, "6.*1 codes, 2 are expected"),
        ({5: []}, "5.*0 codes"),
        ({5: [1, -1]}, "5.*-1"),
        ({5: [1, 65_536]}, "5.*65536"),
        ({5: [1, 2.0]}, "5.*whole numbers"),
        ({5: [1, True]}, "5.*True"),
        ({5: [1, None]}, "5.*None"),
        ({5: "12"}, "5.*'12'"),
        ({5: 7}, "5.*whole numbers"),
        ({5: [1, 2], "5": [3, 4]}, "5.*twice"),
        ({5: {1: 2, 3: 4}}, "5.*a dict"),
        ({5: {1, 2}}, "5.*a set"),
        ({5: itertools.repeat(1)}, "5.*more than 1,024"),
        ({5.5: [1, 2]}, r"5\.5 is no item"),
        ({None: [1, 2]}, "None is no item"),
        ({True: [1, 2]}, "True is no item"),
        ({(5,): [1, 2]}, "a tuple is no item"),
    ],
)
def test_a_mapping_of_something_else_is_refused(ids: dict[Any, Any], message: str) -> None:
    """The first key that is wrong is named."""
    with pytest.raises(TableError, match=message):
        SemanticIdTable.from_mapping(ids)


def test_values_of_a_mapping_may_be_arrays_or_tuples() -> None:
    """Whatever holds whole numbers."""
    table = SemanticIdTable.from_mapping({1: (1, 2), 2: np.array([3, 4]), 3: [np.int64(5), 6]})
    assert table.to_dict() == {1: [1, 2], 2: [3, 4], 3: [5, 6]}


@pytest.mark.parametrize("codes", [np.zeros((2, 4), np.uint8), np.zeros(4, np.uint8), np.zeros((4, 4), np.int64)])
def test_codes_that_do_not_fit_are_refused(codes: Any) -> None:
    """One row of uint8 or uint16 an item."""
    with pytest.raises(TableError, match="expected"):
        build_table_buffers([1, 2, 3, 4], codes)


# --- what it says about itself ----------------------------------------------------------------


def test_it_says_what_its_writer_said(tmp_path: Path) -> None:
    """Everything in the header is at hand, and what is missing has an empty form."""
    info = {
        "lineage": "abc",
        "generation": 3,
        "quality": {"relative_mse": 0.1},
        "identity": {"codebook_sizes": [256, 256, 256, 300]},
    }
    path = written(tmp_path / "t.safetensors", IDS, info=info)
    table = SemanticIdTable.open(path)
    assert (table.lineage, table.generation, table.quality) == ("abc", 3, {"relative_mse": 0.1})
    assert table.codebook_sizes == (256, 256, 256, 300)
    assert (table.path, table.status, table.levels) == (path, "cached", 4)
    assert str(path) in table.reason
    assert "4 items" in repr(table)
    assert "cached" in repr(table)
    plain = SemanticIdTable.from_mapping(IDS)
    assert (plain.lineage, plain.generation, plain.quality, plain.path) == ("", 0, {}, None)
    assert (plain.codebook_sizes, plain.sizes_stated, table.sizes_stated) == ((256,) * 4, False, True)
    assert plain.digest == table.digest


def test_the_digest_is_of_keys_codes_weights_and_what_else_decides_a_code(tmp_path: Path) -> None:
    """Not of the order they were given in, nor of what else the file says."""
    weights = {"c": np.ones((2, 2), np.float32)}
    table = SemanticIdTable.open(written(tmp_path / "1", IDS, weights=weights))
    same = written(tmp_path / "2", dict(reversed(IDS.items())), weights=weights, info={"provenance": {"host": "x"}})
    assert SemanticIdTable.open(same).digest == table.digest
    assert len(table.digest) == 64
    others = [
        written(tmp_path / "3", IDS),
        written(tmp_path / "4", IDS, weights={"c": np.ones((2, 2), np.float16)}),
        written(tmp_path / "5", IDS, weights={"c": np.zeros((2, 2), np.float32)}),
        written(tmp_path / "6", IDS, weights={"d": np.ones((2, 2), np.float32)}),
        written(tmp_path / "7", {**IDS, 5: [2, 3, 4, 6]}, weights=weights),
        written(tmp_path / "8", {**IDS, 6: [2, 3, 4, 6]}, weights=weights),
        written(tmp_path / "9", IDS, weights=weights, info={"settings": {"unique": False}}),
        *(
            written(tmp_path / f"q{number}", IDS, weights=weights, info={"quantizer": {"dim": 2, **setting}})
            for number, setting in enumerate(
                [{"beam": 4}, {"beam": 5}, {"prefix_weight": 0.1}, {"scale": 2.0}, {"fusion": {"kind": "mean"}}]
            )
        ),
    ]
    digests = {SemanticIdTable.open(path).digest for path in others}
    assert len(digests) == 12
    assert table.digest not in digests


@pytest.mark.parametrize("ids", [IDS, NAMES], ids=["integers", "strings"])
def test_it_knows_its_own_json_again(tmp_path: Path, ids: dict[Any, Any]) -> None:
    """The digest in the header is that of the file an export writes."""
    table = SemanticIdTable.open(written(tmp_path / "t", ids))
    text = b"".join(table.json_chunks())
    assert table.info["json_sha256"] == hashlib.sha256(text).hexdigest()
    assert json.loads(text) == {str(key): codes for key, codes in ids.items()}


def test_a_table_without_a_quantizer_says_so() -> None:
    """A hand-made table cannot encode new items."""
    table = SemanticIdTable.from_mapping(IDS)
    assert not table.has_quantizer
    assert table.weights == {}
    with pytest.raises(TableError, match="no quantizer"):
        table.quantizer  # noqa: B018 - the property raises


def test_the_quantizer_is_built_once_from_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And only when it is asked for."""
    calls: list[tuple[dict[str, Any], Any]] = []
    kind = SimpleNamespace(from_state=lambda *parts: calls.append(parts) or object())
    monkeypatch.setattr(QUANTIZERS, "_loaded", {"residual": kind})  # in place of the real one, which takes torch along
    weights = {"codebook.0": np.ones((2, 2), np.float32)}
    path = written(tmp_path / "t", IDS, weights=weights, info={"quantizer": {"dim": 2}})
    table = SemanticIdTable.open(path)
    assert table.has_quantizer
    assert not calls
    assert table.quantizer is table.quantizer
    assert len(calls) == 1
    assert calls[0][1] == {"dim": 2}
    np.testing.assert_array_equal(calls[0][0]["codebook.0"], weights["codebook.0"])


def test_another_status_shares_the_bytes(numbers: SemanticIdTable) -> None:
    """A table under another status is no copy."""
    stale = numbers.with_status("stale", "the gate is closed")
    assert (stale.status, stale.reason) == ("stale", "the gate is closed")
    assert numbers.status != "stale"
    assert stale == numbers
    assert np.shares_memory(stale.codes_array, numbers.codes_array)


# --- files, pickles, processes ----------------------------------------------------------------


def test_a_pickle_is_a_reference(tmp_path: Path) -> None:
    """Below 1 kB whatever the size; the file is opened when the table is first asked for something."""
    path = tmp_path / "t.safetensors"
    path.write_bytes(b"".join(build_table_buffers(np.arange(50_000), np.ones((50_000, 4), np.uint8))))
    table = SemanticIdTable.open(path, strict=True).with_status("stale", "why")
    data = pickle.dumps(table)
    assert len(data) < 1000
    hidden = path.rename(tmp_path / "elsewhere")
    there = pickle.loads(data)
    assert (there.status, there.reason, there.path, there.digest) == ("stale", "why", path, table.digest)
    assert pickle.dumps(there) == data
    hidden.rename(path)
    assert there[7] == [1, 1, 1, 1]
    assert type(there) is SemanticIdTable
    assert there.strict
    assert len(there) == 50_000
    assert pickle.dumps(there) == data
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        pickle.loads(data).nonsense  # noqa: B018 - the access raises
    assert not hasattr(there, "nonsense")


def test_a_table_in_memory_is_pickled_whole() -> None:
    """There is no file to refer to."""
    table = SemanticIdTable.from_mapping(NAMES, status="pregenerated", reason="pinned", strict=True)
    there = pickle.loads(pickle.dumps(table))
    assert there == table
    assert (there.status, there.reason, there.strict, there.digest) == ("pregenerated", "pinned", True, table.digest)


def test_copies_are_the_table_itself(numbers: SemanticIdTable) -> None:
    """It cannot change, so there is nothing to copy."""
    assert copy.copy(numbers) is numbers
    assert copy.deepcopy({"ids": numbers})["ids"] is numbers


def test_a_pickle_whose_file_has_changed_is_refused(tmp_path: Path) -> None:
    """Other IDs under the same name would be taken for the ones that were sent."""
    path = written(tmp_path / "t", IDS)
    data = pickle.dumps(SemanticIdTable.open(path))
    path.unlink()
    with pytest.raises(TableError, match="none beside it grew from it"):
        pickle.loads(data)[5]
    written(path, {**IDS, 5: [9, 9, 9, 9]})
    with pytest.raises(CorruptTableError, match="replaced in between"):
        len(pickle.loads(data))
    path.unlink()
    written(path, IDS, info={"provenance": {"date": "later"}})
    assert pickle.loads(data) == IDS


def test_threads_may_open_a_pickled_table_together(tmp_path: Path) -> None:
    """Each sees a whole table, whoever opens it first."""
    table = SemanticIdTable.open(written(tmp_path / "t", IDS))
    for _ in range(20):
        there = pickle.loads(pickle.dumps(table))
        barrier = threading.Barrier(4)
        answers: list[list[int]] = []

        def ask(there: Any = there, barrier: Any = barrier, answers: Any = answers) -> None:
            barrier.wait()
            answers.append(there[5])

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [IDS[5]] * 4


def ask(table: SemanticIdTable, queue: Any) -> None:
    queue.put((table["5"], table.status, str(table.path)))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12 warns where threads exist
def test_a_child_process_sees_the_same_table(tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inherited by fork, reopened from its path elsewhere."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import test_table

    table = SemanticIdTable.open(written(tmp_path / "t", IDS))
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=test_table.ask, args=(table, queue))
    child.start()
    assert queue.get(timeout=50) == (IDS[5], "cached", str(table.path))
    child.join()
    assert child.exitcode == 0


@pytest.mark.parametrize("fate", ["replaced", "deleted"])
def test_an_open_table_outlives_its_file(tmp_path: Path, fate: str) -> None:
    """The map keeps the bytes, whatever happens to the name."""
    path = written(tmp_path / "t", IDS)
    table = SemanticIdTable.open(path)
    if fate == "deleted":
        path.unlink()
    else:
        written(tmp_path / "new", {5: [9, 9, 9, 9]}).replace(path)
        assert SemanticIdTable.open(path)[5] == [9, 9, 9, 9]
    assert table.to_dict() == IDS
    assert table.items_of([2]) == [5]


def test_the_buffer_lives_as_long_as_the_table() -> None:
    """Arrays and look-ups point into it."""
    buffer = bytearray(b"".join(build_table_buffers([5], np.ones((1, 2), np.uint8))))
    table = SemanticIdTable.from_buffer(memoryview(buffer))
    del buffer
    assert table[5] == [1, 1]
    assert not table.codes_array.flags.writeable


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    """Damage, emptiness and other kinds of file, each named with its path."""
    path = written(tmp_path / "t", IDS)
    whole = path.read_bytes()
    for data in (b"", whole[:-1], whole[:100], bytes([whole[0] ^ 1]) + whole[1:]):
        path.write_bytes(data)
        with pytest.raises(CorruptTableError, match=str(path)):
            SemanticIdTable.open(path)
        assert path.read_bytes() == data
    with pytest.raises(FileNotFoundError):
        SemanticIdTable.open(tmp_path / "nowhere")
    with pytest.raises(TableError, match=r"holds no semid_table\.safetensors"):
        SemanticIdTable.open(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(TableError, match="not a regular file") as raised:
        SemanticIdTable.open(tmp_path / "fifo")
    assert "remove" not in str(raised.value)


def test_a_users_link_is_followed(tmp_path: Path) -> None:
    """Mounted volumes are full of them; only our own cache refuses links."""
    written(tmp_path / "t", IDS)
    (tmp_path / "link").symlink_to(tmp_path / "t")
    assert SemanticIdTable.open(tmp_path / "link") == IDS
    assert SemanticIdTable.open(str(tmp_path / "link"))[5] == IDS[5]


def test_without_a_map_the_bytes_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SEMID_MMAP=0, for file systems that cut files under a map: then even that does no harm."""
    monkeypatch.setenv("SEMID_MMAP", "0")
    path = written(tmp_path / "t", IDS)
    table = SemanticIdTable.open(path)
    os.truncate(path, 10)
    assert table.to_dict() == IDS


@pytest.mark.parametrize(
    "change", [{"codes": None}, {"codes": np.zeros((3, 4), np.uint8)}, {"codes": np.zeros((4, 4))}]
)
def test_a_file_whose_codes_do_not_fit_is_refused(change: dict[str, Any]) -> None:
    """The container is whole, but it is no table."""
    from semid_dataset.format.tensors import build_index, serialize

    arrays = {**build_index([1, 2, 3, 4])[0], **change}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    with pytest.raises(CorruptTableError, match="no codes for its 4 items"):
        SemanticIdTable.from_buffer(b"".join(serialize(arrays, {})))


def test_a_table_whose_index_lies_is_refused_when_it_is_opened() -> None:
    """Its checksum is right; without the check the first look-up would be an IndexError."""
    from semid_dataset.format.tensors import build_index, serialize

    arrays = build_index(list(range(40)))[0] | {"codes": np.zeros((40, 3), np.uint8)}
    arrays["key_starts"] = arrays["key_starts"] + np.uint32(1000)
    data = b"".join(serialize(arrays, {}))
    with pytest.raises(CorruptTableError, match="'key_starts' that lead beyond its 40 keys"):
        SemanticIdTable.from_buffer(data)
    trusting = SemanticIdTable.from_buffer(data, verify=False)  # whoever asks for no check gets none
    with pytest.raises(IndexError):
        trusting.get(7)


def test_it_is_not_made_by_its_class() -> None:
    """The error says how else."""
    with pytest.raises(TypeError, match=r"SemanticIdTable\.open"):
        SemanticIdTable()


def test_torch_and_slow_imports_stay_out() -> None:
    """Opening and asking a table loads neither torch nor filelock nor platformdirs."""
    code = (
        "import sys; from semid_dataset.table.table import SemanticIdTable as T; t = T.from_mapping({5: [1, 2]});"
        "assert t[5] == [1, 2] and t.codes([5]).tolist() == [[1, 2]] and t.items_of([1]) == [5];"
        "print([m for m in ('torch', 'filelock', 'platformdirs', 'pyarrow', 'tqdm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_file_costs_thirteen_bytes_an_item() -> None:
    """8 for the key, 4 for the codes, 1 for the index; nothing else grows with the items."""
    rng = np.random.default_rng(0)
    for count in (1000, 100_000):
        items = rng.choice(1 << 40, count, replace=False)
        size = sum(map(len, build_table_buffers(items, rng.integers(0, 256, (count, 4), np.uint8))))
        assert size <= 13 * count + 2000


# --- for the recommender ---


def test_with_an_offset_zero_means_no_id_and_nothing_else() -> None:
    """Code 0 of a known item becomes 1; the padding index is free."""
    table = SemanticIdTable.from_mapping({5: [0, 255], 6: [3, 0]})
    codes = table.codes([5, 6, 7], offset=1)
    assert codes.tolist() == [[1, 256], [4, 1], [0, 0]]
    assert table.codes([5, 7]).tolist() == [[0, 255], [0, 0]]
    sizes = table.embedding_table_sizes()
    assert (codes.max(0) < sizes).all()
    assert sizes == (257, 257)
    assert table.embedding_table_sizes(offset=0) == (256, 256)


def test_look_ups_that_miss_are_counted() -> None:
    """Monitoring can tell new items from a fault."""
    table = SemanticIdTable.from_mapping({5: [0, 1]})
    table[5], table[6], table.get(7), table.codes([5, 8, 9])
    assert table.misses == 4
    table.coverage([5, 10])
    assert table.misses == 5
    assert pickle.loads(pickle.dumps(table)).misses == 0


def test_ids_of_another_kind_are_shown_beside_known_ones_once() -> None:
    """Re-ids count from 1; creative ids look otherwise."""
    table = SemanticIdTable.from_mapping({20_000_000_000 + k: [k, 1] for k in range(200)})
    with pytest.warns(SemanticIdWarning, match=r"0\.0%.* 1, 2, 3, .*with: 20000000000, 20000000001"):
        assert table.coverage(range(1, 200)) == 0.0
    assert not table.codes(np.arange(1, 200)).any()  # a second warning would be an error


def test_new_items_among_known_ones_are_no_reason_to_warn() -> None:
    """Nor a handful, nor an empty table, which has said why already."""
    table = SemanticIdTable.from_mapping({k: [k, 1] for k in range(200)})
    assert table.coverage(range(100, 300)) == 0.5
    assert table.coverage(range(1000, 1050)) == 0.0
    assert SemanticIdTable.default(2).coverage(range(200)) == 0.0


def test_another_table_than_expected_is_an_error() -> None:
    """Ranks, and training and inference, compare digests without talking."""
    table, other = SemanticIdTable.from_mapping({5: [0, 1]}), SemanticIdTable.from_mapping({5: [0, 2]})
    table.assert_same_digest(SemanticIdTable.from_mapping({5: [0, 1]}).digest)
    with pytest.raises(ParentError, match=other.digest):
        table.assert_same_digest(other.digest)


def test_a_saved_table_is_the_same_table(tmp_path: Path) -> None:
    """Folders are made, and what is there is replaced in one step."""
    table = SemanticIdTable.from_mapping({5: [0, 1]})
    path = table.save(tmp_path / "a" / "b" / "semid_table.safetensors")
    assert SemanticIdTable.open(path).digest == table.digest
    other = SemanticIdTable.from_mapping({5: [0, 2]})
    other.save(path)
    assert SemanticIdTable.open(path).digest == other.digest
