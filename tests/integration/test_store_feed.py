"""The change feed: every change arrives, or the loss is noticed; and trust never outlives its proof."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest

from lakthan.errors import StoreUnavailable
from lakthan.store.changes import ChangeWriter
from lakthan.store.embedded import EmbeddedPostgres
from lakthan.store.feed import FEED_NAME, ChangeFeed, monotonic_seconds
from lakthan.store.migrate import migrate
from lakthan.store.pool import connect
from lakthan.store.records import CertStatus, Change, ChangeRequest, CRLReason, StatusRecord
from support.database import OpenPool

HEARTBEAT = timedelta(milliseconds=100)
BOUND = timedelta(milliseconds=600)


class Consumer:
    """What a responder would do with the feed, written down."""

    def __init__(self) -> None:
        self.changes: list[StatusRecord] = []
        self.dates: list[datetime | None] = []
        self.many: list[tuple[int, datetime | None]] = []
        self.authority_changes = 0
        self.events: list[str] = []
        self.reasons: list[Exception] = []
        self.trust_when_lost: list[bool] = []
        self.proven_when_lost: list[float] = []
        self.feed: ChangeFeed | None = None
        self.fails = False

    def on_change(self, record: StatusRecord, changed_at: datetime | None) -> None:
        """Keep it."""
        if self.fails:
            raise RuntimeError("the consumer failed")
        self.changes.append(record)
        self.dates.append(changed_at)

    def on_many_changes(self, authority_id: int, changed_at: datetime | None) -> None:
        """Keep it."""
        self.many.append((authority_id, changed_at))

    def on_authority_change(self) -> None:
        """Count it."""
        self.authority_changes += 1

    def on_ready(self) -> None:
        """Keep the order of events."""
        self.events.append("ready")

    def on_lost(self, why: Exception) -> None:
        """Keep the order of events, and what the feed said about itself at that moment."""
        self.events.append("lost")
        self.reasons.append(why)
        assert self.feed is not None
        self.trust_when_lost.append(self.feed.trusted)
        self.proven_when_lost.append(self.feed._proven)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for it; the test's own time limit ends a wait for what never comes."""
    while not condition():  # noqa: ASYNC110 - the conditions are properties
        await asyncio.sleep(0.005)


@asynccontextmanager
async def following(url: str) -> AsyncIterator[Consumer]:
    """A feed that runs on the database, and its consumer."""
    consumer = Consumer()

    async def connect_feed() -> asyncpg.Connection:
        return await connect(url, role="lakthan_responder", application_name="lakthan-test")

    consumer.feed = ChangeFeed(
        connect_feed,
        on_change=consumer.on_change,
        on_many_changes=consumer.on_many_changes,
        on_authority_change=consumer.on_authority_change,
        on_ready=consumer.on_ready,
        on_lost=consumer.on_lost,
        heartbeat=HEARTBEAT,
        bound=BOUND,
    )
    task = asyncio.create_task(consumer.feed.run())
    try:
        yield consumer
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def trusted(consumer: Consumer) -> bool:
    """Whether the consumer may use its caches now."""
    assert consumer.feed is not None
    return consumer.feed.trusted


def proven_after(instant: float, consumer: Consumer) -> Callable[[], bool]:
    """Tells when a heartbeat that was sent after this instant has come back."""
    feed = consumer.feed
    assert feed is not None
    return lambda: feed._proven > instant


async def backend_of_feed(pool: asyncpg.Pool) -> int:
    """The process of the server that serves the feed of this test's database."""
    pid: int = await pool.fetchval(
        "SELECT pid FROM pg_stat_activity WHERE application_name = $1 AND datname = current_database()", FEED_NAME
    )
    return pid


async def test_changes_arrive_as_they_are_on_record(open_as: OpenPool, database_url: str, authority_id: int) -> None:
    """A revocation, a hold and its release are handed out in order, with everything that the status holds."""
    registry = await open_as("lakthan_registry")
    writer = ChangeWriter(registry)
    async with following(database_url) as consumer:
        await until(lambda: trusted(consumer))
        await writer.issue(authority_id, b"\x80", actor="test")
        versions = [
            await writer.hold(authority_id, b"\x80", actor="test"),
            await writer.unhold(authority_id, b"\x80", actor="test"),
            await writer.revoke(authority_id, b"\x80", reason=CRLReason.KEY_COMPROMISE, actor="test"),
        ]
        await until(lambda: len(consumer.changes) == 3)
        assert [record.version for record in consumer.changes] == versions
        assert [record.cert_status for record in consumer.changes] == [
            CertStatus.REVOKED,
            CertStatus.GOOD,
            CertStatus.REVOKED,
        ]
        last = consumer.changes[-1]
        assert (last.authority_id, last.serial_number) == (authority_id, b"\x80")
        assert last.revocation_reason is CRLReason.KEY_COMPROMISE
        assert last.revocation_time is not None
        assert last.revocation_time.utcoffset() == timedelta(0)
        await registry.execute("UPDATE authority SET name = 'renamed'")
        await until(lambda: consumer.authority_changes == 1)
    assert consumer.events == ["ready", "lost"]


async def test_a_heartbeat_proves_what_was_committed_before_it(
    open_as: OpenPool, database_url: str, authority_id: int
) -> None:
    """When a later round trip on the listening connection is back, the change is there: what `trusted` rests on."""
    writer = ChangeWriter(await open_as("lakthan_registry"))
    listener = await connect(database_url, role="lakthan_responder", application_name="lakthan-test")
    heard: list[object] = []
    await listener.add_listener("lakthan_status", lambda *parts: heard.append(parts))
    for number in range(1, 100):
        await writer.revoke(authority_id, bytes([number]), actor="test")
        await listener.fetchval("SELECT 1")
        assert len(heard) == number
    await listener.close()


async def test_a_terminated_connection_ends_the_trust_at_once(
    open_as: OpenPool, database_url: str, authority_id: int
) -> None:
    """The consumer hears of the loss, not trusting the feed any more, then of the return; what follows arrives."""
    owner = await open_as(None)
    writer = ChangeWriter(await open_as("lakthan_registry"))
    async with following(database_url) as consumer:
        await until(lambda: trusted(consumer))
        await owner.execute("SELECT pg_terminate_backend($1)", await backend_of_feed(owner))
        await until(lambda: consumer.events == ["ready", "lost", "ready"])
        assert consumer.trust_when_lost == [False]
        assert isinstance(consumer.reasons[0], StoreUnavailable)
        await writer.revoke(authority_id, b"\x01", actor="test")
        await until(lambda: len(consumer.changes) == 1)
        assert trusted(consumer)


async def test_a_silent_connection_loses_the_trust(open_as: OpenPool, database_url: str, authority_id: int) -> None:
    """A server process that is stopped keeps its connection open and says nothing: the trust ends by the clock.

    The change that is recorded meanwhile is not heard, which is why the consumer empties its caches.
    """
    owner = await open_as(None)
    writer = ChangeWriter(await open_as("lakthan_registry"))
    async with following(database_url) as consumer:
        await until(lambda: trusted(consumer))
        pid = await backend_of_feed(owner)
        try:
            os.kill(pid, signal.SIGSTOP)
        except (ProcessLookupError, PermissionError):
            pytest.skip("the server given by LAKTHAN_TEST_DATABASE_URL is not on this machine, or not ours to stop")
        try:
            await writer.revoke(authority_id, b"\x01", actor="test")
            await until(lambda: "lost" in consumer.events)
            assert consumer.trust_when_lost[0] is False
            assert consumer.changes == []
            await until(lambda: consumer.events[-1] == "ready")
            assert trusted(consumer)
        finally:
            os.kill(pid, signal.SIGCONT)


async def test_a_standing_event_loop_loses_the_trust_until_the_next_proof(database_url: str) -> None:
    """After the process itself stood still, the feed is not trusted before a new heartbeat is back."""
    async with following(database_url) as consumer:
        await until(lambda: trusted(consumer))
        stop_the_loop_for(BOUND)
        assert not trusted(consumer)
        await until(lambda: trusted(consumer))


def stop_the_loop_for(duration: timedelta) -> None:
    """Block, as a paused virtual machine would."""
    time.sleep(duration.total_seconds())


@pytest.mark.parametrize("payload", ["not json", "{}", '{"cert_status": "maybe"}', "[]"])
async def test_a_notification_that_makes_no_sense_ends_the_trust(
    open_as: OpenPool, database_url: str, payload: str
) -> None:
    """A change that cannot be understood may be about any certificate, so nothing cached is believed any more."""
    owner = await open_as(None)
    async with following(database_url) as consumer:
        await until(lambda: trusted(consumer))
        await owner.execute("SELECT pg_notify('lakthan_status', $1)", payload)
        await until(lambda: consumer.events == ["ready", "lost", "ready"])
        assert consumer.changes == []


async def test_changes_by_the_thousand_come_as_one_word(open_as: OpenPool, database_url: str) -> None:
    """A statement that changed more certificates than it names says of which authority they are, and when it was."""
    owner = await open_as(None)
    payload = {"authority_id": 7, "all": True, "version": 12_000, "changed_at": "2026-11-22T07:00:00.25+07:00"}
    async with following(database_url) as consumer:
        await until(lambda: trusted(consumer))
        await owner.execute("SELECT pg_notify('lakthan_status', $1)", json.dumps(payload))
        await until(lambda: bool(consumer.many))
        assert consumer.many == [(7, datetime(2026, 11, 22, 0, 0, 0, 250_000, UTC))]
        assert trusted(consumer)


@pytest.mark.parametrize("changed_at", [None, "2026-11-22T00:00:00.25+00:00"])
async def test_a_change_tells_when_it_was_if_the_database_says_so(
    open_as: OpenPool, database_url: str, changed_at: str | None
) -> None:
    """The instant of the change is handed out; a database of the first schema, which does not say it, is heard too."""
    owner = await open_as(None)
    payload = {
        **dict.fromkeys(("revocation_reason", "invalidity_date", "not_after", "certificate_sha256")),
        "authority_id": 7,
        "serial_number": "80",
        "cert_status": "revoked",
        "version": 9,
        "revocation_time": "2026-11-21T23:00:00+00:00",
        **({} if changed_at is None else {"changed_at": changed_at}),
    }
    async with following(database_url) as consumer:
        await until(lambda: trusted(consumer))
        await owner.execute("SELECT pg_notify('lakthan_status', $1)", json.dumps(payload))
        await until(lambda: bool(consumer.changes))
        assert consumer.dates == [None if changed_at is None else datetime.fromisoformat(changed_at)]


async def test_an_answer_proves_that_earlier_changes_were_handed_out(
    open_as: OpenPool, database_url: str, authority_id: int
) -> None:
    """Whoever asks after a commit gets the feed's word back, by when its consumer has had every earlier change.

    Many questions at once are answered, in fewer words than there were questions; each answer says by its sender which
    session it comes from.
    """
    writer = ChangeWriter(await open_as("lakthan_registry"))
    asker = await connect(database_url, role="lakthan_registry", application_name="lakthan-test")
    answers: list[tuple[int, list[str], int]] = []
    async with following(database_url) as consumer:
        await asker.add_listener(
            "lakthan_served",
            lambda _connection, pid, _channel, text: answers.append((pid, str(text).split(), len(consumer.changes))),
        )
        await until(lambda: trusted(consumer))
        pid = await backend_of_feed(await open_as(None))
        for number in range(1, 20):
            answers.clear()
            await writer.revoke(authority_id, bytes([number]), actor="test")
            asked = [f"{number}x{part}" for part in range(50)]
            await asker.execute("SELECT pg_notify('lakthan_ask', ask) FROM unnest($1::text[]) AS ask", asked)
            await until(lambda asked=asked: sorted(each for _, some, _ in answers for each in some) == sorted(asked))  # type: ignore[misc]
            assert {sender for sender, _, _ in answers} == {pid}
            assert min(changes for _, _, changes in answers) == number
            assert len(answers) < len(asked)
        assert consumer.events == ["ready"]
    await asker.close()


async def test_a_consumer_at_work_holds_the_answers(open_as: OpenPool, database_url: str) -> None:
    """A consumer that needs time to take a change in can have questions wait until it has; the heartbeat goes on."""
    asker = await connect(database_url, role="lakthan_registry", application_name="lakthan-test")
    answers: list[str] = []
    async with following(database_url) as consumer:
        await asker.add_listener("lakthan_served", lambda _c, _p, _ch, text: answers.extend(str(text).split()))
        await until(lambda: trusted(consumer))
        assert consumer.feed is not None
        consumer.feed.hold_answers()
        await asker.execute("SELECT pg_notify('lakthan_ask', 'first')")
        await asker.execute("SELECT pg_notify('lakthan_ask', 'second')")
        await until(lambda: len(consumer.feed._asks) == 2 if consumer.feed else False)
        await until(proven_after(monotonic_seconds(), consumer))
        await asker.fetchval("SELECT 1")
        assert answers == []
        consumer.feed.give_answers()
        await until(lambda: len(answers) == 2)
        assert answers == ["first", "second"]
    await asker.close()


async def test_odd_questions_cost_nothing(open_as: OpenPool, database_url: str) -> None:
    """A question that is empty, long or not plain letters and digits is not answered, and shakes nobody's trust."""
    owner = await open_as(None)
    asker = await connect(database_url, role="lakthan_registry", application_name="lakthan-test")
    answers: list[str] = []
    async with following(database_url) as consumer:
        await until(lambda: trusted(consumer))
        await asker.add_listener("lakthan_served", lambda _c, _p, _ch, text: answers.append(str(text)))
        for odd in ("", "two words", "ຖາມ", "a" * 65, '{"ask": "x"}'):
            await owner.execute("SELECT pg_notify('lakthan_ask', $1)", odd)
        await owner.execute("SELECT pg_notify('lakthan_ask', 'sensible')")
        await until(lambda: bool(answers))
        assert answers == ["sensible"]
        assert consumer.events == ["ready"]
    await asker.close()


async def test_a_feed_announces_itself_before_it_is_trusted(open_as: OpenPool, database_url: str) -> None:
    """Nobody is trusted whom those who wait for `served` do not know: each connection says first that it is there."""
    listener = await connect(database_url, role="lakthan_registry", application_name="lakthan-test")
    announced: list[tuple[int, str]] = []
    async with following(database_url) as consumer:
        await listener.add_listener("lakthan_served", lambda _c, pid, _ch, text: announced.append((pid, str(text))))
        await until(lambda: trusted(consumer))
        owner = await open_as(None)
        await owner.execute("SELECT pg_terminate_backend($1)", await backend_of_feed(owner))
        await until(lambda: consumer.events == ["ready", "lost", "ready"])
        await listener.fetchval("SELECT 1")
        assert announced[-1] == (await backend_of_feed(owner), "")
    await listener.close()


async def test_a_consumer_that_fails_is_told_to_start_afresh(
    open_as: OpenPool, database_url: str, authority_id: int
) -> None:
    """A consumer that fails on a change has not dropped what it should, so it is told that the feed is lost."""
    writer = ChangeWriter(await open_as("lakthan_registry"))
    async with following(database_url) as consumer:
        await until(lambda: trusted(consumer))
        consumer.fails = True
        await writer.revoke(authority_id, b"\x01", actor="test")
        await until(lambda: "lost" in consumer.events)
        assert isinstance(consumer.reasons[0], RuntimeError)
        consumer.fails = False
        await until(lambda: trusted(consumer))


async def test_a_restarted_server_is_found_again(tmp_path: Path) -> None:
    """The server goes and comes back: lost, and ready again, and only then trusted."""
    server = EmbeddedPostgres(tmp_path, durable=False)
    await asyncio.to_thread(server.start)
    try:
        await migrate(server.url())
        async with following(server.url()) as consumer:
            await until(lambda: trusted(consumer))
            await asyncio.to_thread(server.stop)
            await until(lambda: consumer.events == ["ready", "lost"])
            assert not trusted(consumer)
            await asyncio.to_thread(server.start)
            await until(lambda: consumer.events == ["ready", "lost", "ready"])
            assert trusted(consumer)
    finally:
        await asyncio.to_thread(server.stop)


async def test_under_a_storm_of_losses_no_change_is_missed_while_trusted(
    open_as: OpenPool, database_url: str, authority_id: int
) -> None:
    """The connection breaks again and again while certificates are revoked: every loss is told, once, and every change
    whose commit was followed by a proof on the same connection arrives. A machine that stands still for a moment, which
    is a loss of its own, changes nothing of this.
    """
    owner = await open_as(None)
    writer = ChangeWriter(await open_as("lakthan_registry"))
    serials = [bytes([1 + number // 100, number % 100]) for number in range(120)]
    await writer.record([ChangeRequest(authority_id, serial, Change.ISSUE) for serial in serials], "test")
    recorded: list[tuple[bytes, int, float]] = []  # in which stretch between two losses, and when it was confirmed
    ready, losses, cut = False, 0, list[int]()
    async with following(database_url) as consumer:
        await until(lambda: trusted(consumer))
        for number, serial in enumerate(serials):
            if number % 20 == 10:
                await until(proven_after(monotonic_seconds(), consumer))
                ready, losses = consumer.events[-1] == "ready", consumer.events.count("lost")
                cut = await cut_feeds(owner)
            if consumer.events[-1] == "ready":
                stretch = consumer.events.count("lost")
                await writer.revoke(authority_id, serial, actor="test")
                recorded.append((serial, stretch, monotonic_seconds()))
            else:
                await writer.revoke(authority_id, serial, actor="test")
            if number % 40 == 17:
                stop_the_loop_for(BOUND)
            if number % 20 == 15:
                while set(await backends_of_feeds(owner)) & set(cut):  # noqa: ASYNC110 - the server's list
                    await asyncio.sleep(0.005)
                await until(proven_after(monotonic_seconds(), consumer))
                await until(lambda: consumer.events[-1] == "ready")
                assert consumer.events.count("lost") > losses or not ready
        await until(proven_after(monotonic_seconds(), consumer))
        assert consumer.feed is not None
        proven = [*consumer.proven_when_lost, consumer.feed._proven]
        told = list(consumer.events)
    assert set(told[::2]) == {"ready"}
    assert set(told[1::2]) == {"lost"}
    assert not any(consumer.trust_when_lost)
    due = {serial for serial, stretch, confirmed in recorded if confirmed <= proven[stretch]}
    assert due <= {record.serial_number for record in consumer.changes}
    assert len(due) >= 20


async def backends_of_feeds(pool: asyncpg.Pool) -> list[int]:
    """The server's processes for feeds of this test's database."""
    rows = await pool.fetch(
        "SELECT pid FROM pg_stat_activity WHERE application_name = $1 AND datname = current_database()", FEED_NAME
    )
    return [row["pid"] for row in rows]


async def cut_feeds(pool: asyncpg.Pool) -> list[int]:
    """End every connection of a feed that there is, at least one; gives their processes."""
    while not (pids := await backends_of_feeds(pool)):  # noqa: ASYNC110 - the server's list
        await asyncio.sleep(0.005)
    await pool.execute("SELECT pg_terminate_backend(pid) FROM unnest($1::integer[]) AS pid", pids)
    return pids
