"""Certificates as the services need them: the octets that go into answers, taken apart once at start."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from lakthan import der
from lakthan.algorithms import HashAlgorithm
from lakthan.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path


@dataclass(frozen=True, slots=True, eq=False)
class CertificateView:
    """One certificate, and the parts of its DER that OCSP and CMS quote.

    `subject`, `issuer`: the Name elements as encoded. `serial_number`: the INTEGER element.
    `public_key_algorithm`: the AlgorithmIdentifier of the subjectPublicKeyInfo. `public_key`: the content of the
    subjectPublicKey BIT STRING without tag, length and unused-bits octet, which is what a keyHash and a byKey
    ResponderID are made of (RFC 6960 §4.1.1 and §4.2.1).
    """

    certificate: x509.Certificate
    encoded: bytes
    subject: bytes = field(init=False)
    issuer: bytes = field(init=False)
    serial_number: bytes = field(init=False)
    public_key_algorithm: bytes = field(init=False)
    public_key: bytes = field(init=False)

    def __post_init__(self) -> None:
        # RFC 5280 §4.1: TBSCertificate ::= version [0], serialNumber, signature, issuer, validity, subject, spki, …
        tbs = der.Reader(self.encoded).enter(der.SEQUENCE).enter(der.SEQUENCE)
        if tbs.peek() == 0xA0:
            tbs.head()
        put = object.__setattr__
        put(self, "serial_number", tbs.element(der.INTEGER))
        tbs.head()
        put(self, "issuer", tbs.element(der.SEQUENCE))
        tbs.head()
        put(self, "subject", tbs.element(der.SEQUENCE))
        spki = tbs.enter(der.SEQUENCE)
        put(self, "public_key_algorithm", spki.element(der.SEQUENCE))
        put(self, "public_key", spki.content(der.BIT_STRING)[1:])

    @classmethod
    def of(cls, certificate: x509.Certificate) -> CertificateView:
        """The view of a parsed certificate."""
        return cls(certificate, certificate.public_bytes(Encoding.DER))

    @classmethod
    def from_der(cls, encoded: bytes) -> CertificateView:
        """The view of an encoded certificate. Raises `ValueError` when it is not one."""
        try:
            return cls(x509.load_der_x509_certificate(encoded), encoded)
        except x509.InvalidVersion as error:
            raise ValueError(str(error)) from error

    @property
    def key_hash(self) -> bytes:
        """SHA-1 of the public key, which a byKey ResponderID is to this day (RFC 6960 §4.2.1)."""
        return HashAlgorithm.SHA_1.digest(self.public_key)

    @property
    def not_before(self) -> datetime:
        """The first instant of its validity, UTC."""
        return self.certificate.not_valid_before_utc

    @property
    def not_after(self) -> datetime:
        """The last instant of its validity, UTC."""
        return self.certificate.not_valid_after_utc

    @property
    def name(self) -> str:
        """The subject for people (RFC 4514)."""
        return _written(lambda: self.certificate.subject)

    @property
    def issuer_name(self) -> str:
        """The issuer for people (RFC 4514)."""
        return _written(lambda: self.certificate.issuer)

    def extended_key_usage(self) -> tuple[list[str], bool]:
        """The dotted purposes of its extendedKeyUsage, and whether it is critical; ([], False) without one."""
        try:
            extension = self.certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
        except x509.ExtensionNotFound:
            return [], False
        return [purpose.dotted_string for purpose in extension.value], extension.critical

    def is_ca(self) -> bool:
        """True when basicConstraints says cA."""
        try:
            return self.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        except x509.ExtensionNotFound:
            return False

    def issued_by(self, issuer: CertificateView) -> bool:
        """True when `issuer` carries the issuer's name and the key that signed this certificate."""
        try:
            self.certificate.verify_directly_issued_by(issuer.certificate)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            return False
        return True


def _written(name: Callable[[], x509.Name]) -> str:
    try:
        return name().rfc4514_string()
    except (ValueError, TypeError):  # cryptography reads names late, and has both for one that breaks its rules
        return "a name that cannot be read"


def read_certificates(path: Path) -> list[CertificateView]:
    """Every certificate of a PEM file, in its order. Raises `ConfigError` when there is none or one is broken."""
    try:
        certificates = x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"the certificate file {path} cannot be read: {error.strerror}") from error
    except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} is not a PEM file of certificates: {error}") from error
    return [CertificateView.of(certificate) for certificate in certificates]
