"""A small estate for rehearsals: one CA, the three services in processes of their own, and clients that write all down.

A CA pushes revocations over HTTPS, signers ask for tokens, relying parties ask for statuses, all at the same time and
whatever happens below. What each was told is in the `Books`, against which a rehearsal holds the database afterwards.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import aiohttp
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp

from lakthan import der
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.changes import ChangeWriter
from lakthan.store.credentials import CredentialAdmin
from lakthan.store.feed import BOUND
from lakthan.store.pool import open_pool
from lakthan.store.records import Change, ChangeRequest, CredentialRole
from support.crl import Listed, entry, new_crl
from support.endure_clients import Crew, Ledger
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
_TIMEOUT = aiohttp.ClientTimeout(total=15)
_PAUSE_SECONDS = 0.02
_BREATH_SECONDS = 0.002
_PATIENCE_SECONDS = 240.0


@dataclass
class TimedLedger(Ledger):
    """Also when each token came."""

    received: dict[bytes, datetime] = field(default_factory=dict)

    def keep(self, token: bytes, serial_number: bytes) -> None:
        """See `Ledger`."""
        super().keep(token, serial_number)
        self.received[serial_number] = datetime.now(UTC)


@dataclass
class Books:
    """What the clients were told.

    `revoked`: by serial number, when the registry's acknowledgement came. `heard`: how often each word was heard, by
    who said it, and `slowest` the longest that took, in seconds. `served`: how `?wait=served` ended. `wrong`: a good
    that came although the question was sent after the acknowledgement. `refused`: by service, everything that was no
    success.
    """

    revoked: dict[int, datetime] = field(default_factory=dict)
    tokens: TimedLedger = field(default_factory=TimedLedger)
    heard: dict[str, collections.Counter[str]] = field(
        default_factory=lambda: collections.defaultdict(collections.Counter)
    )
    slowest: dict[str, float] = field(default_factory=lambda: collections.defaultdict(float))
    served: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)
    refused: dict[str, collections.Counter[str]] = field(
        default_factory=lambda: collections.defaultdict(collections.Counter)
    )


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
    ) -> AsyncIterator[Clients]:
        """Clients at work until the end of the block. `responders`: by the name under which they are in the books."""
        clients = Clients(self, responders)
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


def said(body: bytes) -> str:
    """The word of an OCSPResponse: `good`, `revoked`, `unknown`, or the OCSPResponseStatus without an answer."""
    response = ocsp.load_der_ocsp_response(body)
    if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
        return response.response_status.name.lower()
    return response.certificate_status.name.lower()


class Clients:
    """The CA, the signers and the relying parties, at work. `registry`: to whom the CA pushes; `served`: it asks to
    hear when every responder answers by its revocation.
    """

    def __init__(self, estate: Estate, responders: dict[str, ServiceProcess]) -> None:
        self._estate = estate
        self._books = estate.books
        self.responders = responders
        self.registry: ServiceProcess | None = None
        self.served = False
        self._allowed = len(estate.books.revoked)

    def allow(self, revocations: int) -> None:
        """The CA may revoke so many more."""
        self._allowed += revocations

    @asynccontextmanager
    async def running(
        self, registry: ServiceProcess | None, tsa: Sequence[ServiceProcess], signers: int
    ) -> AsyncIterator[None]:
        """Work until the end of the block."""
        self.registry = registry
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
            tasks = [asyncio.create_task(self._ask(session)), asyncio.create_task(self._revoke(session))]
            try:
                async with Crew(self._books.tokens, tsa, signers):
                    yield
            finally:
                for task in tasks:
                    failed = task.done()
                    task.cancel()
                    with suppress(asyncio.CancelledError):
                        await task
                    assert not failed, "a client has ended by itself"

    async def until(self, *, revoked: int = 0, tokens: int = 0, heard: int = 0) -> None:
        """Let the CA revoke so many more, and return when so many were acknowledged, granted, heard from each."""
        books = self._books
        self.allow(revoked)
        least = len(books.revoked) + min(revoked, self._estate.left), len(books.tokens.granted) + tokens
        answers = {name: books.heard[name].total() + heard for name in self.responders}

        def done() -> bool:
            enough = len(books.revoked) >= least[0] and len(books.tokens.granted) >= least[1]
            return enough and all(books.heard[name].total() >= number for name, number in answers.items())

        async with asyncio.timeout(_PATIENCE_SECONDS):
            while not done():  # noqa: ASYNC110 - three kinds of clients make it true
                await asyncio.sleep(0.01)

    async def _revoke(self, session: aiohttp.ClientSession) -> None:
        tls = self._estate.tls()
        headers = {"Authorization": f"Bearer {self._estate.token}"}
        while True:
            registry = self.registry
            if (
                registry is None
                or not self._estate.left
                or not registry.port
                or len(self._books.revoked) >= self._allowed
            ):
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            serial_number = self._estate.next_certificate()
            url = f"https://127.0.0.1:{registry.port}/v1/certificates/{serial_number:X}/revoke"
            url += "?wait=served" if self.served else ""
            acknowledged = False
            try:
                async with session.post(url, json={}, headers=headers, ssl=tls) as reply:
                    acknowledged = reply.status == 200
                    if acknowledged and self.served:
                        self._books.served[(await reply.json())["served"]] += 1
                    if not acknowledged:
                        self._books.refused["registry"][f"HTTP {reply.status}"] += 1
            except (aiohttp.ClientError, TimeoutError) as error:
                self._books.refused["registry"][type(error).__name__] += 1
            if acknowledged:
                self._books.revoked[serial_number] = datetime.now(UTC)
            else:
                self._estate.again(serial_number)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _ask(self, session: aiohttp.ClientSession) -> None:
        """About one certificate after another, of each responder, for ever."""
        for serial_number in itertools.cycle(self._estate.serial_numbers):
            question = self._estate.question(serial_number)
            for name, responder in list(self.responders.items()):
                if not responder.port:
                    continue
                # Without ?wait=served a notification is on its way for a moment, or trust runs out by the bound.
                known = self._books.revoked.get(serial_number)
                revoked_before = known is not None and (self.served or datetime.now(UTC) - known > BOUND)
                sent_at = time.monotonic()
                try:
                    async with session.post(f"http://127.0.0.1:{responder.port}", data=question) as reply:
                        word = said(await reply.read()) if reply.status == 200 else f"HTTP {reply.status}"
                except (aiohttp.ClientError, TimeoutError) as error:
                    word = type(error).__name__
                self._books.heard[name][word] += 1
                self._books.slowest[name] = max(self._books.slowest[name], time.monotonic() - sent_at)
                if word not in ("good", "revoked"):
                    self._books.refused[name][word] += 1
                if word == "good" and revoked_before:
                    self._books.wrong.append(f"{name}: {serial_number:X} is good after it was acknowledged as revoked")
            await asyncio.sleep(_BREATH_SECONDS)
