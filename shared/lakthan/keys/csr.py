"""A certification request (PKCS#10, RFC 2986) for a key wherever it lives: the request is ours, the signature its.

The extensions that it asks for are what the certificates of this house must have; the CA decides all the same.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from lakthan import der

if TYPE_CHECKING:
    from lakthan.keys.signer import Signer

_ID_EXTENSION_REQUEST = der.object_identifier("1.2.840.113549.1.9.14")
_ID_CE_KEY_USAGE = der.object_identifier("2.5.29.15")
_ID_CE_EXT_KEY_USAGE = der.object_identifier("2.5.29.37")
_ID_PKIX_OCSP_NOCHECK = der.object_identifier("1.3.6.1.5.5.7.48.1.5")
_ID_KP_OCSP_SIGNING = der.object_identifier("1.3.6.1.5.5.7.3.9")
_ID_KP_TIME_STAMPING = der.object_identifier("1.3.6.1.5.5.7.3.8")
_CRITICAL = b"\x01\x01\xff"
_DIGITAL_SIGNATURE = der.sequence(_ID_CE_KEY_USAGE, _CRITICAL, der.octet_string(b"\x03\x02\x07\x80"))


class Purpose(Enum):
    """What the certificate will be for, and with it the extensions that are asked for."""

    # RFC 6960 §4.2.2.2 and §4.2.2.2.1.
    OCSP = der.sequence(_ID_CE_EXT_KEY_USAGE, der.octet_string(der.sequence(_ID_KP_OCSP_SIGNING))) + der.sequence(
        _ID_PKIX_OCSP_NOCHECK, der.octet_string(b"\x05\x00")
    )
    # RFC 3161 §2.3: critical, and no other purpose.
    TSA = der.sequence(_ID_CE_EXT_KEY_USAGE, _CRITICAL, der.octet_string(der.sequence(_ID_KP_TIME_STAMPING)))


async def certification_request(
    signer: Signer, subject: bytes, purpose: Purpose, *, more_extensions: bytes = b""
) -> bytes:
    """The DER of a CertificationRequest for the signer's key. `subject`: the DER of a Name (RFC 2986 §4).
    `more_extensions`: encoded, such as the subjectAltName of the certificate before.

    Raises what `Signer.sign` raises.
    """
    extensions = der.sequence(_DIGITAL_SIGNATURE + purpose.value + more_extensions)
    attribute = der.sequence(_ID_EXTENSION_REQUEST, der.encode(der.SET, extensions))
    information = der.sequence(
        der.encode(der.INTEGER, b"\x00"),
        subject,
        signer.public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        der.encode(0xA0, attribute),
    )
    signature = await signer.sign(information)
    return der.sequence(
        information, signer.algorithm.algorithm_identifier, der.encode(der.BIT_STRING, b"\x00" + signature)
    )
