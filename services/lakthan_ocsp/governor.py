"""The validity governor: how long an answer is worth, and a refusal when that would break its profile.

Two spans that must not be confused: clients may rely on an answer until its nextUpdate (`validity`), and this
responder signs a new one after `refresh`. A cache outside keeps an answer for `max_age` at most, and never beyond the
moment at which we would have signed a new one, so that no cache holds an answer longer than we would give it.

What settings alone can break is refused at start; what time can break (a responder certificate that nears its end) is
refused at every signature, and announced long before by `warning`.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING

from lakthan.errors import ConfigError, SignerUnusable, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lakthan.certificates import CertificateView
    from lakthan.config import ResponderConfig
    from lakthan.store.records import CRLSource, StatusRecord
    from lakthan_ocsp.profiles import Profile

# EN 319 411-2 CSS-6.3.10-11: the nextUpdate of answers that are final.
_FOREVER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
# Answers signed in one burst fall due over this part of `refresh` (RFC 9919 §7.1: no thundering herd).
_SPREAD = 0.1
# Less than this part of its life left, and the responder certificate is to be renewed.
_WARN_BELOW = 1 / 3


class PolicyViolation(SignerUnusable):
    """An answer now would break its profile; none is given. `rule`: one of a few fixed words for the metrics."""

    def __init__(self, rule: str, why: str) -> None:
        super().__init__(why)
        self.rule = rule


CERTIFICATE_NOT_IN_FORCE = "certificate not in force"
VALIDITY_TOO_SHORT = "validity too short"
SUSPENSION = "suspension"


class SourceExpired(StoreUnavailable):
    """What the statuses come from is no longer current: the client may come again."""


@dataclass(frozen=True, slots=True)
class Span:
    """When an answer says it was true and until when, and when it is due to be signed anew; whole seconds.

    `produced_at` differs from `this_update` only where a CRL is the source: the status is as old as the CRL.
    """

    produced_at: datetime
    this_update: datetime
    next_update: datetime
    renew_at: datetime


class MaxAge:
    """For how long caches outside may keep an answer, at most (RFC 9919 §7.2)."""

    def __init__(self, max_age: timedelta) -> None:
        self._max_age = max_age

    def seconds_to_keep(self, now: datetime, renew_at: datetime) -> int:
        """The max-age for an answer that is given out `now`; never negative."""
        return max(0, int(min(renew_at - now, self._max_age).total_seconds()))

    def same_max_age_until(self, now: datetime, renew_at: datetime) -> float:
        """Until when `seconds_to_keep` gives what it gives `now`, in seconds of the epoch.

        Far from the renewal that is always the longest `max_age`; near it a second's answer is good for that second.
        """
        falls_from = (renew_at - self._max_age).timestamp()
        seconds = now.timestamp()
        return falls_from if seconds < falls_from else seconds + (renew_at.timestamp() - seconds) % 1.0


class Governor(MaxAge):
    """The spans of one responder, its profile's limits, and the certificate that bounds them."""

    def __init__(self, config: ResponderConfig, profile: Profile, view: CertificateView) -> None:
        super().__init__(profile.max_age if config.max_age is None else config.max_age)
        self.profile = profile
        self.validity = profile.validity if config.validity is None else config.validity
        self.refresh = profile.refresh if config.refresh is None else config.refresh
        self._final = config.final
        self._not_before = view.not_before
        self._not_after = view.not_after
        # The spans of one second: certificates in the same state differ in nothing but when they are renewed.
        self._second = 0
        self._spans: dict[tuple[int, CRLSource | None], Span] = {}
        for broken, rule in self._broken_settings():
            if broken:
                raise ConfigError(f"responder of {config.authority!r}, profile {profile.name}: {rule}")

    def _broken_settings(self) -> list[tuple[bool, str]]:
        profile, validity, refresh = self.profile, self.validity, self.refresh
        deadline = validity / 2 if validity < timedelta(hours=16) else min(validity - timedelta(hours=8), _FOUR_DAYS)
        return [
            (
                not timedelta(seconds=1) <= refresh < validity,
                "refresh must be shorter than validity, and at least a second",
            ),
            (self._max_age < timedelta(0), "max_age is negative"),
            (validity < profile.shortest, f"validity must be at least {profile.shortest}"),
            (validity > profile.longest, f"validity must be at most {profile.longest}"),
            (
                profile.oldest is not None and refresh + self._max_age > profile.oldest,
                f"refresh and max_age together must be at most {profile.oldest}: clients take no older answer",
            ),
            # TLS Baseline Requirements 4.9.9: before half of an interval below 16 hours; else 8 hours before
            # nextUpdate and no later than four days after thisUpdate.
            (profile.browser_deadlines and refresh > deadline, f"refresh must be at most {deadline}"),
            (self._final and profile.browser_deadlines, "final answers break the profile's longest validity"),
        ]

    def span(self, now: datetime, records: Sequence[StatusRecord | None] = (), crl: CRLSource | None = None) -> Span:
        """The span of an answer about `records` that is signed `now`.

        nextUpdate never lies beyond the responder certificate's end, for after it nobody can verify the answer, nor
        beyond the CRL that it stands on. Raises `PolicyViolation` when the certificate is not in force, or when what
        is left is shorter than the profile allows, or when a certificate is held that must not be: no other key may
        stand in, and nothing is invented. Raises `SourceExpired` when the CRL has
        ended.
        """
        if not self.profile.holds and any(record is not None and record.held for record in records):
            raise PolicyViolation(SUSPENSION, f"profile {self.profile.name} has no suspension, and this one is held")
        # Answers signed in one burst fall due one after another.
        which = 0
        for record in records:
            if record is not None:
                which = zlib.crc32(record.serial_number, which)
        which &= 0xFF
        second = int(now.timestamp())
        if second != self._second:
            self._second = second
            self._spans.clear()
        span = self._spans.get((which, crl))
        if span is None:
            span = self._spans[which, crl] = self._span(now, crl, which)
        if self.profile.within_certificate and not self._final:
            end = min(_ends_after(span.produced_at, records), default=span.next_update)
            if end < span.next_update:
                return Span(span.produced_at, span.this_update, end, min(span.renew_at, end))
        return span

    def _span(self, now: datetime, crl: CRLSource | None, which: int) -> Span:
        produced_at = now.replace(microsecond=0)
        if not self._not_before <= produced_at < self._not_after:
            raise PolicyViolation(
                CERTIFICATE_NOT_IN_FORCE,
                f"the responder certificate is in force from {self._not_before} to {self._not_after} only",
            )
        if self._final:
            return Span(produced_at, produced_at, _FOREVER, produced_at + self.refresh)
        this_update = produced_at
        next_update = min(produced_at + self.validity, self._not_after)
        if crl is not None:
            this_update, next_update = min(crl.this_update, produced_at), min(crl.next_update, self._not_after)
            if next_update <= produced_at:
                raise SourceExpired(f"the CRL that the statuses come from ended at {crl.next_update}")
        if next_update - this_update < self.profile.shortest:
            raise PolicyViolation(
                VALIDITY_TOO_SHORT,
                f"the responder certificate ends at {self._not_after}: an answer would be shorter than "
                f"{self.profile.shortest}",
            )
        spread = self.refresh * (_SPREAD * which / 0xFF)
        return Span(produced_at, this_update, next_update, min(produced_at + self.refresh - spread, next_update))

    def warning(self, now: datetime) -> str:
        """Why the operator should act, long before the answers stop; '' when there is no reason."""
        left = self._not_after - now
        needed = max((self._not_after - self._not_before) * _WARN_BELOW, self.profile.shortest + self.refresh)
        if left >= needed:
            return ""
        return f"its certificate ends at {self._not_after}, in {left}: renew it now"


_FOUR_DAYS = timedelta(days=4)


def _ends_after(instant: datetime, records: Sequence[StatusRecord | None]) -> list[datetime]:
    ends = [record.not_after for record in records if record is not None and record.not_after is not None]
    return [end for end in ends if end > instant]


def http_date(instant: datetime) -> str:
    """An instant as HTTP headers write it (RFC 9110 §5.6.7)."""
    return format_datetime(instant.astimezone(UTC), usegmt=True)
