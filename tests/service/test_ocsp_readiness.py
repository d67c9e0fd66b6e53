"""When a responder is a good place for requests: a real PostgreSQL goes and comes back, and /readyz says what is true.

docs/decisions/0022-readiness.md has the reasons.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes

from lakthan.errors import StoreUnavailable
from lakthan.store.embedded import EmbeddedPostgres
from lakthan.store.migrate import migrate
from lakthan_ocsp.readiness import Readiness
from support.pki import issue
from support.responder import ACTOR, Responder, request_for, running_responder


@asynccontextmanager
async def responder_and_its_database(
    folder: Path, outage_bound: timedelta
) -> AsyncIterator[tuple[Responder, EmbeddedPostgres]]:
    """A responder, and the PostgreSQL behind it."""
    (folder / "keys").mkdir()
    server = EmbeddedPostgres(folder / "postgres", durable=False)
    await asyncio.to_thread(server.__enter__)
    try:
        await migrate(server.url())
        async with running_responder(server.url(), folder / "keys", outage_bound=outage_bound) as responder:
            yield responder, server
    finally:
        await asyncio.to_thread(server.__exit__, None, None, None)


async def readyz(responder: Responder) -> tuple[int, str]:
    """What the admin port says."""
    async with responder.session.get(f"{responder.admin_url}/readyz") as reply:
        return reply.status, await reply.text()


async def until_said(responder: Responder, status: int, words: str) -> str:
    """Return when /readyz has this status and says these words."""
    async with asyncio.timeout(60):
        while True:
            now, text = await readyz(responder)
            if now == status and words in text:
                return text
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("outage_bound", [timedelta(0), timedelta(milliseconds=500)])
async def test_who_has_nothing_left_to_say_leaves(outage_bound: timedelta, tmp_path: Path) -> None:
    """Without the database, and without a bound or beyond it, every request would get tryLater: the process is not
    ready, says why, and is ready again when the database is back.
    """
    async with responder_and_its_database(tmp_path, outage_bound) as (responder, server):
        request = request_for(await responder.issue(issue("good", responder.ca)), responder.ca)
        assert (await responder.post(request)).cert_statuses == ["good"]
        await until_said(responder, 200, "change feed: ok")
        await asyncio.to_thread(server.__exit__, None, None, None)
        await until_said(responder, 503, "database: every request gets tryLater")
        assert (await responder.post(request)).status == "try_later"
        await asyncio.to_thread(server.__enter__)
        await until_said(responder, 200, "change feed: ok")
        assert (await responder.post(request)).cert_statuses == ["good"]


async def test_who_remembers_answers_stays(tmp_path: Path) -> None:
    """Within the bound a process without its database is ready and gives the very answers that it gave before, however
    the same is asked, and signs none; what it does not remember gets tryLater. When the database is back, a revocation
    counts at once.
    """
    async with responder_and_its_database(tmp_path, timedelta(minutes=10)) as (responder, server):
        known = await responder.issue(issue("known", responder.ca))
        other = await responder.issue(issue("other", responder.ca))
        request = request_for(known, responder.ca)
        before = [await responder.post(request), await responder.get(request), await responder.get(request)]
        assert {reply.body for reply in before} == {before[0].body}
        await asyncio.to_thread(server.__exit__, None, None, None)
        await until_said(responder, 200, "database (away: only what is remembered is answered): ok")
        signed = (await responder.metrics())['lakthan_ocsp_sign_seconds_count{authority="public-ca"}']
        for reply in (await responder.post(request), await responder.get(request)):
            assert reply.body == before[0].body
        cached = int(reply.headers["Cache-Control"].partition("max-age=")[2].partition(",")[0])
        assert cached <= 300
        for unknown in (
            request_for(known, responder.ca, nonce=bytes(range(32))),
            request_for(known, responder.ca, algorithm=hashes.SHA1()),
            request_for(other, responder.ca),
        ):
            assert (await responder.post(unknown)).status == "try_later"
        assert (await responder.metrics())['lakthan_ocsp_sign_seconds_count{authority="public-ca"}'] == signed
        await asyncio.to_thread(server.__enter__)
        await until_said(responder, 200, "change feed: ok")
        await responder.writer.revoke(responder.authority_id, known.serial_number, actor=ACTOR)
        async with asyncio.timeout(30):
            while (await responder.post(request)).cert_statuses != ["revoked"]:  # noqa: ASYNC110 - as clients do
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("seconds", [3600.0, -3600.0])
async def test_who_has_no_clock_to_sign_by_leaves(
    seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the moment in which the wall clock is set to another hour than the database's, nothing is signed and nothing
    remembered is given: tryLater, not ready, and it is said why. When it is right again, answers come again.
    """
    async with responder_and_its_database(tmp_path, timedelta(minutes=10)) as (responder, _):
        request = request_for(await responder.issue(issue("good", responder.ca)), responder.ca)
        with_nonce = request_for(await responder.issue(issue("other", responder.ca)), responder.ca, nonce=bytes(32))
        await until_said(responder, 200, "change feed: ok")
        for _ in range(3):  # signed, remembered, and ready in octets
            assert (await responder.post(request)).cert_statuses == ["good"]
            assert (await responder.post(with_nonce)).cert_statuses == ["good"]
        for module in ("lakthan_ocsp.wall_clock", "lakthan_ocsp.quick"):
            monkeypatch.setattr(f"{module}.time", lambda: time.time() + seconds)
        for each in (request, with_nonce):
            assert (await responder.post(each)).status == "try_later"
            assert (await responder.get(each)).status == "try_later"
        await until_said(responder, 503, f"clock is {seconds:+.0f} s from the database's")
        assert (await responder.metrics())["lakthan_ocsp_clock_believed"] == 0
        assert (await responder.post(request)).status == "try_later"
        monkeypatch.undo()
        await until_said(responder, 200, "change feed: ok")
        assert (await responder.post(request)).cert_statuses == ["good"]
        assert (await responder.post(with_nonce)).cert_statuses == ["good"]


class _Surroundings:
    """What a `Readiness` looks at, as the test says."""

    def __init__(self) -> None:
        self.heard = self.recall = False
        self.problem = ""
        self.remembered = 0
        self.readiness = Readiness(
            changes_heard=lambda: self.heard,
            may_recall=lambda: self.recall,
            remembered=lambda: self.remembered,
            try_store=self.ask,
        )

    async def ask(self) -> None:
        """Ask the store."""
        if self.problem:
            raise StoreUnavailable(self.problem)

    def ready(self) -> bool:
        """What a load balancer makes of it."""
        return not any(self.readiness.checks().values())


async def test_every_state_is_what_can_be_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not ready before changes were heard for the first time; later a lost feed is no reason to leave while the store
    answers, nor is a lost store while something is remembered; that memory is empty or too old is one.
    """
    monkeypatch.setattr("lakthan_ocsp.readiness._LOOK_SECONDS", 0)
    around = _Surroundings()
    watching = asyncio.create_task(around.readiness.watch())

    async def after_a_look() -> bool:
        for _ in range(20):
            await asyncio.sleep(0)
        return around.ready()

    assert not await after_a_look()
    around.heard = True
    assert await after_a_look()
    around.heard = False
    assert await after_a_look()
    assert "answering from the store only" in str(around.readiness.checks())
    around.problem = "gone"
    assert not await after_a_look()
    around.recall = True
    assert not await after_a_look()
    around.remembered = 1
    assert await after_a_look()
    around.recall = False
    assert not await after_a_look()
    assert around.readiness.checks() == {"database": "every request gets tryLater: gone"}
    watching.cancel()
