"""
Codebooks that faiss trains: the trainer "faiss" and the kind of quantizer that it makes.

Only training needs faiss. Encoding, decoding and all that stands in a file are those of `residual`, so that a table is
served, and grows, where faiss is not installed.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from semid_dataset.codec._codebooks import Points, judged
from semid_dataset.codec.residual import ResidualQuantizer
from semid_dataset.errors import ConfigError, EmbeddingError
from semid_dataset.progress import Progress
from semid_dataset.protocols import Trained

__all__ = ["Faiss", "FaissQuantizer"]


class FaissQuantizer(ResidualQuantizer):
    """Codebooks that faiss trained; everything else is `ResidualQuantizer`'s."""

    kind: ClassVar[str] = "faiss"


@dataclass(frozen=True)
class Faiss:
    """
    `faiss.ResidualQuantizer`.

    Attributes:
        max_beam_size: width of the search while training, and of the quantizer's; faiss's own default.
    """

    name: ClassVar[str] = "faiss"
    max_beam_size: int = 5

    def fit(
        self,
        vectors: NDArray[np.floating],
        *,
        sizes: Sequence[int],
        device: str = "cpu",
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Trained:
        """
        Fit codebooks, on the CPU; see `protocols.Trainer.fit`.

        Raises:
            ConfigError: faiss is not installed; a size is no power of two.
            EmbeddingError: fewer vectors than codes, or all are equal.
        """
        try:
            faiss = importlib.import_module("faiss")
        except ImportError:
            raise ConfigError('The algorithm "faiss" needs faiss: pip install "semid_dataset[faiss]".') from None
        if any(size & (size - 1) for size in sizes):
            raise ConfigError(
                f"faiss makes codebooks of 2, 4, 8, ... codes, not of {tuple(sizes)}. Give powers of two."
            )
        points = Points.of(vectors, "cpu", seed)
        if len(points.fit) < max(sizes):
            raise EmbeddingError(
                f"faiss needs as many vectors as a level has codes: {len(points.fit)} are left to fit {max(sizes)} "
                'codes. Ask for fewer, or take another algorithm ("rqkmeans").'
            )
        bits = faiss.UInt64Vector()
        for size in sizes:
            bits.push_back(size.bit_length() - 1)
        fitted = faiss.ResidualQuantizer(vectors.shape[1], bits)
        fitted.cp.seed = seed & 0x7FFFFFFF
        fitted.max_beam_size = self.max_beam_size
        fitted.train(np.ascontiguousarray(points.fit.numpy()))
        words = torch.from_numpy(faiss.vector_to_array(fitted.codebooks).reshape(-1, vectors.shape[1]).copy())
        quantizer = FaissQuantizer(
            torch.split(words, list(sizes)), beam=self.max_beam_size, mean=points.mean, scale=points.scale
        )
        (progress or Progress()).advance()
        error = judged(points.judge, quantizer)
        return Trained(quantizer, held_out={"start": error, "end": error, "items": len(points.judge)})
