"""
Measure our quantizers beside the public ones, on the same vectors.

Every method runs in a process of its own for every data set and round, one after the other; the order
rotates from round to round, and ratios are taken within a round, so that a busy minute hurts whoever
it hits once and not one method always. Each process:

1. imports its libraries and fits 1,024 items once: neither is timed, for libraries load parts of themselves late;
2. fits all items and encodes them (ours: and makes the IDs unique). This is timed, gives the peak of memory
   and every figure but the one below;
3. fits 90 % of the items anew and encodes the others, which gives the held-out error.

    python benchmarks/quantizers.py                  # everything, some hours with the slow ones
    python benchmarks/quantizers.py --quick          # does it run? small sets, one round, nothing for the record
    python benchmarks/quantizers.py --sets gauss32 --methods rqkmeans faiss1 faiss5 --rounds 5
    python benchmarks/quantizers.py --report         # tables and plot anew, from the figures that are there

Writes results/quantizers.json (all figures of all rounds), .md and .svg. A run replaces the figures of the
(set, method) pairs it measures and keeps the others.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

RESULTS = Path(__file__).resolve().parent / "results"
LEVELS, CODES = 4, 256  # what every method gets
EPOCHS, BATCH, LEARNING_RATE, COMMITMENT = 20, 1024, 1e-3, 0.25  # the RQ-VAE's defaults
THREADS = 2
WARM_UP_ITEMS = 1024
HELD_OUT = 0.1  # share of the items
QUERIES, NEIGHBOURS = 2000, 10  # neighbour fidelity: items asked for, neighbours of each

Vectors = NDArray[np.float32]  # (n, dim)
Codes = NDArray[Any]  # (n, LEVELS), whole numbers


class Fitted(NamedTuple):
    """What a method leaves behind after seeing vectors."""

    encode: Callable[[Vectors], Codes]
    decode: Callable[[Codes], Vectors]
    unique: Callable[[Vectors, Codes], Codes] | None = None  # of what was fitted; None: the method has no such step
    notes: dict[str, Any] | None = None


Fit = Callable[[Vectors, int], Fitted]  # vectors, seed


# --- The methods. Each function imports what it needs and returns its `fit`. ---------------------------------------


def ours(algorithm: str) -> Fit:
    """Return this package with its defaults."""
    from semid_dataset.codec.train import train
    from semid_dataset.codec.unique import resolve_collisions
    from semid_dataset.config import SemanticIdConfig

    def fit(vectors: Vectors, seed: int) -> Fitted:
        trained = train(vectors, SemanticIdConfig(algorithm=algorithm, seed=seed, device="cpu"))
        quantizer = trained.quantizer

        def unique(of: Vectors, codes: Codes) -> Codes:
            return resolve_collisions(quantizer, of, codes).codes

        notes = {"epochs": trained.stopped_at, "validation": trained.held_out}
        return Fitted(quantizer.encode, quantizer.decode, unique, notes)

    return fit


def faiss_residual(beam: int | None, *, refine: bool = False) -> Fit:
    """Return faiss's ResidualQuantizer; without `beam` and `refine` exactly as it is constructed."""
    import faiss

    faiss.omp_set_num_threads(THREADS)

    def fit(vectors: Vectors, seed: int) -> Fitted:
        quantizer = faiss.ResidualQuantizer(vectors.shape[1], LEVELS, CODES.bit_length() - 1)
        if beam is not None:
            quantizer.max_beam_size = beam
        if refine:
            quantizer.train_type |= faiss.ResidualQuantizer.Train_refine_codebook
        quantizer.cp.seed += seed
        quantizer.train(vectors)
        return Fitted(quantizer.compute_codes, quantizer.decode, notes={"beam": quantizer.max_beam_size})

    return fit


def faiss_lsq() -> Fit:
    """Return faiss's LocalSearchQuantizer (LSQ++) as it is constructed."""
    import faiss

    faiss.omp_set_num_threads(THREADS)

    def fit(vectors: Vectors, seed: int) -> Fitted:
        quantizer = faiss.LocalSearchQuantizer(vectors.shape[1], LEVELS, CODES.bit_length() - 1)
        quantizer.random_seed += seed
        quantizer.train(vectors)
        return Fitted(quantizer.compute_codes, quantizer.decode)

    return fit


def semantic_id_rqkmeans() -> Fit:
    """Return semantic-id's RQKMeans as it is constructed (scikit-learn, best of ten starts a level)."""
    from semantic_id import RQKMeans

    def fit(vectors: Vectors, seed: int) -> Fitted:
        model = RQKMeans(n_levels=LEVELS, n_clusters=CODES, random_state=seed)
        model.fit(vectors)
        return Fitted(model.encode, model.decode)

    return fit


def semantic_id_rqvae(*, kmeans_init: bool) -> Fit:
    """Return semantic-id's RQVAE with its own defaults: 512-256-128-64, lr 1e-4, batch 2048, 100 epochs."""
    import torch
    from semantic_id import RQVAE

    def fit(vectors: Vectors, seed: int) -> Fitted:
        torch.manual_seed(seed)
        model = RQVAE(in_dim=vectors.shape[1], num_emb_list=[CODES] * LEVELS, kmeans_init=kmeans_init)
        model.fit(vectors)
        return Fitted(model.encode, model.decode)

    return fit


def autoencoder(dim: int) -> tuple[Any, Any]:
    """Return an encoder and a decoder: one hidden layer of 4 x dim, at most 512; the latent is as wide as the input."""
    from torch import nn

    hidden = min(4 * dim, 512)

    def make() -> Any:
        return nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))

    return make(), make()


def vector_quantize_pytorch(*, with_autoencoder: bool) -> Fit:
    """
    Return vector-quantize-pytorch's ResidualVQ, with the three settings its README recommends against dead codes.

    In an autoencoder it is trained with the epochs, batches and learning rate of ours. Alone it has nothing to
    descend on: its codebooks follow moving averages for as many epochs.
    """
    import torch
    from torch import nn
    from torch.nn.functional import mse_loss
    from vector_quantize_pytorch import ResidualVQ

    def fit(vectors: Vectors, seed: int) -> Fitted:
        torch.manual_seed(seed)
        dim = vectors.shape[1]
        encoder, decoder = autoencoder(dim) if with_autoencoder else (nn.Identity(), nn.Identity())
        quantizer = ResidualVQ(
            dim=dim,
            num_quantizers=LEVELS,
            codebook_size=CODES,
            kmeans_init=True,
            kmeans_iters=10,
            threshold_ema_dead_code=2,
        )
        weights = [*encoder.parameters(), *decoder.parameters()]
        optimizer = torch.optim.Adam(weights, lr=LEARNING_RATE) if weights else None
        points = torch.from_numpy(vectors)
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(points)).split(BATCH):
                batch = points[rows]
                quantized, _, commitment = quantizer(encoder(batch)[None])
                if optimizer is not None:
                    loss = mse_loss(decoder(quantized[0]), batch) + commitment.sum()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
        quantizer.eval()

        @torch.no_grad()
        def encode(of: Vectors) -> Codes:
            parts = [quantizer(encoder(part)[None])[1][0] for part in torch.from_numpy(of).split(8192)]
            return torch.cat(parts).numpy()

        @torch.no_grad()
        def decode(codes: Codes) -> Vectors:
            parts = torch.from_numpy(codes).split(8192)
            return torch.cat([decoder(quantizer.get_output_from_indices(part[None])[0]) for part in parts]).numpy()

        return Fitted(encode, decode)

    return fit


def plain_rqvae() -> Fit:
    """
    Return the RQ-VAE everybody writes first: random weights, straight-through, no care for dead codes.

    Codebooks start uniform in +-1/codes, as most public implementations have it; from N(0, 1) it ends
    with one code for everything.
    """
    import torch
    from torch.nn.functional import mse_loss

    def fit(vectors: Vectors, seed: int) -> Fitted:
        torch.manual_seed(seed)
        dim = vectors.shape[1]
        encoder, decoder = autoencoder(dim)
        books = torch.nn.Parameter(torch.empty(LEVELS, CODES, dim).uniform_(-1 / CODES, 1 / CODES))
        optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters(), books], lr=LEARNING_RATE)

        def quantize(latents: Any) -> tuple[Any, Any, Any]:
            rest, total, loss, codes = latents, torch.zeros_like(latents), 0.0, []
            for book in books:
                with torch.no_grad():
                    code = torch.addmm(book.square().sum(1), rest, book.T, alpha=-2).argmin(1)
                word = book[code]
                loss = loss + mse_loss(word, rest.detach()) + COMMITMENT * mse_loss(rest, word.detach())
                total = total + word
                rest = rest - word.detach()
                codes.append(code)
            return latents + (total - latents).detach(), loss, torch.stack(codes, 1)

        points = torch.from_numpy(vectors)
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(points)).split(BATCH):
                batch = points[rows]
                quantized, loss, _ = quantize(encoder(batch))
                loss = loss + mse_loss(decoder(quantized), batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

        @torch.no_grad()
        def encode(of: Vectors) -> Codes:
            return torch.cat([quantize(encoder(part))[2] for part in torch.from_numpy(of).split(8192)]).numpy()

        @torch.no_grad()
        def decode(codes: Codes) -> Vectors:
            parts = torch.from_numpy(codes).split(8192)
            words = [sum(books[level][part[:, level]] for level in range(LEVELS)) for part in parts]
            return torch.cat([decoder(part) for part in words]).numpy()

        return Fitted(encode, decode)

    return fit


@dataclass(frozen=True)
class Method:
    """
    A row of the table.

    Attributes:
        label: what the table calls it.
        load: imports and returns its `fit`.
        package: what must be installed.
        family: who made it; the plot's colour.
        slow: takes minutes; measured in fewer rounds.
    """

    label: str
    load: Callable[[], Fit]
    package: str
    family: str
    slow: bool = False


SEMID, FAISS, VQP, SEMANTIC_ID = "semid_dataset", "faiss-cpu", "vector-quantize-pytorch", "semantic-id"
METHODS = {
    "rqvae": Method('**ours, "rqvae"** (default)', lambda: ours("rqvae"), SEMID, "ours"),
    "rqkmeans": Method('**ours, "rqkmeans"**', lambda: ours("rqkmeans"), SEMID, "ours"),
    "faiss1": Method("faiss ResidualQuantizer, beam 1", lambda: faiss_residual(1), FAISS, "faiss"),
    "faiss5": Method("faiss ResidualQuantizer (default: beam 5)", lambda: faiss_residual(None), FAISS, "faiss"),
    "faiss-refined": Method(
        "faiss ResidualQuantizer, beam 5, refined codebooks", lambda: faiss_residual(5, refine=True), FAISS, "faiss"
    ),
    "lsq": Method("faiss LocalSearchQuantizer (LSQ++)", faiss_lsq, FAISS, "faiss", slow=True),
    "vqp": Method(
        "vector-quantize-pytorch ResidualVQ alone",
        lambda: vector_quantize_pytorch(with_autoencoder=False),
        VQP,
        VQP,
        slow=True,
    ),
    "vqp-mlp": Method(
        "vector-quantize-pytorch ResidualVQ in an autoencoder",
        lambda: vector_quantize_pytorch(with_autoencoder=True),
        VQP,
        VQP,
        slow=True,
    ),
    "si-rqkmeans": Method("semantic-id RQKMeans", semantic_id_rqkmeans, SEMANTIC_ID, SEMANTIC_ID, slow=True),
    "si-rqvae": Method(
        "semantic-id RQVAE (default)", lambda: semantic_id_rqvae(kmeans_init=False), SEMANTIC_ID, SEMANTIC_ID, slow=True
    ),
    "si-rqvae-kmeans": Method(
        "semantic-id RQVAE, kmeans_init",
        lambda: semantic_id_rqvae(kmeans_init=True),
        SEMANTIC_ID,
        SEMANTIC_ID,
        slow=True,
    ),
    "plain": Method("RQ-VAE from random weights", plain_rqvae, "torch", "plain RQ-VAE", slow=True),
}
BEAMS = ("faiss1", "faiss5")  # what ratios are against

# --- The data. ------------------------------------------------------------------------------------------------------


def gaussian_mixture(items: int, dim: int) -> Vectors:
    """
    Return a mixture of Gaussians of Gaussians, seeded.

    64 centres from N(0, 1), 32 more around each at 0.32 standard deviations, items around those at 0.22, spread over
    the 2,048 at random. The last two are chosen such that faiss's greedy search errs by 0.041 on 50,000 x 32.
    """
    random = np.random.default_rng(0)
    top = random.standard_normal((64, 1, dim), dtype=np.float32)
    leaves = (top + np.float32(0.32) * random.standard_normal((64, 32, dim), dtype=np.float32)).reshape(-1, dim)
    where = random.integers(len(leaves), size=items)
    return leaves[where] + np.float32(0.22) * random.standard_normal((items, dim), dtype=np.float32)


def beauty() -> Vectors | None:
    """Return the sentence embeddings of 12,101 product titles, 384 dims; None if they are not here."""
    folder = os.environ.get("SEMID_REAL_DATA")
    parts = sorted(Path(folder, "data", "beauty").glob("emb_minilm384_f16.part*.npy")) if folder else []
    return np.concatenate([np.load(part) for part in parts]).astype(np.float32) if parts else None


def beauty32() -> Vectors | None:
    """Return the 32 principal components of `beauty`."""
    vectors = beauty()
    if vectors is None:
        return None
    centred = vectors - vectors.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:32]
    return np.ascontiguousarray(centred @ axes.T, dtype=np.float32)


@dataclass(frozen=True)
class DataSet:
    """Vectors, and how a heading calls them; `quick` items of them make a trial run."""

    label: str
    make: Callable[[], Vectors | None]
    quick: int


SETS = {
    "gauss32": DataSet("Gaussian mixture, 50,000 x 32", lambda: gaussian_mixture(50_000, 32), 4000),
    "gauss128": DataSet("Gaussian mixture, 200,000 x 128", lambda: gaussian_mixture(200_000, 128), 6000),
    "beauty32": DataSet("Beauty titles, first 32 principal components, 12,101 x 32", beauty32, 3000),
    "beauty384": DataSet("Beauty titles, MiniLM, 12,101 x 384", beauty, 3000),
}

# --- One process: one method, one set, one round. -------------------------------------------------------------------


def nearest(vectors: Vectors) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return QUERIES sampled items and the NEIGHBOURS nearest of each among all items, itself excluded."""
    asked = np.random.default_rng(1).permutation(len(vectors))[:QUERIES]
    squares = np.square(vectors).sum(1)
    found = []
    for begin in range(0, len(asked), 250):
        some = asked[begin : begin + 250]
        distances = squares - 2 * (vectors[some] @ vectors.T)
        distances[np.arange(len(some)), some] = np.inf
        found.append(np.argpartition(distances, NEIGHBOURS, axis=1)[:, :NEIGHBOURS])
    return asked, np.concatenate(found)


def relative_mse(vectors: Vectors, decoded: Vectors, mean: Vectors) -> float:
    """Return the squared error over the squared distance to `mean`, that of all items."""
    error = np.square(vectors - decoded).sum(dtype=np.float64)
    return float(error / np.square(vectors - mean).sum(dtype=np.float64))


def group_sizes(codes: Codes) -> NDArray[np.int64]:
    """Return how many items each distinct row of `codes` has."""
    number = np.ravel_multi_index(tuple(codes.T.astype(np.int64)), (CODES,) * codes.shape[1])
    return np.unique(number, return_counts=True)[1]


def shared(codes: Codes) -> float:
    """Return the share of items that are not alone with their code tuple."""
    groups = group_sizes(codes)
    return float(groups[groups > 1].sum() / len(codes))


def perplexity(codes: Codes) -> list[float]:
    """Return e^entropy of every level's codes."""
    figures = []
    for level in codes.T:
        shares = np.bincount(level.astype(np.int64), minlength=CODES) / len(level)
        shares = shares[shares > 0]
        figures.append(float(np.exp(-(shares * np.log(shares)).sum())))
    return figures


def neighbour_fidelity(codes: Codes, asked: NDArray[np.int64], near: NDArray[np.int64]) -> list[float]:
    """Return the share of (item, neighbour) pairs whose first 1, 2, 3 codes are the same."""
    same = np.logical_and.accumulate(codes[asked][:, None, :3] == codes[near][:, :, :3], axis=2)
    return [float(share) for share in same.mean((0, 1))]


def random_fidelity(codes: Codes) -> list[float]:
    """Return the same of random pairs; exactly, by counting."""
    n = len(codes)
    sizes = [group_sizes(codes[:, :depth]).astype(np.float64) for depth in (1, 2, 3)]
    return [float((size * (size - 1)).sum() / (n * (n - 1))) for size in sizes]


def peak_rss() -> float:
    """Return the most memory this process has held, MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss remembers what the parent held before it started us
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)


def measure(method: str, folder: Path, seed: int) -> dict[str, Any]:
    """Return the figures of one method on the vectors in `folder`; see the module's docstring."""
    fit = METHODS[method].load()
    vectors = np.load(folder / "vectors.npy")
    fit(vectors[:WARM_UP_ITEMS].copy(), seed)

    rss_before = peak_rss()
    cpu, wall = time.process_time(), time.perf_counter()
    fitted = fit(vectors, seed)
    raw = fitted.encode(vectors)
    fitted_at = time.perf_counter()
    final = raw if fitted.unique is None else fitted.unique(vectors, raw)
    ended, cpu_ended = time.perf_counter(), time.process_time()
    rss = peak_rss()

    mean = vectors.mean(0, dtype=np.float64).astype(np.float32)
    neighbours = np.load(folder / "neighbours.npz")
    figures = {
        "seconds": ended - wall,
        "seconds_unique": ended - fitted_at,
        "cpu_seconds": cpu_ended - cpu,
        "rss": rss,
        "rss_grown": rss - rss_before,
        "mse": relative_mse(vectors, fitted.decode(final), mean),
        "mse_raw": relative_mse(vectors, fitted.decode(raw), mean),
        "shared": shared(final),
        "shared_raw": shared(raw),
        "perplexity": perplexity(final),
        "perplexity_raw": perplexity(raw),
        "codes_used": [len(np.unique(level)) for level in final.T],
        "near": neighbour_fidelity(final, neighbours["asked"], neighbours["near"]),
        "random": random_fidelity(final),
        "notes": fitted.notes or {},
    }
    del fitted
    order = np.random.default_rng(2).permutation(len(vectors))
    rest, unseen = np.split(order, [round(len(order) * (1 - HELD_OUT))])
    fitted = fit(np.ascontiguousarray(vectors[rest]), seed)
    others = np.ascontiguousarray(vectors[unseen])
    figures["mse_held_out"] = relative_mse(others, fitted.decode(fitted.encode(others)), mean)
    return figures


# --- The parent: who runs when. -------------------------------------------------------------------------------------


def child_environment() -> dict[str, str]:
    """
    Return the environment of a measuring process: two threads whatever library counts them, no tuned BLAS.

    How OpenMP's threads wait is left to the library, as users have it: they spin. With anything else running on the
    machine methods that use OpenMP then take several times as long: measure on a quiet one.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OPENBLAS_", "SEMID_"))}
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
        environment[name] = str(THREADS)
    return environment


def run_child(method: str, folder: Path, seed: int, limit: float) -> dict[str, Any]:
    """Measure in a process of its own; return the figures, or {"failed": why}."""
    out = folder / "figures.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--child", method, str(folder), str(seed)]
    try:
        done = subprocess.run(
            command, env=child_environment(), timeout=limit, capture_output=True, text=True, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {limit:,.0f} s"}
    if done.returncode or not out.exists():
        print(done.stderr, file=sys.stderr)
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return {"failed": last[:200]}
    return json.loads(out.read_text())


def installed(package: str) -> str | None:
    """Return the version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """Return the commit that is measured, marked if the package differs from it."""
    command = ["git", "-C", str(RESULTS.parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def machine() -> dict[str, Any]:
    """Return what the figures depend on besides the code."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    packages = sorted({method.package for method in METHODS.values()} | {"torch", "numpy", "scikit-learn"})
    return {
        "cpu": model,
        "cpus": os.cpu_count(),
        "threads": THREADS,
        "python": platform.python_version(),
        "packages": {package: installed(package) for package in packages},
        "date": time.strftime("%Y-%m-%d"),
    }


def schedule(methods: Sequence[str], rounds: int, slow_rounds: int) -> Iterable[tuple[int, str]]:
    """Yield (round, method); each round starts with another method."""
    for number in range(rounds):
        now = [method for method in methods if number < slow_rounds or not METHODS[method].slow]
        lease = number * max(1, len(now) // rounds) % max(1, len(now))
        for method in now[lease:] + now[:lease]:
            yield number, method


def run_set(name: str, options: argparse.Namespace) -> dict[str, Any] | None:
    """Measure one set; return its description and {method: [figures of every round]}."""
    vectors = SETS[name].make()
    if vectors is None:
        print(f"{name}: skipped, its data are not here (set SEMID_REAL_DATA)", flush=True)
        return None
    if options.quick:
        vectors = vectors[: SETS[name].quick]
    runs: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        np.save(folder / "vectors.npy", vectors)
        asked, near = nearest(vectors)
        np.savez(folder / "neighbours.npz", asked=asked, near=near)
        session, measured = time.strftime("%Y-%m-%dT%H:%M:%S"), commit()
        for number, method in schedule(options.methods, options.rounds, options.slow_rounds):
            if installed(METHODS[method].package) is None:
                figures = {"failed": f"{METHODS[method].package} is not installed"}
            elif method in runs and "failed" in runs[method][-1]:
                continue
            else:
                figures = run_child(method, folder, number, options.limit)
            runs.setdefault(method, []).append(
                {"round": number, "session": session, "commit": measured, "load": os.getloadavg()[0], **figures}
            )
            said = figures.get("failed") or f"{figures['seconds']:8.2f} s  rel MSE {figures['mse']:.4f}"
            print(f"{name}  round {number + 1}  {method:16} {said}", flush=True)
    digest = hashlib.sha256(vectors.tobytes()).hexdigest()
    return {"shape": list(vectors.shape), "sha256": digest, "runs": runs}


# --- Tables and plot. -----------------------------------------------------------------------------------------------


def good(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rounds that came to an end."""
    return [run for run in runs if "failed" not in run]


def median(runs: Sequence[dict[str, Any]], key: str) -> float:
    """Return the median of a figure over rounds; of lists their smallest."""
    return statistics.median(min(run[key]) if isinstance(run[key], list) else run[key] for run in runs)


def medians(runs: Sequence[dict[str, Any]], key: str) -> list[float]:
    """Return the medians of a list of figures over rounds."""
    return [statistics.median(column) for column in zip(*(run[key] for run in runs), strict=True)]


def paired(runs: dict[str, list[dict[str, Any]]], method: str, others: Sequence[str], key: str) -> float | None:
    """Return the median, over common rounds, of a figure over the least of `others`."""
    ratios = []
    for run in good(runs.get(method, [])):
        same = [
            other[key]
            for name in others
            for other in good(runs.get(name, []))
            if (other["session"], other["round"]) == (run["session"], run["round"])
        ]
        if len(same) == len(others):
            ratios.append(run[key] / min(same))
    return statistics.median(ratios) if ratios else None


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return Markdown lines; the first row is the head, columns but the first are figures."""
    head, *body = rows
    rule = ["---", *["---:"] * (len(head) - 1)]
    return ["| " + " | ".join(row) + " |" for row in (head, rule, *body)]


def percent(share: float) -> str:
    """Return a share as per cent; zero only if it is zero."""
    return "0" if share == 0 else f"{100 * share:.1f} %" if share >= 0.001 else f"{100 * share:.1g} %"


def main_row(label: str, runs: list[dict[str, Any]]) -> list[str]:
    """Return one method's row of the first table."""
    done = good(runs)
    if not done:
        return [label, f"**{runs[-1]['failed']}**", *["–"] * 9]
    used = statistics.median(sum(run["codes_used"]) for run in done)
    final, raw = median(done, "mse"), median(done, "mse_raw")
    error = f"{final:.4f}" if f"{final:.4f}" == f"{raw:.4f}" else f"{final:.4f} (raw {raw:.4f})"
    return [
        label,
        f"{median(done, 'seconds'):.1f} ({median(done, 'cpu_seconds'):.1f})",
        error,
        f"{median(done, 'mse_held_out'):.4f}",
        percent(median(done, "shared_raw")),
        percent(median(done, "shared")),
        f"{median(done, 'perplexity'):.0f}",
        f"{used:,.0f}",
        " / ".join(f"{100 * share:.1f}" for share in medians(done, "near")),
        " / ".join(f"{100 * share:.2g}" for share in medians(done, "random")),
        f"{median(done, 'rss'):,.0f} (+{median(done, 'rss_grown'):,.0f})",
    ]


def ratio_row(label: str, runs: dict[str, list[dict[str, Any]]], method: str) -> list[str]:
    """Return one method's row of the second table."""
    ratios = [
        paired(runs, method, BEAMS, "mse"),
        paired(runs, method, BEAMS, "mse_raw"),
        paired(runs, method, BEAMS, "mse_held_out"),
        paired(runs, method, ["faiss1"], "seconds"),
        paired(runs, method, ["faiss5"], "seconds"),
        paired(runs, method, ["faiss1"], "cpu_seconds"),
    ]
    return [label, *("–" if ratio is None else f"{ratio:.2f}" for ratio in ratios), str(len(good(runs[method])))]


def busy(least: float, most: float, cpus: int) -> str:
    """Return how far seconds can be believed: a method alone on the machine makes a load of about THREADS."""
    said = f"Load average after each process: {least:.1f} to {most:.1f}."
    if most <= max(cpus, THREADS) + 0.5:
        return said
    return f"{said} **Others were computing on these {cpus} CPUs: trust ratios and CPU seconds, not seconds.**"


def report(results: dict[str, Any]) -> str:
    """Return the page of all sets."""
    host = results["machine"]
    measured = {
        run["commit"] for result in results["sets"].values() for some in result["runs"].values() for run in some
    }
    commits = ", ".join(sorted(str(one) for one in measured))
    versions = ", ".join(f"{name} {version or 'not installed'}" for name, version in host["packages"].items())
    lines = [
        "# Quantizers compared",
        "",
        "Written by `benchmarks/quantizers.py`; [its README](../README.md) says how each method is set and measured.",
        f"{LEVELS} levels of {CODES} codes. {host['cpu']}, {host['cpus']} CPUs, {host['threads']} threads each; "
        f"Python {host['python']}, {versions}; commit {commits}; {host['date']}. Medians over rounds.",
        "",
        "![Error against time](quantizers.svg)",
    ]
    for name, result in results["sets"].items():
        runs = result["runs"]
        order = [method for method in METHODS if method in runs]
        head = [
            "method",
            "seconds (CPU)",
            "rel MSE",
            "held out",
            "share an ID, raw",
            "share an ID, final",
            "perplexity, worst level",
        ]
        head += [
            f"codes used of {LEVELS * CODES:,}",
            "neighbours share 1 / 2 / 3 codes, %",
            "random pairs, %",
            "peak RSS, MiB",
        ]
        loads = [run["load"] for some in runs.values() for run in some]
        lines += ["", f"## {SETS[name].label}", ""]
        shape = " x ".join(f"{size:,}" for size in result["shape"])
        lines += [
            f"{shape}, sha256 `{result['sha256'][:16]}…`. {busy(min(loads), max(loads), host['cpus'])}",
            "",
        ]
        lines += table([head, *(main_row(METHODS[method].label, runs[method]) for method in order)])
        head = ["ratio, within a round", "error / better faiss beam", "raw error / better faiss beam"]
        head += ["held out / better faiss beam", "time / beam 1", "time / beam 5", "CPU time / beam 1", "rounds"]
        lines += ["", *table([head, *(ratio_row(METHODS[method].label, runs, method) for method in order)])]
    return "\n".join(lines) + "\n"


COLOURS = {"ours": "#c1121f", "faiss": "#1d4e89", VQP: "#2a9134", SEMANTIC_ID: "#7a4ea3", "plain RQ-VAE": "#6c757d"}
SHORT = {
    "rqvae": "rqvae",
    "rqkmeans": "rqkmeans",
    "faiss1": "beam 1",
    "faiss5": "beam 5",
    "faiss-refined": "beam 5, refined",
    "lsq": "LSQ++",
    "vqp": "ResidualVQ",
    "vqp-mlp": "ResidualVQ + MLP",
    "si-rqkmeans": "RQKMeans",
    "si-rqvae": "RQVAE",
    "si-rqvae-kmeans": "RQVAE, kmeans_init",
    "plain": "random weights",
}


def drawing(salt: str, size: int) -> Any | None:
    """Return matplotlib's pyplot, set to draw the same SVG every time with text of a size; None if it is missing."""
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        print("matplotlib is not installed: no plot", flush=True)
        return None
    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": salt, "font.size": size, "axes.spines.top": False, "axes.spines.right": False})
    from matplotlib import pyplot

    return pyplot


def plot(results: dict[str, Any], path: Path) -> None:
    """Draw error against time, a panel for every set."""
    pyplot = drawing("quantizers", 9)
    if pyplot is None:
        return
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    names = list(results["sets"])
    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(5.6 * columns, 3.9 * rows), squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    for axis, name in zip(axes.flat, names, strict=False):
        axis.set(xscale="log", yscale="log", title=SETS[name].label, xlabel="seconds", ylabel="relative MSE, final IDs")
        runs = results["sets"][name]["runs"]
        for key, method in METHODS.items():
            done = good(runs.get(key, []))
            if not done:
                continue
            family = method.family
            at = median(done, "seconds"), median(done, "mse")
            unique = median(done, "shared") == 0
            colour = COLOURS[family]
            axis.plot(
                *at, marker="*" if family == "ours" else "o", color=colour, markersize=11 if family == "ours" else 6
            )
            if not unique:
                axis.plot(*at, marker="o", color="white", markersize=2.5)
            axis.annotate(SHORT[key], at, xytext=(6, 3), textcoords="offset points", color=colour, fontsize=7.5)
        axis.margins(0.14)
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_locator(LogLocator(subs=(1, 2, 5)))
            side.set_major_formatter(plain)
            side.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.25, which="major", linewidth=0.6)
    handles = [
        pyplot.Line2D([], [], linestyle="", marker="*" if family == "ours" else "o", color=colour, label=family)
        for family, colour in COLOURS.items()
    ]
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False)
    figure.suptitle("Lower and further left is better. A hollow mark: some items share their ID.", fontsize=9)
    figure.tight_layout(rect=(0, 0.045, 1, 0.99))
    figure.savefig(path, metadata={"Date": None})


def write(results: dict[str, Any], folder: Path) -> None:
    """Write figures, page and plot."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "quantizers.json").write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    (folder / "quantizers.md").write_text(report(results))
    plot(results, folder / "quantizers.svg")


def merged(old: dict[str, Any], name: str, new: dict[str, Any]) -> dict[str, Any]:
    """Return the runs of a set with those of `new` in place of older ones of the same methods."""
    before = old.get("sets", {}).get(name)
    if before is None or before["sha256"] != new["sha256"]:
        return new
    return {**new, "runs": {**before["runs"], **new["runs"]}}


def main() -> None:
    """Run, or measure as a child of oneself."""
    if sys.argv[1:2] == ["--child"]:
        method, folder, seed = sys.argv[2:]
        figures = measure(method, Path(folder), int(seed))
        Path(folder, "figures.json").write_text(json.dumps(figures))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the fast methods (default 3)")
    parser.add_argument("--slow-rounds", type=int, default=1, help="rounds of the slow ones (default 1)")
    parser.add_argument(
        "--limit", type=float, default=7200, help="seconds after which a method is stopped (default 7200)"
    )
    parser.add_argument("--quick", action="store_true", help="small sets, one round, written to a temporary folder")
    parser.add_argument("--report", action="store_true", help="measure nothing, write tables and plot anew")
    parser.add_argument("--out", type=Path, help="folder for the results (default: results/ beside this script)")
    options = parser.parse_args()
    if options.quick:
        options.rounds = options.slow_rounds = 1
    folder = options.out or (Path(tempfile.mkdtemp(prefix="quantizers-")) if options.quick else RESULTS)
    figures = folder / "quantizers.json"
    results: dict[str, Any] = json.loads(figures.read_text()) if figures.exists() else {}
    if not options.report:
        for name in options.sets:
            if new := run_set(name, options):
                results = {"machine": machine(), "sets": {**results.get("sets", {}), name: merged(results, name, new)}}
                results["sets"] = {key: results["sets"][key] for key in SETS if key in results["sets"]}
                write(results, folder)
    elif results:
        results["sets"] = {key: results["sets"][key] for key in SETS if key in results["sets"]}
        write(results, folder)
    missing = sorted({METHODS[m].package for m in options.methods if installed(METHODS[m].package) is None})
    if missing:
        print(f"NOT MEASURED, not installed: {', '.join(missing)}. See benchmarks/requirements.txt.", flush=True)
    if results:
        print((folder / "quantizers.md").read_text())
        print(f"Written to {folder}", flush=True)


if __name__ == "__main__":
    main()
