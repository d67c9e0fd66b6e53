"""Wiring of a responder without keys (`[ocsp] keyless`): a copy of the database, its feed, the file of the warm start.

No path leads from here to a key: `lakthan_ocsp.opening` is asked for responders of published answers only.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from lakthan.errors import ConfigError, StoreUnavailable
from lakthan.store.feed import monotonic_seconds
from lakthan.store.kept import KeptReader
from lakthan.store.pool import connect, open_pool
from lakthan.store.schema import schema_problem
from lakthan.store.standby_feed import StandbyFeed
from lakthan.store.status import AuthorityReader, StatusReader
from lakthan.telemetry.logs import log
from lakthan.web.admin import admin_application
from lakthan.web.front import Front, open_admin
from lakthan.web.process import run_alongside
from lakthan.web.waiting import wait_until_fine
from lakthan_ocsp import app
from lakthan_ocsp.cache import AnswerCache, Certificate
from lakthan_ocsp.directory import Directory
from lakthan_ocsp.keeper import Keeper
from lakthan_ocsp.keyless import CopyReader, KeylessAnswers, State
from lakthan_ocsp.keyless_metrics import CopyMetrics
from lakthan_ocsp.metrics import OCSPMetrics
from lakthan_ocsp.opening import open_published
from lakthan_ocsp.quick import Short
from lakthan_ocsp.service import OCSPService

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

    from lakthan.config import Config, OCSPConfig
    from lakthan.store.kept import AnswerKey
    from lakthan.store.published import Found
    from lakthan.store.records import AuthorityRecord
    from lakthan.web.process import UntilAsked
    from lakthan_ocsp.directory import PublishedResponder

_ROLE = "lakthan_responder"
_NAME = "lakthan-ocsp-keyless"
_RELOAD_DELAY_SECONDS = 1.0
_WATCH_SECONDS = 0.25
# A clock that is behind by so much more, or less, than a moment ago was set.
_STEP = timedelta(seconds=2)
_FIRST_LOOK_SECONDS = 5.0


def open_keyless(settings: OCSPConfig) -> list[PublishedResponder]:
    """The responders of a keyless configuration. Raises `ConfigError` when one of them could sign."""
    for each in settings.responders:
        if each.answers != "published" or each.certificate or each.key or each.keys:
            raise ConfigError(
                f'responder of {each.authority!r}: a keyless one has answers = "published" and neither certificate nor '
                "key; remove these, or keyless"
            )
    if settings.edge_bound <= timedelta(0):
        raise ConfigError("edge_bound is not positive: nothing would ever be answered")
    return [open_published(each) for each in settings.responders]


async def serve_keyless(config: Config, until_asked: UntilAsked) -> None:
    """Answer until asked to stop. Raises `ConfigError`; and `StoreUnavailable` when there is neither a database nor a
    usable file to begin with.
    """
    settings = config.ocsp
    if settings is None:
        raise ConfigError("the configuration has no [ocsp] table")
    published = open_keyless(settings)
    metrics = OCSPMetrics()
    async with AsyncExitStack() as stack:
        pool, missing = await _open_pool(settings)
        stack.push_async_callback(pool.close)
        if missing is None:
            await wait_until_fine(
                "schema",
                partial(schema_problem, pool),
                registry=metrics.registry,
                host=settings.admin_host,
                port=settings.admin_port,
            )
        process = _Process(settings, pool, published, metrics)
        service = OCSPService(
            await process.first_directory(missing),
            StatusReader(pool),
            KeylessAnswers(process.reader, metrics),
            process.cache,
            metrics,
            changes_heard=process.changes_heard,
            authorities_known=lambda: True,  # its answers say what their signer knew, and are as old as the copy may be
        )
        process.say_problems(service.directory)
        if process.keeper is not None:
            stack.push_async_callback(process.keeper.close)
            run_alongside(stack, process.keeper.run())
        run_alongside(stack, process.feed.run())
        run_alongside(stack, process.keep_directory(service))
        run_alongside(stack, process.watch_state())
        if missing is None:
            # So that a copy which is there is asked from the first request on.
            with suppress(TimeoutError):
                async with asyncio.timeout(_FIRST_LOOK_SECONDS):
                    await process.in_step.wait()
        words = app.Words(service, metrics)
        quick = Short(words, process.cache, metrics, changes_heard=process.changes_heard)
        front = await Front.open(
            app.Edge(words, metrics),
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
            admin_application(metrics.registry, lambda: process.checks(service)),
            settings.admin_host,
            settings.admin_port,
        )
        stack.push_async_callback(admin.close)
        log.info("serving OCSP without keys", host=settings.host, port=front.port, admin_port=admin.port)
        await until_asked(front.port, admin.port)


async def _open_pool(settings: OCSPConfig) -> tuple[asyncpg.Pool, StoreUnavailable | None]:
    """The pool, and why there is no database yet."""

    async def opened(min_size: int) -> asyncpg.Pool:
        return await open_pool(
            settings.database.url,
            role=_ROLE,
            min_size=min_size,
            max_size=settings.database.connections,
            password=settings.database.password(),
            application_name=_NAME,
        )

    try:
        return await opened(1), None
    except StoreUnavailable as error:
        if settings.warm_start is None:
            raise
        return await opened(0), error


class _Process:
    """What the callbacks of the feed work on."""

    def __init__(
        self, settings: OCSPConfig, pool: asyncpg.Pool, published: Sequence[PublishedResponder], metrics: OCSPMetrics
    ) -> None:
        self._authorities = AuthorityReader(pool)
        self._published = published
        self._metrics = metrics
        self._copy_metrics = CopyMetrics(metrics)
        self._reload = asyncio.Event()
        self.in_step = asyncio.Event()
        self._stale = False
        self.cache = AnswerCache(settings.cached_answers, settings.cache_megabytes << 20)
        password = settings.database.password()

        async def connect_feed() -> asyncpg.Connection:
            return await connect(settings.database.url, role=_ROLE, password=password, application_name=_NAME)

        self.feed = StandbyFeed(
            connect_feed,
            on_change=self._changed,
            on_many_changes=self._many_changed,
            on_authority_change=self._authorities_changed,
            on_ready=self._ready,
            on_lost=self._lost,
            most_age=settings.edge_bound,
        )
        self.keeper: Keeper | None = None
        if settings.warm_start is not None:
            self.keeper = Keeper(
                settings.warm_start,
                KeptReader(pool),
                self.feed,
                self._copy_metrics,
                names=[each.authority for each in published],
                most=settings.warm_start_answers,
                bound=settings.edge_bound,
            )
        self.reader = CopyReader(
            pool,
            self.feed,
            file=settings.warm_start,
            bound=settings.edge_bound,
            given=self._given,
            outdated=self._outdated,
        )
        metrics.clock_ahead.set_function(lambda: 0.0 - self.reader.behind(datetime.now(UTC)).total_seconds())
        metrics.clock_believed.set(1)  # nothing is dated here
        self._bound = settings.edge_bound
        self._copy_metrics.watch(self.reader)
        metrics.cached_answers.set_function(lambda: len(self.cache))
        metrics.cache_octets.set_function(lambda: self.cache.octets)
        metrics.feed_trusted.set_function(self.changes_heard)

    def changes_heard(self) -> bool:
        """True while the copy is heard and young enough, and what was heard of the authorities has been taken in."""
        return monotonic_seconds() < self.feed.trusted_until and not self._stale

    async def first_directory(self, missing: StoreUnavailable | None) -> Directory:
        """Who is answered for, as the copy says, or without one the file. Raises `StoreUnavailable` without either."""
        if missing is None:
            return await self._load()
        warm = await self.reader.read_warm()
        if warm is None:
            raise missing
        log.error("there is no database: beginning with the answers kept on disk", problem=str(missing))
        return Directory(warm.authorities, (), self._published)

    async def keep_directory(self, service: OCSPService) -> None:
        """Replace the directory whenever the authorities have changed, or may have."""
        while True:
            await self._reload.wait()
            self._reload.clear()
            try:
                directory = await self._load()
            except (StoreUnavailable, ConfigError) as error:
                log.warning("the authorities cannot be read again yet", problem=str(error))
                await asyncio.sleep(_RELOAD_DELAY_SECONDS)
                self._reload.set()
            else:
                service.directory = directory
                self._stale = self._reload.is_set()
                self.cache.drop_all()
                self._metrics.authorities_read.inc()
                self.say_problems(directory)

    def say_problems(self, directory: Directory) -> None:
        """In the log: what keeps an authority from being answered for."""
        for authority, problem in directory.problems.items():
            if problem:
                log.error("no answers for an authority", authority=authority, problem=problem)

    async def watch_state(self) -> None:
        """Say in the log when the copy begins and ceases to follow, and count answers by it; read the file in time; and
        begin anew when this machine's clock was set: what is remembered ends by the clock of before.
        """
        before, behind = State.REFUSING, timedelta(0)
        while True:
            if not self.feed.heard:
                await self.reader.read_warm()
            state, behind_now = self.reader.state(), self.reader.behind(datetime.now(UTC))
            if abs(behind_now - behind) > _STEP:
                behind = behind_now
                self.cache.drop_all()
                if behind:
                    seconds = round(behind.total_seconds(), 3)
                    log.error("this machine's clock is behind the capital's, whose time counts here", seconds=seconds)
                else:
                    log.info("this machine's clock is not behind the capital's any more")
            self._copy_metrics.count(before)
            if state is not before:
                seen = self.reader.as_of()
                say = log.info if state is State.LIVE else log.error if state is State.REFUSING else log.warning
                say(
                    _SAID[state], as_of=seen.at.isoformat() if seen else None, bound_seconds=self._bound.total_seconds()
                )
            before = state
            await asyncio.sleep(_WATCH_SECONDS)

    def checks(self, service: OCSPService) -> dict[str, str]:
        """For /readyz. Without a line to the capital this is still a good place for requests, until the bound."""
        state, seen = self.reader.state(), self.reader.as_of()
        age = "never seen" if seen is None else f"{seen.age().total_seconds():.0f} s old"
        bound = f"the bound is {self._bound.total_seconds():.0f} s"
        return {
            f"copy ({state.value}, {age})": "" if state is not State.REFUSING else f"too old or not there; {bound}",
            **{f"responder {name}": problem for name, problem in service.directory.problems.items()},
        }

    async def _load(self) -> Directory:
        records: list[AuthorityRecord] = await self._authorities.load()
        if self.keeper is not None and not self._reload.is_set():
            self.keeper.authorities_are(records)
        return Directory(records, (), self._published)

    def _given(self, key: AnswerKey, found: Found) -> None:
        if self.keeper is not None:
            self.keeper.given(key, found)

    def _outdated(self, authority_id: int, serial_number: bytes) -> None:
        if self.keeper is not None:
            self.keeper.outdated(authority_id, serial_number)

    def _changed(self, authority_id: int, serial_number: bytes, changed_at: datetime) -> None:
        self.cache.drop(Certificate(authority_id, serial_number))
        self.reader.forget_warm()
        if self.keeper is not None:
            self.keeper.certificate_changed(authority_id, serial_number)
        self._metrics.status_changes.inc()
        self._metrics.served(changed_at)

    def _many_changed(self, authority_id: int, changed_at: datetime) -> None:
        self.cache.drop_all()
        self.reader.forget_warm()
        if self.keeper is not None:
            self.keeper.many_changed(authority_id)
        self._metrics.status_changes.inc()
        self._metrics.served(changed_at)

    def _authorities_changed(self) -> None:
        self._stale = True
        if self.keeper is not None:
            self.keeper.authorities_changed()
        self._reload.set()

    def _ready(self) -> None:
        self.cache.drop_all()
        self.reader.forget_warm()
        if self.keeper is not None:
            self.keeper.begin_anew()
        self._authorities_changed()
        self.in_step.set()
        log.info("the copy of the database is in step")

    def _lost(self, error: Exception) -> None:
        self.cache.drop_all()
        self._metrics.feed_losses.inc()
        log.warning("the copy of the database is lost: answers come from the file, if any", problem=str(error))


_SAID = {
    State.LIVE: "the copy of the database follows",
    State.CUT: "no heartbeat comes: the line or the publisher is down; answering from the copy until the bound",
    State.WARM: "there is no copy of the database: answering from the file until the bound",
    State.REFUSING: "what is known here is too old or not there: every request gets tryLater",
}
