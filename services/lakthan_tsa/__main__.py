"""`python -m lakthan_tsa --config FILE`: wiring only. Configuration → key, store, clock → service → ports."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

from lakthan.errors import ConfigError
from lakthan.identity import Identity
from lakthan.store.pool import open_pool
from lakthan.store.tokens import TokenLog
from lakthan.telemetry.logs import log
from lakthan.web.admin import admin_application
from lakthan.web.front import Front, open_admin
from lakthan.web.process import command, run_alongside
from lakthan_tsa.app import Edge
from lakthan_tsa.clock_guard import ClockGuard, KernelClock
from lakthan_tsa.metrics import TSAMetrics
from lakthan_tsa.recorder import Recorder
from lakthan_tsa.serials import SerialNumbers
from lakthan_tsa.service import TSAService, name_of_unit

if TYPE_CHECKING:
    from lakthan.config import Config
    from lakthan.web.process import UntilAsked


async def serve(config: Config, until_asked: UntilAsked) -> None:
    """Stamp until asked to stop. Raises `ConfigError`, and `StoreUnavailable` without a database to begin with."""
    if config.tsa is None:
        raise ConfigError("the configuration has no [tsa] table")
    settings = config.tsa
    metrics = TSAMetrics()
    async with AsyncExitStack() as stack:
        unit = settings.unit
        identity = await Identity.open(unit.certificate, unit.key, chain=unit.chain)
        stack.push_async_callback(identity.signer.aclose)
        pool = await open_pool(
            settings.database.url,
            role="lakthan_tsa",
            min_size=1,
            max_size=settings.database.connections,
            password=settings.database.password(),
            application_name="lakthan-tsa",
        )
        stack.push_async_callback(pool.close)
        tokens = TokenLog(pool)
        recorder = Recorder(tokens.append, committed=metrics.committed)
        stack.push_async_callback(recorder.aclose)
        clock = ClockGuard(KernelClock(), accuracy=settings.accuracy, mode=settings.clock)
        serials = SerialNumbers(partial(tokens.lease_epoch, name_of_unit(identity)))
        service = TSAService(
            identity,
            policy=settings.policy,
            accuracy=settings.accuracy,
            clock=clock,
            serials=serials,
            recorder=recorder,
            metrics=metrics,
        )
        await serials.open()
        run_alongside(stack, clock.watch())
        run_alongside(stack, recorder.watch())
        admin = await open_admin(
            admin_application(metrics.registry, service.problems), settings.admin_host, settings.admin_port
        )
        stack.push_async_callback(admin.close)
        # The last to open is the first to close: requests in flight end while everything below still works.
        front = await Front.open(Edge(service, metrics), settings.host, settings.port)
        stack.push_async_callback(front.close)
        log.info(
            "serving timestamps", host=settings.host, port=front.port, admin_port=admin.port, tsu=identity.view.name
        )
        await until_asked(front.port, admin.port)


main = command("tsa", serve)

if __name__ == "__main__":
    main()
