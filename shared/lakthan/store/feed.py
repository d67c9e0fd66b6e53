"""The change feed: every committed change reaches this process, or the process knows that it may not.

A responder may answer from its caches only while `trusted` is true. How that can be promised:

* A change and its NOTIFY commit together, and Postgres puts notifications on the wire before it reports the end of a
  query on the same connection. So a heartbeat (a small query on the listening connection) that came back proves that
  every change whose commit was confirmed before the heartbeat was sent has been handed to `on_change`.
* Trust therefore ends `bound` after the last proven heartbeat was *sent*, by the clock alone: a connection that has
  gone silent, or a process that stood still, cannot prolong it. A connection that is seen to break ends it at once.
  The clock is read when the question is asked, and it is the one that also counts while the machine sleeps, which an
  event loop's does not.
* Nothing is replayed. On loss the consumer empties its caches; the new connection listens first, and only then is the
  feed ready, so that whatever is cached from then on will be corrected by it.
* Asked on `lakthan_ask` (`lakthan.store.served` does), it answers on `lakthan_served`, on the same connection: whoever
  gets the answer knows that every change committed before the question was handed out. Before it is trusted for the
  first time it says there, unasked, that it exists.

The consumer's part: an answer that was being read while a change arrived may be older than the change; compare
`version`, or do not cache what was asked before the last change of the same certificate.

Trusted: everybody who may log in to this database can send a notification. So a change is a reason to drop a cached
answer and to ask the store again; it must never turn into an answer by itself. Answers to questions cost a statement
each time, so few are answered at once and odd ones not at all.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import asyncpg

from lakthan.errors import ConfigError, StoreUnavailable
from lakthan.store.pool import unavailable_as_such
from lakthan.store.records import CertStatus, CRLReason, StatusRecord

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

STATUS_CHANNEL = "lakthan_status"
AUTHORITY_CHANNEL = "lakthan_authority"
ASK_CHANNEL = "lakthan_ask"
SERVED_CHANNEL = "lakthan_served"
# The application_name of every listening connection, by which `lakthan.store.served` finds them.
FEED_NAME = "lakthan-ocsp-feed"
# How long a responder may go on using its caches without a proof that it has heard of every change.
BOUND = timedelta(seconds=3)

_FIRST_DELAY_SECONDS = 0.1
_LONGEST_DELAY_SECONDS = 5.0
_MOST_ASKS = 100
_LONGEST_ASK = 64

# Announced before the first heartbeat, so that nobody is trusted whom `lakthan.store.served` does not know. What this
# connection commits is words only: nothing of it has to be on disk.
_ANNOUNCE = """
    SELECT set_config('application_name', $1, false), set_config('synchronous_commit', 'off', false), pg_notify($2, '')
"""

# A heartbeat, alone and with an answer to whoever asks: each brings the time of the database's clock.
BEAT = "SELECT clock_timestamp()"
_BEAT_AND_ANSWER = "SELECT clock_timestamp() FROM pg_notify($1, $2)"

_log = logging.getLogger(__name__)


class ChangeFeed:
    """Follows the changes on a connection of its own for as long as `run` runs.

    `heartbeat`: how often the connection is tried; `bound`: how old its last proof may be, longer than a heartbeat.
    `connect` opens a connection that is used for nothing else. The callbacks are called in the event loop, must be
    quick and must not fail: `on_ready()` when the feed begins to be trusted, `on_change(record, changed_at)` for the
    new status of a certificate, `on_many_changes(authority_id, changed_at)` for more of an authority's certificates
    than are named, `on_authority_change()` when an authority was added or changed, and `on_lost(why)` once for every
    `on_ready` when the feed is no longer trusted: empty the caches. `on_beat(instant)`: a heartbeat has come back, with
    the time of the database's clock. `changed_at`: the database's clock shortly before the commit; None when it was not
    said.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[asyncpg.Connection]],
        *,
        on_change: Callable[[StatusRecord, datetime | None], None],
        on_many_changes: Callable[[int, datetime | None], None],
        on_authority_change: Callable[[], None],
        on_ready: Callable[[], None],
        on_lost: Callable[[Exception], None],
        on_beat: Callable[[datetime], None] | None = None,
        heartbeat: timedelta = timedelta(seconds=1),
        bound: timedelta = BOUND,
    ) -> None:
        self._connect = connect
        self._on_change = on_change
        self._on_many_changes = on_many_changes
        self._on_authority_change = on_authority_change
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._on_beat = on_beat
        self._heartbeat_seconds = heartbeat.total_seconds()
        self._bound_seconds = bound.total_seconds()
        # A heartbeat is given up when the trust that the one before it earned runs out.
        self._patience_seconds = self._bound_seconds - self._heartbeat_seconds
        self._broken: asyncio.Future[None] | None = None  # of the connection in use; resolved when it is lost
        self._ready = False
        # Trust ends at this instant of `monotonic_seconds`; a plain number, because it is asked for every answer.
        self.trusted_until = 0.0
        self._proven = 0.0  # the instant of `monotonic_seconds` up to which every confirmed change has been handed out
        self._asks: list[str] = []
        self._held = False
        self._asked: asyncio.Future[None] | None = None  # resolved when there is something in _asks

    @property
    def trusted(self) -> bool:
        """True while every change up to `bound` ago has certainly been handed out."""
        return monotonic_seconds() < self.trusted_until

    @property
    def proven(self) -> float:
        """The instant of `monotonic_seconds` up to which every change has certainly been handed out; 0: never yet."""
        return self._proven

    def hold_answers(self) -> None:
        """Nobody is to be told for now that every change has been taken in: the consumer is still at work on one."""
        self._held = True

    def give_answers(self) -> None:
        """The consumer has taken in what it was handed."""
        self._held = False
        self._answer_soon()

    async def run(self) -> None:
        """Follow until cancelled: connect, listen, and on loss come again, more and more slowly."""
        delay = _FIRST_DELAY_SECONDS
        while True:
            began = monotonic_seconds()
            try:
                await self._follow_one_connection()
            except (StoreUnavailable, ConfigError) as error:
                _log.warning("the change feed is lost and will be sought again: %s", error)
            except Exception:  # noqa: BLE001 - whatever it was, a responder without its feed must keep seeking it
                _log.exception("the change feed failed and will be sought again")
            if self._proven > began:
                delay = _FIRST_DELAY_SECONDS
            # Spread out, so that a restarted database is not met by all the workers in the same instant.
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - not a secret
            delay = min(delay * 2, _LONGEST_DELAY_SECONDS)

    async def _follow_one_connection(self) -> None:
        connection = await self._connect()
        loop = asyncio.get_running_loop()
        self._broken, self._asked, self._asks = loop.create_future(), loop.create_future(), []
        try:
            with unavailable_as_such():
                connection.add_termination_listener(self._closed)
                async with asyncio.timeout(self._patience_seconds):
                    await connection.add_listener(STATUS_CHANNEL, self._status_notified)
                    await connection.add_listener(AUTHORITY_CHANNEL, self._authority_notified)
                    await connection.add_listener(ASK_CHANNEL, self._ask_notified)
                    await connection.execute(_ANNOUNCE, FEED_NAME, SERVED_CHANNEL)
                await self._beat(connection)
                self._ready = True
                self.trusted_until = self._proven + self._bound_seconds
                self._on_ready()
                while True:
                    await asyncio.wait(
                        [self._broken, self._asked],
                        timeout=self._heartbeat_seconds,
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                    if self._broken.done():
                        self._broken.result()
                    await self._beat(connection)
        except BaseException as error:
            self._lose(error if isinstance(error, Exception) else StoreUnavailable("the change feed was stopped"))
            raise
        finally:
            self._broken = self._asked = None
            connection.remove_termination_listener(self._closed)
            # Never a polite goodbye: a server that has gone silent would not answer it.
            connection.terminate()

    async def _beat(self, connection: asyncpg.Connection) -> None:
        """Try the connection, and with the same statement answer whoever asks."""
        asks, self._asks = ([], self._asks) if self._held else (self._asks, [])
        self._asked = asyncio.get_running_loop().create_future()
        sent = monotonic_seconds()
        try:
            async with asyncio.timeout(self._patience_seconds):
                if asks:
                    instant = await connection.fetchval(_BEAT_AND_ANSWER, SERVED_CHANNEL, " ".join(asks))
                else:
                    instant = await connection.fetchval(BEAT)
        except TimeoutError as error:
            raise StoreUnavailable("the database has stopped answering on the change feed") from error
        if self._on_beat is not None:
            self._on_beat(instant)
        self._proven = sent
        if self._ready:
            self.trusted_until = sent + self._bound_seconds

    def _lose(self, error: Exception) -> None:
        """End the trust and say so, once, and wake `_follow_one_connection`."""
        if self._broken is not None and not self._broken.done():
            self._broken.set_exception(error)
            self._broken.exception()  # it may be what this future's reader has raised itself
        if self._ready:
            self._ready = False
            self.trusted_until = 0.0
            self._on_lost(error)

    def _closed(self, _connection: object) -> None:
        self._lose(StoreUnavailable("the database closed the connection of the change feed"))

    def _status_notified(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        try:
            fields = json.loads(str(payload))
            changed_at = _instant(fields.get("changed_at"))
            if fields.get("all"):
                self._on_many_changes(int(fields["authority_id"]), changed_at)
            else:
                self._on_change(_status_record(fields), changed_at)
        except Exception as error:  # noqa: BLE001 - a change that was not understood, or not taken, may not be skipped
            _log.exception("a notified change could not be used")
            self._lose(error)

    def _authority_notified(self, _connection: object, _pid: int, _channel: str, _payload: object) -> None:
        try:
            self._on_authority_change()
        except Exception as error:  # noqa: BLE001 - as above
            _log.exception("a change of the authorities could not be used")
            self._lose(error)

    def _ask_notified(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        ask = str(payload)
        sensible = ask.isascii() and ask.isalnum() and len(ask) <= _LONGEST_ASK
        if sensible and len(self._asks) < _MOST_ASKS:
            self._asks.append(ask)
            self._answer_soon()

    def _answer_soon(self) -> None:
        if self._asks and not self._held and self._asked is not None and not self._asked.done():
            self._asked.set_result(None)


def monotonic_seconds() -> float:
    """The clock that trust is measured by: read now, never set back, and counting while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _status_record(fields: dict[str, Any]) -> StatusRecord:
    reason, digest = fields["revocation_reason"], fields["certificate_sha256"]
    return StatusRecord(
        authority_id=fields["authority_id"],
        serial_number=bytes.fromhex(fields["serial_number"]),
        cert_status=CertStatus(fields["cert_status"]),
        revocation_time=_instant(fields["revocation_time"]),
        revocation_reason=None if reason is None else CRLReason(reason),
        invalidity_date=_instant(fields["invalidity_date"]),
        not_after=_instant(fields["not_after"]),
        version=fields["version"],
        certificate_sha256=None if digest is None else bytes.fromhex(digest),
    )


def _instant(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
