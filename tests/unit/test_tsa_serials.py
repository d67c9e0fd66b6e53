"""Serial numbers do not repeat, and all look alike."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from lakthan import der
from lakthan.errors import StoreUnavailable
from lakthan_tsa.serials import SerialNumbers


def leasing(*epochs: int) -> Callable[[], Awaitable[int]]:
    """A database that gives out these epochs, and is then away."""
    left = list(epochs)

    async def lease() -> int:
        await asyncio.sleep(0)
        if not left:
            raise StoreUnavailable("away")
        return left.pop(0)

    return lease


@pytest.mark.parametrize("epoch", [1, 77, 2**30 - 1])
async def test_shape(epoch: int) -> None:
    """Sixteen octets, positive, minimal; epoch and counter can be read in them."""
    serials = SerialNumbers(leasing(epoch))
    await serials.open()
    for counter in range(3):
        serial_number = await serials.take()
        assert len(serial_number) == 16
        assert serial_number == der.minimal_integer(serial_number)
        assert int.from_bytes(serial_number, "big", signed=True) > 0
        assert int.from_bytes(serial_number[:4], "big") == 2**30 + epoch
        assert int.from_bytes(serial_number[4:8], "big") == counter


async def test_new_epoch_when_the_counter_ends() -> None:
    """When the counter is used up a new epoch is leased, once, however many ask at the same time."""
    serials = SerialNumbers(leasing(1, 2, 3), counters=4)
    await serials.open()
    taken = await asyncio.gather(*(serials.take() for _ in range(12)))
    assert len({serial_number[:8] for serial_number in taken}) == 12
    assert {serial_number[3] for serial_number in taken} == {1, 2, 3}


async def test_no_epoch_no_number() -> None:
    """Without a fresh epoch there is no number, rather than an old one."""
    serials = SerialNumbers(leasing(1), counters=1)
    await serials.open()
    await serials.take()
    with pytest.raises(StoreUnavailable):
        await serials.take()


async def test_restored_backup() -> None:
    """When a restored database gives the same epoch again, the random half still tells the numbers apart."""
    taken = set()
    for _ in range(50):
        serials = SerialNumbers(leasing(9))
        await serials.open()
        taken.add(await serials.take())
    assert len(taken) == 50


async def test_abandoned_epoch() -> None:
    """An epoch in which a number was on record before is used no more; abandoning it twice costs one epoch only."""
    serials = SerialNumbers(leasing(1, 2))
    await serials.open()
    first, second = await serials.take(), await serials.take()
    serials.abandon(first)
    third = await serials.take()
    serials.abandon(second)
    fourth = await serials.take()
    assert [serial_number[3] for serial_number in (first, third, fourth)] == [1, 2, 2]


@pytest.mark.parametrize("epoch", [0, -1, 2**30])
async def test_epoch_that_does_not_fit(epoch: int) -> None:
    """An epoch beyond 30 bits is refused, not cut."""
    with pytest.raises(StoreUnavailable, match="epoch"):
        await SerialNumbers(leasing(epoch)).open()
