"""Policy profiles: what different kinds of relying parties demand of an answer, as named bundles.

A profile is chosen per authority (`profile = "…"`). It gives the spans and habits that suit its clients, and the limits
that no setting may break; `governor` enforces those, at start and at every signature. The figures and their sources
stand beside each profile, so that an auditor can read this page against the standards.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import Enum


class NonIssued(Enum):
    """What is said of a serial number that its CA never announced. Never `good` (EN 319 411-1 OVR-6.6.3-02)."""

    UNKNOWN = "unknown"
    # RFC 6960 §2.2 and §4.4.8: only where serial numbers cannot be guessed and announcements are complete.
    REVOKED = "revoked"
    # RFC 9919 §3.2.3: where this responder may not know every certificate.
    UNAUTHORIZED = "unauthorized"


class Nocheck(Enum):
    """Whether the responder certificate must carry id-pkix-ocsp-nocheck (RFC 6960 §4.2.2.2.1)."""

    REQUIRED = "required"
    FORBIDDEN = "forbidden"
    EITHER = "either"


@dataclass(frozen=True, slots=True)
class Profile:
    """One bundle. Spans: `validity` is nextUpdate − thisUpdate, `refresh` the age at which an answer is signed anew,
    `max_age` the most that an HTTP cache may keep it.

    `shortest`, `longest`: limits of `validity`. `oldest`: the greatest age at which clients take an answer.
    `browser_deadlines`: the refresh deadlines of the TLS Baseline Requirements, 4.9.9. `archive_cutoff`: answers say
    how far back the records reach (RFC 6960 §4.4.4). `keep_expired`: certificates are answered for after their end.
    `holds`: the CA may suspend certificates. `nonce`: nonces are echoed. `by_name`: ResponderID byName.
    `within_certificate`: while a certificate is in force, no answer about it outlives it. A validator that has nothing
    but the answer kept with an old signature goes back to the answer's last instant, and there the certificate has to
    be in force as well (the time sliding of ETSI EN 319 102-1 §5.6.2.2, as pyHanko does it). Not for the profiles with
    a shortest validity, which the last hours of a certificate would break.
    """

    name: str
    validity: timedelta
    refresh: timedelta
    max_age: timedelta
    shortest: timedelta = timedelta(0)
    longest: timedelta = timedelta(days=10)
    oldest: timedelta | None = None
    browser_deadlines: bool = False
    nocheck: Nocheck = Nocheck.EITHER
    non_issued: NonIssued = NonIssued.UNKNOWN
    archive_cutoff: bool = False
    keep_expired: bool = True
    holds: bool = True
    nonce: bool = True
    by_name: bool = False
    within_certificate: bool = True


_MINUTE, _HOUR, _DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)

PDF_LTV = Profile(
    # Document signing: evidence for decades. Fresh answers (DigiDoc takes none older than a day), the archive cutoff at
    # the CA's notBefore and expired certificates kept (EN 319 411-2 CSS-6.3.10-02 and -10).
    "pdf-ltv",
    validity=4 * _DAY,
    refresh=_HOUR,
    max_age=5 * _MINUTE,
    archive_cutoff=True,
)
TLS_BR = Profile(
    # CA/Browser Forum TLS Baseline Requirements 4.9.9 (8 hours to 10 days, refresh deadlines), 4.9.13 (no suspension),
    # 7.1.2.8 (nocheck); Mozilla Root Store Policy §6.
    "tls-br",
    validity=4 * _DAY,
    refresh=_DAY,
    max_age=_HOUR,
    shortest=8 * _HOUR,
    browser_deadlines=True,
    nocheck=Nocheck.REQUIRED,
    keep_expired=False,
    holds=False,
    within_certificate=False,
)
SMIME_BR = Profile(
    # S/MIME Baseline Requirements 4.9.10 (8 hours to 10 days) and 4.9.13 (certificateHold is allowed).
    "smime-br",
    validity=4 * _DAY,
    refresh=12 * _HOUR,
    max_age=_HOUR,
    shortest=8 * _HOUR,
    browser_deadlines=True,
    nocheck=Nocheck.REQUIRED,
    within_certificate=False,
)
X_ROAD = Profile(
    # X-Road's security servers take no answer older than 60 minutes.
    "x-road",
    validity=8 * _HOUR,
    refresh=20 * _MINUTE,
    max_age=5 * _MINUTE,
    oldest=60 * _MINUTE,
)
CODE_SIGNING = Profile(
    # Code Signing Baseline Requirements 4.9.10: renewed every 4 days, 10 days at the most, answers kept after expiry.
    "code-signing",
    validity=4 * _DAY,
    refresh=_DAY,
    max_age=_HOUR,
    browser_deadlines=True,
    nocheck=Nocheck.REQUIRED,
    archive_cutoff=True,
)
ACROBAT = Profile(
    # Validators that refuse id-pkix-ocsp-nocheck (Adobe's allowOCSPNoCheck is false by default): the responder
    # certificate has a CRL or its own status instead.
    "acrobat",
    validity=4 * _DAY,
    refresh=_HOUR,
    max_age=5 * _MINUTE,
    nocheck=Nocheck.FORBIDDEN,
    archive_cutoff=True,
)
LEGACY_DEVICE = Profile(
    # Old devices: they know the responder by its name and keep answers long. Signatures are today's all the same.
    "legacy-device",
    validity=7 * _DAY,
    refresh=_DAY,
    max_age=_HOUR,
    by_name=True,
)

PROFILES = {
    profile.name: profile for profile in (PDF_LTV, TLS_BR, SMIME_BR, X_ROAD, CODE_SIGNING, ACROBAT, LEGACY_DEVICE)
}
