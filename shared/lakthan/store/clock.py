"""The record of what happened to the clock of a time-stamp authority: synchronised, lost, stepped, a leap second.

Promises: when `append` returns, the events are on disk, and nobody can change them through this role.

Trusted: as with token records, the owner of the database can drop the whole table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lakthan.store.pool import unavailable_as_such

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import asyncpg


@dataclass(frozen=True, slots=True)
class ClockEventRecord:
    """One event. `at` is read from the clock in question; `host` is the machine whose clock it is.

    `offset_us`: how far it is ahead of UTC, or for a step how far it was set; `bound_us`: how far off it may be at
    most; None when nobody can tell.
    """

    at: datetime
    host: str
    event: str
    state: str
    offset_us: int | None
    bound_us: int | None
    detail: str


class ClockEventLog:
    """Appends clock events. `pool` acts as `lakthan_tsa` and comes from `open_pool`."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def append(self, events: Sequence[ClockEventRecord]) -> None:
        """Record all of them, or none, durably. Raises `StoreUnavailable`."""
        with unavailable_as_such():
            await self._pool.execute(
                """
                INSERT INTO clock_event (at, host, event, state, offset_us, bound_us, detail)
                SELECT * FROM unnest($1::timestamptz[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[],
                                     $7::text[])
                """,
                [event.at for event in events],
                [event.host for event in events],
                [event.event for event in events],
                [event.state for event in events],
                [event.offset_us for event in events],
                [event.bound_us for event in events],
                [event.detail for event in events],
            )
