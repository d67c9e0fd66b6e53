"""The wire: a protocol in front of aiohttp that answers what is known at once, without task or request object.

A complete request of a shape that is fully understood (`wire_heads`) is offered to a service's `Quick`. That gives the
finished response, or says that it comes later, or declines. The same octets once more need not be understood again:
a service with a memory is asked for them as they are (`Remembering`). Whatever is declined or not understood, at any
moment, hands the connection with all octets received so far to aiohttp, which keeps it from then on; aiohttp's private
state is never looked at. So every request gets the same answer either way, and this file can be removed without a
trace.

The rules of one connection:

- one request at a time: what comes while its answer is due is held back, and reading stops when that is a lot;
- answers leave in the order of the requests, those that were made in one turn of the event loop together, those that
  were only found at once; a connection changes hands only when no answer is due;
- while the client does not read (`pause_writing`), nothing more of it is read;
- when the service leaves its place to another, every answer is the last of its connection, and says so (RFC 9112 §9.6);
- a request that does not become complete within `patience`, and a connection without one for `keep_alive`, are closed
  by a sweep; so are all that are idle when the service stops, the others after their answer;
- there is room for so many connections and for so much of unfinished requests, and whoever takes most of it makes room
  (`lakthan.web.room`); who is refused for asking more than its share (`lakthan.web.sources`) is not read for a moment.

Refuses to know: what a request means, and what is in an answer.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from lakthan.telemetry.logs import log
from lakthan.web.outgoing import Outgoing
from lakthan.web.quick import LATER, Quick, Remembering
from lakthan.web.room import MOST_CONNECTIONS, Guest, to_make_room
from lakthan.web.sources import Source, Sources
from lakthan.web.wire_heads import (
    LARGEST_FIELDS,
    LARGEST_TARGET,
    Head,
    closes,
    forget_oldest,
    is_plain_target,
    read_get_fields,
    read_post_head,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lakthan.web.room import Occupant
    from lakthan.web.sources import Network

__all__ = ["LATER", "Connection", "Head", "Quick", "Remembering", "Wire", "is_plain_target"]

_KEEP_ALIVE_SECONDS = 75.0
_PATIENCE_SECONDS = 20.0
_SWEEP_SECONDS = 1.0
_LARGEST_HEAD = LARGEST_FIELDS + LARGEST_TARGET
# What one client may send ahead of its answers before it is read no further.
_MOST_HELD = 64 * 1024
# What all of them together may.
_MOST_HELD_BY_ALL = 32 * 1024 * 1024
_END_OF_GET_LINE = b" HTTP/1.1\r\n"
_UNKNOWN = (0, None, False)
# The field that aiohttp would add, at the end of the head as there (RFC 9112 §9.6).
_LAST = b"\r\nConnection: close\r\n\r\n"


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
            stop = data.find(_END_OF_GET_LINE)
            if self.known_get is None or not self.gets.get(data[stop + len(_END_OF_GET_LINE) :]):
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
        return response.replace(b"\r\n\r\n", _LAST, 1)

    def room_for(self, address: str) -> bool:
        """Whether there is room for a new connection from there, if need be after others have gone."""
        if len(self.connections) + len(self.guests) < self._most_connections:
            return True
        self._forget_gone()
        room = self._most_connections - len(self.connections) - len(self.guests)
        if room <= 0:
            occupants: list[Occupant] = [*self.connections, *self.guests.values()]
            for occupant in to_make_room(occupants, self.sources.of(address), self._most_connections):
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
        for connection in resting:
            connection.wake()
        self._sweeping = self._loop.call_later(_SWEEP_SECONDS, self._sweep)


class Connection(asyncio.Protocol):
    """One client's connection, for as long as the wire has it. `first`: what was read of it already; `address`: the
    client's, if it is known.
    """

    __slots__ = (
        "_address",
        "_ended",
        "_first",
        "_held",
        "_needed",
        "_paused",
        "_quick",
        "_since",
        "_transport",
        "_waiting",
        "_wire",
        "holds",
        "source",
    )

    def __init__(self, wire: Wire, first: bytes = b"", address: str = "") -> None:
        self._wire = wire
        self._address = address
        self.source = _NOWHERE
        self.holds = 0  # octets that were counted as held
        self._first = first
        self._quick = wire.quick
        self._transport: asyncio.Transport | None = None
        self._held: bytearray | None = None  # the beginning of a request, or what came while an answer is due
        self._needed = 0  # how many octets the held request has, once its head has been read
        self._waiting = False  # an answer is due
        self._paused = False  # the client does not read
        self._ended = False  # no more requests after the answer that is due
        self._since = wire.sweep_time  # of the last progress, to the second

    @property
    def peer(self) -> str:
        """The client's address, '' when it has gone."""
        peername = self._transport.get_extra_info("peername") if self._transport is not None else None
        return str(peername[0]) if peername else ""

    @property
    def silent_since(self) -> float | None:
        """See `lakthan.web.room.Occupant`."""
        return None if self._waiting else self._since

    def may_work(self) -> bool:
        """To be asked by a service before it does what costs it time. False: the client has had its share; it is to be
        told to come again, by the response that is given next, and is not read for a moment.
        """
        if self.source.begin():
            return True
        self._wire.limited += 1
        if self._transport is not None:
            self._transport.pause_reading()
            self._wire.resting.append(self)
        return False

    def wake(self) -> None:
        """The moment is over."""
        if self._transport is not None and not self._waiting and not self._paused:
            self._transport.resume_reading()

    def reply(self, response: bytes) -> None:
        """The response that was promised by `LATER`. A client that has gone does not get it."""
        if not self._waiting:
            raise RuntimeError("no answer is due on this connection")
        self._waiting = False
        self._wire.due -= 1
        if self._transport is not None:
            self._write(response)
            if self._held is not None and not self._paused and not self._ended:
                self._go_on(self._transport)

    def _write(self, response: bytes) -> None:
        wire = self._wire
        self._since = wire.sweep_time
        wire.answered += 1
        if self._ended:
            wire.outgoing.send_now()  # an answer of this connection may be among them
            self._transport.write(response.replace(b"\r\n\r\n", _LAST, 1))  # type: ignore[union-attr]
            self._transport.close()  # type: ignore[union-attr]
        else:
            wire.outgoing.send_soon(self._transport, response)  # type: ignore[arg-type]

    def _write_now(self, response: bytes) -> None:
        """For a response that took no time to find: nobody gains when it waits, unless others are about to leave."""
        wire = self._wire
        self._since = wire.sweep_time
        wire.answered += 1
        if wire.outgoing.waiting:  # perhaps an answer of this connection
            wire.outgoing.send_soon(self._transport, response)  # type: ignore[arg-type]
        elif not self._transport.is_closing():  # type: ignore[union-attr]
            self._transport.write(response)  # type: ignore[union-attr]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.BaseProtocol`."""
        self._transport = transport  # type: ignore[assignment]
        self._wire.connections.add(self)
        self.source = self._wire.sources.of(self._address or self.peer)
        self.source.connections += 1
        first, self._first = self._first, b""
        if self._wire.draining:
            transport.close()
        elif first:
            self._take(first)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._held is None and not self._waiting and not self._paused:
            self._take(data)
        else:
            self._take_more(data)

    def _take(self, data: bytes) -> None:
        """Answer the request that `data` is, if it is one."""
        wire = self._wire
        known: bytes | None = None
        response: bytes | None = None
        try:
            if wire.known is not None and wire.ready is not None:
                known = wire.known(data)
                source = self.source
                if known is None and source.work < source.most:
                    response = wire.ready(data)
                    source.work += response is not None
                else:
                    response = known
            if response is None:
                response = self._read(data)
        except Exception:  # noqa: BLE001 - a defect of the short way; the long way answers
            log.exception("a defect in the short way of a request")
            response = None
        if known is not None:
            self._write_now(known)
        elif response:
            self._write(response)
        elif response is None:
            self._hand_over(data)
        elif self._held is None:
            self._waiting = True
            wire.due += 1

    def _read(self, data: bytes) -> bytes | None:
        if data.startswith(b"POST "):
            return self._post(data)
        if data.startswith(b"GET "):
            return self._get(data)
        begun = b"POST ".startswith(data) or b"GET ".startswith(data)
        return self._hold(data, 0) if begun else None

    def _post(self, data: bytes) -> bytes | None:
        wire = self._wire
        stop = data.find(b"\r\n\r\n") + 4
        if stop == 3:
            return self._hold(data, 0)
        head = data[:stop]
        known = wire.posts.get(head) or wire.learn_post(head)
        if known is None:
            return None
        needed, route, last = known
        if len(data) == needed:
            self._ended = last
            body = data[stop:]
            response: bytes | None = None
            if wire.known_post is not None and wire.ready_post is not None:
                again, source = b"" if last else data, self.source
                response = wire.known_post(body, again)
                if response is None and source.work < source.most:
                    response = wire.ready_post(body, again)
                    source.work += response is not None
            return response or self._quick.post(route, body, self)
        return self._hold(data, needed) if len(data) < needed else None  # None: pipelining

    def _get(self, data: bytes) -> bytes | None:
        stop = data.find(_END_OF_GET_LINE)
        wire = self._wire
        if stop >= 0:
            fields = data[stop + len(_END_OF_GET_LINE) :]
            last = wire.gets.get(fields)
            if last is None:
                last = wire.learn_get(fields)
            if last is not None:
                self._ended = last
                target = data[4:stop]
                known_get = wire.known_get
                response = known_get(target, b"" if last else data) if known_get is not None else None
                return response or self._quick.get(target, self)
        return self._hold(data, 0) if data.find(b"\r\n\r\n") < 0 else None

    def _hold(self, data: bytes, needed: int) -> bytes | None:
        """Wait for the rest of a request, unless its head is too long."""
        if not needed and len(data) > _LARGEST_HEAD:
            return None
        self._held = bytearray(data)
        self._needed = needed
        self._since = self._wire.sweep_time
        self._hold_more(len(data))
        return LATER

    def _hold_more(self, octets: int) -> None:
        self.holds += octets
        self._wire.hold(octets)

    def _let_go(self) -> None:
        """Nothing is held any more."""
        self._held = None
        self._wire.held -= self.holds
        self.holds = 0

    def _take_more(self, data: bytes) -> None:
        held = self._held
        if held is None:
            held = self._held = bytearray(data)
        else:
            held += data
        self._hold_more(len(data))
        if self._waiting or self._paused:
            if len(held) > _MOST_HELD:
                self._transport.pause_reading()  # type: ignore[union-attr]
        elif len(held) >= self._needed:
            self._take_held(held)

    def _take_held(self, held: bytearray) -> None:
        """As if all that is held had come at once, except that a request's time runs from its first octet."""
        begun = self._since
        self._let_go()
        self._needed = 0
        self._take(bytes(held))
        if self._held is not None:
            self._since = begun

    def _go_on(self, transport: asyncio.Transport) -> None:
        """Take what came while nothing could be taken."""
        held = self._held
        transport.resume_reading()
        if held:
            self._take_held(held)

    def _hand_over(self, data: bytes) -> None:
        wire = self._wire
        wire.outgoing.send_now()
        transport = self._transport
        if transport is None:
            return
        wire.handed_over += 1
        handler = wire.make_handler()
        transport.set_protocol(handler)
        self._transport = None
        wire.left(self)
        self.source.connections += 1
        wire.guests[transport] = Guest(transport, self.source, wire.sweep_time, wire.count_limited)
        handler.connection_made(transport)
        handler.data_received(data)

    def pause_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""
        self._paused = True
        self._transport.pause_reading()  # type: ignore[union-attr]

    def resume_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""
        self._paused = False
        if not self._waiting and self._transport is not None:
            self._go_on(self._transport)

    def eof_received(self) -> bool:
        """The client sends no more; what it asked last is answered all the same."""
        self._ended = True
        return self._waiting

    def connection_lost(self, _error: Exception | None) -> None:
        """See `asyncio.BaseProtocol`."""
        self._transport = None
        self._let_go()
        self._wire.left(self)

    def overdue(self, idle_since: float, begun_before: float) -> bool:
        """True for a connection whose client is too slow, or has been silent for too long."""
        if self._waiting:
            return False
        return self._since < (begun_before if self._held is not None or self._paused else idle_since)

    def answer_last(self) -> None:
        """No more requests after the one whose answer is due, if one is."""
        self._ended = self._ended or self._waiting

    def close_when_answered(self) -> None:
        """No more requests."""
        self._ended = True
        if not self._waiting and self._transport is not None:
            self._transport.close()

    def end(self) -> None:
        """Close now, and do not wait for a client that does not read."""
        self._let_go()
        self._wire.left(self)
        if self._transport is not None:
            self._transport.abort()


# Of a connection that is not there yet.
_NOWHERE = Source()
