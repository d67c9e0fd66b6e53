"""Bring a database to the schema that this version of Lakthan expects, and tell how far it is.

Promises: two callers at once do the work once (a session advisory lock); a revision is applied whole or not at all; a
database that is newer than the code is left alone. Alembic keeps the books (`alembic_version`), the revisions
themselves are plain SQL.

Trusted: whoever owns the database. Its owner can change or remove everything in it, the audit trail included.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from lakthan.errors import ConfigError
from lakthan.store.pool import connect, unavailable_as_such

if TYPE_CHECKING:
    from sqlalchemy import Connection

# What the revisions make, unless they are there.
_ROLES = (
    "lakthan_responder",
    "lakthan_tsa",
    "lakthan_registry",
    "lakthan_publisher",
    "lakthan_registrar",
    "lakthan_auditor",
    "lakthan_presigner",
)
# Any number will do as long as nobody else uses it in the same database; this one spells "lakthan".
_LOCK = int.from_bytes(b"lakthan", "big")
# Alembic keeps what it works on in module globals: two runs in one process would mix them up.
_ALEMBIC = asyncio.Lock()


@dataclass(frozen=True, slots=True)
class SchemaStatus:
    """How far a database is. `current`: its revision, None when empty; `head`: the one the code expects."""

    current: str | None
    head: str
    pending: tuple[str, ...]


async def migrate(url: str, *, password: str | None = None) -> list[str]:
    """Apply what is pending, oldest first, and give the revisions that were applied.

    The role must own the database and may need CREATEROLE. Raises `ConfigError` with what to do when it may not, or
    when the database is newer than the code; `StoreUnavailable`.
    """
    connection = await connect(url, password=password, application_name="lakthan-migrate")

    async def the_same() -> asyncpg.Connection:
        return connection

    engine = create_async_engine("postgresql+asyncpg://", async_creator=the_same, poolclass=NullPool)
    try:
        with unavailable_as_such():
            await connection.execute("SET statement_timeout = 0")  # waiting for the lock and building indexes take time
            await connection.execute(f"SELECT pg_advisory_lock({_LOCK})")  # released when the connection closes
            pending = (await _status(connection)).pending
            if pending:
                async with _ALEMBIC, engine.connect() as wrapped:
                    await wrapped.run_sync(_upgrade)
            return list(pending)
    except asyncpg.InsufficientPrivilegeError as error:
        raise ConfigError(
            f"the database refused a migration step ({error}); connect as the owner of the database, with the right "
            "CREATEROLE, or let an administrator run first: "
            + " ".join(f"CREATE ROLE {role} NOLOGIN;" for role in _ROLES)
        ) from error
    finally:
        await engine.dispose()
        if not connection.is_closed():
            await connection.close()


async def status(url: str, *, password: str | None = None) -> SchemaStatus:
    """How far the database is. Raises `ConfigError` when it is newer than the code, and `StoreUnavailable`."""
    connection = await connect(url, password=password, application_name="lakthan-migrate")
    try:
        with unavailable_as_such():
            return await _status(connection)
    finally:
        await connection.close()


async def _status(connection: asyncpg.Connection) -> SchemaStatus:
    current = None
    if await connection.fetchval("SELECT to_regclass('public.alembic_version')") is not None:
        current = await connection.fetchval("SELECT version_num FROM public.alembic_version")
    # Oldest first; a chain without branches.
    known = [revision.revision for revision in ScriptDirectory.from_config(_config()).walk_revisions()][::-1]
    if current is not None and current not in known:
        raise ConfigError(
            f"the database is at revision {current}, which this version of Lakthan does not know (its newest is "
            f"{known[-1]}); run the newer Lakthan that migrated it, or restore the backup made before"
        )
    done = known.index(current) + 1 if current is not None else 0
    return SchemaStatus(current, known[-1], tuple(known[done:]))


def _upgrade(connection: Connection) -> None:
    config = _config()
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except DBAPIError as error:  # Alembic's own statements; a revision's SQL fails with the driver's error itself
        cause = error.orig.__cause__ if error.orig is not None else None
        if isinstance(cause, asyncpg.PostgresError):
            raise cause from error
        raise


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
