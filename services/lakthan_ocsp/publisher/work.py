"""What to sign next, for one authority.

In this order, so that nothing expires while the key is fast enough, and nobody waits longer than he must:

1. certificates that were revoked, held or released: until they are answered anew, clients hear `tryLater`;
2. answers that are due and have used up half of what `validity` leaves them beyond `refresh`;
3. certificates that were announced;
4. whatever has no answer that says what is on record: found by looking at all certificates one after another, at the
   start, when the authority changed or more certificates than can be named, and every hour in case of a defect;
5. answers that are due.

What changed is heard from the audit chain, which is in the order of the commits and has no gaps.
"""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

from lakthan.store.presigned import Wanted
from lakthan.store.records import Change

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lakthan.algorithms import HashAlgorithm
    from lakthan.store.presigned import Presigned

Cause = Literal["changed", "issued", "missing", "due"]
_PAGE = 2000
_MOST_PAGES = 20  # at once, then others have their turn
_DUE = 1000
_MOST_NAMED = 200_000
_SWEEP_EVERY = timedelta(hours=1)
_ALWAYS = datetime(1970, 1, 1, tzinfo=UTC)


class Work:
    """The work of one authority. `reserve`: what an answer has left when it is pressing. `all_revoked`: the authority
    itself is. For who shows it: `certificates`, how many there are, whenever they were counted; `longest_due`, since
    when the answer is due that is so the longest; `named_since`, the oldest change of those that `next` gave last.
    """

    def __init__(
        self,
        store: Presigned,
        authority_id: int,
        hashes: Sequence[HashAlgorithm],
        *,
        reserve: timedelta,
        look_every: timedelta,
    ) -> None:
        self._store = store
        self._authority_id = authority_id
        self._hashes = hashes
        self.reserve = reserve
        self._look_every = look_every
        self._position = 0
        self._changed: dict[bytes, datetime] = {}
        self._issued: dict[bytes, datetime] = {}
        self._missing: deque[Wanted] = deque()
        self._due: deque[Wanted] = deque()
        self._due_read: datetime | None = None
        # Nothing that is due earlier is left: else each look would wade through the traces of all that was.
        self._due_from = _ALWAYS
        self._sweep_after: bytes | None = None
        self._sweep_again = False
        self._sweep_at: datetime | None = None
        self._looked_at = 0
        self.certificates: int | None = None
        self.all_revoked = False
        self.longest_due: datetime | None = None
        self.named_since = datetime.max.replace(tzinfo=UTC)

    async def begin(self, now: datetime) -> None:
        """Take note of where the changes stand, then look at everything. Raises `StoreUnavailable`."""
        self._position = await self._store.position(self._authority_id)
        self.certificates = await self._store.certificates(self._authority_id)
        self.sweep(now)

    def sweep(self, now: datetime) -> None:
        """Look at every certificate once more, from the first, and at all that is due."""
        self._due_from = _ALWAYS
        self._sweep_at = now + _SWEEP_EVERY
        if self._sweep_after is None:
            self._sweep_after, self._looked_at = b"", 0
        else:
            self._sweep_again = True

    async def look(self, now: datetime) -> bool:
        """Take in what has changed. True when the authority itself did. Raises `StoreUnavailable`."""
        authority = False
        more = True
        while more:
            changes = await self._store.changes(self._authority_id, self._position)
            self._position, more = changes.number, changes.more
            authority |= changes.authority
            for certificate in changes.certificates:
                if certificate.change is Change.ISSUE:
                    self._issued.setdefault(certificate.serial_number, certificate.at)
                else:
                    self._changed.setdefault(certificate.serial_number, certificate.at)
            if changes.many or len(self._issued) + len(self._changed) > _MOST_NAMED:
                self._issued.clear()
                self.sweep(now)
        if self._sweep_at is not None and now >= self._sweep_at:
            self.sweep(now)
        return authority

    async def next(self, now: datetime, most: int) -> tuple[Cause, list[Wanted]]:
        """Up to about `most` answers to sign now, all for the same cause; none when there is nothing to do. What is
        given counts as done: `again` brings it back. Raises `StoreUnavailable`.
        """
        if self._changed:
            serial_numbers = self._named(self._changed, most)
            records = await self._store.records(self._authority_id, serial_numbers)
            self._done(self._changed, serial_numbers)
            return "changed", [Wanted(record, algorithm) for record in records for algorithm in self._hashes]
        await self._read_due(now)
        if self._due and (end := self._due[0].next_update) is not None and end - now <= self.reserve:
            return "due", _take(self._due, most)
        if self._issued:
            serial_numbers = self._named(self._issued, most)
            wanted = await self._store.announced(self._authority_id, serial_numbers, self._hashes, now)
            self._done(self._issued, serial_numbers)
            return "issued", wanted
        if not self._missing and self._sweep_after is not None:
            await self._look_on(now)
        if self._missing:
            return "missing", _take(self._missing, most)
        return "due", _take(self._due, most)

    @property
    def idle(self) -> bool:
        """Nothing is left but what will be due."""
        return not (self._changed or self._issued or self._missing or self._due) and self._sweep_after is None

    def again(self, cause: Cause, wanted: Sequence[Wanted], at: datetime) -> None:
        """These were not signed. What is due is found again by itself."""
        if cause == "missing":
            self._missing.extendleft(reversed(wanted))
        elif cause == "due":
            self._due.extendleft(reversed(wanted))
            self._due_from = _ALWAYS
        else:
            named = self._changed if cause == "changed" else self._issued
            for each in wanted:
                named.setdefault(each.record.serial_number, at)

    def forget(self) -> None:
        """Whatever was read is old: read it again. What changed is kept."""
        self._missing.clear()
        self._due.clear()
        self._due_read = None
        self._due_from = _ALWAYS

    def _named(self, named: dict[bytes, datetime], most: int) -> list[bytes]:
        return list(named)[: max(1, most // len(self._hashes))]

    def _done(self, named: dict[bytes, datetime], serial_numbers: Sequence[bytes]) -> None:
        self.named_since = min(named.pop(serial_number) for serial_number in serial_numbers)
        for serial_number in serial_numbers:
            self._issued.pop(serial_number, None)  # one answer is enough for what was announced and then changed

    async def _read_due(self, now: datetime) -> None:
        if self._due or (self._due_read is not None and now < self._due_read + self._look_every):
            return
        self._due.extend(await self._store.due(self._authority_id, self._due_from, now, _DUE))
        self._due_from = self._due[0].due_at or _ALWAYS if self._due else now
        # With as many as were asked for there are probably more: then the next ones are read as soon as these are done.
        self._due_read = now if len(self._due) < _DUE else None
        self.longest_due = self._due[0].due_at if self._due else None

    async def _look_on(self, now: datetime) -> None:
        for _ in range(_MOST_PAGES):
            if self._sweep_after is None or self._missing:
                return
            page = await self._store.missing(
                self._authority_id, self._sweep_after, self._hashes, now, all_revoked=self.all_revoked, most=_PAGE
            )
            self._looked_at += page.looked_at
            self._missing.extend(page.wanted)
            self._sweep_after = page.last
            if page.last is None:
                self.certificates = self._looked_at
                if self._sweep_again:
                    self._sweep_again = False
                    self._sweep_after, self._looked_at = b"", 0


def _take(queue: deque[Wanted], most: int) -> list[Wanted]:
    return [queue.popleft() for _ in range(min(most, len(queue)))]
