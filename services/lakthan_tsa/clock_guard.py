"""The clock, and whether an instant that it gives may be signed.

Promises: the instant never goes back while this process lives, and comes with a bound that never claims more than is
known. `enforce` gives an instant only while the clock holds its accuracy; `warn` gives one all the same (for
demonstrations: a laptop without NTP), loudly. Whatever happens to the clock is a line of the log and an event for the
auditors.

How it decides. Every half second `check` asks the sources; all of them must vouch for the clock, and for the same
time. The verdict expires by itself, so that a check that no longer runs stops the tokens too. A verdict gets worse at
once; it gets better only when everything has been *in sync* for `recovery`. *Soon out of sync* still holds the
accuracy, but no longer `warn_at`: a clock comes back from a loss only below that.

Between two checks every reading compares the wall clock with the monotonic one, which nobody sets: what it moved is
added to the bound, and a step of more than a tenth of the accuracy is a loss, at that very reading.

Lives by: ETSI EN 319 421 clauses 7.7.1 and 7.7.2 (no token while the clock is not within its declared accuracy; drift
and steps are detected; leap seconds), RFC 3161 §2.4.2 (timeNotAvailable).

Trusted: the sources, each as far as its module says, and the raw oscillator within 500 ppm.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, NamedTuple

from lakthan.errors import ConfigError, TimeNotAvailable
from lakthan.telemetry.logs import log
from lakthan_tsa.clock.kernel import KernelClock
from lakthan_tsa.clock.leap import LeapSecond, Phase
from lakthan_tsa.clock.values import (
    SECOND_NS,
    ClockEvent,
    ClockState,
    Doubt,
    Look,
    Opinion,
    duration_of,
    instant_of,
    nanoseconds_of,
    wander_ns,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from lakthan_tsa.clock.values import Clock, Source

__all__ = ["ClockGuard", "ClockReading", "ClockState", "KernelClock"]

_VERDICT_LIFETIME_NS = 900_000_000
_CHECK_SECONDS = 0.5
_LOOKS = 3
_NARROW_NS = 1_000_000  # a process that was paused between reading the two clocks looks again
_MEASURED_EVERY_NS = 3600 * SECOND_NS
_LOUD_EVERY_NS = 60 * SECOND_NS
_RECOVERY = timedelta(seconds=10)
_LEAP = "a leap second passes"
_DRIFTED = "the clock may be further off than the accuracy of tokens"


class ClockReading(NamedTuple):
    """An instant that may be stamped, in whole milliseconds, and how the clock stood.

    `bound`: how far off it may be at most; None when nobody can tell.
    """

    gen_time: datetime
    state: ClockState
    bound: timedelta | None


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What a check found. `offset_ns`: how far the clock is ahead of UTC; `bound_ns`: how far off at most."""

    state: ClockState
    problem: str
    offset_ns: int | None = None
    bound_ns: int | None = None
    at_ns: int = 0


_NOT_YET = _Verdict(ClockState.UNKNOWN, "the clock has not been checked yet")


class ClockGuard:
    """Decides about every instant. `accuracy` is what tokens claim, which the bound must never exceed.

    `sources` must all vouch; `warn_at` is half of the accuracy unless given; `leap_second` as in `ClockConfig`;
    `note` hears of every event. Raises `ConfigError` when these do not fit together.
    """

    def __init__(
        self,
        clock: Clock,
        sources: Sequence[Source],
        *,
        accuracy: timedelta,
        mode: Literal["enforce", "warn"] = "enforce",
        warn_at: timedelta | None = None,
        recovery: timedelta = _RECOVERY,
        leap_second: Literal["none", "pause", "stop"] = "pause",
        note: Callable[[ClockEvent], None] | None = None,
    ) -> None:
        if not sources:
            raise ConfigError("the clock needs at least one source, such as kernel")
        self._clock = clock
        self.sources = tuple(sources)
        self._accuracy = accuracy
        self._accuracy_ns = nanoseconds_of(accuracy)
        self._warn_ns = self._accuracy_ns // 2 if warn_at is None else nanoseconds_of(warn_at)
        if not 0 <= self._warn_ns <= self._accuracy_ns:
            raise ConfigError("warn_at of the clock must not be longer than the accuracy of tokens")
        self._enforce = mode == "enforce"
        self._recovery_ns = nanoseconds_of(recovery)
        self._policy = leap_second
        self._note = note
        # Far above what slewing or a pause can look like, far below what would matter.
        self._tolerance_ns = self._accuracy_ns // 10
        first = self._look_closely()
        self._difference_ns = first.difference_ns  # realtime − monotonic, as it was expected to stay
        self._checked_ns = first.monotonic_ns
        self._good_since_ns: int | None = None
        self._leap = LeapSecond()
        self._stopped = False
        # At the start nothing was lost yet, so the first time that all vouch is enough.
        self._lost = self._lost_before_pause = False
        self._measured_ns = first.monotonic_ns
        self._loud_ns = 0
        self._last_ms = 0
        self._last_gen_time = instant_of(0)
        self._verdict = _NOT_YET
        self.jumps = 0

    # --- what is asked by others ---------------------------------------------------------------------------------

    @property
    def state(self) -> ClockState:
        """The state now; unknown when the last verdict has expired."""
        return self._current(self._clock.monotonic_ns()).state

    @property
    def bound(self) -> timedelta | None:
        """How far off the clock may be at most, as last checked; None when nobody can tell."""
        bound_ns = self._current(self._clock.monotonic_ns()).bound_ns
        return None if bound_ns is None else duration_of(bound_ns)

    @property
    def offset(self) -> timedelta | None:
        """How far the clock is ahead of UTC, as last checked; None when nobody can tell."""
        offset_ns = self._current(self._clock.monotonic_ns()).offset_ns
        return None if offset_ns is None else timedelta(microseconds=offset_ns / 1000)

    def read(self, accuracy: timedelta | None = None) -> ClockReading:
        """The instant to stamp now in a token that claims `accuracy` (the guard's own unless given).

        Raises `TimeNotAvailable`.
        """
        look = self._look()
        verdict = self._current(look.monotonic_ns)
        state = verdict.state
        if self._enforce and not state.holds:
            raise TimeNotAvailable(verdict.problem)
        now_ms = look.realtime_ns // 1_000_000
        if now_ms < self._last_ms:
            # After a step back, the same millisecond again is still true within the accuracy; an older one is not.
            if (self._last_ms - now_ms) * 1_000_000 > self._tolerance_ns:
                raise TimeNotAvailable("the clock was set back behind tokens that have been issued")
            now_ms = self._last_ms
        bound = None
        if verdict.bound_ns is not None:
            # What the clock moved since the check, what the oscillator may have, and what rounding takes.
            moved_ns = abs(look.difference_ns - self._difference_ns) + look.gap_ns
            aged_ns = wander_ns(look.monotonic_ns - verdict.at_ns)
            bound_ns = verdict.bound_ns + moved_ns + aged_ns + abs(now_ms * 1_000_000 - look.realtime_ns)
            bound = duration_of(bound_ns)
            if bound > (self._accuracy if accuracy is None else accuracy):
                if self._enforce:
                    raise TimeNotAvailable(_DRIFTED)
                state = ClockState.OUT_OF_SYNC
        if now_ms != self._last_ms:
            self._last_ms = now_ms
            self._last_gen_time = instant_of(now_ms * 1_000_000)
        return ClockReading(self._last_gen_time, state, bound)

    async def watch(self) -> None:
        """Keep the sources measuring, and check twice a second, until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for source in self.sources:
                    group.create_task(source.watch(), name=f"clock source {source.name}")
                while True:
                    self.check()
                    await asyncio.sleep(_CHECK_SECONDS)
        except Exception:
            log.exception("a defect: the clock is no longer watched, so nothing more is stamped; start again")
            raise

    # --- looking -------------------------------------------------------------------------------------------------

    def _look_once(self) -> Look:
        before_ns = self._clock.monotonic_ns()
        realtime_ns = self._clock.realtime_ns()
        after_ns = self._clock.monotonic_ns()
        return Look(realtime_ns, (before_ns + after_ns) // 2, (after_ns - before_ns + 1) // 2)

    def _look_closely(self) -> Look:
        look = self._look_once()
        for _ in range(_LOOKS - 1):
            if look.gap_ns <= _NARROW_NS:
                break
            look = min(look, self._look_once(), key=lambda each: each.gap_ns)
        return look

    def _look(self) -> Look:
        """Both clocks, and whether they are where they were expected."""
        look = self._look_closely()
        step_ns = look.difference_ns - self._difference_ns
        if abs(step_ns) > self._tolerance_ns + look.gap_ns:
            self._stepped(step_ns, look)
        return look

    def _stepped(self, step_ns: int, look: Look) -> None:
        self._difference_ns += step_ns
        expected_ns = self._leap.expected_step_ns
        if expected_ns and abs(step_ns - expected_ns) <= self._tolerance_ns + look.gap_ns:
            self._leap.stepped = True
            for source in self.sources:
                source.forget()
            midnight = instant_of(self._leap.at_ns).isoformat()
            self._event("leap second", look, f"{self._leap.leap.name.lower()} before {midnight}", step_ns)
            return
        self.jumps += 1
        self._good_since_ns = None
        self._event("step", look, f"the clock was stepped by {step_ns / SECOND_NS:+.3f} s", step_ns)
        self._become(
            _Verdict(ClockState.OUT_OF_SYNC, "the clock was stepped a moment ago", at_ns=look.monotonic_ns), look
        )

    # --- deciding ------------------------------------------------------------------------------------------------

    def _current(self, monotonic_ns: int) -> _Verdict:
        """The verdict, unless it has expired."""
        age_ns = monotonic_ns - self._verdict.at_ns
        if self._verdict is _NOT_YET or age_ns <= _VERDICT_LIFETIME_NS:
            return self._verdict
        return _Verdict(
            ClockState.UNKNOWN, f"the clock has not been checked for {age_ns / SECOND_NS:.1f} s", at_ns=monotonic_ns
        )

    def check(self) -> None:
        """Ask the sources and decide, now."""
        look = self._look()
        late_ns = look.monotonic_ns - self._verdict.at_ns
        if self._verdict is not _NOT_YET and late_ns > _VERDICT_LIFETIME_NS:
            log.warning("the clock was not checked in time", seconds=late_ns / SECOND_NS)
        opinions = [(source.name, source.opinion(look)) for source in self.sources]
        if self._policy != "none":
            self._leap.heard((said for _, said in opinions if isinstance(said, Opinion)), look)
        phase = self._leap.phase(look)
        if phase is Phase.PAUSE:
            self._pause(look)
        else:
            if phase is Phase.OVER:
                self._after_pause(look)
            self._settle(self._judge(opinions, look), look)
        self._follow(look)
        self._speak(look)

    def _judge(self, opinions: Sequence[tuple[str, Opinion | Doubt]], look: Look) -> _Verdict:
        """What the sources say together, without any regard to what was before."""
        doubts = [said for _, said in opinions if isinstance(said, Doubt)]
        if doubts:
            unknown = all(doubt.state is ClockState.UNKNOWN for doubt in doubts)
            state = ClockState.UNKNOWN if unknown else ClockState.OUT_OF_SYNC
            return _Verdict(state, "; ".join(doubt.problem for doubt in doubts), at_ns=look.monotonic_ns)
        vouching = [(name, said) for name, said in opinions if isinstance(said, Opinion)]
        # The one who knows best says how far off the clock is; the bound is that of who knows least.
        best = min((said for _, said in vouching), key=lambda said: said.error_ns)
        offset_ns = look.difference_ns - best.reference_ns
        bound_ns = max(abs(look.difference_ns - said.reference_ns) + said.error_ns for _, said in vouching)
        bound_ns += look.gap_ns
        lowest_ns = min(said.reference_ns + said.error_ns for _, said in vouching)
        highest_ns = max(said.reference_ns - said.error_ns for _, said in vouching)
        state, problem = ClockState.IN_SYNC, ""
        if highest_ns > lowest_ns + 2 * look.gap_ns:
            names = ", ".join(name for name, _ in vouching)
            state, problem = ClockState.OUT_OF_SYNC, f"the sources of the clock contradict each other: {names}"
        elif bound_ns > self._accuracy_ns:
            state, problem = ClockState.OUT_OF_SYNC, _DRIFTED
        elif bound_ns > self._warn_ns:
            state, problem = ClockState.SOON_OUT_OF_SYNC, "the clock may be further off than warn_at"
        return _Verdict(state, problem, offset_ns, bound_ns, look.monotonic_ns)

    def _settle(self, found: _Verdict, look: Look) -> None:
        """Worse at once, better only after a while."""
        if found.state is not ClockState.IN_SYNC:
            self._good_since_ns = None
        elif self._good_since_ns is None:
            self._good_since_ns = look.monotonic_ns
        before = self._verdict.state
        if self._stopped:
            found = _instead(found, ClockState.OUT_OF_SYNC, "stopped after a leap second; look, then start again")
        elif found.state.holds and before is not ClockState.IN_SYNC and (self._lost or before.holds):
            since_ns = self._good_since_ns
            if since_ns is None or look.monotonic_ns - since_ns < self._recovery_ns:
                back = (
                    "the clock is not in sync again" if since_ns is None else "the clock is in sync, but not for long"
                )
                found = _instead(found, before, found.problem or back if before.holds else back)
        self._become(found, look)

    def _pause(self, look: Look) -> None:
        if self._verdict.problem != _LEAP:
            self._lost_before_pause = self._lost
        self._become(_Verdict(ClockState.OUT_OF_SYNC, _LEAP, at_ns=look.monotonic_ns), look)

    def _after_pause(self, look: Look) -> None:
        if not self._leap.stepped:
            self._event("leap second", look, "announced, but the clock was not stepped", 0)
        self._stopped = self._policy == "stop"
        self._lost = self._lost_before_pause  # a pause as announced loses nothing, so there is nothing to recover

    def _become(self, verdict: _Verdict, look: Look) -> None:
        before, self._verdict = self._verdict, verdict
        if verdict.state is before.state and verdict.problem == before.problem:
            return
        self._loud_ns = look.monotonic_ns
        say = log.info if verdict.state is ClockState.IN_SYNC else log.warning
        say(
            "clock",
            state=verdict.state.label,
            problem=verdict.problem or None,
            refusing=self._enforce and not verdict.state.holds,
            stream="audit",
            **_seconds(offset=verdict.offset_ns, bound=verdict.bound_ns),
        )
        if verdict.state.holds:
            self._lost = False
            if verdict.state is not before.state:
                self._measured_ns = look.monotonic_ns
                self._event("sync" if verdict.state is ClockState.IN_SYNC else "warning", look, verdict.problem)
        elif not self._lost and (before.state.holds or verdict.state is ClockState.OUT_OF_SYNC):
            self._lost = True
            self._event("loss", look, verdict.problem)

    def _follow(self, look: Look) -> None:
        """The two clocks may drift apart as far as the oscillator may wander, and no step hides in that."""
        allowed_ns = wander_ns(look.monotonic_ns - self._checked_ns)
        self._checked_ns = look.monotonic_ns
        moved_ns = look.difference_ns - self._difference_ns
        self._difference_ns += max(-allowed_ns, min(allowed_ns, moved_ns))

    # --- telling -------------------------------------------------------------------------------------------------

    def _speak(self, look: Look) -> None:
        """What is said again and again: the measured figures every hour, and every minute what is wrong."""
        verdict = self._verdict
        if verdict.state.holds and look.monotonic_ns - self._measured_ns >= _MEASURED_EVERY_NS:
            self._measured_ns = look.monotonic_ns
            self._event("measured", look, ", ".join(source.name for source in self.sources))
        if not verdict.state.holds and look.monotonic_ns - self._loud_ns >= _LOUD_EVERY_NS:
            self._loud_ns = look.monotonic_ns
            what = "no tokens: the clock cannot back them" if self._enforce else "tokens go out with a doubtful clock"
            log.warning(what, state=verdict.state.label, problem=verdict.problem, stream="audit")

    def _event(self, event: str, look: Look, detail: str, step_ns: int | None = None) -> None:
        verdict = self._verdict
        if step_ns is not None:
            log.error(event, detail=detail, seconds=step_ns / SECOND_NS, stream="audit")
        if self._note is not None:
            offset_ns = verdict.offset_ns if step_ns is None else step_ns
            at = instant_of(look.realtime_ns)
            self._note(ClockEvent(at, event, verdict.state, offset_ns, verdict.bound_ns, detail))


def _seconds(**nanoseconds: int | None) -> dict[str, float]:
    return {f"{name}_seconds": each / SECOND_NS for name, each in nanoseconds.items() if each is not None}


def _instead(found: _Verdict, state: ClockState, problem: str) -> _Verdict:
    return _Verdict(state, problem, found.offset_ns, found.bound_ns, found.at_ns)
