"""The keyless edge for Kubernetes: no key anywhere near it, and no way out but to the copy of the database."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.manifests import (
    K8S,
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
from lakthan.config import OCSPConfig, load
from lakthan_ocsp.keyless_main import open_keyless

_PAGE = (K8S.parent / "docs" / "kubernetes.md").read_text()


@pytest.fixture(scope="module")
def manifests() -> list[Manifest]:
    """The overlay of a province, rendered."""
    return render("overlays/edge")


@pytest.fixture
def settings(manifests: list[Manifest], tmp_path: Path) -> OCSPConfig:
    """Its configuration, read by the code."""
    (config,) = of_kind(manifests, "ConfigMap")
    file = tmp_path / "lakthan.toml"
    file.write_text(config["data"]["lakthan.toml"])
    ocsp = load(file, {}).ocsp
    assert ocsp is not None
    return ocsp


def test_schemas_of_kubernetes(manifests: list[Manifest], tmp_path: Path) -> None:
    """Every object is what Kubernetes' schema says, with no field that it would ignore; its pods have no rights."""
    assert_schemas(manifests, tmp_path)
    (deployment,) = of_kind(manifests, "Deployment")
    assert_restricted(deployment)
    (namespace,) = of_kind(manifests, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_no_key(manifests: list[Manifest], settings: OCSPConfig) -> None:
    """Its configuration passes the check that refuses every key; the only secrets that it mounts are the database's
    password and CA, both told of in the documentation; and it is started with `--keyless`.
    """
    assert settings.keyless
    assert open_keyless(settings)
    (deployment,) = of_kind(manifests, "Deployment")
    secrets = [each["secret"]["secretName"] for each in pod_of(deployment)["volumes"] if "secret" in each]
    assert secrets == ["db-edge", "db-ca"]
    assert all(f"`{name}`" in _PAGE for name in secrets)
    (container,) = containers_of(deployment)
    assert "--keyless" in container["args"]
    assert not container.get("env")
    assert not of_kind(manifests, "Secret")


def test_the_warm_start_outlives_the_process(manifests: list[Manifest], settings: OCSPConfig) -> None:
    """The file is on a volume of the node's disk, not in memory, and the one place that can be written beside /tmp."""
    (deployment,) = of_kind(manifests, "Deployment")
    (container,) = containers_of(deployment)
    assert settings.warm_start is not None
    (mount,) = [each for each in container["volumeMounts"] if each["mountPath"] == str(settings.warm_start.parent)]
    (volume,) = [each for each in pod_of(deployment)["volumes"] if each["name"] == mount["name"]]
    assert "medium" not in volume["emptyDir"]
    writable = [each["mountPath"] for each in container["volumeMounts"] if not each.get("readOnly")]
    assert writable == [mount["mountPath"], "/tmp"]


def test_who_may_talk_to_whom(manifests: list[Manifest]) -> None:
    """One policy denies both ways and lets in clients and Prometheus, out to DNS and the copy: to no other place."""
    (deployment,) = of_kind(manifests, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    (policy,) = of_kind(manifests, "NetworkPolicy")
    spec = policy["spec"]
    assert selects(spec["podSelector"], labels)
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    public, admin = spec["ingress"]
    assert [each["port"] for each in public["ports"]] == ["http"]
    assert [each["port"] for each in admin["ports"]] == ["admin"]
    assert admin["from"] == [{"namespaceSelector": {"matchLabels": {"lakthan.io/monitoring": "true"}}}]
    assert all(rule["to"] and rule["ports"] for rule in spec["egress"])
    assert [port["port"] for rule in spec["egress"] for port in rule["ports"]] == [53, 53, 5432]
    base = [each["spec"]["podSelector"] for each in of_kind(render("base"), "NetworkPolicy")]
    assert not any(selects(selector, labels) for selector in base if selector), "a rule of the base opens something"


def test_it_survives_a_drain(manifests: list[Manifest], settings: OCSPConfig) -> None:
    """Two pods on different nodes, one away at a time, and the service's own word for when they are ready."""
    (deployment,) = of_kind(manifests, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    (budget,) = of_kind(manifests, "PodDisruptionBudget")
    assert selects(budget["spec"]["selector"], labels)
    assert deployment["spec"]["replicas"] > budget["spec"]["maxUnavailable"]
    assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    (container,) = containers_of(deployment)
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "admin"}
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert ports == {"http": settings.port, "admin": settings.admin_port}
    (service,) = of_kind(manifests, "Service")
    assert [each["targetPort"] for each in service["spec"]["ports"]] == ["http"]
    assert selects({"matchLabels": service["spec"]["selector"]}, labels)


def test_beside_the_base() -> None:
    """It can be added to what runs in the capital, and nothing of the one has the name of something of the other."""
    rendered = render_with("keyless-edge", "monitoring")
    assert {each["metadata"]["name"] for each in of_kind(rendered, "Deployment")} == {
        *("ocsp", "tsa", "registry", "publisher"),
        "ocsp-edge",
    }
    (monitor,) = of_kind(rendered, "PodMonitor")
    for each in of_kind(rendered, "Deployment"):
        assert selects(monitor["spec"]["selector"], each["spec"]["template"]["metadata"]["labels"])
