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
from itertools import chain, repeat
from operator import add, ne
from typing import TYPE_CHECKING

from lakthan.store.copy_rows import (
    crl_entry_start,
    instant_field,
    microseconds,
    octets_field,
    pack_instant,
    small_field,
)
from lakthan_registry.crl_syntax import (
    CRL,
    NO_EXTENSIONS,
    REMOVE_FROM_CRL,
    CRLSyntaxError,
    EntryExtensions,
    read_entry,
    read_entry_extensions,
    utc_time,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ENTRIES_IN_A_CHUNK = 512  # what a chunk is made of fits into the processor's cache
_TAILS_KEPT = 4096
_MICROSECONDS = 1_000_000

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
            group + rb"[0-9]{6})Z",
            group + _EXTENSIONS + rb")?",
        )
    )


_ENTRY = re.compile(_expression(b"("), re.DOTALL)
# Possessive: what was matched is not given back, so a run needs no memory for the way back.
_RUN = re.compile(b"(?:%s){1,%d}+" % (_expression(b"(?:"), _ENTRIES_IN_A_CHUNK), re.DOTALL)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows. `octets`: how far into the CRL's entries the reading is; `entries`: how many rows these are."""

    octets: int
    entries: int
    rows: bytes


def crl_rows(crl: CRL, authority_id: int, authority_of: Callable[[bytes], int]) -> Iterator[Chunk]:
    """The entries as rows. `authority_id`: of the CRL's issuer; `authority_of` finds that of a certificateIssuer, by
    the DER of its Name, and may raise.

    Raises `CRLSyntaxError`, `UnknownCriticalExtension`, and what `authority_of` raises.
    """
    data = crl.data
    at, end = first, _ = crl.entries_span
    start = crl_entry_start(authority_id)
    days, seconds, tails = _Days(), _Seconds(), _Tails(removes=crl.delta)
    by_hand: list[bytes] = []
    while at < end:
        run = _RUN.match(data, at, end)
        found = [] if run is None else _whole(_ENTRY.findall(data, at, run.end()))
        if found:
            if by_hand:
                yield Chunk(at - first, len(by_hand), b"".join(by_hand))
                by_hand = []
            try:
                rows = _rows_of(found, start + bytes(3), days, seconds, tails)
            except ValueError as error:
                raise CRLSyntaxError(f"this is not a well-formed CRL: {error}, after offset {at}") from error
            at += sum(2 + entry[0][0] for entry in found)
            yield Chunk(at - first, len(found), rows)
            continue
        reader = crl.reader(at)
        entry = read_entry(reader)
        if entry.certificate_issuer is not None:
            if not crl.indirect:
                raise CRLSyntaxError("an entry names a certificateIssuer, but this is no indirect CRL")
            start = crl_entry_start(authority_of(entry.certificate_issuer))
        _check_reason(entry.reason, removes=crl.delta)
        by_hand.append(
            start
            + octets_field(entry.serial_number)
            + instant_field(entry.revocation_date)
            + small_field(entry.reason)
            + instant_field(entry.invalidity_date)
        )
        at = reader.at
        if len(by_hand) == _ENTRIES_IN_A_CHUNK:
            yield Chunk(at - first, len(by_hand), b"".join(by_hand))
            by_hand = []
    if by_hand:
        yield Chunk(at - first, len(by_hand), b"".join(by_hand))


# The length octet of an entry; of its serial number the length octet and the content; YYMMDD and HHMMSS; its
# crlEntryExtensions.
_Found = tuple[bytes, bytes, bytes, bytes, bytes]


def _whole(found: list[_Found]) -> list[_Found]:
    # The length of an entry is beyond the expression; 16 octets stand beside the parts that vary. An entry that is
    # longer has extensions of another shape: there the strict reader takes over.
    lengths, serial_numbers, _, _, extensions = zip(*found, strict=True)
    wanted = bytes(map((16).__add__, map(add, map(len, serial_numbers), map(len, extensions))))
    given = b"".join(lengths)
    return found if given == wanted else found[: next(at for at, odd in enumerate(map(ne, given, wanted)) if odd)]


def _rows_of(found: list[_Found], start: bytes, days: _Days, seconds: _Seconds, tails: _Tails) -> bytes:
    # `start` ends with three zero octets: with the length octet in front of the serial number they are the length of
    # the field. Column by column, in loops that are not Python's.
    _, serial_numbers, dates, times, extensions = zip(*found, strict=True)
    instants = map(add, map(days.__getitem__, dates), map(seconds.__getitem__, times))
    fields = (repeat(start), serial_numbers, map(pack_instant, repeat(8), instants), map(tails.__getitem__, extensions))
    return b"".join(chain.from_iterable(zip(*fields, strict=False)))


def _check_reason(reason: int | None, *, removes: bool) -> None:
    if reason == REMOVE_FROM_CRL and not removes:  # RFC 5280 §5.3.1
        raise CRLSyntaxError("an entry has the reason removeFromCRL, which only a delta CRL may have")


class _Days(dict[bytes, int]):
    """YYMMDD → its midnight, in microseconds since 2000."""

    def __missing__(self, day: bytes) -> int:
        found = self[day] = microseconds(utc_time(day + b"000000"))
        return found


class _Seconds(dict[bytes, int]):
    """HHMMSS → microseconds since midnight."""

    def __missing__(self, time: bytes) -> int:
        # Nearly every second of a day comes up in a long CRL, so no datetime is made for each.
        hour, minute, second = int(time[:2]), int(time[2:4]), int(time[4:])
        if hour > 23 or minute > 59 or second > 59:
            raise ValueError(f"{time.decode()} is no time of day")
        found = self[time] = (hour * 3600 + minute * 60 + second) * _MICROSECONDS
        return found


class _Tails(dict[bytes, bytes]):
    """crlEntryExtensions → how the row ends: the reason and the invalidity date."""

    def __init__(self, *, removes: bool) -> None:
        super().__init__()
        self._removes = removes

    def __missing__(self, encoded: bytes) -> bytes:
        if len(self) > _TAILS_KEPT:  # each invalidity date makes one
            self.clear()
        extensions: EntryExtensions = read_entry_extensions(encoded) if encoded else NO_EXTENSIONS
        _check_reason(extensions.reason, removes=self._removes)
        tail = self[encoded] = small_field(extensions.reason) + instant_field(extensions.invalidity_date)
        return tail
