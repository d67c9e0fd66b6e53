"""How far an interrupted import of a list came: every chunk says so in its audit record, in the same transaction.

Promises: everything up to the position is on record in this very database. A restored or another database gives the
position that it has itself, so nothing is skipped that is not there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lakthan.store.pool import unavailable_as_such

if TYPE_CHECKING:
    import asyncpg

_SECONDS = 600


async def import_position(pool: asyncpg.Pool, authority_id: int, file_sha256: bytes) -> int:
    """The position of the last confirmed chunk of the file with this content, 0 when there is none.

    `pool` acts as `lakthan_registry` or `lakthan_auditor`. Raises `StoreUnavailable`.
    """
    with unavailable_as_such():
        async with pool.acquire() as connection, connection.transaction(readonly=True):
            # The newest is found at once; that there is none is known at the end of the chain only.
            await connection.execute(f"SET LOCAL statement_timeout = '{_SECONDS}s'")
            position: int | None = await connection.fetchval(
                """
                SELECT (detail::json ->> 'position')::bigint
                  FROM audit_record
                 WHERE chain = $1 AND event = 'import' AND detail::json ->> 'file_sha256' = $2
                 ORDER BY number DESC
                 LIMIT 1
                """,
                authority_id,
                file_sha256.hex(),
                timeout=_SECONDS,
            )
    return position or 0
