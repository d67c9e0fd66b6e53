"""Opening connections: what is refused is explained, what is away is said to be away."""

from __future__ import annotations

import re
from pathlib import Path

import asyncpg
import pytest

from lakthan.errors import ConfigError, StoreUnavailable
from lakthan.store.pool import connect, open_pool, unavailable_as_such
from support.database import OpenPool, with_database


async def open_with(url: str, *, role: str | None = None, password: str | None = None) -> asyncpg.Pool:
    """A pool of one."""
    return await open_pool(url, role=role, min_size=1, max_size=1, password=password, application_name="lakthan-test")


async def test_no_server_is_an_unavailable_store(tmp_path: Path) -> None:
    """A socket that is not there means: not now."""
    with pytest.raises(StoreUnavailable):
        await open_with(f"postgresql://owner@/lakthan?host={tmp_path}")


async def test_a_pool_can_be_opened_before_its_server(tmp_path: Path) -> None:
    """With min_size 0 a service starts without its database, and each use says that it is away."""
    pool = await open_pool(
        f"postgresql://owner@/lakthan?host={tmp_path}",
        role=None,
        min_size=0,
        max_size=1,
        application_name="lakthan-test",
    )
    with pytest.raises(StoreUnavailable), unavailable_as_such():
        await pool.fetchval("SELECT 1")
    await pool.close()


async def test_wrong_settings_are_explained(server_url: str, database_url: str) -> None:
    """A missing role, a missing database, a wrong password and a broken URL are the operator's turn, in words."""
    with pytest.raises(ConfigError, match="lakthan db migrate"):
        await open_with(database_url, role="lakthan_nobody")
    with pytest.raises(ConfigError, match="create the database"):
        await open_with(with_database(server_url, "lakthan_nowhere"))
    with pytest.raises(ConfigError, match="check user and password"):
        await open_with(re.sub("://[^@]*@", "://lakthan_no_such_login@", database_url), password="wrong")
    with pytest.raises(ConfigError, match="URL"):
        await open_with("mysql://owner@localhost/x")


async def test_connections_have_limits_and_a_role(open_as: OpenPool) -> None:
    """Each connection acts as its role, in UTC, with time limits, also after it was used."""
    pool = await open_as("lakthan_tsa", max_size=1)
    for _ in range(2):
        assert await pool.fetchval("SELECT current_user::text") == "lakthan_tsa"
        assert await pool.fetchval("SHOW statement_timeout") == "10s"
        assert await pool.fetchval("SHOW TimeZone") == "UTC"
        assert await pool.fetchval("SHOW application_name") == "lakthan-test"


@pytest.mark.parametrize(
    "statement",
    [
        "SET statement_timeout = '10ms'; SELECT pg_sleep(5)",
        "SELECT pg_terminate_backend(pg_backend_pid())",
        "BEGIN READ ONLY; CREATE TABLE x (id int)",
        "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '53300'; END $$",
        "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40P01'; END $$",
        "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '57P03'; END $$",
        "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '08006'; END $$",
        "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '53100'; END $$",
    ],
)
async def test_what_means_not_now(database_url: str, statement: str) -> None:
    """Timeouts, shutdowns, a standby, full disks and lost connections are all an unavailable store, cause chained."""
    connection = await connect(database_url, application_name="lakthan-test")
    with pytest.raises(StoreUnavailable) as unavailable, unavailable_as_such():
        await connection.execute(statement)
    assert unavailable.value.__cause__ is not None
    await connection.close()


async def test_a_defect_stays_a_defect(database_url: str) -> None:
    """Broken SQL is our own mistake and is not called an outage."""
    connection = await connect(database_url, application_name="lakthan-test")
    with pytest.raises(asyncpg.UndefinedTableError), unavailable_as_such():
        await connection.execute("SELECT * FROM no_such_table")
    await connection.close()
