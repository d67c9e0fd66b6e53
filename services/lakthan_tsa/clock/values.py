"""The words about time that sources, guard and records share.

All computing is in whole nanoseconds. `monotonic` is a clock that nobody sets or slews; a source says where UTC lies
*on that clock*. Whatever then happens to the wall clock, a step or a slew, is seen the next time the two are read,
without asking anybody anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import NamedTuple, Protocol

SECOND_NS = 1_000_000_000
# No kernel corrects an oscillator by more than 500 ppm, so no usable one needs more. In nanoseconds for each second.
_WANDER_NS = 500_000
_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def wander_ns(elapsed_ns: int) -> int:
    """How far the monotonic clock may stray from UTC within that time."""
    return elapsed_ns * _WANDER_NS // SECOND_NS + 1


def instant_of(realtime_ns: int) -> datetime:
    """The aware datetime, in whole microseconds."""
    return _UNIX_EPOCH + timedelta(microseconds=realtime_ns // 1000)


def duration_of(nanoseconds: int) -> timedelta:
    """The timedelta, rounded up to a microsecond: a bound never gets smaller."""
    return timedelta(microseconds=-(-nanoseconds // 1000))


def nanoseconds_of(duration: timedelta) -> int:
    """The exact number."""
    return duration // timedelta(microseconds=1) * 1000


class ClockState(Enum):
    """What can be said about the clock now; the values are the words of logs, metrics and token records."""

    IN_SYNC = "in sync"
    SOON_OUT_OF_SYNC = "soon out of sync"
    OUT_OF_SYNC = "out of sync"
    UNKNOWN = "unknown"

    def __init__(self, label: str) -> None:
        self.label = label
        # Whether the clock is within the accuracy that tokens claim.
        self.holds = label in ("in sync", "soon out of sync")


class Leap(Enum):
    """Whether a leap second is announced (the leap indicator of RFC 5905 §7.3)."""

    NONE = 0
    INSERTED = 1
    DELETED = 2

    @property
    def seconds(self) -> int:
        """By how much the day is longer."""
        return {Leap.NONE: 0, Leap.INSERTED: 1, Leap.DELETED: -1}[self]


class Look(NamedTuple):
    """Both clocks at one moment. They cannot be read at once: they may be apart by up to `gap_ns` more or less."""

    realtime_ns: int
    monotonic_ns: int
    gap_ns: int

    @property
    def difference_ns(self) -> int:
        """Realtime − monotonic."""
        return self.realtime_ns - self.monotonic_ns


@dataclass(frozen=True, slots=True)
class Opinion:
    """UTC is the monotonic clock plus `reference_ns`, give or take `error_ns`, says a source.

    `leap_at_ns`: the midnight, in realtime, before which an announced leap second comes.
    """

    reference_ns: int
    error_ns: int
    leap: Leap = Leap.NONE
    leap_at_ns: int = 0


@dataclass(frozen=True, slots=True)
class Doubt:
    """A source cannot vouch for the clock: it is `OUT_OF_SYNC`, or the source does not know (`UNKNOWN`)."""

    state: ClockState
    problem: str


class Clock(Protocol):
    """Where instants come from; both methods return at once."""

    def realtime_ns(self) -> int:
        """Nanoseconds since 1970, UTC, as this machine believes."""

    def monotonic_ns(self) -> int:
        """Nanoseconds since some start; never set, never slewed, never going back."""


class Source(Protocol):
    """Somebody to ask about the clock."""

    @property
    def name(self) -> str:
        """Its word in the configuration."""

    def opinion(self, look: Look) -> Opinion | Doubt:
        """What it says now; returns at once, from what `watch` has gathered."""

    def forget(self) -> None:
        """A leap second has passed: UTC lies elsewhere on the monotonic clock now, so measure anew."""

    async def watch(self) -> None:
        """Gather, until cancelled."""


@dataclass(frozen=True, slots=True)
class ClockEvent:
    """Something that an auditor asks about later.

    `event`: `sync`, `warning`, `loss`, `step`, `leap second`, `measured`. `offset_ns`: how far the clock is ahead of
    UTC, or how far it was stepped; `bound_ns`: how far off it may be at most; None when nobody can tell.
    """

    at: datetime
    event: str
    state: ClockState
    offset_ns: int | None
    bound_ns: int | None
    detail: str
