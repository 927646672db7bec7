"""
Embeddings: read them, check them.

A feature lies in the data directory as one of three forms, whatever its id: `emb_<id>_<dim>.pkl`, a folder
`emb_<id>_<dim>/` of JSON lines, or parquet in `emb_<id>_<dim>_parquet/`. The name says id and width; every row is
held against it. A row that does not fit is counted, reported and skipped, since real releases have such rows.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset._messages import tell
from semid_dataset.errors import EmbeddingError, NoEmbeddingsError
from semid_dataset.features import FeatureMatrix, picked_items, take_features
from semid_dataset.inputs._rows import Rows
from semid_dataset.inputs.discover import MAX_DIM, FeatureSource, check_feature_ids, passed_over
from semid_dataset.inputs.formats import FORMATS, whole_file
from semid_dataset.objects import as_vector, item_of, shown
from semid_dataset.progress import Progress
from semid_dataset.protocols import Format

if TYPE_CHECKING:
    from semid_dataset.codec.fusion import Fusion

__all__ = ["Embeddings", "files_digest", "from_memory", "read_sources"]


@dataclass(frozen=True)
class Embeddings:
    """
    Every item that has a feature, and the features.

    Attributes:
        items: n unique ids: int64 ascending if every id is a canonical integer, else strings in order.
        features: a matrix each, over positions in `items`.
        digest: SHA-256 over the names and contents of the files, or over the content if it came from memory.
        file_digests: SHA-256 of each file.
        bad_rows: how many rows were skipped.
        fused: what took part in IDs beside the features themselves, if something did: how an item alone is carried
            into the space of the vectors, and the vectors (n, dim) of these items there; see `behaviour`.
        behaviour: digest of the sequences that took part, "" where none did.
        base: what paths of files are told from; None: they are told by their names.
    """

    items: NDArray[np.int64] | list[str]
    features: tuple[FeatureMatrix, ...]
    digest: str
    file_digests: dict[Path, str]
    bad_rows: int
    fused: "tuple[Fusion, NDArray[np.float32]] | None" = None
    behaviour: str = ""
    base: Path | None = None

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 of each file, by its path below `base`: two features may have files of one name."""
        named = {}
        for path, digest in self.file_digests.items():
            inside = self.base is not None and path.is_relative_to(self.base)
            named[path.relative_to(self.base).as_posix() if inside and self.base is not None else path.name] = digest
        return named

    def some(self, rows: NDArray[np.int64]) -> "Embeddings":
        """Return those of the items at `rows` (ascending positions)."""
        fused = None if self.fused is None else (self.fused[0], self.fused[1][rows])
        features = take_features(self.features, rows, len(self.items))
        return replace(self, items=picked_items(self.items, rows), features=features, fused=fused)

    @property
    def dims(self) -> list[tuple[str, int]]:
        """(feature id, dim) of each feature."""
        return [(feature.id, feature.dim) for feature in self.features]


def read_sources(sources: Sequence[FeatureSource], *, progress: Progress | None = None) -> Embeddings:
    """
    Read features into one set of items.

    Args:
        progress: told every few megabytes that work goes on, and of every feature that is read.

    Raises:
        NoEmbeddingsError: `sources` is empty.
        EmbeddingError: no feature could be read, or none has a usable row. A feature that cannot be read
            beside others that can is reported and left out.
    """
    read: list[tuple[str, _Ids, NDArray[np.float32]]] = []
    digests: dict[Path, str] = {}
    failures: dict[str, EmbeddingError] = {}
    bad = 0

    progress = progress or Progress()
    with progress.stage("Loading mm_emb", len(sources), "it"):
        for source in sources:
            rows = Rows(source.id, source.dim)
            found: dict[Path, str] = {}
            try:
                if passed := passed_over(source.path, source.files):
                    tell("files_passed_over", path=source.path, names=", ".join(passed[:12]))
                for path in source.files:
                    part = whole_file(path, source.form)
                    reader: Format = FORMATS.get(part.format)
                    found[path] = reader.read(part, rows, lambda done: progress.advance(), digest=True)
                ids, matrix = rows.finish()
                if not len(ids):
                    first = f" ({rows.bad} were skipped; the first: {rows.first_bad})" if rows.bad else ""
                    raise EmbeddingError(f"'{source.path}' holds no usable row of {source.dim} numbers{first}.")
            except EmbeddingError as error:
                failures[source.id] = error
                continue
            digests.update(found)
            bad += _report(rows, len(ids))
            read.append((source.id, ids, matrix))
            progress.advance(1)
            tell("loaded_feature", feature=source.id)
    if not read:
        if len(failures) == 1:
            raise next(iter(failures.values()))
        if failures:
            raise EmbeddingError("No feature can be read: " + " ".join(map(str, failures.values())))
        raise NoEmbeddingsError("There are no embeddings to read.")
    for feature, failure in failures.items():
        tell("feature_unreadable", feature=feature, error=failure)
    return _gather(read, files_digest(digests), digests, bad)


def files_digest(digests: Mapping[Path, str]) -> str:
    """Return one SHA-256 over the names of files and theirs."""
    digest = hashlib.sha256()
    for path, value in sorted(digests.items(), key=lambda entry: (entry[0].parent.name, entry[0].name)):
        digest.update(os.fsencode(f"{path.name}\0{value}\0"))
    return digest.hexdigest()


def from_memory(mm_emb_dict: Any, feature_ids: Sequence[str | int]) -> Embeddings:
    """
    Take embeddings that a dataset already holds: {feature id: {item id: vector}}.

    The width of a feature is the one that most of its first 1,000 vectors have. Vectors are arrays, tensors on any
    device (rows of an `nn.Embedding`, bfloat16), or lists of numbers.

    Raises:
        EmbeddingError: it is no such mapping.
        ConfigError: a feature id is no plain word.
        NoEmbeddingsError: none of the features is there, or none has a usable row.
    """
    read: list[tuple[str, _Ids, NDArray[np.float32]]] = []
    digest = hashlib.sha256()
    bad = 0
    if not isinstance(mm_emb_dict, Mapping):
        raise EmbeddingError(
            f"Embeddings in memory must be {{feature id: {{item: vector}}}}, not {shown(mm_emb_dict)}."
        )
    named = {str(key): value for key, value in mm_emb_dict.items() if isinstance(key, str | int | np.integer)}
    asked = check_feature_ids(feature_ids)
    for feature in asked:
        vectors = _vectors_by_item(named.get(feature), feature)
        if not vectors:
            tell("feature_missing", feature=feature, path="mm_emb_dict")
            continue
        rows = Rows(feature, _usual_width(vectors))
        _read_memory(vectors, rows)
        ids, matrix = rows.finish()
        bad += _report(rows, len(ids))
        if not len(ids):
            continue
        digest.update(f"{feature}\0{matrix.shape}\0".encode())
        digest.update("\0".join(ids).encode() if isinstance(ids, list) else ids.tobytes())
        digest.update(matrix.data)
        read.append((feature, ids, matrix))
    if not read:
        raise NoEmbeddingsError(f"No usable vector of the features {', '.join(asked)} is in memory.")
    return _gather(read, digest.hexdigest(), {}, bad)


# Reading.


_Ids = NDArray[np.int64] | list[str]


def _report(rows: Rows, good: int) -> int:
    if rows.bad:
        tell(
            "bad_rows",
            bad=rows.bad,
            rows=good + rows.bad,
            feature=rows.feature,
            first=rows.first_bad,
        )
    return rows.bad


# From memory.


def _vectors_by_item(given: Any, feature: str) -> Mapping[Any, Any]:
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return given
    pairs = getattr(given, "items", None)  # a pandas.Series of vectors over its index
    if not callable(pairs) or isinstance(given, type):
        raise EmbeddingError(f"Feature {feature} in memory is {shown(given)}; wanted: {{item: vector}}.")
    try:
        return dict(pairs())
    except Exception as error:
        raise EmbeddingError(
            f"Feature {feature} in memory is {shown(given)}; wanted: {{item: vector}} ({error})."
        ) from error


def _usual_width(vectors: Mapping[Any, Any]) -> int:
    widths: dict[int, int] = {}
    for _, value in zip(range(1_000), vectors.values(), strict=False):
        found = as_vector(value)
        if found is not None and 0 < len(found) <= MAX_DIM:
            widths[len(found)] = widths.get(len(found), 0) + 1
    return max(widths, key=lambda width: (widths[width], width), default=1)


def _read_memory(vectors: Mapping[Any, Any], rows: Rows) -> None:
    for key, value in vectors.items():
        item = item_of(key)
        if not isinstance(item, int | str):
            rows.reject(f"{shown(key)} as an id")
            continue
        vector = as_vector(value)
        if vector is None or len(vector) != rows.dim:
            what = shown(value) if vector is None else f"{len(vector)} numbers"
            rows.reject(f"item {item}: {what} instead of an array of {rows.dim} numbers")
            continue
        rows.add_one(item, vector, "in memory")


# One set of items.


def _gather(
    read: Sequence[tuple[str, _Ids, NDArray[np.float32]]], digest: str, digests: dict[Path, str], bad: int
) -> Embeddings:
    """Place each feature's rows among the union of the items."""
    numeric = [ids for _, ids, _ in read if isinstance(ids, np.ndarray)]
    if len(numeric) == len(read):
        items = numeric[0] if len(read) == 1 else np.unique(np.concatenate(numeric))
        placed = [FeatureMatrix(name, np.searchsorted(items, ids), matrix) for name, ids, matrix in read]
        return Embeddings(items, tuple(placed), digest, digests, bad)
    named = [ids if isinstance(ids, list) else [str(number) for number in ids.tolist()] for _, ids, _ in read]
    everything = sorted(set().union(*named))
    position = {name: row for row, name in enumerate(everything)}
    features = []
    for (feature, _, matrix), names in zip(read, named, strict=True):
        rows = np.fromiter((position[name] for name in names), np.int64, len(names))
        if bool((rows[1:] > rows[:-1]).all()):
            features.append(FeatureMatrix(feature, rows, matrix))
        else:  # its ids were integers in numeric order, which as strings is another
            order = np.argsort(rows)
            features.append(FeatureMatrix(feature, rows[order], matrix[order]))
    return Embeddings(everything, tuple(features), digest, digests, bad)
