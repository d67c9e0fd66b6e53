"""Rows in the binary format of PostgreSQL's COPY, for the bulk imports of `lakthan.store.bulk`.

The format (PostgreSQL's documentation of COPY, "Binary Format"): a row is the number of its fields in two octets, then
for each field its length in four octets and its content; a length of -1 is null. All numbers are big endian; an instant
is the microseconds since 2000.

`crl_entry_start` and the `*_field` functions are the parts of a row of a CRL, for a reader that puts a million of them
together itself. They refuse to know where the values come from.
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
TRAILER = b"\xff\xff"
NULL = b"\xff\xff\xff\xff"

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_INSTANT = struct.Struct(">iq")
_SMALL = struct.Struct(">ih")
_INTEGER = struct.Struct(">ii")

# One certificate of an issued list: serial number, notAfter, SHA-256 of the certificate, and for one that is revoked
# the time, the reason (6: held) and the invalidity date. Without a revocation time it is good.
IssuedEntry = tuple[bytes, datetime | None, bytes | None, datetime | None, int | None, datetime | None]


def microseconds(instant: datetime) -> int:
    """The instant as the database counts it: microseconds since 2000."""
    return (instant - _EPOCH) // _MICROSECOND


def octets_field(content: bytes | None) -> bytes:
    """A bytea."""
    return NULL if content is None else len(content).to_bytes(4, "big") + content


# The field of an instant that is given in microseconds since 2000; a timestamptz.
pack_instant = _INSTANT.pack


def instant_field(instant: datetime | None) -> bytes:
    """A timestamptz."""
    return NULL if instant is None else _INSTANT.pack(8, microseconds(instant))


def small_field(number: int | None) -> bytes:
    """A smallint."""
    return NULL if number is None else _SMALL.pack(2, number)


def crl_entry_start(authority_id: int) -> bytes:
    """How a row of a CRL's entry begins: five fields, of which the first is the authority.

    There follow the serial number (`octets_field`), the revocation time (`instant_field`), the reason (`small_field`)
    and the invalidity date (`instant_field`).
    """
    return b"\x00\x05" + _INTEGER.pack(4, authority_id)


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
