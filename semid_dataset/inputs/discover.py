"""
Where embeddings lie in a data directory.

A feature lies there as one of three forms, whatever its id: `emb_<id>_<dim>.pkl`, a folder
`emb_<id>_<dim>/` of JSON lines, or parquet in `emb_<id>_<dim>_parquet/`. The name says id and width.
Nothing is opened here: a warm start needs the names of the files, and no more of them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from semid_dataset._messages import tell
from semid_dataset.errors import ConfigError, EmbeddingError, NoEmbeddingsError
from semid_dataset.objects import as_items, shown

__all__ = [
    "FeatureSource",
    "check_feature_ids",
    "data_files",
    "feature_names",
    "features_folder",
    "find_sources",
    "holds_parts",
    "passed_over",
]

FOLDERS = ("creative_emb", "mm_emb")  # the competition's name, the public release's
MAX_DIM = 65_536
DEEPEST = 8  # folders of `name=value` in each other; a link that leads back would have no end
# What lies in a folder that is a table of some engine, and what to do about it: which of its files count stands in
# records of its own, and those that do not are of the same names.
STORES: tuple[tuple[str, str, str], ...] = (
    ("_delta_log", "a Delta table", "Write what it holds now as parquet into another folder"),
    (".hoodie", "a Hudi table", "Write what it holds now as parquet into another folder"),
    ("metadata/*.metadata.json", "an Iceberg table", "Write what it holds now as parquet into another folder"),
    ("_versions", "a data set of Lance", "Write it as parquet"),
    ("[.z]*arr*", "a Zarr store", 'Write its arrays: np.savez("x.npz", item_id=ids, embedding=vectors)'),
    ("dataset_dict.json", "several splits of a data set", "Name the folder of one of them"),
)
# Endings of what is no part: half-written files, copies of editors and programs that fetch, sums.
LEFTOVER = re.compile(r"~$|\.(?:crc|tmp|temp|bak|swp|part|crdownload|inprogress|lock|md5|sha256|md)$")
COMPRESSED = re.compile(r"\.(?:gz|bz2|xz|zst|zstd)$")  # endings of compression, which stand behind a format's own


@dataclass(frozen=True)
class FeatureSource:
    """
    Where one feature lies.

    Attributes:
        id: of it.
        dim: what its name says.
        form: format that its files should have; "" where they say it themselves.
        path: of all its files.
        files: in the order in which their rows count.
        items, vectors, ids: see `Partition`.
        own: whether a person named the file: what is wrong with a row is an error.
    """

    id: str
    dim: int
    form: Literal["pickle", "jsonl", "parquet", ""]
    path: Path
    files: tuple[Path, ...]
    items: str = ""
    vectors: str = ""
    ids: str = ""
    own: bool = False


def features_folder(data_dir: Path) -> Path | None:
    """Return the first folder of embeddings in `data_dir`, or None if there is none."""
    return next((data_dir / name for name in FOLDERS if (data_dir / name).is_dir()), None)


def find_sources(data_dir: Path, feature_ids: Sequence[str | int]) -> list[FeatureSource]:
    """
    Find the files of each feature in `creative_emb`, then in `mm_emb`.

    A feature that lies there in several forms is read from the pickle, else from parquet. One that
    is missing is reported.

    Raises:
        ConfigError: a feature id is no plain word.
        NoEmbeddingsError: there is no such folder, or none of the features is in it.
        EmbeddingError: a feature lies there with two widths.
    """
    ids = check_feature_ids(feature_ids)
    folders = [data_dir / name for name in FOLDERS if (data_dir / name).is_dir()]
    if not folders:
        raise NoEmbeddingsError(
            f"There is no folder of embeddings in '{data_dir}': looked for {' and '.join(FOLDERS)}. "
            "Put emb_<id>_<dim> files there, or pass the embeddings in memory."
        )
    found = {feature: next(filter(None, (_find(folder, feature) for folder in folders)), None) for feature in ids}
    sources = [source for source in found.values() if source is not None]
    if not sources:
        there = sorted({path.name for folder in folders for path in folder.iterdir() if path.name.startswith("emb_")})
        raise NoEmbeddingsError(
            f"None of the features {', '.join(ids)} is in '{folders[0]}'. "
            f"There is: {', '.join(there[:12]) or 'nothing'}. Ask for one of those (mm_emb_ids, --feature), such as "
            f"{there[0].split('_')[1] if there else 81}."
        )
    for feature, source in found.items():
        if source is None:
            tell("feature_missing", feature=feature, path=folders[0])
    return sources


def feature_names(given: object) -> tuple[str, ...]:
    """
    Return feature ids as strings, of one or of several.

    Raises:
        ConfigError: they are no such ids.
    """
    named = given if isinstance(given, str | int | np.integer) and not isinstance(given, bool) else None
    try:
        listed = [named] if named is not None else list(as_items(given, "the feature ids", ConfigError, empty=True))
    except ConfigError as error:
        raise ConfigError(f"Feature ids must be a list such as ['81', '82'], not {shown(given)}: {error}") from None
    return tuple(shown(one) if isinstance(one, int) else str(one) for one in listed)


def check_feature_ids(feature_ids: Sequence[str | int]) -> list[str]:
    """
    Return feature ids as strings, each once.

    Raises:
        ConfigError: there is none, or one is no plain word (it becomes part of a path).
    """
    ids = list(dict.fromkeys(feature_names(feature_ids)))
    if not ids:
        raise ConfigError("No feature id is given: name at least one, such as 81.")
    for feature in ids:
        # It becomes part of a path: no dots, no slashes, and no underscore, which separates id and dim.
        if not re.fullmatch(r"[A-Za-z0-9-]{1,32}", feature):
            raise ConfigError(f"{shown(feature)} is no feature id. Ids are letters and digits, such as 81.")
    return ids


def _find(folder: Path, feature: str) -> FeatureSource | None:
    try:
        return _search(folder, feature)
    except OSError as error:
        raise EmbeddingError(f"'{folder}' cannot be listed: {error.strerror or error}.") from error


def _search(folder: Path, feature: str) -> FeatureSource | None:
    named = re.compile(rf"emb_{re.escape(feature)}_([0-9]{{1,9}})(\.pkl(?:\.gz|\.bz2|\.xz|\.zst)?|_parquet)?")
    forms: dict[str, list[tuple[int, Path]]] = {"pickle": [], "parquet": [], "jsonl": []}
    for path in sorted(folder.iterdir()):
        match = named.fullmatch(path.name)
        if match is None:
            continue
        ending = match[2] or ""
        if ending.startswith(".pkl"):
            form = "pickle"
        elif not path.is_dir():
            continue
        else:
            form = "parquet" if ending or any(map(_is_parquet, _files(path))) else "jsonl"
        forms[form].append((int(match[1]), path))
    for form, found in forms.items():
        if not found:
            continue
        if len(found) > 1:
            names = ", ".join(path.name for _, path in found)
            raise EmbeddingError(f"Feature {feature} is ambiguous in '{folder}': {names}. Keep one of them.")
        dim, path = found[0]
        if not 0 < dim <= MAX_DIM:
            raise EmbeddingError(f"'{path}' says that its vectors have {dim} numbers; 1 to {MAX_DIM} can be read.")
        return FeatureSource(feature, dim, form, path, (path,) if form == "pickle" else _parts(path))  # type: ignore[arg-type]
    return None


def data_files(folder: Path) -> tuple[Path, ...]:
    """
    Return the files of a folder that others wrote in parts, in order, those of its `name=value` subfolders too.

    Markers such as _SUCCESS, .crc and editors' leftovers are left out, and everything else where there is parquet or,
    as datasets of Hugging Face are stored, Arrow.

    Raises:
        EmbeddingError: it cannot be listed.
    """
    try:
        return _parts(folder)
    except OSError as error:
        raise EmbeddingError(f"'{folder}' cannot be listed: {error.strerror or error}.") from error


def passed_over(folder: Path, parts: Sequence[Path]) -> list[str]:
    """
    Return the names of files and folders that lie in a folder among those that are read.

    Raises:
        EmbeddingError: the folder cannot be listed.
    """
    if not folder.is_dir():
        return []
    read = {*parts, *(parent for path in parts for parent in path.parents)}
    try:
        others = [path.name for path in _files(folder) if path not in read]
        inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and path not in read]
        return others + [f"{path.name}/" for path in inside if path.name[:1] not in "._"]
    except OSError as error:
        raise EmbeddingError(f"'{folder}' cannot be listed: {error.strerror or error}.") from error


def holds_parts(folder: Path) -> bool:
    """
    Whether a folder that is no data directory holds embeddings in parts: parquet, Arrow, or files named `part-...`.

    Raises:
        EmbeddingError: it cannot be listed.
    """
    if features_folder(folder) is not None:
        return False
    return any(
        _is_parquet(path) or path.suffix == ".arrow" or path.name.startswith("part-") for path in data_files(folder)
    )


def _parts(folder: Path) -> tuple[Path, ...]:
    for mark, what, remedy in STORES:
        if any(folder.glob(mark)):
            raise EmbeddingError(f"'{folder}' is {what}. Nothing was read. {remedy}.")
    paths = [path for path in _files(folder) if not LEFTOVER.search(path.name)]
    # datasets keeps what it once computed, in cache-... beside the data.
    arrow = tuple(path for path in paths if path.suffix == ".arrow" and not path.name.startswith("cache-"))
    return tuple(path for path in paths if _is_parquet(path)) or arrow or tuple(paths)


def _files(folder: Path, deep: int = 0) -> list[Path]:
    found: list[Path] = []
    if deep > DEEPEST:
        raise EmbeddingError(f"'{folder}' lies more than {DEEPEST} folders deep. Name the folder of the parts.")
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", "_")):
            continue
        if not path.is_dir():
            found.append(path)
        elif "=" in path.name:  # as Spark and others lay out what they partition by a column
            found += _files(path, deep + 1)
    return found


def _is_parquet(path: Path) -> bool:
    return COMPRESSED.sub("", path.name).endswith((".parquet", ".pq"))
