"""Keyless responders at the edge: two real servers that replicate over a line, and the line is cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from lakthan.config import Config, DatabaseConfig, KeyURI, OCSPConfig, ResponderConfig
from lakthan.errors import ConfigError, StoreUnavailable
from lakthan.store.migrate import migrate
from lakthan_ocsp import keyless
from lakthan_ocsp.__main__ import serve
from support.edge import Capital, Seen, capital, edge, migrated, subscribe, until
from support.pki import issue, new_ca
from support.replication import Cut, Servers, make_database, servers
from support.running import running


@pytest.fixture(autouse=True)
def _soon_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests do not wait ten seconds to see that a line is cut."""
    monkeypatch.setattr(keyless, "CUT_AFTER", timedelta(seconds=2))


@asynccontextmanager
async def world(folder: Path, major: int | None = None) -> AsyncIterator[tuple[Servers, Capital]]:
    """A capital that publishes, and a physical standby that follows it. `major`: of both, the newest unless said."""
    with servers(major) as pair:
        await migrated(pair)
        async with capital(pair.capital.url(), folder) as made:
            await pair.follow_physically()
            yield pair, made


@pytest.mark.parametrize(("how", "major"), [("silent", None), ("down", 16)])
async def test_it_keeps_answering_while_the_line_is_cut(tmp_path: Path, how: Cut, major: int | None) -> None:
    """Cut off, the edge gives the answers that it has and says how old they are; a revocation made meanwhile shows
    when the servers have found each other again, and no good is heard after it. (`./run edge-cut` measures how soon.)
    """
    async with world(tmp_path, major) as (pair, made), edge(pair.edge.url(), made.ca) as here:
        kept, revoked = made.certificates[:2]
        await here.until_state("live")
        assert [await here.says(each) for each in (kept, revoked)] == ["good", "good"]
        pair.line.cut(how)
        await here.until_state("cut")
        await made.revoke(revoked)
        await made.until_published()
        shown = await here.metrics()
        assert shown["lakthan_ocsp_copy_age_seconds"] > 2
        status, text = await here.ready()
        assert (status, text.startswith("copy (cut, ")) == (200, True)
        assert [await here.says(each) for each in (kept, revoked)] == ["good", "good"]

        async def counted() -> bool:
            await here.says(kept)
            return (await here.metrics())['lakthan_ocsp_copy_answers_total{state="cut"}'] > 0

        await until(counted)
        await until(lambda: _not(pair.is_streaming))
        pair.line.mend()
        heard = Seen()
        await until(pair.is_streaming)
        async with asyncio.timeout(60):
            while heard.said[-1:] != ["revoked"]:
                heard.hear(await here.says(revoked))
        assert "good" not in heard.said[1:]  # perhaps tryLater in between, but never good again
        await here.until_state("live")
        assert await here.says(kept) == "good"


async def test_beyond_its_bound_it_refuses(tmp_path: Path) -> None:
    """What is older than the bound is not given, neither from memory nor from the copy; after the cut it is again."""
    bound = timedelta(seconds=4)
    async with world(tmp_path) as (pair, made), edge(pair.edge.url(), made.ca, bound=bound) as here:
        asked, never_asked = made.certificates[:2]
        assert await here.says(asked) == "good"
        assert (await here.ready())[0] == 200
        pair.line.cut()
        await until(lambda: _says(here, asked, "try_later"))
        shown = await here.metrics()
        assert shown["lakthan_ocsp_copy_age_seconds"] >= bound.total_seconds()
        assert await here.says(never_asked) == "try_later"
        assert await here.state() == "refusing"
        assert (await here.ready())[0] == 503
        assert (await here.metrics())[
            'lakthan_ocsp_published_withheld_total{authority="public-ca",cause="too old"}'
        ] >= 2
        pair.line.mend()
        await here.until_says(asked, "good")
        await here.until_state("live")
        assert (await here.ready())[0] == 200


async def _not(asked: Callable[[], Awaitable[object]]) -> bool:
    return not await asked()


async def _says(here: object, certificate: object, wanted: str) -> bool:
    return await here.says(certificate) == wanted  # type: ignore[attr-defined, no-any-return]


async def test_restarted_without_any_database(tmp_path: Path) -> None:
    """Cut off, with the local database gone and the process started anew, answers come from the file; what was revoked
    before stays so, and when the database is there again the file is forgotten.
    """
    file = tmp_path / "warm" / "answers"
    async with world(tmp_path) as (pair, made):
        good, revoked, late = made.certificates[:3]
        async with edge(pair.edge.url(), made.ca, warm_start=file) as here:
            await here.until_state("live")
            await until(lambda: _at_least(here, "lakthan_ocsp_warm_start_answers", 8))
            await made.revoke(revoked)
            await here.until_says(revoked, "revoked")
            pair.line.cut()
            pair.edge.stop(at_once=True)
            await here.until_state("warm")
            assert [await here.says(each) for each in (good, revoked, late)] == ["good", "revoked", "good"]
        async with edge(pair.edge.url(), made.ca, warm_start=file) as here:
            assert [await here.says(each) for each in (good, revoked, late)] == ["good", "revoked", "good"]
            assert (await here.says(issue("stranger", made.ca))) == "try_later"
            assert await here.says(issue("stranger", new_ca("another CA"))) == "unauthorized"
            assert await here.state() == "warm"
            assert (await here.ready())[0] == 200
            assert (await here.metrics())["lakthan_ocsp_copy_age_seconds"] > 0
            await made.revoke(late)
            await made.until_published()
            pair.line.mend()
            pair.edge.start()
            await here.until_says(late, "revoked")
            await here.until_state("live")


async def _at_least(here: object, name: str, value: float) -> bool:
    return (await here.metrics())[name] >= value  # type: ignore[attr-defined, no-any-return]


async def test_a_file_is_no_longer_good_than_the_bound(tmp_path: Path) -> None:
    """An edge that starts from a file which is too old gives no answers at all."""
    file = tmp_path / "answers"
    async with world(tmp_path) as (pair, made):
        async with edge(pair.edge.url(), made.ca, warm_start=file) as here:
            await until(lambda: _at_least(here, "lakthan_ocsp_warm_start_answers", 8))
        pair.edge.stop(at_once=True)
        bound = timedelta(seconds=2)
        async with edge(pair.edge.url(), made.ca, warm_start=file, bound=bound) as here:
            await here.until_says(made.certificates[0], "try_later")
            assert (await here.ready())[0] == 503


async def test_without_a_database_and_without_a_file(tmp_path: Path) -> None:
    """There is nothing to answer from, and the start says so."""
    config = OCSPConfig(
        [ResponderConfig("public-ca", answers="published")],
        DatabaseConfig(f"postgresql://owner@/nowhere?host={tmp_path}"),
        port=0,
        admin_port=0,
        keyless=True,
        warm_start=tmp_path / "answers",
    )
    with pytest.raises(StoreUnavailable):
        async with running(serve, Config(ocsp=config)):
            raise AssertionError("it serves")


@pytest.mark.parametrize(
    "responder",
    [
        ResponderConfig("public-ca", Path("responder.pem"), KeyURI("file:responder.key", Path())),
        ResponderConfig("public-ca", Path("responder.pem"), KeyURI("file:responder.key", Path()), answers="published"),
        ResponderConfig("public-ca", keys=Path("keys.toml"), answers="published"),
    ],
)
async def test_no_key_is_ever_opened(responder: ResponderConfig) -> None:
    """A keyless configuration that names a key is refused before anything is opened."""
    config = OCSPConfig([responder], DatabaseConfig("postgresql://nobody@127.0.0.1:1/none"), keyless=True)
    with pytest.raises(ConfigError, match="neither certificate nor key"):
        async with running(serve, Config(ocsp=config)):
            raise AssertionError("it serves")


async def test_a_logical_subscriber(tmp_path: Path) -> None:
    """A subscriber of another major version serves as well as a standby: changes show, a cut is survived, and the
    capital can take a name of a CA away although it is published.
    """
    with servers(edge_major=16) as pair:
        await migrated(pair)
        await _database_at_edge(pair)
        async with capital(pair.capital.url(), tmp_path) as made:
            await subscribe(pair)
            async with edge(pair.edge.url(), made.ca) as here:
                await here.until_state("live")
                good, revoked = made.certificates[:2]
                await here.until_says(revoked, "good")
                await made.revoke(revoked)
                await here.until_says(revoked, "revoked")
                pair.line.cut()
                await here.until_state("cut")
                assert await here.says(good) == "good"
                await made.revoke(good)
                await made.until_published()
                assert await here.says(good) == "good"
                pair.line.mend()
                await here.until_says(good, "revoked")
                removed = await made.pool.fetchval(
                    "WITH gone AS (DELETE FROM authority_name WHERE authority_id = $1 RETURNING 1) SELECT count(*)"
                    " FROM gone",
                    made.authority_id,
                )
                assert removed == 1
                await here.until_says(made.certificates[2], "unauthorized")


async def _database_at_edge(pair: Servers) -> None:
    await make_database(pair.edge)
    await migrate(pair.edge.url())
