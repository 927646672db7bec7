"""
Measure whether semantic IDs help a recommender, on real sequences, beside other people's IDs and two controls.

Leave one out: of every user's sequence the last item tests, the one before it validates, the rest trains. A tenth of
the items is new: withheld from the recommender's training and from that of the codebooks, then encoded by the frozen
quantizer. Every item competes in every ranking, but for those that the user has had. Two recommenders:

sasrec      a causal transformer points at the next item. An item is the sum of a vector of its own (which a new item
            lacks) and of one vector for each code of its ID.
generative  an encoder-decoder writes the next item's ID code by code; a beam search over the trie of all IDs ranks.

Everything that is drawn (new items, IDs, weights, batches) depends on the seed alone; sets are compared seed by seed.

    python benchmarks/downstream.py --quick                # does it run? generated data, nothing for the record
    python benchmarks/downstream.py                        # everything that is not there yet: hours on one core
    python benchmarks/downstream.py --model sasrec --sets none random rqvae --seeds 0 1 2 3 4
    python benchmarks/downstream.py --data FOLDER --vectors vectors.title.npy --out OUT      # other data than Beauty
    python benchmarks/downstream.py --check --sets rqvae --seeds 0      # the same run again: are the figures the same?
    python benchmarks/downstream.py --report               # tables and plot anew, from the figures that are there

Writes results/downstream.json after every run, .md and .svg. Runs that are there are not repeated.
"""

import argparse
import dataclasses
import hashlib
import itertools
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from quantizers import commit, drawing, machine, plain_rqvae, table
from torch import Tensor, nn
from torch.nn import functional as F

from semid_dataset.codec._kmeans import assign, kmeans
from semid_dataset.codec._search import BeamSearch
from semid_dataset.codec.behaviour import behaviour_aware, cooccurrence_vectors
from semid_dataset.codec.fusion import Fusion
from semid_dataset.codec.residual import ResidualQuantizer
from semid_dataset.codec.train import train
from semid_dataset.codec.unique import resolve_collisions
from semid_dataset.config import SemanticIdConfig
from semid_dataset.exports import PrefixTrie, flat_ids
from semid_dataset.features import FeatureMatrix
from semid_dataset.inputs.sequences import read_sequences

RESULTS = Path(__file__).resolve().parent / "results"
LEVELS, CODES = 4, 256
NEW = 0.1  # share of the items that are withheld
TAIL = 5  # training events, at most, of an item of the tail
TOP = 10  # of Recall@10 and NDCG@10
SLICES = ("all", "warm", "tail", "new")  # warm: not new; tail: warm with few events
NEIGHBOURS = 10

Vectors = NDArray[np.float32]  # (items, dim)
Codes = NDArray[Any]  # (items, levels), whole numbers


@dataclass(frozen=True)
class SasrecRecipe:
    """
    How the ranker is trained.

    Chosen on the validation items of seed 100, which is not among the seeds of the record: lr, epochs, batch and
    dropout with no IDs; `id_dropout` and `own_decay` with random IDs and our default, for they are what lets new items
    be ranked. They cost those without meaningful IDs something, so controls are also measured without the two ("own
    recipe").

    Attributes:
        dim, blocks, heads, dropout: of the transformer.
        longest: events of a user that count, the last ones.
        batch: sequences a step.
        negatives: items drawn for all positions of a step together, half of them evenly, half by their events.
        id_dropout: share of the items that have no vector of their own for a step, as new items never have one.
        own_decay: weight decay of items' own vectors, so that rare items are known by what they share.
        lr, epochs: of Adam; the state that ranks best in validation is kept, looked at every `every` epochs.
    """

    dim: int = 64
    blocks: int = 1
    heads: int = 2
    dropout: float = 0.2
    longest: int = 30
    batch: int = 128
    negatives: int = 512
    id_dropout: float = 0.15
    own_decay: float = 0.3
    lr: float = 6e-3
    epochs: int = 8
    every: int = 2


@dataclass(frozen=True)
class GenerativeRecipe:
    """
    How the generative model is trained: the same steps for every set of IDs.

    Chosen on the validation items of seed 100, which is not among the seeds of the record, with our default and, in the
    main pilots, with random IDs: see README.md.

    Attributes:
        dim, layers, heads: of encoder and decoder.
        dropout: of what layers add and of inputs; not inside attention and hidden layers, where it costs most time.
        longest: items of a history.
        batch: sequences a step; every position of a sequence is one example.
        smoothing: share of the wanted probability that goes to all codes of a level alike.
        steps, lr: of Adam, warmed up, then falling to zero.
        beams: of the search.
        points: how often the curve is measured, on `curve_users` validation users drawn by the seed, the same for
            every set. The state that ranks best there is tested.
    """

    dim: int = 64
    layers: int = 1
    heads: int = 4
    dropout: float = 0.1
    longest: int = 20
    batch: int = 64
    smoothing: float = 0.1
    steps: int = 3500
    lr: float = 5e-3
    beams: int = 20
    points: int = 7
    curve_users: int = 4000


# --- The data. ------------------------------------------------------------------------------------------------------


class World(NamedTuple):
    """Items with text vectors, users' items in order, and IDs that others published for these items."""

    name: str
    text: Vectors
    sequences: list[list[int]]
    published: dict[str, Codes]


def world_of(folder: Path, vectors: str | None = None) -> World:
    """
    Return what a folder holds of a world: sequences, a vector of every item and, if there are some, published IDs.

    Args:
        folder: `sequences.*` holds rows of items, as `semid generate --sequences` takes them, or is an .npz of `items`,
            all sequences one after the other, and `ends`; `*.part*.npy`, one matrix in parts, or the only other .npy
            holds the vectors, row k of item k; `published*.npz` holds an array (items, levels) of codes for each set.
        vectors: the .npy to take where there are several.
    """
    (path,) = folder.glob("sequences.*")
    if path.suffix == ".npz":
        with np.load(path) as archive:
            sequences = [part.tolist() for part in np.split(archive["items"].astype(np.int64), archive["ends"][:-1])]
    else:
        sequences = [[int(item) for item in sequence] for sequence in read_sequences(path)]
    parts = [folder / vectors] if vectors else sorted(folder.glob("*.part*.npy")) or sorted(folder.glob("*.npy"))
    if len({part.name.split(".part")[0] for part in parts}) != 1:
        sys.exit(f"'{folder}' must hold one matrix; name one of {[part.name for part in parts]} with --vectors.")
    text = np.concatenate([np.load(part) for part in parts]).astype(np.float32)
    published = {}
    for archive_path in folder.glob("published*.npz"):
        with np.load(archive_path) as archive:
            published |= {name: archive[name] for name in archive.files}
    taken = [sequence for sequence in sequences if len(sequence) > 2]
    return World(folder.name if vectors is None else f"{folder.name}-{Path(vectors).stem}", text, taken, published)


def generated(items: int = 3000, users: int = 6000, dim: int = 48, groups: int = 60) -> World:
    """
    Return a world in which nearness means something: items lie in groups, and users drift between near groups.

    An item's share of its group falls as 1 / rank, so there are tails. Seeded.
    """
    random = np.random.default_rng(0)
    centres = random.standard_normal((groups, dim))
    group = random.integers(groups, size=items)
    text = centres[group] + 0.6 * random.standard_normal((items, dim))
    near = np.argsort(np.square(centres[:, None] - centres[None]).sum(2), axis=1)[:, :5]
    members = [np.flatnonzero(group == one) for one in range(groups)]
    shares = [1 / np.arange(1, len(some) + 1) for some in members]
    sequences = []
    for _ in range(users):
        where, had = int(random.integers(groups)), []
        for _ in range(5 + min(int(random.exponential(4)), 45)):
            had.append(int(random.choice(members[where], p=shares[where] / shares[where].sum())))
            if random.random() < 0.4:
                where = int(near[where, random.integers(5)])
        sequences.append(list(dict.fromkeys(had)))
    long_enough = [sequence for sequence in sequences if len(sequence) >= 4]
    return World("generated", text.astype(np.float32), long_enough, {})


class Histories(NamedTuple):
    """What users had, filled up with `items` at the end (users, longest); how much that is; and what comes next."""

    had: NDArray[np.int64]
    lengths: NDArray[np.int64]
    targets: NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """One draw of new items, and what is left to train on."""

    items: int
    new: NDArray[np.bool_]
    train: list[list[int]]  # without the last two events, and without new items
    events: NDArray[np.int64]  # of each item in `train`
    validation: Histories
    test: Histories

    def slices(self, targets: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
        """Return which targets belong to each slice."""
        new = self.new[targets]
        return {
            "all": np.ones(len(targets), bool),
            "warm": ~new,
            "tail": ~new & (self.events[targets] <= TAIL),
            "new": new,
        }


def split(world: World, seed: int, longest: int = 50) -> Split:
    """
    Draw the new items and cut the sequences.

    New items leave histories too: they appear when recommendations are made, not before.
    """
    items = len(world.text)
    new = np.zeros(items, bool)
    new[np.random.default_rng((seed, 1)).permutation(items)[: int(NEW * items)]] = True
    known = [[item for item in sequence[:-2] if not new[item]] for sequence in world.sequences]
    events = np.bincount([item for sequence in known for item in sequence], minlength=items)

    def histories(ends: int) -> Histories:
        had = np.full((len(known), longest), items)
        lengths, targets = np.zeros(len(known), np.int64), np.zeros(len(known), np.int64)
        for row, sequence in enumerate(world.sequences):
            before = [item for item in sequence[: len(sequence) - ends] if not new[item]][-longest:]
            had[row, : len(before)], lengths[row] = before, len(before)
            targets[row] = sequence[len(sequence) - ends]
        some = lengths > 0
        return Histories(had[some], lengths[some], targets[some])

    return Split(items, new, [some for some in known if len(some) > 1], events, histories(2), histories(1))


# --- The IDs. -------------------------------------------------------------------------------------------------------

Make = Callable[[World, Split, int], Codes]


def encoded(world: World, cut: Split, quantizer: Any, vectors: Vectors, *, unique: bool) -> Codes:
    """Return the IDs of all items: known ones first, then new ones by the frozen quantizer, as a table is extended."""
    codes = np.asarray(quantizer.encode(vectors))
    if unique:
        known = ~cut.new
        codes[known] = resolve_collisions(quantizer, vectors[known], codes[known]).codes
        codes[cut.new] = resolve_collisions(quantizer, vectors[cut.new], codes[cut.new], taken=codes[known]).codes
    return codes


_trained: dict[Any, ResidualQuantizer] = {}


def quantizer_of(world: World, cut: Split, seed: int, vectors: Vectors | None = None, **settings: Any) -> Any:
    """Return our quantizer, trained on the known items; the same settings twice train once."""
    vectors = world.text if vectors is None else vectors
    key = (vectors[:8].tobytes(), vectors.shape, seed, *sorted(settings.items()))
    if key not in _trained:
        if len(_trained) > 3:
            _trained.clear()
        config = SemanticIdConfig(seed=seed, device="cpu", **settings)
        _trained[key] = train(vectors[~cut.new], config).quantizer
    return _trained[key]


def ours(*, unique: bool = True, **settings: Any) -> Make:
    """Return our IDs; defaults but for `settings`."""

    def make(world: World, cut: Split, seed: int) -> Codes:
        return encoded(world, cut, quantizer_of(world, cut, seed, **settings), world.text, unique=unique)

    return make


class FirstNearest:
    """A quantizer whose first code is the nearest codeword; the others are searched for as ever."""

    def __init__(self, quantizer: ResidualQuantizer, beam: int) -> None:
        self.first = quantizer.codebooks[0]
        self.rest = BeamSearch(quantizer.codebooks[1:], beam)
        self.latents, self.codebooks, self.search = quantizer.latents, quantizer.codebooks, quantizer.search
        self.codebook_sizes, self.device = quantizer.codebook_sizes, quantizer.device

    def encode(self, vectors: Vectors) -> Codes:
        latents = self.latents(vectors)
        first = assign(latents, self.first)
        rest = self.rest.blocks(latents - self.first[first])[:, 0]
        return torch.cat([first[:, None], rest], 1).numpy().astype(np.uint8)


def first_nearest(beam: int | None = None) -> Make:
    """Return IDs over the codebooks of our default whose first code is the nearest one; `beam` 1: all codes are."""

    def make(world: World, cut: Split, seed: int) -> Codes:
        quantizer = quantizer_of(world, cut, seed)
        return encoded(world, cut, FirstNearest(quantizer, beam or quantizer.beam), world.text, unique=True)

    return make


def greedy(world: World, cut: Split, seed: int) -> Codes:
    """Return IDs of plain residual k-means: every level is fitted on what the nearest codes before it leave over."""
    generator = torch.Generator().manual_seed(seed)
    known = torch.from_numpy(world.text[~cut.new])
    mean = known.mean(0)
    rest, books = known - mean, []
    for _ in range(LEVELS):
        books.append(kmeans(rest, CODES, generator))
        rest = rest - books[-1][assign(rest, books[-1])]
    return encoded(world, cut, ResidualQuantizer(books, beam=1, mean=mean), world.text, unique=True)


def random_ids(world: World, cut: Split, seed: int) -> Codes:
    """Return distinct tuples, drawn evenly: as many parameters as ours have, and no meaning."""
    drawn = np.random.default_rng((seed, 2)).choice(CODES**LEVELS - 1, len(world.text), replace=False) + 1
    return (drawn[:, None] // CODES ** np.arange(LEVELS)[::-1] % CODES).astype(np.uint8)


def permuted(world: World, cut: Split, seed: int) -> Codes:
    """Return our own IDs, dealt out anew: codes are used as often as ours are, and together, but mean nothing."""
    return ours()(world, cut, seed)[np.random.default_rng((seed, 3)).permutation(len(world.text))]


def spec(world: World, cut: Split, seed: int) -> Codes:
    """Return the IDs of the RQ-VAE from random weights, as they come: not unique."""
    return plain_rqvae()(world.text[~cut.new], seed).encode(world.text).astype(np.uint8)


def behaviour(**settings: Any) -> Make:
    """Return our IDs over text and the training sequences; new items play no part in what is learned."""

    def make(world: World, cut: Split, seed: int) -> Codes:
        known = np.flatnonzero(~cut.new)
        row_of = np.full(len(world.text), -1)
        row_of[known] = np.arange(len(known))
        feature = FeatureMatrix("text", np.arange(len(known)), world.text[known])
        aware = behaviour_aware(feature, [row_of[some] for some in cut.train])
        if aware is None:
            return ours(**settings)(world, cut, seed)
        vectors = aware.alone.apply([FeatureMatrix("text", np.arange(len(world.text)), world.text)], len(world.text))
        vectors[known] = aware.vectors
        return encoded(world, cut, quantizer_of(world, cut, seed, vectors, **settings), vectors, unique=True)

    return make


def cooccurrence(world: World, cut: Split, seed: int) -> Codes:
    """Return our IDs over text fused with vectors of who was bought near whom in the training sequences."""
    vectors = fused(world, cut, *cooccurrence_vectors(cut.train, seed=seed), seed)
    return encoded(world, cut, quantizer_of(world, cut, seed, vectors), vectors, unique=True)


def fused(world: World, cut: Split, rows: NDArray[np.int64], near: Vectors, seed: int) -> Vectors:
    """Return text and behaviour in one space, learned from known items; without behaviour, what text lets expect."""
    text = FeatureMatrix("text", np.arange(len(world.text)), world.text)
    order = np.flatnonzero(~cut.new)
    known = FeatureMatrix("text", np.arange(len(order)), world.text[order])
    theirs = FeatureMatrix("behaviour", np.searchsorted(order, rows), near)
    fusion = Fusion.fit([known, theirs], len(order), "aligned", seed)
    return fusion.apply([text, FeatureMatrix("behaviour", rows, near)], len(world.text))


def published(name: str) -> Make:
    """Return IDs that others made of these items; a world without them has none to give."""
    return lambda world, cut, seed: world.published[name]


@dataclass(frozen=True)
class IdSet:
    """
    A row of the tables.

    Attributes:
        label: what the tables call it.
        family: whose it is; the plot's colour.
        make: its IDs; None: the recommender has none.
        prefix: every prefix has a vector, instead of every code of a level.
        text: the recommender also gets the text vectors, through a linear map.
        saw: what the IDs saw that ours did not; empty: nothing.
        free: the ranker is trained without `id_dropout` and `own_decay`, which suits those without meaningful IDs.
    """

    label: str
    family: str
    make: Make | None
    prefix: bool = False
    text: bool = False
    saw: str = ""
    free: bool = False


RICH = "richer text (title, description, brand, categories; an 8B model), also of the new items"
SOLD = f"{RICH}; purchases, also of the new items"
SETS = {
    "none": IdSet("no IDs", "controls", None),
    "text": IdSet("no IDs, text vectors", "controls", None, text=True),
    "random": IdSet("random IDs", "controls", random_ids),
    "none-own": IdSet("no IDs, own recipe", "controls", None, free=True),
    "random-own": IdSet("random IDs, own recipe", "controls", random_ids, free=True),
    "permuted": IdSet("our IDs, permuted", "controls", permuted),
    "spec": IdSet("RQ-VAE from random weights", "the usual RQ-VAE", spec),
    "rqvae": IdSet('**ours, "rqvae"** (default)', "ours", ours()),
    "behaviour": IdSet("**ours, behaviour-aware**", "ours", behaviour()),
    "cooccurrence": IdSet("ours, fused with co-occurrence", "ours", cooccurrence),
    "rqkmeans": IdSet('ours, "rqkmeans"', "ours", ours(algorithm="rqkmeans")),
    "shared": IdSet("ours, unique=False", "ours", ours(unique=False)),
    "three": IdSet("ours, 3 levels", "ours", ours(num_quantizers=3)),
    "nearest": IdSet("ours, first code the nearest", "ours", first_nearest()),
    "beam1": IdSet("ours, every code the nearest", "ours", first_nearest(1)),
    "greedy": IdSet("plain residual k-means, made unique", "ours", greedy),
    "prefix": IdSet("ours, a vector for every prefix", "ours", ours(), prefix=True),
    "rqvae+text": IdSet("ours, and text vectors", "ours", ours(), text=True),
    "rkmeans_native": IdSet("published: residual k-means", "published", published("rkmeans_native"), saw=RICH),
    "rkmeans_zcr": IdSet("published: residual k-means, unique", "published", published("rkmeans_zcr"), saw=RICH),
    "rqvae_native": IdSet("published: RQ-VAE", "published", published("rqvae_native"), saw=RICH),
    "rqvae_zcr": IdSet("published: RQ-VAE, unique", "published", published("rqvae_zcr"), saw=RICH),
    "mql4grec": IdSet(
        "published: MQL4GRec", "published", published("mql4grec"), saw="text and images, also of the new"
    ),
    "rkmeans_zcr_cf": IdSet("published: residual k-means, fused", "published", published("rkmeans_zcr_cf"), saw=SOLD),
    "letter_native": IdSet("published: LETTER", "published", published("letter_native"), saw=SOLD),
    "letter_zcr": IdSet("published: LETTER, unique", "published", published("letter_zcr"), saw=SOLD),
    "quasid_native": IdSet("published: QuaSID", "published", published("quasid_native"), saw=SOLD),
    "quasid_zcr": IdSet("published: QuaSID, unique", "published", published("quasid_zcr"), saw=SOLD),
}
PUBLISHED = [name for name, one in SETS.items() if one.family == "published"]


def numbers_of(codes: Codes) -> NDArray[np.int64]:
    """Return a number for every row that equal rows share."""
    return np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1)


def features(codes: Codes | None, prefix: bool, items: int) -> tuple[NDArray[np.int64], int]:
    """Return the rows (items, levels) of one table of vectors that make up an item, and how many rows there are."""
    if codes is None:
        return np.zeros((items, 0), np.int64), 0
    if prefix:
        columns = [numbers_of(codes[:, : level + 1]) for level in range(codes.shape[1])]
        sizes = [int(column.max()) + 1 for column in columns]
        return flat_ids(np.stack(columns, 1), sizes, first=0), sum(sizes)
    sizes = [CODES] * codes.shape[1]
    return flat_ids(codes, sizes, first=0), sum(sizes)


def figures_of(codes: Codes | None, world: World, cut: Split) -> dict[str, float]:
    """
    Return what can be said of any IDs, whoever made them, in the space of the text vectors.

    `error`: what remains of the known items' variance when every code stands for the vector that fits best (least
    squares, all levels jointly), and `error_new`: of the new items'; `first`: share of an item's nearest
    neighbours in text that have its first code; `next`: share of purchases with the first code of the one before.
    """
    if codes is None:
        return {}
    known = ~cut.new
    mean = world.text[known].mean(0)
    rest = world.text - mean
    variance, variance_new = float(np.square(rest[known]).sum()), float(np.square(rest[cut.new]).sum())
    chosen = [torch.from_numpy(codes[:, level].astype(np.int64)) for level in range(codes.shape[1])]
    residual = torch.from_numpy(rest.copy())
    inside = torch.from_numpy(known)
    books = [torch.zeros(CODES, rest.shape[1]) for _ in chosen]
    for _ in range(10):
        for level, code in enumerate(chosen):
            residual += books[level][code]
            counts = torch.bincount(code[inside], minlength=CODES)[:, None]
            sums = torch.zeros_like(books[level]).index_add_(0, code[inside], residual[inside])
            books[level] = sums / (counts + 0.1)
            residual -= books[level][code]
    errors = residual.square().sum(1, dtype=torch.float64).numpy()
    unit = torch.from_numpy(world.text / np.maximum(np.linalg.norm(world.text, axis=1, keepdims=True), 1e-9))
    asked = torch.from_numpy(np.random.default_rng(1).permutation(len(codes))[:2000])
    near = (unit[asked] @ unit.T).topk(NEIGHBOURS + 1, 1).indices[:, 1:]
    first = chosen[0]
    pairs = np.array([pair for some in cut.train for pair in itertools.pairwise(some)])
    counts = np.bincount(numbers_of(codes))
    return {
        "error": float(errors[known].sum()) / variance,
        "error_new": float(errors[cut.new].sum()) / max(variance_new, 1e-9),
        "first": float((first[near] == first[asked, None]).float().mean()),
        "next": float((codes[pairs[:, 0], 0] == codes[pairs[:, 1], 0]).mean()),
        "shared": float(counts[counts > 1].sum() / len(codes)),
    }


SOURCES = ("train", "residual", "_kmeans", "unique", "fusion", "behaviour")


def ids_of(name: str, world: World, cut: Split, seed: int, cache: Path) -> tuple[Codes | None, dict[str, float]]:
    """Return a set's IDs and their figures; made once for a seed and a state of the sources."""
    make = SETS[name].make
    if make is None:
        return None, {}
    package = Path(sys.modules["semid_dataset.config"].__file__ or "").parent
    digest = hashlib.sha256(world.text.tobytes())
    for source in [package / "codec" / f"{room}.py" for room in SOURCES] + [Path(__file__).with_name("quantizers.py")]:
        digest.update(source.read_bytes())
    path = cache / f"{world.name}-{name}-{seed}-{digest.hexdigest()[:12]}.npz"
    if not path.exists():
        codes = make(world, cut, seed)
        figures = figures_of(codes, world, cut)
        cache.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".part").open("wb") as file:
            np.savez(file, codes=codes, names=np.array(list(figures)), values=np.array(list(figures.values())))
        path.with_suffix(".part").replace(path)
    with np.load(path) as archive:
        return archive["codes"], dict(zip(archive["names"].tolist(), archive["values"].tolist(), strict=True))


# --- What both recommenders share. ----------------------------------------------------------------------------------


class Attention(nn.Module):
    """Multi-head attention; who may look where is given, or causal."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.both = nn.Linear(dim, 2 * dim)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)  # (..., heads, length, width)

    def remember(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values."""
        keys, values = self.both(x).chunk(2, dim=-1)
        return self.split(keys), self.split(values)

    def forward(
        self, x: Tensor, memory: tuple[Tensor, Tensor], mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        rate = self.dropout if self.training else 0.0
        seen = F.scaled_dot_product_attention(self.split(self.query(x)), *memory, mask, rate, causal)
        return self.out(seen.transpose(-3, -2).flatten(-2))


class Block(nn.Module):
    """
    Attention to itself, to a memory where there is one, and a feed-forward layer; norms come first.

    `inner` is the dropout of attention's weights and of the hidden layer, where it is not that of the rest.
    """

    def __init__(
        self, dim: int, heads: int, dropout: float, *, inner: float | None = None, memory: bool = False
    ) -> None:
        super().__init__()
        inner = dropout if inner is None else inner
        self.itself = Attention(dim, heads, inner)
        self.other = Attention(dim, heads, inner) if memory else None
        self.forward_layers = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Dropout(inner), nn.Linear(4 * dim, dim)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3 if memory else 2))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        normed = self.norms[0](x)
        x = x + self.drop(self.itself(normed, self.itself.remember(normed), mask, causal=mask is None))
        return x + self.drop(self.forward_layers(self.norms[-1](x)))


def batches(lengths: NDArray[np.int64], size: int, random: np.random.Generator) -> list[NDArray[np.int64]]:
    """Return rows in batches of `size` of nearly one length, in random order: little is padding."""
    order = np.lexsort((random.random(len(lengths)), lengths))
    parts = [order[begin : begin + size] for begin in range(0, len(order), size)]
    return [parts[lease] for lease in random.permutation(len(parts))]


def padded(
    sequences: Sequence[Sequence[int]], longest: int, filler: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the last `longest` entries of each sequence, filled up at the end, and how many they are."""
    cut = [sequence[-longest:] for sequence in sequences]
    lengths = np.array([len(sequence) for sequence in cut])
    rows = np.full((len(cut), int(lengths.max())), filler)
    for row, sequence in zip(rows, cut, strict=True):
        row[: len(sequence)] = sequence
    return rows, lengths


def last(histories: Histories, longest: int, filler: int) -> Histories:
    """Return histories of at most `longest` entries."""
    rows = [had[:length].tolist() for had, length in zip(histories.had, histories.lengths, strict=True)]
    had, lengths = padded(rows, longest, filler)
    return Histories(had, lengths, histories.targets)


def scores_of(ranks: NDArray[np.int64], targets: NDArray[np.int64], cut: Split) -> dict[str, dict[str, float]]:
    """Return Recall and NDCG of every slice; a rank counts from 0."""
    hit = ranks < TOP
    gain = np.where(hit, 1 / np.log2(np.maximum(ranks, 0) + 2.0), 0.0)
    found = {}
    for name, chosen in cut.slices(targets).items():
        count = int(chosen.sum())
        found[name] = {
            "recall": float(hit[chosen].mean()) if count else 0.0,
            "ndcg": float(gain[chosen].mean()) if count else 0.0,
            "users": count,
        }
    return found


# --- The ranker. ----------------------------------------------------------------------------------------------------


class Sasrec(nn.Module):
    """
    A causal transformer over items; an item's vector, the same at input and output, is a sum.

    Args:
        rows: (items, levels) of the table of codes, see `features`.
        size: rows of that table.
        text: (items, dim), or None.
        new: items without a vector of their own.
    """

    def __init__(
        self, rows: NDArray[np.int64], size: int, text: Vectors | None, new: NDArray[np.bool_], recipe: SasrecRecipe
    ) -> None:
        super().__init__()
        items, dim = len(rows), recipe.dim
        filled = np.concatenate([rows, np.zeros((1, rows.shape[1]), np.int64)])  # one row more, for padding
        self.rows = torch.from_numpy(filled)
        self.own = nn.Parameter(torch.randn(items + 1, dim) * 0.05)
        self.codes = nn.Parameter(torch.randn(size, dim) * 0.05) if size else None
        self.known = torch.from_numpy(np.append(~new, False).astype(np.float32))[:, None]
        self.text = None
        if text is not None:
            scaled = (text - text.mean(0)) / text.std()
            self.text = torch.from_numpy(np.concatenate([scaled, np.zeros_like(scaled[:1])]))
            self.map = nn.Linear(text.shape[1], dim, bias=False)
            nn.init.normal_(self.map.weight, std=0.05 * text.shape[1] ** -0.5)
        self.positions = nn.Parameter(torch.randn(recipe.longest, dim) * 0.05)
        self.blocks = nn.ModuleList(Block(dim, recipe.heads, recipe.dropout) for _ in range(recipe.blocks))
        self.norm, self.drop = nn.LayerNorm(dim), nn.Dropout(recipe.dropout)

    def items(self, items: Tensor, present: Tensor) -> Tensor:
        """Return the vectors of items; `present` (items + 1, 1) are factors of their own vectors."""
        vectors = F.embedding(items, self.own) * F.embedding(items, present)
        if self.codes is not None:
            rows = self.rows[items]
            vectors = vectors + F.embedding_bag(rows.flatten(0, -2), self.codes, mode="sum").view_as(vectors)
        if self.text is not None:
            vectors = vectors + self.map(F.embedding(items, self.text))
        return vectors

    def forward(self, had: Tensor, present: Tensor) -> Tensor:
        """Return (users, length, dim): what comes after each position."""
        # Padding comes last and attention looks back, so nothing ever sees it.
        x = self.drop(self.items(had, present) * len(self.positions[0]) ** 0.5 + self.positions[: had.shape[1]])
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


@torch.inference_mode()
def rank_all(model: Sasrec, histories: Histories, block: int = 512) -> NDArray[np.int64]:
    """Return the rank of every target among all items that the user has not had; of equal scores half are before it."""
    model.eval()
    items = len(model.rows) - 1
    vectors = model.items(torch.arange(items), model.known)
    ranks = np.empty(len(histories.had), np.int64)
    order = np.argsort(histories.lengths, kind="stable")
    for begin in range(0, len(order), block):
        rows = order[begin : begin + block]
        lengths = torch.from_numpy(histories.lengths[rows])
        had = torch.from_numpy(histories.had[rows][:, : int(lengths.max())])
        state = model(had, model.known)[torch.arange(len(rows)), lengths - 1]
        targets = torch.from_numpy(histories.targets[rows])[:, None]
        scores = F.pad(state @ vectors.T, (0, 1))
        wanted = scores.gather(1, targets)
        scores.scatter_(1, had, -torch.inf)
        scores[:, items] = -torch.inf
        scores.scatter_(1, targets, wanted)
        above, level = (scores > wanted).count_nonzero(1), (scores >= wanted).count_nonzero(1)
        ranks[rows] = (above + (level - above - 1) // 2).numpy()
    model.train()
    return ranks


def run_sasrec(
    world: World, cut: Split, codes: Codes | None, one: IdSet, seed: int, recipe: SasrecRecipe
) -> dict[str, Any]:
    """Train and test a ranker; return its figures."""
    if one.free:
        recipe = dataclasses.replace(recipe, id_dropout=0.0, own_decay=0.0)
    torch.manual_seed(seed)
    random = np.random.default_rng((seed, 4))
    rows, size = features(codes, one.prefix, cut.items)
    model = Sasrec(rows, size, world.text if one.text else None, cut.new, recipe)
    others = [some for some in model.parameters() if some is not model.own]
    groups = [{"params": others, "weight_decay": 0.0}, {"params": [model.own], "weight_decay": recipe.own_decay}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, fused=True)
    had, lengths = padded(cut.train, recipe.longest + 1, cut.items)
    validation, test = (last(some, recipe.longest, cut.items) for some in (cut.validation, cut.test))
    known = np.flatnonzero(~cut.new)
    share = 0.5 / len(known) + 0.5 * cut.events[known] / cut.events.sum()
    bounds = np.cumsum(share) / share.sum()
    chance = torch.zeros(cut.items + 1)
    chance[known] = torch.from_numpy(np.log(share * recipe.negatives).astype(np.float32))
    steps = -(-len(had) // recipe.batch) * recipe.epochs
    step, curve, best, kept = 0, [], -1.0, None
    for epoch in range(1, recipe.epochs + 1):
        total = 0.0
        for chosen in batches(lengths, recipe.batch, random):
            some = torch.from_numpy(had[chosen][:, : lengths[chosen].max()])
            present = model.known * torch.from_numpy(
                (random.random((cut.items + 1, 1), np.float32) >= recipe.id_dropout).astype(np.float32)
            )
            mask = some[:, 1:] != cut.items
            state, wanted = model(some[:, :-1], present)[mask], some[:, 1:][mask]
            drawn = torch.from_numpy(known[np.searchsorted(bounds, random.random(recipe.negatives))])
            scores = state @ model.items(drawn, present).T - chance[drawn]
            scores = scores.masked_fill(drawn == wanted[:, None], -torch.inf)
            right = (state * model.items(wanted, present)).sum(1)
            loss = (torch.logaddexp(right, scores.logsumexp(1)) - right).mean()
            optimizer.zero_grad()
            loss.backward()
            step += 1
            pace = min(step / 50, 1.0) * (0.1 + 0.9 * (1 + math.cos(math.pi * step / steps)) / 2)
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * pace
            optimizer.step()
            total += float(loss.detach())
        if epoch % recipe.every == 0 or epoch == recipe.epochs:
            found = scores_of(rank_all(model, validation), validation.targets, cut)
            curve.append(
                {"epoch": epoch, "loss": total * recipe.batch / len(had), **{k: v["recall"] for k, v in found.items()}}
            )
            if found["all"]["ndcg"] > best:
                best, kept = found["all"]["ndcg"], {k: v.clone() for k, v in model.state_dict().items()}
                at = {"epoch": epoch, "validation": found}
    assert kept is not None
    model.load_state_dict(kept)
    return {"test": scores_of(rank_all(model, test), test.targets, cut), **at, "curve": curve}


# --- The generative model. ------------------------------------------------------------------------------------------


class Generative(nn.Module):
    """
    An encoder of the items of a history, and a decoder that writes the codes of the next item.

    To the encoder an item is one token, the sum of its codes' vectors: a quarter of the tokens, a sixteenth of the
    attention. It looks back, so that one pass over a sequence serves every position as a history of its own: the
    decoder of position t sees the items up to t, and begins at what the encoder made of the last one. Equal codes of
    different levels have vectors of their own, and others when read than when written.
    """

    def __init__(self, sizes: Sequence[int], recipe: GenerativeRecipe) -> None:
        super().__init__()
        dim, self.levels, self.sizes = recipe.dim, len(sizes), list(sizes)
        # Of codes in histories, of those written so far, of those to choose from. Row 0 is padding, or begins an ID.
        self.read, self.written, self.out = (nn.Parameter(torch.randn(sum(sizes) + 1, dim) * 0.05) for _ in range(3))
        self.positions = nn.Parameter(torch.randn(recipe.longest, dim) * 0.05)
        self.level = nn.Parameter(torch.randn(self.levels, dim) * 0.05)
        self.encoder = nn.ModuleList(Block(dim, recipe.heads, recipe.dropout, inner=0.0) for _ in range(recipe.layers))
        self.decoder = nn.ModuleList(
            Block(dim, recipe.heads, recipe.dropout, inner=0.0, memory=True) for _ in range(recipe.layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.drop = nn.Dropout(recipe.dropout)
        self.bounds = [1 + sum(sizes[:level]) for level in range(self.levels + 1)]
        self.scale = dim**0.5

    def encode(self, flat: Tensor) -> Tensor:
        """Return (users, length, dim) for flat codes (users, length, levels)."""
        x = F.embedding_bag(flat.flatten(0, 1), self.read, mode="sum").unflatten(0, flat.shape[:2])
        x = self.drop(x * self.scale + self.positions[: flat.shape[1]])
        for block in self.encoder:
            x = block(x)
        return self.norms[0](x)

    def logits(self, x: Tensor, level: int) -> Tensor:
        return x @ self.out[self.bounds[level] : self.bounds[level + 1]].T

    def begun(self, state: Tensor, codes: Tensor, level: Tensor) -> Tensor:
        """Return the decoder's input: what the encoder last saw, and the code written before."""
        return self.drop(state + F.embedding(codes, self.written) * self.scale + level)

    def forward(self, had: Tensor, wanted: Tensor) -> list[Tensor]:
        """Return the logits (users, length, codes) of every level of what comes after each position."""
        length = had.shape[1]
        memory = self.encode(had)
        before = F.pad(wanted[:, :, :-1], (1, 0))
        x = self.begun(memory[:, :, None], before, self.level)
        item = torch.arange(length)
        mask = item.repeat_interleave(self.levels)[:, None] >= item  # a position's decoder sees the items up to it
        for block in self.decoder:
            normed = block.norms[0](x)
            x = x + block.drop(block.itself(normed, block.itself.remember(normed), causal=True))
            flat = block.norms[1](x).flatten(1, 2)
            x = x + block.drop(block.other(flat, block.other.remember(memory), mask)).view_as(x)
            x = x + block.drop(block.forward_layers(block.norms[2](x)))
        x = self.norms[1](x)
        return [self.logits(x[:, :, level], level) for level in range(self.levels)]

    @torch.inference_mode()
    def search(self, had: Tensor, lengths: Tensor, trie: PrefixTrie, beams: int) -> tuple[NDArray[np.int64], Tensor]:
        """Return the trie's nodes of the best IDs (users, beams), best first, -1 where there are fewer; and scores."""
        users, length = had.shape[:2]
        memory = self.encode(had)
        seen = (torch.arange(length)[None] < lengths[:, None])[:, None, None]
        state = memory[torch.arange(users), lengths - 1][:, None]
        remembered = [block.other.remember(memory) for block in self.decoder]
        nodes = np.zeros((users, 1), np.int64)
        scores = torch.zeros(users, 1)
        token = torch.zeros(users, 1, dtype=torch.int64)
        past: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self.decoder]
        for level in range(self.levels):
            x = self.begun(state, token, self.level[level])
            for block, (keys, values), before in zip(self.decoder, remembered, past, strict=True):
                normed = block.norms[0](x)[:, :, None]
                before.append(block.itself.remember(normed))
                own = tuple(torch.cat([pair[which] for pair in before], -2) for which in (0, 1))
                x = x + block.itself(normed, own)[:, :, 0]
                x = x + block.other(block.norms[1](x), (keys, values), seen)
                x = x + block.forward_layers(block.norms[2](x))
            chance = self.logits(self.norms[1](x), level).log_softmax(2)
            allowed = torch.full(chance.shape, -torch.inf).flatten(0, 1)
            at, codes = trie.allowed(nodes.reshape(-1))
            allowed[at, codes] = 0.0
            total = (scores[:, :, None] + chance + allowed.view_as(chance)).flatten(1)
            scores, best = total.topk(min(beams, total.shape[1]), 1)
            parent, code = best // chance.shape[2], best % chance.shape[2]
            nodes = trie.step(np.take_along_axis(nodes, parent.numpy(), 1).reshape(-1), code.numpy().reshape(-1))
            nodes = np.where(torch.isinf(scores).numpy(), -1, nodes.reshape(users, -1))
            token = code + self.bounds[level]
            for before in past:
                for lease, pair in enumerate(before):
                    before[lease] = tuple(  # type: ignore[assignment]
                        part.gather(1, parent[:, :, None, None, None].expand(-1, -1, *part.shape[2:])) for part in pair
                    )
        return nodes, scores


def rank_generated(
    model: Generative, flat: Tensor, trie: PrefixTrie, histories: Histories, events: NDArray[np.int64], beams: int
) -> NDArray[np.int64]:
    """
    Return the rank of every target among the items that a beam search finds and the user has not had; else TOP.

    Items that share an ID stand in a row, those with most events first.
    """
    model.eval()
    ranks = np.full(len(histories.had), TOP)
    order = np.argsort(histories.lengths, kind="stable")
    leaves = len(trie.indptr) - 1 - len(trie)
    for begin in range(0, len(order), 256):
        rows = order[begin : begin + 256]
        lengths = torch.from_numpy(histories.lengths[rows])
        had = histories.had[rows][:, : int(lengths.max())]
        nodes, _ = model.search(flat[torch.from_numpy(had)], lengths, trie, beams)
        for row, some, mine in zip(rows, nodes, had.tolist(), strict=True):
            place, target, before = 0, histories.targets[row], set(mine)
            for leaf in (some[some >= 0] - leaves).tolist():
                found = trie.rows[trie.row_indptr[leaf] : trie.row_indptr[leaf + 1]]
                for item in found[np.argsort(-events[found], kind="stable")].tolist():
                    if item == target:
                        ranks[row] = min(place, TOP)
                    place += item not in before
                if place >= TOP:
                    break
    model.train()
    return ranks


def run_generative(
    world: World, cut: Split, codes: Codes | None, one: IdSet, seed: int, recipe: GenerativeRecipe
) -> dict[str, Any]:
    """Train and test a generative model; return its figures."""
    assert codes is not None
    torch.manual_seed(seed)
    random = np.random.default_rng((seed, 5))
    sizes = [CODES] * codes.shape[1]
    flat = torch.from_numpy(np.concatenate([flat_ids(codes, sizes, first=1), np.zeros((1, len(sizes)), np.int64)]))
    trie = PrefixTrie.of(codes)
    model = Generative(sizes, recipe)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=0.01, fused=True)
    had, lengths = padded(cut.train, recipe.longest + 1, cut.items)
    validation, test = (last(some, recipe.longest, cut.items) for some in (cut.validation, cut.test))
    chosen = np.random.default_rng((seed, 6)).permutation(len(validation.had))[: recipe.curve_users]
    watched = Histories(*(part[np.sort(chosen)] for part in validation))
    every = max(recipe.steps // recipe.points, 1)
    step, curve, total, best, kept = 0, [], 0.0, -1.0, None
    while step < recipe.steps:
        for chosen in batches(lengths, recipe.batch, random)[: recipe.steps - step]:
            items = torch.from_numpy(had[chosen][:, : lengths[chosen].max()])
            mask = items[:, 1:] != cut.items
            wanted = flat[items[:, 1:]]
            outputs = model(flat[items[:, :-1]], wanted)
            loss = torch.zeros(())
            for level, logits in enumerate(outputs):
                right = wanted[:, :, level][mask] - model.bounds[level]
                loss = loss + F.cross_entropy(logits[mask], right, label_smoothing=recipe.smoothing)
            optimizer.zero_grad()
            loss.backward()
            step += 1
            pace = min(step / 100, 1.0) * (0.02 + 0.98 * (1 + math.cos(math.pi * step / recipe.steps)) / 2)
            optimizer.param_groups[0]["lr"] = recipe.lr * pace
            optimizer.step()
            total += float(loss.detach())
            if step % every == 0 or step == recipe.steps:
                ranks = rank_generated(model, flat, trie, watched, cut.events, recipe.beams)
                found = scores_of(ranks, watched.targets, cut)
                mean = total / ((step - 1) % every + 1)
                curve.append({"step": step, "loss": mean, **{k: v["recall"] for k, v in found.items()}})
                total = 0.0
                if found["all"]["ndcg"] > best:
                    best, kept = found["all"]["ndcg"], {k: v.clone() for k, v in model.state_dict().items()}
                    at = {"step": step, "epochs": step * recipe.batch / len(had), "validation": found}
    assert kept is not None
    model.load_state_dict(kept)
    ranks = rank_generated(model, flat, trie, test, cut.events, recipe.beams)
    return {"test": scores_of(ranks, test.targets, cut), **at, "curve": curve}


# --- Runs. ----------------------------------------------------------------------------------------------------------

RECIPES: dict[str, Any] = {"sasrec": SasrecRecipe(), "generative": GenerativeRecipe()}
QUICK: dict[str, Any] = {
    "sasrec": SasrecRecipe(dim=32, longest=12, negatives=128, epochs=2, every=1),
    "generative": GenerativeRecipe(dim=32, longest=8, steps=20, points=2, beams=10, curve_users=100),
}
RUN = {"sasrec": run_sasrec, "generative": run_generative}
MODELS = {"sasrec": "Ranking", "generative": "Generative retrieval"}


def measured(model: str, name: str, seed: int, world: World, cache: Path, recipe: Any) -> dict[str, Any]:
    """Return the figures of one run."""
    cut = split(world, seed)
    codes, figures = ids_of(name, world, cut, seed, cache)
    began, cpu = time.perf_counter(), time.process_time()
    found = RUN[model](world, cut, codes, SETS[name], seed, recipe)
    return {
        **found,
        "ids": figures,
        "digest": "" if codes is None else hashlib.sha256(codes.astype(np.uint16).tobytes()).hexdigest()[:16],
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "commit": commit(),
    }


def plan(options: argparse.Namespace, world: World) -> list[tuple[str, str, int]]:
    """Return (model, set, seed) of every run that was asked for and makes sense here, seed by seed."""
    wanted = []
    for model in options.model:
        for seed in options.seeds:
            for name in options.sets:
                one = SETS[name]
                if one.family == "published" and name not in world.published:
                    continue
                if model == "generative" and (one.make is None or one.text or one.prefix or one.free):
                    continue
                wanted.append((model, name, seed))
    return wanted


def check_equal(then: dict[str, Any], now: dict[str, Any], what: str) -> None:
    """Stop with an error where a run that was repeated came out otherwise."""
    for key in ("test", "curve", "digest"):
        if then[key] != now[key]:
            sys.exit(f"{what}: {key} was {then[key]}, now it is {now[key]}. The runs do not repeat.")
    print(f"{what}: the same figures, to the last digit", flush=True)


# --- Tables and plot. -----------------------------------------------------------------------------------------------

# Two-sided 95 % points of Student's t, by degrees of freedom.
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half of the 95 % interval over seeds (Student's t); the half is NaN for one seed."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, STUDENT.get(len(values) - 1, 1.96) * math.sqrt(variance / len(values))


def spelled(mean: float, half: float, *, sign: bool = False) -> str:
    """Return a figure and its interval in thousandths of one."""
    text = f"{mean:+.4f}" if sign else f"{mean:.4f}"
    return text if math.isnan(half) else f"{text} ± {half:.4f}"


def values_of(runs: dict[str, Any], name: str, part: str, key: str, seeds: Sequence[str]) -> list[float]:
    """Return a figure of a set's runs, seed by seed."""
    return [runs[name][seed]["test"][part][key] for seed in seeds]


def difference(runs: dict[str, Any], name: str, other: str, part: str, key: str = "recall") -> str:
    """Return the mean difference from another set over the seeds that both have, with its interval."""
    seeds = sorted(set(runs.get(name, {})) & set(runs.get(other, {})))
    if not seeds or name == other:
        return "–"
    pairs = zip(*(values_of(runs, one, part, key, seeds) for one in (name, other)), strict=True)
    return spelled(*interval([mine - theirs for mine, theirs in pairs]), sign=True)


def main_table(runs: dict[str, Any], key: str) -> list[str]:
    """Return the lines of Recall or NDCG of every set and slice."""
    rows = [["IDs", *SLICES, "seeds"]]
    for name, one in SETS.items():
        if some := runs.get(name):
            seeds = sorted(some)
            mark = " ¹" if one.saw and "purchases" in one.saw else " ²" if one.saw else ""
            cells = [spelled(*interval(values_of(runs, name, part, key, seeds))) for part in SLICES]
            rows.append([one.label + mark, *cells, str(len(seeds))])
    return table(rows)


def difference_table(runs: dict[str, Any], other: str) -> list[str]:
    """Return the lines of every set's difference from another one, paired by seeds."""
    rows = [[f"Recall@{TOP} less that of {SETS[other].label}", *SLICES]]
    for name, one in SETS.items():
        if name in runs and name != other:
            rows.append([one.label, *(difference(runs, name, other, part) for part in SLICES)])
    return table(rows)


def ranks_of(values: Sequence[float]) -> NDArray[np.float64]:
    """Return mean ranks."""
    array = np.asarray(values)
    return (array[:, None] > array[None]).sum(1) + ((array[:, None] == array[None]).sum(1) - 1) / 2


def figures_table(runs: dict[str, Any]) -> list[str]:
    """Return the lines of what the IDs are like, and how that goes together with recall."""
    keys = {
        "error": "error",
        "error_new": "error, new items",
        "first": "neighbours share code 1",
        "next": "next purchase shares code 1",
        "shared": "share their ID",
    }
    rows = [["IDs", *keys.values(), *(f"Recall, {part}" for part in ("all", "tail", "new"))]]
    points: list[list[float]] = []
    for name, one in SETS.items():
        some = runs.get(name)
        if not some or one.make is None or one.text or one.prefix or one.free:
            continue
        ids = [interval([run["ids"][key] for run in some.values()])[0] for key in keys]
        recalls = [interval(values_of(runs, name, part, "recall", sorted(some)))[0] for part in ("all", "tail", "new")]
        points.append([*ids, *recalls])
        said = [f"{ids[0]:.3f}", f"{ids[1]:.3f}", *(f"{100 * value:.1f} %" for value in ids[2:])]
        rows.append([one.label, *said, *(f"{value:.4f}" for value in recalls)])
    lines = table(rows)
    if len(points) > 3:
        columns = [ranks_of(column) for column in zip(*points, strict=True)]
        said = ["rank correlation with:"]
        for at, part in enumerate(("all", "tail", "new"), start=len(keys)):
            found = [
                f"{label} {np.corrcoef(columns[number], columns[at])[0, 1]:+.2f}"
                for number, label in enumerate(list(keys.values())[:4])
                if np.ptp(columns[number]) > 0 and np.ptp(columns[at]) > 0
            ]
            said.append(f"Recall, {part}: {', '.join(found)}.")
        lines += ["", f"Over these {len(points)} sets, " + " ".join(said)]
    return lines


def curve_table(runs: dict[str, Any]) -> list[str]:
    """Return the lines of the generative model's learning curves, means over seeds."""
    steps = sorted({point["step"] for some in runs.values() for run in some.values() for point in run["curve"]})
    rows = [[f"validation Recall@{TOP} (loss) after", *(f"{step:,} steps" for step in steps)]]
    for name, one in SETS.items():
        if some := runs.get(name):
            cells = []
            for step in steps:
                at = [point for run in some.values() for point in run["curve"] if point["step"] == step]
                recall, loss = (sum(point[key] for point in at) / max(len(at), 1) for key in ("all", "loss"))
                cells.append(f"{recall:.4f} ({loss:.2f})" if at else "–")
            rows.append([one.label, *cells])
    return table(rows)


def report(results: dict[str, Any]) -> str:
    """Return the page."""
    host = results["machine"]
    world = results["world"]
    lines = [
        "# Do the IDs help?",
        "",
        "Written by `benchmarks/downstream.py`; [its README](../README.md) says how this is measured.",
        f"{world['name']}: {world['items']:,} items, {world['users']:,} users, {world['events']:,} events. One thread "
        f"of {host['cpu']}; torch {host['packages']['torch']}, numpy {host['packages']['numpy']}.",
        f"Means over seeds; ± is half of the 95 % interval over seeds (Student's t). A seed draws the new items "
        f"({NEW:.0%}), our IDs and the controls, the recommender's weights and its batches. warm: not new; tail: warm, "
        f"at most {TAIL} training events.",
        "",
        "![Recall by set](downstream.svg)",
    ]
    for model, title in MODELS.items():
        runs = results["runs"].get(model, {})
        if not runs:
            continue
        measured_runs = [run for some in runs.values() for run in some.values()]
        seconds = [run["cpu_seconds"] for run in measured_runs]
        commits = ", ".join(sorted({f"{run['commit']}" for run in measured_runs}))
        settings = ", ".join(f"{key} {value:g}" for key, value in results["recipes"][model].items())
        lines += [
            "",
            f"## {title}",
            "",
            f"`{model}`: {settings}. {len(seconds)} runs, {min(seconds):.0f} to {max(seconds):.0f} CPU seconds each; "
            f"commits {commits}.",
        ]
        users = {part: next(iter(next(iter(runs.values())).values()))["test"][part]["users"] for part in SLICES}
        lines += [f"Test users, first seed: {', '.join(f'{part} {count:,}' for part, count in users.items())}."]
        for key, label in (("recall", f"Recall@{TOP}"), ("ndcg", f"NDCG@{TOP}")):
            lines += ["", f"### {label}", "", *main_table(runs, key)]
        if any(SETS[name].saw for name in runs):
            lines += [
                "",
                "¹ made with purchases, those of the new items among them, and from richer text: on new items no "
                "peers. ² from richer text or images. All published IDs saw the new items when their codebooks were "
                "trained.",
            ]
        for other in ("random", "rqvae"):
            if other in runs:
                lines += ["", f"### Against {SETS[other].label}, seed by seed", "", *difference_table(runs, other)]
        if model == "sasrec":
            lines += ["", "### What the IDs are like", "", *figures_table(runs)]
        else:
            lines += ["", "### Learning curves", "", *curve_table(runs)]
    return "\n".join(lines) + "\n"


COLOURS = {"ours": "#c1121f", "the usual RQ-VAE": "#1d4e89", "published": "#7a4ea3", "controls": "#6c757d"}


def plot(results: dict[str, Any], path: Path) -> None:
    """Draw Recall of every set, a panel for a slice; and the learning curves."""
    pyplot = drawing("downstream", 8)
    if pyplot is None:
        return
    models = [model for model in MODELS if results["runs"].get(model)]
    most = max(len(results["runs"][model]) for model in models)
    figure, axes = pyplot.subplots(
        len(models), 4, figsize=(13, (0.22 * most + 1.3) * len(models)), squeeze=False, width_ratios=[1, 1, 1, 1.1]
    )
    for line, model in zip(axes, models, strict=True):
        runs = results["runs"][model]
        names = [name for name in SETS if name in runs][::-1]
        for axis, part in zip(line, ("all", "tail", "new"), strict=False):
            for height, name in enumerate(names):
                mean, half = interval(values_of(runs, name, part, "recall", sorted(runs[name])))
                colour = COLOURS[SETS[name].family]
                axis.errorbar(mean, height, xerr=0 if math.isnan(half) else half, fmt="o", color=colour, markersize=4)
            axis.set_yticks(
                range(len(names)), [SETS[name].label.replace("*", "") for name in names] if part == "all" else []
            )
            axis.set_title(f"{MODELS[model]}: Recall@{TOP}, {part}")
            axis.grid(alpha=0.25, axis="x", linewidth=0.6)
        for name in names:
            some = list(runs[name].values())
            count = min(len(run["curve"]) for run in some)
            clock = "epoch" if model == "sasrec" else "step"
            line[3].plot(
                [some[0]["curve"][at][clock] for at in range(count)],
                [sum(run["curve"][at]["all"] for run in some) / len(some) for at in range(count)],
                color=COLOURS[SETS[name].family],
                linewidth=1.6 if name in {"rqvae", "random", "none"} else 0.6,
                linestyle="--" if name == "random" else ":" if name == "none" else "-",
            )
        line[3].set(title=f"validation Recall@{TOP} by {clock}s")
    handles = [pyplot.Line2D([], [], linestyle="", marker="o", color=colour, label=f) for f, colour in COLOURS.items()]
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(path, metadata={"Date": None})


def write(results: dict[str, Any], folder: Path) -> None:
    """Write the figures; in one step, so that whoever stops this loses the run at hand and no other."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "downstream.json.part"
    part.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    part.replace(folder / "downstream.json")


def main() -> None:
    """Measure what is not there yet, or what is to be checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--data", type=Path, help="folder of sequences, vectors and published IDs, see `world_of`")
    parser.add_argument("--vectors", help="the .npy in that folder, where there are several")
    parser.add_argument("--quick", action="store_true", help="generated data, written to a temporary folder")
    parser.add_argument("--check", action="store_true", help="repeat runs that are there; an error if figures differ")
    parser.add_argument("--report", action="store_true", help="measure nothing, write tables and plot anew")
    parser.add_argument("--out", type=Path, help="folder for the results (default: results/ beside this script)")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "semid-downstream", help="of IDs")
    options = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a twentieth of the time; nothing here reads it
    torch.set_num_threads(1)
    recipes = QUICK if options.quick else RECIPES
    folder = options.out or (Path(tempfile.mkdtemp(prefix="downstream-")) if options.quick else RESULTS)
    figures = folder / "downstream.json"
    results: dict[str, Any] = json.loads(figures.read_text()) if figures.exists() else {}
    if not options.report:
        real = os.environ.get("SEMID_REAL_DATA")
        if options.data is None and real and not options.quick:
            options.data = Path(real, "data", "beauty")
        if options.data is not None:
            world = world_of(options.data, options.vectors)
        else:
            world = generated(items=600, users=500) if options.quick else generated()
            print("No --data and no SEMID_REAL_DATA: generated data take their place.", flush=True)
        described = {
            "name": world.name,
            "items": len(world.text),
            "users": len(world.sequences),
            "events": sum(map(len, world.sequences)),
        }
        asked = {model: dataclasses.asdict(recipe) for model, recipe in recipes.items()}
        for model in options.model:
            if results and (
                results["recipes"].get(model, asked[model]) != asked[model] or results["world"] != described
            ):
                sys.exit(f"'{figures}' was measured on other data or by another recipe. Move it away, or give --out.")
        results = {
            "machine": machine(),
            "world": described,
            "recipes": {**results.get("recipes", {}), **{model: asked[model] for model in options.model}},
            "runs": results.get("runs", {}),
        }
        for model, name, seed in plan(options, world):
            runs = results["runs"].setdefault(model, {}).setdefault(name, {})
            what = f"{model}  {name:16} seed {seed}"
            if (str(seed) in runs) != options.check:
                continue
            found = measured(model, name, seed, world, options.cache, recipes[model])
            if options.check:
                check_equal(runs[str(seed)], json.loads(json.dumps(found)), what)
                continue
            runs[str(seed)] = found
            said = "  ".join(f"{part} {found['test'][part]['recall']:.4f}" for part in SLICES)
            print(f"{what}  {said}  {found['seconds']:5.0f} s", flush=True)
            write(results, folder)
    if results.get("runs") and not options.check:
        (folder / "downstream.md").write_text(report(results))
        if options.report:
            plot(results, folder / "downstream.svg")
        print(f"Written to {folder}", flush=True)


if __name__ == "__main__":
    main()
