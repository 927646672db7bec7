"""
Coverage-guided fuzzing of everything that reads bytes which others wrote.

    python targets.py TARGET [libFuzzer's options] [CORPUS]

A target is array_pickle, container, id_json, jsonl, one of the formats of files of one's own (npy, npz, parquet,
safetensors, arrow, own: any of them), items, sequences, titles or exports.

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
    from semid_dataset.errors import ConfigError, EmbeddingError, TableError
    from semid_dataset.exports import read_export
    from semid_dataset.format import id_json
    from semid_dataset.format import tensors as container
    from semid_dataset.inputs import _file, _rows, matrix, sequences, titles
    from semid_dataset.inputs import discover as sources
    from semid_dataset.inputs import read as features
    from semid_dataset.inputs.formats import FORMATS
    from semid_dataset.inputs.formats import _pickle_machine as array_pickle
    from semid_dataset.table import table

import numpy as np

MORE_BYTES = 1 << 30  # address space that an input may take beyond what the process has; the input is < 1 MB
NEEDED = {
    "unicodedata",
    "pyarrow",
    "simdjson",
    "csimdjson",
    "csv",
    "fractions",
    "gzip",
    "bz2",
    "lzma",
    "zipfile",
    "compression",
}  # by readers, when first met
KNOWN = {*sys.modules, *sys.builtin_module_names, "semid_dataset", "numpy", "json", "orjson", "encodings", *NEEDED}
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
        if event == "compile" and any(f.filename.endswith("/ast.py") and f.name == "literal_eval" for f in stack):
            return  # numpy reads the header of an array so: a tree of literals, nothing that runs
        os.write(2, f"a reader of data did this: {event}\n{''.join(traceback.format_list(stack))}\n".encode())
        os.abort()


def fuzz_array_pickle(data: bytes) -> None:
    path = SCRATCH / "emb_81_4.pkl"
    path.write_bytes(data)
    found = _rows.Rows("81", 4)
    try:
        with _file.ForwardFile(path) as file:
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


def fuzz_own(data: bytes) -> None:
    """A file of one's own; its first byte chooses the ending, so that what begins like nothing is tried as anything."""
    own(data[1:], ENDINGS[data[0] % len(ENDINGS)] if data else ".npy")


def own(data: bytes, ending: str) -> None:
    path = SCRATCH / f"x{ending}"
    path.write_bytes(data)
    for items in (None, "rows", "b"):
        try:
            keys, found = matrix.read_vectors(path, items)
        except EmbeddingError:
            continue
        assert len(keys) == len(found) > 0
        assert np.isfinite(found).all()
    path.unlink()


def of_form(name: str, ending: str) -> None:
    """Make the target of one format, whose seeds are those of `own` of its ending."""

    def fuzz(data: bytes) -> None:
        own(data, ending)

    def seeds() -> list[bytes]:
        number = ENDINGS.index(ending)
        return [seed[1:] for seed in seeds_own() if seed[0] == number]

    globals()[f"fuzz_{name}"], globals()[f"seeds_{name}"] = fuzz, seeds


def fuzz_items(data: bytes) -> None:
    """Lists of items."""
    for ending in (".txt", ".json", ".npy"):
        path = SCRATCH / f"list{ending}"
        path.write_bytes(data)
        try:
            keys = matrix.read_items(path)
            assert isinstance(keys, np.ndarray) or all(isinstance(key, str) and key for key in keys)
        except EmbeddingError:
            continue


def fuzz_sequences(data: bytes) -> None:
    """What users took."""
    for ending in (".txt", ".jsonl", ".parquet"):
        path = SCRATCH / f"list{ending}"
        path.write_bytes(data)
        try:
            sequences.read_sequences(path)
        except EmbeddingError:
            continue


def fuzz_titles(data: bytes) -> None:
    for ending in (".json", ".jsonl", ".tsv", ".csv"):
        path = SCRATCH / f"titles{ending}"
        path.write_bytes(data)
        try:
            found = titles.read_titles(path)
        except EmbeddingError:
            continue
        assert all(isinstance(item, str) and isinstance(title, str) for item, title in found.items())


def fuzz_exports(data: bytes) -> None:
    """IDs that others wrote; torch is left out: its own reader takes longer to start than all others."""
    for ending in (".json", ".index.json", ".parquet", ".npy", ".flat.npz", ".trie.npz"):
        path = SCRATCH / f"ids{ending}"
        path.write_bytes(data)
        try:
            found = read_export(path, items="rows" if ending.endswith((".npy", ".npz")) else None)
        except (TableError, ConfigError):
            continue
        for item in list(itertools.islice(found, 50)):
            assert len(found[item]) == found.levels


ENDINGS = (".npy", ".npz", ".parquet", ".jsonl", ".safetensors", ".pkl", ".arrow", ".gz", ".feather")
for ending_ in (".npy", ".npz", ".parquet", ".safetensors", ".arrow"):
    of_form(ending_[1:], ending_)


def seeds_own() -> list[bytes]:
    import gzip
    import io

    made: list[bytes] = []
    vectors = np.arange(8, dtype=np.float32).reshape(2, 4)
    array, archive = io.BytesIO(), io.BytesIO()
    np.save(array, vectors)
    np.savez_compressed(archive, item_id=np.array([1, 2]), emb=vectors, b=np.array(["1.0", "x"]))
    made += [b"\0" + array.getvalue(), b"\1" + archive.getvalue()]
    lines = b'{"item_id": 1, "b": "1.0", "emb": [[1, 2]]}\n{"item_id": 2.0, "b": 2, "emb": [3, 4]}\n'
    made += [b"\3" + lines, b"\7" + gzip.compress(lines)]
    header = json.dumps(
        {
            "emb": {"dtype": "BF16", "shape": [2, 4], "data_offsets": [0, 16]},
            "id": {"dtype": "I64", "shape": [2], "data_offsets": [16, 32]},
        }
    ).encode()
    made.append(b"\4" + len(header).to_bytes(8, "little") + header + bytes(range(32)))
    made += [b"\5" + pickle.dumps(value, 4) for value in (VECTORS, {1.0: np.ones(2)}, {np.str_("a"): np.ones(2)})]
    import pyarrow
    import pyarrow.parquet

    columns = {
        "item_id": pyarrow.array([1.0, 2.0]),
        "b": pyarrow.array(["1", "2"]).dictionary_encode(),
        "emb": pyarrow.array([[1, 2], [3, 4]], pyarrow.list_(pyarrow.float32())),
    }
    target, stream = io.BytesIO(), io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), target)
    with pyarrow.ipc.new_stream(stream, pyarrow.table(columns).schema) as writer:
        writer.write_table(pyarrow.table(columns))
    return [*made, b"\2" + target.getvalue(), b"\6" + stream.getvalue()]


def seeds_items() -> list[bytes]:
    return [b"1\n2\n", b"1.0e+03\n2\n", b'"a"\nb \n', b"[1, 2.0]\n[]\n", b"[1.5]", b"\xff\xfe1\0", b"a\xc2\x85b\n"]


def seeds_sequences() -> list[bytes]:
    import io

    import pyarrow
    import pyarrow.parquet

    target = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"s": [[1, 2], [3]]}), target)
    return [b"1 2\n3\n", b'[1, 2.0]\n["a"]\n', target.getvalue()]


def seeds_titles() -> list[bytes]:
    return [
        b'{"1": "a", "2": ["b", "c"], "3": null}',
        b'{"item_id": 1, "title": "a"}\n{"asin": "B", "name": 2}\n',
        b'1\ta\n2\t"b\n',
        b'item,title\n1,"a, b"\n2,"c""d"\n',
    ]


def seeds_exports() -> list[bytes]:
    import io

    from semid_dataset.exports import export

    made = table.SemanticIdTable.from_mapping({k: [k, 2 * k, 3] for k in range(5)})
    found = []
    for ending in (".json", ".index.json", ".parquet", ".npy", ".flat.npz", ".trie.npz"):
        path = SCRATCH / f"seed{ending}"
        export(made, path)
        found.append(path.read_bytes())
    array = io.BytesIO()
    np.save(array, np.array([[1, 2], [3, 4]], ">i8"))
    return [*found, array.getvalue()]


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
    # First bytes decide, so every target can meet every reader: what they import is imported before the hook.
    list(FORMATS.others())
    for seed in seeds_own():
        fuzz_own(seed)
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
