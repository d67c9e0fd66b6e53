"""A responder process in simulated time: the real one but for its sockets, its clock, its disk and its database.

The wire and its short way, the words of the HTTP edge, the service, the cache, the change feed, the readers of the
store, the directory and the governor are the code that runs in production, wired as `lakthan_ocsp.__main__` does it.
Two authorities: the key of `quick` signs at once, that of `slow` takes its time, as an HSM does. Their answers live for
seconds instead of days, so that a simulation sees them renewed and expire.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from unittest.mock import patch

from cryptography.hazmat.primitives import hashes

from lakthan.algorithms import SignatureAlgorithm
from lakthan.certificates import CertificateView
from lakthan.config import DatabaseConfig, OCSPConfig, ResponderConfig
from lakthan.identity import Identity
from lakthan.keys.key_ring import HeldKey, KeyRing
from lakthan.keys.software import SoftwareSigner
from lakthan.store.records import AuthorityRecord
from lakthan.store.status import AuthorityReader, StatusReader
from lakthan.web.wire import Connection as WireConnection
from lakthan.web.wire import Wire
from lakthan_ocsp import __main__ as process_module
from lakthan_ocsp.app import Words
from lakthan_ocsp.directory import Responder
from lakthan_ocsp.governor import Governor
from lakthan_ocsp.metrics import OCSPMetrics
from lakthan_ocsp.opening import ROLE
from lakthan_ocsp.profiles import PROFILES
from lakthan_ocsp.quick import Short
from lakthan_ocsp.requestors import Requestors
from lakthan_ocsp.responder import ResponderTemplate
from lakthan_ocsp.responders import Responders
from lakthan_ocsp.service import OCSPService
from support.pki import Issued, issue, new_ca, new_responder
from support.responder import request_for
from support.simulated_database import Pool, Server, Tables
from support.simulated_time import Clock, SimulatedLoop

QUICK, SLOW = 1, 2
SERIALS = (b"\x05", b"\x11", b"\x7f\x02")
_NAMES = {QUICK: "quick", SLOW: "slow"}
_NONCE = 16
# Small, so that an import costs little here.
MANY = 8
# Few, so that the memory is full and forgets by itself as well.
_CACHED_ANSWERS = 6


class SlowSigner:
    """A key that signs after a while, in the order in which it was asked."""

    def __init__(self, signer: SoftwareSigner, seconds: Callable[[], float]) -> None:
        self._signer = signer
        self._seconds = seconds
        self._turn = asyncio.Lock()
        self.public_key = signer.public_key

    @property
    def algorithm(self) -> SignatureAlgorithm:
        """See `Signer`."""
        return self._signer.algorithm

    async def sign(self, message: bytes) -> bytes:
        """See `Signer`."""
        async with self._turn:
            await asyncio.sleep(self._seconds())
            return await self._signer.sign(message)

    async def aclose(self) -> None:
        """See `Signer`."""


@dataclass(frozen=True, eq=False)
class Material:
    """What takes long to make and never changes: CAs, responders of each (the first speaks first), requests."""

    cas: dict[int, Issued]
    responders: dict[int, list[Issued]]
    leaves: dict[tuple[int, bytes], Issued]
    authorities: list[AuthorityRecord]
    configs: dict[int, ResponderConfig]

    def request(self, authority: int, serial: bytes, *, sha1: bool, nonce: bytes | None) -> bytes:
        """An OCSPRequest about one certificate, made by pyca."""
        encoded = self._plain(authority, serial, sha1, nonce is not None)
        return encoded if nonce is None else encoded[: -len(nonce)] + nonce

    @cache  # noqa: B019 - the material lives as long as the process
    def _plain(self, authority: int, serial: bytes, sha1: bool, nonce: bool) -> bytes:  # noqa: FBT001 - a cache's key
        return request_for(
            self.leaves[authority, serial],
            self.cas[authority],
            algorithm=hashes.SHA1() if sha1 else hashes.SHA256(),
            nonce=bytes(_NONCE) if nonce else None,
        )


@cache
def material() -> Material:
    """Made once for a process. All keys sign the same octets the same way, so that answers can be compared."""
    cas = {authority: new_ca(f"CA {name}", kind="Ed25519") for authority, name in _NAMES.items()}
    responders = {authority: [new_responder(ca, kind="Ed25519") for _ in range(3)] for authority, ca in cas.items()}
    leaves = {
        (authority, serial): issue("leaf", ca, serial_number=int.from_bytes(serial, "big"), kind="Ed25519")
        for authority, ca in cas.items()
        for serial in SERIALS
    }
    authorities, configs = [], {}
    for authority, name in _NAMES.items():
        view = CertificateView.from_der(cas[authority].der)
        authorities.append(AuthorityRecord(authority, name, (view.subject,), (view.public_key,), (view.encoded,)))
        configs[authority] = ResponderConfig(
            name, validity=timedelta(seconds=40), refresh=timedelta(seconds=10), max_age=timedelta(seconds=4)
        )
    return Material(cas, responders, leaves, authorities, configs)


@cache
def _metrics() -> OCSPMetrics:
    return OCSPMetrics()


def responder(authority: int, which: int, seconds: Callable[[], float] | None = None) -> Responder:
    """One of the responders of an authority, as `lakthan_ocsp.opening` makes it. `seconds`: how slow its key is."""
    made = material()
    issued, config = made.responders[authority][which], made.configs[authority]
    signer = SoftwareSigner(issued.key)
    view = CertificateView.from_der(issued.der)
    identity = Identity(view, SlowSigner(signer, seconds) if seconds else signer)
    profile = PROFILES[config.profile]
    return Responder(
        config.authority,
        identity,
        Governor(config, profile, view),
        ResponderTemplate(identity),
        Requestors("ignore", ()),
        profile.non_issued,
    )


class _Transport:
    """What the wire uses of a transport. The client hangs up when it has its answer."""

    def __init__(self, loop: SimulatedLoop, connection: WireConnection, arrived: Callable[[bytes], None]) -> None:
        self._loop = loop
        self._connection = connection
        self._arrived = arrived

    def write(self, response: bytes) -> None:
        """The answer."""
        self._arrived(response)
        self._loop.call_soon(self._connection.connection_lost, None)

    def is_closing(self) -> bool:
        """Clients of the simulation wait."""
        return False

    def resume_reading(self) -> None:
        """Nothing is held back."""

    def get_extra_info(self, _name: str) -> object:
        """All clients are one source."""
        return None


def _no_handler() -> asyncio.Protocol:
    raise AssertionError("a request of the simulation was handed over to aiohttp")


class Process:
    """One responder process. `sign_seconds`: how long the slow key takes."""

    def __init__(self, loop: SimulatedLoop, server: Server, sign_seconds: Callable[[], float]) -> None:
        self.loop = loop
        self._rings: dict[int, KeyRing[Responder]] = {}
        self._sign_seconds = sign_seconds
        now = loop.clock.now()
        for authority, name in _NAMES.items():
            ring: KeyRing[Responder] = KeyRing(ROLE, name, None, _never, _close)
            self._rings[authority] = ring
            self._hold(authority, 0, now - timedelta(hours=1))
        pool = Pool(server, 4)
        settings = OCSPConfig([], DatabaseConfig("postgresql:///simulated"), cached_answers=_CACHED_ANSWERS)
        self.real = process_module._Process(
            settings,
            AuthorityReader(pool),  # type: ignore[arg-type]
            Responders(list(self._rings.values())),
            [],
            _metrics(),
        )
        self.service = self._made(pool)
        self.quick = Short(
            Words(self.service, _metrics()),
            self.real.cache,
            _metrics(),
            changes_heard=self.real.changes_heard,
            may_recall=self.real.may_recall,
        )
        self.words = self.quick._words
        self.wire = loop.run_until_complete(self._wire())
        self.tasks = [
            loop.create_task(self.real.feed.run()),
            loop.create_task(self.real.keep_directory(self.service)),
        ]

    def _made(self, pool: Pool) -> OCSPService:
        directory = self.loop.run_until_complete(self.real.load())
        return OCSPService(
            directory,
            StatusReader(pool, self.real.told),  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]  # no published answers here
            self.real.cache,
            _metrics(),
            changes_heard=self.real.changes_heard,
            may_recall=self.real.may_recall,
            authorities_known=self.real.authorities_known,
        )

    async def _wire(self) -> Wire:
        return Wire(self.quick, _no_handler)

    def _hold(self, authority: int, which: int, begins: datetime) -> None:
        made = responder(authority, which, self._sign_seconds if authority == SLOW else None)
        view = made.identity.view
        held = HeldKey(str(which), view, made, begins, begins, view.not_after)
        self._rings[authority].held.insert(0, held)

    def roll_over(self, authority: int, which: int) -> None:
        """Another key of the authority signs from now on; the one before is retired."""
        now = self.loop.clock.now()
        ring = self._rings[authority]
        ring.held = []
        self._hold(authority, which, now - timedelta(seconds=10))
        self.loop.create_task(self.real.keys_changed(self.service))

    def ask(self, octets: bytes, arrived: Callable[[bytes], None]) -> None:
        """Octets of an HTTP request arrive on a connection of their own; `arrived`: with those of the response."""
        connection = WireConnection(self.wire)
        connection.connection_made(_Transport(self.loop, connection, arrived))  # type: ignore[arg-type]
        connection.data_received(octets)

    async def ask_the_long_way(self, encoded: bytes) -> bytes:
        """What aiohttp's edge would answer to a POST: the OCSPResponse."""
        return (await self.words.reply("POST", encoded, encoded, self.loop.clock.now(), lambda: True)).body

    def stop(self) -> None:
        """End its tasks."""
        for task in self.tasks:
            task.cancel()
        self.wire._sweeping.cancel()
        self.loop.run_until_complete(asyncio.gather(*self.tasks, return_exceptions=True))


async def _never(_found: object) -> Responder:
    raise AssertionError("a key list is read")


async def _close(_responder: Responder) -> None:
    """Nothing to let go."""


class World:
    """A loop with its clock, a database and one process that answers from it. `seed`: of everything that is left to
    chance.

    The knobs: `latency` of a message on a line, `work` of a statement, `signing` of the slow key, `waking` of a session
    after a commit (its caller is told after twice that), each the longest it can be, in seconds.
    """

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.clock = Clock()
        self.loop = SimulatedLoop(self.clock, self.chance)
        self.latency = self.work = self.waking = 0.001
        self.signing = 0.01
        self._stack = ExitStack()
        self._stack.enter_context(self.clock.installed())
        self._stack.enter_context(patch("lakthan.store.feed.random", self.chance))
        self.tables = Tables(self.loop, material().authorities, MANY)
        self.server = Server(self.tables, self.loop, lambda: self.upto(self.latency), lambda: self.upto(self.work))
        self._stack.enter_context(patch.object(process_module, "connect", self.server.connect))
        try:
            self.process = Process(self.loop, self.server, lambda: self.upto(self.signing))
            self.loop.go_on(1.0)
        except BaseException:
            self._stack.close()
            raise

    def upto(self, longest: float) -> float:
        """Some time up to that, at least a tenth of it."""
        return longest * self.chance.uniform(0.1, 1.0)

    def authority(self, authority: int) -> AuthorityRecord:
        """As it is on record now."""
        return self.tables.authorities[authority]

    def heal(self) -> None:
        """Every line is as at the beginning."""
        self.latency = self.work = self.waking = 0.001
        self.signing = 0.01
        self.server.refuses = self.server.silent = False
        for connection in list(self.server.connections):
            connection.heal()

    def close(self) -> None:
        """Stop the process and give the clocks back."""
        try:
            self.heal()
            self.process.stop()
            self.loop.close()
        finally:
            self._stack.close()
