"""The two ways of an OCSP request through the service: whoever asks cannot tell them apart.

The long way is forced by a header that the wire does not know. Everything is asked in several temperatures: before
anything is remembered, when it is, when only the nonce is new, and after a change.
"""

from __future__ import annotations

import asyncio
import base64
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from asn1crypto import ocsp as asn1_ocsp
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import ocsp

from lakthan.algorithms import SignatureAlgorithm
from lakthan.keys import software
from lakthan_ocsp import quick
from support.pki import Issued, issue
from support.responder import ACTOR, Responder, request_for, running_responder
from support.wire import conversation, first_answer, without_date

UNKNOWN_FIELD = b"X-The-Long-Way: please\r\n"


@pytest.fixture
async def responder(database_url: str, tmp_path: Path) -> AsyncIterator[Responder]:
    """A running responder with one authority."""
    async with running_responder(database_url, tmp_path) as running:
        yield running


@pytest.fixture
async def good(responder: Responder) -> Issued:
    """An announced certificate."""
    return await responder.issue(issue("good", responder.ca))


def post(body: bytes, more: bytes = b"") -> bytes:
    """A POST, octet for octet."""
    return b"POST / HTTP/1.1\r\nHost: a\r\n%bContent-Length: %d\r\n\r\n%b" % (more, len(body), body)


def get(body: bytes, more: bytes = b"") -> bytes:
    """A GET, octet for octet."""
    target = quote(base64.b64encode(body), safe="").encode()
    return b"GET /%b HTTP/1.1\r\nHost: a\r\n%b\r\n" % (target, more)


async def ask(responder: Responder, *octets: bytes) -> bytes:
    """What comes back."""
    return await first_answer(urlsplit(responder.url).port or 0, *octets)


def settled(octets: bytes) -> bytes:
    """Without what the clock says: Date, and how long a cache may keep it."""
    return re.sub(rb"max-age=[1-9]\d*", b"max-age=some", without_date(octets))


@pytest.mark.parametrize("way", [post, get])
@pytest.mark.parametrize("algorithm", [hashes.SHA1(), hashes.SHA256(), hashes.SHA512()])
async def test_both_ways_give_the_same_octets(
    responder: Responder, good: Issued, way: Callable[..., bytes], algorithm: hashes.HashAlgorithm
) -> None:
    """The first answer is remembered; from then on both ways give it, with the same headers in the same order."""
    request = request_for(good, responder.ca, algorithm=algorithm)
    answers = [await ask(responder, way(request, more)) for more in (b"", b"", UNKNOWN_FIELD, b"", UNKNOWN_FIELD)]
    assert len({settled(each) for each in answers}) == 1
    assert answers[0].startswith(b"HTTP/1.1 200 OK\r\nContent-Type: application/ocsp-response\r\n")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x30",
        b"not OCSP",
        b"\x30\x03\x0a\x01\x00",
        bytes(2000),
        b"/MHEwbzBtMGswaTANBglghkgBZQMEAgEFAAQg",
    ],
)
async def test_refusals_are_the_same(responder: Responder, body: bytes) -> None:
    """Also what is no request at all is answered in the same octets."""
    for way in (post, get):
        short, long = await ask(responder, way(body)), await ask(responder, way(body, UNKNOWN_FIELD))
        assert settled(short) == settled(long)


@pytest.mark.parametrize("target", ["", "favicon.ico", "robots.txt", "a%20b", "%%%", "x" * 7990, "?", "MA%3D%3D", "//"])
async def test_odd_targets_are_the_same(responder: Responder, target: str) -> None:
    """Browsers, scanners and misspelt requests."""
    line = f"GET /{target} HTTP/1.1\r\nHost: a\r\n".encode()
    short, long = await ask(responder, line + b"\r\n"), await ask(responder, line + UNKNOWN_FIELD + b"\r\n")
    assert settled(short) == settled(long)


async def test_a_body_that_is_a_known_target(responder: Responder, good: Issued) -> None:
    """A GET's target sent as the body of a POST is no request, although its answer is remembered; and no other way."""
    request = request_for(good, responder.ca)
    target = get(request).split(b" ")[1]
    assert b"\x0a\x01\x00" in await ask(responder, get(request))
    for more in (b"", UNKNOWN_FIELD):
        assert (await ask(responder, post(target, more))).endswith(bytes.fromhex("30030a0101"))


async def test_nonces_in_all_temperatures(responder: Responder, good: Issued) -> None:
    """Each request with a nonce gets an answer of its own with that nonce, however much of it was ready."""
    requests = [request_for(good, responder.ca, nonce=secrets.token_bytes(length)) for length in (16, 16, 16, 32) * 5]
    for request in requests:
        for more in (b"", UNKNOWN_FIELD):
            reply = await ask(responder, post(request, more))
            head, _, body = reply.partition(b"\r\n\r\n")
            assert b"max-age=0, no-cache, no-store" in head
            assert f"Content-Length: {len(body)}".encode() in head
            sent = asn1_ocsp.OCSPRequest.load(request).nonce_value.native
            received = asn1_ocsp.OCSPResponse.load(body, strict=True)
            assert received.nonce_value.native == sent
            verify(responder, body)
    assert (await responder.metrics())["lakthan_ocsp_nonces_total"] == 2 * len(requests)


def verify(responder: Responder, body: bytes) -> None:
    """Its signature, by its own certificate."""
    response = ocsp.load_der_ocsp_response(body)
    key = responder.identity.key.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(response.signature, response.tbs_response_bytes, ec.ECDSA(hashes.SHA256()))


async def test_a_ready_answer_is_the_general_one(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For one nonce, the quickest way signs in each second the same octets as the general one, whether a request was
    recognised by what it asks or by all its octets.
    """
    signed: list[bytes] = []
    sign = software._raw_sign

    def watched(key: software.SoftwareKey, algorithm: SignatureAlgorithm) -> Callable[[bytes], bytes]:
        raw = sign(key, algorithm)

        def noted(message: bytes) -> bytes:
            signed.append(message)
            return raw(message)

        return noted

    monkeypatch.setattr(software, "_raw_sign", watched)
    ready: list[bool] = []
    by_all_octets: list[bool] = []
    quickest = quick.Short._ready

    def noted(self: quick.Short, asked: bytes, started: float, request: bytes = b"") -> bytes | None:
        response = quickest(self, asked, started, request)
        ready.append(response is not None)
        by_all_octets.append(response is not None and asked.startswith(b"POST "))
        return response

    monkeypatch.setattr(quick.Short, "_ready", noted)
    async with running_responder(database_url, tmp_path) as responder:
        certificate = await responder.issue(issue("good", responder.ca))
        request = post(request_for(certificate, responder.ca, nonce=bytes(16)))
        async with asyncio.timeout(30):
            while sum(ready) < 50 or sum(by_all_octets) < 20:
                await first_answer(urlsplit(responder.url).port or 0, request)
    assert not all(ready)
    of_second: dict[object, set[bytes]] = {}
    for message in signed:
        if bytes(16) in message:
            produced_at = asn1_ocsp.ResponseData.load(message)["produced_at"].native
            of_second.setdefault(produced_at, set()).add(message)
    assert [len(messages) for messages in of_second.values()] == [1] * len(of_second)


async def test_a_change_ends_what_is_ready(responder: Responder, good: Issued) -> None:
    """Clients with nonces that ask all the time see good, then revoked, and never good again."""
    seen: list[str] = []

    async def client() -> None:
        after = 0
        while after < 20:
            reply = await responder.post(request_for(good, responder.ca, nonce=secrets.token_bytes(16)))
            (status,) = reply.cert_statuses
            seen.append(status)
            after += status == "revoked"

    clients = [asyncio.create_task(client()) for _ in range(4)]
    while len(seen) < 100:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await responder.writer.revoke(responder.authority_id, good.serial_number, actor=ACTOR)
    await asyncio.gather(*clients)
    assert "good" not in seen[seen.index("revoked") :]


@pytest.fixture
def again(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What is answered without the request being read, because the same octets were answered a moment ago."""
    given: list[bytes] = []
    known = quick.Short.known

    def noted(self: quick.Short, request: bytes) -> bytes | None:
        response = known(self, request)
        if response is not None:
            given.append(response)
        return response

    monkeypatch.setattr(quick.Short, "known", noted)
    return given


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock of the short way stands, later than all that is signed; the test moves it."""
    seconds = [float(int(time.time()) + 600)]
    monkeypatch.setattr(quick, "time", lambda: seconds[0])
    return seconds


@pytest.mark.parametrize("way", [post, get])
async def test_a_change_ends_what_was_said_this_second(
    again: list[bytes], clock: list[float], responder: Responder, good: Issued, way: Callable[..., bytes]
) -> None:
    """Octets that were just answered with good, again and again, are answered with revoked after the change, although
    by the clock no time has passed; and then with that, again and again.
    """
    assert clock
    request = way(request_for(good, responder.ca))
    before = [await ask(responder, request) for _ in range(5)]
    assert set(before[2:]) == set(again)
    assert len(again) > 1
    await responder.writer.revoke(responder.authority_id, good.serial_number, actor=ACTOR)
    del again[:]
    async with asyncio.timeout(20):
        while (changed := await ask(responder, request)) == before[-1]:
            del again[:]
    after = [changed, *[await ask(responder, request) for _ in range(4)]]
    for octets, status in [(before[-1], "good"), *((each, "revoked") for each in after)]:
        body = octets.partition(b"\r\n\r\n")[2]
        assert asn1_ocsp.OCSPResponse.load(body).response_data["responses"][0]["cert_status"].name == status
    assert set(again) == {after[-1]}


@pytest.mark.parametrize("way", [post, get])
async def test_what_was_said_this_second_ends_with_it(
    again: list[bytes], clock: list[float], responder: Responder, good: Issued, way: Callable[..., bytes]
) -> None:
    """Date is never that of an earlier second; a clock that is set back finds nothing of its future."""
    request = way(request_for(good, responder.ca))
    dates: list[bytes] = []
    for step in (0.0, 0.0, 0.0, 0.0, 0.9, 0.5, -0.5, -0.9):
        clock[0] += step
        seen = len(again)
        dates.append((await ask(responder, request)).partition(b"\r\nDate: ")[2].partition(b"\r\n")[0])
        if step in {0.5, -0.5}:  # over the edge of a second
            assert len(again) == seen
    assert len(again) >= 3
    moments = [parsedate_to_datetime(date.decode()).timestamp() for date in dates[2:]]
    first = moments[0]
    assert moments == [first, first, first, first + 1, first, first]


async def test_octets_that_only_begin_like_known_ones(
    again: list[bytes], clock: list[float], responder: Responder, good: Issued
) -> None:
    """More or less than the very same octets is read as what it is."""
    assert clock
    request = post(request_for(good, responder.ca))
    known = [await ask(responder, request) for _ in range(4)][-1]
    count = len(again)
    assert count
    assert await ask(responder, request[:-1], request[-1:]) == known
    assert len(again) == count + 1  # once they are whole
    other = request.replace(b"Host: a", b"Host: b")
    assert await ask(responder, other) == known
    assert len(again) == count + 1
    twice = await conversation(urlsplit(responder.url).port or 0, request + request)
    assert settled(twice) == settled(known) * 2
    assert len(again) == count + 1


async def test_many_ask_the_same_at_once(responder: Responder) -> None:
    """However many clients ask about a certificate that is not remembered, one signature answers them all."""
    certificate = await responder.issue(issue("asked by many", responder.ca))
    before = (await responder.metrics())['lakthan_ocsp_answers_total{source="signed"}']
    request = request_for(certificate, responder.ca)
    replies = await asyncio.gather(*(responder.post(request) for _ in range(50)))
    assert len({reply.body for reply in replies}) == 1
    metrics = await responder.metrics()
    assert metrics['lakthan_ocsp_answers_total{source="signed"}'] - before == 1
    assert metrics['lakthan_ocsp_answers_total{source="cache"}'] == 49


async def test_every_request_is_counted_and_timed(responder: Responder, good: Issued) -> None:
    """By whichever way it went."""
    before = await responder.metrics()
    request = request_for(good, responder.ca)
    for more in (b"", UNKNOWN_FIELD, b"", b""):
        await ask(responder, post(request, more))
        await ask(responder, get(request, more))
    after = await responder.metrics()
    gained = {name: after[name] - before[name] for name in after if name in before and after[name] != before[name]}
    assert gained['lakthan_ocsp_requests_total{method="POST",outcome="successful"}'] == 4
    assert gained['lakthan_ocsp_requests_total{method="GET",outcome="successful"}'] == 4
    assert gained['lakthan_ocsp_cert_statuses_total{status="good"}'] == 8
    assert gained['lakthan_ocsp_cert_id_hashes_total{hash="SHA-256"}'] == 8
    assert after["lakthan_ocsp_request_seconds_count"] - before.get("lakthan_ocsp_request_seconds_count", 0) == 8
