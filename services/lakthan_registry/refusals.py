"""Refusals on record: who was refused what, and why, in the audit chain of the caller's authority.

Nobody at the door must be able to fill the record, be it with a token that leaked and was revoked: of each credential
sixty refusals in a minute are on record, and of callers whom nobody knows one, in chain 0. The next one that is says
how many before it were not.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lakthan.store.audit import append_refusal

if TYPE_CHECKING:
    import asyncpg

    from lakthan_registry.identity import Caller
    from lakthan_registry.problems import Problem

_NO_AUTHORITY = 0
_NOBODY = "unknown caller"
_PERIOD_SECONDS = 60.0
_MOST_OF_NOBODY = 1
_MOST_OF_A_CREDENTIAL = 60
_LONGEST_DETAIL = 1000


@dataclass(slots=True)
class _Period:
    """The refusals of one caller since an instant of the monotonic clock: how many are on record, how many are not."""

    began: float
    on_record: int = 0
    left_out: int = 0


class RefusalLog:
    """Puts refusals on record. `pool` acts as `lakthan_auditor`."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._periods: dict[int | None, _Period] = {}  # by the credential's number; None: whom nobody knows

    async def append(self, problem: Problem, caller: Caller | None, operation: str) -> None:
        """One refusal. Raises `StoreUnavailable`."""
        left_out = self._turn(caller)
        if left_out is None:
            return
        detail = {"problem": problem.kind, "operation": operation, "reason": problem.detail[:_LONGEST_DETAIL]}
        if left_out or caller is None:
            detail["not_on_record_before"] = str(left_out)
        if caller is None:
            await append_refusal(self._pool, _NO_AUTHORITY, actor=_NOBODY, through="api", detail=detail)
            return
        chain = caller.credential.authority_id or _NO_AUTHORITY
        detail["credential"] = caller.name
        await append_refusal(self._pool, chain, actor=caller.name, through=caller.through, detail=detail)

    def _turn(self, caller: Caller | None) -> int | None:
        """How many of this caller were left out before this one; None when it is left out as well."""
        key, most = (None, _MOST_OF_NOBODY) if caller is None else (caller.id, _MOST_OF_A_CREDENTIAL)
        now = time.monotonic()
        period = self._periods.get(key)
        left_out = 0
        if period is None or now - period.began >= _PERIOD_SECONDS:
            left_out = 0 if period is None else period.left_out
            period = self._periods[key] = _Period(now)
        if period.on_record >= most:
            period.left_out += 1
            return None
        period.on_record += 1
        return left_out
