"""From the configuration to units and profiles: keys, certificates and settings, checked together before anything is
served.
"""

from __future__ import annotations

import re
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from lakthan.algorithms import HashAlgorithm
from lakthan.errors import ConfigError
from lakthan.identity import Identity
from lakthan.keys.key_ring import KeyRing, open_ring
from lakthan_tsa.authority import TokenTemplate, encode_policy
from lakthan_tsa.profiles import Profile, Unit
from lakthan_tsa.syntax import ACCEPTED_HASHES, by_identifier
from lakthan_tsa.unit import UsagePeriod

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lakthan.config import ApprovalConfig, KeyURI, TSAConfig, TSAProfileConfig, UnitConfig
    from lakthan.keys.key_list import Found
    from lakthan.keys.key_ring import Role

ROLE: Role = "time-stamping unit"
_BEST_PRACTICE = "0.4.0.2023.1.1"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HASHES = {algorithm.label: algorithm for algorithm in HashAlgorithm if algorithm in ACCEPTED_HASHES}
_SECOND = timedelta(seconds=1)
_MILLISECOND = timedelta(milliseconds=1)


async def open_keys(
    name: str, config: UnitConfig, approval: ApprovalConfig | None = None, *, late: bool = True
) -> KeyRing[Unit]:
    """The keys of a unit, each as a unit of that name: those of its list, or its only one.

    Raises `ConfigError`. The caller closes the ring. `late`: see `Identity.open`.
    """
    if config.keys is None:
        only = await open_unit(name, config, late=late)
        ring: KeyRing[Unit] = KeyRing(ROLE, name, None, _never, _close)
        ring.hold(only.identity.view, only)
        return ring
    if config.certificate is not None or config.key is not None:
        raise ConfigError(f"unit {name!r}: give a key list, or a certificate and its key, not both")
    return await open_ring(
        ROLE, name, config.keys, partial(open_listed, name, config), _close, approval=approval, late=late
    )


def listed_units(ring: KeyRing[Unit]) -> list[Unit]:
    """The units of a ring, the newest first, each bound to what its list says."""
    for key in ring.held:
        if ring.path is not None:
            key.made.listed = UsagePeriod(key.begins, key.stops)
    return [key.made for key in ring.held]


async def open_unit(name: str, config: UnitConfig, *, late: bool = False) -> Unit:
    """Open the key of a unit and check its certificate. Raises `ConfigError`. The caller closes the signer. `late`: see
    `Identity.open`.
    """
    if config.certificate is None or config.key is None:
        raise ConfigError(f"unit {name!r}: give its certificate and key, or its key list")
    return await _open(name, config.certificate, config.key, config.chain, late=late)


async def open_listed(name: str, config: UnitConfig, found: Found) -> Unit:
    """The unit that a key of a list makes, checked in the same way; its chain may be another. Raises `ConfigError`."""
    return await _open(name, found.certificate, found.key, found.chain or config.chain, late=found.late)


async def _open(name: str, certificate: Path, key: KeyURI, chain: Path | None, *, late: bool) -> Unit:
    identity = await Identity.open(certificate, key, chain=chain, late=late)
    try:
        return Unit.of(name, identity)
    except ConfigError:
        await identity.signer.aclose()
        raise


async def _never(_found: Found) -> Unit:
    raise ConfigError("there is no key list")


async def _close(unit: Unit) -> None:
    await unit.identity.signer.aclose()


def make_profiles(config: TSAConfig, units: Mapping[str, Sequence[Unit]]) -> list[Profile]:
    """The profiles of the configuration on its opened units: of each name those that its key list makes, the newest
    first, and none where all of them are retired. Raises `ConfigError` that names the profile.
    """
    if not config.profiles:
        raise ConfigError("there is no profile: write at least [tsa.profiles.default] with its units")
    profiles = [_profile(name, settings, units, config) for name, settings in config.profiles.items()]
    used = {unit for settings in config.profiles.values() for unit in settings.units}
    if idle := units.keys() - used:
        raise ConfigError(f"the unit {min(idle)!r} stamps for no profile: list it in one, or remove it")
    for name in units:
        _check_alone(name, config)
    return profiles


def _profile(name: str, settings: TSAProfileConfig, units: Mapping[str, Sequence[Unit]], config: TSAConfig) -> Profile:
    try:
        _check(name, settings, config)
        policy = encode_policy(settings.policy)
        stampers = tuple((unit, _template(unit, settings)) for each in settings.units for unit in _named(each, units))
        hashes = by_identifier(_hashes(settings.hashes))
    except ConfigError as error:
        raise ConfigError(f"the profile {name!r}: {error}") from error
    return Profile(
        name,
        settings.policy,
        settings.accuracy,
        frozenset({policy}),
        hashes,
        stampers,
        partial(_template, settings=settings),
        tuple(settings.units),
        settings.require_nonce,
    )


def _template(unit: Unit, settings: TSAProfileConfig) -> TokenTemplate:
    return TokenTemplate(
        unit.identity,
        policy=settings.policy,
        accuracy=settings.accuracy,
        qualified=settings.qualified,
        chain=settings.chain,
    )


def _check(name: str, settings: TSAProfileConfig, config: TSAConfig) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError("a name is a part of a URL: use letters, digits, point, hyphen and underscore")
    if settings.authentication == "required" and config.credentials is None:
        raise ConfigError("it requires authentication, but [tsa] names no credentials file")
    # EN 319 421 TIS-7.7.2-01 and EN 319 422 §5.2.2: one second or better, in a genTime that is fine enough for it.
    if settings.accuracy < _MILLISECOND:
        raise ConfigError("an accuracy finer than genTime, which has milliseconds, cannot be claimed")
    if settings.accuracy > _SECOND and (settings.qualified or settings.policy == _BEST_PRACTICE):
        raise ConfigError("tokens of this policy, and qualified ones, must be accurate to one second (PT1S) or better")


def _named(name: str, units: Mapping[str, Sequence[Unit]]) -> Sequence[Unit]:
    if name not in units:
        raise ConfigError(f"there is no unit {name!r}: there are {', '.join(units) or 'none at all'}")
    return units[name]


def _hashes(labels: Sequence[str]) -> set[HashAlgorithm]:
    unknown = set(labels) - _HASHES.keys()
    if unknown:
        raise ConfigError(f"the hash {min(unknown)!r} cannot be accepted: choose from {', '.join(_HASHES)}")
    return {_HASHES[label] for label in labels}


def _check_alone(unit: str, config: TSAConfig) -> None:
    """A unit that gives qualified tokens gives no others (EN 319 421 TIS-8.2-01)."""
    kinds = {settings.qualified for settings in config.profiles.values() if unit in settings.units}
    if len(kinds) > 1:
        raise ConfigError(
            f"the unit {unit!r} would give qualified tokens and others: a unit that gives qualified ones must give no "
            "others, so use another unit"
        )
