"""
Encode the same vectors as other machines would, in batches of every size, and count the codes that differ.

    python benchmarks/exact.py make FOLDER [--beauty DIR]      # train quantizers, keep vectors: once, anywhere
    python benchmarks/exact.py run FOLDER                      # encode in every batch size; prints fingerprints
    python benchmarks/exact.py matrix FOLDER                   # `run` under every kernel, capability, thread count

`run` needs the package, its tests and FOLDER, so it can be started on another machine, or in an emulator, and what it
prints held against what was printed here. DIR: a data directory with the features 81 and 82.
Records: benchmarks/results/exact.md.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

VARIABLES: dict[str, dict[str, str]] = {
    "no variable": {},
    "Haswell": {"OPENBLAS_CORETYPE": "Haswell"},
    "Sandybridge": {"OPENBLAS_CORETYPE": "Sandybridge"},
    "Prescott": {"OPENBLAS_CORETYPE": "Prescott"},
    "ATen default": {"ATEN_CPU_CAPABILITY": "default"},
    "MKL SSE4.2, Prescott, ATen default": {
        "OPENBLAS_CORETYPE": "Prescott",
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_CBWR": "SSE4_2",
    },
}
ALONE = 300  # items that are encoded one by one
FUSED = 30  # of these again from their features
SEVENS = 3_500  # items that are encoded in sevens


def mixture(items: int, dim: int) -> Any:
    """Vectors about 200 centres in 24 dims, seen in `dim` of them."""
    draw = np.random.default_rng(0)
    hidden = draw.standard_normal((200, 24))[draw.integers(0, 200, items)] + 0.5 * draw.standard_normal((items, 24))
    noise = 0.1 * draw.standard_normal((items, dim))
    return (hidden @ draw.standard_normal((24, dim)) / 24**0.5 + noise).astype(np.float32)


def make(folder: Path, beauty: list[Path]) -> None:
    """Train a quantizer a case, and keep it with the vectors."""
    from semid_dataset.codec.fusion import Fusion
    from semid_dataset.codec.train import train
    from semid_dataset.config import SemanticIdConfig
    from semid_dataset.features import FeatureMatrix
    from semid_dataset.inputs.discover import find_sources
    from semid_dataset.inputs.read import read_sources

    def keep(name: str, features: list[FeatureMatrix], items: int) -> None:
        fusion = Fusion.fit(features, items, "aligned")
        trained = train(fusion.apply(features, items), SemanticIdConfig(algorithm="rqkmeans")).quantizer
        trained.fusion = None if fusion.kind == "single" else fusion
        trained.save_pretrained(folder / name)
        arrays = {f"{feature.id}.rows": feature.rows for feature in features}
        np.savez(folder / f"{name}.npz", **arrays, **{f"{feature.id}.matrix": feature.matrix for feature in features})
        print(name, [(feature.id, feature.matrix.shape) for feature in features], flush=True)

    folder.mkdir(parents=True, exist_ok=True)
    for items, dim in ((50_000, 32), (20_000, 384), (20_000, 1_024)):
        keep(f"{items} x {dim}", [FeatureMatrix("81", np.arange(items), mixture(items, dim))], items)
    for directory in beauty:
        for ids in (["82"], ["81", "82"]):
            embeddings = read_sources(find_sources(directory, ids))
            keep(f"beauty {'+'.join(ids)}", list(embeddings.features), len(embeddings.items))


def run(folder: Path) -> dict[str, str]:
    """Return a fingerprint of the codes of every case, or how many differ between batch sizes."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from codec.encode_anywhere import features_of, taken

    from semid_dataset.codec.residual import ResidualQuantizer
    from semid_dataset.codec.unique import resolve_collisions

    found = {}
    for path in sorted(folder.glob("*.npz")):
        quantizer = ResidualQuantizer.from_pretrained(folder / path.stem)
        features, items = features_of(folder, path.stem)
        vectors = quantizer.vectors_of(features, items)
        codes = quantizer.encode(vectors)
        order = np.random.default_rng(1).permutation(items)
        differ = 0
        for size, most in ((1, ALONE), (7, SEVENS), (256, items), (items, items)):
            some = order[:most]
            for begin in range(0, len(some), size):
                rows = some[begin : begin + size]
                differ += int((quantizer.encode(vectors[rows]) != codes[rows]).any(1).sum())
        for rows in np.array_split(order[:FUSED], FUSED):  # through the fusion, too
            differ += int((quantizer.encode_features(taken(features, rows), len(rows)) != codes[rows]).any(1).sum())
        half = vectors.astype(np.float16)
        differ += int((quantizer.encode(half) != quantizer.encode(half.astype(np.float32))).any(1).sum())
        unique = resolve_collisions(quantizer, vectors, codes).codes
        prints = [
            hashlib.sha256(np.ascontiguousarray(one).tobytes()).hexdigest()[:12] for one in (vectors, codes, unique)
        ]
        found[path.stem] = f"{differ} differ; vectors, codes, unique: {' '.join(prints)}"
    return found


def matrix(folder: Path) -> None:
    """Run under everything, and print a table."""
    wanted: dict[str, str] | None = None
    for name, variables in VARIABLES.items():
        for threads in ("1", "2"):
            began = time.perf_counter()
            environment = {**os.environ, **variables, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
            done = subprocess.run(
                [sys.executable, __file__, "run", str(folder)],
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            )
            found = json.loads(done.stdout.splitlines()[-1])
            if wanted is None:
                wanted = found
                print(json.dumps(found, indent=1))
            others = [case for case in wanted if found[case] != wanted[case]]
            print(f"| {name} | {threads} | {others or 'the same'} | {time.perf_counter() - began:.0f} s |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "run", "matrix"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--beauty", type=Path, action="append", default=[])
    asked = parser.parse_args()
    if asked.what == "make":
        make(asked.folder, asked.beauty)
    elif asked.what == "run":
        print(json.dumps(run(asked.folder)))
    else:
        matrix(asked.folder)
