"""Importing a list of issued certificates: checked as a whole first, then chunk by chunk, each chunk one transaction.

Promises: nothing is recorded before the whole list was understood (or its bad lines are to be skipped). A chunk is done
or not done. Each says in its audit record how far it came in which file, so an import that was interrupted can go on
behind the last chunk that is on record; doing everything again is harmless as well. Memory holds two chunks, however
long the list is.

What a list says twice in the same words counts once. Where it contradicts itself, or what is on record, the store
decides: a good certificate may be revoked, nothing that is revoked becomes good by a list.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lakthan.errors import ConfigError
from lakthan.store.bulk import import_issued
from lakthan.store.records import CRLReason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import asyncpg

    from lakthan_registry.issued_list import Entry, IssuedList

ROWS_PER_CHUNK = 100_000
_MOST_SHOWN = 20


@dataclass(slots=True)
class Check:
    """What the first pass found. `bad`: how many lines are none; the first of them in `bad_lines`, by position."""

    good: int = 0
    revoked: int = 0
    held: int = 0
    bad: int = 0
    bad_lines: list[tuple[int, str]] = field(default_factory=list)

    @property
    def entries(self) -> int:
        """How many entries there are."""
        return self.good + self.revoked + self.held

    def add_bad(self, position: int, why: str) -> None:
        """Count it, and keep it when it is among the first."""
        self.bad += 1
        if len(self.bad_lines) < _MOST_SHOWN:
            self.bad_lines.append((position, why))


@dataclass(slots=True)
class Totals:
    """What an import did. `contradicting`: what is on record otherwise, and was left so; `examples`: of these."""

    entries: int = 0
    issued: int = 0
    revoked: int = 0
    held: int = 0
    unchanged: int = 0
    repeated: int = 0
    contradicting: int = 0
    examples: list[bytes] = field(default_factory=list)
    chunks: int = 0


@dataclass(frozen=True, slots=True)
class _Chunk:
    entries: list[Entry]
    repeated: int
    position: int  # everything up to there is in this chunk or in one before it


def _ignore(*_: object) -> None:
    """For nobody who listens, and for lines that the check has told of."""


def check(source: IssuedList, after: int = 0, progress: Callable[[int], None] = _ignore) -> Check:
    """Read everything behind `after` once and do nothing. `progress` gets the number of entries so far."""
    found = Check()
    held = CRLReason.CERTIFICATE_HOLD.value
    good = 0
    for entry in source.read(found.add_bad, after):
        if entry[3] is None:
            good += 1
            if not good & 0x3FFF:
                progress(good + found.entries)
        elif entry[4] == held:
            found.held += 1
        else:
            found.revoked += 1
    found.good = good
    progress(found.entries)
    return found


async def import_list(
    pool: asyncpg.Pool,
    authority_id: int,
    source: IssuedList,
    *,
    actor: str,
    through: str = "cli",
    name: str,
    sha256: bytes,
    after: int = 0,
    dry_run: bool = False,
    rows_per_chunk: int = ROWS_PER_CHUNK,
    progress: Callable[[Totals], None] = _ignore,
) -> Totals:
    """Import everything behind `after` that can be understood. `name`, `sha256`: of the file, for the record.

    Raises `ConfigError` when the file is being changed, `ChangeRefused` and `StoreUnavailable`; chunks that were
    confirmed before stay.
    """
    totals = Totals()
    stamp = source.stamp()
    chunks = _chunks(source, after, rows_per_chunk)
    # The next chunk is read while the database works on this one.
    coming = asyncio.ensure_future(asyncio.to_thread(next, chunks, None))
    try:
        while (chunk := await coming) is not None:
            if source.stamp() != stamp:
                raise ConfigError(f"{name} is being changed while it is imported; run the import again when it is done")
            coming = asyncio.ensure_future(asyncio.to_thread(next, chunks, None))
            done = await import_issued(
                pool,
                authority_id,
                chunk.entries,
                actor=actor,
                through=through,
                detail={"file": name, "file_sha256": sha256.hex(), "position": str(chunk.position)},
                dry_run=dry_run,
            )
            totals.entries += len(chunk.entries) + chunk.repeated
            totals.issued += done.issued
            totals.revoked += done.revoked
            totals.held += done.held
            totals.unchanged += done.unchanged
            totals.repeated += chunk.repeated
            totals.contradicting += done.contradicting
            totals.examples += done.examples[: _MOST_SHOWN - len(totals.examples)]
            totals.chunks += 1
            progress(totals)
    finally:
        await asyncio.gather(coming, return_exceptions=True)  # a thread cannot be stopped: let it come to its end
    return totals


def _chunks(source: IssuedList, after: int, rows: int) -> Iterator[_Chunk]:
    """The list in pieces in which no serial number occurs twice."""
    entries: dict[bytes, Entry] = {}
    repeated = 0
    for entry in source.read(_ignore, after):
        known = entries.setdefault(entry[0], entry)
        if known is entry:
            if len(entries) <= rows:
                continue
            del entries[entry[0]]
        elif known == entry:
            repeated += 1
            continue
        yield _Chunk(list(entries.values()), repeated, source.position - 1)
        entries, repeated = {entry[0]: entry}, 0
    if entries:
        yield _Chunk(list(entries.values()), repeated, source.position)
