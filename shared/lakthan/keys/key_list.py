"""Key lists: which keys a responder or a time-stamping unit has, from when on, and until when.

A small TOML file that the service follows without a restart. `lakthan keys install` and `retire` write it; the order in
it means nothing:

    [[key]]
    certificate = "public-2027.pem"       # relative to the list
    sha256 = "9f86d081…"                  # of the certificate's DER
    key = "pkcs11:token=prod;object=…"    # relative paths in it start at the list's folder
    installed = 2026-11-22T10:00:00Z      # it signs nothing before this instant, nor before its certificate is in force
    retired = 2027-01-01T00:00:00Z        # optional: it signs nothing from this instant on

and, where approval is demanded (`approval`), the approvers' signatures as `approvals` and `retirement_approvals`.

Promises: a list is read whole or not at all; what is wrong with one key says nothing against the others. It is replaced
in one step, so that nobody ever reads half of one.

Trusted: whoever can write the file decides who signs, unless approval is demanded.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import tomllib
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from lakthan.algorithms import HashAlgorithm
from lakthan.certificates import CertificateView, read_certificates
from lakthan.config import KeyURI
from lakthan.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_HEAD = """# Who signs: followed by the service, without a restart. Written by `lakthan keys install` and `retire`.
"""
_Instant = Annotated[datetime, msgspec.Meta(tz=True)]
_Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
# What a person reads on one line, and what stands in one line of an act: nothing that could begin another.
_Line = Annotated[str, msgspec.Meta(pattern=r"^[^\x00-\x1f\x7f]+\Z")]


class ListedKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One key as it stands in a list. `approvals`: Base64."""

    certificate: _Line
    sha256: _Digest
    key: _Line
    installed: _Instant
    chain: _Line | None = None
    retired: _Instant | None = None
    approvals: tuple[str, ...] = ()
    retirement_approvals: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What messages call it: short, and enough to find it."""
        return f"{self.certificate} ({self.sha256[:16]}…)"


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: tuple[ListedKey, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """Where the parts of a listed key are; the certificate has the digest that the list says. `late`: the service is
    starting, and the key may come later, from an HSM or a cloud that is away now.
    """

    view: CertificateView
    certificate: Path
    key: KeyURI
    chain: Path | None
    late: bool = False


def digest_of(view: CertificateView) -> str:
    """What names a certificate in a list: the SHA-256 of its DER, in hexadecimal."""
    return HashAlgorithm.SHA_256.digest(view.encoded).hex()


def read(path: Path) -> tuple[ListedKey, ...]:
    """The keys of a list. Raises `ConfigError` when it cannot be read, or says the same certificate twice."""
    try:
        document = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _Document)
    except OSError as error:
        raise ConfigError(f"the key list {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError, msgspec.ValidationError) as error:
        raise ConfigError(f"the key list {path} is not as it must be: {error}") from error
    seen: set[str] = set()
    for entry in document.key:
        if entry.sha256 in seen:
            raise ConfigError(f"the key list {path} has the certificate {entry.name} twice: keep one of them")
        seen.add(entry.sha256)
    return document.key


def find(entry: ListedKey, path: Path) -> Found:
    """The certificate of an entry of the list at `path`, and where its key is. Raises `ConfigError`."""
    folder = path.resolve().parent
    certificate = folder / entry.certificate
    view = read_certificates(certificate)[0]
    if digest_of(view) != entry.sha256:
        raise ConfigError(
            f"{certificate} is not the certificate that the list means: its SHA-256 is {digest_of(view)}, and the list "
            f"says {entry.sha256}"
        )
    return Found(view, certificate, KeyURI(entry.key, folder), None if entry.chain is None else folder / entry.chain)


def write(path: Path, entries: Sequence[ListedKey]) -> None:
    """Replace the list in one step, durably. Raises `ConfigError` when that cannot be done; then it is as it was."""
    replace_file(path, _HEAD + "".join(_table(entry) for entry in entries))


def replace_file(path: Path, text: str) -> None:
    """Give the file this text in one step, durably, under its mode and owner of before. Raises `ConfigError`."""
    path = path.resolve()  # of a link the file, not the link, is replaced
    new = None
    try:
        descriptor, new = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor
            os.fchmod(file.fileno(), path.stat().st_mode & 0o777 if path.exists() else 0o644)
            if path.exists() and os.geteuid() == 0:
                before = path.stat()
                os.fchown(file.fileno(), before.st_uid, before.st_gid)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(new).replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        if new is not None:
            Path(new).unlink(missing_ok=True)
        raise ConfigError(f"{path} cannot be replaced: {error.strerror}") from error


@contextmanager
def changing(path: Path) -> Iterator[None]:
    """While a list is read, changed and written: one at a time. Raises `ConfigError` when its folder is not there."""
    try:
        folder = os.open(path.resolve().parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ConfigError(f"the folder of the key list {path} cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def instant(moment: datetime) -> str:
    """An instant as lists and acts write it: RFC 3339, UTC, whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _table(entry: ListedKey) -> str:
    lines = ["", "[[key]]"]
    for name, value in msgspec.structs.asdict(entry).items():
        if isinstance(value, datetime):
            lines.append(f"{name} = {instant(value)}")
        elif isinstance(value, tuple):
            if value:
                lines += [f"{name} = [", *(f"  {_string(each)}," for each in value), "]"]
        elif value is not None:
            lines.append(f"{name} = {_string(value)}")
    return "\n".join(lines) + "\n"


def _string(text: str) -> str:
    # Without control characters, a JSON string is a TOML basic string.
    return json.dumps(text, ensure_ascii=False)
