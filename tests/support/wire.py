"""A front with a short way of its own making, for the tests of the wire: both ways give the same answers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from lakthan.web.front import Front, raw_target, read_body
from lakthan.web.response_heads import date_and_server, response_head
from lakthan.web.wire import LATER, Connection, Head, is_plain_target

LARGEST = 4096


def said(method: str, target: str, body: bytes) -> bytes:
    """What the service says, whichever way the request takes."""
    if target.startswith("/large"):
        return bytes(1 << 20)
    return f"{method} {target} ".encode() + body


async def handle(http_request: web.BaseRequest) -> web.StreamResponse:
    """The long way."""
    body = await read_body(http_request, LARGEST)
    text = said(http_request.method, raw_target(http_request), body)
    return web.Response(body=text, headers={"Content-Type": "text/plain"})


def rendered(body: bytes) -> bytes:
    """A response as the short way writes it."""
    return response_head(b"200 OK", b"Content-Type: text/plain\r\n", len(body)) + date_and_server() + body


class Echo:
    """The short way. `/later…` is answered when the test says so, `/decline…` never, `/defect…` fails."""

    largest_body = LARGEST

    def __init__(self) -> None:
        self.waiting: list[tuple[Connection, bytes]] = []
        self.arrived = asyncio.Event()

    def route(self, head: Head) -> object | None:
        """The target, unless the long way is to have it."""
        return None if head.target.startswith(b"/never") else head.target.decode()

    def post(self, route: object, body: bytes, connection: Connection) -> bytes | None:
        """See `Quick`."""
        return self._answer("POST", str(route), body, connection)

    def get(self, target: bytes, connection: Connection) -> bytes | None:
        """See `Quick`."""
        return self._answer("GET", target.decode(), b"", connection) if is_plain_target(target) else None

    def _answer(self, method: str, target: str, body: bytes, connection: Connection) -> bytes | None:
        text = rendered(said(method, target, body))
        if target.startswith("/later"):
            self.waiting.append((connection, text))
            self.arrived.set()
            return LATER
        if target.startswith("/defect"):
            raise RuntimeError("a defect made by the test")
        return None if target.startswith("/decline") else text

    def reply_to_all(self) -> None:
        """The answers that are due leave now."""
        waiting, self.waiting = self.waiting, []
        self.arrived.clear()
        for connection, text in waiting:
            connection.reply(text)


class Memory(Echo):
    """The same with a memory that knows every answer (`Remembering`); `known_answers` counts what it gave, `again` what
    of that it gave without the request being read.
    """

    def __init__(self) -> None:
        super().__init__()
        self.known_answers = 0
        self.again = 0
        self._by_request: dict[bytes, bytes] = {}

    def known(self, request: bytes) -> bytes | None:
        """See `Remembering`. What has `ready` in it is for `ready`."""
        return None if b"ready" in request else self._again(request)

    def ready(self, request: bytes) -> bytes | None:
        """See `Remembering`."""
        return self._again(request)

    def _again(self, request: bytes) -> bytes | None:
        response = self._by_request.get(request)
        if response is not None:
            self.known_answers += 1
            self.again += 1
        return response

    def known_post(self, body: bytes, request: bytes = b"") -> bytes | None:
        """See `Remembering`."""
        return self._known("POST", "/x", body, request)

    def ready_post(self, body: bytes, request: bytes = b"") -> bytes | None:  # noqa: ARG002 - all is known
        """See `Remembering`."""
        return None

    def known_get(self, target: bytes, request: bytes = b"") -> bytes | None:
        """See `Remembering`."""
        if not is_plain_target(target) or target.startswith((b"/later", b"/decline", b"/defect")):
            return None
        return self._known("GET", target.decode(), b"", request)

    def _known(self, method: str, target: str, body: bytes, request: bytes) -> bytes:
        self.known_answers += 1
        response = rendered(said(method, target, body))
        if request:
            self._by_request[request] = response
        return response


@asynccontextmanager
async def echoing(
    echo: Echo | None = None, *, short: bool = True, connections: int = 4096
) -> AsyncIterator[tuple[Front, Echo]]:
    """A front on a free port, with or without the short way, and room for so many `connections`."""
    echo = Echo() if echo is None else echo
    front = await Front.open(handle, "127.0.0.1", 0, quick=echo if short else None, connections=connections)
    try:
        yield front, echo
    finally:
        await front.close()


def without_date(octets: bytes) -> bytes:
    """A response whose Date does not matter."""
    return re.sub(rb"\r\nDate: [^\r]*", b"", octets)


async def conversation(port: int, *segments: bytes) -> bytes:
    """Everything that comes back for these segments until the server closes, or has said nothing more for a while."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    octets = b""
    try:
        for segment in segments:
            writer.write(segment)
            for _ in range(5):
                await asyncio.sleep(0)
        while True:
            async with asyncio.timeout(0.3):
                more = await reader.read(1 << 16)
            if not more:
                return octets + b"<closed>"
            octets += more
    except TimeoutError:
        return octets
    finally:
        writer.close()


async def first_answer(port: int, *segments: bytes) -> bytes:
    """One response, as long as its Content-Length says."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for segment in segments:
        writer.write(segment)
        for _ in range(5):
            await asyncio.sleep(0)
    answer = await read_answer(reader)
    writer.close()
    return answer


async def read_answer(reader: asyncio.StreamReader) -> bytes:
    """The next response on a connection."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return head + await reader.readexactly(length)
