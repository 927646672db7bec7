"""
Carry several features of one item into one space.

A feature is a matrix over some of the items: text, image, co-occurrence, each with a width and a
coverage of its own. A quantizer needs one vector per item. `Fusion.fit` learns how to make it,
`Fusion.apply` makes it, for a million items as for one, and what was learned travels with the
quantizer, so that an item which has only one of the features is encoded without the others.

NumPy only: encoding new items on a warm machine must not need more than that.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset.errors import ConfigError, EmbeddingError, TableError

__all__ = ["FeatureMatrix", "Fusion"]

Float32 = NDArray[np.float32]

WIDTH = 128  # dims of the shared space, at most
FIT_ROWS = 65_536  # items that statistics are taken from, at most
BLOCK = 256  # rows per product; see `_project`
EXACT_EIGH = 1_024  # dims up to which the whole spectrum is computed


@dataclass(frozen=True)
class FeatureMatrix:
    """
    One feature of a set of items.

    Attributes:
        id: the feature's id, such as "81".
        rows: (m,) ascending positions, among all items, of those that have the feature.
        matrix: (m, dim) float32, finite; row i belongs to item `rows[i]`.
    """

    id: str
    rows: NDArray[np.int64]
    matrix: Float32

    @property
    def dim(self) -> int:
        """Width of the feature."""
        return int(self.matrix.shape[1])


@dataclass(frozen=True)
class _Map:
    """How one feature enters the shared space: (x - mean) @ map, counted with `weight`."""

    id: str
    mean: Float32  # (dim,)
    map: Float32  # (dim, width); empty for "mean" and "single", which leave vectors as they are
    weight: float = 1.0
    offset: int = 0  # first column it fills ("concat")

    @property
    def dim(self) -> int:
        return len(self.mean)


@dataclass(frozen=True)
class Fusion:
    """
    What was learned about a set of features; `fit` makes it.

    Attributes:
        kind: "single" (one feature, unchanged), "aligned", "mean" or "concat".
        dim: width of the fused vectors.
    """

    kind: str
    dim: int
    maps: tuple[_Map, ...] = field(repr=False)

    @classmethod
    def fit(cls, features: Sequence[FeatureMatrix], items: int, kind: str = "aligned", seed: int = 0) -> "Fusion":
        """
        Learn how `features` of `items` items become one vector each.

        "aligned": every feature is centred and scaled; the one that covers and explains most leads,
        and its principal axes span the space; the others are turned into it by an orthogonal Procrustes
        map over the items that have both. "mean": vectors as they are. "concat": centred and scaled, side by side.

        Args:
            features: one or more; one alone is passed through whatever `kind` says.
            items: how many items `features[i].rows` count.
            seed: picks the items that statistics are taken from, where there are more than 65,536.

        Raises:
            ConfigError: no feature; "mean" over unequal dims; an unknown kind; an id twice.

        Source: Schönemann 1966, "A generalized solution of the orthogonal Procrustes problem".
        """
        if not features:
            raise ConfigError("There is no feature to fuse: give at least one.")
        ids = [feature.id for feature in features]
        if len(set(ids)) < len(ids):
            raise ConfigError(f"A feature is given twice: {', '.join(ids)}. Give each once.")
        if len(features) == 1:
            only = features[0]
            return cls("single", only.dim, (_Map(only.id, np.zeros(only.dim, np.float32), _nothing()),))
        ordered = sorted(features, key=lambda feature: feature.id)  # the order they are named in must not matter
        if kind == "mean":
            return _fit_mean(ordered)
        if kind == "concat":
            return _fit_concat(ordered, seed)
        if kind == "aligned":
            return _fit_aligned(ordered, items, seed)
        raise ConfigError(f'fusion must be "aligned", "mean" or "concat", not {kind!r}.')

    def apply(self, features: Sequence[FeatureMatrix], items: int) -> Float32:
        """
        Return the fused vectors (items, dim).

        A feature may be left out; an item needs one of those that are given. An item alone gets the vector
        that it gets among others, bit for bit.

        Raises:
            EmbeddingError: an item has none of the features; a feature has another width than the fitted one.
            ConfigError: a feature that was not fitted.

        Memory: the result, and one float32 per item.
        """
        known = {mapping.id: mapping for mapping in self.maps}
        for feature in features:
            mapping = known.get(feature.id)
            if mapping is None:
                raise ConfigError(
                    f"Feature {feature.id} is unknown to this fusion of {', '.join(known)}. "
                    "Leave it out, or train anew."
                )
            if feature.dim != mapping.dim:
                raise EmbeddingError(f"Feature {feature.id} has {feature.dim} dims here; {mapping.dim} were fitted.")
        if self.kind == "single" and len(features) == 1 and len(features[0].rows) == items:
            return features[0].matrix
        fused = np.zeros((items, self.dim), np.float32)
        weights = np.zeros(items, np.float32)
        for feature in sorted(features, key=lambda feature: feature.id):  # sums must not depend on the order given
            mapping = known[feature.id]
            weights[feature.rows] += np.float32(mapping.weight)
            for start in range(0, len(feature.rows), BLOCK):
                rows = feature.rows[start : start + BLOCK]
                part = _project(feature.matrix[start : start + BLOCK], mapping)
                if self.kind == "concat":
                    fused[rows, mapping.offset : mapping.offset + part.shape[1]] = part
                else:
                    fused[rows] += part * np.float32(mapping.weight)
        if not weights.all():
            raise EmbeddingError(
                f"Item number {int(np.argmin(weights != 0))} (counted from 0) has none of the features "
                f"{', '.join(feature.id for feature in features)}, so it has no vector. Leave it out."
            )
        if self.kind != "concat":
            fused /= weights[:, None]
        return fused

    def to_arrays(self) -> tuple[dict[str, Float32], dict[str, Any]]:
        """Return arrays and a JSON-able description, for `from_arrays`."""
        arrays: dict[str, Float32] = {}
        for mapping in self.maps:
            if mapping.map.size:
                arrays[f"{mapping.id}.mean"] = mapping.mean
                arrays[f"{mapping.id}.map"] = mapping.map
        description = {
            "kind": self.kind,
            "dim": self.dim,
            "features": [
                {"id": mapping.id, "dim": mapping.dim, "weight": mapping.weight, "offset": mapping.offset}
                for mapping in self.maps
            ],
        }
        return arrays, description

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], description: Mapping[str, Any]) -> "Fusion":
        """
        Return what `to_arrays` took apart.

        Raises:
            TableError: a part is missing or has another shape than described.
        """
        try:
            kind, dim = str(description["kind"]), int(description["dim"])
            maps = tuple(_restore(arrays, kind, entry) for entry in description["features"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise TableError(f"The fusion in this table cannot be read: {type(error).__name__}: {error}.") from error
        if not maps or any(m.map.size and m.offset + m.map.shape[1] > dim for m in maps):
            raise TableError("The fusion in this table cannot be read: its maps do not fit its width.")
        return cls(kind, dim, maps)


def _nothing() -> Float32:
    return np.zeros((0, 0), np.float32)


def _restore(arrays: Mapping[str, NDArray[Any]], kind: str, entry: Mapping[str, Any]) -> _Map:
    name, dim = str(entry["id"]), int(entry["dim"])
    mean, matrix = np.zeros(dim, np.float32), _nothing()
    if kind in {"aligned", "concat"}:
        mean = np.ascontiguousarray(arrays[f"{name}.mean"], np.float32)
        matrix = np.ascontiguousarray(arrays[f"{name}.map"], np.float32)
        if mean.shape != (dim,) or matrix.ndim != 2 or matrix.shape[0] not in {1, dim}:
            raise ValueError(f"feature {name} is described as {dim} wide, its map is {matrix.shape}")
    elif kind not in {"mean", "single"}:
        raise ValueError(f"kind {kind!r}")
    return _Map(name, mean, matrix, float(entry["weight"]), int(entry["offset"]))


def _project(block: Float32, mapping: _Map) -> Float32:
    """
    Return (block - mean) @ map.

    Always a product of BLOCK rows, padded with zeros: BLAS takes other paths, with other rounding, for
    other shapes, and then an item alone could get another vector, so another ID, than among others.
    """
    if not mapping.map.size:
        return block
    count = len(block)
    centred = np.zeros((BLOCK, mapping.dim), np.float32)
    np.subtract(block, mapping.mean, out=centred[:count])
    if len(mapping.map) == 1:  # one factor for every dim
        return np.asarray(centred[:count] * mapping.map[0, 0], np.float32)
    return np.asarray(centred @ mapping.map, np.float32)[:count]


def _fit_mean(features: Sequence[FeatureMatrix]) -> Fusion:
    dims = {feature.dim for feature in features}
    if len(dims) > 1:
        found = ", ".join(f"{feature.id}: {feature.dim}" for feature in features)
        raise ConfigError(
            f'fusion="mean" needs features of equal dims, these have {found}. '
            'Use fusion="aligned", which brings them into one space.'
        )
    dim = dims.pop()
    return Fusion("mean", dim, tuple(_Map(f.id, np.zeros(dim, np.float32), _nothing()) for f in features))


def _fit_concat(features: Sequence[FeatureMatrix], seed: int) -> Fusion:
    maps, offset = [], 0
    for feature in features:
        mean, variance = _moments(feature.matrix, _sample(len(feature.rows), seed))
        maps.append(_Map(feature.id, mean, np.full((1, 1), _unit(variance), np.float32), 1.0, offset))
        offset += feature.dim
    # A map of one column would look `offset + 1` wide; the width it fills is the feature's own.
    return Fusion("concat", offset, tuple(maps))


def _fit_aligned(features: Sequence[FeatureMatrix], items: int, seed: int) -> Fusion:
    parts = [_principal(feature, seed) for feature in features]
    # The richest well-covered feature leads: coverage times the effective number of dims that it fills.
    lead = max(range(len(parts)), key=lambda i: (len(features[i].rows) / max(1, items) * parts[i].richness, -i))
    width = parts[lead].axes.shape[1]
    maps: dict[int, _Map] = {lead: _Map(features[lead].id, parts[lead].mean, parts[lead].axes)}
    waiting = [i for i in range(len(parts)) if i != lead]
    while waiting:
        # Next is the one that shares most items with what is already placed, so that chains work too.
        placed = np.zeros(items, bool)
        for i in maps:
            placed[features[i].rows] = True
        nearest = max(waiting, key=lambda i: (int(placed[features[i].rows].sum()), -i))
        waiting.remove(nearest)
        turned = _turn(features, parts, maps, which=nearest, placed=placed, width=width, seed=seed)
        maps[nearest] = _Map(features[nearest].id, parts[nearest].mean, turned)
    return Fusion("aligned", width, tuple(maps[i] for i in range(len(features))))


@dataclass(frozen=True)
class _Principal:
    """Centre and principal axes of a feature, scaled to a total variance of one."""

    mean: Float32  # (dim,)
    axes: Float32  # (dim, width)
    richness: float  # effective number of dims: exp(entropy of the spectrum)


def _principal(feature: FeatureMatrix, seed: int) -> _Principal:
    """Take the principal axes of one feature, signs fixed: the largest entry of each axis is positive."""
    chosen = _sample(len(feature.rows), seed)
    mean, variance = _moments(feature.matrix, chosen)
    covariance = np.zeros((feature.dim, feature.dim), np.float64)
    for block in _blocks(feature.matrix, chosen):
        centred = block - mean
        covariance += centred.T @ centred
    covariance /= max(1, len(chosen))
    width = min(WIDTH, feature.dim)
    values, axes = _top_eigenvectors(covariance, width, seed)
    axes *= np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])] + 0.0)
    share = np.clip(values, 0, None)
    share = share[share > 0] / max(share.sum(), np.finfo(np.float64).tiny)
    richness = float(np.exp(-(share * np.log(share)).sum())) if len(share) else 1.0
    return _Principal(mean, np.ascontiguousarray(axes * _unit(variance), np.float32), richness)


def _turn(
    features: Sequence[FeatureMatrix],
    parts: Sequence[_Principal],
    maps: Mapping[int, _Map],
    *,
    which: int,
    placed: NDArray[np.bool_],
    width: int,
    seed: int,
) -> Float32:
    """Return the map of feature `which` into the space of the placed ones: orthogonal Procrustes over shared items."""
    own = features[which]
    both = np.flatnonzero(placed[own.rows])
    both = both[_sample(len(both), seed)]
    axes = parts[which].axes
    cross = np.zeros((axes.shape[1], width), np.float64)
    for start in range(0, len(both), 4096):
        some = both[start : start + 4096]
        mine = (own.matrix[some] - parts[which].mean) @ axes
        target = np.zeros((len(some), width), np.float32)
        count = np.zeros(len(some), np.float32)
        for i, mapping in maps.items():
            at = np.searchsorted(features[i].rows, own.rows[some])
            at = np.minimum(at, len(features[i].rows) - 1)
            has = features[i].rows[at] == own.rows[some]
            target[has] += (features[i].matrix[at[has]] - mapping.mean) @ mapping.map
            count[has] += 1
        cross += mine.T @ (target / np.maximum(count, 1)[:, None])
    if not cross.any():  # nothing in common: its axes stand as they are, side by side with nothing
        cross = np.eye(axes.shape[1], width)
    left, _, right = np.linalg.svd(cross, full_matrices=False)
    return np.ascontiguousarray(axes @ (left @ right), np.float32)


def _sample(count: int, seed: int) -> NDArray[np.int64]:
    """Return FIT_ROWS of `count` positions, ascending; all of them where there are no more."""
    if count <= FIT_ROWS:
        return np.arange(count, dtype=np.int64)
    return np.sort(np.random.default_rng(seed).choice(count, FIT_ROWS, replace=False)).astype(np.int64)


def _blocks(matrix: Float32, chosen: NDArray[np.int64]) -> Iterator[Float32]:
    """Yield the chosen rows, 32 MB at a time."""
    step = max(1, (32 << 20) // (4 * max(1, matrix.shape[1])))
    for start in range(0, len(chosen), step):
        yield matrix[chosen[start : start + step]]


def _moments(matrix: Float32, chosen: NDArray[np.int64]) -> tuple[Float32, float]:
    """Return the mean (dim,) and the total variance of the chosen rows."""
    total = np.zeros(matrix.shape[1], np.float64)
    for block in _blocks(matrix, chosen):
        total += block.sum(axis=0, dtype=np.float64)
    mean = total / max(1, len(chosen))
    variance = 0.0
    for block in _blocks(matrix, chosen):
        variance += float(np.square(block - mean).sum())
    return mean.astype(np.float32), variance / max(1, len(chosen))


def _unit(variance: float) -> float:
    """Return the factor that brings a total variance to one; one where there is none."""
    return 1.0 / float(np.sqrt(variance)) if variance > 0 else 1.0


def _top_eigenvectors(
    covariance: NDArray[np.float64], width: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the `width` largest eigenvalues, descending, and their vectors (dim, width)."""
    dim = len(covariance)
    if dim <= EXACT_EIGH:
        values, vectors = np.linalg.eigh(covariance)
        return values[::-1][:width], vectors[:, ::-1][:, :width]
    # Subspace iteration: at 4,096 dims the whole spectrum takes half a minute, the top of it two seconds.
    basis = np.random.default_rng(seed).standard_normal((dim, min(dim, width + 32)))
    for _ in range(24):
        basis, _ = np.linalg.qr(covariance @ basis)
    values, inner = np.linalg.eigh(basis.T @ covariance @ basis)
    return values[::-1][:width], (basis @ inner)[:, ::-1][:, :width]
