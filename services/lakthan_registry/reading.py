"""From the changes that a CA sends to changes that the store can record. Pure: values in, values out, or a `Problem`.

It finds everything that is wrong with a batch at once and says where. What it lets through is well formed: each
certificate is named once, a certificate that was sent was signed by the authority, no time lies in the future, and a
reason stands only where there may be one. Whether the change fits what is on record is the database's question.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, timedelta
from typing import TYPE_CHECKING

from cryptography import x509

from lakthan import der
from lakthan.certificates import CertificateView
from lakthan.store.records import Change, ChangeRequest, CRLReason
from lakthan_registry.problems import FieldError, Problem

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from lakthan_registry.messages import ChangeItem

# Two clocks are never quite the same. What is this little ahead was meant to be now; the store is told now.
_CLOCK_DIFFERENCE = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Issuer:
    """The authority that a credential is bound to: what its certificates are recognised by."""

    id: int
    name: str
    certificates: tuple[CertificateView, ...]


class NotTheIssuer(Exception):
    """A certificate was not issued by the authority. The text says by whom instead."""


def read_certificate(text: str) -> CertificateView:
    """One certificate from PEM, or DER in base64. Raises `ValueError` that says what to send instead."""
    begun = text.count("-----BEGIN")
    if begun > 1:
        raise ValueError(f"{begun} certificates in one field; send exactly one")
    try:
        if begun:
            view = CertificateView.of(x509.load_pem_x509_certificate(text.encode()))
        else:
            view = CertificateView.from_der(base64.b64decode("".join(text.split()), validate=True))
        view.not_after  # noqa: B018 - a year that is none shows when it is read
        view.certificate.public_key()
    except binascii.Error as error:
        raise ValueError("neither PEM nor base64; send the certificate as openssl x509 prints it") from error
    except Exception as error:  # cryptography has types of its own for keys and versions that it does not know
        raise ValueError(f"this is no certificate that can be read: {error}") from error
    return view


def check_issuer(view: CertificateView, issuer: Issuer) -> None:
    """Raise `NotTheIssuer` unless one of the authority's keys signed the certificate, under one of its names."""
    if not any(view.issued_by(certificate) for certificate in issuer.certificates):
        raise NotTheIssuer(f"issued by {view.issuer_name}, not by a key of the authority {issuer.name}")


def serial_content(text: str) -> bytes:
    """A hexadecimal serial number as the store keeps it."""
    return der.integer_content(int(text, 16))


def serial_text(content: bytes) -> str:
    """The other way round, in whole octets as `openssl x509 -serial` shows it."""
    number = int.from_bytes(content, "big", signed=True)
    text = f"{abs(number):X}"
    return ("-" if number < 0 else "") + text.rjust(len(text) + len(text) % 2, "0")


class _Findings:
    """What is wrong with a batch so far."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.errors: list[FieldError] = []
        self.foreign: list[FieldError] = []

    def error(self, index: int, field: str, detail: str, *, foreign: bool = False) -> FieldError:
        """Note one; `foreign` ones are another authority's business."""
        pointer = f"{self._prefix}/{index}/{field}" if self._prefix else f"/{field}"
        found = FieldError(pointer, detail, field, index if self._prefix else None)
        (self.foreign if foreign else self.errors).append(found)
        return found


def read_changes(
    items: Sequence[ChangeItem], issuer: Issuer, now: datetime, *, prefix: str = "/changes"
) -> list[ChangeRequest]:
    """The changes to record, in their order. `prefix`: where the items are in the body; '' for a single one.

    Raises `Problem`: wrong-authority, invalid or duplicate-serials, with every finding.
    """
    findings = _Findings(prefix)
    requests = [_read_one(index, item, issuer, now, findings) for index, item in enumerate(items)]
    if findings.foreign:
        raise Problem(
            "wrong-authority",
            _first(findings.foreign),
            hint="this credential may change certificates of its own authority only; use the other authority's",
            errors=findings.foreign,
        )
    if findings.errors:
        raise Problem(
            "invalid",
            _first(findings.errors),
            hint="nothing was changed; correct what `errors` names and send the whole request again",
            errors=findings.errors,
        )
    _refuse_duplicates([request.serial_number for request in requests], findings)
    return requests


def _refuse_duplicates(serial_numbers: list[bytes], findings: _Findings) -> None:
    twice = {serial_number for serial_number, times in Counter(serial_numbers).items() if times > 1}
    if not twice:
        return
    for index, serial_number in enumerate(serial_numbers):
        if serial_number in twice:
            findings.error(index, "serial_number", f"{serial_text(serial_number)} stands here more than once")
    named = ", ".join(serial_text(each) for each in sorted(twice)[:20])
    raise Problem(
        "duplicate-serials",
        f"more than one change of the same certificate: {named}{' …' if len(twice) > 20 else ''}",
        hint="nothing was changed; name each certificate once, and send what comes after in a later request",
        errors=findings.errors,
    )


def _read_one(index: int, item: ChangeItem, issuer: Issuer, now: datetime, findings: _Findings) -> ChangeRequest:
    change = Change(item.change)
    if item.authority is not None and item.authority != issuer.name:
        findings.error(index, "authority", f"{item.authority} is not {issuer.name}", foreign=True)
    serial_number, not_after, fingerprint = _which(index, item, issuer, findings)
    stopping = change in {Change.REVOKE, Change.HOLD}
    if item.revocation_time is not None and not stopping:
        findings.error(index, "revocation_time", f"{item.change} has no revocation time; leave it out")
    if item.invalidity_date is not None and change is not Change.REVOKE:
        findings.error(index, "invalidity_date", "only a revocation has an invalidity date; leave it out")
    if item.revocation_reason is not None and change is not Change.REVOKE:
        findings.error(
            index,
            "revocation_reason",
            f"{item.change} has no reason of its own; leave it out (a hold is always certificateHold)",
        )
    if change is Change.UNHOLD and item.certificate is None and (item.not_after or item.certificate_sha256):
        findings.error(index, "change", "a release says nothing of the certificate; leave the other fields out")
    return ChangeRequest(
        authority_id=issuer.id,
        serial_number=serial_number,
        change=change,
        revocation_time=_instant(index, "revocation_time", item.revocation_time, now, findings),
        revocation_reason=None if item.revocation_reason is None else CRLReason.from_label(item.revocation_reason),
        invalidity_date=_instant(index, "invalidity_date", item.invalidity_date, now, findings),
        not_after=not_after if change in {Change.ISSUE, Change.REVOKE} else None,
        certificate_sha256=fingerprint if change in {Change.ISSUE, Change.REVOKE} else None,
    )


def _which(
    index: int, item: ChangeItem, issuer: Issuer, findings: _Findings
) -> tuple[bytes, datetime | None, bytes | None]:
    """Serial number, notAfter and SHA-256 of the certificate that an item means."""
    not_after = _utc(index, "not_after", item.not_after, findings)
    fingerprint = None if item.certificate_sha256 is None else bytes.fromhex(item.certificate_sha256)
    if item.certificate is None:
        if item.serial_number is None:
            findings.error(index, "serial_number", "say which certificate: give serial_number or certificate")
            return b"\x00", not_after, fingerprint
        return serial_content(item.serial_number), not_after, fingerprint
    try:
        view = read_certificate(item.certificate)
    except ValueError as error:
        findings.error(index, "certificate", str(error))
        return b"\x00", not_after, fingerprint
    try:
        check_issuer(view, issuer)
    except NotTheIssuer as error:
        findings.error(index, "certificate", str(error), foreign=True)
    serial_number = der.Reader(view.serial_number).content(der.INTEGER)
    theirs = hashlib.sha256(view.encoded).digest()
    for field, given, true in (
        ("serial_number", item.serial_number and serial_content(item.serial_number), serial_number),
        ("not_after", not_after, view.not_after),
        ("certificate_sha256", fingerprint, theirs),
    ):
        if given is not None and given != true:
            findings.error(index, field, "the certificate says otherwise; send one of the two")
    return serial_number, view.not_after, theirs


def _instant(index: int, field: str, given: datetime | None, now: datetime, findings: _Findings) -> datetime | None:
    given = _utc(index, field, given, findings)
    if given is None or given <= now:
        return given
    if given <= now + _CLOCK_DIFFERENCE:
        return None if field == "revocation_time" else now
    findings.error(index, field, f"{given:%Y-%m-%dT%H:%M:%SZ} lies in the future; here it is {now:%Y-%m-%dT%H:%M:%SZ}")
    return None


def _utc(index: int, field: str, given: datetime | None, findings: _Findings) -> datetime | None:
    try:
        return None if given is None else given.astimezone(UTC)
    except OverflowError:
        findings.error(index, field, "this time is outside the years 1 to 9999 in UTC")
        return None


def _first(errors: list[FieldError]) -> str:
    first = errors[0]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{first.pointer}: {first.detail}{more}"
