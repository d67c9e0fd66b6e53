"""Asking a responder about many certificates of one CA, as a client would, and believing only what is signed for it.

Without a nonce and by POST: what a client gets whose answer may come from the responder's memory.

Trusted: nobody on the way. An answer counts when the CA's own key signed it, or that of a responder certificate that
the CA issued (RFC 6960 §4.2.2.2), about this certificate, and it is in force.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import aiohttp
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID, SignatureAlgorithmOID

from lakthan.algorithms import HashAlgorithm
from lakthan.certificates import CertificateView
from lakthan.errors import LakthanError
from lakthan.keys.verification import verify
from lakthan.store.records import CRLReason
from lakthan_registry.monitor_crl import Revocation

if TYPE_CHECKING:
    from collections.abc import Iterable

_AT_ONCE = 8
_LARGEST_ANSWER = 64 * 1024
_TIMEOUT = aiohttp.ClientTimeout(total=15, sock_connect=5)
_CLOCKS = timedelta(minutes=5)
_REVOKED = ocsp.OCSPCertStatus.REVOKED


class NoAnswer(LakthanError):
    """The responder gave no answer that counts. The message says why."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a responder says of a certificate: `good`, `revoked` or `unknown`, and when and why it was revoked."""

    status: str
    revocation: Revocation | None = None


async def ask_about(
    session: aiohttp.ClientSession, url: str, issuer: x509.Certificate, serial_numbers: Iterable[bytes]
) -> dict[bytes, Said | NoAnswer]:
    """Ask one responder about all of them, a few at a time."""
    answers: dict[bytes, Said | NoAnswer] = {}
    left = iter(serial_numbers)

    async def work() -> None:
        for serial_number in left:
            try:
                answers[serial_number] = await _ask(session, url, issuer, serial_number)
            except NoAnswer as error:
                answers[serial_number] = error

    await asyncio.gather(*(work() for _ in range(_AT_ONCE)))
    return answers


async def _ask(session: aiohttp.ClientSession, url: str, issuer: x509.Certificate, serial_number: bytes) -> Said:
    number = int.from_bytes(serial_number, "big", signed=True)
    view = CertificateView.of(issuer)
    try:
        request = ocsp.OCSPRequestBuilder().add_certificate_by_hash(
            HashAlgorithm.SHA_256.digest(view.subject),
            HashAlgorithm.SHA_256.digest(view.public_key),
            number,
            hashes.SHA256(),
        )
        headers = {"Content-Type": "application/ocsp-request"}
        async with session.post(
            url, data=request.build().public_bytes(Encoding.DER), headers=headers, timeout=_TIMEOUT
        ) as reply:
            if reply.status != 200:
                raise NoAnswer(f"HTTP {reply.status}")
            body = await reply.content.read(_LARGEST_ANSWER)
        return _read(body, issuer, number)
    except TimeoutError as error:
        raise NoAnswer("no answer in time") from error
    except (aiohttp.ClientError, OSError) as error:
        raise NoAnswer(f"the connection failed: {str(error) or type(error).__name__}") from error
    except (ValueError, UnsupportedAlgorithm, InvalidSignature, TypeError) as error:
        raise NoAnswer(f"what came cannot be read or verified ({str(error) or type(error).__name__})") from error


def _read(body: bytes, issuer: x509.Certificate, number: int) -> Said:
    response = ocsp.load_der_ocsp_response(body)
    if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
        raise NoAnswer(f"it says {response.response_status.name}")
    _verify(response, issuer)
    single = next((each for each in response.responses if each.serial_number == number), None)
    if single is None:
        raise NoAnswer("the answer is about another certificate")
    now = datetime.now(UTC)
    if single.this_update_utc > now + _CLOCKS or (single.next_update_utc or now) < now - _CLOCKS:
        raise NoAnswer(f"the answer is not in force: {single.this_update_utc} to {single.next_update_utc}")
    if single.certificate_status is not _REVOKED or single.revocation_time_utc is None:
        return Said(single.certificate_status.name.lower())
    reason = single.revocation_reason
    label = CRLReason.UNSPECIFIED if reason is None else CRLReason.from_label(reason.value)
    return Said("revoked", Revocation(single.revocation_time_utc, label))


def _verify(response: ocsp.OCSPResponse, issuer: x509.Certificate) -> None:
    """Raises `NoAnswer` when nobody who may speak for the issuer signed it, `InvalidSignature` when nobody did."""
    signer = issuer
    for certificate in response.certificates:
        if certificate == issuer:
            break
        purposes, _ = CertificateView.of(certificate).extended_key_usage()
        if ExtendedKeyUsageOID.OCSP_SIGNING.dotted_string in purposes:
            certificate.verify_directly_issued_by(issuer)
            signer = certificate
            break
    key = signer.public_key()
    signed = response.signature, response.tbs_response_bytes
    if response.signature_algorithm_oid == SignatureAlgorithmOID.RSASSA_PSS:
        # With the parameters that responders of this house use; with others it does not hold.
        verify(key, HashAlgorithm.SHA_256, *signed, pss=True)
        return
    digest = response.signature_hash_algorithm
    if isinstance(key, rsa.RSAPublicKey) and digest is not None:
        key.verify(*signed, padding.PKCS1v15(), digest)
    elif isinstance(key, ec.EllipticCurvePublicKey) and digest is not None:
        key.verify(*signed, ec.ECDSA(digest))
    elif isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        key.verify(*signed)
    else:
        raise NoAnswer(f"signatures of {type(key).__name__} are not verified here")
