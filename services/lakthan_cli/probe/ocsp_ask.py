"""One OCSP URL and one authority: all the questions of a round, and what came back, verified.

Questions about the good certificate by POST and GET, with every hash of the plan, with and without a nonce, and once in
every spelling that clients use (`spelling`); about the revoked and the unissued one by POST and GET. What an answer is
worth is said by `lakthan_cli.ocsp.checks`, as in `lakthan ocsp query`.

Refuses to know: what to make of it (`ocsp_checks`).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from lakthan_cli.exchange import TransportError
from lakthan_cli.ocsp.checks import Outcome, Question, Verification, verify
from lakthan_cli.ocsp.message import CertID, OCSPResponse
from lakthan_cli.ocsp.query import response_in
from lakthan_cli.ocsp.request import NONCE_OCTETS, encode
from lakthan_cli.ocsp.transport import Reply, Transport
from lakthan_cli.probe.plan import Authority, Expected, Plan, Subject
from lakthan_cli.probe.spelling import SPELLINGS, in_base64, telling_request

_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Way:
    """How a question is asked. `spelling`: of a GET, None for a POST. `typed`: a POST says its media type."""

    method: str
    hash_name: str
    nonce: bool
    spelling: str | None = None
    typed: bool = True

    def __str__(self) -> str:
        how = "" if self.spelling in (None, "escaped") else f", {self.spelling}"
        untyped = "" if self.typed else ", without a media type"
        return f"{self.method} {self.hash_name}{', nonce' if self.nonce else ''}{how}{untyped}"

    @property
    def odd(self) -> bool:
        """Whether only some clients ask like this."""
        return self.spelling not in (None, "escaped") or not self.typed


@dataclass(frozen=True, slots=True)
class Asked:
    """One question and what came of it. `problem`: why there is no answer at all. `sent`, `received`: by our clock."""

    expected: Expected
    way: Way
    nonce: bytes | None
    sent: datetime
    received: datetime
    problem: str | None = None
    reply: Reply | None = None
    response: OCSPResponse | None = None
    verification: Verification | None = None

    @property
    def said(self) -> str | None:
        """The status in an answer that verifies, or the refusal; None when there is nothing to be believed."""
        if self.verification is not None and self.verification.verified and self.verification.single is not None:
            return self.verification.single.cert_status
        return self.response.status if self.response is not None and self.response.basic is None else None

    @property
    def echoed(self) -> bool:
        """Whether our nonce came back: then the answer was made for this question."""
        checks = self.verification.checks if self.verification is not None else ()
        return any(check.name == "nonce" and check.outcome is Outcome.OK for check in checks)


def ways(authority: Authority, expected: Expected) -> Iterator[Way]:
    """How to ask about one of its certificates."""
    hashes = authority.plan.hashes
    nonces = (False,) if authority.plan.nonce == "none" else (False, True)
    if expected is not Expected.GOOD:
        yield Way("POST", hashes[0], nonce=nonces[-1])
        yield Way("GET", hashes[-1], nonce=False, spelling="escaped")
        return
    for name in hashes:
        for nonce in nonces:
            yield Way("POST", name, nonce=nonce)
            yield Way("GET", name, nonce=nonce, spelling="escaped")
    yield Way("POST", hashes[0], nonce=False, typed=False)
    for spelling in SPELLINGS:
        if spelling != "escaped":
            yield Way("GET", hashes[-1], nonce=nonces[-1], spelling=spelling)


@dataclass(frozen=True, slots=True)
class _Question:
    """A question that is ready to be sent."""

    subject: Subject
    way: Way
    asked: CertID
    request: bytes
    nonce: bytes | None


async def ask_all(url: str, authority: Authority, plan: Plan, transport: Transport) -> list[Asked]:
    """All questions of a round, a few at once. When the first one gets no answer at all, the others are left out.

    Nothing is computed while an answer is awaited, so that the time it took is the responder's.
    """
    questions = [_question(subject, way) for subject in authority.subjects for way in ways(authority, subject.expected)]
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(question: _Question) -> Asked:
        async with gate:
            return await _send(url, question, transport)

    first = await one(questions[0])
    rest = [] if first.reply is None else await asyncio.gather(*(one(each) for each in questions[1:]))
    return [_read(*each, plan) for each in zip([first, *rest], questions, strict=False)]


def _question(subject: Subject, way: Way) -> _Question:
    asked = subject.cert_id(way.hash_name)
    if not way.nonce:
        return _Question(subject, way, asked, encode(asked, None), None)
    if way.method == "GET":
        return _Question(subject, way, asked, *telling_request(asked))
    nonce = secrets.token_bytes(NONCE_OCTETS)
    return _Question(subject, way, asked, encode(asked, nonce), nonce)


async def _send(url: str, question: _Question, transport: Transport) -> Asked:
    way = question.way
    sent = datetime.now(UTC)
    problem, reply = None, None
    try:
        if way.spelling is not None:
            reply = await transport.get_spelled(SPELLINGS[way.spelling](url, in_base64(question.request)))
        elif way.typed:
            reply = await transport.post(url, question.request)
        else:
            reply = await transport.post(url, question.request, media_type=None)
    except TransportError as error:
        problem = str(error)
    return Asked(question.subject.expected, way, question.nonce, sent, datetime.now(UTC), problem, reply)


def _read(asked: Asked, question: _Question, plan: Plan) -> Asked:
    """The same with the message read and verified."""
    if asked.reply is None:
        return asked
    try:
        response = response_in(asked.reply)
    except TransportError as error:
        return replace(asked, problem=str(error))
    if response.basic is None:
        return replace(asked, response=response)
    subject, at = question.subject, asked.received
    wanted = Question(
        subject.certificate, subject.issuer, [question.asked], at, plan.anchors, plan.others, question.nonce
    )
    return replace(asked, response=response, verification=verify(response, wanted))
