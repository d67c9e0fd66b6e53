"""Does the record hold? Everything that the audit chain claims, computed again from the rows, not by the database.

Three questions, each answered by reading rows once in order and keeping none of them:

1. Is each chain whole: numbers without a gap, each record with its own hash and that of the one before, and the end
   where the head says, and where a head that was noted elsewhere says?
2. Is each change of a status in exactly one record, as it was when the record was made?
3. Is the status that responders read what the changes add up to?

Promises: all of it is read in one snapshot; memory does not grow with the number of rows.

Refuses to know: what is right. It says what differs, and a person says why.

Trusted: nothing of the database but that it gives all its rows. Who owns it can make a whole chain anew, and then only
a head that was noted elsewhere shows it.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from lakthan.store.audit import COLUMNS
from lakthan.store.pool import unavailable_as_such
from lakthan.store.records import AuditHead, AuditRecord

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    import asyncpg

    Row = asyncpg.Record
    Progress = Callable[[int, int], None]

_NO_RECORD = bytes(32)  # what the first record of a chain has as the hash of the one before
_ROWS_AT_ONCE = 2000
_PATIENCE_SECONDS = 3600.0  # the first handful comes when all is sorted
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIXED = struct.Struct(">qqqiihBqqqqi")
_CHANGES = {"issue": 1, "revoke": 2, "hold": 3, "unhold": 4}
_NO_INSTANT = (1 << 63) - 1
_2000 = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class AuditReport:
    """What was read, and what is wrong: a line for each finding, none when all is well. `heads`: where chains end."""

    records: int = 0
    changes: int = 0
    statuses: int = 0
    heads: list[AuditHead] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    more_findings: int = 0  # beyond the limit

    def find(self, finding: str) -> None:
        """Take it down; beyond a thousand they are counted."""
        if len(self.findings) < 1000:
            self.findings.append(finding)
        else:
            self.more_findings += 1


async def verify(
    pool: asyncpg.Pool, *, noted: Sequence[AuditHead] = (), progress: Progress | None = None
) -> AuditReport:
    """Check every chain, change and status that the pool's role may see; needs one that sees all of them.

    `noted`: heads that were noted elsewhere earlier; each must still stand in its chain. `progress(done, total)` is
    told of rows. Raises `StoreUnavailable`.
    """
    report = AuditReport()
    with unavailable_as_such():
        async with (
            pool.acquire() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            await connection.execute("SET LOCAL statement_timeout = 0")
            reading = _Reading(connection, progress)
            await reading.count()
            await _chains(reading, noted, report)
            await _seals(reading, report)
            await _statuses(reading, report)
    return report


def record_sha256(record: AuditRecord) -> bytes:
    """The hash that a record should have: its fields but `sha256`, as `audit_sha256()` of the schema defines."""
    texts = (record.actor, record.through, record.login, record.detail)
    fields = [
        record.previous_sha256.hex(),
        str(record.chain),
        str(record.number),
        str(_microseconds(record.at)),
        record.event,
        *(hashlib.sha256(text.encode()).hexdigest() for text in texts),
        "" if record.batch is None else str(record.batch),
        "" if record.change_count is None else str(record.change_count),
        "" if record.changes_sha256 is None else record.changes_sha256.hex(),
    ]
    return hashlib.sha256("|".join(fields).encode()).digest()


def change_octets(row: Row) -> bytes:
    """A row of `status_change` as it is hashed, as `change_octets()` of the schema defines."""
    serial_number, digest, actor = row["serial_number"], row["certificate_sha256"] or b"", row["actor"].encode()
    reason = row["revocation_reason"]
    return b"".join(
        (
            _FIXED.pack(
                row["version"],
                row["batch"],
                row["previous_version"] or 0,
                row["authority_id"],
                row["crl_scope"] or 0,
                -1 if reason is None else reason,
                _CHANGES[row["change"]],
                _since_2000(row["recorded_at"]),
                _since_2000(row["revocation_time"]),
                _since_2000(row["invalidity_date"]),
                _since_2000(row["not_after"]),
                len(serial_number),
            ),
            serial_number,
            len(digest).to_bytes(4, "big"),
            digest,
            len(actor).to_bytes(4, "big"),
            actor,
        )
    )


class _Seal:
    """The hash over the changes of a batch in the order of their versions: of each thousand, and then over these."""

    def __init__(self) -> None:
        self._all = hashlib.sha256()
        self._some = hashlib.sha256()
        self._thousand = -1
        self.count = 0

    def update(self, row: Row) -> None:
        """The next change."""
        thousand = row["version"] // 1000
        if thousand != self._thousand and self.count:
            self._all.update(self._some.digest())
            self._some = hashlib.sha256()
        self._thousand = thousand
        self._some.update(change_octets(row))
        self.count += 1

    def digest(self) -> bytes:
        """Of all that there were."""
        self._all.update(self._some.digest())
        return self._all.digest()


class _Reading:
    """Rows in order, in handfuls, from the one snapshot."""

    def __init__(self, connection: asyncpg.pool.PoolConnectionProxy, progress: Progress | None) -> None:
        self._connection = connection
        self._progress = progress
        self._done = self._total = 0

    async def count(self) -> None:
        """How many rows there are to read."""
        if self._progress is not None:
            self._total = await self._connection.fetchval(
                """
                SELECT 2 * (SELECT count(*) FROM audit_record) + 2 * (SELECT count(*) FROM status_change)
                       + (SELECT count(*) FROM certificate_status)
                """,
                timeout=_PATIENCE_SECONDS,
            )

    async def rows(self, query: str) -> AsyncIterator[Row]:
        """The rows of a query."""
        cursor = await self._connection.cursor(query, timeout=_PATIENCE_SECONDS)
        while handful := await cursor.fetch(_ROWS_AT_ONCE, timeout=_PATIENCE_SECONDS):
            for row in handful:
                yield row
            self._done += len(handful)
            if self._progress is not None:
                self._progress(self._done, self._total)


async def _chains(reading: _Reading, noted: Sequence[AuditHead], report: AuditReport) -> None:
    ends: dict[int, AuditHead] = {}
    wanted: dict[tuple[int, int], bytes] = {(head.chain, head.number): head.sha256 for head in noted}
    async for row in reading.rows(f"SELECT {COLUMNS} FROM audit_record ORDER BY chain, number"):  # noqa: S608
        record = AuditRecord(*row)
        before = ends.get(record.chain, AuditHead(record.chain, 0, _NO_RECORD))
        name = f"chain {record.chain}, record {record.number}"
        if record.number != before.number + 1:
            report.find(f"{name}: the record before it is {before.number}; what was between is gone")
        elif record.previous_sha256 != before.sha256:
            report.find(f"{name}: does not follow record {before.number}, which was put in or made anew")
        if record_sha256(record) != record.sha256:
            report.find(f"{name}: was edited; it is not what its hash says")
        if wanted.pop((record.chain, record.number), record.sha256) != record.sha256:
            report.find(f"{name}: is not the record that was noted; the chain was made anew since")
        ends[record.chain] = AuditHead(record.chain, record.number, record.sha256)
        report.records += 1
    for chain, number in wanted:
        report.find(f"chain {chain}, record {number}: was noted and is gone; the end of the chain was taken off")
    async for row in reading.rows("SELECT chain, number, sha256 FROM audit_head ORDER BY chain"):
        head = AuditHead(*row)
        end = ends.pop(head.chain, AuditHead(head.chain, 0, _NO_RECORD))
        if head != end:
            report.find(
                f"chain {head.chain}: ends with record {end.number}, and its head says {head.number}"
                + ("" if head.number != end.number else ", another one")
            )
        report.heads.append(head)
    for end in ends.values():
        report.find(f"chain {end.chain}: has {end.number} records and no head")


async def _seals(reading: _Reading, report: AuditReport) -> None:
    """Two streams in the order of authority and batch: what was sealed, and what is there."""
    records = aiter(
        reading.rows(
            """
            SELECT chain, batch, number, change_count, changes_sha256 FROM audit_record
             WHERE batch IS NOT NULL ORDER BY chain, batch, number
            """
        )
    )
    record = await anext(records, None)

    async def compare(batch: tuple[int, int], count: int, changes_sha256: bytes) -> None:
        nonlocal record
        while record is not None and (record["chain"], record["batch"]) < batch:
            report.find(f"{_seal(record)}: its {record['change_count']} changes of batch {record['batch']} are gone")
            record = await anext(records, None)
        if record is None or (record["chain"], record["batch"]) != batch:
            report.find(
                f"authority {batch[0]}, batch {batch[1]}: {count} changes are in no audit record; put in by hand"
            )
            return
        if record["change_count"] != count:
            report.find(f"{_seal(record)}: sealed {record['change_count']} changes, and there are {count}")
        elif record["changes_sha256"] != changes_sha256:
            report.find(f"{_seal(record)}: a change of batch {batch[1]} was edited")
        record = await anext(records, None)

    current: tuple[int, int] | None = None
    seal = _Seal()
    async for row in reading.rows(f"SELECT {_CHANGE} FROM status_change ORDER BY authority_id, batch, version"):  # noqa: S608
        batch = (row["authority_id"], row["batch"])
        if batch != current:
            if current is not None:
                await compare(current, seal.count, seal.digest())
            current, seal = batch, _Seal()
        seal.update(row)
        report.changes += 1
    if current is not None:
        await compare(current, seal.count, seal.digest())
    while record is not None:
        report.find(f"{_seal(record)}: its {record['change_count']} changes of batch {record['batch']} are gone")
        record = await anext(records, None)


async def _statuses(reading: _Reading, report: AuditReport) -> None:
    """Two streams in the order of the certificates: what happened, and what is on record as the outcome."""
    statuses = aiter(
        reading.rows(
            """
            SELECT authority_id, serial_number, cert_status, revocation_time, revocation_reason, invalidity_date,
                   not_after, version, certificate_sha256
              FROM certificate_status ORDER BY authority_id, serial_number
            """
        )
    )
    status = await anext(statuses, None)

    async def compare(wanted: dict[str, Any]) -> None:
        nonlocal status
        which = (wanted["authority_id"], wanted["serial_number"])
        while status is not None and (status["authority_id"], status["serial_number"]) < which:
            report.find(f"{_certificate(status)}: has a status and no history; put in by hand")
            report.statuses += 1
            status = await anext(statuses, None)
        if status is None or (status["authority_id"], status["serial_number"]) != which:
            report.find(f"{_certificate(wanted)}: has a history and no status; taken out by hand")
            return
        different = [name for name, value in wanted.items() if status[name] != value]
        if different:
            report.find(f"{_certificate(wanted)}: {', '.join(different)} of its status is not what its history says")
        report.statuses += 1
        status = await anext(statuses, None)

    outcome: dict[str, Any] | None = None
    async for row in reading.rows(
        f"SELECT {_CHANGE} FROM status_change ORDER BY authority_id, serial_number, version"  # noqa: S608
    ):
        if outcome is not None and (outcome["authority_id"], outcome["serial_number"]) != (
            row["authority_id"],
            row["serial_number"],
        ):
            await compare(outcome)
            outcome = None
        before = outcome["version"] if outcome is not None else None
        if row["previous_version"] != before:
            report.find(f"{_certificate(row)}: version {row['version']} does not follow {before}")
        outcome = _outcome(outcome, row)
    if outcome is not None:
        await compare(outcome)
    while status is not None:
        report.find(f"{_certificate(status)}: has a status and no history; put in by hand")
        report.statuses += 1
        status = await anext(statuses, None)


def _outcome(before: dict[str, Any] | None, change: Row) -> dict[str, Any]:
    revoked = change["change"] in ("revoke", "hold")
    return {
        "authority_id": change["authority_id"],
        "serial_number": change["serial_number"],
        "cert_status": "revoked" if revoked else "good",
        "revocation_time": change["revocation_time"] if revoked else None,
        "revocation_reason": change["revocation_reason"] if revoked else None,
        "invalidity_date": change["invalidity_date"] if revoked else None,
        "not_after": change["not_after"] or (before and before["not_after"]),
        "version": change["version"],
        "certificate_sha256": change["certificate_sha256"] or (before and before["certificate_sha256"]),
    }


_CHANGE = (
    "version, batch, previous_version, authority_id, serial_number, change, revocation_time, revocation_reason, "
    "invalidity_date, not_after, certificate_sha256, crl_scope, recorded_at, actor"
)


def _seal(record: Row) -> str:
    return f"chain {record['chain']}, record {record['number']}"


def _certificate(row: Row | dict[str, Any]) -> str:
    return f"authority {row['authority_id']}, serial number {row['serial_number'].hex()}"


def _microseconds(instant: datetime) -> int:
    return _seconds_of(instant) * 1_000_000 + instant.microsecond


def _since_2000(instant: datetime | None) -> int:
    if instant is None:
        return _NO_INSTANT
    since = instant - _2000
    return (since.days * 86400 + since.seconds) * 1_000_000 + since.microseconds


def _seconds_of(instant: datetime) -> int:
    # Not timestamp(), whose floating point has too few digits for microseconds far from 1970.
    since = instant - _EPOCH
    return since.days * 86400 + since.seconds
