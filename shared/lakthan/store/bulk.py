"""Many statuses at once: the entries of a CRL, the certificates of an issued list.

Promises: an import is applied whole or not at all, in one transaction; rows that say what is on record already change
nothing; a certificate that somebody else changes meanwhile waits only for its own row, and the import is planned anew
when it meets one. Memory does not grow with the list: rows stream to the database as they are read.

Refuses to know: whether a CRL is believed. `lakthan_registry` has checked that, and checks once more against `scope`
while no other import of the authority is under way.

Trusted: the caller's `actor`. The database asks by itself whether the login may act for each authority that is listed.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

import asyncpg

from lakthan import der
from lakthan.errors import StoreUnavailable
from lakthan.store.acting import acting
from lakthan.store.changes import ChangeRefused, refusals_as_such
from lakthan.store.copy_rows import HEADER, TRAILER, IssuedEntry, issued_rows
from lakthan.store.pool import unavailable_as_such
from lakthan.store.status import AuthorityReader

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from lakthan.store.records import AuthorityRecord

# A statement of an import may take minutes; what it waits for is the rows of certificates that are being changed.
_STATEMENT_SECONDS = 3600
_ATTEMPTS = 5
_LISTED_TWICE = "LK008"
# A hundred thousand entries of a CRL: little memory.
_PART_OCTETS = 4_000_000
# So much that the socket has something to send whenever whoever reads lets it.
_PIECES_AT_ONCE = 32

_Outcome = TypeVar("_Outcome")

_CRL_TABLE = "staged_part"
_CRL_COLUMNS = ("authority_id", "serial_numbers", "revocation_times", "revocation_reasons", "invalidity_dates")
_ISSUED_TABLE = "staged_entry"
_ISSUED_COLUMNS = (
    "authority_id",
    "serial_number",
    "not_after",
    "certificate_sha256",
    "revocation_time",
    "revocation_reason",
    "invalidity_date",
)


class ListContradictsItself(ChangeRefused):
    """A serial number is listed twice with different words, so nobody can say which ones count."""


@dataclass(frozen=True, slots=True)
class CRLScope:
    """The newest CRL of one issuer and scope on record. Numbers as in the CRL; None when it had none.

    `complete_number`, `complete_entries`: of the last complete CRL.
    """

    crl_number: int | None
    complete_number: int | None
    this_update: datetime
    next_update: datetime
    crl_sha256: bytes
    complete_entries: int


@dataclass(frozen=True, slots=True)
class CRLFacts:
    """What is recorded of a CRL. `scope`: its issuingDistributionPoint, empty without."""

    authority_id: int
    scope: bytes
    delta: bool
    crl_number: int | None
    this_update: datetime
    next_update: datetime
    sha256: bytes
    url: str | None = None


@dataclass(frozen=True, slots=True)
class CRLPlan:
    """What a CRL would change. `vanished`: revoked by an earlier CRL of the scope, not expired, and not on this one."""

    entries: int
    revoked: int
    held: int
    released: int
    reason_changed: int
    vanished: int

    @property
    def unchanged(self) -> int:
        """The entries that say what is on record."""
        return self.entries - self.revoked - self.held - self.reason_changed


@dataclass(frozen=True, slots=True)
class CRLOutcome:
    """What came of an import. `version`: the greatest of its changes, None when no status changed.

    `reason_changed`, `vanished`: entries with another reason than the recorded one, and entries that are missing though
    revoked by an earlier CRL: a revocation is final, so both are reported and not applied. `nothing_new`: this very CRL
    was imported before. `dry_run`: nothing was changed, this is what would have come of it.
    """

    authority_id: int
    crl_number: int | None
    delta: bool
    entries: int
    revoked: int = 0
    held: int = 0
    released: int = 0
    reason_changed: int = 0
    unchanged: int = 0
    vanished: int = 0
    version: int | None = None
    nothing_new: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class IssuedOutcome:
    """What came of an issued list. `contradicting`: on record in other words, and kept so; `examples`: the first of
    their serial numbers. `version`: the greatest of its changes, None when there were none.
    """

    issued: int
    revoked: int
    held: int
    unchanged: int
    contradicting: int
    examples: tuple[bytes, ...]
    version: int | None


class CRLImport:
    """One import, inside its transaction. Get it from `crl_import`; call `stage`, `plan`, `apply` in this order."""

    def __init__(self, connection: asyncpg.pool.PoolConnectionProxy, facts: CRLFacts, actor: str) -> None:
        self._connection = connection
        self._facts = facts
        self._actor = actor

    async def scope(self) -> CRLScope | None:
        """The newest CRL of this scope, None before the first. Stays so until the transaction ends."""
        row = await self._connection.fetchrow(
            """
            SELECT crl_number, complete_number, this_update, next_update, crl_sha256, complete_entries
              FROM crl_scope WHERE authority_id = $1 AND scope = $2
            """,
            self._facts.authority_id,
            self._facts.scope,
        )
        if row is None:
            return None
        return CRLScope(
            _number(row["crl_number"]),
            _number(row["complete_number"]),
            row["this_update"],
            row["next_update"],
            row["crl_sha256"],
            row["complete_entries"],
        )

    async def drop_limit_percent(self) -> int:
        """By how much the entries of a complete CRL may drop: the authority's policy."""
        found = await self._connection.fetchval(
            "SELECT crl_drop_limit_percent FROM authority_policy WHERE authority_id = $1", self._facts.authority_id
        )
        return 10 if found is None else int(found)

    async def stage(self, rows: Iterable[bytes]) -> None:
        """Send the entries, part by part: while one is on its way and the database compares it, the next is read.
        `rows` are as `lakthan.store.copy_rows.crl_row` gives them. Errors of the iterable pass.
        """
        under_way: asyncio.Task[None] | None = None
        try:
            for part in _parts(rows):
                if part is None:  # reading takes a millisecond: the part that is under way gets its turn in between
                    await asyncio.sleep(0)
                    continue
                if under_way is not None:
                    await under_way
                under_way = asyncio.create_task(self._take_part(part))
            if under_way is not None:
                await under_way
        except BaseException:
            if under_way is not None:
                under_way.cancel()
                await asyncio.gather(under_way, return_exceptions=True)  # the connection is free again: roll back
            raise

    async def _take_part(self, part: Sequence[bytes]) -> None:
        facts = self._facts
        await _copy(self._connection, part, _CRL_TABLE, _CRL_COLUMNS)
        await self._connection.execute(
            "SELECT take_crl_part($1, $2, $3, $4)",
            facts.authority_id,
            facts.scope,
            facts.this_update,
            self._actor,
            timeout=_STATEMENT_SECONDS,
        )

    async def plan(self) -> CRLPlan:
        """What the staged entries would change."""
        facts = self._facts
        [row] = await self._connection.fetch(
            "SELECT * FROM plan_crl($1, $2, $3, $4)",
            facts.authority_id,
            facts.scope,
            facts.delta,
            facts.this_update,
            timeout=_STATEMENT_SECONDS,
        )
        return CRLPlan(**dict(row))

    async def apply(self, plan: CRLPlan, actor: str) -> int | None:
        """Do what was planned, and record this CRL as the newest. Gives the greatest version, None when no status
        changed.
        """
        facts = self._facts
        scope_id = await self._connection.fetchval(
            "SELECT record_crl($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
            facts.authority_id,
            facts.scope,
            facts.delta,
            _content(facts.crl_number),
            facts.this_update,
            facts.next_update,
            facts.sha256,
            plan.entries,
            facts.url,
            actor,
            timeout=_STATEMENT_SECONDS,
        )
        return await _apply(self._connection, facts.authority_id, actor, scope_id)


async def authorities_seen(pool: asyncpg.Pool, acting_for: int | None = None) -> list[AuthorityRecord]:
    """The authorities that the caller may see: the operator all of them, a publisher its own. `StoreUnavailable`."""
    with unavailable_as_such():
        async with acting(pool, authority_id=acting_for) as connection:
            # A reader asks pools and connections the same way; this one is under the caller's row-level security.
            return await AuthorityReader(cast("asyncpg.Pool", connection)).load()


async def crl_import(
    pool: asyncpg.Pool,
    facts: CRLFacts,
    work: Callable[[CRLImport], Awaitable[CRLOutcome]],
    *,
    actor: str,
    through: str,
    detail: Mapping[str, str] | None = None,
    acting_for: int | None = None,
) -> CRLOutcome:
    """Run `work` with an import in a transaction, which is rolled back when `work` raises or its outcome is a dry run.

    `work` is called again when somebody else changed one of the certificates meanwhile. `pool` acts as
    `lakthan_registry`, or as `lakthan_publisher` with `acting_for`. Raises `ChangeRefused` and its kinds,
    `StoreUnavailable`, and what `work` raises.
    """

    async def attempt() -> CRLOutcome:
        async with _bulk(
            pool, facts.authority_id, actor=actor, through=through, detail=detail, acting_for=acting_for, event="crl"
        ) as connection:
            outcome = await work(CRLImport(connection, facts, actor))
            if outcome.dry_run:
                raise _DryRun(outcome)
            return outcome

    return await _until_undisturbed(attempt)


async def import_issued(
    pool: asyncpg.Pool,
    authority_id: int,
    entries: Sequence[IssuedEntry],
    *,
    actor: str,
    through: str,
    detail: Mapping[str, str] | None = None,
    dry_run: bool = False,
    acting_for: int | None = None,
) -> IssuedOutcome:
    """Record a part of an issued list, whole or not at all, in one transaction; 50,000 to 100,000 entries are a good
    part. A serial number may stand in it once. Raises and acts as `crl_import` does.

    A certificate without a record becomes good, revoked or held as listed. A good one that is listed as revoked or held
    becomes so, a held one that is listed as revoked too. Whatever else is on record in other words stays.
    """

    async def attempt() -> IssuedOutcome:
        async with _bulk(
            pool, authority_id, actor=actor, through=through, detail=detail, acting_for=acting_for, event="import"
        ) as connection:
            await _copy(connection, [issued_rows(authority_id, entries)], _ISSUED_TABLE, _ISSUED_COLUMNS)
            [row] = await connection.fetch("SELECT * FROM plan_issued($1)", authority_id, timeout=_STATEMENT_SECONDS)
            version = None if dry_run else await _apply(connection, authority_id, actor, None)
            changed = row["issued"] + row["revoked"] + row["held"]
            outcome = IssuedOutcome(
                row["issued"],
                row["revoked"],
                row["held"],
                row["entries"] - changed - row["contradicting"],
                row["contradicting"],
                tuple(row["examples"] or ()),
                version,
            )
            if dry_run:
                raise _DryRun(outcome)
            return outcome

    return await _until_undisturbed(attempt)


class _DryRun(Exception):
    """Carries the outcome out of a transaction that has to be rolled back."""

    def __init__(self, outcome: object) -> None:
        self.outcome = outcome


@asynccontextmanager
async def _bulk(
    pool: asyncpg.Pool,
    authority_id: int,
    *,
    actor: str,
    through: str,
    detail: Mapping[str, str] | None,
    acting_for: int | None,
    event: str,
) -> AsyncIterator[asyncpg.pool.PoolConnectionProxy]:
    async with acting(
        pool, authority_id=acting_for, actor=actor, through=through, detail=detail, event=event
    ) as connection:
        await connection.execute(
            f"SET LOCAL statement_timeout = '{_STATEMENT_SECONDS}s'; "
            f"SET LOCAL idle_in_transaction_session_timeout = '{_STATEMENT_SECONDS}s'; SET LOCAL lock_timeout = '60s'"
        )
        await connection.execute("SELECT open_bulk($1)", authority_id, timeout=_STATEMENT_SECONDS)
        yield connection


async def _copy(
    connection: asyncpg.pool.PoolConnectionProxy, rows: Sequence[bytes], table: str, columns: tuple[str, ...]
) -> None:
    async def stream() -> AsyncIterator[bytes]:
        yield HEADER
        for at in range(0, len(rows), _PIECES_AT_ONCE):
            yield b"".join(rows[at : at + _PIECES_AT_ONCE])
        yield TRAILER

    await connection.copy_to_table(
        table,
        schema_name="pg_temp",
        columns=columns,
        source=stream(),
        format="binary",
        timeout=_STATEMENT_SECONDS,
    )


def _parts(rows: Iterable[bytes]) -> Iterator[list[bytes] | None]:
    """The rows in parts of some megabytes, the first one less so that the database begins soon; None after each piece
    that makes none yet.
    """
    part: list[bytes] = []
    octets = 0
    enough = _PART_OCTETS // 6
    for piece in rows:
        part.append(piece)
        octets += len(piece)
        if octets < enough:
            yield None
            continue
        yield part
        part, octets, enough = [], 0, _PART_OCTETS
    if part:
        yield part


async def _apply(
    connection: asyncpg.pool.PoolConnectionProxy, authority_id: int, actor: str, crl_scope: int | None
) -> int | None:
    version: int | None = await connection.fetchval(
        "SELECT apply_plan($1, $2, $3)", authority_id, actor, crl_scope, timeout=_STATEMENT_SECONDS
    )
    return version


async def _until_undisturbed(attempt: Callable[[], Awaitable[_Outcome]]) -> _Outcome:
    for left in reversed(range(_ATTEMPTS)):
        try:
            with refusals_as_such(), unavailable_as_such():
                return await attempt()
        except _DryRun as done:
            return cast("_Outcome", done.outcome)
        except StoreUnavailable as error:
            disturbed = isinstance(error.__cause__, asyncpg.SerializationError | asyncpg.DeadlockDetectedError)
            if not disturbed or left == 0:
                raise
        except ChangeRefused as error:
            if isinstance(error.__cause__, asyncpg.PostgresError) and error.__cause__.sqlstate == _LISTED_TWICE:
                raise ListContradictsItself(str(error)) from error.__cause__
            raise
    raise AssertionError("the last attempt returns or raises")


def _number(content: bytes | None) -> int | None:
    return None if content is None else int.from_bytes(content, "big", signed=True)


def _content(number: int | None) -> bytes | None:
    return None if number is None else der.integer_content(number)
