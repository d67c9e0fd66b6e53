"""Several processes for one service: started, watched, shown as one, and stopped together.

Promises: every worker is a fresh process of the same command (nothing is forked, so no thread, key or HSM session is
ever in two processes); the public port stays taken by the supervisor, also while no worker has it; a worker that ends
by itself is started again, more and more slowly while that keeps happening; SIGTERM and SIGINT drain all of them. A
worker that cannot serve at its very first start ends everything with its exit code; later, that is one more reason to
try again.

The supervisor answers the admin port for all: `/metrics` has every series of every worker with the label `worker`,
`/readyz` every check of every worker. It serves no request, opens no key and knows no database.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import tempfile
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lakthan.errors import ConfigError
from lakthan.telemetry.logs import log
from lakthan.web.front import open_admin
from lakthan.web.worker import VARIABLE, Worker
from lakthan.web.workers_admin import WorkersAdmin

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lakthan.config import OCSPConfig, RegistryConfig, TSAConfig

_FIRST_DELAY_SECONDS = 0.5
_LONGEST_DELAY_SECONDS = 30.0
# A worker that ran for so long did not fail at its start: the next start is no repetition.
_PROVEN_SECONDS = 60.0
# Longer than a worker's own drain.
_STOP_SECONDS = 35.0
# As in `lakthan.web.process`: a configuration that cannot be served.
_CANNOT_SERVE = 2


@dataclass
class Slot:
    """The place of one worker, whichever process is in it now. `restarts`: how often another one had to come."""

    worker: Worker
    process: asyncio.subprocess.Process | None = None
    restarts: int = 0
    delay_seconds: float = field(default=_FIRST_DELAY_SECONDS)

    @property
    def running(self) -> bool:
        """True while there is a process."""
        return self.process is not None and self.process.returncode is None


async def supervise(
    service: str, settings: OCSPConfig | TSAConfig | RegistryConfig, command: Sequence[str], count: int
) -> int:
    """Run `count` workers of `command` until asked to stop. Gives the exit code; raises `ConfigError`.

    `settings`: the service's table, of which only the addresses matter here.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="lakthan-workers-"))
        taken = stack.enter_context(_take_port(settings.host, settings.port))
        port = taken.getsockname()[1]
        environment = {**os.environ, f"LAKTHAN_{service.upper()}__PORT": str(port)}
        slots = [Slot(Worker(number, str(Path(folder) / f"{number}.sock"))) for number in range(count)]
        admin = WorkersAdmin(slots)
        stack.push_async_callback(admin.close)
        admin_front = await open_admin(admin.application(), settings.admin_host, settings.admin_port)
        stack.push_async_callback(admin_front.close)
        log.info("starting workers", workers=count, host=settings.host, port=port, admin_port=admin_front.port)
        tending = [asyncio.create_task(_tend(slot, command, environment, stop)) for slot in slots]
        try:
            await stop.wait()
        finally:
            # Tended to the end: what was being started is asked to stop too.
            codes = await asyncio.gather(*tending)
        return max(codes)


def _take_port(host: str, port: int) -> socket.socket:
    """A socket that holds the address and never listens: nobody else gets the port, and 0 becomes a number."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        taken = socket.socket(family, kind, protocol)
        try:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            taken.bind(address)
        except OSError:
            taken.close()
            raise
    except OSError as error:
        raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    return taken


async def _tend(slot: Slot, command: Sequence[str], environment: Mapping[str, str], stop: asyncio.Event) -> int:
    """Keep a worker in its place until `stop`. Gives the exit code that the supervisor ends with on its account."""
    stopping = asyncio.create_task(stop.wait())
    try:
        while not stop.is_set():
            began = time.monotonic()
            # With asyncio, not before it: a spawned process inherits nothing but its standard streams.
            process = slot.process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                env={**environment, VARIABLE: slot.worker.variable},
            )
            log.info("worker started", worker=slot.worker.number, pid=process.pid)
            ended = asyncio.create_task(process.wait())
            await asyncio.wait([ended, stopping], return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                return await _stop(slot, process)
            code = process.returncode
            if code == _CANNOT_SERVE and not slot.restarts:
                log.error("a worker cannot serve: stopping", worker=slot.worker.number)
                stop.set()
                return _CANNOT_SERVE
            if time.monotonic() - began > _PROVEN_SECONDS:
                slot.delay_seconds = _FIRST_DELAY_SECONDS
            slot.restarts += 1
            log.error(
                "a worker ended and is started again",
                worker=slot.worker.number,
                exit_code=code,
                delay_seconds=slot.delay_seconds,
            )
            await asyncio.wait([stopping], timeout=slot.delay_seconds)
            slot.delay_seconds = min(slot.delay_seconds * 2, _LONGEST_DELAY_SECONDS)
        return 0
    finally:
        stopping.cancel()


async def _stop(slot: Slot, process: asyncio.subprocess.Process) -> int:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            log.error("a worker did not stop and is ended", worker=slot.worker.number)
            process.kill()
            await process.wait()
    return 0


def worker_command(module: str, config: Path) -> list[str]:
    """How a worker of a service is started: as the service itself is."""
    return [sys.executable, "-P", "-m", module, "--config", str(config)]
