"""Leap seconds: when the announced one comes, and for how long nothing may be stamped.

23:59:60 has no number of its own in POSIX time: at an inserted second the clock shows 23:59:59 twice, at a deleted one
it leaves 23:59:59 out. From one second before until one second after, an instant could be read in two ways, so
a whole pause is kept around it. The pause is planned on the monotonic clock, because the wall clock is what changes.

Lives by: ETSI EN 319 421 TIS-7.7.2-07 to -09 (synchronised through a leap second, its exact time recorded), RFC 5905
§7.3 (announced by NTP for the end of the month), adjtimex(2) (by the kernel for the end of the day).
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING

from lakthan_tsa.clock.values import SECOND_NS, Leap

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lakthan_tsa.clock.values import Look, Opinion

_DAY_NS = 86_400 * SECOND_NS


def end_of_day_ns(realtime_ns: int) -> int:
    """The next midnight, UTC."""
    return (realtime_ns // _DAY_NS + 1) * _DAY_NS


def end_of_month_ns(realtime_ns: int) -> int:
    """The midnight, UTC, that begins the next month."""
    now = datetime.fromtimestamp(realtime_ns // SECOND_NS, UTC)
    year, month = divmod(now.year * 12 + now.month, 12)
    return int(datetime(year, month + 1, 1, tzinfo=UTC).timestamp()) * SECOND_NS


class Phase(Enum):
    """Where an announced leap second stands."""

    NONE = "none"
    PAUSE = "pause"  # nothing may be stamped
    OVER = "over"  # told once, at the end of a pause


class LeapSecond:
    """The leap second that is coming, if one is. `leap` is which; `at_ns` the midnight before which it comes."""

    def __init__(self) -> None:
        self.leap = Leap.NONE
        self.at_ns = 0
        self.stepped = False
        self._from_ns = 0
        self._until_ns = 0
        self._pausing = False
        self._over_ns = 0

    @property
    def expected_step_ns(self) -> int:
        """By how much the wall clock may be stepped now without anything being wrong; 0 outside a pause."""
        return -self.leap.seconds * SECOND_NS if self._pausing and not self.stepped else 0

    def heard(self, opinions: Iterable[Opinion], look: Look) -> None:
        """Plan by what is announced now; during a pause the plan stands."""
        if self._pausing:
            return
        announced = min(
            (o for o in opinions if o.leap is not Leap.NONE and o.leap_at_ns > self._over_ns),
            key=lambda o: o.leap_at_ns,
            default=None,
        )
        if announced is None:
            self.leap = Leap.NONE
            return
        self.leap, self.at_ns = announced.leap, announced.leap_at_ns
        midnight_ns = look.monotonic_ns + self.at_ns - look.realtime_ns
        # Before the last second of the day, one more; and a check comes only every half second.
        self._from_ns = midnight_ns - 5 * SECOND_NS // 2
        self._until_ns = midnight_ns + (self.leap.seconds + 1) * SECOND_NS

    def phase(self, look: Look) -> Phase:
        """To be asked at every check, in time to begin a pause."""
        if self._pausing:
            if look.monotonic_ns < self._until_ns:
                return Phase.PAUSE
            self._pausing = False
            self._over_ns = self.at_ns
            return Phase.OVER
        if self.leap is not Leap.NONE and self._from_ns <= look.monotonic_ns < self._until_ns:
            self._pausing, self.stepped = True, False
            return Phase.PAUSE
        return Phase.NONE
