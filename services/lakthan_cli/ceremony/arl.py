"""The ARL: a complete CRL of the root, written out here (RFC 5280 §5) because the key that signs it may be in a device.

`draft` gives the octets to sign, `seal` takes the signature; reading and judging it is the business of `verification`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography import x509

from lakthan import der

if TYPE_CHECKING:
    from datetime import datetime

    from lakthan.certificates import CertificateView
    from lakthan_cli.ceremony.programme import Programme

_CRL_NUMBER = der.object_identifier("2.5.29.20")
_REASON_CODE = der.object_identifier("2.5.29.21")
_AUTHORITY_KEY_IDENTIFIER = der.object_identifier("2.5.29.35")
_UTC_TIME = 0x17
_V2 = 1


def draft(programme: Programme, algorithm_identifier: bytes) -> bytes:
    """TBSCertList (RFC 5280 §5.1.2): every revoked certificate of the plan, the cRLNumber and the root's key."""
    root = programme.plan.root_view
    entries = b"".join(
        der.sequence(
            der.encode(der.INTEGER, sub_ca.serial_number),
            time(sub_ca.revocation_time),
            der.sequence(_extension(_REASON_CODE, der.encode(der.ENUMERATED, bytes((sub_ca.revocation_reason,))))),
        )
        for sub_ca in sorted(programme.plan.sub_cas, key=lambda each: each.serial_number)
        if sub_ca.revocation_time is not None and sub_ca.revocation_reason is not None
    )
    extensions = der.sequence(
        _extension(_AUTHORITY_KEY_IDENTIFIER, der.sequence(der.encode(0x80, _key_identifier(root)))),
        _extension(_CRL_NUMBER, der.integer(programme.plan.arl.number)),
    )
    return der.sequence(
        der.integer(_V2),
        algorithm_identifier,
        root.subject,
        time(programme.now),
        time(programme.arl_next_update),
        der.sequence(entries) if entries else b"",  # RFC 5280 §5.1.2.6: absent rather than empty
        der.encode(0xA0, extensions),
    )


def seal(tbs: bytes, algorithm_identifier: bytes, signature: bytes) -> bytes:
    """CertificateList."""
    return der.sequence(tbs, algorithm_identifier, der.bit_string(signature))


def time(instant: datetime) -> bytes:
    """UTCTime until 2049, GeneralizedTime from 2050 (RFC 5280 §5.1.2.4)."""
    generalized = der.generalized_time(instant)
    return generalized if instant.year >= 2050 else der.encode(_UTC_TIME, generalized[4:])


def _extension(oid: bytes, value: bytes) -> bytes:
    return der.sequence(oid, der.octet_string(value))


def _key_identifier(root: CertificateView) -> bytes:
    try:
        return root.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        return root.key_hash
