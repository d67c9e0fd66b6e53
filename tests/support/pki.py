"""A small PKI for tests, made with pyca/cryptography: independent of the code under test and of the demo's PKI."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lakthan import der

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | mldsa.MLDSA65PrivateKey
KEY_KINDS = ("P-256", "P-384", "RSA-2048", "RSA-3072", "RSA-4096", "Ed25519")


def new_key(kind: str) -> PrivateKey:
    """A fresh private key of one of KEY_KINDS, or ML-DSA-65."""
    if kind == "ML-DSA-65":
        return mldsa.MLDSA65PrivateKey.generate()
    if kind == "Ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    if kind.startswith("RSA-"):
        return rsa.generate_private_key(65537, int(kind.removeprefix("RSA-")))
    return ec.generate_private_key(ec.SECP256R1() if kind == "P-256" else ec.SECP384R1())


@cache
def shared_key(kind: str) -> PrivateKey:
    """A key of this kind that lives as long as the tests: large RSA keys take seconds to make."""
    return new_key(kind)


def serial_content(certificate: x509.Certificate) -> bytes:
    """The serial number as the store keeps it."""
    return der.integer_content(certificate.serial_number)


@dataclass(frozen=True)
class Issued:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: PrivateKey

    @property
    def der(self) -> bytes:
        """The certificate, DER."""
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def serial_number(self) -> bytes:
        """As the store keeps it."""
        return serial_content(self.certificate)

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Write `name`.pem and `name`.key."""
        certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
        certificate.write_bytes(self.certificate.public_bytes(Encoding.PEM))
        key.write_bytes(self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return certificate, key


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.COUNTRY_NAME, "LA"), x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    )


def issue(
    common_name: str,
    issuer: Issued | None = None,
    *,
    kind: str = "P-256",
    ca: bool = False,
    extensions: tuple[tuple[x509.ExtensionType, bool], ...] = (),
    serial_number: int | None = None,
    valid: tuple[timedelta, timedelta] = (timedelta(hours=-1), timedelta(days=30)),
    key: PrivateKey | None = None,
) -> Issued:
    """A certificate; self-signed without an issuer. `valid`: from and until, relative to now."""
    key = key or (shared_key(kind) if kind.startswith("RSA") else new_key(kind))
    now = datetime.now(UTC).replace(microsecond=0)
    subject = _name(common_name)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(serial_number or x509.random_serial_number())
        .not_valid_before(now + valid[0])
        .not_valid_after(now + valid[1])
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    signing_key = issuer.key if issuer else key
    if issuer:
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.certificate.public_key()),  # type: ignore[arg-type]
            critical=False,
        )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    hashless = isinstance(signing_key, ed25519.Ed25519PrivateKey | mldsa.MLDSA65PrivateKey)
    digest = None if hashless else hashes.SHA256()
    return Issued(builder.sign(signing_key, digest), key)


def new_ca(common_name: str, issuer: Issued | None = None, *, kind: str = "P-256") -> Issued:
    """A certification authority."""
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    return issue(common_name, issuer, kind=kind, ca=True, extensions=((usage, True),))


def new_responder(
    issuer: Issued,
    *,
    kind: str = "P-256",
    valid: tuple[timedelta, timedelta] = (timedelta(hours=-1), timedelta(days=30)),
    nocheck: bool = True,
) -> Issued:
    """A delegated OCSP responder (RFC 6960 §4.2.2.2)."""
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING]), False)
    ]
    if nocheck:
        extensions.append((x509.OCSPNoCheck(), False))
    return issue("OCSP ຜູ້ຕອບ", issuer, kind=kind, valid=valid, extensions=tuple(extensions))


def with_unknown_signature(issued: Issued) -> bytes:
    """The certificate with an ECDSA signature algorithm that nobody knows in both places, DER."""
    known, unknown = (bytes.fromhex(f"06082a8648ce3d0403{last}") for last in ("02", "7f"))
    assert issued.der.count(known) == 2
    return issued.der.replace(known, unknown)
