"""A flood's clients, as cheap as they can be made: the machine that they run on is also the services'.

`Lines` keeps connections open and asks on them; what it does after an answer is the flood's way.
"""

from __future__ import annotations

import asyncio
import collections
import socket
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter

from support.floods_answers import content_length, refusal
from support.floods_got import Got

FROM = "127.0.2.1"
_CONNECT_AT_ONCE = 64
_AGAIN_SECONDS = 0.2
# Linux: the port is chosen when the peer is known, so that other connections from this address do not use it up.
_IP_BIND_ADDRESS_NO_PORT = 24
_OPEN_TICK_SECONDS = 0.005
# A client of the open flood waits so long; there are so many at most.
PATIENCE_SECONDS = 2.0
MOST_OPEN = 9000


async def connected(port: int) -> socket.socket:
    """A connection from the flood's address. Raises `OSError`."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.settimeout(0)
    try:
        made.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.bind((FROM, 0))
        await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", port))
    except BaseException:
        made.close()
        raise
    return made


class Line(asyncio.Protocol):
    """One connection. `told` hears of every answer: the word of a refusal or '', and whether the connection ends."""

    def __init__(self, service: str, got: Got, told: Callable[[Line, str], None], lost: Callable[[Line], None]) -> None:
        self._service = service
        self._got = got
        self._told = told
        self._lost = lost
        self._read = b""
        self._transport: asyncio.Transport | None = None
        self.began = perf_counter()  # of the request that is due, or of the connection
        self.due = False
        self.ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.BaseProtocol`."""
        self._transport = transport  # type: ignore[assignment]
        self._got.opened()

    def ask(self, octets: bytes) -> None:
        """Send a request; one at a time."""
        self.began, self.due, self._read = perf_counter(), True, b""
        self._got.asked += 1
        self._transport.write(octets)  # type: ignore[union-attr]

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._read += data
        head, end, body = self._read.partition(b"\r\n\r\n")
        if not self.due or not end or len(body) < content_length(head + end):
            return
        self.due = False
        self.ended = b"connection: close" in head.lower()
        word = refusal(self._service, head, body)
        if word:
            self._got.refusal(word, perf_counter() - self.began)
        else:
            self._got.answered += 1
        self._told(self, word)

    def connection_lost(self, _error: Exception | None) -> None:
        """See `asyncio.BaseProtocol`."""
        self._got.closed()
        if not self.ended:
            self.ended = True
            self._got.refusal("closed", perf_counter() - self.began)
        self._lost(self)

    def hang_up(self) -> None:
        """The client goes; nobody refused it anything."""
        self.ended = True
        self._transport.abort()  # type: ignore[union-attr]


class Lines:
    """As many connections as are wanted, replaced when they end. `octets` gives the next request."""

    def __init__(self, service: str, port: int, octets: Callable[[], bytes], got: Got) -> None:
        self._service = service
        self._port = port
        self._octets = octets
        self.got = got
        self._turns = asyncio.Semaphore(_CONNECT_AT_ONCE)
        self._loop = asyncio.get_running_loop()
        self._over = self._loop.create_future()
        self._making: set[asyncio.Task[None]] = set()
        self._open: set[Line] = set()

    async def ask(self, connections: int, seconds: float, *, gap: float = 0.0) -> None:
        """On each connection one request after the other; `gap` seconds between them."""

        def told(line: Line, _word: str) -> None:
            if line.ended:
                line.hang_up()
            elif gap:
                self._loop.call_later(gap, next_one, line)
            else:
                next_one(line)

        def next_one(line: Line) -> None:
            if not line.ended:
                line.ask(self._octets())

        await self._keep(connections, seconds, told)

    async def once(self, connections: int, seconds: float) -> None:
        """A new connection for every request."""

        def told(line: Line, _word: str) -> None:
            line.hang_up()

        await self._keep(connections, seconds, told, again=0.0)

    async def idle(self, connections: int, seconds: float) -> None:
        """One request, and then nothing more."""
        await self._keep(connections, seconds, lambda line, _word: line.hang_up() if line.ended else None)

    async def offer(self, per_second: float, seconds: float) -> None:
        """So many requests a second, whatever becomes of those before: each takes the connection that has been free
        for longest, or a new one. Who waits too long hangs up.
        """
        free: collections.deque[Line] = collections.deque()
        waiting: collections.deque[Line] = collections.deque()

        def told(line: Line, _word: str) -> None:
            if line.ended:
                line.hang_up()
            else:
                free.append(line)

        began, offered = perf_counter(), 0
        while (now := perf_counter()) < began + seconds:
            due = int((now - began) * per_second) - offered
            offered += due
            for _ in range(due):
                while free and free[0].ended:
                    free.popleft()
                if free:
                    line = free.popleft()
                    line.ask(self._octets())
                    waiting.append(line)
                elif len(self._open) + len(self._making) < MOST_OPEN:
                    self._make(told, lambda _line: None, waiting.append)
                else:
                    self.got.not_sent += 1
            while waiting and (not waiting[0].due or waiting[0].began < now - PATIENCE_SECONDS):
                line = waiting.popleft()
                if line.due and not line.ended and line.began < now - PATIENCE_SECONDS:
                    self.got.gave_up += 1
                    line.hang_up()
            await asyncio.sleep(_OPEN_TICK_SECONDS)
        await self._end()

    async def _keep(
        self, connections: int, seconds: float, told: Callable[[Line, str], None], *, again: float = _AGAIN_SECONDS
    ) -> None:
        def lost(line: Line) -> None:
            if not self._over.done():
                self._loop.call_later(again, self._make, told, lost)

        for _ in range(connections):
            self._make(told, lost)
        await asyncio.sleep(seconds)
        await self._end()

    def _make(
        self,
        told: Callable[[Line, str], None],
        lost: Callable[[Line], None],
        asked: Callable[[Line], None] = lambda _line: None,
    ) -> None:
        if not self._over.done():
            task = self._loop.create_task(self._connect(told, lost, asked))
            self._making.add(task)
            task.add_done_callback(self._making.discard)

    async def _connect(
        self, told: Callable[[Line, str], None], lost: Callable[[Line], None], asked: Callable[[Line], None]
    ) -> None:
        def gone(line: Line) -> None:
            self._open.discard(line)
            lost(line)

        line = Line(self._service, self.got, told, gone)
        try:
            async with self._turns:
                made = await connected(self._port)
                await self._loop.create_connection(lambda: line, sock=made)
        except OSError as error:
            self.got.refusal(f"not connected ({type(error).__name__})", perf_counter() - line.began)
            lost(line)
            return
        self._open.add(line)
        if not line.ended:
            line.ask(self._octets())
            asked(line)

    async def _end(self) -> None:
        self._over.set_result(None)
        for task in list(self._making):
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*self._making, return_exceptions=True)
        for line in list(self._open):
            line.hang_up()
        await asyncio.sleep(0.1)
