"""New keys, where their URI says: in a file, or in an HSM, which then never lets the private half out.

A key that is there already is never overwritten: whoever wants another one names another one.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from lakthan import der
from lakthan.errors import ConfigError, SignerUnusable
from lakthan.keys import cryptoki, pkcs11_uri
from lakthan.keys.cryptoki import CryptokiError
from lakthan.keys.pkcs11_token import Away, Token
from lakthan.keys.software import key_file

if TYPE_CHECKING:
    from lakthan.config import KeyURI
    from lakthan.keys.software import SoftwareKey

_RSA_BITS = {"RSA-2048": 2048, "RSA-3072": 3072, "RSA-4096": 4096}
_CURVE_OIDS = {"P-256": "1.2.840.10045.3.1.7", "P-384": "1.3.132.0.34"}
# The curve name as PKCS #11 3.0 §6.3.3 writes it: a PrintableString.
_EDWARDS25519 = der.encode(0x13, b"edwards25519")
KINDS = (*_CURVE_OIDS, *_RSA_BITS, "Ed25519", "ML-DSA-65")

_TRUE, _FALSE = b"\x01", b"\x00"


def generate(key: KeyURI, kind: str) -> None:
    """Make a key of one of `KINDS` under that URI.

    Raises `ConfigError` when there is a key already, when the place cannot be used, or when it knows no such kind.
    """
    scheme = key.uri.partition(":")[0]
    if scheme in {"vault", "awskms"}:
        raise ConfigError(f"a {scheme}: key is made at the backend, by whoever administers it; here it is only used")
    if scheme == "pkcs11":
        _in_token(Token(pkcs11_uri.parse(key)), kind)
    else:
        _in_file(key, kind)


def _in_file(key: KeyURI, kind: str) -> None:
    path, passphrase, _ = key_file(key)
    made = _software_key(kind)
    encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    pem = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:  # noqa: PTH123 - a descriptor
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError as error:
        raise ConfigError(f"{path} is there already, and a key is never overwritten: choose another name") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def _software_key(kind: str) -> SoftwareKey:
    if kind in _RSA_BITS:
        return rsa.generate_private_key(65537, _RSA_BITS[kind])
    if kind == "Ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    if kind == "ML-DSA-65":
        return mldsa.MLDSA65PrivateKey.generate()
    return ec.generate_private_key(ec.SECP256R1() if kind == "P-256" else ec.SECP384R1())


def _in_token(token: Token, kind: str) -> None:
    uri = token.uri
    if kind in _RSA_BITS:
        mechanism = cryptoki.CKM_RSA_PKCS_KEY_PAIR_GEN
        public = {
            cryptoki.CKA_MODULUS_BITS: cryptoki.number(_RSA_BITS[kind]),
            cryptoki.CKA_PUBLIC_EXPONENT: b"\x01\x00\x01",
        }
    elif kind in _CURVE_OIDS:
        mechanism = cryptoki.CKM_EC_KEY_PAIR_GEN
        public = {cryptoki.CKA_EC_PARAMS: der.object_identifier(_CURVE_OIDS[kind])}
    elif kind == "Ed25519":
        mechanism = cryptoki.CKM_EC_EDWARDS_KEY_PAIR_GEN
        public = {cryptoki.CKA_EC_PARAMS: _EDWARDS25519}
    else:
        raise ConfigError(f"{kind} keys are not made in a token yet: choose another kind, or a file")
    label = (uri.label if uri.label is not None else (uri.identifier or b"").hex()).encode()
    both = {
        cryptoki.CKA_TOKEN: _TRUE,
        cryptoki.CKA_LABEL: label,
        cryptoki.CKA_ID: uri.identifier or secrets.token_bytes(8),
    }
    private = {
        cryptoki.CKA_PRIVATE: _TRUE,
        cryptoki.CKA_SENSITIVE: _TRUE,
        cryptoki.CKA_EXTRACTABLE: _FALSE,
        cryptoki.CKA_SIGN: _TRUE,
    }
    try:
        token.look()
        with token.library.in_use():
            session = token.open_session(writing=True)
            try:
                if token.find(session, cryptoki.CKO_PRIVATE_KEY):
                    raise ConfigError(f"{uri} is there already: choose another object or id")
                token.library.cryptoki.generate_key_pair(
                    session, mechanism, {**both, **public, cryptoki.CKA_VERIFY: _TRUE}, {**both, **private}
                )
            finally:
                with suppress(CryptokiError):
                    token.library.cryptoki.close_session(session)
    except (CryptokiError, Away, SignerUnusable) as error:
        raise ConfigError(f"{uri} cannot be made: {error}") from error
