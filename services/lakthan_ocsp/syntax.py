"""The ASN.1 of OCSP requests (RFC 6960 §4.1) and the words for statuses; nothing about what to answer.

`parse_request` is given whatever arrives. It either understands all of it or raises `RequestError`; what it gives
quotes the octets of the request, because a CertID must come back exactly as it was sent.

Stricter than some clients, looser than the letter in three places, each for clients in the field: an explicitly
encoded version v1 and FALSE are accepted although DER omits defaults, and a serial number may carry needless leading
octets (its value is compared, its octets are echoed).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import NamedTuple

from lakthan import der
from lakthan.algorithms import HASH_BY_ALGORITHM_IDENTIFIER, HashAlgorithm
from lakthan_ocsp import usual_request

ID_PKIX_OCSP_BASIC = der.object_identifier("1.3.6.1.5.5.7.48.1.1")
ID_PKIX_OCSP_NONCE = der.object_identifier("1.3.6.1.5.5.7.48.1.2")
_ID_PKIX_OCSP_RESPONSE = der.object_identifier("1.3.6.1.5.5.7.48.1.4")
_ID_PKIX_OCSP_PREF_SIG_ALGS = der.object_identifier("1.3.6.1.5.5.7.48.1.8")
# Understood, and without effect: requests are not forwarded to another responder (RFC 6960 §4.4.6).
_ID_PKIX_OCSP_SERVICE_LOCATOR = der.object_identifier("1.3.6.1.5.5.7.48.1.7")

_EXPLICIT_0 = 0xA0
_EXPLICIT_1 = 0xA1
_EXPLICIT_2 = 0xA2


class OCSPResponseStatus(IntEnum):
    """RFC 6960 §4.2.1. The value 4 is not used."""

    SUCCESSFUL = 0
    MALFORMED_REQUEST = 1
    INTERNAL_ERROR = 2
    TRY_LATER = 3
    SIG_REQUIRED = 5
    UNAUTHORIZED = 6

    @property
    def label(self) -> str:
        """The RFC's spelling."""
        first, *rest = self.name.lower().split("_")
        return first + "".join(word.capitalize() for word in rest)


class CertStatusChoice(Enum):
    """The alternatives of CertStatus (RFC 6960 §4.2.1), as logs and metrics spell them."""

    GOOD = "good"
    REVOKED = "revoked"
    UNKNOWN = "unknown"


class RequestError(Exception):
    """The request gets an unsigned error response. `status` is the protocol's word, the message says why."""

    def __init__(self, status: OCSPResponseStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class CertID(NamedTuple):
    """A certificate as a client names it (RFC 6960 §4.1.1).

    `encoded`: the whole element as sent. `hash_algorithm`: None when it is one that is not known here.
    `issuer`: hash algorithm OID, name hash and key hash joined, what issuers are looked up by; empty, and so nobody's,
    when the algorithm is not known.
    `serial_number`: the content of the minimal INTEGER.
    """

    encoded: bytes
    hash_algorithm: HashAlgorithm | None
    issuer: bytes
    serial_number: bytes


@dataclass(frozen=True, slots=True)
class PreferredAlgorithm:
    """One of the client's preferences (RFC 6960 §4.4.7.1): the encoded OID of the signature algorithm, and what it asks
    of the key: the encoded OID of its kind and the parameters after it, empty where it asks nothing.
    """

    signature: bytes
    key: bytes = b""
    key_parameters: bytes = b""


@dataclass(frozen=True, slots=True)
class RequestSignature:
    """A signed request's signature (RFC 6960 §4.1.1). `tbs_request`: what was signed. `algorithm`: its OID, encoded.
    `certs`: whole certificates as sent. `named`: the request carries a requestorName.
    """

    tbs_request: bytes
    algorithm: bytes
    signature: bytes
    certs: tuple[bytes, ...]
    named: bool


class OCSPRequest(NamedTuple):
    """What is asked. `nonce` is the extnValue element as it came, None without one (RFC 9654 §2.1)."""

    cert_ids: tuple[CertID, ...]
    nonce: bytes | None = None
    preferred: tuple[PreferredAlgorithm, ...] = ()
    signature: RequestSignature | None = None


@dataclass(slots=True)
class _Extensions:
    """What an Extensions element says that matters here."""

    nonce: bytes | None = None
    preferred: tuple[PreferredAlgorithm, ...] = ()


def parse_request(encoded: bytes, *, max_cert_ids: int) -> OCSPRequest:
    """Read an OCSPRequest. Raises `RequestError` with malformedRequest for everything else (RFC 6960 §4.1.1).

    The requestorName of an unsigned request is ignored (RFC 9919 §3.1.2); a signature is given with what it covers, for
    whoever wants to verify it.
    """
    usual = usual_request.read(encoded)
    if usual is not None:
        cert_id, algorithm, issuer, serial_number, nonce = usual
        return OCSPRequest((CertID(cert_id, algorithm, issuer, serial_number),), nonce)
    try:
        return _parse_request(encoded, max_cert_ids)
    except der.DERError as error:
        raise _malformed(str(error)) from error


def _malformed(why: str) -> RequestError:
    return RequestError(OCSPResponseStatus.MALFORMED_REQUEST, why)


def _parse_request(encoded: bytes, max_cert_ids: int) -> OCSPRequest:
    outer = der.Reader(encoded)
    ocsp_request = outer.enter(der.SEQUENCE)
    outer.finish()
    start = ocsp_request.at
    tbs_request = ocsp_request.enter(der.SEQUENCE)
    stop = ocsp_request.at
    if tbs_request.peek() == _EXPLICIT_0:
        version = tbs_request.enter(_EXPLICIT_0)
        if version.integer() != 0:
            raise _malformed("a version other than v1")
        version.finish()
    named = tbs_request.peek() == _EXPLICIT_1
    if named:
        tbs_request.head()
    request_list = tbs_request.enter(der.SEQUENCE)
    cert_ids: list[CertID] = []
    extensions = _Extensions()
    while request_list.more():
        if len(cert_ids) == max_cert_ids:
            raise _malformed(f"more than {max_cert_ids} certificates in one request")
        request = request_list.enter(der.SEQUENCE)
        cert_ids.append(_cert_id(request))
        if request.more():
            # RFC 9654 §2.1 puts the nonce into requestExtensions; clients exist that put it here.
            extensions.nonce = _extensions(request.enter(_EXPLICIT_0)).nonce or extensions.nonce
            request.finish()
    if not cert_ids:
        raise _malformed("no certificate in the request")
    if tbs_request.more():
        of_single_request = extensions.nonce
        extensions = _extensions(tbs_request.enter(_EXPLICIT_2))
        extensions.nonce = extensions.nonce or of_single_request
        tbs_request.finish()
    signature = None
    if ocsp_request.more():
        signature = _signature(ocsp_request.enter(_EXPLICIT_0), encoded[start:stop], named=named)
        ocsp_request.finish()
    return OCSPRequest(tuple(cert_ids), extensions.nonce, extensions.preferred, signature)


def _cert_id(request: der.Reader) -> CertID:
    start = request.at
    cert_id = request.enter(der.SEQUENCE)
    algorithm_identifier = cert_id.element(der.SEQUENCE)
    name_hash = cert_id.content(der.OCTET_STRING)
    key_hash = cert_id.content(der.OCTET_STRING)
    serial_number = cert_id.content(der.INTEGER)
    cert_id.finish()
    if not serial_number:
        raise _malformed("a serial number without octets")
    algorithm = HASH_BY_ALGORITHM_IDENTIFIER.get(algorithm_identifier)
    if algorithm is None:
        _check_algorithm_identifier(algorithm_identifier)
        issuer = b""
    elif len(name_hash) == len(key_hash) == algorithm.digest_size:
        issuer = algorithm.oid_der + name_hash + key_hash
    else:
        raise _malformed("a hash whose length is not its algorithm's")
    return CertID(request.data[start : request.at], algorithm, issuer, der.minimal_integer(serial_number))


def _check_algorithm_identifier(encoded: bytes) -> None:
    """The form of an algorithm that no issuer is indexed under: an OID, and any one element after it."""
    algorithm = der.Reader(encoded).enter(der.SEQUENCE)
    der.dotted_oid(algorithm.content(der.OBJECT_IDENTIFIER))
    if algorithm.more():
        algorithm.head()
        algorithm.finish()


def _extensions(explicit: der.Reader) -> _Extensions:
    """Read an Extensions element; a critical one that is not known is an error (RFC 6960 §4.4)."""
    extensions = explicit.enter(der.SEQUENCE)
    explicit.finish()
    if not extensions.more():
        raise _malformed("an empty list of extensions")
    found = _Extensions()
    seen: set[bytes] = set()
    while extensions.more():
        extension = extensions.enter(der.SEQUENCE)
        oid = extension.element(der.OBJECT_IDENTIFIER)
        critical = extension.peek() == der.BOOLEAN and extension.boolean()
        start = extension.at
        value = extension.enter(der.OCTET_STRING)
        extension.finish()
        if oid in seen:
            raise _malformed("an extension twice")
        seen.add(oid)
        if oid == ID_PKIX_OCSP_NONCE:
            _check_nonce(value)
            found.nonce = extension.data[start : extension.at]
        elif oid == _ID_PKIX_OCSP_RESPONSE:
            _check_acceptable_responses(value)
        elif oid == _ID_PKIX_OCSP_PREF_SIG_ALGS:
            found.preferred = _preferred_algorithms(value)
        elif oid != _ID_PKIX_OCSP_SERVICE_LOCATOR:
            der.dotted_oid(der.Reader(oid).content(der.OBJECT_IDENTIFIER))  # what is not known must be one at least
            if critical:
                raise _malformed("a critical extension that is not known here")
    return found


def _check_nonce(value: der.Reader) -> None:
    """RFC 9654 §2.1: 1 to 128 octets, in an OCTET STRING of their own inside extnValue.

    Some clients leave the inner OCTET STRING out (the extnValue is the nonce); it is echoed as it came.
    """
    length = value.end - value.at
    if value.peek() == der.OCTET_STRING:
        try:
            _, start, stop = value.head()
        except der.DERError:
            pass  # a bare nonce that happens to begin like an OCTET STRING: its whole length counts
        else:
            if stop == value.end:
                length = stop - start
    if not 1 <= length <= 128:
        raise _malformed(f"a nonce of {length} octets")


def _check_acceptable_responses(value: der.Reader) -> None:
    """RFC 6960 §4.4.3: a client that does not take the basic response cannot be answered."""
    acceptable = value.enter(der.SEQUENCE)
    value.finish()
    types = []
    while acceptable.more():
        types.append(acceptable.element(der.OBJECT_IDENTIFIER))
    if ID_PKIX_OCSP_BASIC not in types:
        raise _malformed("the basic response type is not acceptable to the client")


def _preferred_algorithms(value: der.Reader) -> tuple[PreferredAlgorithm, ...]:
    """RFC 6960 §4.4.7.1: SEQUENCE OF SEQUENCE { sigIdentifier, pubKeyAlgIdentifier OPTIONAL }, the best first."""
    algorithms = value.enter(der.SEQUENCE)
    value.finish()
    preferred = []
    while algorithms.more():
        one = algorithms.enter(der.SEQUENCE)
        signature = one.enter(der.SEQUENCE).element(der.OBJECT_IDENTIFIER)
        key = key_parameters = b""
        if one.more():
            capability = one.enter(der.SEQUENCE)
            key = capability.element(der.OBJECT_IDENTIFIER)
            key_parameters = capability.data[capability.at : capability.end]
            one.finish()
        preferred.append(PreferredAlgorithm(signature, key, key_parameters))
    return tuple(preferred)


def _signature(explicit: der.Reader, tbs_request: bytes, *, named: bool) -> RequestSignature:
    signature = explicit.enter(der.SEQUENCE)
    explicit.finish()
    algorithm = signature.enter(der.SEQUENCE).element(der.OBJECT_IDENTIFIER)
    bits = signature.content(der.BIT_STRING)
    if bits[:1] != b"\x00":
        raise _malformed("a signature that is not whole octets")
    certs: list[bytes] = []
    if signature.more():
        certificates = signature.enter(_EXPLICIT_0)
        signature.finish()
        listed = certificates.enter(der.SEQUENCE)
        certificates.finish()
        while listed.more():
            certs.append(listed.element(der.SEQUENCE))
    return RequestSignature(tbs_request, algorithm, bits[1:], tuple(certs), named)
