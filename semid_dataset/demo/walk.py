"""
Walk through what the package does, on a generated shop: `semid demo`.

Makes the shop, reads `semantic_id_dict` for the first time, shows IDs beside names, adds a product, trains a
recommender with IDs and without, starts a second process that only loads, and writes the report.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from semid_dataset.config import SemanticIdConfig
from semid_dataset.dataset import LazySemanticIds, SemanticIdMixin
from semid_dataset.demo.catalogue import FEATURE_ID, Shop, make_shop, write_shop
from semid_dataset.errors import ConfigError, GenerationError
from semid_dataset.progress import Bars, Progress
from semid_dataset.table.table import SemanticIdTable

__all__ = ["ShopDataset", "walk"]

PRODUCTS, CUSTOMERS = 2_400, 4_000
CONFIG = SemanticIdConfig(num_quantizers=3, codebook_size=64)  # 2,400 products: 4 levels of 256 would be mostly empty
MARKER = "made_by_semid_demo"
SHOWN = 3  # customers
SECOND_START = """
import sys, time
from semid_dataset.demo.walk import ShopDataset
dataset = ShopDataset(sys.argv[1])
started = time.perf_counter()
table = dataset.semantic_id_dict
print(f"{1000 * (time.perf_counter() - started):.1f} {len(table)} {table.status}")
"""

Say = Callable[[str], None]


class ShopDataset(SemanticIdMixin):
    """A dataset as small as can be: a data directory, the features in it, and the attribute that the mixin brings."""

    semantic_id_dict: LazySemanticIds = LazySemanticIds(config=CONFIG)

    def __init__(self, data_dir: Path | str) -> None:
        self.data_dir = data_dir
        self.mm_emb_ids: list[str] = [FEATURE_ID]


def walk(folder: Path, say: Say) -> SemanticIdTable:
    """
    Do the whole walk, and return the table at its end; `report.html` in the folder is about it.

    Args:
        folder: made, or made anew where an earlier walk made it.
        say: prints a line.

    Raises:
        ConfigError: the folder holds something else.
        GenerationError: no IDs could be made; the message says why.
    """
    from semid_dataset.report import write_report

    data = _fresh(folder) / "shop"
    say(f"1. A shop: {PRODUCTS:,} products, {CUSTOMERS:,} customers. Generated, with names so that one can judge.")
    shop = make_shop(PRODUCTS, CUSTOMERS)
    newcomer = int(np.flatnonzero(shop.is_new)[0])
    others = np.flatnonzero(np.arange(PRODUCTS) != newcomer)
    write_shop(shop, data, others)

    say("\n2. The first program that reads dataset.semantic_id_dict makes the IDs:")
    table = _read(data)
    say(f"   {len(table):,} products, {table.levels} codes of {table.codebook_sizes[0]} each, status {table.status!r}")

    say("\n3. Products that are alike share their first codes:")
    _show(shop, table, _four(shop, newcomer), say)

    say(f"\n4. One more product arrives: {shop.names[newcomer]}. Known IDs stay; the new one lands among its like:")
    write_shop(shop, data, np.arange(PRODUCTS))
    grown = _read(data)
    kept = int((grown.codes(shop.items[others]) == table.codes(shop.items[others])).all(1).sum())
    say(f"   status {grown.status!r}: {kept:,} of {len(others):,} known products have the ID that they had")
    _show(shop, grown, [newcomer, *_nearest(shop, newcomer, 3)], say)

    say("\n5. The same small recommender, trained with IDs and without. Found among its best ten, what came next:")
    _recommend(shop, grown, say)

    say("\n6. Another process starts:")
    done = subprocess.run(
        [sys.executable, "-c", SECOND_START, str(data)], capture_output=True, text=True, check=True, timeout=300
    )
    milliseconds, items, status = done.stdout.split()
    say(f"   {int(items):,} IDs in {milliseconds} ms, status {status!r}: nothing was read but one mapped file")

    page = folder / "report.html"
    rows = {item: row for row, item in enumerate(shop.items.tolist())}
    vectors = shop.vectors[[rows[item] for item in grown]]
    write_report(grown, page, vectors=vectors, titles=dict(zip(rows, shop.names, strict=True)), name="a generated shop")
    say(f"\n7. The report, one page that loads nothing: {page}")
    return grown


def _fresh(folder: Path) -> Path:
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARKER).exists():
            raise ConfigError(f"'{folder}' holds something else. It was left untouched; name another folder.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()
    return folder


def _read(data: Path) -> SemanticIdTable:
    table = ShopDataset(data).semantic_id_dict
    if table.status == "default":
        raise GenerationError(f"No IDs could be made: {table.reason}")
    return table


def _four(shop: Shop, newcomer: int) -> list[int]:
    """Return a product, two of the nearest, and one of another department."""
    first = next(
        row for row in range(PRODUCTS) if row != newcomer and shop.kinds[row] // 20 != shop.kinds[newcomer] // 20
    )
    far = next(row for row in range(PRODUCTS) if shop.kinds[row] // 20 not in {shop.kinds[first] // 20})
    return [first, *[row for row in _nearest(shop, first, 3) if row != newcomer][:2], far]


def _nearest(shop: Shop, row: int, count: int) -> list[int]:
    order = np.argsort(-(shop.vectors @ shop.vectors[row]), kind="stable")
    return [other for other in order.tolist() if other != row][:count]


def _show(shop: Shop, table: SemanticIdTable, rows: Sequence[int], say: Say) -> None:
    """Print IDs below each other; leading codes that a product shares with the first one stand in brackets."""
    first = table[int(shop.items[rows[0]])]
    width = max(len(shop.names[row]) for row in rows)
    for row in rows:
        codes = table[int(shop.items[row])]
        shared = next((level for level, pair in enumerate(zip(codes, first, strict=True)) if pair[0] != pair[1]), None)
        shared = len(codes) if shared is None else shared
        if row == rows[0]:
            shared = 0
        texts = [f"[{code:2d}]" if level < shared else f" {code:2d} " for level, code in enumerate(codes)]
        say(f"   {shop.names[row]:<{width}}   {' '.join(texts)}{f'  [shares {shared}]' if shared else ''}")


def _recommend(shop: Shop, table: SemanticIdTable, say: Say) -> None:
    from semid_dataset.demo.recommender import EPOCHS, compare, interval  # torch: seconds

    progress = Progress(Bars())
    started = time.perf_counter()
    with progress.stage("training, twice", 2 * EPOCHS, "it"):
        comparison = compare(
            shop,
            table.codes(shop.items, offset=1),
            table.embedding_table_sizes(),
            lambda: progress.advance(1),
        )
    say(f"   {'what came next':<34}{'customers':>10}{'without':>10}{'with IDs':>10}   difference (95 % interval)")
    for found in comparison.slices:
        low, high = interval(found.with_ids, found.without)
        without, with_ids = found.without.mean(), found.with_ids.mean()
        say(
            f"   {found.name:<34}{len(found.without):>10,}{without:>10.1%}{with_ids:>10.1%}"
            f"   {with_ids - without:+.1%} ({low:+.1%} to {high:+.1%})"
        )
    say(f"   ({time.perf_counter() - started:.0f} s for both; the intervals are over customers, of one training each)")
    right = [user for user, best in enumerate(comparison.best.tolist()) if shop.histories[user][-1] in best[:3]]
    for user in [*right[: SHOWN - 1], next(user for user in range(CUSTOMERS) if user not in set(right))]:
        history = shop.histories[user]
        say(f"\n   A customer took    {'; '.join(shop.names[row] for row in history[-4:-1])}")
        for place, row in enumerate(comparison.best[user, :3].tolist()):
            label = "is recommended" if place == 0 else ""
            hit = "   <- what came next" if row == history[-1] else ""
            say(f"   {label:<19}{shop.names[row]}{hit}")
        if history[-1] not in comparison.best[user, :3]:
            say(f"   {'what came next':<19}{shop.names[history[-1]]}")
