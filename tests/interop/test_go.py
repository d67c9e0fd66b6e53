"""Go's golang.org/x/crypto/ocsp as a client of the running demo.

It is the pickiest of the common readers: one answer only, and the first certificate in it has to be the responder's.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from support.demo import Demo
from support.programs import absent, need

SOURCE = Path(__file__).parent / "clients/revocation.go"
# Where Debian keeps the sources of Go libraries.
LIBRARIES = Path("/usr/share/gocode")
HASHES = ("SHA-1", "SHA-256", "SHA-384", "SHA-512")
WAYS = ("POST", "GET", "GET unescaped")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client, compiled with the library as Debian packages it and nothing from the network."""
    go = need("go")
    if not (LIBRARIES / "src/golang.org/x/crypto/ocsp").is_dir():
        absent("go", "Go's x/crypto is not installed (Debian package: golang-golang-x-crypto-dev)")
    folder = tmp_path_factory.mktemp("go")
    variables = {"GO111MODULE": "off", "GOFLAGS": "", "GOPATH": str(LIBRARIES), "GOCACHE": str(folder / "cache")}
    for command in (["vet"], ["build", "-o", str(folder / "revocation")]):
        subprocess.run([go, *command, SOURCE], env=os.environ | variables, check=True, timeout=100)
    return folder / "revocation"


def said_by(client: Path, pki: Path, ca: str, *certificates: str) -> list[list[str]]:
    """The lines that the client prints, in fields."""
    done = subprocess.run([client, ca, *certificates], cwd=pki, check=False, capture_output=True, text=True, timeout=60)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()]


@pytest.mark.parametrize("folder", [".", "gov"], ids=["public", "gov"])
def test_go_knows_every_certificate_for_what_it_is(demo: Demo, client: Path, folder: str) -> None:
    """With every hash, by POST and GET, Go verifies the answer with the CA's key and reads status and reason."""
    expected = {
        "good.pem": "good",
        "expired.pem": "good",
        "revoked.pem": "revoked 1",
        "held.pem": "revoked 6",
        "unissued.pem": "unknown",
    }
    said = said_by(client, demo.pki / folder, "ca.pem", *expected)
    assert said == [[name, way_hash, way, expected[name]] for name in expected for way_hash in HASHES for way in WAYS]


def test_go_knows_the_authorities(demo: Demo, client: Path) -> None:
    """The status of the CAs comes from the responder of the root, with a P-256 key under a P-384 one."""
    said = said_by(client, demo.pki, "root.pem", "ca.pem", "gov/ca.pem", "tsa-chain.pem")
    assert len(said) == 3 * len(HASHES) * len(WAYS)
    assert {line[3] for line in said} == {"good"}


def test_another_authority_is_refused(demo: Demo, client: Path) -> None:
    """The checks above can fail: asked in the name of the wrong CA, nothing comes back that Go takes."""
    said = said_by(client, demo.pki, "gov/ca.pem", "good.pem")
    assert {line[3] for line in said} == {"unknown"}
    said = said_by(client, demo.pki, "good.pem", "good.pem")
    assert {line[3] for line in said} == {"error: ocsp: error from server: unauthorized"}
