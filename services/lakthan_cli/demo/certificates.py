"""The certificate profiles of the demo: what a certificate of each kind says about its key.

Promises: every certificate that `issue` makes has a random positive serial number, both key identifiers, whole
seconds, and a validity inside that of its issuer. The profile functions give the other extensions.

Refuses to know: files, the database, and which certificates the demo has (`lakthan_cli.demo.inventory` does).

Lives by: RFC 5280 §4.2, RFC 6960 §4.2.2.2 (responders), RFC 3161 §2.3 (the time-stamping unit).
"""

from __future__ import annotations

import ipaddress
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, mldsa, rsa
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | mldsa.MLDSA65PrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
Extension = tuple[x509.ExtensionType, bool]  # with its `critical`

ORGANIZATION = "ຫຼັກຖານ · Lakthan Demo PKI"
# Nobody can mistake these for real policies: 2.999 is the arc that is kept for examples, 418 the number of the Lao PDR.
POLICY_ARC = "2.999.418"
DOCUMENT_SIGNING = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.36")  # RFC 9336 §3.1


@dataclass(frozen=True, slots=True)
class Urls:
    """Where the running demo answers; certificates carry these. No slash at the end."""

    ocsp: str
    publication: str


@dataclass(frozen=True, slots=True)
class Validity:
    """Both ends are part of it, aware UTC, whole seconds."""

    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Issuer:
    """A certification authority that can sign. `name` is the one in the database and in its URLs."""

    name: str
    certificate: x509.Certificate
    key: PrivateKey


def new_key(kind: str) -> PrivateKey:
    """A fresh private key: `P-256`, `P-384`, `ML-DSA-65`, or `RSA-` and the number of bits."""
    if kind == "P-256":
        return ec.generate_private_key(ec.SECP256R1())
    if kind == "P-384":
        return ec.generate_private_key(ec.SECP384R1())
    if kind == "ML-DSA-65":
        return mldsa.MLDSA65PrivateKey.generate()
    return rsa.generate_private_key(65537, int(kind.removeprefix("RSA-")))


def subject_name(common_name: str) -> x509.Name:
    """C=LA, the demo's organization, and `common_name`, as UTF8String (RFC 5280 §4.1.2.4).

    No more than 64 octets of UTF-8 each: the standard counts characters, but some readers count octets, and a letter
    of Lao is three.
    """
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "LA"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANIZATION),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ],
    )


def issue(
    issuer: Issuer | None,
    subject: x509.Name,
    key: PrivateKey,
    validity: Validity,
    extensions: Sequence[Extension],
) -> x509.Certificate:
    """A certificate of `key`, signed by `issuer`, or by `key` itself when that is None."""
    public_key = key.public_key()
    not_after = validity.not_after
    if issuer is None:
        issuer_name, signing_key, authority_key = subject, key, public_key
    else:
        issuer_name, signing_key = issuer.certificate.subject, issuer.key
        authority_key = issuer.key.public_key()
        not_after = min(not_after, issuer.certificate.not_valid_after_utc)
    builder = (
        x509.CertificateBuilder()
        .issuer_name(issuer_name)
        .subject_name(subject)
        .public_key(public_key)
        # 127 bits: never negative, never longer than the 20 octets of RFC 5280 §4.1.2.2, never to be guessed.
        .serial_number(secrets.randbelow(2**127 - 1) + 1)
        .not_valid_before(validity.not_before)
        .not_valid_after(not_after)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key), critical=False)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(signing_key, hash_of(signing_key))


def hash_of(key: PrivateKey) -> hashes.SHA256 | hashes.SHA384 | None:
    """The hash that goes with what `key` signs: as strong as the key, no stronger; None where the key does without."""
    if isinstance(key, mldsa.MLDSA65PrivateKey):
        return None
    wide = isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP384R1)
    return hashes.SHA384() if wide else hashes.SHA256()


def root_profile() -> list[Extension]:
    """A trust anchor: nobody asks for its status, so it says nothing about where to."""
    return [(x509.BasicConstraints(ca=True, path_length=1), True), (_AUTHORITY_KEY_USAGE, True)]


def authority_profile(urls: Urls, issuer: str, *, only_time_stamping: bool = False) -> list[Extension]:
    """A CA that issues to subscribers only.

    The one above the time-stamping unit is bound to that purpose, which some verifiers of code signatures demand.
    It must not say OCSPSigning: that would make it a responder of the root (RFC 6960 §4.2.2.2).
    """
    extensions: list[Extension] = [
        (x509.BasicConstraints(ca=True, path_length=0), True),
        (_AUTHORITY_KEY_USAGE, True),
        (_policies("2.5.29.32.0"), False),
        *_where_to_ask(urls, issuer),
    ]
    if only_time_stamping:
        extensions.append((x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING]), False))
    return extensions


def responder_profile() -> list[Extension]:
    """A delegated OCSP responder (RFC 6960 §4.2.2.2). `nocheck` in place of any place to ask about it (§4.2.2.2.1)."""
    return [
        (_NOT_AN_AUTHORITY, True),
        (_key_usage(digital_signature=True), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING]), False),
        (x509.OCSPNoCheck(), False),
    ]


def time_stamping_profile(urls: Urls, issuer: str, key_use: Validity) -> list[Extension]:
    """A time-stamping unit (RFC 3161 §2.3): one purpose, critical. Its key signs during `key_use` only, so that its
    certificate can prove for years what the key stamped (ETSI EN 319 422 §6.4). It never has `nocheck`.
    """
    return [
        (_NOT_AN_AUTHORITY, True),
        (_key_usage(digital_signature=True), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING]), True),
        (x509.PrivateKeyUsagePeriod(key_use.not_before, key_use.not_after), False),
        (_policies(f"{POLICY_ARC}.4"), False),
        *_where_to_ask(urls, issuer),
    ]


def tls_profile(urls: Urls, issuer: str) -> list[Extension]:
    """A TLS server and client on this machine."""
    names = [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ]
    return [
        (_NOT_AN_AUTHORITY, True),
        (_key_usage(digital_signature=True), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), False),
        (x509.SubjectAlternativeName(names), False),
        (_policies(f"{POLICY_ARC}.1"), False),
        *_where_to_ask(urls, issuer),
    ]


def document_profile(urls: Urls, issuer: str) -> list[Extension]:
    """A person who signs documents and stands by it: nonRepudiation, which X.509 now calls contentCommitment."""
    return [
        (_NOT_AN_AUTHORITY, True),
        (_key_usage(digital_signature=True, content_commitment=True), True),
        (x509.ExtendedKeyUsage([DOCUMENT_SIGNING, ExtendedKeyUsageOID.EMAIL_PROTECTION]), False),
        (_policies(f"{POLICY_ARC}.2"), False),
        *_where_to_ask(urls, issuer),
    ]


def mail_profile(urls: Urls, issuer: str, email: str) -> list[Extension]:
    """A person who signs mail by S/MIME (RFC 8550 §4.4)."""
    return [
        (_NOT_AN_AUTHORITY, True),
        (_key_usage(digital_signature=True), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False),
        (x509.SubjectAlternativeName([x509.RFC822Name(email)]), False),
        (_policies(f"{POLICY_ARC}.3"), False),
        *_where_to_ask(urls, issuer),
    ]


def _where_to_ask(urls: Urls, issuer: str) -> list[Extension]:
    """Where the issuer's answers, certificate and CRL are (RFC 5280 §4.2.1.13, §4.2.2.1)."""
    access = [
        (AuthorityInformationAccessOID.OCSP, urls.ocsp),
        (AuthorityInformationAccessOID.CA_ISSUERS, f"{urls.publication}/ca/{issuer}.cer"),
    ]
    crl = x509.UniformResourceIdentifier(f"{urls.publication}/crl/{issuer}.crl")
    points = [x509.DistributionPoint(full_name=[crl], relative_name=None, reasons=None, crl_issuer=None)]
    described = [x509.AccessDescription(method, x509.UniformResourceIdentifier(url)) for method, url in access]
    return [(x509.AuthorityInformationAccess(described), False), (x509.CRLDistributionPoints(points), False)]


def _policies(*identifiers: str) -> x509.CertificatePolicies:
    return x509.CertificatePolicies(
        [x509.PolicyInformation(x509.ObjectIdentifier(identifier), None) for identifier in identifiers],
    )


def _key_usage(
    *,
    digital_signature: bool = False,
    content_commitment: bool = False,
    certificates_and_crls: bool = False,
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=content_commitment,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certificates_and_crls,
        crl_sign=certificates_and_crls,
        encipher_only=False,
        decipher_only=False,
    )


# Without digitalSignature, so that an authority's own key cannot pass for a responder's.
_AUTHORITY_KEY_USAGE = _key_usage(certificates_and_crls=True)
_NOT_AN_AUTHORITY = x509.BasicConstraints(ca=False, path_length=None)
