"""Charts as text: HTML for words, SVG for lines, nothing to load and no script.

A plot's SVG is stretched to the space it gets (`preserveAspectRatio="none"`, strokes of constant width),
and its labels are HTML placed by percent, so type keeps its size on a phone. A dot is a line of no length
with a round cap. Colours are the page's CSS variables --c0 .. --c7 and so follow light and dark.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLOURS = 8
MOST_POINTS = 240
MOST_TOOLTIPS = 80
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Curve:
    """Points of one quantity, with an optional band around them."""

    name: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float]] = ()
    """(low, high) at each point, or nothing."""
    colour: int = 0
    noisy: bool = False
    """Drawn faint with a running mean on top, and without dots."""
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """What a number on an axis is, and how it is written."""

    label: str
    scale: float = 1.0
    """Multiplies the values: 100 for a share shown in percent."""
    suffix: str = ""
    bounds: tuple[float, float] = (-math.inf, math.inf)
    """Values outside are impossible, so the axis does not show them."""

    def text(self, value: float) -> str:
        return number(value * self.scale) + self.suffix


PERCENT = Axis("%", scale=100.0, suffix="%", bounds=(0.0, 1.0))
ITERATION = Axis("iteration")


def number(value: float | int) -> str:
    """Three significant digits, with k, M, G above ten thousand and an exponent below a thousandth."""
    size = abs(value)
    if size == 0:
        return "0"
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= factor * (10 if letter == "k" else 1):
            return f"{value / factor:.3g}{letter}".replace("-", MINUS)
    if size < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}".replace("-", MINUS)
    return (f"{value:.0f}" if size >= 100 else f"{value:.3g}").replace("-", MINUS)


def ticks(low: float | int, high: float | int, count: int = 5) -> list[float]:
    """About `count` round numbers around low .. high, in steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def chart(
    title: str,
    curves: Sequence[Curve],
    *,
    x: Axis = ITERATION,
    y: Axis,
    note: str = "",
    reference: tuple[str, float] | None = None,
    reach: Sequence[float] = (),
    tall: bool = False,
    legend: bool = False,
) -> str:
    """A figure with axes, curves and tooltips; `reference` is a labelled horizontal line.

    The y axis includes the values of `reach`, so that a small change does not fill the plot.
    """
    curves = [_thinned(curve) for curve in curves if curve.points]
    if not curves:
        return ""
    xs, ys = _range(curves, y, [*reach, *([reference[1]] if reference else [])])
    plane = _Plane(min(xs), max(xs), ys[0], ys[-1])
    parts = [f'<line class="grid" x1="0" x2="1000" y1="{plane.y(t):.1f}" y2="{plane.y(t):.1f}"/>' for t in ys]
    if reference:
        at = f"{plane.y(reference[1]):.1f}"
        parts.append(
            f'<line class="reference" x1="0" x2="1000" y1="{at}" y2="{at}">'
            f"<title>{escape(reference[0])}: {y.text(reference[1])}</title></line>"
        )
    for curve in curves:
        parts += _draw(curve, plane, x, y)
    summary = "; ".join(
        f"{c.name} from {y.text(c.points[0][1])} to {y.text(c.points[-1][1])}" for c in curves
    )
    x_ticks = [t for t in ticks(plane.left, plane.right) if plane.left <= t <= plane.right * (1 + 1e-9)]
    ends = f"{y.text(curves[0].points[0][1])} → {y.text(curves[0].points[-1][1])}" if len(curves) == 1 else ""
    return "".join(
        [
            f'<figure class="chart{" tall" if tall else ""}">',
            f'<figcaption><b>{escape(title)}</b><span class="ends">{ends}</span></figcaption>',
            f'<p class="note">{escape(note)}</p>' if note else "",
            _legend(curves, reference) if legend else "",
            '<div class="plot"><div class="ys" aria-hidden="true">',
            *(f'<span style="top:{plane.y(t) / 10:.2f}%">{y.text(t)}</span>' for t in ys),
            '</div><svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" ',
            f'aria-label="{escape(f"{title} against {x.label}: {summary}", quote=True)}">',
            *parts,
            '</svg><div class="xs" aria-hidden="true">',
            *(f'<span style="left:{plane.x(t) / 10:.2f}%">{x.text(t)}</span>' for t in x_ticks),
            f'</div><div class="xlabel">{escape(x.label)}</div></div></figure>',
        ]
    )


def stacked_bar(parts: Sequence[tuple[str, float, str]], *, label: str) -> str:
    """One horizontal bar of (name, amount, amount in words), with a legend that carries the shares."""
    total = sum(amount for _, amount, _ in parts)
    if total <= 0:
        return ""
    rectangles, rows, left = [], [], 0.0
    for i, (name, amount, words) in enumerate(parts):
        share = amount / total
        tip = f"{name}: {words}, {share:.1%}"
        rectangles.append(
            f'<rect x="{1000 * left:.2f}" y="0" width="{1000 * share:.2f}" height="100" '
            f'style="fill:var(--c{i % COLOURS})"><title>{escape(tip)}</title></rect>'
        )
        rows.append(
            f'<li><i style="background:var(--c{i % COLOURS})"></i><span>{escape(name)}</span>'
            f"<b>{escape(words)}</b><span>{share:.1%}</span></li>"
        )
        left += share
    said = escape(f"{label}: " + ", ".join(f"{name} {words}" for name, _, words in parts), quote=True)
    return (
        '<svg class="stack" viewBox="0 0 1000 100" preserveAspectRatio="none" role="img" '
        f'aria-label="{said}">'
        f'{"".join(rectangles)}</svg><ul class="shares">{"".join(rows)}</ul>'
    )


def interval_bars(rows: Sequence[tuple[str, float, float, float]], *, label: str) -> str:
    """(name, value, low, high), each a share: a dot with its interval on a line from 0 to 100 %."""
    lines = []
    for i, (name, value, low, high) in enumerate(rows):
        words = f"{value:.1%} ({low:.1%} – {high:.1%})"
        tone = "var(--c0)" if i == len(rows) - 1 else "var(--quiet)"
        lines.append(
            f'<div class="interval"><span>{escape(name)}</span>'
            f'<svg viewBox="0 0 1000 100" preserveAspectRatio="none" role="img" '
            f'aria-label="{escape(f"{label}, {name}: {words}", quote=True)}">'
            f'<line class="rail" x1="0" x2="1000" y1="50" y2="50"/>'
            f'<line class="range" style="stroke:{tone}" '
            f'x1="{1000 * low:.1f}" x2="{1000 * high:.1f}" y1="50" y2="50">'
            f"<title>{escape(f'{name}: {words}')}</title></line>"
            f'<path class="mark" style="stroke:{tone}" d="M{1000 * value:.1f} 50h0.01"/></svg></div>'
        )
    scale = "".join(f'<span style="left:{t}%">{t}%</span>' for t in (0, 50, 100))
    lines.append(f'<div class="interval"><span></span><div class="xs">{scale}</div></div>')
    return f'<div class="intervals">{"".join(lines)}</div>'


@dataclass(frozen=True)
class _Plane:
    """Data to the 1000 x 1000 units of a plot."""

    left: float
    right: float
    bottom: float
    top: float

    def x(self, value: float) -> float:
        return 1000 * (value - self.left) / (self.right - self.left)

    def y(self, value: float) -> float:
        return 1000 * (self.top - value) / (self.top - self.bottom)


def _range(curves: Sequence[Curve], y: Axis, reach: Sequence[float]) -> tuple[list[float], list[float]]:
    """Where the x axis starts and ends, and the ticks of the y axis, which are its limits too."""
    across = [a for curve in curves for a, _ in curve.points]
    up = [b for curve in curves for _, b in curve.points] + [
        b for curve in curves for pair in curve.band for b in pair
    ]
    left, right = min(across), max(across)
    left = 0.0 if 0 < left < right / 20 else left  # an axis of seconds starts with the run
    low, high = min([*up, *reach]), max([*up, *reach])
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # a flat line, or a single point
        low, high = low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5)
    low, high = max(low, y.bounds[0]), min(high, y.bounds[1])
    marks = [t / y.scale for t in ticks(low * y.scale, high * y.scale)]
    return [left, right if right > left else left + 1], marks


def _draw(curve: Curve, plane: _Plane, x: Axis, y: Axis) -> list[str]:
    colour, dash = f"var(--c{curve.colour % COLOURS})", " dashed" if curve.dashed else ""
    parts = []
    if curve.band:
        upper = [(a, high) for (a, _), (_, high) in zip(curve.points, curve.band, strict=True)]
        lower = [(a, low) for (a, _), (low, _) in zip(curve.points, curve.band, strict=True)]
        parts.append(f'<path class="band" style="fill:{colour}" d="{_path(upper + lower[::-1], plane)}Z"/>')
    if curve.noisy:
        parts.append(f'<path class="faint" style="stroke:{colour}" d="{_path(curve.points, plane)}"/>')
    main = _running_mean(curve.points) if curve.noisy else curve.points
    parts.append(f'<path class="curve{dash}" style="stroke:{colour}" d="{_path(main, plane)}"/>')
    every = -(-len(curve.points) // MOST_TOOLTIPS)
    kind = "hit" if curve.noisy or len(curve.points) > 40 else "dot"
    for i, (a, b) in enumerate(curve.points):
        if i % every and i != len(curve.points) - 1:
            continue
        spread = f" ({y.text(curve.band[i][0])} – {y.text(curve.band[i][1])})" if curve.band else ""
        tip = f"{curve.name}, {x.label} {x.text(a)}: {y.text(b)}{spread}"
        parts.append(
            f'<path class="{kind}" style="stroke:{colour}" d="M{plane.x(a):.1f} {plane.y(b):.1f}h0.01">'
            f"<title>{escape(tip)}</title></path>"
        )
    return parts


def _path(points: Sequence[tuple[float, float]], plane: _Plane) -> str:
    return "M" + "L".join(f"{plane.x(a):.1f} {plane.y(b):.1f}" for a, b in points)


def _running_mean(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Each value averaged with its neighbours, a tenth of the curve to each side at most."""
    reach = len(points) // 20
    windows = [points[max(0, i - reach) : i + reach + 1] for i in range(len(points))]
    return [(points[i][0], sum(b for _, b in window) / len(window)) for i, window in enumerate(windows)]


def _thinned(curve: Curve) -> Curve:
    """At most `MOST_POINTS` points, each the mean of a run of neighbours; the ends stay as they are."""
    size = -(-len(curve.points) // MOST_POINTS)
    if size <= 1 or curve.band:
        return curve
    runs = [curve.points[i : i + size] for i in range(1, len(curve.points) - 1, size)]
    means = [(sum(a for a, _ in run) / len(run), sum(b for _, b in run) / len(run)) for run in runs]
    points = [curve.points[0], *means, curve.points[-1]]
    return Curve(curve.name, points, colour=curve.colour, noisy=curve.noisy, dashed=curve.dashed)


def _legend(curves: Sequence[Curve], reference: tuple[str, float] | None) -> str:
    items = [
        f'<li><svg viewBox="0 0 24 8" aria-hidden="true"><path class="curve{" dashed" if c.dashed else ""}" '
        f'style="stroke:var(--c{c.colour % COLOURS})" d="M1 4h22"/></svg>{escape(c.name)}</li>'
        for c in curves
    ]
    if reference:
        items.append(
            '<li><svg viewBox="0 0 24 8" aria-hidden="true"><path class="reference" d="M1 4h22"/></svg>'
            f"{escape(reference[0])}</li>"
        )
    return f'<ul class="legend">{"".join(items)}</ul>'
