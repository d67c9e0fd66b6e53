"""AWS KMS for tests: the two calls that a signer needs, with real keys.

moto, the usual stand-in for AWS, takes a digest for a message and signs its hash; this one does what AWS does.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from aiohttp import web
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from lakthan.config import KeyURI
from support.fake_kms import FakeKMS
from support.pki import PrivateKey

REGION = "ap-southeast-1"
ACCESS_KEY_ID, SECRET_ACCESS_KEY = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
_HASHES = {"256": hashes.SHA256(), "384": hashes.SHA384()}


class FakeAWSKMS(FakeKMS):
    """`aliases`: their keys' ARNs. `session_token`: what temporary credentials must bring along."""

    def __init__(self, home: Path) -> None:
        super().__init__()
        self.home = home
        self.keys: dict[str, PrivateKey] = {}
        self.aliases: dict[str, str] = {}
        self.usage = "SIGN_VERIFY"
        self.access_key_id = ACCESS_KEY_ID
        self.session_token: str | None = None
        self.calls: list[dict[str, Any]] = []
        write_credentials(home / "aws")

    def put(self, alias: str, key: PrivateKey) -> None:
        """A key, and the alias that leads to it from now on."""
        arn = f"arn:aws:kms:{REGION}:111122223333:key/{len(self.keys)}"
        self.keys[arn] = key
        self.aliases[f"alias/{alias}"] = arn

    def uri(self, key: str = "alias/ocsp", more: str = "") -> KeyURI:
        """The URI of a key here."""
        query = f"region={REGION}&endpoint={self.address}&credentials-file=aws{more}"
        return KeyURI(f"awskms:{key}?{query}", self.home)

    async def reply(self, request: web.Request, body: bytes) -> web.Response:
        """As AWS does."""
        scope = f"AWS4-HMAC-SHA256 Credential={self.access_key_id}/"
        if not request.headers["Authorization"].startswith(scope):
            return _error("UnrecognizedClientException", "The security token included in the request is invalid.")
        if request.headers.get("X-Amz-Security-Token") != self.session_token:
            return _error("ExpiredTokenException", "The security token included in the request is expired")
        fields = json.loads(body)
        self.calls.append(fields)
        arn = self.aliases.get(fields["KeyId"], fields["KeyId"])
        if arn not in self.keys:
            return _error("NotFoundException", f"{arn} is not found.")
        if request.headers["X-Amz-Target"] == "TrentService.GetPublicKey":
            spki = self.keys[arn].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            encoded = base64.b64encode(spki).decode()
            return _answer({"KeyId": arn, "KeyUsage": self.usage, "PublicKey": encoded})
        assert request.headers["X-Amz-Target"] == "TrentService.Sign"
        signature = base64.b64encode(_signature(self.keys[arn], fields)).decode()
        return _answer({"KeyId": arn, "Signature": signature, "SigningAlgorithm": fields["SigningAlgorithm"]})


def write_credentials(file: Path, access_key_id: str = ACCESS_KEY_ID, session_token: str | None = None) -> None:
    """Write a file of credentials as whoever renews them does: at once, in place of the old one."""
    lines = ["[default]", f"aws_access_key_id = {access_key_id}", f"aws_secret_access_key = {SECRET_ACCESS_KEY}"]
    lines += [f"aws_session_token = {session_token}"] if session_token else []
    new = file.with_suffix(".new")
    new.write_text("\n".join([*lines, ""]))
    new.rename(file)


def _signature(key: PrivateKey, fields: dict[str, Any]) -> bytes:
    hash_algorithm = _HASHES[fields["SigningAlgorithm"][-3:]]
    scheme = Prehashed(hash_algorithm) if fields["MessageType"] == "DIGEST" else hash_algorithm
    given = base64.b64decode(fields["Message"], validate=True)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        assert fields["SigningAlgorithm"].startswith("ECDSA_SHA_")
        return key.sign(given, ec.ECDSA(scheme))
    assert isinstance(key, rsa.RSAPrivateKey)
    if fields["SigningAlgorithm"].startswith("RSASSA_PSS_SHA_"):
        return key.sign(given, padding.PSS(padding.MGF1(hash_algorithm), hash_algorithm.digest_size), scheme)
    assert fields["SigningAlgorithm"].startswith("RSASSA_PKCS1_V1_5_SHA_")
    return key.sign(given, padding.PKCS1v15(), scheme)


def _answer(fields: dict[str, Any]) -> web.Response:
    return web.json_response(fields, content_type="application/x-amz-json-1.1")


def _error(name: str, message: str) -> web.Response:
    fields = {"__type": name, "message": message}
    return web.json_response(fields, status=400, content_type="application/x-amz-json-1.1")
