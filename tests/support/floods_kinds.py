"""The floods: what one address does to a port, in a process of its own, and what it gets for it."""

from __future__ import annotations

import asyncio
import os
import resource
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import perf_counter

import uvloop

from support.floods_answers import content_length, post, refusal
from support.floods_callers import Lines, connected
from support.floods_got import Got

_CONNECT_AT_ONCE = 64
_CAPACITY_SECONDS = 2.0
_CAPACITY_CONNECTIONS = 64
TIMES = 10
# The service gives up a request that is not whole after 20 seconds; it looks once in a second.
_LONGER_THAN_A_REQUEST_MAY_TAKE = 25.0


@dataclass(frozen=True)
class Material:
    """What is sent. `before`, `after`: around `random` octets that are never the same twice."""

    before: bytes = b""
    random: int = 0
    after: bytes = b""
    path: bytes = b"/"

    def octets(self, fields: bytes = b"") -> bytes:
        """The next request."""
        return post(self.before + secrets.token_bytes(self.random) + self.after, fields, self.path)


@dataclass(frozen=True)
class Flood:
    """`way`: what one client does with its connection. `service`: which. `gap`: seconds between two requests of a
    connection. `at_least`: seconds that it must last to show anything.
    """

    name: str
    service: str
    material: str
    connections: int
    way: str = "ask"
    gap: float = 0.0
    at_least: float = 0.0
    # An address that asks much of a quiet house: nobody may refuse it anything.
    innocent: bool = False

    @property
    def protocol(self) -> str:
        """What is spoken there."""
        return "tsa" if self.service == "tsa" else "ocsp"


_LONG = _LONGER_THAN_A_REQUEST_MAY_TAKE
FLOODS = (
    Flood("a ministry behind one address", "ocsp", "seldom", 400, gap=0.5, innocent=True),
    Flood("nonces, as fast as it goes", "ocsp", "nonce", 1024),
    Flood("ten times what a slow key can sign", "ocsp", "noisy", 0, way="offer"),
    Flood("random serial numbers", "ocsp", "serial", 1024),
    Flood("a connection for every question", "ocsp", "serial", 256, way="once"),
    Flood("10,000 idle connections, room for 4,096", "ocsp", "often", 10_000, way="idle"),
    Flood("10,000 idle connections, room for 12,000", "wide", "often", 10_000, way="idle"),
    Flood("slow heads (slowloris)", "ocsp", "often", 6000, way="slow head", at_least=_LONG),
    Flood("slow bodies", "ocsp", "often", 3000, way="slow body", at_least=_LONG),
    Flood("large bodies announced", "ocsp", "often", 64, way="large"),
    Flood("large bodies in chunks", "ocsp", "often", 64, way="chunks"),
    Flood("tokens, as fast as it goes", "tsa", "token", 1024),
    Flood("ten times the tokens that a slow key can sign", "tsa", "slow token", 0, way="offer"),
    Flood("10,000 idle connections at the TSA, room for 4,096", "tsa", "token", 10_000, way="idle"),
)


def step_back() -> None:
    """For a process that may only have what the others leave of a processor: they are measured, it is not."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def be_busy(seconds: float) -> None:
    """An ordinary program that wants a processor all the time and asks nobody anything."""
    until = perf_counter() + seconds
    while perf_counter() < until:
        sum(range(1000))


def play(flood: Flood, port: int, material: Material, seconds: float) -> Got:
    """For a process of its own."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return uvloop.run(_play(flood, port, material, seconds)).plain()


async def _play(flood: Flood, port: int, material: Material, seconds: float) -> Got:
    got = Got()
    began = perf_counter()
    octets = material.octets
    lines = Lines(flood.protocol, port, octets, got)
    if flood.way == "ask":
        await lines.ask(flood.connections, seconds, gap=flood.gap)
    elif flood.way == "once":
        await Lines(flood.protocol, port, lambda: octets(b"Connection: close\r\n"), got).once(
            flood.connections, seconds
        )
    elif flood.way == "idle":
        await lines.idle(flood.connections, seconds)
    elif flood.way == "offer":
        before = Got()
        await Lines(flood.protocol, port, octets, before).ask(_CAPACITY_CONNECTIONS, _CAPACITY_SECONDS)
        got.capacity = before.answered / _CAPACITY_SECONDS
        began = perf_counter()
        await lines.offer(TIMES * got.capacity, seconds)
    else:
        await _slowly(flood, port, got, seconds)
    got.seconds = perf_counter() - began
    return got


@dataclass(frozen=True)
class _On:
    """A connection of a flood. `go_on`: false when it is over."""

    flood: Flood
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    got: Got
    go_on: Callable[[], bool]


async def _slowly(flood: Flood, port: int, got: Got, seconds: float) -> None:
    """Clients that send what is never whole."""
    until = perf_counter() + seconds
    turns = asyncio.Semaphore(_CONNECT_AT_ONCE)
    way: Callable[[_On], Awaitable[None]] = {
        "slow head": _slow_head,
        "slow body": _slow_body,
        "large": _large,
        "chunks": _large,
    }[flood.way]

    async def one() -> None:
        while perf_counter() < until:
            began = perf_counter()
            try:
                async with turns:
                    reader, writer = await asyncio.open_connection(sock=await connected(port))
            except OSError as error:
                got.refusal(f"not connected ({type(error).__name__})", perf_counter() - began)
                await asyncio.sleep(0.5)
                continue
            got.opened()
            began = perf_counter()
            try:
                await way(_On(flood, reader, writer, got, lambda: perf_counter() < until))
            except (OSError, EOFError):
                got.refusal("closed", perf_counter() - began)
                await asyncio.sleep(0.2)
            finally:
                got.closed()
                writer.transport.abort()

    clients = [asyncio.create_task(one()) for _ in range(flood.connections)]
    await asyncio.sleep(seconds)
    for each in clients:
        each.cancel()
    await asyncio.gather(*clients, return_exceptions=True)


async def _answer(flood: Flood, reader: asyncio.StreamReader, got: Got, began: float) -> None:
    """Read and count an answer; True: it is the last of its connection."""
    head = await reader.readuntil(b"\r\n\r\n")
    word = refusal(flood.protocol, head, await reader.readexactly(content_length(head)))
    if word:
        got.refusal(word, perf_counter() - began)
    else:
        got.answered += 1


async def _slow_head(on: _On) -> None:
    await _trickle(b"POST / HTTP/1.1\r\nHost: floods.example\r\nAccept: ", on)


async def _slow_body(on: _On) -> None:
    by_aiohttp = b"X-Unheard-Of: yes\r\n" if secrets.randbits(1) else b""
    await _trickle(post(bytes(60_000), by_aiohttp)[:40_000], on)


async def _trickle(octets: bytes, on: _On) -> None:
    """Send these, then an octet each second; an answer in the middle of it is a refusal."""
    began = perf_counter()
    on.writer.write(octets)
    answering = asyncio.ensure_future(_answer(on.flood, on.reader, on.got, began))
    try:
        while on.go_on():
            done, _ = await asyncio.wait([answering], timeout=1)
            if done:
                await answering
                return
            on.writer.write(b"x")
    finally:
        answering.cancel()


async def _large(on: _On) -> None:
    head, piece = b"Content-Length: 100000000\r\n\r\n", bytes(64 * 1024)
    if on.flood.way == "chunks":
        head, piece = b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + piece + b"\r\n"
    began = perf_counter()
    on.got.asked += 1
    on.writer.write(b"POST / HTTP/1.1\r\nHost: floods.example\r\n" + head)
    answering = asyncio.create_task(_answer(on.flood, on.reader, on.got, began))
    try:
        while on.go_on() and not answering.done():
            on.writer.write(piece)
            await on.writer.drain()
            await asyncio.sleep(0)
    finally:
        if not answering.done():
            answering.cancel()
    await answering
