"""`lakthan crl`: import CRLs, look into them, compare them. (`scopes` and `retire` are in `crl_scopes`.)

Each file is imported whole or not at all; one that is refused changes nothing and does not keep the others from being
imported. The exit code is 1 when one was refused, and of `diff` when something differs.
"""

from __future__ import annotations

import asyncio
import mmap
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click
from asn1crypto import x509 as asn1_x509
from rich.console import Console
from rich.table import Table

from lakthan import der
from lakthan.errors import ConfigError
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.records import CRLReason
from lakthan.store.revoked import RevokedReader
from lakthan_cli import progress
from lakthan_cli.commands.authority import named
from lakthan_cli.commands.certificate import hexadecimal
from lakthan_cli.commands.crl_scopes import retire, scopes
from lakthan_cli.commands.database import DatabaseOptions, actor, database_options, registry
from lakthan_cli.commands.text import moment
from lakthan_registry.crl_check import CRLRefused, Names, find_issuer
from lakthan_registry.crl_compare import Differences, Key, Revocation, compare, keyed
from lakthan_registry.crl_import import import_crl
from lakthan_registry.crl_rows import crl_rows
from lakthan_registry.crl_syntax import CRL, Entry, read_crl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import asyncpg

    from lakthan.store.bulk import CRLOutcome

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_COUNTS = ("entries", "revoked", "held", "released", "unchanged", "reason_changed", "vanished")


@click.group()
def crl() -> None:
    """Import the CRLs that CAs publish; look into them; compare them."""


crl.add_command(scopes)
crl.add_command(retire)


@crl.command(name="import")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=_FILE)
@click.option("--authority", metavar="NAME", help="Refuse a CRL that is not of this authority.")
@click.option("--force", is_flag=True, help="Accept a CRL that has lost many entries.")
@click.option("--dry-run", is_flag=True, help="Say what would change; record nothing.")
@database_options
def import_(
    *,
    files: tuple[Path, ...],
    authority: str | None,
    force: bool,
    dry_run: bool,
    directory: Path | None,
    url: str | None,
) -> None:
    """Import the CRLs in FILE, DER or PEM, in the order given: a complete one before its delta.

    The signature, the issuer, the scope, the number and the instants are checked. What is revoked stays so; only a hold
    ends when the CRL ends it.
    """
    refused = asyncio.run(_import(files, authority, DatabaseOptions(directory, url), force=force, dry_run=dry_run))
    if refused:
        raise click.exceptions.Exit(1)


@crl.command()
@click.argument("file", type=_FILE)
@click.option("--entries", "limit", type=click.IntRange(0), default=10, show_default=True, help="How many to show.")
@click.option("--serial", metavar="HEX", help="Look for this serial number, hexadecimal.")
def show(*, file: Path, limit: int, serial: str | None) -> None:
    """Show what the CRL in FILE says. Nothing is verified.

    With --serial the exit code says whether it is listed: 0 or 1.
    """
    with _opened(file) as found:
        _facts(found)
        if serial is None:
            _listed(islice(_with_issuers(found), limit))
            return
        wanted = _serial(serial)
        hits = [(issuer, entry) for issuer, entry in _with_issuers(found) if entry.serial_number == wanted]
        _listed(iter(hits))
    if not hits:
        click.echo(f"{hexadecimal(wanted)} is not listed")
        raise click.exceptions.Exit(1)


@crl.command()
@click.argument("left", metavar="FILE", type=_FILE)
@click.argument("right", metavar="[OTHER]", required=False, type=_FILE)
@click.option("--store", is_flag=True, help="Compare with what is on record for the CRL's issuer.")
@click.option("--limit", type=click.IntRange(0), default=20, show_default=True, help="Of each kind, show so many.")
@database_options
def diff(*, left: Path, right: Path | None, store: bool, limit: int, directory: Path | None, url: str | None) -> None:
    """Compare the CRLs in FILE and OTHER, or FILE and what is on record (--store).

    The exit code is 0 when they say the same, and 1 when not.
    """
    if (right is None) is not store:
        raise click.UsageError("give a second file, or --store")
    with _opened(left) as here:
        if right is None:
            differences = asyncio.run(_against_the_store(here, DatabaseOptions(directory, url)))
            other = "the store"
        else:
            with _opened(right) as there:
                differences = compare(keyed(here.entries()), keyed(there.entries()))
            other = right.name
    _differences(differences, left.name, other, limit)
    if differences:
        raise click.exceptions.Exit(1)


async def _import(
    files: Sequence[Path], authority: str | None, database: DatabaseOptions, *, force: bool, dry_run: bool
) -> int:
    console = Console()
    refused = 0
    done: list[tuple[str, CRLOutcome, float]] = []
    async with registry(database) as pool:
        authorities = await AuthorityAdmin(pool).authorities()
        authority_id = None if authority is None else named(authority, authorities).id
        names = {each.id: each.name for each in authorities}
        for file in files:
            began = time.monotonic()
            try:
                with _mapped(file) as data, _progress(file.name) as advance:
                    outcome = await import_crl(
                        data,
                        pool=pool,
                        now=datetime.now(UTC),
                        actor=actor(),
                        through="cli",
                        authority_id=authority_id,
                        force=force,
                        dry_run=dry_run,
                        detail={"file": file.name},
                        progress=advance,
                    )
            except CRLRefused as error:
                refused += 1
                click.echo(f"{file}: refused ({error.verdict.label}): {error}. Nothing was changed", err=True)
                continue
            done.append((file.name, outcome, time.monotonic() - began))
            _say(console, file, outcome, names.get(outcome.authority_id, "?"))
    if len(done) > 1 or any(outcome.entries for _, outcome, _ in done):
        console.print(_summary(done))
    return refused


def _say(console: Console, file: Path, outcome: CRLOutcome, authority: str) -> None:
    number = "without a number" if outcome.crl_number is None else f"number {outcome.crl_number}"
    kind = "delta CRL" if outcome.delta else "CRL"
    if outcome.nothing_new:
        said = "nothing new: it is on record already"
    elif outcome.dry_run:
        said = "dry run, nothing was recorded"
    elif outcome.version is None:
        said = "imported; no status changed"
    else:
        said = f"imported (version {outcome.version})"
    console.print(f"{file}: {kind} {number} of {authority}: {said}", highlight=False, markup=False, soft_wrap=True)


def _summary(done: Sequence[tuple[str, CRLOutcome, float]]) -> Table:
    table = Table("CRL")
    for heading in (*_COUNTS, "entries/s"):
        table.add_column(heading.replace("_", " "), justify="right")
    for name, outcome, seconds in done:
        rate = outcome.entries / seconds if seconds > 0 else 0
        table.add_row(name, *(f"{getattr(outcome, each):,}" for each in _COUNTS), f"{rate:,.0f}")
    return table


async def _against_the_store(found: CRL, database: DatabaseOptions) -> Differences:
    if found.delta:
        raise ConfigError("a delta CRL does not list everything; compare the complete one")
    async with registry(database) as pool:
        names = Names(await AuthorityAdmin(pool).authorities())
        issuer = find_issuer(found, names)
        entries = [(key, each) for key, each in keyed(found.entries()) if key[0] in (b"", found.issuer)]
        return compare(entries, await _revoked(pool, issuer.id))


async def _revoked(pool: asyncpg.Pool, authority_id: int) -> list[tuple[Key, Revocation]]:
    return [
        ((b"", record.serial_number), Revocation(record.revocation_time, record.revocation_reason or 0))
        async for record in RevokedReader(pool).revoked(authority_id)
        if record.revocation_time is not None
    ]


@contextmanager
def _mapped(path: Path) -> Iterator[bytes | mmap.mmap]:
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            yield mapped


@contextmanager
def _opened(path: Path) -> Iterator[CRL]:
    with _mapped(path) as data:
        yield read_crl(data)


@contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int, int], None]]:
    with progress.rated(name, None, unit="entries") as bar:

        def advance(entries: int, done: int, total: int) -> None:
            bar.reached(done, total)
            bar.rows(entries)
            if done == total:
                bar.says(f"{name}: comparing and recording")

        yield advance


def _facts(found: CRL) -> None:
    entries = sum(chunk.entries for chunk in crl_rows(found, 0, lambda _name: 0))
    point = found.issuing_distribution_point
    about = [] if point is None else [
        word
        for said, word in (
            (point.only_contains_user_certs, "user certificates only"),
            (point.only_contains_ca_certs, "CA certificates only"),
            (point.only_contains_attribute_certs, "attribute certificates only"),
            (point.only_some_reasons is not None, "some reasons only"),
            (point.indirect_crl, "indirect"),
            *((True, uri) for uri in point.uris),
        )
        if said
    ]  # fmt: skip
    rows = [
        ("issuer", _name(found.issuer)),
        ("CRLNumber", "none" if found.crl_number is None else str(found.crl_number)),
        ("delta of", "" if found.base_crl_number is None else f"number {found.base_crl_number}"),
        ("thisUpdate", moment(found.this_update)),
        ("nextUpdate", moment(found.next_update) or "none"),
        ("scope", ("everything" if point is None else ", ".join(about)) or "a distribution point"),
        ("authorityKeyIdentifier", (found.authority_key_identifier or b"").hex()),
        ("expiredCertsOnCRL", moment(found.expired_certs_on_crl)),
        ("unknown, critical", ", ".join(found.unknown_critical)),
        ("entries", f"{entries:,}"),
        ("SHA-256", found.sha256().hex()),
    ]
    for what, said in rows:
        if said:
            click.echo(f"{what:24}{said}")


def _with_issuers(found: CRL) -> Iterator[tuple[bytes, Entry]]:
    issuer = b""
    for entry in found.entries():
        issuer = entry.certificate_issuer or issuer
        yield issuer, entry


def _listed(entries: Iterator[tuple[bytes, Entry]]) -> None:
    for issuer, entry in entries:
        words = [hexadecimal(entry.serial_number), moment(entry.revocation_date), _reason(entry.reason)]
        if entry.invalidity_date is not None:
            words.append(f"invalid since {moment(entry.invalidity_date)}")
        if issuer:
            words.append(f"of {_name(issuer)}")
        click.echo("  " + "  ".join(word for word in words if word))


def _differences(found: Differences, left: str, right: str, limit: int) -> None:
    sides = [(f"only in {left}", found.only_left), (f"only in {right}", found.only_right)]
    for title, only in sides:
        if only:
            click.echo(f"{title}: {len(only):,}")
            for (_, serial), what in only[:limit]:
                click.echo(f"  {hexadecimal(serial)}  {_said(what)}")
    if found.changed:
        click.echo(f"in other words: {len(found.changed):,}")
        for (_, serial), here, there in found.changed[:limit]:
            click.echo(f"  {hexadecimal(serial)}  {_said(here)} → {_said(there)}")
    click.echo(f"the same: {found.same:,}")


def _said(what: Revocation) -> str:
    return f"{moment(what.revocation_time)} {_reason(what.reason)}"


def _reason(number: int | None) -> str:
    return "" if number is None else CRLReason(number).label


def _name(encoded: bytes) -> str:
    shown: str = asn1_x509.Name.load(encoded).human_friendly
    return shown


def _serial(text: str) -> bytes:
    try:
        value = int(text.replace(":", ""), 16)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no hexadecimal number", param_hint="--serial") from error
    return der.integer_content(value)
