"""
What the warm path costs: opening, look-ups and memory, against the ways semantic IDs are kept elsewhere.

    python benchmarks/warm.py                           all sizes: half an hour, 8 GB of memory; writes results/warm.md
    python benchmarks/warm.py --quick                   small sizes, a minute; prints only
    python benchmarks/warm.py --items 50000,1000000 --repeat 5 --output warm.md

Contenders: `json.load` (the original), orjson, a pickled dict, lmdb, sqlite. What is not installed is left out, and
the table says so. Every figure of opening and memory comes from a fresh process; contenders take turns within a
round, so that a busy minute falls on all of them, and figures are medians over the rounds.

Memory is read from /proc/self/smaps in two parts, because the kernel counts the page of a mapped file as private to
a process while no other maps it: "private" is everything outside of the data file's map, "mapped" what is resident
of that map. Mapped pages belong to the page cache: one copy serves all processes, and the kernel may drop it.
"""

import argparse
import gc
import importlib.util
import json
import os
import pickle
import platform
import sqlite3
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

SIZES = (50_000, 1_000_000, 5_000_000)
QUICK_SIZES = (5_000, 50_000)
LOOKUPS = 100_000  # or as many as there are items
ASKED = "asked.npy"
PROCESSES = 8
HEAP_LIMIT = 1_000_000  # items; beyond it eight processes with a dict each need more memory than most machines have
RESULTS = Path(__file__).parent / "results"
FIRST_ID = 20_000_000_000


# --- the ways to keep IDs ---------------------------------------------------------------------


class Way:
    """One way to keep semantic IDs in a file: write it, open it, ask it."""

    name = ""
    module = ""  # that must be installed
    file = ""
    on_heap = True  # each process holds its own copy

    def write(self, path: Path, keys: np.ndarray, codes: np.ndarray) -> None:
        raise NotImplementedError

    def load(self) -> None:
        """Import what opening needs; not part of the measurement."""

    def open(self, path: Path) -> Any:
        """Return something that `[spell(key)]` asks."""
        raise NotImplementedError

    def spell(self, key: int) -> Any:
        return key

    def ids(self, opened: Any) -> Iterable[Any]:
        """Pass over all IDs."""
        return opened.values()


class Table(Way):
    name, file, on_heap = "semid_dataset", "table.safetensors", False

    def write(self, path: Path, keys: np.ndarray, codes: np.ndarray) -> None:
        from semid_dataset.table.table import build_table_buffers

        path.write_bytes(b"".join(build_table_buffers(keys, codes)))

    def load(self) -> None:
        import semid_dataset.table.table  # noqa: F401

    def open(self, path: Path) -> Any:
        from semid_dataset.table.table import SemanticIdTable

        return SemanticIdTable.open(path)


class Json(Way):
    name, file = "json.load", "semantic_id_dict.json"

    def write(self, path: Path, keys: np.ndarray, codes: np.ndarray) -> None:
        from semid_dataset.format.id_json import json_chunks

        with path.open("wb") as file:
            file.writelines(json_chunks(keys, codes))

    def open(self, path: Path) -> Any:
        with path.open() as file:
            return json.load(file)

    def spell(self, key: int) -> Any:
        return str(key)


class Orjson(Json):
    name, module = "orjson", "orjson"

    def load(self) -> None:
        import orjson  # noqa: F401

    def open(self, path: Path) -> Any:
        import orjson

        return orjson.loads(path.read_bytes())


class Pickle(Way):
    name, file = "pickle of a dict", "ids.pkl"

    def write(self, path: Path, keys: np.ndarray, codes: np.ndarray) -> None:
        with path.open("wb") as file:
            pickle.dump(dict(zip(keys.tolist(), codes.tolist(), strict=True)), file, protocol=5)

    def open(self, path: Path) -> Any:
        with path.open("rb") as file:
            return pickle.load(file)


class Lmdb(Way):
    name, module, file, on_heap = "lmdb", "lmdb", "ids.lmdb", False

    def write(self, path: Path, keys: np.ndarray, codes: np.ndarray) -> None:
        import lmdb

        with lmdb.open(str(path), map_size=1 << 34, subdir=False) as store, store.begin(write=True) as transaction:
            pairs = zip(keys.tolist(), codes, strict=True)
            # Big-endian, so that lmdb's order is that of the keys.
            transaction.cursor().putmulti(((struct.pack(">q", key), row.tobytes()) for key, row in pairs), append=True)

    def load(self) -> None:
        import lmdb  # noqa: F401

    def open(self, path: Path) -> Any:
        import lmdb

        transaction = lmdb.open(str(path), subdir=False, readonly=True, lock=False).begin(buffers=False)
        return _Asking(lambda key: list(transaction.get(struct.pack(">q", key))), transaction)

    def ids(self, opened: Any) -> Iterable[Any]:
        return map(list, opened.handle.cursor().iternext(keys=False))


class Sqlite(Way):
    name, file, on_heap = "sqlite", "ids.sqlite", False

    def write(self, path: Path, keys: np.ndarray, codes: np.ndarray) -> None:
        path.unlink(missing_ok=True)
        with sqlite3.connect(path) as base:
            base.execute("create table ids (item integer primary key, codes blob)")
            rows = ((key, row.tobytes()) for key, row in zip(keys.tolist(), codes, strict=True))
            base.executemany("insert into ids values (?, ?)", rows)
        base.close()

    def open(self, path: Path) -> Any:
        base = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        base.execute(f"pragma mmap_size={1 << 34}")
        request = base.execute
        return _Asking(lambda key: list(request("select codes from ids where item = ?", (key,)).fetchone()[0]), base)

    def ids(self, opened: Any) -> Iterable[Any]:
        return (list(codes) for (codes,) in opened.handle.execute("select codes from ids"))


class _Asking:
    def __init__(self, request: Callable[[int], list[int]], handle: Any) -> None:
        self.request, self.handle = request, handle

    def __getitem__(self, key: int) -> list[int]:
        return self.request(key)


WAYS: dict[str, Way] = {way.name: way for way in (Table(), Json(), Orjson(), Pickle(), Lmdb(), Sqlite())}


def made_up(items: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids of eleven digits with gaps, ascending, and 4 x uint8 codes."""
    rng = np.random.default_rng(items)
    keys = np.unique(FIRST_ID + rng.integers(0, 50 * items, items + items // 10))
    keys = np.sort(rng.choice(keys, items, replace=False))
    return keys, rng.integers(0, 256, (items, 4), np.uint8)


# --- what a process holds ---------------------------------------------------------------------


def memory(path: Path) -> dict[str, float]:
    """MB of this process: private outside of the data file's map, resident of that map, its share of all (PSS)."""
    sizes = {"private": 0, "mapped": 0, "pss": 0}
    mapped = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, rest = line.partition(":")
        if " " in name:  # the head of a mapping: "7f08-7f09 r--s 00000000 fe:00 2279681  /path"
            mapped = line.endswith(str(path))
        elif name == "Pss":
            sizes["pss"] += int(rest.split()[0])
        elif mapped and name == "Rss":
            sizes["mapped"] += int(rest.split()[0])
        elif not mapped and name in {"Private_Clean", "Private_Dirty"}:
            sizes["private"] += int(rest.split()[0])
    return {name: kilobytes / 1024 for name, kilobytes in sizes.items()}


def forget(path: Path) -> None:
    """Take a file out of the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # only clean pages can be dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


# --- what is measured, each in a process of its own -------------------------------------------


def measure_open(way: Way, path: Path, items: int) -> dict[str, float]:
    """Open, ask for one ID, then for many; the memory after each."""
    keys = asked(path)
    way.load()
    gc.disable()
    empty = memory(path)["private"]
    start = time.perf_counter()
    opened = way.open(path)
    opened[way.spell(keys[0])]
    seconds = time.perf_counter() - start
    spelled = list(map(way.spell, keys))
    start = time.perf_counter()
    for key in spelled:
        opened[key]
    lookup = (time.perf_counter() - start) / len(keys)
    del spelled
    after = memory(path)
    return {"open": seconds, "lookup": lookup, **after, "private": after["private"], "grown": after["private"] - empty}


def measure_forked(way: Way, path: Path, items: int) -> dict[str, float]:
    """Open once, fork eight workers that pass over all; the private memory that adds to each."""
    way.load()
    opened = way.open(path) if way.name != "lmdb" else None  # lmdb must not be carried across a fork
    start = time.perf_counter()
    answers = []
    for _ in range(PROCESSES):
        reader, writer = os.pipe()
        if os.fork() == 0:
            mine = opened if opened is not None else way.open(path)
            memory(path)  # what measuring itself costs a worker
            before = memory(path)["private"]
            count = sum(1 for _ in way.ids(mine))
            after = memory(path)
            os.write(writer, json.dumps([after["private"] - before, after["pss"], count]).encode())
            os._exit(0)
        os.close(writer)
        answers.append(reader)
    rows = []
    for reader in answers:
        with os.fdopen(reader, "rb") as pipe:
            rows.append(json.loads(pipe.read()))
    for _ in range(PROCESSES):
        os.wait()
    assert {count for *_, count in rows} == {items}
    return {
        "added": max(row[0] for row in rows),
        "pss": sum(row[1] for row in rows),
        "wall": time.perf_counter() - start,
    }


def measure_ratios(way: Way, path: Path, items: int) -> dict[str, float]:
    """Look-ups of the table and of a dict in turn: 100,000 random ones, results dropped, garbage collector off."""
    keys, codes = made_up(items)
    table = way.open(path)
    numbers = dict(zip(keys.tolist(), codes.tolist(), strict=True))
    strings = {str(key): row for key, row in numbers.items()}
    array = np.array(asked(path))
    ints = array.tolist()
    texts = list(map(str, ints))
    gc.collect()
    gc.disable()

    def loop(mapping: Mapping[Any, Any], keys: list[Any]) -> float:
        start = time.perf_counter()
        for key in keys:
            mapping[key]
        return time.perf_counter() - start

    def comprehension() -> float:
        start = time.perf_counter()
        [numbers[key] for key in ints]
        return time.perf_counter() - start

    def vectorised(keys: Any) -> float:
        start = time.perf_counter()
        table.codes(keys)
        return time.perf_counter() - start

    pairs: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {
        "int": (lambda: loop(numbers, ints), lambda: loop(table, ints)),
        "str": (lambda: loop(strings, texts), lambda: loop(table, texts)),
        "array": (comprehension, lambda: vectorised(array)),
        "list": (comprehension, lambda: vectorised(ints)),
        "strings": (lambda: loop(strings, texts), lambda: vectorised(texts)),
    }
    figures = {}
    for name, (of_dict, of_table) in pairs.items():
        rounds = [(of_dict(), of_table()) for _ in range(7)]
        figures[f"{name} dict"] = statistics.median(first for first, _ in rounds) / len(ints)
        figures[f"{name} table"] = statistics.median(second for _, second in rounds) / len(ints)
    return figures


def measure_json(way: Way, path: Path, items: int) -> dict[str, float]:
    """Write `semantic_id_dict.json` from the arrays; the memory that takes."""
    from semid_dataset.format.id_json import json_chunks

    keys, codes = made_up(items)
    Path("/proc/self/clear_refs").write_text("5")  # from here on, the peak is counted anew
    before = status_megabytes("VmRSS")
    start = time.perf_counter()
    with path.with_name("stream.json").open("wb") as file:
        file.writelines(json_chunks(keys, codes))
    return {"seconds": time.perf_counter() - start, "extra": status_megabytes("VmHWM") - before}


def measure_json_dump(way: Way, path: Path, items: int) -> dict[str, float]:
    """`json.dump` of the dict, which is there already."""
    keys, codes = made_up(items)
    plain = dict(zip(map(str, keys.tolist()), codes.tolist(), strict=True))
    gc.disable()
    start = time.perf_counter()
    with path.with_name("dump.json").open("w") as file:
        json.dump(plain, file)
    return {"seconds": time.perf_counter() - start, "extra": 0.0}


def status_megabytes(name: str) -> float:
    """VmRSS or VmHWM, what is resident of this process or was at most."""
    return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0]) / 1024


def asked(path: Path) -> list[int]:
    """Keys that are there, in random order."""
    keys: list[int] = np.load(path.with_name(ASKED)).tolist()
    return keys


MEASUREMENTS = {
    "open": measure_open,
    "forked": measure_forked,
    "ratios": measure_ratios,
    "json": measure_json,
    "json.dump": measure_json_dump,
}


# --- running them -----------------------------------------------------------------------------


def start_child(measurement: str, way: Way, folder: Path, items: int) -> "subprocess.Popen[str]":
    command = [sys.executable, __file__, "--child", measurement, way.name, str(folder / way.file), str(items)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish(child: "subprocess.Popen[str]") -> dict[str, float]:
    output, _ = child.communicate()
    if child.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, child.args))} ended with {child.returncode}")  # type: ignore[arg-type]
    figures: dict[str, float] = json.loads(output)
    return figures


def in_turn(
    measurement: str, ways: Iterable[Way], folder: Path, items: int, repeat: int, *, cold: bool = False
) -> dict[str, dict[str, float]]:
    """Medians over `repeat` rounds in which every contender has one turn."""
    rounds: dict[str, list[dict[str, float]]] = {}
    for _ in range(repeat):
        for way in ways:
            if cold:
                forget(folder / way.file)
            rounds.setdefault(way.name, []).append(finish(start_child(measurement, way, folder, items)))
    return {
        name: {figure: statistics.median(row[figure] for row in rows) for figure in rows[0]}
        for name, rows in rounds.items()
    }


def together(ways: Iterable[Way], folder: Path, items: int) -> dict[str, dict[str, float]]:
    """Eight processes that start at once, each opening by itself: wall time until all have served, memory of all."""
    figures = {}
    for way in ways:
        start = time.perf_counter()
        children = [start_child("open", way, folder, items) for _ in range(PROCESSES)]
        rows = [finish(child) for child in children]
        figures[way.name] = {
            "wall": time.perf_counter() - start,
            "open": statistics.median(row["open"] for row in rows),
            "private": sum(row["private"] for row in rows),
            "mapped": max(row["mapped"] for row in rows),
        }
    return figures


def write_files(ways: Iterable[Way], folder: Path, items: int) -> dict[str, float]:
    """Write every contender's file; return bytes an item."""
    keys, codes = made_up(items)
    np.save(folder / ASKED, np.random.default_rng(1).choice(keys, min(LOOKUPS, items)))
    sizes = {}
    for way in ways:
        path = folder / way.file
        if not path.exists():
            way.write(path, keys, codes)
        sizes[way.name] = path.stat().st_blocks * 512 / items if way.name == "lmdb" else path.stat().st_size / items
    return sizes


def report(sizes: list[int], repeat: int, folder: Path, ways: list[Way], missing: list[str]) -> Iterator[str]:
    """Yield the lines of the Markdown report as they are measured."""
    yield "# The warm path\n"
    yield f"CPython {platform.python_version()}, numpy {np.__version__}, {os.cpu_count()} cores, {platform.platform()}."
    yield f"Medians of {repeat} rounds, contenders in turn. Load at the start: {os.getloadavg()[0]:.1f}."
    if missing:
        yield f"Left out, not installed: {', '.join(missing)}."
    opening: dict[int, float] = {}
    for items in sizes:
        place = folder / str(items)
        place.mkdir()
        bytes_per_item = write_files(ways, place, items)
        yield f"\n## {items:,} items\n"
        warm = in_turn("open", ways, place, items, repeat)
        cold = in_turn("open", ways, place, items, repeat, cold=True)
        yield f"One process: opening with the first look-up, then {min(LOOKUPS, items):,} random ones.\n"
        yield (
            "| | bytes an item | open, file in page cache | open, cold | against json.load (cached / cold) "
            "| look-up | private memory | mapped |"
        )
        yield "|---|---|---|---|---|---|---|---|"
        for way in ways:
            row, base = warm[way.name], warm["json.load"]
            faster = (
                f"{base['open'] / row['open']:,.1f} x / {cold['json.load']['open'] / cold[way.name]['open']:,.1f} x"
            )
            yield (
                f"| {way.name} | {bytes_per_item[way.name]:.1f} | {row['open'] * 1e3:,.2f} ms "
                f"| {cold[way.name]['open'] * 1e3:,.2f} ms | {faster} | {row['lookup'] * 1e9:,.0f} ns "
                f"| {row['private']:,.1f} MB (+{row['grown']:,.1f}) | {row['mapped']:,.1f} MB |"
            )
        opening[items] = warm[WAYS["semid_dataset"].name]["open"]

        many = [way for way in ways if not way.on_heap or items <= HEAP_LIMIT]
        at_once = together(many, place, items)
        forked = in_turn("forked", many, place, items, 1)
        yield f"\n{PROCESSES} processes at once, each opening by itself; then {PROCESSES} forked ones pass over all.\n"
        yield "| | all done after | open | private memory of all | mapped, once | forked: private added to each | PSS |"
        yield "|---|---|---|---|---|---|---|"
        for way in many:
            row, fork = at_once[way.name], forked[way.name]
            yield (
                f"| {way.name} | {row['wall']:,.2f} s | {row['open'] * 1e3:,.1f} ms | {row['private']:,.0f} MB "
                f"| {row['mapped']:,.1f} MB | {fork['added']:,.2f} MB | {fork['pss']:,.0f} MB |"
            )
        if len(many) < len(ways):
            yield f"\nNot run with {PROCESSES} processes at this size, for want of memory: " + ", ".join(
                way.name for way in ways if way not in many
            )

        ratios = in_turn("ratios", [WAYS["semid_dataset"]], place, items, max(1, repeat // 2))["semid_dataset"]
        yield "\nLook-ups of the table against a dict of the same IDs, in one process, in turn (nanoseconds an item).\n"
        yield "| | dict | table | ratio |"
        yield "|---|---|---|---|"
        labels = {
            "int": "`for key in keys: ids[key]`, ints",
            "str": "the same, decimal strings",
            "array": "`codes(array)` against a list comprehension",
            "list": "`codes(list of ints)` against the same",
            "strings": "`codes(list of strings)` against a loop by string",
        }
        for name, label in labels.items():
            first, second = ratios[f"{name} dict"] * 1e9, ratios[f"{name} table"] * 1e9
            yield f"| {label} | {first:,.0f} | {second:,.0f} | {second / first:.2f} |"

        written = in_turn("json", [WAYS["semid_dataset"]], place, items, repeat)["semid_dataset"]
        dumped = in_turn("json.dump", [WAYS["json.load"]], place, items, max(1, repeat // 2))["json.load"]
        yield (
            f"\nsemantic_id_dict.json: streamed in {written['seconds']:.2f} s with {written['extra']:.0f} MB of extra "
            f"memory, json.dump of a dict {dumped['seconds']:.2f} s: {written['seconds'] / dumped['seconds']:.2f} x."
        )
    if len(sizes) > 1:
        small, large = min(sizes), max(sizes)
        extra = opening[large] - opening[small]
        size = (folder / str(large) / WAYS["semid_dataset"].file).stat().st_size
        yield (
            f"\nOpening {large:,} items takes {extra * 1e3:,.2f} ms longer than {small:,}: "
            f"{size / extra / 1e9 if extra > 0 else float('inf'):.1f} GB/s, the checksum."
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Opening, look-ups and memory of the warm path.")
    parser.add_argument("--items", help="sizes, separated by commas", default=None)
    parser.add_argument("--quick", action="store_true", help="small sizes and one round")
    parser.add_argument("--repeat", type=int, default=None, help="rounds (5; with --quick 1)")
    parser.add_argument("--output", type=Path, default=None, help="where the Markdown goes (results/warm.md)")
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the files of the contenders go (a temporary one)"
    )
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        measurement, name, path, items = arguments.child
        print(json.dumps(MEASUREMENTS[measurement](WAYS[name], Path(path), int(items))))
        return
    sizes = [int(size) for size in arguments.items.split(",")] if arguments.items else None
    sizes = sizes or list(QUICK_SIZES if arguments.quick else SIZES)
    repeat = arguments.repeat or (1 if arguments.quick else 5)
    missing = [way.module for way in WAYS.values() if way.module and importlib.util.find_spec(way.module) is None]
    ways = [way for way in WAYS.values() if way.module not in missing or not way.module]
    target = arguments.output or (Path(os.devnull) if arguments.quick else RESULTS / "warm.md")
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder, target.open("w") as output:
        for line in report(sizes, repeat, Path(folder), ways, missing):
            print(line, flush=True)
            print(line, file=output, flush=True)


if __name__ == "__main__":
    main()
