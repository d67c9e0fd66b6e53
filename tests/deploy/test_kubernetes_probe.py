"""The probe for Kubernetes: it asks the public URLs and can do nothing else, and its arguments are ones that exist."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from deploy.manifests import (
    Manifest,
    assert_restricted,
    assert_schemas,
    containers_of,
    of_kind,
    pod_of,
    render_with,
    selects,
)
from lakthan_cli.__main__ import main
from lakthan_cli.probe.listen import address


@pytest.fixture(scope="module")
def manifests() -> list[Manifest]:
    """The component, with the base and monitoring."""
    return render_with("probe", "monitoring")


@pytest.fixture(scope="module")
def probe(manifests: list[Manifest]) -> Manifest:
    """Its Deployment."""
    [found] = [each for each in of_kind(manifests, "Deployment") if each["metadata"]["name"] == "probe"]
    return found


def test_fits_and_is_restricted(manifests: list[Manifest], probe: Manifest, tmp_path: Path) -> None:
    """Kubernetes' schemas take it, and its pod has no rights, no secret and nothing to write on."""
    assert_schemas(manifests, tmp_path)
    assert_restricted(probe)
    assert [set(volume) - {"name"} for volume in pod_of(probe)["volumes"]] == [{"configMap"}]


def test_its_arguments_exist(probe: Manifest) -> None:
    """The command line is one that the program takes, and its port is the one that is scraped and asked for life."""
    [container] = containers_of(probe)
    name, *arguments = container["args"]
    with click.Context(main) as context:
        command = main.get_command(context, name)
        assert command is not None
        parsed = command.make_context(name, list(arguments)).params
    assert address(parsed["where"])[1] == container["ports"][0]["containerPort"]
    assert str(parsed["plan"]).startswith(container["volumeMounts"][0]["mountPath"])
    assert {container[each]["httpGet"]["path"] for each in ("livenessProbe", "startupProbe")} == {"/livez"}


def test_reaches_only_what_is_public(manifests: list[Manifest], probe: Manifest) -> None:
    """No rule lets it to the database or to an admin port; Prometheus finds it."""
    labels = probe["spec"]["template"]["metadata"]["labels"]
    policies = [
        each["spec"]
        for each in of_kind(manifests, "NetworkPolicy")
        if each["spec"]["podSelector"] and selects(each["spec"]["podSelector"], labels)
    ]
    assert len(policies) == 1, "its own is the only one that is for it"
    ports = {port["port"] for rule in policies[0]["egress"] for port in rule["ports"]}
    assert ports == {53, 80, 443}
    [monitor] = of_kind(manifests, "PodMonitor")
    assert selects(monitor["spec"]["selector"], labels)
    assert monitor["spec"]["podMetricsEndpoints"][0]["port"] == containers_of(probe)[0]["ports"][0]["name"]
