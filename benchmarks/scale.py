"""
How time, memory and bytes grow with the number of items, and what that means for more of them than can be tried here.

Every size is a process of its own, cold to published, with the memory limit given. Figures go to results/scale.json
after every run; results/scale.md has the table, a fitted model, and what it says about sizes that were not run.

`--engine ray --workers 1 2` measures something else: how long the encode stage takes with so many workers of a local
Ray, alternating. Its figures go to results/scale_ray.json.
"""

import argparse
import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
RESULTS = HERE / "results"
CHUNK = 1 << 23  # numbers that are made at once
STAGES = ("reading", "training", "encoding", "uniqueness", "measuring")
MERGED = 37  # bytes an item while parts are merged: from 5 to 20 million the peak grows by so much
LARGER = [("the larger TencentGR release, one feature", 17_490_000, 3_584), ("a billion items", 10**9, 32)]


def vectors(rows: int, dim: int, begin: int) -> np.ndarray:
    """64 centres, 32 more around each, items around those 2,048; any range of rows alone."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(64, 1, dim)) + 0.32 * rng.normal(size=(64, 32, dim))
    centres = centres.reshape(-1, dim).astype(np.float32)
    rng = np.random.default_rng([1, begin])
    return centres[rng.integers(len(centres), size=rows)] + 0.22 * rng.standard_normal((rows, dim), dtype=np.float32)


def write(data_dir: Path, form: str, items: int, dim: int) -> int:
    """Write feature 81 of a data directory and return its bytes."""
    folder = data_dir / "creative_emb"
    folder.mkdir(parents=True)
    chunk = CHUNK // dim
    if form == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        folder /= f"emb_81_{dim}_parquet"
        folder.mkdir()
        writer = None
        for begin in range(0, items, chunk):
            rows = min(chunk, items - begin)
            flat = pa.array(vectors(rows, dim, begin).reshape(-1))
            lists = pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * dim), flat)
            table = pa.table({"anonymous_cid": 20_000_000_000 + begin + np.arange(rows), "emb": lists})
            writer = writer or pq.ParquetWriter(
                folder / "part-0.parquet", table.schema, compression="none", use_dictionary=False
            )
            writer.write_table(table)
        if writer is not None:
            writer.close()
    elif form == "pickle":
        import pickle

        with (folder / f"emb_81_{dim}.pkl").open("wb") as file:
            held = {}
            for begin in range(0, items, chunk):
                block = vectors(min(chunk, items - begin), dim, begin)
                first = 20_000_000_000 + begin
                held.update(zip(range(first, first + len(block)), block, strict=True))
            pickle.dump(held, file, protocol=4)
    else:
        import orjson

        folder /= f"emb_81_{dim}"
        folder.mkdir()
        for number, begin in enumerate(range(0, items, 8192)):
            block = vectors(min(8192, items - begin), dim, begin).astype(np.float64)
            with (folder / f"part-{number:05d}").open("wb") as file:
                for row, vector in enumerate(block):
                    item = 20_000_000_000 + begin + row
                    file.write(orjson.dumps({"anonymous_cid": item, "emb": vector.tolist()}) + b"\n")
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def family(pid: int) -> list[int]:
    """Return a process and all below it."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, task.read_text().split())
            except OSError:
                continue
    return found


def proportional(pid: int) -> int:
    """Return the bytes of memory of a process, of shared pages its share."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def run(items: int, dim: int, form: str, limit: str, where: Path) -> dict[str, Any]:
    """Make a data directory, generate its IDs in a process of its own, and return what that took."""
    data_dir = Path(tempfile.mkdtemp(dir=where))
    try:
        size = write(data_dir, form, items, dim)
        load = os.getloadavg()[0]
        command = [sys.executable, __file__, "--child", str(data_dir), "--limit", limit]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        most = [0, 0]
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.5):
                pids = family(child.pid)
                most[0] = max(most[0], sum(map(proportional, pids)))
                work = data_dir / ".semantic_ids" / "v1" / "jobs"
                try:
                    most[1] = max(most[1], sum(path.stat().st_size for path in work.rglob("*.part")))
                except OSError:  # it is being removed
                    continue

        watcher = threading.Thread(target=watch)
        watcher.start()
        answer = child.communicate()[0]
        over.set()
        watcher.join()
        if child.returncode:
            raise RuntimeError(f"{items} x {dim} {form} ended with {child.returncode}")
        done: dict[str, Any] = json.loads(answer)
        table = next((data_dir / ".semantic_ids" / "v1").glob("*/0.safetensors")).stat().st_size
        return {
            "items": items,
            "dim": dim,
            "form": form,
            "limit": limit,
            "load": load,
            "input": size,
            "table": table,
            "work": most[1],
            "memory_together": most[0],
            **done,
        }
    finally:
        shutil.rmtree(data_dir)


def cpu() -> float:
    """Return the CPU seconds of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def child(data_dir: Path, limit: str) -> None:
    """Generate, and print what it took."""
    from semid_dataset import SemanticIdConfig, generate_semantic_ids
    from semid_dataset.config import parse_bytes
    from semid_dataset.progress import Heartbeat

    stages: dict[str, float] = {}

    def note(heartbeat: Heartbeat, stage: str) -> None:
        stages[stage] = stages.get(stage, 0.0) + cpu() - sum(stages.values())

    Heartbeat.end = note  # type: ignore[method-assign]
    started = time.perf_counter()
    table = generate_semantic_ids(data_dir, config=SemanticIdConfig(memory_limit=parse_bytes("--limit", limit)))
    seconds = time.perf_counter() - started
    quality = table.quality
    print(
        json.dumps(
            {
                "seconds": seconds,
                "cpu": cpu(),
                "stages": table.info["provenance"]["stages"],
                "cpu_stages": stages,
                "memory": int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024,
                "streamed": "sampled" in quality,
                "sampled": quality.get("sampled", len(table)),
                "relative_mse": quality["relative_mse"],
                "moved": quality["moved"],
                "collision_rate_raw": quality["collision_rate_raw"],
                "shared": quality["shared"],
                "duplicates": quality["exact_duplicates"],
            }
        )
    )


def encode_on_ray(workers: list[int], rounds: int, items: int, dim: int, where: Path) -> dict[str, Any]:
    """
    Time the encode stage on a local Ray of so many workers, alternating, with codebooks and workers ready.

    Within the time: tasks handed out, parts read, encoded and written. Outside: the start of Ray, and of workers, which
    have imported torch and encoded half of the parts before.
    """
    import ray

    from semid_dataset import SemanticIdConfig
    from semid_dataset.build.pipeline import fit_codebooks
    from semid_dataset.build.streaming import run as scale
    from semid_dataset.build.streaming.executors import run_on_ray
    from semid_dataset.cache.cache import Cache
    from semid_dataset.environment import Environment
    from semid_dataset.inputs.discover import find_sources
    from semid_dataset.progress import Progress

    data_dir = Path(tempfile.mkdtemp(dir=where))
    try:
        write(data_dir, "parquet", items, dim)
        (source,) = find_sources(data_dir, ["81"])
        root = Cache.of(Environment.read({}), data_dir).writable()
        config = SemanticIdConfig(num_epochs=0)
        # So small a limit makes parts of 8 MB, enough for all workers to end together.
        job = scale.open_job(root, "ray", [source], config, limit=128 << 20, sampled=100_000)
        sample = job.read()
        job.trained(lambda: fit_codebooks(sample, config, Progress()))
        job = scale.open_job(root, "ray", [source], config, limit=128 << 20, sampled=100_000, engine=run_on_ray)
        parts = len(job.plan.parts)
        runs = []
        for number in workers * rounds:
            ray.init(num_cpus=number, include_dashboard=False, log_to_driver=False, object_store_memory=80 << 20)
            for shard in ((0, 2), (0, 1)):  # warm, and timed
                for path in job.folder.glob("encode-*.part"):
                    path.unlink()
                load, started = os.getloadavg()[0], time.perf_counter()
                job.encode(scale.NEW, shard)
                seconds = time.perf_counter() - started
            ray.shutdown()
            runs.append({"workers": number, "seconds": seconds, "load": load})
            print(json.dumps(runs[-1]), flush=True)
        medians = {
            number: statistics.median(run["seconds"] for run in runs if run["workers"] == number) for number in workers
        }
        return {"items": items, "dim": dim, "parts": parts, "cores": os.cpu_count(), "runs": runs, "medians": medians}
    finally:
        shutil.rmtree(data_dir)


def exponent(runs: list[dict[str, Any]], value: str) -> float | None:
    """Return the slope of log(value) over log(items)."""
    if len(runs) < 2:
        return None
    return float(np.polyfit([math.log(run["items"]) for run in runs], [math.log(run[value]) for run in runs], 1)[0])


def report(runs: list[dict[str, Any]]) -> str:
    """Return results/scale.md."""
    lines = [
        "# Scale",
        "",
        "From `benchmarks/scale.py`: cold to published, every size in a process of its own. Memory is the peak of the",
        "main process (VmHWM) / of all together, shared pages counted once. Work is",
        "what lay in the work folder at most.",
        "",
        f"{os.cpu_count()} cores. Load is that of other programs when a run began: where it is high, seconds are an",
        "upper bound, and CPU seconds, of all processes together, are the figure to go by.",
        "",
        "| items | dims | form | limit | input | load | seconds | CPU s "
        "| reading, training, encoding, uniqueness, measuring | memory | work | table "
        "| rel MSE | raw collisions | moved | shared |",
        "|" + "---|" * 16,
    ]
    for done in sorted(runs, key=lambda done: (done["form"], done["dim"], done["items"])):
        stages = ", ".join(f"{done['stages'].get(stage, 0.0):.1f}" for stage in STAGES)
        lines.append(
            f"| {done['items']:,}{'' if done['streamed'] else ' (in memory)'} | {done['dim']} | {done['form']} "
            f"| {done['limit']} | {done['input'] / 1e6:,.0f} MB | {done['load']:.1f} "
            f"| {done['seconds']:.1f} | {done['cpu']:.1f} | {stages} "
            f"| {done['memory'] / 1e6:,.0f} / {done['memory_together'] / 1e6:,.0f} MB "
            f"| {done['work'] / 1e6:,.0f} MB | {done['table'] / 1e6:,.0f} MB | {done['relative_mse']:.4f} "
            f"| {done['collision_rate_raw']:.2%} | {done['moved']:,} | {done['shared']:,} |"
        )
    lines += ["", *model(runs)]
    return "\n".join(lines) + "\n"


def ray_report(found: dict[str, Any]) -> str:
    """Return the section of results/scale.md about Ray."""
    medians = {int(number): seconds for number, seconds in found["medians"].items()}
    least = min(medians)
    lines = [
        "",
        "## Ray",
        "",
        f"The encode stage of {found['items']:,} x {found['dim']} from parquet, {found['parts']} parts, on a local Ray "
        f"of {found['cores']} cores,",
        "measured alternately with codebooks there and workers warm (`--engine ray`).",
        "",
        f"| workers | seconds, each run | median | times {least} |",
        "|---|---|---|---|",
    ]
    for number, median in sorted(medians.items()):
        each = ", ".join(f"{run['seconds']:.1f}" for run in found["runs"] if run["workers"] == number)
        lines.append(f"| {number} | {each} | {median:.1f} | {medians[least] / median:.2f} |")
    return "\n".join(lines) + "\n"


def model(runs: list[dict[str, Any]]) -> list[str]:
    """Return the fitted cost model, and what it says about sizes that were not run."""
    narrow = [run for run in runs if run["form"] == "parquet" and run["dim"] == 32]
    linear = [run for run in narrow if run["items"] >= 100_000]
    if len(linear) < 2:
        return ["The model needs two sizes of 100,000 items and more."]
    per_item = {}
    last = max(linear, key=lambda run: run["items"])
    for stage in STAGES:
        per_item[stage] = last["stages"].get(stage, 0.0) / last["items"]
    slope, slope_cpu = exponent(linear, "seconds"), exponent(linear, "cpu")
    moved = last["moved"] / last["items"]
    work = sum(per_item[stage] for stage in STAGES if stage != "training")
    lines = [
        "## Model",
        "",
        f"From 100,000 items on, CPU seconds grow as items^{slope_cpu:.2f}, seconds as items^{slope:.2f} (32 dims,",
        f"parquet, up to {last['items']:,} items in {last['cpu']:.0f} CPU seconds). Training is the same for all sizes",
        f"beyond the sample: {last['stages']['training']:.0f} s. At {last['items']:,} items a million takes, in "
        "seconds:",
        "",
        "| " + " | ".join(stage for stage in STAGES if stage != "training") + " | together |",
        "|" + "---|" * len(STAGES),
        "| "
        + " | ".join(f"{1e6 * per_item[stage]:.2f}" for stage in STAGES if stage != "training")
        + f" | {1e6 * work:.2f} |",
        "",
    ]
    each = {}  # of every width the run with the most items
    for run_ in sorted(runs, key=lambda run: run["items"]):
        if run_["form"] == "parquet" and run_["streamed"] and "cpu_stages" in run_:
            each[run_["dim"]] = run_
    stages = [stage for stage in STAGES if stage != "training"]
    lines += [
        "By dims, CPU seconds a million items of parquet, and those of training on the sample. What measuring takes",
        "whatever the number of items is in it, so that it is too much where those measured are few.",
        "",
        "| items | dims | " + " | ".join(stages) + " | training on | takes | had to yield |",
        "|" + "---|" * (len(stages) + 5),
    ]
    for dim, run_ in sorted(each.items()):
        took = " | ".join(f"{1e6 * run_['cpu_stages'].get(stage, 0.0) / run_['items']:.1f}" for stage in stages)
        lines.append(
            f"| {run_['items']:,} | {dim:,} | {took} | {run_['sampled']:,} | {run_['cpu_stages']['training']:.0f} s "
            f"| {run_['moved'] / run_['items']:.0%} |"
        )
    lines += [
        "",
        "Not run, but calculated from the above. Reading and encoding are shared by cores and machines, uniqueness and "
        "measuring are one process's:",
        "",
    ]
    for name, items, dim in LARGER:
        said = f"CPU time not reckoned, since no run of {dim:,} dims has that of its stages"
        if dim in each:
            took = {
                stage: each[dim]["cpu_stages"].get(stage, 0.0) / each[dim]["items"] * items / 3600 for stage in stages
            }
            said = (
                f"CPU hours: reading {took['reading']:.1f}, encoding {took['encoding']:.1f}; uniqueness "
                f"{took['uniqueness']:.1f}, measuring {took['measuring']:.1f}"
            )
        lines.append(
            f"- {name}, {items:,} x {dim:,} ({items * dim * 4 / 1e9:,.0f} GB as float32): "
            f"{said}; "
            f"{items * MERGED / 1e9:.1f} GB of memory while parts are merged ({MERGED} bytes an item); "
            f"a table of {items * 13 / 1e9:.1f} GB; "
            f"{items * (24 + 4 * dim * moved) / 1e9:,.0f} GB of work folder where {moved:.0%} have to "
            f"yield, as of {last['items']:,} x 32."
        )
    return lines


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e4, 1e5, 1e6, 5e6, 1e7])
    parser.add_argument("--dims", type=int, nargs="+", default=[32])
    parser.add_argument("--forms", nargs="+", default=["parquet"], choices=["parquet", "pickle", "jsonl"])
    parser.add_argument("--limit", default="1G", help="memory limit")
    parser.add_argument("--where", type=Path, default=Path(tempfile.gettempdir()), help="folder for the data sets")
    parser.add_argument("--report", action="store_true", help="write the tables anew from the figures that are there")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the figures")
    parser.add_argument("--engine", choices=["ray"], help="time the encode stage on a local Ray instead")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="of Ray")
    parser.add_argument("--rounds", type=int, default=2, help="how often each number of workers is timed")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        child(given.child, given.limit)
        return
    given.results.mkdir(exist_ok=True)
    figures, on_ray = given.results / "scale.json", given.results / "scale_ray.json"
    runs: list[dict[str, Any]] = json.loads(figures.read_text()) if figures.exists() else []
    if given.engine == "ray":
        found = encode_on_ray(given.workers, given.rounds, int(given.sizes[0]), given.dims[0], given.where)
        on_ray.write_text(json.dumps(found, indent=1))
    else:
        for form in given.forms if not given.report else ():
            for dim in given.dims:
                for size in given.sizes:
                    done = run(int(size), dim, form, given.limit, given.where)
                    print(json.dumps(done), flush=True)
                    same = ("items", "dim", "form", "limit")
                    runs = [old for old in runs if any(old[name] != done[name] for name in same)] + [done]
                    figures.write_text(json.dumps(runs, indent=1))
    (given.results / "scale.md").write_text(
        report(runs) + (ray_report(json.loads(on_ray.read_text())) if on_ray.exists() else "")
    )


if __name__ == "__main__":
    main()
