"""The container image, really built and run: what is in it, what is not, and that it works without any right."""

from __future__ import annotations

import json
import re
import subprocess
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]
import pytest
from referencing import Registry
from referencing.jsonschema import DRAFT7

from deploy.test_bare_demo import READY, ask_ocsp, ask_tsa
from support.image import TAG, Images

pytestmark = pytest.mark.timeout(600)

_LARGEST_MB = 450
# What the schema of CycloneDX refers to.
_BESIDE = ("spdx.SNAPSHOT.schema.json", "jsf-0.82.SNAPSHOT.schema.json")


def test_no_tools_and_no_rights(images: Images) -> None:
    """An ordinary user by number, nothing writable, and nothing in it that installs or compiles."""
    described = images.inspect()
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", described["User"])
    assert described["Config"]["Entrypoint"] == ["lakthan"]
    assert described["Size"] < _LARGEST_MB * 1e6
    assert described["Labels"]["org.opencontainers.image.revision"]
    assert images.run("--version").split()[-1] == version("lakthan")
    tools = images.run("-c", "command -v pip pip3 uv gcc cc make apt-key; true", entrypoint="sh")
    assert tools.strip() == ""
    assert "No module named" in images.run("-c", "python3 -m pip --version 2>&1 || true", entrypoint="sh")
    assert images.run("-c", "touch /opt/lakthan/x 2>/dev/null || echo refused", entrypoint="sh").strip() == "refused"


def test_sbom_names_everything(images: Images) -> None:
    """The list in the image is valid CycloneDX and has every package of both kinds with its version."""
    document = images.sbom()
    schemas = files("cyclonedx.schema._res")
    beside = {name: json.loads(schemas.joinpath(name).read_text()) for name in _BESIDE}
    registry = Registry().with_resources(
        (f"http://cyclonedx.org/schema/{name}", DRAFT7.create_resource(schema)) for name, schema in beside.items()
    )
    schema = json.loads(schemas.joinpath("bom-1.6.SNAPSHOT.schema.json").read_text())
    jsonschema.Draft7Validator(schema, registry=registry).validate(document)
    listed = {each["purl"].split("?")[0] for each in document["components"]}
    script = "import importlib.metadata as m\nfor d in m.distributions(): print(d.metadata['Name'].lower(), d.version)"
    for line in images.run("-c", script, entrypoint="/opt/lakthan/bin/python3").splitlines():
        name, number = line.replace("_", "-").split()
        assert name == "lakthan" or f"pkg:pypi/{name}@{number}" in listed
    packages = images.run("--show", "--showformat=${Package} ${Version}\n", entrypoint="dpkg-query").splitlines()
    assert len(packages) == sum(1 for each in listed if each.startswith("pkg:deb/"))


def test_demo_in_a_locked_container(images: Images, tmp_path: Path) -> None:
    """The whole demo runs read-only, without a capability, as nobody; openssl accepts its answers and tokens; SIGTERM
    ends it.
    """
    rights = ["--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", "--tmpfs=/tmp"]
    options = ["run", "--rm", "--name=lakthan-demo", "--no-healthcheck", *rights, "--volume=demo:/var/lib/lakthan"]
    command = images.podman(*options, TAG, "demo")
    with subprocess.Popen(
        command, env=images.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = next((line for line in process.stdout if line.startswith(READY)), "")
        assert line, process.stderr.read()
        urls = dict(re.findall(r"(\w+)=(http\S+)", line))
        pki = _copied(images, tmp_path)
        ask_ocsp(pki, urls["ocsp"])
        ask_tsa(pki, urls["tsa"], tmp_path)
        subprocess.run(images.podman("stop", "--time=60", "lakthan-demo"), env=images.environ, check=True)
        _, stderr = process.communicate(timeout=90)
    assert process.returncode in (0, 143), stderr
    assert "Traceback" not in stderr


def _copied(images: Images, scratch: Path) -> Path:
    """The public part of the demo's PKI, out of the container."""
    subprocess.run(
        images.podman("cp", "lakthan-demo:/var/lib/lakthan/demo/pki", str(scratch)), env=images.environ, check=True
    )
    return scratch / "pki"
