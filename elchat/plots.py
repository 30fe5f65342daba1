"""Vector charts as SVG text: lines, dots with intervals, bars. Standard library only.

Made to be read on paper and without colour: every series has its own marker and its own dashes,
every chart carries a <title> and a <desc> that say in words what it shows. Only presentation
attributes are used (a strict Content-Security-Policy blocks `style`), axes are drawn in
`currentColor` and a page may recolour series with the classes `s0`, `s1`...; text is escaped.

    line_chart("Pérdida", [Series("CPT", [(0, 3.7), (25, 2.9)])], x_label="paso", y_label="nats")
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]

WIDTH = 480
MAX_POINTS = 300
MAX_LABEL_CHARS = 28
COLOURS = ("#0072b2", "#d55e00", "#008a65", "#aa4499", "#777777", "#8a6d00")  # after Okabe & Ito
DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "4 4")
_FONT = 'font-family="system-ui, sans-serif" font-size="13"'
_CHAR = 6.9  # mean width of a character at that size
_LEFT, _RIGHT, _BOTTOM = 58, 26, 46


@dataclass(frozen=True)
class Series:
    """A named line; points that are not finite cut it.

    Attributes:
        band: (x, low, high), shaded behind the line.
    """

    label: str
    points: Sequence[Point]
    band: Sequence[tuple[float, float, float]] = ()


@dataclass(frozen=True)
class Dot:
    """A value with its interval, or without one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Row:
    """One labelled row of an interval chart: a dot per series (None where there is no value).

    Attributes:
        reference: a level to compare with, such as random guessing.
    """

    label: str
    dots: Sequence[Dot | None]
    reference: float | None = None


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    marks: Sequence[tuple[float, str]] = (),
    description: str | None = None,
    height: int = 300,
) -> str:
    """Lines over shared axes.

    Args:
        title: what the chart shows.
        series: at most six are told apart.
        x_label: of the horizontal axis, with its unit.
        y_label: of the vertical axis, with its unit.
        marks: vertical lines with a name, such as the end of a stage.
        description: alternative text; by default, first, last and least value of each series.
        height: in pixels of a chart 480 wide.
    """
    drawn = [Series(one.label, thin(one.points), one.band) for one in series]
    finite = [p for one in drawn for p in one.points if _is_finite(p)]
    finite += [(at, edge) for one in drawn for at, *edges in one.band for edge in edges]
    text = description or "; ".join(_describe(one) for one in series) or "Sin datos."
    if not finite:
        return _svg(title, text, 60, [_text(WIDTH / 2, 34, "sin datos", "middle")])
    legend, top = _legend([one.label for one in drawn], with_lines=True)
    x = _Axis.over([p[0] for p in finite], _LEFT, WIDTH - _RIGHT, is_tight=True)
    y = _Axis.over([p[1] for p in finite], height - _BOTTOM, top + 8)
    parts = [*legend, *_frame(x, y, x_label, y_label, height)]
    for at, name in marks:
        if x.low <= at <= x.high:
            px = x.at(at)
            parts.append(_line(px, y.stop, px, y.start, 'stroke-dasharray="2 4"'))
            parts.append(_text(px - 4, y.stop + 12, name, "end"))
    parts += [_band(one, x, y, i) for i, one in enumerate(drawn) if one.band]
    for i, one in enumerate(drawn):
        parts += _polyline(one, x, y, i)
    return _svg(title, text, height, parts)


def violin_chart(
    title: str,
    rows: Sequence[tuple[str, Sequence[float]]],
    *,
    x_label: str,
    description: str | None = None,
) -> str:
    """How values spread, a row per group: a density mirrored, its mean and a line at zero.

    The density is a Gaussian kernel's with Silverman's bandwidth, scaled to the row's height.
    """
    shown = [(label, [v for v in values if math.isfinite(v)]) for label, values in rows]
    everything = [v for _, values in shown for v in values]
    means = {label: sum(values) / max(1, len(values)) for label, values in shown}
    told = (f"{k}: media {tick(means[k])}, {len(values)} valores" for k, values in shown)
    text = description or "; ".join(told)
    if not everything:
        return _svg(title, text or "Sin datos.", 60, [_text(WIDTH / 2, 34, "sin datos", "middle")])
    left, step, top = _label_width([label for label, _ in shown]), 46, 8
    bottom = top + step * len(shown)
    x = _Axis.over([*everything, 0.0], left, WIDTH - _RIGHT)
    parts = _x_axis(x, top, bottom, x_label)
    parts.append(_line(x.at(0.0), top, x.at(0.0), bottom, 'stroke-dasharray="2 4"'))
    for i, (label, values) in enumerate(shown):
        middle = top + step * (i + 0.5)
        parts.append(_text(left - 8, middle + 4, _short(label), "end"))
        if values:
            parts.append(_violin(values, x, middle, 0.44 * step))
            parts.append(_marker(x.at(means[label]), middle, 0, 4.5))
    return _svg(title, text, round(bottom + _BOTTOM), parts)


def interval_chart(
    title: str,
    labels: Sequence[str],
    rows: Sequence[Row],
    *,
    x_label: str,
    description: str | None = None,
) -> str:
    """Dots with whiskers, one row per item and one marker per series.

    Args:
        title: what the chart shows.
        labels: names of the series, in the order of each row's dots.
        rows: what is compared.
        x_label: of the axis, with its unit.
        description: alternative text; by default every figure.
    """
    values = [v for row in rows for v in _row_values(row)]
    text = description or "; ".join(_describe_row(row, labels) for row in rows) or "Sin datos."
    if not values:
        return _svg(title, text, 60, [_text(WIDTH / 2, 34, "sin datos", "middle")])
    legend, top = _legend(labels, with_lines=False)
    step = 14 * max(1, len(labels)) + 12
    left = _label_width([row.label for row in rows])
    bottom = top + 8 + step * len(rows)
    x = _Axis.over(values, left, WIDTH - _RIGHT)
    parts = [*legend, *_x_axis(x, top + 8, bottom, x_label)]
    for i, row in enumerate(rows):
        middle = top + 8 + step * (i + 0.5)
        parts.append(_text(left - 8, middle + 4, _short(row.label), "end"))
        if row.reference is not None and math.isfinite(row.reference):
            px = x.at(row.reference)
            ends = (middle - step / 2 + 3, middle + step / 2 - 3)
            parts.append(_line(px, ends[0], px, ends[1], 'stroke-width="2" opacity="0.5"'))
        for j, dot in enumerate(row.dots):
            if dot is not None and math.isfinite(dot.value):
                parts += _whisker(dot, x, middle + 14 * (j - (len(row.dots) - 1) / 2), j)
    return _svg(title, text, round(bottom + _BOTTOM), parts)


def bar_chart(
    title: str,
    bars: Sequence[tuple[str, float]],
    *,
    unit: str = "",
    description: str | None = None,
) -> str:
    """Horizontal bars from zero, each with its figure written at its end."""
    shown = [(label, value) for label, value in bars if math.isfinite(value)]
    tail = f" {unit}" if unit else ""
    text = description or "; ".join(f"{k}: {tick(v)}{tail}" for k, v in shown) or "Sin datos."
    if not shown:
        return _svg(title, text, 60, [_text(WIDTH / 2, 34, "sin datos", "middle")])
    left = _label_width([label for label, _ in shown])
    room = WIDTH - left - 16 - _CHAR * max(len(tick(v) + tail) for _, v in shown)
    most = max(max(value for _, value in shown), 1e-12)
    parts = []
    for i, (label, value) in enumerate(shown):
        y, width = 8 + 26 * i, max(1.0, room * max(value, 0.0) / most)
        parts.append(_text(left - 8, y + 14, _short(label), "end"))
        parts.append(
            f'<rect class="s0" x="{left}" y="{y}" width="{width:.1f}" height="18" '
            f'fill="{COLOURS[0]}" stroke="currentColor" stroke-width="0.5"/>'
        )
        parts.append(_text(left + width + 6, y + 14, tick(value) + tail))
    return _svg(title, text, 16 + 26 * len(shown), parts)


def thin(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """Keep about `limit` points: each stretch gives its least and its greatest, spikes included."""
    if len(points) <= limit:
        return list(points)
    kept = [points[0]]
    size = (len(points) - 2) / (limit // 2 - 1)
    for i in range(limit // 2 - 1):
        part = points[1 + round(i * size) : 1 + round((i + 1) * size)]
        finite = [p for p in part if _is_finite(p)]
        if finite:
            pair = {min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])}
            kept += sorted(pair)
    return [*kept, points[-1]]


def tick(value: float) -> str:
    """A Spanish figure with about four significant digits: 0.19907 -> '0,1991', 1234.4 -> '1234'.

    From 10,000 on, thousands are set apart by a no-break thin space, as the RAE asks.
    """
    if not math.isfinite(value):
        return "—"
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if size >= 6:
        scaled, unit = (value / 1e9, " G") if size >= 9 else (value / 1e6, " M")
        return tick(float(f"{scaled:.4g}")) + unit
    if size < -4:
        return f"{value:.2e}".replace(".", ",").replace("-", "−")
    text = f"{value:,.{max(0, 3 - size)}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    group = "\u202f" if abs(value) >= 10_000 else ""
    return text.replace(",", "@").replace(".", ",").replace("@", group).replace("-", "−")


# --- axes -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Axis:
    """Values low..high on pixels start..stop, with round ticks."""

    low: float
    high: float
    start: float
    stop: float
    ticks: tuple[float, ...]

    @classmethod
    def over(
        cls, values: Sequence[float], start: float, stop: float, *, is_tight: bool = False
    ) -> _Axis:
        """Cover the values, out to the next round figure unless `is_tight`."""
        low, high = min(values), max(values)
        if high - low < 1e-9 * max(1.0, abs(high)):
            pad = abs(high) * 0.05 or 1.0
            low, high = low - pad, high + pad
        wanted = max(2, int(abs(stop - start) / (60 if stop > start else 45)))
        step = _round_step((high - low) / wanted)
        if is_tight:
            inside = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
            return cls(low, high, start, stop, tuple(i * step for i in inside))
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        ticks = tuple(i * step for i in range(first, last + 1))
        return cls(ticks[0], ticks[-1], start, stop, ticks)

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + min(1.0, max(0.0, share)) * (self.stop - self.start)


def _round_step(raw: float) -> float:
    """The next of 1, 2, 5 times a power of ten: 0.037 -> 0.05."""
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))


def _frame(x: _Axis, y: _Axis, x_label: str, y_label: str, height: int) -> list[str]:
    parts = _x_axis(x, y.stop, y.start, x_label)
    for value in y.ticks:
        at = y.at(value)
        parts.append(_line(x.start, at, x.stop, at, 'opacity="0.18"'))
        parts.append(_text(x.start - 7, at + 4, tick(round(value, 10)), "end"))
    middle = (y.start + y.stop) / 2
    turned = f'transform="rotate(-90 13 {middle:.1f})"'
    parts.append(_text(13, middle, y_label, "middle", turned))
    return parts


def _x_axis(x: _Axis, top: float, bottom: float, label: str) -> list[str]:
    parts = [_line(x.start, bottom, x.stop, bottom)]
    for value in x.ticks:
        at = x.at(value)
        parts.append(_line(at, top, at, bottom, 'opacity="0.18"'))
        parts.append(_text(at, bottom + 17, tick(round(value, 10)), "middle"))
    parts.append(_text((x.start + x.stop) / 2, bottom + 37, label, "middle"))
    return parts


# --- marks ------------------------------------------------------------------------------------


def _band(one: Series, x: _Axis, y: _Axis, i: int) -> str:
    edges = sorted(one.band)
    around = [(at, high) for at, _, high in edges] + [(at, low) for at, low, _ in reversed(edges)]
    path = " ".join(f"{x.at(a):.1f},{y.at(b):.1f}" for a, b in around)
    colour = COLOURS[i % len(COLOURS)]
    return f'<polygon class="s{i}" fill="{colour}" opacity="0.15" points="{path}"/>'


def _violin(values: Sequence[float], x: _Axis, middle: float, half_height: float) -> str:
    n, mean = len(values), sum(values) / len(values)
    sd = math.sqrt(sum((v - mean) ** 2 for v in values) / n)
    width = max(0.9 * sd * n**-0.2, 1e-3 * (x.high - x.low))
    low, high = min(values) - 2 * width, max(values) + 2 * width
    steps = [low + (high - low) * i / 60 for i in range(61)]
    density = [sum(math.exp(-(((at - v) / width) ** 2) / 2) for v in values) for at in steps]
    most = max(density)
    curve = [(x.at(at), half_height * d / most) for at, d in zip(steps, density, strict=True)]
    edge = [(a, middle - d) for a, d in curve] + [(a, middle + d) for a, d in reversed(curve)]
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in edge)
    return (
        f'<polygon class="s0" fill="{COLOURS[0]}" fill-opacity="0.2" stroke="{COLOURS[0]}" '
        f'points="{path}"/>'
    )


def _polyline(one: Series, x: _Axis, y: _Axis, i: int) -> list[str]:
    colour, dash = COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)]
    runs: list[list[Point]] = [[]]
    for point in one.points:
        if _is_finite(point):
            runs[-1].append((x.at(point[0]), y.at(point[1])))
        elif runs[-1]:
            runs.append([])
    parts = []
    for run in filter(None, runs):
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in run)
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        parts.append(
            f'<polyline class="s{i}" fill="none" stroke="{colour}" stroke-width="1.8"{dashes} '
            f'points="{path}"/>'
        )
        every = max(1, len(run) // 8)
        shown = [*run[:-1:every], run[-1]]
        parts += [_marker(a, b, i) for a, b in shown]
    return parts


def _whisker(dot: Dot, x: _Axis, y: float, i: int) -> list[str]:
    parts = []
    if dot.low is not None and dot.high is not None:
        a, b = x.at(dot.low), x.at(dot.high)
        width = 'stroke-width="1.5"'
        parts = [_line(a, y, b, y, width), *(_line(e, y - 4, e, y + 4, width) for e in (a, b))]
    return [*parts, _marker(x.at(dot.value), y, i, 4.5)]


def _marker(x: float, y: float, i: int, r: float = 3.2) -> str:
    """Circle, square, triangle, diamond, hollow circle, hollow square."""
    colour = COLOURS[i % len(COLOURS)]
    kind = i % 6
    ink = f'class="s{i}" stroke="{colour}" stroke-width="1.3" '
    ink += 'fill="Canvas"' if kind >= 4 else f'fill="{colour}"'
    if kind in (0, 4):
        return f'<circle {ink} cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>'
    if kind in (1, 5):
        side = 1.8 * r
        corner = f'x="{x - side / 2:.1f}" y="{y - side / 2:.1f}"'
        return f'<rect {ink} {corner} width="{side:.1f}" height="{side:.1f}"/>'
    corners = [(0, -1.2), (1.1, 0.9), (-1.1, 0.9)] if kind == 2 else [(0, -1.3), (1.3, 0), (0, 1.3)]
    corners += [] if kind == 2 else [(-1.3, 0)]
    points = " ".join(f"{x + a * r:.1f},{y + b * r:.1f}" for a, b in corners)
    return f'<polygon {ink} points="{points}"/>'


def _legend(labels: Sequence[str], *, with_lines: bool) -> tuple[list[str], float]:
    """The legend's parts and the height it takes, none for a single unnamed series."""
    if not any(labels):
        return [], 6.0
    parts, x, y = [], 8.0, 16.0
    for i, label in enumerate(labels):
        width = 44 + _CHAR * len(_short(label))
        if x > 8 and x + width > WIDTH:
            x, y = 8.0, y + 20
        if with_lines:
            dash = DASHES[i % len(DASHES)]
            dashes = f' stroke-dasharray="{dash}"' if dash else ""
            parts.append(
                f'<line class="s{i}" x1="{x}" y1="{y - 4}" x2="{x + 26}" y2="{y - 4}" '
                f'stroke="{COLOURS[i % len(COLOURS)]}" stroke-width="1.8"{dashes}/>'
            )
        parts.append(_marker(x + 13, y - 4, i))
        parts.append(_text(x + 32, y, _short(label)))
        x += width
    return parts, y + 8


def _line(x1: float, y1: float, x2: float, y2: float, extra: str = "") -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line stroke="currentColor" {ends} {extra}/>'


def _text(x: float, y: float, text: str, anchor: str = "start", extra: str = "") -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text fill="currentColor" {where} {extra}>{escape(text)}</text>'


def _svg(title: str, description: str, height: float, parts: Sequence[str]) -> str:
    body = "".join(parts)
    key = "g" + hashlib.sha256(f"{title}\0{description}\0{body}".encode()).hexdigest()[:10]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {WIDTH} {height:g}" '
        f'width="{WIDTH}" height="{height:g}" {_FONT} aria-labelledby="{key}t {key}d">'
        f'<title id="{key}t">{escape(title)}</title><desc id="{key}d">{escape(description)}</desc>'
        f"{body}</svg>"
    )


# --- words ------------------------------------------------------------------------------------


def _describe(one: Series) -> str:
    finite = [p for p in one.points if _is_finite(p)]
    if not finite:
        return f"{one.label}: sin datos"
    first, last, least = finite[0], finite[-1], min(finite, key=lambda p: p[1])
    return (
        f"{one.label}: de {tick(first[1])} en {tick(first[0])} a {tick(last[1])} en "
        f"{tick(last[0])}, mínimo {tick(least[1])}"
    )


def _describe_row(row: Row, labels: Sequence[str]) -> str:
    figures = []
    for label, dot in zip(labels, row.dots, strict=False):
        if dot is None:
            continue
        span = ""
        if dot.low is not None and dot.high is not None:
            span = f" [{tick(dot.low)}; {tick(dot.high)}]"
        figures.append(f"{label} {tick(dot.value)}{span}".strip())
    reference = f" (al azar, {tick(row.reference)})" if row.reference is not None else ""
    return f"{row.label}{reference}: " + ", ".join(figures)


def _row_values(row: Row) -> list[float]:
    values = [row.reference]
    for dot in row.dots:
        if dot is not None:
            values += [dot.value, dot.low, dot.high]
    return [v for v in values if v is not None and math.isfinite(v)]


def _label_width(labels: Sequence[str]) -> float:
    return min(WIDTH * 0.45, 16 + _CHAR * max(len(_short(label)) for label in labels))


def _short(label: str) -> str:
    return label if len(label) <= MAX_LABEL_CHARS else label[: MAX_LABEL_CHARS - 1] + "…"


def _is_finite(point: Point) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1])
