"""The entries of a CRL as rows for the store, a million of them in seconds.

Nearly every entry of nearly every CRL has one of a few shapes: serial number, UTCTime, perhaps a reason, perhaps an
invalidity date. A compiled expression finds runs of such entries, each touching the next; whatever it does not match is
read by the strict reader of `crl_syntax`, one entry at a time. Promise: the rows are those that the strict reader alone
gives, and what it refuses is refused; memory is bounded by the chunk, not by the CRL.

It refuses to know what becomes of the rows; their fields are those of `lakthan.store.copy_rows`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from operator import add, itemgetter, ne
from typing import TYPE_CHECKING

from lakthan.store.copy_rows import NULL, crl_row, octets_field, seconds_field, seconds_fields, small_field
from lakthan_registry.crl_syntax import (
    CRL,
    NO_EXTENSIONS,
    REMOVE_FROM_CRL,
    CRLSyntaxError,
    Entry,
    EntryExtensions,
    read_entry,
    read_entry_extensions,
    utc_time,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ENTRIES_IN_A_CHUNK = 512  # what a chunk is made of fits into the processor's cache
_EXTENSIONS_KEPT = 4096
_SIXTEEN_MORE = bytes((number + 16) % 256 for number in range(256))

# The length octet and the content of a serial number of at most 20 octets (RFC 5280 §4.1.2.2), minimally encoded. The
# usual lengths come first.
_SERIAL_NUMBER = b"|".join(
    re.escape(bytes((length,))) + (rb"(?!\x00[\x00-\x7f]|\xff[\x80-\xff])" if length > 1 else b"") + b".{%d}" % length
    for length in (16, 17, 20, 8, 9, 19, 18, 15, *range(10, 15), *range(1, 8))
)
_REASON = rb"\x30\x0a\x06\x03\x55\x1d\x15\x04\x03\x0a\x01[\x00-\x06\x08-\x0a]"
_INVALIDITY_DATE = rb"\x30\x18\x06\x03\x55\x1d\x18\x04\x11\x18\x0f[0-9]{14}Z"
_EXTENSIONS = rb"\x30(?:\x0c" + _REASON + rb"|\x1a" + _INVALIDITY_DATE + rb"|\x26" + _REASON + _INVALIDITY_DATE + rb")"


def _expression(group: bytes) -> bytes:
    # An entry, with its parts in groups that begin so.
    return b"".join(
        (
            rb"\x30" + group + rb".)\x02",
            group + _SERIAL_NUMBER + rb")\x17\x0d",
            group + rb"[0-9]{6})",
            group + rb"[0-9]{4})",
            group + rb"[0-9]{2})Z",
            group + _EXTENSIONS + rb")?",
        )
    )


_ENTRY = re.compile(_expression(b"("), re.DOTALL)
# Possessive: what was matched is not given back, so a run needs no memory for the way back.
_RUN = re.compile(b"(?:%s){1,%d}+" % (_expression(b"(?:"), _ENTRIES_IN_A_CHUNK), re.DOTALL)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some entries, as one row of `crl_row`. `octets`: how far into the CRL's entries the reading is."""

    octets: int
    entries: int
    row: bytes


def crl_rows(crl: CRL, authority_id: int, authority_of: Callable[[bytes], int]) -> Iterator[Chunk]:
    """The entries as rows. `authority_id`: of the CRL's issuer; `authority_of` finds that of a certificateIssuer, by
    the DER of its Name, and may raise.

    Raises `CRLSyntaxError`, `UnknownCriticalExtension`, and what `authority_of` raises.
    """
    data = crl.data
    at, end = first, _ = crl.entries_span
    days, minutes, said = _Days(), _Minutes(), _Said(removes=crl.delta)
    by_hand: list[Entry] = []
    while at < end:
        run = _RUN.match(data, at, end)
        found = None if run is None else _whole(_ENTRY.findall(data, at, run.end()))
        if found is not None:
            if by_hand:
                yield _by_hand(authority_id, by_hand, at - first)
                by_hand = []
            try:
                row = _row_of(authority_id, found, days, minutes, said)
            except ValueError as error:
                raise CRLSyntaxError(f"this is not a well-formed CRL: {error}, after offset {at}") from error
            at += sum(found[0]) + 2 * len(found[0])
            yield Chunk(at - first, len(found[0]), row)
            continue
        reader = crl.reader(at)
        entry = read_entry(reader)
        if entry.certificate_issuer is not None:
            if not crl.indirect:
                raise CRLSyntaxError("an entry names a certificateIssuer, but this is no indirect CRL")
            if by_hand:
                yield _by_hand(authority_id, by_hand, at - first)
                by_hand = []
            authority_id = authority_of(entry.certificate_issuer)
        _check_reason(entry.reason, removes=crl.delta)
        by_hand.append(entry)
        at = reader.at
        if len(by_hand) == _ENTRIES_IN_A_CHUNK:
            yield _by_hand(authority_id, by_hand, at - first)
            by_hand = []
    if by_hand:
        yield _by_hand(authority_id, by_hand, at - first)


# Of each entry: the length octet; of the serial number the length octet and the content; YYMMDD, HHMM and SS; the
# crlEntryExtensions.
_Found = tuple[bytes, bytes, bytes, bytes, bytes, bytes]
# The same by columns, the length octets together.
_Columns = tuple[bytes, tuple[bytes, ...], tuple[bytes, ...], tuple[bytes, ...], tuple[bytes, ...], tuple[bytes, ...]]


def _whole(found: list[_Found]) -> _Columns | None:
    # The length of an entry is beyond the expression; 16 octets stand beside the parts that vary. An entry that is
    # longer has extensions of another shape: there the strict reader takes over. None: it is the first one.
    lengths, serial_numbers, dates, minutes, seconds, extensions = zip(*found, strict=True)
    given = b"".join(lengths)
    wanted = bytes(map(add, map(len, serial_numbers), map(len, extensions))).translate(_SIXTEEN_MORE)
    if given == wanted:
        return given, serial_numbers, dates, minutes, seconds, extensions
    good = next(at for at, odd in enumerate(map(ne, given, wanted)) if odd)
    return _whole(found[:good]) if good else None


def _row_of(authority_id: int, found: _Columns, days: _Days, minutes_of: _Minutes, said: _Said) -> bytes:
    # Column by column, in loops that are not Python's. With three zero octets in front the length octet of a serial
    # number is the length of the field.
    lengths, serial_numbers, dates, minutes, seconds, extensions = found
    instants = map(
        add,
        map(add, map(days.__getitem__, dates), map(minutes_of.__getitem__, minutes)),
        map(_SECONDS.__getitem__, seconds),
    )
    ends = list(map(said.__getitem__, extensions))
    dated = any(date is not NULL for _, date in set(ends))
    columns = (
        b"\x00\x00\x00".join((b"", *serial_numbers)),
        seconds_fields(tuple(instants)),
        b"".join(map(itemgetter(0), ends)),
        b"".join(map(itemgetter(1), ends)) if dated else None,
    )
    return crl_row(authority_id, len(lengths), columns)


def _by_hand(authority_id: int, entries: list[Entry], octets: int) -> Chunk:
    columns = (
        b"".join([octets_field(entry.serial_number) for entry in entries]),
        b"".join([seconds_field(entry.revocation_date) for entry in entries]),
        b"".join([small_field(entry.reason) for entry in entries]),
        b"".join([seconds_field(entry.invalidity_date) for entry in entries]),
    )
    return Chunk(octets, len(entries), crl_row(authority_id, len(entries), columns))


def _check_reason(reason: int | None, *, removes: bool) -> None:
    if reason == REMOVE_FROM_CRL and not removes:  # RFC 5280 §5.3.1
        raise CRLSyntaxError("an entry has the reason removeFromCRL, which only a delta CRL may have")


class _Days(dict[bytes, int]):
    """YYMMDD → its midnight, in seconds since 1970."""

    def __missing__(self, day: bytes) -> int:
        found = self[day] = round(utc_time(day + b"000000").timestamp())
        return found


class _Minutes(dict[bytes, int]):
    """HHMM → seconds since midnight. Not HHMMSS: so many would not fit into the processor's cache."""

    def __missing__(self, time: bytes) -> int:
        hour, minute = int(time[:2]), int(time[2:])
        if hour > 23 or minute > 59:
            raise ValueError(f"{time.decode()} is no time of day")
        found = self[time] = (hour * 60 + minute) * 60
        return found


class _Seconds(dict[bytes, int]):
    """SS → how many these are."""

    def __missing__(self, second: bytes) -> int:
        raise ValueError(f"{second.decode()} is no second of a minute")


_SECONDS = _Seconds((b"%02d" % second, second) for second in range(60))


class _Said(dict[bytes, tuple[bytes, bytes]]):
    """crlEntryExtensions → the fields of the reason and of the invalidity date."""

    def __init__(self, *, removes: bool) -> None:
        super().__init__()
        self._removes = removes

    def __missing__(self, encoded: bytes) -> tuple[bytes, bytes]:
        if len(self) > _EXTENSIONS_KEPT:  # each invalidity date makes one
            self.clear()
        extensions: EntryExtensions = read_entry_extensions(encoded) if encoded else NO_EXTENSIONS
        _check_reason(extensions.reason, removes=self._removes)
        said = self[encoded] = small_field(extensions.reason), seconds_field(extensions.invalidity_date)
        return said
