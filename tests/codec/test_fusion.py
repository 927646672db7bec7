import json
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from semid_dataset.codec import fusion
from semid_dataset.codec.fusion import Fusion
from semid_dataset.errors import ConfigError, EmbeddingError, TableError
from semid_dataset.features import FeatureMatrix

Matrix = NDArray[np.float32]
KINDS = ["aligned", "mean", "concat"]


def world(items: int = 1_200, noise: float = 0.1, seed: int = 0, dims: Sequence[int] = (24, 10)) -> list[Matrix]:
    """Features that are views of the same eight hidden numbers, of other widths, places and sizes."""
    draw = np.random.default_rng(seed)
    hidden = draw.standard_normal((items, 8)) * np.linspace(2, 0.5, 8)
    return [
        (
            (hidden @ draw.standard_normal((8, dim)) + noise * draw.standard_normal((items, dim)) + 3 * number)
            * 10**number
        ).astype(np.float32)
        for number, dim in enumerate(dims)
    ]


def having(matrices: Sequence[Matrix], *has: NDArray[np.bool_]) -> list[FeatureMatrix]:
    return [
        FeatureMatrix(str(81 + number), np.flatnonzero(mask), matrix[mask])
        for number, (matrix, mask) in enumerate(zip(matrices, has, strict=True))
    ]


def everything(matrices: Sequence[Matrix]) -> list[FeatureMatrix]:
    return having(matrices, *(np.ones(len(matrix), bool) for matrix in matrices))


def alone(features: Sequence[FeatureMatrix], item: int) -> list[FeatureMatrix]:
    """What one item has, as if there were no others."""
    found = []
    for feature in features:
        at = np.flatnonzero(feature.rows == item)
        if len(at):
            found.append(FeatureMatrix(feature.id, np.zeros(1, np.int64), feature.matrix[at]))
    return found


def masks(items: int, seed: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    draw = np.random.default_rng(seed)
    first = draw.random(items) < 0.7
    return first, ~first | (draw.random(items) < 0.6)


def relative(error: Matrix, vectors: Matrix) -> float:
    return float(np.square(error).sum() / np.square(vectors - vectors.mean(axis=0)).sum())


def test_one_feature_passes_through_unchanged() -> None:
    """A single feature is not copied, whatever the kind."""
    feature = everything(world()[:1])[0]
    for kind in KINDS:
        fitted = Fusion.fit([feature], 1_200, kind)
        assert fitted.kind == "single"
        assert fitted.apply([feature], 1_200) is feature.matrix


@pytest.mark.parametrize("kind", KINDS)
def test_one_item_alone_gets_the_vector_that_it_gets_among_others(kind: str) -> None:
    """Bit for bit: another rounding could be another ID."""
    matrices = world(dims=(300, 300), items=700)
    features = having(matrices, *masks(700, 1))
    fitted = Fusion.fit(features, 700, kind)
    together = fitted.apply(features, 700)
    for item in range(0, 700, 13):
        np.testing.assert_array_equal(fitted.apply(alone(features, item), 1)[0], together[item])


def test_an_item_that_lacks_a_feature_lands_near_where_it_would_lie_with_all() -> None:
    """Aligned, features that tell the same: hiding either moves an item by a small part of the spread."""
    matrices = world()
    first, second = masks(1_200, 2)
    fitted = Fusion.fit(having(matrices, first, second), 1_200, "aligned")
    full = fitted.apply(everything(matrices), 1_200)
    for hidden in (0, 1):
        kept = np.ones(1_200, bool)
        features = having(matrices, kept if hidden else ~kept, ~kept if hidden else kept)
        partial = fitted.apply(features, 1_200)
        assert relative(partial - full, full) < 0.03


def test_aligned_is_nearer_than_concat() -> None:
    """Expecting a missing feature is better than calling it zero."""
    matrices = world()
    error = {}
    for kind in ("aligned", "concat"):
        fitted = Fusion.fit(everything(matrices), 1_200, kind)
        full = fitted.apply(everything(matrices), 1_200)
        error[kind] = relative(fitted.apply(everything(matrices)[:1], 1_200) - full, full)
    assert error["aligned"] < 0.1 * error["concat"]


def test_aligned_keeps_what_concat_keeps() -> None:
    """As many axes as both features have: distances are those of the scaled features side by side."""
    matrices = world(items=400)
    features = everything(matrices)
    aligned = Fusion.fit(features, 400, "aligned").apply(features, 400)
    concat = Fusion.fit(features, 400, "concat").apply(features, 400)
    first, second = np.random.default_rng(0).integers(0, 400, (2, 300))
    wanted = np.linalg.norm(concat[first] - concat[second], axis=1)
    np.testing.assert_allclose(np.linalg.norm(aligned[first] - aligned[second], axis=1), wanted, rtol=1e-3, atol=1e-4)


def test_scale_and_place_of_a_feature_do_not_matter() -> None:
    """Centred and scaled, a feature in other units gives the same vectors."""
    matrices = world()
    other = [matrices[0] * 1_000 - 7, matrices[1]]
    for kind in ("aligned", "concat"):
        fused = [Fusion.fit(everything(each), 1_200, kind).apply(everything(each), 1_200) for each in (matrices, other)]
        # Products, not coordinates: axes of nearly equal spread turn with the last bit, distances do not.
        np.testing.assert_allclose(fused[0] @ fused[0].T, fused[1] @ fused[1].T, atol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_features_does_not_matter(kind: str) -> None:
    """81, 82 and 82, 81 are one question."""
    features = having(world(dims=(16, 16)), *masks(1_200, 3))
    forward = Fusion.fit(features, 1_200, kind).apply(features, 1_200)
    backward = Fusion.fit(features[::-1], 1_200, kind).apply(features[::-1], 1_200)
    np.testing.assert_array_equal(forward, backward)


@pytest.mark.parametrize("kind", ["single", *KINDS])
def test_arrays_bring_the_same_fusion_back(kind: str) -> None:
    """What travels with the quantizer gives the same vectors, bit for bit, and its description is JSON."""
    features = having(world(dims=(16, 16)), *masks(1_200, 4))
    if kind == "single":
        features = everything(world()[:1])
    fitted = Fusion.fit(features, 1_200, "mean" if kind == "single" else kind)
    arrays, description = fitted.to_arrays()
    assert all(array.dtype == np.float32 for array in arrays.values())
    again = Fusion.from_arrays(arrays, json.loads(json.dumps(description)))
    assert (again.kind, again.dim) == (kind, fitted.dim)
    np.testing.assert_array_equal(again.apply(features, 1_200), fitted.apply(features, 1_200))


def test_a_metric_maps_an_item_alone_as_among_others_and_comes_back_from_its_arrays() -> None:
    """(x - mean) A of unit length, bit for bit in any company; zeros stay; another shape is refused."""
    draw = np.random.default_rng(0)
    matrix, mean, each = draw.standard_normal((700, 24)).astype(np.float32), draw.random(24), draw.random((24, 24))
    matrix[5] = mean
    fitted = Fusion.of_metric("own", matrix[5], each)
    together = fitted.apply([FeatureMatrix("own", np.arange(700), matrix)], 700)
    wanted = (matrix - matrix[5]) @ each
    lengths = np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(together, wanted / np.where(lengths > 0, lengths, 1), atol=1e-5)
    assert not together[5].any()
    arrays, description = fitted.to_arrays()
    again = Fusion.from_arrays(arrays, json.loads(json.dumps(description)))
    for row in range(0, 700, 13):
        one = again.apply([FeatureMatrix("own", np.arange(1), matrix[row : row + 1])], 1)
        np.testing.assert_array_equal(one[0], together[row])
    arrays["own.map"] = arrays["own.map"][:, 1:]
    with pytest.raises(TableError, match="a metric takes one feature of 24 dims"):
        Fusion.from_arrays(arrays, description)


@pytest.mark.parametrize("damage", ["array", "shape", "joint", "kind", "dim", "features", "entry"])
def test_a_damaged_fusion_is_a_table_error(damage: str) -> None:
    """A part that is missing or does not fit is said, not stumbled over."""
    features = everything(world())
    arrays, description = Fusion.fit(features, 1_200, "aligned").to_arrays()
    match damage:
        case "array":
            del arrays["81.map"]
        case "shape":
            arrays["81.map"] = arrays["81.map"][1:]
        case "joint":
            arrays["joint.shared"] = arrays["joint.shared"][1:]
        case "kind":
            description["kind"] = "another"
        case "dim":
            description["dim"] = "many"
        case "features":
            description["features"] = []
        case "entry":
            del description["features"][0]["offset"]
    with pytest.raises(TableError, match="cannot be read"):
        Fusion.from_arrays(arrays, description)


def test_mean_is_the_mean_of_what_an_item_has() -> None:
    """The original's rule, for features of equal width."""
    first, second = np.array([[1.0, 3.0]], np.float32), np.array([[3.0, 5.0], [7.0, 9.0]], np.float32)
    features = [FeatureMatrix("83", np.array([1]), first), FeatureMatrix("85", np.array([0, 1]), second)]
    fused = Fusion.fit(features, 2, "mean").apply(features, 2)
    np.testing.assert_array_equal(fused, [[3, 5], [4, 6]])


def test_mean_of_unequal_widths_is_refused() -> None:
    """It names the widths and what to use instead."""
    with pytest.raises(ConfigError, match=r'81: 24, 82: 10.*"aligned"'):
        Fusion.fit(everything(world()), 1_200, "mean")


def test_concat_puts_zeros_where_a_feature_is_missing() -> None:
    """A missing feature lies at its mean."""
    features = having(world(), *masks(1_200, 5))
    fitted = Fusion.fit(features, 1_200, "concat")
    fused = fitted.apply(features, 1_200)
    assert fitted.dim == 34
    lacks = np.setdiff1d(np.arange(1_200), features[0].rows)
    assert not fused[lacks, :24].any()
    assert fused[lacks, 24:].any()


def test_users_mistakes_are_named() -> None:
    """Nothing to fuse, twice the same, an unknown kind, rows beyond the items."""
    features = everything(world())
    fitted = Fusion.fit(features, 1_200, "aligned")
    with pytest.raises(ConfigError, match="no feature"):
        Fusion.fit([], 0)
    with pytest.raises(ConfigError, match="twice"):
        Fusion.fit([features[0], features[0]], 1_200)
    with pytest.raises(ConfigError, match="must be"):
        Fusion.fit(features, 1_200, "sum")
    with pytest.raises(ConfigError, match="do not fit 7 items"):
        Fusion.fit(features, 7)
    with pytest.raises(ConfigError, match="more than"):
        Fusion.fit([FeatureMatrix(str(k), np.arange(2), np.ones((2, 2), np.float32)) for k in range(65)], 2)
    with pytest.raises(ConfigError, match="99 is unknown to this fusion of 81, 82"):
        fitted.apply([FeatureMatrix("99", features[0].rows, features[0].matrix)], 1_200)
    with pytest.raises(EmbeddingError, match="10 dims here; 24 were fitted"):
        fitted.apply([FeatureMatrix("81", features[1].rows, features[1].matrix)], 1_200)
    with pytest.raises(EmbeddingError, match=r"Item number 1200 .*none of the features 81, 82"):
        fitted.apply(features, 1_201)


@settings(max_examples=60, deadline=None)
@given(
    items=st.integers(1, 12),
    dims=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    seed=st.integers(0, 99),
    scale=st.sampled_from([0.0, 1e-20, 1.0, 1e15]),
    kind=st.sampled_from(["aligned", "concat"]),
)
def test_degenerate_features_give_finite_vectors(
    items: int, dims: list[int], seed: int, scale: float, kind: str
) -> None:
    """One item, one dim, equal rows, zeros, nothing in common: every item still gets a vector."""
    draw = np.random.default_rng(seed)
    features = []
    for number, dim in enumerate(dims):
        rows = np.arange(items) if number == 0 else np.flatnonzero(draw.random(items) < 0.5)
        matrix = (draw.integers(-2, 3, (len(rows), dim)) * scale).astype(np.float32)
        features.append(FeatureMatrix(str(number), rows, matrix))
    fused = Fusion.fit(features, items, kind).apply(features, items)
    assert fused.shape[0] == items
    assert np.isfinite(fused).all()


def test_features_without_a_common_item_stand_side_by_side() -> None:
    """Nothing is known about how they belong together, so nothing is made up."""
    matrices = world()
    first = np.arange(1_200) < 600
    features = having(matrices, first, ~first)
    fused = Fusion.fit(features, 1_200, "aligned").apply(features, 1_200)
    assert np.abs(fused[:600] @ fused[600:].T).max() < 1e-4


def test_few_common_items_are_not_trusted() -> None:
    """A dozen items that have both show correlations by chance; following them would be worse than not."""
    draw = np.random.default_rng(0)
    first, second = (draw.standard_normal((2_000, 20)).astype(np.float32) for _ in range(2))  # unrelated
    both = np.zeros(2_000, bool)
    both[:12] = True
    half = np.arange(2_000) < 1_000
    fitted = Fusion.fit(having([first, second], half | both, ~half | both), 2_000, "aligned")
    full = fitted.apply(everything([first, second]), 2_000)
    error = relative(fitted.apply(everything([first])[:1], 2_000) - full, full)
    assert error < 0.6  # the half that is missing, and little more


def test_wide_features_take_the_axes_that_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only the top of the spectrum is computed, it is the top of the whole one."""
    features = everything(world(dims=(60, 40)))
    whole = Fusion.fit(features, 1_200, "aligned")
    monkeypatch.setattr(fusion, "EXACT_EIGH", 8)
    top = Fusion.fit(features, 1_200, "aligned")
    np.testing.assert_allclose(top.apply(features, 1_200)[:, :8], whole.apply(features, 1_200)[:, :8], atol=1e-2)


def test_statistics_come_from_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond so many rows a seeded sample serves: the same seed gives the same vectors."""
    monkeypatch.setattr(fusion, "FIT_ROWS", 300)
    features = everything(world())
    fused = [Fusion.fit(features, 1_200, "aligned", seed=seed).apply(features, 1_200) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(fused[0], fused[1])
    assert (fused[0] != fused[2]).any()
