"""The dashboard of the registry: what CAs send, the CRLs that are fetched, and whether CRL and OCSP agree."""

from __future__ import annotations

from support.dashboards.model import Bounds, Dashboard, Panel, Query, Row, percentile, rate
from support.dashboards.workers import PROCESSES

_HOUR = 3600

_WORKING = Row(
    "Is it taking what CAs send?",
    (
        Panel(
            "Requests a second",
            "reqps",
            "All requests of the API.",
            "Zero while CAs issue: can they reach it? Their robots log why not.",
            (rate("lakthan_registry_requests_total"),),
            number=True,
            width=4,
        ),
        Panel(
            "Share that failed here (5xx)",
            "percentunit",
            "Not the caller's doing: the database is away, something took too long, or a defect.",
            "The log has a line for each. Nothing is half done: callers may send the same again.",
            (
                Query(
                    '(sum(rate(lakthan_registry_requests_total{$of,code=~"5.."}[$__rate_interval])) or vector(0))'
                    " / sum(rate(lakthan_registry_requests_total{$of}[$__rate_interval]))"
                ),
            ),
            bounds=Bounds(0.001, 0.01),
            number=True,
            width=4,
        ),
        Panel(
            "Responders that follow the store",
            "short",
            "Processes that will hear of the next revocation.",
            "Fewer than you run: OCSPFeedLost in docs/runbooks/ocsp.md.",
            (Query("max(lakthan_registry_responders{$of})"),),
            bounds=Bounds(None, 1, low_is_bad=True),
            number=True,
            width=4,
        ),
        Panel(
            "CRL and OCSP differ about",
            "short",
            "Certificates, beyond the delay that the CA declared.",
            "See CRLAndOCSPDiffer in docs/runbooks/registry.md.",
            (Query('sum(lakthan_registry_crl_ocsp_differences{$of,age="alarm"})'),),
            bounds=Bounds(None, 1),
            number=True,
            width=4,
        ),
        Panel(
            "CRLs that are overdue",
            "short",
            "URLs that give no fresh list although the last one nears its end, or has ended.",
            "See CRLOverdue in docs/runbooks/registry.md.",
            (Query("sum(lakthan_registry_crl_overdue{$of})"),),
            bounds=Bounds(None, 1),
            number=True,
            width=4,
        ),
        Panel(
            "Clients' CRL ends in",
            "s",
            "From then on, clients certified by that CA are refused.",
            "See ClientCRLEnds in docs/runbooks/registry.md.",
            (Query("min(lakthan_registry_client_crl_next_update_timestamp_seconds{$of}) - time()"),),
            bounds=Bounds(72 * _HOUR, 24 * _HOUR, low_is_bad=True),
            number=True,
            width=4,
        ),
    ),
)

_DOOR = Row(
    "The door",
    (
        Panel(
            "Requests by operation",
            "reqps",
            "By the operation's name in openapi.json; none is a path that is not there.",
            "A CA that usually pushes and does not: ask it.",
            (rate("lakthan_registry_requests_total", "operation"),),
        ),
        Panel(
            "Answers by HTTP status",
            "reqps",
            "4xx is for the caller to correct, 5xx for you.",
            "5xx: the log. 429: one caller sends too much at once.",
            (rate("lakthan_registry_requests_total", "code"),),
        ),
        Panel(
            "Refusals by kind",
            "reqps",
            "The kinds are explained in docs/registry.md.",
            "wrong-authority, two-identities, …-revoked: SomebodyTriesWhatIsNotHis in docs/runbooks/registry.md.",
            (rate("lakthan_registry_refusals_total", "problem"),),
        ),
        Panel(
            "One request in a hundred takes longer than",
            "s",
            "By operation; waiting for responders (`?wait=served`) included.",
            "Dots are single slow requests: their request_id is in the log.",
            (percentile("lakthan_registry_request_seconds", "operation"),),
        ),
        Panel(
            "Changes on record",
            "ops",
            "What came in by this door: issue, revoke, hold, unhold.",
            "A wave of revocations is worth a telephone call to the CA.",
            (rate("lakthan_registry_changes_total", "change"),),
            stacked=True,
        ),
        Panel(
            "From a commit until every responder answers by it",
            "s",
            "acknowledged: all said so. expired trust: one did not, and may not answer from memory any more.",
            "expired trust all the time: a responder is there but cut off; see OCSPFeedLost.",
            (percentile("lakthan_registry_served_seconds", "how"),),
        ),
        Panel(
            "Requests being worked on",
            "short",
            "Eight at most for each credential, two with a CRL.",
            "At the bound for minutes: the database is slow, or a CA sends its whole history.",
            (Query("sum by (instance) (lakthan_registry_requests_in_flight{$of})", "{{instance}}"),),
        ),
        Panel(
            "Refusals that are not on record",
            "ops",
            "The database was away just then; the log has them.",
            "Keep the log of that time for the audit.",
            (rate("lakthan_registry_unaudited_refusals_total", "instance"),),
            bounds=Bounds(0.0001, None),
        ),
        Panel(
            "CRLs that CAs sent here",
            "ops",
            "imported, nothing new, or the rule that they broke.",
            "A broken rule: tell the CA; docs/crl-import.md explains each.",
            (rate("lakthan_registry_posted_crls_total", "outcome"),),
        ),
        Panel(
            "Clients' CRLs end in",
            "s",
            "By the issuer of client certificates.",
            "Put the new CRL in place: ClientCRLEnds in docs/runbooks/registry.md.",
            (
                Query(
                    "min by (issuer) (lakthan_registry_client_crl_next_update_timestamp_seconds{$of}) - time()",
                    "{{issuer}}",
                ),
            ),
            bounds=Bounds(72 * _HOUR, 24 * _HOUR, low_is_bad=True),
        ),
    ),
)

_SOURCES = Row(
    "CRLs that are fetched",
    (
        Panel(
            "Fetches by what came of them",
            "ops",
            "The registry asks every URL of every authority's policy again and again.",
            "unreachable: the CA's server. refused: the rule is in the next picture and in the log.",
            (rate("lakthan_registry_crl_fetches_total", "authority", "outcome"),),
        ),
        Panel(
            "CRLs refused, by the rule that they broke",
            "ops",
            "From URLs and from the spool.",
            "Tell the CA; docs/crl-import.md explains each.",
            (rate("lakthan_registry_source_crls_refused_total", "authority", "source", "verdict"),),
        ),
        Panel(
            "The newest CRL ends in",
            "s",
            "By URL: what its nextUpdate says.",
            "At zero OCSP says tryLater for that authority: CRLOverdue in docs/runbooks/registry.md.",
            (
                Query(
                    "min by (authority, url) (lakthan_registry_crl_next_update_timestamp_seconds{$of}) - time()",
                    "{{authority}} {{url}}",
                ),
            ),
            bounds=Bounds(_HOUR, 0, low_is_bad=True),
        ),
        Panel(
            "Since a URL last gave a good CRL",
            "s",
            "Or said that the one on record still holds.",
            "Growing beyond the polling interval: fetch it by hand and look.",
            (
                Query(
                    "time() - max by (authority, url) (lakthan_registry_crl_last_success_timestamp_seconds{$of})",
                    "{{authority}} {{url}}",
                ),
            ),
        ),
        Panel(
            "Overdue by URL",
            "short",
            "1 while nothing fresh can be had.",
            "CRLOverdue in docs/runbooks/registry.md.",
            (Query("max by (authority, url) (lakthan_registry_crl_overdue{$of})", "{{authority}} {{url}}"),),
            bounds=Bounds(None, 1),
        ),
        Panel(
            "Files taken from the spool",
            "ops",
            "By authority: done or failed.",
            "Failed ones lie in the folder beside, with the reason.",
            (rate("lakthan_registry_spool_files_total", "authority", "outcome"),),
        ),
    ),
)

_AGREEMENT = Row(
    "Do CRL and OCSP say the same?",
    (
        Panel(
            "Certificates about which they differ",
            "short",
            "pending: within the delay that the CA declared; alarm: beyond it.",
            "`lakthan monitor AUTHORITY --once` names them: CRLAndOCSPDiffer in docs/runbooks/registry.md.",
            (Query("max by (authority, age) (lakthan_registry_crl_ocsp_differences{$of})", "{{authority}} {{age}}"),),
            bounds=Bounds(None, 1),
        ),
        Panel(
            "What could not be compared",
            "short",
            "CRLs and responders that gave nothing to compare.",
            "Can the registry reach the URL of the responder, and of the CRL?",
            (Query("max by (authority) (lakthan_registry_crl_ocsp_problems{$of})", "{{authority}}"),),
            bounds=Bounds(1, None),
        ),
        Panel(
            "Since the last comparison",
            "s",
            "By authority; every five minutes is usual, large CRLs take longer.",
            "Growing: the log of the registry says what keeps it.",
            (
                Query(
                    "time() - max by (authority) (lakthan_registry_crl_ocsp_compared_timestamp_seconds{$of})",
                    "{{authority}}",
                ),
            ),
        ),
    ),
)

REGISTRY = Dashboard(
    "lakthan-registry",
    "Lakthan: registry",
    "What CAs send and publish, and whether everybody then hears the same.",
    "lakthan_registry_requests_in_flight",
    "CRL.*|Client.*|Somebody.*",
    (_WORKING, _DOOR, _SOURCES, _AGREEMENT, PROCESSES),
)
