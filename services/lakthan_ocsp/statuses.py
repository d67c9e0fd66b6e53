"""What is said of one certificate: its CertStatus and the extensions of its SingleResponse, from its record.

The rules of one place: who was never announced is never good; a revoked CA takes its certificates along; an extension
says only what is on record.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from lakthan import der
from lakthan.algorithms import HashAlgorithm
from lakthan.certificates import CertificateView
from lakthan.store.records import CertStatus, CRLReason
from lakthan_ocsp import responder
from lakthan_ocsp.profiles import NonIssued
from lakthan_ocsp.syntax import CertStatusChoice

if TYPE_CHECKING:
    from lakthan.store.records import AuthorityRecord, CRLSource, StatusRecord
    from lakthan_ocsp.profiles import Profile

# RFC 6960 §2.2: what a serial number that was never issued is revoked with.
_NEVER_ISSUED = responder.revoked(datetime(1970, 1, 1, tzinfo=UTC), CRLReason.CERTIFICATE_HOLD)

_ID_PKIX_OCSP_CRL = der.object_identifier("1.3.6.1.5.5.7.48.1.3")
_ID_PKIX_OCSP_ARCHIVE_CUTOFF = der.object_identifier("1.3.6.1.5.5.7.48.1.6")
_ID_CE_INVALIDITY_DATE = der.object_identifier("2.5.29.24")
# CertHash of the Common PKI profile: proof that the responder has seen the very certificate.
_ID_COMMONPKI_CERT_HASH = der.object_identifier("1.3.36.8.3.13")


@dataclass(frozen=True, slots=True)
class Said:
    """A CertStatus with its singleExtensions, both encoded, and its choice as the metrics spell it."""

    outcome: str
    cert_status: bytes
    single_extensions: bytes = b""


_UNKNOWN = Said(CertStatusChoice.UNKNOWN.value, responder.UNKNOWN)


class AuthorityStatements:
    """What one responder says of the certificates of one authority, by the authority's profile."""

    def __init__(self, authority: AuthorityRecord, profile: Profile, *, non_issued: NonIssued, cert_hash: bool) -> None:
        self._non_issued = non_issued
        self._cert_hash = cert_hash
        self._keep_expired = profile.keep_expired
        self._of_all = b""
        if profile.archive_cutoff and authority.certificates:
            views = [CertificateView.from_der(encoded) for encoded in authority.certificates]
            self._of_all = archive_cutoff(min(view.not_before for view in views))
        self._of_crl = crl_id(authority.crl) if authority.crl else b""
        # What is said of nearly all certificates.
        self._good = Said(CertStatusChoice.GOOD.value, responder.GOOD, _single_extensions(self._of_all + self._of_crl))
        self._revoked_with_all: Said | None = None
        if authority.revocation_time is not None:
            self._revoked_with_all = self._revoked(
                responder.revoked(authority.revocation_time, authority.revocation_reason), self._of_all
            )

    def of(self, record: StatusRecord | None, now: datetime) -> Said | None:
        """The statement about a certificate with this record (None: it was never announced) at `now`.

        None when this responder has no authority to say anything about it (RFC 9919 §3.2.3): the profile answers
        non-issued or expired certificates so.
        """
        if record is None:
            return self._of_non_issued()
        if not self._keep_expired and record.not_after is not None and record.not_after < now:
            return None
        of_record = self._of_record(record)
        if not of_record and record.cert_status is CertStatus.GOOD and self._revoked_with_all is None:
            return self._good
        extensions = self._of_all + of_record
        if record.cert_status is CertStatus.REVOKED and record.revocation_time is not None:
            finally_revoked = not (record.held and self._revoked_with_all)
            if finally_revoked:
                cert_status = responder.revoked(record.revocation_time, record.revocation_reason)
                return self._revoked(cert_status, extensions + self._of_crl)
        if self._revoked_with_all is not None:
            return self._revoked_with_all
        if record.cert_status is not CertStatus.GOOD:
            raise AssertionError("a revoked record without its time: the schema forbids it")
        return Said(CertStatusChoice.GOOD.value, responder.GOOD, _single_extensions(extensions + self._of_crl))

    def _of_non_issued(self) -> Said | None:
        if self._revoked_with_all is not None:
            return self._revoked_with_all
        if self._non_issued is NonIssued.UNAUTHORIZED:
            return None
        if self._non_issued is NonIssued.REVOKED:
            # RFC 6960 §2.2: no CrlID and no CRL entry extension with it.
            return self._revoked(_NEVER_ISSUED, self._of_all)
        return _UNKNOWN

    def _of_record(self, record: StatusRecord) -> bytes:
        extensions = b""
        if self._cert_hash and record.certificate_sha256 is not None:
            extensions += cert_hash(record.certificate_sha256)
        if record.invalidity_date is not None:
            extensions += invalidity_date(record.invalidity_date)
        return extensions

    @staticmethod
    def _revoked(cert_status: bytes, extensions: bytes) -> Said:
        return Said(CertStatusChoice.REVOKED.value, cert_status, _single_extensions(extensions))


def _single_extensions(extensions: bytes) -> bytes:
    return der.encode(0xA1, der.sequence(extensions)) if extensions else b""


def archive_cutoff(instant: datetime) -> bytes:
    """ArchiveCutoff: records reach back to this instant (RFC 6960 §4.4.4)."""
    return der.sequence(_ID_PKIX_OCSP_ARCHIVE_CUTOFF, der.octet_string(der.generalized_time(instant)))


def crl_id(crl: CRLSource) -> bytes:
    """CrlID: the CRL that the status comes from, by what is known of it (RFC 6960 §4.4.2)."""
    known = der.encode(0xA2, der.generalized_time(crl.this_update))
    if crl.crl_number is not None:
        known = der.encode(0xA1, der.encode(der.INTEGER, crl.crl_number)) + known
    if crl.url is not None:
        known = der.encode(0xA0, der.encode(0x16, crl.url.encode("ascii"))) + known
    return der.sequence(_ID_PKIX_OCSP_CRL, der.octet_string(der.sequence(known)))


def invalidity_date(instant: datetime) -> bytes:
    """The CRL entry extension of that name, as RFC 6960 §4.4.5 lets answers carry it (RFC 5280 §5.3.2)."""
    return der.sequence(_ID_CE_INVALIDITY_DATE, der.octet_string(der.generalized_time(instant)))


def cert_hash(certificate_sha256: bytes) -> bytes:
    """CertHash ::= SEQUENCE { hashAlgorithm, certificateHash } of the Common PKI profile."""
    value = der.sequence(HashAlgorithm.SHA_256.algorithm_identifier, der.octet_string(certificate_sha256))
    return der.sequence(_ID_COMMONPKI_CERT_HASH, der.octet_string(value))
