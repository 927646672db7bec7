"""
What can be set: `SemanticIdConfig`, a frozen value that has checked itself, and `Identity`, what of it decides an ID.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from semid_dataset.errors import ConfigError
from semid_dataset.objects import as_choice, shown
from semid_dataset.registry import TRAINERS

__all__ = ["Identity", "SemanticIdConfig"]

MAX_LEVELS = 16
MAX_CODES = 65_536  # codes are stored as uint16 at most
LARGEST_FLOAT = 1.7976931348623157e308
LEAST_MEMORY = 1 << 20  # bytes


@dataclass(frozen=True)
class SemanticIdConfig:
    """
    How semantic IDs are made.

    Attributes:
        num_quantizers: levels of an ID, 1…16.
        codebook_size: codes per level, 2…65,536; a tuple gives every level its own.
        commitment_cost: weight of the commitment loss.
        lr: learning rate of the RQ-VAE (Adam).
        num_epochs: most epochs of the RQ-VAE; it stops early when held-out items no longer improve.
        batch_size: items per training step.
        algorithm: "rqkmeans" fits codebooks alone; "rqvae" trains an autoencoder around them; "auto" does so where
            held-out items say that it can pay. Or the name of another package's trainer, see docs/extending.md.
        fusion: how several features become one vector: "aligned", "mean" (equal dims only), "concat".
        unique: give no two items the same ID, while codes last.
        device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1", …
        seed: of every random draw; equal seeds and data give equal IDs on one kind of machine.
        lock_timeout: seconds without progress of the process that generates, after which waiting ends.
        memory_limit: bytes that making IDs may take, all processes together; vectors that would take more are streamed
            instead of read into memory. Torch and pyarrow take 350 MB of it, and 400 MB are the least.
        sample_items: most items that codebooks are fitted on. None: 262,144, or as many as fit into `memory_limit`
            where vectors are streamed; then another limit gives other IDs, which a number rules out.

    Raises:
        ConfigError: a value is of the wrong type or out of range; the message names it.
    """

    num_quantizers: int = 4
    codebook_size: int | tuple[int, ...] = 256
    commitment_cost: float = 0.25
    lr: float = 1e-3
    num_epochs: int = 20
    batch_size: int = 1024
    algorithm: str = "auto"
    fusion: Literal["aligned", "mean", "concat"] = "aligned"
    unique: bool = True
    device: str = "auto"
    seed: int = 0
    lock_timeout: float = 300.0
    memory_limit: int = 1 << 30
    sample_items: int | None = None

    def __post_init__(self) -> None:
        _check_int("num_quantizers", self.num_quantizers, 1, MAX_LEVELS)
        if isinstance(self.codebook_size, list):  # what JSON and command lines bring
            object.__setattr__(self, "codebook_size", tuple(self.codebook_size))
        if isinstance(self.codebook_size, tuple):
            if len(self.codebook_size) != self.num_quantizers:
                raise ConfigError(
                    f"codebook_size has {len(self.codebook_size)} entries for num_quantizers={self.num_quantizers}. "
                    "Give one number for all levels, or one per level."
                )
            for size in self.codebook_size:
                _check_int("codebook_size", size, 2, MAX_CODES)
        else:
            _check_int("codebook_size", self.codebook_size, 2, MAX_CODES)
        _check_float("commitment_cost", self.commitment_cost, low=0.0)
        _check_float("lr", self.lr, low=0.0, above=True)
        _check_int("num_epochs", self.num_epochs, 0, 1_000_000)
        _check_int("batch_size", self.batch_size, 1, 1 << 30)
        if not isinstance(self.algorithm, str) or self.algorithm not in TRAINERS.ours:
            _check_choice("algorithm", self.algorithm, TRAINERS.names())
        _check_choice("fusion", self.fusion, ("aligned", "mean", "concat"))
        if not isinstance(self.unique, bool):
            raise ConfigError(f"unique must be True or False, not {shown(self.unique)}.")
        if not isinstance(self.device, str) or not self.device:
            raise ConfigError(f'device must be "auto", "cpu", "cuda" or "cuda:<n>", not {shown(self.device)}.')
        _check_int("seed", self.seed, 0, 2**63 - 1)
        _check_float("lock_timeout", self.lock_timeout, low=0.0, above=True)
        _check_int("memory_limit", self.memory_limit, LEAST_MEMORY, 1 << 60)
        if self.sample_items is not None:
            _check_int("sample_items", self.sample_items, 1, 1 << 32)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes of each level, coarse to fine."""
        if isinstance(self.codebook_size, tuple):
            return self.codebook_size
        return (self.codebook_size,) * self.num_quantizers

    @property
    def capacity(self) -> int:
        """How many items can have an ID of their own; the all-zero ID is kept for "no ID"."""
        return math.prod(self.codebook_sizes) - 1

    def to_dict(self) -> dict[str, Any]:
        """Return every setting as JSON types."""
        settings = asdict(self)
        settings["codebook_size"] = list(self.codebook_sizes)
        return settings


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(f"{name} must be a whole number from {low} to {high}, not {shown(value)}.")


def _check_float(name: str, value: object, *, low: float, above: bool = False) -> None:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_FLOAT
    if not fits or value < low or (above and value == low):  # type: ignore[operator]
        raise ConfigError(f"{name} must be a finite number {'>' if above else '>='} {low:g}, not {shown(value)}.")


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    as_choice(value, choices, name)


@dataclass(frozen=True)
class Identity:
    """
    What two sets of IDs must have in common to be the same kind of ID.

    Training settings (epochs, learning rate, seed, device, …) are not part of it: asking for the
    CPU must not retrain.
    """

    codebook_sizes: tuple[int, ...]
    features: tuple[tuple[str, int], ...]  # (feature id, dim), as given
    fusion: str

    @classmethod
    def of(cls, config: SemanticIdConfig, features: Sequence[tuple[str, int]]) -> "Identity":
        """Return the identity of `config` over `features`, which are (feature id, dim)."""
        ordered = tuple(sorted((str(fid), int(dim)) for fid, dim in features))
        return cls(config.codebook_sizes, ordered, config.fusion if len(ordered) > 1 else "single")

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return {
            "codebook_sizes": list(self.codebook_sizes),
            "features": [list(feature) for feature in self.features],
            "fusion": self.fusion,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Identity":
        """Return the identity that `to_dict` wrote."""
        return cls(
            tuple(int(size) for size in values["codebook_sizes"]),
            tuple((str(fid), int(dim)) for fid, dim in values["features"]),
            str(values["fusion"]),
        )

    @property
    def digest(self) -> str:
        """SHA-256 of it, as hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def __str__(self) -> str:
        features = " + ".join(f"{fid}:{dim}" for fid, dim in self.features)
        sizes = "/".join(map(str, self.codebook_sizes))
        return f"{len(self.codebook_sizes)} levels of {sizes} over {features} ({self.fusion})"
