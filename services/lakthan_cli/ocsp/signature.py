"""Signatures of answers and certificates, verified by pyca/cryptography; and which algorithms are worth something.

`problem` says only whether the mathematics holds; `weakness` whether that means anything today. They are apart because
a client must see both: a broken signature and a signature by a broken algorithm are different news.
"""

from __future__ import annotations

from collections.abc import Mapping

from asn1crypto import algos
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, mldsa, padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

_RSA_PSS = "1.2.840.113549.1.1.10"
_RSA: Mapping[str, tuple[str, hashes.HashAlgorithm]] = {
    "1.2.840.113549.1.1.4": ("md5WithRSAEncryption", hashes.MD5()),  # noqa: S303
    "1.2.840.113549.1.1.5": ("sha1WithRSAEncryption", hashes.SHA1()),  # noqa: S303
    "1.2.840.113549.1.1.14": ("sha224WithRSAEncryption", hashes.SHA224()),
    "1.2.840.113549.1.1.11": ("sha256WithRSAEncryption", hashes.SHA256()),
    "1.2.840.113549.1.1.12": ("sha384WithRSAEncryption", hashes.SHA384()),
    "1.2.840.113549.1.1.13": ("sha512WithRSAEncryption", hashes.SHA512()),
    "2.16.840.1.101.3.4.3.14": ("id-rsassa-pkcs1-v1-5-with-sha3-256", hashes.SHA3_256()),
    "2.16.840.1.101.3.4.3.15": ("id-rsassa-pkcs1-v1-5-with-sha3-384", hashes.SHA3_384()),
    "2.16.840.1.101.3.4.3.16": ("id-rsassa-pkcs1-v1-5-with-sha3-512", hashes.SHA3_512()),
}
_ECDSA: Mapping[str, tuple[str, hashes.HashAlgorithm]] = {
    "1.2.840.10045.4.1": ("ecdsa-with-SHA1", hashes.SHA1()),  # noqa: S303
    "1.2.840.10045.4.3.1": ("ecdsa-with-SHA224", hashes.SHA224()),
    "1.2.840.10045.4.3.2": ("ecdsa-with-SHA256", hashes.SHA256()),
    "1.2.840.10045.4.3.3": ("ecdsa-with-SHA384", hashes.SHA384()),
    "1.2.840.10045.4.3.4": ("ecdsa-with-SHA512", hashes.SHA512()),
    "2.16.840.1.101.3.4.3.10": ("id-ecdsa-with-sha3-256", hashes.SHA3_256()),
    "2.16.840.1.101.3.4.3.11": ("id-ecdsa-with-sha3-384", hashes.SHA3_384()),
    "2.16.840.1.101.3.4.3.12": ("id-ecdsa-with-sha3-512", hashes.SHA3_512()),
}
_DSA: Mapping[str, tuple[str, hashes.HashAlgorithm]] = {
    "1.2.840.10040.4.3": ("dsa-with-sha1", hashes.SHA1()),  # noqa: S303
    "2.16.840.1.101.3.4.3.1": ("dsa-with-sha224", hashes.SHA224()),
    "2.16.840.1.101.3.4.3.2": ("dsa-with-sha256", hashes.SHA256()),
}
# Keys that know their one algorithm.
_PURE: Mapping[str, tuple[str, type]] = {
    "1.3.101.112": ("Ed25519", ed25519.Ed25519PublicKey),
    "1.3.101.113": ("Ed448", ed448.Ed448PublicKey),
    "2.16.840.1.101.3.4.3.17": ("ML-DSA-44", mldsa.MLDSA44PublicKey),
    "2.16.840.1.101.3.4.3.18": ("ML-DSA-65", mldsa.MLDSA65PublicKey),
    "2.16.840.1.101.3.4.3.19": ("ML-DSA-87", mldsa.MLDSA87PublicKey),
}
_DIGESTS: Mapping[str, hashes.HashAlgorithm] = {
    "1.3.14.3.2.26": hashes.SHA1(),  # noqa: S303
    "2.16.840.1.101.3.4.2.4": hashes.SHA224(),
    "2.16.840.1.101.3.4.2.1": hashes.SHA256(),
    "2.16.840.1.101.3.4.2.2": hashes.SHA384(),
    "2.16.840.1.101.3.4.2.3": hashes.SHA512(),
}
_SMALLEST_RSA_BITS = 2048


def element(algorithm: algos.SignedDigestAlgorithm) -> bytes:
    """The AlgorithmIdentifier as it came, with its identifier read. Raises what asn1crypto raises."""
    encoded: bytes = algorithm.dump()
    _oid(encoded)
    return encoded


def label(algorithm: bytes) -> str:
    """The name of an AlgorithmIdentifier in the RFCs' spelling, or its dotted identifier."""
    oid = _oid(algorithm)
    if oid == _RSA_PSS:
        digest, salt_octets = _pss(algorithm)
        return f"id-RSASSA-PSS with {digest.name.upper()} and {salt_octets} octets of salt"
    for table in (_RSA, _ECDSA, _DSA, _PURE):
        if oid in table:
            return str(table[oid][0])
    return oid


def problem(public_key: bytes, algorithm: bytes, signature: bytes, message: bytes) -> str | None:
    """Why the signature does not hold, or None when it does. `public_key`: a SubjectPublicKeyInfo."""
    try:
        return _problem(public_key, algorithm, signature, message)
    except InvalidSignature:
        return "the signature is not by this key over these octets"
    except (ValueError, TypeError, KeyError, UnsupportedAlgorithm) as error:
        return f"the signature cannot be verified: {str(error) or type(error).__name__}"


def weakness(public_key: bytes, algorithm: bytes) -> str | None:
    """Why signatures of this kind prove nothing today, or None."""
    oid = _oid(algorithm)
    try:
        digest = _pss(algorithm)[0] if oid == _RSA_PSS else {**_RSA, **_ECDSA, **_DSA}.get(oid, ("", None))[1]
    except (ValueError, TypeError, KeyError) as error:
        return f"its parameters cannot be read: {error}"
    if isinstance(digest, hashes.MD5 | hashes.SHA1):
        return f"{label(algorithm)}: anybody can make two messages with one {digest.name.upper()} digest"
    try:
        key = load_der_public_key(public_key)
    except (ValueError, UnsupportedAlgorithm) as error:
        return f"the key cannot be read: {error}"
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < _SMALLEST_RSA_BITS:
        return f"an RSA key of {key.key_size} bits"
    return None


def _problem(public_key: bytes, algorithm: bytes, signature: bytes, message: bytes) -> str | None:
    oid = _oid(algorithm)
    key = load_der_public_key(public_key)
    if oid == _RSA_PSS and isinstance(key, rsa.RSAPublicKey):
        digest, salt_octets = _pss(algorithm)
        key.verify(signature, message, padding.PSS(padding.MGF1(digest), salt_octets), digest)
    elif oid in _RSA and isinstance(key, rsa.RSAPublicKey):
        key.verify(signature, message, padding.PKCS1v15(), _RSA[oid][1])
    elif oid in _ECDSA and isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(signature, message, ec.ECDSA(_ECDSA[oid][1]))
    elif oid in _DSA and isinstance(key, dsa.DSAPublicKey):
        key.verify(signature, message, _DSA[oid][1])
    elif oid in _PURE and isinstance(key, _PURE[oid][1]):
        key.verify(signature, message)  # type: ignore[union-attr, call-arg]
    else:
        return f"{label(algorithm)} is not an algorithm that this tool can verify with such a key"
    return None


def _oid(algorithm: bytes) -> str:
    return str(algos.SignedDigestAlgorithm.load(algorithm)["algorithm"].dotted)


def _pss(algorithm: bytes) -> tuple[hashes.HashAlgorithm, int]:
    """RFC 4055 §3.1. Raises `ValueError` for parameters that nobody uses, so that none is overlooked."""
    parameters = algos.SignedDigestAlgorithm.load(algorithm)["parameters"]
    digest = parameters["hash_algorithm"]["algorithm"].dotted
    generator = parameters["mask_gen_algorithm"]
    if generator["algorithm"].native != "mgf1" or generator["parameters"]["algorithm"].dotted != digest:
        raise ValueError("RSASSA-PSS with a mask generation other than MGF1 over the same hash")
    if digest not in _DIGESTS or parameters["trailer_field"].native != "trailer_field_bc":
        raise ValueError("RSASSA-PSS with unusual parameters")
    return _DIGESTS[digest], int(parameters["salt_length"].native)
