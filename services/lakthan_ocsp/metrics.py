"""Every series of the OCSP responder, declared here and documented in docs/metrics.md.

Label values are spelled as in the RFC. Children are made once; the hot path only increments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from lakthan.algorithms import HashAlgorithm
from lakthan_ocsp import directory
from lakthan_ocsp.syntax import CertStatusChoice, OCSPResponseStatus

if TYPE_CHECKING:
    from lakthan_ocsp.syntax import CertID

_SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0)
_OTHER_HASH = "other"


class OCSPMetrics:
    """The series of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
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
        self.answers_cached = answers.labels("cache")
        self.answers_signed = answers.labels("signed")
        self._cert_id_hashes = Counter(
            "lakthan_ocsp_cert_id_hashes",
            "CertIDs by hash algorithm, of requests that were not answered from the cache. SHA-1 ones are to die out.",
            ["hash"],
            registry=self.registry,
        )
        hashes = [algorithm.label for algorithm in HashAlgorithm]
        self._by_hash = {label: self._cert_id_hashes.labels(label) for label in [*hashes, _OTHER_HASH]}
        self.nonces = Counter("lakthan_ocsp_nonces", "Requests that carry a nonce.", registry=self.registry)
        unauthorized = Counter(
            "lakthan_ocsp_unauthorized", "Refusals as unauthorized, by cause.", ["cause"], registry=self.registry
        )
        self.unauthorized = {
            cause: unauthorized.labels(cause)
            for cause in (directory.FOREIGN_ISSUER, directory.NO_RESPONDER, directory.MIXED_ISSUERS)
        }
        self.not_modified = Counter("lakthan_ocsp_not_modified", "304 answers to GET.", registry=self.registry)
        self.http_refusals = Counter(
            "lakthan_ocsp_http_refusals",
            "Requests refused before they were OCSP, by HTTP status.",
            ["code"],
            registry=self.registry,
        )
        self.sign_seconds = Histogram(
            "lakthan_ocsp_sign_seconds",
            "Time from the octets to their signature.",
            ["authority"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.lookup_seconds = Histogram(
            "lakthan_ocsp_lookup_seconds",
            "Time to read the status of a request's certificates from the store.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.cached_answers = Gauge(
            "lakthan_ocsp_cached_answers", "Answers in the response cache.", registry=self.registry
        )
        self.status_changes = Counter(
            "lakthan_ocsp_status_changes", "Changes of status heard of.", registry=self.registry
        )
        self.feed_trusted = Gauge(
            "lakthan_ocsp_feed_trusted",
            "1 while changes are heard as they happen, 0 otherwise.",
            registry=self.registry,
        )
        self.feed_losses = Counter(
            "lakthan_ocsp_feed_losses", "Times that the notifications were lost.", registry=self.registry
        )
        self.responder_not_after = Gauge(
            "lakthan_ocsp_responder_not_after_timestamp_seconds",
            "When the certificate of an authority's responder runs out.",
            ["authority"],
            registry=self.registry,
        )

    def count_cert_ids(self, cert_ids: tuple[CertID, ...]) -> None:
        """One for each CertID, under its hash algorithm."""
        for cert_id in cert_ids:
            algorithm = cert_id.hash_algorithm
            self._by_hash[_OTHER_HASH if algorithm is None else algorithm.label].inc()
