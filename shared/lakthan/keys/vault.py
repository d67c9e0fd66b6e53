"""Private keys in the Transit engine of HashiCorp Vault or OpenBao.

    vault:transit/ocsp?address=https://vault.example:8200&token-file=/run/secrets/vault-token&version=3

The path is the engine's mount and the key's name. Of the key's versions one signs: that of `version`, else the one that
was the latest when the key was opened, so that a rotation in Vault does not change the key under its certificate. Name
the version in earnest: a process that starts after a rotation would take the new one, which its certificate does not
fit.

The token lies in a file that an agent (Vault Agent, or one like it) keeps fresh; it needs `read` on `MOUNT/keys/KEY`
and `update` on `MOUNT/sign/KEY`. Vault gets digests to sign, except for Ed25519, which signs the message itself.

Trusted: see `remote`.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from lakthan.algorithms import ED25519, SHA256_WITH_RSA, SignatureAlgorithm
from lakthan.errors import SignerUnusable
from lakthan.keys.remote import Ask
from lakthan.keys.remote_uri import RemoteURI, SecretFile, fits_header

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

    from lakthan.config import KeyURI

_KNOWN = ("address", "token-file", "namespace", "version")
_TYPES = ("ecdsa-p256", "ecdsa-p384", "rsa-2048", "rsa-3072", "rsa-4096", "ed25519")
_HASHES = {"SHA_256": "sha2-256", "SHA_384": "sha2-384"}
_HINTS = {
    403: "its token is refused, or may not do this",
    404: "there is no such key, or no such engine",
    503: "Vault is sealed, or down for maintenance",
}


class _Key(msgspec.Struct):
    type: str
    latest_version: int
    keys: dict[str, Any]
    min_encryption_version: int = 0
    derived: bool = False


class _KeyAnswer(msgspec.Struct):
    data: _Key


class _Version(msgspec.Struct):
    public_key: str


class _Signature(msgspec.Struct):
    signature: str


class _SignatureAnswer(msgspec.Struct):
    data: _Signature


class _Complaint(msgspec.Struct):
    errors: list[str]


class VaultKey:
    """A key of a Transit engine: a `Backend`."""

    def __init__(self, key: KeyURI) -> None:
        """Raises `ConfigError`."""
        self.uri = RemoteURI(key, _KNOWN)
        mount, _, name = self.uri.path.rpartition("/")
        if not mount or not name:
            raise self.uri.wrong("write vault:MOUNT/KEY, for example vault:transit/ocsp")
        self._mount, self._name = quote(mount), quote(name, safe="")
        self.address = self.uri.address(self.uri.need("address", "https://HOST:8200"))
        self._token = SecretFile(self.uri.file("token-file"))
        self._namespace = self.uri.get("namespace")
        self._version = self.uri.number("version", range(1, 1 << 31), 1) if self.uri.get("version") else None

    def opening(self) -> Ask:
        """See `Backend`."""
        return Ask("GET", f"/v1/{self._mount}/keys/{self._name}", self._headers())

    def opened(self, body: bytes) -> PublicKeyTypes:
        """See `Backend`."""
        key = msgspec.json.decode(body, type=_KeyAnswer).data
        if key.type not in _TYPES or key.derived:
            kind = f"derived {key.type}" if key.derived else key.type
            raise self.uri.wrong(f"Vault has it as {kind}, which cannot sign here: use {', '.join(_TYPES)}")
        version = self._version or key.latest_version
        if str(version) not in key.keys:
            raise self.uri.wrong(f"there is no version {version}: the latest is {key.latest_version}")
        if version < key.min_encryption_version:
            raise self.uri.wrong(
                f"Vault signs with version {key.min_encryption_version} and later ones only "
                f"(min_encryption_version), not with {version}"
            )
        self._version = version
        text = msgspec.convert(key.keys[str(version)], _Version).public_key
        if key.type == "ed25519":
            return ed25519.Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))
        return load_pem_public_key(text.encode())

    def signing(self, message: bytes, algorithm: SignatureAlgorithm) -> Ask:
        """See `Backend`."""
        fields: dict[str, object] = {"key_version": self._version}
        if algorithm is ED25519:
            fields["input"] = message
        else:
            fields |= {"input": algorithm.hash.digest(message), "prehashed": True}
            fields |= {"hash_algorithm": _HASHES[algorithm.hash.name], "marshaling_algorithm": "asn1"}
            if algorithm is SHA256_WITH_RSA:  # said of no other kind: unless told otherwise Vault takes PSS
                fields["signature_algorithm"] = "pkcs1v15"
            elif algorithm.pss:  # unless told otherwise its salt is as long as fits
                fields |= {"signature_algorithm": "pss", "salt_length": "hash"}
        headers = {**self._headers(), "Content-Type": "application/json"}
        return Ask("POST", f"/v1/{self._mount}/sign/{self._name}", headers, msgspec.json.encode(fields))

    def signature(self, body: bytes) -> bytes:
        """See `Backend`."""
        text = msgspec.json.decode(body, type=_SignatureAnswer).data.signature
        mark = f"vault:v{self._version}:"
        if not text.startswith(mark):
            raise ValueError(f"it does not begin with {mark}")
        return base64.b64decode(text.removeprefix(mark), validate=True)

    def complaint(self, status: int, body: bytes) -> tuple[str, bool]:
        """See `Backend`."""
        try:
            said = msgspec.json.decode(body, type=_Complaint).errors
        except msgspec.MsgspecError:
            said = []
        return "; ".join(filter(None, [_HINTS.get(status), *said])), status == 429

    def secrets(self) -> Iterator[str]:
        """See `Backend`."""
        token = self._token.text.strip()
        if token:
            yield token

    def _headers(self) -> dict[str, str]:
        token = self._token.read().strip()
        if not fits_header(token):
            raise SignerUnusable(f"{self.uri}: {self._token.path} does not hold a token alone")
        # The second is demanded by agents that listen without a token of their own, against forged requests.
        headers = {"X-Vault-Token": token, "X-Vault-Request": "true"}
        return headers if self._namespace is None else {**headers, "X-Vault-Namespace": self._namespace}
