"""Clock events on record: complete, in order, for good, and never in the way of the tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

import asyncpg
import pytest

from lakthan.errors import StoreUnavailable
from lakthan.store.clock import ClockEventLog, ClockEventRecord
from lakthan_tsa.clock import audit as audit_module
from lakthan_tsa.clock.audit import ClockAudit
from lakthan_tsa.clock.values import ClockEvent, ClockState
from support.database import OpenPool

AT = datetime(2026, 11, 22, 10, 0, 0, 123456, tzinfo=UTC)
STEP = ClockEvent(AT, "step", ClockState.OUT_OF_SYNC, -1_500_000_001, None, "the clock was stepped by -1.500 s")
SYNC = ClockEvent(AT, "sync", ClockState.IN_SYNC, 1, 20_000_001, "")


async def rows_of(open_as: OpenPool) -> list[asyncpg.Record]:
    """What is on record, as an auditor reads it."""
    registry = await open_as("lakthan_registry")
    return list(await registry.fetch("SELECT * FROM clock_event ORDER BY recorded_at, at"))


async def stopped(writing: asyncio.Task[None]) -> None:
    """End the writer as the service does."""
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing


async def test_every_field_is_kept(open_as: OpenPool) -> None:
    """An event can be read back as it was noted; figures are rounded away from zero, so that none looks better than it
    was, and a bound that nobody knew is missing.

    TSA-C6.
    """
    audit = ClockAudit(ClockEventLog(await open_as("lakthan_tsa")).append)
    audit.note(STEP)
    audit.note(SYNC)
    writing = asyncio.create_task(audit.write())
    await asyncio.sleep(0)
    await stopped(writing)
    step, sync = sorted(await rows_of(open_as), key=lambda row: row["event"])
    assert (step["at"], step["event"], step["state"]) == (AT, "step", "out of sync")
    assert (step["offset_us"], step["bound_us"]) == (-1_500_001, None)
    assert step["detail"] == STEP.detail
    assert step["host"] == sync["host"] != ""
    assert (sync["offset_us"], sync["bound_us"]) == (1, 20_001)


async def test_events_stay(open_as: OpenPool) -> None:
    """Nobody can change or remove an event, not even the owner of the tables by a slip. TSA-C6, TSA-O1."""
    audit_log = ClockEventLog(await open_as("lakthan_tsa"))
    await audit_log.append([ClockEventRecord(AT, "host", "sync", "in sync", None, None, "")])
    owner = await open_as(None)
    for statement in ("UPDATE clock_event SET detail = 'x'", "DELETE FROM clock_event", "TRUNCATE clock_event"):
        with pytest.raises(asyncpg.PostgresError, match="can only be appended"):
            await owner.execute(statement)


async def test_a_database_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events wait, in order, until the database is back."""
    monkeypatch.setattr(audit_module, "_RETRY_SECONDS", 0.01)
    written: list[str] = []
    away = 3

    async def append(events: Sequence[ClockEventRecord]) -> None:
        nonlocal away
        await asyncio.sleep(0)
        if away:
            away -= 1
            raise StoreUnavailable("away")
        written.extend(event.event for event in events)

    audit = ClockAudit(append)
    writing = asyncio.create_task(audit.write())
    audit.note(SYNC)
    await asyncio.sleep(0.005)
    audit.note(STEP)
    async with asyncio.timeout(30):
        while len(written) < 2:  # noqa: ASYNC110 - the function has no event
            await asyncio.sleep(0.01)
    assert written == ["sync", "step"]
    await stopped(writing)


async def test_too_many_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the database stays away, memory does not grow without end: the oldest are given up."""
    monkeypatch.setattr(audit_module, "_MOST_WAITING", 2)
    written: list[str] = []

    async def append(events: Sequence[ClockEventRecord]) -> None:
        written.extend(event.event for event in events)

    audit = ClockAudit(append)
    for event in (STEP, SYNC, SYNC):
        audit.note(event)
    writing = asyncio.create_task(audit.write())
    await asyncio.sleep(0)
    await stopped(writing)
    assert written == ["sync", "sync"]
