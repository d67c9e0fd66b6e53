"""A capital that publishes answers, and a keyless responder at the edge that follows it: all of it real."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import aiohttp
import asyncpg

from lakthan.config import Config, DatabaseConfig, KeyURI, OCSPConfig, PresignConfig, PublisherConfig, ResponderConfig
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.changes import ChangeWriter
from lakthan.store.migrate import migrate
from lakthan.store.pool import open_pool
from lakthan.store.records import Change, ChangeRequest
from lakthan_ocsp.__main__ import serve
from lakthan_ocsp.publisher.__main__ import serve as publish
from support.pki import Issued, issue, new_ca, new_responder
from support.replication import Servers, make_database
from support.responder import ACTOR, OCSPReply, request_for
from support.running import running, samples

AUTHORITY = "public-ca"
# What a publication for an edge names; docs/edge.md says the same.
PUBLISHED_TABLES = (
    *("authority", "authority_name", "authority_key", "authority_certificate", "authority_crl"),
    *("certificate_status", "published_answer", "presigned_authority"),
    *("status_change", "bulk_change", "audit_record", "heartbeat"),
)


@dataclass
class Capital:
    """The CA, its certificates, and the publisher that signs answers about them ahead."""

    url: str
    folder: Path
    ca: Issued
    responder: Issued
    pool: asyncpg.Pool
    writer: ChangeWriter
    authorities: AuthorityAdmin
    authority_id: int
    certificates: list[Issued]

    async def revoke(self, certificate: Issued) -> None:
        """Revoke one."""
        await self.writer.revoke(self.authority_id, certificate.serial_number, actor=ACTOR)

    async def announce(self, *certificates: Issued) -> None:
        """Put certificates on record."""
        await self.writer.record(
            [
                ChangeRequest(
                    self.authority_id,
                    each.serial_number,
                    Change.ISSUE,
                    not_after=each.certificate.not_valid_after_utc,
                )
                for each in certificates
            ],
            actor=ACTOR,
        )

    async def until_published(self) -> None:
        """Return when every certificate has its answers, with both hashes."""
        await until(self._is_published)

    async def _is_published(self) -> bool:
        missing: bool = await self.pool.fetchval(
            "SELECT EXISTS (SELECT FROM certificate_status s CROSS JOIN (VALUES ('SHA-1'), ('SHA-256')) AS h (label)"
            " WHERE NOT EXISTS (SELECT FROM published_answer p WHERE p.authority_id = s.authority_id"
            " AND p.serial_number = s.serial_number AND p.cert_id_hash = h.label AND p.status_version = s.version))"
        )
        return not missing


@asynccontextmanager
async def capital(url: str, folder: Path, *, certificates: int = 4, publishing: bool = True) -> AsyncIterator[Capital]:
    """In a migrated database: an authority, its certificates, and with `publishing` their answers and the heartbeat."""
    ca = new_ca("Public CA ອອກໃບຢັ້ງຢືນ")
    responder = new_responder(ca)
    shared = issue("holder", ca)
    issued = [issue(f"holder {number}", ca, key=shared.key) for number in range(certificates)]
    async with AsyncExitStack() as stack:
        pool = await open_pool(url, role="lakthan_registry", min_size=1, max_size=4, application_name="test")
        stack.push_async_callback(pool.close)
        admin = AuthorityAdmin(pool)
        authority_id = await admin.add_authority(AUTHORITY, [ca.der])
        made = Capital(url, folder, ca, responder, pool, ChangeWriter(pool), admin, authority_id, issued)
        for first in range(0, certificates, 1000):
            await made.announce(*issued[first : first + 1000])
        if publishing:
            await stack.enter_async_context(publisher(made))
            await made.until_published()
        yield made


@asynccontextmanager
async def publisher(of: Capital) -> AsyncIterator[None]:
    """Sign answers ahead and write the heartbeat."""
    certificate, key = of.responder.write(of.folder, "responder")
    signing = PresignConfig(AUTHORITY, certificate, KeyURI(f"file:{key.name}", of.folder))
    config = PublisherConfig([signing], DatabaseConfig(of.url), admin_port=0)
    async with running(publish, Config(publisher=config)):
        yield


@dataclass
class Edge:
    """A running keyless responder, as its clients and its operators see it."""

    url: str
    admin_url: str
    session: aiohttp.ClientSession
    ca: Issued

    async def ask(self, certificate: Issued) -> OCSPReply:
        """One question by POST."""
        async with self.session.post(self.url, data=request_for(certificate, self.ca)) as reply:
            return OCSPReply(reply.status, reply.headers, await reply.read())

    async def says(self, certificate: Issued) -> str:
        """`good`, `revoked`, or the OCSPResponseStatus when there is no answer."""
        reply = await self.ask(certificate)
        return reply.cert_statuses[0] if reply.status == "successful" else reply.status

    async def until_says(self, certificate: Issued, wanted: str, *, never: str = "") -> None:
        """Ask until it says so. `never`: what may not be said meanwhile."""
        async with asyncio.timeout(60):
            while (said := await self.says(certificate)) != wanted:
                assert said != never
                await asyncio.sleep(0.02)

    async def metrics(self) -> dict[str, float]:
        """Every sample of /metrics."""
        return await samples(self.session, self.admin_url)

    async def state(self) -> str:
        """The state of the copy."""
        shown = await self.metrics()
        (state,) = [
            name.split('"')[1]
            for name, value in shown.items()
            if name.startswith("lakthan_ocsp_copy_state{") and value == 1
        ]
        return state

    async def until_state(self, wanted: str) -> None:
        """Return when the copy is in this state."""
        await until(lambda: self._is_in(wanted))

    async def _is_in(self, wanted: str) -> bool:
        return await self.state() == wanted

    async def ready(self) -> tuple[int, str]:
        """What /readyz says."""
        async with self.session.get(f"{self.admin_url}/readyz") as reply:
            return reply.status, await reply.text()


@asynccontextmanager
async def edge(
    database_url: str,
    ca: Issued,
    *,
    bound: timedelta = timedelta(hours=1),
    warm_start: Path | None = None,
    warm_start_answers: int = 1000,
) -> AsyncIterator[Edge]:
    """Serve without keys from a copy of the capital's database."""
    config = OCSPConfig(
        [ResponderConfig(AUTHORITY, answers="published")],
        DatabaseConfig(database_url),
        port=0,
        admin_port=0,
        keyless=True,
        edge_bound=bound,
        warm_start=warm_start,
        warm_start_answers=warm_start_answers,
    )
    async with running(serve, Config(ocsp=config)) as ports, aiohttp.ClientSession() as session:
        url, admin_url = (f"http://127.0.0.1:{port}" for port in ports)
        yield Edge(url, admin_url, session, ca)


async def until(true: Callable[[], Awaitable[object]], *, seconds: float = 60) -> float:
    """Ask again and again until it is true; gives how many seconds that took."""
    began = time.monotonic()
    async with asyncio.timeout(seconds):
        while not await true():  # noqa: ASYNC110 - it may be another process or server that makes it so
            await asyncio.sleep(0.02)
    return time.monotonic() - began


async def subscribe(servers: Servers) -> None:
    """Make the edge's migrated, empty database a subscriber of the capital's."""
    tables = ", ".join(PUBLISHED_TABLES)
    await servers.capital.execute(f"CREATE PUBLICATION edge FOR TABLE ONLY {tables.replace(', ', ', ONLY ')}")
    await servers.edge.execute(f"CREATE SUBSCRIPTION edge CONNECTION '{servers.conninfo()}' PUBLICATION edge")


async def migrated(servers: Servers) -> None:
    """Make the capital's database."""
    await make_database(servers.capital)
    await migrate(servers.capital.url())


@dataclass
class Seen:
    """What a client heard over time, in the order in which it heard it, with repetitions left out."""

    said: list[str] = field(default_factory=list)

    def hear(self, word: str) -> None:
        """Take note."""
        if self.said[-1:] != [word]:
            self.said.append(word)
