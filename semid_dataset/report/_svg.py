"""
Draw small charts as SVG text: columns, pairs of columns, a line.

Every value that matters is written beside its mark, and what two kinds of mark mean shows in their
pattern, so that the charts can be read in print and without colour. Colours are CSS classes of the
page that they stand in.
"""

import html
import math
from collections.abc import Callable, Sequence

__all__ = ["columns", "line", "pairs"]

WIDTH, HEIGHT = 320, 190  # of the drawing; the page scales it
LETTER = 6.2  # width of one
LEFT, RIGHT, TOP, BOTTOM = 40, 8, 16, 34  # margins around the plot

Label = Callable[[float], str]


def columns(values: Sequence[float], names: Sequence[str], label: Label, title: str, axis: str) -> str:
    """
    Return columns with their values above them; more than a dozen carry no values, but a scale.

    Args:
        values: not negative.
        names: below the columns; where they are many, only some are written.
        label: how a value is written.
        title: what is shown, in words, for those who cannot see it.
        axis: what the names are.
    """
    few = len(values) <= 12
    top = max(values, default=0.0) or 1.0
    step = (WIDTH - LEFT - RIGHT) / max(len(values), 1)
    parts = _scale(0.0, top, label, marks=0 if few else 3)
    letters = max(map(len, names), default=0) + 1.5  # and the gap to the next name
    every = max(math.ceil(letters * LETTER / step), 1)
    for place, value in enumerate(values):
        x, y = LEFT + place * step, _height(value, 0.0, top)
        wide = min(max(step * 0.72, 1.0), 44.0)
        middle = x + step / 2
        parts.append(
            f'<rect class="mark" x="{middle - wide / 2:.1f}" y="{y:.1f}" width="{wide:.1f}" '
            f'height="{max(HEIGHT - BOTTOM - y, 0):.1f}">'
            f"<title>{html.escape(names[place])}: {label(value)}</title></rect>"
        )
        if few:
            parts.append(f'<text class="value" x="{middle:.1f}" y="{y - 4:.1f}">{label(value)}</text>')
        if place % every == 0:
            parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - BOTTOM + 13}">{html.escape(names[place])}</text>')
    return _drawing(parts, title, axis)


def pairs(
    first: Sequence[float], second: Sequence[float], names: Sequence[str], label: Label, title: str, axis: str
) -> str:
    """Return pairs of columns, the second of each hatched; see `columns`."""
    top = max([*first, *second], default=0.0) or 1.0
    step = (WIDTH - LEFT - RIGHT) / max(len(first), 1)
    letters = max((len(label(value)) for value in [*first, *second]), default=0)
    wide = min(max(letters * 7.0 + 4, 24.0), step * 0.46)  # as wide as what is written above it, in bold
    parts = _scale(0.0, top, label, marks=0)
    for place, two in enumerate(zip(first, second, strict=True)):
        middle = LEFT + (place + 0.5) * step
        for value, x, kind in ((two[0], middle - wide - 2, "mark"), (two[1], middle + 2, "other")):
            y = _height(value, 0.0, top)
            parts.append(
                f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" '
                f'height="{HEIGHT - BOTTOM - y:.1f}"/>'
                f'<text class="value" x="{x + wide / 2:.1f}" y="{y - 4:.1f}">{label(value)}</text>'
            )
        parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - BOTTOM + 13}">{html.escape(names[place])}</text>')
    return _drawing(parts, title, axis)


def line(values: Sequence[float], label: Label, title: str, axis: str) -> str:
    """Return a line through values at 1, 2, 3, ...; the last is written beside its point. The scale may leave out 0."""
    low, high = min(values), max(values)
    room = (high - low) * 0.1 or abs(high) * 0.1 or 1.0
    low, high = low - 2.5 * room, high + room  # below the last point its value is written
    step = (WIDTH - LEFT - RIGHT - 16) / max(len(values) - 1, 1)
    points = [(LEFT + 8 + place * step, _height(value, low, high)) for place, value in enumerate(values)]
    parts = _scale(low, high, label, marks=3)
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts.append(f'<polyline class="curve" points="{path}"/>')
    parts += [f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in points]
    every = -(-len(values) // 10)
    for place, (x, _) in enumerate(points):
        if place % every == 0 or place == len(points) - 1:
            parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 13}">{place + 1}</text>')
    x, y = points[-1]
    y = y - 8 if len(values) > 1 and values[-1] > values[-2] else y + 15  # away from the line
    parts.append(f'<text class="value end" x="{x + RIGHT:.1f}" y="{y:.1f}">{label(values[-1])}</text>')
    return _drawing(parts, title, axis)


def _height(value: float, low: float, high: float) -> float:
    return TOP + (1 - (value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM)


def _scale(low: float, high: float, label: Label, *, marks: int) -> list[str]:
    """Return the base line and so many marks of the scale above it."""
    base = HEIGHT - BOTTOM
    parts = [f'<line class="axis" x1="{LEFT}" y1="{base}" x2="{WIDTH - RIGHT}" y2="{base}"/>']
    for mark in range(1, marks + 1):
        value = low + (high - low) * mark / marks
        y = _height(value, low, high)
        parts.append(
            f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>'
            f'<text class="scale" x="{LEFT - 4}" y="{y + 3.5:.1f}">{label(value)}</text>'
        )
    return parts


def _drawing(parts: Sequence[str], title: str, axis: str) -> str:
    words = html.escape(title, quote=True)
    name = f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 5}">{html.escape(axis)}</text>'
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{words}">{"".join(parts)}{name}</svg>'
