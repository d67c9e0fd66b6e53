"""Planted secrets, looked for in everything that running services and the command say: logs, errors, metrics, answers.

Each secret is a word that stands nowhere else. The services are real processes that use it rightly and are then asked
wrongly; the commands are run on configurations that are right and on ones that are not.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import sys
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import aiohttp
import asyncpg
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.credentials import CredentialAdmin
from lakthan.store.records import CredentialRole
from lakthan_cli.__main__ import main
from support.database import OpenPool
from support.pki import Issued, new_ca, new_responder
from support.registry import new_server
from support.tsa import new_unit

PASSPHRASE = "planted-passphrase-of-a-key"
DATABASE = "planted-password-of-the-database"
CLIENT = "planted-secret-of-a-tsa-client"
VAULT = "planted-token-of-vault"
PIN = "planted-pin-of-a-token"
NONCE = b"planted-nonce-16"
PLANTED = (PASSPHRASE, DATABASE, CLIENT, VAULT, PIN)


@dataclass
class Heard:
    """All that anybody said."""

    text: list[str] = field(default_factory=list)

    def check(self, *more: str) -> None:
        """Nobody said a secret, nor a long enough part of it, nor its base64."""
        said = "\n".join(self.text)
        assert said
        for secret in (*PLANTED, NONCE.decode(), NONCE.hex(), *more):
            for spelling in (secret, base64.b64encode(secret.encode()).decode().rstrip("=")[:-1]):
                assert spelling not in said, f"{secret} in: {said[max(0, said.index(spelling) - 300) :][:600]}"


def key_with_passphrase(issued: Issued, folder: Path, name: str) -> str:
    """Write certificate, encrypted key and pass phrase; gives the key's URI."""
    issued.write(folder, name)
    way = BestAvailableEncryption(PASSPHRASE.encode())
    (folder / f"{name}.key").write_bytes(issued.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, way))
    (folder / f"{name}.phrase").write_text(f"{PASSPHRASE}\n")
    return f"file:{name}.key?pin-source={name}.phrase"


def body_of(key: Path) -> list[str]:
    """The lines of a private key's PEM."""
    return [line for line in key.read_text().splitlines() if "-----" not in line]


@asynccontextmanager
async def process(service: str, config: Path, heard: Heard) -> AsyncIterator[tuple[int, int]]:
    """Run a service as a process; gives its two ports; what it prints is heard."""
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", f"lakthan_{service}", "--config", str(config),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    assert started.stdout is not None
    ports = None
    try:
        while ports is None:
            line = (await asyncio.wait_for(started.stdout.readline(), 60)).decode()
            assert line, heard.text
            heard.text.append(line)
            with suppress(ValueError):
                said = json.loads(line)
                if "admin_port" in said:
                    ports = said["port"], said["admin_port"]
        yield ports
    finally:
        with suppress(ProcessLookupError):
            started.send_signal(signal.SIGTERM)
        heard.text.append((await started.stdout.read()).decode())
        await started.wait()


async def ask(session: aiohttp.ClientSession, heard: Heard, method: str, url: str, **more: object) -> int:
    """Ask, and hear all of the answer."""
    async with session.request(method, url, **more) as reply:  # type: ignore[arg-type]
        heard.text.append(f"{reply.headers}\n{(await reply.read()).decode('latin-1')}")
        return reply.status


async def observe(session: aiohttp.ClientSession, heard: Heard, admin_port: int) -> None:
    """What the admin port says."""
    for path in ("metrics", "readyz", "livez", "nothing"):
        await ask(session, heard, "GET", f"http://127.0.0.1:{admin_port}/{path}")


@pytest.fixture
async def login(database_url: str) -> AsyncIterator[str]:
    """The test's database for a login that has the planted password."""
    name = f"planted_{os.getpid()}"
    parts = urlsplit(database_url)
    query = [(key, value) for key, value in parse_qsl(parts.query) if key != "passfile"]
    owner = await asyncpg.connect(database_url)
    await owner.execute(f"CREATE ROLE {name} LOGIN SUPERUSER PASSWORD '{DATABASE}'")
    yield urlunsplit(parts._replace(netloc=f"{name}@{parts.netloc.rpartition('@')[2]}", query=urlencode(query)))
    await owner.execute(f"DROP ROLE {name}")
    await owner.close()


def command(heard: Heard, *arguments: str) -> int:
    """Run `lakthan`, and hear it."""
    done = CliRunner().invoke(main, arguments)
    heard.text.append(
        done.output + "".join(traceback.format_exception(done.exception)) if done.exception else done.output
    )
    return done.exit_code


@pytest.mark.timeout(110)
async def test_services_at_work_say_no_secret(login: str, open_as: OpenPool, tmp_path: Path) -> None:
    """OCSP responder, TSA and registry, with secrets that open keys, the database and their doors."""
    heard = Heard()
    (tmp_path / "password").write_text(f"{DATABASE}\n")
    database = f'database = {{ url = "{login}", password_file = "password" }}'
    operator = await open_as("lakthan_registry")
    far = datetime.now(UTC) + timedelta(days=1)
    ca, unit = new_ca("CA"), new_unit()
    await AuthorityAdmin(operator).add_authority("ca", [ca.der])
    _, token = await CredentialAdmin(operator).create("auditor", CredentialRole.AUDITOR, actor="test", expires_at=far)
    assert token is not None
    unit.write(tmp_path)
    responder_key = key_with_passphrase(new_responder(ca), tmp_path, "responder")
    server, tls_key = new_server(new_ca("TLS")).write(tmp_path, "registry")
    clients = tmp_path / "clients.toml"
    clients.write_text(
        f'[hospital]\nsecret_sha256 = ["{sha256(CLIENT.encode()).hexdigest()}"]\nprofiles = ["default"]\n'
    )
    config = tmp_path / "lakthan.toml"
    config.write_text(
        f"""
[ocsp]
port = 0
admin_port = 0
{database}
[[ocsp.responders]]
authority = "ca"
certificate = "responder.pem"
key = "{responder_key}"
[tsa]
port = 0
admin_port = 0
{database}
clock.mode = "warn"
credentials = "clients.toml"
[tsa.units.main]
certificate = "tsu.pem"
key = "file:tsu.key"
chain = "chain.pem"
[tsa.profiles.default]
units = ["main"]
authentication = "required"
[registry]
port = 0
admin_port = 0
fetch_crls = false
certificate = "{server.name}"
key = "{tls_key.name}"
{database}
"""
    )
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True, ssl=False)) as session:
        async with process("ocsp", config, heard) as (port, admin):
            for body in (b"\x30\x03\x02\x01" + NONCE, b"\x30\x20" + NONCE * 2, NONCE):
                await ask(session, heard, "POST", f"http://127.0.0.1:{port}/", data=body)
            await observe(session, heard, admin)
        async with process("tsa", config, heard) as (port, admin):
            for secret in (CLIENT, f"{CLIENT}-wrong"):
                for headers in ({"Authorization": f"Bearer {secret}"}, {}):
                    headers["Content-Type"] = "application/timestamp-query"
                    where = f"http://127.0.0.1:{port}/" + ("" if "Authorization" in headers else f"hospital/{secret}")
                    await ask(session, heard, "POST", where, data=NONCE, headers=headers)
            await observe(session, heard, admin)
        async with process("registry", config, heard) as (port, admin):
            for bearer in (token, f"{token}x"):
                headers = {"Authorization": f"Bearer {bearer}"}
                for path in ("v1/audit/head", "v1/identity", "v1/nothing"):
                    await ask(session, heard, "GET", f"https://127.0.0.1:{port}/{path}", headers=headers)
                await ask(session, heard, "POST", f"https://127.0.0.1:{port}/v1/changes", headers=headers, data=b"{")
            await observe(session, heard, admin)
    for arguments in (["check-config", str(config)], ["doctor", "--config", str(config)]):
        await asyncio.to_thread(command, heard, *arguments)
    keys = [line for name in ("responder.key", "tsu.key", "registry.key") for line in body_of(tmp_path / name)]
    heard.check(token, *keys)


@pytest.mark.timeout(110)
def test_wrong_configurations_say_no_secret(tmp_path: Path) -> None:
    """What is refused is named, and the secret in it is not repeated."""
    heard = Heard()
    ca = new_ca("CA")
    uri = key_with_passphrase(new_responder(ca), tmp_path, "responder")
    (tmp_path / "vault-token").write_text(VAULT)
    (tmp_path / "password").write_text(DATABASE)
    away = "postgresql://lakthan@127.0.0.1:1/lakthan"
    cases = {
        "database away": (f'url = "{away}", password_file = "password"', uri),
        "password in the URL": (f'url = "postgresql://lakthan:{DATABASE}@127.0.0.1:1/lakthan"', uri),
        "no URL": (f'url = "{DATABASE}@"', uri),
        "wrong pass phrase": (f'url = "{away}"', "file:responder.key?pin-source=password"),
        "PIN in the URI": (f'url = "{away}"', f"pkcs11:token=a;object=b?module-path=/nowhere.so&pin-value={PIN}"),
        "token in the URI": (f'url = "{away}"', f"vault:transit/keys/a?address=https://127.0.0.1:1&token={VAULT}"),
        "vault away": (f'url = "{away}"', "vault:transit/keys/a?address=https://127.0.0.1:1&token-source=vault-token"),
    }
    for name, (database, key) in cases.items():
        config = tmp_path / f"{name.replace(' ', '-')}.toml"
        config.write_text(
            f'[ocsp]\ndatabase = {{ {database} }}\n[[ocsp.responders]]\nauthority = "ca"\n'
            f'certificate = "responder.pem"\nkey = "{key}"\n'
        )
        before = len(heard.text)
        assert command(heard, "check-config", str(config)) != 0, name
        assert heard.text[before:], name
        command(heard, "doctor", "--config", str(config), "--offline")
    heard.text.append("")
    heard.check(*body_of(tmp_path / "responder.key"))
