"""A dashboard as one SVG: its own panels and expressions, with what a real Prometheus answers.

It looks like Grafana only as far as that helps: numbers on top, then lines, with their bounds and their exemplars.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from support.dashboards.model import Bounds, Dashboard, Panel, Unit
from support.prometheus import Prometheus
from support.promql import asked, plain

_WIDTH, _MARGIN, _GAP = 1180, 20, 16
_COLUMNS, _NUMBERS = 3, 6
_HEAD, _NUMBER_HEIGHT, _PANEL_HEIGHT = 58, 78, 232
_COLOURS = ("#3274d9", "#37872d", "#e0762f", "#a352cc", "#c4162a", "#0e8a9d", "#8f6b00", "#6b7280")
_INK, _SOFT, _FRAME = "#24292f", "#6b7280", "#d8dee4"
_ALARM, _WARNING, _FINE = "#c4162a", "#b86e00", "#37872d"
_RATE = "15s"
_MOST_LINES = 8
_MOST_PANELS = 18
_OCTETS = ((float(1 << 30), "GiB"), (float(1 << 20), "MiB"), (float(1 << 10), "KiB"), (1.0, "B"))

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """What a legend calls it, and its points: seconds since the beginning, and the value."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """What is drawn, by the clock of Prometheus."""

    begin: float
    end: float

    @property
    def seconds(self) -> float:
        """How long."""
        return self.end - self.begin


def draw(dashboard: Dashboard, here: Prometheus, span: Span, said: str) -> str:
    """The picture. `said`: under the title, what was running. Panels without a line are left out, and the last ones."""
    chosen = _chosen(dashboard, here)
    numbers = [panel for panel in dashboard.panels if panel.number][:_NUMBERS]
    drawn = [
        (panel, lines)
        for panel in dashboard.panels
        if not panel.number and (lines := list(_lines(panel, here, span, chosen))) and any(_top(line) for line in lines)
    ]
    drawn = drawn[:_MOST_PANELS]
    rows = math.ceil(len(drawn) / _COLUMNS)
    top = _HEAD + _NUMBER_HEIGHT + _GAP
    height = top + rows * (_PANEL_HEIGHT + _GAP) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif">',
        f"<style>text {{ font-size: 12px; fill: {_INK} }} .soft {{ fill: {_SOFT}; font-size: 11px }}</style>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#f6f8fa"/>',
        f'<text x="{_MARGIN}" y="28" style="font-size: 18px; font-weight: bold">{escape(dashboard.title)}</text>',
        f'<text x="{_MARGIN}" y="46" class="soft">{escape(said)}</text>',
    ]
    wide = (_WIDTH - 2 * _MARGIN - (_NUMBERS - 1) * _GAP) / _NUMBERS
    for at, panel in enumerate(numbers):
        parts += _number(panel, here, span.end, chosen, x=_MARGIN + at * (wide + _GAP), width=wide)
    wide = (_WIDTH - 2 * _MARGIN - (_COLUMNS - 1) * _GAP) / _COLUMNS
    for at, (panel, lines) in enumerate(drawn):
        x = _MARGIN + at % _COLUMNS * (wide + _GAP)
        y = top + at // _COLUMNS * (_PANEL_HEIGHT + _GAP)
        parts += _Plot(panel, lines, x, y, wide, span, _exemplars(panel, here, span)).parts()
    return "\n".join([*parts, "</svg>"]) + "\n"


def _chosen(dashboard: Dashboard, here: Prometheus) -> dict[str, str]:
    """What Grafana puts in for the variables: all jobs of this page, and its four scrapes for a rate."""
    found = here.query(f'count by (job) ({{__name__=~"{dashboard.marker}"}})')
    jobs = "|".join(sorted(each["metric"]["job"] for each in found))
    return {"job": jobs, "__rate_interval": _RATE}


def _lines(panel: Panel, here: Prometheus, span: Span, chosen: dict[str, str]) -> Iterator[Line]:
    step = max(1.0, span.seconds / 120)
    for query in panel.queries:
        for found in here.history(plain(query.promql, **chosen), span.begin, span.end, step):
            name = query.legend or panel.title
            for label, value in found["metric"].items():
                name = name.replace(f"{{{{{label}}}}}", value)
            points = tuple(
                (float(at) - span.begin, float(value)) for at, value in found["values"] if math.isfinite(float(value))
            )
            if points:
                yield Line(name.replace("{{worker}}", "").strip(), points)


def _exemplars(panel: Panel, here: Prometheus, span: Span) -> list[Point]:
    """Single requests of the histogram that a panel shows."""
    names = {name for query in panel.queries for name, _ in asked(query.promql).selectors if name.endswith("_bucket")}
    return [
        (float(each["timestamp"]) - span.begin, float(each["value"]))
        for name in names
        for found in here.api("query_exemplars", query=name, start=span.begin, end=span.end)
        for each in found["exemplars"]
    ]


def _number(panel: Panel, here: Prometheus, at: float, chosen: dict[str, str], *, x: float, width: float) -> list[str]:
    found = here.api("query", query=plain(panel.queries[0].promql, **chosen), time=at)["result"]
    value = float(found[0]["value"][1]) if found else math.nan
    colour = _colour(panel.bounds, value)
    return [
        (
            f'<rect x="{x:.0f}" y="{_HEAD}" width="{width:.0f}" height="{_NUMBER_HEIGHT}" rx="4" fill="white" '
            f'stroke="{_FRAME}"/>'
        ),
        *(
            f'<text x="{x + 10:.0f}" y="{_HEAD + 18 + 13 * number}" class="soft">{escape(part)}</text>'
            for number, part in enumerate(_two_lines(panel.title))
        ),
        (
            f'<text x="{x + 10:.0f}" y="{_HEAD + 66}" style="font-size: 24px; fill: {colour}">'
            f"{said(value, panel.unit) if math.isfinite(value) else '–'}</text>"
        ),
    ]


def _colour(bounds: Bounds | None, value: float) -> str:
    if bounds is None or not math.isfinite(value):
        return _INK
    for bound, colour in ((bounds.alarm, _ALARM), (bounds.warning, _WARNING)):
        if bound is not None and (value < bound if bounds.low_is_bad else value >= bound):
            return colour
    return _FINE


def _two_lines(title: str) -> list[str]:
    words, lines = title.split(), [""]
    for word in words:
        if len(lines[-1]) + len(word) > 27 and len(lines) < 2:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


@dataclass(frozen=True, slots=True)
class _Scale:
    """From `bottom` to `top`, evenly or by decades."""

    bottom: float
    top: float
    logarithmic: bool

    @classmethod
    def of(cls, values: Sequence[float], panel: Panel) -> _Scale:
        """One that has room for all of them."""
        if panel.logarithmic and (positive := [value for value in values if value > 0]):
            bottom = 10.0 ** math.floor(math.log10(min(positive)))
            return cls(bottom, max(10.0 ** math.ceil(math.log10(max(positive))), bottom * 10), logarithmic=True)
        highest = max(values, default=0.0) or 1.0
        unit = next((each for each, _ in _OCTETS if highest >= each), 1) if panel.unit == "bytes" else 1
        return cls(0.0, round_up(highest / unit) * unit, logarithmic=False)

    def share(self, value: float) -> float:
        """How far up it is, from 0 to 1."""
        if self.logarithmic:
            value = math.log10(max(value, self.bottom) / self.bottom) / math.log10(self.top / self.bottom)
        else:
            value /= self.top
        return min(1.0, max(0.0, value))

    def ticks(self) -> list[float]:
        """Where lines are drawn across."""
        if not self.logarithmic:
            return [0.0, self.top / 2, self.top]
        decades = round(math.log10(self.top / self.bottom))
        return [self.bottom * 10**decade for decade in range(decades + 1)]


@dataclass(frozen=True, slots=True)
class _Plot:
    panel: Panel
    lines: Sequence[Line]
    x: float
    y: float
    width: float
    span: Span
    exemplars: Sequence[Point]

    def parts(self) -> list[str]:
        """The elements of one panel."""
        shown = sorted((line for line in self.lines if _top(line)), key=_top, reverse=True)[:_MOST_LINES]
        layers = _stacked(shown) if self.panel.stacked else shown
        values = [value for layer in layers for _, value in layer.points] + [value for _, value in self.exemplars]
        scale = _Scale.of(values, self.panel)
        left, right, low, high = self.x + 56, self.x + self.width - 12, self.y + 160, self.y + 40

        def place(point: Point) -> str:
            across = left + (right - left) * point[0] / self.span.seconds
            return f"{across:.1f},{low - (low - high) * scale.share(point[1]):.1f}"

        return [
            (
                f'<rect x="{self.x:.0f}" y="{self.y:.0f}" width="{self.width:.0f}" height="{_PANEL_HEIGHT}" rx="4" '
                f'fill="white" stroke="{_FRAME}"/>'
            ),
            (
                f'<text x="{self.x + 10:.0f}" y="{self.y + 22:.0f}" style="font-weight: bold">'
                f"{escape(self.panel.title)}</text>"
            ),
            *self._axes(left, right, low, high, scale),
            *self._drawn(layers, place, low),
            *(
                '<circle cx="{}" cy="{}" r="3.5" fill="none" stroke="{}" stroke-width="1.5"/>'.format(
                    *place(point).split(","), _COLOURS[4]
                )
                for point in self.exemplars
            ),
            *self._legend(shown),
        ]

    def _axes(self, left: float, right: float, low: float, high: float, scale: _Scale) -> Iterator[str]:
        for value in scale.ticks():
            y = low - (low - high) * scale.share(value)
            yield f'<path d="M{left:.1f} {y:.1f}H{right:.1f}" stroke="{_FRAME}"/>'
            text = said(value, self.panel.unit)
            yield f'<text x="{left - 6:.1f}" y="{y + 4:.1f}" text-anchor="end" class="soft">{text}</text>'
        bounds = self.panel.bounds
        for bound in () if bounds is None else (bounds.warning, bounds.alarm):
            if bound is not None and scale.bottom < bound <= scale.top:
                y = low - (low - high) * scale.share(bound)
                yield f'<path d="M{left:.1f} {y:.1f}H{right:.1f}" stroke="{_ALARM}" stroke-dasharray="4 3"/>'
        minutes = self.span.seconds / 60
        for share, text in ((0, "0"), (0.5, f"{minutes / 2:.2g}"), (1, f"{minutes:.2g} min")):
            x = left + (right - left) * share
            anchor = "end" if share == 1 else "middle" if share else "start"
            yield f'<text x="{x:.1f}" y="{low + 15:.1f}" text-anchor="{anchor}" class="soft">{text}</text>'

    def _drawn(self, layers: Sequence[Line], place: Callable[[Point], str], low: float) -> Iterator[str]:
        for at, layer in reversed(list(enumerate(layers))):
            colour = _COLOURS[at % len(_COLOURS)]
            points = " ".join(place(point) for point in layer.points)
            if self.panel.stacked:
                first, last = (place(layer.points[end]).split(",")[0] for end in (0, -1))
                yield f'<polygon points="{first},{low:.1f} {points} {last},{low:.1f}" fill="{colour}" opacity="0.85"/>'
            else:
                yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/>'

    def _legend(self, shown: Sequence[Line]) -> Iterator[str]:
        x, y = self.x + 12, self.y + 194
        for at, line in enumerate(shown):
            name = line.name if len(line.name) < 44 else f"{line.name[:42]}…"
            wide = 18 + 6.1 * len(name)
            if x + wide > self.x + self.width - 8 and x > self.x + 12:
                x, y = self.x + 12, y + 15
                if y > self.y + _PANEL_HEIGHT - 6:
                    return
            colour = _COLOURS[at % len(_COLOURS)]
            yield f'<rect x="{x:.0f}" y="{y - 8:.0f}" width="10" height="8" rx="1" fill="{colour}"/>'
            yield f'<text x="{x + 14:.0f}" y="{y:.0f}" class="soft">{escape(name)}</text>'
            x += wide + 8


def _top(line: Line) -> float:
    return max(value for _, value in line.points)


def _stacked(lines: Sequence[Line]) -> list[Line]:
    """Each line on top of those before it. Drawn from the last to the first, each hides what is under it."""
    below: dict[float, float] = {}
    found = []
    for line in lines:
        points = []
        for at, value in line.points:
            below[at] = below.get(at, 0.0) + value
            points.append((at, below[at]))
        found.append(Line(line.name, tuple(points)))
    return found


def round_up(value: float) -> float:
    """The next 1, 2 or 5 with zeros."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * 0.999)


def said(value: float, unit: Unit) -> str:
    """A value for people."""
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "bytes":
        return _scaled(value, _OCTETS) if value else "0"
    if unit == "s":
        scale = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
        return _scaled(value, scale) if value else "0"
    text = f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
    return f"{text}/s" if unit in ("reqps", "ops") and value else text


def _scaled(value: float, scale: Sequence[tuple[float, str]]) -> str:
    factor, name = next((each for each in scale if abs(value) >= each[0] * 0.999), scale[-1])
    return f"{value / factor:.3g} {name}"
