"""
What people's tools write, and what is made of it: form x writer x type of ids x type of vectors.

    python benchmarks/inputs.py                  # writes results/inputs.md; exit code 1 where a cell is silently wrong

Each cell is written by the tool itself and read by `read_vectors`, as `semid generate FILE` does. It is *read* where
the items and the vectors come out as they went in, *converted* where they do and a warning says what was done, and
*refused* where an error names what was found. Anything else is *WRONG*. The packages are those of requirements.txt and
pandas, polars, duckdb and datasets; a tool that is missing has rows that say so.
"""

import datetime
import decimal
import gzip
import importlib
import io
import json
import logging
import pickle
import platform
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from semid_dataset.errors import SemidError
from semid_dataset.inputs.matrix import read_vectors

RESULTS = Path(__file__).parent / "results" / "inputs.md"
N, DIM = 6, 4
VECTORS = np.arange(N * DIM, dtype=np.float32).reshape(N, DIM) / 8 - 1
INTS = [20_000_000_027, 1000, 7, 8, 9, 2**53 + 1]
SMALL = [20_000_000_027, 1000, 7, 8, 9, 10]
ASINS = ["B00X1", "0001", "b", "c", "d", "é"]


@dataclass(frozen=True)
class Cell:
    """One way to write: `write` returns the path, or path and file of items."""

    form: str
    writer: str
    ids: str
    vectors: str
    write: Callable[[Path], Any]
    wanted: list[Any] | None  # the items, None where there are none to be had
    matrix: Any = None  # where others than VECTORS are wanted
    options: dict[str, Any] | None = None


def columns_of(kind: str) -> tuple[Any, list[Any] | None]:
    """Return ids of a type, and the items that they are."""
    if kind in {"int64", "Int64 (nullable)"}:
        return INTS, INTS
    if kind == "str of numbers":
        return [str(k) for k in INTS], INTS
    if kind == "str":
        return ASINS, ASINS
    if kind == "float64, whole":
        return [float(k) for k in SMALL], SMALL
    if kind == "float64, one missing":
        return [*map(float, SMALL[:-1]), None], None
    if kind == "float64, beyond 2^53":
        return [float(2**60 + 512 * k) for k in range(N)], None
    if kind == "str of floats":
        return [f"{k}.0" for k in SMALL], SMALL
    if kind == "bool":
        return [True, False] * 3, None
    if kind == "timestamp":
        return [datetime.datetime(2026, 1, 1 + k) for k in range(N)], None
    if kind == "uint64 beyond int64":
        return [2**63 + k for k in range(N)], [str(2**63 + k) for k in range(N)]
    raise AssertionError(kind)


KINDS = (
    "int64", "str of numbers", "str", "float64, whole", "float64, one missing", "float64, beyond 2^53", "str of floats",
    "bool", "timestamp", "uint64 beyond int64",
)  # fmt: skip


def pandas_cells() -> Iterator[Cell]:
    pd = importlib.import_module("pandas")
    name = f"pandas {pd.__version__}"

    def frame(ids: Any, **more: Any) -> Any:
        return pd.DataFrame({"item_id": ids, **more, "embedding": list(VECTORS)})

    for kind in KINDS:
        ids, wanted = columns_of(kind)
        if kind == "uint64 beyond int64":
            ids = np.array(ids, np.uint64)
        yield Cell("parquet", name, kind, "list<float>", lambda p, i=ids: frame(i).to_parquet(p / "x.parquet"), wanted)
        yield Cell("Feather", name, kind, "list<float>", lambda p, i=ids: frame(i).to_feather(p / "x.feather"), wanted)
        shown = None if kind == "timestamp" else wanted  # written as milliseconds: whole numbers, exactly
        if kind == "timestamp":
            shown = [1767225600000 + 86_400_000 * k for k in range(N)]

        def lines(p: Path, i: Any = ids) -> None:
            frame(i).to_json(p / "x.jsonl", orient="records", lines=True)

        yield Cell("JSON lines", name, kind, "list", lines, shown)
    extra = {
        "Int64 (nullable)": (lambda: frame(pd.array(INTS, "Int64")), INTS),
        "category": (lambda: frame(pd.Categorical(ASINS)), ASINS),
        "string[pyarrow]": (lambda: frame(pd.array(ASINS, "string")), ASINS),
        "named index": (lambda: frame(INTS).set_index("item_id"), INTS),
        "named RangeIndex": (lambda: frame(0).drop(columns="item_id").rename_axis("item_id"), list(range(N))),
        "index without a name": (lambda: frame(INTS).set_index("item_id").rename_axis(None), INTS),
        "column called parent_asin, title beside": (
            lambda: frame(0, parent_asin=ASINS, title=list("uvwxyz")).drop(columns="item_id"), ASINS
        ),
        "title only": (lambda: frame(0, title=list("uvwxyz")).drop(columns="item_id"), None),
        "UUID": (lambda: frame([str(uuid.UUID(int=k)) for k in range(N)]), [str(uuid.UUID(int=k)) for k in range(N)]),
    }  # fmt: skip
    for kind, (make, wanted) in extra.items():
        yield Cell("parquet", name, kind, "list<float>", lambda p, m=make: m().to_parquet(p / "x.parquet"), wanted)
    wide = {f"f{k}": VECTORS[:, k] for k in range(DIM)}
    made = pd.DataFrame({"item_id": INTS, **wide})
    yield Cell("parquet", name, "int64", "a column a number", lambda p: made.to_parquet(p / "x.parquet"), None)
    yield Cell("CSV", name, "int64", "a column a number", lambda p: made.to_csv(p / "x.csv"), None)
    yield Cell("pickle", name, "int64", "DataFrame", lambda p: frame(INTS).to_pickle(p / "x.pkl"), None)
    texts = pd.DataFrame({"item_id": INTS, "embedding": [str(row.tolist()) for row in VECTORS]})
    yield Cell("parquet", name, "int64", "text", lambda p: texts.to_parquet(p / "x.parquet"), None)
    packed = lambda p: frame(INTS).to_json(p / "x.jsonl.gz", orient="records", lines=True)  # noqa: E731
    yield Cell("JSON lines, gzip", name, "int64", "list", packed, INTS)
    document = lambda p: frame(INTS).to_json(p / "x.json", orient="records")  # noqa: E731
    yield Cell("JSON, one document", name, "int64", "list", document, None)


def polars_cells() -> Iterator[Cell]:
    pl = importlib.import_module("polars")
    name = f"polars {pl.__version__}"
    forms = {
        "parquet": lambda frame, p: frame.write_parquet(p / "x.parquet"),
        "Feather": lambda frame, p: frame.write_ipc(p / "x.arrow"),
        "Feather, zstd": lambda frame, p: frame.write_ipc(p / "x.feather", compression="zstd"),
        "JSON lines": lambda frame, p: frame.write_ndjson(p / "x.ndjson"),
    }
    ids = {
        "int64": (pl.Series(INTS), INTS),
        "str": (pl.Series(ASINS), ASINS),
        "categorical": (pl.Series(ASINS, dtype=pl.Categorical), ASINS),
        "float64, whole": (pl.Series([float(k) for k in SMALL]), SMALL),
        "decimal": (pl.Series([decimal.Decimal(k) for k in SMALL]), SMALL),
        "uint64 beyond int64": (pl.Series([2**63 + k for k in range(N)], dtype=pl.UInt64), columns_of(KINDS[-1])[1]),
        "bool": (pl.Series([True, False] * 3), None),
        "list": (pl.Series([[k] for k in INTS]), None),
    }
    for form, write in forms.items():
        for kind, (column, wanted) in ids.items():
            frame = pl.DataFrame({"item_id": column, "embedding": VECTORS.tolist()})
            shown = SMALL if form == "JSON lines" and kind == "decimal" else wanted
            yield Cell(form, name, kind, "list<double>", lambda p, f=frame, w=write: w(f, p), shown)
        for kind, dtype in (("Array", pl.Array(pl.Float32, DIM)), ("list<half>", pl.List(pl.Float16))):
            try:
                frame = pl.DataFrame({"item_id": INTS, "embedding": pl.Series(VECTORS.tolist(), dtype=dtype)})
            except Exception as error:  # noqa: BLE001 - what a version of polars does not know
                print(f"{name}: {kind}: {error}")
                continue
            yield Cell(form, name, "int64", kind, lambda p, f=frame, w=write: w(f, p), INTS)


def duckdb_cells() -> Iterator[Cell]:
    duckdb = importlib.import_module("duckdb")
    name = f"DuckDB {duckdb.__version__}"
    types = {
        "BIGINT": INTS, "HUGEINT": SMALL, "UBIGINT": SMALL, "DECIMAL(38,0)": SMALL, "DECIMAL(20,2)": SMALL,
        "DOUBLE": SMALL, "VARCHAR": INTS, "BOOLEAN": None, "DATE": None,
    }  # fmt: skip
    for form, target in (("parquet", "x.parquet' (FORMAT parquet)"), ("JSON lines", "x.jsonl' (FORMAT json)")):
        for kind, wanted in types.items():
            for vectors in ("FLOAT[]", f"FLOAT[{DIM}]", "DOUBLE[]"):

                def write(p: Path, kind: str = kind, vectors: str = vectors, target: str = target) -> None:
                    values = INTS if kind in {"BIGINT", "VARCHAR"} else SMALL
                    cast = {"BOOLEAN": "true", "DATE": "DATE '2026-01-01'"}.get(kind, f"CAST(i AS {kind})")
                    rows = ", ".join(
                        f"({k}, {row.tolist()}::{vectors})" for k, row in zip(values, VECTORS, strict=True)
                    )
                    duckdb.sql(
                        f"COPY (SELECT {cast} AS item_id, e AS embedding FROM (VALUES {rows}) t(i, e)) TO '{p}/{target}"
                    )

                if form == "JSON lines" and kind in {"DATE"}:
                    continue
                yield Cell(form, name, kind, vectors, write, wanted)


def spark_cells() -> Iterator[Cell]:
    pa = importlib.import_module("pyarrow")
    pq = importlib.import_module("pyarrow.parquet")
    name = f"Spark's layout (pyarrow {pa.__version__})"
    udt = pa.struct(
        [
            ("type", pa.int8()),
            ("size", pa.int32()),
            ("indices", pa.list_(pa.int32())),
            ("values", pa.list_(pa.float64())),
        ]
    )
    dense = [{"type": 1, "size": None, "indices": None, "values": row} for row in VECTORS.tolist()]
    sparse = [{"type": 0, "size": DIM, "indices": [0], "values": [1.0]} for _ in range(N)]
    nested = pa.array([[row] for row in VECTORS.tolist()], pa.list_(pa.list_(pa.float32())))
    vectors = {
        "array<float>": (pa.array(VECTORS.tolist(), pa.list_(pa.float32())), True),
        "array<double>": (pa.array(VECTORS.tolist(), pa.list_(pa.float64())), True),
        "VectorUDT, dense": (pa.array(dense, udt), True),
        "VectorUDT, sparse": (pa.array(sparse, udt), False),
        "[1, dim]": (nested, True),
        "[2, dim]": (pa.array([[row, row] for row in VECTORS.tolist()], pa.list_(pa.list_(pa.float32()))), False),
        "binary": (pa.array([row.tobytes() for row in VECTORS], pa.binary()), False),
    }
    for layout in ("parts", "dt=... folders", "one part gzipped"):
        for kind, (column, read) in vectors.items():

            def write(p: Path, column: Any = column, layout: str = layout) -> Path:
                table = pa.table({"item_id": INTS, "features": column})
                for number in range(2):
                    folder = p / "x" / (f"dt=2026-01-0{number}" if layout == "dt=... folders" else "")
                    folder.mkdir(parents=True, exist_ok=True)
                    part = folder / f"part-0000{number}-c000.snappy.parquet"
                    pq.write_table(table.slice(3 * number, 3), part)
                    (folder / f".{part.name}.crc").write_bytes(b"crc")
                if layout == "one part gzipped":
                    part.with_name(f"{part.name}.gz").write_bytes(gzip.compress(part.read_bytes()))
                    part.unlink()
                (p / "x" / "_SUCCESS").touch()
                return p / "x"

            yield Cell(f"parquet, {layout}", name, "bigint", kind, write, INTS if read else None)


def datasets_cells() -> Iterator[Cell]:
    datasets = importlib.import_module("datasets")
    name = f"HF datasets {datasets.__version__}"
    features = {
        "List(float32)": datasets.List(datasets.Value("float32")),
        f"List(float32, {DIM})": datasets.List(datasets.Value("float32"), length=DIM),
        f"Array2D(1, {DIM})": datasets.Array2D((1, DIM), "float32"),
    }
    for kind, feature in features.items():
        rows = [[row] for row in VECTORS.tolist()] if "2D" in kind else VECTORS.tolist()
        columns = {"id": datasets.Value("string"), "embedding": feature}
        data = datasets.Dataset.from_dict({"id": ASINS, "embedding": rows}, features=datasets.Features(columns))
        yield Cell("parquet", name, "str", kind, lambda p, d=data: d.to_parquet(str(p / "x.parquet")), ASINS)
        read = None if "2D" in kind else ASINS  # of these it writes the first number alone
        yield Cell("JSON lines", name, "str", kind, lambda p, d=data: d.to_json(str(p / "x.jsonl")), read)
        yield Cell(
            "save_to_disk", name, "str", kind, lambda p, d=data: (d.save_to_disk(str(p / "x")), p / "x")[1], ASINS
        )


def numpy_cells() -> Iterator[Cell]:
    name = f"numpy {np.__version__}"
    for kind in ("float16", "float32", "float64", "int8", "uint8", "int64", ">f4", "columns first", "(items, 1, dim)"):
        matrix = VECTORS * 8 + 8 if "int" in kind else VECTORS
        matrix = {
            "columns first": np.asfortranarray(matrix),
            "(items, 1, dim)": matrix[:, None],
        }.get(kind, matrix if "(" in kind or " " in kind else matrix.astype(kind))
        flat = np.asarray(matrix, np.float32).reshape(N, DIM)

        def plain(p: Path, m: Any = matrix) -> tuple[Path, Path]:
            np.save(p / "x.npy", m)
            np.save(p / "ids.npy", np.array(INTS))
            return p / "x.npy", p / "ids.npy"

        yield Cell(".npy", name, "list in .npy", kind, plain, INTS, flat)
        archive = lambda p, m=matrix: np.savez(p / "x.npz", item_id=np.array(INTS), embedding=m)  # noqa: E731
        yield Cell(".npz", name, "int64", kind, archive, INTS, flat)
    ids = {
        "int32": (np.array([7, 8, 9, 1, 2, 3], np.int32), [7, 8, 9, 1, 2, 3]),
        "uint64 beyond int64": (np.array([2**63 + k for k in range(N)], np.uint64), columns_of(KINDS[-1])[1]),
        "float64, whole": (np.array(SMALL, np.float64), SMALL),
        "float64, NaN": (np.array([*SMALL[:-1], np.nan]), None),
        "<U5": (np.array(ASINS), ASINS),
        "S11": (np.array([str(k) for k in SMALL], "S"), SMALL),
        "object": (np.array([*ASINS[:-1], 7], object), None),
        "datetime64": (np.zeros(N, "M8[s]"), None),
        "bool": (np.zeros(N, bool), None),
    }
    for kind, (array, wanted) in ids.items():
        yield Cell(".npz", name, kind, "float32", lambda p, a=array: np.savez(p / "x.npz", ids=a, x=VECTORS), wanted)
    unnamed = lambda p: np.savez(p / "x.npz", np.array(INTS), VECTORS)  # noqa: E731
    yield Cell(".npz, arr_0 and arr_1", name, "int64", "float32", unnamed, None)
    other = lambda p: np.savez(p / "x.npz", train_idx=np.arange(N), embedding=VECTORS)  # noqa: E731
    yield Cell(".npz, train_idx", name, "int64", "float32", other, None)
    listed: dict[str, tuple[Callable[[Path], Any], list[Any] | None]] = {
        "savetxt": (lambda p: np.savetxt(p, np.array(SMALL)), SMALL),
        "savetxt %d": (lambda p: np.savetxt(p, np.array(SMALL), fmt="%d"), SMALL),
        "savetxt %g": (lambda p: np.savetxt(p, np.array([1e6, *SMALL[1:]]), fmt="%g"), [10**6, *SMALL[1:]]),
        "trailing blanks": (lambda p: p.write_text("".join(f"{k} \n" for k in SMALL)), SMALL),
        "in quotation marks": (lambda p: p.write_text("".join(f'"{k}"\n' for k in SMALL)), SMALL),
        "names in quotation marks": (lambda p: p.write_text("".join(f'"{k}"\n' for k in ASINS)), None),
        "some as floats, some names": (lambda p: p.write_text("1.0\n2.0\na\nb\nc\nd\n"), None),
        "a heading": (lambda p: p.write_text("item_id\n" + "".join(f"{k}\n" for k in SMALL)), None),
        "NEL, U+2028 in names": (
            lambda p: p.write_text("a\u0085b\nc\u2028d\ne\nf\ng\nh\n", "utf-8"),
            ["a\u0085b", "c\u2028d", "e", "f", "g", "h"],
        ),
        "UTF-16": (lambda p: p.write_text("\n".join(ASINS), "utf-16"), None),
        "CRLF and BOM": (
            lambda p: p.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(str(k).encode() for k in SMALL)),
            SMALL,
        ),
    }
    for kind, (write_ids, wanted) in listed.items():

        def beside(p: Path, w: Callable[[Path], Any] = write_ids) -> tuple[Path, Path]:
            np.save(p / "x.npy", VECTORS)
            w(p / "ids.txt")
            return p / "x.npy", p / "ids.txt"

        yield Cell(".npy and ids.txt", name, kind, "float32", beside, wanted)
    keys = {
        "int": INTS,
        "str": ASINS,
        "np.int64": list(np.array(INTS)),
        "np.str_": list(np.array(ASINS)),
        "float": SMALL,
    }
    for kind, some in keys.items():
        made = dict(zip([float(k) for k in some] if kind == "float" else some, VECTORS, strict=True))
        for protocol in (0, 2, 4, 5):
            wanted = None if protocol == 0 else [k.item() if hasattr(k, "item") else k for k in some]
            dump = lambda p, m=made, n=protocol: (p / "x.pkl").write_bytes(pickle.dumps(m, n))  # noqa: E731
            yield Cell(f"pickle, protocol {protocol}", name, kind, "float32", dump, wanted)
    lists = {k: row.tolist() for k, row in zip(INTS, VECTORS, strict=True)}
    yield Cell("pickle", "Python", "int", "lists", lambda p: (p / "x.pkl").write_bytes(pickle.dumps(lists)), None)


def torch_cells() -> Iterator[Cell]:
    torch = importlib.import_module("torch")
    name = f"torch {torch.__version__}"
    tensors = {"emb": torch.from_numpy(VECTORS), "ids": torch.tensor(INTS)}
    yield Cell(".pt", name, "int64", "dict of tensors", lambda p: torch.save(tensors, p / "x.pt"), None)
    yield Cell(".pt", name, "none", "tensor", lambda p: torch.save(tensors["emb"], p / "x.pt"), None)
    by_item = dict(zip(INTS, tensors["emb"], strict=True))
    dump = lambda p: (p / "x.pkl").write_bytes(pickle.dumps(by_item))  # noqa: E731
    yield Cell("pickle", name, "int", "tensors", dump, None)
    numpy_writer = importlib.import_module("safetensors.numpy").save_file
    writer = importlib.import_module("safetensors.torch").save_file
    version = importlib.import_module("safetensors").__version__
    for kind in (
        "float32",
        "float16",
        "bfloat16",
        "float64",
        "int8",
        "uint8",
        "int32",
        "int64",
        "float8_e4m3fn",
        "float8_e5m2",
    ):
        plain = tensors["emb"] * 8 + 8 if "int" in kind else tensors["emb"]
        matrix = plain.to(getattr(torch, kind))
        wanted = matrix.to(torch.float32).numpy()
        write = lambda p, m=matrix: writer({"embeddings": m, "ids": tensors["ids"]}, p / "x.safetensors")  # noqa: E731
        read = None if kind == "float8_e4m3fn" else INTS
        yield Cell("safetensors", f"safetensors {version}", "int64", kind, write, read, wanted)
    alone = lambda p: numpy_writer({"x": VECTORS}, p / "x.safetensors")  # noqa: E731
    yield Cell("safetensors", f"safetensors {version}", "none", "float32", alone, None)
    yield Cell(
        "safetensors",
        f"safetensors {version}",
        "--items rows",
        "float32",
        alone,
        list(range(N)),
        None,
        {"items": "rows"},
    )
    codes = lambda p: numpy_writer({"codes": np.ones((N, 4), np.int64), "ids": np.array(INTS)}, p / "x.safetensors")  # noqa: E731
    yield Cell("safetensors", f"safetensors {version}", "int64", "int64 called codes", codes, None)


def sentence_transformers_cells() -> Iterator[Cell]:
    """What `SentenceTransformer.encode` returns, written as its pages show: arrays, int8 and binary precisions."""
    name = "sentence-transformers' arrays"
    for kind, dtype in (("float32", np.float32), ("int8", np.int8), ("uint8 (ubinary)", np.uint8)):
        matrix = (VECTORS * 8 + 8).astype(dtype)
        save = lambda p, m=matrix: (np.save(p / "x.npy", m), p / "x.npy")[1]  # noqa: E731
        yield Cell(".npy", name, "none", kind, save, None)
        yield Cell(".npy", name, "--items rows", kind, save, list(range(N)), matrix, {"items": "rows"})
    rows = [{"id": key, "text": "a text", "embedding": row.tolist()} for key, row in zip(ASINS, VECTORS, strict=True)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    yield Cell("JSON lines", name, "str", "list", lambda p: (p / "x.jsonl").write_text(text), ASINS)


GROUPS = (
    pandas_cells, polars_cells, duckdb_cells, spark_cells, datasets_cells, numpy_cells, torch_cells,
    sentence_transformers_cells,
)  # fmt: skip


def outcome(cell: Cell, folder: Path) -> str:
    """Write a cell, read it, and say what became of it."""
    try:
        written = cell.write(folder)
    except Exception as error:  # noqa: BLE001 - a tool that does not write this is no fault of ours
        return f"not written: {type(error).__name__} {' '.join(str(error).split())[:60]}"
    items = None
    if isinstance(written, tuple):
        written, items = written
    path = written if isinstance(written, Path) else next(iter(sorted(folder.iterdir())))
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    handler.setLevel(logging.WARNING)
    logging.getLogger("semid_dataset").addHandler(handler)
    try:
        keys, matrix = read_vectors(path, **{"items": items, **(cell.options or {})})
    except SemidError as error:
        text = " ".join(str(error).replace(f"{folder}/", "").split())
        return f"refused: {text}" if cell.wanted is None else f"WRONG, refused: {text}"
    finally:
        logging.getLogger("semid_dataset").removeHandler(handler)
    found = keys if isinstance(keys, list) else keys.tolist()
    vectors = VECTORS if cell.matrix is None else np.asarray(cell.matrix, np.float32).reshape(N, -1)
    if found != cell.wanted or not np.array_equal(matrix, vectors):
        return f"WRONG: {found[:3]}"
    return f"converted: {said.getvalue().strip().replace(f'{folder}/', '')}" if said.getvalue() else "read"


def main() -> None:
    rows: list[tuple[Cell, str]] = []
    missing: list[str] = []
    for group in GROUPS:
        try:
            cells = list(group())
        except ImportError as error:
            missing.append(f"{group.__name__.removesuffix('_cells')}: {error}")
            continue
        for cell in cells:
            folder = Path(tempfile.mkdtemp(prefix="semid-inputs-"))
            rows.append((cell, outcome(cell, folder)))
            shutil.rmtree(folder)
    counts = {
        word: sum(said.startswith(word) for _, said in rows)
        for word in ("read", "converted", "refused", "WRONG", "not")
    }
    lines = [
        "# What people's tools write, and what is made of it",
        "",
        f"Made by `benchmarks/inputs.py` on Python {platform.python_version()}; every cell is written by the tool "
        "itself and read as `semid generate FILE` reads it. *Read*: items and vectors come out as they went in. "
        "*Converted*: they do, and a warning says what was done. *Refused*: an error names what was found.",
        "",
        f"{len(rows)} cells: {counts['read']} read, {counts['converted']} converted, {counts['refused']} refused, "
        f"{counts['WRONG']} wrong in silence, {counts['not']} that the tool itself does not write.",
        *(f"\nNot there: {one}." for one in missing),
        "",
        "| form | writer | ids | vectors | |",
        "|---|---|---|---|---|",
        *(
            f"| {c.form} | {c.writer} | {c.ids} | {c.vectors} | {' '.join(said.replace('|', '/').split())[:230]} |"
            for c, said in rows
        ),
        "",
    ]
    RESULTS.write_text("\n".join(lines), encoding="utf-8")
    wrong = [f"{c.form}, {c.writer}, {c.ids}, {c.vectors}: {said}" for c, said in rows if said.startswith("WRONG")]
    print(lines[4], *wrong, sep="\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
