"""URIs of keys behind a REST API: which key, where its backend is, and where the secret lies that opens it.

    vault:transit/ocsp?address=https://vault.example:8200&token-file=/run/secrets/vault-token
    awskms:alias/ocsp?region=ap-southeast-1&credentials-file=/run/secrets/aws

Names and values are percent-encoded (RFC 3986 §2.1), relative paths start at the configuration's folder. A secret in
the URI itself is refused, and what stands after the `?` is never repeated in a message: configurations are copied
about.
"""

from __future__ import annotations

import ssl
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from lakthan.errors import ConfigError, SignerUnusable
from lakthan.keys.pss import wants_pss

if TYPE_CHECKING:
    from pathlib import Path

    from lakthan.config import KeyURI

_MOST_DIGITS = 18  # Python refuses to read numbers of thousands
# One that costs 20 ms a signature, the way there and back included, makes 800 a second over 16 connections; 64 waiting
# ones are worked off in a tenth of a second, and who comes later is told so at once.
_SESSIONS = 16
_WAITING = 64
# For the turn, and once more for the signature with its retries. OCSP clients commonly give up after 10 or 15 seconds.
_DEADLINE_SECONDS = 5
_COMMON = ("ca-file", "x-sessions", "x-waiting", "x-deadline", "x-signature")
_SECRETS = ("token", "access-key", "secret-key", "secret-access-key", "password", "credentials")


class RemoteURI:
    """A URI, read: the key's `path`, and how the backend is used.

    `sessions`: signatures under way at once; `waiting`: how many more may wait; `deadline_seconds`: for how long each
    waits for its turn at most, and as long again for the backend; `pss`: an RSA key signs with RSASSA-PSS.
    """

    def __init__(self, key: KeyURI, known: tuple[str, ...]) -> None:
        """Raises `ConfigError` for attributes that are not `known`."""
        self._name, _, query = key.uri.partition("?")
        self._folder = key.folder
        self.path = unquote(self._name.partition(":")[2])
        self._attributes: dict[str, str] = {}
        for part in filter(None, query.split("&")):
            name, equals, value = part.partition("=")
            if name in _SECRETS:
                raise self.wrong(f"a key URI must not hold the secret itself: put {name} into a file")
            if name not in (*known, *_COMMON) or not equals:
                raise self.wrong(f"unknown attribute {name!r}: known are {', '.join((*known, *_COMMON))}")
            if name in self._attributes:
                raise self.wrong(f"it says {name} twice")
            self._attributes[name] = unquote(value)
        self.sessions = self.number("x-sessions", range(1, 257), _SESSIONS)
        self.waiting = self.number("x-waiting", range(65537), _WAITING)
        self.deadline_seconds = self.number("x-deadline", range(1, 61), _DEADLINE_SECONDS)
        self.pss = wants_pss(key)

    def __str__(self) -> str:
        return self._name

    def wrong(self, what: str) -> ConfigError:
        """What is wrong with this URI."""
        return ConfigError(f"the key {self._name!r}: {what}")

    def get(self, name: str) -> str | None:
        """An attribute, None when it is not there."""
        return self._attributes.get(name)

    def need(self, name: str, example: str) -> str:
        """An attribute that has to be there. Raises `ConfigError`."""
        value = self._attributes.get(name)
        if not value:
            raise self.wrong(f"add {name}={example}")
        return value

    def file(self, name: str) -> Path:
        """A file that has to be named. Raises `ConfigError`."""
        value = self.need(name, "FILE")
        if "\0" in value:
            raise self.wrong(f"{name} has a NUL in it: no file is called so")
        return self._folder / value

    def number(self, name: str, allowed: range, default: int) -> int:
        """A number. Raises `ConfigError` unless it is `allowed`."""
        text = self._attributes.get(name, str(default))
        if not (text.isascii() and text.isdigit()) or len(text) > _MOST_DIGITS or int(text) not in allowed:
            raise self.wrong(f"{name} is a number from {allowed.start} to {allowed.stop - 1}")
        return int(text)

    def address(self, text: str) -> str:
        """A backend's address without a slash at its end. Raises `ConfigError` unless it is https, or http to this
        very machine.
        """
        try:
            parts = urlsplit(text)
            host, _ = parts.hostname or "", parts.port
        except ValueError as error:
            raise self.wrong(f"the address cannot be read: {error}") from error
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise self.wrong("an address is https://HOST[:PORT], without user, query and fragment")
        if not host or not (parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(host))):
            raise self.wrong("an address is https://HOST[:PORT]; http:// is for this very machine only (127.0.0.1)")
        return text.rstrip("/")

    def tls(self) -> ssl.SSLContext:
        """How the backend's certificate is verified: by the CAs of `ca-file`, else by those of the system."""
        if "ca-file" not in self._attributes:
            return ssl.create_default_context()
        path = self.file("ca-file")
        try:
            return ssl.create_default_context(cafile=str(path))
        except OSError as error:  # no PEM in it is an ssl.SSLError, which is one
            raise self.wrong(f"the CAs of {path} cannot be read: {error.strerror or error}") from error


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class SecretFile:
    """A file with a secret, read again when it has changed. Its words are never part of a message.

    Asking whether it changed costs some microseconds in the caller's thread: keep it on a local disk or in memory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int, int] | None = None
        self.text = ""

    def read(self) -> str:
        """The content now; the same object as long as nothing changed. Raises `SignerUnusable`."""
        try:
            stat = self.path.stat()
            seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if seen != self._seen:
                self.text, self._seen = self.path.read_text("utf-8"), seen
        except OSError as error:
            raise SignerUnusable(f"the file {self.path} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError:
            raise SignerUnusable(f"the file {self.path} is not text") from None
        return self.text


def fits_header(text: str) -> bool:
    """Whether this can be a secret: visible ASCII that no header can be broken with."""
    return bool(text) and all("!" <= character <= "~" for character in text)
