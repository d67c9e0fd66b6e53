"""What a keyless responder keeps on disk while it has a database: the bound, the disk that fails, two with one file.

An ordinary database stands for the copy; `test_edge.py` has real ones.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import asyncpg
import pytest

from lakthan.config import load
from lakthan.store import standby_feed
from lakthan.store.kept import AnswerKey
from lakthan.store.records import Change, ChangeRequest
from lakthan_ocsp import keeper, keyless, keyless_main, published, quick, warm_start
from service.test_workers import two_workers
from support.edge import AUTHORITY, capital, edge, publisher, until
from support.pki import Issued
from support.responder import ACTOR, OCSPReply, request_for
from support.running import samples


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests do not wait a minute for a snapshot."""
    monkeypatch.setattr(keeper, "_SNAPSHOT_SECONDS", 0.1)
    monkeypatch.setattr(keeper, "_SHARE", 1)
    monkeypatch.setattr(keeper, "_INSTANT_SECONDS", 0.1)
    monkeypatch.setattr(keeper, "_TICK_SECONDS", 0.1)


async def test_the_last_ones_that_were_asked_for_come_first(database_url: str, tmp_path: Path) -> None:
    """When there are more answers than the file may hold, it holds those that were asked for, and no more."""
    file = tmp_path / "answers"
    async with (
        capital(database_url, tmp_path, certificates=8) as made,
        edge(database_url, made.ca, warm_start=file, warm_start_answers=4) as here,
    ):
        asked = made.certificates[-2:]
        for each in asked:
            assert await here.says(each) == "good"
        wanted = {AnswerKey(made.authority_id, each.serial_number, "SHA-256") for each in asked}

        async def kept() -> bool:
            warm = await asyncio.to_thread(warm_start.read, file)
            assert warm is None or len(warm.answers) <= 4
            return warm is not None and wanted <= warm.answers.keys()

        await until(kept)


async def test_a_disk_that_fails_keeps_no_answer_back(database_url: str, tmp_path: Path) -> None:
    """Where nothing can be written, answers are given all the same, and the failures are counted."""
    (tmp_path / "no folder").write_text("a file")
    async with (
        capital(database_url, tmp_path) as made,
        edge(database_url, made.ca, warm_start=tmp_path / "no folder" / "answers") as here,
    ):

        async def counted() -> bool:
            return (await here.metrics())["lakthan_ocsp_warm_start_failures_total"] > 0

        await until(counted)
        assert await here.says(made.certificates[0]) == "good"
        await made.revoke(made.certificates[0])
        await here.until_says(made.certificates[0], "revoked")
        assert (await here.ready())[0] == 200


async def _shift(database_url: str, certificate: Issued, *, begun: str, ends_in: str) -> None:
    """Let the answers about a certificate have begun so much earlier, and end so soon."""
    owner = await asyncpg.connect(database_url)
    try:
        await owner.execute(
            "UPDATE published_answer SET produced_at = produced_at - $2::text::interval, due_at = NULL,"
            " this_update = this_update - $2::text::interval,"
            " next_update = date_trunc('second', now()) + $3::text::interval WHERE serial_number = $1",
            certificate.serial_number,
            begun,
            ends_in,
        )
    finally:
        await owner.close()


def _set_clock(monkeypatch: pytest.MonkeyPatch, back: Callable[[], timedelta]) -> None:
    """The edge's clock, and not that of the capital, is so far behind."""

    class Behind(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) - back()

    for module in (quick, standby_feed, published, keyless_main):
        monkeypatch.setattr(module, "datetime", Behind)
    monkeypatch.setattr(quick, "time", lambda: time.time() - back().total_seconds())


async def test_a_clock_that_is_behind(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An edge whose clock is two hours behind gives no answer that has ended by the capital's last heartbeat, from the
    copy and from memory neither; what still holds is given.
    """
    async with capital(database_url, tmp_path, publishing=False) as made:
        async with publisher(made):
            await made.until_published()
        ending, other = made.certificates[:2]
        _set_clock(monkeypatch, lambda: timedelta(hours=2))
        async with edge(database_url, made.ca) as here:
            await here.until_says(other, "good")
            await _shift(database_url, ending, begun="3 h", ends_in="4 s")
            await here.until_says(ending, "good")
            await here.until_says(ending, "try_later", never="unauthorized")
            assert await here.says(other) == "good"
            shown = await here.metrics()
            assert shown["lakthan_ocsp_clock_ahead_seconds"] == pytest.approx(-7200, abs=30)
            assert shown["lakthan_ocsp_clock_believed"] == 1


async def test_a_clock_that_is_set_back(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an edge remembered before its clock was set back by two hours is not given for two hours longer."""
    back = timedelta(0)
    _set_clock(monkeypatch, lambda: back)
    async with capital(database_url, tmp_path, publishing=False) as made:
        async with publisher(made):
            await made.until_published()
        ending, other = made.certificates[:2]
        async with edge(database_url, made.ca) as here:
            await here.until_says(other, "good")
            # Begun three hours ago, so that it is not of the future after the clock was set.
            await _shift(database_url, ending, begun="3 h", ends_in="5 s")
            for _ in range(3):
                assert await here.says(ending) == "good"
            back = timedelta(hours=2)
            await here.until_says(ending, "try_later", never="unauthorized")


async def test_one_of_several_writes(database_url: str, tmp_path: Path) -> None:
    """Of two processes with the same file one keeps it; when that one ends, the other does."""
    file = tmp_path / "answers"

    async def keeps(here: object) -> bool:
        return (await here.metrics())["lakthan_ocsp_warm_start_timestamp_seconds"] > 0  # type: ignore[attr-defined, no-any-return]

    async with capital(database_url, tmp_path) as made:
        async with edge(database_url, made.ca, warm_start=file) as first:
            await until(lambda: keeps(first))
            async with edge(database_url, made.ca, warm_start=file) as second:
                await second.until_state("live")
                assert not await keeps(second)
        async with edge(database_url, made.ca, warm_start=file) as third:
            await until(lambda: keeps(third))


async def test_after_many_changes(database_url: str, tmp_path: Path) -> None:
    """A change of more certificates than are named voids all of the authority's answers in the file, and a new snapshot
    has them again.
    """
    file = tmp_path / "answers"
    async with (
        capital(database_url, tmp_path) as made,
        edge(database_url, made.ca, warm_start=file, warm_start_answers=5000) as here,
    ):
        good, revoked = made.certificates[:2]
        await here.until_state("live")
        strangers = [
            ChangeRequest(made.authority_id, (40_000 + number).to_bytes(3, "big"), Change.REVOKE)
            for number in range(1001)
        ]
        mine = ChangeRequest(made.authority_id, revoked.serial_number, Change.REVOKE)
        await made.writer.record([*strangers, mine], actor=ACTOR)
        await here.until_says(revoked, "revoked")

        async def has_both() -> bool:
            warm = await asyncio.to_thread(warm_start.read, file)
            if warm is None:
                return False
            found = [
                warm.answers.get(AnswerKey(made.authority_id, each.serial_number, "SHA-256"))
                for each in made.certificates[:2]
            ]
            return [each[-1].cert_status.value if each else "" for each in found] == ["good", "revoked"]

        await until(has_both)
        assert await here.says(good) == "good"


async def test_a_database_that_stands_still_now_and_then(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While look-ups get no answer the file gives it; what changed between two such moments is known in the second."""
    monkeypatch.setattr(keyless, "_PATIENCE_SECONDS", 0.2)
    file = tmp_path / "answers"
    async with capital(database_url, tmp_path) as made, edge(database_url, made.ca, warm_start=file) as here:
        asked, changed = made.certificates[:2]

        async def says(word: str) -> bool:
            warm = await asyncio.to_thread(warm_start.read, file)
            if warm is None:
                return False
            kept = warm.answers.get(AnswerKey(made.authority_id, changed.serial_number, "SHA-256"), [])
            return [each.cert_status.value for each in kept] == [word]

        await until(lambda: says("good"))
        async with locked(database_url):
            assert [await here.says(each) for each in (asked, changed)] == ["good", "good"]
            assert await here.state() == "live"

        async def heard() -> bool:
            return (await here.metrics())["lakthan_ocsp_status_changes_total"] > 0

        await made.revoke(changed)
        await until(heard)
        await until(lambda: says("revoked"))
        async with locked(database_url):
            assert await here.says(changed) == "revoked"


@asynccontextmanager
async def locked(database_url: str) -> AsyncIterator[None]:
    """Nobody can read the published answers."""
    connection = await asyncpg.connect(database_url)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE published_answer IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await connection.close()


async def test_several_workers(database_url: str, tmp_path: Path) -> None:
    """Two workers at the edge: both answer and follow the copy, one of them keeps the file, and a revocation is heard
    by each.
    """
    async with capital(database_url, tmp_path) as made:
        config = tmp_path / "lakthan.toml"
        config.write_text(
            f"""
            [ocsp]
            port = 0
            admin_port = 0
            keyless = true
            warm_start = "answers"
            database.url = "{database_url}"
            [[ocsp.responders]]
            authority = "{AUTHORITY}"
            answers = "published"
            """
        )
        certificate = made.certificates[0]
        async with two_workers("lakthan_ocsp", config) as started:

            async def says() -> str:
                headers = {"Connection": "close"}  # a connection of its own, so that either worker may have it
                body = request_for(certificate, made.ca)
                async with started.session.post(started.url, data=body, headers=headers) as reply:
                    heard = OCSPReply(reply.status, reply.headers, await reply.read())
                    return heard.cert_statuses[0] if heard.status == "successful" else heard.status

            async def both(name: str, least: float = 1) -> bool:
                shown = await samples(started.session, started.admin_url)
                return all(shown[name % worker] >= least for worker in range(2))

            await until(lambda: both('lakthan_ocsp_copy_state{state="live",worker="%d"}'))

            async def both_answer() -> bool:
                assert await says() == "good"
                return await both('lakthan_ocsp_requests_total{method="POST",outcome="successful",worker="%d"}')

            await until(both_answer)

            async def one_keeps() -> bool:
                name = 'lakthan_ocsp_warm_start_timestamp_seconds{worker="%d"}'
                shown = await samples(started.session, started.admin_url)
                keeping = [shown[name % worker] > 0 for worker in range(2)]
                assert keeping != [True, True], "two write one file"
                return any(keeping)

            await until(one_keeps)
            await made.revoke(certificate)
            await until(lambda: both('lakthan_ocsp_status_changes_total{worker="%d"}'))
            await made.until_published()
            heard = [await says() for _ in range(20)]
            assert "good" not in heard
            assert heard[-1] == "revoked"


def test_keyless_on_the_command_line(tmp_path: Path) -> None:
    """`--keyless` is for ocsp and reaches the configuration through the environment, so that workers hear it too."""
    path = tmp_path / "lakthan.toml"
    path.write_text('[ocsp]\nresponders = [{ authority = "root", answers = "published" }]\n')
    for word, expected in (("true", True), ("false", False)):
        settings = load(path, {"LAKTHAN_OCSP__KEYLESS": word}).ocsp
        assert settings is not None
        assert settings.keyless is expected
    command = [sys.executable, "-P", "-m", "lakthan_cli", "serve"]
    refused = subprocess.run(
        [*command, "tsa", "--keyless", "--config", path], check=False, capture_output=True, text=True, env=os.environ
    )
    assert refused.returncode == 2
    assert "--keyless is for ocsp" in refused.stderr
    path.write_text('[ocsp]\nresponders = [{ authority = "root", certificate = "a.pem", key = "file:a.key" }]\n')
    signing = subprocess.run(
        [*command, "ocsp", "--keyless", "--config", path], check=False, capture_output=True, text=True, env=os.environ
    )
    assert signing.returncode == 2
    assert "neither certificate nor key" in signing.stderr
