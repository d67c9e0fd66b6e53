"""Who the clients are, for profiles that serve known clients only.

A TOML file with a table for each client; it is read again when it changes, so a client comes or goes without a restart:

    [hospital]
    secret_sha256 = ["9f86d081…"]    # of each secret that is good now; two while one is being replaced
    profiles = ["qualified"]         # the profiles that it may use

A secret is 256 random bits, made by `lakthan tsa credential`; nobody chooses one, so nobody can guess one, and its
plain SHA-256 gives nothing away. It is sent as `Authorization: Bearer SECRET`, as the password of Basic
authentication with the client's name as the user, or as the last part of the path for programs that can do neither.

What was sent is hashed and the hash looked up: how long that takes says something about the hash of a wrong secret, and
nothing about a right one.

Trusted: whoever can write the file can let anybody in. Without TLS, whoever hears a request can send it again.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import msgspec

from lakthan.errors import ConfigError
from lakthan.telemetry.logs import log

if TYPE_CHECKING:
    from pathlib import Path

_LOOK_SECONDS = 2.0


class _ClientConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    secret_sha256: Annotated[list[Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]], msgspec.Meta(min_length=1)]
    profiles: Annotated[list[str], msgspec.Meta(min_length=1)]


@dataclass(frozen=True, slots=True)
class Client:
    """A known client and the profiles that it may use."""

    name: str
    profiles: frozenset[str]


class Credentials:
    """The clients of one file. Raises `ConfigError` when it cannot be read at the start."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._stamp()
        self._clients = _read(path)

    def find(self, authorization: str, path_secret: str) -> Client | None:
        """The client that these credentials name: the Authorization header, '' without one, or the path's secret."""
        if path_secret:
            return self._clients.get(_hash(path_secret.encode("utf-8", "surrogateescape")))
        scheme, _, value = authorization.partition(" ")
        match scheme.lower():
            case "bearer":
                return self._clients.get(_hash(value.strip().encode("utf-8", "surrogateescape")))
            case "basic":
                try:
                    user, _, secret = base64.b64decode(value.strip(), validate=True).partition(b":")
                except ValueError:  # no Base64, or not even ASCII
                    return None
                client = self._clients.get(_hash(secret))
                return client if client is not None and client.name.encode() == user else None
            case _:
                return None

    async def watch(self) -> None:
        """Read the file again whenever it has changed; one that is broken changes nothing. Until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            stamp = self._stamp()
            if stamp == self._seen:
                continue
            self._seen = stamp
            try:
                self._clients = _read(self._path)
            except ConfigError as error:
                log.error("the credentials stay as they were", problem=str(error))
            else:
                log.info("credentials read", clients=len(set(self._clients.values())))

    def _stamp(self) -> tuple[int, int, int]:
        try:
            found = self._path.stat()
        except OSError:
            return 0, 0, 0
        return found.st_ino, found.st_mtime_ns, found.st_size


def _hash(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


def _read(path: Path) -> dict[bytes, Client]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        tables = msgspec.convert(document, dict[str, _ClientConfig])
    except OSError as error:
        raise ConfigError(f"the credentials {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError, msgspec.ValidationError) as error:
        raise ConfigError(f"the credentials {path} are not as they must be: {error}") from error
    clients: dict[bytes, Client] = {}
    for name, table in tables.items():
        client = Client(name, frozenset(table.profiles))
        for digest in table.secret_sha256:
            if clients.setdefault(bytes.fromhex(digest), client) is not client:
                raise ConfigError(f"the credentials {path}: {name} has the same secret as another client")
    return clients
