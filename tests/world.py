"""Small data directories and datasets for the tests; nothing here is a test."""

import pickle
import types
from pathlib import Path
from typing import Any

import numpy as np

from semid_dataset import LazySemanticIds, SemanticIdConfig, SemanticIdMixin

SMALL = SemanticIdConfig(num_quantizers=3, codebook_size=16, num_epochs=2, algorithm="rqvae", device="cpu")
ITEM0 = 20_000_000_000


def vectors_of(items: int, dim: int = 8, seed: int = 0) -> np.ndarray:
    """Unit vectors in a dozen clusters."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(12, dim))
    vectors = centres[rng.integers(12, size=items)] + 0.3 * rng.normal(size=(items, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def write_embeddings(data_dir: Path, vectors: np.ndarray, feature: str = "81", first: int = ITEM0) -> None:
    """Write a feature as the pickle of {creative id: vector}."""
    folder = data_dir / "creative_emb"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"emb_{feature}_{vectors.shape[1]}.pkl").open("wb") as file:
        pickle.dump({first + k: vector for k, vector in enumerate(vectors)}, file)


def make_data(data_dir: Path, items: int = 200, *, dim: int = 8, seed: int = 0) -> Path:
    """Make a data directory with feature 81."""
    write_embeddings(data_dir, vectors_of(items, dim, seed))
    return data_dir


class BareDataset:
    """A map-style dataset in the official shape, without semantic IDs."""

    def __init__(self, data_dir: Path | str, feature_ids: tuple[str, ...] = ("81",)) -> None:
        self.data_dir = Path(data_dir)
        self.mm_emb_ids = list(feature_ids)
        self.mm_emb_dict: dict[str, dict[int, Any]] = {}

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> list[int]:
        return list(self.semantic_id_dict[ITEM0 + index])  # type: ignore[attr-defined]


class MixinDataset(SemanticIdMixin, BareDataset):
    """The mixin with its defaults."""


class SmallDataset(BareDataset):
    """The descriptor, with settings that train in a moment."""

    semantic_id_dict = LazySemanticIds(config=SMALL)


class SmallMixinDataset(SemanticIdMixin, BareDataset):
    """The mixin's method with the small settings."""

    semantic_id_dict = LazySemanticIds(config=SMALL)


def options(**values: Any) -> types.SimpleNamespace:
    """Arguments as the official scripts pass them."""
    return types.SimpleNamespace(**values)
