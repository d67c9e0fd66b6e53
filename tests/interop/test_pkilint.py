"""pkilint, a linter of the PKI world, on every kind of answer and on the certificates of the responders.

Its OCSP linter is taken as it is shipped (`lint_ocsp_response`), and three of its other validators are added that its
authors use for certificates only: no extension twice, signature algorithms encoded octet for octet as the browsers
demand (TLS BR §7.1.3.2), and, for the responder's certificate inside an answer, the whole profile of TLS BR §7.1.2.8.
"""

# pkilint has no types.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import itertools
import secrets
import urllib.request
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from asn1crypto import core
from asn1crypto import ocsp as asn1_ocsp
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from pkilint import loader, pkix
from pkilint.cabf import serverauth
from pkilint.cabf.serverauth import serverauth_key
from pkilint.cabf.serverauth.serverauth_constants import CertificateType
from pkilint.pkix import algorithm, certificate, extension, name
from pkilint.pkix import ocsp as lint_ocsp

from lakthan.store.records import CRLReason, CRLSource
from support.demo import Demo
from support.pki import Issued, issue
from support.responder import ACTOR, Responder, request_for, running_responder

# What is left after linting, and why it stays.
EXPECTED = {
    "pkix.subject_key_identifier_method_1_identified",  # INFO: how the identifier was made, which is as it should be
}

# Of a hold there are answers of its own, and the other never stands in one (RFC 5280 §5.3.1).
UNUSABLE_REASONS = {CRLReason.CERTIFICATE_HOLD, CRLReason.REMOVE_FROM_CRL}


def lint_response(encoded: bytes) -> list[str]:
    """Pkilint's findings about an OCSPResponse, of every severity: `code (SEVERITY): details`."""
    decoders = [
        lint_ocsp.create_response_decoder(),
        pkix.create_attribute_decoder(name.ATTRIBUTE_TYPE_MAPPINGS),
        pkix.create_extension_decoder(extension.EXTENSION_MAPPINGS),
        pkix.create_signature_algorithm_identifier_decoder(
            algorithm.SIGNATURE_ALGORITHM_IDENTIFIER_MAPPINGS,
            path="oCSPResponse.responseBytes.response.basicOCSPResponse.signatureAlgorithm",
        ),
    ]
    validators = [
        extension.UniqueExtensionValidator(),
        serverauth_key.ServerauthAllowedSignatureAlgorithmEncodingValidator(
            path="oCSPResponse.responseBytes.response.basicOCSPResponse.signatureAlgorithm"
        ),
    ]
    container = lint_ocsp.create_pkix_ocsp_response_validator_container(decoders, validators)
    document = loader.RFC6960OCSPResponseDocumentLoader().load_der_document(encoded)
    return findings(container.validate(document.root))


def lint_responder_certificate(encoded: bytes) -> list[str]:
    """Pkilint's findings about a certificate as that of a delegated responder (TLS BR §7.1.2.8)."""
    container = certificate.create_pkix_certificate_validator_container(
        serverauth.create_decoding_validators(), serverauth.create_validators(CertificateType.OCSP_RESPONDER)
    )
    document = loader.RFC5280CertificateDocumentLoader().load_der_document(encoded)
    return findings(container.validate(document.root))


def findings(results: Iterable[object]) -> list[str]:
    """All findings but the expected ones."""
    found = []
    for result in results:
        for description in result.finding_descriptions:  # type: ignore[attr-defined]
            if description.finding.code not in EXPECTED:
                found.append(f"{result.node.path}: {description}")  # type: ignore[attr-defined]  # noqa: PERF401
    return found


def request_for_all(certificates: Sequence[Issued], issuer: Issued) -> bytes:
    """One request about several certificates of a CA."""
    requests = asn1_ocsp.Requests(
        [
            asn1_ocsp.OCSPRequest.load(request_for(each, issuer))["tbs_request"]["request_list"][0]
            for each in certificates
        ]
    )
    encoded: bytes = asn1_ocsp.OCSPRequest({"tbs_request": {"request_list": requests}}).dump()
    return encoded


async def requests_of_every_kind(responder: Responder) -> dict[str, tuple[str, bytes]]:
    """Requests by what is special about them, each with the status of the first certificate in its answer."""
    reasons = {f"revoked, {reason.label}": reason for reason in CRLReason if reason not in UNUSABLE_REASONS}
    revoked: dict[str, CRLReason | None] = {"revoked": None, **reasons}
    names = ("good", "held", *revoked)
    certificates = {name: await responder.issue(issue(name, responder.ca)) for name in names}
    certificates["unknown"] = issue("unknown", responder.ca)
    authority = responder.authority_id
    await responder.writer.hold(authority, certificates["held"].serial_number, actor=ACTOR)
    for each, reason in revoked.items():
        await responder.writer.revoke(authority, certificates[each].serial_number, reason=reason, actor=ACTOR)
    requests = {}
    for each, issued in certificates.items():
        status = each if each in ("good", "unknown") else "revoked"
        # Everything with everything once, and of the reasons only what is different about them.
        hashings = (hashes.SHA256(),) if each in reasons else (hashes.SHA1(), hashes.SHA256(), hashes.SHA512())
        for hashed in hashings:
            for octets in (0,) if each in reasons else (0, 1, 32, 128):
                nonce = secrets.token_bytes(octets) if octets else None
                request = request_for(issued, responder.ca, algorithm=hashed, nonce=nonce)
                requests[f"{each}, {hashed.name}, nonce of {octets}"] = (status, request)
    requests["all in one"] = ("good", request_for_all(list(certificates.values()), responder.ca))
    requests["one twice"] = ("good", request_for_all([certificates["good"]] * 2, responder.ca))
    return requests


@pytest.mark.parametrize("kind", ["P-256", "P-384", "RSA-2048", "RSA-3072", "RSA-4096"])
async def test_no_kind_of_answer_has_findings(database_url: str, tmp_path: Path, kind: str) -> None:
    """For every kind of key, status, CertID hash and nonce, and with several certificates in one answer, pkilint has
    nothing to say.
    """
    async with running_responder(database_url, tmp_path, kind=kind) as responder:
        answers = {}
        for what, (status, request) in (await requests_of_every_kind(responder)).items():
            reply = await responder.post(request)
            assert (reply.status, reply.cert_statuses[0]) == ("successful", status), what
            answers[what] = reply.body
    found = {what: said for what, answer in answers.items() if (said := lint_response(answer))}
    assert len(answers) == 4 * 3 * 4 + 8 + 2
    assert found == {}


@pytest.mark.parametrize(
    "settings",
    [
        {"non_issued": "revoked"},
        {"dual_hash": True},
        {"profile": "tls-br"},
        {"profile": "smime-br"},
        {"profile": "x-road"},
        {"profile": "code-signing"},
        {"profile": "legacy-device"},
        {"cert_hash": True},
    ],
    ids=str,
)
async def test_no_profile_has_findings(database_url: str, tmp_path: Path, settings: dict[str, Any]) -> None:
    """Extended revoke, dual hashes, archive cutoff, hash and CRL of the certificate: nothing to say either."""
    async with running_responder(database_url, tmp_path, kind="P-256", ca_kind="P-256", **settings) as responder:
        good, revoked, never = (issue(name, responder.ca) for name in ("good", "revoked", "never"))
        now = datetime.now(UTC).replace(microsecond=0)
        for each in (good, revoked):
            await responder.writer.issue(
                responder.authority_id,
                each.serial_number,
                certificate_sha256=each.certificate.fingerprint(hashes.SHA256()),
                actor=ACTOR,
            )
        if "cert_hash" in settings:
            crl = CRLSource("http://127.0.0.1/ca.crl", b"\x01", now - timedelta(hours=1), now + timedelta(days=1))
            await responder.authorities.set_crl(responder.authority_id, crl)
        await responder.writer.revoke(
            responder.authority_id, revoked.serial_number, invalidity_date=now - timedelta(days=1), actor=ACTOR
        )
        for each, nonce in itertools.product((good, revoked, never), (None, bytes(32))):
            reply = await responder.post(request_for(each, responder.ca, nonce=nonce))
            assert reply.status == "successful"
            assert lint_response(reply.body) == []


async def test_refusals_have_no_findings(database_url: str, tmp_path: Path) -> None:
    """Unsigned answers carry their status and nothing else."""
    async with running_responder(database_url, tmp_path) as responder:
        stranger = issue("stranger", responder.ca)
        replies = [await responder.post(b"no DER"), await responder.post(request_for(stranger, stranger))]
    assert [reply.status for reply in replies] == ["malformed_request", "unauthorized"]
    assert [lint_response(reply.body) for reply in replies] == [[], []]


AUTHORITIES = {"public": "ca.pem", "gov": "gov/ca.pem", "root": "root.pem"}


@pytest.mark.parametrize("ca", AUTHORITIES.values(), ids=AUTHORITIES)
def test_the_demo_has_no_findings(demo: Demo, ca: str) -> None:
    """The answers of both CAs and of the root, and the responder's certificate in them, as anybody would get them."""
    folder = (demo.pki / ca).parent
    names = ("good", "revoked", "held", "expired", "unissued", "pdf", "mail") if ca != "root.pem" else ("ca", "gov/ca")
    issuer = read(demo.pki / ca)
    delegated = set()
    for each in names:
        for hashed in (hashes.SHA1(), hashes.SHA256()):
            builder = ocsp.OCSPRequestBuilder().add_certificate(read(folder / f"{each}.pem"), issuer, hashed)
            answer = post(demo.urls["ocsp"], builder.build().public_bytes(Encoding.DER))
            assert lint_response(answer) == [], each
            delegated.update(ocsp.load_der_ocsp_response(answer).certificates)
    [responder] = delegated
    assert lint_responder_certificate(responder.public_bytes(Encoding.DER)) == []


def read(path: Path) -> x509.Certificate:
    """The first certificate of a PEM file."""
    return x509.load_pem_x509_certificates(path.read_bytes())[0]


def post(url: str, request: bytes) -> bytes:
    """The answer to an encoded request."""
    with urllib.request.urlopen(url, request, timeout=10) as reply:  # noqa: S310 - the demo's own
        answer: bytes = reply.read()
    return answer


def test_the_linter_can_find_something(demo: Demo) -> None:
    """The checks above can fail: what we break, pkilint finds, and a TLS certificate is no responder's."""
    ca, good = read(demo.pki / "ca.pem"), read(demo.pki / "good.pem")
    request = ocsp.OCSPRequestBuilder().add_certificate(good, ca, hashes.SHA1()).build().public_bytes(Encoding.DER)
    response = asn1_ocsp.OCSPResponse.load(post(demo.urls["ocsp"], request))
    basic = response["response_bytes"]["response"].parsed
    basic["signature_algorithm"] = {"algorithm": "sha256_ecdsa", "parameters": core.Null()}
    basic["tbs_response_data"]["responses"][0]["next_update"] = datetime(2000, 1, 1, tzinfo=UTC)
    response["response_bytes"]["response"] = basic
    found = " ".join(lint_response(response.dump(force=True)))
    assert "pkix.ocsp_negative_validity_period" in found
    assert "cabf.serverauth.prohibited_signature_algorithm_encoding" in found
    assert lint_responder_certificate(good.public_bytes(Encoding.DER)) != []
