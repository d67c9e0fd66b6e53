"""A list of issued certificates as CSV: the columns are known by their headings, in any order.

`serial_number` must be there; `not_after`, `status`, `revocation_time`, `reason`, `invalidity_date` and `sha256` may.
Columns with other headings are passed over. The delimiter (comma, semicolon, tab, bar) is found in the heading; a byte
order mark is no part of it. Whether serial numbers are decimal or hexadecimal is never guessed: `10` is both.
"""

from __future__ import annotations

import csv
import hashlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lakthan.errors import ConfigError
from lakthan.store.records import CRLReason
from lakthan_registry.issued_list import Entry, decimal_serial, file_stamp, hexadecimal_serial, iso_time, reason_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime, tzinfo
    from pathlib import Path

    from lakthan_registry.issued_list import Bad

COLUMNS = ("serial_number", "not_after", "status", "revocation_time", "reason", "invalidity_date", "sha256")
_DELIMITERS = ",;\t|"
_GOOD, _REVOKED, _HELD = "good", "revoked", "held"
_STATUSES = {
    **dict.fromkeys(("good", "valid", "issued", "active", "expired", "v", "e"), _GOOD),
    **dict.fromkeys(("revoked", "r"), _REVOKED),
    **dict.fromkeys(("held", "hold", "onhold", "on hold", "suspended", "certificatehold"), _HELD),
}
_LONGEST_LINE = 1 << 20


@dataclass(frozen=True, slots=True)
class CSVOptions:
    """How the file is to be read. `headings`: what a column is called there, by its name in `COLUMNS`. `time_zone`: of
    times that name none. `now`: no revocation may be later.
    """

    decimal: bool
    now: datetime
    headings: Mapping[str, str]
    delimiter: str | None = None
    time_zone: tzinfo | None = None


class CSVList:
    """One such file. Raises `ConfigError` when its heading does not do."""

    def __init__(self, path: Path, options: CSVOptions) -> None:
        self._path = path
        self._options = options
        self.position = 0
        self.octets = 0
        self.size = path.stat().st_size
        with path.open("rb") as stream:
            first = stream.readline(_LONGEST_LINE)
        if first.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise ConfigError(f"{path} is UTF-16: make it UTF-8 first, `iconv -f UTF-16 -t UTF-8`")
        heading, *_ = first.decode("utf-8-sig", "replace").splitlines() or [""]
        self._delimiter = options.delimiter or max(_DELIMITERS, key=heading.count)
        try:
            headings = next(csv.reader([heading], delimiter=self._delimiter, strict=True), [])
        except csv.Error as error:
            raise ConfigError(
                f"{path}: the first line is no line of headings ({error}); quotes must end on it"
            ) from error
        self._columns = self._find_columns(headings)

    def _find_columns(self, headings: list[str]) -> dict[str, int]:
        known = {_plain(heading): at for at, heading in reversed(list(enumerate(headings)))}
        columns = {}
        for name in COLUMNS:
            wanted = self._options.headings.get(name, name)
            at = known.get(_plain(wanted))
            if at is not None:
                columns[name] = at
            elif name in self._options.headings or name == "serial_number":
                found = ", ".join(map(repr, headings)) or "nothing"
                raise ConfigError(
                    f"{self._path}: there is no column {wanted!r} in the first line (there are {found}); write a line "
                    f"of headings, or name the column with --column {name}=HEADING"
                )
        return columns

    def read(self, bad: Bad, after: int = 0) -> Iterator[Entry]:
        """See `IssuedList`; a position is a line's number, the heading being line 1."""
        columns, zone, now = self._columns, self._options.time_zone, self._options.now
        parse_serial = decimal_serial if self._options.decimal else hexadecimal_serial
        serial_at = columns["serial_number"]
        not_after_at, sha256_at = columns.get("not_after", -1), columns.get("sha256", -1)
        state_columns = [columns.get(name, -1) for name in ("status", "revocation_time", "reason", "invalidity_date")]
        stateless = max(state_columns) < 0
        with self._path.open("rb", buffering=1 << 20) as octets:
            text = io.TextIOWrapper(octets, encoding="utf-8-sig", errors="replace", newline="")
            reader = csv.reader(text, delimiter=self._delimiter, strict=True)
            self.octets = 0
            next(reader, None)
            while True:
                try:
                    for row in reader:
                        if reader.line_num <= after or not row:
                            continue
                        self.position = line = reader.line_num
                        if not line & 0xFFF:
                            self.octets = octets.tell()
                        try:
                            serial_number = parse_serial(row[serial_at].strip())
                            end = row[not_after_at].strip() if not_after_at >= 0 else ""
                            digest = row[sha256_at].strip() if sha256_at >= 0 else ""
                            yield (
                                serial_number,
                                iso_time(end, zone) if end else None,
                                _sha256(digest) if digest else None,
                                *(
                                    _NOT_REVOKED
                                    if stateless
                                    else _state([row[at].strip() if at >= 0 else "" for at in state_columns], zone, now)
                                ),
                            )
                        except IndexError:
                            bad(line, f"{len(row)} fields, fewer than the headings name")
                        except ValueError as error:
                            bad(line, str(error))
                    break
                except csv.Error as error:
                    self.position = reader.line_num
                    bad(reader.line_num, f"not CSV: {error}")
            self.octets = self.size

    def sha256(self) -> bytes:
        """See `IssuedList`."""
        with self._path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()

    def stamp(self) -> tuple[int, ...]:
        """See `IssuedList`."""
        return file_stamp(self._path)


_NOT_REVOKED = (None, None, None)


def _plain(heading: str) -> str:
    return heading.strip().lower().replace(" ", "_").replace("-", "_")


def _sha256(text: str) -> bytes:
    try:
        digest = bytes.fromhex(text.replace(":", ""))
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise ValueError(f"{text[:80]!r} is no SHA-256 in hexadecimal")
    return digest


def _state(
    fields: list[str], zone: tzinfo | None, now: datetime
) -> tuple[datetime | None, int | None, datetime | None]:
    """revocation_time, reason and invalidity_date from the fields status, revocation_time, reason, invalidity_date."""
    status, time, reason, invalidity = fields
    if status:
        state = _STATUSES.get(status.lower())
        if state is None:
            raise ValueError(f"the status {status[:80]!r} is none of good, revoked and held")
    else:
        state = _REVOKED if time else _GOOD
    if state is _GOOD:
        if time or reason or invalidity:
            raise ValueError("good, and yet with a revocation_time, a reason or an invalidity_date")
        return _NOT_REVOKED
    if not time:
        raise ValueError(f"{state}, but its revocation_time is missing")
    revocation_time = iso_time(time, zone)
    if revocation_time > now:
        raise ValueError(f"revoked at {revocation_time:%Y-%m-%d %H:%M:%S} UTC, which lies in the future")
    number = reason_of(reason)
    if state is _HELD:
        if number not in (None, CRLReason.CERTIFICATE_HOLD.value):
            raise ValueError(f"held, and yet with the reason {reason!r}")
        number = CRLReason.CERTIFICATE_HOLD.value
    return revocation_time, number, iso_time(invalidity, zone) if invalidity else None
