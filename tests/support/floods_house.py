"""What is flooded: two OCSP responders with two authorities and a time-stamp authority, real processes on a real
PostgreSQL, and what their clients ask.

The services have a processor to themselves; PostgreSQL, the flood and the honest clients share the others.
"""

from __future__ import annotations

import collections
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.changes import ChangeWriter
from lakthan.store.embedded import EmbeddedPostgres
from lakthan.store.migrate import migrate
from lakthan.store.pool import open_pool
from lakthan.store.records import Change, ChangeRequest
from support import tsa
from support.floods_answers import Question, post
from support.pki import Issued, issue, new_ca, new_responder
from support.responder import request_for
from support.service_process import ServiceProcess

QUIET, NOISY = "quiet", "noisy"
# What honest clients ask, by what it costs: nothing, a signature, or one by a key that is slow (RSA-4096).
REMEMBERED, LIVE, SLOW_KEY = "remembered", "live", "slow key"
SLOW_PATH = b"/tsa/slow"
CERTIFICATES = 300
# The wide responder's, so that ten thousand who are idle find room; the others have the default, 4096.
WIDE_ROOM = 12_000
_LOGINS = {"ocsp": "lakthan_responder", "tsa": "lakthan_tsa"}


class House:
    """Start it with `open`, end it with `close`. `services`: by the name that floods call them by."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._postgres = EmbeddedPostgres(folder / "database")
        self.authorities = {QUIET: new_ca("Quiet CA"), NOISY: new_ca("Noisy CA")}
        self._responders = {
            QUIET: new_responder(self.authorities[QUIET]),
            NOISY: new_responder(self.authorities[NOISY], kind="RSA-4096"),
        }
        self._units = {"quick": tsa.new_unit(), "slow": tsa.new_unit("RSA-4096")}
        self.certificates: dict[str, list[Issued]] = {
            name: [issue(f"{name} {number}", ca) for number in range(CERTIFICATES if name == QUIET else 10)]
            for name, ca in self.authorities.items()
        }
        self.services = {
            name: ServiceProcess(module, folder / config, folder / f"{name}.log")
            for name, module, config in (
                ("ocsp", "lakthan_ocsp", "lakthan.toml"),
                ("wide", "lakthan_ocsp", "wide.toml"),
                ("tsa", "lakthan_tsa", "lakthan.toml"),
            )
        }

    async def open(self) -> None:
        """Database, certificates, services."""
        processors = sorted(os.sched_getaffinity(0))
        if len(processors) > 1:
            os.sched_setaffinity(0, processors[1:])  # PostgreSQL and the flood inherit it
        self._postgres.start()
        await migrate(self._postgres.url())
        await self._postgres.ensure_logins(_LOGINS)
        pool = await open_pool(
            self._postgres.url(), role="lakthan_registry", min_size=1, max_size=2, application_name="floods"
        )
        try:
            for name, ca in self.authorities.items():
                authority = await AuthorityAdmin(pool).add_authority(name, [ca.der])
                numbers = [each.serial_number for each in self.certificates[name]]
                changes = [ChangeRequest(authority, each, Change.ISSUE) for each in numbers]
                await ChangeWriter(pool).record(changes, actor="floods")
        finally:
            await pool.close()
        self._write()
        for service in self.services.values():
            service.start()
            os.sched_setaffinity(service.process_id, processors[:1])
        for service in self.services.values():
            await service.until_serving()

    def close(self) -> list[str]:
        """Stop all of it. What the services logged as errors, and codes they did not end well with."""
        complaints = []
        for name, service in self.services.items():
            if service.running:
                said = collections.Counter(
                    str(each.get("event")) for each in service.events() if each["level"] == "error"
                )
                complaints += [f"{name} logged {times} times: {event}" for event, times in said.items()]
                code = service.stop()
                complaints += [f"{name} ended with {code}"] if code else []
            else:
                complaints.append(f"{name} ended by itself with {service.exit_code}")
        self._postgres.stop()
        return complaints

    def _write(self) -> None:
        for name, responder in self._responders.items():
            responder.write(self._folder, name)
        for name, unit in self._units.items():
            unit.write(self._folder / name)
        responders = "".join(
            f'[[ocsp.responders]]\nauthority = "{name}"\ncertificate = "{name}.pem"\nkey = "file:{name}.key"\n'
            for name in self._responders
        )
        units = "".join(
            f'[tsa.units.{name}]\ncertificate = "{name}/tsu.pem"\nkey = "file:{name}/tsu.key"\n'
            f'chain = "{name}/chain.pem"\n'
            for name in self._units
        )
        for config, room in (("lakthan.toml", ""), ("wide.toml", f"connections = {WIDE_ROOM}")):
            (self._folder / config).write_text(
                f"""[ocsp]
port = 0
admin_port = 0
{room}
database.url = "{self._postgres.url("ocsp")}"
{responders}
[tsa]
port = 0
admin_port = 0
clock.mode = "warn"
database.url = "{self._postgres.url("tsa")}"
{units}
[tsa.profiles.default]
units = ["quick"]
[tsa.profiles.slow]
units = ["slow"]
"""
            )

    def memory(self, service: str) -> int:
        """Resident octets of a service."""
        status = Path(f"/proc/{self.services[service].process_id}/statm").read_text()
        return int(status.split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def questions(self, service: str) -> Iterator[Question]:
        """What honest clients ask a service, again and again: of eight one for a signature by the slow key."""
        asked, slow = self.certificates[QUIET], self.certificates[NOISY]
        while True:
            for place in range(8):
                if service == "tsa":
                    yield self.token_question(slow=place == 7)
                elif place == 7:
                    yield self.ocsp_question(secrets.choice(slow), NOISY, nonce=secrets.token_bytes(32))
                elif place % 2:
                    yield self.ocsp_question(secrets.choice(asked), QUIET, nonce=secrets.token_bytes(32))
                else:
                    yield self.ocsp_question(asked[0] if place % 4 else secrets.choice(asked), QUIET)

    def ocsp_question(self, certificate: Issued, authority: str, nonce: bytes | None = None) -> Question:
        """A whole POST."""
        body = request_for(certificate, self.authorities[authority], nonce=nonce)
        kind = SLOW_KEY if authority == NOISY else REMEMBERED if nonce is None else LIVE
        signer = self._responders[authority].certificate
        return Question(kind, post(body), signer, certificate.certificate.serial_number, nonce)

    def token_question(self, *, slow: bool = False) -> Question:
        """The same for a token."""
        imprint, nonce = secrets.token_bytes(32), secrets.randbits(63)
        octets = post(tsa.request_for(imprint, nonce=nonce), path=SLOW_PATH if slow else b"/")
        signer = self._units["slow" if slow else "quick"].leaf.certificate
        kind = SLOW_KEY if slow else LIVE
        return Question(kind, octets, signer, imprint=imprint, nonce=nonce.to_bytes(8, "big"))
