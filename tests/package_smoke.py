"""
Smoke test of an installed package: run by `make package` with the Python of an environment that has nothing else.

Needs no repository: everything it uses is installed, everything it makes lies in a temporary folder.
"""

import json
import os
import pickle
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import numpy as np

WARM = """
import sys
from semid_dataset import SemanticIdMixin
class Dataset(SemanticIdMixin):
    data_dir, mm_emb_ids = "data", ["81"]
table = Dataset().semantic_id_dict
assert "torch" not in sys.modules, "a warm start loaded torch"
print(table.status, len(table), table[20_000_000_007])
"""


def main() -> None:
    import semid_dataset

    print("installed:", semid_dataset.__file__)
    assert "site-packages" in semid_dataset.__file__
    semid = Path(sysconfig.get_path("scripts")) / "semid"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ |= {"XDG_CACHE_HOME": f"{folder}/cache", "HOME": folder, "OMP_NUM_THREADS": "1"}

        def run(*arguments: str | Path) -> str:
            print("$", *(str(argument) for argument in arguments))
            return subprocess.run(arguments, check=True, capture_output=True, text=True).stdout

        assert "generate" in run(semid, "--help")
        vectors = np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32)
        np.save("x.npy", vectors)
        made = json.loads(run(semid, "generate", "x.npy", "--ids", "rows", "-o", "out", "--epochs", "2", "--json"))
        assert (made["items"], made["status"]) == (300, "trained")
        run(semid, "verify", "out", "--embeddings", "x.npy", "--ids", "rows")
        run(semid, "export", "out", "-o", "item.index.json")
        run(semid, "report", "out", "-o", "report.html")
        Path("data/creative_emb").mkdir(parents=True)
        with Path("data/creative_emb/emb_81_16.pkl").open("wb") as file:
            pickle.dump({20_000_000_000 + k: vector for k, vector in enumerate(vectors)}, file)
        print(run(semid, "generate", "data", "--epochs", "2"))
        warm = run(sys.executable, "-c", WARM)
        print(warm)
        assert warm.startswith("cached 300")
    print("The package works.")


if __name__ == "__main__":
    main()
