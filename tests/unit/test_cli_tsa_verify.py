"""`lakthan tsa verify`: what makes a token fail, one thing at a time.

The tokens are made here, by asn1crypto and pyca, with a good signature unless the test breaks just that: so a check
that were missing would let the token pass.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha1, sha256
from typing import Any

import pytest
from asn1crypto import algos, cms, core, tsp
from asn1crypto import x509 as asn1_x509
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from lakthan import der
from lakthan_cli.ocsp.certificate import Certificate, Unreadable
from lakthan_cli.ocsp.checks import Outcome
from lakthan_cli.tsa.checks import Question, Verification, verify
from lakthan_cli.tsa.message import TimeStampResp, TimeStampToken, read, read_request, read_token
from support.pki import issue, new_ca
from support.tsa import (
    UNIT_EXTENSIONS,
    Unit,
    digest_algorithm,
    key_usage,
    new_unit,
    oracle_signed_attributes,
    request_for,
)

POLICY = "0.4.0.2023.1.1"
DATA = sha256(b"contract").digest()
NOW = datetime.now(UTC).replace(microsecond=250_000)


@pytest.fixture(scope="module")
def unit() -> Unit:
    """A unit as it should be."""
    return new_unit()


def info_for(**changes: Any) -> tsp.TSTInfo:  # noqa: ANN401 - whatever asn1crypto takes
    """A TSTInfo about DATA, with changes; None leaves a field out."""
    fields: dict[str, Any] = {
        "version": "v1",
        "policy": POLICY,
        "message_imprint": {"hash_algorithm": digest_algorithm("sha256"), "hashed_message": DATA},
        "serial_number": 2**120 + 1,
        "gen_time": NOW,
        "accuracy": {"seconds": 1},
        **changes,
    }
    return tsp.TSTInfo({name: value for name, value in fields.items() if value is not None})


@dataclass(frozen=True)
class Forge:
    """Makes tokens. `attributes`: what stands in place of one of the usual kind, None for nothing. `signed_info`: what
    the signature is over when that is not what the token carries.
    """

    unit: Unit
    info: tsp.TSTInfo
    signed_info: tsp.TSTInfo | None = None
    attributes: Mapping[str, Any] | None = None
    version: str = "v3"
    content_type: str = "tst_info"
    signers: int = 1
    signer_version: str = "v1"
    certificates: bool = True
    turned: bool = False
    reverse: bool = False

    def token(self) -> bytes:
        """The token, DER."""
        identity = self.unit.identity()
        algorithm = identity.signer.algorithm
        tst_info = self.info.dump()
        usual = oracle_signed_attributes(identity, (self.signed_info or self.info).dump())
        chosen = {each["type"].native: each["values"] for each in usual} | dict(self.attributes or {})
        attributes = cms.CMSAttributes(
            [{"type": name, "values": values} for name, values in chosen.items() if values is not None]
        )
        encoded = sorted(each.dump() for each in attributes)
        octets = der.encode(der.SET, *(reversed(encoded) if self.reverse else encoded))
        signature = asyncio.run(identity.signer.sign(octets))
        if self.turned:
            signature = signature[:-1] + bytes([signature[-1] ^ 1])
        certificate = asn1_x509.Certificate.load(identity.view.encoded)
        digest = digest_algorithm(algorithm.hash.new().name)
        sid = {"issuer": certificate.issuer, "serial_number": certificate.serial_number}
        signer = {
            "version": self.signer_version,
            "sid": cms.SignerIdentifier("issuer_and_serial_number", sid),
            "digest_algorithm": digest,
            "signed_attrs": cms.CMSAttributes.load(octets),
            "signature_algorithm": algos.SignedDigestAlgorithm.load(algorithm.cms_algorithm_identifier),
            "signature": signature,
        }
        chain = [identity.view, *identity.intermediates]
        fields: dict[str, Any] = {
            "version": self.version,
            "digest_algorithms": [digest],
            "encap_content_info": {
                "content_type": self.content_type,
                "content": core.ParsableOctetString(tst_info),
            },
            "signer_infos": [signer] * self.signers,
        }
        if self.certificates:
            fields["certificates"] = [asn1_x509.Certificate.load(view.encoded) for view in chain]
        token: bytes = cms.ContentInfo({"content_type": "signed_data", "content": cms.SignedData(fields)}).dump()
        return token

    def verified(self, **question: Any) -> Verification:  # noqa: ANN401
        """What comes of it, with the unit's root as anchor unless the question says otherwise."""
        asked: dict[str, Any] = {"at": NOW, "digest": DATA, "anchors": [certificate(self.unit.root.der)], **question}
        return verify(read_token(self.token()), Question(**asked))


def certificate(encoded: bytes) -> Certificate:
    """A certificate as the client holds it."""
    return Certificate.from_der(encoded)


def failed(verification: Verification) -> set[str]:
    """The checks that failed."""
    assert verification.verified is (not any(each.outcome is Outcome.FAILED for each in verification.checks))
    return {each.name for each in verification.checks if each.outcome is Outcome.FAILED}


def noted(verification: Verification) -> set[str]:
    """The checks that are notes."""
    return {each.name for each in verification.checks if each.outcome is Outcome.NOTE}


def test_a_good_token(unit: Unit) -> None:
    """Every check passes, and none has a remark."""
    verification = Forge(unit, info_for()).verified()
    assert verification.verified
    assert not noted(verification)
    assert [each.name for each in verification.path] == [
        certificate(each.der).name for each in (unit.leaf, unit.intermediate, unit.root)
    ]


@pytest.mark.parametrize("kind", ["P-384", "RSA-2048", "RSA-4096", "Ed25519", "ML-DSA-65"])
def test_every_kind_of_key(kind: str) -> None:
    """RSA is named by its key alone in CMS and the hash stands beside; Ed25519 and ML-DSA hash by themselves."""
    assert Forge(new_unit(kind), info_for()).verified().verified


# qcStatements with esi4-qtstStatement-1 (ETSI EN 319 422 §9.1).
QUALIFIED = der.sequence(der.sequence(der.object_identifier("0.4.0.19422.1.1")))
SIGNING_CERTIFICATE = "signing_certificate"
SIGNING_CERTIFICATE_V2 = "signing_certificate_v2"


@pytest.mark.parametrize(
    ("changes", "checks"),
    [
        ({"turned": True}, {"signature"}),
        ({"signed_info": info_for(serial_number=5)}, {"message_digest"}),
        ({"signers": 2}, {"signer"}),
        ({"signers": 0}, {"signer"}),
        ({"signer_version": "v3"}, {"signer"}),
        ({"certificates": False}, {"signer"}),
        ({"version": "v2"}, {"content"}),
        ({"content_type": "data"}, {"content"}),
        ({"reverse": True}, {"signed_attributes"}),
        ({"attributes": {"content_type": ["data"]}}, {"signed_attributes"}),
        ({"attributes": {"content_type": None}}, {"signed_attributes"}),
        ({"attributes": {"message_digest": None}}, {"signed_attributes"}),
        ({"attributes": {"message_digest": [bytes(32)]}}, {"message_digest"}),
        ({"attributes": {SIGNING_CERTIFICATE_V2: None}}, {"signing_certificate"}),
        ({"attributes": {SIGNING_CERTIFICATE_V2: [{"certs": [{"cert_hash": bytes(32)}]}]}}, {"signing_certificate"}),
        ({"attributes": {SIGNING_CERTIFICATE_V2: [{"certs": []}]}}, {"signing_certificate"}),
        ({"attributes": {SIGNING_CERTIFICATE: [{"certs": [{"cert_hash": bytes(20)}]}]}}, {"signing_certificate"}),
        ({"info": info_for(version="v2")}, {"content"}),
        ({"info": info_for(accuracy={"seconds": 1, "millis": 0})}, {"accuracy"}),
        ({"info": info_for(accuracy={"micros": 1000})}, {"accuracy"}),
        ({"info": info_for(gen_time=NOW + timedelta(minutes=6))}, {"gen_time"}),
        ({"info": info_for(tsa=asn1_x509.GeneralName("dns_name", "tsa.example"))}, {"tsa"}),
        ({"info": info_for(extensions=[{"extn_id": "1.2.3", "critical": True, "extn_value": b""}])}, {"extensions"}),
        ({"info": info_for(extensions=[{"extn_id": "1.2.3", "extn_value": b""}] * 2)}, {"extensions"}),
        (
            {
                "info": info_for(
                    message_imprint={"hash_algorithm": digest_algorithm("sha1"), "hashed_message": bytes(20)},
                )
            },
            {"imprint"},
        ),
        (
            {
                "info": info_for(
                    message_imprint={"hash_algorithm": digest_algorithm("sha512"), "hashed_message": DATA},
                )
            },
            {"imprint"},
        ),
    ],
    ids=str,
)
def test_one_thing_wrong(unit: Unit, changes: dict[str, Any], checks: set[str]) -> None:
    """A token with one thing wrong fails just the check that is about it, and its signature is good otherwise."""
    assert failed(Forge(**{"unit": unit, "info": info_for(), **changes}).verified()) == checks


@pytest.mark.parametrize("digits", [b"0", b"00"])
def test_gen_time_has_no_zeros_at_its_end(unit: Unit, digits: bytes) -> None:
    """RFC 3161 §2.4.2: an instant has one encoding, or two tokens of it would differ."""
    info = info_for()
    text = info["gen_time"].contents[:-1] + digits + b"Z"
    odd = der.encode(der.SEQUENCE, *(each.dump() for each in _fields(info, text)))
    assert failed(Forge(unit, tsp.TSTInfo.load(odd)).verified()) == {"gen_time"}


def _fields(info: tsp.TSTInfo, gen_time: bytes) -> Sequence[core.Asn1Value]:
    names = ("version", "policy", "message_imprint", "serial_number", "gen_time", "accuracy")
    return [
        core.load(der.encode(der.GENERALIZED_TIME, gen_time)) if name == "gen_time" else info[name] for name in names
    ]


def test_what_is_odd_but_allowed_is_a_note(unit: Unit) -> None:
    """No accuracy, the older attribute alone: told, and no failure."""
    older = {"certs": [{"cert_hash": x509_sha1(unit)}]}
    attributes = {SIGNING_CERTIFICATE_V2: None, SIGNING_CERTIFICATE: [older]}
    verification = Forge(unit, info_for(accuracy=None), attributes=attributes).verified()
    assert verification.verified
    assert noted(verification) == {"accuracy", "signing_certificate"}


def x509_sha1(unit: Unit) -> bytes:
    """What ESSCertID of RFC 2634 names a certificate by."""
    return sha1(unit.leaf.der, usedforsecurity=False).digest()


def test_what_more_a_token_may_say(unit: Unit) -> None:
    """The unit's own name in `tsa`, a qualified statement, ordering, a certificate given apart: all is well."""
    subject = asn1_x509.Certificate.load(unit.leaf.der).subject
    info = info_for(
        tsa=asn1_x509.GeneralName("directory_name", subject),
        ordering=True,
        extensions=[{"extn_id": "1.3.6.1.5.5.7.1.3", "extn_value": QUALIFIED}],
    )
    others = [certificate(unit.leaf.der), certificate(unit.intermediate.der)]
    assert Forge(unit, info, certificates=False).verified(others=others).verified


@pytest.mark.parametrize(
    ("extensions", "ca", "checks"),
    [
        (((x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING]), False),), False, {"extended_key_usage"}),
        (
            ((x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING, ExtendedKeyUsageOID.SERVER_AUTH]), True),),
            False,
            {"extended_key_usage"},
        ),
        ((), False, {"extended_key_usage"}),
        (UNIT_EXTENSIONS, True, {"key_usage"}),
        ((UNIT_EXTENSIONS[0], (key_usage(key_agreement=True), True)), False, {"key_usage"}),
        (
            (*UNIT_EXTENSIONS, (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b""), True)),
            False,
            {"key_usage"},
        ),
    ],
    ids=["not critical", "another purpose too", "no purpose", "a CA", "may not sign", "critical and unknown"],
)
def test_a_certificate_that_is_no_units(extensions: Any, ca: bool, checks: set[str]) -> None:  # noqa: ANN401, FBT001
    """Whoever else has a certificate from a trusted CA cannot stamp with it (RFC 3161 §2.3)."""
    root = new_ca("Root")
    intermediate = new_ca("CA", root)
    stranger = Unit(issue("Stranger", intermediate, ca=ca, extensions=extensions), intermediate, root)
    assert failed(Forge(stranger, info_for()).verified()) == checks


def test_the_time_of_the_token_and_the_time_of_the_question() -> None:
    """The unit must have been in force at genTime, and still be at the time of the question, which `--at` moves."""
    old = new_unit(valid=(timedelta(days=-20), timedelta(days=-10)))
    # The CAs of the tests are younger than that; here the unit itself is trusted.
    anchors = [certificate(old.leaf.der)]
    then = NOW - timedelta(days=15)
    stamped_then, stamped_now = Forge(old, info_for(gen_time=then)), Forge(old, info_for())
    assert failed(stamped_then.verified(anchors=anchors)) == {"still_in_force"}
    assert stamped_then.verified(anchors=anchors, at=then + timedelta(days=1)).verified
    assert failed(stamped_now.verified(anchors=anchors)) == {"validity", "trust"}
    assert failed(stamped_then.verified(anchors=anchors, at=then - timedelta(days=1))) == {"gen_time"}


def test_the_private_keys_own_period() -> None:
    """A key may stop before its certificate does; a token from after that is none (ETSI EN 319 422 §6.4)."""
    period = x509.PrivateKeyUsagePeriod(
        (NOW - timedelta(days=2)).replace(tzinfo=None), (NOW - timedelta(days=1)).replace(tzinfo=None)
    )
    unit = new_unit(extensions=(*UNIT_EXTENSIONS, (period, False)))
    assert failed(Forge(unit, info_for()).verified()) == {"key_period"}


def test_whom_to_trust(unit: Unit) -> None:
    """Another root is no anchor, though it has the same name; nobody to trust is a note, and so proves nothing."""
    other = new_unit()
    assert failed(Forge(unit, info_for()).verified(anchors=[certificate(other.root.der)])) == {"trust"}
    assert noted(Forge(unit, info_for()).verified(anchors=None)) == {"trust"}


def test_request_and_token_belong_together(unit: Unit) -> None:
    """Nonce, policy and imprint are those that were asked for; a token without nonce is no answer to one with."""
    token = Forge(unit, info_for(nonce=7))
    for asked, checks in (
        (request_for(DATA, nonce=7, req_policy=POLICY), set()),
        (request_for(DATA), {"nonce"}),
        (request_for(DATA, nonce=8), {"nonce"}),
        (request_for(DATA, nonce=7, req_policy="1.2.3"), {"policy"}),
        (request_for(bytes(32), nonce=7), {"imprint"}),
    ):
        assert failed(token.verified(request=read_request(asked), digest=None)) == checks


def test_other_data(unit: Unit) -> None:
    """The same token for another document."""
    assert failed(Forge(unit, info_for()).verified(digest=bytes(32))) == {"imprint"}


def test_a_single_turned_bit_is_never_overlooked(unit: Unit) -> None:
    """Whichever bit of a token is turned, it cannot be read any more, or it does not verify. Two places say nothing:
    the letters of the issuer's name beside the serial number, compared without regard to case (RFC 5280 §7.1), and the
    count of unused bits before a certificate's signature.
    """
    token = Forge(unit, info_for(nonce=99)).token()
    question = Question(NOW, DATA, anchors=[certificate(unit.root.der)])
    assert verify(read_token(token), question).verified
    parsed = asn1_x509.Certificate.load(unit.leaf.der)
    sid = token.index(parsed.issuer.dump() + parsed["tbs_certificate"]["serial_number"].dump())
    idle = set(range(sid, sid + len(parsed.issuer.dump())))
    for each in (unit.leaf, unit.intermediate):
        idle.add(token.index(each.der) + len(each.der) - len(each.certificate.signature) - 1)
    places = [at for at in range(len(token)) if at not in idle]
    dice = random.Random(3161)
    for at in dice.sample(places, 400):
        turned = bytearray(token)
        turned[at] ^= 1 << dice.randrange(8)
        try:
            verification = verify(read_token(bytes(turned)), question)
        except Unreadable:
            continue
        assert not verification.verified, f"octet {at}"


def test_what_is_read(unit: Unit) -> None:
    """Responses, refusals, tokens and requests are told apart, in DER, PEM and base64; anything else is unreadable."""
    token = Forge(unit, info_for()).token()
    assert isinstance(read(token), TimeStampToken)
    response = read(der.sequence(der.sequence(der.integer(0)), token))
    assert isinstance(response, TimeStampResp)
    assert response.granted
    refusal = read(_refusal())
    assert isinstance(refusal, TimeStampResp)
    assert (refusal.status, refusal.fail_info, refusal.status_string) == ("rejection", ("timeNotAvailable",), ("ລໍຖ້າ",))
    assert refusal.words == "rejection, timeNotAvailable: ລໍຖ້າ"
    for nonsense in (b"", b"hello", b"\x30\x00", bytes(20), token[:-1], token + b"\x00", b"<html>"):
        with pytest.raises(Unreadable):
            read(nonsense)


def _refusal() -> bytes:
    text = der.sequence(der.encode(der.UTF8_STRING, "ລໍຖ້າ".encode()))
    return der.sequence(der.sequence(der.integer(2), text, der.named_bit(14)))
