"""What a soak measures of the processes: memory, descriptors, threads and processor time from /proc, connections and
size from the database, and how many series each `/metrics` has.

Memory is what a process has for itself and could only give back by itself: `Anonymous` of smaps_rollup. The resident
size beside it has the files that others map as well.
"""

from __future__ import annotations

import os
import statistics
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg

from lakthan.store.embedded_process import server_processes
from support.soak_clients import Clients
from support.soak_diary import Diary
from support.soak_world import World

CLIENTS = "clients"
_TICKS = os.sysconf("SC_CLK_TCK")


class Sampler:
    """Looks when it is told to."""

    def __init__(self, world: World, diary: Diary, clients: Clients) -> None:
        self._world = world
        self._diary = diary
        self._clients = clients
        self._connection: asyncpg.Connection | None = None
        self.backends: set[int] = set()

    async def sample(self) -> None:
        """One line of kind `sample`."""
        self._diary.write("sample", processes=self._processes(), database=await self._database())

    def _processes(self) -> dict[str, dict[str, Any]]:
        found = {}
        for name, service in self._world.services.items():
            if service.supervised:
                found[f"{name} supervisor"] = look(service.pid)
                for number, pid in service.workers().items():
                    found[f"{name} worker {number}"] = look(pid)
            else:
                found[name] = look(service.pid)
        found[CLIENTS] = look(os.getpid())
        return {name: of for name, of in found.items() if of}

    async def _database(self) -> dict[str, Any]:
        data = self._world.folder / "postgres" / "data"
        processes = [of for of in map(look, server_processes(data)) if of]
        about: dict[str, Any] = {
            "processes": len(processes),
            "memory": sum(of["memory"] for of in processes),
            "cpu": round(sum(of["cpu"] for of in processes), 2),
        }
        try:
            if self._connection is None or self._connection.is_closed():
                self._connection = await asyncpg.connect(
                    self._world.postgres.url(), server_settings={"application_name": "soak"}, timeout=5
                )
            rows = await self._connection.fetch(
                "SELECT pid, application_name AS name FROM pg_stat_activity WHERE backend_type = 'client backend'"
            )
            about["octets"] = await self._connection.fetchval("SELECT pg_database_size(current_database())")
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
            self._connection = None  # it is being restarted
            return about
        ours = [row for row in rows if row["name"].startswith("lakthan-")]
        self.backends.update(row["pid"] for row in ours)
        about["connections"] = len(ours)
        return about

    async def scrape(self) -> None:
        """Every `/metrics` once, as Prometheus does; one line of kind `scrape`."""
        series, troubled = {}, []
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
            for name, service in self._world.services.items():
                try:
                    async with session.get(f"http://127.0.0.1:{service.admin_port}/metrics") as reply:
                        lines = [line for line in (await reply.text()).splitlines() if line[:1] not in ("#", "")]
                        series[name] = len(lines)
                        if reply.status != 200:
                            troubled.append(f"{name}: HTTP {reply.status}")
                except (aiohttp.ClientError, TimeoutError) as error:
                    troubled.append(f"{name}: {type(error).__name__}")
        for words in troubled:
            self._diary.wrong(f"the metrics of {words}")
        self._diary.write("scrape", series=series)

    def latencies(self) -> None:
        """What the clients measured since the last time; one line of kind `latency`."""
        of = {}
        for name, times in sorted(self._clients.take_times().items()):
            cut = statistics.quantiles(times, n=100, method="inclusive") if len(times) > 1 else times * 99
            of[name] = {"count": len(times), "p50": round(cut[49] * 1000, 3), "p99": round(cut[98] * 1000, 3)}
        self._diary.write("latency", of=of)

    async def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            await self._connection.close(timeout=2)


def look(pid: int) -> dict[str, Any] | None:
    """A process now: `memory` and `resident` in octets, `cpu` in seconds; None when it is gone."""
    folder = Path(f"/proc/{pid}")
    with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        rollup = dict(line.split(":") for line in (folder / "smaps_rollup").read_text().splitlines()[1:])
        stat = (folder / "stat").read_text().rpartition(")")[2].split()
        return {
            "pid": pid,
            "memory": int(rollup["Anonymous"].split()[0]) * 1024,
            "resident": int(rollup["Rss"].split()[0]) * 1024,
            "descriptors": len(list((folder / "fd").iterdir())),
            "threads": int(stat[17]),
            "cpu": (int(stat[11]) + int(stat[12])) / _TICKS,
        }
    return None
