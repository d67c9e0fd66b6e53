"""docs/deploy.md, typed in as it stands: passwords, database, keys, configuration, and what the services then say.

The parts that need a machine of their own are left out (`apt`, `pip`, `systemctl`). In place of the units, their
command lines are run, with the credentials that they load.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from lakthan.store.embedded import EmbeddedPostgres
from support.programs import need, our_program

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = CHECKOUT / "docs" / "deploy.md"
SECTION = "## Debian and systemd\n"
_PATIENCE_SECONDS = 60


def blocks(kind: str) -> list[str]:
    """The shell of the section that is marked so ("": not marked), in order."""
    section = PAGE.read_text(encoding="utf-8").split(SECTION, 1)[1].split("\n## ", 1)[0]
    found = re.findall(r"^```sh ?(\w*)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return [text for mark, text in found if mark == kind]


@dataclass
class Machine:
    """Where the page's folders and its database are here."""

    folder: Path
    superuser_url: str
    ports: dict[str, int]

    def here(self, text: str) -> str:
        """The page's words for this machine."""
        query = self.superuser_url.partition("?")[2]
        server = "&".join(part for part in query.split("&") if part.startswith(("host=", "port=", "sslmode=")))
        text = re.sub(r"@127\.0\.0\.1/lakthan\?", f"@/lakthan?{server}&", text)
        text = re.sub(r"@127\.0\.0\.1/lakthan\b(?!\?)", f"@/lakthan?{server}", text)
        # The folder of a test may well be below /tmp itself, so that comes first.
        text = text.replace("runuser -u postgres -- psql", "super_psql").replace("/tmp/", f"{self.folder}/")
        text = text.replace("/etc/lakthan", f"{self.folder}/etc").replace("/opt/lakthan/bin", f"{self.folder}/bin")
        for name, port in (("ocsp", 6960), ("tsa", 3161), ("ocsp_admin", 6961), ("tsa_admin", 3162)):
            text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{self.ports[name]}")
        return text

    def shell(self, *texts: str) -> str:
        """Run them one after the other in one bash, as its reader does; gives what it prints."""
        psql = f"""super_psql() {{
            local url='{self.superuser_url}'
            if [ "${{*: -1}}" = lakthan ]; then url="${{url/postgres\\?/lakthan?}}"; set -- "${{@:1:$#-1}}"; fi
            psql "$@" "$url"
        }}"""
        script = "\n".join(["set -euo pipefail", psql, *map(self.here, texts)])
        done = subprocess.run(["bash", "-c", script], cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    @contextmanager
    def unit(self, service: str) -> Iterator[None]:
        """What systemd would run, with the credentials that the unit loads, until it is ready and then on."""
        text = self.here((CHECKOUT / "systemd" / f"lakthan-{service}.service").read_text(encoding="utf-8"))
        credentials = self.folder / f"credentials-{service}"
        credentials.mkdir()
        for name, source in re.findall(r"^LoadCredential=([^:\n]+):(.+)$", text, re.MULTILINE):
            (credentials / name).write_bytes(Path(source).read_bytes())
        (command,) = re.findall(r"^ExecStart=(.+)$", text, re.MULTILINE)
        environ = {**os.environ, "CREDENTIALS_DIRECTORY": str(credentials)}
        for name, value in (("PORT", self.ports[service]), ("ADMIN_PORT", self.ports[f"{service}_admin"])):
            environ[f"LAKTHAN_{service.upper()}__{name}"] = str(value)
        with (self.folder / f"{service}.log").open("wb") as log:
            process = subprocess.Popen(shlex.split(command), env=environ, stderr=log, cwd=self.folder)
        try:
            self._until_ready(service, process)
            yield
        finally:
            process.terminate()
            process.wait(_PATIENCE_SECONDS)
        assert process.returncode == 0

    def _until_ready(self, service: str, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                url = f"http://127.0.0.1:{self.ports[f'{service}_admin']}/readyz"
                with urllib.request.urlopen(url, timeout=5) as reply:
                    assert reply.status == 200
                    return
            except OSError:
                said = (self.folder / f"{service}.log").read_text()
                assert process.poll() is None, said
                assert time.monotonic() < deadline, said
                time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """An empty PostgreSQL, and a folder for all that is written."""
    for program in ("bash", "curl", "openssl", "psql"):
        need(program)
    names = ("ocsp", "ocsp_admin", "tsa", "tsa_admin")
    with EmbeddedPostgres(tmp_path / "server", durable=False) as server:
        ports = dict(zip(names, _free_ports(len(names)), strict=True))
        our_program(tmp_path / "machine" / "bin")
        empty = Machine(tmp_path / "machine", server.url(database="postgres"), ports)
        empty.shell('runuser -u postgres -- psql -q -c "DROP DATABASE lakthan"')  # the reader makes it
        yield empty


def test_a_reader_of_the_page_succeeds(machine: Machine) -> None:
    """Every command of the page in its order, in one shell; `check-config` finds nothing wrong; the units' own command
    lines come up; the certificate is good, then revoked, and openssl verifies the time-stamp.
    """
    machine.shell(*blocks(""))
    asked = [
        "export PATH=/opt/lakthan/bin:$PATH; cd /etc/lakthan",
        *(line for line in "\n".join(blocks("")).splitlines() if line.startswith("export DATABASE_URL")),
        *blocks("ask"),
    ]
    with machine.unit("ocsp"), machine.unit("tsa"):
        said = machine.shell(*asked)
    assert re.search(r"user\.pem: good", said), said
    assert re.search(r"user\.pem: revoked", said), said
    assert "Verification: OK" in said, said
    assert "change feed: ok" in said, said


def test_what_only_a_machine_can_do_is_what_is_there() -> None:
    """The commands that are not run here name files and units of this repository."""
    (install,), (start,) = blocks("install"), blocks("systemd")
    assert "python3 run requirements" in install
    units = {path.stem for path in (CHECKOUT / "systemd").glob("*.service")}
    assert set(re.findall(r"lakthan-\w+", start)) <= units
    assert "cp systemd/*.service" in start
