"""Clock events on their way into the store, beside the hot path.

Promises: `note` returns at once and never fails. Events wait while the database is away, in order, as many as fit
into `_MOST_WAITING`; beyond that the oldest are given up, which the log says. Every event is a line of the log too, at
the moment when it happens (the guard writes it), so none is lost without a trace.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import TYPE_CHECKING

from lakthan.errors import StoreUnavailable
from lakthan.store.clock import ClockEventRecord
from lakthan.telemetry.logs import log

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from lakthan_tsa.clock.values import ClockEvent

    Append = Callable[[Sequence[ClockEventRecord]], Awaitable[None]]

_MOST_WAITING = 10_000
_RETRY_SECONDS = 1.0


class ClockAudit:
    """Hands what is noted to `append`."""

    def __init__(self, append: Append) -> None:
        self._append = append
        self._waiting: deque[ClockEventRecord] = deque()
        self._something = asyncio.Event()
        self._host = socket.gethostname()

    def note(self, event: ClockEvent) -> None:
        """Record it soon."""
        if len(self._waiting) >= _MOST_WAITING:
            given_up = self._waiting.popleft()
            log.error("a clock event is given up: the database is away for too long", at=given_up.at.isoformat())
        self._waiting.append(
            ClockEventRecord(
                event.at,
                self._host,
                event.event,
                event.state.label,
                _microseconds(event.offset_ns),
                _microseconds(event.bound_ns),
                event.detail,
            )
        )
        self._something.set()

    async def write(self) -> None:
        """Write what is noted until cancelled; what is left then gets one last try."""
        try:
            while True:
                await self._something.wait()
                if not await self._flush():
                    await asyncio.sleep(_RETRY_SECONDS)
        finally:
            if self._waiting:
                await self._flush()

    async def _flush(self) -> bool:
        batch = list(self._waiting)
        self._waiting.clear()
        try:
            await self._append(batch)
        except BaseException as error:  # also when cancelled: `write` tries once more, and twice is better than never
            self._waiting.extendleft(reversed(batch))
            if not isinstance(error, StoreUnavailable):
                raise
            log.warning("clock events not recorded yet", events=len(batch), problem=str(error))
            return False
        if not self._waiting:
            self._something.clear()
        return True


def _microseconds(nanoseconds: int | None) -> int | None:
    # Away from zero: what is recorded is never better than what was known.
    if nanoseconds is None:
        return None
    return -(-nanoseconds // 1000) if nanoseconds > 0 else nanoseconds // 1000
