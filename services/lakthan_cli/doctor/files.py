"""The files that the configuration names: who can read the secrets, and whether folders can be written.

No secret is opened here; only names, owners and modes are looked at.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

from lakthan.config import KeyURI
from lakthan.errors import ConfigError
from lakthan.keys import key_list
from lakthan_cli.doctor.notes import Notes, Patient

if TYPE_CHECKING:
    from lakthan.config import Config, DatabaseConfig, ResponderConfig, UnitConfig

# What a key's URI says about where a secret lies (RFC 7512 §2.4 and its like for clouds).
_SECRET_OF_URI = re.compile(r"[?&;](?:pin-source|token-file|credentials-file)=([^&;]+)")


async def look(patient: Patient, notes: Notes) -> None:
    """Secrets first, then the folders."""
    for path, what in sorted(set(_secrets(patient.config))):
        _secret(path, what, notes)
    for path, what in _written(patient.config):
        _folder(path, what, notes)


def _secrets(config: Config) -> Iterator[tuple[Path, str]]:
    services = (config.ocsp, config.tsa, config.registry, config.publisher)
    for service in services:
        if service is not None:
            yield from _of_database(service.database)
    holders: list[ResponderConfig | UnitConfig] = [*(config.ocsp.responders if config.ocsp else ())]
    holders += config.publisher.responders if config.publisher else ()
    holders += config.tsa.units.values() if config.tsa else ()
    for each in holders:
        if each.key is not None:
            yield from _of_key(each.key)
        if each.keys is not None:
            yield from _of_list(each.keys)
    if config.registry is not None:
        yield config.registry.key, "TLS key"
    if config.tsa is not None and config.tsa.credentials is not None:
        yield config.tsa.credentials, "credentials of clients"


def _of_database(database: DatabaseConfig) -> Iterator[tuple[Path, str]]:
    if database.password_file is not None:
        yield database.password_file, "database password"
    if database.url:
        for name in parse_qs(urlsplit(database.url).query).get("passfile", ()):
            yield Path(name), "database passwords"


def _of_list(path: Path) -> Iterator[tuple[Path, str]]:
    try:
        entries = key_list.read(path)
    except ConfigError:
        return  # the area `keys` says what is wrong with it
    for each in entries:
        yield from _of_key(KeyURI(each.key, path.resolve().parent))


def _of_key(key: KeyURI) -> Iterator[tuple[Path, str]]:
    scheme, _, rest = key.uri.partition(":")
    if scheme == "file":
        yield key.folder / unquote(rest.partition("?")[0]), "key"
    for found in _SECRET_OF_URI.findall(rest):
        yield key.folder / unquote(found).removeprefix("file:"), "secret that opens a key"


def _secret(path: Path, what: str, notes: Notes) -> None:
    try:
        status = path.stat()
        above = path.parent.stat()
    except OSError as error:
        todo = "look at the path in the configuration, and at the rights of the folders above it"
        notes.failure(str(path), what, f"cannot be looked at: {error.strerror}", todo)
        return
    mode = f"mode {stat.S_IMODE(status.st_mode):04o}, of user {status.st_uid} and group {status.st_gid}"
    if status.st_mode & stat.S_IROTH:
        notes.failure(str(path), what, f"everybody on this machine can read it: {mode}", f"chmod o= {path}; if others "
                      "were here, make a new one")  # fmt: skip
    elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        notes.failure(str(path), what, f"others than its owner can write it: {mode}", f"chmod go-w {path}")
    elif above.st_mode & stat.S_IWOTH and not above.st_mode & stat.S_ISVTX:
        notes.failure(str(path), what, "everybody can put another file into its place", f"chmod o-w {path.parent}")
    elif not os.access(path, os.R_OK):
        notes.failure(str(path), what, f"this user cannot read it: {mode}", "run this as the user of the service")
    elif status.st_mode & stat.S_IRGRP and status.st_gid not in {os.getgid(), *os.getgroups()}:
        notes.warning(str(path), what, f"a group that is not ours can read it: {mode}", f"chmod g= {path}")
    else:
        notes.ok(str(path), what, mode)


def _written(config: Config) -> Iterator[tuple[Path, str]]:
    if config.registry is not None and config.registry.spool is not None:
        yield config.registry.spool, "spool"
        if config.registry.spool.is_dir():
            for each in sorted(config.registry.spool.iterdir()):
                if each.is_dir() and not each.name.startswith("."):
                    yield each, "spool of an authority"
    if config.approval is not None and config.approval.memory is not None:
        yield config.approval.memory, "memory of retired keys"
    if config.ocsp is not None and config.ocsp.warm_start is not None:
        yield config.ocsp.warm_start.parent, "folder of warm_start"


def _folder(path: Path, what: str, notes: Notes) -> None:
    if not path.is_dir():
        notes.failure(str(path), what, "it is no folder", f"mkdir -p {path}, for the user of the service")
    elif not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        todo = f"chown it to the user of the service, who must read and write {path}"
        notes.failure(str(path), what, "this user cannot write it", todo)
    else:
        notes.ok(str(path), what, "can be written")
