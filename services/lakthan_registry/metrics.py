"""Every series of the registry's HTTPS door, declared here and documented in docs/metrics.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from lakthan.telemetry.plain import PlainHistogram
from lakthan.telemetry.slow import Slow

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SLOW_SECONDS = 1.0  # from here on a request is logged; CRLs and `?wait=served` may well take longer
_SERVED_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0)


class RegistryMetrics:
    """The series of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "lakthan_registry_requests",
            "Requests answered, by operation of the API and HTTP status.",
            ["operation", "code"],
            registry=self.registry,
        )
        self._request_seconds = PlainHistogram(
            "lakthan_registry_request_seconds",
            "Time from the head of a request to its answer, waiting for responders included.",
            label="operation",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "lakthan_registry_requests_in_flight", "Requests being worked on now.", registry=self.registry
        )
        self.refusals = Counter(
            "lakthan_registry_refusals",
            "Requests refused, by the kind of the problem.",
            ["problem"],
            registry=self.registry,
        )
        self.unaudited = Counter(
            "lakthan_registry_unaudited_refusals",
            "Refusals that could not be put on record, because the store was away just then.",
            registry=self.registry,
        )
        self.changes = Counter(
            "lakthan_registry_changes",
            "Changes recorded by this door, by what was changed.",
            ["change"],
            registry=self.registry,
        )
        self.crls = Counter(
            "lakthan_registry_posted_crls",
            "CRLs that were sent here, by what became of them: imported, nothing new, or the reason of the refusal.",
            ["outcome"],
            registry=self.registry,
        )
        self.served_seconds = Histogram(
            "lakthan_registry_served_seconds",
            "Time from a commit until every responder answered by it, by how that was known.",
            ["how"],
            buckets=_SERVED_SECONDS,
            registry=self.registry,
        )
        self.responders = Gauge(
            "lakthan_registry_responders",
            "Responder processes that follow the store, as last counted.",
            registry=self.registry,
        )
        self.client_crl_ends = Gauge(
            "lakthan_registry_client_crl_next_update_timestamp_seconds",
            "When the CRL of a CA of client certificates ends; from then on its clients are refused.",
            ["issuer"],
            registry=self.registry,
        )

    def slow(self, operation: str) -> Slow:
        """Where the time of an operation's requests is counted, and slow ones are noted."""
        return Slow(self._request_seconds.labels(operation), _SLOW_SECONDS)

    def client_crls(self, ends: Mapping[str, datetime]) -> None:
        """The CRLs of the clients' CAs were read."""
        self.client_crl_ends.clear()
        for issuer, end in ends.items():
            self.client_crl_ends.labels(issuer).set(end.timestamp())
