"""`lakthan credential`: what a CA, a registrar or an auditor shows the registry to be let in.

Promises: a token is shown once, or written once into a file that only its owner can read; the store keeps its hash.
"""

from __future__ import annotations

import asyncio
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lakthan.certificates import read_certificates
from lakthan.errors import ConfigError
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.credentials import CredentialAdmin
from lakthan.store.records import CredentialRole
from lakthan_cli.commands.authority import named
from lakthan_cli.commands.database import DatabaseOptions, actor, database_options, registry
from lakthan_cli.commands.spans import Span
from lakthan_cli.commands.text import moment

if TYPE_CHECKING:
    from lakthan.store.records import Credential

_SCOPES = ("issue", "revoke", "hold", "crl", "read")


class Scopes(click.ParamType[tuple[str, ...]]):
    """What a publisher may do, with commas between."""

    name = "scopes"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """The scopes, each once."""
        if isinstance(value, tuple):
            return value
        scopes = [scope.strip() for scope in str(value).split(",")]
        for scope in scopes:
            if scope not in _SCOPES:
                self.fail(f"{scope!r} is no scope: choose of {', '.join(_SCOPES)}", param, ctx)
        return tuple(dict.fromkeys(scopes))


@click.group()
def credential() -> None:
    """Make and revoke what CAs and registrars show the registry."""


@credential.command()
@click.argument("name")
@click.option("--role", type=click.Choice([role.value for role in CredentialRole]), required=True)
@click.option("--authority", metavar="NAME", help="The one authority that a publisher acts for.")
@click.option("--scopes", type=Scopes(), help=f"What a publisher may do, of {','.join(_SCOPES)}.  [default: all]")
@click.option("--expires", type=Span(), default="P90D", show_default=True, help="For how long it is good.")
@click.option(
    "--certificate",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The client certificate that it is for (PEM), instead of a token.",
)
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the token here, readable for you alone, instead of on the screen.",
)
@database_options
def create(
    *,
    name: str,
    role: str,
    authority: str | None,
    scopes: tuple[str, ...] | None,
    expires: timedelta,
    certificate: Path | None,
    token_file: Path | None,
    directory: Path | None,
    url: str | None,
) -> None:
    """Make the credential NAME. Its token is shown now and never again.

    A publisher acts for one authority; a registrar adds authorities, policies and credentials; an auditor reads.
    """
    wanted = CredentialRole(role)
    publisher = wanted is CredentialRole.PUBLISHER
    if publisher != (authority is not None):
        raise click.UsageError(
            "a publisher acts for one authority: say --authority NAME"
            if publisher
            else f"--authority is for publishers; a {role} has none"
        )
    if scopes is not None and not publisher:
        raise click.UsageError(f"--scopes is for publishers; a {role} has none")
    if certificate is not None and token_file is not None:
        raise click.UsageError("with --certificate there is no token: leave --token-file out")
    encoded = None if certificate is None else read_certificates(certificate)[0].encoded

    async def make() -> tuple[Credential, str | None]:
        async with registry(DatabaseOptions(directory, url)) as pool:
            authority_id = None
            if authority is not None:
                authority_id = named(authority, await AuthorityAdmin(pool).authorities()).id
            return await CredentialAdmin(pool).create(
                name,
                wanted,
                expires_at=datetime.now(UTC) + expires,
                authority_id=authority_id,
                scopes=(scopes or _SCOPES) if publisher else (),
                certificate=encoded,
                actor=actor(),
            )

    if token_file is None:
        made, token = asyncio.run(make())
        _announce(made, authority)
        if token is not None:
            click.echo("its token, shown this once:", err=True)
            click.echo(token)
        return
    # The file is there before the credential is: a token that could not be kept would be lost.
    descriptor = _new_file(token_file)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            made, token = asyncio.run(make())
            file.write(f"{token}\n")
    except BaseException:
        token_file.unlink()
        raise
    _announce(made, authority)
    click.echo(f"its token is in {token_file}", err=True)


@credential.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; instants in ISO 8601.")
@database_options
def list_(*, as_json: bool, directory: Path | None, url: str | None) -> None:
    """List every credential that was ever made. Of tokens and certificates, only hashes are kept."""

    async def read() -> tuple[list[Credential], dict[int, str]]:
        async with registry(DatabaseOptions(directory, url)) as pool:
            names = {record.id: record.name for record in await AuthorityAdmin(pool).authorities()}
            return await CredentialAdmin(pool).list(), names

    found, names = asyncio.run(read())
    rows = [_row(each, names) for each in found]
    if as_json:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    table = Table()
    for heading in ("name", "state", "role", "authority", "scopes", "kind", "expires"):
        table.add_column(heading, overflow="fold")
    for each, row in zip(found, rows, strict=True):
        table.add_row(
            escape(each.name),
            each.state,
            each.role.label,
            escape(str(row["authority"] or "")),
            " ".join(sorted(each.scopes)),
            each.kind,
            moment(each.expires_at),
        )
    Console().print(table)


@credential.command()
@click.argument("name")
@database_options
def revoke(*, name: str, directory: Path | None, url: str | None) -> None:
    """Revoke the credential NAME: from now on it opens nothing. This is final."""

    async def record() -> None:
        async with registry(DatabaseOptions(directory, url)) as pool:
            await CredentialAdmin(pool).revoke(name, actor=actor())

    asyncio.run(record())
    click.echo(f"credential {name} is revoked")


@credential.command("bind-login")
@click.argument("login")
@click.option("--authority", metavar="NAME", required=True, help="The one authority that the login acts for.")
@database_options
def bind_login(*, login: str, authority: str, directory: Path | None, url: str | None) -> None:
    """Let the database login LOGIN write for one authority by SQL, and for no other.

    The login itself is made by the database's administrator, as a member of lakthan_publisher and of nothing else.
    """

    async def record() -> None:
        async with registry(DatabaseOptions(directory, url)) as pool:
            found = named(authority, await AuthorityAdmin(pool).authorities())
            await CredentialAdmin(pool).bind_login(login, found.id, actor=actor())

    asyncio.run(record())
    click.echo(f"login {login} acts for {authority}, and for no other authority")


def _new_file(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise ConfigError(f"{path} is there already: name a new file for the token") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def _announce(made: Credential, authority: str | None) -> None:
    may = f", who may {', '.join(sorted(made.scopes))} for {authority}" if authority is not None else ""
    click.echo(f"credential {made.name} is good until {moment(made.expires_at)}: {made.role.label}{may}", err=True)


def _row(each: Credential, names: dict[int, str]) -> dict[str, str | list[str] | None]:
    return {
        "name": each.name,
        "state": each.state,
        "role": each.role.label,
        "authority": None if each.authority_id is None else names.get(each.authority_id),
        "scopes": sorted(each.scopes),
        "kind": each.kind,
        "expires_at": each.expires_at.isoformat(),
        "revoked_at": None if each.revoked_at is None else each.revoked_at.isoformat(),
        "created_by": each.created_by,
        "created_at": each.created_at.isoformat(),
    }
