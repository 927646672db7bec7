"""What callers hand over becomes arrays, exactly, or is refused with the place of the first that does not."""

import array
import importlib
import subprocess
import sys
from decimal import Decimal
from pathlib import Path, PureWindowsPath
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from semid_dataset import SemanticIdConfig, SemanticIdTable, generate_from_vectors
from semid_dataset.api import extend_with_vectors
from semid_dataset.errors import EmbeddingError, ItemsError, TableError
from semid_dataset.inputs.read import from_memory
from semid_dataset.objects import MISSING, as_items, as_matrix, as_query, as_vector, item_of

X = np.arange(12, dtype=np.float32).reshape(3, 4)
IDS = [10, 20, 30]
SMALL = SemanticIdConfig(num_quantizers=2, codebook_size=8, num_epochs=0, device="cpu")


class Stream:
    """An object of a library that nobody here knows: it offers the Arrow C stream and nothing else."""

    def __init__(self, column: Any) -> None:
        self._column = column

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self._column.__arrow_c_stream__(requested_schema)


class Lone:
    """The same for the Arrow C array."""

    def __init__(self, column: Any) -> None:
        self._column = column

    def __arrow_c_array__(self, requested_schema: Any = None) -> Any:
        return self._column.__arrow_c_array__(requested_schema)


class Packed:
    """DLPack alone."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def __dlpack__(self, **options: Any) -> Any:
        return self._tensor.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._tensor.__dlpack_device__()


class Interface:
    """The array interface alone."""

    def __init__(self, values: np.ndarray[Any, Any]) -> None:
        self._values = values
        self.__array_interface__ = values.__array_interface__


# --- items --------------------------------------------------------------------------------------

ITEMS: dict[str, Any] = {
    "tuple": tuple(IDS),
    "range": range(10, 31, 10),
    "int32": np.array(IDS, np.int32),
    "uint64": np.array(IDS, np.uint64),
    "big endian": np.array(IDS, ">i8"),
    "floats": np.array(IDS, float),
    "float32": np.array(IDS, np.float32),
    "list of floats": [10.0, 20.0, 30.0],
    "numpy's numbers in a list": list(np.array(IDS)),
    "of several widths": [np.int8(10), np.uint64(20), np.int64(30)],
    "of both kinds": [10, "20", np.float64(30)],
    "strings": ["10", "20", "30"],
    "numpy's strings": list(np.array(["10", "20", "30"])),
    "array of strings": np.array(["10", "20", "30"]),
    "bytes": [b"10", b"20", b"30"],
    "objects": np.array([10, "20", 30.0], object),
    "decimals": [Decimal(10), Decimal("20.0"), Decimal("3e1")],
    "tensor": torch.tensor(IDS),
    "tensors": list(torch.tensor(IDS)),
    "float tensors": list(torch.tensor(IDS).float()),
    "array.array": array.array("q", IDS),
    "memoryview": memoryview(array.array("q", IDS)),
    "keys": dict.fromkeys(IDS).keys(),
    "generator": (item for item in IDS),
    "interface": Interface(np.array(IDS)),
    "dlpack": Packed(torch.tensor(IDS)),
}


@pytest.mark.parametrize("name", ITEMS)
def test_items_of_every_kind_are_the_same_numbers(name: str) -> None:
    """Whatever they come in, as int64."""
    given = ITEMS[name] if name != "generator" else (item for item in IDS)
    found = as_items(given)
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.int64
    assert found.tolist() == IDS


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({1, 2}, r"is a set, whose order is by chance"),
        (frozenset({1}), r"is a frozenset"),
        ([1, 2.5], r"row 1: 2\.5 is no item"),
        ([1, float("nan")], r"row 1: nan is no item; every row needs one"),
        ([1, None], r"row 1: None"),
        ([1, True], r"row 1: True"),
        (np.array([True]), "holds bool"),
        ([1, 2.0**53], r"row 1: 9007199254740992\.0"),
        (np.array([1, 1 << 24], np.float32), r"row 1: .*16777216|row 1: .*1\.6777216e\+07"),
        (np.array([1, 2048], np.float16), r"row 1: "),
        ([b"1", b"\xff"], r"row 1: b'\\xff'"),
        (["1", ""], "row 1: an empty string"),
        (np.ones((2, 1), int), r"shape \(2, 1\)"),
        (np.ma.MaskedArray([1, 2], [False, True]), "row 1: there is no item"),
        (np.array([1, 2], "M8[s]"), "holds datetime64"),
        (np.array([1j]), "holds complex"),
        ([[1], [2]], "row 0: a list"),
        ("123", "not one str"),
        (7, "is 7"),
        (None, "is None"),
        (object(), "is an object"),
        (torch.nn.Embedding(2, 2), r"is a torch\.nn"),
    ],
)
def test_items_that_are_none_are_refused_with_their_row(given: Any, message: str) -> None:
    """A key that nobody will look up is worse than an error."""
    with pytest.raises(EmbeddingError, match=message):
        as_items(given, "ids")


def test_numbers_beyond_64_bits_stay_exact() -> None:
    """As strings, which is how a table keeps them, from a list as from an array."""
    wanted = ["1", str(2**64 - 1)]
    assert as_items([1, 2**64 - 1]) == as_items(np.array([1, 2**64 - 1], np.uint64)) == wanted
    with pytest.raises(EmbeddingError, match="more than 80 digits"):
        as_items([1, 10**6000])


@hypothesis.given(
    st.lists(st.one_of(st.integers(-(2**53) + 1, 2**53 - 1).map(float), st.integers(), st.text(min_size=1)))
)
def test_no_two_items_become_one(items: list[Any]) -> None:
    """Conversion is exact: what differs as numbers or strings differs afterwards."""
    found = as_items(items)
    spelled = [str(int(item)) if isinstance(item, float) else str(item) for item in items]
    assert [str(item) for item in (found if isinstance(found, list) else found.tolist())] == spelled


# --- vectors ------------------------------------------------------------------------------------

TORCH = torch.from_numpy(X.copy())
MATRICES: dict[str, Any] = {
    "lists": X.tolist(),
    "tuples": tuple(map(tuple, X.tolist())),
    "rows": list(X),
    "columns first": np.asfortranarray(X),
    "float16": X.astype(np.float16),
    "int8": X.astype(np.int8),
    "one vector a row": X[:, None],
    "objects": np.array(X.tolist(), object),
    "array of rows": np.fromiter((row for row in X), object, 3),
    "generator": None,
    "values of a dict": dict(enumerate(X)).values(),
    "tensor": TORCH,
    "bfloat16": TORCH.bfloat16(),
    "half": TORCH.half(),
    "with gradient": TORCH.clone().requires_grad_(),
    "weight of an embedding": torch.nn.Embedding.from_pretrained(TORCH, freeze=False).weight,
    "rows of an embedding": list(torch.nn.Embedding.from_pretrained(TORCH, freeze=False).weight),
    "rows in bfloat16": list(TORCH.bfloat16()),
    "negated view": torch.view_as_complex(torch.stack([TORCH, -TORCH], -1)).conj().imag,
    "dlpack": Packed(TORCH),
    "interface": Interface(X),
    "memoryview": memoryview(X),
}


@pytest.mark.parametrize("name", MATRICES)
def test_matrices_of_every_kind_hold_the_same_numbers(name: str) -> None:
    """Shape (n, dim), the numbers exactly."""
    found = as_matrix(MATRICES[name] if name != "generator" else (row for row in X))
    assert np.array_equal(found, X)


@pytest.mark.parametrize("given", [X, TORCH, X[:, None], Interface(X), memoryview(X), Packed(TORCH)])
def test_equal_layouts_are_not_copied(given: Any) -> None:
    """A matrix of 10 GB is there once."""
    found = as_matrix(given)
    whole = TORCH.numpy() if isinstance(given, torch.Tensor | Packed) else X
    assert np.shares_memory(found, whole)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([[1, 2], [3]], "row 1: 1 numbers, row 0 has 2"),
        ([X[0], X[1][:2]], "row 1: 2 numbers, row 0 has 4"),
        ([[1, 2], [3, "4"]], "row 1: .*entry 1 is '4'"),
        ([[1, 2], [3, None]], "row 1: .*entry 1 is None"),
        ([[1, 2], [3, True]], "row 1: .*entry 1 is True"),
        ([[1, 2], None], "row 1: None is no vector"),
        ([1, 2], "row 0: 1 is no vector"),
        (np.ones(3), r"shape \(3,\)"),
        (np.ones((2, 2), bool), "holds bool"),
        (np.ones((2, 2), complex), "holds complex"),
        (np.array([["1", "2"]]), "holds <U1"),
        (np.ma.MaskedArray(X, X > 5), "row 1: a number is masked"),
        (TORCH.to_sparse(), "to_dense"),
        (torch.ones(2, 2, device="meta"), "meta"),
        ({1, 2}, "whose order is by chance"),
        ({1: [1, 2]}, "row 0: 1 is no vector"),
        ("abc", "not one str"),
        (3, "is 3"),
    ],
)
def test_what_is_no_matrix_is_refused_with_its_row(given: Any, message: str) -> None:
    """And with what is wrong there."""
    with pytest.raises(EmbeddingError, match=message):
        as_matrix(given)


def test_what_a_strangers_object_raises_is_told_as_an_error_of_ours() -> None:
    """It may raise anything."""

    class Evil:
        def __array__(self, *args: Any, **options: Any) -> Any:
            raise AttributeError("inside")

    for convert in (as_matrix, as_items, as_query):
        with pytest.raises((EmbeddingError, ItemsError), match="AttributeError: inside"):
            convert(Evil())
    assert as_vector(Evil()) is None
    assert item_of(Evil()) is None


# --- Arrow and the libraries --------------------------------------------------------------------


def arrow() -> Any:
    return pytest.importorskip("pyarrow")


@pytest.mark.parametrize("wrap", [lambda column: column, Stream, Lone])
def test_columns_of_items_come_through_arrow(wrap: Any) -> None:
    """Any producer of its C stream or array, whatever type its numbers have."""
    pa = arrow()
    columns = [
        pa.array(IDS),
        pa.array(IDS, pa.uint8()),
        pa.array(IDS, pa.float64()),
        pa.array(IDS).cast(pa.decimal128(38, 0)),
        pa.array(["10", "20", "30"]),
        pa.array(["10", "20", "30"], pa.large_string()),
        pa.array(["10", "20", "30"], pa.string_view()),
        pa.array(["10", "20", "30"]).dictionary_encode(),
        pa.array(IDS).dictionary_encode(),
        pa.array([5, *IDS]).slice(1),
    ]
    for column in columns:
        offered = pa.chunked_array([column.slice(0, 1), column.slice(1)]) if wrap is Stream else column
        found = as_items(wrap(offered))
        assert isinstance(found, np.ndarray), column.type
        assert found.tolist() == IDS, column.type
    for column in (pa.array([1, None]), pa.array(["1", None])):
        with pytest.raises(EmbeddingError, match="row 1"):
            as_items(column)
    with pytest.raises(EmbeddingError, match="a column of bool"):
        as_items(pa.array([True]))
    with pytest.raises(EmbeddingError, match="a table with the columns a, b"):
        as_items(pa.table({"a": [1], "b": [2]}))
    assert as_items(Stream(pa.table({"a": IDS}))).tolist() == IDS  # type: ignore[union-attr]


def test_columns_of_vectors_come_through_arrow() -> None:
    """Lists of every layout, and tables of numbers; where Arrow holds a matrix, it is not copied."""
    pa = arrow()
    flat = pa.array(X.ravel())
    fixed = pa.FixedSizeListArray.from_arrays(flat, 4)
    for column in (
        fixed,
        fixed.slice(0),
        pa.array(X.tolist()),
        pa.array(X.tolist(), pa.large_list(pa.float32())),
        pa.array([[row] for row in X.tolist()]),
        pa.array([[0.0] * 4, *X.tolist()]).slice(1),
        pa.chunked_array([X[:1].tolist(), X[1:].tolist()]),
        pa.table({"embedding": X.tolist()}),
        pa.table({str(number): X[:, number] for number in range(4)}),
        Stream(pa.table({"embedding": X.tolist()})),
        Stream(pa.table({str(number): X[:, number] for number in range(4)})),
        Lone(fixed),
    ):
        assert np.array_equal(as_matrix(column), X)
    assert np.shares_memory(as_matrix(Lone(fixed)), flat.to_numpy())
    for column, message in (
        (pa.array([[1.0], [1.0, 2.0]]), "row 1: 2 numbers, row 0 has 1"),
        (pa.array([[1.0], None]), "row 1: there is no vector"),
        (pa.table({"id": [1], "emb": [[1.0]]}), "id int64, emb list"),
        (pa.array(["a"]), "one column of lists"),
    ):
        with pytest.raises(EmbeddingError, match=message):
            as_matrix(column)


def test_without_pyarrow_a_sentence_says_what_to_install() -> None:
    """For what can be had through Arrow alone."""
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from semid_dataset.objects import as_items\n"
        "class Relation:\n    def __arrow_c_stream__(self, schema=None): raise AssertionError\n"
        "try: as_items(Relation())\n"
        "except ValueError as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("EmbeddingError")
    assert "pip install pyarrow" in done.stdout


def of_pandas() -> tuple[list[Any], list[Any], Any]:
    pd = pytest.importorskip("pandas")
    items = [
        pd.Series(IDS), pd.Series(IDS, dtype="Int64"), pd.Series(IDS, dtype=float), pd.Index(IDS),
        pd.RangeIndex(10, 31, 10), pd.Series(["10", "20", "30"]), pd.Series(["10", "20", "30"], dtype="category"),
        pd.Series([10, "20", 30.0], dtype=object), pd.DataFrame({"id": IDS}),
    ]  # fmt: skip
    vectors = [
        pd.DataFrame(X), pd.DataFrame(X).astype("Float32"), pd.Series(list(X)), pd.Series(X.tolist()),
        pd.DataFrame({"emb": list(X)}),
    ]  # fmt: skip
    return items, vectors, pd.Series([10, None, 20], dtype="Int64")


def of_polars() -> tuple[list[Any], list[Any], Any]:
    pl = pytest.importorskip("polars")
    texts = ["10", "20", "30"]
    items = [pl.Series(IDS), pl.Series(texts), pl.Series(texts, dtype=pl.Categorical), pl.DataFrame({"id": IDS})]
    vectors = [pl.DataFrame(X), pl.Series(X), pl.Series(X.tolist()), pl.DataFrame({"emb": X.tolist()})]
    return items, vectors, pl.Series([10, None, 20])


def of_duckdb() -> tuple[list[Any], list[Any], Any]:
    duckdb = pytest.importorskip("duckdb")
    items = [duckdb.sql("select unnest([10, 20, 30])"), duckdb.sql("select unnest([10, 20, 30])::HUGEINT")]
    rows = ", ".join(str(row) for row in X.tolist())
    vectors = [duckdb.sql(f"select unnest([{rows}]) as emb"), duckdb.sql(f"select unnest([{rows}])::FLOAT[] as emb")]
    return items, vectors, duckdb.sql("select unnest([10, null, 20])")


def of_datasets() -> tuple[list[Any], list[Any], Any]:
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_dict({"id": IDS, "emb": X.tolist(), "some": [10, None, 20]})
    forms = [whole, whole.with_format("numpy"), whole.with_format("torch")]
    return [one["id"] for one in forms], [one["emb"] for one in forms], whole["some"]


@pytest.mark.parametrize("library", [of_pandas, of_polars, of_duckdb, of_datasets])
@pytest.mark.filterwarnings("default")
def test_objects_of_the_libraries_that_are_installed(library: Any) -> None:
    """Ids and vectors come out the same; a null is refused as an item and is a miss in a look-up."""
    items, vectors, some = library()
    for given in items:
        assert as_items(given).tolist() == IDS
    for given in vectors:
        assert np.array_equal(as_matrix(given), X)
    with pytest.raises(EmbeddingError, match="row 1"):
        as_items(some)
    table = SemanticIdTable.from_mapping({10: [1, 2], 20: [3, 4]})
    assert table.rows_of(some).tolist() == [0, -1, 1]


# --- the doors ----------------------------------------------------------------------------------


def test_the_api_takes_what_people_have(tmp_path: Path) -> None:
    """Items and vectors of any kind give the same IDs as arrays do."""
    x = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
    wanted = generate_from_vectors(np.arange(40), x, output_dir=tmp_path / "0", config=SMALL)
    for number, (items, vectors) in enumerate(
        [
            (list(np.arange(40)), torch.from_numpy(x)),
            (np.arange(40.0), torch.from_numpy(x).requires_grad_()),
            ([str(item) for item in range(40)], x.tolist()),
            (torch.arange(40), list(torch.nn.Embedding.from_pretrained(torch.from_numpy(x), freeze=False).weight)),
        ],
        start=1,
    ):
        table = generate_from_vectors(items, vectors, output_dir=tmp_path / str(number), config=SMALL)
        assert table.digest == wanted.digest
    more, new = extend_with_vectors(wanted, torch.tensor([40, 41]), torch.from_numpy(x[:2]))
    assert new == 2
    assert more.coverage(range(42)) == 1.0
    codes = wanted.quantizer.encode(x)
    for given in (x.tolist(), list(torch.from_numpy(x)), x.astype(">f4"), Interface(x)):
        assert np.array_equal(wanted.quantizer.encode(given), codes)
    assert np.array_equal(wanted.quantizer.decode(codes.tolist()), wanted.quantizer.decode(codes))
    with pytest.raises(EmbeddingError, match="whole numbers"):
        wanted.quantizer.decode(codes.astype(float))
    with pytest.raises(EmbeddingError, match="whose order is by chance"):
        generate_from_vectors(set(range(40)), x, output_dir=tmp_path / "set", config=SMALL)
    assert not (tmp_path / "set").exists()


def test_vectors_that_a_dataset_holds_may_be_tensors() -> None:
    """Rows of an embedding, on the way of training and in bfloat16: default IDs answered."""
    weight = torch.nn.Embedding.from_pretrained(TORCH, freeze=False).weight
    wanted = from_memory({"81": dict(zip(IDS, X, strict=True))}, ["81"])
    for rows in (list(weight), [row.bfloat16() for row in weight], X.tolist(), list(weight.detach())):
        held = {"81": {np.float64(item): row for item, row in zip(IDS, rows, strict=True)}}
        found = from_memory(held, ["81"])
        assert found.digest == wanted.digest
    for odd in (None, [1], torch.nn.Embedding(3, 4), {"81": weight}, {"81": 5}):
        with pytest.raises(EmbeddingError):
            from_memory(odd, ["81"])


@pytest.mark.parametrize("keys", [[10, 20], ["10", "20", "x"]], ids=["integers", "strings"])
def test_a_missing_item_is_a_miss_and_the_others_are_found(keys: list[Any]) -> None:
    """A null in a column costs nobody else the ID; whole floats are what a join made of integers."""
    table = SemanticIdTable.from_mapping({key: [number + 1, 2] for number, key in enumerate(keys)})
    rows = [0, -1, 1]
    for given in (
        [10, None, 20],
        [10.0, float("nan"), 20.0],
        np.array([10, np.nan, 20]),
        np.array([10, np.nan, 20], np.float32),
        np.array([10, None, "20"], object),
        np.ma.MaskedArray([10, 20, 20], [False, True, False]),
        torch.tensor([10.0, float("nan"), 20.0]),
        [10, True, b"20"],
    ):
        assert table.rows_of(given).tolist() == rows
        assert table.codes(given).tolist() == [[1, 2], [0, 0], [2, 2]]
        assert table.coverage(given) == pytest.approx(2 / 3)
    assert table.codes([[10, 20], [20, 7]]).tolist() == [[[1, 2], [2, 2]], [[2, 2], [0, 0]]]
    assert table[10.0] == table[np.float32(10)] == table.get(np.float64(10)) == [1, 2]
    assert 10.0 in table
    assert 10.5 not in table
    assert None not in table
    for odd in ("10", b"10", 10, None, object(), {10}, [[10], [10, 20]]):
        with pytest.raises(ItemsError):
            table.codes(odd)
    assert table.coverage({10, 20}) == 1.0
    with pytest.raises(ItemsError, match="A prefix"):
        table.items_of(["x"])


def test_misses_are_counted_over_calls() -> None:
    """A recommender that asks for 64 at a time hears of ids of another kind, too, once."""
    table = SemanticIdTable.from_mapping({item: [1, 2] for item in range(1000)})
    table.codes(range(64))
    table.codes(range(64))
    table.codes(range(5000, 5064))
    with pytest.warns(UserWarning, match=r"Only 0\.0%.*Without: 5064, 5065"):
        table.codes(range(5064, 5128))
    table.codes(range(9000, 9200))  # said once
    good = SemanticIdTable.from_mapping({item: [1, 2] for item in range(1000)})
    for begin in range(0, 640, 64):
        good.codes([*range(begin, begin + 60), -1, -2, -3, -4])  # no warning: new items are normal


def test_a_folder_opens_the_table_in_it(tmp_path: Path) -> None:
    """What was given as output_dir; and nothing that a person named is to be removed."""
    x = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
    table = generate_from_vectors(range(40), x, output_dir=tmp_path / "out", config=SMALL)
    assert SemanticIdTable.open(tmp_path / "out").digest == table.digest
    assert SemanticIdTable.open(str(tmp_path / "out")).path == tmp_path / "out" / "semid_table.safetensors"
    (tmp_path / "out" / "semid_table.safetensors").rename(tmp_path / "out" / "mine.safetensors")
    with pytest.raises(TableError, match=r"There is: mine\.safetensors"):
        SemanticIdTable.open(tmp_path / "out")
    for odd in (None, 7, b"x", object(), "a\0b", ["x"], PureWindowsPath("c:/x")):
        with pytest.raises((TableError, OSError)):
            SemanticIdTable.open(odd)  # type: ignore[arg-type]
    with pytest.raises(TableError, match="is a folder"):
        table.save(tmp_path)


def test_one_value_is_an_item_or_says_what_it_is() -> None:
    """Missing, or none at all."""
    assert item_of(None) is item_of(float("nan")) is item_of(np.float32("nan")) is MISSING
    for odd in (True, 0.5, float("inf"), 2.0**53, [1], (), {}, object(), 1j, Decimal("1.5"), int, importlib):
        assert item_of(odd) is None
