"""`lakthan audit`: does the record hold, where does it end, and what does it say.

Exit codes of `verify`: 0 when all of it holds, 3 when something does not; 1 when it could not be checked.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, TextIO

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lakthan.errors import ConfigError
from lakthan.store.audit import AuditReader
from lakthan.store.audit_verify import AuditReport
from lakthan.store.audit_verify import verify as verify_chains
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.records import AuditHead
from lakthan_cli import progress
from lakthan_cli.commands.database import DatabaseOptions, database_options, registry
from lakthan_cli.commands.text import moment

if TYPE_CHECKING:
    from pathlib import Path

    from lakthan.store.records import AuditRecord

_DOES_NOT_HOLD = 3


@click.group()
def audit() -> None:
    """Check the audit chain, note where it ends, read it."""


@audit.command()
@click.option(
    "--noted",
    type=click.File(),
    help="Heads that `lakthan audit head` printed earlier; each must still stand in its chain.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@database_options
def verify(*, noted: TextIO | None, as_json: bool, directory: Path | None, url: str | None) -> None:
    """Compute every hash of the record again and say what does not hold.

    Found are: an edited, inserted or removed record, change or status, a gap, and with --noted also a tail that was
    taken off. Without noted heads, an owner of the database who rewrites a whole chain cannot be found out.
    """
    heads = [] if noted is None else _read_heads(noted.read())
    report = asyncio.run(_verify(DatabaseOptions(directory, url), heads))
    if as_json:
        document = asdict(report)
        document["heads"] = [asdict(head) | {"sha256": head.sha256.hex()} for head in report.heads]
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        _print(report, noted=len(heads))
    if report.findings:
        raise SystemExit(_DOES_NOT_HOLD)


@audit.command()
@database_options
def head(*, directory: Path | None, url: str | None) -> None:
    """Print where each chain ends: chain, number and SHA-256, one line for each.

    Keep it where the database's owner cannot write, or have it time-stamped with `lakthan tsa request`. Then `lakthan
    audit verify --noted FILE` proves that nothing before that moment was changed or taken off.
    """

    async def read() -> list[AuditHead]:
        async with registry(DatabaseOptions(directory, url)) as pool:
            return await AuditReader(pool).heads()

    for each in asyncio.run(read()):
        click.echo(f"{each.chain} {each.number} {each.sha256.hex()}")


@audit.command()
@click.option("--authority", help="Whose chain.  [default: the one of what is done for no single authority]")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many, the newest.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object in each line.")
@database_options
def log(*, authority: str | None, limit: int, as_json: bool, directory: Path | None, url: str | None) -> None:
    """Show the newest records of a chain, oldest first."""

    async def read() -> list[AuditRecord]:
        async with registry(DatabaseOptions(directory, url)) as pool:
            chain = 0
            if authority is not None:
                admin = AuthorityAdmin(pool)
                found = await admin.find_authority(authority)
                if found is None:
                    names = ", ".join(each.name for each in await admin.authorities()) or "none at all"
                    raise ConfigError(f"there is no authority {authority!r}; on record are {names}")
                chain = found.id
            return await AuditReader(pool).newest(chain, limit)

    records = asyncio.run(read())
    if as_json:
        for record in records:
            click.echo(json.dumps(_as_json(record), ensure_ascii=False))
        return
    table = Table("number", "at", "event", "by", "through", "login", "changes", "detail", box=None, pad_edge=False)
    for record in records:
        count = "" if record.change_count is None else str(record.change_count)
        # Text, not markup: an actor's name may hold brackets.
        cells = (record.event, record.actor, record.through, record.login, count, record.detail)
        table.add_row(str(record.number), moment(record.at), *(Text(cell) for cell in cells))
    Console().print(table)


async def _verify(database: DatabaseOptions, noted: list[AuditHead]) -> AuditReport:
    async with registry(database) as pool:
        with progress.counted("rows", None) as bar:
            return await verify_chains(pool, noted=noted, progress=bar.reached)


def _print(report: AuditReport, *, noted: int) -> None:
    console = Console(soft_wrap=True)
    for finding in report.findings:
        console.print(Text(finding, style="red"))
    if report.more_findings:
        console.print(Text(f"and {report.more_findings} more", style="red"))
    table = Table("read", "rows", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for name, rows in (
        ("audit records", report.records),
        ("status changes", report.changes),
        ("statuses", report.statuses),
        ("chains", len(report.heads)),
        ("noted heads", noted),
    ):
        table.add_row(name, f"{rows:,}")
    console.print(table)
    count = len(report.findings) + report.more_findings
    console.print(f"the record does not hold: {count} findings" if count else "the record holds")


def _read_heads(text: str) -> list[AuditHead]:
    heads = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            chain, position, digest = line.split()
            heads.append(AuditHead(int(chain), int(position), bytes.fromhex(digest)))
        except ValueError as error:
            raise ConfigError(
                f"line {number} of the noted heads is not `CHAIN NUMBER SHA256`, as `lakthan audit head` prints it: "
                f"{line[:80]!r}"
            ) from error
    return heads


def _as_json(record: AuditRecord) -> dict[str, object]:
    document = asdict(record)
    for name in ("changes_sha256", "previous_sha256", "sha256"):
        value = document[name]
        document[name] = None if value is None else value.hex()
    return document | {"at": record.at.isoformat(), "detail": json.loads(record.detail)}
