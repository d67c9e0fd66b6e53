"""The public half of a key in a token: in the public key object beside it, in an RSA private key itself, or in a file.

A file (`x-public-key`: a PEM public key or certificate) is for tokens that keep no public key, and for kinds of keys
whose form in a token this program does not know yet. It decides which algorithm the key signs with, and nothing else is
trusted to it: a key that signs otherwise is found out when it is opened.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidKey, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from lakthan import der
from lakthan.errors import ConfigError
from lakthan.keys import cryptoki

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

    from lakthan.keys.pkcs11_token import Token

_KNOWN = (cryptoki.CKK_RSA, cryptoki.CKK_EC, cryptoki.CKK_EC_EDWARDS)
_CURVES: dict[bytes, ec.EllipticCurve] = {
    der.object_identifier("1.2.840.10045.3.1.7"): ec.SECP256R1(),
    der.object_identifier("1.3.132.0.34"): ec.SECP384R1(),
    der.object_identifier("1.3.132.0.35"): ec.SECP521R1(),
}


def public_key_of(token: Token, session: int, key: int, key_type: int) -> PublicKeyTypes:
    """The public half of the private key with this handle. Raises `ConfigError`."""
    library, uri = token.library.cryptoki, token.uri
    if uri.public_key is not None:
        return _from_file(uri.public_key)
    if key_type not in _KNOWN:
        raise ConfigError(
            f"the key {uri} is of PKCS#11 key type {key_type:#x}: use RSA, EC or Ed25519; or add x-public-key=FILE, "
            "x-mechanism and x-input"
        )
    found = token.find(session, cryptoki.CKO_PUBLIC_KEY)
    if key_type == cryptoki.CKK_RSA:
        holder = found[0] if found else key
        modulus, exponent = (
            int.from_bytes(library.attribute(session, holder, kind), "big")
            for kind in (cryptoki.CKA_MODULUS, cryptoki.CKA_PUBLIC_EXPONENT)
        )
        return rsa.RSAPublicNumbers(exponent, modulus).public_key()
    if not found:
        raise ConfigError(
            f"the key {uri} has no public key object beside it: import that one too, or add x-public-key=FILE"
        )
    point = library.attribute(session, found[0], cryptoki.CKA_EC_POINT)
    with suppress(der.DERError):  # the standard wraps it into an OCTET STRING, some tokens do not
        reader = der.Reader(point)
        unwrapped = reader.content(der.OCTET_STRING)
        reader.finish()
        point = unwrapped
    try:
        if key_type == cryptoki.CKK_EC_EDWARDS:
            return ed25519.Ed25519PublicKey.from_public_bytes(point)
        curve = _CURVES.get(library.attribute(session, found[0], cryptoki.CKA_EC_PARAMS))
        if curve is None:
            raise ConfigError(f"the key {uri} lies on an unknown curve: use P-256 or P-384")
        return ec.EllipticCurvePublicKey.from_encoded_point(curve, point)
    except (ValueError, InvalidKey) as error:
        raise ConfigError(f"the public key of {uri} cannot be read: {error}") from error


def _from_file(path: Path) -> PublicKeyTypes:
    try:
        pem = path.read_bytes()
        if b"CERTIFICATE" in pem:
            return x509.load_pem_x509_certificate(pem).public_key()
        return load_pem_public_key(pem)
    except OSError as error:
        raise ConfigError(f"the public key {path} cannot be read: {error.strerror}") from error
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise ConfigError(f"{path} holds no PEM public key and no PEM certificate") from error
