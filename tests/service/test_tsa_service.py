"""The time-stamp authority over HTTP, with a real database: what is stamped, what is recorded, what is refused."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest
from asn1crypto import tsp
from cryptography import x509
from multidict import CIMultiDict

from lakthan.config import ClockConfig
from lakthan.errors import ConfigError, StoreUnavailable
from support.database import OpenPool
from support.tsa import (
    POLICY,
    UNIT_EXTENSIONS,
    WAYS,
    Authority,
    failure,
    new_unit,
    request_for,
    running_tsa,
    token_of,
    tst_info_of,
)

LARGEST_BODY = 16 * 1024


@pytest.fixture(params=WAYS)
async def authority(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> AsyncIterator[Authority]:
    """A running authority, whose requests take one way or the other."""
    async with running_tsa(database_url, tmp_path, new_unit(), way=request.param) as running:
        yield running


async def recorded(open_as: OpenPool) -> list[asyncpg.Record]:
    """The token log, oldest first."""
    pool = await open_as(None)
    rows: list[asyncpg.Record] = await pool.fetch("SELECT * FROM timestamp_token ORDER BY serial_number")
    return rows


async def test_granted(authority: Authority, open_as: OpenPool) -> None:
    """A request gets its token, with exactly the headers that the pickiest clients take, and when it arrives the token
    is on record with everything that is needed to find it after an incident.

    TSA-R12, TSA-H1, TSA-H3, TSA-Q2, TSA-V1.
    """
    hashed = hashlib.sha256(b"document").digest()
    before = datetime.now(UTC)
    reply = await authority.post(request_for(hashed, nonce=2**63 + 5, cert_req=True))
    after = datetime.now(UTC)
    assert reply.http_status == 200
    assert reply.headers["Content-Type"] == "application/timestamp-reply"
    assert reply.headers["Content-Length"] == str(len(reply.body))
    assert reply.headers["Cache-Control"] == "no-store"
    assert "Transfer-Encoding" not in reply.headers

    tst_info = tst_info_of(reply.body)
    assert tst_info["policy"].native == POLICY
    assert tst_info["nonce"].native == 2**63 + 5
    assert tst_info["message_imprint"]["hashed_message"].native == hashed
    assert before - timedelta(milliseconds=1) <= tst_info["gen_time"].native <= after

    [row] = await recorded(open_as)
    assert int.from_bytes(row["serial_number"], "big") == tst_info["serial_number"].native
    assert row["gen_time"] == tst_info["gen_time"].native
    assert row["policy"] == POLICY
    assert row["hash_algorithm"] == "SHA-256"
    assert row["hashed_message"] == hashed
    assert row["tsu"] == hashlib.sha256(authority.unit.leaf.der).hexdigest()
    assert row["token_sha256"] == hashlib.sha256(token_of(reply.body).dump()).digest()
    assert row["clock_state"] in ("in sync", "out of sync")


async def test_many_at_once(authority: Authority, open_as: OpenPool) -> None:
    """Under load all serial numbers differ, each token is on record, and commits carry many tokens. TSA-T3."""
    replies = await asyncio.gather(*(authority.post(request_for(nonce=n)) for n in range(200)))
    serial_numbers = {tst_info_of(reply.body)["serial_number"].native for reply in replies}
    assert len(serial_numbers) == 200
    rows = await recorded(open_as)
    assert {int.from_bytes(row["serial_number"], "big") for row in rows} == serial_numbers
    metrics = await authority.metrics()
    assert metrics['lakthan_tsa_requests_total{outcome="granted"}'] == 200
    assert metrics["lakthan_tsa_commit_tokens_sum"] == 200
    assert metrics["lakthan_tsa_commit_tokens_count"] < 200


async def test_gen_time_never_goes_back(authority: Authority) -> None:
    """Tokens that are asked for one after another have genTimes in that order."""
    times = [tst_info_of((await authority.post(request_for())).body)["gen_time"].native for _ in range(50)]
    assert times == sorted(times)


async def test_a_restart_takes_a_new_epoch(database_url: str, tmp_path: Path) -> None:
    """Two processes on the same database, at once or one after another, number their tokens in different epochs.

    TSA-T3.
    """
    unit = new_unit()
    epochs = []
    for _ in range(2):
        async with running_tsa(database_url, tmp_path, unit) as one, running_tsa(database_url, tmp_path, unit) as two:
            for each in (one, two):
                serial_number = tst_info_of((await each.post(request_for())).body)["serial_number"].native
                epochs.append(serial_number >> 96 & 0xFFFFFFFF)
    assert len(set(epochs)) == 4


@pytest.mark.parametrize(
    ("body", "fail_info"),
    [
        (b"", "bad_data_format"),
        (b"not DER", "bad_data_format"),
        (request_for() + b"\x00", "bad_data_format"),
        (request_for(bytes(20), hash_name="sha1"), "bad_alg"),
        (request_for(bytes(31)), "bad_data_format"),
        (request_for(req_policy="1.2.3"), "unaccepted_policy"),
        (request_for().replace(b"\x02\x01\x01", b"\x02\x01\x02", 1), "bad_request"),
    ],
)
async def test_refused(authority: Authority, open_as: OpenPool, body: bytes, fail_info: str) -> None:
    """What is no acceptable request gets 200 and a refusal that a client can show, counted under the RFC's word; no
    token is recorded.

    TSA-R1, TSA-R2, TSA-R3, TSA-R4, TSA-R5, TSA-R11, TSA-H2, TSA-V13.
    """
    reply = await authority.post(body)
    assert reply.http_status == 200
    assert reply.headers["Content-Type"] == "application/timestamp-reply"
    bits, text = failure(reply.body)
    assert bits == {fail_info}
    assert text
    assert await recorded(open_as) == []
    metrics = await authority.metrics()
    refused = {
        name: value for name, value in metrics.items() if name.startswith("lakthan_tsa_requests_total") and value
    }
    assert [name.lower() for name in refused] == [
        f'lakthan_tsa_requests_total{{outcome="{fail_info.replace("_", "")}"}}'
    ]


@pytest.mark.parametrize(
    "content_type",
    [
        "application/timestamp-query",
        "Application/Timestamp-Query",
        "application/timestamp-query; charset=utf-8",
        "application/octet-stream",
        "application/x-something",
        "nonsense",
        None,
    ],
)
async def test_media_types_taken(authority: Authority, content_type: str | None) -> None:
    """Clients write the media type in many ways, or leave it out: they are served all the same. TSA-H2, TSA-Q18."""
    reply = await authority.post(request_for(), content_type=content_type)
    assert tst_info_of(reply.body)["version"].native == "v1"


@pytest.mark.parametrize(
    "content_type",
    [
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json",
        "text/html",
        "text/plain;charset=utf-8",
    ],
)
async def test_media_types_refused(authority: Authority, content_type: str) -> None:
    """What is clearly something else gets 415 and a line that says what to send. TSA-H2."""
    reply = await authority.post(request_for(), content_type=content_type)
    assert reply.http_status == 415
    assert b"application/timestamp-query" in reply.body


async def test_old_authenticode(authority: Authority) -> None:
    """The old signtool /t speaks a protocol older than RFC 3161; it is told which switch to use. TSA-Q5."""
    reply = await authority.post(b"MIIBIwYKKwYBBAGCNwMCATCC", content_type="application/octet-stream")
    assert reply.http_status == 415
    assert b"/tr" in reply.body


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"])
async def test_other_methods(authority: Authority, method: str) -> None:
    """Only POST stamps; a person who opens the address in a browser reads what it is. TSA-H2."""
    async with authority.session.request(method, authority.url) as reply:
        assert reply.status == 405
        assert reply.headers["Allow"] == "POST"
        text = await reply.text()
    assert method == "HEAD" or "RFC 3161" in text


async def test_other_paths(authority: Authority) -> None:
    """The default profile has two addresses; others say where it is. A query string is no other address. TSA-V10."""
    for path in ("tsa", "tsa/", "tsa/other", "default", "tsa//default"):
        async with authority.session.post(authority.url + path, data=request_for()) as reply:
            assert reply.status == 404
            assert "to /" in await reply.text()
    async with authority.session.post(
        authority.url + "tsa/default", data=request_for(), headers={"Content-Type": "application/timestamp-query"}
    ) as reply:
        assert reply.status == 200
    async with authority.session.post(
        authority.url + "?x=1", data=request_for(), headers={"Content-Type": "application/timestamp-query"}
    ) as reply:
        assert reply.status == 200


async def test_too_large(authority: Authority) -> None:
    """A body beyond the limit is not read; one at the limit is answered, as badDataFormat. TSA-H2."""
    assert (await authority.post(bytes(LARGEST_BODY + 1))).http_status == 413
    assert failure((await authority.post(bytes(LARGEST_BODY))).body)[0] == {"bad_data_format"}


async def raw(authority: Authority, octets: bytes) -> tuple[str, CIMultiDict[str], bytes]:
    """Send these octets on a connection of their own; gives status line, headers and body of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", authority.port)
    try:
        writer.write(octets)
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        status, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
        headers = CIMultiDict((name, value) for name, _, value in (line.partition(": ") for line in lines))
        return status, headers, await reader.readexactly(int(headers["Content-Length"]))
    finally:
        writer.close()
        await writer.wait_closed()


async def test_no_length(authority: Authority) -> None:
    """A POST that says neither how long it is nor that it is chunked gets 411. TSA-H2."""
    status, _, _ = await raw(authority, b"POST / HTTP/1.1\r\nHost: tsa\r\n\r\n")
    assert status == "HTTP/1.1 411 Length Required"


async def test_chunked_request(authority: Authority) -> None:
    """A chunked request is read; the answer is not chunked. TSA-V9."""
    body = request_for()
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    status, headers, answer = await raw(
        authority, b"POST / HTTP/1.1\r\nHost: tsa\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
    )
    assert status == "HTTP/1.1 200 OK"
    assert "Transfer-Encoding" not in headers
    assert tst_info_of(answer)["version"].native == "v1"


async def test_http_1_0(authority: Authority) -> None:
    """HTTP/1.0 clients are served too."""
    body = request_for()
    status, headers, answer = await raw(authority, b"POST / HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert status.endswith("200 OK")
    assert headers["Content-Type"] == "application/timestamp-reply"
    assert tst_info_of(answer)["version"].native == "v1"


async def test_expect_continue(authority: Authority) -> None:
    """Clients that wait for a go-ahead before they send the body get it (RFC 9110 §10.1.1)."""
    body = request_for()
    reader, writer = await asyncio.open_connection("127.0.0.1", authority.port)
    try:
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "nonsense"])
async def test_mislabelled_content_encoding(authority: Authority, coding: str) -> None:
    """A request that is mislabelled as compressed is read as it is; compressed garbage is badDataFormat."""
    reply = await authority.post(request_for(), **{"Content-Encoding": coding})
    assert tst_info_of(reply.body)["version"].native == "v1"
    reply = await authority.post(b"\x1f\x8b garbage", **{"Content-Encoding": coding})
    assert failure(reply.body)[0] == {"bad_data_format"}


async def test_key_past_its_period(database_url: str, tmp_path: Path, open_as: OpenPool) -> None:
    """A key whose privateKeyUsagePeriod has ended stamps nothing, although its certificate is valid, and the process
    says that it is not ready.

    TSA-R9, TSA-K5.
    """
    ended = datetime.now(UTC).replace(microsecond=0, tzinfo=None) - timedelta(minutes=5)
    unit = new_unit(extensions=(*UNIT_EXTENSIONS, (x509.PrivateKeyUsagePeriod(None, ended), False)))
    async with running_tsa(database_url, tmp_path, unit) as authority:
        assert failure((await authority.post(request_for())).body)[0] == {"system_failure"}
        async with authority.session.get(f"{authority.admin_url}/readyz") as reply:
            assert reply.status == 503
            assert "profile default: no key of its units may stamp" in await reply.text()
    assert await recorded(open_as) == []


async def test_lost_database(authority: Authority, database_url: str) -> None:
    """Without the token log no token leaves; when it is back, tokens leave again without a restart. TSA-R9."""
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("REVOKE INSERT ON timestamp_token FROM lakthan_tsa")
        bits, text = failure((await authority.post(request_for())).body)
        assert bits == {"system_failure"}
        assert "recorded" in text
        async with authority.session.get(f"{authority.admin_url}/readyz") as reply:
            assert reply.status == 503
        await connection.execute("GRANT INSERT ON timestamp_token TO lakthan_tsa")
        while (await authority.session.get(f"{authority.admin_url}/readyz")).status != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    finally:
        await connection.close()
    assert tst_info_of((await authority.post(request_for())).body)["version"].native == "v1"


async def test_ready(authority: Authority) -> None:
    """A healthy process is alive and ready, and names what it looked at."""
    async with authority.session.get(f"{authority.admin_url}/readyz") as reply:
        assert reply.status == 200
        assert {line.partition(":")[0] for line in (await reply.text()).splitlines()} == {
            "profile default",
            "token log",
        }
    async with authority.session.get(f"{authority.admin_url}/livez") as reply:
        assert reply.status == 200


async def test_unfit_certificate(database_url: str, tmp_path: Path) -> None:
    """A certificate that is not for time-stamping never serves. TSA-K8."""
    with pytest.raises(ConfigError, match="extendedKeyUsage"):
        async with running_tsa(database_url, tmp_path, new_unit(extensions=())):
            pass


async def test_no_database_at_start(tmp_path: Path) -> None:
    """Without a database there is no epoch for serial numbers, so the process does not start."""
    with pytest.raises(StoreUnavailable):
        async with running_tsa("postgresql://nobody@127.0.0.1:1/none", tmp_path, new_unit()):
            pass


async def test_enforced_clock(database_url: str, tmp_path: Path) -> None:
    """With `enforce`, a claim that this clock cannot back, one millisecond, is refused as timeNotAvailable. TSA-R8."""
    accuracy = timedelta(milliseconds=1)
    async with running_tsa(database_url, tmp_path, new_unit(), clock=ClockConfig(), accuracy=accuracy) as authority:
        assert failure((await authority.post(request_for())).body)[0] == {"time_not_available"}
        metrics = await authority.metrics()
    assert metrics['lakthan_tsa_clock_state{state="in sync"}'] == 0
    assert metrics['lakthan_tsa_requests_total{outcome="timeNotAvailable"}'] == 1


async def test_requests_of_openssl_size(authority: Authority) -> None:
    """A nonce of any length comes back; the token is otherwise the same. TSA-T8, TSA-Q3."""
    for bits in (1, 64, 159, 160, 512, 4096):
        nonce = 2**bits - 1
        reply = await authority.post(request_for(nonce=nonce))
        assert tst_info_of(reply.body)["nonce"].native == nonce
        assert isinstance(tst_info_of(reply.body), tsp.TSTInfo)
