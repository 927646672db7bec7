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
    yield Cell("CSV", name, "int64", "a column a number", lambda p: made.to_csv(p / "x.csv"), INTS)
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


def odd_pandas_cells() -> Iterator[Cell]:
    pd = importlib.import_module("pandas")
    name = f"pandas {pd.__version__}"

    def frame(ids: Any, **more: Any) -> Any:
        return pd.DataFrame({"item_id": ids, **more, "embedding": list(VECTORS)})

    shops = frame(INTS, shop=list("aabbcc")).set_index(["shop", "item_id"])
    made = {
        "MultiIndex": (shops, INTS),
        "MultiIndex without names": (shops.rename_axis([None, None]), None),
        "category of ints": (frame(pd.Categorical(INTS)), INTS),
        "Int64, one missing": (frame(pd.array([1, None, 3, 4, 5, 6], "Int64")), None),
        "period": (frame(pd.period_range("2026-01", periods=N, freq="M")), None),
        "interval": (frame(pd.interval_range(0, N)), None),
        "timedelta": (frame(pd.to_timedelta(range(N), unit="s")), None),
        "float32, whole, beyond 2^24": (frame(np.array(SMALL, np.float32)), None),
        "blanks around": (frame(["a ", "b", "c", "d", "e", "f"]), ["a ", "b", "c", "d", "e", "f"]),
        "007 beside 7": (frame(["007", "7", "8", "9", "1", "2"]), ["007", "7", "8", "9", "1", "2"]),
        "two of them as 1 and 1.0": (frame(["1", "1.0", "2", "3", "4", "5"]), None),
        "one twice": (frame([1, 1, 2, 3, 4, 5]), None),
        "an empty text": (frame(["", "b", "c", "d", "e", "f"]), None),
    }
    for kind, (table, wanted) in made.items():
        yield Cell("parquet", name, kind, "list<float>", lambda p, t=table: t.to_parquet(p / "x.parquet"), wanted)
    odd = {
        "one None": [*list(VECTORS[:5]), None],
        "of two widths": [*list(VECTORS[:5]), VECTORS[0][:3]],
        "texts of numbers": [[str(number) for number in row] for row in VECTORS],
        "bytes": [row.tobytes() for row in VECTORS],
        "one NaN": [*list(VECTORS[:5]), np.full(DIM, np.nan)],
    }
    for kind, rows in odd.items():
        table = pd.DataFrame({"item_id": INTS, "embedding": rows})
        yield Cell("parquet", name, "int64", kind, lambda p, t=table: t.to_parquet(p / "x.parquet"), None)
    for column, wanted in (("shop", INTS), ("item_id", None)):
        table = frame(INTS, shop=list("aabbcc"))

        def parts(p: Path, t: Any = table, column: str = column) -> Path:
            t.to_parquet(p / "x", partition_cols=[column])
            return p / "x"

        yield Cell(f"parquet, partitioned by {column}", name, "int64", "list<float>", parts, wanted)
    for orient in ("columns", "split", "table", "index", "values"):
        text = lambda p, o=orient: frame(INTS).to_json(p / "x.json", orient=o)  # noqa: E731
        yield Cell(f"JSON, {orient}", name, "int64", "list", text, None)
    pretty = lambda p: frame(INTS).to_json(p / "x.json", orient="records", indent=2)  # noqa: E731
    yield Cell("JSON, one document, indented", name, "int64", "list", pretty, None)
    yield Cell("ORC", name, "int64", "list<float>", lambda p: frame(INTS).to_orc(p / "x.orc"), None)
    series = frame(INTS).set_index("item_id")["embedding"]
    yield Cell("pickle", name, "int64", "Series", lambda p: series.to_pickle(p / "x.pkl"), None)


def odd_arrow_cells() -> Iterator[Cell]:
    pa = importlib.import_module("pyarrow")
    duckdb, pl = importlib.import_module("duckdb"), importlib.import_module("polars")
    name = f"pyarrow {pa.__version__}"
    floats = pa.array(VECTORS.tolist(), pa.list_(pa.float32()))
    uuids = [uuid.UUID(int=k) for k in range(N)]
    raw = pa.array([one.bytes for one in uuids], pa.binary(16))

    def write(p: Path, ids: Any, vectors: Any) -> None:
        table = pa.table({"item_id": ids, "embedding": vectors})
        with pa.ipc.new_file(str(p / "x.arrow"), table.schema) as writer:
            writer.write_table(table)

    extension = pa.ExtensionArray.from_storage
    ids = {
        "uuid": (extension(pa.uuid(), raw), [str(one) for one in uuids]),
        "fixed_size_binary": (raw, None),
        "json": (extension(pa.json_(), pa.array([f'"a{k}"' for k in range(N)])), None),
        "bool8": (extension(pa.bool8(), pa.array([0, 1] * 3, pa.int8())), None),
        "dictionary of int8 and string": (pa.array(ASINS).dictionary_encode(), ASINS),
        "run-end encoded": (pa.RunEndEncodedArray.from_arrays(pa.array(range(1, N + 1), pa.int32()), INTS), INTS),
        "string_view": (pa.array(ASINS, pa.string_view()), ASINS),
        "decimal256": (pa.array([decimal.Decimal(k) for k in SMALL], pa.decimal256(60, 0)), SMALL),
        "struct": (pa.array([{"id": k} for k in INTS]), None),
        "bytes that are no UTF-8": (pa.array([b"\xff%d" % k for k in range(N)]), None),
        "halffloat": (pa.array(np.arange(N, dtype=np.float16)), list(range(N))),
    }
    for kind, (column, wanted) in ids.items():
        yield Cell("Arrow", name, kind, "list<float>", lambda p, c=column: write(p, c, floats), wanted)
    decimals = [[decimal.Decimal(str(number)) for number in row] for row in VECTORS.tolist()]
    vectors = {
        "list_view": (pa.array(VECTORS.tolist(), pa.list_view(pa.float32())), INTS),
        "large_list": (pa.array(VECTORS.tolist(), pa.large_list(pa.float32())), INTS),
        "list of decimals": (pa.array(decimals), INTS),
        "fixed_shape_tensor": (pa.FixedShapeTensorArray.from_numpy_ndarray(VECTORS), INTS),
        "dictionary of lists": (pa.DictionaryArray.from_arrays(pa.array(range(N)), floats), INTS),
        "fixed size, one null": (pa.array([*VECTORS.tolist()[:5], None], pa.list_(pa.float32(), DIM)), None),
        "null": (pa.nulls(N), None),
        "list of nulls": (pa.array([[None] * DIM] * N), None),
        "list of bool": (pa.array([[True] * DIM] * N), None),
        "struct": (pa.array([{"a": 1.0}] * N), None),
    }
    for kind, (column, wanted) in vectors.items():
        yield Cell("Arrow", name, "int64", kind, lambda p, c=column: write(p, INTS, c), wanted)

    def twice(p: Path) -> None:
        sink, table = io.BytesIO(), pa.table({"item_id": INTS, "embedding": floats})
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        (p / "x.arrow").write_bytes(2 * sink.getvalue())

    yield Cell("Arrow, two streams in one file", name, "int64", "list<float>", twice, None)
    select = "SELECT {} AS item_id, [0.5::FLOAT, k, 1, 2]::FLOAT[] AS embedding FROM range(6) t(k)"
    rows = np.array([[0.5, k, 1, 2] for k in range(N)])
    duck = {
        "UUID": ("printf('00000000-0000-0000-0000-00000000000%d', k)::UUID", [str(one) for one in uuids]),
        "HUGEINT beyond 2^64": ("18446744073709551617::HUGEINT + k", None),
        "BLOB": ("('a' || k)::BLOB", [f"a{k}" for k in range(N)]),
        "REAL": ("k::REAL", list(range(N))),
    }
    for kind, (how, wanted) in duck.items():
        sql = select.format(how)
        copy = lambda p, s=sql: duckdb.sql(f"COPY ({s}) TO '{p}/x.parquet' (FORMAT parquet)")  # noqa: E731
        yield Cell("parquet", f"DuckDB {duckdb.__version__}", kind, "FLOAT[]", copy, wanted, rows)
    sql = "SELECT k AS item_id, [0.5, k + 0.25, 1, 2] AS embedding FROM range(6) t(k)"
    copy = lambda p: duckdb.sql(f"COPY ({sql}) TO '{p}/x.parquet' (FORMAT parquet)")  # noqa: E731
    exact = np.array([[0.5, k + 0.25, 1, 2] for k in range(N)])
    yield Cell("parquet", f"DuckDB {duckdb.__version__}", "BIGINT", "DECIMAL[]", copy, list(range(N)), exact)
    array = lambda p: duckdb.sql(f"COPY ({sql}) TO '{p}/x.json' (FORMAT json, ARRAY true)")  # noqa: E731
    yield Cell("JSON, one document", f"DuckDB {duckdb.__version__}", "BIGINT", "DECIMAL[]", array, None)
    polars = {
        "Enum": (pl.Series(ASINS, dtype=pl.Enum(ASINS)), ASINS),
        "Int128": (pl.Series(INTS, dtype=pl.Int128), None),
        "Time": (pl.Series([datetime.time(1, k) for k in range(N)]), None),
        "Null": (pl.Series([None] * N), None),
        "negative": (pl.Series([-k for k in range(N)]), [-k for k in range(N)]),
    }
    for kind, (series, wanted) in polars.items():
        frame = pl.DataFrame({"item_id": series, "embedding": VECTORS.tolist()})
        save = lambda p, f=frame: f.write_parquet(p / "x.parquet")  # noqa: E731
        yield Cell("parquet", f"polars {pl.__version__}", kind, "list<double>", save, wanted)


def odd_file_cells() -> Iterator[Cell]:
    """Files and folders that are more, or something else, than they look like."""
    torch, datasets = importlib.import_module("torch"), importlib.import_module("datasets")
    pq, pa = importlib.import_module("pyarrow.parquet"), importlib.import_module("pyarrow")
    name = f"numpy {np.__version__}"

    def npy_twice(p: Path) -> Path:
        with (p / "x.npy").open("wb") as file:
            np.save(file, VECTORS[:3])
            np.save(file, VECTORS[3:])
        return p / "x.npy"

    yield Cell(".npy, np.save twice", name, "--items rows", "float32", npy_twice, None, None, {"items": "rows"})
    odd = {
        "structured": np.array([(1, (1.0, 2.0))], [("id", "<i8"), ("emb", "<f4", (2,))]),
        "0-d": np.float32(3), "object": np.array([None], object), "complex": VECTORS.astype(complex),
        "bool": VECTORS > 0,
    }  # fmt: skip
    for kind, array in odd.items():
        save = lambda p, a=array: np.save(p / "x.npy", a)  # noqa: E731
        yield Cell(".npy", name, "--items rows", kind, save, None, None, {"items": "rows"})

    def pickle_twice(p: Path) -> None:
        halves = [dict(zip(INTS[a : a + 3], VECTORS[a : a + 3], strict=True)) for a in (0, 3)]
        (p / "x.pkl").write_bytes(b"".join(map(pickle.dumps, halves)))

    yield Cell("pickle, dumped twice", "Python", "int", "float32", pickle_twice, None)
    for kind, shape in (("()", ()), ("(1, items)", (1, N))):
        save = lambda p, s=shape: np.savez(p / "x.npz", item_id=np.ones(s, int), x=VECTORS)  # noqa: E731
        yield Cell(".npz", name, f"of shape {kind}", "float32", save, None)
    old = lambda p: torch.save({"e": torch.ones(2)}, p / "x.pt", _use_new_zipfile_serialization=False)  # noqa: E731
    yield Cell(".pt, of before 1.6", f"torch {torch.__version__}", "none", "tensor", old, None)
    table = pa.table({"item_id": INTS, "embedding": pa.array(VECTORS.tolist(), pa.list_(pa.float32()))})
    folders: dict[str, tuple[list[str], list[Any] | None]] = {
        "with _delta_log": (["_delta_log/0.json"], None), "with .hoodie": ([".hoodie/x"], None),
        "with Iceberg's metadata": (["metadata/v1.metadata.json"], None), "of a Zarr store": ([".zarray"], None),
        "with _temporary": (["_temporary/x.parquet"], INTS), "with more/": (["more/x.parquet"], INTS),
        "with x.parquet.tmp": (["x.parquet.tmp"], INTS), "with README.md": (["README.md"], INTS),
        "with an empty part": (["y.parquet"], None),
    }  # fmt: skip
    for kind, (beside, wanted) in folders.items():

        def make(p: Path, beside: list[str] = beside) -> Path:
            (p / "x").mkdir()
            pq.write_table(table, p / "x" / "part-0.parquet")
            for one in beside:
                (p / "x" / one).parent.mkdir(exist_ok=True)
                (p / "x" / one).touch()
            return p / "x"

        yield Cell(f"a folder {kind}", f"pyarrow {pa.__version__}", "int64", "list<float>", make, wanted)
    data = datasets.Dataset.from_dict({"item_id": INTS, "embedding": VECTORS.tolist()})
    both = datasets.DatasetDict(train=data, test=data)
    hf = f"HF datasets {datasets.__version__}"
    yield Cell(
        "save_to_disk, DatasetDict", hf, "int64", "list", lambda p: (both.save_to_disk(str(p / "x")), p / "x")[1], None
    )

    def mapped(p: Path) -> Path:
        data.save_to_disk(str(p / "x"))
        datasets.load_from_disk(str(p / "x")).map(lambda row: {"embedding": [0.0, *row["embedding"][1:]]})
        return p / "x"

    yield Cell("save_to_disk, with the cache of a map", hf, "int64", "list", mapped, INTS)
    rows = [{"item_id": key, "embedding": row} for key, row in zip(INTS, VECTORS.tolist(), strict=True)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    texts: dict[str, tuple[bytes, list[Any] | None]] = {
        "UTF-16": (text.encode("utf-16"), None), "UTF-16 without a mark": (text.encode("utf-16-le"), None),
        "UTF-32": (text.encode("utf-32"), None),
        "CRLF and BOM": (b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(), INTS),
        "CR alone": (text.replace("\n", "\r").encode(), None),
        "zero bytes at the end": (text.encode() + bytes(99), None),
        "a key twice": (b'{"item_id": 1, "item_id": 2, "embedding": [1, 2]}\n', None),
        "item_id, then asin": (text.encode() + b'{"asin": "B", "embedding": [1, 2, 3, 4]}\n', None),
        "numbers as texts": (text.replace("-1.0", '"-1.0"').encode(), None),
        "ids beyond 2^64": (
            "".join(json.dumps({"id": 2**64 + k, "emb": r}) + "\n" for k, r in enumerate(VECTORS.tolist())).encode(),
            [str(2**64 + k) for k in range(N)],
        ),
        "cut off": (text.encode()[:-9], None),
        "[Mongo's] $oid": (text.replace(str(INTS[0]), '{"$oid": "a"}').encode(), None),
    }  # fmt: skip
    for kind, (content, wanted) in texts.items():
        put = lambda p, c=content: (p / "x.jsonl").write_bytes(c)  # noqa: E731
        yield Cell("JSON lines", "by hand", kind, "list", put, wanted)


GROUPS = (
    pandas_cells, polars_cells, duckdb_cells, spark_cells, datasets_cells, numpy_cells, torch_cells,
    sentence_transformers_cells, odd_pandas_cells, odd_arrow_cells, odd_file_cells,
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
