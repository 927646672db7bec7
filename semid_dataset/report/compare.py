"""
Set two tables side by side: their checks, and whether they put the same items together.

Codes of two trainings are numbers without a common meaning: code 12 of one may be code 200 of the other. So what is
compared is not numbers but company: of the pairs of items that share their first codes in one table, how many do so in
the other.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset import _files as files
from semid_dataset.errors import ConfigError, TableError
from semid_dataset.objects import as_path
from semid_dataset.report._words import LANGUAGES, Words
from semid_dataset.report.facts import Material, facts_of
from semid_dataset.report.page import checks_of, render
from semid_dataset.table.table import SemanticIdTable

__all__ = ["compare", "write_comparison"]

LARGEST = 12  # first codes that are followed from one table to the other
PARTS = 3  # first codes of the other that are named for each


def compare(
    a: SemanticIdTable,
    b: SemanticIdTable,
    *,
    titles: Mapping[Any, str] | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """
    Return how two tables differ, as data that `json.dumps` takes.

    Args:
        a, b: any tables; of different levels, too.
        titles: {item: what people call it}; first codes are then told in words.
        names: of the two; else as in `report_facts`.

    Returns:
        tables: name, date, items, levels, sizes and answer (see `report_facts`) of each.
        items: "common" to both, "only_a", "only_b", and "same", how many of the common ones have the same ID.
        together: for each depth, "depth", the "pairs" of common items that share so many first codes in a and in b,
            and "kept", the share of those of a that share them in b, and of b in a; None where there are no pairs.
        prefixes: the largest first codes of a: "prefix", "items" among the common ones, "words", and in "parts" where
            b puts them: "prefix", "items", "words".

    Raises:
        TableError: the tables have no item in common.
    """
    given = list(names) if names is not None else [None, None]
    materials = [
        Material.of(table, vectors=None, titles=titles, candidates=None, name=name)
        for table, name in zip((a, b), given, strict=True)
    ]
    facts = [facts_of(material) for material in materials]
    found = b.rows_of(a.keys_array)
    rows = np.flatnonzero(found >= 0)
    if not len(rows):
        raise TableError(
            f"The tables have no item in common: {facts[0]['name']} has {len(a):,}, {facts[1]['name']} {len(b):,}. "
            "Compare tables of the same items, or of some of them."
        )
    first, second = a.codes_array[rows], b.codes_array[found[rows]]
    same = int((first == second).all(1).sum()) if a.levels == b.levels else 0
    shown = ("name", "date", "items", "levels", "sizes", "answer")
    return {
        "tables": [{name: one[name] for name in shown} for one in facts],
        "items": {"common": len(rows), "only_a": len(a) - len(rows), "only_b": len(b) - len(rows), "same": same},
        "together": [
            {"depth": depth, **_together(_numbers(first[:, :depth]), _numbers(second[:, :depth]))}
            for depth in range(1, min(a.levels, b.levels) + 1)
        ],
        "prefixes": _followed(first[:, 0], second[:, 0], *(_words(one) for one in facts)),
    }


def write_comparison(
    a: SemanticIdTable,
    b: SemanticIdTable,
    path: Path | str,
    *,
    titles: Mapping[Any, str] | None = None,
    names: Sequence[str] | None = None,
    lang: str = "en",
) -> Path:
    """
    Write a page with two tables side by side; see `compare` for what it says.

    Args:
        a, b, titles, names: as in `compare`.
        path: of the page; folders are made as needed, a file that is there is replaced in one step.
        lang: "en" or "zh".

    Returns:
        The path.

    Raises:
        TableError: the tables have no item in common.
        ConfigError: there is no such language, or jinja2 is not installed.
        OSError: the page could not be written; what was there before is as it was.
    """
    if lang not in LANGUAGES:
        raise ConfigError(f"There is no report in the language {lang!r}. Choose one of: {', '.join(LANGUAGES)}.")
    say = Words(lang)
    facts = compare(a, b, titles=titles, names=names)
    page = render("compare.html.j2", say, facts=facts, rows=side_by_side(facts, say))
    path = as_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.replace_file(path, [page.encode("utf-8", "replace")])
    return path


def side_by_side(facts: Mapping[str, Any], say: Words) -> list[dict[str, Any]]:
    """Return the answers, and a row for every check that either table has: name, and verdict and figure of both."""
    both = [
        {
            check["check"]: row
            for check, row in zip(table["answer"]["checks"], checks_of(table["answer"], say), strict=True)
        }
        for table in facts["tables"]
    ]
    order = [*both[0], *(name for name in both[1] if name not in both[0])]
    answers = [{"verdict": table["answer"]["verdict"], "found": ""} for table in facts["tables"]]
    return [
        {"name": say("question"), "both": answers},
        *({"name": say(f"check.{name}"), "both": [one.get(name) for one in both]} for name in order),
    ]


def _numbers(codes: NDArray[Any]) -> NDArray[np.int64]:
    """Return a number of its own for every distinct prefix (n, depth)."""
    numbers = np.zeros(len(codes), np.int64)
    for level in range(codes.shape[1]):
        _, numbers = np.unique(numbers * 65_536 + codes[:, level], return_inverse=True)
    return numbers


def _together(first: NDArray[np.int64], second: NDArray[np.int64]) -> dict[str, Any]:
    """Return how many pairs are together in each grouping, and which share of them in the other, too."""

    def pairs(groups: NDArray[np.int64]) -> int:
        counts = np.unique(groups, return_counts=True)[1].astype(np.int64)
        return int((counts * (counts - 1) // 2).sum())

    both = pairs(first * (int(second.max()) + 1) + second)
    own = [pairs(first), pairs(second)]
    return {"pairs": own, "kept": [both / count if count else None for count in own]}


def _words(facts: Mapping[str, Any]) -> dict[int, list[str]]:
    return {prefix["prefix"]: prefix["words"] for prefix in facts["prefixes"]}


def _followed(
    first: NDArray[Any], second: NDArray[Any], words: Mapping[int, list[str]], other: Mapping[int, list[str]]
) -> list[dict[str, Any]]:
    """Return the largest first codes of one table and where the other puts their items."""
    codes, counts = np.unique(first, return_counts=True)
    largest = np.argsort(-counts, kind="stable")[:LARGEST]
    found = []
    for code, count in zip(codes[largest].tolist(), counts[largest].tolist(), strict=True):
        parts, sizes = np.unique(second[first == code], return_counts=True)
        some = np.argsort(-sizes, kind="stable")[:PARTS].tolist()
        found.append(
            {
                "prefix": code,
                "items": count,
                "words": words[code],
                "parts": [
                    {"prefix": int(parts[one]), "items": int(sizes[one]), "words": other[int(parts[one])]}
                    for one in some
                ],
            }
        )
    return found
