"""One connection of the wire: its octets in, requests out of them, and the answers back in their order.

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

Refuses to know: what is shared with other connections (`lakthan.web.wire`), and what a request means.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from lakthan.telemetry.logs import log
from lakthan.web.quick import LATER
from lakthan.web.response_heads import LAST
from lakthan.web.room import Guest
from lakthan.web.sources import Source
from lakthan.web.wire_heads import END_OF_GET_LINE, LARGEST_FIELDS, LARGEST_TARGET

if TYPE_CHECKING:
    from lakthan.web.wire import Wire

_LARGEST_HEAD = LARGEST_FIELDS + LARGEST_TARGET
# What one client may send ahead of its answers before it is read no further.
_MOST_HELD = 64 * 1024
# Of a connection that is not there yet.
_NOWHERE = Source()


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
            self._transport.write(response.replace(b"\r\n\r\n", LAST, 1))  # type: ignore[union-attr]
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
        stop = data.find(END_OF_GET_LINE)
        wire = self._wire
        if stop >= 0:
            fields = data[stop + len(END_OF_GET_LINE) :]
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
