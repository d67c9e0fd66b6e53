"""The `Signer` protocol, how one is opened from its URI, and the proof that it fits its certificate."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, padding, rsa

from lakthan.config import KeyURI
from lakthan.errors import SignerUnusable
from lakthan.keys.pkcs11 import PKCS11Signer
from lakthan.keys.software import SoftwareSigner, key_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

    from lakthan.algorithms import HashAlgorithm, SignatureAlgorithm

_HASHES = {"SHA_256": hashes.SHA256(), "SHA_384": hashes.SHA384(), "SHA_512": hashes.SHA512()}


class Signer(Protocol):
    """One private key.

    `sign` gives the signature octets as they stand in X.509 (ECDSA-Sig-Value, PKCS#1 v1.5, Ed25519). It raises
    `SignerBusy` when the key has too much to do, and `SignerUnusable` when it cannot sign; it never gives a wrong
    signature knowingly. After `aclose` it is not used again.
    """

    @property
    def algorithm(self) -> SignatureAlgorithm:
        """The algorithm of every signature that this key makes."""

    @property
    def public_key(self) -> PublicKeyTypes:
        """The public half."""

    async def sign(self, message: bytes) -> bytes:
        """The signature of `message`, hashed as `algorithm` says."""

    async def aclose(self) -> None:
        """Let go of the key."""


def open_signer(key: KeyURI) -> Signer:
    """The signer that `key` names.

    Raises `ConfigError` when there is no such key, it cannot be read, or its kind cannot sign here.
    """
    if key.uri.startswith("pkcs11:"):
        return PKCS11Signer.load(key)
    path, passphrase = key_file(key)
    return SoftwareSigner.load(path, passphrase)


def verify(public_key: PublicKeyTypes, hash_algorithm: HashAlgorithm, signature: bytes, message: bytes) -> None:
    """Raise `InvalidSignature` unless `signature` over `message` was made with the private half of `public_key`."""
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        public_key.verify(signature, message, ec.ECDSA(_HASHES[hash_algorithm.name]))
    elif isinstance(public_key, rsa.RSAPublicKey):
        public_key.verify(signature, message, padding.PKCS1v15(), _HASHES[hash_algorithm.name])
    elif isinstance(public_key, ed25519.Ed25519PublicKey | mldsa.MLDSA65PublicKey):
        public_key.verify(signature, message)
    else:
        raise InvalidSignature(f"{type(public_key).__name__} keys do not sign here")


async def prove(signer: Signer, certified_key: PublicKeyTypes) -> None:
    """Sign random octets and verify them with the key that the certificate names.

    Done once at start for every key: a key that does not belong to its certificate, or a device that signs wrongly,
    never serves. Raises `SignerUnusable`.
    """
    message = os.urandom(32)
    signature = await signer.sign(message)
    try:
        verify(certified_key, signer.algorithm.hash, signature, message)
    except InvalidSignature as error:
        raise SignerUnusable(
            "the private key does not belong to the certificate: a test signature does not verify"
        ) from error
