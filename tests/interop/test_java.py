"""Java's PKIX revocation checker as a client of the running demo: what any Java program makes of a certificate."""

from __future__ import annotations

import subprocess
import tomllib
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.demo import Demo
from support.programs import need

SOURCE = Path(__file__).parent / "clients/Revocation.java"
AUTHORITIES = {"public": ".", "gov": "gov"}
both_authorities = pytest.mark.parametrize("folder", AUTHORITIES.values(), ids=AUTHORITIES)
# How Java is told to ask, the HTTP method that it then uses, and whether it sends a nonce.
GET, POST = "-Dcom.sun.security.ocsp.useget=true", "-Dcom.sun.security.ocsp.useget=false"
OWN_NONCE = "-Djdk.security.certpath.ocspNonce=true"
WAYS = {
    "as it comes": ([], "GET", False),
    "GET": ([GET], "GET", False),
    "POST": ([POST], "POST", False),
    "GET, own nonce": ([GET, OWN_NONCE], "GET", True),
    "POST, own nonce": ([POST, OWN_NONCE], "POST", True),
    "GET, 32 octets": ([GET, "-Dnonce=32"], "GET", True),
    "POST, 1 octet": ([POST, "-Dnonce=1"], "POST", True),
    # With it the request has more than 255 octets in base64, and Java takes to POST by itself.
    "POST, 100 octets": ([GET, "-Dnonce=100"], "POST", True),
}


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client, compiled."""
    folder = tmp_path_factory.mktemp("classes")
    subprocess.run([need("javac"), "-Xlint:all", "-Werror", "-d", folder, SOURCE], check=True, timeout=100)
    return folder


def verdicts(classes: Path, pki: Path, options: list[str], *paths: str) -> list[str]:
    """What Java decides about each path, given as the names of PEM files from the trust anchor down."""
    done = subprocess.run(
        [need("java"), "-XX:TieredStopAtLevel=1", "-cp", classes, *options, "Revocation", *paths],
        cwd=pki,
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    print(done.stderr)
    return [line.split("\t")[1] for line in done.stdout.splitlines()]


def requests_so_far(demo: Demo) -> dict[str, float]:
    """How many requests the demo has answered by each method, and how many had a nonce."""
    port = tomllib.loads((demo.directory / "lakthan.toml").read_text(encoding="utf-8"))["ocsp"]["admin_port"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        families = text_string_to_metric_families(reply.read().decode())
    counts = {"GET": 0.0, "POST": 0.0, "nonce": 0.0}
    for family in families:
        for sample in family.samples:
            if sample.name == "lakthan_ocsp_requests_total":
                counts[sample.labels["method"]] += sample.value
            elif sample.name == "lakthan_ocsp_nonces_total":
                counts["nonce"] += sample.value
    return counts


@both_authorities
@pytest.mark.parametrize("way", WAYS)
def test_java_knows_every_certificate_for_what_it_is(demo: Demo, classes: Path, folder: str, way: str) -> None:
    """With OCSP alone and no way around it, Java takes what is good from the root down, names the reason of what is
    revoked or held, and does not take what its CA never announced; and it asked in the way that the test means.

    OCSP-Q11.
    """
    options, method, nonce = WAYS[way]
    ca = f"{folder}/ca.pem"
    before = requests_so_far(demo)
    said = verdicts(
        classes,
        demo.pki,
        options,
        f"root.pem,{ca},{folder}/good.pem",
        *(f"{ca},{folder}/{name}.pem" for name in ("revoked", "held", "unissued")),
    )
    print(way, said)
    assert said == ["valid", "REVOKED KEY_COMPROMISE", "REVOKED CERTIFICATE_HOLD", "UNDETERMINED_REVOCATION_STATUS"]
    after = requests_so_far(demo)
    asked = {name: after[name] - before[name] for name in after}
    # One more than there are paths: the CA itself, at the responder of the root.
    assert asked == {"GET": 0.0, "POST": 0.0, "nonce": 5.0 if nonce else 0.0} | {method: 5.0}


def test_java_takes_each_authority_from_the_root(demo: Demo, classes: Path) -> None:
    """The status of the CAs is asked of the root's responder, whose key is another one than the root's."""
    paths = ["root.pem,ca.pem", "root.pem,gov/ca.pem", "root.pem,tsa-chain.pem"]
    assert verdicts(classes, demo.pki, [], *paths) == ["valid"] * 3
