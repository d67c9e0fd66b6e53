"""The rest of the protocol over HTTP: extensions, signed requests, preferences, re-keyed and ended CAs."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest
from asn1crypto import algos, core
from asn1crypto import ocsp as asn1_ocsp
from asn1crypto import x509 as asn1_x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from lakthan import der
from lakthan.certificates import CertificateView
from lakthan.store.records import CRLReason, CRLSource
from support.pki import Issued, issue, new_ca, new_responder
from support.responder import (
    ACTOR,
    TIMES,
    OCSPReply,
    Responder,
    request_for,
    running_responder,
    running_responder_of,
)

NOW = datetime.now(UTC).replace(microsecond=0)
HOUR = timedelta(hours=1)
CRL_ID = "1.3.6.1.5.5.7.48.1.3"


def single(reply: OCSPReply, number: int = 0) -> asn1_ocsp.SingleResponse:
    """One SingleResponse of an answer."""
    return reply.response.response_data["responses"][number]


def extension(container: core.Asn1Value, oid: str, field: str = "single_extensions") -> bytes | None:
    """The content of an extension's extnValue; it must not be critical."""
    for each in container[field]:
        if each["extn_id"].dotted == oid:
            assert each["critical"].native is False
            value: bytes = each["extn_value"].contents
            return value
    return None


@pytest.mark.parametrize(
    ("non_issued", "expected"), [("unknown", "unknown"), ("revoked", "revoked"), ("unauthorized", None)]
)
async def test_non_issued(database_url: str, tmp_path: Path, non_issued: str, expected: str | None) -> None:
    """What was never announced: unknown, revoked in the way of RFC 6960 §2.2, or none of our business. Never good.

    OCSP-20, OCSP-21, OCSP-41.
    """
    async with running_responder(database_url, tmp_path, non_issued=non_issued) as responder:
        good = await responder.issue(issue("good", responder.ca))
        reply = await responder.post(request_for(issue("never", responder.ca), responder.ca))
        if expected is None:
            assert reply.status == "unauthorized"
            assert (await responder.metrics())['lakthan_ocsp_unauthorized_total{cause="not on record"}'] == TIMES
            return
        assert reply.cert_statuses == [expected]
        for answer in (reply, await responder.post(request_for(good, responder.ca))):
            announced = extension(answer.response.response_data, "1.3.6.1.5.5.7.48.1.9", "response_extensions")
            assert announced == (b"\x05\x00" if non_issued == "revoked" else None)
        if expected == "revoked":
            said = single(reply)["cert_status"].chosen
            assert said["revocation_time"].native == datetime(1970, 1, 1, tzinfo=UTC)
            assert said["revocation_reason"].native == "certificate_hold"


@pytest.mark.parametrize(
    ("profile", "nocheck", "has_it"), [("pdf-ltv", True, True), ("acrobat", False, True), ("smime-br", True, False)]
)
async def test_archive_cutoff(database_url: str, tmp_path: Path, profile: str, *, nocheck: bool, has_it: bool) -> None:
    """For document signing every answer says that the records reach back to the CA's notBefore, expired or not.

    OCSP-29, OCSP-89, OCSP-Q51.
    """
    ca = new_ca("CA")
    identity = new_responder(ca, nocheck=nocheck)
    async with running_responder_of(database_url, tmp_path, ca, identity, profile=profile) as responder:
        expired = await responder.issue(issue("expired", ca, valid=(-2 * HOUR, -HOUR)))
        reply = await responder.post(request_for(expired, ca))
        assert reply.cert_statuses == ["good"]
        cutoff = extension(single(reply), "1.3.6.1.5.5.7.48.1.6")
        expected = der.generalized_time(ca.certificate.not_valid_before_utc)
        assert cutoff == (expected if has_it else None)


async def test_tls_says_nothing_after_the_end(database_url: str, tmp_path: Path) -> None:
    """RFC 9919 §3.2.3: old records may be dropped; and a suspension is not answered (BR 4.9.13), but counted.

    OCSP-42.
    """
    async with running_responder(database_url, tmp_path, profile="tls-br") as responder:
        expired = await responder.issue(issue("expired", responder.ca, valid=(-2 * HOUR, -HOUR)))
        held = await responder.issue(issue("held", responder.ca))
        await responder.writer.hold(responder.authority_id, held.serial_number, actor=ACTOR)
        assert (await responder.post(request_for(expired, responder.ca))).status == "unauthorized"
        assert (await responder.post(request_for(held, responder.ca))).status == "internal_error"
        name = 'lakthan_ocsp_validity_policy_violations_total{authority="public-ca",rule="suspension"}'
        assert (await responder.metrics())[name] == TIMES


@pytest.mark.parametrize(("profile", "nocheck"), [("acrobat", True), ("tls-br", False)])
async def test_a_responder_that_breaks_its_profile_stays_silent(
    database_url: str, tmp_path: Path, profile: str, *, nocheck: bool
) -> None:
    """The certificate must have nocheck, or must not, as the profile demands; nobody stands in for it. OCSP-Q49."""
    ca = new_ca("CA")
    with pytest.raises(TimeoutError):
        async with (
            asyncio.timeout(1),
            running_responder_of(database_url, tmp_path, ca, new_responder(ca, nocheck=nocheck), profile=profile),
        ):
            pytest.fail("it became ready")


async def test_what_is_on_record_is_told(database_url: str, tmp_path: Path) -> None:
    """The hash of the certificate, the invalidity date and the CRL that a status comes from are in the answer.

    OCSP-27, OCSP-30.
    """
    async with running_responder(database_url, tmp_path, cert_hash=True) as responder:
        leaf = issue("leaf", responder.ca)
        digest = hashlib.sha256(leaf.der).digest()
        await responder.writer.issue(responder.authority_id, leaf.serial_number, certificate_sha256=digest, actor=ACTOR)
        crl = CRLSource("http://127.0.0.1/ca.crl", b"\x07", NOW - HOUR, NOW + 3 * HOUR)
        await responder.authorities.set_crl(responder.authority_id, crl)
        await responder.writer.revoke(
            responder.authority_id, leaf.serial_number, invalidity_date=NOW - 2 * HOUR, actor=ACTOR
        )
        while extension(single(reply := await responder.post(request_for(leaf, responder.ca))), CRL_ID) is None:
            pass  # the notification that the authority has a CRL is on its way
        said = single(reply)
        expected = der.sequence(der.sequence(der.object_identifier("2.16.840.1.101.3.4.2.1")), der.octet_string(digest))
        assert extension(said, "1.3.36.8.3.13") == expected
        assert extension(said, "2.5.29.24") == der.generalized_time(NOW - 2 * HOUR)
        crl_id = asn1_ocsp.CrlId.load(extension(said, CRL_ID), strict=True)
        assert crl_id["crl_url"].native == "http://127.0.0.1/ca.crl"
        assert crl_id["crl_num"].native == 7
        assert crl_id["crl_time"].native == said["this_update"].native == NOW - HOUR
        assert said["next_update"].native == NOW + 3 * HOUR
        assert reply.response.response_data["produced_at"].native >= NOW


async def test_an_ended_crl_means_try_later(database_url: str, tmp_path: Path) -> None:
    """Nobody knows what happened after a CRL has ended: the client may come again."""
    async with running_responder(database_url, tmp_path) as responder:
        good = await responder.issue(issue("good", responder.ca))
        await responder.authorities.set_crl(responder.authority_id, CRLSource(None, None, NOW - 2 * HOUR, NOW - HOUR))
        while (reply := await responder.post(request_for(good, responder.ca))).status == "successful":
            pass  # the notification is on its way
        assert reply.status == "try_later"


async def test_a_revoked_ca_takes_its_certificates_along(database_url: str, tmp_path: Path) -> None:
    """RFC 6960 §2.7: after a CA's own revocation all it issued is revoked, and what it never announced as well.

    OCSP-22.
    """
    async with running_responder(database_url, tmp_path) as responder:
        good = await responder.issue(issue("good", responder.ca))
        revoked = await responder.issue(issue("revoked", responder.ca))
        await responder.writer.revoke(
            responder.authority_id, revoked.serial_number, reason=CRLReason.SUPERSEDED, actor=ACTOR
        )
        assert (await responder.post(request_for(good, responder.ca))).cert_statuses == ["good"]
        when = NOW - HOUR
        await responder.authorities.revoke_authority("public-ca", reason=CRLReason.CA_COMPROMISE, revocation_time=when)
        async with asyncio.timeout(5):  # the notification is on its way
            while (reply := await responder.post(request_for(good, responder.ca))).cert_statuses == ["good"]:
                pass
        for each, reason in ((good, "ca_compromise"), (issue("never", responder.ca), "ca_compromise")):
            reply = await responder.post(request_for(each, responder.ca))
            said = single(reply)["cert_status"].chosen
            assert (said["revocation_time"].native, said["revocation_reason"].native) == (when, reason)
        said = single(await responder.post(request_for(revoked, responder.ca)))["cert_status"].chosen
        assert said["revocation_reason"].native == "superseded"


async def test_a_revoked_ca_overtakes_answers_under_way(database_url: str, tmp_path: Path) -> None:
    """An answer whose status was being read when its CA was revoked is computed again, and not remembered as good."""
    owner = await asyncpg.connect(database_url)
    async with running_responder(database_url, tmp_path) as responder:
        good = await responder.issue(issue("good", responder.ca))
        request = request_for(good, responder.ca)
        async with owner.transaction():
            await owner.execute("LOCK TABLE certificate_status IN ACCESS EXCLUSIVE MODE")
            under_way = asyncio.create_task(responder.post(request))
            while not await owner.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                pass  # the look-up is about to wait for the lock
            read_before = (await responder.metrics())["lakthan_ocsp_authorities_read_total"]
            reason = CRLReason.CA_COMPROMISE
            await responder.authorities.revoke_authority("public-ca", reason=reason, revocation_time=NOW)
            async with asyncio.timeout(5):  # the notification, and the directory that is read after it
                while (await responder.metrics())["lakthan_ocsp_authorities_read_total"] == read_before:
                    pass
        assert (await under_way).cert_statuses == ["revoked"]
        assert (await responder.post(request)).cert_statuses == ["revoked"]
    await owner.close()


async def test_a_re_keyed_ca(database_url: str, tmp_path: Path) -> None:
    """Certificates of the old key and of the new one are answered, each by the responder that the same key issued.

    OCSP-64.
    """
    old, new = new_ca("CA"), new_ca("CA")
    identities = [new_responder(old), new_responder(new)]
    async with running_responder_of(database_url, tmp_path, old, *identities, previous=[new]) as responder:
        for ca, identity in zip((old, new), identities, strict=True):
            leaf = await responder.issue(issue("leaf", ca))
            reply = await responder.post(request_for(leaf, ca))
            assert reply.cert_statuses == ["good"]
            certs = [each.dump() for each in reply.response.basic_ocsp_response["certs"]]
            assert certs == [identity.der]


async def test_another_encoding_of_the_name(database_url: str, tmp_path: Path) -> None:
    """A CertID is found by every encoding of the CA's name that its certificates carry, not by one alone. OCSP-Q26."""
    async with running_responder(database_url, tmp_path) as responder:
        good = await responder.issue(issue("good", responder.ca))
        printable = asn1_x509.Name.build({"common_name": "Public CA", "country_name": "LA"}, use_printable=True).dump()
        read_before = (await responder.metrics())["lakthan_ocsp_authorities_read_total"]
        await responder.authorities.add_authority("public-ca", [], extra_names=[printable])
        view = CertificateView.of(responder.ca.certificate)
        cert_id = der.sequence(
            der.sequence(der.object_identifier("2.16.840.1.101.3.4.2.1")),
            der.octet_string(hashlib.sha256(printable).digest()),
            der.octet_string(hashlib.sha256(view.public_key).digest()),
            der.encode(der.INTEGER, good.serial_number),
        )
        request = der.sequence(der.sequence(der.sequence(der.sequence(cert_id))))
        async with asyncio.timeout(5):  # the notification is on its way
            while (await responder.metrics())["lakthan_ocsp_authorities_read_total"] == read_before:
                pass
        reply = await responder.post(request)
        assert reply.cert_statuses == ["good"]


def preferring(certificate: Issued, ca: Issued, *algorithms: bytes) -> bytes:
    """A request with PreferredSignatureAlgorithms; each one an encoded PreferredSignatureAlgorithm."""
    request = asn1_ocsp.OCSPRequest.load(request_for(certificate, ca))
    value = der.sequence(*algorithms)
    request["tbs_request"]["request_extensions"] = [
        {"extn_id": "1.3.6.1.5.5.7.48.1.8", "extn_value": core.ParsableOctetString(value)}
    ]
    encoded: bytes = request.dump(force=True)
    return encoded


def algorithm(oid: str, *parameters: bytes) -> bytes:
    """An AlgorithmIdentifier."""
    return der.sequence(der.object_identifier(oid), *parameters)


ECDSA_SHA256, ECDSA_SHA384, RSA_SHA256, ML_DSA_65 = (
    "1.2.840.10045.4.3.2",
    "1.2.840.10045.4.3.3",
    "1.2.840.113549.1.1.11",
    "2.16.840.1.101.3.4.3.18",
)
EC_KEY, P256, P384 = "1.2.840.10045.2.1", "1.2.840.10045.3.1.7", "1.3.132.0.34"
SHA1_RSA = "1.2.840.113549.1.1.5"


async def test_the_clients_preference_decides(database_url: str, tmp_path: Path) -> None:
    """Of several signers the first that the client's list names is taken, else the default (RFC 6960 §4.4.7).

    OCSP-32, OCSP-33.
    """
    ca = new_ca("CA")
    kinds = ("P-256", "P-384", "RSA-2048", "ML-DSA-65")
    identities = [new_responder(ca, kind=kind) for kind in kinds]
    async with running_responder_of(database_url, tmp_path, ca, *identities) as responder:
        good = await responder.issue(issue("good", ca))
        for preferred, expected in (
            ([algorithm(RSA_SHA256, b"\x05\x00")], RSA_SHA256),
            ([algorithm(RSA_SHA256)], RSA_SHA256),
            ([algorithm(ECDSA_SHA384), algorithm(RSA_SHA256)], ECDSA_SHA384),
            ([algorithm(ML_DSA_65), algorithm(RSA_SHA256)], ML_DSA_65),
            ([algorithm(SHA1_RSA)], ECDSA_SHA256),  # never what is broken, whatever the client likes
            ([algorithm("1.2.3.4"), algorithm(RSA_SHA256)], RSA_SHA256),
        ):
            request = preferring(good, ca, *(der.sequence(each) for each in preferred))
            assert await signed_with(responder, request) == expected
        curve = algorithm(EC_KEY, der.object_identifier(P384))
        both = der.sequence(algorithm(ECDSA_SHA256), curve), der.sequence(algorithm(ECDSA_SHA384), curve)
        assert await signed_with(responder, preferring(good, ca, *both)) == ECDSA_SHA384
        matching = der.sequence(algorithm(ECDSA_SHA256), algorithm(EC_KEY, der.object_identifier(P256)))
        assert await signed_with(responder, preferring(good, ca, matching)) == ECDSA_SHA256
        assert await signed_with(responder, request_for(good, ca)) == ECDSA_SHA256


async def signed_with(responder: Responder, request: bytes) -> str:
    """The OID of the algorithm that signed the answer."""
    basic = (await responder.post(request)).response.basic_ocsp_response
    algorithm_identifier = der.Reader(basic["signature_algorithm"].dump()).enter(der.SEQUENCE)
    return der.dotted_oid(algorithm_identifier.content(der.OBJECT_IDENTIFIER))


async def test_ml_dsa_on_its_own(database_url: str, tmp_path: Path) -> None:
    """A post-quantum CA and its responder: the answer verifies with the responder's ML-DSA-65 key."""
    async with running_responder(database_url, tmp_path, kind="ML-DSA-65", ca_kind="ML-DSA-65") as responder:
        good = await responder.issue(issue("good", responder.ca))
        reply = await responder.post(request_for(good, responder.ca))
        basic = reply.response.basic_ocsp_response
        key = responder.identity.key.public_key()
        key.verify(basic["signature"].native, basic["tbs_response_data"].dump())  # type: ignore[call-arg]
        assert reply.cert_statuses == ["good"]


def signed(
    certificate: Issued, ca: Issued, signer: Issued, *more: Issued, name: bool = True, spoil: bool = False
) -> bytes:
    """A signed request, by asn1crypto and pyca."""
    request = asn1_ocsp.OCSPRequest.load(request_for(certificate, ca))
    if name:
        subject = asn1_x509.Name.load(signer.certificate.subject.public_bytes())
        request["tbs_request"]["requestor_name"] = asn1_x509.GeneralName("directory_name", subject)
    key = signer.key
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    signature = bytearray(key.sign(request["tbs_request"].dump(force=True), ec.ECDSA(hashes.SHA256())))
    signature[-1] ^= spoil
    request["optional_signature"] = {
        "signature_algorithm": algos.SignedDigestAlgorithm({"algorithm": "sha256_ecdsa"}),
        "signature": bytes(signature),
        "certs": [asn1_x509.Certificate.load(each.der) for each in (signer, *more)],
    }
    encoded: bytes = request.dump(force=True)
    return encoded


@pytest.mark.parametrize("mode", ["ignore", "verify", "require"])
async def test_signed_requests(database_url: str, tmp_path: Path, mode: str) -> None:
    """Signatures are ignored, verified where there is one, or required; a bad one never gets an answer then.

    OCSP-3, OCSP-6.
    """
    clients = new_ca("Clients' CA")
    middle = new_ca("Clients' sub-CA", clients)
    stranger = new_ca("Strangers' CA")
    anchors = tmp_path / "clients.pem"
    anchors.write_bytes(clients.certificate.public_bytes(Encoding.PEM))
    async with running_responder(database_url, tmp_path, signed_requests=mode, requestors=anchors) as responder:
        ca = responder.ca
        good = await responder.issue(issue("good", ca))
        welcome, below = issue("client", clients), issue("client below", middle)
        expired = issue("expired client", clients, valid=(-2 * HOUR, -HOUR))
        ignored = "successful" if mode == "ignore" else None
        for request, expected in (
            (request_for(good, ca), "successful" if mode != "require" else "sign_required"),
            (signed(good, ca, welcome), "successful"),
            (signed(good, ca, below, middle), "successful"),
            (signed(good, ca, below), ignored or "unauthorized"),
            (signed(good, ca, welcome, spoil=True), ignored or "unauthorized"),
            (signed(good, ca, issue("x", stranger)), ignored or "unauthorized"),
            (signed(good, ca, expired), ignored or "unauthorized"),
            (signed(good, ca, welcome, name=False), ignored or "malformed_request"),
        ):
            assert (await responder.post(request)).status == expected


async def test_dual_hashes(database_url: str, tmp_path: Path) -> None:
    """Where opted in, one answer serves clients of both hashes (RFC 9919 §3.2.1); not where a nonce makes it live.

    OCSP-37.
    """
    async with running_responder(database_url, tmp_path, dual_hash=True) as responder:
        ca = responder.ca
        good = await responder.issue(issue("good", ca))
        for asked, other in ((hashes.SHA1(), hashes.SHA256()), (hashes.SHA256(), hashes.SHA1())):
            reply = await responder.post(request_for(good, ca, algorithm=asked))
            assert reply.cert_statuses == ["good", "good"]
            for number, used in enumerate((asked, other)):
                expected = asn1_ocsp.OCSPRequest.load(request_for(good, ca, algorithm=used))
                cert_id = expected["tbs_request"]["request_list"][0]["req_cert"]
                mine = single(reply, number)["cert_id"]
                for field in ("issuer_name_hash", "issuer_key_hash", "serial_number"):
                    assert mine[field].native == cert_id[field].native
        assert len((await responder.post(request_for(good, ca, nonce=bytes(32)))).cert_statuses) == 1
        assert len((await responder.post(request_for(good, ca, algorithm=hashes.SHA384()))).cert_statuses) == 1


async def test_final_answers(database_url: str, tmp_path: Path) -> None:
    """The answers of a CA that has ended hold for ever and are the same for everybody (EN 319 411-2 CSS-6.3.10-11).

    OCSP-90.
    """
    async with running_responder(database_url, tmp_path, final=True) as responder:
        good = await responder.issue(issue("good", responder.ca))
        for nonce in (None, bytes(32)):
            reply = await responder.post(request_for(good, responder.ca, nonce=nonce))
            assert single(reply)["next_update"].native == datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
            assert reply.response.response_data["response_extensions"].native is None


async def test_by_name(database_url: str, tmp_path: Path) -> None:
    """For old devices the responder names itself instead of its key. OCSP-Q41."""
    async with running_responder(database_url, tmp_path, profile="legacy-device") as responder:
        good = await responder.issue(issue("good", responder.ca))
        responder_id = (await responder.post(request_for(good, responder.ca))).response.response_data["responder_id"]
        assert responder_id.name == "by_name"
        assert responder_id.chosen.untag().dump() == responder.identity.certificate.subject.public_bytes()


@pytest.mark.parametrize(
    ("oid", "critical", "expected"),
    [
        ("1.3.6.1.5.5.7.48.1.7", False, "successful"),
        ("1.3.6.1.5.5.7.48.1.7", True, "successful"),
        ("1.2.3.4.5", False, "successful"),
        ("1.2.3.4.5", True, "malformed_request"),
    ],
)
async def test_other_extensions(database_url: str, tmp_path: Path, oid: str, *, critical: bool, expected: str) -> None:
    """A service locator has no effect, an unknown extension neither, unless it is critical (RFC 6960 §4.4)."""
    async with running_responder(database_url, tmp_path) as responder:
        good = await responder.issue(issue("good", responder.ca))
        request = asn1_ocsp.OCSPRequest.load(request_for(good, responder.ca))
        request["tbs_request"]["request_extensions"] = [
            {"extn_id": oid, "critical": critical, "extn_value": core.ParsableOctetString(b"\x05\x00")}
        ]
        assert (await responder.post(request.dump(force=True))).status == expected


@pytest.mark.parametrize(
    ("acceptable", "expected"), [(["1.3.6.1.5.5.7.48.1.1"], "successful"), (["1.2.3"], "malformed_request")]
)
async def test_acceptable_responses(database_url: str, tmp_path: Path, acceptable: list[str], expected: str) -> None:
    """A client that does not take the basic response cannot be answered (RFC 6960 §4.4.3)."""
    async with running_responder(database_url, tmp_path) as responder:
        good = await responder.issue(issue("good", responder.ca))
        request = asn1_ocsp.OCSPRequest.load(request_for(good, responder.ca))
        value = der.sequence(*map(der.object_identifier, acceptable))
        request["tbs_request"]["request_extensions"] = [
            {"extn_id": "1.3.6.1.5.5.7.48.1.4", "extn_value": core.ParsableOctetString(value)}
        ]
        assert (await responder.post(request.dump(force=True))).status == expected
