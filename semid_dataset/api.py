"""
Semantic IDs on demand, as functions.

The explicit ones ignore `ALLOW_SEMANTIC_GENERATION` and raise: who calls them means it.
`generate_semantic_ids_on_demand` is the function of the original system, gated and degrading like the property.
"""

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset import _files as files
from semid_dataset._messages import degrade, tell
from semid_dataset.build import lineages as lineage
from semid_dataset.build import memory, pipeline
from semid_dataset.build.evidence import Evidence
from semid_dataset.build.itemset import HeldItems, ItemSet
from semid_dataset.build.sequences import with_sequences
from semid_dataset.cache import folders
from semid_dataset.cache.cache import open_table
from semid_dataset.cache.fingerprint import CacheKey
from semid_dataset.cache.folders import CacheFolder
from semid_dataset.cache.lock import Lease
from semid_dataset.config import Identity, SemanticIdConfig
from semid_dataset.environment import Context
from semid_dataset.errors import ConfigError, EmbeddingError, ItemsError, ParentError, SemidError, TableError
from semid_dataset.format.id_json import JSON_FILE
from semid_dataset.inputs.discover import FeatureSource, feature_names, find_sources
from semid_dataset.inputs.keys import LongNameError, as_keys
from semid_dataset.inputs.matrix import OWN
from semid_dataset.objects import as_choice, as_count, as_path, expect
from semid_dataset.objects import shown as shown_value
from semid_dataset.progress import Progress, shown
from semid_dataset.registry import EXECUTORS
from semid_dataset.resolve import Request, Resolution, resolve
from semid_dataset.table.table import TABLE_FILE, SemanticIdTable

if TYPE_CHECKING:
    from semid_dataset.codec.residual import ResidualQuantizer
    from semid_dataset.inputs.read import Embeddings
    from semid_dataset.protocols import Trainer

__all__ = [
    "add_semantic_ids",
    "extend_with_vectors",
    "fit",
    "generate_from_file",
    "generate_from_vectors",
    "generate_semantic_ids",
    "generate_semantic_ids_on_demand",
    "generate_shard",
    "own_embeddings",
    "with_sequences",
]

WORK = ".semantic_ids_work"  # in an output folder, as long as something is made there


def generate_semantic_ids(
    data_dir: Path | str,
    feature_ids: Sequence[str | int] = ("81",),
    *,
    config: SemanticIdConfig | None = None,
    output_dir: Path | str | None = None,
    retrain: bool = False,
    parent: "Path | str | SemanticIdTable | ResidualQuantizer | None" = None,
    engine: str | None = None,
    sequences: Iterable[Sequence[Any] | NDArray[Any]] | None = None,
    force: bool = False,
) -> SemanticIdTable:
    """
    Make semantic IDs now: whoever calls this means it, so it ignores `ALLOW_SEMANTIC_GENERATION` and raises.

    Args:
        data_dir: holds `creative_emb/`.
        feature_ids: of the embeddings.
        config: how IDs are made.
        output_dir: train anew and write `semantic_id_dict.json` and `semid_table.safetensors` there,
            leaving the cache alone. Without it the result is published in the cache.
        retrain: start a new lineage although there is one; IDs move.
        parent: extend this table instead of training.
        engine: stream the embeddings, however few, and let the parts be done by "local" processes, by "ray", or by
            another package's executor.
            Without it they are streamed where they would not fit into the configuration's `memory_limit`.
        sequences: what users took in order, as in `generate_from_vectors`; with `output_dir` and one feature. Give
            what is written there as `parent` to those that read the IDs.
        force: give new items IDs although their vectors are not such as the table was made for.

    Raises:
        ForeignVectorsError: new items have vectors of another encoder, or not normalized as at the fit; none got an ID.
        NoEmbeddingsError, EmbeddingError: nothing to train on; no two items occur near each other in the sequences.
        ConfigError: no such engine, or several features are to be streamed; sequences do not go with the rest.
        SemidError, OSError: as the steps say.
    """
    if sequences is not None and (output_dir is None or engine is not None or len(feature_ids) != 1):
        raise ConfigError("sequences take part in a training in memory: give output_dir, one feature and no engine.")
    resolution, found, cache_key = _asked(data_dir, feature_ids, config, parent, engine, force)
    if output_dir is not None:
        return _generate_into(as_path(output_dir, what="output_dir"), resolution, found, cache_key, sequences)
    if retrain and resolution.parent is not None:
        raise ConfigError("retrain trains anew and parent extends: give one of them.")
    if not retrain:
        return resolution.remembered(cache_key) or resolution.generate(found, None, cache_key)
    with resolution.cache.lease(cache_key.name, waiting=resolution.waiting, ready=lambda: False) as lease:
        return resolution.generate_now(found, None, cache_key, lease or Lease(None), retraining=True)


def generate_shard(
    data_dir: Path | str,
    feature_ids: Sequence[str | int] = ("81",),
    *,
    shard: int,
    shards: int,
    config: SemanticIdConfig | None = None,
    parent: "Path | str | SemanticIdTable | ResidualQuantizer | None" = None,
    engine: str = "local",
    force: bool = False,
) -> tuple[SemanticIdTable | None, int, int]:
    """
    Do one share of making semantic IDs; processes, here or on other machines, that share the cache do the others.

    The first one there trains while the others wait. Then each encodes its parts, and whoever finds all parts done
    publishes the table. A share that was killed is started again; what it had finished is not done twice.

    Args:
        data_dir, feature_ids, config, parent, engine, force: as in `generate_semantic_ids`; the same for all shares.
        shard: number of this share, from 0.
        shards: how many there are.

    Returns:
        The table, None where shares of others are missing; how many parts are done, and how many there are.

    Raises:
        ConfigError: there is no such share.
        ForeignVectorsError: as there.
        SemidError, OSError: as the steps say.
    """
    as_count(shards, "shards", 1, 1 << 20), as_count(shard, "shard", 0, 1 << 20)
    if not 0 <= shard < shards:
        raise ConfigError(f"There is no shard {shard} of {shards}: the numbers are 0 to {shards - 1}.")
    resolution, found, cache_key = _asked(data_dir, feature_ids, config, parent, engine, force)
    if (table := resolution.remembered(cache_key)) is not None:
        return table, 0, 0
    job = resolution.job(found, cache_key, resolution.workplace(), shown())
    assert job is not None  # without a folder to work in this was an error

    def ready() -> bool:
        return job.chosen is not None or resolution.remembered(cache_key) is not None

    try:
        job.sample_share((shard, shards))
        with resolution.cache.lease(cache_key.name, waiting=resolution.waiting, ready=ready) as lease:
            if lease is not None and not ready():
                resolution.choose_codebooks(found, cache_key, shown(lease.heartbeat))
        basis = job.chosen
        done, parts = (0, 0) if basis is None else job.encode(basis, (shard, shards))
    except (SemidError, OSError):
        # Whoever found all parts done has published and cleaned up meanwhile.
        if (table := resolution.remembered(cache_key)) is not None:
            return table, 0, 0
        raise
    if basis is not None and done < parts:
        return None, done, parts
    return resolution.generate(found, None, cache_key), done, parts


def _asked(
    data_dir: Path | str,
    feature_ids: Sequence[str | int],
    config: SemanticIdConfig | None,
    parent: "Path | str | SemanticIdTable | ResidualQuantizer | None",
    engine: str | None,
    force: bool,
) -> tuple[Resolution, list[FeatureSource], CacheKey]:
    """Return who resolves, the embeddings' files, and the question about them."""
    if engine is not None:
        as_choice(engine, EXECUTORS.names(), "engine")
    request = Request(
        as_path(data_dir, what="data_dir"),
        feature_names(feature_ids),
        config=_settings(config),
        parent=lineage.parent_of(parent),
    )
    resolution = Resolution(request, Context.at_door(explicit=True), may_generate=True)
    resolution.engine = engine
    resolution.foreign = "take" if force else "raise"
    resolution.open_parent()
    if resolution.parent is not None and not resolution.parent.has_quantizer:
        raise ParentError(
            f"The parent {resolution.parent.path or 'in memory'} holds IDs but no quantizer to encode new items with. "
            f"Give the {TABLE_FILE} of a training."
        )
    assert request.data_dir is not None
    found = find_sources(request.data_dir, request.feature_ids)
    return resolution, found, resolution.cache_key(found)[0]


def _generate_into(
    output: Path,
    resolution: Resolution,
    found: Sequence[FeatureSource],
    cache_key: CacheKey,
    sequences: Iterable[Sequence[Any] | NDArray[Any]] | None,
) -> SemanticIdTable:
    if resolution.parent is not None:
        raise ConfigError("output_dir trains anew and parent extends: give one of them.")
    assert cache_key.identity is not None
    progress = shown()
    tell("loading_features")
    root = CacheFolder(output / WORK, output)  # the cache is left alone
    if sequences is None:
        items = resolution.items_of(found, cache_key, root, progress)
    else:
        items = _held(with_sequences(resolution.read(found, progress), sequences), resolution.config)
    return _train_into(output, items, resolution.config, cache_key.identity, progress, resolution.cache.mmap)


def _held(embeddings: "Embeddings", config: SemanticIdConfig) -> ItemSet:
    return HeldItems(embeddings, config.sample_items or memory.MOST_SAMPLED, config.seed)


def _train_into(
    output: Path, items: ItemSet, config: SemanticIdConfig, identity: Identity, progress: Progress, mmap: bool
) -> SemanticIdTable:
    tell("features", items=items.count, dim="+".join(str(dim) for _, dim in items.held.dims))
    data = pipeline.train_table(items, config, identity, progress)
    data = data.named(lineage.lineage_name(lineage.origin_key(identity, items.held.digest), data.digest))
    output.mkdir(parents=True, exist_ok=True)
    files.replace_file(output / TABLE_FILE, data.buffers())
    del data
    items.close()
    with suppress(OSError):  # there is none, or others work there too
        versioned = output / WORK / folders.VERSION
        for folder in (versioned / folders.JOBS, versioned, output / WORK):
            folder.rmdir()
    table = open_table(output / TABLE_FILE, mmap=mmap, follow=True)
    tell("saving", path=output / JSON_FILE)
    files.replace_file(output / JSON_FILE, table.json_chunks())
    tell("saved")
    return table.with_status("trained", f"written to {output}")


def generate_from_vectors(
    items: Any,
    vectors: Any,
    *,
    output_dir: Path | str,
    config: SemanticIdConfig | None = None,
    sequences: Iterable[Sequence[Any] | NDArray[Any]] | None = None,
) -> SemanticIdTable:
    """
    Make semantic IDs of any embeddings; an explicit command, like `generate_semantic_ids`.

    Args:
        items: n ints or strings, each once, in any container with an order: an array, a list, a tensor, a column of
            pandas, polars, Arrow, DuckDB or datasets. Whole floats are taken as ints.
        vectors: (n, dim) of finite numbers, in the order of the items: an array, a tensor on any device, a list of
            vectors, a table of numbers, a column of lists. Not copied where it is float32 and lies row by row.
        output_dir: `semid_table.safetensors` and `semantic_id_dict.json` are written there, in place of older ones.
        config: how IDs are made.
        sequences: what users took, one after the other; the recommender's training events and no others. Items that
            are taken near each other then get codes that are alike, too; items of which nothing is known yet are
            encoded by their vectors. See `semid_dataset.codec.behaviour.behaviour_aware`.

    Raises:
        NoEmbeddingsError, EmbeddingError: items and vectors do not fit each other, or are no such things; no two of
            the items occur near each other in the sequences.
        SemidError, OSError: as the steps say.
    """
    progress = shown()
    environment = Context.at_door(explicit=True).environment
    output, config = as_path(output_dir, what="output_dir"), _settings(config)
    embeddings = own_embeddings(items, vectors)
    if sequences is not None:
        embeddings = with_sequences(embeddings, sequences)
    identity = Identity.of(config, embeddings.dims)
    return _train_into(output, _held(embeddings, config), config, identity, progress, environment.mmap)


def fit(
    vectors: Any,
    items: Any = None,
    *,
    algorithm: "str | Trainer" = SemanticIdConfig.algorithm,
    levels: int = SemanticIdConfig.num_quantizers,
    codes: int | Sequence[int] = SemanticIdConfig.codebook_size,
    unique: bool = True,
    sequences: Iterable[Sequence[Any] | NDArray[Any]] | None = None,
    device: str = "auto",
    seed: int = 0,
) -> SemanticIdTable:
    """
    Make semantic IDs of vectors, in memory: nothing is written, and no cache is looked at.

    Args:
        vectors: (n, dim) of finite numbers: an array, a tensor on any device, a list of vectors, a table of numbers or
            a column of lists of pandas, polars, Arrow, DuckDB or datasets.
        items: n ints or strings, each once, in any such column; None numbers the rows from 0.
        algorithm: a name, see `SemanticIdConfig`, or a trainer with settings of its own.
        levels: codes in an ID.
        codes: per level, one number or one per level.
        unique: give no two items the same ID, while codes last.
        sequences: what users took in order, see `generate_from_vectors`.
        device, seed: see `SemanticIdConfig`.

    Returns:
        A table. It says how good the IDs are (`.quality`), encodes vectors (`.encode`), takes new items (`.extend`),
        and is kept by `.save(path)`.

    Raises:
        NoEmbeddingsError, EmbeddingError: items and vectors do not fit each other, or are no such things.
        ConfigError: a setting is out of range; there is no such algorithm or device.
        TrainingError: memory did not suffice.
    """
    from semid_dataset.codec.kinds import as_vectors
    from semid_dataset.codec.train import configured

    Context.at_door(explicit=True)
    config, trainer = configured(
        algorithm, num_quantizers=levels, codebook_size=codes, unique=unique, device=device, seed=seed
    )
    if items is None:
        vectors = as_vectors(vectors)
        items = np.arange(len(vectors))
    embeddings = own_embeddings(items, vectors)
    if sequences is not None:
        embeddings = with_sequences(embeddings, sequences)
    identity = Identity.of(config, embeddings.dims)
    data = pipeline.train_table(_held(embeddings, config), config, identity, shown(), trainer)
    name = lineage.lineage_name(lineage.origin_key(identity, embeddings.digest), data.digest)
    return data.named(name).in_memory("trained", f"fitted to {len(embeddings.items):,} items, in memory")


def add_semantic_ids(
    dataset: Any,
    column: str = "embedding",
    *,
    items: str | None = None,
    name: str = "semantic_id",
    table: SemanticIdTable | None = None,
) -> Any:
    """
    Return a Hugging Face dataset with a column of semantic IDs.

    Args:
        dataset: a `datasets.Dataset`.
        column: of its vectors.
        items: its column of items; None numbers the rows from 0.
        name: of the new column, a list of codes a row.
        table: IDs that were made before, as by `fit` with other settings; None fits new ones.

    Raises:
        ConfigError: it is no such dataset, or lacks a column.
        ItemsError: the table lacks an item.
        As `fit`.
    """
    names = getattr(dataset, "column_names", None)
    if not isinstance(names, list) or not callable(getattr(type(dataset), "add_column", None)):
        raise ConfigError(f"dataset must be a datasets.Dataset, one split, not {shown_value(dataset)}.")
    for wanted in (column, items):
        if wanted is not None:
            as_choice(wanted, names, "A column of the dataset")
    keys = np.arange(len(dataset)) if items is None else dataset[items]
    table = fit(dataset[column], keys) if table is None else expect(table, SemanticIdTable, "table", TableError)
    unknown = int((table.rows_of(keys) < 0).sum())
    if unknown:
        raise ItemsError(
            f"The table has no ID of {unknown:,} of {len(dataset):,} items. Nothing was added. Give them IDs first: "
            "table = table.extend(vectors, items)."
        )
    return dataset.add_column(name, table.codes(keys).tolist())


def generate_from_file(
    path: Path | str,
    ids: Path | str | None = None,
    *,
    output_dir: Path | str,
    vectors: str | None = None,
    config: SemanticIdConfig | None = None,
) -> SemanticIdTable | None:
    """
    Make semantic IDs of the embeddings in a file, or in a folder of files, that are better not read into memory.

    Args:
        path: see `inputs.matrix.read_vectors`.
        ids: the column of items, or a file with the item of every row, or "rows"; as there.
        output_dir, config: as in `generate_from_vectors`. The folder takes the parts of the work, too.
        vectors: the column of vectors.

    Returns:
        The table; None where the vectors fit into the configuration's `memory_limit`, or cannot be read in parts.

    Raises:
        As `generate_from_vectors`.
    """
    from semid_dataset.build.streaming.run import open_job
    from semid_dataset.inputs.matrix import own_source

    config, output = _settings(config), as_path(output_dir, what="output_dir")
    context = Context.at_door(explicit=True)
    limit, progress = context.environment.memory_for(config), shown()
    memory.check_limit(limit)
    found = own_source(path, ids, vectors)
    if found is None or not memory.is_beyond([found[0]], limit):
        return None
    source, listed = found
    size, allowed = memory.sizes([source], limit)
    try:
        keys = None if listed is None else as_keys(listed, str(ids))
        stats = [file.stat() for file in source.files]
        asked = " ".join(f"{status.st_size} {status.st_mtime_ns}" for status in stats)
        if keys is not None:
            asked += f" {hashlib.sha256(keys.tobytes()).hexdigest()}"
        sampled = memory.sample_size([source.dim], limit, config.sample_items)
        root = CacheFolder(output / WORK, output)
        job = open_job(root, asked, [source], config, limit=limit, sampled=sampled, progress=progress, listed=keys)
        tell("streaming", size=size, limit=allowed)
        with progress.stage("reading"):
            job.read()
    except LongNameError as error:
        tell("not_streamed", size=size, limit=allowed, why=error)
        return None
    identity = Identity.of(config, job.held.dims)
    return _train_into(output, job, config, identity, progress, context.environment.mmap)


def extend_with_vectors(
    table: SemanticIdTable, items: Any, vectors: Any, *, force: bool = False
) -> tuple[SemanticIdTable, int]:
    """
    Return a table in memory that holds all IDs of `table` and those of new items, and how many were new.

    New items are encoded by the table's quantizer and made unique among the codes that are free; nothing is
    written. `.save(path)` of the result keeps it. What was measured of them is the last step of its history.

    Args:
        table: one with a quantizer.
        items, vectors: as in `generate_from_vectors`; all of them, or new ones only.
        force: give IDs to new items although their vectors are not such as the table was made for.

    Raises:
        TableError: the table has no quantizer.
        ForeignVectorsError: new items have vectors of another encoder, or not normalized as at the fit.
        EmbeddingError: the vectors are not such as it was made from.
    """
    from semid_dataset.codec.kinds import fusion_of

    quantizer = expect(table, SemanticIdTable, "table", TableError).quantizer
    embeddings = own_embeddings(items, vectors)
    dim = embeddings.features[0].dim
    fusion = fusion_of(quantizer)
    if fusion is not None and OWN not in fusion.dims:
        raise EmbeddingError(
            f"'{table.path}' was made from several features of a data directory; one matrix of {dim} numbers is not "
            "enough. Extend it with: semid generate DATA_DIR --parent TABLE."
        )
    wanted = quantizer.dim if fusion is None else fusion.dims[OWN]
    if wanted != dim:
        raise EmbeddingError(f"'{table.path}' encodes vectors of {wanted} numbers, these have {dim}.")
    missing = np.flatnonzero(table.rows_of(embeddings.items) < 0)
    if not len(missing):
        return table, 0
    sketch = Evidence(embeddings.items, embeddings.features).sketch()
    number = table.generation + 1
    new = _held(embeddings, SemanticIdConfig()).lacking(table, Progress())
    data = lineage.extended(table.lineage, number, table, new, missing, sketch, force=force)
    # Whoever extends the same table elsewhere gives other items the same number: this is a branch.
    data = data.named(lineage.branch_name(table, data.digest), branched_off=table.lineage)
    reason = f"{len(missing)} new items, lineage {data.header.lineage}"
    return data.in_memory("extended", reason), len(missing)


def own_embeddings(items: Any, vectors: Any) -> "Embeddings":
    """
    Return a caller's items and vectors in the order and form that the readers of data directories give.

    Raises:
        EmbeddingError: as `check_vectors`.
    """
    from semid_dataset.features import FeatureMatrix
    from semid_dataset.inputs.matrix import check_vectors
    from semid_dataset.inputs.read import Embeddings

    keys, matrix = check_vectors(items, vectors)
    if isinstance(keys, np.ndarray):
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
    else:
        order = np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)
        keys = [keys[row] for row in order.tolist()]
    if (order[1:] < order[:-1]).any():
        matrix = matrix[order]
    digest = hashlib.sha256(f"{OWN}\0{matrix.shape}\0".encode())
    digest.update(keys.tobytes() if isinstance(keys, np.ndarray) else "\0".join(keys).encode())
    digest.update(matrix.data)
    feature = FeatureMatrix(OWN, np.arange(len(matrix)), matrix)
    return Embeddings(keys, (feature,), digest.hexdigest(), {}, bad_rows=0)


def _settings(config: SemanticIdConfig | None) -> SemanticIdConfig:
    return SemanticIdConfig() if config is None else expect(config, SemanticIdConfig, "config")


def _with_device(config: SemanticIdConfig, args: object) -> SemanticIdConfig:
    """Return the configuration with the device that a program's arguments name; what is no name is passed over."""
    try:
        device = str(getattr(args, "device", None) or "")
    except Exception as error:
        raise ConfigError(f"The device in args cannot be read: {type(error).__name__}: {error!s:.200}") from error
    return replace(config, device=device) if device else config


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
    config = SemanticIdConfig()
    try:
        config = _with_device(config, args)
        request = Request(as_path(data_path, what="data_path"), feature_names(mm_emb_ids), config=config)
        return resolve(request, Context.at_door())
    except Exception as error:  # noqa: BLE001 - its callers, of the original function, expect no exception of any kind
        degrade("default", reason=error)
        return SemanticIdTable.default(reason=str(error))
