"""OpenSSL's `index.txt`: the database of `openssl ca`, a line for every certificate that it issued.

Six fields with tabs between them: the state (V valid, R revoked, E expired, which was never revoked), the end, when and
why it was revoked, the serial number in hexadecimal, a file, the subject. Scripts that imitate it write blanks instead
of tabs; that is understood as well. What follows a reason of OpenSSL's own: `holdInstruction` and an instruction
(RFC 5280 no longer knows these: a hold), `keyTime` or `CAkeyTime` and when the key was compromised.
"""

from __future__ import annotations

import hashlib
import re
from datetime import datetime
from typing import TYPE_CHECKING

from lakthan.store.records import CRLReason
from lakthan_registry.issued_list import Entry, asn1_time, file_stamp, hexadecimal_serial, reason_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lakthan_registry.issued_list import Bad

# The subject may hold blanks, the fields before it do not.
_WITH_BLANKS = re.compile(r"(\S)\s+([0-9]+Z)\s+(?:([0-9]+Z\S*)\s+)?(-?[0-9A-Fa-f]+)(?:\s+.*)?").fullmatch
_COMPROMISES = {"keytime": CRLReason.KEY_COMPROMISE, "cakeytime": CRLReason.CA_COMPROMISE}


class IndexTxt:
    """One such file. `now`: no revocation may be later."""

    def __init__(self, path: Path, now: datetime) -> None:
        self._path = path
        self._now = now
        self.position = 0
        self.octets = 0
        self.size = path.stat().st_size

    def read(self, bad: Bad, after: int = 0) -> Iterator[Entry]:
        """See `IssuedList`; a position is a line's number."""
        self.octets = 0
        with self._path.open("rb") as stream:
            for number, octets in enumerate(stream, 1):
                self.position = number
                self.octets += len(octets)
                if number <= after:
                    continue
                try:
                    line = octets.decode("utf-8", "replace").lstrip("\ufeff").rstrip("\r\n")
                    if not line.strip() or line[0] == "#":
                        continue
                    entry = self._entry(line)
                except ValueError as error:
                    bad(number, str(error))
                else:
                    yield entry

    def sha256(self) -> bytes:
        """See `IssuedList`."""
        with self._path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()

    def stamp(self) -> tuple[int, ...]:
        """See `IssuedList`."""
        return file_stamp(self._path)

    def _entry(self, line: str) -> Entry:
        state, end, revocation, serial = _fields(line)
        serial_number = hexadecimal_serial(serial)
        not_after = asn1_time(end)
        if state == "R":
            if not revocation:
                raise ValueError("revoked, but the time of the revocation is missing")
            return serial_number, not_after, None, *self._revocation(revocation)
        if state not in ("V", "E"):
            raise ValueError(f"the state {state[:20]!r} is none of V, R and E")
        if revocation:
            raise ValueError(f"the state is {state}, and there is a time of revocation; make it R, or take that out")
        return serial_number, not_after, None, None, None, None

    def _revocation(self, field: str) -> tuple[datetime, int | None, datetime | None]:
        time, _, rest = field.partition(",")
        revocation_time = asn1_time(time.strip())
        if revocation_time > self._now:
            raise ValueError(f"revoked at {revocation_time:%Y-%m-%d %H:%M:%S} UTC, which lies in the future")
        name, _, more = rest.strip().partition(",")
        name = name.strip().lower()
        if name == "holdinstruction":
            return revocation_time, CRLReason.CERTIFICATE_HOLD.value, None
        if name in _COMPROMISES:
            return revocation_time, _COMPROMISES[name].value, asn1_time(more.strip())
        return revocation_time, reason_of(name), None


def _fields(line: str) -> tuple[str, str, str, str]:
    """State, end, revocation and serial number as they are written."""
    fields = line.split("\t", 4)
    if len(fields) >= 4:
        return fields[0].strip(), fields[1].strip(), fields[2].strip(), fields[3].strip()
    found = _WITH_BLANKS(line.strip())
    if found is None:
        raise ValueError("not a line of index.txt: state, end, revocation, serial number, file and subject are due")
    return found[1], found[2], found[3] or "", found[4]
