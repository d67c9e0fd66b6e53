"""In whose name a transaction writes: what the database's triggers put into the audit chain, and for which authority.

Promises: the words hold for the one transaction and leave nothing behind on the pooled connection.

Refuses to know: whether the words are true. Whoever calls has authenticated the actor.

Trusted: the login. The database believes `authority_id` only from the service's own login or a member of the operator's
role; a CA's own login is bound to its authority in `authority_login`, and no setting takes it elsewhere.
"""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    import asyncpg


@asynccontextmanager
async def acting(
    pool: asyncpg.Pool,
    *,
    authority_id: int | None = None,
    actor: str | None = None,
    through: str = "cli",
    detail: Mapping[str, str] | None = None,
    event: str | None = None,
) -> AsyncIterator[asyncpg.pool.PoolConnectionProxy]:
    """A connection in a transaction of its own, which is committed at the end, or rolled back with an exception.

    `authority_id`: act for this authority and no other; needed by everybody but the operator. `actor`: who is on record
    for changes of authorities, policies and credentials, the login when left out. `through`: the way it came (`cli`,
    `api`, `crl`). `detail`: more for the record. `event`: `crl` or `import`, when changes of statuses come from there.
    The database's errors pass as they are.
    """
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(
            """
            SELECT set_config('lakthan.authority', $1, true), set_config('lakthan.actor', $2, true),
                   set_config('lakthan.through', $3, true), set_config('lakthan.detail', $4, true),
                   set_config('lakthan.event', $5, true)
            """,
            "" if authority_id is None else str(authority_id),
            actor or "",
            through,
            "" if detail is None else detail_text(detail),
            event or "",
        )
        yield connection


def detail_text(detail: Mapping[str, str]) -> str:
    """The JSON of an audit record's detail. What Postgres cannot keep in text becomes `?`."""
    clean = {key: value.replace("\0", "?").encode(errors="replace").decode() for key, value in sorted(detail.items())}
    return json.dumps(clean, ensure_ascii=False)
