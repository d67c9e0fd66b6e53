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
        """Accept what has come, and no more."""
        listeners, self._listeners = self._listeners, ()
        for listener in listeners:
            self._accept(listener)
            self._loop.remove_reader(listener)
            listener.close()
        if self._handing_over:
            await asyncio.wait(self._handing_over)

    def _accept(self, listener: socket.socket) -> None:
        family = listener.family
        for _ in range(_MOST_AT_ONCE):
            try:
                # What `accept` is made of: its Python half costs more than the system call.
                descriptor, _ = listener._accept()  # type: ignore[attr-defined]  # noqa: SLF001
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno != errno.EBADF:  # closed meanwhile
                    log.error("cannot accept connections; trying again", problem=str(error))
                    self._loop.remove_reader(listener)
                    self._loop.call_later(_PAUSE_SECONDS, self._resume, listener)
                return
            self._take(socket.SocketType(family, socket.SOCK_STREAM, 0, descriptor))

    def _resume(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:
            self._loop.add_reader(listener, self._accept, listener)

    def _take(self, connection: socket.SocketType) -> None:
        try:
            data = connection.recv(_FIRST_OCTETS, socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._hand_over(connection, b"")
            return
        except OSError:
            connection.close()
            return
        response = self._wire.only_request(data) if data else None
        if response is None and data:
            self._hand_over(connection, data)
            return
        if response is not None:
            with suppress(OSError):  # the client has gone, or has no room for an answer
                # MSG_MORE: it leaves with the end of the connection, in one packet where two would wake the client
                # twice.
                connection.send(response, _IN_ONE_PACKET)
        connection.close()

    def _hand_over(self, accepted: socket.SocketType, data: bytes) -> None:
        connection = socket.socket(fileno=accepted.detach())
        connection.settimeout(0)
        task = self._loop.create_task(self._connect(connection, data))
        self._handing_over.add(task)
        task.add_done_callback(self._handing_over.discard)

    async def _connect(self, connection: socket.socket, data: bytes) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: Connection(self._wire, data), connection)
        except OSError:  # gone meanwhile
            connection.close()


def listen(host: str, port: int, *, backlog: int, shared: bool | None) -> list[socket.socket]:
    """Listening sockets on every address of `host`, on one port. Raises `OSError`."""
    listeners: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(
            socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        ):
            listener = socket.socket(family, kind, protocol)
            listeners.append(listener)
            listener.settimeout(0)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, _DEFER_SECONDS)
            # Inherited by what is accepted: an answer leaves at once.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            listener.bind((address[0], port or _port_of(listeners[0]), *address[2:]))
            listener.listen(backlog)
    except OSError:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _port_of(listener: socket.socket) -> int:
    """The port that the first address was given when any would do; the others take the same."""
    port: int = listener.getsockname()[1]
    return port
