"""Rows far beyond all others take no part in training, and nothing else is taken for such."""

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from world import write_embeddings

from semid_dataset import SemanticIdConfig, SemanticIdTable, generate_from_vectors, generate_semantic_ids
from semid_dataset.api import extend_with_vectors
from semid_dataset.build.sequences import with_sequences
from semid_dataset.codec.bulk import distances, find_bulk, rows_with_share
from semid_dataset.codec.fusion import Fusion
from semid_dataset.codec.train import train
from semid_dataset.errors import EmbeddingError
from semid_dataset.features import FeatureMatrix
from semid_dataset.inputs.read import Embeddings

SMALL = SemanticIdConfig(num_quantizers=3, codebook_size=16, algorithm="rqkmeans", device="cpu")
N, DIM = 2000, 16


def mixture(n: int = N, dim: int = DIM, seed: int = 0) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((40, dim))[rng.integers(0, 40, n)] + 0.3 * rng.standard_normal((n, dim))).astype("f4")


def unit(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def legitimate(n: int, dim: int, seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """Vectors as encoders, factorizations and counts make them, heavy tails among them; no row of them is broken."""
    rng = np.random.default_rng(seed)
    gauss = rng.standard_normal((n, dim))
    zeros, most_zeros, rare = gauss.copy(), gauss.copy(), gauss.copy()
    zeros[rng.random(n) < 0.6] = 0
    most_zeros[rng.random(n) < 0.97] = 0
    rare[rng.random(n) < 0.02] *= 5
    return {
        "gaussian": gauss,
        "mixture": 3 * rng.standard_normal((50, dim))[rng.integers(0, 50, n)] + gauss,
        "unit": unit(gauss),
        "far from the origin": gauss + 1e4,
        **{f"lognormal {sigma}": gauss * np.exp(sigma * rng.standard_normal((n, 1))) for sigma in (0.5, 1, 2, 3)},
        **{f"pareto {alpha}": gauss * (1 + rng.pareto(alpha, (n, 1))) for alpha in (0.7, 1, 2, 4)},
        **{f"student {freedom}": rng.standard_t(freedom, (n, dim)) for freedom in (1, 2, 3)},
        "power law over dims": gauss * np.arange(1.0, dim + 1) ** -2,
        "decades over dims": gauss * 10.0 ** -np.arange(dim),
        "zeros": zeros,
        "nearly all zeros": most_zeros,
        "a rare group five times as long": rare,
        "counts": rng.poisson(rng.pareto(1.2, (n, 1)) * np.ones((1, dim))).astype(float),
        "zipf": rng.zipf(1.5, (n, dim)).clip(0, 10**12).astype(float),
        "one of many": np.eye(dim)[rng.integers(0, dim, n)],
        "equal": np.ones((n, dim)),
    }


@pytest.mark.parametrize("shape", [(30, 4), (300, 8), (5000, 16)])
@pytest.mark.parametrize("seed", range(3))
def test_heavy_tails_lose_no_row(shape: tuple[int, int], seed: int) -> None:
    """However far out the last row of a power law lies, it belongs to it."""
    lost = {
        name: int(bulk.beyond.sum())
        for name, x in legitimate(*shape, seed).items()
        if (bulk := find_bulk(x.astype(np.float32))).beyond is not None
    }
    assert not lost


@pytest.mark.parametrize("count", [1, 10, 100])
@pytest.mark.parametrize("size", [1e2, 1e3, 1e6, 1e9, 1e18])
@pytest.mark.parametrize("kind", ["mixture", "unit", "lognormal"])
def test_broken_rows_are_found_and_no_others(count: int, size: float, kind: str) -> None:
    """Of any size, in any direction, alone or one in twenty."""
    x = mixture()
    if kind == "unit":
        x = unit(x)
    elif kind == "lognormal":
        x = x * np.exp(0.3 * np.random.default_rng(1).standard_normal((N, 1)).astype("f4"))
        size = max(size, 1e4)
    rows = np.random.default_rng(count).choice(N, count, replace=False)
    x[rows] *= np.float32(size)
    bulk = find_bulk(x)
    assert bulk.beyond is not None
    assert np.flatnonzero(bulk.beyond).tolist() == sorted(rows.tolist())


@pytest.mark.parametrize("count", [1, 10])
@pytest.mark.parametrize("kind", ["mixture", "unit", "far from the origin"])
def test_a_few_rows_ten_times_as_long_are_found(count: int, kind: str) -> None:
    """One in 200 is no group of its own, and costs the others 6 % of error where training sees it."""
    x = {"mixture": mixture(), "unit": unit(mixture()), "far from the origin": mixture()}[kind]
    rows = np.random.default_rng(count).choice(N, count, replace=False)
    x[rows] *= 10
    if kind == "far from the origin":
        x += 100
    bulk = find_bulk(x)
    assert bulk.beyond is not None
    assert np.flatnonzero(bulk.beyond).tolist() == sorted(rows.tolist())


def test_many_rows_ten_times_as_long_are_a_group_of_their_own() -> None:
    """One in fifty: training must see them."""
    x = mixture()
    x[::50] *= 10
    assert find_bulk(x).beyond is None


def test_broken_rows_of_sizes_without_a_gap_are_found() -> None:
    """From a hundred times to 1e12 times as long, evenly: there is no step to see them by."""
    x = mixture().astype(np.float64)
    rows = np.random.default_rng(2).choice(N, 60, replace=False)
    x[rows] *= 10 ** np.linspace(2, 12, 60)[:, None]
    bulk = find_bulk(x)
    assert bulk.beyond is not None
    assert np.flatnonzero(bulk.beyond).tolist() == sorted(rows.tolist())


def test_too_few_rows_say_nothing() -> None:
    """Of seven rows nobody knows what is usual."""
    x = mixture(7)
    x[3] = 1e9
    assert find_bulk(x).beyond is None
    assert math.isinf(find_bulk(x).radius)
    x = mixture(8)
    x[3] = 1e9
    beyond = find_bulk(x).beyond
    assert beyond is not None
    assert np.flatnonzero(beyond).tolist() == [3]


def test_a_broken_row_changes_nobody_elses_id(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is named and counted, gets an ID itself, and errors are those of the others."""
    x = mixture()
    without = generate_from_vectors(
        np.delete(np.arange(N), 77), np.delete(x, 77, 0), output_dir=tmp_path / "a", config=SMALL
    )
    x[77] = 1e9
    with caplog.at_level(logging.WARNING):
        table = generate_from_vectors(np.arange(N), x, output_dir=tmp_path / "b", config=SMALL)
    assert "1 of 2000 vectors lie far beyond all others" in caplog.text
    assert "items 77)" in caplog.text
    others = np.delete(np.arange(N), 77)
    assert np.array_equal(table.codes(others), without.codes(others))
    assert table.coverage([77]) == 1.0
    assert len(set(map(tuple, table.codes_array.tolist()))) == N
    quality = table.quality
    assert (quality["set_aside"], quality["rows_with_99_percent"]) == (1, 1)
    assert quality["relative_mse"] == pytest.approx(without.quality["relative_mse"])
    assert quality["relative_mse_raw"] == pytest.approx(without.quality["relative_mse_raw"])
    assert table.header.variance == pytest.approx(without.header.variance)
    assert without.quality["set_aside"] == 0
    assert without.quality["rows_with_99_percent"] > N // 2


@pytest.mark.parametrize("algorithm", ["rqkmeans", "rqvae"])
def test_codebooks_are_those_of_a_training_without(algorithm: Any) -> None:
    """Bit for bit, with networks too."""
    config = SemanticIdConfig(num_quantizers=2, codebook_size=16, algorithm=algorithm, num_epochs=2, device="cpu")
    x = mixture()
    broken = np.insert(x, [5, 900], 1e12, axis=0)
    one, other = train(x, config).quantizer.to_arrays(), train(broken, config).quantizer.to_arrays()
    assert one[1] == other[1]
    assert all(np.array_equal(one[0][name], other[0][name]) for name in one[0])


def test_new_items_that_are_broken_do_not_speak_for_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One of fifty: it is named, and the others are not refused for its error."""
    x = mixture(N + 50)
    table = generate_from_vectors(np.arange(N), x[:N], output_dir=tmp_path, config=SMALL)
    x[N + 7] = 1e9
    with caplog.at_level(logging.WARNING):
        more, new = extend_with_vectors(table, np.arange(N + 50), x)
    assert new == 50
    assert f"items {N + 7})" in caplog.text
    assert more.header.history[-1]["relative_error"] < 2 * table.header.relative_error


def test_streamed_training_sets_rows_aside_as_well(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The sample decides what is far; parts encode, count and measure by it."""
    x = mixture()
    x[3], x[1500] = 1e9, -1e12
    write_embeddings(tmp_path, x, first=0)
    with caplog.at_level(logging.WARNING):
        table = generate_semantic_ids(tmp_path, ["81"], config=SMALL, output_dir=tmp_path / "out", engine="local")
    assert "2 of 2000 vectors lie far beyond all others" in caplog.text
    assert "items 3, 1500)" in caplog.text
    in_memory = generate_from_vectors(np.arange(N), x, output_dir=tmp_path / "memory", config=SMALL)
    assert np.array_equal(table.codes(np.arange(N)), in_memory.codes(np.arange(N)))
    assert table.quality["set_aside"] == 2
    assert table.quality["relative_mse"] == pytest.approx(in_memory.quality["relative_mse"], rel=1e-5)
    assert table.header.variance == pytest.approx(in_memory.header.variance, rel=1e-5)
    assert table.header.radius == pytest.approx(in_memory.header.radius)


@pytest.mark.parametrize("kind", ["aligned", "concat"])
def test_a_broken_row_of_one_feature_leaves_the_fusion_as_it_is(kind: str) -> None:
    """Each feature has a bulk of its own."""
    one, two = mixture(), mixture(dim=8, seed=1)
    rows = np.arange(N)
    clean = Fusion.fit((FeatureMatrix("1", rows[1:], one[1:]), FeatureMatrix("2", rows, two)), N, kind)
    broken = one.copy()
    broken[0] = 1e9
    found = Fusion.fit((FeatureMatrix("1", rows, broken), FeatureMatrix("2", rows, two)), N, kind)
    wanted, got = clean.to_arrays()[0], found.to_arrays()[0]
    assert all(np.array_equal(wanted[name], got[name]) for name in wanted)


def test_a_broken_row_does_not_shape_what_behaviour_learns(caplog: pytest.LogCaptureFixture) -> None:
    """Neither the metric nor the items that were taken near it."""
    x = mixture()
    rng = np.random.default_rng(3)
    sequences = [rng.choice(N, 6) for _ in range(500)]

    def made(matrix: np.ndarray[Any, Any], sequences: Any) -> np.ndarray[Any, Any]:
        feature = FeatureMatrix("own", np.arange(N), matrix)
        with caplog.at_level(logging.WARNING):
            fused = with_sequences(Embeddings(np.arange(N), (feature,), "", {}, 0), sequences).fused
        assert fused is not None
        return fused[1]

    clean = made(x, [sequence[sequence != 9] for sequence in sequences])
    assert not caplog.text
    x[9] = 1e9
    found = made(x, sequences)
    others = np.delete(np.arange(N), 9)
    assert np.einsum("ij,ij->i", clean[others], found[others]).min() > 0.999
    assert "items 9)" in caplog.text


@pytest.mark.parametrize("value", [0.0, 3.5, 1e-40, 1e9])
def test_vectors_that_are_all_equal_are_an_error(value: float) -> None:
    """Nothing tells such items apart, and an error of 0 would say that all is well."""
    with pytest.raises(EmbeddingError, match="all equal"):
        train(np.full((60, 4), value, np.float32), SMALL)
    with pytest.raises(EmbeddingError, match=r"all equal|differ by"):
        train(mixture() * np.float32(1e-38), SMALL)
    assert train(np.full((1, 4), value, np.float32), SMALL).quantizer.encode(np.full((1, 4), value)).shape == (1, 3)


@pytest.mark.parametrize("power", [-80, 50])
def test_tiny_and_huge_vectors_are_vectors(tmp_path: Path, power: int) -> None:
    """A scale that is a power of two changes no code and no figure: squares of such numbers are beyond float32."""
    x = mixture()
    wanted = generate_from_vectors(np.arange(N), x, output_dir=tmp_path / "a", config=SMALL)
    found = generate_from_vectors(np.arange(N), np.ldexp(x, power), output_dir=tmp_path / "b", config=SMALL)
    assert np.array_equal(found.codes_array, wanted.codes_array)
    for name in ("relative_mse", "relative_mse_raw", "relative_mse_levels", "relative_mse_held_out"):
        assert found.quality[name] == pytest.approx(wanted.quality[name], rel=1e-4), name
    assert found.quality["neighbour_fidelity"] == wanted.quality["neighbour_fidelity"]


def test_a_table_without_a_radius_sets_nothing_aside(tmp_path: Path) -> None:
    """As those of earlier versions, and hand-made ones."""
    assert math.isinf(SemanticIdTable.from_mapping({1: [2, 3]}).header.radius)


def test_shares_of_the_variance() -> None:
    """How few rows hold it."""
    assert rows_with_share(np.array([1.0, 100.0, 1.0])) == 1
    assert rows_with_share(np.ones(200)) == 198
    assert rows_with_share(np.zeros(5)) == 0
    assert distances(np.zeros((0, 3)), np.zeros(3)).shape == (0,)
