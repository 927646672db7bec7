"""
Where tables lie: the folders of the cache, and which files in them are tables.

A **root** is a cache folder. They are read in order, all of them; the first that really takes a
write is written. Below a root:

    v1/<lineage>/<n>.safetensors     table n of a lineage; published once, never changed
    v1/memo/<cache key>.json         which table answered a cache key, so that a warm start reads no embeddings
    v1/served/<folder>.json          which lineage last served a data directory
    v1/exports/<sha256>.json         which table a semantic_id_dict.json of this content was written from
    v1/index/<lineage>.<identity>    which kind of ID a lineage is of, see `index`
    v1/index/<identity>.pairs        what the lineages of one kind of ID were made from, see `pairs`
    v1/used/<lineage>.<n>            when a table was last used, to the day, see `use`
    v1/locks/<question>.lock, .owner who generates, and how far they are
    v1/jobs/<job>/                   finished parts of what is made of more than memory holds, until it is published
"""

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from semid_dataset import _files as files
from semid_dataset._messages import logger, tell
from semid_dataset.environment import Environment
from semid_dataset.errors import ConfigError
from semid_dataset.objects import as_path

__all__ = ["CacheFolder", "CacheFolders", "Found", "generations", "last_generation", "lineages", "writable_root"]

VERSION = "v1"
JOBS = "jobs"  # folder of what is made part by part, see `build.streaming`
TABLE_NAME = re.compile(r"(0|[1-9][0-9]{0,8})\.safetensors")
LINEAGE_NAME = re.compile(r"[0-9a-z][0-9a-z-]{7,100}")


@dataclass(frozen=True)
class CacheFolder:
    """A cache folder; `base` is the part of its path that belongs to the user and may be reached through links."""

    path: Path
    base: Path

    @property
    def versioned(self) -> Path:
        """The folder that holds everything of this format."""
        return self.path / VERSION

    def folder(self, *parts: str, create: bool = False) -> Path:
        """
        Return a folder below the root.

        Raises:
            StoreError: a link or a file is in its way.
            FileNotFoundError, OSError: it is not there, or cannot be made.
        """
        return files.real_folder(self.versioned.joinpath(*parts), self.base, create=create)

    def takes_writes(self) -> bool:
        """Try a write: permission bits say nothing about root, read-only mounts and quotas."""
        try:
            files.try_write(self.folder(create=True))
            return True
        except OSError as error:
            logger.debug("cache folder %s takes no writes: %s", self.path, error)
            return False


class CacheFolders:
    """
    The cache folders in reading order.

    The user's own cache comes last. What he was served may be noted there, so that every start looks into it; on Linux
    its path is put together here, because platformdirs takes as long to import as a whole warm start.
    """

    def __init__(self, data_dir: Path | None, cache_dir: Path | None, environment: Environment) -> None:
        named = []
        if cache_dir is not None:
            named.append(CacheFolder(cache_dir, cache_dir))
        if environment.cache_dir is not None and (path := _at_home(environment.cache_dir)) is not None:
            named.append(CacheFolder(path, path))
        if data_dir is not None:
            named.append(CacheFolder(data_dir / ".semantic_ids", data_dir))
        if environment.user_cache_path is not None and (path := _at_home(environment.user_cache_path)) is not None:
            named.append(CacheFolder(path / "semantic_ids", path))
        self._named = named
        self._caches = environment.caches

    def __iter__(self) -> Iterator[CacheFolder]:
        yield from self._named
        if (own := _own_folder(self._caches)) is not None:
            yield CacheFolder(own, own.parent)


def _at_home(named: str) -> Path | None:
    """Return a folder that a variable names; None where it is a URL, or nobody knows whose home "~" is."""
    try:
        return as_path(named).expanduser()
    except (RuntimeError, ConfigError) as error:
        tell("folder_unusable", path=named, error=error)
        return None


def _own_folder(caches: str | None) -> Path | None:
    """Return the user's own cache folder; None for users without a home, as a container may run them."""
    try:
        if sys.platform == "linux":  # as platformdirs does, which takes as long to import as a whole warm start
            own = Path(caches or os.path.expanduser("~/.cache")) / "semid_dataset"  # noqa: PTH111 - "~" may stay
        else:
            import platformdirs

            own = Path(platformdirs.user_cache_dir("semid_dataset", appauthor=False))
    except (RuntimeError, KeyError, OSError) as error:  # no HOME, no passwd entry
        logger.debug("there is no cache folder of the user's own: %s", error)
        return None
    if not own.is_absolute():  # HOME is relative, or was not found: "~" would become a folder of that name
        logger.debug("there is no cache folder of the user's own: '%s' is not absolute", own)
        return None
    return own


def writable_root(roots: Iterable[CacheFolder]) -> CacheFolder | None:
    """Return the first root that takes a write."""
    return next((root for root in roots if root.takes_writes()), None)


# --- which files are tables ---


@dataclass(frozen=True)
class Found:
    """A table file of a lineage: its generation, where it lies, in which root."""

    generation: int
    path: Path
    root: CacheFolder


def lineages(roots: Iterable[CacheFolder]) -> list[str]:
    """Return the names of all lineages in all roots, sorted."""
    names: set[str] = set()
    for root in roots:
        with suppress(OSError):
            names.update(entry.name for entry in os.scandir(root.folder()) if LINEAGE_NAME.fullmatch(entry.name))
    return sorted(names)


def generations(
    roots: Iterable[CacheFolder], lineage: str, pass_over: Callable[[Path, Exception], None] | None = None
) -> list[Found]:
    """
    Return the table files of a lineage in all roots, newest first; copies of one generation in reading order.

    Args:
        roots: cache folders.
        lineage: its name.
        pass_over: told what cannot be read.
    """
    found: list[Found] = []
    for root in roots:
        try:
            folder = root.folder(lineage)
            names = [path.name for path in folder.iterdir()]
        except FileNotFoundError:
            continue
        except OSError as error:
            logger.debug("cache folder %s cannot be read: %s", root.path, error)
            if pass_over is not None:
                pass_over(root.versioned / lineage, error)
            continue
        for name in names:
            if match := TABLE_NAME.fullmatch(name):
                found.append(Found(int(match[1]), folder / name, root))
    return sorted(found, key=lambda table: -table.generation)  # stable: copies stay in reading order


def last_generation(roots: Iterable[CacheFolder], lineage: str) -> int:
    """Return the highest generation of which there is a file, readable, damaged or set aside; -1 if there is none."""
    last = -1
    for root in roots:
        with suppress(OSError):
            for path in root.folder(lineage).iterdir():
                if match := TABLE_NAME.match(path.name):
                    last = max(last, int(match[1]))
    return last
