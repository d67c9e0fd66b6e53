"""What can happen to the line, the keys, the clock and the workers."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import asyncpg

from faults.world import LOGIN, World

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


async def step_clock(world: World) -> None:
    """The authority's clock is two seconds ahead from one moment to the next."""
    assert world.wall_clock is not None
    world.wall_clock.set(2.0)


async def freeze_clock(world: World) -> None:
    """It stands still."""
    assert world.wall_clock is not None
    world.wall_clock.freeze()


async def set_clock(world: World) -> None:
    """It is right again."""
    assert world.wall_clock is not None
    world.wall_clock.set(0.0)


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


async def no_more_memory(world: World) -> None:
    """A worker of each service gets no more memory than it has."""
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


async def run_out(world: World) -> None:
    """They do, by themselves."""
    ends = max(each.certificate.not_valid_after_utc for each in (world.responder, world.unit.leaf))
    await asyncio.sleep(max(0.0, (ends - datetime.now(UTC)).total_seconds()))


async def renew(world: World) -> None:
    """New certificates with new keys, and a restart: what an operator without key lists does."""
    for service in world.services():
        await asyncio.to_thread(service.stop)
    world.next_responder.write(world.folder, "responder")
    world.next_unit.write(world.folder)
    for service in world.services():
        service.start()
    for service in world.services():
        await service.until_ready()
