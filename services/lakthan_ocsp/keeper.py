"""Keeping the file of the warm start: a snapshot of the copy's answers now and then, and every change at once.

Of several processes with the same file one writes: the holder of a lock beside it. A snapshot holds every answer of the
authorities here, or if they are too many those that were asked for last and then others. It takes as long as it takes,
in small pages, and at most a hundredth of the time is spent on it, a snapshot a minute at most.

A disk that fails never keeps an answer back: it is logged and counted, and tried again.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections import OrderedDict
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from lakthan.errors import StoreUnavailable
from lakthan.store.feed import monotonic_seconds
from lakthan.store.kept import AnswerKey, KeptAnswer
from lakthan.store.records import CertStatus
from lakthan.telemetry.logs import log
from lakthan_ocsp.warm_start import HASHES, Authorities, Changed, Instant, Record, WarmFile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Sequence
    from pathlib import Path

    from lakthan.store.kept import KeptReader
    from lakthan.store.published import Found
    from lakthan.store.records import AuthorityRecord
    from lakthan.store.standby_feed import StandbyFeed
    from lakthan_ocsp.keyless_metrics import CopyMetrics

_TICK_SECONDS = 1.0
_INSTANT_SECONDS = 10.0
_SNAPSHOT_SECONDS = 60.0
_SHARE = 100
_LAST_SNAPSHOT_SECONDS = 5.0
# How long after an answer was signed it may come on record.
_SIGNED_AND_RECORDED = timedelta(minutes=1)
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


class Keeper:
    """Writes `path`. `names`: of the authorities whose answers are kept; `most`: so many. `bound`: how far ahead they
    will be wanted at most.
    """

    def __init__(
        self,
        path: Path,
        reader: KeptReader,
        feed: StandbyFeed,
        metrics: CopyMetrics,
        *,
        names: Collection[str],
        most: int,
        bound: timedelta,
    ) -> None:
        self._path = path
        self._reader = reader
        self._feed = feed
        self._metrics = metrics
        self._names = names
        self._most = most
        self._bound = bound
        self._file = WarmFile(path)
        self._lock = -1
        self._authorities: Sequence[AuthorityRecord] | None = None  # None: they may have changed
        self._asked: OrderedDict[AnswerKey, None] = OrderedDict()
        # Since the last snapshot: what changed, which answers were noted, and after which instant they may be newer.
        self._changed: set[tuple[int, bytes]] = set()
        self._noted: dict[AnswerKey, datetime] = {}
        self._all_since = _LONG_AGO
        self._too_many = False
        self._spoiled = False  # a snapshot that is under way is good for nothing
        self._next_snapshot = 0.0
        self._next_instant = 0.0

    async def run(self) -> None:
        """Keep the file until cancelled."""
        while True:
            try:
                if self._is_writer() and self._feed.heard and self._authorities is not None:
                    await self._tick()
            except StoreUnavailable as error:
                self._next_snapshot = monotonic_seconds() + _INSTANT_SECONDS
                log.warning("no snapshot of the answers could be made", problem=str(error))
            except OSError as error:
                self._failed(error)
            await asyncio.sleep(_TICK_SECONDS)

    async def close(self) -> None:
        """Write a last snapshot if that is quick, and let the file go."""
        try:
            if self._lock >= 0 and self._feed.heard and self._authorities is not None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LAST_SNAPSHOT_SECONDS):
                        await self._snapshot()
                self._note_instant()
            await asyncio.to_thread(self._file.sync)
        except (OSError, StoreUnavailable) as error:
            self._failed(error)
        finally:
            self._file.give_up()
            self._file.close()
            if self._lock >= 0:
                os.close(self._lock)

    def given(self, key: AnswerKey, found: Found) -> None:
        """An answer came from the copy."""
        self._asked[key] = None
        self._asked.move_to_end(key)
        if len(self._asked) > self._most:
            self._asked.popitem(last=False)
        answer = found.answer
        changed = (key.authority_id, key.serial_number) in self._changed or (
            # What the feed is about to tell. That a good answer was signed anew can wait for the next snapshot.
            answer.cert_status is CertStatus.REVOKED and answer.produced_at > self._all_since
        )
        if changed and self._noted.get(key) != answer.produced_at:
            self._noted[key] = answer.produced_at
            times = (answer.produced_at, answer.this_update, answer.next_update, datetime.now(UTC))
            self._note(KeptAnswer(*key, *times, answer.cert_status, answer.response))

    def outdated(self, authority_id: int, serial_number: bytes) -> None:
        """A look-up found out that the certificate has changed."""
        if (authority_id, serial_number) not in self._changed:
            self.certificate_changed(authority_id, serial_number)

    def certificate_changed(self, authority_id: int, serial_number: bytes) -> None:
        """What is in the file about it may not be given any more."""
        self._changed.add((authority_id, serial_number))
        for label in HASHES:
            self._noted.pop(AnswerKey(authority_id, serial_number, label), None)
        self._note(Changed(authority_id, serial_number))

    def many_changed(self, authority_id: int) -> None:
        """As `certificate_changed`, for every certificate of an authority; a snapshot comes soon."""
        self._noted.clear()
        self._note(Changed(authority_id))
        self._next_snapshot = min(self._next_snapshot, monotonic_seconds() + _INSTANT_SECONDS)

    def begin_anew(self) -> None:
        """The copy was out of sight: nothing can be noted behind what is in the file, so a snapshot comes at once."""
        self._file.close()
        self._spoiled = True
        self._next_snapshot = self._next_instant = 0.0

    def authorities_changed(self) -> None:
        """Nothing is said of later instants until it is known how."""
        self._authorities = None

    def authorities_are(self, authorities: Sequence[AuthorityRecord]) -> None:
        """The authorities as they are now."""
        self._authorities = authorities
        self._note(Authorities(tuple(authorities)))

    def _is_writer(self) -> bool:
        if self._lock < 0:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(
                self._path.with_name(self._path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                return False
            self._lock = lock
        return True

    async def _tick(self) -> None:
        now = monotonic_seconds()
        if now >= self._next_snapshot:
            await self._snapshot()
            took = monotonic_seconds() - now
            self._next_snapshot = now + max(_SNAPSHOT_SECONDS, took * _SHARE)
        if now >= self._next_instant:
            self._note_instant()
            self._next_instant = now + _INSTANT_SECONDS
        await asyncio.to_thread(self._file.sync)

    def _note_instant(self) -> None:
        # All changes up to the heartbeat were handed out before it was, and noted in that moment.
        if self._feed.heartbeat is not None and self._authorities is not None:
            self._note(Instant(self._feed.heartbeat.at))

    async def _snapshot(self) -> None:
        if self._feed.heartbeat is None or self._authorities is None:
            return
        self._spoiled = False
        before, self._changed = self._changed, set()
        self._noted.clear()
        self._all_since = self._feed.heartbeat.at - _SIGNED_AND_RECORDED
        self._file.begin(self._feed.heartbeat.at, self._authorities)
        try:
            count = 0
            async for page in self._pages(self._authorities):
                self._file.add(page)
                count += len(page)
            await asyncio.to_thread(self._file.settle)
            self._finish()
        except BaseException:
            self._changed |= before
            raise
        finally:
            self._file.give_up()
        self._metrics.snapshot(count)

    def _finish(self) -> None:
        if self._spoiled:
            raise StoreUnavailable("the copy was out of sight while its answers were being kept")
        self._file.finish()

    async def _pages(self, authorities: Sequence[AuthorityRecord]) -> AsyncIterator[list[KeptAnswer]]:
        """Every answer, or `most` of them."""
        now, left = datetime.now(UTC), self._most
        until = now + self._bound
        first: set[AnswerKey] = set()
        if self._too_many:
            first = set(self._asked)
            async for page in self._reader.named([*self._asked][::-1], now, until):
                yield page[:left]
                left -= len(page[:left])
        self._too_many = False
        for authority in authorities:
            if authority.name in self._names:
                async for page in self._reader.all_of(authority.id, now, until):
                    others = [answer for answer in page if answer.key not in first]
                    if len(others) > left:
                        self._too_many = True
                        yield others[:left]
                        return
                    yield others
                    left -= len(others)

    def _note(self, record: Record) -> None:
        try:
            self._file.note(record)
        except OSError as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        """A note that was not written makes the file wrong, so it is made anew; until then it says nothing new."""
        self._file.close()
        self._metrics.failures.inc()
        self._next_snapshot = monotonic_seconds() + _INSTANT_SECONDS
        log.error("answers cannot be kept on disk", file=str(self._path), problem=str(error))
