"""The life of a service process: read the configuration, serve until SIGTERM or SIGINT, drain, leave.

Exit codes: 0 after a requested stop, 2 when the configuration, a key, a certificate or an address is wrong.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click
import uvloop

from lakthan.config import Config, load
from lakthan.errors import LakthanError
from lakthan.telemetry import logs

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
    def main(path: Path) -> None:
        logs.configure(service)
        try:
            config = load(path)
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_until_stopped(config, serve))
        except LakthanError as error:
            logs.log.error("cannot serve", problem=str(error))
            sys.exit(2)

    return main


def run_alongside(stack: AsyncExitStack, work: Coroutine[object, object, None]) -> None:
    """Run `work` in the background until `stack` closes; then it is cancelled and waited for."""
    task = asyncio.create_task(work)

    async def end() -> None:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    stack.push_async_callback(end)


async def _until_stopped(config: Config, serve: Serve) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    async def until_asked(_port: int, _admin_port: int) -> None:
        # What start-up made lives as long as the process; the collector need not look at it again.
        gc.collect()
        gc.freeze()
        await stop.wait()
        logs.log.info("stopping")

    await serve(config, until_asked)
