"""What is different between two CRLs, or between a CRL and what is on record, serial number by serial number.

Pure: entries in, differences out. It refuses to know which side is right, and where either comes from. Memory holds one
side whole: some hundred octets for each entry.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from lakthan_registry.crl_syntax import Entry


@dataclass(frozen=True, slots=True)
class Revocation:
    """When and why; no reason is 0, unspecified (RFC 5280 §5.3.1)."""

    revocation_time: datetime
    reason: int


# The issuer's Name (empty: the CRL's own issuer) and the serial number.
Key = tuple[bytes, bytes]


@dataclass(slots=True)
class Differences:
    """`only_left`, `only_right`: on one side only. `changed`: on both, in other words."""

    same: int = 0
    only_left: list[tuple[Key, Revocation]] = field(default_factory=list)
    only_right: list[tuple[Key, Revocation]] = field(default_factory=list)
    changed: list[tuple[Key, Revocation, Revocation]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.only_left or self.only_right or self.changed)


def keyed(entries: Iterable[Entry]) -> Iterable[tuple[Key, Revocation]]:
    """The entries of a CRL with the issuers that hold for them (RFC 5280 §5.3.3)."""
    issuer = b""
    for entry in entries:
        issuer = entry.certificate_issuer or issuer
        yield (issuer, entry.serial_number), Revocation(entry.revocation_date, entry.reason or 0)


def compare(left: Iterable[tuple[Key, Revocation]], right: Iterable[tuple[Key, Revocation]]) -> Differences:
    """What differs, in the order of the serial numbers' octets."""
    found = Differences()
    waiting = dict(left)
    for key, there in right:
        here = waiting.pop(key, None)
        if here is None:
            found.only_right.append((key, there))
        elif here != there:
            found.changed.append((key, here, there))
        else:
            found.same += 1
    found.only_left.extend(waiting.items())
    for each in (found.only_left, found.only_right, found.changed):
        each.sort(key=lambda one: one[0])
    return found
