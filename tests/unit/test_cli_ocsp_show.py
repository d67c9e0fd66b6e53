"""`lakthan ocsp show`: every part of a message in the RFC's words, however the message comes."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from lakthan import der
from lakthan.certificates import CertificateView
from lakthan_cli.__main__ import main
from lakthan_cli.ocsp import render, tree
from lakthan_cli.ocsp.certificate import Certificate, Unreadable
from lakthan_cli.ocsp.message import OCSPResponse, read
from lakthan_cli.ocsp.request import cert_id, encode
from support.pki import issue, new_ca, new_responder

CA = new_ca("CA ຂອງການທົດສອບ")
RESPONDER = new_responder(CA)
SUBJECT = issue("subject", CA)
NOW = datetime(2026, 3, 1, 12, 30, 15, tzinfo=UTC)
TIME = der.generalized_time(NOW)
REQUEST = encode(
    cert_id(Certificate.from_der(SUBJECT.der), Certificate.from_der(CA.der), "sha384"), nonce=bytes(range(32))
)
OCSP = "1.3.6.1.5.5.7.48.1"
SHA256 = der.sequence(der.object_identifier("2.16.840.1.101.3.4.2.1"))

BY_NAME = der.encode(0xA1, CertificateView.from_der(RESPONDER.der).subject)

# Identifier → value, and how it is shown.
SINGLE_EXTENSIONS = {
    f"{OCSP}.3": (
        der.sequence(
            der.encode(0xA0, der.encode(0x16, b"http://crl.test/")),
            der.encode(0xA1, der.integer(7)),
            der.encode(0xA2, TIME),
        ),
        {"crlUrl": "http://crl.test/", "crlNum": 7, "crlTime": "2026-03-01T12:30:15Z"},
    ),
    f"{OCSP}.6": (TIME, "2026-03-01T12:30:15Z"),
    "2.5.29.21": (der.encode(der.ENUMERATED, b"\x02"), "cACompromise"),
    "2.5.29.24": (TIME, "2026-03-01T12:30:15Z"),
    "1.3.36.8.3.13": (
        der.sequence(SHA256, der.octet_string(bytes(32))),
        {"hashAlgorithm": "sha256", "certificateHash": "00" * 32},
    ),
    "1.2.3.4": (b"\x05\x00", "0500"),
}
RESPONSE_EXTENSIONS = {
    f"{OCSP}.2": (der.octet_string(b"\xaa\xbb"), {"octets": 2, "hex": "aabb"}),
    f"{OCSP}.9": (b"\x05\x00", None),
}


def extensions(found: Mapping[str, tuple[bytes, object]]) -> bytes:
    """Extensions."""
    return der.sequence(
        *(der.sequence(der.object_identifier(oid), der.octet_string(value)) for oid, (value, _) in found.items())
    )


def basic(responder_id: bytes = der.encode(0xA2, der.octet_string(bytes(20)))) -> bytes:
    """A BasicOCSPResponse with all there can be in it; its signature is none."""
    asked = der.sequence(SHA256, der.octet_string(bytes(32)), der.octet_string(bytes(32)), der.integer(-129))
    single = der.sequence(
        asked,
        der.encode(0xA1, TIME, der.encode(0xA0, der.encode(der.ENUMERATED, b"\x01"))),
        TIME,
        der.encode(0xA0, TIME),
        der.encode(0xA1, extensions(SINGLE_EXTENSIONS)),
    )
    other = der.sequence(asked, b"\x80\x00", TIME)
    data = der.sequence(
        responder_id,
        TIME,
        der.sequence(single, other),
        der.encode(0xA1, extensions(RESPONSE_EXTENSIONS)),
    )
    algorithm = der.sequence(der.object_identifier("1.2.840.10045.4.3.3"))
    return der.sequence(data, algorithm, der.bit_string(b"none"), der.encode(0xA0, der.sequence(RESPONDER.der)))


def response() -> bytes:
    """The OCSPResponse around it."""
    content = der.sequence(der.object_identifier(f"{OCSP}.1"), der.octet_string(basic()))
    return der.sequence(der.encode(der.ENUMERATED, b"\x00"), der.encode(0xA0, content))


def shown(data: bytes, *arguments: str) -> str:
    """What `lakthan ocsp show` prints about what comes by standard input."""
    result = CliRunner().invoke(main, ["ocsp", "show", *arguments], input=data)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_request() -> None:
    """What is asked, and the nonce."""
    document = json.loads(shown(REQUEST, "--json"))
    [asked] = document["requestList"]
    assert document["message"] == "OCSPRequest"
    assert document["octets"] == len(REQUEST)
    assert asked["reqCert"]["hashAlgorithm"] == "sha384"
    assert int(asked["reqCert"]["serialNumber"], 16) == SUBJECT.certificate.serial_number
    [nonce] = document["requestExtensions"]
    assert (nonce["name"], nonce["octets"], nonce["critical"]) == ("nonce", 34, False)
    assert nonce["value"] == {"octets": 32, "hex": bytes(range(32)).hex()}


def test_a_response() -> None:
    """Every field, and every extension taken apart; one that nobody knows comes in hexadecimal."""
    document = json.loads(shown(response(), "--json"))
    data = document["tbsResponseData"]
    first, second = data["responses"]
    assert document["responseStatus"] == "successful"
    assert data["responderID"] == {"byKey": "00" * 20}
    assert data["producedAt"] == "2026-03-01T12:30:15Z"
    assert (first["certStatus"], first["revocationReason"]) == ("revoked", "keyCompromise")
    assert first["certID"]["serialNumber"] == "-81"
    assert (second["certStatus"], second["nextUpdate"]) == ("good", None)
    for found, expected in (
        (first["singleExtensions"], SINGLE_EXTENSIONS),
        (data["responseExtensions"], RESPONSE_EXTENSIONS),
    ):
        assert {each["extnID"]: each["value"] for each in found} == {oid: words for oid, (_, words) in expected.items()}
    assert document["signatureAlgorithm"] == "ecdsa-with-SHA384"
    [certificate] = document["certs"]
    assert certificate["subject"] == "CN=OCSP ຜູ້ຕອບ,C=LA"
    assert certificate["notAfter"] == f"{RESPONDER.certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"
    assert certificate["extKeyUsage"] == ["id-kp-OCSPSigning"]
    assert certificate["nocheck"] is True
    assert "notDER" not in document


def test_a_responder_by_name() -> None:
    """A ResponderID byName is the name for people."""
    document = json.loads(shown(basic(BY_NAME), "--json"))
    assert document["tbsResponseData"]["responderID"] == {"byName": "CN=OCSP ຜູ້ຕອບ,C=LA"}


def test_for_people() -> None:
    """The same as an indented tree."""
    text = shown(response())
    assert "\n      certStatus: revoked\n" in text
    assert "\n          name: archiveCutoff\n" in text
    assert "\n    subject: CN=OCSP ຜູ້ຕອບ,C=LA\n" in text


@pytest.mark.parametrize("message", [REQUEST, response()], ids=["request", "response"])
def test_however_it_comes(message: bytes, tmp_path: Path) -> None:
    """DER, PEM, base64 in both alphabets, wrapped or without padding, and from a file: always the same."""
    plain = base64.b64encode(message)
    expected = shown(message)
    lines = base64.encodebytes(message)
    for wrapped in (
        plain,
        plain.rstrip(b"="),
        base64.urlsafe_b64encode(message),
        lines,
        b"-----BEGIN OCSP THING-----\n" + lines + b"-----END OCSP THING-----\n",
        quote(plain, safe="").encode(),
    ):
        assert shown(wrapped) == expected
    (tmp_path / "message").write_bytes(message)
    assert CliRunner().invoke(main, ["ocsp", "show", str(tmp_path / "message")]).output == expected


@pytest.mark.parametrize(
    "start", ["http://ocsp.test/", "http://ocsp.test//a/b/", "/", "/ocsp/", "https://ocsp.test:80/"]
)
@pytest.mark.parametrize("safe", ["", "/+"])
def test_the_url_of_a_get(start: str, safe: str) -> None:
    """A URL from a log is understood, with the base64 escaped or as it is."""
    assert shown((start + quote(base64.b64encode(REQUEST), safe=safe)).encode()) == shown(REQUEST)


def test_a_bare_basic_response() -> None:
    """CAdES and CMS carry the BasicOCSPResponse without the OCSPResponse around it; it is understood too."""
    assert json.loads(shown(basic(), "--json"))["certs"] == json.loads(shown(response(), "--json"))["certs"]


@pytest.mark.parametrize(
    ("number", "word"),
    [
        (1, "malformedRequest"),
        (2, "internalError"),
        (3, "tryLater"),
        (4, "status 4"),
        (5, "sigRequired"),
        (6, "unauthorized"),
    ],
)
def test_refusals(number: int, word: str) -> None:
    """The word of the protocol; 4 has none (RFC 6960 §4.2.1)."""
    assert f"responseStatus: {word}\n" in shown(bytes((0x30, 3, 0x0A, 1, number)))


def test_what_is_not_der_is_shown_and_said() -> None:
    """A needlessly long length does not hide the message."""
    document = json.loads(shown(b"\x30\x83\x00" + response()[2:], "--json"))
    assert document["responseStatus"] == "successful"
    assert "shortest form" in document["notDER"]


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"\x30", b"\x30\x00", b"\x30\x03\x02\x01\x00", response()[:-1], response() + b"\x00"]
)
def test_what_is_no_message_is_a_usage_error(data: bytes) -> None:
    """The exit code is 3, and one line says what is wrong."""
    result = CliRunner().invoke(main, ["ocsp", "show"], input=data)
    assert result.exit_code == 3
    assert result.stderr.startswith(
        "Error: what came by standard input cannot be read as an OCSP request or response: "
    )


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from([REQUEST, response(), basic(), basic(BY_NAME)]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_mangled_messages_are_shown_or_refused(message: bytes, changes: list[tuple[float, int]]) -> None:
    """Whatever octets come, they are a message that can be shown, or `Unreadable`; nothing else is ever raised."""
    mangled = bytearray(message)
    for where, octet in changes:
        mangled[int(where * len(mangled))] = octet
    try:
        found = read(bytes(mangled))
    except Unreadable:
        return
    assert render.as_tree(tree.of_message(found))
    assert isinstance(found, OCSPResponse) is ("responseStatus" in tree.of_message(found))
