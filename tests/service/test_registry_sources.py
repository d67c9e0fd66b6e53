"""CRLs that are fetched from URLs: a real HTTP server, a real database, a real responder."""

from __future__ import annotations

import gzip
import ipaddress
import ssl
from collections.abc import AsyncIterator, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography import x509
from prometheus_client import CollectorRegistry

from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.records import AuthorityPolicy
from lakthan_registry.fetch import FetchFailed, Validators, fetch
from lakthan_registry.sources import Polling, SourceMetrics, follow_urls
from support.pki import issue, new_ca, new_responder
from support.publication import (
    HOUR,
    MINUTE,
    SECOND,
    Publication,
    World,
    going,
    make_crl,
    publishing_world,
    service_pools,
    until,
)
from support.responder import request_for, running_responder_of

QUICK = Polling(
    shortest=timedelta(milliseconds=20),
    longest=timedelta(milliseconds=50),
    back_off=timedelta(milliseconds=20),
    longest_back_off=timedelta(milliseconds=50),
    reread=timedelta(milliseconds=50),
    start_spread=timedelta(0),
    most_octets=100_000,
)


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    """The authority `public-ca` with a policy that names the URL of its web server."""
    async with publishing_world(database_url) as made:
        yield made


def following(world: World, polling: Polling = QUICK) -> Coroutine[object, object, None]:
    """The poller on this world."""
    return follow_urls(world.registrar, world.publisher, world.metrics, polling)


async def test_a_new_crl_is_imported_and_then_asked_for_politely(world: World) -> None:
    """Its entries are on record; after that the server says 304 until there is another one, which is imported too."""
    world.publication.body = make_crl(world.ca, 1, [7, 8])
    async with going(following(world)):
        await until(lambda: world.fetches("imported") == 1)
        assert await world.revoked() == {7, 8}
        await until(lambda: world.publication.not_modified >= 3)
        assert world.fetches("imported") == 1
        world.publication.body = make_crl(world.ca, 2, [7, 8, 9])
        await until(lambda: world.fetches("imported") == 2)
        assert await world.revoked() == {7, 8, 9}
        await until(lambda: world.of_url("overdue") == 0)
        assert (world.of_url("next_update_timestamp_seconds") or 0) > datetime.now(UTC).timestamp()


async def test_who_fetched_it_is_on_record(world: World) -> None:
    """The audit chain of the authority says that the registry brought it, and from which URL."""
    world.publication.body = make_crl(world.ca, 1, [7])
    async with going(following(world)):
        await until(lambda: world.fetches("imported") == 1)
    [row] = await world.database.fetch(
        "SELECT actor, through, detail::json ->> 'url' AS url FROM audit_record "
        "WHERE event = 'crl' AND change_count IS NOT NULL"
    )
    assert tuple(row) == ("registry", "url", world.url)


async def test_a_second_registry_finds_nothing_new(world: World) -> None:
    """Two processes that follow the same URL do no harm."""
    world.publication.body = make_crl(world.ca, 1, [7])
    async with going(following(world)):
        await until(lambda: world.fetches("imported") == 1)
    async with going(following(world)):
        await until(lambda: world.fetches("nothing new") == 1)
        await until(lambda: world.publication.not_modified > 0)
    assert world.fetches("imported") == 1


async def test_a_server_that_was_away_is_asked_again(world: World) -> None:
    """Failures are counted, nothing changes, and the list is there as soon as the server is."""
    world.publication.status = 503
    async with going(following(world)):
        await until(lambda: world.fetches("unreachable") >= 3)
        assert world.of_url("overdue") == 1
        assert await world.revoked() == set()
        world.publication.status, world.publication.body = 200, make_crl(world.ca, 1, [7])
        await until(lambda: world.fetches("imported") == 1)
        await until(lambda: world.of_url("overdue") == 0)
    assert await world.revoked() == {7}


async def test_a_server_that_refuses_the_connection_is_unreachable(world: World) -> None:
    """Nobody listens there: counted like any other failure."""
    await world.set_policy("http://127.0.0.1:1/ca.crl")
    async with going(following(world)):
        await until(lambda: world.fetches("unreachable") >= 2)


@pytest.mark.parametrize("wrong", ["signature", "expired", "malformed", "unknown_issuer"])
async def test_a_crl_that_is_refused_changes_nothing_and_is_counted(world: World, wrong: str) -> None:
    """A wrong signature, an old list, no list at all, another CA's: on record as refused once, and overdue."""
    other = new_ca("Other CA")
    await AuthorityAdmin(world.registrar).add_authority("other-ca", [other.der], actor="test")
    world.publication.body = {
        "signature": make_crl(world.ca, 1, [7], signed_by=other),
        "expired": make_crl(world.ca, 1, [7], age=2 * HOUR, life=HOUR),
        "malformed": b"<html>not found</html>",
        "unknown_issuer": make_crl(other, 1, [7]),
    }[wrong]
    labels = {"source": "url", "authority": "public-ca", "verdict": wrong}
    async with going(following(world)):
        await until(lambda: world.fetches("refused") >= 3)
        assert world.of_url("overdue") == 1
    assert world.fetches("imported") == 0
    assert (world.registry.get_sample_value("lakthan_registry_source_crls_refused_total", labels) or 0) >= 3
    assert await world.revoked() == set()
    assert await world.refusals() == [wrong]


async def test_a_refused_crl_is_replaced_by_a_good_one(world: World) -> None:
    """The alarm goes when the list is right again."""
    world.publication.body = make_crl(world.ca, 1, [7], signed_by=new_ca("Public CA ອອກໃບຢັ້ງຢືນ"))
    async with going(following(world)):
        await until(lambda: world.fetches("refused") >= 1)
        world.publication.body = make_crl(world.ca, 2, [8])
        await until(lambda: world.fetches("imported") == 1)
        await until(lambda: world.of_url("overdue") == 0)
    assert await world.revoked() == {8}


async def test_an_answer_that_is_too_long_is_not_kept(world: World) -> None:
    """Whether the server says so before or not."""
    world.publication.body = bytes(QUICK.most_octets + 1)
    async with going(following(world)):
        await until(lambda: world.fetches("unreachable") >= 1)
    async with aiohttp.ClientSession() as session:
        with pytest.raises(FetchFailed, match="too long for a CRL"):
            await fetch(session, world.url, Validators(), most_octets=1000)


async def test_policies_are_followed_as_they_change(world: World) -> None:
    """A new URL is asked without a restart; one that was taken out is asked no more, and its series are gone."""
    world.publication.body = make_crl(world.ca, 1, [7])
    async with going(following(world)):
        await until(lambda: world.of_url("overdue") is not None)
        await world.set_policy()
        await until(lambda: world.of_url("overdue") is None)
        asked = world.publication.asked
        other = world.url.replace("ca.crl", "other.crl")
        await world.set_policy(other)
        of_other = {"authority": "public-ca", "url": other}
        before = time_of_success(world, of_other)
        await until(lambda: world.fetches("nothing new") >= 1 and time_of_success(world, of_other) != before)
        assert world.publication.paths[asked:].count("/ca.crl") == 0
        await world.set_policy(world.url)
        await until(lambda: world.publication.paths[asked:].count("/ca.crl") > 0)


def time_of_success(world: World, labels: dict[str, str]) -> float | None:
    """When this URL was last asked with success."""
    return world.registry.get_sample_value("lakthan_registry_crl_last_success_timestamp_seconds", labels)


async def test_a_server_that_is_wrong_about_news_is_not_believed_to_the_end(world: World) -> None:
    """A server that says "not modified" whatever it has does not keep a new list away: in the last quarter of the old
    one's life it is asked for the list itself. Who was not asked whether there is news cannot say that there is none.
    """
    world.publication.body = make_crl(world.ca, 1, [7], age=3 * HOUR + 30 * MINUTE, life=4 * HOUR)
    world.publication.stubborn = True
    async with going(following(world)):
        await until(lambda: world.fetches("imported") == 1)
        world.publication.body = make_crl(world.ca, 2, [7, 8])
        await until(lambda: world.fetches("imported") == 2)
        assert await world.revoked() == {7, 8}
        await until(lambda: world.fetches("not modified") >= 1)
    world.publication.status = 304
    async with aiohttp.ClientSession() as session:
        with pytest.raises(FetchFailed, match="HTTP 304"):
            await fetch(session, world.url, Validators())


async def test_a_compressed_answer_is_not_unpacked(world: World) -> None:
    """Nobody asked for it, and a thousand octets may become a million: refused before that."""
    world.publication.body = gzip.compress(bytes(1_000_000))
    world.publication.headers = {"Content-Encoding": "gzip"}
    async with aiohttp.ClientSession() as session:
        with pytest.raises(FetchFailed, match="compressed"):
            await fetch(session, world.url, Validators())


async def test_an_absent_database_is_waited_for(world: World, database_url: str) -> None:
    """While nothing can be recorded the list is asked for again, and imported when the database is back."""
    await world.database.execute("ALTER TABLE crl_scope RENAME TO crl_scope_away")
    await world.database.execute("REVOKE ALL ON certificate_status FROM lakthan_publisher")
    world.publication.body = make_crl(world.ca, 1, [7])
    async with going(following(world)):
        await until(lambda: world.publication.asked >= 3)
        assert await world.revoked() == set()
        await world.database.execute("ALTER TABLE crl_scope_away RENAME TO crl_scope")
        await world.database.execute("GRANT SELECT ON certificate_status TO lakthan_publisher")
        await until(lambda: world.fetches("imported") == 1)
    assert await world.revoked() == {7}


async def test_redirects_are_followed_a_few_times_and_only_to_http(world: World) -> None:
    """A CA may move its list; a chain without end, LDAP and a user's password are not followed."""
    body = make_crl(world.ca, 1)
    world.publication.body = body
    base = world.url.removesuffix("/ca.crl")
    async with aiohttp.ClientSession() as session:
        world.publication.redirect = "/new.crl"
        found = await fetch(session, world.url, Validators())
        assert found is not None
        assert found.octets[:] == body
        for target, words in (
            ("/ca.crl", "more than 3 redirects"),
            ("ldap://ca.gov.la/cn=a", "not fetched by LDAP"),
            ("file:///etc/passwd", "no URL of a CRL"),
            (base.replace("http://", "http://user:secret@") + "/x", "no user name"),
        ):
            world.publication.redirect = target
            with pytest.raises(FetchFailed, match=words):
                await fetch(session, world.url, Validators())


async def test_a_redirect_from_https_to_http_is_not_followed(world: World, tmp_path: Path) -> None:
    """Who was promised TLS is not led away from it; on https the list is fetched."""
    name = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate, key = issue("server", extensions=((name, False),)).write(tmp_path, "server")
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(certificate, key)
    client_side = ssl.create_default_context(cafile=str(certificate))
    application = web.Application()
    application.router.add_get("/{name:.*}", world.publication.answer)
    world.publication.body = make_crl(world.ca, 1)
    server = TestServer(application, host="127.0.0.1", scheme="https")
    await server.start_server(ssl=server_side)
    async with server, aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=client_side)) as session:
        url = str(server.make_url("/ca.crl"))
        assert await fetch(session, url, Validators()) is not None
        world.publication.redirect = world.url
        with pytest.raises(FetchFailed, match="redirected from https"):
            await fetch(session, url, Validators())


async def test_what_is_not_modified_is_not_sent(world: World) -> None:
    """The validators of the first answer are shown the second time."""
    world.publication.body = make_crl(world.ca, 1)
    async with aiohttp.ClientSession() as session:
        first = await fetch(session, world.url, Validators())
        assert first is not None
        assert await fetch(session, world.url, first.validators) is None


async def test_a_crl_that_ends_makes_the_responder_say_try_later(database_url: str, tmp_path: Path) -> None:
    """From URL to answer: revoked while the CRL holds, tryLater when it has ended and no newer one can be had, and an
    answer again when there is one.
    """
    ca = new_ca("Public CA ອອກໃບຢັ້ງຢືນ")
    victim = issue("someone", ca)
    serial_number = victim.certificate.serial_number
    async with running_responder_of(database_url, tmp_path, ca, new_responder(ca)) as responder:
        publication = Publication(make_crl(ca, 1, [serial_number], life=MINUTE + 3 * SECOND))
        application = web.Application()
        application.router.add_get("/{name:.*}", publication.answer)
        metrics = SourceMetrics(CollectorRegistry())
        question = request_for(victim, ca)

        async def says(status: str) -> bool:
            reply = await responder.post(question)
            if reply.status != "successful":
                return reply.status == status
            return reply.cert_statuses == [status]

        async with (
            TestServer(application) as server,
            service_pools(database_url) as (registrar, publisher),
            going(follow_urls(registrar, publisher, metrics, QUICK)),
        ):
            url = str(server.make_url("/ca.crl"))
            await AuthorityAdmin(registrar).set_policy(responder.authority_id, AuthorityPolicy((url,)), actor="test")
            await until(lambda: says("revoked"))
            await until(lambda: says("try_later"))
            assert metrics.overdue.labels("public-ca", url)._value.get() == 1
            publication.body = make_crl(ca, 2, [serial_number])
            await until(lambda: says("revoked"))
