"""Answers signed ahead in a real database: what comes on record, what is wanted, and who may do what."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from lakthan.algorithms import HashAlgorithm
from lakthan.store.bulk import import_issued
from lakthan.store.changes import ChangeRefused, ChangeWriter
from lakthan.store.leadership import leading
from lakthan.store.pool import connect
from lakthan.store.presigned import Presigned, PresignedAnswer
from lakthan.store.published import AnswerPublisher, Found, PublishedAnswer, PublishedReader, Standing
from lakthan.store.records import CertStatus, Change, CRLReason
from support.database import OpenPool

NOW = datetime.now(UTC).replace(microsecond=0)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
SHA_1, SHA_256 = HashAlgorithm.SHA_1, HashAlgorithm.SHA_256
BOTH = (SHA_1, SHA_256)
FIRST, SECOND, THIRD = b"\x01", b"\x02", b"\x03"


def answer(
    serial_number: bytes,
    version: int,
    response: bytes = b"signed",
    *,
    this_update: datetime = NOW,
    due: timedelta = HOUR,
    algorithm: HashAlgorithm = SHA_256,
    status: CertStatus = CertStatus.GOOD,
) -> PresignedAnswer:
    """An answer; the store does not look into its octets."""
    return PresignedAnswer(
        serial_number,
        algorithm,
        status,
        version,
        this_update,
        this_update,
        this_update + DAY,
        this_update + due,
        response,
    )


@pytest.fixture
async def writer(open_as: OpenPool, authority_id: int) -> ChangeWriter:
    """The operator, with three certificates on record as good."""
    writer = ChangeWriter(await open_as("lakthan_registry"))
    for serial_number in (FIRST, SECOND, THIRD):
        await writer.issue(authority_id, serial_number, actor="test")
    return writer


@pytest.fixture
async def store(open_as: OpenPool, authority_id: int, writer: ChangeWriter) -> Presigned:
    """A publisher that has said that it signs ahead."""
    del writer
    store = Presigned(await open_as("lakthan_presigner"))
    await store.register(authority_id, BOTH, keep_expired=True)
    return store


@pytest.fixture
async def reader(open_as: OpenPool) -> PublishedReader:
    """A responder."""
    return PublishedReader(await open_as("lakthan_responder"))


async def version_of(store: Presigned, authority_id: int, serial_number: bytes) -> int:
    """Of the status on record."""
    [record] = await store.records(authority_id, [serial_number])
    return record.version


async def test_each_answer_takes_the_place_of_the_one_before(
    store: Presigned, reader: PublishedReader, open_as: OpenPool, authority_id: int
) -> None:
    """A new answer is the only one on record, and a responder gives it out until it is due."""
    version = await version_of(store, authority_id, FIRST)
    for hours, response in ((0, b"old"), (0, b"same second"), (1, b"new")):
        assert await store.put(authority_id, [answer(FIRST, version, response, this_update=NOW + hours * HOUR)]) == 0
    owner = await open_as(None)
    assert [row["response"] for row in await owner.fetch("SELECT response FROM published_answer")] == [b"new"]
    standing, found = await reader.find(authority_id, FIRST, SHA_256, NOW + HOUR)
    assert standing is Standing.CURRENT
    assert isinstance(found, Found)
    assert (found.answer.response, found.newest_until) == (b"new", NOW + 2 * HOUR)
    _, late = await reader.find(authority_id, FIRST, SHA_256, NOW + 3 * HOUR)
    assert late is not None
    assert late.newest_until == NOW + 3 * HOUR + timedelta(seconds=10)  # the publisher is behind: look again soon


async def test_what_changed_meanwhile_is_not_taken(
    store: Presigned, writer: ChangeWriter, reader: PublishedReader, authority_id: int
) -> None:
    """An answer about an older status is refused and takes nothing away; the others of the same call come on record."""
    first, second = [await version_of(store, authority_id, serial) for serial in (FIRST, SECOND)]
    await writer.revoke(authority_id, FIRST, actor="test")
    newer = await version_of(store, authority_id, FIRST)
    revoked = answer(FIRST, newer, b"revoked", status=CertStatus.REVOKED)
    assert await store.put(authority_id, [revoked]) == 0
    assert await store.put(authority_id, [answer(FIRST, first, b"late"), answer(SECOND, second)]) == 1
    _, found = await reader.find(authority_id, FIRST, SHA_256, NOW)
    assert found is not None
    assert found.answer.response == b"revoked"
    assert (await reader.find(authority_id, SECOND, SHA_256, NOW))[0] is Standing.CURRENT


async def test_what_is_owed(
    store: Presigned, writer: ChangeWriter, reader: PublishedReader, authority_id: int, open_as: OpenPool
) -> None:
    """For a certificate on record without an answer one is owed; for another hash, one that is not on record, and an
    expired one that is not kept there is none.
    """
    await writer.issue(authority_id, b"\x04", not_after=NOW - HOUR, actor="test")
    asked = [(FIRST, SHA_256), (FIRST, HashAlgorithm.SHA_384), (b"\x09", SHA_256), (b"\x04", SHA_1)]
    said = [(await reader.find(authority_id, *each, NOW))[0] for each in asked]
    assert said == [Standing.NOT_YET, Standing.NONE, Standing.NONE, Standing.NOT_YET]
    await store.register(authority_id, [SHA_256], keep_expired=False)
    assert (await reader.find(authority_id, b"\x04", SHA_256, NOW))[0] is Standing.NONE
    owner = await open_as(None)
    records = await owner.fetchval("SELECT count(*) FROM audit_record WHERE detail LIKE '%presigned_authority%'")
    await store.register(authority_id, [SHA_256], keep_expired=False)
    assert records == 2
    again = await owner.fetchval("SELECT count(*) FROM audit_record WHERE detail LIKE '%presigned_authority%'")
    assert again == 2  # nothing new, nothing recorded


async def test_what_was_found_before_it_was_announced(
    store: Presigned, writer: ChangeWriter, authority_id: int
) -> None:
    """Wanted for what was announced is only what has no answer that says what is on record and still holds, and nothing
    for what is not on record.
    """
    first, second = [await version_of(store, authority_id, serial) for serial in (FIRST, SECOND)]
    await store.put(authority_id, [answer(FIRST, first), answer(FIRST, first, algorithm=SHA_1)])
    await store.put(authority_id, [answer(SECOND, second)])

    async def wanted(now: datetime = NOW) -> list[tuple[bytes, str]]:
        announced = await store.announced(authority_id, [FIRST, SECOND, b"\x09"], BOTH, now)
        return sorted((each.record.serial_number, each.cert_id_hash.label) for each in announced)

    assert await wanted() == [(SECOND, "SHA-1")]
    assert len(await wanted(NOW + 2 * DAY)) == 4
    await writer.revoke(authority_id, FIRST, actor="test")
    assert await wanted() == [(FIRST, "SHA-1"), (FIRST, "SHA-256"), (SECOND, "SHA-1")]


async def test_what_is_due(store: Presigned, authority_id: int) -> None:
    """What is due is given with the status as it is now, the longest due first; and how much that is."""
    versions = [await version_of(store, authority_id, serial) for serial in (FIRST, SECOND, THIRD)]
    dues = (timedelta(minutes=20), timedelta(minutes=10), 2 * HOUR)
    answers = [
        answer(serial, version, due=due)
        for serial, version, due in zip((FIRST, SECOND, THIRD), versions, dues, strict=True)
    ]
    await store.put(authority_id, answers)
    due = await store.due(authority_id, NOW, NOW + HOUR, 10)
    assert [(each.record.serial_number, each.due_at) for each in due] == [
        (SECOND, NOW + dues[1]),
        (FIRST, NOW + dues[0]),
    ]
    assert await store.due(authority_id, NOW, NOW + HOUR, 1) == due[:1]
    assert await store.due(authority_id, NOW + dues[0], NOW + HOUR, 10) == due[1:]
    assert await store.backlog(authority_id, NOW + HOUR) == (2, NOW + dues[1], NOW + DAY)
    await store.drop(authority_id, [(SECOND, SHA_256)])
    assert await store.backlog(authority_id, NOW + HOUR) == (1, NOW + dues[0], NOW + DAY)


async def test_what_is_missing(store: Presigned, writer: ChangeWriter, authority_id: int) -> None:
    """A look at all certificates finds those without an answer, with one that has ended or says otherwise, or one that
    holds no longer than until it is due; page by page.
    """
    for number, serial in enumerate((FIRST, SECOND, THIRD)):
        version = await version_of(store, authority_id, serial)
        for algorithm in BOTH:
            due = DAY if (number, algorithm) == (2, SHA_1) else HOUR
            await store.put(authority_id, [answer(serial, version, algorithm=algorithm, due=due)])
    await writer.hold(authority_id, SECOND, actor="test")
    await store.drop(authority_id, [(FIRST, SHA_1)])

    async def missing(after: bytes, now: datetime = NOW, *, all_revoked: bool = False) -> list[tuple[bytes, str]]:
        page = await store.missing(authority_id, after, BOTH, now, all_revoked=all_revoked, most=100)
        assert page.last is None
        return [(each.record.serial_number, each.cert_id_hash.label) for each in page.wanted]

    assert await missing(b"") == [(FIRST, "SHA-1"), (SECOND, "SHA-1"), (SECOND, "SHA-256"), (THIRD, "SHA-1")]
    assert await missing(SECOND) == [(THIRD, "SHA-1")]
    assert len(await missing(b"", NOW + 2 * DAY)) == 6
    assert len(await missing(b"", all_revoked=True)) == 6
    first = await store.missing(authority_id, b"", BOTH, NOW, all_revoked=False, most=2)
    assert (first.looked_at, first.last) == (2, SECOND)
    rest = await store.missing(authority_id, SECOND, BOTH, NOW, all_revoked=False, most=2)
    assert (rest.looked_at, rest.last) == (1, None)


async def test_what_has_changed(store: Presigned, writer: ChangeWriter, open_as: OpenPool, authority_id: int) -> None:
    """Changes are told once each, also those of imports; of too many at once only that there were."""
    position = await store.position(authority_id)
    await writer.revoke(authority_id, FIRST, reason=CRLReason.SUPERSEDED, actor="test")
    crowd = [(bytes([0x30, number]), None, None, None, None, None) for number in range(50)]
    await import_issued(await open_as("lakthan_registry"), authority_id, crowd, actor="test", through="test")
    changes = await store.changes(authority_id, position)
    assert [(each.serial_number, each.change) for each in changes.certificates[:1]] == [(FIRST, Change.REVOKE)]
    assert {each.serial_number for each in changes.certificates[1:]} == {each[0] for each in crowd}
    assert (changes.many, changes.authority, changes.more) == (False, False, False)
    assert changes.number == await store.position(authority_id)
    assert (await store.changes(authority_id, changes.number)).certificates == []
    responder = await open_as("lakthan_responder")
    rows = await responder.fetch("SELECT * FROM changes_after($1, $2, 10)", authority_id, position)
    assert [(row["serial_number"], row["change_count"]) for row in rows] == [(FIRST, 1), (None, 50)]


async def test_a_ceremony_and_a_publisher_do_not_mix(store: Presigned, open_as: OpenPool, authority_id: int) -> None:
    """Where the answers of a ceremony still hold nobody may sign ahead, and they cannot be taken away."""
    ceremony = AnswerPublisher(await open_as("lakthan_registry"))
    await ceremony.publish(
        authority_id, [PublishedAnswer(FIRST, SHA_256, CertStatus.GOOD, NOW, NOW, NOW + DAY, b"ceremony")], "test"
    )
    with pytest.raises(ChangeRefused, match="come from ceremonies"):
        await store.register(authority_id, BOTH, keep_expired=True)
    version = await version_of(store, authority_id, FIRST)
    for this_update in (NOW, NOW + HOUR):
        await store.put(authority_id, [answer(FIRST, version, b"ahead", this_update=this_update)])
    await store.drop(authority_id, [(FIRST, SHA_256)])
    owner = await open_as(None)
    assert [row["response"] for row in await owner.fetch("SELECT response FROM published_answer")] == [b"ceremony"]


async def test_only_a_publisher_may(store: Presigned, open_as: OpenPool, authority_id: int) -> None:
    """No other role can sign ahead or write the heartbeat, and nobody for an authority that is not registered."""
    version = await version_of(store, authority_id, FIRST)
    for role in ("lakthan_responder", "lakthan_publisher", "lakthan_registrar", "lakthan_auditor", "lakthan_tsa"):
        other = Presigned(await open_as(role))
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await other.put(authority_id, [answer(FIRST, version)])
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await other.register(authority_id, BOTH, keep_expired=True)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await other.drop(authority_id, [(FIRST, SHA_1)])
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await other.beat()
    with pytest.raises(ChangeRefused, match="are not signed ahead"):
        await store.put(authority_id + 1, [answer(FIRST, version)])


async def test_one_leads(database_url: str) -> None:
    """While one leads the other waits, and leads in the moment in which the first one's connection ends."""
    order: list[str] = []
    waits, ended = asyncio.Event(), asyncio.Event()

    async def one() -> asyncpg.Connection:
        return await connect(database_url, role="lakthan_presigner", application_name="test")

    async def second() -> None:
        async with leading(one, 7, waits.set):
            order.append("second")
            ended.set()

    async with leading(one, 8), leading(one, 7) as connection:
        task = asyncio.create_task(second())
        async with asyncio.timeout(20):
            await waits.wait()
            assert not ended.is_set()
            order.append("first")
            connection.terminate()
            await ended.wait()
        await task
    assert order == ["first", "second"]
