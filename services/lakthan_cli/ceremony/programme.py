"""What a plan comes to: every answer that will be signed, with its times, and the limits that none of them may break.

Pure: a plan and an instant in, values out, so that `--dry-run` shows exactly what the key would sign.

An answer of a later period speaks from the beginning of that period: its thisUpdate lies ahead when it is signed, and
so does its producedAt, since no answer may say that it was produced before what it knows (RFC 6960 §2.4; RFC 9919 §7.2
has the two equal). When it was really signed stands in the protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from lakthan.store.records import CertStatus
from lakthan_cli.ceremony.plan import utc

if TYPE_CHECKING:
    from lakthan.algorithms import HashAlgorithm
    from lakthan.certificates import CertificateView
    from lakthan_cli.ceremony.plan import Plan, SubCA

# The status of a CA certificate is updated at least every twelve months, by OCSP (TLS, S/MIME and Code Signing Baseline
# Requirements 4.9.9 and 4.9.10) and by CRL (4.9.7; EN 319 411-1 CSS-6.3.9).
LONGEST = timedelta(days=366)
# A first thisUpdate further back than this is a slip in the plan, or the clock of this machine is wrong.
_OLDEST = timedelta(days=31)
_MOST = 20_000


@dataclass(frozen=True, slots=True)
class Period:
    """From thisUpdate to nextUpdate, whole seconds, UTC."""

    this_update: datetime
    next_update: datetime


@dataclass(frozen=True, slots=True)
class PlannedAnswer:
    """One OCSPResponse to be signed."""

    sub_ca: SubCA
    hash_algorithm: HashAlgorithm
    produced_at: datetime
    period: Period

    @property
    def file_name(self) -> str:
        """Serial number, hash algorithm and thisUpdate; `.ors` is the suffix of application/ocsp-response."""
        label = self.hash_algorithm.label.lower().replace("-", "")
        return f"{self.sub_ca.serial_number.hex()}-{label}-{self.period.this_update:%Y%m%dT%H%M%SZ}.ors"


@dataclass(frozen=True, slots=True)
class Programme:
    """Everything that a ceremony at `now` signs. `arl_next_update`: of the ARL, whose thisUpdate is `now`."""

    plan: Plan
    now: datetime
    answers: tuple[PlannedAnswer, ...]
    arl_next_update: datetime

    def of(self, sub_ca: SubCA) -> list[PlannedAnswer]:
        """The answers about one certificate."""
        return [answer for answer in self.answers if answer.sub_ca is sub_ca]


def programme(plan: Plan, now: datetime) -> Programme:
    """What is to be signed at `now`. Raises `ConfigError` when a limit would be broken or the clock cannot be right."""
    now = utc(now)
    begin, until = utc(plan.answers.begin), utc(plan.answers.until)
    if until <= now:
        plan.refuse(
            f"the time it plans for has ended; the clock of this machine says {now:%Y-%m-%d %H:%M} UTC (wrong? set it)",
            "answers",
            "until",
        )
    if begin < now - _OLDEST:
        plan.refuse(
            f"answers would begin more than {_OLDEST.days} days ago; the clock of this machine says "
            f"{now:%Y-%m-%d %H:%M} UTC (wrong? set it)",
            "answers",
            "from",
        )
    for number, sub_ca in enumerate(plan.sub_cas):
        if sub_ca.revocation_time is not None and sub_ca.revocation_time > now:
            why = f"{sub_ca.name} is revoked in the future of {now:%Y-%m-%d %H:%M} UTC, the clock of this machine"
            plan.refuse(why, "sub_ca", "revocation_time", number)
    _check_signers(plan, now, until)
    periods = _periods(plan, begin, until)
    longest = max(period.next_update - period.this_update for period in periods)
    if longest > LONGEST:
        plan.refuse(
            f"an answer would be valid for {longest.days} days, and the status of a CA is updated at least "
            f"every {LONGEST.days}: set a period",
            "answers",
            "until",
        )
    answers = tuple(
        PlannedAnswer(sub_ca, algorithm, max(now, period.this_update), period)
        for sub_ca in plan.sub_cas
        for period in _within(sub_ca, periods, now)
        for algorithm in plan.hashes
    )
    if len(answers) > _MOST:
        plan.refuse(
            f"that would be {len(answers)} answers, and {_MOST} are the most: choose longer periods",
            "answers",
            "period",
        )
    return Programme(plan, now, answers, _arl_next_update(plan, now, until))


def _arl_next_update(plan: Plan, now: datetime, until: datetime) -> datetime:
    next_update = utc(plan.arl.next_update) if plan.arl.next_update else until
    if next_update <= now:
        plan.refuse("the ARL would end before it is signed", "arl", "next_update")
    if next_update - now > LONGEST:
        plan.refuse(
            f"the ARL would be valid for more than {LONGEST.days} days: set an earlier next_update",
            "arl",
            "next_update",
        )
    if next_update > plan.root_view.not_after:
        plan.refuse(f"the root's certificate ends before that, at {plan.root_view.not_after}", "arl", "next_update")
    return next_update


def _periods(plan: Plan, begin: datetime, until: datetime) -> list[Period]:
    length = plan.answers.period
    if length is None:
        return [Period(begin, until)]
    periods: list[Period] = []
    while not periods or periods[-1].next_update < until:
        periods.append(Period(begin, min(begin + length, until)))
        if len(periods) > _MOST:
            break  # refused by their number, in a moment
        begin += length - plan.answers.overlap
    return periods


def _within(sub_ca: SubCA, periods: list[Period], now: datetime) -> list[Period]:
    """No answer outlives the certificate that it is about; one that has ended already has its status for ever."""
    end = sub_ca.not_after
    if end is not None and end > max(now, periods[0].this_update):
        periods = [
            Period(period.this_update, min(period.next_update, end)) for period in periods if period.this_update < end
        ]
    return [period for period in periods if period.next_update > now]


def _check_signers(plan: Plan, now: datetime, until: datetime) -> None:
    """Who may sign what: RFC 5280 §4.2.1.3 for the key usages, RFC 6960 §4.2.2.2 for a delegated responder."""
    root, signer = plan.root_view, plan.signer_view
    where = "responder" if plan.responder_view else "root"
    usage = _key_usage(root)
    if usage is not None and not usage.crl_sign:
        plan.refuse(f"the keyUsage of {root.name} does not allow it to sign a CRL", "root", "certificate")
    if plan.responder_view is None and usage is not None and not usage.digital_signature:
        plan.refuse(
            f"the keyUsage of {root.name} has no digitalSignature, so its key may not sign answers: let the root issue "
            "a responder certificate and name that under [responder]",
            "root",
            "certificate",
        )
    if plan.responder_view is not None:
        purposes, _ = signer.extended_key_usage()
        if not signer.issued_by(root):
            plan.refuse(f"{signer.name} was not issued by {root.name}", where, "certificate")
        if purposes != [ExtendedKeyUsageOID.OCSP_SIGNING.dotted_string] or signer.is_ca():
            plan.refuse(f"{signer.name} is not for OCSP signing alone (id-kp-OCSPSigning)", where, "certificate")
        if (usage := _key_usage(signer)) is not None and not usage.digital_signature:
            plan.refuse(f"the keyUsage of {signer.name} has no digitalSignature", where, "certificate")
    for view, table in ((root, "root"), (signer, where)):
        if not view.not_before <= now < view.not_after:
            plan.refuse(
                f"{view.name} is in force from {view.not_before} to {view.not_after} only; the clock of this "
                f"machine says {now:%Y-%m-%d %H:%M} UTC (wrong? set it)",
                table,
                "certificate",
            )
        if until > view.not_after:
            plan.refuse(
                f"{view.name} ends before that, at {view.not_after}, and nobody could verify an answer afterwards",
                "answers",
                "until",
            )


def _key_usage(view: CertificateView) -> x509.KeyUsage | None:
    try:
        return view.certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return None


def status_of(sub_ca: SubCA) -> CertStatus:
    """Good, or revoked."""
    return CertStatus.GOOD if sub_ca.revocation_time is None else CertStatus.REVOKED
