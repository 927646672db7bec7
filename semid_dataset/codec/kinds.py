"""
Quantizers of any kind: how they are kept, and what is around them.

A file names the kind of its quantizer, and the kind who reads it (`registry.QUANTIZERS`). What several features are
fused by stands beside a quantizer's own state and is no business of it. No torch here: a kind that needs it brings it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset import _files as files
from semid_dataset._hub import fetch
from semid_dataset.codec.fusion import Fusion
from semid_dataset.errors import ConfigError, EmbeddingError, TableError
from semid_dataset.features import FeatureMatrix
from semid_dataset.format import tensors as container
from semid_dataset.objects import as_count, as_matrix, as_path, expect, shown
from semid_dataset.protocols import Quantizer
from semid_dataset.registry import QUANTIZERS

__all__ = [
    "CENTRE",
    "QUANTIZER_FILE",
    "FusedQuantizer",
    "as_vectors",
    "centre_of",
    "code_dtype",
    "encode",
    "encode_vectors",
    "fused",
    "fusion_of",
    "is_quantizer",
    "measure_of",
    "open_quantizer",
    "read_quantizer",
    "save_quantizer",
    "squared_errors",
    "state_of",
    "vectors_of",
]

QUANTIZER_FILE = "quantizer.safetensors"  # a bare quantizer's name in its folder
PREFIX = "quantizer."  # of its arrays' names, there and in a table
FUSION = "fusion."  # of the names of what it is fused by, among those
CENTRE = "centre"  # of the vectors that it was trained on, where its own state does not say so
RESIDUAL = "residual"  # the kind of files that name none: there was no other


@dataclass(frozen=True)
class FusedQuantizer:
    """A quantizer of one vector an item with what makes that vector of several features."""

    quantizer: Quantizer
    fusion: Fusion

    @property
    def kind(self) -> str:
        """The quantizer's."""
        return self.quantizer.kind

    @property
    def dim(self) -> int:
        """Of fused vectors."""
        return self.quantizer.dim

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes of every level."""
        return self.quantizer.codebook_sizes

    def encode(self, vectors: Any) -> NDArray[Any]:
        """Return the codes of fused vectors."""
        return self.quantizer.encode(vectors)

    def decode(self, codes: Any) -> NDArray[Any]:
        """Return the fused vectors that codes stand for."""
        return self.quantizer.decode(codes)

    def distances(self, vectors: NDArray[Any], prefix_codes: NDArray[Any]) -> NDArray[Any]:
        """Return how far fused vectors are from the codes of the next level."""
        return self.quantizer.distances(vectors, prefix_codes)

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return the quantizer's state; `state_of` adds the fusion."""
        return self.quantizer.to_state()

    def vectors_of(self, features: Sequence[FeatureMatrix], items: int) -> NDArray[np.float32]:
        """Return the fused vector of every item, (items, dim)."""
        return self.fusion.apply(features, items)

    def encode_features(self, features: Sequence[FeatureMatrix], items: int) -> NDArray[Any]:
        """Return the codes, (items, levels), of items with any of the features that are fused."""
        return encode(self.quantizer, self.vectors_of(features, items))


def is_quantizer(given: object) -> bool:
    """Whether the class of something has the methods of `protocols.Quantizer`."""
    return all(callable(getattr(type(given), name, None)) for name in ("encode", "decode", "distances", "to_state"))


def fusion_of(quantizer: Any) -> Fusion | None:
    """Return what makes a quantizer's vectors of several features; None where there is one."""
    fusion = getattr(quantizer, "fusion", None)
    return fusion if isinstance(fusion, Fusion) else None


def fused(quantizer: Any, fusion: Fusion) -> Any:
    """Return a quantizer with what makes its vectors of several features; one that has a place for it is changed."""
    if not hasattr(quantizer, "fusion"):
        return FusedQuantizer(quantizer, fusion)
    quantizer.fusion = fusion
    return quantizer


def vectors_of(quantizer: Quantizer, features: Sequence[FeatureMatrix], items: int) -> NDArray[np.float32]:
    """
    Return the one vector of every item, (items, dim) float32, that a quantizer takes for its features.

    Raises:
        EmbeddingError: features that do not fit, see `Fusion.apply`.
    """
    if not isinstance(features, list | tuple) or not all(isinstance(one, FeatureMatrix) for one in features):
        raise EmbeddingError(f"The features must be a list of FeatureMatrix, not {shown(features)}.")
    items = as_count(items, "The number of items", 0, 1 << 62, EmbeddingError)
    fusion = fusion_of(quantizer)
    if fusion is not None:
        return fusion.apply(features, items)
    if len(features) != 1 or len(features[0].rows) != items:
        raise EmbeddingError(
            f"This quantizer knows one feature; got {len(features)} for {items} items. Give it one with all items."
        )
    return features[0].matrix


def code_dtype(sizes: Sequence[int]) -> type[np.uint8] | type[np.uint16]:
    """Return the smallest type that holds every code of levels of these sizes."""
    return np.uint8 if max(sizes) <= 256 else np.uint16


def as_vectors(given: Any) -> NDArray[np.float32]:
    """
    Return vectors (n, dim) in whatever they come as float32, row by row; what float32 cannot hold is infinite.

    Raises:
        EmbeddingError: as `objects.as_matrix`.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return np.require(as_matrix(given, "the vectors"), np.float32, ["C", "W"])


def encode_vectors(quantizer: Quantizer, given: Any) -> NDArray[Any]:
    """
    Return the codes (n, levels) of vectors in whatever they come, carried as those of one feature are.

    Raises:
        EmbeddingError: they are no vectors of its width, or not finite; it takes several features.
    """
    vectors, fusion = as_vectors(given), fusion_of(quantizer)
    wanted = {"": quantizer.dim} if fusion is None else dict(fusion.dims)
    if len(wanted) > 1:
        raise EmbeddingError(
            f"These IDs were made from {len(wanted)} features ({', '.join(wanted)}); one matrix is not enough. Give "
            "them to table.quantizer.encode_features."
        )
    ((name, dim),) = wanted.items()
    if vectors.shape[1] != dim:
        raise EmbeddingError(f"Vectors of {vectors.shape[1]} numbers were given; these IDs are made of {dim}.")
    finite = np.isfinite(vectors).all(1)
    if not finite.all():
        raise EmbeddingError(
            f"Row {int(np.argmin(finite))} of the vectors is not finite (NaN, inf, or beyond float32)."
        )
    if fusion is not None:
        vectors = fusion.apply((FeatureMatrix(name, np.arange(len(vectors)), vectors),), len(vectors))
    return encode(quantizer, vectors)


def encode(quantizer: Quantizer, vectors: NDArray[np.float32]) -> NDArray[Any]:
    """
    Return the codes (n, levels) of vectors as tables hold them: uint8 or uint16.

    Raises:
        TableError: what the quantizer gave are no codes of its codebooks.
    """
    codes = np.asarray(quantizer.encode(vectors))
    sizes = np.array(quantizer.codebook_sizes)
    whole = codes.dtype.kind in "iu" and codes.shape == (len(vectors), len(sizes))
    if not whole or not bool(((codes >= 0) & (codes < sizes)).all()):
        raise TableError(
            f"The quantizer of the kind {quantizer.kind!r} gave {codes.dtype} of shape {codes.shape} for "
            f"{len(vectors)} vectors; codes are whole numbers (vectors, levels), "
            f"below {tuple(quantizer.codebook_sizes)}. Nothing was written. See `protocols.Quantizer`."
        )
    return codes.astype(code_dtype(quantizer.codebook_sizes), copy=False)


def squared_errors(quantizer: Quantizer, vectors: NDArray[np.float32], codes: NDArray[Any]) -> NDArray[np.float32]:
    """
    Return how far vectors are from their codes, (n,) float32, by the distances of the quantizer.

    One that has a method of this name is asked by it: distances to the codes of a whole level are more than is needed.
    """
    inner = quantizer.quantizer if isinstance(quantizer, FusedQuantizer) else quantizer
    own = getattr(inner, "squared_errors", None)
    if own is not None:
        return np.asarray(own(vectors, codes), np.float32)
    found = quantizer.distances(vectors, codes[:, :-1])
    return np.asarray(found[np.arange(len(codes)), codes[:, -1].astype(np.int64)], np.float32)


def measure_of(
    quantizer: Any,
) -> tuple[Callable[[NDArray[np.float32]], NDArray[Any]], Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float64]]]:
    """
    Return what makes vectors ready, and what says how far they are, then, from every code of the next level.

    Only distances of one row are compared, and whoever asks may change them. Our own kind is asked for latents once,
    which networks may have made, and not for what all distances of a row have in common: a third of the time.
    """
    own: Any = quantizer.quantizer if isinstance(quantizer, FusedQuantizer) else quantizer
    if hasattr(own, "nearness"):
        return own.prepared, lambda latents, prefixes: own.nearness(own.left_over(latents, prefixes), prefixes.shape[1])
    return np.asarray, lambda vectors, prefixes: np.array(own.distances(vectors, prefixes), np.float64)


def state_of(
    quantizer: Quantizer, centre: NDArray[np.float32] | None = None
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """
    Return all of a quantizer and of what is around it: arrays by name, and a description of JSON types.

    Args:
        quantizer: of any kind.
        centre: (dim,) of the vectors it was trained on, see `centre_of`.
    """
    arrays, config = quantizer.to_state()
    sizes = list(quantizer.codebook_sizes)
    description = {**config, "kind": quantizer.kind, "dim": quantizer.dim, "codebook_sizes": sizes, "fusion": None}
    arrays = dict(arrays)
    if "mean" not in arrays and centre is not None:
        arrays[CENTRE] = centre
    fusion = fusion_of(quantizer)
    if fusion is not None:
        more, description["fusion"] = fusion.to_arrays()
        arrays |= {f"{FUSION}{key}": value for key, value in more.items()}
    return arrays, description


def centre_of(arrays: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """Return the centre of the vectors that a quantizer was trained on, (dim,) or 0, from its arrays."""
    return arrays.get("mean", arrays.get(CENTRE, np.zeros(1, np.float32)))


def read_quantizer(arrays: Mapping[str, NDArray[Any]], description: Mapping[str, Any]) -> Quantizer:
    """
    Return the quantizer that `state_of` took apart, on the CPU.

    Raises:
        TableError: nothing that is installed reads its kind; something is missing, or does not fit together.
    """
    expect(description, Mapping, "A quantizer's description", TableError)  # type: ignore[type-abstract]
    kind = description.get("kind", RESIDUAL)
    try:
        reader = QUANTIZERS.get(kind)
    except (ConfigError, TypeError) as error:
        raise TableError(
            f"The quantizer in this table is of the kind {shown(kind)}, which nothing here can read ({error}) "
            "Its IDs can be looked up all the same. To encode new items, install the package that made the table, "
            "which announces the kind among the entry points 'semid_dataset.quantizers'."
        ) from None
    try:
        own = {name: array for name, array in arrays.items() if not name.startswith(FUSION) and name != CENTRE}
        quantizer: Quantizer = reader.from_state(own, description)
        if description.get("fusion") is None:
            return quantizer
        more = {name.removeprefix(FUSION): array for name, array in arrays.items() if name.startswith(FUSION)}
        whole: Quantizer = fused(quantizer, Fusion.from_arrays(more, description["fusion"]))
        return whole
    except Exception as error:
        raise TableError(f"The quantizer in this table cannot be read: {error}") from error


def save_quantizer(quantizer: Quantizer, folder: str | Path) -> Path:
    """
    Write a bare quantizer: `quantizer.safetensors`, and `config.json` for other tools.

    Returns:
        The folder, made if need be.

    Raises:
        OSError: it could not be written.
    """
    folder = as_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays, description = state_of(quantizer)
    named = {f"{PREFIX}{name}": array for name, array in arrays.items()}
    files.replace_file(folder / QUANTIZER_FILE, container.serialize(named, {"quantizer": description}))
    text = json.dumps({"model_type": f"semid_{quantizer.kind}_quantizer", **description}, indent=2)
    files.replace_file(folder / "config.json", [text.encode()])
    return folder


def open_quantizer(path: str | Path, revision: str | None = None) -> Quantizer:
    """
    Read what `save_quantizer` wrote, or the quantizer of a table.

    Args:
        path: the folder, its `quantizer.safetensors`, a table's file or folder, or a repository of a hub.
        revision: of the repository.

    Raises:
        TableError: there is no quantizer in it, it is damaged, or nothing that is installed reads its kind.
        FileNotFoundError, OSError: it cannot be opened.
    """
    path = fetch(path, (QUANTIZER_FILE, files.TABLE_FILE), revision)
    read = container.parse(files.map_file(path, mmap=False, follow=True)[0], str(path))
    description = read.info.get("quantizer")
    if not isinstance(description, dict):
        raise TableError(f"'{path}' holds no quantizer. Give the folder of save_pretrained, or a table that has one.")
    arrays = {name.removeprefix(PREFIX): array for name, array in read.arrays.items() if name.startswith(PREFIX)}
    return read_quantizer(arrays, description)
