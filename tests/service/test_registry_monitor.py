"""The monitor finds every certificate about which a CA's CRL and OCSP differ, and when that has lasted too long."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import asyncpg
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from prometheus_client import CollectorRegistry

from lakthan import der
from lakthan.errors import ConfigError
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.pool import open_pool
from lakthan.store.records import AuthorityPolicy, AuthorityRecord, CRLReason
from lakthan_registry.crl_import import import_crl
from lakthan_registry.monitor import STORE, Kind, Monitor, Report
from lakthan_registry.monitor_follow import MonitorMetrics, follow_crls
from lakthan_registry.monitor_report import as_json, as_markdown, remembered
from support.pki import Issued, issue, new_ca, new_responder
from support.responder import ACTOR, Responder, running_responder

HOUR = timedelta(hours=1)
Entry = tuple[datetime, CRLReason | None]


def now() -> datetime:
    """In whole seconds, as CRLs and OCSP have it."""
    return datetime.now(UTC).replace(microsecond=0)


@dataclass
class World:
    """A responder, its store as an auditor sees it, and a CRL in a file."""

    database_url: str
    responder: Responder
    pool: asyncpg.Pool
    session: aiohttp.ClientSession
    folder: Path

    @property
    def crl_path(self) -> Path:
        """Where the CA publishes."""
        return self.folder / "ca.crl"

    async def authority(self) -> AuthorityRecord:
        """The responder's authority."""
        [found] = await AuthorityAdmin(self.pool).authorities()
        return found

    async def revoke(self, serial_number: int, time: datetime, reason: CRLReason | None = None) -> None:
        """Record a revocation."""
        await self.responder.writer.revoke(
            self.responder.authority_id,
            der.integer_content(serial_number),
            reason=reason,
            revocation_time=time,
            actor=ACTOR,
        )

    def publish(self, entries: Mapping[int, Entry], **fields: object) -> bytes:
        """Write the CRL (see `crl_of`)."""
        data = crl_of(self.responder.ca, entries, **fields)  # type: ignore[arg-type]
        self.crl_path.write_bytes(data)
        return data

    async def compare(
        self,
        *,
        delay: timedelta = HOUR,
        before: Report | None = None,
        responders: tuple[str, ...] | None = None,
        sample: int | None = None,
        source: str | None = None,
        more_sources: tuple[str, ...] = (),
    ) -> Report:
        """One run of the monitor, by default with the responder asked about every entry."""
        authority = await self.authority()
        operator = await open_pool(
            self.database_url, role="lakthan_registry", min_size=1, max_size=1, application_name="test"
        )
        await AuthorityAdmin(operator).set_policy(authority.id, AuthorityPolicy(declared_delay=delay), actor=ACTOR)
        await operator.close()
        urls = (self.responder.url,) if responders is None else responders
        monitor = Monitor(self.pool, self.session, responders=urls, sample=sample)
        return await monitor.compare(
            authority,
            sources=[source or str(self.crl_path), *more_sources],
            since=before.since if before else None,
        )


def crl_of(
    ca: Issued,
    entries: Mapping[int, Entry],
    *,
    number: int = 1,
    this_update: datetime | None = None,
    next_update: datetime | None = None,
    signer: Issued | None = None,
    delta: bool = False,
) -> bytes:
    """A CRL, made by pyca/cryptography."""
    this_update = this_update or now() - timedelta(minutes=1)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.certificate.subject)
        .last_update(this_update)
        .next_update(next_update or now() + 24 * HOUR)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.certificate.public_key()),  # type: ignore[arg-type]
            critical=False,
        )
    )
    if delta:
        builder = builder.add_extension(x509.DeltaCRLIndicator(number - 1), critical=True)
    for serial_number, (time, reason) in entries.items():
        entry = x509.RevokedCertificateBuilder().serial_number(serial_number).revocation_date(time)
        if reason is not None:
            entry = entry.add_extension(x509.CRLReason(x509.ReasonFlags(reason.label)), critical=False)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign((signer or ca).key, hashes.SHA256()).public_bytes(Encoding.DER)


@pytest.fixture
async def world(database_url: str, tmp_path: Path) -> AsyncIterator[World]:
    """The registry's auditor beside a running responder."""
    pool = await open_pool(database_url, role="lakthan_auditor", min_size=1, max_size=4, application_name="test")
    async with running_responder(database_url, tmp_path) as responder, aiohttp.ClientSession() as session:
        yield World(database_url, responder, pool, session, tmp_path)
    await pool.close()


def found(report: Report) -> set[tuple[str, str, Kind, bool]]:
    """The differences, shortly."""
    return {
        (
            STORE if each.where == STORE else "responder",
            str(int.from_bytes(each.serial_number, "big", signed=True)),
            each.kind,
            each.alarm,
        )
        for each in report.differences
    }


async def test_both_say_the_same(world: World) -> None:
    """Revocations of every reason, a hold, a serial number of twenty octets and one beyond 0x80: all compared with the
    store, all asked of the responder, and in order.
    """
    time = now() - HOUR
    reasons = [None, *(reason for reason in CRLReason if reason not in (CRLReason.REMOVE_FROM_CRL, CRLReason(6)))]
    entries: dict[int, Entry] = {
        number: (now() - number * HOUR, reason) for number, reason in enumerate(reasons, start=125)
    }
    entries[2**158 + 7] = (time, CRLReason.KEY_COMPROMISE)
    for serial_number, (time, reason) in entries.items():
        await world.revoke(serial_number, time, reason)
    held = await world.responder.issue(issue("held", world.responder.ca))
    await world.responder.writer.hold(
        world.responder.authority_id, held.serial_number, revocation_time=time, actor=ACTOR
    )
    entries[held.certificate.serial_number] = (time, CRLReason.CERTIFICATE_HOLD)
    await world.responder.issue(issue("good", world.responder.ca))
    world.publish(entries)
    report = await world.compare()
    assert report.in_order, as_markdown([report])
    assert report.differences == []
    assert report.compared == len(entries) == report.asked[world.responder.url]
    assert [crl.number for crl in report.crls] == [1]


@pytest.mark.parametrize("alarm", [False, True], ids=["pending", "alarm"])
async def test_every_kind_of_difference(world: World, *, alarm: bool) -> None:
    """Not revoked here, not known here, another time, another reason, not on the CRL: each is found, by the store and
    by asking the responder; younger than the declared delay it is pending, older an alarm.
    """
    good = await world.responder.issue(issue("good", world.responder.ca))
    time = now() - 3 * HOUR
    await world.revoke(2, time, CRLReason.SUPERSEDED)
    await world.revoke(3, time, CRLReason.SUPERSEDED)
    await world.revoke(4, time, CRLReason.SUPERSEDED)
    world.publish(
        {
            good.certificate.serial_number: (time, None),
            1: (time, None),
            2: (time - timedelta(seconds=1), CRLReason.SUPERSEDED),
            3: (time, CRLReason.KEY_COMPROMISE),
        },
        this_update=now() - timedelta(minutes=10),
    )
    report = await world.compare(delay=timedelta(microseconds=1) if alarm else HOUR)
    number = str(good.certificate.serial_number)
    assert found(report) == {
        *((where, number, Kind.NOT_REVOKED, alarm) for where in (STORE, "responder")),
        *((where, "1", Kind.NOT_REVOKED, alarm) for where in (STORE, "responder")),
        *((where, "2", Kind.OTHER_TIME, alarm) for where in (STORE, "responder")),
        *((where, "3", Kind.OTHER_REASON, alarm) for where in (STORE, "responder")),
        (STORE, "4", Kind.NOT_ON_CRL, alarm),
    }
    assert report.in_order is not alarm
    assert {each.ocsp.status for each in report.differences if each.ocsp and each.kind is Kind.NOT_REVOKED} == {
        "unknown",
        "good",
    }


async def test_a_difference_grows_old_though_crls_stay_young(world: World) -> None:
    """A CA that publishes more often than its delay is long cannot hide a difference: its age counts from the CRL in
    which it was first seen. When the difference is gone and comes back, it is a new one.
    """
    time = now() - 3 * HOUR
    world.publish({1: (time, None)}, this_update=now() - timedelta(minutes=50))
    first = await world.compare()
    assert first.alarms == []
    world.publish({1: (time, None)}, this_update=now() - timedelta(minutes=2), number=2)
    again = await world.compare(before=first, delay=timedelta(minutes=45))
    assert {each.kind for each in again.alarms} == {Kind.NOT_REVOKED}
    assert not (await world.compare(delay=timedelta(minutes=45))).alarms
    world.publish({}, number=3)
    gone = await world.compare(before=again)
    assert gone.differences == []
    world.publish({1: (time, None)}, this_update=now() - timedelta(minutes=1), number=4)
    assert not (await world.compare(before=gone, delay=timedelta(minutes=45))).alarms


async def test_a_run_that_cannot_look_forgets_nothing(world: World, tmp_path: Path) -> None:
    """A CRL that cannot be had, or a responder that does not answer, just once, does not make old differences young
    again: their age is kept for the run after it, in a report in JSON as well.
    """
    time = now() - 3 * HOUR
    soon = timedelta(minutes=45)
    world.publish({1: (time, None)}, this_update=now() - timedelta(minutes=50))
    first = await world.compare()
    world.crl_path.unlink()
    blind = await world.compare(before=first)
    assert blind.differences == []
    assert blind.problems
    path = tmp_path / "report.json"
    path.write_text(as_json([blind]))
    assert remembered(path) == {"public-ca": first.since}
    world.publish({1: (time, None)}, this_update=now() - timedelta(minutes=2), number=2)
    again = await world.compare(before=blind, delay=soon)
    assert {(each.where, each.kind) for each in again.alarms} == {
        (where, Kind.NOT_REVOKED) for where in (STORE, world.responder.url)
    }
    world.publish({1: (time, None)}, this_update=now() - timedelta(minutes=1), number=3)
    silent = {"says": True}

    def says(body: bytes) -> web.Response:
        return web.Response(status=503) if silent["says"] else says_good(ours, 0)(body)

    ours = new_responder(world.responder.ca)
    async with canned(says) as url:
        old = {(url, der.integer_content(1), Kind.NOT_REVOKED): now() - HOUR}
        before = Report("public-ca", now(), soon, carried=old)
        deaf = await world.compare(before=before, delay=soon, responders=(url,))
        assert {each.where for each in deaf.differences} == {STORE}
        silent["says"] = False
        heard = await world.compare(before=deaf, delay=soon, responders=(url,))
    assert {each.where for each in heard.alarms} == {url}


async def test_without_all_crls_nothing_is_missed_on_them(world: World) -> None:
    """While one of several CRLs cannot be had, what the store has beyond the others is no difference: it may stand
    there. An older finding about it keeps its age, and what the CRLs that are there say is compared.
    """
    time = now() - 9 * HOUR
    await world.revoke(6, time)
    world.publish({1: (time, None)})
    before = await world.compare()
    assert {(each.kind, each.serial_number) for each in before.differences if each.where == STORE} == {
        (Kind.NOT_REVOKED, b"\x01"),
        (Kind.NOT_ON_CRL, b"\x06"),
    }
    partly = await world.compare(
        before=before, delay=timedelta(microseconds=1), more_sources=(str(world.folder / "other.crl"),)
    )
    assert {(each.kind, each.serial_number) for each in partly.alarms} == {(Kind.NOT_REVOKED, b"\x01")}
    assert len(partly.problems) == 1
    assert partly.since == before.since


async def test_what_a_responder_differed_in_is_asked_again(world: World) -> None:
    """However few of the entries are picked: a difference of a responder alone must be able to grow old."""
    time = now() - HOUR
    for serial_number in range(1, 31):
        await world.revoke(serial_number, time)
    world.publish(dict.fromkeys(range(1, 31), (time, None)))
    async with canned(says_good(new_responder(world.responder.ca), 0)) as url:
        found_before = {(url, der.integer_content(7), Kind.NOT_REVOKED): now() - 3 * HOUR}
        before = Report("public-ca", now(), HOUR, carried=found_before)
        report = await world.compare(before=before, responders=(url,), sample=1)
    assert [each.serial_number for each in report.alarms] == [b"\x07"]


async def test_ended_certificates_may_leave_the_crl(world: World) -> None:
    """A revoked certificate that has ended is missed by nobody; nor is one whose end is not on record and whose
    revocation came from an earlier CRL, which is counted. One that was pushed and never published is missed.
    """
    ended = issue("ended", world.responder.ca, valid=(-48 * HOUR, -24 * HOUR))
    await world.responder.issue(ended)
    await world.revoke(ended.certificate.serial_number, now() - 30 * HOUR)
    operator = await open_pool(
        world.database_url, role="lakthan_registry", min_size=1, max_size=1, application_name="test"
    )
    earlier = crl_of(world.responder.ca, {5: (now() - 9 * HOUR, None)}, this_update=now() - 8 * HOUR)
    await import_crl(earlier, pool=operator, now=datetime.now(UTC), actor=ACTOR, through="cli")
    await operator.close()
    await world.revoke(6, now() - 9 * HOUR)
    world.publish({}, number=2)
    report = await world.compare(delay=timedelta(microseconds=1))
    assert found(report) == {(STORE, "6", Kind.NOT_ON_CRL, True)}
    assert report.ended == 1


async def test_what_cannot_be_compared_is_said(world: World) -> None:
    """A CRL with a wrong signature, an ended one, a delta, garbage, one that is not there: each is a problem in words,
    and nothing is in order.
    """
    other = new_ca("Public CA ອອກໃບຢັ້ງຢືນ")
    world.publish({}, signer=other)
    assert (await problem(world)).endswith("verifies it")
    world.publish({}, this_update=now() - 48 * HOUR, next_update=now() - 24 * HOUR)
    assert "the CRL ended at" in await problem(world)
    world.publish({}, delta=True, number=2)
    assert "delta" in await problem(world)
    world.crl_path.write_bytes(b"0\x80 no CRL")
    assert "cannot be read" in await problem(world)
    world.crl_path.unlink()
    assert "No such file" in await problem(world)
    assert "http://127.0.0.1:9/" in await problem(world, source="http://127.0.0.1:9/ca.crl")
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(other.certificate.subject)
        .last_update(now())
        .next_update(now() + HOUR)
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.99"), b"\x02\x01\x01"), critical=False)
    )
    twice = builder.sign(other.key, hashes.SHA256()).public_bytes(Encoding.DER)
    world.crl_path.write_bytes(twice.replace(b"\x06\x03\x55\x1d\x63", b"\x06\x03\x55\x1d\x14"))
    assert "cannot be read as a CRL" in await problem(world)


async def problem(world: World, *, source: str | None = None) -> str:
    """The one problem of a run."""
    report = await world.compare(source=source)
    assert not report.in_order
    [words] = report.problems
    return words


@asynccontextmanager
async def canned(answer: Callable[[bytes], web.Response]) -> AsyncIterator[str]:
    """A responder that says whatever a test wants; gives its URL."""

    async def handle(request: web.Request) -> web.Response:
        return answer(await request.read())

    application = web.Application()
    application.router.add_post("/", handle)
    async with TestServer(application) as server:
        yield str(server.make_url("/"))


def says_good(signer: Issued, serial_number: int, *, age: timedelta = timedelta(0)) -> Callable[[bytes], web.Response]:
    """An answer `good` about a certificate, signed by this one, and how old it is."""

    def answer(body: bytes) -> web.Response:
        asked = ocsp.load_der_ocsp_request(body)
        built = ocsp.OCSPResponseBuilder().add_response_by_hash(
            asked.issuer_name_hash,
            asked.issuer_key_hash,
            serial_number or asked.serial_number,
            asked.hash_algorithm,
            ocsp.OCSPCertStatus.GOOD,
            now() - age,
            now() - age + HOUR,
            None,
            None,
        )
        response = (
            built.responder_id(ocsp.OCSPResponderEncoding.HASH, signer.certificate)
            .certificates([signer.certificate])
            .sign(signer.key, hashes.SHA256())
        )
        return web.Response(body=response.public_bytes(Encoding.DER))

    return answer


async def test_a_responder_that_is_behind(world: World) -> None:
    """A responder still says `good` of what the store has as revoked: found, whether the CRL has it or not yet."""
    time = now() - HOUR
    await world.revoke(1, time)
    await world.revoke(2, time)
    world.publish({1: (time, None)})
    behind = new_responder(world.responder.ca)
    async with canned(says_good(behind, 0)) as url:
        report = await world.compare(responders=(world.responder.url, url))
    assert {(each.where, each.kind) for each in report.differences} == {
        (STORE, Kind.NOT_ON_CRL),
        (url, Kind.NOT_REVOKED),
        (url, Kind.BEHIND),
    }
    assert report.asked == {world.responder.url: 2, url: 2}


async def test_only_what_the_ca_stands_for_counts_as_an_answer(world: World) -> None:
    """Answers that a stranger signed, that are about another certificate, ended, no OCSP or an HTTP error: all of them
    are a problem, and none passes for a difference.
    """
    time = now() - HOUR
    await world.revoke(1, time)
    world.publish({1: (time, None)})
    ours, stranger = new_responder(world.responder.ca), new_responder(new_ca("Public CA ອອກໃບຢັ້ງຢືນ"))
    plain = issue("no responder", world.responder.ca)
    cases: list[Callable[[bytes], web.Response]] = [
        says_good(stranger, 0),
        says_good(plain, 0),
        says_good(ours, 77),
        says_good(ours, 0, age=9 * HOUR),
        lambda _body: web.Response(body=b"0\x03\x0a\x01\x06"),
        lambda _body: web.Response(text="hello"),
        lambda _body: web.Response(status=503),
    ]
    for case in cases:
        async with canned(case) as url:
            report = await world.compare(responders=(url,))
        assert report.differences == []
        assert len(report.problems) == 1
        assert "1 of 1 answers failed" in report.problems[0]


async def test_a_sample_is_asked_of_large_crls(world: World) -> None:
    """Of many entries that agree only some are asked over HTTP; what differs is always asked."""
    time = now() - HOUR
    for serial_number in range(1, 41):
        await world.revoke(serial_number, time)
    world.publish({**dict.fromkeys(range(1, 41), (time, None)), 77: (time, None)})
    report = await world.compare(sample=10)
    assert report.compared == 41
    assert report.asked == {world.responder.url: 11}
    assert found(report) == {(where, "77", Kind.NOT_REVOKED, False) for where in (STORE, "responder")}


async def test_the_report_remembers(world: World, tmp_path: Path) -> None:
    """A report in JSON gives the next run the age of what it found; another file is refused, none is no memory."""
    world.publish({1: (now() - HOUR, None)})
    report = await world.compare()
    path = tmp_path / "report.json"
    assert remembered(path) == {}
    path.write_text(as_json([report]))
    assert remembered(path) == {"public-ca": report.since}
    assert len(report.since) == 2
    path.write_text("[]")
    with pytest.raises(ConfigError, match="not an earlier report"):
        remembered(path)


async def test_the_registry_compares_by_itself(world: World) -> None:
    """Every authority with a CRL's URL in its policy is compared again and again, and metrics say what was found."""
    time = now() - HOUR
    await world.revoke(1, time)
    data = world.publish({2: (time, None)})
    application = web.Application()
    served: list[bytes] = []

    async def give(_request: web.Request) -> web.Response:
        served.append(data)
        return web.Response(body=data)

    application.router.add_get("/ca.crl", give)
    registry = CollectorRegistry()
    metrics = MonitorMetrics(registry)
    operator = await open_pool(
        world.database_url, role="lakthan_registry", min_size=1, max_size=1, application_name="test"
    )
    async with TestServer(application) as server:
        policy = AuthorityPolicy((str(server.make_url("/ca.crl")),), declared_delay=HOUR)
        await AuthorityAdmin(operator).set_policy(world.responder.authority_id, policy, actor=ACTOR)
        following = asyncio.ensure_future(
            follow_crls(world.pool, metrics, responders=(world.responder.url,), every=timedelta(milliseconds=10))
        )

        def value(name: str, **labels: str) -> float | None:
            return registry.get_sample_value(f"lakthan_registry_crl_ocsp_{name}", {"authority": "public-ca", **labels})

        while len(served) < 3:  # noqa: ASYNC110 - the CRL is being fetched
            await asyncio.sleep(0.01)
        assert value("differences", age="pending") == 3
        assert value("differences", age="alarm") == 0
        assert value("problems") == 0
        assert (value("compared_timestamp_seconds") or 0) > 0
        policy = AuthorityPolicy(policy.crl_urls, declared_delay=timedelta(microseconds=1))
        await AuthorityAdmin(operator).set_policy(world.responder.authority_id, policy, actor=ACTOR)
        while value("differences", age="alarm") != 3:  # noqa: ASYNC110 - a gauge
            await asyncio.sleep(0.01)
        following.cancel()
    await operator.close()


async def test_on_the_command_line(world: World, tmp_path: Path) -> None:
    """`lakthan monitor --once` prints a table, writes both reports, and its exit code says whether all is in order."""
    time = now() - HOUR
    await world.revoke(1, time)
    world.publish({1: (time, None)})
    markdown, document = tmp_path / "report.md", tmp_path / "report.json"
    command = [
        *(sys.executable, "-m", "lakthan_cli", "monitor", "public-ca", "--once", "--database", world.database_url),
        *("--crl", str(world.crl_path), "--responder", world.responder.url),
        *("--report", str(markdown), "--report", str(document)),
    ]

    async def run(*more: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(subprocess.run, [*command, *more], text=True, capture_output=True, check=False)

    ran = await run()
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"public-ca.* in order", ran.stdout)
    assert "**In order**" in markdown.read_text()
    assert json.loads(document.read_text())["authorities"][0]["asked"] == {world.responder.url: 1}

    world.publish({1: (time, None), 2: (time, None)}, this_update=now() - 2 * HOUR)
    ran = await run("--json")
    assert ran.returncode == 1
    [told] = json.loads(ran.stdout)["authorities"]
    assert (told["in_order"], told["alarms"], told["pending"]) == (False, 2, 0)
    assert "| 02 | on the CRL, not revoked by OCSP | store |" in markdown.read_text()

    document.write_text("no report")
    ran = await run()
    assert ran.returncode == 1
    assert "name another file" in ran.stderr
