"""Published answers in a real database: what may come in, what is given out, and who may do it."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from lakthan.algorithms import HashAlgorithm
from lakthan.store.changes import ChangeRefused, ChangeWriter, NotYourAuthority
from lakthan.store.published import AnswerPublisher, Found, PublishedAnswer, PublishedReader, Standing
from lakthan.store.records import CertStatus, CRLReason
from support.database import OpenPool

NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)
SERIAL = b"\x05"
SHA_1, SHA_256 = HashAlgorithm.SHA_1, HashAlgorithm.SHA_256


def answer(
    response: bytes = b"signed",
    *,
    this_update: datetime = NOW - DAY,
    days: int = 7,
    produced_at: datetime | None = None,
    status: CertStatus = CertStatus.GOOD,
    algorithm: HashAlgorithm = SHA_256,
    serial: bytes = SERIAL,
) -> PublishedAnswer:
    """An answer; the store does not look into its octets."""
    produced_at = produced_at or this_update
    return PublishedAnswer(serial, algorithm, status, produced_at, this_update, this_update + days * DAY, response)


@pytest.fixture
async def registry(open_as: OpenPool, authority_id: int) -> asyncpg.Pool:
    """The operator, with one certificate on record as good."""
    pool = await open_as("lakthan_registry")
    await ChangeWriter(pool).issue(authority_id, SERIAL, actor="test")
    return pool


@pytest.fixture
def publisher(registry: asyncpg.Pool) -> AnswerPublisher:
    """Whoever publishes."""
    return AnswerPublisher(registry)


@pytest.fixture
async def reader(open_as: OpenPool) -> PublishedReader:
    """A responder."""
    return PublishedReader(await open_as("lakthan_responder"))


async def test_what_was_published_is_given_out(
    publisher: AnswerPublisher, reader: PublishedReader, authority_id: int
) -> None:
    """A responder finds the answer for the certificate, the hash algorithm and the instant, octet for octet."""
    published = answer()
    assert await publisher.publish(authority_id, [published], "test") == 1
    assert await reader.find(authority_id, SERIAL, SHA_256, NOW) == (
        Standing.CURRENT,
        Found(published, published.next_update),
    )
    for serial, algorithm in ((SERIAL, SHA_1), (b"\x06", SHA_256)):
        assert await reader.find(authority_id, serial, algorithm, NOW) == (Standing.NONE, None)


async def test_only_while_it_is_valid(publisher: AnswerPublisher, reader: PublishedReader, authority_id: int) -> None:
    """From its thisUpdate on, and no more at its nextUpdate; before and after there is something, but not now."""
    published = answer(this_update=NOW, days=7)
    await publisher.publish(authority_id, [published], "test")
    for instant, expected in (
        (NOW - timedelta(seconds=1), Standing.NOT_NOW),
        (NOW, Standing.CURRENT),
        (NOW + 7 * DAY - timedelta(seconds=1), Standing.CURRENT),
        (NOW + 7 * DAY, Standing.NOT_NOW),
    ):
        standing, _ = await reader.find(authority_id, SERIAL, SHA_256, instant)
        assert standing is expected, instant


async def test_consecutive_answers(publisher: AnswerPublisher, reader: PublishedReader, authority_id: int) -> None:
    """Of answers whose times overlap the later one is given out as soon as it has begun."""
    first, second = answer(b"first", this_update=NOW, days=7), answer(b"second", this_update=NOW + 5 * DAY, days=7)
    await publisher.publish(authority_id, [first, second], "test")
    for days, expected, until in ((4, first, 5), (6, second, 12), (11, second, 12)):
        found = await reader.find(authority_id, SERIAL, SHA_256, NOW + days * DAY)
        assert found == (Standing.CURRENT, Found(expected, NOW + until * DAY))
    assert list((await reader.last_until()).values()) == [NOW + 12 * DAY]


async def test_what_is_published_later_goes_first(
    publisher: AnswerPublisher, reader: PublishedReader, authority_id: int
) -> None:
    """A new set of answers takes the place of the old one, also where an answer of the old one began later."""
    await publisher.publish(authority_id, [answer(b"old", this_update=NOW - DAY)], "test")
    new = answer(b"new", this_update=NOW - 2 * DAY, days=30)
    await publisher.publish(authority_id, [new], "test")
    assert await reader.find(authority_id, SERIAL, SHA_256, NOW) == (Standing.CURRENT, Found(new, new.next_update))


async def test_a_change_of_the_certificate_ends_it(
    publisher: AnswerPublisher, reader: PublishedReader, registry: asyncpg.Pool, authority_id: int
) -> None:
    """As soon as the certificate is revoked, the answer that says good is never given out again."""
    await publisher.publish(authority_id, [answer()], "test")
    await ChangeWriter(registry).revoke(authority_id, SERIAL, reason=CRLReason.CA_COMPROMISE, actor="test")
    assert await reader.find(authority_id, SERIAL, SHA_256, NOW) == (Standing.OUTDATED, None)
    revoked = answer(b"revoked", this_update=NOW, status=CertStatus.REVOKED)
    assert await publisher.publish(authority_id, [revoked], "test") == 1
    assert await reader.find(authority_id, SERIAL, SHA_256, NOW) == (
        Standing.CURRENT,
        Found(revoked, revoked.next_update),
    )


@pytest.mark.parametrize("what", ["unknown", "revoked"])
async def test_an_answer_that_contradicts_the_record(
    publisher: AnswerPublisher, reader: PublishedReader, registry: asyncpg.Pool, authority_id: int, what: str
) -> None:
    """Nothing is published that says otherwise than the record, and of its company nothing either."""
    wrong = answer(serial=b"\x06") if what == "unknown" else answer()
    if what == "revoked":
        await ChangeWriter(registry).revoke(authority_id, SERIAL, actor="test")
        await ChangeWriter(registry).issue(authority_id, b"\x07", actor="test")
    with pytest.raises(ChangeRefused, match=f"is {what} on record, and an answer says that it is good") as caught:
        await publisher.publish(authority_id, [answer(serial=b"\x07"), wrong] if what == "revoked" else [wrong], "test")
    assert caught.value.serial_number == wrong.serial_number
    assert await registry.fetchval("SELECT count(*) FROM published_answer") == 0


async def test_publishing_twice(publisher: AnswerPublisher, registry: asyncpg.Pool, authority_id: int) -> None:
    """The same answers again change nothing and are not on record twice; an older one for the same time is refused."""
    newer = answer(b"newer", produced_at=NOW)
    assert await publisher.publish(authority_id, [newer], "test") == 1
    assert await publisher.publish(authority_id, [newer], "test") == 0
    with pytest.raises(ChangeRefused, match="is older than the one on record"):
        await publisher.publish(authority_id, [answer(b"older", produced_at=NOW - DAY)], "test")
    assert await publisher.publish(authority_id, [answer(b"newest", produced_at=NOW + DAY)], "test") == 1
    assert await registry.fetchval("SELECT string_agg(response, ',') FROM published_answer") == b"newest"
    assert await registry.fetchval("SELECT count(*) FROM audit_record WHERE event = 'ceremony'") == 2


async def test_it_is_on_record(publisher: AnswerPublisher, registry: asyncpg.Pool, authority_id: int) -> None:
    """The audit chain of the authority says who published how many answers, through what, from which bundle."""
    await publisher.publish(authority_id, [answer()], "Khamla", through="ceremony", detail={"manifest_sha256": "ab"})
    row = await registry.fetchrow("SELECT * FROM audit_record WHERE event = 'ceremony'")
    assert row is not None
    assert (row["chain"], row["actor"], row["through"]) == (authority_id, "Khamla", "ceremony")
    assert json.loads(row["detail"]) == {"manifest_sha256": "ab", "answers": 1}


async def test_responders_hear_of_it(publisher: AnswerPublisher, registry: asyncpg.Pool, authority_id: int) -> None:
    """One notification makes every responder forget what it remembers of this authority."""
    heard: list[dict[str, object]] = []
    async with registry.acquire() as connection:

        def listen(_connection: object, _pid: int, _channel: str, payload: object) -> None:
            heard.append(json.loads(str(payload)))

        await connection.add_listener("lakthan_status", listen)
        await publisher.publish(authority_id, [answer(), answer(algorithm=SHA_1)], "test")
        await connection.fetchval("SELECT 1")
        await connection.remove_listener("lakthan_status", listen)
    [said] = heard
    assert (said["authority_id"], said["all"]) == (authority_id, True)
    assert datetime.fromisoformat(str(said["changed_at"])).tzinfo is not None


async def test_a_revocation_does_not_slip_in_between(
    reader: PublishedReader, registry: asyncpg.Pool, open_as: OpenPool, authority_id: int
) -> None:
    """While answers are being published a revocation of their certificates waits, and then ends them."""
    owner = await open_as(None)
    async with registry.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.fetchval(
            "SELECT publish_answers($1, $2, '{SHA-256}', $3, $3, $4, '{good}', $5, 'test')",
            authority_id, [SERIAL], [NOW - DAY], [NOW + DAY], [b"good"],
        )  # fmt: skip
        revocation = asyncio.create_task(ChangeWriter(registry).revoke(authority_id, SERIAL, actor="test"))
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        async with asyncio.timeout(10):
            while not await owner.fetchval(waiting):  # noqa: ASYNC110 - the server says when
                await asyncio.sleep(0.01)
        assert not revocation.done()
        await transaction.commit()
    await revocation
    assert await reader.find(authority_id, SERIAL, SHA_256, NOW) == (Standing.OUTDATED, None)


async def test_who_may_publish(publisher: AnswerPublisher, open_as: OpenPool, authority_id: int) -> None:
    """A publisher publishes for its own authority and sees its own; nobody writes the table by hand."""
    await publisher.publish(authority_id, [answer()], "test")
    pool = await open_as("lakthan_publisher")
    own = AnswerPublisher(pool, acting_for=authority_id)
    assert await own.publish(authority_id, [answer(b"own", produced_at=NOW)], "CA") == 1
    for other in (AnswerPublisher(pool, acting_for=authority_id + 1), AnswerPublisher(pool)):
        with pytest.raises(NotYourAuthority):
            await other.publish(authority_id, [answer(b"other", produced_at=NOW + DAY)], "CA")
    assert await pool.fetchval("SELECT count(*) FROM published_answer") == 0  # acting for nobody
    for role in ("lakthan_responder", "lakthan_registry", "lakthan_publisher", "lakthan_registrar", "lakthan_auditor"):
        by_hand = await open_as(role)
        for statement in (
            "INSERT INTO published_answer (authority_id) VALUES (1)",
            "UPDATE published_answer SET response = 'x'",
            "DELETE FROM published_answer",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await by_hand.execute(statement)
    for role in ("lakthan_responder", "lakthan_registrar", "lakthan_auditor", "lakthan_tsa"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await AnswerPublisher(await open_as(role)).publish(authority_id, [answer()], "test")


@pytest.mark.parametrize(
    "wrong", [answer(days=0), answer(b""), answer(algorithm=HashAlgorithm.SHA3_256), answer(serial=b"\0\5")]
)
async def test_what_cannot_be_an_answer(
    publisher: AnswerPublisher, registry: asyncpg.Pool, authority_id: int, wrong: PublishedAnswer
) -> None:
    """An answer without an end, without octets, with an unusual hash or an impossible serial number is refused."""
    with pytest.raises(ChangeRefused):
        await publisher.publish(authority_id, [wrong], "test")
    assert await registry.fetchval("SELECT count(*) FROM published_answer") == 0
