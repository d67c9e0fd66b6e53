"""OpenSSL, and in two tests GnuTLS and pkilint, as judges of what a ceremony signs: every answer, and the ARL."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes

from support.ceremony import Room, new_room
from support.database import OpenPool
from support.programs import need
from support.published import hold, serving
from support.responder import request_for


def openssl(*arguments: str | Path, cwd: Path) -> str:
    """All that it prints."""
    done = subprocess.run(
        [need("openssl"), *arguments],
        cwd=cwd,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
    )
    return done.stdout


@pytest.fixture(params=["P-384", "RSA-4096", "Ed25519", "responder"])
def room(request: pytest.FixtureRequest, tmp_path: Path) -> Room:
    """A room after its ceremony: roots of several kinds, and one that lets a responder speak."""
    delegated = request.param == "responder"
    room = new_room(tmp_path, kind="P-384" if delegated else request.param, delegated=delegated)
    room.sign(room.plan())
    return room


@pytest.mark.parametrize("name", ["good", "revoked"])
@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
def test_the_answers(room: Room, name: str, algorithm: str) -> None:
    """OpenSSL finds the certificate in its answer, and verifies it with nothing but the root as its anchor. OCSP-71."""
    serial = {"good": room.good, "revoked": room.revoked}[name].serial_number.hex()
    [answer] = (room.folder / "out" / "answers").glob(f"{serial}-{algorithm}-*")
    said = openssl(
        "ocsp", f"-{algorithm}", "-issuer", "root.pem", "-cert", f"{name}.pem", "-CAfile", "root.pem",
        "-respin", answer, "-no_nonce", cwd=room.folder,
    )  # fmt: skip
    assert "Response verify OK" in said, said
    assert re.search(rf"{name}\.pem: {name}\n", said), said
    assert ("Reason: cessationOfOperation" in said) == (name == "revoked"), said


def test_another_root_does_not_verify_them(room: Room, tmp_path: Path) -> None:
    """The check above can fail: with another anchor OpenSSL refuses the same answer."""
    folder = tmp_path / "other"
    folder.mkdir()
    new_room(folder)
    answer = min((room.folder / "out" / "answers").iterdir())
    said = openssl(
        "ocsp", "-issuer", folder / "root.pem", "-cert", "good.pem", "-CAfile", folder / "root.pem",
        "-respin", answer, "-no_nonce", cwd=room.folder,
    )  # fmt: skip
    assert "Response Verify Failure" in said, said


def test_the_arl(room: Room) -> None:
    """OpenSSL verifies the ARL with the root's key, and prints number, entry and reason."""
    said = openssl(
        "crl", "-inform", "DER", "-in", "out/arl.crl", "-CAfile", "root.pem", "-noout", "-text", cwd=room.folder
    )
    assert "verify OK" in said, said
    assert re.search(r"X509v3 CRL Number: \n\s+1\n", said), said
    assert f"{room.revoked.certificate.serial_number:X}" in said
    assert "Cessation Of Operation" in said


@pytest.mark.parametrize(("name", "outcome"), [("good", "good.pem: OK"), ("revoked", "certificate revoked")])
def test_a_path_is_checked_with_the_arl(room: Room, name: str, outcome: str) -> None:
    """A validator that uses CRLs gets the same verdict from the ARL as others from the answers."""
    crl = openssl("crl", "-inform", "DER", "-in", "out/arl.crl", cwd=room.folder)
    (room.folder / "arl.pem").write_text(crl)
    said = openssl("verify", "-crl_check", "-CAfile", "root.pem", "-CRLfile", "arl.pem", f"{name}.pem", cwd=room.folder)
    assert outcome in said, said


def test_gnutls_verifies_the_answers(room: Room) -> None:
    """GnuTLS verifies each answer with the certificate of whoever signed it."""
    signer = "responder.pem" if room.responder else "root.pem"
    for answer in (room.folder / "out" / "answers").iterdir():
        done = subprocess.run(
            [need("ocsptool"), "--verify-response", "--load-response", answer, "--load-signer", signer],
            cwd=room.folder,
            check=False,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert "Verifying OCSP Response: Success." in done.stdout + done.stderr, done.stdout + done.stderr


def test_the_linters_find_nothing(room: Room) -> None:
    """The linters of pkilint have nothing to say of the answers, nor of the ARL by RFC 5280 and by the TLS Baseline
    Requirements.
    """
    out = room.folder / "out"
    answers: list[list[str]] = [["lint_ocsp_response", "lint", str(path)] for path in (out / "answers").iterdir()]
    arls = [["lint_crl", "lint", "-t", "ARL", "-p", profile, str(out / "arl.crl")] for profile in ("PKIX", "BR")]
    for command in [*answers, *arls]:
        command[0] = str(Path(sys.executable).with_name(command[0]))
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout.strip()) == (0, ""), done.stdout + done.stderr


@pytest.mark.parametrize("delegated", [False, True], ids=["root", "responder"])
async def test_over_http(open_as: OpenPool, database_url: str, tmp_path: Path, *, delegated: bool) -> None:
    """OpenSSL asks a running responder about both sub-CAs, by POST, with and without a nonce; what comes by GET is the
    same, and it verifies that too. The root's key is not there. OCSP-45, OCSP-71.
    """
    room = new_room(tmp_path, delegated=delegated)
    out = await hold(room)
    for key in ("root.key", "responder.key"):
        (tmp_path / key).unlink(missing_ok=True)
    async with serving(await open_as("lakthan_registry"), database_url, room) as root:
        await root.take(out)
        for name, issued in (("good", room.good), ("revoked", room.revoked)):
            asked = ["ocsp", "-issuer", "root.pem", "-CAfile", "root.pem", "-cert", f"{name}.pem"]
            for algorithm in ("-sha1", "-sha256"):
                for nonce in ("-nonce", "-no_nonce"):
                    # OpenSSL wants the hash before the certificate that it is for.
                    question = ["ocsp", algorithm, *asked[1:], nonce, "-url", root.responder.url]
                    said = await asyncio.to_thread(openssl, *question, cwd=tmp_path)
                    assert "Response verify OK" in said, said
                    assert f"{name}.pem: {name}\n" in said, said
            reply = await root.responder.get(request_for(issued, room.root, algorithm=hashes.SHA1()))
            (tmp_path / "got.ors").write_bytes(reply.body)
            said = openssl(*asked, "-respin", "got.ors", "-no_nonce", cwd=tmp_path)
            assert "Response verify OK" in said, said
            assert f"{name}.pem: {name}\n" in said, said
