"""Limits of connections, unfinished requests and shares: each does what it says, is counted, and meets who it should.

What they do for honest clients in real floods is measured by `./run floods`.
"""

from __future__ import annotations

import asyncio
import resource
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography.x509 import ocsp

from lakthan.web import front as front_module
from lakthan.web import wire as wire_module
from lakthan.web.front import Front
from lakthan.web.leaving import this_process
from lakthan.web.room import descriptors_for
from lakthan.web.wire import Wire
from support.pki import issue
from support.responder import request_for as ocsp_request_for
from support.responder import running_responder
from support.tsa import new_unit, request_for, running_tsa
from support.wire import echoing, read_answer, said

GET = b"GET /y HTTP/1.1\r\nHost: a\r\n\r\n"
LATER = GET.replace(b"/y", b"/later")
BY_AIOHTTP = GET.replace(b"Host: a", b"Host: a\r\nX-Unheard-Of: yes")
TRY_LATER = bytes.fromhex("30030a0103")

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def client(port: int, address: str, octets: bytes = b"") -> Streams:
    """A connection from this address, on which this was sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
    writer.write(octets)
    return reader, writer


async def asked(port: int, address: str, octets: bytes = GET) -> Streams:
    """The same after the answer has come; the connection stays open."""
    reader, writer = await client(port, address, octets)
    assert (await read_answer(reader)).startswith(b"HTTP/1.1 200 OK")
    return reader, writer


def wire_of(front: Front) -> Wire:
    """Its wire."""
    assert front.wire is not None
    return front.wire


async def test_one_source_may_have_all_connections_of_a_quiet_house() -> None:
    """A whole ministry behind one address: hundreds of connections, thousands of questions, nobody is refused."""
    async with echoing() as (front, _):
        everybody = [await asked(front.port, "127.0.0.2") for _ in range(400)]
        other = await asked(front.port, "127.0.0.3")
        for _ in range(5):
            for _, writer in everybody:
                writer.write(GET)
            for reader, _ in everybody:
                assert (await read_answer(reader)).endswith(said("GET", "/y", b""))
        wire = wire_of(front)
        assert (wire.limited, wire.made_room, wire.turned_away, wire.sources.limited) == (0, 0, 0, 0)
        for _, writer in [*everybody, other]:
            writer.close()


@pytest.mark.parametrize("idle", [GET, BY_AIOHTTP])
async def test_who_has_most_connections_makes_room(idle: bytes) -> None:
    """Idle ones of that source go, the longest idle one first; others stay, and newcomers are served."""
    async with echoing(connections=16) as (front, _):
        honest = await asked(front.port, "127.0.0.3")
        many = [await asked(front.port, "127.0.0.2", idle) for _ in range(2)]
        for connection in wire_of(front).connections:
            connection._since -= 30
        for guest in wire_of(front).guests.values():
            guest.since -= 30
        many += [await asked(front.port, "127.0.0.2", idle) for _ in range(13)]
        new = [await asked(front.port, "127.0.0.4"), await asked(front.port, "127.0.0.5")]
        for reader, writer in many[:2]:
            assert await reader.read() == b""
            writer.close()
        for reader, writer in [honest, *many[2:], *new]:
            writer.write(GET)
            assert (await read_answer(reader)).endswith(said("GET", "/y", b""))
            writer.close()
        assert (wire_of(front).made_room, wire_of(front).turned_away) == (2, 0)


async def test_slow_requests_make_room() -> None:
    """Half a request is no reason to stay."""
    async with echoing(connections=16) as (front, _):
        slow = [await client(front.port, "127.0.0.2", GET[:9]) for _ in range(16)]
        async with asyncio.timeout(10):
            while len(wire_of(front).connections) < 16:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        _, writer = await asked(front.port, "127.0.0.3")
        writer.close()
        assert wire_of(front).made_room == 1
        for _, writer in slow:
            writer.close()


async def test_a_connection_at_work_is_never_closed_for_another() -> None:
    """When an answer is due on all of them the newcomer hears 503, with all that HTTP wants of it."""
    async with echoing(connections=16) as (front, quick):
        busy = [await client(front.port, "127.0.0.2", LATER) for _ in range(16)]
        async with asyncio.timeout(10):
            while len(quick.waiting) < 16:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        reader, writer = await client(front.port, "127.0.0.3", GET)
        refusal = await reader.read()
        assert refusal.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: 1\r\n" in refusal
        assert b"\r\nCache-Control: no-store\r\n" in refusal
        writer.close()
        quick.reply_to_all()
        for each, writer in busy:
            assert (await read_answer(each)).endswith(said("GET", "/later", b""))
            writer.close()
        assert (wire_of(front).made_room, wire_of(front).turned_away) == (0, 1)


async def test_a_source_with_fewer_connections_does_not_make_room_for_one_with_more() -> None:
    """A source whose own connections are all at work takes none from those that have few."""
    async with echoing(connections=16) as (front, quick):
        busy = [await client(front.port, "127.0.0.2", LATER) for _ in range(12)]
        few = [await asked(front.port, "127.0.0.3") for _ in range(4)]
        async with asyncio.timeout(10):
            while len(quick.waiting) < 12:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        reader, writer = await client(front.port, "127.0.0.2", GET)
        assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
        writer.close()
        quick.reply_to_all()
        for each, writer in few:
            writer.write(GET)
            assert (await read_answer(each)).endswith(said("GET", "/y", b""))
            writer.close()
        for _, writer in busy:
            writer.close()


async def test_the_last_places_are_for_others() -> None:
    """When answers are due on all connections of a source that has most, others still come in."""
    async with echoing(connections=64) as (front, quick):
        busy = [await client(front.port, "127.0.0.2", LATER) for _ in range(62)]
        async with asyncio.timeout(10):
            while len(quick.waiting) < 62:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        reader, writer = await client(front.port, "127.0.0.2", GET)
        assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
        writer.close()
        busy += [await asked(front.port, address) for address in ("127.0.0.3", "127.0.0.4")]
        assert (wire_of(front).made_room, wire_of(front).turned_away) == (0, 1)
        quick.reply_to_all()
        for _, writer in busy:
            writer.close()


async def test_unfinished_requests_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many hold a piece of a request, what is held stays within a bound; those that hold most go."""
    monkeypatch.setattr(wire_module, "_MOST_HELD_BY_ALL", 64_000)
    async with echoing() as (front, _):
        small = await client(front.port, "127.0.0.3", GET[:-1])
        piece = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 4000\r\n\r\n" + bytes(3000)
        large = [await client(front.port, "127.0.0.2", piece) for _ in range(60)]
        wire = wire_of(front)
        async with asyncio.timeout(10):
            while not wire.made_room:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert wire.held <= 64_000 + 4096
        assert wire.held == sum(each.holds for each in wire.connections)
        small[1].write(GET[-1:])
        assert (await read_answer(small[0])).endswith(said("GET", "/y", b""))
        for _, writer in [small, *large]:
            writer.close()
        async with asyncio.timeout(10):
            while wire.connections:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert wire.held == 0


CHUNKED = b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


async def test_a_slow_body_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that aiohttp reads, and that does not come: 408, and the end of the connection."""
    monkeypatch.setattr(front_module, "_BODY_SECONDS", 0.2)
    async with echoing() as (front, _):
        reader, writer = await client(front.port, "127.0.0.2", CHUNKED + b"1\r\nh\r\n")
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"\r\nConnection: close\r\n" in answer
        assert wire_of(front).timed_out == 1
        writer.close()


async def test_a_client_that_leaves_in_its_body(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody hears of it, the log neither."""
    async with echoing() as (front, _):
        wire = wire_of(front)
        _, writer = await client(front.port, "127.0.0.2", CHUNKED + b"5\r\nhello\r\n")
        async with asyncio.timeout(10):
            while not front_module._Bodies.octets:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            writer.transport.abort()
            while front_module._Bodies.octets or wire.guests:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert caplog.records == []


async def test_bodies_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What aiohttp holds of all bodies together has a bound: beyond it 503, and when it is free again all is well."""
    monkeypatch.setattr(front_module, "_MOST_BODY_OCTETS", 5000)
    async with echoing() as (front, _):
        piece = b"7d0\r\n" + bytes(2000) + b"\r\n"
        two = [await client(front.port, "127.0.0.2", CHUNKED + piece) for _ in range(2)]
        async with asyncio.timeout(10):
            while front_module._Bodies.octets < 4000:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        reader, writer = await client(front.port, "127.0.0.2", CHUNKED + piece)
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: 1\r\n" in answer
        writer.close()
        for reader, writer in two:
            writer.write(b"0\r\n\r\n")
            assert (await read_answer(reader)).startswith(b"HTTP/1.1 200 OK")
            writer.close()
        assert front_module._Bodies.octets == 0
        assert wire_of(front).turned_away == 1


async def test_a_slow_head_that_aiohttp_reads_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that was handed over and does not bring a request in time is closed."""
    monkeypatch.setattr(wire_module, "_SWEEP_SECONDS", 0.05)
    async with echoing() as (front, _):
        wire = wire_of(front)
        wire._patience_seconds = 0.2
        reader, writer = await client(front.port, "127.0.0.2", b"HEAD /y HTTP/1.1\r\nX-A: ")
        assert await reader.read() == b""
        assert wire.timed_out == 1
        writer.close()
        async with asyncio.timeout(10):
            while wire.guests:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_ocsp_beyond_the_share(database_url: str, tmp_path: Path) -> None:
    """`tryLater`, never cacheable, by both ways and counted, for what must be looked up or signed; what is remembered
    is given all the same, and other sources are not concerned.
    """
    async with running_responder(database_url, tmp_path) as responder:
        first, second = [await responder.issue(issue(name, responder.ca)) for name in ("first", "second")]
        port = urlsplit(responder.url).port or 0
        (front,) = this_process.fronts
        wire = wire_of(front)
        # Its connection keeps the source known.
        before = await client(port, "127.0.0.2")
        remembered, live = ocsp_request_for(first, responder.ca), ocsp_request_for(second, responder.ca)
        with_nonce = ocsp_request_for(first, responder.ca, nonce=bytes(32))
        await (await _ask_ocsp(port, "127.0.0.2", remembered)).closed()
        for long_way in (False, True):
            limited = wire.limited
            for body, expected in ((remembered, 0), (live, 3), (with_nonce, 3), (remembered, 0)):
                asking = await _ask_ocsp(port, "127.0.0.2", body, long_way=long_way, most=0)
                assert asking.status == expected
                if expected:
                    assert b"no-store" in asking.head
                await asking.closed()
            assert wire.limited == limited + 2
        other = await _ask_ocsp(port, "127.0.0.3", live)
        assert other.status == 0
        await other.closed()
        assert (await responder.metrics())["lakthan_ocsp_wire_limited_total"] == wire.limited
        before[1].close()


class _Asked:
    """A response to an OCSPRequest."""

    def __init__(self, streams: Streams, response: bytes) -> None:
        self._streams = streams
        self.head, _, body = response.partition(b"\r\n\r\n")
        self.status = ocsp.load_der_ocsp_response(body).response_status.value

    async def closed(self) -> None:
        """The client hangs up."""
        self._streams[1].close()
        await self._streams[1].wait_closed()


async def _ask_ocsp(
    port: int, address: str, body: bytes, *, long_way: bool = False, most: float | None = None
) -> _Asked:
    """`most`: what its source may have in a tick, from now on."""
    extra = b"X-Long-Way: 1\r\n" if long_way else b""
    if most is not None:
        (front,) = this_process.fronts
        wire_of(front).sources.of(address).most = most
    octets = b"POST / HTTP/1.1\r\nHost: a\r\n%bContent-Length: %d\r\n\r\n%b" % (extra, len(body), body)
    streams = await client(port, address, octets)
    return _Asked(streams, await read_answer(streams[0]))


@pytest.mark.parametrize("long_way", [False, True])
async def test_tsa_beyond_the_share(database_url: str, tmp_path: Path, *, long_way: bool) -> None:
    """429 with Retry-After, and a token once the share is there again; no more than one refusal comes at a time."""
    async with running_tsa(database_url, tmp_path, new_unit()) as authority:
        (front,) = this_process.fronts
        wire = wire_of(front)
        body = request_for()
        extra = b"X-Long-Way: 1\r\n" if long_way else b""
        octets = b"POST / HTTP/1.1\r\nHost: a\r\n%bContent-Length: %d\r\n\r\n%b" % (extra, len(body), body)
        wire.sources.of("127.0.0.2").most = 0
        reader, writer = await client(authority.port, "127.0.0.2", octets)
        refusal = await read_answer(reader)
        assert refusal.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
        assert b"\r\nRetry-After: 1\r\n" in refusal
        assert wire.limited == 1
        assert len(wire.resting) == (not long_way)
        wire.sources.of("127.0.0.2").most = 100
        writer.write(octets)
        assert (await read_answer(reader)).startswith(b"HTTP/1.1 200 OK\r\n")
        metrics = await authority.metrics()
        assert metrics["lakthan_tsa_wire_limited_total"] == 1
        assert metrics['lakthan_tsa_http_refusals_total{code="429"}'] == 1
        writer.close()


def test_open_files_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of open files is raised for the connections, or there are fewer of them."""
    limits = {"now": (1024, 8192)}
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits["now"])
    monkeypatch.setattr(resource, "setrlimit", lambda _, now: limits.update(now=now))
    assert descriptors_for(4096) == 4096
    assert limits["now"] == (4352, 8192)
    assert descriptors_for(10_000) == 8192 - 256
    assert limits["now"] == (8192, 8192)
    limits["now"] = (100, 100)
    assert descriptors_for(4096) == 50
