"""What a soak runs: every service as an operator starts it, on an embedded PostgreSQL that is durable.

Two authorities: of `live-ca` the answers are signed when they are asked for, of `ahead-ca` the publisher signs them
ahead. Keys are in key lists, so that they come and go. One configuration for all, and one audit file.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg

from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.embedded import EmbeddedPostgres
from lakthan.store.migrate import migrate
from lakthan.store.pool import open_pool
from support.crl import Listed, new_crl
from support.pki import Issued, issue, new_ca, new_responder
from support.registry import new_server
from support.soak_log import Log
from support.tsa import UNIT_EXTENSIONS, Unit, new_unit

LIVE, AHEAD = "live-ca", "ahead-ca"
SERVICES = ("ocsp", "tsa", "registry", "publisher")
SUPERVISED = ("ocsp", "tsa")
WORKERS = 2
_TESTS = Path(__file__).parents[1]
_START_SECONDS = 60.0
_LOGINS = {
    "ocsp": "lakthan_responder",
    "tsa": "lakthan_tsa",
    "registry": ("lakthan_publisher", "lakthan_registrar", "lakthan_auditor"),
    "publisher": "lakthan_presigner",
}
_OLD_TOKENS = 1000
_DAY = timedelta(days=1)


class Service:
    """`lakthan serve NAME`, of the audited services with workers. `module`: instead, what `python -m` runs, without."""

    def __init__(self, name: str, config: Path, module: str = "") -> None:
        self.name = name
        self.supervised = name in SUPERVISED and not module
        command = ["-m", module] if module else ["-m", "lakthan_cli", "serve", name]
        workers = ["--workers", str(WORKERS)] if self.supervised else []
        self._command = [sys.executable, "-P", *command, "--config", str(config), *workers]
        self._process: subprocess.Popen[bytes] | None = None
        self.log = Log(config.with_name(f"{name}.log"))
        self.port = self.admin_port = 0

    def start(self) -> None:
        """Start it; it need not serve yet."""
        # Where this checkout's code is found the service finds it too, and the tests' where a broken one is run.
        paths = [str(_TESTS), *filter(None, [os.environ.get("PYTHONPATH", "")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        with self.log.path.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, env=environment)

    @property
    def started(self) -> bool:
        """Whether `start` was called."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """Of the service, or of its supervisor."""
        assert self._process is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def workers(self) -> dict[str, int]:
        """The process of each worker, by its number, as last started; without workers the service itself."""
        if not self.supervised:
            return {"": self.pid}
        self.log.follow()
        started = [each for each in self.log.events if each.get("event") == "worker started"]
        return {str(each["worker"]): int(each["pid"]) for each in started}

    def stop(self) -> int:
        """SIGTERM; gives the exit code."""
        assert self._process is not None
        self._process.terminate()
        try:
            return self._process.wait(40)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


@dataclass
class Key:
    """A key that may sign: of a responder or a unit. `retired`: from when on it must not."""

    name: str
    issued: Issued
    retired: datetime = field(default=datetime.max.replace(tzinfo=UTC))


@dataclass(frozen=True)
class Spans:
    """How old answers get, and how long they hold."""

    refresh: timedelta
    validity: timedelta


class World:
    """Everything, in `folder`. `leaky`: the responder is `support.soak_leaky`, without workers."""

    def __init__(self, folder: Path, spans: Spans, *, months: int, leaky: bool = False) -> None:
        self.folder = folder
        self.spans = spans
        self.months = months
        self.postgres = EmbeddedPostgres(folder)
        self.cas = {LIVE: new_ca("Live CA ອອກໃບຢັ້ງຢືນ"), AHEAD: new_ca("Ahead CA")}
        self.unit: Unit = new_unit()
        self.tls, self.clients = new_ca("TLS root"), new_ca("Clients CA")
        self.keys: dict[str, list[Key]] = {LIVE: [], AHEAD: [], "unit": []}
        self.authority_ids: dict[str, int] = {}
        self.config = folder / "lakthan.toml"
        self.audit = Log(folder / "audit.log")
        module = {"ocsp": "support.soak_leaky"} if leaky else {}
        self.services = {name: Service(name, self.config, module.get(name, "")) for name in SERVICES}
        self.max_age = 20
        self.secret = secrets.token_urlsafe(32)  # the signers' first one
        self._client_crls = 0

    # ---- made, started, stopped

    async def open(self) -> None:
        """Make and start everything, and wait until all of it is ready."""
        await asyncio.to_thread(self.postgres.start)
        await migrate(self.postgres.url())
        await self.postgres.ensure_logins(_LOGINS)
        await self._fill()
        self._write_files()
        await asyncio.gather(*(self.install(name, self.new_key(name)) for name in self.keys))
        for service in self.services.values():
            service.start()
        await self.until(self._all_serve, "every service has its ports")
        await self.until_ready()

    async def until_ready(self) -> None:
        """Return when every service is, with all its workers."""
        for name, service in self.services.items():
            await self._until_ready(name, service)

    async def _until_ready(self, name: str, service: Service) -> None:
        deadline = time.monotonic() + _START_SECONDS
        async with aiohttp.ClientSession() as session:
            while True:
                async with session.get(f"http://127.0.0.1:{service.admin_port}/readyz") as reply:
                    text = await reply.text()
                    if reply.status == 200 and "starting" not in text and "not running" not in text:
                        return
                assert service.exit_code is None, f"{name} ended at once: {service.log.events[-3:]}"
                assert time.monotonic() < deadline, f"{name} is never ready: {text}"
                await asyncio.sleep(0.1)

    async def until_published(self, answers: int) -> None:
        """Return when the publisher has signed so many."""
        connection = await asyncpg.connect(self.postgres.url())
        try:
            deadline = time.monotonic() + _START_SECONDS
            while await connection.fetchval("SELECT count(*) FROM published_answer") < answers:
                assert time.monotonic() < deadline, "the first answers are never published"
                await asyncio.sleep(0.2)
        finally:
            await connection.close()

    async def close(self) -> dict[str, int]:
        """Stop everything; the exit codes."""
        started = {name: service for name, service in self.services.items() if service.started}
        codes = await asyncio.gather(*(asyncio.to_thread(service.stop) for service in started.values()))
        await asyncio.to_thread(self.postgres.stop)
        return dict(zip(started, codes, strict=True))

    async def _fill(self) -> None:
        pool = await open_pool(
            self.postgres.url(), role="lakthan_registry", min_size=1, max_size=1, application_name="soak"
        )
        try:
            for name, ca in self.cas.items():
                self.authority_ids[name] = await AuthorityAdmin(pool).add_authority(name, [ca.der])
        finally:
            await pool.close()
        connection = await asyncpg.connect(self.postgres.url())
        try:
            await _make_old_months(connection, self.months)
        finally:
            await connection.close()

    def _write_files(self) -> None:
        folder = self.folder
        for name in ("keys", "pki"):
            (folder / name).mkdir()
        for name, ca in self.cas.items():
            ca.write(folder / "pki", name)
        self.unit.intermediate.write(folder, "chain")
        self.tls.write(folder, "tls-root")
        self.clients.write(folder, "clients")
        self.write_client_crl([])
        self.write_tls(new_server(self.tls))
        self.write_tsa_clients([sha256(self.secret.encode()).hexdigest()])
        self.write_configuration()

    def write_configuration(self) -> None:
        """The configuration with the present `max_age`."""
        url = self.postgres.url
        refresh, validity = (f"PT{each.total_seconds():g}S" for each in (self.spans.refresh, self.spans.validity))
        text = f"""[ocsp]
port = 0
admin_port = 0
cached_answers = 500
database.url = "{url("ocsp")}"
[[ocsp.responders]]
authority = "{LIVE}"
keys = "keys/{LIVE}.toml"
refresh = "{refresh}"
validity = "{validity}"
max_age = "PT{self.max_age}S"
[[ocsp.responders]]
authority = "{AHEAD}"
answers = "published"
keys = "keys/{AHEAD}.toml"
refresh = "{refresh}"
validity = "{validity}"
max_age = "PT{self.max_age}S"
[publisher]
admin_port = 0
database.url = "{url("publisher")}"
[[publisher.responders]]
authority = "{AHEAD}"
keys = "keys/{AHEAD}.toml"
refresh = "{refresh}"
validity = "{validity}"
hashes = ["SHA-256"]
[tsa]
port = 0
admin_port = 0
clock.mode = "warn"
credentials = "tsa-clients.toml"
database.url = "{url("tsa")}"
[tsa.units.main]
keys = "keys/unit.toml"
chain = "chain.pem"
[tsa.profiles.default]
units = ["main"]
[tsa.profiles.signers]
units = ["main"]
authentication = "required"
[registry]
port = 0
admin_port = 0
certificate = "registry.pem"
key = "registry.key"
clients = "clients.pem"
client_crls = ["clients.crl"]
fetch_crls = false
database.url = "{url("registry")}"
[log]
audit = "audit.log"
"""
        _replace(self.config, text.encode())

    def _all_serve(self) -> bool:
        self.audit.follow()
        for name, service in self.services.items():
            service.log.follow()
            assert service.exit_code is None, f"{name} ended at once: {service.log.events[-3:]}"
            words = {"publisher": "publishing"}.get(name, "starting workers" if service.supervised else "serving ")
            for event in [*self.audit.events, *service.log.events]:
                if event.get("service") == name and str(event.get("event")).startswith(words):
                    service.port, service.admin_port = event.get("port", 0), event["admin_port"]
        return all(service.admin_port for service in self.services.values())

    async def until(self, true: Callable[[], Any], what: str, seconds: float = _START_SECONDS) -> None:
        """Return when it is so. Raises `TimeoutError` that says what never was."""
        deadline = time.monotonic() + seconds
        while not true():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {seconds:.0f} s: {what}")
            await asyncio.sleep(0.05)

    # ---- what rotates

    def new_key(self, of: str) -> Key:
        """A key and its certificate, in files; nobody knows of it yet."""
        name = f"{of}-{len(self.keys[of]) + 1}"
        made = (
            issue(f"TSU {name}", self.unit.intermediate, extensions=UNIT_EXTENSIONS)
            if of == "unit"
            else new_responder(self.cas[of])
        )
        made.write(self.folder / "keys", name)
        return Key(name, made)

    async def install(self, of: str, key: Key) -> None:
        """`lakthan keys install`."""
        issuer = [] if of == "unit" else ["--ca", self.folder / "pki" / f"{of}.pem"]
        self.keys[of].append(key)
        await self.lakthan(
            *("keys", "install", f"keys/{of}.toml", "--config", self.config.name),
            *("--certificate", f"keys/{key.name}.pem", "--key", f"file:{key.name}.key", *issuer),
        )

    async def lakthan(self, *arguments: object, **environment: str) -> str:
        """Run the command as operators do; gives what it says. Raises `AssertionError` with that when it fails."""
        command = [sys.executable, "-P", "-m", "lakthan_cli", *map(str, arguments)]
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=self.folder,
            env={**os.environ, **environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await process.communicate()
        assert process.returncode == 0, f"lakthan {arguments[0]} {arguments[1]}: {said.decode()[-500:]}"
        return said.decode()

    def write_tls(self, server: Issued) -> None:
        """The registry's certificate and key, renewed in place."""
        for path in server.write(self.folder, "registry.new"):
            path.replace(self.folder / f"registry{path.suffix}")

    def write_client_crl(self, revoked: list[bytes]) -> None:
        """The next CRL of the CA of client certificates."""
        self._client_crls += 1
        now = datetime.now(UTC).replace(microsecond=0)
        listed = Listed(revoked, self._client_crls, this_update=now, next_update=now + _DAY)
        _replace(self.folder / "clients.crl", new_crl(self.clients, listed))

    def write_tsa_clients(self, digests: list[str]) -> None:
        """The secrets with which the signers may stamp."""
        listed = ", ".join(f'"{each}"' for each in digests)
        text = f'[signers]\nsecret_sha256 = [{listed}]\nprofiles = ["signers"]\n'
        _replace(self.folder / "tsa-clients.toml", text.encode())


def _replace(path: Path, octets: bytes) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(octets)
    new.replace(path)


async def _make_old_months(connection: asyncpg.Connection, months: int) -> None:
    """The months before the present one, as years of work would have left them, each with some tokens."""
    definition: str = await connection.fetchval("SELECT pg_get_functiondef('make_token_partition'::regproc)")
    # A service makes months near the present alone; the past is made by the same words without that limit.
    made = definition.replace("make_token_partition", "make_old_month").replace("'40 days'", "'4000 days'")
    assert made.count("'4000 days'") == 2, "make_token_partition is another one now"
    await connection.execute(made)
    for back in range(1, months + 1):
        await connection.execute("SELECT make_old_month(date_trunc('month', now()) - $1 * interval '1 month')", back)
        await connection.execute(
            """
            WITH month AS (SELECT date_trunc('month', now()) - $1 * interval '1 month' AS begin)
            INSERT INTO timestamp_token
            SELECT substring(int4send((16384 + (extract(year FROM begin) - 2000) * 12 + extract(month FROM begin)
                                       - 1)::integer) FROM 3) || int8send(number) || '\\x01'::bytea,
                   begin + number * interval '1 second', '0.4.0.2023.1.1', 'SHA-256', sha256(int8send(number)),
                   'of old', 'in sync', 1000, sha256(int8send(-number))
              FROM month, generate_series(1, $2::bigint) AS number
            """,
            back,
            _OLD_TOKENS,
        )
    await connection.execute("DROP FUNCTION make_old_month(timestamptz)")
