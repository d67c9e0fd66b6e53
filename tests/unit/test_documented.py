"""The pages of docs/ beside the code: what they list is what there is."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from lakthan import config
from lakthan.web.workers_admin import _Together
from lakthan_cli.probe.metrics import ProbeMetrics
from lakthan_ocsp.keyless_metrics import CopyMetrics
from lakthan_ocsp.metrics import OCSPMetrics
from lakthan_ocsp.publisher.metrics import PublisherMetrics
from lakthan_registry.metrics import RegistryMetrics
from lakthan_registry.monitor_follow import MonitorMetrics
from lakthan_registry.problems import KINDS
from lakthan_registry.sources import SourceMetrics
from lakthan_tsa.metrics import TSAMetrics
from support import replication
from support.documented import Series, documented_series
from support.edge import PUBLISHED_TABLES

DOCS = Path(__file__).resolve().parents[2] / "docs"


def rows(page: str) -> list[list[str]]:
    """The cells of every table row of a page, without the headings."""
    lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]


def series(registry: CollectorRegistry) -> dict[str, Series]:
    """Every series of ours with its type and labels, as Prometheus shows them."""
    found = {}
    for collector in registry._collector_to_names:
        for family in collector.collect():
            labels = getattr(collector, "_labelnames", None) or getattr(family, "_labelnames", ())
            name = family.name + ("_total" if family.type == "counter" else "")
            found[name] = Series(family.type, frozenset(labels or ()))
    return {name: each for name, each in found.items() if name.startswith("lakthan_")}


def test_metrics() -> None:
    """Every series is documented with its type and labels, and nothing else is."""
    documented = documented_series()
    workers = CollectorRegistry()
    workers.register(_Together([], []))
    registry = RegistryMetrics().registry
    SourceMetrics(registry)
    MonitorMetrics(registry)
    ocsp = OCSPMetrics()
    CopyMetrics(ocsp)
    publisher = PublisherMetrics().registry
    probe = ProbeMetrics().registry
    services = (ocsp.registry, TSAMetrics().registry, registry, publisher, workers, probe)
    assert documented == {name: each for service in services for name, each in series(service).items()}


def test_an_edge_is_set_up_as_it_is_tested() -> None:
    """What docs/edge.md tells people to set is what the tests of the edge run with, and all of its tables are named."""
    page = (DOCS / "edge.md").read_text(encoding="utf-8")
    for name, value in replication.CONNECTION.items():
        assert f"{name}={value}" in page
    for name, value in (replication.CAPITAL | replication.EDGE).items():
        assert re.search(rf"^{name} = {value if name not in replication.OF_MACHINE else ''}", page, re.MULTILINE)
    for table in PUBLISHED_TABLES:
        assert f"ONLY {table}" in page


def test_refusals_of_the_registry() -> None:
    """Every kind of refusal is documented with its status, and nothing else is."""
    documented = {row[0].strip("`"): int(row[1]) for row in rows("registry.md") if row[1].isdigit()}
    assert documented == {kind: status for kind, (status, _) in KINDS.items()}


@pytest.mark.parametrize(
    ("heading", "struct"),
    [
        ("## `[ocsp]`", config.OCSPConfig),
        ("### `[[ocsp.responders]]`", config.ResponderConfig),
        ("## `[tsa]`", config.TSAConfig),
        ("### `[tsa.units.NAME]`", config.UnitConfig),
        ("### `[tsa.profiles.NAME]`", config.TSAProfileConfig),
        ("### `[tsa.clock]`", config.ClockConfig),
        ("## `[registry]`", config.RegistryConfig),
        ("## `[approval]`", config.ApprovalConfig),
        ("## `[publisher]`", config.PublisherConfig),
        (
            "## `[ocsp.database]`, `[tsa.database]`, `[registry.database]`, `[publisher.database]`",
            config.DatabaseConfig,
        ),
    ],
)
def test_configuration(heading: str, struct: type[msgspec.Struct]) -> None:
    """Every key of every table is documented, and nothing else is."""
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    section = re.split(r"^#", page.split(heading + "\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    first_cells = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", section, re.MULTILINE)
    documented = {key for cell in first_cells for key in re.findall(r"\w+", cell)}
    assert documented == {field.name for field in msgspec.structs.fields(struct)}


def test_configuration_of_the_publisher() -> None:
    """What a responder of the publisher has beside what those of [ocsp] have is documented, and nothing else is."""
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    section = page.split("### `[[publisher.responders]]`\n", 1)[1].split("\n## ", 1)[0]
    documented = set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))
    of_ocsp = {field.name for field in msgspec.structs.fields(config.ResponderConfig)}
    assert documented == {field.name for field in msgspec.structs.fields(config.PresignConfig)} - of_ocsp
