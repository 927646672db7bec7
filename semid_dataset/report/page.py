"""
Show what a table's IDs are like: one HTML page that needs nothing else, no network either.

Figures are drawn here, as HTML and SVG, so that they can be read without scripts and on paper. The
tree of codes and the map are drawn by the page itself, out of a sample of items that is packed into
it: all of them up to 16,384, beyond that as many prefixes as possible get one. Counts of the first
two levels are always those of the whole table.

A figure that nobody measured is called "not measured". Where it can be counted from the codes (use, perplexity,
items that share an ID) it is counted anew, because what was measured at training knows nothing of items added since.
"""

import base64
import html
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset import _files as files
from semid_dataset.errors import EmbeddingError
from semid_dataset.report import _svg as charts
from semid_dataset.table.figures import Quality, finite, finites, number, percent
from semid_dataset.table.table import SemanticIdTable

__all__ = ["write_report"]

SAMPLE_ITEMS = 16_384  # items that the page carries
MAP_ITEMS = 8_192  # of a larger table, points on the map
PREFIXES = 65_536  # of two codes, the largest ones
TITLE_BYTES, KEY_BYTES = 80, 48  # longer ones are cut: 12,000 items must stay below 2 MB
GROUPS, MEMBERS = 12, 6  # groups of items that are listed, and items of each
BLOCK = 8_192  # rows at once
BINS = 24
STAGES = ("reading", "fusion", "training", "encoding", "uniqueness", "measuring")  # as they follow one another
UNKNOWN = "not measured"


def write_report(
    table: SemanticIdTable,
    path: Path | str,
    *,
    vectors: NDArray[Any] | None = None,
    titles: Mapping[Any, str] | None = None,
    candidates: Any = None,
) -> Path:
    """
    Write a page about a table: what its IDs are worth, what is in them, where they come from.

    Args:
        table: what to show.
        path: of the page; folders are made as needed, a file that is there is replaced in one step.
        vectors: (items, dim), the vectors the IDs were made of, one row an item in the order of
            `table.keys_array`. With them the page lists exact duplicates, the map shows vectors instead of codewords,
            and what nobody measured at training is measured now (which loads torch).
        titles: {item: what people call it}, under any spelling of the item that the table knows.
        candidates: items that will be asked for, as in `table.rows_of`: their coverage is shown. Without
            them it is that of the items that have titles.

    Returns:
        The path.

    Raises:
        EmbeddingError: the vectors do not fit the table, or one is not finite.
        OSError: the page could not be written; what was there before is as it was.
    """
    page = _page(table, vectors, titles or {}, candidates)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.replace_file(path, [page.encode("utf-8", "replace")])
    return path


def _page(table: SemanticIdTable, vectors: NDArray[Any] | None, titles: Mapping[Any, str], candidates: Any) -> str:
    if vectors is not None:
        vectors = _checked(table, np.asarray(vectors))
    quality = table.quality
    if vectors is not None and table.has_quantizer:
        quality = _measured(table, quality, vectors)
    facts = _Facts(table, quality, _Order.of(table.codes_array), titles, candidates, vectors)
    data = _data(facts)
    sections = (
        _head(facts)
        + _collisions(facts)
        + _levels(facts)
        + _training(facts)
        + _explorer(facts)
        + _map(facts, data)
        + _groups(facts)
        + _run(facts)
        + _provenance(facts)
    )
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime())
    body = f"<main>{sections}</main><footer>Made by semid_dataset, {made}. This page loads nothing.</footer>"
    parts = {
        "title": html.escape(f"Semantic IDs of {len(table):,} items"),
        "style": _asset("style.css"),
        "body": body,
        # "<" can only stand inside of strings, where \u003c says the same and no tag can be closed.
        "data": json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
        "script": _asset("page.js"),
    }
    pieces = _asset("page.html").split("{{")
    return pieces[0] + "".join(parts[name] + rest for name, _, rest in (piece.partition("}}") for piece in pieces[1:]))


def _asset(name: str) -> str:
    return (resources.files("semid_dataset.report") / "static" / name).read_text(encoding="utf-8").strip()


def _checked(table: SemanticIdTable, vectors: NDArray[Any]) -> NDArray[Any]:
    dim = table.info["quantizer"].get("dim") if table.has_quantizer else None
    if vectors.ndim != 2 or len(vectors) != len(table) or (dim is not None and vectors.shape[1] != dim):
        wanted = f"({len(table)}, {dim or 'dim'})"
        raise EmbeddingError(
            f"Vectors of shape {vectors.shape} do not fit this table; wanted {wanted}. "
            "Give one row an item, in the order of table.keys_array."
        )
    for begin in range(0, len(vectors), BLOCK):
        bad = ~np.isfinite(vectors[begin : begin + BLOCK]).all(1)
        if bad.any():
            raise EmbeddingError(f"Row {begin + int(bad.argmax())} of the vectors is not finite (NaN or inf).")
    return vectors


def _measured(table: SemanticIdTable, quality: Quality, vectors: NDArray[Any]) -> Quality:
    """Return the quality with what is missing in it and can be had from codes and vectors."""
    missing = {"relative_mse", "relative_mse_levels", "neighbour_fidelity"} - quality.keys()
    # What was measured at training is of fewer items where some were added since.
    if finite(quality.get("items")) != len(table):
        missing = {"relative_mse", "relative_mse_levels", "neighbour_fidelity"}
    if not missing or not len(table):
        return quality
    from semid_dataset.codec import metrics as measures  # torch: seconds

    quantizer, codes = table.quantizer, table.codes_array
    anew: dict[str, Any] = {}
    if "relative_mse" in missing:
        anew["relative_mse"] = measures.relative_mse(quantizer, vectors, codes)
    if "relative_mse_levels" in missing:
        anew["relative_mse_levels"] = measures.relative_mse_levels(quantizer, vectors, codes)
    if "neighbour_fidelity" in missing:
        anew["neighbour_fidelity"] = measures.neighbour_fidelity(vectors, codes)
    return Quality({**quality, **anew})


@dataclass(frozen=True)
class _Order:
    """
    Rows in the order of their IDs, in which every prefix is one run.

    Attributes:
        rows: (n,) positions in the table.
        codes: (n, levels), in that order.
        starts: per level, where a new prefix of so many codes begins.
    """

    rows: NDArray[np.int64]
    codes: NDArray[Any]
    starts: tuple[NDArray[np.int64], ...]

    @classmethod
    def of(cls, codes: NDArray[Any]) -> "_Order":
        rows = np.lexsort(codes.T[::-1]) if len(codes) else np.empty(0, np.int64)
        ordered = codes[rows]
        new = np.ones(len(codes), bool)
        new[1:] = False
        starts = []
        for level in range(codes.shape[1]):
            new[1:] |= ordered[1:, level] != ordered[:-1, level]
            starts.append(np.flatnonzero(new))
        return cls(rows, ordered, tuple(starts))

    def counts(self, level: int) -> NDArray[np.int64]:
        """Return how many items every prefix of level + 1 codes has, in order."""
        return np.diff(self.starts[level], append=len(self.rows))


@dataclass(frozen=True)
class _Facts:
    """What the sections are written from."""

    table: SemanticIdTable
    quality: Quality
    order: _Order
    titles: Mapping[Any, str]
    candidates: Any
    vectors: NDArray[Any] | None

    def part(self, name: str) -> Mapping[str, Any]:
        part = self.table.info.get(name)
        return part if isinstance(part, dict) else {}

    def figure(self, name: str) -> float | None:
        return finite(self.quality.get(name))

    @property
    def groups(self) -> NDArray[np.int64]:
        """How many items every ID has."""
        return self.order.counts(self.table.levels - 1)

    @property
    def shared(self) -> int:
        """Items that are not alone with their ID."""
        return int(self.groups[self.groups > 1].sum())

    @property
    def grown(self) -> bool:
        """Whether items were added since the quality was measured."""
        measured = self.figure("items")
        return measured is not None and measured != len(self.table)

    def keys(self, rows: NDArray[np.int64]) -> list[int | str]:
        keys = self.table.keys_array
        if isinstance(keys, list):
            return [keys[row] for row in rows.tolist()]
        found: list[int | str] = keys[rows].tolist()
        return found

    def title(self, key: int | str) -> str:
        """Return what people call an item, "" where nobody said."""
        found = self.titles.get(key)
        if found is None:
            other: Any = str(key)
            if isinstance(key, str) and key.lstrip("-").isdecimal():
                other = int(key)
            found = self.titles.get(other)
        return "" if found is None else " ".join(str(found).split())

    def coverage(self) -> tuple[float, int, str] | None:
        """Return the share of the items asked for that have an ID, their number and what they are."""
        if self.candidates is not None:
            rows = self.table.rows_of(self.candidates)
            return (float((rows >= 0).mean()), rows.size, "candidates") if rows.size else None
        if self.titles:
            known = sum(item in self.table for item in self.titles)
            return known / len(self.titles), len(self.titles), "items with titles"
        return None


# --- what the page's script gets --------------------------------------------------------------


def _data(facts: _Facts) -> dict[str, Any]:
    """Return the sample, counts of prefixes and the map, as JSON types."""
    table, order = facts.table, facts.order
    picked = _sample(order)
    keys = facts.keys(order.rows[picked])
    titles = [_cut(facts.title(key), TITLE_BYTES) for key in keys]
    points = np.arange(len(picked)) if len(picked) == len(table) else None
    if points is None:  # evenly drawn: the sample favours small prefixes
        points = np.sort(np.random.default_rng(0).permutation(len(table))[:MAP_ITEMS])
    places, source = _places(facts, order.rows[points], order.codes[points])
    ones = order.starts[0]
    data: dict[str, Any] = {
        "items": len(table),
        "levels": table.levels,
        "sizes": list(table.codebook_sizes),
        "keys": [_cut(str(key), KEY_BYTES) for key in keys],
        "titles": titles if any(titles) else None,
        "codes": _packed(order.codes[picked], "<u2"),
        "first": {"codes": _packed(order.codes[ones, 0], "<u2"), "counts": _packed(order.counts(0), "<u4")},
        "second": None,
        "map": None,
    }
    if table.levels > 1 and len(table):
        counts, twos = order.counts(1), order.starts[1]
        largest = np.sort(np.argsort(-counts, kind="stable")[:PREFIXES])
        data["second"] = {
            "codes": _packed(order.codes[twos[largest], :2], "<u2"),
            "counts": _packed(counts[largest], "<u4"),
        }
    if places is not None:
        data["map"] = {
            "places": _packed(places, "<u2"),
            "codes": _packed(order.codes[points, 0], "<u2"),
            "source": source,
            "whole": len(points) == len(table),
        }
    return data


def _sample(order: _Order) -> NDArray[np.int64]:
    """Return positions in the order: all, or such that as many prefixes of two codes as possible have one."""
    items = len(order.rows)
    if items <= SAMPLE_ITEMS:
        return np.arange(items)
    starts = order.starts[min(1, len(order.starts) - 1)]
    chance = np.random.default_rng(0).permutation(items)
    group = np.repeat(np.arange(len(starts)), np.diff(starts, append=items))
    shuffled = np.lexsort((chance, group))  # groups stay runs, in the same places
    turn = np.arange(items) - starts[group]
    picked: NDArray[np.int64] = np.sort(shuffled[np.lexsort((chance[shuffled], turn))[:SAMPLE_ITEMS]])
    return picked


def _places(facts: _Facts, rows: NDArray[np.int64], codes: NDArray[Any]) -> tuple[NDArray[np.uint16] | None, str]:
    """Return two coordinates of each row, 0…65,535, and what they are; None where there is nothing to place."""
    if len(rows) < 3:
        return None, ""
    if facts.vectors is not None:
        points = np.asarray(facts.vectors[rows], np.float32)
        source = "the items' vectors"
    elif (words := facts.table.weights.get("codebooks")) is not None and facts.table.has_quantizer:
        offsets = np.cumsum([0, *facts.table.codebook_sizes[:-1]])
        if words.ndim != 2 or int((codes + offsets).max()) >= len(words):
            return None, ""
        points = np.zeros((len(rows), words.shape[1]), np.float32)
        for level, offset in enumerate(offsets):
            points += words[codes[:, level] + offset]
        source = "the sums of the items' codewords"
    else:
        return None, ""
    points = points - points.mean(0)
    total = float(np.square(points, dtype=np.float64).sum())
    if total <= 0:
        return None, ""
    # Two axes of largest variance by subspace iteration: a covariance of 4,096 dims would take half a minute.
    basis = np.random.default_rng(0).normal(size=(points.shape[1], min(points.shape[1], 10))).astype(np.float32)
    for _ in range(8):
        basis, _ = np.linalg.qr(points.T @ (points @ basis))
    flat = points @ basis
    _, _, turned = np.linalg.svd(flat, full_matrices=False)
    flat = flat @ turned.T[:, :2]
    if flat.shape[1] < 2:
        flat = np.column_stack([flat, np.zeros(len(flat))])
    kept = float(np.square(flat, dtype=np.float64).sum()) / total
    low, high = np.percentile(flat, [0.03, 99.97], axis=0)
    scaled = np.clip((flat - low) / np.maximum(high - low, 1e-12), 0, 1)
    return (scaled * 65535).astype(np.uint16), f"{source}; the two axes hold {percent(min(kept, 1.0))} of the variance"


def _packed(values: NDArray[Any], dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype).tobytes()).decode()


def _cut(text: str, most: int) -> str:
    """Return a text of at most so many bytes."""
    if len(text) * 4 <= most or len(data := text.encode("utf-8", "replace")) <= most:
        return text
    return data[: most - 3].decode("utf-8", "ignore") + "…"


# --- sections ---------------------------------------------------------------------------------


def _head(facts: _Facts) -> str:
    table = facts.table
    poor = table.status in {"stale", "default"} or not len(table)
    where = "in memory" if table.path is None else str(table.path)
    said = table.reason if where in table.reason else " · ".join(filter(None, (table.reason, where)))
    links = (
        ("collisions", "Collisions"), ("levels", "Levels"), ("training", "Training"), ("tree", "Tree of codes"),
        ("map", "Map"), ("groups", "Groups"), ("run", "Run"), ("provenance", "Provenance"),
    )  # fmt: skip
    pages = "".join(f'<a href="#{anchor}">{name}</a>' for anchor, name in links)
    notice = ""
    if not len(table):
        notice = "This table holds no item: every item gets the default ID, all zeros."
    elif table.status == "stale":
        notice = "These IDs are stale: items that the table does not know get the default ID."
    if notice:
        notice = f'<p class="notice">{notice}</p>'
    return (
        f'<header><h1>Semantic IDs of {len(table):,} items</h1><p class="lead">'
        f'<span class="status{" poor" if poor else ""}">{html.escape(table.status)}</span> '
        f"{html.escape(said)}</p>"
        f"{notice}<nav class='pages' aria-label='Sections'>{pages}</nav></header>{_tiles(facts)}"
    )


def _tiles(facts: _Facts) -> str:
    table, provenance = facts.table, facts.part("provenance")
    capacity = math.prod(table.codebook_sizes) - 1
    sizes = " x ".join(f"{size:,}" for size in table.codebook_sizes)
    tiles = [_tile("Items with an ID", f"{len(table):,}", f"of {max(capacity, 0):,} possible ({sizes})")]
    coverage = facts.coverage()
    if coverage is None:
        tiles.append(_tile("Coverage", None, "no candidates and no titles were given"))
    else:
        share, asked, kind = coverage
        tiles.append(_tile("Coverage", percent(share), f"of {asked:,} {kind} have an ID"))
    raw = facts.figure("collision_rate_raw")
    shared = percent(facts.shared / len(table)) if len(table) else None
    tiles.append(_tile("Share their ID", shared, f"before uniqueness: {UNKNOWN if raw is None else percent(raw)}"))
    error, held_out = facts.figure("relative_mse"), facts.figure("relative_mse_held_out")
    since = f"; of the {facts.figure('items'):,.0f} items at training" if facts.grown and facts.vectors is None else ""
    tiles.append(
        _tile(
            "Relative error",
            None if error is None else number(error),
            f"held out: {UNKNOWN if held_out is None else number(held_out)}; 0 is exact, 1 is the mean{since}",
        )
    )
    near, other = _fidelity(facts)
    tiles.append(
        _tile(
            "Neighbours share code 1",
            percent(near[0]) if near else None,
            f"random pairs: {percent(other[0]) if other else UNKNOWN}",
        )
    )
    seconds, memory = finite(provenance.get("seconds")), finite(provenance.get("peak_rss_bytes"))
    tiles.append(
        _tile(
            "Made in",
            None if seconds is None else _seconds(seconds),
            f"peak memory: {UNKNOWN if memory is None else _bytes(memory)}",
        )
    )
    return f'<section class="tiles" aria-label="At a glance">{"".join(tiles)}</section>'


def _tile(name: str, value: str | None, below: str) -> str:
    shown = f'<b class="none">{UNKNOWN}</b>' if value is None else f"<b>{html.escape(value)}</b>"
    return f'<div class="tile"><span class="name">{name}</span>{shown}<span>{html.escape(below)}</span></div>'


def _collisions(facts: _Facts) -> str:
    items = len(facts.table)
    groups = facts.groups

    def raw(name: str, show: Callable[[float], str]) -> str | None:
        value = facts.figure(name)
        return None if value is None else show(value)

    rows = [
        (
            "Items that share their ID",
            raw("collision_rate_raw", percent),
            f"{percent(facts.shared / items)} ({facts.shared:,})" if items else None,
        ),
        ("Distinct IDs per item", raw("unique_rate_raw", percent), percent(len(groups) / items) if items else None),
        ("Largest group with one ID", raw("largest_group_raw", number), f"{int(groups.max(initial=0)):,}"),
    ]
    moved, duplicates = facts.figure("moved"), facts.figure("exact_duplicates")
    below = (
        f"To be unique, {UNKNOWN if moved is None else f'{int(moved):,}'} items took another code than their nearest. "
        f"Exact duplicates among the vectors: {UNKNOWN if duplicates is None else f'{int(duplicates):,}'}."
    )
    grown = ""
    if facts.grown:
        grown = f"<p class='soft'>Raw figures are of the {facts.figure('items'):,.0f} items at training.</p>"
    body = "".join(f'<tr><th scope="row">{name}</th>{_cell(before)}{_cell(after)}</tr>' for name, before, after in rows)
    return _section(
        "collisions",
        "Collisions",
        "Raw is what the codebooks give, final what was stored after uniqueness. Only the two together say something: "
        "anything can be made unique.",
        f'<div class="card wide"><table><thead><tr><th></th><th class="n" scope="col">raw</th>'
        f'<th class="n" scope="col">final</th></tr></thead><tbody>{body}</tbody></table></div><p>{below}</p>{grown}',
    )


def _levels(facts: _Facts) -> str:
    table, items = facts.table, len(facts.table)
    errors = finites(facts.quality.get("relative_mse_levels"))
    errors = errors if len(errors) == table.levels else []
    rows, figures = [], []
    for level, size in enumerate(table.codebook_sizes):
        counts = np.bincount(table.codes_array[:, level], minlength=size)
        used = int((counts > 0).sum())
        shares = counts[counts > 0] / max(items, 1)
        perplexity = float(np.exp(-(shares * np.log(shares)).sum())) if items else None
        even = None if perplexity is None else perplexity / max(size, 1)
        bar = "" if even is None else f'<span class="bar" aria-hidden="true"><i style="width:{even:.1%}"></i></span>'
        rows.append(
            f'<tr><th scope="row">{level + 1}</th>'
            + _cell(f"{used:,}/{size:,}" if items else None)
            + _cell(None if perplexity is None else f"{perplexity:,.1f}", bar)
            + _cell(f"{len(facts.order.starts[level]):,}" if items else None)
            + _cell(f"{int(counts.max(initial=0)):,}" if items else None)
            + _cell(number(errors[level]) if errors else None)
            + "</tr>"
        )
        if items:
            figures.append(_sizes(counts, level))
    if errors:
        drawing = charts.columns(
            errors,
            [str(level + 1) for level in range(table.levels)],
            lambda value: f"{value:.3f}",
            "Relative error with the first codes alone: " + ", ".join(f"{error:.3f}" for error in errors),
            "codes known",
        )
        error_figure = _figure("Error left after each level", drawing, "1 is the error of the mean alone.")
    else:
        error_figure = _figure("Error left after each level", None, "")
    head = "".join(
        f'<th class="n" scope="col">{name}</th>'
        for name in ("codes used", "perplexity", "prefixes in use", "largest code", "error so far")
    )
    return _section(
        "levels",
        "Levels",
        "Perplexity is how many evenly used codes would carry as much. Near the number of codes is good; "
        "the bar says how near.",
        f'<div class="card wide"><table><thead><tr><th scope="col">level</th>{head}</tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table></div><div class="charts">{"".join(figures)}{error_figure}</div>',
    )


def _sizes(counts: NDArray[np.int64], level: int) -> str:
    """Draw how many codes of a level have how many items."""
    used = counts[counts > 0]
    top = int(used.max(initial=1))
    width = max(-(-top // BINS), 1)
    bins = np.bincount((used - 1) // width)
    names = [
        str(place * width + 1) if width == 1 else f"{place * width + 1:,}–{(place + 1) * width:,}"
        for place in range(len(bins))
    ]
    short = [name.partition("–")[0] for name in names]
    unused = int((counts == 0).sum())
    return _figure(
        f"Level {level + 1}: sizes of codes",
        charts.columns(
            bins.tolist(),
            short,
            lambda value: f"{value:,.0f}",
            f"How many codes of level {level + 1} have how many items; {unused} have none",
            "items with the code" if width == 1 else f"items with the code, in bins of {width:,}",
        ),
        f"Number of codes by how many items have them. Median {np.median(used) if len(used) else 0:,.0f}, "
        f"largest {top:,}; {unused:,} of {len(counts):,} unused.",
    )


def _training(facts: _Facts) -> str:
    loss = finites(facts.quality.get("loss"))
    algorithm = facts.part("settings").get("algorithm")
    unit = "round" if algorithm == "rqkmeans" else "epoch"
    curve = None
    if loss:
        words = f"Loss of {len(loss)} {unit}s, from {loss[0]:.4g} to {loss[-1]:.4g}"
        spread = (max(loss) - min(loss)) or abs(loss[0]) or 1.0
        digits = min(max(1 - math.floor(math.log10(spread)), 0), 4)  # as many as tell the values apart
        curve = charts.line(loss, lambda value: f"{value:.{digits}f}", words, unit)
    start, end = facts.figure("held_out_start"), facts.figure("relative_mse_held_out")
    held = ""
    if start is not None and end is not None:
        count = facts.figure("held_out_items")
        among = "" if count is None else f"{count:,.0f} "
        held = f"Error of {among}items held out: {start:.4f} with the codebooks alone, {end:.4f} in the end."
    scale = "The scale does not begin at 0. " if curve and min(loss) > 0 else ""
    figures = _figure("Training curve: loss" if curve else "Training curve", curve, scale + held)
    near, other = _fidelity(facts)
    drawing = None
    if near and len(near) == len(other):
        drawing = charts.pairs(
            near,
            other,
            [f"first {depth + 1}" for depth in range(len(near))],
            lambda share: f"{share:.1%}" if share >= 0.001 else "0%" if share == 0 else "<0.1%",
            "Pairs that share their first codes: near neighbours "
            + ", ".join(map(percent, near))
            + "; random pairs "
            + ", ".join(map(percent, other)),
            "codes in common",
        )
    key = '<span class="key"><i class="full"></i>the 10 nearest items <i></i>random pairs</span>' if drawing else ""
    figures += _figure("Neighbour fidelity", drawing, key, raw=True)
    return _section(
        "training",
        "Training and neighbours",
        "Items that lie near one another should share their leading codes, and far more often than random pairs do.",
        f'<div class="charts">{figures}</div>',
    )


def _explorer(facts: _Facts) -> str:
    if not len(facts.table):
        return _section("tree", "Tree of codes", "", '<p class="none">The table holds no item.</p>')
    whole = len(facts.table) <= SAMPLE_ITEMS
    said = "Every item is in it" if whole else f"It lists a sample of {SAMPLE_ITEMS:,} items; counts of the first two "
    said += "." if whole else "levels are of all."
    words = " Words are those by which an item's titles differ from the rest." if facts.titles else ""
    return _section(
        "tree",
        "Tree of codes",
        f"Items with the same first code lie in one sector, outward ring by ring to the last code. {said}{words} "
        "Click a sector to go in, the middle to go out; click a row to open it.",
        '<div class="explorer"><div class="card sun"><canvas id="sun" role="img" aria-label="Sunburst of the codes; '
        'the list beside it says the same"></canvas><p class="tip" id="sun-tip" aria-live="polite"></p></div>'
        '<div class="card"><input class="find" id="find" type="search" placeholder="Find an item by id'
        f'{" or title" if facts.titles else ""}" aria-label="Find an item">'
        '<div class="path" id="path" aria-label="Where you are"></div><ul class="tree" id="tree-list"></ul>'
        "<noscript><p>The tree needs the page's own script; nothing is loaded.</p></noscript></div></div>",
    )


def _map(facts: _Facts, data: Mapping[str, Any]) -> str:
    places = data["map"]
    if places is None:
        said = "" if len(facts.table) else " The table holds no item."
        body = f'<p class="none">{UNKNOWN}: neither vectors nor codebooks are at hand.{said}</p>'
        return _section("map", "Map", "", body)
    drawn = "" if places["whole"] else f" ({MAP_ITEMS:,} items drawn at random)"
    return _section(
        "map",
        "Map",
        f"Principal axes of {html.escape(places['source'])}. Each dot is an item{drawn}, coloured by its first code; "
        "codes that lie near one another get similar colours. The largest are named; point at a dot, or tap it, "
        "for the rest.",
        '<div class="card map"><canvas id="map-canvas" role="img" aria-label="Map of the items"></canvas>'
        '<p class="tip" id="map-tip" aria-live="polite"></p></div>',
    )


def _groups(facts: _Facts) -> str:
    shared = facts.groups
    largest = [int(place) for place in np.argsort(-shared, kind="stable")[:GROUPS] if shared[place] > 1]
    if largest:
        starts = facts.order.starts[-1]
        listed = "".join(
            _group(
                facts,
                "-".join(map(str, facts.order.codes[starts[place]].tolist())),
                facts.order.rows[starts[place] : starts[place] + min(MEMBERS, int(shared[place]))],
                int(shared[place]),
            )
            for place in largest
        )
        same = f'<div class="card wide"><table><tbody>{listed}</tbody></table></div>'
    elif len(facts.table):
        same = "<p>Every item has an ID of its own.</p>"
    else:
        same = f'<p class="none">{UNKNOWN}: the table holds no item.</p>'
    if facts.vectors is None:
        count = facts.figure("exact_duplicates")
        known = UNKNOWN if count is None else f"{int(count):,} counted at training"
        twins = f'<p class="none">{known}; the vectors were not given, so they are not listed.</p>'
    else:
        groups = _duplicates(facts.vectors)
        total = sum(len(group) - 1 for group in groups)
        twins = f"<p>{total:,} {'vector equals' if total == 1 else 'vectors equal'} another one exactly.</p>"
        if groups:
            listed = "".join(_group(facts, "", group[:MEMBERS], len(group)) for group in groups[:GROUPS])
            twins += f'<div class="card wide"><table><tbody>{listed}</tbody></table></div>'
    return _section("groups", "Largest groups with one ID", "", f"{same}<h2>Exact duplicates</h2>{twins}")


def _group(facts: _Facts, name: str, rows: NDArray[np.int64], size: int) -> str:
    members = []
    for row, key in zip(rows.tolist(), facts.keys(rows), strict=True):
        codes = (
            "" if name else f' <code class="soft">{"-".join(map(str, facts.table.codes_array[row].tolist()))}</code>'
        )
        title = _cut(facts.title(key), TITLE_BYTES)
        members.append(f'<span class="id">{html.escape(_cut(str(key), KEY_BYTES))}</span>{codes} {html.escape(title)}')
    if size > len(members):
        members.append(f'<span class="soft">and {size - len(members):,} more</span>')
    head = f"<code>{name}</code><br>" if name else ""
    return f'<tr><th scope="row">{head}{size:,} items</th><td>{"<br>".join(members)}</td></tr>'


def _duplicates(vectors: NDArray[Any]) -> list[NDArray[np.int64]]:
    """Return rows of equal vectors, largest groups first; rows are compared by a hash, then in full."""
    factors = np.random.default_rng(0).integers(1, 1 << 62, vectors.shape[1], np.uint64) * 2 + 1
    hashes = np.empty(len(vectors), np.uint64)
    for begin in range(0, len(vectors), BLOCK):
        block = np.ascontiguousarray(vectors[begin : begin + BLOCK], np.float32) + np.float32(0)  # -0 is 0
        hashes[begin : begin + BLOCK] = (block.view(np.uint32).astype(np.uint64) * factors).sum(1, dtype=np.uint64)
    order = np.argsort(hashes, kind="stable")
    starts = np.flatnonzero(np.r_[True, hashes[order][1:] != hashes[order][:-1]]) if len(order) else order
    sizes = np.diff(starts, append=len(order))
    found = []
    for place in np.flatnonzero(sizes > 1).tolist():
        rows = order[starts[place] : starts[place] + sizes[place]]
        same = (vectors[rows] == vectors[rows[0]]).all(1)
        if same.sum() > 1:
            found.append(rows[same])
    return sorted(found, key=len, reverse=True)


def _run(facts: _Facts) -> str:
    provenance = facts.part("provenance")
    seconds, memory = finite(provenance.get("seconds")), finite(provenance.get("peak_rss_bytes"))
    rows = [
        ("All of it", None if seconds is None else _seconds(seconds)),
        ("Peak memory of the process", None if memory is None else _bytes(memory)),
        ("Device", provenance.get("device")),
    ]
    stages = provenance.get("stages")
    taken = [(str(name), finite(value)) for name, value in stages.items()] if isinstance(stages, dict) else []
    taken.sort(key=lambda stage: STAGES.index(stage[0]) if stage[0] in STAGES else len(STAGES))
    longest = max((value for _, value in taken if value is not None), default=0.0)
    listed = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th>'
        + _cell(
            None if value is None else _seconds(value),
            ""
            if value is None or longest <= 0
            else f'<span class="bar" aria-hidden="true"><i style="width:{value / longest:.1%}"></i></span>',
        )
        + "</tr>"
        for name, value in taken
    )
    if not listed:
        listed = f'<tr><th scope="row">Stages</th>{_cell(None)}</tr>'
    return _section(
        "run",
        "The run that made them",
        "",
        f'<div class="charts"><div class="card"><table class="facts"><tbody>{_rows(rows)}</tbody></table></div>'
        f'<div class="card"><table><tbody>{listed}</tbody></table></div></div>',
    )


def _provenance(facts: _Facts) -> str:
    table, identity = facts.table, facts.part("identity")
    provenance, settings = facts.part("provenance"), facts.part("settings")
    features = identity.get("features")
    named = None
    if isinstance(features, list):
        named = ", ".join(":".join(map(str, feature)) for feature in features if isinstance(feature, list))
    sources = provenance.get("files")
    rows = [
        ("Status", f"{table.status}{': ' if table.reason else ''}{table.reason}"),
        ("File", "in memory" if table.path is None else str(table.path)),
        ("Digest", table.digest or None),
        ("Lineage", f"{table.lineage}, generation {table.generation}" if table.lineage else None),
        ("Born", _date(provenance.get("born"))),
        ("Features (id:dim)", named or None),
        ("Fusion", identity.get("fusion")),
        ("Quantizer", "in the file: new items can be encoded" if table.has_quantizer else "none in the file"),
        ("Embeddings", provenance.get("embeddings")),
        ("Files read", ", ".join(map(str, sources)) if isinstance(sources, dict) and sources else None),
        ("Rows skipped", number(bad) if (bad := finite(provenance.get("bad_rows"))) is not None else None),
        ("Settings", ", ".join(f"{name}={value}" for name, value in settings.items()) or None),
    ]
    history = table.info.get("history")
    steps = [step for step in history if isinstance(step, dict)] if isinstance(history, list) else []
    told = "".join(
        f'<tr><td class="n">{html.escape(str(step.get("generation", "")))}</td>'
        f"<td>{html.escape(_date(step.get('time')) or UNKNOWN)}</td>"
        + "".join(
            _cell(None if (value := finite(step.get(name))) is None else number(value))
            for name in ("items", "new", "moved")
        )
        + "</tr>"
        for step in steps[-20:]
    )
    if told:
        told = (
            '<h3>Generations</h3><table><thead><tr><th class="n" scope="col">no.</th><th scope="col">when</th>'
            '<th class="n" scope="col">items</th><th class="n" scope="col">new</th>'
            f'<th class="n" scope="col">moved</th></tr></thead><tbody>{told}</tbody></table>'
        )
        told = f'<div class="card wide" style="margin-top:12px">{told}</div>'
    return _section(
        "provenance",
        "Provenance",
        "",
        f'<div class="card"><table class="facts"><tbody>{_rows(rows, "not recorded")}</tbody></table></div>{told}',
    )


def _section(anchor: str, name: str, lead: str, body: str) -> str:
    said = f'<p class="soft">{lead}</p>' if lead else ""
    return f'<section id="{anchor}"><h2>{name}</h2>{said}{body}</section>'


def _figure(name: str, drawing: str | None, below: str, *, raw: bool = False) -> str:
    shown = f'<p class="none">{UNKNOWN}</p>' if drawing is None else drawing
    return f"<figure><h3>{name}</h3>{shown}<figcaption>{below if raw else html.escape(below)}</figcaption></figure>"


def _cell(value: str | None, after: str = "") -> str:
    if value is None:
        return f'<td class="n none">{UNKNOWN}</td>'
    return f'<td class="n">{html.escape(value)}{after}</td>'


def _rows(rows: Sequence[tuple[str, object]], unknown: str = UNKNOWN) -> str:
    return "".join(
        f'<tr><th scope="row">{name}</th>'
        + (f'<td class="none">{unknown}</td>' if value is None else f"<td>{html.escape(str(value))}</td>")
        + "</tr>"
        for name, value in rows
    )


def _fidelity(facts: _Facts) -> tuple[list[float], list[float]]:
    found = facts.quality.get("neighbour_fidelity")
    if not isinstance(found, Mapping):
        return [], []
    return finites(found.get("neighbours")), finites(found.get("random"))


def _seconds(value: float) -> str:
    if value < 10:
        return f"{value:.2f} s"
    return f"{value:,.1f} s" if value < 120 else f"{value / 60:,.1f} min"


def _bytes(value: float) -> str:
    return f"{value / 1e6:,.0f} MB" if value < 1e9 else f"{value / 1e9:,.2f} GB"


def _date(value: object) -> str | None:
    seconds = finite(value)
    if seconds is None:
        return None
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return None
