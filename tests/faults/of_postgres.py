"""What can happen to PostgreSQL, and what an operator does about it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import asyncpg

from faults.service import PATIENCE_SECONDS
from faults.world import LOGIN, World
from lakthan.store.embedded_process import server_processes
from lakthan.store.feed import FEED_NAME
from support.edge import until
from support.programs import need
from support.replication import Server

_AWAY = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError)
_SPARE_MIB = 96
# For so long an operator waits for a server to come back by itself.
_OPERATOR_SECONDS = 15.0


def _gone(server: Server) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while server_processes(server.data):
        assert time.monotonic() < deadline, "PostgreSQL outlives its end"
        time.sleep(0.01)
    if server.process is not None:
        server.process.wait(PATIENCE_SECONDS)
        server.process = None


def _quit(server: Server) -> None:
    os.kill(int((server.data / "postmaster.pid").read_text().split("\n", 1)[0]), signal.SIGQUIT)
    _gone(server)


def _kill(server: Server) -> None:
    victims = server_processes(server.data)
    assert len(victims) > 4, "PostgreSQL was not running"
    # All stand still before the first one dies, so that none can tidy up.
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for victim in victims:
            os.kill(victim, number)
    _gone(server)


async def stop_immediate(world: World) -> None:
    """`pg_ctl stop -m immediate`."""
    await asyncio.to_thread(_quit, world.primary)


async def kill(world: World) -> None:
    """SIGKILL for every process of it at once."""
    await asyncio.to_thread(_kill, world.primary)


async def start(world: World) -> None:
    """On the data as they are."""
    await asyncio.to_thread(world.primary.start)


# ---- its disk -------------------------------------------------------------------------------------------------------


def _onto_a_small_disk(server: Server) -> None:
    server.stop()
    before = server.data.with_name("data.before")
    server.data.rename(before)
    server.data.mkdir(mode=0o700)
    used = sum(path.lstat().st_blocks * 512 for path in before.rglob("*")) // 2**20
    options = f"size={used + _SPARE_MIB}m,mode=0700,uid={server.account.uid},gid={server.account.gid}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "small", server.data], check=True)
    subprocess.run(["cp", "-a", f"{before}/.", server.data], check=True)
    shutil.rmtree(before)
    server.start()


async def onto_a_small_disk(world: World) -> None:
    """Beforehand: the data move to a disk with little room."""
    await asyncio.to_thread(_onto_a_small_disk, world.primary)


async def off_the_small_disk(world: World) -> None:
    """Afterwards; also when it has not come up again."""
    data = world.primary.data
    if server_processes(data):
        await asyncio.to_thread(_quit, world.primary)
    await asyncio.to_thread(subprocess.run, ["umount", "--lazy", str(data)], check=True)


async def fill_the_disk(world: World) -> None:
    """Not an octet is left, and the next piece of the write-ahead log would need 16 MiB."""
    filler = world.primary.data / "filler"
    room = os.statvfs(world.primary.data)
    with suppress(OSError), filler.open("wb") as file:
        for _ in range(room.f_bavail * room.f_bsize // 2**16 + 1):
            file.write(bytes(2**16))
    await until(lambda: _takes_nothing(world.primary), seconds=PATIENCE_SECONDS)


async def _takes_nothing(server: Server) -> bool:
    """Asks it to write: it breaks in the middle of this, or has broken over somebody else's."""
    try:
        connection = await asyncpg.connect(server.url())
    except _AWAY:
        return True
    try:
        await connection.execute("SELECT pg_logical_emit_message(true, 'faults', repeat('x', 65536))")
        await connection.execute("SELECT pg_switch_wal()")
    except _AWAY:
        return True
    finally:
        connection.terminate()
    return False


async def make_room(world: World) -> None:
    """The operator removes what filled it, and starts what has given up, or does not come back by itself: a recovery
    that began on the full disk has been seen to wait for ever, with room enough.
    """
    (world.primary.data / "filler").unlink()
    try:
        await until(lambda: _accepts(world.primary), seconds=_OPERATOR_SECONDS)
    except TimeoutError:
        if server_processes(world.primary.data):
            await asyncio.to_thread(_quit, world.primary)
        await until(lambda: _accepts(world.primary), seconds=PATIENCE_SECONDS)


async def _accepts(server: Server) -> bool:
    """Whether it writes; one that has ended is started, when the last of its processes has ended too."""
    if server.process is None or server.process.poll() is not None:
        if server_processes(server.data):
            return False
        (server.data / "postmaster.pid").unlink(missing_ok=True)
        with suppress(RuntimeError):  # it has not come up: once more
            await asyncio.to_thread(server.start)
    with suppress(*_AWAY):
        await server.execute("SELECT pg_logical_emit_message(true, 'faults', 'room')")
        return True
    return False


class SlowDisk:
    """Every fdatasync and fsync of the server takes so much longer, because a tracer holds it."""

    def __init__(self, milliseconds: int) -> None:
        self._milliseconds = milliseconds
        self._tracer: subprocess.Popen[bytes] | None = None

    async def strike(self, world: World) -> None:
        """From now on."""
        processes = server_processes(world.primary.data)
        delay = f"delay_enter={self._milliseconds * 1000}"
        command = [str(need("strace")), "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync,fsync"]
        command += ["-e", f"inject=fdatasync,fsync:{delay}", *(word for pid in processes for word in ("-p", str(pid)))]
        self._tracer = await asyncio.to_thread(subprocess.Popen, command)

    async def mend(self, _world: World) -> None:
        """The tracer lets go."""
        assert self._tracer is not None
        self._tracer.terminate()
        await asyncio.to_thread(self._tracer.wait, 20)


# ---- its connections ------------------------------------------------------------------------------------------------


async def take_all_connections(world: World) -> None:
    """The services' login has as many connections as it may have, all of them somebody else's."""
    owner = await asyncpg.connect(world.primary.url())
    world.left_behind.append(owner)
    await owner.execute(f"ALTER ROLE {LOGIN} CONNECTION LIMIT 0")
    await owner.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", LOGIN)


async def give_connections_back(world: World) -> None:
    """It may have them again."""
    owner = world.left_behind.pop()
    await owner.execute(f"ALTER ROLE {LOGIN} CONNECTION LIMIT -1")
    await owner.close()


async def freeze_the_feed(world: World) -> None:
    """The server's ends of the connections on which the responders hear of changes stand still: nothing breaks, nothing
    comes.
    """
    for pid in await _feeds(world):
        os.kill(pid, signal.SIGSTOP)


async def thaw_the_feed(world: World) -> None:
    """They go on."""
    for pid in await _feeds(world):
        os.kill(pid, signal.SIGCONT)


async def _feeds(world: World) -> list[int]:
    connection = await asyncpg.connect(world.primary.url())
    try:
        rows = await connection.fetch("SELECT pid FROM pg_stat_activity WHERE application_name = $1", FEED_NAME)
    finally:
        await connection.close()
    assert rows, "nobody listens"
    return [row["pid"] for row in rows]


# ---- another server -------------------------------------------------------------------------------------------------


async def fail_over(world: World) -> None:
    """The standby becomes the primary; the one that died stays dead."""
    edge = world.servers.edge
    await edge.execute("SELECT pg_promote(true, 30)")
    # There is nobody now who could confirm beside it.
    await edge.execute("ALTER SYSTEM SET synchronous_standby_names = ''", "SELECT pg_reload_conf()")
    world.primary = edge


async def back_up(world: World) -> None:
    """Beforehand: a copy of the running server by pg_basebackup."""
    server = world.primary
    backup = server.folder / "backup"
    program = server.binaries.folder / "pg_basebackup"
    if not program.exists():  # the embedded programs have the server only
        from lakthan.store.embedded_binaries import find_binaries  # noqa: PLC0415 - only here

        program = find_binaries(server.binaries.major).folder / "pg_basebackup"
    url = server.url().replace("/lakthan?", "/postgres?")
    command = [
        str(program),
        "--pgdata",
        str(backup),
        "--dbname",
        url,
        "--wal-method=none",
        "--checkpoint=fast",
        "--no-sync",
    ]
    await asyncio.to_thread(subprocess.run, command, check=True)


def _lose_data(server: Server) -> None:
    _kill(server)
    server.data.rename(server.folder / "lost")


async def lose_data(world: World) -> None:
    """SIGKILL, and the data are gone; the write-ahead log, which is on another disk, is not."""
    await asyncio.to_thread(_lose_data, world.primary)


async def restore(world: World) -> None:
    """The copy, and everything that was committed since, from the log."""
    server = world.primary
    (server.folder / "backup").rename(server.data)
    shutil.rmtree(server.data / "pg_wal")
    shutil.copytree(server.folder / "lost" / "pg_wal", server.data / "pg_wal")
    (server.data / "recovery.signal").touch()
    (server.data / "postmaster.pid").unlink(missing_ok=True)
    _own(server.data, server)
    server.settings = {**server.settings, "restore_command": "false"}
    await asyncio.to_thread(server.start)
    await until(lambda: _is_primary(server), seconds=PATIENCE_SECONDS)


async def _is_primary(server: Server) -> bool:
    with suppress(*_AWAY):
        return await server.fetchval("SELECT NOT pg_is_in_recovery()") is True
    return False


def _own(folder: Path, server: Server) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, server.account.uid, server.account.gid, follow_symlinks=False)
