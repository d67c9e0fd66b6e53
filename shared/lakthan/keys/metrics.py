"""The series of the keys that live outside of this process: HSMs and clouds. Each service has them under its own name.

Software keys have none: they have no queue and nobody to wait for.
"""

from __future__ import annotations

from collections import Counter as Sums
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from lakthan.keys.bounds import OUTCOMES, Bounds

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client import CollectorRegistry, Metric


class KeyMetrics(Collector):
    """Reads the bounds of all keys that are open whenever somebody asks. `service`: `lakthan_ocsp` or `lakthan_tsa`.

    Label `key`: the URI up to the `?`, which holds no secret.
    """

    def __init__(self, service: str, registry: CollectorRegistry) -> None:
        self._service = service
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """See `Collector`."""
        labels = ["key"]
        circuit = GaugeMetricFamily(
            f"{self._service}_key_circuit_open", "1 while a key does not sign and is left alone.", labels=labels
        )
        under_way = GaugeMetricFamily(
            f"{self._service}_key_signatures_under_way", "Signatures that a key is making now.", labels=labels
        )
        waiting = GaugeMetricFamily(
            f"{self._service}_key_signatures_waiting", "Signatures that wait for a key's turn now.", labels=labels
        )
        signatures = CounterMetricFamily(
            f"{self._service}_key_signatures", "Signatures asked of a key, by outcome.", labels=[*labels, "outcome"]
        )
        by_key: dict[str, list[Bounds]] = {}
        for bounds in Bounds.opened():
            by_key.setdefault(bounds.key, []).append(bounds)
        for key, those in by_key.items():  # a key that is opened twice is one to whoever reads this
            circuit.add_metric([key], any(bounds.circuit_open for bounds in those))
            under_way.add_metric([key], sum(bounds.under_way for bounds in those))
            waiting.add_metric([key], sum(bounds.waiting for bounds in those))
            sums: Sums[str] = Sums()
            for bounds in those:
                sums.update(bounds.counts)
            for outcome in OUTCOMES:
                signatures.add_metric([key, outcome], sums[outcome])
        return circuit, under_way, waiting, signatures
