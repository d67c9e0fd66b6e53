"""`./run edge-cut`: a province whose line to the capital is cut for minutes, under load, and what its clients hear.

Two PostgreSQL servers in two network namespaces with streaming replication between them, `lakthan serve publisher` in
the capital, `lakthan serve ocsp --keyless` at the edge, and clients at the edge that never stop asking. The line is cut
in silence (packets are lost, nothing is refused). While it is, a certificate is revoked in the capital, the edge's
database crashes, and the edge's process is killed and started anew. Beside it a second responder with a short bound.

Every answer is judged: its signature, its time, and that no certificate is good again once it was heard to be revoked.
Exit code 1 when one fails, when a client is left without an answer where there must be one, or when the revocation
takes longer than a second to show after the servers have found each other.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import socket
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509 import ocsp
from rich.console import Console
from rich.table import Table

from support.edge import AUTHORITY, Capital, capital, migrated, until
from support.pki import Issued
from support.replication import Servers, servers
from support.responder import request_for
from support.running import samples

_CLIENTS = 4
_CONFIG = """\
[ocsp]
port = {port}
admin_port = {admin_port}
edge_bound = "PT{bound}S"
warm_start = "{name}.warm"

[ocsp.database]
url = "{url}"

[[ocsp.responders]]
authority = "{authority}"
answers = "published"
"""
_PUBLISHER = """\
[publisher]
admin_port = {admin_port}

[publisher.database]
url = "{url}"

[[publisher.responders]]
authority = "{authority}"
certificate = "responder.pem"
key = "file:responder.key"
"""


@dataclass
class Phase:
    """What clients heard in one part of the run."""

    name: str
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    heard: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    oldest: float = 0.0

    def row(self) -> list[str]:
        """For the table."""
        lasted = self.ended - self.began
        waits = sorted(self.seconds) or [0.0]
        return [
            self.name,
            f"{lasted:.0f} s",
            f"{sum(self.heard.values()):,}",
            f"{self.heard['good']:,}",
            f"{self.heard['revoked']:,}",
            f"{self.heard['tryLater']:,}",
            f"{self.heard['no connection']:,}",
            f"{statistics.median(waits) * 1000:.1f}",
            f"{waits[int(len(waits) * 0.99)] * 1000:.1f}",
            f"{self.oldest:.0f} s",
        ]


class Clients:
    """Ask one responder about random certificates, and judge what comes."""

    def __init__(self, made: Capital, url: str, admin_url: str, per_second: float) -> None:
        self._made = made
        self._url = url
        self._admin_url = admin_url
        self._pause = _CLIENTS / per_second
        self._judged: set[bytes] = set()
        self._requests = {each.serial_number: request_for(each, made.ca) for each in made.certificates}
        self.revoked: dict[bytes, float] = {}
        self.wrong: list[str] = []
        self.phases = [Phase("before the cut")]

    def next_phase(self, name: str) -> Phase:
        """From now on it counts there."""
        self.phases[-1].ended = time.monotonic()
        self.phases.append(Phase(name))
        return self.phases[-1]

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        """Ask all the time."""
        async with aiohttp.ClientSession() as session:
            tasks = [asyncio.create_task(self._ask_on(session)) for _ in range(_CLIENTS)]
            tasks.append(asyncio.create_task(self._look_at_age(session)))
            try:
                yield
            finally:
                self.phases[-1].ended = time.monotonic()
                for task in tasks:
                    task.cancel()
                for task in tasks:
                    with suppress(asyncio.CancelledError):
                        await task

    async def _ask_on(self, session: aiohttp.ClientSession) -> None:
        while True:
            began = time.monotonic()
            certificate = random.choice(self._made.certificates)
            heard = await self.ask(session, certificate)
            phase = self.phases[-1]
            phase.heard[heard] += 1
            phase.seconds.append(time.monotonic() - began)
            await asyncio.sleep(max(0.0, self._pause - (time.monotonic() - began)))

    async def ask(self, session: aiohttp.ClientSession, certificate: Issued) -> str:
        """One question, judged."""
        serial_number = certificate.serial_number
        known_revoked = serial_number in self.revoked
        try:
            async with session.post(self._url, data=self._requests[serial_number]) as reply:
                body = await reply.read()
        except aiohttp.ClientError:
            return "no connection"
        response = ocsp.load_der_ocsp_response(body)
        if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            return "tryLater" if response.response_status is ocsp.OCSPResponseStatus.TRY_LATER else "refused"
        self._judge(body, response, certificate)
        if response.certificate_status is ocsp.OCSPCertStatus.REVOKED:
            self.revoked.setdefault(serial_number, time.monotonic())
            return "revoked"
        if known_revoked:
            self.wrong.append(f"{serial_number.hex()} was good again after it had been revoked")
        return "good"

    def _judge(self, body: bytes, response: ocsp.OCSPResponse, certificate: Issued) -> None:
        now = datetime.now(UTC)
        until_instant = response.next_update_utc
        if until_instant is None or not response.this_update_utc <= now < until_instant:
            self.wrong.append(f"an answer outside of its time: {response.this_update_utc} to {until_instant}")
        if response.serial_number != certificate.certificate.serial_number:
            self.wrong.append("an answer about another certificate")
        if body not in self._judged:
            key = self._made.responder.certificate.public_key()
            assert isinstance(key, ec.EllipticCurvePublicKey)
            try:
                key.verify(response.signature, response.tbs_response_bytes, ec.ECDSA(SHA256()))
            except InvalidSignature:
                self.wrong.append("an answer whose signature is wrong")
            self._judged.add(body)

    async def _look_at_age(self, session: aiohttp.ClientSession) -> None:
        while True:
            with suppress(aiohttp.ClientError, OSError, KeyError):
                shown = await samples(session, self._admin_url)
                age = shown["lakthan_ocsp_copy_age_seconds"]
                phase = self.phases[-1]
                phase.oldest = max(phase.oldest, age if age == age else 0.0)  # noqa: PLR0124 - NaN
            await asyncio.sleep(0.5)


class Process:
    """`lakthan …` with a configuration of its own."""

    def __init__(self, folder: Path, name: str, arguments: list[str], config: str) -> None:
        self._log = folder / f"{name}.log"
        (folder / f"{name}.toml").write_text(config)
        self._command = [*arguments, "--config", str(folder / f"{name}.toml")]
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", *self._command), stderr=log, stdout=log, env=os.environ
            )

    async def kill(self, *, politely: bool = False) -> None:
        """End it, as power cuts do unless `politely`."""
        if self._process is not None and self._process.returncode is None:
            (self._process.terminate if politely else self._process.kill)()
            await self._process.wait()


async def _serving(session: aiohttp.ClientSession, admin_url: str) -> bool:
    try:
        async with session.get(f"{admin_url}/readyz") as reply:
            return reply.status == 200
    except aiohttp.ClientError:
        return False


def _free_ports(count: int) -> list[int]:
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in taken]
    for each in taken:
        each.close()
    return ports


@dataclass
class Run:
    """The whole of it, and what was measured beside the clients' table."""

    minutes: float
    per_second: float
    certificates: int
    console: Console
    figures: list[tuple[str, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    async def go(self, pair: Servers, folder: Path) -> list[Phase]:
        """Do it all; gives the phases of the clients of the edge."""
        cut_seconds = self.minutes * 60
        bound = max(5.0, cut_seconds / 3)
        await migrated(pair)
        async with AsyncExitStack() as stack:
            made = await stack.enter_async_context(
                capital(pair.capital.url(), folder, certificates=self.certificates, publishing=False)
            )
            ports = _free_ports(5)
            made.responder.write(folder, "responder")
            publisher = _PUBLISHER.format(admin_port=ports[0], url=made.url, authority=AUTHORITY)
            await _started(stack, Process(folder, "publisher", ["lakthan_cli", "serve", "publisher"], publisher))
            await made.until_published()
            await pair.follow_physically()
            keyless = ["lakthan_cli", "serve", "ocsp", "--keyless"]
            edge, short = (
                Process(
                    folder,
                    name,
                    keyless,
                    _CONFIG.format(
                        port=port,
                        admin_port=admin_port,
                        bound=seconds,
                        name=name,
                        url=pair.edge.url(),
                        authority=AUTHORITY,
                    ),
                )
                for name, port, admin_port, seconds in (
                    ("edge", ports[1], ports[2], 43200),
                    ("short", ports[3], ports[4], round(bound)),
                )
            )
            for each in (edge, short):
                await _started(stack, each)
            session = await stack.enter_async_context(aiohttp.ClientSession())
            urls = [f"http://127.0.0.1:{port}" for port in ports]
            for admin_url in (urls[2], urls[4]):
                await until(lambda admin_url=admin_url: _serving(session, admin_url))  # type: ignore[misc]
            clients = Clients(made, urls[1], urls[2], self.per_second)
            bounded = Clients(made, urls[3], urls[4], 20)
            async with clients.asking(), bounded.asking():
                await self._cut(
                    pair, made, clients, bounded, edge=edge, session=session, cut_seconds=cut_seconds, bound=bound
                )
            self.wrong += clients.wrong + bounded.wrong
            self._check(clients, bounded)
            return clients.phases + [
                Phase(
                    f"bound {bound:.0f} s: {each.name}", each.began, each.ended, each.heard, each.seconds, each.oldest
                )
                for each in bounded.phases
            ]

    async def _cut(
        self,
        pair: Servers,
        made: Capital,
        clients: Clients,
        bounded: Clients,
        *,
        edge: Process,
        session: aiohttp.ClientSession,
        cut_seconds: float,
        bound: float,
    ) -> None:
        revoked = made.certificates[0]
        await asyncio.sleep(10)
        self.console.print(f"the line is cut for {cut_seconds:.0f} s")
        pair.line.cut()
        cut_at = time.monotonic()
        clients.next_phase("cut")
        bounded.next_phase("cut, within the bound")
        self.figures.append(
            ("replication's connection was given up after", f"{await until(lambda: _not_streaming(pair)):.1f} s")
        )
        await asyncio.sleep(bound - 1 - (time.monotonic() - cut_at))
        bounded.next_phase("cut, around the bound")
        await asyncio.sleep(cut_at + cut_seconds / 2 - time.monotonic())
        bounded.next_phase("cut, beyond the bound")
        await made.revoke(revoked)
        await made.until_published()
        self.console.print("revoked one certificate in the capital; the database of the edge crashes")
        clients.next_phase("cut, and no database")
        pair.edge.stop(at_once=True)
        await asyncio.sleep(cut_seconds / 8)
        self.console.print("the process at the edge is killed and started again")
        clients.next_phase("cut, no database, restarting")
        await edge.kill()
        await edge.start()
        self.figures.append(
            (
                "from kill -9 to serving from the file",
                f"{await until(lambda: _serving(session, clients._admin_url)):.1f} s",
            )
        )
        clients.next_phase("cut, no database, restarted")
        await asyncio.sleep(cut_seconds / 8)
        clients.next_phase("cut, database back")
        await asyncio.to_thread(pair.edge.start)
        await asyncio.sleep(max(5.0, cut_at + cut_seconds - time.monotonic()))
        clients.next_phase("after the cut")
        bounded.next_phase("after the cut")
        before = clients.revoked.get(revoked.serial_number)
        if before is not None:
            self.wrong.append("the revocation was heard while the line was cut")
        mended_at = time.monotonic()
        pair.line.mend()
        self.console.print("the line is mended")
        asking = asyncio.create_task(self._until_revoked(clients, session, revoked))
        reconnected = await until(pair.is_streaming)
        shown = await asking - mended_at
        self.figures += [
            (
                "from the line's return to the connection of the servers (TCP asks once a second)",
                f"{reconnected:.2f} s",
            ),
            ("from there to the first answer 'revoked'", f"{max(0.0, shown - reconnected):.2f} s"),
            ("from the line's return to the first answer 'revoked'", f"{shown:.2f} s"),
        ]
        if shown - reconnected > 1:
            self.wrong.append(f"the revocation took {shown - reconnected:.2f} s to show")
        await asyncio.sleep(10)

    @staticmethod
    async def _until_revoked(clients: Clients, session: aiohttp.ClientSession, revoked: Issued) -> float:
        while await clients.ask(session, revoked) != "revoked":  # noqa: ASYNC110 - as clients do
            await asyncio.sleep(0.01)
        return time.monotonic()

    def _check(self, clients: Clients, bounded: Clients) -> None:
        for phase in clients.phases:
            silent = phase.heard["no connection"] and "restarting" not in phase.name
            if silent or phase.heard["refused"]:
                self.wrong.append(f"{phase.name}: clients were left without an answer")
            # A database that crashes under a request, and a status that changes, cost a tryLater.
            if phase.heard["tryLater"] > 0.02 * sum(phase.heard.values()) + 5:
                self.wrong.append(f"{phase.name}: too many tryLater")
        beyond = next(phase for phase in bounded.phases if "beyond" in phase.name)
        if beyond.heard["good"] or beyond.heard["revoked"] or not beyond.heard["tryLater"]:
            self.wrong.append("answers were given beyond the bound")


async def _started(stack: AsyncExitStack, process: Process) -> None:
    await process.start()
    stack.push_async_callback(process.kill, politely=True)


async def _not_streaming(pair: Servers) -> bool:
    return not await pair.is_streaming()


def main() -> int:
    """Run it, print the table; 1 when something was not as it must be."""
    parser = argparse.ArgumentParser(prog="./run edge-cut", description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--minutes", type=float, default=3.0, help="how long the line is cut (default 3)")
    parser.add_argument("--per-second", type=float, default=300.0, help="questions per second (default 300)")
    parser.add_argument("--certificates", type=int, default=500, help="how many there are (default 500)")
    options = parser.parse_args()
    console = Console(width=150)
    if os.geteuid() != 0:
        console.print("network namespaces need root: run this as root", style="red")
        return 2
    run = Run(options.minutes, options.per_second, options.certificates, console)
    with servers() as pair, tempfile.TemporaryDirectory(prefix="lakthan-edge-cut-") as folder:
        phases = asyncio.run(run.go(pair, Path(folder)))
    table = Table(
        "phase", "lasted", "questions", "good", "revoked", "tryLater", "no connection", "median ms", "99 % ms", "oldest"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for phase in phases:
        table.add_row(*phase.row())
    console.print(table)
    for what, value in run.figures:
        console.print(f"{what}: {value}")
    for each in run.wrong[:10]:
        console.print(f"WRONG: {each}", style="red")
    console.print(
        "every answer was judged, and none was wrong" if not run.wrong else f"{len(run.wrong)} things were wrong"
    )
    return 1 if run.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
