"""The rendered Deployments of the dev overlay, run by podman on real PostgreSQL: OCSP and time stamps answer.

Podman 4.3 plays Deployments and ConfigMaps, not Jobs, and its Secrets come out of it still encoded. So the Job's
command is run by itself, and the folders of secrets are mounted from here. Everything else is as rendered: image, user,
read-only root, arguments, configuration, mounts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.manifests import Manifest, containers_of, of_kind, pod_of, render
from deploy.test_bare_demo import ask_ocsp, ask_tsa
from lakthan.config import Config, load
from lakthan.store.pool import open_pool
from lakthan_cli.demo import pki
from lakthan_cli.demo.addresses import choose
from lakthan_cli.demo.registration import register
from support.image import TAG, Images
from support.programs import need_root
from support.replication import Server, make_database, servers

pytestmark = pytest.mark.timeout(600)

_UID = 10001
_SERVICES = ("ocsp", "tsa", "registry", "publisher")
_SOCKET = "/run/lakthan/db-ca"  # the folder of the database's socket stands where its CA certificate would
_PATIENCE_SECONDS = 120
_PODMAN_IGNORES = ("startupProbe", "livenessProbe", "readinessProbe", "lifecycle", "ports")


async def test_dev_overlay_answers(images: Images, tmp_path: Path) -> None:
    """The migration runs, every pod gets ready, openssl accepts what they say, and all of them end when told to."""
    need_root()
    with servers() as pair:
        await make_database(pair.capital)
        manifests = render("overlays/dev")
        _migrate(images, manifests, pair.capital)
        await pair.capital.execute(*_logins())
        demo = pki.make(tmp_path / "demo", choose(None, {}, None).urls, datetime.now(UTC))
        pki.write_registry_chain(demo)
        pool = await open_pool(
            pair.capital.url(), role="lakthan_registry", min_size=1, max_size=1, application_name="test"
        )
        try:
            assert await register(pool, demo) > 0
        finally:
            await pool.close()
        config = _configuration(manifests, tmp_path)
        volumes = _secrets(tmp_path, pair.capital)
        with _played(images, _for_podman(manifests, volumes), tmp_path):
            for name in _SERVICES:
                _until_ready(getattr(config, name).admin_port, images)
            assert config.ocsp is not None
            assert config.tsa is not None
            ask_ocsp(tmp_path / "demo" / "pki", f"http://127.0.0.1:{config.ocsp.port}")
            ask_tsa(tmp_path / "demo" / "pki", f"http://127.0.0.1:{config.tsa.port}", tmp_path)


def _migrate(images: Images, manifests: list[Manifest], server: Server) -> None:
    job = of_kind(manifests, "Job")[0]
    container = containers_of(job)[0]
    assert [each["name"] for each in container["env"]] == ["DATABASE_URL"]
    said = subprocess.run(
        images.podman(
            *("run", "--rm", "--read-only", "--cap-drop=all", f"--user={pod_of(job)['securityContext']['runAsUser']}"),
            *(
                f"--volume={server.folder}:{server.folder}",
                f"--env=DATABASE_URL={server.url()}",
                TAG,
                *container["args"],
            ),
        ),
        env=images.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.stdout.startswith("applied 0001"), said.stdout + said.stderr


def _logins() -> list[str]:
    """The logins of the production database, in their groups."""
    roles = of_kind(render("overlays/production"), "Cluster")[0]["spec"]["managed"]["roles"]
    return [
        f"CREATE ROLE {each['name']} LOGIN IN ROLE {', '.join(each['inRoles'])}" for each in roles if "inRoles" in each
    ]


def _configuration(manifests: list[Manifest], folder: Path) -> Config:
    file = folder / "lakthan.toml"
    file.write_text(_config_map(manifests)["data"]["lakthan.toml"])
    return load(file, {})


def _config_map(manifests: list[Manifest]) -> Manifest:
    return next(each for each in of_kind(manifests, "ConfigMap") if "lakthan.toml" in each["data"])


def _secrets(folder: Path, server: Server) -> dict[str, Path]:
    """A folder for each secret that docs/kubernetes.md lists, from the demo's PKI."""
    demo = folder / "demo"
    contents = {
        "ocsp-keys": {
            "public-ca.pem": demo / "pki/ocsp/public-ca.pem",
            "public-ca.key": demo / "secrets/ocsp/public-ca.key",
        },
        "tsa-keys": {
            "2026.pem": demo / "pki/tsu.pem",
            "2026.key": demo / "secrets/tsu.key",
            "chain.pem": demo / "pki/tsa-chain.pem",
        },
        "registry-tls": {"tls.crt": demo / "pki/registry-chain.pem", "tls.key": demo / "secrets/registry.key"},
        "publisher-keys": {},
    }
    folder.chmod(0o755)  # the pods' user has to come through
    volumes = {"db-ca": server.folder}
    for name, files in contents.items():
        volumes[name] = folder / "secrets" / name
        volumes[name].mkdir(parents=True)
        for file, source in files.items():
            shutil.copyfile(source, volumes[name] / file)
    for service in _SERVICES:
        volumes[f"db-{service}"] = folder / "secrets" / f"db-{service}"
        volumes[f"db-{service}"].mkdir()
        (volumes[f"db-{service}"] / "password").write_text("not asked for\n")
    for path in (folder / "secrets").rglob("*"):
        os.chown(path, _UID, _UID)
    return volumes


def _for_podman(manifests: list[Manifest], volumes: dict[str, Path]) -> str:
    """What podman can play, with what differs here."""
    config = _config_map(manifests)
    text = config["data"]["lakthan.toml"]
    for service in _SERVICES:
        before = f"postgresql://svc_{service}@lakthan-db-rw/lakthan"
        assert before in text
        text = text.replace(before, f"postgresql://svc_{service}@/lakthan?host={_SOCKET}&sslmode=disable")
    config["data"]["lakthan.toml"] = text
    played: list[Manifest] = [config]
    for deployment in of_kind(manifests, "Deployment"):
        for container in containers_of(deployment):
            assert container["image"] == TAG
            for field in _PODMAN_IGNORES:
                container.pop(field, None)
        for volume in pod_of(deployment)["volumes"]:
            if "secret" in volume:
                path = volumes[volume.pop("secret")["secretName"]]
                volume["hostPath"] = {"path": str(path), "type": "Directory"}
        played.append(deployment)
    for each in played:
        del each["metadata"]["namespace"]
    return yaml.safe_dump_all(played)


@contextmanager
def _played(images: Images, text: str, folder: Path) -> Iterator[None]:
    file = folder / "pods.yaml"
    file.write_text(text)
    run: dict[str, Any] = {"env": images.environ, "capture_output": True, "text": True}
    done = subprocess.run(images.podman("play", "kube", "--network=host", str(file)), check=False, **run)
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        yield
    finally:
        down = subprocess.run(images.podman("play", "kube", "--down", str(file)), check=False, **run)
    assert down.returncode == 0, down.stdout + down.stderr


def _until_ready(admin_port: int, images: Images) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    said = ""
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{admin_port}/readyz", timeout=5) as reply:
                assert reply.status == 200
                return
        except urllib.error.HTTPError as error:
            said = error.read().decode()
        except OSError as error:
            said = str(error)
        time.sleep(0.5)
    everything = subprocess.run(
        images.podman("ps", "--all", "--quiet"), env=images.environ, capture_output=True, text=True, check=True
    ).stdout.split()
    logs = [
        subprocess.run(images.podman("logs", each), env=images.environ, capture_output=True, text=True, check=False)
        for each in everything
    ]
    raise AssertionError(said + "\n".join(each.stdout[-2000:] + each.stderr[-2000:] for each in logs))
