"""Every series of the time-stamp authority, declared here and documented in docs/metrics.md.

Label values are spelled as in the RFC. Children are made once; the hot path only increments.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from lakthan_tsa.clock.quorum import STANDINGS, NTPQuorum
from lakthan_tsa.clock_guard import ClockState
from lakthan_tsa.syntax import PKIFailureInfo

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lakthan_tsa.clock_guard import ClockGuard
    from lakthan_tsa.profiles import Profile, Unit

_SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0)
_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class TSAMetrics:
    """The series of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        requests = Counter(
            "lakthan_tsa_requests",
            "Requests answered, by outcome: granted, or the PKIFailureInfo of the rejection.",
            ["outcome"],
            registry=self.registry,
        )
        self.granted = requests.labels("granted")
        self.rejected = {fail_info: requests.labels(fail_info.label) for fail_info in PKIFailureInfo}
        self.http_refusals = Counter(
            "lakthan_tsa_http_refusals",
            "Requests refused before they were TSP, by HTTP status.",
            ["code"],
            registry=self.registry,
        )
        self.tokens = Counter(
            "lakthan_tsa_tokens", "Tokens granted, by the unit that stamped them.", ["unit"], registry=self.registry
        )
        self.sign_seconds = Histogram(
            "lakthan_tsa_sign_seconds",
            "Time from the octets to their signature.",
            ["unit"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.record_seconds = Histogram(
            "lakthan_tsa_record_seconds",
            "Time from a signed token to its durable record, waiting for the commit before included.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.commit_tokens = Histogram(
            "lakthan_tsa_commit_tokens", "Tokens recorded by one commit.", buckets=_TOKENS, registry=self.registry
        )
        self.commit_seconds = Histogram(
            "lakthan_tsa_commit_seconds",
            "Time that one commit of token records took.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.self_check_failures = Counter(
            "lakthan_tsa_self_check_failures",
            "Tokens that did not pass the last look and were thrown away.",
            registry=self.registry,
        )
        self.unsynchronised_tokens = Counter(
            "lakthan_tsa_unsynchronised_tokens",
            'Tokens granted although the clock did not hold its accuracy; only with clock.mode = "warn".',
            registry=self.registry,
        )
        self.clock_state = Gauge(
            "lakthan_tsa_clock_state",
            "1 for the state that the clock is in, 0 for the others.",
            ["state"],
            registry=self.registry,
        )
        self.clock_bound = Gauge(
            "lakthan_tsa_clock_bound_seconds",
            "How far off the clock may be at most; NaN when nobody can tell.",
            registry=self.registry,
        )
        self.clock_offset = Gauge(
            "lakthan_tsa_clock_offset_seconds",
            "How far the clock is ahead of UTC by its best source; NaN when nobody can tell.",
            registry=self.registry,
        )
        self.clock_jumps = Gauge(
            "lakthan_tsa_clock_jumps", "Steps of the clock noticed since the start.", registry=self.registry
        )
        self.ntp_servers = Gauge(
            "lakthan_tsa_ntp_servers",
            "NTP servers by their standing: truechimer, falseticker or silent.",
            ["standing"],
            registry=self.registry,
        )
        self.certificate_not_after = Gauge(
            "lakthan_tsa_certificate_not_after_timestamp_seconds",
            "When the unit's certificate runs out.",
            ["unit"],
            registry=self.registry,
        )
        self.key_not_after = Gauge(
            "lakthan_tsa_key_not_after_timestamp_seconds",
            "When the unit's key must stop stamping, by its privateKeyUsagePeriod or with its certificate.",
            ["unit"],
            registry=self.registry,
        )
        self.frozen = Gauge(
            "lakthan_tsa_unit_frozen",
            "1 when the unit was frozen: it stamps no more.",
            ["unit"],
            registry=self.registry,
        )
        self.token_octets = Gauge(
            "lakthan_tsa_token_octets",
            "Octets of the longest token with certificates; clients reserve that much room.",
            ["profile"],
            registry=self.registry,
        )

    def committed(self, tokens: int, seconds: float) -> None:
        """One commit of token records is done."""
        self.commit_tokens.observe(tokens)
        self.commit_seconds.observe(seconds)

    def watch_clock(self, clock: ClockGuard) -> None:
        """Show the guard's view of the clock at every scrape."""

        def is_in(state: ClockState) -> bool:
            return clock.state is state

        for state in ClockState:
            self.clock_state.labels(state.label).set_function(partial(is_in, state))
        self.clock_bound.set_function(lambda: float("nan") if clock.bound is None else clock.bound.total_seconds())
        self.clock_offset.set_function(lambda: float("nan") if clock.offset is None else clock.offset.total_seconds())
        self.clock_jumps.set_function(lambda: clock.jumps)
        for source in clock.sources:
            if isinstance(source, NTPQuorum):
                for standing in STANDINGS:
                    self.ntp_servers.labels(standing).set_function(partial(source.how_many, standing))

    def watch_units(self, units: Iterable[Unit]) -> None:
        """Show how long each unit may stamp, and whether it is frozen."""
        for unit in units:
            self.certificate_not_after.labels(unit.name).set(unit.identity.view.not_after.timestamp())
            self.key_not_after.labels(unit.name).set(unit.usage.not_after.timestamp())
            self.frozen.labels(unit.name).set_function(partial(getattr, unit, "frozen"))

    def watch_profiles(self, profiles: Iterable[Profile]) -> None:
        """Show how long the tokens of each profile get."""
        for profile in profiles:
            self.token_octets.labels(profile.name).set(profile.token_octets)
