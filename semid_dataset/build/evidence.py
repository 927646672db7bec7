"""
Whether a table was made from a data set: by (item, vector) pairs that both hold.

Names, paths and shares of common items decide nothing: two data sets may both count from 0, one catalogue may grow
tenfold, a directory may be another one tomorrow. A pair of an item and its very vector occurs by chance in no other
data set, so any real overlap is better evidence than none. What no pair tells is asked of the codes: they were made
from vectors, and reproduce them.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset._process import unforked
from semid_dataset.build import novelty
from semid_dataset.cache.pairs import Pairs, pair_keys
from semid_dataset.codec.bulk import distances
from semid_dataset.features import FeatureMatrix, picked_items, take_features
from semid_dataset.inputs._items import canonical_int
from semid_dataset.inputs.keys import hash_items
from semid_dataset.table.header import Sketch
from semid_dataset.table.table import SemanticIdTable

__all__ = ["Evidence", "Match", "merged"]

SKETCHED = 512  # pairs that a table keeps of all of its own
SOUGHT = 16 * SKETCHED  # pairs that are looked for among those of many lineages
SKETCH_SEED = -1  # of the hash that picks them: no training samples by it
SAMPLE_ITEMS = 1024  # known items whose vectors are held against their codes
LEAST_FITTING = 8  # known items, before their codes say anything about whose they are
DRIFT_SHARE = 0.25  # of the way from the error at the fit to 1, the error of vectors that have nothing to do with it
MOST_AGAIN = 0.5  # share of first codes that come out again where vectors are those of the fit; by chance 1 in 256
RELATED_ITEMS = 384  # known items whose distances are compared
LEAST_RELATED = 6
UNEXPLAINED = 0.75  # of the variance: codes that leave so much say nothing of these vectors
SHUFFLES = 50
LEAST_CORRELATION = 0.1

Keys = NDArray[np.int64] | list[str]


@dataclass(frozen=True)
class Match:
    """
    What a table has in common with a data set.

    Attributes:
        known: items of the data set that the table holds.
        pairs: of the table's sketch that occur in the data set.
        conflicts: items of the sketch that occur with another vector.
        error: of the known items' vectors against their codes, over the variance at the fit; None: it says nothing.
        fitted: the same at the fit.
        fits: whether the first is near the second.
    """

    known: int
    pairs: int
    conflicts: int
    error: float | None
    fitted: float
    fits: bool

    @property
    def same_data(self) -> bool:
        """Whether the table was made from this data set, or from one that it grew out of."""
        return self.pairs > 0 or (self.known > 0 and self.fits)

    @property
    def other_vectors(self) -> bool:
        """Whether most known items have vectors that codes were not made for."""
        return self.known > 0 and not self.fits and self.conflicts >= self.pairs


class Evidence:
    """
    A data set, as far as it takes to know it again.

    Args:
        items: n ids, or a sample of them.
        features: matrices over positions in `items`.
    """

    def __init__(self, items: Keys, features: Sequence[FeatureMatrix]) -> None:
        self.items = items
        self.features = features

    @cached_property
    def _hashes(self) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
        """Hashes of all pairs of item and feature in ascending order, with the feature's number and the row in it."""
        items = _item_hashes(self.items)
        hashes, number, rows = [], [], []
        for place, feature in enumerate(self.features):
            own = int.from_bytes(hashlib.blake2b(feature.id.encode(), digest_size=8).digest(), "little")
            hashes.append(hash_items((items[feature.rows] ^ np.uint64(own)).view(np.int64), SKETCH_SEED))
            number.append(np.full(len(feature.rows), place, np.int64))
            rows.append(np.arange(len(feature.rows)))
        found = np.concatenate(hashes)
        order = np.argsort(found, kind="stable")
        return found[order], np.concatenate(number)[order], np.concatenate(rows)[order]

    def sketch(self) -> Sketch:
        """Return the pairs to remember: those with the smallest hashes."""
        hashes = self._hashes[0]
        chosen, first = np.unique(hashes[:SKETCHED], return_index=True)
        return Sketch(chosen, self._digests(first))

    def _digests(self, places: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return a digest of the vectors at places among the hashes; 0 where one says nothing."""
        _, number, rows = self._hashes
        found = np.zeros(len(places), np.uint64)
        for at, place in enumerate(places.tolist()):
            matrix = self.features[number[place]].matrix
            vector = np.ascontiguousarray(matrix[rows[place]], "<f4") + np.float32(0)  # -0 is 0
            if len(vector) == 1 or bool((vector != vector[0]).any()):
                digest = hashlib.blake2b(vector.tobytes(), digest_size=8).digest()
                found[at] = max(1, int.from_bytes(digest, "little"))
        return found

    def pairs(self) -> Pairs:
        """Return the pairs to look for among many lineages: more of the smallest hashes than a sketch keeps."""
        hashes, first = np.unique(self._hashes[0][:SOUGHT], return_index=True)
        return Pairs(np.unique(pair_keys(hashes, self._digests(first))), len(self.items))

    def pairs_of(self, sketch: Sketch) -> tuple[int, int]:
        """
        Return how many pairs of a sketch occur here, and how many of its items have another vector here.

        A vector that occurs more than once in the sketch is what an encoder gives whatever has no content: it tells
        nothing about whose it is.
        """
        hashes = self._hashes[0]
        if not len(sketch) or not len(hashes):
            return 0, 0
        values, counts = np.unique(sketch.vectors, return_counts=True)
        telling = (sketch.vectors != 0) & ~np.isin(sketch.vectors, values[counts > 1])
        at = np.minimum(np.searchsorted(hashes, sketch.items), len(hashes) - 1)
        here = np.flatnonzero(telling & (hashes[at] == sketch.items))
        same = int((self._digests(at[here]) == sketch.vectors[here]).sum())
        return same, len(here) - same

    def of(self, table: SemanticIdTable) -> Match:
        """Return what a table has in common with this data set; torch is loaded where pairs do not tell enough."""
        pairs, conflicts = self.pairs_of(table.header.sketch)
        known = self.known(table)
        if not len(known):
            return Match(0, pairs, conflicts, None, table.header.relative_error, fits=False)
        if pairs and not conflicts:
            return Match(len(known), pairs, conflicts, None, table.header.relative_error, fits=True)
        enough = len(known) >= min(LEAST_FITTING, len(self.items), len(table))
        if not table.has_quantizer or table.header.behaviour or not enough:
            fits = pairs > conflicts
            return Match(len(known), pairs, conflicts, None, table.header.relative_error, fits=fits)
        error, fitted, fits = self.reproduced(table, known)
        return Match(len(known), pairs, conflicts, error, fitted, fits)

    def in_another_space(self, table: SemanticIdTable, match: Match) -> bool:
        """
        Say whether vectors come from another encoder than the one that the table's codebooks were made for.

        Known items' vectors have moved then, and either codebooks cannot reproduce them as they could at the fit, or
        they lie to one another as before and their codes explain nothing of them any more. (Otherwise items have
        changed and not the encoder: new ones can be encoded.)
        """
        if not match.other_vectors or not table.has_quantizer:
            return False
        vectors, _ = self._sampled(table, self.known(table), SAMPLE_ITEMS)
        raw = table.quantizer.encode(vectors)
        squared = float(np.square(vectors.astype(np.float64) - table.quantizer.decode(raw)).sum(1).mean())
        energy = float(np.square(vectors, dtype=np.float64).sum(1).mean())
        found = novelty.judge(table, novelty.Encoded(raw, raw, 0, squared, squared, energy))
        if found is not None and found.verdict != "near":
            return True
        return (match.error is None or match.error > UNEXPLAINED) and self.related(table)

    def known(self, table: SemanticIdTable) -> NDArray[np.int64]:
        """Return the positions of the items that a table holds."""
        return np.flatnonzero(table.rows_of(self.items) >= 0)

    def reproduced(self, table: SemanticIdTable, known: NDArray[np.int64]) -> tuple[float, float, bool]:
        """
        Return how well a table's codes reproduce vectors of items that it knows, by a sample of 1,024.

        Returns:
            As `vectors_fit`.
        """
        return vectors_fit(table, *self._sampled(table, known, SAMPLE_ITEMS))

    def _sampled(
        self, table: SemanticIdTable, known: NDArray[np.int64], most: int
    ) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Return vectors and codes of some known items."""
        sample = np.unique(known[np.linspace(0, len(known) - 1, min(most, len(known))).astype(np.int64)])
        from semid_dataset.codec.kinds import vectors_of

        vectors = vectors_of(table.quantizer, take_features(self.features, sample, len(self.items)), len(sample))
        return vectors, table.codes_array[table.rows_of(picked_items(self.items, sample))]

    def same_items(self, table: SemanticIdTable) -> bool:
        """Say whether a table's items are these, under whatever vectors; of few nothing can be said."""
        return len(self.known(table)) >= LEAST_FITTING and self.related(table)

    def related(self, table: SemanticIdTable) -> bool:
        """
        Say whether a table's items lie to one another as they do here, in whatever space.

        Another encoder gives the same items other vectors, but what was alike stays alike; items of another data set
        that go by the same ids have nothing to do with each other. Compared are the cosines of all pairs among a
        sample, as codes reproduce them and as they are here (the test of Mantel): their correlation must be beyond
        that of every one of 50 random assignments. Few items tell nothing; then this says yes, so that no ID moves.
        """
        known = self.known(table)
        if not table.has_quantizer or len(known) < LEAST_RELATED:
            return bool(len(known))
        vectors, codes = self._sampled(table, known, RELATED_ITEMS)
        before, now = _cosines(table.quantizer.decode(codes)), _cosines(vectors)
        pairs = np.triu_indices(len(before), 1)
        wanted = before[pairs] - before[pairs].mean()
        if not wanted.any() or not (now[pairs] - now[pairs].mean()).any():
            return True  # all alike: there is nothing to compare
        rng = np.random.default_rng(0)
        orders = [np.arange(len(now)), *(rng.permutation(len(now)) for _ in range(SHUFFLES))]
        found = []
        for order in orders:
            there = now[np.ix_(order, order)][pairs]
            there = there - there.mean()
            with unforked():
                found.append(float(wanted @ there / np.sqrt((wanted @ wanted) * (there @ there))))
        return found[0] > max(LEAST_CORRELATION, *found[1:])


def vectors_fit(table: SemanticIdTable, vectors: NDArray[np.float32], codes: NDArray[Any]) -> tuple[float, float, bool]:
    """
    Return how well codes (n, levels) of a table reproduce vectors (n, dim), by a sample of 1,024.

    Returns:
        Squared error over the variance at the fit; the same at the fit; whether the first is near the second. A table
        that began with a bare quantizer states no variance: that of these vectors, NaN, and whether most first codes
        come out again, as they would not for vectors of another encoder.
    """
    sample = np.unique(np.linspace(0, len(vectors) - 1, min(SAMPLE_ITEMS, len(vectors))).astype(np.int64))
    vectors, codes = vectors[sample], codes[sample]
    from semid_dataset.codec.kinds import centre_of

    near = distances(vectors, centre_of(table.weights)) <= table.header.radius
    if near.any():  # a broken row says nothing of the others
        vectors, codes = vectors[near], codes[near]
    squared = float(np.square(vectors.astype(np.float64) - table.quantizer.decode(codes)).sum(1).mean())
    variance, fitted = table.header.variance, table.header.relative_error
    if "variance" not in table.header.provenance:  # of a bare quantizer's items: nobody measured them at the fit
        spread = float(np.square(vectors.astype(np.float64) - vectors.mean(0, np.float64)).sum(1).mean())
        again = float((table.quantizer.encode(vectors)[:, 0] == codes[:, 0]).mean())
        return squared / spread if spread else squared, float("nan"), again > MOST_AGAIN
    if variance <= 0.0:  # all vectors equal at the fit: any error is another vector
        return squared, 0.0, squared <= 1e-6 * (1.0 + float(np.square(vectors).sum(1).mean()))
    error = squared / variance
    return error, fitted, error <= fitted + DRIFT_SHARE * max(0.0, 1.0 - fitted)


def merged(base: Sketch, now: Sketch) -> Sketch:
    """Return what to remember of two samples of pairs; where both have an item, its vector of now."""
    items = np.concatenate([now.items, base.items])
    vectors = np.concatenate([now.vectors, base.vectors])
    chosen, first = np.unique(items, return_index=True)  # of equal ones the first: that of now
    return Sketch(chosen[:SKETCHED], vectors[first][:SKETCHED])


def _item_hashes(items: Keys) -> NDArray[np.uint64]:
    """Return 64 bits for every item; an integer and its decimal string have the same."""
    if isinstance(items, np.ndarray):
        return hash_items(items, SKETCH_SEED)
    numbers = [canonical_int(item) for item in items]
    hashes = np.array(
        [
            0
            if number is not None
            else int.from_bytes(hashlib.blake2b(item.encode(), digest_size=8).digest(), "little")
            for item, number in zip(items, numbers, strict=True)
        ],
        np.uint64,
    )
    integers = np.flatnonzero([number is not None for number in numbers])
    if len(integers):
        whole = np.array([number for number in numbers if number is not None], np.int64)
        hashes[integers] = hash_items(whole, SKETCH_SEED)
    return hashes


@unforked()
def _cosines(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    centred = vectors.astype(np.float64) - vectors.mean(0, dtype=np.float64)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = centred / np.where(lengths > 0, lengths, 1.0)
    return np.asarray(unit @ unit.T)
