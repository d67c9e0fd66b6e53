"""How long an answer is worth, and what HTTP caches are told (RFC 6960 §2.4, RFC 9919 §6 and §7).

Two spans that must not be confused: clients may rely on an answer until its nextUpdate (`validity`), and this
responder signs a new one after `refresh`. A cache outside keeps an answer for `max_age` at most, and never beyond the
moment at which we would have signed a new one, so that no cache holds an answer longer than we would give it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING

from lakthan.errors import ConfigError, SignerUnusable

if TYPE_CHECKING:
    from lakthan.certificates import CertificateView
    from lakthan.config import ResponderConfig


class Freshness:
    """The spans of one responder, and the certificate that bounds them."""

    __slots__ = ("_max_age", "_not_after", "_not_before", "_validity", "refresh")

    def __init__(self, config: ResponderConfig, view: CertificateView) -> None:
        name = config.authority
        if not timedelta(seconds=1) <= config.refresh < config.validity:
            raise ConfigError(f"responder of {name!r}: refresh must be shorter than validity, and at least a second")
        if config.max_age < timedelta(0):
            raise ConfigError(f"responder of {name!r}: max_age is negative")
        self.refresh = config.refresh
        self._validity = config.validity
        self._max_age = config.max_age
        self._not_before = view.not_before
        self._not_after = view.not_after

    def span(self, now: datetime) -> tuple[datetime, datetime]:
        """Give thisUpdate and nextUpdate of an answer signed `now`, in whole seconds.

        nextUpdate never lies beyond the responder certificate's end, for after it nobody can verify the answer.
        Raises `SignerUnusable` when the certificate is not in force: an answer signed under it would be worthless,
        and no other key may stand in.
        """
        this_update = now.replace(microsecond=0)
        next_update = min(this_update + self._validity, self._not_after)
        if not self._not_before <= this_update < next_update:
            raise SignerUnusable(
                f"the responder certificate is in force from {self._not_before} to {self._not_after} only"
            )
        return this_update, next_update

    def seconds_to_keep(self, now: datetime, this_update: datetime, next_update: datetime) -> int:
        """The max-age for an answer that is given out `now`; never negative (RFC 9919 §7.2)."""
        left = min(this_update + self.refresh, next_update) - now
        return max(0, int(min(left, self._max_age).total_seconds()))


def http_date(instant: datetime) -> str:
    """An instant as HTTP headers write it (RFC 9110 §5.6.7)."""
    return format_datetime(instant.astimezone(UTC), usegmt=True)
