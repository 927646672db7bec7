"""
What is noted in a cache: which table answered a question.

A note that cannot be read is as good as none: it saves work, and decides nothing that the tables do not say.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from semid_dataset import _files as files
from semid_dataset._messages import logger
from semid_dataset.cache.fingerprint import FRESH_NS, CacheKey, FileStamp
from semid_dataset.cache.folders import LINEAGE_NAME, CacheFolder
from semid_dataset.cache.notes import flag, items, optional, read_note, record, text, whole

__all__ = ["CacheEntry", "exported_as", "has_exports", "note_export"]

MOST_BYTES = 1 << 24  # of an entry: some 300 for each of 50,000 files
MOST_REASON = 1_000  # characters
MOST_EXPORT = 1 << 16  # bytes
KNOWN_PLACES = 8  # (device, inode, ctime) of one file that an entry remembers: as many kinds of container share it

# What can stand in a note. Names of lineages become parts of paths.
LINEAGE = text(LINEAGE_NAME.pattern)
GENERATION = whole(0, 999_999_999)
DIGEST = text("[!-~]{0,200}")
PLACE = items(whole(-(1 << 63), (1 << 64) - 1), least=3, most=3)
ENTRY = record(
    {
        "lineage": LINEAGE,
        "generation": GENERATION,
        "digest": DIGEST,
        "identity": optional(DIGEST, ""),
        "stale": optional(text(f"(?s:.{{0,{MOST_REASON}}})"), ""),
        "files": items(
            record(
                {
                    "name": text("(?s:.{1,4096})"),
                    "places": items(PLACE, most=KNOWN_PLACES),
                    "fresh": flag,
                    "sampled": text("[0-9a-f]{64}"),
                    "sha256": text("[0-9a-f]{64}"),
                }
            ),
            most=100_000,
        ),
    }
)
EXPORT = record(
    {
        "sha256": text("[0-9a-f]{64}"),
        "lineage": LINEAGE,
        "generation": GENERATION,
        "digest": DIGEST,
        "identity": optional(DIGEST, ""),
    }
)


@dataclass(frozen=True)
class CacheEntry:
    """The answer to a question: table `generation` of `lineage`, whose digest is `digest`."""

    lineage: str
    generation: int
    digest: str
    identity: str = ""  # digest of the table's identity, for questions that do not say it (an exported JSON)
    stale: str = ""  # why the table lacks items that were asked for, if it does

    @staticmethod
    def recall(roots: Iterable[CacheFolder], cache_key: CacheKey, *, renew: bool) -> "CacheEntry | None":
        """
        Return the answer that was noted for this question, if the files are still the same.

        Where a file has another device than those noted (a container), its sampled blocks decide; where it is on the
        same device with another inode or ctime, or had just been changed when it was noted, its whole content. With
        `renew` that is noted, so that the next reader need not look again.
        """
        for root in roots:
            path = _path_of(root, "memo", cache_key.name)
            noted = None if path is None else read_note(path, ENTRY, limit=MOST_BYTES)
            if path is None or noted is None:
                continue
            changed, looked = _compare(noted["files"], cache_key.stamps)
            if changed is not None:
                logger.debug("entry %s in %s is out of date: %s", cache_key.name, root.path, changed)
                continue
            if renew and looked:
                if _is_settled(path):
                    for file in noted["files"]:
                        file["fresh"] = False
                _write(root, "memo", cache_key.name, noted)
            return CacheEntry(noted["lineage"], noted["generation"], noted["digest"], noted["identity"], noted["stale"])
        return None

    def note(self, roots: Iterable[CacheFolder], cache_key: CacheKey, digests: Mapping[Path, str]) -> None:
        """Note this answer in the first root that takes it; `digests` are SHA-256 of files already read."""
        try:
            noted = {
                "lineage": self.lineage,
                "generation": self.generation,
                "digest": self.digest,
                "identity": self.identity,
                "stale": self.stale,
                "files": [_note_file(stamp, digests.get(stamp.path)) for stamp in cache_key.stamps],
            }
        except OSError as error:
            logger.debug("no entry: %s", error)
            return
        for root in roots:
            if _write(root, "memo", cache_key.name, noted):
                return


def _is_settled(path: Path) -> bool:
    """Whether a note is so old that what changed since has other times; by the clock of its own file system."""
    try:
        return files.clock_ns(path.parent) - path.lstat().st_mtime_ns >= FRESH_NS
    except OSError:
        return False


def _note_file(stamp: FileStamp, digest: str | None) -> dict[str, Any]:
    fresh = stamp.fresh
    if fresh and digest is not None and stamp.settled:
        # Enough time has passed since: if the content is still what was read, no change slipped in unseen.
        now = FileStamp.of(stamp.path, stamp.path.parent)
        fresh = (now.place, now.mtime_ns) != (stamp.place, stamp.mtime_ns) or stamp.digest() != digest
    return {
        "name": stamp.name,
        "places": [stamp.place],
        "fresh": fresh,
        "sampled": stamp.sampled_digest(),
        "sha256": digest or stamp.digest(),
    }


def _compare(noted: list[dict[str, Any]], stamps: Sequence[FileStamp]) -> tuple[str | None, bool]:
    """Return what changed, if anything, and whether `noted` was brought up to date and is worth writing."""
    if [file["name"] for file in noted] != [stamp.name for stamp in stamps]:
        return "other files", False
    renew = False
    for file, stamp in zip(noted, stamps, strict=True):
        known = stamp.place in file["places"]
        if known and not file["fresh"]:
            continue
        here = any(place[:1] == [stamp.device] for place in file["places"])  # it was changed or replaced
        try:
            same = (
                stamp.digest() == file["sha256"] if file["fresh"] or here else stamp.sampled_digest() == file["sampled"]
            )
        except OSError as error:
            return str(error), False
        if not same:
            return f"{stamp.path} has other content", False
        if not known:
            file["places"] = [*file["places"][1 - KNOWN_PLACES :], stamp.place]
            file["fresh"] = stamp.fresh
        renew = True
    return None, renew


def note_export(roots: Iterable[CacheFolder], sha256: str, entry: CacheEntry) -> None:
    """
    Note which table a `semantic_id_dict.json` of this content comes from, before it is written anywhere.

    However it gets lost what else is noted, the file is known again by its content: our own export is never taken for
    one that was made by hand.
    """
    noted = {"sha256": sha256, **asdict(entry)}
    for root in roots:
        if _export(root, sha256) is not None or _write(root, "exports", sha256[:32], noted):
            return


def exported_as(roots: Iterable[CacheFolder], sha256: str) -> CacheEntry | None:
    """Return the table that a `semantic_id_dict.json` of this content was written from."""
    return next((entry for root in roots if (entry := _export(root, sha256)) is not None), None)


def has_exports(root: CacheFolder) -> bool:
    """Whether exports are noted in a root at all."""
    try:
        root.folder("exports")
    except OSError:
        return False
    return True


def _export(root: CacheFolder, sha256: str) -> CacheEntry | None:
    path = _path_of(root, "exports", sha256[:32])
    noted = None if path is None else read_note(path, EXPORT, limit=MOST_EXPORT)
    if noted is None or noted["sha256"] != sha256:
        return None
    return CacheEntry(noted["lineage"], noted["generation"], noted["digest"], noted["identity"])


def _path_of(root: CacheFolder, kind: str, name: str) -> Path | None:
    try:
        return root.folder(kind) / f"{name}.json"
    except OSError:  # not there, not ours to look into, or a link
        return None


def _write(root: CacheFolder, kind: str, name: str, value: Mapping[str, Any]) -> bool:
    try:
        folder = root.folder(kind, create=True)
        files.replace_file(folder / f"{name}.json", [json.dumps(value).encode()], sync=False)
    except OSError as error:
        logger.debug("%s was not noted in %s: %s", kind, root.path, error)
        return False
    return True
