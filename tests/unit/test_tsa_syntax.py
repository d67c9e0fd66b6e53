"""Reading time-stamp requests: what is understood, and which PKIFailureInfo everything else gets (RFC 3161 §2.4)."""

from __future__ import annotations

import pytest
from asn1crypto import tsp

from lakthan import der
from lakthan_tsa.syntax import PKIFailureInfo, Rejection, TimeStampReq, parse_request, refusal
from support.tsa import HASH_NAMES, HASH_SIZES, POLICY, failure, request_for

OFFERED = frozenset({der.object_identifier(POLICY)})
SHA256 = der.sequence(der.object_identifier("2.16.840.1.101.3.4.2.1"))
VERSION = der.integer(1)
IMPRINT = der.sequence(SHA256, der.octet_string(bytes(32)))
EXTENSION = der.sequence(der.object_identifier("1.2.3.4"), der.octet_string(b""))


def parsed(body: bytes) -> TimeStampReq:
    """The request, with one policy on offer."""
    return parse_request(body, offered_policies=OFFERED)


def rejected(body: bytes) -> Rejection:
    """The refusal of these octets."""
    with pytest.raises(Rejection) as caught:
        parsed(body)
    return caught.value


@pytest.mark.parametrize("null", [False, True])
@pytest.mark.parametrize("hash_name", HASH_NAMES)
def test_every_accepted_hash(hash_name: str, *, null: bool) -> None:
    """SHA-2 and SHA-3 imprints are taken, with parameters absent or NULL, and kept octet for octet. TSA-T2."""
    hashed = bytes(range(HASH_SIZES[hash_name]))
    body = request_for(hashed, hash_name=hash_name, null=null)
    request = parsed(body)
    assert request.hashed_message == hashed
    assert request.message_imprint == tsp.TimeStampReq.load(body)["message_imprint"].dump()
    assert request.message_imprint in body
    assert (request.req_policy, request.nonce, request.cert_req) == (None, None, False)


def test_every_field() -> None:
    """Policy, nonce and certReq are all read from one request. TSA-T8."""
    request = parsed(request_for(req_policy=POLICY, nonce=2**159 + 1, cert_req=True))
    assert request.req_policy == der.object_identifier(POLICY)
    assert request.nonce == der.integer(2**159 + 1)
    assert request.cert_req


@pytest.mark.parametrize("nonce", [0, 1, 127, 128, -1, -129, 2**64 - 1, 2**511 + 5])
def test_nonce_of_any_size_and_sign(nonce: int) -> None:
    """A nonce is an INTEGER like any other: short, long or negative, its value is kept. TSA-T8, TSA-Q3."""
    assert parsed(request_for(nonce=nonce)).nonce == der.integer(nonce)


def test_nonce_with_needless_octets_keeps_its_value() -> None:
    """Clients that take random octets for an INTEGER are served; the nonce goes back in minimal DER.

    TSA-T8, TSA-Q3, TSA-Q4.
    """
    body = der.sequence(VERSION, IMPRINT, bytes.fromhex("0203000012"))
    assert parsed(body).nonce == bytes.fromhex("020112")


def test_explicit_false_is_understood() -> None:
    """A certReq FALSE written out is not DER, but it is what some clients send, and it says no."""
    assert not parsed(der.sequence(VERSION, IMPRINT, bytes.fromhex("010100"))).cert_req


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"MIIB",
        b"\x30",
        b"\x30\x80\x00\x00",
        der.sequence(),
        der.sequence(VERSION),
        der.sequence(VERSION, IMPRINT) + b"\x00",
        der.sequence(VERSION, IMPRINT, der.octet_string(b"")),
        der.sequence(VERSION, IMPRINT, bytes.fromhex("010101")),
        der.sequence(VERSION, IMPRINT, bytes.fromhex("0200")),
        der.sequence(VERSION, IMPRINT, bytes.fromhex("0600")),
        der.sequence(VERSION, IMPRINT, der.encode(der.OBJECT_IDENTIFIER, b"\x81" * 5000 + b"\x01")),
        der.sequence(VERSION, IMPRINT, der.integer(1), der.object_identifier(POLICY)),
        der.sequence(VERSION, IMPRINT, bytes.fromhex("a000")),
        der.sequence(VERSION, IMPRINT, der.encode(0xA0, der.sequence(der.object_identifier("1.2.3")))),
        der.sequence(bytes.fromhex("02020001"), IMPRINT),
        der.sequence(VERSION, der.sequence(SHA256, der.octet_string(bytes(31)))),
        der.sequence(VERSION, der.sequence(SHA256, der.octet_string(bytes(33)))),
        der.sequence(VERSION, der.sequence(der.sequence(), der.octet_string(bytes(32)))),
    ],
)
def test_bad_data_format(body: bytes) -> None:
    """Octets that are not the DER of a request, or a hash of the wrong length, are badDataFormat. TSA-R1, TSA-R4."""
    assert rejected(body).fail_info is PKIFailureInfo.BAD_DATA_FORMAT


@pytest.mark.parametrize("version", [0, 2, 3, 128, -1])
def test_other_versions(version: int) -> None:
    """Only version 1 exists; another one is badRequest, whatever follows it. TSA-R2."""
    rejection = rejected(der.sequence(der.integer(version), der.octet_string(b"of the future")))
    assert rejection.fail_info is PKIFailureInfo.BAD_REQUEST
    assert "bad request version" in rejection.text


@pytest.mark.parametrize(
    ("oid", "size"),
    [
        ("1.3.14.3.2.26", 20),
        ("1.2.840.113549.2.5", 16),
        ("2.16.840.1.101.3.4.2.4", 28),
        ("2.16.840.1.101.3.4.2.99", 32),
    ],
)
def test_weak_and_unknown_hashes(oid: str, size: int) -> None:
    """SHA-1, MD5, SHA-224 and hashes that nobody knows are badAlg, and the text says which one it was. TSA-R3."""
    imprint = der.sequence(der.sequence(der.object_identifier(oid), b"\x05\x00"), der.octet_string(bytes(size)))
    rejection = rejected(der.sequence(VERSION, imprint))
    assert rejection.fail_info is PKIFailureInfo.BAD_ALG
    assert oid in rejection.text


def test_hash_with_strange_parameters() -> None:
    """A hash algorithm takes no parameters but NULL; others are badAlg. TSA-R3."""
    algorithm = der.sequence(der.object_identifier("2.16.840.1.101.3.4.2.1"), der.integer(1))
    rejection = rejected(der.sequence(VERSION, der.sequence(algorithm, der.octet_string(bytes(32)))))
    assert rejection.fail_info is PKIFailureInfo.BAD_ALG


def test_foreign_policy() -> None:
    """A policy that is not offered is refused, never replaced by another (RFC 3161 §2.4.2). TSA-R5."""
    rejection = rejected(request_for(req_policy="1.2.3.4.5"))
    assert rejection.fail_info is PKIFailureInfo.UNACCEPTED_POLICY
    assert "1.2.3.4.5" in rejection.text


@pytest.mark.parametrize("critical", [b"", bytes.fromhex("0101ff")])
def test_extensions(critical: bytes) -> None:
    """No extension is recognised, so each one is refused, critical or not (RFC 3161 §2.4.1). TSA-R6."""
    extension = der.sequence(der.object_identifier("1.2.3.4"), critical, der.octet_string(b""))
    rejection = rejected(der.sequence(VERSION, IMPRINT, der.encode(0xA0, extension)))
    assert rejection.fail_info is PKIFailureInfo.UNACCEPTED_EXTENSION
    assert "1.2.3.4" in rejection.text


def test_the_first_reason_wins() -> None:
    """Of several reasons the earliest in the order is given: version, extension, algorithm, length, policy."""
    sha1 = der.sequence(der.object_identifier("1.3.14.3.2.26"))
    policy = der.object_identifier("1.2.3")
    extensions = der.encode(0xA0, EXTENSION)
    weak, short = der.sequence(sha1, der.octet_string(b"")), der.sequence(SHA256, der.octet_string(b""))
    everything = (
        (der.sequence(der.integer(2), weak, policy, extensions), PKIFailureInfo.BAD_REQUEST),
        (der.sequence(VERSION, weak, policy, extensions), PKIFailureInfo.UNACCEPTED_EXTENSION),
        (der.sequence(VERSION, weak, policy), PKIFailureInfo.BAD_ALG),
        (der.sequence(VERSION, short, policy), PKIFailureInfo.BAD_DATA_FORMAT),
        (der.sequence(VERSION, IMPRINT, policy), PKIFailureInfo.UNACCEPTED_POLICY),
    )
    assert [rejected(body).fail_info for body, _ in everything] == [fail_info for _, fail_info in everything]


@pytest.mark.parametrize(
    ("fail_info", "encoded"),
    [
        (PKIFailureInfo.BAD_ALG, "03020780"),
        (PKIFailureInfo.BAD_REQUEST, "03020520"),
        (PKIFailureInfo.BAD_DATA_FORMAT, "03020204"),
        (PKIFailureInfo.TIME_NOT_AVAILABLE, "0303010002"),
        (PKIFailureInfo.UNACCEPTED_POLICY, "0303000001"),
        (PKIFailureInfo.UNACCEPTED_EXTENSION, "030407000080"),
        (PKIFailureInfo.ADD_INFO_NOT_AVAILABLE, "030406000040"),
        (PKIFailureInfo.SYSTEM_FAILURE, "03050600000040"),
    ],
)
def test_refusals(fail_info: PKIFailureInfo, encoded: str) -> None:
    """A refusal carries one text and exactly one failInfo bit, without trailing zero bits, and a foreign reader sees
    the same.

    TSA-R11, TSA-R13.
    """
    response = refusal(Rejection(fail_info, "ບໍ່ໄດ້: no"))
    assert response.endswith(bytes.fromhex(encoded))
    bits, text = failure(response)
    assert len(bits) == 1
    assert bits.pop().replace("_", "").startswith(fail_info.label.lower())  # asn1crypto writes unaccepted_extensions
    assert text == "ບໍ່ໄດ້: no"
