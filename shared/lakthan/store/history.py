"""Reading what became of one certificate: its status now and every change, as whoever asks may see it.

Promises: with `acting_for` nothing of another authority is seen; the database's row-level security sees to it.

Refuses to know: speed. Responders look statuses up by `lakthan.store.status`.

Trusted: whoever may write these tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lakthan.store.acting import acting
from lakthan.store.pool import unavailable_as_such
from lakthan.store.records import Change, ChangeRequest, CRLReason, StatusChange, StatusRecord
from lakthan.store.status import status_record

if TYPE_CHECKING:
    import asyncpg


class ChangeReader:
    """`pool` acts as `lakthan_publisher` with `acting_for`, or as one of the roles that see all authorities."""

    def __init__(self, pool: asyncpg.Pool, acting_for: int | None = None) -> None:
        self._pool = pool
        self._acting_for = acting_for

    async def status(self, authority_id: int, serial_number: bytes) -> StatusRecord | None:
        """The status on record, or None. Raises `StoreUnavailable`."""
        with unavailable_as_such():
            async with acting(self._pool, authority_id=self._acting_for) as connection:
                row = await connection.fetchrow(
                    """
                    SELECT authority_id, serial_number, cert_status, revocation_time, revocation_reason,
                           invalidity_date, not_after, version, certificate_sha256
                      FROM certificate_status WHERE authority_id = $1 AND serial_number = $2
                    """,
                    authority_id,
                    serial_number,
                )
        return None if row is None else status_record(row)

    async def history(self, authority_id: int, serial_number: bytes) -> list[StatusChange]:
        """Every change, oldest first. Raises `StoreUnavailable`."""
        with unavailable_as_such():
            async with acting(self._pool, authority_id=self._acting_for) as connection:
                rows = await connection.fetch(
                    """
                    WITH RECURSIVE history AS (
                        SELECT c.* FROM certificate_status s JOIN status_change c ON c.version = s.version
                         WHERE s.authority_id = $1 AND s.serial_number = $2
                        UNION ALL
                        SELECT c.* FROM history later JOIN status_change c ON c.version = later.previous_version
                    )
                    SELECT version, c.authority_id, serial_number, change, revocation_time, revocation_reason,
                           invalidity_date, not_after, certificate_sha256, c.actor, recorded_at, previous_version,
                           c.batch, crl_scope, a.through
                      FROM history c
                      LEFT JOIN audit_record a ON a.chain = c.authority_id AND a.batch = c.batch
                     ORDER BY version
                    """,
                    authority_id,
                    serial_number,
                )
        return [_status_change(row) for row in rows]


def _status_change(row: asyncpg.Record) -> StatusChange:
    reason = row["revocation_reason"]
    request = ChangeRequest(
        authority_id=row["authority_id"],
        serial_number=row["serial_number"],
        change=Change(row["change"]),
        revocation_time=row["revocation_time"],
        revocation_reason=None if reason is None else CRLReason(reason),
        invalidity_date=row["invalidity_date"],
        not_after=row["not_after"],
        certificate_sha256=row["certificate_sha256"],
    )
    return StatusChange(
        version=row["version"],
        request=request,
        actor=row["actor"],
        recorded_at=row["recorded_at"],
        previous_version=row["previous_version"],
        batch=row["batch"],
        crl_scope=row["crl_scope"],
        through=row["through"],
    )
