"""`lakthan audit`: the record holds, or it is said what does not; where it ends; what it says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest
from click.testing import CliRunner, Result

from lakthan.store.changes import ChangeWriter
from lakthan.store.pool import open_pool
from lakthan.store.records import Change, ChangeRequest
from lakthan_cli.__main__ import main

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, database_url: str) -> Run:
    """Runs `lakthan audit` on a database with an authority and some changes."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    async def fill() -> None:
        pool = await open_pool(
            database_url, role="lakthan_registry", min_size=1, max_size=1, application_name="lakthan-test"
        )
        try:
            authority: int = await pool.fetchval("INSERT INTO authority (name) VALUES ('ca') RETURNING id")
            serials = [bytes([number]) for number in range(1, 8)]
            changes = [ChangeRequest(authority, serial, Change.ISSUE) for serial in serials]
            await ChangeWriter(pool).record(changes, "ann [of ca]", through="api")
            await ChangeWriter(pool).revoke(authority, b"\x01", actor="ben")
        finally:
            await pool.close()

    asyncio.run(fill())

    def invoke(*arguments: object) -> Result:
        command = ["audit", *map(str, arguments), "--database", database_url]
        return CliRunner().invoke(main, command, catch_exceptions=False)

    return invoke


@pytest.fixture
def tamper(database_url: str) -> Callable[[str], None]:
    """Does as an owner of the database who means it."""

    def do(statement: str) -> None:
        async def execute() -> None:
            connection = await asyncpg.connect(database_url)
            await connection.execute(f"SET session_replication_role = replica; {statement}")
            await connection.close()

        asyncio.run(execute())

    return do


def test_a_record_that_holds(run: Run) -> None:
    """All is read and the command says so, in words and as JSON, with exit code 0."""
    result = run("verify")
    assert result.exit_code == 0
    assert "the record holds" in result.output
    report = json.loads(run("verify", "--json").stdout)
    assert (report["records"], report["changes"], report["statuses"], report["findings"]) == (3, 8, 7, [])
    assert report["heads"][0]["number"] == 3


def test_a_record_that_does_not_hold(run: Run, tamper: Callable[[str], None]) -> None:
    """What was edited is named, and the exit code is one of its own."""
    tamper("UPDATE certificate_status SET version = version + 1 WHERE serial_number = '\\x02'")
    result = run("verify")
    assert result.exit_code == 3
    assert "serial number 02: version of its status is not what its history says" in result.stdout
    assert "the record does not hold: 1 findings" in result.stdout
    assert run("verify", "--json").exit_code == 3


def test_heads_noted_earlier(run: Run, tamper: Callable[[str], None], tmp_path: Path) -> None:
    """What `head` printed can be given to `verify` later; a tail that was taken off is found by it alone."""
    noted = tmp_path / "heads"
    noted.write_text("# noted by ann\n" + run("head").stdout)
    assert run("verify", "--noted", noted).exit_code == 0
    tamper(
        """
        ALTER TABLE audit_record DISABLE TRIGGER append_only; ALTER TABLE audit_head DISABLE TRIGGER follows_the_record;
        ALTER TABLE status_change DISABLE TRIGGER append_only;
        DELETE FROM status_change WHERE batch = (SELECT max(batch) FROM audit_record);
        UPDATE certificate_status SET cert_status = 'good', version = 1, revocation_time = NULL
         WHERE serial_number = '\\x01';
        DELETE FROM audit_record WHERE number = 3;
        UPDATE audit_head SET (number, sha256) = (SELECT number, sha256 FROM audit_record WHERE number = 2);
        """
    )
    assert run("verify").exit_code == 0
    result = run("verify", "--noted", noted)
    assert result.exit_code == 3
    assert "record 3: was noted and is gone; the end of the chain was taken off" in result.stdout


@pytest.mark.parametrize("line", ["1 2", "1 two 00", "1 2 zz"])
def test_heads_that_cannot_be_read(run: Run, tmp_path: Path, line: str) -> None:
    """A file that is no list of heads is refused with its line."""
    noted = tmp_path / "heads"
    noted.write_text(f"\n{line}\n")
    result = run("verify", "--noted", noted)
    assert result.exit_code == 1
    assert "line 2 of the noted heads" in result.output


def test_the_log(run: Run) -> None:
    """The newest records of a chain, oldest first, as a table and as JSON; an unknown authority is explained."""
    result = run("log", "--authority", "ca", "--limit", "2")
    assert result.exit_code == 0
    _, first, second = result.stdout.splitlines()
    assert "ann [of ca]" in first
    assert "ben" in second
    records = [json.loads(line) for line in run("log", "--authority", "ca", "--json").stdout.splitlines()]
    assert [(each["number"], each["event"], each["change_count"]) for each in records] == [
        (1, "authority", None),
        (2, "changes", 7),
        (3, "changes", 1),
    ]
    assert records[0]["detail"]["after"]["name"] == "ca"
    assert run("log").stdout.splitlines()[1:] == []
    result = run("log", "--authority", "nobody")
    assert result.exit_code == 1
    assert "there is no authority 'nobody'; on record are ca" in result.output
