"""The floods: what one address does to a port, in a process of its own, and what it gets for it."""

from __future__ import annotations

import asyncio
import collections
import resource
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter

import uvloop

from support.floods_house import post, refusal

_ADDRESS = "127.0.2.1"
_CONNECT_AT_ONCE = 64
_BY_THE_SERVER = "closed"


@dataclass
class Got:
    """What a flood got: answers, refusals by their word, and the time of the quickest refusal in seconds."""

    answered: int = 0
    refused: collections.Counter[str] = field(default_factory=collections.Counter)
    quickest: float = float("inf")
    connections: int = 0


@dataclass(frozen=True)
class Material:
    """What is sent. `before`, `after`: around `random` octets that are never the same twice."""

    before: bytes = b""
    random: int = 0
    after: bytes = b""

    def octets(self) -> bytes:
        """The next request's body."""
        return self.before + secrets.token_bytes(self.random) + self.after


@dataclass(frozen=True)
class Flood:
    """`way`: what one client does with its connection. `service`: which port. `gap`: seconds between two requests of
    a connection.
    """

    name: str
    service: str
    material: str
    connections: int
    way: str = "ask"
    gap: float = 0.0
    # An address that asks much of a quiet house: nobody may refuse it anything.
    innocent: bool = False


FLOODS = (
    Flood("a ministry behind one address", "ocsp", "seldom", 400, gap=0.5, innocent=True),
    Flood("nonces, as fast as it goes", "ocsp", "nonce", 1024),
    Flood("random serial numbers", "ocsp", "serial", 1024),
    Flood("a connection for every question", "ocsp", "serial", 256, way="once"),
    Flood("10,000 idle connections", "ocsp", "often", 10_000, way="idle"),
    Flood("slow heads (slowloris)", "ocsp", "often", 6000, way="slow head"),
    Flood("slow bodies", "ocsp", "often", 3000, way="slow body"),
    Flood("large bodies announced", "ocsp", "often", 64, way="large"),
    Flood("large bodies in chunks", "ocsp", "often", 64, way="chunks"),
    Flood("an authority with a slow key", "ocsp", "noisy", 1024),
    Flood("tokens, as fast as it goes", "tsa", "token", 1024),
    Flood("10,000 idle connections at the TSA", "tsa", "token", 10_000, way="idle"),
)


def play(flood: Flood, port: int, material: Material, seconds: float) -> Got:
    """For a process of its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard) if soft < hard else (soft, hard))
    return uvloop.run(_play(flood, port, material, seconds))


@dataclass(frozen=True)
class _On:
    """A connection of a flood. `go_on`: false when it is over."""

    flood: Flood
    material: Material
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    got: Got
    go_on: Callable[[], bool]


async def _play(flood: Flood, port: int, material: Material, seconds: float) -> Got:
    got = Got()
    until = perf_counter() + seconds
    turns = asyncio.Semaphore(_CONNECT_AT_ONCE)
    way = _WAYS[flood.way]

    async def one() -> None:
        while perf_counter() < until:
            try:
                async with turns:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(_ADDRESS, 0))
            except OSError as error:
                got.refused[f"not connected ({type(error).__name__})"] += 1
                await asyncio.sleep(0.5)
                continue
            got.connections += 1
            began = perf_counter()
            try:
                await way(_On(flood, material, reader, writer, got, lambda: perf_counter() < until))
            except (OSError, EOFError):
                got.refused[_BY_THE_SERVER] += 1
                got.quickest = min(got.quickest, perf_counter() - began)
                await asyncio.sleep(0.2)
            finally:
                writer.close()

    clients = [asyncio.create_task(one()) for _ in range(flood.connections)]
    await asyncio.sleep(seconds)
    for each in clients:
        each.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    return got


async def _answer(flood: Flood, reader: asyncio.StreamReader, got: Got, began: float) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    fields = head.lower()
    length = int(fields.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    word = refusal(flood.service, head, await reader.readexactly(length))
    if word:
        got.refused[word] += 1
        got.quickest = min(got.quickest, perf_counter() - began)
    else:
        got.answered += 1
    if b"connection: close" in fields:
        raise EOFError


async def _ask(on: _On) -> None:
    while on.go_on():
        began = perf_counter()
        on.writer.write(post(on.material.octets()))
        await _answer(on.flood, on.reader, on.got, began)
        if on.flood.gap:
            await asyncio.sleep(on.flood.gap)


async def _once(on: _On) -> None:
    began = perf_counter()
    on.writer.write(post(on.material.octets(), b"Connection: close\r\n"))
    try:
        await _answer(on.flood, on.reader, on.got, began)
    except EOFError:  # as it wished
        return


async def _idle(on: _On) -> None:
    on.writer.write(post(on.material.octets()))
    await _answer(on.flood, on.reader, on.got, perf_counter())
    if not await on.reader.read(1):
        raise EOFError


async def _slow_head(on: _On) -> None:
    await _trickle(b"POST / HTTP/1.1\r\nHost: floods.example\r\nAccept: ", on.reader, on.writer, on.go_on)


async def _slow_body(on: _On) -> None:
    by_aiohttp = b"X-Unheard-Of: yes\r\n" if secrets.randbits(1) else b""
    whole = post(bytes(60_000), by_aiohttp)
    await _trickle(whole[:40_000], on.reader, on.writer, on.go_on)


async def _trickle(
    octets: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, go_on: Callable[[], bool]
) -> None:
    writer.write(octets)
    while go_on():
        try:
            async with asyncio.timeout(1):
                await reader.read(1)
                raise EOFError
        except TimeoutError:
            writer.write(b"x")


async def _large(on: _On) -> None:
    head, piece = b"Content-Length: 100000000\r\n\r\n", bytes(64 * 1024)
    if on.flood.way == "chunks":
        head, piece = b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + piece + b"\r\n"
    began = perf_counter()
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


_WAYS = {
    "ask": _ask,
    "once": _once,
    "idle": _idle,
    "slow head": _slow_head,
    "slow body": _slow_body,
    "large": _large,
    "chunks": _large,
}
