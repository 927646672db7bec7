"""
What is noted in a cache: which table answered a question, and which lineage last served a data directory.

A note that cannot be read is as good as none: it saves work, and decides nothing that the tables do not say.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semid_dataset import _files as files
from semid_dataset._messages import logger
from semid_dataset.cache.fingerprint import FileStamp, Question
from semid_dataset.cache.folders import LINEAGE_NAME, Root

__all__ = ["Memo", "last_served", "note_served"]

KNOWN_PLACES = 8  # (device, inode, ctime) of one file that a memo remembers: as many kinds of container share it


@dataclass(frozen=True)
class Memo:
    """The answer to a question: table `generation` of `lineage`, whose digest is `digest`."""

    lineage: str
    generation: int
    digest: str
    identity: str = ""  # digest of the table's identity, for questions that do not say it (an exported JSON)

    @staticmethod
    def recall(roots: Iterable[Root], question: Question, *, renew: bool) -> "Memo | None":
        """
        Return the answer that was noted for this question, if the files are still the same.

        Where a file has another device, inode or ctime than those noted (a container, a copy), its
        sampled blocks decide; where it had just been changed when it was noted, its whole content.
        With `renew` that is noted, so that the next reader need not look again.
        """
        for root in roots:
            noted = _read_json(root, "memo", question.name)
            if noted is None:
                continue
            try:
                changed, looked = _compare(noted["files"], question.stamps)
                memo = Memo(
                    str(noted["lineage"]),
                    int(noted["generation"]),
                    str(noted["digest"]),
                    str(noted.get("identity", "")),
                )
            except (KeyError, TypeError, ValueError):
                logger.debug("memo %s in %s is not readable", question.name, root.path)
                continue
            if changed is not None:
                logger.debug("memo %s in %s is out of date: %s", question.name, root.path, changed)
                continue
            if renew and looked:
                _write_json(root, "memo", question.name, noted)
            return memo
        return None

    def note(self, roots: Iterable[Root], question: Question, digests: Mapping[Path, str]) -> None:
        """Note this answer in the first root that takes it; `digests` are SHA-256 of files already read."""
        try:
            noted = {
                "lineage": self.lineage,
                "generation": self.generation,
                "digest": self.digest,
                "identity": self.identity,
                "files": [_note_file(stamp, digests.get(stamp.path)) for stamp in question.stamps],
            }
        except OSError as error:
            logger.debug("no memo: %s", error)
            return
        for root in roots:
            if _write_json(root, "memo", question.name, noted):
                return


def _note_file(stamp: FileStamp, digest: str | None) -> dict[str, Any]:
    fresh = stamp.fresh
    if fresh and digest is not None:
        # Enough time may have passed since: if the content is still what was read, no change slipped in unseen.
        now = FileStamp.of(stamp.path, stamp.path.parent)
        fresh = now.fresh or now.mtime_ns != stamp.mtime_ns or stamp.digest() != digest
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
        if stamp.place in file["places"] and not file["fresh"]:
            continue
        try:
            same = stamp.digest() == file["sha256"] if file["fresh"] else stamp.sampled_digest() == file["sampled"]
        except OSError as error:
            return str(error), False
        if not same:
            return f"{stamp.path} has other content", False
        others = [place for place in file["places"] if place != stamp.place]
        known = (file["fresh"], len(file["places"]) - len(others))
        file["places"] = [*others[1 - KNOWN_PLACES :], stamp.place]
        file["fresh"] = stamp.fresh
        renew |= known != (stamp.fresh, 1)
    return None, renew


def note_served(roots: Iterable[Root], data_dir: Path, lineage: str) -> None:
    """Note which lineage serves a data directory: the last resort where its embeddings have gone."""
    name = _folder_name(data_dir)
    for root in roots:
        noted = _read_json(root, "served", name)
        if noted is not None and noted.get("lineage") == lineage:
            return
        if _write_json(root, "served", name, {"folder": str(data_dir), "lineage": lineage}):
            return


def last_served(roots: Iterable[Root], data_dir: Path) -> str | None:
    """Return the lineage that last served a data directory."""
    for root in roots:
        noted = _read_json(root, "served", _folder_name(data_dir))
        if noted is not None and isinstance(noted.get("lineage"), str) and LINEAGE_NAME.fullmatch(noted["lineage"]):
            return str(noted["lineage"])
    return None


def _folder_name(folder: Path) -> str:
    return hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]


def _read_json(root: Root, kind: str, name: str) -> dict[str, Any] | None:
    try:
        buffer, _ = files.map_file(root.folder(kind) / f"{name}.json", mmap=False)
        noted = json.loads(bytes(buffer))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # ValueError: torn by a power loss, or foreign
        logger.debug("%s/%s in %s is not readable: %s", kind, name, root.path, error)
        return None
    return noted if isinstance(noted, dict) else None


def _write_json(root: Root, kind: str, name: str, value: dict[str, Any]) -> bool:
    try:
        folder = root.folder(kind, create=True)
        files.replace_file(folder / f"{name}.json", [json.dumps(value).encode()], sync=False)
    except OSError as error:
        logger.debug("%s was not noted in %s: %s", kind, root.path, error)
        return False
    return True
