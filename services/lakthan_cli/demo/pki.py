"""The demo PKI in a folder: made once, whole or not at all; opened again; its short-lived certificates renewed.

Promises: `pki/` appears only when everything in it is written, and its certificates name the URLs that it was made
with. A certificate that has run out (or a responder's that is about to) is made anew with a new key.

Refuses to know: the database. Which certificates are revoked or held is recorded there, not in files.

Trusted: whoever can read `secrets/` is every authority of the demo. Nothing here protects a real key.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, mldsa, rsa

from lakthan.certificates import read_certificates
from lakthan.errors import ConfigError
from lakthan_cli.demo import certificates as profiles
from lakthan_cli.demo.inventory import (
    AGE_OF_AUTHORITIES,
    AUTHORITIES,
    CHAINS,
    LEAVES,
    REGISTRY,
    REGISTRY_CHAIN,
    Authority,
    Fate,
    Leaf,
    Profile,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cryptography import x509

_SCRATCH_PREFIX = ".making-"


@dataclass(frozen=True, slots=True)
class DemoPKI:
    """An open demo PKI: the folder, and the authorities by their name, keys included."""

    directory: Path
    authorities: Mapping[str, profiles.Issuer]

    def to_register(self) -> Iterator[tuple[str, x509.Certificate, Fate]]:
        """Every certificate that the database is to know, with its authority's name and what becomes of it."""
        for authority in AUTHORITIES:
            if authority.parent is not None:
                yield authority.parent, self.authorities[authority.name].certificate, Fate.ISSUED
        for leaf in LEAVES:
            if leaf.fate is not Fate.NEVER_REGISTERED:
                yield leaf.authority, _first_certificate(self.directory / leaf.certificate), leaf.fate


def exists(directory: Path) -> bool:
    """Whether a demo PKI was made in `directory`."""
    return (directory / "pki").is_dir()


def make(directory: Path, urls: profiles.Urls, now: datetime) -> DemoPKI:
    """Make the whole PKI in `directory`; `pki/` comes last, by one rename, so half a PKI is never seen.

    Keys without a `pki/` beside them belong to an attempt that was interrupted, and are replaced.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for leftover in directory.glob(f"{_SCRATCH_PREFIX}*"):
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix=_SCRATCH_PREFIX, dir=directory) as name:
        scratch = Path(name)
        (scratch / "secrets").mkdir(mode=0o700)
        (scratch / "pki").mkdir()
        authorities: dict[str, profiles.Issuer] = {}
        for authority in AUTHORITIES:
            authorities[authority.name] = _make_authority(scratch, authority, authorities, urls, now)
        for path, names in CHAINS.items():
            _write(scratch / path, b"".join(_pem(authorities[each].certificate) for each in names))
        for leaf in LEAVES:
            _make_leaf(scratch, leaf, authorities[leaf.authority], urls, now)
        shutil.rmtree(directory / "secrets", ignore_errors=True)
        (scratch / "secrets").rename(directory / "secrets")
        (scratch / "pki").rename(directory / "pki")
    return DemoPKI(directory, authorities)


def load(directory: Path) -> DemoPKI:
    """The PKI that was made in `directory`. Raises `ConfigError` when something of it is missing or does not fit."""
    authorities = {}
    for authority in AUTHORITIES:
        certificate = _first_certificate(directory / authority.certificate)
        key = _read_key(directory / authority.key)
        if certificate.public_key() != key.public_key():
            raise ConfigError(
                f"{directory / authority.key} is not the key of {authority.certificate}: "
                f"remove {directory / 'pki'} to have a new demo PKI made",
            )
        authorities[authority.name] = profiles.Issuer(authority.name, certificate, key)
    return DemoPKI(directory, authorities)


def renew(pki: DemoPKI, urls: profiles.Urls, now: datetime) -> list[str]:
    """Make anew what has run out, is missing, or does not fit its key. Gives the files that are new."""
    renewed = []
    for leaf in LEAVES:
        if not _is_fit(pki.directory, leaf, now):
            _make_leaf(pki.directory, leaf, pki.authorities[leaf.authority], urls, now)
            renewed.append(leaf.certificate)
    return renewed


def write_registry_chain(pki: DemoPKI) -> None:
    """What the registry shows in TLS: its certificate with that of its CA, for clients that know the root only."""
    certificate = _first_certificate(pki.directory / REGISTRY.certificate)
    authority = pki.authorities[REGISTRY.authority].certificate
    _write(pki.directory / REGISTRY_CHAIN, _pem(certificate) + _pem(authority))


def _make_authority(
    directory: Path,
    authority: Authority,
    made: Mapping[str, profiles.Issuer],
    urls: profiles.Urls,
    now: datetime,
) -> profiles.Issuer:
    key = profiles.new_key(authority.kind_of_key)
    if authority.parent is None:
        parent, extensions = None, profiles.root_profile()
    else:
        parent = made[authority.parent]
        extensions = profiles.authority_profile(urls, authority.parent, only_time_stamping=authority.name == "tsa-ca")
    certificate = profiles.issue(
        parent,
        profiles.subject_name(authority.common_name),
        key,
        _validity(now, AGE_OF_AUTHORITIES, authority.lifetime),
        extensions,
    )
    _write_key(directory / authority.key, key)
    _write(directory / authority.certificate, _pem(certificate))
    return profiles.Issuer(authority.name, certificate, key)


def _make_leaf(directory: Path, leaf: Leaf, issuer: profiles.Issuer, urls: profiles.Urls, now: datetime) -> None:
    key = profiles.new_key(leaf.kind_of_key)
    validity = _validity(now, leaf.age, leaf.lifetime)
    certificate = profiles.issue(
        issuer,
        profiles.subject_name(leaf.common_name),
        key,
        validity,
        _extensions(leaf, urls, validity),
    )
    # The key first: a stop between the two leaves a pair that does not fit, which the next start makes anew.
    if leaf.key is not None:
        _write_key(directory / leaf.key, key)
    _write(directory / leaf.certificate, _pem(certificate))


def _extensions(leaf: Leaf, urls: profiles.Urls, validity: profiles.Validity) -> list[profiles.Extension]:
    match leaf.profile:
        case Profile.RESPONDER:
            return profiles.responder_profile()
        case Profile.TIME_STAMPING:
            lifetime = leaf.key_lifetime or leaf.lifetime
            key_use = profiles.Validity(validity.not_before, validity.not_before + lifetime)
            return profiles.time_stamping_profile(urls, leaf.authority, key_use)
        case Profile.TLS:
            return profiles.tls_profile(urls, leaf.authority)
        case Profile.DOCUMENT:
            return profiles.document_profile(urls, leaf.authority)
        case Profile.MAIL:
            return profiles.mail_profile(urls, leaf.authority, leaf.email or "")


def _is_fit(directory: Path, leaf: Leaf, now: datetime) -> bool:
    path = directory / leaf.certificate
    if not path.exists() or (leaf.key is not None and not (directory / leaf.key).exists()):
        return False
    certificate = _first_certificate(path)
    if leaf.key is not None and _read_key(directory / leaf.key).public_key() != certificate.public_key():
        return False
    if leaf.renew_before is None:
        return True
    ends = certificate.not_valid_after_utc
    if leaf.key_lifetime is not None:
        ends = min(ends, certificate.not_valid_before_utc + leaf.key_lifetime)
    return ends - now > leaf.renew_before


def _validity(now: datetime, age: timedelta, lifetime: timedelta) -> profiles.Validity:
    not_before = now.astimezone(UTC).replace(microsecond=0) - age
    return profiles.Validity(not_before, not_before + lifetime)


def _first_certificate(path: Path) -> x509.Certificate:
    return read_certificates(path)[0].certificate


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _read_key(path: Path) -> profiles.PrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise ConfigError(f"cannot read the key {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not a private key in PEM form") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | mldsa.MLDSA65PrivateKey):
        raise ConfigError(f"{path} is a kind of key that the demo never makes")
    return key


def _write_key(path: Path, key: profiles.PrivateKey) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    encoded = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _write(path, encoded, mode=0o600)


def _write(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a whole file or nothing: beside it first, then one rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, beside = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        os.fchmod(descriptor, mode)
    Path(beside).rename(path)
