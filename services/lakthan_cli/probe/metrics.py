"""Every series of `lakthan probe --listen`, declared here and documented in docs/metrics.md.

What is true of the last round is replaced by the next one as a whole: a URL that left the plan leaves no figure behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from lakthan_cli.findings import Grade

if TYPE_CHECKING:
    from datetime import datetime

    from lakthan_cli.probe.outcome import Outcome

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_CHECK = ["url", "subject", "check"]


class ProbeMetrics:
    """The series of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._success = self._gauge("success", "0 while a check fails, 1 otherwise.", _CHECK)
        self._warning = self._gauge("warning", "1 while a check has a warning.", _CHECK)
        self._last_success = self._gauge("last_success_timestamp_seconds", "When a check last did not fail.", _CHECK)
        self._skew = self._gauge(
            "clock_skew_seconds", "How far their clock is ahead of ours, by what says so.", ["url", "subject", "source"]
        )
        self._not_after = self._gauge(
            "certificate_not_after_timestamp_seconds",
            "When the certificate of the responder or unit that answered runs out.",
            ["url", "subject", "certificate"],
        )
        self._next_update = self._gauge(
            "next_update_timestamp_seconds", "The earliest nextUpdate of the answers.", ["url", "subject"]
        )
        self._answers = Histogram(
            "lakthan_probe_answer_seconds",
            "From a question to its answer.",
            ["url"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._rounds = Counter(
            "lakthan_probe_rounds", "Rounds, by their gravest finding.", ["grade"], registry=self.registry
        )
        for grade in Grade:
            self._rounds.labels(grade.label)
        self._last_round = self._gauge("last_round_timestamp_seconds", "When the last round ended.", [])
        self._round_seconds = self._gauge("round_seconds", "How long it took.", [])

    def _gauge(self, name: str, text: str, labels: list[str]) -> Gauge:
        return Gauge(f"lakthan_probe_{name}", text, labels, registry=self.registry)

    def took(self, outcome: Outcome, grade: Grade, *, ended: datetime, seconds: float) -> None:
        """A round is over."""
        for gauge in (self._success, self._warning, self._skew, self._not_after, self._next_update):
            gauge.clear()
        worst: dict[tuple[str, str, str], Grade] = {}
        for each in outcome.findings:
            place = (each.area, each.subject, each.check)
            worst[place] = max(worst.get(place, Grade.OK), each.grade, key=lambda one: one.exit_code)
        for place, found in worst.items():
            self._success.labels(*place).set(found is not Grade.FAILURE)
            self._warning.labels(*place).set(found is Grade.WARNING)
            last = self._last_success.labels(*place)  # 0 for one that has never been in order
            if found is not Grade.FAILURE:
                last.set(ended.timestamp())
        for skew, value in outcome.skews.items():
            self._skew.labels(*skew).set(value)
        for end, instant in outcome.ends.items():
            self._not_after.labels(*end).set(instant.timestamp())
        for answer, instant in outcome.next_updates.items():
            self._next_update.labels(*answer).set(instant.timestamp())
        for url, each_seconds in outcome.answers:
            self._answers.labels(url).observe(each_seconds)
        self._rounds.labels(grade.label).inc()
        self._last_round.set(ended.timestamp())
        self._round_seconds.set(seconds)
