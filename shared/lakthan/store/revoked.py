"""Reading every revoked certificate of an authority, for those who compare.

Promises: all rows of one call are of one instant; memory holds some thousand of them at a time.

Trusted: whoever may write these tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lakthan.store.pool import unavailable_as_such
from lakthan.store.status import status_record

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import datetime

    import asyncpg

    from lakthan.store.records import StatusRecord

_ROWS_AT_ONCE = 1000


class RevokedReader:
    """`pool` acts as a role that sees all authorities."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def revoked(self, authority_id: int) -> AsyncIterator[StatusRecord]:
        """Everything of the authority that is revoked or held now. Raises `StoreUnavailable`."""
        with unavailable_as_such():
            async with (
                self._pool.acquire() as connection,
                connection.transaction(isolation="repeatable_read", readonly=True),
            ):
                # A few revoked ones among ten million good ones: the next rows may take their time.
                await connection.execute("SET LOCAL statement_timeout = '10min'")
                cursor = await connection.cursor(
                    """
                    SELECT authority_id, serial_number, cert_status, revocation_time, revocation_reason,
                           invalidity_date, not_after, version, certificate_sha256
                      FROM certificate_status WHERE authority_id = $1 AND cert_status = 'revoked'
                    """,
                    authority_id,
                    timeout=600,
                )
                while rows := await cursor.fetch(_ROWS_AT_ONCE, timeout=600):
                    for row in rows:
                        yield status_record(row)

    async def recorded(self, versions: Sequence[int]) -> dict[int, tuple[datetime, bool]]:
        """Of each of these changes when it was recorded, and whether it came from a CRL. Raises `StoreUnavailable`."""
        with unavailable_as_such():
            rows = await self._pool.fetch(
                """
                SELECT version, recorded_at, crl_scope IS NOT NULL AS from_crl
                  FROM status_change WHERE version = ANY($1::bigint[])
                """,
                versions,
            )
        return {row["version"]: (row["recorded_at"], row["from_crl"]) for row in rows}
