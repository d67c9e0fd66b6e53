"""The Kubernetes manifests as kustomize renders them, for tests that read or run them."""

from __future__ import annotations

import subprocess
import tempfile
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


def render_with(*components: str) -> list[Manifest]:
    """What the base gives with these components, in an overlay that is made for the moment."""
    with tempfile.TemporaryDirectory(prefix=".test-", dir=K8S) as name:
        kustomization = {"resources": ["../base"], "components": [f"../components/{each}" for each in components]}
        (Path(name) / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return render(Path(name).name)


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


def assert_schemas(manifests: list[Manifest], scratch: Path) -> None:
    """Kubernetes' own schemas take every object of its own, with no field that it would ignore."""
    ours = [each for each in manifests if not is_foreign(each)]
    file = scratch / "rendered.yaml"
    file.write_text(yaml.safe_dump_all(ours))
    done = subprocess.run([need("kubernetes-validate"), "--strict", file], capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert said.count(" passed for resource ") == len(ours)


def assert_restricted(workload: Manifest) -> None:
    """The level `restricted`, a read-only root and no token of the Kubernetes API besides."""
    pod = pod_of(workload)
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] > 0
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert not any(pod.get(shared) for shared in ("hostNetwork", "hostPID", "hostIPC"))
    for volume in pod.get("volumes", ()):
        assert set(volume) - {"name"} <= {"configMap", "secret", "emptyDir"}, volume
        if "emptyDir" in volume:
            assert volume["emptyDir"].get("sizeLimit"), f"{volume['name']} could fill the node"
    for container in containers_of(workload):
        rights = container["securityContext"]
        assert rights["allowPrivilegeEscalation"] is False
        assert rights["readOnlyRootFilesystem"] is True
        assert rights["capabilities"] == {"drop": ["ALL"]}
        assert "privileged" not in rights
        assert "memory" in container["resources"]["limits"]
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
