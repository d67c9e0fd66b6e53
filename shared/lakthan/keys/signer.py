"""The `Signer` protocol, how one is opened from its URI, and the proof that it fits its certificate."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from cryptography.exceptions import InvalidSignature

from lakthan.config import KeyURI
from lakthan.errors import SignerUnusable
from lakthan.keys.awskms import AWSKey
from lakthan.keys.pkcs11 import PKCS11Signer
from lakthan.keys.remote import RemoteSigner
from lakthan.keys.software import SoftwareSigner, key_file
from lakthan.keys.vault import VaultKey
from lakthan.keys.verification import verify

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

    from lakthan.algorithms import SignatureAlgorithm
    from lakthan.keys.threads import Told

__all__ = ["Signer", "open_signer", "prove", "sign_at_once", "sign_later", "verify"]


class Signer(Protocol):
    """One private key.

    `sign` gives the signature octets as they stand in X.509 (ECDSA-Sig-Value, RSA by PKCS#1 v1.5 or
    PSS, Ed25519). It raises
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

    Raises `ConfigError` when there is no such key, it cannot be read, or its kind cannot sign here. A key behind an API
    is asked for its public half, which may take seconds: while something else is served, call this in a thread.
    """
    if key.uri.startswith("vault:"):
        return RemoteSigner(VaultKey(key))
    if key.uri.startswith("awskms:"):
        return RemoteSigner(AWSKey(key))
    if key.uri.startswith("pkcs11:"):
        return PKCS11Signer.load(key)
    file = key_file(key)
    return SoftwareSigner.load(file.path, file.passphrase, pss=file.pss)


def sign_at_once(signer: Signer) -> Callable[[bytes], bytes] | None:
    """A function that signs in the caller's thread, for keys whose signature costs less than to wait for it does; None
    for all others, which hold up the event loop or wait for a device.
    """
    return signer.sign_at_once if isinstance(signer, SoftwareSigner) else None


def sign_later(signer: Signer) -> Callable[[bytes, Told], None] | None:
    """A function that has a message signed by a thread, and calls with the signature, or with the reason why there is
    none, in a later turn of the running event loop: `Signer.sign` without a task. For keys in this process that take
    their time; None for all others. It raises what `Signer.sign` raises before it waits; then nobody is called.
    """
    return signer.sign_later if isinstance(signer, SoftwareSigner) else None


async def prove(signer: Signer, certified_key: PublicKeyTypes) -> None:
    """Sign random octets and verify them with the key that the certificate names.

    Done once at start for every key: a key that does not belong to its certificate, or a device that signs wrongly,
    never serves. Raises `SignerUnusable`.
    """
    message = os.urandom(32)
    signature = await signer.sign(message)
    try:
        verify(certified_key, signer.algorithm.hash, signature, message, pss=signer.algorithm.pss)
    except InvalidSignature as error:
        raise SignerUnusable(
            "the private key does not belong to the certificate: a test signature does not verify"
        ) from error
