"""A running OCSP responder for the tests: the real service on real ports, in the test's event loop."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
from asn1crypto import ocsp as asn1_ocsp
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import OCSPNonce, ocsp
from multidict import CIMultiDictProxy
from yarl import URL

from lakthan.config import Config, DatabaseConfig, KeyURI, OCSPConfig, ResponderConfig
from lakthan.store.changes import ChangeWriter
from lakthan.store.pool import open_pool
from lakthan_ocsp.__main__ import serve
from support.pki import Issued, new_ca, new_responder

ACTOR = "test"


@dataclass(frozen=True)
class Reply:
    """What came back over HTTP."""

    http_status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def response(self) -> asn1_ocsp.OCSPResponse:
        """The OCSPResponse, read strictly by a foreign library."""
        return asn1_ocsp.OCSPResponse.load(self.body, strict=True)

    @property
    def status(self) -> str:
        """The OCSPResponseStatus as asn1crypto spells it."""
        return str(self.response["response_status"].native)

    @property
    def cert_statuses(self) -> list[str]:
        """The CertStatus of each SingleResponse."""
        responses = self.response.response_data["responses"]
        return [str(single["cert_status"].name) for single in responses]


@dataclass(frozen=True)
class Responder:
    """The service, its authority, and the hand that feeds its store."""

    url: str
    admin_url: str
    ca: Issued
    identity: Issued
    writer: ChangeWriter
    authority_id: int
    session: aiohttp.ClientSession

    async def post(self, body: bytes, **headers: str) -> Reply:
        """POST these octets."""
        async with self.session.post(self.url, data=body, headers=headers) as reply:
            return Reply(reply.status, reply.headers, await reply.read())

    async def get(self, body: bytes, **headers: str) -> Reply:
        """GET as RFC 9919 §6 writes it."""
        target = f"{self.url}/{quote(base64.b64encode(body).decode(), safe='')}"
        async with self.session.get(URL(target, encoded=True), headers=headers) as reply:
            return Reply(reply.status, reply.headers, await reply.read())

    async def metrics(self) -> dict[str, float]:
        """Every sample of /metrics by its name with labels."""
        async with self.session.get(f"{self.admin_url}/metrics") as reply:
            lines = (await reply.text()).splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[:1] != "#")}

    async def issue(self, certificate: Issued) -> Issued:
        """Announce a certificate of the authority."""
        await self.writer.issue(
            self.authority_id,
            certificate.serial_number,
            not_after=certificate.certificate.not_valid_after_utc,
            actor=ACTOR,
        )
        return certificate


def request_for(
    certificate: Issued,
    issuer: Issued,
    *,
    algorithm: hashes.HashAlgorithm | None = None,
    nonce: bytes | None = None,
) -> bytes:
    """A one-certificate request, built by pyca/cryptography."""
    builder = ocsp.OCSPRequestBuilder().add_certificate(
        certificate.certificate, issuer.certificate, algorithm or hashes.SHA256()
    )
    if nonce is not None:
        builder = builder.add_extension(OCSPNonce(nonce), critical=False)
    return builder.build().public_bytes(Encoding.DER)


@asynccontextmanager
async def running_responder(
    database_url: str, folder: Path, *, kind: str = "P-256", ca_kind: str = "P-256", **spans: timedelta
) -> AsyncIterator[Responder]:
    """Make a CA and its responder, register the CA, and serve. `spans`: validity, refresh, max_age."""
    ca = new_ca("Public CA ອອກໃບຢັ້ງຢືນ", kind=ca_kind)
    identity = new_responder(ca, kind=kind)
    async with running_responder_of(database_url, folder, ca, identity, **spans) as responder:
        yield responder


@asynccontextmanager
async def running_responder_of(
    database_url: str, folder: Path, ca: Issued, identity: Issued, **spans: timedelta
) -> AsyncIterator[Responder]:
    """The same with a CA and a responder certificate that are given."""
    certificate, key = identity.write(folder, "responder")
    pool = await open_pool(database_url, role="lakthan_registry", min_size=1, max_size=4, application_name="test")
    writer = ChangeWriter(pool)
    authority_id = await writer.add_authority("public-ca", [ca.der])
    config = OCSPConfig(
        [ResponderConfig("public-ca", certificate, KeyURI(f"file:{key.name}", folder), **spans)],
        DatabaseConfig(database_url),
        port=0,
        admin_port=0,
    )
    ports: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()

    async def until_asked(port: int, admin_port: int) -> None:
        ports.set_result((port, admin_port))
        await stop.wait()

    service = asyncio.create_task(serve(Config(ocsp=config), until_asked))
    try:
        either: list[asyncio.Future[Any]] = [service, ports]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if service.done():
            await service
        port, admin_port = ports.result()
        async with aiohttp.ClientSession() as session:
            responder = Responder(
                f"http://127.0.0.1:{port}",
                f"http://127.0.0.1:{admin_port}",
                ca,
                identity,
                writer,
                authority_id,
                session,
            )
            while (await session.get(f"{responder.admin_url}/readyz")).status != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            yield responder
    finally:
        stop.set()
        await pool.close()
        await service
