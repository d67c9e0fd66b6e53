"""`lakthan tsa tokens`, `freeze`, `retention` and `credential`: the operator's side of the time-stamp authority."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import json
import re
import secrets
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lakthan.certificates import read_certificates
from lakthan.store.pool import connect
from lakthan.store.token_admin import TokenAdmin, TokenRetention
from lakthan_cli.commands.certificate import hexadecimal
from lakthan_cli.commands.database import DatabaseOptions, actor, database_options, owner_url, registry
from lakthan_cli.commands.ocsp import Instant
from lakthan_cli.commands.text import moment

if TYPE_CHECKING:
    from lakthan.store.records import TokenRecord
    from lakthan.store.token_admin import Month

_COLUMNS = ("gen_time", "serial_number", "clock_state", "clock_bound_us", "policy", "imprint", "tsu", "token_sha256")
_UNITS = {"us": 1, "ms": 1000, "s": 1_000_000, "m": 60_000_000}


class MonthName(click.ParamType[datetime]):
    """A month as `2026-11`: its first instant, UTC."""

    name = "month"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """The first instant."""
        if isinstance(value, datetime):
            return value
        try:
            return datetime.strptime(str(value), "%Y-%m").replace(tzinfo=UTC)
        except ValueError:
            self.fail(f"{value!r} is no month: write for example 2016-01", param, ctx)


class Duration(click.ParamType[timedelta]):
    """A short time: `500us`, `250ms`, `1s`, `2m`."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """The duration."""
        if isinstance(value, timedelta):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)(us|ms|s|m)", str(value))
        if not found:
            self.fail(f"{value!r} is no duration: write 500us, 250ms, 1s or 2m", param, ctx)
        return timedelta(microseconds=float(found[1]) * _UNITS[found[2]])


class TSU(click.ParamType[str]):
    """A time-stamping unit: the file of its certificate, or the SHA-256 of it in hexadecimal."""

    name = "tsu"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The SHA-256 in hexadecimal. A file must hold a certificate."""
        del param, ctx
        text = str(value).lower().replace(":", "")
        if re.fullmatch("[0-9a-f]{64}", text):
            return text
        return hashlib.sha256(read_certificates(Path(str(value)))[0].encoded).hexdigest()


@click.command()
@click.option(
    "--from", "begin", type=Instant(), required=True, help="The first genTime, for example 2026-11-22T10:00Z."
)
@click.option("--to", "end", type=Instant(), help="The first genTime after the last.  [default: now]")
@click.option("--tsu", type=TSU(), help="Of this unit only: its certificate, or the SHA-256 of it.")
@click.option(
    "--clock-worse-than", type=Duration(), help="Only where the clock could be further off (250ms, 1s), or nobody knew."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, instead of CSV.")
@database_options
def tokens(
    *,
    begin: datetime,
    end: datetime | None,
    tsu: str | None,
    clock_worse_than: timedelta | None,
    as_json: bool,
    directory: Path | None,
    url: str | None,
) -> None:
    """List the tokens of a time span: what an incident touches. Times are UTC, the oldest token comes first.

    The output is CSV with a heading, or JSON lines; the number of tokens goes to standard error.
    """

    async def write() -> int:
        count = 0
        writer = csv.writer(sys.stdout, lineterminator="\n")
        if not as_json:
            writer.writerow(_COLUMNS)
        async with registry(DatabaseOptions(directory, url)) as pool:
            found = TokenAdmin(pool).tokens(begin, end or datetime.now(UTC), tsu=tsu, clock_worse_than=clock_worse_than)
            async for record in found:
                count += 1
                values = _values(record)
                if as_json:
                    click.echo(json.dumps(dict(zip(_COLUMNS, values, strict=True))))
                else:
                    writer.writerow(values)
        return count

    count = asyncio.run(write())
    click.echo(f"{count} {'token' if count == 1 else 'tokens'}", err=True)


def _values(record: TokenRecord) -> tuple[str | int | None, ...]:
    bound = record.clock_bound
    return (
        record.gen_time.isoformat(timespec="milliseconds"),
        hexadecimal(record.serial_number),
        record.clock_state,
        None if bound is None else bound // timedelta(microseconds=1),
        record.policy,
        f"{record.hash_algorithm}:{record.hashed_message.hex()}",
        record.tsu,
        record.token_sha256.hex(),
    )


@click.command()
@click.argument("tsu", metavar="CERT", type=TSU())
@click.option("--reason", required=True, help="Why, for the record.")
@database_options
def freeze(tsu: str, reason: str, directory: Path | None, url: str | None) -> None:
    """Stop the time-stamping unit of the certificate CERT (or its SHA-256) at once, everywhere and for good.

    When this returns, no token of the unit leaves any more; its successor, where there is one, goes on. There is no
    way back: a unit that was frozen by mistake needs a new certificate.
    """

    async def record() -> str:
        async with registry(DatabaseOptions(directory, url)) as pool:
            found, new = await TokenAdmin(pool).freeze(tsu, reason, actor())
        said = "is frozen" if new else "was frozen already"
        return f"unit {found.tsu} {said} since {moment(found.frozen_at)}, by {found.actor}: {found.reason}"

    click.echo(asyncio.run(record()))


@click.command()
@click.option("--drop-before", "before", type=MonthName(), help="The first month that stays, for example 2016-01.")
@click.option("--yes", is_flag=True, help="Drop; without it, only say what would be dropped.")
@database_options
def retention(*, before: datetime | None, yes: bool, directory: Path | None, url: str | None) -> None:
    """Show how many tokens each month has on record, or drop the months before a month.

    Needs the owner of the database. That months were dropped is itself on record. Keep the records for as long as your
    policy and the law say after the end of the unit's key.
    """
    with owner_url(DatabaseOptions(directory, url)) as owner:
        months, dropped = asyncio.run(_drop(owner, before, yes=yes))
    for month in months:
        click.echo(f"{month.begin:%Y-%m}  {month.tokens} tokens")
    if before is None:
        return
    total = sum(month.tokens for month in months)
    what = f"{total} tokens of {len(months)} months before {before:%Y-%m}"
    click.echo(f"dropped {what}" if dropped else f"would drop {what}; say --yes to do it")


async def _drop(url: str, before: datetime | None, *, yes: bool) -> tuple[list[Month], bool]:
    connection = await connect(url, application_name="lakthan-cli")
    try:
        log = TokenRetention(connection)
        if before is not None and yes:
            return await log.drop(before, actor()), True
        return await log.months(before), False
    finally:
        await connection.close()


@click.command()
@click.argument("name")
@click.option("--profile", "profiles", multiple=True, required=True, help="A profile that it may use; repeatable.")
def credential(name: str, profiles: tuple[str, ...]) -> None:
    """Make a secret for the client NAME: the secret itself, shown this once, and its entry for the credentials file."""
    secret = secrets.token_urlsafe(32)
    digest = hashlib.sha256(secret.encode()).hexdigest()
    click.echo(f"secret, for the client: {secret}", err=True)
    click.echo(f"[{json.dumps(name)}]\nsecret_sha256 = [{json.dumps(digest)}]\nprofiles = {json.dumps(list(profiles))}")
