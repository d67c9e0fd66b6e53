"""Clients that ask without end and forgive nothing: a request that gets no whole and right answer is a failed one.

They do not try again, as browsers and proxies would: what they count is what a server did. The only thing that they
accept is `Connection: close` on an answer (RFC 9112 §9.6): then the next request goes over a new connection.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

_PATIENCE_SECONDS = 30.0


class MakeRequest(Protocol):
    """Gives the octets of the next request; `last`: of its connection."""

    def __call__(self, *, last: bool) -> bytes:
        """One request."""


class Kind(NamedTuple):
    """A kind of client. `request(last=…)` gives the octets of the next request, which says that it is the connection's
    last one or not; `keeps`: whether it keeps its connection; `pause_seconds`: how long it thinks at most.
    """

    name: str
    request: MakeRequest
    right: Callable[[bytes], bool]
    keeps: bool = True
    pause_seconds: float = 0.0


@dataclass
class Tally:
    """What the clients of one kind saw. `failed`: how often, by what happened; `asked_to_go`: answers that said that
    they are the last of their connection.
    """

    requests: int = 0
    connections: int = 0
    asked_to_go: int = 0
    failed: Counter[str] = field(default_factory=Counter)


class _Client:
    """One client and its connection."""

    def __init__(self, kind: Kind, port: int, tally: Tally) -> None:
        self._kind = kind
        self._port = port
        self._tally = tally
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self) -> None:
        """One request."""
        self._tally.requests += 1
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                goes = await self._exchange()
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            self._tally.failed[type(error).__name__] += 1
            self.leave()
        else:
            if goes or not self._kind.keeps:
                self.leave()

    async def _exchange(self) -> bool:
        """Whether the answer said that it is the last one."""
        if self._reader is None or self._writer is None:
            self._tally.connections += 1
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writer.write(self._kind.request(last=not self._kind.keeps))
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        body = await self._reader.readexactly(length)
        if not head.startswith(b"HTTP/1.1 200 ") or not self._kind.right(body):
            raise ValueError("not the right answer")
        goes = b"\r\nconnection: close\r\n" in head.lower()
        self._tally.asked_to_go += goes and self._kind.keeps
        return goes

    def leave(self) -> None:
        """End the connection."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


@asynccontextmanager
async def loaded(port: int, kinds: list[Kind], clients: int) -> AsyncIterator[dict[str, Tally]]:
    """So many clients of each kind, which ask until the end of the block and finish what they have begun."""
    stop = asyncio.Event()
    tallies = {kind.name: Tally() for kind in kinds}

    async def ask_and_ask(kind: Kind) -> None:
        client = _Client(kind, port, tallies[kind.name])
        while not stop.is_set():
            await client.ask()
            await asyncio.sleep(random.uniform(0.0, kind.pause_seconds))
        client.leave()

    asking = [asyncio.create_task(ask_and_ask(kind)) for kind in kinds for _ in range(clients)]
    try:
        yield tallies
    finally:
        stop.set()
        await asyncio.gather(*asking)


def post(path: str, media_type: str, make: Callable[[], bytes], **fields: str) -> MakeRequest:
    """A POST of what `make` gives."""
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())

    def request(*, last: bool) -> bytes:
        body = make()
        end = "Connection: close\r\n" if last else ""
        head = f"POST {path} HTTP/1.1\r\nHost: pki\r\nContent-Type: {media_type}\r\n{more}{end}"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    return request


def get(target: Callable[[], str]) -> MakeRequest:
    """A GET of what `target` gives."""

    def request(*, last: bool) -> bytes:
        end = "Connection: close\r\n" if last else ""
        return f"GET {target()} HTTP/1.1\r\nHost: pki\r\n{end}\r\n".encode()

    return request
