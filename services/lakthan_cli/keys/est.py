"""EST: a new certificate for a key, from a server of the CA (RFC 7030 §4.2.2, simplereenroll).

Promises: only the server whose CA was named is spoken to, over TLS 1.2 or newer, and nobody it redirects to. What it
sends is read strictly: a certs-only PKCS#7, and in it exactly one certificate of the key that was asked for.

Refuses to know: what the certificate is good for; `lists.Target.check` does.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aiohttp
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from lakthan import der
from lakthan.certificates import CertificateView
from lakthan.errors import ConfigError, LakthanError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

_TIMEOUT = aiohttp.ClientTimeout(total=60)
_LONGEST_ANSWER = 256 * 1024
_LONGEST_REASON = 300
# Where a server does not say when to come again (RFC 7030 §4.2.3 demands that it does).
_USUAL_RETRY = timedelta(seconds=30)
_SIGNED_DATA = der.object_identifier("1.2.840.113549.1.7.2")
_DATA = der.object_identifier("1.2.840.113549.1.7.1")
_TAG_0, _TAG_1 = 0xA0, 0xA1


class ESTError(LakthanError):
    """The EST server's turn: it cannot be reached, refuses, or sends what cannot be taken."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where the EST server is and who we are. `url`: https, with nothing but host and port; `ca`: PEM of the CA that
    its TLS certificate must lead to. `certificate`, `key`: of the TLS client; `user_file`: one line `user:password`.
    """

    url: str
    ca: Path
    label: str = ""
    certificate: Path | None = None
    key: Path | None = None
    user_file: Path | None = None

    @property
    def address(self) -> str:
        """Of simplereenroll (RFC 7030 §3.2.2). Raises `ConfigError` for what is no such URL."""
        parts = urlsplit(self.url)
        if (
            parts.scheme != "https"
            or not parts.hostname
            or parts.path not in ("", "/")
            or parts.query
            or parts.username
        ):
            raise ConfigError(f"{self.url!r} is no EST server: write https://HOST[:PORT], and the label by --label")
        if self.label and not self.label.replace("-", "").replace("_", "").isalnum():
            raise ConfigError(f"the label {self.label!r} has other characters than letters, digits, - and _")
        label = f"/{self.label}" if self.label else ""
        return f"{self.url.rstrip('/')}/.well-known/est{label}/simplereenroll"

    def tls(self) -> ssl.SSLContext:
        """Trusts that CA alone, and shows our certificate. Raises `ConfigError`."""
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"TLS with {self.ca}, {self.certificate} and {self.key} cannot be set up: {error}"
            ) from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context

    def authorization(self) -> dict[str, str]:
        """The header of HTTP Basic with the user file's words (RFC 7617 §2). Raises `ConfigError`."""
        if self.user_file is None:
            return {}
        try:
            said = self.user_file.read_bytes().split(b"\n", 1)[0].rstrip(b"\r")
        except OSError as error:
            raise ConfigError(f"the user file {self.user_file} cannot be read: {error.strerror}") from error
        if b":" not in said:
            raise ConfigError(f"the first line of {self.user_file} must be user:password")
        return {"Authorization": f"Basic {base64.b64encode(said).decode()}"}


async def reenroll(
    server: Server, request: bytes, *, patience: timedelta, waiting: Callable[[timedelta], None]
) -> list[CertificateView]:
    """The certificates that the server gives for a PKCS#10 request (DER).

    A server that has to think first (202) is asked again when it says, for as long as `patience` lasts; `waiting` hears
    of it. Raises `ESTError` and `ConfigError`.
    """
    address, tls = server.address, server.tls()
    headers = {"Content-Type": "application/pkcs10", "Content-Transfer-Encoding": "base64", **server.authorization()}
    body = base64.encodebytes(request)
    left = patience
    try:
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
            while True:
                async with session.post(address, data=body, headers=headers, ssl=tls, allow_redirects=False) as reply:
                    octets = await _limited(reply)
                if reply.status != HTTPStatus.ACCEPTED:
                    return _answer(reply, octets)
                pause = _retry_after(reply.headers.get("Retry-After", ""), datetime.now(UTC))
                if pause > left:
                    raise ESTError(f"the EST server asks to come again in {pause}: do so; nothing is changed")
                left -= pause
                waiting(pause)
                await asyncio.sleep(pause.total_seconds())
    except (aiohttp.ClientError, TimeoutError) as error:
        raise ESTError(f"the EST server {server.url} cannot be spoken to: {error!r}") from error


async def _limited(reply: aiohttp.ClientResponse) -> bytes:
    octets = b""
    async for chunk in reply.content.iter_chunked(65536):
        octets += chunk
        if len(octets) > _LONGEST_ANSWER:
            raise ESTError(f"the EST server sends more than {_LONGEST_ANSWER} octets")
    return octets


def _answer(reply: aiohttp.ClientResponse, octets: bytes) -> list[CertificateView]:
    if reply.status != HTTPStatus.OK:
        said = octets[:_LONGEST_REASON].decode("utf-8", "replace")
        said = " ".join("".join(each if each.isprintable() else " " for each in said).split())
        raise ESTError(f"the EST server refuses with status {reply.status}{f': {said}' if said else ''}")
    if reply.content_type != "application/pkcs7-mime":
        raise ESTError(f"the EST server sends {reply.content_type}, and not application/pkcs7-mime")
    return read_certs_only(octets)


def _retry_after(field: str, now: datetime) -> timedelta:
    """RFC 9110 §10.2.3: seconds, or an instant."""
    if field.strip().isdigit():
        return timedelta(seconds=int(field))
    try:
        return max(timedelta(0), parsedate_to_datetime(field) - now)
    except (ValueError, TypeError):
        return _USUAL_RETRY


def read_certs_only(encoded: bytes) -> list[CertificateView]:
    """The certificates of a Base64 certs-only message: SignedData without content and signers (RFC 7030 §4.2.3,
    RFC 5652 §5.1). Raises `ESTError`.
    """
    try:
        octets = base64.b64decode(b"".join(encoded.split()), validate=True)
        return _certificates(octets)
    except (binascii.Error, der.DERError, ValueError) as error:
        raise ESTError(f"the EST server sends something else than a certs-only PKCS#7 in Base64: {error}") from error


def _certificates(octets: bytes) -> list[CertificateView]:
    outer = der.Reader(octets)
    content_info = outer.enter(der.SEQUENCE)
    outer.finish()
    if content_info.element(der.OBJECT_IDENTIFIER) != _SIGNED_DATA:
        raise der.DERError("not SignedData")
    explicit = content_info.enter(_TAG_0)
    content_info.finish()
    signed_data = explicit.enter(der.SEQUENCE)
    explicit.finish()
    if signed_data.content(der.INTEGER) != b"\x01":
        raise der.DERError("not version 1, which certs-only is")
    signed_data.enter(der.SET).finish()
    encapsulated = signed_data.enter(der.SEQUENCE)
    if encapsulated.element(der.OBJECT_IDENTIFIER) != _DATA:
        raise der.DERError("another content type than data")
    encapsulated.finish()
    certificates = signed_data.enter(_TAG_0)
    if signed_data.more() and signed_data.peek() == _TAG_1:
        signed_data.enter(_TAG_1)  # CRLs: not asked for, and not used
    signed_data.enter(der.SET).finish()
    signed_data.finish()
    views = []
    while certificates.more():
        views.append(CertificateView.from_der(certificates.element(der.SEQUENCE)))
    return views


def certificate_of(views: list[CertificateView], public_key: PublicKeyTypes) -> CertificateView:
    """The one of this key. Raises `ESTError` when there is none, or more than one."""
    wanted = _encoded(public_key)
    found = [view for view in views if _encoded(view.certificate.public_key()) == wanted]
    if len(found) != 1:
        raise ESTError(f"the EST server sends {len(found)} certificates of the key that was asked for, and not one")
    return found[0]


def _encoded(public_key: PublicKeyTypes) -> bytes:
    return public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
