"""A running publisher and the responder that gives its answers out, over one database and one CA."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import aiohttp
import asyncpg
from cryptography.hazmat.primitives import hashes

from lakthan.config import (
    Config,
    DatabaseConfig,
    KeyURI,
    OCSPConfig,
    PresignConfig,
    PublisherConfig,
    ResponderConfig,
)
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.changes import ChangeWriter
from lakthan.store.pool import open_pool
from lakthan_ocsp.__main__ import serve
from lakthan_ocsp.publisher.__main__ import serve as publish
from support.pki import Issued, issue, new_ca, new_responder
from support.responder import OCSPReply, Responder, request_for
from support.running import running, samples

AUTHORITY = "public-ca"


@dataclass
class Presigned:
    """A CA whose answers are signed ahead."""

    responder: Responder
    publisher_url: str
    pool: asyncpg.Pool
    config: PublisherConfig
    stop_publishing: Callable[[], Awaitable[object]]

    @property
    def authority_id(self) -> int:
        """Of the CA."""
        return self.responder.authority_id

    async def issue(self, name: str = "subject", **extra: object) -> Issued:
        """A certificate that is announced."""
        return await self.responder.issue(issue(name, self.responder.ca, **extra))  # type: ignore[arg-type]

    async def ask(
        self, certificate: Issued, algorithm: hashes.HashAlgorithm | None = None, *, nonce: bytes | None = None
    ) -> OCSPReply:
        """What a POST about it gets."""
        return await self.responder.post(request_for(certificate, self.responder.ca, algorithm=algorithm, nonce=nonce))

    async def until(self, certificate: Issued, status: str) -> OCSPReply:
        """Ask until the answer has this CertStatus."""
        async with asyncio.timeout(20):
            while True:
                reply = await self.ask(certificate)
                if reply.status == "successful" and reply.cert_statuses == [status]:
                    return reply
                await asyncio.sleep(0.005)

    async def rows(self, certificate: Issued | None = None) -> list[asyncpg.Record]:
        """What is on record, about one certificate or all."""
        return await self.pool.fetch(
            "SELECT * FROM published_answer WHERE $1::bytea IS NULL OR serial_number = $1 ORDER BY cert_id_hash",
            None if certificate is None else certificate.serial_number,
        )

    async def until_rows(self, count: int, **where: object) -> list[asyncpg.Record]:
        """Wait until so many answers are on record."""
        async with asyncio.timeout(30):
            while len(rows := await self.rows(**where)) != count:  # type: ignore[arg-type] # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return rows

    async def metrics(self) -> dict[str, float]:
        """Of the publisher."""
        return await samples(self.responder.session, self.publisher_url)


def publisher_config(database_url: str, folder: Path, identity: Issued, **settings: object) -> PublisherConfig:
    """A publisher for one authority. `settings`: of its responder."""
    certificate, key = identity.write(folder, "publisher")
    uri = settings.pop("key", KeyURI(f"file:{key.name}", folder))
    one = PresignConfig(AUTHORITY, certificate, uri, **settings)  # type: ignore[arg-type]
    return PublisherConfig([one], DatabaseConfig(database_url), admin_port=0)


@asynccontextmanager
async def presigning(
    database_url: str,
    folder: Path,
    *,
    live: bool = False,
    **settings: object,
) -> AsyncIterator[Presigned]:
    """Make a CA, sign ahead for it, and serve. `live`: the responder has a key as well, for nonces."""
    ca = new_ca("Public CA ອອກໃບຢັ້ງຢືນ")
    identity = new_responder(ca)
    pool = await open_pool(database_url, role="lakthan_registry", min_size=1, max_size=4, application_name="test")
    try:
        writer, admin = ChangeWriter(pool), AuthorityAdmin(pool)
        authority_id = await admin.add_authority(AUTHORITY, [ca.der])
        config = publisher_config(database_url, folder, identity, **settings)
        responder = ResponderConfig(AUTHORITY, answers="published", max_age=timedelta(minutes=5))
        if live:
            certificate, key = identity.write(folder, "live")
            responder = ResponderConfig(AUTHORITY, certificate, KeyURI(f"file:{key.name}", folder), answers="published")
        ocsp = OCSPConfig([responder], DatabaseConfig(database_url), port=0, admin_port=0)
        async with AsyncExitStack() as publishing:
            _, publisher_port = await publishing.enter_async_context(running(publish, Config(publisher=config)))
            async with running(serve, Config(ocsp=ocsp)) as (port, admin_port), aiohttp.ClientSession() as session:
                url, admin_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin_port}"
                while (await session.get(f"{admin_url}/readyz")).status != 200:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                served = Responder(url, admin_url, ca, identity, writer, admin, authority_id, session)
                yield Presigned(served, f"http://127.0.0.1:{publisher_port}", pool, config, publishing.aclose)
    finally:
        await pool.close()
