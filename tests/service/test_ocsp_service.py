"""The OCSP service over HTTP, with a real database: what is answered, and how it is wrapped."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
from asn1crypto import algos
from asn1crypto import ocsp as asn1_ocsp
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import ocsp

from lakthan import der
from lakthan.store.records import CRLReason
from support.pki import Issued, issue, new_ca
from support.responder import ACTOR, TIMES, OCSPReply, Responder, request_for, running_responder

NEVER_CACHED = "max-age=0, no-cache, no-store"


@pytest.fixture
async def responder(database_url: str, tmp_path: Path) -> AsyncIterator[Responder]:
    """A running responder with one authority."""
    async with running_responder(database_url, tmp_path) as running:
        yield running


@pytest.fixture
async def good(responder: Responder) -> Issued:
    """An announced certificate."""
    return await responder.issue(issue("good", responder.ca))


def verified(reply: OCSPReply, identity: Issued) -> ocsp.OCSPResponse:
    """The response as pyca reads it, with its signature verified by the responder's key."""
    response = ocsp.load_der_ocsp_response(reply.body)
    key = identity.key.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    algorithm = response.signature_hash_algorithm
    assert algorithm is not None
    key.verify(response.signature, response.tbs_response_bytes, ec.ECDSA(algorithm))
    return response


@pytest.mark.parametrize("algorithm", [hashes.SHA1(), hashes.SHA256(), hashes.SHA384(), hashes.SHA512()])
async def test_good(responder: Responder, good: Issued, algorithm: hashes.HashAlgorithm) -> None:
    """An announced certificate is good, whichever hash names its issuer, and everything a client checks is there."""
    request = request_for(good, responder.ca, algorithm=algorithm)
    reply = await responder.post(request)
    response = verified(reply, responder.identity)

    assert response.certificate_status is ocsp.OCSPCertStatus.GOOD
    assert response.serial_number == good.certificate.serial_number
    assert response.certificates == [responder.identity.certificate]
    assert (
        response.responder_key_hash
        == x509.SubjectKeyIdentifier.from_public_key(responder.identity.key.public_key()).digest
    )
    assert response.produced_at_utc == response.this_update_utc
    assert response.next_update_utc is not None
    assert response.next_update_utc - response.this_update_utc == timedelta(days=4)
    assert timedelta(0) <= datetime.now(UTC) - response.this_update_utc < timedelta(minutes=1)


async def test_revoked_with_its_reason_and_time(responder: Responder, good: Issued) -> None:
    """A revoked certificate is answered with the time and the reason on record."""
    when = datetime(2026, 3, 1, 12, 30, 15, tzinfo=UTC)
    await responder.writer.revoke(
        responder.authority_id, good.serial_number, reason=CRLReason.KEY_COMPROMISE, revocation_time=when, actor=ACTOR
    )
    response = verified(await responder.post(request_for(good, responder.ca)), responder.identity)

    assert response.certificate_status is ocsp.OCSPCertStatus.REVOKED
    assert response.revocation_time_utc == when
    assert response.revocation_reason is x509.ReasonFlags.key_compromise


async def test_an_unspecified_reason_is_left_out(responder: Responder, good: Issued) -> None:
    """No reason given means no reason in the answer (RFC 5280 §5.3.1)."""
    await responder.writer.revoke(responder.authority_id, good.serial_number, actor=ACTOR)
    response = verified(await responder.post(request_for(good, responder.ca)), responder.identity)

    assert response.certificate_status is ocsp.OCSPCertStatus.REVOKED
    assert response.revocation_reason is None


async def test_held_and_released(responder: Responder, good: Issued) -> None:
    """A suspension shows as certificateHold, and the certificate is good again when it is lifted."""
    request = request_for(good, responder.ca)
    await responder.writer.hold(responder.authority_id, good.serial_number, actor=ACTOR)
    held = verified(await responder.post(request), responder.identity)
    await responder.writer.unhold(responder.authority_id, good.serial_number, actor=ACTOR)
    async with asyncio.timeout(5):  # the notification is on its way
        while (await responder.post(request)).cert_statuses == ["revoked"]:
            pass
    released = verified(await responder.post(request), responder.identity)

    assert held.revocation_reason is x509.ReasonFlags.certificate_hold
    assert released.certificate_status is ocsp.OCSPCertStatus.GOOD


async def test_unknown_is_never_kept(responder: Responder) -> None:
    """A certificate that nobody announced is unknown, no cache may keep that, and an announcement shows at once.

    OCSP-59.
    """
    unissued = issue("unissued", responder.ca)
    request = request_for(unissued, responder.ca)
    reply = await responder.get(request)

    assert verified(reply, responder.identity).certificate_status is ocsp.OCSPCertStatus.UNKNOWN
    assert reply.headers["Cache-Control"] == NEVER_CACHED
    await responder.issue(unissued)
    assert (await responder.get(request)).cert_statuses == ["good"]


async def test_a_foreign_issuer_is_refused_unsigned(responder: Responder, good: Issued) -> None:
    """Another CA's certificate gets `unauthorized` and no signature, also when a known one is asked with it."""
    stranger = new_ca("Somebody else")
    alone = await responder.post(request_for(issue("x", stranger), stranger))
    mixed = await responder.post(multiple([(good, responder.ca), (issue("x", stranger), stranger)]))

    for reply in (alone, mixed):
        assert reply.http_status == 200
        assert reply.body == bytes.fromhex("30030a0106")
        assert reply.headers["Cache-Control"] == NEVER_CACHED
    assert (await responder.metrics())['lakthan_ocsp_unauthorized_total{cause="foreign issuer"}'] == 2 * TIMES


def multiple(pairs: list[tuple[Issued, Issued]]) -> bytes:
    """A request for several certificates, built by asn1crypto."""
    requests = []
    for certificate, issuer in pairs:
        single = asn1_ocsp.OCSPRequest.load(request_for(certificate, issuer))
        requests.append(single["tbs_request"]["request_list"][0])
    encoded: bytes = asn1_ocsp.OCSPRequest({"tbs_request": {"request_list": asn1_ocsp.Requests(requests)}}).dump()
    return encoded


async def test_several_certificates(responder: Responder, good: Issued) -> None:
    """Each CertID gets its own SingleResponse, in the order asked (RFC 6960 §4.2.2.3)."""
    revoked = await responder.issue(issue("revoked", responder.ca))
    await responder.writer.revoke(responder.authority_id, revoked.serial_number, actor=ACTOR)
    unissued = issue("unissued", responder.ca)
    reply = await responder.post(multiple([(each, responder.ca) for each in (revoked, good, unissued, good)]))

    assert reply.cert_statuses == ["revoked", "good", "unknown", "good"]


async def test_the_cert_id_comes_back_as_it_was(responder: Responder, good: Issued) -> None:
    """With or without NULL parameters, and with a needless leading octet: the CertID is echoed, octet for octet."""
    plain = asn1_ocsp.OCSPRequest.load(request_for(good, responder.ca))["tbs_request"]["request_list"][0]["req_cert"]
    hashed = [plain[field].native for field in ("issuer_name_hash", "issuer_key_hash")]
    for parameters in (b"", b"\x05\x00"):
        for padding in (b"", b"\x00"):
            cert_id = der.sequence(
                der.sequence(der.object_identifier("2.16.840.1.101.3.4.2.1"), parameters),
                *map(der.octet_string, hashed),
                der.encode(der.INTEGER, padding, good.serial_number),
            )
            request = der.sequence(der.sequence(der.sequence(der.sequence(cert_id))))
            reply = await responder.post(request)
            assert reply.cert_statuses == ["good"]
            assert cert_id in reply.body


@pytest.mark.parametrize("length", [1, 16, 32, 128])
async def test_a_nonce_is_echoed(responder: Responder, good: Issued, length: int) -> None:
    """A nonce of 1 to 128 octets comes back in an answer of its own that no cache may keep (RFC 9654 §2.1)."""
    nonce = bytes(range(length))
    request = request_for(good, responder.ca, nonce=nonce)
    for _ in range(2):
        reply = await responder.get(request)
        response = verified(reply, responder.identity)
        assert response.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce == nonce
        assert reply.headers["Cache-Control"] == NEVER_CACHED
        assert "ETag" not in reply.headers


@pytest.mark.parametrize("length", [0, 129])
async def test_a_nonce_of_forbidden_length_is_malformed(responder: Responder, good: Issued, length: int) -> None:
    """RFC 9654 §2.1 demands malformedRequest for 0 octets and for more than 128."""
    request = asn1_ocsp.OCSPRequest.load(request_for(good, responder.ca))
    request["tbs_request"]["request_extensions"] = [{"extn_id": "nonce", "extn_value": bytes(length)}]
    assert (await responder.post(request.dump(force=True))).status == "malformed_request"


@pytest.mark.parametrize("body", [b"", b"\x30", b"not OCSP at all", b"\x30\x03\x0a\x01\x00", b"0" * 60_000])
async def test_anything_else_is_malformed(responder: Responder, body: bytes) -> None:
    """Whatever is no OCSPRequest gets malformedRequest with HTTP status 200, never to be cached."""
    reply = await responder.post(body)
    assert (reply.http_status, reply.body) == (200, bytes.fromhex("30030a0101"))
    assert reply.headers["Cache-Control"] == NEVER_CACHED
    assert reply.headers["Content-Type"] == "application/ocsp-response"


async def test_caching_headers(responder: Responder, good: Issued) -> None:
    """GET answers carry what RFC 9919 §6 lists, consistent with the answer inside, and 304 works."""
    request = request_for(good, responder.ca)
    reply = await responder.get(request)
    response = verified(reply, responder.identity)
    etag = f'"{hashlib.sha256(reply.body).hexdigest()}"'

    assert reply.headers["ETag"] == etag
    assert reply.headers["Content-Type"] == "application/ocsp-response"
    assert reply.headers["Content-Length"] == str(len(reply.body))
    assert parsedate_to_datetime(reply.headers["Last-Modified"]) == response.this_update_utc
    assert parsedate_to_datetime(reply.headers["Expires"]) == response.next_update_utc
    assert reply.headers["Cache-Control"] == "max-age=300, public, no-transform, must-revalidate"
    assert "Date" in reply.headers
    again = await responder.get(request, **{"If-None-Match": etag})
    assert (again.http_status, again.body, again.headers["ETag"]) == (304, b"", etag)
    assert (await responder.get(request, **{"If-None-Match": '"other"'})).http_status == 200


async def test_an_answer_is_given_again_until_the_status_changes(responder: Responder, good: Issued) -> None:
    """The same octets are served from the cache, by GET and POST, and are gone with the first change."""
    request = request_for(good, responder.ca)
    first = await responder.post(request)
    second = await responder.get(request)
    assert first.body == second.body
    assert (await responder.metrics())['lakthan_ocsp_answers_total{source="cache"}'] == 2 * TIMES - 1

    await responder.writer.revoke(responder.authority_id, good.serial_number, actor=ACTOR)
    async with asyncio.timeout(5):  # the notification is on its way
        while (await responder.get(request)).cert_statuses == ["good"]:
            pass
    assert (await responder.get(request)).cert_statuses == ["revoked"]


async def test_not_one_good_after_the_first_revoked(responder: Responder, good: Issued) -> None:
    """Clients that ask all the time while a certificate is revoked see good, then revoked, and never good again."""
    request = request_for(good, responder.ca)
    seen: list[str] = []

    async def ask() -> None:
        after = 0
        while after < 20:
            (status,) = (await responder.post(request)).cert_statuses
            seen.append(status)
            after += status == "revoked"

    clients = [asyncio.create_task(ask()) for _ in range(8)]
    await asyncio.sleep(0.2)
    await responder.writer.revoke(responder.authority_id, good.serial_number, actor=ACTOR)
    await asyncio.gather(*clients)

    assert seen[0] == "good"
    assert seen[-1] == "revoked"
    assert "good" not in seen[seen.index("revoked") :]


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/", 200),
        ("HEAD", "/", 200),
        ("GET", "/favicon.ico", 404),
        ("OPTIONS", "/", 405),
        ("PUT", "/", 405),
        ("GET", "/" + "A" * 7900, 200),
        ("GET", "/" + "A" * 8100, 414),
    ],
)
async def test_probes_and_browsers(responder: Responder, method: str, path: str, expected: int) -> None:
    """What is not OCSP gets a short and quiet HTTP answer; a path that might be OCSP gets the protocol's own."""
    async with responder.session.request(method, responder.url + path) as reply:
        assert reply.status == expected


async def test_too_much(responder: Responder) -> None:
    """A body beyond the limit is refused as soon as it is announced."""
    async with responder.session.post(responder.url, data=bytes(64 * 1024 + 1)) as reply:
        assert reply.status == 413


@pytest.mark.parametrize("kind", ["P-384", "RSA-2048", "RSA-3072", "Ed25519"])
async def test_every_kind_of_key(database_url: str, tmp_path: Path, kind: str) -> None:
    """A responder of any supported key signs answers that its own public key verifies."""
    async with running_responder(database_url, tmp_path, kind=kind, ca_kind="RSA-2048") as responder:
        good = await responder.issue(issue("good", responder.ca))
        reply = await responder.post(request_for(good, responder.ca))
        assert reply.cert_statuses == ["good"]
        basic = reply.response.basic_ocsp_response
        algorithm = algos.SignedDigestAlgorithm.load(basic["signature_algorithm"].dump()).signature_algo
        assert algorithm == {"P": "ecdsa", "R": "rsassa_pkcs1v15", "E": "ed25519"}[kind[0]]
