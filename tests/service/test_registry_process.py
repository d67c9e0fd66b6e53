"""The registry as a process of its own, with the login that it has in production, and without its database."""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
from click.testing import CliRunner

from lakthan.store.credentials import CredentialAdmin
from lakthan.store.embedded import EmbeddedPostgres
from lakthan.store.migrate import migrate
from lakthan.store.records import CredentialRole
from lakthan_cli.__main__ import main
from support.database import OpenPool
from support.pki import issue, new_ca
from support.registry import JSONReply, new_client, new_server, pem, running_registry, serial


@asynccontextmanager
async def database(folder: Path) -> AsyncIterator[EmbeddedPostgres]:
    """A server of its own, migrated."""
    server = EmbeddedPostgres(folder / "postgres", durable=False)
    await asyncio.to_thread(server.__enter__)
    try:
        await migrate(server.url())
        await server.ensure_logins({"publisher": ("lakthan_publisher", "lakthan_registrar", "lakthan_auditor")})
        yield server
    finally:
        await asyncio.to_thread(server.__exit__, None, None, None)


async def test_the_rights_of_its_own_login_are_enough(tmp_path: Path) -> None:
    """The service needs no more than its login's three roles, none of which is the operator's."""
    async with (
        database(tmp_path) as server,
        running_registry(server.url(), tmp_path, login_url=server.url("publisher")) as registry,
    ):
        alice = issue("alice", registry.a)
        body = {"changes": [{"change": "issue", "certificate": pem(alice)}]}
        assert (await registry.post("/v1/changes?wait=served", body, key="1")).http_status == 200
        assert (await registry.post("/v1/changes", body, key="1")).http_status == 200
        assert (await registry.post(f"/v1/certificates/{serial(alice)}/revoke", {})).http_status == 200
        assert (await registry.get(f"/v1/certificates/{serial(alice)}/history")).http_status == 200
        assert (await registry.get(f"/v1/certificates/{serial(alice)}", who="b")).http_status == 404
        added = {"name": "ca-c", "certificates": [pem(new_ca("CA C"))]}
        assert (await registry.post("/v1/authorities", added, who="registrar")).http_status == 200
        made = {"name": "x", "role": "auditor"}
        assert (await registry.post("/v1/credentials", made, who="registrar")).http_status == 201
        assert (await registry.get("/v1/audit?authority=ca-a", who="auditor")).http_status == 200
        assert (await registry.post("/v1/authorities", added)).problem == "wrong-role"
        assert len(await registry.refusals(registry.a_id)) == 1


async def test_without_a_database(tmp_path: Path) -> None:
    """While the database is away, every call is told when to come again; when it is back, the same call works."""
    async with database(tmp_path) as server, running_registry(server.url(), tmp_path) as registry:

        async def again() -> JSONReply:
            return await registry.post("/v1/certificates/77/revoke", {}, key="77")

        async def ready() -> int:
            async with registry.session.get(f"{registry.admin_url}/readyz") as reply:
                return reply.status

        assert (await registry.post("/v1/certificates/77/issue", {})).http_status == 200
        await asyncio.to_thread(server.__exit__, None, None, None)
        reply = await again()
        assert (reply.http_status, reply.problem) == (503, "unavailable")
        assert int(reply.headers["Retry-After"]) > 0
        async with asyncio.timeout(60):
            while await ready() == 200:  # noqa: ASYNC110 - as a load balancer does
                await asyncio.sleep(0.05)
        await asyncio.to_thread(server.__enter__)
        async with asyncio.timeout(60):
            while (reply := await again()).http_status == 503:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert reply.http_status == 200
        async with asyncio.timeout(60):
            while await ready() != 200:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.05)


def write_configuration(folder: Path, database_url: str, more: str = "") -> Path:
    """Everything that the process reads."""
    root = new_ca("TLS root")
    root.write(folder, "root")
    new_server(root).write(folder, "server")
    path = folder / "lakthan.toml"
    path.write_text(
        f"""
        [registry]
        port = 0
        admin_port = 0
        certificate = "server.pem"
        key = "server.key"
        database.url = "{database_url}"
        {more}
        """
    )
    return path


async def test_it_starts_and_stops(tmp_path: Path, database_url: str, open_as: OpenPool) -> None:
    """`lakthan serve registry` says where it serves, knows client certificates, and ends with 0 when it is told to."""
    clients = new_ca("Clients")
    path, _ = clients.write(tmp_path, "clients")
    config = write_configuration(tmp_path, database_url, f'clients = "{path.name}"')
    admin = CredentialAdmin(await open_as("lakthan_registry"))
    day = timedelta(days=1)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "lakthan_cli", "serve", "registry", "--config", str(config)),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        async with asyncio.timeout(60):
            while (line := json.loads(await process.stderr.readline()))["event"] != "serving CAs":
                assert line["level"] != "error"
        url = f"https://127.0.0.1:{line['port']}/v1/identity"
        for name, valid, expected in (("good", (-day, day), 200), ("expired", (-2 * day, -day), 403)):
            robot = new_client(clients, name, valid=valid)
            await admin.create(
                name, CredentialRole.AUDITOR, expires_at=datetime.now(UTC) + day, certificate=robot.der, actor="test"
            )
            context = ssl.create_default_context(cafile=str(tmp_path / "root.pem"))
            context.load_cert_chain(*robot.write(tmp_path, name))
            async with aiohttp.ClientSession() as session, session.get(url, ssl=context) as reply:
                assert reply.status == expected
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("", ""),
        ('clients = "missing.pem"', "missing.pem cannot be read"),
        ('spool = "nowhere"', "nowhere is no folder"),
    ],
)
def test_check_config(tmp_path: Path, server_url: str, template_url: str, more: str, says: str) -> None:
    """`lakthan check-config` finds what a start would find."""
    config = write_configuration(tmp_path, template_url, more)
    result = CliRunner().invoke(main, ["check-config", str(config)])
    assert (result.exit_code == 0) == (not says), result.output
    assert says in result.output
    assert result.output.count("registry: database as lakthan_") == 3
