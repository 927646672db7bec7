"""Notes of a cache are read strictly: what somebody else may have put there is refused before it costs anything."""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semid_dataset.build.streaming.workfolder import Plan, PlannedFeature
from semid_dataset.cache import entries, fingerprint, folders, notes, served
from semid_dataset.config import Identity, SemanticIdConfig
from semid_dataset.errors import StoreError
from semid_dataset.protocols import Partition

IDENTITY = Identity.of(SemanticIdConfig(), [("81", 32)])
LINEAGE = "0123456789abcdef"
GOOD = {
    "lineage": LINEAGE,
    "generation": 0,
    "digest": "d",
    "identity": "",
    "files": [{"name": "emb", "places": [[1, 2, 3]], "fresh": False, "sampled": "0" * 64, "sha256": "0" * 64}],
}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture
def root(tmp_path: Path) -> folders.CacheFolder:
    return folders.CacheFolder(tmp_path / "cache", tmp_path / "cache")


def asked(folder: Path) -> fingerprint.CacheKey:
    path = folder / "emb"
    path.write_bytes(b"x")
    return fingerprint.CacheKey("ids", IDENTITY, (fingerprint.FileStamp.of(path, folder),))


def recalled(root: folders.CacheFolder, cache_key: fingerprint.CacheKey, noted: object) -> entries.CacheEntry | None:
    path = root.folder("memo", create=True) / f"{cache_key.name}.json"
    path.write_bytes(noted if isinstance(noted, bytes) else json.dumps(noted).encode())
    return entries.CacheEntry.recall([root], cache_key, renew=True)


def changed(place: str, value: object) -> dict[str, Any]:
    noted = json.loads(json.dumps(GOOD))
    holder, _, name = place.rpartition(".")
    (noted["files"][0] if holder else noted)[name] = value
    return dict(noted)


NAMES = ("../../victim", "/etc", "..", "a/b", "", "x" * 200, 7, None)
WILD = ("wild", [[]], [[1, 2]], [[1, 2]] * 100, [["1", 2, 3]], [1], {}, [[10**30]])
FORGED = {
    **{f"lineage {name!r}": changed("lineage", name) for name in NAMES},
    **{f"generation {value!r}": changed("generation", value) for value in (-1, "0", 1.0, True, 10**12, None, [0])},
    **{f"digest {value!r}": changed("digest", value) for value in (None, 5, "x" * 300, "two words", ["d"])},
    **{f"places {value!r}": changed("files.places", value) for value in WILD},
    **{f"fresh {value!r}": changed("files.fresh", value) for value in (0, "no", None, [])},
    **{f"sha256 {value!r}": changed("files.sha256", value) for value in ("0", "G" * 64, None, 0, ["0" * 64])},
    **{f"files {value!r:.20}": changed("files", value) for value in ("emb", {}, [[]], [None], 5, None)},
    "no object": [GOOD],
    "200,000 brackets": b"[" * 200_000,
    "brackets behind brackets in strings": b'["]",' * 50_000 + b"1" + b"]" * 50_000,
    "a million objects": b'{"files": [' + b"{}," * 1_000_000 + b"{}]}",
    "not a number": json.dumps(GOOD).replace('"generation": 0', '"generation": NaN').encode(),
    "digits without end": b'{"generation": ' + b"9" * 100_000 + b"}",
    "no UTF-8": b'{"lineage": "\xff\xfe"}',
    "torn": json.dumps(GOOD).encode()[:-20],
    "empty": b"",
}  # fmt: skip


@pytest.mark.parametrize("noted", FORGED.values(), ids=FORGED)
def test_a_forged_entry_is_as_good_as_none(root: folders.CacheFolder, tmp_path: Path, noted: object) -> None:
    """It is passed over, whatever the recursion limit is; nothing that it names is opened."""
    cache_key = asked(tmp_path)
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1_000_000)  # as some programs do: a C parser would then overrun its stack
    try:
        assert recalled(root, cache_key, noted) is None
    finally:
        sys.setrecursionlimit(before)


@settings(max_examples=150, deadline=None)
@given(place=st.sampled_from([*GOOD, *(f"files.{name}" for name in GOOD["files"][0])]), value=VALUES)  # type: ignore[misc,index]
def test_any_value_anywhere_in_an_entry_is_used_or_passed_over(
    tmp_path_factory: pytest.TempPathFactory, place: str, value: object
) -> None:
    """Never another error, never a name that is a path."""
    folder = tmp_path_factory.mktemp("fuzz")
    root = folders.CacheFolder(folder / "cache", folder)
    entry = recalled(root, asked(folder), changed(place, value))
    assert entry is None or folders.LINEAGE_NAME.fullmatch(entry.lineage)


def sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.write(b'{"lineage": "0123456789abcdef"}')
        file.truncate(size)


@pytest.mark.parametrize("kind", ["memo", "served", "plan"])
@pytest.mark.parametrize("what", ["sparse", "fifo", "link", "folder", "device"])
def test_what_is_no_small_file_is_refused_before_it_is_read(
    root: folders.CacheFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, what: str
) -> None:
    """3 GiB of nothing cost no read, a FIFO no wait, a link leads nowhere."""
    cache_key, data = asked(tmp_path), tmp_path / "data"
    name = {"memo": cache_key.name, "served": served._names(root, data)[0], "plan": "plan"}[kind]
    path = root.folder("jobs" if kind == "plan" else kind, create=True) / f"{name}.json"
    if what == "sparse":
        sparse(path, 3 << 30)
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "link":
        (tmp_path / "elsewhere").write_text(json.dumps(GOOD))
        path.symlink_to(tmp_path / "elsewhere")
    elif what == "folder":
        path.mkdir()
    elif os.geteuid() != 0:
        pytest.skip("making a device needs root")
    else:
        os.mknod(path, 0o020666, os.makedev(1, 5))  # /dev/zero, which never ends
    monkeypatch.setattr(os, "read", lambda *_: pytest.fail("it was read"))
    if kind == "memo":
        assert entries.CacheEntry.recall([root], cache_key, renew=False) is None
    elif kind == "served":
        assert served.served_before([root], data) is None
    else:
        with pytest.raises(StoreError, match=r"plan\.json"):
            Plan.read(path.parent)


@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from(
        ["layout", "features", "dim", "seed", "named", "parts", "path", "format", "first", "items", "ids", "last"]
    ),
    value=VALUES,
)
def test_any_value_anywhere_in_a_plan_is_used_or_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, name: str, value: object
) -> None:
    """Workers of a job read it out of a shared folder."""
    folder = tmp_path_factory.mktemp("plan")
    plan = json.loads(Plan(0, (PlannedFeature("81", 8, 0, 1),), (Partition("jsonl", "/x/part-0", bytes=5),)).to_json())
    where = next(some for some in (plan, plan["parts"][0], plan["features"][0]) if name in some)
    where[name] = value
    (folder / "plan.json").write_text(json.dumps(plan))
    with contextlib.suppress(StoreError):
        Plan.read(folder)


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Relative paths, as a data directory may be named, are kept."""
    parts = (Partition("npy", "x/y.npy", 0, 5, 9, "rows", "x", "/ids.part"), Partition("jsonl", "/p", bytes=5))
    plan = Plan(3, (PlannedFeature("81", 8, 0, 1, named=True), PlannedFeature("own", 3, 1, 2, own=True)), parts)
    (tmp_path / "plan.json").write_bytes(plan.to_json())
    assert Plan.read(tmp_path) == plan


def test_unknown_fields_of_later_versions_are_dropped() -> None:
    """Two versions share one cache."""
    check = notes.record({"a": notes.whole(0, 9), "b": notes.optional(notes.flag, True)})
    assert notes.parse_note(b'{"a": 3, "new": [1]}', check) == {"a": 3, "b": True}
