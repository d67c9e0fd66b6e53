"""Answers that an offline CA has signed, or a publisher ahead, given out as they are: looked up, and never made.

Promises: the octets of the store, unchanged; never an answer whose certificate has changed since it was published, nor
one outside of its time. `unauthorized` where there never was one (RFC 9919 §3.2.3), `tryLater` where there is one that
must not be given now, or where the publisher owes one; both are counted.

A nonce is not answered (RFC 9919 §3.2.1: the most complete answer that there is), and a signature of the request not
looked at.

Refuses to know: any key. Trusted: the store; clients verify what it holds.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from lakthan.errors import StoreUnavailable
from lakthan.store.published import Standing
from lakthan.store.records import CertStatus
from lakthan.telemetry.logs import log
from lakthan_ocsp.cache import Answer
from lakthan_ocsp.directory import NOT_PUBLISHED, NotEntitled
from lakthan_ocsp.governor import Span

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from lakthan.algorithms import HashAlgorithm
    from lakthan.store.published import Found, PublishedReader
    from lakthan_ocsp.directory import Published
    from lakthan_ocsp.metrics import OCSPMetrics
    from lakthan_ocsp.syntax import CertID

CHANGED = "changed"
NOT_NOW = "not now"
NOT_YET = "not yet"
_SECOND = timedelta(seconds=1)
_WATCH_SECONDS = 3600.0
_AGAIN_SECONDS = 5.0


class AnswerWithheld(StoreUnavailable):
    """There is an answer, and it must not be given now: the client may come again."""


class PublishedAnswers:
    """Looks answers up in the store."""

    def __init__(self, reader: PublishedReader, metrics: OCSPMetrics) -> None:
        self._reader = reader
        self._metrics = metrics

    async def find(self, entitled: Published, cert_ids: Sequence[CertID], now: datetime) -> Answer:
        """The answer for `now`. Raises `NotEntitled` where nobody signed one, also for several certificates at once,
        `AnswerWithheld`, and `StoreUnavailable`.
        """
        cert_id, authority = cert_ids[0], entitled.issuer.authority
        if len(cert_ids) != 1 or cert_id.hash_algorithm is None:
            raise self._not_published()
        standing, found = await self._look_up(authority.id, cert_id.serial_number, cert_id.hash_algorithm, now)
        if standing is Standing.NONE:
            raise self._not_published()
        if standing is Standing.NOT_YET:
            raise self._withheld(authority.name, NOT_YET)
        if standing is Standing.OUTDATED:
            raise self._withheld(authority.name, CHANGED)
        if found is None:
            raise self._withheld(authority.name, NOT_NOW)
        if authority.revocation_time is not None and found.answer.cert_status is CertStatus.GOOD:
            raise self._withheld(authority.name, CHANGED)  # the CA itself is revoked (RFC 6960 §2.7)
        answer = found.answer
        span = Span(answer.produced_at, answer.this_update, answer.next_update, found.newest_until)
        return Answer(
            answer.response,
            span,
            entitled.responder.max_age,
            (answer.cert_status.value,),
            (cert_id.hash_algorithm,),
            authoritative=True,
            source="published",
        )

    async def _look_up(
        self, authority_id: int, serial_number: bytes, cert_id_hash: HashAlgorithm, now: datetime
    ) -> tuple[Standing, Found | None]:
        """What there is for `now`; or for a moment later, when the answer was renewed while the question waited for
        its look-up: the one that was valid `now` is gone, and the one in its place has begun since.
        """
        standing, found = await self._reader.find(authority_id, serial_number, cert_id_hash, now)
        if standing is Standing.NOT_NOW:
            later = datetime.now(UTC)
            if later >= now.replace(microsecond=0) + _SECOND:  # answers begin and end with whole seconds
                standing, found = await self._reader.find(authority_id, serial_number, cert_id_hash, later)
        return standing, found

    async def watch(self, authorities: Collection[str], changed: asyncio.Event) -> None:
        """Show when the last answer of each authority ends, now, every hour, and when `changed` is set."""
        while True:
            try:
                ends = await self._reader.last_until()
            except StoreUnavailable as error:
                log.warning("it is not known when the published answers end", problem=str(error))
                await asyncio.sleep(_AGAIN_SECONDS)
                continue
            for name in ends.keys() & set(authorities):
                self._metrics.published_until.labels(name).set(ends[name].timestamp())
            with suppress(TimeoutError):
                async with asyncio.timeout(_WATCH_SECONDS):
                    await changed.wait()
            changed.clear()

    def _not_published(self) -> NotEntitled:
        self._metrics.unauthorized[NOT_PUBLISHED].inc()
        return NotEntitled(NOT_PUBLISHED)

    def _withheld(self, authority: str, why: str) -> AnswerWithheld:
        self._metrics.published_withheld.labels(authority, why).inc()
        return AnswerWithheld(f"the published answer of {authority} is withheld: {why}")
