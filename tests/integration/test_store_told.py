"""What a responder was told is held against what a real database says: one that went back gets no belief."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from lakthan.algorithms import HashAlgorithm
from lakthan.store.changes import ChangeWriter
from lakthan.store.published import AnswerPublisher, PublishedAnswer, PublishedReader, Standing
from lakthan.store.records import CertStatus, StatusRecord
from lakthan.store.status import StatusReader
from lakthan.store.told import DatabaseWentBack, ToldRevoked
from support.database import OpenPool

SERIAL, OTHER = b"\x05", b"\x06"


def revoked(authority_id: int, version: int) -> StatusRecord:
    """What a notification said before the database was restored."""
    return StatusRecord(authority_id, SERIAL, CertStatus.REVOKED, datetime.now(UTC), None, None, None, version)


async def test_a_status_that_was_lost(open_as: OpenPool, authority_id: int) -> None:
    """A look-up that finds *good*, or nothing, where a revocation was notified before gives no status, until the
    certificate is revoked again; who asks about another one in the same query gets his answer.
    """
    writer, told = ChangeWriter(await open_as("lakthan_registry")), ToldRevoked()
    reader = StatusReader(await open_as("lakthan_responder"), told)
    await writer.issue(authority_id, OTHER, actor="test")
    told.hear(revoked(authority_id, 1_000_000))
    for _ in ("not on record", "good"):
        with pytest.raises(DatabaseWentBack):
            await reader.find(authority_id, SERIAL)
        other = await reader.find(authority_id, OTHER)
        assert other is not None
        assert other.cert_status is CertStatus.GOOD
        await writer.issue(authority_id, SERIAL, actor="test")
    assert told.contradicted == {(authority_id, SERIAL)}
    await writer.revoke(authority_id, SERIAL, actor="test")
    again = await reader.find(authority_id, SERIAL)
    assert again is not None
    assert again.cert_status is CertStatus.REVOKED
    assert not told.contradicted


async def test_a_revocation_that_was_only_read(open_as: OpenPool, authority_id: int) -> None:
    """What was looked up as revoked stays so for this process, although nobody notified it."""
    writer, told = ChangeWriter(await open_as("lakthan_registry")), ToldRevoked()
    reader = StatusReader(await open_as("lakthan_responder"), told)
    await writer.revoke(authority_id, SERIAL, actor="test")
    assert await reader.find(authority_id, SERIAL) is not None
    owner = await open_as(None)
    await owner.execute("ALTER TABLE certificate_status DISABLE TRIGGER USER")
    await owner.execute("DELETE FROM certificate_status")  # as a restore to before it would
    with pytest.raises(DatabaseWentBack):
        await reader.find(authority_id, SERIAL)


async def test_an_answer_that_was_signed_before(open_as: OpenPool, authority_id: int) -> None:
    """A published *good* that came back with the database is not given out."""
    pool, told = await open_as("lakthan_registry"), ToldRevoked()
    reader = PublishedReader(await open_as("lakthan_responder"), told)
    await ChangeWriter(pool).issue(authority_id, SERIAL, actor="test")
    now = datetime.now(UTC).replace(microsecond=0)
    until = now + timedelta(days=7)
    good = PublishedAnswer(SERIAL, HashAlgorithm.SHA_256, CertStatus.GOOD, now, now, until, b"signed")
    await AnswerPublisher(pool).publish(authority_id, [good], "test")
    standing, _ = await reader.find(authority_id, SERIAL, HashAlgorithm.SHA_256, now)
    assert standing is Standing.CURRENT
    told.hear(revoked(authority_id, 1_000_000))
    with pytest.raises(DatabaseWentBack):
        await reader.find(authority_id, SERIAL, HashAlgorithm.SHA_256, now)
    await ChangeWriter(pool).revoke(authority_id, SERIAL, actor="test")
    standing, _ = await reader.find(authority_id, SERIAL, HashAlgorithm.SHA_256, now)
    assert standing is Standing.OUTDATED
