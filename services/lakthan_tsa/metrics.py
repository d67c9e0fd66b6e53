"""Every series of the time-stamp authority, declared here and documented in docs/metrics.md.

Label values are spelled as in the RFC. What happens for every token is counted in plain numbers, which are brought into
the series when somebody reads them.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, ProcessCollector
from prometheus_client.registry import Collector

from lakthan.keys.metrics import KeyMetrics
from lakthan.keys.ring_metrics import KeyLife, RingMetrics
from lakthan.telemetry.plain import PlainHistogram
from lakthan.telemetry.slow import Slow
from lakthan.web.wire_metrics import WireMetrics
from lakthan_tsa.clock.quorum import STANDINGS, NTPQuorum
from lakthan_tsa.clock_guard import ClockState
from lakthan_tsa.syntax import PKIFailureInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from lakthan.keys.key_ring import KeyRing
    from lakthan.web.wire import Wire
    from lakthan_tsa.clock_guard import ClockGuard
    from lakthan_tsa.profiles import Profile, Unit
    from lakthan_tsa.self_check import SelfCheck

_SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0)
_SLOW_SECONDS = 0.5  # from here on a request is logged; the alert TSASlow has the same bound
_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Tally:
    """How many there were since the series were read last."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class TSAMetrics:
    """The series of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._tallies: list[tuple[Tally, Counter]] = []
        self.registry.register(_Before(self._bring_in))  # the first, so that the others give what it brings in
        ProcessCollector(registry=self.registry)
        KeyMetrics("lakthan_tsa", self.registry)
        self._wire = WireMetrics("lakthan_tsa", self.registry)
        self._keys = RingMetrics("lakthan_tsa", "unit", self.registry)
        requests = Counter(
            "lakthan_tsa_requests",
            "Requests answered, by outcome: granted, or the PKIFailureInfo of the rejection.",
            ["outcome"],
            registry=self.registry,
        )
        self.granted = self._tally(requests.labels("granted"))
        self.rejected = {fail_info: requests.labels(fail_info.label) for fail_info in PKIFailureInfo}
        self.http_refusals = Counter(
            "lakthan_tsa_http_refusals",
            "Requests refused before they were TSP, by HTTP status.",
            ["code"],
            registry=self.registry,
        )
        self._tokens = Counter(
            "lakthan_tsa_tokens", "Tokens granted, by the unit that stamped them.", ["unit"], registry=self.registry
        )
        self.slow = Slow(
            PlainHistogram(
                "lakthan_tsa_request_seconds",
                "Time from a complete request to its answer.",
                buckets=_SECONDS,
                registry=self.registry,
            ).labels(),
            _SLOW_SECONDS,
        )
        self.sign_seconds = PlainHistogram(
            "lakthan_tsa_sign_seconds",
            "Time from the octets to their signature.",
            label="unit",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.record_seconds = PlainHistogram(
            "lakthan_tsa_record_seconds",
            "Time from a signed token to its durable record, waiting for the commit before included.",
            buckets=_SECONDS,
            registry=self.registry,
        ).labels()
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
        self.every_signature_verified = Gauge(
            "lakthan_tsa_every_signature_verified",
            "1 when the signature of every token of the unit is verified before it leaves, 0 when of samples only.",
            ["unit"],
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

    def tokens(self, unit: str) -> Tally:
        """Where the tokens of a unit are counted."""
        return self._tally(self._tokens.labels(unit))

    def _tally(self, counter: Counter) -> Tally:
        tally = Tally()
        self._tallies.append((tally, counter))
        return tally

    def watch_wire(self, wire: Wire) -> None:
        """Show what it counts."""
        self._wire.watch(wire)

    def _bring_in(self) -> None:
        self._wire.bring_in()
        for tally, counter in self._tallies:
            count, tally.count = tally.count, 0
            counter.inc(count)

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
        """Show how long each unit may stamp, with the last key of its list, and whether one of them is frozen."""
        by_name: dict[str, list[Unit]] = {}
        for unit in units:
            by_name.setdefault(unit.name, []).append(unit)
        for name, those in by_name.items():
            ends = max(unit.identity.view.not_after for unit in those)
            self.certificate_not_after.labels(name).set(ends.timestamp())
            self.key_not_after.labels(name).set(max(_end(unit) for unit in those).timestamp())
            self.frozen.labels(name).set_function(partial(_any_frozen, those))

    def watch_keys(self, rings: Sequence[KeyRing[Unit]]) -> None:
        """Show which keys there are, and what is wrong with the key lists."""
        self._keys.lives = partial(_lives, rings)
        self._keys.problems = lambda: [(ring.name, ring.problem) for ring in rings if ring.path is not None]

    def watch_check(self, unit: str, check: SelfCheck) -> None:
        """Show how much the last look at a unit's tokens looks at."""
        self.every_signature_verified.labels(unit).set(check.always_verifies)

    def watch_profiles(self, profiles: Iterable[Profile]) -> None:
        """Show how long the tokens of each profile get."""
        for profile in profiles:
            self.token_octets.labels(profile.name).set(profile.token_octets)


def _end(unit: Unit) -> datetime:
    return unit.usage.not_after if unit.listed is None else min(unit.usage.not_after, unit.listed.not_after)


def _any_frozen(units: Sequence[Unit]) -> bool:
    return any(unit.frozen for unit in units)


def _lives(rings: Sequence[KeyRing[Unit]]) -> list[KeyLife]:
    """Every key, for as long as its privateKeyUsagePeriod lets it; of each unit the newest that may stamp does."""
    now, lives = datetime.now(UTC), []
    for ring in rings:
        stamping = next((key.made for key in ring.held if key.made.may_stamp(now)), None)
        for key in ring.held:
            begins = max(key.begins, key.made.usage.not_before)
            ends = min(key.ends, key.made.usage.not_after)
            lives.append(KeyLife(ring.name, key.sha256[:16], begins, ends, key.made is stamping))
    return lives


class _Before(Collector):
    """Does something whenever the series are about to be read, and has none of its own."""

    def __init__(self, bring_in: Callable[[], None]) -> None:
        self._bring_in = bring_in

    def collect(self) -> Iterable[Metric]:
        """See `Collector`."""
        self._bring_in()
        return ()
