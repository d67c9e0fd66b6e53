"""No responder process says `good` of a revoked certificate beyond its bound, whatever happens to it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.pool import open_pool
from lakthan.store.records import CRLReason
from support.pki import issue
from support.propagation import BOUND_SECONDS, Connection, fleet, load, stand_still
from support.responder import ACTOR, running_responder


@pytest.mark.parametrize("cut_one", [False, True], ids=["all well", "one connection cut"])
async def test_a_revocation_reaches_every_process(database_url: str, tmp_path: Path, *, cut_one: bool) -> None:
    """Three processes under load are asked without pause while certificates are revoked, and in the second run one of
    them has lost its connection at that moment: every one comes to say `revoked`, never `good` again after it, and no
    question that is sent later than the bound after the commit is answered `good`.
    """
    async with fleet(database_url, tmp_path, 3) as some:
        questions = await some.certificates(3 if cut_one else 10)
        async with load(some, per_second=100):
            for question in questions:
                await some.trusted()
                times = await some.round(question, cut_one=cut_one)
                assert len(times) == 3
        assert some.violations == []


@pytest.mark.parametrize("feed", ["kept", "cut", "silent"])
async def test_a_process_that_stood_still_does_not_go_on_with_good(
    database_url: str, tmp_path: Path, feed: str
) -> None:
    """A process is stopped, a certificate revoked, and the process goes on when its bound has passed, twenty questions
    already waiting for it: not one that was asked after the bound is answered `good`, though it remembers one. Nor when
    its listening connection was cut meanwhile, or has gone silent, so that it cannot have heard of the revocation.
    """
    async with fleet(database_url, tmp_path, 1) as some:
        [question] = await some.certificates(1)
        answers = await stand_still(some, question, seconds=BOUND_SECONDS + 0.2, feed=feed)
        assert some.violations == []
        assert len(answers) > 20
        assert answers[-1].status == "revoked"


async def test_a_silent_connection_ends_in_time(database_url: str, tmp_path: Path) -> None:
    """The listening connection stays open and brings nothing any more: the process may go on with `good` until its
    bound has passed, and no longer.
    """
    async with fleet(database_url, tmp_path, 1) as some:
        [question] = await some.certificates(1)
        answers = await stand_still(some, question, seconds=0, feed="silent")
        assert some.violations == []
        assert answers[-1].status == "revoked"


async def test_a_revoked_ca_is_served_like_any_change(database_url: str, tmp_path: Path) -> None:
    """The CA itself is revoked, which its responders take in by reading all authorities anew: when `wait=served`
    returns they have, and every one of its certificates is answered `revoked` (RFC 6960 §2.7).
    """
    pool = await open_pool(database_url, role="lakthan_registry", min_size=1, max_size=1, application_name="test")
    async with fleet(database_url, tmp_path, 3) as some:
        [question] = await some.certificates(1)
        now = datetime.now(UTC)
        await AuthorityAdmin(pool).revoke_authority("public-ca", reason=CRLReason.CA_COMPROMISE, revocation_time=now)
        assert (await some.watch.wait_until_served()).acknowledged
        answers = [await worker.connection.ask(question) for worker in some.workers]
        assert {answer.status for answer in answers} == {"revoked"}
    await pool.close()


@pytest.mark.parametrize("nonce", [False, True], ids=["plain", "with a nonce"])
async def test_the_workers_of_one_service(database_url: str, tmp_path: Path, *, nonce: bool) -> None:
    """Four workers on one port are four that are waited for: when `wait=served` returns, forty connections, over which
    the system has spread the workers and which all had a remembered `good`, hear `revoked`.
    """
    async with fleet(database_url, tmp_path, 4, together=True) as some, AsyncExitStack() as stack:
        port = some.workers[0].port
        connections = [await Connection.open(port) for _ in range(40)]
        for each in connections:
            stack.callback(each.close)
        for question in await some.certificates(10, nonce=nonce):
            for _ in range(3):
                answers = await asyncio.gather(*(each.ask(question) for each in connections))
                assert {answer.status for answer in answers} == {"good"}
            await some.revoke(question)
            served = await some.watch.wait_until_served()
            assert (served.acknowledged, served.workers) == (True, 4)
            answers = await asyncio.gather(*(each.ask(question) for each in connections))
            assert {answer.status for answer in answers} == {"revoked"}


async def test_every_change_is_measured(database_url: str, tmp_path: Path) -> None:
    """A responder counts for each change how long it took from the database's word until it answers by it; a first
    issue makes nothing stale and is not counted.
    """
    series = "lakthan_ocsp_revocation_to_served_seconds"
    async with running_responder(database_url, tmp_path) as responder:
        certificate = await responder.issue(issue("subject", responder.ca))
        await responder.writer.hold(responder.authority_id, certificate.serial_number, actor=ACTOR)
        await responder.writer.revoke(responder.authority_id, certificate.serial_number, actor=ACTOR)
        while (metrics := await responder.metrics())["lakthan_ocsp_status_changes_total"] < 2:
            pass
        assert metrics[f"{series}_count"] == 2
        assert metrics[f"{series}_sum"] > 0
