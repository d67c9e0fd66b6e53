"""The clock, and whether an instant that it gives may be signed.

Promises: the clock is read once per request; the instant never goes back while this process lives; its state is one of
three words, and a refusal says which. `enforce` gives an instant only while the clock is `in sync`; `warn` gives one
all the same (for demonstrations: a laptop without NTP), logs each change of state once, and counts.

What is looked at today: what the kernel knows from whoever disciplines it (adjtimex(2): synchronised or not, and
how far off it may be), and whether the wall clock and the monotonic clock drift apart, which only a step does. Not yet:
several time sources that must agree.

Lives by: ETSI EN 319 421 clauses 7.7.1 and 7.7.2 (no token while the clock is not within its declared accuracy; steps
are detected), RFC 3161 §2.4.2 (timeNotAvailable).

Trusted: the kernel, and whoever may set its clock or tell it that it is synchronised.
"""

from __future__ import annotations

import asyncio
import ctypes
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Literal, Protocol

from lakthan.errors import TimeNotAvailable
from lakthan.telemetry.logs import log

if TYPE_CHECKING:
    from collections.abc import Callable

_STATUS_LIFETIME_NS = 500_000_000
_WATCH_SECONDS = 0.5
_LOOKS = 3  # a process that was paused between reading the two clocks sees a gap, which is gone at a second look
_RECOVERY_NS = 10_000_000_000
_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_STA_UNSYNC = 0x0040
_STA_CLOCKERR = 0x1000


class ClockState(Enum):
    """What can be said about the clock now; the values are the words of logs, metrics and token records."""

    IN_SYNC = "in sync"
    OUT_OF_SYNC = "out of sync"
    UNKNOWN = "unknown"

    @property
    def label(self) -> str:
        """The word."""
        return self.value


@dataclass(frozen=True, slots=True)
class ClockReading:
    """An instant that may be stamped, in whole milliseconds, and how the clock stood.

    `bound`: how far off it may be at most; None when nobody can tell.
    """

    gen_time: datetime
    state: ClockState
    bound: timedelta | None


@dataclass(frozen=True, slots=True)
class KernelStatus:
    """What the kernel says about its clock. `max_error` grows by itself until the clock is compared again."""

    synchronised: bool
    max_error: timedelta


class Clock(Protocol):
    """Where instants come from; all three methods return at once."""

    def realtime_ns(self) -> int:
        """Nanoseconds since 1970, UTC."""

    def monotonic_ns(self) -> int:
        """Nanoseconds since some start; never set, never going back."""

    def status(self) -> KernelStatus | None:
        """None when the system does not tell."""


class _Timex(ctypes.Structure):
    """`struct timex` of adjtimex(2)."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("constant", ctypes.c_long),
        ("precision", ctypes.c_long),
        ("tolerance", ctypes.c_long),
        ("time", ctypes.c_long * 2),
        ("tick", ctypes.c_long),
        ("ppsfreq", ctypes.c_long),
        ("jitter", ctypes.c_long),
        ("shift", ctypes.c_int),
        ("stabil", ctypes.c_long),
        ("jitcnt", ctypes.c_long),
        ("calcnt", ctypes.c_long),
        ("errcnt", ctypes.c_long),
        ("stbcnt", ctypes.c_long),
        ("tai", ctypes.c_int),
        ("reserved", ctypes.c_int * 11),
    )


class KernelClock:
    """The clock of this machine."""

    realtime_ns = staticmethod(time.time_ns)
    monotonic_ns = staticmethod(time.monotonic_ns)

    def __init__(self) -> None:
        # Systems without adjtimex give None; a sandbox may refuse the call, which shows when it is made.
        self._adjtimex = getattr(ctypes.CDLL(None), "adjtimex", None)

    def status(self) -> KernelStatus | None:
        """See `Clock.status`."""
        timex = _Timex(modes=0)  # 0: only read
        if self._adjtimex is None or self._adjtimex(ctypes.byref(timex)) < 0:
            return None
        synchronised = not timex.status & (_STA_UNSYNC | _STA_CLOCKERR)
        return KernelStatus(synchronised, timedelta(microseconds=timex.maxerror))


class ClockGuard:
    """Decides about every instant. `accuracy` is what tokens claim: a clock that may be further off is out of sync.

    `state`, `bound` and the counter `jumps` are for metrics.
    """

    def __init__(self, clock: Clock, *, accuracy: timedelta, mode: Literal["enforce", "warn"]) -> None:
        self._clock = clock
        self._accuracy = accuracy
        self._enforce = mode == "enforce"
        # A tenth of what is claimed: far above what slewing or a pause can look like, far below what would matter.
        self._tolerance_ns = accuracy // timedelta(microseconds=1) * 100
        self._offset_ns = clock.realtime_ns() - clock.monotonic_ns()
        self._jumped_ns: int | None = None
        self._last_ms = 0
        self._checked_ns: int | None = None
        self._problem = ""
        self.state = ClockState.UNKNOWN
        self.bound: timedelta | None = None
        self.jumps = 0

    def read(self) -> ClockReading:
        """The instant to stamp now. Raises `TimeNotAvailable`."""
        realtime_ns, monotonic_ns = self._look()
        if self._checked_ns is None or monotonic_ns - self._checked_ns > _STATUS_LIFETIME_NS:
            self._check(monotonic_ns)
        if self._enforce and self.state is not ClockState.IN_SYNC:
            raise TimeNotAvailable(self._problem)
        now_ms = realtime_ns // 1_000_000
        if now_ms < self._last_ms:
            # After a step back, the same millisecond again is still true within the accuracy; an older one is not.
            if (self._last_ms - now_ms) * 1_000_000 > self._tolerance_ns:
                raise TimeNotAvailable("the clock was set back behind tokens that have been issued")
            now_ms = self._last_ms
        self._last_ms = now_ms
        return ClockReading(_UNIX_EPOCH + timedelta(milliseconds=now_ms), self.state, self.bound)

    async def watch(self) -> None:
        """Look at the clock twice a second until cancelled, so that a jump is noticed when nobody asks for a token."""
        while True:
            self.check()
            await asyncio.sleep(_WATCH_SECONDS)

    def check(self) -> None:
        """Look for a jump and ask the kernel, now."""
        _, monotonic_ns = self._look()
        self._check(monotonic_ns)

    def _look(self, looks: int = _LOOKS) -> tuple[int, int]:
        """Both clocks, realtime and monotonic; a jump between the last look and this one is noted."""
        realtime_ns, monotonic_ns = self._clock.realtime_ns(), self._clock.monotonic_ns()
        step_ns = realtime_ns - monotonic_ns - self._offset_ns
        if abs(step_ns) > self._tolerance_ns:
            if looks > 1:
                return self._look(looks - 1)
            self._jumped(step_ns, monotonic_ns)
        return realtime_ns, monotonic_ns

    def _jumped(self, step_ns: int, monotonic_ns: int) -> None:
        self.jumps += 1
        self._offset_ns += step_ns
        self._jumped_ns = monotonic_ns
        self._checked_ns = None
        log.error("the clock jumped", seconds=step_ns / 1e9)

    def _check(self, monotonic_ns: int) -> None:
        self._checked_ns = monotonic_ns
        status = self._clock.status()
        state, self.bound, problem = self._judge(status, monotonic_ns)
        if problem != self._problem or state is not self.state:
            self.state, self._problem = state, problem
            say: Callable[..., object] = log.info if state is ClockState.IN_SYNC else log.warning
            say("clock", state=state.label, problem=problem or None, refusing=self._enforce and bool(problem))

    def _judge(self, status: KernelStatus | None, monotonic_ns: int) -> tuple[ClockState, timedelta | None, str]:
        if status is None:
            return ClockState.UNKNOWN, None, "the system does not tell whether its clock is synchronised"
        if not status.synchronised:
            return ClockState.OUT_OF_SYNC, None, "the clock is not synchronised; start chrony or another NTP daemon"
        if status.max_error > self._accuracy:
            return ClockState.OUT_OF_SYNC, status.max_error, "the clock may be further off than the accuracy of tokens"
        if self._jumped_ns is not None and monotonic_ns - self._jumped_ns < _RECOVERY_NS:
            return ClockState.OUT_OF_SYNC, None, "the clock jumped a moment ago"
        return ClockState.IN_SYNC, status.max_error, ""
