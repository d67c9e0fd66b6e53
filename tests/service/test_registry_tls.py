"""Client certificates at the registry's door: which count, and what the others are told."""

from __future__ import annotations

import asyncio
import ssl
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
import uvloop
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from lakthan.certificates import CertificateView
from lakthan.config import RegistryConfig
from lakthan.errors import ConfigError
from lakthan_registry.problems import Problem
from lakthan_registry.tls import ClientCertificates, HTTPSFront, server_context
from support.pki import Issued, issue, new_ca, new_key
from support.registry import JSONReply, Registry, new_client, new_server, pem, running_registry, serial

DAY = timedelta(days=1)


@pytest.fixture
async def registry(database_url: str, tmp_path: Path) -> AsyncIterator[Registry]:
    """A registry that asks for client certificates."""
    async with running_registry(database_url, tmp_path) as running:
        yield running


def crl_of(issuer: Issued, *revoked: Issued, until: timedelta = DAY) -> bytes:
    """A CRL, PEM."""
    now = datetime.now(UTC).replace(microsecond=0)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(now - 2 * DAY)
        .next_update(now + until)
    )
    for each in revoked:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder()
            .serial_number(each.certificate.serial_number)
            .revocation_date(now - DAY)
            .build()
        )
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(Encoding.PEM)


async def who_am_i(registry: Registry, certificate: Issued, *, who: str | None = None) -> JSONReply:
    """Ask with a client certificate."""
    return await registry.ask("GET", "/v1/identity", who=who, certificate=certificate)


async def refused(registry: Registry, reply: JSONReply, status: int, problem: str) -> None:
    """The answer is this refusal, and it is the one on record for CA A."""
    assert (reply.http_status, reply.problem) == (status, problem)
    assert [each["problem"] for each in await registry.refusals(registry.a_id)] == [problem]


async def test_a_bound_certificate_acts_for_its_authority(registry: Registry) -> None:
    """A CA that connects with its certificate needs no token, and the record says that it came so."""
    robot, alice = new_client(registry.clients), issue("alice", registry.a)
    await registry.bind("robot", robot)
    assert (await who_am_i(registry, robot)).json["name"] == "robot"
    body = {"changes": [{"change": "issue", "certificate": pem(alice)}]}
    assert (await registry.ask("POST", "/v1/changes", who=None, certificate=robot, body=body)).http_status == 200
    history = (await registry.get(f"/v1/certificates/{serial(alice)}/history")).json["events"]
    assert [(each["actor"], each["through"]) for each in history] == [("robot", "api certificate")]


@pytest.mark.parametrize(
    ("valid", "says"),
    [((-2 * DAY, -DAY), "is valid from"), ((DAY, 2 * DAY), "is valid from")],
    ids=["expired", "not yet"],
)
async def test_out_of_its_time(registry: Registry, valid: tuple[timedelta, timedelta], says: str) -> None:
    """An expired certificate, or one from tomorrow, gets a readable refusal that is on record, and changes nothing."""
    robot = new_client(registry.clients, valid=valid)
    await registry.bind("robot", robot)
    before = await registry.state()
    body = {"changes": [{"change": "revoke", "serial_number": "77"}]}
    reply = await registry.ask("POST", "/v1/changes", who=None, certificate=robot, body=body)
    await refused(registry, reply, 403, "certificate-not-in-force")
    assert says in reply.json["detail"]
    assert await registry.state() == before


@asynccontextmanager
async def with_crl(
    database_url: str, folder: Path, clients: Issued, crl: bytes
) -> AsyncIterator[tuple[Registry, Path]]:
    """A registry whose clients' CA has this CRL, and where the CRL is."""
    path, _ = clients.write(folder, "robots")
    file = folder / "robots.crl"
    file.write_bytes(crl)
    async with running_registry(database_url, folder, clients=path, client_crls=(file,)) as running:
        yield running, file


async def test_revoked_by_its_own_ca(database_url: str, tmp_path: Path) -> None:
    """A client certificate in its CA's CRL is refused, on record, and nothing changes; another one counts."""
    clients = new_ca("Robots CA")
    bad, good = new_client(clients, "bad"), new_client(clients, "good")
    async with with_crl(database_url, tmp_path, clients, crl_of(clients, bad)) as (registry, _):
        await registry.bind("bad", bad)
        await registry.bind("good", good)
        before = await registry.state()
        body = {"changes": [{"change": "revoke", "serial_number": "77"}]}
        reply = await registry.ask("POST", "/v1/changes", who=None, certificate=bad, body=body)
        await refused(registry, reply, 403, "certificate-revoked")
        assert await registry.state() == before
        assert (await who_am_i(registry, good)).http_status == 200


async def test_a_crl_that_ran_out(database_url: str, tmp_path: Path) -> None:
    """When nobody can tell whether a certificate was revoked it does not count; a new CRL is seen without a restart."""
    clients = new_ca("Robots CA")
    robot = new_client(clients)
    async with with_crl(database_url, tmp_path, clients, crl_of(clients, until=-DAY)) as (registry, file):
        await registry.bind("robot", robot)
        await refused(registry, await who_am_i(registry, robot), 403, "certificate-status-unknown")
        series = 'lakthan_registry_client_crl_next_update_timestamp_seconds{issuer="CN=Robots CA,C=LA"}'
        assert (await registry.metrics())[series] < datetime.now(UTC).timestamp()
        file.write_bytes(crl_of(clients))
        async with asyncio.timeout(20):
            while (await who_am_i(registry, robot)).http_status != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


def test_a_ca_with_a_new_key(tmp_path: Path) -> None:
    """A clients' CA that got a new key signs its CRLs with that: they hold for the certificates of its old key too."""
    old, new = new_ca("Clients of CAs"), new_ca("Clients of CAs")
    lost, kept = new_client(old), new_client(old)
    files = tmp_path / "clients.pem", tmp_path / "clients.crl"
    files[0].write_text(pem(old) + pem(new))
    files[1].write_bytes(crl_of(new, lost))
    now = datetime.now(UTC)
    certificates = ClientCertificates(RegistryConfig(Path(), Path(), clients=files[0], client_crls=(files[1],)))
    certificates.check(CertificateView.of(kept.certificate), now)
    with pytest.raises(Problem, match="was revoked by its CA"):
        certificates.check(CertificateView.of(lost.certificate), now)


def test_a_ca_whose_certificate_was_renewed(tmp_path: Path) -> None:
    """The ended certificate of a clients' CA may stay in the file beside its new one, for the same key."""
    key = new_key("P-256")
    ended = issue("Clients of CAs", ca=True, key=key, valid=(-2 * DAY, -DAY))
    renewed = issue("Clients of CAs", ca=True, key=key)
    client = new_client(renewed)
    clients = tmp_path / "clients.pem"
    clients.write_text(pem(ended) + pem(renewed))
    certificates = ClientCertificates(RegistryConfig(Path(), Path(), clients=clients))
    certificates.check(CertificateView.of(client.certificate), datetime.now(UTC))
    clients.write_text(pem(ended))
    certificates = ClientCertificates(RegistryConfig(Path(), Path(), clients=clients))
    with pytest.raises(Problem, match="was not issued by a CA of the registry's clients that is in force"):
        certificates.check(CertificateView.of(client.certificate), datetime.now(UTC))


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: lo"], ids=["nothing", "half a head"])
def test_who_says_nothing_is_let_go(tmp_path: Path, run: Callable[..., None], sent: bytes) -> None:
    """A connection whose first head does not come is ended, and keeps no place; one that comes in pieces is served, and
    so is what follows on it.
    """
    context = server_context(RegistryConfig(*new_server(new_ca("TLS root")).write(tmp_path, "registry")))
    client = ssl.create_default_context()
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE

    async def count(http_request: web.Request) -> web.Response:
        return web.Response(text=f"{len(await http_request.read())} octets\n")

    async def knock() -> None:
        application = web.Application()
        application.router.add_post("/", count)
        front = await HTTPSFront.open(application, "127.0.0.1", 0, context, patience=timedelta(seconds=2))
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port, ssl=client)
        writer.write(sent)
        with suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        await front.close()
        front = await HTTPSFront.open(application, "127.0.0.1", 0, context)
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port, ssl=client)
        for octet in b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 300000\r\n\r\n":
            writer.write(bytes((octet,)))
            await writer.drain()
        writer.write(bytes(300_000))
        await reader.readuntil(b"300000 octets\n")
        writer.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc")
        await reader.readuntil(b"3 octets\n")
        writer.close()
        await front.close()

    run(knock())


async def test_the_front_closes_on_whoever_says_nothing(tmp_path: Path) -> None:
    """A stop waits for requests that are worked on, not for connections that never asked anything."""
    context = server_context(RegistryConfig(*new_server(new_ca("TLS root")).write(tmp_path, "registry")))
    front = await HTTPSFront.open(web.Application(), "127.0.0.1", 0, context)
    client = ssl.create_default_context()
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port, ssl=client)
    await front.close()
    with suppress(ConnectionError):
        assert await reader.read() == b""
    writer.close()


async def test_revoked_on_record_here(database_url: str, tmp_path: Path) -> None:
    """A client certificate of a CA that is on record here is held against its status here."""
    clients = new_ca("Robots CA")
    path, _ = clients.write(tmp_path, "robots")
    async with running_registry(database_url, tmp_path, clients=path) as registry:
        added = {"name": "robots", "certificates": [pem(clients)]}
        assert (await registry.post("/v1/authorities", added, who="registrar")).http_status == 200
        robot, other = new_client(clients), new_client(clients, "other")
        await registry.bind("robot", robot)
        await registry.bind("other", other)
        assert (await who_am_i(registry, robot)).http_status == 200
        made = {"name": "robots-ca", "role": "publisher", "authority": "robots", "scopes": ["revoke"]}
        token = (await registry.post("/v1/credentials", made, who="registrar")).json["token"]
        gone = {"changes": [{"change": "revoke", "certificate": pem(robot)}]}
        assert (await registry.post("/v1/changes", gone, who=token)).http_status == 200
        await refused(registry, await who_am_i(registry, robot), 403, "certificate-revoked")
        assert (await who_am_i(registry, other)).http_status == 200


async def test_a_revoked_credential(registry: Registry) -> None:
    """A certificate whose credential was revoked is good for nothing, though its CA still stands by it."""
    robot = new_client(registry.clients)
    await registry.bind("robot", robot)
    assert (await registry.ask("DELETE", "/v1/credentials/robot", who="registrar")).http_status == 204
    await refused(registry, await who_am_i(registry, robot), 403, "credential-revoked")


async def test_an_unbound_certificate_is_nobody(registry: Registry) -> None:
    """To come from the right CA is not enough: a certificate is bound to a credential, or nobody is there."""
    reply = await who_am_i(registry, new_client(registry.clients))
    assert (reply.http_status, reply.problem) == (401, "unauthenticated")


async def test_two_identities(registry: Registry) -> None:
    """A token and a certificate together are refused, whoever they are: nobody could say later who it was."""
    robot = new_client(registry.clients)
    unbound = new_client(registry.clients, "unbound")
    await registry.bind("robot", robot)
    for certificate, who in ((robot, "a"), (unbound, "a"), (robot, "lak_" + "A" * 43)):
        reply = await who_am_i(registry, certificate, who=who)
        assert (reply.http_status, reply.problem) == (403, "two-identities")
    assert [each["credential"] for each in await registry.refusals(registry.a_id)] == ["a", "a", "robot"]
    reply = await who_am_i(registry, unbound, who="lak_" + "A" * 43)
    assert (reply.http_status, reply.problem) == (401, "unauthenticated")


async def test_a_ca_below_those_of_the_file(registry: Registry) -> None:
    """A CA between the client and the file is nobody whose CRL we have, so its certificates do not count."""
    between = new_ca("Between", registry.clients)
    robot = new_client(between)
    await registry.bind("robot", robot)
    certificate, key = robot.write(registry.folder, "chain")
    certificate.write_text(pem(robot) + pem(between))
    context = registry.context()
    context.load_cert_chain(certificate, key)
    async with registry.session.get(f"{registry.url}/v1/identity", ssl=context) as reply:
        assert reply.status == 403
        assert (await reply.json(content_type=None))["type"].endswith("certificate-status-unknown")


async def test_a_foreign_ca_is_turned_away_by_tls(registry: Registry) -> None:
    """A certificate of a CA that is not in the file ends the connection."""
    with pytest.raises((aiohttp.ClientError, OSError)):
        await who_am_i(registry, new_client(new_ca("Foreign")))
    assert (await registry.get("/v1/identity")).http_status == 200


async def test_old_tls_is_turned_away(registry: Registry) -> None:
    """TLS 1.2 is the oldest that is spoken."""
    context = registry.context()
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(aiohttp.ClientError, match=r"(?i)ssl|protocol"):
        await registry.session.get(f"{registry.url}/openapi.json", ssl=context)


async def test_a_renewed_server_certificate(registry: Registry) -> None:
    """A new certificate of the server is served to new connections without a restart."""
    root = new_ca("TLS root, the next")
    before = (registry.folder / "registry.pem").read_bytes()
    new_server(root).write(registry.folder, "registry")
    assert (registry.folder / "registry.pem").read_bytes() != before
    context = ssl.create_default_context(cafile=str(root.write(registry.folder, "next-root")[0]))
    async with asyncio.timeout(20):
        while True:
            try:
                async with registry.session.get(f"{registry.url}/openapi.json", ssl=context) as reply:
                    assert reply.status == 200
                break
            except aiohttp.ClientConnectorCertificateError:
                await asyncio.sleep(0.05)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    """At the start, every wrong file is refused with its name and with what to do."""
    tls = new_ca("TLS root")
    certificate, key = new_server(tls).write(tmp_path, "server")
    clients, other_key = new_ca("Clients").write(tmp_path, "clients")
    stranger = tmp_path / "stranger.crl"
    stranger.write_bytes(crl_of(tls))
    noise = tmp_path / "noise"
    noise.write_text("noise")
    with pytest.raises(ConfigError, match="belong to the first certificate"):
        server_context(RegistryConfig(certificate, other_key))
    with pytest.raises(ConfigError, match="noise is not a PEM file"):
        server_context(RegistryConfig(certificate, key, clients=noise))
    with pytest.raises(ConfigError, match=r"stranger\.crl was not signed by any CA"):
        ClientCertificates(RegistryConfig(certificate, key, clients=clients, client_crls=(stranger,)))
    with pytest.raises(ConfigError, match="noise is not a CRL"):
        ClientCertificates(RegistryConfig(certificate, key, clients=clients, client_crls=(noise,)))
    with pytest.raises(ConfigError, match="client_crls without clients"):
        ClientCertificates(RegistryConfig(certificate, key, client_crls=(stranger,)))
