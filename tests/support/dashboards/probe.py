"""The dashboard of the probe: what clients see."""

from __future__ import annotations

from support.dashboards.model import Bounds, Dashboard, Panel, Query, Row

_DAY = 86400
_PLACE = "{{url}} {{subject}}"

_WELL = Row(
    "Do clients get what is right?",
    (
        Panel(
            "Checks that fail now",
            "short",
            "Seen from outside, as clients ask: no answer, a wrong one, or one that nobody accepts.",
            "ProbeFails in docs/runbooks/probe.md.",
            (Query("count(lakthan_probe_success{$of} == 0) or vector(0)"),),
            bounds=Bounds(None, 1),
            number=True,
            width=4,
        ),
        Panel(
            "Checks with a warning now",
            "short",
            "Nothing fails yet.",
            "ProbeWarns in docs/runbooks/probe.md.",
            (Query("sum(lakthan_probe_warning{$of})"),),
            bounds=Bounds(1, None),
            number=True,
            width=4,
        ),
        Panel(
            "Last round ended, ago",
            "s",
            "A probe that stands sees nothing.",
            "ProbeStands in docs/runbooks/probe.md.",
            (Query("time() - max(lakthan_probe_last_round_timestamp_seconds{$of})"),),
            bounds=Bounds(300, 900),
            number=True,
            width=4,
        ),
        Panel(
            "Each check: 1 is in order, 0 fails",
            "short",
            "One line for each check of each URL and authority or policy.",
            "`lakthan probe PLAN` says what was found and what to do.",
            (
                Query(
                    "min by (url, subject, check) (lakthan_probe_success{$of})",
                    f"{_PLACE} {{{{check}}}}",
                ),
            ),
            width=12,
        ),
        Panel(
            "A failing check was last in order, ago",
            "s",
            "How long clients have been living with it.",
            "ProbeFails in docs/runbooks/probe.md.",
            (
                Query(
                    "(time() - max by (url, subject, check) (lakthan_probe_last_success_timestamp_seconds{$of})) > 300",
                    f"{_PLACE} {{{{check}}}}",
                ),
            ),
        ),
        Panel(
            "Rounds by their gravest finding, an hour",
            "short",
            "How often everything was asked, and with what success.",
            "No rounds: see ProbeStands.",
            (Query("sum by (grade) (increase(lakthan_probe_rounds_total{$of}[1h]))", "{{grade}}"),),
            stacked=True,
        ),
    ),
)

_HOW = Row(
    "How well?",
    (
        Panel(
            "Answers take (99 of 100)",
            "s",
            "From a question to its answer, the network included.",
            "Slower than the services' own figures: the network or a proxy in between.",
            (
                Query(
                    "histogram_quantile(0.99, sum by (le, url)"
                    " (rate(lakthan_probe_answer_seconds_bucket{$of}[$__rate_interval])))",
                    "{{url}}",
                ),
            ),
            bounds=Bounds(0.5, 1),
        ),
        Panel(
            "A round takes",
            "s",
            "All questions of the plan, one URL after the other.",
            "Near the interval: ask less often, or from several probes.",
            (Query("max by (instance) (lakthan_probe_round_seconds{$of})", "{{instance}}"),),
        ),
        Panel(
            "Their clocks are ahead of the probe's by",
            "s",
            "By the HTTP date, by producedAt and by genTime.",
            "All of them alike: the probe's own clock. One alone: `lakthan doctor` there.",
            (
                Query(
                    "max by (url, subject, source) (lakthan_probe_clock_skew_seconds{$of})",
                    f"{_PLACE} {{{{source}}}}",
                ),
            ),
        ),
        Panel(
            "Certificates of responders and units end in",
            "s",
            "Of those that answered.",
            "Have them renewed: docs/keys.md.",
            (
                Query(
                    "min by (url, subject, certificate)"
                    " (lakthan_probe_certificate_not_after_timestamp_seconds{$of}) - time()",
                    f"{_PLACE} {{{{certificate}}}}",
                ),
            ),
            bounds=Bounds(30 * _DAY, 7 * _DAY, low_is_bad=True),
        ),
        Panel(
            "Answers hold for",
            "s",
            "Until the earliest nextUpdate that was seen.",
            "Towards zero: no new answers are made. Look at the publisher, or at the CRL that they come from.",
            (
                Query(
                    "min by (url, subject) (lakthan_probe_next_update_timestamp_seconds{$of}) - time()",
                    _PLACE,
                ),
            ),
        ),
    ),
)

PROBE = Dashboard(
    "lakthan-probe",
    "Lakthan: probe",
    "The installation as its clients see it, by `lakthan probe --listen`.",
    "lakthan_probe_last_round_timestamp_seconds",
    "Probe.*",
    (_WELL, _HOW),
)
