"""
Whether IDs stay, and what new items are worth: real data, one table for training, inference and tomorrow.

    SEMID_REAL_DATA=FOLDER python benchmarks/extension.py        # some minutes; writes results/extension.md

1. Train on one directory, infer on another that has 5 % new items and what training lacked, each with a cache of its
   own; the checkpoint is all that they have in common, and a training in the second would be an error.
2. Ten rounds of 1 % new items; then eight processes at once, each with other new items and some in common. The same
   with a flock that succeeds for everybody (needs strace).

Relative error: of a set of items, about its own mean. New items are held against the known ones, which the codebooks
were fitted to, and against items that were held out at the fit, which they were not.
"""

import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESULTS = Path(__file__).resolve().parent / "results"
ROUNDS, PROCESSES = 10, 8
ASK = (
    "import sys, time, pathlib, pickle, warnings; warnings.simplefilter('ignore'); import torch\n"
    "from semid_dataset import SemanticIdMixin\n"
    "class Data(SemanticIdMixin):\n"
    "    data_dir, mm_emb_ids, mm_emb_dict = pathlib.Path(sys.argv[1]), ['81'], {}\n"
    "pathlib.Path(sys.argv[2] + '.ready').touch()\n"
    "while not pathlib.Path(sys.argv[3]).exists(): time.sleep(0.001)\n"
    "table = Data().semantic_id_dict\n"
    "pickle.dump((table.status, table.to_dict(), table.info['history']), open(sys.argv[2], 'wb'))\n"
)
USELESS = [
    "strace",
    "-f",
    "--seccomp-bpf",
    "-qq",
    "-o",
    "/dev/null",
    "-e",
    "trace=flock",
    "-e",
    "inject=flock:retval=0",
]


def ids_of(folder: Path, features: tuple[str, ...], **settings: Any) -> Any:
    """Return the table that a new dataset of a directory gets."""
    from semid_dataset import SemanticIdMixin

    class Data(SemanticIdMixin):
        data_dir, mm_emb_ids, mm_emb_dict = folder, list(features), {}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Data().prepare_semantic_ids(**settings)


def never(*_: object, **__: object) -> None:
    raise AssertionError("a training began")


def inference(train: Path, evaluation: Path, work: Path, features: tuple[str, ...]) -> str:
    """Return the row about one set of features."""
    from semid_dataset.build import pipeline
    from semid_dataset.features import FeatureMatrix
    from semid_dataset.inputs.discover import find_sources
    from semid_dataset.inputs.read import read_sources

    name = "+".join(features)
    for part, folder in (("train", train), ("eval", evaluation)):
        shutil.copytree(folder, work / name / part)
    os.environ["XDG_CACHE_HOME"] = str(work / name / "cache-train")
    born = ids_of(work / name / "train", features)
    born.save(work / name / "checkpoint" / "semid_table.safetensors")
    os.environ["XDG_CACHE_HOME"] = str(work / name / "cache-eval")
    train_table, pipeline.train_table = pipeline.train_table, never  # type: ignore[assignment]
    table = ids_of(work / name / "eval", features, parent=work / name / "checkpoint")
    pipeline.train_table = train_table
    assert table.status == "extended"
    read = read_sources(find_sources(work / name / "eval", features))
    items = np.asarray(read.items)
    known = born.rows_of(items) >= 0

    def vectors_of(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        place = np.full(len(items), -1, np.int64)
        place[rows] = np.arange(len(rows))
        parts = [FeatureMatrix(f.id, place[f.rows], f.matrix) for f in read.features]
        here = [FeatureMatrix(p.id, p.rows[p.rows >= 0], p.matrix[p.rows >= 0]) for p in parts]
        vectors: NDArray[np.float32] = table.quantizer.vectors_of(here, len(rows))
        return vectors

    def error(rows: NDArray[np.int64]) -> float:
        vectors = vectors_of(rows)
        left = vectors - table.quantizer.decode(table.codes(items[rows]))
        return float(np.square(left).sum() / np.square(vectors - vectors.mean(axis=0)).sum())

    new = np.flatnonzero(~known)
    errors = error(np.flatnonzero(known)), error(new)
    started = time.perf_counter()
    table.quantizer.encode(vectors_of(new))
    seconds = time.perf_counter() - started
    kept = sum(table[item] == codes for item, codes in born.items())
    shared = len(table) - len({tuple(codes) for codes in table.values()})
    held_out = born.quality.get("relative_mse_held_out", float("nan"))
    return (
        f"| {name} | {kept:,} of {len(born):,} | {len(new):,} | {shared} | {seconds:.2f} | {errors[0]:.3f} | "
        f"{errors[1]:.3f} | {errors[1] / errors[0]:.2f} | {held_out:.3f} |"
    )


def write(folder: Path, vectors: dict[int, NDArray[np.float32]], items: list[int]) -> Path:
    """Write feature 81 of some items."""
    (folder / "creative_emb").mkdir(parents=True, exist_ok=True)
    with (folder / "creative_emb" / "emb_81_32.pkl").open("wb") as file:
        pickle.dump({item: vectors[item] for item in items}, file)
    return folder


def appended(vectors: dict[int, NDArray[np.float32]], work: Path, under: list[str]) -> str:
    """Append in rounds, then in processes at once; return what was counted."""
    os.environ["SEMID_CACHE_DIR"] = str(work / "cache")
    order = [list(vectors)[place] for place in np.random.default_rng(0).permutation(len(vectors))]
    percent = len(order) // 100
    end = len(order) - (ROUNDS + 2 * PROCESSES + 1) * percent
    served: dict[Any, list[int]] = {}
    changed = 0
    for number in range(ROUNDS + 1):
        table = ids_of(write(work / "data", vectors, order[: end + number * percent]), ("81",))
        changed += sum(table[item] != codes for item, codes in served.items())
        served = table.to_dict()
    base = order[: end + ROUNDS * percent]
    common, rest = order[len(base) : len(base) + percent], order[len(base) + percent :]
    children, answers, go = [], [], work / "go"
    for number in range(PROCESSES):
        mine = rest[2 * number * percent : 2 * (number + 1) * percent]
        folder, answer = write(work / f"data{number}", vectors, [*base, *common, *mine]), work / f"answer{number}"
        children.append(subprocess.Popen([*under, sys.executable, "-c", ASK, folder, answer, go]))
        answers.append(answer)
    while not all(answer.with_name(answer.name + ".ready").exists() for answer in answers):
        time.sleep(0.01)
    go.touch()
    assert not any(child.wait() for child in children)
    ids: dict[Any, set[tuple[int, ...]]] = {}
    longest: list[dict[str, Any]] = []
    for answer in answers:
        _, theirs, history = pickle.loads(answer.read_bytes())
        for item, codes in theirs.items():
            ids.setdefault(item, set()).add(tuple(codes))
        longest = max(longest, history, key=len)
    changed += sum({tuple(codes)} != ids[item] for item, codes in served.items())
    two = sum(len(codes) > 1 for codes in ids.values())
    shared = len(ids) - len({codes for each in ids.values() for codes in each})
    assert [step["generation"] for step in longest] == list(range(len(longest)))
    return f"| {len(ids):,} | {changed} | {two} | {shared} | {len(longest)} |"


def main() -> None:
    real = os.environ.get("SEMID_REAL_DATA")
    if not real:
        sys.exit("SEMID_REAL_DATA is not set: it names the folder with the real data.")
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        tool = Path(real) / "tools" / "beauty_to_taac.py"
        subprocess.run([sys.executable, tool, work / "b", "--users", "200"], check=True, stdout=subprocess.DEVNULL)
        lines = [
            "# An ID never moves",
            "",
            "Beauty products: trained on one directory, inferred on another, nothing in common but the checkpoint.",
            "Seconds: to encode the new items. Error: squared, over the variance of the same items.",
            "",
            "| features | known items with the same ID | new | share an ID | seconds | error, known | error, new "
            "| ratio | error, held out at the fit |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for features in (("81",), ("82",), ("81", "82")):
            lines.append(inference(work / "b" / "train", work / "b" / "eval", work, features))
            print(lines[-1], flush=True)
        lines += [
            "",
            f"{ROUNDS} rounds of 1 % new items, then {PROCESSES} processes at once with 2 % each and 1 % in common.",
            "",
            "| flock | items | IDs that changed | items with two IDs | shared IDs | generations |",
            "|---|---|---|---|---|---|",
        ]
        with next((work / "b" / "eval" / "creative_emb").glob("emb_81_*.pkl")).open("rb") as file:
            vectors = pickle.load(file)
        for name, under in (("works", []), ("succeeds for everybody", USELESS)):
            if under and shutil.which("strace") is None:
                lines.append(f"| {name} | not run: strace is not installed | | | | |")
            else:
                lines.append(f"| {name} {appended(vectors, work / name, under)}")
            print(lines[-1], flush=True)
    (RESULTS / "extension.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
