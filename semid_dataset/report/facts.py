"""
Say what a page about a table says, as data: figures, checks and words of JSON types, in no language.

A figure that nobody measured is None. Where it can be counted from the codes (use, perplexity, items that share an ID)
it is counted anew, because what was measured at training knows nothing of items added since.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset.errors import EmbeddingError
from semid_dataset.objects import as_matrix, shown
from semid_dataset.report._map import duplicates
from semid_dataset.report._prefixes import Prefixes, Sample, sample_of
from semid_dataset.report._topics import topics
from semid_dataset.report.checks import answer
from semid_dataset.table.figures import Quality, finite, finites
from semid_dataset.table.table import SemanticIdTable

__all__ = ["Material", "facts_of", "report_facts"]

TITLE_BYTES, KEY_BYTES = 80, 48  # longer ones are cut: 16,384 items must stay below 3 MB
GROUPS, MEMBERS = 12, 6  # groups of items that are listed, and items of each
FIRST = 24  # prefixes that are told in words
BLOCK = 8_192  # rows at once
CACHE = ".semantic_ids"  # folder of the tables in a data directory
BINS = 24  # of a histogram, at most
STEPS = 1_000  # of the table's history, the last ones
STAGES = ("reading", "fusion", "training", "encoding", "uniqueness", "measuring")  # as they follow one another


def report_facts(
    table: SemanticIdTable,
    *,
    vectors: NDArray[Any] | None = None,
    titles: Mapping[Any, str] | None = None,
    candidates: Any = None,
    name: str | None = None,
) -> dict[str, Any]:
    """
    Return what `write_report` says about a table, as data that `json.dumps` takes.

    Args:
        table: what to look at.
        vectors: (items, dim), see `write_report`.
        titles: {item: what people call it}.
        candidates: items that will be asked for.
        name: of the data; else the embedding files', the table's folder's or the table's own.

    Returns:
        name, date, items, levels, sizes, status ...: what the table is;
        answer: "verdict" ("good", "watch", "bad" or "unknown"), "checks", each with "check", "verdict" and "values",
        and "notes", what else has to be said; prefixes: the largest first codes and what they are about;
        collisions, errors, neighbours, per_level, training, history, groups, duplicates, run, provenance: the figures.

    Raises:
        EmbeddingError: the vectors do not fit the table, or one is not finite.
    """
    return facts_of(Material.of(table, vectors=vectors, titles=titles, candidates=candidates, name=name))


@dataclass(frozen=True)
class Material:
    """
    What facts and drawings are made from.

    Attributes:
        table, titles, candidates, name: as in `report_facts`.
        vectors: checked, or None.
        quality: the table's, completed by what the vectors tell.
        order: its rows in the order of their IDs.
        sample: the items that a page carries.
    """

    table: SemanticIdTable
    quality: Quality
    order: Prefixes
    sample: Sample
    titles: Mapping[Any, str]
    candidates: Any
    vectors: NDArray[Any] | None
    name: str | None

    @classmethod
    def of(
        cls,
        table: SemanticIdTable,
        *,
        vectors: NDArray[Any] | None,
        titles: Mapping[Any, str] | None,
        candidates: Any,
        name: str | None,
    ) -> "Material":
        """Check the vectors, measure what is missing, order the rows."""
        if vectors is not None:
            vectors = _checked(table, as_matrix(vectors, "the vectors"))
        quality = table.quality
        if vectors is not None and table.has_quantizer:
            quality = _measured(table, quality, vectors)
        order = Prefixes.of(table.codes_array)
        return cls(table, quality, order, sample_of(order), titles or {}, candidates, vectors, name)

    def part(self, name: str) -> Mapping[str, Any]:
        """Return a part of the table's info, {} for anything that is none."""
        part = self.table.info.get(name)
        return part if isinstance(part, dict) else {}

    def figure(self, name: str) -> float | None:
        """Return a figure of the quality, None where it was not measured."""
        return finite(self.quality.get(name))

    def keys(self, rows: NDArray[np.int64]) -> list[int | str]:
        """Return the items of rows of the table."""
        keys = self.table.keys_array
        if isinstance(keys, list):
            return [keys[row] for row in rows.tolist()]
        found: list[int | str] = keys[rows].tolist()
        return found

    def title(self, key: int | str) -> str:
        """Return what people call an item in one line, "" where nobody said."""
        found = self.titles.get(key)
        if found is None:
            other: Any = str(key)
            if isinstance(key, str) and key.lstrip("-").isdecimal():
                other = int(key)
            found = self.titles.get(other)
        if not isinstance(found, str | int | float):  # what is no text says nothing
            return ""
        text = found if isinstance(found, str) else shown(found)
        return cut(" ".join(text.split()), TITLE_BYTES)


def cut(text: str, most: int) -> str:
    """Return a text of at most so many bytes."""
    if len(text) * 4 <= most or len(data := text.encode("utf-8", "replace")) <= most:
        return text
    return data[: most - 3].decode("utf-8", "ignore") + "…"


def facts_of(material: Material) -> dict[str, Any]:
    """Return the facts; see `report_facts`."""
    table = material.table
    provenance = material.part("provenance")
    titled = _titled(material)
    history = _history(material)
    changed = history[-1]["time"] if history else None  # the last time that items came
    if changed is None:
        changed = finite(provenance.get("born"))
    facts: dict[str, Any] = {
        "name": cut(" ".join((material.name or _name(material)).split()), 200),
        "date": _date(changed, "%Y-%m-%d"),
        "items": len(table),
        "levels": table.levels,
        "sizes": list(table.codebook_sizes),
        "sizes_stated": table.sizes_stated,
        "capacity": max(math.prod(table.codebook_sizes) - 1, 0),
        "status": table.status,
        "reason": table.reason,
        "path": None if table.path is None else str(table.path),
        "vectors": material.vectors is not None,
        "sampled": None if material.sample.whole else len(material.sample.places),
        "titles": titled,
        "coverage": _coverage(material, titled),
        "collisions": _collisions(material),
        "errors": _errors(material),
        "per_level": _levels(material),
        "neighbours": _neighbours(material),
        "training": _training(material),
        "prefixes": _prefixes(material),
        "groups": _groups(material),
        "duplicates": _duplicates(material),
        "history": history,
        "run": _run(provenance),
        "provenance": _provenance(material),
    }
    return {**facts, "answer": answer(facts)}


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


def _name(material: Material) -> str:
    """Return what the data is called: by directory and files that were read, else by the table's place or features."""
    read = material.part("provenance").get("files")
    path = material.table.path
    if isinstance(read, dict) and read:
        names = [Path(str(name)).name for name in read]
        said = ", ".join(names[:3]) + (f" +{len(names) - 3}" if len(names) > 3 else "")
        inside = [] if path is None else [one for one in path.absolute().parents if one.name == CACHE]
        return f"{inside[0].parent.name}: {said}" if inside and inside[0].parent.name else said
    if path is not None:
        alone = path.stem in {"semid_table", "semantic_id_dict"} or path.stem.isdecimal()
        return path.absolute().parent.name if alone else path.name
    return _features(material) or material.table.lineage or "table"


def _features(material: Material) -> str | None:
    features = material.part("identity").get("features")
    if not isinstance(features, list):
        return None
    return ", ".join(":".join(map(str, feature)) for feature in features if isinstance(feature, list)) or None


def _titled(material: Material) -> dict[str, int] | None:
    """Return how many titles were given, and how many of them are of items that the table knows."""
    if not material.titles:
        return None
    return {"given": len(material.titles), "known": sum(item in material.table for item in material.titles)}


def _coverage(material: Material, titled: dict[str, int] | None) -> dict[str, Any] | None:
    """Return the share of the items asked for that have an ID, their number and what they are."""
    if material.candidates is not None:
        rows = material.table.rows_of(material.candidates)
        if not rows.size:
            return None
        return {"share": float((rows >= 0).mean()), "asked": int(rows.size), "kind": "candidates"}
    if titled is None:
        return None
    return {"share": titled["known"] / titled["given"], "asked": titled["given"], "kind": "titles"}


def _collisions(material: Material) -> dict[str, Any]:
    """Return what the codebooks give ("raw") and what was stored ("final")."""
    items, groups = len(material.table), material.order.counts(material.table.levels - 1)
    shared = int(groups[groups > 1].sum())
    moved, equal = material.figure("moved"), material.figure("exact_duplicates")
    largest = material.figure("largest_group_raw")
    measured = material.figure("items")
    return {
        "measured_items": None if measured is None else int(measured),
        "unique_wanted": material.part("settings").get("unique") is not False,
        "raw": {
            "share": material.figure("collision_rate_raw"),
            "unique": material.figure("unique_rate_raw"),
            "largest": None if largest is None else int(largest),
        },
        "final": {
            "share": shared / items if items else None,
            "items": shared,
            "unique": len(groups) / items if items else None,
            "largest": int(groups.max(initial=0)),
        },
        "moved": None if moved is None else int(moved),
        "duplicates": None if equal is None else int(equal),
    }


def _errors(material: Material) -> dict[str, Any]:
    """Return relative errors: 0 is exact, 1 the mean of all items."""
    levels = finites(material.quality.get("relative_mse_levels"))
    held = material.figure("held_out_items")
    raw = material.figure("relative_mse_raw")
    measured = material.figure("items")
    grown = measured is not None and measured != len(material.table)
    return {
        "in_sample": material.figure("relative_mse"),
        "raw": raw,
        "held_out": material.figure("relative_mse_held_out"),
        "held_out_start": material.figure("held_out_start"),
        "held_out_items": None if held is None else int(held),
        "levels": levels if len(levels) == material.table.levels else [],
        "of_items": int(measured) if grown and measured is not None and material.vectors is None else None,
    }


def _levels(material: Material) -> list[dict[str, Any]]:
    """Return use of the codes of every level, counted from the table."""
    table, items = material.table, len(material.table)
    if not items:
        return []
    errors = _errors(material)["levels"]
    found = []
    for level, size in enumerate(table.codebook_sizes):
        counts = np.bincount(table.codes_array[:, level], minlength=size)
        used = counts[counts > 0]
        shares = used / items
        found.append(
            {
                "level": level + 1,
                "size": int(size),
                "used": len(used),
                "perplexity": float(np.exp(-(shares * np.log(shares)).sum())),
                "prefixes": len(material.order.starts[level]),
                "largest": int(counts.max()),
                "error": errors[level] if errors else None,
                "sizes": _histogram(used),
                "median": float(np.median(used)),
                "unused": int((counts == 0).sum()),
            }
        )
    return found


def _histogram(used: NDArray[np.int64]) -> dict[str, Any]:
    """Return how many codes have how many items, in bins of a round width that begin at 1, width + 1, ..."""
    width = round_up(max(int(used.max()) / BINS, 1))
    return {"width": width, "counts": np.bincount((used - 1) // width).tolist()}


def round_up(value: float) -> int:
    """Return the least of 1, 2, 5, 10, 20, 50, ... that is not below a value."""
    power = 10 ** math.floor(math.log10(value)) if value > 1 else 1
    return int(next(step * power for step in (1, 2, 5, 10) if step * power >= value))


def _neighbours(material: Material) -> dict[str, list[float]]:
    """Return how often near items, and random pairs, share the first 1, 2, 3 codes."""
    found = material.quality.get("neighbour_fidelity")
    if not isinstance(found, Mapping):
        return {"near": [], "random": []}
    near, other = finites(found.get("neighbours")), finites(found.get("random"))
    return {"near": near, "random": other} if len(near) == len(other) else {"near": [], "random": []}


def _training(material: Material) -> dict[str, Any]:
    """Return the training's curve, and whether its result was kept."""
    algorithm = material.part("settings").get("algorithm")
    loss = finites(material.quality.get("loss"))
    networks = any(name.startswith(("encoder.", "decoder.")) for name in material.table.weights)
    choices = material.quality.get("choices")
    fate = choices.get("networks") if isinstance(choices, Mapping) else None
    # An "rqvae" without networks: no epoch was better on the held-out items, and the k-means codebooks stayed.
    tried = fate != "not tried" if isinstance(fate, str) else algorithm == "rqvae"
    kept = tried and algorithm != "rqkmeans" and bool(loss) and material.table.has_quantizer and not networks
    return {
        "algorithm": algorithm if isinstance(algorithm, str) else None,
        "unit": "round" if algorithm == "rqkmeans" or fate == "not tried" else "epoch",
        "loss": loss,
        "thrown_away": kept,
    }


def _prefixes(material: Material) -> list[dict[str, Any]]:
    """Return the largest first codes: their items, and the words of their titles where titles are given."""
    order, sample = material.order, material.sample
    if not len(order.rows):
        return []
    counts, starts = order.counts(0), order.starts[0]
    words: list[list[str]] = [[] for _ in counts]
    if material.titles:
        titles = [material.title(key) for key in material.keys(order.rows[sample.places])]
        groups = np.searchsorted(starts, sample.places, side="right") - 1
        words = topics(titles, groups.tolist())
        words += [[] for _ in range(len(counts) - len(words))]
    return [
        {"prefix": int(order.codes[starts[place], 0]), "items": int(counts[place]), "words": words[place]}
        for place in np.argsort(-counts, kind="stable").tolist()
    ]


def _groups(material: Material) -> list[dict[str, Any]]:
    """Return the largest groups of items with one ID."""
    order = material.order
    shared, starts = order.counts(material.table.levels - 1), order.starts[-1]
    largest = [int(place) for place in np.argsort(-shared, kind="stable")[:GROUPS] if shared[place] > 1]
    return [_group(material, order.rows[starts[place] : starts[place] + shared[place]]) for place in largest]


def _duplicates(material: Material) -> dict[str, Any]:
    """Return how many vectors equal another one, and the groups of them where vectors are given."""
    if material.vectors is None:
        return {"count": _collisions(material)["duplicates"], "groups": None}
    groups = duplicates(material.vectors)
    return {
        "count": sum(len(group) - 1 for group in groups),
        "groups": [_group(material, group) for group in groups[:GROUPS]],
    }


def _group(material: Material, rows: NDArray[np.int64]) -> dict[str, Any]:
    some = rows[:MEMBERS]
    codes = material.table.codes_array
    return {
        "items": len(rows),
        "members": [
            {
                "item": cut(str(key), KEY_BYTES),
                "id": "-".join(map(str, codes[row].tolist())),
                "title": material.title(key),
            }
            for row, key in zip(some.tolist(), material.keys(some), strict=True)
        ],
    }


def _history(material: Material) -> list[dict[str, Any]]:
    """Return the generations of the table, oldest first."""
    history = material.table.info.get("history")
    steps = [step for step in history if isinstance(step, dict)] if isinstance(history, list) else []
    return [
        {
            "generation": cut(str(step.get("generation", "")), 20),
            "time": finite(step.get("time")),
            "date": _date(step.get("time")),
            **{name: finite(step.get(name)) for name in ("items", "new", "moved")},
            # Before uniqueness, where it was noted: that places are taken is not the codebooks' fault.
            "error": finite(step.get("relative_error_raw", step.get("relative_error"))),
            "expected": finite(step.get("relative_error_expected")),
            "healed": None if step.get("healed") is None else cut(str(step["healed"]), 100),
        }
        for step in steps[-STEPS:]
    ]


def _run(provenance: Mapping[str, Any]) -> dict[str, Any]:
    stages = provenance.get("stages")
    taken = [[str(name), finite(value)] for name, value in stages.items()] if isinstance(stages, dict) else []
    taken.sort(key=lambda stage: STAGES.index(stage[0]) if stage[0] in STAGES else len(STAGES))
    device = provenance.get("device")
    return {
        "seconds": finite(provenance.get("seconds")),
        "peak_bytes": finite(provenance.get("peak_rss_bytes")),
        "device": device if isinstance(device, str) else None,
        "stages": taken,
    }


def _provenance(material: Material) -> dict[str, Any]:
    """Return where the table comes from; its parts are texts, or None where nothing was recorded."""
    table, identity = material.table, material.part("identity")
    provenance, settings = material.part("provenance"), material.part("settings")
    sources = provenance.get("files")
    bad = finite(provenance.get("bad_rows"))
    embeddings, fusion = provenance.get("embeddings"), identity.get("fusion")
    return {
        "digest": table.digest or None,
        "lineage": table.lineage or None,
        "generation": table.generation if table.lineage else None,
        "born": _date(provenance.get("born")),
        "features": _features(material),
        "fusion": None if fusion is None else str(fusion),
        "quantizer": table.has_quantizer,
        "embeddings": None if embeddings is None else str(embeddings),
        "files": ", ".join(map(str, sources)) if isinstance(sources, dict) and sources else None,
        "bad_rows": None if bad is None else int(bad),
        "settings": ", ".join(f"{name}={value}" for name, value in settings.items()) or None,
        "relative_error": finite(provenance.get("relative_error")),
    }


def _date(value: object, form: str = "%Y-%m-%d %H:%M:%S") -> str | None:
    seconds = finite(value)
    if seconds is None:
        return None
    try:
        return time.strftime(form, time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return None
