"""
Generate a shop: products with names and embeddings, and what its customers took.

Everything is invented, but not at random. A product has a department, a category, a kind, a brand and
a feature; its vector is the sum of theirs, as a text encoder would place it, plus noise; customers stay
near what they like and prefer what sells. So codes carry what a recommender can use, and a person who
reads the names can tell whether IDs make sense. No name is a real brand's.
"""

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["FEATURE_ID", "Shop", "make_shop", "write_shop"]

FEATURE_ID = "81"
DIM = 32
FIRST_ITEM = 20_000_000_001
SHARE_NEW = 0.06  # of the products: nobody has taken them before the test
FAVOURITES = 3  # kinds that a customer likes, at most
SKEW = 0.6  # standard deviation of the logarithm of how well a product sells
STRAY = 0.1  # share of purchases outside of a customer's favourites
WEIGHTS = {"department": 1.0, "category": 0.9, "kind": 0.8, "brand": 0.35, "feature": 0.3}
NOISE = 0.12

# department -> category -> kinds
TREE: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "Kitchen": {
        "Coffee": ("moka pot", "pour-over dripper", "burr grinder", "espresso cups", "milk frother"),
        "Baking": ("loaf tin", "rolling pin", "proofing basket", "cake stand", "piping set"),
        "Knives": ("chef's knife", "paring knife", "bread knife", "whetstone", "knife block"),
        "Pans": ("frying pan", "saucepan", "wok", "casserole", "griddle"),
    },
    "Garden": {
        "Tools": ("hand trowel", "pruning shears", "garden fork", "rake", "wheelbarrow"),
        "Planting": ("terracotta pot", "raised bed", "seed tray", "potting soil", "trellis"),
        "Watering": ("watering can", "garden hose", "sprinkler", "drip kit", "rain barrel"),
        "Birds": ("bird feeder", "nest box", "bird bath", "seed mix", "window feeder"),
    },
    "Outdoors": {
        "Camping": ("two-person tent", "sleeping bag", "camping stove", "head torch", "camping chair"),
        "Hiking": ("daypack", "trekking poles", "water filter", "rain jacket", "hiking socks"),
        "Cycling": ("bike helmet", "pannier bag", "bike light", "track pump", "bike lock"),
        "Climbing": ("climbing shoes", "chalk bag", "harness", "climbing rope", "belay device"),
    },
    "Home": {
        "Bedroom": ("duvet cover", "pillow", "bedside lamp", "wool blanket", "blackout curtain"),
        "Bathroom": ("bath towel", "shower caddy", "soap dispenser", "bath mat", "laundry basket"),
        "Office": ("desk lamp", "monitor stand", "office chair", "desk mat", "filing box"),
        "Storage": ("wicker basket", "shoe rack", "coat hook", "storage box", "bookshelf"),
    },
    "Music": {
        "Guitar": ("acoustic guitar", "guitar strings", "guitar capo", "guitar stand", "tuner pedal"),
        "Keys": ("digital piano", "sustain pedal", "keyboard stand", "piano bench", "midi keyboard"),
        "Drums": ("snare drum", "drumsticks", "ride cymbal", "practice pad", "drum throne"),
        "Recording": ("condenser microphone", "audio interface", "studio headphones", "pop filter", "mic stand"),
    },
    "Art": {
        "Painting": ("watercolour set", "oil paints", "brush set", "stretched canvas", "table easel"),
        "Drawing": ("graphite pencils", "sketchbook", "charcoal sticks", "fineliner set", "putty eraser"),
        "Crafts": ("knitting needles", "merino yarn", "embroidery hoop", "sewing kit", "crochet hooks"),
        "Paper": ("origami paper", "fountain pen", "wax seal kit", "washi tape", "linen notebook"),
    },
}
BRANDS = (
    "Alderlin", "Brimstowe", "Calvarra", "Dunmere", "Eskadal", "Fernholt", "Galloran", "Harrowby", "Ivenmark",
    "Juniperra", "Kestrova", "Lunemoor", "Mossgate", "Norrvik", "Ostrala", "Penhallow",
)  # fmt: skip
FEATURES = (
    "classic", "compact", "lightweight", "handmade", "recycled", "professional", "beginner's", "foldable", "large",
    "small", "matte black", "sage green", "navy", "natural", "limited edition",
)  # fmt: skip


@dataclass(frozen=True)
class Shop:
    """
    Products, vectors and customers.

    Attributes:
        items: (n,) int64, ids as they stand in files.
        names: of the products, one each.
        kinds: (n,) number of the product's kind; 5 kinds in a row are a category, 4 categories a department.
        vectors: (n, 32) float32, unit length.
        histories: rows of products that each customer took, oldest first; the last one is for the test.
        is_new: (n,) products that nobody takes before the test.
    """

    items: NDArray[np.int64]
    names: list[str]
    kinds: NDArray[np.int64]
    vectors: NDArray[np.float32]
    histories: list[list[int]]
    is_new: NDArray[np.bool_]


def make_shop(products: int = 3_000, customers: int = 6_000, seed: int = 0) -> Shop:
    """Invent a shop; equal arguments give equal shops."""
    rng = np.random.default_rng(seed)
    paths = [(d, c, k) for d, categories in TREE.items() for c, kinds in categories.items() for k in kinds]
    drawn = {
        layer: rng.normal(size=(count, DIM)) / DIM**0.5
        for layer, count in (
            ("department", len(TREE)),
            ("category", len(paths) // 5),
            ("kind", len(paths)),
            ("brand", len(BRANDS)),
            ("feature", len(FEATURES)),
        )
    }
    chosen = rng.choice(len(paths) * len(BRANDS) * len(FEATURES), products, replace=False)
    kinds, rest = np.divmod(chosen, len(BRANDS) * len(FEATURES))
    brands, features = np.divmod(rest, len(FEATURES))
    numbers = {"department": kinds // 20, "category": kinds // 5, "kind": kinds, "brand": brands, "feature": features}
    vectors = sum(WEIGHTS[layer] * drawn[layer][number] for layer, number in numbers.items())
    vectors = vectors + NOISE * rng.normal(size=(products, DIM)) / DIM**0.5
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = [
        f"{BRANDS[brand]} {FEATURES[feature]} {paths[kind][2]}"
        for brand, feature, kind in zip(brands.tolist(), features.tolist(), kinds.tolist(), strict=True)
    ]
    is_new = rng.random(products) < SHARE_NEW
    sells = rng.lognormal(sigma=SKEW, size=products)  # few products sell much, most sell little
    histories = [_history(rng, kinds, brands, sells, is_new) for _ in range(customers)]
    items = FIRST_ITEM + np.sort(rng.choice(6_000_000, products, replace=False)).astype(np.int64)
    return Shop(items, names, kinds, vectors.astype(np.float32), histories, is_new)


def _history(
    rng: np.random.Generator,
    kinds: NDArray[np.int64],
    brands: NDArray[np.int64],
    sells: NDArray[np.float64],
    is_new: NDArray[np.bool_],
) -> list[int]:
    favourites = rng.choice(kinds, int(rng.integers(1, FAVOURITES + 1)))
    likes = np.where(np.isin(kinds, favourites), 1.0, np.where(np.isin(kinds // 5, favourites // 5), 0.1, 0.0))
    likes *= np.where(np.isin(brands, rng.choice(len(BRANDS), 2)), 1.0, 0.15)
    known = np.where(is_new, 0.0, sells)
    taken: list[int] = []
    for last in [*[False] * int(rng.integers(3, 10)), True]:
        weights = (known if not last else sells) * (likes if rng.random() > STRAY else 1.0)
        weights[taken] = 0.0
        total = weights.sum()
        taken.append(int(rng.choice(len(kinds), p=(weights if total else known) / (total or known.sum()))))
    return taken


def write_shop(shop: Shop, folder: Path, rows: NDArray[np.int64]) -> None:
    """Write these products as a data directory of the TencentGR layout, and their names beside the vectors."""
    (folder / "creative_emb").mkdir(parents=True, exist_ok=True)
    vectors = {int(shop.items[row]): shop.vectors[row] for row in rows.tolist()}
    (folder / "creative_emb" / f"emb_{FEATURE_ID}_{DIM}.pkl").write_bytes(pickle.dumps(vectors, protocol=4))
    titles = {str(shop.items[row]): shop.names[row] for row in rows.tolist()}
    (folder / "titles.json").write_text(json.dumps(titles, ensure_ascii=False), encoding="utf-8")
