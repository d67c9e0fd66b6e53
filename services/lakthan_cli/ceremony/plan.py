"""The plan of a ceremony: a TOML file that people have read and agreed on before anybody enters the room.

Promises: what `load` gives is complete and fits together; whatever does not is a `ConfigError` with file and line, so
that nobody searches while the key lies open. Certificates are read and checked against the root's key here.

Refuses to know: the clock (`programme` looks at it) and the key, which a plan only names.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import click
import msgspec

from lakthan import der
from lakthan.algorithms import HashAlgorithm
from lakthan.certificates import CertificateView, read_certificates
from lakthan.config import KeyURI
from lakthan.errors import ConfigError
from lakthan.store.records import CRLReason
from lakthan_cli.commands.certificate import SerialNumber

if TYPE_CHECKING:
    from collections.abc import Sequence

_HASHES = {each.label: each for each in (HashAlgorithm.SHA_1, HashAlgorithm.SHA_256)}
# A revocation of a CA is final, and the TLS Baseline Requirements 7.3 demand a reason for it.
_REASONS = {
    each.label: each
    for each in CRLReason
    if each not in (CRLReason.UNSPECIFIED, CRLReason.CERTIFICATE_HOLD, CRLReason.REMOVE_FROM_CRL)
}
Instant = Annotated[datetime, msgspec.Meta(tz=True)]
_Words = Annotated[str, msgspec.Meta(min_length=1)]


class Person(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Somebody in the room, with what they are there for."""

    name: _Words
    role: _Words


class CeremonyTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the protocol says of the occasion. `witnesses_required`: so many of the witnesses must sign it."""

    title: _Words
    place: str = ""
    people: list[Person] = []
    witnesses: list[Person] = []
    witnesses_required: Annotated[int, msgspec.Meta(ge=0)] = 0


class SignerTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A certificate (PEM) and where its key is."""

    certificate: Path
    key: KeyURI


class AnswersTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The time that answers are made for: `from` until `until`, in one piece or in periods that overlap."""

    begin: Instant = msgspec.field(name="from")
    until: Instant
    period: timedelta | None = None
    overlap: timedelta = timedelta(0)
    hashes: Annotated[list[str], msgspec.Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: ["SHA-1", "SHA-256"]
    )


class ARLTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The CRL over the CA certificates. `number`: greater than that of every one before (RFC 5280 §5.2.3)."""

    number: Annotated[int, msgspec.Meta(ge=0)]
    next_update: Instant | None = None


class SubCATable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A certificate that the root issued: its file, or its serial number with a name for the protocol."""

    status: Literal["good", "revoked"]
    certificate: Path | None = None
    serial_number: str | None = None
    name: str | None = None
    reason: str | None = None
    revocation_time: Instant | None = None


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ceremony: CeremonyTable
    root: SignerTable
    answers: AnswersTable
    arl: ARLTable
    sub_ca: Annotated[list[SubCATable], msgspec.Meta(min_length=1)]
    responder: SignerTable | None = None


@dataclass(frozen=True, slots=True)
class SubCA:
    """A certificate to be answered about. `serial_number`: content of its INTEGER. `not_after`: when it is known.

    `revocation_time` and `revocation_reason` are both there, or the certificate is good.
    """

    name: str
    serial_number: bytes
    not_after: datetime | None
    sha256: bytes | None
    revocation_time: datetime | None
    revocation_reason: CRLReason | None


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan that fits together. `text`: the file as it was read. `responder`: who signs instead of the root."""

    path: Path
    text: bytes
    ceremony: CeremonyTable
    root: SignerTable
    root_view: CertificateView
    responder: SignerTable | None
    responder_view: CertificateView | None
    answers: AnswersTable
    hashes: tuple[HashAlgorithm, ...]
    arl: ARLTable
    sub_cas: tuple[SubCA, ...]

    @property
    def signer_view(self) -> CertificateView:
        """The certificate of whoever signs the answers."""
        return self.responder_view or self.root_view

    def refuse(self, why: str, table: str, key: str = "", number: int = 0) -> NoReturn:
        """Raise `ConfigError` about a place in the file."""
        raise ConfigError(f"{self.path}{line_of(self.text.decode(), table, key, number)}: {why}")


def load(path: Path) -> Plan:
    """Read and check a plan. Raises `ConfigError` with file, line and what to do."""
    try:
        octets = path.read_bytes()
        text = octets.decode()
        document = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"the plan {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    folder = path.resolve().parent

    def decode(kind: type, value: object) -> object:
        if kind is Path and isinstance(value, str):
            return folder / value
        if kind is KeyURI and isinstance(value, str):
            return KeyURI(value, folder)
        raise NotImplementedError(kind)  # msgspec's way to be told "not mine"

    try:
        tables = msgspec.convert(document, _Document, dec_hook=decode)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}{_line_of_message(text, str(error))}: {error}") from error
    return _checked(path, octets, tables)


def _checked(path: Path, octets: bytes, tables: _Document) -> Plan:
    root = read_certificates(tables.root.certificate)[0]
    responder = read_certificates(tables.responder.certificate)[0] if tables.responder else None
    plan = Plan(
        path=path,
        text=octets,
        ceremony=tables.ceremony,
        root=tables.root,
        root_view=root,
        responder=tables.responder,
        responder_view=responder,
        answers=tables.answers,
        hashes=tuple(_HASHES[label] for label in tables.answers.hashes if label in _HASHES),
        arl=tables.arl,
        sub_cas=(),
    )
    ceremony, answers = tables.ceremony, tables.answers
    if ceremony.witnesses_required > len(ceremony.witnesses):
        plan.refuse(
            f"{ceremony.witnesses_required} witnesses are required and {len(ceremony.witnesses)} are named",
            "ceremony",
            "witnesses_required",
        )
    if len(plan.hashes) != len(answers.hashes) or len(set(answers.hashes)) != len(answers.hashes):
        plan.refuse(f"hashes are some of {', '.join(_HASHES)}, each once", "answers", "hashes")
    if answers.until <= answers.begin:
        plan.refuse("until must be later than from", "answers", "until")
    if answers.period is not None and answers.period < timedelta(hours=1):
        plan.refuse("a period is at least an hour (PT1H)", "answers", "period")
    if not timedelta(0) <= answers.overlap or answers.overlap * 2 > (answers.period or answers.until - answers.begin):
        plan.refuse("overlap is at most half of a period, and not negative", "answers", "overlap")
    if not root.is_ca():
        plan.refuse(f"{root.name} is no CA: its basicConstraints does not say so", "root", "certificate")
    return replace(plan, sub_cas=_sub_cas(plan, tables.sub_ca))


def _sub_cas(plan: Plan, tables: Sequence[SubCATable]) -> tuple[SubCA, ...]:
    found: dict[bytes, SubCA] = {}
    for number, table in enumerate(tables):
        sub_ca = _sub_ca(plan, table, number)
        if sub_ca.serial_number in found:
            plan.refuse(f"{sub_ca.name} has the serial number of another entry of this plan", "sub_ca", "", number)
        found[sub_ca.serial_number] = sub_ca
    return tuple(found.values())


def _sub_ca(plan: Plan, table: SubCATable, number: int) -> SubCA:
    if (table.certificate is None) == (table.serial_number is None):
        plan.refuse("give either a certificate file or a serial_number", "sub_ca", "", number)
    reason = _revocation(plan, table, number)
    if table.certificate is not None:
        view = read_certificates(table.certificate)[0]
        if not view.issued_by(plan.root_view):
            why = f"{view.name} was not issued by {plan.root_view.name}: its signature does not verify"
            plan.refuse(why, "sub_ca", "certificate", number)
        name, not_after = table.name or view.name, view.not_after
        serial_number = der.integer_content(view.certificate.serial_number)
        sha256 = HashAlgorithm.SHA_256.digest(view.encoded)
    else:
        if not table.name:
            plan.refuse("a serial_number needs a name beside it, for the protocol", "sub_ca", "serial_number", number)
        try:
            serial_number = der.integer_content(SerialNumber()(table.serial_number))
        except click.UsageError as error:
            plan.refuse(error.message, "sub_ca", "serial_number", number)
        name, not_after, sha256 = table.name, None, None
    return SubCA(name, serial_number, not_after, sha256, table.revocation_time, reason)


def _revocation(plan: Plan, table: SubCATable, number: int) -> CRLReason | None:
    if table.status == "good":
        if table.reason is not None or table.revocation_time is not None:
            plan.refuse("a good certificate has no reason and no revocation_time", "sub_ca", "status", number)
        return None
    if table.reason not in _REASONS:
        labels = ", ".join(_REASONS)
        plan.refuse(f"the revocation of a CA needs a reason, one of {labels}", "sub_ca", "reason", number)
    if table.revocation_time is None:
        plan.refuse("a revoked certificate needs its revocation_time", "sub_ca", "status", number)
    if table.revocation_time.microsecond or table.revocation_time > plan.answers.begin:
        why = "revocation_time is in whole seconds and not later than the `from` of [answers]"
        plan.refuse(why, "sub_ca", "revocation_time", number)
    return _REASONS[table.reason]


def line_of(text: str, table: str, key: str = "", number: int = 0) -> str:
    """`:LINE` of a key in the `number`th table of that name, of the table itself when the key is not in it, or ''."""
    heading, seen = 0, -1
    for line, content in enumerate(text.splitlines(), 1):
        found = re.match(r"\s*\[\[?\s*([\w.]+)\s*\]\]?", content)
        if found:
            if heading and key:
                break
            if found[1] == table:
                seen += 1
                heading = line if seen == number else 0
                if heading and not key:
                    break
        elif heading and re.match(rf"\s*{re.escape(key)}\s*=", content):
            return f":{line}"
    return f":{heading}" if heading else ""


def _line_of_message(text: str, message: str) -> str:
    """The line that a message of msgspec is about: it names the place as `$.table[2].key`, and a field in backticks."""
    place = re.search(r"at `\$\.(\w+)((?:\[\d+\]|\[\.\.\.\])?)(?:\.(\w+))?(?:\[.*)?`$", message)
    field = re.search(r"unknown field `([^`]+)`", message)
    if place is None:
        return line_of(text, field[1]) if field else ""
    number = int(re.sub(r"\D", "", place[2]) or 0)
    return line_of(text, place[1], field[1] if field else place[3] or "", number)


def utc(instant: datetime) -> datetime:
    """The same instant in UTC, in whole seconds."""
    return instant.astimezone(UTC).replace(microsecond=0)
