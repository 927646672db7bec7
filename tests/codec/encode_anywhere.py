"""
Encode what lies in a folder, and print what came out as JSON; `test_anywhere` runs it as on other machines.

    python encode_anywhere.py FOLDER
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset.codec.residual import ResidualQuantizer
from semid_dataset.codec.unique import resolve_collisions
from semid_dataset.features import FeatureMatrix
from semid_dataset.table.table import SemanticIdTable

PIECES = 40  # of one size that are encoded


def digest(array: NDArray[Any]) -> str:
    """Return a fingerprint of values, whatever the type of codes."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def features_of(folder: Path, name: str) -> tuple[list[FeatureMatrix], int]:
    """Return the features of a case, and how many items they are of."""
    arrays = np.load(folder / f"{name}.npz")
    ids = sorted({key.split(".")[0] for key in arrays.files})
    features = [FeatureMatrix(key, arrays[f"{key}.rows"], arrays[f"{key}.matrix"]) for key in ids]
    return features, 1 + max(int(feature.rows[-1]) for feature in features)


def taken(features: list[FeatureMatrix], items: NDArray[np.int64]) -> list[FeatureMatrix]:
    """Return the features of some items, in the order given."""
    found = []
    for feature in features:
        at = {row: number for number, row in enumerate(feature.rows.tolist())}
        here = [(place, at[item]) for place, item in enumerate(items.tolist()) if item in at]
        if here:
            places, rows = np.array(here).T
            found.append(FeatureMatrix(feature.id, places, feature.matrix[rows]))
    return found


def same_in_pieces(quantizer: ResidualQuantizer, features: list[FeatureMatrix], codes: NDArray[Any], size: int) -> bool:
    """Whether items get their codes in random order, so many at once; of small pieces some."""
    order = np.random.default_rng(size).permutation(len(codes))[: PIECES * size]
    found = [
        quantizer.encode_features(taken(features, some), len(some))
        for some in np.array_split(order, -(-len(order) // size))
    ]
    return np.array_equal(np.concatenate(found), codes[order])


def encoded(folder: Path) -> dict[str, str]:
    """Return fingerprints of everything that decides an ID."""
    found = {}
    for path in sorted(folder.glob("*.npz")):
        name = path.stem
        quantizer = ResidualQuantizer.from_pretrained(folder / name)
        features, items = features_of(folder, name)
        vectors = quantizer.vectors_of(features, items)
        found[f"{name}: fused"] = digest(vectors)
        found[f"{name}: latents"] = digest(quantizer.latents(vectors).numpy())
        codes = quantizer.encode(vectors)
        found[f"{name}: codes"] = digest(codes)
        for size in (1, 7, 64):
            found[f"{name}: {size} at once"] = str(same_in_pieces(quantizer, features, codes, size))
        half = items // 2
        first = resolve_collisions(quantizer, vectors[:half], codes[:half])
        found[f"{name}: unique"] = digest(first.codes)
        rest = resolve_collisions(quantizer, vectors[half:], codes[half:], taken=first.codes)
        found[f"{name}: extended"] = digest(rest.codes)
    if (folder / "table").exists():
        from semid_dataset.api import extend_with_vectors

        new = np.load(folder / "new.npy")
        names = list(range(10**6, 10**6 + len(new)))
        table, _ = extend_with_vectors(SemanticIdTable.open(folder / "table"), names, new)
        found["table, extended"] = digest(table.codes(names))
    return found


if __name__ == "__main__":
    print(json.dumps(encoded(Path(sys.argv[1]))))
