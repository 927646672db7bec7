"""
Write what there is to say about a table as one HTML page that needs nothing else, no network either.

What it says are the facts (`facts`), in words (`_words`) and drawings (`_svg`); how it looks are template, script and
style sheet in `static/`. Figures are HTML and SVG, so that they can be read without scripts and on paper. Tree and map
are drawn by the page's script, out of a sample of items that is packed into it: all of them up to 16,384, beyond that
8,192 drawn evenly and as many again such that most prefixes have one. Counts of the first two levels are always those
of the whole table.
"""

import base64
import json
import time
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from semid_dataset import _files as files
from semid_dataset._chinese import chinese
from semid_dataset.errors import ConfigError, TableError
from semid_dataset.objects import as_choice, as_path, expect
from semid_dataset.report import _svg as svg
from semid_dataset.report._map import NEAREST, Map, map_of
from semid_dataset.report._prefixes import MAP_ITEMS, SAMPLE_ITEMS
from semid_dataset.report._words import LANGUAGES, Words, script_words
from semid_dataset.report.facts import FIRST, KEY_BYTES, STAGES, TITLE_BYTES, Material, cut, facts_of
from semid_dataset.table.figures import number, percent
from semid_dataset.table.table import SemanticIdTable

if TYPE_CHECKING:
    import jinja2

__all__ = ["MAP_ITEMS", "SAMPLE_ITEMS", "STAGES", "write_report"]

PAGE = "page.html.j2"
PREFIXES = 65_536  # of two codes, the largest ones
DRAWN = 40  # generations, the last ones
NAMES_BYTES = 1_600_000  # of items and titles; with all that is packed the page stays below 3 MB


def write_report(
    table: SemanticIdTable,
    path: Path | str,
    *,
    vectors: NDArray[Any] | None = None,
    titles: Mapping[Any, str] | None = None,
    candidates: Any = None,
    name: str | None = None,
    lang: str = "en",
) -> Path:
    """
    Write a page about a table: whether its IDs are good, what is in them, where they come from.

    Args:
        table: what to show.
        path: of the page; folders are made as needed, a file that is there is replaced in one step.
        vectors: (items, dim), the vectors the IDs were made of, one row an item in the order of
            `table.keys_array`. With them the page lists exact duplicates, map and neighbours are of vectors instead of
            codewords, and what nobody measured at training is measured now (which loads torch).
        titles: {item: what people call it}, under any spelling of the item that the table knows. With them the
            tree says in words what its prefixes are about.
        candidates: items that will be asked for, as in `table.rows_of`: their coverage is shown. Without
            them it is that of the items that have titles.
        name: what the data is called; else the embedding files', the table's folder's or the table's own name.
        lang: "en" or "zh".

    Returns:
        The path.

    Raises:
        EmbeddingError: the vectors do not fit the table, or one is not finite.
        ConfigError: there is no such language, or jinja2 is not installed.
        OSError: the page could not be written; what was there before is as it was.
    """
    expect(table, SemanticIdTable, "table", TableError)
    path = as_path(path, what="The report's path")
    as_choice(lang, LANGUAGES, "lang")
    if name is not None:
        expect(name, str, "name")
    if titles is not None:
        expect(titles, Mapping, "titles")  # type: ignore[type-abstract]
    _environment()  # what is missing is said before a minute of measuring
    material = Material.of(table, vectors=vectors, titles=titles, candidates=candidates, name=name)
    page = _page(material, Words(lang), lang)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.replace_file(path, [page.encode("utf-8", "replace")])
    return path


def render(name: str, say: Words, **given: Any) -> str:
    """
    Return a page of `static/`: its template with the words as `t`, the style and the time beside what is given.

    Raises:
        ConfigError: jinja2 is not installed.
    """
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime())
    return _environment().from_string(_asset(name)).render(t=say, style=_safe(_asset("style.css")), made=made, **given)


def _environment() -> "jinja2.Environment":
    try:
        import jinja2
    except ImportError:
        raise ConfigError('The report needs jinja2, which is not installed. Run: pip install "jinja2>=3.1"') from None
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "number": number, "whole": lambda value: f"{value:,.0f}"}
    environment.filters |= {"seconds": _seconds, "bytes": _bytes}
    return environment


def _asset(name: str) -> str:
    return (resources.files("semid_dataset.report") / "static" / name).read_text(encoding="utf-8").strip()


def _page(material: Material, say: Words, lang: str) -> str:
    facts = facts_of(material)
    facts["reason"] = chinese(facts["reason"]) if lang == "zh" else facts["reason"]
    placed = _placed(material)
    where = {
        "of_vectors": facts["vectors"],
        "variance": None if placed is None else placed.variance,
        "among": None if placed is None else placed.among,
        "items": len(material.sample.mapped),
        "whole": material.sample.whole,
    }
    return render(
        PAGE,
        say,
        facts=facts,
        answer=_answer(facts["answer"], say),
        notes=[say(f"note.{note['note']}", **note["values"]) for note in facts["answer"]["notes"]],
        drawings=_drawings(facts, say),
        map=where,
        nearest=NEAREST,
        first=FIRST,
        script=_safe(_asset("page.js")),
        data=_safe(_json({**_data(material, placed), "words": script_words(lang), "lang": say("lang")})),
    )


def _safe(text: str) -> Any:
    """Mark text that is markup; only what this package wrote itself, or what `_json` made, may be given."""
    from markupsafe import Markup

    return Markup(text)


def _json(data: Mapping[str, Any]) -> str:
    """Return JSON that can stand inside of a script: "<" only occurs in strings, where its escape says the same."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


# --- the answer in words ----------------------------------------------------------------------


def _answer(answer: Mapping[str, Any], say: Words) -> dict[str, Any]:
    """Return verdict, sentence and rows of the table of checks."""
    checks = answer["checks"]
    verdict = answer["verdict"]
    made = [check for check in checks if check["verdict"] != "unknown"]
    of_verdict = [check for check in checks if check["verdict"] == verdict]
    if verdict == "unknown":
        of_verdict = [check for check in of_verdict if f"short.{check['check']}.unknown" in say]
    said = [_short(check, say) for check in of_verdict]
    return {
        "verdict": verdict,
        "sentence": say(f"answer.{verdict}", made=len(made), worst=say("join").join(said)),
        "made": len(made),
        "good": sum(check["verdict"] == "good" for check in made),
        "unmade": len(checks) - len(made),
        "rows": checks_of(answer, say),
    }


def checks_of(answer: Mapping[str, Any], say: Words) -> list[dict[str, Any]]:
    """Return name, verdict, figure, rule and advice of every check, in words."""
    return [_row(check, say) for check in answer["checks"]]


def _short(check: Mapping[str, Any], say: Words) -> str:
    name, values = check["check"], check["values"]
    if check["verdict"] == "unknown":
        return say(f"short.{name}.unknown")
    if name == "state":
        return say(f"found.state.{values['state']}")
    return say(f"short.{name}", **_spoken(values))


def _row(check: Mapping[str, Any], say: Words) -> dict[str, Any]:
    name, verdict, values = check["check"], check["verdict"], _spoken(check["values"])
    found = f"found.{name}"
    if name == "state":
        found = f"found.state.{values['state']}"
    elif name == "coverage" and verdict != "unknown":
        found = f"found.coverage.{values['kind']}"
    elif name == "held_out" and verdict != "unknown":
        excess = values["excess"]
        values["excess"] = say("found.excess", share=excess) if excess is not None and excess > 0 else ""
    advice = ""
    if verdict in {"watch", "bad"}:
        advice = say(f"do.{name}", **values)
    elif verdict == "unknown":
        advice = say(f"unknown.{name}")
    return {
        "name": say(f"check.{name}"),
        "verdict": verdict,
        "found": say("unknown") if verdict == "unknown" else say(found, **values),
        "rule": say(f"rule.{name}", **values),
        "advice": advice,
    }


def _spoken(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as sentences take them: lists of levels as "2, 3"."""
    return {name: ", ".join(map(str, value)) if isinstance(value, list) else value for name, value in values.items()}


# --- drawings ---------------------------------------------------------------------------------


def _drawings(facts: Mapping[str, Any], say: Words) -> dict[str, Any]:
    """Return the SVG of every figure that there is something to draw for."""
    found: dict[str, Any] = dict.fromkeys(("errors", "curve", "fidelity", "growth_items", "growth_error"))
    found["sizes"] = [_safe(_sizes(level, say)) for level in facts["per_level"]]
    errors = facts["errors"]["levels"]
    if errors:
        found["errors"] = _safe(
            svg.columns(
                errors,
                [str(level + 1) for level in range(len(errors))],
                lambda value: f"{value:.3f}",
                say("errors.alt", values=", ".join(f"{error:.3f}" for error in errors)),
                say("errors.axis"),
            )
        )
    training = facts["training"]
    loss = training["loss"]
    if loss and not training["thrown_away"]:
        words = say("curve.alt", count=len(loss), first=loss[0], last=loss[-1])
        found["curve"] = _safe(svg.line(loss, svg.enough_digits(loss), words, say(training["unit"])))
        found["curve_from_zero"] = svg.from_zero(loss)
    near, other = facts["neighbours"]["near"], facts["neighbours"]["random"]
    if near:
        found["fidelity"] = _safe(
            svg.pairs(
                near,
                other,
                [say("fidelity.first", depth=depth + 1) for depth in range(len(near))],
                lambda share: f"{share:.1%}" if share >= 0.001 else "0%" if share == 0 else "<0.1%",
                say("fidelity.alt", near=", ".join(map(percent, near)), random=", ".join(map(percent, other))),
                say("fidelity.axis"),
            )
        )
    return {**found, **_growth(facts["history"], say)}


def _sizes(level: Mapping[str, Any], say: Words) -> str:
    """Draw how many codes of a level have how many items."""
    width, counts = level["sizes"]["width"], level["sizes"]["counts"]
    names = [
        str(place + 1) if width == 1 else f"{place * width + 1:,}–{(place + 1) * width:,}"
        for place in range(len(counts))
    ]
    return svg.columns(
        counts,
        names,
        lambda value: f"{value:,.0f}",
        say("sizes.alt", level=level["level"], unused=level["unused"]),
        say("sizes.axis") if width == 1 else say("sizes.bins", width=width),
        marks=None if width == 1 else [f"{place * width:,}" for place in range(len(counts) + 1)],
    )


def _growth(history: list[dict[str, Any]], say: Words) -> dict[str, Any]:
    """Draw items and errors of the generations, where there is more than the first."""
    if len(history) < 2:
        return {}
    history = history[-DRAWN:]
    found: dict[str, Any] = {}
    items = [step for step in history if step["items"] is not None]
    if items:
        values = [step["items"] for step in items]
        words = say("growth.alt", name=say("growth.items"), values=", ".join(f"{value:,.0f}" for value in values))
        names = [step["generation"] for step in items]
        found["growth_items"] = _safe(svg.columns(values, names, svg.short, words, say("growth.axis")))
    errors = [step for step in history if step["error"] is not None and step["new"]]
    if errors:
        values = [step["error"] for step in errors]
        words = say("growth.alt", name=say("growth.error"), values=", ".join(map(number, values)))
        names = [step["generation"] for step in errors]
        found["growth_error"] = _safe(
            svg.columns(values, names, lambda value: f"{value:.3f}", words, say("growth.axis"))
        )
    return found


# --- what the page's script gets --------------------------------------------------------------


def _placed(material: Material) -> Map | None:
    some = material.sample.places[material.sample.mapped]
    return map_of(material.table, material.order.rows[some], material.order.codes[some], material.vectors)


def _data(material: Material, placed: Map | None) -> dict[str, Any]:
    """Return the sample, counts of prefixes and the map, as JSON types."""
    table, order, sample = material.table, material.order, material.sample
    keys, titles = _names(material)
    ones = order.starts[0]
    data: dict[str, Any] = {
        "items": len(table),
        "levels": table.levels,
        "sizes": list(table.codebook_sizes),
        "keys": keys,
        "titles": titles if any(titles) else None,
        "codes": _packed(order.codes[sample.places], "<u2"),
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
    if placed is not None:
        most = float(placed.distances.max(initial=0)) or 1.0
        data["map"] = {
            "at": None if sample.whole else _packed(sample.mapped, "<u2"),  # which of the sample
            "places": _packed(placed.places, "<u2"),
            "nearest": _packed(placed.nearest, "<u2"),
            "distances": _packed(np.round(placed.distances * (65535 / most)), "<u2"),
            "longest": most,  # what 65,535 stands for
            "each": placed.nearest.shape[1],
        }
    return data


def _names(material: Material) -> tuple[list[str], list[str]]:
    """Return items and titles of the sample; titles are cut where there is no room for all of them."""
    items = material.keys(material.order.rows[material.sample.places])
    keys = [cut(str(item), KEY_BYTES) for item in items]
    full = [material.title(item) for item in items]
    for most in (TITLE_BYTES, 60, 40, 20, 10):
        titles = [cut(title, most) for title in full]
        if len(_json({"keys": keys, "titles": titles}).encode("utf-8", "replace")) <= NAMES_BYTES:
            break
    return keys, titles


def _packed(values: NDArray[Any], dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype).tobytes()).decode()


def _seconds(value: float) -> str:
    if value < 10:
        return f"{value:.2f} s"
    return f"{value:,.1f} s" if value < 120 else f"{value / 60:,.1f} min"


def _bytes(value: float) -> str:
    return f"{value / 1e6:,.0f} MB" if value < 1e9 else f"{value / 1e9:,.2f} GB"
