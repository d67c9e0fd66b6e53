"""`python -m lakthan_ocsp --config FILE`: wiring only. Configuration → keys, store, feed → service → ports."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from time import CLOCK_BOOTTIME, clock_gettime
from typing import TYPE_CHECKING

from lakthan.config import Config, OCSPConfig
from lakthan.errors import ConfigError, StoreUnavailable
from lakthan.keys.key_ring import open_rings
from lakthan.store.feed import BOUND, ChangeFeed
from lakthan.store.pool import connect, open_pool
from lakthan.store.published import PublishedReader
from lakthan.store.schema import schema_problem
from lakthan.store.status import AuthorityReader, StatusReader
from lakthan.store.told import ToldRevoked
from lakthan.telemetry.logs import log
from lakthan.web.admin import admin_application
from lakthan.web.front import Front, open_admin
from lakthan.web.process import command, run_alongside
from lakthan.web.waiting import wait_until_fine
from lakthan_ocsp.app import Edge, Words
from lakthan_ocsp.cache import AnswerCache, Certificate
from lakthan_ocsp.directory import Directory, PublishedResponder
from lakthan_ocsp.keyless_main import serve_keyless
from lakthan_ocsp.metrics import OCSPMetrics
from lakthan_ocsp.opening import open_keys, open_published, signs
from lakthan_ocsp.published import PublishedAnswers
from lakthan_ocsp.quick import Short
from lakthan_ocsp.readiness import Readiness
from lakthan_ocsp.responders import Responders
from lakthan_ocsp.service import OCSPService
from lakthan_ocsp.wall_clock import WallClock, check_tolerance

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

    from lakthan.keys.key_ring import KeyRing
    from lakthan.store.records import AuthorityRecord, StatusRecord
    from lakthan.web.process import UntilAsked
    from lakthan_ocsp.directory import Responder

_ROLE = "lakthan_responder"
_NAME = "lakthan-ocsp"
_RELOAD_DELAY_SECONDS = 1.0
_BOUND_SECONDS = BOUND.total_seconds()
_WATCH_SECONDS = 3600.0


async def serve(config: Config, until_asked: UntilAsked) -> None:
    """Answer until asked to stop. Raises `ConfigError`, and `StoreUnavailable` without a database to begin with."""
    if config.ocsp is None:
        raise ConfigError("the configuration has no [ocsp] table")
    settings = config.ocsp
    if settings.keyless:
        await serve_keyless(config, until_asked)
        return
    metrics = OCSPMetrics()
    async with AsyncExitStack() as stack:
        published = [open_published(each) for each in settings.responders if each.answers == "published"]
        responders = Responders(
            await open_rings([open_keys(each, config.approval) for each in settings.responders if signs(each)], stack)
        )
        pool = await open_pool(
            settings.database.url,
            role=_ROLE,
            min_size=1,
            max_size=settings.database.connections,
            password=settings.database.password(),
            application_name=_NAME,
        )
        stack.push_async_callback(pool.close)
        if settings.outage_bound < timedelta(0):
            raise ConfigError("outage_bound is negative: zero means that nothing is answered without the database")
        check_tolerance(settings.clock_tolerance)
        await wait_until_fine(
            "schema",
            partial(schema_problem, pool),
            registry=metrics.registry,
            host=settings.admin_host,
            port=settings.admin_port,
        )
        process = _Process(settings, AuthorityReader(pool), responders, published, metrics)
        answers = PublishedAnswers(PublishedReader(pool, process.told), metrics)
        statuses = StatusReader(pool, process.told)
        service = OCSPService(
            await process.load(),
            statuses,
            answers,
            process.cache,
            metrics,
            changes_heard=process.changes_heard,
            may_recall=process.may_recall,
            authorities_known=process.authorities_known,
        )
        readiness = Readiness(
            changes_heard=process.changes_heard,
            may_recall=process.may_recall,
            remembered=process.cache.__len__,
            try_store=lambda: statuses.find(0, b"\0"),
            clock_problem=process.clock.problem,
        )
        for authority, problem in service.directory.problems.items():
            if problem:
                log.error("no answers for an authority", authority=authority, problem=problem)
        run_alongside(stack, process.feed.run())
        run_alongside(stack, readiness.watch())
        metrics.watch_keys(responders)
        run_alongside(stack, _watch_certificates(responders.rings, metrics))
        for ring in responders.rings:
            run_alongside(stack, ring.watch(partial(process.keys_changed, service)))
        run_alongside(stack, answers.watch([each.authority for each in published], process.many_changed))
        run_alongside(stack, process.keep_directory(service))
        words = Words(service, metrics)
        quick = Short(words, process.cache, metrics, changes_heard=process.changes_heard, may_recall=process.may_recall)
        front = await Front.open(
            Edge(words, metrics),
            settings.host,
            settings.port,
            quick=quick,
            connections=settings.connections,
            proxies=settings.proxies,
        )
        if front.wire is not None:
            metrics.watch_wire(front.wire)
        stack.push_async_callback(front.close)
        admin = await open_admin(
            admin_application(metrics.registry, lambda: {**readiness.checks(), **_problems(service, responders)}),
            settings.admin_host,
            settings.admin_port,
        )
        stack.push_async_callback(admin.close)
        log.info("serving OCSP", host=settings.host, port=front.port, admin_port=admin.port)
        await until_asked(front.port, admin.port)


class _Process:
    """What the callbacks of the change feed work on."""

    def __init__(
        self,
        settings: OCSPConfig,
        authorities: AuthorityReader,
        responders: Responders,
        published: list[PublishedResponder],
        metrics: OCSPMetrics,
    ) -> None:
        self._authorities = authorities
        self._records: list[AuthorityRecord] = []
        self._responders = responders
        self._published = published
        self.many_changed = asyncio.Event()
        self._metrics = metrics
        self._reload = asyncio.Event()
        self._stale = False
        # Of CLOCK_BOOTTIME: what is known of the authorities is no older than the bound. Counts while changes are not
        # heard, or were heard and have not been taken in.
        self._known_until = 0.0
        self._outage_seconds = settings.outage_bound.total_seconds()
        self.cache = AnswerCache(settings.cached_answers, settings.cache_megabytes << 20)
        self.told = ToldRevoked()
        self.clock = WallClock(settings.clock_tolerance)
        password = settings.database.password()

        async def connect_feed() -> asyncpg.Connection:
            return await connect(settings.database.url, role=_ROLE, password=password, application_name=_NAME)

        self.feed = ChangeFeed(
            connect_feed,
            on_change=self._changed,
            on_many_changes=self._many_changed,
            on_authority_change=self._authorities_changed,
            on_ready=self._ready,
            on_lost=self._lost,
            on_beat=self.clock.compare,
        )
        metrics.cached_answers.set_function(lambda: len(self.cache))
        metrics.cache_octets.set_function(lambda: self.cache.octets)
        metrics.feed_trusted.set_function(lambda: self.feed.trusted)
        metrics.contradicted.set_function(lambda: len(self.told.contradicted))
        metrics.clock_ahead.set_function(lambda: self.clock.ahead)
        metrics.clock_believed.set_function(self.clock.steady)

    def changes_heard(self) -> bool:
        """True while every change is heard, what was heard of the authorities has been taken in, and there is a clock
        to sign by.
        """
        now = clock_gettime(CLOCK_BOOTTIME)
        return now < self.feed.trusted_until and not self._stale and self.clock.steady_at(now)

    def may_recall(self) -> bool:
        """True while answers that were remembered may be given: changes are heard, or were until a short while ago, and
        there is a clock to say that they have not ended.
        """
        now, feed = clock_gettime(CLOCK_BOOTTIME), self.feed
        heard = now < feed.trusted_until or now < feed.proven + self._outage_seconds
        return heard and not self._stale and self.clock.steady_at(now)

    def authorities_known(self) -> bool:
        """True while what was read of the authorities may be answered by, although no change of them is heard, and
        there is a clock to sign by.
        """
        return clock_gettime(CLOCK_BOOTTIME) < self._known_until and self.clock.steady()

    async def load(self) -> Directory:
        """Who answers for whom, as the store says now."""
        asked = clock_gettime(CLOCK_BOOTTIME)
        records = await self._authorities.load()
        directory = self._directory(records)
        self._records, self._known_until = records, asked + _BOUND_SECONDS
        return directory

    async def keys_changed(self, service: OCSPService) -> None:
        """Another key of some responder signs from now on: forget, in the same tick, what was signed by another one."""
        service.directory = self._directory(self._records)
        self.cache.drop_all()

    def _directory(self, records: list[AuthorityRecord]) -> Directory:
        return Directory(records, self._responders.speaking(records, datetime.now(UTC)), self._published)

    async def keep_directory(self, service: OCSPService) -> None:
        """Replace the directory whenever the authorities have changed, or may have: every second while no changes are
        heard, because then nobody says that a CA was revoked.
        """
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_RELOAD_DELAY_SECONDS):
                    await self._reload.wait()
            told, before = self._reload.is_set(), self._records
            if not told and self.changes_heard():
                continue
            self._reload.clear()
            try:
                directory = await self.load()
            except (StoreUnavailable, ConfigError) as error:
                log.warning("the authorities cannot be read again yet", problem=str(error))
                await asyncio.sleep(_RELOAD_DELAY_SECONDS)
                self._reload.set()
                continue
            if told or self._records != before:
                service.directory = directory
                self._stale = self._reload.is_set()
                self.cache.drop_all()
                if not self._stale:
                    self.feed.give_answers()
                self._metrics.authorities_read.inc()
                log.info("authorities read", problems=service.directory.problems)

    def _changed(self, record: StatusRecord, changed_at: datetime | None) -> None:
        self.told.hear(record)
        self.cache.drop(Certificate(record.authority_id, record.serial_number))
        self._metrics.status_changes.inc()
        self._metrics.served(changed_at)

    def _many_changed(self, _authority_id: int, changed_at: datetime | None) -> None:
        self.cache.drop_all()
        self.many_changed.set()
        self._metrics.status_changes.inc()
        self._metrics.served(changed_at)

    def _authorities_changed(self) -> None:
        self._go_stale()
        self._read_again()

    def _read_again(self) -> None:
        self._stale = True
        self.feed.hold_answers()
        self._reload.set()

    def _go_stale(self) -> None:
        """What is known of the authorities is as of the feed's last proof, if it has been taken in."""
        if not self._stale:
            self._known_until = max(self._known_until, self.feed.proven + _BOUND_SECONDS)

    def _ready(self) -> None:
        self.cache.drop_all()
        # The new connection proves nothing about what was read before it.
        self._read_again()
        log.info("changes are heard as they happen")

    def _lost(self, error: Exception) -> None:
        self._go_stale()
        # A change that was heard and not understood is no outage: of what is remembered something is wrong.
        if self._outage_seconds and isinstance(error, StoreUnavailable):
            self.cache.keep_answers_only()
        else:
            self.cache.drop_all()
        self._metrics.feed_losses.inc()
        log.warning(
            "changes may be missed: every answer comes from the store until they are heard again", problem=str(error)
        )


def _problems(service: OCSPService, responders: Responders) -> dict[str, str]:
    """For readiness. An authority whose last key was retired is no reason to leave while others are answered for."""
    problems = {f"responder {name}": problem for name, problem in service.directory.problems.items()}
    for name in responders.without_keys():
        if service.directory.speaks:
            problems[f"responder {name} (its last key is retired: it signs nothing)"] = ""
        else:
            problems[f"responder {name}"] = "its last key is retired: install one"
    return problems


async def _watch_certificates(rings: Sequence[KeyRing[Responder]], metrics: OCSPMetrics) -> None:
    """Say every hour which responder certificates are to be renewed, long before answers have to stop."""
    while True:
        for ring in rings:
            last = max(ring.held, key=lambda key: key.ends, default=None)
            if last is not None:
                warning = last.made.governor.warning(datetime.now(UTC))
                metrics.responder_to_be_renewed.labels(last.made.authority).set(bool(warning))
                if warning:
                    log.error("a responder certificate runs out", authority=last.made.authority, problem=warning)
        await asyncio.sleep(_WATCH_SECONDS)


main = command("ocsp", serve)

if __name__ == "__main__":
    main()
