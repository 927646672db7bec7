"""A pickle is a program. None of these may run, and none may take the machine's memory."""

import builtins
import collections
import copyreg
import functools
import io
import operator
import os
import pickle
import re
import resource
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from semid_dataset.errors import EmbeddingError, UnsafePickleError
from semid_dataset.inputs._file import ForwardFile
from semid_dataset.inputs._rows import Rows
from semid_dataset.inputs.formats._pickle_machine import read_array_pickle

ARRAY = np.arange(4, dtype=np.float32)


def read(path: Path, dim: int = 4) -> Rows:
    rows = Rows("81", dim)
    with ForwardFile(path) as file:
        read_array_pickle(file, rows)
    return rows


def outcome_of(path: Path) -> str:
    """Return "rows", "no rows", or the message of the EmbeddingError."""
    try:
        ids, matrix = read(path).finish()
    except EmbeddingError as error:
        return str(error)
    assert len(ids) == len(matrix)
    assert np.isfinite(matrix).all()
    return "rows" if len(ids) else "no rows"


class Calls:
    """Pickles as a call of anything with anything."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


class State:
    """Pickles as an instance whose state is set."""

    def __init__(self, **state: Any) -> None:
        self.__dict__.update(state)

    def __setstate__(self, state: Any) -> None:
        raise AssertionError("it ran")


class Persistent(pickle.Pickler):
    def persistent_id(self, value: object) -> Any:
        return "an id" if isinstance(value, np.ndarray) else None


def _extension() -> bytes:
    copyreg.add_extension("os", "system", 0x7F00)
    try:
        return pickle.dumps({1: Calls(os.system, "true")}, 2)
    finally:
        copyreg.remove_extension("os", "system", 0x7F00)


def _persistent(protocol: int) -> bytes:
    buffer = io.BytesIO()
    Persistent(buffer, protocol).dump({1: ARRAY})
    return buffer.getvalue()


def _reconstruct(subtype: Any) -> Calls:
    return Calls(np.zeros(1).__reduce__()[0], subtype, (0,), b"b")


def _build_on(value: bytes) -> bytes:
    """A dict whose one value gets a state: `value` `}` `b`."""
    return b"\x80\x04}(K\x01" + value + b"}bu."


OBJECTS = {
    "os.system": lambda mark: Calls(os.system, mark),
    "subprocess": lambda mark: Calls(subprocess.check_output, mark.split()),
    "eval": lambda mark: Calls(eval, f"__import__('os').system({mark!r})"),
    "exec": lambda mark: Calls(exec, f"import os; os.system({mark!r})"),
    "compile": lambda mark: Calls(compile, mark, "x", "exec"),
    "__import__": lambda mark: Calls(__import__, "antigravity"),
    "open": lambda mark: Calls(open, mark.split()[1], "w"),
    "getattr": lambda mark: Calls(getattr, Calls(__import__, "os"), "system"),
    "getattr chain": lambda mark: Calls(Calls(getattr, os, "system").call[0], np.ndarray, "tofile"),
    "attrgetter": lambda mark: operator.attrgetter("__class__.__mro__"),
    "methodcaller": lambda mark: operator.methodcaller("system", mark),
    "partial": lambda mark: functools.partial(os.system, mark),
    "map": lambda mark: Calls(map, os.system, [mark]),
    "pickle.loads": lambda mark: Calls(pickle.loads, pickle.dumps(Calls(os.system, mark))),
    "nested in a tuple": lambda mark: (ARRAY, Calls(os.system, mark)),
    "nested in a dict": lambda mark: {"a": {"b": Calls(os.system, mark)}},
    "nested in a list": lambda mark: [ARRAY, [Calls(os.system, mark)]],
    "numpy.load": lambda mark: Calls(np.load, "/etc/passwd"),
    "numpy.memmap of a file": lambda mark: Calls(np.memmap, "/etc/passwd"),
    "numpy.fromfile": lambda mark: Calls(np.fromfile, "/etc/passwd"),
    "a call of ndarray": lambda mark: Calls(np.ndarray, (1 << 34,)),
    "a call of dict": lambda mark: Calls(dict, [(1, 2)]),
    "a call of bytes": lambda mark: Calls(bytes, 1 << 34),
    "a call of bytearray": lambda mark: Calls(bytearray, 1 << 34),
    "object array": lambda mark: np.array([Calls(os.system, mark)] * 4, object),
    "empty object array": lambda mark: np.empty(0, object),
    "object scalar": lambda mark: Calls(np.float32(1).__reduce__()[0], np.dtype(object), b"12345678"),
    "object dtype": lambda mark: np.dtype(object),
    "structured object dtype": lambda mark: np.zeros(4, [("a", "f4"), ("b", "O")]),
    "another array type": lambda mark: _reconstruct(State),
    "masked array": lambda mark: np.ma.array(ARRAY, mask=False),
    "an instance": lambda mark: State(a=1),
    "an exception": lambda mark: ValueError("x"),
    "a default dict of a call": lambda mark: collections.defaultdict(os.getpid),
    "an ordered dict from a call": lambda mark: Calls(collections.OrderedDict, [(1, Calls(os.system, mark))]),
    "a counter": lambda mark: collections.Counter("abc"),
    "codecs with another codec": lambda mark: Calls(__import__("_codecs").encode, "abc", "rot13"),
    "a type": lambda mark: State,
    "a function": lambda mark: os.getcwd,
    "complex": lambda mark: 1 + 2j,
    "a path": lambda mark: Path("/etc/passwd"),
}
RAW = {
    "persistent id, text": _persistent(0),
    "persistent id, binary": _persistent(2),
    "extension code": _extension(),
    "extension code 1": b"\x80\x02}(K\x01\x82\x01u.",
    "extension code 4": b"\x80\x02}(K\x01\x84\x01\x00\x00\x00u.",
    "INST": b"}(I1\n(S'true'\nios\nsystem\nu.",
    "OBJ": b"}(I1\n(cos\nsystem\nS'true'\nou.",
    "GLOBAL": b"cos\nsystem\n(S'true'\ntR.",
    "NEWOBJ": b"\x80\x02cbuiltins\nbytearray\n)\x81.",
    "NEWOBJ_EX": b"\x80\x04cbuiltins\ndict\n)}\x92.",
    "STACK_GLOBAL of numbers": b"\x80\x04K\x01K\x02\x93.",
    "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
    "dotted module": b"\x80\x04\x8c\x08numpy.os\x8c\x06system\x93.",
    "REDUCE on a dict": b"\x80\x04}K\x01\x85R.",
    "REDUCE with a list": b"\x80\x04cnumpy\ndtype\n]R.",
    "BUILD on a dict": b"\x80\x04}}b.",
    "BUILD on a name": _build_on(b"cnumpy\nndarray\n"),
    "BUILD on a list": _build_on(b"]"),
    "BUILD on a tuple": _build_on(b")"),
    "SETITEM on a name": b"\x80\x04cnumpy\nndarray\nK\x01K\x02s.",
    "APPEND on a name": b"\x80\x04cnumpy\nndarray\nK\x01a.",
    "APPEND on a dict": b"\x80\x04}K\x01a.",
    "a dtype built twice": b"\x80\x02}(K\x01cnumpy\ndtype\n(X\x02\x00\x00\x00f4\x89\x88tR"
    + 2 * b"(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    + b"u.",
}


@pytest.fixture
def traps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if anything is imported by name, evaluated, or run."""

    def sprung(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError(f"it ran: {args}")

    monkeypatch.setattr(os, "system", sprung)
    monkeypatch.setattr(subprocess, "Popen", sprung)
    monkeypatch.setattr(builtins, "eval", sprung)
    monkeypatch.setattr(pickle, "load", sprung)
    monkeypatch.setattr(pickle, "loads", sprung)
    monkeypatch.setattr(pickle, "Unpickler", sprung)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("name", OBJECTS)
def test_nothing_but_arrays_is_built(name: str, protocol: int, tmp_path: Path, request: Any) -> None:
    """Whatever an object asks for on unpickling is refused by name, before or after good rows, and nothing runs."""
    marker = tmp_path / "marker"
    hostile = OBJECTS[name](f"touch {marker}")
    items = {number: ARRAY + number for number in range(5)}
    path = tmp_path / "emb_81_4.pkl"
    files = [pickle.dumps(each, protocol) for each in ({9: hostile, **items}, {**items, 9: hostile})]
    request.getfixturevalue("traps")
    for raw in files:
        path.write_bytes(raw)
        with pytest.raises(
            UnsafePickleError, match=r"emb_81_4.pkl' is refused: .* it asks for .+ Nothing of it was run"
        ):
            read(path)
    assert not marker.exists()


@pytest.mark.parametrize("name", RAW)
def test_no_opcode_can_do_more_than_build_arrays(name: str, tmp_path: Path, traps: None) -> None:
    """Opcodes that import, instantiate, call or set state are refused on anything but numpy's own words."""
    path = tmp_path / "emb_81_4.pkl"
    path.write_bytes(RAW[name])
    with pytest.raises(UnsafePickleError, match="Nothing of it was run"):
        read(path)


@pytest.mark.parametrize("name", ["os.system", "getattr", "object array", "numpy.load"])
def test_what_the_error_says(name: str, tmp_path: Path) -> None:
    """The message names the file, the place, and what was asked for."""
    wanted = {"os.system": "posix.system", "getattr": "getattr", "object array": "Python objects", "numpy.load": "load"}
    path = tmp_path / "emb_81_4.pkl"
    path.write_bytes(pickle.dumps({1: OBJECTS[name]("true")}, 4))
    with pytest.raises(UnsafePickleError, match=wanted[name]):
        read(path)


def test_the_payloads_are_live(tmp_path: Path) -> None:
    """A meta-test: what is refused above would have run under pickle.load."""
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps({1: OBJECTS["os.system"](f"touch {marker}")}))
    assert marker.exists()


BOMBS = {
    "memo index": b"\x80\x04}r\xff\xff\xff\x7f.",
    "memo index without a value": b"\x80\x04r\xff\xff\xff\x7f.",
    "memo index as text": b"}p99999999999999999999\n.",
    "memo index of a megabyte": b"}p" + b"9" * 1_000_000 + b"\n.",
    "long bytes": b"\x80\x04}(K\x01\x8e\xff\xff\xff\xff\xff\xff\xff\x7fu.",
    "long bytes 4": b"\x80\x04}(K\x01B\xff\xff\xff\x7fu.",
    "long bytearray": b"\x80\x05}(K\x01\x96\x00\x00\x00\x00\x10\x00\x00\x00u.",
    "long text": b"\x80\x04}(K\x01\x8d\x00\x00\x00\x00\x10\x00\x00\x00u.",
    "long integer": b"\x80\x04}(K\x01\x8b\xff\xff\xff\x7fu.",
    "long frame": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f}.",
    "an integer of a million digits": b"}(I1\nL" + b"9" * 1_000_000 + b"L\nu.",
    "two million values": b"\x80\x04}(" + b"N" * 2_000_000 + b"u.",
    "two million marks": b"\x80\x04" + b"(" * 2_000_000 + b".",
    "two million lists": b"\x80\x04" + b"]" * 2_000_000 + b".",
    "deep tuples": b"\x80\x04)" + b"\x85" * 100_000 + b".",
    "doubling tuples": b"\x80\x04)" + b"2\x86" * 50_000 + b".",
    "deep lists": b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "a shape of 2^40": pickle.dumps({1: ARRAY}, 4).replace(
        b"K\x01K\x04\x85", b"K\x01\x8a\x06\x00\x00\x00\x00\x00\x01\x85"
    ),
    "many memo entries": b"\x80\x04}" + b"".join(b"r" + struct.pack("<I", k) for k in range(400_000)) + b".",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_takes_little_memory(name: str, tmp_path: Path) -> None:
    """No announced length and no depth is believed: 300 MB of address space are enough for each."""
    path = tmp_path / "bomb.pkl"
    path.write_bytes(BOMBS[name])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20), hard))
    try:
        outcome = outcome_of(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert outcome == "no rows" or str(path) in outcome


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), protocol=st.integers(0, 5))
def test_damaged_pickles_are_errors(data: st.DataObject, protocol: int, tmp_path: Path) -> None:
    """A pickle with bytes changed, cut off or repeated gives rows or an EmbeddingError, and nothing else."""
    raw = bytearray(pickle.dumps({20_000_000_000 + k: ARRAY + k for k in range(70)}, protocol))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        match data.draw(st.sampled_from(["change", "cut", "repeat", "drop"])):
            case "change":
                raw[at] = data.draw(st.integers(0, 255))
            case "cut":
                del raw[at + 1 :]
            case "repeat":
                raw[at:at] = raw[at : at + 40]
            case "drop":
                del raw[at : at + 3]
        if not raw:
            raw = bytearray(b".")
    path = tmp_path / "damaged.pkl"
    path.write_bytes(raw)
    assert outcome_of(path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=64))
def test_noise_is_an_error(raw: bytes, tmp_path: Path) -> None:
    """Bytes that never were a pickle are refused, not stumbled over."""
    path = tmp_path / "noise.pkl"
    path.write_bytes(b"\x80\x04}(" + raw)
    outcome = outcome_of(path)
    assert outcome in {"rows", "no rows"} or "noise.pkl" in outcome


@pytest.mark.parametrize("code", [b"f1", b"f3", b"i3", b"u0", b"f9", b"b1", b"c8", b"S4", b"\xff\xfe"])
def test_a_type_that_numpy_has_not_is_no_number(code: bytes, tmp_path: Path) -> None:
    """Found by fuzzing: the type "f1" was a TypeError."""
    path = tmp_path / "emb_81_4.pkl"
    for value in (ARRAY, [np.float32(1)] * 4):
        path.write_bytes(pickle.dumps({1: value}, 4).replace(b"\x8c\x02f4", b"\x8c\x02" + code))
        assert outcome_of(path) == "no rows" or "emb_81_4.pkl" in outcome_of(path)


def test_reading_imports_nothing(tmp_path: Path) -> None:
    """A name in the file is a word: no module is looked up for it."""
    path = tmp_path / "emb_81_4.pkl"
    path.write_bytes(re.sub(rb"numpy\._?core\.multiarray", b"antigravity.submodule", pickle.dumps({1: ARRAY}, 2)))
    before = set(sys.modules)
    with pytest.raises(UnsafePickleError, match="antigravity"):
        read(path)
    assert set(sys.modules) == before
