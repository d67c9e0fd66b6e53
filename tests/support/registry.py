"""A running registry for the tests: the real service with TLS on a real port, two CAs and a credential of each kind."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from lakthan.config import Config, DatabaseConfig, RegistryConfig
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.credentials import CredentialAdmin
from lakthan.store.pool import open_pool
from lakthan.store.records import CredentialRole
from lakthan_registry.__main__ import serve
from support.pki import Issued, issue, new_ca
from support.running import Reply, running, samples

ALL_SCOPES = ("issue", "revoke", "hold", "crl", "read")
FAR = timedelta(days=30)
# Whatever a refused request must leave as it was.
_STATE = """
    SELECT (SELECT coalesce(json_agg(s ORDER BY authority_id, serial_number), '[]') FROM certificate_status s)::text
        || (SELECT coalesce(json_agg(c ORDER BY version), '[]') FROM status_change c)::text
        || (SELECT coalesce(json_agg(p ORDER BY authority_id), '[]') FROM authority_policy p)::text
        || (SELECT coalesce(json_agg(k ORDER BY credential_id, key), '[]') FROM idempotency_key k)::text
        || (SELECT coalesce(json_agg(l ORDER BY authority_id), '[]') FROM authority_crl l)::text
        || (SELECT coalesce(json_agg(a ORDER BY id), '[]') FROM authority a)::text
"""


class JSONReply(Reply):
    """What came back, as JSON."""

    @property
    def json(self) -> Any:  # noqa: ANN401 - whatever the operation gives
        """The body."""
        return json.loads(self.body)

    @property
    def problem(self) -> str:
        """The kind of the problem."""
        assert self.headers["Content-Type"] == "application/problem+json"
        said = self.json
        assert said["status"] == self.http_status
        assert said["detail"]
        assert said["hint"]
        return str(said["type"]).removeprefix("urn:lakthan:problem:")


@dataclass(frozen=True)
class Registry:
    """The service, the PKI around it, and a way to ask."""

    url: str
    admin_url: str
    a: Issued
    b: Issued
    a_id: int
    b_id: int
    clients: Issued
    folder: Path
    tls_root: Path
    admin: CredentialAdmin
    owner: asyncpg.Pool
    session: aiohttp.ClientSession
    tokens: dict[str, str] = field(default_factory=dict)

    async def ask(
        self,
        method: str,
        path: str,
        *,
        who: str | None = "a",
        body: object = None,
        raw: bytes | None = None,
        certificate: Issued | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> JSONReply:
        """Ask with the token of `who`, and with a client certificate when one is given."""
        headers = dict(headers or {})
        if who is not None:
            headers["Authorization"] = f"Bearer {self.tokens.get(who, who)}"
        if body is not None:
            raw = json.dumps(body).encode()
        if raw is not None:
            headers.setdefault("Content-Type", "application/json")
        context = self.context(certificate)
        async with self.session.request(method, self.url + path, data=raw, headers=headers, ssl=context) as reply:
            return JSONReply(reply.status, reply.headers, await reply.read())

    async def post(self, path: str, body: object, *, who: str | None = "a", key: str | None = None) -> JSONReply:
        """POST JSON. `key`: the Idempotency-Key."""
        headers = {} if key is None else {"Idempotency-Key": key}
        return await self.ask("POST", path, who=who, body=body, headers=headers)

    async def get(self, path: str, *, who: str | None = "a") -> JSONReply:
        """GET."""
        return await self.ask("GET", path, who=who)

    def context(self, certificate: Issued | None = None) -> ssl.SSLContext:
        """TLS as a careful client speaks it."""
        context = ssl.create_default_context(cafile=str(self.tls_root))
        if certificate is not None:
            context.load_cert_chain(
                *certificate.write(self.folder, f"client-{certificate.certificate.serial_number:x}")
            )
        return context

    async def state(self) -> str:
        """All that a refusal must leave as it is."""
        return str(await self.owner.fetchval(_STATE))

    async def audit(self, authority_id: int) -> list[asyncpg.Record]:
        """The audit chain, oldest first."""
        return list(await self.owner.fetch("SELECT * FROM audit_record WHERE chain = $1 ORDER BY number", authority_id))

    async def refusals(self, authority_id: int) -> list[dict[str, str]]:
        """The details of the refusals in a chain."""
        return [json.loads(each["detail"]) for each in await self.audit(authority_id) if each["event"] == "refused"]

    async def token(self, name: str, role: CredentialRole, **about: Any) -> str:  # noqa: ANN401
        """Make a credential with a token, known as `name` from now on."""
        about.setdefault("expires_at", datetime.now(UTC) + FAR)
        _, token = await self.admin.create(name, role, actor="test", **about)
        assert token is not None
        self.tokens[name] = token
        return token

    async def bind(self, name: str, certificate: Issued, **about: Any) -> None:  # noqa: ANN401
        """Make a credential for a client certificate."""
        about = {"authority_id": self.a_id, "scopes": ALL_SCOPES, "expires_at": datetime.now(UTC) + FAR, **about}
        await self.admin.create(name, CredentialRole.PUBLISHER, certificate=certificate.der, actor="test", **about)

    async def metrics(self) -> dict[str, float]:
        """Every sample of /metrics by its name with labels."""
        return await samples(self.session, self.admin_url)


def new_client(
    issuer: Issued, name: str = "ca-robot", *, valid: tuple[timedelta, timedelta] = (timedelta(hours=-1), FAR)
) -> Issued:
    """A client certificate."""
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    return issue(name, issuer, valid=valid, extensions=((usage, False),))


def new_server(issuer: Issued) -> Issued:
    """The certificate of a server on the loopback."""
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1")), x509.DNSName("localhost")])
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    return issue("registry", issuer, extensions=((names, False), (usage, False)))


def pem(certificate: Issued) -> str:
    """The certificate, PEM."""
    return certificate.certificate.public_bytes(Encoding.PEM).decode()


def serial(certificate: Issued) -> str:
    """The serial number as the API writes it."""
    text = f"{certificate.certificate.serial_number:X}"
    return text.rjust(len(text) + len(text) % 2, "0")


def crl_of(ca: Issued, number: int, *revoked: Issued, signer: Issued | None = None) -> bytes:
    """A CRL, DER."""
    now = datetime.now(UTC).replace(microsecond=0)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.certificate.subject)
        .last_update(now - timedelta(minutes=10 - number))
        .next_update(now + timedelta(days=1))
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.certificate.public_key()),  # type: ignore[arg-type]
            critical=False,
        )
    )
    for each in revoked:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder()
            .serial_number(each.certificate.serial_number)
            .revocation_date(now - timedelta(hours=1))
            .build()
        )
    return builder.sign((signer or ca).key, hashes.SHA256()).public_bytes(Encoding.DER)


@asynccontextmanager
async def running_registry(
    database_url: str,
    folder: Path,
    *,
    login_url: str | None = None,
    **settings: Any,  # noqa: ANN401
) -> AsyncIterator[Registry]:
    """Make two CAs with a credential each, a registrar and an auditor, and serve. `settings`: of the registry.

    `login_url`: what the service logs in with; the owner's URL when left out.
    """
    tls = new_ca("TLS root")
    clients = new_ca("Clients CA")
    a, b = new_ca("CA A"), new_ca("CA B")
    tls_root, _ = tls.write(folder, "tls-root")
    certificate, key = new_server(tls).write(folder, "registry")
    client_root, _ = clients.write(folder, "clients")
    settings = {"clients": client_root, "fetch_crls": False, **settings}
    config = RegistryConfig(
        certificate=certificate,
        key=key,
        database=DatabaseConfig(login_url or database_url),
        port=0,
        admin_port=0,
        **settings,
    )
    async with AsyncExitStack() as stack:
        owner = await open_pool(database_url, role=None, min_size=1, max_size=2, application_name="test")
        stack.push_async_callback(owner.close)
        operator = await open_pool(
            database_url, role="lakthan_registry", min_size=1, max_size=2, application_name="test"
        )
        stack.push_async_callback(operator.close)
        authorities = AuthorityAdmin(operator)
        a_id = await authorities.add_authority("ca-a", [a.der])
        b_id = await authorities.add_authority("ca-b", [b.der])
        port, admin_port = await stack.enter_async_context(running(serve, Config(registry=config)))
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True))
        )
        registry = Registry(
            f"https://127.0.0.1:{port}",
            f"http://127.0.0.1:{admin_port}",
            a,
            b,
            a_id,
            b_id,
            clients,
            folder,
            tls_root,
            CredentialAdmin(operator),
            owner,
            session,
        )
        for name, authority_id in (("a", a_id), ("b", b_id)):
            await registry.token(name, CredentialRole.PUBLISHER, authority_id=authority_id, scopes=ALL_SCOPES)
        await registry.token("registrar", CredentialRole.REGISTRAR)
        await registry.token("auditor", CredentialRole.AUDITOR)
        yield registry
