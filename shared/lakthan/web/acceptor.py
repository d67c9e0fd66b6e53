"""Accepting connections by hand, for clients that make a new one for every question.

An event loop makes a transport for each connection, asks for its addresses, registers it, and takes it all down again:
more work than a remembered answer. Here the listening socket is read first: a connection that brings one whole, known
request, says that it is the only one, and can be answered from memory, is answered and closed on the spot. Every other
connection goes to the event loop with the octets that were read, and is the wire's from then on.

The system wakes us when a request has arrived, not when somebody has connected (TCP_DEFER_ACCEPT).
"""

from __future__ import annotations

import asyncio
import errno
import socket
from contextlib import suppress
from itertools import repeat
from typing import TYPE_CHECKING

from lakthan.telemetry.logs import log
from lakthan.web.wire import Connection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lakthan.web.wire import Wire

# Then the others get their turn.
_MOST_AT_ONCE = 64
# What is more stays with the system until somebody reads on; a request is shorter.
_FIRST_OCTETS = 2048
_DEFER_SECONDS = 20
_IN_ONE_PACKET = socket.MSG_DONTWAIT | socket.MSG_MORE
_NO_ROOM = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nCache-Control: no-store\r\n"
    b"Content-Length: 0\r\nConnection: close\r\n\r\n"
)
# How long to wait when the process has no file descriptor left.
_PAUSE_SECONDS = 0.5


class Acceptor:
    """Accepts on `listeners` for a wire. Where its short way has no memory, everything goes to the event loop."""

    def __init__(self, wire: Wire, listeners: Sequence[socket.socket]) -> None:
        self._wire = wire
        self._listeners = listeners
        self._loop = asyncio.get_running_loop()
        self._handing_over: set[asyncio.Task[None]] = set()
        for listener in listeners:
            self._loop.add_reader(listener, self._accept, listener)

    async def close(self) -> None:
        """Accept what has come, all of it, and no more. What comes later is for whoever else has these sockets; the
        system resets what is queued when nobody has.
        """
        listeners, self._listeners = self._listeners, ()
        for listener in listeners:
            self._accept(listener, most=None)
            self._loop.remove_reader(listener)
            listener.close()
        if self._handing_over:
            await asyncio.wait(self._handing_over)

    def _accept(self, listener: socket.socket, most: int | None = _MOST_AT_ONCE) -> None:
        family = listener.family
        for _ in repeat(None) if most is None else repeat(None, most):
            try:
                # What `accept` is made of: its Python half costs more than the system call.
                descriptor, address = listener._accept()  # type: ignore[attr-defined]  # noqa: SLF001
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno != errno.EBADF:  # closed meanwhile
                    log.error("cannot accept connections; trying again", problem=str(error))
                    self._loop.remove_reader(listener)
                    self._loop.call_later(_PAUSE_SECONDS, self._resume, listener)
                return
            self._take(socket.SocketType(family, socket.SOCK_STREAM, 0, descriptor), address[0])

    def _resume(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:
            self._loop.add_reader(listener, self._accept, listener)

    def _take(self, connection: socket.SocketType, address: str) -> None:
        try:
            data = connection.recv(_FIRST_OCTETS, socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._hand_over(connection, b"", address)
            return
        except OSError:
            connection.close()
            return
        response = self._wire.only_request(data, address) if data else None
        if response is None and data:
            self._hand_over(connection, data, address)
            return
        if response is not None:
            with suppress(OSError):  # the client has gone, or has no room for an answer
                # MSG_MORE: it leaves with the end of the connection, in one packet where two would wake the client
                # twice.
                connection.send(response, _IN_ONE_PACKET)
        connection.close()

    def _hand_over(self, accepted: socket.SocketType, data: bytes, address: str) -> None:
        if not self._wire.room_for(address):
            with suppress(OSError):
                accepted.send(_NO_ROOM if data else b"", _IN_ONE_PACKET)
            accepted.close()
            return
        connection = socket.socket(fileno=accepted.detach())
        connection.settimeout(0)
        task = self._loop.create_task(self._connect(connection, data, address))
        self._handing_over.add(task)
        task.add_done_callback(self._handing_over.discard)

    async def _connect(self, connection: socket.socket, data: bytes, address: str) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: Connection(self._wire, data, address), connection)
        except OSError:  # gone meanwhile
            connection.close()


def bind(host: str, port: int, *, shared: bool) -> list[socket.socket]:
    """Sockets bound to every address of `host`, on one port, ready to listen. Raises `OSError`.

    `shared`: others are bound to the same, and the system spreads connections over those that listen (SO_REUSEPORT).
    """
    bound: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(
            socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        ):
            each = socket.socket(family, kind, protocol)
            bound.append(each)
            each.settimeout(0)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, _DEFER_SECONDS)
            # Inherited by what is accepted: an answer leaves at once.
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            each.bind((address[0], port or port_of(bound[0]), *address[2:]))
    except OSError:
        for each in bound:
            each.close()
        raise
    return bound


def port_of(bound: socket.socket) -> int:
    """The port; for the addresses after the first, the one that this was given when any would do."""
    port: int = bound.getsockname()[1]
    return port
