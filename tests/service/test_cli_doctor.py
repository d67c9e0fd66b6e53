"""`lakthan doctor` on a machine where all is well, and on machines that are broken on purpose: every finding is seen to
fire, and not to fire where nothing is wrong.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID

from lakthan.certificates import read_certificates
from lakthan.config import load
from lakthan.keys import key_list
from lakthan.keys.key_list import ListedKey
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.diagnosis import look_as
from lakthan.store.embedded import EmbeddedPostgres
from lakthan.store.migrate import migrate
from lakthan.store.pool import open_pool
from lakthan.store.rights import RIGHTS
from lakthan_cli.__main__ import main
from lakthan_cli.doctor.examine import examine
from lakthan_cli.doctor.notes import Patient
from lakthan_cli.findings import Finding, Grade
from support.ntp import ntp_servers
from support.pki import Issued, issue, new_ca, new_responder
from support.responder import running_responder_of
from support.tsa import UNIT_EXTENSIONS, key_usage, new_unit

_LOGINS = {"ocsp": "lakthan_responder", "tsa": "lakthan_tsa"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL as it should be: durable, with a login for each service, and a schema to copy for each test."""
    with EmbeddedPostgres(tmp_path_factory.mktemp("own")) as running:
        asyncio.run(migrate(running.url(database="postgres")))
        asyncio.run(running.ensure_logins(_LOGINS))
        yield running


@dataclass
class Machine:
    """What the doctor is given. `ocsp`, `tsa`: further lines of these tables; `head`: before them."""

    folder: Path
    server: EmbeddedPostgres
    ca: Issued
    ocsp_url: str
    tsa_url: str
    clock: str = 'clock.mode = "warn"'
    ocsp: str = "port = 0\nadmin_port = 0"
    responder: str = 'certificate = "responder.pem"\nkey = "file:responder.key"'
    workers: int = 1
    offline: bool = True
    found: list[Finding] = field(default_factory=list)

    def configuration(self) -> Path:
        """The file."""
        path = self.folder / "lakthan.toml"
        path.write_text(
            f"""[ocsp]
{self.ocsp}
database.url = "{self.ocsp_url}"
[[ocsp.responders]]
authority = "ca"
{self.responder}
[tsa]
port = 0
admin_port = 0
{self.clock}
database.url = "{self.tsa_url}"
[tsa.units.main]
certificate = "tsu.pem"
key = "file:tsu.key"
chain = "chain.pem"
[tsa.profiles.default]
units = ["main"]
"""
        )
        return path

    async def wrong(self) -> dict[str, str]:
        """`area check` → grade, of what is not in order (of files and URLs: which one); the clock of the machine that
        tests run on is left out.
        """
        path = self.configuration()
        patient = Patient(path, load(path, {}), self.workers, self.offline, timedelta(seconds=2), datetime.now(UTC))
        self.found = await examine(patient)
        assert all(bool(each.todo) is (each.grade is not Grade.OK) for each in self.found)
        return {
            f"{each.area} {each.subject if each.area in ('files', 'network') else each.check}": each.grade.label
            for each in self.found
            if each.grade is not Grade.OK and each.area != "clock"
        }

    def said(self) -> str:
        """Everything that was found, in one text."""
        return "\n".join(f"{each.said} {' '.join(each.details)} {each.todo}" for each in self.found)


def put(folder: Path, name: str, issued: Issued) -> None:
    """Write a certificate, and its key as a key should be."""
    _, key = issued.write(folder, name)
    key.chmod(0o600)


def good_responder(ca: Issued, since: timedelta = timedelta(hours=-1), until: timedelta = timedelta(days=29)) -> Issued:
    """A responder's certificate that nothing can be said against."""
    purpose = (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING]), False)
    usage = (key_usage(digital_signature=True), True)
    nocheck = (x509.OCSPNoCheck(), False)
    return issue("OCSP ຜູ້ຕອບ", ca, valid=(since, until), extensions=(purpose, usage, nocheck))


@pytest.fixture
async def machine(server: EmbeddedPostgres, tmp_path: Path) -> AsyncIterator[Machine]:
    """A responder and a time-stamping unit, configured on a database of their own that knows their authority."""
    ca = new_ca("CA ອົງການ")
    name = f"m{abs(hash(tmp_path.name)) % 10**12}"
    owner = await asyncpg.connect(server.url())
    await owner.execute(f"CREATE DATABASE {name} TEMPLATE postgres")
    url = server.url(database=name)
    pool = await open_pool(url, role="lakthan_registry", min_size=1, max_size=1, application_name="test")
    await AuthorityAdmin(pool).add_authority("ca", [ca.der])
    await pool.close()
    put(tmp_path, "responder", good_responder(ca))
    new_unit().write(tmp_path)
    (tmp_path / "tsu.key").chmod(0o600)
    yield Machine(tmp_path, server, ca, server.url("ocsp", database=name), server.url("tsa", database=name))
    await owner.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await owner.close()


async def execute(machine: Machine, *statements: str) -> None:
    """Run statements as the owner of the machine's database."""
    name = machine.ocsp_url.partition("?")[0].rpartition("/")[2]
    connection = await asyncpg.connect(machine.server.url(database=name))
    for statement in statements:
        await connection.execute(statement)
    await connection.close()


async def test_all_is_well(machine: Machine) -> None:
    """Nothing is found wrong where nothing is; every area was looked at."""
    assert await machine.wrong() == {}, machine.said()
    areas = {each.area for each in machine.found}
    assert areas == {"clock", "database", "keys", "ports", "files", "machine"}
    assert {each.subject for each in machine.found if each.check == "login"} == {"ocsp", "tsa"}


async def test_the_list_of_rights_is_that_of_the_schema(machine: Machine) -> None:
    """What the doctor compares with is what the revisions give, for every role."""
    url = machine.server.url(database=machine.ocsp_url.partition("?")[0].rpartition("/")[2])
    for role in RIGHTS:
        acting = await look_as(url, role)
        assert (acting.missing, acting.extra, acting.user) == (frozenset(), frozenset(), role)


async def test_a_server_that_forgets(machine: Machine, database_url: str) -> None:
    """A server without fsync loses tokens: a failure. A login that may do everything is a warning."""
    machine.ocsp_url = machine.tsa_url = database_url
    wrong = await machine.wrong()
    assert wrong["database durability"] in ("failure", "warning")
    assert any("fsync is off" in each.said and each.grade is Grade.FAILURE for each in machine.found)
    assert wrong["database login"] == "warning"


async def test_rights_that_changed(machine: Machine) -> None:
    """A right that was taken away, and one that was added, are both failures and named."""
    await execute(
        machine,
        "REVOKE SELECT ON certificate_status FROM lakthan_responder",
        "GRANT DELETE ON timestamp_token TO lakthan_tsa",
    )
    wrong = await machine.wrong()
    assert wrong["database lakthan_responder"] == wrong["database lakthan_tsa"] == "failure"
    assert "SELECT on certificate_status" in machine.said()
    assert "DELETE on timestamp_token" in machine.said()


async def test_a_login_with_a_role_too_many_or_too_few(machine: Machine) -> None:
    """A login that may also act as another service is a warning; one that may not act as its own is a failure."""
    try:
        await execute(machine, "GRANT lakthan_registry TO ocsp", "REVOKE lakthan_tsa FROM tsa")
        wrong = await machine.wrong()
        assert wrong["database login"] == "warning"
        assert wrong["database lakthan_tsa"] == "failure"
        assert "REVOKE lakthan_registry FROM ocsp" in machine.said()
        assert "GRANT lakthan_tsa TO" in machine.said()
    finally:
        await execute(machine, "REVOKE lakthan_registry FROM ocsp", "GRANT lakthan_tsa TO tsa")


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE alembic_version SET version_num = '0007'", "is at revision 0007"),
        ("REVOKE SELECT ON alembic_version FROM lakthan_responder, lakthan_tsa", "that of an older release"),
    ],
)
async def test_an_old_schema(machine: Machine, statement: str, words: str) -> None:
    """A schema that is older than this release is a failure that says what to run."""
    await execute(machine, statement)
    assert (await machine.wrong())["database schema"] == "failure"
    assert words in machine.said()
    assert "lakthan db migrate" in machine.said()


async def test_no_database(machine: Machine) -> None:
    """A database that is away is said once for each service, and everything else is looked at all the same."""
    machine.ocsp_url = machine.tsa_url = "postgresql://ocsp@127.0.0.1:1/lakthan"
    assert await machine.wrong() == {"database reached": "failure"}
    assert {"keys", "files", "ports", "machine"} <= {each.area for each in machine.found}


async def test_settings_of_the_database(machine: Machine) -> None:
    """A time zone that misleads, no synchronous commits for others, and a login with too few connections."""
    try:
        name = machine.ocsp_url.partition("?")[0].rpartition("/")[2]
        await execute(
            machine,
            f"ALTER DATABASE {name} SET timezone = 'Asia/Vientiane'",
            f"ALTER DATABASE {name} SET synchronous_commit = off",
            "ALTER ROLE tsa CONNECTION LIMIT 2",
        )
        assert await machine.wrong() == {
            "database timezone": "warning",
            "database durability": "warning",
            "database connections": "failure",
        }
        assert "tsa is allowed 2" in machine.said()
    finally:
        await execute(machine, "ALTER ROLE tsa CONNECTION LIMIT -1")


async def test_more_workers_than_the_machine_and_the_database_have_room_for(machine: Machine) -> None:
    """Workers × connections is held against max_connections, and workers against cores."""
    machine.workers = 500
    assert await machine.wrong() == {"database connections": "failure", "machine workers": "warning"}


async def test_a_key_that_everybody_can_read(machine: Machine) -> None:
    """A key is its owner's alone: readable by all, or writable by a group, is a failure."""
    (machine.folder / "tsu.key").chmod(0o644)
    (machine.folder / "responder.key").chmod(0o660)
    assert await machine.wrong() == {
        f"files {machine.folder / 'tsu.key'}": "failure",
        f"files {machine.folder / 'responder.key'}": "failure",
    }


async def test_the_keys_of_a_list(machine: Machine) -> None:
    """A key list is looked at as a certificate with its key is: it opens, and its keys are nobody else's."""
    certificate = machine.folder / "responder.pem"
    digest = key_list.digest_of(read_certificates(certificate)[0])
    entry = ListedKey("responder.pem", digest, "file:responder.key", datetime.now(UTC) - timedelta(hours=1))
    key_list.write(machine.folder / "keys.toml", [entry])
    machine.responder = 'keys = "keys.toml"'
    assert await machine.wrong() == {}, machine.said()
    (machine.folder / "responder.key").chmod(0o604)
    assert await machine.wrong() == {f"files {machine.folder / 'responder.key'}": "failure"}


async def test_a_key_that_is_not_the_certificates(machine: Machine) -> None:
    """The key of another certificate signs nothing that anybody could verify."""
    shutil.copy(machine.folder / "tsu.key", machine.folder / "responder.key")
    assert await machine.wrong() == {"keys opens": "failure"}
    assert "responder.pem" in machine.said()


@pytest.mark.parametrize(
    ("days", "grade", "words"),
    [
        ((-30, -1), "failure", "it ended at"),
        ((-30, 5), "warning", "less than a third is left"),
        ((1, 29), "failure", "it begins at"),
        ((-1, 29), None, ""),
    ],
)
async def test_a_certificate_that_ends(machine: Machine, days: tuple[int, int], grade: str | None, words: str) -> None:
    """A responder's certificate that is not in force is a failure, one that soon ends is a warning."""
    since, until = (timedelta(days=each) for each in days)
    put(machine.folder, "responder", good_responder(machine.ca, since, until))
    found = await machine.wrong()
    assert found.get("keys certificate") == grade, machine.said()
    assert words in machine.said()


async def test_a_responder_of_another_ca(machine: Machine) -> None:
    """A responder whose certificate another CA issued may not answer, and the finding says so."""
    put(machine.folder, "responder", good_responder(new_ca("Another")))
    wrong = await machine.wrong()
    assert wrong["keys opens"] == "failure"
    assert "that CA did not issue its certificate" in machine.said()


async def test_ports(machine: Machine) -> None:
    """A port that another program has is a failure that names it; an address of another machine is one as well."""
    program = (
        "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"
    )
    other = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    port = int(await other.stdout.readline())
    machine.ocsp = f'port = {port}\nadmin_port = 1\nadmin_host = "192.0.2.1"'
    wrong = await machine.wrong()
    other.kill()
    await other.communicate()
    assert wrong == {"ports port": "failure", "ports admin port": "failure"}
    assert f"127.0.0.1 {port} is taken by python" in machine.said()
    assert f"(process {other.pid})" in machine.said()
    machine.ocsp = f"port = {port}\nadmin_port = 0"
    assert await machine.wrong() == {}
    assert f"{port} is free" in machine.said()


async def test_folders(machine: Machine) -> None:
    """A folder that a service writes into and that is not there is a failure."""
    machine.ocsp += '\nwarm_start = "nowhere/warm.cache"\nkeyless = false'
    assert await machine.wrong() == {f"files {machine.folder / 'nowhere'}": "failure"}


def clock_of(machine: Machine) -> dict[str, str]:
    """What was found about the sources of the clock."""
    return {each.check: each.grade.label for each in machine.found if each.area == "clock" and each.subject != "kernel"}


async def test_the_clock(machine: Machine) -> None:
    """Three servers that agree are enough; one that differs is named; when most are silent nothing may be stamped."""
    async with ntp_servers(3) as servers:
        addresses = json.dumps([each.address for each in servers])
        machine.clock = f'clock.sources = ["ntp"]\nclock.ntp_servers = {addresses}\nclock.ntp_poll = "PT0.1S"'
        await machine.wrong()
        assert clock_of(machine) == {"sources": "ok", "NTP server": "ok"}
        servers[0].offset = 60
        await machine.wrong()
        assert "outvoted by the others" in machine.said()
        servers[1].silent = servers[2].silent = True
        await machine.wrong()
        assert clock_of(machine)["sources"] == "failure"
    machine.clock = 'clock.mode = "warn"'
    await machine.wrong()
    assert clock_of(machine)["mode"] == "warning"


async def test_the_urls_in_certificates(machine: Machine, database_url: str) -> None:
    """What a unit's certificate names must answer and be right; nobody is asked with --offline."""
    folder = machine.folder / "running"
    folder.mkdir()
    ca = new_ca("Time-Stamping CA", new_ca("Root"))
    async with running_responder_of(database_url, folder, ca, new_responder(ca)) as responder:
        for url, wrong in ((responder.url, None), ("http://127.0.0.1:1", "failure")):
            where = x509.AccessDescription(AuthorityInformationAccessOID.OCSP, x509.UniformResourceIdentifier(url))
            leaf = issue("unit", ca, extensions=(*UNIT_EXTENSIONS, (x509.AuthorityInformationAccess([where]), False)))
            await responder.issue(leaf)
            put(machine.folder, "tsu", leaf)
            ca.write(machine.folder, "chain")
            machine.offline = False
            assert (await machine.wrong()).get(f"network tsa: unit main: {url}") == wrong, machine.said()
            assert any(each.subject.endswith(url) for each in machine.found), machine.said()
            machine.offline = True
            assert await machine.wrong() == {}
            assert not any(each.area == "network" for each in machine.found)


async def test_the_command(machine: Machine) -> None:
    """The command says the same as a table and as JSON, with the exit code of the gravest, and prints no secret."""
    path = machine.configuration()

    async def run(*arguments: str, limit: str = "ulimit -n 4096") -> tuple[int, str]:
        command = (
            f"{limit}; exec {sys.executable} -m lakthan_cli doctor --config {path} --offline {' '.join(arguments)}"
        )
        process = await asyncio.create_subprocess_shell(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said, _ = await process.communicate()
        return process.returncode or 0, said.decode()

    code, table = await run()
    assert code == 1, table
    assert "lakthan_responder" in table
    assert "PRIVATE KEY" not in table
    secrets = [line for key in machine.folder.glob("*.key") for line in key.read_text().splitlines() if "-" not in line]
    assert secrets
    code, text = await run("--service", "tsa", "--json", limit="ulimit -n 400")
    document = json.loads(text)
    assert not any(secret in table + text for secret in secrets)
    assert code == document["exit_code"] == 2
    checks = {each["check"]: each["grade"] for each in document["findings"]}
    assert checks["descriptors"] == "failure"
    assert "responder of ca" not in text, "only what the service needs"
    for nonsense in (["--service", "registry"], ["--workers", "0"]):
        said = CliRunner().invoke(main, ["doctor", "--config", str(path), *nonsense])
        assert said.exit_code == 3, said.output
