"""What this process was told is revoked, so that a database that went back in time cannot make it say *good* again.

A restore to an earlier point, or a fail-over to a copy that was behind, takes revocations away that were committed,
notified and answered by. The database then contradicts what it said before. Promises: for as long as this process
lives, a certificate that it was told is revoked is not good and not unknown to it any more; a hold ends when it was
told so, or when the database has a newer version. Until then nothing is answered about it (`DatabaseWentBack`), and
that ends by itself when the revocation is on record again.

* What is compared is what was told before the question was sent: a question that a revocation overtakes is no
  contradiction, and whoever remembers answers looks after that case (`lakthan.store.feed`).
* Memory is bounded: of too many revocations those with the lowest versions are forgotten, which a restore loses last.

Refuses to know: what was told to other processes, and to this one before its start; and the names in a change of too
many certificates to name. docs/disaster-recovery.md says how all of that is found again.

Trusted: as `lakthan.store.feed`. Who sends false notifications can make this process say nothing about a certificate.
"""

from __future__ import annotations

import logging
from heapq import nsmallest
from typing import NamedTuple

from lakthan.errors import StoreUnavailable
from lakthan.store.records import CertStatus, StatusRecord

_MOST = 50_000

_log = logging.getLogger(__name__)


class DatabaseWentBack(StoreUnavailable):
    """The database has lost something that it told this process before: it is in an earlier state."""


class _Told(NamedTuple):
    """A revocation: its version, when it was told, and whether it is final (anything but a hold)."""

    version: int
    at: int
    final: bool


class ToldRevoked:
    """The revocations that were told, at most `most`. `contradicted`: the certificates of which the database has lost
    the revocation, as far as it was asked about them.
    """

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._told: dict[tuple[int, bytes], _Told] = {}
        self._forgotten_below = 0
        self._times = 0
        self.contradicted: set[tuple[int, bytes]] = set()

    def now(self) -> int:
        """A point in the sequence of what was told, taken before a question is sent."""
        return self._times

    def hear(self, record: StatusRecord) -> None:
        """A change was notified."""
        self._times += 1
        certificate = record[:2]
        if record.cert_status is CertStatus.REVOKED:
            self._remember(certificate, record.version, final=not record.held)
        elif certificate in self._told and not self._told[certificate].final:
            self._forget(certificate)

    def check(self, certificate: tuple[int, bytes], record: StatusRecord | None, asked_at: int) -> None:
        """The database said this of a certificate (None: not on record), to a question that was sent at that point.

        Raises `DatabaseWentBack`.
        """
        told = self._told.get(certificate)
        if record is not None and record.cert_status is CertStatus.REVOKED:
            if told is None or told.version != record.version:
                self._remember(certificate, record.version, final=not record.held)
        elif told is not None and told.at <= asked_at:
            if record is not None and record.version > told.version and not told.final:
                self._forget(certificate)  # released while notifications were missed
                return
            self._say(certificate)
            raise DatabaseWentBack(
                f"the database has lost the revocation of serial number {certificate[1].hex()} of authority "
                f"{certificate[0]}: it went back to an earlier state; enter the revocation again "
                "(docs/disaster-recovery.md)"
            )

    def _remember(self, certificate: tuple[int, bytes], version: int, *, final: bool) -> None:
        self.contradicted.discard(certificate)
        if version <= self._forgotten_below and certificate not in self._told:
            return
        self._told[certificate] = _Told(version, self._times, final)
        if len(self._told) > self._most:
            for oldest, told in nsmallest(self._most // 8 + 1, self._told.items(), key=lambda each: each[1].version):
                del self._told[oldest]
                self._forgotten_below = max(self._forgotten_below, told.version)

    def _forget(self, certificate: tuple[int, bytes]) -> None:
        del self._told[certificate]
        self.contradicted.discard(certificate)

    def _say(self, certificate: tuple[int, bytes]) -> None:
        if certificate not in self.contradicted:
            self.contradicted.add(certificate)
            _log.error(
                "the database went back: serial number %s of authority %s was revoked and is not any more; no answer "
                "is given about it until it is revoked again",
                certificate[1].hex(),
                certificate[0],
            )
