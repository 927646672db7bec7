"""Row 56: what somebody planted at the paths of locks and jobs is neither believed nor waited for."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from faultkit import TESTS, root_at
from world import SMALL

from semid_dataset import generate_semantic_ids
from semid_dataset.build.streaming import run
from semid_dataset.cache import folders, lock
from semid_dataset.errors import LockTimeoutError
from semid_dataset.inputs.discover import find_sources

HOLD = (
    "import sys, pathlib, faultkit; from semid_dataset.cache import lock\n"
    "with lock.take_lease(faultkit.root_at(pathlib.Path(sys.argv[1])), 'q', timeout=60, ready=lambda: False):\n"
    "    print('ready', flush=True); sys.stdin.readline()\n"
)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[folders.CacheFolder]:
    """A cache whose lock "q" another process holds."""
    root = root_at(tmp_path / "cache")
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, root.path],
        env=os.environ | {"PYTHONPATH": f"{TESTS}:{TESTS.parent}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    yield root
    child.kill()
    child.communicate()


OWNERS = {
    "a list": b"[1, 2]",
    "no process": b"{}",
    "wild kinds": json.dumps({"pid": "1; rm -rf /", "host": ["h"]}).encode(),
    "a host of many lines": json.dumps({"pid": 1, "host": "h\nERROR all is lost"}).encode(),
    "200,000 brackets": b"[" * 200_000,
    "no text": b"\xff\xfe\x00",
    "empty": b"",
    "3 GiB of holes": None,
    "a FIFO": None,
    "a folder": None,
}


@pytest.mark.parametrize("what", OWNERS)
def test_a_forged_owner_is_not_believed(held: folders.CacheFolder, what: str) -> None:
    """Whoever waits gives up as if nobody had said who owns the lock."""
    owner = held.folder("locks") / "q.owner"
    owner.unlink(missing_ok=True)
    content = OWNERS[what]
    if content is not None:
        owner.write_bytes(content)
    elif what == "a FIFO":
        os.mkfifo(owner)
    elif what == "a folder":
        owner.mkdir()
    else:
        with owner.open("wb") as file:
            file.truncate(3 << 30)
    with pytest.raises(LockTimeoutError, match="another process holds"):  # noqa: SIM117
        with lock.take_lease(held, "q", timeout=0.4, ready=lambda: False):
            pass


@pytest.mark.parametrize("name", ["plan.json", "chosen.part", "basis-new.part", "sample-0.part"])
@pytest.mark.parametrize("what", ["fifo", "link", "nonsense", "holes", "folder"])
def test_what_lies_in_a_job_is_made_again_unless_it_is_ours(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, what: str
) -> None:
    """No hang, nothing behind a link is touched, and the IDs are those of a run by oneself."""
    alone = generate_semantic_ids(data, config=SMALL, engine="local", output_dir=tmp_path / "alone")
    open_job = run.open_job
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"kept")

    def plant(*arguments: object, **named: object) -> run.Job:
        job = open_job(*arguments, **named)  # type: ignore[arg-type]
        path = job.folder / name
        if what == "fifo":
            os.mkfifo(path)
        elif what == "link":
            path.symlink_to(elsewhere)
        elif what == "nonsense":
            path.write_bytes(b"{]" * 100)
        elif what == "folder":
            if str(job.folder).startswith(str(data)):  # in the first cache folder alone: the next one takes the run
                path.mkdir()
        else:
            with path.open("wb") as file:
                file.write(b"x")
                file.truncate(3 << 30)
        return job

    monkeypatch.setattr(run, "open_job", plant)
    assert find_sources(data, ["81"])
    table = generate_semantic_ids(data, config=SMALL, engine="local")
    assert table.to_dict() == alone.to_dict()
    assert elsewhere.read_bytes() == b"kept"
