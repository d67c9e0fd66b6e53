"""Another CA system's certificates on one side, a running responder of ours on the other, OpenSSL as the judge between.

The CA is registered, its lists and CRLs are imported and its credentials made by the `lakthan` command, as an operator
would do it.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from lakthan.config import Config, DatabaseConfig, KeyURI, OCSPConfig, ResponderConfig
from lakthan_ocsp.__main__ import serve
from support.demo import lakthan
from support.programs import need
from support.running import running

_SAID = re.compile(
    r": (?P<status>good|revoked|unknown)\n(?:\t.*\n)*?(?:\tReason: (?P<reason>\w+)\n)?"
    r"(?:\tRevocation Time: (?P<time>[^\n]+)\n)?\Z"
)


@dataclass(frozen=True)
class Judgement:
    """What `openssl ocsp` printed about one certificate, after it had verified the answer."""

    status: str
    reason: str | None = None
    revocation_time: datetime | None = None


@dataclass(frozen=True)
class ForeignCA:
    """A CA of another system that our responder answers for. `certificate`: the CA's own, PEM."""

    name: str
    certificate: Path
    url: str
    database_url: str

    async def lakthan(self, *arguments: str | Path, fails: bool = False) -> str:
        """Run a `lakthan` command on the registry; gives what it said."""
        ran = await asyncio.to_thread(lakthan, *arguments, "--database", self.database_url)
        said = ran.stdout + ran.stderr
        assert (ran.returncode != 0) is fails, said
        return said

    async def import_crl(self, path: Path, *options: str, fails: bool = False) -> str:
        """Import a CRL; gives what the command said."""
        return await self.lakthan("crl", "import", path, *options, fails=fails)

    async def judge(self, certificate: Path) -> Judgement:
        """What OpenSSL makes of the responder's answer."""
        said = await asyncio.to_thread(
            run,
            *("openssl", "ocsp", "-issuer", self.certificate, "-cert", certificate, "-url", self.url),
            *("-CAfile", self.certificate, "-no_nonce"),
        )
        assert "Response verify OK" in said, said
        return judgement(said)

    async def compare(self, crl: Path) -> str:
        """What our monitor says about the CRL; it must find everything in order."""
        return await self.lakthan(*("monitor", self.name, "--once", "--all", "--crl", crl, "--responder", self.url))


def judgement(said: str) -> Judgement:
    """Read what `openssl ocsp` printed."""
    found = _SAID.search(said)
    assert found is not None, said
    time = found["time"]
    return Judgement(
        found["status"],
        found["reason"],
        None if time is None else datetime.strptime(time, "%b %d %H:%M:%S %Y GMT").replace(tzinfo=UTC),
    )


def run(program: str, *arguments: str | Path, cwd: Path | None = None, stdin: str | None = None) -> str:
    """Run a foreign program; gives all that it printed. Raises `AssertionError` when it fails."""
    done = subprocess.run(
        [need(program), *arguments],
        check=False,
        cwd=cwd,
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@asynccontextmanager
async def answered_for(
    name: str, certificate: Path, responder: Path, key: Path, database_url: str
) -> AsyncIterator[ForeignCA]:
    """Register a CA, whose responder certificate it issued itself, and serve."""
    added = await asyncio.to_thread(
        lakthan, *("authority", "add", name, certificate, "--responder", responder, "--database", database_url)
    )
    assert added.returncode == 0, added.stdout + added.stderr
    responders = [ResponderConfig(name, responder, KeyURI(f"file:{key.name}", key.parent))]
    config = OCSPConfig(responders, DatabaseConfig(database_url), port=0, admin_port=0)
    async with running(serve, Config(ocsp=config)) as (port, _):
        yield ForeignCA(name, certificate, f"http://127.0.0.1:{port}", database_url)
