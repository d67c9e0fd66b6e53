"""The pages of docs/ beside the code: what they list is what there is."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from lakthan import config
from lakthan_ocsp.metrics import OCSPMetrics
from lakthan_registry.metrics import RegistryMetrics
from lakthan_registry.monitor import MonitorMetrics
from lakthan_registry.problems import KINDS
from lakthan_registry.sources import SourceMetrics
from lakthan_tsa.metrics import TSAMetrics

DOCS = Path(__file__).resolve().parents[2] / "docs"


def rows(page: str) -> list[list[str]]:
    """The cells of every table row of a page, without the headings."""
    lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]


def series(registry: CollectorRegistry) -> dict[str, str]:
    """Name and type of every series of ours, as Prometheus shows them."""
    return {
        family.name + ("_total" if family.type == "counter" else ""): family.type
        for family in registry.collect()
        if family.name.startswith("lakthan_")
    }


def test_metrics() -> None:
    """Every series is documented with its type, and nothing else is."""
    documented = {row[0].strip("`"): row[1] for row in rows("metrics.md")}
    registry = RegistryMetrics().registry
    SourceMetrics(registry)
    MonitorMetrics(registry)
    assert documented == series(OCSPMetrics().registry) | series(TSAMetrics().registry) | series(registry)


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
        ("## `[ocsp.database]`, `[tsa.database]`, `[registry.database]`", config.DatabaseConfig),
    ],
)
def test_configuration(heading: str, struct: type[msgspec.Struct]) -> None:
    """Every key of every table is documented, and nothing else is."""
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    section = re.split(r"^#", page.split(heading + "\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    first_cells = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", section, re.MULTILINE)
    documented = {key for cell in first_cells for key in re.findall(r"\w+", cell)}
    assert documented == {field.name for field in msgspec.structs.fields(struct)}
