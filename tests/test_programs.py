"""What ordinary programs do around the attribute: whatever it is, the IDs are right, or an error says what to call."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from world import SmallDataset, make_data

TESTS = Path(__file__).parent
BEGIN = """
import os, pathlib, sys, time
data = pathlib.Path(sys.argv[1])
from world import ITEM0, SmallDataset, vectors_of
dataset = SmallDataset(data)
def say(table, *more):
    os.write(out, (" ".join(map(str, (table.status, table.digest, *more))) + "\\n").encode())
out = os.dup(1)
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory without IDs."""
    return make_data(tmp_path / "data")


def run(data: Path, code: str, *flags: str, begin: str = BEGIN) -> list[list[str]]:
    """Run a program that has `dataset`, and return the words of its lines."""
    done = subprocess.run(
        [sys.executable, *flags, "-c", begin + code, str(data)],
        cwd=TESTS,
        env=os.environ | {"SEMID_LANG": "en"},
        capture_output=True,
        text=True,
        timeout=100,  # guards against a deadlock
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [line.split() for line in done.stdout.splitlines()]


def test_a_program_without_standard_streams_gets_ids(data: Path) -> None:
    """Services close them, and Python's may be None, or closed: no bar is shown, and nothing else changes."""
    ((status, digest),) = run(
        data, "os.close(0); os.close(2); sys.stderr = sys.stdin = None\nsay(dataset.semantic_id_dict)"
    )
    assert status == "trained"
    code = "sys.stderr.close(); del dataset.semantic_id_dict\nsay(dataset.semantic_id_dict)"
    assert run(data, code) == [["cached", digest]]


@pytest.mark.parametrize("flags", [("-OO", "-W", "error", "-X", "dev"), ("-bb", "-X", "utf8=0")])
def test_interpreters_of_other_settings_get_ids(flags: tuple[str, ...], data: Path) -> None:
    """Without docstrings and assertions, with warnings as errors, in the developers' mode."""
    code = "table = dataset.semantic_id_dict\nsay(table, int(table.quantizer.encode(vectors_of(100)).sum()))"
    (cold,) = run(data, code, *flags)
    assert cold[0] == "trained"
    assert run(data, code, *flags) == [["cached", *cold[1:]]]


def test_the_end_of_a_process_reads_ids_and_refuses_to_make_them_without_torch(data: Path) -> None:
    """At exit torch can be imported no more: an error names the call, default IDs would be the worse answer."""
    code = """
import atexit
def last():
    try:
        say(dataset.semantic_id_dict)
    except Exception as error:
        print(type(error).__name__, error)
atexit.register(last)
"""
    ((name, *words),) = run(data, code)
    assert name == "ForkError"
    assert "dataset.prepare_semantic_ids()" in words
    digest = SmallDataset(data).semantic_id_dict.digest
    assert run(data, code) == [["cached", digest]]


def test_the_end_of_a_process_trains_and_encodes_where_torch_is_there(data: Path) -> None:
    """No thread of a pool can be started there: the work is done in the one that asks."""
    code = """
import atexit, torch
torch.set_num_threads(2)
def last():
    table = dataset.semantic_id_dict
    say(table, int(table.quantizer.encode(vectors_of(9_000)).sum()))
atexit.register(last)
"""
    ((status, _, codes),) = run(data, code)
    assert status == "trained"
    more = "import torch\ntorch.set_num_threads(2)\ntable = dataset.semantic_id_dict\n"
    assert run(data, more + "say(table, int(table.quantizer.encode(vectors_of(9_000)).sum()))")[0][2] == codes


@pytest.mark.parametrize("kind", ["class Limit(Exception): pass", "class Limit(TimeoutError): pass"])
@pytest.mark.parametrize("shape", ["function", "method"])
def test_what_a_signal_handler_raises_reaches_the_program(kind: str, shape: str, data: Path) -> None:
    """A time limit (SIGALRM, Celery's soft one) that ends a training is no reason for default IDs that stay."""
    code = f"""
import signal
{kind}
class Handler:
    def method(self, *a): raise Limit("over")
def function(*a): raise Limit("over")
signal.signal(signal.SIGALRM, Handler().method if {shape == "method"} else function)
import semid_dataset.codec.train as training
train = training.train
def interrupted(*a, **k):
    signal.raise_signal(signal.SIGALRM)
    return train(*a, **k)
training.train = interrupted
try:
    say(dataset.semantic_id_dict)
except Limit as error:
    os.write(out, b"limit reached\\n")
signal.signal(signal.SIGALRM, signal.SIG_IGN)
say(dataset.semantic_id_dict)
"""
    limit, (status, _) = run(data, code)
    assert limit == ["limit", "reached"]
    assert status == "trained"


def test_a_dataset_that_is_read_while_its_like_is_made_gets_ids(data: Path) -> None:
    """By a signal's handler, or a property of the dataset: it does not wait for the thread that it interrupts."""
    code = """
import signal
import semid_dataset.codec.train as training
train, answers = training.train, []
def once(*a, **k):
    training.train = train
    signal.signal(signal.SIGALRM, lambda *_: answers.append(SmallDataset(data).semantic_id_dict))
    signal.raise_signal(signal.SIGALRM)
    return train(*a, **k)
training.train = once
say(dataset.semantic_id_dict)
say(answers[0])
"""
    outer, inner = run(data, code)
    assert inner[0] == "trained"
    assert outer == ["trained", inner[1]]


def test_a_sub_interpreter_reads_ids_and_refuses_to_make_them(data: Path) -> None:
    """Torch waits there for ever (mod_wsgi): an error says what to do."""
    name = "_interpreters" if "_interpreters" in sys.builtin_module_names else "_xxsubinterpreters"
    pytest.importorskip(name)
    inside = """
import sys
sys.path[:0], sys.argv = {path!r}, {argv!r}
import pathlib, warnings
warnings.simplefilter("ignore")
from world import SmallDataset
try:
    print(SmallDataset(pathlib.Path(sys.argv[1])).semantic_id_dict.status, flush=True)
except Exception as error:
    print(type(error).__name__, error, flush=True)
"""
    code = f"""
import os, sys
import {name} as interpreters
text = {inside!r}.format(path=sys.path, argv=sys.argv)
interpreters.run_string(interpreters.create(), text)
os._exit(0)
"""
    ((error, *words),) = run(data, code, begin="")
    assert error == "ForkError"
    assert "sub-interpreter," in words
    _ = SmallDataset(data).semantic_id_dict
    assert run(data, code, begin="") == [["cached"]]


@pytest.mark.timeout(120)
def test_compiled_functions_look_up_and_encode(data: Path) -> None:
    """torch.compile follows a caller into this package: what it finds there is computed as it stands."""
    code = """
import torch
items = [ITEM0 + 3, ITEM0 + 5]
vectors = torch.from_numpy(vectors_of(20))
def forward(x):
    table = dataset.semantic_id_dict
    codes = torch.as_tensor(table.codes(items).astype("int64"))
    known = table.coverage(items) + len(table.items_of(codes[0].tolist())) + table.rows_of(items)[0]
    return x + codes.sum() + known + table.quantizer.encode(vectors).sum() + table[ITEM0][0]
compiled = torch.compile(forward, backend="eager")(torch.zeros(3)).tolist()
assert compiled == forward(torch.zeros(3)).tolist()
say(dataset.semantic_id_dict)
"""
    assert run(data, code)[0][0] == "trained"
