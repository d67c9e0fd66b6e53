"""CRLs for tests: made octet by octet where they must be odd, signed by a key of `support.pki`.

Independent of the reader under test: `lakthan.der` only encodes here, and pyca and OpenSSL judge the results.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.serialization import Encoding

from lakthan import der
from lakthan.certificates import CertificateView
from support.pki import Issued

_ECDSA_WITH_SHA256 = der.sequence(der.object_identifier("1.2.840.10045.4.3.2"))
_REVOKED_AT = datetime(2025, 3, 4, 5, 6, 7, tzinfo=UTC)


def utc_time(instant: datetime) -> bytes:
    """UTCTime."""
    return der.encode(0x17, instant.strftime("%y%m%d%H%M%SZ").encode())


def extension(oid: str, value: bytes, *, critical: bool = False) -> bytes:
    """Extension."""
    return der.sequence(
        der.object_identifier(oid), der.encode(der.BOOLEAN, b"\xff") if critical else b"", der.octet_string(value)
    )


def reason_extension(reason: int, *, critical: bool = False) -> bytes:
    """The reasonCode of an entry."""
    return extension("2.5.29.21", der.encode(der.ENUMERATED, bytes((reason,))), critical=critical)


def entry(
    serial_number: bytes, reason: int | None = None, *, at: datetime = _REVOKED_AT, extensions: Iterable[bytes] = ()
) -> bytes:
    """One entry. `serial_number`: content octets, written as they are."""
    every = ([] if reason is None else [reason_extension(reason)]) + list(extensions)
    return der.sequence(der.encode(der.INTEGER, serial_number), utc_time(at), der.sequence(*every) if every else b"")


@dataclass(frozen=True)
class Listed:
    """What a CRL is made of. `number`, `base`: CRLNumber and BaseCRLNumber; `scope`: the value of the
    issuingDistributionPoint; `more`: further extensions of the CRL.
    """

    entries: Iterable[bytes] = ()
    number: int | None = 1
    base: int | None = None
    scope: bytes | None = None
    this_update: datetime | None = None
    next_update: datetime | None = None
    more: Iterable[bytes] = ()


def new_crl(issuer: Issued, listed: Listed) -> bytes:
    """The CRL, DER, signed with ECDSA and SHA-256. Without instants it began an hour ago and ends in a week."""
    now = datetime.now(UTC).replace(microsecond=0)
    extensions = list(listed.more)
    if listed.number is not None:
        extensions.append(extension("2.5.29.20", der.integer(listed.number)))
    if listed.base is not None:
        extensions.append(extension("2.5.29.27", der.integer(listed.base), critical=True))
    if listed.scope is not None:
        extensions.append(extension("2.5.29.28", listed.scope, critical=True))
    entries = b"".join(listed.entries)
    tbs = der.sequence(
        der.integer(1),
        _ECDSA_WITH_SHA256,
        CertificateView.of(issuer.certificate).subject,
        utc_time(listed.this_update or now - timedelta(hours=1)),
        utc_time(listed.next_update or now + timedelta(days=7)),
        der.encode(der.SEQUENCE, entries) if entries else b"",
        der.encode(0xA0, der.sequence(*extensions)) if extensions else b"",
    )
    assert isinstance(issuer.key, ec.EllipticCurvePrivateKey)
    return der.sequence(tbs, _ECDSA_WITH_SHA256, der.bit_string(issuer.key.sign(tbs, ec.ECDSA(hashes.SHA256()))))


def pyca_crl(issuer: Issued, *, pss: bool = False, digest: hashes.HashAlgorithm | None = None) -> bytes:
    """A CRL of one entry that pyca/cryptography makes and signs as it does for this kind of key."""
    now = datetime.now(UTC).replace(microsecond=0)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(now - timedelta(hours=1))
        .next_update(now + timedelta(days=7))
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_revoked_certificate(
            x509.RevokedCertificateBuilder().serial_number(4711).revocation_date(_REVOKED_AT).build()
        )
    )
    made = builder.sign(
        issuer.key,
        digest,  # type: ignore[arg-type]
        rsa_padding=padding.PSS(padding.MGF1(hashes.SHA256()), 32) if pss else None,
    )
    return made.public_bytes(Encoding.DER)
