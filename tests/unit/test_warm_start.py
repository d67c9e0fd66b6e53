"""The file of the warm start: what is read is what was written, and damage never makes an answer newer than it is."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lakthan.store.kept import AnswerKey, KeptAnswer
from lakthan.store.published import Standing
from lakthan.store.records import AuthorityRecord, CertStatus, CRLReason, CRLSource
from lakthan_ocsp import warm_start
from lakthan_ocsp.warm_start import Authorities, Changed, Instant, Record, WarmFile, read

NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
AUTHORITY = AuthorityRecord(
    7,
    "public-ca ກ",
    (b"name",),
    (b"key", b"older key"),
    (b"certificate",),
    NOW,
    CRLReason.CA_COMPROMISE,
    CRLSource("http://crl", b"\x01", NOW, NOW + HOUR),
)


def answer(serial: bytes, *, begins: datetime = NOW, cert_status: CertStatus = CertStatus.GOOD) -> KeptAnswer:
    """An answer for an hour, published when it begins."""
    return KeptAnswer(
        7, serial, "SHA-256", begins, begins, begins + HOUR, begins, cert_status, b"response of " + serial
    )


def write(path: Path, answers: Sequence[KeptAnswer], notes: Sequence[Record] = ()) -> WarmFile:
    """A snapshot of these answers as of NOW, and then the notes."""
    file = WarmFile(path)
    file.begin(NOW, [AUTHORITY])
    file.add(answers)
    file.settle()
    file.finish()
    for record in notes:
        file.note(record)
    file.sync()
    return file


def key(serial: bytes) -> AnswerKey:
    """What it is asked by."""
    return AnswerKey(7, serial, "SHA-256")


def said(path: Path, serial: bytes, now: datetime = NOW) -> str:
    """What the file's answer says, or why there is none."""
    warm = read(path)
    assert warm is not None
    standing, found = warm.find(key(serial), now)
    return found.answer.cert_status.value if found else standing.value


def test_what_was_written_is_read(tmp_path: Path) -> None:
    """Authorities with all that belongs to them, answers octet for octet, and the instant of it all."""
    path = tmp_path / "new folder" / "answers"
    write(path, [answer(b"\x01"), answer(b"\x02")]).close()
    warm = read(path)
    assert warm is not None
    assert (warm.at, warm.authorities, warm.damage) == (NOW, (AUTHORITY,), "")
    standing, found = warm.find(key(b"\x02"), NOW)
    assert standing is Standing.CURRENT
    assert found is not None
    assert (found.answer.response, found.answer.next_update) == (b"response of \x02", NOW + HOUR)
    assert path.stat().st_mode & 0o777 == 0o600


def test_only_within_their_time(tmp_path: Path) -> None:
    """An answer is given from its thisUpdate until its nextUpdate; the next period's takes over."""
    path = tmp_path / "answers"
    later = answer(b"\x01", begins=NOW + HOUR, cert_status=CertStatus.REVOKED)
    write(path, [answer(b"\x01"), later]).close()
    second = timedelta(seconds=1)
    assert said(path, b"\x01", NOW - second) == "not now"
    assert said(path, b"\x01", NOW + HOUR - second) == "good"
    assert said(path, b"\x01", NOW + HOUR) == "revoked"
    assert said(path, b"\x01", NOW + 2 * HOUR) == "not now"
    assert said(path, b"\x09") == "none"


def test_changes_are_told_behind_the_snapshot(tmp_path: Path) -> None:
    """What changed is not given any more, until its new answer comes; later instants make the rest younger."""
    path = tmp_path / "answers"
    revoked = answer(b"\x01", begins=NOW + timedelta(minutes=1), cert_status=CertStatus.REVOKED)
    file = write(path, [answer(b"\x01"), answer(b"\x02"), answer(b"\x03")], [Changed(7, b"\x01"), Changed(7, b"\x02")])
    assert [said(path, serial) for serial in (b"\x01", b"\x02", b"\x03")] == ["none", "none", "good"]
    file.note(revoked)
    file.note(Instant(NOW + HOUR))
    warm = read(path)
    assert warm is not None
    assert warm.at == NOW + HOUR
    assert said(path, b"\x01", NOW + timedelta(minutes=2)) == "revoked"
    file.note(Changed(7))
    file.note(Authorities(()))
    warm = read(path)
    assert warm is not None
    assert (warm.answers, warm.authorities) == ({}, ())
    file.close()


def test_what_happens_during_a_snapshot_is_in_it(tmp_path: Path) -> None:
    """A change that is heard while the new file is being written counts in the old file and in the new one."""
    path = tmp_path / "answers"
    file = write(path, [answer(b"\x01")])
    file.begin(NOW + HOUR, [AUTHORITY])
    file.add([answer(b"\x01")])
    file.note(Changed(7, b"\x01"))
    assert said(path, b"\x01") == "none"
    file.settle()
    file.finish()
    warm = read(path)
    assert warm is not None
    assert (said(path, b"\x01"), warm.at) == ("none", NOW + HOUR)
    file.close()


def test_a_snapshot_that_is_not_finished_changes_nothing(tmp_path: Path) -> None:
    """Until the new file is whole there is the old one."""
    path = tmp_path / "answers"
    file = write(path, [answer(b"\x01")])
    file.begin(NOW + HOUR, [])
    file.add([answer(b"\x02")])
    file.give_up()
    assert (said(path, b"\x01"), said(path, b"\x02")) == ("good", "none")
    file.close()


def test_every_damaged_octet_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever octet is wrong: no answer is given that was not written, and none as of an instant that is not proven
    by all that stands before it.
    """
    monkeypatch.setattr(warm_start, "log", _Silent())
    path = tmp_path / "answers"
    write(path, [answer(b"\x01"), answer(b"\x02")], [Changed(7, b"\x01"), Instant(NOW + HOUR)]).close()
    whole = path.read_bytes()
    noticed = 0
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        warm = read(path)
        if warm is None:
            noticed += 1
            continue
        noticed += bool(warm.damage) or warm.at == NOW
        for kept in warm.answers.values():
            assert kept[0] in (answer(b"\x01"), answer(b"\x02"))
        if key(b"\x01") in warm.answers:
            assert warm.at == NOW, f"a change was lost and the state is said to be newer (octet {position})"
    assert noticed == len(whole)


def test_every_cut_off_end_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was not written to its end, wherever that is, is older or none; it is never wrong."""
    monkeypatch.setattr(warm_start, "log", _Silent())
    path = tmp_path / "answers"
    write(path, [answer(b"\x01"), answer(b"\x02")], [Changed(7, b"\x01"), Instant(NOW + HOUR)]).close()
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        warm = read(path)
        assert warm is None or warm.at == NOW


class _Silent:
    """Hundreds of damaged files need no lines in the log."""

    def error(self, *_: object, **__: object) -> None:
        """Nothing."""


def test_no_file(tmp_path: Path) -> None:
    """No file is no error; a folder, another file or an empty one is not used."""
    assert read(tmp_path / "answers") is None
    assert read(tmp_path) is None
    (tmp_path / "answers").write_bytes(b"")
    assert read(tmp_path / "answers") is None
    (tmp_path / "answers").write_bytes(b"something else\n" * 10)
    assert read(tmp_path / "answers") is None
