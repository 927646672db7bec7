"""New items whose vectors are not such as the codebooks were made for are told from those that are, and refused."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from world import ITEM0, SMALL, SmallDataset, make_data, vectors_of, write_embeddings

from semid_dataset import (
    SemanticIdConfig,
    SemanticIdTable,
    SemanticIdWarning,
    generate_from_vectors,
    generate_semantic_ids,
)
from semid_dataset.api import extend_with_vectors
from semid_dataset.build import novelty
from semid_dataset.errors import ForeignVectorsError

CONFIG = SemanticIdConfig(num_quantizers=3, codebook_size=16, algorithm="rqkmeans", device="cpu")
KNOWN, ALL, DIM = 300, 360, 32


def turned(vectors: np.ndarray, seed: int = 1) -> np.ndarray:
    """The same vectors as another encoder might give them: distances stay, directions do not."""
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((vectors.shape[1],) * 2))[0]
    return (vectors @ q).astype(np.float32)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> SemanticIdTable:
    """A table of 300 items; nobody changes it."""
    folder = tmp_path_factory.mktemp("base")
    return generate_from_vectors(range(KNOWN), vectors_of(ALL, DIM)[:KNOWN], output_dir=folder, config=CONFIG)


def extend(base: SemanticIdTable, vectors: np.ndarray, *, force: bool = False) -> SemanticIdTable:
    """Add items after the known ones."""
    return extend_with_vectors(base, range(KNOWN, KNOWN + len(vectors)), vectors, force=force)[0]


FOREIGN = {
    "of another encoder": turned,
    "with dimensions in another order": lambda v: v[:, ::-1],
    "not normalized": lambda v: 12 * v,
    "in other units, smaller": lambda v: v / 20,
    "shifted": lambda v: v + 2,
    "all zero": np.zeros_like,
    "negative": np.negative,
}


@pytest.mark.parametrize("how", FOREIGN)
@pytest.mark.parametrize("count", [10, 60])
def test_foreign_vectors_are_refused_and_let_in_on_demand(
    base: SemanticIdTable, how: str, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The error says what was measured; with force a warning says it, and known IDs stay either way."""
    vectors = np.ascontiguousarray(FOREIGN[how](vectors_of(ALL, DIM)[KNOWN : KNOWN + count]))
    with pytest.raises(ForeignVectorsError, match=r"known items keep their IDs.*--retrain.*--force"):
        extend(base, vectors)
    forced = extend(base, vectors, force=True)
    assert f"{count} new items lie far" in caplog.text
    assert len(forced) == KNOWN + count
    assert np.array_equal(forced.codes(base.keys_array), base.codes_array)


@pytest.mark.parametrize("count", [1, 2, 5, 20, 60])
def test_items_of_the_same_encoder_are_let_in_without_a_word(
    base: SemanticIdTable, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    """However few they are: one item alone may well be unlike most."""
    for begin in range(KNOWN, ALL, count):
        step = extend(base, vectors_of(ALL, DIM)[begin : begin + count]).info["history"][-1]
        assert step["relative_error_raw"] < 1
        assert 0.5 < step["length"] < 2
    assert not caplog.records


def test_vectors_that_drifted_are_let_in_with_a_warning(
    base: SemanticIdTable, caplog: pytest.LogCaptureFixture
) -> None:
    """Between the two bounds: they say that something changed, not that IDs are worthless."""
    noise = np.random.default_rng(0).standard_normal((60, DIM)).astype(np.float32)
    vectors = vectors_of(ALL, DIM)[KNOWN:]
    drifted = vectors + 0.07 * noise
    assert len(extend(base, drifted)) == ALL
    assert "Are they of the same encoder" in caplog.text


def test_a_table_that_states_nothing_of_its_fit_judges_nobody(base: SemanticIdTable) -> None:
    """A bare quantizer, as published ones are, has no error to hold others against."""
    from semid_dataset.build.lineages import open_parent

    bare = open_parent(base.quantizer, mmap=False)
    table, new = extend_with_vectors(bare, range(50), 12 * vectors_of(50, DIM))
    assert (len(table), new) == (50, 50)
    assert "relative_error_expected" not in table.info["history"][-1]


def test_a_dataset_is_served_without_foreign_items_until_somebody_decides(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Known IDs answer as "stale", aloud, at every start; a command fails, unless told to let them in."""
    data = make_data(tmp_path, 300, dim=DIM)
    born = SmallDataset(data).semantic_id_dict
    vectors = vectors_of(300, DIM)
    write_embeddings(data, np.concatenate([vectors, turned(vectors[:40])]))
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING), pytest.warns(SemanticIdWarning, match="40 new items"):
            served = SmallDataset(data).semantic_id_dict
        assert (served.status, served.digest) == ("stale", born.digest)
        assert "another encoder" in caplog.text
    with pytest.raises(ForeignVectorsError):
        generate_semantic_ids(data, config=SMALL)
    forced = generate_semantic_ids(data, config=SMALL, force=True)
    assert "lie far" in caplog.text
    assert (forced.status, len(forced)) == ("extended", 340)
    again = SmallDataset(data).semantic_id_dict
    assert (again.status, len(again)) == ("cached", 340)
    assert np.array_equal(again.codes(born.keys_array), born.codes_array)


def test_streamed_items_are_judged_alike(tmp_path: Path) -> None:
    """What is measured part by part is what is measured in memory."""
    data = make_data(tmp_path / "a", 300, dim=DIM)
    vectors = vectors_of(300, DIM)
    first = generate_semantic_ids(data, config=SMALL, engine="local")
    write_embeddings(data, np.concatenate([vectors, vectors[:40] * 9]))
    with pytest.raises(ForeignVectorsError, match="40 new items"):
        generate_semantic_ids(data, config=SMALL, engine="local")
    near = vectors[:40] + 0.01
    write_embeddings(data, np.concatenate([vectors, near]))
    streamed = generate_semantic_ids(data, config=SMALL, engine="local").info["history"][-1]
    memory, _ = extend_with_vectors(first, range(ITEM0, ITEM0 + 340), np.concatenate([vectors, near]))
    assert streamed["collisions_raw"] > 0
    for name, value in memory.info["history"][-1].items():
        if name not in {"time", "parent", "generation"}:
            assert streamed[name] == pytest.approx(value), name


def test_real_new_items_are_near_and_turned_ones_foreign(tmp_path: Path) -> None:
    """Beauty: some titles held back, then given; the same turned, and longer."""
    folder = os.environ.get("SEMID_REAL_DATA")
    if not folder:
        pytest.skip("SEMID_REAL_DATA names no folder with real data")
    parts = sorted((Path(folder) / "data" / "beauty").glob("emb_minilm384_f16.part*.npy"))
    vectors = np.concatenate([np.load(part) for part in parts]).astype(np.float32)[::4]
    order = np.random.default_rng(0).permutation(len(vectors))
    known, new = vectors[order[300:]], vectors[order[:300]]
    config = SemanticIdConfig(num_quantizers=3, codebook_size=64, algorithm="rqkmeans", device="cpu")
    table = generate_from_vectors(range(len(known)), known, output_dir=tmp_path, config=config)
    for some, verdict in ((new, "near"), (turned(new), "foreign"), (3 * new, "foreign"), (0.1 * new, "foreign")):
        found = novelty.judge(table, encoded_by(table, some))
        assert found is not None
        assert found.verdict == verdict, found
        if verdict == "near":
            assert found.error < 1.1 * found.expected
            assert found.length == pytest.approx(1, abs=0.02)


def encoded_by(table: SemanticIdTable, vectors: np.ndarray) -> novelty.Encoded:
    """Encode vectors as an extension does, without making codes unique."""
    codes = table.quantizer.encode(vectors)
    squared = float(np.square(vectors - table.quantizer.decode(codes)).sum(1).mean())
    return novelty.Encoded(codes, codes, 0, squared, squared, float(np.square(vectors).sum(1).mean()))
