"""Rows 8 to 11, 23, 24: caches that take no write, belong to somebody else, or hold what is no file."""

import os
import re
import socket
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from faultkit import LINEAGE, TESTS, need, need_root, need_strace, read_only, root_at, table_bytes, tmpfs
from world import ITEM0, SmallDataset

from semid_dataset import SemanticIdTable
from semid_dataset.cache import cache
from semid_dataset.errors import SemanticIdWarning
from semid_dataset.table.table import build_table_buffers

READ = (
    "import os, pathlib, sys, world\n"
    "table = world.SmallDataset(pathlib.Path(sys.argv[1])).semantic_id_dict\n"
    "assert table.status == os.environ.get('EXPECTED', 'cached'), table.reason\n"
    "table[world.ITEM0]\n"
)


def system_calls(code: str, data: Path, calls: str, log: Path, **variables: str) -> list[str]:
    """The calls that this code makes, one a line, those of the interpreter's own files aside."""
    need_strace()
    command = [
        "strace",
        "-f",
        "--seccomp-bpf",
        "-qq",
        "-o",
        log,
        "-e",
        f"trace={calls}",
        sys.executable,
        "-c",
        code,
        data,
    ]
    environment = os.environ | {"PYTHONPATH": str(TESTS), "PYTHONDONTWRITEBYTECODE": "1"} | variables
    subprocess.run(command, cwd=TESTS.parent, env=environment, check=True, timeout=50)  # type: ignore[list-item]
    return log.read_text().splitlines()


CALLS = (
    "openat,open,creat,mkdir,mkdirat,flock,fcntl,link,linkat,rename,renameat,renameat2,unlink,unlinkat,"
    "ftruncate,utimensat,chmod,fchmod"
)
CHANGES = re.compile(
    r"\b(creat|mkdir|mkdirat|flock|link|linkat|rename\w*|unlink\w*|ftruncate|utimensat|f?chmod)\("
    r"|F_SETLK|O_CREAT|O_WRONLY|O_RDWR|O_TMPFILE"
)


def test_a_warm_start_on_a_read_only_system_locks_and_writes_nothing(data: Path, tmp_path: Path) -> None:
    """Row 8: strace sees no O_CREAT, no lock, and no embedding file opened."""
    _ = SmallDataset(data).semantic_id_dict
    with read_only(data):
        calls = system_calls(READ, data, CALLS, tmp_path / "log")
    ours = [line for line in calls if str(data) in line or ".cache" in line or "flock" in line]
    assert any("safetensors" in line for line in ours)
    assert [line for line in ours if CHANGES.search(line)] == []
    assert [line for line in ours if "creative_emb/emb_" in line and "open" in line] == []


def test_behind_a_closed_gate_without_a_file_nothing_is_written(data: Path, tmp_path: Path) -> None:
    """Row 23: hasattr and inspect.getmembers, as debuggers do, traced."""
    code = (
        "import inspect, pathlib, sys, warnings, world; warnings.simplefilter('ignore')\n"
        "assert hasattr(world.SmallDataset(sys.argv[1]), 'semantic_id_dict')\n"
        "inspect.getmembers(world.SmallDataset(sys.argv[1]))\n"
        "assert 'torch' not in sys.modules\n"
    )
    calls = system_calls(code, data, CALLS, tmp_path / "log", ALLOW_SEMANTIC_GENERATION="0")
    assert [line for line in calls if CHANGES.search(line) and "/dev/" not in line] == []


def test_where_the_first_cache_is_read_only_the_next_takes_the_table(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 9: as root, so that only a real try to write can tell."""
    first = tmp_path / "first"
    monkeypatch.setenv("SEMID_CACHE_DIR", str(first))
    with tmpfs(first, "size=1m,ro"):
        table = SmallDataset(data).semantic_id_dict
        assert table.status == "trained"
        assert table.path is not None
        assert table.path.is_relative_to(data / ".semantic_ids")
        assert SmallDataset(data).semantic_id_dict.status == "cached"


def test_where_no_cache_takes_a_write_ids_stay_in_memory(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 10: HOME does not exist either."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", "/proc/nonexistent")
    monkeypatch.delenv("XDG_CACHE_HOME")
    with read_only(data), pytest.warns(SemanticIdWarning, match="could not be saved"):
        table = SmallDataset(data).semantic_id_dict
    assert (table.status, len(table), table.path) == ("trained", 200, None)
    assert len(set(map(tuple, table.values()))) == 200


# --- a cache of somebody else's ---


def as_nobody(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run this code as another user, who may read our package and nothing else of ours."""
    need_root()
    need("setpriv")
    return subprocess.run(
        [
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            sys.executable,
            "-c",
            code,
            *map(str, arguments),
        ],
        cwd="/",
        env={
            "PYTHONPATH": f"{TESTS}:{TESTS.parent}",
            "HOME": "/nonexistent",
            "SEMID_LANG": "en",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def open_to_all(folder: Path) -> None:
    """Let other users come as far as this folder."""
    while folder != Path("/"):
        folder.chmod(folder.stat().st_mode | stat.S_IXOTH | stat.S_IROTH)
        folder = folder.parent


@pytest.mark.parametrize("mode", [0o755, 0o1777], ids=["a folder that only the owner writes", "a sticky folder"])
def test_a_lock_of_another_user_does_not_stop_reading_or_generating(tmp_path: Path, mode: int) -> None:
    """Row 11: reading needs no lock; generating goes on without one, with a warning."""
    root = root_at(tmp_path / "cache")
    cache.publish_table(root, LINEAGE, 0, [table_bytes(1)])
    lock = root.folder("locks", create=True) / "q.lock"
    lock.touch(0o644)
    for folder in (root.versioned, lock.parent, root.folder(LINEAGE)):
        folder.chmod(mode)
    open_to_all(root.folder(LINEAGE))
    open_to_all(lock.parent)
    code = (
        "import os, sys, pathlib, warnings, faultkit; from semid_dataset.cache import cache, folders, lock\n"
        "assert os.geteuid() == 65534\n"
        "root = faultkit.root_at(pathlib.Path(sys.argv[1])); print(faultkit.read_digest(root))\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    with lock.take_lease(root, 'q', timeout=5, ready=lambda: False) as lease: lease.heartbeat()\n"
        "print(*[warning.message for warning in seen])\n"
    )
    done = as_nobody(code, root.path)
    if "ModuleNotFoundError" in done.stderr or "Permission denied: '/" in done.stderr:
        pytest.skip(f"another user cannot read this installation: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    digest, warning = done.stdout.splitlines()
    assert digest == SemanticIdTable.from_buffer(table_bytes(1)).digest
    assert "going on without it" in warning
    assert lock.stat().st_uid == 0


# --- what is no regular file ---


def plant(kind: str, path: Path, elsewhere: Path) -> None:
    if kind == "link":
        path.symlink_to(elsewhere)
    elif kind == "dangling link":
        path.symlink_to(elsewhere / "nothing")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            before = Path.cwd()
            os.chdir(path.parent)  # the name of a socket is 100 bytes at most
            try:
                server.bind(path.name)
            finally:
                os.chdir(before)
    else:
        need_root()
        os.mknod(path, 0o020666, os.makedev(1, 5))  # /dev/zero, which never ends


KINDS = ["link", "dangling link", "fifo", "folder", "socket", "device"]
FILES, FOLDERS = ["table", "memo", "served", "owner"], ["locks", "lineage", "v1", ".semantic_ids"]


@pytest.mark.parametrize(
    ("place", "kind"),
    [(file, kind) for file in FILES for kind in KINDS]
    + [(folder, kind) for folder in FOLDERS for kind in KINDS if kind != "folder"],
)
def test_what_is_no_file_of_ours_is_refused_without_a_hang(warm: Path, tmp_path: Path, place: str, kind: str) -> None:
    """Row 24: at any path of the cache; IDs come from elsewhere or from memory, nothing behind a link is touched."""
    table = SmallDataset(warm).semantic_id_dict
    ids = table.to_dict()
    assert table.path is not None
    cache = warm / ".semantic_ids"
    (entry,) = (
        path for path in (cache / "v1/memo").iterdir() if '"emb_81' in path.read_text().replace("creative_emb/", "")
    )
    (owner,) = (cache / "v1/locks").glob("*.owner")
    (served,) = (cache / "v1/served").iterdir()
    path = {
        "table": table.path,
        "memo": entry,
        "served": served,
        "owner": owner,
        "locks": cache / "v1/locks",
        "lineage": table.path.parent,
        "v1": cache / "v1",
        ".semantic_ids": cache,
    }[place]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    target = elsewhere
    if place == "table":  # what a link would be followed to: a good table of other IDs under the same name
        target = elsewhere / "table"
        other = np.random.default_rng(1).permutation(table.codes_array)
        target.write_bytes(
            b"".join(build_table_buffers(table.keys_array, other, info=table.info, weights=table.weights))
        )
    kept = [(file.name, file.read_bytes()) for file in elsewhere.iterdir()]
    if path.is_dir():
        path.rename(tmp_path / "kept")
    else:
        path.unlink()
    plant(kind, path, target)
    (warm / "semantic_id_dict.json").unlink()
    before = path.lstat().st_ino
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SemanticIdWarning)
        answer = SmallDataset(warm).semantic_id_dict
    assert answer.status != "default", answer.reason
    assert answer.to_dict() == ids
    assert answer[ITEM0] == ids[ITEM0]
    assert [(file.name, file.read_bytes()) for file in elsewhere.iterdir()] == kept
    if place not in {"memo", "served", "owner"}:  # those are notes: replacing them follows nothing
        assert path.lstat().st_ino == before
