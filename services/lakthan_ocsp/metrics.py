"""Every series of the OCSP responder, declared here and documented in docs/metrics.md.

Label values are spelled as in the RFC. What happens for every request is counted in plain numbers, one `Tally` for all
that happens in the same way, and is brought into the series when somebody reads them: a cached answer costs less than
an increment of three counters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, ProcessCollector
from prometheus_client.registry import Collector

from lakthan.algorithms import HashAlgorithm
from lakthan.keys.metrics import KeyMetrics
from lakthan.keys.ring_metrics import RingMetrics
from lakthan.telemetry.plain import PlainHistogram
from lakthan.telemetry.request_log import request_log
from lakthan.telemetry.slow import Slow
from lakthan.web.wire_metrics import WireMetrics
from lakthan_ocsp import directory, responder
from lakthan_ocsp.syntax import CertStatusChoice, OCSPResponseStatus

if TYPE_CHECKING:
    from lakthan.keys.key_ring import KeyRing
    from lakthan.web.wire import Wire
    from lakthan_ocsp.directory import Responder
    from lakthan_ocsp.responders import Responders

_SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0)
_REQUEST_SECONDS = (0.000005, 0.00001, 0.000025, *_SECONDS)
_SLOW_SECONDS = 0.1  # from here on a request is logged; the alert OCSPSlow has the same bound
_SERVED_SECONDS = (
    *(0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0),
)


@dataclass(slots=True, eq=False)
class Tally:
    """How many requests about one certificate were answered in exactly this way since the series were read last."""

    method: str
    source: str
    outcomes: tuple[str, ...]
    hash: HashAlgorithm | None
    count: int = 0
    sample_at: float = math.inf  # a count at which a request gets a line in the log


class OCSPMetrics:
    """The series of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._successful = 0
        self._tallies: dict[tuple[str, str, tuple[str, ...], HashAlgorithm | None], Tally] = {}
        self.registry.register(_Before(self._bring_in))  # the first, so that the others give what it brings in
        ProcessCollector(registry=self.registry)
        KeyMetrics("lakthan_ocsp", self.registry)
        self._keys = RingMetrics("lakthan_ocsp", "authority", self.registry)
        requests = Counter(
            "lakthan_ocsp_requests",
            "Requests answered, by HTTP method and OCSPResponseStatus.",
            ["method", "outcome"],
            registry=self.registry,
        )
        self.requests = {
            (method, status): requests.labels(method, status.label)
            for method in ("GET", "POST")
            for status in OCSPResponseStatus
        }
        statuses = Counter(
            "lakthan_ocsp_cert_statuses", "Certificates answered, by CertStatus.", ["status"], registry=self.registry
        )
        self.cert_statuses = {choice.value: statuses.labels(choice.value) for choice in CertStatusChoice}
        answers = Counter(
            "lakthan_ocsp_answers", "Successful answers by where they came from.", ["source"], registry=self.registry
        )
        self._answers = {source: answers.labels(source) for source in ("cache", "signed", "published")}
        hashes = Counter(
            "lakthan_ocsp_cert_id_hashes",
            "CertIDs answered, by hash algorithm. SHA-1 ones are to die out.",
            ["hash"],
            registry=self.registry,
        )
        self.cert_id_hashes: dict[HashAlgorithm | None, Counter] = {
            algorithm: hashes.labels(algorithm.label) for algorithm in responder.CERT_ID_HASHES
        }
        self._wire = WireMetrics("lakthan_ocsp", self.registry)
        self.nonces = 0  # since the series were read last
        self._nonces = Counter("lakthan_ocsp_nonces", "Requests that carry a nonce.", registry=self.registry)
        unauthorized = Counter(
            "lakthan_ocsp_unauthorized", "Refusals as unauthorized, by cause.", ["cause"], registry=self.registry
        )
        self.unauthorized = {
            cause: unauthorized.labels(cause)
            for cause in (
                directory.FOREIGN_ISSUER,
                directory.NO_RESPONDER,
                directory.MIXED_ISSUERS,
                directory.NOT_ON_RECORD,
                directory.NOT_PUBLISHED,
            )
        }
        self.published_withheld = Counter(
            "lakthan_ocsp_published_withheld",
            "Requests that got tryLater although there is a published answer, by cause.",
            ["authority", "cause"],
            registry=self.registry,
        )
        self.published_until = Gauge(
            "lakthan_ocsp_published_until_timestamp_seconds",
            "When the last published answer of an authority ends.",
            ["authority"],
            registry=self.registry,
        )
        self.violations = Counter(
            "lakthan_ocsp_validity_policy_violations",
            "Answers that were refused because they would have broken the authority's profile, by rule.",
            ["authority", "rule"],
            registry=self.registry,
        )
        self.not_modified = Counter("lakthan_ocsp_not_modified", "304 answers to GET.", registry=self.registry)
        self.http_refusals = Counter(
            "lakthan_ocsp_http_refusals",
            "Requests refused before they were OCSP, by HTTP status.",
            ["code"],
            registry=self.registry,
        )
        self.sign_seconds = PlainHistogram(
            "lakthan_ocsp_sign_seconds",
            "Time from the octets to their signature.",
            label="authority",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.request_seconds = PlainHistogram(
            "lakthan_ocsp_request_seconds",
            "Time from a complete request to its answer.",
            buckets=_REQUEST_SECONDS,
            registry=self.registry,
        ).labels()
        self.slow = Slow(self.request_seconds, _SLOW_SECONDS)
        self.lookup_seconds = PlainHistogram(
            "lakthan_ocsp_lookup_seconds",
            "Time to read the status of a request's certificates from the store.",
            buckets=_SECONDS,
            registry=self.registry,
        ).labels()
        self.cached_answers = Gauge(
            "lakthan_ocsp_cached_answers", "Answers in the response cache.", registry=self.registry
        )
        self.cache_octets = Gauge(
            "lakthan_ocsp_cache_bytes", "Memory of the response cache, about.", registry=self.registry
        )
        self.status_changes = Counter(
            "lakthan_ocsp_status_changes", "Changes of status heard of.", registry=self.registry
        )
        self._served_seconds = Histogram(
            "lakthan_ocsp_revocation_to_served_seconds",
            "Time from a change of status, shortly before its commit, until this process answers by it.",
            buckets=_SERVED_SECONDS,
            registry=self.registry,
        )
        self.authorities_read = Counter(
            "lakthan_ocsp_authorities_read",
            "Times that the authorities were read after a change.",
            registry=self.registry,
        )
        self.feed_trusted = Gauge(
            "lakthan_ocsp_feed_trusted",
            "1 while changes are heard as they happen, 0 otherwise.",
            registry=self.registry,
        )
        self.feed_losses = Counter(
            "lakthan_ocsp_feed_losses", "Times that the notifications were lost.", registry=self.registry
        )
        self.clock_ahead = Gauge(
            "lakthan_ocsp_clock_ahead_seconds",
            "How far this machine's clock is ahead of the database's, at the last heartbeat.",
            registry=self.registry,
        )
        self.clock_believed = Gauge(
            "lakthan_ocsp_clock_believed",
            "1 while this machine's clock may be signed by, 0 while every request gets tryLater for it.",
            registry=self.registry,
        )
        self.contradicted = Gauge(
            "lakthan_ocsp_contradicted_certificates",
            "Certificates that were revoked, and that a database which went back has as not revoked.",
            registry=self.registry,
        )
        self.responder_not_after = Gauge(
            "lakthan_ocsp_responder_not_after_timestamp_seconds",
            "When the certificate of an authority's responder runs out.",
            ["authority"],
            registry=self.registry,
        )

        self.responder_to_be_renewed = Gauge(
            "lakthan_ocsp_responder_to_be_renewed",
            "1 when less than a third of a responder certificate's life is left.",
            ["authority"],
            registry=self.registry,
        )

    def watch_keys(self, responders: Responders) -> None:
        """Show which keys there are, and how long each authority can be answered for with them."""
        self._keys.lives = responders.lives
        self._keys.problems = responders.problems
        for ring in responders.rings:
            ends = self.responder_not_after.labels(ring.name)
            ends.set_function(partial(_last_end, ring))

    def successful(self) -> int:
        """How many requests have been answered successfully so far."""
        self._bring_in()
        return self._successful

    def watch_wire(self, wire: Wire) -> None:
        """Show what it counts."""
        self._wire.watch(wire)

    def tally(self, method: str, source: str, outcomes: tuple[str, ...], asked: HashAlgorithm | None) -> Tally:
        """Where such answers about one certificate are counted; a few dozen at most. `source`: `cache` or `signed`."""
        key = (method, source, outcomes, asked)
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._tallies[key] = Tally(*key)
            tally.sample_at = request_log.interval(notable=CertStatusChoice.REVOKED.value in outcomes)
        return tally

    def answered(
        self, method: str, source: str, outcomes: tuple[str, ...], hashes: tuple[HashAlgorithm | None, ...]
    ) -> None:
        """Count a successful answer, about however many certificates."""
        if len(hashes) == 1:
            self.tally(method, source, outcomes, hashes[0]).count += 1
        else:
            self._count(1, method, source, outcomes, hashes)

    def _bring_in(self) -> None:
        nonces, self.nonces = self.nonces, 0
        self._nonces.inc(nonces)
        self._wire.bring_in()
        for tally in self._tallies.values():
            count, tally.count = tally.count, 0
            tally.sample_at -= count
            if count:
                self._count(count, tally.method, tally.source, tally.outcomes, (tally.hash,))

    def _count(
        self,
        count: int,
        method: str,
        source: str,
        outcomes: tuple[str, ...],
        hashes: tuple[HashAlgorithm | None, ...],
    ) -> None:
        self._successful += count
        self.requests[method, OCSPResponseStatus.SUCCESSFUL].inc(count)
        self._answers[source].inc(count)
        for outcome in outcomes:
            self.cert_statuses[outcome].inc(count)
        for algorithm in hashes:
            self.cert_id_hashes[algorithm].inc(count)

    def served(self, changed_at: datetime | None) -> None:
        """A change that the database dates `changed_at` counts from now on; None is a database that does not say."""
        if changed_at is not None:
            # Two clocks: one behind the database's would make the time negative.
            self._served_seconds.observe(max(0.0, (datetime.now(UTC) - changed_at).total_seconds()))


def _last_end(ring: KeyRing[Responder]) -> float:
    return max((key.ends.timestamp() for key in ring.held), default=0.0)


class _Before(Collector):
    """Does something whenever the series are about to be read, and has none of its own."""

    def __init__(self, bring_in: Callable[[], None]) -> None:
        self._bring_in = bring_in

    def collect(self) -> Iterable[Metric]:
        """See `Collector`."""
        self._bring_in()
        return ()
