"""CRLs compared with OCSP by the registry itself: every authority with CRLs in its policy, again and again, the outcome
as metrics and in the log.

Promises: what stops one authority's comparison stops no other's.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from time import monotonic
from typing import TYPE_CHECKING

import aiohttp
from prometheus_client import CollectorRegistry, Gauge

from lakthan.errors import LakthanError
from lakthan.store.authorities import AuthorityAdmin
from lakthan.telemetry.logs import log
from lakthan_registry.monitor import SAMPLE, Monitor, Report, Which

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg


class MonitorMetrics:
    """What the monitor of the registry process found last, in the registry that is given."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.differences = Gauge(
            "lakthan_registry_crl_ocsp_differences",
            "Certificates about which the CRL and OCSP differ: pending, or alarm beyond the declared delay.",
            ["authority", "age"],
            registry=registry,
        )
        self.problems = Gauge(
            "lakthan_registry_crl_ocsp_problems",
            "CRLs and responders that could not be compared.",
            ["authority"],
            registry=registry,
        )
        self.compared = Gauge(
            "lakthan_registry_crl_ocsp_compared_timestamp_seconds",
            "When CRL and OCSP were last compared.",
            ["authority"],
            registry=registry,
        )

    def take(self, report: Report) -> None:
        """Show what a comparison found."""
        alarms = len(report.alarms)
        pending = len(report.differences) - alarms
        self.differences.labels(report.authority, "alarm").set(alarms + (report.uncounted if alarms else 0))
        self.differences.labels(report.authority, "pending").set(pending + (0 if alarms else report.uncounted))
        self.problems.labels(report.authority).set(len(report.problems))
        self.compared.labels(report.authority).set(report.at.timestamp())


async def follow_crls(
    pool: asyncpg.Pool,
    metrics: MonitorMetrics,
    *,
    responders: Sequence[str] = (),
    sample: int | None = SAMPLE,
    every: timedelta = timedelta(minutes=5),
) -> None:
    """Compare every authority that has the URL of a CRL in its policy, again and again until cancelled.

    A CRL of a million entries takes half a minute to compare: at most a tenth of the time is spent with it.
    """
    remembered: dict[str, dict[Which, datetime]] = {}
    async with aiohttp.ClientSession() as session:
        monitor, authorities = Monitor(pool, session, responders=responders, sample=sample), AuthorityAdmin(pool)
        while True:
            began = monotonic()
            try:
                followed = [
                    each for each in await authorities.authorities() if (await authorities.policy(each.id)).crl_urls
                ]
            except LakthanError as error:
                log.warning("CRLs and OCSP cannot be compared now", problem=str(error))
                followed = []
            for authority in followed:
                try:
                    report = await monitor.compare(authority, since=remembered.get(authority.name))
                except LakthanError as error:
                    log.warning("CRL and OCSP cannot be compared now", authority=authority.name, problem=str(error))
                except Exception:  # noqa: BLE001 - a CRL that nobody thought of is in no other authority's way
                    log.exception("comparing CRL and OCSP failed and will be tried again", authority=authority.name)
                    metrics.problems.labels(authority.name).set(1)
                else:
                    remembered[authority.name] = report.since
                    metrics.take(report)
                    _log(report)
            await asyncio.sleep(max(every.total_seconds(), 9 * (monotonic() - began)))


def _log(report: Report) -> None:
    if report.in_order:
        return
    examples = [f"{each.serial_number.hex()} ({each.kind.value})" for each in report.alarms[:5]]
    log.error(
        "CRL and OCSP differ",
        authority=report.authority,
        alarms=len(report.alarms),
        examples=examples,
        problems=report.problems,
    )
