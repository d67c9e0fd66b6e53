"""What to ask: the CertID of a certificate, and the OCSPRequest around it (RFC 6960 §4.1)."""

from __future__ import annotations

import hashlib
from typing import Any

from asn1crypto import algos, core, ocsp

from lakthan_cli.ocsp.certificate import Certificate
from lakthan_cli.ocsp.message import CertID

# Option → the identifier of the hash algorithm. SHA-1 names an issuer here, it signs nothing (RFC 9919 §3.2.1).
HASHES = {
    "sha1": "1.3.14.3.2.26",
    "sha224": "2.16.840.1.101.3.4.2.4",
    "sha256": "2.16.840.1.101.3.4.2.1",
    "sha384": "2.16.840.1.101.3.4.2.2",
    "sha512": "2.16.840.1.101.3.4.2.3",
}
NONCE_OCTETS = 32  # RFC 9654 §2.1: what a client sends at least


def cert_id(certificate: Certificate, issuer: Certificate, hash_name: str) -> CertID:
    """The CertID of a certificate. The name that is hashed is the one in the certificate itself (RFC 6960 §4.1.1)."""
    return CertID(
        HASHES[hash_name],
        hashlib.new(hash_name, certificate.issuer.dump(), usedforsecurity=False).digest(),
        hashlib.new(hash_name, issuer.key_bits, usedforsecurity=False).digest(),
        certificate.serial_number,
    )


def cert_id_of_serial(serial_number: int, issuer: Certificate, hash_name: str) -> CertID:
    """The CertID of a certificate of which nothing else is at hand; the name is as the issuer itself encodes it."""
    return CertID(
        HASHES[hash_name],
        hashlib.new(hash_name, issuer.subject.dump(), usedforsecurity=False).digest(),
        hashlib.new(hash_name, issuer.key_bits, usedforsecurity=False).digest(),
        serial_number,
    )


def every_cert_id(certificate: Certificate, issuer: Certificate) -> list[CertID]:
    """All that somebody may have asked: every hash algorithm, and the name as either certificate encodes it."""
    asked = [cert_id(certificate, issuer, name) for name in HASHES]
    by_subject = [
        CertID(
            each.hash_algorithm,
            hashlib.new(name, issuer.subject.dump(), usedforsecurity=False).digest(),
            each.issuer_key_hash,
            each.serial_number,
        )
        for name, each in zip(HASHES, asked, strict=True)
    ]
    return asked + [each for each in by_subject if each not in asked]


def encode(asked: CertID, nonce: bytes | None) -> bytes:
    """The OCSPRequest, unsigned. `nonce`: RFC 9654 §2.1, None for none."""
    tbs_request: dict[str, Any] = {
        "request_list": [
            {
                "req_cert": {
                    "hash_algorithm": algos.DigestAlgorithm({"algorithm": asked.hash_algorithm}),
                    "issuer_name_hash": asked.issuer_name_hash,
                    "issuer_key_hash": asked.issuer_key_hash,
                    "serial_number": asked.serial_number,
                }
            }
        ]
    }
    if nonce is not None:
        tbs_request["request_extensions"] = [{"extn_id": "nonce", "extn_value": core.OctetString(nonce)}]
    encoded: bytes = ocsp.OCSPRequest({"tbs_request": tbs_request}).dump()
    return encoded
