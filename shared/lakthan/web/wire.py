"""The wire: a protocol in front of aiohttp that answers what is known at once, without task or request object.

A complete request of a shape that is fully understood (`wire_heads`) is offered to a service's `Quick`. That gives the
finished response, or says that it comes later, or declines. The same octets once more need not be understood again:
a service with a memory is asked for them as they are (`Remembering`). Whatever is declined or not understood, at any
moment, hands the connection with all octets received so far to aiohttp, which keeps it from then on; aiohttp's private
state is never looked at. So every request gets the same answer either way, and these two files can be removed without a
trace.

What the connections of a port share is here, what each of them does in `lakthan.web.wire_connection`.

Refuses to know: what a request means, and what is in an answer.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from lakthan.web.outgoing import Outgoing
from lakthan.web.quick import LATER, Quick, Remembering
from lakthan.web.response_heads import LAST
from lakthan.web.room import MOST_CONNECTIONS, kept_for_others, to_make_room
from lakthan.web.sources import Sources
from lakthan.web.wire_connection import Connection
from lakthan.web.wire_heads import (
    END_OF_GET_LINE,
    Head,
    closes,
    forget_oldest,
    is_plain_target,
    read_get_fields,
    read_post_head,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lakthan.web.room import Guest, Occupant
    from lakthan.web.sources import Network

__all__ = ["LATER", "Connection", "Head", "Quick", "Remembering", "Wire", "is_plain_target"]

_KEEP_ALIVE_SECONDS = 75.0
_PATIENCE_SECONDS = 20.0
_SWEEP_SECONDS = 1.0
# Those who were told to come again are read again in so many parts.
_PARTS = 20
# What clients may send ahead of their answers, or of requests that are not whole, all together.
_MOST_HELD_BY_ALL = 32 * 1024 * 1024
_UNKNOWN = (0, None, False)


class Wire:
    """What the connections of one port share: their `Quick`, their tables, their sweep, and the way to aiohttp.

    `make_handler` makes aiohttp's protocol for a connection that is handed over. The counters are plain numbers, for
    metrics to read: `answered` here, `handed_over` to aiohttp, `timed_out` by the sweep, `made_room` for
    others, `turned_away` as there was no room, and `limited`, requests beyond their source's share.

    `guests`: the connections that aiohttp has, by their transports.
    """

    def __init__(
        self,
        quick: Quick,
        make_handler: Callable[[], asyncio.Protocol],
        *,
        keep_alive_seconds: float = _KEEP_ALIVE_SECONDS,
        patience_seconds: float = _PATIENCE_SECONDS,
        most_connections: int = MOST_CONNECTIONS,
        proxies: Iterable[Network] = (),
    ) -> None:
        self.quick = quick
        memory = quick if isinstance(quick, Remembering) else None
        self.known = memory.known if memory is not None else None
        self.ready = memory.ready if memory is not None else None
        self.known_post = memory.known_post if memory is not None else None
        self.ready_post = memory.ready_post if memory is not None else None
        self.known_get = memory.known_get if memory is not None else None
        self.make_handler = make_handler
        self.connections: set[Connection] = set()
        self.guests: dict[asyncio.Transport, Guest] = {}
        self.resting: list[Connection] = []
        self.posts: dict[bytes, tuple[int, object, bool]] = {}
        self.gets: dict[bytes, bool] = {}
        self.draining = False
        self.leaving = False
        self.answered = 0
        self.handed_over = 0
        self.timed_out = 0
        self.made_room = 0
        self.turned_away = 0
        self.limited = 0
        self.due = 0
        self.held = 0
        self._letting_go = False
        self._most_connections = most_connections
        self.sources = Sources(proxies=proxies, answered=lambda: self.answered, due=lambda: self.due)
        self._keep_alive_seconds = keep_alive_seconds
        self._patience_seconds = patience_seconds
        self._loop = asyncio.get_running_loop()
        self._drained: asyncio.Future[None] | None = None
        self.outgoing = Outgoing(self._loop)
        self.sweep_time = self._loop.time()
        self._sweeping = self._loop.call_later(_SWEEP_SECONDS, self._sweep)

    def __call__(self) -> Connection:
        """A protocol for a new connection."""
        return Connection(self)

    def learn_post(self, head: bytes) -> tuple[int, object, bool] | None:
        """Classify a head that is not in the table; None when aiohttp must read it."""
        read = read_post_head(head)
        if read is None or read.content_length > self.quick.largest_body:
            return None
        route = self.quick.route(read)
        if route is None:
            return None
        forget_oldest(self.posts)
        known = self.posts[head] = (len(head) + read.content_length, route, read.closes or self.leaving)
        return known

    def learn_get(self, octets: bytes) -> bool | None:
        """The same for the fields of a GET: whether it is the last on its connection."""
        fields = read_get_fields(octets)
        if fields is None:
            return None
        forget_oldest(self.gets)
        last = self.gets[octets] = closes(fields) or self.leaving
        return last

    def only_request(self, data: bytes, address: str = "") -> bytes | None:
        """The response to the only request of a connection, if it is one in these octets that is known and answered.

        For the acceptor, before a transport exists. None: nothing has happened. `address`: the client's.
        """
        if data.startswith(b"GET "):
            stop = data.find(END_OF_GET_LINE)
            if self.known_get is None or not self.gets.get(data[stop + len(END_OF_GET_LINE) :]):
                return None
            response = self.known_get(data[4:stop])
        else:
            stop = data.find(b"\r\n\r\n") + 4
            needed, _, last = self.posts.get(data[:stop], _UNKNOWN)
            if self.known_post is None or not last or needed != len(data):
                return None
            response = self.known_post(data[stop:])
            if response is None and self.ready_post is not None:
                source = self.sources.of(address)
                response = self.ready_post(data[stop:]) if source.work < source.most else None
                source.work += response is not None
        if response is None:
            return None
        self.answered += 1
        return response.replace(b"\r\n\r\n", LAST, 1)

    def room_for(self, address: str) -> bool:
        """Whether there is room for a new connection from there, if need be after others have gone."""
        kept = kept_for_others(self._most_connections)
        if len(self.connections) + len(self.guests) < self._most_connections - kept:
            return True
        self._forget_gone()
        source, here = self.sources.of(address), len(self.connections) + len(self.guests)
        room = self._most_connections - here
        if source.connections * 2 > here:
            room -= kept
        if room <= 0:
            occupants: list[Occupant] = [*self.connections, *self.guests.values()]
            for occupant in to_make_room(occupants, source, self._most_connections):
                self.made_room += 1
                room += 1
                occupant.end()
        if room <= 0:
            self.turned_away += 1
        return room > 0

    def hold(self, octets: int) -> None:
        """So much more is held of unfinished requests; if that is too much, those go that hold most."""
        self.held += octets
        if self.held > _MOST_HELD_BY_ALL and not self._letting_go:
            self._letting_go = True
            self._loop.call_soon(self._let_go)

    def _let_go(self) -> None:
        self._letting_go = False
        for connection in sorted(self.connections, key=lambda each: each.holds, reverse=True):
            if self.held <= _MOST_HELD_BY_ALL // 2:
                break
            self.made_room += 1
            connection.end()

    def count_limited(self) -> None:
        """A request of aiohttp's is beyond its source's share."""
        self.limited += 1

    def _forget_gone(self) -> None:
        for transport, guest in list(self.guests.items()):
            if guest.gone:
                del self.guests[transport]
                guest.source.connections -= 1

    def leave(self) -> None:
        """From now on every answer is the last of its connection, and says so; nothing is closed that says nothing."""
        self.leaving = True
        self.known = self.ready = None
        self.sources.close()
        self.posts.clear()
        self.gets.clear()
        for connection in self.connections:
            connection.answer_last()

    async def drain(self, timeout_seconds: float) -> None:
        """Close what is idle, and the rest after its answer; return when all are gone or the time is over."""
        self._sweeping.cancel()
        self.sources.close()
        self.draining = True
        self.outgoing.send_now()
        for connection in list(self.connections):
            connection.close_when_answered()
        if self.connections:
            self._drained = self._loop.create_future()
            await asyncio.wait([self._drained], timeout=timeout_seconds)
            for connection in list(self.connections):
                connection.end()

    def left(self, connection: Connection) -> None:
        """The connection is closed, or aiohttp's."""
        if connection in self.connections:
            self.connections.remove(connection)
            connection.source.connections -= 1
        if self._drained is not None and not self.connections and not self._drained.done():
            self._drained.set_result(None)

    def _sweep(self) -> None:
        now = self.sweep_time = self._loop.time()
        for connection in list(self.connections):
            if connection.overdue(now - self._keep_alive_seconds, now - self._patience_seconds):
                self.timed_out += 1
                connection.end()
        self._forget_gone()
        for guest in list(self.guests.values()):
            if guest.overdue(now - self._patience_seconds):
                self.timed_out += 1
                guest.end()
        resting, self.resting = self.resting, []
        for part in range(_PARTS):  # not all at once: the others would have to wait for all of them
            self._loop.call_later(part * _SWEEP_SECONDS / _PARTS, wake, resting[part::_PARTS])
        self._sweeping = self._loop.call_later(_SWEEP_SECONDS, self._sweep)


def wake(connections: Iterable[Connection]) -> None:
    """They have rested."""
    for connection in connections:
        connection.wake()
