"""Certificates as a client reads them, and the files that people keep them in (DER, PEM, PKCS #7).

Promises: every part that is used is read at once, or `Unreadable` says what is wrong. Names are compared as RFC 5280
§7.1 demands, so an issuer is found although the two encoded its name differently.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from asn1crypto import core, pem
from asn1crypto import x509 as asn1_x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from lakthan import der
from lakthan.errors import ConfigError
from lakthan_cli.ocsp import signature

_BASIC_CONSTRAINTS = "2.5.29.19"
_KEY_USAGE = "2.5.29.15"
_EXTENDED_KEY_USAGE = "2.5.29.37"
_AUTHORITY_INFO_ACCESS = "1.3.6.1.5.5.7.1.1"
_NO_CHECK = "1.3.6.1.5.5.7.48.1.5"
_ID_AD_OCSP = "1.3.6.1.5.5.7.48.1"
_ID_AD_CA_ISSUERS = "1.3.6.1.5.5.7.48.2"
_SHORT = {
    "2.5.4.3": "CN",
    "2.5.4.5": "serialNumber",
    "2.5.4.6": "C",
    "2.5.4.7": "L",
    "2.5.4.8": "ST",
    "2.5.4.10": "O",
    "2.5.4.11": "OU",
    "2.5.4.97": "organizationIdentifier",
    "0.9.2342.19200300.100.1.25": "DC",
    "1.2.840.113549.1.9.1": "emailAddress",
}


class Unreadable(ValueError):
    """These octets are not what they should be. The message is a noun phrase, or ends with the reader's own words."""


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn whatever asn1crypto raises about malformed input into `Unreadable`."""
    try:
        yield
    except Unreadable:
        raise
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, AttributeError, RecursionError) as error:
        raise Unreadable(f"not {what}: {str(error).splitlines()[0] if str(error) else type(error).__name__}") from error


@dataclass(frozen=True, slots=True, eq=False)
class Certificate:
    """One certificate. `public_key`: the SubjectPublicKeyInfo. `key_bits`: the content of its BIT STRING, which key
    hashes are made of (RFC 6960 §4.1.1).

    `key_usage`: the bits by asn1crypto's names, None without the extension. `critical`: the dotted identifiers of the
    extensions that are critical. `ocsp_urls`, `ca_issuers_urls`: from authorityInfoAccess, in its order.
    """

    encoded: bytes
    tbs: bytes
    subject: asn1_x509.Name
    issuer: asn1_x509.Name
    serial_number: int
    not_before: datetime
    not_after: datetime
    public_key: bytes
    key_bits: bytes
    signature_algorithm: bytes
    signature: bytes
    is_ca: bool
    path_length: int | None
    key_usage: frozenset[str] | None
    extended_key_usage: tuple[str, ...]
    no_check: bool
    critical: frozenset[str] = field(repr=False)
    ocsp_urls: tuple[str, ...]
    ca_issuers_urls: tuple[str, ...]

    @classmethod
    def from_der(cls, encoded: bytes) -> Certificate:
        """Read a certificate. Raises `Unreadable`."""
        with reading("a certificate"):
            certificate = asn1_x509.Certificate.load(encoded, strict=True)
            tbs = certificate["tbs_certificate"]
            if tbs["signature"].dump() != certificate["signature_algorithm"].dump():
                raise Unreadable("a certificate that names two different signature algorithms")
            extensions: dict[str, bytes] = {}
            critical = set()
            for oid, is_critical, value in read_extensions(tbs["extensions"]):
                if oid in extensions:
                    raise Unreadable(f"a certificate with the extension {oid} twice")
                extensions[oid] = value
                if is_critical:
                    critical.add(oid)
            constraints = _load(asn1_x509.BasicConstraints, extensions.get(_BASIC_CONSTRAINTS)) or {}
            usage = _load(asn1_x509.KeyUsage, extensions.get(_KEY_USAGE))
            purposes = extensions.get(_EXTENDED_KEY_USAGE)
            info = tbs["subject_public_key_info"].dump()
            for name in (tbs["subject"], tbs["issuer"]):
                name_text(name)  # reads all of it now
            return cls(
                encoded=encoded,
                tbs=tbs.dump(),
                subject=tbs["subject"],
                issuer=tbs["issuer"],
                serial_number=int(tbs["serial_number"].native),
                not_before=tbs["validity"]["not_before"].native,
                not_after=tbs["validity"]["not_after"].native,
                public_key=info,
                # The content of a BIT STRING begins with the count of unused bits.
                key_bits=_PublicKeyInfo.load(info, strict=True)["public_key"].contents[1:],
                signature_algorithm=signature.element(certificate["signature_algorithm"]),
                signature=bytes(certificate["signature_value"]),
                is_ca=bool(constraints.get("ca")),
                path_length=constraints.get("path_len_constraint"),
                key_usage=None if usage is None else frozenset(usage),
                extended_key_usage=tuple(each.dotted for each in asn1_x509.ExtKeyUsageSyntax.load(purposes))
                if purposes
                else (),
                no_check=_NO_CHECK in extensions,
                critical=frozenset(critical),
                ocsp_urls=_urls(extensions.get(_AUTHORITY_INFO_ACCESS), _ID_AD_OCSP),
                ca_issuers_urls=_urls(extensions.get(_AUTHORITY_INFO_ACCESS), _ID_AD_CA_ISSUERS),
            )

    @property
    def name(self) -> str:
        """The subject for people."""
        return name_text(self.subject)

    def signed_by(self, issuer: Certificate) -> bool:
        """True when `issuer` has the issuer's name and the key that signed this."""
        if not same_name(self.issuer, issuer.subject):
            return False
        return signature.problem(issuer.public_key, self.signature_algorithm, self.signature, self.tbs) is None


class _PublicKeyInfo(core.Sequence):  # type: ignore[misc]
    # asn1crypto's own class knows no key younger than itself, such as ML-DSA's.
    _fields = [("algorithm", core.Any), ("public_key", core.BitString)]  # noqa: RUF012


class _Extension(core.Sequence):  # type: ignore[misc]
    # asn1crypto's own classes insist on values that fit their identifiers, and one odd value would hide all the rest.
    _fields = [  # noqa: RUF012
        ("extn_id", core.ObjectIdentifier),
        ("critical", core.Boolean, {"default": False}),
        ("extn_value", core.OctetString),
    ]


class _Extensions(core.SequenceOf):  # type: ignore[misc]
    _child_spec = _Extension


def read_extensions(extensions: core.Asn1Value) -> list[tuple[str, bool, bytes]]:
    """Identifier, criticality and the content of extnValue of each extension; none when the field is absent."""
    if isinstance(extensions, core.Void):
        return []
    return [
        (each["extn_id"].dotted, bool(each["critical"].native), bytes(each["extn_value"]))
        for each in _Extensions.load(der.sequence(extensions.contents), strict=True)
    ]


def same_name(one: asn1_x509.Name, other: asn1_x509.Name) -> bool:
    """Whether two Names are the same (RFC 5280 §7.1), whatever string types they are written in."""
    if one.dump() == other.dump():
        return True
    try:
        return bool(one == other)
    except ValueError:
        return False  # characters that RFC 4518 §2.4 prohibits: then only the same octets are the same name


def name_text(name: asn1_x509.Name) -> str:
    """A Name in the manner of RFC 4514: the last part first."""
    parts = []
    for rdn in reversed(list(name.chosen)):
        values = []
        for each in rdn:
            oid = each["type"].dotted
            value = str(each["value"].native).replace("\\", "\\\\").replace(",", "\\,")
            values.append(f"{_SHORT.get(oid, oid)}={value}")
        parts.append("+".join(values))
    return ",".join(parts) or "(an empty name)"


def parse_certificates(data: bytes) -> list[Certificate]:
    """Every certificate of a PEM file, a DER file or a PKCS #7 bundle, in its order. Raises `Unreadable`."""
    if pem.detect(data):
        found = []
        with reading("a PEM file"):
            blocks = [(kind, encoded) for kind, _, encoded in pem.unarmor(data, multiple=True)]
        for kind, encoded in blocks:
            if kind in ("CERTIFICATE", "X509 CERTIFICATE", "TRUSTED CERTIFICATE"):
                found.append(Certificate.from_der(encoded))
            elif kind == "PKCS7":
                found += _bundle(encoded)
        if not found:
            raise Unreadable("a PEM file without a certificate")
        return found
    if data[:1] != b"\x30":
        raise Unreadable("neither a PEM file nor DER")
    # RFC 5280 §4.2.2.1: behind caIssuers is a certificate or a "certs-only" CMS message, which begins with an OID.
    try:
        return [Certificate.from_der(data)]
    except Unreadable:
        if b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02" in data[:24]:
            return _bundle(data)
        raise


def read_certificates(path: Path) -> list[Certificate]:
    """The certificates of a file. Raises `ConfigError`."""
    try:
        return parse_certificates(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"the certificate file {path} cannot be read: {error.strerror}") from error
    except Unreadable as error:
        raise ConfigError(f"{path} cannot be used as a certificate: {error}") from error


def _bundle(encoded: bytes) -> list[Certificate]:
    with reading("a PKCS #7 bundle of certificates"):
        certificates = pkcs7.load_der_pkcs7_certificates(encoded)
    return [Certificate.from_der(each.public_bytes(Encoding.DER)) for each in certificates]


def _load(kind: type[core.Asn1Value], encoded: bytes | None) -> Any:  # noqa: ANN401 - asn1crypto has no types
    return None if encoded is None else kind.load(encoded, strict=True).native


def _urls(encoded: bytes | None, method: str) -> tuple[str, ...]:
    if encoded is None:
        return ()
    return tuple(
        str(each["access_location"].chosen.native)
        for each in asn1_x509.AuthorityInfoAccessSyntax.load(encoded, strict=True)
        if each["access_method"].dotted == method and each["access_location"].name == "uniform_resource_identifier"
    )
