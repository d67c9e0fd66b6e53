"""When an instant may be stamped. The clock here is a script, because nobody may step the real one for a test; the real
one is read once, at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

import pytest

from lakthan.errors import TimeNotAvailable
from lakthan_tsa.clock_guard import ClockGuard, ClockState, KernelClock, KernelStatus

SECOND = 1_000_000_000
GOOD = KernelStatus(synchronised=True, max_error=timedelta(milliseconds=20))


@dataclass
class ScriptedClock:
    """A clock that a test sets."""

    realtime: int = 1_800_000_000 * SECOND
    monotonic: int = 5 * SECOND
    said: KernelStatus | None = GOOD
    pauses: list[int] = field(default_factory=list)
    asked: int = 0

    def realtime_ns(self) -> int:
        """See `Clock`."""
        return self.realtime

    def monotonic_ns(self) -> int:
        """See `Clock`. A pause makes it later than the realtime that was read just before."""
        return self.monotonic + (self.pauses.pop() if self.pauses else 0)

    def status(self) -> KernelStatus | None:
        """See `Clock`."""
        self.asked += 1
        return self.said

    def pass_(self, seconds: float) -> None:
        """Time goes by."""
        self.realtime += int(seconds * SECOND)
        self.monotonic += int(seconds * SECOND)


def guard_of(clock: ScriptedClock, mode: Literal["enforce", "warn"] = "enforce") -> ClockGuard:
    """A guard that claims one second."""
    return ClockGuard(clock, accuracy=timedelta(seconds=1), mode=mode)


def test_in_sync() -> None:
    """A synchronised clock gives instants in whole milliseconds, with the bound that the kernel knows."""
    clock = ScriptedClock()
    guard = guard_of(clock)
    clock.pass_(0.0015)
    reading = guard.read()
    assert reading.gen_time == datetime.fromtimestamp(1_800_000_000, UTC) + timedelta(milliseconds=1)
    assert reading.state is ClockState.IN_SYNC
    assert reading.bound == timedelta(milliseconds=20)


@pytest.mark.parametrize(
    ("said", "state"),
    [
        (None, ClockState.UNKNOWN),
        (KernelStatus(synchronised=False, max_error=timedelta(seconds=16)), ClockState.OUT_OF_SYNC),
        (KernelStatus(synchronised=True, max_error=timedelta(seconds=1, microseconds=1)), ClockState.OUT_OF_SYNC),
    ],
)
def test_not_in_sync(said: KernelStatus | None, state: ClockState) -> None:
    """A clock that is not synchronised, may be further off than tokens claim, or cannot say, gives nothing when the
    guard enforces; when it only warns the reading says how the clock stood.
    """
    with pytest.raises(TimeNotAvailable):
        guard_of(ScriptedClock(said=said)).read()
    assert guard_of(ScriptedClock(said=said), "warn").read().state is state


def test_loss_is_noticed_and_ends() -> None:
    """What the kernel says is asked again after half a second: loss stops tokens, recovery brings them back."""
    clock = ScriptedClock()
    guard = guard_of(clock)
    guard.read()
    clock.said = None
    clock.pass_(0.4)
    guard.read()
    assert clock.asked == 1
    clock.pass_(0.2)
    with pytest.raises(TimeNotAvailable):
        guard.read()
    clock.said = GOOD
    clock.pass_(0.6)
    assert guard.read().state is ClockState.IN_SYNC


@pytest.mark.parametrize("step", [0.2, 3600.0, -0.2, -3600.0])
def test_jump(step: float) -> None:
    """When the clock is set, by whomever and however little above a tenth of the accuracy, no token is stamped for ten
    seconds, although the kernel calls the clock synchronised.
    """
    clock = ScriptedClock()
    guard = guard_of(clock)
    guard.read()
    clock.realtime += int(step * SECOND)
    with pytest.raises(TimeNotAvailable):
        guard.read()
    assert guard.jumps == 1
    clock.pass_(9.9)
    with pytest.raises(TimeNotAvailable):
        guard.read()
    clock.pass_(7200)
    assert guard.read().state is ClockState.IN_SYNC
    assert guard.jumps == 1


def test_jump_between_requests() -> None:
    """The periodic look finds a jump that happens while nobody asks for a token."""
    clock = ScriptedClock()
    guard = guard_of(clock)
    clock.realtime += 2 * SECOND
    guard.check()
    assert guard.jumps == 1
    assert guard.state is ClockState.OUT_OF_SYNC


def test_a_pause_is_no_jump() -> None:
    """A process that is paused between reading the two clocks looks again before it calls that a jump."""
    clock = ScriptedClock()
    guard = guard_of(clock)
    clock.pauses = [2 * SECOND]
    assert guard.read().state is ClockState.IN_SYNC
    assert guard.jumps == 0


@pytest.mark.parametrize("mode", ["enforce", "warn"])
def test_gen_time_never_goes_back(mode: Literal["enforce", "warn"]) -> None:
    """After a small step back the same instant is given again; after a large one none, in either mode, until the clock
    has passed the last token.
    """
    clock = ScriptedClock()
    guard = guard_of(clock, mode)
    last = guard.read().gen_time
    clock.realtime -= SECOND // 20
    assert guard.read().gen_time == last
    clock.realtime -= 60 * SECOND
    with pytest.raises(TimeNotAvailable):
        guard.read()
    clock.pass_(30)
    with pytest.raises(TimeNotAvailable, match="set back"):
        guard.read()
    clock.pass_(40)
    assert guard.read().gen_time > last


def test_real_clock() -> None:
    """The kernel of this machine answers adjtimex, and what the guard reads is now."""
    status = KernelClock().status()
    assert status is not None
    assert timedelta(0) <= status.max_error <= timedelta(seconds=16)
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    reading = ClockGuard(KernelClock(), accuracy=timedelta(seconds=1), mode="warn").read()
    assert before <= reading.gen_time <= datetime.now(UTC)
    assert reading.state is not ClockState.UNKNOWN
