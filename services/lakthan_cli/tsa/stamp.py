"""One file's way to its token: digest, request, reply, checks, a file to keep it in.

Promises: every way ends in a `Result` with a verdict; what is kept has been checked as far as it can be: the token is
of this request, and its signature holds when a certificate came along. A token that does not check out is not kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path

from lakthan.errors import ConfigError
from lakthan_cli.exchange import TransportError
from lakthan_cli.ocsp.certificate import Certificate, Unreadable
from lakthan_cli.ocsp.checks import Check, Outcome
from lakthan_cli.tsa import files, request
from lakthan_cli.tsa.checks import Question, Verification, fits, verify
from lakthan_cli.tsa.imprint import Hash, digest_of
from lakthan_cli.tsa.message import TimeStampResp, TimeStampToken, read_request, read_response
from lakthan_cli.tsa.transport import Transport


class Verdict(Enum):
    """What is known in the end, with the exit code that says it."""

    STAMPED = ("stamped", 0)
    VALID = ("valid", 0)
    NOT_VALID = ("not valid", 1)
    REFUSED = ("refused", 2)
    USAGE = ("not done", 3)
    NO_ANSWER = ("no answer", 4)

    def __init__(self, label: str, exit_code: int) -> None:
        self.label = label
        self.exit_code = exit_code


# For several files: the first of these that occurs is the exit code of all.
GRAVEST_FIRST = (3, 1, 2, 4, 0)


@dataclass(frozen=True, slots=True)
class Result:
    """All there is to say about one file. `problem`: why the verdict is neither stamped nor valid."""

    path: Path
    verdict: Verdict
    problem: str | None = None
    url: str | None = None
    milliseconds: float | None = None
    tries: int | None = None
    response: TimeStampResp | None = None
    token: TimeStampToken | None = None
    verification: Verification | None = None
    saved: Path | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """How to ask. `trust`: the anchors, None when nobody said whom to trust."""

    url: str
    algorithm: Hash
    policy: str | None = None
    nonce: bool = True
    certificates: bool = True
    embed: bool = False
    replace: bool = False
    trust: Sequence[Certificate] | None = None


async def stamp(path: Path, target: Path, options: Options, transport: Transport) -> Result:
    """Have one file stamped, and keep what comes in `target`."""
    base = Result(path, Verdict.USAGE, url=options.url)
    try:
        if not options.replace:
            files.refuse_to_replace(target)
        digest = await asyncio.to_thread(digest_of, path, options.algorithm)
        result = await ask(base, digest, options, transport)
        if result.verdict is not Verdict.STAMPED or result.response is None or result.token is None:
            return result
        if options.embed:
            await asyncio.to_thread(files.embed, target, path, result.token, replace=options.replace)
        else:
            content = files.converted(result.response, files.TOKEN if target.suffix == files.TOKEN else files.RESPONSE)
            files.write(target, content, replace=options.replace)
    except ConfigError as error:
        return replace(base, problem=str(error))
    return replace(result, saved=target)


async def ask(base: Result, digest: bytes, options: Options, transport: Transport) -> Result:
    """Have a digest stamped, and check what comes; nothing is kept."""
    nonce = request.new_nonce() if options.nonce else None
    encoded = request.encode(
        digest, options.algorithm, policy=options.policy, nonce=nonce, cert_req=options.certificates
    )
    try:
        reply = await transport.post(options.url, encoded)
        response = read_response(reply.body)
    except TransportError as error:
        return replace(base, verdict=Verdict.NO_ANSWER, problem=str(error))
    except Unreadable as error:
        return replace(base, verdict=Verdict.NO_ANSWER, problem=f"what came back is {error}")
    base = replace(base, milliseconds=reply.milliseconds, tries=reply.tries, response=response, token=response.token)
    if not response.granted or response.token is None:
        return replace(base, verdict=Verdict.REFUSED, problem=f"the authority says {response.words}")
    question = Question(datetime.now(UTC), digest, read_request(encoded), options.trust)
    verification = judged(response.token, question, certificates=options.certificates)
    notes = [*_response_checks(response)]
    if problem := reply.media_type_problem:
        notes.append(Check("media_type", Outcome.NOTE, problem))
    verification = replace(verification, checks=(*verification.checks, *notes))
    failed = verification.first_failure
    verdict = Verdict.NOT_VALID if failed else Verdict.STAMPED
    return replace(base, verdict=verdict, problem=failed or None, verification=verification)


def judged(token: TimeStampToken, question: Question, *, certificates: bool) -> Verification:
    """A token that just came. Without its certificate only what it says can be compared with what was asked."""
    if certificates:
        return verify(token, question)
    unknown = Check("signature", Outcome.NOTE, "not checked: the unit's certificate was not asked for (--no-certs)")
    return Verification((*fits(token.tst_info, question), unknown), None)


def _response_checks(response: TimeStampResp) -> Sequence[Check]:
    """RFC 3161 §2.4.2 on the frame round the token."""
    found = []
    if response.encoding_problem is not None:
        found.append(Check("response", Outcome.FAILED, response.encoding_problem))
    if response.status == "grantedWithMods":
        found.append(Check("response", Outcome.NOTE, f"not exactly as asked: {response.words}"))
    if response.fail_info:
        found.append(Check("response", Outcome.FAILED, f"granted, and a failInfo all the same: {response.words}"))
    return found
