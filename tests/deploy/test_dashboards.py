"""The Grafana dashboards: what is committed is what the description gives, and all that they ask for is there."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard as GrafanaDashboard

from deploy.manifests import K8S, of_kind, render
from support.dashboards import DASHBOARDS
from support.dashboards.__main__ import FOLDER
from support.dashboards.model import Dashboard, Panel, Unit
from support.documented import documented_series
from support.promql import ADDED, asked, matching

_DOCS = K8S.parent / "docs"
_LABELS = {name: series.labels for name, series in documented_series().items()}
# Those of prometheus_client itself, about the process.
_LABELS |= dict.fromkeys(("process_cpu_seconds_total", "process_resident_memory_bytes"), frozenset())
_each_dashboard = pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda each: each.uid)


def queries() -> list[tuple[str, Panel, str, str]]:
    """Dashboard, panel, expression and legend of every query."""
    return [
        (dashboard.uid, panel, query.promql, query.legend)
        for dashboard in DASHBOARDS
        for panel in dashboard.panels
        for query in panel.queries
    ]


def not_kept(given: Any, kept: Any, where: str = "") -> Iterator[str]:  # noqa: ANN401 - any JSON
    """The places of `given` that `kept` does not have."""
    if isinstance(given, dict):
        for name, value in given.items():
            if not isinstance(kept, dict) or name not in kept:
                yield f"{where}/{name}"
            else:
                yield from not_kept(value, kept[name], f"{where}/{name}")
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for number, (one, other) in enumerate(zip(given, kept, strict=True)):
            yield from not_kept(one, other, f"{where}/{number}")
    elif given != kept:
        yield where


def read_by_grafana(document: dict[str, Any]) -> Any:  # noqa: ANN401 - JSON
    """What is left of a dashboard when Grafana's own classes have read it and written it again."""
    plugins.register_default_plugins()
    return json.loads(json.dumps(GrafanaDashboard.from_json(document), cls=JSONEncoder))


def test_committed_ones_are_the_generated_ones() -> None:
    """`./run dashboards` would change nothing."""
    committed = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
    assert committed == {f"{dashboard.uid}.json": dashboard.encode() for dashboard in DASHBOARDS}


@_each_dashboard
def test_grafana_knows_every_field(dashboard: Dashboard) -> None:
    """Grafana's own classes read the file and write it again, and nothing is lost on the way."""
    document = dashboard.to_json()
    assert list(not_kept(document, read_by_grafana(document))) == []
    misspelt = json.loads(json.dumps(document).replace('"gridPos"', '"gridPosition"').replace('"legend"', '"legends"'))
    assert len(list(not_kept(misspelt, read_by_grafana(misspelt)))) > len(dashboard.panels), "the look finds nothing"


@_each_dashboard
def test_panels_have_their_place(dashboard: Dashboard) -> None:
    """No two panels have the same id or cover each other, and none hangs over the edge."""
    panels = dashboard.to_json()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        covered = set(
            itertools.product(range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"]))
        )
        assert not covered & cells, panel["title"]
        assert place["x"] + place["w"] <= 24
        cells |= covered


@_each_dashboard
def test_panels_explain_themselves(dashboard: Dashboard) -> None:
    """Each has a title of its own, a unit, what it means and what to do; alerts that it names have a runbook there."""
    titles = [panel.title for panel in dashboard.panels]
    assert len(set(titles)) >= len(titles) - 1, "a number may repeat what a picture shows, no more"
    for panel in dashboard.panels:
        assert panel.unit in get_args(Unit)
        assert len(panel.title) > 9
        assert len(panel.means) > 15, panel.title
        assert len(panel.do) > 7, panel.title
        for alert, page in re.findall(r"(\w+) in (docs/runbooks/\w+\.md)", f"{panel.means} {panel.do}"):
            assert f"\n## {alert}\n" in (K8S.parent / page).read_text(), (panel.title, alert)
        for page in re.findall(r"docs/[\w/-]+\.md", panel.do):
            assert (K8S.parent / page).is_file(), page


@_each_dashboard
def test_chosen_at_the_top(dashboard: Dashboard) -> None:
    """Any Prometheus can be the source, and the processes shown are chosen by job and instance, not written down."""
    document = dashboard.to_json()
    assert [each["name"] for each in document["templating"]["list"]] == ["datasource", "job", "instance"]
    assert asked(f'count({{__name__=~"{dashboard.marker}"}})').selectors
    assert matching(dashboard.marker, _LABELS)
    for panel in document["panels"]:
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == "${datasource}"
            of_publisher = dashboard.uid == "lakthan-ocsp" and "lakthan_publisher_" in target["expr"]
            assert of_publisher or '{job=~"$job",instance=~"$instance"' in target["expr"], target["expr"]


@pytest.mark.parametrize(("uid", "panel", "expression", "legend"), queries())
def test_what_is_asked_for_exists(uid: str, panel: Panel, expression: str, legend: str) -> None:
    """Every series of every expression is one that a service has, with the labels that are compared, summed by, and
    written into the legend.
    """
    query = asked(expression)
    assert query.selectors, uid
    there: set[str] = set()
    for name, compared in query.selectors:
        found = matching(name, _LABELS)
        assert found, f"{panel.title}: {name}"
        for each in found:
            there |= _LABELS[each]
            assert compared <= _LABELS[each] | ADDED, f"{panel.title}: {name}"
    assert query.grouped <= there | ADDED, panel.title
    shown = set(re.findall(r"{{(\w+)}}", legend))
    if not panel.number:
        assert shown == query.grouped - {"le"}, f"{panel.title}: the legend names what the lines are by"


def test_no_series_is_forgotten() -> None:
    """What a service counts is on a dashboard, so that nobody has to know its name to see it."""
    shown = {
        each
        for _, _, expression, _ in queries()
        for name, _ in asked(expression).selectors
        for each in matching(name, _LABELS)
    }
    assert set(_LABELS) - shown == set()


@pytest.mark.parametrize("name", ["requests", "tokens"])
def test_a_wrong_expression_is_noticed(name: str) -> None:
    """A series or a label that nobody has is found by the same look."""
    assert not matching(f"lakthan_tsa_{name}", _LABELS)
    [(found, compared)] = asked(f'sum by (units) (rate(lakthan_tsa_{name}_total{{outcom="x"}}[5m]))').selectors
    assert matching(found, _LABELS)
    assert not compared <= _LABELS[found] | ADDED


def test_shipped_for_the_sidecar() -> None:
    """In production each is a ConfigMap with the label that Grafana's side-car looks for."""
    maps = [
        each
        for each in of_kind(render("overlays/production"), "ConfigMap")
        if each["metadata"].get("labels", {}).get("grafana_dashboard") == "1"
    ]
    shipped = {name: text for each in maps for name, text in each["data"].items()}
    assert shipped == {f"{dashboard.uid}.json": dashboard.encode() for dashboard in DASHBOARDS}
    assert all(len(text) < 250_000 for text in shipped.values()), "kubectl apply keeps a copy in an annotation"


def test_page() -> None:
    """docs/monitoring.md names every dashboard, and shows the picture that is there."""
    page = (_DOCS / "monitoring.md").read_text()
    for dashboard in DASHBOARDS:
        assert dashboard.title in page
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page):
        assert (_DOCS / picture).is_file()


def test_command(tmp_path: Path) -> None:
    """`./run dashboards --help` says what it does."""
    done = subprocess.run(
        [sys.executable, "-m", "support.dashboards", "--help"],
        cwd=K8S.parent / "tests",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "--plot" in done.stdout
