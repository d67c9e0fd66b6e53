"""When does every responder answer by a change? Whoever has committed one can wait here until they all do.

Promises: `wait_until_served`, called after a commit has returned, comes back when no responder process answers any
request that is made from then on from before that commit, whatever has happened to any of them. In one of two ways:

* acknowledged: every process whose feed may be trusted has answered a question that was asked after the commit.
  Notifications keep their order, so each has dropped what the commit made stale;
* by the bound: whoever has not answered `bound` after the commit has stopped using its caches by itself
  (`lakthan.store.feed`), because it was stopped or killed, or its connection was cut.

That no feed is forgotten: each says on `lakthan_served` that it exists before it is trusted for the first time, and is
found among the sessions of the database as well. One whose session is gone still counts until its trust has run out,
for its process may not have noticed. A watch that has just begun cannot know of those, and waits for the bound.

Trusted: nobody for the promise that it is served; an answer counts for the session that gave it, and Postgres says
which one that was; and a question is a word that nobody can guess, so that nobody has it answered before it is asked.
Everybody who may log in to this database can take the name of a feed and say nothing, which makes
everybody wait for the bound.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from lakthan.errors import ConfigError, StoreUnavailable
from lakthan.store.feed import ASK_CHANNEL, BOUND, FEED_NAME, SERVED_CHANNEL, monotonic_seconds
from lakthan.store.pool import unavailable_as_such

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import asyncpg

_HEARTBEAT_SECONDS = 1.0
_RETRY_SECONDS = 1.0
# A question waits for the answers to the one before it, but not long for a process that may be gone.
_PAUSE_SECONDS = 0.1
# Each question costs a commit of every process, so callers within this time share one.
_DISTANCE_SECONDS = 0.01
# Answers to questions before these are too late for anybody.
_MOST_QUESTIONS = 1000

_FEEDS = """
    ARRAY(SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1)
"""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Served:
    """How it came about that every responder answers by a change.

    `acknowledged`: all of the `workers` that are known said so; otherwise by the bound, which is as certain. `seconds`:
    how long it took.
    """

    acknowledged: bool
    workers: int
    seconds: float


@dataclass(slots=True)
class _Feed:
    """A feed that may be trusted: the last question that it answered, and since when its session is gone."""

    answered: int = 0
    gone_since: float | None = None


class ServedWatch:
    """Knows every responder process of a database for as long as `run` runs, and asks them.

    One for each process: all callers share its connection and its questions. `connect` opens a connection that is used
    for nothing else; any role will do. `bound`: not below that of the responders' feeds.
    """

    def __init__(self, connect: Callable[[], Awaitable[asyncpg.Connection]], *, bound: timedelta = BOUND) -> None:
        self._connect = connect
        self._bound_seconds = bound.total_seconds()
        self._feeds: dict[int, _Feed] = {}  # by the pid of their sessions
        self._asked = 0  # the number of the last question
        self._questions: dict[str, int] = {}  # the words of the last ones, and their numbers
        self._out = 0  # the last question that has certainly gone out, to all of _feeds
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []  # for which question to be answered by all
        self._complete_since = float("inf")  # the instant since which no new feed escapes this watch
        self._broken: asyncio.Future[None] | None = None
        self._wake: asyncio.Future[None] | None = None  # resolved when there is something to do before time

    async def wait_until_served(self) -> Served:
        """Wait until every responder answers by whatever was committed before this call.

        Takes `bound` at the longest, also when the database is away or `run` does not run.
        """
        started = monotonic_seconds()
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((self._asked + 1, answered))
        self._wake_up()
        acknowledged = True
        try:
            async with asyncio.timeout(self._bound_seconds):
                await answered
                # Before this, a feed may have been cut off that the watch never heard of.
                await asyncio.sleep(self._complete_since + self._bound_seconds - monotonic_seconds())
        except TimeoutError:
            acknowledged = False
        return Served(acknowledged, len(self._feeds), monotonic_seconds() - started)

    async def run(self) -> None:
        """Watch until cancelled; a connection that breaks is opened again."""
        while True:
            try:
                await self._watch_on_one_connection()
            except (StoreUnavailable, ConfigError) as error:
                _log.warning("the responders cannot be asked what they serve until the database is back: %s", error)
            except Exception:  # noqa: BLE001 - whoever cannot ask still waits for the bound, and may ask again
                _log.exception("asking the responders failed and will be tried again")
            await asyncio.sleep(_RETRY_SECONDS)

    async def _watch_on_one_connection(self) -> None:
        connection = await self._connect()
        loop = asyncio.get_running_loop()
        self._broken = loop.create_future()
        try:
            with unavailable_as_such():
                connection.add_termination_listener(self._closed)
                await connection.add_listener(SERVED_CHANNEL, self._heard)
                await connection.execute("SET synchronous_commit = off")  # a question need not be on disk
                self._complete_since = monotonic_seconds()
                while True:
                    self._wake = loop.create_future()
                    self._waiting = [each for each in self._waiting if not each[1].done()]
                    if self._waiting:
                        await self._ask(connection)
                        await asyncio.sleep(_DISTANCE_SECONDS)
                    else:
                        await self._look(connection)
                    pause = _PAUSE_SECONDS if self._waiting else _HEARTBEAT_SECONDS
                    await asyncio.wait([self._broken, self._wake], timeout=pause, return_when="FIRST_COMPLETED")
                    if self._broken.done():
                        self._broken.result()
        finally:
            self._complete_since = float("inf")
            self._broken = self._wake = None
            connection.remove_termination_listener(self._closed)
            # Never a polite goodbye: a server that has gone silent would not answer it.
            connection.terminate()

    async def _look(self, connection: asyncpg.Connection) -> None:
        self._found(await connection.fetchval(f"SELECT {_FEEDS}", FEED_NAME, timeout=self._bound_seconds))

    async def _ask(self, connection: asyncpg.Connection) -> None:
        question = secrets.token_hex(16)
        self._asked += 1
        self._questions[question] = self._asked
        if len(self._questions) > _MOST_QUESTIONS:
            del self._questions[next(iter(self._questions))]
        self._found(
            await connection.fetchval(
                f"SELECT {_FEEDS}, pg_notify($2, $3)",
                FEED_NAME,
                ASK_CHANNEL,
                question,
                timeout=self._bound_seconds,
            )
        )
        self._out = self._asked
        self._settle()

    def _found(self, pids: list[int]) -> None:
        """Take note of the sessions that there are, and forget whose trust has run out."""
        now = monotonic_seconds()
        for pid in pids:
            self._feeds.setdefault(pid, _Feed()).gone_since = None
        for pid in self._feeds.keys() - set(pids):
            feed = self._feeds[pid]
            feed.gone_since = now if feed.gone_since is None else feed.gone_since
            if now - feed.gone_since > self._bound_seconds:
                del self._feeds[pid]

    def _heard(self, _connection: object, pid: int, _channel: str, payload: object) -> None:
        """A feed says that it exists, or answers. What it was asked by others makes no difference here."""
        feed = self._feeds.setdefault(pid, _Feed())
        for question in str(payload).split():
            feed.answered = max(feed.answered, self._questions.get(question, 0))
        self._settle()

    def _settle(self) -> None:
        """Tell those who wait for a question that everybody has answered."""
        answered = min([self._out, *(feed.answered for feed in self._feeds.values())])
        for number, waiter in self._waiting:
            if number <= answered and not waiter.done():
                waiter.set_result(None)
        if answered == self._asked:
            self._wake_up()

    def _wake_up(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _closed(self, _connection: object) -> None:
        if self._broken is not None and not self._broken.done():
            self._broken.set_exception(StoreUnavailable("the database closed the connection"))


async def measure_served(
    watch: ServedWatch, observe: Callable[[Served], None], *, every: timedelta = timedelta(seconds=10)
) -> None:
    """Ask again and again how long it takes until every responder answers by a change made now."""
    while True:
        observe(await watch.wait_until_served())
        await asyncio.sleep(every.total_seconds())
