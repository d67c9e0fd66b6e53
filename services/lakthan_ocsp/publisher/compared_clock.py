"""The publisher's clock, held against the database's.

An answer that is signed ahead is believed until its nextUpdate by whoever holds it, and nobody asks the publisher's
machine again: dated an hour too late, it is believed an hour too long.

Promise: `problem` is '' only while this machine's clock was within the tolerance of the database's at the last
comparison, a second ago if the database answers, and has gone on evenly since (`lakthan_ocsp.wall_clock`).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from lakthan.errors import StoreUnavailable
from lakthan.store.presigned import Presigned
from lakthan_ocsp.publisher.schedule import Clock
from lakthan_ocsp.wall_clock import WallClock

if TYPE_CHECKING:
    from datetime import timedelta

    import asyncpg

_COMPARE_SECONDS = 1.0


class ComparedClock(Clock):
    """The time of day of this machine. `wall`: what is known of it."""

    def __init__(self, pool: asyncpg.Pool, tolerance: timedelta) -> None:
        self._store = Presigned(pool)
        self.wall = WallClock(tolerance)

    def problem(self) -> str:
        """See `Clock`."""
        return self.wall.problem()

    async def compare(self) -> None:
        """Ask the database. Raises `StoreUnavailable`."""
        self.wall.compare(await self._store.instant())

    async def watch(self) -> None:
        """Compare every second until cancelled. While the database is away nothing can be put on record either."""
        while True:
            await asyncio.sleep(_COMPARE_SECONDS)
            with suppress(StoreUnavailable):  # said in the log by all who need the database
                await self.compare()
