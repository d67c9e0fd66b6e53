"""What holds for all octets, not for examples."""

from __future__ import annotations

import pytest
from asn1crypto import core, ocsp
from cryptography.hazmat.primitives import hashes
from hypothesis import given
from hypothesis import strategies as st

from lakthan import der
from lakthan_ocsp.syntax import OCSPRequest, OCSPResponseStatus, RequestError, parse_request
from support.pki import issue, new_ca
from support.responder import request_for

CA = new_ca("CA")
LEAF = issue("leaf", CA)
REQUEST = request_for(LEAF, CA, nonce=bytes(range(32)))
ASKED = parse_request(REQUEST, max_cert_ids=1).cert_ids[0]


def parsed_or_malformed(octets: bytes) -> OCSPRequest | None:
    """The request, or None when it is refused as malformed; any other outcome is an error."""
    try:
        return parse_request(octets, max_cert_ids=50)
    except RequestError as error:
        status = error.status
    assert status is OCSPResponseStatus.MALFORMED_REQUEST
    return None


@given(st.binary(max_size=200))
def test_any_octets_give_a_request_or_a_refusal(octets: bytes) -> None:
    """Nothing but RequestError comes out of the parser. OCSP-1."""
    parsed_or_malformed(octets)


@given(st.integers(0, len(REQUEST) - 1), st.integers(1, 255))
def test_a_flipped_octet_is_seen(at: int, flip: int) -> None:
    """A damaged request is refused, or it is read as what its octets now say, by us and by asn1crypto alike."""
    damaged = bytearray(REQUEST)
    damaged[at] ^= flip
    request = parsed_or_malformed(bytes(damaged))
    if request is None:
        return
    theirs = ocsp.OCSPRequest.load(bytes(damaged), strict=True)["tbs_request"]["request_list"][0]["req_cert"]
    (ours,) = request.cert_ids
    assert theirs.dump() == ours.encoded
    assert int.from_bytes(ours.serial_number, "big", signed=True) == theirs["serial_number"].native
    if ours.hash_algorithm is not None:
        joined = ours.hash_algorithm.oid_der + theirs["issuer_name_hash"].native + theirs["issuer_key_hash"].native
        assert ours.issuer == joined


@given(st.binary(max_size=60))
def test_a_request_with_octets_after_it_is_refused(tail: bytes) -> None:
    """Only the whole message counts. OCSP-1."""
    assert (parsed_or_malformed(REQUEST + tail) is None) == bool(tail)


@given(st.binary(min_size=1, max_size=128))
def test_every_nonce_comes_through(nonce: bytes) -> None:
    """The nonce is given as the element that it was, and a certificate is read the same with it and without.

    OCSP-26, OCSP-54, OCSP-55.
    """
    request = parse_request(request_for(LEAF, CA, nonce=nonce), max_cert_ids=1)
    assert request.nonce == der.octet_string(der.octet_string(nonce))
    assert request.cert_ids == (ASKED,)


@given(st.integers())
def test_integers_agree_with_asn1crypto(value: int) -> None:
    """Our INTEGER encoder and reader are theirs."""
    encoded = core.Integer(value).dump()
    assert der.integer(value) == encoded
    assert der.Reader(encoded).integer() == value


@given(st.binary(min_size=1, max_size=30))
def test_minimal_integers_keep_their_value(content: bytes) -> None:
    """Shortening never changes a serial number."""
    shortest = der.minimal_integer(content)
    value = int.from_bytes(content, "big", signed=True)
    assert int.from_bytes(shortest, "big", signed=True) == value
    assert shortest == der.integer_content(value)


@pytest.mark.parametrize(
    "algorithm", [hashes.SHA1(), hashes.SHA224(), hashes.SHA256(), hashes.SHA384(), hashes.SHA512()]
)
def test_every_hash_is_understood(algorithm: hashes.HashAlgorithm) -> None:
    """A CertID in any of the hash algorithms of the field is understood, its serial number is the certificate's.

    OCSP-Q20.
    """
    request = parse_request(request_for(LEAF, CA, algorithm=algorithm), max_cert_ids=1)
    assert request.cert_ids[0].serial_number == LEAF.serial_number
    assert request.cert_ids[0].issuer != b""
