"""What a time-stamping unit's certificate must say before its key may stamp, and how long it may.

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
from cryptography.x509.oid import ExtendedKeyUsageOID

from lakthan.errors import ConfigError

if TYPE_CHECKING:
    from lakthan.certificates import CertificateView

_TIME_STAMPING = ExtendedKeyUsageOID.TIME_STAMPING.dotted_string


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
    if any(isinstance(extension.value, x509.OCSPNoCheck) for extension in view.certificate.extensions):
        raise _unfit(view, "it carries id-pkix-ocsp-nocheck, which validators of long-term signatures refuse in a TSU")
    return _usage_period(view)


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
