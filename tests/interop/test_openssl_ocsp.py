"""OpenSSL, GnuTLS and pyca as OCSP clients of the running demo: what they print about every kind of certificate."""

from __future__ import annotations

import base64
import re
import subprocess
import urllib.parse
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from support.demo import Demo
from support.programs import need

AUTHORITIES = {"public": ".", "gov": "gov"}
both_authorities = pytest.mark.parametrize("folder", AUTHORITIES.values(), ids=AUTHORITIES)


def said_by(program: str, *arguments: str | Path, cwd: Path) -> str:
    """All that a program prints."""
    done = subprocess.run(
        [need(program), *arguments],
        cwd=cwd,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
    )
    return done.stdout


def ask(demo: Demo, folder: str, *arguments: str, issuer: str = "ca.pem", trust: str = "root.pem") -> str:
    """What `openssl ocsp` prints, run in a CA's folder, with the national root as the only trust anchor."""
    anchor = ["-CAfile", str(demo.pki / trust)]
    asked = ["-issuer", issuer, *arguments, "-url", demo.urls["ocsp"]]
    return said_by("openssl", "ocsp", *asked, *anchor, cwd=demo.pki / folder)


@both_authorities
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("good", r"good\.pem: good\n\tThis Update: .*\n\tNext Update: "),
        ("pdf", r"pdf\.pem: good"),
        ("mail", r"mail\.pem: good"),
        ("expired", r"expired\.pem: good"),
        ("revoked", r"revoked\.pem: revoked\n.*\n.*\n\tReason: keyCompromise\n\tRevocation Time: "),
        ("held", r"held\.pem: revoked\n.*\n.*\n\tReason: certificateHold\n\tRevocation Time: "),
        ("unissued", r"unissued\.pem: unknown"),
    ],
)
@pytest.mark.parametrize("nonce", ["-nonce", "-no_nonce"])
def test_every_file_has_the_status_of_its_name(demo: Demo, folder: str, name: str, expected: str, nonce: str) -> None:
    """OpenSSL verifies the answer down from the root alone, finds its nonce, and prints what the file name says."""
    said = ask(demo, folder, nonce, "-cert", f"{name}.pem")
    assert "Response verify OK" in said, said
    assert re.search(expected, said), said
    assert "WARNING" not in said, said


@both_authorities
@pytest.mark.parametrize("algorithm", ["-sha1", "-sha256", "-sha384", "-sha512"])
def test_the_issuer_may_be_named_by_any_hash(demo: Demo, folder: str, algorithm: str) -> None:
    """Clients name the issuer by SHA-1, newer ones by SHA-2; all of them recognise their CertID in the answer."""
    said = ask(demo, folder, algorithm, "-cert", "good.pem", algorithm, "-cert", "revoked.pem")
    assert "Response verify OK" in said, said
    assert "good.pem: good" in said
    assert "revoked.pem: revoked" in said


@both_authorities
def test_many_certificates_in_one_request(demo: Demo, folder: str) -> None:
    """One signed answer tells the status of each, also when one of them is asked about twice or is not on record."""
    expected = {"good": "good", "revoked": "revoked", "held": "revoked", "expired": "good", "unissued": "unknown"}
    names = [*expected, "good"]
    said = ask(demo, folder, *(word for name in names for word in ("-cert", f"{name}.pem")))
    assert "Response verify OK" in said, said
    assert re.findall(r"^(\w+)\.pem: (\w+)$", said, re.MULTILINE) == [(name, expected[name]) for name in names]


def test_the_root_answers_for_the_authorities(demo: Demo) -> None:
    """The status of the CAs themselves comes from the responder of the root, whose key is never online."""
    for name in ("ca.pem", "gov/ca.pem", "tsa-chain.pem"):
        said = ask(demo, ".", "-cert", name, issuer="root.pem")
        assert "Response verify OK" in said, said
        assert f"{name}: good" in said


@pytest.mark.parametrize(
    "arguments", [["-verify_other", "ca.pem"], ["-VAfile", "responder"], ["-no_intern", "-verify_other", "responder"]]
)
@both_authorities
def test_the_other_ways_of_finding_the_responder_work_too(demo: Demo, folder: str, arguments: list[str]) -> None:
    """With more certificates at hand than the answer brings, or with the responder's own given by hand."""
    responder = demo.pki / "ocsp" / f"{'public' if folder == '.' else 'gov'}-ca.pem"
    given = [str(responder) if word == "responder" else word for word in arguments]
    assert "Response verify OK" in ask(demo, folder, "-cert", "good.pem", *given)


def test_a_stranger_as_trust_anchor_does_not_verify(demo: Demo) -> None:
    """The checks above can fail: with another certificate as anchor, OpenSSL refuses the same answer."""
    assert "Response Verify Failure" in ask(demo, ".", "-cert", "good.pem", trust="gov/good.pem")


@both_authorities
def test_a_foreign_issuer_is_not_answered_for(demo: Demo, folder: str) -> None:
    """A CertID whose issuer is none of the demo's gets `unauthorized`, and no signature is spent on it."""
    said = ask(demo, folder, "-cert", "good.pem", issuer="good.pem")
    assert "Responder Error: unauthorized (6)" in said


@both_authorities
def test_a_certificate_of_the_other_authority_is_never_good(demo: Demo, folder: str) -> None:
    """The serial number of one CA's certificate asked at the other is not on record there."""
    other = demo.pki / ("gov" if folder == "." else ".") / "ca.pem"
    said = ask(demo, folder, "-serial", hex(serial_of(demo.pki / folder / "good.pem")), issuer=str(other))
    assert "Response verify OK" in said, said
    assert ": unknown" in said


def serial_of(path: Path) -> int:
    """The serial number of a certificate."""
    return x509.load_pem_x509_certificate(path.read_bytes()).serial_number


@both_authorities
@pytest.mark.parametrize("quoted", [True, False])
def test_get_by_hand(demo: Demo, folder: str, tmp_path: Path, *, quoted: bool) -> None:
    """A request in base64 behind the URL, percent-encoded or as it is, brings an answer that OpenSSL accepts."""
    request, response = tmp_path / "request.der", tmp_path / "response.der"
    asked = ["-issuer", "ca.pem", "-cert", "good.pem", "-no_nonce"]
    said_by("openssl", "ocsp", *asked, "-reqout", request, cwd=demo.pki / folder)
    encoded = base64.b64encode(request.read_bytes()).decode()
    path = urllib.parse.quote(encoded, safe="") if quoted else encoded
    said_by("curl", "-sS", "--path-as-is", "-o", response, f"{demo.urls['ocsp']}/{path}", cwd=tmp_path)
    said = said_by(
        "openssl", "ocsp", *asked, "-respin", response, "-CAfile", demo.pki / "root.pem", cwd=demo.pki / folder
    )
    assert "Response verify OK" in said, said
    assert "good.pem: good" in said


@both_authorities
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("good", "Certificate Status: good"),
        ("revoked", "Certificate Status: revoked"),
        ("unissued", "Certificate Status: unknown"),
    ],
)
def test_gnutls(demo: Demo, folder: str, name: str, expected: str) -> None:
    """GnuTLS's client, which shares no code with OpenSSL, sends a nonce and comes to the same verdicts."""
    said = said_by(
        "ocsptool", f"--ask={demo.urls['ocsp']}", "--nonce", "--load-cert", f"{name}.pem", "--load-issuer", "ca.pem",
        "--load-signer", "ca.pem", cwd=demo.pki / folder,
    )  # fmt: skip
    assert expected in said, said
    assert "Verifying OCSP Response: Success" in said, said


@both_authorities
def test_pyca(demo: Demo, folder: str, tmp_path: Path) -> None:
    """With pyca: byKey, one delegated certificate, and times as clients want them."""
    response, issuer = fetch(demo, folder, "good", tmp_path)
    [responder] = response.certificates
    responder.verify_directly_issued_by(issuer)
    verify(response, responder)
    assert response.responder_name is None
    digest = x509.SubjectKeyIdentifier.from_public_key(responder.public_key()).digest
    assert response.responder_key_hash == digest
    assert not responder.extensions.get_extension_for_class(x509.OCSPNoCheck).critical
    assert response.this_update_utc <= datetime.now(UTC)
    assert response.next_update_utc is not None
    assert response.next_update_utc < responder.not_valid_after_utc


@both_authorities
def test_no_answer_outlives_a_certificate_in_force(demo: Demo, folder: str, tmp_path: Path) -> None:
    """The answer that is embedded beside a signature ends no later than the signer's certificate, because validators go
    back to its end and want the certificate to be in force there. After a certificate's end answers live as usual.
    """
    response, _ = fetch(demo, folder, "pdf", tmp_path)
    certificate = x509.load_pem_x509_certificate((demo.pki / folder / "pdf.pem").read_bytes())
    assert response.next_update_utc == certificate.not_valid_after_utc
    response, _ = fetch(demo, folder, "expired", tmp_path)
    assert response.next_update_utc is not None
    assert response.next_update_utc > datetime.now(UTC)


def fetch(demo: Demo, folder: str, name: str, scratch: Path) -> tuple[ocsp.OCSPResponse, x509.Certificate]:
    """An answer about a certificate, got with curl, and the certificate's issuer."""
    certificate = x509.load_pem_x509_certificate((demo.pki / folder / f"{name}.pem").read_bytes())
    issuer = x509.load_pem_x509_certificate((demo.pki / folder / "ca.pem").read_bytes())
    request = ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, hashes.SHA256()).build()
    (scratch / "request.der").write_bytes(request.public_bytes(Encoding.DER))
    body = ["-H", "Content-Type: application/ocsp-request", "--data-binary", "@request.der", "-o", "response.der"]
    said_by("curl", "-sS", *body, demo.urls["ocsp"], cwd=scratch)
    response = ocsp.load_der_ocsp_response((scratch / "response.der").read_bytes())
    assert response.response_status is ocsp.OCSPResponseStatus.SUCCESSFUL
    assert response.serial_number == certificate.serial_number
    return response, issuer


def verify(response: ocsp.OCSPResponse, responder: x509.Certificate) -> None:
    """Check the signature. Raises InvalidSignature."""
    key, algorithm = responder.public_key(), response.signature_hash_algorithm
    assert algorithm is not None
    if isinstance(key, rsa.RSAPublicKey):
        key.verify(response.signature, response.tbs_response_bytes, padding.PKCS1v15(), algorithm)
    else:
        assert isinstance(key, ec.EllipticCurvePublicKey)
        key.verify(response.signature, response.tbs_response_bytes, ec.ECDSA(algorithm))
