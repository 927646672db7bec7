"""
Show the figures of a table: as text, in a notebook, and as the flat numbers that monitoring wants.

What was not measured is left out. A figure that nobody took is never shown as 0.
"""

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["Quality", "extensions", "figures"]

# How figures are called; the order is the one they are shown in.
LABELS = {
    "items": "items",
    "relative_mse": "relative error, in sample",
    "relative_mse_held_out": "relative error, held out",
    "relative_mse_raw": "relative error before uniqueness",
    "held_out_start": "held out, before the epochs",
    "held_out_items": "held-out items",
    "collision_rate": "items that share their ID",
    "collision_rate_raw": "the same before uniqueness",
    "unique_rate": "distinct IDs per item",
    "unique_rate_raw": "the same before uniqueness",
    "moved": "items moved to be unique",
    "shared": "items still sharing",
    "exact_duplicates": "exact duplicates among the vectors",
    "set_aside": "vectors far beyond all others",
    "rows_with_99_percent": "rows with 99 % of the variance",
    "largest_group": "largest group with one ID",
    "largest_group_raw": "the same before uniqueness",
}
SHARES = {"collision_rate", "collision_rate_raw", "unique_rate", "unique_rate_raw"}
LEVEL_LABELS = {
    "usage": "codes used",
    "usage_raw": "used, raw",
    "perplexity": "perplexity",
    "perplexity_raw": "perplexity, raw",
    "entropy_ratio": "entropy ratio",
    "gini": "Gini",
    "relative_mse_levels": "error so far",
}
LEVEL_SHARES = {"usage", "usage_raw"}
# Of new items, as a share of them or as a mean over them; the third is over the error that was expected of them.
ADDED_LABELS = {
    "relative_mse": "relative error of new items",
    "relative_mse_raw": "the same before uniqueness",
    "error_ratio": "the same, over that of items held out at the fit",
    "collision_rate_raw": "new items whose ID was taken, before uniqueness",
    "moved_rate": "new items moved to be unique",
}
ADDED_SHARES = {"collision_rate_raw", "moved_rate"}


class Quality(dict[str, Any]):
    """
    What the IDs of a table are worth: a dict of JSON types that prints well, in a notebook too.

    The keys are those of `metrics.measure`; a table that nobody measured has none. They are of the items that the
    codebooks were made from. A table that grew since has the key "extensions" too, see `extensions`.
    """

    def __repr__(self) -> str:
        if not self:
            return "Quality: not measured"
        grown = _grown(self.get("extensions"))
        lines = [f"  {label:<36}{value:>12}" for label, value in self._scalars()]
        head, rows = self._levels()
        if rows:
            lines.append("  " + "".join(f"{cell:>16}" for cell in head))
            lines += ["  " + "".join(f"{cell:>16}" for cell in row) for row in rows]
        title = f"Quality of the first {number(items)} items:" if grown and (items := self.get("items")) else "Quality:"
        if grown:
            lines.append(f"  Added since, the last on {_day(grown)}:")
            lines += [f"  {label:<48}{value:>12}" for label, value in _added_scalars(grown)]
        return "\n".join([title, *lines])

    def _repr_html_(self) -> str:
        if not self:
            return "<p>Quality: not measured</p>"
        from html import escape  # a notebook's need, and a third of this room's import

        cell = 'style="text-align:right"'
        parts = ["<table><caption>Quality</caption><tbody>"]
        parts += [
            f'<tr><th scope="row" style="text-align:left">{escape(label)}</th><td {cell}>{value}</td></tr>'
            for label, value in self._scalars()
        ]
        parts.append("</tbody></table>")
        head, rows = self._levels()
        if rows:
            parts.append("<table><caption>Quality per level</caption><thead><tr>")
            parts += [f'<th scope="col" {cell}>{escape(name)}</th>' for name in head]
            parts.append("</tr></thead><tbody>")
            for row in rows:
                parts.append("<tr>" + "".join(f"<td {cell}>{value}</td>" for value in row) + "</tr>")
            parts.append("</tbody></table>")
        if grown := _grown(self.get("extensions")):
            parts.append(f"<table><caption>Added since, the last on {_day(grown)}</caption><tbody>")
            parts += [
                f'<tr><th scope="row" style="text-align:left">{escape(label)}</th><td {cell}>{value}</td></tr>'
                for label, value in _added_scalars(grown)
            ]
            parts.append("</tbody></table>")
        return "".join(parts)

    def _scalars(self) -> list[tuple[str, str]]:
        """Return label and value of every single figure; neighbour fidelity of the first code among them."""
        shown = [
            (label, percent(value) if name in SHARES else number(value))
            for name, label in LABELS.items()
            if (value := finite(self.get(name))) is not None
        ]
        for kind, label in (("neighbours", "neighbours that share code 1"), ("random", "random pairs that do")):
            fidelity = self.get("neighbour_fidelity")
            shares = finites(fidelity.get(kind)) if isinstance(fidelity, Mapping) else []
            shown += [(label, percent(share)) for share in shares[:1]]
        loss = finites(self.get("loss"))
        if loss:
            shown.append((f"loss after {len(loss)} epochs", number(loss[-1])))
        return shown

    def _levels(self) -> tuple[list[str], list[list[str]]]:
        """Return head and rows of the figures per level."""
        columns = {name: values for name in LEVEL_LABELS if (values := finites(self.get(name)))}
        levels = max(map(len, columns.values()), default=0)
        columns = {name: values for name, values in columns.items() if len(values) == levels}
        head = ["level", *(LEVEL_LABELS[name] for name in columns)]
        rows = [
            [str(level + 1)]
            + [(percent if name in LEVEL_SHARES else number)(values[level]) for name, values in columns.items()]
            for level in range(levels)
        ]
        return head, rows


def finite(value: object) -> float | None:
    """Return a finite number, or None for anything else; files hold what their writers put there."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return value
    return None


def finites(value: object) -> list[float]:
    """Return a list of finite numbers, or an empty one for anything else."""
    numbers = [finite(one) for one in value] if isinstance(value, list) else []
    return [] if None in numbers else [one for one in numbers if one is not None]


def number(value: float) -> str:
    """Return a figure as people read it: 12,101 or 0.3217."""
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 1000):
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}"


def percent(share: float) -> str:
    """Return a share in per cent; what is not 0 is not shown as 0, nor what is not all as 100 %."""
    if 0 < share < 0.0001:
        return "< 0.01 %"
    if 0.9999 < share < 1:
        return "> 99.99 %"
    return f"{share:.2%}".replace("%", " %").replace(".00 ", " ")


def extensions(history: object) -> list[dict[str, int | float]]:
    """
    Return what was measured whenever a table grew, the oldest first.

    Args:
        history: of its header.

    Returns:
        For every generation but the first `generation`, `time` (s since 1970), `items` (new ones) and, where they were
        measured, of these items: `relative_mse`, `relative_mse_raw` (before uniqueness), `error_ratio` (the latter
        over that of items held out at the fit), `collision_rate_raw`, `moved_rate`.
    """
    found = []
    for step in history if isinstance(history, list | tuple) else []:
        if not isinstance(step, Mapping) or not (new := finite(step.get("new"))) or not step.get("generation"):
            continue
        measured = {
            "generation": finite(step.get("generation")),
            "time": finite(step.get("time")),
            "items": new,
            "relative_mse": finite(step.get("relative_error")),
            "relative_mse_raw": (raw := finite(step.get("relative_error_raw"))),
            "error_ratio": _over(raw, finite(step.get("relative_error_expected"))),
            "collision_rate_raw": _over(finite(step.get("collisions_raw")), new),
            "moved_rate": _over(finite(step.get("moved")), new),
        }
        found.append({name: value for name, value in measured.items() if value is not None})
    return found


def _over(value: float | None, by: float | None) -> float | None:
    return value / by if value is not None and by else None


def _grown(value: object) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def _mean(grown: Iterable[Mapping[str, Any]], name: str) -> float | None:
    """Return the mean of a figure over all new items of which it was measured."""
    pairs = [(value, finite(one.get("items")) or 0) for one in grown if (value := finite(one.get(name))) is not None]
    items = sum(count for _, count in pairs)
    return sum(value * count for value, count in pairs) / items if items else None


def _added_scalars(grown: list[Mapping[str, Any]]) -> list[tuple[str, str]]:
    shown = [("new items", number(sum(int(finite(one.get("items")) or 0) for one in grown)))]
    for name, label in ADDED_LABELS.items():
        if (value := _mean(grown, name)) is not None:
            shown.append((label, percent(value) if name in ADDED_SHARES else number(value)))
    return shown


def _day(grown: list[Mapping[str, Any]]) -> str:
    seconds = finite(grown[-1].get("time"))
    return "an unknown day" if seconds is None else time.strftime("%Y-%m-%d", time.gmtime(seconds))


def figures(info: Mapping[str, Any]) -> dict[str, int | float | str]:
    """
    Return what a table's info says in figures, flat: those that were measured, and no others.

    Returns:
        Of quality, which is that of the items that the codebooks were made from: its single figures, and
        `usage_lowest`, `perplexity_lowest` of all levels, `neighbour_fidelity` of the first code. Of provenance:
        `seconds` (s), `peak_rss_bytes`, `born` (s since 1970), `bad_rows`, `device`. Of a table that grew since:
        `measured_items` (which the former are of), `extended_at` (s since 1970), `added` items and `latest_added`; both
        names also before `_relative_mse`, `_relative_mse_raw`, `_error_ratio`, `_collision_rate_raw` and `_moved_rate`:
        of all items that were added, and of those of the latest extension.
    """
    flat: dict[str, int | float | str] = {}
    quality, provenance = (part if isinstance(part := info.get(name), Mapping) else {} for name in _PARTS)
    for name in LABELS:
        if name != "items" and (value := finite(quality.get(name))) is not None:
            flat[name] = value
    for name in ("usage", "perplexity"):
        if per_level := finites(quality.get(name)):
            flat[f"{name}_lowest"] = min(per_level)
    fidelity = quality.get("neighbour_fidelity")
    if isinstance(fidelity, Mapping) and (shares := finites(fidelity.get("neighbours"))):
        flat["neighbour_fidelity"] = shares[0]
    for name in ("seconds", "peak_rss_bytes", "born", "bad_rows"):
        if (value := finite(provenance.get(name))) is not None:
            flat[name] = value
    if isinstance(device := provenance.get("device"), str):
        flat["device"] = device
    return flat | _added(extensions(info.get("history")), finite(quality.get("items")))


def _added(grown: list[dict[str, int | float]], measured: float | None) -> dict[str, int | float | str]:
    """Return the flat figures of a table that grew."""
    if not grown:
        return {}
    flat: dict[str, int | float | str] = {} if measured is None else {"measured_items": measured}
    latest = grown[-1]
    if "time" in latest:
        flat["extended_at"] = latest["time"]
    for prefix, some in (("added", grown), ("latest_added", [latest])):
        flat[prefix] = sum(one["items"] for one in some)
        for name in ADDED_LABELS:
            if (value := _mean(some, name)) is not None:
                flat[f"{prefix.removesuffix('_added')}_{name}"] = value
    return flat


_PARTS = ("quality", "provenance")
