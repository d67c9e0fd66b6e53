"""`lakthan probe --listen`: a round again and again, and what it brought on /metrics.

Promises: rounds do not pile up: the next one begins when the last is over and its time has come, a little earlier or
later each time, so that several probes do not ask at one moment. What gets worse or better is a line of the log.
`/livez` fails when no round has ended for three times as long as rounds are apart.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from aiohttp import web

from lakthan.errors import ConfigError
from lakthan.telemetry.logs import log
from lakthan.web.admin import admin_application
from lakthan.web.front import open_admin
from lakthan.web.process import run_alongside
from lakthan_cli.findings import Grade, gravest
from lakthan_cli.probe import round as probe_round
from lakthan_cli.probe.metrics import ProbeMetrics

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import timedelta

    from aiohttp.typedefs import Middleware

    from lakthan_cli.findings import Finding
    from lakthan_cli.probe.plan import Plan

_JITTER = 0.1
_PATIENCE = 3


class Rounds:
    """The rounds, and when the last one ended."""

    def __init__(self, plan: Plan, every: timedelta, metrics: ProbeMetrics) -> None:
        self._plan = plan
        self._every_seconds = every.total_seconds()
        self._metrics = metrics
        self._before: dict[tuple[str, str, str], Grade] = {}
        self._ended = time.monotonic()
        self._done = False

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            began = time.monotonic()
            outcome = await probe_round.go(self._plan)
            self._ended = time.monotonic()
            self._done = True
            seconds = self._ended - began
            self._metrics.took(outcome, gravest(outcome.findings), ended=datetime.now(UTC), seconds=seconds)
            self._tell(outcome.findings)
            spread = 1 + random.uniform(-_JITTER, _JITTER)  # noqa: S311 - it spreads load, and guards nothing
            await asyncio.sleep(max(0.0, self._every_seconds * spread - seconds))

    def _tell(self, findings: list[Finding]) -> None:
        now = {(each.area, each.subject, each.check): each for each in findings}
        for place, each in now.items():
            if each.grade is not self._before.get(place, Grade.OK):
                say = log.info if each.grade is Grade.OK else log.warning
                say(
                    "probe",
                    url=each.area,
                    subject=each.subject,
                    check=each.check,
                    grade=each.grade.label,
                    found=each.said,
                    details=list(each.details),
                )
        self._before = {place: each.grade for place, each in now.items()}

    @property
    def stuck(self) -> bool:
        """Whether rounds have stopped coming to an end."""
        return time.monotonic() - self._ended > max(60.0, self._every_seconds * _PATIENCE)

    def checks(self) -> dict[str, str]:
        """For readiness."""
        return {"rounds": "" if self._done else "the first one is not over yet"}


async def listen(
    plan: Plan, host: str, port: int, every: timedelta, until_asked: Callable[[int], Awaitable[None]] | None = None
) -> None:
    """Ask and serve until SIGTERM or SIGINT. `until_asked`: told the port when everything is up, returns at the end.

    Raises `ConfigError` when the address cannot be had.
    """
    metrics = ProbeMetrics()
    rounds = Rounds(plan, every, metrics)
    async with AsyncExitStack() as stack:
        application = admin_application(metrics.registry, rounds.checks)
        application.middlewares.append(_alive_while(rounds))
        admin = await open_admin(application, host, port)
        stack.push_async_callback(admin.close)
        run_alongside(stack, rounds.run())
        log.info("probing", host=host, port=admin.port, every=str(every))
        await (until_asked or _until_signal)(admin.port)


def _alive_while(rounds: Rounds) -> Middleware:
    @web.middleware
    async def middleware(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.path == "/livez" and rounds.stuck:
            return web.Response(status=503, text="rounds no longer come to an end\n")
        return await handler(request)

    return middleware


async def _until_signal(_port: int) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with suppress(asyncio.CancelledError):
        await stop.wait()


def address(text: str) -> tuple[str, int]:
    """Host and port of HOST:PORT. Raises `ConfigError`."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ConfigError(f"{text!r} is no address to listen on: write HOST:PORT, such as 127.0.0.1:9464 or [::]:9464")
    return host.strip("[]"), int(port)
