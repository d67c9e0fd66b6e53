"""The dashboard of the time-stamp authority. Its clock and keys are on “Keys and clocks”."""

from __future__ import annotations

from support.dashboards.floods import floods
from support.dashboards.model import Bounds, Dashboard, Panel, Query, Row, percentile, quantiles, rate
from support.dashboards.workers import PROCESSES

_UNANSWERED = 'outcome=~"systemFailure|timeNotAvailable"'

_STAMPING = Row(
    "Is it stamping?",
    (
        Panel(
            "Tokens a second",
            "reqps",
            "Time stamps granted and durably on record.",
            "Zero while clients exist: see TSAAbsent and TSAClockOut in docs/runbooks/tsa.md.",
            (rate("lakthan_tsa_tokens_total"),),
            number=True,
            width=4,
        ),
        Panel(
            "Share that got no token",
            "percentunit",
            "systemFailure and timeNotAvailable among all requests. The objective is at most 0.1 % in 30 days.",
            "Above 1.4 % the month's allowance is gone in two days: TSABudgetBurnsFast in docs/runbooks/tsa.md.",
            (
                Query(
                    f"sum(rate(lakthan_tsa_requests_total{{$of,{_UNANSWERED}}}[$__rate_interval]))"
                    " / sum(rate(lakthan_tsa_requests_total{$of}[$__rate_interval]))"
                ),
            ),
            bounds=Bounds(0.001, 0.0144),
            number=True,
            width=4,
        ),
        Panel(
            "One in a hundred takes longer than",
            "s",
            "From a complete request to its token, the durable record included.",
            "See TSASlow in docs/runbooks/tsa.md; the row “How long does it take?” says where the time goes.",
            (percentile("lakthan_tsa_request_seconds"),),
            bounds=Bounds(0.1, 0.5),
            number=True,
            width=4,
        ),
        Panel(
            "Processes whose clock may not stamp",
            "short",
            "They refuse with timeNotAvailable until their clock can be relied on again.",
            "See TSAClockOut in docs/runbooks/tsa.md.",
            (Query('sum(lakthan_tsa_clock_state{$of,state=~"out of sync|unknown"})'),),
            bounds=Bounds(None, 1),
            number=True,
            width=4,
        ),
        Panel(
            "Tokens that failed the last look, in an hour",
            "short",
            "They were thrown away before anybody got them: a device signs wrongly.",
            "See TSASelfCheckFailed in docs/runbooks/tsa.md.",
            (Query("sum(increase(lakthan_tsa_self_check_failures_total{$of}[1h]))"),),
            bounds=Bounds(None, 1),
            number=True,
            width=4,
        ),
        Panel(
            "Units that are frozen",
            "short",
            "Somebody said that a key must not stamp any more.",
            "See TSAUnitFrozen in docs/runbooks/tsa.md.",
            (Query("sum(max by (unit) (lakthan_tsa_unit_frozen{$of}))"),),
            bounds=Bounds(None, 1),
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
            "granted, or the reason of the rejection in the words of RFC 3161.",
            "systemFailure: the log has a line with the reason for each. timeNotAvailable: TSAClockOut.",
            (rate("lakthan_tsa_requests_total", "outcome"),),
        ),
        Panel(
            "Tokens by the unit that stamped them",
            "reqps",
            "Each unit has keys of its own.",
            "One unit does all: the others are frozen, or their key does not sign.",
            (rate("lakthan_tsa_tokens_total", "unit"),),
            stacked=True,
        ),
        Panel(
            "Refused before it was a time-stamp request",
            "reqps",
            "By HTTP status: 401 and 403 are credentials, 429 quotas, the others wrong requests.",
            "Many 429: the client asks more often than agreed. 415: it speaks Authenticode's old protocol.",
            (rate("lakthan_tsa_http_refusals_total", "code"),),
        ),
    ),
)

_TIME = Row(
    "How long does it take?",
    (
        Panel(
            "From a request to its token",
            "s",
            "In the server, without the network. Dots are single slow requests: their request_id is in the log.",
            "See TSASlow in docs/runbooks/tsa.md.",
            quantiles("lakthan_tsa_request_seconds"),
            bounds=Bounds(None, 0.5),
        ),
        Panel(
            "Signing, one in a hundred takes longer than",
            "s",
            "From the octets to their signature, queueing in the device included.",
            "High: the key is at its end; see “Keys and clocks”.",
            (percentile("lakthan_tsa_sign_seconds", "unit"),),
        ),
        Panel(
            "From a signed token to its durable record",
            "s",
            "No token leaves before it is on record; this is the wait for the commit.",
            "High: the database's disk, or a synchronous standby that is slow.",
            quantiles("lakthan_tsa_record_seconds"),
        ),
        Panel(
            "What one commit takes",
            "s",
            "Tokens are recorded many at a time.",
            "High: as beside it. PostgreSQL's own dashboard says whether it is the disk.",
            quantiles("lakthan_tsa_commit_seconds"),
        ),
        Panel(
            "Tokens in one commit",
            "short",
            "It grows with the load by itself; that keeps commits few.",
            "Nothing, as long as the time of a commit stays low.",
            quantiles("lakthan_tsa_commit_tokens"),
        ),
        Panel(
            "Longest token",
            "bytes",
            "With certificates, by profile. Clients reserve that much room in a document.",
            "Above what signers reserve: leave out intermediate certificates, or tell them.",
            (Query("max by (profile) (lakthan_tsa_token_octets{$of})", "{{profile}}"),),
        ),
    ),
)

_CARE = Row(
    "Is every token looked at?",
    (
        Panel(
            "Tokens thrown away by the last look",
            "ops",
            "Every token is read again before it leaves. It should be zero for ever.",
            "Freeze the unit and look at the device: TSASelfCheckFailed in docs/runbooks/tsa.md.",
            (rate("lakthan_tsa_self_check_failures_total", "instance"),),
        ),
        Panel(
            "Units whose every signature is verified",
            "short",
            "1: each one; 0: samples only, because verifying costs more than signing (`self_check`).",
            "A device that failed once should have each one verified.",
            (Query("min by (unit) (lakthan_tsa_every_signature_verified{$of})", "{{unit}}"),),
        ),
        Panel(
            "Tokens of a clock out of its accuracy",
            "ops",
            'Only with clock.mode = "warn", which is for tests.',
            'In production: set clock.mode to "enforce", and tell the auditor.',
            (rate("lakthan_tsa_unsynchronised_tokens_total", "instance"),),
            bounds=Bounds(None, 0.0001),
        ),
    ),
)

TSA = Dashboard(
    "lakthan-tsa",
    "Lakthan: time stamps",
    "The time-stamp authority: what clients get, how fast, and whether every token is as it should be.",
    "lakthan_tsa_clock_jumps",
    "TSA.*",
    (_STAMPING, _TRAFFIC, _TIME, _CARE, floods("tsa"), PROCESSES),
)
