"""
Parents in every state and children of every kind; run as a program, so that torch's threads are those of a new process.

    python parents.py DATA_DIR WORK STATE... -- METHOD...

Goes through the states in turn, and in each starts children of every method, on an empty cache and on a filled one.
Prints one line of JSON for each: state, method, cache, and what the child answered ("hang" if it did not).
"""

import json
import multiprocessing
import os
import queue
import shutil
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from world import SmallDataset, make_data, vectors_of

STATES = ("idle", "opened a table", "used torch", "loaded a quantizer", "trained")
METHODS = ("fork", "spawn", "forkserver", "thread")
ITEMS = 300
DEADLINE = float(os.environ.get("CHILD_DEADLINE", "60"))  # seconds; guards against a deadlock, and measures nothing


def use_torch() -> None:
    """Have torch start its threads, for the forward and the backward way."""
    import torch

    layer = torch.nn.Linear(600, 600)
    layer(torch.randn(600, 600)).sum().backward()


def answer(dataset: SmallDataset) -> list[Any]:
    """Return what a child is asked for: IDs, and what the quantizer says of vectors."""
    warnings.simplefilter("ignore")
    table = dataset.semantic_id_dict
    vectors = vectors_of(ITEMS)
    codes = table.quantizer.encode(vectors)
    decoded = table.quantizer.decode(codes)
    return [table.status, table.digest, len(table), int(codes.astype("int64").sum()), round(float(decoded.sum()), 3)]


def answer_into(answers: Any, dataset: SmallDataset) -> None:
    """The same, from another process or thread."""
    try:
        answers.put(answer(dataset))
    except BaseException as error:
        answers.put([type(error).__name__, str(error)])


def ask(method: str, dataset: SmallDataset, work: Callable[..., None] = answer_into) -> list[Any]:
    """Start a child and return its answer."""
    child: Any
    if method == "thread":
        answers: Any = queue.Queue()
        child = threading.Thread(target=work, args=(answers, dataset), daemon=True)
    else:
        context: Any = multiprocessing.get_context(method)
        answers = context.Queue()
        child = context.Process(target=work, args=(answers, dataset), daemon=True)
    child.start()
    try:
        found: list[Any] = answers.get(timeout=DEADLINE)
    except queue.Empty:
        found = ["hang"]
    if method != "thread":
        child.join(5)
        child.kill()
    return found


def enter(state: str, folder: Path, kept: list[Any]) -> None:
    """Bring this process into a state."""
    if state == "used torch":
        use_torch()
    elif state in {"opened a table", "loaded a quantizer"}:
        if not folder.exists():
            make_data(folder, ITEMS)
            assert ask("spawn", SmallDataset(folder))[0] == "trained"
        table = SmallDataset(folder).semantic_id_dict
        kept.append(table if state == "opened a table" else table.quantizer.encode(vectors_of(ITEMS)))
    elif state == "trained":
        dataset = SmallDataset(make_data(folder.with_name("trained"), 4000, dim=16, seed=1))
        assert dataset.semantic_id_dict.status == "trained"
        kept.append(dataset)


def main(data: Path, work: Path, states: list[str], methods: list[str]) -> None:
    """Go through all of them."""
    kept: list[Any] = []
    for state in states:
        enter(state, work / "other", kept)
        for method in methods:
            cold = work / f"{state} {method}"
            shutil.copytree(data, cold, ignore=shutil.ignore_patterns(".semantic_ids", "semantic_id_dict.json"))
            for cache, folder in (("cold", cold), ("cached", data)):
                print(json.dumps([state, method, cache, ask(method, SmallDataset(folder))]), flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    given = sys.argv[3:]
    middle = given.index("--")
    main(Path(sys.argv[1]), Path(sys.argv[2]), given[:middle], given[middle + 1 :])
    os._exit(0)  # a thread that hangs must not keep it
