"""`lakthan db`: the schema of the database."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from lakthan.store.migrate import migrate as apply_migrations
from lakthan.store.migrate import status as schema_status
from lakthan_cli.commands.database import DatabaseOptions, database_options, owner_url

if TYPE_CHECKING:
    from pathlib import Path


@click.group()
def db() -> None:
    """Bring the database's schema up to date, or show how far it is.

    The URL must be that of the database's owner.
    """


@db.command()
@database_options
def migrate(directory: Path | None, url: str | None) -> None:
    """Apply the revisions that are missing. Safe to repeat, and to start twice at once."""
    with owner_url(DatabaseOptions(directory, url)) as owner:
        applied = asyncio.run(apply_migrations(owner))
    click.echo(f"applied {', '.join(applied)}" if applied else "nothing to do: the schema is up to date")


@db.command()
@database_options
def status(directory: Path | None, url: str | None) -> None:
    """Show the revision of the schema. Exit code 1 when revisions are missing."""
    with owner_url(DatabaseOptions(directory, url)) as owner:
        found = asyncio.run(schema_status(owner))
    click.echo(f"revision {found.current or 'none'}, newest {found.head}")
    if found.pending:
        raise click.ClickException(f"missing: {', '.join(found.pending)}; run `lakthan db migrate`")
