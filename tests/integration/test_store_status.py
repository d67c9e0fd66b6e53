"""Look-ups: answers are right, gathered into few queries, and a failure reaches everybody who asked."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from lakthan.errors import StoreUnavailable
from lakthan.store.changes import ChangeWriter
from lakthan.store.records import CertStatus, Change, ChangeRequest, StatusRecord
from lakthan.store.status import StatusReader
from support.database import OpenPool


class Queries:
    """The look-ups that were sent, by the connections' own log; the driver also asks each new one about its types."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def __call__(self, query: asyncpg.connection.LoggedQuery) -> None:
        """Keep a look-up."""
        if "certificate_status" in query.query:
            self.sent.append(query.query)


async def announce(open_as: OpenPool, authority_id: int, count: int) -> list[bytes]:
    """Issue certificates; gives their serial numbers."""
    serials = [(0x0100 + number).to_bytes(2, "big") for number in range(count)]
    writer = ChangeWriter(await open_as("lakthan_registry"))
    await writer.record([ChangeRequest(authority_id, serial, Change.ISSUE) for serial in serials], "test")
    return serials


async def test_look_ups_of_one_turn_are_one_query(
    open_as: OpenPool, authority_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hundred questions asked in one turn of the event loop, some of them twice, reach the database as one."""
    serials = await announce(open_as, authority_id, 100)
    pool = await open_as("lakthan_responder", max_size=2)
    queries = count_queries(monkeypatch)
    reader = StatusReader(pool)
    answers = await asyncio.gather(*(reader.find(authority_id, serial) for serial in serials + serials))
    assert [answer.serial_number for answer in answers if answer is not None] == serials + serials
    assert len(queries.sent) == 1


async def test_unknown_serials_and_other_authorities_are_not_mixed_up(open_as: OpenPool, authority_id: int) -> None:
    """In a mixed query each asker gets its own answer, and nothing for what is not on record."""
    (serial,) = await announce(open_as, authority_id, 1)
    reader = StatusReader(await open_as("lakthan_responder"))
    known, unknown, foreign = await asyncio.gather(
        reader.find(authority_id, serial), reader.find(authority_id, b"\x01"), reader.find(authority_id + 1, serial)
    )
    assert known is not None
    assert known.cert_status is CertStatus.GOOD
    assert unknown is None
    assert foreign is None


async def test_under_load_questions_gather_while_connections_are_busy(
    open_as: OpenPool, authority_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the only connection busy, questions of many turns wait together and go as one query."""
    serials = await announce(open_as, authority_id, 20)
    pool = await open_as("lakthan_responder", max_size=1)
    queries = count_queries(monkeypatch)
    reader = StatusReader(pool)
    waiting = []
    async with pool.acquire():
        for serial in serials:
            waiting.append(asyncio.create_task(reader.find(authority_id, serial)))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
    answers = await asyncio.gather(*waiting)
    assert [answer.serial_number for answer in answers if answer is not None] == serials
    assert len(queries.sent) == 2  # the first question alone, all later ones together


async def test_an_answer_is_never_older_than_its_question(open_as: OpenPool, authority_id: int) -> None:
    """Who asks after a revocation was committed never gets the answer of a query that was already under way."""
    (serial,) = await announce(open_as, authority_id, 1)
    registry = await open_as("lakthan_registry")
    reader = StatusReader(await open_as("lakthan_responder", max_size=2))
    writer = ChangeWriter(registry)
    early = [asyncio.create_task(reader.find(authority_id, serial)) for _ in range(5)]
    await asyncio.sleep(0)
    await writer.revoke(authority_id, serial, actor="test")
    late = await reader.find(authority_id, serial)
    assert late is not None
    assert late.cert_status is CertStatus.REVOKED
    assert all(answer is not None for answer in await asyncio.gather(*early))


async def test_a_cancelled_waiter_takes_nobody_with_it(open_as: OpenPool, authority_id: int) -> None:
    """One asker that gives up, before or after the query is sent, does not disturb another one of the same question."""
    (serial,) = await announce(open_as, authority_id, 1)
    reader = StatusReader(await open_as("lakthan_responder"))
    for turns in range(4):
        gives_up = asyncio.create_task(reader.find(authority_id, serial))
        stays = asyncio.create_task(reader.find(authority_id, serial))
        for _ in range(turns):
            await asyncio.sleep(0)
        gives_up.cancel()
        answer = await stays
        assert answer is not None
        with pytest.raises(asyncio.CancelledError):
            await gives_up


async def test_a_failure_reaches_every_waiter_and_the_next_question_works(open_as: OpenPool, authority_id: int) -> None:
    """When the database ends the connection in mid-query, all askers hear StoreUnavailable; later ones are served."""
    (serial,) = await announce(open_as, authority_id, 1)
    owner = await open_as(None)
    pool = await open_as("lakthan_responder", max_size=1)
    reader = StatusReader(pool)
    async with owner.acquire() as connection, connection.transaction():
        await connection.execute("LOCK TABLE certificate_status IN ACCESS EXCLUSIVE MODE")
        askers = [asyncio.create_task(reader.find(authority_id, serial)) for _ in range(3)]
        waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        while not (pid := await connection.fetchval(waiting)):  # noqa: ASYNC110 - the server has no event to offer
            await asyncio.sleep(0.01)
        await connection.execute("SELECT pg_terminate_backend($1)", pid)
        outcomes = await asyncio.gather(*askers, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 3
    assert await reader.find(authority_id, serial) is not None


async def test_a_closed_pool_is_an_unavailable_store(open_as: OpenPool, authority_id: int) -> None:
    """After the pool was closed every question is answered with StoreUnavailable, and none hangs."""
    pool = await open_as("lakthan_responder")
    reader = StatusReader(pool)
    await pool.close()
    with pytest.raises(StoreUnavailable):
        await reader.find(authority_id, b"\x01")


def count_queries(monkeypatch: pytest.MonkeyPatch) -> Queries:
    """From now on, write down each statement as it is sent.

    The pool takes asyncpg's query loggers off a connection that comes back to it, so each one is put on when it leaves.
    """
    queries = Queries()
    acquire = asyncpg.pool.PoolConnectionHolder.acquire

    async def acquire_logged(holder: asyncpg.pool.PoolConnectionHolder) -> object:
        connection = await acquire(holder)
        connection.add_query_logger(queries)
        return connection

    monkeypatch.setattr(asyncpg.pool.PoolConnectionHolder, "acquire", acquire_logged)
    return queries


async def test_who_is_told_by_a_call(open_as: OpenPool, authority_id: int) -> None:
    """Each is told once and in its own call: what one of them does wrong is not the others' business."""
    (serial,) = await announce(open_as, authority_id, 1)
    reader = StatusReader(await open_as("lakthan_responder"))
    defects: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: defects.append(context["exception"]))
    told: list[tuple[StatusRecord | None, Exception | None]] = []
    everybody = asyncio.Event()

    def clumsy(_record: StatusRecord | None, _error: Exception | None) -> None:
        raise ArithmeticError

    def careful(record: StatusRecord | None, error: Exception | None) -> None:
        told.append((record, error))
        if len(told) == 2:
            everybody.set()

    for tell in (clumsy, careful):
        reader.ask((authority_id, serial), tell)
        reader.ask((authority_id, b"\x01"), tell)
    await everybody.wait()
    assert {(record.serial_number if record else None, error) for record, error in told} == {
        (serial, None),
        (None, None),
    }
    assert [type(defect) for defect in defects] == [ArithmeticError, ArithmeticError]
