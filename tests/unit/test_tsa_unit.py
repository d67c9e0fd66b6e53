"""Which certificates may stamp, and how long (RFC 3161 §2.3)."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from lakthan.certificates import CertificateView
from lakthan.errors import ConfigError
from lakthan_tsa.unit import UsagePeriod, check_unit
from support.pki import issue
from support.programs import need
from support.tsa import UNIT_EXTENSIONS, Extensions, key_usage, new_unit

EKU, KEY_USAGE = UNIT_EXTENSIONS
NO_REV_AVAIL = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.56"), b"\x05\x00")
NOW = datetime.now(UTC).replace(microsecond=0, tzinfo=None)


PSS = """
[req]
distinguished_name = name
x509_extensions = unit
prompt = no
[name]
CN = PSS
[unit]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = critical, timeStamping
"""


def checked(extensions: Extensions) -> UsagePeriod:
    """The usage period of a unit with these extensions."""
    return check_unit(CertificateView.from_der(new_unit(extensions=extensions).leaf.der))


@pytest.mark.parametrize(
    "usage",
    [
        key_usage(digital_signature=True),
        key_usage(content_commitment=True),
        key_usage(digital_signature=True, content_commitment=True),
    ],
)
def test_fit(usage: x509.KeyUsage) -> None:
    """The one purpose timeStamping, critical, and a key usage for signatures: such a unit may stamp. TSA-K1."""
    period = checked((EKU, (usage, True)))
    assert period.not_before < period.not_after


@pytest.mark.parametrize(
    ("extensions", "complaint"),
    [
        ((KEY_USAGE,), "extendedKeyUsage"),
        (((EKU[0], False), KEY_USAGE), "extendedKeyUsage"),
        (
            (
                (
                    x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING, ExtendedKeyUsageOID.CODE_SIGNING]),
                    True,
                ),
                KEY_USAGE,
            ),
            "extendedKeyUsage",
        ),
        (((x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), True), KEY_USAGE), "extendedKeyUsage"),
        ((EKU,), "keyUsage"),
        ((EKU, (KEY_USAGE[0], False)), "keyUsage"),
        ((EKU, (key_usage(key_encipherment=True), True)), "keyUsage"),
        ((EKU, (key_usage(digital_signature=True, key_encipherment=True), True)), "keyUsage"),
        ((EKU, (key_usage(digital_signature=True, crl_sign=True), True)), "keyUsage"),
        ((EKU, KEY_USAGE, (x509.OCSPNoCheck(), False)), "nocheck"),
        ((EKU, KEY_USAGE, (NO_REV_AVAIL, False)), "noRevAvail"),
        (
            (EKU, KEY_USAGE, (x509.PrivateKeyUsagePeriod(None, NOW - timedelta(days=9)), False)),
            "privateKeyUsagePeriod",
        ),
    ],
)
def test_unfit(extensions: Extensions, complaint: str) -> None:
    """Whatever a validator of tokens would refuse is refused at start, and the message says what is wrong.

    TSA-K1, TSA-K2, TSA-K10.
    """
    with pytest.raises(ConfigError, match=complaint):
        checked(extensions)


def test_keys_that_validators_do_not_read(tmp_path: Path) -> None:
    """A unit with Ed25519, or with RSA for PSS alone, would give tokens that hardly anybody can verify: it is refused.

    TSA-V14, TSA-V15.
    """
    (tmp_path / "pss.cnf").write_text(PSS)
    make = "req -x509 -newkey rsa-pss -pkeyopt rsa_keygen_bits:2048 -nodes -config pss.cnf -keyout key -out pss.pem"
    subprocess.run([need("openssl"), *make.split()], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    pss = x509.load_pem_x509_certificate((tmp_path / "pss.pem").read_bytes())
    for certificate in (new_unit("Ed25519").leaf.certificate, pss):
        with pytest.raises(ConfigError, match="kind of key; use P-256"):
            check_unit(CertificateView.of(certificate))


def test_ca() -> None:
    """A CA is no time-stamping unit, even when its extensions are right. TSA-K1, TSA-Q20."""
    ca = issue("CA", ca=True, extensions=UNIT_EXTENSIONS)
    with pytest.raises(ConfigError, match="CA certificate"):
        check_unit(CertificateView.from_der(ca.der))


def test_validity_bounds_the_key() -> None:
    """Without a usage period of its own the key may stamp as long as its certificate is valid, both ends included.

    TSA-K5.
    """
    leaf = new_unit().leaf.certificate
    period = check_unit(CertificateView.of(leaf))
    second = timedelta(seconds=1)
    assert period.covers(leaf.not_valid_before_utc)
    assert period.covers(leaf.not_valid_after_utc)
    assert not period.covers(leaf.not_valid_before_utc - second)
    assert not period.covers(leaf.not_valid_after_utc + second)


def test_private_key_usage_period() -> None:
    """The key stops earlier than its certificate when privateKeyUsagePeriod says so, and starts later.

    TSA-K4, TSA-K5.
    """
    begin, end = NOW + timedelta(hours=1), NOW + timedelta(days=2)
    period = checked((*UNIT_EXTENSIONS, (x509.PrivateKeyUsagePeriod(begin, end), False)))
    assert (period.not_before, period.not_after) == (begin.replace(tzinfo=UTC), end.replace(tzinfo=UTC))
    period = checked((*UNIT_EXTENSIONS, (x509.PrivateKeyUsagePeriod(None, NOW + timedelta(days=999)), False)))
    assert period.not_after < datetime.now(UTC) + timedelta(days=31)
