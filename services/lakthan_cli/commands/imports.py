"""`lakthan import`: a CA's list of what it issued, from OpenSSL's index.txt, CSV, or a folder of certificates.

Promises: the whole list is read and understood before anything is recorded; every line that cannot be is named, the
first twenty with their numbers. What is interrupted goes on with `--resume`, and doing all of it again changes nothing.
"""

from __future__ import annotations

import asyncio
import time
import zoneinfo
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lakthan.errors import ConfigError, LakthanError
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.import_position import import_position
from lakthan_cli import progress
from lakthan_cli.commands.authority import named
from lakthan_cli.commands.certificate import hexadecimal
from lakthan_cli.commands.database import DatabaseOptions, actor, database_options, registry
from lakthan_registry.certificate_folder import CertificateFolder
from lakthan_registry.csv_list import COLUMNS, CSVList, CSVOptions
from lakthan_registry.index_txt import IndexTxt
from lakthan_registry.issued_import import ROWS_PER_CHUNK, Check, Totals, check, import_list

if TYPE_CHECKING:
    import asyncpg

    from lakthan.store.records import AuthorityRecord
    from lakthan_registry.issued_list import IssuedList

_file = click.Path(exists=True, dir_okay=False, path_type=Path)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What the user wants. `word`: what a position in the list is called."""

    path: Path
    authority: str
    dry_run: bool
    resume: bool
    skip_bad: bool
    rows_per_chunk: int
    database: DatabaseOptions
    word: str = "line"


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--rows-per-chunk", type=click.IntRange(1, 1_000_000), default=ROWS_PER_CHUNK, hidden=True),
        click.option("--skip-bad", is_flag=True, help="Import the rest of a list that has bad lines."),
        click.option("--resume", is_flag=True, help="Go on behind the last chunk of this file that is on record."),
        click.option("--dry-run", is_flag=True, help="Say what would be done; record nothing."),
        click.option("--authority", metavar="NAME", required=True, help="The authority that issued them."),
    ):
        function = option(function)
    return database_options(function)


@click.group(name="import")
def import_() -> None:
    """Import a CA's list of issued certificates.

    Certificates that are not on record are announced, revoked ones revoked. A list never makes good what is revoked.
    """


@import_.command()
@click.argument("file", type=_file)
@_options
def index(*, file: Path, directory: Path | None, url: str | None, **options: Any) -> None:  # noqa: ANN401  # click's
    """Import FILE, the index.txt of `openssl ca`."""
    plan = _Plan(file, database=DatabaseOptions(directory, url), **options)
    _run(plan, lambda _: IndexTxt(file, datetime.now(UTC)))


@import_.command(name="csv")
@click.argument("file", type=_file)
@click.option(
    "--serials", type=click.Choice(["hex", "decimal"]), required=True, help="How the serial numbers are written."
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="NAME=HEADING",
    help="What a column is called in the file; repeatable.",
)
@click.option("--delimiter", help="What stands between fields.  [default: found in the first line]")
@click.option("--time-zone", metavar="ZONE", help="Of times that name none: UTC, Asia/Vientiane.")
@_options
def csv_(
    *,
    file: Path,
    serials: str,
    columns: tuple[str, ...],
    delimiter: str | None,
    time_zone: str | None,
    directory: Path | None,
    url: str | None,
    **options: Any,  # noqa: ANN401  # click's
) -> None:
    """Import FILE, CSV whose first line names the columns.

    serial_number must be there; not_after, status (good, revoked, held), revocation_time, reason, invalidity_date and
    sha256 may. Times are ISO 8601.
    """
    if delimiter is not None and len(delimiter) != 1:
        raise click.BadParameter("a delimiter is one character", param_hint="--delimiter")
    now = datetime.now(UTC)
    csv_options = CSVOptions(serials == "decimal", now, _headings(columns), delimiter, _zone(time_zone))
    plan = _Plan(file, database=DatabaseOptions(directory, url), **options)
    _run(plan, lambda _: CSVList(file, csv_options))


@import_.command()
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@_options
def certs(*, folder: Path, directory: Path | None, url: str | None, **options: Any) -> None:  # noqa: ANN401  # click's
    """Import the certificates in the folder DIR and below: .pem, .crt, .cer, .der.

    Only those that the authority signed. They are announced as good, unless they are on record otherwise.
    """
    plan = _Plan(folder, database=DatabaseOptions(directory, url), word="file", **options)
    _run(plan, lambda record: CertificateFolder(folder, record.certificates))


def _headings(columns: tuple[str, ...]) -> dict[str, str]:
    headings = {}
    for column in columns:
        name, equals, heading = column.partition("=")
        if name not in COLUMNS or not equals:
            raise click.BadParameter(
                f"{column!r}: write NAME=HEADING, NAME being one of {', '.join(COLUMNS)}", param_hint="--column"
            )
        headings[name] = heading
    return headings


def _zone(name: str | None) -> zoneinfo.ZoneInfo | None:
    if name is None:
        return None
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise click.BadParameter(
            f"{name!r} is no time zone: write UTC or a name such as Asia/Vientiane", param_hint="--time-zone"
        ) from error


def _run(plan: _Plan, make: Callable[[AuthorityRecord], IssuedList]) -> None:
    try:
        asyncio.run(_import(plan, make))
    except KeyboardInterrupt:
        click.echo("stopped; every chunk is done or not done. Go on with --resume", err=True)
        raise click.Abort from None


async def _import(plan: _Plan, make: Callable[[AuthorityRecord], IssuedList]) -> None:
    async with registry(plan.database) as pool:
        record = named(plan.authority, await AuthorityAdmin(pool).authorities())
        source = make(record)
        sha256 = await asyncio.to_thread(source.sha256)
        after = await import_position(pool, record.id, sha256) if plan.resume else 0
        if after:
            click.echo(f"going on behind {plan.word} {after}", err=True)
        found = _check(plan, source, after)
        if found.bad and not plan.skip_bad:
            raise ConfigError(
                f"{found.bad} bad {plan.word}{'s'[: found.bad != 1]} in {plan.path}: nothing was recorded. Correct "
                "them, or import the rest with --skip-bad"
            )
        began = time.monotonic()
        totals = await _record(plan, pool, record.id, source, sha256=sha256, after=after, entries=found.entries)
        _summary(plan, found, totals, time.monotonic() - began)


def _check(plan: _Plan, source: IssuedList, after: int) -> Check:
    with progress.rated("checking", source.size, unit="rows") as bar:

        def read(rows: int) -> None:
            bar.reached(source.octets)
            bar.rows(rows)

        found = check(source, after, read)
    for position, why in found.bad_lines:
        click.echo(f"{plan.path}: {why}" if plan.word == "file" else f"{plan.path}:{position}: {why}", err=True)
    if found.bad > len(found.bad_lines):
        click.echo(f"and {found.bad - len(found.bad_lines)} more", err=True)
    return found


async def _record(
    plan: _Plan, pool: asyncpg.Pool, authority_id: int, source: IssuedList, *, sha256: bytes, after: int, entries: int
) -> Totals:
    so_far = Totals()
    try:
        with progress.rated("dry run" if plan.dry_run else "importing", entries, unit="rows") as bar:

            def remember(totals: Totals) -> None:
                nonlocal so_far
                so_far = totals
                bar.reached(totals.entries)
                bar.rows(totals.entries)

            return await import_list(
                pool,
                authority_id,
                source,
                actor=actor(),
                name=plan.path.name,
                sha256=sha256,
                after=after,
                dry_run=plan.dry_run,
                rows_per_chunk=plan.rows_per_chunk,
                progress=remember,
            )
    except LakthanError:
        if so_far.chunks and not plan.dry_run:
            click.echo(f"{so_far.entries:,} entries are done and stay so; go on with --resume", err=True)
        raise


def _summary(plan: _Plan, found: Check, totals: Totals, seconds: float) -> None:
    rows = [
        ("entries in the list", totals.entries),
        ("announced", totals.issued),
        ("revoked", totals.revoked),
        ("held", totals.held),
        ("on record already", totals.unchanged),
        ("said twice in the list", totals.repeated),
        ("on record otherwise", totals.contradicting),
        (f"bad {plan.word}s", found.bad),
    ]
    for what, count in rows:
        click.echo(f"{what:24}{count:>14,}")
    rate = totals.entries / seconds if seconds > 0 else 0
    click.echo(f"{'entries a second':24}{rate:>14,.0f}")
    if plan.dry_run:
        click.echo("nothing was recorded: this was a dry run")
    if totals.contradicting:
        shown = ", ".join(map(hexadecimal, totals.examples))
        raise click.ClickException(
            f"{totals.contradicting} are on record otherwise, and were left so (a list makes nothing good again, and "
            f"changes no end, hash or reason): {shown}{', …' if totals.contradicting > len(totals.examples) else ''}"
        )
