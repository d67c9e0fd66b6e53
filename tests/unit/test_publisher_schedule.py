"""When answers are due, and how fast a key may be asked."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakthan.algorithms import HashAlgorithm
from lakthan_ocsp.publisher.schedule import Clock, Pace, due_after, shortfall, signatures_per_second, spread_of

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Simulated(Clock):
    """A clock that goes on by what is waited for."""

    def __init__(self) -> None:
        self.instant = NOW

    def now(self) -> datetime:
        """See `Clock`."""
        return self.instant

    async def sleep(self, seconds: float, wake: asyncio.Event | None = None) -> None:
        """See `Clock`."""
        del wake
        self.instant += timedelta(seconds=seconds)


@given(
    serial_number=st.binary(min_size=1, max_size=20),
    spread=st.floats(0.02, 1),
    late=st.none() | st.timedeltas(min_value=timedelta(days=-1), max_value=timedelta(days=40)),
)
def test_always_due_within_the_interval(serial_number: bytes, spread: float, late: timedelta | None) -> None:
    """Whatever was before, an answer is due again later than now, and after the interval at the latest."""
    due_at = None if late is None else NOW - late
    again = due_after(NOW, HOUR, (serial_number, HashAlgorithm.SHA_1), due_at=due_at, spread=spread)
    assert NOW < again <= NOW + HOUR


def test_a_place_is_kept() -> None:
    """An answer that was due is due again exactly one interval later, however late it was signed, or the next time."""
    wanted = (b"\x05", HashAlgorithm.SHA_256)
    due_at = NOW - timedelta(minutes=10)
    assert due_after(NOW, HOUR, wanted, due_at=due_at, spread=1) == due_at + HOUR
    assert due_after(NOW, HOUR, wanted, due_at=due_at - 5 * HOUR, spread=1) == due_at + HOUR


def test_a_bulk_import_does_not_come_back_as_a_wave() -> None:
    """Twenty thousand answers that are signed in one moment by a key with time are due evenly over the interval."""
    minutes = Counter(
        int((due_after(NOW, HOUR, (number.to_bytes(8), algorithm), due_at=None, spread=1) - NOW).total_seconds() // 60)
        for number in range(10_000)
        for algorithm in (HashAlgorithm.SHA_1, HashAlgorithm.SHA_256)
    )
    assert set(minutes) <= set(range(61))
    assert max(minutes.values()) < 2 * 20_000 / 60


def test_a_busy_key_signs_nothing_twice() -> None:
    """With a key that is busy four fifths of the time, the first places are in the last fifth of the interval."""
    spread = spread_of(80, 100)
    assert spread == pytest.approx(0.2)
    for number in range(100):
        due_at = due_after(NOW, HOUR, (bytes([number]), HashAlgorithm.SHA_1), due_at=None, spread=spread)
        assert due_at >= NOW + HOUR * 0.8 - timedelta(seconds=1)
    assert spread_of(80, None) == 1
    assert 0 < spread_of(200, 100) < 0.1


def test_the_arithmetic() -> None:
    """Certificates × hashes ÷ refresh, against what the key may give; what is wrong is said with a way out."""
    assert signatures_per_second(500_000, 2, timedelta(seconds=5000)) == 200
    assert shortfall(500_000, 2, timedelta(seconds=5000), 200) == ""
    assert shortfall(500_000, 2, HOUR, None) == ""
    said = shortfall(500_000, 2, HOUR, 200)
    assert "277.8" in said
    assert "longer than 83 minutes" in said


async def test_never_faster_than_the_bound() -> None:
    """In no second are there more turns than the rate and its credit, and over a minute they are used to the full."""
    clock = Simulated()
    pace = Pace(200, clock)
    turns = []
    while clock.instant < NOW + timedelta(minutes=1):
        await pace.turn()
        turns.append((clock.instant - NOW).total_seconds())
        if len(turns) == 3000:
            clock.instant += timedelta(seconds=2)  # the key was not asked for a while
    for start in range(0, len(turns) - 212, 7):
        assert turns[start + 211] - turns[start] > 0.999
    assert len(turns) > 58 * 200


async def test_without_a_bound_nobody_waits() -> None:
    """A key without a bound is asked at once."""
    clock = Simulated()
    for _ in range(1000):
        await Pace(None, clock).turn()
    assert clock.instant == NOW
