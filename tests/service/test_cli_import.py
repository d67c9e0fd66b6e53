"""`lakthan import`: OpenSSL's index.txt, CSV and folders of certificates, into a real database."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.serialization import Encoding

from lakthan import der
from lakthan_cli.__main__ import main
from support.pki import Issued, issue, new_ca, with_unknown_signature
from support.programs import need

Lakthan = Callable[..., Result]
Statuses = dict[bytes, tuple[str, int | None]]


@pytest.fixture(scope="module")
def ca() -> Issued:
    """The authority `public-ca`."""
    return new_ca("Public CA")


@pytest.fixture
def lakthan(database_url: str, ca: Issued, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lakthan:
    """The command on the test's database."""
    monkeypatch.delenv("DATABASE_URL", raising=False)

    def run(*arguments: str | Path) -> Result:
        return CliRunner().invoke(main, [*map(str, arguments), "--database", database_url], catch_exceptions=False)

    folder = tmp_path / "ca"
    folder.mkdir()
    pem, _ = ca.write(folder, "ca")
    assert run("authority", "add", "public-ca", pem).exit_code == 0
    return run


def statuses(url: str) -> Statuses:
    """Every status on record, by serial number: the state and the reason."""

    async def read() -> Statuses:
        connection = await asyncpg.connect(url)
        try:
            rows = await connection.fetch(
                "SELECT serial_number, cert_status, revocation_reason FROM certificate_status"
            )
            return {row["serial_number"]: (row["cert_status"], row["revocation_reason"]) for row in rows}
        finally:
            await connection.close()

    return asyncio.run(read())


def count(result: Result, what: str) -> int:
    """A figure of the summary."""
    [line] = [line for line in result.stdout.splitlines() if line.startswith(what)]
    return int(line.removeprefix(what).strip().replace(",", ""))


def write(path: Path, *lines: str) -> Path:
    """A file of these lines."""
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_an_index_is_imported_with_its_revocations(lakthan: Lakthan, database_url: str, tmp_path: Path) -> None:
    """Good, revoked and held certificates of OpenSSL's database are on record; again, and nothing changes."""
    path = write(
        tmp_path / "index.txt",
        "V\t380102030405Z\t\t01\tunknown\t/CN=a",
        "R\t380102030405Z\t260102030405Z,superseded\t02\tunknown\t/CN=b",
        "R\t380102030405Z\t260102030405Z,certificateHold\t03\tunknown\t/CN=c",
        "E\t200102030405Z\t\t04\tunknown\t/CN=d",
    )
    result = lakthan("import", "index", path, "--authority", "public-ca")
    assert result.exit_code == 0, result.output
    assert [count(result, what) for what in ("entries in the list", "announced", "revoked", "held")] == [4, 2, 1, 1]
    expected: Statuses = {
        b"\x01": ("good", None),
        b"\x02": ("revoked", 4),
        b"\x03": ("revoked", 6),
        b"\x04": ("good", None),
    }
    assert statuses(database_url) == expected
    again = lakthan("import", "index", path, "--authority", "public-ca")
    assert again.exit_code == 0, again.output
    assert count(again, "on record already") == 4
    assert statuses(database_url) == expected


def test_a_list_makes_nothing_good_again(lakthan: Lakthan, database_url: str, tmp_path: Path) -> None:
    """What was revoked since stays so when an old list is imported; the command names it and leaves with 1."""
    old = write(
        tmp_path / "old.txt", "V\t380102030405Z\t\t01\tunknown\t/CN=a", "V\t380102030405Z\t\t02\tunknown\t/CN=b"
    )
    assert lakthan("import", "index", old, "--authority", "public-ca").exit_code == 0
    assert lakthan("revoke", "--authority", "public-ca", "--serial", "01").exit_code == 0
    result = lakthan("import", "index", old, "--authority", "public-ca")
    assert result.exit_code == 1
    assert count(result, "on record otherwise") == 1
    assert "left so" in result.stderr
    assert "): 01" in result.stderr
    assert statuses(database_url)[b"\x01"][0] == "revoked"


def test_a_good_certificate_is_revoked_by_a_newer_list(lakthan: Lakthan, database_url: str, tmp_path: Path) -> None:
    """The same list, some weeks later."""
    path = write(tmp_path / "index.txt", "V\t380102030405Z\t\t01\tunknown\t/CN=a")
    lakthan("import", "index", path, "--authority", "public-ca")
    write(path, "R\t380102030405Z\t260102030405Z,keyCompromise\t01\tunknown\t/CN=a")
    result = lakthan("import", "index", path, "--authority", "public-ca")
    assert result.exit_code == 0, result.output
    assert count(result, "revoked") == 1
    assert statuses(database_url) == {b"\x01": ("revoked", 1)}


def test_bad_lines_are_named_and_nothing_is_recorded(lakthan: Lakthan, database_url: str, tmp_path: Path) -> None:
    """The first twenty with file and line, the rest counted; with --skip-bad the good ones are imported."""
    lines = ["serial_number,not_after", "01,2038-01-01T00:00:00Z", *(f"x{at},\n".strip() for at in range(25)), "02,"]
    path = write(tmp_path / "issued.csv", *lines)
    result = lakthan("import", "csv", path, "--authority", "public-ca", "--serials", "hex")
    assert result.exit_code == 1
    assert f"{path}:3: 'x0' is no serial number" in result.stderr
    assert f"{path}:22: " in result.stderr
    assert f"{path}:23: " not in result.stderr
    assert "and 5 more" in result.stderr
    assert "25 bad lines" in result.stderr
    assert statuses(database_url) == {}
    rest = lakthan("import", "csv", path, "--authority", "public-ca", "--serials", "hex", "--skip-bad")
    assert rest.exit_code == 0, rest.output
    assert (count(rest, "announced"), count(rest, "bad lines")) == (2, 25)
    assert set(statuses(database_url)) == {b"\x01", b"\x02"}


def test_a_dry_run_says_what_would_be_done(lakthan: Lakthan, database_url: str, tmp_path: Path) -> None:
    """The figures of the import, and nothing on record."""
    path = write(
        tmp_path / "issued.csv", "serial_number,status,revocation_time", "10,good,", "11,revoked,2026-01-01T00:00Z"
    )
    result = lakthan("import", "csv", path, "--authority", "public-ca", "--serials", "decimal", "--dry-run")
    assert result.exit_code == 0, result.output
    assert (count(result, "announced"), count(result, "revoked")) == (1, 1)
    assert "dry run" in result.stdout
    assert statuses(database_url) == {}


def test_what_a_list_says_twice_counts_once(lakthan: Lakthan, database_url: str, tmp_path: Path) -> None:
    """The same words twice are one entry; good first and revoked later is revoked."""
    path = write(
        tmp_path / "issued.csv",
        "serial_number,status,revocation_time",
        "0a,good,",
        "0a,good,",
        "0b,good,",
        "0b,revoked,2026-01-01T00:00Z",
    )
    result = lakthan("import", "csv", path, "--authority", "public-ca", "--serials", "hex")
    assert result.exit_code == 0, result.output
    assert count(result, "said twice in the list") == 1
    assert statuses(database_url) == {b"\x0a": ("good", None), b"\x0b": ("revoked", None)}


def test_an_import_in_chunks_goes_on_where_it_was_interrupted(
    lakthan: Lakthan, database_url: str, tmp_path: Path
) -> None:
    """The position is on record with each chunk, for this very content; without --resume it all begins again."""
    lines = [f"{number:04x},2038-01-01T00:00:00Z" for number in range(1, 26)]
    path = write(tmp_path / "issued.csv", "serial_number,not_after", *lines)
    command = ["import", "csv", path, "--authority", "public-ca", "--serials", "hex", "--rows-per-chunk", "10"]

    async def positions() -> list[str]:
        connection = await asyncpg.connect(database_url)
        try:
            rows = await connection.fetch(
                "SELECT detail::json ->> 'position' AS position FROM audit_record "
                "WHERE event = 'import' ORDER BY number"
            )
            return [row["position"] for row in rows]
        finally:
            await connection.close()

    assert lakthan(*command).exit_code == 0
    assert asyncio.run(positions()) == ["11", "21", "26"]
    resumed = lakthan(*command, "--resume")
    assert "going on behind line 26" in resumed.stderr
    assert count(resumed, "entries in the list") == 0
    assert count(lakthan(*command), "on record already") == 25
    with path.open("a") as file:
        file.write("ffff,\n")
    longer = lakthan(*command, "--resume")
    assert "going on" not in longer.stderr
    assert count(longer, "announced") == 1
    assert len(statuses(database_url)) == 26


def test_a_chunk_that_fails_leaves_the_earlier_ones(
    lakthan: Lakthan, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An import that dies after the first chunk has that one on record, and --resume brings the rest."""
    lines = [f"{number:04x}" for number in range(1, 31)]
    path = write(tmp_path / "issued.csv", "serial_number", *lines)
    command = ["import", "csv", path, "--authority", "public-ca", "--serials", "hex", "--rows-per-chunk", "10"]

    async def refuse_the_second(*, stop: bool) -> None:
        connection = await asyncpg.connect(database_url)
        try:
            if stop:
                await connection.execute(
                    "CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS "
                    "$$ BEGIN RAISE EXCEPTION 'the disk is full' USING ERRCODE = '53100'; END $$"
                )
                await connection.execute(
                    "CREATE TRIGGER stop BEFORE INSERT ON bulk_change FOR EACH ROW "
                    r"WHEN (NEW.serial_number = '\x14') EXECUTE FUNCTION stop()"
                )
            else:
                await connection.execute("DROP TRIGGER stop ON bulk_change")
        finally:
            await connection.close()

    asyncio.run(refuse_the_second(stop=True))
    stopped = lakthan(*command)
    assert stopped.exit_code == 1
    assert "10 entries are done and stay so; go on with --resume" in stopped.stderr
    assert len(statuses(database_url)) == 10
    asyncio.run(refuse_the_second(stop=False))
    resumed = lakthan(*command, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert "going on behind line 11" in resumed.stderr
    assert count(resumed, "announced") == 20
    assert len(statuses(database_url)) == 30


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_an_import_that_is_killed_is_brought_to_its_end(
    lakthan: Lakthan, database_url: str, tmp_path: Path, how: signal.Signals
) -> None:
    """Whatever ends it, every chunk is whole or not there; with --resume all certificates are on record once."""
    lines = [f"{number:04x},2038-01-01T00:00:00Z" for number in range(1, 12_001)]
    path = write(tmp_path / "issued.csv", "serial_number,not_after", *lines)
    command = ["import", "csv", str(path), "--authority", "public-ca", "--serials", "hex", "--rows-per-chunk", "50"]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "lakthan_cli", *command, "--database", database_url],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not statuses(database_url):
        assert process.poll() is None, process.communicate()[1]
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    if how is signal.SIGINT:
        assert "Go on with --resume" in said
    there = len(statuses(database_url))
    assert there % 50 == 0
    assert 0 < there < 12_000
    result = lakthan(*command, "--resume")
    assert result.exit_code == 0, result.output
    assert count(result, "announced") == 12_000 - there
    assert len(statuses(database_url)) == 12_000
    assert lakthan("audit", "verify").exit_code == 0


def test_a_folder_of_certificates_is_announced(lakthan: Lakthan, database_url: str, ca: Issued, tmp_path: Path) -> None:
    """PEM and DER, with subfolders; other files and the CA's own certificate are passed over."""
    folder = tmp_path / "certs"
    (folder / "2026").mkdir(parents=True)
    certificates = [issue(f"person {number}", ca) for number in range(4)]
    (folder / "two.pem").write_bytes(b"".join(each.certificate.public_bytes(Encoding.PEM) for each in certificates[:2]))
    (folder / "2026" / "one.DER").write_bytes(certificates[2].der)
    (folder / "2026" / "one.cer").write_bytes(certificates[3].der)
    (folder / "ca.crt").write_bytes(ca.certificate.public_bytes(Encoding.PEM))
    write(folder / "notes.txt", "nothing")
    write(folder / "two-key.pem", "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n")
    result = lakthan("import", "certs", folder, "--authority", "public-ca")
    assert result.exit_code == 0, result.output
    assert set(statuses(database_url)) == {each.serial_number for each in certificates}
    assert count(result, "announced") == 4


def test_whatever_lies_in_a_folder_is_read_or_named(
    lakthan: Lakthan, database_url: str, ca: Issued, tmp_path: Path
) -> None:
    """A link to nowhere, a certificate of a version that never was, or with a signature that nobody knows: each is
    named, and the good one beside them is imported on request.
    """
    folder = tmp_path / "certs"
    folder.mkdir()
    good = issue("person", ca)
    (folder / "good.der").write_bytes(good.der)
    (folder / "link.der").symlink_to(tmp_path / "nowhere")
    (folder / "noise.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    (folder / "v2.der").write_bytes(good.der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x01", 1))
    (folder / "unknown.der").write_bytes(with_unknown_signature(good))
    result = lakthan("import", "certs", folder, "--authority", "public-ca")
    assert result.exit_code == 1
    for name in ("link.der", "noise.pem", "v2.der", "unknown.der"):
        assert f"{folder / name}: " in result.stderr
    assert "4 bad files" in result.stderr
    assert statuses(database_url) == {}
    assert lakthan("import", "certs", folder, "--authority", "public-ca", "--skip-bad").exit_code == 0
    assert set(statuses(database_url)) == {good.serial_number}


def test_a_stranger_in_a_folder_is_named(lakthan: Lakthan, database_url: str, ca: Issued, tmp_path: Path) -> None:
    """A certificate of another CA, with the authority's name even, is not believed."""
    folder = tmp_path / "certs"
    folder.mkdir()
    issue("person", ca).write(folder, "good")
    issue("person", new_ca("Public CA")).write(folder, "stranger")
    result = lakthan("import", "certs", folder, "--authority", "public-ca")
    assert result.exit_code == 1
    assert f"{folder / 'stranger.pem'}: no key of the authority signed it" in result.stderr
    assert statuses(database_url) == {}


def test_what_openssl_ca_wrote_is_what_the_responder_will_say(
    lakthan: Lakthan, database_url: str, tmp_path: Path
) -> None:
    """A real `openssl ca` issues and revokes; its index.txt, imported, says the same of every certificate."""
    openssl = need("openssl")
    folder = tmp_path / "openssl"
    folder.mkdir()
    write(folder / "index.txt")
    write(folder / "serial", "0FFF")
    (folder / "index.txt").write_text("")
    write(
        folder / "ca.conf",
        "[ca]\ndefault_ca = c\n[c]\ndir = .\nnew_certs_dir = .\ndatabase = index.txt\nserial = serial\n"
        "certificate = ca.pem\nprivate_key = ca.key\ndefault_md = sha256\ndefault_days = 30\npolicy = p\n"
        "unique_subject = no\n[p]\ncommonName = supplied\n[req]\ndistinguished_name = d\n[d]\n[v3_ca]\n"
        "basicConstraints = critical, CA:true\nkeyUsage = critical, keyCertSign, cRLSign\n"
        "subjectKeyIdentifier = hash",
    )

    def run(*arguments: str) -> None:
        subprocess.run([openssl, *arguments], cwd=folder, check=True, capture_output=True, timeout=60)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-config", "ca.conf")
    run("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=OpenSSL CA", "-extensions", "v3_ca")
    for name in ("good", "compromised", "held", "early"):
        run("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        run("ca", "-config", "ca.conf", "-batch", "-in", f"{name}.csr", "-out", f"{name}.pem")
    run("ca", "-config", "ca.conf", "-revoke", "compromised.pem", "-crl_reason", "keyCompromise")
    run("ca", "-config", "ca.conf", "-revoke", "held.pem", "-crl_reason", "certificateHold")
    since = datetime.now(UTC) - timedelta(days=2)
    run("ca", "-config", "ca.conf", "-revoke", "early.pem", "-crl_compromise", f"{since:%Y%m%d%H%M%SZ}")
    assert lakthan("authority", "add", "openssl-ca", folder / "ca.pem").exit_code == 0
    result = lakthan("import", "index", folder / "index.txt", "--authority", "openssl-ca")
    assert result.exit_code == 0, result.output
    assert statuses(database_url) == {
        der.integer_content(0x0FFF): ("good", None),
        der.integer_content(0x1000): ("revoked", 1),
        der.integer_content(0x1001): ("revoked", 6),
        der.integer_content(0x1002): ("revoked", 1),
    }


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["csv", "FILE", "--authority", "public-ca"], 2, "--serials"),
        (["csv", "FILE", "--authority", "public-ca", "--serials", "hex", "--column", "x=y"], 2, "NAME=HEADING"),
        (["csv", "FILE", "--authority", "public-ca", "--serials", "hex", "--time-zone", "Laos"], 2, "no time zone"),
        (["csv", "FILE", "--authority", "public-ca", "--serials", "hex", "--delimiter", ",,"], 2, "one character"),
        (["csv", "FILE", "--authority", "publik-ca", "--serials", "hex"], 1, "there are public-ca"),
        (["index", "FILE"], 2, "--authority"),
        (["index", "missing.txt", "--authority", "public-ca"], 2, "does not exist"),
    ],
)
def test_a_wrong_command_line_is_explained(
    lakthan: Lakthan, tmp_path: Path, arguments: list[str], exit_code: int, words: str
) -> None:
    """Usage is exit code 2; what the database does not have is 1."""
    path = write(tmp_path / "list", "serial_number", "01")
    result = lakthan("import", *(str(path) if each == "FILE" else each for each in arguments))
    assert (result.exit_code, words in result.output) == (exit_code, True), result.output
