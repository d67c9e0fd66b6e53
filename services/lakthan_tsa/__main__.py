"""`python -m lakthan_tsa --config FILE`: wiring only. Configuration → key, store, clock → service → ports."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

from lakthan.errors import ConfigError
from lakthan.keys.key_ring import open_rings
from lakthan.store.pool import open_pool
from lakthan.store.schema import schema_problem
from lakthan.store.tokens import TokenLog
from lakthan.telemetry.logs import log
from lakthan.web.admin import admin_application
from lakthan.web.front import Front, open_admin
from lakthan.web.process import command, run_alongside
from lakthan.web.waiting import wait_until_fine
from lakthan_tsa.app import Edge, Gate, Gates, Words
from lakthan_tsa.clock_opening import open_guard
from lakthan_tsa.credentials import Credentials
from lakthan_tsa.metrics import TSAMetrics
from lakthan_tsa.opening import listed_units, make_profiles, open_keys
from lakthan_tsa.quick import Short
from lakthan_tsa.quota import Quota
from lakthan_tsa.recorder import Recorder
from lakthan_tsa.service import TSAService

if TYPE_CHECKING:
    from lakthan.config import Config, TSAConfig
    from lakthan.keys.key_ring import KeyRing
    from lakthan.web.process import UntilAsked
    from lakthan_tsa.profiles import Profile, Unit


async def serve(config: Config, until_asked: UntilAsked) -> None:
    """Stamp until asked to stop. Raises `ConfigError`, and `StoreUnavailable` without a database to begin with."""
    if config.tsa is None:
        raise ConfigError("the configuration has no [tsa] table")
    settings = config.tsa
    metrics = TSAMetrics()
    async with AsyncExitStack() as stack:
        rings = await open_rings(
            [open_keys(name, unit, config.approval) for name, unit in settings.units.items()], stack
        )
        profiles = make_profiles(settings, {ring.name: listed_units(ring) for ring in rings})
        gates = Gates(_gates(settings, profiles, stack))
        pool = await open_pool(
            settings.database.url,
            role="lakthan_tsa",
            min_size=1,
            max_size=settings.database.connections,
            password=settings.database.password(),
            application_name="lakthan-tsa",
        )
        stack.push_async_callback(pool.close)
        await wait_until_fine(
            "schema",
            partial(schema_problem, pool),
            registry=metrics.registry,
            host=settings.admin_host,
            port=settings.admin_port,
        )
        tokens = TokenLog(pool)
        recorder = Recorder(tokens.append, committed=metrics.committed)
        stack.push_async_callback(recorder.aclose)
        # Each request is held against its own profile; the clock is lost when it is good enough for none.
        accuracy = max(profile.accuracy for profile in settings.profiles.values())
        clock = open_guard(stack, settings.clock, pool, accuracy=accuracy)
        service = TSAService(
            profiles,
            clock=clock,
            lease_epoch=tokens.lease_epoch,
            recorder=recorder,
            metrics=metrics,
            self_check=settings.self_check,
        )
        metrics.watch_keys(rings)
        service.freeze(await tokens.frozen())
        await service.open()
        run_alongside(stack, recorder.watch())
        for ring in rings:
            run_alongside(stack, ring.watch(partial(_keys_changed, ring, service)))
        run_alongside(stack, service.follow_freezes(tokens.frozen))
        admin = await open_admin(
            admin_application(metrics.registry, service.problems), settings.admin_host, settings.admin_port
        )
        stack.push_async_callback(admin.close)
        # The last to open is the first to close: requests in flight end while everything below still works.
        words = Words(service, metrics)
        quick = Short(words, gates, metrics)
        front = await Front.open(
            Edge(words, gates, metrics),
            settings.host,
            settings.port,
            quick=quick,
            connections=settings.connections,
            proxies=settings.proxies,
        )
        if front.wire is not None:
            metrics.watch_wire(front.wire)
        stack.push_async_callback(front.close)
        for profile in profiles:
            log.info(
                "profile",
                profile=profile.name,
                policy=profile.policy,
                units=[unit.identity.view.name for unit, _ in profile.stampers],
                token_octets=profile.token_octets,
            )
        log.info("serving timestamps", host=settings.host, port=front.port, admin_port=admin.port)
        await until_asked(front.port, admin.port)


async def _keys_changed(ring: KeyRing[Unit], service: TSAService) -> None:
    service.use_units(ring.name, listed_units(ring))


def _gates(settings: TSAConfig, profiles: list[Profile], stack: AsyncExitStack) -> list[Gate]:
    credentials = None
    if settings.credentials is not None:
        credentials = Credentials(settings.credentials)
        run_alongside(stack, credentials.watch())
    gates = []
    for profile in profiles:
        rules = settings.profiles[profile.name]
        quota = None if rules.requests_per_second is None else Quota(rules.requests_per_second, rules.burst)
        gates.append(Gate(profile, credentials if rules.authentication == "required" else None, quota))
    return gates


main = command("tsa", serve)

if __name__ == "__main__":
    main()
