"""How live work is shared out among sources, by table."""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING

import pytest

from lakthan.errors import ConfigError
from lakthan.web import sources as module
from lakthan.web.sources import Source, Sources, network_of, read_networks

if TYPE_CHECKING:
    from collections.abc import Callable

BUSY_SECONDS = 0.02


@pytest.fixture
def tick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ticks are short here."""
    monkeypatch.setattr(module, "_TICK_SECONDS", BUSY_SECONDS)


def at_work(demands: dict[str, int], sources: Sources) -> dict[str, Source]:
    """Each source with one connection and this demand in the tick that ends."""
    found = {}
    for address, demand in demands.items():
        source = found[address] = sources.of(address)
        source.connections = 1
        for _ in range(demand):
            source.begin()
    return found


@pytest.mark.parametrize(
    ("demands", "limited"),
    [
        ({"192.0.2.1": 1000, "192.0.2.2": 10, "192.0.2.3": 10}, {"192.0.2.1": 898}),
        ({"192.0.2.1": 500, "192.0.2.2": 500, "192.0.2.3": 20}, {"192.0.2.1": 449, "192.0.2.2": 449}),
        ({"192.0.2.1": 8, "192.0.2.2": 8, "192.0.2.3": 7}, {}),  # what takes the time is something else
        ({"192.0.2.1": 1000}, {}),  # there is nobody to protect from it
        ({"198.51.100.1": 1000, "192.0.2.2": 20}, {}),  # many clients behind a proxy
    ],
)
async def test_shares_under_pressure(demands: dict[str, int], limited: dict[str, int]) -> None:
    """Who asks for less than an equal share gets all of it; the others share the rest equally."""
    sources = Sources(proxies=read_networks(["198.51.100.0/24"]))
    found = at_work(demands, sources)
    sources._pressed_ticks = 2
    sources.share_out(sum(demands.values()))
    assert {address: int(each.most) for address, each in found.items() if each.most < math.inf} == limited
    assert sources.limited == len(limited)
    sources.close()


async def test_without_pressure_nobody_is_limited() -> None:
    """A hundred times as much as the others: it may, while there is time."""
    sources = Sources()
    found = at_work({"192.0.2.1": 100_000, "192.0.2.2": 1}, sources)
    sources.share_out(100_001)
    assert all(each.most == math.inf for each in found.values())
    sources.close()


@pytest.mark.parametrize(
    ("busy", "answered", "due", "limited"),
    [
        (1.0, 100, 0, True),  # the thread has no time left
        (0.5, 100, 0, False),
        (1.0, 10_000, 0, False),  # what takes the time are remembered answers
        (0.1, 100, 5000, True),  # the store or a key is behind
    ],
)
@pytest.mark.usefixtures("tick")
async def test_what_pressure_is(busy: float, answered: int, due: int, *, limited: bool) -> None:
    """Only a thread without time left, by live work, or a long queue limits anybody; one tick is no pressure."""
    loop = asyncio.get_running_loop()
    ticks = 0

    def thread_seconds() -> float:
        return busy * loop.time()

    def all_answered() -> int:
        return ticks * answered

    sources = Sources(answered=all_answered, due=lambda: due, thread_seconds=thread_seconds)
    most = math.inf
    for ticks in range(1, 5):
        found = at_work({"192.0.2.1": 90, "192.0.2.2": 10}, sources)
        assert found["192.0.2.2"].most == math.inf
        ticking = sources._ticking
        while sources._ticking is ticking:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        most = found["192.0.2.1"].most
        if ticks == 1:
            assert most == math.inf
    assert (most < math.inf) is limited
    sources.close()


@pytest.mark.parametrize(("busy", "limited"), [(0.7, True), (0.5, False)])
@pytest.mark.usefixtures("tick")
async def test_an_event_loop_that_is_late(busy: float, *, limited: bool) -> None:
    """A thread that has some time left, but so much at once to answer that others wait for long, is pressed too; one
    that was only stopped is not.
    """
    loop = asyncio.get_running_loop()
    sources = Sources(thread_seconds=lambda: busy * loop.time())
    found: dict[str, Source] = {}
    for _ in range(3):
        found = at_work({"192.0.2.1": 90, "192.0.2.2": 10}, sources)
        ticking = sources._ticking
        while sources._ticking is ticking:
            time.sleep(BUSY_SECONDS)  # noqa: ASYNC251 - this is the lateness
            await asyncio.sleep(0)
    assert (found["192.0.2.1"].most < math.inf) is limited
    sources.close()


@pytest.mark.usefixtures("tick")
async def test_a_limit_ends() -> None:
    """When the pressure is over everybody may have everything again, and who has gone is forgotten."""
    sources = Sources(thread_seconds=lambda: 0.0)
    found = at_work({"192.0.2.1": 1000, "192.0.2.2": 10}, sources)
    sources._pressed_ticks = 2
    sources.share_out(1010)
    found["192.0.2.1"].work = 1000
    assert not found["192.0.2.1"].begin()
    async with asyncio.timeout(10):
        while found["192.0.2.1"].most < math.inf:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        for each in found.values():
            each.connections = 0
        while sources._by_network:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert sources._ticking is None


@pytest.mark.usefixtures("tick")
async def test_a_share_is_given_bit_by_bit() -> None:
    """Who is limited cannot have all of his share at once; the others are not concerned."""
    sources = Sources(thread_seconds=lambda: 0.0)
    found = at_work({"192.0.2.1": 1000, "192.0.2.2": 10}, sources)
    sources._pressed_ticks = 2
    sources.share_out(500)
    sources._room, sources._pressed_ticks = 450, 0
    async with asyncio.timeout(10):
        while found["192.0.2.1"].share == math.inf:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    flood = found["192.0.2.1"]
    assert flood.most <= flood.share
    given = [flood.most]
    async with asyncio.timeout(10):
        while len(given) < 3 and flood.share < math.inf:
            await asyncio.sleep(0.001)
            if flood.most != given[-1]:
                given.append(flood.most)
    assert given[0] < flood.share
    assert found["192.0.2.2"].most == math.inf
    sources.close()


class SimulatedLoop:
    """Time passes when the test says so; each timer comes so many seconds late."""

    def __init__(self, late_seconds: float = 0.0) -> None:
        self.now = 0.0
        self.late_seconds = late_seconds
        self.timers: list[asyncio.TimerHandle] = []

    def time(self) -> float:
        """See `asyncio.AbstractEventLoop`."""
        return self.now

    def call_later(self, seconds: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        """See `asyncio.AbstractEventLoop`."""
        timer = asyncio.TimerHandle(self.now + seconds, callback, (), asyncio.get_running_loop())
        self.timers.append(timer)
        return timer

    def next_timer(self) -> None:
        """The earliest one comes."""
        self.timers = [each for each in self.timers if not each.cancelled()]
        timer = min(self.timers, key=asyncio.TimerHandle.when)
        self.timers.remove(timer)
        self.now = max(self.now, timer.when()) + self.late_seconds
        timer._run()


def under_limits(loop: SimulatedLoop, busy: float) -> tuple[Sources, Source]:
    """Two sources in simulated time, of which the second one is limited, at the beginning of a tick."""
    sources = Sources(thread_seconds=lambda: busy * loop.now)
    sources._loop = loop  # type: ignore[assignment]
    flood = at_work({"192.0.2.2": 10, "192.0.2.1": 3000}, sources)["192.0.2.1"]
    sources._pressed_ticks = 1
    sources._room = 1e6
    sources._due = lambda: 2000  # for one tick
    while flood.share == math.inf:
        loop.next_timer()
    sources._due = lambda: 0
    return sources, flood


async def test_a_limited_source_cannot_begin_much_at_once() -> None:
    """What is begun at once all others wait for: a fiftieth of the share of a tick, and yet all of it in a tick."""
    loop = SimulatedLoop()
    sources, flood = under_limits(loop, busy=0.5)
    ticking, share, begun = sources._ticking, flood.share, []
    while sources._ticking is ticking:
        before = flood.work
        while flood.begin():
            pass
        begun.append(flood.work - before)
        loop.next_timer()
    assert max(begun) <= share / 50 + 1
    assert sum(begun) > 0.9 * share
    sources.close()


async def test_few_timers_while_nobody_is_limited() -> None:
    """A quiet house is not woken for nothing."""
    loop = SimulatedLoop()
    sources = Sources(thread_seconds=lambda: 0.0)
    sources._loop = loop  # type: ignore[assignment]
    at_work({"192.0.2.1": 90, "192.0.2.2": 10}, sources)
    timers = 0
    while loop.now < 10 * module._TICK_SECONDS:
        loop.next_timer()
        timers += 1
    assert timers <= 11 * 10
    sources.close()


@pytest.mark.parametrize(("late_seconds", "pressed"), [(0.025, True), (0.012, False)])
async def test_an_event_loop_that_is_late_under_limits(late_seconds: float, *, pressed: bool) -> None:
    """It is late when the parts come late, however many they are."""
    loop = SimulatedLoop(late_seconds)
    sources, flood = under_limits(loop, busy=0.7)
    ticking = sources._ticking
    while flood.begin():
        pass
    while sources._ticking is ticking:
        loop.next_timer()
    assert (sources._pressed_ticks > 0) is pressed
    sources.close()


async def test_who_rests_is_not_forgotten() -> None:
    """Who was told to come again asks nothing for a moment; then he does not find all limits gone."""
    sources = Sources()
    found = at_work({"192.0.2.1": 1000, "192.0.2.2": 10, "192.0.2.3": 10}, sources)
    sources._pressed_ticks = 2
    sources.share_out(500)
    flood = found["192.0.2.1"]
    flood.work, flood.refused = 400, 600
    sources._pressed_ticks = 0
    limits = []
    for _ in range(module._REMEMBERED_TICKS + 1):
        sources.share_out(400)
        limits.append(flood.most < math.inf)
        flood.work = flood.refused = 0
    assert limits == [True] * module._REMEMBERED_TICKS + [False]
    sources.close()


@pytest.mark.usefixtures("tick")
async def test_what_only_waits_is_no_work_done() -> None:
    """A thousand begun of which nine hundred wait for a key: there is room for what the hundred took."""
    due = 2000

    def waiting() -> int:
        return due

    sources = Sources(thread_seconds=lambda: 0.0, due=waiting)
    found = at_work({"192.0.2.1": 990, "192.0.2.2": 10}, sources)
    sources._pressed_ticks = 1
    due = 2900
    async with asyncio.timeout(10):
        while found["192.0.2.1"].share == math.inf:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert found["192.0.2.1"].share <= 90
    sources.close()


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "20010db800010002"),
        ("2001:db8:1:2::9", "20010db800010002"),
        ("", ""),
    ],
)
def test_who_an_address_is(address: str, network: str) -> None:
    """One IPv4 address, or the 64 bits that one subscriber has."""
    assert network_of(address) == network


@pytest.mark.parametrize("wrong", ["10.0.0.1/8", "proxy.example", "10.0.0.0/33", ""])
def test_wrong_proxies(wrong: str) -> None:
    """A mistake is named at the start."""
    with pytest.raises(ConfigError, match="proxies: "):
        read_networks([wrong])
