"""What the answers of one OCSP URL about one authority show: a finding for each check, and the figures.

The checks, in the words of findings and metrics: `answers`, `spellings`, `good`, `revoked`, `unissued`, `verification`,
`nonce`, `caching`, `freshness`, `speed`, `clock`, `responder`, `certificates`.
"""

from __future__ import annotations

from collections.abc import Sequence

from lakthan_cli.ocsp import extensions
from lakthan_cli.ocsp.checks import Outcome as CheckOutcome
from lakthan_cli.ocsp.extensions import moment
from lakthan_cli.probe.ocsp_ask import Asked
from lakthan_cli.probe.ocsp_http import judge_caching, skews
from lakthan_cli.probe.outcome import Report
from lakthan_cli.probe.plan import Authority, Expected

_LEFT_OF_VALIDITY = 0.1
_SEE = "see the others first"
# What may be said of a certificate that was never issued (RFC 6960 §2.2, RFC 9919 §3.2.3).
_OF_UNISSUED = ("unknown", "revoked", "unauthorized")
_TODO = {
    Expected.GOOD: "look at `lakthan status` of it; if it was revoked on purpose, name another one in the plan",
    Expected.REVOKED: "look at `lakthan status` of it at once: clients rely on a revoked certificate. Perhaps a cache "
    "in front keeps too long, or a copy of the database is behind",
    Expected.UNISSUED: "a certificate that the CA never issued must not be good: non_issued of the responder",
}


def judge(authority: Authority, answers: Sequence[Asked], report: Report) -> None:
    """Everything that the answers show."""
    _answers(answers, report)
    if any(each.response is not None for each in answers):
        _spellings(answers, report)
        for expected in dict.fromkeys(each.expected for each in answers):
            _status(expected, authority, [each for each in answers if each.expected is expected], report)
        _verification(answers, report)
        _nonce(authority, answers, report)
        judge_caching(answers, report)
        _freshness(answers, report)
        came = [(f"{each.way}, {each.expected.value}", each.reply) for each in answers if each.reply is not None]
        report.speed({how: reply.milliseconds / 1000 for how, reply in came})
        report.clock(skews(answers))
        _responder(answers, report)
    _certificates(authority, report)


def _answers(answers: Sequence[Asked], report: Report) -> None:
    """Whether anything comes at all when it is asked as every client asks."""
    usual = [each for each in answers if not each.way.odd]
    bad = [f"{each.way}, {each.expected.value}: {problem}" for each in usual if (problem := _no_answer(each))]
    if bad:
        todo = "look whether it runs and is reached: its log, /readyz of its admin port, the proxy in front of it"
        report.failure("answers", f"{len(bad)} of {len(usual)} questions got no answer", todo, bad)
    else:
        report.ok("answers", f"{len(usual)} questions answered")


def _no_answer(asked: Asked) -> str | None:
    if asked.problem is not None or asked.response is None:
        return asked.problem
    fine = ("successful", "unauthorized") if asked.expected is Expected.UNISSUED else ("successful",)
    return None if asked.response.status in fine else f"the responder says {asked.response.status}"


def _spellings(answers: Sequence[Asked], report: Report) -> None:
    """Whether what only some clients send comes through as well."""
    odd = [each for each in answers if each.way.odd]
    bad = [f"{each.way}: {_whatever_is_wrong(each)}" for each in odd if each.said != "good"]
    if not odd:
        return
    if not bad:
        report.ok("spellings", f"{len(odd)} unusual ways to ask come through")
    elif any(each.said == "good" for each in answers if not each.way.odd):
        todo = "let proxy, ingress and CDN leave paths as they are: nginx merge_slashes off, no rewriting, no decoding"
        report.failure("spellings", f"{len(bad)} of {len(odd)} unusual ways to ask do not come through", todo, bad)
    else:
        report.warning("spellings", "not known: nothing is answered as it should be", _SEE)


def _whatever_is_wrong(asked: Asked) -> str:
    if problem := _no_answer(asked):
        return problem
    if asked.verification is not None and not asked.verification.verified:
        return asked.verification.first_failure or "it does not verify"
    return f"it says {asked.said}"


def _status(expected: Expected, authority: Authority, answers: Sequence[Asked], report: Report) -> None:
    believed = {each.said for each in answers if not each.way.odd} - {None}
    said = " and ".join(sorted(str(each) for each in believed))
    wanted: tuple[str, ...] = (expected.value,)
    if expected is Expected.UNISSUED:
        wanted = (authority.plan.non_issued,) if authority.plan.non_issued else _OF_UNISSUED
    if not believed:
        report.warning(expected.value, "not known: no answer about it verifies", _SEE)
    elif not believed <= set(wanted):
        report.failure(expected.value, f"the answer is {said}; right is {' or '.join(wanted)}", _TODO[expected])
    elif expected is Expected.UNISSUED and not all(_never_issued(each) for each in answers if each.said == "revoked"):
        report.warning(
            expected.value, "revoked, as if it had been issued", "say so by extendedRevoke (RFC 6960 §4.4.8)"
        )
    else:
        report.ok(expected.value, said)


def _never_issued(asked: Asked) -> bool:
    basic = asked.response and asked.response.basic
    return bool(basic and extensions.find(basic.extensions, extensions.EXTENDED_REVOKE))


def _verification(answers: Sequence[Asked], report: Report) -> None:
    """Every check that `lakthan ocsp query` makes: CertID, signature, delegation, times, extensions."""
    judged = [(each, each.verification) for each in answers if each.verification is not None]
    checks = [(each, check) for each, verification in judged for check in verification.checks]
    bad = [
        f"{each.way}, {each.expected.value}: {check.name}: {check.why}"
        for each, check in checks
        if check.outcome is CheckOutcome.FAILED
    ]
    if bad:
        todo = "clients refuse these answers; `lakthan ocsp query` shows one in full"
        report.failure("verification", f"{len(bad)} checks of {len(judged)} answers fail", todo, bad)
    elif any(check.name == "trust" and check.outcome is CheckOutcome.NOTE for _, check in checks):
        todo = "name the trust anchors: trust in the plan, or --trust"
        report.warning("verification", "the issuer is believed as it is: no trust anchor is known", todo)
    elif judged:
        report.ok("verification", f"{len(judged)} answers verify")


def _nonce(authority: Authority, answers: Sequence[Asked], report: Report) -> None:
    with_nonce = [each for each in answers if each.nonce is not None and each.verification is not None]
    if not with_nonce:
        return
    back = sum(1 for each in with_nonce if each.echoed)
    said = f"{back} of {len(with_nonce)} came back"
    if authority.plan.nonce == "required" and back < len(with_nonce):
        todo = "some clients refuse answers without theirs: look at the profile, and at caches in front of POST"
        report.failure("nonce", said, todo)
    elif 0 < back < len(with_nonce):
        report.warning("nonce", said, "the processes behind the URL differ: look whether one is an old one")
    else:
        report.ok("nonce", said)


def _freshness(answers: Sequence[Asked], report: Report) -> None:
    singles = [each.verification.single for each in answers if each.verification and each.verification.single]
    spans = [(each.next_update, each.this_update) for each in singles if each.next_update is not None]
    if not spans:
        return
    end, begin = min(spans)
    report.outcome.next_updates[report.url, report.subject] = end
    said = f"{moment(begin)} to {moment(end)}"
    if end - report.now < (end - begin) * _LEFT_OF_VALIDITY:
        todo = "look whether answers are still made: the publisher, or the CRL that they come from"
        report.warning("freshness", f"nearly at its end: {said}", todo)
    else:
        report.ok("freshness", said)


def _responder(answers: Sequence[Asked], report: Report) -> None:
    signers = [each.verification.signer for each in answers if each.verification and each.verification.signer]
    if signers:
        ends = {each.name: each.not_after for each in signers}
        report.ends("responder", ends, "have it renewed now (docs/keys.md): without it nothing can be answered")


def _certificates(authority: Authority, report: Report) -> None:
    """Whether the plan itself lasts: an expired certificate proves nothing."""
    ending = [
        f"{each.expected.value}: {each.certificate.name}, until {moment(each.certificate.not_after)}"
        for each in authority.subjects
        if each.certificate is not None and each.certificate.not_after - report.now < report.limits.ends_warning
    ]
    if ending:
        todo = "name others in the plan: responders may forget what has expired"
        report.warning("certificates", f"{len(ending)} of the plan end soon, or have ended", todo, ending)
