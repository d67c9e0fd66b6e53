"""`lakthan crl import`, `show` and `diff`, on a real database, with CRLs that OpenSSL reads as well."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lakthan import der
from lakthan_cli.__main__ import main
from support.crl import Listed, entry, new_crl
from support.pki import Issued, new_ca
from support.programs import need

Lakthan = Callable[..., Result]


@pytest.fixture(scope="module")
def ca() -> Issued:
    """The CA whose CRLs they are."""
    return new_ca("Public CA")


@pytest.fixture
def lakthan(database_url: str, ca: Issued, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lakthan:
    """The command on the test's database, where the CA is on record."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str | Path, database: bool = True) -> Result:
        where = ["--database", database_url] if database else []
        return CliRunner().invoke(main, [*map(str, arguments), *where], catch_exceptions=False)

    folder = tmp_path / "ca"
    folder.mkdir()
    pem, _ = ca.write(folder, "ca")
    assert run("authority", "add", "public-ca", pem).exit_code == 0
    return run


@pytest.fixture
def crl(ca: Issued, tmp_path: Path) -> Callable[..., Path]:
    """Makes CRL files; a higher number begins later."""

    def write(
        name: str,
        number: int,
        *entries: bytes,
        issuer: Issued = ca,
        base: int | None = None,
        scope: bytes | None = None,
    ) -> Path:
        begins = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1) + timedelta(minutes=number)
        path = tmp_path / name
        path.write_bytes(new_crl(issuer, Listed(entries, number, base, this_update=begins, scope=scope)))
        return path

    return write


def _row(result: Result, name: str) -> list[str]:
    """The figures of one CRL in the summary."""
    [line] = [line for line in result.stdout.splitlines() if line.startswith("│ " + name)]
    return [cell.strip() for cell in line.strip("│").split("│")][1:8]


def test_import_says_what_came_of_it(lakthan: Lakthan, crl: Callable[..., Path]) -> None:
    """A complete CRL and its delta in one call: a row for each, and the status can be asked for."""
    complete = crl("1.crl", 1, entry(b"\x01", 1), entry(b"\x02", 6))
    delta = crl("2.crl", 2, entry(b"\x02", 8), entry(b"\x03", 4), base=1)
    result = lakthan("crl", "import", complete, delta)
    assert result.exit_code == 0, result.output
    assert "CRL number 1 of public-ca: imported (version 2)" in result.output
    assert "delta CRL number 2 of public-ca: imported" in result.output
    # entries, revoked, held, released, unchanged, reason changed, vanished
    assert _row(result, "1.crl") == ["2", "1", "1", "0", "0", "0", "0"]
    assert _row(result, "2.crl") == ["2", "1", "0", "1", "1", "0", "0"]
    said = lakthan("status", "--authority", "public-ca", "--serial", "03")
    assert "superseded" in said.output
    again = lakthan("crl", "import", delta)
    assert (again.exit_code, "nothing new" in again.output) == (0, True)


def test_a_refused_file_changes_nothing_and_the_others_are_imported(lakthan: Lakthan, crl: Callable[..., Path]) -> None:
    """The reason and its word are said; the exit code is 1."""
    stranger = crl("stranger.crl", 1, entry(b"\x09", 1), issuer=new_ca("Stranger"))
    good = crl("good.crl", 1, entry(b"\x01", 1))
    result = lakthan("crl", "import", stranger, good)
    assert result.exit_code == 1
    assert "refused (unknown_issuer)" in result.stderr
    assert "Nothing was changed" in result.stderr
    assert _row(result, "good.crl")[1] == "1"


def test_a_wrong_signature_in_a_file(lakthan: Lakthan, crl: Callable[..., Path]) -> None:
    """One octet of an entry was altered."""
    path = crl("altered.crl", 1, entry(b"\x01\x02\x03", 1))
    path.write_bytes(path.read_bytes().replace(b"\x01\x02\x03", b"\x01\x02\x04"))
    result = lakthan("crl", "import", path)
    assert (result.exit_code, "refused (signature)" in result.stderr) == (1, True)


def test_another_authority_than_the_one_meant(lakthan: Lakthan, crl: Callable[..., Path], tmp_path: Path) -> None:
    """--authority keeps a mixed-up file out."""
    other, _ = new_ca("Other CA").write(tmp_path, "other")
    assert lakthan("authority", "add", "other-ca", other).exit_code == 0
    result = lakthan("crl", "import", crl("1.crl", 1), "--authority", "other-ca")
    assert (result.exit_code, "refused (unknown_issuer)" in result.stderr) == (1, True)


def test_a_dry_run_and_force(lakthan: Lakthan, crl: Callable[..., Path]) -> None:
    """--dry-run shows the figures and records nothing; --force accepts what lost many entries."""
    holds = [entry(bytes((number,)), 6) for number in range(1, 41)]
    first = crl("1.crl", 1, *holds)
    dry = lakthan("crl", "import", first, "--dry-run")
    assert "dry run, nothing was recorded" in dry.output
    assert _row(dry, "1.crl")[2] == "40"
    assert _row(lakthan("crl", "import", first), "1.crl")[2] == "40"
    less = crl("2.crl", 2, *holds[:20])
    refused = lakthan("crl", "import", less)
    assert (refused.exit_code, "dropped_entries" in refused.stderr) == (1, True)
    assert _row(lakthan("crl", "import", less, "--force"), "2.crl")[3] == "20"


def test_an_empty_file(lakthan: Lakthan, tmp_path: Path) -> None:
    """Refused as malformed, like anything that is no CRL."""
    path = tmp_path / "empty.crl"
    path.touch()
    result = lakthan("crl", "import", path)
    assert (result.exit_code, "refused (malformed)" in result.stderr) == (1, True)


def test_show_says_what_openssl_says(lakthan: Lakthan, crl: Callable[..., Path], tmp_path: Path) -> None:
    """Number, instants and entries, from DER and from PEM; --serial tells by its exit code."""
    need("openssl")
    der_file = crl("1.crl", 4711, entry(b"\x01", 1), entry(b"\x00\xab\xcd", 6))
    pem = tmp_path / "1.pem"
    subprocess.run(["openssl", "crl", "-inform", "DER", "-in", der_file, "-out", pem], check=True, timeout=30)
    judge = subprocess.run(
        ["openssl", "crl", "-in", pem, "-noout", "-text"], check=True, timeout=30, capture_output=True, text=True
    ).stdout
    assert "4711" in judge
    assert "Serial Number: ABCD" in judge
    for path in (der_file, pem):
        result = lakthan("crl", "show", path, database=False)
        assert result.exit_code == 0, result.output
        assert "CRLNumber               4711" in result.output
        assert "entries                 2" in result.output
        assert "abcd  2025-03-04 05:06:07 UTC  certificateHold" in result.output
    assert lakthan("crl", "show", der_file, "--serial", "AB:CD", database=False).exit_code == 0
    missing = lakthan("crl", "show", der_file, "--serial", "02", database=False)
    assert (missing.exit_code, "02 is not listed" in missing.output) == (1, True)


def test_diff_of_two_crls(lakthan: Lakthan, crl: Callable[..., Path]) -> None:
    """What is only in one, what is in other words, and how many are the same."""
    left = crl("left.crl", 1, entry(b"\x01", 1), entry(b"\x02", 6), entry(b"\x03"))
    right = crl("right.crl", 2, entry(b"\x02", 4), entry(b"\x03"), entry(b"\x04", 1))
    result = lakthan("crl", "diff", left, right)
    assert result.exit_code == 1
    assert "only in left.crl: 1\n  01  " in result.output
    assert "only in right.crl: 1\n  04  " in result.output
    assert "certificateHold → 2025-03-04 05:06:07 UTC superseded" in result.output
    assert "the same: 1" in result.output
    assert lakthan("crl", "diff", left, left).exit_code == 0


def test_diff_with_the_store(lakthan: Lakthan, crl: Callable[..., Path]) -> None:
    """After the import nothing differs; a revocation that was pushed since then does."""
    path = crl("1.crl", 1, entry(b"\x01", 1), entry(b"\x02", 6))
    assert lakthan("crl", "diff", path, "--store").exit_code == 1
    assert lakthan("crl", "import", path).exit_code == 0
    same = lakthan("crl", "diff", path, "--store")
    assert (same.exit_code, "the same: 2" in same.output) == (0, True)
    assert lakthan("revoke", "--authority", "public-ca", "--serial", "05").exit_code == 0
    result = lakthan("crl", "diff", path, "--store")
    assert result.exit_code == 1
    assert "only in the store: 1\n  05  " in result.output


def test_diff_needs_something_to_compare_with(lakthan: Lakthan, crl: Callable[..., Path]) -> None:
    """A second file or --store, not both and not neither."""
    path = crl("1.crl", 1)
    assert lakthan("crl", "diff", path).exit_code == 2
    assert lakthan("crl", "diff", path, path, "--store").exit_code == 2


def test_an_abandoned_scope_is_retired(lakthan: Lakthan, crl: Callable[..., Path]) -> None:
    """A CA that ended its CRLs for users would hold the freshness of all answers down for ever. The operator lists the
    scopes and retires that one: no status changes, the audit chain has it, and the next CRL of it begins anew.
    """
    users = der.sequence(der.encode(0x81, b"\xff"))
    everything = crl("all.crl", 5, entry(b"\x01", 1))
    abandoned = crl("users.crl", 1, entry(b"\x02", 6), scope=users)
    assert lakthan("crl", "import", abandoned, everything).exit_code == 0
    listed = lakthan("crl", "scopes", "public-ca")
    [line] = [line for line in listed.output.splitlines() if users.hex() in line]
    _, number, _, crl_number, _, ends, entries, holds = [cell.strip() for cell in line.strip("│").split("│")]
    assert (crl_number, entries, holds) == ("1", "1", "1")

    asked = lakthan("crl", "retire", "public-ca", number)
    assert (asked.exit_code, "Go on" in asked.output) == (1, True)
    assert users.hex() in lakthan("crl", "scopes").output
    done = lakthan("crl", "retire", "public-ca", number, "--yes")
    assert done.exit_code == 0, done.output
    assert ends in done.output

    assert users.hex() not in lakthan("crl", "scopes").output
    assert "certificateHold" in lakthan("status", "--authority", "public-ca", "--serial", "02").output
    assert lakthan("audit", "verify").exit_code == 0
    assert '"table": "crl_scope"' in lakthan("audit", "log", "--authority", "public-ca", "--json").output
    assert lakthan("crl", "import", abandoned).exit_code == 0
    assert users.hex() in lakthan("crl", "scopes").output


def test_a_scope_that_is_not_there_cannot_be_retired(lakthan: Lakthan) -> None:
    """The message names the command that lists them."""
    result = lakthan("crl", "retire", "public-ca", "4711", "--yes")
    assert (result.exit_code, "`lakthan crl scopes public-ca` lists them" in result.output) == (1, True)
