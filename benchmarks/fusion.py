"""
How near an item that lacks a feature comes to where it would lie with all of them.

    SEMID_REAL_DATA=FOLDER python benchmarks/fusion.py        # writes results/fusion.md

Beauty products with two features: 384-dim embeddings of their titles, and 64-dim vectors of who bought
what after what (positive PMI in a window of three, factorized; the last purchase of everybody is left
out). One of the two is hidden from 30 % of the items. For each fusion, over its vectors and a residual
k-means of 256 codes: the share of those items that keep their first code and their first two; the error
that four levels leave, over variance; and the share of purchases left out that are among the 50 items
nearest to the one before.
"""

import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from semid_dataset.codec import fusion
from semid_dataset.codec.fusion import Fusion
from semid_dataset.features import FeatureMatrix

Matrix = NDArray[np.float32]
CODES, LEVELS, HIDDEN, NEAR, DRAWS = 256, 4, 0.3, 50, 3
RESULTS = Path(__file__).resolve().parent / "results"
HEAD = """# Several features in one space

Embeddings of titles (384 dims) and vectors of who bought what after what (64 dims), of {items:,} products, {both:,} of
which have both. One of the two is hidden from a random 30 % of those: which share of them keeps its first code, and
its first two? Means and standard deviations of {draws} draws; codes of a residual k-means of 4 x 256. By chance: the
share of first codes that would agree if they were dealt out at random, as often as they are used. Error: what four
levels leave of the variance of the fused vectors; more dims are more to explain. Next: purchases left out that are
among the 50 items nearest to the one before. Seconds: fit and apply.

| fusion | dims | keep the first code | keep the first two | first by chance | error | next | seconds |
|---|---|---|---|---|---|---|---|"""


def load(folder: Path) -> tuple[Matrix, list[list[int]]]:
    """Return the title embeddings and everybody's purchases in order."""
    beauty = folder / "data" / "beauty"
    text = np.concatenate([np.load(path) for path in sorted(beauty.glob("emb_*.npy"))]).astype(np.float32)
    return text, pq.read_table(beauty / "sequences.parquet")["item_ids"].to_pylist()


def co_occurrence(sequences: list[list[int]], items: int, dim: int = 64, window: int = 3) -> Matrix:
    """Factorize the positive pointwise mutual information of items bought close to each other."""
    counts = np.zeros((items, items), np.float32)
    for sequence in sequences:
        for at, item in enumerate(sequence[:-1]):
            for other in sequence[at + 1 : min(at + 1 + window, len(sequence) - 1)]:
                counts[item, other] += 1
                counts[other, item] += 1
    total = counts.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.log(counts * total.sum() / np.outer(total, total))
    information = np.maximum(np.where(np.isfinite(information), information, 0), 0)
    basis = np.linalg.qr(information @ np.random.default_rng(0).standard_normal((items, dim + 20), dtype=np.float32))[0]
    for _ in range(5):
        basis = np.linalg.qr(information @ basis)[0]
    values, vectors = np.linalg.eigh(basis.T @ (information @ basis))
    chosen = np.argsort(-np.abs(values))[:dim]
    return (basis @ vectors[:, chosen] * np.sqrt(np.abs(values[chosen]))).astype(np.float32)


def nearest(vectors: Matrix, codebook: Matrix) -> NDArray[np.int64]:
    return np.asarray((np.square(codebook).sum(axis=1) - 2 * vectors @ codebook.T).argmin(axis=1))


def codebooks_of(vectors: Matrix) -> list[Matrix]:
    """Plain residual k-means: the quantizer is not what is measured here."""
    residual, codebooks = vectors.copy(), []
    for level in range(LEVELS):
        draw = np.random.default_rng(level)
        codebook = residual[draw.choice(len(residual), CODES, replace=False)].copy()
        for _ in range(12):
            codes = nearest(residual, codebook)
            sizes = np.bincount(codes, minlength=CODES)
            sums = np.zeros_like(codebook)
            np.add.at(sums, codes, residual)
            codebook = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], residual[:CODES])
        residual -= codebook[nearest(residual, codebook)]
        codebooks.append(codebook)
    return codebooks


def encode(vectors: Matrix, codebooks: list[Matrix]) -> tuple[NDArray[np.int64], Matrix]:
    residual, codes = vectors.copy(), []
    for codebook in codebooks:
        codes.append(nearest(residual, codebook))
        residual -= codebook[codes[-1]]
    return np.stack(codes, axis=1), residual


def next_purchases(vectors: Matrix, sequences: list[list[int]]) -> float:
    pairs = np.array([sequence[-2:] for sequence in sequences if len(sequence) > 1])[:4_000]
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    likeness = unit[pairs[:, 0]] @ unit.T
    wanted = likeness[np.arange(len(pairs)), pairs[:, 1]]
    return float(((likeness > wanted[:, None]).sum(axis=1) <= NEAR).mean())


class Figures(NamedTuple):
    """Of one fusion: shares of hidden items that keep their codes, chance, error over variance, next purchases."""

    dims: int
    first: list[float]  # one a draw
    first_two: list[float]
    chance: float
    error: float
    next: float
    seconds: float


def measure(
    kind: str, features: dict[str, Matrix], has: dict[str, NDArray[np.bool_]], sequences: list[list[int]]
) -> Figures:
    """Hide a feature from some items, DRAWS times; fit on what is left, and look where those items went."""
    items = len(next(iter(features.values())))
    both = np.flatnonzero(np.logical_and.reduce(list(has.values())))

    def given(masks: dict[str, NDArray[np.bool_]]) -> list[FeatureMatrix]:
        return [FeatureMatrix(name, np.flatnonzero(masks[name]), features[name][masks[name]]) for name in features]

    first, first_two, chances, errors, seconds, found = [], [], [], [], [], 0.0
    for number in range(DRAWS):
        draw = np.random.default_rng(number)
        hidden = draw.choice(both, int(HIDDEN * len(both)), replace=False)
        which = draw.random(len(hidden)) < 0.5
        seen = {name: mask.copy() for name, mask in has.items()}
        for name, theirs in zip(seen, (which, ~which), strict=True):
            seen[name][hidden[theirs]] = False
        started = time.perf_counter()
        fitted = Fusion.fit(given(seen), items, kind)
        partial = fitted.apply(given(seen), items)
        seconds.append(time.perf_counter() - started)
        full = fitted.apply(given(has), items)
        codebooks = codebooks_of(partial)
        codes, residual = encode(partial, codebooks)
        wanted, _ = encode(full, codebooks)
        same = codes[hidden] == wanted[hidden]
        first.append(float(same[:, 0].mean()))
        first_two.append(float(same[:, :2].all(axis=1).mean()))
        shares = [np.bincount(each[hidden, 0], minlength=CODES) / len(hidden) for each in (codes, wanted)]
        chances.append(float(shares[0] @ shares[1]))
        errors.append(float(np.square(residual).sum() / np.square(partial - partial.mean(axis=0)).sum()))
        if number == 0:
            found = next_purchases(full, sequences)
    mean = [float(np.mean(each)) for each in (chances, errors, seconds)]
    return Figures(fitted.dim, first, first_two, mean[0], mean[1], found, mean[2])


def line(name: str, figures: Figures) -> str:
    """Return a row of the table."""
    keeps = [f"{np.mean(each):.1%} ± {np.std(each, ddof=1):.1%}" for each in (figures.first, figures.first_two)]
    return (
        f"| {name} | {figures.dims} | {keeps[0]} | {keeps[1]} | {figures.chance:.1%} | {figures.error:.3f} | "
        f"{figures.next:.1%} | {figures.seconds:.1f} |"
    )


def main() -> None:
    folder = os.environ.get("SEMID_REAL_DATA")
    if not folder:
        sys.exit("SEMID_REAL_DATA is not set: it names the folder with the real data.")
    text, sequences = load(Path(folder))
    bought = co_occurrence(sequences, len(text))
    has = {"text": np.ones(len(text), bool), "bought": bought.any(axis=1)}
    lines = HEAD.format(both=int(has["bought"].sum()), items=len(text), draws=DRAWS).splitlines()
    print("\n".join(lines), flush=True)

    def row(name: str, kind: str, features: dict[str, Matrix]) -> None:
        lines.append(line(name, measure(kind, features, has, sequences)))
        print(lines[-1], flush=True)

    used = fusion.WIDTH
    features = {"text": text, "bought": bought}
    for width in (64, 128, 256):
        fusion.WIDTH = width
        row("aligned, as it is used" if width == used else f"aligned, {width} dims at most", "aligned", features)
    fusion.WIDTH = used
    row("concat", "concat", features)
    centred = text - text.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    features = {"text": np.ascontiguousarray(centred @ axes[:, ::-1][:, :64], np.float32), "bought": bought}
    for kind in ("aligned", "mean", "concat"):
        row(f"titles cut to 64 dims: {kind}", kind, features)
    (RESULTS / "fusion.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
