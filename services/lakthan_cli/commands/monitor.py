"""`lakthan monitor`: do the CRLs that CAs publish say the same as OCSP?

Exit code 0 when all is in order, 1 when something has differed for longer than declared or could not be compared.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lakthan.errors import ConfigError
from lakthan.store.authorities import AuthorityAdmin
from lakthan_cli.commands.database import DatabaseOptions, database_options, registry
from lakthan_cli.commands.spans import Span
from lakthan_registry.monitor import SAMPLE, Monitor, Report
from lakthan_registry.monitor_report import as_json, as_markdown, remembered, words

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

    from lakthan.store.records import AuthorityRecord
    from lakthan_registry.monitor_report import Since

_MOST_SHOWN = 20


@click.command()
@click.argument("authorities", metavar="[AUTHORITY]...", nargs=-1)
@click.option("--crl", "crls", multiple=True, help="A CRL, file or URL, in place of those of the policy; repeatable.")
@click.option("--responder", "responders", multiple=True, help="URL of a responder to ask; repeatable.")
@click.option(
    "--sample",
    type=click.IntRange(min=0),
    default=SAMPLE,
    show_default=True,
    help="So many entries that agree are asked of each responder.",
)
@click.option("--all", "ask_all", is_flag=True, help="Ask the responders about every entry.")
@click.option("--once", is_flag=True, help="Compare once, then leave.")
@click.option("--every", type=Span(), default="PT5M", show_default=True, help="Without --once: how often.")
@click.option(
    "--report",
    "reports",
    multiple=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the findings to FILE: JSON when it ends in .json, else Markdown; repeatable.",
)
@click.option("--json", "json_output", is_flag=True, help="Print the findings as JSON.")
@database_options
def monitor(
    *,
    authorities: tuple[str, ...],
    crls: tuple[str, ...],
    responders: tuple[str, ...],
    sample: int,
    ask_all: bool,
    once: bool,
    every: timedelta,
    reports: tuple[Path, ...],
    json_output: bool,
    directory: Path | None,
    url: str | None,
) -> None:
    """Compare the CRLs of AUTHORITY with OCSP, serial number by serial number; of all that publish CRLs without one.

    What differs for no longer than the authority has declared is pending, anything older an alarm. A report in JSON
    that is already there is read first, so that the age of a difference is known from one call to the next.
    """
    if crls and len(authorities) != 1:
        raise click.UsageError("--crl needs the one AUTHORITY that publishes it")
    since: Since = {}
    for path in reports:
        if path.suffix == ".json":
            since.update(remembered(path))

    async def compare() -> bool:
        nonlocal since
        async with registry(DatabaseOptions(directory, url)) as pool, aiohttp.ClientSession() as session:
            watching = Monitor(pool, session, responders=responders, sample=None if ask_all else sample)
            while True:
                found = [
                    await watching.compare(each, sources=crls or None, since=since.get(each.name))
                    for each in await _subjects(pool, authorities)
                ]
                since = {each.authority: each.since for each in found}
                _write(found, reports)
                if json_output:
                    click.echo(as_json(found), nl=False)
                else:
                    _show(found)
                if once:
                    return all(each.in_order for each in found)
                await asyncio.sleep(every.total_seconds())

    if not asyncio.run(compare()):
        sys.exit(1)


async def _subjects(pool: asyncpg.Pool, names: Sequence[str]) -> list[AuthorityRecord]:
    admin = AuthorityAdmin(pool)
    on_record = {each.name: each for each in await admin.authorities()}
    for name in names:
        if name not in on_record:
            raise ConfigError(f"there is no authority {name}; on record are: {', '.join(on_record) or 'none'}")
    if names:
        return [on_record[name] for name in names]
    publishing = [each for each in on_record.values() if (await admin.policy(each.id)).crl_urls]
    if not publishing:
        raise ConfigError("no authority has a CRL's URL in its policy: set one, or name an AUTHORITY and its --crl")
    return publishing


def _write(found: Sequence[Report], paths: Sequence[Path]) -> None:
    for path in paths:
        text = as_json(found) if path.suffix == ".json" else as_markdown(found)
        # Beside and then in its place: nobody ever reads half a report.
        fresh = path.with_name(f"{path.name}.new")
        try:
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(path)
        except OSError as error:
            raise ConfigError(f"the report {path} cannot be written: {error.strerror}") from error


def _show(found: Sequence[Report]) -> None:
    console = Console()
    table = Table("authority", "CRL", "entries", "asked", "pending", "alarms", "")
    for report in found:
        alarms = len(report.alarms)
        table.add_row(
            escape(report.authority),
            ", ".join(str(crl.number) for crl in report.crls if crl.number is not None),
            str(report.compared),
            ", ".join(str(count) for count in report.asked.values()) or "-",
            str(len(report.differences) - alarms),
            str(alarms),
            "in order" if report.in_order else "[bold red]not in order[/]",
        )
    console.print(table)
    for report in found:
        for problem in report.problems:
            console.print(f"{escape(report.authority)}: {escape(problem)}", highlight=False)
        for each in [*report.alarms, *(one for one in report.differences if not one.alarm)][:_MOST_SHOWN]:
            console.print(
                f"{'alarm  ' if each.alarm else 'pending'} {each.serial_number.hex()} {each.kind.value}; "
                f"CRL: {words(each.crl)}; {escape(each.where)}: {words(each.ocsp)}",
                highlight=False,
            )
        rest = len(report.differences) + report.uncounted - _MOST_SHOWN
        if rest > 0:
            console.print(f"and {rest} more; --report writes them down", highlight=False)
