"""Key lists from the operator's side: whose a list is, what may come in, and how it is changed.

Promises: what comes in has been opened, proved and checked by the service's own code, in the service's own
configuration, so the service will take it. Nothing is written unless everything is right.

Refuses to know: how anything looks on a screen or on paper.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from lakthan.certificates import CertificateView, read_certificates
from lakthan.errors import ConfigError
from lakthan.keys import key_list
from lakthan.keys.approval import Act, Approvers
from lakthan.keys.key_list import ListedKey
from lakthan.keys.key_ring import target
from lakthan_ocsp import opening as ocsp
from lakthan_ocsp.directory import check_responder
from lakthan_tsa import opening as tsa

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lakthan.config import Config, ResponderConfig, UnitConfig
    from lakthan.keys.key_list import Found

# Every worker looks at its list once a second: by then they all know.
HEARD_BY_ALL = timedelta(seconds=5)
_SHORTEST_PREFIX = 8


@dataclass(frozen=True, slots=True)
class Target:
    """Whose a list is: `name` as acts have it, and the part of the configuration that names the list."""

    name: str
    path: Path
    of: ResponderConfig | tuple[str, UnitConfig]
    approvers: Approvers | None

    async def check(self, found: Found, issuers: Sequence[CertificateView]) -> None:
        """Open the key, prove it and check its certificate as the service will. `issuers`: the certificates of the
        authority of a responder. Raises `ConfigError`.
        """
        now = datetime.now(UTC)
        if found.view.not_after <= now:
            raise ConfigError(f"{found.certificate}: it ended at {found.view.not_after}; have a new one issued")
        if isinstance(self.of, tuple):
            unit = await tsa.open_listed(*self.of, found)
            await unit.identity.signer.aclose()
            return
        responder = await ocsp.open_listed(self.of, found)
        await responder.identity.signer.aclose()
        check_responder(found.view, self.of.authority, issuers, responder.profile)


@dataclass(frozen=True, slots=True)
class Change:
    """What a list will be: `entries` of the whole list, `entry` the one that changes, `act` what is done."""

    act: Act
    entry: ListedKey
    view: CertificateView | None
    entries: tuple[ListedKey, ...]
    approved_by: tuple[str, ...] = ()


def target_of(config: Config, path: Path) -> Target:
    """Whose the list at `path` is. Raises `ConfigError` when the configuration does not name it."""
    approvers = None if config.approval is None else Approvers(config.approval)
    named = path.resolve()
    responders = [
        *(config.ocsp.responders if config.ocsp else ()),
        *(config.publisher.responders if config.publisher else ()),
    ]
    for responder in responders:
        if responder.keys is not None and responder.keys.resolve() == named:
            return Target(target(ocsp.ROLE, responder.authority), path, responder, approvers)
    for name, unit in config.tsa.units.items() if config.tsa else ():
        if unit.keys is not None and unit.keys.resolve() == named:
            return Target(target(tsa.ROLE, name), path, (name, unit), approvers)
    raise ConfigError(
        f'no responder and no unit of the configuration has {path} as its keys: write keys = "{path.name}"'
    )


def installation(whose: Target, certificate: Path, key: str, *, chain: Path | None, at: datetime) -> Change:
    """The list with one more key, to be checked and approved. Raises `ConfigError`."""
    view = read_certificates(certificate)[0]
    entry = ListedKey(
        certificate=_from(whose.path, certificate),
        sha256=key_list.digest_of(view),
        key=key,
        installed=at,
        chain=None if chain is None else _from(whose.path, chain),
    )
    if re.search(r"[\x00-\x1f\x7f]", entry.certificate + entry.key):
        raise ConfigError("a path or a key's URI with control characters cannot stand in a list")
    before = key_list.read(whose.path) if whose.path.exists() else ()
    for other in before:
        if other.sha256 == entry.sha256:
            raise ConfigError(
                f"{other.name} is in {whose.path} already; a key that was retired needs a new certificate"
            )
    return Change(Act.installing(whose.name, entry), entry, view, (*before, entry))


def retirement(whose: Target, which: str, *, at: datetime, force: bool) -> Change:
    """The list with one key retired. `which`: the beginning of its certificate's SHA-256, or the certificate's file.

    Raises `ConfigError`, also when nothing could be signed then, unless `force`.
    """
    before = key_list.read(whose.path)
    entry = _find(before, which, whose.path)
    if entry.retired is not None and entry.retired <= at:
        raise ConfigError(f"{entry.name} is retired from {key_list.instant(entry.retired)} on already")
    if not force and not any(_signs_at(other, whose.path, at) for other in before if other is not entry):
        raise ConfigError(
            f"without {entry.name} nothing could be signed at {key_list.instant(at)}: install another key first, or "
            "say --force"
        )
    # Signatures for another instant are worth nothing.
    retired = msgspec.structs.replace(entry, retired=at, retirement_approvals=())
    after = tuple(retired if other is entry else other for other in before)
    return Change(Act.retiring(whose.name, entry, at), retired, None, after)


def approve(change: Change, approvers: Approvers, signatures: Sequence[str]) -> Change:
    """The change with the signatures (Base64) in its entry. Raises `NotApproved` when they are too few."""
    who = approvers.demand(change.act, signatures)
    field = "approvals" if change.act.what == "install" else "retirement_approvals"
    approved = msgspec.structs.replace(change.entry, **{field: tuple(signatures)})
    entries = tuple(approved if entry is change.entry else entry for entry in change.entries)
    return Change(change.act, approved, change.view, entries, tuple(who))


def without_ended(entries: Sequence[ListedKey], path: Path, now: datetime) -> tuple[ListedKey, ...]:
    """The entries of keys that may sign now or later, and those of which nobody can tell; the others are history, which
    a robot's list need not keep.
    """
    return tuple(entry for entry in entries if not _is_over(entry, path, now))


def _is_over(entry: ListedKey, path: Path, now: datetime) -> bool:
    if entry.retired is not None and entry.retired <= now:
        return True
    try:
        return key_list.find(entry, path).view.not_after <= now
    except ConfigError:
        return False


def _find(entries: Sequence[ListedKey], which: str, path: Path) -> ListedKey:
    prefix = which.lower().replace(":", "")
    if not re.fullmatch(f"[0-9a-f]{{{_SHORTEST_PREFIX},64}}", prefix):
        prefix = key_list.digest_of(read_certificates(Path(which))[0])
    found = [entry for entry in entries if entry.sha256.startswith(prefix)]
    if len(found) != 1:
        names = "; ".join(f"{entry.sha256[:16]} {entry.certificate}" for entry in entries) or "nothing"
        raise ConfigError(f"{which} is {'no key' if not found else 'several keys'} of {path}, which has: {names}")
    return found[0]


def _signs_at(entry: ListedKey, path: Path, at: datetime) -> bool:
    try:
        view = key_list.find(entry, path).view
    except ConfigError:
        return False
    in_time = max(view.not_before, entry.installed) <= at < view.not_after
    return in_time and (entry.retired is None or at < entry.retired)


def _from(list_path: Path, file: Path) -> str:
    """How a list names a file: from its own folder, where that is above it."""
    absolute, folder = file.resolve(), list_path.resolve().parent
    return os.fspath(absolute.relative_to(folder) if absolute.is_relative_to(folder) else absolute)
