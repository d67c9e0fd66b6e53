"""Migrations: applied once, whole, by whoever comes first, and explained when they cannot be."""

from __future__ import annotations

import asyncio
import re
import sys
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest

import lakthan.store.migrate
from lakthan.errors import ConfigError, StoreUnavailable
from lakthan.store.audit import AuditReader
from lakthan.store.audit_verify import verify
from lakthan.store.changes import ChangeWriter
from lakthan.store.migrate import migrate, status
from lakthan.store.pool import open_pool
from lakthan.store.schema import revisions, schema_problem
from support.database import create_database, drop_database, with_database

SCRIPTS = sorted((Path(lakthan.store.migrate.__file__).parent / "migrations" / "versions").glob("*.sql"))


async def execute(url: str, statement: str) -> None:
    """Run statements as the URL's login."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def test_an_empty_database_is_brought_up_to_date_once(empty_database_url: str) -> None:
    """The status says what is pending, migrate applies it in order, and a second call has nothing to do."""
    before = await status(empty_database_url)
    assert before.current is None
    assert before.pending
    assert await migrate(empty_database_url) == list(before.pending)
    after = await status(empty_database_url)
    assert (after.current, after.pending) == (before.head, ())
    assert await migrate(empty_database_url) == []


async def test_two_processes_at_once_do_the_work_once(empty_database_url: str) -> None:
    """Two processes that start together both end well, and each revision is applied by one of them."""
    program = "import asyncio, sys; from lakthan.store.migrate import migrate; print(asyncio.run(migrate(sys.argv[1])))"
    started = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, empty_database_url, stdout=asyncio.subprocess.PIPE
        )
        for _ in range(2)
    ]
    outputs = [(await process.communicate())[0].decode().strip() for process in started]
    assert [process.returncode for process in started] == [0, 0]
    head = (await status(empty_database_url)).head
    assert "[]" in outputs
    assert sorted(output.endswith(f"'{head}']") for output in outputs) == [False, True]


async def test_two_databases_of_one_server_share_the_roles(server_url: str) -> None:
    """Roles belong to the whole server: databases that are migrated at the same moment do not trip over them."""
    urls = [await create_database(server_url) for _ in range(3)]
    try:
        assert len({tuple(applied) for applied in await asyncio.gather(*(migrate(url) for url in urls))}) == 1
    finally:
        for url in urls:
            await drop_database(url)


async def test_a_revision_that_fails_leaves_nothing(empty_database_url: str) -> None:
    """When a statement in the middle fails, none of its revision is there, and the next attempt can succeed."""
    await execute(empty_database_url, "CREATE TABLE timestamp_token (in_the_way int)")
    with pytest.raises(asyncpg.DuplicateTableError):
        await migrate(empty_database_url)
    assert (await status(empty_database_url)).current is None
    connection = await asyncpg.connect(empty_database_url)
    assert await connection.fetchval("SELECT to_regclass('authority')") is None
    await connection.close()
    await execute(empty_database_url, "DROP TABLE timestamp_token")
    assert await migrate(empty_database_url)


async def test_a_newer_database_is_left_alone(database_url: str) -> None:
    """Old code neither touches a database that newer code has migrated, nor calls it up to date."""
    await execute(database_url, "UPDATE alembic_version SET version_num = '9999'")
    for call in (status, migrate):
        with pytest.raises(ConfigError, match=r"9999.*run the newer Lakthan"):
            await call(database_url)


async def test_missing_rights_are_explained(empty_database_url: str, server_url: str) -> None:
    """A login that may not make tables is told what right it needs and what an administrator can do."""
    owner = with_database(server_url, "postgres")
    await execute(owner, "CREATE ROLE lakthan_test_plain LOGIN PASSWORD 'plain'")
    try:
        with pytest.raises(ConfigError, match=r"owner of the database.*CREATE ROLE lakthan_responder NOLOGIN"):
            await migrate(re.sub("://[^@]*@", "://lakthan_test_plain@", empty_database_url), password="plain")
    finally:
        await execute(owner, "DROP ROLE lakthan_test_plain")


async def test_an_owner_without_superpowers(server_url: str, template_url: str) -> None:
    """The owner of a managed database is no superuser. With the one right that the message asks for, every revision
    applies; the roles are there already, made by an administrator.
    """
    owner = with_database(server_url, "postgres")
    database = with_database(server_url, "lakthan_test_owned")
    theirs = re.sub("://[^@]*@", "://lakthan_test_owner@", database)
    await execute(owner, "CREATE ROLE lakthan_test_owner LOGIN PASSWORD 'plain'")
    await execute(owner, "CREATE DATABASE lakthan_test_owned OWNER lakthan_test_owner TEMPLATE template0")
    try:
        with pytest.raises(ConfigError, match=r"GRANT SET ON PARAMETER lakthan\.by_function"):
            await migrate(theirs, password="plain")
        await execute(owner, "GRANT SET ON PARAMETER lakthan.by_function TO lakthan_test_owner")
        assert await migrate(theirs, password="plain")
        assert (await status(theirs, password="plain")).pending == ()
    finally:
        await execute(owner, "DROP DATABASE lakthan_test_owned WITH (FORCE)")
        await execute(owner, "REVOKE SET ON PARAMETER lakthan.by_function FROM lakthan_test_owner")
        await execute(owner, "DROP ROLE lakthan_test_owner")


async def test_no_server_is_an_unavailable_store(tmp_path: Path) -> None:
    """Where nobody listens, migrate and status say that the store is unavailable."""
    for call in (status, migrate):
        with pytest.raises(StoreUnavailable):
            await call(f"postgresql://owner@/lakthan?host={tmp_path}")


async def test_the_first_schema_is_brought_up_with_its_rows(empty_database_url: str) -> None:
    """What was recorded before there was an audit chain stays as it is and is sealed as it was found, per authority."""
    folder = Path(lakthan.store.migrate.__file__).parent / "migrations" / "versions"
    await execute(empty_database_url, (folder / "r0001_first_schema.sql").read_text())
    await execute(
        empty_database_url,
        """
        CREATE TABLE alembic_version (version_num varchar(32) NOT NULL PRIMARY KEY);
        INSERT INTO alembic_version VALUES ('0001');
        INSERT INTO authority (name) VALUES ('one'), ('two'), ('empty');
        INSERT INTO status_change (authority_id, serial_number, change, actor)
        SELECT 1 + n % 2, int4send(n), 'issue', 'ຜູ້' FROM generate_series(16777216, 16777216 + 99) n;
        INSERT INTO status_change (authority_id, serial_number, change, actor)
        VALUES (1, int4send(16777216), 'hold', 'a');
        INSERT INTO status_change (authority_id, serial_number, change, actor, invalidity_date)
        VALUES (1, int4send(16777216), 'revoke', 'a', '1999-12-31 23:59:59Z');
        """,
    )
    connection = await asyncpg.connect(empty_database_url)
    rows = "SELECT version, authority_id, serial_number, change, actor, recorded_at FROM status_change ORDER BY version"
    before = await connection.fetch(rows)
    statuses = await connection.fetch("SELECT * FROM certificate_status ORDER BY authority_id, serial_number")
    pending = (await status(empty_database_url)).pending
    assert pending[0] == "0002"
    assert await migrate(empty_database_url) == list(pending)
    assert await connection.fetch(rows) == before
    assert await connection.fetch("SELECT * FROM certificate_status ORDER BY authority_id, serial_number") == statuses
    await connection.close()
    pool = await open_pool(
        empty_database_url, role="lakthan_registry", min_size=1, max_size=1, application_name="lakthan-test"
    )
    try:
        reader = AuditReader(pool)
        for authority, changes in ((1, 52), (2, 50)):
            (record,) = await reader.page(authority)
            assert (record.event, record.actor, record.through) == ("changes", "lakthan db migrate", "migration")
            assert (record.number, record.batch, record.change_count) == (1, 1, changes)
        assert await reader.page(3) == []
        writer = ChangeWriter(pool)
        await writer.revoke(2, (16777217).to_bytes(4, "big"), actor="new")
        await writer.issue(3, b"\x01", actor="new")
        report = await verify(pool)
        assert (report.findings, report.changes, report.statuses) == ([], 104, 101)
    finally:
        await pool.close()


async def test_who_holds_locks_does_not_stop_everybody_else(empty_database_url: str) -> None:
    """While somebody reads a table for long, a revision that wants to change it gives way again and again, so look-ups
    go on; when he has done, the revision is applied.
    """
    await migrate_to(empty_database_url, "0005")
    reader, others = await asyncpg.connect(empty_database_url), await asyncpg.connect(empty_database_url)
    try:
        long_read = reader.transaction()
        await long_read.start()
        await reader.execute("SELECT FROM published_answer")
        migrating = asyncio.create_task(migrate(empty_database_url))
        waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'published_answer'::regclass AND NOT granted"
        for _ in range(2):
            while not await others.fetchval(waiting):  # noqa: ASYNC110 - nobody would tell
                await asyncio.sleep(0.01)
            # Behind the revision that waits; it would never come back if that one waited for the reader to end.
            await others.execute("SELECT FROM published_answer")
        assert not migrating.done()
        await long_read.rollback()
        applied = await migrating
    finally:
        await reader.close()
        await others.close()
    assert applied[0] == "0006"
    assert (await status(empty_database_url)).pending == ()


async def test_patience_has_an_end(empty_database_url: str) -> None:
    """When the locks are never given back, the migration ends by saying so, and nothing was changed."""
    await migrate_to(empty_database_url, "0005")
    reader = await asyncpg.connect(empty_database_url)
    try:
        async with reader.transaction():
            await reader.execute("SELECT FROM published_answer")
            with pytest.raises(StoreUnavailable, match="lock timeout"):
                await migrate(empty_database_url, patience=timedelta(0))
            assert (await status(empty_database_url)).current == "0005"
    finally:
        await reader.close()


async def migrate_to(url: str, revision: str) -> None:
    """What an older release's migration leaves behind."""
    for script in SCRIPTS:
        if script.name[1:5] <= revision:
            await execute(url, script.read_text())
    await execute(
        url,
        f"""
        CREATE TABLE alembic_version (version_num varchar(32) NOT NULL PRIMARY KEY);
        INSERT INTO alembic_version VALUES ('{revision}');
        """,
    )


async def test_services_can_ask_whether_the_schema_is_new_enough(empty_database_url: str) -> None:
    """A service may read how new the schema is, and says what to run when that is too old; a newer one is right."""
    assert revisions()[-1] == (await status(empty_database_url)).head
    await migrate(empty_database_url)
    pool = await open_pool(
        empty_database_url, role="lakthan_tsa", min_size=1, max_size=1, application_name="lakthan-test"
    )
    try:
        assert not await schema_problem(pool)
        await execute(empty_database_url, "UPDATE alembic_version SET version_num = '0006'")
        assert "at revision 0006" in await schema_problem(pool)
        await execute(empty_database_url, "UPDATE alembic_version SET version_num = '9999'")
        assert not await schema_problem(pool)
        await execute(empty_database_url, "REVOKE SELECT ON alembic_version FROM lakthan_tsa")
        assert "lakthan db migrate" in await schema_problem(pool)
        await execute(empty_database_url, f"UPDATE alembic_version SET version_num = '{revisions()[-1]}'")
        assert await migrate(empty_database_url) == []
        assert not await schema_problem(pool)
        await execute(empty_database_url, "DROP TABLE alembic_version")
        assert "is empty" in await schema_problem(pool)
    finally:
        await pool.close()


def test_every_revision_has_its_sql() -> None:
    """Each revision module stands beside the SQL file that it runs."""
    folder = Path(lakthan.store.migrate.__file__).parent / "migrations" / "versions"
    modules = {path.stem for path in folder.glob("*.py")}
    assert modules == {path.stem for path in folder.glob("*.sql")} != set()
