"""The feed of a copy: all that it takes in is handed out, or the loss is noticed; and nothing is younger than it is.

It looks the same way into any database, so an ordinary one stands for the copy here; `tests/service/test_edge.py` has
real ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta, tzinfo

import asyncpg
import pytest

from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.changes import ChangeWriter
from lakthan.store.feed import monotonic_seconds
from lakthan.store.pool import connect
from lakthan.store.records import Change, ChangeRequest
from lakthan.store.standby_feed import Seen, StandbyFeed
from support.database import OpenPool
from support.pki import new_ca

HOUR = timedelta(hours=1)


class Consumer:
    """What a responder would do with the feed, written down in order."""

    def __init__(self, database_url: str, most_age: timedelta) -> None:
        self.events: list[object] = []
        self.connections = 0
        self._url = database_url
        self.feed = StandbyFeed(
            self._connect,
            on_change=lambda _, serial_number, at: self.events.append((serial_number, at.tzinfo is not None)),
            on_many_changes=lambda _, __: self.events.append("many"),
            on_authority_change=lambda: self.events.append("authorities"),
            on_ready=lambda: self.events.append("ready"),
            on_lost=lambda _: self.events.append("lost"),
            most_age=most_age,
            poll=timedelta(milliseconds=20),
            bound=timedelta(seconds=2),
        )

    async def _connect(self) -> asyncpg.Connection:
        self.connections += 1
        return await connect(self._url, role="lakthan_responder", application_name="lakthan-standby-test")

    @property
    def serials(self) -> list[bytes]:
        """The certificates that were named, in order."""
        return [event[0] for event in self.events if isinstance(event, tuple)]


async def until(condition: Callable[[], object]) -> None:
    """Wait for it; the test's own time limit ends a wait for what never comes."""
    while not condition():  # noqa: ASYNC110 - the conditions are properties
        await asyncio.sleep(0.005)


@asynccontextmanager
async def following(url: str, *, most_age: timedelta = HOUR) -> AsyncIterator[Consumer]:
    """A feed that is in step with the database."""
    consumer = Consumer(url, most_age)
    task = asyncio.create_task(consumer.feed.run())
    try:
        await until(lambda: consumer.feed.heard)
        yield consumer
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def looked_again(consumer: Consumer) -> None:
    """Return after two more looks, the second of which began after this call."""
    for _ in range(2):
        before = consumer.feed.heard_until
        await until(lambda before=before: consumer.feed.heard_until > before)  # type: ignore[misc]


async def beat(url: str, at: datetime | None = None) -> None:
    """As the publisher does, or with an instant of ours."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("SELECT beat()")
        if at is not None:
            await connection.execute("UPDATE heartbeat SET at = $1", at)
    finally:
        await connection.close()


async def test_each_change_is_named(open_as: OpenPool, database_url: str, authority_id: int) -> None:
    """Revocations, holds and releases come with their serial number, in the order of their commits; first issues make
    nothing stale and are left out.
    """
    writer = ChangeWriter(await open_as("lakthan_registry"))
    async with following(database_url) as consumer:
        for number in range(3):
            await writer.issue(authority_id, bytes([1 + number]), actor="test")
        await writer.hold(authority_id, b"\x02", actor="test")
        await writer.revoke(authority_id, b"\x01", actor="test")
        await writer.unhold(authority_id, b"\x02", actor="test")
        await until(lambda: len(consumer.serials) == 3)
        assert consumer.serials == [b"\x02", b"\x01", b"\x02"]
        assert consumer.events == ["ready", *((serial, True) for serial in consumer.serials)]


async def test_a_long_transaction_that_commits_late(open_as: OpenPool, database_url: str, authority_id: int) -> None:
    """A change whose version was drawn early and which commits late is not missed."""
    pool = await open_as("lakthan_registry")
    async with following(database_url) as consumer:
        connection = await asyncpg.connect(database_url)
        try:
            await connection.execute("SELECT nextval('status_version')")
            async with connection.transaction():
                early = await connection.fetchval("SELECT nextval('status_version')")
                await ChangeWriter(pool).revoke(authority_id, b"\x01", actor="test")
                await until(lambda: consumer.serials == [b"\x01"])
                await connection.execute(
                    "INSERT INTO status_change (authority_id, serial_number, change, actor)"
                    " VALUES ($1, '\\x02', 'revoke', 'test')",
                    authority_id,
                )
            assert early is not None
        finally:
            await connection.close()
        await until(lambda: consumer.serials == [b"\x01", b"\x02"])


async def test_many_changes_are_told_as_one(open_as: OpenPool, database_url: str, authority_id: int) -> None:
    """Of a statement with more than a thousand changes the authority is named, not the certificates."""
    writer = ChangeWriter(await open_as("lakthan_registry"))
    async with following(database_url) as consumer:
        requests = [
            ChangeRequest(authority_id, (1000 + number).to_bytes(2, "big"), Change.REVOKE) for number in range(1001)
        ]
        await writer.record(requests, actor="test")
        await until(lambda: "many" in consumer.events)
        assert consumer.serials == []


async def test_what_cannot_be_found_is_not_passed_over(open_as: OpenPool, database_url: str, authority_id: int) -> None:
    """A record whose changes are not in the copy (their table is not replicated) makes everything stale."""
    writer = ChangeWriter(await open_as("lakthan_registry"))
    owner = await open_as(None)
    async with following(database_url) as consumer:
        async with owner.acquire() as connection, connection.transaction():
            await connection.execute("LOCK TABLE status_change IN SHARE ROW EXCLUSIVE MODE")
            await connection.execute(
                "INSERT INTO status_change (authority_id, serial_number, change, actor)"
                " VALUES ($1, '\\x05', 'revoke', 'test')",
                authority_id,
            )
            await connection.execute("ALTER TABLE status_change DISABLE TRIGGER append_only")
            await connection.execute("DELETE FROM status_change")
            await connection.execute("ALTER TABLE status_change ENABLE ALWAYS TRIGGER append_only")
        await until(lambda: "many" in consumer.events)
        await writer.revoke(authority_id, b"\x06", actor="test")
        await until(lambda: consumer.serials == [b"\x06"])


async def test_authorities(open_as: OpenPool, database_url: str, authority_id: int) -> None:
    """A new CA is heard of, and its changes from the first on; what concerns no answer is passed over."""
    pool = await open_as("lakthan_registry")
    async with following(database_url) as consumer:
        await pool.execute("INSERT INTO authority_policy (authority_id) VALUES ($1)", authority_id)
        new = await AuthorityAdmin(pool).add_authority("new-ca", [new_ca("new").der])
        await until(lambda: "authorities" in consumer.events)
        await looked_again(consumer)
        assert set(consumer.events) == {"ready", "authorities"}
        await ChangeWriter(pool).revoke(new, b"\x01", actor="test")
        await until(lambda: consumer.serials == [b"\x01"])


async def test_a_copy_that_went_back(open_as: OpenPool, database_url: str, authority_id: int) -> None:
    """A copy that was put back to an earlier state is a loss: everything is forgotten. It is not followed again before
    it has what was seen there; another record in that one's place does not count.
    """
    pool, owner = await open_as("lakthan_registry"), await open_as(None)
    await ChangeWriter(pool).revoke(authority_id, b"\x01", actor="test")
    last = "chain = $1 AND number = (SELECT max(number) FROM audit_record WHERE chain = $1)"
    await owner.execute(f"CREATE TABLE taken_off AS SELECT * FROM audit_record WHERE {last}", authority_id)
    await owner.execute("CREATE TABLE other AS SELECT * FROM taken_off")
    await owner.execute("UPDATE other SET at = at + interval '1 us'")
    await owner.execute("CREATE TABLE nothing AS SELECT * FROM taken_off WITH NO DATA")

    async def put_in_its_place(table: str) -> None:
        async with owner.acquire() as connection, connection.transaction():
            await connection.execute("ALTER TABLE audit_record DISABLE TRIGGER append_only")
            await connection.execute(
                "DELETE FROM audit_record USING taken_off WHERE audit_record.chain = taken_off.chain"
                " AND audit_record.number = taken_off.number"
            )
            await connection.execute(f"INSERT INTO audit_record SELECT * FROM {table}")
            await connection.execute("ALTER TABLE audit_record ENABLE ALWAYS TRIGGER append_only")

    async with following(database_url) as consumer:
        for table in ("nothing", "other"):
            await put_in_its_place(table)
            await until(lambda: consumer.events == ["ready", "lost"])
            seen = consumer.connections
            await until(lambda seen=seen: consumer.connections >= seen + 2)  # type: ignore[misc]
            assert consumer.events == ["ready", "lost"]
            assert not consumer.feed.heard
        await put_in_its_place("taken_off")
        await until(lambda: consumer.events == ["ready", "lost", "ready"])
        await until(lambda: consumer.feed.heard)


async def test_a_copy_without_its_chains(open_as: OpenPool, database_url: str, authority_id: int) -> None:
    """Without the audit chains nobody could tell what changes: such a copy is never in step."""
    owner = await open_as(None)
    await owner.execute("ALTER TABLE audit_record DISABLE TRIGGER append_only")
    await owner.execute("DELETE FROM audit_record")
    consumer = Consumer(database_url, HOUR)
    connection = await consumer._connect()
    try:
        with pytest.raises(Exception, match="audit_record must be replicated"):
            await consumer.feed._look(connection)
    finally:
        await connection.close()
    assert not consumer.feed.heard


async def test_its_age_and_its_bound(database_url: str, authority_id: int) -> None:
    """Trust ends when the last heartbeat is older than the bound, though all of the copy is heard; a heartbeat gives it
    back.
    """
    async with following(database_url, most_age=timedelta(seconds=60)) as consumer:
        assert consumer.feed.heartbeat is None
        assert not consumer.feed.trusted  # nobody knows how old it is
        await beat(database_url)
        await until(lambda: consumer.feed.trusted)
        await beat(database_url, datetime.now(UTC) - timedelta(seconds=61))
        await until(lambda: not consumer.feed.trusted)
        assert consumer.feed.heard
        await beat(database_url)
        await until(lambda: consumer.feed.trusted)


async def test_a_database_that_goes_silent(open_as: OpenPool, database_url: str, authority_id: int) -> None:
    """When looks are not answered any more, trust ends by the clock alone."""
    await beat(database_url)
    owner = await open_as(None)
    async with following(database_url) as consumer:
        await until(lambda: consumer.feed.trusted)
        async with owner.acquire() as connection, connection.transaction():
            await connection.execute("LOCK TABLE heartbeat IN ACCESS EXCLUSIVE MODE")
            await until(lambda: not consumer.feed.heard)
            assert not consumer.feed.trusted
        await until(lambda: consumer.feed.trusted)


def test_a_clock_set_back_makes_nothing_younger(monkeypatch: pytest.MonkeyPatch) -> None:
    """An instant ages by the clock that nobody sets, when the wall clock goes back or was behind from the beginning."""
    seen = Seen(datetime.now(UTC) - timedelta(minutes=10))
    ahead = Seen(datetime.now(UTC) + timedelta(minutes=10))
    assert timedelta(minutes=10) <= seen.age() < timedelta(minutes=11)
    assert timedelta(0) <= ahead.age() < timedelta(minutes=1)

    class Back(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) - timedelta(days=1)

    monkeypatch.setattr("lakthan.store.standby_feed.datetime", Back)
    assert timedelta(minutes=10) <= seen.age() < timedelta(minutes=11)
    monkeypatch.setattr("lakthan.store.standby_feed.monotonic_seconds", _later(3600))
    assert timedelta(minutes=70) <= seen.age() < timedelta(minutes=71)
    assert timedelta(minutes=60) <= ahead.age() < timedelta(minutes=61)


def _later(seconds: float) -> Callable[[], float]:
    return lambda: monotonic_seconds() + seconds
