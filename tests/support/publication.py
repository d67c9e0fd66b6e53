"""A CA that publishes its CRLs by HTTP, and a registry's database that they are to come into."""

from __future__ import annotations

import asyncio
import secrets
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import asyncpg
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from prometheus_client import CollectorRegistry

from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.pool import open_pool
from lakthan.store.records import AuthorityPolicy
from lakthan_registry.sources import SourceMetrics
from support.pki import Issued, new_ca

HOUR, MINUTE, SECOND = timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1)


def make_crl(
    ca: Issued,
    number: int,
    revoked: Sequence[int] = (),
    *,
    age: timedelta = MINUTE,
    life: timedelta = HOUR,
    signed_by: Issued | None = None,
) -> bytes:
    """A complete CRL, DER."""
    begin = datetime.now(UTC).replace(microsecond=0) - age
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.certificate.subject)
        .last_update(begin)
        .next_update(begin + life)
        .add_extension(x509.CRLNumber(number), critical=False)
    )
    for serial_number in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial_number).revocation_date(begin - HOUR).build()
        builder = builder.add_revoked_certificate(entry)
    key = (signed_by or ca).key
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


@dataclass
class Publication:
    """A CA's web server, and what it was asked."""

    body: bytes = b""
    status: int = 200
    asked: int = 0
    paths: list[str] = field(default_factory=list)
    stubborn: bool = False  # whoever asks whether there is news is told that there is none
    not_modified: int = 0
    redirect: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """The list, or 304 to who has it already."""
        self.asked += 1
        self.paths.append(request.path)
        if self.redirect is not None and request.path == "/ca.crl":
            return web.Response(status=302, headers={"Location": self.redirect})
        if self.status != 200:
            return web.Response(status=self.status)
        etag = f'"{hash(self.body)}"'
        known = request.headers.get("If-None-Match")
        if known == etag or (self.stubborn and known is not None):
            self.not_modified += 1
            return web.Response(status=304)
        return web.Response(body=self.body, headers={"ETag": etag, **self.headers})


@dataclass
class World:
    """A CA that publishes, the registry's pools, and the series."""

    ca: Issued
    authority_id: int
    database: asyncpg.Pool
    registrar: asyncpg.Pool
    publisher: asyncpg.Pool
    registry: CollectorRegistry
    metrics: SourceMetrics
    publication: Publication
    url: str

    def fetches(self, outcome: str) -> float:
        """How often that came of asking the URL."""
        labels = {"authority": "public-ca", "outcome": outcome}
        return self.registry.get_sample_value("lakthan_registry_crl_fetches_total", labels) or 0

    def of_url(self, series: str) -> float | None:
        """A gauge of the URL."""
        labels = {"authority": "public-ca", "url": self.url}
        return self.registry.get_sample_value(f"lakthan_registry_crl_{series}", labels)

    async def revoked(self) -> set[int]:
        """The serial numbers that are on record as revoked."""
        rows = await self.database.fetch("SELECT serial_number FROM certificate_status WHERE cert_status = 'revoked'")
        return {int.from_bytes(row["serial_number"], "big") for row in rows}

    async def refusals(self) -> list[str]:
        """The verdicts that are on record as refused."""
        rows = await self.database.fetch(
            "SELECT detail::json ->> 'verdict' AS verdict FROM audit_record WHERE event = 'refused' ORDER BY number"
        )
        return [row["verdict"] for row in rows]

    async def set_policy(self, *urls: str) -> None:
        """The URLs that are to be followed."""
        await AuthorityAdmin(self.registrar).set_policy(self.authority_id, AuthorityPolicy(urls), actor="test")


@asynccontextmanager
async def service_pools(database_url: str) -> AsyncIterator[tuple[asyncpg.Pool, asyncpg.Pool]]:
    """Pools that act as `lakthan_registrar` and `lakthan_publisher`, by a login that is what the service's own is: a
    member of the roles, and no superuser.
    """
    owner = await asyncpg.connect(database_url)
    login, password = f"lakthan_test_service_{secrets.token_hex(4)}", secrets.token_hex(16)
    await owner.execute(
        f"CREATE ROLE {login} LOGIN PASSWORD '{password}' IN ROLE lakthan_publisher, lakthan_registrar, lakthan_auditor"
    )
    parts = urllib.parse.urlsplit(database_url)
    host = parts.netloc.rpartition("@")[2]
    query = "&".join(each for each in parts.query.split("&") if not each.startswith("passfile="))
    url = urllib.parse.urlunsplit(parts._replace(netloc=f"{login}@{host}", query=query))
    try:
        async with AsyncExitStack() as stack:
            pools = []
            for role in ("lakthan_registrar", "lakthan_publisher"):
                pool = await open_pool(
                    url, role=role, min_size=1, max_size=4, password=password, application_name="lakthan-test"
                )
                stack.push_async_callback(pool.close)
                pools.append(pool)
            yield pools[0], pools[1]
    finally:
        await owner.execute(f"DROP ROLE {login}")
        await owner.close()


@asynccontextmanager
async def publishing_world(database_url: str) -> AsyncIterator[World]:
    """The authority `public-ca` with a policy that names the URL of its web server."""
    async with (
        service_pools(database_url) as (registrar, publisher),
        asyncpg.create_pool(database_url, min_size=1, max_size=2) as database,
        _publishing(database, registrar, publisher) as made,
    ):
        yield made


@asynccontextmanager
async def _publishing(database: asyncpg.Pool, registrar: asyncpg.Pool, publisher: asyncpg.Pool) -> AsyncIterator[World]:
    ca = new_ca("Public CA ອອກໃບຢັ້ງຢືນ")
    authority_id = await AuthorityAdmin(registrar).add_authority("public-ca", [ca.der], actor="test")
    publication = Publication()
    application = web.Application()
    application.router.add_get("/{name:.*}", publication.answer)
    async with TestServer(application) as server:
        registry = CollectorRegistry()
        made = World(
            ca,
            authority_id,
            database,
            registrar,
            publisher,
            registry,
            SourceMetrics(registry),
            publication,
            str(server.make_url("/ca.crl")),
        )
        await made.set_policy(made.url)
        yield made


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait for it; the test's own time limit is the end."""
    while True:
        found = condition()
        if found if isinstance(found, bool) else await found:
            return
        await asyncio.sleep(0.01)


@asynccontextmanager
async def going(work: Coroutine[object, object, None]) -> AsyncIterator[None]:
    """Run it beside the block; what it raises fails the test."""
    task = asyncio.ensure_future(work)
    try:
        yield
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
