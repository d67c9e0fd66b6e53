"""The series of a responder that answers from a copy of the database, in the registry of `OCSPMetrics`."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge

from lakthan_ocsp.keyless import State

if TYPE_CHECKING:
    from lakthan_ocsp.keyless import CopyReader
    from lakthan_ocsp.metrics import OCSPMetrics


class CopyMetrics:
    """How old what is answered is, and how much was answered in which state."""

    def __init__(self, metrics: OCSPMetrics) -> None:
        registry = metrics.registry
        self._metrics = metrics
        self._counted = 0
        self.heartbeat = Gauge(
            "lakthan_ocsp_copy_heartbeat_timestamp_seconds",
            "The instant as of which is answered; 0 before there was one.",
            registry=registry,
        )
        self.age = Gauge(
            "lakthan_ocsp_copy_age_seconds", "How long ago that is; NaN before there was one.", registry=registry
        )
        self.age.set(float("nan"))
        self.states = Gauge(
            "lakthan_ocsp_copy_state", "1 for the state that the copy is in.", ["state"], registry=registry
        )
        self._answers = Counter(
            "lakthan_ocsp_copy_answers", "Successful answers, by the state of the copy.", ["state"], registry=registry
        )
        for state in State:
            self.states.labels(state.value)
            self._answers.labels(state.value)
        self.kept_answers = Gauge(
            "lakthan_ocsp_warm_start_answers", "Answers in the last snapshot on disk.", registry=registry
        )
        self.kept_at = Gauge(
            "lakthan_ocsp_warm_start_timestamp_seconds", "When the last snapshot was written.", registry=registry
        )
        self.failures = Counter(
            "lakthan_ocsp_warm_start_failures", "Times that answers could not be kept on disk.", registry=registry
        )

    def watch(self, reader: CopyReader) -> None:
        """Show its age whenever somebody looks."""
        self.age.set_function(lambda: seen.age().total_seconds() if (seen := reader.as_of()) else float("nan"))
        self.heartbeat.set_function(lambda: seen.at.timestamp() if (seen := reader.as_of()) else 0.0)
        for state in State:
            self.states.labels(state.value).set_function(partial(_is_in, reader, state))

    def count(self, state: State) -> None:
        """What was answered since the last time was answered in this state."""
        total = self._metrics.successful()
        self._answers.labels(state.value).inc(total - self._counted)
        self._counted = total

    def snapshot(self, answers: int) -> None:
        """A snapshot was written."""
        self.kept_answers.set(answers)
        self.kept_at.set(datetime.now(UTC).timestamp())


def _is_in(reader: CopyReader, state: State) -> float:
    return float(reader.state() is state)
