"""Rolling restarts under load: every worker replaced again and again, and not one request may fail.

    ./run rolling-restart --restarts 10 --clients 16 --workers 4

prints, for OCSP and for time-stamps, how many requests each kind of client sent meanwhile and how many failed. The
clients never try again (`support.rolling_load`).
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from rich.console import Console
from rich.table import Table

from lakthan.store.embedded import EmbeddedPostgres
from lakthan.store.migrate import migrate
from support.pki import issue
from support.responder import ACTOR
from support.responder import request_for as ocsp_request
from support.rolling_load import Kind, Tally, get, loaded, post
from support.running import samples
from support.tsa import request_for as tsa_request
from support.tsa import write_configuration

_QUERY = "application/timestamp-query"
_OCSP = "application/ocsp-request"


@dataclass
class Service:
    """A running service with workers, and the clients that it has."""

    process: asyncio.subprocess.Process
    port: int
    replaced: Callable[[], Awaitable[dict[str, float]]]
    kinds: list[Kind]


@asynccontextmanager
async def ocsp_service(database_url: str, folder: Path, workers: int) -> AsyncIterator[Service]:
    """A responder, and clients of every habit: kept connections, new ones, pauses, GET, nonces, aiohttp's way."""
    from service.test_workers import supervised  # noqa: PLC0415 - the way that operators start it

    await asyncio.to_thread(folder.mkdir)
    async with supervised(database_url, folder, workers) as up:
        certificates = [issue(f"citizen {number}", up.ca) for number in range(8)]
        for each in certificates:
            await up.writer.issue(up.authority_id, each.serial_number, actor=ACTOR)
        plain = [ocsp_request(each, up.ca) for each in certificates]
        targets = ["/" + quote(base64.b64encode(each).decode(), safe="") for each in plain]
        one = ocsp_request(certificates[0], up.ca, nonce=bytes(16))

        def nonced() -> bytes:
            return one[:-16] + secrets.token_bytes(16)

        def any_of() -> bytes:
            return secrets.choice(plain)

        kinds = [
            Kind("GET, connection kept", get(lambda: secrets.choice(targets)), _good),
            Kind("POST with nonce, kept", post("/", _OCSP, nonced), _good),
            Kind("POST, kept, pauses", post("/", _OCSP, any_of), _good, pause_seconds=0.5),
            Kind("POST by aiohttp, kept", post("/", _OCSP, any_of, X_Unheard_Of="1"), _good),
            Kind("GET, connection new", get(lambda: secrets.choice(targets)), _good, keeps=False),
            Kind("POST, connection new", post("/", _OCSP, any_of), _good, keeps=False),
        ]
        yield Service(up.process, _port(up.url), lambda: samples(up.session, up.admin_url), kinds)


@asynccontextmanager
async def tsa_service(database_url: str, folder: Path, workers: int) -> AsyncIterator[Service]:
    """A time-stamp authority in the same way."""
    from service.test_workers import with_workers  # noqa: PLC0415 - as above

    await asyncio.to_thread(folder.mkdir)
    config = write_configuration(folder, database_url)
    async with with_workers("lakthan_tsa", config, workers) as up:
        request = tsa_request()

        def stamp() -> bytes:
            return request

        kinds = [
            Kind("POST, connection kept", post("/", _QUERY, stamp), _granted),
            Kind("POST, kept, pauses", post("/", _QUERY, stamp), _granted, pause_seconds=0.5),
            Kind("POST by aiohttp, kept", post("/", _QUERY, stamp, X_Unheard_Of="1"), _granted),
            Kind("POST, connection new", post("/", _QUERY, stamp), _granted, keeps=False),
        ]
        yield Service(up.process, _port(up.url), lambda: samples(up.session, up.admin_url), kinds)


SERVICES = {"ocsp": ocsp_service, "tsa": tsa_service}


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])


def _good(body: bytes) -> bool:
    """An OCSPResponse whose status is successful: a refusal has five octets."""
    return body[:1] == b"\x30" and b"\x0a\x01\x00" in body[:9] and len(body) > 100


def _granted(body: bytes) -> bool:
    """A TimeStampResp that begins with PKIStatus granted and has a token."""
    return b"\x30\x03\x02\x01\x00" in body[:12] and len(body) > 100


async def roll(service: Service, workers: int) -> None:
    """One rolling restart, from the signal until every worker is another."""
    names = [f'lakthan_worker_replacements_total{{worker="{number}"}}' for number in range(workers)]
    before = await service.replaced()
    service.process.send_signal(signal.SIGHUP)
    async with asyncio.timeout(300):
        while True:
            now = await service.replaced()
            if all(now.get(name, 0) > before[name] for name in names):
                return
            await asyncio.sleep(0.1)


async def measure(
    kind: str, database_url: str, folder: Path, *, workers: int, clients: int, restarts: int
) -> dict[str, Tally]:
    """What the clients of a service saw while it was restarted so often."""
    async with SERVICES[kind](database_url, folder, workers) as service:
        async with loaded(service.port, service.kinds, clients) as tallies:
            for _ in range(restarts):
                await roll(service, workers)
            # Until the last of the old workers has let its clients go.
            await asyncio.sleep(3)
        return tallies


async def _measure_all(arguments: argparse.Namespace) -> int:
    console, failed = Console(), 0
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lakthan-rolling-")))
        server = stack.enter_context(EmbeddedPostgres(folder / "postgres", durable=False))
        await migrate(server.url())
        for kind in arguments.services:
            began = time.monotonic()
            tallies = await measure(
                kind,
                server.url(),
                folder / kind,
                workers=arguments.workers,
                clients=arguments.clients,
                restarts=arguments.restarts,
            )
            seconds = time.monotonic() - began
            replaced = arguments.restarts * arguments.workers
            title = f"{kind}: {arguments.workers} workers, {arguments.restarts} restarts, {replaced} processes replaced"
            table = Table("clients", "requests", "connections", "asked to go", "failed", title=title, min_width=90)
            for name, tally in tallies.items():
                said = ", ".join(f"{count} {what}" for what, count in tally.failed.items()) or "0"
                table.add_row(name, f"{tally.requests:,}", f"{tally.connections:,}", f"{tally.asked_to_go:,}", said)
                failed += tally.failed.total()
            console.print(table)
            total = sum(tally.requests for tally in tallies.values())
            console.print(f"{total:,} requests in {seconds:.0f} s, {failed} failed\n")
    return 1 if failed else 0


def main() -> None:
    """Print the tables; the exit code is 1 when a request failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--restarts", type=int, default=10, help="of all workers, one after the other")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--clients", type=int, default=8, help="of each kind")
    parser.add_argument("--services", nargs="+", choices=list(SERVICES), default=list(SERVICES))
    sys.exit(asyncio.run(_measure_all(parser.parse_args())))


if __name__ == "__main__":
    main()
