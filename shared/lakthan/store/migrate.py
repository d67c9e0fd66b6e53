"""Bring a database to the schema that this version of Lakthan expects, and tell how far it is.

Promises: two callers at once do the work once (a session advisory lock); a revision is applied whole or not at all; a
database that is newer than the code is left alone; a revision that waits for locks lets others pass after a second.
Alembic keeps the books (`alembic_version`), the revisions themselves are plain SQL.

Trusted: whoever owns the database. Its owner can change or remove everything in it, the audit trail included.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from lakthan.errors import ConfigError, StoreUnavailable
from lakthan.store.feed import monotonic_seconds
from lakthan.store.pool import connect, unavailable_as_such
from lakthan.store.schema import readable_by

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
# A release before this one made the schema, and nothing has changed in it since.
_NOT_READABLE = (
    "SELECT bool_or(NOT has_table_privilege(r, 'public.alembic_version', 'SELECT')) FROM unnest($1::name[]) r"
)
# Any number will do as long as nobody else uses it in the same database; this one spells "lakthan".
_LOCK = int.from_bytes(b"lakthan", "big")
# Whoever comes after a waiting ALTER TABLE waits behind it: it must not wait for long, and then let them all through.
_LOCK_TIMEOUT_SECONDS = 1
_GIVE_WAY_SECONDS = 2.0
# Alembic keeps what it works on in module globals: two runs in one process would mix them up.
_ALEMBIC = asyncio.Lock()

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SchemaStatus:
    """How far a database is. `current`: its revision, None when empty; `head`: the one the code expects."""

    current: str | None
    head: str
    pending: tuple[str, ...]


async def migrate(url: str, *, password: str | None = None, patience: timedelta = timedelta(minutes=10)) -> list[str]:
    """Apply what is pending, oldest first, and give the revisions that were applied.

    A revision that has to wait for somebody's lock gives way after a second, so that nobody waits behind it for longer,
    and is tried again, for as long as `patience`. The role must own the database and may need CREATEROLE. Raises
    `ConfigError` with what to do when it may not, or when the database is newer than the code; `StoreUnavailable`.
    """
    began = monotonic_seconds()
    applied: list[str] = []
    while True:
        try:
            return await _migrate(url, password, applied)
        except StoreUnavailable as error:
            out_of_patience = monotonic_seconds() - began > patience.total_seconds()
            if not isinstance(error.__cause__, asyncpg.LockNotAvailableError) or out_of_patience:
                raise
            _log.warning("a revision waits for locks that others hold and is tried again: %s", error)
            await asyncio.sleep(_GIVE_WAY_SECONDS)


async def _migrate(url: str, password: str | None, applied: list[str]) -> list[str]:
    """One attempt. What was applied before it gives way is added to `applied` at the next one."""
    connection = await connect(url, password=password, application_name="lakthan-migrate")

    async def the_same() -> asyncpg.Connection:
        return connection

    engine = create_async_engine("postgresql+asyncpg://", async_creator=the_same, poolclass=NullPool)
    try:
        with unavailable_as_such():
            # Waiting for another one at the same work, and building indexes, take time.
            await connection.execute("SET statement_timeout = 0; SET lock_timeout = 0")
            await connection.execute(f"SELECT pg_advisory_lock({_LOCK})")  # released when the connection closes
            await connection.execute(f"SET lock_timeout = '{_LOCK_TIMEOUT_SECONDS}s'")
            pending = (await _status(connection)).pending
            applied += [each for each in pending if each not in applied]
            if pending:
                async with _ALEMBIC, engine.connect() as wrapped:  # which closes the connection in the end
                    await wrapped.run_sync(_upgrade)
                    await connection.execute(readable_by(_ROLES))
            elif await connection.fetchval(_NOT_READABLE, list(_ROLES)):
                await connection.execute(readable_by(_ROLES))
            return applied
    except asyncpg.InsufficientPrivilegeError as error:
        raise ConfigError(
            f"the database refused a migration step ({error}); connect as the owner of the database, with the right "
            "CREATEROLE, or let an administrator run first: "
            + " ".join(f"CREATE ROLE {role} NOLOGIN;" for role in _ROLES)
            + " GRANT SET ON PARAMETER lakthan.by_function TO the owner;"
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
