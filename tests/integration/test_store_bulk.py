"""Many statuses at once: what an import changes, what it leaves alone, and who may do it. Against a real PostgreSQL."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from lakthan import der
from lakthan.errors import StoreUnavailable
from lakthan.store import bulk
from lakthan.store.acting import acting
from lakthan.store.audit_verify import verify
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.bulk import CRLOutcome, IssuedOutcome, import_issued
from lakthan.store.changes import ChangeRefused, ChangeWriter, NotYourAuthority
from lakthan.store.copy_rows import IssuedEntry
from lakthan.store.crl_scopes import CRLScopes
from lakthan.store.history import ChangeReader
from lakthan.store.records import Change, CRLReason, StatusRecord
from lakthan.store.status import AuthorityReader, StatusReader
from lakthan_registry.crl_check import CRLRefused
from lakthan_registry.crl_import import import_crl
from lakthan_registry.crl_rows import crl_rows
from lakthan_registry.crl_syntax import read_crl
from support.crl import Listed, entry, extension, new_crl, reason_extension
from support.database import OpenPool
from support.pki import Issued, new_ca

_REVOKED_AT = datetime(2025, 3, 4, 5, 6, 7, tzinfo=UTC)
_NOT_AFTER = datetime(2030, 1, 1, tzinfo=UTC)
_USER_CERTIFICATES = der.sequence(der.encode(0x81, b"\xff"))


async def _audit_is_whole(pool: asyncpg.Pool) -> None:
    """What is on record adds up, by the verifier that knows nothing of the SQL."""
    assert (await verify(pool)).findings == []


class House:
    """An authority in the test's database, its key, and the operator's hand."""

    def __init__(self, pool: asyncpg.Pool, ca: Issued, authority_id: int) -> None:
        self.pool = pool
        self.ca = ca
        self.authority_id = authority_id
        self.writer = ChangeWriter(pool)
        self._made = 0

    def crl(self, entries: Sequence[bytes], number: int, **facts: object) -> bytes:
        """A CRL; each one begins a minute after the one before, all of them in the past."""
        self._made += 1
        begins = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1) + timedelta(minutes=self._made)
        return new_crl(self.ca, Listed(entries, number, **{"this_update": begins, **facts}))  # type: ignore[arg-type]

    async def take(self, data: bytes, *, force: bool = False, dry_run: bool = False) -> CRLOutcome:
        """Import it now, as the operator."""
        return await import_crl(
            data, pool=self.pool, now=datetime.now(UTC), actor="me", through="test", force=force, dry_run=dry_run
        )

    async def record(self, serial_number: bytes) -> StatusRecord | None:
        """What is on record."""
        return await StatusReader(self.pool).find(self.authority_id, serial_number)

    async def reasons(self, *serial_numbers: bytes) -> list[CRLReason | str | None]:
        """The reason of each that is revoked, "good" for a good one, None without a record."""
        found = [await self.record(each) for each in serial_numbers]
        return [
            None if each is None else "good" if each.revocation_time is None else each.revocation_reason or "revoked"
            for each in found
        ]


@pytest.fixture
async def house(open_as: OpenPool) -> AsyncIterator[House]:
    """A CA whose certificate is on record. After each test everything on record must add up."""
    pool = await open_as("lakthan_registry")
    ca = new_ca("House CA")
    yield House(pool, ca, await AuthorityAdmin(pool).add_authority("House CA", [ca.der], actor="me"))
    await _audit_is_whole(pool)


async def test_a_first_crl_puts_every_entry_on_record(house: House) -> None:
    """With its time, reason and invalidity date, in one batch that one audit record seals; and the responders learn how
    fresh it is.
    """
    data = house.crl([entry(b"\x01", 1), entry(b"\x02"), entry(b"\x03", 6)], 7)
    outcome = await house.take(data)
    assert (outcome.revoked, outcome.held, outcome.entries, outcome.crl_number) == (2, 1, 3, 7)
    assert (outcome.released, outcome.unchanged, outcome.vanished, outcome.reason_changed) == (0, 0, 0, 0)
    assert await house.reasons(b"\x01", b"\x02", b"\x03") == [
        CRLReason.KEY_COMPROMISE,
        "revoked",
        CRLReason.CERTIFICATE_HOLD,
    ]
    record = await house.record(b"\x01")
    assert record is not None
    assert record.revocation_time == _REVOKED_AT
    [authority] = await AuthorityReader(house.pool).load()
    assert authority.crl is not None
    assert authority.crl.crl_number == b"\x07"
    changes = await house.pool.fetch("SELECT change::text, batch, version, crl_scope, actor FROM status_change")
    assert sorted(each["change"] for each in changes) == ["hold", "revoke", "revoke"]
    assert {(each["batch"], each["actor"]) for each in changes} == {(changes[0]["batch"], "me")}
    assert max(each["version"] for each in changes) == outcome.version
    [sealed] = await house.pool.fetch("SELECT * FROM audit_record WHERE batch IS NOT NULL")
    assert (sealed["event"], sealed["change_count"], sealed["through"]) == ("crl", 3, "test")
    assert json.loads(sealed["detail"])["crl_number"] == "7"


async def test_the_same_crl_again_is_nothing_new(house: House) -> None:
    """No error, no change, not even an audit record; and a newer CRL that says the same changes no status."""
    entries = [entry(b"\x01", 1), entry(b"\x02", 6)]
    data = house.crl(entries, 1)
    await house.take(data)
    audited = await house.pool.fetchval("SELECT count(*) FROM audit_record")
    again = await house.take(data)
    assert (again.nothing_new, again.version, again.revoked) == (True, None, 0)
    assert await house.pool.fetchval("SELECT count(*) FROM audit_record") == audited
    newer = await house.take(house.crl(entries, 2))
    assert (newer.nothing_new, newer.unchanged, newer.version) == (False, 2, None)
    assert await house.pool.fetchval("SELECT count(*) FROM status_change") == 2


async def test_a_revocation_on_record_is_final(house: House) -> None:
    """An entry that has vanished stays revoked, another reason is not taken over; both are reported."""
    await house.take(house.crl([entry(b"\x01", 1), entry(b"\x02", 4)], 1))
    outcome = await house.take(house.crl([entry(b"\x02", 5)], 2), force=True)
    assert (outcome.vanished, outcome.reason_changed, outcome.version) == (1, 1, None)
    assert await house.reasons(b"\x01", b"\x02") == [CRLReason.KEY_COMPROMISE, CRLReason.SUPERSEDED]


async def test_announced_certificates_are_revoked_and_held_by_a_crl(house: House) -> None:
    """Good ones become what the CRL says and keep their notAfter; what is not listed stays good."""
    for serial in (b"\x01", b"\x02", b"\x03"):
        await house.writer.issue(house.authority_id, serial, not_after=_NOT_AFTER, actor="me")
    outcome = await house.take(house.crl([entry(b"\x01", 1), entry(b"\x02", 6)], 1))
    assert (outcome.revoked, outcome.held) == (1, 1)
    assert await house.reasons(b"\x01", b"\x02", b"\x03") == [
        CRLReason.KEY_COMPROMISE,
        CRLReason.CERTIFICATE_HOLD,
        "good",
    ]
    record = await house.record(b"\x01")
    assert record is not None
    assert record.not_after == _NOT_AFTER
    [change] = await house.pool.fetch("SELECT * FROM status_change WHERE version = $1", record.version)
    assert change["previous_version"] is not None


async def test_a_hold_ends_when_the_next_complete_crl_does_not_list_it(house: House) -> None:
    """It becomes good again, or revoked for good when the CRL says so."""
    await house.take(house.crl([entry(b"\x01", 6), entry(b"\x02", 6), entry(b"\x03", 6)], 1))
    outcome = await house.take(house.crl([entry(b"\x02", 1), entry(b"\x03", 6)], 2), force=True)
    assert (outcome.released, outcome.revoked, outcome.unchanged) == (1, 1, 1)
    assert await house.reasons(b"\x01", b"\x02", b"\x03") == [
        "good",
        CRLReason.KEY_COMPROMISE,
        CRLReason.CERTIFICATE_HOLD,
    ]


async def test_a_pushed_hold_is_not_lifted_by_a_crl_that_never_held_it(house: House) -> None:
    """A CRL made before the hold does not know of it; one made later that does not list it never held it either."""
    await house.writer.issue(house.authority_id, b"\x01", actor="me")
    await house.writer.hold(house.authority_id, b"\x01", actor="me")
    outcome = await house.take(house.crl([], 1))
    assert outcome.released == 0
    assert await house.reasons(b"\x01") == [CRLReason.CERTIFICATE_HOLD]


async def test_a_hold_that_was_pushed_again_outlives_an_older_crl(house: House) -> None:
    """Held by a CRL, released and held again by hand: a CRL made before that does not lift it, one made after does."""
    await house.take(house.crl([entry(b"\x01", 6)], 1))
    await house.writer.unhold(house.authority_id, b"\x01", actor="me")
    await house.writer.hold(house.authority_id, b"\x01", actor="me")
    before = await house.take(house.crl([], 2), force=True)
    assert before.released == 0
    assert await house.reasons(b"\x01") == [CRLReason.CERTIFICATE_HOLD]


async def test_a_pushed_hold_that_the_crl_took_over_ends_with_it(house: House) -> None:
    """The CA pushes a hold and its CRLs list it from then on: when they list it no more, it is over."""
    await house.writer.issue(house.authority_id, b"\x01", actor="me")
    await house.writer.hold(house.authority_id, b"\x01", actor="me")
    [pushed] = await house.pool.fetch("SELECT recorded_at FROM status_change WHERE change = 'hold'")
    after = pushed["recorded_at"].replace(microsecond=0) + timedelta(seconds=1)
    listed = house.crl([entry(b"\x01", 6)], 1)
    assert (await house.take(listed)).unchanged == 1
    later = house.crl([], 2, this_update=after)
    outcome = await import_crl(
        later, pool=house.pool, now=after + timedelta(seconds=5), actor="me", through="test", force=True
    )
    assert outcome.released == 1
    assert await house.reasons(b"\x01") == ["good"]


async def test_scopes_do_not_undo_each_other(house: House) -> None:
    """A CRL for user certificates and one about everything: a hold ends only in the scope that holds it, and not while
    another one holds it too. The responders hear of the oldest of the two.
    """
    whole = house.crl([entry(b"\x01", 6)], 1)
    users = house.crl([entry(b"\x01", 6), entry(b"\x02", 6)], 1, scope=_USER_CERTIFICATES)
    await house.take(whole)
    await house.take(users)
    outcome = await house.take(house.crl([], 2, scope=_USER_CERTIFICATES), force=True)
    assert outcome.released == 1
    assert await house.reasons(b"\x01", b"\x02") == [CRLReason.CERTIFICATE_HOLD, "good"]
    scopes = await house.pool.fetch("SELECT this_update, next_update FROM crl_scope")
    [authority] = await AuthorityReader(house.pool).load()
    assert authority.crl is not None
    assert authority.crl.this_update == min(each["this_update"] for each in scopes)
    assert authority.crl.next_update == min(each["next_update"] for each in scopes)
    assert authority.crl.crl_number is None


async def test_a_delta_crl_adds_and_removes(house: House) -> None:
    """It revokes, it lifts a hold, it turns a hold into a revocation, and leaves the rest as it is."""
    await house.take(house.crl([entry(b"\x01", 1), entry(b"\x02", 6), entry(b"\x03", 6), entry(b"\x04", 6)], 1))
    outcome = await house.take(
        house.crl([entry(b"\x02", 8), entry(b"\x03", 4), entry(b"\x05", 1), entry(b"\x09", 8)], 2, base=1)
    )
    assert (outcome.delta, outcome.released, outcome.revoked, outcome.vanished) == (True, 1, 2, 0)
    assert await house.reasons(b"\x01", b"\x02", b"\x03", b"\x04", b"\x05", b"\x09") == [
        CRLReason.KEY_COMPROMISE, "good", CRLReason.SUPERSEDED, CRLReason.CERTIFICATE_HOLD,
        CRLReason.KEY_COMPROMISE, None,
    ]  # fmt: skip
    # The complete CRL that is issued with the delta has the same number and says the same.
    complete = house.crl([entry(b"\x01", 1), entry(b"\x03", 4), entry(b"\x04", 6), entry(b"\x05", 1)], 2)
    assert (await house.take(complete)).version is None


async def test_entries_of_the_future_count_from_this_update(house: House) -> None:
    """A revocationDate after thisUpdate cannot be: the CRL itself says that it is revoked by then."""
    begins = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=2)
    await house.take(house.crl([entry(b"\x01", 1, at=begins + timedelta(days=3))], 1, this_update=begins))
    record = await house.record(b"\x01")
    assert record is not None
    assert record.revocation_time == begins


async def test_a_large_drop_needs_force(house: House) -> None:
    """A truncated CRL is refused and changes nothing; the operator may insist. A few entries may always go."""
    serials = [bytes((number,)) for number in range(1, 101)]
    await house.take(house.crl([entry(each, 6) for each in serials], 1))
    truncated = house.crl([entry(each, 6) for each in serials[:80]], 2)
    with pytest.raises(CRLRefused, match="--force") as error:
        await house.take(truncated)
    assert error.value.verdict.label == "dropped_entries"
    assert await house.reasons(b"\x64") == [CRLReason.CERTIFICATE_HOLD]
    assert (await house.take(truncated, force=True)).released == 20
    assert (await house.take(house.crl([entry(each, 6) for each in serials[:70]], 3))).released == 10


async def test_a_dry_run_changes_nothing_and_says_the_same(house: House) -> None:
    """The counts are those of the real import; nothing is on record afterwards."""
    data = house.crl([entry(b"\x01", 1), entry(b"\x02", 6)], 1)
    dry = await house.take(data, dry_run=True)
    assert (dry.revoked, dry.held, dry.version, dry.dry_run) == (1, 1, None, True)
    assert await house.reasons(b"\x01", b"\x02") == [None, None]
    assert await house.pool.fetchval("SELECT count(*) FROM crl_scope") == 0
    real = await house.take(data)
    assert (real.revoked, real.held) == (1, 1)


async def test_a_serial_number_listed_twice(house: House) -> None:
    """Nobody can say which of the two counts: refused, and nothing of the CRL is on record."""
    data = house.crl([entry(b"\x01", 1), entry(b"\x02", 1), entry(b"\x01", 6)], 1)
    with pytest.raises(CRLRefused, match="serial number 01") as error:
        await house.take(data)
    assert error.value.verdict.label == "contradicting_entries"
    assert await house.reasons(b"\x02") == [None]


async def test_a_malformed_entry_at_the_end_undoes_everything(house: House) -> None:
    """Twenty thousand entries had been sent to the database before the reader met it."""
    entries = [entry(der.integer_content(number), 1) for number in range(1, 20_001)]
    with pytest.raises(CRLRefused) as error:
        await house.take(house.crl([*entries, entry(b"\x01", 7)], 1))
    assert error.value.verdict.label == "malformed"
    assert await house.pool.fetchval("SELECT count(*) FROM certificate_status") == 0
    assert (await house.take(house.crl(entries, 1))).revoked == 20_000  # the connection is as good as before


async def test_an_indirect_crl_revokes_for_another_authority_only_by_the_operator(
    house: House, open_as: OpenPool
) -> None:
    """The operator imports it for both authorities; a publisher of its issuer does not see the other one."""
    other = new_ca("Other CA")
    other_id = await AuthorityAdmin(house.pool).add_authority("Other CA", [other.der], actor="me")
    name = (await AuthorityReader(house.pool).load())[1].names[0]
    issuer = der.sequence(der.object_identifier("2.5.29.29"), b"\x01\x01\xff",
                          der.octet_string(der.sequence(der.encode(0xA4, name))))  # fmt: skip
    data = house.crl(
        [entry(b"\x01", 1), entry(b"\x02", 1, extensions=[issuer]), entry(b"\x03", 1)],
        1,
        scope=der.sequence(der.encode(0x84, b"\xff")),
    )
    publisher = await open_as("lakthan_publisher")
    with pytest.raises(CRLRefused) as error:
        await import_crl(
            data, pool=publisher, now=datetime.now(UTC), actor="ca", through="api", acting_for=house.authority_id
        )
    assert error.value.verdict.label == "unknown_authority"
    assert (await house.take(data)).revoked == 3
    assert await StatusReader(house.pool).find(other_id, b"\x03") is not None
    records = await AuthorityReader(house.pool).load()
    assert [each.crl is not None for each in records] == [True, True]
    batches = await house.pool.fetch(
        "SELECT chain, change_count FROM audit_record WHERE batch IS NOT NULL ORDER BY chain"
    )
    assert [tuple(each) for each in batches] == [(house.authority_id, 1), (other_id, 2)]


async def test_a_crl_that_comes_in_parts(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database compares one part while the next is read. A first CRL and the next one come out as if there were no
    parts: each entry counts once, holds end, what is missing is told, and every thousand changes are sealed.
    """
    monkeypatch.setattr(bulk, "_PART_OCTETS", 20_000)
    serials = [der.integer_content(number) for number in range(1, 3_001)]
    first = await house.take(house.crl([entry(each, (1, 6)[at % 10 == 0]) for at, each in enumerate(serials)], 1))
    assert (first.entries, first.revoked, first.held, first.unchanged) == (3_000, 2_700, 300, 0)
    assert await house.pool.fetchval("SELECT count(*) FROM certificate_status WHERE cert_status = 'revoked'") == 3_000
    assert first.version == await house.pool.fetchval("SELECT max(version) FROM status_change")
    assert await house.pool.fetchval("SELECT complete_entries FROM crl_scope") == 3_000
    # Held ones are gone or revoked for good, some revoked ones are gone, and there are new ones.
    after = [entry(each, 4 if at < 1_000 else 1) for at, each in enumerate(serials) if at % 10 or at < 1_000]
    more = [entry(der.integer_content(number), 5) for number in range(5_000, 5_400)]
    second = await house.take(house.crl([*after[50:], *more], 2), force=True)
    held_then_revoked = 100 - 5
    assert (second.entries, second.revoked) == (len(after) - 50 + 400, 400 + held_then_revoked)
    assert (second.released, second.vanished) == (300 - held_then_revoked, 45)
    assert second.reason_changed == 950 - held_then_revoked
    await _audit_is_whole(house.pool)


async def test_a_serial_number_listed_twice_in_different_parts(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first and the last of a thousand entries: refused as it is in one part, and nothing is on record."""
    monkeypatch.setattr(bulk, "_PART_OCTETS", 10_000)
    entries = [entry(der.integer_content(number), 1) for number in range(1, 1_001)]
    with pytest.raises(CRLRefused, match="serial number 01") as error:
        await house.take(house.crl([*entries, entry(b"\x01", 4)], 1))
    assert error.value.verdict.label == "contradicting_entries"
    for table in ("certificate_status", "status_change", "crl_scope"):
        assert await house.pool.fetchval(f"SELECT count(*) FROM {table}") == 0


async def test_a_certificate_revoked_while_a_first_crl_is_staged(house: House) -> None:
    """The first CRL goes into the history at once, where nothing is on record. A single revocation that is committed
    meanwhile does not wait for it, and is not overwritten: the import is compared anew.
    """
    attempts = 0

    async def staged(work: bulk.CRLImport) -> CRLOutcome:
        nonlocal attempts
        attempts += 1
        await work.scope()
        data = house.crl([entry(b"\x01", 1), entry(b"\x02", 1)], 1)
        await work.stage(chunk.row for chunk in crl_rows(read_crl(data), house.authority_id, lambda _name: 0))
        if attempts == 1:
            await house.writer.revoke(house.authority_id, b"\x02", reason=CRLReason.SUPERSEDED, actor="other")
        plan = await work.plan()
        version = await work.apply(plan, "me")
        return CRLOutcome(
            house.authority_id, 1, delta=False, entries=plan.entries, revoked=plan.revoked, version=version
        )

    outcome = await bulk.crl_import(house.pool, _facts(house), staged, actor="me", through="test")
    assert (attempts, outcome.revoked) == (2, 1)
    assert await house.reasons(b"\x01", b"\x02") == [CRLReason.KEY_COMPROMISE, CRLReason.SUPERSEDED]


async def test_an_import_is_applied_as_it_was_begun(house: House) -> None:
    """Who staged the entries is who is on record for them: to apply them in another name is refused."""

    async def in_another_name(work: bulk.CRLImport) -> CRLOutcome:
        data = house.crl([entry(b"\x01", 1)], 1)
        await work.stage(chunk.row for chunk in crl_rows(read_crl(data), house.authority_id, lambda _name: 0))
        await work.apply(await work.plan(), "somebody else")
        raise AssertionError("it was applied")

    with pytest.raises(ChangeRefused, match="another import was begun"):
        await bulk.crl_import(house.pool, _facts(house), in_another_name, actor="me", through="test")
    assert await house.reasons(b"\x01") == [None]


async def test_staged_history_cannot_be_committed_without_its_status(house: House, open_as: OpenPool) -> None:
    """A CA with SQL of its own stages a first CRL and commits without applying it: refused, nothing is on record. Nor
    can anything be added to an import that was applied.
    """
    publisher = await open_as("lakthan_publisher")
    copied = [chunk.row for chunk in crl_rows(read_crl(house.crl([entry(b"\x01", 1)], 1)), house.authority_id, int)]

    async def stage(connection: asyncpg.pool.PoolConnectionProxy) -> None:
        await bulk._copy(connection, copied, bulk._CRL_TABLE, bulk._CRL_COLUMNS)
        await connection.execute("SELECT take_crl_part($1, '', now() - interval '1 hour', 'ca')", house.authority_id)

    async def without_applying() -> None:
        async with acting(publisher, authority_id=house.authority_id) as connection:
            await connection.execute("SELECT open_bulk($1)", house.authority_id)
            await stage(connection)

    async def adding_afterwards() -> None:
        async with acting(publisher, authority_id=house.authority_id) as connection:
            await connection.execute("SELECT open_bulk($1)", house.authority_id)
            await stage(connection)
            scope = await connection.fetchval("SELECT crl_scope FROM status_change")
            await connection.execute("SELECT apply_plan($1, 'ca', $2)", house.authority_id, scope)
            await stage(connection)

    for attempt, why in (
        (without_applying, "not applied cannot be committed"),
        (adding_afterwards, "this import was applied"),
    ):
        with pytest.raises(asyncpg.PostgresError, match=why) as refusal:
            await attempt()
        assert refusal.value.sqlstate == "LK002"
        assert await house.pool.fetchval("SELECT count(*) FROM status_change") == 0
    assert await house.reasons(b"\x01") == [None]


async def test_the_history_of_imports_is_not_written_by_hand(house: House, open_as: OpenPool) -> None:
    """Its rows stand in status_change and lie in a table of their own, where the owner is stopped as well."""
    await house.take(house.crl([entry(b"\x01", 1)], 1))
    owner = await open_as(None)
    for statement in (
        "UPDATE bulk_change SET actor = 'x'",
        "DELETE FROM bulk_change",
        "TRUNCATE bulk_change",
        "UPDATE status_change SET actor = 'x'",
        f"INSERT INTO bulk_change SELECT * FROM status_change WHERE authority_id = {house.authority_id}",
    ):
        with pytest.raises(asyncpg.PostgresError) as refusal:
            await owner.execute(statement)
        assert refusal.value.sqlstate == "LK003"


async def _tables_of_imports(pool: asyncpg.Pool) -> list[str]:
    rows = await pool.fetch("SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ~ '^bulk_change_'")
    return [row["relname"] for row in rows]


def _many(count: int) -> list[bytes]:
    """Entries of every reason that a complete CRL may give, of serial numbers of several lengths."""
    reasons = (None, 0, 1, 2, 3, 4, 5, 6, 9, 10)
    return [entry(der.integer_content(3 ** (number % 40) * 20_000 + number), reasons[number % 10]) for number in
            range(count)]  # fmt: skip


async def test_the_history_of_a_great_first_crl(house: House, open_as: OpenPool) -> None:
    """It has a table of its own, and nobody who reads can tell: changes are found by version and by batch, a hold ends
    and its history goes on, a CA sees its own rows alone, and neither a role nor the owner changes any of them.
    """
    entries = _many(12_000)
    first = await house.take(house.crl(entries, 1))
    assert (first.entries, first.revoked, first.held) == (12_000, 10_800, 1_200)
    [table] = await _tables_of_imports(house.pool)
    owner = await open_as(None)
    assert await owner.fetchval(f"SELECT count(*) FROM {table}") == 12_000
    assert await house.pool.fetchval("SELECT max(version) FROM status_change") == first.version
    [number] = await house.pool.fetch("SELECT number, batch FROM audit_record WHERE change_count = 12000")
    found = "SELECT count(*) FROM changes_after($1, $2, 100000)"
    responder = await open_as("lakthan_responder")
    assert await responder.fetchval(found, house.authority_id, number["number"] - 1) >= 12_000
    # The next CRL: the first hold is gone, and there is a new entry.
    second = await house.take(house.crl([*entries[:7], *entries[8:], entry(b"\x09", 1)], 2))
    assert (second.revoked, second.released, second.unchanged, second.vanished) == (1, 1, 11_999, 0)
    assert await _tables_of_imports(house.pool) == [table]
    held = der.integer_content(3**7 * 20_000 + 7)
    history = await ChangeReader(house.pool).history(house.authority_id, held)
    assert [each.request.change for each in history] == [Change.HOLD, Change.UNHOLD]
    assert history[1].previous_version == history[0].version

    other = await open_as("lakthan_publisher")
    for acting_for, seen in ((house.authority_id, 12_002), (house.authority_id + 1, 0)):
        async with acting(other, authority_id=acting_for) as connection:
            assert await connection.fetchval("SELECT count(*) FROM status_change") == seen
    for role in ("lakthan_publisher", "lakthan_registry", "lakthan_auditor", "lakthan_responder"):
        pool = await open_as(role)
        for statement in (f"SELECT actor FROM {table}", f"INSERT INTO {table} SELECT * FROM {table}"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await pool.execute(statement)
    for statement in (
        f"UPDATE {table} SET actor = 'x'",
        f"DELETE FROM {table}",
        f"TRUNCATE {table}",
        f"INSERT INTO {table} SELECT * FROM {table}",
        "UPDATE status_change SET actor = 'x'",
    ):
        with pytest.raises(asyncpg.PostgresError) as refusal:
            await owner.execute(statement)
        assert refusal.value.sqlstate == "LK003"


async def test_a_great_first_crl_that_comes_to_nothing_leaves_nothing(house: House, open_as: OpenPool) -> None:
    """A dry run, a serial number that is listed twice, a malformed last entry, and a CA with SQL of its own that
    commits without applying: no table of such an import stays, and the CRL can be imported after all.
    """
    entries = _many(11_000)
    assert (await house.take(house.crl(entries, 1), dry_run=True)).revoked == 9_900
    for wrong, verdict in ((entries[5], "contradicting_entries"), (entry(b"\x01", 7), "malformed")):
        with pytest.raises(CRLRefused) as error:
            await house.take(house.crl([*entries, wrong], 1))
        assert error.value.verdict.label == verdict
    publisher = await open_as("lakthan_publisher")
    copied = [chunk.row for chunk in crl_rows(read_crl(house.crl(entries, 1)), house.authority_id, int)]

    async def without_applying() -> None:
        async with acting(publisher, authority_id=house.authority_id) as connection:
            await connection.execute("SELECT open_bulk($1)", house.authority_id)
            await bulk._copy(connection, copied, bulk._CRL_TABLE, bulk._CRL_COLUMNS)
            for function in (
                "take_crl_part($1, '', now() - interval '1 hour', 'ca')",
                "plan_crl($1, '', false, now())",
            ):
                await connection.execute(f"SELECT {function}", house.authority_id)

    with pytest.raises(asyncpg.PostgresError, match="not applied cannot be committed"):
        await without_applying()
    assert await _tables_of_imports(house.pool) == []
    assert await house.pool.fetchval("SELECT count(*) FROM status_change") == 0
    assert (await house.take(house.crl(entries, 1))).held == 1_100


async def test_what_the_entries_of_a_great_first_crl_say(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times, reasons and invalidity dates come on record as they stand there: in entries of every usual shape and odd
    ones, side by side in one part, and in every part.
    """
    monkeypatch.setattr(bulk, "_PART_OCTETS", 600_000)
    wanted = {}
    entries = []
    for number in range(1, 30_001):
        serial, at = der.integer_content(number * 7919), _REVOKED_AT + timedelta(seconds=number)
        reason = (None, 1, 4, 6)[number % 4]
        invalid = at - timedelta(days=3) if number % 5 == 0 else None
        said = [] if reason is None else [reason_extension(reason)]
        if invalid is not None:
            said.append(extension("2.5.29.24", der.generalized_time(invalid)))
        if number % 35 == 0:
            said.reverse()  # in this order nobody expects them: read by the strict reader
        entries.append(entry(serial, at=at, extensions=said))
        wanted[serial] = (at, reason, invalid)
    outcome = await house.take(house.crl(entries, 1))
    assert (outcome.revoked, outcome.held) == (22_500, 7_500)
    columns = "serial_number, revocation_time, revocation_reason, invalidity_date"
    for table in ("certificate_status", "status_change"):
        rows = await house.pool.fetch(f"SELECT {columns} FROM {table}")
        assert {bytes(row[0]): tuple(row)[1:] for row in rows} == wanted
    assert len(await _tables_of_imports(house.pool)) == 1


async def test_a_great_seal_is_dealt_out(house: House, open_as: OpenPool) -> None:
    """Helpers of the session hash parts of it: PostgreSQL plans so, with the settings that the seal brings along."""
    owner = await open_as(None)
    async with owner.acquire() as connection, connection.transaction():
        settings = await connection.fetchval("SELECT proconfig FROM pg_proc WHERE proname = 'seal_bulk'")
        for name, value in (each.split("=", 1) for each in settings):
            await connection.execute("SELECT set_config($1, $2, true)", name, value.strip('"'))
        shares = " UNION ALL ".join(f"SELECT * FROM hash_changes(1, 1, 'me', 1, {at}, {at})" for at in range(8))
        plan = await connection.fetch(f"EXPLAIN SELECT count(*) FROM ({shares}) AS h")
    assert any("Parallel Append" in line[0] for line in plan), plan
    assert any("Workers Planned: 2" in line[0] for line in plan), plan


async def test_two_great_first_crls_at_once(house: House) -> None:
    """Two CAs import their first CRLs at the same moment: each gets its own table, and both are whole."""
    ca = new_ca("Other CA")
    other = House(house.pool, ca, await AuthorityAdmin(house.pool).add_authority("Other CA", [ca.der], actor="me"))
    entries = _many(10_500)
    outcomes = await asyncio.gather(house.take(house.crl(entries, 1)), other.take(other.crl(entries, 1)))
    assert [each.revoked + each.held for each in outcomes] == [10_500, 10_500]
    assert len(await _tables_of_imports(house.pool)) == 2


async def test_only_the_operator_retires_a_scope(house: House, open_as: OpenPool) -> None:
    """What an authority's freshness hangs on is the operator's to end, and an unknown scope is named."""
    await house.take(house.crl([entry(b"\x01", 6)], 1))
    [scope] = await CRLScopes(house.pool).load(house.authority_id)
    assert (scope.scope, scope.crl_number, scope.entries, scope.holds) == (b"", 1, 1, 1)
    publisher = await open_as("lakthan_publisher")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await publisher.execute("SELECT retire_crl_scope($1, $2)", house.authority_id, scope.id)
    with pytest.raises(ChangeRefused, match="has no CRLs of scope 4711"):
        await CRLScopes(house.pool).retire(house.authority_id, 4711, actor="me")
    await CRLScopes(house.pool).retire(house.authority_id, scope.id, actor="me")
    [authority] = await AuthorityReader(house.pool).load()
    assert authority.crl is None
    assert await house.reasons(b"\x01") == [CRLReason.CERTIFICATE_HOLD]


async def test_a_publisher_imports_its_own_crl_and_no_other(house: House, open_as: OpenPool) -> None:
    """As the registry's service does: under row-level security, for the one authority that was authenticated."""
    other_id = await AuthorityAdmin(house.pool).add_authority("Other CA", [new_ca("Other CA").der], actor="me")
    publisher = await open_as("lakthan_publisher")
    data = house.crl([entry(b"\x01", 1)], 1)
    with pytest.raises(CRLRefused) as error:
        await import_crl(data, pool=publisher, now=datetime.now(UTC), actor="ca", through="api", acting_for=other_id)
    assert error.value.verdict.label == "unknown_issuer"
    outcome = await import_crl(
        data, pool=publisher, now=datetime.now(UTC), actor="ca", through="api", acting_for=house.authority_id
    )
    assert outcome.revoked == 1


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT open_bulk($1)",
        "SELECT take_crl_part($1, '', now(), 'me')",
        "SELECT plan_crl($1, '', false, now())",
        "SELECT plan_issued($1)",
        "SELECT apply_plan($1, 'me', NULL)",
        "SELECT record_crl($1, '', false, NULL, now(), now(), sha256(''), 0, NULL, 'me')",
    ],
)
async def test_a_publisher_cannot_call_the_functions_for_another_authority(
    house: House, open_as: OpenPool, statement: str
) -> None:
    """Each function asks first for whom the caller acts."""
    publisher = await open_as("lakthan_publisher")
    async with publisher.acquire() as connection, connection.transaction():
        await connection.execute("SELECT set_config('lakthan.authority', $1, true)", str(house.authority_id + 1))
        with pytest.raises(asyncpg.PostgresError) as error:
            await connection.execute(statement, house.authority_id)
    assert error.value.sqlstate == "LK006"


async def test_nobody_slips_a_table_of_his_own_under_the_functions(house: House) -> None:
    """A table with the name of the staged one that is not the schema's own is refused."""
    async with house.pool.acquire() as connection, connection.transaction():
        for table in ("staged_entry", "staged_part", "planned_change"):
            await connection.execute(f"CREATE TEMP TABLE {table} (authority_id integer) ON COMMIT DROP")
        for function in ("apply_plan($1, 'me', NULL)", "take_crl_part($1, '', now(), 'me')"):
            with pytest.raises(asyncpg.PostgresError, match="open_bulk first"):
                async with connection.transaction():
                    await connection.execute(f"SELECT {function}", house.authority_id)


async def test_a_change_by_somebody_else_meanwhile_is_planned_anew(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the comparison and the change another writer revokes one of the certificates and announces another: the
    import compares again, and neither is lost nor overwritten.
    """
    await house.writer.issue(house.authority_id, b"\x01", actor="me")
    plan = bulk.CRLImport.plan
    others = [(b"\x01", CRLReason.SUPERSEDED), (b"\x02", CRLReason.SUPERSEDED)]

    async def disturbed(transaction: bulk.CRLImport) -> bulk.CRLPlan:
        planned = await plan(transaction)
        if others:
            serial, reason = others.pop()
            await house.writer.revoke(house.authority_id, serial, reason=reason, actor="somebody else")
        return planned

    monkeypatch.setattr(bulk.CRLImport, "plan", disturbed)
    outcome = await house.take(house.crl([entry(b"\x01", 1), entry(b"\x02", 1), entry(b"\x03", 1)], 1))
    assert (outcome.revoked, outcome.reason_changed) == (1, 2)
    assert await house.reasons(b"\x01", b"\x02", b"\x03") == [CRLReason.SUPERSEDED] * 2 + [CRLReason.KEY_COMPROMISE]


async def test_a_single_revocation_does_not_wait_for_an_import(house: House) -> None:
    """While an import of the same authority is under way, another certificate is revoked at once. Only the sealing at
    its end, a moment before the commit, puts the two into one line.
    """
    compared, go_on = asyncio.Event(), asyncio.Event()

    async def slow(progress: bulk.CRLImport) -> CRLOutcome:
        await progress.stage([])
        planned = await progress.plan()
        compared.set()
        await go_on.wait()
        await progress.apply(planned, "me")
        return CRLOutcome(house.authority_id, 1, delta=False, entries=0)

    under_way = asyncio.create_task(bulk.crl_import(house.pool, _facts(house), slow, actor="me", through="test"))
    await compared.wait()
    assert await house.writer.revoke(house.authority_id, b"\x55", actor="me") > 0
    go_on.set()
    await under_way


def _facts(house: House) -> bulk.CRLFacts:
    now = datetime.now(UTC).replace(microsecond=0)
    return bulk.CRLFacts(
        house.authority_id,
        b"",
        delta=False,
        crl_number=1,
        this_update=now - timedelta(hours=1),
        next_update=now + timedelta(days=1),
        sha256=bytes(32),
    )


def _issued(serial: bytes, **changes: object) -> IssuedEntry:
    parts = {"end": _NOT_AFTER, "sha256": None, "at": None, "reason": None, "invalid": None, **changes}
    return (serial, parts["end"], parts["sha256"], parts["at"], parts["reason"], parts["invalid"])  # type: ignore[return-value]


async def _import(house: House, *entries: IssuedEntry, dry_run: bool = False) -> IssuedOutcome:
    return await import_issued(
        house.pool, house.authority_id, entries, actor="me", through="test", detail={"file": "x"}, dry_run=dry_run
    )


async def test_an_issued_list_in_all_its_words(house: House) -> None:
    """Good, revoked and held ones come on record as such at once; told again they are unchanged."""
    entries = [
        _issued(b"\x01", sha256=bytes(32)),
        _issued(b"\x02", at=_REVOKED_AT, reason=1, invalid=_REVOKED_AT - timedelta(days=1)),
        _issued(b"\x03", at=_REVOKED_AT, reason=6),
        _issued(b"\x04", at=_REVOKED_AT),
    ]
    outcome = await _import(house, *entries)
    assert (outcome.issued, outcome.revoked, outcome.held, outcome.unchanged, outcome.contradicting) == (1, 2, 1, 0, 0)
    assert await house.reasons(b"\x01", b"\x02", b"\x03", b"\x04") == [
        "good", CRLReason.KEY_COMPROMISE, CRLReason.CERTIFICATE_HOLD, "revoked"
    ]  # fmt: skip
    record = await house.record(b"\x02")
    assert record is not None
    assert (record.not_after, record.invalidity_date) == (_NOT_AFTER, _REVOKED_AT - timedelta(days=1))
    again = await _import(house, *entries)
    assert (again.unchanged, again.version) == (4, None)
    [sealed] = await house.pool.fetch("SELECT * FROM audit_record WHERE batch IS NOT NULL")
    assert (sealed["event"], json.loads(sealed["detail"])) == ("import", {"file": "x"})


async def test_what_an_issued_list_changes_and_what_it_only_contradicts(house: House) -> None:
    """A revocation in the list is taken over, also from a hold; nothing is un-revoked, and no notAfter is rewritten."""
    await _import(house, *(_issued(bytes((number,))) for number in range(1, 5)))
    await house.writer.hold(house.authority_id, b"\x02", actor="me")
    await house.writer.revoke(house.authority_id, b"\x03", reason=CRLReason.SUPERSEDED, actor="me")
    outcome = await _import(
        house,
        _issued(b"\x01", at=_REVOKED_AT, reason=1, end=_NOT_AFTER + timedelta(days=1)),
        _issued(b"\x02", at=_REVOKED_AT, reason=4),
        _issued(b"\x03"),
        _issued(b"\x04", end=_NOT_AFTER + timedelta(days=1)),
    )
    assert (outcome.revoked, outcome.contradicting, sorted(outcome.examples)) == (2, 2, [b"\x03", b"\x04"])
    assert await house.reasons(b"\x01", b"\x02", b"\x03", b"\x04") == [
        CRLReason.KEY_COMPROMISE, CRLReason.SUPERSEDED, CRLReason.SUPERSEDED, "good"
    ]  # fmt: skip
    for serial in (b"\x01", b"\x04"):
        record = await house.record(serial)
        assert record is not None
        assert record.not_after == _NOT_AFTER


async def test_a_list_whose_revocation_lies_in_the_future_is_refused_whole(house: House) -> None:
    """The message names the serial number; nothing of the part is on record."""
    with pytest.raises(ChangeRefused, match=r"serial number 02 .* future"):
        await _import(house, _issued(b"\x01"), _issued(b"\x02", at=datetime.now(UTC) + timedelta(days=1)))
    assert await house.record(b"\x01") is None


async def test_a_dry_run_of_a_list(house: House) -> None:
    """Counts and changes nothing."""
    outcome = await _import(house, _issued(b"\x01"), _issued(b"\x02", at=_REVOKED_AT), dry_run=True)
    assert (outcome.issued, outcome.revoked, outcome.version) == (1, 1, None)
    assert await house.record(b"\x01") is None


async def test_a_list_for_somebody_else(house: House, open_as: OpenPool) -> None:
    """A publisher's list for another authority is refused by the database."""
    publisher = await open_as("lakthan_publisher")
    with pytest.raises(NotYourAuthority):
        await import_issued(
            publisher, house.authority_id, [_issued(b"\x01")], actor="ca", through="api",
            acting_for=house.authority_id + 1,
        )  # fmt: skip


async def test_a_status_needs_an_authority_and_an_authority_with_statuses_stays(house: House) -> None:
    """The reference is checked once for each statement; it holds all the same, in both directions."""
    with pytest.raises(ChangeRefused, match="no such authority"):
        await house.writer.issue(house.authority_id + 100, b"\x01", actor="me")
    await house.writer.issue(house.authority_id, b"\x01", actor="me")
    with pytest.raises(asyncpg.ForeignKeyViolationError, match="it stays"):
        await house.pool.execute("DELETE FROM authority WHERE id = $1", house.authority_id)


async def test_a_database_that_goes_away_in_the_middle(house: House, database_url: str) -> None:
    """The import says that the store is unavailable, and nothing of it is on record."""

    async def cut(progress: bulk.CRLImport) -> CRLOutcome:
        await progress.stage([])
        [victim] = await house.pool.fetch(
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND database = "
            "(SELECT oid FROM pg_database WHERE datname = current_database()) LIMIT 1"
        )
        owner = await asyncpg.connect(database_url)
        await owner.execute("SELECT pg_terminate_backend($1, 5000)", victim["pid"])
        await owner.close()
        await progress.plan()
        raise AssertionError("the connection was cut")

    facts = _facts(house)
    with pytest.raises(StoreUnavailable):
        await bulk.crl_import(house.pool, facts, cut, actor="me", through="test")
