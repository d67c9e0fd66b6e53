"""The plan of a ceremony: what it comes to, and that a wrong one is refused with its line before a key is opened."""

from __future__ import annotations

import itertools
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lakthan.errors import ConfigError
from lakthan.store.records import CertStatus, CRLReason
from lakthan_cli.ceremony.plan import load
from lakthan_cli.ceremony.programme import LONGEST, Programme, programme, status_of
from support.ceremony import DAY, Room, instant, new_room
from support.pki import issue, new_ca, new_responder

NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def room(tmp_path: Path) -> Room:
    """A folder with a root and its sub-CAs."""
    return new_room(tmp_path)


def planned(room: Room, **settings: object) -> Programme:
    """What a plan with these settings comes to."""
    return programme(load(room.plan(**settings)), NOW)  # type: ignore[arg-type]


def test_one_answer_for_the_whole_time(room: Room) -> None:
    """Without a period there is one answer for each certificate and hash algorithm, from beginning to end."""
    found = planned(room)
    assert [each.hash_algorithm.label for each in found.answers] == ["SHA-1", "SHA-256"] * 2
    assert {each.period for each in found.answers} == {found.answers[0].period}
    assert found.answers[0].period.next_update - found.answers[0].period.this_update == timedelta(days=90)
    assert [status_of(each) for each in found.plan.sub_cas] == [CertStatus.GOOD, CertStatus.REVOKED]
    assert found.plan.sub_cas[1].revocation_reason is CRLReason.CESSATION_OF_OPERATION
    assert found.plan.sub_cas[0].serial_number == room.good.serial_number


def test_consecutive_periods_overlap_and_leave_no_gap(room: Room) -> None:
    """With a period, each answer begins before the one before it ends, and together they cover the whole time."""
    found = planned(room, answers='period = "P14D"\noverlap = "P2D"\nhashes = ["SHA-256"]')
    periods = [each.period for each in found.of(found.plan.sub_cas[0])]
    assert len(periods) == 8
    assert periods[-1].next_update - periods[0].this_update == timedelta(days=90)
    for earlier, later in itertools.pairwise(periods):
        assert later.this_update - earlier.this_update == timedelta(days=12)
        assert earlier.next_update - later.this_update == timedelta(days=2)


def test_what_is_produced_is_never_older_than_what_it_knows(room: Room) -> None:
    """The answer of a running period is produced now, that of a later one at its thisUpdate (RFC 6960 §2.4)."""
    found = planned(room, answers='period = "P14D"')
    assert found.answers[0].produced_at == NOW
    assert all(each.produced_at == max(NOW, each.period.this_update) for each in found.answers)


def test_periods_that_have_ended_are_left_out(room: Room) -> None:
    """A plan that begins three weeks ago signs nothing for the weeks that nobody can ask about any more."""
    found = planned(room, begin=NOW - 21 * DAY, answers='period = "P7D"\nhashes = ["SHA-1"]')
    assert all(each.period.next_update > NOW for each in found.answers)
    assert len(found.of(found.plan.sub_cas[0])) == 10


def test_an_answer_ends_with_its_certificate(room: Room) -> None:
    """No answer outlives the certificate that it is about; about an ended one the answers go on."""
    issue("short", room.root, ca=True, valid=(-30 * DAY, 40 * DAY)).write(room.folder, "short")
    issue("ended", room.root, ca=True, valid=(-30 * DAY, -10 * DAY)).write(room.folder, "ended")
    extra = "".join(f'[[sub_ca]]\ncertificate = "{name}.pem"\nstatus = "good"\n' for name in ("short", "ended"))
    found = planned(room, extra=extra, answers='period = "P30D"')
    short, ended = found.plan.sub_cas[2:]
    assert max(each.period.next_update for each in found.of(short)) == short.not_after
    assert len(found.of(short)) == 4
    assert len(found.of(ended)) == len(found.of(found.plan.sub_cas[0])) == 6


def test_a_certificate_may_be_named_by_its_serial_number(room: Room) -> None:
    """Where the file is lost, serial number and name do; hexadecimal, or decimal when it says so."""
    extra = '[[sub_ca]]\nserial_number = "decimal:16290"\nname = "lost"\nstatus = "good"\n'
    assert planned(room, extra=extra).plan.sub_cas[2].serial_number == bytes.fromhex("3fa2")


@pytest.mark.parametrize(
    ("old", "new", "line", "why"),
    [
        ("[root]", "[root]\ncolour = 1", "colour", "unknown field"),
        ("number = 1", 'number = "one"', "number", "Expected `int`"),
        ("number = 1", "number = -1", "number", "Expected `int` >= 0"),
        ('status = "good"', 'status = "fine"', "status", "Invalid enum value 'fine'"),
        ('status = "revoked"', 'status = "unknown"', 'status = "unknown"', "Invalid enum value"),
        ("witnesses_required = 1", "witnesses_required = 2", "witnesses_required", "1 are named"),
        ('"cessationOfOperation"', '"certificateHold"', "reason", "needs a reason, one of keyCompromise"),
        ('"cessationOfOperation"', '"tired"', "reason", "needs a reason"),
        ('reason = "cessationOfOperation"', "", r"\[\[sub_ca", "needs a reason"),
        ('certificate = "good.pem"', "", r"\[\[sub_ca", "either a certificate file or a serial_number"),
        ('certificate = "good.pem"', 'serial_number = "3F"', "serial_number", "needs a name"),
        ('certificate = "good.pem"', 'serial_number = "xyz"\nname = "n"', "serial_number", "not a serial number"),
        ('certificate = "good.pem"', 'certificate = "foreign.pem"', r'certificate = "foreign', "was not issued by"),
        ('certificate = "revoked.pem"', 'certificate = "good.pem"', r"\[\[sub_ca", "serial number of another entry"),
        ('certificate = "root.pem"', 'certificate = "good-leaf.pem"', "certificate", "is no CA"),
        ("until = ", 'period = "PT1M"\nuntil = ', "period", "at least an hour"),
        ("until = ", 'period = "P4D"\noverlap = "P3D"\nuntil = ', "overlap", "at most half"),
        ("until = ", 'hashes = ["MD5"]\nuntil = ', "hashes", "some of SHA-1, SHA-256"),
        ("until = ", 'hashes = ["SHA-1", "SHA-1"]\nuntil = ', "hashes", "each once"),
        ("until = ", 'period = "PT1H"\nuntil = ', "period", "are the most"),
    ],
)
def test_a_wrong_plan_is_refused_with_its_line(room: Room, old: str, new: str, line: str, why: str) -> None:
    """Whatever is wrong is said in one sentence with file and line, before anybody opens a key."""
    new_ca("foreign").write(room.folder, "foreign")
    issue("leaf", room.root).write(room.folder, "good-leaf")
    path = room.plan(days=365)
    text = path.read_text().replace(old, new, 1)
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        programme(load(path), NOW)
    said = str(caught.value)
    assert why in said
    found = re.match(rf"{re.escape(str(path))}:(\d+): ", said)
    assert found, said
    assert re.search(line, text.splitlines()[int(found[1]) - 1]), said


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"days": 400}, f"updated at least every {LONGEST.days}"),
        ({"begin": NOW - 100 * DAY}, "the time it plans for has ended"),
        ({"begin": NOW - 32 * DAY}, "begin more than 31 days ago"),
        ({"days": -1}, "until must be later than from"),
        ({"days": 8000, "answers": 'period = "P90D"'}, "ends before that"),
        ({"begin": NOW + 2 * DAY}, "in the future of"),
    ],
)
def test_a_plan_for_the_wrong_time_is_refused(room: Room, settings: dict[str, object], why: str) -> None:
    """A slip in a date, or a machine whose clock is wrong, is found while nothing is signed."""
    with pytest.raises(ConfigError, match=why):
        planned(room, **settings)


def test_a_root_that_may_not_sign_answers(tmp_path: Path) -> None:
    """A root key without digitalSignature signs no answers; the message says what to do (RFC 5280 §4.2.1.3)."""
    room = new_room(tmp_path, delegated=True)
    room.responder = None
    with pytest.raises(ConfigError, match=r"no digitalSignature.*\[responder\]"):
        planned(room)


@pytest.mark.parametrize("whose", ["another root", "a sub-CA", "no purpose"])
def test_a_responder_that_may_not_speak(tmp_path: Path, whose: str) -> None:
    """Only a certificate of the root itself, for OCSP signing alone, may sign instead of it (RFC 6960 §4.2.2.2)."""
    room = new_room(tmp_path, delegated=True)
    issuer = {"another root": new_ca("another"), "a sub-CA": room.good}.get(whose, room.root)
    made = issue("none", issuer) if whose == "no purpose" else new_responder(issuer)
    made.write(tmp_path, "responder")
    with pytest.raises(ConfigError, match="not for OCSP signing" if whose == "no purpose" else "was not issued by"):
        planned(room, days=20)


def test_the_example_plan_can_be_used(room: Room) -> None:
    """What `lakthan ceremony plan` prints is a plan: it lists the certificates, and a dry run takes it."""
    room.folder.joinpath("here").mkdir()
    result = room.run("plan", room.folder / "root.pem", room.folder / "good.pem", room.folder / "revoked.pem")
    assert result.exit_code == 0
    path = room.folder / "example.toml"
    path.write_text(result.output)
    found = programme(load(path), datetime.now(UTC))
    assert [each.serial_number for each in found.plan.sub_cas] == [room.good.serial_number, room.revoked.serial_number]
    dry = room.run("sign", path, "--dry-run")
    assert dry.exit_code == 0
    assert "nothing was signed" in dry.output


def test_the_example_plan_takes_no_foreign_certificate(room: Room) -> None:
    """A certificate that the root did not issue is refused at once."""
    new_ca("foreign").write(room.folder, "foreign")
    result = room.run("plan", room.folder / "root.pem", room.folder / "foreign.pem")
    assert result.exit_code == 1
    assert "was not issued by" in result.output


def test_a_dry_run_opens_no_key(room: Room) -> None:
    """`--dry-run` works on a machine that has no key at all, and makes no folder."""
    (room.folder / "root.key").unlink()
    result = room.run("sign", room.plan(), "--out", room.folder / "out", "--dry-run")
    assert result.exit_code == 0
    assert "4, signed by" in result.output
    assert not (room.folder / "out").exists()
    assert instant(NOW)[:10] in result.output
