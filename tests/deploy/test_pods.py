"""The rendered Deployments of the dev overlay, run by podman on real PostgreSQL: OCSP and time stamps answer. So does
the keyless edge beside a standby, and beside none.

Podman 4.3 plays Deployments and ConfigMaps, not Jobs, and its Secrets come out of it still encoded. So the Job's
command is run by itself, and the folders of secrets are mounted from here. Everything else is as rendered: image, user,
read-only root, arguments, configuration, mounts; but for the ports, which may be taken on this machine.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.manifests import Manifest, containers_of, of_kind, pod_of, render
from deploy.test_bare_demo import ask_ocsp, ask_tsa
from lakthan.config import Config, DatabaseConfig, KeyURI, PresignConfig, PublisherConfig
from lakthan.store.pool import open_pool
from lakthan_cli.demo import pki
from lakthan_cli.demo.addresses import choose
from lakthan_cli.demo.registration import register
from lakthan_ocsp.publisher.__main__ import serve as publish
from support.image import TAG, Images
from support.programs import need_root
from support.replication import Server, Servers, make_database, servers
from support.running import running

pytestmark = pytest.mark.timeout(600)

_UID = 10001
_SERVICES = ("ocsp", "tsa", "registry", "publisher")
_SOCKET = "/run/lakthan/db-ca"  # the folder of the database's socket stands where its CA certificate would
_PATIENCE_SECONDS = 120
# Podman's pods share this machine's network, where a demo may have the ports of the manifests; so they are moved.
_PORTS = {"ocsp": 26960, "tsa": 23161, "registry": 28443, "edge": 26970}
_ADMIN_PORTS = {"ocsp": 26961, "tsa": 23162, "registry": 28444, "publisher": 26964, "edge": 26971}
_WITHOUT_ANSWER = (
    "SELECT EXISTS (SELECT FROM certificate_status s JOIN authority a ON a.id = s.authority_id AND a.name = 'public-ca'"
    " WHERE NOT EXISTS (SELECT FROM published_answer p WHERE p.authority_id = s.authority_id"
    " AND p.serial_number = s.serial_number AND p.status_version = s.version AND p.cert_id_hash = 'SHA-1'))"
)
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
        volumes = _secrets(tmp_path, pair.capital)
        logins = {f"svc_{service}": "lakthan-db-rw" for service in _SERVICES}
        with _played(images, _for_podman(manifests, volumes, logins), tmp_path / "pods.yaml"):
            for name in _SERVICES:
                _until_ready(_ADMIN_PORTS[name], images)
            ask_ocsp(tmp_path / "demo" / "pki", f"http://127.0.0.1:{_PORTS['ocsp']}")
            ask_tsa(tmp_path / "demo" / "pki", f"http://127.0.0.1:{_PORTS['tsa']}", tmp_path)
            await _edge_answers(images, pair, tmp_path)


async def _edge_answers(images: Images, pair: Servers, folder: Path) -> None:
    """The keyless edge beside a standby of that database: openssl accepts what was signed ahead, and still does when
    the line is cut, the standby is gone and the container has been started anew.
    """
    demo = folder / "demo"
    await _sign_ahead(pair, demo)
    await pair.follow_physically()
    warm = folder / "warm"
    warm.mkdir()
    os.chown(warm, _UID, _UID)
    manifests = render("overlays/edge")
    (deployment,) = of_kind(manifests, "Deployment")
    (password,) = (folder / "secrets" / "db-ocsp").iterdir()
    volumes = {"db-ca": pair.edge.folder, "db-edge": password.parent}
    for each in pod_of(deployment)["volumes"]:
        if each["name"] == "warm":
            del each["emptyDir"]
            each["hostPath"] = {"path": str(warm), "type": "Directory"}
    for container in containers_of(deployment):
        container["image"] = TAG
    text = _for_podman(manifests, volumes, {"svc_ocsp": "lakthan-copy"})
    url = f"http://127.0.0.1:{_PORTS['edge']}"
    with _played(images, text, folder / "edge.yaml"):
        _until_ready(_ADMIN_PORTS["edge"], images)
        ask_ocsp(demo / "pki", url)
        _until((warm / "answers").exists)
    pair.line.cut()
    pair.edge.stop(at_once=True)
    with _played(images, text, folder / "edge.yaml"):
        _until_ready(_ADMIN_PORTS["edge"], images)
        ask_ocsp(demo / "pki", url)


async def _sign_ahead(pair: Servers, demo: Path) -> None:
    """Have every answer of the demo's public CA signed once; the heartbeat goes on in the publisher's pod."""
    key = KeyURI("file:public-ca.key", demo / "secrets/ocsp")
    signing = PresignConfig("public-ca", demo / "pki/ocsp/public-ca.pem", key)
    config = Config(publisher=PublisherConfig([signing], DatabaseConfig(pair.capital.url()), admin_port=0))
    async with running(publish, config):
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while await pair.capital.fetchval(_WITHOUT_ANSWER):  # noqa: ASYNC110 - the database says when
                await asyncio.sleep(0.1)


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


def _for_podman(manifests: list[Manifest], volumes: dict[str, Path], logins: dict[str, str]) -> str:
    """What podman can play, with what differs here. `logins`: where each is looked for in the cluster."""
    config = _config_map(manifests)
    text = config["data"]["lakthan.toml"]
    for login, host in logins.items():
        before = re.compile(rf"postgresql://{login}@{host}/lakthan[^\"]*")
        assert before.search(text)
        text = before.sub(f"postgresql://{login}@/lakthan?host={_SOCKET}&sslmode=disable", text)
    config["data"]["lakthan.toml"] = text
    played: list[Manifest] = [config]
    for deployment in of_kind(manifests, "Deployment"):
        for container in containers_of(deployment):
            assert container["image"] == TAG
            for field in _PODMAN_IGNORES:
                container.pop(field, None)
            container["env"] = [*container.get("env", ()), *_moved(container["name"])]
        for volume in pod_of(deployment)["volumes"]:
            if "secret" in volume:
                path = volumes[volume.pop("secret")["secretName"]]
                volume["hostPath"] = {"path": str(path), "type": "Directory"}
        played.append(deployment)
    for each in played:
        del each["metadata"]["namespace"]
    return yaml.safe_dump_all(played)


def _moved(name: str) -> list[dict[str, str]]:
    """The environment that moves a service's ports."""
    service = name.removeprefix("ocsp-")
    table = "OCSP" if service == "edge" else service.upper()
    moved = {"ADMIN_PORT": _ADMIN_PORTS[service]} | ({"PORT": _PORTS[service]} if service in _PORTS else {})
    return [{"name": f"LAKTHAN_{table}__{key}", "value": str(port)} for key, port in moved.items()]


@contextmanager
def _played(images: Images, text: str, file: Path) -> Iterator[None]:
    file.write_text(text)
    run: dict[str, Any] = {"env": images.environ, "capture_output": True, "text": True}
    done = subprocess.run(images.podman("play", "kube", "--network=host", str(file)), check=False, **run)
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        yield
    finally:
        down = subprocess.run(images.podman("play", "kube", "--down", str(file)), check=False, **run)
    assert down.returncode == 0, down.stdout + down.stderr


def _until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


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
