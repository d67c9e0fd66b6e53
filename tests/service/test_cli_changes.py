"""`lakthan revoke`, `hold`, `unhold`, `status` and `db`, on a database with the demo's PKI and without a demo."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from lakthan import der
from lakthan.certificates import read_certificates
from lakthan.store.pool import open_pool
from lakthan_cli.__main__ import main
from lakthan_cli.demo import pki
from lakthan_cli.demo.certificates import Urls
from lakthan_cli.demo.registration import register

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def demo_pki(tmp_path_factory: pytest.TempPathFactory) -> pki.DemoPKI:
    """A demo PKI that no test changes."""
    return pki.make(tmp_path_factory.mktemp("demo"), Urls("http://127.0.0.1:6960", "http://127.0.0.1:6962"), NOW)


class Command:
    """The `lakthan` command on one database."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url = url
        self.pki = directory / "pki"

    def __call__(self, *arguments: str | Path) -> Result:
        """Run it with `--database`."""
        return CliRunner().invoke(main, [*map(str, arguments), "--database", self.url], catch_exceptions=False)

    def status(self, *arguments: str | Path) -> dict[str, object]:
        """`lakthan status --json`."""
        result = self("status", "--json", *arguments)
        assert result.exit_code == 0, result.output
        document: dict[str, object] = json.loads(result.stdout)
        return document

    def serial(self, name: str) -> int:
        """The serial number of a certificate of the demo."""
        return read_certificates(self.pki / name)[0].certificate.serial_number


@pytest.fixture
def lakthan(demo_pki: pki.DemoPKI, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command on a database in which the demo's certificates are registered."""
    monkeypatch.delenv("DATABASE_URL", raising=False)

    async def fill() -> None:
        pool = await open_pool(
            database_url, role="lakthan_registry", min_size=1, max_size=1, application_name="lakthan-test"
        )
        await register(pool, demo_pki)
        await pool.close()

    asyncio.run(fill())
    return Command(database_url, demo_pki.directory)


def test_revoking_a_file_revokes_it_at_the_ca_that_signed_it(lakthan: Command) -> None:
    """The authority is found by the signature; reason, time and actor are on record."""
    result = lakthan("revoke", lakthan.pki / "gov/spare-1.pem", "--reason", "KEYcompromise")
    assert result.exit_code == 0, result.output
    assert "of gov-ca is now revoked since" in result.output
    assert "keyCompromise (version" in result.output
    status = lakthan.status(lakthan.pki / "gov/spare-1.pem")
    assert (status["authority"], status["cert_status"]) == ("gov-ca", "revoked")
    assert status["revocation_reason"] == "keyCompromise"
    history = status["history"]
    assert isinstance(history, list)
    assert [change["change"] for change in history] == ["issue", "revoke"]
    assert history[-1]["actor"] == f"cli:{pwd.getpwuid(os.getuid()).pw_name}"


def test_asking_again_for_what_is_so_already_is_no_error(lakthan: Command) -> None:
    """A repeated command says since when, changes nothing, and leaves with 0, so that scripts may be run again."""
    for command, state in (("revoke", "revoked since"), ("hold", "held since"), ("unhold", "good")):
        certificate = lakthan.pki / f"spare-{1 if command == 'revoke' else 2}.pem"
        first, second = lakthan(command, certificate), lakthan(command, certificate)
        assert (first.exit_code, second.exit_code) == (0, 0)
        assert f"is now {state}" in first.output
        assert f"is already {state}" in second.output
        assert "nothing was changed" in second.output
    history = lakthan.status(lakthan.pki / "spare-1.pem")["history"]
    assert isinstance(history, list)
    assert len(history) == 2


@pytest.mark.parametrize(
    ("command", "name", "sentence"),
    [
        (["unhold"], "revoked.pem", "revoked for good"),
        (["hold"], "revoked.pem", "already revoked"),
        (["revoke", "--reason", "superseded"], "revoked.pem", "a revocation is final"),
        (["hold"], "unissued.pem", "not on record"),
        (["unhold"], "unissued.pem", "not on record"),
    ],
)
def test_a_refused_change_leaves_with_1_and_says_why(
    lakthan: Command, command: list[str], name: str, sentence: str
) -> None:
    """What the rules forbid is told in a sentence that names the authority as people know it."""
    before = lakthan.status(lakthan.pki / name)
    result = lakthan(*command, lakthan.pki / name)
    assert result.exit_code == 1
    assert sentence in result.output
    assert "of public-ca" in result.output
    assert lakthan.status(lakthan.pki / name) == before


def test_a_held_certificate_can_be_revoked_for_good(lakthan: Command) -> None:
    """held.pem is on hold from the start; revoking it is allowed and final."""
    assert "held since" in lakthan("status", lakthan.pki / "held.pem").output
    assert lakthan("revoke", lakthan.pki / "held.pem", "--reason", "superseded").exit_code == 0
    assert lakthan("unhold", lakthan.pki / "held.pem").exit_code == 1


def test_a_certificate_that_was_never_announced_can_be_revoked(lakthan: Command) -> None:
    """A CA may find a certificate that it does not know of; its end goes on record with the revocation."""
    assert lakthan.status(lakthan.pki / "unissued.pem")["cert_status"] == "unknown"
    assert lakthan("revoke", lakthan.pki / "unissued.pem").exit_code == 0
    status = lakthan.status(lakthan.pki / "unissued.pem")
    assert (status["cert_status"], status["revocation_reason"]) == ("revoked", None)
    not_after = read_certificates(lakthan.pki / "unissued.pem")[0].not_after
    assert datetime.fromisoformat(str(status["not_after"])) == not_after


@pytest.mark.parametrize("form", ["{:x}", "0x{:X}", "colons", "decimal:{}"])
def test_a_serial_number_can_be_written_as_tools_print_it(lakthan: Command, form: str) -> None:
    """Hexadecimal with or without 0x and colons, or decimal when said so, all mean the same certificate."""
    number = lakthan.serial("spare-3.pem")
    text = der.integer_content(number).hex(":") if form == "colons" else form.format(number)
    status = lakthan.status("--authority", "public-ca", "--serial", text)
    # As openssl prints it: without the octet that is there for the sign alone.
    assert (status["cert_status"], status["serial_number"]) == (
        "good",
        number.to_bytes(-(-number.bit_length() // 8)).hex(),
    )


def test_the_status_of_a_serial_number_above_127_bits_and_below_zero_can_be_asked(lakthan: Command) -> None:
    """Whatever INTEGER a foreign CA has put into a certificate can be recorded and shown."""
    for text, shown in (("ff" * 20, "ff" * 20), ("-80", "-80"), ("0", "00")):
        arguments = ["--authority", "gov-ca", f"--serial={text}"]
        assert lakthan("revoke", *arguments).exit_code == 0
        status = lakthan.status(*arguments)
        assert (status["serial_number"], status["cert_status"]) == (shown, "revoked")


@pytest.mark.parametrize(
    ("arguments", "exit_code", "sentence"),
    [
        (["revoke"], 2, "give a certificate file, or both --authority and --serial"),
        (["revoke", "--authority", "public-ca"], 2, "both --authority and --serial"),
        (["revoke", "PKI/good.pem", "--serial", "12"], 2, "but not both"),
        (["revoke", "--authority", "nobody", "--serial", "12"], 1, "there are root, public-ca, gov-ca, tsa-ca"),
        (["revoke", "--authority", "root", "--serial", "12x"], 2, "decimal:16290"),
        (["revoke", "PKI/good.pem", "--reason", "because"], 2, "unspecified, keyCompromise, cACompromise"),
        (["revoke", "PKI/good.pem", "--reason", "certificateHold"], 2, "use `lakthan hold`"),
        (["revoke", "PKI/nothing.pem"], 1, "cannot be read"),
        (["revoke", "PKI/good.key"], 1, "is not a PEM file of certificates"),
    ],
)
def test_a_wrong_command_line_says_what_to_write_instead(
    lakthan: Command, arguments: list[str], exit_code: int, sentence: str
) -> None:
    """Every mistake is answered by what would be right."""
    result = lakthan(*(each.replace("PKI", str(lakthan.pki)) for each in arguments))
    assert result.exit_code == exit_code, result.output
    assert sentence in " ".join(result.output.split())


def test_a_foreign_certificate_changes_nothing(lakthan: Command, tmp_path: Path) -> None:
    """A certificate of another PKI is refused, even one whose issuer has the same name as ours."""
    stranger = pki.make(tmp_path, Urls("http://127.0.0.1:1", "http://127.0.0.1:2"), NOW)
    result = lakthan("revoke", stranger.directory / "pki/good.pem")
    assert result.exit_code == 1
    assert "no authority on record signed" in result.output
    assert "Nothing was changed" in result.output


def test_without_a_database_the_message_says_how_to_name_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is left with a driver's error when no demo runs, or the database is away."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    result = CliRunner().invoke(main, ["status", "--authority", "a", "--serial", "1", "--dir", str(tmp_path)])
    assert (result.exit_code, "no demo is running in" in result.output) == (1, True)
    url = f"postgresql://nobody@/lakthan?host={tmp_path}"
    result = CliRunner().invoke(main, ["status", "--authority", "a", "--serial", "1", "--database", url])
    assert (result.exit_code, "the database cannot be used now" in result.output) == (1, True)


def test_the_schema_of_an_empty_database_is_made_once(empty_database_url: str) -> None:
    """`db status` says what is missing with exit code 1, `db migrate` applies it, and again has nothing to do."""

    def db(command: str) -> Result:
        return CliRunner().invoke(main, ["db", command, "--database", empty_database_url], catch_exceptions=False)

    assert (db("status").exit_code, "run `lakthan db migrate`" in db("status").output) == (1, True)
    assert "applied 0001" in db("migrate").output
    assert "nothing to do" in db("migrate").output
    assert db("status").exit_code == 0


def test_help_and_version_answer_for_every_command() -> None:
    """Each command listed by `lakthan --help` explains itself."""
    runner = CliRunner()
    assert runner.invoke(main, ["--version"]).output.startswith("lakthan, version ")
    assert isinstance(main, click.Group)
    listed = main.list_commands(click.Context(main))
    assert {"demo", "ocsp", "revoke", "status"} <= set(listed)
    for name in listed:
        result = runner.invoke(main, [name, "--help"])
        assert result.exit_code == 0
        assert f" {name} " in result.output
