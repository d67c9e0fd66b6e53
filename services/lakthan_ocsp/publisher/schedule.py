"""When an answer is due to be signed anew, what that costs the key, and how fast the key may be asked.

Every answer has a place of its own in the refresh interval and keeps it: once it was due, it is due again `refresh`
later. It gets its place when it is signed for the first time: the later the busier the key is, so that nothing is
signed twice while others wait, and over the whole interval where the key has time. So a million certificates that were
imported in one minute do not come back in one minute, and no answer gets older than the interval.

Nothing here reads a clock by itself: `Clock` is handed in, and the tests' one runs as fast as the machine can work.
"""

from __future__ import annotations

import asyncio
import zlib
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lakthan.algorithms import HashAlgorithm

_LEAST_SPREAD = 0.02
# What a key was not asked for in this time it may be asked for at once: timers are late by about a millisecond.
_CREDIT_SECONDS = 0.05
_NO_WAIT = 1e-5  # less than an instant can be told from another, in seconds since 1970


class Clock:
    """The time of day, and waiting for it."""

    def now(self) -> datetime:
        """The present instant."""
        return datetime.now(UTC)

    def problem(self) -> str:
        """Why nothing may be dated by it now; '' when nothing speaks against it."""
        return ""

    async def sleep(self, seconds: float, wake: asyncio.Event | None = None) -> None:
        """Wait so long, or until `wake` is set."""
        if wake is None:
            await asyncio.sleep(seconds)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await wake.wait()


def due_after(
    signed_at: datetime,
    refresh: timedelta,
    wanted: tuple[bytes, HashAlgorithm],
    *,
    due_at: datetime | None,
    spread: float,
) -> datetime:
    """When an answer that is signed now is due again: later than now, by at most `refresh`.

    `due_at`: when it was due, where that is why it is signed. `spread`: over which part of the interval first places
    are spread, from its end. `wanted`: the serial number and hash, which choose the place.
    """
    if due_at is not None and due_at <= signed_at:
        return due_at + refresh * ((signed_at - due_at) // refresh + 1)
    serial_number, cert_id_hash = wanted
    place = zlib.crc32(serial_number, zlib.crc32(cert_id_hash.label.encode())) / 2**32
    return signed_at + refresh * (1 - spread * place)


def spread_of(needed_per_second: float, allowed_per_second: float | None) -> float:
    """The part of the interval that a key with this much to do leaves for first places."""
    if allowed_per_second is None:
        return 1.0
    return min(1.0, max(_LEAST_SPREAD, 1 - needed_per_second / allowed_per_second))


def signatures_per_second(certificates: int, hashes: int, refresh: timedelta) -> float:
    """What the schedule takes: every answer once in each refresh interval."""
    return certificates * hashes / refresh.total_seconds()


def shortfall(certificates: int, hashes: int, refresh: timedelta, allowed_per_second: float | None) -> str:
    """Why answers would expire, with the arithmetic; '' when the key is fast enough."""
    needed = signatures_per_second(certificates, hashes, refresh)
    if allowed_per_second is None or needed <= allowed_per_second:
        return ""
    return (
        f"{certificates} certificates × {hashes} hashes ÷ {refresh.total_seconds():.0f} s of refresh are {needed:.1f} "
        f"signatures a second, and the key may be asked for {allowed_per_second:g}: make refresh longer than "
        f"{certificates * hashes / allowed_per_second / 60:.0f} minutes, use fewer hashes, or a faster key"
    )


class Pace:
    """The bound of one key: in any span of t seconds at most rate × (t + 0.05), rounded up."""

    def __init__(self, per_second: float | None, clock: Clock) -> None:
        self._interval = 0.0 if per_second is None else 1 / per_second
        self._clock = clock
        self._next = 0.0

    async def turn(self) -> None:
        """Wait until one more signature may be asked for."""
        if not self._interval:
            return
        while (wait := self._next - (now := self._clock.now().timestamp())) > _NO_WAIT:
            await self._clock.sleep(wait)
        self._next = max(self._next, now - _CREDIT_SECONDS) + self._interval
