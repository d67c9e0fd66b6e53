"""`lakthan ceremony import` on a real database: what comes online, and that nothing else does."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import pytest
from click.testing import Result

from lakthan.algorithms import HashAlgorithm
from lakthan.store.audit_verify import verify
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.changes import ChangeWriter
from lakthan.store.pool import open_pool
from lakthan.store.published import PublishedReader, Standing
from lakthan.store.records import CertStatus, CRLReason
from lakthan.store.status import StatusReader
from lakthan_registry.crl_import import import_crl
from support.ceremony import DAY, Room, new_room
from support.pki import issue, new_ca

Value = TypeVar("Value")
NOW = datetime.now(UTC).replace(microsecond=0)


class Online:
    """The online side: a database in which the root is an authority, and the command on it."""

    def __init__(self, url: str, room: Room) -> None:
        self.url = url
        self.room = room
        self.authority_id = self.use(lambda pool: AuthorityAdmin(pool).add_authority("root", [room.root.der]))

    def use(self, work: Callable[[asyncpg.Pool], Awaitable[Value]]) -> Value:
        """Do something with the database, as the operator."""

        async def run() -> Value:
            pool = await open_pool(
                self.url, role="lakthan_registry", min_size=1, max_size=2, application_name="lakthan-test"
            )
            try:
                return await work(pool)
            finally:
                await pool.close()

        return asyncio.run(run())

    def take(self, folder: Path, *options: str) -> Result:
        """`lakthan ceremony import`."""
        return self.room.run("import", folder, "--database", self.url, *options)

    def take_well(self, folder: Path, *options: str) -> str:
        """The same, and it must succeed; gives what it prints."""
        result = self.take(folder, *options)
        assert result.exit_code == 0, result.output
        return result.output

    def status(self, serial_number: bytes) -> CertStatus | None:
        """What is on record about a certificate of the root."""
        record = self.use(lambda pool: StatusReader(pool).find(self.authority_id, serial_number))
        return record.cert_status if record else None

    def standing(self, serial_number: bytes, at: datetime | None = None) -> Standing:
        """What a responder would find."""
        at = at or datetime.now(UTC)
        found = self.use(
            lambda pool: PublishedReader(pool).find(self.authority_id, serial_number, HashAlgorithm.SHA_256, at)
        )
        return found[0]

    def everything(self) -> list[Any]:
        """All that an import could change."""

        async def read(pool: asyncpg.Pool) -> list[Any]:
            return [
                await pool.fetch(f"SELECT * FROM {table} ORDER BY 1, 2")
                for table in ("certificate_status", "status_change", "published_answer", "authority_crl")
            ]

        return self.use(read)

    def records(self, event: str) -> list[dict[str, Any]]:
        """The audit records of an event."""
        rows = self.use(lambda pool: pool.fetch("SELECT * FROM audit_record WHERE event = $1 ORDER BY number", event))
        return [dict(row) | {"detail": json.loads(row["detail"])} for row in rows]


@pytest.fixture
def online(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Online:
    """A database that knows the root of a room and nothing else."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    return Online(database_url, new_room(tmp_path))


def test_answers_and_arl_come_online(online: Online) -> None:
    """After an import the answers are there for responders, and the statuses on record are those of the ceremony."""
    room = online.room
    out = room.sign(room.plan())
    said = online.take_well(out)
    assert "4 answers published, 0 were there already" in said
    assert "1 revoked" in said
    assert "1 certificates on record as good" in said
    assert hashlib.sha256((out / "MANIFEST").read_bytes()).hexdigest()[:4] in said
    assert online.status(room.good.serial_number) is CertStatus.GOOD
    assert online.status(room.revoked.serial_number) is CertStatus.REVOKED
    for issued in (room.good, room.revoked):
        assert online.standing(issued.serial_number) is Standing.CURRENT


def test_it_is_on_record_who_brought_what(online: Online) -> None:
    """The audit chain of the root has the ARL's changes and the answers, each with the fingerprint of the bundle."""
    out = online.room.sign(online.room.plan())
    online.take_well(out)
    manifest = hashlib.sha256((out / "MANIFEST").read_bytes()).hexdigest()
    [ceremony] = online.records("ceremony")
    assert ceremony["chain"] == online.authority_id
    assert ceremony["actor"].startswith("cli:")
    assert ceremony["through"] == "ceremony"
    assert ceremony["detail"] == {"folder": "out", "manifest_sha256": manifest, "answers": 4}
    [arl] = [each for each in online.records("crl") if each["change_count"]]
    assert arl["detail"]["manifest_sha256"] == manifest
    assert arl["detail"]["crl_number"] == "1"


def test_a_dry_run_changes_nothing(online: Online) -> None:
    """`--dry-run` says what would be done, and does none of it."""
    out = online.room.sign(online.room.plan())
    before = online.everything()
    said = online.take_well(out, "--dry-run")
    assert "4 answers would be published; nothing was changed" in said
    assert "1 would be revoked" in said
    assert online.everything() == before
    assert online.records("ceremony") == []


def test_a_second_time(online: Online) -> None:
    """The same bundle again is no error and changes nothing: an import that was cut off is simply repeated."""
    out = online.room.sign(online.room.plan())
    online.take_well(out)
    before = online.everything()
    said = online.take_well(out)
    assert "0 answers published, 4 were there already" in said
    assert "ARL of root: nothing new" in said
    assert online.everything() == before


def test_the_next_ceremony_takes_over(online: Online) -> None:
    """A newer bundle replaces the older one, and the older one cannot come back."""
    room = online.room
    first = room.sign(room.plan(revoked=False), "first")
    online.take_well(first)
    second = room.sign(room.plan(number=2, name="second.toml"), "second")
    online.take_well(second)
    assert online.status(room.revoked.serial_number) is CertStatus.REVOKED
    assert online.standing(room.revoked.serial_number) is Standing.CURRENT
    before = online.everything()
    result = online.take(first)
    assert result.exit_code == 1
    assert "is revoked on record" in result.output.replace("\n", " ")
    assert online.everything() == before


def test_an_import_that_was_cut_off(online: Online) -> None:
    """When only the ARL came through, the same import again brings the rest."""
    out = online.room.sign(online.room.plan())
    arl = (out / "arl.crl").read_bytes()
    online.use(lambda pool: import_crl(arl, pool=pool, now=datetime.now(UTC), actor="test", through="ceremony"))
    said = online.take_well(out)
    assert "ARL of root: nothing new" in said
    assert "4 answers published" in said
    assert online.standing(online.room.revoked.serial_number) is Standing.CURRENT


def test_the_audit_chain_holds(online: Online) -> None:
    """After ceremonies, repeated and refused ones too, nothing is wrong with the audit chain."""
    room = online.room
    first = room.sign(room.plan(), "first")
    online.take_well(first)
    online.take_well(first)
    online.take_well(room.sign(room.plan(number=2, name="second.toml"), "second"))
    assert online.take(first).exit_code == 1
    assert online.use(verify).findings == []


def test_a_revocation_on_record_stays_as_it_is(online: Online) -> None:
    """A sub-CA that was revoked online with another reason stays revoked as it was, and the import says so."""
    room = online.room
    online.use(
        lambda pool: ChangeWriter(pool).revoke(
            online.authority_id, room.revoked.serial_number, reason=CRLReason.CA_COMPROMISE, actor="test"
        )
    )
    said = online.take_well(room.sign(room.plan()))
    assert "cACompromise on record, and stays so" in said
    assert online.standing(room.revoked.serial_number) is Standing.CURRENT


def test_going_back_is_refused_by_the_number(online: Online) -> None:
    """Also where no status differs, a bundle whose ARL has an older number is refused whole."""
    room = online.room
    first = room.sign(room.plan(), "first")
    online.take_well(room.sign(room.plan(number=7, name="second.toml"), "second"))
    before = online.everything()
    result = online.take(first)
    assert result.exit_code == 1
    assert "CRLNumber 1 is below the 7 on record" in result.output
    assert online.everything() == before


def test_a_revocation_between_ceremonies(online: Online) -> None:
    """A sub-CA that is revoked online at once has no answer any more, and answers that say good are not taken."""
    room = online.room
    out = room.sign(room.plan(revoked=False))
    online.take_well(out)
    online.use(
        lambda pool: ChangeWriter(pool).revoke(
            online.authority_id, room.good.serial_number, reason=CRLReason.CA_COMPROMISE, actor="test"
        )
    )
    assert online.standing(room.good.serial_number) is Standing.OUTDATED
    result = online.take(out)
    assert result.exit_code == 1
    assert "a new ceremony is due" in result.output.replace("\n", " ")


def damaged(room: Room, out: Path, how: str) -> Path:
    """A bundle that something is wrong with."""
    answers = sorted((out / "answers").iterdir())
    if how == "a file changed":
        answers[0].write_bytes(answers[0].read_bytes()[:-1] + b"\0")
    elif how == "a file missing":
        answers[0].unlink()
    elif how == "a file too many":
        (out / "answers" / "extra.ors").write_bytes(answers[0].read_bytes())
    elif how == "another root":
        folder = room.folder / "other"
        folder.mkdir()
        other = new_room(folder)
        return other.sign(other.plan())
    else:
        folder = room.folder / "other"
        folder.mkdir()
        other = new_room(folder)
        foreign = other.sign(other.plan())
        if how == "answers of another root":
            shutil.rmtree(out / "answers")
            shutil.copytree(foreign / "answers", out / "answers")
        elif how == "ARL of another root":
            shutil.copy(foreign / "arl.crl", out / "arl.crl")
        elif how == "a changed answer, listed anew":
            octets = bytearray(answers[0].read_bytes())
            octets[-1] ^= 1
            answers[0].write_bytes(octets)
        listed = [path for path in out.rglob("*") if path.is_file() and path.name[:5] not in ("MANIF", "proto")]
        lines = (f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(out)}\n" for path in listed)
        (out / "MANIFEST").write_text("".join(lines))
    return out


@pytest.mark.parametrize(
    ("how", "why", "known"),
    [
        ("a file changed", "is not the file that MANIFEST lists", False),
        ("a file missing", "is listed and not there", False),
        ("a file too many", "does not list", False),
        ("a changed answer, listed anew", "signature", True),
        ("answers of another root", "certificate of another CA", True),
        ("ARL of another root", "no authority on record made arl.crl", False),
        ("another root", "no authority on record made arl.crl", False),
    ],
)
def test_what_is_refused_changes_nothing(online: Online, how: str, why: str, *, known: bool) -> None:
    """Tampered, incomplete and foreign bundles are refused whole; the refusal itself is on record."""
    out = damaged(online.room, online.room.sign(online.room.plan()), how)
    before = online.everything()
    result = online.take(out)
    assert result.exit_code == 1
    assert why in result.output.replace("\n", " ")
    assert online.everything() == before
    [refused] = online.records("refused")
    assert refused["chain"] == (online.authority_id if known else 0)
    assert why in refused["detail"]["why"]


def test_a_bundle_that_comes_too_late(online: Online) -> None:
    """Answers that have ended are left out; when all have, the bundle is refused."""
    room = online.room
    began = datetime.now(UTC) - 20 * DAY
    out = room.sign(room.plan(begin=began, days=20.00003, revoked=False))  # ends in two seconds or so
    ends = (began + timedelta(days=20.00003)).replace(microsecond=0)

    async def ended() -> None:
        async with asyncio.timeout(10):
            while datetime.now(UTC) <= ends:  # noqa: ASYNC110 - the clock says when
                await asyncio.sleep(0.05)

    asyncio.run(ended())
    before = online.everything()
    result = online.take(out)
    assert result.exit_code == 1
    assert "every answer in it has ended" in result.output.replace("\n", " ")
    assert online.everything() == before


def test_a_responder_that_was_revoked_meanwhile(database_url: str, tmp_path: Path) -> None:
    """Answers signed by a responder whose certificate is revoked on record are refused."""
    online = Online(database_url, new_room(tmp_path, delegated=True))
    room = online.room
    out = room.sign(room.plan())
    assert room.responder is not None
    responder = room.responder.serial_number
    online.use(lambda pool: ChangeWriter(pool).revoke(online.authority_id, responder, actor="test"))
    result = online.take(out)
    assert result.exit_code == 1
    assert "which signed, is revoked" in result.output.replace("\n", " ")


def test_a_renewed_root_certificate(online: Online) -> None:
    """A root that has a new certificate for its old key is still the one that signed."""
    room = online.room
    longer = issue("ລາວ National Root", key=room.root.key, ca=True, valid=(-DAY, 9000 * DAY))
    online.use(lambda pool: AuthorityAdmin(pool).add_authority("root", [longer.der]))
    online.take_well(room.sign(room.plan()))
    assert online.standing(room.good.serial_number) is Standing.CURRENT


def test_other_authorities_are_not_touched(online: Online) -> None:
    """With several authorities on record, the signatures say whose bundle it is."""
    other = new_ca("Public CA")
    other_id = online.use(lambda pool: AuthorityAdmin(pool).add_authority("public-ca", [other.der]))
    online.take_well(online.room.sign(online.room.plan()))
    count = online.use(
        lambda pool: pool.fetchval("SELECT count(*) FROM certificate_status WHERE authority_id = $1", other_id)
    )
    assert count == 0
