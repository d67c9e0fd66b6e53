"""The admin port of a service with several workers: one scrape shows all of them.

Every worker keeps its own series, because prometheus_client's multiprocess mode knows neither gauges that are computed
nor collectors of one's own. Here they are read over the workers' UNIX sockets, given the label `worker`, and shown
together; sums are Prometheus' business (`sum without (worker)`). They are asked for OpenMetrics, so that exemplars come
along. A worker that does not answer in time is left out and shows as `lakthan_worker_up 0`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from lakthan.telemetry.exposition import OPENMETRICS, exposition
from lakthan.web.admin import accepted
from lakthan.web.leaving import this_process

if TYPE_CHECKING:
    from lakthan.web.worker import Worker
    from lakthan.web.workers import Slot

_PATIENCE = aiohttp.ClientTimeout(total=5)


class WorkersAdmin:
    """Asks the workers."""

    def __init__(self, slots: list[Slot]) -> None:
        self._slots = slots
        self._sessions: dict[Worker, aiohttp.ClientSession] = {}

    def application(self) -> web.Application:
        """`/livez` says that the supervisor runs; `/readyz` and `/metrics` ask every worker."""
        application = web.Application()
        application.add_routes(
            [web.get("/livez", self._livez), web.get("/readyz", self._readyz), web.get("/metrics", self._metrics)]
        )
        return application

    async def close(self) -> None:
        """Let go of the connections."""
        for session in self._sessions.values():
            await session.close()

    async def readiness(self, worker: Worker | None) -> int:
        """The HTTP status of a worker's `/readyz`; 0 when it says nothing."""
        return (await self._ask(worker, "/readyz"))[0]

    async def forget(self, worker: Worker | None) -> None:
        """The worker has gone for good."""
        session = self._sessions.pop(worker, None) if worker is not None else None
        if session is not None:
            await session.close()

    async def _ask(self, worker: Worker | None, path: str) -> tuple[int, str]:
        """What a worker's admin port says; status 0 when it says nothing."""
        if worker is None:
            return 0, ""
        session = self._sessions.get(worker)
        if session is None:
            connector = aiohttp.UnixConnector(worker.admin_socket)
            session = self._sessions[worker] = aiohttp.ClientSession(connector=connector, timeout=_PATIENCE)
        try:
            async with session.get(f"http://worker{path}", headers={"Accept": OPENMETRICS}) as reply:
                return reply.status, await reply.text()
        except (aiohttp.ClientError, TimeoutError, OSError):
            return 0, ""

    async def _ask_all(self, path: str) -> list[tuple[int, str]]:
        return await asyncio.gather(*(self._ask(slot.worker, path) for slot in self._slots))

    async def _livez(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        """Ready with at least one worker that runs, and none that runs and is not ready: it would get requests too."""
        lines, ready, unready = [], 0, 0
        for slot, (status, text) in zip(self._slots, await self._ask_all("/readyz"), strict=True):
            name = f"worker {slot.number}"
            if status:
                lines += [f"{name}: {line}\n" for line in text.splitlines()]
                ready, unready = ready + (status == HTTPStatus.OK), unready + (status != HTTPStatus.OK)
            else:
                lines.append(f"{name}: {'starting' if slot.running else 'not running'}\n")
        if this_process.asked:
            lines.append(f"stopping: {this_process.problem}\n")
        serves = ready and not unready and not this_process.asked
        return web.Response(status=200 if serves else 503, text="".join(lines))

    async def _metrics(self, http_request: web.Request) -> web.Response:
        answers = await self._ask_all("/metrics")
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Together(self._slots, [text if status == HTTPStatus.OK else "" for status, text in answers]))
        body, headers = exposition(registry, accepted(http_request))
        return web.Response(body=body, headers=headers)


class _Together(Collector):
    """The series of all workers, as their texts say."""

    def __init__(self, slots: list[Slot], texts: list[str]) -> None:
        self._slots = slots
        self._texts = texts

    def describe(self) -> Iterable[Metric]:
        """See `Collector`."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """See `Collector`."""
        up = GaugeMetricFamily("lakthan_worker_up", "1 when the worker answers.", labels=["worker"])
        restarts = CounterMetricFamily(
            "lakthan_worker_restarts", "Times that another process had to take the worker's place.", labels=["worker"]
        )
        replaced = CounterMetricFamily(
            "lakthan_worker_replacements",
            "Times that another process took the worker's place in a rolling restart.",
            labels=["worker"],
        )
        together: dict[str, Metric] = {}
        for slot, text in zip(self._slots, self._texts, strict=True):
            number = str(slot.number)
            up.add_metric([number], float(bool(text)))
            restarts.add_metric([number], slot.restarts)
            replaced.add_metric([number], slot.replaced)
            if not text:
                continue  # nobody there: the others are shown all the same
            for family in text_string_to_metric_families(text):  # type: ignore[no-untyped-call]
                metric = together.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                metric.samples += [
                    Sample(sample.name, {**sample.labels, "worker": number}, sample.value, None, sample.exemplar)
                    for sample in family.samples
                ]
        return [up, restarts, replaced, *together.values()]
