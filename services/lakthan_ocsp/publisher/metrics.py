"""Every series of the publisher, declared here and documented in docs/metrics.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from lakthan.keys.metrics import KeyMetrics
from lakthan.keys.ring_metrics import RingMetrics

if TYPE_CHECKING:
    from lakthan_ocsp.responders import Responders

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0)


class PublisherMetrics:
    """The series of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        KeyMetrics("lakthan_publisher", self.registry)
        self._responders: list[Responders] = []
        self._keys = RingMetrics("lakthan_publisher", "authority", self.registry)

        def gauge(name: str, documentation: str) -> Gauge:
            return Gauge(f"lakthan_publisher_{name}", documentation, ["authority"], registry=self.registry)

        self.published = Counter(
            "lakthan_publisher_published",
            "Answers signed and put on record, by cause: changed, issued, missing or due.",
            ["authority", "cause"],
            registry=self.registry,
        )
        self.failed = Counter(
            "lakthan_publisher_failed",
            "Answers that could not be signed and are tried again.",
            ["authority"],
            registry=self.registry,
        )
        self.overtaken = Counter(
            "lakthan_publisher_overtaken",
            "Answers that were thrown away because the certificate changed while they were signed.",
            ["authority"],
            registry=self.registry,
        )
        self.change_seconds = Histogram(
            "lakthan_publisher_change_to_published_seconds",
            "Time from a change of status, shortly before its commit, until the answer that says so is on record.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.leader = gauge("leader", "1 when this process signs for the authority, 0 when another one does.")
        self.working = gauge("working", "0 while something keeps this process from signing.")
        self.due = gauge("due", "Answers that are due, counted up to 100,000.")
        self.behind_seconds = gauge("behind_seconds", "How late the answer is that is due the longest.")
        self.earliest_next_update = gauge(
            "earliest_next_update_timestamp_seconds",
            "The earliest nextUpdate of the answers that are due; 0 when none is.",
        )
        self.certificates = gauge("certificates", "Certificates for which answers are signed ahead.")
        self.needed_per_second = gauge("needed_signatures_per_second", "Certificates times hashes by refresh interval.")
        self.allowed_per_second = gauge(
            "allowed_signatures_per_second", "The configured bound of the key; 0 without one."
        )
        self.short = gauge("short", "1 when the schedule takes more signatures than the bound allows.")
        self.responder_not_after = gauge(
            "responder_not_after_timestamp_seconds", "When the certificate of the authority's responder runs out."
        )
        self.clock_ahead = Gauge(
            "lakthan_publisher_clock_ahead_seconds",
            "How far this machine's clock is ahead of the database's, at the last comparison.",
            registry=self.registry,
        )
        self.clock_believed = Gauge(
            "lakthan_publisher_clock_believed",
            "1 while this machine's clock may be signed by; at 0 nothing is signed here.",
            registry=self.registry,
        )
        self.heartbeat = Gauge(
            "lakthan_publisher_heartbeat_timestamp_seconds",
            "The last heartbeat that this process wrote, by the database's clock.",
            registry=self.registry,
        )

    def watch_keys(self, responders: Responders) -> None:
        """Show these as well: which keys there are, from when until when, and what is wrong with their lists."""
        self._responders.append(responders)
        self._keys.lives = lambda: [life for each in self._responders for life in each.lives()]
        self._keys.problems = lambda: [problem for each in self._responders for problem in each.problems()]
