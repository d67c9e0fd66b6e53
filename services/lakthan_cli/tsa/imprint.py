"""Hash algorithms of message imprints, and the digest of a file of any size."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from lakthan.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Hash:
    """A hash function. `name`: as options and results say it. `weakness`: why it proves nothing, None when it does."""

    name: str
    oid: str
    octets: int
    hashlib_name: str
    weakness: str | None = None


_BROKEN = "anybody can make two documents with one digest"
_ALL = (
    Hash("md5", "1.2.840.113549.2.5", 16, "md5", _BROKEN),
    Hash("sha1", "1.3.14.3.2.26", 20, "sha1", _BROKEN),
    Hash("sha224", "2.16.840.1.101.3.4.2.4", 28, "sha224"),
    Hash("sha256", "2.16.840.1.101.3.4.2.1", 32, "sha256"),
    Hash("sha384", "2.16.840.1.101.3.4.2.2", 48, "sha384"),
    Hash("sha512", "2.16.840.1.101.3.4.2.3", 64, "sha512"),
    Hash("sha3-256", "2.16.840.1.101.3.4.2.8", 32, "sha3_256"),
    Hash("sha3-384", "2.16.840.1.101.3.4.2.9", 48, "sha3_384"),
    Hash("sha3-512", "2.16.840.1.101.3.4.2.10", 64, "sha3_512"),
)
BY_OID = {each.oid: each for each in _ALL}
# What `lakthan tsa request` asks with: every one that stands for decades.
ASKED = {each.name: each for each in _ALL if each.weakness is None and each.octets >= 32}


def digest_of(path: Path, algorithm: Hash) -> bytes:
    """The digest of a file, read piece by piece. Raises `ConfigError`."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(
                file, lambda: hashlib.new(algorithm.hashlib_name, usedforsecurity=False)
            ).digest()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def digest(data: bytes, algorithm: Hash) -> bytes:
    """The digest of octets."""
    return hashlib.new(algorithm.hashlib_name, data, usedforsecurity=False).digest()
