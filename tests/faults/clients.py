"""Clients that never stop asking, and the oracle that judges every single thing they are told.

What an answer must be is looked up in RFC 6960 and RFC 3161 and done by foreign code (pyca/cryptography for OCSP,
rfc3161-client for tokens), never by ours. A refusal in the protocol's own words is no fault here, nor is a connection
that breaks: a wrong answer is, and so is a token or a change that was confirmed and is not there afterwards.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Self

import aiohttp
import rfc3161_client
from asn1crypto import tsp
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509 import ocsp

from faults.truth import History
from lakthan.errors import LakthanError
from support import tsa
from support.pki import Issued
from support.responder import request_for
from support.tsa import failure

# What anybody's client would still wait for.
_PATIENCE = aiohttp.ClientTimeout(total=4)
_AWAY = (aiohttp.ClientError, TimeoutError, OSError)
_SINGLE = {ocsp.OCSPCertStatus.GOOD: "good", ocsp.OCSPCertStatus.REVOKED: "revoked"}


@dataclass
class Heard:
    """What was heard in one run. `refused` and `away` by their words; `wrong` in sentences; `served_at`: when the last
    right answer came, by kind.
    """

    right: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    away: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    served_at: dict[str, float] = field(default_factory=dict)
    tokens: dict[bytes, bytes] = field(default_factory=dict)

    def serve(self, kind: str, sent: float) -> None:
        """A right answer of this kind to a question sent then."""
        self.right[kind] += 1
        self.served_at[kind] = max(sent, self.served_at.get(kind, 0.0))

    def keep(self, serial_number: bytes, token: bytes) -> None:
        """File a token."""
        if serial_number in self.tokens:
            self.wrong.append(f"a serial number came twice: {serial_number.hex()}")
        self.tokens[serial_number] = sha256(token).digest()


@dataclass(frozen=True)
class Judges:
    """What the clients trust. `responders` and `units`: certificates that may sign, those of later keys included."""

    ca: Issued
    responders: list[x509.Certificate]
    root: x509.Certificate
    intermediates: list[x509.Certificate]
    units: list[x509.Certificate]


class OCSPClient:
    """Asks about random certificates; every second time with a nonce, and now and then over a new connection."""

    def __init__(self, heard: Heard, history: History, judges: Judges, certificates: list[Issued]) -> None:
        self._heard = heard
        self._history = history
        self._judges = judges
        self._certificates = certificates
        self._plain = {each.serial_number: request_for(each, judges.ca) for each in certificates}
        # A cached answer is the same octets again: its signature need be verified once, its times always.
        self._verified: set[bytes] = set()

    async def ask(self, session: aiohttp.ClientSession, url: str, number: int) -> None:
        """One question."""
        certificate = random.choice(self._certificates)
        nonce = os.urandom(16) if number % 2 else None
        body = (
            request_for(certificate, self._judges.ca, nonce=nonce) if nonce else self._plain[certificate.serial_number]
        )
        sent, asked_at = time.monotonic(), datetime.now(UTC)
        try:
            async with session.post(url, data=body, timeout=_PATIENCE) as reply:
                answer, http_status = await reply.read(), reply.status
        except _AWAY as error:
            self._heard.away[_words(error)] += 1
            return
        heard = time.monotonic()
        if http_status != 200:
            self._heard.refused[f"HTTP {http_status}"] += 1
            return
        try:
            response = ocsp.load_der_ocsp_response(answer)
        except ValueError:
            self._heard.wrong.append("what came is no OCSPResponse")
            return
        if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            self._heard.refused[response.response_status.name.lower()] += 1
            return
        problems = [*self._form(answer, response, certificate, nonce, asked_at)]
        said = _SINGLE.get(response.certificate_status)
        if said is None or not self._history.could_be(certificate.serial_number, said, sent, heard):  # type: ignore[arg-type]
            problems.append(f"{said} about {certificate.serial_number.hex()[-8:]}, which cannot be")
        self._heard.wrong += problems
        if not problems:
            self._heard.serve("OCSP", sent)

    def _form(
        self,
        answer: bytes,
        response: ocsp.OCSPResponse,
        certificate: Issued,
        nonce: bytes | None,
        asked_at: datetime,
    ) -> list[str]:
        found = []
        if response.serial_number != certificate.certificate.serial_number:
            found.append("an answer about another certificate")
        until = response.next_update_utc
        now = datetime.now(UTC)
        if until is None or until <= asked_at or response.this_update_utc > now:
            found.append(f"an answer outside of its time: {response.this_update_utc} to {until} at {now}")
        if nonce is not None:
            echoed = response.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce
            if echoed != nonce:
                found.append("another nonce than the one that was sent")
        if answer not in self._verified:
            if not any(_signed_by(each, response, now) for each in self._judges.responders):
                found.append("nobody who may has signed this answer")
            elif nonce is None:
                self._verified.add(answer)
        return found


def _signed_by(certificate: x509.Certificate, response: ocsp.OCSPResponse, now: datetime) -> bool:
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc + timedelta(seconds=2):
        return False
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    with suppress(InvalidSignature):
        key.verify(response.signature, response.tbs_response_bytes, ec.ECDSA(SHA256()))
        return True
    return False


class TSAClient:
    """Has random imprints stamped. `true_time`: seconds that true time is ahead of this machine's clock."""

    def __init__(self, heard: Heard, judges: Judges) -> None:
        self._heard = heard
        self.true_time = 0.0
        self._verifiers = [self._verifier(each, judges) for each in judges.units]

    @staticmethod
    def _verifier(unit: x509.Certificate, judges: Judges) -> rfc3161_client.verify.Verifier:
        builder = rfc3161_client.VerifierBuilder().tsa_certificate(unit).add_root_certificate(judges.root)
        for each in judges.intermediates:
            builder = builder.add_intermediate_certificate(each)
        return builder.build()

    async def ask(self, session: aiohttp.ClientSession, url: str, _number: int) -> None:
        """One token."""
        imprint, nonce = os.urandom(32), int.from_bytes(os.urandom(7), "big") + 1
        body = tsa.request_for(imprint, nonce=nonce, cert_req=True)
        headers = {"Content-Type": "application/timestamp-query"}
        sent, earliest = time.monotonic(), self._now()
        try:
            async with session.post(url, data=body, headers=headers, timeout=_PATIENCE) as reply:
                answer, http_status = await reply.read(), reply.status
        except _AWAY as error:
            self._heard.away[_words(error)] += 1
            return
        if http_status != 200:
            self._heard.refused[f"HTTP {http_status}"] += 1
            return
        if len(answer) < 300:
            bits, _ = failure(answer)
            self._heard.refused[" ".join(sorted(bits))] += 1
            return
        problems, serial_number, token = self._judge(answer, imprint, nonce, earliest)
        self._heard.wrong += problems
        self._heard.keep(serial_number, token)
        if not problems:
            self._heard.serve("token", sent)

    def _now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self.true_time)

    def _judge(self, answer: bytes, imprint: bytes, nonce: int, earliest: datetime) -> tuple[list[str], bytes, bytes]:
        response = rfc3161_client.decode_timestamp_response(answer)
        found = []
        if not any(_verifies(each, response, imprint) for each in self._verifiers):
            found.append("no unit that may has signed this token")
        info = response.tst_info
        if info.nonce != nonce:
            found.append("another nonce than the one that was sent")
        accuracy = timedelta(seconds=1)
        if not earliest - accuracy <= info.gen_time <= self._now() + accuracy:
            found.append(f"gen_time {info.gen_time}, which is more than its accuracy away from {earliest}")
        parsed = tsp.TimeStampResp.load(answer)
        serial_number: bytes = (
            parsed["time_stamp_token"]["content"]["encap_content_info"]["content"].parsed["serial_number"].contents
        )
        return found, serial_number, parsed["time_stamp_token"].dump()


def _verifies(verifier: rfc3161_client.verify.Verifier, response: object, imprint: bytes) -> bool:
    with suppress(rfc3161_client.VerificationError):
        return bool(verifier.verify(response, imprint))  # type: ignore[arg-type]
    return False


class Registrar:
    """Changes the status of one certificate after the other: mostly for good, sometimes a hold that is lifted.

    `change(serial_number, what)` does it, and returns when it was confirmed.
    """

    def __init__(
        self,
        heard: Heard,
        history: History,
        certificates: list[Issued],
        change: Callable[[bytes, str], Awaitable[None]],
    ) -> None:
        self._heard = heard
        self._history = history
        self._next = itertools.cycle(certificates)
        self._change = change
        self._held: set[bytes] = set()

    async def go_on(self, pause_seconds: float) -> None:
        """Until cancelled."""
        while True:
            certificate = next(self._next)
            await self.turn(certificate.serial_number)
            await asyncio.sleep(pause_seconds)

    async def turn(self, serial_number: bytes) -> None:
        """One change."""
        if serial_number in self._held:
            what, status = "unhold", "good"
        elif self._history.turns.get(serial_number):
            return
        else:
            what, status = ("hold", "revoked") if random.random() < 0.3 else ("revoke", "revoked")
        asked = time.monotonic()
        turn = self._history.ask(serial_number, status, asked)  # type: ignore[arg-type]
        try:
            await self._change(serial_number, what)
        except (LakthanError, *_AWAY) as error:
            # It may have been done or not; nobody touches this certificate again.
            self._held.discard(serial_number)
            self._heard.away[f"registrar: {_words(error)}"] += 1
            return
        turn.acknowledged = time.monotonic()
        self._heard.serve("change", asked)
        if what == "hold":
            self._held.add(serial_number)
        else:
            self._held.discard(serial_number)


Ask = Callable[[aiohttp.ClientSession, str, int], Awaitable[None]]


class Crowd:
    """Clients at work: `async with Crowd() as crowd: crowd.ask(client.ask, url, clients=4, per_second=100)`."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        for each in ended:
            if isinstance(each, Exception):
                raise each

    def ask(self, ask: Ask, url: str, *, clients: int, per_second: float) -> None:
        """So many clients, each with a connection of its own, that together ask so often."""
        for number in range(clients):
            self._tasks.append(asyncio.create_task(self._go_on(ask, url, number, clients / per_second)))

    def run(self, work: Awaitable[None]) -> None:
        """Something else that goes on."""
        self._tasks.append(asyncio.ensure_future(work))

    async def _go_on(self, ask: Ask, url: str, number: int, pause_seconds: float) -> None:
        # One client in four comes with a new connection each time.
        connector = aiohttp.TCPConnector(force_close=number % 4 == 3)
        async with aiohttp.ClientSession(connector=connector) as session:
            for count in itertools.count(number):
                began = time.monotonic()
                await ask(session, url, count)
                await asyncio.sleep(max(pause_seconds / 10, pause_seconds - (time.monotonic() - began)))


def _words(error: BaseException) -> str:
    """The kind of a failure, without what differs from one to the next."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return "nobody there"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientError | OSError):
        return "connection broke"
    return type(error).__name__
