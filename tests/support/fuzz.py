"""`./run fuzz`: a million hostile requests against the real responder, and what came back.

The service runs in this process on a real database and real sockets, with two authorities. Every request goes through
our parser and, by POST or GET, through the whole service; every reply is judged (`support.judge`). Samples go to
asn1crypto and pyca, which also verifies signatures, and samples of requests to `support.differ`. A logged warning, an
`internalError`, or memory that keeps growing is a failure as well.

A run can be repeated: its seed is printed, and so is every request whose reply was wrong.

`./run fuzz --minutes N` is another way to fuzz: each parser by itself, guided by coverage (`support.fuzz_parsers`).
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import collections
import logging
import random
import tempfile
import time
import urllib.parse
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import structlog
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lakthan.algorithms import HashAlgorithm
from lakthan.certificates import CertificateView
from lakthan.config import Config, DatabaseConfig, KeyURI, OCSPConfig, ResponderConfig
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.changes import ChangeWriter
from lakthan.store.embedded import EmbeddedPostgres
from lakthan.store.migrate import migrate
from lakthan.store.pool import open_pool
from lakthan_ocsp.__main__ import serve
from support.differ import UNEXPLAINED, difference
from support.fuzz_parsers import fuzz_parsers
from support.fuzz_targets import TARGETS
from support.judge import GOOD, REVOKED, HTTPReply, Judge, Wrong
from support.mutate import Mutator, Named, honest_requests
from support.pki import Issued, issue, new_ca, new_responder
from support.running import running

# Small on purpose: the cache is full long before the first measurement of memory that counts.
CACHED_ANSWERS = 2000
ALLOWED_GROWTH_MIB = 24.0
_CONNECTIONS = 8
_SERIAL_NUMBERS = (b"\x05", b"\x00" + bytes.fromhex("c0ffee5a") * 4, bytes(range(1, 21)), b"\x7f\xff")
_STRANGER = Named(b"\x30\x00", b"nobody's key")


@dataclass(frozen=True)
class Target:
    """The responder under fire, the requests to begin with, and the judge that knows its store."""

    port: int
    issuers: list[Named]
    honest: list[bytes]
    judge: Judge


@dataclass
class Findings:
    """What a campaign saw. `wrong`: the reply's fault and the request, at most fifty. `logged`: warnings and worse."""

    replies: collections.Counter[str] = field(default_factory=collections.Counter)
    differences: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: list[tuple[str, bytes]] = field(default_factory=list)
    logged: list[str] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)
    compared: int = 0
    verified: int = 0

    @property
    def growth_mib(self) -> float:
        """From the first tenth of the run, when every cache is full, to its end."""
        return self.memory_mib[-1] - self.memory_mib[min(2, len(self.memory_mib) - 1)]

    def faults(self) -> list[str]:
        """One line for each thing that should not be, none when all is well."""
        found = [f"{fault}\n    request: {octets.hex()}" for fault, octets in self.wrong]
        found += [f"logged: {line}" for line in dict.fromkeys(self.logged)]
        found += [text for text in self.differences if text.startswith(UNEXPLAINED)]
        if self.growth_mib > ALLOWED_GROWTH_MIB:
            found.append(f"memory grew by {self.growth_mib:.1f} MiB after the first tenth")
        return found


@asynccontextmanager
async def target(database_url: str, folder: Path) -> AsyncIterator[Target]:
    """Two authorities, each with a good, a revoked and a held certificate, and a number that nobody issued."""
    statuses: dict[tuple[bytes, bytes], int] = {}
    responders: dict[bytes, Issued] = {}
    issuers: list[Named] = []
    configured: list[ResponderConfig] = []
    pool = await open_pool(database_url, role="lakthan_registry", min_size=1, max_size=2, application_name="fuzz")
    try:
        writer = ChangeWriter(pool)
        for name in ("one", "two"):
            ca = new_ca(f"CA {name}")
            responder = new_responder(ca)
            certificate, key = responder.write(folder, name)
            configured.append(ResponderConfig(name, certificate, KeyURI(f"file:{key.name}", folder)))
            view = CertificateView.of(ca.certificate)
            issuers.append(Named(view.subject, view.public_key))
            await _fill(writer, await AuthorityAdmin(pool).add_authority(name, [ca.der]), ca)
            for algorithm in HashAlgorithm:
                if not algorithm.name.startswith("SHA3"):
                    named = algorithm.oid_der + algorithm.digest(view.subject) + algorithm.digest(view.public_key)
                    responders[named] = responder
                    for number, status in zip(_SERIAL_NUMBERS, (GOOD, REVOKED, REVOKED), strict=False):
                        statuses[named, number] = status
    finally:
        await pool.close()
    settings = OCSPConfig(configured, DatabaseConfig(database_url), port=0, admin_port=0, cached_answers=CACHED_ANSWERS)
    async with running(serve, Config(ocsp=settings)) as (port, _):
        honest = honest_requests([*issuers, _STRANGER], _SERIAL_NUMBERS)
        yield Target(port, issuers, honest, Judge(statuses, responders))


async def _fill(writer: ChangeWriter, authority_id: int, ca: Issued) -> None:
    not_after = issue("leaf", ca).certificate.not_valid_after_utc
    good, revoked, held, _ = _SERIAL_NUMBERS
    for number in (good, revoked, held):
        await writer.issue(authority_id, number, not_after=not_after, actor="fuzz")
    await writer.revoke(authority_id, revoked, actor="fuzz")
    await writer.hold(authority_id, held, actor="fuzz")


class Client:
    """One connection that is opened again whenever the server closes it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, message: bytes) -> HTTPReply:
        """One HTTP request, one reply."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(message)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        lines = head.split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        body = await reader.readexactly(int(headers["content-length"]))
        if headers.get("connection") == "close":
            await self.close()
        return HTTPReply(int(lines[0].split(" ")[1]), headers.get("content-type", "").split(";")[0], body)

    async def close(self) -> None:
        """Hang up."""
        if self._streams is not None:
            self._streams[1].close()
            await self._streams[1].wait_closed()
            self._streams = None


def http_message(octets: bytes, choose: random.Random) -> bytes:
    """The request as HTTP: most by POST, an eighth by GET in one of two spellings."""
    if octets and choose.random() < 0.125:
        if choose.random() < 0.5:
            text = urllib.parse.quote(base64.b64encode(octets), safe="")
        else:
            text = base64.urlsafe_b64encode(octets).decode()
        return f"GET /{text} HTTP/1.1\r\nHost: fuzz\r\n\r\n".encode()
    return b"POST / HTTP/1.1\r\nHost: fuzz\r\nContent-Length: %d\r\n\r\n" % len(octets) + octets


def memory_mib() -> float:
    """The memory that this process has resident."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 2**20


class _Listener(logging.Handler):
    """Collects what the libraries log."""

    def __init__(self, logged: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._logged = logged

    def emit(self, record: logging.LogRecord) -> None:
        self._logged.append(f"{record.name}: {record.getMessage()}")


@asynccontextmanager
async def listening(logged: list[str]) -> AsyncIterator[None]:
    """Within the block, every warning and error that is logged lands in `logged`, ours and those of libraries. Not that
    a request was slow: that says something about the machine.
    """

    def keep(_: object, method: str, event: structlog.typing.EventDict) -> str:
        if method not in ("debug", "info") and event.get("event") != "a slow request":
            logged.append(f"{method}: {event}")
        raise structlog.DropEvent

    before = structlog.get_config()
    handler = _Listener(logged)
    structlog.configure(processors=[keep], wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        structlog.configure(**before)


async def campaign(
    at: Target,
    requests: int,
    seed: int,
    *,
    sample_every: int = 200,
    compare_every: int = 50,
    progress: Callable[[int], None] | None = None,
) -> Findings:
    """Send `requests` hostile requests and judge what comes back."""
    mutator, choose = Mutator(at.honest, seed), random.Random(seed)
    findings = Findings()
    sent = 0

    async def keep_sending() -> None:
        nonlocal sent
        client = Client(at.port)
        while sent < requests:
            number = sent = sent + 1
            octets = mutator.next()
            if number % max(1, requests // 20) == 1:
                findings.memory_mib.append(memory_mib())
            try:
                reply = await client.send(http_message(octets, choose))
                findings.replies[at.judge.judge(octets, reply)] += 1
                if number % sample_every == 0:
                    at.judge.ask_others(octets, reply)
                    findings.verified += 1
            except (Wrong, ValueError, LookupError, OSError, EOFError) as error:
                await client.close()
                if len(findings.wrong) < 50:
                    findings.wrong.append((f"{type(error).__name__}: {error}", octets))
            if number % compare_every == 0:
                findings.compared += 1
                reason = difference(octets)
                if reason is not None:
                    findings.differences[reason] += 1
            if progress is not None and number % 500 == 0:
                progress(number)
        await client.close()

    async with listening(findings.logged), asyncio.TaskGroup() as group:
        for _ in range(_CONNECTIONS):
            group.create_task(keep_sending())
    findings.memory_mib.append(memory_mib())
    return findings


def show(findings: Findings, console: Console, requests: int, seconds: float, seed: int) -> None:
    """Print what was seen."""
    table = Table(title=f"{requests:,} hostile requests in {seconds:,.0f} s (seed {seed})")
    table.add_column("reply")
    table.add_column("times", justify="right")
    for reply, times in findings.replies.most_common():
        table.add_row(reply, f"{times:,}")
    console.print(table)
    table = Table(title=f"where ours, asn1crypto and pyca disagree about {findings.compared:,} of the requests")
    table.add_column("because")
    table.add_column("times", justify="right")
    for reason, times in findings.differences.most_common():
        table.add_row(reason, f"{times:,}")
    console.print(table)
    start, middle, end = (findings.memory_mib[at] for at in (0, len(findings.memory_mib) // 2, -1))
    console.print(f"memory: {start:.1f} MiB at the start, {middle:.1f} in the middle, {end:.1f} at the end")
    console.print(f"replies that asn1crypto read and pyca verified: {findings.verified:,}")
    console.print(f"wrong replies: {len(findings.wrong)}; lines logged as warning or worse: {len(findings.logged)}")
    for fault in findings.faults():
        console.print(f"[red]FAULT[/] {fault}", markup=True, highlight=False)


async def fuzz(requests: int, seed: int) -> int:
    """Run a campaign with a progress bar; give the exit code, 1 if there is a fault."""
    console = Console()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = await asyncio.to_thread(stack.enter_context, EmbeddedPostgres(folder / "postgres", durable=False))
        await migrate(server.url())
        at = await stack.enter_async_context(target(server.url(), folder))
        columns = (TextColumn("fuzzing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        bar = stack.enter_context(Progress(*columns, console=console, transient=True))
        task = bar.add_task("", total=requests)
        started = time.monotonic()
        findings = await campaign(at, requests, seed, progress=lambda done: bar.update(task, completed=done))
    show(findings, console, requests, time.monotonic() - started, seed)
    return 1 if findings.faults() else 0


def main() -> int:
    """Read the command line and fuzz."""
    parser = argparse.ArgumentParser(prog="./run fuzz", description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000, help="how many (default 100000)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32), help="to repeat a run")
    parser.add_argument("--minutes", type=float, help="instead: fuzz every parser for so long, guided by coverage")
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="with --minutes: only this parser")
    parser.add_argument("--corpus", type=Path, help="with --minutes: a folder that keeps what was found interesting")
    arguments = parser.parse_args()
    if arguments.minutes is not None:
        return fuzz_parsers(arguments.minutes, arguments.target or list(TARGETS), arguments.corpus)
    return uvloop.run(fuzz(arguments.requests, arguments.seed))


if __name__ == "__main__":
    raise SystemExit(main())
