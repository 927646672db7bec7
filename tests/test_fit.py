"""One way in for a person with vectors: fit, encode, extend, look at, keep."""

import copy
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from strangers import Product, ProductTrainer

from semid_dataset import ResidualQuantizer, SemanticIdConfig, SemanticIdTable, add_semantic_ids, fit
from semid_dataset.codec._codebooks import RQKMeans
from semid_dataset.codec._rqvae import RQVAE
from semid_dataset.errors import ConfigError, EmbeddingError, ItemsError, NotFittedError, TableError
from semid_dataset.registry import QUANTIZERS

SMALL: dict[str, Any] = {"levels": 3, "codes": 16, "algorithm": "rqkmeans", "device": "cpu"}


def vectors(n: int = 300, dim: int = 6, seed: int = 1) -> Any:
    random = np.random.default_rng(seed)
    return (random.normal(size=(40, dim))[random.integers(0, 40, n)] + 0.2 * random.normal(size=(n, dim))).astype("f4")


# --- fit ---


def test_a_table_comes_back_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all rows, numbered from 0, with an ID of their own each, and its figures."""
    monkeypatch.chdir(tmp_path)
    table = fit(vectors(), **SMALL)
    assert (len(table), table.levels, table.codebook_sizes, table.status) == (300, 3, (16,) * 3, "trained")
    assert list(table) == list(range(300))
    assert len(np.unique(table.codes_array, axis=0)) == 300
    assert table.quality["items"] == 300
    assert table.path is None
    assert not list(tmp_path.rglob("*"))
    assert table.digest == fit(vectors(), **SMALL).digest


def test_the_same_ids_come_from_a_folder(tmp_path: Path) -> None:
    """It is the same training as `generate_from_vectors`."""
    from semid_dataset import generate_from_vectors

    config = SemanticIdConfig(num_quantizers=3, codebook_size=16, algorithm="rqkmeans", device="cpu")
    written = generate_from_vectors(range(300), vectors(), output_dir=tmp_path, config=config)
    assert fit(vectors(), **SMALL).digest == written.digest


@pytest.mark.parametrize("kind", ["list", "torch", "bfloat16", "float64", "arrow", "mapping of lists"])
def test_vectors_come_as_people_have_them(kind: str) -> None:
    """The very IDs of the array."""
    matrix = vectors(60).astype(np.float16).astype(np.float32)
    if kind == "bfloat16":
        matrix = torch.from_numpy(matrix).bfloat16().float().numpy()
    given: Any = {
        "list": matrix.tolist,
        "torch": lambda: torch.from_numpy(matrix).requires_grad_(),
        "bfloat16": lambda: torch.from_numpy(matrix).bfloat16(),
        "float64": lambda: matrix.astype(np.float64),
        "arrow": lambda: pytest.importorskip("pyarrow").array(matrix.tolist()),
        "mapping of lists": lambda: [np.array(row) for row in matrix],
    }[kind]()
    items = [f"p{row}" for row in range(60)]
    wanted = fit(matrix, items, **SMALL)
    found = fit(given, items, **SMALL)
    assert found.digest == wanted.digest
    assert np.array_equal(found.encode(given), wanted.encode(matrix))


@pytest.mark.parametrize(
    ("given", "items", "error", "said"),
    [
        (np.zeros((0, 4)), None, EmbeddingError, "no vectors"),
        (np.zeros(4), None, EmbeddingError, "shape"),
        ([[1, 2], [3]], None, EmbeddingError, "row 1"),
        ([[1.0, float("nan")], [3, 4]], None, EmbeddingError, "row 0"),
        ("x.npy", None, EmbeddingError, "str"),
        (object(), None, EmbeddingError, "object"),
        (np.eye(3), [1, 2], EmbeddingError, "2 items for 3 rows"),
        (np.eye(3), [1, 2, 2], EmbeddingError, "2"),
        (np.eye(3), [1, 2, None], EmbeddingError, "items"),
        (np.ones((30, 3)), None, EmbeddingError, "all equal"),
    ],
)
def test_what_is_no_vectors_is_an_error_of_ours(given: Any, items: Any, error: type[Exception], said: str) -> None:
    """Never an AttributeError or TypeError from the inside."""
    with pytest.raises(error, match=said):
        fit(given, items, **SMALL)


@pytest.mark.parametrize(
    "setting",
    [
        {"algorithm": "magic"},
        {"algorithm": None},
        {"algorithm": RQVAE},
        {"levels": 0},
        {"levels": "4"},
        {"codes": 1},
        {"codes": [16, 16]},
        {"codes": "256"},
        {"codes": None},
        {"seed": -1},
        {"device": "abacus"},
        {"unique": "no"},
    ],
)
def test_what_is_no_setting_is_named(setting: dict[str, Any]) -> None:
    """By the words of the configuration."""
    with pytest.raises(ConfigError):
        fit(vectors(50), **{**SMALL, **setting})


def test_a_trainer_with_settings_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of a name; what it is called stands in the table."""
    by_name = fit(vectors(), **SMALL)
    assert fit(vectors(), **{**SMALL, "algorithm": RQKMeans()}).digest == by_name.digest
    assert fit(vectors(), **{**SMALL, "algorithm": RQVAE(num_epochs=1)}).header.settings["num_epochs"] == 1
    monkeypatch.setattr(QUANTIZERS, "_loaded", dict(QUANTIZERS._loaded))
    QUANTIZERS.add("product", Product)
    table = fit(vectors(), **{**SMALL, "algorithm": ProductTrainer(rounds=1)})
    assert isinstance(table.quantizer, Product)
    assert table.header.settings["algorithm"] == "product"


@pytest.mark.parametrize("codes", [(255, 254), (16, 300), 64])
def test_few_items_and_many_codes(codes: Any) -> None:
    """Codewords that no item asked for are many and all alike: candidates are close, and none is left to compare."""
    table = fit(vectors(30, 4), levels=2, codes=codes, algorithm="rqkmeans", device="cpu")
    assert len(np.unique(table.codes_array, axis=0)) == 30


def test_sequences_shape_the_ids() -> None:
    """As in `generate_from_vectors`."""
    random = np.random.default_rng(0)  # users keep to one in twenty items, whatever these look like
    events = [random.integers(0, 15, 12) * 20 + user % 20 for user in range(300)]
    assert fit(vectors(), sequences=events, **SMALL).header.behaviour


# --- what a table does ---


def test_new_vectors_are_encoded_and_new_items_added() -> None:
    """No known ID moves; the old table stays as it is."""
    table = fit(vectors()[:200], [f"p{row}" for row in range(200)], **SMALL)
    assert np.array_equal(table.encode(vectors()[:5]), table.quantizer.encode(vectors()[:5]))
    grown = table.extend(vectors(), [f"p{row}" for row in range(300)])
    assert (len(table), len(grown), grown.status) == (200, 300, "extended")
    assert np.array_equal(grown.codes(list(table)), table.codes_array)
    assert len(np.unique(grown.codes_array, axis=0)) == 300
    assert grown.extend(vectors(), [f"p{row}" for row in range(300)]) is grown


@pytest.mark.parametrize("given", [np.zeros((3, 5)), [[1.0] * 5 + [float("inf")]], "x", None])
def test_vectors_that_do_not_fit_are_refused(given: Any) -> None:
    """In our words."""
    table = fit(vectors(), **SMALL)
    with pytest.raises(EmbeddingError):
        table.encode(given)
    with pytest.raises(EmbeddingError):
        table.extend(given, [1000])


def test_ids_alone_encode_nothing() -> None:
    """A hand-made table has no quantizer."""
    with pytest.raises(TableError, match="holds no quantizer"):
        SemanticIdTable.from_mapping({"a": [1, 2]}, codebook_sizes=4).encode(vectors())


@pytest.mark.parametrize("items", [range(30), [f"p{row}" for row in range(30)]])
def test_a_table_becomes_a_frame(items: Any) -> None:
    """Of Arrow, and of what takes Arrow."""
    pytest.importorskip("pyarrow")
    table = fit(vectors(30), items, **SMALL)
    frame = table.to_arrow()
    assert frame.column_names == ["item_id", "codes"]
    assert frame["item_id"].to_pylist() == list(table)
    assert frame["codes"].to_pylist() == table.codes_array.tolist()
    assert SemanticIdTable.from_mapping({}).to_arrow().num_rows == 0
    for library, made in (("pandas", table.to_pandas), ("polars", table.to_polars)):
        try:
            __import__(library)
        except ImportError:
            with pytest.raises(ConfigError, match=f"needs {library}"):
                made()
        else:
            assert list(made()["item_id"]) == list(table)


def test_a_missing_library_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not an ImportError from the inside."""
    table = fit(vectors(30), **SMALL)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r'pip install "semid_dataset\[parquet\]"'):
        table.to_arrow()


def test_a_notebook_shows_items_ids_and_figures() -> None:
    """Escaped, and short however many items there are."""
    table = fit(vectors(), [f"<b>{row}" for row in range(300)], **SMALL)
    page = table._repr_html_()
    assert "&lt;b&gt;0" in page
    assert "<b>" not in page
    assert "and 295 more" in page
    assert "Quality" in page
    assert len(page) < 20_000
    assert "not measured" not in SemanticIdTable.from_mapping({})._repr_html_()


# --- scikit-learn's manner ---


def test_a_quantizer_is_fitted_in_place() -> None:
    """Settings, fit, transform and back; what is not fitted says so."""
    quantizer = ResidualQuantizer(algorithm="rqkmeans", levels=3, codes=16, device="cpu")
    assert not hasattr(quantizer, "codebooks")
    for ask in (quantizer.encode, quantizer.transform, quantizer.decode):
        with pytest.raises(NotFittedError, match=r"Call fit\(vectors\) first"):
            ask(vectors())
    assert quantizer.fit(vectors().astype(np.float64)) is quantizer
    codes = quantizer.transform(vectors())
    assert np.array_equal(codes, quantizer.encode(vectors()))
    assert np.array_equal(quantizer.inverse_transform(codes), quantizer.decode(codes))
    assert np.array_equal(fit(vectors(), unique=False, **SMALL).codes_array, codes)
    assert quantizer.get_params() == {"algorithm": "rqkmeans", "levels": 3, "codes": 16, "device": "cpu", "seed": 0}
    quantizer.note = "somebody's"  # type: ignore[attr-defined]
    other = quantizer.set_params(levels=2).fit_transform(vectors())
    assert quantizer.note == "somebody's"  # type: ignore[attr-defined]
    assert np.allclose(
        quantizer.distances(vectors(), other[:, :1])[0, other[0, 1]], quantizer.squared_errors(vectors(), other)[0]
    )
    assert other.shape == (300, 2)
    assert quantizer.codebook_sizes == (16, 16)
    assert copy.deepcopy(quantizer).codebook_sizes == (16, 16)
    assert np.array_equal(pickle.loads(pickle.dumps(quantizer)).encode(vectors()), other)


def test_a_refused_fit_changes_nothing() -> None:
    """The quantizer goes on with the codebooks that it had."""
    quantizer = ResidualQuantizer(algorithm="rqkmeans", levels=2, codes=8, device="cpu").fit(vectors())
    before = quantizer.encode(vectors())
    for bad in (np.full((5, 6), np.nan), "x", np.ones((40, 6))):
        with pytest.raises(EmbeddingError):
            quantizer.fit(bad)
    with pytest.raises(ConfigError):
        quantizer.set_params(levels=99).fit(vectors())
    assert np.array_equal(quantizer.encode(vectors()), before)


def test_given_codebooks_are_settings_too() -> None:
    """So that a clone of a loaded quantizer can be fitted anew."""
    loaded = ResidualQuantizer([torch.zeros(4, 3), torch.zeros(8, 3)])
    assert loaded.get_params()["levels"] == 2
    assert loaded.get_params()["codes"] == (4, 8)


def test_scikit_learn_clones_it_and_takes_it_into_a_pipeline() -> None:
    """Where it is installed."""
    base = pytest.importorskip("sklearn.base", reason="scikit-learn is not installed")
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    quantizer = ResidualQuantizer(algorithm="rqkmeans", levels=2, codes=8, device="cpu").fit(vectors())
    twin = base.clone(quantizer)
    assert not hasattr(twin, "codebooks")
    assert twin.get_params() == quantizer.get_params()
    pipeline = make_pipeline(StandardScaler(), twin)
    codes = pipeline.fit(vectors()).transform(vectors())
    assert codes.shape == (300, 2)
    assert pipeline.inverse_transform(codes).shape == (300, 6)
    assert pipeline.set_params(residualquantizer__levels=3).fit_transform(vectors()).shape == (300, 3)


# --- Hugging Face datasets ---


class Columns:
    """As much of a `datasets.Dataset` as is asked for."""

    def __init__(self, columns: dict[str, Any]) -> None:
        self.columns = columns

    @property
    def column_names(self) -> list[str]:
        return list(self.columns)

    def __getitem__(self, name: str) -> Any:
        return self.columns[name]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def add_column(self, name: str, values: list[Any]) -> "Columns":
        return Columns({**self.columns, name: values})


def test_a_dataset_gets_a_column_of_ids() -> None:
    """Fitted to its vectors, or those of a table."""
    given = Columns({"id": [f"p{row}" for row in range(300)], "embedding": vectors().tolist()})
    table = fit(vectors(), given["id"], **SMALL)
    added = add_semantic_ids(given, items="id", table=table)
    assert added["semantic_id"] == table.codes(given["id"]).tolist()
    assert len(added["semantic_id"][0]) == 3
    with pytest.raises(ItemsError, match=r"no ID of 100 of 300 items.*extend"):
        add_semantic_ids(given, items="id", table=fit(vectors()[:200], given["id"][:200], **SMALL))
    with pytest.raises(ConfigError, match="A column of the dataset must be one of id, embedding, not 'vector'"):
        add_semantic_ids(given, "vector")
    for bad in ({"train": given}, [1], None):
        with pytest.raises(ConfigError, match=r"datasets\.Dataset"):
            add_semantic_ids(bad)


def test_a_table_has_one_pickle_whoever_made_or_read_it(tmp_path: Path) -> None:
    """`datasets.map` knows a function by its pickle: after a restart it must find what it computed before."""
    path = fit(vectors(), **SMALL).save(tmp_path / "t.safetensors")
    opened = SemanticIdTable.open(path)
    pickles = {
        pickle.dumps(table)
        for table in (
            opened,
            SemanticIdTable.open(path),
            opened.with_status("trained", "100 items, new lineage x"),
            opened.with_status("extended", "5 new items"),
            pickle.loads(pickle.dumps(opened)),
        )
    }
    assert len(pickles) == 1
    assert pickle.dumps(opened.with_status("stale", "gate closed")) not in pickles


def test_datasets_take_a_map_over_a_table_from_their_cache(tmp_path: Path) -> None:
    """Where it is installed: the fingerprint of a closure is the same after the table was opened anew."""
    hashing = pytest.importorskip("datasets.fingerprint", reason="datasets is not installed").Hasher
    path = fit(vectors(), **SMALL).save(tmp_path / "t.safetensors")

    def over(table: SemanticIdTable) -> Any:
        return lambda row: {"sid": table[row["id"]]}

    first = hashing.hash(over(SemanticIdTable.open(path).with_status("trained", "new")))
    assert hashing.hash(over(SemanticIdTable.open(path))) == first
