"""Every series of the OCSP responder, declared here and documented in docs/metrics.md.

Label values are spelled as in the RFC. Children are made once; the hot path only increments.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from lakthan.algorithms import HashAlgorithm
from lakthan_ocsp import directory, responder
from lakthan_ocsp.syntax import CertStatusChoice, OCSPResponseStatus

_SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0)


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
        hashes = Counter(
            "lakthan_ocsp_cert_id_hashes",
            "CertIDs answered, by hash algorithm. SHA-1 ones are to die out.",
            ["hash"],
            registry=self.registry,
        )
        self.cert_id_hashes: dict[HashAlgorithm | None, Counter] = {
            algorithm: hashes.labels(algorithm.label) for algorithm in responder.CERT_ID_HASHES
        }
        self.nonces = Counter("lakthan_ocsp_nonces", "Requests that carry a nonce.", registry=self.registry)
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
            )
        }
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
