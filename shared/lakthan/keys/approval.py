"""m-of-n approval: a key comes into a list, or leaves it, only when enough of the approvers have signed that very act.

An act has one canonical text. `lakthan keys propose` writes it; each approver signs its octets, with `lakthan keys
approve` or with `openssl dgst -sha256 -sign`; the signatures stand in the list's entry. The service verifies them each
time it reads the list, so whoever can write the file, and nothing else, can neither slip a key in nor take one away.

What was retired with approval stays retired, whatever a later list says: the process remembers it, and so does the
next one, in a folder of its own (`memory`), so that an older copy of the list brings no old key back.

Trusted: the approvers' public keys and the number of them that must agree, which come from the configuration; and the
folder of what was retired, which only the service may write.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from lakthan.algorithms import HashAlgorithm, signature_algorithm_of
from lakthan.errors import ConfigError
from lakthan.keys.key_list import ListedKey, instant, replace_file
from lakthan.keys.verification import verify

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

    from lakthan.config import ApprovalConfig

What = Literal["install", "retire"]
_FIRST_LINE = "Lakthan key act, version 1"
_PEM = re.compile(rb"-----BEGIN (PUBLIC KEY|CERTIFICATE)-----.*?-----END \1-----", re.DOTALL)
_ACT = re.compile(
    rf"{_FIRST_LINE}\nact: (?P<what>install|retire)\nfor: (?P<target>[^\n]+)\ncertificate: (?P<sha256>[0-9a-f]{{64}})\n"
    r"key: (?P<key>[^\n]+)\nat: (?P<at>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)\n"
)


class NotApproved(ConfigError):
    """Too few of the approvers have signed."""


@dataclass(frozen=True, slots=True)
class Act:
    """What is approved. `target`: whose list it is; `sha256`: of the certificate; `at`: from when on it counts."""

    what: What
    target: str
    sha256: str
    key: str
    at: datetime

    @property
    def text(self) -> str:
        """The canonical text, whose UTF-8 octets are signed."""
        lines = (
            _FIRST_LINE,
            f"act: {self.what}",
            f"for: {self.target}",
            f"certificate: {self.sha256}",
            f"key: {self.key}",
            f"at: {instant(self.at)}",
        )
        return "\n".join(lines) + "\n"

    @classmethod
    def read(cls, text: str) -> Act:
        """The act of a canonical text. Raises `ConfigError` when it is not exactly one."""
        found = _ACT.fullmatch(text)
        if found is None:
            raise ConfigError("this is no act as `lakthan keys propose` writes it; every character of it counts")
        what: What = "install" if found["what"] == "install" else "retire"
        at = datetime.strptime(found["at"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        return cls(what, found["target"], found["sha256"], found["key"], at)

    @classmethod
    def installing(cls, target: str, entry: ListedKey) -> Act:
        """The act by which an entry came into the list."""
        return cls("install", target, entry.sha256, entry.key, entry.installed)

    @classmethod
    def retiring(cls, target: str, entry: ListedKey, at: datetime) -> Act:
        """The act by which its key ends."""
        return cls("retire", target, entry.sha256, entry.key, at)


@dataclass(frozen=True, slots=True)
class Approver:
    """Somebody who may approve. `name`: of the certificate, else the beginning of the key's SHA-256."""

    name: str
    public_key: PublicKeyTypes

    def signed(self, act: Act, signature: bytes) -> bool:
        """True when this is his signature of the act: by the algorithm of his key, or with SHA-256 as openssl does."""
        algorithm = signature_algorithm_of(self.public_key)
        for digest in {algorithm.hash, HashAlgorithm.SHA_256}:
            try:
                verify(self.public_key, digest, signature, act.text.encode())
            except InvalidSignature:
                continue
            return True
        return False


class Approvers:
    """Those of the configuration. Raises `ConfigError` when they are fewer than must agree."""

    def __init__(self, config: ApprovalConfig) -> None:
        self.approvers = _read(config.approvers)
        self.required = config.required
        self.memory = config.memory
        if len(self.approvers) < self.required:
            raise ConfigError(
                f"{config.approvers} has {len(self.approvers)} approvers, and {self.required} must agree: add some"
            )

    def who(self, act: Act, signatures: Iterable[str]) -> list[str]:
        """The names of those whose signatures (Base64) are among these, each once."""
        octets = [each for each in map(_decoded, signatures) if each is not None]
        return [each.name for each in self.approvers if any(each.signed(act, one) for one in octets)]

    def demand(self, act: Act, signatures: Sequence[str]) -> list[str]:
        """Who approved. Raises `NotApproved` when that is not enough."""
        who = self.who(act, signatures)
        if len(who) < self.required:
            by = f"approved by {', '.join(who)} only" if who else "approved by nobody"
            raise NotApproved(
                f"to {act.what} {act.sha256[:16]}… for the {act.target} at {instant(act.at)} is {by}, and "
                f"{self.required} of {len(self.approvers)} must approve it"
            )
        return who


class RetiredKeys:
    """Which keys of a list were retired, and when: once known, for ever. Without a folder, for as long as the process.

    Raises `ConfigError` when there is something there that cannot be read: then nobody knows what was retired.
    """

    def __init__(self, folder: Path | None, target: str) -> None:
        self._path = None
        self._known: dict[str, datetime] = {}
        if folder is not None:
            self._path = folder / f"{HashAlgorithm.SHA_256.digest(target.encode()).hex()[:32]}.retired"
            self._read(self._path)

    def when(self, sha256: str) -> datetime | None:
        """The instant at which the key of this certificate ended or will end; the earliest that was ever known."""
        return self._known.get(sha256)

    def remember(self, sha256: str, at: datetime) -> None:
        """Take note. Raises `ConfigError` when it is known now, but could not be written down."""
        known = self._known.get(sha256)
        if known is not None and known <= at:
            return
        self._known[sha256] = at
        if self._path is not None:
            # Every worker writes the same file: with what the others have written meanwhile.
            self._read(self._path)
            lines = [f"{each} {instant(when)}\n" for each, when in sorted(self._known.items())]
            replace_file(self._path, "".join(lines))

    def _read(self, path: Path) -> None:
        try:
            lines = path.read_text(encoding="ascii").splitlines()
            for line in lines:
                sha256, _, when = line.partition(" ")
                at = datetime.strptime(when, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
                self._known[sha256] = min(at, self._known.get(sha256, at))
        except FileNotFoundError:
            if not path.parent.is_dir():
                raise ConfigError(f"{path.parent}, where retired keys are remembered, is no folder: make it") from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}, where retired keys are remembered, cannot be read: {error}") from error


def _read(path: Path) -> list[Approver]:
    try:
        octets = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"the approvers' file {path} cannot be read: {error.strerror}") from error
    found: dict[bytes, Approver] = {}
    for block in _PEM.finditer(octets):
        try:
            name = ""
            if block[1] == b"CERTIFICATE":
                certificate = x509.load_pem_x509_certificate(block[0])
                public_key: PublicKeyTypes = certificate.public_key()
                name = certificate.subject.rfc4514_string()
            else:
                public_key = load_pem_public_key(block[0])
            signature_algorithm_of(public_key)
        except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
            raise ConfigError(f"{path} has something that is no public key or certificate: {error}") from error
        encoded = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        digest = HashAlgorithm.SHA_256.digest(encoded).hex()[:16]
        # One key is one approver, however often it is there.
        found.setdefault(encoded, Approver(name or f"key {digest}", public_key))
    if not found:
        raise ConfigError(
            f"{path} has no public keys: put a PEM block PUBLIC KEY or CERTIFICATE of each approver there"
        )
    return list(found.values())


def _decoded(signature: str) -> bytes | None:
    try:
        return base64.b64decode(signature, validate=True)
    except binascii.Error:
        return None
