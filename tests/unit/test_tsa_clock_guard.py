"""When an instant may be stamped. The clock here is a script, because nobody may step the real one for a test; the real
one is read once, at the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from structlog.testing import capture_logs

from lakthan.config import ClockConfig
from lakthan.errors import ConfigError, TimeNotAvailable
from lakthan_tsa.clock.kernel import KernelClock, KernelSource, KernelStatus, kernel_status
from lakthan_tsa.clock.values import ClockEvent, ClockState, Doubt, Leap, Look, Opinion
from lakthan_tsa.clock_guard import ClockGuard
from lakthan_tsa.clock_opening import sources_of

SECOND = 1_000_000_000
MILLISECOND = 1_000_000
UNKNOWN = Doubt(ClockState.UNKNOWN, "nobody knows")
OUT = Doubt(ClockState.OUT_OF_SYNC, "not synchronised")


@dataclass
class ScriptedClock:
    """A clock that a test sets."""

    realtime: int = 1_800_000_000 * SECOND
    monotonic: int = 5 * SECOND
    pauses: list[int] = field(default_factory=list)

    def realtime_ns(self) -> int:
        """See `Clock`."""
        return self.realtime

    def monotonic_ns(self) -> int:
        """See `Clock`. A process that is paused between two readings finds it later."""
        if self.pauses:
            self.pass_(self.pauses.pop(0) / SECOND)
        return self.monotonic

    def pass_(self, seconds: float) -> None:
        """Time goes by."""
        self.realtime += round(seconds * SECOND)
        self.monotonic += round(seconds * SECOND)

    def step(self, seconds: float) -> None:
        """Somebody sets the wall clock."""
        self.realtime += round(seconds * SECOND)


@dataclass
class ScriptedSource:
    """A source that knows UTC: at the start it is what the clock shows."""

    reference: int
    error: int = 20 * MILLISECOND
    doubt: Doubt | None = None
    leap: Leap = Leap.NONE
    leap_at: int = 0
    forgotten: int = 0
    name: str = "script"

    def opinion(self, _look: Look) -> Opinion | Doubt:
        """See `Source`."""
        return self.doubt or Opinion(self.reference, self.error, self.leap, self.leap_at)

    def forget(self) -> None:
        """See `Source`."""
        self.forgotten += 1

    async def watch(self) -> None:
        """See `Source`."""
        await asyncio.Event().wait()


@dataclass
class Scene:
    """A guard that claims one second, everything around it, and the events that it told."""

    guard: ClockGuard
    clock: ScriptedClock
    source: ScriptedSource
    events: list[ClockEvent]

    def pass_(self, seconds: float) -> None:
        """Time goes by, with a check each half second."""
        for _ in range(round(seconds * 2)):
            self.clock.pass_(0.5)
            self.guard.check()

    def told(self) -> list[str]:
        """What happened."""
        return [event.event for event in self.events]


def scene(*, realtime: int = 1_800_000_000 * SECOND, doubt: Doubt | None = None, **settings: object) -> Scene:
    """A guard that has been checked once."""
    clock = ScriptedClock(realtime)
    source = ScriptedSource(clock.realtime - clock.monotonic, doubt=doubt)
    events: list[ClockEvent] = []
    guard = ClockGuard(clock, [source], note=events.append, **{"accuracy": timedelta(seconds=1), **settings})  # type: ignore[arg-type]
    guard.check()
    return Scene(guard, clock, source, events)


def test_in_sync() -> None:
    """A clock that is vouched for gives instants in whole milliseconds; the bound has the source's, what the oscillator
    may have wandered since, and what rounding took.

    TSA-C2.
    """
    at = scene()
    at.clock.pass_(0.0015)
    reading = at.guard.read()
    assert reading.gen_time == datetime.fromtimestamp(1_800_000_000, UTC) + timedelta(milliseconds=1)
    assert reading.state is ClockState.IN_SYNC
    assert reading.bound is not None
    assert timedelta(milliseconds=20.5) < reading.bound < timedelta(milliseconds=20.6)
    assert at.told() == ["sync"]


def test_nothing_before_the_first_check() -> None:
    """A guard that never asked anybody gives nothing. TSA-C4."""
    clock = ScriptedClock()
    guard = ClockGuard(clock, [ScriptedSource(0)], accuracy=timedelta(seconds=1))
    with pytest.raises(TimeNotAvailable, match="not been checked yet"):
        guard.read()


@pytest.mark.parametrize(
    ("change", "state"),
    [
        (lambda source: setattr(source, "doubt", UNKNOWN), ClockState.UNKNOWN),
        (lambda source: setattr(source, "doubt", OUT), ClockState.OUT_OF_SYNC),
        (lambda source: setattr(source, "error", SECOND + 1), ClockState.OUT_OF_SYNC),
        (lambda source: setattr(source, "reference", source.reference + SECOND), ClockState.OUT_OF_SYNC),
        (lambda source: setattr(source, "reference", source.reference - SECOND), ClockState.OUT_OF_SYNC),
    ],
)
def test_not_in_sync(change: Callable[[ScriptedSource], None], state: ClockState) -> None:
    """A clock that nobody vouches for, or that may be further off than tokens claim, gives nothing when the guard
    enforces; when it only warns the reading says how the clock stood.

    TSA-R8, TSA-C2, TSA-C4.
    """
    for mode in ("enforce", "warn"):
        at = scene(mode=mode)
        change(at.source)
        at.guard.check()
        assert at.guard.state is state
        if mode == "warn":
            assert at.guard.read().state is state
        else:
            with pytest.raises(TimeNotAvailable):
                at.guard.read()


def test_soon_out_of_sync() -> None:
    """Between half of the accuracy and all of it tokens go on, and auditors hear a warning."""
    at = scene()
    at.source.reference -= 600 * MILLISECOND
    at.guard.check()
    assert at.guard.read().state is ClockState.SOON_OUT_OF_SYNC
    assert at.guard.offset == timedelta(milliseconds=600)
    assert at.told() == ["sync", "warning"]


def test_the_verdict_expires() -> None:
    """When nobody checks any more, tokens stop within a second, whatever was said last. TSA-C4."""
    at = scene()
    at.clock.pass_(0.9)
    at.guard.read()
    at.clock.pass_(0.1)
    with pytest.raises(TimeNotAvailable, match="has not been checked for"):
        at.guard.read()
    assert at.guard.state is ClockState.UNKNOWN
    assert at.guard.bound is None
    at.guard.check()
    assert at.guard.read().state is ClockState.IN_SYNC


def test_recovery_has_hysteresis() -> None:
    """After a loss the clock must be in sync, not merely soon out of it, for ten seconds without a break. TSA-C7."""
    at = scene()
    at.source.doubt = UNKNOWN
    at.pass_(1)
    at.source.doubt = None
    at.source.error = 700 * MILLISECOND
    at.pass_(20)
    assert at.guard.state is ClockState.UNKNOWN
    at.source.error = 20 * MILLISECOND
    at.pass_(9)
    at.source.error = 600 * MILLISECOND
    at.pass_(0.5)
    at.source.error = 20 * MILLISECOND
    at.pass_(10)
    with pytest.raises(TimeNotAvailable, match="not for long"):
        at.guard.read()
    at.pass_(0.5)
    assert at.guard.read().state is ClockState.IN_SYNC
    assert at.told() == ["sync", "loss", "sync"]


def test_the_start_is_no_recovery() -> None:
    """Sources that need a moment to find out do not delay the first token by more than that moment."""
    at = scene(doubt=UNKNOWN)
    assert at.guard.state is ClockState.UNKNOWN
    at.source.doubt = None
    at.pass_(0.5)
    assert at.guard.read().state is ClockState.IN_SYNC
    assert at.told() == ["sync"]


@pytest.mark.parametrize("step", [0.2, 0.6, 2.0, 3600.0, -0.2, -0.6, -2.0, -3600.0])
def test_step(step: float) -> None:
    """When the clock is set, by whomever and however little above a tenth of the accuracy, the very next request gets
    no token, although the last verdict is still good. Tokens are back ten seconds after it was set right again.

    TSA-C3, TSA-C4.
    """
    at = scene()
    at.guard.read()
    at.clock.step(step)
    with pytest.raises(TimeNotAvailable, match="stepped"):
        at.guard.read()
    assert at.guard.jumps == 1
    assert at.told() == ["sync", "step", "loss"]
    assert at.events[1].offset_ns == round(step * SECOND)
    at.pass_(20)
    if abs(step) > 0.5:
        assert at.guard.state is ClockState.OUT_OF_SYNC
    at.clock.step(-step)
    at.pass_(10)
    with pytest.raises(TimeNotAvailable):
        at.guard.read()
    at.pass_(0.5)
    assert at.guard.read().state is ClockState.IN_SYNC
    assert at.guard.jumps == 2


def test_a_small_step_counts_in_the_bound() -> None:
    """What is too small to be called a step is at least added to what the next token says of its clock."""
    at = scene()
    at.clock.step(0.09)
    reading = at.guard.read()
    assert reading.bound is not None
    assert reading.bound >= timedelta(milliseconds=110)
    assert at.guard.jumps == 0


def test_many_small_steps() -> None:
    """Steps that are each too small to be noticed add up, because an oscillator wanders by 500 ppm and no more.

    TSA-C3.
    """
    at = scene()
    for _ in range(3):
        at.clock.step(0.04)
        at.guard.check()
    assert at.guard.jumps == 1


def test_wandering_is_no_step() -> None:
    """A clock whose frequency is corrected by 400 ppm all day long has not been stepped."""
    at = scene()
    for _ in range(2000):
        at.clock.pass_(0.5)
        at.clock.step(0.0002)
        at.source.reference += 200_000
        at.guard.check()
    assert at.guard.jumps == 0
    assert at.guard.read().state is ClockState.IN_SYNC


def test_a_profile_may_claim_more() -> None:
    """A reading for a finer claim than the clock can back is refused, while others get theirs. TSA-C2."""
    at = scene()
    at.guard.read(timedelta(milliseconds=30))
    with pytest.raises(TimeNotAvailable, match="further off"):
        at.guard.read(timedelta(milliseconds=20))
    at.guard.read()


def test_the_bound_counts_rounding() -> None:
    """A bound that just fits is refused as soon as the instant is rounded to its millisecond. TSA-T5."""
    at = scene(warn_at=timedelta(seconds=1))
    at.source.error = SECOND - 600_000
    at.guard.check()
    at.guard.read()
    at.clock.pass_(0.0006)
    with pytest.raises(TimeNotAvailable, match="further off"):
        at.guard.read()


def test_sources_must_agree() -> None:
    """Two sources that each vouch for the clock with a different time are both worth nothing; so is one that doubts."""
    clock = ScriptedClock()
    one = ScriptedSource(clock.realtime - clock.monotonic, name="one")
    other = ScriptedSource(one.reference, error=30 * MILLISECOND, name="other")
    guard = ClockGuard(clock, [one, other], accuracy=timedelta(seconds=1), recovery=timedelta(0))
    guard.check()
    bound = guard.read().bound
    assert bound is not None
    assert bound >= timedelta(milliseconds=30), "the bound is that of who knows least"
    other.reference += 60 * MILLISECOND
    guard.check()
    with pytest.raises(TimeNotAvailable, match="contradict each other: one, other"):
        guard.read()
    other.reference = one.reference
    other.doubt = UNKNOWN
    guard.check()
    with pytest.raises(TimeNotAvailable, match="nobody knows"):
        guard.read()


def test_a_pause_is_no_step() -> None:
    """A process that is paused between reading the two clocks looks again before it calls that a step."""
    at = scene()
    at.clock.pauses = [0, SECOND // 4]
    assert at.guard.read().state is ClockState.IN_SYNC
    assert at.guard.jumps == 0


@pytest.mark.parametrize("mode", ["enforce", "warn"])
def test_gen_time_never_goes_back(mode: str) -> None:
    """After a small step back the same instant is given again; after a large one none, in either mode, until the clock
    has passed the last token.

    TSA-C3.
    """
    at = scene(mode=mode)
    last = at.guard.read().gen_time
    at.clock.step(-0.05)
    again = at.guard.read()
    assert again.gen_time == last
    assert again.bound is not None
    assert again.bound >= timedelta(milliseconds=120), "moved by 50 ms, and stamped 50 ms late"
    at.clock.step(-60)
    for _ in range(2):
        with pytest.raises(TimeNotAvailable):
            at.guard.read()
        at.pass_(30)
    at.source.reference -= round(60.05 * SECOND)
    at.pass_(11)
    assert at.guard.read().gen_time > last


MIDNIGHT = int(datetime(2027, 1, 1, tzinfo=UTC).timestamp()) * SECOND


def stamped_around_midnight(at: Scene, *, leap_steps: bool = True) -> list[str]:
    """Ask for an instant ten times a second until 15 s after the leap second; gives, for each second of UTC in which
    anything was stamped, its clock time.
    """
    stepped = False
    seconds: dict[str, None] = {}
    for tick in range(250):
        at.clock.pass_(0.1)
        end = MIDNIGHT - (SECOND if at.source.leap is Leap.DELETED else 0)
        if not stepped and at.clock.realtime >= end:
            stepped = True
            if leap_steps:
                at.clock.step(-at.source.leap.seconds)
            at.source.reference -= at.source.leap.seconds * SECOND
        if tick % 5 == 0:
            at.guard.check()
        with suppress(TimeNotAvailable):
            seconds[at.guard.read().gen_time.strftime("%H:%M:%S")] = None
    return list(seconds)


@pytest.mark.parametrize("leap", [Leap.INSERTED, Leap.DELETED])
def test_leap_second_pauses(leap: Leap) -> None:
    """Nothing is stamped in the ambiguous seconds around an announced leap second; right after there are tokens again,
    because nothing was lost, and the exact time of the change is on record.

    TSA-R8, TSA-C5.
    """
    at = scene(realtime=MIDNIGHT - 10 * SECOND, leap_second="pause")
    at.source.leap, at.source.leap_at = leap, MIDNIGHT
    seconds = stamped_around_midnight(at)
    assert seconds[0] == "23:59:50"
    assert not {"23:59:58", "23:59:59", "00:00:00"} & set(seconds)
    assert "23:59:57" in seconds
    assert "00:00:01" in seconds
    assert at.guard.jumps == 0
    assert at.source.forgotten == 1
    assert at.told() == ["sync", "loss", "leap second", "sync"]
    event = at.events[2]
    assert event.detail == f"{leap.name.lower()} before 2027-01-01T00:00:00+00:00"
    assert event.offset_ns == -leap.seconds * SECOND
    assert abs(event.at - datetime(2027, 1, 1, tzinfo=UTC)) <= timedelta(seconds=1.1)


def test_leap_second_stops() -> None:
    """With `stop` nothing more is stamped until somebody starts the service again."""
    at = scene(realtime=MIDNIGHT - 10 * SECOND, leap_second="stop")
    at.source.leap, at.source.leap_at = Leap.INSERTED, MIDNIGHT
    assert stamped_around_midnight(at)[-1] == "23:59:57"
    at.source.leap = Leap.NONE
    at.pass_(100)
    with pytest.raises(TimeNotAvailable, match="start again"):
        at.guard.read()


def test_leap_second_as_a_step() -> None:
    """With `none` a leap second is a step like any other: lost, and back ten seconds later."""
    at = scene(realtime=MIDNIGHT - 10 * SECOND, leap_second="none")
    at.source.leap, at.source.leap_at = Leap.INSERTED, MIDNIGHT
    seconds = stamped_around_midnight(at)
    assert "23:59:59" in seconds
    assert not {"00:00:00", "00:00:05", "00:00:08"} & set(seconds)
    assert seconds[-1] == "00:00:14"
    assert at.told() == ["sync", "step", "loss", "sync"]


def test_a_clock_that_misses_its_leap_second() -> None:
    """When the sources leap and the clock does not, it is a second off afterwards: no tokens, and it is on record.

    TSA-C5.
    """
    at = scene(realtime=MIDNIGHT - 10 * SECOND)
    at.source.leap, at.source.leap_at = Leap.INSERTED, MIDNIGHT
    assert stamped_around_midnight(at, leap_steps=False)[-1] == "23:59:57"
    assert at.guard.state is ClockState.OUT_OF_SYNC
    assert at.events[2].detail == "announced, but the clock was not stepped"


def test_measured_every_hour() -> None:
    """A clock that stays in sync is on record every hour with its figures. TSA-C6."""
    at = scene()
    at.pass_(7300)
    assert at.told() == ["sync", "measured", "measured"]
    assert at.events[1].bound_ns == at.source.error


def test_settings_that_do_not_fit() -> None:
    """No source, or a warning beyond the accuracy, is a mistake of the configuration."""
    clock = ScriptedClock()
    with pytest.raises(ConfigError, match="source"):
        ClockGuard(clock, [], accuracy=timedelta(seconds=1))
    with pytest.raises(ConfigError, match="warn_at"):
        scene(warn_at=timedelta(seconds=2))


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (None, ClockState.UNKNOWN),
        (KernelStatus(synchronised=False, max_error_ns=0), ClockState.OUT_OF_SYNC),
        (KernelStatus(synchronised=True, max_error_ns=7, leap=Leap.INSERTED), None),
    ],
)
def test_kernel_source(status: KernelStatus | None, expected: ClockState | None) -> None:
    """The kernel vouches for its own clock within its maximal error, and announces a leap second for tonight."""
    said = KernelSource(lambda: status).opinion(Look(MIDNIGHT - SECOND, SECOND, 0))
    if expected is None:
        assert said == Opinion(MIDNIGHT - 2 * SECOND, 7, Leap.INSERTED, MIDNIGHT)
    else:
        assert isinstance(said, Doubt)
        assert said.state is expected


async def test_real_clock() -> None:
    """The kernel of this machine answers adjtimex, what the guard reads is now, and it keeps checking by itself."""
    status = kernel_status()
    assert status is not None
    assert 0 <= status.max_error_ns <= 16 * SECOND
    guard = ClockGuard(KernelClock(), [KernelSource()], accuracy=timedelta(seconds=1), mode="warn")
    watching = asyncio.create_task(guard.watch())
    await asyncio.sleep(0)
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    reading = guard.read()
    assert before <= reading.gen_time <= datetime.now(UTC)
    assert reading.state.label != "unknown"
    await asyncio.sleep(1.2)
    assert guard.state.label != "unknown"
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    await asyncio.sleep(1)
    assert guard.state.label == "unknown", "a dead monitor fails closed"


def test_warnings_are_loud() -> None:
    """In either mode a clock that is not right is said once a minute, besides every change; a good one is not."""
    for mode in ("enforce", "warn"):
        at = scene(mode=mode)
        at.pass_(300)
        at.source.doubt = OUT
        with capture_logs() as logs:
            at.pass_(299)
        lines = [(line["log_level"], line["event"]) for line in logs]
        said = "no tokens: the clock cannot back them" if mode == "enforce" else "tokens go out with a doubtful clock"
        assert lines == [("warning", "clock"), *[("warning", said)] * 4]


@dataclass
class BrokenSource(ScriptedSource):
    """A source with a defect."""

    async def watch(self) -> None:
        """See `Source`."""
        raise ZeroDivisionError


async def test_a_defect_of_a_source_stops_the_tokens() -> None:
    """When gathering fails in a way that nobody thought of, the log has it, and the last verdict runs out by itself."""
    clock = KernelClock()
    source = BrokenSource(clock.realtime_ns() - clock.monotonic_ns())
    guard = ClockGuard(clock, [source], accuracy=timedelta(seconds=1))
    with capture_logs() as logs, pytest.raises(ExceptionGroup):
        await guard.watch()
    assert "no longer watched" in logs[-1]["event"]
    await asyncio.sleep(1)
    with pytest.raises(TimeNotAvailable, match="has not been checked"):
        guard.read()


async def test_sources_of_the_configuration() -> None:
    """Each name of the configuration is the source of that name, once; servers that nobody asks are a mistake."""
    settings = ClockConfig(sources=("ntp", "kernel", "chrony", "ntp"), ntp_servers=("a", "b", "c"))
    assert [source.name for source in sources_of(settings, KernelClock())] == ["ntp", "kernel", "chrony"]
    with pytest.raises(ConfigError, match='add "ntp" to its sources'):
        sources_of(ClockConfig(ntp_servers=("a", "b", "c")), KernelClock())
    with pytest.raises(ConfigError, match="at least three"):
        sources_of(ClockConfig(sources=("ntp",)), KernelClock())
