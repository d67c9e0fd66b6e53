"""What a time-stamping unit's certificate must say before its key may stamp, how long it may, and how long a signature
gets.

Promises: `check_unit` passes only certificates whose tokens every validator takes. `UsagePeriod.covers` is asked for
every single token, because a service that was fine at start may outlive its key.

Refuses to know: revocation, and whether the chain leads to somebody's root.

Lives by: RFC 3161 §2.3, RFC 5280 §4.2.1.3 and §4.2.1.9; the private key's usage period is RFC 3280 §4.2.1.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, mldsa, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from lakthan import der
from lakthan.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

    from lakthan.algorithms import SignatureAlgorithm
    from lakthan.certificates import CertificateView

_MLDSA_65_OCTETS = 3309  # FIPS 204, table 2
_TIME_STAMPING = ExtendedKeyUsageOID.TIME_STAMPING.dotted_string
_RSASSA_PSS = der.object_identifier("1.2.840.113549.1.1.10")
# Whoever has to validate a token in thirty years must be able to find out whether its unit was revoked.
_NO_STATUS = {"1.3.6.1.5.5.7.48.1.5": "id-pkix-ocsp-nocheck", "2.5.29.56": "noRevAvail"}


@dataclass(frozen=True, slots=True)
class UsagePeriod:
    """When the key may stamp: the certificate's validity, cut by the privateKeyUsagePeriod. Both ends belong to it."""

    not_before: datetime
    not_after: datetime

    def covers(self, gen_time: datetime) -> bool:
        """True when a token of this instant may be signed."""
        return self.not_before <= gen_time <= self.not_after


def check_unit(view: CertificateView) -> UsagePeriod:
    """The usage period of a certificate that is fit for a time-stamping unit (RFC 3161 §2.3).

    Raises `ConfigError` that names the certificate and what it lacks.
    """
    purposes, critical = view.extended_key_usage()
    if purposes != [_TIME_STAMPING] or not critical:
        raise _unfit(view, "its extendedKeyUsage must be critical and name timeStamping alone")
    if view.is_ca():
        raise _unfit(view, "it is a CA certificate; issue one to the unit itself")
    _check_key_usage(view)
    _check_key(view)
    for extension in view.certificate.extensions:
        if extension.oid.dotted_string in _NO_STATUS:
            name = _NO_STATUS[extension.oid.dotted_string]
            raise _unfit(view, f"it carries {name}, which validators of long-term signatures refuse in a TSU")
    return _usage_period(view)


def check_algorithm(view: CertificateView, algorithm: SignatureAlgorithm) -> None:
    """Raise `ConfigError` for a signature that verifiers of tokens do not read. TSA-V14."""
    if algorithm.pss:
        raise _unfit(
            view,
            "verifiers of tokens (openssl ts and all that take a token for PKCS#7) do not read RSASSA-PSS; leave "
            "x-signature=pss out of its key's URI",
        )


def longest_signature(public_key: PublicKeyTypes) -> int:
    """The octets of the longest signature that a key of this kind makes."""
    if isinstance(public_key, rsa.RSAPublicKey):
        return public_key.key_size // 8
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        # Two INTEGERs as wide as the group, each with a sign octet, tag and length, in a SEQUENCE (RFC 3279 §2.2.3).
        return 2 * (public_key.curve.key_size // 8 + 3) + 2
    return _MLDSA_65_OCTETS  # `check_unit` lets nothing else pass


def _check_key(view: CertificateView) -> None:
    public_key = view.certificate.public_key()
    if _RSASSA_PSS in view.public_key_algorithm or not isinstance(
        public_key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey | mldsa.MLDSA65PublicKey
    ):
        raise _unfit(view, "validators of tokens do not read its kind of key; use P-256, P-384, RSA or ML-DSA-65")


def _check_key_usage(view: CertificateView) -> None:
    try:
        extension = view.certificate.extensions.get_extension_for_class(x509.KeyUsage)
    except x509.ExtensionNotFound as error:
        raise _unfit(view, "it has no keyUsage") from error
    if not extension.critical:
        raise _unfit(view, "its keyUsage must be critical")
    usage = extension.value
    others = (
        usage.key_encipherment
        or usage.data_encipherment
        or usage.key_agreement
        or usage.key_cert_sign
        or usage.crl_sign
    )
    if others or not (usage.digital_signature or usage.content_commitment):
        raise _unfit(view, "its keyUsage must be digitalSignature, nonRepudiation or both, and nothing else")


def _usage_period(view: CertificateView) -> UsagePeriod:
    not_before, not_after = view.not_before, view.not_after
    for extension in view.certificate.extensions:
        period = extension.value
        if not isinstance(period, x509.PrivateKeyUsagePeriod):
            continue
        if period.not_before is not None:
            not_before = max(not_before, period.not_before.replace(tzinfo=UTC))
        if period.not_after is not None:
            not_after = min(not_after, period.not_after.replace(tzinfo=UTC))
    if not_after < not_before:
        raise _unfit(view, "its privateKeyUsagePeriod and its validity have no instant in common")
    return UsagePeriod(not_before, not_after)


def _unfit(view: CertificateView, why: str) -> ConfigError:
    return ConfigError(f"{view.name} cannot be a time-stamping unit: {why}")
