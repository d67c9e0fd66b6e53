"""Several NTP servers, of which a majority must agree on the time.

Promises: UTC lies inside the interval that is given, as long as most of the configured servers are right, whichever
they are. So the interval reaches from the first to the last point that a majority covers (Marzullo's way), and not only
over what all who agree have in common, which would be narrower and would trust the particular ones. The majority is
one of all that are configured: who is silent agrees with nobody.

An answer is relied on for `holdover`, its bound growing by what the oscillator may wander; the last one counts.

Lives by: RFC 5905 §11.2.1 (truechimers and falsetickers) and §7.4 (a server that says no is left alone).

Trusted: the majority of these servers, and the network to them as far as `ntp` says.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lakthan.errors import ConfigError
from lakthan.telemetry.logs import log
from lakthan_tsa.clock.leap import end_of_month_ns
from lakthan_tsa.clock.ntp import KissOfDeath, NoAnswer, address_of, ask
from lakthan_tsa.clock.values import ClockState, Doubt, Leap, Opinion, nanoseconds_of, wander_ns

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from lakthan_tsa.clock.ntp import Measurement
    from lakthan_tsa.clock.values import Clock, Look

STANDINGS = ("truechimer", "falseticker", "silent")
_FEWEST = 3
_MOST_PATIENT_SECONDS = 2.0
_AFTER_LEAP_SECONDS = 0.3  # the servers need not step in the same millisecond as we
_SLOWEST = 64
_NEVER_AGAIN = ("DENY", "RSTR")

Interval = tuple[int, int]


def agreement(intervals: Sequence[Interval], needed: int) -> Interval | None:
    """From the first to the last point that at least `needed` of the intervals cover; None when there is no such point.

    Ends count as covered.
    """
    # At equal points what begins comes before what ends: two intervals that touch agree.
    edges = sorted([(low, -1) for low, _ in intervals] + [(high, 1) for _, high in intervals])
    covered, first, last = 0, None, None
    for point, kind in edges:
        if kind > 0 and covered >= needed:
            last = point
        covered -= kind
        if first is None and covered >= needed:
            first = point
    return None if first is None or last is None else (first, last)


@dataclass(slots=True)
class Server:
    """One of them. `measured` is its last answer, `problem` why there was none the last time it was asked."""

    name: str
    host: str
    port: int
    measured: Measurement | None = None
    problem: str = "no answer yet"
    standing: str = "silent"


class NTPQuorum:
    """The source. Raises `ConfigError` when there are fewer than three different servers, or a time makes no sense."""

    name = "ntp"

    def __init__(self, servers: Sequence[str], clock: Clock, *, poll: timedelta, holdover: timedelta) -> None:
        addresses = {address_of(server): server for server in servers}
        if len(addresses) < _FEWEST:
            raise ConfigError("the source ntp needs at least three different ntp_servers, so that one may be wrong")
        if not 0 < poll.total_seconds() <= holdover.total_seconds():
            raise ConfigError("ntp_poll must be longer than nothing, and holdover longer than ntp_poll")
        self.servers = [Server(name, host, port) for (host, port), name in addresses.items()]
        self._needed = len(self.servers) // 2 + 1
        self._clock = clock
        self._poll_seconds = poll.total_seconds()
        self._holdover_ns = nanoseconds_of(holdover)
        self._anew = asyncio.Event()

    def opinion(self, look: Look) -> Opinion | Doubt:
        """See `Source`. Also says of each server how it stands: truechimer, falseticker or silent."""
        fresh: list[tuple[Server, Measurement, Interval]] = []
        for server in self.servers:
            server.standing = "silent"
            measured = server.measured
            if measured is None:
                continue
            age_ns = look.monotonic_ns - measured.monotonic_ns
            if age_ns <= self._holdover_ns:
                error_ns = measured.error_ns + wander_ns(age_ns)
                fresh.append((server, measured, (measured.reference_ns - error_ns, measured.reference_ns + error_ns)))
        agreed = agreement([interval for _, _, interval in fresh], self._needed)
        if agreed is None:
            return self._doubt(len(fresh))
        low, high = agreed
        leaps = []
        for server, measured, interval in fresh:
            server.standing = "truechimer" if interval[0] <= high and low <= interval[1] else "falseticker"
            if server.standing == "truechimer":
                leaps.append(measured.leap)
        leap = next((leap for leap in (Leap.INSERTED, Leap.DELETED) if leaps.count(leap) * 2 > len(leaps)), Leap.NONE)
        return Opinion((low + high) // 2, (high - low) // 2 + 1, leap, end_of_month_ns(look.realtime_ns))

    def _doubt(self, answering: int) -> Doubt:
        if answering < self._needed:
            silent = "; ".join(f"{server.name}: {server.problem}" for server in self.servers if server.problem)
            return Doubt(
                ClockState.UNKNOWN,
                f"{answering} of {len(self.servers)} NTP servers answered lately, {self._needed} are needed ({silent})",
            )
        return Doubt(ClockState.OUT_OF_SYNC, "no majority of the NTP servers agrees on the time")

    def how_many(self, standing: str) -> int:
        """How many servers stand so; for metrics."""
        return sum(server.standing == standing for server in self.servers)

    def forget(self) -> None:
        """See `Source`."""
        for server in self.servers:
            server.measured, server.problem = None, "not asked since the leap second"
        anew, self._anew = self._anew, asyncio.Event()
        anew.set()

    async def watch(self) -> None:
        """See `Source`. Every server has its own rhythm, so that a slow one holds up nobody."""
        async with asyncio.TaskGroup() as group:
            for server in self.servers:
                group.create_task(self._follow(server), name=f"NTP {server.name}")

    async def _follow(self, server: Server) -> None:
        wait_seconds = self._poll_seconds
        while True:
            anew = self._anew
            try:
                measured = await ask(
                    server.host,
                    server.port,
                    self._clock,
                    timeout_seconds=min(wait_seconds, _MOST_PATIENT_SECONDS),
                )
                if anew is self._anew:  # else it was asked before a leap second, and answers after
                    server.measured = measured
                self._say(server, "")
            except KissOfDeath as refusal:
                server.measured = None
                self._say(server, str(refusal))
                if refusal.code in _NEVER_AGAIN:
                    return
                wait_seconds = min(2 * wait_seconds, _SLOWEST * self._poll_seconds)
            except NoAnswer as refusal:
                server.measured = None  # what it said before may be as wrong
                self._say(server, str(refusal))
            except TimeoutError:
                self._say(server, "no answer")
            except OSError as error:
                self._say(server, error.strerror or str(error))
            try:
                async with asyncio.timeout(wait_seconds):
                    await anew.wait()
                await asyncio.sleep(_AFTER_LEAP_SECONDS)
            except TimeoutError:
                pass  # nothing special: the next poll is due

    def _say(self, server: Server, problem: str) -> None:
        if problem != server.problem:
            server.problem = problem
            say = log.warning if problem else log.info
            say("NTP server", server=server.name, problem=problem or None)
