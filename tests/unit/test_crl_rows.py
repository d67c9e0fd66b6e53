"""A million entries are read fast, and never otherwise than the strict reader reads them."""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta
from itertools import zip_longest

import pytest
from cryptography import x509
from hypothesis import example, given
from hypothesis import strategies as st

from lakthan import der
from lakthan.errors import LakthanError
from lakthan_registry.crl_rows import crl_rows
from lakthan_registry.crl_syntax import CRL, CRLSyntaxError, Entry, UnknownCriticalExtension, read_crl
from support.crl import Listed, entry, extension, new_crl, reason_extension
from support.pki import new_ca

CA = new_ca("Rows")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INVALIDITY = extension("2.5.29.24", der.generalized_time(datetime(2024, 2, 29, 23, 59, 59, tzinfo=UTC)))


def _rows(crl: CRL) -> list[Entry]:
    """The entries of the rows, taken apart by a reader of COPY's format that is written for this test."""
    found = []
    for chunk in crl_rows(crl, 7, lambda _name: 8):
        fields = _fields(chunk.row, 2)
        assert chunk.row[:2] == b"\0\5"
        assert len(fields) == 5
        assert fields[0] in (b"\0\0\0\7", b"\0\0\0\10")
        columns = [_elements(field, of_type) for field, of_type in zip(fields[1:], (17, 701, 21, 701), strict=True)]
        entries = list(zip_longest(*columns))
        assert len(entries) == chunk.entries
        for serial, revoked, reason, invalid in entries:
            assert serial is not None
            assert revoked is not None
            found.append(
                Entry(
                    serial,
                    _instant(revoked),
                    None if reason is None else int.from_bytes(reason, "big", signed=True),
                    None if invalid is None else _instant(invalid),
                )
            )
    return found


def _fields(data: bytes, at: int) -> list[bytes | None]:
    values: list[bytes | None] = []
    while at < len(data):
        [length] = struct.unpack_from(">i", data, at)
        at += 4
        values.append(None if length < 0 else data[at : at + length])
        at += max(length, 0)
    assert at == len(data)
    return values


def _elements(array: bytes | None, of_type: int) -> list[bytes | None]:
    """Of an array as array_recv() reads it: dimensions, flags, type; of the only dimension length and begin."""
    if array is None:
        return []
    dimensions, _, element_type, length, first = struct.unpack_from(">iiIii", array)
    assert (dimensions, element_type, first) == (1, of_type, 1)
    elements = _fields(array, 20)
    assert len(elements) == length
    return elements


def _instant(field: bytes) -> datetime:
    [seconds] = struct.unpack(">d", field)
    return _EPOCH + timedelta(seconds=seconds)


def _strict(crl: CRL) -> list[Entry]:
    found = []
    for each in crl.entries():
        if each.reason == 8 and not crl.delta:
            raise CRLSyntaxError("removeFromCRL in a complete CRL")
        found.append(Entry(each.serial_number, each.revocation_date, each.reason, each.invalidity_date))
    return found


def _both(crl: CRL) -> tuple[object, object]:
    results: list[object] = []
    for read in (_rows, _strict):
        try:
            results.append(read(crl))
        except LakthanError as error:
            results.append(type(error))
    return results[0], results[1]


_SERIALS = st.binary(min_size=1, max_size=24)
_EXTENSIONS = st.lists(
    st.sampled_from(
        [
            *(reason_extension(reason) for reason in range(12)),
            reason_extension(1, critical=True),
            _INVALIDITY,
            extension("2.5.29.24", der.encode(0x18, b"20240230000000Z")),
            extension("1.2.3", b"\x05\x00"),
            extension("1.2.3", b"\x05\x00", critical=True),
        ]
    ),
    max_size=3,
)
_TIMES = st.datetimes(datetime(1950, 1, 1), datetime(2049, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001
_ENTRIES = st.builds(lambda serial, at, more: entry(serial, at=at, extensions=more), _SERIALS, _TIMES, _EXTENSIONS)


@given(st.lists(_ENTRIES, max_size=12), st.sampled_from([None, 1]))
@example([entry(b"\x01"), entry(b"\x00\x80", 1), entry(b"\x00\x7f", 1), entry(b"\xff", 3)], None)
@example([entry(bytes((1,) * 20), 5), entry(bytes((1,) * 21), 5), entry(b"\x0a\x0d", 8)], 1)
def test_rows_are_what_the_strict_reader_reads(entries: list[bytes], base: int | None) -> None:
    """Whatever the entries are, usual ones and odd ones mixed: the same rows in the same order, or the same refusal."""
    rows, strict = _both(read_crl(new_crl(CA, Listed(entries, number=2, base=base))))
    assert rows == strict


@given(
    st.lists(_ENTRIES, min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=3),
)
def test_nothing_that_the_strict_reader_refuses_gets_through(
    entries: list[bytes], changes: list[tuple[int, int]]
) -> None:
    """Some octets of the entries are replaced: still the same rows, or both refuse. A byte out of place in the middle
    of a usual entry (its length, a digit of the time, the tag) is never read over.
    """
    whole = bytearray(b"".join(entries))
    for place, value in changes:
        whole[place % len(whole)] = value
    rows, strict = _both(read_crl(new_crl(CA, Listed([bytes(whole)]))))
    if isinstance(strict, type):
        assert isinstance(rows, type)
    else:
        assert rows == strict


def test_a_long_crl_is_read_in_parts() -> None:
    """Ten thousand entries come in several parts whose octets only grow, and pyca/cryptography counts the same ones."""
    entries = [entry(der.integer_content(number * 977), (None, 1, 4, 6)[number % 4]) for number in range(1, 10_001)]
    data = new_crl(CA, Listed(entries))
    crl = read_crl(data)
    chunks = list(crl_rows(crl, 7, lambda _name: 8))
    assert sum(chunk.entries for chunk in chunks) == 10_000
    assert len(chunks) > 2
    assert [chunk.octets for chunk in chunks] == sorted({chunk.octets for chunk in chunks})
    assert chunks[-1].octets == crl.entries_span[1] - crl.entries_span[0]
    judge = {each.serial_number: each.revocation_date_utc for each in x509.load_der_x509_crl(data)}
    assert {int.from_bytes(each.serial_number, "big"): each.revocation_date for each in _rows(crl)} == judge


def test_a_certificate_issuer_holds_until_the_next_one() -> None:
    """In an indirect CRL the entries after a certificateIssuer are of that issuer; in another CRL it is refused."""
    name = der.sequence()
    issuer = extension("2.5.29.29", der.sequence(der.encode(0xA4, name)), critical=True)
    entries = [entry(b"\x01", 1), entry(b"\x02", extensions=[issuer]), entry(b"\x03", 1)]
    indirect = read_crl(new_crl(CA, Listed(entries, scope=der.sequence(der.encode(0x84, b"\xff")))))
    asked: list[bytes] = []

    def authority_of(found: bytes) -> int:
        asked.append(found)
        return 8

    chunks = [(_fields(chunk.row, 2)[0], chunk.entries) for chunk in crl_rows(indirect, 7, authority_of)]
    listed = {authority: sum(entries for of, entries in chunks if of == authority) for authority, _ in chunks}
    assert listed == {b"\0\0\0\7": 1, b"\0\0\0\10": 2}
    assert asked == [name]
    with pytest.raises(CRLSyntaxError, match="no indirect CRL"):
        list(crl_rows(read_crl(new_crl(CA, Listed(entries))), 7, authority_of))


def test_remove_from_crl_belongs_into_a_delta_crl() -> None:
    """A complete CRL with an entry that is to be removed contradicts itself (RFC 5280 §5.3.1)."""
    with pytest.raises(CRLSyntaxError, match="only a delta CRL"):
        list(crl_rows(read_crl(new_crl(CA, Listed([entry(b"\x01", 8)]))), 7, lambda _name: 8))
    delta = read_crl(new_crl(CA, Listed([entry(b"\x01", 8)], number=2, base=1)))
    assert [each.reason for each in _rows(delta)] == [8]


def test_an_unknown_critical_extension_of_an_entry_refuses_the_crl() -> None:
    """The whole CRL must not be used then (RFC 5280 §5.3), wherever the entry stands."""
    odd = entry(b"\x05", extensions=[extension("1.2.3.4", b"\x05\x00", critical=True)])
    with pytest.raises(UnknownCriticalExtension, match=r"1\.2\.3\.4"):
        list(crl_rows(read_crl(new_crl(CA, Listed([entry(b"\x01"), odd]))), 7, lambda _name: 8))
