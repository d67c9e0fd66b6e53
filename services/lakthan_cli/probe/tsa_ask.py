"""One URL of a time-stamp authority: tokens for every policy and hash of the plan, refusals that must come, and what
all of it shows.

The checks, in the words of findings and metrics: `answers`, `token`, `refusals`, `accuracy`, `speed`, `clock`, `unit`.
What a token is worth is said by `lakthan_cli.tsa.checks`, as in `lakthan tsa request`.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from lakthan.errors import ConfigError
from lakthan_cli.ocsp.checks import Outcome as CheckOutcome
from lakthan_cli.probe.outcome import Report
from lakthan_cli.probe.plan import Plan, TSAPlan
from lakthan_cli.tsa import imprint
from lakthan_cli.tsa.checks import accuracy_words
from lakthan_cli.tsa.stamp import Options, Result, Verdict, ask
from lakthan_cli.tsa.transport import Transport, read_bearer

_NOT_KEPT = Path("a random digest")
_SECOND = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Stamped:
    """One request and what came of it. `refusal`: the failInfo that is right, None when a token is."""

    way: str
    refusal: str | None
    sent: datetime
    received: datetime
    result: Result

    @property
    def failures(self) -> tuple[str, ...]:
        """The failInfo that came, or nothing."""
        return () if self.result.response is None else tuple(self.result.response.fail_info)


async def ask_all(tsa: TSAPlan, policy: str | None, plan: Plan) -> list[Stamped]:
    """All requests of a round under one policy, up to the first that nobody answers.

    Raises `ConfigError` when there is a secret that cannot be read.
    """
    bearer = None if tsa.bearer_file is None else _bearer(tsa.bearer_file)
    timeout_seconds = plan.limits.timeout.total_seconds()
    wanted: list[tuple[str, str | None, str | None]] = [(name, policy, None) for name in tsa.hashes]
    if tsa.refused_hash:
        wanted.append((tsa.refused_hash, policy, "badAlg"))
    # A policy of nobody: under 2.25 every number is its own (ITU-T X.667 §7).
    wanted.append((tsa.hashes[0], f"2.25.{uuid.uuid4().int}", "unacceptedPolicy"))
    found = []
    # One after the other: an authority may bound what one client asks for.
    async with Transport.open(timeout_seconds, tries=2, bearer=bearer) as transport:
        for name, asked_policy, refusal in wanted:
            algorithm = next(each for each in imprint.BY_OID.values() if each.name == name)
            options = Options(tsa.url, algorithm, policy=asked_policy, trust=plan.anchors)
            digest = secrets.token_bytes(algorithm.octets)
            sent = datetime.now(UTC)
            result = await ask(Result(_NOT_KEPT, Verdict.USAGE, url=tsa.url), digest, options, transport)
            way = name if refusal is None else f"{refusal}, asked with {name}"
            found.append(Stamped(way, refusal, sent, datetime.now(UTC), result))
            if result.verdict is Verdict.NO_ANSWER:
                break  # the others would wait in vain as well
    return found


def _bearer(path: Path) -> str:
    try:
        return read_bearer(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the API token {path} cannot be read: {error}") from error


def judge(stamps: Sequence[Stamped], report: Report) -> None:
    """Everything that the replies show."""
    silent = [each for each in stamps if each.result.verdict is Verdict.NO_ANSWER]
    refused = [each for each in stamps if each.refusal is None and each.result.verdict is Verdict.REFUSED]
    bad = [f"{each.way}: {each.result.problem}" for each in (*silent, *refused)]
    if bad:
        todo = "look at /readyz of its admin port: clock, key and database must be fine before it stamps"
        report.failure("answers", f"{len(bad)} of {len(stamps)} requests got no token, or no answer", todo, bad)
    else:
        report.ok("answers", f"{len(stamps)} requests answered")
    tokens = [each for each in stamps if each.result.token is not None and each.refusal is None]
    if tokens:
        _tokens(tokens, report)
    if len(silent) < len(stamps):
        _refusals([each for each in stamps if each.refusal is not None and each not in silent], report)
        report.speed({each.way: (each.result.milliseconds or 0.0) / 1000 for each in stamps if each not in silent})


def _tokens(tokens: Sequence[Stamped], report: Report) -> None:
    checks = [(each, check) for each in tokens if each.result.verification for check in each.result.verification.checks]
    bad = [f"{each.way}: {check.name}: {check.why}" for each, check in checks if check.outcome is CheckOutcome.FAILED]
    if bad:
        todo = "no validator will accept these tokens; `lakthan tsa request` shows one in full"
        report.failure("token", f"{len(bad)} checks of {len(tokens)} tokens fail", todo, bad)
    elif any(check.name == "trust" and check.outcome is CheckOutcome.NOTE for _, check in checks):
        todo = "name the trust anchors: trust in the plan, or --trust"
        report.warning("token", "they verify, but no trust anchor is known", todo)
    else:
        report.ok("token", f"verified: {len(tokens)}")
    serials = [each.result.token.tst_info.serial_number for each in tokens if each.result.token is not None]
    if len(set(serials)) < len(serials):
        report.failure("token", "a serial number came twice", "stop the unit: `lakthan tsa freeze`")
    report.clock(_skews(tokens))
    _accuracy(tokens, report)
    units = [each.result.verification.unit for each in tokens if each.result.verification]
    ends = {unit.name: unit.not_after for unit in units if unit is not None}
    if ends:
        report.ends("unit", ends, "bring in the next unit now (docs/keys.md): without one nothing is stamped")


def _skews(tokens: Sequence[Stamped]) -> dict[str, float]:
    """How far genTime is ahead of our clock, in seconds, beyond what the accuracy and the way there explain."""
    found = []
    for each in tokens:
        if each.result.token is None:
            continue
        info = each.result.token.tst_info
        accuracy = info.accuracy or _SECOND
        if info.gen_time > each.received + accuracy:
            found.append((info.gen_time - accuracy - each.received).total_seconds())
        else:
            found.append(min(0.0, (info.gen_time + accuracy - each.sent).total_seconds()))
    return {"genTime": max(found, key=abs)} if found else {}


def _accuracy(tokens: Sequence[Stamped], report: Report) -> None:
    infos = [each.result.token.tst_info for each in tokens if each.result.token is not None]
    worst = max((info.accuracy for info in infos if info.accuracy is not None), default=None)
    if any(info.accuracy is None for info in infos):
        report.warning(
            "accuracy", "not in every token", "have it written: EN 319 422 §5.2.2 wants one second or better"
        )
    elif worst is not None and worst > _SECOND:
        report.warning("accuracy", f"± {worst.total_seconds():g} s", "EN 319 421 §7.7.2 wants one second or better")
    else:
        report.ok("accuracy", " and ".join(sorted({accuracy_words(info) for info in infos})))


def _refusals(stamps: Sequence[Stamped], report: Report) -> None:
    """A request that deserves no token must get none, and hear why (RFC 3161 §2.4.2)."""
    granted = [f"{each.way}: a token came" for each in stamps if each.result.token is not None]
    other = [
        f"{each.way}: it says {each.result.problem}"
        for each in stamps
        if each.result.token is None and each.refusal not in each.failures
    ]
    if granted:
        todo = "look at hashes and policy of the profile: tokens are given for what proves nothing"
        report.failure("refusals", f"{len(granted)} of {len(stamps)} were granted", todo, [*granted, *other])
    elif other:
        report.warning("refusals", "refused, but with another word", "clients act on the failInfo", other)
    else:
        report.ok("refusals", ", ".join(str(each.refusal) for each in stamps))
