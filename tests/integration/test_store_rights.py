"""What each role may do with each table, found out by trying."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator

import asyncpg
import pytest

from lakthan.errors import ConfigError
from lakthan.store.changes import ChangeWriter
from lakthan.store.pool import open_pool
from support.database import OpenPool, with_database

ROLES = (
    "lakthan_responder",
    "lakthan_tsa",
    "lakthan_registry",
    "lakthan_publisher",
    "lakthan_registrar",
    "lakthan_auditor",
    "lakthan_presigner",
)
AUTHORITIES = ("authority", "authority_name", "authority_key", "authority_certificate", "authority_crl")
TABLES = (
    *AUTHORITIES,
    "certificate_status",
    "status_change",
    "timestamp_token",
    "serial_epoch",
    "clock_event",
    "tsu_freeze",
    "token_retention",
    "alembic_version",
    "authority_policy",
    "authority_login",
    "credential",
    "idempotency_key",
    "audit_record",
    "audit_head",
    "crl_scope",
    "crl_scope_authority",
    "crl_hold",
    "published_answer",
    "presigned_authority",
    "heartbeat",
    "bulk_change",
)
# Read through status_change, which it belongs to, and by itself by nobody.
READ_BY_OVERSEERS = [table for table in TABLES if table != "bulk_change"]

# One statement for each verb; none needs a row to be there.
INSERTS = {
    "authority": "INSERT INTO authority (name) VALUES ('new')",
    "authority_name": "INSERT INTO authority_name (authority_id, name) VALUES (1, '')",
    "authority_key": "INSERT INTO authority_key (authority_id, public_key) VALUES (1, '')",
    "authority_certificate": "INSERT INTO authority_certificate (authority_id, certificate) VALUES (1, '')",
    "authority_crl": "INSERT INTO authority_crl (authority_id, this_update, next_update) VALUES (1, now(), 'infinity')",
    "certificate_status": "INSERT INTO certificate_status (authority_id, serial_number, cert_status, version)"
    " VALUES (1, '\\x01', 'good', 1)",
    "status_change": "INSERT INTO status_change (authority_id, serial_number, change, actor)"
    " VALUES (1, '\\x01', 'issue', 'test')",
    "timestamp_token": "INSERT INTO timestamp_token (serial_number, gen_time, policy, hash_algorithm, hashed_message,"
    " tsu, clock_state, token_sha256) SELECT '\\x01', now(), '1.2', 'sha256', '', 't', 'good', sha256('') WHERE false",
    "serial_epoch": "INSERT INTO serial_epoch (tsu) VALUES ('t')",
    "clock_event": "INSERT INTO clock_event (at, host, event, state, detail) VALUES (now(), 'h', 'sync', 's', '')",
    "tsu_freeze": "INSERT INTO tsu_freeze (tsu, reason, actor) VALUES (repeat('0', 64), 'a test', 'test')",
    "token_retention": "INSERT INTO token_retention (drop_before, partitions, tokens, actor)"
    " VALUES (now(), '{}', 0, 'test')",
    "alembic_version": "INSERT INTO alembic_version VALUES ('9999')",
    "authority_policy": "INSERT INTO authority_policy (authority_id) VALUES (1)",
    "authority_login": "INSERT INTO authority_login (login, authority_id) VALUES ('nobody', 1)",
    "credential": "INSERT INTO credential (name, role, token_sha256, expires_at, created_by)"
    " VALUES ('c', 'auditor', sha256(''), now() + '1 day', 'test')",
    "idempotency_key": "INSERT INTO idempotency_key (credential_id, key, request_sha256)"
    " SELECT 1, 'k', sha256('') WHERE false",
    "audit_record": "INSERT INTO audit_record (chain, number, at, event, actor, through, login, detail,"
    " previous_sha256, sha256) SELECT 0, 1, now(), 'x', 'x', 'x', 'x', '{}', '', '' WHERE false",
    "audit_head": "INSERT INTO audit_head (chain, number, sha256) SELECT 0, 0, '' WHERE false",
    "crl_scope": "INSERT INTO crl_scope (authority_id, scope, this_update, next_update, crl_sha256, complete_entries,"
    " actor) VALUES (1, '', now(), now() + '1 day', sha256(''), 0, 'test')",
    "crl_scope_authority": "INSERT INTO crl_scope_authority (crl_scope, authority_id) SELECT 1, 1 WHERE false",
    "crl_hold": "INSERT INTO crl_hold (crl_scope, authority_id, serial_number) SELECT 1, 1, '\\x01' WHERE false",
    "published_answer": "INSERT INTO published_answer (authority_id, serial_number, cert_id_hash, produced_at,"
    " this_update, next_update, cert_status, status_version, response)"
    " VALUES (1, '\\x01', 'SHA-1', now(), now(), now() + '1 day', 'good', 1, '\\x30')",
    "presigned_authority": "INSERT INTO presigned_authority VALUES (1, '{SHA-1}', true)",
    "heartbeat": "INSERT INTO heartbeat (at) VALUES (now())",
    "bulk_change": "INSERT INTO bulk_change (version, authority_id, serial_number, change, actor)"
    " VALUES (1, 1, '\\x01', 'issue', 'test')",
}


def statement_of(verb: str, table: str) -> str:
    """A statement that needs this right on the table."""
    if verb == "insert":
        return INSERTS[table]
    column = {
        "authority": "name",
        "certificate_status": "version",
        "status_change": "actor",
        "bulk_change": "actor",
        "serial_epoch": "tsu",
        "timestamp_token": "tsu",
        "clock_event": "host",
        "tsu_freeze": "tsu",
        "token_retention": "actor",
        "alembic_version": "version_num",
        "authority_login": "login",
        "credential": "revoked_at",
        "idempotency_key": "versions",
        "audit_record": "chain",
        "audit_head": "chain",
        "heartbeat": "at",
    }.get(table, "authority_id")
    return {
        "select": f"SELECT {column} FROM {table}",
        "update": f"UPDATE {table} SET {column} = {column} WHERE false",
        "delete": f"DELETE FROM {table} WHERE false",
        "truncate": f"TRUNCATE {table} CASCADE",
    }[verb]


ALLOWED = {
    *itertools.product(
        ["lakthan_responder", "lakthan_presigner"],
        ["select"],
        [*AUTHORITIES, "certificate_status", "published_answer", "presigned_authority", "audit_head", "heartbeat"],
    ),
    # Every service asks whether the schema is new enough for it.
    *itertools.product(ROLES, ["select"], ["alembic_version"]),
    ("lakthan_responder", "select", "audit_record"),
    ("lakthan_tsa", "insert", "timestamp_token"),
    ("lakthan_tsa", "insert", "serial_epoch"),
    ("lakthan_tsa", "insert", "clock_event"),
    ("lakthan_tsa", "select", "tsu_freeze"),
    ("lakthan_registry", "insert", "tsu_freeze"),
    *itertools.product(["lakthan_registry"], ["select"], READ_BY_OVERSEERS),
    *itertools.product(["lakthan_registry"], ["insert", "update", "delete"], AUTHORITIES),
    ("lakthan_registry", "insert", "status_change"),
    *itertools.product(
        ["lakthan_registry", "lakthan_registrar"], ["insert", "update"], ["authority_policy", "credential"]
    ),
    *itertools.product(["lakthan_registry", "lakthan_registrar"], ["insert", "delete"], ["authority_login"]),
    *itertools.product(["lakthan_registry", "lakthan_publisher"], ["insert", "update", "delete"], ["idempotency_key"]),
    *itertools.product(["lakthan_registrar", "lakthan_auditor"], ["select"], READ_BY_OVERSEERS),
    *itertools.product(
        ["lakthan_registrar"], ["insert"], ["authority", "authority_name", "authority_key", "authority_certificate"]
    ),
    *itertools.product(
        ["lakthan_publisher"],
        ["select"],
        [
            *AUTHORITIES,
            "authority_policy",
            "certificate_status",
            "status_change",
            "credential",
            "idempotency_key",
            "audit_record",
            "audit_head",
            "crl_scope",
            "crl_scope_authority",
            "crl_hold",
            "published_answer",
        ],
    ),
    ("lakthan_publisher", "insert", "status_change"),
}


async def test_no_table_is_forgotten(open_as: OpenPool) -> None:
    """The table of rights speaks of every table and every role that the schema makes."""
    owner = await open_as(None)
    tables = await owner.fetch(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm')"
        " AND NOT relispartition"
    )
    assert {row["relname"] for row in tables} == set(TABLES)
    roles = await owner.fetch("SELECT rolname FROM pg_roles WHERE rolname LIKE 'lakthan%' AND NOT rolcanlogin")
    assert {row["rolname"] for row in roles} == set(ROLES)


@pytest.mark.parametrize("role", ROLES)
async def test_rights_follow_the_service(open_as: OpenPool, authority_id: int, role: str) -> None:
    """Every verb on every table works exactly where the table of rights allows it. OCSP-78, OCSP-94."""
    assert authority_id == 1
    pool = await open_as(role)
    may = set()
    for verb, table in itertools.product(["select", "insert", "update", "delete", "truncate"], TABLES):
        async with pool.acquire() as connection:
            transaction = connection.transaction()
            await transaction.start()
            try:
                await connection.execute("SET LOCAL lakthan.authority = 1")
                await connection.execute(statement_of(verb, table))
                may.add((role, verb, table))
            except asyncpg.InsufficientPrivilegeError:
                pass  # the answer to the question
            finally:
                await transaction.rollback()
    assert may == {right for right in ALLOWED if right[0] == role}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE mine (id int)",
        "CREATE FUNCTION public.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "ALTER TABLE status_change DISABLE TRIGGER ALL",
        "SET session_replication_role = replica",
        "SELECT nextval('status_version')",
        "SELECT setval('status_version', 1)",
        "SELECT nextval('change_batch')",
        "ALTER TABLE status_change DISABLE ROW LEVEL SECURITY",
        "CREATE POLICY mine ON status_change USING (true)",
        "SELECT demand_may_act_for(1)",
    ],
)
async def test_no_role_can_touch_the_machinery(open_as: OpenPool, role: str, statement: str) -> None:
    """No service can make objects, switch triggers off or move the sequence of versions."""
    pool = await open_as(role)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await pool.execute(statement)


async def test_a_tsa_cannot_choose_its_epoch(open_as: OpenPool) -> None:
    """An epoch comes from the database; a unit cannot write down one of its own choice."""
    pool = await open_as("lakthan_tsa")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await pool.execute("INSERT INTO serial_epoch (epoch, tsu) OVERRIDING SYSTEM VALUE VALUES (7, 't')")


async def test_a_login_acts_as_the_role_of_its_service(
    database_url: str, authority_id: int, owner_of_logins: asyncpg.Connection
) -> None:
    """A login that is a member of a role acts as that role at once, and cannot act as another one."""
    pool = await open_pool(
        login_url(database_url, "lakthan_test_login"),
        role="lakthan_registry",
        min_size=1,
        max_size=1,
        password="a test's own",
        application_name="lakthan-test",
    )
    try:
        assert await pool.fetchval("SELECT current_user::text") == "lakthan_registry"
        await ChangeWriter(pool).issue(authority_id, b"\x01", actor="test")
        assert await pool.fetchval("SELECT current_user::text") == "lakthan_registry"
    finally:
        await pool.close()
    with pytest.raises(ConfigError, match="GRANT lakthan_tsa TO"):
        await open_pool(
            login_url(database_url, "lakthan_test_login"),
            role="lakthan_tsa",
            min_size=1,
            max_size=1,
            password="a test's own",
            application_name="lakthan-test",
        )
    assert not owner_of_logins.is_closed()


def login_url(url: str, login: str) -> str:
    """The same database, another login."""
    scheme, rest = url.split("://", 1)
    return f"{scheme}://{login}@{rest.split('@', 1)[1]}"


@pytest.fixture
async def owner_of_logins(server_url: str, template_url: str) -> AsyncIterator[asyncpg.Connection]:
    """The owner's connection, after making a login for the registry; it is removed again."""
    owner = await asyncpg.connect(with_database(server_url, "postgres"))
    await owner.execute(
        "CREATE ROLE lakthan_test_login LOGIN PASSWORD 'a test''s own'; GRANT lakthan_registry TO lakthan_test_login"
    )
    yield owner
    await owner.execute("DROP ROLE lakthan_test_login")
    await owner.close()
