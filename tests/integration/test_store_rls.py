"""One CA against another: B's rows cannot be touched or seen as A, by a setting, by a login, or past the first lock."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from lakthan.store.acting import acting
from lakthan.store.audit import AuditReader, append_refusal
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.changes import ChangeRefused, ChangeWriter, NotYourAuthority
from lakthan.store.credentials import CredentialAdmin
from lakthan.store.history import ChangeReader
from lakthan.store.pool import connect
from lakthan.store.records import AuthorityPolicy, Change, ChangeRequest, CredentialRole
from support.database import OpenPool, with_database

SERIAL = b"\x11"
INSERT = "INSERT INTO status_change (authority_id, serial_number, change, actor) VALUES ($1, $2, $3, 'x')"
CONFINED = {
    "authority": "id",
    "authority_name": "authority_id",
    "authority_key": "authority_id",
    "authority_certificate": "authority_id",
    "authority_crl": "authority_id",
    "authority_policy": "authority_id",
    "certificate_status": "authority_id",
    "status_change": "authority_id",
    "audit_record": "chain",
    "audit_head": "chain",
    "credential": "authority_id",
}


@dataclass(frozen=True, slots=True)
class Two:
    """Two authorities with everything that they can have. `a` is ours."""

    a: int
    b: int


@pytest.fixture
async def two(open_as: OpenPool, authority_id: int) -> Two:
    """Two authorities, each with a row in every table that is confined."""
    owner = await open_as(None)
    other: int = await owner.fetchval("INSERT INTO authority (name) VALUES ('other CA') RETURNING id")
    for each in (authority_id, other):
        await owner.execute("INSERT INTO authority_name VALUES ($1, '\\x30')", each)
        await owner.execute("INSERT INTO authority_key VALUES ($1, '\\x04')", each)
        await owner.execute("INSERT INTO authority_certificate VALUES ($1, '\\x30')", each)
        await owner.execute(
            "INSERT INTO authority_crl (authority_id, this_update, next_update) VALUES ($1, now(), now() + '1 h')", each
        )
        await AuthorityAdmin(owner).set_policy(each, AuthorityPolicy(), actor="test")
        await ChangeWriter(owner).issue(each, SERIAL, actor="test")
        await CredentialAdmin(owner).create(
            f"credential {each}",
            CredentialRole.PUBLISHER,
            authority_id=each,
            scopes=["issue"],
            expires_at=datetime.now(UTC) + timedelta(days=1),
            actor="test",
        )
    return Two(authority_id, other)


@pytest.mark.parametrize("change", Change, ids=lambda change: change.label)
@pytest.mark.parametrize("serial", [SERIAL, b"\x99"], ids=["known", "unknown"])
async def test_a_ca_cannot_change_anothers_certificates(
    open_as: OpenPool, two: Two, change: Change, serial: bytes
) -> None:
    """Every change of every certificate of B is refused to A in the same words, known or not: nothing is learned."""
    publisher = await open_as("lakthan_publisher")
    for acting_for in (two.a, None, 999):
        writer = ChangeWriter(publisher, acting_for=acting_for)
        with pytest.raises(NotYourAuthority, match=f"may not act for authority {two.b}$") as refusal:
            await writer.record([ChangeRequest(two.b, serial, change)], "a")
        assert refusal.value.serial_number == serial
    mixed = [ChangeRequest(two.a, b"\x21", Change.ISSUE), ChangeRequest(two.b, serial, change)]
    with pytest.raises(NotYourAuthority, match=f"authority {two.b}$"):
        await ChangeWriter(publisher, acting_for=two.a).record(mixed, "a")
    owner = await open_as(None)
    assert await owner.fetchval("SELECT count(*) FROM status_change") == 2
    assert [len(await ChangeReader(owner).history(each, SERIAL)) for each in (two.a, two.b)] == [1, 1]


async def test_a_ca_changes_its_own(open_as: OpenPool, two: Two) -> None:
    """For its own authority a publisher announces, holds, releases and revokes, and reads what became of it."""
    pool = await open_as("lakthan_publisher")
    writer, reader = ChangeWriter(pool, acting_for=two.a), ChangeReader(pool, acting_for=two.a)
    await writer.hold(two.a, SERIAL, actor="a")
    await writer.unhold(two.a, SERIAL, actor="a")
    version = await writer.revoke(two.a, SERIAL, actor="a")
    status = await reader.status(two.a, SERIAL)
    assert status is not None
    assert status.version == version
    assert [change.request.change for change in await reader.history(two.a, SERIAL)] == [
        Change.ISSUE,
        Change.HOLD,
        Change.UNHOLD,
        Change.REVOKE,
    ]
    assert await writer.issue(two.a, b"\x22", actor="a") == await writer.issue(two.a, b"\x22", actor="a")
    assert await reader.status(two.b, SERIAL) is None
    assert await reader.history(two.b, SERIAL) == []
    assert {head.chain for head in await AuditReader(pool, two.a).heads()} == {two.a}
    assert await AuditReader(pool, two.a).page(two.b) == []


async def test_behind_the_first_lock_is_a_second(open_as: OpenPool, two: Two) -> None:
    """With the functions' own check taken away, row-level security still refuses another authority's rows."""
    owner = await open_as(None)
    await owner.execute(
        "CREATE OR REPLACE FUNCTION may_act_for(wanted_authority_id integer) RETURNS boolean LANGUAGE sql RETURN true"
    )
    publisher = await open_as("lakthan_publisher")
    for acting_for in (two.a, None):
        for serial, change in ((SERIAL, Change.REVOKE), (b"\x99", Change.ISSUE)):
            with pytest.raises(NotYourAuthority, match="row-level security"):
                await ChangeWriter(publisher, acting_for).record([ChangeRequest(two.b, serial, change)], "a")
    assert await owner.fetchval("SELECT count(*) FROM status_change") == 2
    # The lock that was opened was the only one in the way of its own rows.
    await ChangeWriter(publisher, two.a).revoke(two.a, SERIAL, actor="a")


@pytest.mark.parametrize("table", CONFINED)
async def test_a_ca_sees_its_own_rows_only(open_as: OpenPool, two: Two, table: str) -> None:
    """Of every table a publisher sees the rows of its authority, and none at all when it acts for nobody."""
    column = CONFINED[table]
    publisher = await open_as("lakthan_publisher")
    for acting_for, seen in ((two.a, {two.a}), (two.b, {two.b}), (None, set())):
        async with acting(publisher, authority_id=acting_for) as connection:
            rows = await connection.fetch(f"SELECT {column} FROM {table}")
        assert {row[0] for row in rows} == seen
    for role in ("lakthan_registrar", "lakthan_auditor", "lakthan_registry"):
        rows = await (await open_as(role)).fetch(f"SELECT {column} FROM {table}")
        assert {two.a, two.b} <= {row[0] for row in rows}


async def test_no_hash_of_a_token_is_shown_to_a_publisher(open_as: OpenPool, two: Two) -> None:
    """Which credentials there are for its authority, a publisher may know; what they are known by it may not."""
    publisher = await open_as("lakthan_publisher")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await publisher.fetch("SELECT token_sha256 FROM credential")
    async with acting(publisher, authority_id=two.a) as connection:
        assert await connection.fetchval("SELECT name FROM credential") == f"credential {two.a}"


async def test_the_registrar_and_the_auditor_change_no_status(open_as: OpenPool, two: Two) -> None:
    """Who adds authorities cannot revoke anybody, and who reads cannot either, whatever they say they act for."""
    for role in ("lakthan_registrar", "lakthan_auditor"):
        pool = await open_as(role)
        for statement in (
            INSERT,
            "UPDATE authority SET revocation_time = now() WHERE id = $1 AND $2::bytea = $2 AND $3 = 'x'",
        ):
            async with pool.acquire() as connection:
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute(statement, two.a, SERIAL, "revoke")
    registrar = AuthorityAdmin(await open_as("lakthan_registrar"))
    await registrar.set_policy(two.a, AuthorityPolicy(crl_drop_limit_percent=1), actor="r")
    assert (await registrar.policy(two.a)).crl_drop_limit_percent == 1


@pytest.fixture
async def logins(server_url: str, two: Two, open_as: OpenPool, database_url: str) -> AsyncIterator[dict[str, str]]:
    """Logins of the database, by what they are: A's own, one that nobody bound, the service's, the operator's."""
    groups = {
        "bound": "lakthan_publisher",
        "unbound": "lakthan_publisher",
        "service": "lakthan_publisher, lakthan_registrar, lakthan_auditor",
        "operator": "lakthan_registry",
    }
    server = await asyncpg.connect(with_database(server_url, "postgres"))
    for name, roles in groups.items():
        await server.execute(
            f"CREATE ROLE lakthan_test_{name} LOGIN PASSWORD 'p'; GRANT {roles} TO lakthan_test_{name}"
        )
    await CredentialAdmin(await open_as("lakthan_registrar")).bind_login("lakthan_test_bound", two.a, actor="r")
    scheme, rest = database_url.split("://", 1)
    yield {name: f"{scheme}://lakthan_test_{name}@{rest.split('@', 1)[1]}" for name in groups}
    owner = await open_as(None)
    await owner.execute("DELETE FROM authority_login")
    for name in groups:
        await server.execute(f"DROP ROLE lakthan_test_{name}")
    await server.close()


@asynccontextmanager
async def login(url: str, role: str | None = None) -> AsyncIterator[asyncpg.Connection]:
    """A connection of that login."""
    connection = await connect(url, role=role, password="p", application_name="lakthan-test")
    try:
        yield connection
    finally:
        await connection.close()


async def may(connection: asyncpg.Connection, authority: int) -> bool:
    """Whether a revocation of the authority's certificate is accepted; it is rolled back."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(INSERT, authority, SERIAL, "revoke")
    except asyncpg.PostgresError as error:
        if error.sqlstate != "LK006":
            raise
        return False
    else:
        return True
    finally:
        await transaction.rollback()


@pytest.mark.parametrize("role", [None, "lakthan_publisher"])
async def test_a_cas_own_login_is_bound(logins: dict[str, str], two: Two, role: str | None) -> None:
    """By raw SQL, A's login reaches A's rows and no setting takes it to B's; nor can it act as anybody else."""
    async with login(logins["bound"], role) as connection:
        for setting in ("", str(two.b), str(two.a), "nonsense"):
            await connection.execute("SELECT set_config('lakthan.authority', $1, false)", setting)
            assert (await may(connection, two.a), await may(connection, two.b)) == (True, False)
            rows = await connection.fetch("SELECT authority_id FROM certificate_status")
            assert {row[0] for row in rows} == {two.a}
        for statement in (
            "SET ROLE lakthan_registry",
            "SET ROLE lakthan_registrar",
            "SET SESSION AUTHORIZATION lakthan_test_operator",
            f"UPDATE authority_login SET authority_id = {two.b}",
            "DELETE FROM authority_login",
            "SELECT * FROM authority_login",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)


async def test_a_login_that_nobody_bound_acts_for_nobody(logins: dict[str, str], two: Two) -> None:
    """A forgotten row of `authority_login` shuts the door instead of opening it."""
    async with login(logins["unbound"]) as connection:
        for authority in (two.a, two.b):
            await connection.execute("SELECT set_config('lakthan.authority', $1, false)", str(authority))
            assert not await may(connection, authority)
            assert await connection.fetch("SELECT * FROM certificate_status") == []


async def test_the_service_acts_for_whom_it_says_and_the_operator_for_all(logins: dict[str, str], two: Two) -> None:
    """The service has authenticated somebody and says whom; the operator needs to say nothing."""
    async with login(logins["service"], "lakthan_publisher") as connection:
        assert (await may(connection, two.a), await may(connection, two.b)) == (False, False)
        await connection.execute("SELECT set_config('lakthan.authority', $1, false)", str(two.b))
        assert (await may(connection, two.a), await may(connection, two.b)) == (False, True)
    async with login(logins["operator"]) as connection:
        assert (await may(connection, two.a), await may(connection, two.b)) == (True, True)


async def test_a_binding_is_on_record(logins: dict[str, str], open_as: OpenPool, two: Two) -> None:
    """Whom a login was bound to, and by whom, is in the authority's chain."""
    records = await AuditReader(await open_as("lakthan_auditor")).page(two.a)
    (record,) = [each for each in records if "lakthan_test_bound" in each.detail]
    assert (record.event, record.actor) == ("credential", "r")
    assert logins


async def test_a_refusal_is_on_record(open_as: OpenPool, two: Two) -> None:
    """What A tried is in A's chain, written after the refusal, in a transaction of its own."""
    pool = await open_as("lakthan_publisher")
    with pytest.raises(ChangeRefused) as refusal:
        await ChangeWriter(pool, two.a).revoke(two.b, SERIAL, actor="a")
    detail = {"refusal": str(refusal.value)}
    number = await append_refusal(pool, two.a, actor="a", through="api", detail=detail, acting_for=two.a)
    (record,) = await AuditReader(pool, two.a).page(two.a, after=number - 1)
    assert record.event == "refused"
    assert f"may not act for authority {two.b}" in record.detail
