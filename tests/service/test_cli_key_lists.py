"""`lakthan keys install`, `retire`, `propose`, `approve`: what comes into a list, what is refused, and its paper."""

from __future__ import annotations

import asyncio
import json
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from lakthan.keys import key_list
from lakthan.store.authorities import AuthorityAdmin
from lakthan_cli.__main__ import main
from lakthan_cli.keys import lists
from support.database import OpenPool
from support.pki import Issued, issue, new_ca, new_responder
from support.programs import need
from support.tsa import UNIT_EXTENSIONS

DAY = timedelta(days=1)
CONFIG = """
[ocsp]
[[ocsp.responders]]
authority = "public-ca"
keys = "ocsp.toml"
profile = "tls-br"

[tsa.units.main]
keys = "tsa.toml"
[tsa.profiles.default]
units = ["main"]
"""


@dataclass
class House:
    """A folder with a configuration, a CA, and commands that are run in it."""

    folder: Path
    ca: Issued

    def keys(self, *arguments: object, code: int = 0) -> str:
        """Run `lakthan keys …`; gives what it says, on one line, and demands that exit code."""
        done: Result = CliRunner().invoke(main, ["keys", *(str(each) for each in arguments)])
        assert done.exit_code == code, done.output
        return " ".join(done.output.split())

    def install(self, name: str, which: str = "ocsp.toml", *more: object, code: int = 0) -> str:
        """Install NAME.pem with NAME.key."""
        return self.keys("install", which, *self.which(name), *more, code=code)

    def which(self, name: str) -> list[object]:
        """The options that name a key to install."""
        return ["--config", "c.toml", "--ca", "ca.pem", "--certificate", f"{name}.pem", "--key", f"file:{name}.key"]

    def responder(
        self, name: str, begins: timedelta = -DAY, ends: timedelta = 30 * DAY, *, nocheck: bool = True
    ) -> Issued:
        """A responder certificate and key in files."""
        made = new_responder(self.ca, valid=(begins, ends), nocheck=nocheck)
        made.write(self.folder, name)
        return made

    def listed(self, which: str = "ocsp.toml") -> list[tuple[str, bool]]:
        """The certificates of a list, and whether they are retired."""
        return [(each.certificate, each.retired is not None) for each in key_list.read(self.folder / which)]


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    """A folder, and we are in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.toml").write_text(CONFIG)
    ca = new_ca("Public CA")
    ca.write(tmp_path, "ca")
    return House(tmp_path, ca)


def test_in_and_out(house: House) -> None:
    """The first key makes the list, the second waits for its time; the first is retired, named by its digest."""
    house.responder("one")
    house.responder("two", begins=DAY)
    assert "it signs within a second or two" in house.install("one")
    assert "it waits until" in house.install("two")
    assert house.listed() == [("one.pem", False), ("two.pem", False)]
    digest = key_list.read(Path("ocsp.toml"))[0].sha256[:12]
    assert "nothing could be signed" in house.keys("retire", "ocsp.toml", digest, "--config", "c.toml", code=1)
    at = (datetime.now(UTC) + 2 * DAY).isoformat()
    assert "it signs nothing" in house.keys("retire", "ocsp.toml", digest, "--config", "c.toml", "--at", at)
    assert house.listed() == [("one.pem", True), ("two.pem", False)]
    shown = house.keys("list", "c.toml", code=1)  # the unit has no list yet
    assert "file:two.key" in shown
    assert "1 of 3 keys cannot be used" in shown


def test_what_is_refused(house: House) -> None:
    """What the service would not take does not come in, and the list stays as it was, octet for octet."""
    house.responder("good")
    house.install("good")
    before = Path("ocsp.toml").read_bytes()
    house.responder("no-nocheck", nocheck=False)
    house.responder("ended", begins=-2 * DAY, ends=-DAY)
    new_responder(new_ca("Another CA")).write(house.folder, "stranger")
    issue("unit", house.ca, extensions=UNIT_EXTENSIONS).write(house.folder, "unit")
    house.responder("mixed")
    house.responder("other")
    (house.folder / "mixed.key").write_bytes((house.folder / "other.key").read_bytes())
    for name, complaint in (
        ("no-nocheck", "profile tls-br demands ocsp-nocheck"),
        ("ended", "have a new one issued"),
        ("stranger", "that CA did not issue its certificate"),
        ("unit", "no id-kp-OCSPSigning"),
        ("mixed", "does not belong to the certificate"),
        ("good", "in ocsp.toml already"),
        ("missing", "cannot be read"),
    ):
        assert complaint in house.install(name, code=1)
    assert "has elsewhere.toml as its keys" in house.install("good", "elsewhere.toml", code=1)
    assert "is no key of ocsp.toml" in house.keys("retire", "ocsp.toml", "0" * 64, "--config", "c.toml", code=1)
    assert Path("ocsp.toml").read_bytes() == before


def test_a_unit(house: House) -> None:
    """A unit's list takes what is fit for a unit, by the service's own check, and nothing else."""
    issue("TSU", house.ca, extensions=UNIT_EXTENSIONS).write(house.folder, "tsu")
    usage = ((x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING]), False), UNIT_EXTENSIONS[1])
    issue("TSU", house.ca, extensions=usage).write(house.folder, "soft")
    assert "for the time-stamping unit main" in house.install("tsu", "tsa.toml")
    assert "extendedKeyUsage must be critical" in house.install("soft", "tsa.toml", code=1)
    assert house.listed("tsa.toml") == [("tsu.pem", False)]


async def test_a_list_of_the_publisher(house: House, database_url: str, open_as: OpenPool) -> None:
    """What only `[publisher]` names is changed in the same way, after the same checks, with its own database."""
    await AuthorityAdmin(await open_as("lakthan_registry")).add_authority("public-ca", [house.ca.der])
    (house.folder / "c.toml").write_text(
        f"""
[publisher.database]
url = "{database_url}"
[[publisher.responders]]
authority = "public-ca"
keys = "ahead.toml"
profile = "tls-br"
"""
    )
    house.responder("one")
    house.responder("no-nocheck", nocheck=False)
    new_responder(new_ca("Another CA")).write(house.folder, "stranger")

    def install(name: str, code: int) -> str:
        named = ["--config", "c.toml", "--certificate", f"{name}.pem", "--key", f"file:{name}.key"]
        return house.keys("install", "ahead.toml", *named, code=code)

    assert "for the OCSP responder of public-ca" in await asyncio.to_thread(install, "one", 0)
    assert "that CA did not issue" in await asyncio.to_thread(install, "stranger", 1)
    assert "demands ocsp-nocheck" in await asyncio.to_thread(install, "no-nocheck", 1)
    assert house.listed("ahead.toml") == [("one.pem", False)]
    assert "publisher of public-ca" in await asyncio.to_thread(house.keys, "list", "c.toml")
    retire = ["retire", "ahead.toml", "one.pem", "--config", "c.toml", "--force"]
    assert "it signs nothing" in await asyncio.to_thread(house.keys, *retire)
    assert house.listed("ahead.toml") == [("one.pem", True)]


def test_the_protocol(house: House) -> None:
    """Markdown and HTML for the printer: what was done, every digest, and lines to sign; never over another file."""
    made = house.responder("one")
    house.install("one", "ocsp.toml", "--protocol", "p.md", "--protocol", "p.html")
    for name in ("p.md", "p.html"):
        text = Path(name).read_text()
        digest = key_list.read(Path("ocsp.toml"))[0].sha256
        assert f"{digest[:4]} {digest[4:8]}" in text
        assert made.certificate.subject.rfc4514_string() in text
        for part in ("Present", "Approval", "Signatures", "for: OCSP responder of public-ca"):
            assert part in text
    house.responder("two")
    before = Path("ocsp.toml").read_bytes()
    assert "never overwritten" in house.install("two", "ocsp.toml", "--protocol", "p.md", code=1)
    assert ".md or a .html" in house.install("two", "ocsp.toml", "--protocol", "p.pdf", code=1)
    assert Path("ocsp.toml").read_bytes() == before


@pytest.fixture
def approvers(house: House) -> list[str]:
    """Three approvers, two of whom must agree; gives the names of their key files."""
    names = ["anong", "bounmy", "chanthone"]
    pem = b""
    for name in names:
        person = issue(name)
        person.write(house.folder, name)
        pem += person.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    Path("approvers.pem").write_bytes(pem)
    Path("memory").mkdir()
    Path("c.toml").write_text(CONFIG + '[approval]\napprovers = "approvers.pem"\nrequired = 2\nmemory = "memory"\n')
    return names


def test_two_of_three(house: House, approvers: list[str]) -> None:
    """Proposed, signed by one with Lakthan and by one with openssl alone, installed; and retired in the same way."""
    house.responder("one")
    house.responder("two")
    asked = house.which("one")
    assert "2 approvers must sign this" in house.install("one", code=1)
    said = house.keys("propose", "install", "ocsp.toml", *asked, "--out", "act")
    assert "act: install for: OCSP responder of public-ca" in said
    house.keys("approve", "act", "--key", "file:anong.key", "--out", "a.sig", "--yes")
    openssl = [str(need("openssl")), "dgst", "-sha256", "-sign", "bounmy.key", "-out", "b.sig", "act"]
    subprocess.run(openssl, check=True)
    with_act = ["--act", "act", "--approval", "a.sig"]
    assert "is approved by key" in house.install("one", "ocsp.toml", *with_act, code=1)
    assert "is approved by key" in house.install("one", "ocsp.toml", *with_act, "--approval", "a.sig", code=1)
    assert "is another act" in house.install("two", "ocsp.toml", *with_act, "--approval", "b.sig", code=1)
    assert not Path("ocsp.toml").exists()
    house.install("one", "ocsp.toml", *with_act, "--approval", "b.sig", "--protocol", "p.md")
    [entry] = key_list.read(Path("ocsp.toml"))
    assert len(entry.approvals) == 2
    assert "2 of 3 approvers had to sign" in Path("p.md").read_text()

    retire = ["ocsp.toml", "one.pem", "--config", "c.toml", "--force"]
    house.keys("propose", "retire", *retire, "--at", "2030-01-01", "--out", "act2")
    for name in approvers[1:]:
        house.keys("approve", "act2", "--key", f"file:{name}.key", "--out", f"{name}.sig", "--yes")
    signed = ["--act", "act2", "--approval", "bounmy.sig", "--approval", "chanthone.sig"]
    assert "from 2030-01-01 00:00:00 UTC on" in house.keys("retire", *retire, *signed)
    [entry] = key_list.read(Path("ocsp.toml"))
    assert entry.retired == datetime(2030, 1, 1, tzinfo=UTC)


def test_approve_asks_first(house: House, approvers: list[str]) -> None:
    """An approver sees the act before anything is signed, and nothing that is no act is ever signed."""
    house.responder("one")
    house.keys("propose", "install", "ocsp.toml", *house.which("one"), "--out", "act")
    done = CliRunner().invoke(
        main, ["keys", "approve", "act", "--key", "file:anong.key", "--out", "a.sig"], input="n\n"
    )
    assert done.exit_code == 1
    assert "certificate: " in done.output
    assert not Path("a.sig").exists()
    Path("other").write_text("pay me\n")
    assert "this is no act" in house.keys("approve", "other", "--key", "file:anong.key", "--out", "a.sig", code=1)


def test_what_a_robot_clears_away(house: House) -> None:
    """Keys that have ended or are retired; not those that wait, and not those whose certificate cannot be read now."""
    house.responder("ended", ends=timedelta(minutes=1))
    for name in ("retired", "good", "gone"):
        house.responder(name)
    house.responder("waits", begins=DAY)
    for name in ("ended", "retired", "good", "gone", "waits"):
        house.install(name)
    house.keys("retire", "ocsp.toml", "retired.pem", "--config", "c.toml", "--at", "2026-01-01", "--force")
    Path("gone.pem").unlink()
    path = Path("ocsp.toml")
    kept = lists.without_ended(key_list.read(path), path, datetime.now(UTC) + timedelta(minutes=1))
    assert [entry.certificate for entry in kept] == ["good.pem", "gone.pem", "waits.pem"]


def test_check_config(house: House) -> None:
    """A list with a key that cannot be used is found before the start, beside everything else."""
    house.responder("one")
    house.responder("two")
    house.install("one")
    house.install("two")
    Path("two.key").unlink()
    done = CliRunner().invoke(main, ["check-config", "c.toml"])
    assert done.exit_code == 1
    assert "two.key cannot be read" in done.output
    assert "the key list" in done.output
    assert json.dumps("tsa.toml").strip('"') in done.output
