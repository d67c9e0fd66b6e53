"""Was the unit, or a CA above it, revoked: asked of OCSP, and of the CRL where OCSP does not tell (RFC 3161 §4).

Promises: a token outlives the revocation of its unit only as RFC 3161 §4 allows: the reason is on record and no
compromise, and genTime is before it. What nobody answers fails: who asks for this check wants to know.

Trusted: nobody. OCSP answers and CRLs are verified before a word of them counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

from asn1crypto import x509 as asn1_x509
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from lakthan_cli.exchange import TransportError
from lakthan_cli.ocsp.certificate import Certificate, Unreadable, reading
from lakthan_cli.ocsp.checks import Check, Outcome
from lakthan_cli.ocsp.extensions import moment
from lakthan_cli.ocsp.message import CRL_REASON
from lakthan_cli.ocsp.query import Asker, Options, Verdict
from lakthan_cli.ocsp.transport import Transport
from lakthan_cli.tsa.checks import SKEW, Verification

# RFC 3161 §4: revoked for one of these, what was stamped before stays good.
_HARMLESS = frozenset({"unspecified", "affiliationChanged", "superseded", "cessationOfOperation"})
_REASONS = {flag: CRL_REASON[number] for number, flag in enumerate(
    (
        x509.ReasonFlags.unspecified,
        x509.ReasonFlags.key_compromise,
        x509.ReasonFlags.ca_compromise,
        x509.ReasonFlags.affiliation_changed,
        x509.ReasonFlags.superseded,
        x509.ReasonFlags.cessation_of_operation,
        x509.ReasonFlags.certificate_hold,
    )
)}  # fmt: skip
_REASONS[x509.ReasonFlags.privilege_withdrawn] = "privilegeWithdrawn"
_REASONS[x509.ReasonFlags.aa_compromise] = "aACompromise"
# All that pyca raises about a CRL or a certificate that it does not take.
_MALFORMED = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension)
_CRL_HEEDED = frozenset({x509.CRLNumber.oid, x509.AuthorityKeyIdentifier.oid, x509.IssuingDistributionPoint.oid})


@dataclass(frozen=True, slots=True)
class _Fact:
    """What a source says. `since`: None for a certificate that is not revoked. `remark`: why it is not all."""

    source: str
    since: datetime | None = None
    reason: str | None = None
    remark: str | None = None


async def checks(
    verification: Verification, gen_time: datetime, others: Sequence[Certificate], transport: Transport
) -> Sequence[Check]:
    """One check for each certificate of the path below the anchor. Without a path there is nobody to ask for."""
    path = verification.path
    if len(path) < 2:
        return [Check("revocation", Outcome.FAILED, "not asked: no path leads to a trust anchor")]
    found = []
    for certificate, issuer in pairwise(path):
        try:
            fact = await _ask(certificate, issuer, [path[-1]], others, transport)
        except TransportError as error:
            found.append(Check("revocation", Outcome.FAILED, f"{certificate.name}: nobody tells. {error}"))
        else:
            found.append(_judge(certificate, fact, gen_time))
    return found


def _judge(certificate: Certificate, fact: _Fact, gen_time: datetime) -> Check:
    name = certificate.name
    if fact.since is None:
        outcome = Outcome.OK if fact.remark is None else Outcome.NOTE
        return Check("revocation", outcome, f"{name}: not revoked, says {fact.source}{_more(fact.remark)}")
    words = f"{name}: revoked since {moment(fact.since)}, {fact.reason or 'no reason on record'}, says {fact.source}"
    if fact.reason in _HARMLESS and gen_time < fact.since:
        return Check("revocation", Outcome.NOTE, f"{words}; the token is older, and stays good (RFC 3161 §4)")
    return Check("revocation", Outcome.FAILED, words)


def _more(remark: str | None) -> str:
    return "" if remark is None else f"; {remark}"


async def _ask(
    certificate: Certificate,
    issuer: Certificate,
    anchors: Sequence[Certificate],
    others: Sequence[Certificate],
    transport: Transport,
) -> _Fact:
    """Raises `TransportError` when neither OCSP nor a CRL tells."""
    problems = []
    if certificate.ocsp_urls:
        options = Options(issuer=[issuer, *others], trust=anchors)
        result = await Asker(options, transport).ask(Path(certificate.name), [certificate])
        single = result.verification and result.verification.single
        if single and result.verdict in (Verdict.GOOD, Verdict.REVOKED):
            expired = [each.why for each in result.verification.checks if each.name == "expired"]  # type: ignore[union-attr]
            return _Fact(
                result.url or "OCSP", single.revocation_time, single.revocation_reason, expired[0] if expired else None
            )
        problems.append(f"OCSP: {result.problem or result.verdict.label}")
    for url in crl_urls(certificate):
        try:
            return from_crl(await transport.fetch(url), url, certificate, issuer, datetime.now(UTC))
        except TransportError as error:
            problems.append(f"{url}: {error}")
    raise TransportError("; ".join(problems) or "its certificate names neither an OCSP responder nor a CRL")


def crl_urls(certificate: Certificate) -> Sequence[str]:
    """Where whole CRLs of the issuer itself are (RFC 5280 §4.2.1.13)."""
    try:
        with reading("a cRLDistributionPoints"):
            points = asn1_x509.Certificate.load(certificate.encoded).crl_distribution_points
            return [each.url for each in points if each.url and not each["reasons"].native]
    except Unreadable:
        return []


def from_crl(encoded: bytes, url: str, certificate: Certificate, issuer: Certificate, now: datetime) -> _Fact:
    """What a CRL says (RFC 5280 §6.3). Raises `TransportError` for one that says nothing about this certificate."""
    try:
        crl = x509.load_der_x509_crl(encoded)
        authority = x509.load_der_x509_certificate(issuer.encoded)
        signed = crl.issuer == authority.subject and crl.is_signature_valid(authority.public_key())  # type: ignore[arg-type]
        critical = [each for each in crl.extensions if each.critical and each.oid not in _CRL_HEEDED]
        entry = crl.get_revoked_certificate_by_serial_number(certificate.serial_number)
    except _MALFORMED as error:
        raise TransportError(f"what is there is not a CRL that can be read: {error}") from error
    if not signed:
        raise TransportError("its CRL is not signed by the issuer of the certificate")
    if issuer.key_usage is not None and "crl_sign" not in issuer.key_usage:
        raise TransportError(f"the keyUsage of {issuer.name} does not allow it to sign CRLs")
    if critical or not _covers(crl, certificate):
        raise TransportError("its CRL is a partial one, or one for other certificates")
    if crl.next_update_utc is None or crl.next_update_utc < now - SKEW or crl.last_update_utc > now + SKEW:
        raise TransportError("its CRL is not of now")
    remark = None
    if certificate.not_after < now:
        remark = "the certificate has expired, and a CRL need not list it any more"
    if entry is None:
        return _Fact(url, remark=remark)
    try:
        reason = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
    except x509.ExtensionNotFound:
        return _Fact(url, entry.revocation_date_utc)
    return _Fact(url, entry.revocation_date_utc, _REASONS.get(reason, reason.value))


def _covers(crl: x509.CertificateRevocationList, certificate: Certificate) -> bool:
    try:
        point = crl.extensions.get_extension_for_class(x509.IssuingDistributionPoint).value
    except x509.ExtensionNotFound:
        return True
    if point.indirect_crl or point.only_some_reasons or point.only_contains_attribute_certs:
        return False
    return not (point.only_contains_ca_certs if not certificate.is_ca else point.only_contains_user_certs)
