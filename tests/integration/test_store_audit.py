"""The audit chain: every change is in it once, nobody can edit it, and `verify` finds it when the owner did."""

from __future__ import annotations

import asyncio
import hashlib
import json
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from lakthan.store.audit import AuditReader, append, append_refusal
from lakthan.store.audit_verify import verify
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.changes import ChangeRefused, ChangeWriter, NotYourAuthority
from lakthan.store.credentials import CredentialAdmin
from lakthan.store.records import (
    AuditRecord,
    AuthorityPolicy,
    Change,
    ChangeRequest,
    CredentialRole,
    CRLReason,
    CRLSource,
)
from support.database import OpenPool

ROLES = (
    "lakthan_responder",
    "lakthan_tsa",
    "lakthan_registry",
    "lakthan_publisher",
    "lakthan_registrar",
    "lakthan_auditor",
    "lakthan_presigner",
)


@pytest.fixture
async def registry(open_as: OpenPool) -> asyncpg.Pool:
    """A pool with the operator's rights."""
    return await open_as("lakthan_registry")


@pytest.fixture
async def history(registry: asyncpg.Pool, authority_id: int) -> int:
    """An authority with records of every kind; gives its id."""
    writer, admin = ChangeWriter(registry), AuthorityAdmin(registry)
    await writer.record(
        [ChangeRequest(authority_id, bytes([number]), Change.ISSUE) for number in range(1, 11)],
        "ຜູ້ອອກ | one",
        through="api",
    )
    when = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
    await writer.revoke(
        authority_id, b"\x01", reason=CRLReason.SUPERSEDED, revocation_time=when, invalidity_date=when, actor="a"
    )
    await writer.hold(authority_id, b"\x02", actor="a")
    await writer.unhold(authority_id, b"\x02", actor="a")
    await writer.issue(
        authority_id, b"\x00\x80", not_after=datetime(1949, 1, 1, tzinfo=UTC), certificate_sha256=bytes(32), actor="a"
    )
    await admin.set_policy(authority_id, AuthorityPolicy(("http://127.0.0.1/ca.crl",)), actor="a")
    now = datetime.now(UTC)
    await admin.set_crl(authority_id, CRLSource(None, b"\x05", now, now + timedelta(hours=1)), actor="a")
    await append_refusal(registry, authority_id, actor="b", through="api", detail={"why": "ບໍ່ອະນຸຍາດ \"'\n\0"})
    return authority_id


async def test_a_record_that_nobody_touched_holds(registry: asyncpg.Pool, history: int) -> None:
    """Verify computes every hash again, in another language than the database did, and agrees."""
    told: list[tuple[int, int]] = []
    report = await verify(registry, progress=lambda done, total: told.append((done, total)))
    assert (report.findings, report.more_findings) == ([], 0)
    assert (report.changes, report.statuses) == (14, 11)
    (head,) = report.heads
    assert (head.chain, head.number) == (history, report.records)
    assert await AuditReader(registry).heads() == report.heads
    assert told
    assert all(done <= total for done, total in told)
    # A noted head still stands when more has come, and is then not the last.
    await ChangeWriter(registry).issue(history, b"\x55", actor="a")
    assert (await verify(registry, noted=[head])).findings == []


async def test_what_a_record_says(registry: asyncpg.Pool, authority_id: int) -> None:
    """Who, through what, as which login, and what: one record for one call, however many changes it has."""
    before = datetime.now(UTC) - timedelta(seconds=1)
    changes = [
        ChangeRequest(authority_id, b"\x01" + number.to_bytes(2, "big"), Change.ISSUE) for number in range(10_000)
    ]
    versions = await ChangeWriter(registry).record(changes, "ca:one", through="api", detail={"request": "r-1"})
    assert len(set(versions)) == 10_000
    reader = AuditReader(registry)
    *_, record = await reader.newest(authority_id, 1)
    assert (record.event, record.actor, record.through, record.change_count) == ("changes", "ca:one", "api", 10_000)
    assert json.loads(record.detail) == {"request": "r-1"}
    assert record.login == await registry.fetchval("SELECT session_user::text")
    assert before < record.at < datetime.now(UTC) + timedelta(seconds=1)
    assert [each.event for each in await reader.page(authority_id, after=record.number - 1)] == ["changes"]
    sealed = await registry.fetchval("SELECT count(*) FROM status_change WHERE batch = $1", record.batch)
    assert sealed == 10_000
    assert (await verify(registry)).findings == []


async def test_before_and_after(registry: asyncpg.Pool, authority_id: int) -> None:
    """Authorities, policies and credentials are on record with the row before and after; no secret is.

    A certificate or a key is too long for that: its hash stands there.
    """
    admin, credentials = AuthorityAdmin(registry), CredentialAdmin(registry)
    await admin.set_policy(authority_id, AuthorityPolicy(crl_drop_limit_percent=5), actor="ann", through="api")
    await admin.set_policy(authority_id, AuthorityPolicy(crl_drop_limit_percent=50), actor="ben")
    await admin.set_policy(authority_id, AuthorityPolicy(crl_drop_limit_percent=50), actor="changes nothing")
    await registry.execute("INSERT INTO authority_key VALUES ($1, $2)", authority_id, bytes(range(200)))
    records = await AuditReader(registry).newest(authority_id, 3)
    first, second, key = ((record.event, record.actor, record.through, json.loads(record.detail)) for record in records)
    assert first[:3] == ("policy", "ann", "api")
    assert first[3]["before"] is None
    assert second[:3] == ("policy", "ben", "cli")
    assert (second[3]["before"]["crl_drop_limit_percent"], second[3]["after"]["crl_drop_limit_percent"]) == (5, 50)
    login = await registry.fetchval("SELECT session_user::text")
    assert key[:3] == ("authority", login, "sql")
    assert key[3]["after"] == {
        "authority_id": authority_id,
        "public_key_sha256": hashlib.sha256(bytes(range(200))).hexdigest(),
    }
    end = datetime.now(UTC) + timedelta(days=1)
    _, token = await credentials.create("audit", CredentialRole.AUDITOR, expires_at=end, actor="ann")
    await credentials.revoke("audit", actor="ben")
    made, revoked = await AuditReader(registry).newest(0, 2)
    assert (made.event, made.actor, revoked.event, revoked.actor) == ("credential", "ann", "credential", "ben")
    assert json.loads(revoked.detail)["before"]["revoked_at"] is None
    assert json.loads(revoked.detail)["after"]["revoked_at"] is not None
    assert token is not None
    kept = hashlib.sha256(token.encode()).hexdigest()
    assert not any(secret in record.detail for record in (made, revoked) for secret in (token, kept))


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("table", ["audit_record", "audit_head", "status_change"])
@pytest.mark.parametrize("verb", ["UPDATE", "DELETE", "TRUNCATE"])
async def test_no_role_can_edit_the_record(open_as: OpenPool, history: int, role: str, table: str, verb: str) -> None:
    """None of the application's roles may update, delete or empty the audit chain or the changes. OCSP-78."""
    column = "chain" if table.startswith("audit") else "actor"
    statement = {
        "UPDATE": f"UPDATE {table} SET {column} = {column}",
        "DELETE": f"DELETE FROM {table}",
        "TRUNCATE": f"TRUNCATE {table}",
    }[verb]
    pool = await open_as(role)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await pool.execute(statement)
    assert history


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_record SET actor = 'x'",
        "DELETE FROM audit_record",
        "TRUNCATE audit_record",
        "UPDATE audit_head SET number = number - 1",
        "UPDATE audit_head SET number = number + 1",
        "DELETE FROM audit_head",
        "TRUNCATE audit_head",
    ],
)
async def test_the_owner_is_stopped_too(open_as: OpenPool, history: int, statement: str) -> None:
    """A slip of the owner's hand changes nothing, also not in a session that replays as a replica."""
    owner = await open_as(None)
    for replaying in ("", "SET LOCAL session_replication_role = replica; "):
        with pytest.raises(asyncpg.PostgresError) as refusal:
            await owner.execute(replaying + statement)
        assert refusal.value.sqlstate == "LK003"
    assert (await verify(owner)).findings == []
    assert history


# What an owner could do who wants to, and what is found.
TAMPERING = {
    "a change edited": (
        "UPDATE status_change SET actor = 'somebody else' WHERE version = 3",
        ["record 2: a change of batch", "was edited"],
    ),
    "a revocation taken back in the status": (
        (
            "UPDATE certificate_status SET cert_status = 'good', revocation_time = NULL, revocation_reason = NULL,"
            " invalidity_date = NULL WHERE serial_number = '\\x01'"
        ),
        ["serial number 01: cert_status, revocation_time", "not what its history says"],
    ),
    "a change taken out, with its status": (
        "DELETE FROM status_change WHERE version = 10; DELETE FROM certificate_status WHERE version = 10",
        ["sealed 10 changes, and there are 9"],
    ),
    "all changes of a batch taken out": (
        "DELETE FROM status_change WHERE batch = (SELECT batch FROM status_change WHERE version = 12)",
        ["its 1 changes of batch", "are gone"],
    ),
    "a change put in": (
        (
            "INSERT INTO status_change (version, batch, authority_id, serial_number, change, actor)"
            " VALUES (99, 77, 1, '\\x33', 'issue', 'x')"
        ),
        ["batch 77: 1 changes are in no audit record; put in by hand", "serial number 33: has a history and no status"],
    ),
    "a status put in": (
        (
            "INSERT INTO certificate_status (authority_id, serial_number, cert_status, version)"
            " VALUES (1, '\\x33', 'good', 99)"
        ),
        ["serial number 33: has a status and no history; put in by hand"],
    ),
    "a record edited": (
        "UPDATE audit_record SET actor = 'somebody else' WHERE number = 2",
        ["record 2: was edited"],
    ),
    "a record edited and hashed again": (
        (
            "UPDATE audit_record SET actor = 'somebody else' WHERE number = 2;"
            " UPDATE audit_record r SET sha256 = audit_sha256(r) WHERE number = 2"
        ),
        ["record 3: does not follow record 2"],
    ),
    "a record taken out": (
        "DELETE FROM audit_record WHERE number = 4",
        ["record 5: the record before it is 3; what was between is gone"],
    ),
    "a record put in": (
        (
            "UPDATE audit_record SET number = -number WHERE number > 4; UPDATE audit_record SET number = 1 - number"
            " WHERE number < 0; INSERT INTO audit_record SELECT chain, 5, at, event, 'x', through, login, detail,"
            " NULL, NULL, NULL, sha256, sha256 FROM audit_record WHERE number = 4"
        ),
        ["record 5: was edited", "record 6: was edited"],
    ),
    "the last record taken off": (
        "DELETE FROM audit_record WHERE number = (SELECT max(number) FROM audit_record)",
        ["and its head says"],
    ),
    "the head taken away": ("DELETE FROM audit_head", ["records and no head"]),
}


@pytest.mark.parametrize("tampering", TAMPERING)
async def test_verify_finds_what_the_owner_did(open_as: OpenPool, history: int, tampering: str) -> None:
    """Whoever owns the tables can switch the triggers off and edit; verify says where."""
    assert history == 1
    statement, says = TAMPERING[tampering]
    owner = await open_as(None)
    await without_triggers(owner, statement)
    findings = (await verify(owner)).findings
    assert findings
    for part in says:
        assert any(part in finding for finding in findings), findings


async def test_a_tail_cut_off_with_care_is_found_by_a_noted_head(open_as: OpenPool, history: int) -> None:
    """Who takes the last records off and sets the head back leaves a whole chain; only a noted head tells."""
    owner = await open_as(None)
    noted = await AuditReader(owner).heads()
    last = noted[0].number
    await without_triggers(
        owner,
        f"DELETE FROM audit_record WHERE number = {last}; UPDATE audit_head SET (number, sha256) ="
        f" (SELECT number, sha256 FROM audit_record WHERE number = {last - 1})",
    )
    assert (await verify(owner)).findings == []
    assert (await verify(owner, noted=noted)).findings == [
        f"chain {history}, record {last}: was noted and is gone; the end of the chain was taken off"
    ]
    # Even when another record takes its place.
    await append(owner, history, "read", actor="x", through="sql", detail={})
    (finding,) = (await verify(owner, noted=noted)).findings
    assert "is not the record that was noted" in finding


async def without_triggers(owner: asyncpg.Pool, statement: str) -> None:
    """Do as an owner who wants to."""
    tables = ("audit_record", "audit_head", "status_change", "certificate_status")
    off = "; ".join(f"ALTER TABLE {table} DISABLE TRIGGER USER" for table in tables)
    await owner.execute(f"{off}; {statement}")


async def test_writers_at_once_make_one_line(open_as: OpenPool, authority_id: int) -> None:
    """Writers of one authority wait for each other's commit and nobody gets stuck: no gap, no record twice."""
    writer = ChangeWriter(await open_as("lakthan_registry", max_size=6))
    others = ChangeWriter(await open_as("lakthan_registry", max_size=6))

    async def write(with_what: ChangeWriter, number: int) -> None:
        for turn in range(5):
            changes = [ChangeRequest(authority_id, bytes([part, number, turn]), Change.REVOKE) for part in range(1, 60)]
            await with_what.record(changes[:: (-1) ** turn], f"writer {number}")

    await asyncio.gather(*(write(writer if number % 2 else others, number) for number in range(8)))
    owner = await open_as(None)
    report = await verify(owner)
    assert report.findings == []
    assert (report.changes, report.records) == (8 * 5 * 59, 1 + 8 * 5)
    records = await AuditReader(owner).page(authority_id)
    assert [record.number for record in records] == list(range(1, len(records) + 1))
    assert [record.at for record in records] == sorted(record.at for record in records)


async def test_two_certificates_are_changed_without_waiting(open_as: OpenPool, authority_id: int) -> None:
    """A long transaction that has not sealed its changes yet keeps nobody from changing another certificate."""
    registry = await open_as("lakthan_registry")
    writer = ChangeWriter(registry)
    await writer.issue(authority_id, b"\x01", actor="a")
    owner = await open_as(None)
    async with owner.acquire() as connection, connection.transaction():
        await connection.fetch("SELECT * FROM certificate_status WHERE serial_number = '\\x01' FOR UPDATE")
        await connection.execute("INSERT INTO authority_policy (authority_id) VALUES ($1)", authority_id)
        await writer.issue(authority_id, b"\x02", actor="b")
    change, policy = await AuditReader(owner).newest(authority_id, 2)
    assert (change.event, change.actor) == ("changes", "b")
    assert policy.event == "policy"  # written last, when its transaction came to its end


async def test_who_may_append_what(open_as: OpenPool, authority_id: int) -> None:
    """A publisher writes into its own chain, an auditor `refused` and `read` into any; nobody forges an event."""
    owner = await open_as(None)
    other = await owner.fetchval("INSERT INTO authority (name) VALUES ('other') RETURNING id")
    publisher, auditor = await open_as("lakthan_publisher"), await open_as("lakthan_auditor")
    own = {"actor": "x", "through": "api", "detail": {}, "acting_for": authority_id}
    await append_refusal(publisher, authority_id, **own)  # type: ignore[arg-type]
    for chain in (other, 0):
        with pytest.raises(NotYourAuthority, match="audit chain"):
            await append_refusal(publisher, chain, **own)  # type: ignore[arg-type]
        await append_refusal(auditor, chain, actor="x", through="api", detail={})
    with pytest.raises(NotYourAuthority):
        await append(auditor, other, "crl", actor="x", through="api", detail={})
    for event in ("changes", "authority", "policy", "credential", "", "Nonsense!"):
        with pytest.raises(ChangeRefused, match="no event"):
            await append(owner, authority_id, event, actor="x", through="api", detail={})
    with pytest.raises(ChangeRefused, match="no authority 999"):
        await append_refusal(auditor, 999, actor="x", through="api", detail={})
    with pytest.raises(ChangeRefused, match="actor"):
        await append_refusal(auditor, 0, actor=" ", through="api", detail={})
    for statement in (
        "INSERT INTO audit_record SELECT * FROM audit_record LIMIT 1",
        "SELECT extend_chain(NULL)",
        "SELECT seal_changes()",
    ):
        for pool in (publisher, auditor, await open_as("lakthan_registry")):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await pool.execute(statement)
    assert (await verify(owner)).findings == []


async def test_what_was_recorded_by_an_import_says_so(registry: asyncpg.Pool, authority_id: int) -> None:
    """The event of the seal can be a CRL or an import; a setting cannot make it anything else."""
    for event, seen in (("crl", "crl"), ("import", "import"), ("refused", "changes"), ("", "changes")):
        async with registry.acquire() as connection, connection.transaction():
            await connection.execute("SELECT set_config('lakthan.event', $1, true)", event)
            await connection.execute(
                "INSERT INTO status_change (authority_id, serial_number, change, actor)"
                " VALUES ($1, substring(sha256($2::bytea) FROM 1 FOR 8) , 'revoke', 'x')",
                authority_id,
                f"{event}!".encode(),
            )
        (record,) = await AuditReader(registry).newest(authority_id, 1)
        assert isinstance(record, AuditRecord)
        assert record.event == seen
