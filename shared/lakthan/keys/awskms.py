"""Private keys in AWS KMS.

    awskms:alias/ocsp?region=ap-southeast-1&credentials-file=/run/secrets/aws

The path is a key's ID, its ARN, `alias/NAME` or an alias's ARN. Whichever it is, the ARN that KMS answers at opening is
what signs from then on: an alias that is moved to another key does not change the key under its certificate.

The credentials lie in a file of the form that AWS tools share, section `[default]`: `aws_access_key_id`,
`aws_secret_access_key` and, for temporary ones, `aws_session_token`. Whoever renews them writes the file anew. They
need `kms:GetPublicKey` and `kms:Sign`. KMS gets digests to sign, never messages.

Trusted: see `remote`.
"""

from __future__ import annotations

import configparser
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec
from cryptography.hazmat.primitives.serialization import load_der_public_key

from lakthan.algorithms import (
    ECDSA_WITH_SHA256,
    ECDSA_WITH_SHA384,
    RSASSA_PSS_SHA256,
    SHA256_WITH_RSA,
    signature_algorithm_of,
)
from lakthan.errors import SignerUnusable
from lakthan.keys.aws_sigv4 import Credentials, signed_headers
from lakthan.keys.remote import Ask
from lakthan.keys.remote_uri import RemoteURI, SecretFile, fits_header

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

    from lakthan.algorithms import SignatureAlgorithm
    from lakthan.config import KeyURI

_KNOWN = ("region", "credentials-file", "endpoint")
_ALGORITHMS = {
    ECDSA_WITH_SHA256.label: "ECDSA_SHA_256",
    ECDSA_WITH_SHA384.label: "ECDSA_SHA_384",
    SHA256_WITH_RSA.label: "RSASSA_PKCS1_V1_5_SHA_256",
    RSASSA_PSS_SHA256.label: "RSASSA_PSS_SHA_256",  # its salt is as long as the digest
}
# KMS says "slow down" with status 400; the names: "Common errors" and "Throttling" of its documentation.
_SLOW_DOWN = ("ThrottlingException", "Throttling", "RequestLimitExceeded", "TooManyRequestsException")


class _KeyAnswer(msgspec.Struct, rename="pascal"):
    key_id: str
    key_usage: str
    public_key: bytes


class _SignatureAnswer(msgspec.Struct, rename="pascal"):
    signature: bytes


class _Complaint(msgspec.Struct):
    type: str = msgspec.field(name="__type", default="")
    message: str = ""
    other_message: str = msgspec.field(name="Message", default="")


class AWSKey:
    """A key of AWS KMS: a `Backend`."""

    def __init__(self, key: KeyURI) -> None:
        """Raises `ConfigError`."""
        self.uri = RemoteURI(key, _KNOWN)
        if not self.uri.path:
            raise self.uri.wrong("write awskms:KEY-ID or awskms:alias/NAME")
        self._key_id = self.uri.path
        self._region = self.uri.need("region", "ap-southeast-1")
        endpoint = self.uri.get("endpoint") or f"https://kms.{self._region}.amazonaws.com"
        self.address = self.uri.address(endpoint)
        parts = urlsplit(self.address)
        if parts.path:
            raise self.uri.wrong("an endpoint has no path")
        self._host = parts.netloc
        self._file = SecretFile(self.uri.file("credentials-file"))
        self._parsed: tuple[str, Credentials] | None = None

    def opening(self) -> Ask:
        """See `Backend`."""
        return self._ask("GetPublicKey", {"KeyId": self._key_id})

    def opened(self, body: bytes) -> PublicKeyTypes:
        """See `Backend`."""
        answer = msgspec.json.decode(body, type=_KeyAnswer)
        if answer.key_usage != "SIGN_VERIFY":
            raise self.uri.wrong(f"KMS has it for {answer.key_usage}: use a key for SIGN_VERIFY")
        public_key = load_der_public_key(answer.public_key)
        algorithm = signature_algorithm_of(public_key, pss=self.uri.pss)
        if algorithm.label not in _ALGORITHMS:
            raise self.uri.wrong(f"{algorithm.label} is not signed with through KMS: use P-256, P-384 or RSA")
        self._key_id = answer.key_id
        return public_key

    def signing(self, message: bytes, algorithm: SignatureAlgorithm) -> Ask:
        """See `Backend`."""
        return self._ask(
            "Sign",
            {
                "KeyId": self._key_id,
                "Message": algorithm.hash.digest(message),
                "MessageType": "DIGEST",
                "SigningAlgorithm": _ALGORITHMS[algorithm.label],
            },
        )

    def signature(self, body: bytes) -> bytes:
        """See `Backend`."""
        return msgspec.json.decode(body, type=_SignatureAnswer).signature

    def complaint(self, status: int, body: bytes) -> tuple[str, bool]:
        """See `Backend`."""
        try:
            said = msgspec.json.decode(body, type=_Complaint)
        except msgspec.MsgspecError:
            said = _Complaint()
        name = said.type.rpartition("#")[2]
        text = ": ".join(filter(None, (name, said.message or said.other_message)))
        return text, name in _SLOW_DOWN or status == 429

    def secrets(self) -> Iterator[str]:
        """See `Backend`."""
        if self._parsed is not None:
            credentials = self._parsed[1]
            yield credentials.secret_access_key
            if credentials.session_token is not None:
                yield credentials.session_token

    def _ask(self, action: str, fields: dict[str, object]) -> Ask:
        body = msgspec.json.encode(fields)
        headers = {
            "Host": self._host,
            "Content-Type": "application/x-amz-json-1.1",
            "X-Amz-Target": f"TrentService.{action}",
        }
        signed = signed_headers(
            "POST",
            headers,
            body,
            credentials=self._credentials(),
            region=self._region,
            service="kms",
            now=datetime.now(UTC),
        )
        return Ask("POST", "/", signed, body)

    def _credentials(self) -> Credentials:
        text = self._file.read()
        if self._parsed is None or self._parsed[0] is not text:
            self._parsed = (text, self._parse(text))
        return self._parsed[1]

    def _parse(self, text: str) -> Credentials:
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(text)
            section = parser["default"]
            credentials = Credentials(
                section["aws_access_key_id"], section["aws_secret_access_key"], section.get("aws_session_token")
            )
        except (configparser.Error, KeyError):  # their messages may quote the lines
            credentials = Credentials("", "")
        token = credentials.session_token
        if not all(
            map(fits_header, (credentials.access_key_id, credentials.secret_access_key, *([token] if token else [])))
        ):
            raise SignerUnusable(
                f"{self.uri}: {self._file.path} holds no credentials: it needs a section [default] with "
                "aws_access_key_id and aws_secret_access_key"
            )
        return credentials
