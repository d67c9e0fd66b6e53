"""The installation that is broken: two PostgreSQL servers with a line between them, OCSP and TSA workers, keys.

The capital's server has a network namespace of its own; the services, their clients, the registrar's desk and the
standby are at the other end of the line. The registrar reaches the database by its UNIX socket, as somebody in the
capital would, so that it goes on revoking while the services are cut off. PostgreSQL is durable (fsync), services are
started as an operator starts them, keys are in files or in a PKCS#11 token (SoftHSM behind a library that can be told
to misbehave).

What each fault needs of it is a `Setting`.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import asyncpg

from faults.clients import Judges
from faults.relay import Relay, relaying
from faults.service import (
    OCSP_ADMIN,
    OCSP_PORT,
    THIS,
    TSA_ADMIN,
    TSA_PORT,
    Service,
    previous,
)
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.changes import ChangeWriter
from lakthan.store.migrate import migrate
from lakthan.store.pool import open_pool
from lakthan.store.records import Change, ChangeRequest
from support import tsa
from support.ntp import NTPServer, ntp_servers
from support.pki import Issued, issue, new_ca, new_responder
from support.replication import Server, Servers, make_database
from support.slow_hsm import SlowHSM
from support.softhsm import new_token, tokens_folder
from support.wall_clock import WallClock

AUTHORITY = "public-ca"
ACTOR = "registrar"
LOGIN = "services"
_PORT = 5432
# From so long ago that a clock which is an hour behind finds them in force.
_VALID = (timedelta(days=-1), timedelta(days=30))
_CLOCK = """clock.sources = ["ntp"]
clock.ntp_servers = {servers}
clock.ntp_poll = "PT0.2S"
clock.holdover = "PT2S"
clock.recovery = "PT1S"
"""
# In earnest: what is committed is on disk.
DURABLE = {"fsync": "on", "full_page_writes": "on", "log_min_messages": "warning"}


@dataclass(frozen=True)
class Setting:
    """What a fault needs. `through`: a port on this side by which the services reach the database, instead of the line
    itself; `own_clock`: the service that has a wall clock of its own; `ntp`: three servers vouch for the authority's;
    `previous`: the release before this one, on its schema; `broken`: a variant of `support.fault_broken` instead of
    the sound services.
    """

    standby: bool = False
    hsm: bool = False
    through: int | None = None
    own_clock: str = ""
    ntp: bool = False
    previous: bool = False
    broken: str = ""


@dataclass
class World:
    """Everything, running."""

    folder: Path
    setting: Setting
    servers: Servers
    ca: Issued
    responder: Issued
    unit: tsa.Unit
    certificates: list[Issued]
    answering: Service = field(init=False)
    stamping: Service = field(init=False)
    hsm: SlowHSM | None = None
    relay: Relay | None = None
    wall_clock: WallClock | None = None
    time_servers: list[NTPServer] = field(default_factory=list)
    authority_id: int = 0
    # Whose database the registrar works with: the capital's, and after a failover the standby.
    primary: Server = field(init=False)
    mended_at: float = 0.0
    left_behind: list[asyncpg.Connection] = field(default_factory=list)
    # What takes over where certificates run out.
    next_responder: Issued = field(init=False)
    next_unit: tsa.Unit = field(init=False)

    def __post_init__(self) -> None:
        self.primary = self.servers.capital
        self.next_responder = new_responder(self.ca)
        leaf = issue("TSU ໃໝ່", self.unit.intermediate, extensions=tsa.UNIT_EXTENSIONS)
        self.next_unit = replace(self.unit, leaf=leaf)

    @property
    def database_url(self) -> str:
        """As the services have it."""
        if self.setting.through is not None:
            return f"postgresql://{LOGIN}@127.0.0.1:{self.setting.through}/lakthan?sslmode=disable"
        hosts = f"{self.servers.line.addresses[0]}:{_PORT}"
        if not self.setting.standby:
            return f"postgresql://{LOGIN}@{hosts}/lakthan?sslmode=disable"
        both = f"{hosts},{self.servers.line.addresses[1]}:{_PORT}"
        return f"postgresql://{LOGIN}@{both}/lakthan?sslmode=disable&target_session_attrs=read-write"

    def judges(self) -> Judges:
        """Whom the clients trust."""
        return Judges(
            self.ca,
            [self.responder.certificate, self.next_responder.certificate],
            self.unit.root.certificate,
            [self.unit.intermediate.certificate],
            [self.unit.leaf.certificate, self.next_unit.leaf.certificate],
        )

    async def change(self, serial_number: bytes, what: str) -> None:
        """As the registrar: over a connection of its own, which is not kept."""
        pool = await open_pool(
            self.primary.url(), role="lakthan_registry", min_size=1, max_size=1, application_name="registrar"
        )
        try:
            request = ChangeRequest(self.authority_id, serial_number, Change(what))
            await ChangeWriter(pool).record([request], ACTOR)
        finally:
            await pool.close()

    def services(self) -> tuple[Service, Service]:
        """Both."""
        return self.answering, self.stamping

    async def tokens(self) -> dict[bytes, bytes]:
        """The record: SHA-256 of every token by its serial number."""
        connection = await asyncpg.connect(self.primary.url())
        try:
            rows = await connection.fetch("SELECT serial_number, token_sha256 FROM timestamp_token")
        finally:
            await connection.close()
        return {row["serial_number"]: row["token_sha256"] for row in rows}

    async def statuses(self) -> dict[bytes, str]:
        """What the store says of each certificate."""
        connection = await asyncpg.connect(self.primary.url())
        try:
            rows = await connection.fetch("SELECT serial_number, cert_status::text FROM certificate_status")
        finally:
            await connection.close()
        return {row["serial_number"]: row["cert_status"] for row in rows}


@asynccontextmanager
async def world(servers: Servers, folder: Path, setting: Setting, *, certificates: int = 400) -> AsyncIterator[World]:
    """Make it, and start everything. The caller is inside the namespace of the line's second end."""
    ca = new_ca("Public CA ອອກໃບຢັ້ງຢືນ")
    holder = issue("holder", ca)
    made = World(
        folder,
        setting,
        servers,
        ca,
        new_responder(ca, valid=_VALID),
        tsa.new_unit(valid=_VALID),
        [issue(f"holder {number}", ca, key=holder.key) for number in range(certificates)],
    )
    async with AsyncExitStack() as stack:
        if setting.through is not None:
            address = servers.line.addresses[0]
            made.relay = await stack.enter_async_context(relaying(setting.through, address, _PORT))
        if setting.own_clock:
            made.wall_clock = WallClock(folder)
        if setting.ntp:
            made.time_servers = await stack.enter_async_context(ntp_servers(3))
        await _fill(made)
        if setting.hsm:
            stack.enter_context(patch.dict(os.environ))  # where tokens are is said there
            os.environ.pop("SOFTHSM2_CONF", None)
        for part in _configure(made):
            stack.callback(part.stop)
            part.start()
        for part in made.services():
            await part.until_ready()
        yield made
        for connection in made.left_behind:
            with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await connection.close(timeout=1)


async def _fill(made: World) -> None:
    capital = made.servers.capital
    await make_database(capital)
    if made.setting.previous:
        await asyncio.to_thread(_migrate_as_before, capital.url())
    else:
        await migrate(capital.url())
    await capital.execute(
        f"CREATE ROLE {LOGIN} LOGIN", f"GRANT lakthan_responder, lakthan_tsa TO {LOGIN}", "CREATE ROLE replication"
    )
    if made.setting.standby:
        await made.servers.follow_physically()
        # From now on nothing is confirmed that is not on both.
        await capital.execute("ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
    pool = await open_pool(capital.url(), role="lakthan_registry", min_size=1, max_size=1, application_name="test")
    try:
        made.authority_id = await AuthorityAdmin(pool).add_authority(AUTHORITY, [made.ca.der])
        await ChangeWriter(pool).record(
            [ChangeRequest(made.authority_id, each.serial_number, Change.ISSUE) for each in made.certificates], ACTOR
        )
    finally:
        await pool.close()


def _migrate_as_before(url: str) -> None:
    """By the release before this one."""
    code = previous()
    command = [str(code.python), "-P", "-m", "lakthan_cli", "db", "migrate", "--database", url]
    subprocess.run(command, check=True, capture_output=True, env=code.environment(os.environ))


def _configure(made: World) -> Sequence[Service]:
    folder, url = made.folder, made.database_url
    made.responder.write(folder, "responder")
    key = "file:responder.key"
    clock = 'clock.mode = "warn"'
    if made.setting.ntp:
        clock = _CLOCK.format(servers=[each.address for each in made.time_servers])
    tsa_config = tsa.write_configuration(folder, url, unit=made.unit, settings=clock)
    text = tsa_config.read_text().replace("port = 0", f"port = {TSA_PORT}", 1)
    text = text.replace("admin_port = 0", f"admin_port = {TSA_ADMIN}", 1)
    if made.setting.hsm:
        tokens_folder(folder)
        token = new_token(folder / "tokens", folder)
        token.put("responder", made.responder.key)
        token.put("unit", made.unit.leaf.key)
        made.hsm = SlowHSM.build(folder)
        key = made.hsm.uri(token, "responder").uri
        text = text.replace("file:tsu.key", made.hsm.uri(token, "unit").uri)
    tsa_config = folder / "tsa.toml"
    tsa_config.write_text(text)
    ocsp_config = folder / "ocsp.toml"
    ocsp_config.write_text(
        f'[ocsp]\nport = {OCSP_PORT}\nadmin_port = {OCSP_ADMIN}\n[ocsp.database]\nurl = "{url}"\n'
        f'[[ocsp.responders]]\nauthority = "{AUTHORITY}"\ncertificate = "responder.pem"\nkey = "{key}"\n'
    )
    setting, code = made.setting, previous() if made.setting.previous else THIS

    def service(name: str, config: Path) -> Service:
        own = made.wall_clock is not None and setting.own_clock == name
        environment = made.wall_clock.environment() if made.wall_clock is not None and own else os.environ
        return Service(name, config, environment, code=code, broken=setting.broken)

    made.answering, made.stamping = service("ocsp", ocsp_config), service("tsa", tsa_config)
    return made.services()
