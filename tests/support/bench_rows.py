"""The rows of the bench: what is claimed of whom.

A `Claim` compares a subject with another one (the ratio of the two measured in the same round, so that a neighbour's
load hits both) or with a fixed bound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from support.bench_subjects import Bench


@dataclass(frozen=True)
class Claim:
    """`subject`, divided by `reference` when there is one, is at least (or `at_most`) `bound`; None: only shown."""

    subject: str
    reference: str | None = None
    bound: float | None = None
    at_most: bool = False


@dataclass(frozen=True)
class Row:
    """What is measured together. `prepare` makes the subjects that the claims name; `once`: it takes long and is not
    repeated in every round.
    """

    key: str
    title: str
    prepare: Callable[[Bench], None]
    claims: tuple[Claim, ...]
    unit: str = "/s"
    once: bool = False

    @property
    def subjects(self) -> list[str]:
        """The names of everybody in it."""
        names = [name for claim in self.claims for name in (claim.subject, claim.reference) if name]
        return list(dict.fromkeys(names))


def _cached(bench: Bench) -> None:
    ocsp = bench.ocsp("ocsp")
    bench.rate("cached POST", bench.ocsp_post("cached POST", ocsp))
    bench.rate("cached GET", bench.ocsp_get("cached GET", ocsp, bench.world.requests.get_target))
    bench.rate("nginx", bench.ocsp_get("nginx", bench.nginx(), "/answer"))
    bench.rate("cfssl", bench.ocsp_post("cfssl", bench.cfssl()))


def _live(bench: Bench) -> None:
    bench.rate("live P-256", bench.ocsp_nonce("live P-256", bench.ocsp("ocsp")))
    bench.openssl_ocsp("openssl ocsp P-256", "P-256")
    bench.raw("P-256")


def _live_rsa(bench: Bench) -> None:
    bench.rate("live RSA-2048", bench.ocsp_nonce("live RSA-2048", bench.ocsp("ocsp-rsa", kind="RSA-2048")))
    bench.openssl_ocsp("openssl ocsp RSA-2048", "RSA-2048")
    bench.raw("RSA-2048")


def _tokens(bench: Bench) -> None:
    for self_check in ("content", "full"):
        name = f"token P-256, {self_check}"
        service = bench.tsa(f"tsa-{self_check}", self_check=self_check)
        bench.rate(name, bench.tokens(name, service, "P-256"))
    bench.raw("P-256")


def _tokens_rsa(bench: Bench) -> None:
    service = bench.tsa("tsa-rsa", kind="RSA-3072", self_check="full")
    bench.rate("token RSA-3072", bench.tokens("token RSA-3072", service, "RSA-3072"))
    bench.raw("RSA-3072")


def _new_connections(bench: Bench) -> None:
    target = bench.world.requests.get_target
    bench.rate("cached, close", bench.ocsp_get("cached, close", bench.ocsp("ocsp"), target, close=True))
    bench.rate("nginx, close", bench.ocsp_get("nginx, close", bench.nginx(), "/answer", close=True))


def _never_seen(bench: Bench) -> None:
    for table, rows in (("small", bench.small_rows), ("large", bench.large_rows)):
        name = f"never seen, {table} table"
        service = bench.ocsp(f"ocsp-{table}", database=table, cached_answers=bench.few_answers)
        bench.rate(name, bench.ocsp_rows(name, service, rows))


def _workers(bench: Bench) -> None:
    for workers, cores in ((1, {bench.server_core}), (2, {bench.server_core, bench.load_core})):
        name = f"{workers} worker{'s'[: workers - 1]}, RSA-2048"
        service = bench.ocsp(f"ocsp-{workers}-workers", kind="RSA-2048", workers=workers, cores=cores)
        bench.rate_of_cores(name, bench.ocsp_nonce(name, service), cores)
    bench.raw("RSA-2048")


def _latency(bench: Bench) -> None:
    _cached(bench)
    _live(bench)
    _tokens(bench)
    for name in ("cached POST", "nginx", "live P-256", "token P-256, full"):
        bench.latency(name)


def _memory(bench: Bench) -> None:
    bench.memory("memory, MiB", "memory growth, MiB")


ROWS = (
    Row(
        "cached-post",
        "cached OCSP answer by POST",
        _cached,
        (Claim("cached POST", "nginx", 0.9), Claim("cached POST", "cfssl", 10)),
    ),
    Row("cached-get", "cached OCSP answer by GET", _cached, (Claim("cached GET", "nginx", 0.9),)),
    Row(
        "live-p256",
        "live OCSP answer with nonce, P-256",
        _live,
        (
            Claim("live P-256", "openssl ocsp P-256", 2.2),
            Claim("live P-256", "raw P-256", 0.45),
            Claim("speed P-256", "raw P-256"),
        ),
    ),
    Row(
        "live-rsa2048",
        "live OCSP answer with nonce, RSA-2048",
        _live_rsa,
        (
            Claim("live RSA-2048", "raw RSA-2048", 0.80),
            Claim("live RSA-2048", "openssl ocsp RSA-2048"),
            Claim("speed RSA-2048", "raw RSA-2048"),
        ),
    ),
    Row(
        "tsa-p256",
        "time-stamp token, P-256, durable",
        _tokens,
        (Claim("token P-256, content", "raw P-256", 0.35), Claim("token P-256, full", "raw P-256")),
    ),
    Row(
        "tsa-rsa3072",
        "time-stamp token, RSA-3072, durable",
        _tokens_rsa,
        (Claim("token RSA-3072", "raw RSA-3072", 0.85), Claim("speed RSA-3072", "raw RSA-3072")),
    ),
    Row(
        "new-connection",
        "a new connection each time, cached",
        _new_connections,
        (Claim("cached, close", "nginx, close", 1.0),),
    ),
    Row(
        "never-seen",
        "every request another certificate, P-256",
        _never_seen,
        (
            Claim("never seen, large table", None, 5000),
            Claim("never seen, large table", "never seen, small table", 0.8),
        ),
    ),
    Row(
        "workers",
        "two workers on two cores",
        _workers,
        (
            Claim("2 workers, RSA-2048", "1 worker, RSA-2048"),
            Claim("2 workers, RSA-2048, load off", "1 worker, RSA-2048, load off", 1.8),
            Claim("raw RSA-2048, both cores", "raw RSA-2048"),
        ),
    ),
    Row(
        "latency",
        "p99 at half of the maximal rate",
        _latency,
        (
            Claim("p99 of cached POST", None, 2, at_most=True),
            Claim("p99 of nginx"),
            Claim("p99 of live P-256", None, 10, at_most=True),
            Claim("p99 of token P-256, full", None, 20, at_most=True),
        ),
        unit=" ms",
    ),
    Row(
        "memory",
        "memory of a worker",
        _memory,
        (
            Claim("memory, MiB", None, 250, at_most=True),
            Claim("memory growth, MiB", None, 10, at_most=True),
        ),
        unit=" MiB",
        once=True,
    ),
)
