"""What to ask: the TimeStampReq (RFC 3161 §2.4.1)."""

from __future__ import annotations

import secrets

from lakthan import der
from lakthan_cli.tsa.imprint import Hash

_VERSION_1 = der.integer(1)
_TRUE = b"\x01\x01\xff"


def new_nonce() -> int:
    """64 random bits, as RFC 3161 §2.4.1 has it; never zero, which careless readers take for none."""
    return secrets.randbelow(2**64 - 1) + 1


def encode(digest: bytes, algorithm: Hash, *, policy: str | None, nonce: int | None, cert_req: bool) -> bytes:
    """The TimeStampReq. Raises `ValueError` when `policy` is no object identifier."""
    # RFC 5754 §2: the parameters of these hash algorithms are best left out.
    imprint = der.sequence(der.sequence(der.object_identifier(algorithm.oid)), der.octet_string(digest))
    return der.sequence(
        _VERSION_1,
        imprint,
        b"" if policy is None else der.object_identifier(policy),
        b"" if nonce is None else der.integer(nonce),
        _TRUE if cert_req else b"",
    )
