"""Credentials: shown once, bound to one authority, ended by the database's clock. And calls that are done once."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from lakthan.store.changes import ChangeRefused, ChangeWriter, IdempotencyConflict, NotYourAuthority, StateForbids
from lakthan.store.credentials import CredentialAdmin, CredentialReader, new_token, token_sha256
from lakthan.store.records import Change, ChangeRequest, CredentialRole, Idempotency
from support.database import OpenPool

SERIAL = b"\x11"
HASH = hashlib.sha256(b"request").digest()


def soon() -> datetime:
    """An hour from now."""
    return datetime.now(UTC) + timedelta(hours=1)


@pytest.fixture
async def admin(open_as: OpenPool) -> CredentialAdmin:
    """Who makes credentials, with the registrar's rights."""
    return CredentialAdmin(await open_as("lakthan_registrar"))


@pytest.fixture(params=["lakthan_publisher", "lakthan_registrar", "lakthan_auditor"])
async def reader(open_as: OpenPool, request: pytest.FixtureRequest) -> CredentialReader:
    """Who looks credentials up, with each of the rights that the service can have."""
    return CredentialReader(await open_as(request.param))


@pytest.fixture
async def credential_id(admin: CredentialAdmin, authority_id: int) -> int:
    """A publisher's credential."""
    made, _ = await admin.create(
        "ca",
        CredentialRole.PUBLISHER,
        authority_id=authority_id,
        scopes=["issue", "revoke"],
        expires_at=soon(),
        actor="test",
    )
    return made.id


async def test_a_token_and_a_certificate_are_found(
    admin: CredentialAdmin, reader: CredentialReader, authority_id: int
) -> None:
    """What was made is found by what its owner presents, as it was made; what nobody has is not."""
    end = soon()
    made, token = await admin.create(
        "ca ອົງການ",
        CredentialRole.PUBLISHER,
        authority_id=authority_id,
        scopes=["revoke", "issue"],
        expires_at=end,
        actor="ann",
    )
    assert token is not None
    assert token.startswith("lak_")
    assert len(token) == 47
    assert await reader.find("token", token_sha256(token)) == made
    assert (made.role, made.authority_id, made.scopes) == (
        CredentialRole.PUBLISHER,
        authority_id,
        frozenset({"issue", "revoke"}),
    )
    assert (made.kind, made.expires_at, made.created_by, made.state) == ("token", end, "ann", "valid")
    held, none = await admin.create("box", CredentialRole.AUDITOR, expires_at=end, certificate=b"DER", actor="ann")
    assert none is None
    digest = hashlib.sha256(b"DER").digest()
    assert await reader.find("certificate", digest) == held
    assert await admin.list() == [held, made]
    for kind, unknown in (
        ("token", digest),
        ("certificate", token_sha256(token)),
        ("token", token_sha256(new_token())),
    ):
        assert await reader.find(kind, unknown) is None  # type: ignore[arg-type]


async def test_a_credential_ends(admin: CredentialAdmin, reader: CredentialReader, open_as: OpenPool) -> None:
    """One whose time has come is expired, one that was revoked is so for good, and both are still found and named."""
    owner = await open_as(None)
    _, token = await admin.create("short", CredentialRole.AUDITOR, expires_at=soon(), actor="ann")
    assert token is not None
    await owner.execute("ALTER TABLE credential DISABLE ROW LEVEL SECURITY")
    await owner.execute("UPDATE credential SET expires_at = clock_timestamp()")
    await owner.execute("ALTER TABLE credential ENABLE ROW LEVEL SECURITY")
    found = await reader.find("token", token_sha256(token))
    assert found is not None
    assert (found.name, found.state) == ("short", "expired")
    await admin.revoke("short", actor="ben")
    found = await reader.find("token", token_sha256(token))
    assert found is not None
    assert found.state == "revoked"
    assert found.revoked_at is not None
    for name in ("short", "nobody"):
        with pytest.raises(ChangeRefused, match=f"no credential '{name}', or it was revoked before"):
            await admin.revoke(name, actor="ben")


@pytest.mark.parametrize("role", ["lakthan_registrar", "lakthan_registry"])
async def test_a_revoked_credential_stays_so(admin: CredentialAdmin, open_as: OpenPool, role: str) -> None:
    """Neither the registrar nor the operator can take a revocation back, prolong a credential or give it to another."""
    await admin.create("gone", CredentialRole.AUDITOR, expires_at=soon(), actor="ann")
    await admin.revoke("gone", actor="ann")
    pool = await open_as(role)
    assert await pool.execute("UPDATE credential SET revoked_at = NULL") == "UPDATE 0"
    for statement in (
        "UPDATE credential SET expires_at = now() + '1 year'",
        "UPDATE credential SET authority_id = 1",
        "UPDATE credential SET token_sha256 = sha256('x')",
        "DELETE FROM credential",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await pool.execute(statement)


@pytest.mark.parametrize(
    ("role", "options", "says"),
    [
        (CredentialRole.PUBLISHER, {"scopes": ["issue"]}, "belongs to one authority"),
        (CredentialRole.PUBLISHER, {"authority_id": 1}, "needs scopes"),
        (CredentialRole.PUBLISHER, {"authority_id": 1, "scopes": ["everything"]}, "the scopes are"),
        (CredentialRole.PUBLISHER, {"authority_id": 999, "scopes": ["issue"]}, "no such authority"),
        (CredentialRole.AUDITOR, {"authority_id": 1}, "belongs to one authority"),
        (CredentialRole.REGISTRAR, {"scopes": ["issue"]}, "needs scopes"),
        (CredentialRole.AUDITOR, {"expires_at": datetime(2020, 1, 1, tzinfo=UTC)}, "would have ended already"),
        (CredentialRole.AUDITOR, {"name": " x"}, "needs a name"),
        (CredentialRole.AUDITOR, {"name": "ca"}, "another credential has this name"),
        (CredentialRole.AUDITOR, {"actor": " "}, "the actor who makes it"),
        (CredentialRole.AUDITOR, {"certificate": b"DER"}, "another credential is for this certificate"),
    ],
)
async def test_what_cannot_be_a_credential_is_refused(
    admin: CredentialAdmin, credential_id: int, role: CredentialRole, options: dict[str, object], says: str
) -> None:
    """Each is refused in a sentence that says what is missing or too much."""
    assert credential_id
    await admin.create("box", CredentialRole.AUDITOR, expires_at=soon(), certificate=b"DER", actor="ann")
    given: dict[str, object] = {"name": "new", "expires_at": soon(), "actor": "ann"} | options
    with pytest.raises(ChangeRefused, match=says):
        await admin.create(role=role, **given)  # type: ignore[arg-type]
    assert len(await admin.list()) == 2


async def test_a_call_is_done_once(open_as: OpenPool, authority_id: int, credential_id: int) -> None:
    """Repeated with its key, a call gives the same versions and records nothing; the key for another is a conflict."""
    writer = ChangeWriter(await open_as("lakthan_publisher"), acting_for=authority_id)
    issue, revoke = (ChangeRequest(authority_id, SERIAL, change) for change in (Change.ISSUE, Change.REVOKE))
    once = Idempotency(credential_id, "key 1", HASH)
    versions = await writer.record([issue, revoke], "a", idempotency=once)
    assert await writer.record([issue, revoke], "a", idempotency=once) == versions
    assert len(await writer.history(authority_id, SERIAL)) == 2
    other = Idempotency(credential_id, "key 1", hashlib.sha256(b"another").digest())
    with pytest.raises(IdempotencyConflict, match="'key 1' was used for another request"):
        await writer.record([ChangeRequest(authority_id, b"\x12", Change.ISSUE)], "a", idempotency=other)
    assert await writer.history(authority_id, b"\x12") == []
    # Without the key the same is refused: the certificate is revoked.
    with pytest.raises(StateForbids):
        await writer.record([issue, revoke], "a")


async def test_a_refused_call_leaves_its_key_free(open_as: OpenPool, authority_id: int, credential_id: int) -> None:
    """What was refused was not done, so the same key can be used for the call that is put right."""
    writer = ChangeWriter(await open_as("lakthan_publisher"), acting_for=authority_id)
    once = Idempotency(credential_id, "key", HASH)
    with pytest.raises(StateForbids):
        await writer.record([ChangeRequest(authority_id, SERIAL, Change.HOLD)], "a", idempotency=once)
    (version,) = await writer.record([ChangeRequest(authority_id, SERIAL, Change.ISSUE)], "a", idempotency=once)
    assert version > 0


async def test_the_same_call_twice_at_once_is_done_once(
    open_as: OpenPool, authority_id: int, credential_id: int
) -> None:
    """Of eight equal calls at the same moment one does it and the others give its versions."""
    pools = [await open_as("lakthan_publisher") for _ in range(2)]
    changes = [ChangeRequest(authority_id, bytes([number]), Change.REVOKE) for number in range(1, 20)]
    once = Idempotency(credential_id, "key", HASH)
    outcomes = await asyncio.gather(
        *(
            ChangeWriter(pools[number % 2], acting_for=authority_id).record(changes, "a", idempotency=once)
            for number in range(8)
        )
    )
    assert len({tuple(versions) for versions in outcomes}) == 1
    owner = await open_as(None)
    assert await owner.fetchval("SELECT count(*) FROM status_change") == 19


async def test_keys_belong_to_their_credential(
    open_as: OpenPool, admin: CredentialAdmin, authority_id: int, credential_id: int
) -> None:
    """Two callers may choose the same key; another authority's credential cannot be used for one."""
    owner = await open_as(None)
    other: int = await owner.fetchval("INSERT INTO authority (name) VALUES ('other') RETURNING id")
    theirs, _ = await admin.create(
        "b", CredentialRole.PUBLISHER, authority_id=other, scopes=["issue"], expires_at=soon(), actor="x"
    )
    pool = await open_as("lakthan_publisher")
    mine = ChangeWriter(pool, acting_for=authority_id)
    request = [ChangeRequest(authority_id, SERIAL, Change.ISSUE)]
    await mine.record(request, "a", idempotency=Idempotency(credential_id, "key", HASH))
    for key in ("key", "another"):
        with pytest.raises(NotYourAuthority, match="row-level security"):
            await mine.record(request, "a", idempotency=Idempotency(theirs.id, key, HASH))
    await ChangeWriter(pool, acting_for=other).record(
        [ChangeRequest(other, SERIAL, Change.ISSUE)], "b", idempotency=Idempotency(theirs.id, "key", HASH)
    )
    for key, says in (("", "1 to 255"), ("k" * 256, "1 to 255")):
        with pytest.raises(ChangeRefused, match=says):
            await mine.record(request, "a", idempotency=Idempotency(credential_id, key, HASH))


async def test_keys_are_kept_for_a_day(open_as: OpenPool, authority_id: int, credential_id: int) -> None:
    """A younger key cannot be deleted or changed by the roles that write; an older one goes with the next call."""
    writer = ChangeWriter(await open_as("lakthan_publisher"), acting_for=authority_id)
    for key in ("old", "young"):
        request = [ChangeRequest(authority_id, key.encode(), Change.ISSUE)]
        await writer.record(request, "a", idempotency=Idempotency(credential_id, key, HASH))
    owner, registry = await open_as(None), await open_as("lakthan_registry")
    assert await registry.execute("DELETE FROM idempotency_key") == "DELETE 0"
    assert await registry.execute("UPDATE idempotency_key SET versions = '{}'") == "UPDATE 0"
    await owner.execute("UPDATE idempotency_key SET at = at - interval '25 hours' WHERE key = 'old'")
    await writer.record([], "a", idempotency=Idempotency(credential_id, "next", HASH))
    rows = await owner.fetch("SELECT key FROM idempotency_key ORDER BY key")
    assert [row["key"] for row in rows] == ["next", "young"]
