"""OpenSSL's index.txt, as `openssl ca` writes it and as scripts imitate it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lakthan import der
from lakthan.store.records import CRLReason
from lakthan_registry.index_txt import IndexTxt
from lakthan_registry.issued_list import Entry

NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
END = datetime(2028, 1, 2, 3, 4, 5, tzinfo=UTC)
SINCE = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def read(folder: Path, text: str | bytes, after: int = 0) -> tuple[list[Entry], dict[int, str]]:
    """The entries, and the bad lines by their number."""
    path = folder / "index.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    bad: dict[int, str] = {}
    return list(IndexTxt(path, NOW).read(bad.__setitem__, after)), bad


@pytest.mark.parametrize(
    ("line", "entry"),
    [
        ("V\t280102030405Z\t\t1000\tunknown\t/C=LA/CN=a b", (b"\x10\x00", END, None, None, None, None)),
        ("E\t20280102030405Z\t\t00FF\tunknown\t/CN=a", (b"\x00\xff", END, None, None, None, None)),
        ("R\t280102030405Z\t260102030405Z\t01\tunknown\t/CN=a", (b"\x01", END, None, SINCE, None, None)),
        (
            "R\t280102030405Z\t260102030405Z,keyCompromise\t01\tunknown\t/CN=a",
            (b"\x01", END, None, SINCE, CRLReason.KEY_COMPROMISE, None),
        ),
        (
            "R\t280102030405Z\t260102030405Z,CACompromise\t01\tunknown\t/CN=a",
            (b"\x01", END, None, SINCE, CRLReason.CA_COMPROMISE, None),
        ),
        (
            "R\t280102030405Z\t260102030405Z,holdInstruction,holdInstructionNone\t01\tunknown\t/CN=a",
            (b"\x01", END, None, SINCE, CRLReason.CERTIFICATE_HOLD, None),
        ),
        (
            "R\t280102030405Z\t260102030405Z,keyTime,20251231000000Z\t01\tunknown\t/CN=a",
            (b"\x01", END, None, SINCE, CRLReason.KEY_COMPROMISE, datetime(2025, 12, 31, tzinfo=UTC)),
        ),
        (
            "R\t280102030405Z\t260102030405Z,CAkeyTime,251231000000Z\t01\tunknown\t/CN=a",
            (b"\x01", END, None, SINCE, CRLReason.CA_COMPROMISE, datetime(2025, 12, 31, tzinfo=UTC)),
        ),
    ],
)
def test_what_openssl_writes_is_understood(tmp_path: Path, line: str, entry: Entry) -> None:
    """Valid, expired and revoked lines, every kind of reason, both ways to write a time."""
    assert read(tmp_path, line + "\n") == ([entry], {})


@pytest.mark.parametrize(
    "line",
    [
        "V 280102030405Z 1000 unknown /C=LA/CN=two words",
        "V    280102030405Z      1000   unknown   /CN=a",
        " V \t 280102030405Z \t\t 1000 \t unknown \t /CN=a",
        "V\t280102030405Z\t\t1000\tunknown\t/CN=a\r",
        "V\t280102030405Z\t\t1000",
    ],
)
def test_odd_spacing_does_no_harm(tmp_path: Path, line: str) -> None:
    """Blanks instead of tabs, blanks around fields, Windows' line ends, and lines that stop after the number."""
    assert read(tmp_path, line + "\n") == ([(b"\x10\x00", END, None, None, None, None)], {})


def test_a_revoked_line_with_blanks_is_still_revoked(tmp_path: Path) -> None:
    """Without tabs, too, a revocation is never mistaken for a serial number."""
    entries, bad = read(tmp_path, "R 280102030405Z 260102030405Z,superseded 0A unknown /CN=x y z\n")
    assert entries == [(b"\x0a", END, None, SINCE, CRLReason.SUPERSEDED, None)]
    assert not bad


def test_two_digit_years_belong_to_the_century_of_rfc_5280(tmp_path: Path) -> None:
    """50 to 99 are the 1900s, 00 to 49 the 2000s."""
    entries, bad = read(tmp_path, "V\t491231235959Z\t\t01\tunknown\t/CN=a\nE\t500101000000Z\t\t02\tunknown\t/CN=b\n")
    assert [entry[1].year for entry in entries if entry[1]] == [2049, 1950]
    assert not bad


def test_empty_lines_and_comments_are_passed_over(tmp_path: Path) -> None:
    """The first octets of a file from Windows, comments and empty lines are no entries and no mistakes."""
    entries, bad = read(tmp_path, "\ufeff# issued\n\n   \nV\t280102030405Z\t\t01\tunknown\t/CN=a\n")
    assert [entry[0] for entry in entries] == [b"\x01"]
    assert not bad


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("X\t280102030405Z\t\t01\tunknown\t/CN=a", "none of V, R and E"),
        ("R\t280102030405Z\t\t01\tunknown\t/CN=a", "time of the revocation is missing"),
        ("V\t280102030405Z\t260102030405Z\t01\tunknown\t/CN=a", "there is a time of revocation"),
        ("V\t281302030405Z\t\t01\tunknown\t/CN=a", "is no time"),
        ("V\t2801020304Z\t\t01\tunknown\t/CN=a", "is no time"),
        ("V\t280102030405Z\t\t0G\tunknown\t/CN=a", "no serial number in hexadecimal"),
        ("V\t280102030405Z\t\t\tunknown\t/CN=a", "no serial number in hexadecimal"),
        ("V\t280102030405Z\t\t" + "11" * 129 + "\tunknown\t/CN=a", "128 are the most"),
        ("R\t280102030405Z\t260102030405Z,bored\t01\tunknown\t/CN=a", "no CRLReason"),
        ("R\t280102030405Z\t260102030405Z,removeFromCRL\t01\tunknown\t/CN=a", "no certificate's state"),
        ("R\t280102030405Z\t270102030405Z\t01\tunknown\t/CN=a", "lies in the future"),
        ("R\t280102030405Z\t260102030405Z,keyTime\t01\tunknown\t/CN=a", "is no time"),
        ("hello", "not a line of index.txt"),
    ],
)
def test_a_bad_line_is_named_with_its_number(tmp_path: Path, line: str, why: str) -> None:
    """The lines around it are read all the same; the sentence says what is wrong with it."""
    good = "V\t280102030405Z\t\t01\tunknown\t/CN=a\n"
    entries, bad = read(tmp_path, good + line + "\n" + good)
    assert len(entries) == 2
    assert list(bad) == [2]
    assert why in bad[2]


def test_octets_that_are_no_text_are_no_matter_in_a_subject(tmp_path: Path) -> None:
    """Old files hold Latin-1 subjects; nothing is read from a subject."""
    entries, bad = read(tmp_path, b"V\t280102030405Z\t\t01\tunknown\t/CN=Caf\xe9\n")
    assert [entry[0] for entry in entries] == [b"\x01"]
    assert not bad


def test_reading_goes_on_behind_a_position(tmp_path: Path) -> None:
    """An interrupted import goes on with the line after the last one that was confirmed."""
    lines = "".join(f"V\t280102030405Z\t\t{number:02X}\tunknown\t/CN=a\n" for number in range(1, 6))
    entries, _ = read(tmp_path, lines, after=3)
    assert [entry[0] for entry in entries] == [b"\x04", b"\x05"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(octets=st.binary(max_size=300) | st.text(alphabet="VRE\t 0123456789abZ,\n", max_size=200).map(str.encode))
def test_whatever_stands_in_a_file_is_an_entry_or_a_bad_line(tmp_path: Path, octets: bytes) -> None:
    """No octets make the reader fall over, and every entry is one that the database takes."""
    entries, bad = read(tmp_path, octets)
    assert all(0 < len(entry[0]) <= 128 and entry[0] == der.minimal_integer(entry[0]) for entry in entries)
    assert all(entry[1] is not None for entry in entries)
    assert all(why for why in bad.values())
