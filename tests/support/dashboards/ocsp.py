"""The dashboard of the OCSP responder, of its edge, and of the publisher that signs ahead for both."""

from __future__ import annotations

from support.dashboards.floods import floods
from support.dashboards.model import Bounds, Dashboard, Panel, Query, Row, percentile, quantiles, rate
from support.dashboards.workers import PROCESSES

_UNANSWERED = 'outcome=~"tryLater|internalError"'
_DAY = 86400

_ANSWERING = Row(
    "Is it answering?",
    (
        Panel(
            "Requests answered a second",
            "reqps",
            "All OCSP requests of the chosen processes, refusals included.",
            "Zero while clients exist: see OCSPAbsent in docs/runbooks/ocsp.md.",
            (rate("lakthan_ocsp_requests_total"),),
            number=True,
            width=4,
        ),
        Panel(
            "Share that got no real answer",
            "percentunit",
            "tryLater and internalError among all requests. The objective is at most 0.1 % in 30 days.",
            "Above 1.4 % the month's allowance is gone in two days: OCSPBudgetBurnsFast in docs/runbooks/ocsp.md.",
            (
                Query(
                    f"sum(rate(lakthan_ocsp_requests_total{{$of,{_UNANSWERED}}}[$__rate_interval]))"
                    " / sum(rate(lakthan_ocsp_requests_total{$of}[$__rate_interval]))"
                ),
            ),
            bounds=Bounds(0.001, 0.0144),
            number=True,
            width=4,
        ),
        Panel(
            "One in a hundred takes longer than",
            "s",
            "From a complete request to its answer, in the server.",
            "See OCSPSlow in docs/runbooks/ocsp.md; the row “How long does it take?” says where the time goes.",
            (percentile("lakthan_ocsp_request_seconds"),),
            bounds=Bounds(0.025, 0.1),
            number=True,
            width=4,
        ),
        Panel(
            "One revocation in a hundred takes longer than",
            "s",
            "From its commit until a process answers by it. The promise is 50 ms, the alarm a second.",
            "See OCSPRevocationsSlow in docs/runbooks/ocsp.md.",
            (percentile("lakthan_ocsp_revocation_to_served_seconds"),),
            bounds=Bounds(0.05, 1),
            number=True,
            width=4,
        ),
        Panel(
            "Processes that do not hear of changes",
            "short",
            "They answer correctly, but every answer costs them a query: nothing comes from memory.",
            "See OCSPFeedLost in docs/runbooks/ocsp.md.",
            (Query("count(lakthan_ocsp_feed_trusted{$of} == 0) or vector(0)"),),
            bounds=Bounds(None, 1),
            number=True,
            width=4,
        ),
        Panel(
            "The first responder certificate ends in",
            "s",
            "The responder, of all authorities, whose last key ends first.",
            "Renew it: OCSPResponderCertificateEnds in docs/runbooks/ocsp.md.",
            (Query("min(lakthan_ocsp_responder_not_after_timestamp_seconds{$of}) - time()"),),
            bounds=Bounds(30 * _DAY, 7 * _DAY, low_is_bad=True),
            number=True,
            width=4,
        ),
    ),
)

_TRAFFIC = Row(
    "What is asked, and what is said?",
    (
        Panel(
            "Requests by what they got",
            "reqps",
            "successful is an answer about a certificate; unauthorized and malformedRequest are the client's doing.",
            "tryLater or internalError: the log has a line with the reason for each.",
            (rate("lakthan_ocsp_requests_total", "outcome"),),
        ),
        Panel(
            "Answers by where they came from",
            "reqps",
            "From memory (cache), signed for this request, or signed ahead by a publisher or a ceremony (published).",
            "Many signed ones: clients send nonces, or the feed is lost, or the cache is too small.",
            (rate("lakthan_ocsp_answers_total", "source"),),
            stacked=True,
        ),
        Panel(
            "Certificates by status",
            "reqps",
            "good, revoked or unknown, as answered.",
            "A sudden rise of unknown: a CA issues without telling the registry.",
            (rate("lakthan_ocsp_cert_statuses_total", "status"),),
        ),
        Panel(
            "Requests with a nonce",
            "reqps",
            "Each costs a signature of its own; no cache anywhere can help.",
            "Near what the key can do: ask the client's operator to leave the nonce out.",
            (rate("lakthan_ocsp_nonces_total"),),
        ),
        Panel(
            "Hash algorithms that clients name certificates by",
            "reqps",
            "SHA-1 is to die out (RFC 9919).",
            "When nobody asks by SHA-1 any more, the publisher need not sign those answers.",
            (rate("lakthan_ocsp_cert_id_hashes_total", "hash"),),
            stacked=True,
        ),
        Panel(
            "Refused as unauthorized, by cause",
            "reqps",
            "Requests about certificates that this responder does not answer for.",
            "no responder: OCSPAuthorityWithoutResponder in docs/runbooks/ocsp.md. foreign issuer: a wrong AIA.",
            (rate("lakthan_ocsp_unauthorized_total", "cause"),),
        ),
        Panel(
            "Refused before it was OCSP",
            "reqps",
            "By HTTP status: wrong methods, paths and sizes.",
            "Mostly scanners. If clients of yours are among them, compare their URL with the certificates' AIA.",
            (rate("lakthan_ocsp_http_refusals_total", "code"),),
        ),
        Panel(
            "By HTTP method, and answers 304",
            "reqps",
            "GET can be kept by caches on the way, POST cannot.",
            "Nothing; it says how much a cache in front would take over.",
            (
                rate("lakthan_ocsp_requests_total", "method"),
                Query(rate("lakthan_ocsp_not_modified_total").expression, "304"),
            ),
        ),
        Panel(
            "Answers that would have broken the authority's profile",
            "reqps",
            "They were refused; by authority and rule.",
            "The profile and the certificates disagree: read the log, correct the policy or the responder's validity.",
            (rate("lakthan_ocsp_validity_policy_violations_total", "authority", "rule"),),
        ),
    ),
)

_TIME = Row(
    "How long does it take?",
    (
        Panel(
            "From a request to its answer",
            "s",
            "In the server, without the network. Dots are single slow requests: their request_id is in the log.",
            "See OCSPSlow in docs/runbooks/ocsp.md.",
            quantiles("lakthan_ocsp_request_seconds"),
            bounds=Bounds(None, 0.1),
        ),
        Panel(
            "Reading a status from the database",
            "s",
            "Only what is not in memory is looked up.",
            "High: is the database busy, are its indexes in memory? An import may be running.",
            quantiles("lakthan_ocsp_lookup_seconds"),
        ),
        Panel(
            "Signing, one in a hundred takes longer than",
            "s",
            "From the octets to their signature, by authority, queueing in the device included.",
            "High: the key is at its end; see “Keys and clocks”.",
            (percentile("lakthan_ocsp_sign_seconds", "authority"),),
        ),
    ),
)

_REVOCATIONS = Row(
    "Does it hear of revocations?",
    (
        Panel(
            "From a revocation's commit to its first answer",
            "s",
            "Measured with the database's clock at every change.",
            "See OCSPRevocationsSlow in docs/runbooks/ocsp.md. Clocks that differ look the same.",
            quantiles("lakthan_ocsp_revocation_to_served_seconds"),
            bounds=Bounds(0.05, 1),
        ),
        Panel(
            "Changes heard, and how often the line was lost",
            "ops",
            "Every process hears every change. A loss is noticed within three seconds.",
            "Losses again and again: the database, or what is between. OCSPFeedLost in docs/runbooks/ocsp.md.",
            (
                Query(
                    "sum by (instance) (rate(lakthan_ocsp_status_changes_total{$of}[$__rate_interval]))", "{{instance}}"
                ),
                Query("sum(rate(lakthan_ocsp_feed_losses_total{$of}[$__rate_interval]))", "lost"),
                Query("sum(rate(lakthan_ocsp_authorities_read_total{$of}[$__rate_interval]))", "authorities read"),
            ),
        ),
        Panel(
            "Revocations that the database has forgotten",
            "short",
            "Heard by a process, and no longer on record: a restore, or a fail-over that lost commits.",
            "See OCSPDatabaseWentBack in docs/runbooks/ocsp.md.",
            (Query("max by (instance) (lakthan_ocsp_contradicted_certificates{$of})", "{{instance}}"),),
            bounds=Bounds(None, 1),
        ),
        Panel(
            "This machine's clock ahead of the database's",
            "s",
            "Beyond clock_tolerance (a minute) nothing is answered: the second series is 0 then.",
            "See OCSPClockNotBelieved in docs/runbooks/ocsp.md.",
            (
                Query("max by (instance) (lakthan_ocsp_clock_ahead_seconds{$of})", "{{instance}}"),
                Query("min by (instance) (lakthan_ocsp_clock_believed{$of})", "{{instance}} believed"),
            ),
        ),
        Panel(
            "Answers in memory",
            "short",
            "How many answers the response caches hold.",
            "It falls to nothing whenever the line to the database is lost, and fills again by itself.",
            (Query("sum by (instance, worker) (lakthan_ocsp_cached_answers{$of})", "{{instance}} {{worker}}"),),
        ),
        Panel(
            "Memory of the response cache",
            "bytes",
            "About what those answers take.",
            "At its bound, old answers make room for new ones; nothing else happens.",
            (Query("sum by (instance, worker) (lakthan_ocsp_cache_bytes{$of})", "{{instance}} {{worker}}"),),
        ),
    ),
)

_EDGE = Row(
    "Published answers, and responders without a key",
    (
        Panel(
            "Published answers of an authority end in",
            "s",
            "What an offline CA signed in its last ceremony, or the publisher's last answer.",
            "Prepare the ceremony: OCSPPublishedAnswersEnd in docs/runbooks/ocsp.md.",
            (
                Query(
                    "min by (authority) (lakthan_ocsp_published_until_timestamp_seconds{$of}) - time()", "{{authority}}"
                ),
            ),
            bounds=Bounds(14 * _DAY, _DAY, low_is_bad=True),
        ),
        Panel(
            "tryLater although an answer is published, by cause",
            "reqps",
            "changed: the certificate was revoked since. not yet: the publisher owes one. too old: the edge is cut.",
            "changed: the next ceremony. not yet: look at the publisher below. too old: OCSPEdgeCut.",
            (rate("lakthan_ocsp_published_withheld_total", "authority", "cause"),),
        ),
        Panel(
            "Age of what the edges answer by",
            "s",
            "How long ago the capital was last heard, by the clock that says more.",
            "See OCSPEdgeCut in docs/runbooks/ocsp.md.",
            (Query("max by (instance) (lakthan_ocsp_copy_age_seconds{$of})", "{{instance}}"),),
            bounds=Bounds(10, 60),
        ),
        Panel(
            "Processes of the edges, by the state of their copy",
            "short",
            "live; cut: no news for ten seconds; warm: answers from the file; refusing: older than the bound.",
            "Anything but live for long: mend the line to the capital. OCSPEdgeCut in docs/runbooks/ocsp.md.",
            (Query("sum by (state) (lakthan_ocsp_copy_state{$of})", "{{state}}"),),
            stacked=True,
        ),
        Panel(
            "Answers of the edges, by the state of their copy",
            "reqps",
            "What clients at the edges got, and as of when.",
            "refusing: clients get tryLater there until the line is mended.",
            (rate("lakthan_ocsp_copy_answers_total", "state"),),
            stacked=True,
        ),
        Panel(
            "Age of the edges' last snapshot on disk, and of the heartbeat",
            "s",
            "What an edge would start from if it lost its copy.",
            "Snapshots growing old: the disk is full or not writable; the log says which.",
            (
                Query(
                    "time() - max by (instance) (lakthan_ocsp_warm_start_timestamp_seconds{$of} > 0)",
                    "file {{instance}}",
                ),
                Query(
                    "time() - max by (instance) (lakthan_ocsp_copy_heartbeat_timestamp_seconds{$of} > 0)",
                    "heartbeat {{instance}}",
                ),
            ),
        ),
        Panel(
            "Answers in the snapshot on disk, and failures to write it",
            "short",
            "By edge; failures in an hour.",
            "Failures: free space, or correct the folder's owner.",
            (
                Query("max by (instance) (lakthan_ocsp_warm_start_answers{$of})", "answers {{instance}}"),
                Query(
                    "sum by (instance) (increase(lakthan_ocsp_warm_start_failures_total{$of}[1h]))",
                    "failed {{instance}}",
                ),
            ),
        ),
    ),
)

_PUBLISHER = Row(
    "The publisher, which signs ahead (all publishers that Prometheus knows)",
    (
        Panel(
            "Processes that sign for an authority",
            "short",
            "One leads, the others stand by; working says that nothing keeps it from signing.",
            "No leader: PublisherWithoutLeader in docs/runbooks/publisher.md.",
            (
                Query("sum by (authority) (lakthan_publisher_leader)", "leads {{authority}}"),
                Query("sum by (authority) (lakthan_publisher_working)", "working {{authority}}"),
            ),
            bounds=Bounds(None, 1, low_is_bad=True),
        ),
        Panel(
            "The publisher's clock ahead of the database's",
            "s",
            "Beyond clock_tolerance (a minute) nothing is signed: the second series is 0, and another leads.",
            "Set the clock that is wrong; PublisherWithoutLeader in docs/runbooks/publisher.md where nobody leads.",
            (
                Query("max by (instance) (lakthan_publisher_clock_ahead_seconds)", "{{instance}}"),
                Query("min by (instance) (lakthan_publisher_clock_believed)", "{{instance}} believed"),
            ),
        ),
        Panel(
            "How late the schedule is",
            "s",
            "The answer that has been due the longest.",
            "Growing: the key is too slow for this refresh interval. PublisherBehind in docs/runbooks/publisher.md.",
            (Query("max by (authority) (lakthan_publisher_behind_seconds)", "{{authority}}"),),
            bounds=Bounds(300, 900),
        ),
        Panel(
            "Until a due answer ends",
            "s",
            "The shortest life left of an answer that is due. Nothing is drawn while none is due.",
            "At zero clients hear tryLater: PublishedAnswerEnds in docs/runbooks/publisher.md.",
            (
                Query(
                    "min by (authority) (lakthan_publisher_earliest_next_update_timestamp_seconds > 0) - time()",
                    "{{authority}}",
                ),
            ),
            bounds=Bounds(4 * 3600, 3600, low_is_bad=True),
        ),
        Panel(
            "Answers signed, by cause",
            "ops",
            "changed: revoked or restored. issued, missing: new certificates. due: renewed on schedule.",
            "Only missing ones: the publisher does not hear of changes and finds them by looking.",
            (Query("sum by (cause) (rate(lakthan_publisher_published_total[$__rate_interval]))", "{{cause}}"),),
            stacked=True,
        ),
        Panel(
            "Answers that are due, of all",
            "short",
            "Counted up to 100,000, every 15 seconds.",
            "Due ones growing without end: the key is too slow, or failing.",
            (
                Query("max by (authority) (lakthan_publisher_due)", "due {{authority}}"),
                Query("max by (authority) (lakthan_publisher_certificates)", "certificates {{authority}}"),
            ),
        ),
        Panel(
            "Signatures a second: needed, and allowed",
            "ops",
            "Certificates × hashes ÷ refresh, against the bound of the configuration (0: none).",
            "More needed than allowed: PublisherShort in docs/runbooks/publisher.md.",
            (
                Query("max by (authority) (lakthan_publisher_needed_signatures_per_second)", "needed {{authority}}"),
                Query("max by (authority) (lakthan_publisher_allowed_signatures_per_second)", "allowed {{authority}}"),
                Query("max by (authority) (lakthan_publisher_short)", "short (1) {{authority}}"),
            ),
        ),
        Panel(
            "From a change to the published answer",
            "s",
            "The oldest change of each batch.",
            "High: the database, or the key, is slow; the log of the publisher says what it waits for.",
            tuple(
                Query(
                    f"histogram_quantile({share}, sum by (le)"
                    " (rate(lakthan_publisher_change_to_published_seconds_bucket[$__rate_interval])))",
                    said,
                )
                for share, said in ((0.5, "half take less"), (0.99, "99 %"))
            ),
        ),
        Panel(
            "Answers that could not be signed, or came too late",
            "ops",
            "Failed ones are tried again; overtaken ones were thrown away, because the certificate changed meanwhile.",
            "Failures: the key. KeyCircuitOpen in docs/runbooks/keys.md.",
            (
                Query(
                    "sum by (authority) (rate(lakthan_publisher_failed_total[$__rate_interval]))",
                    "failed {{authority}}",
                ),
                Query(
                    "sum by (authority) (rate(lakthan_publisher_overtaken_total[$__rate_interval]))",
                    "overtaken {{authority}}",
                ),
            ),
        ),
        Panel(
            "Age of the publisher's heartbeat",
            "s",
            "Edges take it as the proof that they hear everything.",
            "Old: the publisher is down or has lost the database, and soon every edge says that it is cut.",
            (Query("time() - max(lakthan_publisher_heartbeat_timestamp_seconds > 0)", "heartbeat"),),
            bounds=Bounds(5, 60),
        ),
    ),
)

OCSP = Dashboard(
    "lakthan-ocsp",
    "Lakthan: OCSP",
    "Certificate status: what clients get, how fast, and whether revocations arrive. docs/monitoring.md says where to"
    " look first.",
    "lakthan_ocsp_feed_trusted",
    "OCSP.*|Publish.*",
    (_ANSWERING, _TRAFFIC, _TIME, _REVOCATIONS, _EDGE, _PUBLISHER, floods("ocsp"), PROCESSES),
)
