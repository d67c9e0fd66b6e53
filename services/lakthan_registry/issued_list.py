"""What every list of issued certificates is read into: one plain tuple a certificate, and the words for a bad line.

Readers (`index_txt`, `csv_list`, `certificate_folder`) stream: they give entry after entry, keep none, and hand a line
that cannot be understood to `bad` with its number, so that the whole list can be checked before anything is done.
They refuse to know what is on record: that is the store's business.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

from lakthan import der
from lakthan.store.copy_rows import IssuedEntry
from lakthan.store.records import CRLReason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import tzinfo
    from pathlib import Path

    Bad = Callable[[int, str], None]

# serial_number, not_after, certificate_sha256, revocation_time, revocation_reason, invalidity_date. A certificate
# without a revocation_time is good; certificateHold (6) is a suspension.
Entry = IssuedEntry

_HEXADECIMAL = re.compile("[0-9A-Fa-f]+").fullmatch
# Each octet can be read in one way only: with an optional separator what is no number would take for ever.
_LOOSE_HEXADECIMAL = re.compile("(-?)(?:0[xX])?([0-9A-Fa-f]+(?:[: ][0-9A-Fa-f]+)*)").fullmatch
_DECIMAL = re.compile("-?[0-9]{1,310}").fullmatch
_ASN1_TIME = re.compile("[0-9]{12}(?:[0-9]{2})?Z").fullmatch
_MOST_OCTETS = 128  # the store's bound; RFC 5280 §4.1.2.2 wants no more than 20


class IssuedList(Protocol):
    """A list that can be read more than once, each time from its beginning.

    `position`: of the last entry that was given, a line's number or a file's. `octets`: how much was read of `size`.
    """

    position: int
    octets: int
    size: int

    def read(self, bad: Bad, after: int = 0) -> Iterator[Entry]:
        """Every entry behind the position `after`. `bad` gets the position and a sentence for each that is none."""
        ...

    def sha256(self) -> bytes:
        """Of the whole content: the name under which a position in it is kept."""
        ...

    def stamp(self) -> tuple[int, ...]:
        """Another one when the content was changed meanwhile."""
        ...


def file_stamp(path: Path) -> tuple[int, ...]:
    """A file's identity, size and time of the last change."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def hexadecimal_serial(text: str) -> bytes:
    """A serial number from `3FA2`, `0x3fa2`, `3f:a2` or `-3f`. Raises `ValueError`."""
    if _HEXADECIMAL(text):
        value = int(text, 16)
    else:
        loose = _LOOSE_HEXADECIMAL(text)
        if loose is None:
            raise ValueError(f"{text[:80]!r} is no serial number in hexadecimal")
        value = int(loose[1] + loose[2].replace(":", "").replace(" ", ""), 16)
    return _within_bounds(der.integer_content(value))


def decimal_serial(text: str) -> bytes:
    """A serial number from decimal digits. Raises `ValueError`."""
    if not _DECIMAL(text):
        raise ValueError(f"{text[:80]!r} is no serial number in decimal; are these hexadecimal?")
    return _within_bounds(der.integer_content(int(text)))


def _within_bounds(content: bytes) -> bytes:
    if len(content) > _MOST_OCTETS:
        raise ValueError(f"a serial number of {len(content)} octets; {_MOST_OCTETS} are the most")
    return content


def asn1_time(text: str) -> datetime:
    """UTCTime `YYMMDDHHMMSSZ` or GeneralizedTime `YYYYMMDDHHMMSSZ` (RFC 5280 §4.1.2.5). Raises `ValueError`."""
    if not _ASN1_TIME(text):
        raise ValueError(f"{text[:80]!r} is no time: YYMMDDHHMMSSZ or YYYYMMDDHHMMSSZ is due")
    if len(text) == 13:  # two digits of the year: 50 to 99 are the 1900s
        text = ("20" if text < "5" else "19") + text
    try:
        return datetime(
            int(text[:4]), int(text[4:6]), int(text[6:8]), int(text[8:10]), int(text[10:12]), int(text[12:14]), 0, UTC
        )
    except ValueError as error:
        raise ValueError(f"{text!r} is no time: {error}") from error


def iso_time(text: str, zone: tzinfo | None) -> datetime:
    """ISO 8601, or as `asn1_time`. `zone`: of instants that name none; with None these are a `ValueError`."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        if _ASN1_TIME(text):
            return asn1_time(text)
        raise ValueError(f"{text[:80]!r} is no time: write it as 2026-11-22T10:00:00Z") from None
    if instant.tzinfo is not UTC:
        if instant.tzinfo is None:
            if zone is None:
                raise ValueError(f"{text!r} does not say its time zone: add Z or +07:00, or say --time-zone")
            instant = instant.replace(tzinfo=zone)
        try:
            instant = instant.astimezone(UTC)
        except OverflowError as error:
            raise ValueError(f"{text!r} is no time: {error}") from error
    return instant.replace(microsecond=0) if instant.microsecond else instant


_REASONS = {
    **{reason.label.lower(): reason for reason in CRLReason},
    **{str(reason.value): reason for reason in CRLReason},
}


def reason_of(text: str) -> int | None:
    """The CRLReason spelled so (upper or lower case) or of this number; None for nothing. Raises `ValueError`."""
    if not text:
        return None
    reason = _REASONS.get(text.lower())
    if reason is None:
        raise ValueError(f"{text[:80]!r} is no CRLReason of RFC 5280 §5.3.1")
    if reason is CRLReason.REMOVE_FROM_CRL:
        raise ValueError("removeFromCRL is an instruction for CRLs and no certificate's state; call it good, or held")
    return reason.value
