"""A small estate for rehearsals: one CA, the three services in processes of their own, and clients that write all down.

A CA pushes revocations over HTTPS, signers ask for tokens, relying parties ask for statuses, all at the same time and
whatever happens below (`support.estate_clients`). What each was told is in the `Books`, against which a rehearsal
holds the database afterwards.
"""

from __future__ import annotations

import collections
import itertools
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp

from lakthan import der
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.changes import ChangeWriter
from lakthan.store.credentials import CredentialAdmin
from lakthan.store.pool import open_pool
from lakthan.store.records import Change, ChangeRequest, CredentialRole
from support.crl import Listed, entry, new_crl
from support.estate_clients import Books, Clients
from support.pki import new_ca, new_responder
from support.registry import new_server
from support.service_process import ServiceProcess
from support.tsa import new_unit

AUTHORITY = "public-ca"
LOGINS = {
    "ocsp": "lakthan_responder",
    "tsa": "lakthan_tsa",
    "publisher": ("lakthan_publisher", "lakthan_registrar", "lakthan_auditor"),
}
MODULES = {"ocsp": "lakthan_ocsp", "tsa": "lakthan_tsa", "registry": "lakthan_registry"}
_FIRST_SERIAL = 0x4C414B00


class Estate:
    """`folder`: for keys, configuration and logs. `url(login)`: the database for one of `LOGINS`."""

    def __init__(self, folder: Path, url: Callable[[str], str]) -> None:
        self.folder = folder
        self._url = url
        self.ca = new_ca("Public CA ອອກໃບຢັ້ງຢືນ")
        self._unit = new_unit()
        self._tls = new_ca("TLS root")
        self.config = folder / "lakthan.toml"
        self.books = Books()
        self.serial_numbers: list[int] = []
        self._unrevoked: collections.deque[int] = collections.deque()
        self._token = ""
        self._logs = itertools.count()
        self._tls.write(folder, "tls-root")

    async def fill(self, owner_url: str, certificates: int) -> None:
        """Make the authority, its certificates and its credential in a migrated database, and write the
        configuration.
        """
        pool = await open_pool(owner_url, role="lakthan_registry", min_size=1, max_size=2, application_name="test")
        try:
            authority_id = await AuthorityAdmin(pool).add_authority(AUTHORITY, [self.ca.der])
            self.serial_numbers = [_FIRST_SERIAL + number for number in range(certificates)]
            self._unrevoked.extend(self.serial_numbers)
            changes = [
                ChangeRequest(authority_id, der.integer_content(each), Change.ISSUE) for each in self.serial_numbers
            ]
            await ChangeWriter(pool).record(changes, actor="test")
            _, token = await CredentialAdmin(pool).create(
                "ca-robot",
                CredentialRole.PUBLISHER,
                authority_id=authority_id,
                scopes=("revoke", "read"),
                expires_at=datetime.now(UTC) + timedelta(days=1),
                actor="test",
            )
        finally:
            await pool.close()
        self._token = token or ""
        self._write_configuration()

    def _write_configuration(self) -> None:
        new_responder(self.ca).write(self.folder, "responder")
        new_server(self._tls).write(self.folder, "registry")
        self._unit.write(self.folder)
        self.config.write_text(
            f"""[ocsp]
port = 0
admin_port = 0
database.url = "{self._url("ocsp")}"
[[ocsp.responders]]
authority = "{AUTHORITY}"
certificate = "responder.pem"
key = "file:responder.key"
[tsa]
port = 0
admin_port = 0
clock.mode = "warn"
database.url = "{self._url("tsa")}"
[tsa.units.main]
certificate = "tsu.pem"
key = "file:tsu.key"
chain = "chain.pem"
[tsa.profiles.default]
units = ["main"]
[registry]
port = 0
admin_port = 0
certificate = "registry.pem"
key = "registry.key"
fetch_crls = false
database.url = "{self._url("publisher")}"
"""
        )

    def process(self, service: str, *, code: Path | None = None, python: Path | None = None) -> ServiceProcess:
        """One of `MODULES`, not started yet. `code`, `python`: see `ServiceProcess`."""
        log = self.folder / f"{service}-{next(self._logs)}.log"
        if python is None:
            return ServiceProcess(MODULES[service], self.config, log, code=code)
        return ServiceProcess(MODULES[service], self.config, log, code=code, python=python)

    def crl(self, number: int = 1) -> Path:
        """The CRL that the CA publishes by its own books: every revocation that it knows to be acknowledged."""
        entries = [
            entry(der.integer_content(each), at=at.replace(microsecond=0)) for each, at in self.books.revoked.items()
        ]
        path = self.folder / f"ca-{number}.crl"
        path.write_bytes(
            new_crl(self.ca, Listed(entries, number, this_update=datetime.now(UTC).replace(microsecond=0)))
        )
        return path

    @asynccontextmanager
    async def at_work(
        self,
        *,
        registry: ServiceProcess | None = None,
        tsa: Sequence[ServiceProcess] = (),
        responders: dict[str, ServiceProcess],
        signers: int = 2,
        below: Callable[[], None] = lambda: None,
    ) -> AsyncIterator[Clients]:
        """Clients at work until the end of the block. `responders`: by the name under which they are in the books;
        `below()` raises when what all of them need has ended.
        """
        clients = Clients(self, responders, below)
        async with clients.running(registry, tsa, signers):
            yield clients

    def tls(self) -> ssl.SSLContext:
        """How the CA knows the registry."""
        return ssl.create_default_context(cafile=str(self.folder / "tls-root.pem"))

    def next_certificate(self) -> int:
        """One that is not revoked yet."""
        return self._unrevoked.popleft()

    def again(self, serial_number: int) -> None:
        """It was not acknowledged: the CA comes again with it first."""
        self._unrevoked.appendleft(serial_number)

    @property
    def left(self) -> int:
        """How many certificates are not revoked."""
        return len(self._unrevoked)

    @property
    def token(self) -> str:
        """The CA's."""
        return self._token

    def question(self, serial_number: int) -> bytes:
        """An OCSPRequest, DER."""
        public_key = self.ca.certificate.public_key()
        assert isinstance(public_key, ec.EllipticCurvePublicKey)
        name = sha256(self.ca.certificate.subject.public_bytes()).digest()
        key = sha256(public_key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)).digest()
        builder = ocsp.OCSPRequestBuilder().add_certificate_by_hash(name, key, serial_number, hashes.SHA256())
        return builder.build().public_bytes(Encoding.DER)
