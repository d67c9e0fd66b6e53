"""What is committed and not confirmed: in one place only, because nobody receives the database's log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from lakthan.store import pool
from lakthan.store.migrate import migrate
from support.archived_postgres import ArchivedPostgres
from support.pki import issue
from support.registry import JSONReply, Registry, crl_of, new_client, pem, running_registry


@pytest.fixture
async def postgres(tmp_path: Path) -> AsyncIterator[ArchivedPostgres]:
    """A server that confirms a commit when it is in two places."""
    postgres = ArchivedPostgres(tmp_path / "database")
    await asyncio.to_thread(postgres.make)
    try:
        await migrate(postgres.server.url())
        await asyncio.to_thread(postgres.begin_archiving)
        await postgres.until_archiving()
        yield postgres
    finally:
        await asyncio.to_thread(postgres.close)


async def what_cas_say(registry: Registry) -> dict[str, Callable[[], Awaitable[JSONReply]]]:
    """All that a CA may say again when it was not heard, each about a certificate of its own."""
    announced, revoked, listed, published = (issue(name, registry.a) for name in ("ann", "ben", "cat", "dan"))
    client = new_client(registry.clients)
    await registry.bind("ejbca", client)
    announcing = {"changes": [{"change": "issue", "certificate": pem(announced)}]}
    revoking = {"changes": [{"change": "revoke", "certificate": pem(revoked)}]}
    crl = crl_of(registry.a, 1, listed)
    ejbca = {"status": "active", "revocationDate": "1969-12-31 23:59:59 UTC", "pem": pem(published)}
    return {
        "announced again": partial(registry.post, "/v1/changes", announcing),
        "with the same key": partial(registry.post, "/v1/changes", revoking, key="case-4711"),
        "the same CRL": partial(
            registry.ask, "POST", "/v1/crls", raw=crl, headers={"Content-Type": "application/pkix-crl"}
        ),
        "from EJBCA's queue": partial(
            registry.ask, "POST", "/ejbca/cert-safe", who=None, certificate=client, body=ejbca
        ),
    }


async def test_what_is_repeated_is_confirmed_no_sooner(
    postgres: ArchivedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CA that gave up waiting finds on record what it says again, for the commit is on the server's own disk. It is
    not told that all is done before somebody received it: the one disk may be lost.
    """
    monkeypatch.setattr(pool, "_COMMAND_TIMEOUT_SECONDS", 0.5)
    async with running_registry(postgres.server.url(), tmp_path) as registry:
        for name, say in (await what_cas_say(registry)).items():
            before = await registry.state()
            with postgres.nobody_receives():
                while await registry.state() == before:
                    assert (await say()).http_status == 503, name
                assert (await say()).http_status == 503, f"{name}: confirmed, and it is in one place only"
            while (reply := await say()).http_status != 200:
                assert reply.http_status == 503, name
