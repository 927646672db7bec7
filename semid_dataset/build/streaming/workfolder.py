"""
The folder that parts of a run lie in: its plan, and files that are written whole or not at all.

Every file has a checksum and says what it was made from; nothing in it depends on who made it. So any process can make
any of them, twice if need be, and a run that was killed goes on with those that are there.
"""

import errno
import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset import _files as files
from semid_dataset._messages import logger
from semid_dataset.cache.notes import items, one_of, read_note, record, text, whole
from semid_dataset.codec.kinds import centre_of, read_quantizer
from semid_dataset.errors import CorruptTableError, NoRoomError, StoreError, WorkGoneError
from semid_dataset.format import tensors as container
from semid_dataset.inputs.keys import Keys, taken
from semid_dataset.protocols import Partition, Quantizer

__all__ = [
    "Basis",
    "Plan",
    "PlannedFeature",
    "basis_content",
    "basis_of",
    "need_file",
    "plan_of",
    "read_file",
    "read_into",
    "write_file",
]

LAYOUT = 4  # of the files in a work folder
READ = 8 << 20  # bytes at once
MOST_BASES = 2  # that a process keeps
PLAN_FILE = "plan.json"
MOST_PLAN = 1 << 25  # bytes: some 200 for each of 150,000 parts
COUNT = whole(0, 1 << 62)
PATH = text("(?s:.{1,4096})")
PLAN = record(
    {
        "layout": one_of([LAYOUT]),
        "seed": whole(0, (1 << 63) - 1),
        "features": items(
            record(
                {
                    "id": text("[A-Za-z0-9-]{0,32}"),
                    "dim": whole(1, 1 << 24),
                    "first": COUNT,
                    "last": COUNT,
                    "named": one_of([False, True]),
                    "own": one_of([False, True]),
                }
            ),
            most=64,
        ),
        "parts": items(
            record(
                {
                    "format": text("[a-z0-9_.-]{1,64}"),
                    "path": PATH,
                    "first": COUNT,
                    "last": whole(-1, 1 << 62),
                    "bytes": COUNT,
                    "items": text("(?s:.{0,4096})"),
                    "vectors": text("(?s:.{0,4096})"),
                    "ids": text("(?s:.{0,4096})"),
                }
            ),
            most=200_000,
        ),
    }
)


@dataclass(frozen=True)
class PlannedFeature:
    """
    A feature of a plan.

    Attributes:
        id, dim: of it.
        first, last: numbers of its parts, last excluded.
        named: whether some of its ids are no integers.
        own: whether a person named its files: what is wrong with a row is an error.
    """

    id: str
    dim: int
    first: int
    last: int
    named: bool = False
    own: bool = False


@dataclass(frozen=True)
class Plan:
    """What all processes of a run know: the features, and the parts of all of them in a row."""

    seed: int
    features: tuple[PlannedFeature, ...]
    parts: tuple[Partition, ...]

    @property
    def texts(self) -> bool:
        """Whether items are texts: the ids of one feature are no integers."""
        return any(feature.named for feature in self.features)

    @property
    def joined(self) -> bool:
        """Whether items have several features, whose rows have to be brought together."""
        return len(self.features) > 1

    def feature_of(self, part: int) -> PlannedFeature:
        """Return the feature that a part is of."""
        return next(feature for feature in self.features if feature.first <= part < feature.last)

    def to_json(self) -> bytes:
        """Return it as JSON text."""
        features = [asdict(feature) for feature in self.features]
        parts = [part.to_dict() for part in self.parts]
        return json.dumps({"layout": LAYOUT, "seed": self.seed, "features": features, "parts": parts}).encode()

    def write(self, folder: Path) -> None:
        """Write it into a work folder, unless it lies there."""
        try:
            noted, _ = files.read_small(folder / PLAN_FILE, MOST_PLAN)
        except OSError:  # none, or none of ours: whatever lies there is replaced
            noted = b""
        if noted != self.to_json():
            files.replace_file(folder / PLAN_FILE, [self.to_json()], sync=False)

    @classmethod
    def read(cls, folder: Path) -> "Plan":
        """
        Return the plan of a work folder.

        Raises:
            WorkGoneError: there is none that can be used.
        """
        values = read_note(folder / PLAN_FILE, PLAN, limit=MOST_PLAN)
        features = tuple(PlannedFeature(**feature) for feature in (values or {}).get("features", ()))
        if values is None or any(not one.first <= one.last <= len(values["parts"]) for one in features):
            raise WorkGoneError(f"'{folder / PLAN_FILE}' is gone or none of ours. It was not used. Run again.")
        return cls(values["seed"], features, tuple(Partition.from_dict(part) for part in values["parts"]))


def plan_of(folder: Path) -> Plan:
    """Return the plan of a work folder, read once as long as it stays; raises as `Plan.read`."""
    # A plan is replaced, never written over: another one has another inode while the last is there, and another ctime.
    found = (folder / PLAN_FILE).lstat()
    return _cached_plan(folder, (found.st_ino, found.st_ctime_ns, found.st_mtime_ns, found.st_size))


@lru_cache(maxsize=2)
def _cached_plan(folder: Path, version: tuple[int, ...]) -> Plan:
    return Plan.read(folder)


# --- what parts are encoded with ---


@dataclass(frozen=True)
class Basis:
    """
    What parts are encoded with.

    Attributes:
        quantizer: that encodes.
        known: items that are not to be encoded, ascending; None where all are.
        radius: where its bulk ends.
        centre: of the bulk.
    """

    quantizer: Quantizer
    known: Keys | None
    radius: float
    centre: NDArray[Any]


def basis_of(folder: Path, name: str, content: str) -> Basis:
    """
    Return what parts are encoded with.

    Args:
        folder: the work folder.
        name: of the basis.
        content: what it must hold, as `basis_content` says it.

    Raises:
        WorkGoneError: it is gone, or holds something else by now.
    """
    found = need_file(folder, f"basis-{name}")
    if found.info.get("content") != content:
        raise WorkGoneError(
            f"'{folder / f'basis-{name}'}.part' holds other codebooks by now: somebody began anew. Run again."
        )
    # Kept by what they hold, never by a name: a second training in one process may use the name, and the folder, again.
    if content not in _bases:
        weights = {key.removeprefix("quantizer."): array for key, array in found.arrays.items() if key[:5] != "known"}
        quantizer = read_quantizer(weights, found.info["quantizer"])
        known = taken(found.arrays, "known") if any(key[:5] == "known" for key in found.arrays) else None
        while len(_bases) >= MOST_BASES:
            _bases.pop(next(iter(_bases)), None)
        _bases[content] = Basis(quantizer, known, float(found.info.get("radius", math.inf)), centre_of(weights))
    return _bases[content]


_bases: dict[str, Basis] = {}  # by content, the oldest first


def basis_content(arrays: Mapping[str, NDArray[Any]], description: Mapping[str, Any]) -> str:
    """Return the SHA-256 of what a basis holds, as hexadecimal digits."""
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"\0{name} {array.dtype} {array.shape}\0".encode())
        digest.update(array.data)
    return digest.hexdigest()


# --- files ---


def write_file(
    folder: Path, name: str, arrays: Mapping[str, NDArray[Any]], info: Mapping[str, Any], *, first: bool = False
) -> None:
    """
    Write a file of a work folder, whole or not at all.

    It is not synced: the checksum tells what a power loss left of it.

    Args:
        folder, name, arrays, info: where, and what.
        first: leave a whole one that lies there: who else works here goes on with it.

    Raises:
        StoreError: there is no room for it.
        OSError: it could not be written.
    """
    try:
        buffers = container.serialize(arrays, info)
        if first and (files.publish_first(folder, f"{name}.part", buffers) or read_file(folder, name) is not None):
            return
        files.replace_file(folder / f"{name}.part", buffers, sync=False)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        needed = sum(array.nbytes for array in arrays.values())
        raise NoRoomError(
            f"'{folder}' has no room for {needed:,} bytes more ({error.strerror}). What is finished stays there: free "
            "some space and run again, or let the cache lie elsewhere (SEMID_CACHE_DIR)."
        ) from error


def read_file(folder: Path, name: str, *, verify: bool = True) -> container.Container | None:
    """Return a file of the work folder; None where there is none that is whole."""
    path = folder / f"{name}.part"
    try:
        return container.parse(files.map_file(path)[0], str(path), verify=verify)
    except FileNotFoundError:
        return None
    except (CorruptTableError, StoreError) as error:  # StoreError: somebody put something there that is no file of ours
        logger.debug("made again: %s", error)
        return None


def need_file(folder: Path, name: str) -> container.Container:
    """
    Return a file of the work folder that was there before; its checksum was compared then.

    Raises:
        WorkGoneError: it is gone.
    """
    found = read_file(folder, name, verify=False)
    if found is None:
        raise WorkGoneError(f"'{folder / name}.part' is gone: somebody cleaned up, or published. Run again.")
    return found


def read_into(descriptor: int, array: NDArray[Any], offset: int) -> None:
    """
    Fill an array from a place in a file.

    Raises:
        WorkGoneError: the file is shorter.
        OSError: the disk says no.
    """
    flat = array.reshape(-1).view(np.uint8)
    done = 0
    while done < len(flat):
        found = os.pread(descriptor, min(len(flat) - done, READ), offset + done)
        if not found:
            raise WorkGoneError("A file of the work folder became shorter. Run again.")
        flat[done : done + len(found)] = np.frombuffer(found, np.uint8)
        done += len(found)
