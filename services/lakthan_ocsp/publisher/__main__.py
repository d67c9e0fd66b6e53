"""`python -m lakthan_ocsp.publisher --config FILE`: wiring only. Configuration → keys, store → one loop per authority.

Several may run with the same configuration: for each authority one of them signs, and another one takes over when it is
gone. So it is with the heartbeat.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

from lakthan.config import Config, PresignConfig, PublisherConfig
from lakthan.errors import ConfigError, StoreUnavailable
from lakthan.store.feed import STATUS_CHANNEL
from lakthan.store.leadership import leading
from lakthan.store.pool import connect, open_pool, unavailable_as_such
from lakthan.store.presigned import Presigned, prepare
from lakthan.store.schema import schema_problem
from lakthan.store.status import AuthorityReader
from lakthan.telemetry.logs import log
from lakthan.web.admin import admin_application
from lakthan.web.front import open_admin
from lakthan.web.process import command, run_alongside
from lakthan.web.waiting import wait_until_fine
from lakthan_ocsp.opening import open_keys
from lakthan_ocsp.publisher.compared_clock import ComparedClock
from lakthan_ocsp.publisher.metrics import PublisherMetrics
from lakthan_ocsp.publisher.presigner import ClockDoubted, Presigner, hashes_of
from lakthan_ocsp.publisher.schedule import Pace
from lakthan_ocsp.responders import Responders
from lakthan_ocsp.wall_clock import check_tolerance

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from datetime import datetime

    import asyncpg

    from lakthan.store.records import AuthorityRecord
    from lakthan.web.process import UntilAsked
    from lakthan_ocsp.directory import Responder
    from lakthan_ocsp.publisher.schedule import Clock

    Connect = Callable[[], Awaitable[asyncpg.Connection]]

ROLE = "lakthan_presigner"
_NAME = "lakthan-publisher"
_AGAIN_SECONDS = 1.0
_BEAT_SECONDS = 1.0
_COUNT_SECONDS = 15.0
_BEATING = 0  # what leads the heartbeat; authorities count from 1


async def serve(config: Config, until_asked: UntilAsked) -> None:
    """Sign ahead until asked to stop. Raises `ConfigError`, and `StoreUnavailable` without a database to begin with."""
    if config.publisher is None:
        raise ConfigError("the configuration has no [publisher] table")
    settings = config.publisher
    check(settings)
    metrics = PublisherMetrics()
    async with AsyncExitStack() as stack:
        password = settings.database.password()

        async def connect_one() -> asyncpg.Connection:
            return await connect(settings.database.url, role=ROLE, password=password, application_name=_NAME)

        pool = await open_pool(
            settings.database.url, role=ROLE, min_size=1, max_size=2, password=password, application_name=_NAME
        )
        stack.push_async_callback(pool.close)
        await wait_until_fine(
            "schema",
            partial(schema_problem, pool),
            registry=metrics.registry,
            host=settings.admin_host,
            port=settings.admin_port,
        )
        clock = ComparedClock(pool, settings.clock_tolerance)
        await clock.compare()
        run_alongside(stack, clock.watch())
        metrics.clock_ahead.set_function(lambda: clock.wall.ahead)
        metrics.clock_believed.set_function(clock.wall.steady)
        paces: dict[str, Pace] = {}
        authorities = []
        for each in settings.responders:
            ring = await open_keys(each, config.approval)
            stack.push_async_callback(ring.aclose)
            speakers = Responders([ring])
            metrics.watch_keys(speakers)
            # Responders that share a key share its bound.
            pace = paces.setdefault(
                each.key.uri if each.key else str(each.keys), Pace(each.signatures_per_second, clock)
            )
            presigner = Presigner(each, partial(_speaking, speakers), pace, metrics, clock)
            metrics.allowed_per_second.labels(each.authority).set(each.signatures_per_second or 0)
            metrics.short.labels(each.authority).set(0)
            authority = _Authority(each, presigner, clock, pool=pool, connect_one=connect_one, metrics=metrics)
            run_alongside(stack, ring.watch(authority.keys_changed))
            run_alongside(stack, authority.run())
            run_alongside(stack, authority.count())
            authorities.append(authority)
        run_alongside(stack, _beat(connect_one, metrics))
        admin = await open_admin(
            admin_application(metrics.registry, lambda: {a.config.authority: a.problem() for a in authorities}),
            settings.admin_host,
            settings.admin_port,
        )
        stack.push_async_callback(admin.close)
        log.info("publishing", authorities=[a.config.authority for a in authorities], admin_port=admin.port)
        await until_asked(0, admin.port)


def check(settings: PublisherConfig) -> None:
    """Raises `ConfigError` for settings that contradict themselves."""
    check_tolerance(settings.clock_tolerance)
    names = [each.authority for each in settings.responders]
    for each in settings.responders:
        hashes_of(each)
        if names.count(each.authority) > 1:
            raise ConfigError(f"publisher: {each.authority!r} is there twice; an answer has one signature")


def _speaking(speakers: Responders, authorities: Sequence[AuthorityRecord], now: datetime) -> Responder:
    for responder in speakers.speaking(authorities, now):
        return responder
    raise ConfigError("its responder has no key that may sign")


class _Authority:
    """One authority's part of the process: wait for the lead, then sign until it is lost."""

    def __init__(
        self,
        config: PresignConfig,
        presigner: Presigner,
        clock: Clock,
        *,
        pool: asyncpg.Pool,
        connect_one: Connect,
        metrics: PublisherMetrics,
    ) -> None:
        self.config = config
        self._presigner = presigner
        self._clock = clock
        self._pool = pool
        self._connect = connect_one
        self._metrics = metrics
        self._away = "not started yet"
        self._leads = False

    def problem(self) -> str:
        """For /readyz. To stand by is no problem, but to be unfit for it is one."""
        return self._clock.problem() or self._away or (self._presigner.problem if self._leads else "")

    async def keys_changed(self) -> None:
        """See `KeyRing.watch`."""
        self._presigner.keys_changed()

    async def run(self) -> None:
        """Until cancelled."""
        name = self.config.authority
        self._stand_by()
        while True:
            if self._clock.problem():  # whoever has a better one should lead
                await asyncio.sleep(_AGAIN_SECONDS)
                continue
            try:
                authority_id = await self._id()
                async with leading(self._connect, authority_id, self._stand_by) as connection:
                    log.info("this process signs ahead", authority=name)
                    self._away, self._leads = "", True
                    self._metrics.leader.labels(name).set(1)
                    await prepare(connection)
                    # Who has nothing to do notices the loss of his lead as well.
                    connection.add_termination_listener(self._presigner.wake)
                    with unavailable_as_such():
                        await connection.add_listener(STATUS_CHANNEL, self._presigner.wake)
                    await self._presigner.run(connection, authority_id)
            except (StoreUnavailable, ConfigError, ClockDoubted) as error:
                self._stand_by()
                self._away = str(error)
                log.warning("this process does not sign ahead for now", authority=name, problem=str(error))
            except Exception:  # noqa: BLE001 - whatever it was, answers go on being due
                self._stand_by()
                self._away = "a defect; see the log"
                log.exception("signing ahead failed and will be tried again", authority=name)
            await asyncio.sleep(_AGAIN_SECONDS)

    async def count(self) -> None:
        """Show what is due, also while another process signs, until cancelled."""
        name = self.config.authority
        while True:
            try:
                backlog = await Presigned(self._pool).backlog(await self._id(), self._clock.now())
            except (StoreUnavailable, ConfigError) as error:
                log.warning("it is not known which answers are due", authority=name, problem=str(error))
            else:
                self._metrics.due.labels(name).set(backlog.answers)
                ends = backlog.next_update
                self._metrics.earliest_next_update.labels(name).set(0 if ends is None else ends.timestamp())
            await asyncio.sleep(_COUNT_SECONDS)

    def _stand_by(self) -> None:
        self._away, self._leads = "", False
        self._metrics.leader.labels(self.config.authority).set(0)

    async def _id(self) -> int:
        for authority in await AuthorityReader(self._pool).load():
            if authority.name == self.config.authority:
                return authority.id
        raise ConfigError(f"the store has no authority {self.config.authority!r}")


async def _beat(connect_one: Connect, metrics: PublisherMetrics) -> None:
    """Write the heartbeat every second, in one process of all, until cancelled."""
    while True:
        try:
            async with leading(connect_one, _BEATING) as connection:
                while True:
                    at = await Presigned(connection).beat()
                    metrics.heartbeat.set(at.timestamp())
                    await asyncio.sleep(_BEAT_SECONDS)
        except StoreUnavailable as error:
            log.warning("the heartbeat is not written for now", problem=str(error))
        await asyncio.sleep(_AGAIN_SECONDS)


main = command("publisher", serve)

if __name__ == "__main__":
    main()
