"""A running responder of an offline root, and the ceremonies that feed it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import asyncpg
from cryptography.hazmat.primitives import hashes

from lakthan.config import Config, DatabaseConfig, OCSPConfig, ResponderConfig
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.changes import ChangeWriter
from lakthan_cli.ceremony.acceptance import accept
from lakthan_cli.ceremony.act import perform
from lakthan_cli.ceremony.plan import load
from lakthan_cli.ceremony.programme import programme
from lakthan_ocsp.__main__ import serve
from support.ceremony import Room
from support.pki import Issued
from support.responder import OCSPReply, Responder, request_for
from support.running import running


async def hold(room: Room, out: str = "out", **plan: object) -> Path:
    """A ceremony inside of the test's event loop; gives its folder."""
    planned = programme(load(room.plan(name=f"{out}.toml", **plan)), datetime.now(UTC))  # type: ignore[arg-type]
    await perform(planned, room.folder / out, advance=lambda: None)
    return room.folder / out


@dataclass
class Root:
    """A running responder of a root, and the root's offline side."""

    room: Room
    pool: asyncpg.Pool
    authority_id: int
    responder: Responder

    async def take(self, folder: Path) -> None:
        """Import a bundle."""
        await accept(self.pool, folder, now=datetime.now(UTC), actor="test")

    async def ask(
        self, certificate: Issued, algorithm: hashes.HashAlgorithm | None = None, *, nonce: bytes | None = None
    ) -> OCSPReply:
        """What a POST about a certificate of the root gets."""
        return await self.responder.post(request_for(certificate, self.room.root, algorithm=algorithm, nonce=nonce))

    async def until(self, certificate: Issued, status: str) -> OCSPReply:
        """Ask until the answer has this OCSPResponseStatus or CertStatus."""
        async with asyncio.timeout(10):
            while True:
                reply = await self.ask(certificate)
                if status in (reply.status, *(reply.cert_statuses if reply.status == "successful" else ())):
                    return reply
                await asyncio.sleep(0.01)


def of(
    room: Room, pool: asyncpg.Pool, authority_id: int, ports: tuple[int, int], session: aiohttp.ClientSession
) -> Responder:
    """A responder as the tests talk to it."""
    admin = AuthorityAdmin(pool)
    url, admin_url = (f"http://127.0.0.1:{port}" for port in ports)
    return Responder(url, admin_url, room.root, room.root, ChangeWriter(pool), admin, authority_id, session)


@asynccontextmanager
async def serving(pool: asyncpg.Pool, database_url: str, room: Room, *configs: ResponderConfig) -> AsyncIterator[Root]:
    """Serve the root of `room` by its published answers."""
    authority_id = await AuthorityAdmin(pool).add_authority("root", [room.root.der])
    responders = [ResponderConfig("root", answers="published"), *configs]
    config = OCSPConfig(responders, DatabaseConfig(database_url), port=0, admin_port=0)
    async with running(serve, Config(ocsp=config)) as ports, aiohttp.ClientSession() as session:
        responder = of(room, pool, authority_id, ports, session)
        while (await session.get(f"{responder.admin_url}/readyz")).status != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        yield Root(room, pool, authority_id, responder)
