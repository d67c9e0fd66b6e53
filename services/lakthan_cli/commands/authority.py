"""`lakthan authority`: whose certificates are answered for, by which keys, from which CRLs, under which policy.

Promises: before anything is recorded, the certificates are checked, and every finding is shown with what to do about
it; with an error, nothing is recorded.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from cryptography import x509
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lakthan.algorithms import HashAlgorithm
from lakthan.certificates import CertificateView
from lakthan.errors import ConfigError
from lakthan.store.authorities import AuthorityAdmin
from lakthan_cli.commands.changes import Reason
from lakthan_cli.commands.database import DatabaseOptions, actor, database_options, registry
from lakthan_cli.commands.ocsp import Instant
from lakthan_cli.commands.spans import Span, in_iso
from lakthan_cli.commands.text import moment
from lakthan_ocsp.profiles import PROFILES
from lakthan_registry.authority_check import (
    Finding,
    Level,
    check_authority,
    check_responder_certificate,
    check_sample,
)
from lakthan_registry.crl_url import check_crl_url

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lakthan.store.records import AuthorityPolicy, AuthorityRecord, CRLReason
    from lakthan_registry.authority_check import Nocheck

_file = click.Path(dir_okay=False, path_type=Path)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON; instants in ISO 8601.")
_PEM = b"-----BEGIN CERTIFICATE-----"


@click.group()
def authority() -> None:
    """Add authorities (CAs), look at them, say where their CRLs are."""


@authority.command()
@click.argument("name")
@click.argument("certificates", metavar="CERT...", nargs=-1, required=True, type=_file)
@click.option("--responder", "responders", multiple=True, type=_file, help="A responder's certificate; repeatable.")
@click.option("--sample", "samples", multiple=True, type=_file, help="A certificate that it issued; repeatable.")
@click.option(
    "--profile", type=click.Choice(list(PROFILES)), default="pdf-ltv", show_default=True, help="Of the responder."
)
@click.option("--dry-run", is_flag=True, help="Check and say what would be done; record nothing.")
@database_options
def add(
    *,
    name: str,
    certificates: tuple[Path, ...],
    responders: tuple[Path, ...],
    samples: tuple[Path, ...],
    profile: str,
    dry_run: bool,
    directory: Path | None,
    url: str | None,
) -> None:
    """Add the authority NAME with its CA certificates, or more of them to the one of this name.

    CERT are the certificates of one CA under its current and its earlier keys, PEM or DER; a chain is several
    authorities. The certificates of responders and a sample of what the CA issues are checked, not recorded.
    """
    given = [_Given(path) for path in certificates]
    nocheck: Nocheck = PROFILES[profile].nocheck.value
    now = datetime.now(UTC)

    async def check_and_add() -> None:
        async with registry(DatabaseOptions(directory, url)) as pool:
            admin = AuthorityAdmin(pool)
            record = await admin.find_authority(name)
            known = [] if record is None else [CertificateView.from_der(each) for each in record.certificates]
            views = [view for each in given for view in each.views]
            policy = None if record is None else await admin.policy(record.id)
            issuers = [*known, *views]
            findings = check_authority(views, now, known)
            for path in responders:
                findings += check_responder_certificate(_Given(path).views[0], issuers, now, nocheck)
            for path in samples:
                findings += check_sample(_Given(path).views[0], issuers, policy.crl_urls if policy else ())
            _show(findings)
            errors = sum(finding.level is Level.ERROR for finding in findings)
            if errors:
                raise ConfigError(
                    f"{errors} {'error' if errors == 1 else 'errors'}: authority {name} was not changed. Do what the "
                    "table says, then try again"
                )
            new = {view.encoded for view in views} - {view.encoded for view in known}
            if dry_run:
                does = "would be added" if record is None else f"would get {len(new)} more certificates"
                click.echo(f"authority {name} {does}; nothing was recorded")
            elif not new:
                click.echo(f"authority {name} has all of these already; nothing was recorded")
            else:
                number = await admin.add_authority(name, [view.encoded for view in views], actor=actor())
                has = len(known) + len(new)
                click.echo(f"authority {name} (number {number}) is on record with {has} certificate{'s'[: has != 1]}")

    asyncio.run(check_and_add())


@authority.command("list")
@_json
@database_options
def list_(*, as_json: bool, directory: Path | None, url: str | None) -> None:
    """List the authorities, with the CRL that their statuses come from."""
    found = asyncio.run(_read(DatabaseOptions(directory, url)))
    if as_json:
        click.echo(json.dumps([_as_object(*each) for each in found], indent=2, ensure_ascii=False))
        return
    table = _table("number", "name", "certificates", "state", "CRL in force until", "CRL URLs")
    for record, policy in found:
        table.add_row(
            str(record.id),
            escape(record.name),
            str(len(record.certificates)),
            _state(record),
            moment(record.crl.next_update) if record.crl else "",
            escape("\n".join(policy.crl_urls)),
        )
    Console().print(table)


@authority.command()
@click.argument("name")
@_json
@database_options
def show(*, name: str, as_json: bool, directory: Path | None, url: str | None) -> None:
    """Show everything that is on record about the authority NAME."""
    [(record, policy)] = asyncio.run(_read(DatabaseOptions(directory, url), name))
    if as_json:
        click.echo(json.dumps(_as_object(record, policy), indent=2, ensure_ascii=False))
        return
    lines = [
        ("name", f"{record.name} (number {record.id})"),
        ("state", _state(record)),
        *(("subject", x509.Name.from_bytes(each).rfc4514_string()) for each in record.names),
        *(("key", f"SHA-1 {_key_hash(key)} (the issuerKeyHash of CertIDs)") for key in record.public_keys),
    ]
    for encoded in record.certificates:
        view = CertificateView.from_der(encoded)
        lines.append(("certificate", f"{moment(view.not_before)} to {moment(view.not_after)}"))
        lines.append(("", f"SHA-256 {HashAlgorithm.SHA_256.digest(encoded).hex()}"))
    if record.crl is not None:
        number = "" if record.crl.crl_number is None else f"number {int.from_bytes(record.crl.crl_number, 'big')}, "
        lines.append(("CRL", f"{number}{moment(record.crl.this_update)} to {moment(record.crl.next_update)}"))
    lines += _policy_lines(policy)
    for what, value in lines:
        click.echo(f"{what:14}{value}")


@authority.command()
@click.argument("name")
@click.option("--crl-url", "crl_urls", multiple=True, help="Where its CRLs are fetched from; repeatable, replaces all.")
@click.option("--no-crl-urls", is_flag=True, help="Fetch no CRLs of it any more.")
@click.option("--declared-delay", type=Span(), help="How long CRL and OCSP may differ after a change, e.g. PT1H.")
@click.option(
    "--crl-drop-limit",
    type=click.IntRange(0, 100),
    help="A CRL that lost more of its entries, in percent, waits for a person.",
)
@database_options
def policy(
    *,
    name: str,
    crl_urls: tuple[str, ...],
    no_crl_urls: bool,
    declared_delay: timedelta | None,
    crl_drop_limit: int | None,
    directory: Path | None,
    url: str | None,
) -> None:
    """Show the policy of the authority NAME, or change what is given."""
    if crl_urls and no_crl_urls:
        raise click.UsageError("give --crl-url or --no-crl-urls, but not both")
    changes: dict[str, Any] = {}
    if crl_urls or no_crl_urls:
        changes["crl_urls"] = tuple(dict.fromkeys(map(check_crl_url, crl_urls)))
    if declared_delay is not None:
        changes["declared_delay"] = declared_delay
    if crl_drop_limit is not None:
        changes["crl_drop_limit_percent"] = crl_drop_limit

    async def change() -> AuthorityPolicy:
        async with registry(DatabaseOptions(directory, url)) as pool:
            admin = AuthorityAdmin(pool)
            record = named(name, await admin.authorities())
            found = await admin.policy(record.id)
            wanted = replace(found, **changes)
            if wanted != found:
                await admin.set_policy(record.id, wanted, actor=actor())
            return wanted

    for what, value in _policy_lines(asyncio.run(change())):
        click.echo(f"{what:14}{value}")


@authority.command()
@click.argument("name")
@click.option("--reason", type=Reason(), required=True, help="As in RFC 5280: cACompromise, cessationOfOperation, …")
@click.option("--at", type=Instant(), help="Since when, ISO 8601.  [default: now]")
@click.option("--yes", is_flag=True, help="Do not ask.")
@database_options
def revoke(
    *, name: str, reason: CRLReason, at: datetime | None, yes: bool, directory: Path | None, url: str | None
) -> None:
    """Record that the CA itself is revoked or compromised. From now on all its certificates are. This is final."""
    if not yes:
        click.confirm(f"Every certificate of {name} will be answered as revoked, for good. Go on", abort=True)

    async def record() -> None:
        async with registry(DatabaseOptions(directory, url)) as pool:
            await AuthorityAdmin(pool).revoke_authority(
                name, reason=reason, revocation_time=at or datetime.now(UTC), actor=actor()
            )

    asyncio.run(record())
    click.echo(f"authority {name} is revoked, {reason.label}: all its certificates are answered as revoked")


class _Given:
    """A file of certificates, PEM or DER. Raises `ConfigError`."""

    def __init__(self, path: Path) -> None:
        try:
            octets = path.read_bytes()
            found = (
                x509.load_pem_x509_certificates(octets) if _PEM in octets else [x509.load_der_x509_certificate(octets)]
            )
        except OSError as error:
            raise ConfigError(f"the certificate file {path} cannot be read: {error.strerror}") from error
        except (ValueError, x509.InvalidVersion) as error:
            raise ConfigError(f"{path} holds no certificate that can be read, neither PEM nor DER: {error}") from error
        self.views = [CertificateView.of(certificate) for certificate in found]


async def _read(options: DatabaseOptions, name: str | None = None) -> list[tuple[AuthorityRecord, AuthorityPolicy]]:
    async with registry(options) as pool:
        admin = AuthorityAdmin(pool)
        records = await admin.authorities()
        wanted = records if name is None else [named(name, records)]
        return [(record, await admin.policy(record.id)) for record in wanted]


def named(name: str, records: Sequence[AuthorityRecord]) -> AuthorityRecord:
    """The authority of this name. Raises `ConfigError` that lists the names."""
    for record in records:
        if record.name == name:
            return record
    names = ", ".join(record.name for record in records) or "none at all"
    raise ConfigError(f"there is no authority {name!r} on record: there are {names}")


def _show(findings: Sequence[Finding]) -> None:
    if not findings:
        click.echo("the certificates are as they should be")
        return
    table = _table("", "certificate", "finding", "what to do")
    for finding in sorted(findings, key=lambda each: each.level is not Level.ERROR):
        colour = "red" if finding.level is Level.ERROR else "yellow"
        table.add_row(
            f"[{colour}]{finding.level.value}[/]",
            escape(finding.certificate),
            escape(finding.what),
            escape(finding.todo),
        )
    Console().print(table)


def _table(*headings: str) -> Table:
    table = Table()
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _state(record: AuthorityRecord) -> str:
    if record.revocation_time is None:
        return "in service"
    reason = f", {record.revocation_reason.label}" if record.revocation_reason is not None else ""
    return f"revoked since {moment(record.revocation_time)}{reason}"


def _policy_lines(policy: AuthorityPolicy) -> list[tuple[str, str]]:
    return [
        *(("CRL URL", url) for url in policy.crl_urls or ("none: its CRLs are not fetched",)),
        ("delay", f"{in_iso(policy.declared_delay)} declared between CRL and OCSP"),
        ("drop limit", f"{policy.crl_drop_limit_percent} % of a CRL's entries"),
    ]


def _key_hash(public_key: bytes) -> str:
    return HashAlgorithm.SHA_1.digest(public_key).hex()


def _as_object(record: AuthorityRecord, policy: AuthorityPolicy) -> dict[str, object]:
    views = [CertificateView.from_der(encoded) for encoded in record.certificates]
    crl, reason = record.crl, record.revocation_reason
    return {
        "number": record.id,
        "name": record.name,
        "subjects": [x509.Name.from_bytes(each).rfc4514_string() for each in record.names],
        "key_sha1": [_key_hash(key) for key in record.public_keys],
        "certificates": [
            {
                "sha256": HashAlgorithm.SHA_256.digest(view.encoded).hex(),
                "not_before": view.not_before.isoformat(),
                "not_after": view.not_after.isoformat(),
            }
            for view in views
        ],
        "revocation_time": record.revocation_time and record.revocation_time.isoformat(),
        "revocation_reason": None if reason is None else reason.label,
        "crl": crl
        and {
            "url": crl.url,
            "crl_number": None if crl.crl_number is None else int.from_bytes(crl.crl_number, "big"),
            "this_update": crl.this_update.isoformat(),
            "next_update": crl.next_update.isoformat(),
        },
        "policy": {
            "crl_urls": list(policy.crl_urls),
            "declared_delay": in_iso(policy.declared_delay),
            "crl_drop_limit_percent": policy.crl_drop_limit_percent,
        },
    }
