"""What may come back for an OCSPRequest, however hostile: a strict reader of replies, and a judge who knows the store.

A reply is right when it is a small HTTP error, or an OCSPResponse that is well-formed to its last octet and says no
more than the store knows: each CertID is echoed octet for octet and in order, *good* is only for what was announced,
the nonce is the request's own, and a refusal carries nothing but its status. Everything else is `Wrong`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from asn1crypto import ocsp as asn1_ocsp
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import ocsp

from lakthan import der
from lakthan_ocsp.syntax import OCSPRequest, OCSPResponseStatus, RequestError, parse_request
from support.pki import Issued

MEDIA_TYPE = "application/ocsp-response"
GOOD, REVOKED, UNKNOWN = 0x80, 0xA1, 0x82
LABELS = {GOOD: "good", REVOKED: "revoked", UNKNOWN: "unknown"}
_REFUSALS = {
    der.sequence(der.encode(der.ENUMERATED, bytes((status,)))): status for status in OCSPResponseStatus if status
}
_HTTP_ERRORS = {400, 404, 413, 414}
_NONCE = der.object_identifier("1.3.6.1.5.5.7.48.1.2")
_BASIC = der.object_identifier("1.3.6.1.5.5.7.48.1.1")


class Wrong(AssertionError):
    """A reply that must not be."""


@dataclass(frozen=True)
class HTTPReply:
    """What came over the wire."""

    status: int
    media_type: str
    body: bytes


@dataclass
class ResponseData:
    """The parts of a successful answer that depend on the request."""

    singles: list[tuple[bytes, int]]
    nonce: bytes | None
    tbs: bytes


def read_response(body: bytes) -> ResponseData:
    """Read a successful OCSPResponse to its last octet (RFC 6960 §4.2.1). Raises `DERError`."""
    outer = der.Reader(body)
    response = outer.enter(der.SEQUENCE)
    outer.finish()
    if response.content(der.ENUMERATED) != b"\x00":
        raise Wrong("an unsuccessful OCSPResponse with more in it than its status")
    explicit = response.enter(0xA0)
    response.finish()
    response_bytes = explicit.enter(der.SEQUENCE)
    explicit.finish()
    if response_bytes.element(der.OBJECT_IDENTIFIER) != _BASIC:
        raise Wrong("not the basic response type")
    octets = response_bytes.enter(der.OCTET_STRING)
    response_bytes.finish()
    basic = octets.enter(der.SEQUENCE)
    octets.finish()
    tbs = basic.element(der.SEQUENCE)
    basic.enter(der.SEQUENCE)
    basic.content(der.BIT_STRING)
    certs = basic.enter(0xA0)
    basic.finish()
    certs.enter(der.SEQUENCE)
    certs.finish()
    return _response_data(tbs)


def _response_data(tbs: bytes) -> ResponseData:
    data = der.Reader(tbs).enter(der.SEQUENCE)
    data.enter(0xA2)
    _time(data)
    responses = data.enter(der.SEQUENCE)
    singles = []
    while responses.more():
        single = responses.enter(der.SEQUENCE)
        cert_id = single.element(der.SEQUENCE)
        tag, _, _ = single.head()
        _time(single)
        _time(single.enter(0xA0))
        if single.more():
            _extensions(single.enter(0xA1))
        single.finish()
        singles.append((cert_id, tag))
    nonce = _extensions(data.enter(0xA1)) if data.more() else None
    data.finish()
    return ResponseData(singles, nonce, tbs)


def _time(reader: der.Reader) -> None:
    content = reader.content(der.GENERALIZED_TIME)
    if len(content) != 15 or not content[:14].isdigit() or content[14:] != b"Z":
        raise Wrong(f"a time written as {content!r}")


def _extensions(explicit: der.Reader) -> bytes | None:
    """Check the form; give the nonce's extnValue if there is one."""
    extensions = explicit.enter(der.SEQUENCE)
    explicit.finish()
    nonce = None
    while extensions.more():
        extension = extensions.enter(der.SEQUENCE)
        oid = extension.element(der.OBJECT_IDENTIFIER)
        if extension.peek() == der.BOOLEAN:
            extension.boolean()
        value = extension.element(der.OCTET_STRING)
        extension.finish()
        if oid == _NONCE:
            nonce = value
    return nonce


class Judge:
    """Knows the store. `statuses`: CertStatus by `CertID.issuer` and serial number; of all else nothing is known."""

    def __init__(
        self, statuses: Mapping[tuple[bytes, bytes], int], responders: Mapping[bytes, Issued], *, max_cert_ids: int = 50
    ) -> None:
        self._statuses = statuses
        self._responders = responders
        self._max_cert_ids = max_cert_ids

    def judge(self, octets: bytes, reply: HTTPReply) -> str:
        """What the reply says, in a word for the statistics. Raises `Wrong`."""
        if reply.status in _HTTP_ERRORS:
            return f"HTTP {reply.status}"
        if reply.status != 200 or reply.media_type != MEDIA_TYPE:
            raise Wrong(f"HTTP status {reply.status} with {reply.media_type}")
        try:
            request = parse_request(octets, max_cert_ids=self._max_cert_ids)
        except RequestError as error:
            if _REFUSALS.get(reply.body) is not error.status:
                raise Wrong(f"{error.status.label} is due ({error}), and {reply.body.hex()} came") from error
            return error.status.label
        refusal = _REFUSALS.get(reply.body)
        if refusal is None:
            return self._successful(request, reply.body)
        if refusal is not OCSPResponseStatus.UNAUTHORIZED or self._is_ours(request):
            raise Wrong(f"a request that was understood got {refusal.label}")
        return refusal.label

    def _is_ours(self, request: OCSPRequest) -> bool:
        """All of its issuers are one and the same authority of ours, whatever hash names it."""
        named = {self._responders.get(cert_id.issuer) for cert_id in request.cert_ids}
        return len(named) == 1 and None not in named

    def _successful(self, request: OCSPRequest, body: bytes) -> str:
        try:
            data = read_response(body)
        except der.DERError as error:
            raise Wrong(f"not DER: {error}") from error
        if [cert_id for cert_id, _ in data.singles] != [cert_id.encoded for cert_id in request.cert_ids]:
            raise Wrong("the CertIDs of the answer are not those of the request")
        if data.nonce != request.nonce:
            raise Wrong("the nonce of the answer is not that of the request")
        for cert_id, (_, tag) in zip(request.cert_ids, data.singles, strict=True):
            expected = self._statuses.get((cert_id.issuer, cert_id.serial_number), UNKNOWN)
            if tag != expected:
                raise Wrong(f"{LABELS.get(tag, hex(tag))} where {LABELS[expected]} is on record")
        if len(data.singles) > 1:
            return "successful, several"
        return LABELS[data.singles[0][1]]

    def ask_others(self, octets: bytes, reply: HTTPReply) -> None:
        """asn1crypto opens every field, and pyca verifies the signature. Raises `Wrong` and what those two raise."""
        if reply.media_type != MEDIA_TYPE:
            return
        response = asn1_ocsp.OCSPResponse.load(reply.body, strict=True)
        if response["response_status"].native != "successful":
            if response["response_bytes"].native is not None:
                raise Wrong("a refusal that carries an answer")
            return
        if response.response_data["responses"].native is None:
            raise Wrong("asn1crypto finds no answer")
        request = parse_request(octets, max_cert_ids=self._max_cert_ids)
        if not all(der.encode(der.INTEGER, each.serial_number) in each.encoded for each in request.cert_ids):
            return  # a serial number with needless octets came back as it was, and pyca does not read those
        read = ocsp.load_der_ocsp_response(reply.body)
        key = self._responders[request.cert_ids[0].issuer].key.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        key.verify(read.signature, read_response(reply.body).tbs, ec.ECDSA(hashes.SHA256()))
