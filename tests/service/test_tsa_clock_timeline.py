"""The clock guard as a client sees it: a real process, three NTP servers, a wall clock that is stepped under it by
libfaketime, and somebody who asks for a token all the time. What happened when is printed as a table.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import aiohttp
import asyncpg
import pytest
from rich.console import Console
from rich.table import Table

from support.ntp import NTPServer, ntp_servers
from support.running import samples
from support.tsa import failure, new_unit, request_for, tst_info_of, write_configuration
from support.wall_clock import WallClock

HEADERS = {"Content-Type": "application/timestamp-query"}
ACCURACY = timedelta(seconds=1)
CLOCK = """clock.sources = ["ntp"]
clock.ntp_servers = {servers}
clock.ntp_poll = "PT0.2S"
clock.holdover = "PT2S"
clock.recovery = "PT1S"
"""


@dataclass(frozen=True)
class Answered:
    """One request: when it was answered, the true time around it, and what came."""

    monotonic: float
    sent: datetime
    received: datetime
    outcome: str
    gen_time: datetime | None = None


@dataclass
class Scene:
    """The process, its clock, its servers, and everything that the client was answered."""

    clock: WallClock
    servers: list[NTPServer]
    url: str
    admin_url: str
    session: aiohttp.ClientSession
    answered: list[Answered] = field(default_factory=list)
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    truth: float = 0.0  # seconds that true time is ahead of this machine

    def now(self) -> datetime:
        """True time."""
        return datetime.now(UTC) + timedelta(seconds=self.truth)

    async def ask_for_ever(self) -> None:
        """One request after the other."""
        while True:
            sent = self.now()
            async with self.session.post(self.url, data=request_for(), headers=HEADERS) as reply:
                body = await reply.read()
            received, monotonic = self.now(), time.monotonic()
            if len(body) > 200:
                gen_time = tst_info_of(body)["gen_time"].native
                self.answered.append(Answered(monotonic, sent, received, "granted", gen_time))
            else:
                [outcome], _ = failure(body)
                self.answered.append(Answered(monotonic, sent, received, outcome))
            await asyncio.sleep(0.01)

    async def first(self, outcome: str, since: float) -> float:
        """Wait until something that was asked later is answered so; gives the seconds since then."""
        async with asyncio.timeout(60):
            while True:
                for answered in self.answered:
                    # The answer just after may belong to a question from before.
                    if answered.outcome == outcome and answered.monotonic > since:
                        return answered.monotonic - since
                await asyncio.sleep(0.005)

    async def lost_and_found(self, event: str, lose: Callable[[], None], restore: Callable[[], None]) -> None:
        """Tokens stop after `lose`, do not come back by themselves, and come back after `restore`."""
        at = time.monotonic()
        lose()
        stopped = await self.first("time_not_available", at)
        await asyncio.sleep(2.5)  # longer than the recovery
        assert {each.outcome for each in self.answered if each.monotonic > at + stopped} == {"time_not_available"}
        at = time.monotonic()
        restore()
        resumed = await self.first("granted", at)
        self.rows.append((event, f"{stopped * 1000:.0f} ms", f"{resumed:.1f} s"))

    async def unmoved(self, event: str, change: Callable[[], None], restore: Callable[[], None], state: str) -> None:
        """Tokens go on, in this state of the clock."""
        at = time.monotonic()
        change()
        async with asyncio.timeout(60):
            while not (await self.metrics())[f'lakthan_tsa_clock_state{{state="{state}"}}']:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        for _ in range(30):
            assert not (await self.metrics())['lakthan_tsa_clock_state{state="out of sync"}']
            await asyncio.sleep(0.05)
        assert "granted" in {each.outcome for each in self.answered if each.monotonic > at}
        restore()
        await asyncio.sleep(2.5)
        self.rows.append((event, f"never ({state})", ""))

    async def metrics(self) -> dict[str, float]:
        """Every sample of /metrics."""
        return await samples(self.session, self.admin_url)

    def show(self, capsys: pytest.CaptureFixture[str]) -> None:
        """The table."""
        table = Table("event", "first refusal after", "set right: tokens after", title="Clock timeline")
        for row in self.rows:
            table.add_row(*row)
        with capsys.disabled():
            Console(width=110).print("", table)


@asynccontextmanager
async def scene(database_url: str, folder: Path, servers: list[NTPServer], offset: float = 0) -> AsyncIterator[Scene]:
    """A process whose clock, and whose servers' clocks, are ahead by `offset` seconds, and a client that asks it."""
    clock = WallClock(folder)
    clock.set(offset)
    for server in servers:
        server.offset = offset
    unit = new_unit(valid=(timedelta(hours=-1), timedelta(days=70)))
    addresses = json.dumps([server.address for server in servers])
    path = write_configuration(folder, database_url, unit=unit, settings=CLOCK.format(servers=addresses))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "lakthan_tsa", "--config", path, stderr=asyncio.subprocess.PIPE, env=clock.environment()
    )
    assert process.stderr is not None
    reading = None
    try:
        line: dict[str, object] = {}
        while line.get("event") != "serving timestamps":
            line = json.loads(await process.stderr.readline())
        reading = asyncio.create_task(process.stderr.read())
        async with aiohttp.ClientSession() as session:
            url, admin_url = (f"http://127.0.0.1:{line[name]}" for name in ("port", "admin_port"))
            here = Scene(clock, servers, f"{url}/", admin_url, session, truth=offset)
            asking = asyncio.create_task(here.ask_for_ever())
            await here.first("granted", time.monotonic())
            yield here
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
    finally:
        process.terminate()
        await process.wait()
        if reading is not None:
            print((await reading).decode())


def check_accuracy(answered: list[Answered]) -> None:
    """Every token that was given tells the true time, within what it claims."""
    granted = [each for each in answered if each.gen_time is not None]
    assert granted
    for each in granted:
        assert each.gen_time is not None
        assert each.sent - ACCURACY <= each.gen_time <= each.received + ACCURACY


async def events_of(database_url: str) -> list[asyncpg.Record]:
    """The audit trail."""
    connection = await asyncpg.connect(database_url)
    try:
        return list(await connection.fetch("SELECT * FROM clock_event ORDER BY recorded_at, at"))
    finally:
        await connection.close()


async def test_steps_and_lost_sources(database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """When the clock is stepped, or the sources are gone or show another time, tokens stop; when all is well again they
    come back, and not before. No token ever tells a time that is wrong by more than it claims. Every step is on record.

    TSA-R8, TSA-C2, TSA-C3, TSA-C4, TSA-C6, TSA-C7.
    """
    async with ntp_servers(3) as servers, scene(database_url, tmp_path, servers) as here:

        def all_at(offset: float) -> None:
            for server in servers:
                server.offset = offset

        def all_leap(leap: int) -> None:
            for server in servers:
                server.leap = leap

        def silence(count: int) -> None:
            for index, server in enumerate(servers):
                server.silent = index < count

        for step in (0.6, -0.6, 2.0, -2.0):
            await here.lost_and_found(
                f"wall clock stepped by {step:+.1f} s", partial(here.clock.set, step), partial(here.clock.set, 0.0)
            )
        check_accuracy(here.answered)
        for offset in (0.6, -0.6):
            await here.unmoved(
                f"all NTP servers move by {offset:+.1f} s",
                partial(all_at, offset),
                partial(all_at, 0.0),
                "soon out of sync",
            )
        for offset in (2.0, -2.0):
            await here.lost_and_found(
                f"all NTP servers move by {offset:+.1f} s", partial(all_at, offset), partial(all_at, 0.0)
            )
        await here.unmoved("one of three silent", partial(silence, 1), partial(silence, 0), "in sync")
        await here.unmoved(
            "one of three lies by 30 s",
            lambda: setattr(servers[0], "offset", 30.0),
            lambda: setattr(servers[0], "offset", 0.0),
            "in sync",
        )
        await here.lost_and_found("all of them silent", partial(silence, 3), partial(silence, 0))
        await here.lost_and_found(
            "all of them unsynchronised",
            partial(all_leap, 3),
            partial(all_leap, 0),
        )
        assert (await here.metrics())["lakthan_tsa_clock_jumps"] == 8
        here.show(capsys)

    trail = await events_of(database_url)
    assert [row["event"] for row in trail if row["event"] != "measured"] == [
        "sync",
        *["step", "loss", "step", "sync"] * 4,
        *["warning", "sync"] * 2,
        *["loss", "sync"] * 2,
        *["loss", "sync"] * 2,
    ]
    steps = [row["offset_us"] / 1e6 for row in trail if row["event"] == "step"]
    assert steps == pytest.approx([0.6, -0.6, -0.6, 0.6, 2.0, -2.0, -2.0, 2.0], abs=0.05)


async def test_leap_second(database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At the end of a month in which the servers announce a leap second, no token has a time in the seconds around it;
    after it they go on by themselves, and the exact time of the change is on record.

    TSA-R8, TSA-C5.
    """
    now = datetime.now(UTC)
    midnight = (now.replace(day=1) + timedelta(days=32)).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    offset = (midnight - now).total_seconds() - 9
    async with ntp_servers(3) as servers:
        for server in servers:
            server.leap = 1
        async with scene(database_url, tmp_path, servers, offset) as here:
            # 23:59:60 passes: from midnight on, everybody's clock shows one second less.
            await asyncio.sleep((midnight - here.now()).total_seconds())
            here.clock.set(offset - 1)
            for server in servers:
                server.offset = offset - 1
                server.leap = 0
            here.truth = offset - 1
            at = time.monotonic()
            await here.first("granted", at)
            await asyncio.sleep(1)
            times = [each.gen_time for each in here.answered if each.gen_time is not None]
            before, after = max(t for t in times if t < midnight), min(t for t in times if t >= midnight)
            here.rows.append(("leap second: the last token before it", f"{before:%H:%M:%S.%f}"[:-3], ""))
            here.rows.append(("leap second: the first token after it", "", f"{after:%H:%M:%S.%f}"[:-3]))
            here.show(capsys)
    second = timedelta(seconds=1)
    assert before < midnight - second
    assert after >= midnight + second
    assert {each.outcome for each in here.answered} == {"granted", "time_not_available"}
    trail = await events_of(database_url)
    assert [row["event"] for row in trail] == ["sync", "loss", "leap second", "sync"]
    assert trail[2]["detail"] == f"inserted before {midnight.isoformat()}"
    assert abs(trail[2]["at"] - midnight) <= 2 * second
