"""Refusals on record: who was refused what, and why, in the audit chain of the caller's authority.

Of callers whom nobody knows the first in a minute is on record, in chain 0 and with the number of those before it that
were not: whoever knocks at the door must not be able to fill the record.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from lakthan.store.audit import append_refusal

if TYPE_CHECKING:
    import asyncpg

    from lakthan_registry.identity import Caller
    from lakthan_registry.problems import Problem

_NO_AUTHORITY = 0
_NOBODY = "unknown caller"
_PAUSE_SECONDS = 60.0
_LONGEST_DETAIL = 1000


class RefusalLog:
    """Puts refusals on record. `pool` acts as `lakthan_auditor`."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._unknown_at = -_PAUSE_SECONDS
        self._unknown_since = 0

    async def append(self, problem: Problem, caller: Caller | None, operation: str) -> None:
        """One refusal. Raises `StoreUnavailable`."""
        detail = {"problem": problem.kind, "operation": operation, "reason": problem.detail[:_LONGEST_DETAIL]}
        if caller is not None:
            chain = caller.credential.authority_id or _NO_AUTHORITY
            detail["credential"] = caller.name
            await append_refusal(self._pool, chain, actor=caller.name, through=caller.through, detail=detail)
            return
        now = time.monotonic()
        if now - self._unknown_at < _PAUSE_SECONDS:
            self._unknown_since += 1
            return
        detail["not_on_record_before"] = str(self._unknown_since)
        self._unknown_at, self._unknown_since = now, 0
        await append_refusal(self._pool, _NO_AUTHORITY, actor=_NOBODY, through="api", detail=detail)
