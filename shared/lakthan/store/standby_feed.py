"""The change feed of a responder whose database is a copy: a physical standby or a logical subscriber.

Nothing notifies there (LISTEN is refused on a standby, NOTIFY is replicated to nobody), so this feed looks several
times a second, with the contract of `lakthan.store.feed`: while `trusted_until` lies ahead, everything that the copy
has taken in was handed to the callbacks, or they were told that it may not have been. How that can be promised:

* What changed is read from the audit chains, whose records have numbers without gaps in the order of their commits
  (decision 0010). A copy takes commits in, in that order, so everything up to the last number is there. The versions
  of the statuses would not do: a sequence is not transactional, and a long import commits old numbers late.
* A record says how many changes it seals. Only when so many are found are they told one by one; else all certificates
  of the authority are said to have changed.
* A gap, a number that went back, or a copy whose tables are not in step with each other (still being filled, filled by
  several subscriptions, or without the audit chains) is a loss: the consumer forgets everything, and begins anew.
* Anew is never earlier: a copy that lacks the last record that was seen here, or has another in its place, is not
  followed (`DatabaseWentBack`). One that is merely behind, such as a standby made from an old backup, catches up and is
  followed again. One of a capital that was restored to an earlier point does not: people have to say that its losses
  are entered again, by a new start of this process.

How old the copy is: the publisher writes the instant into `heartbeat` every second, in the capital. Everything that was
committed before that instant is in a copy that has the row. Its age is the wall clock's distance to it, or what has
passed on the clock that nobody sets since it was first seen here, whichever is more: a clock set back makes nothing
younger.

Trusted: whoever may write these tables, and the clocks of this machine and of the publisher's to agree within
seconds. A connection is given up, as in `lakthan.store.feed`, by the clock alone.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from lakthan.errors import ConfigError, StoreUnavailable
from lakthan.store.feed import BOUND, monotonic_seconds
from lakthan.store.pool import unavailable_as_such
from lakthan.store.told import DatabaseWentBack

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import asyncpg

POLL = timedelta(milliseconds=200)

_FIRST_DELAY_SECONDS = 0.1
_LONGEST_DELAY_SECONDS = 2.0
# A statement with more changes than this is told as one change of all.
_MOST_CHANGES = 1000

# The ends of the chains in one snapshot with the heartbeat: whoever sees an instant sees all that came before it.
_LOOK = """
    WITH filled AS (SELECT srsubid, srsubstate FROM pg_subscription_rel
                     WHERE srrelid = ANY (ARRAY['authority', 'authority_name', 'authority_key', 'authority_certificate',
                               'authority_crl', 'certificate_status', 'published_answer', 'presigned_authority',
                               'status_change', 'bulk_change', 'audit_record', 'heartbeat']::regclass[]))
    SELECT (SELECT max(h.at) FROM heartbeat h) AS heartbeat,
           (SELECT count(DISTINCT srsubid) FROM filled) AS subscriptions,
           NOT EXISTS (SELECT FROM filled WHERE srsubstate NOT IN ('r', 's')) AS filled,
           ARRAY(SELECT id FROM authority ORDER BY id) AS chains,
           ARRAY(SELECT coalesce((SELECT max(r.number) FROM audit_record r WHERE r.chain = a.id), 0)
                   FROM authority a ORDER BY a.id) AS numbers
"""
_CHANGES = "SELECT number, at, event, change_count, serial_number, change FROM changes_after($1, $2, $3)"

# What a record that seals no changes can have made stale, by its event; of one that is not known here: everything.
_NOTHING = frozenset({"policy", "credential", "refused", "read", "import"})
_ANSWERS = frozenset({"ceremony"})
_AUTHORITIES = frozenset({"authority", "crl"})

_log = logging.getLogger(__name__)


class Seen:
    """An instant of the database, and when it was first seen here."""

    def __init__(self, at: datetime) -> None:
        self.at = at
        self._seen_at = monotonic_seconds()
        self._age_then = max(0.0, (datetime.now(UTC) - at).total_seconds())

    def age(self) -> timedelta:
        """How long ago it is, by the clock that says more."""
        by_wall_clock = (datetime.now(UTC) - self.at).total_seconds()
        return timedelta(seconds=max(by_wall_clock, self._age_then + monotonic_seconds() - self._seen_at))


class StandbyFeed:
    """Looks for changes on a connection of its own for as long as `run` runs.

    `connect` opens a connection that is used for nothing else. The callbacks are called in the event loop, must be
    quick and must not fail: `on_ready()` when the feed begins to be trusted; `on_change(authority_id, serial_number,
    changed_at)`, `on_many_changes(authority_id, changed_at)` and `on_authority_change()` as in `ChangeFeed`;
    `on_lost(why)` once for every `on_ready`. `most_age`: trust ends when the copy is older than that.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[asyncpg.Connection]],
        *,
        on_change: Callable[[int, bytes, datetime], None],
        on_many_changes: Callable[[int, datetime], None],
        on_authority_change: Callable[[], None],
        on_ready: Callable[[], None],
        on_lost: Callable[[Exception], None],
        most_age: timedelta,
        poll: timedelta = POLL,
        bound: timedelta = BOUND,
    ) -> None:
        self._connect = connect
        self._on_change = on_change
        self._on_many_changes = on_many_changes
        self._on_authority_change = on_authority_change
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._most_age_seconds = most_age.total_seconds()
        self._poll_seconds = poll.total_seconds()
        self._bound_seconds = bound.total_seconds()
        self._numbers: dict[int, int] = {}
        # Of each chain, the last record that was seen and its instant, kept over every loss.
        self._last: dict[int, tuple[int, datetime]] = {}
        self._ready = False
        self._looked_at = 0.0
        self.heartbeat: Seen | None = None  # the newest state that was seen in the copy; None: it never had one
        # Both are instants of `monotonic_seconds`; plain numbers, because they are asked for every answer.
        self.heard_until = 0.0  # until then everything that the copy has taken in was handed out `bound` ago at most
        self.trusted_until = 0.0  # the same, or until the copy is too old

    @property
    def heard(self) -> bool:
        """True while this feed is in step with the copy, however old that is."""
        return monotonic_seconds() < self.heard_until

    @property
    def trusted(self) -> bool:
        """True while this feed is in step with the copy, and the copy is not too old."""
        return monotonic_seconds() < self.trusted_until

    async def run(self) -> None:
        """Look until cancelled; on loss connect again, more and more slowly."""
        delay = _FIRST_DELAY_SECONDS
        while True:
            began = monotonic_seconds()
            try:
                await self._follow_one_connection()
            except (StoreUnavailable, ConfigError) as error:
                _log.warning("changes cannot be looked for and the database is sought again: %s", error)
            except Exception:  # noqa: BLE001 - whatever it was, a responder without its feed must keep seeking it
                _log.exception("the look for changes failed and is begun again")
            if self._looked_at > began:
                delay = _FIRST_DELAY_SECONDS
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LONGEST_DELAY_SECONDS)

    async def _follow_one_connection(self) -> None:
        connection = await self._connect()
        try:
            while True:
                began = monotonic_seconds()
                try:
                    # Given up when the trust that the look before this one earned runs out.
                    async with asyncio.timeout(self._bound_seconds):
                        with unavailable_as_such():
                            await self._look(connection)
                except TimeoutError as error:
                    raise StoreUnavailable("the database has stopped answering") from error
                self._looked_at, self.heard_until = began, began + self._bound_seconds
                self.trusted_until = min(self.heard_until, monotonic_seconds() + self._left_seconds())
                await asyncio.sleep(self._poll_seconds)
        except BaseException as error:
            self._lose(error if isinstance(error, Exception) else StoreUnavailable("the feed was stopped"))
            raise
        finally:
            # Never a polite goodbye: a server that has gone silent would not answer it.
            connection.terminate()

    def _left_seconds(self) -> float:
        """How long it is until the copy is too old, if nothing more comes."""
        return 0.0 if self.heartbeat is None else self._most_age_seconds - self.heartbeat.age().total_seconds()

    async def _look(self, connection: asyncpg.Connection) -> None:
        (row,) = await connection.fetch(_LOOK)
        numbers = dict(zip(row["chains"], row["numbers"], strict=True))
        if not row["filled"]:
            raise StoreUnavailable("the tables of the subscription are still being filled")
        if row["subscriptions"] > 1:
            raise StoreUnavailable("several subscriptions fill the tables, so they are not in step: make it one")
        if numbers and not any(numbers.values()):
            raise StoreUnavailable("there are authorities and no audit chains: audit_record must be replicated too")
        if not self._ready:
            await self._demand_the_same_past(connection)
            for chain, number in numbers.items():
                await self._note_last(connection, chain, number)
            self._numbers = numbers
            self._take(row["heartbeat"])
            self._ready = True
            self._on_ready()
            return
        for chain, number in numbers.items():
            await self._hand_out(connection, chain, number)
        self._take(row["heartbeat"])

    async def _demand_the_same_past(self, connection: asyncpg.Connection) -> None:
        """Raise `DatabaseWentBack` unless all that was seen in an earlier life of the copy is in this one."""
        for chain, (number, at) in self._last.items():
            found = await _record_at(connection, chain, number)
            if found != at:
                raise DatabaseWentBack(
                    f"the copy lacks record {number} of audit chain {chain}, made {at:%Y-%m-%d %H:%M:%S} UTC, by which "
                    "was answered here: it is behind, or the database was restored to an earlier point. If it does not "
                    "catch up, enter there what was lost, then start this process again (docs/disaster-recovery.md)"
                )

    async def _note_last(self, connection: asyncpg.Connection, chain: int, number: int) -> None:
        at = await _record_at(connection, chain, number) if number else None
        if at is not None:
            self._last[chain] = (number, at)

    def _take(self, heartbeat: datetime | None) -> None:
        """Of the copy's heartbeat, after everything that came before it was handed out."""
        if heartbeat is not None and (self.heartbeat is None or heartbeat != self.heartbeat.at):
            self.heartbeat = Seen(heartbeat)

    async def _hand_out(self, connection: asyncpg.Connection, chain: int, end: int) -> None:
        """Tell what came after the last number that was seen, as far as `end` at least."""
        seen = self._numbers.get(chain, 0)
        if end == seen:
            return
        if end < seen:
            raise StoreUnavailable("the copy has gone back behind what it was")
        records: dict[int, list[asyncpg.Record]] = {}
        for row in await connection.fetch(_CHANGES, chain, seen, _MOST_CHANGES):
            records.setdefault(row["number"], []).append(row)
        if [*records] != [*range(seen + 1, seen + 1 + len(records))]:
            raise StoreUnavailable(f"records of audit chain {chain} are missing after {seen}")
        if seen + len(records) < end:
            raise StoreUnavailable("the copy has taken in too many changes at once to name them")
        for rows in records.values():
            self._tell(chain, rows)
        self._numbers[chain] = seen + len(records)
        self._last[chain] = (self._numbers[chain], records[self._numbers[chain]][0]["at"])

    def _tell(self, chain: int, rows: list[asyncpg.Record]) -> None:
        event, count, at = rows[0]["event"], rows[0]["change_count"], rows[0]["at"]
        if count is not None:
            if any(row["serial_number"] is None for row in rows) or len(rows) != count:
                self._on_many_changes(chain, at)
                return
            for row in rows:
                if row["change"] != "issue":  # a first issue makes nothing stale that was answered before
                    self._on_change(chain, row["serial_number"], at)
        elif event in _ANSWERS:
            self._on_many_changes(chain, at)
        elif event in _AUTHORITIES:
            self._on_authority_change()
        elif event not in _NOTHING:
            self._on_many_changes(chain, at)
            self._on_authority_change()

    def _lose(self, error: Exception) -> None:
        self.heard_until = self.trusted_until = 0.0
        if self._ready:
            self._ready = False
            self._on_lost(error)


async def _record_at(connection: asyncpg.Connection, chain: int, number: int) -> datetime | None:
    """The instant of a record; None when the chain does not have it."""
    for row in await connection.fetch(_CHANGES, chain, number - 1, 0):
        if row["number"] == number:
            at: datetime = row["at"]
            return at
    return None
