"""What a round brings: findings for people, and figures for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from lakthan_cli.findings import Finding, Grade
from lakthan_cli.ocsp.extensions import moment
from lakthan_cli.probe.plan import Limits

_MOST_DETAILS = 8
_CLOCKS = "look at the clock there and at the one here (chronyc tracking, timedatectl): one of them is wrong"


@dataclass(slots=True)
class Outcome:
    """Of one round, or of a part of it. A place is a URL and a subject: an authority, or a policy.

    `answers`: URL and seconds of each answer. `skews`: how far their clock is ahead of ours, in seconds, by place and
    what said so. `ends`: notAfter of whoever signs, by place and certificate. `next_updates`: the earliest.
    """

    findings: list[Finding] = field(default_factory=list)
    answers: list[tuple[str, float]] = field(default_factory=list)
    skews: dict[tuple[str, str, str], float] = field(default_factory=dict)
    ends: dict[tuple[str, str, str], datetime] = field(default_factory=dict)
    next_updates: dict[tuple[str, str], datetime] = field(default_factory=dict)

    def add(self, other: Outcome) -> None:
        """Take in a part."""
        self.findings += other.findings
        self.answers += other.answers
        self.skews |= other.skews
        self.ends |= other.ends
        self.next_updates |= other.next_updates


@dataclass(frozen=True, slots=True)
class Report:
    """Where the findings about one place are written down. `now`: the time of the round."""

    url: str
    subject: str
    limits: Limits
    now: datetime
    outcome: Outcome = field(default_factory=Outcome)

    def ok(self, check: str, said: str) -> None:
        """In order."""
        self._write(check, Grade.OK, said, "", ())

    def warning(self, check: str, said: str, todo: str, details: Sequence[str] = ()) -> None:
        """Something that will fail soon, or hurts some clients."""
        self._write(check, Grade.WARNING, said, todo, details)

    def failure(self, check: str, said: str, todo: str, details: Sequence[str] = ()) -> None:
        """Something that is wrong for everybody, or would have somebody believe what is not so."""
        self._write(check, Grade.FAILURE, said, todo, details)

    def _write(self, check: str, grade: Grade, said: str, todo: str, details: Sequence[str]) -> None:
        rest = len(details) - _MOST_DETAILS
        shown = [*details[:_MOST_DETAILS], *([f"and {rest} more"] if rest > 0 else [])]
        self.outcome.findings.append(Finding(self.url, self.subject, check, grade, said, todo, tuple(shown)))

    def clock(self, skews: Mapping[str, float]) -> None:
        """Whether their clock and ours agree. `skews`: by what said so, in seconds; positive when theirs is ahead."""
        self.outcome.skews.update({(self.url, self.subject, what): value for what, value in skews.items()})
        said = ", ".join(f"{what} {seconds:+.1f} s" for what, seconds in skews.items()) or "nothing tells the time"
        worst = timedelta(seconds=max(map(abs, skews.values()), default=0.0))
        if worst > self.limits.skew_failure:
            self.failure("clock", said, _CLOCKS)
        elif worst > self.limits.skew_warning:
            self.warning("clock", said, _CLOCKS)
        else:
            self.ok("clock", said)

    def speed(self, seconds: Mapping[str, float]) -> None:
        """Whether the answers came in time. `seconds`: by how it was asked."""
        self.outcome.answers += [(self.url, each) for each in seconds.values()]
        way, slowest = max(seconds.items(), key=lambda each: each[1])
        said = f"{len(seconds)} answers, the slowest {slowest * 1000:.0f} ms ({way})"
        if slowest > self.limits.slow.total_seconds():
            todo = "look at lakthan_*_request_seconds there: the database, the key or the processor is at its end"
            self.warning("speed", said, todo)
        else:
            self.ok("speed", said)

    def ends(self, check: str, ends: Mapping[str, datetime], todo: str) -> None:
        """Whether a certificate ends soon. `ends`: notAfter by name."""
        self.outcome.ends.update({(self.url, self.subject, name): end for name, end in ends.items()})
        name, end = min(ends.items(), key=lambda each: each[1])
        said = f"{name}: until {moment(end)}"
        if end - self.now < self.limits.ends_failure:
            self.failure(check, said, todo)
        elif end - self.now < self.limits.ends_warning:
            self.warning(check, said, todo)
        else:
            self.ok(check, said)
