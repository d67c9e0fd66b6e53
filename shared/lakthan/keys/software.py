"""Private keys in files, held in memory.

Trusted: whoever can read the file, or this process's memory, can sign as its owner. For demonstrations, tests, and
responders whose certificates live for days; a key that must outlive the machine belongs in an HSM.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, padding, rsa

from lakthan.algorithms import ECDSA_WITH_SHA384, SignatureAlgorithm, signature_algorithm_of
from lakthan.errors import ConfigError
from lakthan.keys.pss import wants_pss
from lakthan.keys.threads import SigningThreads

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

    from lakthan.config import KeyURI
    from lakthan.keys.threads import Told

SoftwareKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | mldsa.MLDSA65PrivateKey


class SoftwareSigner:
    """Signs in the caller's thread when that is quicker than handing over (P-256, P-384, Ed25519, RSA-2048), and in
    threads of its own when one signature would hold up the event loop for most of a millisecond (larger RSA, ML-DSA);
    cryptography lets other threads run while it signs.
    """

    __slots__ = ("_key", "_raw_sign", "_threads", "algorithm", "public_key")

    algorithm: SignatureAlgorithm
    public_key: PublicKeyTypes

    def __init__(self, key: SoftwareKey, *, pss: bool = False) -> None:
        self._key = key
        self.public_key = key.public_key()
        self.algorithm = signature_algorithm_of(self.public_key, pss=pss)
        self._raw_sign = _raw_sign(key, self.algorithm)
        large_rsa = isinstance(key, rsa.RSAPrivateKey) and key.key_size > 2048
        slow = large_rsa or isinstance(key, mldsa.MLDSA65PrivateKey)
        self._threads = SigningThreads(self._raw_sign, _threads_of_use()) if slow else None

    @classmethod
    def load(cls, path: Path, passphrase: bytes | None = None, *, pss: bool = False) -> SoftwareSigner:
        """Read a PEM key, with the pass phrase where it is encrypted. `pss`: an RSA key signs with RSASSA-PSS. Raises
        `ConfigError`.
        """
        try:
            pem = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"the key file {error.filename} cannot be read: {error.strerror}") from error
        try:
            key = serialization.load_pem_private_key(pem, passphrase)
        except TypeError as error:  # how the library says "encrypted, no phrase" and "phrase, not encrypted"
            hint = "it has a pin-source but is not encrypted" if passphrase else "it is encrypted: add ?pin-source=FILE"
            raise ConfigError(f"the key {path} cannot be opened: {hint}") from error
        except ValueError as error:
            raise ConfigError(f"{path} is not a PEM private key that this pass phrase opens") from error
        if not isinstance(key, SoftwareKey):
            raise ConfigError(f"{path} holds a {type(key).__name__}: use P-256, P-384, RSA, Ed25519 or ML-DSA-65")
        return cls(key, pss=pss)

    @property
    def sign_at_once(self) -> Callable[[bytes], bytes] | None:
        """See `lakthan.keys.sign_at_once`."""
        return self._raw_sign if self._threads is None else None

    @property
    def sign_later(self) -> Callable[[bytes, Told], None] | None:
        """See `lakthan.keys.sign_later`."""
        return None if self._threads is None else self._threads.submit

    async def sign(self, message: bytes) -> bytes:
        """See `Signer.sign`."""
        if self._threads is None:
            return self._raw_sign(message)
        return await self._threads.sign(message)

    async def aclose(self) -> None:
        """See `Signer.aclose`."""
        if self._threads is not None:
            self._threads.close()


def _threads_of_use() -> int:
    """Two, or one where this process has one core: there a second only costs changes between them."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # a system that cannot tell
        cores = os.cpu_count() or 1
    return min(2, cores)


class KeyFile(NamedTuple):
    """What a `file:` URI names. `passphrase`: None for a key that is not encrypted."""

    path: Path
    passphrase: bytes | None
    pss: bool


def key_file(key: KeyURI) -> KeyFile:
    """The file of a `file:` URI; the pass phrase is the first line of its `pin-source`. Raises `ConfigError`."""
    parts = urlsplit(key.uri)
    attributes = parse_qs(parts.query, keep_blank_values=True)
    if parts.scheme != "file" or parts.netloc:
        raise ConfigError(f"the key {key.uri!r} has no known scheme: write file:PATH or pkcs11:…")
    unknown = attributes.keys() - {"pin-source", "x-signature"}
    if unknown:
        raise ConfigError(
            f"the key {key.uri!r} has an unknown attribute {min(unknown)!r}: known are pin-source and x-signature"
        )
    if "\0" in unquote(key.uri):
        raise ConfigError(f"the key {key.uri!r} has a NUL in the name of a file: no file is called so")
    pss = wants_pss(key)
    path = key.folder / unquote(parts.path)
    if "pin-source" not in attributes:
        return KeyFile(path, None, pss)
    source = key.folder / attributes["pin-source"][0].removeprefix("file:")
    try:
        return KeyFile(path, source.read_bytes().split(b"\n", 1)[0].rstrip(b"\r"), pss)
    except OSError as error:
        raise ConfigError(f"the key file {error.filename} cannot be read: {error.strerror}") from error


def _raw_sign(key: SoftwareKey, algorithm: SignatureAlgorithm) -> Callable[[bytes], bytes]:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        scheme = ec.ECDSA(hashes.SHA384() if algorithm is ECDSA_WITH_SHA384 else hashes.SHA256())
        return lambda message: key.sign(message, scheme)
    if isinstance(key, rsa.RSAPrivateKey):
        digest = hashes.SHA256()
        way = padding.PSS(padding.MGF1(digest), digest.digest_size) if algorithm.pss else padding.PKCS1v15()
        return lambda message: key.sign(message, way, digest)
    return key.sign
