"""What a token is worth: the checks of RFC 3161 §2.2 and §2.4.2 and of RFC 5816 §2.2, a line each, with its reason.

Promises: a token counts only when no check fails (`Verification.verified`). A `note` is something that a person should
know and that the standards leave to the client. What is not understood fails.

Refuses to know: the clock (`Question.at`), files and the network.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from asn1crypto import x509 as asn1_x509

from lakthan_cli.ocsp import signature, trust
from lakthan_cli.ocsp.certificate import Certificate, Unreadable, name_text, reading
from lakthan_cli.ocsp.checks import Check, Outcome
from lakthan_cli.ocsp.message import Extension, repeated
from lakthan_cli.tsa import cms_signature, schema
from lakthan_cli.tsa.cms_signature import judge
from lakthan_cli.tsa.imprint import BY_OID
from lakthan_cli.tsa.message import MessageImprint, TimeStampReq, TimeStampToken, TSTInfo

SKEW = timedelta(minutes=5)
QC_STATEMENTS = "1.3.6.1.5.5.7.1.3"
_ID_KP_TIME_STAMPING = "1.3.6.1.5.5.7.3.8"
_EXTENDED_KEY_USAGE = "2.5.29.37"
# What a unit's certificate may hold critical: basicConstraints, keyUsage, extendedKeyUsage, subjectAltName,
# certificatePolicies, privateKeyUsagePeriod.
_HEEDED = frozenset({"2.5.29.19", "2.5.29.15", _EXTENDED_KEY_USAGE, "2.5.29.17", "2.5.29.32", "2.5.29.16"})
# RFC 3161 §2.4.2 and X.690 §11.7: seconds always, Z always, no zeros at the end of a fraction.
_GEN_TIME = re.compile(r"\d{14}(\.\d*[1-9])?Z")


@dataclass(frozen=True, slots=True)
class Question:
    """What is known without the token.

    `at`: the time for which it is verified. `digest`: the document's, by the token's own hash algorithm, None when no
    document was given. `request`: what was asked. `anchors`: None when nobody said whom to trust. `others`:
    certificates that may be the unit's, or link it to an anchor.
    """

    at: datetime
    digest: bytes | None = None
    request: TimeStampReq | None = None
    anchors: Sequence[Certificate] | None = None
    others: Sequence[Certificate] = ()


@dataclass(frozen=True, slots=True)
class Verification:
    """What came of it. `unit`: whose key signed. `path`: from the unit to the anchor, empty when there is none."""

    checks: tuple[Check, ...]
    unit: Certificate | None
    path: tuple[Certificate, ...] = ()

    @property
    def verified(self) -> bool:
        """True when the token may be believed."""
        return self.unit is not None and all(check.outcome is not Outcome.FAILED for check in self.checks)

    @property
    def first_failure(self) -> str:
        """The reason of the first check that failed."""
        return next((check.why for check in self.checks if check.outcome is Outcome.FAILED), "")


def verify(token: TimeStampToken, question: Question) -> Verification:
    """Check a token against all that is known."""
    checks = [
        judge("encoding", token.encoding_problem, "DER"),
        judge("content", _content_problem(token), "SignedData v3 around a TSTInfo v1"),
        *fits(token.tst_info, question),
    ]
    if len(token.signer_infos) != 1:
        # RFC 3161 §2.4.2: the token MUST NOT contain any signatures other than the signature of the TSA.
        problem = f"{len(token.signer_infos)} signers, where a token has exactly one"
        return Verification((*checks, Check("signer", Outcome.FAILED, problem)), None)
    signer = token.signer_infos[0]
    if signer.version != (3 if signer.issuer is None else 1):  # RFC 5652 §5.3
        problem = f"SignerInfo of version {signer.version}, which does not go with how it names its certificate"
        return Verification((*checks, Check("signer", Outcome.FAILED, problem)), None)
    unit = next((each for each in (*token.certificates, *question.others) if signer.names(each)), None)
    if unit is None:
        problem = "the certificate that the signer names is neither in the token nor among those given (--chain)"
        return Verification((*checks, Check("signer", Outcome.FAILED, problem)), None)
    checks.append(Check("signer", Outcome.OK, unit.name))
    checks += cms_signature.checks(token, signer, unit)
    checks += _entitled(unit, token.tst_info)
    found, trusted = _trust(unit, token, question)
    return Verification((*checks, *trusted), unit, tuple(found))


def fits(info: TSTInfo, question: Question) -> Iterator[Check]:
    """What can be said of a TSTInfo without its signature."""
    yield judge("imprint", _imprint_problem(info.message_imprint, question), _imprint_words(info, question))
    request = question.request
    if request is not None:
        asked_policy, asked_nonce = request.req_policy, request.nonce
        wrong = None if asked_policy in (None, info.policy) else f"{info.policy}, and {asked_policy} was asked for"
        yield judge("policy", wrong, info.policy)
        same = asked_nonce == info.nonce
        wrong = None if same else "not the one that was sent: it is the token of another request"
        yield judge("nonce", wrong, "none was sent" if asked_nonce is None else "as sent")
    yield judge("gen_time", _gen_time_problem(info, question.at), moment_exactly(info.gen_time))
    yield _accuracy(info)
    unknown = [each.oid for each in info.extensions if each.critical]
    twice = repeated(info.extensions)
    if unknown or twice:
        why = f"critical, and not understood here: {', '.join(unknown)}" if unknown else f"twice: {', '.join(twice)}"
        yield Check("extensions", Outcome.FAILED, why)
    elif info.extensions:
        yield Check("extensions", Outcome.OK, ", ".join(extension_name(each) for each in info.extensions))


def extension_name(extension: Extension) -> str:
    """What an extension of a TSTInfo is called."""
    return "qcStatements" if extension.oid == QC_STATEMENTS else extension.oid


def moment_exactly(instant: datetime) -> str:
    """An instant in UTC as ISO 8601 writes it, with as many digits as it has."""
    text = instant.astimezone(UTC).isoformat().removesuffix("+00:00")
    return (text.rstrip("0") if "." in text else text) + "Z"


def _content_problem(token: TimeStampToken) -> str | None:
    if token.content_type != schema.ID_CT_TST_INFO:
        return f"what is signed is of the type {token.content_type}, and not a TSTInfo"
    # RFC 5652 §5.1: 3 because the content is not plain data; 4 and 5 when unusual kinds of certificates or CRLs travel.
    if token.version not in (3, 4, 5):
        return f"SignedData of version {token.version}, where a token has 3"
    return None if token.tst_info.version == 1 else f"TSTInfo of version {token.tst_info.version}: only 1 is known"


def _imprint_problem(imprint: MessageImprint, question: Question) -> str | None:
    algorithm = BY_OID.get(imprint.hash_algorithm)
    if algorithm is None:
        return f"by the hash algorithm {imprint.hash_algorithm}, which is not known here"
    if len(imprint.hashed_message) != algorithm.octets:
        return f"{len(imprint.hashed_message)} octets, where {algorithm.name} gives {algorithm.octets}"
    if algorithm.weakness is not None:
        return f"by {algorithm.name}: {algorithm.weakness}"
    if question.digest is not None and question.digest != imprint.hashed_message:
        return "the token is about other data: the digests differ"
    if question.request is not None and question.request.message_imprint != imprint:
        return "not the one that was asked for: the token is about other data"
    return None


def _imprint_words(info: TSTInfo, question: Question) -> str:
    algorithm = BY_OID.get(info.message_imprint.hash_algorithm)
    name = algorithm.name if algorithm else ""
    return name if question.digest is None else f"{name}, that of the data"


def _gen_time_problem(info: TSTInfo, at: datetime) -> str | None:
    if not _GEN_TIME.fullmatch(info.gen_time_text):
        return f"{info.gen_time_text} is not how RFC 3161 §2.4.2 wants it written"
    if info.gen_time > at + SKEW:
        return f"{moment_exactly(info.gen_time)} is in the future of {moment_exactly(at)}"
    return None


def _accuracy(info: TSTInfo) -> Check:
    if info.accuracy_parts is None:
        return Check("accuracy", Outcome.NOTE, "not in the token: only the policy says how far off the time may be")
    seconds, millis, micros = info.accuracy_parts
    fits = (seconds is None or seconds >= 0) and all(part is None or 1 <= part <= 999 for part in (millis, micros))
    if not fits:
        return Check("accuracy", Outcome.FAILED, "millis and micros are from 1 to 999 (RFC 3161 §2.4.2)")
    return Check("accuracy", Outcome.OK, accuracy_words(info))


def accuracy_words(info: TSTInfo) -> str:
    """`± 1 s`, `± 0.25 s`, or nothing."""
    return "" if info.accuracy is None else f"± {info.accuracy.total_seconds():.6f}".rstrip("0").rstrip(".") + " s"


def _entitled(unit: Certificate, info: TSTInfo) -> Iterator[Check]:
    """Whether this certificate may stamp (RFC 3161 §2.3), and might at that time."""
    purposes = unit.extended_key_usage
    problem = None
    if purposes != (_ID_KP_TIME_STAMPING,):
        problem = "extendedKeyUsage is not id-kp-timeStamping alone: this is no time-stamping unit"
    elif _EXTENDED_KEY_USAGE not in unit.critical:
        problem = "extendedKeyUsage is not critical, as RFC 3161 §2.3 demands"
    yield judge("extended_key_usage", problem, "id-kp-timeStamping, critical")
    usage = unit.key_usage
    problem = None
    if unit.is_ca:
        problem = f"{unit.name} is a CA, and no CA stamps"
    elif usage is not None and not usage & {"digital_signature", "non_repudiation"}:
        problem = f"the keyUsage of {unit.name} does not allow it to sign"
    elif unheeded := unit.critical - _HEEDED:
        problem = f"critical in the unit's certificate, and not known here: {', '.join(sorted(unheeded))}"
    yield judge("key_usage", problem, ", ".join(sorted(usage)) if usage else "not restricted")
    gen_time = info.gen_time
    yield judge("validity", trust.out_of_force(unit, gen_time), "the unit's certificate was in force at genTime")
    yield from _key_period_checks(unit, gen_time)
    if info.tsa is not None:
        same = info.tsa.name == "directory_name" and info.tsa.chosen == unit.subject
        if info.tsa.name != "directory_name":
            same = info.tsa.dump() in _alternative_names(unit)
        problem = None if same else "the token's tsa is not a name of the unit's certificate"
        yield judge("tsa", problem, name_text(info.tsa.chosen) if info.tsa.name == "directory_name" else "as certified")


def _key_period_checks(unit: Certificate, gen_time: datetime) -> Iterator[Check]:
    """Whether the key might sign at that time; nothing when the certificate sets no such limits."""
    try:
        period = _key_period(unit)
    except Unreadable as error:
        yield Check("key_period", Outcome.FAILED, f"it is {error}")
        return
    if period is not None:
        since, until = period
        outside = (since is not None and gen_time < since) or (until is not None and gen_time > until)
        limits = f"{moment_exactly(since) if since else ''} – {moment_exactly(until) if until else ''}"
        yield judge("key_period", f"genTime is outside the key's own period, {limits}" if outside else None, limits)


def _trust(
    unit: Certificate, token: TimeStampToken, question: Question
) -> tuple[Sequence[Certificate], Iterator[Check]]:
    """The path to an anchor, which must hold at genTime, and still at the time of the question.

    After a certificate's end nobody says any more whether its key was stolen, and with a stolen key genTime can be
    anything. So a token then needs proof from elsewhere (a later time-stamp over it) that it existed before; whoever
    has that says so with the time.
    """
    if question.anchors is None:
        note = Check("trust", Outcome.NOTE, "nobody said whom to trust: anybody may have made this token (see --trust)")
        return (), iter([note])
    anchors = question.anchors
    others = [*token.certificates, *question.others]
    gen_time, at = token.tst_info.gen_time, question.at
    found, problem = unit_path(unit, anchors, others, gen_time)
    words = "issued under " + " under ".join(each.name for each in found[1:]) if found[1:] else "an anchor itself"
    checks = [judge("trust", problem, words)]
    if problem is None:
        _, problem = unit_path(unit, anchors, others, at)
        if problem is not None:
            problem += "; who can prove that the token existed before its end verifies for that time (--at)"
        checks.append(judge("still_in_force", problem, f"all of them at {moment_exactly(at.replace(microsecond=0))}"))
    return found, iter(checks)


def unit_path(
    unit: Certificate, anchors: Sequence[Certificate], others: Sequence[Certificate], at: datetime
) -> tuple[list[Certificate], str | None]:
    """The certificates from the unit to an anchor and None; or the longest try, and why it ends there."""
    if (ended := trust.out_of_force(unit, at)) is not None:
        return [unit], ended
    if any(unit.encoded == each.encoded for each in anchors):
        return [unit], None
    if weak := signature.weakness(unit.public_key, unit.signature_algorithm):
        return [unit], f"{unit.name} is certified with a broken algorithm: {weak}"
    best: tuple[list[Certificate], str] = ([unit], f"nobody here issued {unit.name}")
    for issuer in (*anchors, *others):
        if unit.signed_by(issuer):
            found, problem = trust.path(issuer, anchors, others, at)
            if problem is None:
                return [unit, *found], None
            best = ([unit, *found], problem)
    return best


def _key_period(unit: Certificate) -> tuple[datetime | None, datetime | None] | None:
    """The privateKeyUsagePeriod (RFC 3280 §4.2.1.4), None without one. Raises `Unreadable`."""
    with reading("a privateKeyUsagePeriod"):
        period = asn1_x509.Certificate.load(unit.encoded).private_key_usage_period_value
        return None if period is None else (period["not_before"].native, period["not_after"].native)


def _alternative_names(unit: Certificate) -> list[bytes]:
    try:
        with reading("a subjectAltName"):
            names = asn1_x509.Certificate.load(unit.encoded).subject_alt_name_value
            return [] if names is None else [each.dump() for each in names]
    except Unreadable:
        return []  # no name in it can be compared
