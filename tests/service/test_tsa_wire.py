"""The two ways of a request, by the wire and by aiohttp, differ in nothing that a client could see."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lakthan.config import TSAProfileConfig
from support.database import OpenPool
from support.tsa import POLICY, Authority, failure, new_unit, request_for, running_tsa, token_of, tst_info_of

HEAD = b"POST / HTTP/1.1\r\nHost: tsa.example\r\nContent-Type: application/timestamp-query\r\n"


@pytest.fixture
async def authority(database_url: str, tmp_path: Path) -> AsyncIterator[Authority]:
    """A running authority."""
    async with running_tsa(database_url, tmp_path, new_unit()) as running:
        yield running


async def talk(port: int, *pieces: bytes, responses: int) -> list[bytes]:
    """Send these segments on one connection and read so many responses."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0)
    received = []
    for _ in range(responses):
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        assert length is not None
        received.append(head + await reader.readexactly(int(length[1])))
    writer.close()
    return received


def request(body: bytes, *, long_way: bool = False) -> bytes:
    """A whole POST."""
    extra = b"X-Long-Way: 1\r\n" if long_way else b""
    return HEAD + extra + b"Content-Length: %d\r\n\r\n" % len(body) + body


def without_date(response: bytes) -> bytes:
    """What stays the same from one second to the next."""
    return re.sub(rb"Date: [^\r]*\r\n", b"", response)


@pytest.mark.parametrize(
    "body", [b"", b"no DER", request_for(hash_name="sha1", hashed_message=bytes(20)), request_for(req_policy="1.2.3")]
)
async def test_refusals_are_the_same_octets(authority: Authority, body: bytes) -> None:
    """A refusal is the same whichever way it came: status line, headers in their order, and body."""
    ways = [await talk(authority.port, request(body, long_way=long_way), responses=1) for long_way in (False, True)]
    assert without_date(ways[0][0]) == without_date(ways[1][0])
    assert ways[0][0].startswith(b"HTTP/1.1 200 OK\r\n")


async def test_tokens_have_the_same_head(authority: Authority) -> None:
    """A token comes with the same headers, and both kinds of tokens say what was asked for."""
    body = request_for(bytes(range(32)), nonce=7, cert_req=True)
    heads = set()
    for long_way in (False, True):
        (response,) = await talk(authority.port, request(body, long_way=long_way), responses=1)
        head, _, reply = response.partition(b"\r\n\r\n")
        assert tst_info_of(reply)["nonce"].native == 7
        heads.add(re.sub(rb"(Content-Length|Date): [^\r]*", b"", head))
    assert len(heads) == 1


async def test_in_segments_and_ahead(authority: Authority, open_as: OpenPool) -> None:
    """A request that comes octet by octet, and several that are sent before the first answer, get their tokens in the
    order in which they asked.
    """
    one = request(request_for(nonce=1))
    (response,) = await talk(authority.port, *(one[at : at + 1] for at in range(len(one))), responses=1)
    token_of(response.partition(b"\r\n\r\n")[2])
    several = b"".join(request(request_for(nonce=nonce)) for nonce in range(2, 12))
    responses = await talk(authority.port, several, responses=10)
    nonces = [tst_info_of(response.partition(b"\r\n\r\n")[2])["nonce"].native for response in responses]
    assert nonces == list(range(2, 12))
    responses = await talk(authority.port, one, several, responses=11)
    assert len(responses) == 11
    assert await (await open_as(None)).fetchval("SELECT count(*) FROM timestamp_token") == 22


async def test_a_client_that_leaves(authority: Authority, open_as: OpenPool) -> None:
    """A client that closes before its token is there gets none, disturbs nobody, and the token is on record."""
    for _ in range(5):
        _, writer = await asyncio.open_connection("127.0.0.1", authority.port)
        writer.write(request(request_for()))
        await writer.drain()
        writer.transport.abort()
    replies = await asyncio.gather(*(authority.post(request_for(nonce=nonce)) for nonce in range(20)))
    assert all(tst_info_of(reply.body)["nonce"].native == nonce for nonce, reply in enumerate(replies))
    assert await (await open_as(None)).fetchval("SELECT count(*) FROM timestamp_token") >= 20


@pytest.mark.parametrize("kind", ["RSA-2048", "RSA-3072", "P-384", "ML-DSA-65"])
async def test_every_kind_of_key(database_url: str, tmp_path: Path, kind: str) -> None:
    """Keys that sign at once and keys that take their time answer many who ask together, each with his own nonce."""
    async with running_tsa(database_url, tmp_path, new_unit(kind)) as authority:
        replies = await asyncio.gather(*(authority.post(request_for(nonce=nonce)) for nonce in range(1, 33)))
        metrics = await authority.metrics()
    assert [tst_info_of(reply.body)["nonce"].native for reply in replies] == list(range(1, 33))
    assert metrics['lakthan_tsa_requests_total{outcome="granted"}'] == 32
    assert metrics['lakthan_tsa_tokens_total{unit="main"}'] == 32
    assert metrics['lakthan_tsa_sign_seconds_count{unit="main"}'] == 32
    assert metrics["lakthan_tsa_record_seconds_count"] == 32


@pytest.mark.parametrize("long_way", [False, True])
async def test_content_mode(database_url: str, tmp_path: Path, *, long_way: bool) -> None:
    """With `self_check = "content"` tokens are given on both ways, and the metrics say that samples are verified."""
    way = "aiohttp" if long_way else "wire"
    async with running_tsa(database_url, tmp_path, new_unit(), way=way, self_check="content") as authority:
        replies = await asyncio.gather(*(authority.post(request_for(nonce=nonce)) for nonce in range(50)))
        metrics = await authority.metrics()
    assert [tst_info_of(reply.body)["nonce"].native for reply in replies] == list(range(50))
    assert metrics['lakthan_tsa_every_signature_verified{unit="main"}'] == 0


async def test_quota_by_the_wire(database_url: str, tmp_path: Path) -> None:
    """A client that has used its quota is told when to come again, and none of what it may have is lost on the way."""
    profile = TSAProfileConfig(["main"], requests_per_second=0.001, burst=3)
    async with running_tsa(database_url, tmp_path, new_unit(), profiles={"default": profile}) as authority:
        replies = [await authority.post(request_for()) for _ in range(5)]
    assert [reply.http_status for reply in replies] == [200, 200, 200, 429, 429]
    assert int(replies[3].headers["Retry-After"]) > 0


async def test_no_record_no_token(authority: Authority, open_as: OpenPool) -> None:
    """When the log refuses, those who wait on the wire are refused, and their connection goes on."""
    pool = await open_as(None)
    await pool.execute("ALTER TABLE timestamp_token RENAME TO away")
    responses = await talk(authority.port, request(request_for()), request(request_for()), responses=2)
    assert all(failure(each.partition(b"\r\n\r\n")[2])[0] == {"system_failure"} for each in responses)
    await pool.execute("ALTER TABLE away RENAME TO timestamp_token")
    (response,) = await talk(authority.port, request(request_for(req_policy=POLICY)), responses=1)
    token_of(response.partition(b"\r\n\r\n")[2])
