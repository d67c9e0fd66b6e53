"""`./run bench-import`: a large CRL and a long issued list imported while clients ask, on this machine.

The importers are processes of their own that do what `lakthan crl import` and `lakthan import` do; PostgreSQL runs with
fsync on; the responder is the real process, and is asked all the time about certificates that no cache knows. Beside
it: `openssl crl -noout` of the same file, before and after the import, because machines are noisy. A CRL may take five
times what OpenSSL needs to parse the file, and 600 MiB.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import asyncpg
import click
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from rich.console import Console
from rich.table import Table

from lakthan import der
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.bulk import import_issued
from lakthan.store.embedded import EmbeddedPostgres
from lakthan.store.migrate import migrate
from lakthan.store.pool import open_pool
from lakthan_registry.crl_import import import_crl
from support.bench_machine import BenchError, Child, Children, describe, free_port, program, wait_until_ready
from support.crl import Listed, entry, new_crl
from support.pki import Issued, new_ca, new_responder

_ROWS_AT_ONCE = 100_000
_MORE_ENTRIES = 100
_QUIET_SECONDS = 5.0
_LIMIT_TIMES, _LIMIT_MIB = 5, 600
_BEGINS = datetime(2025, 1, 1, tzinfo=UTC)


@dataclass
class Asked:
    """What the clients saw while something went on: milliseconds of each answer."""

    milliseconds: list[float] = field(default_factory=list)
    failures: int = 0

    def percentile(self, share: float) -> float:
        """The time within which this share of the answers came."""
        ordered = sorted(self.milliseconds) or [float("nan")]
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass(frozen=True)
class Run:
    """One line of the table."""

    what: str
    asked: Asked
    entries: float = 0
    seconds: float = 0.0
    importer_mib: float = 0.0
    backend_mib: float = 0.0
    openssl_seconds: float = 0.0


@click.group(invoke_without_command=True, help=__doc__)
@click.option("--entries", type=click.IntRange(1), default=1_000_000, show_default=True, help="Of the CRL.")
@click.option("--issued", type=click.IntRange(0), default=10_000_000, show_default=True, help="In the issued list.")
@click.option("--rate", type=click.IntRange(1), default=100, show_default=True, help="OCSP requests a second.")
@click.pass_context
def main(context: click.Context, entries: int, issued: int, rate: int) -> None:
    """See the module."""
    if context.invoked_subcommand is not None:
        return
    console = Console(width=max(140, Console().width))
    try:
        program("openssl")
        with tempfile.TemporaryDirectory(prefix="lakthan-bench-import-") as folder:
            runs = asyncio.run(_bench(console, Path(folder), entries, issued, rate))
    except BenchError as error:
        console.print(f"[red]bench-import:[/] {error}", highlight=False)
        sys.exit(1)
    console.print(_table(runs))
    for what, value in describe("shared by everything").items():
        console.print(f"{what}: {value}", highlight=False)
    first = next(run for run in runs if run.openssl_seconds)
    times = first.seconds / first.openssl_seconds
    console.print(
        f"The CRL took {times:.1f} times as long as openssl crl -noout (at most {_LIMIT_TIMES} are promised) and "
        f"{max(first.importer_mib, first.backend_mib):.0f} MiB at most (promised: {_LIMIT_MIB}).",
        highlight=False,
    )


@main.command("crl", hidden=True)
@click.argument("url")
@click.argument("file", type=click.Path(path_type=Path))
def crl_child(url: str, file: Path) -> None:
    """Import a CRL, print the figures."""

    async def work(pool: asyncpg.Pool) -> int:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            outcome = await import_crl(data, pool=pool, now=datetime.now(UTC), actor="bench", through="bench")
        return outcome.entries

    asyncio.run(_measured(url, work))


@main.command("issued", hidden=True)
@click.argument("url")
@click.argument("authority_id", type=int)
@click.argument("rows", type=int)
def issued_child(url: str, authority_id: int, rows: int) -> None:
    """Import an issued list, print the figures."""
    random_octets = random.Random(2).randbytes

    async def work(pool: asyncpg.Pool) -> int:
        for start in range(0, rows, _ROWS_AT_ONCE):
            part = [
                (b"\x20" + random_octets(15), _BEGINS + timedelta(days=1825, seconds=at), None, None, None, None)
                for at in range(start, min(rows, start + _ROWS_AT_ONCE))
            ]
            await import_issued(pool, authority_id, part, actor="bench", through="bench")
        return rows

    asyncio.run(_measured(url, work))


async def _measured(url: str, work: Callable[[asyncpg.Pool], Awaitable[int]]) -> None:
    pool = await open_pool(url, role="lakthan_registry", min_size=1, max_size=1, application_name="lakthan-bench")
    backend = await pool.fetchval("SELECT pg_backend_pid()")
    began = time.perf_counter()
    entries = await work(pool)
    seconds = time.perf_counter() - began
    backend_mib = _peak_mib(backend)
    importer_mib = _peak_mib(os.getpid())
    await pool.close()
    click.echo(
        json.dumps(
            {
                "entries": entries,
                "seconds": seconds,
                "importer_mib": importer_mib,
                "backend_mib": backend_mib,
            }
        )
    )


def _peak_mib(process: int) -> float:
    # With what a backend has touched of the shared buffers, which each shows as its own.
    status = Path(f"/proc/{process}/status").read_text()
    [kib] = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(kib) / 1024


async def _bench(console: Console, folder: Path, entries: int, issued: int, rate: int) -> list[Run]:
    ca = new_ca("Bench CA")
    console.print(f"making a CRL of {entries:,} entries …")
    crls = _write_crls(folder, ca, entries)
    with EmbeddedPostgres(folder) as server, Children(folder / "log") as children:
        url = server.url()
        await migrate(url)
        await server.ensure_logins({"ocsp": "lakthan_responder"})
        pool = await open_pool(url, role="lakthan_registry", min_size=1, max_size=1, application_name="lakthan-bench")
        authority_id = await AuthorityAdmin(pool).add_authority("bench", [ca.der], actor="bench")
        await pool.close()
        _, port = _start_responder(children, folder, ca, server.url("ocsp"))
        async with aiohttp.ClientSession() as session:
            clients = _Clients(session, f"http://127.0.0.1:{port}/", ca, rate)
            runs = [Run("nothing imported", await clients.while_(asyncio.sleep(_QUIET_SECONDS)))]
            for what, file in crls.items():
                console.print(f"{what} …")
                before = _openssl(file)
                figures, asked = await clients.during(_child("crl", url, str(file)))
                runs.append(Run(what, asked, **figures, openssl_seconds=(before + _openssl(file)) / 2))
            if issued:
                console.print(f"an issued list of {issued:,} …")
                figures, asked = await clients.during(_child("issued", url, str(authority_id), str(issued)))
                runs.append(Run("issued list", asked, **figures))
    return runs


def _write_crls(folder: Path, ca: Issued, entries: int) -> dict[str, Path]:
    """A CRL of random serial numbers, half of the entries with a reason; and the next one, a little longer."""
    chosen = random.Random(1)
    made = [
        entry(
            b"\x40" + chosen.randbytes(15),
            chosen.choice((None, None, None, 1, 4, 5)),
            at=_BEGINS + timedelta(seconds=chosen.randrange(30_000_000)),
        )
        for _ in range(entries + _MORE_ENTRIES)
    ]
    now = datetime.now(UTC).replace(microsecond=0)
    paths = {}
    for number, (what, listed) in enumerate(
        {"first CRL": made[:entries], f"next CRL, {_MORE_ENTRIES} more": made}.items(), start=1
    ):
        paths[what] = folder / f"{number}.crl"
        begins = now - timedelta(hours=3 - number)
        paths[what].write_bytes(new_crl(ca, Listed(listed, number, this_update=begins)))
    return paths


def _openssl(file: Path) -> float:
    began = time.perf_counter()
    subprocess.run(["openssl", "crl", "-inform", "DER", "-in", file, "-noout"], check=True)
    return time.perf_counter() - began


async def _child(*arguments: str) -> dict[str, float]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "support.bench_import", *arguments, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise BenchError(f"the importer ended with {process.returncode}; its message is above")
    figures: dict[str, float] = json.loads(output)
    return figures


def _start_responder(children: Children, folder: Path, ca: Issued, url: str) -> tuple[Child, int]:
    certificate, key = new_responder(ca).write(folder, "responder")
    port, admin_port = free_port(), free_port()
    config = folder / "ocsp.toml"
    config.write_text(
        "\n".join(
            (
                "[ocsp]",
                f"port = {port}",
                f"admin_port = {admin_port}",
                f'database.url = "{url}"',
                "[[ocsp.responders]]",
                'authority = "bench"',
                f'certificate = "{certificate.name}"',
                f'key = "file:{key.name}"',
            )
        )
    )
    child = children.start(
        "ocsp", [sys.executable, "-m", "lakthan_ocsp", "--config", str(config)], os.sched_getaffinity(0)
    )
    wait_until_ready(child, admin_port)
    return child, port


class _Clients:
    """Asks at a steady rate, whatever the answers do; each question is about a certificate never asked about before."""

    def __init__(self, session: aiohttp.ClientSession, url: str, ca: Issued, rate: int) -> None:
        self._session = session
        self._url = url
        self._pause = 1 / rate
        self._octets = random.Random(3).randbytes
        marked = int.from_bytes(b"\x40" + bytes(range(15)), "big")
        name = ca.certificate.subject.public_bytes()
        key = x509.SubjectKeyIdentifier.from_public_key(ca.certificate.public_key()).digest
        digest = hashes.Hash(hashes.SHA1())
        digest.update(name)
        builder = ocsp.OCSPRequestBuilder()
        request = builder.add_certificate_by_hash(digest.finalize(), key, marked, hashes.SHA1()).build()
        self._request = request.public_bytes(Encoding.DER)
        self._mark = self._request.index(bytes(range(15)))

    async def while_(self, work: Awaitable[object]) -> Asked:
        """What the clients see until `work` is done."""
        asked = Asked()
        done = asyncio.ensure_future(work)
        under_way: set[asyncio.Task[None]] = set()
        loop = asyncio.get_running_loop()
        due = loop.time()
        while not done.done():
            task = loop.create_task(self._ask(asked))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            due = max(due + self._pause, loop.time() - 1)
            await asyncio.wait({done}, timeout=max(0, due - loop.time()))
        await asyncio.gather(*under_way)
        await done
        return asked

    async def during(self, work: Awaitable[dict[str, float]]) -> tuple[dict[str, float], Asked]:
        """The same, with what `work` gives."""
        done = asyncio.ensure_future(work)
        asked = await self.while_(done)
        return done.result(), asked

    async def _ask(self, asked: Asked) -> None:
        at = self._mark
        body = self._request[:at] + self._octets(15) + self._request[at + 15 :]
        began = time.perf_counter()
        try:
            async with self._session.post(
                self._url, data=body, headers={"Content-Type": "application/ocsp-request"}
            ) as reply:
                answer = await reply.read()
        except aiohttp.ClientError:
            asked.failures += 1
            return
        # The OCSPResponseStatus comes first; 0 is successful (RFC 6960 §4.2.1).
        if der.Reader(answer).enter(der.SEQUENCE).content(der.ENUMERATED) != b"\x00":
            asked.failures += 1
        asked.milliseconds.append((time.perf_counter() - began) * 1000)


def _table(runs: list[Run]) -> Table:
    table = Table(title="Imports while clients ask")
    table.add_column("what")
    for heading in (
        "entries",
        "seconds",
        "entries/s",
        "openssl crl",
        "times that",
        "importer MiB",
        "backend MiB",
        "OCSP p50 ms",
        "p99 ms",
        "answers",
        "failed",
    ):
        table.add_column(heading, justify="right")
    for run in runs:
        table.add_row(
            run.what,
            f"{run.entries:,.0f}" if run.entries else "",
            f"{run.seconds:.1f}" if run.entries else "",
            f"{run.entries / run.seconds:,.0f}" if run.entries else "",
            f"{run.openssl_seconds:.1f}" if run.openssl_seconds else "",
            f"{run.seconds / run.openssl_seconds:.1f}" if run.openssl_seconds else "",
            f"{run.importer_mib:.0f}" if run.entries else "",
            f"{run.backend_mib:.0f}" if run.entries else "",
            f"{run.asked.percentile(0.5):.1f}",
            f"{run.asked.percentile(0.99):.1f}",
            f"{len(run.asked.milliseconds):,}",
            str(run.asked.failures),
        )
    return table


if __name__ == "__main__":
    main(prog_name="./run bench-import")
