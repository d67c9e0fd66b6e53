"""`python -m lakthan_registry --config FILE`: wiring only. Configuration → TLS, store → identities, service → ports."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

from lakthan.errors import ConfigError
from lakthan.store.audit import AuditReader
from lakthan.store.credentials import CredentialReader
from lakthan.store.pool import connect, open_pool
from lakthan.store.schema import schema_problem
from lakthan.store.served import ServedWatch, measure_served
from lakthan.store.status import AuthorityReader, StatusReader
from lakthan.telemetry.logs import log
from lakthan.web.admin import admin_application
from lakthan.web.front import open_admin
from lakthan.web.process import command, run_alongside
from lakthan.web.waiting import wait_until_fine
from lakthan_registry.administration import AdministrationService
from lakthan_registry.app import Edge
from lakthan_registry.authorities import Authorities
from lakthan_registry.identity import Authenticator
from lakthan_registry.metrics import RegistryMetrics
from lakthan_registry.monitor_follow import MonitorMetrics, follow_crls
from lakthan_registry.probe import StoreProbe
from lakthan_registry.refusals import RefusalLog
from lakthan_registry.service import PublisherService
from lakthan_registry.sources import SourceMetrics, follow_urls
from lakthan_registry.spool import follow_spool
from lakthan_registry.tls import ClientCertificates, HTTPSFront, server_context

if TYPE_CHECKING:
    import asyncpg

    from lakthan.config import Config, DatabaseConfig
    from lakthan.web.process import UntilAsked

# Acting as a CA is the daily work; the overseers are few.
_OVERSEER_CONNECTIONS = 2


async def serve(config: Config, until_asked: UntilAsked) -> None:
    """Serve until asked to stop. Raises `ConfigError`, and `StoreUnavailable` without a database to begin with."""
    if config.registry is None:
        raise ConfigError("the configuration has no [registry] table")
    settings = config.registry
    metrics = RegistryMetrics()
    sources, monitor = SourceMetrics(metrics.registry), MonitorMetrics(metrics.registry)
    context = server_context(settings)
    certificates = ClientCertificates(settings, metrics.client_crls)
    async with AsyncExitStack() as stack:
        database = settings.database
        publishers = await _open(stack, database, "lakthan_publisher", database.connections)
        registrars = await _open(stack, database, "lakthan_registrar", _OVERSEER_CONNECTIONS)
        auditors = await _open(stack, database, "lakthan_auditor", _OVERSEER_CONNECTIONS)
        # Whoever is at the door waits for nobody's long report.
        door = await _open(stack, database, "lakthan_auditor", _OVERSEER_CONNECTIONS)
        await wait_until_fine(
            "schema",
            partial(schema_problem, door),
            registry=metrics.registry,
            host=settings.admin_host,
            port=settings.admin_port,
        )
        watch = ServedWatch(
            lambda: connect(
                database.url,
                role="lakthan_auditor",
                password=database.password(),
                application_name="lakthan-registry-served",
            )
        )
        authorities = Authorities(AuthorityReader(door))
        authenticator = Authenticator(
            CredentialReader(door), certificates, authorities.issuers_of, StatusReader(door).find
        )
        publishing = PublisherService(
            publishers, auditors, authorities, watch, metrics, most_changes=settings.most_changes
        )
        administration = AdministrationService(registrars, auditors, authorities)
        edge = Edge(
            authenticator,
            {**publishing.handlers(), **administration.handlers()},
            RefusalLog(door).append,
            metrics,
        )
        probe = StoreProbe(AuditReader(door).heads)
        run_alongside(stack, probe.run())
        run_alongside(stack, watch.run())
        run_alongside(stack, measure_served(watch, publishing.observe_served))
        run_alongside(stack, certificates.watch(context))
        if settings.fetch_crls:
            run_alongside(stack, follow_urls(registrars, publishers, sources))
            run_alongside(stack, follow_crls(auditors, monitor, responders=settings.responders))
        if settings.spool is not None:
            run_alongside(stack, follow_spool(registrars, publishers, settings.spool, sources))
        admin = await open_admin(
            admin_application(metrics.registry, probe.problems), settings.admin_host, settings.admin_port
        )
        stack.push_async_callback(admin.close)
        # The last to open is the first to close: requests in flight end while everything below still works.
        front = await HTTPSFront.open(edge.application(), settings.host, settings.port, context)
        stack.push_async_callback(front.close)
        log.info("serving CAs", host=settings.host, port=front.port, admin_port=admin.port)
        await until_asked(front.port, admin.port)


async def _open(stack: AsyncExitStack, database: DatabaseConfig, role: str, connections: int) -> asyncpg.Pool:
    pool = await open_pool(
        database.url,
        role=role,
        min_size=1,
        max_size=connections,
        password=database.password(),
        application_name="lakthan-registry",
    )
    stack.push_async_callback(pool.close)
    return pool


main = command("registry", serve)

if __name__ == "__main__":
    main()
