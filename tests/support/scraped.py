"""A demo, with what it has not: a publisher, a responder without a key, one with two workers whose key is in an HSM,
and a probe that asks the demo.

All of them are processes of their own, over the demo's database; a real Prometheus scrapes them as docs/metrics.md
says. `Clients` asks them what clients ask, and what they should not.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Self
from urllib.parse import SplitResult, urlsplit

from asn1crypto.keys import PublicKeyInfo
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509 import ocsp

from support import softhsm
from support.bench_machine import Children, free_port, wait_for_port, wait_until_ready
from support.demo import Demo, on_free_ports, running
from support.pki import PrivateKey
from support.prometheus import Prometheus, documented_configuration, moved, prometheus
from support.tsa import request_for

_OCSP_POST = {"Content-Type": "application/ocsp-request"}
_TSA_POST = {"Content-Type": "application/timestamp-query"}


@dataclass(frozen=True)
class World:
    """What runs. `extra`: the public ports of the responders `edge` and `workers`."""

    demo: Demo
    prometheus: Prometheus
    database_url: str
    extra: dict[str, int]


@contextmanager
def scraped(folder: Path, every: str) -> Iterator[World]:
    """All of it, ready and scraped once a while (`every`: Prometheus' way to write a duration)."""
    with running(folder / "demo", *on_free_ports()) as demo, Children(folder / "log") as children:
        usual = json.loads((demo.directory / "demo.json").read_text())["ports"]
        owner = json.loads((demo.directory / "running.json").read_text())["owner"]
        published = demo.lakthan(
            "authority", "policy", "public-ca", "--crl-url", f"{demo.urls['publication']}/crl/public-ca.crl"
        )
        assert published.returncode == 0, published.stderr
        admin, public = {}, {}
        for name, (module, text) in _configurations(demo, owner, folder).items():
            public[name], admin[name] = free_port(), free_port()
            path = demo.directory / f"{name}.toml"
            path.write_text(text.format(port=public[name], admin_port=admin[name], url=owner))
            more = ["--workers", "2"] if name == "workers" else []
            child = children.start(
                name, [sys.executable, "-m", module, "--config", str(path), *more], os.sched_getaffinity(0)
            )
            wait_until_ready(child, admin[name])
        ports = {
            6961: [usual["ocsp_admin"], admin["edge"], admin["workers"]],
            3162: [usual["tsa_admin"]],
            8444: [usual["registry_admin"]],
            6964: [admin["publisher"]],
            6965: [free_port()],
        }
        plan, where = str(demo.directory / "probe.toml"), f"127.0.0.1:{ports[6965][0]}"
        probe = [sys.executable, "-m", "lakthan_cli", "probe", plan, "--listen", where, "--every", "PT2S"]
        # Not until it is ready, which is after its first round: that may take a while beside all the others.
        wait_for_port(children.start("probe", probe, os.sched_getaffinity(0)), ports[6965][0])
        with prometheus(folder / "prometheus", moved(documented_configuration(), ports, every)) as here:
            yield World(demo, here, owner, public)


def _configurations(demo: Demo, owner: str, folder: Path) -> dict[str, tuple[str, str]]:
    """By name: the program, and its configuration with the ports left open."""
    token = softhsm.new_token(softhsm.tokens_folder(folder), demo.directory)
    key = load_pem_private_key((demo.directory / "secrets" / "ocsp" / "gov-ca.key").read_bytes(), None)
    assert isinstance(key, PrivateKey)
    token.put("gov-ca", key)
    return {
        "publisher": (
            "lakthan_ocsp.publisher",
            """
[publisher]
admin_port = {admin_port}
database.url = "{url}"
[[publisher.responders]]
authority = "public-ca"
certificate = "pki/ocsp/public-ca.pem"
key = "file:secrets/ocsp/public-ca.key"
signatures_per_second = 500
""",
        ),
        "edge": (
            "lakthan_ocsp",
            """
[ocsp]
port = {port}
admin_port = {admin_port}
keyless = true
warm_start = "answers"
database.url = "{url}"
[[ocsp.responders]]
authority = "public-ca"
answers = "published"
""",
        ),
        "workers": (
            "lakthan_ocsp",
            f"""
[ocsp]
port = {{port}}
admin_port = {{admin_port}}
database.url = "{{url}}"
[[ocsp.responders]]
authority = "gov-ca"
certificate = "pki/ocsp/gov-ca.pem"
key = "{token.uri("gov-ca").uri}"
""",
        ),
    }


class Clients:
    """Who asks all of it, from one thread; each service on one connection."""

    def __init__(self, world: World) -> None:
        demo = world.demo
        self._pki = demo.pki
        self._ocsp = _connect(urlsplit(demo.urls["ocsp"]))
        self._tsa = _connect(urlsplit(demo.urls["tsa"]))
        trust = ssl.create_default_context(cafile=str(demo.pki / "root.pem"))
        door = urlsplit(demo.urls["registry"])
        self._registry = http.client.HTTPSConnection(door.hostname or "", door.port, timeout=30, context=trust)
        self._extra = {
            name: http.client.HTTPConnection("127.0.0.1", world.extra[name], timeout=30) for name in ("edge", "workers")
        }
        self._token = (demo.directory / "tokens" / "public-ca.token").read_text().strip()
        self._serial_numbers = count(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in (self._ocsp, self._tsa, self._registry, *self._extra.values()):
            connection.close()

    def ask(self, name: str, *, nonce: bool = False, of: str = "", to: str = "") -> None:
        """A question about a certificate of the demo. `of`: the folder of its CA; `to`: an extra responder."""
        certificate, issuer = (
            x509.load_pem_x509_certificate((self._pki / of / f"{each}.pem").read_bytes()) for each in (name, "ca")
        )
        request = ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, hashes.SHA1())
        if nonce:
            request = request.add_extension(x509.OCSPNonce(secrets.token_bytes(16)), critical=False)
        encoded = request.build().public_bytes(Encoding.DER)
        _send(self._extra.get(to, self._ocsp), "POST", "/", encoded, _OCSP_POST)

    def ask_about_a_new_one(self) -> None:
        """A question about a serial number that nobody asked about: it must be looked up."""
        issuer = x509.load_pem_x509_certificate((self._pki / "ca.pem").read_bytes())
        name, key = hashes.Hash(hashes.SHA256()), hashes.Hash(hashes.SHA256())
        name.update(issuer.subject.public_bytes())
        info = issuer.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        key.update(bytes(PublicKeyInfo.load(info)["public_key"]))
        request = ocsp.OCSPRequestBuilder().add_certificate_by_hash(
            name.finalize(), key.finalize(), (1 << 100) + next(self._serial_numbers), hashes.SHA256()
        )
        _send(self._ocsp, "POST", "/", request.build().public_bytes(Encoding.DER), _OCSP_POST)

    def stamp(self, profile: str = "default") -> None:
        """A time stamp."""
        body = request_for(secrets.token_bytes(32), cert_req=True)
        _send(self._tsa, "POST", f"/tsa/{profile}", body, _TSA_POST)

    def misbehave(self) -> None:
        """What is refused, everywhere."""
        _send(self._ocsp, "DELETE", "/", b"", {})
        _send(self._ocsp, "POST", "/", b"nonsense", _OCSP_POST)
        _send(self._tsa, "GET", "/", b"", {})
        _send(self._tsa, "POST", "/", b"nonsense", _TSA_POST)
        _send(self._registry, "GET", "/v1/certificates/01", b"", {"Authorization": "Bearer wrong"})
        for connection in (self._ocsp, self._tsa):  # it was handed over for the rest of its life; the next is a new one
            connection.close()

    def revoke(self, name: str) -> None:
        """A CA revokes a certificate and waits until every responder says so."""
        certificate = x509.load_pem_x509_certificate((self._pki / f"{name}.pem").read_bytes())
        text = f"{certificate.serial_number:X}"
        path = f"/v1/certificates/{text.rjust(len(text) + len(text) % 2, '0')}/revoke?wait=served"
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        _send(self._registry, "POST", path, b'{"revocation_reason": "superseded"}', headers)

    def round(self) -> None:
        """A little of everything that is usual."""
        for _ in range(3):
            for name in ("good", "revoked", "held"):
                self.ask(name)
            self.ask("good", nonce=True)
            self.ask("good", to="edge")
            self.ask("good", of="gov", to="workers", nonce=True)
            self.ask_about_a_new_one()
            self.stamp()
            self.stamp("p384")


def _connect(url: SplitResult) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(url.hostname or "", url.port, timeout=30)


def _send(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes, headers: dict[str, str]
) -> bytes:
    connection.request(method, path, body or None, headers)
    return connection.getresponse().read()
