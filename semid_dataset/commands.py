"""
Semantic IDs on demand, as functions.

The explicit ones ignore `ALLOW_SEMANTIC_GENERATION` and raise: who calls them means it.
`generate_semantic_ids_on_demand` is the function of the original system, gated and degrading like the property.
"""

import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset import birth, files, lineage, store
from semid_dataset.config import Environment, Identity, SemanticIdConfig
from semid_dataset.errors import ConfigError, EmbeddingError, ParentError, SemidError
from semid_dataset.messages import degrade, tell
from semid_dataset.resolve import JSON_FILE, Ask, Resolution, resolve
from semid_dataset.sources import FeatureSource, find_sources
from semid_dataset.table import SemanticIdTable

if TYPE_CHECKING:
    from semid_dataset.features import Embeddings
    from semid_dataset.quantizer import ResidualQuantizer

__all__ = [
    "extend_with_vectors",
    "generate_from_vectors",
    "generate_semantic_ids",
    "generate_semantic_ids_on_demand",
    "own_embeddings",
]

OWN_FEATURE = "own"  # id of embeddings that have none


def generate_semantic_ids(
    data_dir: Path | str,
    feature_ids: Sequence[str | int] = ("81",),
    *,
    config: SemanticIdConfig | None = None,
    output_dir: Path | str | None = None,
    retrain: bool = False,
    parent: "Path | str | SemanticIdTable | ResidualQuantizer | None" = None,
) -> SemanticIdTable:
    """
    Make semantic IDs now: an explicit command, so it ignores `ALLOW_SEMANTIC_GENERATION` and raises.

    Args:
        data_dir: holds `creative_emb/`.
        feature_ids: of the embeddings.
        config: how IDs are made.
        output_dir: train anew and write `semantic_id_dict.json` and `semid_table.safetensors` there,
            leaving the cache alone. Without it the result is published in the cache.
        retrain: start a new lineage although there is one; IDs move.
        parent: extend this table instead of training.

    Raises:
        NoEmbeddingsError, EmbeddingError: nothing to train on.
        SemidError, OSError: as the steps say.
    """
    ask = Ask(
        Path(data_dir),
        tuple(map(str, feature_ids)),
        config=config or SemanticIdConfig(),
        parent=Path(parent) if isinstance(parent, str) else parent,
    )
    resolution = Resolution(ask, Environment.read(), may_generate=True)
    resolution.open_parent()
    if resolution.parent is not None and not resolution.parent.has_quantizer:
        raise ParentError(
            f"The parent {resolution.parent.path or 'in memory'} holds IDs but no quantizer to encode new items with. "
            f"Give the {lineage.TABLE_FILE} of a training."
        )
    found = find_sources(Path(data_dir), ask.feature_ids)
    question, _ = resolution.question(found)
    if output_dir is not None:
        return _generate_into(Path(output_dir), resolution, found, question)
    if not retrain:
        return resolution.remembered(question) or resolution.generate(found, None, question)
    before = resolution.remembered(question)
    root = store.writable_root(resolution.roots)
    name = question.name
    with store.take_turn(root, name, timeout=resolution.lock_timeout, ready=lambda: False) as turn:
        table = resolution.generate_now(found, None, question, root, turn or store.Turn(None), retraining=True)
    if before is not None:
        rows = table.rows_of(before.keys_array)
        both = rows >= 0
        moved = int((table.codes_array[rows[both]] != before.codes_array[both]).any(1).sum())
        tell("retrained", moved=moved, items=int(both.sum()), lineage=before.lineage)
    return table


def _generate_into(
    output: Path, resolution: Resolution, found: Sequence[FeatureSource], question: store.Question
) -> SemanticIdTable:
    if resolution.parent is not None:
        raise ConfigError("output_dir trains anew and parent extends: give one of them.")
    assert question.identity is not None
    started = time.perf_counter()
    tell("loading_features")
    embeddings = resolution.read(found)
    return _train_into(output, embeddings, resolution.config, question.identity, started)


def _train_into(
    output: Path, embeddings: "Embeddings", config: SemanticIdConfig, identity: Identity, started: float
) -> SemanticIdTable:
    tell("features", items=len(embeddings.items), dim="+".join(str(dim) for _, dim in embeddings.dims))
    name = lineage.lineage_name(identity, embeddings.digest)
    buffers = birth.train_table(embeddings, config, identity, name, store.Turn(None), started)
    output.mkdir(parents=True, exist_ok=True)
    files.replace_file(output / lineage.TABLE_FILE, buffers)
    table = store.open_table(output / lineage.TABLE_FILE, mmap=Environment.read().mmap, follow=True)
    tell("saving", path=output / JSON_FILE)
    files.replace_file(output / JSON_FILE, table.json_chunks())
    tell("saved")
    return table.with_status("trained", f"written to {output}")


def generate_from_vectors(
    items: Sequence[int] | Sequence[str] | NDArray[Any],
    vectors: NDArray[Any],
    *,
    output_dir: Path | str,
    config: SemanticIdConfig | None = None,
    sequences: Iterable[Sequence[Any] | NDArray[Any]] | None = None,
) -> SemanticIdTable:
    """
    Make semantic IDs of any embeddings; an explicit command, like `generate_semantic_ids`.

    Args:
        items: n ints or strings, each once.
        vectors: (n, dim) of finite numbers, in the order of the items.
        output_dir: `semid_table.safetensors` and `semantic_id_dict.json` are written there, in place of older ones.
        config: how IDs are made.
        sequences: what users took, one after the other; the recommender's training events and no others. Items that
            are taken near each other then get codes that are alike, too; items of which nothing is known yet get
            those to be expected from their vectors. See `semid_dataset.behaviour`.

    Raises:
        NoEmbeddingsError, EmbeddingError: items and vectors do not fit each other, or are no such things; no two of
            the items occur near each other in the sequences.
        SemidError, OSError: as the steps say.
    """
    started = time.perf_counter()
    embeddings = own_embeddings(items, vectors)
    config = config or SemanticIdConfig()
    if sequences is not None:
        from semid_dataset.behaviour import behaviour_feature

        taken = behaviour_feature(embeddings.items, sequences, seed=config.seed)
        digest = hashlib.sha256(f"{embeddings.digest}\0{taken.id}\0".encode() + taken.rows.tobytes())
        digest.update(taken.matrix.tobytes())
        embeddings = replace(embeddings, features=(*embeddings.features, taken), digest=digest.hexdigest())
    return _train_into(Path(output_dir), embeddings, config, Identity.of(config, embeddings.dims), started)


def extend_with_vectors(
    table: SemanticIdTable, items: Sequence[int] | Sequence[str] | NDArray[Any], vectors: NDArray[Any]
) -> tuple[SemanticIdTable, int]:
    """
    Return a table in memory that holds all IDs of `table` and those of new items, and how many were new.

    New items are encoded by the table's quantizer and made unique among the codes that are free; nothing is
    written. `.save(path)` of the result keeps it.

    Raises:
        TableError: the table has no quantizer.
        EmbeddingError: the vectors are not such as it was made from.
    """
    quantizer = table.quantizer
    embeddings = own_embeddings(items, vectors)
    dim = embeddings.features[0].dim
    if quantizer.fusion is not None and OWN_FEATURE not in quantizer.fusion.dims:
        raise EmbeddingError(
            f"'{table.path}' was made from several features of a data directory; one matrix of {dim} numbers is not "
            "enough. Extend it with: semid generate DATA_DIR --parent TABLE."
        )
    wanted = quantizer.dim if quantizer.fusion is None else quantizer.fusion.dims[OWN_FEATURE]
    if wanted != dim:
        raise EmbeddingError(f"'{table.path}' encodes vectors of {wanted} numbers, these have {dim}.")
    missing = np.flatnonzero(table.rows_of(embeddings.items) < 0)
    if not len(missing):
        return table, 0
    buffers = lineage.extended_buffers(
        table.lineage, table.generation + 1, table, embeddings.items, embeddings.features, missing
    )
    reason = f"{len(missing)} new items, lineage {table.lineage}"
    return SemanticIdTable.from_buffer(b"".join(buffers), status="extended", reason=reason), len(missing)


def own_embeddings(items: Any, vectors: NDArray[Any]) -> "Embeddings":
    """
    Return a caller's items and vectors in the order and form that the readers of data directories give.

    Raises:
        EmbeddingError: as `check_vectors`.
    """
    from semid_dataset.features import Embeddings
    from semid_dataset.fusion import FeatureMatrix
    from semid_dataset.vectors import check_vectors

    keys, matrix = check_vectors(items, vectors)
    if isinstance(keys, np.ndarray):
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
    else:
        order = np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)
        keys = [keys[row] for row in order.tolist()]
    if (order[1:] < order[:-1]).any():
        matrix = matrix[order]
    digest = hashlib.sha256(f"{OWN_FEATURE}\0{matrix.shape}\0".encode())
    digest.update(keys.tobytes() if isinstance(keys, np.ndarray) else "\0".join(keys).encode())
    digest.update(matrix.data)
    feature = FeatureMatrix(OWN_FEATURE, np.arange(len(matrix)), matrix)
    return Embeddings(keys, (feature,), digest.hexdigest(), {}, bad_rows=0)


def generate_semantic_ids_on_demand(
    data_path: Path | str, mm_emb_ids: Sequence[str | int], args: object | None = None
) -> SemanticIdTable:
    """
    Return the semantic IDs of a data directory, made now if there are none; never raises.

    Kept for callers of the original function. Gated and degrading like the property: where no IDs
    can be had, default IDs answer, and `.status` and `.reason` say so.

    Args:
        data_path: the data directory.
        mm_emb_ids: ids of the features.
        args: of it only `device` is read; lr, batch_size and num_epochs are the recommender's.
    """
    device = getattr(args, "device", None)
    config = SemanticIdConfig(device=str(device)) if device else SemanticIdConfig()
    ask = Ask(Path(data_path), tuple(map(str, mm_emb_ids)), config=config)
    try:
        return resolve(ask)
    except SemidError as error:
        degrade("default", reason=error)
        return SemanticIdTable.default(config.num_quantizers, reason=str(error))
