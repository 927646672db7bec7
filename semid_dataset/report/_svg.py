"""
Draw small charts as SVG text: columns, pairs of columns, a line.

Every value that matters is written beside its mark, and what two kinds of mark mean shows in their
pattern, so that the charts can be read in print and without colour. Colours are CSS classes of the
page that they stand in.
"""

import html
import math
from collections.abc import Callable, Sequence

__all__ = ["columns", "enough_digits", "from_zero", "line", "pairs", "short"]

WIDTH, HEIGHT = 320, 190  # of the drawing; the page scales it
LETTER = 6.2  # width of one
LEFT, RIGHT, TOP, BOTTOM = 40, 8, 16, 34  # margins around the plot

Label = Callable[[float], str]


def columns(
    values: Sequence[float],
    names: Sequence[str],
    label: Label,
    title: str,
    axis: str,
    *,
    marks: Sequence[str] | None = None,
) -> str:
    """
    Return columns with their values above them; more than a dozen carry no values, but a scale.

    Args:
        values: not negative.
        names: of the columns, written below them; where they are many, only some are.
        label: how a value is written.
        title: what is shown, in words, for those who cannot see it.
        axis: what the names are.
        marks: of bins, their edges, one more than columns: written instead of the names, below the edges.
    """
    few = len(values) <= 12
    top = max(values, default=0.0) or 1.0
    step = (WIDTH - LEFT - RIGHT) / max(len(values), 1)
    whole = all(isinstance(value, int) for value in values)
    scale = [] if few else _ticks(0.0, top, least=1.0 if whole else 0.0)
    top = max(top, *scale) if scale else top
    parts = _scale(0.0, top, label, scale)
    below = names if marks is None else marks
    letters = max(map(len, below), default=0) + 1.5  # and the gap to the next name
    every = _round_step(max(math.ceil(letters * LETTER / step), 1))
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
    shift = 0.5 if marks is None else 0.0
    for place in range(0, len(below), every):
        x = LEFT + (place + shift) * step
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 13}">{html.escape(below[place])}</text>')
    return _drawing(parts, title, axis)


def pairs(
    first: Sequence[float], second: Sequence[float], names: Sequence[str], label: Label, title: str, axis: str
) -> str:
    """Return pairs of columns, the second of each hatched; see `columns`."""
    top = max([*first, *second], default=0.0) or 1.0
    step = (WIDTH - LEFT - RIGHT) / max(len(first), 1)
    letters = max((len(label(value)) for value in [*first, *second]), default=0)
    wide = min(max(letters * 7.0 + 4, 24.0), step * 0.46)  # as wide as what is written above it, in bold
    parts = _scale(0.0, top, label, [])
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
    """Return a line through values at 1, 2, 3, ...; the last is written beside its point. See `from_zero`."""
    low, high = _range(values)
    step = (WIDTH - LEFT - RIGHT - 16) / max(len(values) - 1, 1)
    points = [(LEFT + 8 + place * step, _height(value, low, high)) for place, value in enumerate(values)]
    ticks = [tick for tick in _ticks(low, high) if tick >= 0 or min(values) < 0]
    parts = _scale(low, high, label, ticks)
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts.append(f'<polyline class="curve" points="{path}"/>')
    parts += [f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in points]
    every = _round_step(-(-len(values) // 10))
    for place, (x, _) in enumerate(points):
        if (place + 1) % every == 0 or (place == 0 and every > 1):
            parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 13}">{place + 1}</text>')
    x, y = points[-1]
    y = y - 8 if len(values) > 1 and values[-1] > values[-2] else y + 15  # away from the line
    parts.append(f'<text class="value end" x="{x + RIGHT:.1f}" y="{y:.1f}">{label(values[-1])}</text>')
    return _drawing(parts, title, axis)


def _height(value: float, low: float, high: float) -> float:
    return TOP + (1 - (value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM)


def enough_digits(values: Sequence[float]) -> Label:
    """Return how values of a line are written, such that its ticks can be told apart."""
    ticks = _ticks(*_range(values))
    step = ticks[1] - ticks[0] if len(ticks) > 1 else abs(ticks[0]) if ticks and ticks[0] else 1.0
    if step <= 0:  # of numbers so small that ticks round to the same
        return lambda value: f"{value:.2g}"
    digits = max(-math.floor(math.log10(step) + 1e-9), 0)
    if digits > 4:  # no more fit beside the plot
        return lambda value: f"{value:.2g}"
    spread = max(values) - min(values)
    if spread > 0:  # the last value is written too, and is to differ from the others
        digits = max(digits, min(1 - math.floor(math.log10(spread)), 4))
    return lambda value: f"{value:.{digits}f}"


def from_zero(values: Sequence[float]) -> bool:
    """Return whether the scale of a line through values begins at 0; only one that falls to near it does."""
    return _range(values)[0] <= 0


def short(value: float) -> str:
    """Return a count in few letters: 950, 12.1k, 3.4M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:,.0f}"


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of a line's scale: below the last point there is room for its value."""
    low, high = min(values), max(values)
    room = (high - low) * 0.1 or abs(high) * 0.1 or 1.0
    return low - 2.5 * room, high + room


def _round_step(least: int) -> int:
    """Return the least of 1, 2, 5, 10, 20, 50, ... that is not below a number of places."""
    power = int(10 ** math.floor(math.log10(max(least, 1))))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= least)


def _ticks(low: float, high: float, *, least: float = 0.0) -> list[float]:
    """Return round values within a scale, five at most: multiples of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = max(next(step * power for step in (1, 2, 5, 10) if (high - low) / (step * power) <= 5.001), least)
    first = math.floor(low / step) + 1
    return [float(f"{place * step:.12g}") for place in range(first, math.floor(high / step + 1e-9) + 1)]


def _scale(low: float, high: float, label: Label, ticks: Sequence[float]) -> list[str]:
    """Return the base line and the ticks of the scale above it."""
    base = HEIGHT - BOTTOM
    parts = [f'<line class="axis" x1="{LEFT}" y1="{base}" x2="{WIDTH - RIGHT}" y2="{base}"/>']
    for value in ticks:
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
