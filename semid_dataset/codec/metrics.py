"""
Say in figures what a set of IDs is worth.

Computed once, when IDs are made, and stored with them. Raw means before uniqueness: 0 shared IDs
alone says nothing, since anything can be made unique.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from semid_dataset.codec._threads import isolated
from semid_dataset.codec.unique import Resolution, group_sizes
from semid_dataset.protocols import Quantizer, Trained

__all__ = ["measure", "neighbour_fidelity", "relative_mse"]

QUERIES = 500  # items whose neighbours are looked up
CORPUS = 20_000  # items among which they are looked up
NEIGHBOURS = 10
BLOCK = 65_536  # rows at once,
BLOCK_BYTES = 32 << 20  # or as many as take so many bytes


def measure(
    quantizer: Quantizer,
    vectors: NDArray[Any],
    raw_codes: NDArray[Any],
    resolution: Resolution,
    trained: Trained | None = None,
    *,
    rows: NDArray[np.int64] | None = None,
) -> dict[str, Any]:
    """
    Return the quality of IDs, of JSON types.

    Args:
        quantizer: what made them.
        vectors: (n, dim), the items', or those of `rows`.
        raw_codes: (n, levels), before uniqueness.
        resolution: after it.
        trained: the training, for its held-out error and curve.
        rows: which items the vectors are of, where they are a sample; errors and neighbours are then the sample's.

    Returns:
        relative_mse, relative_mse_raw: error over variance, of the final and of the raw codes.
        relative_mse_levels: the same with the first 1, 2, ... codes alone, of at most 65,536 items.
        relative_mse_held_out, held_out_start, held_out_items: of items kept from the codebooks;
            None where nobody measured.
        usage, perplexity: per level, of the final codes: share of codes in use, e^entropy.
        usage_raw, perplexity_raw: of the raw ones.
        collision_rate, collision_rate_raw: share of items that are not alone with their ID.
        unique_rate, unique_rate_raw: distinct IDs over items.
        moved, exact_duplicates, shared: items, see `Resolution`.
        largest_group, largest_group_raw: items with the commonest ID.
        gini, entropy_ratio: per level, of the final codes' frequencies: 0 and 1 are even use.
        neighbour_fidelity: see `neighbour_fidelity`.
        loss: of every epoch.
        choices: what the training tried and chose, see `protocols.Trained`.
    """
    final = resolution.codes
    codes, raw = (final, raw_codes) if rows is None else (final[rows], raw_codes[rows])
    sizes = quantizer.codebook_sizes
    held_out = {} if trained is None else trained.held_out
    usage, perplexity, gini, entropy_ratio = _use(final, sizes)
    usage_raw, perplexity_raw, _, _ = _use(raw_codes, sizes)
    rate, unique_rate, largest = _grouping(final)
    rate_raw, unique_rate_raw, largest_raw = _grouping(raw_codes)
    return {
        "items": len(final),
        "relative_mse": relative_mse(quantizer, vectors, codes),
        "relative_mse_raw": relative_mse(quantizer, vectors, raw),
        "relative_mse_levels": relative_mse_levels(quantizer, vectors, codes),
        "relative_mse_held_out": held_out.get("end"),
        "held_out_start": held_out.get("start"),
        "held_out_items": None if trained is None else int(held_out.get("items", 0)),
        "usage": usage,
        "usage_raw": usage_raw,
        "perplexity": perplexity,
        "perplexity_raw": perplexity_raw,
        "collision_rate": rate,
        "collision_rate_raw": rate_raw,
        "unique_rate": unique_rate,
        "unique_rate_raw": unique_rate_raw,
        "moved": resolution.moved,
        "exact_duplicates": resolution.exact_duplicates,
        "shared": resolution.shared,
        "largest_group": largest,
        "largest_group_raw": largest_raw,
        "gini": gini,
        "entropy_ratio": entropy_ratio,
        "neighbour_fidelity": neighbour_fidelity(vectors, codes),
        "loss": [] if trained is None else [float(loss) for loss in trained.curve],
        "choices": {} if trained is None else dict(trained.choices),
    }


@isolated()
def relative_mse(quantizer: Quantizer, vectors: NDArray[Any], codes: NDArray[Any]) -> float:
    """
    Return Σ‖x − decode(code)‖² / Σ‖x − mean‖²; 0 where both are 0.

    Memory: 65,536 rows or 32 MB at a time.
    """
    if len(vectors) == 0:
        return 0.0
    rows = _rows(vectors)
    mean = np.zeros(vectors.shape[1])
    for begin in range(0, len(vectors), rows):
        mean += vectors[begin : begin + rows].sum(0, dtype=np.float64)
    mean = (mean / len(vectors)).astype(np.float32)
    error = variance = 0.0
    for begin in range(0, len(vectors), rows):
        block = np.asarray(vectors[begin : begin + rows], dtype=np.float32)
        error += float(np.square(block - quantizer.decode(codes[begin : begin + rows]), dtype=np.float64).sum())
        variance += float(np.square(block - mean, dtype=np.float64).sum())
    return error / variance if variance > 0 else 0.0


@isolated()
def relative_mse_levels(quantizer: Quantizer, vectors: NDArray[Any], codes: NDArray[Any]) -> list[float]:
    """
    Return the relative error with the first 1, 2, ... codes of every ID; of every k-th item, at most 65,536.

    Args:
        quantizer: what made the codes.
        vectors: (n, dim).
        codes: (n, levels).
    """
    if len(vectors) == 0:
        return []
    step = -(-len(vectors) // BLOCK)
    some = np.asarray(vectors[::step], dtype=np.float32)
    chosen = codes[::step]
    mean = some.mean(0, dtype=np.float64).astype(np.float32)
    variance, errors = 0.0, [0.0] * codes.shape[1]
    rows = _rows(some)
    for begin in range(0, len(some), rows):
        block = some[begin : begin + rows]
        variance += float(np.square(block - mean, dtype=np.float64).sum())
        for depth in range(codes.shape[1]):
            decoded = quantizer.decode(chosen[begin : begin + rows, : depth + 1])
            errors[depth] += float(np.square(block - decoded, dtype=np.float64).sum())
    return [error / variance if variance > 0 else 0.0 for error in errors]


def _rows(vectors: NDArray[Any]) -> int:
    """Return how many rows are looked at together."""
    return max(1, min(BLOCK, BLOCK_BYTES // (4 * int(vectors.shape[1]))))


@isolated()
def neighbour_fidelity(
    vectors: NDArray[Any], codes: NDArray[Any], *, queries: int = QUERIES, corpus: int = CORPUS, seed: int = 0
) -> dict[str, list[float]]:
    """
    Return how often near items share their leading codes.

    Of up to 500 sampled items, the 10 nearest (Euclid) among 20,000 sampled items are looked up.

    Returns:
        "neighbours": share of (item, neighbour) pairs that share the first 1, 2, 3 codes;
        "random": the same of random pairs, which is what the first is to be held against.
        Both are empty for fewer than two items; there are as many entries as levels where there are fewer than three.
    """
    if len(vectors) < 2:
        return {"neighbours": [], "random": []}
    generator = np.random.default_rng(seed)
    some = np.sort(generator.permutation(len(vectors))[:corpus])
    points = torch.from_numpy(np.asarray(vectors[some], dtype=np.float32))
    points = points - points.mean(0)
    peak = float(points.abs().max())
    points *= 2.0 ** -round(math.log2(peak)) if peak > 0 else 1.0  # exact; squares would else leave float32
    chosen = codes[some]
    asked = generator.permutation(len(some))[:queries]
    wanted = min(NEIGHBOURS, len(some) - 1)
    distances = torch.addmm(points.square().sum(1), points[asked], points.T, alpha=-2)
    distances.scatter_(1, torch.from_numpy(asked)[:, None], torch.inf)  # nobody is his own neighbour
    near = distances.topk(wanted, 1, largest=False).indices.numpy()
    others = (asked[:, None] + generator.integers(1, len(some), near.shape)) % len(some)
    depth = min(3, codes.shape[1])

    def shares(partners: NDArray[np.int64]) -> list[float]:
        same = chosen[asked][:, None, :depth] == chosen[partners][:, :, :depth]
        return [float(share) for share in np.logical_and.accumulate(same, 2).mean((0, 1))]

    return {"neighbours": shares(near), "random": shares(others)}


def _use(codes: NDArray[Any], sizes: tuple[int, ...]) -> tuple[list[float], list[float], list[float], list[float]]:
    """Return usage, perplexity, Gini and entropy ratio of every level."""
    usage, perplexity, gini, ratio = [], [], [], []
    for level, size in enumerate(sizes):
        counts = np.zeros(size)
        for begin in range(0, len(codes), BLOCK):
            counts += np.bincount(codes[begin : begin + BLOCK, level], minlength=size)
        shares = counts[counts > 0] / max(counts.sum(), 1)
        entropy = float(-(shares * np.log(shares)).sum())
        usage.append(len(shares) / size)
        perplexity.append(float(np.exp(entropy)))
        ratio.append(entropy / float(np.log(size)))
        total = max(counts.sum(), 1)
        gini.append(float(((2 * np.arange(1, size + 1) - size - 1) * np.sort(counts)).sum() / (size * total)))
    return usage, perplexity, gini, ratio


def _grouping(codes: NDArray[Any]) -> tuple[float, float, int]:
    """Return the share of items that share their tuple, distinct tuples over items, and the items of the commonest."""
    groups = group_sizes(codes)
    alone = int((groups == 1).sum())
    return (len(codes) - alone) / max(len(codes), 1), len(groups) / max(len(codes), 1), int(groups.max(initial=0))
