"""One question to an NTP server and its answer (RFC 5905, the client side without discipline: SNTPv4).

Promises: the answer belongs to the question. Each is sent from a port of its own with 64 random bits as its transmit
timestamp, which a forger who does not see the packet cannot know, and which tells the server nothing about our clock.
What an answer says holds with its error bound: the whole round trip may have been in one direction.

Refuses to know: several servers, and what our clock should be.

Trusted: whoever is on the path to the server can delay or forge answers (there is no NTS here). That is why a majority
must agree, and why servers should be near or reached through a tunnel.
"""

from __future__ import annotations

import asyncio
import secrets
import struct
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from lakthan.errors import ConfigError
from lakthan_tsa.clock.values import SECOND_NS, Leap, wander_ns

if TYPE_CHECKING:
    from lakthan_tsa.clock.values import Clock

NTP_PORT = 123
_CLIENT, _SERVER, _VERSION = 3, 4, 4
_UNSYNCHRONISED = 3  # leap indicator
_HIGHEST_STRATUM = 15
# flags, stratum, poll, precision, root delay, root dispersion, reference ID, reference, origin, receive, transmit
_PACKET = struct.Struct(">BBbbII4s8s8s8s8s")
# Seconds count from 1900 and begin again in 2036; an answer from before this day is one from after that.
_NTP_EPOCH = int(datetime(1900, 1, 1, tzinfo=UTC).timestamp())
_OLDEST = int(datetime(2025, 1, 1, tzinfo=UTC).timestamp())


class NoAnswer(Exception):
    """The server says something that cannot be used; the message says what."""


class KissOfDeath(NoAnswer):
    """The server asks to be left alone (RFC 5905 §7.4). `code` is its word: DENY, RSTR, RATE …"""

    def __init__(self, code: str) -> None:
        super().__init__(f"the server refuses to serve us: {code}")
        self.code = code


class Answer(NamedTuple):
    """What an answer says; instants in realtime nanoseconds (RFC 5905 §7.3)."""

    leap: Leap
    stratum: int
    precision_ns: int
    root_delay_ns: int
    root_dispersion_ns: int
    receive_ns: int
    transmit_ns: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """At `monotonic_ns` UTC was monotonic + `reference_ns`, give or take `error_ns`."""

    monotonic_ns: int
    reference_ns: int
    error_ns: int
    leap: Leap


def address_of(server: str) -> tuple[str, int]:
    """Host and port of `host`, `host:port`, `[v6]:port` or a bare IPv6 address. Raises `ConfigError`."""
    host, colon, port = server.rpartition(":")
    bare_v6 = ":" in host and not host.endswith("]")
    if not colon or bare_v6 or server.endswith("]"):
        host, port = server, str(NTP_PORT)
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"{server!r} is no server: write a host name or address, or host:port")
    host = host.strip("[]")
    try:
        host.encode("idna")  # as the resolver does, which would find out only when the clock is needed
    except UnicodeError as error:
        raise ConfigError(f"{server!r} is no server: {error}") from error
    return host, int(port)


def encode_request(transmit: bytes) -> bytes:
    """A client's packet: nothing in it but version, mode and the 8 octets that the answer must bring back."""
    zero = bytes(8)
    return _PACKET.pack(_VERSION << 3 | _CLIENT, 0, 0, 0, 0, 0, bytes(4), zero, zero, zero, transmit)


def encode_timestamp(realtime_ns: int) -> bytes:
    """The 64-bit timestamp (RFC 5905 §6)."""
    seconds, rest = divmod(realtime_ns, SECOND_NS)
    return struct.pack(">II", (seconds - _NTP_EPOCH) % 2**32, (rest << 32) // SECOND_NS)


def decode_timestamp(octets: bytes) -> int:
    """Realtime nanoseconds of a 64-bit timestamp, in the era after 2025."""
    seconds = int.from_bytes(octets[:4], "big") + _NTP_EPOCH
    while seconds < _OLDEST:
        seconds += 2**32
    return seconds * SECOND_NS + (int.from_bytes(octets[4:], "big") * SECOND_NS >> 32)


def parse_answer(octets: bytes, *, origin: bytes) -> Answer | None:
    """What the server says; None when this is no answer to the packet whose transmit timestamp was `origin`.

    Raises `NoAnswer` when the server does not know the time itself, and `KissOfDeath`.
    """
    if len(octets) < _PACKET.size:
        return None
    flags, stratum, _poll, precision, delay, dispersion, reference_id, _reference, back, receive, transmit = (
        _PACKET.unpack_from(octets)
    )
    if back != origin or flags & 7 != _SERVER or flags >> 3 & 7 != _VERSION:
        return None
    if stratum == 0:
        raise KissOfDeath(reference_id.decode("ascii", "replace").rstrip("\0"))
    leap = flags >> 6
    if leap == _UNSYNCHRONISED or stratum > _HIGHEST_STRATUM:
        raise NoAnswer("the server itself is not synchronised")
    if receive == bytes(8) or transmit == bytes(8):
        raise NoAnswer("the server gives no time")
    answer = Answer(
        Leap(leap),
        stratum,
        SECOND_NS >> -precision if precision < 0 else SECOND_NS << min(precision, 8),
        delay * SECOND_NS >> 16,
        dispersion * SECOND_NS >> 16,
        decode_timestamp(receive),
        decode_timestamp(transmit),
    )
    if answer.transmit_ns < answer.receive_ns:
        raise NoAnswer("the server answers before it was asked")
    return answer


class _Exchange(asyncio.DatagramProtocol):
    """Sends one request when its socket is ready; `measured` gets what the first fitting answer says."""

    def __init__(self, clock: Clock) -> None:
        self.measured: asyncio.Future[Measurement] = asyncio.get_running_loop().create_future()
        self._clock = clock
        self._transmit = secrets.token_bytes(8)
        self._sent_ns = 0

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        """The one question. (The base class knows no datagrams.)"""
        request = encode_request(self._transmit)
        self._sent_ns = self._clock.monotonic_ns()
        transport.sendto(request)

    def datagram_received(self, data: bytes, _address: object) -> None:
        """Perhaps the answer."""
        received_ns = self._clock.monotonic_ns()
        if self.measured.done():
            return
        try:
            answer = parse_answer(data, origin=self._transmit)
        except NoAnswer as refusal:
            self.measured.set_exception(refusal)
            return
        if answer is not None:
            self.measured.set_result(measurement(answer, sent_ns=self._sent_ns, received_ns=received_ns))

    def error_received(self, exc: Exception) -> None:
        """Nobody is there."""
        if not self.measured.done():
            self.measured.set_exception(exc)


def measurement(answer: Answer, *, sent_ns: int, received_ns: int) -> Measurement:
    """Offset and bound of one exchange (RFC 5905 §8 and §11.1: half of all delay, and all dispersion)."""
    reference_ns = (answer.receive_ns - sent_ns + answer.transmit_ns - received_ns) // 2
    elapsed_ns = received_ns - sent_ns
    delay_ns = max(elapsed_ns - (answer.transmit_ns - answer.receive_ns), 0)
    error_ns = (
        (answer.root_delay_ns + delay_ns) // 2 + answer.root_dispersion_ns + answer.precision_ns + wander_ns(elapsed_ns)
    )
    return Measurement(received_ns, reference_ns, error_ns, answer.leap)


async def ask(host: str, port: int, clock: Clock, *, timeout_seconds: float) -> Measurement:
    """Ask once. Raises `NoAnswer`, `TimeoutError`, and `OSError` when the server cannot be reached or found."""
    async with asyncio.timeout(timeout_seconds):
        transport, exchange = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Exchange(clock), remote_addr=(host, port)
        )
        try:
            return await exchange.measured
        finally:
            transport.close()
