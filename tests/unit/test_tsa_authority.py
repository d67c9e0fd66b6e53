"""The parts of a token that have rules of their own: genTime, accuracy, what is inside and what is left out."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta, timezone

import pytest
from asn1crypto import core, tsp

from lakthan import der
from lakthan.errors import ConfigError
from lakthan_tsa.authority import TokenTemplate, draft, encode_accuracy, encode_gen_time
from lakthan_tsa.syntax import granted, parse_request
from support.tsa import POLICY, Unit, new_unit, request_for, token_of

NOON = datetime(2026, 4, 14, 12, 0, 0, tzinfo=UTC)
SERIAL_NUMBER = b"\x40" + bytes(15)


@pytest.fixture(scope="module")
def unit() -> Unit:
    """One unit for all tests here."""
    return new_unit()


async def stamped(unit: Unit, body: bytes, *, gen_time: datetime = NOON) -> bytes:
    """The whole response to a request."""
    identity = unit.identity()
    template = TokenTemplate(identity, policy=POLICY, accuracy=timedelta(seconds=1))
    request = parse_request(body, offered_policies=frozenset({template.policy}))
    made = draft(request, template, serial_number=SERIAL_NUMBER, gen_time=gen_time)
    return granted(made.seal(await identity.signer.sign(made.tbs)))


@pytest.mark.parametrize(
    ("microsecond", "written"),
    [
        (0, "20260414120000Z"),
        (999, "20260414120000Z"),
        (1_000, "20260414120000.001Z"),
        (10_000, "20260414120000.01Z"),
        (100_000, "20260414120000.1Z"),
        (120_000, "20260414120000.12Z"),
        (123_456, "20260414120000.123Z"),
        (999_999, "20260414120000.999Z"),
    ],
)
def test_gen_time(microsecond: int, written: str) -> None:
    """The genTime has milliseconds at most, no zeros at the end, and no point when there are none (RFC 3161 §2.4.2).

    TSA-T4, TSA-T5.
    """
    encoded = encode_gen_time(NOON.replace(microsecond=microsecond))
    assert encoded == der.encode(der.GENERALIZED_TIME, written.encode())
    parsed = core.GeneralizedTime.load(encoded, strict=True).native
    assert parsed == NOON.replace(microsecond=microsecond // 1000 * 1000)


def test_gen_time_is_utc() -> None:
    """An instant in the time of Vientiane is written as the same instant in UTC. TSA-T4."""
    vientiane = NOON.astimezone(timezone(timedelta(hours=7)))
    assert encode_gen_time(vientiane) == encode_gen_time(NOON)


@pytest.mark.parametrize(
    ("accuracy", "seconds", "millis", "micros"),
    [
        (timedelta(seconds=1), 1, None, None),
        (timedelta(milliseconds=999), None, 999, None),
        (timedelta(microseconds=1), None, None, 1),
        (timedelta(days=1, milliseconds=128, microseconds=200), 86400, 128, 200),
    ],
)
def test_accuracy(accuracy: timedelta, seconds: int | None, millis: int | None, micros: int | None) -> None:
    """Parts of the accuracy that are zero are left out, since readers refuse a zero (RFC 3161 §2.4.2).

    TSA-T6, TSA-Q17.
    """
    parsed = tsp.Accuracy.load(encode_accuracy(accuracy), strict=True).native
    assert parsed == {"seconds": seconds, "millis": millis, "micros": micros}


@pytest.mark.parametrize("accuracy", [timedelta(0), timedelta(seconds=-1)])
def test_no_accuracy_at_all(accuracy: timedelta) -> None:
    """Nobody is more accurate than the truth."""
    with pytest.raises(ConfigError, match="accuracy"):
        encode_accuracy(accuracy)


@pytest.mark.parametrize("policy", ["", "best practice", "1", "3.1.1", "1.40.1"])
def test_policy_that_is_no_oid(unit: Unit, policy: str) -> None:
    """A policy that is not an object identifier is noticed when the service starts."""
    with pytest.raises(ConfigError, match="policy"):
        TokenTemplate(unit.identity(), policy=policy, accuracy=timedelta(seconds=1))


@pytest.mark.parametrize("cert_req", [False, True])
async def test_what_a_token_holds(unit: Unit, *, cert_req: bool) -> None:
    """SignedData version 3 with one signer, named by issuer and serial number; certificates only when asked for, the
    unit's and the intermediate's but never the root; no CRLs, no unsigned attributes, no signingTime.

    TSA-T1, TSA-T7, TSA-T9, TSA-T14, TSA-T15, TSA-T18, TSA-T19, TSA-T22, TSA-Q13, TSA-Q14, TSA-V2, TSA-V4.
    """
    content = token_of(await stamped(unit, request_for(cert_req=cert_req, nonce=7)))["content"]
    assert content["version"].native == "v3"
    [signer] = content["signer_infos"]
    assert signer["version"].native == "v1"
    assert signer["sid"].name == "issuer_and_serial_number"
    assert [attribute["type"].native for attribute in signer["signed_attrs"]] == [
        "content_type",
        "message_digest",
        "signing_certificate_v2",
    ]
    assert signer["unsigned_attrs"].native is None
    assert content["crls"].native is None
    certificates = [each.chosen.dump() for each in content["certificates"]] if cert_req else []
    assert certificates == (sorted([unit.leaf.der, unit.intermediate.der]) if cert_req else [])
    assert (content["certificates"].native is None) is not cert_req

    tst_info = content["encap_content_info"]["content"].parsed
    assert tst_info["serial_number"].native == int.from_bytes(SERIAL_NUMBER, "big")
    assert tst_info["ordering"].native is False
    assert tst_info["tsa"].native is None
    assert tst_info["extensions"].native is None


async def test_signing_certificate(unit: Unit) -> None:
    """The signed attribute names the unit's certificate and no other, by SHA-256, which is not spelled out because it
    is the default, with issuer and serial number (RFC 5816 §2.2.1).

    TSA-T16, TSA-T17, TSA-Q4, TSA-Q14, TSA-Q16.
    """
    content = token_of(await stamped(unit, request_for()))["content"]
    attribute = content["signer_infos"][0]["signed_attrs"][2]
    [cert_id] = attribute["values"][0]["certs"]
    leaf = unit.identity().view
    assert cert_id.contents.startswith(der.octet_string(hashlib.sha256(unit.leaf.der).digest()))
    assert cert_id["issuer_serial"]["serial_number"].dump() == leaf.serial_number
    [general_name] = cert_id["issuer_serial"]["issuer"]
    assert general_name.chosen.dump() == der.encode(0xA4, leaf.issuer)


async def test_size_is_constant(unit: Unit) -> None:
    """Clients reserve room for a token by the size of an earlier one: only the fraction of genTime and the signature
    make a difference, of a few octets.

    TSA-Q10, TSA-Q11.
    """
    sizes = {len(await stamped(unit, request_for(bytes([n]) * 32, nonce=2**62 + n, cert_req=True))) for n in range(40)}
    assert max(sizes) - min(sizes) <= 4
