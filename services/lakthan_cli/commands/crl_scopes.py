"""`lakthan crl scopes` and `lakthan crl retire`: which CRLs an authority's freshness hangs on, and the end of one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from lakthan.errors import ConfigError
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.crl_scopes import CRLScopes, ScopeOnRecord
from lakthan_cli.commands.authority import named
from lakthan_cli.commands.database import DatabaseOptions, actor, database_options, registry
from lakthan_cli.commands.text import moment

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("authority", required=False)
@database_options
def scopes(*, authority: str | None, directory: Path | None, url: str | None) -> None:
    """List the scopes of CRLs on record: of AUTHORITY, or of all.

    A scope is the CRLs of an issuer with the same issuingDistributionPoint. An answer's freshness comes from the oldest
    of them.
    """

    async def load() -> tuple[list[ScopeOnRecord], dict[int, str]]:
        async with registry(DatabaseOptions(directory, url)) as pool:
            authorities = await AuthorityAdmin(pool).authorities()
            of = None if authority is None else named(authority, authorities).id
            return await CRLScopes(pool).load(of), {each.id: each.name for each in authorities}

    found, names = asyncio.run(load())
    table = Table("authority", "scope", "about", "CRLNumber", "thisUpdate", "nextUpdate", "entries", "holds")
    for each in found:
        table.add_row(
            names.get(each.authority_id, "?"),
            str(each.id),
            each.scope.hex() or "everything",
            "none" if each.crl_number is None else str(each.crl_number),
            moment(each.this_update),
            moment(each.next_update),
            f"{each.entries:,}",
            f"{each.holds:,}",
        )
    Console().print(table)


@click.command()
@click.argument("authority")
@click.argument("scope", type=int)
@click.option("--yes", is_flag=True, help="Do not ask.")
@database_options
def retire(*, authority: str, scope: int, yes: bool, directory: Path | None, url: str | None) -> None:
    """Say that no more CRLs of SCOPE will come; `lakthan crl scopes` shows its number.

    It counts no more for the freshness of answers. No status changes: what its CRLs revoked stays revoked, and what
    they hold stays held until somebody releases it.
    """

    async def work() -> ScopeOnRecord:
        async with registry(DatabaseOptions(directory, url)) as pool:
            authority_id = named(authority, await AuthorityAdmin(pool).authorities()).id
            store = CRLScopes(pool)
            found = next((each for each in await store.load(authority_id) if each.id == scope), None)
            if found is None:
                raise ConfigError(
                    f"{authority} has no CRLs of scope {scope}; `lakthan crl scopes {authority}` lists them"
                )
            if not yes:
                click.confirm(
                    f"The newest CRL of scope {scope} ends at {moment(found.next_update)} and holds {found.holds:,} "
                    "certificates, which stay held. No more of its CRLs will come. Go on",
                    abort=True,
                )
            await store.retire(authority_id, scope, actor=actor())
            return found

    found = asyncio.run(work())
    click.echo(f"scope {scope} of {authority} is retired; its newest CRL ended at {moment(found.next_update)}")
