"""
Coverage-guided fuzzing of everything that reads bytes which others wrote.

    python targets.py array_pickle|container|id_json|jsonl [libFuzzer's options] [CORPUS]

Every input must end in rows or in an error of ours, within the address space below, without running
anything. See README.md.
"""

import itertools
import json
import os
import pickle
import resource
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["semid_dataset"]):
    from semid_dataset.errors import EmbeddingError, TableError
    from semid_dataset.format import id_json
    from semid_dataset.format import tensors as container
    from semid_dataset.inputs import _rows as rows
    from semid_dataset.inputs import discover as sources
    from semid_dataset.inputs import read as features
    from semid_dataset.inputs.formats import pickle as array_pickle
    from semid_dataset.table.table import table

import numpy as np

MORE_BYTES = 1 << 30  # address space that an input may take beyond what the process has; the input is < 1 MB
KNOWN = {*sys.modules, *sys.builtin_module_names, "semid_dataset", "numpy", "json", "orjson", "encodings"}
SCRATCH = Path(tempfile.mkdtemp(prefix="semid-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
VECTORS = {20_000_000_000 + k: np.arange(4, dtype=np.float32) + k for k in range(3)}


def never(event: str, arguments: tuple[object, ...]) -> None:
    """Refuse what no reader of data has a reason to do; an audit hook cannot be taken out again."""
    if event == "import" and str(arguments[0]).split(".")[0] not in KNOWN:
        os.write(2, f"imported: {arguments[0]}\n".encode())
        os.abort()
    if event in {"os.system", "os.exec", "subprocess.Popen", "exec", "compile", "pickle.find_class", "socket.connect"}:
        stack = traceback.extract_stack()
        if event in {"exec", "compile"} and any(
            "importlib" in f.filename or "traceback" in f.filename for f in stack[:-1]
        ):
            return  # our own import at its first use; "import" below sees that it is ours
        os.write(2, f"a reader of data did this: {event}\n{''.join(traceback.format_list(stack))}\n".encode())
        os.abort()


def fuzz_array_pickle(data: bytes) -> None:
    path = SCRATCH / "emb_81_4.pkl"
    path.write_bytes(data)
    found = rows.Rows("81", 4)
    try:
        with rows.ForwardFile(path) as file:
            array_pickle.read_array_pickle(file, found)
        ids, matrix = found.finish()
    except EmbeddingError:
        return
    assert len(ids) == len(matrix)
    assert np.isfinite(matrix).all()


def fuzz_container(data: bytes) -> None:
    buffers = [data, _with_right_checksum(data)]
    for buffer in buffers:
        try:
            opened = table.SemanticIdTable.from_buffer(buffer)
            for item in list(itertools.islice(opened, 50)):
                assert len(opened[item]) == opened.levels
            opened.codes([1, "x"])
        except TableError:
            continue


def _with_right_checksum(data: bytes) -> bytes:
    """Most changed inputs fail the checksum alone: put it right, so that what lies behind it is seen too."""
    import zlib

    size = container.CHECKSUM_BYTES
    if len(data) <= size:
        return data
    return data[:-size] + zlib.crc32(data[:-size]).to_bytes(size, "little")


def fuzz_id_json(data: bytes) -> None:
    try:
        keys, codes = id_json.parse_id_json(data, "semantic_id_dict.json")
    except TableError:
        return
    expected = json.loads(data.decode("utf-8-sig"))
    assert len(keys) == len(codes) == len(expected)
    for key, row in zip(keys, codes.tolist(), strict=True):
        assert expected[str(key)] == row


def fuzz_jsonl(data: bytes) -> None:
    folder = SCRATCH / "creative_emb" / "emb_82_2"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "part-0").write_bytes(data)
    try:
        found = features.read_sources(sources.find_sources(SCRATCH, ["82"]))
    except EmbeddingError:
        return
    assert len(found.items) == len(found.features[0].matrix)
    assert np.isfinite(found.features[0].matrix).all()


def seeds_array_pickle() -> list[bytes]:
    values = [VECTORS, {k: v.tolist() for k, v in VECTORS.items()}, {str(k): v for k, v in VECTORS.items()}, {}]
    values += [{1: np.float64([1, 2, 3, 4])}, {1: [np.float32(1)] * 4}, {1: np.zeros((2, 2), order="F")}]
    return [pickle.dumps(value, protocol) for value in values for protocol in range(6)]


def seeds_container() -> list[bytes]:
    codes = np.arange(12, dtype=np.uint8).reshape(3, 4)
    info = {"lineage": "0123456789", "generation": 0}
    made = [([7, 8, 9], codes), (["a", "b", "7"], codes), ([], codes[:0]), ([1, 2, 3], codes.astype(np.uint16))]
    return [b"".join(table.build_table_buffers(items, rows_, info=info)) for items, rows_ in made]


def seeds_id_json() -> list[bytes]:
    texts = [
        '{"20000000001":[1,2,3],"7":[255,0,9]}',
        '{"a": [1, 70000]}',
        "{}",
        '{"1":[1],"1":[2]}',
        "[]",
        '{"1":[1.0]}',
    ]
    return [text.encode() for text in texts] + [
        b"\xef\xbb\xbf" + texts[0].encode(),
        json.dumps({"1": [1]}, indent=2).encode(),
    ]


def seeds_jsonl() -> list[bytes]:
    good = b'{"anonymous_cid": 1, "emb": [0.5, -1e3]}\n'
    return [
        good * 2,
        good[:-3],
        b'{"anonymous_cid": "x", "emb": [NaN, 1]}\n' + good,
        b"\xef\xbb\xbf" + good,
        b"[[[[\n" + good,
    ]


def main() -> None:
    name, *options = sys.argv[1:]
    fuzz: Callable[[bytes], None] = globals()[f"fuzz_{name}"]
    corpus = SCRATCH / "seeds"
    corpus.mkdir()
    for number, seed in enumerate(globals()[f"seeds_{name}"]()):
        (corpus / str(number)).write_bytes(seed)
        fuzz(seed)  # what is imported when it is first needed is imported before the hook
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MORE_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    armed = []

    def guarded(data: bytes) -> None:
        if not armed:  # not before: the fuzzer itself imports while it starts
            armed.append(True)
            sys.addaudithook(never)
        fuzz(data)

    atheris.Setup([sys.argv[0], *options, str(corpus)], guarded)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
