"""What a soak announces: workers that are replaced, end or are killed, a database that is restarted or hangs up.

Each is an event in the diary: from when until when, and which clients may have heard something else than an answer. It
is over when every kind of client has been served again.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import asyncpg

from support.soak_clients import Clients
from support.soak_diary import Diary
from support.soak_world import SUPERVISED, WORKERS, World

Step = Callable[[], Awaitable[None]]
_GRACE_SECONDS = 2.0
_PATIENCE_SECONDS = 120.0


class Upheavals:
    """Makes them."""

    def __init__(self, world: World, diary: Diary, clients: Clients) -> None:
        self._world = world
        self._diary = diary
        self._clients = clients

    def steps(self) -> list[Step]:
        """One of each."""
        return [self.replace_workers, self.end_workers, self.kill_workers, self.restart_database, self.cut_connections]

    async def replace_workers(self) -> None:
        """SIGHUP, with a configuration that has changed. Announced, because processes are others then; nobody else may
        notice.
        """

        async def act() -> None:
            self._world.max_age = 45 - self._world.max_age
            self._world.write_configuration()
            await asyncio.gather(*(self._replace(name) for name in self._supervised()))

        await self._announced("configuration and workers (SIGHUP)", act, [])

    async def _replace(self, name: str) -> None:
        service = self._world.services[name]
        before = set(service.workers().values())
        os.kill(service.pid, signal.SIGHUP)
        await self._world.until(
            lambda: len(set(service.workers().values()) - before) == WORKERS and not any(map(_lives, before)),
            f"other workers of {name}",
            _PATIENCE_SECONDS,
        )

    def _supervised(self) -> Iterable[str]:
        return [name for name in SUPERVISED if self._world.services[name].supervised]

    async def end_workers(self) -> None:
        """SIGTERM for a worker of each."""
        await self._end(signal.SIGTERM, "worker ended (SIGTERM)")

    async def kill_workers(self) -> None:
        """SIGKILL for a worker of each."""
        await self._end(signal.SIGKILL, "worker killed (SIGKILL)")

    async def _end(self, number: signal.Signals, what: str) -> None:
        async def act() -> None:
            await asyncio.gather(*(self._end_one(name, number) for name in self._supervised()))

        await self._announced(what, act, self._clients_of("ocsp", "tsa"))

    async def _end_one(self, name: str, number: signal.Signals) -> None:
        service = self._world.services[name]
        slot, pid = max(service.workers().items())
        os.kill(pid, number)
        await self._world.until(lambda: service.workers()[slot] != pid, f"another worker of {name}")

    async def restart_database(self) -> None:
        """PostgreSQL is stopped in good order, and started again."""

        async def act() -> None:
            await asyncio.to_thread(self._world.postgres.stop)
            await asyncio.to_thread(self._world.postgres.start)

        await self._announced("database restarted", act, ["*"])

    async def cut_connections(self) -> None:
        """Every connection of a service is ended by the server, as by a firewall or an administrator."""

        async def act() -> None:
            connection = await asyncpg.connect(self._world.postgres.url())
            try:
                await connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'lakthan-%'"
                )
            finally:
                await connection.close()

        await self._announced("database connections cut", act, ["*"])

    def _clients_of(self, *services: str) -> list[str]:
        kinds = self._clients.asked
        tsa = [each for each in kinds if each.startswith("token")]
        ca = [each for each in kinds if each.startswith("change")]
        ocsp = [each for each in kinds if each not in (*tsa, *ca)]
        return [*(ocsp if "ocsp" in services else []), *(tsa if "tsa" in services else [])]

    async def _announced(self, what: str, act: Step, allows: list[str]) -> None:
        """Do it; the event is over when every kind of client has been served again, and a moment later."""
        began = self._diary.now()
        mended = time.monotonic()
        try:
            await act()
            mended = time.monotonic()
            # By all workers: clients are content with one of them.
            await self._world.until_ready()
            kinds = [each for each in self._clients.served if each != "change, served"]
            await self._world.until(
                lambda: all(self._clients.served[each] > mended for each in kinds),
                f"all is served after: {what}",
                _PATIENCE_SECONDS,
            )
        finally:
            recovered = time.monotonic() - mended
            await asyncio.sleep(_GRACE_SECONDS)
            self._diary.write(
                "event", at=began, until=self._diary.now(), what=what, allows=allows, recovered=round(recovered, 2)
            )
        self._diary.seen(what)


def _lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
