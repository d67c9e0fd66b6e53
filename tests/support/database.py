"""A real PostgreSQL for the tests, and an empty, migrated database for each of them.

The server is the one that `LAKTHAN_TEST_DATABASE_URL` names (a superuser's URL), else an embedded one for the session.
The schema is made once, in a template; a test's own database is a copy of it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack

import asyncpg
import pytest

from lakthan.store.embedded import EmbeddedPostgres
from lakthan.store.migrate import migrate
from lakthan.store.pool import open_pool

OpenPool = Callable[..., Awaitable[asyncpg.Pool]]


def with_database(url: str, database: str) -> str:
    """The same server and login, another database."""
    return urllib.parse.urlunsplit(urllib.parse.urlsplit(url)._replace(path=f"/{database}"))


async def create_database(url: str, *, template: str = "template0") -> str:
    """Make a database beside the one of `url`; gives its URL."""
    name = f"lakthan_test_{os.getpid()}_{secrets.token_hex(4)}"
    await _run(url, f"CREATE DATABASE {name} TEMPLATE {template}")
    return with_database(url, name)


async def drop_database(url: str) -> None:
    """Remove a database, whoever is still connected to it."""
    name = urllib.parse.urlsplit(url).path.removeprefix("/")
    await _run(with_database(url, "postgres"), f"DROP DATABASE {name} WITH (FORCE)")


async def _run(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The owner's URL of a PostgreSQL server for this session."""
    given = os.environ.get("LAKTHAN_TEST_DATABASE_URL")
    if given:
        yield given
        return
    with EmbeddedPostgres(tmp_path_factory.mktemp("server"), durable=False) as server:
        yield server.url(database="postgres")


@pytest.fixture(scope="session")
def template_url(server_url: str) -> Iterator[str]:
    """A migrated database that is only copied."""
    url = asyncio.run(create_database(server_url))
    asyncio.run(migrate(url))
    yield url
    asyncio.run(drop_database(url))


@pytest.fixture
async def empty_database_url(server_url: str) -> AsyncIterator[str]:
    """A database without any schema, for one test."""
    url = await create_database(server_url)
    yield url
    await drop_database(url)


@pytest.fixture
async def database_url(server_url: str, template_url: str) -> AsyncIterator[str]:
    """A migrated, empty database for one test; the login owns it."""
    url = await create_database(server_url, template=urllib.parse.urlsplit(template_url).path.removeprefix("/"))
    yield url
    await drop_database(url)


@pytest.fixture
async def open_as(database_url: str) -> AsyncIterator[OpenPool]:
    """Opens pools on the test's database that act as the given role (None: its owner), closed at the end."""
    async with AsyncExitStack() as stack:

        async def open_one(role: str | None, *, max_size: int = 4) -> asyncpg.Pool:
            pool = await open_pool(
                database_url, role=role, min_size=1, max_size=max_size, application_name="lakthan-test"
            )
            stack.push_async_callback(pool.close)
            return pool

        yield open_one


@pytest.fixture
async def authority_id(database_url: str) -> int:
    """An authority in the test's database, so far without names, keys and certificates."""
    connection = await asyncpg.connect(database_url)
    try:
        made: int = await connection.fetchval("INSERT INTO authority (name) VALUES ('ອົງການ Public CA') RETURNING id")
    finally:
        await connection.close()
    return made
