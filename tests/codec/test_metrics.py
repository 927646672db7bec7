"""Figures: each against a count by hand, and JSON types throughout."""

import json
import math

import numpy as np
import pytest
import torch

from semid_dataset.codec.metrics import measure, neighbour_fidelity, relative_mse
from semid_dataset.codec.residual import ResidualQuantizer
from semid_dataset.codec.train import train
from semid_dataset.codec.unique import resolve_collisions
from semid_dataset.config import SemanticIdConfig


def line_quantizer() -> ResidualQuantizer:
    """Return 10 · first code + second code, on a line."""
    return ResidualQuantizer([torch.arange(4.0)[:, None] * 10, torch.arange(4.0)[:, None]], beam=1)


def test_figures_of_a_case_counted_by_hand() -> None:
    """Three items at 11, one at 22: two move, one tuple of three items before."""
    quantizer = line_quantizer()
    vectors = np.array([[11.0], [11.0], [11.25], [22.0]], dtype=np.float32)
    codes = quantizer.encode(vectors)
    assert codes.tolist() == [[1, 1], [1, 1], [1, 1], [2, 2]]
    resolution = resolve_collisions(quantizer, vectors, codes)
    quality = measure(quantizer, vectors, codes, resolution)
    variance = float(np.square(vectors - vectors.mean()).sum())
    assert quality["relative_mse_raw"] == pytest.approx(0.25**2 / variance)
    assert quality["relative_mse"] > quality["relative_mse_raw"]
    assert quality["relative_mse_held_out"] is None
    assert quality["collision_rate_raw"] == 0.75
    assert quality["collision_rate"] == 0
    assert quality["unique_rate_raw"] == 0.5
    assert quality["unique_rate"] == 1
    assert quality["moved"] == 2
    assert quality["exact_duplicates"] == 1
    assert quality["shared"] == 0
    assert (quality["largest_group_raw"], quality["largest_group"]) == (3, 1)
    assert quality["usage_raw"] == [0.5, 0.5]
    assert quality["perplexity_raw"][0] == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))
    assert resolution.codes.tolist() == [[1, 1], [1, 0], [1, 2], [2, 2]]
    assert quality["usage"] == [0.5, 0.75]
    entropy = 2 * 0.25 * math.log(4) + 0.5 * math.log(2)
    assert quality["perplexity"][1] == pytest.approx(math.exp(entropy))
    assert quality["entropy_ratio"][1] == pytest.approx(entropy / math.log(4))
    assert quality["gini"][1] == pytest.approx((2 * (2 * 1 + 3 * 1 + 4 * 2) - 5 * 4) / (4 * 4))


@pytest.mark.parametrize("algorithm", ["rqvae", "rqkmeans"])
def test_a_training_adds_its_own_figures(algorithm: str) -> None:
    """And everything goes through JSON unchanged."""
    vectors = np.random.default_rng(0).standard_normal((400, 6), dtype=np.float32)
    config = SemanticIdConfig(num_quantizers=3, codebook_size=8, num_epochs=2, algorithm=algorithm)
    trained = train(vectors, config)
    codes = trained.quantizer.encode(vectors)
    quality = measure(trained.quantizer, vectors, codes, resolve_collisions(trained.quantizer, vectors, codes), trained)
    assert json.loads(json.dumps(quality)) == quality
    assert quality["relative_mse_held_out"] == trained.held_out["end"]
    assert quality["held_out_items"] == 10
    assert quality["loss"] == trained.curve
    assert quality["collision_rate"] == 0


def test_relative_mse_is_one_for_the_mean_and_zero_for_itself() -> None:
    """Whatever the offset and the scale of the vectors."""
    vectors = np.array([[1000.0], [1002.0], [1004.0]])
    mean = ResidualQuantizer([torch.tensor([[1002.0]])])
    assert relative_mse(mean, vectors, mean.encode(vectors)) == pytest.approx(1)
    exact = ResidualQuantizer([torch.tensor([[1000.0], [1002.0], [1004.0]])])
    assert relative_mse(exact, vectors, exact.encode(vectors)) == 0
    assert relative_mse(mean, vectors[:1], mean.encode(vectors[:1])) == 0


def test_neighbours_share_codes_where_codes_follow_space() -> None:
    """Codes by region: neighbours agree, random pairs do not; codes at random: no difference."""
    random = np.random.default_rng(0)
    where = random.integers(0, 8, 800)
    vectors = (random.standard_normal((8, 5)) * 10)[where] + random.standard_normal((800, 5)) * 0.1
    codes = np.stack([where // 4, where % 4, random.integers(0, 4, 800)], 1).astype(np.uint8)
    fidelity = neighbour_fidelity(vectors, codes)
    assert fidelity["neighbours"][:2] == [1, 1]
    assert fidelity["neighbours"][2] == pytest.approx(0.25, abs=0.05)
    assert fidelity["random"][0] == pytest.approx(0.5, abs=0.06)
    assert fidelity["random"][1] == pytest.approx(0.125, abs=0.04)
    assert neighbour_fidelity(vectors, codes) == fidelity, "sampled by a seed"


@pytest.mark.parametrize("n", [0, 1])
def test_without_pairs_there_is_no_fidelity(n: int) -> None:
    """One item has no neighbour, and nothing divides by zero."""
    quantizer = line_quantizer()
    vectors = np.ones((n, 1), dtype=np.float32)
    codes = quantizer.encode(vectors)
    quality = measure(quantizer, vectors, codes, resolve_collisions(quantizer, vectors, codes))
    assert quality["neighbour_fidelity"] == {"neighbours": [], "random": []}
    assert json.loads(json.dumps(quality)) == quality


def test_one_level_has_one_share() -> None:
    """As many entries as there are leading codes."""
    quantizer = ResidualQuantizer([torch.arange(4.0)[:, None]])
    vectors = np.arange(3, dtype=np.float32)[:, None]
    fidelity = neighbour_fidelity(vectors, quantizer.encode(vectors))
    assert fidelity == {"neighbours": [0], "random": [0]}
