"""The engine "ray" on a real Ray of this machine, where one is installed; `test_engines` has a stand-in."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from world import ITEM0, SMALL, vectors_of

from semid_dataset import api as commands

DIM = 8
ITEMS = 600
PROGRAM = """
import functools
import sys

sys.path[:] = {path!r}
import ray

from semid_dataset.cli import _app as cli
from semid_dataset.build.streaming import executors as engines


def doomed(folder, task):
    # Pickled by value, since it is of no module: in a worker, `engines` is as it is written.
    import os, signal
    from semid_dataset.build.streaming import executors as engines
    done = engines._perform_remote(folder, task)
    try:
        descriptor = os.open({marker!r} + task["stage"], os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return done
    os.kill(os.getpid(), signal.SIGKILL)


engines._perform_remote = doomed
ray.init = functools.partial(ray.init, num_cpus=2, object_store_memory=80 << 20, _node_ip_address="127.0.0.1")
failure = cli.run({arguments!r})
if ray.is_initialized():
    sys.exit("Ray is still there.")
sys.exit(failure)
"""


def write(data_dir: Path) -> Path:
    """Write a data directory of six parts."""
    folder = data_dir / "creative_emb" / f"emb_81_{DIM}"
    folder.mkdir(parents=True)
    vectors = vectors_of(ITEMS, DIM)
    for part in range(6):
        lines = [
            json.dumps({"anonymous_cid": ITEM0 + row, "emb": vectors[row].tolist()}) for row in range(part, ITEMS, 6)
        ]
        (folder / f"part-{part}").write_text("\n".join(lines))
    return data_dir


@pytest.mark.timeout(300)  # workers are processes that import torch, each anew after a kill
def test_ray_makes_the_same_ids_and_survives_its_workers(tmp_path: Path) -> None:
    """A worker of every stage is killed once; the table is that of one machine, and standard output is JSON alone."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed: its engine runs on a stand-in only (test_engines.py)")
    whole = commands.generate_semantic_ids(write(tmp_path / "whole"), config=SMALL, engine="local")
    arguments = ["generate", str(write(tmp_path / "ray")), "--engine", "ray", "--json", "--device", "cpu"]
    arguments += ["--levels", "3", "--codes", "16", "--epochs", "2"]
    program = PROGRAM.format(path=sys.path, marker=str(tmp_path / "killed-"), arguments=arguments)
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout)["digest"] == whole.digest
    assert {path.name for path in tmp_path.glob("killed-*")} >= {"killed-sample", "killed-encode"}
    assert "died" in done.stderr  # Ray's own line about a worker, which it means for standard output
