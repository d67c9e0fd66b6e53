"""The extensions of OCSP messages: their names, what is in them, and which a client understands (RFC 6960 §4.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime

from asn1crypto import algos, core, ocsp
from asn1crypto import x509 as asn1_x509

from lakthan_cli.ocsp import signature
from lakthan_cli.ocsp.certificate import Unreadable, name_text, reading
from lakthan_cli.ocsp.message import CRL_REASON, Extension

NONCE = "1.3.6.1.5.5.7.48.1.2"
CRL_ID = "1.3.6.1.5.5.7.48.1.3"
ACCEPTABLE_RESPONSES = "1.3.6.1.5.5.7.48.1.4"
ARCHIVE_CUTOFF = "1.3.6.1.5.5.7.48.1.6"
SERVICE_LOCATOR = "1.3.6.1.5.5.7.48.1.7"
PREFERRED_SIGNATURE_ALGORITHMS = "1.3.6.1.5.5.7.48.1.8"
EXTENDED_REVOKE = "1.3.6.1.5.5.7.48.1.9"
REASON_CODE = "2.5.29.21"
INVALIDITY_DATE = "2.5.29.24"
CERTIFICATE_ISSUER = "2.5.29.29"
CERT_HASH = "1.3.36.8.3.13"
SIGNED_CERTIFICATE_TIMESTAMPS = "1.3.6.1.4.1.11129.2.4.5"

NAMES = {
    NONCE: "nonce",
    CRL_ID: "crlID",
    ACCEPTABLE_RESPONSES: "acceptableResponses",
    ARCHIVE_CUTOFF: "archiveCutoff",
    SERVICE_LOCATOR: "serviceLocator",
    PREFERRED_SIGNATURE_ALGORITHMS: "preferredSignatureAlgorithms",
    EXTENDED_REVOKE: "extendedRevoke",
    REASON_CODE: "reasonCode",
    INVALIDITY_DATE: "invalidityDate",
    CERTIFICATE_ISSUER: "certificateIssuer",
    CERT_HASH: "certHash",
    SIGNED_CERTIFICATE_TIMESTAMPS: "signedCertificateTimestampList",
}
# What may be critical because it is heeded here. certificateIssuer is not in it: it would make the answer one about
# another CA's certificate (RFC 5280 §5.3.3).
UNDERSTOOD_IN_RESPONSE = frozenset({NONCE, EXTENDED_REVOKE})
UNDERSTOOD_IN_SINGLE = frozenset({CRL_ID, ARCHIVE_CUTOFF, REASON_CODE, INVALIDITY_DATE, CERT_HASH})

Decoded = str | Mapping[str, str | int | None] | Sequence[str] | None


class CertHash(core.Sequence):  # type: ignore[misc]
    """The hash of the certificate that an answer is about (Common PKI part 4 §3.1.2)."""

    _fields = [("hash_algorithm", algos.DigestAlgorithm), ("certificate_hash", core.OctetString)]  # noqa: RUF012


def find(extensions: Iterable[Extension], oid: str) -> Extension | None:
    """The first extension of this identifier."""
    return next((extension for extension in extensions if extension.oid == oid), None)


def decode(extension: Extension) -> Decoded:
    """What is in it, for people. Raises `Unreadable`; what is not known comes as hexadecimal."""
    decoder = _DECODERS.get(extension.oid)
    if decoder is None:
        return extension.value.hex()
    with reading(f"a {NAMES[extension.oid]}"):
        return decoder(extension.value)


def nonce_octets(extension: Extension) -> bytes:
    """The nonce itself. Some programs leave out the OCTET STRING inside extnValue; then it is the whole value."""
    try:
        with reading("a nonce"):
            return bytes(core.OctetString.load(extension.value, strict=True))
    except Unreadable:
        return extension.value


def generalized_time(extension: Extension) -> datetime:
    """The instant in an archiveCutoff or an invalidityDate. Raises `Unreadable`."""
    with reading(f"a {NAMES[extension.oid]}"):
        instant = core.GeneralizedTime.load(extension.value, strict=True).native
        if not isinstance(instant, datetime):
            raise Unreadable(f"the time {instant}, which no calendar has")
        return instant


def cert_hash(extension: Extension) -> tuple[str, bytes]:
    """The hash algorithm's name in `hashlib` and the hash in a certHash. Raises `Unreadable`."""
    with reading("a certHash"):
        value = CertHash.load(extension.value, strict=True)
        return str(value["hash_algorithm"]["algorithm"].native), bytes(value["certificate_hash"])


def moment(instant: datetime) -> str:
    """An instant in UTC, whole seconds, as ISO 8601 writes it."""
    return f"{instant:%Y-%m-%dT%H:%M:%SZ}"


def _time(value: bytes) -> str:
    return moment(core.GeneralizedTime.load(value, strict=True).native)


def _nonce(value: bytes) -> Decoded:
    octets = nonce_octets(Extension(NONCE, critical=False, value=value))
    return {"octets": len(octets), "hex": octets.hex()}


def _crl_id(value: bytes) -> Decoded:
    crl_id = ocsp.CrlId.load(value, strict=True).native
    time = crl_id["crl_time"]
    return {"crlUrl": crl_id["crl_url"], "crlNum": crl_id["crl_num"], "crlTime": time and moment(time)}


def _acceptable(value: bytes) -> Decoded:
    types = [each.dotted for each in ocsp.AcceptableResponses.load(value, strict=True)]
    return ["id-pkix-ocsp-basic" if each == "1.3.6.1.5.5.7.48.1.1" else each for each in types]


def _preferred(value: bytes) -> Decoded:
    return [
        signature.label(each["sig_identifier"].dump())
        for each in ocsp.PreferredSignatureAlgorithms.load(value, strict=True)
    ]


def _service_locator(value: bytes) -> Decoded:
    located = ocsp.ServiceLocator.load(value, strict=True)
    return {
        "issuer": name_text(located["issuer"]),
        "locator": ", ".join(str(each["access_location"].native) for each in located["locator"]),
    }


def _null(value: bytes) -> None:
    core.Null.load(value, strict=True)


def _reason(value: bytes) -> str:
    number = int.from_bytes(core.Enumerated.load(value, strict=True).contents, "big", signed=True)
    return CRL_REASON.get(number, f"reason {number}")


def _cert_hash(value: bytes) -> Decoded:
    algorithm, digest = cert_hash(Extension(CERT_HASH, critical=False, value=value))
    return {"hashAlgorithm": algorithm, "certificateHash": digest.hex()}


def _issuers(value: bytes) -> Decoded:
    names = asn1_x509.GeneralNames.load(value, strict=True)
    return [name_text(each.chosen) if each.name == "directory_name" else str(each.native) for each in names]


_DECODERS: dict[str, Callable[[bytes], Decoded]] = {
    NONCE: _nonce,
    CRL_ID: _crl_id,
    ACCEPTABLE_RESPONSES: _acceptable,
    ARCHIVE_CUTOFF: _time,
    SERVICE_LOCATOR: _service_locator,
    PREFERRED_SIGNATURE_ALGORITHMS: _preferred,
    EXTENDED_REVOKE: _null,
    REASON_CODE: _reason,
    INVALIDITY_DATE: _time,
    CERTIFICATE_ISSUER: _issuers,
    CERT_HASH: _cert_hash,
}
