"""How soon every responder process answers by a revocation, and that none goes on saying `good` beyond its bound.

    python -m support.propagation --workers 1,4,8

Real processes (`python -m lakthan_ocsp`), each on a port of its own so that every one of them can be asked, one real
PostgreSQL with fsync, and load on all of them. A round: every process has a cached *good* about a certificate; it is
revoked; each process is asked about it again and again on one connection. Counted is the time from the return of the
commit to the first answer `revoked` of each process.

The oracle looks at every answer of every round: after its first `revoked` a process never says `good` again, and no
question that was sent later than the bound after the return of the commit is answered `good`. When `wait=served` has
returned (`lakthan.store.served`), no process answers `good` to a question sent from then on, however early that is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import uvloop
from cryptography.x509 import ocsp

from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.changes import ChangeWriter
from lakthan.store.embedded import EmbeddedPostgres
from lakthan.store.feed import BOUND, FEED_NAME
from lakthan.store.migrate import migrate
from lakthan.store.pool import connect, open_pool
from lakthan.store.records import Change, ChangeRequest
from lakthan.store.served import Served, ServedWatch
from lakthan.web.process import run_alongside
from support.pki import Issued, issue, new_ca, new_responder
from support.responder import ACTOR, request_for

BOUND_SECONDS = BOUND.total_seconds()
_PAUSE_SECONDS = 0.002
# What follows a CertID in a SingleResponse (RFC 6960 §4.2.1): CertStatus, tagged [0], [1] or [2].
_STATUS = {0x80: "good", 0xA1: "revoked", 0x82: "unknown"}


@dataclass(frozen=True)
class Answer:
    """What one question brought. `sent` and `heard`: seconds of the monotonic clock."""

    sent: float
    heard: float
    status: str


class Question:
    """A request about one certificate; `nonce`: a new one in each, so that every answer is signed for it."""

    def __init__(self, certificate: Issued, ca: Issued, *, nonce: bool = False) -> None:
        self.serial_number = certificate.serial_number
        self._mark = os.urandom(32) if nonce else b""
        body = request_for(certificate, ca, nonce=self._mark or None)
        self._octets = (
            b"POST / HTTP/1.1\r\nHost: ocsp\r\nContent-Type: application/ocsp-request\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        # The last element of a CertID is the serial number.
        self._end = bytes([2, len(self.serial_number)]) + self.serial_number

    @property
    def octets(self) -> bytes:
        """What is sent."""
        return self._octets.replace(self._mark, os.urandom(32)) if self._mark else self._octets

    def status(self, body: bytes) -> str:
        """The CertStatus in an OCSPResponse, or the OCSPResponseStatus when there is none."""
        at = body.find(self._end)
        if at >= 0:
            return _STATUS[body[at + len(self._end)]]
        return ocsp.load_der_ocsp_response(body).response_status.name.lower()


class Connection:
    """One client's connection to one process."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int) -> Connection:
        """Connect."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, question: Question) -> Answer:
        """One question and its answer."""
        sent = time.monotonic()
        self._writer.write(question.octets)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        body = await self._reader.readexactly(int(length[15:]))
        return Answer(sent, time.monotonic(), question.status(body))

    def close(self) -> None:
        """Hang up."""
        self._writer.close()


@dataclass
class Worker:
    """A responder process, with two connections to it."""

    process: asyncio.subprocess.Process
    port: int
    admin_port: int
    connection: Connection = field(init=False)
    other: Connection = field(init=False)

    async def ready(self) -> None:
        """Wait until it hears the changes, and all of its workers do."""
        reply = b""
        while b" 200 " not in reply.split(b"\r\n", 1)[0]:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.admin_port)
            writer.write(b"GET /readyz HTTP/1.0\r\n\r\n")
            reply = await reader.read()
            writer.close()
            await asyncio.sleep(0.02)

    def stop(self) -> None:
        """Stand still."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on."""
        self.process.send_signal(signal.SIGCONT)


@dataclass
class Fleet:
    """Responder processes on one database, and the hand that revokes."""

    workers: list[Worker]
    ca: Issued
    authority_id: int
    changes: ChangeWriter
    owner: asyncpg.Connection
    watch: ServedWatch
    served: list[Served] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    async def certificates(self, count: int, *, nonce: bool = False) -> list[Question]:
        """New certificates, on record as good and remembered so by every process."""
        questions = [Question(issue(f"subject {number}", self.ca), self.ca, nonce=nonce) for number in range(count)]
        await self.changes.record(
            [ChangeRequest(self.authority_id, each.serial_number, Change.ISSUE) for each in questions], ACTOR
        )
        for worker in self.workers:
            for question in questions:
                answer = await worker.connection.ask(question)
                if answer.status != "good":
                    raise AssertionError(f"{answer.status} about a certificate that was announced")
        return questions

    async def revoke(self, question: Question) -> float:
        """Revoke it; gives the instant at which the commit's return was known."""
        await self.changes.revoke(self.authority_id, question.serial_number, actor=ACTOR)
        return time.monotonic()

    async def trusted(self) -> None:
        """Wait until every process hears the changes."""
        for worker in self.workers:
            await worker.ready()

    async def sessions(self) -> list[int]:
        """The server's processes that serve the feeds."""
        rows = await self.owner.fetch(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1", FEED_NAME
        )
        return [row["pid"] for row in rows]

    async def cut(self, sessions: Sequence[int]) -> None:
        """Cut the connections of feeds."""
        await self.owner.execute("SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) AS pid", sessions)

    async def round(self, question: Question, *, cut_one: bool = False) -> list[float]:
        """Revoke while everybody is asked; gives each process's seconds from the commit to its first `revoked`."""
        asking = [asyncio.ensure_future(self.ask_until_revoked(worker, question)) for worker in self.workers]
        if cut_one:
            await self.cut((await self.sessions())[:1])
        committed = await self.revoke(question)
        await self._wait_until_served(question)
        answers = await asyncio.gather(*asking)
        for each in answers:
            self.judge(each, committed)
        # A few more, after everybody knows.
        for worker in self.workers:
            self.judge([await worker.connection.ask(question)], committed, after=committed)
        return [max(0.0, next(one.heard for one in each if one.status == "revoked") - committed) for each in answers]

    async def _wait_until_served(self, question: Question) -> None:
        self.served.append(await self.watch.wait_until_served())
        for answer in await asyncio.gather(*(worker.other.ask(question) for worker in self.workers)):
            if answer.status == "good":
                self.violations.append(f"good, although it was served: {self.served[-1]}")

    async def ask_until_revoked(self, worker: Worker, question: Question) -> list[Answer]:
        """Its answers up to the first `revoked`."""
        answers: list[Answer] = []
        while not answers or answers[-1].status != "revoked":
            answers.append(await worker.connection.ask(question))
            await asyncio.sleep(_PAUSE_SECONDS)
        return answers

    def judge(self, answers: Sequence[Answer], committed: float, *, after: float | None = None) -> None:
        """Note what may not be. `after`: from when on nothing but `revoked` is right, the bound when left out."""
        limit = committed + BOUND_SECONDS if after is None else after
        known = False
        for answer in answers:
            if answer.status == "good" and (known or answer.sent > limit):
                self.violations.append(f"good, asked {answer.sent - committed:.3f} s after the commit (known: {known})")
            known = known or answer.status == "revoked"


@asynccontextmanager
async def fleet(url: str, folder: Path, workers: int, *, together: bool = False) -> AsyncIterator[Fleet]:
    """Start them on a migrated database, given by its owner's URL.

    `together`: as the workers of one service on one port, of which the fleet then knows one only.
    """
    ca = new_ca("Public CA")
    certificate, key = new_responder(ca).write(folder, "responder")
    config = folder / "ocsp.toml"
    config.write_text(
        "[ocsp]\nport = 0\nadmin_port = 0\n"
        f'[ocsp.database]\nurl = "{url}"\nconnections = 2\n'
        f'[[ocsp.responders]]\nauthority = "public-ca"\ncertificate = "{certificate}"\nkey = "file:{key}"\n'
    )
    async with AsyncExitStack() as stack:
        pool = await open_pool(url, role="lakthan_registry", min_size=1, max_size=2, application_name="propagation")
        stack.push_async_callback(pool.close)
        owner = await asyncpg.connect(url)
        stack.push_async_callback(owner.close)
        changes = ChangeWriter(pool)
        authority_id = await AuthorityAdmin(pool).add_authority("public-ca", [ca.der])
        watch = ServedWatch(lambda: connect(url, role="lakthan_auditor", application_name="propagation"))
        run_alongside(stack, watch.run())
        if together:
            started = [await _start(config, stack, workers)]
        else:
            started = [await _start(config, stack) for _ in range(workers)]
        made = Fleet(started, ca, authority_id, changes, owner, watch)
        await made.trusted()
        while (served := await watch.wait_until_served()).workers != workers or not served.acknowledged:
            pass
        yield made


async def _start(config: Path, stack: AsyncExitStack, workers: int = 1) -> Worker:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "lakthan_ocsp", "--config", str(config), "--workers", str(workers)),
        stderr=asyncio.subprocess.PIPE,
    )

    async def end() -> None:
        if process.returncode is None:
            process.terminate()
        await process.wait()

    stack.push_async_callback(end)
    log = process.stderr
    assert log is not None
    lines: list[bytes] = []
    while (b"serving OCSP" if workers == 1 else b"starting workers") not in (line := await log.readline()):
        lines.append(line)
        if not line:
            raise AssertionError(b"".join(lines).decode())
    said = json.loads(line)

    async def drain() -> None:
        while await log.readline():
            pass

    draining = asyncio.ensure_future(drain())
    stack.callback(draining.cancel)
    made = Worker(process, said["port"], said["admin_port"])
    if workers > 1:
        await made.ready()
    made.connection, made.other = await Connection.open(made.port), await Connection.open(made.port)
    for each in (made.connection, made.other):
        stack.callback(each.close)
    return made


@asynccontextmanager
async def load(fleet: Fleet, per_second: float) -> AsyncIterator[list[float]]:
    """Ask all processes about other certificates, in all so many times a second; gives what the answers took."""
    questions = await fleet.certificates(100)
    took: list[float] = []
    distance = len(fleet.workers) / per_second

    async def ask_on(worker: Worker, offset: int) -> None:
        connection = await Connection.open(worker.port)
        try:
            at, number = time.monotonic(), offset
            while True:
                answer = await connection.ask(questions[number % len(questions)])
                took.append(answer.heard - answer.sent)
                at, number = at + distance, number + 1
                await asyncio.sleep(max(0.0, at - time.monotonic()))
        finally:
            connection.close()

    asking = [asyncio.ensure_future(ask_on(worker, number)) for number, worker in enumerate(fleet.workers)]
    try:
        yield took
    finally:
        for each in asking:
            each.cancel()
            with suppress(asyncio.CancelledError):
                await each


async def stand_still(fleet: Fleet, question: Question, *, seconds: float, feed: str) -> list[Answer]:
    """Stop one process, revoke, let it go on after `seconds`: what it answers to twenty clients that asked meanwhile,
    and then to one that asks until it hears `revoked`.

    Half of the twenty questions are sent at once after the commit, half just before it goes on. `feed`: what becomes of
    the listening connections of all processes meanwhile: "kept", "cut", or "silent" (they stay open, and nothing comes
    through any more).
    """
    worker = fleet.workers[0]
    clients = [await Connection.open(worker.port) for _ in range(20)]
    sessions = await fleet.sessions()
    worker.stop()
    try:
        if feed == "cut":
            await fleet.cut(sessions)
        if feed == "silent":
            for session in sessions:
                os.kill(session, signal.SIGSTOP)
        committed = await fleet.revoke(question)
        early = [asyncio.ensure_future(each.ask(question)) for each in clients[:10]]
        await asyncio.sleep(seconds)
        late = [asyncio.ensure_future(each.ask(question)) for each in clients[10:]]
        await asyncio.sleep(0.05)
        worker.resume()
        answers = [*await asyncio.gather(*early), *await asyncio.gather(*late)]
        answers += await fleet.ask_until_revoked(worker, question)
    finally:
        worker.resume()
        if feed == "silent":
            for session in sessions:
                os.kill(session, signal.SIGCONT)
    for each in clients:
        each.close()
    for answer in answers:
        fleet.judge([answer], committed)
    return answers


def _table_row(label: str, times: Sequence[float], served: Sequence[Served], took: Sequence[float], bad: int) -> str:
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    waits = statistics.quantiles((each.seconds for each in served), n=100, method="inclusive")
    answers = statistics.quantiles(took, n=100)
    figures = [cuts[49], cuts[98], max(times), waits[49], waits[98], answers[98]]
    return f"| {label} | {len(times)} | {' | '.join(f'{1000 * each:.1f}' for each in figures)} | {bad} |"


async def _measure(counts: Sequence[int], rounds: int, per_second: float) -> None:
    with tempfile.TemporaryDirectory() as name, EmbeddedPostgres(Path(name)) as server:
        await migrate(server.url())
        load_now = ", ".join(f"{each:.1f}" for each in os.getloadavg())
        print(f"{os.cpu_count()} cores, load average {load_now}; {rounds} revocations, {per_second:g} requests/s\n")
        print("| workers | samples | p50 ms | p99 ms | max ms | `served` p50 | p99 | any answer p99 | stale |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        for count in counts:
            await _measure_one(server, count, rounds, per_second, cut_one=False)
        await _measure_one(server, counts[-1], max(20, rounds // 5), per_second, cut_one=True)
        await _measure_standing_still(server)


async def _own_database(server: EmbeddedPostgres, name: str) -> str:
    owner = await asyncpg.connect(server.url(database="postgres"))
    await owner.execute(f"CREATE DATABASE {name}")
    await owner.close()
    url = server.url(database=name)
    await migrate(url)
    return url


async def _measure_one(server: EmbeddedPostgres, count: int, rounds: int, per_second: float, *, cut_one: bool) -> None:
    url = await _own_database(server, f"workers_{count}_{int(cut_one)}")
    with tempfile.TemporaryDirectory() as folder:
        async with fleet(url, Path(folder), count) as some:
            questions = await some.certificates(rounds)
            times: list[float] = []
            async with load(some, per_second) as took:
                for question in questions:
                    await some.trusted()
                    times += await some.round(question, cut_one=cut_one)
                    await asyncio.sleep(0.05)
            label = f"{count}, one connection cut at each revocation" if cut_one else str(count)
            print(_table_row(label, times, some.served, took, len(some.violations)), flush=True)


async def _measure_standing_still(server: EmbeddedPostgres) -> None:
    print("\n| one of 2 workers stands still for | its feed meanwhile | good within the bound | good beyond it |")
    print("| --- | --- | ---: | ---: |")
    url = await _own_database(server, "standing_still")
    with tempfile.TemporaryDirectory() as folder:
        async with fleet(url, Path(folder), 2) as some:
            for feed in ("kept", "cut", "silent"):
                for seconds in (BOUND_SECONDS / 3, BOUND_SECONDS + 1):
                    await some.trusted()
                    [question] = await some.certificates(1)
                    some.violations.clear()
                    answers = await stand_still(some, question, seconds=seconds, feed=feed)
                    stale = sum(answer.status == "good" for answer in answers)
                    beyond = len(some.violations)
                    print(f"| {seconds:g} s | {feed} | {stale - beyond} | {beyond} |", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", default="1,4,8")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--load", type=float, default=1000.0, help="requests a second, on all workers together")
    arguments = parser.parse_args()
    counts = [int(each) for each in arguments.workers.split(",")]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_measure(counts, arguments.rounds, arguments.load))


if __name__ == "__main__":
    main()
