"""The one stand-in of the simulation says what PostgreSQL says: the same operations on both, compared.

Two hundred changes by chance, allowed and forbidden, single, in batches and in a batch too large to be named; after
each the verdict, the records as `StatusReader` reads them, and what a listening connection heard, in order.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.changes import ChangeRefused, ChangeWriter
from lakthan.store.feed import AUTHORITY_CHANNEL, STATUS_CHANNEL
from lakthan.store.records import Change, ChangeRequest, CRLReason
from lakthan.store.status import AuthorityReader, StatusReader
from support.database import OpenPool
from support.pki import new_ca
from support.simulated_database import MANY, Pool, Refused, Server, Tables
from support.simulated_time import Clock, SimulatedLoop

SERIALS = (b"\x05", b"\x11", b"\x7f\x02")
_REASONS = (None, *(reason for reason in CRLReason if reason is not CRLReason.REMOVE_FROM_CRL))


@pytest.fixture
def a_loop() -> Iterator[SimulatedLoop]:
    """A loop for the model."""
    loop = SimulatedLoop(Clock(), random.Random(0))
    yield loop
    loop.close()


def a_change(chance: random.Random, authority: int, now: datetime) -> ChangeRequest:
    """Something that somebody could ask for, sensible or not."""
    change = chance.choice(list(Change))
    instants = (None, None, now - timedelta(days=1), now + timedelta(days=1))
    said = change in (Change.REVOKE, Change.HOLD) or chance.random() < 0.1
    return ChangeRequest(
        authority,
        chance.choice(SERIALS),
        change,
        chance.choice(instants) if said else None,
        chance.choice(_REASONS) if said else None,
        chance.choice(instants) if said else None,
        chance.choice((None, now + timedelta(days=7))),
        chance.choice((None, None, bytes(32))),
    )


def plain(payload: str, versions: dict[int, int]) -> dict[str, Any]:
    """A notification without what two databases cannot have in common: its instant, and the numbers of versions."""
    fields: dict[str, Any] = json.loads(payload)
    del fields["changed_at"]
    for name in ("revocation_time", "invalidity_date", "not_after"):
        if fields.get(name) is not None:
            fields[name] = datetime.fromisoformat(fields[name]).replace(microsecond=0).date()
    if "version" in fields:
        fields["version"] = versions.setdefault(fields["version"], len(versions))
    return fields


class Both:
    """A real database and the model of it."""

    def __init__(self, pool: asyncpg.Pool, authority: int, loop: SimulatedLoop, tables: Tables) -> None:
        self.writer, self.reader = ChangeWriter(pool), StatusReader(pool)
        self.authority, self.loop, self.tables = authority, loop, tables
        self.heard: list[str] = []
        self.simulated: list[str] = []
        self.numbers: tuple[dict[int, int], dict[int, int]] = ({}, {})

    async def record(self, requests: list[ChangeRequest]) -> None:
        """On both; they agree whether it is allowed."""
        try:
            await self.writer.record(requests, "test")
            refused = False
        except ChangeRefused:
            refused = True
        try:
            self.tables.record(requests, lambda: 0.0, 0.0)
        except Refused:
            assert refused, requests
        else:
            assert not refused, requests

    async def compare(self) -> None:
        """They have the same on record, and told the same."""
        for serial in SERIALS:
            real = await self.reader.find(self.authority, serial)
            model = self.tables.certificates.get((self.authority, serial))
            assert (real is None) == (model is None)
            if real is not None and model is not None:
                assert real._replace(version=0, revocation_time=None) == model._replace(version=0, revocation_time=None)
                assert (real.revocation_time is None) == (model.revocation_time is None)
        heard = [plain(payload, self.numbers[0]) for payload in self.heard]
        assert heard == [plain(payload, self.numbers[1]) for payload in self.simulated]
        self.heard.clear()
        self.simulated.clear()


class _Session:
    """Hears at once."""

    def __init__(self, heard: list[str], *channels: str) -> None:
        self.listens = set(channels)
        self._heard = heard

    def hears_soon(self, _seconds: float, notifications: list[tuple[str, str]]) -> None:
        """As a session of the model is told."""
        self._heard += [payload for _, payload in notifications]


@pytest.mark.timeout(90)
async def test_the_model_is_as_postgres(
    open_as: OpenPool, database_url: str, authority_id: int, a_loop: SimulatedLoop
) -> None:
    """Verdicts, records and notifications of two hundred changes."""
    pool = await open_as("lakthan_registry")
    loop = a_loop
    tables = Tables(loop, [], MANY)
    both = Both(pool, authority_id, loop, tables)
    tables.sessions.append(_Session(both.simulated, STATUS_CHANNEL))  # type: ignore[arg-type]
    listener = await asyncpg.connect(database_url)
    await listener.add_listener(STATUS_CHANNEL, lambda _connection, _pid, _channel, payload: both.heard.append(payload))
    chance = random.Random(20_260_302)
    now = datetime.now(UTC).replace(microsecond=0)
    loop.clock.step = (now - loop.clock.now()).total_seconds()
    refused = allowed = 0
    for _ in range(200):
        requests = [a_change(chance, authority_id, now) for _ in range(chance.choice((1, 1, 1, 2, 3)))]
        before = tables.versions
        await both.record(requests)
        allowed, refused = (allowed + 1, refused) if tables.versions > before else (allowed, refused + 1)
        await listener.fetchval("SELECT 1")  # what was committed before has been handed out when this is back
        await both.compare()
        if chance.random() < 0.2:  # begin anew, or everything is revoked for good soon
            authority_id = await _another(pool, both)
    many = [ChangeRequest(authority_id, (0x1000000 + at).to_bytes(4, "big"), Change.REVOKE) for at in range(MANY + 1)]
    await both.record(many)
    await listener.fetchval("SELECT 1")
    assert '"all"' in both.heard[0]
    await both.compare()
    assert min(allowed, refused) > 20
    await listener.close()


async def _another(pool: asyncpg.Pool, both: Both) -> int:
    both.authority = await AuthorityAdmin(pool).add_authority(f"another {both.authority}", [new_ca("CA").der])
    return both.authority


async def test_who_listens_hears_of_authorities(open_as: OpenPool, database_url: str, a_loop: SimulatedLoop) -> None:
    """An authority's change is notified without a word, and its rows have the columns that the model gives."""
    pool = await open_as("lakthan_registry")
    heard: list[str] = []
    listener = await asyncpg.connect(database_url)
    await listener.add_listener(AUTHORITY_CHANNEL, lambda *told: heard.append(str(told[3])))
    await AuthorityAdmin(pool).add_authority("one", [new_ca("CA").der])
    await listener.fetchval("SELECT 1")
    assert heard
    assert set(heard) == {""}
    [real] = await AuthorityReader(pool).load()
    await listener.close()
    server = Server(Tables(a_loop, [real]), a_loop, lambda: 0.001, lambda: 0.001)
    reading = AuthorityReader(Pool(server, 1)).load()  # type: ignore[arg-type]
    assert await asyncio.to_thread(a_loop.run_until_complete, reading) == [real]
