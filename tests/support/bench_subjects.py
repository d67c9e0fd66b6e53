"""Who is measured and with which load: our services as they are started on first use, and the peers.

A subject is somebody who can be measured again and again, by its name. Several rows of the table may share one: it is
measured once in a round.

Promises: `openssl` has accepted a response of every subject before its speed counts.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import isnan, nan

from support import bench_wrk
from support.bench_machine import BenchError, Children, Server, idle_seconds
from support.bench_peers import (
    Judge,
    exchange,
    openssl_speed,
    raw_signatures,
    start_cfssl,
    start_nginx,
    start_openssl,
)
from support.bench_world import (
    LUA_IMPRINT,
    LUA_NONCE,
    LUA_SERIAL,
    LUA_TSA_NONCE,
    SMALL_ROWS,
    World,
)
from support.bench_wrk import Counter, Load

_CONNECTIONS = 32
# The group commit shares the cost of a commit among those who wait for it, as it does with many clients.
_TOKEN_CONNECTIONS = 128
_PACED_CONNECTIONS = 256
_OCSP, _TSP = "application/ocsp-request", "application/timestamp-query"


def without_load(requests: int, used_seconds: float, idle_seconds: float, cores: int) -> float:
    """How many of these requests a server would have answered in a second that had its cores to itself, with the
    processor time that it used, and as much idling for each request as there was.
    """
    return requests / (used_seconds + idle_seconds) * cores


@dataclass
class Bench:
    """Everything that is running, and what can be measured. `distinct`: the requests of the memory row."""

    world: World
    children: Children
    server_core: int
    load_core: int
    seconds: float
    large_rows: int
    distinct: int
    small_rows: int = SMALL_ROWS
    few_answers: int = 1000  # so few that a table of ten thousand is never cached
    subjects: dict[str, Callable[[], float]] = field(default_factory=dict)
    loads: dict[str, Load] = field(default_factory=dict)
    counters: dict[str, Counter] = field(default_factory=dict)
    measured: dict[str, list[float]] = field(default_factory=dict)
    cpu_micros: dict[str, list[float]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)
    _peers: dict[str, Server] = field(default_factory=dict)
    _services: dict[str, Server] = field(default_factory=dict)
    _pauses: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._judge = Judge(self.world)

    def measure(self, name: str) -> float:
        """Measure a subject once more."""
        try:
            value = self.subjects[name]()
        except BenchError as error:
            self.failures.append(f"{name}: {error}")
            value = nan  # keeps the place of this round
        self.measured.setdefault(name, []).append(value)
        return value

    # --- what runs, started on first use ---------------------------------------------------------------------------

    def ocsp(
        self,
        name: str,
        *,
        kind: str = "P-256",
        database: str = "small",
        workers: int = 1,
        cores: set[int] | None = None,
        **more: int,
    ) -> Server:
        """An OCSP responder."""
        if name not in self._services:
            self._services[name] = self.world.ocsp(
                name, kind=kind, database=f"bench_{database}", workers=workers, cores=cores, **more
            )
        return self._services[name]

    def tsa(self, name: str, *, kind: str = "P-256", self_check: str) -> Server:
        """A time-stamp authority."""
        if name not in self._services:
            self._services[name] = self.world.tsa(name, kind=kind, self_check=self_check)
        return self._services[name]

    def nginx(self) -> Server:
        """Nginx with our own answer as a file."""
        return self._peer("nginx", lambda: start_nginx(self.world, self.children, self.server_core, self._our_answer()))

    def cfssl(self) -> Server:
        """`cfssl ocspserve` with our own answer."""
        return self._peer("cfssl", lambda: start_cfssl(self.world, self.children, self.server_core, self._our_answer()))

    def _peer(self, name: str, start: Callable[[], Server]) -> Server:
        if name not in self._peers:
            self._peers[name] = start()
        return self._peers[name]

    def _our_answer(self) -> bytes:
        server, request = self.ocsp("ocsp"), self.world.requests.plain
        return exchange(server.port, bench_wrk.http_post(server.port, "/", _OCSP, len(request)) + request).body

    # --- what can be measured --------------------------------------------------------------------------------------

    def rate(self, name: str, load: Load) -> None:
        """Let `name` be how many requests of this load are answered in a second."""
        self.loads[name] = load
        self.counters.setdefault(name, Counter())
        self.subjects[name] = lambda: self._rate(name, load)

    def rate_of_cores(self, name: str, load: Load, cores: set[int]) -> None:
        """The same with twice the connections, and let `NAME, load off` be what the rate comes to when everybody else
        who used the server's cores meanwhile is taken off: the load, PostgreSQL, and strangers. What the server left
        idle counts as the server's.
        """
        load = replace(load, connections=2 * _CONNECTIONS)
        self.rate(name, load)
        alone: list[float] = []

        def measure() -> float:
            alone[:] = [nan]
            child, counter = load.server.child, self.counters[name]
            requests, idle, used = counter.requests, idle_seconds(cores), child.cpu_seconds()
            rate = self._rate(name, load)
            requests, idle, used = counter.requests - requests, idle_seconds(cores) - idle, child.cpu_seconds() - used
            alone[:] = [without_load(requests, used, idle, len(cores))]
            return rate

        self.subjects[name] = measure
        self.subjects[f"{name}, load off"] = lambda: alone[0]

    def _rate(self, name: str, load: Load) -> float:
        before = load.server.child.cpu_seconds()
        seen = bench_wrk.run(load, self.seconds, self.load_core, self.counters[name])
        used = load.server.child.cpu_seconds() - before
        self.cpu_micros.setdefault(name, []).append(used / seen.requests * 1e6)
        return seen.per_second

    def openssl_ocsp(self, name: str, kind: str) -> None:
        """Let `name` be the rate of `openssl ocsp` with our own responder's key, for requests with a nonce.

        It is started for every measurement: a connection that is closed without a request puts it into an endless
        loop (OpenSSL 3.0), and the end of every load is such a moment.
        """

        def measure() -> float:
            server = start_openssl(self.world, self.children, self.server_core, kind)
            self.ocsp_nonce(name, server)
            self.children.end(server.child)
            server = start_openssl(self.world, self.children, self.server_core, kind)
            rate = self._rate(name, self.ocsp_nonce(name, server, looked_at=True))
            self.children.end(server.child)
            return rate

        self.counters.setdefault(name, Counter())

        self.subjects[name] = measure

    def raw(self, kind: str) -> None:
        """Let `raw KIND` be the signatures alone, `raw KIND, both cores` those of both cores at the same time, and
        `speed KIND` those of the system's OpenSSL.
        """
        key = self.world.raw_key(kind)

        def measure(name: str, *cores: int) -> float:
            rate, cpu_seconds = raw_signatures(key, self.seconds, *cores)
            self.cpu_micros.setdefault(name, []).append(cpu_seconds * 1e6)
            return rate

        one, both = f"raw {kind}", f"raw {kind}, both cores"
        self.subjects[one] = lambda: measure(one, self.server_core)
        self.subjects[both] = lambda: measure(both, self.server_core, self.load_core)
        self.subjects[f"speed {kind}"] = lambda: openssl_speed(kind, self.seconds, self.server_core)

    def latency(self, name: str) -> None:
        """Let `p99 of NAME` be milliseconds at half of the highest rate of `name` so far."""
        self.subjects[f"p99 of {name}"] = lambda: self._p99(name)

    def _p99(self, name: str) -> float:
        highest = [rate for rate in self.measured.get(name) or [self.measure(name)] if not isnan(rate)]
        if not highest:
            raise BenchError("its highest rate is not known")
        rate = statistics.median(highest) / 2
        # Many connections, so that each has time to pause.
        load = replace(self.loads[name], connections=_PACED_CONNECTIONS)
        seen, self._pauses[name] = bench_wrk.run_paced(
            load, rate, self.seconds, self.load_core, counter=self.counters[name], pause_ms=self._pauses.get(name)
        )
        self.facts[f"p99 of {name}"] = {
            "per second": round(seen.per_second),
            "p50 ms": seen.p50_ms,
            "p99 ms": seen.p99_ms,
        }
        return seen.p99_ms

    def memory(self, name: str, growth: str) -> None:
        """Let `name` be the MiB of a fresh worker after all distinct requests, and `growth` what the second half of
        them added.
        """
        sizes: list[float] = []

        def measure() -> float:
            service = self.ocsp("ocsp-memory", database="large")
            load, counter = self.ocsp_rows("distinct", service, self.large_rows), Counter()
            sizes.append(service.child.resident_mib())
            while counter.value < self.distinct:
                bench_wrk.run(load, 5, self.load_core, counter)
                sizes.append(service.child.resident_mib())
            tenths = sizes[:: max(1, len(sizes) // 10)]
            self.facts["memory after each tenth of the distinct requests, MiB"] = [round(size) for size in tenths]
            self.facts["distinct requests"] = counter.value
            self.world.end(service)
            return max(sizes)

        self.subjects[name] = measure
        self.subjects[growth] = lambda: sizes[-1] - sizes[len(sizes) // 2]

    # --- loads, each looked at by openssl before it is measured --------------------------------------------------

    def ocsp_post(self, name: str, server: Server) -> Load:
        """The plain request by POST, always the same octets."""
        request = self.world.requests.plain
        whole = bench_wrk.http_post(server.port, "/", _OCSP, len(request)) + request
        return self._judged(name, server, whole, request)

    def ocsp_get(self, name: str, server: Server, target: str, *, close: bool = False) -> Load:
        """The plain request, or a file with its answer, by GET."""
        whole = bench_wrk.http_get(server.port, target, close=close)
        return self._judged(name, server, whole, self.world.requests.plain)

    def _judged(self, name: str, server: Server, whole: bytes, request: bytes) -> Load:
        answered = exchange(server.port, whole)
        self._judge.answer(name, request, answered.body)
        script = bench_wrk.write_fixed(self.world.folder / f"{name}.lua", whole)
        return Load(server, script, _CONNECTIONS, exchange(server.port, whole).octets)

    def ocsp_nonce(self, name: str, server: Server, *, looked_at: bool = False) -> Load:
        """The same certificate with another nonce in every request. `looked_at`: openssl has seen an answer before."""
        request = self.world.requests.nonced
        head = bench_wrk.http_post(server.port, "/", _OCSP, len(request))
        size = None
        if not looked_at:
            answered = exchange(server.port, head + request)
            self._judge.answer(name, request, answered.body)
            size = answered.octets
        before, after = self.world.requests.nonced_parts
        literal = bench_wrk.literal
        expression = f"{literal(head + before)} .. {LUA_NONCE} .. {literal(after)}"
        script = bench_wrk.write_counted(self.world.folder / f"{name}.lua", expression)
        return Load(server, script, _CONNECTIONS, size, counted=True)

    def ocsp_rows(self, name: str, server: Server, rows: int) -> Load:
        """One certificate of the table after the other, in an order that jumps about in the index."""
        request = self.world.requests.plain
        head = bench_wrk.http_post(server.port, "/", _OCSP, len(request))
        answered = exchange(server.port, head + request)
        self._judge.answer(name, request, answered.body)
        before, after = self.world.requests.plain_parts
        literal = bench_wrk.literal
        expression = f"{literal(head + before)} .. serial(n % {rows} + 1) .. {literal(after)}"
        script = bench_wrk.write_counted(self.world.folder / f"{name}.lua", expression, LUA_SERIAL)
        return Load(server, script, _CONNECTIONS, answered.octets, counted=True)

    def tokens(self, name: str, server: Server, kind: str) -> Load:
        """Another imprint and nonce in every request, with certificates in the token."""
        request = self.world.requests.token
        head = bench_wrk.http_post(server.port, "/", _TSP, len(request))
        answered = exchange(server.port, head + request)
        self._judge.token(name, request, answered.body, kind)
        before, between, after = self.world.requests.token_parts
        literal = bench_wrk.literal
        expression = (
            f"{literal(head + before)} .. {LUA_IMPRINT} .. {literal(between)} .. {LUA_TSA_NONCE} .. {literal(after)}"
        )
        script = bench_wrk.write_counted(self.world.folder / f"{name}.lua", expression)
        return Load(server, script, _TOKEN_CONNECTIONS, answered.octets, counted=True)
