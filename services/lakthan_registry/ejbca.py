"""What EJBCA's Cert Safe Publisher says, in our words. Pure: the message and what is on record in, the changes out.

EJBCA sends what a certificate *is*, not what happened to it, sends it again whenever its queue feels like it, and keeps
sending until it gets a 200. So each message is held against the record, and only the difference becomes a change; the
same message twice changes nothing the second time.

What EJBCA really sends (its class CertSafePublisher; Keyfactor's documentation shows less):

- `status`: `active`, `revoked`, `hold` for inactive and unassigned ones, `expired` for archived ones;
- `revocationReason`, with `revoked` only: the RFC's words, but `aaComprimise` and `removeFromCrl`; null for
  cACompromise, for which its table has no word. A suspension is `revoked` with `certificateHold`, its end is `active`;
- `revocationDate`, always: `yyyy-MM-dd HH:mm:ss z` in the zone of its machine, about 1970 for no date at all;
- `pem`: the certificate.

It reads at most 1,024 octets of a refusal and looks for a member `error` in it; of an answer it looks at the 200 only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

from lakthan.store.records import CertStatus, Change, ChangeRequest, CRLReason
from lakthan_registry.problems import FieldError, Problem

if TYPE_CHECKING:
    from lakthan.store.records import StatusRecord
    from lakthan_registry.messages import EJBCAStatus

Result = Literal["issued", "revoked", "held", "released", "unchanged"]

# Spellings of EJBCA that are not the RFC's, in lower case.
_REASONS = {reason.label.lower(): reason for reason in CRLReason} | {"aacomprimise": CRLReason.AA_COMPROMISE}
_DATE = re.compile(r"(?P<date>\d{4}-\d\d-\d\d) (?P<time>\d\d:\d\d:\d\d) (?P<zone>\S+)")
_OFFSET = re.compile(r"(?:GMT|UTC)?(?P<sign>[+-])(?P<hours>\d\d):?(?P<minutes>\d\d)")
# Names of zones are ambiguous; these are meant where EJBCA stands in this country.
_ZONES = {"UTC": timedelta(0), "GMT": timedelta(0), "Z": timedelta(0), "ICT": timedelta(hours=7)}


@dataclass(frozen=True, slots=True)
class Certificate:
    """The certificate of a message, already held against the authority."""

    authority_id: int
    serial_number: bytes
    not_after: datetime
    sha256: bytes


def revocation_time(text: str | None, now: datetime) -> datetime | None:
    """The instant that EJBCA means; None where it cannot be told, which makes it now.

    Never in the future: EJBCA's clock may be a little ahead of ours.
    """
    found = _DATE.fullmatch(text.strip()) if text else None
    if found is None:
        return None
    offset = _ZONES.get(found["zone"])
    if offset is None:
        numeric = _OFFSET.fullmatch(found["zone"])
        if numeric is None:
            return None
        offset = timedelta(hours=int(numeric["hours"]), minutes=int(numeric["minutes"]))
        offset = -offset if numeric["sign"] == "-" else offset
    try:
        said = datetime.fromisoformat(f"{found['date']}T{found['time']}+00:00") - offset
    except (ValueError, OverflowError):
        return None
    return min(said, now) if said > datetime(1970, 1, 3, tzinfo=UTC) else None


def differences(
    message: EJBCAStatus, certificate: Certificate, known: StatusRecord | None, now: datetime
) -> tuple[list[ChangeRequest], Result]:
    """What has to be recorded so that the record says what EJBCA says, and a word for it.

    Raises `Problem`: a revocation that EJBCA no longer knows of stays, for it is final.
    """
    reason = _reason(message)
    if message.status == "expired":
        return [], "unchanged"  # archived by EJBCA: its status is what it was, here for as long as the archive cutoff
    if message.status == "active" or reason is CRLReason.REMOVE_FROM_CRL:
        return _active(certificate, known)
    hold = message.status == "hold" or reason is CRLReason.CERTIFICATE_HOLD
    stopped = revocation_time(message.revocation_date, now)
    if hold:
        return _held(certificate, known, stopped)
    if known is not None and known.cert_status is CertStatus.REVOKED and not known.held:
        return [], "unchanged"
    change = ChangeRequest(
        certificate.authority_id,
        certificate.serial_number,
        Change.REVOKE,
        stopped,
        reason,
        not_after=certificate.not_after,
        certificate_sha256=certificate.sha256,
    )
    return [change], "revoked"


def _active(certificate: Certificate, known: StatusRecord | None) -> tuple[list[ChangeRequest], Result]:
    if known is None:
        return [_issue(certificate)], "issued"
    if known.held:
        return [ChangeRequest(certificate.authority_id, certificate.serial_number, Change.UNHOLD)], "released"
    if known.cert_status is CertStatus.REVOKED:
        raise Problem(
            "conflict",
            "EJBCA calls this certificate active, and it is on record as revoked for good",
            hint="a revocation is final; find out who revoked it (its history says so) and correct EJBCA",
        )
    return [], "unchanged"


def _held(
    certificate: Certificate, known: StatusRecord | None, stopped: datetime | None
) -> tuple[list[ChangeRequest], Result]:
    if known is not None and known.held:
        return [], "unchanged"
    if known is not None and known.cert_status is CertStatus.REVOKED:
        raise Problem(
            "conflict",
            "EJBCA calls this certificate suspended, and it is on record as revoked for good",
            hint="a revocation is final; find out who revoked it (its history says so) and correct EJBCA",
        )
    hold = ChangeRequest(certificate.authority_id, certificate.serial_number, Change.HOLD, stopped)
    return [hold] if known is not None else [_issue(certificate), hold], "held"


def _issue(certificate: Certificate) -> ChangeRequest:
    return ChangeRequest(
        certificate.authority_id,
        certificate.serial_number,
        Change.ISSUE,
        not_after=certificate.not_after,
        certificate_sha256=certificate.sha256,
    )


def _reason(message: EJBCAStatus) -> CRLReason | None:
    """None also for a word that no reason has: to revoke without a reason is better than not to revoke."""
    if message.status != "revoked" or message.revocation_reason is None:
        return None
    reason = _REASONS.get(message.revocation_reason.lower())
    if reason is None and message.revocation_reason.upper() != "REV_UNUSED":
        said = FieldError("/revocationReason", f"{message.revocation_reason!r} is no reason", "revocationReason")
        raise Problem("invalid", f"{said.pointer}: {said.detail}", hint="use a word of RFC 5280 §5.3.1", errors=[said])
    return reason
