"""Status changes: what is allowed, what is refused, and that the one way in is the only one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from lakthan.errors import LakthanError
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.changes import ChangeRefused, ChangeWriter, StateForbids
from lakthan.store.pool import connect
from lakthan.store.records import CertStatus, Change, ChangeRequest, CRLReason, CRLSource, StatusRecord
from lakthan.store.status import StatusReader
from support.database import OpenPool

SERIAL = bytes.fromhex("1f00ff")
NOT_AFTER = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture
async def writer(open_as: OpenPool) -> ChangeWriter:
    """A writer with the registry's rights."""
    return ChangeWriter(await open_as("lakthan_registry"))


@pytest.fixture
async def admin(open_as: OpenPool) -> AuthorityAdmin:
    """Who may change authorities, with the registry's rights."""
    return AuthorityAdmin(await open_as("lakthan_registry"))


@pytest.fixture
async def reader(open_as: OpenPool) -> StatusReader:
    """A reader with the responder's rights."""
    return StatusReader(await open_as("lakthan_responder"))


class Heard:
    """The notifications of one channel, in their order."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.payloads: list[str] = []
        self._connection = connection

    def __call__(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        """Keep it."""
        self.payloads.append(str(payload))

    async def now(self) -> list[str]:
        """All that was committed until now: a round trip brings what was notified before it."""
        await self._connection.fetchval("SELECT 1")
        return self.payloads


@pytest.fixture
async def heard(database_url: str) -> AsyncIterator[Heard]:
    """What the channel of the statuses says."""
    connection = await connect(database_url, role="lakthan_responder", application_name="lakthan-test")
    listener = Heard(connection)
    await connection.add_listener("lakthan_status", listener)
    yield listener
    await connection.close()


async def bring_to(writer: ChangeWriter, authority_id: int, state: str) -> None:
    """Make the certificate absent, good, held or revoked."""
    if state in {"good", "held", "revoked"}:
        await writer.issue(authority_id, SERIAL, not_after=NOT_AFTER, actor="test")
    if state == "held":
        await writer.hold(authority_id, SERIAL, actor="test")
    if state == "revoked":
        await writer.revoke(authority_id, SERIAL, reason=CRLReason.SUPERSEDED, actor="test")


def state_of(record: StatusRecord | None) -> str:
    """absent, good, held or revoked."""
    if record is None:
        return "absent"
    return "held" if record.held else record.cert_status.label


ALLOWED = {
    ("absent", Change.ISSUE): "good",
    ("good", Change.ISSUE): "good",
    ("absent", Change.REVOKE): "revoked",
    ("good", Change.REVOKE): "revoked",
    ("held", Change.REVOKE): "revoked",
    ("good", Change.HOLD): "held",
    ("held", Change.UNHOLD): "good",
}


@pytest.mark.parametrize("change", Change, ids=lambda change: change.label)
@pytest.mark.parametrize("state", ["absent", "good", "held", "revoked"])
async def test_every_transition(
    writer: ChangeWriter, reader: StatusReader, authority_id: int, state: str, change: Change
) -> None:
    """From each state each change does what the table says, or is refused and leaves no trace at all. OCSP-86."""
    await bring_to(writer, authority_id, state)
    before, history = await reader.find(authority_id, SERIAL), await writer.history(authority_id, SERIAL)
    request = ChangeRequest(authority_id, SERIAL, change, not_after=NOT_AFTER if change is Change.ISSUE else None)
    wanted = ALLOWED.get((state, change))
    if wanted is None:
        with pytest.raises(ChangeRefused, match="1f00ff"):
            await writer.record([request], "test")
        assert await reader.find(authority_id, SERIAL) == before
        assert await writer.history(authority_id, SERIAL) == history
    else:
        (version,) = await writer.record([request], "test")
        record = await reader.find(authority_id, SERIAL)
        assert state_of(record) == wanted
        assert record is not None
        assert record.version == version
        assert record.not_after == (NOT_AFTER if state != "absent" or change is Change.ISSUE else None)


async def test_issue_twice_is_one_issue(writer: ChangeWriter, authority_id: int) -> None:
    """A CA that announces a certificate twice in the same words gets the same version and one line in the record."""
    first = await writer.issue(authority_id, SERIAL, not_after=NOT_AFTER, actor="test")
    assert await writer.issue(authority_id, SERIAL, not_after=NOT_AFTER, actor="test") == first
    assert len(await writer.history(authority_id, SERIAL)) == 1


async def test_the_hash_of_a_certificate_is_kept(writer: ChangeWriter, reader: StatusReader, authority_id: int) -> None:
    """It stays through every later change, and another one for the same serial number is refused."""
    digest = bytes(range(32))
    await writer.issue(authority_id, SERIAL, certificate_sha256=digest, actor="test")
    with pytest.raises(ChangeRefused, match="another notAfter or hash"):
        await writer.issue(authority_id, SERIAL, certificate_sha256=bytes(32), actor="test")
    with pytest.raises(ChangeRefused, match="32 octets"):
        await writer.issue(authority_id, b"\x02", certificate_sha256=b"short", actor="test")
    await writer.revoke(authority_id, SERIAL, actor="test")
    found = await reader.find(authority_id, SERIAL)
    assert found is not None
    assert found.certificate_sha256 == digest
    assert (await writer.history(authority_id, SERIAL))[0].request.certificate_sha256 == digest


async def test_the_crl_of_an_authority(admin: AuthorityAdmin, authority_id: int) -> None:
    """The current CRL replaces the one before; one that ends before it begins is refused."""
    now = datetime.now(UTC).replace(microsecond=0)
    first = CRLSource(None, None, now - timedelta(hours=2), now)
    second = CRLSource("http://127.0.0.1/ca.crl", b"\x01\x00", now, now + timedelta(hours=2))
    for crl in (first, second):
        await admin.set_crl(authority_id, crl)
        (authority,) = [each for each in await admin.authorities() if each.id == authority_id]
        assert authority.crl == crl
    with pytest.raises(ChangeRefused, match="ends before it begins"):
        await admin.set_crl(authority_id, CRLSource(None, None, now, now))
    with pytest.raises(ChangeRefused, match="no such authority"):
        await admin.set_crl(999, second)


async def test_a_revoked_authority(admin: AuthorityAdmin, authority_id: int) -> None:
    """A CA is revoked once and for good, not in the future, and only if it is on record."""
    (authority,) = [each for each in await admin.authorities() if each.id == authority_id]
    now = datetime.now(UTC).replace(microsecond=0)
    reason = CRLReason.CA_COMPROMISE
    for name, when in (("nobody", now), (authority.name, now + timedelta(hours=1))):
        with pytest.raises(ChangeRefused, match="is not on record, or is revoked already, or the time"):
            await admin.revoke_authority(name, reason=reason, revocation_time=when)
    await admin.revoke_authority(authority.name, reason=reason, revocation_time=now)
    (authority,) = [each for each in await admin.authorities() if each.id == authority_id]
    assert (authority.revocation_time, authority.revocation_reason) == (now, reason)
    with pytest.raises(ChangeRefused, match="revoked already"):
        await admin.revoke_authority(authority.name, reason=reason, revocation_time=now)


async def test_issue_with_another_end_is_refused(writer: ChangeWriter, authority_id: int) -> None:
    """The same serial number cannot stand for a certificate that ends at another time."""
    await writer.issue(authority_id, SERIAL, not_after=NOT_AFTER, actor="test")
    with pytest.raises(ChangeRefused, match="another notAfter"):
        await writer.issue(authority_id, SERIAL, not_after=NOT_AFTER + timedelta(days=1), actor="test")


async def test_revocation_is_recorded_as_asked(writer: ChangeWriter, reader: StatusReader, authority_id: int) -> None:
    """Time, reason and invalidity date arrive as given, without fractions of a second, which OCSP cannot express."""
    when = datetime(2026, 3, 4, 5, 6, 7, 999999, tzinfo=UTC)
    await writer.issue(authority_id, SERIAL, not_after=NOT_AFTER, actor="ຜູ້ອອກ")
    version = await writer.revoke(
        authority_id,
        SERIAL,
        reason=CRLReason.KEY_COMPROMISE,
        revocation_time=when,
        invalidity_date=when - timedelta(days=2),
        actor="ພະນັກງານ ທະບຽນ <registry@ca.la>",
    )
    second = when.replace(microsecond=0)
    assert await reader.find(authority_id, SERIAL) == StatusRecord(
        authority_id,
        SERIAL,
        CertStatus.REVOKED,
        second,
        CRLReason.KEY_COMPROMISE,
        second - timedelta(days=2),
        NOT_AFTER,
        version,
    )
    issued, revoked = await writer.history(authority_id, SERIAL)
    assert (issued.actor, issued.request.change) == ("ຜູ້ອອກ", Change.ISSUE)
    assert (revoked.actor, revoked.request.change) == ("ພະນັກງານ ທະບຽນ <registry@ca.la>", Change.REVOKE)
    assert revoked.request.revocation_reason is CRLReason.KEY_COMPROMISE
    assert revoked.version == version > issued.version


async def test_without_a_time_a_revocation_counts_from_now(
    writer: ChangeWriter, reader: StatusReader, authority_id: int
) -> None:
    """Left out, the revocation time is the present second, and never a later one."""
    before = datetime.now(UTC).replace(microsecond=0)
    await writer.revoke(authority_id, SERIAL, actor="test")
    record = await reader.find(authority_id, SERIAL)
    assert record is not None
    assert record.revocation_time is not None
    assert before <= record.revocation_time <= datetime.now(UTC)
    assert record.revocation_reason is None


async def test_unhold_leaves_nothing_of_the_suspension(
    writer: ChangeWriter, reader: StatusReader, authority_id: int
) -> None:
    """A released certificate is as good as before, and keeps its notAfter."""
    await bring_to(writer, authority_id, "held")
    await writer.unhold(authority_id, SERIAL, actor="test")
    record = await reader.find(authority_id, SERIAL)
    assert record is not None
    assert (record.cert_status, record.revocation_time, record.revocation_reason) == (CertStatus.GOOD, None, None)
    assert record.not_after == NOT_AFTER


@pytest.mark.parametrize(
    ("request_of", "says"),
    [
        (lambda a: ChangeRequest(a, SERIAL, Change.REVOKE, datetime.now(UTC) + timedelta(minutes=5)), "future"),
        (
            lambda a: ChangeRequest(a, SERIAL, Change.REVOKE, revocation_reason=CRLReason.CERTIFICATE_HOLD),
            "to suspend a certificate, hold it",
        ),
        (lambda a: ChangeRequest(a, SERIAL, Change.REVOKE, revocation_reason=CRLReason.REMOVE_FROM_CRL), "no reason"),
        (lambda a: ChangeRequest(a, SERIAL, Change.HOLD, revocation_reason=CRLReason.SUPERSEDED), "certificateHold"),
        (lambda a: ChangeRequest(a, SERIAL, Change.ISSUE, revocation_reason=CRLReason.SUPERSEDED), "takes no"),
        (lambda a: ChangeRequest(a, SERIAL, Change.UNHOLD, datetime(2026, 1, 1, tzinfo=UTC)), "takes no"),
        (lambda a: ChangeRequest(a, SERIAL, Change.REVOKE, datetime.max.replace(tzinfo=UTC)), "future|infinite"),
        (lambda a: ChangeRequest(a + 1, SERIAL, Change.ISSUE), "no such authority"),
        (lambda a: ChangeRequest(a, b"", Change.ISSUE), "minimal DER INTEGER"),
        (lambda a: ChangeRequest(a, b"\x00\x7f", Change.ISSUE), "minimal DER INTEGER"),
        (lambda a: ChangeRequest(a, b"\xff\x80", Change.ISSUE), "minimal DER INTEGER"),
        (lambda a: ChangeRequest(a, b"\x01" * 129, Change.ISSUE), "minimal DER INTEGER"),
    ],
)
async def test_malformed_changes_are_refused_in_words(
    writer: ChangeWriter, authority_id: int, request_of: Callable[[int], ChangeRequest], says: str
) -> None:
    """What makes no sense is refused with a sentence that says so, and it is an error of Lakthan's own kind."""
    with pytest.raises(ChangeRefused, match=says) as refusal:
        await writer.record([request_of(authority_id)], "test")
    assert isinstance(refusal.value, LakthanError)
    assert refusal.value.__cause__ is not None


@pytest.mark.parametrize("actor", ["", "  "])
async def test_a_change_needs_an_actor(writer: ChangeWriter, authority_id: int, actor: str) -> None:
    """Nobody can change a status anonymously."""
    with pytest.raises(ChangeRefused, match="actor"):
        await writer.issue(authority_id, SERIAL, actor=actor)


@pytest.mark.parametrize("serial", ["00", "7f", "0080", "ff7f", "80", "ff", "00" + "ff" * 20, "80" + "00" * 19])
async def test_serial_numbers_of_every_kind(
    writer: ChangeWriter, reader: StatusReader, authority_id: int, serial: str
) -> None:
    """Zero, negative and very large serial numbers exist in the world, and each is a certificate of its own.

    OCSP-Q25.
    """
    octets = bytes.fromhex(serial)
    await writer.issue(authority_id, octets, actor="test")
    record = await reader.find(authority_id, octets)
    assert record is not None
    assert record.serial_number == octets


async def test_change_and_notification_arrive_together(writer: ChangeWriter, heard: Heard, authority_id: int) -> None:
    """A first issue makes nothing stale and is silent; every other change says what is true from now on."""
    await writer.issue(authority_id, SERIAL, not_after=NOT_AFTER, actor="test")
    assert await heard.now() == []
    when = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
    held = await writer.hold(authority_id, SERIAL, revocation_time=when, actor="test")
    good = await writer.unhold(authority_id, SERIAL, actor="test")
    gone = await writer.revoke(
        authority_id, SERIAL, reason=CRLReason.CA_COMPROMISE, revocation_time=when, invalidity_date=when, actor="test"
    )
    common = {
        "authority_id": authority_id,
        "serial_number": "1f00ff",
        "not_after": "2030-01-01T00:00:00+00:00",
        "certificate_sha256": None,
    }
    instant = "2026-03-04T05:06:07+00:00"
    nothing = {"revocation_time": None, "revocation_reason": None, "invalidity_date": None}
    on_hold = {"revocation_time": instant, "revocation_reason": 6, "invalidity_date": None}
    revoked = {"revocation_time": instant, "revocation_reason": 2, "invalidity_date": instant}
    told = [json.loads(payload) for payload in await heard.now()]
    moments = [datetime.fromisoformat(each.pop("changed_at")) for each in told]
    assert moments == sorted(moments)
    assert all(abs(datetime.now(UTC) - moment) < timedelta(minutes=1) for moment in moments)
    assert told == [
        common | on_hold | {"cert_status": "revoked", "version": held},
        common | nothing | {"cert_status": "good", "version": good},
        common | revoked | {"cert_status": "revoked", "version": gone},
    ]


async def test_a_change_that_is_rolled_back_was_never_heard(
    open_as: OpenPool, writer: ChangeWriter, reader: StatusReader, heard: Heard, authority_id: int
) -> None:
    """Neither the status nor the notification of an uncommitted change gets out."""
    await bring_to(writer, authority_id, "good")
    pool = await open_as("lakthan_registry")
    async with pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(
            "INSERT INTO status_change (authority_id, serial_number, change, actor) VALUES ($1, $2, 'revoke', 'test')",
            authority_id,
            SERIAL,
        )
        await transaction.rollback()
    assert state_of(await reader.find(authority_id, SERIAL)) == "good"
    assert await heard.now() == []


async def test_a_batch_is_recorded_whole_or_not_at_all(
    writer: ChangeWriter, reader: StatusReader, heard: Heard, authority_id: int
) -> None:
    """One refused change takes the batch with it, the notifications included."""
    await bring_to(writer, authority_id, "good")
    batch = [
        ChangeRequest(authority_id, SERIAL, Change.REVOKE),
        ChangeRequest(authority_id, b"\x05", Change.ISSUE),
        ChangeRequest(authority_id, b"\x06", Change.HOLD),
    ]
    with pytest.raises(ChangeRefused, match="06 of authority"):
        await writer.record(batch, "test")
    assert state_of(await reader.find(authority_id, SERIAL)) == "good"
    assert await reader.find(authority_id, b"\x05") is None
    assert await heard.now() == []


async def test_a_batch_keeps_the_order_of_one_certificate(
    writer: ChangeWriter, reader: StatusReader, authority_id: int
) -> None:
    """Versions come back in the order of the requests, also when certificates are mixed."""
    other = b"\x01"
    batch = [
        ChangeRequest(authority_id, SERIAL, Change.ISSUE),
        ChangeRequest(authority_id, other, Change.ISSUE),
        ChangeRequest(authority_id, SERIAL, Change.HOLD),
        ChangeRequest(authority_id, SERIAL, Change.UNHOLD),
        ChangeRequest(authority_id, other, Change.ISSUE),
    ]
    versions = await writer.record(batch, "test")
    assert versions[0] < versions[2] < versions[3]
    assert versions[1] == versions[4]
    assert [change.version for change in await writer.history(authority_id, SERIAL)] == [
        versions[0],
        versions[2],
        versions[3],
    ]
    assert state_of(await reader.find(authority_id, SERIAL)) == "good"
    assert await writer.record([], "test") == []


async def test_of_many_writers_on_one_certificate_one_wins(
    writer: ChangeWriter, reader: StatusReader, authority_id: int
) -> None:
    """Eight revocations of a certificate at once, known before or not: exactly one is recorded, the others refused."""
    for serial in (SERIAL, b"\x77"):
        if serial == SERIAL:
            await bring_to(writer, authority_id, "good")
        outcomes = await asyncio.gather(
            *(writer.revoke(authority_id, serial, actor=f"writer {number}") for number in range(8)),
            return_exceptions=True,
        )
        won = [outcome for outcome in outcomes if isinstance(outcome, int)]
        refused = [outcome for outcome in outcomes if isinstance(outcome, ChangeRefused)]
        assert (len(won), len(refused)) == (1, 7)
        record = await reader.find(authority_id, serial)
        assert record is not None
        assert record.version == won[0]


async def test_versions_of_a_certificate_grow_with_every_commit(
    writer: ChangeWriter, heard: Heard, authority_id: int
) -> None:
    """Writers that hold and release the same certificate against each other never let a version go back."""
    await bring_to(writer, authority_id, "good")

    async def work(number: int) -> int:
        recorded = 0
        for turn in range(10):
            try:
                if (number + turn) % 2:
                    await writer.hold(authority_id, SERIAL, actor=f"writer {number}")
                else:
                    await writer.unhold(authority_id, SERIAL, actor=f"writer {number}")
                recorded += 1
            except ChangeRefused:
                continue
        return recorded

    recorded = sum(await asyncio.gather(*(work(number) for number in range(4))))
    versions = [json.loads(payload)["version"] for payload in await heard.now()]
    assert versions == sorted(set(versions))
    assert len(versions) == recorded > 0
    assert [change.version for change in await writer.history(authority_id, SERIAL)][1:] == versions


async def test_batches_in_opposite_order_do_not_block_each_other(writer: ChangeWriter, authority_id: int) -> None:
    """Two batches over the same certificates, one from the front and one from the back, both go through."""
    serials = [bytes([number]) for number in range(1, 60)]
    await writer.record([ChangeRequest(authority_id, serial, Change.ISSUE) for serial in serials], "test")
    hold = [ChangeRequest(authority_id, serial, Change.HOLD) for serial in serials]
    revoke = [ChangeRequest(authority_id, serial, Change.REVOKE) for serial in reversed(serials)]
    outcomes = await asyncio.gather(writer.record(hold, "a"), writer.record(revoke, "b"), return_exceptions=True)
    # Revoking what is held is allowed, holding what is revoked is not: the revocation wins in either order.
    assert isinstance(outcomes[1], list)
    assert isinstance(outcomes[0], list | ChangeRefused)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE status_change SET actor = 'somebody else'",
        "DELETE FROM status_change",
        "TRUNCATE status_change",
        "UPDATE timestamp_token SET gen_time = now()",
        "DELETE FROM timestamp_token",
        "TRUNCATE timestamp_token",
        "DELETE FROM serial_epoch",
        "UPDATE certificate_status SET version = 0",
        "DELETE FROM certificate_status",
        "TRUNCATE certificate_status",
        "INSERT INTO certificate_status SELECT * FROM certificate_status",
    ],
)
async def test_what_is_recorded_stays_even_for_the_owner(
    open_as: OpenPool, writer: ChangeWriter, authority_id: int, statement: str
) -> None:
    """The owner of the tables, too, is stopped from editing or emptying a record by a slip of the hand. OCSP-78."""
    await bring_to(writer, authority_id, "revoked")
    owner = await open_as(None)
    with pytest.raises(asyncpg.PostgresError) as refusal:
        await owner.execute(statement)
    assert refusal.value.sqlstate == "LK003"
    assert len(await writer.history(authority_id, SERIAL)) == 2


@pytest.mark.parametrize("role", ["lakthan_registry", "lakthan_publisher"])
@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("version", "-5"),
        ("recorded_at", "'2001-01-01Z'"),
        ("batch", "1"),
        ("previous_version", "7"),
        ("crl_scope", "1"),
    ],
)
async def test_what_the_database_writes_cannot_be_chosen(
    open_as: OpenPool, authority_id: int, role: str, column: str, value: str
) -> None:
    """Whoever may append cannot pick the version, back-date the record or say where it belongs."""
    pool = await open_as(role)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await pool.execute(
            f"INSERT INTO status_change (authority_id, serial_number, change, actor, {column})"
            f" VALUES ($1, $2, 'revoke', 'test', {value})",
            authority_id,
            SERIAL,
        )


async def test_the_version_before(writer: ChangeWriter, authority_id: int) -> None:
    """Each change names the one that it followed, the way it came, and the statement that brought it."""
    await bring_to(writer, authority_id, "held")
    await writer.record([ChangeRequest(authority_id, SERIAL, Change.REVOKE)], "test", through="api")
    issued, held, revoked = await writer.history(authority_id, SERIAL)
    assert [change.previous_version for change in (issued, held, revoked)] == [None, issued.version, held.version]
    assert [change.through for change in (issued, held, revoked)] == ["cli", "cli", "api"]
    assert 1 < issued.batch < held.batch < revoked.batch


async def test_many_changes_are_told_as_one(
    writer: ChangeWriter, heard: Heard, authority_id: int, open_as: OpenPool
) -> None:
    """A thousand changes of a statement are told one by one; of more, responders are told to forget all at once."""
    serials = [b"\x01" + number.to_bytes(2, "big") for number in range(1001)]
    owner = await open_as(None)
    other = await owner.fetchval("INSERT INTO authority (name) VALUES ('other') RETURNING id")
    await writer.record([ChangeRequest(authority_id, serial, Change.ISSUE) for serial in serials], "test")
    assert await heard.now() == []
    few = [ChangeRequest(authority_id, serial, Change.HOLD) for serial in serials[:1000]]
    versions = await writer.record([*few, ChangeRequest(other, SERIAL, Change.REVOKE)], "test")
    told = [json.loads(payload) for payload in await heard.now()]
    assert [each["version"] for each in told] == versions
    heard.payloads.clear()
    many = [ChangeRequest(authority_id, serial, Change.REVOKE) for serial in serials]
    versions = await writer.record([*many, ChangeRequest(other, b"\x01", Change.REVOKE)], "test")
    everything, single = (json.loads(payload) for payload in await heard.now())
    assert datetime.fromisoformat(everything.pop("changed_at")).tzinfo is not None
    assert everything == {"authority_id": authority_id, "all": True, "version": versions[-2]}
    assert (single["authority_id"], single["version"]) == (other, versions[-1])


async def test_of_several_changes_of_a_certificate_the_last_is_told(
    writer: ChangeWriter, heard: Heard, authority_id: int
) -> None:
    """What was true for no moment outside of the transaction is not told to anybody."""
    asked = [ChangeRequest(authority_id, SERIAL, change) for change in (Change.ISSUE, Change.HOLD, Change.UNHOLD)]
    versions = await writer.record(asked, "test")
    (told,) = await heard.now()
    assert (json.loads(told)["cert_status"], json.loads(told)["version"]) == ("good", versions[-1])


@pytest.mark.parametrize(
    ("at_fault", "kind", "says"),
    [
        (ChangeRequest(1, b"\x07", Change.HOLD), StateForbids, "07 of authority 1 is not on record"),
        (
            ChangeRequest(1, b"\x07", Change.UNHOLD, datetime(2026, 1, 1, tzinfo=UTC)),
            ChangeRefused,
            "07 of authority 1",
        ),
        (ChangeRequest(1, b"\x00\x07", Change.ISSUE), ChangeRefused, "change 2 of 3, serial number '0007'"),
        (ChangeRequest(1, b"\x07" * 200, Change.ISSUE), ChangeRefused, "change 2 of 3, serial number '0707[07]*…'"),
        (
            ChangeRequest(1, b"\x07", Change.ISSUE, certificate_sha256=b"short"),
            ChangeRefused,
            "change 2 of 3, serial number '07' of authority 1: the hash",
        ),
    ],
)
async def test_a_refusal_names_the_certificate(
    writer: ChangeWriter, authority_id: int, at_fault: ChangeRequest, kind: type[ChangeRefused], says: str
) -> None:
    """Of ten thousand changes the one that is at fault is named, in words and as a value."""
    batch = [
        ChangeRequest(authority_id, b"\x01", Change.ISSUE),
        at_fault,
        ChangeRequest(authority_id, b"\x08", Change.ISSUE),
    ]
    with pytest.raises(ChangeRefused, match=says) as refusal:
        await writer.record(batch, "test")
    assert type(refusal.value) is kind
    assert refusal.value.serial_number == at_fault.serial_number
    assert await writer.history(authority_id, b"\x01") == []
