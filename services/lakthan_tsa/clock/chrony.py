"""What chronyd itself says of the clock: its tracking report, asked over its command protocol as `chronyc` does.

The kernel knows only what chronyd last told it; chronyd knows how far the clock is off just now, and how it knows.

The protocol (version 6, chrony 2.2 and later) is one datagram each way. A request is padded to the size of its reply,
and carries a sequence number that the reply repeats; it is random here, so that only who sees it can answer.

Trusted: chronyd, whichever servers it follows, and every process that may answer on its address.
"""

from __future__ import annotations

import asyncio
import secrets
import struct
from typing import TYPE_CHECKING, NamedTuple

from lakthan_tsa.clock.leap import end_of_month_ns
from lakthan_tsa.clock.ntp import address_of
from lakthan_tsa.clock.values import SECOND_NS, ClockState, Doubt, Leap, Opinion, wander_ns

if TYPE_CHECKING:
    from lakthan_tsa.clock.values import Clock, Look

_POLL_SECONDS = 0.5
_HOLDOVER_NS = 2 * SECOND_NS
# chronyd asks its servers every 1024 s at the least; three times that in vain, and it follows nobody.
_OLDEST_UPDATE_SECONDS = 3600
_VERSION, _REQUEST, _REPLY = 6, 1, 2
_REQ_TRACKING, _RPY_TRACKING, _SUCCESS = 33, 5, 0
_HEAD = struct.Struct(">BBBBHHI8x")
_REPLY_HEAD = struct.Struct(">BBBBHHHHHHI8x")
# reference ID, address, stratum, leap status, reference time (3), correction, last and RMS offset, frequency,
# residual frequency, skew, root delay, root dispersion, last interval
_TRACKING = struct.Struct(">I20sHHIIIiiiiiiiii")
_SIZE = _REPLY_HEAD.size + _TRACKING.size
_OWN_CLOCK = 0x7F7F0101  # "local" in chrony's configuration: it follows nobody
_UNSYNCHRONISED = 3  # leap status; no higher one is known


class Tracking(NamedTuple):
    """The report. `correction_ns`: UTC − realtime; `error_ns`: its bound; `reference_s`: when chronyd last heard of
    its servers, in POSIX seconds.
    """

    reference_id: int
    leap_status: int
    reference_s: int
    correction_ns: int
    error_ns: int


def decode_float(bits: int) -> float:
    """A 32-bit float of chrony's: 7 bits of exponent and 25 of coefficient, both in two's complement (bits: signed)."""
    exponent, coefficient = bits >> 25, bits & (1 << 25) - 1
    if coefficient >= 1 << 24:
        coefficient -= 1 << 25
    return float(coefficient * 2.0 ** (exponent - 25))


def encode_request(sequence: int) -> bytes:
    """Ask for the tracking report."""
    return _HEAD.pack(_VERSION, _REQUEST, 0, 0, _REQ_TRACKING, 0, sequence).ljust(_SIZE, b"\0")


def parse_tracking(octets: bytes, sequence: int) -> Tracking | None:
    """The report; None when this is not the reply to that request."""
    if len(octets) < _SIZE:
        return None
    version, kind, _, _, command, reply, status, _, _, _, back = _REPLY_HEAD.unpack_from(octets)
    if (version, kind, command, reply, status, back) != (
        _VERSION, _REPLY, _REQ_TRACKING, _RPY_TRACKING, _SUCCESS, sequence,
    ):  # fmt: skip
        return None
    reference_id, _, _, leap_status, high, low, _, *floats = _TRACKING.unpack_from(octets, _REPLY_HEAD.size)
    correction, _, _, _, _, _, root_delay, root_dispersion, _ = map(decode_float, floats)
    return Tracking(
        reference_id,
        leap_status,
        (0 if high == 0x7FFFFFFF else high << 32) + low,
        round(correction * SECOND_NS),
        round((root_delay / 2 + root_dispersion) * SECOND_NS) + 1,
    )


class _Line(asyncio.DatagramProtocol):
    """Keeps the last report, and where realtime was on the monotonic clock when it came."""

    def __init__(self, source: ChronySource) -> None:
        self._source = source
        self.sequence = 0

    def datagram_received(self, data: bytes, _address: object) -> None:
        """Perhaps the report."""
        report = parse_tracking(data, self.sequence)
        if report is not None:
            self._source.told(report)

    def error_received(self, _exc: Exception) -> None:
        """Nobody is there: the last report grows old."""


class ChronySource:
    """chronyd as a source, at `host:port` (323 unless given). Raises `ConfigError` when that is no address."""

    name = "chrony"

    def __init__(self, address: str, clock: Clock) -> None:
        self._address = address_of(address)
        self._clock = clock
        self._asked_ns = 0
        self._report: tuple[Tracking, int, int, int] | None = None  # with monotonic, realtime − monotonic, and a gap

    def told(self, report: Tracking) -> None:
        """A report came. It was made between question and answer; the wall clock did not move much meanwhile."""
        realtime_ns, monotonic_ns = self._clock.realtime_ns(), self._clock.monotonic_ns()
        self._report = report, monotonic_ns, realtime_ns - monotonic_ns, monotonic_ns - self._asked_ns

    def opinion(self, look: Look) -> Opinion | Doubt:
        """See `Source`."""
        if self._report is None or look.monotonic_ns - self._report[1] > _HOLDOVER_NS:
            host, port = self._address
            return Doubt(ClockState.UNKNOWN, f"chronyd does not answer at {host}:{port}; is cmdport open there?")
        report, at_ns, difference_ns, gap_ns = self._report
        if report.leap_status >= _UNSYNCHRONISED or report.reference_id in (0, _OWN_CLOCK):
            return Doubt(ClockState.OUT_OF_SYNC, "chronyd is not synchronised with anybody")
        if look.realtime_ns // SECOND_NS - report.reference_s > _OLDEST_UPDATE_SECONDS:
            return Doubt(ClockState.OUT_OF_SYNC, "chronyd has not heard of its servers for more than an hour")
        error_ns = report.error_ns + wander_ns(look.monotonic_ns - at_ns) + gap_ns
        return Opinion(
            difference_ns + report.correction_ns, error_ns, Leap(report.leap_status), end_of_month_ns(look.realtime_ns)
        )

    def forget(self) -> None:
        """See `Source`."""
        self._report = None

    async def watch(self) -> None:
        """See `Source`. A daemon that is started again is found again, and so is a host name that moved."""
        while True:
            try:
                transport, line = await asyncio.get_running_loop().create_datagram_endpoint(
                    lambda: _Line(self), remote_addr=self._address
                )
            except OSError:  # the last report grows old, and `opinion` says so
                await asyncio.sleep(_POLL_SECONDS)
                continue
            try:
                line.sequence = secrets.randbits(32)
                self._asked_ns = self._clock.monotonic_ns()
                transport.sendto(encode_request(line.sequence))
                await asyncio.sleep(_POLL_SECONDS)
            finally:
                transport.close()
