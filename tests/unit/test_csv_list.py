"""Issued lists as CSV: headings, delimiters, serial numbers, states, and what is said of lines that do not do."""

from __future__ import annotations

import tracemalloc
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lakthan import der
from lakthan.errors import ConfigError
from lakthan.store.records import CRLReason
from lakthan_registry.csv_list import CSVList, CSVOptions
from lakthan_registry.issued_list import Entry

NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
END = datetime(2028, 1, 2, 3, 4, 5, tzinfo=UTC)
SINCE = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
HEXADECIMAL = CSVOptions(decimal=False, now=NOW, headings={})


def read(
    folder: Path, text: str | bytes, options: CSVOptions = HEXADECIMAL, after: int = 0
) -> tuple[list[Entry], dict[int, str]]:
    """The entries, and the bad lines by their number."""
    path = folder / "issued.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    bad: dict[int, str] = {}
    return list(CSVList(path, options).read(bad.__setitem__, after)), bad


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("prefix", ["", "\ufeff"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_the_delimiter_is_found_and_a_byte_order_mark_is_no_part_of_a_heading(
    tmp_path: Path, delimiter: str, prefix: str, line_end: str
) -> None:
    """What spreadsheets and databases write is read without an option."""
    rows = [
        ["Serial Number", "note", "not-after", "status", "revocation_time", "reason"],
        ["3FA2", "ໝາຍເຫດ", "2028-01-02T03:04:05Z", "revoked", "2026-01-02T10:04:05+07:00", "superseded"],
        ['"0a"', '"a, b; c"', "2028-01-02 03:04:05+00:00", "good", "", ""],
    ]
    text = prefix + "".join(delimiter.join(row) + line_end for row in rows)
    assert read(tmp_path, text) == (
        [
            (b"\x3f\xa2", END, None, SINCE, CRLReason.SUPERSEDED, None),
            (b"\x0a", END, None, None, None, None),
        ],
        {},
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(serials=st.lists(st.integers(-(2**159), 2**159), min_size=1, max_size=20), decimal=st.booleans())
def test_serial_numbers_are_those_of_the_store(tmp_path: Path, serials: list[int], decimal: bool) -> None:  # noqa: FBT001
    """Hexadecimal or decimal, of any size and sign: the content of the minimal DER INTEGER."""
    written = [str(serial) if decimal else f"{serial:x}" for serial in serials]
    options = CSVOptions(decimal=decimal, now=NOW, headings={})
    entries, bad = read(tmp_path, "serial_number\n" + "".join(f"{each}\n" for each in written), options)
    assert [entry[0] for entry in entries] == [der.integer_content(serial) for serial in serials]
    assert not bad


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        (",,,", (None, None, None)),
        ("valid,,,", (None, None, None)),
        ("Expired,,,", (None, None, None)),
        (",2026-01-02T03:04:05Z,,", (SINCE, None, None)),
        ("R,260102030405Z,1,", (SINCE, CRLReason.KEY_COMPROMISE, None)),
        ("revoked,20260102030405Z,KeyCompromise,2026-01-02T03:04:05.9Z", (SINCE, CRLReason.KEY_COMPROMISE, SINCE)),
        ("hold,2026-01-02T03:04:05Z,,", (SINCE, CRLReason.CERTIFICATE_HOLD, None)),
        ("held,2026-01-02T03:04:05Z,certificateHold,", (SINCE, CRLReason.CERTIFICATE_HOLD, None)),
        ("revoked,2026-01-02T03:04:05Z,6,", (SINCE, CRLReason.CERTIFICATE_HOLD, None)),
    ],
)
def test_states_are_understood(tmp_path: Path, fields: str, state: tuple[object, ...]) -> None:
    """The words that CAs use, reasons by name and number, times of every kind; fractions of a second are dropped."""
    entries, bad = read(tmp_path, f"serial_number,status,revocation_time,reason,invalidity_date\n01,{fields}\n")
    assert (entries, bad) == ([(b"\x01", None, None, *state)], {})


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("xyz,,,,", "no serial number in hexadecimal"),
        ("7" * 100 + "g,,,,", "no serial number in hexadecimal"),  # once tried in 2^100 ways
        (",,,,", "no serial number in hexadecimal"),
        ("01", "fewer than the headings name"),
        ("01,,good,2026-01-02T03:04:05Z,", "good, and yet"),
        ("01,,revoked,,", "revocation_time is missing"),
        ("01,,gone,,", "none of good, revoked and held"),
        ("01,tomorrow,,,", "is no time"),
        ("01,2028-01-02T03:04:05,,,", "does not say its time zone"),
        ("01,2028-02-30T03:04:05Z,,,", "is no time"),
        ("01,0001-01-01T00:00:00+07:00,,,", "is no time"),
        ("01,,revoked,2026-11-22T12:00:01Z,", "lies in the future"),
        ("01,,revoked,2026-01-02T03:04:05Z,7", "no CRLReason"),
        ("01,,revoked,2026-01-02T03:04:05Z,8", "no certificate's state"),
        ("01,,held,2026-01-02T03:04:05Z,1", "held, and yet"),
        ('01,"x"y,,,', "not CSV"),
    ],
)
def test_a_bad_line_is_named_with_its_number(tmp_path: Path, line: str, why: str) -> None:
    """The lines around it are read all the same; the sentence says what is wrong with it."""
    text = f"serial_number,not_after,status,revocation_time,reason\n01,,,,\n{line}\n02,,,,\n"
    entries, bad = read(tmp_path, text)
    assert [entry[0] for entry in entries] == [b"\x01", b"\x02"]
    assert list(bad) == [3]
    assert why in bad[3]


def test_a_serial_number_in_hexadecimal_is_no_decimal_one(tmp_path: Path) -> None:
    """With decimal serial numbers, letters are a mistake; and the reader never guesses."""
    _, bad = read(tmp_path, "serial_number\n10\n1F\n", CSVOptions(decimal=True, now=NOW, headings={}))
    assert "are these hexadecimal?" in bad[3]


def test_times_without_a_zone_are_those_of_the_zone_that_is_named(tmp_path: Path) -> None:
    """Vientiane's noon is five in the morning, UTC; a day alone begins at midnight there."""
    options = CSVOptions(decimal=False, now=NOW, headings={}, time_zone=ZoneInfo("Asia/Vientiane"))
    entries, bad = read(tmp_path, "serial_number,not_after\n01,2028-01-02 12:00:00\n02,2028-01-02\n", options)
    assert not bad
    assert [entry[1] for entry in entries] == [
        datetime(2028, 1, 2, 5, tzinfo=UTC),
        datetime(2028, 1, 1, 17, tzinfo=UTC),
    ]


def test_columns_can_have_other_headings(tmp_path: Path) -> None:
    """A CA's own export is read as it is, when somebody says what its columns are called."""
    options = CSVOptions(decimal=False, now=NOW, headings={"serial_number": "SerNo", "sha256": "Fingerprint"})
    digest = bytes(range(32))
    entries, bad = read(tmp_path, f"Fingerprint,SerNo\n{digest.hex(':').upper()},0x3f:a2\n", options)
    assert (entries, bad) == ([(b"\x3f\xa2", None, digest, None, None, None)], {})


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "01,2028-01-02T03:04:05Z\n"])
def test_a_file_without_the_column_of_serial_numbers_is_refused(tmp_path: Path, text: str) -> None:
    """Nothing is read by the position of a column; the message says what was found and what to do."""
    with pytest.raises(ConfigError, match="there is no column 'serial_number'"):
        read(tmp_path, text)


def test_every_kind_of_line_end_will_do(tmp_path: Path) -> None:
    """Those of Unix, of Windows and of old Macs."""
    for end in ("\n", "\r\n", "\r"):
        assert read(tmp_path, end.join(("serial_number,note", "01,a", "02,b", ""))) == (
            [(b"\x01", None, None, None, None, None), (b"\x02", None, None, None, None, None)],
            {},
        )


def test_a_heading_that_does_not_end_is_refused(tmp_path: Path) -> None:
    """A quote that is left open is said in words."""
    with pytest.raises(ConfigError, match="no line of headings"):
        read(tmp_path, 'serial_number,"note\n01,a\n')


def test_utf_16_is_refused_with_the_way_out(tmp_path: Path) -> None:
    """Windows' tools write it; the message names the tool that converts it."""
    with pytest.raises(ConfigError, match="iconv"):
        read(tmp_path, "serial_number\n01\n".encode("utf-16"))


def test_reading_goes_on_behind_a_position(tmp_path: Path) -> None:
    """A position is a line of the file, also where a field holds line ends."""
    text = 'serial_number,note\n01,"a\nb"\n02,\n03,\n'
    path = tmp_path / "issued.csv"
    path.write_text(text)
    source = CSVList(path, HEXADECIMAL)
    entries = source.read(lambda line, why: pytest.fail(f"{line}: {why}"))
    assert next(entries)[0] == b"\x01"
    assert source.position == 3
    rest, _ = read(tmp_path, text, after=3)
    assert [entry[0] for entry in rest] == [b"\x02", b"\x03"]


def test_a_long_list_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    """Reading 200,000 lines of 60 octets takes less than a quarter of their size."""
    path = tmp_path / "issued.csv"
    path.write_text("serial_number,not_after\n" + "".join(f"{at:032x},2028-01-02T03:04:05Z\n" for at in range(200_000)))
    source = CSVList(path, HEXADECIMAL)
    tracemalloc.start()
    try:
        count = sum(1 for _ in source.read(lambda line, why: pytest.fail(f"{line}: {why}")))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 200_000
    assert peak < path.stat().st_size / 4


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rest=st.binary(max_size=300), delimiter=st.sampled_from(",;\t|"))
def test_whatever_stands_in_a_file_is_an_entry_or_a_bad_line(tmp_path: Path, rest: bytes, delimiter: str) -> None:
    """No octets make the reader fall over, and every entry is one that the database takes."""
    heading = delimiter.join(["serial_number", "not_after", "status", "revocation_time", "reason", "sha256"])
    entries, bad = read(tmp_path, heading.encode() + b"\n" + rest)
    assert all(0 < len(entry[0]) <= 128 and entry[0] == der.minimal_integer(entry[0]) for entry in entries)
    assert all(why for why in bad.values())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=st.lists(st.text(alphabet='0123456789abcdefTZ:+-. ,"RVx', max_size=25), min_size=6, max_size=6))
def test_lines_that_look_nearly_right_are_read_or_named(tmp_path: Path, fields: list[str]) -> None:
    """Near misses in every field: one line, one entry or one bad line, never both and never neither."""
    heading = "serial_number;not_after;status;revocation_time;reason;sha256\n"
    line = ";".join(field.replace('"', "") for field in fields)
    entries, bad = read(tmp_path, heading + line + "\n")
    assert len(entries) + len(bad) == 1
