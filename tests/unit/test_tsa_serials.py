"""Serial numbers do not repeat, and all look alike."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import pytest

from lakthan import der
from lakthan.errors import StoreUnavailable
from lakthan_tsa.authority import SERIAL_NUMBER_OCTETS
from lakthan_tsa.serials import SerialNumbers

NOW = datetime(2026, 11, 22, tzinfo=UTC)


def leasing(*epochs: int) -> Callable[[], Awaitable[int]]:
    """A database that gives out these epochs, and is then away."""
    left = list(epochs)

    async def lease() -> int:
        await asyncio.sleep(0)
        if not left:
            raise StoreUnavailable("away")
        return left.pop(0)

    return lease


@pytest.mark.parametrize("epoch", [1, 77, 2**32 - 1])
async def test_shape(epoch: int) -> None:
    """Eighteen octets, positive, minimal; month, epoch and counter can be read in them. TSA-T3."""
    serials = SerialNumbers(leasing(epoch))
    await serials.open()
    for counter in range(3):
        serial_number = await serials.take(NOW)
        assert len(serial_number) == SERIAL_NUMBER_OCTETS
        assert serial_number == der.minimal_integer(serial_number)
        assert int.from_bytes(serial_number, "big", signed=True) > 0
        assert int.from_bytes(serial_number[:2], "big") == 0x4000 + 26 * 12 + 10
        assert int.from_bytes(serial_number[2:6], "big") == epoch
        assert int.from_bytes(serial_number[6:10], "big") == counter


async def test_the_month_comes_first() -> None:
    """Numbers of different months are apart, in the order of the months, whatever follows."""
    serials = SerialNumbers(leasing(5))
    await serials.open()
    months = [datetime(year, month, 1, tzinfo=UTC) for year in (2000, 2026, 2099) for month in (1, 6, 12)]
    taken = [await serials.take(month) for month in months]
    assert taken == sorted(taken)
    assert len({serial_number[:2] for serial_number in taken}) == len(months)


async def test_new_epoch_when_the_counter_ends() -> None:
    """When the counter is used up a new epoch is leased, once, however many ask at the same time."""
    serials = SerialNumbers(leasing(1, 2, 3), counters=4)
    await serials.open()
    taken = await asyncio.gather(*(serials.take(NOW) for _ in range(12)))
    assert len({serial_number[:10] for serial_number in taken}) == 12
    assert {serial_number[5] for serial_number in taken} == {1, 2, 3}


async def test_several_at_once() -> None:
    """Numbers that are taken together are as different as others, in all their parts, and never more than are left."""
    serials = SerialNumbers(leasing(1, 2), counters=8)
    assert serials.take_at_once(NOW, 1) is None  # before the first lease
    await serials.open()
    taken = [*(serials.take_at_once(NOW, 5) or ()), *(serials.take_at_once(NOW, 2) or ())]
    assert [int.from_bytes(each[6:10], "big") for each in taken] == list(range(7))
    assert len({each[10:] for each in taken}) == 7
    assert all(len(each) == 18 for each in taken)
    assert serials.take_at_once(NOW, 2) is None
    assert (await serials.take(NOW))[2:10] == b"\0\0\0\x01\0\0\0\x07"
    assert (await serials.take(NOW))[2:10] == b"\0\0\0\x02\0\0\0\0"


async def test_no_epoch_no_number() -> None:
    """Without a fresh epoch there is no number, rather than an old one. TSA-R9."""
    serials = SerialNumbers(leasing(1), counters=1)
    await serials.open()
    await serials.take(NOW)
    with pytest.raises(StoreUnavailable):
        await serials.take(NOW)


async def test_restored_backup() -> None:
    """When a restored database gives the same epoch again, the random half still tells the numbers apart. TSA-T3."""
    taken = set()
    for _ in range(50):
        serials = SerialNumbers(leasing(9))
        await serials.open()
        taken.add(await serials.take(NOW))
    assert len(taken) == 50


async def test_abandoned_epoch() -> None:
    """An epoch in which a number was on record before is used no more; abandoning it twice costs one epoch only.

    TSA-T3.
    """
    serials = SerialNumbers(leasing(1, 2))
    await serials.open()
    first, second = await serials.take(NOW), await serials.take(NOW)
    serials.abandon(first)
    third = await serials.take(NOW)
    serials.abandon(second)
    fourth = await serials.take(NOW)
    assert [serial_number[5] for serial_number in (first, third, fourth)] == [1, 2, 2]


@pytest.mark.parametrize("epoch", [0, -1, 2**32])
async def test_epoch_that_does_not_fit(epoch: int) -> None:
    """An epoch beyond 32 bits is refused, not cut."""
    with pytest.raises(StoreUnavailable, match="epoch"):
        await SerialNumbers(leasing(epoch)).open()
