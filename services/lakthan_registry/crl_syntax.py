"""A certificate revocation list, read from untrusted octets (RFC 5280 §5).

`read_crl` gives what a CRL says about itself; `CRL.entries` reads its entries one after another. Both take the
strict DER reader, so everything that is not a CRL is a `CRLSyntaxError` that says where. One exception is made because
CAs in the field need it: a serial number with needless leading octets counts by its value, as it does in OCSP requests.

It refuses to know whether a CRL is believed: signature, issuer, freshness and numbers are the business of `crl_check`.
Nor does it know the store; how a million entries are read in seconds is in `crl_rows`.

Instants are aware UTC datetimes. Serial numbers are the content octets of the minimal INTEGER.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

from lakthan import der
from lakthan.errors import LakthanError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from mmap import mmap

UTC_TIME = 0x17
REMOVE_FROM_CRL = 8
_REASONS = frozenset((0, 1, 2, 3, 4, 5, 6, 8, 9, 10))  # RFC 5280 §5.3.1: 7 is not used

_AUTHORITY_KEY_IDENTIFIER = "2.5.29.35"
_CRL_NUMBER = "2.5.29.20"
_DELTA_CRL_INDICATOR = "2.5.29.27"
_ISSUING_DISTRIBUTION_POINT = "2.5.29.28"
_EXPIRED_CERTS_ON_CRL = "2.5.29.60"
_REASON_CODE = "2.5.29.21"
_INVALIDITY_DATE = "2.5.29.24"
_CERTIFICATE_ISSUER = "2.5.29.29"

_PEM = re.compile(rb"-----BEGIN X509 CRL-----\s(.*?)-----END X509 CRL-----", re.DOTALL)
_UTC_TIME = re.compile(rb"[0-9]{12}Z", re.DOTALL)
_GENERALIZED_TIME = re.compile(rb"[0-9]{14}Z", re.DOTALL)


class CRLSyntaxError(LakthanError):
    """These octets are not a CRL. The message says what is wrong and where."""


@dataclass(frozen=True, slots=True)
class IssuingDistributionPoint:
    """What part of an issuer's certificates a CRL is about (RFC 5280 §5.2.5). `encoded`: the extension's value."""

    encoded: bytes
    uris: tuple[str, ...] = ()
    only_contains_user_certs: bool = False
    only_contains_ca_certs: bool = False
    only_some_reasons: bytes | None = None
    indirect_crl: bool = False
    only_contains_attribute_certs: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """One revoked certificate. `reason`: a CRLReason, 8 for removeFromCRL.

    `certificate_issuer`: the DER of the Name when the entry names one; the entries after it are of the same issuer
    (RFC 5280 §5.3.3).
    """

    serial_number: bytes
    revocation_date: datetime
    reason: int | None = None
    invalidity_date: datetime | None = None
    certificate_issuer: bytes | None = None


@dataclass(frozen=True, slots=True)
class EntryExtensions:
    """What the extensions of one entry say."""

    reason: int | None = None
    invalidity_date: datetime | None = None
    certificate_issuer: bytes | None = None


NO_EXTENSIONS = EntryExtensions()


class UnknownCriticalExtension(LakthanError):
    """A critical extension that is not processed here: the whole CRL must not be used (RFC 5280 §5.2 and §5.3)."""


@dataclass(frozen=True, slots=True, eq=False)
class CRL:
    """What a CRL says about itself. The offsets are into `data`, DER.

    `issuer`: the DER of the Name. `signature_algorithm`: the DER of the AlgorithmIdentifier. `base_crl_number`: of a
    delta CRL, the number of the complete one it starts from. `unknown_critical`: dotted names of critical extensions of
    the CRL itself that nobody here knows. `signature`: None when it is not whole octets, for then it is no signature.
    """

    data: bytes | mmap
    version: int
    signature_algorithm: bytes
    issuer: bytes
    this_update: datetime
    next_update: datetime | None
    crl_number: int | None
    base_crl_number: int | None
    issuing_distribution_point: IssuingDistributionPoint | None
    authority_key_identifier: bytes | None
    expired_certs_on_crl: datetime | None
    unknown_critical: tuple[str, ...]
    tbs_span: tuple[int, int]
    entries_span: tuple[int, int]
    signature: bytes | None

    @property
    def delta(self) -> bool:
        """True for a delta CRL (RFC 5280 §5.2.4)."""
        return self.base_crl_number is not None

    @property
    def indirect(self) -> bool:
        """True when its entries may be of other issuers (RFC 5280 §5.2.5)."""
        point = self.issuing_distribution_point
        return point is not None and point.indirect_crl

    @property
    def scope(self) -> bytes:
        """What tells the CRLs of one issuer apart: the issuingDistributionPoint, empty for a CRL about everything."""
        point = self.issuing_distribution_point
        return b"" if point is None else point.encoded

    def sha256(self) -> bytes:
        """The SHA-256 of the whole CRL, DER."""
        return hashlib.sha256(self.data).digest()

    def reader(self, at: int | None = None) -> der.Reader:
        """The strict reader at an entry; at the first one without `at`."""
        start, end = self.entries_span
        return der.Reader(cast("bytes", self.data), start if at is None else at, end)

    def entries(self) -> Iterator[Entry]:
        """Every entry in order. Raises `CRLSyntaxError` and `UnknownCriticalExtension` at the first that is wrong."""
        reader = self.reader()
        while reader.more():
            yield read_entry(reader)


def read_crl(data: bytes | mmap) -> CRL:
    """What a CRL says about itself, DER or PEM. The entries are not looked at.

    Raises `CRLSyntaxError`.
    """
    with _malformed():
        return _read(_from_pem(data) if data[:1] != b"\x30" else data)


def read_entry(reader: der.Reader) -> Entry:
    """The next entry. Raises `CRLSyntaxError` and `UnknownCriticalExtension`."""
    at = reader.at
    try:
        entry = reader.enter(der.SEQUENCE)
        content = entry.content(der.INTEGER)
        if not 1 <= len(serial_number := der.minimal_integer(content)) <= 128:
            raise der.DERError(f"a serial number of {len(serial_number)} octets")
        revocation_date = read_time(entry)
        extensions = NO_EXTENSIONS
        if entry.more():
            extensions = read_entry_extensions(entry.element(der.SEQUENCE))
            entry.finish()
    except (ValueError, OverflowError) as error:
        raise CRLSyntaxError(f"this is not a well-formed CRL: the entry at offset {at}: {error}") from error
    return Entry(
        serial_number, revocation_date, extensions.reason, extensions.invalidity_date, extensions.certificate_issuer
    )


def read_entry_extensions(encoded: bytes) -> EntryExtensions:
    """What crlEntryExtensions say (RFC 5280 §5.3). Raises `ValueError` and `UnknownCriticalExtension`."""
    reason = invalidity_date = certificate_issuer = None
    for name, critical, value in _extensions(der.Reader(encoded)):
        reader = der.Reader(value)
        if name == _REASON_CODE:
            content = reader.content(der.ENUMERATED)
            if len(content) != 1 or content[0] not in _REASONS:
                raise der.DERError(f"{content.hex()} is no reason code")
            reason = content[0]
        elif name == _INVALIDITY_DATE:
            invalidity_date = read_generalized_time(reader)
        elif name == _CERTIFICATE_ISSUER:
            certificate_issuer = _directory_name(reader.enter(der.SEQUENCE))
        elif critical:
            raise UnknownCriticalExtension(f"an entry has the critical extension {name}, which is not known here")
        else:
            continue
        reader.finish()
    return EntryExtensions(reason, invalidity_date, certificate_issuer)


def read_time(reader: der.Reader) -> datetime:
    """The next element, a Time of whole seconds (RFC 5280 §4.1.2.5). Raises `ValueError`."""
    if reader.peek() != UTC_TIME:
        return read_generalized_time(reader)
    content = reader.content(UTC_TIME)
    if not _UTC_TIME.fullmatch(content):
        raise der.DERError(f"a UTCTime that is not YYMMDDHHMMSSZ, before offset {reader.at}")
    return utc_time(content)


def utc_time(content: bytes) -> datetime:
    """The instant of YYMMDDHHMMSSZ; two-digit years are 1950 to 2049. Raises `ValueError` when there is none such."""
    year, month, day, hour, minute, second = (int(content[at : at + 2]) for at in range(0, 12, 2))
    return datetime(year + (1900 if year >= 50 else 2000), month, day, hour, minute, second, tzinfo=UTC)


def read_generalized_time(reader: der.Reader) -> datetime:
    """The next element, a GeneralizedTime of whole seconds, Zulu (RFC 5280 §4.1.2.5.2). Raises `ValueError`."""
    content = reader.content(der.GENERALIZED_TIME)
    if not _GENERALIZED_TIME.fullmatch(content):
        raise der.DERError(f"a GeneralizedTime that is not YYYYMMDDHHMMSSZ, before offset {reader.at}")
    month, day, hour, minute, second = (int(content[at : at + 2]) for at in range(4, 14, 2))
    return datetime(int(content[:4]), month, day, hour, minute, second, tzinfo=UTC)


@contextmanager
def _malformed() -> Iterator[None]:
    try:
        yield
    except (ValueError, OverflowError) as error:  # DERError is a ValueError
        raise CRLSyntaxError(f"this is not a well-formed CRL: {error}") from error


def _from_pem(data: bytes | mmap) -> bytes:
    found = _PEM.search(data)
    if found is None:
        raise CRLSyntaxError("this is no CRL: neither DER nor PEM with -----BEGIN X509 CRL-----")
    if _PEM.search(data, found.end()):
        raise CRLSyntaxError("there are several CRLs in one file; give them one at a time, the complete ones first")
    try:
        return base64.b64decode(b"".join(found[1].split()), validate=True)
    except binascii.Error as error:
        raise CRLSyntaxError(f"what stands between the lines of the PEM file is not base64: {error}") from error


def _read(data: bytes | mmap) -> CRL:
    # RFC 5280 §5.1: CertificateList ::= SEQUENCE { tbsCertList, signatureAlgorithm, signatureValue BIT STRING }
    outer = der.Reader(cast("bytes", data))
    whole = outer.enter(der.SEQUENCE)
    outer.finish()
    tbs_start = whole.at
    tbs = whole.enter(der.SEQUENCE)
    tbs_span = (tbs_start, whole.at)
    signature_algorithm = whole.element(der.SEQUENCE)
    signature = whole.content(der.BIT_STRING)
    whole.finish()
    if not signature:
        raise der.DERError("a signature without content")

    version = 1
    if tbs.peek() == der.INTEGER:
        if tbs.integer() != 1:
            raise der.DERError("a CRL is of version 1 or 2")
        version = 2
    if tbs.element(der.SEQUENCE) != signature_algorithm:
        raise der.DERError("the signature algorithm inside is not the one outside")
    issuer = tbs.element(der.SEQUENCE)
    this_update = read_time(tbs)
    next_update = read_time(tbs) if tbs.peek() in (UTC_TIME, der.GENERALIZED_TIME) else None
    entries_span = (tbs.at, tbs.at)
    if tbs.peek() == der.SEQUENCE:
        _, start, end = tbs.head()
        entries_span = (start, end)
    extensions: dict[str, tuple[bool, bytes]] = {}
    if tbs.more():
        explicit = tbs.enter(0xA0)
        tbs.finish()
        for name, critical, value in _extensions(explicit):
            extensions[name] = (critical, value)
        if version == 1:
            raise der.DERError("a CRL of version 1 has no extensions")

    crl_number = _number(extensions.pop(_CRL_NUMBER, None))
    base_crl_number = _number(extensions.pop(_DELTA_CRL_INDICATOR, None))
    _, point = extensions.pop(_ISSUING_DISTRIBUTION_POINT, (False, None))
    _, key_identifier = extensions.pop(_AUTHORITY_KEY_IDENTIFIER, (False, None))
    _, expired = extensions.pop(_EXPIRED_CERTS_ON_CRL, (False, None))
    return CRL(
        data=data,
        version=version,
        signature_algorithm=signature_algorithm,
        issuer=issuer,
        this_update=this_update,
        next_update=next_update,
        crl_number=crl_number,
        base_crl_number=base_crl_number,
        issuing_distribution_point=None if point is None else _issuing_distribution_point(point),
        authority_key_identifier=None if key_identifier is None else _key_identifier(key_identifier),
        expired_certs_on_crl=None if expired is None else read_generalized_time(der.Reader(expired)),
        unknown_critical=tuple(name for name, (critical, _) in extensions.items() if critical),
        tbs_span=tbs_span,
        entries_span=entries_span,
        signature=signature[1:] if signature[0] == 0 else None,
    )


def _extensions(reader: der.Reader) -> Iterator[tuple[str, bool, bytes]]:
    # RFC 5280 §4.1: Extension ::= SEQUENCE { extnID, critical BOOLEAN DEFAULT FALSE, extnValue OCTET STRING }
    seen: set[str] = set()
    extensions = reader.enter(der.SEQUENCE)
    reader.finish()
    while extensions.more():
        extension = extensions.enter(der.SEQUENCE)
        name = der.dotted_oid(extension.content(der.OBJECT_IDENTIFIER))
        critical = extension.boolean() if extension.peek() == der.BOOLEAN else False
        value = extension.content(der.OCTET_STRING)
        extension.finish()
        if name in seen:
            raise der.DERError(f"the extension {name} occurs twice")
        seen.add(name)
        yield name, critical, value


def _number(extension: tuple[bool, bytes] | None) -> int | None:
    if extension is None:
        return None
    reader = der.Reader(extension[1])
    content = reader.content(der.INTEGER)
    reader.finish()
    # RFC 5280 §5.2.3: up to 20 octets. The value counts, as for serial numbers.
    if not 1 <= len(content) <= 21 or content[0] >= 0x80:
        raise der.DERError("a CRL number is not negative and has at most 20 octets")
    return int.from_bytes(content, "big")


def _key_identifier(value: bytes) -> bytes | None:
    outer = der.Reader(value)
    reader = outer.enter(der.SEQUENCE)
    outer.finish()
    return reader.content(0x80) if reader.peek() == 0x80 else None


def _directory_name(names: der.Reader) -> bytes:
    found = None
    while names.more():
        tag, start, stop = names.head()
        if tag == 0xA4:  # GeneralName ::= CHOICE { …, directoryName [4] Name, … }, explicit since Name is a CHOICE
            if found is not None:
                raise der.DERError("a certificateIssuer with two directory names")
            inner = der.Reader(names.data, start, stop)
            found = inner.element(der.SEQUENCE)
            inner.finish()
    if found is None:
        raise der.DERError("a certificateIssuer without a directory name")
    return found


def _issuing_distribution_point(value: bytes) -> IssuingDistributionPoint:
    outer = der.Reader(value)
    reader = outer.enter(der.SEQUENCE)
    outer.finish()
    uris: tuple[str, ...] = ()
    reasons = None
    flags = dict.fromkeys((0x81, 0x82, 0x84, 0x85), False)
    last = 0
    while reader.more():
        tag, start, stop = reader.head()
        if tag & 0x1F <= last & 0x1F and last:
            raise der.DERError("an issuingDistributionPoint whose fields are not in order")
        last = tag
        if tag == 0xA0:
            uris = _uris(der.Reader(reader.data, start, stop))
        elif tag == 0x83:
            reasons = value[start:stop]
        elif tag in flags and value[start:stop] in (b"\xff", b"\x00"):
            flags[tag] = value[start:stop] == b"\xff"
        else:
            raise der.DERError(f"an issuingDistributionPoint with a field {tag:#04x} that is not one")
    return IssuingDistributionPoint(value, uris, flags[0x81], flags[0x82], reasons, flags[0x84], flags[0x85])


def _uris(name: der.Reader) -> tuple[str, ...]:
    # DistributionPointName ::= CHOICE { fullName [0] GeneralNames, nameRelativeToCRLIssuer [1] … }
    tag, start, stop = name.head()
    name.finish()
    names = der.Reader(name.data, start, stop)
    found = []
    while names.more():
        kind, at, end = names.head()
        if tag == 0xA0 and kind == 0x86:
            found.append(names.data[at:end].decode("ascii"))
    return tuple(found)
