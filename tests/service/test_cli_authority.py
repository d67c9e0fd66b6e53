"""`lakthan authority`: what is checked before an authority is on record, and what is shown of it afterwards."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from lakthan_cli.__main__ import main
from support.pki import Issued, issue, new_ca, new_responder

Lakthan = Callable[..., Result]


@pytest.fixture
def lakthan(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Lakthan:
    """The command on the test's database, on a wide screen."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setenv("COLUMNS", "300")

    def run(*arguments: str | Path, answer: str | None = None) -> Result:
        command = [*map(str, arguments), "--database", database_url]
        return CliRunner().invoke(main, command, catch_exceptions=False, input=answer)

    return run


@pytest.fixture(scope="module")
def ca() -> Issued:
    """A CA with a life that nobody warns of."""
    good = new_ca("Public CA ອອກໃບຢັ້ງຢືນ")
    extensions = tuple(
        (each.value, each.critical) for each in good.certificate.extensions if isinstance(each.value, x509.KeyUsage)
    )
    return issue(
        "Public CA ອອກໃບຢັ້ງຢືນ", ca=True, extensions=extensions, valid=(timedelta(days=-1), timedelta(days=3650))
    )


@pytest.fixture
def on_record(lakthan: Lakthan, ca: Issued, tmp_path: Path) -> None:
    """The authority `public-ca`."""
    pem, _ = ca.write(tmp_path, "ca")
    assert lakthan("authority", "add", "public-ca", pem).exit_code == 0


def ask(url: str, question: Callable[[asyncpg.Connection], Awaitable[object]]) -> object:
    """Ask the database as its owner."""

    async def run() -> object:
        connection = await asyncpg.connect(url)
        try:
            return await question(connection)
        finally:
            await connection.close()

    return asyncio.run(run())


def test_an_authority_is_added_and_shown(lakthan: Lakthan, ca: Issued, tmp_path: Path) -> None:
    """PEM or DER; `list` and `show` say what is on record, for people and for programs."""
    pem, _ = ca.write(tmp_path, "ca")
    result = lakthan("authority", "add", "public-ca", pem)
    assert result.exit_code == 0, result.output
    assert "the certificates are as they should be" in result.output
    assert "is on record with 1 certificate\n" in result.output
    assert "public-ca" in lakthan("authority", "list").output
    shown = lakthan("authority", "show", "public-ca").output
    assert "Public CA ອອກໃບຢັ້ງຢືນ" in shown
    assert "PT1H declared" in shown
    document = json.loads(lakthan("authority", "show", "public-ca", "--json").stdout)
    assert document["subjects"] == [ca.certificate.subject.rfc4514_string()]
    assert document["key_sha1"] == [x509.SubjectKeyIdentifier.from_public_key(ca.key.public_key()).digest.hex()]
    assert json.loads(lakthan("authority", "list", "--json").stdout) == [document]
    der = tmp_path / "ca.der"
    der.write_bytes(ca.der)
    again = lakthan("authority", "add", "public-ca", der)
    assert "has all of these already" in again.output


def test_a_new_key_of_an_authority_is_added_to_it(lakthan: Lakthan, ca: Issued, tmp_path: Path) -> None:
    """The same name again gives it more certificates; those it had stay."""
    first, _ = ca.write(tmp_path, "first")
    second, _ = new_ca("Public CA ອອກໃບຢັ້ງຢືນ").write(tmp_path, "second")
    lakthan("authority", "add", "public-ca", first)
    result = lakthan("authority", "add", "public-ca", second)
    assert "is on record with 2 certificates" in result.output
    assert len(json.loads(lakthan("authority", "show", "public-ca", "--json").stdout)["certificates"]) == 2


def test_errors_refuse_and_record_nothing(lakthan: Lakthan, ca: Issued, tmp_path: Path, database_url: str) -> None:
    """A leaf as a CA, a responder of somebody else, a chain in one file: a table says what to do, and exit code 1."""
    pem, _ = ca.write(tmp_path, "ca")
    leaf, _ = issue("someone", ca).write(tmp_path, "leaf")
    stranger, _ = new_responder(new_ca("Other CA")).write(tmp_path, "stranger")
    below = new_ca("Below", ca)
    chain = tmp_path / "chain.pem"
    chain.write_bytes(below.certificate.public_bytes(Encoding.PEM) + pem.read_bytes())
    for arguments, words in (
        ([leaf], "no CA's certificate"),
        ([chain], "a chain"),
        ([pem, "--responder", stranger], "this authority did not sign it"),
        ([pem, "--responder", pem], "no id-kp-OCSPSigning"),
        ([pem, "--sample", stranger], "this authority did not sign it"),
    ):
        result = lakthan("authority", "add", "public-ca", *arguments)
        assert result.exit_code == 1, result.output
        assert words in result.output
        assert "was not changed" in result.output
    assert ask(database_url, lambda database: database.fetchval("SELECT count(*) FROM authority")) == 0


def test_the_profile_decides_about_nocheck(lakthan: Lakthan, ca: Issued, tmp_path: Path) -> None:
    """What `tls-br` demands, `acrobat` forbids."""
    pem, _ = ca.write(tmp_path, "ca")
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING])
    without, _ = issue("OCSP", ca, extensions=((usage, False),)).write(tmp_path, "without")
    tls = lakthan("authority", "add", "a", pem, "--responder", without, "--profile", "tls-br", "--dry-run")
    assert tls.exit_code == 1
    assert "which the profile demands" in tls.output
    acrobat = lakthan("authority", "add", "a", pem, "--responder", without, "--profile", "acrobat", "--dry-run")
    assert acrobat.exit_code == 0, acrobat.output


def test_warnings_are_shown_and_hinder_nothing(lakthan: Lakthan, ca: Issued, tmp_path: Path) -> None:
    """A sample without an OCSP URL is told of, and the authority is on record."""
    pem, _ = ca.write(tmp_path, "ca")
    sample, _ = issue("someone", ca).write(tmp_path, "sample")
    result = lakthan("authority", "add", "public-ca", pem, "--sample", sample)
    assert result.exit_code == 0, result.output
    assert "no OCSP URL in authorityInfoAccess" in result.output
    assert "add id-ad-ocsp" in result.output
    assert "is on record" in result.output


def test_a_dry_run_records_nothing(lakthan: Lakthan, ca: Issued, tmp_path: Path) -> None:
    """It checks all the same."""
    pem, _ = ca.write(tmp_path, "ca")
    assert "would be added" in lakthan("authority", "add", "public-ca", pem, "--dry-run").output
    assert json.loads(lakthan("authority", "list", "--json").stdout) == []


@pytest.mark.parametrize("content", [b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\nAA\n"])
def test_a_file_without_a_certificate_is_named(lakthan: Lakthan, tmp_path: Path, content: bytes) -> None:
    """In one line, without a traceback."""
    file = tmp_path / "odd.pem"
    file.write_bytes(content)
    result = lakthan("authority", "add", "public-ca", file)
    assert result.exit_code == 1
    assert f"{file} holds no certificate" in result.output


def test_a_policy_is_set_and_kept(lakthan: Lakthan, ca: Issued, tmp_path: Path) -> None:
    """What is given changes, the rest stays; without options it is shown."""
    pem, _ = ca.write(tmp_path, "ca")
    lakthan("authority", "add", "public-ca", pem)
    set_first = lakthan(
        "authority", "policy", "public-ca", "--crl-url", "http://ca.gov.la/a.crl", "--crl-url", "https://ca.gov.la/b"
    )
    assert set_first.exit_code == 0, set_first.output
    lakthan("authority", "policy", "public-ca", "--declared-delay", "PT30M", "--crl-drop-limit", "5")
    document = json.loads(lakthan("authority", "show", "public-ca", "--json").stdout)
    assert document["policy"] == {
        "crl_urls": ["http://ca.gov.la/a.crl", "https://ca.gov.la/b"],
        "declared_delay": "PT30M",
        "crl_drop_limit_percent": 5,
    }
    shown = lakthan("authority", "policy", "public-ca").output
    assert "http://ca.gov.la/a.crl" in shown
    lakthan("authority", "policy", "public-ca", "--no-crl-urls")
    assert "its CRLs are not fetched" in lakthan("authority", "policy", "public-ca").output


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (("--crl-url", "ldap://ca.gov.la/cn=a"), 1, "not fetched by LDAP"),
        (("--crl-url", "ca.gov.la/a.crl"), 1, "no URL of a CRL"),
        (("--crl-url", "http://ca.gov.la/a.crl", "--no-crl-urls"), 2, "but not both"),
        (("--declared-delay", "1h"), 2, "no span of time"),
        (("--declared-delay", "PT0S"), 2, "no span of time"),
        (("--crl-drop-limit", "101"), 2, "101"),
    ],
)
def test_a_policy_that_cannot_be_is_refused(
    lakthan: Lakthan, on_record: None, arguments: tuple[str, ...], exit_code: int, words: str
) -> None:
    """With a sentence that says what to write."""
    before = lakthan("authority", "policy", "public-ca").output
    result = lakthan("authority", "policy", "public-ca", *arguments)
    assert (result.exit_code, words in result.output) == (exit_code, True), result.output
    assert lakthan("authority", "policy", "public-ca").output == before


@pytest.mark.parametrize("command", ["show", "policy"])
def test_an_unknown_authority_is_told_with_those_there_are(
    lakthan: Lakthan, ca: Issued, tmp_path: Path, command: str
) -> None:
    """So that a slip of the pen is seen."""
    pem, _ = ca.write(tmp_path, "ca")
    lakthan("authority", "add", "public-ca", pem)
    result = lakthan("authority", command, "publik-ca")
    assert result.exit_code == 1
    assert "there are public-ca" in result.output


def test_revoking_an_authority_asks_first_and_is_final(lakthan: Lakthan, ca: Issued, tmp_path: Path) -> None:
    """Without a yes nothing happens; a second time is refused."""
    pem, _ = ca.write(tmp_path, "ca")
    lakthan("authority", "add", "public-ca", pem)
    refused = lakthan("authority", "revoke", "public-ca", "--reason", "cACompromise", answer="n\n")
    assert refused.exit_code == 1
    assert "in service" in lakthan("authority", "show", "public-ca").output
    done = lakthan("authority", "revoke", "public-ca", "--reason", "cACompromise", answer="y\n")
    assert done.exit_code == 0, done.output
    assert "cACompromise" in lakthan("authority", "show", "public-ca").output
    assert lakthan("authority", "revoke", "public-ca", "--reason", "cACompromise", "--yes").exit_code == 1


def test_who_did_it_is_on_record(lakthan: Lakthan, ca: Issued, tmp_path: Path, database_url: str) -> None:
    """Adding an authority and changing its policy are in its audit chain, with the user's name."""
    pem, _ = ca.write(tmp_path, "ca")
    lakthan("authority", "add", "public-ca", pem)
    lakthan("authority", "policy", "public-ca", "--crl-drop-limit", "1")
    rows = ask(
        database_url,
        lambda database: database.fetch(
            "SELECT event, actor, through FROM audit_record WHERE chain > 0 ORDER BY number"
        ),
    )
    assert isinstance(rows, list)
    assert {row["event"] for row in rows} == {"authority", "policy"}
    assert all(row["actor"].startswith("cli:") and row["through"] == "cli" for row in rows)
