"""The wire under any octets in any segments: no defect, no octet lost, one response for each promise.

The first two octets say how the rest is cut into segments and what the service does: answers at once, later, or leaves
it to aiohttp. What goes to aiohttp must be everything that was not answered, in order.
"""

from __future__ import annotations

import asyncio
from functools import cache

from lakthan.web import wire_connection
from lakthan.web.wire import LATER, Connection, Head, Wire
from lakthan.web.wire_heads import read_get_fields, read_post_head

_RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class _Service:
    """A `Quick` that does as it is told, and keeps what it was asked."""

    largest_body = 512

    def __init__(self) -> None:
        self.way = 0
        self.waiting: list[Connection] = []
        self.asked: list[bytes] = []

    def route(self, head: Head) -> object | None:
        """Everything but one target."""
        return None if head.target == b"/elsewhere" else True

    def post(self, _route: object, body: bytes, connection: Connection) -> bytes | None:
        """As told."""
        return self._answer(body, connection)

    def get(self, target: bytes, connection: Connection) -> bytes | None:
        """As told."""
        return self._answer(target, connection)

    def _answer(self, what: bytes, connection: Connection) -> bytes | None:
        way, self.way = self.way % 3, self.way // 3
        if way == 2:
            return None
        self.asked.append(what)
        if way == 1:
            self.waiting.append(connection)
            return LATER
        return _RESPONSE


class _Handler(asyncio.Protocol):
    """aiohttp's place."""

    def __init__(self) -> None:
        self.received = b""

    def data_received(self, data: bytes) -> None:
        """All that the wire did not answer."""
        self.received += data


class _Transport:
    """A socket's place."""

    def __init__(self) -> None:
        self.written = 0
        self.closed = False
        self.protocol: object = None

    def write(self, data: bytes) -> None:
        """Count responses."""
        if self.closed:
            raise AssertionError("written after it was closed")
        self.written += data.count(b"HTTP/1.1 200 OK")

    def close(self) -> None:
        """No more."""
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        """As said."""
        return self.closed

    def pause_reading(self) -> None:
        """Nothing to do."""

    resume_reading = pause_reading

    def set_protocol(self, protocol: object) -> None:
        """Handed over."""
        self.protocol = protocol

    def get_extra_info(self, _name: str) -> object:
        """Nobody."""
        return None


class _Complaining:
    """The log of the wire: a defect that it catches is a finding here."""

    def exception(self, *words: object, **_more: object) -> None:
        """Let it out."""
        raise AssertionError(f"a defect was logged: {words}")


@cache
def _loop() -> asyncio.AbstractEventLoop:
    vars(wire_connection)["log"] = _Complaining()
    return asyncio.new_event_loop()


async def _one(octets: bytes) -> None:
    cut, way, octets = octets[0] or 1, octets[1], octets[2:]
    service = _Service()
    service.way = way
    handler = _Handler()
    wire = Wire(service, lambda: handler)
    transport = _Transport()
    connection = Connection(wire)
    connection.connection_made(transport)  # type: ignore[arg-type]
    for at in range(0, len(octets), cut):
        if transport.closed:
            break
        (connection if transport.protocol is None else handler).data_received(octets[at : at + cut])
    while service.waiting:
        service.waiting.pop(0).reply(_RESPONSE)
    wire.outgoing.send_now()
    wire._sweeping.cancel()
    if transport.written != len(service.asked):
        raise AssertionError(f"{transport.written} responses to {len(service.asked)} requests")
    if handler.received and not octets.endswith(handler.received) and not transport.closed:
        raise AssertionError("aiohttp got other octets than were sent")


def http(octets: bytes) -> None:
    """See the module."""
    read_post_head(octets)
    read_get_fields(octets)
    if len(octets) > 2:
        _loop().run_until_complete(_one(octets))
