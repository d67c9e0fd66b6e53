"""Rows in the binary format of PostgreSQL's COPY, for the bulk imports of `lakthan.store.bulk`.

The format (PostgreSQL's documentation of COPY, "Binary Format"): a row is the number of its fields in two octets, then
for each field its length in four octets and its content; a length of -1 is null. All numbers are big endian; an instant
is the microseconds since 2000.

`crl_row` and the `*_field` functions are for a reader that puts the fields of a million entries of a CRL together
itself. They refuse to know where the values come from.
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
TRAILER = b"\xff\xff"
NULL = b"\xff\xff\xff\xff"

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)
_INSTANT = struct.Struct(">iq")
_SMALL = struct.Struct(">ih")
_INTEGER = struct.Struct(">ii")
_SECONDS = struct.Struct(">id")
_ARRAY = struct.Struct(">iiiIii")
# The types of `crl_row`'s columns, by their numbers in every PostgreSQL (pg_type.dat).
_BYTEA, _SMALLINT, _DOUBLE = 17, 21, 701
_CRL_COLUMNS = (_BYTEA, _DOUBLE, _SMALLINT, _DOUBLE)

# One certificate of an issued list: serial number, notAfter, SHA-256 of the certificate, and for one that is revoked
# the time, the reason (6: held) and the invalidity date. Without a revocation time it is good.
IssuedEntry = tuple[bytes, datetime | None, bytes | None, datetime | None, int | None, datetime | None]


def microseconds(instant: datetime) -> int:
    """The instant as the database counts it: microseconds since 2000."""
    return (instant - _EPOCH) // _MICROSECOND


def octets_field(content: bytes | None) -> bytes:
    """A bytea."""
    return NULL if content is None else len(content).to_bytes(4, "big") + content


def instant_field(instant: datetime | None) -> bytes:
    """A timestamptz."""
    return NULL if instant is None else _INSTANT.pack(8, microseconds(instant))


def small_field(number: int | None) -> bytes:
    """A smallint."""
    return NULL if number is None else _SMALL.pack(2, number)


def seconds_field(instant: datetime | None) -> bytes:
    """A double precision: whole seconds since 1970, exact for every instant that there is."""
    return NULL if instant is None else _SECONDS.pack(8, (instant - _UNIX_EPOCH) // _SECOND)


def seconds_fields(instants: Sequence[int]) -> bytes:
    """The fields of many instants, given in seconds since 1970."""
    content = struct.pack(f">{len(instants)}d", *instants)
    fields = bytearray(_SECONDS.pack(8, 0)) * len(instants)
    for octet in range(8):  # the first octet of each, the second of each: much faster than one field after the other
        fields[4 + octet :: 12] = content[octet::8]
    return bytes(fields)


def crl_row(authority_id: int, entries: int, columns: Sequence[bytes | None]) -> bytes:
    """Some entries of a CRL as one row: the authority, and then by columns what belongs to each entry: its serial
    number (`octets_field`), revocation time (`seconds_field`), reason (`small_field`) and invalidity date
    (`seconds_field`). A column is the fields of all entries; that of the invalidity dates is None when there are none.
    """
    arrays = (_array(*column, entries) for column in zip(_CRL_COLUMNS, columns, strict=True))
    return b"".join((b"\x00\x05", _INTEGER.pack(4, authority_id), *chain.from_iterable(arrays)))


def _array(element_type: int, fields: bytes | None, entries: int) -> tuple[bytes, ...]:
    # One dimension: the length of all, the dimensions, whether there are nulls (which nobody reads), the type of the
    # elements, how many there are, and the number of the first one.
    if fields is None:
        return (NULL,)
    return _ARRAY.pack(_ARRAY.size - 4 + len(fields), 1, 1, element_type, entries, 1), fields


def issued_rows(authority_id: int, entries: Sequence[IssuedEntry]) -> bytes:
    """The rows of an issued list: the authority, then the fields of the tuple in their order."""
    start = b"\x00\x07" + _INTEGER.pack(4, authority_id)
    instant, octets, small = instant_field, octets_field, small_field
    return b"".join(
        [
            start + octets(serial) + instant(end) + octets(sha256) + instant(time) + small(reason) + instant(invalid)
            for serial, end, sha256, time, reason, invalid in entries
        ]
    )
