"""What a dashboard is made of, and Grafana's JSON of it.

A description says what is seen and what to do about it. Where panels lie, which id they have and how they look is
worked out here, so that two dashboards look alike and no panel covers another. In an expression `$of` stands for the
processes chosen at the top of the page: `sum(rate(lakthan_tsa_requests_total{$of}[$__rate_interval]))`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

Unit = Literal["reqps", "ops", "s", "percentunit", "short", "bytes"]
JSON = dict[str, Any]

# Grafana 10.0 and later read this version as it is; newer ones bring it up to theirs when they load it.
SCHEMA_VERSION = 38
_COLUMNS = 24
_OF = 'job=~"$job",instance=~"$instance"'
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_GREEN, _ORANGE, _RED = "green", "orange", "red"
_HEADINGS = 1  # the height of a row's own line


@dataclass(frozen=True, slots=True)
class Query:
    """One expression, and what its lines are called (`{{label}}` is a label's value)."""

    expression: str
    legend: str = ""

    @property
    def promql(self) -> str:
        """As Grafana gets it."""
        return self.expression.replace("$of", _OF)


@dataclass(frozen=True, slots=True)
class Bounds:
    """From where on a value is a warning, and from where on an alarm; the other way round when it is to be high."""

    warning: float | None
    alarm: float | None
    low_is_bad: bool = False

    def steps(self) -> list[JSON]:
        """Grafana's thresholds: each colour begins at its value."""
        known = [
            (value, colour) for value, colour in ((self.warning, _ORANGE), (self.alarm, _RED)) if value is not None
        ]
        if not self.low_is_bad:
            return [{"value": None, "color": _GREEN}, *({"value": value, "color": colour} for value, colour in known)]
        known.reverse()
        above = [value for value, _ in known]
        colours = [colour for _, colour in known[1:]] + [_GREEN]
        first = {"value": None, "color": known[0][1]}
        return [first, *({"value": value, "color": colour} for value, colour in zip(above, colours, strict=True))]


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture. `means`: what is seen; `do`: what to do when it looks bad; `number`: a number instead of lines."""

    title: str
    unit: Unit
    means: str
    do: str
    queries: tuple[Query, ...]
    bounds: Bounds | None = None
    number: bool = False
    stacked: bool = False
    width: int = 8

    @property
    def logarithmic(self) -> bool:
        """True for the times of a histogram, of which the slow ones are a thousand times the usual ones."""
        return self.unit == "s" and not self.number and any("_bucket" in query.expression for query in self.queries)

    @property
    def height(self) -> int:
        """Rows of Grafana's grid."""
        return 4 if self.number else 8


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A page. `marker`: a pattern for a series that all its processes have; `alerts`: one for the names of alerts."""

    uid: str
    title: str
    description: str
    marker: str
    alerts: str
    rows: tuple[Row, ...]
    panels: tuple[Panel, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "panels", tuple(panel for row in self.rows for panel in row.panels))

    def encode(self) -> str:
        """The file, as it is committed."""
        return json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n"

    def to_json(self) -> JSON:
        """What Grafana reads."""
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["lakthan"],
            "schemaVersion": SCHEMA_VERSION,
            "version": 1,
            "editable": False,
            "graphTooltip": 1,
            "timezone": "browser",
            "time": {"from": "now-1h", "to": "now"},
            "refresh": "30s",
            "templating": {"list": list(self._variables())},
            "annotations": {"list": [self._firing()]},
            "links": [
                {
                    "type": "dashboards",
                    "title": "Lakthan",
                    "tags": ["lakthan"],
                    "asDropdown": True,
                    "includeVars": False,
                    "keepTime": True,
                    "targetBlank": False,
                    "icon": "external link",
                    "tooltip": "",
                    "url": "",
                }
            ],
            "panels": list(self._laid_out()),
        }

    def _variables(self) -> Iterator[JSON]:
        yield {"type": "datasource", "name": "datasource", "label": "Prometheus", "query": "prometheus", "hide": 0}
        for name, label, of in (("job", "Job", ""), ("instance", "Process", ',job=~"$job"')):
            yield {
                "type": "query",
                "name": name,
                "label": label,
                "datasource": _DATASOURCE,
                "query": f'label_values({{__name__=~"{self.marker}"{of}}}, {name})',
                "refresh": 2,
                "sort": 1,
                "multi": True,
                "includeAll": True,
                "hide": 0,
                "current": {"text": "All", "value": "$__all", "selected": True},
            }

    def _firing(self) -> JSON:
        return {
            "name": "Alerts",
            "enable": True,
            "hide": False,
            "iconColor": _RED,
            "datasource": _DATASOURCE,
            "expr": f'ALERTS{{alertstate="firing",alertname=~"{self.alerts}"}}',
        }

    def _laid_out(self) -> Iterator[JSON]:
        number, top = 1, 0
        for row in self.rows:
            place = {"x": 0, "y": top, "w": _COLUMNS, "h": _HEADINGS}
            yield {"type": "row", "id": number, "title": row.title, "collapsed": False, "gridPos": place, "panels": []}
            number, top, left, deepest = number + 1, top + _HEADINGS, 0, 0
            for panel in row.panels:
                if left + panel.width > _COLUMNS:
                    top, left, deepest = top + deepest, 0, 0
                place = {"x": left, "y": top, "w": panel.width, "h": panel.height}
                yield {"id": number, "gridPos": place, **_panel(panel)}
                number, left, deepest = number + 1, left + panel.width, max(deepest, panel.height)
            top += deepest


def _panel(panel: Panel) -> JSON:
    steps = panel.bounds.steps() if panel.bounds else [{"value": None, "color": _GREEN}]
    custom: JSON = {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 40 if panel.stacked else 8,
        "showPoints": "never",
        "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "line" if panel.bounds else "off"},
        "scaleDistribution": {"type": "log", "log": 10} if panel.logarithmic else {"type": "linear"},
    }
    number_options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "auto",
    }
    line_options = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return {
        "type": "stat" if panel.number else "timeseries",
        "title": panel.title,
        "description": f"{panel.means}\n\n**Do:** {panel.do}",
        "datasource": _DATASOURCE,
        "targets": [
            {
                "refId": chr(ord("A") + at),
                "datasource": _DATASOURCE,
                "expr": query.promql,
                "legendFormat": query.legend or "__auto",
                "editorMode": "code",
                "instant": panel.number,
                "range": not panel.number,
                "exemplar": not panel.number and "_bucket" in query.expression,
            }
            for at, query in enumerate(panel.queries)
        ],
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "thresholds": {"mode": "absolute", "steps": steps},
                "color": {"mode": "thresholds" if panel.number else "palette-classic"},
                **({} if panel.number else {"custom": custom}),
                **({} if panel.number or panel.unit == "s" else {"min": 0}),
            },
            "overrides": [],
        },
        "options": number_options if panel.number else line_options,
    }


def quantiles(series: str, *by: str, where: str = "") -> tuple[Query, ...]:
    """The median, the tenth slowest and the hundredth slowest of a histogram."""
    labels = ", ".join(("le", *by))
    named = "".join(f" {{{{{label}}}}}" for label in by)
    return tuple(
        Query(
            f"histogram_quantile({share}, sum by ({labels}) (rate({series}_bucket{{$of{where}}}[$__rate_interval])))",
            f"{said}{named}",
        )
        for share, said in ((0.5, "half take less"), (0.9, "90 %"), (0.99, "99 %"))
    )


def percentile(series: str, *by: str) -> Query:
    """What 99 of 100 take less than, by a label or two."""
    labels = ", ".join(("le", *by))
    legend = " ".join(f"{{{{{label}}}}}" for label in by)
    return Query(
        f"histogram_quantile(0.99, sum by ({labels}) (rate({series}_bucket{{$of}}[$__rate_interval])))", legend
    )


def rate(series: str, *by: str, where: str = "") -> Query:
    """How many a second, by a label or two."""
    legend = " ".join(f"{{{{{label}}}}}" for label in by)
    return Query(f"sum by ({', '.join(by)}) (rate({series}{{$of{where}}}[$__rate_interval]))", legend)
