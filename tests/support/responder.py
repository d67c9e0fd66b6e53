"""A running OCSP responder for the tests: the real service on real ports, in the test's event loop."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import aiohttp
from asn1crypto import ocsp as asn1_ocsp
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import OCSPNonce, ocsp
from yarl import URL

from lakthan.config import Config, DatabaseConfig, KeyURI, OCSPConfig, ResponderConfig
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.changes import ChangeWriter
from lakthan.store.pool import open_pool
from lakthan_ocsp.__main__ import serve
from support.pki import Issued, new_ca, new_responder
from support.running import Reply, running, samples

ACTOR = "test"
# Every question is asked by the long way and three times by the wire first, so that the tests see what is given again.
WARM = os.environ.get("LAKTHAN_TEST_WIRE") == "warm"
# How often a question is asked when a test asks it once.
TIMES = 5 if WARM else 1
# More often than this an answer does not become another one between two questions.
_CHANGES = 4


class OCSPReply(Reply):
    """What came back, as OCSP."""

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
    authorities: AuthorityAdmin
    authority_id: int
    session: aiohttp.ClientSession

    async def post(self, body: bytes, **headers: str) -> OCSPReply:
        """POST these octets."""
        return await self._twice("POST", URL(self.url), body, headers)

    async def get(self, body: bytes, **headers: str) -> OCSPReply:
        """GET as RFC 9919 §6 writes it."""
        target = f"{self.url}/{quote(base64.b64encode(body).decode(), safe='')}"
        return await self._twice("GET", URL(target, encoded=True), None, headers)

    async def _twice(self, method: str, url: URL, body: bytes | None, headers: dict[str, str]) -> OCSPReply:
        """Ask; with a warm wire, after the same was asked the long way and the short way, which say the same."""
        if WARM:
            long = await self._ask_the_long_way(method, url, body, headers)
            for _ in range(3):  # read; found by what was asked; found by the octets of the whole request
                for _ in range(_CHANGES):
                    short = await self._ask(method, url, body, headers)
                    if _form(short) == _form(long):
                        break
                    # The answer may have become another one meanwhile; then the long way says another one, too.
                    before, long = long, await self._ask_the_long_way(method, url, body, headers)
                    assert (_form(long), long.body) != (_form(before), before.body)
                else:
                    raise AssertionError("the short way never says what the long way says")
        return await self._ask(method, url, body, headers)

    async def _ask_the_long_way(self, method: str, url: URL, body: bytes | None, headers: dict[str, str]) -> OCSPReply:
        return await self._ask(method, url, body, {**headers, "X-The-Long-Way": "please"})

    async def _ask(self, method: str, url: URL, body: bytes | None, headers: dict[str, str]) -> OCSPReply:
        async with self.session.request(method, url, data=body, headers=headers) as reply:
            return OCSPReply(reply.status, reply.headers, await reply.read())

    async def metrics(self) -> dict[str, float]:
        """Every sample of /metrics by its name with labels."""
        return await samples(self.session, self.admin_url)

    async def issue(self, certificate: Issued) -> Issued:
        """Announce a certificate of the authority."""
        await self.writer.issue(
            self.authority_id,
            certificate.serial_number,
            not_after=certificate.certificate.not_valid_after_utc,
            actor=ACTOR,
        )
        return certificate


def _form(reply: OCSPReply) -> tuple[int, list[str]]:
    return reply.http_status, list(reply.headers)


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
    database_url: str,
    folder: Path,
    *,
    kind: str = "P-256",
    ca_kind: str = "P-256",
    outage_bound: timedelta = timedelta(0),
    **settings: object,
) -> AsyncIterator[Responder]:
    """Make a CA and its responder, register the CA, and serve. `settings`: of the responder."""
    ca = new_ca("Public CA ອອກໃບຢັ້ງຢືນ", kind=ca_kind)
    identity = new_responder(ca, kind=kind)
    async with running_responder_of(
        database_url, folder, ca, identity, previous=(), outage_bound=outage_bound, **settings
    ) as responder:
        yield responder


@asynccontextmanager
async def running_responder_of(
    database_url: str,
    folder: Path,
    ca: Issued,
    *identities: Issued,
    previous: Sequence[Issued] = (),
    outage_bound: timedelta = timedelta(0),
    **settings: object,
) -> AsyncIterator[Responder]:
    """The same with a CA and responder certificates that are given. `previous`: the CA under its other keys."""
    pool = await open_pool(database_url, role="lakthan_registry", min_size=1, max_size=4, application_name="test")
    writer, authorities = ChangeWriter(pool), AuthorityAdmin(pool)
    authority_id = await authorities.add_authority("public-ca", [each.der for each in (ca, *previous)])
    responders = []
    for number, identity in enumerate(identities):
        certificate, key = identity.write(folder, f"responder-{number}")
        uri = KeyURI(f"file:{key.name}", folder)
        responders.append(ResponderConfig("public-ca", certificate, uri, **settings))  # type: ignore[arg-type]
    config = OCSPConfig(responders, DatabaseConfig(database_url), port=0, admin_port=0, outage_bound=outage_bound)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(pool.close)
        port, admin_port = await stack.enter_async_context(running(serve, Config(ocsp=config)))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        admin_url = f"http://127.0.0.1:{admin_port}"
        while (await session.get(f"{admin_url}/readyz")).status != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        yield Responder(
            f"http://127.0.0.1:{port}", admin_url, ca, identities[0], writer, authorities, authority_id, session
        )
