"""`lakthan probe` against the real services, and against installations that are broken on purpose: every finding is
seen to fire, and not to fire where all is well.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import aiohttp
import msgspec
import pytest
from aiohttp import web
from click.testing import CliRunner, Result
from yarl import URL

from lakthan.store.records import CRLReason
from lakthan_cli.__main__ import main
from lakthan_cli.findings import Grade
from lakthan_cli.ocsp.certificate import read_certificates
from lakthan_cli.probe import plan as plans
from lakthan_cli.probe import round as probe_round
from lakthan_cli.probe.listen import listen
from support.pki import issue, new_ca
from support.programs import need
from support.responder import ACTOR, Responder, running_responder
from support.running import samples
from support.tsa import Authority, new_unit, running_tsa

Change = Callable[[web.BaseRequest, str, aiohttp.ClientResponse | None, bytes], Awaitable[web.StreamResponse]]
PAGE = Path(__file__).parents[2] / "docs" / "probe.md"


@dataclass
class Installation:
    """A responder, a folder with what the plan names, and the command. `urls`: of the responder, as published."""

    responder: Responder
    folder: Path
    url: str
    settings: dict[str, str] = field(default_factory=dict)
    tsa_url: str = ""
    limits: str = 'slow = "PT1H"'
    trust: str = 'trust = ["ca.pem"]'
    said: str = ""

    def plan(self) -> Path:
        """The plan as a file."""
        settings = {"good": '"good.pem"', "revoked": '"revoked.pem"', "urls": f'["{self.url}"]'} | self.settings
        lines = [self.trust, "[limits]", self.limits]
        if self.url:
            lines += ["[[authorities]]", 'name = "ca"', 'issuer = "ca.pem"']
            lines += [f"{name} = {value}" for name, value in settings.items()]
        if self.tsa_url:
            lines += ["[[tsas]]", f'url = "{self.tsa_url}"']
        path = self.folder / "probe.toml"
        path.write_text("\n".join(lines))
        return path

    async def run(self, *arguments: str) -> Result:
        """Run the command on the plan."""
        return await asyncio.to_thread(CliRunner().invoke, main, ["probe", str(self.plan()), *arguments])

    async def findings(self) -> dict[str, str]:
        """Check → how grave it is; `said` then has the words. What is not in order says what to do."""
        outcome = await probe_round.go(plans.combined(plans.read(self.plan()), [], [], []))
        assert all(bool(each.todo) is (each.grade is not Grade.OK) for each in outcome.findings)
        self.said = "\n".join(line for each in outcome.findings for line in (each.said, *each.details))
        return {each.check: each.grade.label for each in outcome.findings}

    async def wrong(self) -> dict[str, str]:
        """Those findings that are not in order."""
        return {check: grade for check, grade in (await self.findings()).items() if grade != "ok"}


@pytest.fixture
async def installation(database_url: str, tmp_path: Path) -> AsyncIterator[Installation]:
    """A responder that knows a good and a revoked certificate, and the plan that says so."""
    folder = tmp_path / "plan"
    folder.mkdir()
    async with running_responder(database_url, tmp_path) as responder:
        responder.ca.write(folder, "ca")
        for name in ("good", "revoked"):
            (await responder.issue(issue(name, responder.ca))).write(folder, name)
        await revoke(responder, folder / "revoked.pem")
        yield Installation(responder, folder, responder.url)


async def revoke(responder: Responder, certificate: Path) -> None:
    """Revoke a certificate of the responder's authority."""
    [read] = read_certificates(certificate)
    octets = read.serial_number.to_bytes(read.serial_number.bit_length() // 8 + 1)
    await responder.writer.revoke(responder.authority_id, octets, reason=CRLReason.SUPERSEDED, actor=ACTOR)


@asynccontextmanager
async def proxy(behind: str, change: Change, *, path: Callable[[str], str] = lambda each: each) -> AsyncIterator[str]:
    """A proxy before a service. `path`: what it makes of a path; `change`: what it makes of an answer."""
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            body = await request.read()
            url = URL(behind.rstrip("/") + path(request.raw_path), encoded=True)
            headers = {name: value for name, value in request.headers.items() if name != "Host"}
            skip = [] if "Content-Type" in headers else ["Content-Type"]
            async with session.request(
                request.method, url, data=body or None, headers=headers, skip_auto_headers=skip
            ) as answer:
                return await change(request, request.raw_path, answer, await answer.read())

        runner = web.ServerRunner(web.Server(handle, access_log=None), shutdown_timeout=0.1)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"


def with_headers(**headers: str | None) -> Change:
    """An answer with other headers; None removes one. Names have _ for -."""

    async def change(
        _request: web.BaseRequest, _path: str, answer: aiohttp.ClientResponse | None, body: bytes
    ) -> web.StreamResponse:
        assert answer is not None
        kept = {name: answer.headers[name] for name in ("Cache-Control", "ETag", "Last-Modified", "Expires", "Date")
                if name in answer.headers}  # fmt: skip
        kept |= {name.replace("_", "-"): value or "" for name, value in headers.items()}
        kept = {name: value for name, value in kept.items() if value}
        return web.Response(body=body, status=answer.status, headers={**kept, "Content-Type": answer.content_type})

    return change


async def test_all_is_well(installation: Installation) -> None:
    """Nothing is found wrong with an installation that is right, by any spelling, and the exit code says so."""
    findings = await installation.findings()
    assert findings == dict.fromkeys(
        (
            *("answers", "spellings", "good", "revoked", "unissued", "verification", "nonce", "caching", "freshness"),
            *("speed", "clock", "responder"),
        ),
        "ok",
    )
    table = await installation.run()
    assert table.exit_code == 0
    assert "ok: 0 failure, 0 warning, 12 ok" in table.output
    assert "7 unusual ways to ask come through" in table.output


async def test_json(installation: Installation) -> None:
    """The same for machines: all keys are always there, the gravest comes first, and says the exit code."""
    installation.settings["revoked"] = '"good.pem"'
    arguments = [sys.executable, "-m", "lakthan_cli", "probe", str(installation.plan()), "--json"]
    process = await asyncio.create_subprocess_exec(*arguments, stdout=subprocess.PIPE)
    document = json.loads((await process.communicate())[0])
    assert document["exit_code"] == process.returncode == 2
    assert document["grade"] == "failure"
    assert {tuple(each) for each in document["findings"]} == {
        ("area", "subject", "check", "grade", "said", "todo", "details")
    }
    first = document["findings"][0]
    assert (first["check"], first["grade"], first["said"]) == (
        *("revoked", "failure"),
        "the answer is good; right is revoked",
    )
    assert first["todo"]


@pytest.mark.parametrize(
    ("check", "settings"),
    [
        ("good", {"good": '"revoked.pem"'}),
        ("revoked", {"revoked": '"good.pem"'}),
        ("unissued", {"unissued": '"good.pem"'}),
        ("unissued", {"non_issued": '"revoked"'}),
    ],
)
async def test_a_status_that_is_not_the_right_one(
    installation: Installation, check: str, settings: Mapping[str, str]
) -> None:
    """A revoked certificate that is answered good, and every other wrong status, is a failure of that check alone."""
    installation.settings |= settings
    assert await installation.wrong() == {check: "failure"} | ({"spellings": "warning"} if check == "good" else {})


async def test_serial_numbers_will_do(installation: Installation) -> None:
    """Where no certificate is at hand its serial number says enough; and an unissued one may be named."""
    for name in ("good", "revoked"):
        [read] = read_certificates(installation.folder / f"{name}.pem")
        installation.settings[name] = f'"serial:{read.serial_number:x}"'
    installation.settings["unissued"] = '"serial:00:01:02"'
    assert await installation.wrong() == {}


async def test_a_revocation_is_noticed(installation: Installation) -> None:
    """The certificate that is good in the plan is revoked: the next run says so."""
    assert await installation.wrong() == {}
    await revoke(installation.responder, installation.folder / "good.pem")
    assert (await installation.wrong())["good"] == "failure"


@pytest.mark.parametrize(
    ("tidy", "wrong", "words"),
    [
        (lambda path: path.replace("//", "/"), "spellings", "slashes as they are"),
        (lambda path: path.replace("%2F", "/").replace("//", "/"), "answers", "malformedRequest"),
        (lambda path: path.replace("+", "%20"), None, ""),
        (lambda path: path.replace("%252", "%2"), None, ""),
    ],
)
async def test_a_proxy_that_tidies_paths_up(
    installation: Installation, tidy: Callable[[str], str], wrong: str | None, words: str
) -> None:
    """A proxy that merges slashes breaks some clients and not others, one that decodes as well breaks most, and both
    are found; what the responder itself puts right again is no finding.
    """
    async with proxy(installation.url, with_headers(), path=tidy) as installation.url:
        found = await installation.wrong()
    assert found.get(wrong or "spellings") == ("failure" if wrong else None), installation.said
    assert words in installation.said


@pytest.mark.parametrize(
    ("headers", "grade"),
    [
        ({"Cache_Control": "max-age=31536000, public"}, "failure"),
        ({"ETag": None}, "warning"),
        ({"Cache_Control": "no-store"}, "warning"),
        ({"Cache_Control": "private, max-age=31536000"}, "warning"),
        ({}, None),
    ],
)
async def test_a_proxy_with_a_caching_policy_of_its_own(
    installation: Installation, headers: Mapping[str, str | None], grade: str | None
) -> None:
    """Answers that may be kept beyond their end are a failure, missing headers a warning."""
    async with proxy(installation.url, with_headers(**headers)) as installation.url:
        assert await installation.wrong() == ({} if grade is None else {"caching": grade})


async def test_a_date_that_differs(installation: Installation) -> None:
    """A Date header that is an hour off is a failure, and one that a cache explains by its Age is none."""
    past = format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True)
    behind = installation.url
    async with proxy(behind, with_headers(Date=past)) as installation.url:
        assert await installation.wrong() == {"clock": "failure"}
    installation.limits += '\nskew_warning = "PT50S"'
    async with proxy(behind, with_headers(Date=past, Age="3600")) as installation.url:
        assert await installation.wrong() == {}


@pytest.mark.parametrize("tolerance", ["PT1H", "PT1M"])
async def test_a_responder_with_a_wrong_clock(
    installation: Installation, database_url: str, tmp_path: Path, tolerance: str
) -> None:
    """A responder ten minutes ahead, where it is believed: clients refuse its answers as those of the future, and the
    finding says why; and where it is held against the database's clock: it answers nothing, and its clock is a finding.
    """
    # Its environment, and not the program itself, which would stand between us and the process that we end.
    asked = await asyncio.create_subprocess_exec(need("faketime"), "-f", "+10m", "env", stdout=subprocess.PIPE)
    lines = (await asked.communicate())[0].decode().splitlines()
    ahead = dict(line.split("=", 1) for line in lines if line.startswith(("LD_PRELOAD=", "FAKETIME=")))
    configuration = tmp_path / "ahead.toml"
    configuration.write_text(
        f"""[ocsp]
port = 0
admin_port = 0
clock_tolerance = "{tolerance}"
database.url = "{database_url}"
[[ocsp.responders]]
authority = "public-ca"
certificate = "responder-0.pem"
key = "file:responder-0.key"
"""
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "lakthan_ocsp", "--config", str(configuration)),
        stderr=subprocess.PIPE,
        env={**os.environ, **ahead, "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"},
    )
    try:
        assert process.stderr is not None
        believed, port = tolerance == "PT1H", 0
        async for line in process.stderr:
            if b"serving OCSP" in line:
                port = json.loads(line)["port"]
            if (b"authorities read" if believed else b"the clocks of this machine and of the database differ") in line:
                break
        else:
            pytest.fail("it did not start")
        installation.url = f"http://127.0.0.1:{port}"
        wrong = await installation.wrong()
    finally:
        process.kill()
        await process.wait()
    assert wrong["clock"] == "failure"
    if believed:
        assert wrong["verification"] == "failure"
        assert re.search(r"producedAt \+(59\d|60\d)", installation.said), installation.said
        assert "is in the future of" in installation.said
    else:
        assert wrong["answers"] == "failure"
        assert re.search(r"Date \+(59\d|60\d)", installation.said), installation.said
        assert "POST sha1, good: the responder says tryLater" in installation.said


@pytest.mark.parametrize(
    ("limits", "wrong"),
    [
        ('slow = "PT0.000001S"', {"speed": "warning"}),
        ('slow = "PT1H"\nends_warning = "P60D"', {"responder": "warning", "certificates": "warning"}),
        ('slow = "PT1H"\nends_failure = "P60D"', {"responder": "failure"}),
    ],
)
async def test_limits(installation: Installation, limits: str, wrong: Mapping[str, str]) -> None:
    """What is slow, and what ends soon, is as the plan says."""
    installation.limits = limits
    assert await installation.wrong() == wrong


async def test_trust(installation: Installation) -> None:
    """Without anchors it is a warning that nobody says whom to trust; under the wrong ones nothing verifies."""
    installation.trust = ""
    assert await installation.wrong() == {"verification": "warning"}
    new_ca("Another CA").write(installation.folder, "other")
    installation.trust = 'trust = ["other.pem"]'
    wrong = await installation.wrong()
    assert wrong["verification"] == "failure"
    assert wrong["good"] == "warning", "nothing is said about a status that nobody vouches for"


async def test_a_nonce_that_must_come_back(database_url: str, tmp_path: Path) -> None:
    """Where clients insist on their nonce, a responder that leaves it out is a failure, and a remark elsewhere."""
    folder = tmp_path / "plan"
    folder.mkdir()
    async with running_responder(database_url, tmp_path, final=True) as responder:
        responder.ca.write(folder, "ca")
        (await responder.issue(issue("good", responder.ca))).write(folder, "good")
        installation = Installation(responder, folder, responder.url, {"revoked": '""', "nonce": '"required"'})
        found = await installation.findings()
        without = found.get("nonce")
        installation.settings["nonce"] = '"none"'
        assert "nonce" not in await installation.findings()
    assert without == "failure"


async def test_nobody_there(installation: Installation) -> None:
    """A responder that is down is one failure, and not a page of them."""
    installation.url = "http://127.0.0.1:1"
    assert await installation.wrong() == {"answers": "failure"}
    assert "Connection refused" in installation.said


@pytest.fixture
async def tsa(database_url: str, tmp_path: Path) -> AsyncIterator[Authority]:
    """A running time-stamp authority."""
    async with running_tsa(database_url, tmp_path / "tsa", new_unit()) as running:
        yield running


@pytest.fixture
def stamping(tsa: Authority, tmp_path: Path) -> Installation:
    """A plan for it alone."""
    folder = tmp_path / "plan"
    folder.mkdir()
    tsa.unit.root.write(folder, "root")
    return Installation(None, folder, "", tsa_url=tsa.url, trust='trust = ["root.pem"]')  # type: ignore[arg-type]


async def test_a_time_stamp_authority(stamping: Installation) -> None:
    """Tokens verify, and what must be refused is refused with the right word."""
    assert await stamping.findings() == dict.fromkeys(
        ("answers", "token", "refusals", "accuracy", "speed", "clock", "unit"), "ok"
    )
    stamping.limits += '\nends_failure = "P60D"'
    assert await stamping.wrong() == {"unit": "failure"}


async def test_a_time_stamp_authority_that_is_down(stamping: Installation) -> None:
    """One failure, and no more."""
    stamping.tsa_url = "http://127.0.0.1:1/"
    assert await stamping.findings() == {"answers": "failure"}
    assert (await stamping.run()).exit_code == 2


async def test_a_token_of_somebody_else(stamping: Installation, tsa: Authority) -> None:
    """An authority, or a cache before it, that gives everybody the same token: it is of another request, and comes even
    where a refusal is right.
    """
    first: list[bytes] = []

    async def replay(
        _request: web.BaseRequest, _path: str, answer: aiohttp.ClientResponse | None, body: bytes
    ) -> web.StreamResponse:
        assert answer is not None
        first.append(body)
        return web.Response(body=first[0], content_type="application/timestamp-reply")

    async with proxy(tsa.url, replay) as stamping.tsa_url:
        assert (await stamping.wrong())["refusals"] == "failure", "the first token was right, and given again"
        wrong = await stamping.wrong()
    assert wrong["token"] == wrong["refusals"] == "failure"
    assert "imprint" in stamping.said
    assert "nonce" in stamping.said


async def test_listen(installation: Installation) -> None:
    """With --listen the rounds go on: a revocation shows in the next one's figures, and /livez says that they end."""
    plan = plans.combined(plans.read(installation.plan()), [], [], [])
    stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def until_asked(port: int) -> None:
        ready.set_result(f"http://127.0.0.1:{port}")
        await stop.wait()

    service = asyncio.create_task(listen(plan, "127.0.0.1", 0, timedelta(milliseconds=50), until_asked))
    url = await ready
    good = f'lakthan_probe_success{{check="good",subject="ca",url="{installation.url}"}}'
    async with aiohttp.ClientSession() as session:

        async def until(value: float) -> dict[str, float]:
            while (found := await samples(session, url)).get(good) != value:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            return found

        async with asyncio.timeout(30):
            found = await until(1)
            assert (await session.get(f"{url}/livez")).status == (await session.get(f"{url}/readyz")).status == 200
            last = good.replace("success", "last_success_timestamp_seconds")
            assert found[last] > 0
            assert any(name.startswith("lakthan_probe_certificate_not_after_timestamp_seconds{") for name in found)
            assert found['lakthan_probe_rounds_total{grade="ok"}'] >= 1
            await revoke(installation.responder, installation.folder / "good.pem")
            found = await until(0)
            later = await until(0)
        assert later[last] == found[last], "the age of the last success is known"
    stop.set()
    await service


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "there is nobody to ask"),
        ("tsa = 1", "unknown field `tsa`"),
        ('[[tsas]]\nurl = "http://x/"\nhashes = ["sha1"]', "no hash 'sha1' to stamp with"),
        ('[[authorities]]\nname = "a"\nissuer = "none.pem"', "none.pem cannot be read"),
        ('trust = ["none.pem"]', "none.pem cannot be read"),
    ],
)
def test_a_plan_that_is_wrong(tmp_path: Path, text: str, why: str) -> None:
    """What is wrong with a plan is said, with the exit code that is no verdict."""
    (tmp_path / "probe.toml").write_text(text)
    result = CliRunner().invoke(main, ["probe", str(tmp_path / "probe.toml")])
    assert result.exit_code == 3
    assert why in result.output


async def test_options_instead_of_a_plan(installation: Installation) -> None:
    """For a look without a file the options say the same; what lacks among them is asked for."""
    folder = installation.folder

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["probe", *arguments])

    whole = ["--ocsp", installation.url, "--issuer", str(folder / "ca.pem"), "--good", str(folder / "good.pem")]
    result = await asyncio.to_thread(run, *whole, "--revoked", str(folder / "revoked.pem"))
    assert result.exit_code == 1
    assert "--trust" in result.output
    trusted = await asyncio.to_thread(run, *whole, "--trust", str(folder / "ca.pem"))
    assert trusted.exit_code == 0, trusted.output
    for arguments in (["--ocsp", installation.url], ["--listen", "nowhere"], ["--good", "x.pem"], ["--every", "0"]):
        assert (await asyncio.to_thread(run, *arguments)).exit_code == 3


def test_the_page_names_every_key_and_check() -> None:
    """docs/probe.md has every key of a plan and every check, and no key that is not there."""
    page = PAGE.read_text(encoding="utf-8")
    tables = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", page, re.MULTILINE)
    documented = {name for cell in tables for name in re.findall(r"\w+", cell)}
    structs = (plans.AuthorityPlan, plans.TSAPlan, plans.Limits)
    keys = {each.name for struct in structs for each in msgspec.structs.fields(struct)} | {"trust", "chain"}
    source = "".join(path.read_text() for path in Path(inspect.getfile(plans)).parent.glob("*.py"))
    checks = set(re.findall(r'(?:report|self)\.(?:ok|warning|failure|ends)\(\s*"(\w+)"', source))
    checks |= {each.value for each in plans.Expected}
    areas = {"clock", "database", "keys", "ports", "files", "network", "machine"}
    assert documented == keys | checks | areas
