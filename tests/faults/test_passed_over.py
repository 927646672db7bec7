"""Rows 34, 35, 54: one place that misbehaves costs no IDs; whatever is done without is said."""

import errno
import json
import logging
import mmap
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faultkit import TESTS, need, need_root, read_only, tmpfs
from world import SMALL, SmallDataset, make_data, vectors_of, write_embeddings

from semid_dataset import generate_semantic_ids
from semid_dataset.cache import folders
from semid_dataset.cache.cache import Cache
from semid_dataset.environment import Environment
from semid_dataset.errors import SemanticIdWarning
from semid_dataset.format import tensors
from semid_dataset.table.table import SemanticIdTable

NOBODY = 65534


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], str]]:
    """What was said at WARNING and above since."""
    with caplog.at_level(logging.WARNING, "semid_dataset"):
        yield lambda: "\n".join(record.getMessage() for record in caplog.records)


def ids_of(data: Path) -> SemanticIdTable:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SemanticIdWarning)
        return SmallDataset(data).semantic_id_dict


# --- tables of other data sets in a shared cache ---


def newer_format(path: Path) -> None:
    content = path.read_bytes().replace(b'"format_version":"1"', b'"format_version":"9"')[:-4]
    path.write_bytes(content + tensors.zlib.crc32(content).to_bytes(4, "little"))


def odd_header(field: str, value: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        container = tensors.parse(path.read_bytes(), str(path))
        arrays = {name: np.array(array) for name, array in container.arrays.items()}
        info = {**container.info, field: value}
        path.unlink()
        path.write_bytes(b"".join(tensors.serialize(arrays, info)))

    return change


def hollow(path: Path) -> None:
    """16 GiB of nothing behind a header that is right but for the sizes."""
    with path.open("r+b") as file:
        file.truncate(16 << 30)


def links_away(path: Path) -> None:
    path.rename(path.with_name("kept"))
    path.symlink_to("kept")


BROKEN: dict[str, Callable[[Path], None]] = {
    "a newer format": newer_format,
    "provenance: null": odd_header("provenance", None),
    "provenance: a list": odd_header("provenance", [1]),
    "provenance.born: text": odd_header("provenance", {"born": "yesterday", "variance": "x"}),
    "history: null": odd_header("history", None),
    "history: numbers": odd_header("history", [1, 2]),
    "settings: text": odd_header("settings", "none"),
    "identity: odd": odd_header("identity", {"codebook_sizes": "many"}),
    "quantizer: null": odd_header("quantizer", None),
    "quantizer: odd": odd_header("quantizer", {"kind": "of another package"}),
    "cut off": lambda path: os.truncate(path, 1000),
    "empty": lambda path: os.truncate(path, 0),
    "sparse, 16 GiB": hollow,
    "a link": links_away,
    "a folder": lambda path: (path.unlink(), path.mkdir(), None)[2],
    "a FIFO": lambda path: (path.unlink(), os.mkfifo(path), None)[2],
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_table_of_another_data_set_costs_no_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warned: Callable[[], str], how: str
) -> None:
    """One shared cache, equal settings: what is wrong with the neighbour's table is the neighbour's business."""
    monkeypatch.setenv("SEMID_CACHE_DIR", str(tmp_path / "cache"))
    theirs = ids_of(make_data(tmp_path / "theirs", seed=5))
    assert theirs.path is not None
    path = theirs.path
    del theirs
    BROKEN[how](path)
    data = make_data(tmp_path / "mine")
    table = ids_of(data)
    assert (table.status, len(table)) == ("trained", 200), table.reason
    assert ids_of(data).status == "cached"


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO, errno.ENOMEM, errno.ESTALE, errno.EMFILE])
@pytest.mark.parametrize("call", ["open", "mmap", "scandir"])
def test_a_neighbour_that_the_system_refuses_costs_no_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warned: Callable[[], str], call: str, error: int
) -> None:
    """Passed over and said once; what cannot be mapped is read."""
    monkeypatch.setenv("SEMID_CACHE_DIR", str(tmp_path / "cache"))
    theirs = ids_of(make_data(tmp_path / "theirs", seed=5))
    assert theirs.path is not None
    place = str(theirs.path)
    del theirs
    data = make_data(tmp_path / "mine")
    module, name = {"open": (os, "open"), "mmap": (mmap, "mmap"), "scandir": (Path, "iterdir")}[call]
    real: Any = getattr(module, name)

    def refuse(*arguments: Any, **named: Any) -> Any:
        where = str(arguments[0])
        if call == "mmap":
            where = str(Path(f"/proc/self/fd/{arguments[0]}").readlink())
        if where == place or (call == "scandir" and where == str(Path(place).parent)):
            raise OSError(error, os.strerror(error), where)
        return real(*arguments, **named)

    monkeypatch.setattr(module, name, refuse)
    table = ids_of(data)
    assert (table.status, len(table)) == ("trained", 200), table.reason
    if call != "mmap":
        assert warned().count("What could not be read in the cache was passed over (1 in all)") == 1


def test_ones_own_newer_table_is_no_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warned: Callable[[], str]
) -> None:
    """Row 15 stays: without its entry it is known by what it was fitted on; nothing is trained."""
    monkeypatch.setenv("SEMID_CACHE_DIR", str(tmp_path / "cache"))
    data = make_data(tmp_path / "data")
    path = ids_of(data).path
    assert path is not None
    newer_format(path)
    shutil.rmtree(tmp_path / "cache/v1/memo")
    (data / "semantic_id_dict.json").unlink()
    before = path.read_bytes()
    assert ids_of(data).status == "default"
    assert path.read_bytes() == before
    assert "format version 9" in warned()


# --- other users ---


def as_user(code: str, *arguments: object, uid: int = NOBODY, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run this code as another user; unset variables are unset."""
    need_root()
    need("setpriv")
    command = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", sys.executable, "-c", code]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        cwd="/",
        env={"PYTHONPATH": f"{TESTS}:{TESTS.parent}", "SEMID_LANG": "en", "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    if "ModuleNotFoundError" in done.stderr:
        pytest.skip(f"another user cannot read this installation: {done.stderr.splitlines()[-1]}")
    return done


def open_to_all(folder: Path, *, write: bool = False) -> None:
    """Let other users come as far as this folder."""
    folder.chmod(0o777 if write else 0o755)
    for parent in folder.parents:
        if parent != Path("/"):
            parent.chmod(parent.stat().st_mode | stat.S_IXOTH | stat.S_IROTH)


ANSWER = (
    "import json, logging, sys, warnings, pathlib, world\n"
    "logging.basicConfig(level='WARNING', format='%(levelname)s %(message)s')\n"
    "warnings.simplefilter('ignore')\n"
    "table = world.SmallDataset(pathlib.Path(sys.argv[1])).semantic_id_dict\n"
    "print(json.dumps([table.status, len(table), table.digest, str(table.path), table.reason]))\n"
)


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that other users can reach: pytest's own belong to its user alone."""
    folder = Path(tempfile.mkdtemp(prefix="semid-test-"))
    open_to_all(folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def shared(public: Path) -> Path:
    """A data directory that other users read and write."""
    data = make_data(public / "data")
    os.utime(data / "creative_emb" / "emb_81_8.pkl", (1e9, 1e9))
    open_to_all(data, write=True)
    (data / "creative_emb").chmod(0o755)
    (data / "creative_emb" / "emb_81_8.pkl").chmod(0o644)
    return data


def answer_of(done: subprocess.CompletedProcess[str]) -> list[Any]:
    assert done.returncode == 0, done.stderr
    answer: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.mark.parametrize("private", ["all", "the export", "the cache", "the table"])
def test_what_another_user_keeps_private_is_passed_over_aloud(public: Path, shared: Path, private: str) -> None:
    """User A has umask 077; B gets IDs, real ones, and is told that A's may be others."""
    need_root()
    table = ids_of(shared)
    assert table.path is not None
    if private in {"all", "the export"}:
        (shared / "semantic_id_dict.json").chmod(0o600)
    if private in {"all", "the cache"}:
        (shared / ".semantic_ids").chmod(0o700)
    if private == "the table":
        table.path.chmod(0o600)
    else:
        table.path.chmod(0o644)
    home = public / "home"
    home.mkdir()
    open_to_all(home, write=True)
    done = as_user(ANSWER, shared, HOME=str(home))
    status, items, digest, path, reason = answer_of(done)
    if private == "the export":
        assert (status, digest) == ("cached", table.digest)
        assert "semantic_id_dict.json could not be read" in done.stderr
    elif private == "the cache":  # the export is readable, and nothing says that it is one
        assert (status, items) == ("pregenerated", 200)
    elif private == "the table":  # the export is readable, and known as one: the same IDs come of it
        copy = SemanticIdTable.open(path)
        assert (status, copy.to_dict()) == ("cached", table.to_dict()), reason
    else:
        assert (status, items) == ("trained", 200), reason
        assert str(home) in path
        assert "WARNING A set of IDs of its own was made here" in done.stderr
        assert "could not be read" in reason
        again = as_user(ANSWER, shared, HOME=str(home))
        assert answer_of(again)[:3] == ["cached", 200, digest]


@pytest.mark.parametrize("home", [None, "relative", "", "~", "/nonexistent"])
@pytest.mark.parametrize("named", [True, False], ids=["a named cache", "none"])
def test_a_user_without_home_or_name_gets_ids(public: Path, shared: Path, home: str | None, named: bool) -> None:
    """`docker --user`: no passwd entry, no HOME. The named cache is used, and on a second start it answers."""
    cache = public / "cache"
    cache.mkdir()
    open_to_all(cache, write=True)
    shared.chmod(0o755)
    variables = {} if home is None else {"HOME": home}
    if named:
        variables["SEMID_CACHE_DIR"] = str(cache)
    first, second = (as_user(ANSWER, shared, uid=54321, **variables) for _ in range(2))
    assert answer_of(first)[:2] == ["trained", 200], first.stderr
    if named:
        assert str(cache) in answer_of(first)[3]
        assert answer_of(second)[:3] == ["cached", *answer_of(first)[1:3]]
    else:
        assert answer_of(first)[3] == "None"
        assert first.stderr.count("WARNING") == 1, first.stderr
    assert not (TESTS.parent / "~").exists()
    assert not list(public.rglob("~*"))


def test_platformdirs_that_returns_a_tilde_makes_no_such_folder(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As 4.0.0 did where nobody knows the user's home."""
    import platformdirs

    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda *_, **__: "~/.cache/semid_dataset")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # which is what it does, and we do on Linux
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.chdir(tmp_path)
    assert [root.path for root in folders.CacheFolders(data, None, Environment.read({}))] == [data / ".semantic_ids"]
    with read_only(data):
        assert ids_of(data).path is None
    assert not (tmp_path / "~").exists()


def test_a_tilde_in_a_variable_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's settings are expanded by no shell."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    environment = Environment.read({"SEMID_CACHE_DIR": "~/ids", "USER_CACHE_PATH": "~/shared"})
    roots = [root.path for root in folders.CacheFolders(None, None, environment)][:2]
    assert roots == [tmp_path / "home/ids", tmp_path / "home/shared/semantic_ids"]


# --- folders that are full, and other failures of a root ---


def test_where_the_first_cache_is_full_the_next_takes_the_table(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warned: Callable[[], str]
) -> None:
    """Row 54: a probe of one byte still fits; nobody trains again at the next start."""
    first = tmp_path / "first"
    monkeypatch.setenv("SEMID_CACHE_DIR", str(first))
    with tmpfs(first, "size=8k"):
        table = ids_of(data)
        assert table.status == "trained"
        assert table.path is not None
        assert table.path.is_relative_to(data / ".semantic_ids")
        again = ids_of(data)
        assert (again.status, again.digest) == ("cached", table.digest)
        write_embeddings(data, np.concatenate([vectors_of(200), vectors_of(20, seed=3)]))
        more = ids_of(data)
        assert (more.status, len(more)) == ("extended", 220)
        assert more.path is not None
        write_embeddings(data, vectors_of(200))
        os.utime(data / "creative_emb" / "emb_81_8.pkl", (1e9, 1e9))
    assert "trying the next cache folder" in warned()


def test_where_the_first_cache_has_no_room_for_a_streamed_run_the_next_takes_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warned: Callable[[], str]
) -> None:
    """Row 54: its parts are larger than its table."""
    whole = generate_semantic_ids(data, config=SMALL, engine="local", output_dir=tmp_path / "whole")
    first = tmp_path / "first"
    monkeypatch.setenv("SEMID_CACHE_DIR", str(first))
    with tmpfs(first, "size=12k"):
        table = generate_semantic_ids(data, config=SMALL, engine="local")
        assert (table.status, table.to_dict()) == ("trained", whole.to_dict())
        assert table.path is not None
        assert table.path.is_relative_to(data / ".semantic_ids")
    assert "trying the next cache folder" in warned()


@pytest.mark.parametrize("error", [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOTCONN])
def test_a_root_that_fails_is_passed_over(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """A mount that went away fails at every call below it."""
    broken = tmp_path / "broken"
    broken.mkdir()
    monkeypatch.setenv("SEMID_CACHE_DIR", str(broken))
    for module, name in ((Path, "lstat"), (Path, "stat"), (Path, "mkdir"), (os, "open"), (os, "scandir"), (os, "link")):
        real = getattr(module, name)

        def refuse(where: Any, *arguments: Any, real: Any = real, **named: Any) -> Any:
            if str(broken) in str(where):
                raise OSError(error, os.strerror(error), str(where))
            return real(where, *arguments, **named)

        monkeypatch.setattr(module, name, refuse)
    table = ids_of(data)
    assert table.status == "trained"
    assert table.path is not None
    assert table.path.is_relative_to(data)
    assert ids_of(data).status == "cached"


def test_a_copy_in_another_root_answers_for_a_table_that_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest generation counts, wherever it can be read."""
    data = make_data(tmp_path / "data")
    table = ids_of(data)
    assert table.path is not None
    second = tmp_path / "second"
    shutil.copytree(data / ".semantic_ids", second)
    cache = Cache([folders.CacheFolder(data / ".semantic_ids", data), folders.CacheFolder(second, second)])
    real = os.open

    def refuse(path: Any, *arguments: Any, **named: Any) -> int:
        if str(path) == str(table.path):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return real(path, *arguments, **named)

    monkeypatch.setattr(os, "open", refuse)
    found = cache.newest(table.lineage)
    assert found is not None
    assert found.path is not None
    assert found.path.is_relative_to(second)
    with pytest.raises(OSError, match="Input/output"):
        Cache([folders.CacheFolder(data / ".semantic_ids", data)]).newest(table.lineage)
