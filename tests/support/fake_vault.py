"""Vault's Transit engine for tests: the two calls that a signer needs, with real keys, as Vault 1.x answers them.

What it demands is what Vault demands: an RSA key signs with PSS unless told otherwise, a digest has to have the size of
its hash, a version below `min_encryption_version` does not sign.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from lakthan.config import KeyURI
from support.fake_kms import FakeKMS
from support.pki import PrivateKey

TOKEN = "hvs.CAESIJ-a-token-that-no-message-may-hold"
_HASHES: dict[str, hashes.HashAlgorithm] = {"sha2-256": hashes.SHA256(), "sha2-384": hashes.SHA384()}
_TYPES = {"P-256": "ecdsa-p256", "P-384": "ecdsa-p384", "Ed25519": "ed25519"}


@dataclass
class TransitKey:
    """A key with its versions, the first of which is 1."""

    type: str
    versions: list[PrivateKey] = field(default_factory=list)
    min_encryption_version: int = 0
    derived: bool = False


class FakeVault(FakeKMS):
    """`transit/` with keys in it. `tokens`: who may come in. `calls`: the bodies of what was asked to be signed."""

    def __init__(self, home: Path) -> None:
        super().__init__()
        self.home = home
        self.keys: dict[str, TransitKey] = {}
        self.tokens = {TOKEN}
        self.namespace: str | None = None
        self.calls: list[dict[str, Any]] = []
        (home / "token").write_text(f"{TOKEN}\n")

    def put(self, name: str, kind: str, key: PrivateKey) -> None:
        """A key, or the next version of one that is there."""
        self.keys.setdefault(name, TransitKey(_TYPES.get(kind, kind.lower()))).versions.append(key)

    def uri(self, name: str = "ocsp", more: str = "") -> KeyURI:
        """The URI of a key here."""
        return KeyURI(f"vault:transit/{name}?address={self.address}&token-file=token{more}", self.home)

    async def reply(self, request: web.Request, body: bytes) -> web.Response:
        """As Vault does."""
        if request.headers.get("X-Vault-Token") not in self.tokens:
            return _errors(403, "permission denied")
        if request.headers.get("X-Vault-Namespace") != self.namespace:
            return _errors(404, "no handler for route")
        what, _, name = request.path.removeprefix("/v1/transit/").partition("/")
        key = self.keys.get(name)
        if (request.method, what) == ("GET", "keys"):
            return _errors(404) if key is None else web.json_response({"data": _described(key)})
        if (request.method, what) != ("POST", "sign"):
            return _errors(405, "unsupported operation")
        return _errors(400, "signing key not found") if key is None else self._sign(key, json.loads(body))

    def _sign(self, key: TransitKey, fields: dict[str, Any]) -> web.Response:
        self.calls.append(fields)
        version = fields.get("key_version", 0) or len(key.versions)
        if version > len(key.versions) or version < key.min_encryption_version:
            return _errors(400, "requested version for signing is less than the minimum encryption key version")
        given = base64.b64decode(fields["input"], validate=True)
        signature = _signature(key.versions[version - 1], given, fields)
        encoded = base64.b64encode(signature).decode()
        return web.json_response({"data": {"signature": f"vault:v{version}:{encoded}", "key_version": version}})


def _signature(key: PrivateKey, given: bytes, fields: dict[str, Any]) -> bytes:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        assert not fields.get("prehashed"), "this would be Ed25519ph"
        return key.sign(given)
    hash_algorithm = _HASHES[fields.get("hash_algorithm", "sha2-256")]
    scheme = Prehashed(hash_algorithm) if fields.get("prehashed") else hash_algorithm
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(given, ec.ECDSA(scheme))
    assert isinstance(key, rsa.RSAPrivateKey)
    if fields.get("signature_algorithm", "pss") == "pkcs1v15":
        return key.sign(given, padding.PKCS1v15(), scheme)
    # Unless told otherwise, salt as long as fits.
    salt_octets = hash_algorithm.digest_size if fields.get("salt_length", "auto") == "hash" else padding.PSS.MAX_LENGTH
    return key.sign(given, padding.PSS(padding.MGF1(hash_algorithm), salt_octets), scheme)


def _described(key: TransitKey) -> dict[str, Any]:
    return {
        "type": key.type,
        "latest_version": len(key.versions),
        "min_encryption_version": key.min_encryption_version,
        "derived": key.derived,
        "supports_signing": not key.type.startswith("aes"),
        # Of a symmetric key Vault says only when each version was made.
        "keys": {
            str(number): 1700000000 if key.type.startswith("aes") else _public(version, derived=key.derived)
            for number, version in enumerate(key.versions, 1)
        },
    }


def _public(key: PrivateKey, *, derived: bool) -> dict[str, str]:
    public_key = key.public_key()
    if isinstance(public_key, ed25519.Ed25519PublicKey):
        return {
            "name": "ed25519",
            "public_key": "" if derived else base64.b64encode(public_key.public_bytes_raw()).decode(),
        }
    pem = public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return {"name": "some name", "creation_time": "2026-01-01T00:00:00Z", "public_key": pem.decode()}


def _errors(status: int, *errors: str) -> web.Response:
    return web.json_response({"errors": errors}, status=status)
