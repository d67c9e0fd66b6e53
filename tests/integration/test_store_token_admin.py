"""The operator's side of the token log: months, freezes, lists, and what is dropped after its retention."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from lakthan.errors import ConfigError, StoreUnavailable
from lakthan.store.records import TokenRecord
from lakthan.store.token_admin import TokenAdmin, TokenRetention
from lakthan.store.tokens import DuplicateSerial, TokenLog, TSUFrozen
from support.database import OpenPool

NOW = datetime.now(UTC)
THIS_MONTH = NOW.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
LATE_LAST_MONTH = THIS_MONTH - timedelta(hours=1)
LAST_MONTH = (THIS_MONTH - timedelta(days=1)).replace(day=1)
ONE, TWO = "1" * 64, "2" * 64


def record(number: int, instant: datetime = NOW, *, tsu: str = ONE, bound: timedelta | None = None) -> TokenRecord:
    """A record with a serial number of its month."""
    month = 0x4000 + (instant.year - 2000) * 12 + instant.month - 1
    return TokenRecord(
        serial_number=month.to_bytes(2, "big") + number.to_bytes(16, "big"),
        gen_time=instant,
        policy="0.4.0.2023.1.1",
        hash_algorithm="SHA-256",
        hashed_message=bytes(32),
        tsu=tsu,
        clock_state="in sync",
        clock_bound=bound,
        token_sha256=bytes(32),
    )


@pytest.fixture
async def log(open_as: OpenPool) -> TokenLog:
    """A log with the TSA's rights."""
    return TokenLog(await open_as("lakthan_tsa", max_size=8))


@pytest.fixture
async def admin(open_as: OpenPool) -> TokenAdmin:
    """The operator, with the registry's rights."""
    return TokenAdmin(await open_as("lakthan_registry"))


async def listed(admin: TokenAdmin, **which: object) -> list[int]:
    """The numbers of the tokens of the last hundred days that are listed."""
    found = admin.tokens(NOW - timedelta(days=100), NOW + timedelta(days=1), **which)  # type: ignore[arg-type]
    return [int.from_bytes(each.serial_number[2:], "big") async for each in found]


async def test_a_new_month_gets_its_partition_with_its_first_token(log: TokenLog, open_as: OpenPool) -> None:
    """Nobody has to prepare a month: its first tokens make its partition, also when many come at once and when one
    commit holds tokens of two months.
    """
    await log.append([record(1, LATE_LAST_MONTH), record(2, THIS_MONTH)])
    await asyncio.gather(*(log.append([record(number, NOW)]) for number in range(10, 20)))
    owner = await open_as(None)
    rows = await owner.fetch("SELECT tableoid::regclass::text AS name, count(*) FROM timestamp_token GROUP BY 1")
    assert {row["name"]: row["count"] for row in rows} == {
        f"timestamp_token_{LAST_MONTH:%Y_%m}": 1,
        f"timestamp_token_{THIS_MONTH:%Y_%m}": 11,
    }


async def test_a_serial_number_is_unique_in_the_whole_log(log: TokenLog) -> None:
    """The unique index of one month is that of the log, because no other month can hold the same number: a record
    whose serial number belongs to another month than its genTime is refused.

    TSA-T3.
    """
    await log.append([record(1)])
    with pytest.raises(DuplicateSerial):
        await log.append([record(1)])
    with pytest.raises(asyncpg.CheckViolationError, match="gen_time_is_in_the_month"):
        await log.append([record(1)._replace(gen_time=LATE_LAST_MONTH)])


async def test_nothing_is_stamped_far_from_the_present(log: TokenLog) -> None:
    """A unit whose clock is a year off finds no month to record in, and the reason says so."""
    with pytest.raises(StoreUnavailable, match="set the clock"):
        await log.append([record(1, NOW + timedelta(days=365))])


async def test_records_of_a_month_stay(log: TokenLog, open_as: OpenPool) -> None:
    """Not even the owner can edit or empty a month by its own name."""
    await log.append([record(1)])
    owner = await open_as(None)
    name = f"timestamp_token_{THIS_MONTH:%Y_%m}"
    for statement in (f"DELETE FROM {name}", f"UPDATE {name} SET tsu = 'x'", f"TRUNCATE {name}"):
        with pytest.raises(asyncpg.PostgresError, match="rows can only be appended"):
            await owner.execute(statement)


async def test_lists(log: TokenLog, admin: TokenAdmin) -> None:
    """Tokens are found by time, unit and clock, oldest first; a clock that could not tell counts as worse. TSA-C7."""
    second, ms = timedelta(seconds=1), timedelta(milliseconds=1)
    await log.append([record(3, NOW - second, bound=5 * ms), record(1, NOW - 3 * second, tsu=TWO, bound=500 * ms)])
    await log.append([record(2, NOW - 2 * second)])
    assert await listed(admin) == [1, 2, 3]
    assert await listed(admin, tsu=TWO) == [1]
    assert await listed(admin, clock_worse_than=5 * ms) == [1, 2]
    assert await listed(admin, clock_worse_than=500 * ms, tsu=ONE) == [2]
    found = [each async for each in admin.tokens(NOW - 2 * second, NOW - second)]
    assert found == [record(2, NOW - 2 * second)]


async def test_many_tokens_are_listed_without_holding_them(log: TokenLog, admin: TokenAdmin) -> None:
    """A list longer than one page comes whole and in order."""
    for page in range(3):
        await log.append([record(page * 1000 + n, NOW + timedelta(microseconds=page * 1000 + n)) for n in range(1000)])
    assert await listed(admin) == list(range(3000))


async def test_a_frozen_unit_records_nothing_more(log: TokenLog, admin: TokenAdmin) -> None:
    """From the freeze on nothing of the unit comes on record, the others go on; a second freeze changes nothing.

    TSA-R9.
    """
    await log.append([record(1)])
    frozen, new = await admin.freeze(ONE, "key ceremony gone wrong", "cli:test")
    assert new
    with pytest.raises(TSUFrozen) as refused:
        await log.append([record(2, tsu=TWO), record(3)])
    assert refused.value.tsu == ONE
    await log.append([record(4, tsu=TWO)])
    assert await listed(admin) == [1, 4]
    assert await admin.freeze(ONE, "another reason", "cli:somebody") == (frozen, False)
    assert await admin.freezes() == [frozen]
    assert await log.frozen() == {ONE}


async def test_a_freeze_waits_for_commits_under_way(admin: TokenAdmin, open_as: OpenPool) -> None:
    """A freeze returns only when every commit that began before it has ended, and a commit that begins afterwards sees
    it: so what was recorded before the freeze returned is all that there will be.
    """
    tsa = await open_as("lakthan_tsa")
    log = TokenLog(tsa)
    await log.append([record(1)])
    async with tsa.acquire() as connection:
        under_way = connection.transaction()
        await under_way.start()
        await connection.execute(
            "INSERT INTO timestamp_token (serial_number, gen_time, policy, hash_algorithm, hashed_message, tsu,"
            " clock_state, token_sha256) VALUES ($1, $2, '1.2', 'SHA-256', '', $3, 'in sync', sha256(''))",
            record(2).serial_number,
            NOW,
            ONE,
        )
        freeze = asyncio.create_task(admin.freeze(ONE, "now", "test"))
        owner = await open_as(None)
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        while not await owner.fetchval(waiting):  # noqa: ASYNC110 - the database tells nobody
            await asyncio.sleep(0.01)
        assert not freeze.done()
        later = asyncio.create_task(log.append([record(3)]))
        await under_way.commit()
        await freeze
        with pytest.raises(TSUFrozen):
            await later
    assert await listed(admin) == [1, 2]


async def test_a_freeze_is_for_good(admin: TokenAdmin, open_as: OpenPool) -> None:
    """Neither the registry nor the owner can take a freeze back."""
    await admin.freeze(ONE, "now", "test")
    registry, owner = await open_as("lakthan_registry"), await open_as(None)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await registry.execute("DELETE FROM tsu_freeze")
    with pytest.raises(asyncpg.PostgresError, match="rows can only be appended"):
        await owner.execute("DELETE FROM tsu_freeze")


async def test_months_are_dropped_whole_and_on_record(
    log: TokenLog, admin: TokenAdmin, open_as: OpenPool, database_url: str
) -> None:
    """After their retention the owner drops whole months; who did it, and how much it was, is on record. TSA-O1."""
    await log.append([record(1, LATE_LAST_MONTH), record(2, LATE_LAST_MONTH), record(3)])
    connection = await asyncpg.connect(database_url)
    try:
        retention = TokenRetention(connection)
        assert [(month.begin, month.tokens) for month in await retention.months()] == [(LAST_MONTH, 2), (THIS_MONTH, 1)]
        assert [month.begin for month in await retention.months(THIS_MONTH)] == [LAST_MONTH]
        [dropped] = await retention.drop(THIS_MONTH, "cli:test")
        assert (dropped.begin, dropped.tokens) == (LAST_MONTH, 2)
        [row] = await connection.fetch("SELECT drop_before, partitions, tokens, actor FROM token_retention")
    finally:
        await connection.close()
    assert tuple(row) == (THIS_MONTH, [f"timestamp_token_{LAST_MONTH:%Y_%m}"], 2, "cli:test")
    assert await listed(admin) == [3]


async def test_a_dropped_month_never_comes_back(log: TokenLog, database_url: str) -> None:
    """Serial numbers stay unique even against those that are gone: nothing is recorded in a dropped month, whatever a
    clock says.

    TSA-T3.
    """
    await log.append([record(1, LATE_LAST_MONTH)])
    connection = await asyncpg.connect(database_url)
    try:
        await TokenRetention(connection).drop(THIS_MONTH, "cli:test")
    finally:
        await connection.close()
    with pytest.raises(StoreUnavailable, match="dropped after their retention"):
        await log.append([record(2, THIS_MONTH - timedelta(seconds=1))])


@pytest.mark.parametrize("before", [THIS_MONTH + timedelta(days=40), THIS_MONTH + timedelta(hours=1)])
async def test_what_cannot_be_dropped(log: TokenLog, database_url: str, before: datetime) -> None:
    """The present month and parts of months stay."""
    connection = await asyncpg.connect(database_url)
    try:
        with pytest.raises(ConfigError, match="month"):
            await TokenRetention(connection).drop(before, "cli:test")
    finally:
        await connection.close()
