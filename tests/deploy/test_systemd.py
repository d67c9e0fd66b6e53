"""The systemd units: clean, closed, and run by a systemd that has really booted."""

from __future__ import annotations

import asyncio
import configparser
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from cryptography.x509 import ocsp

from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.changes import ChangeWriter
from lakthan.store.embedded import EmbeddedPostgres
from lakthan.store.pool import open_pool
from support.booted_systemd import booted
from support.pki import issue, new_ca, new_responder
from support.programs import need
from support.registry import new_server
from support.responder import ACTOR, request_for
from support.tsa import new_unit, tst_info_of
from support.tsa import request_for as tsa_request_for

CHECKOUT = Path(__file__).parents[2]
UNITS = sorted((CHECKOUT / "systemd").glob("*.service"))
# systemd's own scale: 0 is closed, 10 open; "OK" ends at 4. What is left is the network, which services are there for.
MOST_EXPOSED = {"lakthan-tsa.service": 1.6}
MOST_EXPOSED_ELSE = 1.2
# Where this machine has its Python and the code.
PLACES = sorted({Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve(), CHECKOUT})


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_is_closed(unit: Path) -> None:
    """The exposure that systemd computes of a unit stays where it is; a directive that is lost shows."""
    command: list[str | Path] = [need("systemd-analyze"), "security", "--offline=true", "--no-pager", unit]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    exposure = float(re.search(r"Overall exposure level for \S+: ([0-9.]+) ", said)[1])  # type: ignore[index]
    assert exposure <= MOST_EXPOSED.get(unit.name, MOST_EXPOSED_ELSE)


def test_the_units_are_understood_in_full(tmp_path: Path) -> None:
    """The tool finds no unknown directive, no wrong value and no missing unit in any of them."""
    assert len(UNITS) == 5
    program = tmp_path / "lakthan"
    program.symlink_to("/bin/true")
    for unit in UNITS:
        (tmp_path / unit.name).write_text(unit.read_text().replace("/opt/lakthan/bin/lakthan", str(program)))
    command: list[str | Path] = [
        need("systemd-analyze"),
        "verify",
        "--man=no",
        *(tmp_path / unit.name for unit in UNITS),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def free_port() -> int:
    """A port that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


class Machine:
    """What is on the machine of the units: the configuration, the secrets, the program, and PostgreSQL."""

    def __init__(self, folder: Path, database: EmbeddedPostgres) -> None:
        self.etc, self.opt, self.log = folder / "etc", folder / "opt", folder / "log"
        self.ports = {name: free_port() for name in ("ocsp", "tsa", "registry", "publisher")}
        self.ca, self.unit, self.tls = new_ca("Public CA"), new_unit(), new_ca("TLS CA")
        url = urllib.parse.urlsplit(database.url())
        query = dict(urllib.parse.parse_qsl(url.query))
        self.socket_folder = Path(query["host"])
        rows = [line.split(":") for line in Path(query["passfile"]).read_text().splitlines()]
        self.password = next(row[4] for row in rows if row[3] == url.username)
        query = {"host": "/run/postgresql", "port": query["port"], "sslmode": "disable"}
        self.database = urllib.parse.urlunsplit(url._replace(query=urllib.parse.urlencode(query)))
        self._write()

    def _write(self) -> None:
        secrets = self.etc / "secrets"
        secrets.mkdir(parents=True)
        self.log.mkdir()
        certificate, key = new_responder(self.ca).write(self.etc, "responder")
        key.rename(secrets / "ocsp.key")
        self.unit.write(self.etc / "tsu")
        (self.etc / "tsu" / "tsu.key").rename(secrets / "tsu.key")
        server, key = new_server(self.tls).write(self.etc, "registry")
        key.rename(secrets / "registry-tls.key")
        for name in ("ocsp", "tsa", "registry", "publisher"):
            (secrets / f"{name}-db-password").write_text(self.password + "\n")
        (secrets / "migrate-pgpass").write_text(f"*:*:*:*:{self.password}\n")
        tables = {name: self._table(name) for name in self.ports}
        (self.etc / "lakthan.toml").write_text(
            f"""
            {tables["ocsp"]}
            [[ocsp.responders]]
            authority = "public-ca"
            certificate = "{certificate.name}"
            key = "file:${{CREDENTIALS_DIRECTORY}}/ocsp.key"
            {tables["tsa"]}
            clock.mode = "warn"
            [tsa.units.main]
            certificate = "tsu/tsu.pem"
            chain = "tsu/chain.pem"
            key = "file:${{CREDENTIALS_DIRECTORY}}/tsu.key"
            [tsa.profiles.default]
            units = ["main"]
            {tables["registry"]}
            certificate = "{server.name}"
            key = "${{CREDENTIALS_DIRECTORY}}/registry-tls.key"
            {tables["publisher"].replace(f"port = {self.ports['publisher']}", "", 1)}
            """
        )
        (self.opt / "bin").mkdir(parents=True)
        program = self.opt / "bin" / "lakthan"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m lakthan_cli "$@"\n')
        # Secrets are root's alone; the rest is everybody's, as on a real machine.
        for path in (*self.etc.rglob("*"), *self.opt.rglob("*"), self.etc, self.opt):
            path.chmod(0o755 if path.is_dir() or path == program else 0o644)
        for path in (secrets, *secrets.iterdir()):
            path.chmod(0o700 if path.is_dir() else 0o600)
        self.socket_folder.chmod(0o755)
        for path in self.socket_folder.glob(".s.PGSQL.*[0-9]"):
            path.chmod(0o666)
        self.log.chmod(0o755)

    def _table(self, name: str) -> str:
        return (
            f'[{name}]\nport = {self.ports[name]}\nadmin_port = 0\ndatabase.url = "{self.database}"\n'
            f'database.password_file = "${{CREDENTIALS_DIRECTORY}}/{name}-db-password"'
        )

    def units(self) -> dict[str, str]:
        """The units of the checkout. What is added is what a drop-in would say here: where PostgreSQL is, and where the
        logs go; and a watchdog that does not take a test so long.
        """
        units = {}
        for path in UNITS:
            more = [
                f"StandardError=append:{self.log / path.stem}.log",
                f"BindReadOnlyPaths={' '.join(map(str, PLACES))}",
            ]
            if "migrate" in path.name:
                database = f"{self.database}&passfile=%d/pgpass".replace("%2F", "%%2F")
                more.append(f"Environment='LAKTHAN_DATABASE={database}'")
            text = path.read_text().replace("WatchdogSec=30", "WatchdogSec=5")
            # As closed as yes, but what is bound below it is seen. (The folders above that get the mode of UMask=.)
            text = text.replace("ProtectHome=yes", "ProtectHome=tmpfs").replace("UMask=0077", "UMask=0022")
            service, install, rest = text.partition("[Install]")
            units[path.name] = "\n".join([service, *more, install + rest])
        return units

    def said(self) -> str:
        """What the services logged."""
        return "".join(f"== {path.name}\n{path.read_text()}" for path in sorted(self.log.glob("*.log")))


def test_the_units_run_where_systemd_has_booted(tmp_path: Path) -> None:
    """All five under a real systemd, sandbox and all: the schema is made; OCSP and time stamps are answered as soon as
    `systemctl start` comes back; `systemctl reload` replaces the workers; a process that hangs is noticed by its
    watchdog and started again; `systemctl stop` ends all in order.
    """
    with EmbeddedPostgres(tmp_path / "postgres", durable=False) as database:
        machine = Machine(tmp_path, database)
        seen = {machine.etc: "/etc/lakthan", machine.opt: "/opt/lakthan", machine.socket_folder: "/run/postgresql"}
        seen |= {place: str(place) for place in PLACES}
        with booted(machine.units(), seen, [machine.log]) as systemd:
            try:
                systemd.run("systemctl", "start", "lakthan-migrate")
                asyncio.run(announce(machine, database.url()))
                for name in machine.ports:
                    systemd.run("systemctl", "start", f"lakthan-{name}")
                    assert systemd.show(f"lakthan-{name}", "SubState") == "running"
                good = issue("good", machine.ca)
                assert ask(machine, request_for(good, machine.ca)) is ocsp.OCSPCertStatus.UNKNOWN
                assert stamp(machine)
                assert Path(f"/proc/{systemd_child(systemd.pid, 'lakthan_ocsp')}").stat().st_uid != 0
                systemd.run("systemctl", "reload", "lakthan-ocsp")
                while systemd.show("lakthan-ocsp", "StatusText") != "2 of 2 workers were replaced.":
                    assert ask(machine, request_for(good, machine.ca)) is ocsp.OCSPCertStatus.UNKNOWN
                assert systemd.show("lakthan-ocsp", "NRestarts") == "0"
                os.kill(systemd_child(systemd.pid, "lakthan_ocsp.publisher"), signal.SIGSTOP)
                while systemd.show("lakthan-publisher", "NRestarts") == "0":
                    pass
                for name in machine.ports:
                    systemd.run("systemctl", "stop", f"lakthan-{name}")
                    assert systemd.show(f"lakthan-{name}", "ActiveState") == "inactive", name
            except Exception as error:
                error.add_note(machine.said())
                raise


async def announce(machine: Machine, url: str) -> None:
    """The authority of the responder; and the services' roles may be taken by the login of the test."""
    pool = await open_pool(url, role="lakthan_registry", min_size=1, max_size=1, application_name="test")
    authority_id = await AuthorityAdmin(pool).add_authority("public-ca", [machine.ca.der])
    await ChangeWriter(pool).issue(authority_id, b"\x01", actor=ACTOR)
    await pool.close()


def systemd_child(pid: int, module: str) -> int:
    """The process of this machine that runs a module under a process 1: the oldest that says so on its command line."""
    mine = Path(f"/proc/{pid}/ns/pid").readlink()
    for path in sorted(Path("/proc").glob("[0-9]*"), key=lambda each: int(each.name)):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            if module.encode() in words and (path / "ns/pid").readlink() == mine:
                return int(path.name)
        except (FileNotFoundError, ProcessLookupError):
            continue
    raise AssertionError(f"nothing runs {module}")


def post(port: int, body: bytes, media_type: str) -> bytes:
    """What a service answers."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", body, {"Content-Type": media_type})
    with urllib.request.urlopen(request, timeout=30) as reply:  # noqa: S310 - http
        octets: bytes = reply.read()
        return octets


def ask(machine: Machine, body: bytes) -> ocsp.OCSPCertStatus:
    """What the responder says of a certificate."""
    answer = ocsp.load_der_ocsp_response(post(machine.ports["ocsp"], body, "application/ocsp-request"))
    return answer.certificate_status


def stamp(machine: Machine) -> int:
    """The serial number of a new token."""
    answer = post(machine.ports["tsa"], tsa_request_for(), "application/timestamp-query")
    return int(tst_info_of(answer)["serial_number"].native)


def test_only_root_reads_the_secrets() -> None:
    """Every credential of every unit comes from the folder that is root's, and no unit names a user of its own."""
    for path in UNITS:
        unit = configparser.RawConfigParser(strict=False)
        unit.optionxform = str  # type: ignore[assignment, method-assign]
        unit.read_string(path.read_text())
        assert unit["Service"]["LoadCredential"].split(":")[1].startswith("/etc/lakthan/secrets/")
        assert unit["Service"]["DynamicUser"] == "yes"
        assert "User" not in unit["Service"]
