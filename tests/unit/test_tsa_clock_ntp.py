"""The sources that are asked over UDP: real NTP servers on loopback whose time and manners change under way, and
chronyd itself where it is installed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakthan.errors import ConfigError
from lakthan_tsa.clock.chrony import ChronySource, parse_tracking
from lakthan_tsa.clock.kernel import KernelClock
from lakthan_tsa.clock.leap import end_of_day_ns, end_of_month_ns
from lakthan_tsa.clock.ntp import (
    KissOfDeath,
    Measurement,
    NoAnswer,
    address_of,
    ask,
    decode_timestamp,
    encode_request,
    encode_timestamp,
    parse_answer,
)
from lakthan_tsa.clock.quorum import NTPQuorum, agreement
from lakthan_tsa.clock.values import ClockState, Doubt, Leap, Look, Opinion
from support.ntp import NTPServer, ntp_servers
from support.programs import need

SECOND = 1_000_000_000
CLOCK = KernelClock()
INTERVALS = st.tuples(st.integers(-50, 50), st.integers(0, 30)).map(lambda pair: (pair[0], pair[0] + pair[1]))


def look_now() -> Look:
    """Both real clocks."""
    return Look(CLOCK.realtime_ns(), CLOCK.monotonic_ns(), 0)


def offset_seconds(said: Opinion | Measurement) -> float:
    """How far UTC is ahead of this machine, as it was said."""
    look = look_now()
    return (look.monotonic_ns + said.reference_ns - look.realtime_ns) / SECOND


async def ask_one(server: NTPServer, timeout_seconds: float = 1.0) -> Measurement:
    """Ask it once."""
    return await ask("127.0.0.1", server.port, CLOCK, timeout_seconds=timeout_seconds)


# --- one server --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 0.6, -2.0, 86400.0 * 365 * 40])
async def test_offset_and_bound(offset: float) -> None:
    """The true offset lies within the bound of what was measured, also beyond 2036, when NTP's seconds begin again; the
    bound has half of the root delay and all of the root dispersion.
    """
    async with ntp_servers(1) as [server]:
        server.offset, server.root_delay, server.root_dispersion = offset, 0.040, 0.010
        measured = await ask_one(server)
    assert measured.error_ns >= 30_000_000
    assert abs(offset_seconds(measured) - offset) * SECOND <= measured.error_ns


async def test_every_question_is_different() -> None:
    """The transmit timestamp of a request is random: no answer can be guessed, and our time is not told."""
    async with ntp_servers(1) as [server]:
        for _ in range(5):
            await ask_one(server)
        assert len(set(server.transmits)) == 5


async def test_forged_answers_are_passed_over() -> None:
    """Who did not see the request cannot answer it: the forgery is ignored and the true answer counts."""
    async with ntp_servers(1) as [server]:
        server.forged = True
        assert abs(offset_seconds(await ask_one(server))) < 1


@pytest.mark.parametrize(
    ("manners", "error", "message"),
    [
        ({"leap": 3}, NoAnswer, "not synchronised"),
        ({"stratum": 16}, NoAnswer, "not synchronised"),
        ({"stratum": 0, "reference_id": b"RATE"}, KissOfDeath, "RATE"),
        ({"silent": True}, TimeoutError, None),
        ({"version": 3}, TimeoutError, None),
    ],
)
async def test_refusals(manners: dict[str, object], error: type[Exception], message: str | None) -> None:
    """A server that is not synchronised, or says no, or nothing, or speaks another version, gives no time."""
    async with ntp_servers(1) as [server]:
        vars(server).update(manners)
        with pytest.raises(error, match=message):
            await ask_one(server, 0.2)


async def test_nobody_there() -> None:
    """A port where nobody listens is noticed at once, not after the time-out."""
    async with ntp_servers(1) as [server]:
        gone = server
    with pytest.raises(ConnectionRefusedError):
        await ask_one(gone, 30)


@given(st.binary(max_size=80))
def test_any_octets(octets: bytes) -> None:
    """Whatever arrives, it is an answer to our question or not, or a refusal; nothing else happens."""
    origin = b"12345678"
    for candidate in (octets, octets[:24] + origin + octets[32:], b"\x24\x01" + octets[2:24] + origin + octets[32:]):
        try:
            answer = parse_answer(candidate, origin=origin)
        except NoAnswer:
            continue
        assert answer is None or answer.transmit_ns >= answer.receive_ns


@given(st.integers(1_740_000_000 * SECOND, 5_900_000_000 * SECOND))
def test_timestamps(realtime_ns: int) -> None:
    """A timestamp is read as it was written, to the nanosecond, in this era of NTP and the next."""
    assert 0 <= realtime_ns - decode_timestamp(encode_timestamp(realtime_ns)) <= 1


def test_request_octets() -> None:
    """A request is 48 octets: version 4, client, and nothing else but its transmit timestamp."""
    assert encode_request(b"TRANSMIT") == b"\x23" + bytes(39) + b"TRANSMIT"


@pytest.mark.parametrize(
    ("server", "address"),
    [
        ("ntp.example", ("ntp.example", 123)),
        ("ntp.example:1123", ("ntp.example", 1123)),
        ("192.0.2.1", ("192.0.2.1", 123)),
        ("2001:db8::1", ("2001:db8::1", 123)),
        ("[2001:db8::1]", ("2001:db8::1", 123)),
        ("[2001:db8::1]:1123", ("2001:db8::1", 1123)),
    ],
)
def test_addresses(server: str, address: tuple[str, int]) -> None:
    """Servers are written as everywhere else."""
    assert address_of(server) == address


@pytest.mark.parametrize(
    "server", ["", ":123", "host:", "host:0", "host:99999", "host:time", "ntp..example", f"{'n' * 64}.example:123"]
)
def test_bad_addresses(server: str) -> None:
    """What is no address is a mistake of the configuration."""
    with pytest.raises(ConfigError, match="no server"):
        address_of(server)


# --- several servers ---------------------------------------------------------------------------------------------


@given(st.lists(INTERVALS, max_size=7), st.integers(1, 4))
def test_agreement(intervals: list[tuple[int, int]], needed: int) -> None:
    """The agreed interval is exactly from the first to the last point that enough intervals cover."""
    covered = [point for point in range(-60, 90) if sum(low <= point <= high for low, high in intervals) >= needed]
    assert agreement(intervals, needed) == ((covered[0], covered[-1]) if covered else None)


@given(st.integers(-50, 50), st.integers(3, 9), st.data())
def test_the_majority_is_enough(truth: int, count: int, data: st.DataObject) -> None:
    """While most servers are right, whatever the others say, the truth is in the agreed interval. TSA-C2."""
    wrong = (count - 1) // 2
    right = [
        (truth - data.draw(st.integers(0, 20)), truth + data.draw(st.integers(0, 20))) for _ in range(count - wrong)
    ]
    lies = [data.draw(INTERVALS) for _ in range(wrong)]
    agreed = agreement(right + lies, count // 2 + 1)
    assert agreed is not None
    assert agreed[0] <= truth <= agreed[1]


@asynccontextmanager
async def quorum(servers: list[NTPServer], holdover: float = 1.0) -> AsyncIterator[NTPQuorum]:
    """The source, at work."""
    source = NTPQuorum(
        [server.address for server in servers],
        CLOCK,
        poll=timedelta(seconds=0.05),
        holdover=timedelta(seconds=holdover),
    )
    watching = asyncio.create_task(source.watch())
    try:
        yield source
    finally:
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching


async def until(condition: Callable[[], bool]) -> None:
    """Wait for it."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what happens on a socket has no event
            await asyncio.sleep(0.02)


def vouches(source: NTPQuorum | ChronySource) -> bool:
    """Whether it does, now."""
    return isinstance(source.opinion(look_now()), Opinion)


def problem(source: NTPQuorum | ChronySource) -> Doubt:
    """What it doubts, now."""
    said = source.opinion(look_now())
    assert isinstance(said, Doubt)
    return said


async def test_one_of_three_may_lie() -> None:
    """Two of three agree and are believed; the third is called a falseticker. When the two part, nobody is."""
    async with ntp_servers(3) as servers, quorum(servers) as source:
        servers[2].offset = 5
        await until(lambda: vouches(source) and source.servers[2].standing == "falseticker")
        said = source.opinion(look_now())
        assert isinstance(said, Opinion)
        assert abs(offset_seconds(said)) < 0.5
        assert [server.standing for server in source.servers] == ["truechimer", "truechimer", "falseticker"]
        servers[1].offset = -5
        await until(lambda: not vouches(source))
        assert problem(source) == Doubt(ClockState.OUT_OF_SYNC, "no majority of the NTP servers agrees on the time")


async def test_one_of_three_may_be_silent() -> None:
    """Two of three are a majority, one alone is none: the silent ones are not forgotten when votes are counted."""
    async with ntp_servers(3) as servers, quorum(servers, holdover=0.3) as source:
        await until(lambda: vouches(source))
        servers[0].silent = True
        await until(lambda: source.servers[0].problem == "no answer")
        await asyncio.sleep(0.4)
        assert vouches(source)
        servers[1].silent = True
        await until(lambda: not vouches(source))
        assert problem(source).state is ClockState.UNKNOWN
        assert "1 of 3 NTP servers answered lately, 2 are needed" in problem(source).problem
        servers[1].silent = False
        await until(lambda: vouches(source))


async def test_bound_grows_between_answers() -> None:
    """What is held over counts for less every second: 500 ppm. TSA-C3."""
    async with ntp_servers(3) as servers, quorum(servers, holdover=3000) as source:
        await until(lambda: vouches(source))
        for server in servers:
            server.silent = True
        await asyncio.sleep(0.2)
        now = look_now()
        later = Look(now.realtime_ns, now.monotonic_ns + 1000 * SECOND, 0)
        before, after = source.opinion(now), source.opinion(later)
        assert isinstance(before, Opinion)
        assert isinstance(after, Opinion)
        assert after.error_ns - before.error_ns == pytest.approx(0.5 * SECOND, rel=1e-6)


async def test_a_leap_second_is_announced_by_the_majority() -> None:
    """One server that announces a leap second is not enough; two of three are, for the end of the month."""
    async with ntp_servers(3) as servers, quorum(servers) as source:

        def announced() -> Opinion:
            said = source.opinion(look_now())
            assert isinstance(said, Opinion)
            return said

        servers[0].leap = 1
        await until(lambda: vouches(source) and source.servers[0].measured is not None)
        await until(lambda: all(server.standing == "truechimer" for server in source.servers))
        assert announced().leap is Leap.NONE
        servers[1].leap = 1
        await until(lambda: announced().leap is Leap.INSERTED)
        assert announced().leap_at_ns == end_of_month_ns(time.time_ns())


async def test_after_a_leap_second_everybody_is_asked_again() -> None:
    """What was measured before a leap second is forgotten, and measured anew without waiting for the next poll."""
    async with ntp_servers(3) as servers:
        source = NTPQuorum([s.address for s in servers], CLOCK, poll=timedelta(hours=1), holdover=timedelta(hours=2))
        watching = asyncio.create_task(source.watch())
        await until(lambda: vouches(source))
        source.forget()
        assert not vouches(source)
        await until(lambda: vouches(source))
        assert [server.asked for server in servers] == [2, 2, 2]
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching


async def test_kiss_of_death() -> None:
    """A server that denies its service is never asked again; one that finds us too fast is asked half as often."""
    async with ntp_servers(3) as servers, quorum(servers) as source:
        await until(lambda: vouches(source))
        servers[0].stratum, servers[0].reference_id = 0, b"DENY"
        servers[1].stratum, servers[1].reference_id = 0, b"RATE"
        await until(lambda: "RATE" in source.servers[1].problem and "DENY" in source.servers[0].problem)
        asked = [server.asked for server in servers]
        assert not vouches(source)
        await asyncio.sleep(1)
        more = [server.asked - before for server, before in zip(servers, asked, strict=True)]
        assert more[0] == 0
        assert more[1] < more[2] / 2


@pytest.mark.parametrize(
    ("servers", "poll", "holdover", "message"),
    [
        (["a", "b"], 16, 60, "at least three"),
        (["a", "b", "a:123"], 16, 60, "at least three"),
        (["a", "b", "c"], 0, 60, "ntp_poll"),
        (["a", "b", "c"], 61, 60, "holdover"),
    ],
)
def test_quorum_settings(servers: list[str], poll: int, holdover: int, message: str) -> None:
    """Fewer than three servers cannot outvote a liar; a holdover shorter than the poll would never hold."""
    with pytest.raises(ConfigError, match=message):
        NTPQuorum(servers, CLOCK, poll=timedelta(seconds=poll), holdover=timedelta(seconds=holdover))


def test_ends_of_days_and_months() -> None:
    """The midnights before which leap seconds come."""
    last = 1_798_761_599 * SECOND  # 2026-12-31T23:59:59Z
    assert end_of_day_ns(last) == end_of_month_ns(last) == last + SECOND
    assert end_of_month_ns(last + SECOND) == last + SECOND + 31 * 86400 * SECOND
    assert end_of_day_ns(last + SECOND) == last + SECOND + 86400 * SECOND


# --- chronyd -----------------------------------------------------------------------------------------------------


@given(st.binary(max_size=120))
def test_any_octets_from_chrony(octets: bytes) -> None:
    """Whatever arrives where chronyd should be, it is the report or it is not."""
    assert parse_tracking(octets, 7) is None


@pytest.mark.parametrize(
    ("report", "problem"),
    [
        ("00000000 0000 0003 00000000 00000000", "not synchronised with anybody"),  # just started
        ("7f7f0101 0000 0000 00000000 fffffff0", "not synchronised with anybody"),  # follows its own clock
        ("c0000201 0002 0007 00000000 f0000000", "not synchronised with anybody"),  # in words that nobody knows
        ("c0000201 0000 0000 00000000 00000001", "for more than an hour"),
    ],
)
async def test_chronyd_in_doubt(report: str, problem: str) -> None:
    """A chronyd that follows nobody, or only itself, or lost its servers long ago, vouches for nothing."""
    reference_id, stratum, leap, high, low = map(bytes.fromhex, report.split())
    reply = bytes.fromhex("0602000000210005000000000000000012345678") + bytes(8)
    reply += reference_id + bytes(20) + stratum + leap + high + low + bytes(4)
    reply += bytes.fromhex("000000000000000000000000000000000000000000000000048000000480000000000000")
    tracking = parse_tracking(reply, 0x12345678)
    assert tracking is not None
    assert tracking.error_ns == pytest.approx(1.5 * SECOND)
    source = ChronySource("127.0.0.1", CLOCK)
    source.told(tracking)
    said = source.opinion(look_now())
    assert isinstance(said, Doubt)
    assert said.state is ClockState.OUT_OF_SYNC
    assert problem in said.problem


async def test_no_chronyd() -> None:
    """Where no chronyd answers, nobody knows, and the message says where it was looked for."""
    async with ntp_servers(1) as [server]:
        gone = server.port
    source = ChronySource(f"127.0.0.1:{gone}", CLOCK)
    watching = asyncio.create_task(source.watch())
    await asyncio.sleep(0.1)
    assert problem(source) == Doubt(
        ClockState.UNKNOWN, f"chronyd does not answer at 127.0.0.1:{gone}; is cmdport open there?"
    )
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching


async def test_real_chronyd(tmp_path: Path) -> None:
    """What chronyd reports of our server is understood, with the sign of its correction; when it ends, nobody knows."""
    program = need("chronyd")
    async with ntp_servers(2) as [server, free]:
        server.offset = 0.25
        command_port = free.port
        assert free.transport is not None
        free.transport.close()
        configuration = tmp_path / "chrony.conf"
        configuration.write_text(
            f"""
            server 127.0.0.1 port {server.port} minpoll -2 maxpoll -2 iburst
            port 0
            cmdport {command_port}
            bindcmdaddress 127.0.0.1
            bindcmdaddress /
            pidfile {tmp_path}/chronyd.pid
            """
        )
        source = ChronySource(f"127.0.0.1:{command_port}", CLOCK)
        log = tmp_path / "chronyd.log"
        with log.open("wb") as output:  # -x: it must not touch the clock of this machine
            chronyd = await asyncio.create_subprocess_exec(
                program, "-x", "-d", "-U", "-u", "root", "-f", configuration, stdout=output, stderr=output
            )
        watching = asyncio.create_task(source.watch())
        try:
            try:
                await until(lambda: vouches(source))
            except TimeoutError:
                pytest.fail(f"{problem(source)}; it asked {server.asked} times; {log.read_text()}")
            said = source.opinion(look_now())
            assert isinstance(said, Opinion)
            assert abs(offset_seconds(said) - 0.25) * SECOND <= said.error_ns + 0.002 * SECOND
            assert said.leap is Leap.NONE
        finally:
            chronyd.terminate()
            await chronyd.wait()
        await until(lambda: not vouches(source))
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching
