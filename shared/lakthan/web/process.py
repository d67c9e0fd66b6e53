"""The life of a service process: read the configuration, serve until SIGTERM or SIGINT, let the clients go, leave.

With `--workers` the process becomes the supervisor of several that do the work (`lakthan.web.workers`); SIGHUP then
replaces them one after the other, and means nothing otherwise. A service manager is told how far things are
(`lakthan.web.notify`).

Exit codes: 0 after a requested stop, 2 when the configuration, a key, a certificate or an address is wrong.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click
import structlog
import uvloop

from lakthan.config import Config, load
from lakthan.errors import ConfigError, LakthanError
from lakthan.telemetry import logs
from lakthan.telemetry.request_log import request_log
from lakthan.web.leaving import this_process
from lakthan.web.notify import notify, watchdog
from lakthan.web.worker import this_worker
from lakthan.web.workers import supervise, worker_command

_GARBAGE = (50_000, 20, 100)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from contextlib import AsyncExitStack

    # Told the public and the admin port when everything is up; returns when the process has been asked to stop.
    UntilAsked = Callable[[int, int], Awaitable[None]]
    Serve = Callable[[Config, UntilAsked], Awaitable[None]]


def command(service: str, serve: Serve) -> click.Command:
    """The command line of a service, around its `serve`."""

    @click.command(name=f"lakthan-{service}", help=f"Run the {service} service until SIGTERM.")
    @click.option(
        "--config", "path", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The TOML file."
    )
    @click.option(
        "--workers",
        type=click.IntRange(1, 1024),
        default=1,
        help="How many processes share the port.",
        show_default=True,
    )
    @click.option(
        "--linger",
        "linger_seconds",
        type=click.FloatRange(0, 3600),
        default=0,
        help="Seconds that it goes on after SIGTERM, saying on /readyz that it leaves.",
        show_default=True,
    )
    def main(path: Path, workers: int, linger_seconds: float) -> None:
        logs.configure(service)
        try:
            config = load(path)
            logs.use(lines_per_second=config.log.lines_per_second, audit=config.log.audit)
            request_log.use(config.log.requests, names_certificates=config.log.serials)
            logs.log.info("configuration read", file=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())
            if workers > 1:
                sys.exit(_supervise(service, config, path, workers, linger_seconds))
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_until_stopped(config, serve, linger_seconds))
        except LakthanError as error:
            logs.log.error("cannot serve", problem=str(error))
            sys.exit(2)

    return main


def _supervise(service: str, config: Config, path: Path, workers: int, linger_seconds: float) -> int:
    settings = config.ocsp if service == "ocsp" else config.tsa if service == "tsa" else None
    if settings is None:
        raise ConfigError(f"--workers is for ocsp and tsa, with their table in the configuration; {service} has none")
    command = worker_command(f"lakthan_{service}", path)
    return asyncio.run(supervise(service, settings, command, workers, linger_seconds=linger_seconds))


def run_alongside(stack: AsyncExitStack, work: Coroutine[object, object, None]) -> None:
    """Run `work` in the background until `stack` closes; then it is cancelled and waited for. Should it fail before,
    the log has it at once; the service goes on without it, and whatever it vouched for runs out.
    """
    task = asyncio.create_task(work)
    task.add_done_callback(_tell_failure)

    async def end() -> None:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    stack.push_async_callback(end)


def _tell_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logs.log.error("a defect: something that runs beside the service has ended", exc_info=task.exception())


class _Supervisor(asyncio.Protocol):
    """The supervisor's end of a worker's standard input: nothing ever comes; its end is the supervisor's."""

    def __init__(self, stop: asyncio.Event) -> None:
        self._stop = stop

    def connection_lost(self, _error: Exception | None) -> None:
        """See `asyncio.BaseProtocol`."""
        self._stop.set()


async def _until_stopped(config: Config, serve: Serve, linger_seconds: float) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    worker = this_worker()
    # A worker that stopped when its terminal closed would be a hole in the rolling restart; the supervisor decides.
    loop.add_signal_handler(signal.SIGHUP, _alone if worker is None else _nothing)
    if worker is not None:
        structlog.contextvars.bind_contextvars(worker=worker.number)
        await loop.connect_read_pipe(lambda: _Supervisor(stop), sys.stdin)

    up = asyncio.Event()

    async def until_asked(_port: int, _admin_port: int) -> None:
        up.set()
        # What start-up made lives as long as the process; the collector need not look at it again.
        gc.collect()
        gc.freeze()
        # Requests leave no cycles behind, but caches grow: look for garbage seldom, and not at all of it each time.
        gc.set_threshold(*_GARBAGE)
        notify("READY=1")
        alive = asyncio.create_task(watchdog())
        await stop.wait()
        logs.log.info("stopping")
        notify("STOPPING=1")
        await this_process.leave(linger_seconds)
        alive.cancel()

    serving, stopping = asyncio.ensure_future(serve(config, until_asked)), asyncio.create_task(stop.wait())
    await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if stop.is_set() and not up.is_set():
        logs.log.info("stopping before the start was complete")
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving
    else:
        await serving


def _alone() -> None:
    logs.log.warning("SIGHUP replaces the workers of a service that has some (--workers); this one has none")


def _nothing() -> None:
    """SIGHUP is the supervisor's business."""
