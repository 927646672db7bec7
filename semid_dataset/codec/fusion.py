"""
Carry several features of one item into one space.

A feature is a matrix over some of the items: text, image, co-occurrence, each with a width and a
coverage of its own. A quantizer needs one vector per item. `Fusion.fit` learns how to make it,
`Fusion.apply` makes it, for a million items as for one, and what was learned travels with the
quantizer, so that an item which has only one of the features is encoded without the others.

`apply` gives an item the same vector in any company and on any machine: `_exact` says how. `fit` need not, since what
it learned is written down.

NumPy only: encoding new items on a warm machine must not need more than that.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset._process import unforked
from semid_dataset.codec._exact import Float64, bits_for, lengths, parts, product, solve
from semid_dataset.codec.bulk import find_bulk
from semid_dataset.errors import ConfigError, EmbeddingError, TableError
from semid_dataset.features import FeatureMatrix

__all__ = ["Fusion", "unit_length"]

Float32 = NDArray[np.float32]

WIDTH = 128  # principal axes taken of a feature, and dims of the shared space, at most
RIDGE = 1e-3  # of a feature's mean variance; keeps its covariance invertible
FIT_ROWS = 32_768  # items that statistics are taken from, at most
MAX_FEATURES = 64  # one bit each
MAX_FOLDED = 64  # sets of features whose maps are kept
BLOCK = 1_024  # rows per product
FIT_BLOCK = 2_048  # rows at once while fitting
ALONE = -1  # key of a map that does not depend on the other features
MAP_PARTS = 3  # of maps that are multiplied with each other, once
EXACT_EIGH = 1_024  # dims up to which the whole spectrum is computed


@dataclass(frozen=True)
class _Map:
    """How one feature is entered: (x - mean) @ map, into columns from `offset` on."""

    id: str
    mean: Float32  # (dim,)
    map: Float32  # (dim, axes); (1, 1) is one factor for every dim; empty leaves vectors as they are
    offset: int = 0

    @property
    def dim(self) -> int:
        return len(self.mean)


@dataclass(frozen=True)
class _Joint:
    """
    What is known about the features together, over their principal coordinates side by side.

    Attributes:
        covariance: (axes, axes).
        shared: (axes, width), from all coordinates of an item to its fused vector.
    """

    covariance: Float32
    shared: Float32


@dataclass(frozen=True)
class Fusion:
    """
    What was learned about a set of features; `fit` makes it.

    Attributes:
        kind: "single" (one feature, unchanged), "aligned", "mean", "concat" or "metric" (see `of_metric`).
        dim: width of the fused vectors.
    """

    kind: str
    dim: int
    maps: tuple[_Map, ...] = field(repr=False)
    joint: _Joint | None = field(default=None, repr=False)
    _folded: dict[int, list[Float64]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def fit(cls, features: Sequence[FeatureMatrix], items: int, kind: str = "aligned", seed: int = 0) -> "Fusion":
        """
        Learn how `features` of `items` items become one vector each.

        "aligned": every feature is centred, scaled to a total variance of one, and turned into its principal
        coordinates; the principal axes of all of them together span the shared space. An item that
        lacks a feature gets the vector to be expected from those that it has (the conditional mean of a
        joint Gaussian), so it lies as near as can be to where it would lie with all. "mean": the plain mean
        of vectors as they are. "concat": centred, scaled, side by side, zeros for what is missing.

        Measured on 12,101 products with two features, a 384-dim embedding of their titles and 64-dim
        vectors of who bought what after what, one of the two hidden from 30 % of the items. "Keeps": share
        of those whose first code / first two codes of a residual k-means (256 codes) stay the same;
        by chance 0.7 % / 0.0 %. "Next": share of purchases among the 50 items nearest to the one before.
        (benchmarks/fusion.py repeats what is still here; other draws differ by a point.)

            how                                            dims    keeps              next
            orthogonal Procrustes onto one, then averaged    64    40.6 % /  8.1 %    9.7 %
            the same                                        128    43.1 % / 10.2 %   10.3 %
            regression onto the titles, then expected       128    49.1 % / 33.4 %    9.0 % (forgets the other)
            "aligned"                                        64    43.7 % / 16.5 %    8.9 %
            "aligned", the width that is used               128    49.2 % / 26.4 %   10.4 %
            "aligned"                                       256    49.4 % / 29.1 %   10.6 %
            "concat"                                        448    45.7 % / 27.4 %   10.7 %
            titles cut to 64 dims: "mean"                    64    26.3 % /  5.3 %    9.6 %
                                   "aligned"                128    48.5 % / 29.4 %   10.3 %

        Args:
            features: one or more; one alone is passed through whatever `kind` says.
            items: how many items `features[i].rows` count.
            seed: picks the items that statistics are taken from, where there are more than 32,768.

        Raises:
            ConfigError: no feature; "mean" over unequal dims; an unknown kind; an id twice; rows beyond `items`.

        Source: Bishop, "Pattern Recognition and Machine Learning", equation 2.81 (conditional mean).
        """
        if not features:
            raise ConfigError("There is no feature to fuse: give at least one.")
        ids = [feature.id for feature in features]
        if len(set(ids)) < len(ids):
            raise ConfigError(f"A feature is given twice: {', '.join(ids)}. Give each once.")
        if len(ids) > MAX_FEATURES:
            raise ConfigError(f"{len(ids)} features are more than the {MAX_FEATURES} that can be fused.")
        _check_rows(features, items)
        if len(features) == 1:
            only = features[0]
            return cls("single", only.dim, (_Map(only.id, np.zeros(only.dim, np.float32), _nothing()),))
        # The order they are named in must not matter. Rows far beyond all others of their feature have no say in it.
        ordered = [_bulk_of(feature) for feature in sorted(features, key=lambda feature: feature.id)]
        if kind == "mean":
            return _fit_mean(ordered)
        if kind == "concat":
            return _fit_concat(ordered, seed)
        if kind == "aligned":
            return _fit_aligned(ordered, seed)
        raise ConfigError(f'fusion must be "aligned", "mean" or "concat", not {kind!r}.')

    @classmethod
    def of_metric(cls, feature: str, mean: NDArray[np.floating], matrix: NDArray[np.floating]) -> "Fusion":
        """
        Return what carries one feature into a space where lengths were learned: (x - mean) @ matrix, of unit length.

        Args:
            feature: its id.
            mean: (dim,).
            matrix: (dim, dim).
        """
        return cls("metric", len(mean), (_Map(feature, _float32(mean), _float32(matrix)),))

    def apply(self, features: Sequence[FeatureMatrix], items: int) -> Float32:
        """
        Return the fused vectors (items, dim).

        A feature may be left out; an item needs one of those that are given. An item alone gets the vector
        that it gets among others, bit for bit, and on every machine the same.

        Raises:
            EmbeddingError: an item has none of the features; a feature has another width than the fitted one.
            ConfigError: a feature that was not fitted.

        Memory: the result, and 16 bytes per item.
        """
        _check_rows(features, items)
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
        ordered = sorted(features, key=lambda feature: feature.id)  # sums must not depend on the order given
        count = np.zeros(items, np.int64)
        for feature in ordered:
            count[feature.rows] += 1
        if not count.all():
            raise EmbeddingError(
                f"Item number {int(np.argmin(count))} (counted from 0) has none of the features "
                f"{', '.join(feature.id for feature in features)}, so it has no vector. Leave it out."
            )
        fused = np.zeros((items, self.dim), np.float32)
        if self.joint is not None:
            self._apply_joint(ordered, fused)
            return fused
        for feature in ordered:
            mapping = known[feature.id]
            columns = slice(mapping.offset, mapping.offset + mapping.dim)
            grid = self._maps_for(ALONE, lambda: [_grid(self.maps[0].map)])[0] if self.kind == "metric" else None
            for start in range(0, len(feature.rows), BLOCK):
                rows = feature.rows[start : start + BLOCK]
                fused[rows, columns] += _project(feature.matrix[start : start + BLOCK], mapping, grid)
        if self.kind == "mean":
            fused /= count[:, None].astype(np.float32)
        elif self.kind == "metric":
            fused = unit_length(fused)
        return fused

    def _apply_joint(self, features: Sequence[FeatureMatrix], fused: Float32) -> None:
        """Add up what each feature contributes, by sets of items that have the same features."""
        number = {mapping.id: at for at, mapping in enumerate(self.maps)}
        having = np.zeros(len(fused), np.uint64)  # which features an item has, a bit each
        for feature in features:
            having[feature.rows] |= np.uint64(1 << number[feature.id])
        for mask in np.unique(having).tolist():
            chosen = [at for at in range(len(self.maps)) if mask >> at & 1]
            grids = self._maps_for(mask, lambda chosen=chosen: self._maps_of(chosen))  # type: ignore[misc]
            folded = dict(zip(chosen, grids, strict=True))
            for feature in features:
                at = number[feature.id]
                if at not in folded:
                    continue
                theirs = np.flatnonzero(having[feature.rows] == np.uint64(mask))
                for start in range(0, len(theirs), BLOCK):
                    rows = theirs[start : start + BLOCK]
                    fused[feature.rows[rows]] += _project(feature.matrix[rows], self.maps[at], folded[at])

    def _maps_for(self, key: int, make: Callable[[], list[Float64]]) -> list[Float64]:
        """Return the maps that are kept under a key, made where there are none."""
        found = self._folded.get(key)
        if found is None:
            if len(self._folded) >= MAX_FOLDED:
                self._folded.clear()
            found = self._folded[key] = make()
        return found

    def _maps_of(self, chosen: Sequence[int]) -> list[Float64]:
        """
        Return the map (dim, width) of each chosen feature on its grid, for items that have these and no others.

        The coordinates of the others are expected to be C_oc C_cc^-1 x; then everything goes into the shared space.
        """
        assert self.joint is not None
        parts = [np.arange(m.offset, m.offset + m.map.shape[1]) for m in self.maps]
        mine = np.concatenate([parts[at] for at in chosen])
        covariance = self.joint.covariance.astype(np.float64)
        shared = self.joint.shared.astype(np.float64)
        if len(chosen) < len(self.maps):
            others = np.setdiff1d(np.arange(len(covariance)), mine)
            own = covariance[np.ix_(mine, mine)]
            # The tiny number: a feature of no variance at all has a covariance of zeros.
            ridge = np.concatenate(
                [np.full(len(parts[at]), RIDGE * np.diag(covariance)[parts[at]].mean() + 1e-12) for at in chosen]
            )
            expected = solve(own + np.diag(ridge), covariance[np.ix_(mine, others)])
            shared_mine = shared[mine] + _product(expected, shared[others])
        else:
            shared_mine = shared[mine]
        ends = np.cumsum([len(parts[at]) for at in chosen])[:-1]
        return [
            _grid(_product(self.maps[at].map, part))
            for at, part in zip(chosen, np.split(shared_mine, ends), strict=True)
        ]

    @property
    def dims(self) -> dict[str, int]:
        """Width of each feature that was fitted, by its id."""
        return {mapping.id: mapping.dim for mapping in self.maps}

    def to_arrays(self) -> tuple[dict[str, Float32], dict[str, Any]]:
        """Return arrays and a JSON-able description, for `from_arrays`."""
        arrays: dict[str, Float32] = {}
        for mapping in self.maps:
            if mapping.map.size:
                arrays[f"{mapping.id}.mean"] = mapping.mean
                arrays[f"{mapping.id}.map"] = mapping.map
        if self.joint is not None:
            arrays["joint.covariance"] = self.joint.covariance
            arrays["joint.shared"] = self.joint.shared
        features = [{"id": mapping.id, "dim": mapping.dim, "offset": mapping.offset} for mapping in self.maps]
        return arrays, {"kind": self.kind, "dim": self.dim, "features": features}

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
            joint = None
            if kind == "aligned":
                covariance, shared = (_float32(arrays[f"joint.{name}"]) for name in ("covariance", "shared"))
                axes = sum(mapping.map.shape[1] for mapping in maps)
                if covariance.shape != (axes, axes) or shared.shape != (axes, dim):
                    raise ValueError(f"{axes} axes and {dim} dims, but {covariance.shape} and {shared.shape}")
                joint = _Joint(covariance, shared)
            elif not maps or dim != max(mapping.offset + mapping.dim for mapping in maps):
                raise ValueError(f"its features do not make up {dim} dims")
            elif kind == "metric" and [mapping.map.shape for mapping in maps] != [(dim, dim)]:
                raise ValueError(f"a metric takes one feature of {dim} dims")
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise TableError(f"The fusion in this table cannot be read: {type(error).__name__}: {error}.") from error
        return cls(kind, dim, maps, joint)


def unit_length(vectors: NDArray[np.floating]) -> Float32:
    """Return vectors (n, dim) of length one, each the same on every machine; a vector of zeros stays."""
    found = lengths(vectors)[:, None]
    return np.asarray(vectors / np.where(found > 0, found, 1), np.float32)


def _float32(array: NDArray[Any]) -> Float32:
    return np.ascontiguousarray(array, np.float32)


def _check_rows(features: Sequence[FeatureMatrix], items: int) -> None:
    for feature in features:
        if len(feature.rows) != len(feature.matrix) or (len(feature.rows) and int(feature.rows[-1]) >= items):
            raise ConfigError(f"Feature {feature.id} has {len(feature.matrix)} vectors that do not fit {items} items.")


def _bulk_of(feature: FeatureMatrix) -> FeatureMatrix:
    beyond = find_bulk(feature.matrix).beyond
    if beyond is None:
        return feature
    return FeatureMatrix(feature.id, feature.rows[~beyond], feature.matrix[~beyond])


def _nothing() -> Float32:
    return np.zeros((0, 0), np.float32)


def _restore(arrays: Mapping[str, NDArray[Any]], kind: str, entry: Mapping[str, Any]) -> _Map:
    name, dim = str(entry["id"]), int(entry["dim"])
    mean, matrix = np.zeros(dim, np.float32), _nothing()
    if kind in {"aligned", "concat", "metric"}:
        mean, matrix = _float32(arrays[f"{name}.mean"]), _float32(arrays[f"{name}.map"])
        rows = 1 if kind == "concat" else dim
        if mean.shape != (dim,) or matrix.ndim != 2 or matrix.shape[0] != rows:
            raise ValueError(f"feature {name} is described as {dim} wide, its map is {matrix.shape}")
    elif kind not in {"mean", "single"}:
        raise ValueError(f"kind {kind!r}")
    return _Map(name, mean, matrix, int(entry["offset"]))


def _grid(matrix: NDArray[Any]) -> Float64:
    """Return a map (dim, width) rounded so that products with it need no rounding."""
    return parts(matrix, bits_for(len(matrix)), axis=0)[0]


def _product(left: NDArray[Any], right: NDArray[Any]) -> Float64:
    """Return left @ right to float64's precision, the same on every machine."""
    return product(left, parts(right, bits_for(len(right)), MAP_PARTS, axis=0))


def _project(block: Float32, mapping: _Map, grid: Float64 | None) -> Float32:
    """Return (block - mean) @ map; `grid` is the map on its grid, None where it is no matrix."""
    if not mapping.map.size:
        return block
    centred = block - mapping.mean
    if grid is None:  # one factor for every dim
        return np.asarray(centred * mapping.map[0, 0], np.float32)
    return product(centred, [grid]).astype(np.float32)


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
        maps.append(_Map(feature.id, mean, np.full((1, 1), _unit(variance), np.float32), offset))
        offset += feature.dim
    return Fusion("concat", offset, tuple(maps))


def _fit_aligned(features: Sequence[FeatureMatrix], seed: int) -> Fusion:
    maps: list[_Map] = []
    spectra = []
    offset = 0
    for feature in features:
        mapping, spectrum = _principal(feature, offset, seed)
        maps.append(mapping)
        spectra.append(spectrum)
        offset += len(spectrum)
    covariance = np.diag(np.concatenate(spectra))
    for first, second in itertools.combinations(range(len(features)), 2):
        cross = _cross_covariance(features[first], features[second], maps[first], maps[second], seed=seed)
        rows, columns = _span_of(maps[first]), _span_of(maps[second])
        covariance[rows, columns], covariance[columns, rows] = cross, cross.T
    # Each block was taken over the items that have it, so together they may be no covariance: make them one.
    with unforked():
        values, vectors = np.linalg.eigh(covariance)
        covariance = (vectors * np.maximum(values, 0)) @ vectors.T
    shared = _fixed_signs(vectors[:, ::-1][:, :WIDTH])
    joint = _Joint(_float32(covariance), _float32(shared))
    return Fusion("aligned", shared.shape[1], tuple(maps), joint)


def _span_of(mapping: _Map) -> slice:
    return slice(mapping.offset, mapping.offset + mapping.map.shape[1])


def _fixed_signs(axes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give every axis the sign that makes its largest entry positive: eigenvectors come with any."""
    return axes * np.where(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])] < 0, -1.0, 1.0)


def _principal(feature: FeatureMatrix, offset: int, seed: int) -> tuple[_Map, NDArray[np.float64]]:
    """Return the map of a feature to its principal coordinates, of total variance one, and their variances."""
    chosen = _sample(len(feature.rows), seed)
    mean, variance = _moments(feature.matrix, chosen)
    covariance = np.zeros((feature.dim, feature.dim), np.float64)
    for block in _blocks(feature.matrix, chosen):
        centred = block - mean
        with unforked():
            covariance += centred.T @ centred
    covariance /= max(1, len(chosen))
    values, axes = _top_eigenvectors(covariance, min(WIDTH, feature.dim), seed)
    unit = _unit(variance)
    return _Map(feature.id, mean, _float32(_fixed_signs(axes) * unit), offset), np.maximum(values, 0) * unit**2


def _cross_covariance(
    first: FeatureMatrix, second: FeatureMatrix, first_map: _Map, second_map: _Map, *, seed: int
) -> NDArray[np.float64]:
    """Return the covariance of two features' coordinates over the items that have both, shrunk where these are few."""
    _, mine, theirs = np.intersect1d(first.rows, second.rows, assume_unique=True, return_indices=True)
    cross = np.zeros((first_map.map.shape[1], second_map.map.shape[1]), np.float64)
    chosen = _sample(len(mine), seed)
    for start in range(0, len(chosen), FIT_BLOCK):
        some = chosen[start : start + FIT_BLOCK]
        with unforked():
            left = (first.matrix[mine[some]] - first_map.mean) @ first_map.map
            right = (second.matrix[theirs[some]] - second_map.mean) @ second_map.map
            cross += left.T @ right
    # Few items show correlations that are not there: as many as there are axes halve what they say.
    return cross / max(1, len(chosen) + sum(cross.shape))


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


@unforked()
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
