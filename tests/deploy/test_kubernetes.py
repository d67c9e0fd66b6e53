"""The Kubernetes manifests: they render, Kubernetes' own schemas take them, and they keep our rules."""

from __future__ import annotations

import itertools
import re
import tomllib
from pathlib import Path

import click
import pytest

from deploy.manifests import (
    K8S,
    WORKLOADS,
    Manifest,
    assert_restricted,
    assert_schemas,
    containers_of,
    of_kind,
    pod_of,
    render,
    render_with,
    selects,
)
from lakthan.config import Config, load
from lakthan_cli.__main__ import main as cli
from support.foreign_schemas import FIELDS, fields, foreign

OVERLAYS = ["overlays/dev", "overlays/production"]
SERVICES = ["ocsp", "publisher", "registry", "tsa"]
_PAGE = (K8S.parent / "docs" / "kubernetes.md").read_text()


@pytest.fixture(scope="module", params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    """One overlay, rendered."""
    return render(request.param)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_schemas_of_kubernetes(overlay: str, tmp_path: Path) -> None:
    """Every object of Kubernetes' own is what its schema says, with no field that it would ignore."""
    assert_schemas(render(overlay), tmp_path)


def test_schemas_of_operators() -> None:
    """Every field that an operator reads is one that its own types have: `./run foreign-schemas` asked them, and
    its list knows all of them with their kinds of value.
    """
    known = set(FIELDS.read_text().splitlines())
    found = foreign()
    kinds = {each["kind"] for each in found}
    assert kinds == {"Cluster", "PodMonitor", "PrometheusRule", "ScaledObject", "ScheduledBackup"}
    for each in found:
        assert fields(each) <= known, "./run foreign-schemas"


@pytest.mark.parametrize("component", ["keda", "pkcs11-sidecar"])
def test_components_fit(component: str) -> None:
    """Those that no overlay here uses can be added to the base, and do what they say."""
    rendered = render_with(component)
    if component == "keda":
        scaled = {each["spec"]["scaleTargetRef"]["name"] for each in of_kind(rendered, "HorizontalPodAutoscaler")}
        assert scaled == {"tsa"}, "two scalers of one Deployment fight"
        assert len(of_kind(rendered, "ScaledObject")) == 1
    else:
        for each in of_kind(rendered, "Deployment"):
            names = [container["name"] for container in containers_of(each)]
            has_keys = each["metadata"]["name"] != "registry"
            assert ("pkcs11" in names) == has_keys
            assert_restricted(each)


def test_pods_have_no_rights(manifests: list[Manifest]) -> None:
    """Every pod fits into the level `restricted` of the Pod Security Standards, and can write nowhere."""
    for each in of_kind(manifests, *WORKLOADS):
        assert_restricted(each)
    for namespace in of_kind(manifests, "Namespace"):
        assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert of_kind(manifests, "Namespace")


def test_images_are_named(manifests: list[Manifest]) -> None:
    """No image floats: each has a tag that is not `latest`."""
    for each in of_kind(manifests, *WORKLOADS):
        for container in containers_of(each):
            _, _, tag = container["image"].rpartition(":")
            assert re.fullmatch(r"[\w.-]+", tag), container["image"]
            assert tag != "latest"


def test_secrets_are_files(manifests: list[Manifest]) -> None:
    """No secret is in the manifests or in a service's environment; those expected are listed for who deploys."""
    assert not of_kind(manifests, "Secret")
    for each in of_kind(manifests, "Deployment"):
        for container in containers_of(each):
            assert not any("secretKeyRef" in variable.get("valueFrom", {}) for variable in container.get("env", ()))
        for volume in pod_of(each)["volumes"]:
            if "secret" in volume:
                assert f"`{volume['secret']['secretName']}`" in _PAGE


def test_services_start_with_their_configuration(manifests: list[Manifest], tmp_path: Path) -> None:
    """The configuration is one that the code reads; each service has its table, its port, and arguments that exist."""
    config = _configuration(manifests, tmp_path)
    deployments = {each["metadata"]["name"]: each for each in of_kind(manifests, "Deployment")}
    assert sorted(deployments) == SERVICES
    for name, deployment in deployments.items():
        settings = getattr(config, name)
        container = deployment["spec"]["template"]["spec"]["containers"][0]
        ports = {each["name"]: each["containerPort"] for each in container["ports"]}
        assert ports["admin"] == settings.admin_port
        assert settings.admin_host == "0.0.0.0"
        assert set(ports.values()) - {settings.admin_port} == ({settings.port} if name != "publisher" else set())
        mounted = [mount["mountPath"] for mount in container["volumeMounts"]]
        assert "/etc/lakthan/lakthan.toml" in container["args"]
        files = re.findall(r"/run/lakthan/[\w./-]+", repr(tomllib.loads(_text(manifests))[name]))
        assert files
        assert all(str(Path(file).parent) in mounted for file in files)
        _parses(container["args"])
    migrate = of_kind(manifests, "Job")[0]["spec"]["template"]["spec"]["containers"][0]
    _parses(migrate["args"])


def test_admin_ports_stay_inside(manifests: list[Manifest]) -> None:
    """No Service has an admin port, and only namespaces that say so may scrape one."""
    for service in of_kind(manifests, "Service"):
        assert all(port["targetPort"] != "admin" for port in service["spec"]["ports"])
    allowing = [
        policy
        for policy in of_kind(manifests, "NetworkPolicy")
        for rule in policy["spec"].get("ingress", ())
        if any(port.get("port") == "admin" for port in rule.get("ports", ()))
    ]
    assert len(allowing) == 1
    assert allowing[0]["spec"]["ingress"][0]["from"][0]["namespaceSelector"]["matchLabels"]


def test_nobody_talks_to_anybody_else(manifests: list[Manifest]) -> None:
    """Everything is denied both ways first, and every rule that allows names its ports."""
    policies = of_kind(manifests, "NetworkPolicy")
    denying = [each["spec"] for each in policies if each["spec"]["podSelector"] == {}]
    assert denying == [{"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}]
    for policy in policies:
        rules = [*policy["spec"].get("ingress", ()), *policy["spec"].get("egress", ())]
        for rule in rules:
            within = any("podSelector" in peer for peer in [*rule.get("to", ()), *rule.get("from", ())])
            assert rule.get("ports") or within, policy["metadata"]["name"]


def test_every_service_survives_a_drain(manifests: list[Manifest]) -> None:
    """A disruption budget for each, pods spread over zones and nodes, and time to finish what was begun."""
    budgets = of_kind(manifests, "PodDisruptionBudget")
    for each in of_kind(manifests, "Deployment"):
        labels = each["spec"]["template"]["metadata"]["labels"]
        assert selects(each["spec"]["selector"], labels)
        assert sum(selects(budget["spec"]["selector"], labels) for budget in budgets) == 1
        pod = pod_of(each)
        assert {spread["topologyKey"] for spread in pod["topologySpreadConstraints"]} == {
            "topology.kubernetes.io/zone",
            "kubernetes.io/hostname",
        }
        container = pod["containers"][0]
        wait = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
        assert 0 < wait < pod["terminationGracePeriodSeconds"] - 30
        assert each["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
        paths = {container[probe]["httpGet"]["path"] for probe in ("livenessProbe", "readinessProbe", "startupProbe")}
        assert paths == {"/livez", "/readyz"}
        assert container["livenessProbe"]["httpGet"]["path"] == "/livez", "a database that is away kills no pod"


def test_database_has_a_login_for_each() -> None:
    """In production every service has a login of its own, in the group role it needs, and commits are synchronous."""
    production = render("overlays/production")
    spec = of_kind(production, "Cluster")[0]["spec"]
    logins = {each["name"]: each["inRoles"] for each in spec["managed"]["roles"] if each.get("login")}
    assert logins["svc_ocsp"] == ["lakthan_responder"]
    assert logins["svc_tsa"] == ["lakthan_tsa"]
    assert logins["svc_publisher"] == ["lakthan_presigner"]
    # Not the operator's role: who takes over the registry may do what CAs and registrars may.
    assert "lakthan_registry" not in logins["svc_registry"]
    groups = {each["name"] for each in spec["managed"]["roles"]} - logins.keys()
    assert set(itertools.chain(*logins.values())) <= groups
    assert spec["postgresql"]["synchronous"]["number"] >= 1
    text = _text(production)
    assert set(re.findall(r"postgresql://(\w+)@", text)) == set(logins)
    assert text.count("sslmode=verify-full") == len(logins)


def _text(manifests: list[Manifest]) -> str:
    maps = [each for each in of_kind(manifests, "ConfigMap") if each["metadata"]["name"].startswith("lakthan-config")]
    assert len(maps) == 1
    text: str = maps[0]["data"]["lakthan.toml"]
    return text


def _configuration(manifests: list[Manifest], folder: Path) -> Config:
    file = folder / "lakthan.toml"
    file.write_text(_text(manifests))
    return load(file, {})


def _parses(arguments: list[str]) -> None:
    """The command line exists: click takes it, up to where it would begin to work."""
    command: click.Command = cli
    rest = list(arguments)
    with click.Context(cli) as context:
        while isinstance(command, click.Group):
            found = command.get_command(context, rest.pop(0))
            assert found is not None, arguments
            command = found
        command.make_context(command.name, rest)
