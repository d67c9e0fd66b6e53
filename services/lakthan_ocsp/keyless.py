"""What a responder without keys knows, from where, and how old that is.

Its answers are looked up in a copy of the database, whose feed says that all of the copy was heard and how old the
copy is. When there is no copy to be asked, they come from the file of the warm start, which says how old it is itself.

Promises: nothing is answered that is older than the bound, wherever it comes from; `tryLater` instead, and it is
counted. A copy that is not in step with itself is not asked. It is no earlier here than the capital's last heartbeat
says, whatever this machine's clock says: no answer is given that has ended by then.

Trusted: the copy and the file; clients verify what they hold.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, timedelta
from enum import Enum
from typing import TYPE_CHECKING

from lakthan.errors import StoreUnavailable
from lakthan.store.feed import monotonic_seconds
from lakthan.store.kept import AnswerKey
from lakthan.store.published import PublishedReader, Standing
from lakthan.store.standby_feed import Seen
from lakthan.telemetry.logs import log
from lakthan_ocsp import warm_start
from lakthan_ocsp.published import PublishedAnswers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime
    from pathlib import Path

    import asyncpg

    from lakthan.algorithms import HashAlgorithm
    from lakthan.store.published import Found
    from lakthan.store.standby_feed import StandbyFeed
    from lakthan_ocsp.cache import Answer
    from lakthan_ocsp.directory import Published
    from lakthan_ocsp.metrics import OCSPMetrics
    from lakthan_ocsp.syntax import CertID
    from lakthan_ocsp.warm_start import Warm

TOO_OLD = "too old"
# The publisher's heartbeat comes every second.
CUT_AFTER = timedelta(seconds=10)
# A local look-up takes a millisecond; when the database stands still there is another place to look.
_PATIENCE_SECONDS = 2.0
# Clocks that are synchronised differ by less.
_EVEN = timedelta(seconds=1)
_AGAIN_SECONDS = 5.0


class State(Enum):
    """LIVE: the copy follows. CUT: it has had no heartbeat for a while. WARM: there is no copy, and the file is asked.
    REFUSING: what there is, if anything, is too old.
    """

    LIVE = "live"
    CUT = "cut"
    WARM = "warm"
    REFUSING = "refusing"


class CopyReader(PublishedReader):
    """Looks answers up in the copy that `feed` follows, or in the file (None: there is none).

    Told before anybody else: `given(key, found)` of every answer from the copy, `outdated(authority_id, serial_number)`
    of one that may not be given.
    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        feed: StandbyFeed,
        *,
        file: Path | None,
        bound: timedelta,
        given: Callable[[AnswerKey, Found], None],
        outdated: Callable[[int, bytes], None],
    ) -> None:
        super().__init__(pool)
        self._feed = feed
        self._file = file
        self._bound = bound
        self._given = given
        self._outdated = outdated
        self._reading = asyncio.Lock()
        self._read_again_at = 0.0
        self._generation = 0
        self.warm: Warm | None = None
        self._warm_seen: Seen | None = None

    def as_of(self) -> Seen | None:
        """The instant of what is answered now; None when there is nothing to answer from."""
        return self._feed.heartbeat if self._feed.heard else self._warm_seen

    def state(self) -> State:
        """Whether there are answers, and from where."""
        seen = self.as_of()
        if seen is None or seen.age() >= self._bound:
            return State.REFUSING
        if not self._feed.heard:
            return State.WARM
        return State.CUT if seen.age() > CUT_AFTER else State.LIVE

    def behind(self, now: datetime) -> timedelta:
        """By how much it is later than `now`, which is what this machine's clock says, as far as that is known: a
        heartbeat of the capital that was seen here was written before, and that was a while ago.
        """
        seen = [each.at + each.age() for each in (self._feed.heartbeat, self._warm_seen) if each is not None]
        behind = max(seen, default=now) - now
        return behind if behind > _EVEN else timedelta(0)

    def forget_warm(self) -> None:
        """What was read from the file is older than the copy: when it is needed again, read it again."""
        self._generation += 1
        self.warm = self._warm_seen = None
        self._read_again_at = 0.0

    async def too_old(self) -> bool:
        """True when what there is may not be answered any more. Raises `StoreUnavailable` when there is nothing."""
        if not self._feed.heard:
            await self.read_warm()
        seen = self.as_of()
        if seen is None and not self._feed.heard:
            raise StoreUnavailable("the database is away or not in step, and no answers were kept")
        return seen is None or seen.age() >= self._bound

    async def read_warm(self) -> Warm | None:
        """What the file holds; it is read once while the copy is away, and again after a while if it cannot be used."""
        async with self._reading:
            while self.warm is None and self._file is not None and monotonic_seconds() >= self._read_again_at:
                generation, self._read_again_at = self._generation, monotonic_seconds() + _AGAIN_SECONDS
                warm = await asyncio.to_thread(warm_start.read, self._file)
                # Of a change that was heard meanwhile nobody knows whether it was read.
                if warm is not None and generation == self._generation:
                    self.warm, self._warm_seen = warm, Seen(warm.at)
                    log.warning("answers come from the file", answers=len(warm.answers), as_of=warm.at.isoformat())
        return self.warm

    async def find(
        self, authority_id: int, serial_number: bytes, cert_id_hash: HashAlgorithm, now: datetime
    ) -> tuple[Standing, Found | None]:
        """See `PublishedReader`."""
        key = AnswerKey(authority_id, serial_number, cert_id_hash.label)
        if self._feed.heard:
            try:
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    standing, found = await super().find(authority_id, serial_number, cert_id_hash, now)
            except (StoreUnavailable, TimeoutError) as error:
                log.warning("the database gave no answer", problem=str(error) or "it took too long")
            else:
                # A look-up may see a change before the feed does; what was told once must outlive the copy.
                if standing is Standing.OUTDATED:
                    self._outdated(authority_id, serial_number)
                elif found is not None:
                    self._given(key, found)
                return standing, found
        warm = await self.read_warm()
        if warm is None or self._warm_seen is None or self._warm_seen.age() >= self._bound:
            raise StoreUnavailable("the database is away, and no answers were kept that are young enough")
        standing, found = warm.find(key, now.astimezone(UTC))
        if standing is Standing.NONE:
            raise StoreUnavailable("the database is away, and no answer about this certificate was kept")
        return standing, found


class KeylessAnswers(PublishedAnswers):
    """As `PublishedAnswers`, as long as they are not too old."""

    def __init__(self, reader: CopyReader, metrics: OCSPMetrics) -> None:
        super().__init__(reader, metrics)
        self._copy = reader

    async def find(self, entitled: Published, cert_ids: Sequence[CertID], now: datetime) -> Answer:
        """See `PublishedAnswers`; raises `AnswerWithheld` also when what there is may not be answered any more."""
        if await self._copy.too_old():
            raise self._withheld(entitled.issuer.authority.name, TOO_OLD)
        behind = self._copy.behind(now)
        answer = await super().find(entitled, cert_ids, now + behind)
        if behind:  # the memory, and caches outside, go by this machine's clock
            answer.span = replace(answer.span, renew_at=answer.span.renew_at - behind)
        return answer
