"""The audit chain: reading it, and writing down what no trigger sees: refusals, and who read.

A chain is an authority's, by its id; chain 0 is for what is done for no single one. Its records are numbered from 1
without a gap, and each has the SHA-256 of the one before it in its own. `lakthan.store.audit_verify` checks them.

Promises: what is appended is committed when the call returns, whatever becomes of the caller's other transactions.

Trusted: the caller's word on who did what. The login is the database's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lakthan.store.acting import acting, detail_text
from lakthan.store.changes import refusals_as_such
from lakthan.store.pool import unavailable_as_such
from lakthan.store.records import AuditHead, AuditRecord

if TYPE_CHECKING:
    from collections.abc import Mapping

    import asyncpg

COLUMNS = (
    "chain, number, at, event, actor, through, login, detail, batch, change_count, changes_sha256, previous_sha256, "
    "sha256"
)


class AuditReader:
    """Reads the chains that the pool's role may see: all of them, or with `acting_for` that of the one authority."""

    def __init__(self, pool: asyncpg.Pool, acting_for: int | None = None) -> None:
        self._pool = pool
        self._acting_for = acting_for

    async def page(self, chain: int, after: int = 0, limit: int = 100) -> list[AuditRecord]:
        """The records of a chain that come after the number `after`, oldest first. Raises `StoreUnavailable`."""
        return await self._fetch("chain = $1 AND number > $2 ORDER BY number LIMIT $3", chain, after, limit)

    async def newest(self, chain: int, limit: int = 100) -> list[AuditRecord]:
        """The last records of a chain, oldest first. Raises `StoreUnavailable`."""
        return (await self._fetch("chain = $1 ORDER BY number DESC LIMIT $2", chain, limit))[::-1]

    async def heads(self) -> list[AuditHead]:
        """Where each chain ends, by chain. Raises `StoreUnavailable`."""
        with unavailable_as_such():
            async with acting(self._pool, authority_id=self._acting_for) as connection:
                rows = await connection.fetch("SELECT chain, number, sha256 FROM audit_head ORDER BY chain")
        return [AuditHead(*row) for row in rows]

    async def _fetch(self, which: str, *values: int) -> list[AuditRecord]:
        with unavailable_as_such():
            async with acting(self._pool, authority_id=self._acting_for) as connection:
                rows = await connection.fetch(f"SELECT {COLUMNS} FROM audit_record WHERE {which}", *values)  # noqa: S608
        return [AuditRecord(*row) for row in rows]


async def append(
    pool: asyncpg.Pool,
    chain: int,
    event: str,
    *,
    actor: str,
    through: str,
    detail: Mapping[str, str],
    acting_for: int | None = None,
) -> int:
    """Append a record to a chain, in a transaction of its own; gives its number.

    `event`: `refused`, `read`, `crl`, `import` or another word in lower case; those that triggers record are refused. A
    publisher may write into the chain of its own authority, an auditor `refused` and `read` into any. Raises
    `ChangeRefused` and `StoreUnavailable`.
    """
    with refusals_as_such(), unavailable_as_such():
        async with acting(pool, authority_id=acting_for) as connection:
            number: int = await connection.fetchval(
                "SELECT append_audit($1, $2, $3, $4, $5)", chain, event, actor, through, detail_text(detail)
            )
    return number


async def append_refusal(
    pool: asyncpg.Pool,
    chain: int,
    *,
    actor: str,
    through: str,
    detail: Mapping[str, str],
    acting_for: int | None = None,
) -> int:
    """Write down what was refused; as `append`."""
    return await append(pool, chain, "refused", actor=actor, through=through, detail=detail, acting_for=acting_for)
