"""The series of key lists: which keys there are, from when until when, and what each of them is doing.

Each service has them under its own name, for the keys of its lists and for those without one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, get_args

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from prometheus_client import CollectorRegistry, Metric

State = Literal["signing", "in reserve", "waiting", "ended"]
STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True, slots=True)
class KeyLife:
    """One key. `target`: whom it signs for; `certificate`: the beginning of its SHA-256, as lists have it."""

    target: str
    certificate: str
    begins: datetime
    ends: datetime
    signing: bool

    def state(self, now: datetime) -> State:
        """What it is doing."""
        if now < self.begins:
            return "waiting"
        if now >= self.ends:
            return "ended"
        return "signing" if self.signing else "in reserve"


class RingMetrics(Collector):
    """`service`: `lakthan_ocsp` or `lakthan_tsa`; `label`: what it calls whom a key signs for, `authority` or `unit`.

    `lives` and `problems` are asked whenever somebody reads: all keys, and what is wrong with each list ('' for none).
    """

    def __init__(self, service: str, label: str, registry: CollectorRegistry) -> None:
        self._service = service
        self._label = label
        self.lives: Callable[[], Sequence[KeyLife]] = tuple
        self.problems: Callable[[], Sequence[tuple[str, str]]] = tuple
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """See `Collector`."""
        labels = [self._label, "certificate"]
        begins = GaugeMetricFamily(
            f"{self._service}_signing_key_not_before_timestamp_seconds",
            "From when on a key may sign.",
            labels=labels,
        )
        ends = GaugeMetricFamily(
            f"{self._service}_signing_key_not_after_timestamp_seconds",
            "When a key must stop signing: retired, or by its certificate.",
            labels=labels,
        )
        states = GaugeMetricFamily(
            f"{self._service}_signing_key_state",
            "1 for the state that a key is in, 0 for the others.",
            labels=[*labels, "state"],
        )
        problem = GaugeMetricFamily(
            f"{self._service}_key_list_problem",
            "1 while something is wrong with a key list or one of its keys.",
            labels=[self._label],
        )
        now = datetime.now(UTC)
        for life in self.lives():
            begins.add_metric([life.target, life.certificate], life.begins.timestamp())
            ends.add_metric([life.target, life.certificate], life.ends.timestamp())
            for state in STATES:
                states.add_metric([life.target, life.certificate, state], life.state(now) == state)
        for target, what in self.problems():
            problem.add_metric([target], bool(what))
        return begins, ends, states, problem
