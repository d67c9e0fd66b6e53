"""The demo's folder: one demo at a time in it, and the two small files that say what the demo is and where it runs.

`demo.json`: the addresses that the certificates were made with; it lives as long as `pki/`.
`running.json`: its database, for `lakthan revoke` and its sisters. A crash may leave it behind, but not the lock.

Refuses to know: certificates and keys (`lakthan_cli.demo.pki`).
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, TypeVar

import msgspec

from lakthan.errors import ConfigError
from lakthan_cli.demo.addresses import Addresses

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_T = TypeVar("_T")
_LOCK = "demo.lock"


@dataclass(frozen=True, slots=True)
class Running:
    """A running demo. `owner` and `registry` are the database's URLs for these users (no passwords: they name a file);
    None when the database is that of DATABASE_URL, which is not written down.
    """

    owner: str | None
    registry: str | None


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other demos out of the folder, which is made when missing. Raises `ConfigError` when one is in it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(
            f"cannot write into {directory}: {error.strerror}; name a folder of your own with --dir"
        ) from error
    with os.fdopen(descriptor, "r+") as file:
        if not _lock(file):
            raise ConfigError(
                f"a demo is running in {directory} already (process {file.read().strip() or 'unknown'}): "
                "stop it first, or name another folder with --dir"
            )
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def read_addresses(directory: Path) -> Addresses | None:
    """The addresses in `demo.json`, or None when there is none."""
    return _read(directory / "demo.json", Addresses)


def write_addresses(directory: Path, addresses: Addresses) -> None:
    """Record the addresses that the certificates carry."""
    write_text(directory / "demo.json", _encode(addresses))


def read_running(directory: Path) -> Running | None:
    """The demo that runs in `directory` now, or None. Raises `ConfigError` when the folder cannot be read."""
    try:
        with (directory / _LOCK).open() as file:
            if _lock(file):
                return None  # whoever announced it is gone
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read {directory}: {error.strerror}; become the user who runs the demo") from error
    return _read(directory / "running.json", Running)


@contextmanager
def announced(directory: Path, running: Running) -> Iterator[None]:
    """Let other programs find the running demo."""
    path = directory / "running.json"
    write_text(path, _encode(running))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file that only its owner reads, whole or not at all."""
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    beside.rename(path)


def _lock(file: IO[str]) -> bool:
    """Lock the file as long as it is open; False when another process has it locked."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _encode(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value)).decode() + "\n"


def _read(path: Path, kind: type[_T]) -> _T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path} is damaged ({error}): remove it and start the demo again") from error
