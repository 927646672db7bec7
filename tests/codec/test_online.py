"""`quantizer.module()`: the very codes of `encode`, in every runtime that takes the module."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from semid_dataset.codec._networks import ResidualMLP
from semid_dataset.codec.fusion import Fusion
from semid_dataset.codec.residual import ResidualQuantizer
from semid_dataset.errors import ConfigError
from semid_dataset.features import FeatureMatrix

N = 10_000
ALL: slice = slice(None)


def quantizer(
    dim: int = 16,
    sizes: Sequence[int] = (64, 64, 64),
    beam: int = 8,
    *,
    network: bool = False,
    fusion: Fusion | None = None,
) -> ResidualQuantizer:
    random = torch.Generator().manual_seed(dim)
    books = [torch.randn(size, dim, generator=random) * 0.6**level for level, size in enumerate(sizes)]
    books[-1][1] = books[-1][0]  # two codes that no vector can tell apart
    encoder = None
    if network:
        encoder = ResidualMLP(dim, 2 * dim, random)
        encoder.last = torch.randn(dim, 2 * dim, generator=random) * 0.1
    mean = torch.randn(dim, generator=random)
    return ResidualQuantizer(books, beam=beam, prefix_weight=0.3, mean=mean, scale=1.3, encoder=encoder, fusion=fusion)


def vectors(one: ResidualQuantizer, count: int = N) -> NDArray[np.float32]:
    """Random ones, some of every size, sums of codewords, and the mean itself: ties and near ties."""
    random = np.random.default_rng(1)
    x = random.standard_normal((count, one.dim)).astype(np.float32)
    x[: count // 10] *= np.ldexp(1.0, random.integers(-100, 100, (count // 10, 1))).astype(np.float32)
    x[count // 10 : count // 5] = one.decode(random.integers(0, min(one.codebook_sizes), (count // 10, 3)))
    x[-1] = one.mean.numpy()
    x[-2] = 0
    return x


KINDS = {
    "beam": {},
    "greedy": {"beam": 1},
    "networks": {"network": True},
    "wide": {"dim": 200},
    "few sums": {"sizes": (3, 5, 2)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_those_of_encode(kind: str) -> None:
    """Ties and near ties included, whatever the batch."""
    one = quantizer(**KINDS[kind])  # type: ignore[arg-type]
    x = vectors(one)
    expected = one.encode(x)
    module = one.module()
    for rows in (ALL, slice(0, 1), slice(5, 12)):
        found = module(torch.from_numpy(x[rows]))
        assert found.dtype == torch.int64
        np.testing.assert_array_equal(found.numpy(), expected[rows])


def test_codebooks_beyond_a_table_give_the_same_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products among codewords are then taken as they are needed."""
    monkeypatch.setattr("semid_dataset.codec._search.TABLE_FLOATS", 0)
    one = quantizer()
    module = one.module()
    assert not module.tabled
    x = vectors(one, 2_000)
    np.testing.assert_array_equal(module(torch.from_numpy(x)).numpy(), one.encode(x))


def features(items: int, names: Sequence[str], dims: dict[str, int]) -> list[FeatureMatrix]:
    random = np.random.default_rng(3)
    base = random.standard_normal((items, 6)).astype(np.float32)
    made = {name: base @ random.standard_normal((6, dim)).astype(np.float32) + 0.5 for name, dim in dims.items()}
    return [FeatureMatrix(name, np.arange(items), made[name]) for name in names]


@pytest.mark.parametrize("kind", ["aligned", "mean", "concat"])
@pytest.mark.parametrize("names", [["81", "9"], ["9", "81"], ["9"], ["81"]])
def test_fused_features_give_the_codes_of_encode_features(kind: str, names: list[str]) -> None:
    """In the order in which they are named, and with one of them missing."""
    dims = {"81": 12, "9": 12 if kind == "mean" else 7}
    fusion = Fusion.fit(features(3_000, ["81", "9"], dims), 3_000, kind)
    one = quantizer(fusion.dim, fusion=fusion)
    given = features(3_000, names, dims)
    beside = np.concatenate([feature.matrix for feature in given], axis=1)
    found = one.module(names)(torch.from_numpy(beside))
    np.testing.assert_array_equal(found.numpy(), one.encode_features(given, 3_000))


def test_a_metric_gives_the_codes_of_encode_features() -> None:
    random = np.random.default_rng(0)
    fusion = Fusion.of_metric("81", random.standard_normal(9).astype(np.float32), random.standard_normal((9, 9)))
    one = quantizer(9, fusion=fusion)
    given = FeatureMatrix("81", np.arange(2_000), random.standard_normal((2_000, 9)).astype(np.float32))
    given.matrix[0] = fusion.maps[0].mean  # of no length
    found = one.module()(torch.from_numpy(given.matrix))
    np.testing.assert_array_equal(found.numpy(), one.encode_features([given], 2_000))


@pytest.mark.parametrize("names", [["82"], [], ["81", "81"], ["81", "82"]])
def test_unknown_features_are_refused(names: list[str]) -> None:
    fusion = Fusion.fit(features(50, ["81", "9"], {"81": 4, "9": 4}), 50)
    with pytest.raises(ConfigError, match="81, 9"):
        quantizer(fusion.dim, fusion=fusion).module(names)


def test_a_row_that_is_not_finite_has_no_codes() -> None:
    """And the others keep theirs."""
    one = quantizer()
    x = vectors(one, 100)
    expected = one.encode(x).astype(np.int64)
    x[3, 2], x[7, 0] = np.nan, np.inf
    expected[[3, 7]] = -1
    np.testing.assert_array_equal(one.module()(torch.from_numpy(x)).numpy(), expected)


def test_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"instead of \(n, 16\)"):
        quantizer().module()(torch.zeros(2, 15))


def test_script_gives_the_same_codes_and_trace_is_refused(tmp_path: Path) -> None:
    one = quantizer(network=True)
    x = vectors(one, 2_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(one.module()), tmp_path / "module.pt")
        again = torch.jit.load(tmp_path / "module.pt")
        np.testing.assert_array_equal(again(torch.from_numpy(x)).numpy(), one.encode(x))
        with pytest.raises(RuntimeError, match=r"torch\.jit\.script"):
            torch.jit.trace(one.module(), torch.from_numpy(x[:2]))


def test_an_exported_program_gives_the_same_codes() -> None:
    """For batches of any size."""
    one = quantizer(network=True)
    x = vectors(one, 2_000)
    items = torch.export.Dim("items")
    program = torch.export.export(one.module(), (torch.from_numpy(x[:3]),), dynamic_shapes=({0: items},))
    for rows in (ALL, slice(0, 1)):
        np.testing.assert_array_equal(program.module()(torch.from_numpy(x[rows])).numpy(), one.encode(x[rows]))


@pytest.mark.parametrize("kind", ["networks", "wide", "fused"])
def test_onnx_gives_the_same_codes(kind: str, tmp_path: Path) -> None:
    """By onnxruntime, which shares no code with torch; batches of 1 and 4,096."""
    pytest.importorskip("onnxscript", reason="onnx and onnxscript write the model")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime runs the model")
    if kind == "fused":
        given = features(5_000, ["81", "9"], {"81": 12, "9": 7})
        fusion = Fusion.fit(given, 5_000)
        one = quantizer(fusion.dim, fusion=fusion)
        x = np.concatenate([feature.matrix for feature in given], axis=1)
        expected = one.encode_features(given, 5_000)
    else:
        one = quantizer(**KINDS[kind])  # type: ignore[arg-type]
        x = vectors(one, 5_000)
        expected = one.encode(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            one.module(),
            (torch.from_numpy(x[:3]),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("items")},),
            verbose=False,
        )
    assert program is not None
    program.save(tmp_path / "module.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "module.onnx")
    name = session.get_inputs()[0].name
    for rows in (slice(0, 4_096), slice(0, 1)):
        np.testing.assert_array_equal(session.run(None, {name: x[rows]})[0], expected[rows])


@pytest.mark.stress
def test_a_compiled_module_gives_the_same_codes() -> None:
    one = quantizer(network=True)
    x = vectors(one, 2_000)
    np.testing.assert_array_equal(torch.compile(one.module())(torch.from_numpy(x)).numpy(), one.encode(x))
