"""`lakthan credential`: made once, shown once, kept as a hash."""

from __future__ import annotations

import asyncio
import hashlib
import json
import stat
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest
from click.testing import CliRunner, Result

from lakthan.store.credentials import token_sha256
from lakthan_cli.__main__ import main
from support.pki import Issued, issue, new_ca

Lakthan = Callable[..., Result]


@pytest.fixture
def lakthan(database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lakthan:
    """The command on the test's database, which has the authority `public-ca`."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setenv("COLUMNS", "300")

    def run(*arguments: str | Path) -> Result:
        return CliRunner().invoke(main, [*map(str, arguments), "--database", database_url], catch_exceptions=False)

    pem, _ = new_ca("Public CA").write(tmp_path, "ca")
    assert run("authority", "add", "public-ca", pem).exit_code == 0
    return run


def kept(url: str, name: str) -> asyncpg.Record:
    """The row of a credential, read by the database's owner."""

    async def read() -> asyncpg.Record:
        connection = await asyncpg.connect(url)
        try:
            row = await connection.fetchrow("SELECT * FROM credential WHERE name = $1", name)
            assert row is not None
            return row
        finally:
            await connection.close()

    return asyncio.run(read())


def make(lakthan: Lakthan, name: str, *more: str | Path) -> Result:
    """A publisher of `public-ca`."""
    return lakthan("credential", "create", name, "--role", "publisher", "--authority", "public-ca", *more)


def test_a_token_is_printed_once_and_kept_as_a_hash(lakthan: Lakthan, database_url: str) -> None:
    """Standard output is the token alone, for scripts; the database has its hash and nothing else of it."""
    result = make(lakthan, "ejbca", "--scopes", "issue,revoke", "--expires", "P30D")
    assert result.exit_code == 0, result.output
    token = result.stdout.strip()
    assert token.startswith("lak_")
    assert "issue, revoke for public-ca" in result.stderr
    row = kept(database_url, "ejbca")
    assert row["token_sha256"] == token_sha256(token)
    assert token not in str(dict(row))
    assert 29 <= (row["expires_at"] - row["created_at"]).days <= 30
    listed = lakthan("credential", "list")
    assert "ejbca" in listed.output
    assert token not in listed.output


def test_a_token_file_is_for_its_owner_alone(lakthan: Lakthan, database_url: str, tmp_path: Path) -> None:
    """Mode 0600; the token is in the file and not on the screen."""
    file = tmp_path / "token"
    result = make(lakthan, "ejbca", "--token-file", file)
    assert result.exit_code == 0, result.output
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    token = file.read_text().strip()
    assert token not in result.output
    assert kept(database_url, "ejbca")["token_sha256"] == token_sha256(token)


def test_a_token_file_that_is_there_is_not_replaced(lakthan: Lakthan, tmp_path: Path) -> None:
    """And then no credential is made, because its token would be lost."""
    file = tmp_path / "token"
    file.write_text("precious")
    result = make(lakthan, "ejbca", "--token-file", file)
    assert result.exit_code == 1
    assert "is there already" in result.output
    assert file.read_text() == "precious"
    assert json.loads(lakthan("credential", "list", "--json").stdout) == []


def test_a_refused_credential_leaves_no_token_file(lakthan: Lakthan, tmp_path: Path) -> None:
    """The second of the same name is refused, and its file is gone again."""
    assert make(lakthan, "ejbca").exit_code == 0
    file = tmp_path / "token"
    result = make(lakthan, "ejbca", "--token-file", file)
    assert result.exit_code == 1
    assert "another credential has this name" in result.output
    assert not file.exists()


def test_a_client_certificate_takes_the_place_of_a_token(lakthan: Lakthan, database_url: str, tmp_path: Path) -> None:
    """It is known by the hash of its DER; there is no token."""
    client: Issued = issue("client", new_ca("Client CA"))
    pem, _ = client.write(tmp_path, "client")
    result = make(lakthan, "ejbca", "--certificate", pem)
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    row = kept(database_url, "ejbca")
    assert (row["certificate_sha256"], row["token_sha256"]) == (hashlib.sha256(client.der).digest(), None)


def test_registrars_and_auditors_have_no_authority(lakthan: Lakthan) -> None:
    """They are made without one, and listed with what they are."""
    for role in ("registrar", "auditor"):
        assert lakthan("credential", "create", f"a {role}", "--role", role).exit_code == 0
    listed = json.loads(lakthan("credential", "list", "--json").stdout)
    assert [(each["role"], each["authority"], each["scopes"]) for each in listed] == [
        ("auditor", None, []),
        ("registrar", None, []),
    ]


def test_a_revoked_credential_stays_listed(lakthan: Lakthan) -> None:
    """Revoking is final; a second time is refused."""
    make(lakthan, "ejbca")
    assert lakthan("credential", "revoke", "ejbca").exit_code == 0
    assert json.loads(lakthan("credential", "list", "--json").stdout)[0]["state"] == "revoked"
    assert lakthan("credential", "revoke", "ejbca").exit_code == 1
    assert lakthan("credential", "revoke", "nobody").exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["--role", "publisher"], 2, "say --authority NAME"),
        (["--role", "auditor", "--authority", "public-ca"], 2, "has none"),
        (["--role", "registrar", "--scopes", "issue"], 2, "has none"),
        (["--role", "publisher", "--authority", "public-ca", "--scopes", "issue,all"], 2, "'all' is no scope"),
        (["--role", "publisher", "--authority", "publik-ca"], 1, "there are public-ca"),
        (["--role", "auditor", "--expires", "soon"], 2, "no span of time"),
        (["--role", "auditor", "--certificate", "x.pem", "--token-file", "t"], 2, "there is no token"),
    ],
)
def test_what_cannot_be_is_refused(lakthan: Lakthan, arguments: list[str], exit_code: int, words: str) -> None:
    """With a sentence that says what to do, and no credential is made."""
    result = lakthan("credential", "create", "odd", *arguments)
    assert (result.exit_code, words in result.output) == (exit_code, True), result.output
    assert json.loads(lakthan("credential", "list", "--json").stdout) == []


def test_a_login_is_bound_to_one_authority(lakthan: Lakthan, database_url: str) -> None:
    """For CAs that write by SQL: the row that row-level security goes by."""
    result = lakthan("credential", "bind-login", "ca_login", "--authority", "public-ca")
    assert result.exit_code == 0, result.output

    async def read() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(database_url)
        try:
            rows: list[asyncpg.Record] = await connection.fetch("SELECT login FROM authority_login")
            return rows
        finally:
            await connection.close()

    assert [row["login"] for row in asyncio.run(read())] == ["ca_login"]
