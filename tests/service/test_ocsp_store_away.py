"""The OCSP service without its database: it says so in the protocol, and comes back by itself."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path

from lakthan.store.embedded import EmbeddedPostgres
from lakthan.store.feed import BOUND
from lakthan.store.migrate import migrate
from support.pki import issue, new_ca
from support.responder import request_for, running_responder


async def test_try_later_is_for_when_nothing_better_can_be_said(tmp_path: Path) -> None:
    """While the database is away requests get tryLater, which no cache may keep; when it is back, answers. OCSP-Q53."""
    (tmp_path / "keys").mkdir()
    server = EmbeddedPostgres(tmp_path / "postgres", durable=False)
    await asyncio.to_thread(server.__enter__)
    try:
        url = server.url()
        await migrate(url)
        async with running_responder(url, tmp_path / "keys") as responder:
            request = request_for(await responder.issue(issue("good", responder.ca)), responder.ca)
            assert (await responder.post(request)).cert_statuses == ["good"]
            await asyncio.to_thread(server.__exit__, None, None, None)
            async with asyncio.timeout(60):  # until the responder has noticed that nobody tells it of changes
                while (reply := await responder.post(request)).status == "successful":  # noqa: ASYNC110 - as clients do
                    await asyncio.sleep(0.05)
            assert reply.body == bytes.fromhex("30030a0103")
            assert (reply.http_status, reply.headers["Cache-Control"]) == (200, "max-age=0, no-cache, no-store")
            await asyncio.to_thread(server.__enter__)
            async with asyncio.timeout(60):
                while (reply := await responder.post(request)).status != "successful":  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.05)
            assert reply.cert_statuses == ["good"]
    finally:
        await asyncio.to_thread(server.__exit__, None, None, None)


async def test_news_of_an_authority_refuse_nobody(database_url: str, tmp_path: Path) -> None:
    """When an authority is added, or has a newer CRL, the responder reads all of them again; whoever asks meanwhile
    gets an answer from the store, however long ago they were read before.
    """
    async with running_responder(database_url, tmp_path) as responder:
        request = request_for(await responder.issue(issue("good", responder.ca)), responder.ca)
        old_enough = time.monotonic() + 1.1 * BOUND.total_seconds()
        statuses: list[str] = []

        async def ask_on() -> None:
            while True:
                statuses.append((await responder.post(request)).status)

        asking = asyncio.ensure_future(ask_on())
        while time.monotonic() < old_enough:  # noqa: ASYNC110 - for time itself
            await asyncio.sleep(0.05)
        for number in range(20):
            await responder.authorities.add_authority(f"ca-{number}", [new_ca(f"CA {number}").der])
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking
        assert set(statuses) == {"successful"}
