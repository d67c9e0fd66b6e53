"""What an answer is worth: every check of RFC 6960 §3.2, one line each, each with its reason.

Promises: an answer counts only when no check fails (`Verification.verified`). A `note` is something that a person
should know and that the standards leave to the client: no nonce came back, nobody checked the responder's own status.

Refuses to know: the clock (`Question.at`), files and the network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from lakthan_cli.ocsp import extensions, signature, trust
from lakthan_cli.ocsp.certificate import Certificate, Unreadable, name_text, same_name
from lakthan_cli.ocsp.message import BasicResponse, CertID, Extension, OCSPResponse, SingleResponse, repeated

SKEW = timedelta(minutes=5)
_ID_KP_OCSP_SIGNING = "1.3.6.1.5.5.7.3.9"
# What a responder's certificate may hold critical: basicConstraints, keyUsage, extendedKeyUsage, subjectAltName,
# certificatePolicies, nocheck.
_HEEDED = frozenset({"2.5.29.19", "2.5.29.15", "2.5.29.37", "2.5.29.17", "2.5.29.32", "1.3.6.1.5.5.7.48.1.5"})


class Outcome(Enum):
    """How a check went."""

    OK = "ok"
    NOTE = "note"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Check:
    """One check. `name`: for machines, one of a fixed set (docs/commands.md). `why`: for people."""

    name: str
    outcome: Outcome
    why: str


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked and what is known without the answer.

    `certificate`: None when only its serial number is known. `cert_ids`: each of them names it. `anchors`: None when
    nobody said whom to trust. `others`: CA certificates that may link the issuer to an anchor. `nonce`: what was sent,
    None for nothing.
    """

    certificate: Certificate | None
    issuer: Certificate
    cert_ids: Sequence[CertID]
    at: datetime
    anchors: Sequence[Certificate] | None = None
    others: Sequence[Certificate] = ()
    nonce: bytes | None = None
    require_nonce: bool = False


@dataclass(frozen=True, slots=True)
class Verification:
    """What came of it. `single`: the part of the answer about the certificate. `signer`: who signed the answer."""

    checks: tuple[Check, ...]
    single: SingleResponse | None
    signer: Certificate | None

    @property
    def verified(self) -> bool:
        """True when the answer may be believed."""
        return self.single is not None and all(check.outcome is not Outcome.FAILED for check in self.checks)

    @property
    def first_failure(self) -> str:
        """The reason of the first check that failed."""
        return next((check.why for check in self.checks if check.outcome is Outcome.FAILED), "")


def verify(response: OCSPResponse, question: Question) -> Verification:
    """Check a successful response against what was asked. Raises `ValueError` for one that is not successful."""
    basic = response.basic
    if basic is None:
        raise ValueError(f"there is nothing to verify in an answer that says {response.status}")
    single, about = _single(basic, question)
    signer, made = _signer(basic, question)
    checks = [
        *_certificate(question),
        *_trust(question),
        _judge("encoding", response.encoding_problem, "DER"),
        *made,
        about,
    ]
    if single is not None:
        checks += _times(basic, single, question.at)
        checks += _history(single, question)
    checks += [*_nonce(basic, question), _extensions(basic)]
    return Verification(tuple(checks), single, signer)


def _judge(name: str, problem: str | None, fine: str) -> Check:
    return Check(name, Outcome.OK, fine) if problem is None else Check(name, Outcome.FAILED, problem)


def _certificate(question: Question) -> Iterator[Check]:
    if question.certificate is not None:
        problem = None
        if not question.certificate.signed_by(question.issuer):
            problem = f"{question.issuer.name} did not sign the certificate: an answer about it says nothing"
        yield _judge("certificate", problem, "signed by its issuer")


def _trust(question: Question) -> Iterator[Check]:
    issuer, at = question.issuer, question.at
    yield _judge("issuer", trust.flaw(issuer, at), f"a CA, until {extensions.moment(issuer.not_after)}")
    if question.anchors is None:
        yield Check("trust", Outcome.NOTE, "nobody said whom to trust: the issuer is believed as it is (see --trust)")
        return
    found, problem = trust.path(issuer, question.anchors, question.others, at)
    yield _judge("trust", problem, "issued under " + " under ".join(each.name for each in found))


def _single(basic: BasicResponse, question: Question) -> tuple[SingleResponse | None, Check]:
    """The SingleResponse about the certificate (RFC 6960 §3.2, 1)."""
    fitting = [single for single in basic.responses if single.cert_id in question.cert_ids]
    if not fitting:
        told = "; ".join(sorted({_difference(single.cert_id, question.cert_ids) for single in basic.responses}))
        return None, Check("cert_id", Outcome.FAILED, f"the answer is about something else: {told or 'nothing'}")
    facts = {(each.cert_status, each.revocation_time, each.revocation_reason) for each in fitting}
    if len(facts) > 1:
        return None, Check("cert_id", Outcome.FAILED, "the answer says two different things about the certificate")
    # RFC 9919 §3.2.1: one answer may carry the same certificate under two hash algorithms.
    newest = max(fitting, key=lambda single: single.this_update)
    return newest, Check("cert_id", Outcome.OK, "issuerNameHash, issuerKeyHash and serialNumber are as asked")


def _difference(found: CertID, asked: Sequence[CertID]) -> str:
    same_hash = [each for each in asked if each.hash_algorithm == found.hash_algorithm]
    if not same_hash:
        return "its CertID has another hash algorithm than the request"
    parts = {"issuerNameHash", "issuerKeyHash", "serialNumber"}
    for each in same_hash:
        parts &= {
            name
            for name, same in (
                ("issuerNameHash", each.issuer_name_hash == found.issuer_name_hash),
                ("issuerKeyHash", each.issuer_key_hash == found.issuer_key_hash),
                ("serialNumber", each.serial_number == found.serial_number),
            )
            if not same
        }
    return f"another {' and '.join(sorted(parts)) or 'combination'}"


def _signer(basic: BasicResponse, question: Question) -> tuple[Certificate | None, list[Check]]:
    """Whoever signed, and whether that may speak for the issuer (RFC 6960 §3.2, 2 to 4, and §4.2.2.2)."""
    issuer = question.issuer
    named = [each for each in (issuer, *basic.certs) if _is_named(each, basic)]
    if not named:
        problem = (
            "neither the issuer nor a certificate in the answer is the responder that it names: "
            + (name_text(basic.responder_name) if basic.responder_name is not None else "")
            + (f"key hash {basic.responder_key_hash.hex()}" if basic.responder_key_hash is not None else "")
        )
        return None, [Check("responder_id", Outcome.FAILED, problem)]
    problems = [
        signature.problem(each.public_key, basic.signature_algorithm, basic.signature, basic.tbs) for each in named
    ]
    at = problems.index(None) if None in problems else 0
    signer = named[at]
    how = "byKey" if basic.responder_key_hash is not None else "byName"
    label = signature.label(basic.signature_algorithm) if problems[at] is None else "?"
    checks = [
        Check("responder_id", Outcome.OK, how),
        _judge("signature", problems[at], label),
        _judge("algorithm", signature.weakness(signer.public_key, basic.signature_algorithm), label),
    ]
    is_issuer = same_name(signer.subject, issuer.subject) and signer.public_key == issuer.public_key
    return signer, checks + list(_entitled(signer, question, is_issuer=is_issuer))


def _is_named(certificate: Certificate, basic: BasicResponse) -> bool:
    if basic.responder_key_hash is not None:
        digest = hashlib.sha1(certificate.key_bits, usedforsecurity=False).digest()
        return digest == basic.responder_key_hash
    return basic.responder_name is not None and same_name(certificate.subject, basic.responder_name)


def _entitled(signer: Certificate, question: Question, *, is_issuer: bool) -> Iterator[Check]:
    # RFC 5280 §4.2.1.3: a key with a keyUsage signs what is neither certificate nor CRL only with one of these bits.
    usage = signer.key_usage
    may_sign = usage is None or bool(usage & {"digital_signature", "non_repudiation"})
    unfit = None if may_sign else f"the keyUsage of {signer.name} does not allow it to sign answers"
    fine = "digitalSignature" if usage else "not restricted"
    if is_issuer:
        yield Check("delegation", Outcome.OK, "the issuer signs its answers itself")
        yield _judge("key_usage", unfit, fine)
        return
    foreign = None
    if not signer.signed_by(question.issuer):
        foreign = f"{signer.name} was not issued by {question.issuer.name}, and so cannot speak for it"
    elif weak := signature.weakness(question.issuer.public_key, signer.signature_algorithm):
        foreign = f"the responder's certificate is signed with a broken algorithm: {weak}"
    yield _judge("delegation", foreign, "to a responder whose certificate the issuer itself issued")
    delegated = _ID_KP_OCSP_SIGNING in signer.extended_key_usage
    no_purpose = (
        None if delegated else f"no id-kp-OCSPSigning in the certificate of {signer.name}: it is no responder's"
    )
    yield _judge("extended_key_usage", no_purpose, "id-kp-OCSPSigning")
    yield _judge("key_usage", unfit, fine)
    until = f"until {extensions.moment(signer.not_after)}"
    yield _judge("responder_validity", trust.out_of_force(signer, question.at), until)
    if signer.no_check:
        yield Check("responder_status", Outcome.OK, "nocheck: the CA vouches for it until its end")
    else:
        yield Check("responder_status", Outcome.NOTE, "no nocheck, and whether it is revoked is not checked here")
    if unheeded := signer.critical - _HEEDED:
        why = f"critical in the responder's certificate, and not known here: {', '.join(sorted(unheeded))}"
        yield Check("responder_extensions", Outcome.FAILED, why)


def _times(basic: BasicResponse, single: SingleResponse, at: datetime) -> Iterator[Check]:
    """RFC 6960 §3.2, 5 and 6, and §4.2.2.1. Clocks may differ by `SKEW`."""
    this_update, next_update, produced_at = single.this_update, single.next_update, basic.produced_at
    shown = extensions.moment
    problem = None
    if produced_at > at + SKEW:
        problem = f"{shown(produced_at)} is in the future of {shown(at)}"
    yield _judge("produced_at", problem, shown(produced_at))
    problem = None
    if this_update > at + SKEW:
        problem = f"{shown(this_update)} is in the future of {shown(at)}"
    elif this_update > produced_at + SKEW:
        problem = f"{shown(this_update)} is later than producedAt, {shown(produced_at)}"
    yield _judge("this_update", problem, shown(this_update))
    problem, fine = None, "not set: newer news is always to be had" if next_update is None else shown(next_update)
    if next_update is None:
        # "newer revocation information is available all the time": then this must be of now.
        if at > this_update + SKEW:
            problem = f"not set, and thisUpdate, {shown(this_update)}, is not of now: ask again"
    elif next_update < this_update:
        problem = f"{shown(next_update)} is before thisUpdate, {shown(this_update)}"
    elif next_update < at - SKEW:
        problem = f"stale: there was to be a newer answer by {shown(next_update)}"
    yield _judge("next_update", problem, fine)


def _history(single: SingleResponse, question: Question) -> Iterator[Check]:
    """Whether an answer about an expired certificate means anything, and whether the responder knows this very one."""
    certificate = question.certificate
    if certificate is None:
        return
    try:
        extension = extensions.find(single.extensions, extensions.CERT_HASH)
        if extension is not None:
            name, digest = extensions.cert_hash(extension)
            fits = name in hashlib.algorithms_available and hashlib.new(name, certificate.encoded).digest() == digest
            yield _judge("cert_hash", None if fits else "the answer is about another certificate", name)
        cutoff = extensions.find(single.extensions, extensions.ARCHIVE_CUTOFF)
        if certificate.not_after < question.at:
            if cutoff is not None and extensions.generalized_time(cutoff) <= certificate.not_after:
                why = "expired, and the responder still keeps its status (archiveCutoff)"
            else:
                why = "expired, and the answer does not say that the status of expired certificates is kept"
            yield Check("expired", Outcome.NOTE, f"the certificate has {why}")
    except Unreadable as error:
        yield Check("extensions", Outcome.FAILED, f"a singleExtension is {error}")


def _nonce(basic: BasicResponse, question: Question) -> Iterator[Check]:
    found = extensions.find(basic.extensions, extensions.NONCE)
    if question.nonce is None:
        if found is not None:
            yield Check("nonce", Outcome.NOTE, "there is one in the answer, and it is not known what was asked")
    elif found is None:
        outcome = Outcome.FAILED if question.require_nonce else Outcome.NOTE
        yield Check("nonce", outcome, "sent, and it did not come back: the answer may be one made earlier")
    else:
        same = extensions.nonce_octets(found) == question.nonce
        problem = None if same else "not the one that was sent: the answer is to somebody else's question"
        yield _judge("nonce", problem, f"{len(question.nonce)} octets, as sent")


def _extensions(basic: BasicResponse) -> Check:
    """RFC 6960 §4.4: an unknown critical extension spoils an answer; none may occur twice."""
    lists: list[tuple[tuple[Extension, ...], frozenset[str]]] = [
        (basic.extensions, extensions.UNDERSTOOD_IN_RESPONSE),
        *((single.extensions, extensions.UNDERSTOOD_IN_SINGLE) for single in basic.responses),
    ]
    unknown = [
        each.oid for found, understood in lists for each in found if each.critical and each.oid not in understood
    ]
    if unknown:
        return Check("extensions", Outcome.FAILED, f"critical, and not understood here: {', '.join(unknown)}")
    twice = [oid for found, _ in lists for oid in repeated(found)]
    if twice:
        return Check("extensions", Outcome.FAILED, f"more than once: {', '.join(twice)}")
    names = [extensions.NAMES.get(each.oid, each.oid) for found, _ in lists for each in found]
    return Check("extensions", Outcome.OK, ", ".join(names) or "none")
