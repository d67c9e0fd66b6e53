"""A responder of an offline root: it gives out what a ceremony signed, octet for octet, and has no key."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

import aiohttp
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from lakthan import keys
from lakthan.config import Config, DatabaseConfig, KeyURI, OCSPConfig, ResponderConfig
from lakthan.errors import ConfigError
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.changes import ChangeWriter
from lakthan.store.records import CRLReason
from lakthan_cli.__main__ import main
from lakthan_ocsp.__main__ import serve
from support.ceremony import DAY, new_room
from support.database import OpenPool
from support.pki import issue
from support.published import Root, hold, of, serving
from support.responder import TIMES, request_for
from support.running import running

NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
async def root(open_as: OpenPool, database_url: str, tmp_path: Path) -> AsyncIterator[Root]:
    """A responder of a root, before its first ceremony."""
    pool = await open_as("lakthan_registry")
    async with serving(pool, database_url, new_room(tmp_path)) as served:
        yield served


@pytest.mark.parametrize("algorithm", [hashes.SHA1(), hashes.SHA256()])
async def test_octet_for_octet(root: Root, algorithm: hashes.HashAlgorithm) -> None:
    """By POST and by GET, with and without a nonce, a client gets the very octets that the ceremony signed."""
    out = await hold(root.room)
    await root.take(out)
    signed = {path.read_bytes() for path in (out / "answers").iterdir()}
    for certificate, expected in ((root.room.good, "good"), (root.room.revoked, "revoked")):
        request = request_for(certificate, root.room.root, algorithm=algorithm)
        replies = [
            await root.ask(certificate, algorithm),
            await root.ask(certificate, algorithm),
            await root.responder.get(request),
            await root.responder.get(request),
            await root.ask(certificate, algorithm, nonce=b"n" * 32),
        ]
        assert len({reply.body for reply in replies}) == 1
        assert replies[0].body in signed
        response = ocsp.load_der_ocsp_response(replies[0].body)
        assert response.certificate_status.name.lower() == expected
        assert response.hash_algorithm.name == algorithm.name


async def test_caches_may_keep_it(root: Root) -> None:
    """The headers say what every cache needs (RFC 9919 §6): an hour at most, and never beyond nextUpdate."""
    await root.take(await hold(root.room))
    request = request_for(root.room.good, root.room.root)
    replies = [await root.responder.get(request) for _ in range(3)]  # looked up, remembered, by ready made octets
    for reply in replies:
        assert reply.headers["Cache-Control"] == "max-age=3600, public, no-transform, must-revalidate"
        assert reply.headers["ETag"] == f'"{hashlib.sha256(reply.body).hexdigest()}"'
        response = ocsp.load_der_ocsp_response(reply.body)
        assert parsedate_to_datetime(reply.headers["Expires"]) == response.next_update_utc
        assert parsedate_to_datetime(reply.headers["Last-Modified"]) == response.this_update_utc
    again = await root.responder.get(request, **{"If-None-Match": replies[0].headers["ETag"]})
    assert (again.http_status, again.body) == (304, b"")


async def test_no_cache_keeps_it_beyond_its_time(root: Root) -> None:
    """Near the end of an answer, and where the next one begins, max-age is what is left and no more."""
    begin = datetime.now(UTC).replace(microsecond=0) - 7 * DAY + timedelta(minutes=5)
    await root.take(await hold(root.room, begin=begin, days=14, answers='period = "P7D"'))
    reply = await root.ask(root.room.good)
    seconds = int(reply.headers["Cache-Control"].split("=")[1].split(",")[0])
    assert 0 < seconds <= 300


async def test_the_next_period_begins(root: Root) -> None:
    """When the next answer's time has come it is given out, although the one before is remembered and still valid."""
    begin = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=23) + timedelta(seconds=6)
    await root.take(await hold(root.room, begin=begin, days=2, answers='period = "P1D"\noverlap = "PT1H"'))
    seen = []
    async with asyncio.timeout(30):
        while begin + timedelta(hours=23) not in seen:
            seen.append(ocsp.load_der_ocsp_response((await root.ask(root.room.good)).body).this_update_utc)
            await asyncio.sleep(0.02)
    assert seen[0] == begin


async def test_what_nobody_signed(root: Root) -> None:
    """Before the first ceremony, about other certificates, hashes and several at once: unauthorized, never a guess."""
    strange = issue("strange", root.room.root)
    assert (await root.ask(root.room.good)).status == "unauthorized"
    await root.take(await hold(root.room))
    assert (await root.ask(root.room.good)).status == "successful"  # not remembered as unknown
    assert (await root.ask(strange)).status == "unauthorized"
    assert (await root.ask(root.room.good, hashes.SHA384())).status == "unauthorized"
    builder = ocsp.OCSPRequestBuilder().add_certificate(
        root.room.good.certificate, root.room.root.certificate, hashes.SHA256()
    )
    one = builder.build().public_bytes(Encoding.DER)
    cert = one[6:]
    two = bytes([0x30, len(cert) * 2 + 4, 0x30, len(cert) * 2 + 2, 0x30, len(cert) * 2]) + cert * 2
    if len(cert) * 2 + 4 >= 128:
        content = cert * 2
        for _ in range(3):
            content = b"\x30\x81" + bytes([len(content)]) + content
        two = content
    assert (await root.responder.post(two)).status == "unauthorized"
    metrics = await root.responder.metrics()
    assert metrics['lakthan_ocsp_unauthorized_total{cause="not published"}'] == 4 * TIMES


async def test_a_revocation_ends_the_answer_at_once(root: Root) -> None:
    """A sub-CA that is revoked online is never good again, also not from memory; the next ceremony says revoked."""
    await root.take(await hold(root.room, revoked=False))
    for _ in range(3):
        assert (await root.ask(root.room.good)).cert_statuses == ["good"]
    when = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=2)
    await ChangeWriter(root.pool).revoke(
        root.authority_id, root.room.revoked.serial_number, reason=CRLReason.CA_COMPROMISE, revocation_time=when,
        actor="test",
    )  # fmt: skip
    assert (await root.until(root.room.revoked, "try_later")).headers["Cache-Control"].endswith("no-store")
    assert (await root.ask(root.room.good)).cert_statuses == ["good"]
    metrics = await root.responder.metrics()
    assert metrics['lakthan_ocsp_published_withheld_total{authority="root",cause="changed"}'] >= 1
    await root.take(await hold(root.room, "second", number=2))
    assert (await root.until(root.room.revoked, "revoked")).status == "successful"


async def test_a_newer_bundle_is_served_at_once(root: Root) -> None:
    """What the last ceremony signed replaces what was remembered, in every worker, as soon as it is imported."""
    await root.take(await hold(root.room, revoked=False))
    assert (await root.ask(root.room.good)).cert_statuses == ["good"]
    second = await hold(root.room, "second", number=2)
    await root.take(second)
    signed = {path.read_bytes() for path in (second / "answers").iterdir()}
    await root.until(root.room.revoked, "revoked")
    assert (await root.ask(root.room.good)).body in signed


async def test_answers_that_have_not_begun(root: Root) -> None:
    """Where there are answers for other times only, the client may come again."""
    await root.take(await hold(root.room, begin=NOW + timedelta(hours=1), revoked=False))
    assert (await root.ask(root.room.good)).status == "try_later"
    metrics = await root.responder.metrics()
    assert metrics['lakthan_ocsp_published_withheld_total{authority="root",cause="not now"}'] == TIMES


async def test_a_root_that_is_compromised(root: Root) -> None:
    """Once the root itself is revoked, none of its published answers says good any more (RFC 6960 §2.7)."""
    await root.take(await hold(root.room))
    assert (await root.ask(root.room.good)).cert_statuses == ["good"]
    await AuthorityAdmin(root.pool).revoke_authority(
        "root", reason=CRLReason.KEY_COMPROMISE, revocation_time=NOW - timedelta(hours=1)
    )
    await root.until(root.room.good, "try_later")
    assert (await root.ask(root.room.revoked)).cert_statuses == ["revoked"]


async def test_our_own_client_believes_it(root: Root) -> None:
    """`lakthan ocsp query`, which checks everything, verifies the answers of every period with the root alone."""
    begin = NOW - timedelta(hours=1)
    await root.take(await hold(root.room, begin=begin, answers='period = "P7D"\noverlap = "P1D"'))
    folder = root.room.folder
    trusting = ["--issuer", str(folder / "root.pem"), "--trust", str(folder / "root.pem")]
    for name, exit_code in (("good", 0), ("revoked", 1)):
        asked = ["ocsp", "query", str(folder / f"{name}.pem"), "--url", root.responder.url]
        result = await asyncio.to_thread(CliRunner().invoke, main, [*asked, *trusting])
        assert result.exit_code == exit_code, result.output
    [later] = (folder / "out" / "answers").glob(
        f"{root.room.good.serial_number.hex()}-sha1-{begin + timedelta(days=6):%Y%m%dT%H%M%SZ}.ors"
    )
    kept = ["ocsp", "verify", str(later), "--cert", str(folder / "good.pem"), *trusting]
    for days, exit_code in ((7, 0), (1, 4)):  # before it begins it is worth nothing
        at = f"{begin + timedelta(days=days):%Y-%m-%dT%H:%M:%SZ}"
        result = await asyncio.to_thread(CliRunner().invoke, main, [*kept, "--at", at])
        assert result.exit_code == exit_code, result.output


async def test_it_is_counted(root: Root) -> None:
    """Answers are counted by where they came from, and it is known when the next ceremony is due."""
    await root.take(await hold(root.room))
    for _ in range(3):
        await root.ask(root.room.good)
    metrics = await root.responder.metrics()
    assert metrics['lakthan_ocsp_answers_total{source="published"}'] == 1
    assert metrics['lakthan_ocsp_answers_total{source="cache"}'] == 3 * TIMES - 1
    assert metrics['lakthan_ocsp_answers_total{source="signed"}'] == 0
    assert metrics['lakthan_ocsp_cert_statuses_total{status="good"}'] == 3 * TIMES
    response = ocsp.load_der_ocsp_response((await root.ask(root.room.good)).body)
    assert response.next_update_utc is not None
    due = metrics['lakthan_ocsp_published_until_timestamp_seconds{authority="root"}']
    assert due == response.next_update_utc.timestamp()


async def test_no_key_is_ever_opened(
    open_as: OpenPool, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From start to answer the process opens no key: there is no way to one."""
    room = new_room(tmp_path)
    out = await hold(room)

    def refuse(*_: object) -> None:
        raise AssertionError("a key was opened")

    for module in (keys, keys.signer):
        monkeypatch.setattr(module, "open_signer", refuse)
    monkeypatch.setattr("lakthan.identity.open_signer", refuse)
    pool = await open_as("lakthan_registry")
    async with serving(pool, database_url, room) as served:
        await served.take(out)
        assert (await served.ask(room.good)).cert_statuses == ["good"]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"key": KeyURI("file:root.key", Path())}, "remove key"),
        ({"certificate": Path("root.pem")}, "remove certificate"),
        ({"validity": DAY}, "remove validity"),
        ({"max_age": -DAY}, "max_age is negative"),
        ({"answers": "signed"}, "give its certificate and key"),
    ],
)
async def test_settings_that_contradict(database_url: str, settings: dict[str, object], why: str) -> None:
    """A responder of published answers that names a key does not start, nor one that signs and has none."""
    config = ResponderConfig(**({"authority": "root", "answers": "published"} | settings))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=why):
        async with running(
            serve, Config(ocsp=OCSPConfig([config], DatabaseConfig(database_url), port=0, admin_port=0))
        ):
            pass


async def test_check_config(open_as: OpenPool, database_url: str, tmp_path: Path) -> None:
    """`lakthan check-config` knows responders without a key, and finds the authority that the store does not have."""
    await AuthorityAdmin(await open_as("lakthan_registry")).add_authority("root", [new_room(tmp_path).root.der])
    file = tmp_path / "lakthan.toml"
    tables = "".join(f'[[ocsp.responders]]\nauthority = "{name}"\nanswers = "published"\n' for name in ("root", "rot"))
    file.write_text(f'{tables}[ocsp.database]\nurl = "{database_url}"\n')
    result = await asyncio.to_thread(CliRunner().invoke, main, ["check-config", str(file)])
    assert re.search(r"ocsp: responder of root +ok\n", result.output), result.output
    assert re.search(r"ocsp: responder of rot +the database has no authority of this name", result.output)
    assert result.exit_code == 1


async def test_a_second_responder_would_contradict(open_as: OpenPool, database_url: str, tmp_path: Path) -> None:
    """Beside published answers nobody else answers for the authority, and /readyz says so."""
    room = new_room(tmp_path, delegated=True)
    signing = ResponderConfig("root", tmp_path / "responder.pem", KeyURI("file:responder.key", tmp_path))
    pool = await open_as("lakthan_registry")
    authority_id = await AuthorityAdmin(pool).add_authority("root", [room.root.der])
    config = OCSPConfig(
        [ResponderConfig("root", answers="published"), signing], DatabaseConfig(database_url), port=0, admin_port=0
    )
    async with running(serve, Config(ocsp=config)) as ports, aiohttp.ClientSession() as session:
        responder = of(room, pool, authority_id, ports, session)
        ready = await session.get(f"{responder.admin_url}/readyz")
        assert "its answers are published" in await ready.text()
        reply = await responder.post(request_for(room.good, room.root))
        assert reply.status == "unauthorized"
