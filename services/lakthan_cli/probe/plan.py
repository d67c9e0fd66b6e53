"""What to ask and what to expect: one TOML file, or the options of the command.

Promises: everything that the plan names is read before anybody is asked, or `ConfigError` says what is wrong with it.
Paths are relative to the file. Durations are ISO 8601 (`PT1S`, `P7D`).

Trusted: whoever can write the plan says which answers are right.
"""

from __future__ import annotations

import re
import secrets
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from lakthan.errors import ConfigError
from lakthan_cli.ocsp.certificate import Certificate, read_certificates
from lakthan_cli.ocsp.message import CertID
from lakthan_cli.ocsp.request import cert_id, cert_id_of_serial
from lakthan_cli.tsa import imprint

_SERIAL = re.compile(r"serial:(?:0x)?([0-9a-fA-F:]+)")
_RANDOM = "random"
_OCTETS_OF_SERIAL = 20
Hash = Literal["sha1", "sha224", "sha256", "sha384", "sha512"]


class AuthorityPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One authority. `good`, `revoked`, `unissued`: a certificate's file, or `serial:HEX`; `unissued` may also be
    `random`, a new number every time. `urls`: without any, those of the good certificate's authorityInfoAccess.

    `non_issued`: what must be said of the unissued one; without it anything but `good` will do. `nonce`: it must come
    back (`required`), may (`optional`), or is not sent (`none`: answers that were signed before they are asked for).
    """

    name: str
    issuer: Path
    good: str | None = None
    revoked: str | None = None
    unissued: str | None = _RANDOM
    urls: tuple[str, ...] = ()
    non_issued: Literal["unknown", "revoked", "unauthorized"] | None = None
    hashes: Annotated[tuple[Hash, ...], msgspec.Meta(min_length=1)] = ("sha1", "sha256")
    nonce: Literal["required", "optional", "none"] = "optional"


class TSAPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One URL of a time-stamp authority. `policies`: each is asked for, and its tokens must carry it; without any, the
    authority chooses. `refused_hash`: a request with it must be refused with badAlg; '' leaves that out.
    """

    url: str
    policies: tuple[str, ...] = ()
    hashes: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = ("sha256",)
    refused_hash: Literal["md5", "sha1", ""] = "sha1"
    bearer_file: Path | None = None


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From where on something is worth a warning, and a failure."""

    timeout: timedelta = timedelta(seconds=10)
    slow: timedelta = timedelta(seconds=1)
    skew_warning: timedelta = timedelta(seconds=2)
    skew_failure: timedelta = timedelta(minutes=1)
    ends_warning: timedelta = timedelta(days=7)
    ends_failure: timedelta = timedelta(days=1)


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file. `trust`, `chain`: PEM files of anchors, and of CA certificates between."""

    trust: tuple[Path, ...] = ()
    chain: tuple[Path, ...] = ()
    authorities: tuple[AuthorityPlan, ...] = ()
    tsas: tuple[TSAPlan, ...] = ()
    limits: Limits = Limits()


class Expected(Enum):
    """What an answer about a certificate must say."""

    GOOD = "good"
    REVOKED = "revoked"
    UNISSUED = "unissued"


@dataclass(frozen=True, slots=True)
class Subject:
    """A certificate to ask about. Without it, by its serial number; without that, by a new one each time."""

    expected: Expected
    issuer: Certificate
    certificate: Certificate | None = None
    serial_number: int | None = None

    def cert_id(self, hash_name: str) -> CertID:
        """What to ask with."""
        if self.certificate is not None:
            return cert_id(self.certificate, self.issuer, hash_name)
        serial_number = self.serial_number
        if serial_number is None:
            # Drawn as CAs draw them; nobody will ever have issued this one.
            serial_number = int.from_bytes(secrets.token_bytes(_OCTETS_OF_SERIAL)) >> 1
        return cert_id_of_serial(serial_number, self.issuer, hash_name)


@dataclass(frozen=True, slots=True)
class Authority:
    """An authority with all that its plan names, read."""

    plan: AuthorityPlan
    urls: tuple[str, ...]
    issuer: Certificate
    subjects: tuple[Subject, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is asked. `anchors`: None when nobody said whom to trust. `others`: what may link to them."""

    authorities: tuple[Authority, ...]
    tsas: tuple[TSAPlan, ...]
    anchors: tuple[Certificate, ...] | None
    others: tuple[Certificate, ...]
    limits: Limits

    def __post_init__(self) -> None:
        if not self.authorities and not self.tsas:
            raise ConfigError("there is nobody to ask: name authorities or tsas in the plan, or give --ocsp or --tsa")


def read(path: Path) -> _File:
    """The plan in a file, its own files not yet read. Raises `ConfigError`."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the plan {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    folder = path.resolve().parent

    def decode(kind: type, value: object) -> object:
        if kind is Path and isinstance(value, str):
            return folder / value
        raise NotImplementedError(kind)  # msgspec's way to be told "not mine"

    try:
        found = msgspec.convert(document, _File, dec_hook=decode)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from error
    return msgspec.structs.replace(found, authorities=tuple(_placed(each, folder) for each in found.authorities))


def combined(
    file: _File | None, authorities: Sequence[AuthorityPlan], tsas: Sequence[TSAPlan], trust: Sequence[Path]
) -> Plan:
    """The plan of a file and of options together, every file read. Raises `ConfigError`."""
    base = file or _File()
    anchors = [each for path in (*base.trust, *trust) for each in read_certificates(path)]
    for tsa in (*base.tsas, *tsas):
        for name in tsa.hashes:
            if name not in imprint.ASKED:
                raise ConfigError(f"{tsa.url}: no hash {name!r} to stamp with; there are {', '.join(imprint.ASKED)}")
    return Plan(
        tuple(_opened(each) for each in (*base.authorities, *authorities)),
        (*base.tsas, *tsas),
        tuple(anchors) if base.trust or trust else None,
        tuple(each for path in base.chain for each in read_certificates(path)),
        base.limits,
    )


def _placed(plan: AuthorityPlan, folder: Path) -> AuthorityPlan:
    """The same with the certificates' paths relative to nothing."""

    def place(said: str | None) -> str | None:
        named = said is not None and said != _RANDOM and not _SERIAL.fullmatch(said)
        return str(folder / said) if named and said else said

    return msgspec.structs.replace(
        plan, good=place(plan.good), revoked=place(plan.revoked), unissued=place(plan.unissued)
    )


def _opened(plan: AuthorityPlan) -> Authority:
    issuers = read_certificates(plan.issuer)
    subjects = tuple(
        _subject(said, expected, issuers, plan)
        for expected, said in (
            (Expected.GOOD, plan.good),
            (Expected.REVOKED, plan.revoked),
            (Expected.UNISSUED, plan.unissued),
        )
        if said
    )
    if not subjects:
        raise ConfigError(f"{plan.name}: there is nothing to ask: name a good, a revoked or an unissued certificate")
    named = [url for each in subjects if each.certificate is not None for url in each.certificate.ocsp_urls]
    urls = plan.urls or tuple(dict.fromkeys(named))
    if not urls:
        raise ConfigError(f"{plan.name}: no OCSP URL is given, and no certificate of the plan names one: set its urls")
    return Authority(plan, urls, subjects[0].issuer, subjects)


def _subject(said: str, expected: Expected, issuers: Sequence[Certificate], plan: AuthorityPlan) -> Subject:
    if said == _RANDOM:
        if expected is not Expected.UNISSUED:
            raise ConfigError(f"{plan.name}: a random serial number is not {expected.value}")
        return Subject(expected, issuers[0])
    if found := _SERIAL.fullmatch(said):
        return Subject(expected, issuers[0], None, int(found[1].replace(":", ""), 16))
    certificate = read_certificates(Path(said))[0]
    for issuer in issuers:
        if certificate.signed_by(issuer):
            return Subject(expected, issuer, certificate)
    raise ConfigError(f"{plan.name}: {said} was not signed by {issuers[0].name}: give the issuer of the certificates")
