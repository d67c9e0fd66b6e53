"""Several processes for one service: started, watched, shown as one, replaced one after the other, stopped together.

Promises: every worker is a fresh process of the same command (nothing is forked, so no thread, key or HSM session is
ever in two processes); the public port stays taken by the supervisor, also while no worker has it; a worker that ends
by itself is started again, more and more slowly while that keeps happening; SIGTERM and SIGINT drain all of them. A
worker that cannot serve at its very first start ends everything with its exit code; later, that is one more reason to
try again.

SIGHUP replaces all workers, one after the other, and no request is lost by it. For that the
supervisor holds the sockets that a worker accepts on: what waits in their queues when a worker goes is its successor's.
Only when a worker ends by itself they are closed, and the system gives its share of new connections to the others.

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
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from lakthan.errors import ConfigError
from lakthan.telemetry.logs import log
from lakthan.web import notify
from lakthan.web.acceptor import bind
from lakthan.web.front import open_admin
from lakthan.web.leaving import this_process
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
# How long a successor may take until it is ready: a database that is slow, a clock that must prove itself first.
_READY_SECONDS = 120.0
_LOOK_SECONDS = 0.05
# As in `lakthan.web.process`: a configuration that cannot be served.
_CANNOT_SERVE = 2


@dataclass
class Slot:
    """The place of one worker, whichever process is in it now, and the sockets that they inherit one from another.

    `restarts`: how often another one had to come because one ended by itself; `replaced`: how often on request.
    """

    number: int
    sockets: list[socket.socket] = field(default_factory=list)
    worker: Worker | None = None
    process: asyncio.subprocess.Process | None = None
    restarts: int = 0
    replaced: int = 0
    delay_seconds: float = field(default=_FIRST_DELAY_SECONDS)

    @property
    def running(self) -> bool:
        """True while there is a process."""
        return self.process is not None and self.process.returncode is None

    def close_sockets(self) -> None:
        """Let go of the sockets; the system resets what is queued there, unless a worker still has them."""
        for each in self.sockets:
            each.close()
        self.sockets = []


async def supervise(
    service: str,
    settings: OCSPConfig | TSAConfig | RegistryConfig,
    command: Sequence[str],
    count: int,
    *,
    linger_seconds: float = 0.0,
) -> int:
    """Run `count` workers of `command` until asked to stop. Gives the exit code; raises `ConfigError`.

    `settings`: the service's table, of which only the addresses matter here. `linger_seconds`: see
    `lakthan.web.leaving`.
    """
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="lakthan-workers-"))
        taken = stack.enter_context(_take_port(settings.host, settings.port))
        port = taken.getsockname()[1]
        environment = {**os.environ, f"LAKTHAN_{service.upper()}__PORT": str(port)}
        for variable in notify.VARIABLES:
            environment.pop(variable, None)
        workers = Workers(command, environment, (settings.host, port), Path(folder), count)
        workers.take_sockets()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, workers.stop.set)
        loop.add_signal_handler(signal.SIGHUP, workers.replace.set)
        admin = WorkersAdmin(workers.slots)
        stack.push_async_callback(admin.close)
        admin_front = await open_admin(admin.application(), settings.admin_host, settings.admin_port)
        stack.push_async_callback(admin_front.close)
        log.info("starting workers", workers=count, host=settings.host, port=port, admin_port=admin_front.port)
        return await workers.run(admin, linger_seconds)


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


class Workers:
    """The slots, and what happens in them until `stop`; `replace` is set when all workers are to be replaced."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        address: tuple[str, int],
        folder: Path,
        count: int,
    ) -> None:
        self._command = command
        self._environment = environment
        self._address = address
        self._folder = folder
        self._started = 0
        self.slots = [Slot(number) for number in range(count)]
        self.stop = asyncio.Event()
        self.replace = asyncio.Event()

    def take_sockets(self) -> None:
        """Bind every slot's sockets. Raises `ConfigError`."""
        host, port = self._address
        try:
            for slot in self.slots:
                slot.sockets = bind(host, port, shared=True)
        except OSError as error:
            raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error

    async def run(self, admin: WorkersAdmin, linger_seconds: float) -> int:
        """Keep a worker in every slot until `stop`. Gives the exit code."""
        going_on = asyncio.Event()  # ends later than `stop`: while load balancers learn of it, all goes on
        tending = [asyncio.create_task(self._tend(slot, going_on, admin)) for slot in self.slots]
        beside = [asyncio.create_task(work) for work in (self._tell_ready(admin), notify.watchdog())]
        replacing = asyncio.create_task(self._replace_when_asked(admin))
        try:
            await self.stop.wait()
            this_process.asked = True
            notify.notify("STOPPING=1")
            await asyncio.sleep(linger_seconds)
        finally:
            for task in beside:
                task.cancel()
            self.replace.set()  # so that it looks, and ends
            await asyncio.wait([*beside, replacing])
            # First, so that a worker that stops has the last of these and takes all that is queued there.
            for slot in self.slots:
                slot.close_sockets()
            going_on.set()
            # Tended to the end: what was being started is asked to stop too.
            codes = await asyncio.gather(*tending)
        return max(codes)

    async def _tell_ready(self, admin: WorkersAdmin) -> None:
        """READY=1 once every worker has begun; whether it is a good place for requests now is what `/readyz` says."""
        while not all([await admin.readiness(slot.worker) for slot in self.slots]):  # noqa: ASYNC110 - others to ask
            await asyncio.sleep(_LOOK_SECONDS)
        notify.notify("READY=1", f"STATUS={len(self.slots)} workers run.")

    async def _start(self, slot: Slot) -> tuple[Worker, asyncio.subprocess.Process]:
        """Another process for a slot, on the slot's sockets."""
        if not slot.sockets:
            slot.sockets = bind(*self._address, shared=True)
        self._started += 1
        descriptors = tuple(each.fileno() for each in slot.sockets)
        worker = Worker(slot.number, descriptors, str(self._folder / f"{slot.number}-{self._started}.sock"))
        # With asyncio, not before it: a spawned process inherits nothing but its standard streams and these.
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            env={**self._environment, VARIABLE: worker.variable},
            pass_fds=descriptors,
        )
        log.info("worker started", worker=slot.number, pid=process.pid)
        return worker, process

    async def _tend(self, slot: Slot, going_on: asyncio.Event, admin: WorkersAdmin) -> int:
        """Keep a worker in its place until `going_on` ends. Gives the exit code that the supervisor ends with on its
        account.
        """
        stopping = asyncio.create_task(going_on.wait())
        try:
            while not going_on.is_set():
                began = time.monotonic()
                try:
                    slot.worker, slot.process = await self._start(slot)
                except OSError as error:
                    log.error("a worker cannot be started; trying again", worker=slot.number, problem=str(error))
                    await asyncio.wait([stopping], timeout=_LONGEST_DELAY_SECONDS)
                    continue
                if not await self._until_ended(slot, stopping):
                    return 0
                code = slot.process.returncode
                first = not slot.restarts and not slot.replaced
                # Where another one has begun it is no mistake that all would make: something broke just then.
                if code == _CANNOT_SERVE and first and not await self._another_has_begun(slot, admin):
                    log.error("a worker cannot serve: stopping", worker=slot.number)
                    self.stop.set()
                    return _CANNOT_SERVE
                # The others get its share of the connections until it is there again.
                slot.close_sockets()
                if time.monotonic() - began > _PROVEN_SECONDS:
                    slot.delay_seconds = _FIRST_DELAY_SECONDS
                slot.restarts += 1
                log.error(
                    "a worker ended and is started again",
                    worker=slot.number,
                    exit_code=code,
                    delay_seconds=slot.delay_seconds,
                )
                await asyncio.wait([stopping], timeout=slot.delay_seconds)
                slot.delay_seconds = min(slot.delay_seconds * 2, _LONGEST_DELAY_SECONDS)
            return 0
        finally:
            stopping.cancel()

    async def _another_has_begun(self, slot: Slot, admin: WorkersAdmin) -> bool:
        """True when a worker in another slot can say whether it is ready."""
        return any([await admin.readiness(each.worker) for each in self.slots if each is not slot])

    async def _until_ended(self, slot: Slot, stopping: asyncio.Task[bool]) -> bool:
        """True when the process in the slot ended by itself, whichever it is by then; False when it was stopped."""
        while slot.process is not None:
            process = slot.process
            ended = asyncio.create_task(process.wait())
            await asyncio.wait([ended, stopping], return_when=asyncio.FIRST_COMPLETED)
            if stopping.done():
                await _stop(slot.number, slot.process)
                return False
            if process is slot.process:  # otherwise it left its place to a successor
                return True
        return False

    async def _replace_when_asked(self, admin: WorkersAdmin) -> None:
        """One rolling restart after the other, as they are asked for."""
        while True:
            await self.replace.wait()
            if self.stop.is_set():
                return
            self.replace.clear()
            notify.notify_reloading()
            began, count, done = time.monotonic(), len(self.slots), 0
            log.info("replacing the workers one after the other", workers=count)
            try:
                for slot in self.slots:
                    if self.stop.is_set() or not await self._replace(slot, admin):
                        break
                    done += 1
            except Exception:  # noqa: BLE001 - the workers that are there go on, and the next SIGHUP tries again
                log.exception("a defect: the rolling restart has failed")
            say = log.info if done == count else log.error
            say("workers were replaced", replaced=done, workers=count, seconds=round(time.monotonic() - began, 1))
            notify.notify("READY=1", f"STATUS={done} of {count} workers were replaced.")

    async def _replace(self, slot: Slot, admin: WorkersAdmin) -> bool:
        """Another process beside the one in the slot; when it is ready, the old one leaves. False when it never is:
        then nothing has changed.
        """
        old_worker, old = slot.worker, slot.process
        if old is None or old.returncode is not None:
            return True  # it is being started anew anyway
        try:
            worker, process = await self._start(slot)
        except OSError as error:
            log.error("a worker cannot be started: nothing more is replaced", worker=slot.number, problem=str(error))
            return False
        ready = await self._until_ready(worker, process, old_worker, admin)
        if ready and slot.process is old and old.returncode is None:
            # In one turn of the event loop: whoever tends the slot sees the one or the other.
            slot.worker, slot.process, slot.replaced = worker, process, slot.replaced + 1
            await _stop(slot.number, old)
            await admin.forget(old_worker)
            return True
        if not ready and not self.stop.is_set():
            log.error(
                "a new worker does not become ready: the old one stays, and nothing more is replaced",
                worker=slot.number,
                exit_code=process.returncode,
            )
        await _stop(slot.number, process)
        await admin.forget(worker)
        return ready

    async def _until_ready(
        self, worker: Worker, process: asyncio.subprocess.Process, old: Worker | None, admin: WorkersAdmin
    ) -> bool:
        """Whether it becomes ready, or as good as the old one, before it ends or the time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_READY_SECONDS):
                while process.returncode is None and not self.stop.is_set():
                    status = await admin.readiness(worker)
                    if status == HTTPStatus.OK or (status and await admin.readiness(old) != HTTPStatus.OK):
                        return True
                    await asyncio.sleep(_LOOK_SECONDS)
        return False


async def _stop(number: int, process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            log.error("a worker did not stop and is ended", worker=number)
            process.kill()
            await process.wait()


def worker_command(module: str, config: Path) -> list[str]:
    """How a worker of a service is started: as the service itself is."""
    return [sys.executable, "-P", "-m", module, "--config", str(config)]
