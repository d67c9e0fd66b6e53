"""OCSP requests and responses as values, read from whatever people have: DER, PEM, base64, the path of a GET.

Promises: all of a message is read at once, or `Unreadable` says what is wrong; nothing is left to fail later.

Refuses to know: what an answer is worth. Octets that are not distinguished encoding are still read, so that `show` can
show them; `encoding_problem` then says what is wrong, and verification fails on it (RFC 6960 §4.2.1: DER).
"""

from __future__ import annotations

import base64
import binascii
import re
import urllib.parse
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from asn1crypto import core, ocsp, parser
from asn1crypto import x509 as asn1_x509

from lakthan import der
from lakthan_cli.ocsp.certificate import Certificate, Unreadable, name_text, read_extensions, reading
from lakthan_cli.ocsp.signature import element

ID_PKIX_OCSP_BASIC = "1.3.6.1.5.5.7.48.1.1"
_DEEPEST = 40

# RFC 6960 §4.2.1; 4 is not used, and nobody may send it.
RESPONSE_STATUS = {
    0: "successful",
    1: "malformedRequest",
    2: "internalError",
    3: "tryLater",
    5: "sigRequired",
    6: "unauthorized",
}
# RFC 5280 §5.3.1; 7 is not used.
CRL_REASON = {
    0: "unspecified",
    1: "keyCompromise",
    2: "cACompromise",
    3: "affiliationChanged",
    4: "superseded",
    5: "cessationOfOperation",
    6: "certificateHold",
    8: "removeFromCRL",
    9: "privilegeWithdrawn",
    10: "aACompromise",
}


@dataclass(frozen=True, slots=True)
class Extension:
    """One Extension. `value`: the content of extnValue."""

    oid: str
    critical: bool
    value: bytes


@dataclass(frozen=True, slots=True)
class CertID:
    """RFC 6960 §4.1.1. `hash_algorithm`: its dotted identifier."""

    hash_algorithm: str
    issuer_name_hash: bytes
    issuer_key_hash: bytes
    serial_number: int


@dataclass(frozen=True, slots=True)
class SingleResponse:
    """RFC 6960 §4.2.1. `cert_status`: good, revoked or unknown. `revocation_reason`: the RFC's word, or None."""

    cert_id: CertID
    cert_status: str
    revocation_time: datetime | None
    revocation_reason: str | None
    this_update: datetime
    next_update: datetime | None
    extensions: tuple[Extension, ...]


@dataclass(frozen=True, slots=True)
class BasicResponse:
    """BasicOCSPResponse (RFC 6960 §4.2.1).

    `tbs`: the octets that are signed. `responder_key_hash`, `responder_name`: the ResponderID, exactly one of them.
    `signature_algorithm`: the AlgorithmIdentifier element.
    """

    tbs: bytes
    responder_key_hash: bytes | None
    responder_name: asn1_x509.Name | None
    produced_at: datetime
    responses: tuple[SingleResponse, ...]
    extensions: tuple[Extension, ...]
    signature_algorithm: bytes
    signature: bytes
    certs: tuple[Certificate, ...]


@dataclass(frozen=True, slots=True)
class OCSPResponse:
    """`status`: the protocol's word, or `status 4` for a number that has none. `basic`: only when successful."""

    encoded: bytes
    status: str
    basic: BasicResponse | None
    encoding_problem: str | None


@dataclass(frozen=True, slots=True)
class OCSPRequest:
    """RFC 6960 §4.1.1. `requests`: what is asked, with its singleRequestExtensions."""

    encoded: bytes
    requestor_name: str | None
    requests: tuple[tuple[CertID, tuple[Extension, ...]], ...]
    extensions: tuple[Extension, ...]
    signature_algorithm: bytes | None
    certs: tuple[Certificate, ...]
    encoding_problem: str | None


def unwrap(data: bytes) -> bytes:
    """The DER in PEM, base64 of either alphabet, or the target of a GET. Raises `Unreadable`."""
    if data[:1] == b"\x30":
        return data
    text = re.sub(r"-----[^\n]*-----", "", data.decode("ascii", "replace")).strip()
    # A whole URL: RFC 6960 appendix A puts the base64 behind the last slash of the responder's path, and base64 has
    # slashes of its own; every request begins with "M".
    if found := re.match(r"(?:[a-z]+://[^/]+)?/(?:.*?/)?(?=M[A-Za-z0-9%+/_-]+=*$)", text):
        text = text[found.end() :]
    text = re.sub(r"\s", "", urllib.parse.unquote(text)).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        decoded = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Unreadable("neither DER nor PEM nor base64") from error
    if decoded[:1] != b"\x30":
        raise Unreadable("neither DER nor PEM nor base64 of DER")
    return decoded


def read(data: bytes) -> OCSPRequest | OCSPResponse:
    """A request or a response, whichever it is, wrapped or not (see `unwrap`). Raises `Unreadable`."""
    encoded = unwrap(data)
    with reading("an OCSP message"):
        content = parser.parse(encoded, strict=True)[4]
        first = parser.peek(content)
    if content[0] == der.ENUMERATED:
        return read_response(encoded)
    # The second element tells an OCSPRequest from a bare BasicOCSPResponse, as CAdES and CMS carry it.
    if content[first : first + 1] != b"\x30":
        return read_request(encoded)
    with reading("a BasicOCSPResponse"):
        basic = ocsp.BasicOCSPResponse.load(encoded, strict=True)
        return OCSPResponse(encoded, RESPONSE_STATUS[0], _basic(basic), encoding_problem(encoded))


def read_response(encoded: bytes) -> OCSPResponse:
    """An OCSPResponse in DER. Raises `Unreadable`."""
    with reading("an OCSPResponse"):
        response = ocsp.OCSPResponse.load(encoded, strict=True)
        number = int.from_bytes(response["response_status"].contents, "big", signed=True)
        status = RESPONSE_STATUS.get(number, f"status {number}")
        response_bytes = response["response_bytes"]
        if isinstance(response_bytes, core.Void):
            if number == 0:
                raise Unreadable("a successful OCSPResponse without responseBytes")
            return OCSPResponse(encoded, status, None, encoding_problem(encoded))
        if number != 0:
            raise Unreadable(f"an OCSPResponse that says {status} and carries responseBytes all the same")
        response_type = response_bytes["response_type"].dotted
        if response_type != ID_PKIX_OCSP_BASIC:
            raise Unreadable(f"an OCSPResponse of the type {response_type}, which is not the basic one")
        inner = bytes(response_bytes["response"])
        basic = _basic(ocsp.BasicOCSPResponse.load(inner, strict=True))
        return OCSPResponse(encoded, status, basic, encoding_problem(encoded) or encoding_problem(inner))


def read_request(encoded: bytes) -> OCSPRequest:
    """An OCSPRequest in DER. Raises `Unreadable`."""
    with reading("an OCSPRequest"):
        request = ocsp.OCSPRequest.load(encoded, strict=True)
        tbs, signature = request["tbs_request"], request["optional_signature"]
        _require_v1(tbs["version"])
        name = tbs["requestor_name"]
        signed = not isinstance(signature, core.Void)
        return OCSPRequest(
            encoded,
            None if isinstance(name, core.Void) else f"{name.name}: {name.native}",
            tuple(
                (_cert_id(each["req_cert"]), _extensions(each["single_request_extensions"]))
                for each in tbs["request_list"]
            ),
            _extensions(tbs["request_extensions"]),
            element(signature["signature_algorithm"]) if signed else None,
            _certs(signature["certs"]) if signed else (),
            encoding_problem(encoded),
        )


def repeated(extensions: Iterable[Extension]) -> list[str]:
    """The identifiers that occur more than once, which RFC 5280 §4.2 forbids."""
    return [oid for oid, times in Counter(extension.oid for extension in extensions).items() if times > 1]


def encoding_problem(encoded: bytes) -> str | None:
    """What is not DER in it (X.690 §10 and §11), or None."""
    try:
        _walk(der.Reader(encoded), 0)
    except der.DERError as error:
        return str(error)
    return None


def _walk(reader: der.Reader, depth: int) -> None:
    if depth > _DEEPEST:
        raise der.DERError(f"elements nested more than {_DEEPEST} deep")
    while reader.more():
        tag = reader.peek()
        if tag == der.BOOLEAN:
            reader.boolean()
        elif tag == der.INTEGER:
            reader.integer()
        elif tag & 0x20:
            _walk(reader.enter(tag), depth + 1)
        else:
            reader.head()


def _basic(basic: Any) -> BasicResponse:  # noqa: ANN401 - asn1crypto has no types
    data = basic["tbs_response_data"]
    _require_v1(data["version"])
    responder_id = data["responder_id"]
    by_key = responder_id.name == "by_key"
    if not by_key:
        name_text(responder_id.chosen)  # reads all of it now
    return BasicResponse(
        tbs=data.dump(),
        responder_key_hash=bytes(responder_id.chosen) if by_key else None,
        responder_name=None if by_key else responder_id.chosen,
        produced_at=_instant(data["produced_at"]),
        responses=tuple(_single(each) for each in data["responses"]),
        extensions=_extensions(data["response_extensions"]),
        signature_algorithm=element(basic["signature_algorithm"]),
        signature=bytes(basic["signature"]),
        certs=_certs(basic["certs"]),
    )


def _single(single: Any) -> SingleResponse:  # noqa: ANN401
    status = single["cert_status"]
    time = reason = None
    if status.name == "revoked":
        time = _instant(status.chosen["revocation_time"])
        if not isinstance(status.chosen["revocation_reason"], core.Void):
            number = int.from_bytes(status.chosen["revocation_reason"].contents, "big", signed=True)
            reason = CRL_REASON.get(number, f"reason {number}")
    next_update = single["next_update"]
    return SingleResponse(
        _cert_id(single["cert_id"]),
        str(status.name),
        time,
        reason,
        _instant(single["this_update"]),
        None if isinstance(next_update, core.Void) else _instant(next_update),
        _extensions(single["single_extensions"]),
    )


def _cert_id(cert_id: Any) -> CertID:  # noqa: ANN401
    return CertID(
        str(cert_id["hash_algorithm"]["algorithm"].dotted),
        bytes(cert_id["issuer_name_hash"]),
        bytes(cert_id["issuer_key_hash"]),
        int(cert_id["serial_number"].native),
    )


def _extensions(extensions: Any) -> tuple[Extension, ...]:  # noqa: ANN401
    return tuple(Extension(*each) for each in read_extensions(extensions))


def _certs(certs: Any) -> tuple[Certificate, ...]:  # noqa: ANN401
    return () if isinstance(certs, core.Void) else tuple(Certificate.from_der(each.dump()) for each in certs)


def _require_v1(version: Any) -> None:  # noqa: ANN401
    if version.native != "v1":
        raise Unreadable("a version other than v1")


def _instant(value: Any) -> datetime:  # noqa: ANN401
    instant = value.native
    if not isinstance(instant, datetime):
        raise Unreadable(f"the time {instant}, which no calendar has")
    return instant
