"""Whether a signature is that of a key, for every kind of key that signs here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, padding, rsa

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

    from lakthan.algorithms import HashAlgorithm

_HASHES = {"SHA_256": hashes.SHA256(), "SHA_384": hashes.SHA384(), "SHA_512": hashes.SHA512()}


def verify(
    public_key: PublicKeyTypes, hash_algorithm: HashAlgorithm, signature: bytes, message: bytes, *, pss: bool = False
) -> None:
    """Raise `InvalidSignature` unless `signature` over `message` was made with the private half of `public_key`.

    `pss`: by RSASSA-PSS, MGF1 with the same hash, and salt as long as a digest.
    """
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        public_key.verify(signature, message, ec.ECDSA(_HASHES[hash_algorithm.name]))
    elif isinstance(public_key, rsa.RSAPublicKey):
        digest = _HASHES[hash_algorithm.name]
        scheme = padding.PSS(padding.MGF1(digest), digest.digest_size) if pss else padding.PKCS1v15()
        public_key.verify(signature, message, scheme, digest)
    elif isinstance(public_key, ed25519.Ed25519PublicKey | mldsa.MLDSA65PublicKey):
        public_key.verify(signature, message)
    else:
        raise InvalidSignature(f"{type(public_key).__name__} keys do not sign here")
