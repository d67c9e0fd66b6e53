"""The scopes of CRLs on record, and an end for one whose CRLs come no more.

The CRLs of an issuer with the same issuingDistributionPoint are a scope. Each one holds down the freshness of the
authority whose certificates it lists; so one that a CA has abandoned has to be retired, or its old end counts for ever.

Promises: retiring a scope changes no status; it is in the audit chain.

Refuses to know: whether more CRLs of the scope will come. An import of one begins it anew.

Trusted: the caller's `actor`. The database lets nobody but the operator's role retire a scope.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lakthan.store.acting import acting
from lakthan.store.changes import refusals_as_such
from lakthan.store.pool import unavailable_as_such

if TYPE_CHECKING:
    from datetime import datetime

    import asyncpg


@dataclass(frozen=True, slots=True)
class ScopeOnRecord:
    """The newest CRL of a scope. `scope`: the issuingDistributionPoint, empty without; `entries`: of the complete CRL;
    `holds`: how many certificates it holds.
    """

    id: int
    authority_id: int
    scope: bytes
    crl_number: int | None
    this_update: datetime
    next_update: datetime
    imported_at: datetime
    entries: int
    holds: int
    url: str | None


class CRLScopes:
    """`pool` acts as `lakthan_registry`."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def load(self, authority_id: int | None = None) -> list[ScopeOnRecord]:
        """The scopes of an authority, or all of them. Raises `StoreUnavailable`."""
        with unavailable_as_such():
            rows = await self._pool.fetch(
                """
                SELECT c.id, c.authority_id, c.scope, c.crl_number, c.this_update, c.next_update, c.imported_at,
                       c.complete_entries, (SELECT count(*) FROM crl_hold h WHERE h.crl_scope = c.id) AS holds, c.url
                  FROM crl_scope c WHERE $1::integer IS NULL OR c.authority_id = $1 ORDER BY c.authority_id, c.id
                """,
                authority_id,
            )
        return [
            ScopeOnRecord(
                row["id"],
                row["authority_id"],
                row["scope"],
                None if row["crl_number"] is None else int.from_bytes(row["crl_number"], "big", signed=True),
                row["this_update"],
                row["next_update"],
                row["imported_at"],
                row["complete_entries"],
                row["holds"],
                row["url"],
            )
            for row in rows
        ]

    async def retire(self, authority_id: int, scope_id: int, *, actor: str, through: str = "cli") -> None:
        """From now on nothing of the scope counts but the statuses that its CRLs brought. What it holds stays held.

        Raises `ChangeRefused` when the authority has no such scope, and `StoreUnavailable`.
        """
        with refusals_as_such(), unavailable_as_such():
            async with acting(self._pool, actor=actor, through=through) as connection:
                await connection.execute("SELECT retire_crl_scope($1, $2)", authority_id, scope_id)
