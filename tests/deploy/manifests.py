"""The Kubernetes manifests as kustomize renders them, for tests that read or run them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import yaml

from support.programs import need

K8S = Path(__file__).parents[2] / "k8s"
Manifest = dict[str, Any]
# Kinds with pods in them, and kinds of other people's operators, which Kubernetes' own schema does not know.
WORKLOADS = ("Deployment", "StatefulSet", "Job")
_FOREIGN = ("postgresql.cnpg.io/", "monitoring.coreos.com/", "keda.sh/")


def render(folder: str) -> list[Manifest]:
    """What `kubectl kustomize k8s/FOLDER` gives."""
    done = subprocess.run([need("kubectl"), "kustomize", K8S / folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    """Those of these kinds."""
    return [each for each in manifests if each["kind"] in kinds]


def is_foreign(manifest: Manifest) -> bool:
    """True for what an operator reads and Kubernetes itself only keeps."""
    return str(manifest["apiVersion"]).startswith(_FOREIGN)


def pod_of(workload: Manifest) -> Manifest:
    """The pod template's spec."""
    spec: Manifest = workload["spec"]["template"]["spec"]
    return spec


def containers_of(workload: Manifest) -> list[Manifest]:
    """All its containers, side-cars included."""
    pod = pod_of(workload)
    return [*pod.get("initContainers", []), *pod["containers"]]


def selects(selector: Manifest, labels: Manifest) -> bool:
    """What Kubernetes does with a label selector."""
    if any(labels.get(name) != value for name, value in selector.get("matchLabels", {}).items()):
        return False
    return all(
        each["operator"] == "In" and labels.get(each["key"]) in each["values"]
        for each in selector.get("matchExpressions", ())
    )
