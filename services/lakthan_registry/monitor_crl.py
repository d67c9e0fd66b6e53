"""A CA's published CRLs as the monitor reads them: with pyca/cryptography, on purpose not with the importer's reader.

Promises: what comes out was signed by one of the authority's keys, or by a CRL issuer on record for an indirect CRL;
the entries are the authority's own. Two readers that share no line would have to err in the same way to hide an error.

Trusted: nothing of a CRL before its signature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from lakthan import der
from lakthan.errors import LakthanError
from lakthan.store.records import CRLReason

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from lakthan.store.records import AuthorityRecord

_PEM = b"-----BEGIN"
# cryptography has types of its own for what it finds wrong.
_UNREADABLE = (
    ValueError,
    TypeError,  # of a Name with an attribute of a type that does not fit
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


class CRLUnusable(LakthanError):
    """The CRL says nothing that can be compared. The message says why."""


@dataclass(frozen=True, slots=True)
class Revocation:
    """When and why, of a CRL entry or an OCSP answer. No reason and `unspecified` are the same (RFC 5280 §5.3.1)."""

    time: datetime
    reason: CRLReason = CRLReason.UNSPECIFIED


@dataclass(frozen=True, slots=True)
class PublishedCRL:
    """One CRL. `entries`: by the serial number as the store keeps it. `issuer`: whose key signed it."""

    source: str
    number: int | None
    this_update: datetime
    next_update: datetime | None
    issuer: x509.Certificate
    entries: dict[bytes, Revocation]


def read_published(
    source: str, data: bytes, authority: AuthorityRecord, known: Sequence[AuthorityRecord]
) -> PublishedCRL:
    """Read and verify a CRL that is published for `authority`. `known`: every authority on record.

    Raises `CRLUnusable`.
    """
    try:
        crl = x509.load_pem_x509_crl(data) if data.startswith(_PEM) else x509.load_der_x509_crl(data)
        extensions = {type(each.value): each.value for each in crl.extensions}
        if x509.DeltaCRLIndicator in extensions:
            raise CRLUnusable(f"{source}: a delta CRL; the monitor compares complete ones")
        issuer = _signer(crl, authority, known)
        if issuer is None:
            raise CRLUnusable(f"{source}: no key of {authority.name}, nor of a CRL issuer on record, verifies it")
        number = extensions.get(x509.CRLNumber)
        return PublishedCRL(
            source,
            number.crl_number if isinstance(number, x509.CRLNumber) else None,
            crl.last_update_utc,
            crl.next_update_utc,
            issuer,
            dict(_entries(crl, authority)),
        )
    except _UNREADABLE as error:
        raise CRLUnusable(f"{source}: it cannot be read as a CRL ({error})") from error


def _signer(
    crl: x509.CertificateRevocationList, authority: AuthorityRecord, known: Sequence[AuthorityRecord]
) -> x509.Certificate | None:
    issuer_name = crl.issuer.public_bytes()
    for candidate in (authority, *known):
        for encoded in candidate.certificates:
            certificate = x509.load_der_x509_certificate(encoded)
            if certificate.subject.public_bytes() != issuer_name:
                continue
            try:
                if crl.is_signature_valid(certificate.public_key()):  # type: ignore[arg-type]
                    return certificate
            except (InvalidSignature, TypeError, UnsupportedAlgorithm):
                continue
    return None


def _entries(crl: x509.CertificateRevocationList, authority: AuthorityRecord) -> Iterator[tuple[bytes, Revocation]]:
    """RFC 5280 §5.3.3: a certificateIssuer holds for the entries after it; before the first it is the CRL's issuer."""
    ours = crl.issuer.public_bytes() in authority.names
    for entry in crl:
        reason = CRLReason.UNSPECIFIED
        for extension in entry.extensions:
            if isinstance(extension.value, x509.CRLReason):
                reason = CRLReason.from_label(extension.value.reason.value)
            elif isinstance(extension.value, x509.CertificateIssuer):
                names = extension.value.get_values_for_type(x509.DirectoryName)
                ours = any(name.public_bytes() in authority.names for name in names)
        if ours:
            yield der.integer_content(entry.serial_number), Revocation(entry.revocation_date_utc, reason)
