"""`./run publish-soak`: a million answers signed ahead by a key that signs 200 times a second, in minutes.

The publisher's own code, a real PostgreSQL, real signatures. Only the clock is not real: it goes on by what the
publisher waits for, and stands while the machine computes, so hours take minutes. The key is a file that refuses like
an HSM: more than its limit within a second is `SignerBusy`.

Certificates are imported, answered for the first time, and then followed through a whole refresh interval and more,
while some are revoked. With `--in-full-swing` the first answers are laid down as a publisher would have left them (with
octets that mean nothing), and only the refreshing is simulated: half the time. Every simulated minute an oracle looks
whether an answer has ended, and how long the one that ends first still holds; in the end it looks at every row.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import click
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import ocsp
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from lakthan.config import KeyURI, PresignConfig
from lakthan.errors import SignerBusy
from lakthan.identity import Identity
from lakthan.keys.software import SoftwareSigner
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.bulk import import_issued
from lakthan.store.changes import ChangeWriter
from lakthan.store.embedded import EmbeddedPostgres
from lakthan.store.feed import STATUS_CHANNEL
from lakthan.store.migrate import migrate
from lakthan.store.pool import connect, open_pool
from lakthan.store.presigned import Presigned, prepare
from lakthan_ocsp.opening import open_responder
from lakthan_ocsp.publisher.metrics import PublisherMetrics
from lakthan_ocsp.publisher.presigner import Presigner
from lakthan_ocsp.publisher.schedule import Clock, Pace, shortfall
from support.pki import new_ca, new_responder
from support.publish_token import Minute, real_time

_NAME = "soak-ca"
_ROWS_AT_ONCE = 100_000
_VERIFIED = 2000
_WAITS_PER_TURN = 20
# What Pace may give in one second of the calendar: its credit of 50 ms comes on top, and one.
_CREDIT = 1.05


@dataclass(frozen=True)
class Plan:
    """What is simulated. `rounds`: how many refresh intervals after the first answers of all. `in_full_swing`: these
    are there. `sample`: how often the oracle looks.
    """

    certificates: int = 500_000
    hashes: tuple[str, ...] = ("SHA-1", "SHA-256")
    rate: int = 200
    refresh: timedelta = timedelta(minutes=100)
    validity: timedelta = timedelta(hours=5)
    rounds: float = 1.02
    revocations: int = 200
    in_full_swing: bool = False
    sample: timedelta = timedelta(minutes=1)

    @property
    def answers(self) -> int:
        """How many there are."""
        return self.certificates * len(self.hashes)


@dataclass(frozen=True)
class Sample:
    """One look: signatures a second since the last one, answers that are due, and for how long the next one holds."""

    seconds: float
    rate: float
    due: int
    behind_seconds: float
    left_seconds: float | None


@dataclass
class Found:
    """What came out."""

    samples: list[Sample] = field(default_factory=list)
    expired: int = 0
    fill: timedelta = timedelta(0)
    simulated: timedelta = timedelta(0)
    real_seconds: float = 0.0
    signatures: int = 0
    most_in_a_second: int = 0
    refused: int = 0
    oldest: timedelta = timedelta(0)
    rows: int = 0
    mismatched: int = 0
    stale: int = 0
    verified: int = 0
    revoked: int = 0

    @property
    def most_behind_seconds(self) -> float:
        """The latest that an answer ever was, after all had one."""
        return max(
            (each.behind_seconds for each in self.samples if each.seconds > self.fill.total_seconds()), default=0.0
        )

    @property
    def least_left_seconds(self) -> float:
        """The shortest that an answer ever had to live when it was signed anew."""
        return min((each.left_seconds for each in self.samples if each.left_seconds is not None), default=0.0)


class _Over(Exception):
    """The simulation has come to its end."""


class SimulatedClock(Clock):
    """Goes on by what is waited for; others of the event loop have their turn now and then."""

    def __init__(self, begin: datetime) -> None:
        self._now = begin
        self._waits = 0

    def now(self) -> datetime:
        """See `Clock`."""
        return self._now

    async def sleep(self, seconds: float, wake: asyncio.Event | None = None) -> None:
        """See `Clock`."""
        self._waits += 1
        if wake is not None or self._waits % _WAITS_PER_TURN == 0:
            await asyncio.sleep(0)
        if wake is None or not wake.is_set():
            self._now += timedelta(seconds=seconds)


class LimitedSigner(SoftwareSigner):
    """A key that refuses as an HSM does that has enough to do."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, limit: int, clock: Clock) -> None:
        super().__init__(key)
        self._limit = limit
        self._clock = clock
        self.counts: Counter[int] = Counter()
        self.refused = 0

    @property
    def sign_at_once(self) -> Callable[[bytes], bytes] | None:
        """See `SoftwareSigner`."""
        return self._sign_within_limit

    def _sign_within_limit(self, message: bytes) -> bytes:
        second = int(self._clock.now().timestamp())
        if self.counts[second] >= self._limit * _CREDIT + 1:
            self.refused += 1
            raise SignerBusy("more than the device can do in a second")
        self.counts[second] += 1
        return self._raw_sign(message)


class Soak:
    """One simulation on the database of `url`, which is empty but migrated."""

    def __init__(self, plan: Plan, url: str, folder: Path, tell: Callable[[str, float], None]) -> None:
        self._plan = plan
        self._url = url
        self._folder = folder
        self._tell = tell
        self._clock = SimulatedClock(datetime.now(UTC).replace(microsecond=0))
        self._begin = self._clock.now()
        self._found = Found()
        self._revoked_at: dict[bytes, datetime] = {}

    async def run(self) -> Found:
        """Simulate, and give what came out."""
        plan, found = self._plan, self._found
        ca = new_ca("Soak CA")
        identity = new_responder(ca)
        certificate, key = identity.write(self._folder, "soak")
        config = PresignConfig(
            _NAME,
            certificate,
            KeyURI(f"file:{key.name}", self._folder),
            refresh=plan.refresh,
            validity=plan.validity,
            hashes=plan.hashes,
            signatures_per_second=plan.rate,
        )
        opened = await open_responder(config)
        assert isinstance(identity.key, ec.EllipticCurvePrivateKey)
        signer = LimitedSigner(identity.key, plan.rate, self._clock)
        responder = type(opened)(
            _NAME,
            Identity(opened.identity.view, signer),
            opened.governor,
            opened.template,
            opened.requestors,
            opened.non_issued,
        )
        pool = await open_pool(self._url, role=None, min_size=1, max_size=1, application_name="soak")
        try:
            # To lay down and to look at a million rows takes longer than a service may.
            await pool.execute("SET statement_timeout = 0")
            authority_id = await AuthorityAdmin(pool).add_authority(_NAME, [ca.der])
            serials = await self._import(pool, authority_id)
            if plan.in_full_swing:
                await self._lay_down(pool, authority_id)
            metrics = PublisherMetrics()
            pace = Pace(plan.rate, self._clock)
            presigner = Presigner(
                config, lambda *_: responder, pace, metrics, self._clock, look_every=timedelta(seconds=1)
            )
            connection = await connect(self._url, role="lakthan_presigner", application_name="soak-publisher")
            try:
                await prepare(connection)
                await connection.add_listener(STATUS_CHANNEL, presigner.wake)
                began = time.monotonic()
                await self._simulate(
                    presigner, connection, pool=pool, authority_id=authority_id, signer=signer, serials=serials
                )
                found.real_seconds = time.monotonic() - began
            finally:
                await connection.close()
            found.simulated = self._clock.now() - self._begin
            found.signatures = sum(signer.counts.values())
            found.most_in_a_second = max(signer.counts.values())
            found.refused = signer.refused
            await self._judge(pool, authority_id, opened.identity.view.certificate)
        finally:
            await pool.close()
        return found

    async def _import(self, pool: asyncpg.Pool, authority_id: int) -> list[bytes]:
        numbers = random.Random(6)  # the same in every run
        serials = [b"\x20" + numbers.randbytes(15) for _ in range(self._plan.certificates)]
        for start in range(0, len(serials), _ROWS_AT_ONCE):
            self._tell("importing", start / len(serials))
            part = [(serial, None, None, None, None, None) for serial in serials[start : start + _ROWS_AT_ONCE]]
            await import_issued(pool, authority_id, part, actor="soak", through="soak")
        return serials

    async def _lay_down(self, pool: asyncpg.Pool, authority_id: int) -> None:
        """Answers that say nothing, due evenly over the interval that begins now."""
        self._tell("laying down the first answers", 0.0)
        await pool.execute(
            """
            INSERT INTO published_answer (authority_id, serial_number, cert_id_hash, produced_at, this_update,
                                          next_update, cert_status, status_version, response, due_at)
            SELECT s.authority_id, s.serial_number, h, due - $3::interval, due - $3::interval,
                   due - $3::interval + $4::interval, s.cert_status, s.version, $6, due
              FROM certificate_status s CROSS JOIN unnest($5::text[]) AS h,
                   LATERAL (SELECT hashtextextended(encode(s.serial_number, 'hex') || h, 0) & 1048575 AS n) AS number,
                   LATERAL (SELECT $2::timestamptz + $3::interval * (number.n / 1048576.0) AS due) AS place
             WHERE s.authority_id = $1
            """,
            authority_id,
            self._begin,
            self._plan.refresh,
            self._plan.validity,
            self._plan.hashes,
            os.urandom(850),
            timeout=600,
        )
        await pool.execute("VACUUM ANALYZE published_answer", timeout=600)

    async def _simulate(
        self,
        presigner: Presigner,
        connection: asyncpg.Connection,
        *,
        pool: asyncpg.Pool,
        authority_id: int,
        signer: LimitedSigner,
        serials: list[bytes],
    ) -> None:
        plan, found = self._plan, self._found
        reader, writer = Presigned(pool), ChangeWriter(pool)
        publisher = asyncio.create_task(presigner.run(connection, authority_id))
        gate = asyncio.Event()
        next_sample = self._begin + plan.sample
        to_revoke = random.Random(7).sample(serials, plan.revocations)  # the same in every run
        end = self._begin + plan.refresh * plan.rounds if plan.in_full_swing else None
        # Whoever waits on the clock waits here too while the oracle looks: the simulated time stands meanwhile.
        sleep = self._clock.sleep
        counted = 0

        async def watched(seconds: float, wake: asyncio.Event | None = None) -> None:
            nonlocal next_sample, end, counted
            await sleep(seconds, wake)
            now = self._clock.now()
            if now < next_sample:
                return
            backlog = await reader.backlog(authority_id, now)
            total = signer.counts.total()
            span = (now - next_sample + plan.sample).total_seconds()
            left = None if backlog.next_update is None else (backlog.next_update - now).total_seconds()
            behind = 0.0 if backlog.longest is None else (now - backlog.longest).total_seconds()
            at = (now - self._begin).total_seconds()
            found.samples.append(Sample(at, (total - counted) / span, backlog.answers, behind, left))
            found.expired += left is not None and left <= 0
            counted = total
            next_sample = now + plan.sample
            if end is None and total >= plan.answers:
                found.fill = now - self._begin
                end = now + plan.refresh * plan.rounds
            share = total / (plan.answers * (plan.rounds + (not plan.in_full_swing)))
            self._tell(f"{at / 3600:.1f} simulated hours", min(1.0, share))
            wanted = int(plan.revocations * min(1.0, share * 1.1))
            while len(self._revoked_at) < wanted:
                serial = to_revoke[len(self._revoked_at)]
                self._revoked_at[serial] = now
                await writer.revoke(authority_id, serial, actor="soak")
            if end is not None and now >= end:
                gate.set()
                await asyncio.sleep(3600)

        self._clock.sleep = watched  # type: ignore[method-assign]
        stopped = asyncio.create_task(gate.wait())
        done, _ = await asyncio.wait([publisher, stopped], return_when=asyncio.FIRST_COMPLETED)
        for task in (publisher, stopped):
            if task not in done:
                task.cancel()
        await asyncio.gather(publisher, stopped, return_exceptions=True)
        if publisher in done:
            publisher.result()

    async def _judge(self, pool: asyncpg.Pool, authority_id: int, responder: x509.Certificate) -> None:
        plan, found, now = self._plan, self._found, self._clock.now()
        self._tell("looking at every row", 1.0)
        [row] = await pool.fetch(
            """
            SELECT count(*) AS rows, count(*) FILTER (WHERE p.next_update <= $2) AS expired,
                   count(*) FILTER (WHERE p.status_version <> s.version OR p.cert_status <> s.cert_status)
                       AS mismatched,
                   count(*) FILTER (WHERE p.produced_at < $3) AS stale, min(p.produced_at) AS oldest
              FROM published_answer p JOIN certificate_status s USING (authority_id, serial_number)
             WHERE p.authority_id = $1
            """,
            authority_id,
            now,
            self._begin + found.fill,
            timeout=300,
        )
        found.rows, found.mismatched, found.stale = row["rows"], row["mismatched"], row["stale"]
        found.expired += row["expired"]
        found.oldest = now - row["oldest"]
        sample = await pool.fetch(
            "SELECT serial_number, response, cert_status FROM published_answer WHERE authority_id = $1"
            " ORDER BY hashtext(encode(serial_number, 'hex')) LIMIT $2",
            authority_id,
            min(_VERIFIED, plan.answers),
            timeout=300,
        )
        key = responder.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        for each in sample:
            answer = ocsp.load_der_ocsp_response(each["response"])
            assert answer.signature_hash_algorithm is not None
            key.verify(answer.signature, answer.tbs_response_bytes, ec.ECDSA(answer.signature_hash_algorithm))
            assert answer.serial_number == int.from_bytes(each["serial_number"], "big")
            assert answer.certificate_status.name.lower() == each["cert_status"]
            found.verified += 1
        revoked = await pool.fetch(
            "SELECT serial_number, min(produced_at) AS at FROM published_answer"
            " WHERE authority_id = $1 AND cert_status = 'revoked' GROUP BY serial_number",
            authority_id,
            timeout=300,
        )
        found.revoked = len(revoked)


def table(plan: Plan, found: Found) -> Table:
    """The figures."""
    lines = Table("what", "figure", title=f"{plan.answers:,} answers, a key that signs {plan.rate} times a second")
    lines.columns[1].justify = "right"
    needed = plan.answers / plan.refresh.total_seconds()
    for what, figure in (
        ("certificates × hashes ÷ refresh", f"{needed:.1f} signatures/s of {plan.rate}"),
        ("simulated", f"{found.simulated.total_seconds() / 3600:.2f} h in {found.real_seconds:.0f} s"),
        ("until every certificate had its answers", "before" if plan.in_full_swing else _minutes(found.fill)),
        ("signatures", f"{found.signatures:,}"),
        ("most in one simulated second", f"{found.most_in_a_second}"),
        ("refused by the key", f"{found.refused}"),
        ("answers that ended before they were replaced", f"{found.expired}"),
        ("latest that a due answer was, after the first round", f"{found.most_behind_seconds:.0f} s"),
        ("least that a due answer had left", f"{found.least_left_seconds / 60:.0f} min"),
        ("oldest answer in the end", f"{found.oldest.total_seconds() / 60:.1f} min"),
        ("answers never refreshed since the first round", f"{found.stale}"),
        ("rows that say other than the record", f"{found.mismatched}"),
        ("revoked on the way, and answered so", f"{found.revoked} of {plan.revocations}"),
        ("signatures verified by a foreign library", f"{found.verified:,}"),
        ("signed and put on record, real", f"{found.signatures / max(found.real_seconds, 1e-9):,.0f}/s"),
    ):
        lines.add_row(what, figure)
    return lines


def _minutes(span: timedelta) -> str:
    return f"{span.total_seconds() / 60:.1f} min"


def _said(minute: Minute, rate: int) -> str:
    return (
        f"SoftHSM, real time: {minute.answers:,} answers refreshed every 30 s by a token that is asked {rate} times a "
        f"second at most, for {minute.seconds:.0f} s: {minute.published:,} signed (put on record in "
        f"bunches, {minute.most_in_a_second:.0f} at most in a second), "
        f"{minute.expired} ended, {minute.most_behind_seconds:.1f} s late at most, the oldest "
        f"{minute.oldest_seconds:.0f} s old in the end, {minute.verified:,} signatures verified"
    )


def write_svg(path: Path, plan: Plan, found: Found) -> None:
    """Signatures a second and answers that are due, over the simulated time."""
    width, height, left, bottom = 860, 320, 60, 280
    wide = width - left - 60
    title = (
        f"{plan.answers:,} answers, {plan.rate} signatures/s at most, refresh {plan.refresh.total_seconds() / 3600:g} h"
    )
    longest = max(each.seconds for each in found.samples)
    most_due = max(1, *(each.due for each in found.samples))

    def line(value: Callable[[Sample], float], top: float) -> str:
        return " ".join(
            f"{left + wide * each.seconds / longest:.1f},{bottom - 230 * min(1.0, value(each) / top):.1f}"
            for each in found.samples
        )

    filled = left + wide * found.fill.total_seconds() / longest
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        "<style>text { font-size: 13px }</style>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="24">{title}</text>',
        f'<path d="M{left} 50V{bottom}H{width - 60}" fill="none" stroke="black"/>',
        f'<path d="M{filled:.1f} 50V{bottom}" stroke="gray" stroke-dasharray="4 3"/>',
        f'<text x="{filled + 4:.1f}" y="62" fill="gray">every certificate has its answers</text>',
        f'<polyline points="{line(lambda each: each.rate, plan.rate * 1.1)}" fill="none" stroke="#1f77b4"/>',
        f'<polyline points="{line(lambda each: each.due, most_due)}" fill="none" stroke="#d62728"/>',
        f'<text x="8" y="54" fill="#1f77b4">{plan.rate * 1.1:.0f}/s</text>',
        f'<text x="{width - 56}" y="54" fill="#d62728">{most_due:,} due</text>',
        f'<text x="{width - 60}" y="{bottom + 18}" text-anchor="end">{longest / 3600:.1f} simulated hours</text></svg>',
    ]
    path.write_text("\n".join(parts) + "\n")


@click.command(help=__doc__)
@click.option(
    "--answers", type=click.IntRange(2), default=1_000_000, show_default=True, help="Two for each certificate."
)
@click.option("--rate", type=click.IntRange(1), default=200, show_default=True, help="Signatures a second.")
@click.option("--refresh-minutes", type=click.FloatRange(1), default=100.0, show_default=True)
@click.option("--rounds", type=click.FloatRange(0.1), default=1.02, show_default=True, help="After the first answers.")
@click.option("--in-full-swing", is_flag=True, help="Begin with answers that are there.")
@click.option(
    "--token-seconds", type=click.FloatRange(0), default=60.0, show_default=True, help="A SoftHSM token, real time."
)
@click.option("--svg", type=click.Path(dir_okay=False, path_type=Path), help="Where the picture goes.")
def main(
    *,
    answers: int,
    rate: int,
    refresh_minutes: float,
    rounds: float,
    in_full_swing: bool,
    token_seconds: float,
    svg: Path | None,
) -> None:
    """See the module."""
    refresh = timedelta(minutes=refresh_minutes)
    plan = Plan(
        answers // 2,
        rate=rate,
        refresh=refresh,
        validity=refresh * 3,
        rounds=rounds,
        in_full_swing=in_full_swing,
    )
    console = Console(width=max(100, Console().width))
    warning = shortfall(plan.certificates, len(plan.hashes), refresh, rate)
    if warning:
        console.print(f"[yellow]{warning}[/]", highlight=False)
    bar = Progress(TextColumn("{task.description}"), BarColumn(), console=console, disable=not console.is_terminal)
    with bar, tempfile.TemporaryDirectory(prefix="lakthan-publish-soak-") as folder:
        task = bar.add_task("starting", total=1.0)
        with EmbeddedPostgres(Path(folder) / "postgres", durable=False) as server:
            url = server.url(database="postgres")
            asyncio.run(migrate(url))
            soak = Soak(
                plan, url, Path(folder), lambda what, share: bar.update(task, description=what, completed=share)
            )
            found = asyncio.run(soak.run())
        minute = None
        if token_seconds:
            bar.update(task, description=f"a token for {token_seconds:.0f} s", completed=0.0)
            with EmbeddedPostgres(Path(folder) / "second", durable=False) as server:
                url = server.url(database="postgres")
                asyncio.run(migrate(url))
                minute = asyncio.run(real_time(url, Path(folder), rate=rate, seconds=token_seconds))
    console.print(table(plan, found))
    if minute is not None:
        console.print(_said(minute, rate), highlight=False)
    console.print(f"on {os.cpu_count()} cores; PostgreSQL without fsync, in the same machine", highlight=False)
    if svg is not None:
        write_svg(svg, plan, found)
    sys.exit(1 if found.expired or found.mismatched or found.refused else 0)


if __name__ == "__main__":
    main()
