"""Key lists in running services: who signs, who is passed over, what freezing does, and what the metrics say."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import msgspec
import pytest
from click.testing import CliRunner

from lakthan.certificates import CertificateView
from lakthan.config import (
    Config,
    DatabaseConfig,
    KeyURI,
    OCSPConfig,
    PresignConfig,
    PublisherConfig,
    ResponderConfig,
    TSAProfileConfig,
    UnitConfig,
)
from lakthan.errors import ConfigError
from lakthan.keys import key_list, key_ring
from lakthan.keys.key_list import ListedKey
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.changes import ChangeWriter
from lakthan.store.token_admin import TokenAdmin
from lakthan_cli.__main__ import main
from lakthan_ocsp.__main__ import serve
from lakthan_ocsp.publisher.__main__ import serve as publish
from lakthan_tsa.opening import open_keys as open_keys_of_unit
from support.database import OpenPool
from support.pki import Issued, issue, new_ca, new_responder
from support.programs import need
from support.responder import ACTOR, OCSPReply, request_for
from support.rollover import Exchange, verify_ocsp, verify_token
from support.running import running, samples
from support.softhsm import new_token, tokens_folder
from support.tsa import UNIT_EXTENSIONS, failure, new_unit, running_tsa
from support.tsa import request_for as token_request

DAY = timedelta(days=1)


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists are looked at all the time, so that the tests need not wait."""
    monkeypatch.setattr(key_ring, "_LOOK_SECONDS", 0.02)


def put(folder: Path, name: str, made: Issued, key: str = "", ago: timedelta = DAY) -> ListedKey:
    """Write certificate and key; gives an entry for a list that is not written yet."""
    certificate, path = made.write(folder, name)
    digest = key_list.digest_of(CertificateView.of(made.certificate))
    at = (datetime.now(UTC) - ago).replace(microsecond=0)
    return ListedKey(certificate=certificate.name, sha256=digest, key=key or f"file:{path.name}", installed=at)


@dataclass
class OCSP:
    """A running responder with a list, and the certificates that may answer by their names."""

    url: str
    admin_url: str
    session: aiohttp.ClientSession
    ca: Issued
    request: bytes
    issued: dict[str, Issued]

    async def signer(self) -> str:
        """Who answers; verified."""
        sent_at = time.time()
        async with self.session.post(self.url, data=self.request) as reply:
            exchange = Exchange(sent_at, time.time(), self.request, reply.status, await reply.read())
        return verify_ocsp(exchange, self.ca, self.issued).key

    async def until_signed_by(self, name: str) -> None:
        """Return when this one answers."""
        async with asyncio.timeout(30):
            while await self.signer() != name:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def ready(self) -> tuple[int, str]:
        """What /readyz says."""
        async with self.session.get(f"{self.admin_url}/readyz") as reply:
            return reply.status, await reply.text()

    async def until_metric(self, name: str, value: float) -> dict[str, float]:
        """Return when a series says so; gives all of them."""
        async with asyncio.timeout(30):
            while (all_of_them := await samples(self.session, self.admin_url)).get(name) != value:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return all_of_them


@asynccontextmanager
async def responder(
    database_url: str,
    folder: Path,
    open_as: OpenPool,
    ca: Issued,
    issued: dict[str, Issued],
    *others: ResponderConfig,
    **settings: object,
) -> AsyncIterator[OCSP]:
    """Serve the list that is in the folder, and what `others` say."""
    pool = await open_as("lakthan_registry")
    authority_id = await AuthorityAdmin(pool).add_authority("public-ca", [ca.der])
    citizen = issue("citizen", ca)
    await ChangeWriter(pool).issue(authority_id, citizen.serial_number, actor=ACTOR)
    config = ResponderConfig("public-ca", keys=folder / "keys.toml", **settings)  # type: ignore[arg-type]
    ports = OCSPConfig([config, *others], DatabaseConfig(database_url), port=0, admin_port=0)
    async with running(serve, Config(ocsp=ports)) as (port, admin_port), aiohttp.ClientSession() as session:
        url, admin_url = (f"http://127.0.0.1:{each}" for each in (port, admin_port))
        yield OCSP(url, admin_url, session, ca, request_for(citizen, ca), issued)


async def test_the_newest_must_be_fit(database_url: str, tmp_path: Path, open_as: OpenPool) -> None:
    """A key whose certificate another CA issued, or that breaks the profile, never answers, though it is the newest in
    the list; the one before it answers on, and the metrics say that something is wrong.
    """
    ca = new_ca("Public CA")
    issued = {"good": new_responder(ca), "newer": new_responder(ca)}
    stranger, no_nocheck = new_responder(new_ca("Another CA")), new_responder(ca, nocheck=False)
    good = put(tmp_path, "good", issued["good"], ago=4 * DAY)
    unfit = [put(tmp_path, "stranger", stranger, ago=DAY), put(tmp_path, "no-nocheck", no_nocheck, ago=2 * DAY)]
    key_list.write(tmp_path / "keys.toml", [good, *unfit])
    problem = 'lakthan_ocsp_key_list_problem{authority="public-ca"}'
    async with responder(database_url, tmp_path, open_as, ca, issued, profile="tls-br") as ocsp:
        assert await ocsp.signer() == "good"
        assert (await samples(ocsp.session, ocsp.admin_url))[problem] == 1
        key_list.write(tmp_path / "keys.toml", [good, put(tmp_path, "newer", issued["newer"])])
        await ocsp.until_signed_by("newer")
        retired = [msgspec.structs.replace(each, retired=each.installed) for each in unfit]
        newer = key_list.read(tmp_path / "keys.toml")[1]
        key_list.write(tmp_path / "keys.toml", [good, newer, *retired])
        await ocsp.until_metric(problem, 0)


async def test_the_metrics_of_a_list(database_url: str, tmp_path: Path, open_as: OpenPool) -> None:
    """Every key with its beginning and its end, and which one it is that signs; the authority's end is the last one."""
    ca = new_ca("Public CA")
    issued = {
        "old": new_responder(ca),
        "new": new_responder(ca),
        "coming": new_responder(ca, valid=(DAY, 60 * DAY)),
    }
    old, new, coming = (put(tmp_path, name, each) for name, each in issued.items())
    retired = (datetime.now(UTC) + DAY).replace(microsecond=0)
    old = msgspec.structs.replace(old, installed=old.installed - DAY, retired=retired)
    key_list.write(tmp_path / "keys.toml", [new, coming, old])
    async with responder(database_url, tmp_path, open_as, ca, issued) as ocsp:
        assert await ocsp.signer() == "new"
        said = await samples(ocsp.session, ocsp.admin_url)

    def about(series: str, entry: ListedKey, more: str = "") -> float:
        label = f'authority="public-ca",certificate="{entry.sha256[:16]}"{more}'
        return said[f"lakthan_ocsp_signing_key_{series}{{{label}}}"]

    for entry, state in ((old, "in reserve"), (new, "signing"), (coming, "waiting")):
        for each in ("in reserve", "signing", "waiting", "ended"):
            assert about("state", entry, f',state="{each}"') == (each == state)
    begins = issued["coming"].certificate.not_valid_before_utc
    ends = issued["coming"].certificate.not_valid_after_utc.timestamp()
    assert about("not_before_timestamp_seconds", coming) == begins.timestamp()
    assert about("not_after_timestamp_seconds", coming) == ends
    assert about("not_after_timestamp_seconds", old) == retired.timestamp()
    assert said['lakthan_ocsp_responder_not_after_timestamp_seconds{authority="public-ca"}'] == ends


async def test_from_a_file_into_an_hsm(
    database_url: str, tmp_path: Path, open_as: OpenPool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A key in a file is succeeded by one in an HSM while the service runs."""
    need("softhsm2-util")
    ca = new_ca("Public CA")
    issued = {"file": new_responder(ca), "hsm": new_responder(ca)}
    token = new_token(tokens_folder(tmp_path_factory.mktemp("softhsm")), tmp_path)
    token.put("ocsp", issued["hsm"].key)
    in_file = put(tmp_path, "file", issued["file"], ago=2 * DAY)
    in_token = put(tmp_path, "hsm", issued["hsm"], key=token.uri("ocsp").uri)
    key_list.write(tmp_path / "keys.toml", [in_file])
    async with responder(database_url, tmp_path, open_as, ca, issued) as ocsp:
        assert await ocsp.signer() == "file"
        key_list.write(tmp_path / "keys.toml", [in_file, in_token])
        await ocsp.until_signed_by("hsm")
        key_list.write(tmp_path / "keys.toml", [msgspec.structs.replace(in_file, retired=in_file.installed), in_token])
        await ocsp.until_metric(
            f'lakthan_ocsp_signing_key_state{{authority="public-ca",certificate="{in_token.sha256[:16]}",state="signing"}}',
            1,
        )
        assert await ocsp.signer() == "hsm"


async def test_the_last_key_is_retired(database_url: str, tmp_path: Path, open_as: OpenPool) -> None:
    """`lakthan keys retire --force` takes the only key away: at once nobody answers for the authority any more, with an
    answer from memory neither; the metrics and /readyz say so, and the next key that is installed answers without a
    restart.
    """
    ca = new_ca("Public CA")
    issued = {"only": new_responder(ca), "next": new_responder(ca)}
    only = put(tmp_path, "only", issued["only"])
    key_list.write(tmp_path / "keys.toml", [only])
    (tmp_path / "c.toml").write_text('[ocsp]\nresponders = [{ authority = "public-ca", keys = "keys.toml" }]\n')
    problem = 'lakthan_ocsp_key_list_problem{authority="public-ca"}'
    async with responder(database_url, tmp_path, open_as, ca, issued) as ocsp:
        assert await ocsp.signer() == "only"
        retire = ["keys", "retire", tmp_path / "keys.toml", only.sha256, "--config", tmp_path / "c.toml"]
        at_once = [*retire, "--at", "2026-01-01", "--force"]
        done = await asyncio.to_thread(CliRunner().invoke, main, [str(each) for each in at_once])
        assert done.exit_code == 0, done.output
        await ocsp.until_metric(problem, 1)
        async with ocsp.session.post(ocsp.url, data=ocsp.request) as reply:
            assert OCSPReply(reply.status, reply.headers, await reply.read()).status == "unauthorized"
        status, text = await ocsp.ready()
        assert status == 503
        assert "responder public-ca: its last key is retired: install one\n" in text
        following = put(tmp_path, "next", issued["next"])
        key_list.write(tmp_path / "keys.toml", [*key_list.read(tmp_path / "keys.toml"), following])
        signs = f'authority="public-ca",certificate="{following.sha256[:16]}",state="signing"'
        said = await ocsp.until_metric(f"lakthan_ocsp_signing_key_state{{{signs}}}", 1)
        assert said[problem] == 0
        await ocsp.until_signed_by("next")
        status, text = await ocsp.ready()
        assert status == 200, text
        assert "retired" not in text


async def test_who_answers_for_another_stays(database_url: str, tmp_path: Path, open_as: OpenPool) -> None:
    """The last key of one of two authorities is retired: /readyz names it, and the other one is answered for."""
    ca, other = new_ca("Public CA"), new_ca("Other CA")
    only = new_responder(ca)
    entry = put(tmp_path, "only", only)
    key_list.write(tmp_path / "keys.toml", [entry])
    certificate, key = new_responder(other).write(tmp_path, "other")
    await AuthorityAdmin(await open_as("lakthan_registry")).add_authority("other-ca", [other.der])
    beside = ResponderConfig("other-ca", certificate, KeyURI(f"file:{key.name}", tmp_path))
    async with responder(database_url, tmp_path, open_as, ca, {"only": only}, beside) as ocsp:
        key_list.write(tmp_path / "keys.toml", [msgspec.structs.replace(entry, retired=entry.installed)])
        async with asyncio.timeout(30):
            while (said := await ocsp.ready())[1].count("retired") == 0:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert said[0] == 200, said[1]
        assert "responder public-ca (its last key is retired: it signs nothing): ok\n" in said[1]


async def test_a_start_without_a_key(database_url: str, tmp_path: Path, open_as: OpenPool) -> None:
    """A process that starts when every key of one authority is retired answers for the others, and says what is wrong
    with this one, as it does when the last key is retired while it runs; a key that is installed answers at once.
    """
    ca, other = new_ca("Public CA"), new_ca("Other CA")
    issued = {"gone": new_responder(ca), "next": new_responder(ca)}
    gone = put(tmp_path, "gone", issued["gone"])
    gone = msgspec.structs.replace(gone, retired=gone.installed)
    key_list.write(tmp_path / "keys.toml", [gone])
    certificate, key = new_responder(other).write(tmp_path, "other")
    authority_id = await AuthorityAdmin(pool := await open_as("lakthan_registry")).add_authority(
        "other-ca", [other.der]
    )
    beside = ResponderConfig("other-ca", certificate, KeyURI(f"file:{key.name}", tmp_path))
    theirs = issue("theirs", other)
    await ChangeWriter(pool).issue(authority_id, theirs.serial_number, actor=ACTOR)
    problem = 'lakthan_ocsp_key_list_problem{authority="public-ca"}'
    async with responder(database_url, tmp_path, open_as, ca, issued, beside) as ocsp:

        async def asked(request: bytes) -> OCSPReply:
            async with ocsp.session.post(ocsp.url, data=request) as reply:
                return OCSPReply(reply.status, reply.headers, await reply.read())

        assert (await asked(request_for(theirs, other))).cert_statuses == ["good"]
        assert (await asked(ocsp.request)).status == "unauthorized"
        assert (await samples(ocsp.session, ocsp.admin_url))[problem] == 1
        async with asyncio.timeout(30):
            while (said := await ocsp.ready())[0] != 200:  # noqa: ASYNC110 - changes are heard
                await asyncio.sleep(0.02)
        assert "responder public-ca (its last key is retired: it signs nothing): ok\n" in said[1]
        following = put(tmp_path, "next", issued["next"])
        key_list.write(tmp_path / "keys.toml", [gone, following])
        signs = f'authority="public-ca",certificate="{following.sha256[:16]}",state="signing"'
        metrics = await ocsp.until_metric(f"lakthan_ocsp_signing_key_state{{{signs}}}", 1)
        assert metrics[problem] == 0
        assert await ocsp.signer() == "next"


async def test_a_unit_that_starts_without_a_key(database_url: str, tmp_path: Path) -> None:
    """A unit all of whose keys are retired takes no other one down with it: neither in its own profile, nor in another
    one; /readyz names the profile that nobody stamps for.
    """
    unit = new_unit()
    unit.write(tmp_path)
    issued = {name: issue(f"TSU {name}", unit.intermediate, extensions=UNIT_EXTENSIONS) for name in ("gone", "there")}
    gone, there = (put(tmp_path, name, made) for name, made in issued.items())
    for name, entry in (("gone", msgspec.structs.replace(gone, retired=gone.installed)), ("there", there)):
        key_list.write(tmp_path / f"{name}.toml", [entry])
    units = {name: UnitConfig(chain=tmp_path / "chain.pem", keys=tmp_path / f"{name}.toml") for name in issued}
    profiles = {"default": TSAProfileConfig(["gone", "there"]), "alone": TSAProfileConfig(["gone"])}
    async with running_tsa(database_url, tmp_path, unit, units=units, profiles=profiles) as authority:
        request, sent_at = token_request(nonce=7, cert_req=True), time.time()
        reply = await authority.post(request)
        assert (
            verify_token(Exchange(sent_at, time.time(), request, reply.http_status, reply.body), issued).key == "there"
        )
        bits, text = failure((await authority.post(request, path="tsa/alone")).body)
        assert bits == {"system_failure"}
        assert "no key may stamp" in text
        metrics = await authority.metrics()
        assert metrics['lakthan_tsa_key_list_problem{unit="gone"}'] == 1
        assert metrics['lakthan_tsa_key_list_problem{unit="there"}'] == 0
        ready = await authority.session.get(f"{authority.admin_url}/readyz")
        assert ready.status == 200
        assert "profile alone (no key of its units may stamp now): ok\n" in await ready.text()


async def test_a_publisher_that_starts_without_a_key(database_url: str, tmp_path: Path, open_as: OpenPool) -> None:
    """It signs ahead for its other authorities, and for this one as soon as a key is installed."""
    pool = await open_as("lakthan_registry")
    cas = {name: new_ca(f"CA {name}") for name in ("gone", "there")}
    leaves = {name: issue("leaf", ca) for name, ca in cas.items()}
    for name, ca in cas.items():
        authority_id = await AuthorityAdmin(pool).add_authority(name, [ca.der])
        await ChangeWriter(pool).issue(authority_id, leaves[name].serial_number, actor=ACTOR)
    there, gone, following = (
        put(tmp_path, name, new_responder(cas[of]))
        for name, of in (("there", "there"), ("gone", "gone"), ("following", "gone"))
    )
    gone = msgspec.structs.replace(gone, retired=gone.installed)
    key_list.write(tmp_path / "there.toml", [there])
    key_list.write(tmp_path / "gone.toml", [gone])
    configs = [PresignConfig(name, keys=tmp_path / f"{name}.toml", hashes=("SHA-256",)) for name in cas]

    async def until_published(name: str) -> None:
        async with asyncio.timeout(30):
            while not await pool.fetchval(  # noqa: ASYNC110 - the store says when
                "SELECT EXISTS (SELECT FROM published_answer WHERE serial_number = $1)", leaves[name].serial_number
            ):
                await asyncio.sleep(0.02)

    config = Config(publisher=PublisherConfig(configs, DatabaseConfig(database_url), admin_port=0))
    async with running(publish, config) as (_, port), aiohttp.ClientSession() as session:
        await until_published("there")
        metrics = await samples(session, f"http://127.0.0.1:{port}")
        assert metrics['lakthan_publisher_key_list_problem{authority="gone"}'] == 1
        assert metrics['lakthan_publisher_working{authority="gone"}'] == 0
        key_list.write(tmp_path / "gone.toml", [gone, following])
        await until_published("gone")


def test_what_check_config_says_of_it(database_url: str, tmp_path: Path) -> None:
    """A list of retired keys is a finding, for each of those that would start without a key."""
    unit = new_unit()
    unit.write(tmp_path)
    for name, made in (
        ("ocsp", new_responder(new_ca("CA"))),
        ("tsa", issue("TSU", unit.intermediate, extensions=UNIT_EXTENSIONS)),
    ):
        entry = put(tmp_path, name, made)
        key_list.write(tmp_path / f"{name}.toml", [msgspec.structs.replace(entry, retired=entry.installed)])
    both = f'database.url = "{database_url}"\nresponders = [{{ authority = "public-ca", keys = "ocsp.toml" }}]\n'
    (tmp_path / "c.toml").write_text(
        f"""[ocsp]\n{both}[publisher]\n{both}[tsa]
database.url = "{database_url}"
units.main = {{ keys = "tsa.toml", chain = "chain.pem" }}
profiles.default.units = ["main"]
"""
    )
    done = CliRunner().invoke(main, ["check-config", str(tmp_path / "c.toml")])
    assert done.exit_code == 1, done.output
    for what in ("ocsp: responder of public-ca", "publisher: responder of public-ca", "tsa: unit main"):
        [line] = [line for line in done.output.splitlines() if line.startswith(what)]
        assert "is retired: nothing can be signed; install one" in line
    assert re.search(r"^tsa: profiles +ok$", done.output, re.MULTILINE), done.output


async def test_a_frozen_key_of_a_list(database_url: str, tmp_path: Path, open_as: OpenPool) -> None:
    """Freezing names one certificate: the unit stamps on with the key in reserve, and a new one takes over from it."""
    unit = new_unit()
    unit.write(tmp_path)
    issued = {
        name: issue(f"TSU {name}", unit.intermediate, extensions=UNIT_EXTENSIONS) for name in ("old", "seen", "new")
    }
    entries = {name: put(tmp_path, name, made, ago=DAY) for name, made in issued.items()}
    entries["old"] = msgspec.structs.replace(entries["old"], installed=entries["old"].installed - DAY)
    key_list.write(tmp_path / "keys.toml", [entries["old"], entries["seen"]])
    admin = TokenAdmin(await open_as("lakthan_registry"))
    units = {"main": UnitConfig(chain=tmp_path / "chain.pem", keys=tmp_path / "keys.toml")}
    async with running_tsa(database_url, tmp_path, unit, units=units) as authority:

        async def signer() -> str:
            request, sent_at = token_request(nonce=7, cert_req=True), time.time()
            reply = await authority.post(request)
            return verify_token(Exchange(sent_at, time.time(), request, reply.http_status, reply.body), issued).key

        assert await signer() == "seen"
        await admin.freeze(entries["seen"].sha256, "seen elsewhere", "test")
        assert await signer() == "old"
        assert (await authority.metrics())['lakthan_tsa_unit_frozen{unit="main"}'] == 1
        retired = msgspec.structs.replace(entries["seen"], retired=entries["seen"].installed)
        key_list.write(tmp_path / "keys.toml", [entries["old"], retired, entries["new"]])
        async with asyncio.timeout(30):
            while await signer() != "new":  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        said = await authority.metrics()
        assert said['lakthan_tsa_unit_frozen{unit="main"}'] == 0
        label = f'certificate="{entries["new"].sha256[:16]}",state="signing",unit="main"'
        assert said[f"lakthan_tsa_signing_key_state{{{label}}}"] == 1


async def test_not_both(tmp_path: Path) -> None:
    """A list, or a certificate and its key: who says both is asked which."""
    config = UnitConfig(tmp_path / "a.pem", KeyURI("file:a.key", tmp_path), keys=tmp_path / "keys.toml")
    with pytest.raises(ConfigError, match="not both"):
        await open_keys_of_unit("main", config)
    with pytest.raises(ConfigError, match="give its certificate and key, or its key list"):
        await open_keys_of_unit("main", UnitConfig())
