"""One certificate's way: find its issuer, find its responders, ask them in order, verify what they say.

Promises: every way ends in a `Result` with a verdict; no answer is a verdict too. The next responder is asked when one
gives no answer, or one that does not verify.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import Enum
from http import HTTPStatus
from pathlib import Path

from lakthan.errors import LakthanError
from lakthan_cli.exchange import TransportError, http_words
from lakthan_cli.ocsp.certificate import Certificate, Unreadable, parse_certificates, read_certificates
from lakthan_cli.ocsp.checks import Check, Outcome, Question, Verification, verify
from lakthan_cli.ocsp.message import OCSPResponse, read_response
from lakthan_cli.ocsp.request import NONCE_OCTETS, cert_id, encode, every_cert_id
from lakthan_cli.ocsp.transport import Reply, Transport

_BESIDE = ("ca.pem", "chain.pem")


class Verdict(Enum):
    """What is known in the end, with the exit code that says it."""

    GOOD = ("good", 0)
    REVOKED = ("revoked", 1)
    UNKNOWN = ("unknown", 2)
    NOT_ASKED = ("not asked", 3)
    NO_ANSWER = ("no answer", 4)
    NOT_VERIFIED = ("not verified", 4)

    def __init__(self, label: str, exit_code: int) -> None:
        self.label = label
        self.exit_code = exit_code


# For several certificates: the first of these that occurs is the exit code of all.
GRAVEST_FIRST = (3, 4, 1, 2, 0)
_BY_STATUS = {"good": Verdict.GOOD, "revoked": Verdict.REVOKED, "unknown": Verdict.UNKNOWN}


class NotAsked(LakthanError):
    """Something is missing before anybody can be asked; the message says what to give."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A responder that was asked in vain, and why in vain."""

    url: str
    problem: str


@dataclass(frozen=True, slots=True)
class Result:
    """All there is to say about one certificate. `problem`: why the verdict is neither good, revoked nor unknown."""

    path: Path
    certificate: Certificate
    verdict: Verdict
    problem: str | None = None
    issuer: Certificate | None = None
    issuer_from: str | None = None
    url: str | None = None
    method: str | None = None
    milliseconds: float | None = None
    response: OCSPResponse | None = None
    verification: Verification | None = None
    attempts: tuple[Attempt, ...] = ()


@dataclass(frozen=True, slots=True)
class Options:
    """How to ask. `issuer`, `trust`: certificates that were given, None when not. `at`: None for now."""

    issuer: Sequence[Certificate] | None = None
    trust: Sequence[Certificate] | None = None
    url: str | None = None
    hash_name: str = "sha256"
    nonce: bool = True
    require_nonce: bool = False
    method: str = "POST"
    at: datetime | None = None


@dataclass(slots=True)
class Asker:
    """Asks about certificates. What caIssuers URLs gave is kept, as certificates of one run share their issuers."""

    options: Options
    transport: Transport
    _fetched: dict[str, list[Certificate]] = field(default_factory=dict)

    async def ask(self, path: Path, certificates: Sequence[Certificate]) -> Result:
        """The status of the first of the certificates; the others, of the same file, may be its issuers."""
        certificate = certificates[0]
        unanswered = Result(path, certificate, Verdict.NOT_ASKED)
        try:
            issuer, issuer_from = await self._issuer(path, certificates)
            others = [*certificates[1:], *(self.options.issuer or beside(path))]
        except LakthanError as error:
            return replace(unanswered, problem=str(error))
        except TransportError as error:
            return replace(unanswered, verdict=Verdict.NO_ANSWER, problem=str(error))
        base = replace(unanswered, issuer=issuer, issuer_from=issuer_from, method=self.options.method)
        urls = (self.options.url,) if self.options.url else certificate.ocsp_urls
        attempts: list[Attempt] = []
        in_vain = replace(base, problem="the certificate names no OCSP responder: give one with --url")
        for url in urls:
            try:
                return replace(await self._once(replace(base, url=url), url, issuer, others), attempts=tuple(attempts))
            except _InVain as error:
                attempts.append(Attempt(url, str(error)))
                # Of several failures, the one that brought most is shown.
                if _rank(error.result) > _rank(in_vain):
                    in_vain = error.result
        return replace(in_vain, attempts=tuple(attempts))

    async def _once(self, base: Result, url: str, issuer: Certificate, others: Sequence[Certificate]) -> Result:
        options = self.options
        asked = cert_id(base.certificate, issuer, options.hash_name)
        nonce = secrets.token_bytes(NONCE_OCTETS) if options.nonce else None
        request = encode(asked, nonce)
        send = self.transport.get if options.method == "GET" else self.transport.post
        try:
            reply = await send(url, request)
            response = response_in(reply)
        except TransportError as error:
            raise _InVain(replace(base, verdict=Verdict.NO_ANSWER, problem=str(error))) from error
        base = replace(base, response=response, milliseconds=reply.milliseconds)
        question = Question(
            base.certificate,
            issuer,
            [asked],
            options.at or datetime.now(UTC),
            options.trust,
            others,
            nonce,
            options.require_nonce,
        )
        result = judged(base, response, question, hash_name=options.hash_name)
        if result.verification is not None and (problem := reply.media_type_problem):
            checks = (*result.verification.checks, Check("media_type", Outcome.NOTE, problem))
            result = replace(result, verification=replace(result.verification, checks=checks))
        if result.problem is not None:
            raise _InVain(result)
        return result

    async def _issuer(self, path: Path, certificates: Sequence[Certificate]) -> tuple[Certificate, str]:
        certificate = certificates[0]
        if self.options.issuer is not None:
            return given_issuer(certificate, self.options.issuer)
        problems = []
        for url in certificate.ca_issuers_urls:
            try:
                for each in await self._fetch(url):
                    if certificate.signed_by(each):
                        return each, url
                problems.append(f"{url}: what is there did not sign the certificate")
            except (TransportError, Unreadable) as error:
                problems.append(f"{url}: {error}")
        found = found_beside(path, certificates)
        if found is not None:
            return found
        if problems:
            raise TransportError(f"its issuer cannot be had; give it with --issuer. {'; '.join(problems)}")
        raise NotAsked(f"its issuer is not known: give it with --issuer, or put it beside as {' or '.join(_BESIDE)}")

    async def _fetch(self, url: str) -> list[Certificate]:
        if url not in self._fetched:
            self._fetched[url] = parse_certificates(await self.transport.fetch(url))
        return self._fetched[url]


def verify_file(path: Path, certificates: Sequence[Certificate], response: OCSPResponse, options: Options) -> Result:
    """The verdict of an answer that somebody kept. No network. Raises `NotAsked` when the issuer is not known."""
    certificate = certificates[0]
    if options.issuer is not None:
        issuer, issuer_from = given_issuer(certificate, options.issuer)
    elif (found := found_beside(path, certificates)) is not None:
        issuer, issuer_from = found
    else:
        raise NotAsked(f"the issuer of {path} is not known: give it with --issuer")
    base = Result(path, certificate, Verdict.NO_ANSWER, None, issuer, issuer_from, response=response)
    others = [*certificates[1:], *(options.issuer or beside(path))]
    at = options.at or datetime.now(UTC)
    question = Question(certificate, issuer, every_cert_id(certificate, issuer), at, options.trust, others)
    return judged(base, response, question)


def judged(base: Result, response: OCSPResponse, question: Question, *, hash_name: str = "") -> Result:
    """The result of an answer: its status when it verifies, else what is wrong with it."""
    base = replace(base, response=response)
    if response.basic is None:
        hint = ""
        if response.status == "unauthorized" and hash_name not in ("", "sha1"):
            hint = "; some responders know their issuers only by SHA-1: try --hash sha1"
        return replace(base, verdict=Verdict.NO_ANSWER, problem=f"the responder says {response.status}{hint}")
    verification = verify(response, question)
    base = replace(base, verification=verification)
    if verification.single is None or not verification.verified:
        return replace(base, verdict=Verdict.NOT_VERIFIED, problem=verification.first_failure)
    return replace(base, verdict=_BY_STATUS[verification.single.cert_status])


def given_issuer(certificate: Certificate, given: Sequence[Certificate]) -> tuple[Certificate, str]:
    """The one of the given certificates that signed it. Raises `NotAsked`."""
    for each in given:
        if certificate.signed_by(each):
            return each, "--issuer"
    names = ", ".join(each.name for each in given)
    raise NotAsked(f"no certificate of --issuer signed {certificate.name}; given are {names}")


def beside(path: Path) -> list[Certificate]:
    """The certificates in the files beside it that usually hold its issuers."""
    return [each for name in _BESIDE if (file := path.parent / name).is_file() for each in read_certificates(file)]


def found_beside(path: Path, certificates: Sequence[Certificate]) -> tuple[Certificate, str] | None:
    """The issuer among the certificates of the same file and of the files beside it, and where it was."""
    for each in certificates[1:]:
        if certificates[0].signed_by(each):
            return each, str(path)
    for name in _BESIDE:
        file = path.parent / name
        if file.is_file():
            for each in read_certificates(file):
                if certificates[0].signed_by(each):
                    return each, str(file)
    return None


def response_in(reply: Reply) -> OCSPResponse:
    """The message in the reply. A refusal counts with any HTTP status, an answer only with 200.

    Raises `TransportError`.
    """
    try:
        response = read_response(reply.body)
    except Unreadable as error:
        if reply.http_status != HTTPStatus.OK:
            raise TransportError(f"the server says {http_words(reply.http_status)}") from error
        raise TransportError(f"what came back is {error}") from error
    if response.basic is not None and reply.http_status != HTTPStatus.OK:
        raise TransportError(f"an answer came with {http_words(reply.http_status)}")
    return response


class _InVain(Exception):
    """A responder did not help; `result` is what would be said if it were the last."""

    def __init__(self, result: Result) -> None:
        super().__init__(result.problem)
        self.result = result


def _rank(result: Result) -> int:
    """How far it came: not asked, no connection, a refusal, an answer that does not verify."""
    asked = result.verdict is not Verdict.NOT_ASKED
    return asked + (result.response is not None) + (result.verification is not None)
