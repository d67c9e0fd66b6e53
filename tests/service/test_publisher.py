"""A publisher signs ahead, and a responder without a key gives it out."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

import aiohttp
import asyncpg
import pytest
from asn1crypto import ocsp as asn1_ocsp
from click.testing import CliRunner
from cryptography.hazmat.primitives import hashes
from cryptography.x509 import ocsp

from lakthan.config import Config, KeyURI
from lakthan.errors import ConfigError, SignerBusy
from lakthan.keys.software import SoftwareSigner
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.bulk import import_issued
from lakthan.store.presigned import Presigned as Store
from lakthan.store.records import CRLReason
from lakthan_cli.__main__ import main
from lakthan_ocsp import wall_clock
from lakthan_ocsp.publisher import schedule
from lakthan_ocsp.publisher.__main__ import serve as publish
from support.database import OpenPool
from support.pki import issue, new_ca, new_responder
from support.presigning import AUTHORITY, Presigned, presigning, publisher_config
from support.programs import need
from support.responder import TIMES
from support.running import running, samples

HOUR = timedelta(hours=1)


@pytest.fixture
async def presigned(database_url: str, tmp_path: Path) -> AsyncIterator[Presigned]:
    """A CA whose answers are signed ahead, and a responder without a key."""
    async with presigning(database_url, tmp_path) as served:
        yield served


async def test_a_certificate_is_answered_as_soon_as_it_is_announced(presigned: Presigned) -> None:
    """What was announced is signed ahead with both hashes and given out octet for octet, also where a nonce is sent.

    OCSP-59.
    """
    certificate = await presigned.issue()
    reply = await presigned.until(certificate, "good")
    rows = await presigned.until_rows(2, certificate=certificate)
    assert reply.body in {row["response"] for row in rows}
    for algorithm in (hashes.SHA1(), hashes.SHA256()):
        reply = await presigned.ask(certificate, algorithm)
        response = ocsp.load_der_ocsp_response(reply.body)
        assert response.hash_algorithm.name == algorithm.name
        assert response.serial_number == certificate.certificate.serial_number
        assert (await presigned.ask(certificate, algorithm, nonce=b"n" * 32)).body == reply.body


async def test_what_is_on_record_about_an_answer(presigned: Presigned) -> None:
    """A row says what the answer says, has the version of the status, and is due within the refresh interval."""
    certificate = await presigned.issue()
    await presigned.until(certificate, "good")
    for row in await presigned.until_rows(2, certificate=certificate):
        response = ocsp.load_der_ocsp_response(row["response"])
        assert row["this_update"] == row["produced_at"] == response.this_update_utc == response.produced_at_utc
        assert row["next_update"] == response.next_update_utc
        assert row["produced_at"] < row["due_at"] <= row["produced_at"] + HOUR + timedelta(seconds=1)
        version = await presigned.pool.fetchval(
            "SELECT version FROM certificate_status WHERE serial_number = $1", certificate.serial_number
        )
        assert row["status_version"] == version
        [single] = asn1_ocsp.OCSPResponse.load(row["response"]).response_data["responses"]
        assert single["cert_id"]["hash_algorithm"]["parameters"].native is None
        assert b"\x05\x00" in single["cert_id"]["hash_algorithm"].dump()


async def test_a_change_is_answered_at_once(presigned: Presigned) -> None:
    """Revoked, held and released certificates are answered anew in a moment, and never once by what was before."""
    certificate, held = await presigned.issue("revoked"), await presigned.issue("held")
    writer, authority_id = presigned.responder.writer, presigned.authority_id
    for each in (certificate, held):
        await presigned.until(each, "good")
    await writer.revoke(authority_id, certificate.serial_number, reason=CRLReason.KEY_COMPROMISE, actor="test")
    reply = await presigned.until(certificate, "revoked")
    assert ocsp.load_der_ocsp_response(reply.body).revocation_reason is not None
    for _ in range(20):
        assert (await presigned.ask(certificate)).cert_statuses == ["revoked"]
    await writer.hold(authority_id, held.serial_number, actor="test")
    await presigned.until(held, "revoked")
    await writer.unhold(authority_id, held.serial_number, actor="test")
    await presigned.until(held, "good")
    metrics = await presigned.metrics()
    assert metrics[f'lakthan_publisher_published_total{{authority="{AUTHORITY}",cause="changed"}}'] == 6
    assert len(await presigned.rows()) == 4  # each took the place of the one before


async def test_a_revocation_overtakes_a_bulk_import(database_url: str, tmp_path: Path) -> None:
    """While thousands of new certificates wait for a slow key, a revocation is answered before them."""
    async with presigning(database_url, tmp_path, signatures_per_second=20.0) as presigned:
        certificate = await presigned.issue()
        await presigned.until(certificate, "good")
        crowd = [(bytes([0x30]) + number.to_bytes(4), None, None, None, None, None) for number in range(5000)]
        await import_issued(presigned.pool, presigned.authority_id, crowd, actor="test", through="test")
        async with asyncio.timeout(20):
            while len(await presigned.rows()) < 30:  # noqa: ASYNC110 - the store says when
                await asyncio.sleep(0.01)
        await presigned.responder.writer.revoke(presigned.authority_id, certificate.serial_number, actor="test")
        await presigned.until(certificate, "revoked")
        assert len(await presigned.rows()) < 2000


async def test_try_later_until_the_answer_is_there(database_url: str, tmp_path: Path) -> None:
    """An announced certificate without an answer is tryLater, and one that nobody announced is unauthorized."""
    async with presigning(database_url, tmp_path, signatures_per_second=0.5, hashes=("SHA-256",)) as presigned:
        first = await presigned.issue("first")
        await presigned.until(first, "good")
        second = await presigned.issue("second")
        withheld = f'lakthan_ocsp_published_withheld_total{{authority="{AUTHORITY}",cause="not yet"}}'
        before = (await presigned.responder.metrics()).get(withheld, 0)
        assert (await presigned.ask(second)).status == "try_later"
        assert (await presigned.ask(second, hashes.SHA1())).status == "unauthorized"
        assert (await presigned.ask(issue("nobody's", presigned.responder.ca))).status == "unauthorized"
        assert (await presigned.responder.metrics())[withheld] == before + TIMES


async def test_answers_are_refreshed(database_url: str, tmp_path: Path) -> None:
    """Every answer is signed anew within the refresh interval, and a responder gives the new one."""
    refresh, validity = timedelta(seconds=2), timedelta(seconds=30)
    async with presigning(database_url, tmp_path, refresh=refresh, validity=validity) as presigned:
        certificate = await presigned.issue()
        first = ocsp.load_der_ocsp_response((await presigned.until(certificate, "good")).body).this_update_utc
        async with asyncio.timeout(20):
            while True:
                reply = await presigned.ask(certificate)
                assert reply.cert_statuses == ["good"]
                if ocsp.load_der_ocsp_response(reply.body).this_update_utc >= first + timedelta(seconds=4):
                    break
                await asyncio.sleep(0.05)
        assert len(await presigned.rows()) == 2


async def test_renewed_while_the_question_waits(presigned: Presigned, open_as: OpenPool) -> None:
    """Where the answer that was valid when the question came is gone, and the one in its place has begun since, that is
    given: no client hears tryLater because his answer was renewed.
    """
    certificate = await presigned.issue()
    await presigned.until_rows(2, certificate=certificate)
    await presigned.stop_publishing()
    owner = await open_as(None)
    async with owner.acquire() as connection, connection.transaction():
        await connection.execute("LOCK TABLE published_answer IN ACCESS EXCLUSIVE MODE")
        asked = asyncio.create_task(presigned.ask(certificate))
        async with asyncio.timeout(20):
            while not await owner.fetchval(  # noqa: ASYNC110 - the store says when
                "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'published_answer'::regclass AND NOT granted)"
            ):
                await asyncio.sleep(0.01)
        in_a_second = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=1)
        while datetime.now(UTC) < in_a_second:  # noqa: ASYNC110 - the clock says when
            await asyncio.sleep(0.01)
        await connection.execute("UPDATE published_answer SET this_update = $1, produced_at = $1", in_a_second)
    assert (await asked).cert_statuses == ["good"]
    withheld = f'lakthan_ocsp_published_withheld_total{{authority="{AUTHORITY}",cause="not now"}}'
    assert (await presigned.responder.metrics()).get(withheld, 0) == 0


async def test_a_nonce_is_signed_live_where_there_is_a_key(database_url: str, tmp_path: Path) -> None:
    """With a key beside the published answers a nonce is echoed, and all else is what was published."""
    async with presigning(database_url, tmp_path, live=True) as presigned:
        certificate = await presigned.issue()
        published = (await presigned.until(certificate, "good")).body
        reply = await presigned.ask(certificate, nonce=b"n" * 32)
        extensions = reply.response.response_data["response_extensions"]
        assert [bytes(each["extn_value"].parsed) for each in extensions] == [b"n" * 32]
        assert reply.cert_statuses == ["good"]
        assert (await presigned.ask(certificate)).body == published
        metrics = await presigned.responder.metrics()
        assert metrics['lakthan_ocsp_answers_total{source="signed"}'] >= 1


async def test_one_signs_and_the_other_takes_over(
    presigned: Presigned, database_url: str, tmp_path: Path, open_as: OpenPool
) -> None:
    """Of two publishers one signs; when its connections end, the other one does at once."""
    first = await presigned.issue("first")
    await presigned.until(first, "good")
    config = Config(publisher=presigned.config)
    async with running(publish, config) as (_, port), aiohttp.ClientSession() as session:
        url, leader = f"http://127.0.0.1:{port}", f'lakthan_publisher_leader{{authority="{AUTHORITY}"}}'
        ready = await session.get(f"{url}/readyz")
        assert ready.status == 200
        assert (await samples(session, url))[leader] == 0
        assert (await presigned.metrics())[leader] == 1
        owner = await open_as(None)
        ended = await owner.fetchval(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_locks JOIN pg_stat_activity USING (pid)"
            " WHERE locktype = 'advisory' AND granted AND application_name = 'lakthan-publisher'"
            " AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        assert ended == 2  # of the authority and of the heartbeat
        async with asyncio.timeout(20):
            while (await samples(session, url))[leader] != 1:  # noqa: ASYNC110 - the store says when
                await asyncio.sleep(0.02)
        second = await presigned.issue("second")
        await presigned.until(second, "good")
        assert (await presigned.metrics())[leader] == 0


async def test_what_happened_meanwhile_is_found_at_the_start(database_url: str, tmp_path: Path) -> None:
    """What was announced and revoked while no publisher ran is signed when one starts, and what is current is kept."""
    async with presigning(database_url, tmp_path) as presigned:
        kept, changed = await presigned.issue("kept"), await presigned.issue("changed")
        await presigned.until_rows(4)
        before = {row["response"] for row in await presigned.rows(kept)}
        config = presigned.config
        writer, authority_id, pool = presigned.responder.writer, presigned.authority_id, presigned.pool
        await pool.fetchval("SELECT 1")
        await presigned.stop_publishing()
        await writer.revoke(authority_id, changed.serial_number, actor="test")
        late = await presigned.issue("late")
        assert (await presigned.ask(changed)).status == "try_later"
        async with running(publish, Config(publisher=config)):
            await presigned.until(changed, "revoked")
            await presigned.until(late, "good")
            assert {row["response"] for row in await presigned.rows(kept)} == before


async def test_a_clock_that_is_set(presigned: Presigned, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the moment in which somebody sets this machine's clock nothing is signed by it, and the lead is given up,
    until it agrees with the database's again; then what was missed is signed, and nothing has a time that was not.
    """
    leader = f'lakthan_publisher_leader{{authority="{AUTHORITY}"}}'

    class Ahead(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + HOUR

    async def until_metric(name: str, value: float) -> None:
        async with asyncio.timeout(20):
            while (await presigned.metrics())[name] != value:  # noqa: ASYNC110 - the publisher says when
                await asyncio.sleep(0.01)

    await presigned.until(await presigned.issue("before"), "good")
    with monkeypatch.context() as patched:
        patched.setattr(schedule, "datetime", Ahead)
        patched.setattr(wall_clock, "time", lambda: time.time() + HOUR.total_seconds())
        certificate = await presigned.issue("meanwhile")
        await until_metric(leader, 0)
        await until_metric("lakthan_publisher_clock_believed", 0)
        async with asyncio.timeout(20):
            while True:
                ready = await presigned.responder.session.get(f"{presigned.publisher_url}/readyz")
                if "this machine's clock is +3600 s from the database's" in await ready.text():
                    break
                await asyncio.sleep(0.01)
        assert ready.status == 503
        assert (await presigned.metrics())["lakthan_publisher_clock_ahead_seconds"] == pytest.approx(3600, abs=30)
        assert await presigned.rows(certificate) == []
    await until_metric(leader, 1)
    await presigned.until_rows(2, certificate=certificate)
    assert all(row["this_update"] <= datetime.now(UTC) for row in await presigned.rows())
    await until_metric("lakthan_publisher_clock_believed", 1)


async def test_a_publisher_with_a_wrong_clock(presigned: Presigned, tmp_path: Path) -> None:
    """One whose machine is an hour ahead, alone, signs nothing and says why; one whose clock is right need not wait for
    it.
    """
    certificate = await presigned.issue()
    await presigned.until(certificate, "good")
    await presigned.stop_publishing()
    # Its environment, and not the program itself, which would stand between us and the process that we end.
    asked = await asyncio.create_subprocess_exec(need("faketime"), "-f", "+1h", "env", stdout=subprocess.PIPE)
    lines = (await asked.communicate())[0].decode().splitlines()
    faked = dict(line.split("=", 1) for line in lines if line.startswith(("LD_PRELOAD=", "FAKETIME=")))
    (tmp_path / "lakthan.toml").write_text(
        f"""
        [publisher]
        admin_port = 0
        database.url = "{presigned.config.database.url}"
        [[publisher.responders]]
        authority = "{AUTHORITY}"
        certificate = "publisher.pem"
        key = "file:publisher.key"
        """
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "lakthan_ocsp.publisher", "--config", str(tmp_path / "lakthan.toml")),
        stderr=subprocess.PIPE,
        env={**os.environ, **faked, "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"},
    )
    try:
        assert process.stderr is not None
        async with asyncio.timeout(60):
            said = b""
            while b'"publishing"' not in said:
                line = await process.stderr.readline()
                assert line, "it did not start"
                said += line
        assert b"the clocks of this machine and of the database differ: nothing is signed" in said
        await presigned.responder.writer.revoke(presigned.authority_id, certificate.serial_number, actor="test")
        before = await presigned.rows()
        async with running(publish, Config(publisher=presigned.config)):
            await presigned.until(certificate, "revoked")
        assert process.returncode is None
        changed = [row for row in await presigned.rows() if row not in before]
        assert all(row["this_update"] <= datetime.now(UTC) for row in changed)
    finally:
        process.kill()
        await process.wait()


async def test_a_key_that_fails(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the key refuses, nothing is put on record, /readyz and the metrics say so, and what was missed is signed
    afterwards.
    """
    refusing = True
    genuine = SoftwareSigner.sign_at_once

    def sign_at_once(self: SoftwareSigner) -> object:
        def refuse(_message: bytes) -> bytes:
            raise SignerBusy("the device is busy")

        return refuse if refusing else genuine.fget(self)  # type: ignore[attr-defined]

    async with presigning(database_url, tmp_path) as presigned:
        monkeypatch.setattr(SoftwareSigner, "sign_at_once", property(sign_at_once))
        certificate = await presigned.issue()
        async with asyncio.timeout(20):
            while True:
                ready = await presigned.responder.session.get(f"{presigned.publisher_url}/readyz")
                if ready.status != 200:
                    break
                await asyncio.sleep(0.01)
        assert "the device is busy" in await ready.text()
        assert await presigned.rows() == []
        metrics = await presigned.metrics()
        assert metrics[f'lakthan_publisher_working{{authority="{AUTHORITY}"}}'] == 0
        assert metrics[f'lakthan_publisher_failed_total{{authority="{AUTHORITY}"}}'] >= 2
        refusing = False
        await presigned.until(certificate, "good")
        assert (await presigned.metrics())[f'lakthan_publisher_working{{authority="{AUTHORITY}"}}'] == 1


async def test_a_revoked_authority(presigned: Presigned) -> None:
    """When the CA itself is revoked, all answers are signed anew, and none says good (RFC 6960 §2.7)."""
    certificate = await presigned.issue()
    await presigned.until(certificate, "good")
    await presigned.responder.authorities.revoke_authority(
        AUTHORITY, reason=CRLReason.KEY_COMPROMISE, revocation_time=datetime.now(UTC).replace(microsecond=0) - HOUR
    )
    await presigned.until(certificate, "revoked")


async def test_the_heartbeat(presigned: Presigned, open_as: OpenPool) -> None:
    """A publisher writes the time down every second, by the database's clock."""
    owner = await open_as(None)
    async with asyncio.timeout(20):
        while (await owner.fetchval("SELECT count(*) FROM heartbeat")) == 0:  # noqa: ASYNC110 - the store says when
            await asyncio.sleep(0.02)
        first = await owner.fetchval("SELECT at FROM heartbeat")
        while await owner.fetchval("SELECT at FROM heartbeat") == first:  # noqa: ASYNC110 - the store says when
            await asyncio.sleep(0.02)
    assert await owner.fetchval("SELECT at <= clock_timestamp() AND at > now() - interval '10 s' FROM heartbeat")
    assert (await presigned.metrics())["lakthan_publisher_heartbeat_timestamp_seconds"] > first.timestamp()


async def test_a_heartbeat_alone(database_url: str, open_as: OpenPool, tmp_path: Path) -> None:
    """A publisher without responders keeps the heartbeat and needs no key."""
    config = publisher_config(database_url, tmp_path, new_responder(new_ca("CA")))
    owner = await open_as(None)
    async with running(publish, Config(publisher=type(config)([], config.database, admin_port=0))):
        async with asyncio.timeout(20):
            while (await owner.fetchval("SELECT count(*) FROM heartbeat")) == 0:  # noqa: ASYNC110 - the store says when
                await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"hashes": ("SHA-1", "MD5")}, "hashes are some of"),
        ({"hashes": ("SHA-1", "SHA-1")}, "each once"),
        ({"dual_hash": True}, "dual_hash is for responders"),
        ({"answers": "published"}, "answers is for responders"),
        ({"refresh": timedelta(days=5)}, "refresh must be shorter than validity"),
        ({"key": KeyURI("file:nowhere.key", Path())}, "cannot be read"),
    ],
)
async def test_settings_that_contradict(
    database_url: str, tmp_path: Path, settings: dict[str, object], why: str
) -> None:
    """What cannot work does not start."""
    config = publisher_config(database_url, tmp_path, new_responder(new_ca("CA")), **settings)
    with pytest.raises(ConfigError, match=why):
        async with running(publish, Config(publisher=config)):
            pass


async def test_too_little_key_for_too_much(
    presigned: Presigned, database_url: str, tmp_path: Path, open_as: OpenPool
) -> None:
    """When the schedule takes more signatures than the key may give, that is said with the arithmetic."""
    metrics = await presigned.metrics()
    assert metrics[f'lakthan_publisher_short{{authority="{AUTHORITY}"}}'] == 0
    await presigned.stop_publishing()
    for name in "abc":
        await presigned.issue(name)
    identity = presigned.responder.identity
    config = publisher_config(database_url, tmp_path, identity, signatures_per_second=1.0, refresh=timedelta(seconds=2))
    async with running(publish, Config(publisher=config)) as (_, port), aiohttp.ClientSession() as session:
        async with asyncio.timeout(30):
            while True:
                metrics = await samples(session, f"http://127.0.0.1:{port}")
                if metrics.get(f'lakthan_publisher_short{{authority="{AUTHORITY}"}}') == 1:
                    break
                await asyncio.sleep(0.05)
    assert metrics[f'lakthan_publisher_needed_signatures_per_second{{authority="{AUTHORITY}"}}'] == 3


async def test_never_good_again(presigned: Presigned) -> None:
    """From a revocation's commit until the new answer a client hears tryLater or revoked, and never good."""
    certificate = await presigned.issue()
    await presigned.until(certificate, "good")
    stop = asyncio.Event()
    words: list[str] = []

    async def ask() -> None:
        while not stop.is_set():
            reply = await presigned.ask(certificate)
            words.append(reply.cert_statuses[0] if reply.status == "successful" else reply.status)

    askers = [asyncio.create_task(ask()) for _ in range(4)]
    await asyncio.sleep(0)
    await presigned.responder.writer.revoke(presigned.authority_id, certificate.serial_number, actor="test")
    await presigned.until(certificate, "revoked")
    stop.set()
    await asyncio.gather(*askers)
    first = words.index("revoked")
    assert "good" not in words[first + len(askers) :]
    assert set(words) <= {"good", "try_later", "revoked"}


async def test_an_answer_that_a_change_overtook_is_thrown_away(presigned: Presigned, open_as: OpenPool) -> None:
    """What was signed about an older status does not come on record."""
    certificate = await presigned.issue()
    [row, _] = await presigned.until_rows(2, certificate=certificate)
    assert isinstance(row, asyncpg.Record)
    store = Store(await open_as("lakthan_presigner"))
    [record] = await store.records(presigned.authority_id, [certificate.serial_number])
    await presigned.responder.writer.revoke(presigned.authority_id, certificate.serial_number, actor="test")
    await presigned.until(certificate, "revoked")
    assert record.version == row["status_version"]
    newer = {each["response"] for each in await presigned.rows(certificate)}
    assert row["response"] not in newer


@pytest.mark.parametrize(
    ("more", "what", "says"),
    [
        ("", "publisher: responder of public-ca", "ok"),
        ('hashes = ["MD5"]', "publisher: settings", "hashes are some of SHA-1"),
        ('profile = "tls-br"\nvalidity = "P30D"', "publisher: responder of public-ca", "tls-br"),
        ('[[publisher.responders]]\nauthority = "public-ca"\nkeys = "x.toml"', "publisher: settings", "there twice"),
        (
            '[[publisher.responders]]\nauthority = "b"\ncertificate = "publisher.pem"\nkey = "file:publisher.key"',
            "publisher: responder of b",
            "the database has no authority of this name",
        ),
        (
            '[[publisher.responders]]\nauthority = "c"\ncertificate = "no.pem"\nkey = "file:publisher.key"',
            "publisher: responder of c",
            "cannot be read",
        ),
    ],
)
async def test_check_config(
    open_as: OpenPool, database_url: str, tmp_path: Path, *, more: str, what: str, says: str
) -> None:
    """`lakthan check-config` finds in `[publisher]` what a start would find, each thing on a line of its own."""
    ca = new_ca("Public CA")
    new_responder(ca).write(tmp_path, "publisher")
    await AuthorityAdmin(await open_as("lakthan_registry")).add_authority(AUTHORITY, [ca.der])
    file = tmp_path / "lakthan.toml"
    file.write_text(
        f"""
        [publisher.database]
        url = "{database_url}"
        [[publisher.responders]]
        authority = "{AUTHORITY}"
        certificate = "publisher.pem"
        key = "file:publisher.key"
        {more}
        """
    )
    result = await asyncio.to_thread(CliRunner().invoke, main, ["check-config", str(file)])
    lines = dict(re.split(r"  +", line, maxsplit=1) for line in result.output.splitlines() if "  " in line)
    assert lines["publisher: database"] == "ok", result.output
    assert says in lines[what], result.output
    assert result.exit_code == (0 if says == "ok" else 1)
