"""A database as a service finds it: the server, its settings, the login, and what its roles may do.

Promises: nothing is changed, and nothing is needed but what every login may read. The figures are told as they are.

Refuses to know: what to make of them (`lakthan doctor`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from lakthan.store.pool import connect, open_pool, unavailable_as_such
from lakthan.store.rights import RIGHTS, SCHEMA, VERBS, Right
from lakthan.store.schema import schema_problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    import asyncpg

_SETTINGS = (
    "data_checksums",
    "fsync",
    "full_page_writes",
    "ignore_checksum_failure",
    "max_connections",
    "reserved_connections",
    "superuser_reserved_connections",
    "synchronous_commit",
    "synchronous_standby_names",
    "TimeZone",
    "zero_damaged_pages",
)
_RIGHTS = """
    SELECT c.relname AS table, v.verb
    FROM pg_class c CROSS JOIN unnest($2::text[]) v (verb)
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm') AND NOT c.relispartition
    AND (has_table_privilege($1, c.oid, v.verb)
        OR v.verb NOT IN ('DELETE', 'TRUNCATE') AND has_any_column_privilege($1, c.oid, v.verb))
"""


@dataclass(frozen=True, slots=True)
class Server:
    """The server and the login. `settings`: as a session gets them that asks for nothing special.

    `others`: connections that are not ours. `clock_ahead`: of the server's clock before this one's, give or take
    `clock_gap`. `connection_limit`: of the login, None without. `roles`: the limited roles that it may act as.
    """

    major: int
    settings: Mapping[str, str]
    others: int
    clock_ahead: timedelta
    clock_gap: timedelta
    login: str
    superuser: bool
    connection_limit: int | None
    roles: frozenset[str]


@dataclass(frozen=True, slots=True)
class Acting:
    """A service's own connection. `user`, `synchronous_commit`: as it finds them, whatever stands between.

    `schema_problem`: '' when the schema is as new as this release needs. `missing`, `extra`: rights of the role.
    """

    user: str
    synchronous_commit: str
    schema_problem: str
    missing: frozenset[Right]
    extra: frozenset[Right]


async def look_at_server(url: str, *, password: str | None = None) -> Server:
    """The server, by a plain connection. Raises `ConfigError` and `StoreUnavailable`."""
    connection = await connect(url, password=password, application_name="lakthan-doctor", plain=True)
    try:
        with unavailable_as_such():
            return await _server(connection)
    finally:
        await connection.close()


async def _server(connection: asyncpg.Connection) -> Server:
    settings = await connection.fetch("SELECT name, setting FROM pg_settings WHERE name = ANY($1)", _SETTINGS)
    began = time.monotonic()
    now = await connection.fetchval("SELECT clock_timestamp()")
    gap = timedelta(seconds=(time.monotonic() - began) / 2)
    [(name, superuser, limit)] = await connection.fetch(
        "SELECT rolname, rolsuper, rolconnlimit FROM pg_roles WHERE rolname = session_user"
    )
    roles = await connection.fetch(
        "SELECT rolname FROM pg_roles WHERE rolname = ANY($1) AND pg_has_role(session_user, oid, 'MEMBER')", [*RIGHTS]
    )
    return Server(
        major=connection.get_server_version().major,
        settings={row["name"]: row["setting"] for row in settings},
        others=await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datid IS NOT NULL AND application_name NOT LIKE 'lakthan%'"
        ),
        clock_ahead=now - (datetime.now(UTC) - gap),
        clock_gap=gap,
        login=name,
        superuser=superuser,
        connection_limit=None if limit < 0 else limit,
        roles=frozenset(row["rolname"] for row in roles),
    )


async def look_as(url: str, role: str, *, password: str | None = None) -> Acting:
    """What a service that acts as `role` has. Raises `ConfigError` and `StoreUnavailable`."""
    pool = await open_pool(url, role=role, min_size=1, max_size=1, password=password, application_name="lakthan-doctor")
    try:
        problem = await schema_problem(pool)
        with unavailable_as_such():
            rows = await pool.fetch(_RIGHTS, role, VERBS)
            found = {(row["verb"], row["table"]) for row in rows} - {SCHEMA}
            tables = {table for rights in RIGHTS.values() for _, table in rights}
            return Acting(
                user=await pool.fetchval("SELECT current_user::text"),
                synchronous_commit=await pool.fetchval("SELECT current_setting('synchronous_commit')"),
                schema_problem=problem,
                missing=RIGHTS[role] - found,
                # A table that is not known here belongs to a newer schema, with rights of its own.
                extra=frozenset(right for right in found - RIGHTS[role] if right[1] in tables),
            )
    finally:
        await pool.close()
