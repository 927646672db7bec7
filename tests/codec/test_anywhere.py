"""
Codes depend on the vector and the table alone.

Vectors lie on decisions by construction: halfway between sums of codewords, or at the last bit on either side of where
codes change. `encode_anywhere` encodes them in processes that compute as other machines do.
"""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from codec.encode_anywhere import encoded
from numpy.typing import NDArray

from semid_dataset.api import generate_from_vectors
from semid_dataset.codec._networks import ResidualMLP
from semid_dataset.codec._search import BeamSearch, ExactSearch
from semid_dataset.codec.fusion import Fusion
from semid_dataset.codec.residual import ResidualQuantizer
from semid_dataset.config import SemanticIdConfig
from semid_dataset.features import FeatureMatrix

Matrix = NDArray[np.float32]
SCRIPT = Path(__file__).parent / "encode_anywhere.py"


def books_of(draw: np.random.Generator, sizes: Sequence[int], dim: int) -> list[NDArray[np.int64]]:
    """Whole numbers of 20 bits, smaller from level to level: float32 must round what is added up of them."""
    return [draw.integers(-(1 << 19) >> level, 1 << 19 >> level, (size, dim)) * 2 for level, size in enumerate(sizes)]


def slow_search(vector: NDArray[np.int64], books: Sequence[NDArray[np.int64]], widths: Sequence[int]) -> list[int]:
    """The beam search in whole numbers, of equal sums the lowest codes first."""
    kept: list[tuple[list[int], NDArray[np.int64]]] = [([], np.zeros_like(vector))]
    for book, width in zip(books, [*widths, 1], strict=True):
        sums = [([*codes, code], partial + word) for codes, partial in kept for code, word in enumerate(book)]
        sums.sort(key=lambda entry: (int((entry[1] * (entry[1] - 2 * vector)).sum()), entry[0]))
        kept = sums[:width]
    return kept[0][0]


def quantizer_of(books: Sequence[NDArray[Any]], beam: int, **more: Any) -> ResidualQuantizer:
    return ResidualQuantizer([torch.from_numpy(book.astype(np.float32)) for book in books], beam=beam, **more)


def held_against_whole_numbers(books: Sequence[NDArray[np.int64]], vectors: NDArray[np.int64], beam: int) -> None:
    quantizer = quantizer_of(books, beam)
    wanted = [slow_search(vector, books, quantizer.search.widths) for vector in vectors]
    assert np.array_equal(vectors.astype(np.float32), vectors)
    assert quantizer.encode(vectors.astype(np.float32)).tolist() == wanted
    backwards = quantizer.encode(vectors[::-1].astype(np.float32))[::-1]
    assert backwards.tolist() == wanted


@pytest.mark.parametrize("dim", [2, 24, 200])
def test_halfway_between_two_codewords_the_lower_code_wins(dim: int) -> None:
    """Greedy: every pair of words, where float32 says one or the other at random."""
    books = books_of(np.random.default_rng(dim), (12,), dim)
    pairs = [(books[0][one] + books[0][other]) // 2 for one, other in itertools.combinations(range(12), 2)]
    held_against_whole_numbers(books, np.array(pairs), 1)


@pytest.mark.parametrize("beam", [1, 3, 8])
def test_halfway_between_two_sums_the_lower_codes_win(beam: int) -> None:
    """The last, the second and the first code are torn between two, wide beams and narrow ones."""
    draw = np.random.default_rng(beam)
    books = books_of(draw, (9, 9, 9), 20)
    vectors = []
    for level in (0, 1, 2):
        for _ in range(25):
            codes = np.stack([draw.integers(0, 9, 3)] * 2)
            codes[1, level] = draw.integers(0, 9)
            sums = [sum(book[code] for book, code in zip(books, row, strict=True)) for row in codes]
            vectors.append((sums[0] + sums[1]) // 2)
    held_against_whole_numbers(books, np.array(vectors), beam)


@pytest.mark.parametrize("beam", [2, 4, 16])
def test_of_equal_candidates_of_a_beam_those_of_the_lowest_codes_survive(beam: int) -> None:
    """Words with their opposites, and twins: at the origin, and on axes, most sums are as good as several others."""
    draw = np.random.default_rng(beam)
    books = []
    for book in books_of(draw, (5, 5, 5), 16):
        both = np.concatenate([book, -book, book[:2]])
        books.append(both[draw.permutation(len(both))])
    vectors = np.zeros((20, 16), np.int64)
    vectors[np.arange(1, 17), np.arange(16)] = draw.integers(1, 1 << 18, 16)
    held_against_whole_numbers(books, vectors, beam)


def straddling(
    encode: Callable[[Matrix], NDArray[Any]], first: Matrix, second: Matrix, steps: int = 60
) -> tuple[Matrix, Matrix]:
    """Return rows next to each other, as float32 goes, that are encoded otherwise: where codes change on the way."""
    before = encode(first)
    for _ in range(steps):
        middle = ((first.astype(np.float64) + second) / 2).astype(np.float32)
        same = (encode(middle) == before).all(1)
        first, second = np.where(same[:, None], middle, first), np.where(same[:, None], second, middle)
    return first, second


@pytest.mark.parametrize(("dim", "beam", "weight"), [(24, 16, 0.3), (24, 1, 0.0), (300, 4, 0.3)])
@pytest.mark.parametrize("tables", [True, False])
def test_what_is_not_doubted_is_right_however_products_are_rounded(
    dim: int, beam: int, weight: float, tables: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the vectors lie on decisions; sums are taken in other orders, and one by one."""
    if not tables:
        monkeypatch.setattr("semid_dataset.codec._search.TABLE_FLOATS", 0)
    draw = np.random.default_rng(dim)
    books = [draw.standard_normal((32, dim)) / 2**level for level in range(4)]
    quantizer = quantizer_of(books, beam, prefix_weight=weight)
    far = draw.standard_normal((240, dim)).astype(np.float32)
    near = straddling(quantizer.encode, far[:120], far[120:])
    vectors = np.concatenate([far, *near])
    wanted = ExactSearch(quantizer.search)(vectors)[:, 0]
    assert np.array_equal(quantizer.encode(vectors), wanted)

    def otherwise(self: BeamSearch, latents: torch.Tensor, level: int) -> torch.Tensor:
        order = torch.from_numpy(draw.permutation(dim))
        found = torch.zeros(len(latents), len(self.codebooks[level]))
        for begin in range(0, dim, 128):  # one product after the other: the worst order there is
            part = torch.zeros_like(found)
            for at in order[begin : begin + 128].tolist():
                part = part + latents[:, at : at + 1] * self.codebooks[level][:, at]
            found = found + part
        return self.half_norms[level] - found

    monkeypatch.setattr(BeamSearch, "_linear", otherwise)
    codes, doubt = quantizer.search.judged(torch.from_numpy(vectors))
    sure = ~doubt.numpy()
    assert np.array_equal(codes.numpy()[sure, 0], wanted[sure])
    assert 0.3 < sure.mean() < 0.9  # neither blind nor of no use


def test_products_rounded_to_bfloat16_change_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever asked torch or its libraries for them: it is seen, and everything is searched exactly."""
    draw = np.random.default_rng(5)
    quantizer = quantizer_of([draw.standard_normal((32, 40)) / 2**level for level in range(3)], 4)
    vectors = draw.standard_normal((500, 40)).astype(np.float32)
    wanted = quantizer.encode(vectors)
    assert quantizer.search.rounds_finely()
    real = torch.mm

    def coarse(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        if left.dtype == torch.float32:
            return real(left.bfloat16().float(), right.bfloat16().float())
        return real(left, right)

    monkeypatch.setattr(torch, "mm", coarse)
    assert not quantizer.search.rounds_finely()
    assert not np.array_equal(quantizer.search(torch.from_numpy(vectors))[:, 0].numpy(), wanted)
    assert np.array_equal(quantizer.encode(vectors), wanted)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_types_of_the_same_numbers_get_the_same_codes_on_a_decision(dtype: type) -> None:
    """Halfway between words that float16 holds."""
    draw = np.random.default_rng(9)
    books = [draw.integers(-200, 200, (20, 8)) * 2]
    vectors = np.array([(books[0][one] + books[0][other]) // 2 for one in range(20) for other in range(20)])
    quantizer = quantizer_of(books, 1)
    assert np.array_equal(quantizer.encode(vectors.astype(dtype)), quantizer.encode(vectors.astype(np.float32)))


@pytest.mark.parametrize("networks", [False, True])
def test_numbers_at_the_end_of_float32_are_encoded_alike(networks: bool) -> None:
    """Far from all codewords, and beyond what sums and latents in float32 hold: alone as among others, no error."""
    draw = np.random.default_rng(3)
    more = {"encoder": network(6, draw)} if networks else {}
    quantizer = quantizer_of([draw.standard_normal((16, 6)) for _ in range(3)], 4, scale=0.25, **more)
    vectors = (draw.standard_normal((60, 6)) * 10.0 ** draw.integers(-40, 39, (60, 1))).astype(np.float32)
    vectors[:3] = np.float32(3.4e38) * np.sign(vectors[:3])
    codes = quantizer.encode(vectors)
    alone = [quantizer.encode(row[None])[0].tolist() for row in vectors]
    assert codes.tolist() == alone
    assert np.isfinite(quantizer.latents(vectors).numpy()).all()


# --- other machines -----------------------------------------------------------------------------------


def network(dim: int, draw: np.random.Generator) -> ResidualMLP:
    module = ResidualMLP(dim, 48)
    for name, weight in module.weights.items():
        setattr(module, name, torch.from_numpy(draw.standard_normal(tuple(weight.shape)).astype(np.float32) / dim**0.5))
    return module


def write_case(folder: Path, name: str, quantizer: ResidualQuantizer, features: list[FeatureMatrix]) -> None:
    quantizer.save_pretrained(folder / name)
    arrays = {f"{feature.id}.rows": feature.rows for feature in features}
    np.savez(folder / f"{name}.npz", **arrays, **{f"{feature.id}.matrix": feature.matrix for feature in features})


def near_decisions(quantizer: ResidualQuantizer, ids: Sequence[str], matrices: list[Matrix]) -> list[Matrix]:
    """Return the matrices with rows on both sides of where codes change, at the last bit of all features together."""
    items = len(matrices[0]) // 2
    widths = np.cumsum([matrix.shape[1] for matrix in matrices])[:-1]

    def encode(rows: Matrix) -> NDArray[Any]:
        parts = np.split(rows, widths, axis=1)
        features = [
            FeatureMatrix(key, np.arange(len(rows)), np.ascontiguousarray(part))
            for key, part in zip(ids, parts, strict=True)
        ]
        return quantizer.encode_features(features, len(rows))

    rows = np.concatenate(matrices, axis=1)
    near = straddling(encode, rows[:items], rows[items : 2 * items])
    return [np.ascontiguousarray(part) for part in np.split(np.concatenate(near), widths, axis=1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Quantizers of every kind, and items on their decisions."""
    folder = tmp_path_factory.mktemp("anywhere")
    draw = np.random.default_rng(0)

    def codebooks(dim: int, size: int, spread: float) -> list[NDArray[Any]]:
        return [draw.standard_normal((size, dim)) * spread / 2**level for level in range(3)]

    def matrix(items: int, dim: int) -> Matrix:
        return draw.standard_normal((items, dim)).astype(np.float32)

    for name, dim, more in (
        ("plain", 24, {"prefix_weight": 0.3, "scale": 0.7}),
        ("wide", 300, {"prefix_weight": 0.3, "mean": torch.full((300,), 0.1)}),
        ("networks", 24, {"encoder": network(24, draw), "scale": 3.0}),
    ):
        quantizer = quantizer_of(codebooks(dim, 8, 1.0), 8, **more)
        (rows,) = near_decisions(quantizer, ["81"], [matrix(300, dim)])
        write_case(folder, name, quantizer, [FeatureMatrix("81", np.arange(len(rows)), rows)])
    for kind in ("aligned", "mean", "concat", "metric"):
        ids = ["81"] if kind == "metric" else ["81", "82"]
        matrices = [matrix(300, 20) for _ in ids]
        features = [FeatureMatrix(key, np.arange(300), one) for key, one in zip(ids, matrices, strict=True)]
        if kind == "metric":
            fusion = Fusion.of_metric("81", draw.standard_normal(20), draw.standard_normal((20, 20)))
        else:
            fusion = Fusion.fit(features, 300, kind)
        spread = float(fusion.apply(features, 300).std())
        quantizer = quantizer_of(codebooks(fusion.dim, 8, spread), 4, prefix_weight=0.3, fusion=fusion)
        near = near_decisions(quantizer, ids, matrices)
        items = len(near[0])
        features = [FeatureMatrix(key, np.arange(items), one) for key, one in zip(ids, near, strict=True)]
        if kind != "metric":  # every third item lacks one of the two
            kept = [np.arange(items) % 3 != lacking for lacking in (0, 1)]
            features = [
                FeatureMatrix(feature.id, np.flatnonzero(has), feature.matrix[has])
                for feature, has in zip(features, kept, strict=True)
            ]
        write_case(folder, kind, quantizer, features)
    vectors = matrix(400, 16)
    table = generate_from_vectors(
        list(range(400)), vectors, output_dir=folder / "out", config=SemanticIdConfig(3, 8, num_epochs=2)
    )
    table.save(folder / "table")
    np.save(folder / "new.npy", near_decisions(table.quantizer, ["own"], [matrix(60, 16)])[0])
    return folder


@pytest.fixture(scope="module")
def here(folder: Path) -> dict[str, str]:
    return encoded(folder)


def test_in_any_company_codes_are_the_same(here: dict[str, str]) -> None:
    """One by one, in sevens, in any order: on decisions, too."""
    pieces = {name: same for name, same in here.items() if name.endswith("at once")}
    assert len(pieces) == 21
    assert set(pieces.values()) == {"True"}


@pytest.mark.parametrize(
    "variables",
    [
        {"OPENBLAS_CORETYPE": "Haswell", "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"},
        {"OPENBLAS_CORETYPE": "Sandybridge", "MKL_CBWR": "COMPATIBLE"},
        {"OPENBLAS_CORETYPE": "Prescott", "ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "SSE4_2"},
        {"NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3 AVX512F AVX512CD AVX512_SKX AVX512_ICL", "ATEN_CPU_CAPABILITY": "avx2"},
    ],
    ids=["Haswell", "Sandybridge", "Prescott", "no AVX2 in NumPy"],
)
def test_another_machine_gives_the_same_codes(variables: dict[str, str], folder: Path, here: dict[str, str]) -> None:
    """Fused vectors, latents, codes, uniqueness and extension: bit for bit, of items on decisions."""
    environment = {**os.environ, **variables}
    run = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert {name for name in here if found[name] != here[name]} == set()


# --- where published codes come from --------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["rqkmeans", "rqvae"])
def test_a_table_holds_the_codes_that_its_quantizer_gives(algorithm: str, tmp_path: Path) -> None:
    """What training publishes is what the saved quantizer encodes afterwards, made unique in the same order."""
    from semid_dataset.codec.unique import resolve_collisions

    draw = np.random.default_rng(2)
    vectors = (draw.standard_normal((2_000, 4)) @ draw.standard_normal((4, 12))).astype(np.float32)
    config = SemanticIdConfig(3, 16, num_epochs=3, algorithm=algorithm)
    table = generate_from_vectors(list(range(2_000)), vectors, output_dir=tmp_path, config=config)
    quantizer = ResidualQuantizer.from_arrays(*table.quantizer.to_arrays())
    codes = resolve_collisions(quantizer, vectors, quantizer.encode(vectors)).codes
    assert np.array_equal(table.codes(list(range(2_000))), codes)
