"""Signed requests: whether the signature is right, and whether its certificate comes from a CA that is welcome.

Only for authorities that ask for it; everybody else's requests are answered whoever signed them (RFC 9919 §3.1.2).
Certificates inside a request serve for nothing else (RFC 6960 §4.1.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import SignatureAlgorithmOID

from lakthan import der
from lakthan.algorithms import HashAlgorithm
from lakthan.certificates import CertificateView
from lakthan.errors import ConfigError
from lakthan.keys.signer import verify
from lakthan_ocsp.syntax import OCSPResponseStatus, RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from lakthan_ocsp.syntax import RequestSignature

_HASHES = {
    der.object_identifier(oid.dotted_string): algorithm
    for oid, algorithm in (
        (SignatureAlgorithmOID.ECDSA_WITH_SHA256, HashAlgorithm.SHA_256),
        (SignatureAlgorithmOID.ECDSA_WITH_SHA384, HashAlgorithm.SHA_384),
        (SignatureAlgorithmOID.ECDSA_WITH_SHA512, HashAlgorithm.SHA_512),
        (SignatureAlgorithmOID.RSA_WITH_SHA256, HashAlgorithm.SHA_256),
        (SignatureAlgorithmOID.RSA_WITH_SHA384, HashAlgorithm.SHA_384),
        (SignatureAlgorithmOID.RSA_WITH_SHA512, HashAlgorithm.SHA_512),
        (SignatureAlgorithmOID.ED25519, HashAlgorithm.SHA_512),
    )
}
_LONGEST_CHAIN = 4


class Requestors:
    """Whose signed requests are taken. `mode`: as in `ResponderConfig.signed_requests`; `anchors`: CAs of clients."""

    def __init__(self, mode: Literal["ignore", "verify", "require"], anchors: Sequence[CertificateView]) -> None:
        if mode != "ignore" and not anchors:
            raise ConfigError(f"signed_requests = {mode!r} needs `requestors`, the CAs that clients are certified by")
        self._mode = mode
        self._anchors = anchors

    def check(self, signature: RequestSignature | None, now: datetime) -> None:
        """Raise `RequestError`: sigRequired without a signature that is required, malformedRequest for one without a
        requestorName (RFC 6960 §4.1.2), unauthorized for one that is wrong or whose signer is not welcome.
        """
        if self._mode == "ignore":
            return
        if signature is None:
            if self._mode == "require":
                raise RequestError(OCSPResponseStatus.SIG_REQUIRED, "a signed request is required")
            return
        if not signature.named:
            raise RequestError(OCSPResponseStatus.MALFORMED_REQUEST, "a signed request without requestorName")
        try:
            self._verify(signature, now)
        except (InvalidSignature, ValueError) as error:
            raise RequestError(OCSPResponseStatus.UNAUTHORIZED, f"the request's signature: {error}") from error

    def _verify(self, signature: RequestSignature, now: datetime) -> None:
        algorithm = _HASHES.get(signature.algorithm)
        if algorithm is None:
            raise InvalidSignature("an algorithm that is not accepted")
        views = [CertificateView.from_der(encoded) for encoded in signature.certs[:_LONGEST_CHAIN]]
        if not views:
            raise InvalidSignature("no certificate with it")
        verify(views[0].certificate.public_key(), algorithm, signature.signature, signature.tbs_request)
        self._check_chain(views, now)

    def _check_chain(self, views: list[CertificateView], now: datetime) -> None:
        """Climb from the signer to an anchor through the certificates that came along, each in force and a CA."""
        below = views[0]
        for _ in range(_LONGEST_CHAIN):
            if not below.not_before <= now <= below.not_after:
                raise InvalidSignature(f"{below.name} is not in force")
            if any(below.issued_by(anchor) for anchor in self._anchors):
                return
            above = next((view for view in views[1:] if view.is_ca() and below.issued_by(view)), None)
            if above is None:
                break
            below = above
        raise InvalidSignature(f"{views[0].name} is not certified by a CA whose clients are served")
