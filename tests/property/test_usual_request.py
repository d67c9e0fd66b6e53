"""The quick reader of usual requests against the general one: whatever it takes, it reads alike."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import hashes
from hypothesis import given, settings
from hypothesis import strategies as st

from lakthan import der
from lakthan.algorithms import HashAlgorithm
from lakthan_ocsp import syntax, usual_request
from support.pki import issue, new_ca
from support.responder import request_for

CA = new_ca("CA")
LEAF = issue("leaf", CA)
ALGORITHMS = (hashes.SHA1(), hashes.SHA224(), hashes.SHA256(), hashes.SHA384(), hashes.SHA512())
NONCES = (None, b"n", bytes(16), bytes(32), bytes(100))
USUAL = [request_for(LEAF, CA, algorithm=each, nonce=nonce) for each in ALGORITHMS for nonce in NONCES]


def both(encoded: bytes) -> tuple[syntax.OCSPRequest | None, syntax.OCSPRequest | None]:
    """What the quick reader and the general one make of these octets; None when they refuse."""
    usual = usual_request.read(encoded)
    quick = None if usual is None else syntax.OCSPRequest((syntax.CertID(*usual[:4]),), usual[4])
    try:
        general = syntax._parse_request(encoded, 50)
    except (syntax.RequestError, ValueError):
        general = None
    return quick, general


@pytest.mark.parametrize("encoded", USUAL)
def test_usual_requests_are_taken(encoded: bytes) -> None:
    """Requests as clients build them, with every hash and length of nonce, if they are not longer than usual."""
    quick, general = both(encoded)
    assert quick == (general if len(encoded) < 256 else None)


@given(st.sampled_from(USUAL), st.data())
@settings(max_examples=2000, deadline=None)
def test_what_is_taken_is_read_alike(encoded: bytes, data: st.DataObject) -> None:
    """A few octets changed, inserted or removed anywhere: the quick reader declines, or both say the same."""
    octets = bytearray(encoded)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(octets) - 1))
        what = data.draw(st.sampled_from(("change", "flip", "insert", "remove", "cut")))
        if what == "change":
            octets[at] = data.draw(st.integers(0, 255))
        elif what == "flip":
            octets[at] ^= 1 << data.draw(st.integers(0, 7))
        elif what == "insert":
            octets.insert(at, data.draw(st.integers(0, 255)))
        elif what == "remove" and len(octets) > 1:
            del octets[at]
        elif what == "cut" and at:
            del octets[at:]
    quick, general = both(bytes(octets))
    assert quick is None or quick == general


@given(st.binary(max_size=300))
@settings(max_examples=500, deadline=None)
def test_any_octets(octets: bytes) -> None:
    """Whatever comes, nothing but a request or a refusal."""
    quick, general = both(octets)
    assert quick is None or quick == general


@pytest.mark.parametrize("serial", [b"\x00", b"\x7f", b"\x80", b"\x00\x80", b"\x00\x7f", b"\xff\x80", b"\xff\x7f", b""])
def test_serial_numbers(serial: bytes) -> None:
    """Needless octets and none at all are left to the general reader."""
    cert_id = der.sequence(
        HashAlgorithm.SHA_1.algorithm_identifier,
        der.octet_string(bytes(20)),
        der.octet_string(bytes(20)),
        der.encode(der.INTEGER, serial),
    )
    quick, general = both(der.sequence(der.sequence(der.sequence(der.sequence(cert_id)))))
    needless = serial in {b"\x00\x7f", b"\xff\x80", b""}
    assert quick == (None if needless else general)
