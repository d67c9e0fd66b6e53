"""Token records and epochs: durable, never twice."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from lakthan.store.records import TokenRecord
from lakthan.store.tokens import DuplicateSerial, TokenLog
from support.database import OpenPool

NOW = datetime.now(UTC)


def serial_of(number: int, instant: datetime = NOW) -> bytes:
    """A serial number of the month of this instant."""
    return (0x4000 + (instant.year - 2000) * 12 + instant.month - 1).to_bytes(2, "big") + number.to_bytes(3, "big")


RECORD = TokenRecord(
    serial_number=serial_of(2),
    gen_time=NOW,
    policy="0.4.0.2023.1.1",
    hash_algorithm="2.16.840.1.101.3.4.2.1",
    hashed_message=b"\x01" * 32,
    tsu="TSU ໜຶ່ງ",
    clock_state="synchronised",
    clock_bound=timedelta(microseconds=1500),
    token_sha256=b"\x02" * 32,
)


@pytest.fixture
async def log(open_as: OpenPool) -> TokenLog:
    """A log with the TSA's rights."""
    return TokenLog(await open_as("lakthan_tsa"))


async def rows_of(open_as: OpenPool) -> list[asyncpg.Record]:
    """What is on record, as an auditor reads it."""
    registry = await open_as("lakthan_registry")
    return list(await registry.fetch("SELECT * FROM timestamp_token ORDER BY serial_number"))


async def test_every_field_is_kept(log: TokenLog, open_as: OpenPool) -> None:
    """A record can be read back as it was given, gen_time with its microseconds, a missing clock bound as missing."""
    await log.append([RECORD, RECORD._replace(serial_number=serial_of(3), clock_bound=None)])
    row, without_bound = await rows_of(open_as)
    assert without_bound["clock_bound_us"] is None
    assert row["serial_number"] == RECORD.serial_number
    assert row["gen_time"] == RECORD.gen_time
    assert row["tsu"] == RECORD.tsu
    assert row["clock_bound_us"] == 1500
    assert (row["policy"], row["hash_algorithm"]) == (RECORD.policy, RECORD.hash_algorithm)
    assert (row["hashed_message"], row["token_sha256"]) == (RECORD.hashed_message, RECORD.token_sha256)
    assert row["clock_state"] == RECORD.clock_state


async def test_no_serial_number_twice(log: TokenLog, open_as: OpenPool) -> None:
    """A repeated serial number, in one batch or in two, refuses the whole batch and records nothing of it. TSA-T3."""
    with pytest.raises(DuplicateSerial):
        await log.append([RECORD, RECORD])
    assert await rows_of(open_as) == []
    await log.append([RECORD])
    with pytest.raises(DuplicateSerial):
        await log.append([RECORD._replace(serial_number=serial_of(9)), RECORD._replace(hashed_message=b"other")])
    assert [row["serial_number"] for row in await rows_of(open_as)] == [RECORD.serial_number]


async def test_a_large_batch_is_one_append(log: TokenLog, open_as: OpenPool) -> None:
    """A thousand records go in together."""
    await log.append([RECORD._replace(serial_number=serial_of(n)) for n in range(1000)])
    assert len(await rows_of(open_as)) == 1000


async def test_nothing_to_append_is_no_error(log: TokenLog, open_as: OpenPool) -> None:
    """An empty batch is recorded without complaint and without a row."""
    await log.append([])
    assert await rows_of(open_as) == []


async def test_epochs_never_repeat(log: TokenLog) -> None:
    """Fifty starts at once, of two units, get fifty different epochs; later ones are greater. TSA-T3."""
    epochs = await asyncio.gather(*(log.lease_epoch(f"tsu {n % 2}") for n in range(50)))
    assert len(set(epochs)) == 50
    assert await log.lease_epoch("tsu 0") > max(epochs)


async def test_commits_wait_for_the_disk(open_as: OpenPool) -> None:
    """Whatever the database's own default, a connection of ours commits durably."""
    owner = await open_as(None)
    name = await owner.fetchval("SELECT current_database()")
    await owner.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    tsa = await open_as("lakthan_tsa")
    assert await tsa.fetchval("SHOW synchronous_commit") == "on"
    assert await tsa.fetchval("SHOW synchronous_commit") == "on"  # also after coming back to the pool
