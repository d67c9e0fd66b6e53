"""`lakthan check-config`: everything that a start would find wrong, all at once, before the start.

Opens what the services open (keys, certificates, database) with the services' own checks, and changes nothing.
`lakthan doctor` looks at the same (`look`), and at the machine around it.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from lakthan.certificates import CertificateView, read_certificates
from lakthan.config import load
from lakthan.errors import ConfigError, LakthanError
from lakthan.store.pool import open_pool
from lakthan.store.status import AuthorityReader
from lakthan_ocsp.directory import check_responder
from lakthan_ocsp.keyless_main import open_keyless
from lakthan_ocsp.opening import open_keys, open_published, signs
from lakthan_ocsp.publisher.__main__ import check as check_publisher
from lakthan_ocsp.publisher.voice import Voice
from lakthan_registry.tls import ClientCertificates, server_context
from lakthan_tsa.credentials import Credentials
from lakthan_tsa.opening import make_profiles
from lakthan_tsa.opening import open_keys as open_keys_of_unit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from lakthan.config import (
        ApprovalConfig,
        Config,
        DatabaseConfig,
        OCSPConfig,
        PublisherConfig,
        RegistryConfig,
        TSAConfig,
    )
    from lakthan.store.records import AuthorityRecord
    from lakthan_registry.authority_check import Nocheck
    from lakthan_tsa.profiles import Unit


@dataclass(frozen=True, slots=True)
class Opened:
    """A certificate whose key was opened. `what`: as in the rows. `issuers`: certificates that may have issued it.

    `ends`: when the key must stop. `nocheck`: what a responder's profile demands, '' for one that is no responder's.
    """

    what: str
    view: CertificateView
    issuers: tuple[CertificateView, ...]
    ends: datetime
    nocheck: Nocheck | Literal[""] = ""


@dataclass(slots=True)
class Findings:
    """What was looked at, in order, with what is wrong with it ('' when nothing is); and what was opened."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    opened: list[Opened] = field(default_factory=list)

    @asynccontextmanager
    async def about(self, what: str) -> AsyncIterator[None]:
        """Whatever is found wrong inside is written down, and the look-around goes on."""
        try:
            yield
        except LakthanError as error:
            self.rows.append((what, str(error)))
        else:
            self.rows.append((what, ""))

    @property
    def problems(self) -> int:
        """How many of the things are wrong."""
        return sum(1 for _, problem in self.rows if problem)


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def check_config(file: Path) -> None:
    """Open the keys, certificates and databases that the configuration FILE names, and say what is wrong.

    Exit code 1 when something is.
    """
    findings = asyncio.run(look(load(file)))
    width = max((len(what) for what, _ in findings.rows), default=0)
    for what, problem in findings.rows:
        click.echo(f"{what.ljust(width)}  {problem or 'ok'}")
    if not findings.rows:
        raise ConfigError(
            f"{file} configures no service: it needs an [ocsp], a [tsa], a [registry] or a [publisher] table"
        )
    if findings.problems:
        raise click.ClickException(f"{findings.problems} of {len(findings.rows)} are not as they must be")


async def look(config: Config) -> Findings:
    """Open everything that is configured, and close it again."""
    findings = Findings()
    if config.ocsp is not None:
        await _check_ocsp(config.ocsp, config.approval, findings)
    if config.tsa is not None:
        await _check_tsa(config.tsa, config.approval, findings)
    if config.registry is not None:
        await _check_registry(config.registry, findings)
    if config.publisher is not None:
        await _check_publisher(config.publisher, config.approval, findings)
    return findings


async def _check_ocsp(config: OCSPConfig, approval: ApprovalConfig | None, findings: Findings) -> None:
    authorities: dict[str, AuthorityRecord] | None = None
    async with findings.about("ocsp: database"):
        found = await read_authorities(config.database)
        authorities = {authority.name: authority for authority in found}
    if config.keyless:
        async with findings.about("ocsp: keyless"):
            open_keyless(config)
    for responder in config.responders:
        async with findings.about(f"ocsp: responder of {responder.authority}"):
            if responder.answers == "published":
                open_published(responder)
                if authorities is not None:
                    _authority(authorities, responder.authority)
                if not signs(responder):
                    continue
            ring = await open_keys(responder, approval, late=False)
            held = ring.held
            await ring.aclose()
            known = (authorities or {}).get(responder.authority)
            issuers = [CertificateView.from_der(encoded) for encoded in known.certificates] if known else []
            findings.opened += [
                Opened(
                    f"ocsp: responder of {responder.authority}",
                    key.view,
                    tuple(issuers),
                    key.ends,
                    key.made.profile.nocheck.value,
                )
                for key in held
            ]
            if ring.problem:
                raise ConfigError(ring.problem)
            if authorities is None:
                continue  # said once already
            authority = _authority(authorities, responder.authority)
            for key in held:
                check_responder(key.view, authority.name, issuers, key.made.profile)
            warning = max(held, key=lambda key: key.ends).made.governor.warning(datetime.now(UTC))
            if warning:
                raise ConfigError(warning)


def _authority(authorities: Mapping[str, AuthorityRecord], name: str) -> AuthorityRecord:
    if name not in authorities:
        names = ", ".join(authorities) or "none at all"
        raise ConfigError(f"the database has no authority of this name: there are {names}")
    return authorities[name]


async def _check_publisher(config: PublisherConfig, approval: ApprovalConfig | None, findings: Findings) -> None:
    authorities: dict[str, AuthorityRecord] | None = None
    async with findings.about("publisher: database"):
        found = await read_authorities(config.database, role="lakthan_presigner")
        authorities = {authority.name: authority for authority in found}
    async with findings.about("publisher: settings"):
        check_publisher(config)
    for each in config.responders:
        async with findings.about(f"publisher: responder of {each.authority}"):
            ring = await open_keys(each, approval, late=False)
            held = ring.held
            await ring.aclose()
            findings.opened += [
                Opened(f"publisher: responder of {each.authority}", key.view, (), key.ends) for key in held
            ]
            if ring.problem:
                raise ConfigError(ring.problem)
            if authorities is not None:
                authority = _authority(authorities, each.authority)
                for key in held:
                    Voice(authority, key.made, ())


async def _check_tsa(config: TSAConfig, approval: ApprovalConfig | None, findings: Findings) -> None:
    async with findings.about("tsa: database"):
        pool = await open_pool(
            config.database.url,
            role="lakthan_tsa",
            min_size=1,
            max_size=1,
            password=config.database.password(),
            application_name="lakthan-check",
        )
        await pool.close()
    units: dict[str, list[Unit]] = {}
    for name, unit in config.units.items():
        async with findings.about(f"tsa: unit {name}"):
            ring = await open_keys_of_unit(name, unit, approval, late=False)
            units[name] = [key.made for key in ring.held]
            findings.opened += [
                Opened(f"tsa: unit {name}", key.view, key.made.identity.intermediates, key.ends) for key in ring.held
            ]
            await ring.aclose()
            if ring.problem:
                raise ConfigError(ring.problem)
    if units.keys() == config.units.keys():
        async with findings.about("tsa: profiles"):
            make_profiles(config, units)
    if config.credentials is not None:
        async with findings.about("tsa: credentials"):
            Credentials(config.credentials)


async def _check_registry(config: RegistryConfig, findings: Findings) -> None:
    for role in ("lakthan_publisher", "lakthan_registrar", "lakthan_auditor"):
        async with findings.about(f"registry: database as {role}"):
            pool = await open_pool(
                config.database.url,
                role=role,
                min_size=1,
                max_size=1,
                password=config.database.password(),
                application_name="lakthan-check",
            )
            await pool.close()
    async with findings.about("registry: TLS"):
        server_context(config)
        first, *above = read_certificates(config.certificate)
        findings.opened.append(Opened("registry: TLS", first, tuple(above), first.not_after))
    async with findings.about("registry: client certificates"):
        warnings = ClientCertificates(config).warnings(datetime.now(UTC))
        wrong = [f"the {what} is {problem}" for what, problem in warnings.items() if problem]
        if wrong:
            raise ConfigError("; ".join(wrong))
    if config.spool is not None:
        async with findings.about("registry: spool"):
            if not config.spool.is_dir():
                raise ConfigError(f"{config.spool} is no folder; make it, with one subfolder for each authority")


async def read_authorities(database: DatabaseConfig, *, role: str = "lakthan_responder") -> list[AuthorityRecord]:
    """Every authority of a responder's database. Raises `StoreUnavailable`."""
    pool = await open_pool(
        database.url,
        role=role,
        min_size=1,
        max_size=1,
        password=database.password(),
        application_name="lakthan-check",
    )
    try:
        return await AuthorityReader(pool).load()
    finally:
        await pool.close()
