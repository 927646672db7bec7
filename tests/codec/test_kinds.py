"""A quantizer of a stranger goes everywhere that ours go: made, unique, stored, served, grown, streamed, reported."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from strangers import Product, ProductTrainer
from world import make_data, vectors_of, write_embeddings

from semid_dataset import SemanticIdConfig, SemanticIdTable, generate_from_vectors, generate_semantic_ids
from semid_dataset.api import extend_with_vectors, own_embeddings
from semid_dataset.check import verify_table
from semid_dataset.codec.kinds import open_quantizer, read_quantizer, save_quantizer, state_of
from semid_dataset.codec.train import train
from semid_dataset.errors import ConfigError, EmbeddingError, TableError, TrainingError
from semid_dataset.features import FeatureMatrix
from semid_dataset.registry import QUANTIZERS, TRAINERS
from semid_dataset.report import report_facts
from semid_dataset.report._map import map_of

SMALL = SemanticIdConfig(num_quantizers=3, codebook_size=16, algorithm="rqkmeans")


@pytest.fixture(autouse=True)
def product(monkeypatch: pytest.MonkeyPatch) -> SemanticIdConfig:
    """Make the stranger's parts known, as entry points would; return a configuration that names them."""
    for registry, part in ((QUANTIZERS, Product), (TRAINERS, ProductTrainer)):
        monkeypatch.setattr(registry, "_loaded", dict(registry._loaded))
        registry.add("product", part)
    return SemanticIdConfig(num_quantizers=3, codebook_size=16, algorithm="product")


def vectors(n: int = 300, dim: int = 6) -> Any:
    random = np.random.default_rng(1)
    return (random.normal(size=(40, dim))[random.integers(0, 40, n)] + 0.2 * random.normal(size=(n, dim))).astype("f4")


def test_its_ids_are_unique_and_stand_in_a_file(tmp_path: Path, product: SemanticIdConfig) -> None:
    """Kind and state come back; the figures are those of its own codes."""
    table = generate_from_vectors(range(300), vectors(), output_dir=tmp_path, config=product)
    again = SemanticIdTable.open(tmp_path)
    assert again.header.quantizer is not None
    assert again.header.quantizer["kind"] == "product"
    assert isinstance(again.quantizer, Product)
    assert len(np.unique(again.codes_array, axis=0)) == 300
    raw = Product.encode(again.quantizer, vectors())
    assert (raw == again.codes_array).all(1).mean() > 0.3
    assert table.quality["moved"] == int((raw != again.codes_array).any(1).sum())
    assert 0 < table.quality["relative_mse_raw"] < 1
    assert table.quality["relative_mse_held_out"] is None
    assert report_facts(table)["items"]
    assert map_of(table, np.arange(300), table.codes_array, None) is not None
    assert verify_table(again, own_embeddings(range(300), vectors())).problems == ()


def test_it_grows_and_no_id_moves(tmp_path: Path, product: SemanticIdConfig) -> None:
    """New items are encoded by it, unique among those that are there, and measured."""
    table = generate_from_vectors(range(200), vectors()[:200], output_dir=tmp_path, config=product)
    grown, new = extend_with_vectors(table, range(300), vectors())
    assert new == 100
    assert np.array_equal(grown.codes(range(200)), table.codes(range(200)))
    assert len(np.unique(grown.codes_array, axis=0)) == 300
    assert isinstance(grown.quantizer, Product)


def test_look_ups_work_where_nothing_reads_its_kind(tmp_path: Path, product: SemanticIdConfig) -> None:
    """In a process that never heard of it: served warm, pickled, exported; encoding is an error that names the kind."""
    data = make_data(tmp_path / "data")
    made = generate_semantic_ids(data, config=product)
    code = (
        "import sys, pickle; sys.path.insert(0, sys.argv[2])\n"
        "from world import SmallDataset\n"
        "from semid_dataset.errors import TableError\n"
        "table = SmallDataset(__import__('pathlib').Path(sys.argv[1])).semantic_id_dict\n"
        "assert table.status == 'cached', (table.status, table.reason)\n"
        "assert 'torch' not in sys.modules\n"
        "print(table.digest, len(pickle.loads(pickle.dumps(table))))\n"
        "try: table.quantizer\n"
        "except TableError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(data), str(Path(__file__).parents[1])],
        capture_output=True,
        text=True,
        check=True,
    )
    served, said = done.stdout.splitlines()
    assert served == f"{made.digest} {len(made)}"
    assert "kind 'product'" in said
    assert "semid_dataset.quantizers" in said
    assert pickle.loads(pickle.dumps(made)).digest == made.digest


def test_several_features_are_fused_around_it(tmp_path: Path, product: SemanticIdConfig) -> None:
    """It has no place for the fusion, and need not: what is around it is kept beside its state."""
    data = make_data(tmp_path / "data")
    write_embeddings(data, vectors_of(150, 5, seed=3), "82")
    table = generate_semantic_ids(data, ("81", "82"), config=product, output_dir=tmp_path / "out")
    again = SemanticIdTable.open(tmp_path / "out")
    assert again.quantizer.kind == "product"
    assert isinstance(again.quantizer.fusion.dims, dict)
    one = again.quantizer.encode_features([FeatureMatrix("82", np.arange(7), vectors_of(7, 5))], 7)
    assert (one.shape, one.dtype) == ((7, 3), np.uint8)
    with pytest.raises(EmbeddingError, match=r"2 features \(81, 82\); one matrix is not enough"):
        again.encode(vectors_of(7, 5))
    assert np.array_equal(again.codes_array, table.codes_array)


def test_streamed_ids_are_those_of_memory(tmp_path: Path, product: SemanticIdConfig) -> None:
    """The stages of a streamed training ask the protocol alone, too."""
    data = make_data(tmp_path / "data")
    streamed = generate_semantic_ids(data, config=product, engine="local")
    whole = generate_semantic_ids(data, config=product, output_dir=tmp_path / "out")
    assert isinstance(streamed.quantizer, Product)
    assert np.array_equal(streamed.codes(list(whole)), whole.codes(list(whole)))


def test_a_bare_one_is_saved_and_is_a_parent(tmp_path: Path, product: SemanticIdConfig) -> None:
    """As a file or as it is: new items get IDs by it."""
    quantizer = train(vectors(), product).quantizer
    folder = save_quantizer(quantizer, tmp_path / "bare")
    assert isinstance(open_quantizer(folder), Product)
    data = make_data(tmp_path / "data", dim=6)
    for parent in (folder, quantizer):
        assert isinstance(generate_semantic_ids(data, config=SMALL, parent=parent).quantizer, Product)


def test_what_cannot_be_read_back_is_refused_before_it_is_written(
    product: SemanticIdConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kind that nobody announces, or a quantizer of other sizes than were asked for."""
    QUANTIZERS._loaded.pop("product")
    with pytest.raises(ConfigError, match="'product' is no kind of quantizer; there are faiss, residual"):
        train(vectors(), product)
    QUANTIZERS.add("product", Product)
    real = ProductTrainer.fit
    monkeypatch.setattr(ProductTrainer, "fit", lambda self, some, *, sizes, **more: real(self, some, sizes=[8], **more))
    with pytest.raises(TrainingError, match="'product' made a quantizer of"):
        train(vectors(), product)


def test_settings_that_the_configuration_has_reach_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    """By their names; the trainer's own keep their defaults."""
    from semid_dataset.codec.train import trainer_of

    trainer: Any = trainer_of(SemanticIdConfig(lr=0.5, num_epochs=7))
    assert (trainer.name, trainer.lr, trainer.num_epochs) == ("auto", 0.5, 7)
    with pytest.raises(ConfigError, match="one of auto, rqvae, rqkmeans, faiss, product, not 'rqvea'"):
        SemanticIdConfig(algorithm="rqvea")


@pytest.mark.parametrize("kind", ["nobodys", 7, None])
def test_an_unknown_kind_is_an_error_that_names_it(kind: Any, product: SemanticIdConfig) -> None:
    """And what to install; never one from the inside."""
    arrays, description = state_of(train(vectors(), product).quantizer)
    with pytest.raises(TableError, match=rf"kind {kind!r}.*entry points 'semid_dataset\.quantizers'"):
        read_quantizer(arrays, {**description, "kind": kind})


def test_a_damaged_state_is_an_error_of_the_table(product: SemanticIdConfig) -> None:
    """Whatever the stranger's reader raises."""
    arrays, description = state_of(train(vectors(), product).quantizer)
    with pytest.raises(TableError, match="cannot be read"):
        read_quantizer({name: arrays[name] for name in arrays if name != "words1"}, description)
