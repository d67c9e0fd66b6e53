"""What can happen to the line, the keys, the clock and the workers."""

from __future__ import annotations

import asyncio
import math
import os
import resource
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg

from faults import memory
from faults.service import THIS
from faults.world import LOGIN, World
from lakthan.store.migrate import migrate
from support import tsa
from support.pki import issue, new_responder

Deed = Callable[[World], Awaitable[None]]

# ---- the line -------------------------------------------------------------------------------------------------------


async def cut_silently(world: World) -> None:
    """Packets go out and nobody gets them."""
    await asyncio.to_thread(world.servers.line.cut, "silent")


async def cut_down(world: World) -> None:
    """The interface is down."""
    await asyncio.to_thread(world.servers.line.cut, "down")


async def mend_line(world: World) -> None:
    """Everything gets through again."""
    await asyncio.to_thread(world.servers.line.mend)


async def half_open(world: World) -> None:
    """The server has closed the services' connections, and they do not know."""
    await cut_silently(world)
    connection = await asyncpg.connect(world.primary.url())
    try:
        await connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", LOGIN)
    finally:
        await connection.close()


async def slow_line(world: World) -> None:
    """Everything takes 0.4 s, both ways."""
    assert world.relay is not None
    world.relay.delay = 0.4


async def quick_line(world: World) -> None:
    """As before."""
    assert world.relay is not None
    world.relay.delay = 0.0


# ---- the clock ------------------------------------------------------------------------------------------------------


def step_clock(seconds: float) -> Deed:
    """The clock is so far ahead (behind: negative) from one moment to the next; 0: it is right again."""

    async def step(world: World) -> None:
        assert world.wall_clock is not None
        world.wall_clock.set(seconds)

    return step


async def freeze_clock(world: World) -> None:
    """It stands still."""
    assert world.wall_clock is not None
    world.wall_clock.freeze()


def lying(servers: int) -> Deed:
    """So many of the three time servers are five seconds ahead; 0: all are right again."""

    async def lie(world: World) -> None:
        for number, server in enumerate(world.time_servers):
            server.offset = 5.0 if number < servers else 0.0

    return lie


async def silence(world: World) -> None:
    """No time server answers."""
    for server in world.time_servers:
        server.silent = True


async def speak(world: World) -> None:
    """They answer again."""
    for server in world.time_servers:
        server.silent = False


# ---- the keys -------------------------------------------------------------------------------------------------------


def hsm(milliseconds: int) -> Deed:
    """The token sleeps so long over each signature; -1: it is gone; -2: what it gives is no signature."""

    async def set_it(world: World) -> None:
        assert world.hsm is not None
        world.hsm.sleep(milliseconds)

    return set_it


# ---- the workers ----------------------------------------------------------------------------------------------------


async def kill_workers(world: World) -> None:
    """SIGKILL for one worker of each service."""
    for service in world.services():
        os.kill(service.workers()[0], signal.SIGKILL)


async def both_workers(world: World) -> None:
    """Return when each service has two workers again."""
    for service in world.services():
        await service.until_workers(2)
        await service.until_ready()


async def stop_workers(world: World) -> None:
    """One worker of each service stands still."""
    for service in world.services():
        os.kill(service.workers()[0], signal.SIGSTOP)


async def continue_workers(world: World) -> None:
    """They go on."""
    for service in world.services():
        for worker in service.workers():
            os.kill(worker, signal.SIGCONT)


async def out_of_memory(world: World) -> None:
    """One worker of each service is in a memory cgroup with a neighbour that takes all: the kernel kills the worker."""
    await asyncio.to_thread(memory.let_the_kernel_kill, [service.workers()[0] for service in world.services()])


async def no_more_memory(world: World) -> None:
    """A worker of each service gets no more memory than it has: every request for more fails."""
    for service in world.services():
        worker = service.workers()[0]
        resource.prlimit(worker, resource.RLIMIT_AS, (_octets_of(worker), resource.RLIM_INFINITY))


def _octets_of(process: int) -> int:
    """The size of its address space."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[0]) * resource.getpagesize()


async def memory_again(world: World) -> None:
    """It gets what it asks for."""
    for service in world.services():
        for worker in service.workers():
            resource.prlimit(worker, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await both_workers(world)


# ---- certificates that run out --------------------------------------------------------------------------------------

# What is left of the certificates when the clients begin.
_LEFT_SECONDS = 8.0
# How long their start may take, to begin with.
_START_SECONDS = 6.0


async def hasten_the_end(world: World) -> None:
    """Beforehand: the services start anew with certificates that will run out soon after they are ready, however long
    that takes on this machine.
    """
    wanted = _START_SECONDS
    while True:
        for service in world.services():
            await asyncio.to_thread(service.stop)
        ends = timedelta(seconds=math.ceil(wanted + _LEFT_SECONDS + 1))
        valid = (timedelta(days=-1), ends)
        world.responder = new_responder(world.ca, valid=valid)
        leaf = issue("TSU ເວລາ", world.unit.intermediate, extensions=tsa.UNIT_EXTENSIONS, valid=valid)
        world.unit = replace(world.unit, leaf=leaf)
        world.responder.write(world.folder, "responder")
        world.unit.write(world.folder)
        for service in world.services():
            service.start()
        # Too late, and they never get ready: then they are started with others.
        left = (_end(world) - datetime.now(UTC)).total_seconds()
        with suppress(AssertionError, TimeoutError):
            async with asyncio.timeout(left - _LEFT_SECONDS):
                for service in world.services():
                    await service.until_ready()
                return
        wanted *= 2


def _end(world: World) -> datetime:
    return min(each.certificate.not_valid_after_utc for each in (world.responder, world.unit.leaf))


async def until_the_end(world: World) -> None:
    """They run out by themselves."""
    await asyncio.sleep(max(0.0, (_end(world) - datetime.now(UTC)).total_seconds()))


async def nothing(_world: World) -> None:
    """It has happened."""


async def renew(world: World) -> None:
    """New certificates with new keys, and a restart: what an operator without key lists does."""
    world.next_responder.write(world.folder, "responder")
    world.next_unit.write(world.folder)
    await _start_anew(world)


async def _start_anew(world: World) -> None:
    for service in world.services():
        await asyncio.to_thread(service.stop)
    for service in world.services():
        service.start()
    for service in world.services():
        await service.until_ready()


# ---- the schema -----------------------------------------------------------------------------------------------------


async def migrate_now(world: World) -> None:
    """What `lakthan db migrate` of this release does, while the previous release's services are at work."""
    applied = await migrate(world.primary.url())
    assert applied, "the previous release's schema is this one's: there is nothing to migrate"


async def this_release(world: World) -> None:
    """The services of this release take over."""
    for service in world.services():
        service.code = THIS
    await _start_anew(world)
