"""The hash and signature algorithms that Lakthan speaks, with their encoded AlgorithmIdentifiers.

One table each; whoever needs an OID, a size or an encoding asks here. SHA-1 appears among the hashes because
clients still name certificates with it (RFC 9919 §3.2.1); no signature algorithm here uses it, and none may.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa

from lakthan import der
from lakthan.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

NULL = b"\x05\x00"


class HashAlgorithm(Enum):
    """A hash function: its name in `hashlib`, object identifier and digest size in octets."""

    SHA_1 = ("sha1", "1.3.14.3.2.26", 20)
    SHA_224 = ("sha224", "2.16.840.1.101.3.4.2.4", 28)
    SHA_256 = ("sha256", "2.16.840.1.101.3.4.2.1", 32)
    SHA_384 = ("sha384", "2.16.840.1.101.3.4.2.2", 48)
    SHA_512 = ("sha512", "2.16.840.1.101.3.4.2.3", 64)
    SHA3_256 = ("sha3_256", "2.16.840.1.101.3.4.2.8", 32)
    SHA3_384 = ("sha3_384", "2.16.840.1.101.3.4.2.9", 48)
    SHA3_512 = ("sha3_512", "2.16.840.1.101.3.4.2.10", 64)

    def __init__(self, hashlib_name: str, oid: str, digest_size: int) -> None:
        self.label = hashlib_name.replace("_", "-").replace("sha3-", "SHA3-").replace("sha", "SHA-")
        self.oid = oid
        self.oid_der = der.object_identifier(oid)
        self.digest_size = digest_size
        self.new = getattr(hashlib, hashlib_name)
        self.algorithm_identifier = der.sequence(self.oid_der)
        self.algorithm_identifier_with_null = der.sequence(self.oid_der, NULL)

    def digest(self, data: bytes) -> bytes:
        """The digest of `data`, `digest_size` octets."""
        digest: bytes = self.new(data).digest()
        return digest


# RFC 5754 §2: the parameters of a hash algorithm are absent or NULL, and both are in use (OCSP-Q22).
HASH_BY_ALGORITHM_IDENTIFIER = {
    encoded: algorithm
    for algorithm in HashAlgorithm
    for encoded in (algorithm.algorithm_identifier, algorithm.algorithm_identifier_with_null)
}


@dataclass(frozen=True, slots=True)
class SignatureAlgorithm:
    """How a key of one kind signs.

    `algorithm_identifier` is what X.509 and OCSP carry; `cms_algorithm_identifier` is what a CMS SignerInfo carries,
    where RSA keys are named by rsaEncryption (RFC 3370 §3.2) because every reader knows that form. `pss`: an RSA key
    signs with RSASSA-PSS.
    """

    label: str
    hash: HashAlgorithm
    algorithm_identifier: bytes
    cms_algorithm_identifier: bytes
    pss: bool = False


_RSA_ENCRYPTION = der.sequence(der.object_identifier("1.2.840.113549.1.1.1"), NULL)


def _plain(label: str, digest: HashAlgorithm, oid: str) -> SignatureAlgorithm:
    identifier = der.sequence(der.object_identifier(oid))
    return SignatureAlgorithm(label, digest, identifier, identifier)


ECDSA_WITH_SHA256 = _plain("ecdsa-with-SHA256", HashAlgorithm.SHA_256, "1.2.840.10045.4.3.2")
ECDSA_WITH_SHA384 = _plain("ecdsa-with-SHA384", HashAlgorithm.SHA_384, "1.2.840.10045.4.3.3")
# RFC 8419 §3.1: a CMS signer with Ed25519 digests with SHA-512.
ED25519 = _plain("Ed25519", HashAlgorithm.SHA_512, "1.3.101.112")
# RFC 9882 §3.3: a CMS signer with ML-DSA-65 may digest with SHA-512.
ML_DSA_65 = _plain("ML-DSA-65", HashAlgorithm.SHA_512, "2.16.840.1.101.3.4.3.18")
SHA256_WITH_RSA = SignatureAlgorithm(
    "sha256WithRSAEncryption",
    HashAlgorithm.SHA_256,
    der.sequence(der.object_identifier("1.2.840.113549.1.1.11"), NULL),
    _RSA_ENCRYPTION,
)


def _pss(digest: HashAlgorithm) -> SignatureAlgorithm:
    """RSASSA-PSS with one hash for everything, and salt as long as it (RFC 4055 §3.1; the form of RFC 8017 §A.2.3).

    RFC 4055 §2.1 writes the hash with NULL, and so does everybody who signs this way.
    """
    mask = der.sequence(der.object_identifier("1.2.840.113549.1.1.8"), digest.algorithm_identifier_with_null)
    parameters = der.sequence(
        der.encode(0xA0, digest.algorithm_identifier_with_null),
        der.encode(0xA1, mask),
        der.encode(0xA2, der.integer(digest.digest_size)),
    )
    identifier = der.sequence(der.object_identifier("1.2.840.113549.1.1.10"), parameters)
    return SignatureAlgorithm(f"id-RSASSA-PSS with {digest.label}", digest, identifier, identifier, pss=True)


RSASSA_PSS_SHA256 = _pss(HashAlgorithm.SHA_256)


def signature_algorithm_of(public_key: PublicKeyTypes, *, pss: bool = False) -> SignatureAlgorithm:
    """The one algorithm that a key of this kind signs with here; of an RSA key `pss` says which.

    Raises `ConfigError` for kinds that no deployed validator accepts: other curves, RSA below 2048 or above 4096 bits.

    OCSP-33, OCSP-66.
    """
    if pss and not isinstance(public_key, rsa.RSAPublicKey):
        raise ConfigError(f"x-signature=pss is for RSA keys, and this is a {type(public_key).__name__}: leave it out")
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        if isinstance(public_key.curve, ec.SECP256R1):
            return ECDSA_WITH_SHA256
        if isinstance(public_key.curve, ec.SECP384R1):
            return ECDSA_WITH_SHA384
        raise ConfigError(f"an EC key on {public_key.curve.name} cannot sign here: use P-256 or P-384")
    if isinstance(public_key, rsa.RSAPublicKey):
        if 2048 <= public_key.key_size <= 4096:
            return RSASSA_PSS_SHA256 if pss else SHA256_WITH_RSA
        raise ConfigError(f"an RSA key of {public_key.key_size} bits cannot sign here: use 2048 to 4096")
    if isinstance(public_key, ed25519.Ed25519PublicKey):
        return ED25519
    if isinstance(public_key, mldsa.MLDSA65PublicKey):
        return ML_DSA_65
    raise ConfigError(f"a {type(public_key).__name__} cannot sign here: use P-256, P-384, RSA, Ed25519 or ML-DSA-65")
