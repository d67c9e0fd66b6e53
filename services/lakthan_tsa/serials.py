"""Serial numbers that cannot repeat: not in one process, not in several, not after a crash or a restored backup.

Eighteen octets, always: two fixed bits 01 (so the number is positive and its INTEGER minimal), 14 bits that count the
months of genTime since January 2000, 32 bits of epoch, 32 bits of counter, 64 bits of randomness.

- The month says in which partition of the token log the number is looked up, so that its unique index covers every
  number there is, and a month that was dropped after its retention can never come back.

- Two processes, or one before and after a crash, never share an epoch: the database gives each epoch out once, and
  commits that before a number of it is used.
- Within an epoch the counter never repeats; when it is used up, a new epoch is leased.
- After a restored backup the database gives out epochs that it had given out before. Then two numbers can only be equal
  if 64 random bits are equal too, for the same epoch and the same counter: one chance in 2^64 for each pair. The bits
  come from the kernel at the moment of use and none are kept in stock, so that a copy of a running machine does not
  carry tomorrow's numbers with it.

The unique index of the token log is the proof, not the mechanism: a number that is there already never leaves the
house. RFC 3161 §2.4.2 asks for uniqueness and for no more than 160 bits.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from lakthan.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

_FIRST_YEAR = 2000
_MONTHS = 1 << 14
_EPOCHS = 1 << 32
_COUNTERS = 1 << 32


class SerialNumbers:
    """Gives serial numbers, as the content octets of an INTEGER.

    `lease_epoch` gives a positive number that it has never given before, durably.
    """

    def __init__(self, lease_epoch: Callable[[], Awaitable[int]], *, counters: int = _COUNTERS) -> None:
        self._lease_epoch = lease_epoch
        self._counters = counters
        self._lease = asyncio.Lock()
        self._epoch = b""
        self._counter = counters  # nothing is left before the first lease

    async def open(self) -> None:
        """Lease the first epoch. Raises `StoreUnavailable`."""
        async with self._lease:
            await self._renew()

    async def take(self, gen_time: datetime) -> bytes:
        """A new serial number for a token of this instant (UTC).

        Raises `StoreUnavailable` when a new epoch is needed and cannot be had.
        """
        while (taken := self.take_at_once(gen_time, 1)) is None:
            async with self._lease:
                if self._counter >= self._counters:
                    await self._renew()
        return taken[0]

    def take_at_once(self, gen_time: datetime, count: int) -> list[bytes] | None:
        """So many without waiting; None when the epoch has not so many left."""
        counter = self._counter
        if counter + count > self._counters:
            return None
        self._counter = counter + count
        month = _MONTHS | (gen_time.year - _FIRST_YEAR) * 12 + gen_time.month - 1
        start, chance = month.to_bytes(2, "big") + self._epoch, os.urandom(8 * count)
        return [
            b"".join((start, (counter + number).to_bytes(4, "big"), chance[8 * number : 8 * number + 8]))
            for number in range(count)
        ]

    def abandon(self, serial_number: bytes) -> None:
        """Use the epoch of this number no more: a number of it was on record before."""
        if serial_number[2:6] == self._epoch:
            self._counter = self._counters

    async def _renew(self) -> None:
        epoch = await self._lease_epoch()
        if not 0 < epoch < _EPOCHS:
            raise StoreUnavailable(f"the serial number epoch {epoch} does not fit in 32 bits; no more can be leased")
        self._epoch = epoch.to_bytes(4, "big")
        self._counter = 0
